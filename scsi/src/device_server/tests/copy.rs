//! Copies between several device servers whose commands to each other take the way that a shell gives them.

use std::{collections::BTreeMap, vec, vec::Vec};

use super::{super::*, NOW};
use crate::{
    alua::AluaState,
    copy::{
        CHANGE_VULNERABLE, Designator, ZERO,
        token::{RANDOM_LEN, RodToken},
    },
    geometry::Geometry,
    identity::{LuIdentity, LuProperties},
    limits,
    lu_state::{LuState, Operation, OperationKind, OperationState},
    nexus::RelativePort,
    pr::{Registrant, Reservation, ReservationType, state::Reservations},
    sense::{Forwarded, Sense, SenseKey, SenseSpecific},
    transport_id::TransportId,
};

const BLOCK: usize = 512;
const BLOCKS: u64 = 8192;
const A: u8 = 0xa1;
const B: u8 = 0xb2;
const MINE: u8 = 1;
const OTHER: u8 = 2;

fn nexus(n: u8) -> Nexus {
    Nexus::new(TransportId::sas([n; 8]), RelativePort(1))
}

struct Unit {
    server: DeviceServer,
    store: Vec<u8>,
    /// Data-Out and what was read, by task.
    data: BTreeMap<u64, (Vec<u8>, Vec<u8>)>,
}

struct Net {
    units: BTreeMap<u8, Unit>,
    /// Which units a host has mapped, and whether for reading only.
    maps: BTreeMap<u8, BTreeMap<u8, bool>>,
    /// Commands of copies: which copy's unit waits, by the task's name in its own unit.
    errands: BTreeMap<u64, (u8, TaskId)>,
    held: Vec<(u8, CopyCommandOut)>,
    holds: bool,
    ended: BTreeMap<u64, Completion>,
    functions: BTreeMap<u64, TmfResponse>,
    cancelled: usize,
    writes: usize,
    next: u64,
    random: u8,
    now: Instant,
}

fn identity(unit: u8) -> LuIdentity {
    LuIdentity { volume_uuid: [unit; 16], revision: *b"0001" }
}

impl Net {
    fn new() -> Net {
        let mut units = BTreeMap::new();
        for name in [A, B] {
            let geometry = Geometry::new(BLOCK as u32, BLOCKS).unwrap();
            let properties = LuProperties { identity: identity(name), geometry, physical_block_exponent: 3 };
            let mode = ModeParameters::new(true);
            let mut server = DeviceServer::new(LuConfig { properties, mode, read_only: false });
            server.install_topology(Topology {
                target_name: "iqn.2026-01.x:t".into(),
                groups: vec![PortGroup {
                    id: 1,
                    state: AluaState::ActiveOptimized,
                    preferred: true,
                    ports: vec![RelativePort(1)],
                }],
                ..Topology::default()
            });
            let store = (0..BLOCKS).flat_map(|lba| [name.wrapping_add(lba as u8 % 7); BLOCK]).collect();
            units.insert(name, Unit { server, store, data: BTreeMap::new() });
        }
        let both = BTreeMap::from([(A, false), (B, false)]);
        Net {
            units,
            maps: BTreeMap::from([(MINE, both.clone()), (OTHER, both)]),
            errands: BTreeMap::new(),
            held: Vec::new(),
            holds: false,
            ended: BTreeMap::new(),
            functions: BTreeMap::new(),
            cancelled: 0,
            writes: 0,
            next: 0,
            random: 0,
            now: NOW,
        }
    }

    fn send_as(&mut self, host: u8, unit: u8, cdb: &[u8], data: &[u8]) -> u64 {
        self.next += 1;
        let id = self.next;
        let request = CommandRequest {
            task: TaskId(id),
            nexus: &nexus(host),
            cdb,
            attribute: TaskAttribute::Simple,
            data_out_len: data.len() as u32,
            unit_attention: None,
            read_only: self.maps[&host][&unit],
        };
        let out = if data.is_empty() { DataOut::None } else { DataOut::Ready(data) };
        let to = self.units.get_mut(&unit).unwrap();
        to.data.insert(id, (data.to_vec(), Vec::new()));
        to.server.handle_command(self.now, request, out).unwrap();
        self.pump();
        id
    }

    fn send(&mut self, unit: u8, cdb: &[u8], data: &[u8]) -> u64 {
        self.send_as(MINE, unit, cdb, data)
    }

    /// Sends and takes the answer.
    fn ask(&mut self, unit: u8, cdb: &[u8], data: &[u8]) -> Completion {
        let id = self.send(unit, cdb, data);
        self.ended.remove(&id).expect("not answered")
    }

    fn pump(&mut self) {
        loop {
            let mut idle = true;
            for name in [A, B] {
                while let Some(action) = self.units.get_mut(&name).unwrap().server.poll_action() {
                    idle = false;
                    self.act(name, action);
                }
            }
            if idle {
                return;
            }
        }
    }

