//! What the shell tells a [`super::DeviceServer`] and what it is told to do: the seam between the SCSI rules and the
//! world of sockets, stores and the controller.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use super::CopyCommandOut;
use crate::{
    alua::{AluaState, ChangedBy},
    cdb::WriteSameSource,
    copy::Designator,
    geometry::Extent,
    identity::LuProperties,
    lba_status::LbaStatus,
    limits::CDB_LEN_MAX,
    lu_state::Change,
    mode::ModeParameters,
    nexus::{Nexus, RelativePort},
    sense::{AdditionalSense, Sense},
    status::Status,
    task_set::{TaskAttribute, TaskId},
    ua::UnitAttention,
};

pub use crate::ua::UaScope;

/// What a logical unit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LuConfig {
    /// Names, block size, capacity.
    pub properties: LuProperties,
    /// Mode parameters of the unit when it was new. While WCE is 0, every write is asked for as durable.
    pub mode: ModeParameters,
    /// The volume as a whole is write protected.
    pub read_only: bool,
}

/// The target port groups of the cluster as this unit reports them, by number. The same on every node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// iSCSI name of the target device.
    pub target_name: String,
    /// The groups, in rising order of their numbers.
    pub groups: Vec<PortGroup>,
    /// What changed their states last.
    pub changed_by: ChangedBy,
    /// The group that the cluster is making the active/optimized one.
    pub moving_to: Option<u16>,
}

/// One target port group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortGroup {
    /// Number of the group: the node's.
    pub id: u16,
    /// Access state for this unit.
    pub state: AluaState,
    /// The controller would have the owner here.
    pub preferred: bool,
    /// Its ports.
    pub ports: Vec<RelativePort>,
}

/// A command that arrived.
#[derive(Clone, Copy, Debug)]
pub struct CommandRequest<'a> {
    /// The shell's name for the task, unique while it lives.
    pub task: TaskId,
    /// Through which nexus.
    pub nexus: &'a Nexus,
    /// The CDB as it came; padding behind it is ignored.
    pub cdb: &'a [u8],
    /// Task attribute.
    pub attribute: TaskAttribute,
    /// Bytes that the initiator will send or has sent.
    pub data_out_len: u32,
    /// Head of the port's queue for this nexus and unit.
    pub unit_attention: Option<UnitAttention>,
    /// The host's mapping is read-only.
    pub read_only: bool,
}

/// Where the command's Data-Out is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataOut<'a> {
    /// There is none.
    None,
    /// All there. The shell keeps it until the task completes, for [`Action::Write`].
    Ready(&'a [u8]),
    /// On its way; [`super::DeviceServer::handle_data_out`] follows.
    Awaited,
}

/// How an I/O action ended. Exactly one for each [`Action`] that is I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoDone<'a> {
    /// Done: write, flush, unmap; for a flush and for FUA also durable.
    Done,
    /// The bytes read, the whole extent.
    Read(&'a [u8]),
    /// Allocation of successive ranges, the first beginning where it was asked for.
    Allocation(&'a [LbaStatus]),
    /// Failed.
    Failed(IoFailure),
}

/// Why an I/O failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoFailure {
    /// No space left for new blocks. Nothing is promised about the blocks written.
    NoSpace,
    /// The medium could not be read or written; for a read, at which LBA.
    Medium {
        /// First LBA that failed, if known.
        lba: Option<u64>,
    },
    /// The store failed.
    Hardware,
    /// Definitely not executed (frozen, wrong epoch): BUSY, the initiator may send it again.
    NotExecuted,
    /// Perhaps executed: ABORTED COMMAND, never BUSY.
    Unknown,
}

/// Changes the unit's state without a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnitEvent {
    /// The nexus is gone, and something hung on it.
    NexusLost(Nexus),
    /// LOGICAL UNIT RESET, which this nexus asked for.
    Reset(Nexus),
    /// FORMAT UNIT or SANITIZE has ended.
    OperationEnded {
        /// Not well.
        failed: bool,
    },
}

impl UnitEvent {
    /// The change that it is.
    pub const fn change(&self) -> Change<'_> {
        match self {
            UnitEvent::NexusLost(nexus) => Change::NexusLost(nexus),
            UnitEvent::Reset(_) => Change::Reset,
            UnitEvent::OperationEnded { failed } => Change::OperationEnded { failed: *failed },
        }
    }
}

/// What became of a proposal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProposalOutcome {
    /// Committed as this version, and its barrier has passed.
    Committed {
        /// Log index of the change.
        version: u64,
    },
    /// The state machine refused it with RESERVATION CONFLICT.
    Conflict,
    /// The state machine refused it with this sense data.
    Refused(Sense),
    /// Another change was first. It is validated again once a newer version is installed.
    VersionChanged,
    /// Definitely not proposed: no quorum, not the owner. BUSY.
    NotProposed,
    /// Perhaps committed, and that could not be found out in time.
    Unknown,
}

