//! What the leader proposes when leases begin and end. Pure.
//!
//! Invariants: every proposal is compare-and-set (incarnation, epoch, lease term), so that one that comes too late does nothing; of one
//! volume at most one change of the configuration is proposed at a time; nothing is proposed that the state would refuse as it is now.
//! A volume is looked at only if something may be due: it is not settled, its owner's process is not the present one, holds no lease or
//! is drained, or a node with a replica of it is emptied. For every other one a look would propose nothing ([`View::to_look_at`]).

use std::collections::BTreeMap;

use holdfast_proto::state as records;
use holdfast_replica::ids::{NodeNumber, VolumeId};

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
    /// Look at every volume, whether or not something may be due.
    pub(super) at_all: bool,
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
    let at_all = state.cluster().is_some_and(|cluster| cluster.rebalancing);
    plan(&View { state, table, reports, lease_term, now, at_all }, memory)
}

/// The same, by a look at every volume.
#[cfg(test)]
pub(super) fn proposals_at_all(
    state: &StateMachine,
    table: &LeaseTable,
    reports: &Reports,
    memory: &mut Memory,
    now: Millis,
) -> Vec<Body> {
    let Some(lease_term) = table.term().filter(|term| *term == state.lease_term()) else { return Vec::new() };
    plan(&View { state, table, reports, lease_term, now, at_all: true }, memory)
}

fn plan(view: &View<'_>, memory: &mut Memory) -> Vec<Body> {
    memory.observe(view.state, view.table, view.now);
    let volumes = view.to_look_at();
    let mut load = view.load();
    let mut all: Vec<Body> = view.state.nodes().filter_map(|node| view.node_proposal(node)).collect();
    for volume in &volumes {
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
    all.extend(plan_replicas::proposals(view, &volumes, memory, &mut load));
    all.extend(plan_jobs::proposals(view, memory));
    all.truncate(PROPOSALS_MAX);
    all
}

/// Volumes by the node that owns them or is to own them.
pub(super) type Load = BTreeMap<NodeNumber, usize>;

enum Owner {
    Serves,
    Gone,
    Change(Box<Body>),
}

impl<'a> View<'a> {
    /// The present process of the node holds a lease that this leader granted.
    pub(super) fn is_leased(&self, number: NodeNumber) -> bool {
        let node = self.state.node(u32::from(number.get()));
        node.is_some_and(|node| self.table.is_leased(node.number, node.incarnation, self.now))
    }

    /// Volumes for which something may be due, by id; none that is being deleted or made.
    fn to_look_at(&self) -> Vec<&'a Volume> {
        let state = self.state;
        if self.at_all {
            return state.volumes().filter(|volume| !volume.deleting && volume.making.is_none()).collect();
        }
        let mut found: BTreeMap<VolumeId, &'a Volume> = state.unsettled().map(|v| (v.id, v)).collect();
        for (number, incarnation, owned) in state.owners() {
            let node = state.node(u32::from(number.get()));
            let serves = node.is_some_and(|node| node.incarnation == incarnation.0 && !node.draining)
                && self.is_leased(number);
            if !serves {
                found.extend(owned.iter().filter_map(|id| Some((*id, state.volume(*id)?))));
            }
        }
        for node in state.nodes().filter(|node| node.draining && node.evacuating) {
            found.extend(state.volumes_on(node.number).map(|volume| (volume.id, volume)));
        }
        found.into_values().filter(|volume| !volume.deleting && volume.making.is_none()).collect()
    }

    fn load(&self) -> Load {
        let mut load = Load::new();
        for (number, _, owned) in self.state.owners() {
            *load.entry(number).or_default() += owned.len();
        }
        for volume in self.state.unsettled() {
            let Some(to) = volume.hand_over_to else { continue };
            if let Some(owner) = volume.owner_node()
                && let Some(owned) = load.get_mut(&owner)
            {
                *owned = owned.saturating_sub(1);
            }
            *load.entry(to).or_default() += 1;
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
