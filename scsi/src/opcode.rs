//! The table of supported commands. [`crate::cdb::parse`] decodes by it and REPORT SUPPORTED OPERATION CODES reports it,
//! so the two cannot differ.
//!
//! Invariants (tested): sorted by operation code and service action, no row twice, and all rows of one operation code
//! have the same CDB length.

use crate::cdb::decode::{self, Decoder};

/// One command: an operation code, with a service action where the command has one.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The name in the standards.
    pub name: &'static str,
    /// OPERATION CODE.
    pub opcode: u8,
    /// SERVICE ACTION (bits 4..0 of byte 1, or bytes 8 and 9 of a variable-length CDB), if the command has one.
    pub service_action: Option<u16>,
    /// CDB USAGE DATA (SPC-5 6.36.3): a 1 for every bit that is evaluated. Its length is that of the CDB. Byte 0 is
    /// the operation code; the bits of a service action are all 1 here and replaced in the report.
    pub usage: &'static [u8],
    /// More bits that may be set as far as the table goes, by byte: obsolete ones, which are ignored, and fields that
    /// the decoder judges itself though they are not supported (to point at the whole field). Missing bytes are 0.
    pub unchecked: &'static [u8],
    /// RECOMMENDED COMMAND TIMEOUT, in seconds.
    pub timeout_s: u32,
    /// Decodes the fields.
    pub(crate) decode: Decoder,
}

impl Row {
    const fn new(name: &'static str, usage: &'static [u8], decode: Decoder) -> Row {
        let opcode = match usage {
            [opcode, ..] => *opcode,
            [] => 0,
        };
        Row { name, opcode, service_action: None, usage, unchecked: &[], timeout_s: TIMEOUT_S, decode }
    }

    /// Where CONTROL is: the last byte, or byte 1 of a variable-length CDB.
    pub const fn control_at(&self) -> usize {
        if self.opcode == VARIABLE_LENGTH { 1 } else { self.usage.len().saturating_sub(1) }
    }

    /// Where RDPROTECT and its like stand: byte 1, or byte 10 of a variable-length CDB.
    pub const fn flags_at(&self) -> usize {
        if self.opcode == VARIABLE_LENGTH { 10 } else { 1 }
    }

    /// Writes what names this command into a CDB that is zero otherwise: the operation code, the service action and, of a
    /// variable-length CDB, the ADDITIONAL CDB LENGTH. What does not fit is left out.
    pub fn name_in(&self, cdb: &mut [u8]) {
        let mut put = |at: usize, value: u8| {
            if let Some(byte) = cdb.get_mut(at) {
                *byte = value;
            }
        };
        put(0, self.opcode);
        let [high, low] = self.service_action.unwrap_or(0).to_be_bytes();
        if self.opcode == VARIABLE_LENGTH {
            put(ADDITIONAL_CDB_LENGTH_AT, self.additional_cdb_length());
            put(SERVICE_ACTION_32_AT, high);
            put(SERVICE_ACTION_32_AT + 1, low);
        } else {
            put(1, low);
        }
    }

    /// ADDITIONAL CDB LENGTH of a variable-length CDB: the bytes behind the first eight.
    pub(crate) const fn additional_cdb_length(&self) -> u8 {
        self.usage.len().saturating_sub(8) as u8
    }

    const fn action(mut self, service_action: u16) -> Row {
        self.service_action = Some(service_action);
        self
    }

    const fn unchecked(mut self, unchecked: &'static [u8]) -> Row {
        self.unchecked = unchecked;
        self
    }

    const fn hours(mut self) -> Row {
        self.timeout_s = TIMEOUT_WHOLE_UNIT_S;
        self
    }

    const fn long(mut self) -> Row {
        self.timeout_s = TIMEOUT_LONG_S;
        self
    }
}

/// Operation code of variable-length CDBs.
pub const VARIABLE_LENGTH: u8 = 0x7f;
/// Where a variable-length CDB has its ADDITIONAL CDB LENGTH and its SERVICE ACTION (SPC-5 4.2.5.2).
pub(crate) const ADDITIONAL_CDB_LENGTH_AT: usize = 7;
pub(crate) const SERVICE_ACTION_32_AT: usize = 8;
/// NACA in CONTROL: every command may establish an ACA condition.
pub const NACA: u8 = 0x04;

/// For commands that one round of I/O answers.
const TIMEOUT_S: u32 = 30;
/// For commands that may have to write or flush much.
const TIMEOUT_LONG_S: u32 = 60;

