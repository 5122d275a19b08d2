//! A logical unit at its owner: the product's device server, with what carries its actions out.
//!
//! Invariants: no command enters before the owner serves, nor under another epoch; no answer leaves as executed unless the unit may still be answered for.

use std::collections::BTreeMap;

use holdfast_datanode::{
    lu::table::{lu_config, topology},
    view::VolumeId,
};
use holdfast_proto::state as records;
use holdfast_replica::{epoch::Epoch, span::Span};
use holdfast_scsi::{
    device_server::{
        Action, CommandRequest, Completion, DataIn, DataOut, DeviceServer, IoDone, IoFailure, OWN_WORK,
        ProposalOutcome, Response, TaskId, UaScope, UnitEvent,
    },
    geometry::Extent,
    lu_state::UnixMillis,
    nexus::{Nexus, RelativePort},
    sense::Sense,
    status::Status,
    task_set::TaskAttribute,
    time::Instant,
    transport_id::TransportId,
};

use super::{
    Event, NODES, Place, Simulation,
    controllers::{Answer, Refused, Request},
    founding::kept,
    node::{PeerMessage, PortCommand},
    replication::{Ended, For, Wish},
};

/// By when a change of the reservations has passed its barrier although nobody could be asked, in milliseconds.
const BARRIER_MS_MAX: u64 = 15_000;
const BLOCK: usize = 512;

/// Who waits for a command: a request of a node.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asker {
    pub(super) node: usize,
    pub(super) process: u64,
    pub(super) request: u64,
}

/// What a host is sent.
#[derive(Debug, Clone)]
pub(super) struct Reply {
    pub(super) status: Status,
    pub(super) sense: Option<Sense>,
    pub(super) data: Vec<u8>,
    pub(super) unit_attention_reported: Option<u64>,
}

/// How a command ended.
#[derive(Debug, Clone)]
pub(super) enum Outcome {
    Reply(Reply),
    NotExecuted,
    Unknown,
    Aborted,
}

impl Outcome {
    pub(super) fn of(completion: &Completion, read: &[u8]) -> Self {
        let data = match &completion.data_in {
            DataIn::None => Vec::new(),
            DataIn::Bytes(bytes) => bytes.clone(),
            DataIn::FromRead { offset, len } => {
                read.iter().skip(*offset as usize).take(*len as usize).copied().collect()
            }
        };
        Self::Reply(Reply {
            status: completion.status,
            sense: completion.sense,
            data,
            unit_attention_reported: completion.unit_attention_reported,
        })
    }
}

/// Whom the leader's word is for.
#[derive(Debug, Clone, Copy)]
pub(super) struct CallFor {
    pub(super) unit: u64,
    pub(super) what: CallKind,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum CallKind {
    Task(TaskId),
    Event(u64),
    Attention(u64),
    Barrier(u64),
}

/// What a unit wants of its volume, on its way there.
#[derive(Debug)]
pub(super) struct Io {
    task: TaskId,
    execute_by: u64,
    wish: Option<Wish>,
}

struct Task {
    asker: Asker,
    data: Vec<u8>,
    read: Vec<u8>,
    execute_by: u64,
    changed: bool,
    changing: bool,
    refused: bool,
    /// The whole cluster agrees on it: its answer waits for the lease.
    agreed: bool,
}

pub(super) struct Unit {
    volume: VolumeId,
    epoch: Epoch,
    pub(super) server: DeviceServer,
    tasks: BTreeMap<u64, Task>,
    installed: Option<u64>,
    passed: u64,
    awaited: Vec<(u64, u64)>,
    /// Answers that wait for the lease.
    unanswered: Vec<(Asker, Outcome)>,
}

pub(super) fn number_of(volume: VolumeId) -> usize {
    usize::from(volume.0[0]) - 1
}

impl Simulation {
    /// Units follow a view.
    pub(super) fn follow(&mut self, at: usize, install: &holdfast_datanode::agent::Install) {
        let view = &install.view;
        let closed: Vec<u64> = self.nodes[at]
            .units
            .iter()
            .filter(|(_, unit)| view.owned_volume(unit.volume).is_none())
            .map(|(id, _)| *id)
            .collect();
        for id in closed {
            self.close_unit(at, id);
        }
        for volume in view.volumes.values().filter(|volume| view.owns(volume)) {
            let known =
                self.nodes[at].units.iter().find(|(_, unit)| unit.volume == volume.id).map(|(id, _)| *id);
            let id = known.unwrap_or_else(|| {
                let node = &mut self.nodes[at];
                node.next += 1;
                let unit = Unit {
                    volume: volume.id,
                    epoch: volume.config.epoch(),
                    server: DeviceServer::new(lu_config(volume)),
                    tasks: BTreeMap::new(),
                    installed: None,
                    passed: 0,
                    awaited: Vec::new(),
                    unanswered: Vec::new(),
                };
                let id = node.next;
                node.units.insert(id, unit);
                id
            });
            let aborts: Vec<Nexus> = install
                .aborts
                .iter()
                .filter(|abort| abort.volume == volume.id)
                .flat_map(|abort| abort.nexuses.clone())
                .collect();
            let clock = self.nodes[at].clock(self.now);
            self.with_unit(at, id, |unit, now| {
                unit.epoch = volume.config.epoch();
                unit.server.install_clock(now, UnixMillis(clock));
                if !aborts.is_empty() {
                    unit.server.abort_tasks_of(now, &aborts);
                }
                let version = volume.reservations.version;
                if unit.installed.is_none_or(|before| version > before) {
                    unit.installed = Some(version);
                    unit.server.install_state(now, version, volume.reservations.state.clone());
                }
                unit.server.install_topology(topology(view, volume));
                unit.server.install_config(lu_config(volume));
            });
        }
    }

