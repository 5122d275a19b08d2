//! Commands from a session to the owner of the volume and their answers back.
//!
//! Invariants: commands of one session to one LUN are submitted in the order in which they came; what cannot be executed now
//! is held and submitted again only after a definite "not executed", for a bounded time, then answered BUSY; what may have
//! been executed is answered ABORTED COMMAND and never submitted again; nothing is answered while the lease gate is
//! closed, not even what the port knows by itself. The answer of a command that the cluster agrees on waits for the lease: what was
//! agreed stays so.

use holdfast_iscsi::{Command, DataState, Payload, ScsiOutcome, TaskAttribute as IscsiAttribute, TaskTag};
use holdfast_replica::limits::COMMAND_AGE_MS_MAX;
use holdfast_scsi::cdb;
use holdfast_scsi::device_server::{Completion, DataIn, TaskAttribute, TaskId};
use holdfast_scsi::lun::Lun;
use holdfast_scsi::port::Route;
use holdfast_scsi::sense::{AdditionalSense, Sense, SenseKey, asc};
use holdfast_scsi::status::Status;
use holdfast_scsi::time::Instant;
use std::sync::Arc;

use super::functions::Function;
use super::limits::HOLD_MS_MAX;
use super::router::{Bytes, CommandData, CommandFor, ForwardToken, Outcome, Reply};
use super::worker::Worker;
use crate::clock;
use crate::lu::{Answer, Driver, Finished, LogicalUnit, RequestName, Requester};
use crate::view::{Epoch, NodeNumber, VolumeId};

/// ABORTED COMMAND with this: the owner could not be heard to the end.
const OUTCOME_UNKNOWN: AdditionalSense = asc::COMMUNICATION_FAILURE;

/// Status qualifiers (SAM-5 5.3.2): units of 100 ms after which a command is worth sending again to this logical unit. BUSY comes while
/// its owner changes, TASK SET FULL while commands end all the time.
const BUSY_RETRY_DELAY: u16 = 5;
/// See [`BUSY_RETRY_DELAY`].
const TASK_SET_FULL_RETRY_DELAY: u16 = 1;

/// A command or function of a session, until it is answered.
pub(super) struct Request {
    pub(super) connection: u64,
    pub(super) lun: Lun,
    pub(super) kind: Kind,
    pub(super) place: Place,
    /// Until when it is held before it is answered BUSY, in boot-time milliseconds.
    pub(super) hold_until: u64,
}

/// What was asked.
pub(super) enum Kind {
    Command(Box<Pending>),
    Function(Function),
}

/// A command on its way. What the route adds is filled in each time that it is submitted.
pub(super) struct Pending {
    pub(super) tag: TaskTag,
    pub(super) command: CommandFor,
    /// A write for which the initiator announced data to itself.
    pub(super) wrong_way: bool,
    /// Its data will never be whole: it is not submitted again.
    pub(super) given_up: bool,
    /// How it ended although its data is not whole: told once it is. Initiators free a command's data with its
    /// response, and some then cannot send what was already solicited.
    pub(super) early: Option<Outcome>,
    /// How it ended while there was no lease: told when there is one again.
    pub(super) settled: Option<Outcome>,
}

impl Pending {
    fn awaits_data(&self) -> bool {
        matches!(self.command.data, CommandData::Awaited) && !self.given_up
    }
}

/// Where a request is.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// Here, until it can be executed.
    Held,
    /// With a unit of this node.
    Local(Arc<LogicalUnit>, TaskId),
    /// With another node.
    Remote(NodeNumber),
}

/// Where a volume's commands go just now.
pub(super) enum Owner {
    Local(Arc<LogicalUnit>, Epoch),
    Remote(NodeNumber, Epoch),
    /// Nowhere yet.
    Nobody,
    /// The volume is gone.
    NoVolume,
}

