//! What the engine tells its shell. Side effects are data: the engine never calls out.
//!
//! Invariant: commands, task management functions and their data come in CmdSN order (immediate ones at once), and
//! every [`Command`] is ended by exactly one `complete` or `discard_task`, unless [`Event::Closed`] ended them all.

use crate::chap::ChapCredentials;
use crate::limits;
use crate::login::status::LoginStatus;
use crate::negotiation::SessionParameters;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::num::NonZeroU16;
use core::ops::Range;

/// Something that the shell must act on.
#[derive(Debug)]
pub enum Event {
    /// An initiator asks to log in. Answer: [`crate::Connection::login_answer`].
    Login(LoginRequest),
    /// Login has succeeded but for the last response, for discovery sessions too. With a TSIH the connection joins a session:
    /// the shell asks that one ([`crate::Connection::join`]), answers, and has it take this one in. Of a new normal one the shell ends an old session of the same initiator name, ISID
    /// and target portal group (session reinstatement, RFC 7143 6.3.5), chooses a TSIH, makes the nexus and answers:
    /// [`crate::Connection::start_session`].
    SessionStarting(SessionInfo),
    /// An initiator asks what targets there are. Answer: [`crate::Connection::send_targets_answer`].
    SendTargets(SendTargets),
    /// A SCSI command.
    Command(Command),
    /// All data of a command that came with [`DataState::Awaited`].
    DataOut {
        /// The command.
        tag: TaskTag,
        /// Its bytes, `data_out_len` of them.
        data: Vec<u8>,
    },
    /// The data of a command that came with [`DataState::Awaited`] will never be whole. The shell ends the task and
    /// calls `complete` or `discard_task`; the engine then answers CHECK CONDITION with the condition's sense, whatever
    /// outcome it was given.
    DataOutFailed {
        /// The command.
        tag: TaskTag,
        /// Why.
        condition: Condition,
    },
    /// A task management function. Answer: [`crate::Connection::task_management_answer`], after the tasks that it
    /// ends were given to `discard_task` (or `complete`, with TASK ABORTED).
    TaskManagement(TaskManagement),
    /// One connection has left a session that goes on, and its tasks have ended. The shell sends what
    /// [`crate::Connection::segments_of`] still holds, closes its socket, and calls [`crate::Connection::forget_link`].
    LinkEnded(LinkId),
    /// The session, with all of its connections, is over: all its tasks are void, and no event follows. The shell sends
    /// what [`crate::Connection::segments`] still holds, then closes the socket.
    Closed(CloseReason),
}

/// Names a connection of a session, never twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub(crate) u32);

impl LinkId {
    /// The connection that the session began with.
    pub const LEADING: Self = Self(0);
}

/// Names a task of one session, never twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskTag(pub(crate) u64);

impl TaskTag {
    /// As a number, for logs and for tables of the shell.
    #[must_use]
    pub fn number(self) -> u64 {
        self.0
    }
}

/// Names a task management function of one session, never twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskManagementId(pub(crate) u64);

/// Normal sessions carry SCSI; discovery sessions only SendTargets (RFC 7143 13.21).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionType {
    /// To one target.
    Normal,
    /// To the portal.
    Discovery,
}

/// The leading login request, before any authentication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoginRequest {
    /// InitiatorName as sent (1 to 223 bytes); names compare without regard to case.
    pub initiator_name: String,
    /// InitiatorAlias, for people.
    pub initiator_alias: Option<String>,
    /// The initiator's part of the session id.
    pub isid: [u8; 6],
    /// 0 for a new session. Otherwise the initiator wants to join that session, which must be of the same initiator name,
    /// ISID and target portal group: if there is none the answer is `SessionDoesNotExist`.
    pub tsih: u16,
    /// The connection id.
    pub cid: u16,
    /// TargetName; present exactly in normal sessions.
    pub target_name: Option<String>,
    /// What for.
    pub session_type: SessionType,
}

