//! Command descriptor blocks: bytes in, a [`Command`] or the sense data that refuses them out.
//!
//! Start at [`parse`]. It looks the command up in [`opcode::TABLE`], refuses every bit that the table does not allow,
//! and hands the fields to the decoder of the command's family (`block`, `read_write`, `primary`).
//!
//! Invariant: a [`Command`] holds valid values only. Every [`Extent`] in it lies within the capacity that `parse` was
//! given and every length within [`crate::limits`].

mod block;
mod fields;
mod options;
mod primary;
mod read_write;
mod third_party_copy;
mod transfer;
mod unmap;

/// The decoders by name, for the table.
pub(crate) mod decode {
    pub(crate) use super::block::*;
    pub(crate) use super::primary::*;
    pub(crate) use super::read_write::*;
    pub(crate) use super::third_party_copy::*;

    /// Turns the raw fields of one command into its valid form.
    pub(crate) type Decoder =
        fn(&super::fields::RawCdb, &crate::geometry::Geometry) -> Result<super::Command, crate::sense::Sense>;
}

pub use options::*;
pub use third_party_copy::CopyCommand;
pub use transfer::Direction;
pub use unmap::{UnmapExtents, parse_unmap_list};

use crate::geometry::{Extent, Geometry};
use crate::opcode;
use crate::sense::{Sense, asc};
use fields::RawCdb;

