//! Allocation lengths, short CDBs, reserved bits, operation codes and LUNs that are not there.

use holdfast_scsi::{
    device_server::Completion,
    opcode::{self, Row},
    sense::{Sense, asc},
    status::Status,
};

use crate::{Bench, Case, Expected, run};

/// Commands that return parameter data: name, CDB, where the ALLOCATION LENGTH stands, and its width.
const REPORTS: &[(&str, &[u8], usize, usize)] = &[
    ("REQUEST SENSE", &[0x03, 0, 0, 0, 0, 0], 4, 1),
    ("REQUEST SENSE, descriptors", &[0x03, 1, 0, 0, 0, 0], 4, 1),
    ("INQUIRY", &[0x12, 0, 0, 0, 0, 0], 3, 2),
    ("INQUIRY 00h", &[0x12, 1, 0x00, 0, 0, 0], 3, 2),
    ("INQUIRY 80h", &[0x12, 1, 0x80, 0, 0, 0], 3, 2),
    ("INQUIRY 83h", &[0x12, 1, 0x83, 0, 0, 0], 3, 2),
    ("INQUIRY 86h", &[0x12, 1, 0x86, 0, 0, 0], 3, 2),
    ("INQUIRY 87h", &[0x12, 1, 0x87, 0, 0, 0], 3, 2),
    ("INQUIRY 88h", &[0x12, 1, 0x88, 0, 0, 0], 3, 2),
    ("INQUIRY B0h", &[0x12, 1, 0xb0, 0, 0, 0], 3, 2),
    ("INQUIRY B1h", &[0x12, 1, 0xb1, 0, 0, 0], 3, 2),
    ("INQUIRY B2h", &[0x12, 1, 0xb2, 0, 0, 0], 3, 2),
    ("INQUIRY B6h", &[0x12, 1, 0xb6, 0, 0, 0], 3, 2),
    ("MODE SENSE(6)", &[0x1a, 0, 0x3f, 0xff, 0, 0], 4, 1),
    ("MODE SENSE(10)", &[0x5a, 0x10, 0x3f, 0xff, 0, 0, 0, 0, 0, 0], 7, 2),
    ("MODE SENSE(10), changeable", &[0x5a, 0, 0x7f, 0xff, 0, 0, 0, 0, 0, 0], 7, 2),
    ("MODE SENSE(10), saved", &[0x5a, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0], 7, 2),
    ("RECEIVE DIAGNOSTIC RESULTS", &[0x1c, 1, 0, 0, 0, 0], 3, 2),
    ("LOG SENSE 00h", &[0x4d, 0, 0x40, 0, 0, 0, 0, 0, 0, 0], 7, 2),
    ("LOG SENSE 00h/FFh", &[0x4d, 0, 0x40, 0xff, 0, 0, 0, 0, 0, 0], 7, 2),
    ("LOG SENSE 0Ch", &[0x4d, 0, 0x4c, 0, 0, 0, 0, 0, 0, 0], 7, 2),
    ("LOG SENSE 19h", &[0x4d, 0, 0x59, 0, 0, 0, 0, 0, 0, 0], 7, 2),
    ("LOG SENSE 2Fh", &[0x4d, 0, 0x6f, 0, 0, 0, 0, 0, 0, 0], 7, 2),
    ("READ KEYS", &[0x5e, 0, 0, 0, 0, 0, 0, 0, 0, 0], 7, 2),
    ("READ RESERVATION", &[0x5e, 1, 0, 0, 0, 0, 0, 0, 0, 0], 7, 2),
    ("REPORT CAPABILITIES", &[0x5e, 2, 0, 0, 0, 0, 0, 0, 0, 0], 7, 2),
    ("READ FULL STATUS", &[0x5e, 3, 0, 0, 0, 0, 0, 0, 0, 0], 7, 2),
    ("READ CAPACITY(16)", &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 10, 4),
    ("GET LBA STATUS", &[0x9e, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 10, 4),
    ("REPORT IDENTIFYING INFORMATION", &[0xa3, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0xfe, 0], 6, 4),
    ("REPORT TARGET PORT GROUPS", &[0xa3, 0x2a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 6, 4),
    ("REPORT SUPPORTED OPERATION CODES", &[0xa3, 0x0c, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0], 6, 4),
    ("REPORT SUPPORTED OPERATION CODES of READ(10)", &[0xa3, 0x0c, 1, 0x28, 0, 0, 0, 0, 0, 0, 0, 0], 6, 4),
    ("REPORT TIMESTAMP", &[0xa3, 0x0f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 6, 4),
];

fn with_length(cdb: &[u8], at: usize, width: usize, length: u32) -> Vec<u8> {
    let mut cdb = cdb.to_vec();
    cdb[at..at + width].copy_from_slice(&length.to_be_bytes()[4 - width..]);
    cdb
}

fn report(cdb: &[u8]) -> (Completion, Vec<u8>) {
    let mut bench = Bench::new();
    bench.0.store_has(10);
    bench.send(0, cdb, Vec::new())
}

/// Name, CDB, and how much of the whole report it asks for.
pub(crate) fn allocation_lengths() -> Vec<(String, Vec<u8>, Vec<u8>, usize)> {
    let mut cases = Vec::new();
    for (name, cdb, at, width) in REPORTS {
        let whole = with_length(cdb, *at, *width, if *width == 1 { 252 } else { 0xffff });
        for length in [0usize, 1, 3, 4, 7, 13] {
            let cut = with_length(cdb, *at, *width, length as u32);
            cases.push((format!("{name}: {length} bytes"), whole.clone(), cut, length));
        }
    }
    cases
}

/// The first byte that is missing is the field that is wrong.
pub(crate) fn short_cdbs() -> Vec<Case> {
    let cut = |row: &Row| {
        let mut cdb = vec![0; row.usage.len() - 1];
        row.name_in(&mut cdb);
        let expected = Expected::Check(Sense::illegal_field_cdb(cdb.len() as u16, None));
        Case::new(row.name, cdb, Vec::new(), expected)
    };
    opcode::TABLE.iter().filter(|row| row.opcode != 0xa0).map(cut).collect()
}

/// Every bit that no command evaluates, ignores or judges by itself is refused where it stands.
pub(crate) fn reserved_bits() -> Vec<(&'static Row, usize, u8)> {
    let mut cases = Vec::new();
    for row in opcode::TABLE.iter().filter(|row| row.opcode != 0xa0) {
        for (at, usage) in row.usage.iter().enumerate().skip(1) {
            let naca = if at == row.control_at() { opcode::NACA } else { 0 };
            let known = usage | row.unchecked.get(at).copied().unwrap_or(0) | naca;
            // One for each byte: the highest.
            if known != 0xff {
                cases.push((row, at, 7 - (!known).leading_zeros() as u8));
            }
        }
    }
    cases
}

pub(crate) fn unknown_operation_codes() -> Vec<Case> {
    let unknown = (0..=255u8).filter(|opcode| opcode::rows(*opcode).is_empty());
    let expected = Expected::Check(Sense::illegal(asc::INVALID_COMMAND_OPERATION_CODE));
    let mut cases: Vec<Case> = unknown
        .map(|opcode| {
            let mut cdb = vec![0xff; 16];
            cdb[0] = opcode;
            cdb[15] = 0;
            Case::new(format!("{opcode:02x}"), cdb, Vec::new(), expected.clone())
        })
        .collect();
    for row in opcode::TABLE.iter().filter(|row| row.service_action.is_some()) {
        if row.opcode == opcode::VARIABLE_LENGTH {
            continue;
        }
        let actions = opcode::rows(row.opcode);
        if actions[0].service_action != row.service_action {
            continue;
        }
        for action in (0..0x20u8).filter(|a| actions.iter().all(|r| r.service_action != Some(u16::from(*a))))
        {
            let mut cdb = vec![0; row.usage.len()];
            [cdb[0], cdb[1]] = [row.opcode, action];
            let expected = Expected::Check(Sense::illegal_field_cdb(1, Some(4)));
            cases.push(Case::new(format!("{:02x}/{action:02x}", row.opcode), cdb, Vec::new(), expected));
        }
    }
    for action in (0..0x40u8).filter(|action| !(0x09..=0x0d).contains(action)) {
        let mut cdb = vec![0; 32];
        [cdb[0], cdb[7], cdb[9]] = [0x7f, 0x18, action];
        let expected = Expected::Check(Sense::illegal_field_cdb(8, None));
        cases.push(Case::new(format!("7f/{action:04x}"), cdb, Vec::new(), expected));
    }
    for length in (0..=255u8).filter(|length| *length != 0x18) {
        let mut cdb = vec![0; 32];
        [cdb[0], cdb[7], cdb[9]] = [0x7f, length, 0x09];
        let expected = Expected::Check(Sense::illegal_field_cdb(7, None));
        cases.push(Case::new(format!("7f/0009 of {length} more bytes"), cdb, Vec::new(), expected));
    }
    cases
}

pub(crate) fn not_mapped() -> Vec<Case> {
    let answered_by_the_port = [0x03, 0x12, 0xa0];
    let rows = opcode::TABLE.iter().filter(|row| !answered_by_the_port.contains(&row.opcode));
    rows.map(|row| {
        let mut cdb = vec![0; row.usage.len()];
        row.name_in(&mut cdb);
        let expected = Expected::Check(Sense::illegal(asc::LOGICAL_UNIT_NOT_SUPPORTED));
        Case { lun: 9, ..Case::new(row.name, cdb, Vec::new(), expected) }
    })
    .collect()
}

#[test]
fn reports_are_cut_at_the_allocation_length_and_nothing_else_leaks() {
    for (name, whole, cut, length) in allocation_lengths() {
        let (all, full) = report(&whole);
        assert_eq!(all.status, Status::Good, "{name}");
        let (completion, got) = report(&cut);
        assert_eq!(completion.status, Status::Good, "{name}");
        assert_eq!(got, full[..full.len().min(length)], "{name}");
        assert_eq!(completion.transfer_len as usize, got.len(), "{name}");
    }
}

#[test]
fn short_cdbs_point_at_the_first_missing_byte() {
    run(&short_cdbs());
}

#[test]
fn reserved_bits_are_refused_where_they_stand() {
    for (row, at, bit) in reserved_bits() {
        let mut cdb = vec![0; row.usage.len()];
        row.name_in(&mut cdb);
        cdb[at] |= 1 << bit;
        let mut bench = Bench::new();
        let (completion, _) = bench.send(0, &cdb, Vec::new());
        let Some(sense) = completion.sense else {
            panic!("{}: byte {at} bit {bit} is let through", row.name)
        };
        let field = if at == row.flags_at() && bit >= 5 { 7 } else { bit };
        assert_eq!(
            sense,
            Sense::illegal_field_cdb(at as u16, Some(field)),
            "{}: byte {at} bit {bit}",
            row.name
        );
    }
}

#[test]
fn unknown_operation_codes_and_service_actions_are_told_apart() {
    run(&unknown_operation_codes());
}

#[test]
fn luns_that_are_not_mapped_do_nothing() {
    run(&not_mapped());
}
