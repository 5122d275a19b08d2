//! What goes wrong, and how it heals.

use holdfast_controller::state::Body;
use holdfast_proto::state as records;

use super::{Event, HOSTS, MEMBERS, NODES, Place, Simulation, VOLUMES};

/// Ends a fault.
#[derive(Debug, Clone)]
pub(super) enum Healing {
    Ways(Vec<(Place, Place)>),
    Start(usize),
}

impl Simulation {
    /// One more, while there is trouble.
    pub(super) fn fault(&mut self) {
        if !self.trouble {
            return;
        }
        let node = self.random.below(NODES as u64) as usize;
        let longest = if self.random.below(3) == 0 { 4_000 } else { 900 };
        let ms = 100 + self.random.below(longest);
        let kind = match self.random.below(11) {
            0 | 1 => {
                let notices = if self.random.below(2) == 0 { 0 } else { self.random.below(2_500) };
                self.depose(notices);
                "the leader changes"
            }
            2 | 3 => {
                let now = self.now;
                let at = &mut self.nodes[node];
                at.paused_until = at.paused_until.max(now + ms);
                self.note(|| format!("node {node} stops for {ms} ms"));
                "a node is stopped for a while"
            }
            4 if self.nodes[node].up => {
                self.crash_node(node);
                self.later(ms, Event::Heal(Healing::Start(node)));
                "a node crashes"
            }
            5 | 6 => {
                let members = if self.random.below(2) == 0 { 0..MEMBERS } else { 0..1 };
                let ways = members.flat_map(|m| both(Place::Member(m), Place::Node(node))).collect();
                self.cut_ways(ways, ms);
                "a node is cut off from controllers"
            }
            7 => {
                let way = both(Place::Member(self.random.below(MEMBERS as u64) as usize), Place::Node(node));
                let one = *self.random.pick(&way);
                self.cut_ways(vec![one], ms);
                "one direction between a node and a controller is cut"
            }
            8 => {
                let other = (node + 1) % NODES;
                self.cut_ways(both(Place::Node(node), Place::Node(other)).to_vec(), ms);
                "two nodes are cut apart"
            }
            9 => {
                let host = self.random.below(HOSTS as u64) as usize;
                self.end_port(node, host);
                "a session of a host ends"
            }
            _ => {
                let volume = self.random.below(VOLUMES as u64) as usize;
                let size_bytes = self.controllers.size_of(volume) + 4096;
                let name = format!("volume-{volume}");
                self.administer(Body::ResizeVolume(records::ResizeVolume {
                    request: None,
                    name,
                    size_bytes,
                }));
                "a volume grows"
            }
        };
        *self.report.faults.entry(kind).or_default() += 1;
        let wait = 100 + self.random.below(1_000);
        self.later(wait, Event::Fault);
    }

    fn cut_ways(&mut self, ways: Vec<(Place, Place)>, ms: u64) {
        self.note(|| format!("cut for {ms} ms: {ways:?}"));
        self.cut.extend(ways.iter().copied());
        self.later(ms, Event::Heal(Healing::Ways(ways)));
    }

    pub(super) fn heal(&mut self, healing: Healing) {
        match healing {
            Healing::Ways(ways) => ways.iter().for_each(|way| {
                self.cut.remove(way);
            }),
            Healing::Start(node) if !self.nodes[node].up => self.start_node(node),
            Healing::Start(_) => {}
        }
    }

    pub(super) fn heal_all(&mut self) {
        self.note(|| "all heals".to_owned());
        self.trouble = false;
        self.cut.clear();
        // A node that is stopped goes on when its time has come.
        for node in 0..NODES {
            if !self.nodes[node].up {
                self.start_node(node);
            }
        }
        self.hosts.iter_mut().for_each(super::host::Host::ask_all);
    }
}

fn both(a: Place, b: Place) -> [(Place, Place); 2] {
    [(a, b), (b, a)]
}
