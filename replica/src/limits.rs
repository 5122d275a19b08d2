//! Every bound of this crate, in one place.

/// A lease is shortened at the node by one part in this many, the most that the clock rates of two machines may differ.
/// Quartz differs by 1 in 10,000 at worst; the rest allows for clocks that are being slewed.
pub const CLOCK_RATE_MARGIN_DIVISOR: u64 = 50;

/// Most copies of a volume.
pub const REPLICAS_MAX: usize = 3;
/// Most replicas catching up at once.
pub const LEARNERS_MAX: usize = 3;
/// Longest name of a pool, in bytes.
pub const POOL_NAME_LEN_MAX: usize = 63;

/// A command that arrived at its port longer ago than this is not executed any more, in milliseconds. Below the
/// shortest path time-out of hosts (Linux `dev_loss_tmo`, `replacement_timeout` and the 30 s of the SCSI layer), so that a
/// delayed write cannot land after the host sent it again on another path.
pub const COMMAND_AGE_MS_MAX: u64 = 15_000;
