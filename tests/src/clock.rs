//! The boot-time clock of this machine: the one clock on which tests judge what came before what, whatever clocks the cluster's
//! processes were given.

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds since the machine booted (CLOCK_BOOTTIME).
pub fn boottime_ns() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}
