//! Bounds of what the data node may tell the module. The C side allocates by these.

/// Registrants of one logical unit at most (that of the controller).
pub const REGISTRANTS_MAX: u32 = 8192;
/// Target port groups of one logical unit at most.
pub const GROUPS_MAX: usize = 64;
/// Ports of one target port group at most.
pub const GROUP_PORTS_MAX: usize = 8;
/// Longest target name, bytes.
pub const TARGET_NAME_LEN_MAX: usize = holdfast_scsi::identity::ISCSI_NAME_LEN_MAX;
/// Sense data handed to C, bytes.
pub const SENSE_LEN_MAX: usize = 64;
