//! What the leader proposes so that volumes become what was asked for: drained nodes are emptied, moves come to their end, ownership is
//! spread, what is lost is replaced. Pure.
//!
//! Invariants: everything follows from the state, so that any leader goes on with it; what is under way at once is bounded; spreading
//! moves a volume only from a node with at least two more than the one it goes to, so that it ends.

use holdfast_proto::state as records;
use holdfast_replica::ids::NodeNumber;

use super::{
    memory::Memory,
    plan::{Load, View},
};
use crate::state::{Body, Volume, convert::epoch_record, limits};

/// Volumes that one node is asked to hand over at once.
const HAND_OVERS_PER_NODE_MAX: usize = 16;
/// Volumes that get a replica by a plan at once, in the whole cluster.
const PLACEMENTS_MAX: usize = 8;

pub(super) fn proposals(
    view: &View<'_>,
    volumes: &[&Volume],
    memory: &mut Memory,
    load: &mut Load,
) -> Vec<Body> {
    let mut all = Vec::new();
    let mut asked = Load::new();
    let mut catching_up = 0;
    for volume in volumes {
        catching_up += usize::from(!volume.config.learners().is_empty());
        if let (Some(owner), Some(_)) = (volume.owner_node(), volume.hand_over_to) {
            *asked.entry(owner).or_default() += 1;
        }
    }
    let rebalancing = view.state.cluster().is_some_and(|cluster| cluster.rebalancing);
    let mut spread = false;
    for volume in volumes {
        let Some(owner) = volume.config.owner() else { continue };
        if !view.is_leased(owner.node) {
            continue;
        }
        let pending = asked.entry(owner.node).or_default();
        if volume.hand_over_to.is_some() {
            spread = true;
            if memory.is_stuck(volume.id, view.now) {
                memory.stuck.insert(volume.id);
                all.push(request(volume, None));
            }
            continue;
        }
        let leaves = must_leave(view, volume, owner.node);
        let to = if leaves {
            best(view, volume, load, |_| true)
        } else if rebalancing && !memory.stuck.contains(&volume.id) {
            let from = load.get(&owner.node).copied().unwrap_or(0);
            best(view, volume, load, |to| from >= load.get(&to).copied().unwrap_or(0) + 2)
                .filter(|to| !view.state.node(u32::from(to.get())).is_none_or(|node| node.cordoned))
        } else {
            None
        };
        if let Some(to) = to {
            spread = true;
            if *pending < HAND_OVERS_PER_NODE_MAX {
                *pending += 1;
                *load.entry(owner.node).or_default() -=
                    usize::from(load.get(&owner.node).is_some_and(|n| *n > 0));
                *load.entry(to).or_default() += 1;
                all.push(request(volume, Some(to)));
                continue;
            }
        }
        if let Some(body) = finished_move(volume, owner.node) {
            all.push(body);
        } else if catching_up < PLACEMENTS_MAX
            && let Some(body) = placement(view, memory, volume)
        {
            catching_up += 1;
            all.push(body);
        }
    }
    if rebalancing && !spread {
        all.push(Body::Rebalance(records::Rebalance { on: false, stopped: false, request: None }));
    }
    all
}

fn request(volume: &Volume, to: Option<NodeNumber>) -> Body {
    Body::RequestHandOver(records::RequestHandOver {
        volume_id: volume.id.0.to_vec(),
        expected: Some(epoch_record(volume.config.epoch())),
        to: to.map_or(0, |to| u32::from(to.get())),
        request: None,
    })
}

/// The owner's node is drained, or its replica moves elsewhere.
fn must_leave(view: &View<'_>, volume: &Volume, owner: NodeNumber) -> bool {
    let draining = view.state.node(u32::from(owner.get())).is_some_and(|node| node.draining);
    draining || volume.moves.iter().any(|(from, _)| *from == owner)
}

/// The in-sync node other than the owner that should own the volume: not one that is cordoned if there is another, and one that stays.
fn best(
    view: &View<'_>,
    volume: &Volume,
    load: &Load,
    fits: impl Fn(NodeNumber) -> bool,
) -> Option<NodeNumber> {
    let epoch = volume.config.epoch();
    let others = volume.config.in_sync().iter().map(|m| m.node).filter(|n| Some(*n) != volume.owner_node());
    let able = others.filter(|n| {
        let draining = view.state.node(u32::from(n.get())).is_none_or(|node| node.draining);
        !draining
            && view.is_leased(*n)
            && view.reports.failed(volume.id, u32::from(n.get())).is_none()
            && view.state.may_take(volume, epoch, *n).is_ok()
            && fits(*n)
    });
    able.min_by_key(|n| {
        let cordoned = view.state.node(u32::from(n.get())).is_none_or(|node| node.cordoned);
        let leaves = volume.moves.iter().any(|(from, _)| from == n);
        (leaves, cordoned, load.get(n).copied().unwrap_or(0), *n)
    })
}

/// A replica whose successor is in sync is given up.
fn finished_move(volume: &Volume, owner: NodeNumber) -> Option<Body> {
    let (from, _) = volume.moves.iter().find(|(from, to)| *from != owner && volume.is_in_sync(*to))?;
    Some(Body::DropReplica(records::DropReplica {
        request: None,
        volume: volume.name.clone(),
        node: u32::from(from.get()),
        fewer: false,
    }))
}

/// A replica for what is missing, lost for long, or on a node that is emptied.
fn placement(view: &View<'_>, memory: &mut Memory, volume: &Volume) -> Option<Body> {
    let cluster = view.state.cluster()?;
    let grace_s = match cluster.replace_after_s {
        0 => limits::REPLACE_AFTER_S_DEFAULT,
        seconds => seconds,
    };
    let grace_ms = u64::from(grace_s) * 1000;
    let moving = |node: NodeNumber| volume.moves.iter().any(|(from, to)| *from == node || *to == node);
    let evacuating = |node: NodeNumber| {
        view.state.node(u32::from(node.get())).is_some_and(|node| node.draining && node.evacuating)
    };
    let lost = |node: NodeNumber| {
        memory.absent_ms(volume.id, node, view.now) >= grace_ms
            || (!volume.is_in_sync(node) && memory.away_ms(u32::from(node.get()), view.now) >= grace_ms)
    };
    let replaced = volume
        .kept()
        .map(|m| m.node)
        .filter(|node| !moving(*node))
        .find(|node| evacuating(*node) || (!cluster.replace_never && lost(*node)));
    let missing = !cluster.replace_never && volume.copies() < volume.replicas as usize;
    if replaced.is_none() && !missing {
        return None;
    }
    if volume.config.learners().len() >= holdfast_replica::limits::LEARNERS_MAX
        || !memory.may_place(volume.id, view.now)
    {
        return None;
    }
    let place = view.state.place_for(volume).ok()?;
    Some(Body::AddReplica(records::AddReplica {
        request: None,
        volume: volume.name.clone(),
        place: Some(records::ReplicaPlace { node: place.node, pool: place.pool }),
        replaces: replaced.map_or(0, |node| u32::from(node.get())),
        missing: replaced.is_none(),
    }))
}

#[cfg(test)]
#[path = "plan_replicas_tests.rs"]
mod tests;