    fn act(&mut self, name: u8, action: Action) {
        let now = self.now;
        let unit = self.units.get_mut(&name).unwrap();
        let range =
            |extent: crate::geometry::Extent| extent.lba as usize * BLOCK..extent.end() as usize * BLOCK;
        match action {
            Action::Read { task, extent, .. } => {
                let bytes = unit.store[range(extent)].to_vec();
                unit.data.entry(task.0).or_default().1 = bytes.clone();
                unit.server.handle_io(now, task, IoDone::Read(&bytes));
            }
            Action::Write { task, extent, data_offset, .. } => {
                self.writes += 1;
                let data = unit.data[&task.0].0[data_offset as usize..][..range(extent).len()].to_vec();
                unit.store[range(extent)].copy_from_slice(&data);
                unit.server.handle_io(now, task, IoDone::Done);
            }
            Action::WriteSame { task, extent, .. } => {
                self.writes += 1;
                unit.store[range(extent)].fill(0);
                unit.server.handle_io(now, task, IoDone::Done);
            }
            Action::FindCopyUnits { task, nexus: of, designators } => {
                let host = [MINE, OTHER].into_iter().find(|host| nexus(*host) == of).unwrap();
                let find = |designator: &Designator| {
                    let mapped = self.maps[&host].keys().find(|unit| designator.names(&identity(**unit)))?;
                    Some(CopyUnit { unit: [*mapped; 16], block_size: BLOCK as u32, blocks: BLOCKS })
                };
                let found = designators.iter().map(find).collect();
                unit.server.handle_copy_units(now, task, found);
            }
            Action::CopyCommand(command) if self.holds => self.held.push((name, *command)),
            Action::CopyCommand(command) => self.errand(name, *command),
            Action::CancelCopyCommand { .. } => self.cancelled += 1,
            Action::DrawRandom { task } => {
                self.random += 1;
                unit.server.handle_random(now, task, &[self.random; RANDOM_LEN]);
            }
            Action::Complete { task, response } => {
                let answer = match &response {
                    Response::Completed(completion) => {
                        let data = match &completion.data_in {
                            DataIn::FromRead { .. } => unit.data[&task.0].1.clone(),
                            DataIn::Bytes(bytes) => bytes.clone(),
                            DataIn::None => Vec::new(),
                        };
                        CopyAnswer::Ended { status: completion.status, sense: completion.sense, data }
                    }
                    Response::Aborted => CopyAnswer::Aborted,
                };
                match (self.errands.remove(&task.0), response) {
                    (Some((copier, copy)), _) => {
                        let copier = self.units.get_mut(&copier).unwrap();
                        copier.server.handle_copy_answer(now, copy, answer);
                    }
                    (None, Response::Completed(completion)) => {
                        assert!(self.ended.insert(task.0, completion).is_none(), "answered twice");
                    }
                    (None, Response::Aborted) => {}
                }
            }
            Action::TaskManagementDone { id, response } => {
                self.functions.insert(id, response);
            }
            Action::ProposeEvent { id, .. } => {
                let version = unit.server.state().0 + 1;
                unit.server.handle_event_proposal(now, id, ProposalOutcome::Committed { version });
                unit.server.install_state(now, version, LuState::default());
            }
            Action::EstablishUnitAttention { id, .. } => unit.server.handle_unit_attention(now, id, true),
            Action::ReservationsDrained { .. } | Action::AwaitBarrier { .. } => {}
            other => panic!("{other:?}"),
        }
    }

    fn errand(&mut self, copier: u8, command: CopyCommandOut) {
        let host = [MINE, OTHER].into_iter().find(|host| nexus(*host) == command.nexus).unwrap();
        let Some(read_only) = self.maps[&host].get(&command.unit[0]).copied() else {
            let server = &mut self.units.get_mut(&copier).unwrap().server;
            return server.handle_copy_answer(self.now, command.task, CopyAnswer::Unreachable);
        };
        self.next += 1;
        let id = self.next;
        self.errands.insert(id, (copier, command.task));
        let to = self.units.get_mut(&command.unit[0]).unwrap();
        to.data.insert(id, (command.data_out.clone(), Vec::new()));
        let request = CommandRequest {
            task: TaskId(id),
            nexus: &command.nexus,
            cdb: &command.cdb,
            attribute: TaskAttribute::Simple,
            data_out_len: command.data_out.len() as u32,
            unit_attention: None,
            read_only,
        };
        let out = if command.data_out.is_empty() { DataOut::None } else { DataOut::Ready(&command.data_out) };
        to.server.handle_copy_part(self.now, request, out, &command.role).unwrap();
    }

    fn release_one(&mut self) -> bool {
        if self.held.is_empty() {
            return false;
        }
        let (copier, command) = self.held.remove(0);
        self.errand(copier, command);
        self.pump();
        true
    }

