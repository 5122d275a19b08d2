//! Who may hold a lease, as the leader knows it. Pure: time and the state's head come in.
//!
//! Invariants
//! * What the table does not know it takes as leased until a full lease after the election (`settled_at`).
//! * Grants are never forgotten before they end, not even over elections: they stay true.
//! * A new incarnation of a node never ends the leases of the earlier ones.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{DATA_PATH_STALLED_MS_MAX, GRANTS_KEPT, LEASE_MS, Millis};

/// Why a renewal is not granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotGranted {
    /// This member does not lead, or its lease term is not in force yet.
    #[error("this member does not grant leases now")]
    NotLeading,
    /// A newer process of the node has joined.
    #[error("a newer incarnation of the node has joined")]
    StaleIncarnation,
    /// Its data path hangs: it could not install a reservation in time.
    #[error("the node's data path has hung for {0} ms")]
    DataPathStalled(u32),
    /// It was removed, or is being removed.
    #[error("the node is removed from the cluster")]
    Removed,
    /// It has not installed what it was told a lease ago.
    #[error("the node has not yet applied log index {0}")]
    Lagging(u64),
}

/// Has every port that may serve under an older state installed this one?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Barrier {
    /// Yes, or it has no lease any more.
    Passed,
    /// Not yet; at this moment at the latest, as far as known now.
    Waiting(Millis),
}

/// One answer to a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Grant {
    /// The node serves nothing under it before it has applied this index.
    index: u64,
    until: Millis,
}

/// What is known of one node.
#[derive(Clone, Debug, Default)]
struct NodeLease {
    incarnation: u64,
    /// Highest index that this incarnation has installed on all of its ports.
    applied: u64,
    /// In the order in which they were made: `index` and `until` grow.
    grants: VecDeque<Grant>,
    /// Index of the newest grant that is over: by now the node should have applied it.
    owes: u64,
    /// End of the leases of earlier incarnations.
    earlier_until: Millis,
}

/// A renewal to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewal {
    /// Node number.
    pub node: u32,
    /// Incarnation of the process that asks.
    pub incarnation: u64,
    /// How long its data path hangs, in milliseconds.
    pub data_path_stalled_ms: u32,
    /// Log index of the last entry that nodes see, as applied here now.
    pub head: u64,
}

/// The table.
#[derive(Debug, Default)]
pub struct LeaseTable {
    /// Term in which this member leads; `None`: it does not.
    term: Option<u64>,
    /// From here on no lease that an earlier leader granted can run.
    settled_at: Millis,
    nodes: BTreeMap<u32, NodeLease>,
    /// Nodes that are being removed: granted nothing.
    removing: BTreeSet<u32>,
}

impl LeaseTable {
    /// A table of a member that does not lead.
    pub fn new() -> LeaseTable {
        LeaseTable::default()
    }

    /// This member was elected in `term` at `elected_at` or before.
    pub fn begin(&mut self, term: u64, elected_at: Millis) {
        self.term = Some(term);
        // What an earlier term proposed is refused from now on.
        self.removing.clear();
        self.settled_at = self.settled_at.max(elected_at.plus(LEASE_MS));
    }

    /// This member does not lead any more.
    pub fn end(&mut self) {
        self.term = None;
    }

    /// Term in which this member leads.
    pub fn term(&self) -> Option<u64> {
        self.term
    }

    /// When the leases of earlier leaders have run out.
    pub fn settled_at(&self) -> Millis {
        self.settled_at
    }

    /// A process of the node has joined. Its predecessors' leases run on.
    pub fn joined(&mut self, node: u32, incarnation: u64) {
        let entry = self.nodes.entry(node).or_default();
        if incarnation > entry.incarnation {
            let newest = entry.grants.back().map_or(Millis(0), |grant| grant.until);
            *entry = NodeLease {
                incarnation,
                earlier_until: entry.earlier_until.max(newest),
                ..NodeLease::default()
            };
        }
    }

    /// From now on the node is granted nothing, until [`LeaseTable::keep`], so that it can be removed. Refused while any of its
    /// processes may hold a lease: the error is the moment when none can, as far as known now.
    pub fn begin_removal(&mut self, node: u32, now: Millis) -> Result<(), Millis> {
        if self.is_expired(node, now) {
            self.removing.insert(node);
            return Ok(());
        }
        let known = self.nodes.get(&node).map_or(Millis(0), |e| e.newest().max(e.earlier_until));
        Err(known.max(self.settled_at))
    }

    /// The node is not removed after all.
    pub fn keep(&mut self, node: u32) {
        self.removing.remove(&node);
    }

    /// The node reports what it has installed on all of its ports.
    pub fn applied(&mut self, node: u32, incarnation: u64, index: u64) {
        self.joined(node, incarnation);
        if let Some(entry) = self.nodes.get_mut(&node).filter(|e| e.incarnation == incarnation) {
            entry.applied = entry.applied.max(index);
        }
    }

    /// Grants a lease from `now` on. The caller has confirmed this member's leadership with a quorum since the renewal
    /// arrived, and sends the answer only after this.
    pub fn grant(&mut self, renewal: Renewal, now: Millis) -> Result<(), NotGranted> {
        if self.term.is_none() {
            return Err(NotGranted::NotLeading);
        }
        if self.removing.contains(&renewal.node) {
            return Err(NotGranted::Removed);
        }
        self.joined(renewal.node, renewal.incarnation);
        let entry = self.nodes.entry(renewal.node).or_default();
        if entry.incarnation != renewal.incarnation {
            return Err(NotGranted::StaleIncarnation);
        }
        if renewal.data_path_stalled_ms > DATA_PATH_STALLED_MS_MAX {
            return Err(NotGranted::DataPathStalled(renewal.data_path_stalled_ms));
        }
        entry.prune(now);
        if entry.applied < entry.owes {
            return Err(NotGranted::Lagging(entry.owes));
        }
        entry.push(Grant { index: renewal.head, until: now.plus(LEASE_MS) });
        Ok(())
    }

