//! Carries the actions of a device server out: I/O inline or on the I/O threads, proposals to the agent, answers to those who
//! asked.
//!
//! Invariants: actions are carried out in order, outside the lock; no answer leaves as executed unless the volume may still
//! be answered for after its last I/O (design 6.8): then it leaves as not executed, or as unknown if anything may have
//! changed.

use std::sync::{Arc, MutexGuard};

use holdfast_replica::epoch::Epoch;
use holdfast_scsi::device_server::{
    Action, Completion, CopyCommandOut, DataIn, IoFailure, ProposalOutcome, Response, TaskId, TmfResponse,
    UaScope, UnitEvent,
};
use holdfast_scsi::geometry::Geometry;
use holdfast_scsi::nexus::{Nexus, RelativePort};
use holdfast_scsi::time::Instant;
use holdfast_scsi::transport_id::TransportId;

use super::copy;
use super::io::{Asked, Io, IoResult};
use super::logical_unit::{Inner, LogicalUnit, Task};
use super::{Answer, Driver, Finished, LuAnswer};
use crate::agent::{EstablishUnitAttention, ProposeReservation, ProposedChange, UnitAttentionScope};
use crate::clock;
use crate::data_plane::copies::Errand;
use crate::data_plane::mailbox::Message;
use crate::data_plane::router::{Bytes, LuFunctionOutcome, Outcome, Reply};
use crate::store::io_threads::Lane;
use crate::volume::Serving;
use crate::volume::jobs::{HostResult, Job};

/// By when a reservation change has passed its barrier although the controller could not be asked, in milliseconds after its
/// installation: every lease that was granted without it has run out by then. Longer than any lease.
const BARRIER_MS_MAX: u64 = 15_000;

/// Operation codes of the commands that are not done when the cluster has agreed: FORMAT UNIT, SANITIZE, and MODE SELECT(6) and (10),
/// which may switch the write cache off.
const MORE_TO_DO: [u8; 4] = [0x04, 0x48, 0x15, 0x55];
/// Operation code and service action of SET TARGET PORT GROUPS: agreed on is only that the owner is asked to hand over.
const SET_TARGET_PORT_GROUPS: [u8; 2] = [0xa4, 0x0a];

/// What is left to do outside the lock. What is large and rare is in boxes.
enum Work {
    Io(TaskId, Io, Geometry, Instant),
    Propose(TaskId, Box<ProposeReservation>),
    ProposeEvent(u64, Box<ProposeReservation>),
    Establish(u64, Box<EstablishUnitAttention>),
    AwaitBarrier(u64),
    Copy(Box<CopyCommandOut>),
    CancelCopy(TaskId),
    Answer(Finished, MayChange),
    /// Of a command that the cluster has agreed on.
    AnswerAgreed(Finished),
}

/// Whether the answer is of a task that may have changed something.
#[derive(Clone, Copy, PartialEq, Eq)]
enum MayChange {
    Yes,
    No,
}

impl LogicalUnit {
    /// Carries out what the device server wants until it wants nothing more for now. Consumes the lock.
    pub(super) fn drive(self: &Arc<Self>, driver: &mut Driver<'_>, inner: MutexGuard<'_, Inner>) {
        let mut inner = inner;
        loop {
            let work = inner.take_work(self);
            drop(inner);
            let mut done = Vec::new();
            for work in work {
                if let Some(result) = self.perform(driver, work) {
                    done.push(result);
                }
            }
            if done.is_empty() {
                return;
            }
            inner = self.lock();
            for (task, result) in done {
                inner.io_done(task, result);
            }
        }
    }