    fn release_all(&mut self) {
        self.holds = false;
        while self.release_one() {}
    }

    fn blocks(&self, unit: u8, lba: usize, count: usize) -> Vec<u8> {
        self.units[&unit].store[lba * BLOCK..(lba + count) * BLOCK].to_vec()
    }

    fn reserve(&mut self, unit: u8, kind: ReservationType, holder: u8) {
        let registrant = Registrant { nexus: nexus(holder), key: 9, all_target_ports: false };
        let reservation = Reservation::new(kind, nexus(holder));
        let state = Reservations::from_parts(1, false, vec![registrant], Some(reservation)).unwrap();
        let server = &mut self.units.get_mut(&unit).unwrap().server;
        let version = server.state().0 + 1;
        server.install_state(self.now, version, state.into());
        server.handle_barrier(self.now, version);
        self.pump();
    }
}

fn cdb(opcode: u8, action: u8, id: &[u8], id_at: usize, len: u32) -> [u8; 16] {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1]) = (opcode, action);
    cdb[id_at..id_at + id.len()].copy_from_slice(id);
    cdb[10..14].copy_from_slice(&len.to_be_bytes());
    cdb
}

fn segment(source: u16, destination: u16, count: u16, from: u64, to: u64) -> Vec<u8> {
    let mut out = vec![2, 0, 0, 0x18];
    out.extend(source.to_be_bytes());
    out.extend(destination.to_be_bytes());
    out.extend([0, 0]);
    out.extend(count.to_be_bytes());
    out.extend(from.to_be_bytes());
    out.extend(to.to_be_bytes());
    out
}

fn list(id: u8, units: &[u8], segments: &[Vec<u8>]) -> Vec<u8> {
    let cscds: Vec<u8> =
        units.iter().flat_map(|unit| Designator::descriptor(&identity(*unit), BLOCK as u32)).collect();
    let segments = segments.concat();
    let mut out = vec![id, 0];
    out.extend((cscds.len() as u16).to_be_bytes());
    out.extend([0; 4]);
    out.extend((segments.len() as u32).to_be_bytes());
    out.extend([0; 4]);
    out.extend(cscds);
    out.extend(segments);
    out
}

/// EXTENDED COPY (LID1) to unit A.
fn copy(net: &mut Net, list: &[u8]) -> Completion {
    net.ask(A, &cdb(0x83, 0, &[], 2, list.len() as u32), list)
}

fn lid4(list1: &[u8], id: u32, immediate: bool) -> Vec<u8> {
    let mut out = vec![0; 48];
    (out[0], out[3], out[15], out[16]) = (1, 0x20, u8::from(immediate), 0xff);
    out[20..24].copy_from_slice(&id.to_be_bytes());
    out[42..44].copy_from_slice(&list1[2..4]);
    out[44..46].copy_from_slice(&list1[10..12]);
    out.extend(&list1[16..]);
    out
}

fn sense(completion: &Completion) -> Sense {
    completion.sense.unwrap_or_else(|| panic!("{completion:?}"))
}

fn bytes(completion: Completion) -> Vec<u8> {
    assert_eq!(completion.status, Status::Good, "{completion:?}");
    match completion.data_in {
        DataIn::Bytes(bytes) => bytes,
        other => panic!("{other:?}"),
    }
}

fn ranges(extents: &[(u64, u32)]) -> Vec<u8> {
    let one = |(lba, blocks): &(u64, u32)| [&lba.to_be_bytes()[..], &blocks.to_be_bytes(), &[0; 4]].concat();
    extents.iter().flat_map(one).collect()
}

/// POPULATE TOKEN, then RECEIVE ROD TOKEN INFORMATION.
fn populate(net: &mut Net, unit: u8, extents: &[(u64, u32)]) -> RodToken {
    let ranges = ranges(extents);
    let mut list = vec![0; 16];
    list[..2].copy_from_slice(&(14 + ranges.len() as u16).to_be_bytes());
    list[14..16].copy_from_slice(&(ranges.len() as u16).to_be_bytes());
    list.extend(ranges);
    let done = net.ask(unit, &cdb(0x83, 0x10, &[0, 0, 0, 9], 6, list.len() as u32), &list);
    assert_eq!(done, Completion { transfer_len: list.len() as u32, ..Completion::good() });
    let told = bytes(net.ask(unit, &cdb(0x84, 7, &[0, 0, 0, 9], 2, 1024), &[]));
    assert_eq!((told[4], told[5], told[15]), (0x10, 0x01, 0xf1));
    assert_eq!(told[32..38], [0, 0, 2, 2, 0, 0]);
    RodToken::from_bytes(told[38..550].first_chunk().unwrap())
}

