//! Task management functions of a session, to the owner of the LUN and back.
//!
//! Invariants: a function reaches the owner behind every command of its session to that LUN that was submitted before; commands
//! that are still held here are ended here, without ever being executed; a function whose effect is not certain is
//! answered as rejected, never as complete; a query is answered by whoever has the command, and a command that is held here
//! is in the task set.

use holdfast_iscsi::{
    TaskManagement, TaskManagementFunction as IscsiFunction, TaskManagementId, TaskManagementResponse,
    TaskTag,
};
use holdfast_scsi::device_server::{TaskId, TaskManagementFunction};
use holdfast_scsi::lun::Lun;
use holdfast_scsi::time::Instant;

use super::commands::{Kind, Owner, Place, Request};
use super::router::{ForwardToken, LuFunction, LuFunctionOutcome, Outcome, TaskManagementFor};
use super::worker::Worker;
use crate::lu::{Driver, RequestName, Requester};

/// A function on its way.
#[derive(Clone, Copy)]
pub(super) struct Function {
    id: TaskManagementId,
    what: What,
    /// One of the resets that a reset of several units is made of: answered together.
    grouped: bool,
}

/// The resets that TARGET WARM RESET or I_T NEXUS RESET is made of.
#[derive(Debug, Default)]
pub(super) struct Group {
    missing: usize,
    rejected: bool,
}

/// What it does.
#[derive(Clone, Copy)]
enum What {
    AbortTask(TaskTag),
    AbortTaskSet,
    ClearTaskSet,
    LogicalUnitReset,
    ClearAca,
    ItNexusReset,
    QueryTask(TaskTag),
    QueryTaskSet,
    QueryAsynchronousEvent,
}

impl Worker {
    pub(super) fn task_management(&mut self, now: Instant, connection: u64, request: &TaskManagement) {
        let what = match request.function {
            IscsiFunction::AbortTask(tag) => What::AbortTask(tag),
            IscsiFunction::AbortTaskSet => What::AbortTaskSet,
            IscsiFunction::ClearTaskSet => What::ClearTaskSet,
            IscsiFunction::LogicalUnitReset => What::LogicalUnitReset,
            IscsiFunction::ClearAca => What::ClearAca,
            IscsiFunction::QueryTask(tag) => What::QueryTask(tag),
            IscsiFunction::QueryTaskSet => What::QueryTaskSet,
            IscsiFunction::QueryAsynchronousEvent => What::QueryAsynchronousEvent,
            IscsiFunction::TargetWarmReset => {
                return self.reset_all(now, connection, request.id, What::LogicalUnitReset);
            }
            IscsiFunction::ItNexusReset => {
                return self.reset_all(now, connection, request.id, What::ItNexusReset);
            }
            IscsiFunction::TargetColdReset => {
                // It would end the sessions of all other hosts.
                return self.answer_function(
                    now,
                    connection,
                    request.id,
                    TaskManagementResponse::NotSupported,
                );
            }
        };
        let lun = Lun::from_bytes(request.lun);
        let Some(session) = self.connections.get_mut(&connection).and_then(|p| p.session()) else { return };
        if session.port.mapped(&lun).is_none() {
            return self.answer_function(
                now,
                connection,
                request.id,
                TaskManagementResponse::LunDoesNotExist,
            );
        }
        self.end_held(now, connection, lun, what);
        if let What::AbortTask(tag) = what
            && self.pending(connection, tag).is_none()
        {
            // It was held and has been ended, or its answer was under way: either way it is no more.
            return self.answer_function(now, connection, request.id, TaskManagementResponse::Complete);
        }
        // What is known here does not wait behind what is held.
        if self.shared.gate.open(now.0)
            && let Some(response) = self.query_here(connection, lun, what)
        {
            return self.answer_function(now, connection, request.id, response);
        }
        let token = self.token();
        self.begin(
            now,
            token,
            connection,
            lun,
            Kind::Function(Function { id: request.id, what, grouped: false }),
        );
    }

    /// The answer to a query, as far as no owner has to be asked.
    fn query_here(&mut self, connection: u64, lun: Lun, what: What) -> Option<TaskManagementResponse> {
        let found = Some(TaskManagementResponse::Succeeded([0; 3]));
        // Held, or ended at the owner while its data is still on its way: not answered either way.
        let is_here = |request: &Request| match request {
            Request { kind: Kind::Command(pending), place, .. } => {
                matches!(place, Place::Held) || pending.early.is_some()
            }
            _ => false,
        };
        let session = self.connections.get_mut(&connection)?.session()?;
        match what {
            What::QueryTask(tag) => match session.by_tag.get(&tag).and_then(|token| self.requests.get(token))
            {
                Some(request) if is_here(request) => found,
                Some(_) => None,
                None => Some(TaskManagementResponse::Complete),
            },
            What::QueryTaskSet => {
                let mut requests = session.by_tag.values().filter_map(|token| self.requests.get(token));
                requests.any(|request| request.lun == lun && is_here(request)).then_some(found).flatten()
            }
            What::QueryAsynchronousEvent => Some(match session.port.query_asynchronous_event(&lun) {
                Some(information) => TaskManagementResponse::Succeeded(information),
                None => TaskManagementResponse::Complete,
            }),
            _ => None,
        }
    }

