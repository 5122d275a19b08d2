//! Plans over several nodes, driven by a clock: what is proposed is applied, and what owners would do is done for them.

use std::collections::BTreeSet;

use holdfast_proto::node::{ReplicaPhase, ReplicaState};

use super::*;
use crate::lease::{
    LEASE_MS, Millis,
    memory::HAND_OVER_MS_MAX,
    plan,
    reports::Reports,
    table::{LeaseTable, Renewal},
};
use crate::state::{Command, StateMachine};
use holdfast_proto::state::{JobKind, JobState, change_configuration::Change};

const TICK: u64 = 50;

/// Nodes, a leader, and a clock in milliseconds.
struct World {
    state: StateMachine,
    table: LeaseTable,
    reports: Reports,
    memory: Memory,
    index: u64,
    now: u64,
    /// Nodes whose processes renew their leases.
    up: BTreeSet<u32>,
    /// Owners do what they are asked for.
    obedient: bool,
    /// Nothing may be refused.
    strict: bool,
    /// Kinds of what was proposed.
    proposed: Vec<&'static str>,
}

fn kind(body: &Body) -> &'static str {
    match body {
        Body::NodeLive(_) => "live",
        Body::NodeLost(_) => "lost",
        Body::ChangeOwner(_) => "owner",
        Body::RequestHandOver(c) if c.to == 0 => "keep",
        Body::RequestHandOver(_) => "hand over",
        Body::ReturnReplica(_) => "return",
        Body::AddReplica(_) => "add",
        Body::DropReplica(_) => "drop",
        Body::Rebalance(_) => "balanced",
        Body::ReportJob(_) => "report",
        Body::EndJob(_) => "end",
        _ => "?",
    }
}

impl World {
    fn new(nodes: u32) -> World {
        let mut world = World {
            state: StateMachine::default(),
            table: LeaseTable::new(),
            reports: Reports::default(),
            memory: Memory::default(),
            index: 0,
            now: 10,
            up: (1..=nodes).collect(),
            obedient: true,
            strict: true,
            proposed: Vec::new(),
        };
        let target_iqn = "iqn.2026-01.x:t".to_owned();
        world.apply(Body::ClusterInit(records::ClusterInit { id: vec![1; 16], target_iqn }));
        world.apply(Body::BeginLeaseTerm(records::BeginLeaseTerm { term: 1 }));
        world.table.begin(1, Millis(0));
        for number in 1..=nodes {
            world.join(number, 1, number as u8);
        }
        world.run(LEASE_MS as u64);
        world.proposed.clear();
        world
    }

    fn apply(&mut self, body: Body) {
        self.index += 1;
        let applied = self.state.apply(self.index, &Command::new(0, body.clone()));
        assert!(!self.strict || applied.response.is_ok(), "{body:?}: {:?}", applied.response);
        self.state.check_invariants().unwrap();
    }

    fn join(&mut self, number: u32, process: u8, boot: u8) {
        self.apply(Body::NodeJoin(records::NodeJoin {
            name: format!("node-{number}"),
            boot_id: vec![boot; 16],
            process_id: vec![process; 16],
            portals: vec![format!("127.0.0.{number}:3260")],
            interconnect: format!("127.0.0.{number}:3270"),
            pools: vec![records::Pool {
                name: "p".to_owned(),
                capacity_bytes: 1 << 40,
                free_bytes: 1 << 40,
                kind: 0,
            }],
            version: String::new(),
            replicates: true,
        }));
        let incarnation = self.state.node(number).unwrap().incarnation;
        self.table.joined(number, incarnation);
    }

    fn create(&mut self, id: u8, nodes: &[u32]) {
        let place = |n: &u32| records::ReplicaPlace { node: *n, pool: "p".to_owned() };
        self.apply(Body::CreateVolume(records::CreateVolume {
            request: None,
            id: vec![id; 16],
            name: format!("v{id}"),
            size_bytes: 1 << 20,
            block_size: 512,
            physical_block_exponent: 0,
            write_cache: true,
            thin: true,
            checksums: false,
            volatile: false,
            replicas: nodes.len() as u32,
            node: nodes[0],
            pool: "p".to_owned(),
            others: nodes[1..].iter().map(place).collect(),
        }));
    }

