//! The classes of faults that iSCSI targets have had, each as a test that our target must pass: first what anyone can send
//! before login, then what a logged-in initiator can.

#![allow(unreachable_pub)]

mod support;

#[path = "vulnerabilities/before_login.rs"]
mod before_login;
#[path = "vulnerabilities/data_out.rs"]
mod data_out;
#[path = "vulnerabilities/pdus.rs"]
mod pdus;

/// `docs/vulnerabilities.md` names every test of these modules, and nothing else.
#[test]
fn document_lists_every_class() {
    let document = include_str!("../../docs/vulnerabilities.md");
    let sources = [
        ("before_login", include_str!("vulnerabilities/before_login.rs")),
        ("data_out", include_str!("vulnerabilities/data_out.rs")),
        ("pdus", include_str!("vulnerabilities/pdus.rs")),
    ];
    let mut tests = 0;
    for (module, source) in sources {
        for part in source.split("#[test]\nfn ").skip(1) {
            let name = part.split('(').next().unwrap();
            assert!(
                document.contains(&format!("`{module}::{name}`")),
                "{module}::{name} is not in the document"
            );
            tests += 1;
        }
    }
    let rows = document.lines().filter(|line| line.ends_with("` |")).count();
    assert_eq!(rows, tests, "the document lists tests that are not there");
}