/// The shell's verdict on a [`LoginRequest`].
#[derive(Debug)]
pub enum LoginAnswer {
    /// Go on, to authentication if there are credentials.
    Accept(Admission),
    /// No.
    Refuse(LoginStatus),
}

/// What an initiator is admitted with.
#[derive(Debug)]
pub struct Admission {
    /// CHAP that the initiator must pass. `None` admits it on its name alone.
    pub chap: Option<Box<ChapCredentials>>,
    /// The target portal group tag of this portal.
    pub target_portal_group_tag: u16,
    /// Not here, for now: the target has moved temporarily (0101h) to this portal, `address:port` as in [`PortalRecord`]. Who must
    /// pass CHAP is told only then: the address is not for everyone who knows a name (RFC 7143 11.13.5: a
    /// redirection may come before or after the security negotiation; after it an initiator has to follow, before it it only should).
    pub moved_to: Option<String>,
}

/// The shell's verdict on [`Event::SessionStarting`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionStart {
    /// The session exists under this TSIH.
    Go(NonZeroU16),
    /// The connection may join the session with this TSIH, whose numbering is now this; [`crate::Connection::join`] gave it.
    Join {
        /// TSIH
        tsih: NonZeroU16,
        /// ExpCmdSN
        exp_cmd_sn: u32,
        /// MaxCmdSN
        max_cmd_sn: u32,
    },
    /// No.
    Refuse(LoginStatus),
}

/// What a session says to a connection that wants to join it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Join {
    /// It may, with this numbering: [`SessionStart::Join`].
    Go {
        /// ExpCmdSN
        exp_cmd_sn: u32,
        /// MaxCmdSN
        max_cmd_sn: u32,
    },
    /// An older connection with the same number has to end first: ask again after [`Event::LinkEnded`] of it.
    Wait(LinkId),
    /// It has as many connections as were agreed.
    TooMany,
    /// The session is over.
    Ended,
}

/// A session on the point of existing.
#[derive(Clone, Debug)]
pub struct SessionInfo {
    /// Who, authenticated as far as the [`Admission`] demanded.
    pub login: LoginRequest,
    /// What was agreed.
    pub parameters: SessionParameters,
}

/// What a SendTargets request asks for (RFC 7143 appendix C).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SendTargets {
    /// Every target that this initiator may see; only in discovery sessions.
    All,
    /// The target of that name; the answer is empty if this initiator may not see it.
    Named(String),
}

/// A target as SendTargets shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetRecord {
    /// Its iSCSI name.
    pub name: String,
    /// Where it is.
    pub portals: Vec<PortalRecord>,
}

/// A portal as SendTargets shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortalRecord {
    /// `address:port`, an IPv6 address in brackets.
    pub address: String,
    /// Its target portal group tag.
    pub group: u16,
}

/// A command descriptor block: 16 bytes, or up to 260 with an extended CDB segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cdb {
    pub(crate) first: [u8; 16],
    pub(crate) whole: Option<Box<[u8]>>,
}

impl Cdb {
    /// The bytes: 16 (a shorter CDB is followed by zeros), or more if extended; at most [`limits::CDB_LEN_MAX`].
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.whole.as_deref().unwrap_or(&self.first)
    }
}

/// Task attribute (RFC 7143 11.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskAttribute {
    /// No attribute was given: SIMPLE to SAM.
    Untagged,
    /// SIMPLE
    Simple,
    /// ORDERED
    Ordered,
    /// HEAD OF QUEUE
    HeadOfQueue,
    /// ACA
    Aca,
}

