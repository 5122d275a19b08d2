//! Commands that a port forwards to the owner of a volume, and their answers. Both sides are machines without I/O:
//! [`client::Client`] at the port, [`server::Server`] at the owner, one pair for each connection.
//!
//! * **One numbered stream** per (I_T nexus, volume): each command carries the next number, a task management function
//!   the last one before it, so the owner sees at once if one is missing and fences everything at or below it.
//! * **Age without comparing clocks**: the owner hands out clock tokens (its own clock, which only it reads). A command
//!   carries the latest token that its port had received before the command arrived there, or, where there was none
//!   yet, the first one after and how long the command had waited for it. The owner judges on its own clock: older than
//!   [`crate::limits::COMMAND_AGE_MS_MAX`] is [`Outcome::Stale`].
//! * **Leases**: with its greeting and each clock token the owner says for how many milliseconds its own lease still runs
//!   (the header's sequence; 0: it has none). A node without a lease can tell from that whether the others have lost theirs too.
//! * **Resending**: only [`Outcome::NotExecuted`] permits it. When a connection breaks, what was handed to it for sending
//!   is [`Outcome::Unknown`], what was not is [`Outcome::NotExecuted`].
//!
//! Invariants: every request gets exactly one event; memory is bounded by [`crate::limits`] on both sides; bulk data is
//! not copied; the first violation ends the connection.

pub mod client;
mod clock;
mod message;
pub mod server;
#[cfg(test)]
mod tests;

use alloc::vec::Vec;
use core::fmt;

use holdfast_scsi::{
    device_server::CopyRole, nexus::Nexus, sense::Sense, status::Status, task_set::TaskAttribute,
    ua::UnitAttention,
};

use crate::{
    Crc32c,
    epoch::Epoch,
    frame::{FrameError, Kind},
    ids::{ClusterId, NodeNumber, VolumeId},
    limits::FRAME_DATA_LEN_MAX,
};

pub use client::{Client, ClientEvent};
pub use holdfast_scsi::time::Instant;
pub use server::{Server, ServerEvent};

/// What both ends of a connection know before its first byte.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// The cluster.
    pub cluster: ClusterId,
    /// This node.
    pub me: NodeNumber,
    /// The node at the other end, as its certificate says.
    pub peer: NodeNumber,
    /// Checksums.
    pub crc32c: Crc32c,
}

/// What the node at the other end has told of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// When something came from it last.
    pub heard: Instant,
    /// When its lease ends, by what it has said; never earlier than it really does. [`Instant`] 0: it has none.
    pub lease_end: Instant,
}

/// A command for the owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command<B> {
    /// The volume that the LUN is mapped to.
    pub volume: VolumeId,
    /// Its epoch in the port's view.
    pub epoch: Epoch,
    /// From whom, through which port.
    pub nexus: Nexus,
    /// The CDB, at most [`crate::limits::CDB_LEN_MAX`] bytes.
    pub cdb: Vec<u8>,
    /// How it is to be ordered.
    pub attribute: TaskAttribute,
    /// Bytes that the initiator announces. Its port takes no more than [`FRAME_DATA_LEN_MAX`] of them.
    pub data_out_len: u32,
    /// Where they are.
    pub data: DataOut<B>,
    /// Head of the port's queue of Unit Attentions for this nexus and unit.
    pub unit_attention: Option<UnitAttention>,
    /// The mapping admits no writes.
    pub read_only: bool,
    /// A copy manager sends it on behalf of the nexus. It belongs to no stream, and the nexus is not the sender's.
    pub copy: Option<CopyRole>,
}

/// Where the data-out of a command is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataOut<B> {
    /// There is none.
    None,
    /// All here.
    Ready(B),
    /// It follows, or the command is given up.
    Awaited,
}

