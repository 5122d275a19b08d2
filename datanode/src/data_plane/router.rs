//! The seam between a worker and the interconnect, and the words in which both speak of commands that run elsewhere.
//!
//! Each worker owns one object that implements [`Interconnect`]: its connections to owners (client side) and the
//! connections accepted from other nodes (server side) live on the worker's own loop, so nothing here is shared between
//! threads. The worker knows nothing of frames and TLS, the interconnect nothing of logical units.
//!
//! Invariants: every token given to `forward`, `forward_task_management` and `forward_nexus_loss` is answered by exactly
//! one event; every [`Origin`] of a server-side event is answered by exactly one call, unless
//! [`InterconnectEvent::Disconnected`] ended its connection. [`Outcome::NotExecuted`] is a definite statement: nothing
//! of the command was done and nothing of it will be done later.

use std::any::Any;
use std::sync::Arc;

use holdfast_replica::epoch::Epoch;
use holdfast_replica::forward::Neighbour;
use holdfast_replica::ids::{NodeNumber, VolumeId};
use holdfast_scsi::device_server::{CopyRole, TaskAttribute};
use holdfast_scsi::nexus::Nexus;
use holdfast_scsi::sense::Sense;
use holdfast_scsi::status::Status;
use holdfast_scsi::time::Instant;
use holdfast_scsi::ua::UnitAttention;

/// mio tokens from here on belong to the interconnect; those below to the worker.
pub const INTERCONNECT_TOKENS_FROM: usize = 1 << 48;

/// Names a forwarded request of one worker, never twice.
pub type ForwardToken = u64;

/// Bytes that travel with a command or a reply: a shared buffer and which part of it.
#[derive(Clone, Debug, Default)]
pub struct Bytes {
    buffer: Arc<Vec<u8>>,
    start: usize,
    end: usize,
}

impl Bytes {
    /// The whole buffer.
    pub fn new(buffer: Vec<u8>) -> Bytes {
        Bytes { start: 0, end: buffer.len(), buffer: Arc::new(buffer) }
    }

    /// `len` bytes from `offset`, cut short where the buffer ends.
    pub fn part(buffer: Arc<Vec<u8>>, offset: usize, len: usize) -> Bytes {
        let start = offset.min(buffer.len());
        let end = start.saturating_add(len).min(buffer.len());
        Bytes { buffer, start, end }
    }

    /// `len` bytes of it from `offset`, cut short where it ends.
    #[must_use]
    pub fn slice(&self, offset: usize, len: usize) -> Bytes {
        let start = self.start.saturating_add(offset).min(self.end);
        let end = start.saturating_add(len).min(self.end);
        Bytes { buffer: Arc::clone(&self.buffer), start, end }
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// True for none.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(buffer: Vec<u8>) -> Bytes {
        Bytes::new(buffer)
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

/// Where the data-out of a command is.
#[derive(Clone, Debug)]
pub enum CommandData {
    /// It has none.
    None,
    /// All here.
    Ready(Bytes),
    /// It follows by `forward_data`, or by `forward_abort` when it cannot be had.
    Awaited,
}

/// A command for the owner of a volume.
#[derive(Clone, Debug)]
pub struct CommandFor {
    /// The volume that the LUN is mapped to.
    pub volume: VolumeId,
    /// Epoch of the volume in the port's view. An owner with another epoch answers [`Outcome::NotExecuted`].
    pub epoch: Epoch,
    /// From whom.
    pub nexus: Nexus,
    /// The CDB as received, 16 to 260 bytes.
    pub cdb: Vec<u8>,
    /// How it is to be ordered.
    pub attribute: TaskAttribute,
    /// Bytes that the initiator will send.
    pub data_out_len: u32,
    /// Its data.
    pub data: CommandData,
    /// Head of the port's queue of Unit Attentions.
    pub unit_attention: Option<UnitAttention>,
    /// The mapping admits no writes.
    pub read_only: bool,
    /// A copy manager sends it on behalf of the nexus, which is perhaps not this node's.
    pub copy: Option<CopyRole>,
    /// Moment on this node's clock after which its I/O must not be submitted any more: the initiator may have given it up
    /// and sent it again on another path.
    pub execute_by: Instant,
}

/// What the owner's device server said of a command.
#[derive(Clone, Debug)]
pub struct Reply {
    /// SCSI status.
    pub status: Status,
    /// Sense data.
    pub sense: Option<Sense>,
    /// It goes to the initiator in descriptor format (D_SENSE).
    pub descriptor_sense: bool,
    /// Data-in.
    pub data: Bytes,
    /// Bytes that the command moves as its CDB says, for the residual count; 0 when unknown.
    pub transfer_len: u32,
    /// Id of the Unit Attention that this reply reports, if it does: the port dequeues it.
    pub unit_attention_reported: Option<u64>,
}

/// How a command ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Executed, or refused with a status.
    Reply(Reply),
    /// Aborted; the initiator is sent nothing.
    Aborted,
    /// Definitely not executed: wrong epoch, not the owner, gate closed. The port may send it again.
    NotExecuted,
    /// It may or may not have been executed. The port answers ABORTED COMMAND and never resends.
    Unknown,
}

/// A task management function for one logical unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LuFunction {
    /// ABORT TASK, of the command with this token (of the same connection between worker and owner).
    AbortTask(ForwardToken),
    /// ABORT TASK SET
    AbortTaskSet,
    /// CLEAR TASK SET
    ClearTaskSet,
    /// LOGICAL UNIT RESET
    LogicalUnitReset,
    /// CLEAR ACA
    ClearAca,
    /// I_T NEXUS RESET, as far as the unit goes
    ItNexusReset,
    /// QUERY TASK, about the command with this token (of the same connection between worker and owner).
    QueryTask(ForwardToken),
    /// QUERY TASK SET
    QueryTaskSet,
}

