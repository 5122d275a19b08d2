use super::*;
use crate::{
    cdb::IdentifyingKind,
    mode::{QueueError, ReportMethod},
    reply::full_reply,
    sense::SenseKey,
    transport_id::TransportId,
};
use std::{vec, vec::Vec};

const DEFAULT: ModeParameters = ModeParameters::new(true);

fn nexus(n: u8) -> Nexus {
    Nexus::new(TransportId::sas([n; 8]), RelativePort(1))
}

fn context() -> Context<'static> {
    Context {
        ports: &[RelativePort(1)],
        geometry: Geometry::new(512, 100).unwrap(),
        mode_default: DEFAULT,
        now: UnixMillis(5_000),
    }
}

fn run(state: &mut LuState, n: u8, cdb: &[u8], list: &[u8]) -> Result<Applied, Refusal> {
    let change = Change::Command { nexus: &nexus(n), cdb, parameter_list: list };
    state.apply(&change, &context())
}

const RESERVE: [u8; 6] = [0x16, 0, 0, 0, 0, 0];
const RELEASE: [u8; 6] = [0x17, 0, 0, 0, 0, 0];
const PREVENT: [u8; 6] = [0x1e, 0, 0, 0, 1, 0];
const ALLOW: [u8; 6] = [0x1e, 0, 0, 0, 0, 0];
const REGISTER: [u8; 10] = [0x5f, 0, 0, 0, 0, 0, 0, 0, 24, 0];

fn register_list(key: u8) -> Vec<u8> {
    let mut list = vec![0; 24];
    list[15] = key;
    list
}

/// MODE SELECT(6) of the Control page with this QERR.
fn select_qerr(save: bool, code: u8) -> ([u8; 6], Vec<u8>) {
    let list = vec![0, 0, 0, 0, 0x0a, 0x0a, 0x02, 0x10 | code << 1, 0, 0, 0, 0, 0xff, 0xff, 0, 0];
    ([0x15, 0x10 | u8::from(save), 0, 0, list.len() as u8, 0], list)
}

#[test]
fn spc2_reservation_and_registrations_exclude_each_other() {
    let mut state = LuState::default();
    assert!(run(&mut state, 1, &RESERVE, &[]).unwrap().narrowed, "older I/O of others is waited for");
    assert!(!run(&mut state, 1, &RESERVE, &[]).unwrap().changed, "a second one changes nothing");
    assert_eq!(run(&mut state, 2, &RESERVE, &[]), Err(Refusal::Conflict));
    assert_eq!(run(&mut state, 1, &REGISTER, &register_list(1)), Err(Refusal::Conflict));
    assert!(!run(&mut state, 2, &RELEASE, &[]).unwrap().changed, "GOOD without effect for others");
    assert!(run(&mut state, 1, &RELEASE, &[]).unwrap().changed);
    run(&mut state, 1, &REGISTER, &register_list(1)).unwrap();
    assert_eq!(run(&mut state, 1, &RESERVE, &[]), Err(Refusal::Conflict));
    assert_eq!(run(&mut state, 1, &RELEASE, &[]), Err(Refusal::Conflict));
}

#[test]
fn what_hangs_on_a_nexus_ends_with_it_and_nothing_else_does() {
    let mut state = LuState::default();
    run(&mut state, 1, &RESERVE, &[]).unwrap();
    for n in [2, 1] {
        run(&mut state, n, &PREVENT, &[]).unwrap();
    }
    assert!(state.hangs_on(&nexus(1)) && state.hangs_on(&nexus(2)) && !state.hangs_on(&nexus(3)));
    let none = state.apply(&Change::NexusLost(&nexus(3)), &context()).unwrap();
    assert!(!none.changed);
    assert!(state.apply(&Change::NexusLost(&nexus(1)), &context()).unwrap().changed);
    assert_eq!((state.unit.spc2_holder, state.unit.preventing.as_slice()), (None, &[nexus(2)][..]));
    assert!(!run(&mut state, 3, &ALLOW, &[]).unwrap().changed);
    run(&mut state, 2, &ALLOW, &[]).unwrap();
    assert_eq!(state, LuState::default());
}