/// For copies: as much as one command may ask for, at the pace of a slow medium.
const TIMEOUT_COPY_S: u32 = 10 * 60;
/// For commands that write the whole unit: a day.
const TIMEOUT_WHOLE_UNIT_S: u32 = 24 * 60 * 60;

/// In a CDB of 32 bytes: GROUP NUMBER, the flags' obsolete bit, and the expected tags of protection information, which are ignored where
/// RDPROTECT and its like ask for none (SBC-4 5.18).
const TAGS_32: &[u8] = &[
    0, 0, 0, 0, 0, 0, 0x1f, 0, 0, 0, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
    0xff, 0xff,
];
/// VERIFY and WRITE AND VERIFY use the obsolete bit for BYTCHK, WRITE SAME leaves it reserved.
const ONLY_TAGS_32: &[u8] = &[
    0, 0, 0, 0, 0, 0, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
    0xff,
];
/// FUA_NV (obsolete since SBC-4) and GROUP NUMBER (grouping is not supported: any group is as good as none).
const GROUP_AT_6: &[u8] = &[0, 0x02, 0, 0, 0, 0, 0x1f];
const GROUP_AT_10: &[u8] = &[0, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0x1f];
const GROUP_AT_14: &[u8] = &[0, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x1f];
/// VERIFY and WRITE AND VERIFY use bit 1 of byte 1 for BYTCHK: only GROUP NUMBER is left over.
const ONLY_GROUP_AT_6: &[u8] = &[0, 0, 0, 0, 0, 0, 0x1f];
const ONLY_GROUP_AT_10: &[u8] = &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x1f];
const ONLY_GROUP_AT_14: &[u8] = &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x1f];
/// SYNC_NV (obsolete) and GROUP NUMBER.
const SYNC_AT_6: &[u8] = &[0, 0x04, 0, 0, 0, 0, 0x1f];
const SYNC_AT_14: &[u8] = &[0, 0x04, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x1f];
/// LOGICAL BLOCK ADDRESS and PMI of READ CAPACITY (10), obsolete: a host that sets PMI still wants the last block.
const READ_CAPACITY_10_OBSOLETE: &[u8] = &[0, 0x01, 0xff, 0xff, 0xff, 0xff, 0, 0, 0x01];
const READ_CAPACITY_16_OBSOLETE: &[u8] =
    &[0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0x01];
/// POWER CONDITION MODIFIER, POWER CONDITION and LOEJ.
const START_STOP_REFUSED: &[u8] = &[0, 0, 0, 0x0f, 0xf2];

