//! [`LogicalUnit`]: the device server of one volume at its owner, with the tasks that are in it.
//!
//! Invariants: the lock is held for the device server's thinking only, never during I/O; every task that entered is
//! answered once, by its completion, by [`LogicalUnit::close`], or, where it is proposed to the controllers when the unit closes, by
//! what became of the proposal; after a close nothing runs here any more. What the cluster has agreed on is so whatever becomes of
//! this node's lease: its answer waits for the lease.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use holdfast_replica::epoch::Epoch;
use holdfast_scsi::device_server::{
    CommandRequest, Completion, CopyAnswer, DataOut, DeviceServer, IoFailure, LuConfig, OWN_WORK,
    ProposalOutcome, StoreResources, TaskId, TaskManagementFunction, TaskManagementRequest, Topology,
};
use holdfast_scsi::nexus::Nexus;
use holdfast_scsi::status::Status;
use holdfast_scsi::time::Instant;
use rustc_hash::FxHashMap;

use super::execute::reply;
use super::io::IoResult;
use super::{Answer, Driver, Finished, Requester};
use crate::agent::{Established, ProposalResult};
use crate::clock;
use crate::data_plane::router::{Bytes, CommandData, CommandFor, LuFunctionOutcome, Outcome};
use crate::view::{ReservationView, VolumeId};
use crate::volume::Volume;

/// How often the pool's room is looked at, in milliseconds.
const ROOM_MS: u64 = 1_000;

/// See the module's invariants.
#[derive(Debug)]
pub(crate) struct LogicalUnit {
    pub(super) volume: Volume,
    inner: Mutex<Inner>,
    next_id: AtomicU64,
}

/// What the lock guards.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) server: DeviceServer,
    pub(super) config: LuConfig,
    pub(super) tasks: FxHashMap<TaskId, Task>,
    pub(super) functions: FxHashMap<u64, Requester>,
    pub(super) barriers: Barriers,
    /// Answers of commands that the cluster has agreed on, until there is a lease again.
    pub(super) unanswered: Vec<Finished>,
    /// The epoch that the device server's ROD tokens are of: under another one, others may have written meanwhile.
    epoch: Epoch,
    /// When the pool's room is looked at next, in boot-time milliseconds.
    look_at_room_at: u64,
    closed: bool,
}

/// Which reservation changes have passed their barrier.
#[derive(Debug, Default)]
pub(super) struct Barriers {
    /// Highest version known to have passed. Barriers are cumulative.
    pub(super) passed: u64,
    /// Versions that answers wait for, each with the moment (boot-time milliseconds) at which it has passed in any case.
    pub(super) awaited: Vec<(u64, u64)>,
    /// The newest version installed, and when, in boot-time milliseconds.
    pub(super) installed: Option<(u64, u64)>,
}

/// A task in the device server.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) requester: Requester,
    /// Changes nothing after this moment: the host may have sent it again on another path by then.
    pub(super) execute_by: Instant,
    pub(super) data: Bytes,
    /// What the last read left.
    pub(super) read: Arc<Vec<u8>>,
    /// Something was changed, or may have been: "not executed" can no longer be said.
    pub(super) changed: bool,
    /// An I/O that changes something, or a proposal, is under way.
    pub(super) changing: bool,
    /// An I/O was refused because the volume is not served now.
    pub(super) refused: bool,
    /// It is with the controllers.
    pub(super) proposed: bool,
    /// The cluster has carried it out.
    pub(super) agreed: bool,
    /// With `proposed`: there is more to do than to agree (blocks to format, a cache to flush).
    pub(super) more_to_do: bool,
}

impl LogicalUnit {
    /// The unit of a volume, serving nothing yet.
    pub(super) fn new(volume: Volume, config: LuConfig) -> LogicalUnit {
        LogicalUnit {
            volume,
            inner: Mutex::new(Inner {
                server: DeviceServer::new(config),
                config,
                tasks: Default::default(),
                functions: Default::default(),
                barriers: Barriers::default(),
                unanswered: Vec::new(),
                epoch: Epoch::ZERO,
                look_at_room_at: 0,
                closed: false,
            }),
            next_id: AtomicU64::new(1),
        }
    }