/// A command, decoded and checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// TEST UNIT READY.
    TestUnitReady,
    /// REQUEST SENSE.
    RequestSense {
        /// DESC: the initiator wants descriptor format.
        descriptor: bool,
        /// ALLOCATION LENGTH in bytes.
        allocation_length: u8,
    },
    /// INQUIRY.
    Inquiry {
        /// PAGE CODE with EVPD=1; `None`: standard INQUIRY data. The page may be one that does not exist
        /// (`vpd::write` answers that).
        vpd_page: Option<u8>,
        /// ALLOCATION LENGTH in bytes.
        allocation_length: u16,
    },
    /// MODE SENSE (6) and (10).
    ModeSense(ModeSense),
    /// MODE SELECT (6) and (10), PF=1.
    ModeSelect {
        /// Which of both.
        form: ModeForm,
        /// SP: the values are saved too.
        save: bool,
        /// PARAMETER LIST LENGTH in bytes.
        parameter_list_length: u16,
    },
    /// LOG SELECT. Values can only be put back to their defaults, and none can be saved.
    LogSelect {
        /// The General Statistics and Performance page is put back (PCR, or PC=11b). Otherwise nothing changes.
        reset_statistics: bool,
        /// PARAMETER LIST LENGTH in bytes; a list can only be refused.
        parameter_list_length: u16,
    },
    /// LOG SENSE of a page that exists.
    LogSense {
        /// Which.
        page: LogPage,
        /// PARAMETER POINTER: the first parameter code that is wanted.
        pointer: u16,
        /// ALLOCATION LENGTH in bytes.
        allocation_length: u16,
    },
    /// READ CAPACITY (10).
    ReadCapacity10,
    /// READ CAPACITY (16).
    ReadCapacity16 {
        /// ALLOCATION LENGTH in bytes.
        allocation_length: u32,
    },
    /// READ (6), (10), (12), (16), (32).
    Read {
        /// Blocks to read; may be empty.
        extent: Extent,
        /// Force unit access: not from a volatile cache.
        fua: bool,
        /// Disable page out: the data will not be wanted again soon.
        dpo: bool,
    },
    /// WRITE (6), (10), (12), (16), (32).
    Write {
        /// Blocks to write; may be empty.
        extent: Extent,
        /// Force unit access: on stable storage before GOOD.
        fua: bool,
        /// Disable page out.
        dpo: bool,
    },
    /// WRITE AND VERIFY (10), (12), (16), (32). Durable before GOOD, as after FUA.
    WriteAndVerify {
        /// Blocks to write; may be empty.
        extent: Extent,
        /// BYTCHK=01b: compare what was written byte by byte.
        compare: bool,
        /// Disable page out.
        dpo: bool,
    },
    /// VERIFY (10), (12), (16), (32).
    Verify {
        /// Blocks to verify; may be empty.
        extent: Extent,
        /// What to verify against.
        check: VerifyCheck,
        /// Disable page out.
        dpo: bool,
    },
    /// SYNCHRONIZE CACHE (10), (16).
    SynchronizeCache {
        /// Blocks to make durable. `None`: from the LBA to the end, whose length need not fit an [`Extent`]; flush
        /// everything.
        extent: Option<Extent>,
        /// IMMED: status before the work is done is allowed.
        immediate: bool,
    },
    /// UNMAP. Its parameter list goes through [`parse_unmap_list`].
    Unmap {
        /// PARAMETER LIST LENGTH in bytes; 0: nothing to do, or at least 8 and at most
        /// [`crate::limits::UNMAP_PARAMETER_LIST_MAX`].
        parameter_list_length: u16,
    },
    /// WRITE SAME (10), (16), (32).
    WriteSame {
        /// Blocks to write; never empty (WSNZ=1).
        extent: Extent,
        /// UNMAP: may deallocate instead, if the blocks then read as the data given.
        unmap: bool,
        /// Where the data comes from.
        source: WriteSameSource,
    },
    /// COMPARE AND WRITE. Data-Out: the blocks to compare with, then the blocks to write.
    CompareAndWrite {
        /// Blocks to compare and write; may be empty.
        extent: Extent,
        /// Force unit access.
        fua: bool,
        /// Disable page out.
        dpo: bool,
    },
    /// ORWRITE (16).
    OrWrite {
        /// Blocks to OR into; may be empty.
        extent: Extent,
        /// Force unit access.
        fua: bool,
        /// Disable page out.
        dpo: bool,
    },
    /// WRITE ATOMIC (16). Each atomic write operation is done whole or not at all, whatever happens meanwhile.
    WriteAtomic {
        /// Blocks to write; may be empty.
        extent: Extent,
        /// ATOMIC BOUNDARY: no atomic write operation reaches over an LBA that is a multiple of so many blocks, and there are as many
        /// operations as that takes. 0: all is one.
        boundary: u16,
        /// Disable page out.
        dpo: bool,
    },
    /// PRE-FETCH (10), (16).
    PreFetch {
        /// Blocks to bring into the cache. `None`: from the LBA to the end of the unit.
        extent: Option<Extent>,
        /// IMMED.
        immediate: bool,
    },
    /// GET LBA STATUS (16).
    GetLbaStatus {
        /// STARTING LOGICAL BLOCK ADDRESS, within the capacity.
        lba: u64,
        /// ALLOCATION LENGTH in bytes.
        allocation_length: u32,
    },
    /// REPORT LUNS.
    ReportLuns {
        /// SELECT REPORT.
        select: SelectReport,
        /// ALLOCATION LENGTH in bytes, at least 16.
        allocation_length: u32,
    },
    /// REPORT TARGET PORT GROUPS.
    ReportTargetPortGroups {
        /// PARAMETER DATA FORMAT 001b: the header with IMPLICIT TRANSITION TIME.
        extended: bool,
        /// ALLOCATION LENGTH in bytes.
        allocation_length: u32,
    },
    /// SET TARGET PORT GROUPS. Its parameter list goes through [`crate::alua::wanted`].
    SetTargetPortGroups {
        /// PARAMETER LIST LENGTH in bytes: 0, or a header and whole descriptors.
        parameter_list_length: u32,
    },
    /// REPORT SUPPORTED OPERATION CODES.
    ReportSupportedOperationCodes {
        /// REPORTING OPTIONS with what they need.
        options: ReportingOptions,
        /// RCTD: return command timeouts descriptors.
        timeouts: bool,
        /// ALLOCATION LENGTH in bytes.
        allocation_length: u32,
    },
    /// REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS.
    ReportSupportedTaskManagementFunctions {
        /// REPD: return the extended form.
        extended: bool,
        /// ALLOCATION LENGTH in bytes, at least 4.
        allocation_length: u32,
    },
    /// PERSISTENT RESERVE IN.
    PersistentReserveIn {
        /// SERVICE ACTION.
        action: PrInAction,
        /// ALLOCATION LENGTH in bytes.
        allocation_length: u16,
    },
    /// PERSISTENT RESERVE OUT. What SCOPE and TYPE mean depends on the service action and, as the parameter list, is
    /// judged by `pr::out`.
    PersistentReserveOut {
        /// SERVICE ACTION.
        action: PrOutAction,
        /// SCOPE, 4 bits.
        scope: u8,
        /// TYPE, 4 bits.
        kind: u8,
        /// PARAMETER LIST LENGTH in bytes, at most [`crate::limits::PR_OUT_PARAMETER_LIST_MAX`].
        parameter_list_length: u32,
    },
    /// RESERVE (6), (10) of SPC-2, for the whole unit and the sender itself.
    Reserve,
    /// RELEASE (6), (10) of SPC-2.
    Release,
    /// START STOP UNIT, without LOEJ and with POWER CONDITION 0 (START_VALID).
    StartStopUnit {
        /// IMMED.
        immediate: bool,
        /// START.
        start: bool,
    },
    /// PREVENT ALLOW MEDIUM REMOVAL.
    PreventAllowMediumRemoval {
        /// PREVENT.
        prevent: bool,
    },
    /// FORMAT UNIT.
    FormatUnit {
        /// Bytes of the parameter list's header that follows (FMTDATA, LONGLIST): 0, 4 or 8.
        header_len: u8,
    },
    /// SANITIZE.
    Sanitize {
        /// SERVICE ACTION.
        action: SanitizeAction,
        /// IMMED: status before the work is done.
        immediate: bool,
        /// AUSE: a failure may be left by EXIT FAILURE MODE.
        may_exit_failure: bool,
        /// PARAMETER LIST LENGTH in bytes; 0 except for OVERWRITE.
        parameter_list_length: u16,
    },
    /// READ BUFFER (10), (16) of the echo buffer, or of a descriptor.
    ReadBuffer {
        /// MODE.
        mode: BufferMode,
        /// ALLOCATION LENGTH in bytes.
        allocation_length: u32,
    },
    /// WRITE BUFFER to the echo buffer.
    WriteBuffer {
        /// PARAMETER LIST LENGTH in bytes, at most [`crate::limits::ECHO_BUFFER_LEN`].
        parameter_list_length: u32,
    },
    /// REPORT IDENTIFYING INFORMATION.
    ReportIdentifyingInformation {
        /// IDENTIFYING INFORMATION TYPE.
        kind: IdentifyingKind,
        /// ALLOCATION LENGTH in bytes.
        allocation_length: u32,
    },
    /// SET IDENTIFYING INFORMATION, of a kind that can be set.
    SetIdentifyingInformation {
        /// IDENTIFYING INFORMATION TYPE.
        kind: IdentifyingKind,
        /// PARAMETER LIST LENGTH in bytes, within the limit of the kind; 0 clears it.
        parameter_list_length: u32,
    },
    /// REPORT TIMESTAMP.
    ReportTimestamp {
        /// ALLOCATION LENGTH in bytes.
        allocation_length: u32,
    },
    /// SET TIMESTAMP.
    SetTimestamp {
        /// PARAMETER LIST LENGTH in bytes: 12.
        parameter_list_length: u32,
    },
    /// SEND DIAGNOSTIC with SELFTEST=1: the default self-test. (Without SELFTEST and without parameters: nothing.)
    SendDiagnostic {
        /// SELFTEST.
        self_test: bool,
    },
    /// RECEIVE DIAGNOSTIC RESULTS with PCV=1 of page 00h, the only one.
    ReceiveDiagnosticResults {
        /// ALLOCATION LENGTH in bytes.
        allocation_length: u16,
    },
    /// Third-party copy: EXTENDED COPY, copies by token, and what tells of them.
    Copy(CopyCommand),
}

