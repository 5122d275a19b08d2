use super::*;
use crate::cdb;
use crate::geometry::Geometry;
use crate::opcode;
use crate::reply::full_reply;
use std::vec::Vec;

const CLEAR: Conditions = Conditions {
    unit_attention: None,
    alua: AluaState::ActiveOptimized,
    spc2_reservation: Access::Allowed,
    persistent_reservation: Access::Allowed,
    write_protect: WriteProtect::None,
    not_ready: None,
};
const RESET: UnitAttention = UnitAttention { id: 7, additional: asc::POWER_ON_OR_RESET };
const OTHER: UnitAttention = UnitAttention { id: 8, additional: asc::CAPACITY_DATA_CHANGED };

/// A valid CDB for every row of the table.
fn every_command() -> Vec<(u8, Result<Command, Sense>)> {
    let unit = Geometry::new(512, 1000).unwrap();
    let one = |row: &opcode::Row| {
        let mut bytes = std::vec![0; row.usage.len()];
        row.name_in(&mut bytes);
        match row.opcode {
            0xa0 | 0xa3 => bytes[9] = 16,
            0x41 => bytes[8] = 1,
            0x93 => bytes[13] = 1,
            0x7f if bytes[9] == 0x0d => bytes[31] = 1,
            0x1c => bytes[1] = 1,
            0x3b => bytes[1] = 0x0a,
            0x3c | 0x9b => bytes[1] = 0x0b,
            0x48 if bytes[1] == 1 => bytes[8] = 5,
            _ => {}
        }
        let parsed = cdb::parse(&bytes, &unit);
        assert!(parsed.is_ok(), "{}: {parsed:?}", row.name);
        (row.opcode, parsed)
    };
    opcode::TABLE.iter().map(one).collect()
}

fn conflict() -> Verdict {
    Verdict::Reply { status: Status::ReservationConflict, sense: None, unit_attention_reported: None }
}

fn reports(ua: UnitAttention) -> Verdict {
    Verdict::Reply {
        status: Status::CheckCondition,
        sense: Some(Sense::unit_attention(ua.additional)),
        unit_attention_reported: Some(ua.id),
    }
}

fn not_ready(additional: crate::sense::AdditionalSense) -> Verdict {
    Verdict::sense(Sense::new(SenseKey::NotReady, additional))
}

#[test]
fn nothing_in_the_way_lets_every_command_proceed() {
    for (opcode, parsed) in every_command() {
        assert_eq!(check(opcode, &parsed, &CLEAR), Verdict::Proceed);
    }
}

#[test]
fn three_commands_are_stopped_by_nothing() {
    let worst = Conditions {
        unit_attention: Some(RESET),
        alua: AluaState::Unavailable,
        spc2_reservation: Access::Conflict,
        persistent_reservation: Access::Conflict,
        write_protect: WriteProtect::ReadOnly,
        not_ready: None,
    };
    let stopped_by_nothing: Vec<u8> = every_command()
        .into_iter()
        .filter(|(opcode, parsed)| check(*opcode, parsed, &worst) == Verdict::Proceed)
        .map(|(opcode, _)| opcode)
        .collect();
    assert_eq!(stopped_by_nothing, [0x03, 0x12, 0xa0]);
}

#[test]
fn each_check_comes_before_all_later_ones() {
    let write = Ok(Command::Write { extent: Default::default(), fua: false, dpo: false });
    let mut now = Conditions {
        unit_attention: Some(RESET),
        alua: AluaState::Standby,
        spc2_reservation: Access::Conflict,
        persistent_reservation: Access::Allowed,
        write_protect: WriteProtect::ReadOnly,
        not_ready: None,
    };
    assert_eq!(check(0x2a, &write, &now), reports(RESET));
    now.unit_attention = Some(OTHER);
    assert_eq!(check(0x2a, &write, &now), not_ready(asc::ALUA_STANDBY));
    now.alua = AluaState::ActiveNonOptimized;
    assert_eq!(check(0x2a, &write, &now), conflict());
    now.spc2_reservation = Access::Allowed;
    now.persistent_reservation = Access::Conflict;
    assert_eq!(check(0x2a, &write, &now), conflict());
    now.persistent_reservation = Access::Allowed;
    assert_eq!(check(0x2a, &write, &now), reports(OTHER));
    now.unit_attention = None;
    let protected = Sense::new(SenseKey::DataProtect, asc::WRITE_PROTECTED);
    assert_eq!(check(0x2a, &write, &now), Verdict::sense(protected));
    now.write_protect = WriteProtect::None;
    assert_eq!(check(0x2a, &write, &now), Verdict::Proceed);
}

#[test]
fn conflict_never_consumes_a_unit_attention() {
    let now = Conditions { unit_attention: Some(OTHER), persistent_reservation: Access::Conflict, ..CLEAR };
    for (opcode, parsed) in every_command() {
        match check(opcode, &parsed, &now) {
            Verdict::Proceed => assert!(is_exempt(opcode)),
            verdict => assert_eq!(verdict, conflict()),
        }
    }
}