    /// The volume's id.
    pub(crate) fn id(&self) -> VolumeId {
        self.volume.id()
    }

    /// Epoch under which it executes commands now.
    pub(crate) fn serving_epoch(&self) -> Option<Epoch> {
        self.volume.serving_epoch()
    }

    /// Takes a command. The answer comes through `driver` or by mailbox; the name is for [`LogicalUnit::data_out`],
    /// [`LogicalUnit::abort`] and ABORT TASK.
    pub(crate) fn command(
        self: &Arc<Self>,
        driver: &mut Driver<'_>,
        by: Requester,
        command: &CommandFor,
    ) -> TaskId {
        let task = TaskId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let refuse = |driver: &mut Driver<'_>| {
            driver.deliver(Finished { requester: by, answer: Answer::Command(Outcome::NotExecuted) });
        };
        let now = clock::scsi_now();
        if now > command.execute_by {
            // Not executed, but not to be sent again either.
            let answer = Answer::Command(Outcome::Unknown);
            driver.deliver(Finished { requester: by, answer });
            return task;
        }
        if self.volume.serving_epoch_at(now.0) != Some(command.epoch) {
            refuse(driver);
            return task;
        }
        let mut inner = self.lock();
        if inner.closed {
            drop(inner);
            refuse(driver);
            return task;
        }
        let request = CommandRequest {
            task,
            nexus: &command.nexus,
            cdb: &command.cdb,
            attribute: command.attribute,
            data_out_len: command.data_out_len,
            unit_attention: command.unit_attention,
            read_only: command.read_only,
        };
        let (data, bytes) = match &command.data {
            CommandData::None => (DataOut::None, Bytes::default()),
            CommandData::Ready(bytes) => (DataOut::Ready(bytes.as_slice()), bytes.clone()),
            CommandData::Awaited => (DataOut::Awaited, Bytes::default()),
        };
        let entry = Task {
            requester: by,
            execute_by: command.execute_by,
            data: bytes,
            read: Arc::default(),
            changed: false,
            changing: false,
            refused: false,
            proposed: false,
            agreed: false,
            more_to_do: false,
        };
        inner.tasks.insert(task, entry);
        inner.follow_epoch(command.epoch);
        let taken = match &command.copy {
            None => inner.server.handle_command(now, request, data),
            Some(role) => inner.server.handle_copy_part(now, request, data, role),
        };
        if taken.is_err() {
            // Names are never used twice, so this cannot be; were it so, nothing was executed.
            inner.tasks.remove(&task);
            drop(inner);
            refuse(driver);
            return task;
        }
        self.drive(driver, inner);
        task
    }

    /// The whole data-out of a task.
    pub(crate) fn data_out(self: &Arc<Self>, driver: &mut Driver<'_>, task: TaskId, data: Bytes) {
        let mut inner = self.lock();
        let Some(entry) = inner.tasks.get_mut(&task) else { return };
        entry.data = data.clone();
        inner.server.handle_data_out(clock::scsi_now(), task, data.as_slice());
        self.drive(driver, inner);
    }

    /// Ends a task whose data will not come, as ABORT TASK would.
    pub(crate) fn abort(self: &Arc<Self>, driver: &mut Driver<'_>, nexus: &Nexus, task: TaskId) {
        let mut inner = self.lock();
        if inner.tasks.contains_key(&task) {
            // No one asked for this function, so its answer finds nobody.
            let id = self.next_id.fetch_add(1, Ordering::Relaxed);
            let function = TaskManagementFunction::AbortTask(task);
            let request = TaskManagementRequest { id, nexus, function };
            inner.server.handle_task_management(clock::scsi_now(), request);
        }
        self.drive(driver, inner);
    }

    /// Takes a task management function, which covers all that came before it. Answered as a command is.
    pub(crate) fn task_management(
        self: &Arc<Self>,
        driver: &mut Driver<'_>,
        by: Requester,
        epoch: Epoch,
        nexus: &Nexus,
        function: TaskManagementFunction,
    ) {
        let serving = self.serving_epoch() == Some(epoch);
        // A function's answer comes after those of the commands before it.
        self.answer_under_lease(driver);
        let mut inner = self.lock();
        if inner.closed || !serving {
            drop(inner);
            let answer = Answer::Function(LuFunctionOutcome::NotExecuted);
            return driver.deliver(Finished { requester: by, answer });
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        inner.functions.insert(id, by);
        let request = TaskManagementRequest { id, nexus, function };
        inner.server.handle_task_management(clock::scsi_now(), request);
        self.drive(driver, inner);
    }

    /// A nexus is gone: its tasks end and what it holds by itself is given up.
    pub(crate) fn nexus_loss(self: &Arc<Self>, driver: &mut Driver<'_>, nexus: &Nexus) {
        let mut inner = self.lock();
        inner.server.handle_nexus_loss(clock::scsi_now(), nexus);
        self.drive(driver, inner);
    }

    /// Tasks of these nexuses are to be aborted (PREEMPT AND ABORT).
    pub(crate) fn abort_tasks_of(self: &Arc<Self>, driver: &mut Driver<'_>, nexuses: &[Nexus]) {
        let mut inner = self.lock();
        inner.server.abort_tasks_of(clock::scsi_now(), nexuses);
        self.drive(driver, inner);
    }

    /// Follows the view. A configuration that needs a larger replica is installed by [`LogicalUnit::install_config`] later.
    /// The same log entry aborts the tasks of `aborts`: first, or those that wait for data would end with a conflict.
    pub(crate) fn install(
        self: &Arc<Self>,
        driver: &mut Driver<'_>,
        r: &ReservationView,
        topology: Topology,
        aborts: &[Nexus],
    ) {
        let now = clock::scsi_now();
        let mut inner = self.lock();
        if !aborts.is_empty() {
            inner.server.abort_tasks_of(now, aborts);
        }
        if inner.barriers.installed.is_none_or(|(version, _)| r.version > version) {
            inner.barriers.installed = Some((r.version, now.0));
            inner.server.install_state(now, r.version, r.state.clone());
        }
        inner.server.install_topology(topology);
        self.drive(driver, inner);
    }

    /// What the unit is from now on.
    pub(crate) fn install_config(self: &Arc<Self>, driver: &mut Driver<'_>, config: LuConfig) {
        let mut inner = self.lock();
        if inner.config != config {
            inner.config = config;
            inner.server.install_config(config);
        }
        self.drive(driver, inner);
    }

    /// The agent's answer to a proposal.
    pub(crate) fn proposal_done(
        self: &Arc<Self>,
        driver: &mut Driver<'_>,
        task: TaskId,
        result: ProposalResult,
    ) {
        let outcome = self.outcome(result);
        let now = clock::scsi_now();
        let mut inner = self.lock();
        if inner.closed {
            // Only what was proposed is still here. What was not carried out is for the new owner.
            let Some(task) = inner.tasks.remove(&task) else { return };
            drop(inner);
            let outcome = match outcome {
                // What was submitted here before it has ended before the new owner serves.
                ProposalOutcome::Committed { .. } if !task.more_to_do => {
                    Outcome::Reply(reply(Completion::good(), &task))
                }
                ProposalOutcome::Committed { .. } | ProposalOutcome::Unknown => Outcome::Unknown,
                ProposalOutcome::Conflict
                | ProposalOutcome::Refused(_)
                | ProposalOutcome::VersionChanged
                | ProposalOutcome::NotProposed => Outcome::NotExecuted,
            };
            let (requester, answer) = (task.requester, Answer::Command(outcome));
            return driver.deliver(Finished { requester, answer });
        }
        if let Some(entry) = inner.tasks.get_mut(&task) {
            (entry.changing, entry.proposed) = (false, false);
            entry.agreed = matches!(outcome, ProposalOutcome::Committed { .. });
            entry.changed |= matches!(outcome, ProposalOutcome::Committed { .. } | ProposalOutcome::Unknown);
        }
        inner.server.handle_proposal(now, task, outcome);
        if let ProposalOutcome::Committed { version } = outcome {
            inner.barrier_passed(version);
        }
        self.drive(driver, inner);
    }

    /// The agent's answer to the proposal of an event.
    pub(crate) fn event_done(self: &Arc<Self>, driver: &mut Driver<'_>, id: u64, result: ProposalResult) {
        let outcome = self.outcome(result);
        let mut inner = self.lock();
        inner.server.handle_event_proposal(clock::scsi_now(), id, outcome);
        if let ProposalOutcome::Committed { version } = outcome {
            inner.barrier_passed(version);
        }
        self.drive(driver, inner);
    }

    fn outcome(&self, result: ProposalResult) -> ProposalOutcome {
        match result {
            ProposalResult::Outcome { status: Status::Good, version, .. } => {
                ProposalOutcome::Committed { version }
            }
            ProposalResult::Outcome { status: Status::ReservationConflict, .. } => ProposalOutcome::Conflict,
            ProposalResult::Outcome { sense: Some(sense), .. } => ProposalOutcome::Refused(sense),
            ProposalResult::Outcome { sense: None, .. } | ProposalResult::Unknown => ProposalOutcome::Unknown,
            ProposalResult::StaleVersion => ProposalOutcome::VersionChanged,
            ProposalResult::NotExecuted(reason) => {
                tracing::warn!(volume = %self.id(), reason, "a change of the unit was not proposed");
                ProposalOutcome::NotProposed
            }
        }
    }

    /// The agent's answer to a Unit Attention.
    pub(crate) fn unit_attention_done(
        self: &Arc<Self>,
        driver: &mut Driver<'_>,
        id: u64,
        result: Established,
    ) {
        let mut inner = self.lock();
        inner.server.handle_unit_attention(clock::scsi_now(), id, result == Established::Done);
        self.drive(driver, inner);
    }

    /// The controller says that the barrier of this version, and so of all before it, has passed.
    pub(crate) fn barrier_done(self: &Arc<Self>, driver: &mut Driver<'_>, version: u64) {
        let mut inner = self.lock();
        inner.barrier_passed(version);
        self.drive(driver, inner);
    }

    /// How a command that a copy sent has ended.
    pub(crate) fn copy_answer(self: &Arc<Self>, driver: &mut Driver<'_>, task: TaskId, answer: CopyAnswer) {
        let mut inner = self.lock();
        inner.server.handle_copy_answer(clock::scsi_now(), task, answer);
        self.drive(driver, inner);
    }

    /// An I/O has ended on an I/O thread.
    pub(super) fn io_done(self: &Arc<Self>, driver: &mut Driver<'_>, task: TaskId, result: IoResult) {
        let mut inner = self.lock();
        inner.io_done(task, result);
        self.drive(driver, inner);
    }

    /// Barriers that have passed by time alone, and what could not be proposed before.
    pub(crate) fn tick(self: &Arc<Self>, driver: &mut Driver<'_>) {
        self.answer_under_lease(driver);
        let now_ms = clock::now_ms();
        let mut inner = self.lock();
        inner.server.install_clock(clock::scsi_now(), clock::unix_millis());
        inner.server.handle_tick(clock::scsi_now());
        let due =
            inner.barriers.awaited.iter().filter(|(_, at)| *at <= now_ms).map(|(version, _)| *version).max();
        if let Some(version) = due {
            inner.barrier_passed(version);
        }
        let looks = inner.look_at_room_at <= now_ms;
        if looks {
            inner.look_at_room_at = now_ms.saturating_add(ROOM_MS);
        }
        self.drive(driver, inner);
        if looks {
            let (unit, services) = (Arc::clone(self), driver.services.clone());
            let look = move || unit.look_at_room(&mut Driver::remote(&services));
            driver.services.io.submit(self.lane(), Box::new(look));
        }
    }

    /// Tells the device server what room the pool has, for the thresholds of thin provisioning. May block.
    fn look_at_room(self: &Arc<Self>, driver: &mut Driver<'_>) {
        // Not served now: asked again soon.
        let Ok(room) = self.volume.room() else { return };
        let resources = StoreResources { available_bytes: room.available_bytes, used_bytes: room.used_bytes };
        let mut inner = self.lock();
        if !inner.closed {
            inner.server.install_resources(clock::scsi_now(), resources);
        }
        self.drive(driver, inner);
    }

    /// Gives the answers that waited for the lease.
    fn answer_under_lease(&self, driver: &mut Driver<'_>) {
        let mut inner = self.lock();
        if inner.unanswered.is_empty() || !self.volume.may_reply() {
            return;
        }
        let unanswered = std::mem::take(&mut inner.unanswered);
        drop(inner);
        for finished in unanswered {
            driver.deliver(finished);
        }
    }

    /// Ends the unit here: nothing more is executed, and every function and task is answered now, except those that are with the
    /// controllers: [`LogicalUnit::proposal_done`] answers them.
    ///
    /// `now` are the groups as the cluster has them since: a SET TARGET PORT GROUPS that asked for them has got what it asked for.
    pub(crate) fn close(self: &Arc<Self>, driver: &mut Driver<'_>, now: Option<&Topology>) {
        self.volume.stop();
        let mut inner = self.lock();
        inner.closed = true;
        let made = now.map(|now| inner.server.made_transition(now)).unwrap_or_default();
        for (task, completion) in made {
            if let Some(task) = inner.tasks.remove(&task) {
                let answer = Answer::Command(Outcome::Reply(reply(completion, &task)));
                driver.deliver(Finished { requester: task.requester, answer });
            }
        }
        let tasks: Vec<Task> =
            inner.tasks.extract_if(|_, task| !task.proposed).map(|(_, task)| task).collect();
        let unanswered = std::mem::take(&mut inner.unanswered);
        let functions: Vec<Requester> = inner.functions.drain().map(|(_, by)| by).collect();
        drop(inner);
        for task in tasks {
            let outcome = match task {
                _ if task.agreed && !task.more_to_do => Outcome::Reply(reply(Completion::good(), &task)),
                _ if task.changed || task.changing => Outcome::Unknown,
                _ => Outcome::NotExecuted,
            };
            driver.deliver(Finished { requester: task.requester, answer: Answer::Command(outcome) });
        }
        // The port waits for the lease, where that is needed.
        for finished in unanswered {
            driver.deliver(finished);
        }
        for requester in functions {
            driver.deliver(Finished { requester, answer: Answer::Function(LuFunctionOutcome::Unknown) });
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic inside the device server leaves it in an unknown state: the process must not go on with it.
        self.inner.lock().unwrap_or_else(|poisoned: PoisonError<_>| {
            tracing::error!(volume = %self.id(), "the device server panicked: ending the process");
            drop(poisoned);
            std::process::abort()
        })
    }
}

impl Inner {
    /// True once the unit has ended here.
    pub(super) fn closed(&self) -> bool {
        self.closed
    }

    /// Commands run under this epoch now.
    fn follow_epoch(&mut self, epoch: Epoch) {
        if self.epoch != epoch {
            self.epoch = epoch;
            self.server.forget_tokens();
        }
    }

    pub(super) fn barrier_passed(&mut self, version: u64) {
        self.barriers.passed = self.barriers.passed.max(version);
        self.barriers.awaited.retain(|(awaited, _)| *awaited > version);
        self.server.handle_barrier(clock::scsi_now(), version);
    }

    /// Tells the device server how an I/O ended, and keeps what a reply may send of it.
    pub(super) fn io_done(&mut self, task: TaskId, result: IoResult) {
        if task == OWN_WORK {
            return self.server.handle_io(clock::scsi_now(), task, result.as_done());
        }
        let Some(entry) = self.tasks.get_mut(&task) else { return };
        let changing = std::mem::take(&mut entry.changing);
        if matches!(result, IoResult::Failed(IoFailure::NotExecuted)) {
            entry.refused = true;
        } else {
            entry.changed |= changing;
        }
        self.server.handle_io(clock::scsi_now(), task, result.as_done());
        if let (IoResult::Read(bytes), Some(entry)) = (result, self.tasks.get_mut(&task)) {
            entry.read = bytes;
        }
    }
}
