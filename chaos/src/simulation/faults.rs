//! What goes wrong, and how it heals.

use holdfast_controller::state::Body;
use holdfast_proto::state as records;

use super::{
    Event, HOSTS, MEMBERS, NODES, Place, Simulation, VOLUMES,
    founding::{COPIES, volume_id},
};

/// Ends a fault.
#[derive(Debug, Clone)]
pub(super) enum Healing {
    Ways(Vec<(Place, Place)>),
    Start(usize),
    /// No healing: the next blow.
    LoseSession(usize),
}

impl Simulation {
    /// One more, while there is trouble.
    pub(super) fn fault(&mut self) {
        if !self.trouble {
            return;
        }
        let number = self.troubles;
        self.troubles += 1;
        let mut random = self.trouble_random.fork();
        let wait = 100 + random.below(self.ways.pause_ms);
        self.later(wait, Event::Fault);
        if self.without.contains(&number) {
            return;
        }
        self.note(|| format!("trouble {number}"));
        // Owners are where it hurts.
        let owner = self.controllers.owner_of(random.below(VOLUMES as u64) as usize);
        let any = random.below(NODES as u64) as usize;
        let node = owner.filter(|_| random.below(2) == 0).unwrap_or(any);
        let longest = if random.below(3) == 0 { 4_000 } else { 900 };
        let ms = 100 + random.below(longest);
        let kind = match random.below(20) {
            0 | 1 => {
                let notices = if random.below(2) == 0 { 0 } else { random.below(2_500) };
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
            4 | 5 if self.nodes[node].up => {
                let power = random.below(2) == 0;
                self.crash_node(node, power);
                self.later(ms, Event::Heal(Healing::Start(node)));
                if power { "a node loses power" } else { "a node crashes" }
            }
            6 | 7 => {
                let members = if random.below(2) == 0 { 0..MEMBERS } else { 0..1 };
                let ways = members.flat_map(|m| both(Place::Member(m), Place::Node(node))).collect();
                // Sometimes for longer than a lease.
                let ms = if random.below(3) == 0 { 2_600 + random.below(2_000) } else { ms };
                self.cut_ways(ways, ms);
                "a node is cut off from controllers"
            }
            8 => {
                let way = both(Place::Member(random.below(MEMBERS as u64) as usize), Place::Node(node));
                let one = *random.pick(&way);
                self.cut_ways(vec![one], ms);
                "one direction between a node and a controller is cut"
            }
            9 => {
                let other = (node + 1) % NODES;
                let ways = both(Place::Node(node), Place::Node(other));
                if random.below(2) == 0 {
                    self.cut_ways(ways.to_vec(), ms);
                    "two nodes are cut apart"
                } else {
                    self.cut_ways(vec![*random.pick(&ways)], ms);
                    "one direction between two nodes is cut"
                }
            }
            10 => {
                let host = random.below(HOSTS as u64) as usize;
                self.end_port(node, host);
                "a session of a host ends"
            }
            11 => {
                let volume = random.below(VOLUMES as u64) as usize;
                self.move_owner(volume, node);
                "an owner is asked to hand over"
            }
            12 => {
                let volume = random.below(VOLUMES as u64) as usize;
                match random.below(4) {
                    0 | 1 => {
                        let size_bytes = self.controllers.size_of(volume) + 4096;
                        let name = format!("volume-{volume}");
                        self.administer(Body::ResizeVolume(records::ResizeVolume {
                            request: None,
                            name,
                            size_bytes,
                        }));
                        "a volume grows"
                    }
                    2 => self.copies_of(volume, random.below(2) == 0),
                    _ => self.move_replica(volume),
                }
            }
            13 if random.below(2) == 0 => {
                // The last word of the leader comes late, and the node's own not at all.
                for member in 0..MEMBERS {
                    let [hears, says] = both(Place::Member(member), Place::Node(node));
                    self.hold_way(hears, 600 + random.below(390));
                    self.cut_ways(vec![says], 3_000);
                }
                "a node is not heard and hears late"
            }
            13 => {
                let hears = random.below(2) == 0;
                for member in 0..MEMBERS {
                    let ways = both(Place::Member(member), Place::Node(node));
                    self.hold_way(ways[usize::from(hears)], ms);
                }
                if hears { "what controllers are told is late" } else { "what controllers say is late" }
            }
            14 => {
                let other = (node + 1 + random.below(NODES as u64 - 1) as usize) % NODES;
                self.hold_way(*random.pick(&both(Place::Node(node), Place::Node(other))), ms);
                "what one node tells another is late"
            }
            15 => {
                // It goes on until its lease ends, and what it has sent arrives when another one owns its volumes.
                let long = 2_500 + random.below(2_500);
                let ways = (0..MEMBERS).flat_map(|m| both(Place::Member(m), Place::Node(node))).collect();
                self.cut_ways(ways, long);
                for other in (0..NODES).filter(|other| *other != node) {
                    self.hold_way((Place::Node(node), Place::Node(other)), long + random.below(1_500));
                }
                "a node is cut off and what it has sent is late"
            }
            16 | 17 if self.ways.flushes || random.below(6) == 0 => {
                for node in (0..NODES).filter(|node| self.nodes[*node].up).collect::<Vec<_>>() {
                    self.crash_node(node, true);
                    self.later(ms + random.below(500), Event::Heal(Healing::Start(node)));
                }
                "all nodes lose power"
            }
            18 => {
                let until = self.now + ms + 500;
                self.nodes[node].slow_until = until;
                for _ in 0..4 {
                    self.later(random.below(ms + 500), Event::Heal(Healing::LoseSession(node)));
                }
                "a node's threads are slow and its sessions break"
            }
            _ => {
                self.nodes[node].lose_session();
                "a node's session with the leader breaks"
            }
        };
        *self.report.faults.entry(kind).or_default() += 1;
    }

    /// One copy more where there is room, or one less where there may be.
    fn copies_of(&mut self, volume: usize, more: bool) -> &'static str {
        let name = format!("volume-{volume}");
        let (holders, free) = self.controllers.places_of(volume);
        match (more, free, holders.get(COPIES)) {
            (true, Some(node), _) => {
                let place = Some(records::ReplicaPlace { node, pool: "default".to_owned() });
                self.administer(Body::AddReplica(records::AddReplica {
                    volume: name,
                    place,
                    ..Default::default()
                }));
                "a replica is added"
            }
            (false, _, Some(node)) => {
                self.administer(Body::DropReplica(records::DropReplica {
                    request: None,
                    volume: name,
                    node: *node,
                    fewer: true,
                }));
                "a replica is given up"
            }
            _ => "no change of replicas is possible",
        }
    }

