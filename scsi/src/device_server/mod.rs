//! The device server of one logical unit, at its owner: the one place where SAM's rules hold for that unit.
//!
//! The way of a command:
//!
//! ```text
//! handle_command -> cdb::parse -> task set (order, TASK SET FULL) -> start: the order of checks -> [Data-Out awaited]
//!   -> execute -> [range locks] -> submit: access checked again -> Action (I/O) -> handle_io -> ... -> Action::Complete
//! ```
//!
//! | Looking for | File |
//! |---|---|
//! | the order of checks | `admission`, which asks [`crate::checks`] |
//! | range locks, submission, what follows an I/O | `block` |
//! | COMPARE AND WRITE, ORWRITE, VERIFY, WRITE SAME | `compare_and_write` |
//! | commands that change the unit's state, PERSISTENT RESERVE IN, barriers, draining | `reservations` |
//! | ACA, QERR, TAS | `contingent_allegiance` |
//! | FORMAT UNIT, SANITIZE | `operation` |
//! | SET TARGET PORT GROUPS | `transition` |
//! | LOG SELECT, what is counted | `statistics` |
//! | EXTENDED COPY, WRITE USING TOKEN | `copy`, `copy_plan` |
//! | tokens, what tells of copies, commands of copy managers | `copy_inform` |
//! | changes of the unit's state that no command asked for | `events` |
//! | ABORT TASK ... LUN RESET, loss of a nexus | `task_management` |
//! | commands that only tell something | `inform` |
//! | the words of the seam | `message` |
//!
//! Invariants: every task completes exactly once; I/O that was submitted is waited for before its task ends or a task
//! management function is answered; no I/O is submitted for a nexus that the installed reservations shut out; GOOD for
//! a change of reservations comes only after the cluster agreed and, here, all I/O of older versions has ended.

mod admission;
mod block;
mod compare_and_write;
mod contingent_allegiance;
mod copy;
mod copy_inform;
mod copy_plan;
mod events;
mod inform;
mod message;
mod operation;
mod provisioning;
mod reservations;
mod statistics;
mod task;
mod task_management;
mod transition;

#[cfg(test)]
mod tests;

use alloc::{
    boxed::Box,
    collections::{BTreeMap, VecDeque},
    vec::Vec,
};

pub use crate::task_set::{TaskAttribute, TaskId};
pub use copy::CopyCommandOut;
pub use copy_inform::CopyRole;
pub use copy_plan::CopyUnit;
pub use message::*;
pub use operation::OWN_WORK;
pub use provisioning::StoreResources;

use crate::{
    cdb::{self, Command},
    copy::tokens::Tokens,
    log_pages::Statistics,
    lu_state::UnixMillis,
    mode::{Interlock, ModeParameters},
    nexus::Nexus,
    range_lock::RangeLocks,
    sense::{AdditionalSense, asc},
    status::Status,
    task_set::{NotAdmitted, TaskSet},
    time::Instant,
};
use contingent_allegiance::Entry;
use events::PendingEvent;
use reservations::ReservationState;
use task::{Stage, Task};
use task_management::{Abort, PendingFunction};

/// The name of a living task was used for a new one. Nothing was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DuplicateTask;

/// What may go on now.
#[derive(Clone, Copy, Debug)]
enum Work {
    /// The task's turn has come.
    Start(TaskId),
    /// The task has its ranges.
    Locked(TaskId),
    /// The task has what it waited for (data, a version, a barrier) and is executed.
    Execute(TaskId),
}

/// Who waits for a Unit Attention to be established.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum UaWaiter {
    Function(u64),
    Task(TaskId),
    /// A LOG SELECT that puts the statistics back.
    LogSelect(TaskId),
    /// A threshold was reached; if it cannot be told now, it is reached again.
    Threshold,
    Nobody,
}

/// The Unit Attention that a status establishes (SPC-5 7.5.10, UA_INTLCK_CTRL).
fn interlocked(interlock: Interlock, status: Status) -> Option<AdditionalSense> {
    match (interlock, status) {
        (Interlock::KeepAndEstablish, Status::Busy) => Some(asc::PREVIOUS_BUSY_STATUS),
        (Interlock::KeepAndEstablish, Status::TaskSetFull) => Some(asc::PREVIOUS_TASK_SET_FULL_STATUS),
        (Interlock::KeepAndEstablish, Status::ReservationConflict) => {
            Some(asc::PREVIOUS_RESERVATION_CONFLICT_STATUS)
        }
        _ => None,
    }
}