/// A task management function (SAM-5 clause 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskManagementFunction {
    /// ABORT TASK.
    AbortTask(TaskId),
    /// ABORT TASK SET: all tasks of the nexus.
    AbortTaskSet,
    /// CLEAR TASK SET: all tasks of the unit.
    ClearTaskSet,
    /// LOGICAL UNIT RESET.
    LogicalUnitReset,
    /// CLEAR ACA.
    ClearAca,
    /// I_T NEXUS RESET, as far as this unit goes.
    ItNexusReset,
    /// QUERY TASK.
    QueryTask(TaskId),
    /// QUERY TASK SET: of the nexus.
    QueryTaskSet,
}

/// A task management request that arrived behind all commands which it is to cover.
#[derive(Clone, Copy, Debug)]
pub struct TaskManagementRequest<'a> {
    /// The shell's name for it.
    pub id: u64,
    /// Through which nexus.
    pub nexus: &'a Nexus,
    /// What is asked for.
    pub function: TaskManagementFunction,
}

/// Service response of a task management function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TmfResponse {
    /// FUNCTION COMPLETE; for a query: nothing there.
    Complete,
    /// FUNCTION SUCCEEDED: a query found something.
    Succeeded,
    /// There is no such task (iSCSI tells it apart from FUNCTION COMPLETE).
    TaskDoesNotExist,
    /// Not supported.
    NotSupported,
    /// FUNCTION REJECTED: it could not be carried out for the whole cluster.
    Rejected,
}

/// What the shell has to do. I/O actions name their task, or [`OWN_WORK`], and are answered by `handle_io`; a task has at most one
/// under way. What is large and rare is in boxes, because every action is moved about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Read the extent, keep the bytes with the task, and answer [`IoDone::Read`].
    Read {
        /// The task.
        task: TaskId,
        /// Blocks, never empty.
        extent: Extent,
        /// Not from a volatile cache.
        fua: bool,
    },
    /// Write from the task's Data-Out.
    Write {
        /// The task.
        task: TaskId,
        /// Blocks, never empty.
        extent: Extent,
        /// Where in the Data-Out the bytes begin.
        data_offset: u32,
        /// Durable on every in-sync replica before it is done.
        fua: bool,
    },
    /// Write these bytes.
    WriteBytes {
        /// The task.
        task: TaskId,
        /// Blocks, never empty.
        extent: Extent,
        /// As long as the extent.
        data: Vec<u8>,
        /// Durable before it is done.
        fua: bool,
    },
    /// Write from the beginning of the task's Data-Out: whole or not at all, whatever fails or stops meanwhile, on every replica. Durable
    /// before it is done.
    WriteAtomic {
        /// The task.
        task: TaskId,
        /// Blocks, never empty.
        extent: Extent,
        /// With more than 0: the parts between LBAs that are multiples of it are each written so, in rising order.
        boundary: u16,
    },
    /// Write the same block all over.
    WriteSame {
        /// The task.
        task: TaskId,
        /// Blocks, never empty.
        extent: Extent,
        /// Zeroes, or the first block of the task's Data-Out.
        source: WriteSameSource,
        /// With zeroes: the blocks may be deallocated instead.
        deallocate: bool,
        /// Durable before it is done.
        fua: bool,
    },
    /// Deallocate; the blocks read as zeroes afterwards.
    Unmap {
        /// The task.
        task: TaskId,
        /// None empty, at least one.
        extents: Vec<Extent>,
        /// Durable before it is done.
        fua: bool,
    },
    /// Make durable what was acknowledged before.
    Flush {
        /// The task.
        task: TaskId,
        /// `None`: everything.
        extent: Option<Extent>,
    },
    /// Tell what is allocated, from the start of the extent on; answered by [`IoDone::Allocation`].
    QueryAllocation {
        /// The task.
        task: TaskId,
        /// Blocks of interest, never empty.
        extent: Extent,
    },
    /// Propose a command that changes the unit's state ([`crate::lu_state`]) under a new proposal id; answered by
    /// `handle_proposal`.
    ProposeChange {
        /// The task.
        task: TaskId,
        /// Who asks.
        nexus: Box<Nexus>,
        /// The version that it was validated against.
        expected_version: u64,
        /// The CDB, filled up with zeroes.
        cdb: [u8; CDB_LEN_MAX],
        /// The parameter list.
        parameter_list: Vec<u8>,
    },
    /// Propose what no command asked for, under a new proposal id; answered by `handle_event_proposal`.
    ProposeEvent {
        /// Names the event.
        id: u64,
        /// What happened.
        event: Box<UnitEvent>,
        /// The version that it was judged by.
        expected_version: u64,
    },
    /// An answer waits until the barrier of this installed version has passed: answered by `handle_barrier`.
    AwaitBarrier {
        /// Log index of the change.
        version: u64,
    },
    /// All I/O submitted under versions older than this one has ended.
    ReservationsDrained {
        /// The installed version.
        version: u64,
    },
    /// Establish a Unit Attention in the whole cluster; answered by `handle_unit_attention` once that is certain.
    EstablishUnitAttention {
        /// Names the request.
        id: u64,
        /// What to report.
        additional: AdditionalSense,
        /// To whom.
        scope: Box<UaScope>,
    },
    /// Look up which of these units the nexus's host has mapped; answered by `handle_copy_units`.
    FindCopyUnits {
        /// The copy.
        task: TaskId,
        /// Whose map.
        nexus: Box<Nexus>,
        /// The units asked for.
        designators: Vec<Designator>,
    },
    /// Send a command of a copy to one of its units; answered by `handle_copy_answer`.
    CopyCommand(Box<CopyCommandOut>),
    /// The command that this copy has under way is not wanted any more: end it as ABORT TASK would. It is still answered.
    CancelCopyCommand {
        /// The copy.
        task: TaskId,
    },
    /// Random bytes that nobody can guess for a token; answered by `handle_random`.
    DrawRandom {
        /// The task.
        task: TaskId,
    },
    /// The task has ended. The last that is heard of it; exactly once for each task.
    Complete {
        /// The task.
        task: TaskId,
        /// What the port sends.
        response: Response,
    },
    /// A task management function has ended; exactly once for each request.
    TaskManagementDone {
        /// The request.
        id: u64,
        /// What the port sends.
        response: TmfResponse,
    },
}

