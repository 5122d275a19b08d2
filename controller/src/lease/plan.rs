//! What the leader proposes when leases begin and end. Pure.
//!
//! Invariants: every proposal is compare-and-set (incarnation, epoch, lease term), so that one that comes too late does nothing; of one
//! volume at most one change of the configuration is proposed at a time; nothing is proposed that the state would refuse as it is now.

use holdfast_proto::state as records;
use holdfast_replica::ids::NodeNumber;

use super::{Millis, memory::Memory, plan_jobs, plan_replicas, reports::Reports, table::LeaseTable};
use crate::state::{Body, StateMachine, Volume, convert::epoch_record};

/// Proposals of one tick at most; the next tick brings the rest.
pub const PROPOSALS_MAX: usize = 256;

/// What a plan looks at.
pub(super) struct View<'a> {
    pub(super) state: &'a StateMachine,
    pub(super) table: &'a LeaseTable,
    pub(super) reports: &'a Reports,
    pub(super) lease_term: u64,
    pub(super) now: Millis,
}

/// Proposals that bring the state in line with the leases, and volumes in line with what was asked for. Empty unless `table` leads
/// and its term is the lease term in force.
pub fn proposals(
    state: &StateMachine,
    table: &LeaseTable,
    reports: &Reports,
    memory: &mut Memory,
    now: Millis,
) -> Vec<Body> {
    let Some(lease_term) = table.term().filter(|term| *term == state.lease_term()) else { return Vec::new() };
    memory.observe(state, table, now);
    let view = View { state, table, reports, lease_term, now };
    let mut load = view.load();
    let mut all: Vec<Body> = state.nodes().filter_map(|node| view.node_proposal(node)).collect();
    for volume in state.volumes().filter(|volume| !volume.deleting) {
        if all.len() >= PROPOSALS_MAX {
            return all;
        }
        match view.owner_proposal(volume, &mut load) {
            Owner::Change(body) => all.push(*body),
            Owner::Gone => {}
            // Only an owner that serves can bring up others.
            Owner::Serves => all.extend(view.return_proposal(volume, memory)),
        }
    }
    all.extend(plan_replicas::proposals(&view, memory, &mut load));
    all.extend(plan_jobs::proposals(&view, memory));
    all.truncate(PROPOSALS_MAX);
    all
}

/// Volumes by the node that owns them or is to own them.
pub(super) type Load = std::collections::BTreeMap<NodeNumber, usize>;

enum Owner {
    Serves,
    Gone,
    Change(Box<Body>),
}

impl View<'_> {
    /// The present process of the node holds a lease that this leader granted.
    pub(super) fn is_leased(&self, number: NodeNumber) -> bool {
        let node = self.state.node(u32::from(number.get()));
        node.is_some_and(|node| self.table.is_leased(node.number, node.incarnation, self.now))
    }

    fn load(&self) -> Load {
        let mut load = Load::new();
        for volume in self.state.volumes() {
            if let Some(owner) = volume.hand_over_to.or(volume.owner_node()) {
                *load.entry(owner).or_default() += 1;
            }
        }
        load
    }

    fn node_proposal(&self, node: &records::Node) -> Option<Body> {
        let (number, incarnation, lease_term) = (node.number, node.incarnation, self.lease_term);
        let leased = self.table.is_leased(number, incarnation, self.now);
        if leased && !node.live {
            Some(Body::NodeLive(records::NodeLive { number, incarnation, lease_term }))
        } else if node.live && self.table.is_expired(number, self.now) {
            Some(Body::NodeLost(records::NodeLost { number, incarnation, lease_term }))
        } else {
            None
        }
    }

    fn owner_proposal(&self, volume: &Volume, load: &mut Load) -> Owner {
        let owner = volume.config.owner();
        if let Some(owner) = owner {
            let number = u32::from(owner.node.get());
            let current = self.state.node(number).map_or(0, |node| node.incarnation);
            if current == owner.incarnation.0 {
                // It serves, or may serve again under its next lease, until another takes over.
                if !self.table.is_expired(number, self.now) {
                    return if self.is_leased(owner.node) { Owner::Serves } else { Owner::Gone };
                }
            } else if !self.table.are_predecessors_expired(number, current, self.now) {
                return Owner::Gone;
            }
        }
        let may = |number: NodeNumber| {
            let node = self.state.node(u32::from(number.get()))?;
            let leased = self.is_leased(number)
                && self.table.are_predecessors_expired(node.number, node.incarnation, self.now);
            let whole = self.reports.failed(volume.id, node.number).is_none();
            let allowed =
                leased && whole && self.state.promotion(volume, volume.config.epoch(), number).is_ok();
            allowed.then_some(node)
        };
        let candidates = volume.config.in_sync().iter().filter_map(|m| Some((m.node, may(m.node)?)));
        // Where it was to go anyway; else the old owner: its port group is the one that hosts have been told to prefer; else where
        // the fewest are.
        let best = candidates.min_by_key(|(number, node)| {
            let asked = volume.hand_over_to == Some(*number);
            let same = owner.is_some_and(|o| o.node == *number);
            (!asked, !same, node.cordoned, load.get(number).copied().unwrap_or(0), *number)
        });
        let Some((number, new)) = best else { return Owner::Gone };
        *load.entry(number).or_default() += 1;
        Owner::Change(Box::new(Body::ChangeOwner(records::ChangeOwner {
            volume_id: volume.id.0.to_vec(),
            expected: Some(epoch_record(volume.config.epoch())),
            owner: new.number,
            owner_incarnation: new.incarnation,
            lease_term: self.lease_term,
        })))
    }

    /// One absent replica, or one that catches up under an earlier boot, begins to catch up.
    fn return_proposal(&self, volume: &Volume, memory: &mut Memory) -> Option<Body> {
        let room = volume.config.learners().len() < holdfast_replica::limits::LEARNERS_MAX;
        let absent = volume.absent.iter().filter(|m| room && memory.may_return(volume.id, m.node, self.now));
        let rebooted = volume.config.learners().iter().filter(|m| {
            let node = self.state.node(u32::from(m.node.get()));
            node.is_some_and(|node| node.boot_id[..] != m.boot.0[..])
        });
        let (member, node) = absent.chain(rebooted).find_map(|m| {
            let node = self.state.node(u32::from(m.node.get()))?;
            let whole = self.reports.failed(volume.id, node.number).is_none();
            (node.live && whole && self.is_leased(m.node)).then_some((m.node, node))
        })?;
        memory.returns(volume.id, member, self.now);
        Some(Body::ReturnReplica(records::ReturnReplica {
            volume_id: volume.id.0.to_vec(),
            expected: Some(epoch_record(volume.config.epoch())),
            node: node.number,
            incarnation: node.incarnation,
            lease_term: self.lease_term,
        }))
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
