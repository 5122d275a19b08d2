//! Which controller to try next, and when.
//!
//! Invariants: a hint is followed at once, but not for ever; otherwise the members are tried in turn, with a pause that
//! grows to a bound after each whole round, so that a cluster without a leader is not flooded.

use std::time::Duration;

/// Hints that are followed in a row without a pause: two members that point at each other must not spin.
const HINTS_MAX: u32 = 3;
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// Addresses of the controllers, as "address:port".
pub(super) struct Endpoints {
    members: Vec<String>,
    next: usize,
    hinted: Option<String>,
    hints: u32,
    failures: u32,
}

impl Endpoints {
    /// `members` is not empty.
    pub(super) fn new(members: Vec<String>) -> Endpoints {
        Endpoints { members, next: 0, hinted: None, hints: 0, failures: 0 }
    }

    /// Whom to try, after which pause.
    pub(super) fn next(&mut self) -> (String, Duration) {
        if let Some(hinted) = self.hinted.take() {
            return (hinted, if self.hints > HINTS_MAX { self.pause() } else { Duration::ZERO });
        }
        let address = self.members.get(self.next % self.members.len().max(1)).cloned().unwrap_or_default();
        self.next = self.next.wrapping_add(1);
        (address, self.pause())
    }

    /// A member named the leader.
    pub(super) fn hint(&mut self, address: String) {
        self.hints = self.hints.saturating_add(1);
        self.failures = self.failures.saturating_add(1);
        self.hinted = Some(address);
    }

    /// The attempt failed, without a hint.
    pub(super) fn failed(&mut self) {
        self.failures = self.failures.saturating_add(1);
    }

    /// A member that a session stood with has fallen silent: the next attempt goes to another.
    pub(super) fn silent(&mut self, address: &str) {
        if let Some(at) = self.members.iter().position(|member| member == address) {
            self.next = at.wrapping_add(1);
        }
    }

    /// A session was established with this member; begin there again when it ends.
    pub(super) fn succeeded(&mut self, address: &str) {
        (self.failures, self.hints, self.hinted) = (0, 0, None);
        if let Some(at) = self.members.iter().position(|member| member == address) {
            self.next = at;
        }
    }

    fn pause(&self) -> Duration {
        let rounds = self.failures / u32::try_from(self.members.len().max(1)).unwrap_or(u32::MAX);
        match rounds {
            0 if self.failures == 0 => Duration::ZERO,
            rounds => PAUSE_MIN.saturating_mul(1 << rounds.min(10)).min(PAUSE_MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> Endpoints {
        Endpoints::new(vec!["a".into(), "b".into(), "c".into()])
    }

    #[test]
    fn after_a_silent_member_another_comes_first() {
        let mut endpoints = three();
        assert_eq!(endpoints.next().0, "a");
        endpoints.failed();
        assert_eq!(endpoints.next().0, "b");
        endpoints.succeeded("b");
        endpoints.silent("b");
        endpoints.failed();
        assert_eq!(endpoints.next().0, "c");
    }

    #[test]
    fn members_are_tried_in_turn_with_growing_pauses() {
        let mut endpoints = three();
        let mut pauses = Vec::new();
        for expected in ["a", "b", "c", "a", "b"].repeat(8) {
            let (address, pause) = endpoints.next();
            if pauses.len() < 5 {
                assert_eq!(address, expected);
            }
            pauses.push(pause);
            endpoints.failed();
        }
        assert_eq!(pauses[0], Duration::ZERO);
        assert!(pauses.windows(2).all(|p| p[0] <= p[1]));
        assert_eq!(*pauses.last().unwrap(), PAUSE_MAX);
    }

    #[test]
    fn hint_is_followed_at_once_but_not_for_ever() {
        let mut endpoints = three();
        endpoints.next();
        for _ in 0..HINTS_MAX {
            endpoints.hint("c".into());
            assert_eq!(endpoints.next(), ("c".into(), Duration::ZERO));
        }
        endpoints.hint("b".into());
        let (address, pause) = endpoints.next();
        assert_eq!(address, "b");
        assert!(pause > Duration::ZERO);
    }

    #[test]
    fn lost_session_is_looked_for_where_it_was() {
        let mut endpoints = three();
        endpoints.failed();
        endpoints.succeeded("b");
        assert_eq!(endpoints.next(), ("b".into(), Duration::ZERO));
        endpoints.failed();
        assert_eq!(endpoints.next().0, "c");
    }
}