#[test]
fn mode_select_tells_the_others_and_a_reset_brings_the_saved_values_back() {
    let mut state = LuState::default();
    let (cdb, list) = select_qerr(true, 0b01);
    let told = vec![(UaScope::AllExcept(nexus(1)), asc::MODE_PARAMETERS_CHANGED)];
    assert_eq!(run(&mut state, 1, &cdb, &list).unwrap().unit_attentions, told);
    let (cdb, list) = select_qerr(false, 0b11);
    assert_eq!(run(&mut state, 1, &cdb, &list).unwrap().unit_attentions, told);
    assert_eq!(state.mode(DEFAULT).queue_error, QueueError::AbortOwn);
    assert_eq!(state.saved_mode(DEFAULT).queue_error, QueueError::AbortAll);
    assert!(!run(&mut state, 1, &cdb, &list).unwrap().changed);
    state.apply(&Change::Reset, &context()).unwrap();
    assert_eq!(state.mode(DEFAULT).queue_error, QueueError::AbortAll);
    // Saving what is in force tells nobody.
    let mut state = LuState::default();
    let (cdb, list) = select_qerr(false, 0b01);
    run(&mut state, 1, &cdb, &list).unwrap();
    let (cdb, list) = select_qerr(true, 0b01);
    let saved = run(&mut state, 1, &cdb, &list).unwrap();
    assert!(saved.changed && saved.unit_attentions.is_empty());
    assert_eq!(state.unit.mode, None);
}

#[test]
fn write_protection_waits_for_older_writes() {
    let mut state = LuState::default();
    let list = [0, 0, 0, 0, 0x0a, 0x0a, 0x02, 0x10, 0x08, 0, 0, 0, 0xff, 0xff, 0, 0];
    let cdb = [0x15, 0x10, 0, 0, 16, 0];
    assert!(run(&mut state, 1, &cdb, &list).unwrap().narrowed);
}

#[test]
fn refused_change_changes_nothing() {
    let mut state = LuState::default();
    let before = state.clone();
    let (cdb, mut list) = select_qerr(true, 0b10);
    assert_eq!(
        run(&mut state, 1, &cdb, &list),
        Err(Refusal::Sense(Sense::illegal_field_parameter(7, Some(2))))
    );
    list.truncate(10);
    assert_eq!(run(&mut state, 1, &cdb, &list), Err(Refusal::Sense(Sense::parameter_list_length())));
    let read = run(&mut state, 1, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[]);
    assert_eq!(read, Err(Refusal::Sense(Sense::illegal(asc::INVALID_COMMAND_OPERATION_CODE))));
    assert_eq!(state, before);
}

fn set_identifying(kind: u8, len: usize) -> [u8; 12] {
    [0xa4, 6, 0, 0, 0, 0, 0, 0, (len >> 8) as u8, len as u8, kind << 1, 0]
}

#[test]
fn identifying_information_is_kept_and_told() {
    let mut state = LuState::default();
    let told = run(&mut state, 1, &set_identifying(0, 3), &[1, 2, 3]).unwrap();
    assert_eq!(told.unit_attentions, [(UaScope::AllExcept(nexus(1)), asc::DEVICE_IDENTIFIER_CHANGED)]);
    run(&mut state, 1, &set_identifying(2, 4), b"db1\0").unwrap();
    let report =
        |kind| full_reply(|len, out| report_identifying_information(kind, &state.unit.identifying, len, out));
    assert_eq!(report(IdentifyingKind::Device), [0, 0, 0, 3, 1, 2, 3]);
    assert_eq!(report(IdentifyingKind::Text), *b"\0\0\0\x04db1\0");
    assert_eq!(report(IdentifyingKind::Supported), [0, 0, 0, 8, 0, 0, 2, 0, 4, 0, 1, 0]);
    assert!(!run(&mut state, 2, &set_identifying(0, 3), &[1, 2, 3]).unwrap().changed);
    run(&mut state, 2, &set_identifying(0, 0), &[]).unwrap();
    assert!(state.unit.identifying.device.is_empty());
}

