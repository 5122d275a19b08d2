//! Links between an owner and its replicas: one for each, in order, broken by silence, by a cut that a frame meets, and with either process.
//!
//! Invariant: what was sent on a link arrives in order or not at all, and both ends notice its end, each in its own time.

use holdfast_datanode::view::NodeNumber;
use holdfast_replica::replication::{FromReplica, ToReplica};

use super::Simulation;
use crate::simulation::{Event, NODES, Place};

/// A link on which nothing comes for so long is given up, in milliseconds.
const SILENCE_MS: u64 = 1_000;
/// How long an end may take to notice, in milliseconds.
const NOTICED_MS_MAX: u64 = 200;

/// A frame, and which way it goes.
#[derive(Debug)]
pub(in crate::simulation) enum Way {
    ToReplica(Box<ToReplica<Vec<u8>>>),
    ToOwner(Box<FromReplica>),
}

pub(in crate::simulation) struct Link {
    pub(super) owner: usize,
    pub(super) replica: usize,
    /// The replica's node.
    pub(super) node: NodeNumber,
    pub(super) volume: usize,
    pub(super) open: bool,
    /// When the last frame of each way arrives.
    last: [u64; 2],
    heard: u64,
}

impl Link {
    /// Where a frame, or the news of the link's end, arrives.
    pub(in crate::simulation) fn end(&self, owner_side: bool) -> usize {
        if owner_side { self.owner } else { self.replica }
    }
}

impl Simulation {
    /// The owner connects to every replica that it can reach.
    pub(super) fn connect(&mut self, at: usize, volume: usize) {
        let now = self.instant(at);
        let Some(owned) = self.owned(at, volume) else { return };
        let me = owned.me.node;
        let missing: Vec<NodeNumber> =
            owned.primary.peers().filter(|node| *node != me && !owned.primary.is_connected(*node)).collect();
        for node in missing {
            let replica = usize::from(node.get()) - 1;
            if replica >= NODES
                || !self.reaches(at, replica)
                || !self.nodes[replica].engines.contains_key(&volume)
            {
                continue;
            }
            let heard = self.now;
            let number = self.nodes[at].fresh() << 8 | at as u64;
            let Some(owned) = self.owned(at, volume) else { return };
            if owned.primary.connected(now, node).is_some() {
                owned.links.insert(node, number);
                let link = Link { owner: at, replica, node, volume, open: true, last: [heard; 2], heard };
                self.links.insert(number, link);
            }
        }
    }

    /// Both are there and hear each other.
    fn reaches(&self, a: usize, b: usize) -> bool {
        let there = |node: usize| self.nodes[node].up && self.nodes[node].paused_until <= self.now;
        there(a)
            && there(b)
            && !self.is_cut(Place::Node(a), Place::Node(b))
            && !self.is_cut(Place::Node(b), Place::Node(a))
    }

    /// Gives links up on which nothing comes.
    pub(super) fn look_at_links(&mut self, at: usize, volume: usize) {
        let now = self.now;
        let own: Vec<u64> = self
            .links
            .iter()
            .filter(|(_, link)| link.open && link.volume == volume && link.owner == at)
            .map(|(number, _)| *number)
            .collect();
        for number in own {
            let heard = self.reaches(at, self.links[&number].replica);
            let Some(link) = self.links.get_mut(&number) else { continue };
            if heard {
                link.heard = now;
            } else if now > link.heard + SILENCE_MS {
                self.break_link(number);
            }
        }
    }

    pub(super) fn break_links_of(&mut self, at: usize, volume: Option<usize>) {
        let own: Vec<u64> = self
            .links
            .iter()
            .filter(|(_, link)| link.owner == at || link.replica == at)
            .filter(|(_, link)| volume.is_none_or(|volume| link.volume == volume))
            .map(|(number, _)| *number)
            .collect();
        for number in own {
            self.break_link(number);
        }
    }

    pub(super) fn break_link(&mut self, number: u64) {
        let Some(link) = self.links.get_mut(&number) else { return };
        if std::mem::replace(&mut link.open, false) {
            for owner_side in [true, false] {
                let wait = self.random.below(NOTICED_MS_MAX);
                self.later(wait, Event::LinkLost { link: number, owner_side });
            }
        }
    }

    /// What one node tells another arrives no sooner.
    pub(in crate::simulation) fn hold_frames(&mut self, from: usize, to: usize, until: u64) {
        for link in self.links.values_mut().filter(|link| link.open) {
            let way = match (link.owner, link.replica) {
                ends if ends == (from, to) => 0,
                ends if ends == (to, from) => 1,
                _ => continue,
            };
            link.last[way] = link.last[way].max(until);
        }
    }

    /// One end notices that a link is gone.
    pub(in crate::simulation) fn link_lost(&mut self, number: u64, owner_side: bool) {
        let Some(link) = self.links.get(&number) else { return };
        let (at, node, volume) = (link.end(owner_side), link.node, link.volume);
        let now = self.instant(at);
        if owner_side {
            if let Some(owned) = self.owned(at, volume)
                && owned.links.get(&node) == Some(&number)
            {
                owned.links.remove(&node);
                owned.primary.disconnected(now, node);
            }
        } else if let Some(engine) = self.nodes[at].engines.get_mut(&volume)
            && let Some(newest) = engine.newest.filter(|newest| newest.link == Some(number))
        {
            engine.secondary.disconnected(newest.term, newest.session());
        }
        self.pump(at, volume);
    }

    pub(super) fn transmit(&mut self, number: u64, way: Way) {
        let (often, longest) = if self.ways.slow_links { (8, 400) } else { (30, 60) };
        let slow = self.random.below(often) == 0;
        let wait = 1 + self.random.below(if slow { longest } else { 4 });
        let now = self.now;
        let Some(link) = self.links.get_mut(&number).filter(|link| link.open) else { return };
        let last = &mut link.last[usize::from(matches!(way, Way::ToOwner(_)))];
        *last = (*last).max(now + wait);
        let wait = *last - now;
        self.later(wait, Event::Frame { link: number, way });
    }
}
