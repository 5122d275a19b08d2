//! Time as the shell tells it. The engine has no clock: every entry point is given `now`.
//!
//! Invariant: only differences of two `Instant`s mean anything, and `now` never goes back.

/// Milliseconds of the shell's boot-time clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(pub u64);

impl Instant {
    /// The instant `ms` milliseconds later; stays at the end of time instead of wrapping.
    #[must_use]
    pub fn after_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }
}
