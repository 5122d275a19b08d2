//! Clock tokens at the port: which one a command echoes.
//!
//! Invariants: a token is compared only with the local moments at which tokens and commands came; the age that the owner
//! computes from what is echoed is never less than the command's true age (up to the rate by which two clocks differ).

use alloc::collections::VecDeque;

use super::Instant;
use crate::limits::{CLOCK_TOKENS_KEPT, COMMAND_AGE_MS_MAX};

/// Tokens closer together than this add nothing worth remembering.
const SPACING_MS: u64 = COMMAND_AGE_MS_MAX / (CLOCK_TOKENS_KEPT as u64 - 4);

/// What a command says about its age.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Echo {
    /// The owner's token.
    pub(super) token: u64,
    /// Milliseconds between the command's arrival and that of the token; 0 when the token was first.
    pub(super) waited_ms: u64,
}

/// Tokens received, oldest first.
#[derive(Debug, Default)]
pub(super) struct ClockTokens {
    received: VecDeque<(Instant, u64)>,
}

impl ClockTokens {
    pub(super) fn receive(&mut self, now: Instant, token: u64) {
        if self.received.back().is_some_and(|(last, _)| now.millis_since(*last) < SPACING_MS) {
            return;
        }
        if self.received.len() >= CLOCK_TOKENS_KEPT {
            self.received.pop_front();
        }
        self.received.push_back((now, token));
    }

    /// The latest token that had come when a command arrived; else the first one behind it.
    pub(super) fn echo(&self, arrived: Instant) -> Option<Echo> {
        let before = self.received.iter().rev().find(|(received, _)| *received <= arrived);
        let (received, token) = before.or_else(|| self.received.front())?;
        Some(Echo { token: *token, waited_ms: received.millis_since(arrived) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_echoes_the_latest_token_before_it() {
        let mut tokens = ClockTokens::default();
        assert_eq!(tokens.echo(Instant(5)), None);
        tokens.receive(Instant(1_000), 70);
        tokens.receive(Instant(2_000), 71);
        assert_eq!(tokens.echo(Instant(1_500)), Some(Echo { token: 70, waited_ms: 0 }));
        assert_eq!(tokens.echo(Instant(9_000)), Some(Echo { token: 71, waited_ms: 0 }));
    }

    #[test]
    fn command_older_than_every_token_tells_how_long_it_waited() {
        let mut tokens = ClockTokens::default();
        tokens.receive(Instant(1_000), 70);
        tokens.receive(Instant(2_000), 71);
        assert_eq!(tokens.echo(Instant(400)), Some(Echo { token: 70, waited_ms: 600 }));
    }

    #[test]
    fn history_is_bounded_and_covers_the_greatest_age() {
        let mut tokens = ClockTokens::default();
        for ms in 0..100_000 {
            tokens.receive(Instant(ms), ms + 1);
        }
        assert!(tokens.received.len() <= CLOCK_TOKENS_KEPT);
        let oldest_useful = Instant(99_999 - COMMAND_AGE_MS_MAX);
        assert_eq!(tokens.echo(oldest_useful).unwrap().waited_ms, 0);
    }
}
