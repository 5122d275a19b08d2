//! Commands against an image.

use std::vec::Vec;

use holdfast_scsi::{
    pr::{Reservation, ReservationType, View},
    sense::AdditionalSense,
};

use super::*;
use crate::{
    encode,
    image::tests::{facts, groups, registrant, with_image},
};

const WRITE: [u8; 10] = [0x2a, 0, 0, 0, 0, 16, 0, 0, 8, 0];
const READ: [u8; 10] = [0x28, 0, 0, 0, 0, 16, 0, 0, 8, 0];

fn reserved(kind: ReservationType) -> Vec<u8> {
    let registrants = [registrant(1, 0xa), registrant(2, 0xb)];
    let reservation = Reservation::new(kind, registrants[0].nexus);
    let view =
        View { generation: 1, aptpl: false, registrants: &registrants, reservation: Some(&reservation) };
    encode::image(&facts(&groups()), &view)
}

fn ask(message: &[u8], port: u16, ua: Option<UnitAttention>, cdb: &[u8]) -> (Answer, Vec<u8>) {
    with_image(message, |image| {
        let nexus = registrant(port, 1).nexus;
        let asker = Asker { nexus: &nexus, relation: relation(&image, &nexus), unit_attention: ua };
        let mut out = [0; 512];
        let answer = execute(&image, &asker, cdb, &mut out);
        let len = if let Answer::Data { len, .. } = answer { len } else { 0 };
        (answer, out[..len].to_vec())
    })
    .unwrap()
}

fn conflict(answer: Answer) -> bool {
    matches!(answer, Answer::Status { status: Status::ReservationConflict, .. })
}

#[test]
fn the_reservation_in_the_image_decides_who_writes() {
    let we = reserved(ReservationType::WriteExclusive);
    assert!(matches!(ask(&we, 1, None, &WRITE).0, Answer::Write { durable: true, .. }));
    assert!(conflict(ask(&we, 2, None, &WRITE).0));
    assert!(matches!(ask(&we, 3, None, &READ).0, Answer::Read(_)));
    let registrants_only = reserved(ReservationType::ExclusiveAccessRegistrantsOnly);
    assert!(matches!(ask(&registrants_only, 2, None, &WRITE).0, Answer::Write { .. }));
    assert!(conflict(ask(&registrants_only, 3, None, &READ).0));
}

#[test]
fn a_conflict_leaves_the_unit_attention_pending() {
    let we = reserved(ReservationType::WriteExclusive);
    let ua = UnitAttention { id: 5, additional: AdditionalSense::new(0x2a, 0x05) };
    assert!(conflict(ask(&we, 2, Some(ua), &WRITE).0));
    let Answer::Status { reported, .. } = ask(&we, 2, Some(ua), &READ).0 else { panic!() };
    assert_eq!(reported, Some(5));
}

#[test]
fn request_sense_tells_it_as_data() {
    let we = reserved(ReservationType::WriteExclusive);
    let ua = UnitAttention { id: 6, additional: AdditionalSense::new(0x29, 0x00) };
    let (answer, data) = ask(&we, 2, Some(ua), &[0x03, 0, 0, 0, 252, 0]);
    assert!(matches!(answer, Answer::Data { reported: Some(6), .. }));
    assert_eq!((data[2] & 0xf, data[12]), (6, 0x29));
}

#[test]
fn what_the_cluster_has_to_agree_on_goes_to_the_data_node() {
    let we = reserved(ReservationType::WriteExclusive);
    for cdb in [
        [0x5f, 0x00, 0, 0, 0, 0, 0, 0, 24, 0].as_slice(), // PERSISTENT RESERVE OUT
        &[0x55, 0x10, 0, 0, 0, 0, 0, 0, 16, 0],           // MODE SELECT (10)
        &[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0],              // UNMAP
    ] {
        assert_eq!(ask(&we, 1, None, cdb).0, Answer::Ask, "{:02x}", cdb[0]);
    }
}

#[test]
fn reservations_are_shown_only_once_every_path_has_them() {
    let groups = groups();
    let early = encode::Facts { barrier_passed: false, ..facts(&groups) };
    let read_keys = [0x5e, 0, 0, 0, 0, 0, 0, 0, 255, 0];
    assert_eq!(ask(&encode::image(&early, &View::EMPTY), 1, None, &read_keys).0, Answer::Ask);
    let (answer, data) = ask(&reserved(ReservationType::WriteExclusive), 1, None, &read_keys);
    assert!(matches!(answer, Answer::Data { .. }));
    assert_eq!((data[7], data[15], data[23]), (16, 0xa, 0xb));
}

#[test]
fn a_reply_that_does_not_fit_asks_for_room() {
    let message = reserved(ReservationType::WriteExclusive);
    let answer = with_image(&message, |image| {
        let nexus = registrant(1, 1).nexus;
        let asker = Asker { nexus: &nexus, relation: Relation::default(), unit_attention: None };
        execute(&image, &asker, &[0x12, 1, 0x83, 0, 255, 0], &mut [0; 8])
    })
    .unwrap();
    assert!(matches!(answer, Answer::MoreRoom(len) if len > 8));
}

#[test]
fn a_port_that_is_in_no_group_is_not_named_wrongly() {
    let message = reserved(ReservationType::WriteExclusive);
    let (answer, _) = ask(&message, 9, None, &[0x12, 1, 0x83, 0, 255, 0]);
    assert!(matches!(answer, Answer::Status { status: Status::Busy, .. }));
}

#[test]
fn read_only_and_access_states_are_kept() {
    let mut groups = groups();
    let read_only = encode::Facts { read_only: true, ..facts(&groups) };
    let Answer::Status { sense: Some(sense), .. } =
        ask(&encode::image(&read_only, &View::EMPTY), 1, None, &WRITE).0
    else {
        panic!()
    };
    assert_eq!(sense.key, SenseKey::DataProtect);
    groups[0].state = holdfast_scsi::alua::AluaState::Unavailable;
    let message = encode::image(&facts(&groups), &View::EMPTY);
    assert!(matches!(ask(&message, 1, None, &READ).0, Answer::Status { sense: Some(_), .. }));
}