/// Every supported command, sorted by operation code, then by service action.
pub const TABLE: &[Row] = &[
    Row::new("TEST UNIT READY", &[0x00, 0, 0, 0, 0, 0], decode::test_unit_ready),
    Row::new("REQUEST SENSE", &[0x03, 0x01, 0, 0, 0xff, 0], decode::request_sense),
    Row::new("FORMAT UNIT", &[0x04, 0x30, 0, 0, 0, 0], decode::format_unit)
        .unchecked(&[0, 0xcf, 0xff, 0xff, 0x03])
        .hours(),
    Row::new("READ(6)", &[0x08, 0x1f, 0xff, 0xff, 0xff, 0], decode::read6),
    Row::new("WRITE(6)", &[0x0a, 0x1f, 0xff, 0xff, 0xff, 0], decode::write6),
    Row::new("INQUIRY", &[0x12, 0x01, 0xff, 0xff, 0xff, 0], decode::inquiry),
    Row::new("MODE SELECT(6)", &[0x15, 0x11, 0, 0, 0xff, 0], decode::mode_select6),
    Row::new("RESERVE(6)", &[0x16, 0, 0, 0, 0, 0], decode::reserve),
    Row::new("RELEASE(6)", &[0x17, 0, 0, 0, 0, 0], decode::release),
    Row::new("MODE SENSE(6)", &[0x1a, 0x08, 0xff, 0xff, 0xff, 0], decode::mode_sense6),
    Row::new("START STOP UNIT", &[0x1b, 0x01, 0, 0, 0x05, 0], decode::start_stop_unit)
        .unchecked(START_STOP_REFUSED)
        .long(),
    Row::new(
        "RECEIVE DIAGNOSTIC RESULTS",
        &[0x1c, 0x01, 0xff, 0xff, 0xff, 0],
        decode::receive_diagnostic_results,
    ),
    Row::new("SEND DIAGNOSTIC", &[0x1d, 0x04, 0, 0, 0, 0], decode::send_diagnostic)
        .unchecked(&[0, 0xf3, 0, 0xff, 0xff]),
    Row::new("PREVENT ALLOW MEDIUM REMOVAL", &[0x1e, 0, 0, 0, 0x01, 0], decode::prevent_allow_medium_removal)
        .unchecked(&[0, 0, 0, 0, 0x02]),
    Row::new("READ CAPACITY(10)", &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], decode::read_capacity10)
        .unchecked(READ_CAPACITY_10_OBSOLETE),
    Row::new("READ(10)", &[0x28, 0x18, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0], decode::read10)
        .unchecked(GROUP_AT_6),
    Row::new("WRITE(10)", &[0x2a, 0x18, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0], decode::write10)
        .unchecked(GROUP_AT_6),
    Row::new(
        "WRITE AND VERIFY(10)",
        &[0x2e, 0x16, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0],
        decode::write_and_verify10,
    )
    .unchecked(ONLY_GROUP_AT_6),
    Row::new("VERIFY(10)", &[0x2f, 0x16, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0], decode::verify10)
        .unchecked(ONLY_GROUP_AT_6),
    Row::new("PRE-FETCH(10)", &[0x34, 0x02, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0], decode::pre_fetch10)
        .unchecked(ONLY_GROUP_AT_6),
    Row::new(
        "SYNCHRONIZE CACHE(10)",
        &[0x35, 0x02, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0],
        decode::synchronize_cache10,
    )
    .unchecked(SYNC_AT_6)
    .long(),
    Row::new("WRITE BUFFER", &[0x3b, 0x1f, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0], decode::write_buffer)
        .unchecked(&[0, 0, 0xff, 0xff, 0xff, 0xff]),
    Row::new("READ BUFFER(10)", &[0x3c, 0x1f, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0], decode::read_buffer10)
        .unchecked(&[0, 0, 0xff, 0xff, 0xff, 0xff]),
    Row::new("WRITE SAME(10)", &[0x41, 0x08, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0], decode::write_same10)
        .unchecked(ONLY_GROUP_AT_6)
        .long(),
    Row::new("UNMAP", &[0x42, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0], decode::unmap)
        .unchecked(ONLY_GROUP_AT_6)
        .long(),
    sanitize("SANITIZE, OVERWRITE", 0x01),
    sanitize("SANITIZE, BLOCK ERASE", 0x02),
    sanitize("SANITIZE, EXIT FAILURE MODE", 0x1f),
    Row::new("LOG SELECT", &[0x4c, 0x02, 0xff, 0xff, 0, 0, 0, 0xff, 0xff, 0], decode::log_select),
    Row::new("LOG SENSE", &[0x4d, 0, 0xff, 0xff, 0, 0xff, 0xff, 0xff, 0xff, 0], decode::log_sense),
    Row::new("MODE SELECT(10)", &[0x55, 0x11, 0, 0, 0, 0, 0, 0xff, 0xff, 0], decode::mode_select10),
    Row::new("RESERVE(10)", &[0x56, 0, 0, 0, 0, 0, 0, 0, 0, 0], decode::reserve10)
        .unchecked(&[0, 0x12, 0, 0xff, 0, 0, 0, 0xff, 0xff]),
    Row::new("RELEASE(10)", &[0x57, 0, 0, 0, 0, 0, 0, 0, 0, 0], decode::release10)
        .unchecked(&[0, 0x12, 0, 0xff, 0, 0, 0, 0xff, 0xff]),
    Row::new("MODE SENSE(10)", &[0x5a, 0x18, 0xff, 0xff, 0, 0, 0, 0xff, 0xff, 0], decode::mode_sense10),
    pr_in("PERSISTENT RESERVE IN, READ KEYS", 0),
    pr_in("PERSISTENT RESERVE IN, READ RESERVATION", 1),
    pr_in("PERSISTENT RESERVE IN, REPORT CAPABILITIES", 2),
    pr_in("PERSISTENT RESERVE IN, READ FULL STATUS", 3),
    pr_out("PERSISTENT RESERVE OUT, REGISTER", 0),
    pr_out("PERSISTENT RESERVE OUT, RESERVE", 1),
    pr_out("PERSISTENT RESERVE OUT, RELEASE", 2),
    pr_out("PERSISTENT RESERVE OUT, CLEAR", 3),
    pr_out("PERSISTENT RESERVE OUT, PREEMPT", 4),
    pr_out("PERSISTENT RESERVE OUT, PREEMPT AND ABORT", 5),
    pr_out("PERSISTENT RESERVE OUT, REGISTER AND IGNORE EXISTING KEY", 6),
    pr_out("PERSISTENT RESERVE OUT, REGISTER AND MOVE", 7),
    pr_out("PERSISTENT RESERVE OUT, REPLACE LOST RESERVATION", 8),
    rw32("READ(32)", 0x18, decode::read32).action(0x09).unchecked(TAGS_32),
    rw32("VERIFY(32)", 0x16, decode::verify32).action(0x0a).unchecked(ONLY_TAGS_32),
    rw32("WRITE(32)", 0x18, decode::write32).action(0x0b).unchecked(TAGS_32),
    rw32("WRITE AND VERIFY(32)", 0x16, decode::write_and_verify32).action(0x0c).unchecked(ONLY_TAGS_32),
    rw32("WRITE SAME(32)", 0x09, decode::write_same32).action(0x0d).unchecked(ONLY_TAGS_32).long(),
    copy_out("EXTENDED COPY(LID1)", 0x00, EXTENDED_COPY, decode::extended_copy_lid1),
    copy_out("EXTENDED COPY(LID4)", 0x01, EXTENDED_COPY, decode::extended_copy_lid4),
    copy_out("POPULATE TOKEN", 0x10, USING_TOKEN, decode::populate_token),
    copy_out("WRITE USING TOKEN", 0x11, USING_TOKEN, decode::write_using_token),
    Row::new(
        "COPY OPERATION ABORT",
        &[0x83, 0x1f, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        decode::copy_operation_abort,
    )
    .action(0x1c)
    .long(),
    copy_in("RECEIVE COPY STATUS(LID1)", 0x00, LIST_ID_1, decode::receive_copy_status_lid1),
    copy_in("RECEIVE COPY DATA(LID1)", 0x01, LIST_ID_1, decode::receive_copy_data_lid1),
    copy_in("RECEIVE COPY OPERATING PARAMETERS", 0x03, NO_LIST_ID, decode::receive_copy_operating_parameters),
    copy_in("RECEIVE COPY FAILURE DETAILS(LID1)", 0x04, LIST_ID_1, decode::receive_copy_failure_details),
    copy_in("RECEIVE COPY STATUS(LID4)", 0x05, LIST_ID_4, decode::receive_copy_status_lid4),
    copy_in("RECEIVE COPY DATA(LID4)", 0x06, LIST_ID_4, decode::receive_copy_data_lid4),
    copy_in("RECEIVE ROD TOKEN INFORMATION", 0x07, LIST_ID_4, decode::receive_rod_token_information),
    copy_in("REPORT ALL ROD TOKENS", 0x08, NO_LIST_ID, decode::report_all_rod_tokens),
    Row::new("READ(16)", &rw16(0x88, 0x18), decode::read16).unchecked(GROUP_AT_14),
    Row::new(
        "COMPARE AND WRITE",
        &[0x89, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0xff, 0, 0],
        decode::compare_and_write,
    )
    .unchecked(GROUP_AT_14),
    Row::new("WRITE(16)", &rw16(0x8a, 0x18), decode::write16).unchecked(GROUP_AT_14),
    Row::new("ORWRITE(16)", &rw16(0x8b, 0x18), decode::or_write16).unchecked(GROUP_AT_14),
    Row::new("WRITE AND VERIFY(16)", &rw16(0x8e, 0x16), decode::write_and_verify16)
        .unchecked(ONLY_GROUP_AT_14),
    Row::new("VERIFY(16)", &rw16(0x8f, 0x16), decode::verify16).unchecked(ONLY_GROUP_AT_14),
    Row::new("PRE-FETCH(16)", &rw16(0x90, 0x02), decode::pre_fetch16).unchecked(ONLY_GROUP_AT_14),
    Row::new("SYNCHRONIZE CACHE(16)", &rw16(0x91, 0x02), decode::synchronize_cache16)
        .unchecked(SYNC_AT_14)
        .long(),
    Row::new("WRITE SAME(16)", &rw16(0x93, 0x09), decode::write_same16).unchecked(ONLY_GROUP_AT_14).long(),
    Row::new(
        "READ BUFFER(16)",
        &[0x9b, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0],
        decode::read_buffer16,
    )
    .unchecked(&[0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff]),
    Row::new("WRITE ATOMIC(16)", &rw16(0x9c, 0x18), decode::write_atomic16).unchecked(ONLY_GROUP_AT_14),
    Row::new(
        "READ CAPACITY(16)",
        &[0x9e, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0],
        decode::read_capacity16,
    )
    .action(0x10)
    .unchecked(READ_CAPACITY_16_OBSOLETE),
    Row::new("GET LBA STATUS", &rw16(0x9e, 0x1f), decode::get_lba_status).action(0x12),
    Row::new("REPORT LUNS", &[0xa0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0], decode::report_luns),
    Row::new(
        "REPORT IDENTIFYING INFORMATION",
        &[0xa3, 0x1f, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xfe, 0],
        decode::report_identifying_information,
    )
    .action(0x05),
    Row::new(
        "REPORT TARGET PORT GROUPS",
        &[0xa3, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0],
        decode::report_target_port_groups,
    )
    .action(0x0a),
    Row::new(
        "REPORT SUPPORTED OPERATION CODES",
        &[0xa3, 0x1f, 0x87, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
        decode::report_supported_operation_codes,
    )
    .action(0x0c),
    Row::new(
        "REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS",
        &[0xa3, 0x1f, 0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0],
        decode::report_supported_task_management_functions,
    )
    .action(0x0d),
    Row::new(
        "REPORT TIMESTAMP",
        &[0xa3, 0x1f, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0],
        decode::report_timestamp,
    )
    .action(0x0f),
    Row::new(
        "SET IDENTIFYING INFORMATION",
        &[0xa4, 0x1f, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xfe, 0],
        decode::set_identifying_information,
    )
    .action(0x06),
    Row::new(
        "SET TARGET PORT GROUPS",
        &[0xa4, 0x1f, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0],
        decode::set_target_port_groups,
    )
    .action(0x0a)
    .long(),
    Row::new("SET TIMESTAMP", &[0xa4, 0x1f, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0], decode::set_timestamp)
        .action(0x0f),
    Row::new("READ(12)", &rw12(0xa8, 0x18), decode::read12).unchecked(GROUP_AT_10),
    Row::new("WRITE(12)", &rw12(0xaa, 0x18), decode::write12).unchecked(GROUP_AT_10),
    Row::new("WRITE AND VERIFY(12)", &rw12(0xae, 0x16), decode::write_and_verify12)
        .unchecked(ONLY_GROUP_AT_10),
    Row::new("VERIFY(12)", &rw12(0xaf, 0x16), decode::verify12).unchecked(ONLY_GROUP_AT_10),
];

const fn rw12(opcode: u8, flags: u8) -> [u8; 12] {
    [opcode, flags, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]
}

const fn rw16(opcode: u8, flags: u8) -> [u8; 16] {
    [opcode, flags, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]
}

const fn rw32(name: &'static str, flags: u8, decode: Decoder) -> Row {
    const fn usage(flags: u8) -> [u8; 32] {
        let mut usage = [0; 32];
        usage[0] = VARIABLE_LENGTH;
        [usage[7], usage[8], usage[9], usage[10]] = [0xff, 0xff, 0xff, flags];
        let mut at = 12;
        while at < 20 {
            usage[at] = 0xff;
            at += 1;
        }
        [usage[28], usage[29], usage[30], usage[31]] = [0xff; 4];
        usage
    }
    const WITH_18: &[u8] = &usage(0x18);
    const WITH_16: &[u8] = &usage(0x16);
    const WITH_09: &[u8] = &usage(0x09);
    let usage = match flags {
        0x18 => WITH_18,
        0x16 => WITH_16,
        _ => WITH_09,
    };
    Row::new(name, usage, decode)
}

const EXTENDED_COPY: &[u8] = &[0x83, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0];
const USING_TOKEN: &[u8] = &[0x83, 0x1f, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0];
const LIST_ID_1: &[u8] = &[0x84, 0x1f, 0xff, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0];
const LIST_ID_4: &[u8] = &[0x84, 0x1f, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0];
const NO_LIST_ID: &[u8] = &[0x84, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0];

/// The third-party copy commands that move data. GROUP NUMBER of those by token is ignored as elsewhere.
const fn copy_out(name: &'static str, action: u16, usage: &'static [u8], decode: Decoder) -> Row {
    let row = Row::new(name, usage, decode).action(action);
    let mut row = if action < 0x10 { row } else { row.unchecked(ONLY_GROUP_AT_14) };
    row.timeout_s = TIMEOUT_COPY_S;
    row
}

const fn copy_in(name: &'static str, action: u16, usage: &'static [u8], decode: Decoder) -> Row {
    Row::new(name, usage, decode).action(action)
}

const fn sanitize(name: &'static str, action: u16) -> Row {
    const USAGE: &[u8] = &[0x48, 0xbf, 0, 0, 0, 0, 0, 0xff, 0xff, 0];
    Row::new(name, USAGE, decode::sanitize).action(action).hours()
}

const fn pr_in(name: &'static str, action: u16) -> Row {
    Row::new(name, &[0x5e, 0x1f, 0, 0, 0, 0, 0, 0xff, 0xff, 0], decode::persistent_reserve_in).action(action)
}

const fn pr_out(name: &'static str, action: u16) -> Row {
    const USAGE: &[u8] = &[0x5f, 0x1f, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0];
    Row::new(name, USAGE, decode::persistent_reserve_out).action(action).long()
}

/// Where the rows of each operation code begin in [`TABLE`], and how many there are: one look instead of a search on
/// the path of every command.
const INDEX: [(u8, u8); 256] = {
    let mut index = [(0, 0); 256];
    let mut at = 0;
    while at < TABLE.len() {
        let slot = &mut index[TABLE[at].opcode as usize];
        if slot.1 == 0 {
            slot.0 = at as u8;
        }
        slot.1 += 1;
        at += 1;
    }
    index
};

/// The rows of an operation code: none if it is not supported, one, or one per service action.
pub fn rows(opcode: u8) -> &'static [Row] {
    static LOOKUP: [(u8, u8); 256] = INDEX;
    static ROWS: &[Row] = TABLE;
    let (first, count) = LOOKUP.get(usize::from(opcode)).copied().unwrap_or((0, 0));
    ROWS.get(usize::from(first)..).and_then(|rows| rows.get(..usize::from(count))).unwrap_or(&[])
}