/// A task management function for the owner of a volume.
#[derive(Clone, Copy, Debug)]
pub struct TaskManagementFor {
    /// The volume that the LUN is mapped to.
    pub volume: VolumeId,
    /// Epoch of the volume in the port's view.
    pub epoch: Epoch,
    /// From whom.
    pub nexus: Nexus,
    /// What to do.
    pub function: LuFunction,
}

/// How a task management function ended (SAM-5 7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LuFunctionOutcome {
    /// FUNCTION COMPLETE; of a query: nothing there
    Complete,
    /// FUNCTION SUCCEEDED: a query found something
    Succeeded,
    /// There is no such task.
    TaskDoesNotExist,
    /// Not supported.
    NotSupported,
    /// FUNCTION REJECTED
    Rejected,
    /// Definitely not executed: wrong epoch, not the owner, gate closed.
    NotExecuted,
    /// It may or may not have been executed.
    Unknown,
}

/// Names a request that came from another node: which accepted connection, and the peer's token on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// Accepted connection, numbered by the interconnect object; never reused within a worker.
    pub connection: u64,
    /// The peer's token.
    pub token: ForwardToken,
}

/// What the interconnect tells its worker.
#[derive(Debug)]
pub enum InterconnectEvent {
    /// Client side: answers `forward`.
    Outcome {
        /// Of the command.
        token: ForwardToken,
        /// How it ended.
        outcome: Outcome,
    },
    /// Client side: answers `forward_task_management`.
    TaskManagementDone {
        /// Of the function.
        token: ForwardToken,
        /// How it ended.
        outcome: LuFunctionOutcome,
    },
    /// Client side: answers `forward_nexus_loss`: the owner has ended the nexus's tasks, or the connection to it is gone
    /// (and the owner then does it by itself).
    NexusLossDone {
        /// Of the notice.
        token: ForwardToken,
    },
    /// Server side: run this.
    Command {
        /// Whom to answer, by `answer`.
        origin: Origin,
        /// What.
        command: CommandFor,
    },
    /// Server side: all data of a command that came with [`CommandData::Awaited`].
    DataOut {
        /// The command.
        origin: Origin,
        /// Its bytes.
        data: Vec<u8>,
    },
    /// Server side: the data of a command will never come, or its port gave it up. Still answered, by `answer`.
    Abort {
        /// The command.
        origin: Origin,
    },
    /// Server side: answer by `answer_task_management`.
    TaskManagement {
        /// Whom to answer.
        origin: Origin,
        /// What to do.
        request: TaskManagementFor,
    },
    /// Server side: the nexus has ended; end what it has in every logical unit. Answer by `answer_nexus_loss`.
    NexusLoss {
        /// Whom to answer.
        origin: Origin,
        /// Which.
        nexus: Nexus,
    },
    /// Server side: the connection is gone. Its tasks end as by the loss of their nexuses; answers for it are dropped.
    Disconnected {
        /// Which.
        connection: u64,
    },
}

