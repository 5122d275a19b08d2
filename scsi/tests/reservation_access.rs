//! Every command against every kind of persistent reservation and every way an I_T nexus can stand to it, through a whole
//! device server. What is expected stands in `reservation_access.txt`, written from the standards' tables; a command of
//! the table of supported commands that is missing there fails.

use std::{collections::BTreeSet, fs, path::Path};

use holdfast_scsi::{
    alua::AluaState,
    cdb::{self, Direction},
    device_server::{
        Action, CommandRequest, DataOut, DeviceServer, LuConfig, PortGroup, Response, TaskAttribute, TaskId,
        Topology,
    },
    geometry::Geometry,
    identity::{LuIdentity, LuProperties},
    mode::ModeParameters,
    nexus::{Nexus, RelativePort},
    opcode,
    pr::{Registrant, Reservation, ReservationType, state::Reservations},
    status::Status,
    time::Instant,
    transport_id::TransportId,
};

/// How the sender stands to the reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sender {
    Holder,
    Registrant,
    Stranger,
    /// The holder's initiator through its other target port: another nexus, not registered.
    HoldersOtherPort,
}

const SENDERS: [Sender; 4] = [Sender::Holder, Sender::Registrant, Sender::Stranger, Sender::HoldersOtherPort];
const HOLDER_KEY: u64 = 0x11;
const REGISTRANT_KEY: u64 = 0x22;

impl Sender {
    fn nexus(self) -> Nexus {
        let (initiator, port) = match self {
            Sender::Holder => (1, 1),
            Sender::Registrant => (2, 2),
            Sender::Stranger => (3, 1),
            Sender::HoldersOtherPort => (1, 2),
        };
        Nexus::new(TransportId::sas([initiator; 8]), RelativePort(port))
    }

    fn registered(self) -> bool {
        matches!(self, Sender::Holder | Sender::Registrant)
    }