/// REPORT ALL ROD TOKENS.
fn all_tokens(net: &mut Net, unit: u8) -> Vec<u8> {
    bytes(net.ask(unit, &cdb(0x84, 8, &[], 2, 1024), &[]))
}

fn use_token(
    net: &mut Net,
    unit: u8,
    token: &RodToken,
    offset: u64,
    flags: u8,
    extents: &[(u64, u32)],
) -> u64 {
    let ranges = ranges(extents);
    let mut list = vec![0; 536];
    list[..2].copy_from_slice(&(534 + ranges.len() as u16).to_be_bytes());
    list[2] = flags;
    list[8..16].copy_from_slice(&offset.to_be_bytes());
    list[16..528].copy_from_slice(token.0.as_slice());
    list[534..536].copy_from_slice(&(ranges.len() as u16).to_be_bytes());
    list.extend(ranges);
    net.send(unit, &cdb(0x83, 0x11, &[0, 0, 0, 5], 6, list.len() as u32), &list)
}

fn write_using(net: &mut Net, unit: u8, token: &RodToken, extents: &[(u64, u32)]) -> Completion {
    let id = use_token(net, unit, token, 0, 0, extents);
    net.ended.remove(&id).expect("not answered")
}

#[test]
fn blocks_are_copied_between_units_and_within_one() {
    let mut net = Net::new();
    let (first, second) = (net.blocks(A, 10, 3000), net.blocks(B, 5, 9));
    let list =
        list(1, &[A, B], &[segment(0, 1, 3000, 10, 100), segment(1, 0, 9, 5, 1), segment(0, 0, 0, 1, 1)]);
    assert_eq!(copy(&mut net, &list).status, Status::Good);
    assert_eq!(net.blocks(B, 100, 3000), first);
    assert_eq!(net.blocks(A, 1, 9), second);
    let told = bytes(net.ask(A, &cdb(0x84, 0, &[1], 2, 12), &[]));
    let copied = (3009 * BLOCK as u32).to_be_bytes();
    assert_eq!(told, [[0, 0, 0, 8, 1, 0, 3, 0].as_slice(), &copied].concat());
    // Told once; and nothing is known of others' copies.
    let again = net.ask(A, &cdb(0x84, 0, &[1], 2, 12), &[]);
    assert_eq!(sense(&again), Sense::illegal_field_cdb(2, None));
}

#[test]
fn overlapping_ranges_are_copied_as_if_all_was_read_first() {
    for (from, to) in [(0_u64, 1000_u64), (1000, 0), (0, 3000), (7, 7)] {
        let mut net = Net::new();
        for (lba, block) in net.units.get_mut(&A).unwrap().store.chunks_mut(BLOCK).enumerate() {
            block[..8].copy_from_slice(&(lba as u64).to_be_bytes());
        }
        let wanted = net.blocks(A, from as usize, 5000);
        let list = list(1, &[A], &[segment(0, 0, 5000, from, to)]);
        assert_eq!(copy(&mut net, &list).status, Status::Good);
        assert_eq!(net.blocks(A, to as usize, 5000), wanted, "{from} to {to}");
    }
}

#[test]
fn each_wrong_segment_is_told_when_its_turn_comes() {
    let aborted = |units: &[u8], wrong: Vec<u8>| {
        let mut net = Net::new();
        net.maps.get_mut(&MINE).unwrap().remove(&B);
        let list = list(1, units, &[segment(0, 0, 1, 0, 50), wrong]);
        let sense = sense(&copy(&mut net, &list));
        assert_eq!((sense.key, sense.command_specific), (SenseKey::CopyAborted, Some(1)));
        assert_eq!(net.blocks(A, 50, 1), net.blocks(A, 0, 1), "the first segment is done");
        (sense.additional, sense.specific)
    };
    let pointer = |in_segment, byte| SenseSpecific::SegmentPointer { in_segment, byte, bit: None };
    assert_eq!(aborted(&[A], segment(0, 1, 1, 0, 0)), (asc::UNREACHABLE_COPY_TARGET, pointer(true, 6)));
    assert_eq!(aborted(&[A], segment(0x800, 0, 1, 0, 0)), (asc::UNREACHABLE_COPY_TARGET, pointer(true, 4)));
    assert_eq!(aborted(&[A], segment(0, 0, 2, BLOCKS - 1, 0)), (asc::NO_ADDITIONAL_SENSE, pointer(true, 12)));
    assert_eq!(aborted(&[A], segment(0, 0, 2, 0, u64::MAX)), (asc::NO_ADDITIONAL_SENSE, pointer(true, 20)));
    // A unit that the host has not mapped, and one that does not exist, look alike.
    for stranger in [B, 0x77] {
        let found = aborted(&[A, stranger], segment(0, 1, 1, 0, 0));
        assert_eq!(found, (asc::COPY_TARGET_NOT_REACHABLE, pointer(false, 48)));
    }
}

