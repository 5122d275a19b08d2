//! This node's lease has ended: hosts wait for it to come back, or are let go.
//!
//! While a controller is restarted or a leader elected every node may be without a lease for a moment, and a host gains nothing by
//! being thrown off its paths. A node that is cut off by itself is another matter: its hosts have paths that work. Which of both it is
//! follows from what the other nodes say, whom it asks once its own lease has not been renewed for a while.
//!
//! Invariants: commands are never answered because of what is concluded here: sessions are dropped, and what became of their commands is
//! not known; nothing is concluded while a lease runs, while a leader of the controllers says anything, or where no other node could serve.

use std::sync::atomic::Ordering;

use holdfast_replica::{forward::Neighbour, ids::NodeNumber};
use holdfast_scsi::time::Instant;

use super::{limits, mailbox::Message, portal::Stage, worker::Worker};

/// What the first worker keeps of the others.
#[derive(Debug, Default)]
pub(super) struct Lapse {
    /// Since when the gate has been closed, in boot-time milliseconds.
    closed_since: Option<u64>,
    /// Since when the other nodes have been asked.
    watched_since: Option<u64>,
}

/// What there is to conclude from.
#[derive(Debug)]
struct Facts<'a> {
    now: Instant,
    /// Of this node's last lease.
    lease_end: Instant,
    watched_since: Instant,
    leader_heard: Instant,
    /// The other nodes that held a lease when a leader spoke last: what is known of them.
    neighbours: &'a [Option<Neighbour>],
}

impl Facts<'_> {
    /// True when hosts are better off elsewhere.
    fn cut_off(&self) -> bool {
        let quiet = |since: Instant| self.now.millis_since(since);
        if quiet(self.lease_end) < limits::LAPSE_GRACE_MS
            || self.now < self.lease_end
            || quiet(self.leader_heard) < limits::LEADER_SILENCE_MS
            || self.neighbours.is_empty()
        {
            return false;
        }
        // Somebody got a lease when this node did not any more.
        let others_go_on =
            self.neighbours.iter().flatten().any(|neighbour| {
                neighbour.lease_end.millis_since(self.lease_end) >= limits::GRANTS_APART_MS_MAX
            });
        let silent = |neighbour: &Option<Neighbour>| {
            neighbour.is_none_or(|told| quiet(told.heard) >= limits::NEIGHBOUR_SILENCE_MS)
        };
        let nobody_heard =
            quiet(self.watched_since) >= limits::NEIGHBOUR_SILENCE_MS && self.neighbours.iter().all(silent);
        others_go_on || nobody_heard
    }
}

impl Worker {
    /// When the lease is to be looked at next, in boot-time milliseconds.
    pub(super) fn lease_check_due(&self, now: Instant) -> Option<u64> {
        let latest = now.0.saturating_add(limits::LEASE_CHECK_MS);
        if self.index > 0 {
            return (!self.connections.is_empty()).then_some(latest);
        }
        let trouble = self.shared.gate.serve_until_ms().unwrap_or(0).saturating_sub(limits::WATCH_BEFORE_MS);
        let again = now.0.saturating_add(limits::LAPSE_CHECK_MS);
        Some(latest.min(trouble.max(again)))
    }

