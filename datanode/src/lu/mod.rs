//! Logical units that this node owns: the device server of each, and what carries its actions out.
//!
//! | Looking for | Module |
//! |---|---|
//! | which units there are, following the view | [`table`] |
//! | one unit: its device server, tasks, reservations | `logical_unit` |
//! | actions into I/O, proposals and answers | `execute` |
//! | one I/O on the volume | `io` |
//! | which units a copy reaches | `copy` |
//!
//! Invariants: a unit's device server is entered by one thread at a time and never while something blocks; every command
//! and function given to a unit is answered exactly once, to the worker that asked; nothing is answered as executed
//! unless the lease gate is open and this incarnation owns the volume after the last I/O of it.

mod copy;
mod execute;
mod io;
mod logical_unit;
pub mod table;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use holdfast_scsi::device_server::TaskId;

use crate::agent::{self, Established, ProposalResult};
use crate::data_plane::mailbox::{Mailboxes, Message};
use crate::data_plane::router::{ForwardToken, LuFunctionOutcome, Origin, Outcome};
use crate::store::io_threads::IoThreads;

pub(crate) use logical_unit::LogicalUnit;

/// Who asked: a worker, on behalf of one of its initiators or of another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Requester {
    pub(crate) worker: usize,
    pub(crate) request: RequestName,
}

/// The asking worker's name for what it asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum RequestName {
    /// From a session on this node.
    Local(ForwardToken),
    /// From another node.
    Peer(Origin),
}

/// The answer to one request.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) requester: Requester,
    pub(crate) answer: Answer,
}

/// How a request ended.
#[derive(Debug)]
pub(crate) enum Answer {
    Command(Outcome),
    Function(LuFunctionOutcome),
}

/// What the agent answered to a unit, on its way through a worker's mailbox: the agent's thread does no I/O.
pub(crate) enum LuAnswer {
    Proposal { unit: Arc<LogicalUnit>, task: TaskId, result: ProposalResult },
    Event { unit: Arc<LogicalUnit>, id: u64, result: ProposalResult },
    Established { unit: Arc<LogicalUnit>, id: u64, result: Established },
    BarrierPassed { unit: Arc<LogicalUnit>, version: u64 },
}

/// What units need of the process. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Services {
    pub(crate) io: IoThreads,
    pub(crate) mailboxes: Mailboxes,
    pub(crate) agent: agent::Handle,
}

/// Where a unit is being driven from: a worker collects its own answers, every other thread posts them.
pub(crate) struct Driver<'a> {
    pub(crate) services: &'a Services,
    pub(crate) local: Option<(usize, &'a mut Vec<Finished>)>,
}

impl<'a> Driver<'a> {
    /// From a thread that is no worker.
    pub(crate) fn remote(services: &'a Services) -> Driver<'a> {
        Driver { services, local: None }
    }

    fn deliver(&mut self, finished: Finished) {
        match &mut self.local {
            Some((worker, answers)) if *worker == finished.requester.worker => answers.push(finished),
            _ => self.services.mailboxes.post(finished.requester.worker, Message::Finished(finished)),
        }
    }
}
