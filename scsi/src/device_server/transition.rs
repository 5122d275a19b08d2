//! SET TARGET PORT GROUPS: the cluster is asked to make another node the owner, and the answer waits until it is.
//!
//! The transition is one indivisible event to hosts (SPC-5 5.17.2.6): no path shows "transitioning", and GOOD comes when the requested state is
//! in force. Invariants: GOOD only once the cluster's record shows the requested group as the active/optimized one; a refusal, and a
//! transition that was given up, is told with SET TARGET PORT GROUPS COMMAND FAILED.

use alloc::vec::Vec;

use super::{
    Completion, DeviceServer, Topology,
    task::{Stage, Task},
};
use crate::{
    alua::{self, AluaState, Wanted},
    task_set::TaskId,
};

impl Topology {
    /// The group that is active/optimized.
    fn optimized(&self) -> Option<u16> {
        self.groups.iter().find(|group| group.state == AluaState::ActiveOptimized).map(|group| group.id)
    }
}

impl DeviceServer {
    pub(super) fn set_target_port_groups(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get(&id) else { return };
        if let Some(refused) = self.data_length_refusal(task) {
            return self.complete(id, refused);
        }
        let wanted = task.data_out_wanted(&self.config.properties.geometry);
        let len = usize::try_from(wanted).unwrap_or(usize::MAX);
        let parameter_list = task.data.get(..len).unwrap_or(&task.data).to_vec();
        let groups = self.topology.groups.iter().map(|group| (group.id, group.state));
        match alua::wanted(&parameter_list, groups) {
            Err(sense) => self.complete(id, Completion::check(sense)),
            Ok(Wanted::Nothing) => self.complete(id, Completion::good()),
            Ok(Wanted::Optimized(group)) => {
                if let Some(task) = self.tasks.get_mut(&id) {
                    task.transition_to = Some(group);
                }
                self.propose(id, false, parameter_list);
            }
        }
    }

    /// Ends those whose transition is made, or was given up.
    pub(super) fn follow_transition(&mut self) {
        let waiting = self.tasks.iter().filter(|(_, task)| task.stage == Stage::AwaitingTransition);
        let waiting: Vec<(TaskId, Option<u16>)> =
            waiting.map(|(id, task)| (*id, task.transition_to)).collect();
        for (id, to) in waiting {
            if to == self.topology.optimized() {
                self.complete(id, Completion::good());
            } else if to != self.topology.moving_to {
                self.complete(id, Completion::check(alua::SET_FAILED));
            }
        }
    }

    /// The unit ends here because the cluster has made another node the owner: the tasks that asked for just that, whether the
    /// outcome of their proposal was heard or not, with their answers. (All others are the shell's to answer.)
    pub fn made_transition(&self, topology: &Topology) -> Vec<(TaskId, Completion)> {
        let optimized = topology.optimized();
        let asked = |task: &Task| {
            task.transition_to.is_some()
                && task.transition_to == optimized
                && task.aborted.is_none()
                && matches!(task.stage, Stage::Proposed { .. } | Stage::AwaitingTransition)
        };
        let tasks = self.tasks.iter().filter(|(_, task)| asked(task));
        tasks.map(|(id, task)| (*id, Completion::good().with_transfer_len(task.data_out_asked))).collect()
    }
}
