//! The contracts are read by people: each field says what it means, and each change can be asked for again.

#![allow(missing_docs)]

use std::{fs, path::Path};

fn contracts() -> Vec<(String, String)> {
    fn collect(folder: &Path, all: &mut Vec<(String, String)>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.extension() {
                None => collect(&path, all),
                Some(_) => all.push((path.display().to_string(), fs::read_to_string(&path).unwrap())),
            }
        }
    }
    let mut all = Vec::new();
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("proto"), &mut all);
    assert!(all.len() >= 7, "{} contracts", all.len());
    all
}

/// What a line opens or declares.
#[derive(Debug, PartialEq, Eq)]
enum Line<'a> {
    /// "message NAME {" and the like: the keyword.
    Opens(&'a str),
    Closes,
    /// Type and name.
    Field(&'a str, &'a str),
    Comment,
    Other,
}

fn read(line: &str) -> Line<'_> {
    let line = line.trim();
    if line.starts_with("//") {
        return Line::Comment;
    }
    if line == "}" {
        return Line::Closes;
    }
    let mut words = line.split_whitespace().filter(|word| !matches!(*word, "repeated" | "optional"));
    match [words.next(), words.next(), words.next()] {
        [Some(kind @ ("message" | "enum" | "oneof" | "service")), Some(_), Some("{")]
            if line.ends_with('{') =>
        {
            Line::Opens(kind)
        }
        [Some(_), Some(name), Some("=")] if line.ends_with(';') => Line::Field(
            line.split_whitespace().find(|w| !matches!(*w, "repeated" | "optional")).unwrap(),
            name,
        ),
        _ => Line::Other,
    }
}

/// Fields without a comment of their own. The arms of a oneof that are messages are told by their message.
fn bare_fields(text: &str) -> Vec<String> {
    let (mut open, mut bare, mut commented) = (Vec::new(), Vec::new(), false);
    for line in text.lines() {
        let read = read(line);
        match read {
            Line::Opens(kind) => open.push(kind),
            Line::Closes => drop(open.pop()),
            Line::Field(kind, name) => {
                let base = kind.rsplit('.').next().unwrap_or(kind);
                let is_message = base.starts_with(|c: char| c.is_ascii_uppercase());
                let told = commented || open.last() == Some(&"oneof") && is_message;
                if !told && matches!(open.last(), Some(&("message" | "oneof"))) {
                    bare.push(name.to_owned());
                }
            }
            Line::Comment | Line::Other => {}
        }
        // Several fields in a line cannot have comments of their own.
        if read == Line::Other && line.contains("message ") && line.contains(" = ") {
            bare.push(line.to_owned());
        }
        commented = read == Line::Comment;
    }
    assert!(open.is_empty(), "the contract is not understood");
    bare
}

#[test]
fn every_field_has_a_comment() {
    let mut fields = 0;
    for (path, text) in contracts() {
        let bare = bare_fields(&text);
        assert!(bare.is_empty(), "{path}: without a comment: {}", bare.join(", "));
        fields += text.lines().filter(|line| matches!(read(line), Line::Field(..))).count();
    }
    assert!(fields > 500, "{fields} fields were looked at");
}

#[test]
fn a_field_without_a_comment_is_found() {
    let good = "message A {\n  // It is.\n  string name = 1;\n  oneof all {\n    B b = 2;\n  }\n}\n";
    assert!(bare_fields(good).is_empty());
    let bad = "message A {\n  // It is.\n  string name = 1;\n  repeated x.y.B all = 2;\n}\nmessage C { string d = 1; }\n";
    assert_eq!(bare_fields(bad), ["all", "message C { string d = 1; }"]);
}

/// Calls of the management API that change nothing.
const READING: [&str; 5] = ["Get", "List", "Watch", "Explain", "Assess"];

#[test]
fn every_change_of_the_management_api_carries_a_request_id() {
    let contracts: Vec<_> =
        contracts().into_iter().filter(|(path, _)| path.contains("/proto/holdfast/v1/")).collect();
    let whole: String = contracts.iter().map(|(_, text)| text.as_str()).collect();
    let mut changes = 0;
    for line in whole.lines().filter_map(|line| line.trim().strip_prefix("rpc ")) {
        let (name, rest) = line.split_once('(').unwrap();
        if READING.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        changes += 1;
        let request = rest.split(')').next().unwrap();
        let body = whole.split(&format!("message {request} {{")).nth(1).unwrap().split("\n}").next().unwrap();
        assert!(
            body.contains("string request_id = "),
            "{name} cannot be asked for again: {request} has no id"
        );
    }
    assert!(changes > 20, "{changes} changes were looked at");
}