impl Worker {
    pub(super) fn command(&mut self, now: Instant, connection: u64, command: Command) {
        let token = self.token();
        let Some(portal) = self.connections.get_mut(&connection) else { return };
        let Some(session) = portal.session() else {
            // The session was ended by us; the engine is closing.
            if let Some(engine) = portal.engine() {
                engine.discard_task(command.tag);
            }
            return;
        };
        let data = match command.data {
            DataState::None => CommandData::None,
            DataState::Complete(bytes) => CommandData::Ready(Bytes::new(bytes)),
            DataState::Awaited => CommandData::Awaited,
        };
        let pending = Pending {
            tag: command.tag,
            command: CommandFor {
                volume: VolumeId([0; 16]),
                epoch: Epoch::ZERO,
                nexus: session.nexus(),
                cdb: command.cdb.as_bytes().to_vec(),
                attribute: attribute(command.attribute),
                data_out_len: command.data_out_len,
                data,
                unit_attention: None,
                read_only: false,
                copy: None,
                execute_by: now.plus_millis(COMMAND_AGE_MS_MAX),
            },
            wrong_way: command.read
                && !command.write
                && command.expected_data_len > 0
                && cdb::may_be_cut_short(command.cdb.as_bytes()),
            given_up: false,
            early: None,
            settled: None,
        };
        session.counters.command(match &pending.command.data {
            CommandData::Ready(bytes) => bytes.as_slice().len(),
            CommandData::None | CommandData::Awaited => 0,
        });
        session.by_tag.insert(command.tag, token);
        let lun = Lun::from_bytes(command.lun);
        self.begin(now, token, connection, lun, Kind::Command(Box::new(pending)));
    }

    /// Takes a new request in, behind what is held for the same LUN.
    pub(super) fn begin(&mut self, now: Instant, token: ForwardToken, connection: u64, lun: Lun, kind: Kind) {
        // A node that stops begins no command; functions still end what it has begun.
        let refused = self.drain.is_some() && matches!(kind, Kind::Command(_));
        let hold_until = if refused { now.0 } else { now.0.saturating_add(HOLD_MS_MAX) };
        self.requests.insert(token, Request { connection, lun, kind, place: Place::Held, hold_until });
        let held = self.connections.get_mut(&connection).and_then(|p| p.session()).map(|s| &s.held);
        let behind =
            held.is_some_and(|held| held.iter().any(|t| self.requests.get(t).is_some_and(|r| r.lun == lun)));
        if refused || behind || !self.submit(now, token) {
            self.hold(token);
        }
    }

    /// Submits a request that is held or new. False: it cannot be executed now.
    pub(super) fn submit(&mut self, now: Instant, token: ForwardToken) -> bool {
        if !self.shared.gate.open(now.0) {
            return false;
        }
        match self.requests.get(&token).map(|request| &request.kind) {
            Some(Kind::Command(_)) => self.submit_command(now, token),
            Some(Kind::Function(_)) => self.submit_function(now, token),
            None => true,
        }
    }

    fn submit_command(&mut self, now: Instant, token: ForwardToken) -> bool {
        if let Some(Request { connection, kind: Kind::Command(pending), .. }) = self.requests.get_mut(&token)
            && let Some(outcome) = pending.settled.take()
        {
            let (connection, tag) = (*connection, pending.tag);
            self.finish_command(now, token, connection, tag, outcome);
            return true;
        }
        let Some(Request { connection, lun, kind: Kind::Command(pending), .. }) = self.requests.get(&token)
        else {
            return true;
        };
        let (connection, lun, tag, wrong_way) = (*connection, *lun, pending.tag, pending.wrong_way);
        let Some(portal) = self.connections.get_mut(&connection) else { return true };
        let Some(session) = portal.session() else { return true };
        let (volume, read_only, unit_attention) = match session.port.classify(&lun, &pending.command.cdb) {
            Route::Answer(completion) => {
                self.finish_command(now, token, connection, tag, local_outcome(completion));
                return true;
            }
            Route::Forward { volume, read_only, unit_attention } => (volume, read_only, unit_attention),
        };
        if wrong_way {
            let refused = Completion::check(Sense::illegal(asc::INVALID_FIELD_IN_COMMAND_IU));
            self.finish_command(now, token, connection, tag, local_outcome(refused));
            return true;
        }
        let owner = self.owner(volume);
        let Some(Request { kind: Kind::Command(pending), place, .. }) = self.requests.get_mut(&token) else {
            return true;
        };
        let command = &mut pending.command;
        (command.volume, command.read_only, command.unit_attention) = (volume, read_only, unit_attention);
        match owner {
            Owner::Local(unit, epoch) => {
                command.epoch = epoch;
                let requester = Requester { worker: self.index, request: RequestName::Local(token) };
                let mut driver =
                    Driver { services: &self.services, local: Some((self.index, &mut self.answers)) };
                let task = unit.command(&mut driver, requester, command);
                *place = Place::Local(unit, task);
                self.note_local(connection, volume);
                true
            }
            Owner::Remote(node, epoch) => {
                command.epoch = epoch;
                *place = Place::Remote(node);
                let command = command.clone();
                self.interconnect.forward(now, node, token, command);
                self.note_remote(connection, node);
                true
            }
            Owner::Nobody => false,
            Owner::NoVolume => {
                let refusal = Completion::check(Sense::illegal(asc::LOGICAL_UNIT_NOT_SUPPORTED));
                self.finish_command(now, token, connection, tag, local_outcome(refusal));
                true
            }
        }
    }