    fn perform(self: &Arc<Self>, driver: &mut Driver<'_>, work: Work) -> Option<(TaskId, IoResult)> {
        match work {
            Work::Io(task, io, geometry, by) => return self.perform_io(driver, (task, by), io, geometry),
            Work::Propose(task, proposal) => {
                let (unit, mailboxes, worker) =
                    (Arc::clone(self), driver.services.mailboxes.clone(), driver.worker());
                let reply = Box::new(move |result| {
                    mailboxes.post(worker, Message::LuAnswer(LuAnswer::Proposal { unit, task, result }));
                });
                driver.services.agent.propose_reservation(*proposal, reply);
            }
            Work::ProposeEvent(id, proposal) => {
                let (unit, mailboxes, worker) =
                    (Arc::clone(self), driver.services.mailboxes.clone(), driver.worker());
                let reply = Box::new(move |result| {
                    mailboxes.post(worker, Message::LuAnswer(LuAnswer::Event { unit, id, result }));
                });
                driver.services.agent.propose_reservation(*proposal, reply);
            }
            Work::Establish(id, request) => {
                let (unit, mailboxes, worker) =
                    (Arc::clone(self), driver.services.mailboxes.clone(), driver.worker());
                let reply = Box::new(move |result| {
                    mailboxes.post(worker, Message::LuAnswer(LuAnswer::Established { unit, id, result }));
                });
                driver.services.agent.establish_unit_attention(*request, reply);
            }
            Work::AwaitBarrier(version) => {
                let (unit, mailboxes, worker) =
                    (Arc::clone(self), driver.services.mailboxes.clone(), driver.worker());
                let reply = Box::new(move |passed| {
                    // Otherwise time alone tells: see `BARRIER_MS_MAX`.
                    if passed {
                        mailboxes.post(worker, Message::LuAnswer(LuAnswer::BarrierPassed { unit, version }));
                    }
                });
                driver.services.agent.await_barrier(version, reply);
            }
            Work::Copy(command) => {
                let errand = Errand::new(Arc::clone(self), *command);
                driver.services.mailboxes.post(driver.worker(), Message::Copy(Box::new(errand)));
            }
            // Whichever worker has it.
            Work::CancelCopy(task) => {
                driver.services.mailboxes.post_all(|| Message::CancelCopy(Arc::clone(self), task));
            }
            Work::Answer(finished, may_change) => {
                let answer = if self.volume.may_reply() {
                    finished.answer
                } else {
                    held_back(finished.answer, may_change)
                };
                driver.deliver(Finished { answer, ..finished });
            }
            Work::AnswerAgreed(finished) => {
                if !self.volume.may_reply() {
                    let mut inner = self.lock();
                    if !inner.closed() {
                        inner.unanswered.push(finished);
                        return None;
                    }
                }
                driver.deliver(finished);
            }
        }
        None
    }

    fn perform_io(
        self: &Arc<Self>,
        driver: &mut Driver<'_>,
        (task, execute_by): (TaskId, Instant),
        io: Io,
        geometry: Geometry,
    ) -> Option<(TaskId, IoResult)> {
        if overdue(&io, execute_by) {
            return Some((task, IoResult::Failed(IoFailure::Unknown)));
        }
        if let Serving::Driven(engine) = self.volume.serving()
            && let Some(steps) = io.as_steps(&geometry)
        {
            let (unit, services) = (Arc::clone(self), driver.services.clone());
            let reply = Box::new(move |result: HostResult| {
                unit.io_done(&mut Driver::remote(&services), task, result.into());
            });
            return engine.submit(Job { steps, reply }).map(|result| (task, result.into()));
        }
        if let Some(result) = io.try_inline(&self.volume, &geometry) {
            return Some((task, result));
        }
        let (unit, services) = (Arc::clone(self), driver.services.clone());
        let job = Box::new(move || {
            let result = match overdue(&io, execute_by) {
                true => IoResult::Failed(IoFailure::Unknown),
                false => io.run(&unit.volume, &geometry),
            };
            unit.io_done(&mut Driver::remote(&services), task, result);
        });
        driver.services.io.submit(self.lane(), job);
        None
    }

    /// The lane of its I/O: one for each volume.
    pub(crate) fn lane(&self) -> Lane {
        let [a, b, c, d, e, f, g, h, ..] = self.id().0;
        Lane::from_ne_bytes([a, b, c, d, e, f, g, h])
    }
}