#[test]
fn unit_attention_comes_before_a_wrong_cdb_except_for_the_exempt() {
    let wrong = Err(Sense::illegal_field_cdb(1, Some(7)));
    for ua in [RESET, OTHER] {
        let now = Conditions { unit_attention: Some(ua), ..CLEAR };
        assert_eq!(check(0xff, &wrong, &now), reports(ua));
        assert_eq!(check(0x12, &wrong, &now), Verdict::sense(Sense::illegal_field_cdb(1, Some(7))));
    }
}

#[test]
fn access_states_admit_what_the_standard_lists() {
    let admitted = |state| -> Vec<u8> {
        let now = Conditions { alua: state, ..CLEAR };
        let mut codes: Vec<u8> = every_command()
            .into_iter()
            .filter(|(opcode, parsed)| check(*opcode, parsed, &now) == Verdict::Proceed)
            .map(|(opcode, _)| opcode)
            .collect();
        codes.dedup();
        codes
    };
    assert_eq!(
        admitted(AluaState::Standby),
        [
            0x03, 0x12, 0x15, 0x1a, 0x1c, 0x1d, 0x3b, 0x3c, 0x4c, 0x4d, 0x55, 0x5a, 0x5e, 0x5f, 0x9b, 0xa0,
            0xa3, 0xa4
        ]
    );
    assert_eq!(admitted(AluaState::Unavailable), [0x03, 0x12, 0x3b, 0x3c, 0x9b, 0xa0, 0xa3, 0xa4]);
    assert_eq!(admitted(AluaState::Transitioning), [0x03, 0x12, 0xa0, 0xa3]);
    assert_eq!(admitted(AluaState::ActiveNonOptimized), admitted(AluaState::ActiveOptimized));
    let turn = Ok(Command::TestUnitReady);
    let now = Conditions { alua: AluaState::Transitioning, ..CLEAR };
    assert_eq!(check(0x00, &turn, &now), not_ready(asc::ALUA_TRANSITION));
}

#[test]
fn write_protection_refuses_what_changes_the_medium() {
    for (protect, additional) in [
        (WriteProtect::ReadOnly, asc::WRITE_PROTECTED),
        (WriteProtect::Software, asc::SOFTWARE_WRITE_PROTECTED),
    ] {
        let now = Conditions { write_protect: protect, ..CLEAR };
        let refused: Vec<u8> = every_command()
            .into_iter()
            .filter(|(opcode, parsed)| {
                let verdict = check(*opcode, parsed, &now);
                assert!(
                    verdict == Verdict::Proceed
                        || verdict == Verdict::sense(Sense::new(SenseKey::DataProtect, additional))
                );
                verdict != Verdict::Proceed
            })
            .map(|(opcode, _)| opcode)
            .collect();
        assert_eq!(
            refused,
            [
                0x04, 0x0a, 0x2a, 0x2e, 0x41, 0x42, 0x48, 0x48, 0x48, 0x7f, 0x7f, 0x7f, 0x83, 0x89, 0x8a,
                0x8b, 0x8e, 0x93, 0x9c, 0xaa, 0xae
            ],
            "WRITE, WRITE AND VERIFY, WRITE SAME, UNMAP, COMPARE AND WRITE, ORWRITE, WRITE ATOMIC, WRITE USING TOKEN"
        );
    }
}

#[test]
fn submission_checks_access_again_but_reports_no_unit_attention() {
    let write = Command::Write { extent: Default::default(), fua: false, dpo: false };
    let fenced =
        Conditions { unit_attention: Some(RESET), persistent_reservation: Access::Conflict, ..CLEAR };
    assert_eq!(check_again(&write, &fenced), conflict());
    let pending = Conditions { unit_attention: Some(RESET), ..CLEAR };
    assert_eq!(check_again(&write, &pending), Verdict::Proceed);
}

#[test]
fn request_sense_returns_and_consumes_the_unit_attention() {
    for descriptor in [false, true] {
        let mut out = [0; 252];
        let (reply, reported) = request_sense(Some(OTHER), &Sense::NONE, descriptor, 252, &mut out);
        assert_eq!(reported, Some(OTHER.id));
        assert_eq!(Sense::parse(&out[..reply.written]), Some(OTHER.sense()));
        let (reply, reported) = request_sense(None, &Sense::NONE, descriptor, 252, &mut out);
        assert_eq!(reported, None);
        assert_eq!(Sense::parse(&out[..reply.written]), Some(Sense::NONE));
        full_reply(|len, out| {
            request_sense(Some(OTHER), &Sense::NONE, descriptor, len.min(255) as u8, out).0
        });
    }
}

#[test]
fn unit_attention_that_was_cut_off_stays_pending() {
    for (descriptor, enough) in [(false, 14), (true, 4)] {
        for allocation_length in 0..20 {
            let (_, reported) =
                request_sense(Some(OTHER), &Sense::NONE, descriptor, allocation_length, &mut [0; 252]);
            assert_eq!(reported.is_some(), allocation_length >= enough);
            let (_, reported) =
                request_sense(Some(RESET), &Sense::NONE, descriptor, allocation_length, &mut [0; 252]);
            assert_eq!(reported.is_some(), allocation_length >= 14, "always in fixed format");
        }
    }
}