    fn volume(&self, id: u8) -> records::Volume {
        self.state.volume_by_name(&format!("v{id}")).unwrap().record()
    }

    fn owners(&self) -> Vec<u32> {
        self.state.volumes().map(|v| v.record().owner).collect()
    }

    /// In sync, catching up, absent, to be removed.
    fn sets(&self, id: u8) -> [Vec<u32>; 4] {
        let volume = self.volume(id);
        [volume.in_sync, volume.learners, volume.absent, volume.removing]
            .map(|members| members.iter().map(|m| m.node).collect())
    }

    /// Who has a copy, in whatever state.
    fn holders(&self, id: u8) -> Vec<u32> {
        let mut all: Vec<u32> = self.sets(id).concat();
        all.sort_unstable();
        all
    }

    /// One change that the owner of a volume asks for now, if one is due.
    fn owners_wish(&self, volume: &records::Volume) -> Option<Change> {
        let is_up = |n: u32| self.up.contains(&n);
        if !is_up(volume.owner) || volume.deleting {
            return None;
        }
        let reason = String::new();
        let boot = |n: u32| self.state.node(n).unwrap().boot_id.clone();
        let gone = volume.in_sync.iter().find(|m| !is_up(m.node) || boot(m.node) != m.boot_id);
        if let Some(gone) = gone.filter(|m| m.node != volume.owner) {
            return Some(Change::Evict(records::EvictReplica { node: gone.node, reason }));
        }
        if volume.hand_over_to != 0 {
            let hand_over = records::HandOver { to: volume.hand_over_to, leave: false, reason };
            return Some(Change::HandOver(hand_over));
        }
        let whole = volume.learners.iter().find(|m| is_up(m.node) && boot(m.node) == m.boot_id)?;
        let is_full = volume.in_sync.len() >= 3;
        let swaps = volume.moves.iter().any(|m| m.to == whole.node && m.from != volume.owner);
        (!is_full || swaps).then(|| {
            Change::Admit(records::AdmitReplica { node: whole.node, boot_id: whole.boot_id.clone() })
        })
    }

    fn tick(&mut self) {
        self.now += TICK;
        if self.now % 400 < TICK {
            for number in self.up.clone() {
                let incarnation = self.state.node(number).unwrap().incarnation;
                let head = self.state.head();
                self.table.applied(number, incarnation, head);
                let renewal = Renewal { node: number, incarnation, data_path_stalled_ms: 0, head };
                self.table.grant(renewal, Millis(self.now)).unwrap();
            }
        }
        let mut memory = self.memory.clone();
        let due =
            plan::proposals(&self.state, &self.table, &self.reports, &mut self.memory, Millis(self.now));
        let at_all =
            plan::proposals_at_all(&self.state, &self.table, &self.reports, &mut memory, Millis(self.now));
        assert_eq!(due, at_all, "something was due where nobody looked");
        for body in due {
            self.proposed.push(kind(&body));
            self.apply(body);
        }
        let volumes: Vec<records::Volume> = self.state.volumes().map(|v| v.record()).collect();
        for volume in volumes {
            if let Some(change) = self.owners_wish(&volume).filter(|_| self.obedient) {
                let incarnation = self.state.node(volume.owner).unwrap().incarnation;
                if incarnation == volume.owner_incarnation && self.state.node(volume.owner).unwrap().live {
                    self.apply(Body::ChangeConfiguration(records::ChangeConfiguration {
                        volume_id: volume.id.clone(),
                        expected: volume.epoch,
                        proposer: volume.owner,
                        owner_incarnation: incarnation,
                        lease_term: 1,
                        change: Some(change),
                    }));
                }
            }
            let removing: Vec<u32> = volume.removing.iter().map(|m| m.node).collect();
            let up = self.up.clone();
            for number in removing.into_iter().filter(|n| up.contains(n)) {
                let volume_id = volume.id.clone();
                self.apply(Body::RemoveReplica(records::RemoveReplica { volume_id, number }));
            }
        }
    }