impl Driver<'_> {
    /// The worker that the agent's answers go through.
    fn worker(&self) -> usize {
        self.local.as_ref().map_or(0, |(worker, _)| *worker)
    }
}

impl Inner {
    /// What the device server wants, with all that is needed to do it outside the lock.
    fn take_work(&mut self, unit: &LogicalUnit) -> Vec<Work> {
        let mut work = Vec::new();
        while let Some(action) = self.server.poll_action() {
            if self.closed() {
                continue;
            }
            let geometry = self.config.properties.geometry;
            let data = |task| self.tasks.get(&task).map_or_else(Bytes::default, |t: &Task| t.data.clone());
            match Io::of(action, &geometry, data) {
                Asked::Io(task, io) => {
                    let mut execute_by = Instant(u64::MAX);
                    if let Some(entry) = self.tasks.get_mut(&task) {
                        entry.changing = io.changes();
                        execute_by = entry.execute_by;
                    }
                    work.push(Work::Io(task, io, geometry, execute_by));
                }
                Asked::Other(action) => work.extend(self.take_other(unit, *action)),
            }
        }
        work
    }

    fn take_other(&mut self, unit: &LogicalUnit, action: Action) -> Option<Work> {
        let epoch = unit.serving_epoch().unwrap_or_default();
        match action {
            Action::ProposeEvent { id, event, expected_version } => {
                let (nexus, change) = match *event {
                    UnitEvent::NexusLost(nexus) => (nexus, ProposedChange::NexusLost),
                    UnitEvent::Reset(nexus) => (nexus, ProposedChange::Reset),
                    UnitEvent::OperationEnded { failed } => {
                        let nobody = Nexus::new(TransportId::sas([0; 8]), RelativePort(0));
                        (nobody, ProposedChange::OperationEnded { failed })
                    }
                };
                Some(Work::ProposeEvent(id, propose(unit, epoch, expected_version, nexus, change)))
            }
            Action::ProposeChange { task, nexus, expected_version, cdb, parameter_list } => {
                if let Some(entry) = self.tasks.get_mut(&task) {
                    if clock::scsi_now() > entry.execute_by {
                        self.server.handle_proposal(clock::scsi_now(), task, ProposalOutcome::NotProposed);
                        return None;
                    }
                    (entry.changing, entry.proposed) = (true, true);
                    entry.more_to_do = cdb.first().is_some_and(|opcode| MORE_TO_DO.contains(opcode))
                        || cdb.starts_with(&SET_TARGET_PORT_GROUPS);
                }
                let change = ProposedChange::Command { cdb, parameter_list };
                Some(Work::Propose(task, propose(unit, epoch, expected_version, *nexus, change)))
            }
            Action::EstablishUnitAttention { id, additional, scope } => {
                let scope = match *scope {
                    UaScope::All => UnitAttentionScope::All,
                    UaScope::Only(nexus) => UnitAttentionScope::Only(nexus),
                    UaScope::AllExcept(nexus) => UnitAttentionScope::Except(nexus),
                };
                let (volume, request_id) = (unit.id(), random_id());
                Some(Work::Establish(
                    id,
                    Box::new(EstablishUnitAttention { volume, epoch, additional, scope, request_id }),
                ))
            }
            Action::AwaitBarrier { version } => {
                if version <= self.barriers.passed {
                    self.server.handle_barrier(clock::scsi_now(), version);
                    return None;
                }
                let installed = self.barriers.installed.map_or_else(clock::now_ms, |(_, at)| at);
                let passes_at = installed.saturating_add(BARRIER_MS_MAX);
                let asked = self.barriers.awaited.iter().any(|(awaited, _)| *awaited == version);
                self.barriers.awaited.push((version, passes_at));
                (!asked).then_some(Work::AwaitBarrier(version))
            }
            Action::FindCopyUnits { task, nexus, designators } => {
                let units = copy::units(unit.volume.shared(), &nexus, &designators);
                self.server.handle_copy_units(clock::scsi_now(), task, units);
                None
            }
            Action::CopyCommand(command) => {
                if let Some(entry) = self.tasks.get_mut(&command.task) {
                    entry.changed |= command.writes;
                }
                Some(Work::Copy(command))
            }
            Action::CancelCopyCommand { task } => Some(Work::CancelCopy(task)),
            Action::DrawRandom { task } => {
                self.server.handle_random(clock::scsi_now(), task, &random());
                None
            }
            Action::Complete { task, response } => {
                let task = self.tasks.remove(&task)?;
                let may_change = if task.changed || task.changing { MayChange::Yes } else { MayChange::No };
                let answer = match response {
                    Response::Aborted => Answer::Command(Outcome::Aborted),
                    Response::Completed(_) if task.refused => {
                        held_back(Answer::Command(Outcome::NotExecuted), may_change)
                    }
                    Response::Completed(completion) => {
                        Answer::Command(Outcome::Reply(reply(completion, &task)))
                    }
                };
                let finished = Finished { requester: task.requester, answer };
                Some(if task.agreed {
                    Work::AnswerAgreed(finished)
                } else {
                    Work::Answer(finished, may_change)
                })
            }
            Action::TaskManagementDone { id, response } => {
                let requester = self.functions.remove(&id)?;
                let outcome = match response {
                    TmfResponse::Complete => LuFunctionOutcome::Complete,
                    TmfResponse::Succeeded => LuFunctionOutcome::Succeeded,
                    TmfResponse::TaskDoesNotExist => LuFunctionOutcome::TaskDoesNotExist,
                    TmfResponse::NotSupported => LuFunctionOutcome::NotSupported,
                    TmfResponse::Rejected => LuFunctionOutcome::Rejected,
                };
                Some(Work::Answer(Finished { requester, answer: Answer::Function(outcome) }, MayChange::Yes))
            }
            // Everything else is I/O, or for the controller's barrier, which counts what has been answered here.
            _ => None,
        }
    }
}