    pub(super) fn check_lease(&mut self, now: Instant) {
        let open = self.shared.gate.open(now.0);
        if self.index == 0 {
            self.look_around(now, open);
        }
        if open {
            self.lapse.closed_since = None;
            return;
        }
        let since = *self.lapse.closed_since.get_or_insert(now.0);
        let cut_off = self.shared.cut_off.load(Ordering::Acquire);
        if !cut_off && now.millis_since(Instant(since)) < limits::HOLD_MS_MAX {
            return;
        }
        // Hosts have to look for another path.
        let sessions: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, portal)| matches!(portal.stage, Stage::Session(_)))
            .map(|(connection, _)| *connection)
            .collect();
        for connection in sessions {
            tracing::warn!(cut_off, "session dropped: this node has had no lease for too long");
            self.close(now, connection);
        }
    }

    /// Concludes from what the other nodes say whether this one alone has lost its lease.
    fn look_around(&mut self, now: Instant, open: bool) {
        let lease_end = Instant(self.shared.gate.serve_until_ms().unwrap_or(0));
        if now.plus_millis(limits::WATCH_BEFORE_MS) < lease_end || lease_end.0 == 0 {
            if self.lapse.watched_since.take().is_some() {
                self.interconnect.watch(now, &[]);
            }
            self.shared.cut_off.store(false, Ordering::Release);
            return;
        }
        let Some(view) = &self.view else { return };
        let others: Vec<NodeNumber> = view
            .nodes
            .values()
            .filter(|node| node.live && node.number != view.me)
            .map(|node| node.number)
            .collect();
        let watched_since = *self.lapse.watched_since.get_or_insert(now.0);
        self.interconnect.watch(now, &others);
        let neighbours: Vec<_> = others.iter().map(|node| self.interconnect.neighbour(*node)).collect();
        let facts = Facts {
            now,
            lease_end,
            watched_since: Instant(watched_since),
            leader_heard: Instant(self.shared.leader_heard_ms.load(Ordering::Acquire)),
            neighbours: &neighbours,
        };
        let cut_off = !open && facts.cut_off();
        if cut_off && !self.shared.cut_off.swap(true, Ordering::AcqRel) {
            tracing::warn!("this node is cut off: its hosts are sent to other paths");
            self.services.mailboxes.post_all(|| Message::Retry);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: Instant = Instant(100_000);

    fn told(heard: u64, lease_end: u64) -> Option<Neighbour> {
        Some(Neighbour { heard: Instant(heard), lease_end: Instant(lease_end) })
    }

    /// So many milliseconds after the end of the lease; no leader has said anything since long before.
    fn cut_off(after_ms: u64, neighbours: &[Option<Neighbour>]) -> bool {
        let now = END.plus_millis(after_ms);
        let watched_since = Instant(END.0 - limits::WATCH_BEFORE_MS);
        let leader_heard = Instant(END.0 - 2_000);
        Facts { now, lease_end: END, watched_since, leader_heard, neighbours }.cut_off()
    }

    #[test]
    fn hosts_are_let_go_soon_where_another_node_has_got_a_lease_since() {
        let other = [None, told(END.0 + 200, END.0 + 1_500)];
        assert!(!cut_off(limits::LAPSE_GRACE_MS - 1, &other));
        assert!(cut_off(limits::LAPSE_GRACE_MS, &other));
        // The grant was told a while ago, and says as much.
        assert!(cut_off(5_000, &other));
    }

    #[test]
    fn hosts_are_kept_where_the_others_have_lost_their_leases_too() {
        // Leases that were renewed one after the other end one after the other.
        let others = [told(END.0 + 9_000, END.0 + 400), told(END.0 + 9_000, 0)];
        assert!(!cut_off(limits::LAPSE_GRACE_MS, &others));
        assert!(!cut_off(9_000, &others));
    }

    #[test]
    fn one_that_hears_nobody_lets_its_hosts_go() {
        assert!(cut_off(limits::LAPSE_GRACE_MS, &[None, None]));
        assert!(cut_off(limits::LAPSE_GRACE_MS, &[told(END.0 - 1_800, END.0 - 900)]));
        // One of them is there: it is the controllers who are gone.
        assert!(!cut_off(limits::LAPSE_GRACE_MS, &[None, told(END.0, END.0)]));
    }

    #[test]
    fn node_that_has_just_begun_to_ask_concludes_nothing_from_silence() {
        // Its process was stopped for long.
        let now = END.plus_millis(60_000);
        let facts = |watched_ms: u64| Facts {
            now,
            lease_end: END,
            watched_since: Instant(now.0 - watched_ms),
            leader_heard: Instant(END.0 - 400),
            neighbours: &[None],
        };
        assert!(!facts(limits::NEIGHBOUR_SILENCE_MS - 1).cut_off());
        assert!(facts(limits::NEIGHBOUR_SILENCE_MS).cut_off());
    }

    #[test]
    fn node_alone_or_with_a_leader_to_talk_to_keeps_its_hosts() {
        assert!(!cut_off(9_000, &[]));
        let now = END.plus_millis(5_000);
        let facts = Facts {
            now,
            lease_end: END,
            watched_since: END,
            leader_heard: Instant(now.0 - 500),
            neighbours: &[told(now.0, now.0 + 1_500)],
        };
        assert!(!facts.cut_off());
    }

    #[test]
    fn nothing_is_concluded_while_the_lease_runs() {
        let now = Instant(END.0 - 10);
        let neighbours = [told(now.0, END.0 + 5_000), None];
        let facts = Facts {
            now,
            lease_end: END,
            watched_since: Instant(0),
            leader_heard: Instant(0),
            neighbours: &neighbours,
        };
        assert!(!facts.cut_off());
    }
}