    /// Who owns a volume by this worker's view.
    pub(super) fn owner(&self, volume: VolumeId) -> Owner {
        let Some(view) = &self.view else { return Owner::Nobody };
        let Some(record) = view.volumes.get(&volume).filter(|v| !v.deleting) else { return Owner::NoVolume };
        let epoch = record.config.epoch();
        if view.owns(record) {
            return self.table.get(volume).map_or(Owner::Nobody, |unit| Owner::Local(unit, epoch));
        }
        match view.owner_of(record) {
            // Given to an earlier incarnation of this node: nobody serves it until the controller gives it anew.
            Some(node) if node.number == view.me => Owner::Nobody,
            Some(node) => Owner::Remote(node.number, epoch),
            None => Owner::Nobody,
        }
    }

    pub(super) fn note_local(&mut self, connection: u64, volume: VolumeId) {
        if let Some(session) = self.connections.get_mut(&connection).and_then(|p| p.session()) {
            session.local.insert(volume);
        }
    }

    pub(super) fn note_remote(&mut self, connection: u64, node: NodeNumber) {
        if let Some(session) = self.connections.get_mut(&connection).and_then(|p| p.session()) {
            session.remote.insert(node);
        }
    }

    /// Puts a request among those that are held, in the order of their arrival.
    pub(super) fn hold(&mut self, token: ForwardToken) {
        let Some(request) = self.requests.get_mut(&token) else { return };
        request.place = Place::Held;
        let connection = request.connection;
        let Some(session) = self.connections.get_mut(&connection).and_then(|p| p.session()) else { return };
        if let Kind::Command(pending) = &mut request.kind
            && pending.settled.is_none()
            && let Some(carried) = pending.command.unit_attention.take()
        {
            // It has been with an owner, in vain.
            session.port.not_told(&request.lun, carried.id);
        }
        let at = session.held.partition_point(|earlier| *earlier < token);
        if session.held.get(at) != Some(&token) {
            session.held.insert(at, token);
        }
        self.holding.insert(connection);
    }

    /// Submits what is held, as far as it can be executed now, and answers BUSY what was held too long.
    pub(super) fn retry_held(&mut self, now: Instant) {
        for connection in self.holding.iter().copied().collect::<Vec<_>>() {
            let held = match self.connections.get_mut(&connection).and_then(|p| p.session()) {
                Some(session) => std::mem::take(&mut session.held),
                None => Default::default(),
            };
            self.holding.remove(&connection);
            let mut blocked: Vec<Lun> = Vec::new();
            for token in held {
                let Some(request) = self.requests.get(&token) else { continue };
                let (lun, overdue) = (request.lun, request.hold_until <= now.0);
                if overdue {
                    self.held_too_long(now, token);
                } else if blocked.contains(&lun) || !self.submit(now, token) {
                    blocked.push(lun);
                    self.hold(token);
                }
            }
            self.touch(connection);
        }
    }