    fn close_unit(&mut self, at: usize, id: u64) {
        let Some(unit) = self.nodes[at].units.remove(&id) else { return };
        for (asker, outcome) in unit.unanswered {
            self.finish(at, asker, outcome);
        }
        for task in unit.tasks.into_values() {
            let outcome = if task.changed || task.changing { Outcome::Unknown } else { Outcome::NotExecuted };
            self.finish(at, task.asker, outcome);
        }
    }

    /// A command enters the unit of a volume, if this node serves it in this epoch.
    pub(super) fn submit(
        &mut self,
        at: usize,
        volume: VolumeId,
        epoch: Epoch,
        asker: Asker,
        command: PortCommand,
        execute_by: u64,
    ) {
        let number = number_of(volume);
        let serves = self.serves(at, number);
        let node = &mut self.nodes[at];
        let found = node.units.iter().find(|(_, u)| u.volume == volume && u.epoch == epoch);
        let Some(id) = found.map(|(id, _)| *id).filter(|_| serves) else {
            return self.finish(at, asker, Outcome::NotExecuted);
        };
        if let Some(other) = (0..NODES).find(|other| *other != at && self.serves(*other, number)) {
            self.violated(format!("node {at} and node {other} both serve volume {number}"));
        }
        let node = &mut self.nodes[at];
        node.next += 1;
        let task = node.next;
        let mut entered = true;
        self.with_unit(at, id, |unit, now| {
            let data = if command.data.is_empty() { DataOut::None } else { DataOut::Ready(&command.data) };
            unit.tasks.insert(
                task,
                Task {
                    asker,
                    data: command.data.clone(),
                    read: Vec::new(),
                    execute_by,
                    changed: false,
                    changing: false,
                    refused: false,
                    agreed: holdfast_scsi::cdb::is_agreed(&command.cdb),
                },
            );
            let request = CommandRequest {
                task: TaskId(task),
                nexus: &command.nexus,
                cdb: &command.cdb,
                attribute: TaskAttribute::Simple,
                data_out_len: command.data.len() as u32,
                unit_attention: command.unit_attention,
                read_only: command.read_only,
            };
            entered = unit.server.handle_command(now, request, data).is_ok();
        });
        if !entered {
            self.violated(format!("node {at}: a name of a task was used twice"));
        }
    }

    /// Does something with a unit, and then what its device server wants.
    pub(super) fn with_unit(&mut self, at: usize, id: u64, act: impl FnOnce(&mut Unit, Instant)) {
        let now = Instant(self.nodes[at].clock(self.now));
        let Some(unit) = self.nodes[at].units.get_mut(&id) else { return };
        act(unit, now);
        while let Some(action) = self.nodes[at].units.get_mut(&id).and_then(|unit| unit.server.poll_action())
        {
            self.act(at, id, action);
        }
    }