/// Executes the commands of one logical unit. Sans-io: `handle_*` tell it what happened, [`DeviceServer::poll_action`]
/// tells what to do.
#[derive(Debug)]
pub struct DeviceServer {
    config: LuConfig,
    mode: ModeParameters,
    /// The cluster's clock at a moment.
    clock: (Instant, UnixMillis),
    topology: Topology,
    reservations: ReservationState,
    task_set: TaskSet,
    /// In boxes: the map moves its neighbours whenever one comes or goes.
    tasks: BTreeMap<TaskId, Box<Task>>,
    locks: RangeLocks<TaskId>,
    functions: VecDeque<PendingFunction>,
    own_work: Option<operation::Work>,
    /// The own work waits for the next tick.
    work_rests: bool,
    /// The echo buffers of WRITE BUFFER.
    echo_buffers: BTreeMap<Nexus, Vec<u8>>,
    copies: BTreeMap<TaskId, copy::Copy>,
    held_copies: copy_inform::HeldCopies,
    tokens: Tokens,
    last_background_copy: u64,
    resources: Option<StoreResources>,
    thresholds_reached: provisioning::Reached,
    statistics: Statistics,
    events: Vec<PendingEvent>,
    last_event: u64,
    ua_waiters: BTreeMap<u64, UaWaiter>,
    last_ua_request: u64,
    /// The Unit Attention reported last to each nexus: commands sent before the port heard of it still carry it.
    reported: BTreeMap<Nexus, u64>,
    work: VecDeque<Work>,
    actions: VecDeque<Action>,
    now: Instant,
}

impl DeviceServer {
    /// A device server without reservations, tasks and topology.
    pub fn new(config: LuConfig) -> DeviceServer {
        DeviceServer {
            config,
            mode: config.mode,
            clock: (Instant(0), UnixMillis(0)),
            topology: Topology::default(),
            reservations: ReservationState::default(),
            task_set: TaskSet::default(),
            tasks: BTreeMap::new(),
            locks: RangeLocks::default(),
            functions: VecDeque::new(),
            own_work: None,
            work_rests: false,
            echo_buffers: BTreeMap::new(),
            copies: BTreeMap::new(),
            held_copies: copy_inform::HeldCopies::default(),
            tokens: Tokens::default(),
            last_background_copy: 0,
            resources: None,
            thresholds_reached: (false, false),
            statistics: Statistics::default(),
            events: Vec::new(),
            last_event: 0,
            ua_waiters: BTreeMap::new(),
            last_ua_request: 0,
            reported: BTreeMap::new(),
            work: VecDeque::new(),
            actions: VecDeque::new(),
            now: Instant(0),
        }
    }

    /// Replaces the configuration (resize, write protection). Ranges of waiting tasks are checked again.
    pub fn install_config(&mut self, config: LuConfig) {
        self.config = config;
        self.take_mode();
    }

    /// The configuration.
    pub fn config(&self) -> &LuConfig {
        &self.config
    }

    /// Replaces the target port groups. A SET TARGET PORT GROUPS that waits for them may end.
    pub fn install_topology(&mut self, topology: Topology) {
        self.topology = topology;
        self.follow_transition();
        self.run();
    }

    /// Follows the mode parameters of the state that is installed.
    fn take_mode(&mut self) {
        self.mode = self.reservations.installed().mode(self.config.mode);
        self.task_set.separate(self.mode.task_set_per_nexus);
        self.start_enabled();
        self.look_at_thresholds();
    }

    /// What the cluster's clock shows at a moment of ours, for the timestamp.
    pub fn install_clock(&mut self, now: Instant, shows: UnixMillis) {
        self.clock = (now, shows);
    }

    /// The mode parameters in force.
    pub fn mode_parameters(&self) -> &ModeParameters {
        &self.mode
    }

