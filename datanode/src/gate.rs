//! The lease gate: one word that every data-plane thread reads before it serves, and again before it replies.
//!
//! Invariants: only the agent opens the gate, under a lease whose log index is installed on every worker; nothing
//! extends a lease but a later grant; a closed gate stays closed until the next grant. Reading costs one atomic load.

use std::sync::atomic::{AtomicU64, Ordering};

/// Until when this node may serve, in boot-time milliseconds; 0 while it may not.
#[derive(Debug, Default)]
pub struct LeaseGate {
    serve_until_ms: AtomicU64,
}

impl LeaseGate {
    /// A closed gate.
    pub const fn new() -> LeaseGate {
        LeaseGate { serve_until_ms: AtomicU64::new(0) }
    }

    /// True while a lease runs. `now_ms` is [`crate::clock::now_ms`], read after whatever the answer is about: before
    /// the I/O is submitted, and again before its reply.
    pub fn open(&self, now_ms: u64) -> bool {
        now_ms < self.serve_until_ms.load(Ordering::Acquire)
    }

    /// End of the lease in boot-time milliseconds; `None` while closed.
    pub fn serve_until_ms(&self) -> Option<u64> {
        match self.serve_until_ms.load(Ordering::Acquire) {
            0 => None,
            until => Some(until),
        }
    }

    /// Opens the gate until `until_ms`, or leaves it open for longer if it is.
    pub(crate) fn extend(&self, until_ms: u64) {
        self.serve_until_ms.fetch_max(until_ms, Ordering::AcqRel);
    }

    /// Closes the gate at once.
    pub(crate) fn close(&self) {
        self.serve_until_ms.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gate_is_open_only_before_the_end_of_a_lease() {
        let gate = LeaseGate::new();
        assert!(!gate.open(0));
        gate.extend(100);
        assert!(gate.open(99) && !gate.open(100));
    }

    #[test]
    fn older_grant_does_not_shorten_a_newer_one() {
        let gate = LeaseGate::new();
        gate.extend(100);
        gate.extend(50);
        assert_eq!(gate.serve_until_ms(), Some(100));
        gate.close();
        assert!(!gate.open(0));
        assert_eq!(gate.serve_until_ms(), None);
    }
}
