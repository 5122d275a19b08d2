//! Pages of a list.
//!
//! Invariant: a list is in the order of its keys and a token names the last key shown, so that a list that changes between two
//! pages neither repeats nor skips what stayed.

use tonic::Status;

/// Rows of a page when none are asked for.
const PAGE_SIZE_DEFAULT: usize = 100;
/// Rows of a page at most.
const PAGE_SIZE_MAX: usize = 1000;
/// Longest token, in bytes.
const TOKEN_BYTES_MAX: usize = 512;

/// Rows of a page when `page_size` are asked for.
pub(super) fn size(page_size: u32) -> usize {
    match page_size as usize {
        0 => PAGE_SIZE_DEFAULT,
        asked => asked.min(PAGE_SIZE_MAX),
    }
}

/// A token that no list gave.
pub(super) fn no_token() -> Status {
    Status::invalid_argument("page_token: is not a token of this list")
}

/// One page of `rows` (key and row, in any order), and the token of the next; empty = that was the last.
pub(super) fn page<T>(
    mut rows: Vec<(String, T)>,
    page_size: u32,
    page_token: &str,
) -> Result<(Vec<T>, String), Status> {
    let size = size(page_size);
    let after = decode(page_token)?;
    rows.sort_by(|a, b| a.0.cmp(&b.0));
    let mut rest = rows.into_iter().filter(|(key, _)| after.as_ref().is_none_or(|after| key > after));
    let mut shown = Vec::new();
    let mut last = String::new();
    for (key, row) in rest.by_ref().take(size) {
        last = key;
        shown.push(row);
    }
    let token = if rest.next().is_some() { encode(&last) } else { String::new() };
    Ok((shown, token))
}

/// A key as a token.
pub(super) fn encode(key: &str) -> String {
    key.bytes().map(|byte| format!("{byte:02x}")).collect()
}

/// The key of a token; `None`: the first page.
pub(super) fn decode(token: &str) -> Result<Option<String>, Status> {
    if token.is_empty() {
        return Ok(None);
    }
    let bad = no_token;
    if token.len() > TOKEN_BYTES_MAX || !token.is_ascii() || !token.len().is_multiple_of(2) {
        return Err(bad());
    }
    let bytes: Option<Vec<u8>> = token
        .as_bytes()
        .chunks_exact(2)
        .map(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok())
        .collect();
    bytes.and_then(|bytes| String::from_utf8(bytes).ok()).map(Some).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(names: &[&str]) -> Vec<(String, String)> {
        names.iter().map(|name| ((*name).to_owned(), (*name).to_owned())).collect()
    }

    #[test]
    fn pages_follow_each_other_in_order() {
        let all = ["c", "a", "b", "e", "d"];
        let (first, token) = page(rows(&all), 2, "").unwrap();
        assert_eq!(first, ["a", "b"]);
        let (second, token) = page(rows(&all), 2, &token).unwrap();
        assert_eq!(second, ["c", "d"]);
        let (last, token) = page(rows(&all), 2, &token).unwrap();
        assert_eq!((last, token.as_str()), (vec!["e".to_owned()], ""));
    }

    #[test]
    fn what_went_in_between_does_not_matter() {
        let (_, token) = page(rows(&["a", "b", "c"]), 2, "").unwrap();
        assert_eq!(page(rows(&["a", "aa", "c"]), 2, &token).unwrap().0, ["c"]);
    }

    #[test]
    fn sizes_are_bounded() {
        let many: Vec<_> = (0..2000).map(|n| (format!("{n:04}"), n)).collect();
        assert_eq!(page(many.clone(), 0, "").unwrap().0.len(), PAGE_SIZE_DEFAULT);
        assert_eq!(page(many, u32::MAX, "").unwrap().0.len(), PAGE_SIZE_MAX);
    }

    #[test]
    fn nonsense_is_no_token() {
        for token in ["x", "zz", "ff", "é", &"61".repeat(400)] {
            assert!(page(rows(&["a"]), 1, token).is_err(), "{token}");
        }
    }
}