/// Length in bytes of the CDB that begins with `opcode`: of a supported command from the table, otherwise by the group
/// code (SPC-5 4.2.5.1). `None` for variable-length and vendor groups.
pub fn cdb_len(opcode: u8) -> Option<usize> {
    if let Some(row) = opcode::rows(opcode).first() {
        return Some(row.usage.len());
    }
    match opcode >> 5 {
        0 => Some(6),
        1 | 2 => Some(10),
        4 => Some(16),
        5 => Some(12),
        _ => None,
    }
}

/// NACA of a CDB: a CHECK CONDITION establishes an ACA condition.
pub fn naca(cdb: &[u8]) -> bool {
    let Some(opcode) = cdb.first() else { return false };
    let at = match (opcode::rows(*opcode).first(), cdb_len(*opcode)) {
        (Some(row), _) => row.control_at(),
        (None, Some(len)) => len.saturating_sub(1),
        // Of variable length or a vendor's: where CONTROL is, nobody knows.
        (None, None) => return false,
    };
    cdb.get(at).is_some_and(|control| control & opcode::NACA != 0)
}

/// True for WRITE and WRITE AND VERIFY: the commands that write fewer blocks than their CDB asks for if the initiator
/// announces fewer. One that announces Data-In for them is mistaken about what it sends, and must not be told GOOD.
pub const fn may_be_cut_short(cdb: &[u8]) -> bool {
    match cdb {
        [0x7f, _, _, _, _, _, _, _, 0x00, 0x0b | 0x0c, ..] => true,
        [opcode, ..] => matches!(opcode, 0x0a | 0x2a | 0x2e | 0x8a | 0x8e | 0xaa | 0xae),
        [] => false,
    }
}