#[test]
fn what_a_source_or_destination_answers_is_forwarded() {
    let mut net = Net::new();
    net.maps.get_mut(&MINE).unwrap().insert(B, true);
    let to_b = list(3, &[A, B], &[segment(0, 1, 1, 0, 0)]);
    let refused = sense(&copy(&mut net, &to_b));
    assert_eq!((refused.key, refused.additional), (SenseKey::CopyAborted, asc::THIRD_PARTY_DEVICE_FAILURE));
    let protected = Some((SenseKey::DataProtect, asc::WRITE_PROTECTED));
    let forwarded = Forwarded { by_source: false, status: Status::CheckCondition, sense: protected };
    assert_eq!(refused.forwarded, Some(forwarded));
    let details = bytes(net.ask(A, &cdb(0x84, 4, &[3], 2, 256), &[]));
    assert_eq!(details[56], Status::CheckCondition.code());
    assert_eq!(Sense::parse(&details[60..]), Some(refused));
    // RESERVATION CONFLICT of the destination, then of the source; reading under Write Exclusive is no conflict.
    net.maps.get_mut(&MINE).unwrap().insert(B, false);
    for (kind, to, from) in [
        (ReservationType::WriteExclusive, Err(false), Ok(())),
        (ReservationType::ExclusiveAccess, Err(false), Err(true)),
    ] {
        net.reserve(B, kind, OTHER);
        let from_b = list(3, &[A, B], &[segment(1, 0, 1, 0, 0)]);
        for (list, expected) in [(&to_b, to), (&from_b, from)] {
            let done = copy(&mut net, list);
            let found = match done.sense {
                None => Ok(()),
                Some(sense) => {
                    let forwarded = sense.forwarded.unwrap();
                    assert_eq!(forwarded.status, Status::ReservationConflict);
                    Err(forwarded.by_source)
                }
            };
            assert_eq!(found, expected, "{kind:?}");
        }
    }
    // Of the unit that got the command: the command itself conflicts.
    net.reserve(A, ReservationType::WriteExclusive, OTHER);
    assert_eq!(copy(&mut net, &to_b).status, Status::ReservationConflict);
}

#[test]
fn a_unit_that_is_unmapped_or_reserved_meanwhile_ends_the_copy() {
    for fence in [true, false] {
        let mut net = Net::new();
        net.holds = true;
        let id = net.send(A, &cdb(0x83, 0, &[], 2, 0), &[]);
        assert_eq!(net.ended[&id].status, Status::Good, "no list, no copy");
        let list = list(1, &[A, B], &[segment(0, 1, 6000, 0, 0)]);
        let id = net.send(A, &cdb(0x83, 0, &[], 2, list.len() as u32), &list);
        for _ in 0..3 {
            assert!(net.release_one());
        }
        assert_eq!(net.writes, 1);
        if fence {
            net.reserve(B, ReservationType::WriteExclusive, OTHER);
        } else {
            net.maps.get_mut(&MINE).unwrap().remove(&B);
        }
        net.release_all();
        let what = if fence { asc::THIRD_PARTY_DEVICE_FAILURE } else { asc::COPY_TARGET_NOT_REACHABLE };
        assert_eq!(sense(&net.ended[&id]).additional, what);
        assert_eq!(net.writes, 1, "nothing was written after that");
    }
}

#[test]
fn aborted_copies_end_once_their_command_has_ended() {
    for function in [
        TaskManagementFunction::AbortTaskSet,
        TaskManagementFunction::LogicalUnitReset,
        TaskManagementFunction::ItNexusReset,
    ] {
        let mut net = Net::new();
        net.holds = true;
        let list = list(1, &[A, B], &[segment(0, 1, 6000, 0, 0)]);
        let id = net.send(A, &cdb(0x83, 0, &[], 2, list.len() as u32), &list);
        net.release_one();
        let request = TaskManagementRequest { id: 77, nexus: &nexus(MINE), function };
        net.units.get_mut(&A).unwrap().server.handle_task_management(NOW, request);
        net.pump();
        assert!(net.functions.is_empty(), "{function:?} waits");
        assert_eq!(net.cancelled, 1);
        net.release_all();
        assert_eq!(net.functions.get(&77), Some(&TmfResponse::Complete), "{function:?}");
        assert!(!net.ended.contains_key(&id));
        let known = net.ask(A, &cdb(0x84, 0, &[1], 2, 12), &[]);
        assert_eq!(sense(&known), Sense::illegal_field_cdb(2, None));
        assert_eq!(net.units[&A].server.task_count() + net.units[&B].server.task_count(), 0);
    }
}