/// What the device server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply<B> {
    /// Status.
    pub status: Status,
    /// Sense data.
    pub sense: Option<Sense>,
    /// It goes to the initiator in descriptor format (D_SENSE).
    pub descriptor_sense: bool,
    /// Data-in; empty for none.
    pub data: Option<B>,
    /// Bytes that the command moves as its CDB says, for the residual count; 0 when unknown.
    pub transfer_len: u32,
    /// Id of the Unit Attention that this reply reports: the port dequeues it.
    pub unit_attention_reported: Option<u64>,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome<B> {
    /// Executed, or refused with a status.
    Reply(Reply<B>),
    /// Aborted; the initiator is told nothing.
    Aborted,
    /// Definitely not executed, now or later. May be sent again.
    NotExecuted,
    /// Definitely not executed, because it is too old: the initiator may have given it up. ABORTED COMMAND.
    Stale,
    /// It may or may not have been executed. ABORTED COMMAND; never sent again, never BUSY.
    Unknown,
}

/// A task management function for one logical unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskManagement {
    /// The volume that the LUN is mapped to.
    pub volume: VolumeId,
    /// Its epoch in the port's view.
    pub epoch: Epoch,
    /// From whom.
    pub nexus: Nexus,
    /// What to do.
    pub function: Function,
}

/// What a task management function does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    /// ABORT TASK: the command with this token, sent on the same connection.
    AbortTask(u64),
    /// ABORT TASK SET.
    AbortTaskSet,
    /// CLEAR TASK SET.
    ClearTaskSet,
    /// LOGICAL UNIT RESET.
    LogicalUnitReset,
    /// CLEAR ACA.
    ClearAca,
    /// I_T NEXUS RESET, as far as the unit goes.
    ItNexusReset,
    /// QUERY TASK: the command with this token, sent on the same connection.
    QueryTask(u64),
    /// QUERY TASK SET.
    QueryTaskSet,
}

/// How a task management function ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FunctionOutcome {
    /// FUNCTION COMPLETE; of a query: nothing there.
    Complete,
    /// FUNCTION SUCCEEDED: a query found something.
    Succeeded,
    /// FUNCTION REJECTED.
    Rejected,
    /// There is no such task.
    TaskDoesNotExist,
    /// The function is not supported.
    NotSupported,
    /// Definitely not executed.
    NotExecuted,
    /// It may or may not have been executed.
    Unknown,
}

/// What the peer did that it must not. The connection is to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// Bytes that are no frame.
    Frame(FrameError),
    /// A frame that has no place here now.
    Unexpected(Kind),
    /// A frame of this kind with contents that make no sense.
    Malformed(Kind),
    /// The greeting names another cluster or other nodes.
    WrongPeer,
    /// A stream's numbers have a gap or repeat.
    Sequence {
        /// The number that was due.
        expected: u64,
        /// The number that came.
        got: u64,
    },
    /// A token that is in use.
    DuplicateToken(u64),
    /// More requests, data or streams than agreed.
    TooMuch,
    /// A clock token that was never handed out.
    Clock,
    /// Nothing came for [`crate::limits::SILENCE_MS_MAX`].
    Silence,
}

/// Memory that the data-out of a command may take at the owner, in bytes: what it announces, as far as a frame carries it.
fn data_out_bytes(data_out_len: u32) -> u64 {
    u64::from(data_out_len).min(FRAME_DATA_LEN_MAX as u64)
}

impl From<FrameError> for Violation {
    fn from(error: FrameError) -> Violation {
        Violation::Frame(error)
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Violation::Frame(error) => error.fmt(f),
            Violation::Unexpected(kind) => write!(f, "a {kind:?} frame has no place here"),
            Violation::Malformed(kind) => write!(f, "a {kind:?} frame makes no sense"),
            Violation::WrongPeer => f.write_str("the greeting names another cluster or other nodes"),
            Violation::Sequence { expected, got } => {
                write!(f, "number {got} came in a stream where {expected} was due")
            }
            Violation::DuplicateToken(token) => write!(f, "token {token} is in use"),
            Violation::TooMuch => f.write_str("more is outstanding than agreed"),
            Violation::Clock => f.write_str("a clock token that was never handed out"),
            Violation::Silence => f.write_str("nothing has come for too long"),
        }
    }
}

impl core::error::Error for Violation {}