    fn held_too_long(&mut self, now: Instant, token: ForwardToken) {
        let Some(request) = self.requests.get(&token) else { return };
        let connection = request.connection;
        match &request.kind {
            Kind::Command(pending) => {
                let tag = pending.tag;
                let outcome = match pending.settled {
                    // Not to be sent again, and not to be told any more.
                    Some(_) => Outcome::Unknown,
                    None => local_outcome(Completion::status(Status::Busy)),
                };
                self.finish_command(now, token, connection, tag, outcome);
            }
            Kind::Function(_) => self.function_not_executed(now, token),
        }
    }

    pub(super) fn data_out(&mut self, now: Instant, connection: u64, tag: TaskTag, data: Vec<u8>) {
        let data = Bytes::new(data);
        if let Some(session) = self.connections.get_mut(&connection).and_then(|p| p.session()) {
            session.counters.data_out(data.as_slice().len());
        }
        let Some((token, pending, place)) = self.pending(connection, tag) else { return };
        pending.command.data = CommandData::Ready(data.clone());
        if let Some(outcome) = pending.early.take() {
            return self.finish_command(now, token, connection, tag, outcome);
        }
        match place {
            Place::Held => {}
            Place::Local(unit, task) => {
                let mut driver =
                    Driver { services: &self.services, local: Some((self.index, &mut self.answers)) };
                unit.data_out(&mut driver, task, data);
            }
            Place::Remote(node) => self.interconnect.forward_data(now, node, token, data),
        }
    }

    pub(super) fn data_out_failed(&mut self, now: Instant, connection: u64, tag: TaskTag) {
        let Some((token, pending, place)) = self.pending(connection, tag) else { return };
        pending.given_up = true;
        let nexus = pending.command.nexus;
        if let Some(outcome) = pending.early.take() {
            return self.finish_command(now, token, connection, tag, outcome);
        }
        match place {
            Place::Held => self.finish_command(now, token, connection, tag, Outcome::Aborted),
            Place::Local(unit, task) => {
                let mut driver =
                    Driver { services: &self.services, local: Some((self.index, &mut self.answers)) };
                unit.abort(&mut driver, &nexus, task);
            }
            Place::Remote(node) => self.interconnect.forward_abort(now, node, token),
        }
    }

    /// The command with this tag, if it is under way.
    pub(super) fn pending(
        &mut self,
        connection: u64,
        tag: TaskTag,
    ) -> Option<(ForwardToken, &mut Pending, Place)> {
        let token = *self.connections.get_mut(&connection)?.session()?.by_tag.get(&tag)?;
        match self.requests.get_mut(&token)? {
            Request { kind: Kind::Command(pending), place, .. } => Some((token, pending, place.clone())),
            Request { kind: Kind::Function(_), .. } => None,
        }
    }

    /// An answer to something that this worker asked of a unit.
    pub(super) fn finished(&mut self, now: Instant, finished: Finished) {
        match (finished.requester.request, finished.answer) {
            (RequestName::Local(token), Answer::Command(outcome)) => self.outcome(now, token, outcome),
            (RequestName::Local(token), Answer::Function(outcome)) => self.function_done(now, token, outcome),
            (RequestName::Peer(origin), Answer::Command(outcome)) => {
                self.peer_tasks.remove(&origin);
                self.interconnect.answer(now, origin, outcome);
            }
            (RequestName::Peer(origin), Answer::Function(outcome)) => {
                self.interconnect.answer_task_management(now, origin, outcome);
            }
        }
    }

    /// How a command of ours ended, here or elsewhere.
    pub(super) fn outcome(&mut self, now: Instant, token: ForwardToken, outcome: Outcome) {
        if let Some(errand) = self.errands.remove(&token) {
            return self.errand_done(now, errand, outcome);
        }
        let Some(Request { connection, kind: Kind::Command(pending), .. }) = self.requests.get(&token) else {
            return;
        };
        let (connection, tag, given_up) = (*connection, pending.tag, pending.given_up);
        let is_agreed = cdb::is_agreed(&pending.command.cdb);
        let outcome = match outcome {
            Outcome::NotExecuted if !given_up => {
                self.hold(token);
                return;
            }
            Outcome::NotExecuted => Outcome::Aborted,
            Outcome::Reply(_) if !given_up && is_agreed && !self.shared.gate.open(clock::now_ms()) => {
                if let Some(Request { kind: Kind::Command(pending), .. }) = self.requests.get_mut(&token) {
                    pending.settled = Some(outcome);
                }
                self.hold(token);
                return;
            }
            // The lease has lapsed since: what was done may not be told as done.
            Outcome::Reply(_) if !self.shared.gate.open(clock::now_ms()) => Outcome::Unknown,
            other => other,
        };
        self.finish_command(now, token, connection, tag, outcome);
    }