#[test]
fn preempt_and_abort_waits_for_a_copy_and_other_changes_do_not() {
    let mut net = Net::new();
    net.holds = true;
    let list = list(1, &[A, B], &[segment(0, 1, 6000, 0, 0)]);
    net.send(A, &cdb(0x83, 0, &[], 2, list.len() as u32), &list);
    let server = &mut net.units.get_mut(&A).unwrap().server;
    server.install_state(NOW, 1, LuState::default());
    assert!(server.reservations_drained(1), "its pieces are waited for where they are done");
    server.abort_tasks_of(NOW, &[nexus(MINE)]);
    server.install_state(NOW, 2, LuState::default());
    assert!(!server.reservations_drained(2));
    net.pump();
    net.release_all();
    assert!(net.units[&A].server.reservations_drained(2));
    assert_eq!(net.writes, 0);
}

#[test]
fn immediate_copies_go_on_in_the_background_until_they_end_or_are_aborted() {
    let mut net = Net::new();
    net.holds = true;
    let list = list(0, &[A, B], &[segment(0, 1, 6000, 0, 0)]);
    let list = lid4(&list, 0x0102_0304, true);
    let whole = cdb(0x83, 1, &[], 2, list.len() as u32);
    assert_eq!(net.ask(A, &whole, &list).status, Status::Good);
    let status = |net: &mut Net| bytes(net.ask(A, &cdb(0x84, 5, &[1, 2, 3, 4], 2, 64), &[]));
    assert_eq!(status(&mut net)[4..6], [0x01, 0x12]);
    // The list identifier is in use.
    assert_eq!(sense(&net.ask(A, &whole, &list)), Sense::illegal(asc::OPERATION_IN_PROGRESS));
    net.release_all();
    let told = status(&mut net);
    assert_eq!((told[5], told.len(), told[15]), (0x01, 32, 0));
    assert_eq!(told[16..24], (6000 * BLOCK as u64).to_be_bytes());
    net.holds = true;
    assert_eq!(net.ask(A, &whole, &list).status, Status::Good);
    let abort = net.send(A, &cdb(0x83, 0x1c, &[1, 2, 3, 4], 2, 0), &[]);
    assert!(!net.ended.contains_key(&abort), "it waits for what is under way");
    net.release_all();
    assert_eq!(net.ended[&abort].status, Status::Good);
    assert_eq!(status(&mut net)[5], 0x60);
    let unknown = net.ask(A, &cdb(0x83, 0x1c, &[9, 9, 9, 9], 2, 0), &[]);
    assert_eq!(sense(&unknown), Sense::illegal_field_cdb(2, None));
    // The loss of the nexus ends it too.
    net.holds = true;
    assert_eq!(net.ask(A, &whole, &list).status, Status::Good);
    net.units.get_mut(&A).unwrap().server.handle_nexus_loss(NOW, &nexus(MINE));
    let before = net.writes;
    net.pump();
    net.release_all();
    assert_eq!((net.writes, net.units[&A].server.task_count()), (before, 0));
}

#[test]
fn copies_are_bounded_in_number() {
    let mut net = Net::new();
    net.holds = true;
    for id in 0..=limits::COPIES_MAX {
        let list = list(id, &[A, B], &[segment(0, 1, 1, 0, 0)]);
        net.send(A, &cdb(0x83, 0, &[], 2, list.len() as u32), &list);
    }
    assert_eq!(net.ended.values().map(|end| end.status).collect::<Vec<_>>(), [Status::Busy]);
    net.release_all();
    assert_eq!(net.ended.len(), usize::from(limits::COPIES_MAX) + 1);
}

#[test]
fn data_is_written_by_a_token_from_wherever_it_is() {
    let mut net = Net::new();
    let token = populate(&mut net, B, &[(10, 4), (2000, 3000)]);
    assert_eq!(token.0[..4], CHANGE_VULNERABLE.to_be_bytes());
    let wanted = [net.blocks(B, 10, 4), net.blocks(B, 2000, 3000)].concat();
    let done = write_using(&mut net, A, &token, &[(7000, 2), (100, 3002)]);
    assert_eq!(done.status, Status::Good, "{done:?}");
    assert_eq!([net.blocks(A, 7000, 2), net.blocks(A, 100, 3002)].concat(), wanted);
    let told = bytes(net.ask(A, &cdb(0x84, 7, &[0, 0, 0, 5], 2, 1024), &[]));
    assert_eq!((told[4], told[5], told.len()), (0x11, 0x01, 36));
    assert_eq!(told[16..24], 3004_u64.to_be_bytes());
    // From within the token, and beyond its end.
    let id = use_token(&mut net, A, &token, 3, 0, &[(0, 2)]);
    assert_eq!(net.ended[&id].status, Status::Good);
    assert_eq!(net.blocks(A, 0, 2), wanted[3 * BLOCK..5 * BLOCK]);
    let id = use_token(&mut net, A, &token, 3000, 0, &[(0, 6)]);
    assert_eq!(net.ended[&id].status, Status::Good);
    let told = bytes(net.ask(A, &cdb(0x84, 7, &[0, 0, 0, 5], 2, 1024), &[]));
    assert_eq!((told[5], &told[16..24]), (0x04, 4_u64.to_be_bytes().as_slice()));
    let id = use_token(&mut net, A, &token, 3004, 0, &[(0, 1)]);
    assert_eq!(sense(&net.ended[&id]), Sense::illegal_field_parameter(8, None));
    // Within its own unit, and deleted afterwards.
    let id = use_token(&mut net, B, &token, 0, 2, &[(8000, 4)]);
    assert_eq!(net.ended[&id].status, Status::Good);
    assert_eq!(net.blocks(B, 8000, 4), wanted[..4 * BLOCK]);
    let gone = write_using(&mut net, A, &token, &[(0, 1)]);
    assert_eq!(sense(&gone), Sense::illegal(asc::TOKEN_DELETED));
}

