//! The boot-time clock: it goes on while the machine sleeps, and no one sets it. Leases and ages are counted on it.

use std::mem::MaybeUninit;

/// Milliseconds since the machine booted (CLOCK_BOOTTIME).
pub fn now_ms() -> u64 {
    let mut time = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: the pointer is valid for a write of one `timespec`, which the call fills when it returns 0.
    let time = unsafe {
        if libc::clock_gettime(libc::CLOCK_BOOTTIME, time.as_mut_ptr()) != 0 {
            // Without a clock no lease can be judged; a node that cannot tell the time must not serve.
            std::process::abort();
        }
        time.assume_init()
    };
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let milliseconds = u64::try_from(time.tv_nsec).unwrap_or(0) / 1_000_000;
    seconds.saturating_mul(1_000).saturating_add(milliseconds)
}

/// The same moment as the SCSI core counts it.
pub fn scsi_now() -> holdfast_scsi::time::Instant {
    holdfast_scsi::time::Instant(now_ms())
}

/// The same moment as the iSCSI engine counts it.
pub fn iscsi_now() -> holdfast_iscsi::Instant {
    holdfast_iscsi::Instant(now_ms())
}

/// The wall clock, as timestamps of the SCSI core count it. It may be set, back too: nothing else may hang on it.
pub fn unix_millis() -> holdfast_scsi::lu_state::UnixMillis {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    holdfast_scsi::lu_state::UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    #[test]
    fn clock_never_goes_back() {
        let first = super::now_ms();
        assert!(first > 0 && super::now_ms() >= first);
    }
}
