//! The table of Unit Attention conditions, its document, and the tests that it names agree.

use std::{fs, path::PathBuf};

use holdfast_scsi::{sense::asc, ua_table::TABLE};

fn repository(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

#[test]
fn document_shows_the_table() {
    let document = fs::read_to_string(repository("docs/unit-attentions.md")).unwrap();
    let shown: Vec<&str> = document.lines().filter(|line| line.starts_with("| `")).collect();
    let rows: Vec<String> = TABLE
        .iter()
        .map(|row| {
            let name = asc::name(row.additional).expect("a known code").replace('_', " ");
            let (path, _) = row.shown_in;
            format!(
                "| `{}` | {name} | {} | {} | {} | [{}](../{path}) |",
                row.additional,
                row.when,
                row.told,
                row.cleared_by,
                path.rsplit('/').next().unwrap()
            )
        })
        .collect();
    assert_eq!(shown, rows, "the rows should be:\n{}", rows.join("\n"));
}

#[test]
fn every_row_has_its_test() {
    for row in TABLE {
        let (path, what) = row.shown_in;
        let text = fs::read_to_string(repository(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
        assert!(text.contains(what), "{path} says nothing of {what}");
    }
}

#[test]
fn rows_are_sorted_by_code() {
    assert!(TABLE.is_sorted_by_key(|row| row.additional));
}
