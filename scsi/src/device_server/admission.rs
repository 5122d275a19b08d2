//! Gathers what [`checks`] needs to know of a task: its Unit Attention, the state of its path, the reservations, write
//! protection. The order itself is there.

use super::{Completion, DeviceServer, task::Task};
use crate::{
    alua::AluaState,
    checks::{self, Conditions, Verdict, WriteProtect},
    mode::Interlock,
    pr::access::Access,
    sense::Sense,
    task_set::TaskId,
};

impl DeviceServer {
    /// The order of checks, when a task's turn has come. `None`: it may go on.
    pub(super) fn admission(&mut self, id: TaskId) -> Option<Completion> {
        let reservation = self.reservations.persistent_access(self.tasks.get(&id)?);
        let task = self.tasks.get(&id)?;
        let opcode = task.cdb.first().copied().unwrap_or(0);
        let mut refused = refusal(checks::check(opcode, &task.command, &self.conditions(task, reservation)));
        if self.mode.interlock != Interlock::None
            && let Some(completion) = &mut refused
        {
            // Only REQUEST SENSE takes it out of the queue.
            completion.unit_attention_reported = None;
        }
        // Before any data is fetched: a length that the CDB contradicts.
        refused.or_else(|| self.data_length_refusal(task))
    }

    /// Access and protection once more, for a task that has waited.
    pub(super) fn recheck(&mut self, id: TaskId) -> Option<Completion> {
        let reservation = self.reservations.persistent_access(self.tasks.get(&id)?);
        let task = self.tasks.get(&id)?;
        match &task.command {
            Err(sense) => Some(Completion::check(*sense)),
            Ok(_) if checks::is_exempt(task.cdb.first().copied().unwrap_or(0)) => None,
            Ok(command) => refusal(checks::check_again(command, &self.conditions(task, reservation))),
        }
    }

    fn conditions(&self, task: &Task, persistent_reservation: Access) -> Conditions {
        let already = self.reported.get(&task.nexus).copied();
        Conditions {
            unit_attention: task.unit_attention.filter(|ua| Some(ua.id) != already),
            alua: self.path_state(task),
            spc2_reservation: self.reservations.spc2_access(task),
            persistent_reservation,
            write_protect: self.write_protect(task),
            not_ready: self.not_ready(task),
        }
    }

    /// What FORMAT UNIT or SANITIZE stops.
    fn not_ready(&self, task: &Task) -> Option<Sense> {
        let operation = self.reservations.installed().unit.operation.as_ref()?;
        let admitted = task.command.as_ref().is_ok_and(|command| operation.admits(command));
        (!admitted).then(|| operation.sense(self.progress()))
    }

    /// The state of the group that the task came through. A port that the topology does not know yet is on its way into
    /// it: the host retries.
    fn path_state(&self, task: &Task) -> AluaState {
        let through = task.nexus.port;
        let group = self.topology.groups.iter().find(|group| group.ports.contains(&through));
        group.map_or(AluaState::Transitioning, |group| group.state)
    }

    pub(super) fn write_protect(&self, task: &Task) -> WriteProtect {
        if task.read_only || self.config.read_only {
            WriteProtect::ReadOnly
        } else if self.mode.software_write_protect {
            WriteProtect::Software
        } else {
            WriteProtect::None
        }
    }
}

fn refusal(verdict: Verdict) -> Option<Completion> {
    match verdict {
        Verdict::Proceed => None,
        Verdict::Reply { status, sense, unit_attention_reported } => {
            Some(Completion { sense, unit_attention_reported, ..Completion::status(status) })
        }
    }
}