    fn run(&mut self, ms: u64) {
        for _ in 0..ms.div_ceil(TICK) {
            self.tick();
        }
    }

    /// Nothing more is proposed for a while.
    fn settle(&mut self) {
        self.run(60_000);
        self.proposed.clear();
        self.run(60_000);
        assert_eq!(self.proposed, Vec::<&str>::new(), "the same is proposed again and again");
    }
}

#[test]
fn a_dead_owners_volumes_go_to_nodes_that_have_them_in_sync_and_are_spread() {
    let mut world = World::new(3);
    for id in 1..=4 {
        world.create(id, &[1, 2, 3]);
    }
    world.up.remove(&1);
    world.run(LEASE_MS as u64 - 400);
    assert_eq!(world.owners(), [1; 4], "not before the lease has run out");
    world.run(800);
    let mut owners = world.owners();
    owners.sort_unstable();
    assert_eq!(owners, [2, 2, 3, 3]);
    world.run(1000);
    assert_eq!(world.sets(1).map(|set| set.len()), [2, 0, 1, 0]);
    // It comes back as a process of the same boot: first it catches up, then it is in sync.
    world.up.insert(1);
    world.join(1, 2, 1);
    world.run(5000);
    assert_eq!(world.sets(1).map(|set| set.len()), [3, 0, 0, 0]);
    world.settle();
}

#[test]
fn a_replica_that_comes_and_goes_is_tried_less_and_less_often() {
    let mut world = World::new(2);
    world.create(1, &[1, 2]);
    let mut returned_at = Vec::new();
    for _ in 0..8 {
        let volume = world.volume(1);
        world.apply(Body::ChangeConfiguration(records::ChangeConfiguration {
            volume_id: volume.id,
            expected: volume.epoch,
            proposer: 1,
            owner_incarnation: 1,
            lease_term: 1,
            change: Some(Change::Evict(records::EvictReplica { node: 2, reason: String::new() })),
        }));
        let from = world.now;
        while world.sets(1)[0].len() < 2 {
            world.tick();
        }
        returned_at.push((world.now - from).div_ceil(1000));
    }
    assert!(returned_at[0] <= 2 && returned_at[3] >= 8 && returned_at[7] >= 60, "{returned_at:?}");
}

#[test]
fn a_replica_that_has_failed_is_not_tried_before_its_node_says_otherwise() {
    let mut world = World::new(2);
    world.create(1, &[1, 2]);
    let mut failed = ReplicaState { volume_id: vec![1; 16], node: 2, ..Default::default() };
    failed.set_phase(ReplicaPhase::Failed);
    world.reports.note(2, vec![failed], |_, _| true);
    world.up.remove(&2);
    world.run(5000);
    world.up.insert(2);
    world.run(60_000);
    assert_eq!(world.sets(1), [vec![1], vec![], vec![2], vec![]]);
    world.reports.begin(2);
    world.run(5000);
    assert_eq!(world.sets(1), [vec![1, 2], vec![], vec![], vec![]]);
}

#[test]
fn a_node_whose_own_replica_has_failed_gets_no_volume() {
    let mut world = World::new(3);
    world.create(1, &[1, 2, 3]);
    let mut failed = ReplicaState { volume_id: vec![1; 16], node: 2, ..Default::default() };
    failed.set_phase(ReplicaPhase::Failed);
    world.reports.note(2, vec![failed], |_, _| true);
    world.up.remove(&1);
    world.run(4000);
    assert_eq!(world.volume(1).owner, 3);
}

