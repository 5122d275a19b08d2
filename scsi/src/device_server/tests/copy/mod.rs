//! Copies between several device servers whose commands to each other take the way that a shell gives them.

mod extended;
mod tokens;

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
                let host = [MINE, OTHER].into_iter().find(|host| nexus(*host) == *of).unwrap();
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
