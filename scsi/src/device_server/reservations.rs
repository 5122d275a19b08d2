//! The unit's state at its owner: the commands that change it, PERSISTENT RESERVE IN, installed versions.
//!
//! A request is validated against the installed state. A refusal is final; a change is proposed to the cluster and
//! becomes GOOD when it is committed, its barrier has passed, it is installed here, and, if it takes access away, all
//! I/O submitted under older versions has ended. What shows the state (PERSISTENT RESERVE IN, a request that changes
//! nothing) waits until the barrier of the state shown has passed. Invariant: versions installed only grow.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

use super::{
    Action, Completion, DeviceServer, ProposalOutcome, Work,
    inform::parameter_data,
    task::{Stage, Step, Task},
};
use crate::{
    cdb::{Command, PrInAction},
    lu_state::{self, Applied, Change, Context, LuState, Operation},
    nexus::{Nexus, RelativePort},
    pr::{
        Relation,
        access::{self, Access},
        report,
        state::Refusal,
    },
    sense::{Sense, SenseKey, asc},
    status::Status,
    task_set::TaskId,
    time::Instant,
};

/// What is installed, and how far it is agreed on.
#[derive(Debug, Default)]
pub(super) struct ReservationState {
    installed: LuState,
    version: u64,
    /// Newest version whose barrier has passed.
    settled: u64,
    /// Newest version whose barrier was asked for.
    asked: u64,
    /// Installed versions whose older I/O has not ended, oldest first.
    undrained: VecDeque<u64>,
    /// Tasks in [`Stage::AwaitingDrain`].
    draining: Vec<TaskId>,
    /// How nexuses that sent commands stand to the installed state: registrants are searched once for each nexus and version, not
    /// for each command. Never more than [`RELATIONS_MAX`].
    relations: BTreeMap<Nexus, Relation>,
}

/// Nexuses that are remembered; of more than these some are searched for again.
const RELATIONS_MAX: usize = 4096;

impl ReservationState {
    pub(super) fn installed(&self) -> &LuState {
        &self.installed
    }

    pub(super) fn installed_version(&self) -> u64 {
        self.version
    }

    /// Whether the persistent reservation lets a task's command pass.
    pub(super) fn persistent_access(&mut self, task: &Task) -> Access {
        let (view, nexus, relations) = (self.installed.reservations.view(), &task.nexus, &mut self.relations);
        let Ok(command) = &task.command else { return access::check_undecoded(&task.cdb, &view, nexus) };
        access::check_related(command, &view, nexus, || {
            if let Some(known) = relations.get(nexus) {
                return *known;
            }
            let found = view.relation_of(nexus);
            if relations.len() >= RELATIONS_MAX {
                relations.clear();
            }
            relations.insert(*nexus, found);
            found
        })
    }

    pub(super) fn spc2_access(&self, task: &Task) -> Access {
        let Some(holder) = &self.installed.unit.spc2_holder else { return Access::Allowed };
        let is_holder = *holder == task.nexus;
        match &task.command {
            Ok(command) => access::check_spc2(command, is_holder),
            Err(_) => access::check_undecoded_spc2(&task.cdb, is_holder),
        }
    }

    fn drained(&self, version: u64) -> bool {
        self.version >= version && self.undrained.front().is_none_or(|oldest| *oldest > version)
    }
}

impl DeviceServer {
    /// Installs the state of a newer version; an older or equal one is ignored. Tasks that wait for data or ranges and
    /// that it shuts out end with RESERVATION CONFLICT at once.
    pub fn install_state(&mut self, now: Instant, version: u64, state: LuState) {
        self.now = now;
        if version <= self.reservations.version {
            return;
        }
        self.reservations.installed = state;
        self.reservations.relations.clear();
        self.take_mode();
        self.follow_operation();
        self.reservations.version = version;
        self.reservations.undrained.push_back(version);
        let waiting: Vec<(TaskId, Stage)> = self.tasks.iter().map(|(id, task)| (*id, task.stage)).collect();
        for (id, stage) in waiting {
            match stage {
                Stage::AwaitingData | Stage::AwaitingLock => {
                    if let Some(refused) = self.recheck(id) {
                        self.complete(id, refused);
                    }
                }
                Stage::AwaitingVersion(older) if version > older => self.work.push_back(Work::Execute(id)),
                // It shows the new state now and waits for the new barrier.
                Stage::AwaitingBarrier => self.work.push_back(Work::Execute(id)),
                _ => {}
            }
        }
        self.run();
    }