#[test]
fn a_drained_node_ends_without_volumes_and_copies_and_nothing_goes_round() {
    let mut world = World::new(4);
    world.create(1, &[1, 2]);
    world.create(2, &[1]);
    world.create(3, &[1, 2, 3]);
    world.create(4, &[2, 1]);
    let name = "node-1".to_owned();
    world.apply(Body::CordonNode(records::CordonNode {
        name,
        cordoned: true,
        drain: true,
        evacuate: true,
        request: None,
    }));
    world.run(30_000);
    let node = world.state.node(1).unwrap().clone();
    assert!(world.state.is_drained(&node), "{:?}", world.state.staying(&node));
    let jobs: Vec<_> = world.state.jobs().map(|job| (job.kind(), job.state(), job.total)).collect();
    assert_eq!(jobs[0], (JobKind::Drain, JobState::Done, 4));
    // Those of the copies that were moved.
    assert!(
        jobs.len() > 1 && jobs[1..].iter().all(|job| (job.0, job.1) == (JobKind::Move, JobState::Done)),
        "{jobs:?}"
    );
    for id in 1..=4 {
        let [in_sync, learners, absent, removing] = world.sets(id);
        assert!(!in_sync.contains(&1) && learners.is_empty() && absent.is_empty() && removing.is_empty());
        assert_eq!(in_sync.len(), world.volume(id).replicas as usize);
    }
    world.settle();
}

#[test]
fn a_drain_that_is_cancelled_stops_and_the_node_stays_cordoned() {
    let mut world = World::new(3);
    world.create(1, &[1, 2]);
    world.obedient = false;
    let name = "node-1".to_owned();
    world.apply(Body::CordonNode(records::CordonNode {
        name,
        cordoned: true,
        drain: true,
        evacuate: true,
        request: None,
    }));
    world.run(500);
    let job = world.state.jobs().next().unwrap().id;
    world.apply(Body::CancelJob(records::CancelJob { request: None, id: job }));
    world.run(500);
    assert_eq!(world.state.job(job).unwrap().state(), JobState::Cancelled);
    let node = world.state.node(1).unwrap();
    assert!(node.cordoned && !node.draining);
    assert_eq!(world.volume(1).owner, 1);
}

#[test]
fn a_drain_that_keeps_copies_hands_over_only() {
    let mut world = World::new(3);
    world.create(1, &[1, 2]);
    let name = "node-1".to_owned();
    world.apply(Body::CordonNode(records::CordonNode {
        name,
        cordoned: true,
        drain: true,
        evacuate: false,
        request: None,
    }));
    world.run(2000);
    assert_eq!((world.volume(1).owner, world.sets(1)), (2, [vec![1, 2], vec![], vec![], vec![]]));
    let node = world.state.node(1).unwrap().clone();
    assert!(world.state.is_drained(&node));
    world.settle();
}

#[test]
fn an_owner_that_does_not_hand_over_is_not_waited_for_for_ever() {
    let mut world = World::new(2);
    world.create(1, &[1, 2]);
    world.obedient = false;
    let name = "node-1".to_owned();
    world.apply(Body::CordonNode(records::CordonNode {
        name,
        cordoned: true,
        drain: true,
        evacuate: false,
        request: None,
    }));
    world.run(HAND_OVER_MS_MAX * 3 + 5000);
    let asked = world.proposed.iter().filter(|kind| **kind == "hand over").count();
    assert!((3..=4).contains(&asked), "{:?}", world.proposed);
}

#[test]
fn ownership_is_spread_and_then_stays() {
    let mut world = World::new(3);
    for id in 1..=9 {
        world.create(id, &[1, 2, 3]);
    }
    world.create(10, &[1]);
    world.apply(Body::Rebalance(records::Rebalance { on: true, stopped: false, request: None }));
    world.run(10_000);
    let mut counts = [0; 3];
    world.owners().iter().for_each(|owner| counts[*owner as usize - 1] += 1);
    counts.sort_unstable();
    assert_eq!(counts, [3, 3, 4]);
    assert!(!world.state.cluster().unwrap().rebalancing);
    let handed_over = world.proposed.iter().filter(|kind| **kind == "hand over").count();
    assert_eq!(handed_over, 6, "no volume is moved twice");
    world.settle();
}

#[test]
fn spreading_ends_though_an_owner_does_not_hand_over() {
    let mut world = World::new(2);
    world.create(1, &[1, 2]);
    world.create(2, &[1, 2]);
    world.obedient = false;
    world.apply(Body::Rebalance(records::Rebalance { on: true, stopped: false, request: None }));
    world.run(HAND_OVER_MS_MAX * 3);
    assert!(!world.state.cluster().unwrap().rebalancing, "{:?}", world.proposed);
}

