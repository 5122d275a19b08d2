//! Where replicas go: the nodes that hold the fewest, with room, each on a node of its own.
//!
//! Invariant: this only proposes; the state machine checks the choice again where it is carried out.

use std::cmp::Reverse;

use holdfast_proto::state as records;
use holdfast_replica::ids::NodeNumber;

use super::{StateMachine, Volume, names::printable};

/// A choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Node number.
    pub node: u32,
    /// Pool of that node.
    pub pool: String,
}

/// A wish: a node, and perhaps its pool; empty = any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// Name of a node.
    pub node: String,
    /// Name of a pool.
    pub pool: String,
}

impl StateMachine {
    /// Places for `copies` replicas of `size_bytes` each, the owner's first. `wishes` are met in their order, the first one by the owner;
    /// where none is left, the nodes that hold least are taken.
    ///
    /// # Errors
    /// Of each node why not.
    pub fn places(&self, size_bytes: u64, copies: usize, wishes: &[Wish]) -> Result<Vec<Place>, String> {
        if wishes.len() > copies {
            return Err(format!("{} places are named for {copies} copies", wishes.len()));
        }
        let mut chosen: Vec<Place> = Vec::new();
        for at in 0..copies {
            let any = Wish::default();
            let wish = wishes.get(at).unwrap_or(&any);
            // A later wish for one node is not lost to an earlier one for any.
            let named: Vec<&str> = wishes.iter().skip(at + 1).map(|w| w.node.as_str()).collect();
            let taken = |node: &records::Node| {
                chosen.iter().any(|place| place.node == node.number)
                    || (wish.node.is_empty() && named.contains(&node.name.as_str()))
            };
            let place = self.place(size_bytes, wish, taken, at == 0, copies)?;
            chosen.push(place);
        }
        Ok(chosen)
    }

    /// A place for one more replica of a volume.
    ///
    /// # Errors
    /// Of each node why not.
    pub fn place_for(&self, volume: &Volume) -> Result<Place, String> {
        self.place_for_wish(volume, &Wish::default())
    }

    /// The same, as wished.
    ///
    /// # Errors
    /// Of each node why not.
    pub fn place_for_wish(&self, volume: &Volume, wish: &Wish) -> Result<Place, String> {
        let holds = |node: &records::Node| {
            NodeNumber::new(node.number).is_none_or(|number| volume.held().any(|m| m.node == number))
        };
        self.place(volume.size_bytes, wish, holds, false, 2)
    }

    fn place(
        &self,
        size_bytes: u64,
        wish: &Wish,
        taken: impl Fn(&records::Node) -> bool,
        owner: bool,
        copies: usize,
    ) -> Result<Place, String> {
        let asked = self.nodes().filter(|n| wish.node.is_empty() || n.name == wish.node);
        let (mut nodes, mut reasons, mut best) = (0, Vec::new(), None);
        for node in asked {
            nodes += 1;
            if taken(node) {
                reasons.push(format!("node {} holds a copy already", node.name));
                continue;
            }
            match best_pool(node, size_bytes, &wish.pool, copies) {
                Err(reason) => reasons.push(reason),
                Ok(pool) => {
                    // The owner executes the commands; the others keep copies.
                    let load = if owner { self.owned_by(node.number) } else { 0 }
                        .saturating_add(self.held_by(node.number));
                    let rank = (Reverse(load), pool.free_bytes, Reverse(node.number));
                    let place = Place { node: node.number, pool: pool.name.clone() };
                    if best.as_ref().is_none_or(|(before, _)| *before < rank) {
                        best = Some((rank, place));
                    }
                }
            }
        }
        match best {
            Some((_, place)) => Ok(place),
            None if nodes > 0 => Err(reasons.join("; ")),
            None if wish.node.is_empty() => Err("no data node has joined yet".to_owned()),
            None => Err(format!("node {} does not exist", printable(&wish.node))),
        }
    }
}

fn best_pool<'a>(
    node: &'a records::Node,
    size_bytes: u64,
    wish: &str,
    copies: usize,
) -> Result<&'a records::Pool, String> {
    if copies > 1 && !node.replicates {
        return Err(format!("node {} runs a version that keeps no copies of others", node.name));
    }
    if node.cordoned {
        return Err(format!("node {} is cordoned", node.name));
    }
    if !node.live {
        return Err(format!("node {} holds no lease", node.name));
    }
    let pools = node.pools.iter().filter(|p| wish.is_empty() || p.name == wish);
    match pools.max_by_key(|p| p.free_bytes) {
        None if wish.is_empty() => Err(format!("node {} has no pool", node.name)),
        None => Err(format!("node {} has no pool {}", node.name, printable(wish))),
        Some(pool) if pool.free_bytes < size_bytes => {
            Err(format!("pool {} of node {} has {} bytes free", pool.name, node.name, pool.free_bytes))
        }
        Some(pool) => Ok(pool),
    }
}
