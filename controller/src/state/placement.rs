//! Where replicas go: the nodes that hold the fewest, with room, each on a node of its own.
//!
//! Invariant: this only proposes; the state machine checks the choice again where it is carried out.

use std::cmp::Reverse;

use holdfast_proto::state::{self as records, PoolKind};
use holdfast_replica::{config::Member, ids::NodeNumber};

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

/// What a place is sought for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewVolume {
    /// Of each copy.
    pub size_bytes: u64,
    /// How many.
    pub copies: usize,
    /// It may be lost when nodes stop.
    pub volatile: bool,
    /// Its copies keep checksums.
    pub checksums: bool,
}

/// Whether copies of such a volume may lie in a pool of this kind.
pub(super) fn admits(node: &records::Node, pool: &records::Pool, new: &NewVolume) -> Result<(), String> {
    let (name, node) = (&pool.name, &node.name);
    match pool.kind() {
        PoolKind::Unspecified | PoolKind::File => Ok(()),
        _ if new.checksums => Err(format!(
            "pool {name} of node {node} is no directory and has no place for checksums; name another pool, or make the volume without them"
        )),
        PoolKind::Block => Ok(()),
        PoolKind::Memory if new.volatile => Ok(()),
        PoolKind::Memory => Err(format!(
            "pool {name} of node {node} is in memory, its copies are lost when the node stops; make the volume volatile if it may be lost"
        )),
        PoolKind::Null if !new.volatile => Err(format!(
            "pool {name} of node {node} keeps nothing; make the volume volatile if that is what it is for"
        )),
        PoolKind::Null if new.copies > 1 => {
            Err(format!("pool {name} of node {node} keeps nothing, so a volume there has one copy only"))
        }
        PoolKind::Null => Ok(()),
    }
}

impl StateMachine {
    /// Places for the replicas of a new volume, the owner's first. `wishes` are met in their order, the first one by the owner;
    /// where none is left, the nodes that hold least are taken.
    ///
    /// # Errors
    /// Of each node why not.
    pub fn places(&self, new: &NewVolume, wishes: &[Wish]) -> Result<Vec<Place>, String> {
        let copies = new.copies;
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
            let place = self.place(new, wish, taken, at == 0)?;
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
        if let Some(member) = volume.held().find(|member| self.keeps_nothing(member)) {
            return Err(format!("its copy in pool {} keeps nothing that could be copied", member.pool));
        }
        let holds = |node: &records::Node| {
            NodeNumber::new(node.number).is_none_or(|number| volume.held().any(|m| m.node == number))
        };
        let new = NewVolume {
            size_bytes: volume.size_bytes,
            copies: 2,
            volatile: volume.volatile,
            checksums: volume.checksums,
        };
        self.place(&new, wish, holds, false)
    }

    /// True if a copy lies in a pool that gives zeroes whatever was written.
    pub(super) fn keeps_nothing(&self, member: &Member) -> bool {
        let node = self.nodes.get(&u32::from(member.node.get()));
        let pool = node.and_then(|node| node.pools.iter().find(|pool| pool.name == member.pool));
        pool.is_some_and(|pool| pool.kind() == PoolKind::Null)
    }

    fn place(
        &self,
        new: &NewVolume,
        wish: &Wish,
        taken: impl Fn(&records::Node) -> bool,
        owner: bool,
    ) -> Result<Place, String> {
        let asked = self.nodes().filter(|n| wish.node.is_empty() || n.name == wish.node);
        let (mut nodes, mut reasons, mut best) = (0, Vec::new(), None);
        for node in asked {
            nodes += 1;
            if taken(node) {
                reasons.push(format!("node {} holds a copy already", node.name));
                continue;
            }
            match best_pool(node, new, &wish.pool) {
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

fn best_pool<'a>(node: &'a records::Node, new: &NewVolume, wish: &str) -> Result<&'a records::Pool, String> {
    if new.copies > 1 && !node.replicates {
        return Err(format!("node {} runs a version that keeps no copies of others", node.name));
    }
    if node.cordoned {
        return Err(format!("node {} is cordoned", node.name));
    }
    if !node.live {
        return Err(format!("node {} holds no lease", node.name));
    }
    // What keeps nothing is taken only where that is asked for: memory by the volume, null by name.
    let fits = |p: &&records::Pool| match p.kind() {
        _ if !wish.is_empty() => p.name == wish,
        PoolKind::Memory => new.volatile && !new.checksums,
        PoolKind::Null => false,
        PoolKind::Block => !new.checksums,
        PoolKind::Unspecified | PoolKind::File => true,
    };
    let room =
        |p: &&records::Pool| (p.kind() == PoolKind::Memory && p.free_bytes >= new.size_bytes, p.free_bytes);
    let pool = node.pools.iter().filter(fits).max_by_key(room);
    if let Some(pool) = pool {
        admits(node, pool, new)?;
    }
    let size_bytes = new.size_bytes;
    match pool {
        None if wish.is_empty() && node.pools.is_empty() => Err(format!("node {} has no pool", node.name)),
        None if wish.is_empty() => Err(format!("node {} has no pool that keeps anything", node.name)),
        None => Err(format!("node {} has no pool {}", node.name, printable(wish))),
        Some(pool) if pool.free_bytes < size_bytes => {
            Err(format!("pool {} of node {} has {} bytes free", pool.name, node.name, pool.free_bytes))
        }
        Some(pool) => Ok(pool),
    }
}
