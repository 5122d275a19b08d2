//! Task management functions (SAM-5 clause 7), preemption's aborts, and the loss of a nexus.
//!
//! Invariants: what is under way outside is waited for before its task ends and before a function is answered; a task
//! that was aborted for another nexus gets TASK ABORTED (TAS=1), or its nexus is told by a Unit Attention (TAS=0), which
//! is established in the cluster before the function is answered.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use super::{
    Action, Completion, DeviceServer, Response, TaskManagementFunction, TaskManagementRequest, TmfResponse,
    UaScope, UaWaiter, UnitEvent, task::Stage,
};
use crate::{
    nexus::Nexus,
    sense::{AdditionalSense, asc},
    status::Status,
    task_set::TaskId,
    time::Instant,
};

/// How an aborted task ends (SAM-5 5.6, TAS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Abort {
    /// Nothing is sent.
    Silently,
    /// With TASK ABORTED.
    WithStatus,
}

impl Abort {
    pub(super) const fn response(self) -> Response {
        match self {
            Abort::Silently => Response::Aborted,
            Abort::WithStatus => Response::Completed(Completion::status(Status::TaskAborted)),
        }
    }
}

/// A function that is not answered yet.
#[derive(Debug)]
pub(super) struct PendingFunction {
    id: u64,
    tasks: BTreeSet<TaskId>,
    unit_attentions: BTreeSet<u64>,
    event: Option<u64>,
    response: TmfResponse,
}

impl PendingFunction {
    fn is_done(&self) -> bool {
        self.tasks.is_empty() && self.unit_attentions.is_empty() && self.event.is_none()
    }
}

impl DeviceServer {
    /// A task management request arrived, behind all commands that it covers. Exactly one
    /// [`Action::TaskManagementDone`] follows.
    pub fn handle_task_management(&mut self, now: Instant, request: TaskManagementRequest<'_>) {
        self.now = now;
        let TaskManagementRequest { id, nexus, function } = request;
        let found = |found: bool| if found { TmfResponse::Succeeded } else { TmfResponse::Complete };
        match function {
            TaskManagementFunction::QueryTask(task) => {
                self.answer(id, found(self.task_set.has(task, nexus)));
            }
            TaskManagementFunction::QueryTaskSet => self.answer(id, found(self.task_set.has_any_of(nexus))),
            // Without effect, but complete, for all but the faulted nexus.
            TaskManagementFunction::ClearAca => {
                let own = self.task_set.select(|_, of| of == nexus);
                let with_attribute = own
                    .into_iter()
                    .filter(|id| self.tasks.get(id).is_some_and(|task| task.has_aca_attribute));
                let doomed = with_attribute.collect();
                self.clear_aca(nexus);
                self.abort_for(id, doomed, Vec::new());
            }
            TaskManagementFunction::AbortTask(task) if !self.task_set.has(task, nexus) => {
                self.answer(id, TmfResponse::TaskDoesNotExist);
            }
            TaskManagementFunction::AbortTask(task) => self.abort_for(id, Vec::from([task]), Vec::new()),
            TaskManagementFunction::AbortTaskSet => {
                let own = self.task_set.select(|_, of| of == nexus);
                self.abort_for(id, own, Vec::new());
            }
            TaskManagementFunction::ClearTaskSet => {
                // With TST=001b the task set is the nexus's own.
                let own_only = self.mode.task_set_per_nexus;
                let doomed = self.task_set.select(|_, of| !own_only || of == nexus);
                let mut told = Vec::new();
                let waited_for = self.abort_for_others(nexus, doomed, |_, other, due| {
                    if due {
                        told.push((asc::COMMANDS_CLEARED_BY_ANOTHER_INITIATOR, UaScope::Only(other)));
                    }
                });
                self.wait(id, waited_for, told, None);
            }
            TaskManagementFunction::ItNexusReset => {
                let mut own = self.task_set.select(|_, of| of == nexus);
                own.extend(self.background_copies(Some(nexus)));
                self.held_copies.discard_of(Some(nexus));
                self.clear_aca(nexus);
                let event = self.begin_event(UnitEvent::NexusLost(*nexus), Some(id));
                let waited_for = self.abort(own, Abort::Silently);
                let told = Vec::from([(asc::I_T_NEXUS_LOSS, UaScope::Only(*nexus))]);
                self.wait(id, waited_for, told, Some(event));
            }
            TaskManagementFunction::LogicalUnitReset => {
                self.task_set.clear_faults();
                let mut all = self.task_set.select(|_, _| true);
                all.extend(self.background_copies(None));
                self.held_copies.discard_of(None);
                let event = self.begin_event(UnitEvent::Reset(*nexus), Some(id));
                let waited_for = self.abort_for_others(nexus, all, |_, _, _| {});
                let told = Vec::from([(asc::BUS_DEVICE_RESET, UaScope::All)]);
                self.wait(id, waited_for, told, Some(event));
            }
        }
        self.run();
    }