#[test]
fn the_zero_token_writes_zeroes() {
    let mut net = Net::new();
    let mut zero = [0; 512];
    zero[..4].copy_from_slice(&ZERO.to_be_bytes());
    zero[6..8].copy_from_slice(&[0x01, 0xf8]);
    let done = write_using(&mut net, A, &RodToken::from_bytes(&zero), &[(5, 3), (50, 2)]);
    assert_eq!(done.status, Status::Good);
    assert!([net.blocks(A, 5, 3), net.blocks(A, 50, 2)].concat().iter().all(|byte| *byte == 0));
    assert!(net.blocks(A, 8, 1).iter().all(|byte| *byte != 0));
}

#[test]
fn changed_forged_and_foreign_tokens_write_nothing() {
    let mut net = Net::new();
    let untouched = net.blocks(A, 0, 100);
    let token = populate(&mut net, B, &[(10, 4)]);
    let refused = |net: &mut Net, token: &RodToken| sense(&write_using(net, A, token, &[(0, 4)]));
    for at in [8, 47, 56, 63, 96, 400, 480, 511] {
        let mut forged = *token.0;
        forged[at] ^= 1;
        let found = refused(&mut net, &RodToken::from_bytes(&forged));
        assert_eq!(found.key, SenseKey::IllegalRequest);
        assert_eq!(found.additional.asc, 0x23, "{at}");
    }
    // A unit that the host does not reach.
    net.maps.get_mut(&MINE).unwrap().remove(&B);
    assert_eq!(refused(&mut net, &token), Sense::illegal(asc::TOKEN_UNKNOWN));
    net.maps.get_mut(&MINE).unwrap().insert(B, false);
    // Blocks beside what it represents are written: it stays good. Its own: never again.
    let write = |lba: u8| [0x2a, 0, 0, 0, 0, lba, 0, 0, 1, 0];
    net.ask(B, &write(14), &[9; BLOCK]);
    assert_eq!(write_using(&mut net, A, &token, &[(200, 4)]).status, Status::Good);
    net.ask(B, &write(13), &net.blocks(B, 13, 1));
    assert_eq!(refused(&mut net, &token), Sense::illegal(asc::TOKEN_REVOKED));
    let other = populate(&mut net, B, &[(10, 4)]);
    assert_ne!(other, token);
    // Another host's reservation keeps from reading by a token too.
    net.reserve(B, ReservationType::ExclusiveAccess, OTHER);
    let conflict = refused(&mut net, &other);
    assert_eq!(conflict.forwarded.unwrap().status, Status::ReservationConflict);
    let server = &mut net.units.get_mut(&B).unwrap().server;
    server.install_state(NOW, 9, LuState::default());
    net.units.get_mut(&B).unwrap().server.forget_tokens();
    assert_eq!(refused(&mut net, &other), Sense::illegal(asc::TOKEN_UNKNOWN));
    assert_eq!(net.blocks(A, 0, 100), untouched);
}

#[test]
fn a_source_that_changes_during_a_copy_ends_it_before_the_change_shows() {
    let mut net = Net::new();
    let token = populate(&mut net, B, &[(0, 6000)]);
    let before = net.blocks(B, 0, 6000);
    net.holds = true;
    let id = use_token(&mut net, A, &token, 0, 0, &[(0, 6000)]);
    for _ in 0..4 {
        assert!(net.release_one());
    }
    net.ask(B, &[0x2a, 0, 0, 0, 0x17, 0, 0, 0, 1, 0], &[0x55; BLOCK]);
    net.release_all();
    assert_eq!(sense(&net.ended[&id]), Sense::illegal(asc::TOKEN_REVOKED));
    let told = bytes(net.ask(A, &cdb(0x84, 7, &[0, 0, 0, 5], 2, 1024), &[]));
    assert_eq!(told[5], 0x02);
    let written = u64::from_be_bytes(told[16..24].try_into().unwrap()) as usize;
    assert!(written > 0 && written < 6000);
    assert_eq!(
        net.blocks(A, 0, written),
        before[..written * BLOCK],
        "what was written is what the token stood for"
    );
}

