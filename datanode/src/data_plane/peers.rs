//! The server side of the interconnect: what other nodes ask of the units that are owned here.
//!
//! Invariants: a forwarded command takes the same way into a unit as one of a local portal; when the connection that
//! brought it is gone, its tasks are aborted, and what its nexuses hold by themselves is given up.

use holdfast_scsi::device_server::{TaskId, TaskManagementFunction};
use holdfast_scsi::time::Instant;

use super::router::{
    Bytes, CommandFor, ForwardToken, InterconnectEvent, LuFunction, LuFunctionOutcome, Origin, Outcome,
    TaskManagementFor,
};
use super::worker::Worker;
use crate::lu::{Driver, LuAnswer, RequestName, Requester};

impl Worker {
    pub(super) fn interconnect_event(&mut self, now: Instant, event: InterconnectEvent) {
        match event {
            InterconnectEvent::Outcome { token, outcome } => self.outcome(now, token, outcome),
            InterconnectEvent::TaskManagementDone { token, outcome } => {
                self.function_done(now, token, outcome)
            }
            InterconnectEvent::NexusLossDone { token } => self.nexus_loss_done(token),
            InterconnectEvent::Command { origin, command } => self.peer_command(now, origin, &command),
            InterconnectEvent::DataOut { origin, data } => {
                if let Some((unit, task, _)) = self.peer_tasks.get(&origin) {
                    let (unit, task) = (unit.clone(), *task);
                    unit.data_out(&mut self.driver(), task, Bytes::new(data));
                }
            }
            InterconnectEvent::Abort { origin } => {
                if let Some((unit, task, nexus)) = self.peer_tasks.get(&origin) {
                    let (unit, task, nexus) = (unit.clone(), *task, *nexus);
                    unit.abort(&mut self.driver(), &nexus, task);
                }
            }
            InterconnectEvent::TaskManagement { origin, request } => {
                self.peer_function(now, origin, &request)
            }
            InterconnectEvent::NexusLoss { origin, nexus } => {
                let table = self.table.clone();
                table.nexus_loss(&mut self.driver(), &nexus);
                self.interconnect.answer_nexus_loss(now, origin);
            }
            InterconnectEvent::Disconnected { connection } => self.peer_gone(connection),
        }
    }

    fn peer_command(&mut self, now: Instant, origin: Origin, command: &CommandFor) {
        let Some(unit) = self.table.get(command.volume) else {
            return self.interconnect.answer(now, origin, Outcome::NotExecuted);
        };
        // The nexus of a copy lives on at its port when the connection to the copy manager is gone.
        if command.copy.is_none() {
            self.peer_nexuses.entry(origin.connection).or_default().insert(command.nexus);
        }
        let requester = Requester { worker: self.index, request: RequestName::Peer(origin) };
        let task = unit.command(&mut self.driver(), requester, command);
        // Answers that came at once are carried out after this, and remove the entry again.
        self.peer_tasks.insert(origin, (unit, task, command.nexus));
    }

    fn peer_function(&mut self, now: Instant, origin: Origin, request: &TaskManagementFor) {
        let Some(unit) = self.table.get(request.volume) else {
            return self.interconnect.answer_task_management(now, origin, LuFunctionOutcome::NotExecuted);
        };
        let function = match request.function {
            LuFunction::AbortTask(token) => TaskManagementFunction::AbortTask(self.peer_task(origin, token)),
            LuFunction::QueryTask(token) => TaskManagementFunction::QueryTask(self.peer_task(origin, token)),
            LuFunction::AbortTaskSet => TaskManagementFunction::AbortTaskSet,
            LuFunction::ClearTaskSet => TaskManagementFunction::ClearTaskSet,
            LuFunction::LogicalUnitReset => TaskManagementFunction::LogicalUnitReset,
            LuFunction::ClearAca => TaskManagementFunction::ClearAca,
            LuFunction::ItNexusReset => TaskManagementFunction::ItNexusReset,
            LuFunction::QueryTaskSet => TaskManagementFunction::QueryTaskSet,
        };
        let requester = Requester { worker: self.index, request: RequestName::Peer(origin) };
        unit.task_management(&mut self.driver(), requester, request.epoch, &request.nexus, function);
    }

    /// The task of a peer's command; a number that no task has, if there is none.
    fn peer_task(&self, origin: Origin, token: ForwardToken) -> TaskId {
        let named = Origin { connection: origin.connection, token };
        self.peer_tasks.get(&named).map_or(TaskId(0), |(_, task, _)| *task)
    }

    fn peer_gone(&mut self, connection: u64) {
        let gone: Vec<Origin> =
            self.peer_tasks.keys().filter(|origin| origin.connection == connection).copied().collect();
        for origin in gone {
            if let Some((unit, task, nexus)) = self.peer_tasks.remove(&origin) {
                unit.abort(&mut self.driver(), &nexus, task);
            }
        }
        let table = self.table.clone();
        for nexus in self.peer_nexuses.remove(&connection).unwrap_or_default() {
            table.nexus_loss(&mut self.driver(), &nexus);
        }
    }

    /// The agent's answer to a unit.
    pub(super) fn lu_answer(&mut self, answer: LuAnswer) {
        match answer {
            LuAnswer::Proposal { unit, task, result } => unit.proposal_done(&mut self.driver(), task, result),
            LuAnswer::Event { unit, id, result } => unit.event_done(&mut self.driver(), id, result),
            LuAnswer::Established { unit, id, result } => {
                unit.unit_attention_done(&mut self.driver(), id, result)
            }
            LuAnswer::BarrierPassed { unit, version } => unit.barrier_done(&mut self.driver(), version),
        }
    }

    fn driver(&mut self) -> Driver<'_> {
        Driver { services: &self.services, local: Some((self.index, &mut self.answers)) }
    }
}
