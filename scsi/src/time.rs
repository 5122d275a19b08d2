//! Time as the core sees it: a number that the shell hands in. The core never asks a clock.

/// A moment on the boot-time clock, in milliseconds. Only differences mean anything, and only on one machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(pub u64);

impl Instant {
    /// Milliseconds since `earlier`; 0 when `earlier` lies ahead (never wraps).
    pub const fn millis_since(self, earlier: Instant) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// This moment plus `millis` milliseconds, stopping at the far end of the clock.
    #[must_use]
    pub const fn plus_millis(self, millis: u64) -> Instant {
        Instant(self.0.saturating_add(millis))
    }
}