    /// Answers a command towards its initiator.
    pub(super) fn finish_command(
        &mut self,
        now: Instant,
        token: ForwardToken,
        connection: u64,
        tag: TaskTag,
        outcome: Outcome,
    ) {
        if let Some(Request { kind: Kind::Command(pending), .. }) = self.requests.get_mut(&token)
            && pending.awaits_data()
            && !matches!(outcome, Outcome::Aborted)
        {
            pending.early = Some(outcome);
            return;
        }
        let Some(request) = self.requests.remove(&token) else { return };
        let Some(portal) = self.connections.get_mut(&connection) else { return };
        if let Some(session) = portal.session() {
            session.by_tag.remove(&tag);
            session.counters.ended(&outcome);
            if let Kind::Command(pending) = &request.kind {
                match (&outcome, pending.command.unit_attention) {
                    (Outcome::Reply(Reply { unit_attention_reported, .. }), _) if !pending.given_up => {
                        if let Some(id) = unit_attention_reported {
                            session.port.reported(&request.lun, *id);
                        }
                    }
                    (_, Some(carried)) => session.port.not_told(&request.lun, carried.id),
                    (_, None) => {}
                }
            }
        }
        let Some(engine) = portal.engine() else { return };
        match outcome {
            Outcome::Reply(reply) => engine.complete(tag, scsi_outcome(reply)),
            Outcome::Aborted => engine.discard_task(tag),
            Outcome::NotExecuted | Outcome::Unknown => {
                let sense = Sense::new(SenseKey::AbortedCommand, OUTCOME_UNKNOWN);
                let Outcome::Reply(reply) = local_outcome(Completion::check(sense)) else { return };
                engine.complete(tag, scsi_outcome(reply));
            }
        }
        self.pump(now, connection);
    }
}

fn attribute(attribute: IscsiAttribute) -> TaskAttribute {
    match attribute {
        IscsiAttribute::Untagged | IscsiAttribute::Simple => TaskAttribute::Simple,
        IscsiAttribute::Ordered => TaskAttribute::Ordered,
        IscsiAttribute::HeadOfQueue => TaskAttribute::HeadOfQueue,
        IscsiAttribute::Aca => TaskAttribute::Aca,
    }
}

/// A completion that the port made itself.
fn local_outcome(completion: Completion) -> Outcome {
    let data = match completion.data_in {
        DataIn::Bytes(bytes) => Bytes::new(bytes),
        // The port reads nothing.
        DataIn::None | DataIn::FromRead { .. } => Bytes::default(),
    };
    Outcome::Reply(Reply {
        status: completion.status,
        sense: completion.sense,
        descriptor_sense: completion.descriptor_sense,
        data,
        transfer_len: completion.transfer_len,
        unit_attention_reported: completion.unit_attention_reported,
    })
}

fn scsi_outcome(reply: Reply) -> ScsiOutcome<Bytes> {
    let mut outcome = ScsiOutcome::status(reply.status.code());
    match reply.status {
        Status::Busy => outcome = outcome.with_status_qualifier(BUSY_RETRY_DELAY),
        Status::TaskSetFull => outcome = outcome.with_status_qualifier(TASK_SET_FULL_RETRY_DELAY),
        _ => {}
    }
    if let Some(sense) = reply.sense {
        let mut bytes = vec![0; holdfast_scsi::limits::SENSE_LEN_MAX];
        let len = sense.write(reply.descriptor_sense, &mut bytes);
        bytes.truncate(len);
        outcome = outcome.with_sense(bytes);
    }
    if reply.transfer_len > 0 {
        outcome = outcome.with_transfer_len(u64::from(reply.transfer_len));
    }
    if !reply.data.is_empty() {
        outcome = outcome.with_data_in(Payload::new(reply.data));
    }
    outcome
}