#[test]
fn tokens_that_are_not_used_expire() {
    let mut net = Net::new();
    let token = populate(&mut net, B, &[(10, 4)]);
    net.now = NOW.plus_millis(u64::from(limits::TOKEN_INACTIVITY_S_DEFAULT) * 1000 + 1);
    assert_eq!(all_tokens(&mut net, B), [0, 0, 0, 4, 0, 0, 0, 0]);
    let late = write_using(&mut net, A, &token, &[(0, 4)]);
    assert_eq!(sense(&late), Sense::illegal(asc::TOKEN_EXPIRED));
}

#[test]
fn formatting_and_sanitizing_revoke_every_token() {
    for kind in [OperationKind::Format, OperationKind::BlockErase] {
        let mut net = Net::new();
        let token = populate(&mut net, B, &[(10, 4)]);
        let state = OperationState::Running { may_exit_failure: false };
        let mut running = LuState::default();
        running.unit.operation = Some(Operation { kind, state });
        let server = &mut net.units.get_mut(&B).unwrap().server;
        server.install_state(NOW, 5, running);
        while server.poll_action().is_some() {}
        server.install_state(NOW, 6, LuState::default());
        let refused = write_using(&mut net, A, &token, &[(0, 4)]);
        assert_eq!(sense(&refused), Sense::illegal(asc::TOKEN_REVOKED));
        assert_eq!(all_tokens(&mut net, B).len(), 8);
    }
}

#[test]
fn all_tokens_of_a_unit_are_told_of_without_what_makes_them_usable() {
    let mut net = Net::new();
    let tokens = [populate(&mut net, B, &[(10, 4)]), populate(&mut net, B, &[(20, 1), (30, 2)])];
    let told = all_tokens(&mut net, B);
    assert_eq!(told.len(), 8 + 2 * 96);
    assert_eq!(told[..8], [0, 0, 0, 4 + 2 * 96, 0, 0, 0, 0]);
    for (told, token) in told[8..].chunks_exact(96).zip(&tokens) {
        assert_eq!(told, &token.0[..96]);
    }
    assert_eq!(told[8 + 96 + 48..8 + 96 + 64], (3 * BLOCK as u128).to_be_bytes(), "bytes represented");
    assert_eq!(all_tokens(&mut net, A).len(), 8, "those of another unit are not its");
    // Written to, or deleted by its user: not known any more.
    net.ask(B, &[0x2a, 0, 0, 0, 0, 12, 0, 0, 1, 0], &[9; BLOCK]);
    assert_eq!(all_tokens(&mut net, B)[8..], tokens[1].0[..96]);
    use_token(&mut net, A, &tokens[1], 0, 2, &[(0, 3)]);
    assert_eq!(all_tokens(&mut net, B).len(), 8);
}

#[test]
fn no_copy_holds_data_and_asking_for_it_takes_nothing_away() {
    let mut net = Net::new();
    let list = lid4(&list(1, &[A, B], &[segment(0, 1, 4, 0, 10)]), 0x0102_0304, false);
    let done = net.ask(A, &cdb(0x83, 1, &[], 2, list.len() as u32), &list);
    assert_eq!(done.status, Status::Good);
    let data = bytes(net.ask(A, &cdb(0x84, 6, &[1, 2, 3, 4], 2, 64), &[]));
    assert_eq!((data.len(), data[3], data[5]), (36, 32, 0x01));
    assert_eq!(data[32..], [0; 4], "no held data");
    let status = bytes(net.ask(A, &cdb(0x84, 5, &[1, 2, 3, 4], 2, 64), &[]));
    assert_eq!(status[4..], data[4..32]);
    let unknown = net.ask(A, &cdb(0x84, 6, &[9, 9, 9, 9], 2, 64), &[]);
    assert_eq!(sense(&unknown), Sense::illegal_field_cdb(2, None));
}

#[test]
fn copies_beside_ordered_tasks_and_check_conditions_of_copies_disturb_no_one() {
    let mut net = Net::new();
    // An ORDERED copy within its own unit must not wait for itself.
    let list = list(1, &[A], &[segment(0, 0, 4, 0, 10)]);
    let cdb = cdb(0x83, 0, &[], 2, list.len() as u32);
    let request = CommandRequest {
        task: TaskId(500),
        nexus: &nexus(MINE),
        cdb: &cdb,
        attribute: TaskAttribute::Ordered,
        data_out_len: list.len() as u32,
        unit_attention: None,
        read_only: false,
    };
    net.units.get_mut(&A).unwrap().server.handle_command(NOW, request, DataOut::Ready(&list)).unwrap();
    net.pump();
    assert_eq!(net.ended[&500].status, Status::Good);
    assert_eq!(net.blocks(A, 10, 4), net.blocks(A, 0, 4));
}
