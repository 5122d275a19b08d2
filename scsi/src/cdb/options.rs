//! What a command may be told to do: the codes of its fields, each a type that holds valid values only.

/// Service actions of SANITIZE (SBC-4 5.30) but CRYPTOGRAPHIC ERASE: nothing is encrypted whose key could be forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SanitizeAction {
    /// 01h.
    Overwrite,
    /// 02h.
    BlockErase,
    /// 1Fh.
    ExitFailureMode,
}

/// MODE of READ BUFFER.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BufferMode {
    /// 03h: there is no other buffer than the echo buffer.
    Descriptor,
    /// 0Ah.
    EchoBuffer,
    /// 0Bh.
    EchoBufferDescriptor,
}

/// IDENTIFYING INFORMATION TYPE (SPC-5 6.33).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdentifyingKind {
    /// 0000000b: peripheral device identifying information.
    Device,
    /// 0000010b: peripheral device text identifying information.
    Text,
    /// 1111111b: which kinds there are. Only to be reported.
    Supported,
}

impl IdentifyingKind {
    /// The code, 7 bits.
    pub const fn code(self) -> u8 {
        match self {
            IdentifyingKind::Device => 0b000_0000,
            IdentifyingKind::Text => 0b000_0010,
            IdentifyingKind::Supported => 0b111_1111,
        }
    }
}

/// Log pages that exist ([`crate::log_pages`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogPage {
    /// 00h.
    SupportedPages,
    /// 00h, subpage FFh.
    SupportedSubpages,
    /// 0Ch.
    LogicalBlockProvisioning,
    /// 0Dh.
    Temperature,
    /// 19h.
    GeneralStatistics,
    /// 2Fh.
    InformationalExceptions,
}

/// The six-byte and the ten-byte form of a mode command; they differ in the parameter header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModeForm {
    /// 4-byte header.
    Six,
    /// 8-byte header.
    Ten,
}

/// MODE SENSE (6) and (10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModeSense {
    /// Which of both.
    pub form: ModeForm,
    /// PAGE CONTROL.
    pub control: PageControl,
    /// PAGE CODE, 6 bits. Whether the page exists is for `mode::sense` to say.
    pub page: u8,
    /// SUBPAGE CODE.
    pub subpage: u8,
    /// DBD=0: block descriptors are wanted.
    pub block_descriptor: bool,
    /// LLBAA: the long block descriptor may be returned (only MODE SENSE (10) has it).
    pub long_lba: bool,
    /// ALLOCATION LENGTH in bytes.
    pub allocation_length: u16,
}

/// PAGE CONTROL of MODE SENSE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageControl {
    /// 00b.
    Current,
    /// 01b: a mask of the bits that MODE SELECT may change.
    Changeable,
    /// 10b.
    Default,
    /// 11b.
    Saved,
}

/// What VERIFY compares (BYTCHK).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerifyCheck {
    /// 00b: only that the blocks can be read. No Data-Out.
    Medium,
    /// 01b: with the Data-Out buffer, block by block.
    Bytes,
    /// 11b: each block with the one block in the Data-Out buffer.
    OneBlock,
}

/// Where the data of WRITE SAME comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteSameSource {
    /// One block in the Data-Out buffer.
    DataOutBlock,
    /// NDOB=1: zeroes, no Data-Out.
    Zeroes,
}

/// SELECT REPORT of REPORT LUNS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SelectReport {
    /// 00h: all but well known logical units.
    Accessible,
    /// 01h: well known logical units only (there are none).
    WellKnown,
    /// 02h: all.
    All,
}

/// REPORTING OPTIONS of REPORT SUPPORTED OPERATION CODES.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportingOptions {
    /// 000b: all commands.
    All,
    /// 001b: one command without service actions.
    Opcode(u8),
    /// 010b: one command with a service action.
    ServiceAction(u8, u16),
    /// 011b: one command, with or without service actions.
    Either(u8, u16),
}

/// Service actions of PERSISTENT RESERVE IN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PrInAction {
    /// READ KEYS.
    ReadKeys = 0,
    /// READ RESERVATION.
    ReadReservation = 1,
    /// REPORT CAPABILITIES.
    ReportCapabilities = 2,
    /// READ FULL STATUS.
    ReadFullStatus = 3,
}

/// Service actions of PERSISTENT RESERVE OUT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PrOutAction {
    /// REGISTER.
    Register = 0,
    /// RESERVE.
    Reserve = 1,
    /// RELEASE.
    Release = 2,
    /// CLEAR.
    Clear = 3,
    /// PREEMPT.
    Preempt = 4,
    /// PREEMPT AND ABORT.
    PreemptAndAbort = 5,
    /// REGISTER AND IGNORE EXISTING KEY.
    RegisterAndIgnoreExistingKey = 6,
    /// REGISTER AND MOVE.
    RegisterAndMove = 7,
    /// REPLACE LOST RESERVATION.
    ReplaceLostReservation = 8,
}