    /// PREEMPT AND ABORT: all tasks of these nexuses. Its own GOOD waits for those under way.
    pub fn abort_tasks_of(&mut self, now: Instant, nexuses: &[Nexus]) {
        self.now = now;
        for nexus in nexuses {
            self.clear_aca(nexus);
        }
        let mut doomed = self.task_set.select(|_, of| nexuses.contains(of));
        doomed.extend(nexuses.iter().flat_map(|nexus| self.background_copies(Some(nexus))));
        let how = if self.mode.task_aborted_status { Abort::WithStatus } else { Abort::Silently };
        self.abort(doomed, how);
        self.run();
    }

    /// The nexus is gone: its tasks end, and its SPC-2 reservation. Registrations stay.
    pub fn handle_nexus_loss(&mut self, now: Instant, nexus: &Nexus) {
        self.now = now;
        self.reported.remove(nexus);
        self.echo_buffers.remove(nexus);
        self.begin_event(UnitEvent::NexusLost(*nexus), None);
        let mut own = self.task_set.select(|_, of| of == nexus);
        own.extend(self.background_copies(Some(nexus)));
        self.held_copies.discard_of(Some(nexus));
        self.clear_aca(nexus);
        self.abort(own, Abort::Silently);
        self.run();
    }

    /// A Unit Attention that was asked for is established, or certainly not known to be.
    pub fn handle_unit_attention(&mut self, now: Instant, id: u64, established: bool) {
        self.now = now;
        match self.ua_waiters.remove(&id) {
            Some(UaWaiter::Task(task)) => {
                // Not established: the status says all that is known.
                let ends_with = self.tasks.get_mut(&task).and_then(|task| task.ends_with.take());
                self.end(task, ends_with.unwrap_or(Completion::status(Status::Busy)));
            }
            Some(UaWaiter::LogSelect(task)) => self.log_selected(task, established),
            Some(UaWaiter::Function(function)) => {
                for pending in self.functions.iter_mut().filter(|pending| pending.id == function) {
                    pending.unit_attentions.remove(&id);
                    if !established {
                        pending.response = TmfResponse::Rejected;
                    }
                }
                self.answer_finished();
            }
            Some(UaWaiter::Threshold) if !established => self.thresholds_reached = Default::default(),
            Some(UaWaiter::Threshold | UaWaiter::Nobody) | None => {}
        }
        self.run();
    }

    /// Asks for a Unit Attention in the whole cluster; `waiter` goes on when it is certain.
    pub(super) fn establish(&mut self, waiter: UaWaiter, additional: AdditionalSense, scope: UaScope) -> u64 {
        self.last_ua_request = self.last_ua_request.saturating_add(1);
        let id = self.last_ua_request;
        self.ua_waiters.insert(id, waiter);
        self.actions.push_back(Action::EstablishUnitAttention { id, additional, scope: Box::new(scope) });
        id
    }

    /// A task has ended: functions that waited for it may be answered.
    pub(super) fn task_ended(&mut self, task: TaskId) {
        if self.functions.is_empty() {
            return;
        }
        for function in &mut self.functions {
            function.tasks.remove(&task);
        }
        self.answer_finished();
    }

    /// What a function started has ended, well or not.
    pub(super) fn event_ended(&mut self, function: u64, well: bool) {
        for pending in self.functions.iter_mut().filter(|pending| pending.id == function) {
            pending.event = None;
            if !well {
                pending.response = TmfResponse::Rejected;
            }
        }
        self.answer_finished();
    }

    fn abort_for(&mut self, id: u64, doomed: Vec<TaskId>, told: Vec<(AdditionalSense, UaScope)>) {
        let tasks = self.abort(doomed, Abort::Silently);
        self.wait(id, tasks, told, None);
    }

    /// Answers a function once these tasks have ended and all the rest is established.
    fn wait(
        &mut self,
        id: u64,
        tasks: BTreeSet<TaskId>,
        told: Vec<(AdditionalSense, UaScope)>,
        event: Option<u64>,
    ) {
        let unit_attentions = told
            .into_iter()
            .map(|(additional, scope)| self.establish(UaWaiter::Function(id), additional, scope))
            .collect();
        self.functions.push_back(PendingFunction {
            id,
            tasks,
            unit_attentions,
            event,
            response: TmfResponse::Complete,
        });
        self.answer_finished();
    }

    /// Ends tasks; returns those that end only when what is under way has ended.
    pub(super) fn abort(&mut self, doomed: Vec<TaskId>, how: Abort) -> BTreeSet<TaskId> {
        let mut waited_for = BTreeSet::new();
        for id in doomed {
            match self.tasks.get_mut(&id) {
                Some(task) if task.stage.is_under_way() => {
                    task.aborted = Some(how);
                    if matches!(task.stage, Stage::Copying { .. }) {
                        self.actions.push_back(Action::CancelCopyCommand { task: id });
                    }
                    waited_for.insert(id);
                }
                Some(task) => {
                    task.aborted = Some(how);
                    self.end_aborted(id);
                }
                None => {}
            }
        }
        waited_for
    }

    fn answer(&mut self, id: u64, response: TmfResponse) {
        self.actions.push_back(Action::TaskManagementDone { id, response });
    }

    fn answer_finished(&mut self) {
        let actions = &mut self.actions;
        self.functions.retain(|function| {
            if function.is_done() {
                let PendingFunction { id, response, .. } = *function;
                actions.push_back(Action::TaskManagementDone { id, response });
            }
            !function.is_done()
        });
    }
}