/// How the command of a copy ended. Exactly one for each [`Action::CopyCommand`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopyAnswer {
    /// With a status.
    Ended {
        /// Status.
        status: Status,
        /// Sense data, with CHECK CONDITION.
        sense: Option<Sense>,
        /// Data-In.
        data: Vec<u8>,
    },
    /// It was aborted in its unit.
    Aborted,
    /// The host has no (more) such unit, or nobody executes its commands just now. Definitely not executed.
    Unreachable,
    /// Perhaps executed.
    Unknown,
}

/// How a task ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// With a status.
    Completed(Completion),
    /// Aborted: the port sends nothing.
    Aborted,
}

/// Status and data of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// Status.
    pub status: Status,
    /// Sense data, exactly with CHECK CONDITION.
    pub sense: Option<Sense>,
    /// The sense data goes out in descriptor format (D_SENSE), otherwise in fixed format.
    pub descriptor_sense: bool,
    /// Data-In.
    pub data_in: DataIn,
    /// Bytes that the command moves, for the residual count: the Data-Out that the CDB asks for (also when the command
    /// failed), otherwise the length of the Data-In.
    pub transfer_len: u32,
    /// The Unit Attention with this id was reported: the port takes it out of its queue.
    pub unit_attention_reported: Option<u64>,
}

/// Data for the initiator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataIn {
    /// None.
    None,
    /// These bytes.
    Bytes(Vec<u8>),
    /// From what [`Action::Read`] left with the task.
    FromRead {
        /// Where it begins.
        offset: u32,
        /// How much.
        len: u32,
    },
}

impl Completion {
    /// GOOD without data.
    pub const fn good() -> Completion {
        Completion::status(Status::Good)
    }

    /// A status without data or sense data.
    pub const fn status(status: Status) -> Completion {
        Completion {
            status,
            sense: None,
            descriptor_sense: false,
            data_in: DataIn::None,
            transfer_len: 0,
            unit_attention_reported: None,
        }
    }

    /// CHECK CONDITION.
    pub fn check(sense: Sense) -> Completion {
        Completion { sense: Some(sense), ..Completion::status(Status::CheckCondition) }
    }

    /// GOOD with parameter data.
    pub fn bytes(data: Vec<u8>) -> Completion {
        Completion { data_in: DataIn::Bytes(data), ..Completion::status(Status::Good) }
    }

    /// With the length that the residual is counted from.
    pub(super) fn with_transfer_len(mut self, data_out_wanted: u64) -> Completion {
        let data_in = match &self.data_in {
            DataIn::None => 0,
            DataIn::Bytes(bytes) => u32::try_from(bytes.len()).unwrap_or(u32::MAX),
            DataIn::FromRead { len, .. } => *len,
        };
        let wanted = u32::try_from(data_out_wanted).unwrap_or(u32::MAX);
        self.transfer_len = if wanted > 0 { wanted } else { data_in };
        self
    }
}