/// True for what may change nothing any more. Judged when it is submitted, so that it does not land after it was sent again
/// on another path.
fn overdue(io: &Io, execute_by: Instant) -> bool {
    io.changes() && clock::scsi_now() > execute_by
}

/// What may be said of an answer once the volume is no longer ours to answer for.
fn held_back(answer: Answer, may_change: MayChange) -> Answer {
    match (answer, may_change) {
        (Answer::Command(Outcome::Aborted), _) => Answer::Command(Outcome::Aborted),
        (Answer::Command(_), MayChange::No) => Answer::Command(Outcome::NotExecuted),
        (Answer::Command(_), MayChange::Yes) => Answer::Command(Outcome::Unknown),
        (Answer::Function(_), _) => Answer::Function(LuFunctionOutcome::Unknown),
    }
}

pub(super) fn reply(completion: Completion, task: &Task) -> Reply {
    let data = match completion.data_in {
        DataIn::None => Bytes::default(),
        DataIn::Bytes(bytes) => Bytes::new(bytes),
        DataIn::FromRead { offset, len } => {
            Bytes::part(Arc::clone(&task.read), offset as usize, len as usize)
        }
    };
    Reply {
        status: completion.status,
        sense: completion.sense,
        descriptor_sense: completion.descriptor_sense,
        data,
        transfer_len: completion.transfer_len,
        unit_attention_reported: completion.unit_attention_reported,
    }
}

fn propose(
    unit: &LogicalUnit,
    epoch: Epoch,
    expected_version: u64,
    nexus: Nexus,
    change: ProposedChange,
) -> Box<ProposeReservation> {
    Box::new(ProposeReservation {
        volume: unit.id(),
        epoch,
        expected_version,
        nexus,
        change,
        now_unix_ms: clock::unix_millis().0,
        proposal_id: random_id(),
    })
}

fn random_id() -> [u8; 16] {
    random()
}

fn random<const N: usize>() -> [u8; N] {
    let mut id = [0; N];
    if getrandom::fill(&mut id).is_err() {
        // Ids that could repeat would let one proposal's outcome be taken for another's.
        tracing::error!("the system gives no random numbers: ending the process");
        std::process::abort();
    }
    id
}