#[test]
fn a_copy_whose_node_stays_away_is_replaced_after_the_grace_where_there_is_room() {
    let mut world = World::new(3);
    world.create(1, &[1, 2]);
    world.apply(Body::SetClusterOptions(records::SetClusterOptions {
        replace_after_s: Some(60),
        replace_never: None,
        request: None,
    }));
    world.up.remove(&2);
    world.run(55_000);
    assert_eq!(world.holders(1), [1, 2]);
    world.run(10_000);
    assert_eq!(world.sets(1), [vec![1, 3], vec![], vec![], vec![2]]);
    world.settle();
}

#[test]
fn no_copy_is_replaced_where_that_is_not_wished_or_there_is_no_room() {
    for (nodes, never) in [(3, true), (2, false)] {
        let mut world = World::new(nodes);
        world.create(1, &[1, 2]);
        let options = records::SetClusterOptions {
            replace_after_s: Some(10),
            replace_never: Some(never),
            request: None,
        };
        world.apply(Body::SetClusterOptions(options));
        world.up.remove(&2);
        world.run(200_000);
        assert_eq!(world.holders(1), [1, 2]);
        world.settle();
    }
}

#[test]
fn a_copy_that_went_with_its_node_is_made_again() {
    let mut world = World::new(3);
    world.create(1, &[1, 2]);
    world.up.remove(&2);
    world.run(5000);
    let lease_term = 1;
    world.apply(Body::RemoveNode(records::RemoveNode {
        name: "node-2".to_owned(),
        number: 2,
        lease_term,
        request: None,
    }));
    world.run(5000);
    assert_eq!(world.sets(1), [vec![1, 3], vec![], vec![], vec![]]);
    world.settle();
}

/// A step of a world without plan: machines die and come back, also with another process or boot, owners stop to obey, and people ask.
fn step(world: &mut World, random: &mut u64) {
    let mut draw = |below: u32| {
        *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*random >> 33) as u32 % below
    };
    let node = draw(4) + 1;
    match draw(10) {
        0 | 1 => drop(world.up.remove(&node)),
        2 => drop(world.up.insert(node)),
        3 if !world.up.contains(&node) => {
            let boot = world.state.node(node).unwrap().boot_id[0].wrapping_add(draw(2) as u8);
            let process = world.state.node(node).unwrap().process_id[0].wrapping_add(1);
            world.join(node, process, boot);
            world.up.insert(node);
        }
        4 => world.obedient = draw(3) != 0,
        5 | 6 => {
            let drain = draw(2) == 0;
            world.apply(Body::CordonNode(records::CordonNode {
                name: format!("node-{node}"),
                cordoned: drain,
                drain,
                evacuate: drain && draw(2) == 0,
                ..Default::default()
            }));
        }
        7 => world.apply(Body::Rebalance(records::Rebalance { on: true, ..Default::default() })),
        8 => world.apply(Body::SetClusterOptions(records::SetClusterOptions {
            replace_after_s: Some(10 + draw(30)),
            replace_never: Some(draw(2) == 0),
            ..Default::default()
        })),
        _ => {
            let name = format!("v{}", draw(9) + 1);
            world.apply(Body::DeleteVolume(records::DeleteVolume { request: None, name }));
        }
    }
    world.run(u64::from(draw(6)) * 700);
}

#[test]
fn whatever_happens_nothing_is_due_where_the_plan_does_not_look() {
    for seed in 0..24 {
        let mut world = World::new(4);
        for id in 1..=9 {
            let first = u32::from(id) % 4 + 1;
            let nodes: Vec<u32> = (0..u32::from(id) % 3 + 1).map(|n| (first + n - 1) % 4 + 1).collect();
            world.create(id, &nodes);
        }
        // Owners and people ask for what cannot be done, too.
        world.strict = false;
        let mut random = seed;
        for _ in 0..20 {
            step(&mut world, &mut random);
        }
    }
}