    fn act(&mut self, at: usize, id: u64, action: Action) {
        let clock = self.nodes[at].clock(self.now);
        let now = Instant(clock);
        let leased = self.nodes[at].leased(self.now);
        let process = self.nodes[at].process;
        let Some(unit) = self.nodes[at].units.get_mut(&id) else { return };
        let (task, wish, changes) = match action {
            Action::Read { task, extent, .. } => (task, span_of(extent).map(Wish::Read), false),
            Action::Write { task, extent, data_offset, fua } => {
                let data = unit.tasks.get(&task.0).map(|t| t.data.clone()).unwrap_or_default();
                (task, write_of(extent, data.get(data_offset as usize..).unwrap_or_default(), fua), true)
            }
            Action::WriteBytes { task, extent, data, fua, .. } => (task, write_of(extent, &data, fua), true),
            Action::Flush { task, .. } => (task, Some(Wish::Flush), false),
            Action::WriteSame { task, .. }
            | Action::WriteAtomic { task, .. }
            | Action::Unmap { task, .. }
            | Action::QueryAllocation { task, .. } => (task, None, false),
            Action::ProposeChange { task, nexus, expected_version, cdb, parameter_list } => {
                if let Some(entry) = unit.tasks.get_mut(&task.0) {
                    if clock > entry.execute_by {
                        return unit.server.handle_proposal(now, task, ProposalOutcome::NotProposed);
                    }
                    entry.changing = true;
                }
                let asker = CallFor { unit: id, what: CallKind::Task(task) };
                let command = (cdb.to_vec(), parameter_list, records::UnitEvent::Unspecified);
                return self.propose(at, asker, &nexus, expected_version, command);
            }
            Action::ProposeEvent { id: event_id, event, expected_version } => {
                let nobody = || Nexus::new(TransportId::sas([0; 8]), RelativePort(0));
                let (nexus, event) = match *event {
                    UnitEvent::NexusLost(nexus) => (nexus, records::UnitEvent::NexusLost),
                    UnitEvent::Reset(nexus) => (nexus, records::UnitEvent::Reset),
                    UnitEvent::OperationEnded { failed: false } => {
                        (nobody(), records::UnitEvent::OperationComplete)
                    }
                    UnitEvent::OperationEnded { failed: true } => {
                        (nobody(), records::UnitEvent::OperationFailed)
                    }
                };
                let asker = CallFor { unit: id, what: CallKind::Event(event_id) };
                return self.propose(at, asker, &nexus, expected_version, (Vec::new(), Vec::new(), event));
            }
            Action::EstablishUnitAttention { id: wanted, additional, scope } => {
                let (only, except) = match &*scope {
                    UaScope::All => (None, None),
                    UaScope::Only(nexus) => (Some(name_of(nexus)), None),
                    UaScope::AllExcept(nexus) => (None, Some(name_of(nexus))),
                };
                let request = records::EstablishUnitAttention {
                    request_id: self.random_id(),
                    epoch: Some(epoch_record(self.nodes[at].units[&id].epoch)),
                    proposer: at as u32 + 1,
                    event: Some(records::UnitAttentionEvent {
                        volume_id: self.nodes[at].units[&id].volume.0.to_vec(),
                        additional: u32::from(u16::from_be_bytes([additional.asc, additional.ascq])),
                        only,
                        except,
                        ..Default::default()
                    }),
                };
                let asker = CallFor { unit: id, what: CallKind::Attention(wanted) };
                return self.ask_leader(at, Request::Establish(request), asker);
            }
            Action::AwaitBarrier { version } => {
                if version <= unit.passed {
                    return unit.server.handle_barrier(now, version);
                }
                let asked = unit.awaited.iter().any(|(awaited, _)| *awaited == version);
                unit.awaited.push((version, clock + BARRIER_MS_MAX));
                if !asked {
                    let asker = CallFor { unit: id, what: CallKind::Barrier(version) };
                    self.ask_leader(at, Request::AwaitBarrier(version), asker);
                }
                return;
            }
            Action::Complete { task, response } => return self.completed(at, id, task, response),
            Action::TaskManagementDone { .. } | Action::ReservationsDrained { .. } => return,
            // The simulated hosts copy nothing.
            Action::FindCopyUnits { .. }
            | Action::CopyCommand(_)
            | Action::CancelCopyCommand { .. }
            | Action::DrawRandom { .. } => return,
        };
        let mut execute_by = u64::MAX;
        if let Some(entry) = unit.tasks.get_mut(&task.0) {
            entry.changing = changes;
            execute_by = entry.execute_by;
        }
        if !leased {
            if let Some(entry) = unit.tasks.get_mut(&task.0) {
                entry.changing = false;
                entry.refused = true;
            }
            return unit.server.handle_io(now, task, IoDone::Failed(IoFailure::NotExecuted));
        }
        let io = Io { task, execute_by, wish };
        let wait = if self.random.below(25) == 0 { self.random.below(900) } else { 0 };
        self.later(wait, Event::Io { node: at, process, unit: id, io });
    }