/// True for the commands that the whole cluster agrees on before they are answered (`lu_state`): reservations, mode parameters,
/// identifying information, the timestamp, the removal of the medium, and the operations on the whole medium.
pub fn is_agreed(cdb: &[u8]) -> bool {
    let service_action = cdb.get(1).map_or(0, |byte| byte & 0x1f);
    match cdb.first() {
        // SET IDENTIFYING INFORMATION and SET TIMESTAMP among MAINTENANCE OUT.
        Some(0xa4) => matches!(service_action, 0x06 | 0x0f),
        Some(opcode) => matches!(opcode, 0x04 | 0x15 | 0x16 | 0x17 | 0x1e | 0x48 | 0x55 | 0x56 | 0x57 | 0x5f),
        None => false,
    }
}

/// Decodes and checks a CDB for a logical unit of this `geometry`.
///
/// Bytes beyond the length of the command are ignored (transports pad); missing ones make a CDB invalid.
///
/// # Errors
/// The sense data to return: INVALID COMMAND OPERATION CODE, INVALID FIELD IN CDB with a pointer to the first wrong
/// field, or LOGICAL BLOCK ADDRESS OUT OF RANGE with the first LBA that does not exist.
pub fn parse(cdb: &[u8], geometry: &Geometry) -> Result<Command, Sense> {
    let rows = match cdb.first() {
        Some(opcode) => opcode::rows(*opcode),
        None => &[],
    };
    let Some(first) = rows.first() else {
        return Err(Sense::illegal(asc::INVALID_COMMAND_OPERATION_CODE));
    };
    if first.opcode == opcode::VARIABLE_LENGTH {
        let row = variable_length(cdb, rows)?;
        let raw = RawCdb::new(cdb, row.usage.len())?;
        raw.refuse_bits_outside(row)?;
        return (row.decode)(&raw, geometry);
    }
    let raw = RawCdb::new(cdb, first.usage.len())?;
    let row = match first.service_action {
        None => first,
        Some(_) => rows
            .iter()
            .find(|row| row.service_action == Some(raw.service_action()))
            .ok_or(Sense::illegal_field_cdb(1, Some(4)))?,
    };
    raw.refuse_bits_outside(row)?;
    (row.decode)(&raw, geometry)
}

/// The row of a variable-length CDB: by its SERVICE ACTION, if its ADDITIONAL CDB LENGTH is that of the command (SPC-5 4.2.5.2).
fn variable_length<'a>(cdb: &[u8], rows: &'a [opcode::Row]) -> Result<&'a opcode::Row, Sense> {
    let Some([_, _, _, _, _, _, _, additional, high, low]) = cdb.first_chunk() else {
        return Err(Sense::illegal_field_cdb(u16::try_from(cdb.len()).unwrap_or(u16::MAX), None));
    };
    let action = u16::from_be_bytes([*high, *low]);
    let row = rows.iter().find(|row| row.service_action == Some(action));
    let row = row.ok_or(Sense::illegal_field_cdb(opcode::SERVICE_ACTION_32_AT as u16, None))?;
    if *additional != row.additional_cdb_length() {
        return Err(Sense::illegal_field_cdb(opcode::ADDITIONAL_CDB_LENGTH_AT as u16, None));
    }
    Ok(row)
}

#[cfg(test)]
mod tests;
