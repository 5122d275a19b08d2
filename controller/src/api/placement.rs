//! Where a new volume goes: the node with the fewest volumes among those that can take it.
//!
//! Invariant: this only proposes; the state machine checks the choice again where it is carried out.

use std::cmp::Reverse;

use holdfast_proto::state as records;

use crate::state::StateMachine;

/// A choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Placement {
    /// Node number.
    pub(super) node: u32,
    /// Pool of that node.
    pub(super) pool: String,
}

/// Chooses node and pool for `size_bytes`; `node` and `pool` are wishes, empty = any. The error says of each node why not.
pub(super) fn choose(
    state: &StateMachine,
    size_bytes: u64,
    node: &str,
    pool: &str,
) -> Result<Placement, String> {
    let asked: Vec<&records::Node> = state.nodes().filter(|n| node.is_empty() || n.name == node).collect();
    if asked.is_empty() {
        return Err(if node.is_empty() {
            "no data node has joined yet".to_owned()
        } else {
            format!("node {node} does not exist")
        });
    }
    let mut reasons = Vec::new();
    let mut best: Option<(Reverse<usize>, u64, Reverse<u32>, Placement)> = None;
    for node in asked {
        match best_pool(node, size_bytes, pool) {
            Err(reason) => reasons.push(reason),
            Ok(pool) => {
                let placement = Placement { node: node.number, pool: pool.name.clone() };
                let rank =
                    (Reverse(owned(state, node.number)), pool.free_bytes, Reverse(node.number), placement);
                let better = best.as_ref().is_none_or(|b| (b.0, b.1, b.2) < (rank.0, rank.1, rank.2));
                if better {
                    best = Some(rank);
                }
            }
        }
    }
    best.map(|(.., placement)| placement).ok_or_else(|| reasons.join("; "))
}

fn best_pool<'a>(node: &'a records::Node, size_bytes: u64, wish: &str) -> Result<&'a records::Pool, String> {
    if node.cordoned {
        return Err(format!("node {} is cordoned", node.name));
    }
    if !node.live {
        return Err(format!("node {} holds no lease", node.name));
    }
    let pools = node.pools.iter().filter(|p| wish.is_empty() || p.name == wish);
    match pools.max_by_key(|p| p.free_bytes) {
        None if wish.is_empty() => Err(format!("node {} has no pool", node.name)),
        None => Err(format!("node {} has no pool {}", node.name, crate::state::names::printable(wish))),
        Some(pool) if pool.free_bytes < size_bytes => {
            Err(format!("pool {} of node {} has {} bytes free", pool.name, node.name, pool.free_bytes))
        }
        Some(pool) => Ok(pool),
    }
}

/// Volumes that the node owns.
pub(super) fn owned(state: &StateMachine, node: u32) -> usize {
    state.volumes().filter(|v| v.config.owner().is_some_and(|o| u32::from(o.node.get()) == node)).count()
}