    /// A command arrived. Unless its name is in use, exactly one [`Action::Complete`] follows.
    ///
    /// # Errors
    /// [`DuplicateTask`]: the caller has a living task of this name.
    pub fn handle_command(
        &mut self,
        now: Instant,
        request: CommandRequest<'_>,
        data: DataOut<'_>,
    ) -> Result<(), DuplicateTask> {
        self.now = now;
        let id = request.task;
        if self.tasks.contains_key(&id) {
            return Err(DuplicateTask);
        }
        let (attribute, command) = match self.entry(&request) {
            Entry::As(attribute) => (attribute, cdb::parse(request.cdb, &self.config.properties.geometry)),
            Entry::Wrong(sense) => (TaskAttribute::Simple, Err(sense)),
            Entry::Refused(status) => {
                self.refuse_entry(id, request.nexus, status);
                return Ok(());
            }
        };
        let request = CommandRequest { attribute, ..request };
        match self.task_set.admit(id, request.nexus, attribute) {
            Err(NotAdmitted::Duplicate) => return Err(DuplicateTask),
            Err(NotAdmitted::Full) => {
                self.refuse_entry(id, request.nexus, Status::TaskSetFull);
                return Ok(());
            }
            Ok(may_run) => {
                self.tasks.insert(
                    id,
                    Box::new(Task::new(now, &request, command, data, &self.config.properties.geometry)),
                );
                if may_run {
                    self.work.push_back(Work::Start(id));
                }
            }
        }
        self.run();
        Ok(())
    }

    /// The whole Data-Out of an awaited task is there. Unknown tasks (ended meanwhile) are ignored.
    pub fn handle_data_out(&mut self, now: Instant, task: TaskId, data: &[u8]) {
        self.now = now;
        let Some(waiting) = self.tasks.get_mut(&task).filter(|t| !t.data_ready) else { return };
        waiting.take_data(data);
        if waiting.stage == Stage::AwaitingData {
            // It may have been fenced while its data was on the way.
            self.work.push_back(Work::Execute(task));
        }
        self.run();
    }

    /// What to do next; `None` when nothing is to be done before the next event. The shell takes all actions before it
    /// tells of another event.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When the oldest I/O that is under way was submitted: the health of the data path.
    pub fn oldest_submission(&self) -> Option<Instant> {
        let since = |task: &Task| match task.stage {
            Stage::Submitted { since, .. } => Some(since),
            _ => None,
        };
        self.tasks.values().map(Box::as_ref).filter_map(since).min_by_key(|since| since.0)
    }

    /// Number of living tasks.
    pub fn task_count(&self) -> usize {
        self.tasks.len()
    }

    /// Does all that can be done without waiting.
    fn run(&mut self) {
        loop {
            match self.work.pop_front() {
                Some(Work::Start(id)) => self.start(id),
                Some(Work::Locked(id)) => self.after_wait(id, Self::submit_first),
                Some(Work::Execute(id)) => self.after_wait(id, Self::execute),
                None if self.finish_drained() || self.settle_events() || self.go_on_with_work() => {}
                None => break,
            }
        }
    }

    /// Goes on with a task that has waited, if its nexus still has access.
    fn after_wait(&mut self, id: TaskId, next: fn(&mut Self, TaskId)) {
        match self.recheck(id) {
            Some(refused) => self.complete(id, refused),
            None => next(self, id),
        }
    }

    /// The task's turn: the order of checks, then on to its data or its execution.
    fn start(&mut self, id: TaskId) {
        if self.awaits_loss_of_holder(id) {
            return self.set_stage(id, Stage::AwaitingLoss);
        }
        if let Some(refused) = self.admission(id) {
            return self.complete(id, refused);
        }
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let wanted = task.data_out_wanted(&self.config.properties.geometry);
        if !task.data_ready && wanted > 0 {
            task.stage = Stage::AwaitingData;
            return;
        }
        self.execute(id);
    }

