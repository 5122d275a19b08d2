//! Every bound of the SCSI core, in one place. What Block Limits (VPD B0h) reports is what `cdb::parse` enforces,
//! because both read these constants.

/// Most data one READ, WRITE, VERIFY, ORWRITE or WRITE AND VERIFY may move, in bytes; reported in logical blocks as
/// MAXIMUM TRANSFER LENGTH. It also bounds the memory that one task holds.
pub const TRANSFER_BYTES_MAX: u32 = 8 * 1024 * 1024;
/// Transfer size from which on more brings nothing, in bytes; reported as OPTIMAL TRANSFER LENGTH.
pub const TRANSFER_BYTES_OPTIMAL: u32 = 1024 * 1024;
/// MAXIMUM COMPARE AND WRITE LENGTH, in logical blocks (the field has one byte).
pub const COMPARE_AND_WRITE_BLOCKS_MAX: u8 = 255;
/// MAXIMUM WRITE SAME LENGTH, in logical blocks: 16 MiB with blocks of 512 bytes, since one command holds its range.
/// WSNZ=1 goes with it: a NUMBER OF LOGICAL BLOCKS of zero is refused.
pub const WRITE_SAME_BLOCKS_MAX: u32 = 32 * 1024;
/// MAXIMUM UNMAP LBA COUNT: the sum over all descriptors of one UNMAP, in logical blocks.
pub const UNMAP_BLOCKS_MAX: u32 = 1024 * 1024;
/// MAXIMUM UNMAP BLOCK DESCRIPTOR COUNT.
pub const UNMAP_DESCRIPTORS_MAX: u32 = 256;
/// Longest parameter list of UNMAP that can be valid, in bytes: its header and all descriptors.
pub const UNMAP_PARAMETER_LIST_MAX: u32 = 8 + 16 * UNMAP_DESCRIPTORS_MAX;
/// MAXIMUM PREFETCH LENGTH, in logical blocks.
pub const PREFETCH_BLOCKS_MAX: u32 = 128 * 1024;

/// Most data that one atomic write operation writes whole or not at all, in bytes; reported in logical blocks as MAXIMUM ATOMIC TRANSFER
/// LENGTH and as MAXIMUM ATOMIC BOUNDARY SIZE. A store keeps an intent of it until it is in place.
pub const ATOMIC_BYTES_MAX: u32 = 1024 * 1024;

/// Block sizes a logical unit may have, in bytes.
pub const BLOCK_SIZES: [u32; 2] = [512, 4096];
/// Largest capacity of a logical unit, in bytes (so that no byte offset reaches the sign bit of a file offset).
pub const CAPACITY_BYTES_MAX: u64 = 1 << 60;

/// Longest CDB that is decoded, in bytes. No supported command is longer.
pub const CDB_LEN_MAX: usize = 32;
/// Longest sense data of SPC, in bytes. What is written here never exceeds 40.
pub const SENSE_LEN_MAX: usize = 252;

/// Unit Attentions that one (I_T nexus, logical unit) queues; one more collapses the queue to 29/00.
pub const UA_QUEUE_MAX: usize = 16;
/// Logical units one host may have mapped. LUNs 0..=255 use peripheral addressing, higher ones flat space addressing.
pub const LUNS_PER_HOST_MAX: usize = 1024;
/// Tasks of one logical unit, over all I_T nexuses; one more is answered TASK SET FULL.
pub const TASK_SET_MAX: usize = 4096;
/// Tasks of one I_T nexus in one logical unit.
pub const TASKS_PER_NEXUS_MAX: usize = 512;

/// Longest parameter list of MODE SELECT that can be valid here, in bytes: header, one long block descriptor and every
/// page once.
pub const MODE_PARAMETER_LIST_MAX: u32 = 512;
/// Longest parameter list of LOG SELECT that is fetched, in bytes: no page can be set by one.
pub const LOG_PARAMETER_LIST_MAX: u32 = 512;
/// Longest parameter list of PERSISTENT RESERVE OUT, in bytes: header and a good number of TransportIDs.
pub const PR_OUT_PARAMETER_LIST_MAX: u32 = 16 * 1024;
/// Registrants of one logical unit.
pub const PR_REGISTRANTS_MAX: usize = 1024;
/// Target ports in the cluster.
pub const TARGET_PORTS_MAX: usize = 1024;
/// Longest parameter list of SET TARGET PORT GROUPS, in bytes: a header and a descriptor for every group that there can be.
pub const SET_TARGET_PORT_GROUPS_LIST_MAX: u32 = 4 + 4 * TARGET_PORTS_MAX as u32;
/// LBA status descriptors in one reply of GET LBA STATUS.
pub const LBA_STATUS_DESCRIPTORS_MAX: usize = 256;