/// A SCSI command.
#[derive(Debug)]
pub struct Command {
    /// Its name towards the engine.
    pub tag: TaskTag,
    /// Its initiator task tag, for logs.
    pub initiator_task_tag: u32,
    /// The logical unit number, eight bytes as on the wire.
    pub lun: [u8; 8],
    /// The CDB.
    pub cdb: Cdb,
    /// How it is to be ordered.
    pub attribute: TaskAttribute,
    /// Command priority (SAM-5 8.7), 1 the most urgent to 15; 0 if none was given, or the session did not agree to
    /// [`limits::PROTOCOL_LEVEL_SAM_5`]. Whether it makes a difference is the device server's choice.
    pub priority: u8,
    /// The R bit: data to the initiator is expected.
    pub read: bool,
    /// The W bit: data from the initiator is expected.
    pub write: bool,
    /// Bytes that the initiator expects to move: out if `write`, else in.
    pub expected_data_len: u32,
    /// Bytes to the initiator of a bidirectional command, else 0.
    pub bidirectional_read_len: u32,
    /// Data-out bytes that the engine delivers: `expected_data_len` of a write, but no more than
    /// [`crate::PortalOptions::data_out_len_max`].
    pub data_out_len: u32,
    /// Whether it was sent for immediate delivery.
    pub immediate: bool,
    /// Its data.
    pub data: DataState,
}

/// Where the data of a command is.
#[derive(Debug)]
pub enum DataState {
    /// It has none.
    None,
    /// All here.
    Complete(Vec<u8>),
    /// [`Event::DataOut`] or [`Event::DataOutFailed`] follows. The engine solicits it without being asked.
    Awaited,
}

/// Data for the initiator: a buffer of the shell's and which bytes of it.
#[derive(Clone, Debug)]
pub struct Payload<B> {
    pub(crate) buffer: B,
    pub(crate) range: Range<usize>,
}

impl<B: AsRef<[u8]>> Payload<B> {
    /// The whole buffer.
    pub fn new(buffer: B) -> Self {
        let range = 0..buffer.as_ref().len();
        Self { buffer, range }
    }

    /// These bytes of the buffer; a range beyond its end is cut short.
    pub fn part(buffer: B, range: Range<usize>) -> Self {
        let end = range.end.min(buffer.as_ref().len());
        Self { range: range.start.min(end)..end, buffer }
    }

    /// How many bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }
}

/// How a SCSI command ended.
#[derive(Clone, Debug)]
pub struct ScsiOutcome<B> {
    pub(crate) status: u8,
    pub(crate) sense: Vec<u8>,
    pub(crate) data_in: Option<Payload<B>>,
    pub(crate) transfer_len: Option<u64>,
    pub(crate) status_qualifier: u16,
}

impl<B: AsRef<[u8]>> ScsiOutcome<B> {
    /// A SAM-5 status code without data.
    #[must_use]
    pub fn status(status: u8) -> Self {
        Self { status, sense: Vec::new(), data_in: None, transfer_len: None, status_qualifier: 0 }
    }

    /// With sense data (fixed or descriptor format); cut at [`limits::SENSE_LEN_MAX`].
    #[must_use]
    pub fn with_sense(mut self, mut sense: Vec<u8>) -> Self {
        sense.truncate(limits::SENSE_LEN_MAX);
        self.sense = sense;
        self
    }

    /// With data for the initiator: what the command produced. The engine sends no more than was expected and
    /// reports the residual.
    #[must_use]
    pub fn with_data_in(mut self, data: Payload<B>) -> Self {
        self.data_in = Some(data);
        self
    }

    /// With a status qualifier (SAM-5 5.3.2), which only initiators that agreed to [`limits::PROTOCOL_LEVEL_SAM_5`] are told.
    #[must_use]
    pub fn with_status_qualifier(mut self, qualifier: u16) -> Self {
        self.status_qualifier = qualifier;
        self
    }

    /// With the bytes that the command would have moved, had the initiator expected enough: the residual is counted
    /// from it. Without it a read counts its data-in; a write that succeeded counts what was expected, and one that failed
    /// what was received.
    #[must_use]
    pub fn with_transfer_len(mut self, bytes: u64) -> Self {
        self.transfer_len = Some(bytes);
        self
    }
}

/// Why a command's data-out is not whole: iSCSI conditions with the sense of RFC 7143 11.4.7.2 (ABORTED COMMAND).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Unsolicited data that was not agreed to.
    UnexpectedUnsolicitedData,
    /// A sequence ended before its length.
    IncorrectAmountOfData,
    /// A digest error, or a gap in DataSN, which implies one.
    ProtocolServiceCrcError,
}