/// The command that a CDB names by its operation code and service action, whatever its other fields are.
pub fn row_of(cdb: &[u8]) -> Option<&'static Row> {
    let rows = rows(*cdb.first()?);
    let first = rows.first()?;
    if first.service_action.is_none() {
        return Some(first);
    }
    let action = if first.opcode == VARIABLE_LENGTH {
        u16::from_be_bytes([*cdb.get(SERVICE_ACTION_32_AT)?, *cdb.get(SERVICE_ACTION_32_AT + 1)?])
    } else {
        u16::from(cdb.get(1)? & 0x1f)
    };
    rows.iter().find(|row| row.service_action == Some(action))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_sorted_without_duplicates() {
        for pair in TABLE.windows(2) {
            let key = |row: &Row| (row.opcode, row.service_action);
            assert!(key(&pair[0]) < key(&pair[1]), "{} before {}", pair[0].name, pair[1].name);
        }
    }

    #[test]
    fn rows_of_an_operation_code_agree_on_length_and_service_actions() {
        for row in TABLE {
            let first = &rows(row.opcode)[0];
            assert_eq!(row.usage.len(), first.usage.len(), "{}", row.name);
            assert_eq!(row.service_action.is_some(), first.service_action.is_some(), "{}", row.name);
            assert_eq!(row.usage[0], row.opcode);
            if row.service_action.is_some() {
                let field = if row.opcode == VARIABLE_LENGTH { row.usage[9] } else { row.usage[1] };
                assert_eq!(field & 0x1f, 0x1f, "{}", row.name);
            }
        }
    }

    #[test]
    fn index_finds_every_row_and_nothing_else() {
        assert_eq!((0..=255).map(|opcode| rows(opcode).len()).sum::<usize>(), TABLE.len());
        for opcode in 0..=255 {
            assert!(rows(opcode).iter().all(|row| row.opcode == opcode));
        }
    }

    #[test]
    fn length_follows_the_group_code() {
        for row in TABLE {
            let expected = match row.opcode >> 5 {
                0 => 6,
                1 | 2 => 10,
                3 => 32,
                4 => 16,
                _ => 12,
            };
            assert_eq!(row.usage.len(), expected, "{}", row.name);
        }
    }
}
