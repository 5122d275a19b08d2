//! Arithmetic of leases: until when a node may serve under a grant.
//!
//! Invariants: a lease is counted from the *sending* of the renewal, on the node's own boot-time clock, and shortened by
//! the rate by which two clocks may differ. So it ends at the node before it ends at the controller, which counts from
//! a later moment. A sum that would overflow ends the lease at once.

use crate::limits::CLOCK_RATE_MARGIN_DIVISOR;

/// Moment (boot-time milliseconds) at which a lease ends at the node that sent its renewal at `sent_ms` and was granted
/// `lease_ms`. Never before `sent_ms`.
pub const fn lease_end_ms(sent_ms: u64, lease_ms: u32) -> u64 {
    let lease_ms = lease_ms as u64;
    // Rounded up, so that a short lease has a margin too.
    let margin = lease_ms.div_ceil(CLOCK_RATE_MARGIN_DIVISOR);
    match sent_ms.checked_add(lease_ms.saturating_sub(margin)) {
        Some(end) => end,
        None => sent_ms,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lease_ends_early_by_the_margin() {
        assert_eq!(
            lease_end_ms(1_000, 10_000),
            1_000 + 10_000 - 10_000_u64.div_ceil(CLOCK_RATE_MARGIN_DIVISOR)
        );
        assert!(lease_end_ms(1_000, 10_000) < 11_000);
    }

    #[test]
    fn shortest_and_impossible_leases_end_at_once() {
        assert_eq!(lease_end_ms(5, 0), 5);
        assert_eq!(lease_end_ms(5, 1), 5);
        assert_eq!(lease_end_ms(u64::MAX, 10_000), u64::MAX);
    }
}