    /// The state installed, and its version.
    pub fn state(&self) -> (u64, &LuState) {
        (self.reservations.version, &self.reservations.installed)
    }

    /// The barrier of this version (and with it of all older ones) has passed.
    pub fn handle_barrier(&mut self, now: Instant, version: u64) {
        self.now = now;
        self.settle(version);
        self.run();
    }

    /// True if this version is installed and all I/O submitted under older ones has ended.
    pub fn reservations_drained(&self, version: u64) -> bool {
        self.reservations.drained(version)
    }

    fn settle(&mut self, version: u64) {
        if version <= self.reservations.settled {
            return;
        }
        self.reservations.settled = version;
        if self.is_settled() {
            let waiting = self.tasks.iter().filter(|(_, task)| task.stage == Stage::AwaitingBarrier);
            self.work.extend(waiting.map(|(id, _)| Work::Execute(*id)));
        }
    }

    fn is_settled(&self) -> bool {
        self.reservations.settled >= self.reservations.version
    }

    /// Lets a task wait whose answer shows a state that is not settled.
    fn await_barrier(&mut self, id: TaskId) {
        self.set_stage(id, Stage::AwaitingBarrier);
        let version = self.reservations.version;
        if self.reservations.asked < version {
            self.reservations.asked = version;
            self.actions.push_back(Action::AwaitBarrier { version });
        }
    }

    pub(super) fn persistent_reserve_in(&mut self, id: TaskId, action: PrInAction, allocation_length: u16) {
        if !self.is_settled() {
            return self.await_barrier(id);
        }
        let view = self.reservations.installed.reservations.view();
        let data = parameter_data(u32::from(allocation_length), |out| {
            report::persistent_reserve_in(action, &view, allocation_length, out)
        });
        self.complete(id, Completion::bytes(data));
    }

    /// A command that changes the unit's state: validated here, decided by the cluster.
    pub(super) fn change_state(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get(&id) else { return };
        if let Some(refused) = self.data_length_refusal(task) {
            return self.complete(id, refused);
        }
        if self.awaits_event(&task.nexus) {
            return self.set_stage(id, Stage::AwaitingEvent);
        }
        let Task { nexus, cdb, .. } = **task;
        let parameter_list = task.data.clone();
        let change = Change::Command { nexus: &nexus, cdb: &cdb, parameter_list: &parameter_list };
        let mut next = self.reservations.installed.clone();
        let validated = self.judge(&mut next, &change);
        match validated {
            Err(Refusal::Conflict) => self.complete(id, Completion::status(Status::ReservationConflict)),
            Err(Refusal::Sense(sense)) => self.complete(id, Completion::check(sense)),
            Ok(applied) if !applied.changed => match self.is_settled() {
                true => self.complete(id, Completion::good()),
                false => self.await_barrier(id),
            },
            Ok(applied) => {
                let drains = applied.narrowed || !applied.abort_tasks_of.is_empty();
                let write_cache_goes = self.mode.write_cache && !next.mode(self.config.mode).write_cache;
                if let Some(task) = self.tasks.get_mut(&id) {
                    task.flushes = write_cache_goes;
                }
                self.propose(id, drains, parameter_list);
            }
        }
    }

    /// Proposes the command of a task against the installed version.
    pub(super) fn propose(&mut self, id: TaskId, drains: bool, parameter_list: Vec<u8>) {
        let Some(Task { nexus, cdb, .. }) = self.tasks.get(&id).map(Box::as_ref) else { return };
        let (nexus, cdb, expected_version) = (*nexus, *cdb, self.reservations.version);
        self.set_stage(id, Stage::Proposed { expected_version, drains });
        self.actions.push_back(Action::ProposeChange {
            task: id,
            nexus: Box::new(nexus),
            expected_version,
            cdb,
            parameter_list,
        });
    }