    /// Its own key and that of the other registrant.
    fn keys(self) -> (u64, u64) {
        match self {
            Sender::Holder => (HOLDER_KEY, REGISTRANT_KEY),
            Sender::Registrant => (REGISTRANT_KEY, HOLDER_KEY),
            Sender::Stranger | Sender::HoldersOtherPort => (0, HOLDER_KEY),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Allowed,
    Conflict,
    Refused,
}

impl Verdict {
    fn read(letter: &str) -> Verdict {
        match letter {
            "A" => Verdict::Allowed,
            "C" => Verdict::Conflict,
            "E" => Verdict::Refused,
            _ => panic!("no verdict: {letter}"),
        }
    }
}

fn server(kind: Option<ReservationType>) -> DeviceServer {
    let properties = LuProperties {
        identity: LuIdentity { volume_uuid: [1; 16], revision: *b"0001" },
        geometry: geometry(),
        physical_block_exponent: 3,
    };
    let mode = ModeParameters::new(true);
    let mut server = DeviceServer::new(LuConfig { properties, mode, read_only: false });
    let ports = vec![RelativePort(1), RelativePort(2)];
    let group = PortGroup { id: 1, state: AluaState::ActiveOptimized, preferred: true, ports };
    server.install_topology(Topology {
        target_name: "iqn.2026-01.x:t".into(),
        groups: vec![group],
        ..Topology::default()
    });
    let registrant =
        |sender: Sender| Registrant { nexus: sender.nexus(), key: sender.keys().0, all_target_ports: false };
    let registrants = [Sender::Holder, Sender::Registrant].map(registrant).to_vec();
    let reservation = kind.map(|kind| Reservation::new(kind, Sender::Holder.nexus()));
    let state = Reservations::from_parts(1, false, registrants, reservation).unwrap();
    server.install_state(Instant(1), 1, state.into());
    server.handle_barrier(Instant(1), 1);
    while server.poll_action().is_some() {}
    server
}

fn geometry() -> Geometry {
    Geometry::new(512, 2048).unwrap()
}

/// What a command leads to: I/O, a proposal and GOOD are all "allowed".
fn send(kind: Option<ReservationType>, sender: Sender, cdb: &[u8], data: &[u8]) -> Verdict {
    let mut server = server(kind);
    let request = CommandRequest {
        task: TaskId(1),
        nexus: &sender.nexus(),
        cdb,
        attribute: TaskAttribute::Simple,
        data_out_len: data.len() as u32,
        unit_attention: None,
        read_only: false,
    };
    let data = if data.is_empty() { DataOut::None } else { DataOut::Ready(data) };
    server.handle_command(Instant(2), request, data).unwrap();
    match server.poll_action().expect("nothing came of it") {
        Action::Complete { response: Response::Completed(completion), .. } => match completion.status {
            Status::Good => Verdict::Allowed,
            Status::ReservationConflict => Verdict::Conflict,
            Status::CheckCondition => Verdict::Refused,
            other => panic!("{other:?}"),
        },
        Action::Complete { .. } => panic!("aborted"),
        _ => Verdict::Allowed,
    }
}

/// The lines of a section: the first word (of hexadecimal digits, which may be parted), the verdicts, the name.
fn section(name: &str) -> Vec<(Vec<u8>, Vec<Verdict>, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reservation_access.txt");
    let text = fs::read_to_string(path).unwrap();
    let (_, from) = text.split_once(&format!("\n[{name}]\n")).expect("section");
    let lines = from.split("\n[").next().unwrap().lines();
    lines.map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).map(row).collect()
}

fn row(line: &str) -> (Vec<u8>, Vec<Verdict>, String) {
    let (first, rest) = line.split_once("   ").expect("columns");
    let digits: String = first.split_whitespace().collect();
    let digits = if digits.len().is_multiple_of(2) { digits } else { format!("0{digits}") };
    let bytes = (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap());
    let is_verdict = |word: &&str| matches!(*word, "A" | "C" | "E");
    let words: Vec<&str> = rest.split_whitespace().collect();
    let verdicts = words.iter().copied().take_while(is_verdict).map(Verdict::read).collect::<Vec<_>>();
    (bytes.collect(), verdicts.clone(), words[verdicts.len()..].join(" "))
}

/// Which column of `[commands]` speaks of this sender; `None`: no reservation, or its holder.
fn column(kind: Option<ReservationType>, sender: Sender) -> Option<usize> {
    use ReservationType::*;
    let kind = kind?;
    match (kind, sender.registered()) {
        (WriteExclusive | ExclusiveAccess, _) if sender == Sender::Holder => None,
        (WriteExclusive, _) => Some(0),
        (ExclusiveAccess, _) => Some(1),
        (_, true) => Some(2),
        (WriteExclusiveRegistrantsOnly | WriteExclusiveAllRegistrants, false) => Some(3),
        (ExclusiveAccessRegistrantsOnly | ExclusiveAccessAllRegistrants, false) => Some(4),
    }
}

fn kinds() -> impl Iterator<Item = Option<ReservationType>> {
    core::iter::once(None).chain(ReservationType::ALL.map(Some))
}

#[test]
fn commands_as_the_standards_tables_say() {
    let mut checked = 0;
    for (cdb, verdicts, name) in section("commands") {
        assert_eq!(verdicts.len(), 5, "{name}");
        let command = cdb::parse(&cdb, &geometry()).unwrap_or_else(|sense| panic!("{name}: {sense:?}"));
        let data = match command.transfer_len(&geometry()) {
            // OVERWRITE: once, with a pattern of one byte.
            (Direction::Out, 5) if cdb[0] == 0x48 => vec![1, 0, 0, 1, 0],
            (Direction::Out, len) => vec![0; len as usize],
            _ => Vec::new(),
        };
        for kind in kinds() {
            for sender in SENDERS {
                let expected = column(kind, sender).map_or(Verdict::Allowed, |at| verdicts[at]);
                let mut got = send(kind, sender, &cdb, &data);
                // The port answers REPORT LUNS before any device server, and there is no copy to tell of or to abort; here only
                // that it is no conflict counts.
                let of_a_copy = cdb[0] == 0x84 || cdb[..2] == [0x83, 0x1c];
                if (cdb[0] == 0xa0 || of_a_copy) && got == Verdict::Refused {
                    got = Verdict::Allowed;
                }
                assert_eq!(got, expected, "{name} under {kind:?} by {sender:?}");
                checked += 1;
            }
        }
    }
    assert!(checked > 1000, "{checked}");
}

/// A wrong field does not hide a conflict (SAM-5 5.3.3), and where there is none it is the answer. Where a command's need hangs on a
/// field, a CDB with a wrong one needs the most.
#[test]
fn wrong_cdbs_conflict_as_their_commands_do() {
    let rows = section("commands");
    let mut checked = 0;
    for (cdb, _, name) in &rows {
        let row = opcode::row_of(cdb).expect("supported");
        let same = |other: &&(Vec<u8>, Vec<Verdict>, String)| {
            opcode::row_of(&other.0).is_some_and(|other| other.name == row.name)
        };
        let mut wrong = cdb.clone();
        // Obsolete, and so reserved, in every CONTROL byte.
        wrong[row.control_at()] |= 0x01;
        // The port answers REPORT LUNS before any device server.
        if cdb[0] == 0xa0 {
            continue;
        }
        for kind in kinds() {
            for sender in SENDERS {
                let conflicts = column(kind, sender)
                    .is_some_and(|at| rows.iter().filter(same).any(|row| row.1[at] == Verdict::Conflict));
                let expected = if conflicts { Verdict::Conflict } else { Verdict::Refused };
                assert_eq!(send(kind, sender, &wrong, &[]), expected, "{name} under {kind:?} by {sender:?}");
                checked += 1;
            }
        }
    }
    assert!(checked > 1000, "{checked}");
    // What is no command is in no table.
    for unknown in [[0xff; 16], [0x9e, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]] {
        for kind in kinds() {
            assert_eq!(send(kind, Sender::Stranger, &unknown, &[]), Verdict::Refused);
        }
    }
}

fn reserve_out(action: u8, kind: Option<ReservationType>, sender: Sender) -> (Vec<u8>, Vec<u8>) {
    let (own, other) = sender.keys();
    let service_action_key: u64 = match action {
        0 | 6 => 0x33,
        4 | 5 => other,
        _ => 0,
    };
    let mut list = own.to_be_bytes().to_vec();
    if action == 7 {
        // To a stranger, at port 1.
        let to = Sender::Stranger.nexus();
        list.extend(0x33_u64.to_be_bytes());
        list.extend([0, 0, 0, 1]);
        list.extend((to.initiator.as_bytes().len() as u32).to_be_bytes());
        list.extend(to.initiator.as_bytes());
    } else {
        list.extend(service_action_key.to_be_bytes());
        list.extend([0; 8]);
    }
    let scope_and_type = kind.map_or(1, ReservationType::code);
    let cdb = vec![0x5f, action, scope_and_type, 0, 0, 0, 0, 0, list.len() as u8, 0];
    (cdb, list)
}

#[test]
fn persistent_reserve_out_as_its_table_says() {
    for (action, verdicts, name) in section("persistent reserve out") {
        assert_eq!(verdicts.len(), 7, "{name}");
        for kind in kinds() {
            for sender in SENDERS {
                let at = match (kind, sender) {
                    (None, sender) => usize::from(!sender.registered()),
                    (Some(kind), sender) if kind.is_all_registrants() => {
                        5 + usize::from(!sender.registered())
                    }
                    (Some(_), Sender::Holder) => 2,
                    (Some(_), Sender::Registrant) => 3,
                    (Some(_), _) => 4,
                };
                let (cdb, list) = reserve_out(action[0], kind, sender);
                let got = send(kind, sender, &cdb, &list);
                assert_eq!(got, verdicts[at], "{name} under {kind:?} by {sender:?}");
            }
        }
    }
}

#[test]
fn spc2_reservations_are_handled_compatibly_once_anyone_is_registered() {
    for (cdb, verdicts, name) in section("spc2 reservation") {
        assert_eq!(verdicts.len(), 6, "{name}");
        for kind in kinds() {
            for sender in SENDERS {
                let at = match (kind, sender) {
                    (None, _) => 0,
                    (Some(kind), sender) if kind.admits_registrants() => {
                        4 + usize::from(!sender.registered())
                    }
                    (Some(_), Sender::Holder) => 1,
                    (Some(_), Sender::Registrant) => 2,
                    (Some(_), _) => 3,
                };
                let got = send(kind, sender, &cdb, &[]);
                assert_eq!(got, verdicts[at], "{name} under {kind:?} by {sender:?}");
            }
        }
    }
}

#[test]
fn no_supported_command_is_missing() {
    let mut named = BTreeSet::new();
    for (cdb, ..) in section("commands").into_iter().chain(section("spc2 reservation")) {
        named.insert(opcode::row_of(&cdb).expect("supported").name);
    }
    for (action, ..) in section("persistent reserve out") {
        let row = opcode::rows(0x5f).iter().find(|row| row.service_action == Some(u16::from(action[0])));
        named.insert(row.expect("supported").name);
    }
    let missing: Vec<_> =
        opcode::TABLE.iter().map(|row| row.name).filter(|name| !named.contains(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
