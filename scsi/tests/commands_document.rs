//! `docs/scsi-commands.md` lists exactly the commands that work, and what it calls left out is refused.

use std::{fs, path::PathBuf};

use holdfast_scsi::{
    cdb,
    geometry::Geometry,
    opcode,
    sense::{Sense, asc},
};

fn rows(section: &str) -> Vec<String> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/scsi-commands.md");
    let text = fs::read_to_string(path).unwrap();
    let (_, from) = text.split_once(&format!("\n## {section}\n")).expect("section");
    let lines = from.split("\n## ").next().unwrap().lines();
    lines.filter(|line| line.starts_with("| `")).map(str::to_owned).collect()
}

#[test]
fn supported_commands_are_listed() {
    let expected: Vec<String> = opcode::TABLE
        .iter()
        .map(|row| {
            let action = row.service_action.map_or(String::new(), |action| format!("/{action:02X}h"));
            format!(
                "| `{:02X}h{action}` | {} | {} | {} s |",
                row.opcode,
                row.name,
                row.usage.len(),
                row.timeout_s
            )
        })
        .collect();
    assert_eq!(rows("Supported"), expected, "the rows should be:\n{}", expected.join("\n"));
}

#[test]
fn what_is_left_out_is_refused_as_unknown() {
    let unit = Geometry::new(512, 1000).unwrap();
    let left_out = rows("Left out, and why");
    assert!(left_out.len() > 5);
    for row in left_out {
        let codes = row.split('`').nth(1).unwrap();
        for code in codes.split(", ") {
            let number = |digits: &str| u16::from_str_radix(digits.trim_end_matches('h'), 16).unwrap();
            let mut cdb = [0; 32];
            let expected = match code.split_once('/') {
                None => {
                    cdb[0] = number(code) as u8;
                    Sense::illegal(asc::INVALID_COMMAND_OPERATION_CODE)
                }
                Some((opcode, action)) if number(opcode) != 0x7f => {
                    [cdb[0], cdb[1]] = [number(opcode) as u8, number(action) as u8];
                    Sense::illegal_field_cdb(1, Some(4))
                }
                Some((_, action)) => {
                    [cdb[0], cdb[7], cdb[9]] = [0x7f, 0x18, number(action) as u8];
                    Sense::illegal_field_cdb(8, None)
                }
            };
            assert_eq!(cdb::parse(&cdb, &unit), Err(expected), "{row}");
        }
    }
}