#[test]
fn identifying_text_is_utf8_with_one_zero_at_its_end() {
    for (text, at) in [(&b"abc"[..], 2), (b"a\0c\0", 1), (b"a\xff\0", 1), (b"\0\0", 0)] {
        let refused = run(&mut LuState::default(), 1, &set_identifying(2, text.len()), text);
        assert_eq!(refused, Err(Refusal::Sense(Sense::illegal_field_parameter(at, None))), "{text:?}");
    }
    let too_long = run(&mut LuState::default(), 1, &set_identifying(2, 257), &[0; 257]);
    assert_eq!(too_long, Err(Refusal::Sense(Sense::illegal_field_cdb(6, None))));
    let supported = run(&mut LuState::default(), 1, &set_identifying(0x7f, 0), &[]);
    assert_eq!(supported, Err(Refusal::Sense(Sense::illegal_field_cdb(10, Some(7)))));
}

#[test]
fn timestamp_runs_on_from_where_it_was_set() {
    let cdb = [0xa4, 0x0f, 0, 0, 0, 0, 0, 0, 0, 12, 0, 0];
    let stamp = |state: &LuState, now| {
        full_reply(|len, out| report_timestamp(UnixMillis(now), state.unit.timestamp_ahead, len, out))
    };
    let mut state = LuState::default();
    assert_eq!(stamp(&state, 0x0102), [0, 10, 3, 0, 0, 0, 0, 0, 1, 2, 0, 0]);
    let told = run(&mut state, 1, &cdb, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0]).unwrap();
    assert_eq!(told.unit_attentions, [(UaScope::AllExcept(nexus(1)), asc::TIMESTAMP_CHANGED)]);
    assert_eq!(stamp(&state, 5_002), [0, 10, 2, 0, 0, 0, 0, 0, 0, 9, 0, 0]);
    let refused = run(&mut state, 1, &cdb, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 1, 0]).unwrap_err();
    assert_eq!(refused, Refusal::Sense(Sense::illegal_field_parameter(10, None)));
    let Err(Refusal::Sense(sense)) = run(&mut state, 1, &cdb, &[0; 11]) else { panic!() };
    assert_eq!((sense.key, sense.additional), (SenseKey::IllegalRequest, asc::PARAMETER_LIST_LENGTH_ERROR));
}

#[test]
fn loss_of_power_keeps_what_was_asked_to_persist() {
    let mut state = LuState::default();
    let (cdb, list) = select_qerr(true, 0b01);
    run(&mut state, 1, &cdb, &list).unwrap();
    run(&mut state, 1, &set_identifying(0, 1), &[9]).unwrap();
    run(&mut state, 1, &REGISTER, &register_list(1)).unwrap();
    run(&mut state, 1, &PREVENT, &[]).unwrap();
    state.lose_power();
    assert!(state.reservations.registrants().is_empty() && state.unit.preventing.is_empty());
    assert_eq!(state.mode(DEFAULT).queue_error, QueueError::AbortAll);
    assert_eq!(state.unit.identifying.device, [9]);
    let mut persistent = register_list(1);
    persistent[20] = 1;
    run(&mut state, 1, &REGISTER, &persistent).unwrap();
    state.lose_power();
    assert_eq!(state.reservations.registrants().len(), 1);
}

#[test]
fn parts_that_no_change_leaves_are_no_state() {
    let registered = {
        let mut state = LuState::default();
        run(&mut state, 1, &REGISTER, &register_list(1)).unwrap();
        state.reservations
    };
    let held = UnitState { spc2_holder: Some(nexus(1)), ..UnitState::default() };
    assert_eq!(LuState::from_parts(registered, held.clone()), Err(InvalidParts::Unit));
    assert!(LuState::from_parts(Reservations::default(), held).is_ok());
    for preventing in [vec![nexus(2), nexus(1)], vec![nexus(1), nexus(1)]] {
        let unit = UnitState { preventing, ..UnitState::default() };
        assert_eq!(LuState::from_parts(Reservations::default(), unit), Err(InvalidParts::Unit));
    }
    let identifying = IdentifyingInformation { device: vec![0; 513], text: Vec::new() };
    let unit = UnitState { identifying, ..UnitState::default() };
    assert_eq!(LuState::from_parts(Reservations::default(), unit), Err(InvalidParts::Unit));
}

#[test]
fn test_exception_is_one_only_while_it_is_not_disabled() {
    let mut exceptions = DEFAULT.exceptions;
    exceptions.test = true;
    assert_eq!(exceptions.exception(), None);
    exceptions.disabled = false;
    exceptions.method = ReportMethod::OnRequest;
    assert_eq!(exceptions.exception(), Some(asc::FAILURE_PREDICTION_FALSE));
}
