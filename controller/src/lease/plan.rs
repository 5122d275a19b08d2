//! What the leader proposes when leases begin and end. Pure.
//!
//! Invariant: every proposal is compare-and-set (incarnation, epoch, lease term), so that one that comes too late does nothing.

use holdfast_proto::state as records;

use super::{Millis, table::LeaseTable};
use crate::state::{Body, StateMachine, Volume, convert::epoch_record};

/// Proposals of one tick at most; the next tick brings the rest.
pub const PROPOSALS_MAX: usize = 256;

/// Proposals that bring the state in line with the leases. Empty unless `table` leads and its term is the lease term in force.
pub fn proposals(state: &StateMachine, table: &LeaseTable, now: Millis) -> Vec<Body> {
    let Some(term) = table.term().filter(|term| *term == state.lease_term()) else { return Vec::new() };
    let nodes = state.nodes().filter_map(|node| node_proposal(node, table, term, now));
    let owners = state.volumes().filter_map(|volume| owner_proposal(state, volume, table, term, now));
    nodes.chain(owners).take(PROPOSALS_MAX).collect()
}

fn node_proposal(node: &records::Node, table: &LeaseTable, lease_term: u64, now: Millis) -> Option<Body> {
    let (number, incarnation) = (node.number, node.incarnation);
    let leased = table.is_leased(number, incarnation, now);
    if leased && !node.live {
        Some(Body::NodeLive(records::NodeLive { number, incarnation, lease_term }))
    } else if node.live && table.is_expired(number, now) {
        Some(Body::NodeLost(records::NodeLost { number, incarnation, lease_term }))
    } else {
        None
    }
}

fn owner_proposal(
    state: &StateMachine,
    volume: &Volume,
    table: &LeaseTable,
    lease_term: u64,
    now: Millis,
) -> Option<Body> {
    if volume.deleting {
        return None;
    }
    let owner = volume.config.owner();
    if let Some(owner) = owner {
        let number = u32::from(owner.node.get());
        let current = state.node(number).map_or(0, |node| node.incarnation);
        if current == owner.incarnation.0 {
            // It serves, or may serve again under its next lease, until another takes over.
            if !table.is_expired(number, now) {
                return None;
            }
        } else if !table.are_predecessors_expired(number, current, now) {
            return None;
        }
    }
    // The old owner first: its port group is the one that hosts have been told to prefer.
    let members = volume.config.in_sync().iter();
    let old_first = members.clone().filter(|m| owner.is_some_and(|o| o.node == m.node));
    let others = members.filter(|m| owner.is_none_or(|o| o.node != m.node));
    let candidates = old_first.chain(others).filter_map(|m| state.node(u32::from(m.node.get())));
    let new = candidates
        .filter(|node| table.is_leased(node.number, node.incarnation, now))
        .find(|node| table.are_predecessors_expired(node.number, node.incarnation, now))?;
    Some(Body::ChangeOwner(records::ChangeOwner {
        volume_id: volume.id.0.to_vec(),
        expected: Some(epoch_record(volume.config.epoch())),
        owner: new.number,
        owner_incarnation: new.incarnation,
        lease_term,
    }))
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