    /// All data is there: what the command does.
    fn execute(&mut self, id: TaskId) {
        let Some(Ok(command)) = self.tasks.get(&id).map(|task| task.command) else { return };
        match command {
            Command::Read { .. }
            | Command::Write { .. }
            | Command::WriteAndVerify { .. }
            | Command::Verify { .. }
            | Command::SynchronizeCache { .. }
            | Command::Unmap { .. }
            | Command::WriteSame { .. }
            | Command::CompareAndWrite { .. }
            | Command::OrWrite { .. }
            | Command::WriteAtomic { .. }
            | Command::GetLbaStatus { .. }
            | Command::StartStopUnit { start: false, .. } => self.lock(id, &command),
            Command::Copy(copy) => self.copy_command(id, copy),
            Command::PersistentReserveIn { action, allocation_length } => {
                self.persistent_reserve_in(id, action, allocation_length);
            }
            Command::PersistentReserveOut { .. }
            | Command::Reserve
            | Command::Release
            | Command::PreventAllowMediumRemoval { .. }
            | Command::SetIdentifyingInformation { .. }
            | Command::SetTimestamp { .. }
            | Command::FormatUnit { .. }
            | Command::Sanitize { .. }
            | Command::ModeSelect { .. } => self.change_state(id),
            Command::SetTargetPortGroups { .. } => self.set_target_port_groups(id),
            Command::LogSelect { reset_statistics, .. } => self.log_select(id, reset_statistics),
            Command::WriteBuffer { parameter_list_length } => self.write_buffer(id, parameter_list_length),
            Command::TestUnitReady
            | Command::RequestSense { .. }
            | Command::Inquiry { .. }
            | Command::ModeSense(_)
            | Command::LogSense { .. }
            | Command::ReceiveDiagnosticResults { .. }
            | Command::ReadCapacity10
            | Command::ReadCapacity16 { .. }
            | Command::PreFetch { .. }
            | Command::ReportLuns { .. }
            | Command::ReportTargetPortGroups { .. }
            | Command::ReportSupportedOperationCodes { .. }
            | Command::ReportSupportedTaskManagementFunctions { .. }
            | Command::StartStopUnit { start: true, .. }
            | Command::ReportIdentifyingInformation { .. }
            | Command::ReportTimestamp { .. }
            | Command::ReadBuffer { .. }
            | Command::SendDiagnostic { .. } => {
                let completion = self.inform(id, &command);
                self.complete(id, completion);
            }
        }
    }

    /// Ends a task with a status; or as aborted, if that was asked for meanwhile. With UA_INTLCK_CTRL=11b some statuses
    /// establish a Unit Attention first.
    fn complete(&mut self, id: TaskId, completion: Completion) {
        match interlocked(self.mode.interlock, completion.status) {
            Some(additional)
                if self.tasks.get(&id).is_some_and(|task| task.aborted.is_none() && !task.of_copy) =>
            {
                let Some(task) = self.tasks.get_mut(&id) else { return };
                task.ends_with = Some(completion);
                task.stage = Stage::AwaitingUnitAttention;
                let scope = UaScope::Only(task.nexus);
                self.establish(UaWaiter::Task(id), additional, scope);
            }
            _ => self.end(id, completion),
        }
    }

    fn end(&mut self, id: TaskId, completion: Completion) {
        let Some(task) = self.tasks.remove(&id) else { return };
        self.count(&task, completion.status);
        let Task { nexus, naca, has_aca_attribute, of_copy, .. } = *task;
        let checked = completion.status == Status::CheckCondition && !of_copy;
        let response = match task.aborted {
            Some(how) => how.response(),
            None => {
                if let Some(ua) = completion.unit_attention_reported {
                    self.reported.insert(nexus, ua);
                }
                let descriptor_sense = self.mode.descriptor_sense;
                let completion = completion.with_transfer_len(task.data_out_asked);
                Response::Completed(Completion { descriptor_sense, ..completion })
            }
        };
        let aborted = task.aborted.is_some();
        self.retire(id, response, |server| {
            if checked && !aborted {
                server.check_condition(&nexus, naca, has_aca_attribute);
            }
        });
    }

    /// Ends a task as aborted. Nothing of it is under way.
    fn end_aborted(&mut self, id: TaskId) {
        if let Some(task) = self.tasks.remove(&id) {
            let response = task.aborted.map_or(Response::Aborted, Abort::response);
            self.retire(id, response, |_| {});
        }
    }

    /// `then` runs when the task has left the task set, before the next one starts.
    fn retire(&mut self, id: TaskId, response: Response, then: impl FnOnce(&mut Self)) {
        self.actions.push_back(Action::Complete { task: id, response });
        self.work.extend(self.locks.release(id).into_iter().map(Work::Locked));
        self.task_set.remove(id);
        then(self);
        self.start_enabled();
        self.task_ended(id);
    }
}