/// The echo buffer that each I_T nexus has, in bytes.
pub const ECHO_BUFFER_LEN: u32 = 4096;
/// THRESHOLD EXPONENT of VPD B2h: a threshold set has this power of two of logical blocks, 2 MiB of them with 512 bytes.
pub const THRESHOLD_EXPONENT: u8 = 12;
/// Identifying information of a unit, in bytes.
pub const IDENTIFYING_INFORMATION_MAX: usize = 512;
/// Identifying text, in bytes with its terminating zero.
pub const IDENTIFYING_TEXT_MAX: usize = 256;
/// I_T nexuses that can prevent the removal of the medium at a time.
pub const PREVENTING_MAX: usize = 1024;

/// MAXIMUM CSCD DESCRIPTOR COUNT of EXTENDED COPY.
pub const COPY_CSCDS_MAX: u16 = 64;
/// MAXIMUM SEGMENT DESCRIPTOR COUNT of EXTENDED COPY.
pub const COPY_SEGMENTS_MAX: u16 = 256;
/// MAXIMUM DESCRIPTOR LIST LENGTH of EXTENDED COPY, in bytes: all CSCD and all segment descriptors that there may be.
pub const COPY_DESCRIPTORS_LEN_MAX: u32 = 32 * COPY_CSCDS_MAX as u32 + 32 * COPY_SEGMENTS_MAX as u32;
/// MAXIMUM RANGE DESCRIPTORS of POPULATE TOKEN and WRITE USING TOKEN.
pub const TOKEN_RANGES_MAX: u16 = 64;
/// Longest parameter list of any command of third-party copy that can be valid, in bytes: that of EXTENDED COPY (LID4).
pub const COPY_PARAMETER_LIST_MAX: u32 = 48 + COPY_DESCRIPTORS_LEN_MAX;
/// MAXIMUM SEGMENT LENGTH of EXTENDED COPY, in bytes: the 16-bit count of the longest blocks fits.
pub const COPY_SEGMENT_BYTES_MAX: u32 = 256 * 1024 * 1024;
/// MAXIMUM TOKEN TRANSFER SIZE, in bytes.
pub const TOKEN_TRANSFER_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// What a copy reads and writes at a time, in bytes; what it holds in memory.
pub const COPY_PIECE_BYTES: u32 = 1024 * 1024;
/// TOTAL CONCURRENT COPIES of a logical unit; one more is answered BUSY.
pub const COPIES_MAX: u8 = 64;
/// Ended copies of a logical unit whose outcome is kept; the oldest goes first.
pub const HELD_COPIES_MAX: usize = 256;
/// ROD tokens that a logical unit keeps; the oldest goes first.
pub const TOKENS_MAX: usize = 256;
/// Longest INACTIVITY TIMEOUT of a ROD token, in seconds.
pub const TOKEN_INACTIVITY_S_MAX: u32 = 600;
/// INACTIVITY TIMEOUT of a ROD token for which none was asked, in seconds.
pub const TOKEN_INACTIVITY_S_DEFAULT: u32 = 60;

/// [`TRANSFER_BYTES_MAX`] in logical blocks of `block_size` bytes.
pub const fn transfer_blocks_max(block_size: u32) -> u32 {
    match TRANSFER_BYTES_MAX.checked_div(block_size) {
        Some(blocks) => blocks,
        None => 0,
    }
}

/// [`ATOMIC_BYTES_MAX`] in logical blocks of `block_size` bytes.
pub const fn atomic_blocks_max(block_size: u32) -> u32 {
    match ATOMIC_BYTES_MAX.checked_div(block_size) {
        Some(blocks) => blocks,
        None => 0,
    }
}

/// [`TRANSFER_BYTES_OPTIMAL`] in logical blocks of `block_size` bytes.
pub const fn transfer_blocks_optimal(block_size: u32) -> u32 {
    match TRANSFER_BYTES_OPTIMAL.checked_div(block_size) {
        Some(blocks) => blocks,
        None => 0,
    }
}