    /// The volume takes it, if it is in time.
    pub(super) fn perform(&mut self, at: usize, id: u64, io: Io) {
        let overdue = self.nodes[at].clock(self.now) > io.execute_by;
        let of = For { unit: id, task: io.task.0 };
        let Some(unit) = self.nodes[at].units.get_mut(&id) else { return };
        let volume = number_of(unit.volume);
        match io.wish {
            Some(Wish::Write(..)) if overdue => self.io_ended(at, of, Ended::Unknown),
            Some(wish) => self.begin_job(at, volume, of, wish),
            // Not of these histories.
            None => self.with_unit(at, id, |unit, now| {
                unit.server.handle_io(now, io.task, IoDone::Failed(IoFailure::Hardware));
            }),
        }
    }

    /// What the volume made of it.
    pub(super) fn io_ended(&mut self, at: usize, of: For, ended: Ended) {
        let task = TaskId(of.task);
        self.with_unit(at, of.unit, |unit, now| {
            let Some(entry) = unit.tasks.get_mut(&of.task) else {
                if task == OWN_WORK {
                    unit.server.handle_io(now, task, IoDone::Done);
                }
                return;
            };
            let changing = std::mem::take(&mut entry.changing);
            let read: Vec<u8> = match &ended {
                Ended::Read(values) => values.iter().copied().flat_map(block_of).collect(),
                _ => Vec::new(),
            };
            let done = match ended {
                Ended::NotExecuted => {
                    entry.refused = true;
                    IoDone::Failed(IoFailure::NotExecuted)
                }
                Ended::Unknown => IoDone::Failed(IoFailure::Unknown),
                Ended::Done => IoDone::Done,
                Ended::Read(_) => IoDone::Read(&read),
            };
            entry.changed |= changing && !entry.refused;
            entry.read = read.clone();
            unit.server.handle_io(now, task, done);
        });
    }

    fn completed(&mut self, at: usize, id: u64, task: TaskId, response: Response) {
        let leased = self.nodes[at].leased(self.now);
        let Some(unit) = self.nodes[at].units.get_mut(&id) else { return };
        let Some(task) = unit.tasks.remove(&task.0) else { return };
        let may_change = task.changed || task.changing;
        let kept = || if may_change { Outcome::Unknown } else { Outcome::NotExecuted };
        let outcome = match response {
            Response::Aborted => Outcome::Aborted,
            Response::Completed(_) if task.refused => kept(),
            Response::Completed(completion) if task.agreed && !leased => {
                let outcome = Outcome::of(&completion, &task.read);
                unit.unanswered.push((task.asker, outcome));
                return;
            }
            Response::Completed(_) if !leased => kept(),
            Response::Completed(completion) => Outcome::of(&completion, &task.read),
        };
        self.finish(at, task.asker, outcome);
    }

    fn finish(&mut self, at: usize, asker: Asker, outcome: Outcome) {
        if asker.node == at {
            if self.lives(at, asker.process) {
                self.request_done(at, asker.request, outcome);
            }
            return;
        }
        let to = asker.node;
        let (process, request) = (asker.process, asker.request);
        let message = Box::new(PeerMessage::Done { from: at, process, request, outcome });
        self.send(Place::Node(at), Place::Node(to), Event::Peer { to, message });
    }

    fn propose(
        &mut self,
        at: usize,
        asker: CallFor,
        nexus: &Nexus,
        expected_version: u64,
        (cdb, parameter_list, event): (Vec<u8>, Vec<u8>, records::UnitEvent),
    ) {
        let proposal_id = self.random_id();
        let now_unix_ms = self.now;
        let unit = &self.nodes[at].units[&asker.unit];
        let proposal = records::ProposeReservation {
            proposal_id,
            volume_id: unit.volume.0.to_vec(),
            epoch: Some(epoch_record(unit.epoch)),
            proposer: at as u32 + 1,
            expected_version,
            nexus: Some(name_of(nexus)),
            cdb,
            parameter_list,
            now_unix_ms,
            event: event.into(),
        };
        self.ask_leader(at, Request::Propose(proposal), asker);
    }