    /// Has every one of `nodes` (all that the state knows) installed `index`, or does it provably hold no lease that was
    /// granted before? Ask only after `index` is applied here and while the lease term in force is [`LeaseTable::term`]: then
    /// every later grant carries `index` or more.
    pub fn barrier(&self, index: u64, nodes: impl IntoIterator<Item = u32>, now: Millis) -> Barrier {
        let last = nodes.into_iter().map(|node| self.may_serve_before(node, index)).max();
        match last.filter(|until| *until > now) {
            None => Barrier::Passed,
            Some(until) => Barrier::Waiting(until),
        }
    }

    /// The highest index, `head` at most, up to which every barrier has passed, and those of `nodes` that hold it there: none if it
    /// is `head`. What has passed stays so; more passes when all of the latter have moved, or with time. To be asked as
    /// [`LeaseTable::barrier`] is.
    pub fn passed(
        &self,
        head: u64,
        nodes: impl IntoIterator<Item = u32>,
        now: Millis,
    ) -> (u64, BTreeSet<u32>) {
        let (mut lowest, mut holding) = (head, BTreeSet::new());
        for node in nodes {
            let installed = self.holds_at(node, now);
            if installed < lowest {
                lowest = installed;
                holding.clear();
            }
            if installed == lowest && lowest < head {
                holding.insert(node);
            }
        }
        (lowest, holding)
    }

    /// The highest index that no process of the node may serve without having applied: [`LeaseTable::may_serve_before`] the other
    /// way round.
    fn holds_at(&self, node: u32, now: Millis) -> u64 {
        let Some(entry) = self.nodes.get(&node) else {
            return if self.settled_at <= now { u64::MAX } else { 0 };
        };
        if self.earlier_until(entry) > now {
            return 0;
        }
        if self.settled_at > now {
            return entry.applied;
        }
        let running = entry.grants.iter().find(|grant| grant.until > now);
        running.map_or(u64::MAX, |grant| grant.index.max(entry.applied))
    }

    /// Until when a process of the node may serve without having applied `index`.
    fn may_serve_before(&self, node: u32, index: u64) -> Millis {
        let Some(entry) = self.nodes.get(&node) else { return self.settled_at };
        let own = if entry.applied >= index {
            Millis(0)
        } else {
            let older = entry.grants.iter().rev().find(|grant| grant.index < index);
            older.map_or(Millis(0), |grant| grant.until).max(self.settled_at)
        };
        own.max(self.earlier_until(entry))
    }

    /// Until when an earlier process of the node may serve.
    fn earlier_until(&self, entry: &NodeLease) -> Millis {
        // The first incarnation has no predecessor. A later one may have had one under an earlier leader.
        if entry.incarnation <= 1 { entry.earlier_until } else { entry.earlier_until.max(self.settled_at) }
    }

    /// This incarnation of the node holds a lease that this member granted.
    pub fn is_leased(&self, node: u32, incarnation: u64, now: Millis) -> bool {
        self.nodes.get(&node).is_some_and(|e| e.incarnation == incarnation && e.newest() > now)
    }

    /// No process of the node, of any incarnation, can hold a lease.
    pub fn is_expired(&self, node: u32, now: Millis) -> bool {
        let known = self.nodes.get(&node).map_or(Millis(0), |e| e.newest().max(e.earlier_until));
        known.max(self.settled_at) <= now
    }

    /// No incarnation of the node before `incarnation` can hold a lease.
    pub fn are_predecessors_expired(&self, node: u32, incarnation: u64, now: Millis) -> bool {
        match self.nodes.get(&node) {
            Some(entry) if entry.incarnation == incarnation => self.earlier_until(entry) <= now,
            _ => self.is_expired(node, now),
        }
    }

    /// Milliseconds left of the node's lease; 0 = none that this member granted.
    pub fn left_ms(&self, node: u32, now: Millis) -> u32 {
        let left = self.nodes.get(&node).map_or(0, |e| e.newest().since(now));
        u32::try_from(left).unwrap_or(u32::MAX)
    }

    /// Highest index that the node reported as installed; 0 = none heard of.
    pub fn applied_index(&self, node: u32) -> u64 {
        self.nodes.get(&node).map_or(0, |e| e.applied)
    }
}

impl NodeLease {
    fn newest(&self) -> Millis {
        self.grants.back().map_or(Millis(0), |grant| grant.until)
    }

    /// Drops grants that are over; what they asked to be applied is owed now.
    fn prune(&mut self, now: Millis) {
        while let Some(grant) = self.grants.front().filter(|grant| grant.until <= now) {
            self.owes = self.owes.max(grant.index);
            self.grants.pop_front();
        }
    }

    fn push(&mut self, grant: Grant) {
        let kept = self.grants.len();
        match self.grants.back_mut() {
            Some(last) if last.index >= grant.index => last.until = last.until.max(grant.until),
            // Too many to tell apart: count the newer one as if it had been granted on the older index.
            Some(last) if kept >= GRANTS_KEPT => last.until = last.until.max(grant.until),
            _ => self.grants.push_back(grant),
        }
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
