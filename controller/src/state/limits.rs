//! Every bound of the replicated state, in one place. Changing one changes what members answer to the same log: all
//! members of a cluster must agree on them.

/// Largest encoded command, in bytes: the most changes of mappings, with the longest names, fit.
pub const COMMAND_BYTES_MAX: usize = 256 * 1024;
/// Data nodes that may ever be members at one time.
pub const NODES_MAX: usize = 256;
/// Portals of one data node.
pub const PORTALS_PER_NODE_MAX: usize = 16;
/// Pools of one data node.
pub const POOLS_PER_NODE_MAX: usize = 64;
/// Volumes.
pub const VOLUMES_MAX: usize = 16 * 1024;
/// Hosts.
pub const HOSTS_MAX: usize = 1024;
/// Initiator names of one host.
pub const INITIATORS_PER_HOST_MAX: usize = 64;
/// Host groups.
pub const HOST_GROUPS_MAX: usize = 256;
/// Hosts of one group.
pub const HOSTS_PER_GROUP_MAX: usize = 256;
/// Changes of mappings in one entry.
pub const MAPPING_EDITS_MAX: usize = 1024;
/// Mappings of single hosts that one entry changes (groups are expanded): a commit has to fit into one message to data nodes.
pub const MAPPINGS_CHANGED_MAX: usize = 16 * 1024;
/// Faults of one request that are told.
pub const VIOLATIONS_TOLD_MAX: usize = 64;
/// Mappings of one host.
pub const MAPPINGS_PER_HOST_MAX: usize = holdfast_scsi::limits::LUNS_PER_HOST_MAX;
/// Highest LUN (flat space addressing has 14 bits).
pub const LUN_MAX: u32 = 16383;
/// Name of a node, pool, volume or host, in bytes.
pub const NAME_BYTES_MAX: usize = 63;
/// An "address:port", in bytes.
pub const ADDRESS_BYTES_MAX: usize = 255;
/// CHAP user name, in bytes.
pub const CHAP_USER_BYTES_MAX: usize = 255;
/// A sealed CHAP secret, in bytes.
pub const SEALED_SECRET_BYTES_MAX: usize = 256;
/// A client's request id, in bytes.
pub const REQUEST_ID_BYTES_MAX: usize = 64;
/// Jobs that run at one time.
pub const JOBS_RUNNING_MAX: usize = 4 * VOLUMES_MAX;
/// Jobs that have ended and are kept.
pub const JOBS_ENDED_KEPT: usize = 256;
/// Resource that a job works on, in bytes.
pub const JOB_SUBJECT_BYTES_MAX: usize = 128;
/// Longest text of a job, in characters.
pub const JOB_TEXT_CHARS_MAX: usize = 256;
/// Refused calls that one entry carries to the audit.
pub const REFUSALS_PER_ENTRY_MAX: usize = 64;
/// Longest text of an audit record, in characters.
pub const AUDIT_TEXT_CHARS_MAX: usize = 256;
/// Smallest volume, in bytes.
pub const VOLUME_BYTES_MIN: u64 = 1 << 20;
/// Largest volume, in bytes.
pub const VOLUME_BYTES_MAX: u64 = 16 << 40;
/// Largest exponent of logical blocks per physical block.
pub const PHYSICAL_BLOCK_EXPONENT_MAX: u32 = 8;
/// Snapshots that are taken at one point.
pub const COPIES_AT_ONCE_MAX: usize = 16;
/// Requests of clients whose answers are kept, and as many of data nodes. `CreateVolumeRequest.request_id` tells clients of it.
pub const REQUESTS_KEPT: u64 = 1024;
/// Proposals of one volume whose outcomes are kept. An owner has one change of a reservation version in flight, and asks
/// again before it proposes against another version, so that a handful would do.
pub const OUTCOMES_PER_VOLUME_KEPT: usize = 16;
/// Shortest time after which a replica of a node that is away may be replaced, in seconds.
pub const REPLACE_AFTER_S_MIN: u32 = 10;
/// Longest, in seconds: 30 days.
pub const REPLACE_AFTER_S_MAX: u32 = 30 * 24 * 3600;
/// The same when nobody has said otherwise, in seconds.
pub const REPLACE_AFTER_S_DEFAULT: u32 = 600;
/// Lines that say why a node that is drained keeps something.
pub const STAYING_SHOWN_MAX: usize = 20;