    /// TARGET WARM RESET resets every logical unit that the host has mapped, which it could do one by one; I_T NEXUS RESET
    /// what this nexus has in them.
    fn reset_all(&mut self, now: Instant, connection: u64, id: TaskManagementId, what: What) {
        let Some(session) = self.connections.get_mut(&connection).and_then(|p| p.session()) else { return };
        let luns: Vec<Lun> = session.port.map().filter_map(|(number, _)| Lun::from_number(number)).collect();
        if luns.is_empty() {
            return self.answer_function(now, connection, id, TaskManagementResponse::Complete);
        }
        session.resets.insert(id, Group { missing: luns.len(), rejected: false });
        for lun in luns {
            self.end_held(now, connection, lun, what);
            let token = self.token();
            let function = Function { id, what, grouped: true };
            self.begin(now, token, connection, lun, Kind::Function(function));
        }
    }

    /// Ends commands that the function covers and that no owner knows: held ones, and those that have ended there but
    /// were not answered yet.
    fn end_held(&mut self, now: Instant, connection: u64, lun: Lun, what: What) {
        let Some(session) = self.connections.get_mut(&connection).and_then(|p| p.session()) else { return };
        for (tag, token) in session.by_tag.clone() {
            let Some(Request { lun: of, kind: Kind::Command(pending), place, .. }) =
                self.requests.get(&token)
            else {
                continue;
            };
            if !matches!(place, Place::Held) && pending.early.is_none() {
                continue;
            }
            let covered = match what {
                What::AbortTask(aborted) => aborted == tag,
                What::AbortTaskSet | What::ClearTaskSet | What::LogicalUnitReset | What::ItNexusReset => {
                    *of == lun
                }
                What::ClearAca | What::QueryTask(_) | What::QueryTaskSet | What::QueryAsynchronousEvent => {
                    false
                }
            };
            if covered {
                if let Some(session) = self.connections.get_mut(&connection).and_then(|p| p.session()) {
                    session.held.retain(|t| *t != token);
                }
                self.finish_command(now, token, connection, tag, Outcome::Aborted);
            }
        }
    }

    /// See `Worker::submit`.
    pub(super) fn submit_function(&mut self, now: Instant, token: ForwardToken) -> bool {
        let Some(Request { connection, lun, kind: Kind::Function(function), .. }) = self.requests.get(&token)
        else {
            return true;
        };
        let (connection, lun, function) = (*connection, *lun, *function);
        let Some(session) = self.connections.get_mut(&connection).and_then(|p| p.session()) else {
            return true;
        };
        let nexus = session.nexus();
        let Some(volume) = session.port.mapped(&lun).map(|mapped| mapped.volume) else {
            self.requests.remove(&token);
            self.answer(now, connection, function, TaskManagementResponse::LunDoesNotExist);
            return true;
        };
        if let Some(response) = self.query_here(connection, lun, function.what) {
            self.requests.remove(&token);
            self.answer(now, connection, function, response);
            return true;
        }
        let named = match function.what {
            What::AbortTask(tag) | What::QueryTask(tag) => match self.pending(connection, tag) {
                Some((named, _, place)) => Some((named, place)),
                None => {
                    self.requests.remove(&token);
                    self.answer(now, connection, function, TaskManagementResponse::Complete);
                    return true;
                }
            },
            _ => None,
        };
        match self.owner(volume) {
            Owner::Local(unit, epoch) => {
                let task = match &named {
                    Some((_, Place::Local(_, task))) => Some(*task),
                    _ => None,
                };
                let local = local_function(function.what, task);
                let requester = Requester { worker: self.index, request: RequestName::Local(token) };
                self.set_place(token, Place::Local(unit.clone(), TaskId(0)));
                let mut driver =
                    Driver { services: &self.services, local: Some((self.index, &mut self.answers)) };
                unit.task_management(&mut driver, requester, epoch, &nexus, local);
                true
            }
            Owner::Remote(node, epoch) => {
                let named = named.map_or(0, |(token, _)| token);
                let function = match function.what {
                    What::AbortTask(_) => LuFunction::AbortTask(named),
                    What::QueryTask(_) => LuFunction::QueryTask(named),
                    What::AbortTaskSet => LuFunction::AbortTaskSet,
                    What::ClearTaskSet => LuFunction::ClearTaskSet,
                    What::LogicalUnitReset => LuFunction::LogicalUnitReset,
                    What::ClearAca => LuFunction::ClearAca,
                    What::ItNexusReset => LuFunction::ItNexusReset,
                    What::QueryTaskSet | What::QueryAsynchronousEvent => LuFunction::QueryTaskSet,
                };
                self.set_place(token, Place::Remote(node));
                let request = TaskManagementFor { volume, epoch, nexus, function };
                self.interconnect.forward_task_management(now, node, token, request);
                self.note_remote(connection, node);
                true
            }
            Owner::Nobody => false,
            Owner::NoVolume => {
                self.requests.remove(&token);
                self.answer(now, connection, function, TaskManagementResponse::LunDoesNotExist);
                true
            }
        }
    }