    /// A copy goes to a node that has none.
    fn move_replica(&mut self, volume: usize) -> &'static str {
        let (holders, free) = self.controllers.places_of(volume);
        let (Some(from), Some(to)) = (holders.first(), free) else {
            return "no change of replicas is possible";
        };
        let place = Some(records::ReplicaPlace { node: to, pool: "default".to_owned() });
        self.administer(Body::AddReplica(records::AddReplica {
            volume: format!("volume-{volume}"),
            place,
            replaces: *from,
            ..Default::default()
        }));
        "a replica is moved"
    }

    fn move_owner(&mut self, volume: usize, to: usize) {
        let Some(expected) = self.controllers.epoch_of(volume) else { return };
        self.administer(Body::RequestHandOver(records::RequestHandOver {
            volume_id: volume_id(volume),
            expected: Some(expected),
            to: to as u32 + 1,
            ..Default::default()
        }));
    }

    fn cut_ways(&mut self, ways: Vec<(Place, Place)>, ms: u64) {
        self.note(|| format!("cut for {ms} ms: {ways:?}"));
        self.cut.extend(ways.iter().copied());
        self.later(ms, Event::Heal(Healing::Ways(ways)));
    }

    /// What is sent on a way from now on arrives in so long, in order.
    fn hold_way(&mut self, way: (Place, Place), ms: u64) {
        self.note(|| format!("late by {ms} ms: {way:?}"));
        let until = self.now + ms;
        let last = self.last.entry(way).or_default();
        *last = until.max(*last);
        if let (Place::Node(from), Place::Node(to)) = way {
            self.hold_frames(from, to, until);
        }
    }

    pub(super) fn heal(&mut self, healing: Healing) {
        match healing {
            Healing::Ways(ways) => ways.iter().for_each(|way| {
                self.cut.remove(way);
            }),
            Healing::Start(node) if !self.nodes[node].up => self.start_node(node),
            Healing::Start(_) => {}
            Healing::LoseSession(node) => self.nodes[node].lose_session(),
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
