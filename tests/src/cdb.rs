//! CDBs in the form in which [`crate::initiator::Initiator`] takes them, written out by hand from SPC-5 and SBC-4 so that they do
//! not share a mistake with the code under test.

/// TEST UNIT READY.
pub const TEST_UNIT_READY: &str = "000000000000";
/// INQUIRY, standard data, 255 bytes.
pub const INQUIRY: &str = "120000ff0000";
/// INQUIRY, VPD page 83h, 1024 bytes.
pub const DEVICE_IDENTIFICATION: &str = "120183040000";
/// REPORT LUNS, 1024 bytes.
pub const REPORT_LUNS: &str = "a00000000000000004000000";
/// READ CAPACITY(16), 32 bytes.
pub const READ_CAPACITY_16: &str = "9e100000000000000000000000200000";
/// REPORT TARGET PORT GROUPS, 1024 bytes.
pub const REPORT_TARGET_PORT_GROUPS: &str = "a30a00000000000004000000";
/// REQUEST SENSE, fixed format, 252 bytes.
pub const REQUEST_SENSE: &str = "03000000fc00";
/// SYNCHRONIZE CACHE(10), the whole medium.
pub const SYNCHRONIZE_CACHE: &str = "35000000000000000000";

/// READ(10).
pub fn read_10(lba: u32, blocks: u16) -> String {
    format!("2800{lba:08x}00{blocks:04x}00")
}

/// WRITE(10).
pub fn write_10(lba: u32, blocks: u16) -> String {
    format!("2a00{lba:08x}00{blocks:04x}00")
}

/// PERSISTENT RESERVE IN, 4096 bytes: 0 READ KEYS, 1 READ RESERVATION, 2 REPORT CAPABILITIES, 3 READ FULL STATUS.
pub fn persistent_reserve_in(service_action: u8) -> String {
    format!("5e{service_action:02x}0000000000100000")
}

/// PERSISTENT RESERVE OUT with the 24-byte parameter list: CDB and list.
pub fn persistent_reserve_out(
    service_action: u8,
    kind: u8,
    key: u64,
    service_action_key: u64,
) -> (String, String) {
    (
        format!("5f{service_action:02x}{kind:02x}00000000001800"),
        format!("{key:016x}{service_action_key:016x}0000000001000000"),
    )
}

/// REGISTER.
pub const REGISTER: u8 = 0;
/// RESERVE.
pub const RESERVE: u8 = 1;
/// RELEASE.
pub const RELEASE: u8 = 2;
/// CLEAR.
pub const CLEAR: u8 = 3;
/// PREEMPT.
pub const PREEMPT: u8 = 4;
/// PREEMPT AND ABORT.
pub const PREEMPT_AND_ABORT: u8 = 5;
/// REGISTER AND IGNORE EXISTING KEY.
pub const REGISTER_AND_IGNORE: u8 = 6;

/// Exclusive Access.
pub const EXCLUSIVE_ACCESS: u8 = 3;
/// Write Exclusive.
pub const WRITE_EXCLUSIVE: u8 = 1;
/// Write Exclusive, Registrants Only.
pub const WRITE_EXCLUSIVE_REGISTRANTS_ONLY: u8 = 5;
