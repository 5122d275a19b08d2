//! The last commits in memory, for those who follow the state.
//!
//! Invariant: a follower gets every commit above its start once and in log order, or is told of the gap
//! ([`CommitsEnd::Gap`]); it is never silently skipped ahead. Memory is bounded in number and bytes; a slow follower holds
//! nothing back.

use std::{collections::VecDeque, sync::Arc};

use holdfast_proto::state::Commit;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::watch;

use super::options::{COMMITS_KEPT, COMMITS_KEPT_BYTES};

struct Kept {
    /// Every commit above this index (and applied here) is in `commits`.
    floor: u64,
    commits: VecDeque<(Arc<Commit>, usize)>,
    bytes: usize,
}

/// The ring.
pub(super) struct CommitRing {
    kept: Mutex<Kept>,
    changed: watch::Sender<u64>,
}

impl CommitRing {
    /// Starts above `floor`.
    pub(super) fn new(floor: u64) -> Self {
        Self {
            kept: Mutex::new(Kept { floor, commits: VecDeque::new(), bytes: 0 }),
            changed: watch::Sender::new(0),
        }
    }

    /// Adds commits, which are above all before them.
    pub(super) fn publish(&self, commits: Vec<Commit>) {
        if commits.is_empty() {
            return;
        }
        let mut kept = self.kept.lock();
        for commit in commits {
            let size = commit.encoded_len();
            kept.bytes += size;
            kept.commits.push_back((Arc::new(commit), size));
        }
        while kept.commits.len() > COMMITS_KEPT || (kept.bytes > COMMITS_KEPT_BYTES && kept.commits.len() > 1)
        {
            let Some((dropped, size)) = kept.commits.pop_front() else { break };
            kept.floor = dropped.index;
            kept.bytes -= size;
        }
        drop(kept);
        self.changed.send_modify(|version| *version += 1);
    }

    /// The state was replaced as a whole: whoever stands below `floor` has a gap.
    pub(super) fn restart(&self, floor: u64) {
        *self.kept.lock() = Kept { floor, commits: VecDeque::new(), bytes: 0 };
        self.changed.send_modify(|version| *version += 1);
    }

    /// A follower that has everything up to `after`.
    pub(super) fn follow(self: &Arc<Self>, after: u64) -> Commits {
        Commits { ring: Arc::downgrade(self), after, changed: self.changed.subscribe() }
    }

    /// True if nothing above `after` has been dropped.
    pub(super) fn holds(&self, after: u64) -> bool {
        self.kept.lock().floor <= after
    }

    fn next_after(&self, after: u64) -> Result<Option<Arc<Commit>>, CommitsEnd> {
        let kept = self.kept.lock();
        if after < kept.floor {
            return Err(CommitsEnd::Gap);
        }
        let position = kept.commits.partition_point(|(commit, _)| commit.index <= after);
        Ok(kept.commits.get(position).map(|(commit, _)| Arc::clone(commit)))
    }
}

/// Why there are no further commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CommitsEnd {
    /// Commits were missed: begin again with a whole state (`read_and_follow`).
    #[error("the follower fell behind")]
    Gap,
    /// This member has stopped.
    #[error("this member has stopped")]
    Stopped,
}

/// Commits in log order from a point on.
pub struct Commits {
    ring: std::sync::Weak<CommitRing>,
    after: u64,
    changed: watch::Receiver<u64>,
}

impl Commits {
    /// Index of the last commit that was taken (or of the start).
    pub fn after(&self) -> u64 {
        self.after
    }

    /// The next commit, as soon as there is one. Cancel-safe.
    ///
    /// # Errors
    /// [`CommitsEnd`]; then this follower is of no further use.
    pub async fn next(&mut self) -> Result<Arc<Commit>, CommitsEnd> {
        loop {
            self.changed.borrow_and_update();
            if let Some(commit) = self.try_next()? {
                return Ok(commit);
            }
            self.changed.changed().await.map_err(|_| CommitsEnd::Stopped)?;
        }
    }

    /// The next commit if there is one now.
    ///
    /// # Errors
    /// As [`Commits::next`].
    pub fn try_next(&mut self) -> Result<Option<Arc<Commit>>, CommitsEnd> {
        let ring = self.ring.upgrade().ok_or(CommitsEnd::Stopped)?;
        let next = ring.next_after(self.after)?;
        if let Some(commit) = &next {
            self.after = commit.index;
        }
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(index: u64) -> Commit {
        Commit { index, ..Default::default() }
    }

    #[test]
    fn follows_in_order_from_its_start() {
        let ring = Arc::new(CommitRing::new(4));
        ring.publish(vec![commit(5), commit(7)]);
        let mut follower = ring.follow(5);
        assert_eq!(follower.try_next().unwrap().unwrap().index, 7);
        assert_eq!(follower.try_next(), Ok(None));
        ring.publish(vec![commit(9)]);
        assert_eq!(follower.try_next().unwrap().unwrap().index, 9);
    }

    #[test]
    fn a_follower_that_fell_behind_is_told() {
        let ring = Arc::new(CommitRing::new(0));
        let mut follower = ring.follow(0);
        let newest = COMMITS_KEPT as u64 + 1;
        ring.publish((1..=newest).map(commit).collect());
        assert_eq!(follower.try_next(), Err(CommitsEnd::Gap));
        let mut in_time = ring.follow(1);
        assert_eq!(in_time.try_next().unwrap().unwrap().index, 2);
    }

    #[test]
    fn a_replaced_state_is_a_gap_for_those_below_it() {
        let ring = Arc::new(CommitRing::new(0));
        let mut below = ring.follow(3);
        let mut at = ring.follow(8);
        ring.restart(8);
        assert_eq!(below.try_next(), Err(CommitsEnd::Gap));
        ring.publish(vec![commit(9)]);
        assert_eq!(at.try_next().unwrap().unwrap().index, 9);
    }

    #[tokio::test]
    async fn ends_when_the_member_stops() {
        let ring = Arc::new(CommitRing::new(0));
        let mut follower = ring.follow(0);
        drop(ring);
        assert_eq!(follower.next().await, Err(CommitsEnd::Stopped));
    }
}
