//! `key=value` texts of login and text requests (RFC 7143 6.1, 6.2).
//!
//! Invariants: a parsed text holds at most [`limits::TEXT_KEYS_MAX`] pairs of valid names and bounded UTF-8 values, and no
//! key twice. What cannot be parsed is refused whole.

use crate::limits;
use alloc::vec::Vec;

/// One pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair<'a> {
    /// Standard names are case-sensitive.
    pub key: &'a str,
    /// May be empty.
    pub value: &'a str,
}

/// Why a text is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextError {
    /// The last pair lacks its NUL.
    Unterminated,
    /// A pair without `=`.
    NoEquals,
    /// A name that is empty, too long, or has characters that names do not have.
    BadName,
    /// A value that is too long or not UTF-8.
    BadValue,
    /// More pairs than anyone needs.
    TooManyKeys,
    /// A key twice in one text (RFC 7143 6.2: renegotiating in one sequence is an error).
    Duplicate,
}

/// The pairs of a text. Empty strings between NULs are passed over.
///
/// # Errors
/// [`TextError`]: the peer's violation.
pub fn pairs(text: &[u8]) -> Result<Vec<Pair<'_>>, TextError> {
    let mut pairs: Vec<Pair<'_>> = Vec::new();
    let strings = match text.split_last() {
        None => return Ok(pairs),
        Some((0, strings)) => strings,
        Some(_) => return Err(TextError::Unterminated),
    };
    for string in strings.split(|&byte| byte == 0).filter(|string| !string.is_empty()) {
        let pair = pair(string)?;
        if pairs.len() >= limits::TEXT_KEYS_MAX {
            return Err(TextError::TooManyKeys);
        }
        if pairs.iter().any(|other| other.key == pair.key) {
            return Err(TextError::Duplicate);
        }
        pairs.push(pair);
    }
    Ok(pairs)
}

fn pair(string: &[u8]) -> Result<Pair<'_>, TextError> {
    let equals = string.iter().position(|&byte| byte == b'=').ok_or(TextError::NoEquals)?;
    let (key, value) = (&string[..equals], &string[equals + 1..]);
    let of_name = |byte: &u8| byte.is_ascii_alphanumeric() || b".-+@_".contains(byte);
    if key.is_empty() || key.len() > limits::KEY_NAME_LEN_MAX || !key.iter().all(of_name) {
        return Err(TextError::BadName);
    }
    let key = core::str::from_utf8(key).map_err(|_| TextError::BadName)?;
    // Large binary values alone may be longer; who decodes them bounds them.
    let binary = matches!(key, "CHAP_C" | "CHAP_R");
    if value.len() > limits::VALUE_LEN_MAX && !binary {
        return Err(TextError::BadValue);
    }
    let value = core::str::from_utf8(value).map_err(|_| TextError::BadValue)?;
    Ok(Pair { key, value })
}

/// Appends `key=value` and its NUL.
pub fn push(text: &mut Vec<u8>, key: &str, value: &str) {
    text.extend_from_slice(key.as_bytes());
    text.push(b'=');
    text.extend_from_slice(value.as_bytes());
    text.push(0);
}

/// A number as texts write it: decimal, or hexadecimal after `0x` (RFC 7143 6.1). No sign, no spaces.
#[must_use]
pub fn number(value: &str) -> Option<u64> {
    let (digits, radix) = match value.strip_prefix("0x").or_else(|| value.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None => (value, 10),
    };
    let good = !digits.is_empty() && digits.bytes().all(|byte| char::from(byte).is_digit(radix));
    if good { u64::from_str_radix(digits, radix).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use alloc::vec;

    #[test]
    fn pairs_are_split_at_nul_and_the_first_equals() {
        let found = pairs(b"A=1\0\0B.b-c+d@e_f=x=y\0C=\0").unwrap();
        let expected = vec![
            Pair { key: "A", value: "1" },
            Pair { key: "B.b-c+d@e_f", value: "x=y" },
            Pair { key: "C", value: "" },
        ];
        assert_eq!(found, expected);
        assert_eq!(pairs(b"").unwrap(), vec![]);
    }

    #[test]
    fn malformed_texts_are_refused() {
        let long_name = format!("{}=1\0", "k".repeat(64));
        let long_value = format!("k={}\0", "v".repeat(256));
        let many: Vec<u8> = (0..97).flat_map(|n| format!("k{n}=\0").into_bytes()).collect();
        for (text, error) in [
            (&b"A=1"[..], TextError::Unterminated),
            (b"A\0", TextError::NoEquals),
            (b"=1\0", TextError::BadName),
            (b"A B=1\0", TextError::BadName),
            (long_name.as_bytes(), TextError::BadName),
            (long_value.as_bytes(), TextError::BadValue),
            (b"A=\xff\0", TextError::BadValue),
            (b"A=1\0A=1\0", TextError::Duplicate),
            (&many, TextError::TooManyKeys),
        ] {
            assert_eq!(pairs(text), Err(error));
        }
    }

    #[test]
    fn numbers_are_decimal_or_hexadecimal() {
        assert_eq!(number("262144"), Some(262_144));
        assert_eq!(number("0x1F"), Some(31));
        for bad in ["", "0x", "+1", "-1", " 1", "1 ", "0x+1", "12a", "99999999999999999999"] {
            assert_eq!(number(bad), None, "{bad}");
        }
    }
}