    /// How a function of ours ended.
    pub(super) fn function_done(&mut self, now: Instant, token: ForwardToken, outcome: LuFunctionOutcome) {
        let Some(Request { connection, kind: Kind::Function(function), .. }) = self.requests.get(&token)
        else {
            return;
        };
        let (connection, function) = (*connection, *function);
        let response = match outcome {
            LuFunctionOutcome::NotExecuted => return self.hold(token),
            LuFunctionOutcome::Complete => TaskManagementResponse::Complete,
            LuFunctionOutcome::Succeeded => TaskManagementResponse::Succeeded([0; 3]),
            // The owner answers for what it knows; what it does not know any more has been answered.
            LuFunctionOutcome::TaskDoesNotExist => TaskManagementResponse::TaskDoesNotExist,
            LuFunctionOutcome::NotSupported => TaskManagementResponse::NotSupported,
            LuFunctionOutcome::Rejected | LuFunctionOutcome::Unknown => TaskManagementResponse::Rejected,
        };
        self.requests.remove(&token);
        self.answer(now, connection, function, response);
    }

    /// A function was held too long.
    pub(super) fn function_not_executed(&mut self, now: Instant, token: ForwardToken) {
        if let Some(Request { connection, kind: Kind::Function(function), .. }) = self.requests.remove(&token)
        {
            self.answer(now, connection, function, TaskManagementResponse::Rejected);
        }
    }

    fn answer(
        &mut self,
        now: Instant,
        connection: u64,
        function: Function,
        response: TaskManagementResponse,
    ) {
        if !function.grouped {
            return self.answer_function(now, connection, function.id, response);
        }
        let Some(session) = self.connections.get_mut(&connection).and_then(|p| p.session()) else { return };
        let Some(group) = session.resets.get_mut(&function.id) else { return };
        group.missing = group.missing.saturating_sub(1);
        // A unit that is no longer mapped needs no reset.
        group.rejected |=
            !matches!(response, TaskManagementResponse::Complete | TaskManagementResponse::LunDoesNotExist);
        if group.missing == 0 {
            let rejected = group.rejected;
            session.resets.remove(&function.id);
            let whole =
                if rejected { TaskManagementResponse::Rejected } else { TaskManagementResponse::Complete };
            self.answer_function(now, connection, function.id, whole);
        }
    }

    fn set_place(&mut self, token: ForwardToken, place: Place) {
        if let Some(request) = self.requests.get_mut(&token) {
            request.place = place;
        }
    }

    fn answer_function(
        &mut self,
        now: Instant,
        connection: u64,
        id: TaskManagementId,
        response: TaskManagementResponse,
    ) {
        if let Some(engine) = self.engine(connection) {
            engine.task_management_answer(id, response);
            self.pump(now, connection);
        }
    }
}

fn local_function(what: What, named: Option<TaskId>) -> TaskManagementFunction {
    match what {
        // A task that is not here is named by a number that no task has.
        What::AbortTask(_) => TaskManagementFunction::AbortTask(named.unwrap_or(TaskId(0))),
        What::QueryTask(_) => TaskManagementFunction::QueryTask(named.unwrap_or(TaskId(0))),
        What::AbortTaskSet => TaskManagementFunction::AbortTaskSet,
        What::ClearTaskSet => TaskManagementFunction::ClearTaskSet,
        What::LogicalUnitReset => TaskManagementFunction::LogicalUnitReset,
        What::ClearAca => TaskManagementFunction::ClearAca,
        What::ItNexusReset => TaskManagementFunction::ItNexusReset,
        // What a port answers by itself never comes so far.
        What::QueryTaskSet | What::QueryAsynchronousEvent => TaskManagementFunction::QueryTaskSet,
    }
}