/// The interconnect as one worker sees it. All calls come from the worker's thread. Nothing here blocks: bytes are queued
/// and sent by [`Interconnect::flush`], once per turn of the loop.
pub trait Interconnect {
    /// A readiness event with one of the interconnect's tokens.
    fn handle_event(&mut self, now: Instant, event: &mio::event::Event);
    /// A message that another part of the interconnect posted to this worker by `Mailbox::post_interconnect` (an
    /// accepted socket, new addresses of peers).
    fn handle_message(&mut self, now: Instant, message: Box<dyn Any + Send>);
    /// Acts on time that passed.
    fn handle_timeout(&mut self, now: Instant);
    /// When `handle_timeout` is due.
    fn poll_timeout(&self) -> Option<Instant>;
    /// The next event. Drained after every other call.
    fn poll_event(&mut self) -> Option<InterconnectEvent>;
    /// Writes what is queued: one vectored write per connection.
    fn flush(&mut self, now: Instant);

    /// Keeps connections to these nodes, also while nothing is to be sent to them; an empty list ends that.
    fn watch(&mut self, now: Instant, nodes: &[NodeNumber]);
    /// What a node has told of itself on a connection that is up.
    fn neighbour(&self, node: NodeNumber) -> Option<Neighbour>;

    /// Sends a command to its owner. Commands of one worker to one node arrive in order.
    fn forward(&mut self, now: Instant, to: NodeNumber, token: ForwardToken, command: CommandFor);
    /// The data of a command that was forwarded with [`CommandData::Awaited`].
    fn forward_data(&mut self, now: Instant, to: NodeNumber, token: ForwardToken, data: Bytes);
    /// Gives a forwarded command up; it is still answered by an event.
    fn forward_abort(&mut self, now: Instant, to: NodeNumber, token: ForwardToken);
    /// Sends a task management function, behind the commands already forwarded.
    fn forward_task_management(
        &mut self,
        now: Instant,
        to: NodeNumber,
        token: ForwardToken,
        request: TaskManagementFor,
    );
    /// Tells an owner that a nexus has ended.
    fn forward_nexus_loss(&mut self, now: Instant, to: NodeNumber, token: ForwardToken, nexus: Nexus);

    /// Answers [`InterconnectEvent::Command`].
    fn answer(&mut self, now: Instant, origin: Origin, outcome: Outcome);
    /// Answers [`InterconnectEvent::TaskManagement`].
    fn answer_task_management(&mut self, now: Instant, origin: Origin, outcome: LuFunctionOutcome);
    /// Answers [`InterconnectEvent::NexusLoss`].
    fn answer_nexus_loss(&mut self, now: Instant, origin: Origin);
}

/// An interconnect that reaches nobody: a node alone. Whatever is forwarded was definitely not executed.
#[derive(Debug, Default)]
pub struct Unconnected {
    events: std::collections::VecDeque<InterconnectEvent>,
}

impl Interconnect for Unconnected {
    fn handle_event(&mut self, _now: Instant, _event: &mio::event::Event) {}
    fn handle_message(&mut self, _now: Instant, _message: Box<dyn Any + Send>) {}
    fn handle_timeout(&mut self, _now: Instant) {}
    fn poll_timeout(&self) -> Option<Instant> {
        None
    }
    fn poll_event(&mut self) -> Option<InterconnectEvent> {
        self.events.pop_front()
    }
    fn flush(&mut self, _now: Instant) {}
    fn watch(&mut self, _now: Instant, _nodes: &[NodeNumber]) {}
    fn neighbour(&self, _node: NodeNumber) -> Option<Neighbour> {
        None
    }
    fn forward(&mut self, _now: Instant, _to: NodeNumber, token: ForwardToken, _command: CommandFor) {
        self.events.push_back(InterconnectEvent::Outcome { token, outcome: Outcome::NotExecuted });
    }
    fn forward_data(&mut self, _now: Instant, _to: NodeNumber, _token: ForwardToken, _data: Bytes) {}
    fn forward_abort(&mut self, _now: Instant, _to: NodeNumber, _token: ForwardToken) {}
    fn forward_task_management(
        &mut self,
        _now: Instant,
        _to: NodeNumber,
        token: ForwardToken,
        _request: TaskManagementFor,
    ) {
        let outcome = LuFunctionOutcome::NotExecuted;
        self.events.push_back(InterconnectEvent::TaskManagementDone { token, outcome });
    }
    fn forward_nexus_loss(&mut self, _now: Instant, _to: NodeNumber, token: ForwardToken, _nexus: Nexus) {
        self.events.push_back(InterconnectEvent::NexusLossDone { token });
    }
    fn answer(&mut self, _now: Instant, _origin: Origin, _outcome: Outcome) {}
    fn answer_task_management(&mut self, _now: Instant, _origin: Origin, _outcome: LuFunctionOutcome) {}
    fn answer_nexus_loss(&mut self, _now: Instant, _origin: Origin) {}
}
