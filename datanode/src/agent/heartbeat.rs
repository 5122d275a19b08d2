//! Signs of life of the data-plane threads. The controller does not renew the lease of a node whose data path hangs.
//!
//! Invariant: a worker marks the start of each turn of its loop and the wait at its end, so that an idle worker never
//! looks like a hanging one, and needs no timer to show that it lives.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// One mark for each worker.
#[derive(Clone, Debug)]
pub struct Heartbeats {
    /// When the present turn began, in boot-time milliseconds; 0 while the worker waits for events.
    busy_since_ms: Arc<[AtomicU64]>,
}

impl Heartbeats {
    /// Marks for so many workers, all waiting.
    pub fn new(workers: usize) -> Heartbeats {
        Heartbeats { busy_since_ms: (0..workers).map(|_| AtomicU64::new(0)).collect() }
    }

    /// The worker begins a turn: events are there.
    pub fn busy(&self, worker: usize, now_ms: u64) {
        self.mark(worker, now_ms.max(1));
    }

    /// The worker is about to wait for events.
    pub fn waiting(&self, worker: usize) {
        self.mark(worker, 0);
    }

    /// Milliseconds that the slowest worker has been in its present turn.
    pub fn stalled_ms(&self, now_ms: u64) -> u32 {
        let oldest = |since: &AtomicU64| match since.load(Ordering::Acquire) {
            0 => 0,
            since => now_ms.saturating_sub(since),
        };
        let worst = self.busy_since_ms.iter().map(oldest).max().unwrap_or(0);
        u32::try_from(worst).unwrap_or(u32::MAX)
    }

    fn mark(&self, worker: usize, value: u64) {
        if let Some(mark) = self.busy_since_ms.get(worker) {
            mark.store(value, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slowest_busy_worker_counts_and_idle_ones_do_not() {
        let beats = Heartbeats::new(3);
        assert_eq!(beats.stalled_ms(1_000), 0);
        beats.busy(0, 400);
        beats.busy(1, 900);
        assert_eq!(beats.stalled_ms(1_000), 600);
        beats.waiting(0);
        assert_eq!(beats.stalled_ms(1_000), 100);
        beats.busy(7, 1);
        assert_eq!(beats.stalled_ms(1_000), 100);
    }
}