    fn random_id(&mut self) -> Vec<u8> {
        [self.random.draw().to_be_bytes(), self.random.draw().to_be_bytes()].concat()
    }

    /// The leader's word, or that there is none.
    pub(super) fn leader_said(&mut self, at: usize, asker: CallFor, answer: Answer) {
        let outcome = match &answer {
            Answer::Proposal(record) => match Status::from_code(record.status as u8) {
                Some(Status::Good) => ProposalOutcome::Committed { version: record.version },
                Some(Status::ReservationConflict) => ProposalOutcome::Conflict,
                _ => Sense::parse(&record.sense).map_or(ProposalOutcome::Unknown, ProposalOutcome::Refused),
            },
            Answer::Refused(Refused::Stale | Refused::Settled(true)) => ProposalOutcome::VersionChanged,
            Answer::Refused(_) | Answer::NotLeading => ProposalOutcome::NotProposed,
            Answer::Established(_) | Answer::Barrier | Answer::Unknown => ProposalOutcome::Unknown,
        };
        self.with_unit(at, asker.unit, |unit, now| match asker.what {
            CallKind::Task(task) => {
                if let Some(entry) = unit.tasks.get_mut(&task.0) {
                    entry.changing = false;
                    entry.changed |=
                        matches!(outcome, ProposalOutcome::Committed { .. } | ProposalOutcome::Unknown);
                }
                unit.server.handle_proposal(now, task, outcome);
                unit.barrier_of(outcome, now);
            }
            CallKind::Event(id) => {
                unit.server.handle_event_proposal(now, id, outcome);
                unit.barrier_of(outcome, now);
            }
            CallKind::Attention(id) => {
                unit.server.handle_unit_attention(now, id, matches!(answer, Answer::Established(_)));
            }
            CallKind::Barrier(version) => {
                if matches!(answer, Answer::Barrier) {
                    unit.barrier_passed(version, now);
                }
            }
        });
    }

    pub(super) fn tick_units(&mut self, at: usize) {
        let clock = self.nodes[at].clock(self.now);
        let ids: Vec<u64> = self.nodes[at].units.keys().copied().collect();
        let leased = self.nodes[at].leased(self.now);
        for id in ids {
            let answers = match self.nodes[at].units.get_mut(&id) {
                Some(unit) if leased => std::mem::take(&mut unit.unanswered),
                _ => Vec::new(),
            };
            for (asker, outcome) in answers {
                self.mark("an answer waited for the lease of its owner");
                self.finish(at, asker, outcome);
            }
            self.with_unit(at, id, |unit, now| {
                unit.server.handle_tick(now);
                let due =
                    unit.awaited.iter().filter(|(_, by)| *by <= clock).map(|(version, _)| *version).max();
                if let Some(version) = due {
                    unit.barrier_passed(version, now);
                }
            });
        }
    }
}

impl Unit {
    fn barrier_of(&mut self, outcome: ProposalOutcome, now: Instant) {
        if let ProposalOutcome::Committed { version } = outcome {
            self.barrier_passed(version, now);
        }
    }

    fn barrier_passed(&mut self, version: u64, now: Instant) {
        self.passed = self.passed.max(version);
        self.awaited.retain(|(awaited, _)| *awaited > version);
        self.server.handle_barrier(now, version);
    }
}

fn span_of(extent: Extent) -> Option<Span> {
    Span::new(kept(extent.lba), u64::from(extent.blocks))
}

fn write_of(extent: Extent, data: &[u8], durable: bool) -> Option<Wish> {
    let values = data.chunks(BLOCK).take(extent.blocks as usize).map(value_of).collect();
    span_of(extent).map(|span| Wish::Write(span, values, durable))
}

/// A block that holds a value.
pub(super) fn block_of(value: u64) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    block[..8].copy_from_slice(&value.to_be_bytes());
    block
}

/// The value that a block holds.
pub(super) fn value_of(block: &[u8]) -> u64 {
    block.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

pub(super) fn name_of(nexus: &Nexus) -> records::NexusName {
    records::NexusName {
        transport_id: nexus.initiator.as_bytes().to_vec(),
        relative_port: u32::from(nexus.port.0),
    }
}

pub(super) fn epoch_record(epoch: Epoch) -> records::Epoch {
    records::Epoch { generation: epoch.generation, number: epoch.number }
}
