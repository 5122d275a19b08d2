use super::*;
use crate::{cdb::parse, geometry::Geometry};
use std::vec::Vec;

/// The columns of SPC-5's table: no rights under write exclusive, under exclusive access; with rights.
const ROWS: &[(&str, &[u8], [bool; 3])] = &[
    ("TEST UNIT READY", &[0; 6], [true, true, true]),
    ("REQUEST SENSE", &[0x03, 0, 0, 0, 252, 0], [true, true, true]),
    ("INQUIRY", &[0x12, 0, 0, 0, 96, 0], [true, true, true]),
    ("MODE SENSE", &[0x1a, 0, 0x3f, 0, 255, 0], [true, false, true]),
    ("MODE SELECT", &[0x15, 0x10, 0, 0, 0, 0], [false, false, true]),
    ("READ CAPACITY", &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], [true, true, true]),
    ("READ", &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], [true, false, true]),
    ("WRITE", &[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0], [false, false, true]),
    ("WRITE AND VERIFY", &[0x2e, 0, 0, 0, 0, 0, 0, 0, 1, 0], [false, false, true]),
    ("VERIFY", &[0x2f, 0, 0, 0, 0, 0, 0, 0, 1, 0], [true, false, true]),
    ("SYNCHRONIZE CACHE", &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], [false, false, true]),
    ("UNMAP", &[0x42, 0, 0, 0, 0, 0, 0, 0, 8, 0], [false, false, true]),
    ("WRITE SAME", &[0x41, 0, 0, 0, 0, 0, 0, 0, 1, 0], [false, false, true]),
    ("COMPARE AND WRITE", &[0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0], [false, false, true]),
    ("ORWRITE", &[0x8b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0], [false, false, true]),
    ("PRE-FETCH", &[0x34, 0, 0, 0, 0, 0, 0, 0, 1, 0], [true, false, true]),
    ("GET LBA STATUS", &[0x9e, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 24, 0, 0], [true, false, true]),
    ("REPORT LUNS", &[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0], [true, true, true]),
    ("REPORT TARGET PORT GROUPS", &[0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0], [true, true, true]),
    ("PERSISTENT RESERVE IN", &[0x5e, 0, 0, 0, 0, 0, 0, 0, 8, 0], [true, true, true]),
    ("PERSISTENT RESERVE OUT", &[0x5f, 6, 0, 0, 0, 0, 0, 0, 24, 0], [true, true, true]),
    ("START STOP UNIT, START=1", &[0x1b, 0, 0, 0, 1, 0], [true, true, true]),
    ("START STOP UNIT, START=0", &[0x1b, 0, 0, 0, 0, 0], [false, false, true]),
    ("PREVENT ALLOW, PREVENT=0", &[0x1e, 0, 0, 0, 0, 0], [true, true, true]),
    ("PREVENT ALLOW, PREVENT=1", &[0x1e, 0, 0, 0, 1, 0], [false, false, true]),
    ("LOG SENSE", &[0x4d, 0, 0, 0, 0, 0, 0, 0, 64, 0], [true, true, true]),
    ("RECEIVE DIAGNOSTIC RESULTS", &[0x1c, 1, 0, 0, 64, 0], [true, false, true]),
    ("SEND DIAGNOSTIC", &[0x1d, 4, 0, 0, 0, 0], [false, false, true]),
];

fn commands() -> Vec<(&'static str, Command, [bool; 3])> {
    let geometry = Geometry::new(512, 2048).unwrap();
    let read = |(name, cdb, row): &(&'static str, &[u8], [bool; 3])| {
        (*name, parse(cdb, &geometry).unwrap_or_else(|e| panic!("{name}: {e:?}")), *row)
    };
    ROWS.iter().map(read).collect()
}

fn relation(registered: bool, holder: bool) -> Relation {
    Relation { registered, holder }
}

#[test]
fn every_row_for_every_type_and_relation() {
    for (name, command, [under_we, under_ea, with_rights]) in commands() {
        assert_eq!(check(&command, None, Relation::default()), Access::Allowed, "{name}");
        for kind in ReservationType::ALL {
            let without = if kind.is_write_exclusive() { under_we } else { under_ea };
            let registered = if kind.admits_registrants() { with_rights } else { without };
            let cases = [
                (relation(false, false), without),
                (relation(true, false), registered),
                (relation(true, true), true),
            ];
            for (relation, allowed) in cases {
                let got = check(&command, Some(kind), relation) == Access::Allowed;
                assert_eq!(got, allowed, "{name} under {kind:?} by {relation:?}");
            }
        }
    }
}

#[test]
fn spc2_reservation_admits_few_and_no_persistent_reservations_even_by_its_holder() {
    let free = [
        "REQUEST SENSE",
        "INQUIRY",
        "READ CAPACITY",
        "REPORT LUNS",
        "REPORT TARGET PORT GROUPS",
        "LOG SENSE",
        "START STOP UNIT, START=1",
        "PREVENT ALLOW, PREVENT=0",
    ];
    for (name, command, _) in commands() {
        let persistent = name.starts_with("PERSISTENT");
        assert_eq!(check_spc2(&command, true) == Access::Allowed, !persistent, "{name}");
        assert_eq!(check_spc2(&command, false) == Access::Allowed, free.contains(&name), "{name}");
    }
    assert_eq!(check_spc2(&Command::Release, false), Access::Allowed);
    assert_eq!(check_spc2(&Command::Reserve, false), Access::Conflict);
}

#[test]
fn spc2_reserve_conflicts_once_anyone_is_registered() {
    use crate::{nexus::RelativePort, pr::Registrant, transport_id::TransportId};
    let nexus = Nexus::new(TransportId::sas([1; 8]), RelativePort(1));
    let registrants = [Registrant { nexus, key: 1, all_target_ports: false }];
    let view = View { registrants: &registrants, ..View::EMPTY };
    for command in [Command::Reserve, Command::Release] {
        assert_eq!(check_view(&command, &View::EMPTY, &nexus), Access::Allowed);
        assert_eq!(check_view(&command, &view, &nexus), Access::Conflict);
    }
    assert_eq!(check_view(&Command::TestUnitReady, &view, &nexus), Access::Allowed);
}