impl Condition {
    /// Additional sense code and qualifier.
    #[must_use]
    pub fn additional_sense(self) -> (u8, u8) {
        match self {
            Self::UnexpectedUnsolicitedData => (0x0c, 0x0c),
            Self::IncorrectAmountOfData => (0x0c, 0x0d),
            Self::ProtocolServiceCrcError => (0x47, 0x05),
        }
    }

    /// Fixed format sense data (SPC-5 4.4.3), key ABORTED COMMAND.
    #[must_use]
    pub fn sense(self) -> [u8; 18] {
        let (code, qualifier) = self.additional_sense();
        let mut sense = [0; 18];
        sense[0] = 0x70;
        sense[2] = 0x0b;
        sense[7] = 10;
        sense[12] = code;
        sense[13] = qualifier;
        sense
    }
}

/// A task management function (RFC 7143 11.5.1; the queries and I_T NEXUS RESET: RFC 7144, only in sessions that agreed to
/// [`limits::PROTOCOL_LEVEL_SAM_5`]). TASK REASSIGN is answered by the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskManagementFunction {
    /// ABORT TASK, of this task. The engine answers for a task that it does not know.
    AbortTask(TaskTag),
    /// ABORT TASK SET
    AbortTaskSet,
    /// CLEAR ACA
    ClearAca,
    /// CLEAR TASK SET
    ClearTaskSet,
    /// LOGICAL UNIT RESET
    LogicalUnitReset,
    /// TARGET WARM RESET
    TargetWarmReset,
    /// TARGET COLD RESET; the shell closes the sessions after the answer.
    TargetColdReset,
    /// QUERY TASK, about this task. The engine answers for a task that it does not know.
    QueryTask(TaskTag),
    /// QUERY TASK SET
    QueryTaskSet,
    /// I_T NEXUS RESET
    ItNexusReset,
    /// QUERY ASYNCHRONOUS EVENT
    QueryAsynchronousEvent,
}

/// A task management request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskManagement {
    /// Its name towards the engine.
    pub id: TaskManagementId,
    /// What to do.
    pub function: TaskManagementFunction,
    /// The logical unit number; means nothing for the target resets and I_T NEXUS RESET.
    pub lun: [u8; 8],
}

/// The answer to a task management request (RFC 7143 11.6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskManagementResponse {
    /// Function complete.
    Complete,
    /// Task does not exist.
    TaskDoesNotExist,
    /// LUN does not exist.
    LunDoesNotExist,
    /// Function not supported.
    NotSupported,
    /// Function authorization failed.
    AuthorizationFailed,
    /// Function succeeded: a query found something (RFC 7144). With the additional response information, which is zero but for
    /// QUERY ASYNCHRONOUS EVENT.
    Succeeded([u8; 3]),
    /// Function rejected.
    Rejected,
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The initiator logged out.
    Logout,
    /// Login was refused with this status.
    LoginRefused(LoginStatus),
    /// The initiator was sent to another portal.
    Redirected,
    /// Login took too long.
    LoginTimeout,
    /// No answer to a ping, or a discovery session was idle.
    Silent,
    /// The initiator did not log out in time after it was asked to.
    LogoutOverdue,
    /// The initiator broke the protocol; what it did.
    ProtocolError(Violation),
    /// A digest error from which error recovery level 0 knows no return.
    DigestError,
    /// The shell asked for it.
    Local,
}

/// A violation by the initiator for which the connection had to be given up (RFC 7143 7.6: a format error ends the
/// session).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A PDU other than a login request before login.
    NotALogin,
    /// A data segment longer than we declared.
    DataSegmentTooLong,
    /// An additional header segment that is malformed, unknown, twice, or too long.
    AdditionalHeader,
    /// Header fields that contradict each other or the state; the field.
    Header(&'static str),
    /// Data-Out outside its sequence.
    DataOutOfRange,
    /// More requests behind a gap in CmdSN than the bounds allow.
    TooMuchHeld,
    /// A login PDU while the last one was unanswered: login has one PDU in flight.
    Pipelined,
}