    /// True for a FORMAT UNIT or SANITIZE that is answered when the work is done.
    fn awaits_operation(&self, task: &Task) -> bool {
        let begins = matches!(task.command, Ok(Command::FormatUnit { .. } | Command::Sanitize { .. }));
        let running = self.reservations.installed.unit.operation.as_ref().is_some_and(Operation::is_running);
        let immediate = task.command.is_ok_and(|command| lu_state::is_immediate(&command, &task.data));
        begins && running && !immediate
    }

    /// What a change would do to this state.
    pub(super) fn judge(&self, state: &mut LuState, change: &Change<'_>) -> Result<Applied, Refusal> {
        let ports: Vec<RelativePort> =
            self.topology.groups.iter().flat_map(|g| g.ports.iter().copied()).collect();
        let context = Context {
            ports: &ports,
            geometry: self.config.properties.geometry,
            mode_default: self.config.mode,
            now: self.cluster_clock(),
        };
        state.apply(change, &context)
    }

    /// A proposal ended. GOOD follows when the change is in force here too.
    pub fn handle_proposal(&mut self, now: Instant, task: TaskId, outcome: ProposalOutcome) {
        self.now = now;
        let Some(proposer) = self.tasks.get(&task) else { return };
        let Stage::Proposed { expected_version, drains } = proposer.stage else { return };
        let aborting = proposer.aborted.is_some();
        match outcome {
            ProposalOutcome::Committed { .. } if proposer.transition_to.is_some() && aborting => {
                self.end_aborted(task);
            }
            ProposalOutcome::Committed { version } if proposer.transition_to.is_some() => {
                self.set_stage(task, Stage::AwaitingTransition);
                self.settle(version);
                self.follow_transition();
            }
            ProposalOutcome::Committed { version } => {
                self.set_stage(task, Stage::AwaitingDrain { version, drains });
                self.reservations.draining.push(task);
                self.settle(version);
            }
            ProposalOutcome::Conflict => self.complete(task, Completion::status(Status::ReservationConflict)),
            ProposalOutcome::Refused(sense) => self.complete(task, Completion::check(sense)),
            ProposalOutcome::VersionChanged if aborting => self.end_aborted(task),
            ProposalOutcome::VersionChanged => {
                self.set_stage(task, Stage::AwaitingVersion(expected_version));
                if self.reservations.version > expected_version {
                    self.work.push_back(Work::Execute(task));
                }
            }
            ProposalOutcome::NotProposed => self.complete(task, Completion::status(Status::Busy)),
            ProposalOutcome::Unknown => {
                let sense = Sense::new(SenseKey::AbortedCommand, asc::COMMUNICATION_FAILURE);
                self.complete(task, Completion::check(sense));
            }
        }
        self.run();
    }

    /// Reports versions whose older I/O has ended, and ends the tasks that waited for that. True if any task ended.
    pub(super) fn finish_drained(&mut self) -> bool {
        if !self.reservations.undrained.is_empty() {
            let submitted = |task: &Task| match task.stage {
                Stage::Submitted { version, .. } => Some(version),
                // The pieces are waited for where they are done; one that is aborted ends everywhere first.
                Stage::Copying { version } if task.aborted.is_some() => Some(version),
                _ => None,
            };
            let oldest = self.tasks.values().map(Box::as_ref).filter_map(submitted).min().unwrap_or(u64::MAX);
            while let Some(version) = self.reservations.undrained.pop_front_if(|version| *version <= oldest) {
                self.actions.push_back(Action::ReservationsDrained { version });
            }
        }
        let state = &self.reservations;
        let in_force = |id: &TaskId| match self.tasks.get(id).map(|task| task.stage) {
            Some(Stage::AwaitingDrain { version, drains: true }) => state.drained(version),
            Some(Stage::AwaitingDrain { version, drains: false }) => state.version >= version,
            _ => true,
        };
        let Some(at) = state.draining.iter().position(in_force) else { return false };
        let id = self.reservations.draining.remove(at);
        match self.tasks.get(&id) {
            // The write cache is off now: what it still holds has been acknowledged.
            Some(task) if self.awaits_operation(task) => self.set_stage(id, Stage::AwaitingOperation),
            Some(task) if task.flushes => {
                self.submit(id, Step::Flush, Action::Flush { task: id, extent: None })
            }
            _ => self.complete(id, Completion::good()),
        }
        true
    }
}
