//! What a CHECK CONDITION does to other commands: auto contingent allegiance (ACA, SAM-5 5.9) and QERR (SPC-5 7.5.10).
//!
//! Invariant: while an ACA condition exists no command enters its task set but those that the standard lets in. A task of another
//! nexus that QERR aborts is either answered TASK ABORTED (TAS=1) or told of by a Unit Attention (TAS=0).

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use super::{CommandRequest, Completion, DeviceServer, UaScope, UaWaiter, Work, task_management::Abort};
use crate::{
    cdb,
    mode::QueueError,
    nexus::Nexus,
    sense::{Sense, asc},
    status::Status,
    task_set::{TaskAttribute, TaskId},
};

/// How an arriving command enters the task set.
pub(super) enum Entry {
    /// With this attribute.
    As(TaskAttribute),
    /// To be refused with this sense data when its turn comes.
    Wrong(Sense),
    /// Not at all: it ends with this status.
    Refused(Status),
}

impl DeviceServer {
    /// SAM-5 5.9.2 and 5.9.4: what happens to a command that arrives while an ACA condition exists.
    pub(super) fn entry(&self, request: &CommandRequest<'_>) -> Entry {
        let has_attribute = request.attribute == TaskAttribute::Aca;
        match self.task_set.faulted_for(request.nexus) {
            None if has_attribute => Entry::Wrong(Sense::illegal(asc::INVALID_MESSAGE_ERROR)),
            None => Entry::As(request.attribute),
            Some(faulted) if faulted == request.nexus => {
                match has_attribute && !self.task_set.has_aca_task(request.nexus) {
                    true => Entry::As(TaskAttribute::Aca),
                    false => Entry::Refused(Status::AcaActive),
                }
            }
            // The way out when the faulted initiator is gone.
            Some(_) if is_preempt_and_abort(request.cdb) => Entry::As(TaskAttribute::Aca),
            Some(_) if cdb::naca(request.cdb) => Entry::Refused(Status::AcaActive),
            Some(_) => Entry::Refused(Status::Busy),
        }
    }

    /// A task of this nexus ended with CHECK CONDITION and has left the task set.
    pub(super) fn check_condition(&mut self, nexus: &Nexus, naca: bool, with_aca_attribute: bool) {
        if with_aca_attribute {
            self.clear_aca(nexus);
        }
        if naca {
            self.task_set.fault(nexus);
        }
        let own_only = match self.mode.queue_error {
            QueueError::Continue => return,
            QueueError::AbortAll => self.mode.task_set_per_nexus,
            QueueError::AbortOwn => true,
        };
        let doomed = self.task_set.select(|_, of| !own_only || of == nexus);
        self.abort_for_others(nexus, doomed, |server, cleared, told| {
            let what = asc::COMMANDS_CLEARED_BY_ANOTHER_INITIATOR;
            if told {
                server.establish(UaWaiter::Nobody, what, UaScope::Only(cleared));
            }
        });
    }

    /// Aborts tasks on behalf of a nexus, which is told nothing of its own; `tell` hears of each other nexus that lost tasks, and
    /// whether a Unit Attention is due to it.
    pub(super) fn abort_for_others(
        &mut self,
        on_behalf_of: &Nexus,
        doomed: Vec<TaskId>,
        mut tell: impl FnMut(&mut DeviceServer, Nexus, bool),
    ) -> BTreeSet<TaskId> {
        let nexus_of = |id: &TaskId| self.tasks.get(id).map(|task| task.nexus);
        let others: BTreeSet<Nexus> =
            doomed.iter().filter_map(nexus_of).filter(|of| of != on_behalf_of).collect();
        let tas = self.mode.task_aborted_status;
        let mut waited_for = BTreeSet::new();
        let (own, of_others): (Vec<TaskId>, Vec<TaskId>) = doomed
            .into_iter()
            .partition(|id| self.tasks.get(id).is_none_or(|task| task.nexus == *on_behalf_of));
        waited_for.extend(self.abort(own, Abort::Silently));
        waited_for.extend(self.abort(of_others, if tas { Abort::WithStatus } else { Abort::Silently }));
        for nexus in others {
            tell(self, nexus, !tas);
        }
        waited_for
    }

    /// Ends the ACA condition of this nexus, if it has one: what it blocked goes on.
    pub(super) fn clear_aca(&mut self, nexus: &Nexus) {
        if self.task_set.clear_fault(nexus) {
            self.start_enabled();
        }
    }

    /// Starts every task whose turn has come.
    pub(super) fn start_enabled(&mut self) {
        while let Some(next) = self.task_set.next_enabled() {
            self.work.push_back(Work::Start(next));
        }
    }

    /// A command that does not enter the task set.
    pub(super) fn refuse_entry(&mut self, task: TaskId, nexus: &Nexus, status: Status) {
        if let Some(additional) = super::interlocked(self.mode.interlock, status) {
            self.establish(UaWaiter::Nobody, additional, UaScope::Only(*nexus));
        }
        let response = super::Response::Completed(Completion::status(status));
        self.actions.push_back(super::Action::Complete { task, response });
    }
}

/// PERSISTENT RESERVE OUT, PREEMPT AND ABORT.
fn is_preempt_and_abort(cdb: &[u8]) -> bool {
    matches!(cdb, [0x5f, action, ..] if action & 0x1f == 5)
}
