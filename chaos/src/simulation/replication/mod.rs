//! The replicas of a node, driven: the product's replication core, with simulated disks and links below it.
//!
//! | Looking for | Module |
//! |---|---|
//! | what is on a disk, and what a loss of power leaves of it | [`disk`] |
//! | the ways between an owner and its replicas | [`links`] |
//! | what the core wants done | [`pump`] |
//! | changes of the configuration that an owner asks for | [`changes`] |
//!
//! Invariants (the shell's, as in the product): views are followed in log order; a missing replica is never replaced by zeroes, unless the
//! volume was never served; an answer is taken from the owner's machine under the lease only; "not executed" is said only of what the
//! machine never took.

pub(super) mod changes;
pub(super) mod disk;
pub(super) mod links;
pub(super) mod pump;

use std::collections::{BTreeMap, VecDeque};

use holdfast_datanode::{
    agent::Install,
    view::{ClusterView, NodeNumber, VolumeView},
};
use holdfast_replica::{
    activity_log::ActivityLog,
    config::{Owner, VolumeConfig},
    epoch::Epoch,
    faults::Faults,
    primary::{Instant, Primary, Refusal, Start},
    replication::{Body, ToReplica},
    secondary::{Command, Opened, Secondary},
    span::{Shape, Span},
};

use self::{
    disk::{Disk, crc},
    pump::{DiskWork, Newest},
};
use super::{Simulation, founding::kept, unit::number_of};

/// A block of a replica is one value.
const BLOCK_BYTES: u32 = 8;
/// A volume at a later epoch has been served before (as in the product).
const NEW_UNTIL: Epoch = Epoch { generation: 0, number: 2 };

fn shape(blocks: u64) -> Shape {
    Shape::with_units(blocks, BLOCK_BYTES, 1, 0, 2).unwrap_or_else(|| unreachable!("the units are in range"))
}

/// Something that a logical unit wants of its volume.
#[derive(Debug, Clone)]
pub(super) enum Wish {
    Read(Span),
    Write(Span, Vec<u64>, bool),
    Flush,
}

/// How it ended.
#[derive(Debug, Clone)]
pub(super) enum Ended {
    Done,
    Read(Vec<u64>),
    NotExecuted,
    Unknown,
}

/// Who waits for it.
#[derive(Debug, Clone, Copy)]
pub(super) struct For {
    pub(super) unit: u64,
    pub(super) task: u64,
}

#[derive(Debug)]
struct Job {
    of: For,
    wish: Wish,
    changes: bool,
    read: Vec<u64>,
}

/// A planned hand-over, as the product's engine sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HandOver {
    No,
    Wished(NodeNumber),
    Draining(NodeNumber),
    Proposed(NodeNumber),
}

struct Owned {
    me: Owner,
    config: VolumeConfig,
    primary: Primary<Vec<u8>>,
    links: BTreeMap<NodeNumber, u64>,
    own_session: Option<u64>,
    jobs: BTreeMap<u64, Job>,
    last_job: u64,
    /// Jobs that the machine had no room for.
    waiting: VecDeque<u64>,
    hand_over: HandOver,
}

/// The replication core of one volume on a node.
pub(super) struct Engine {
    /// Names it among those before and after it.
    number: u64,
    secondary: Secondary<Vec<u8>>,
    newest: Option<Newest>,
    commands: VecDeque<Command<Vec<u8>>>,
    work: BTreeMap<u64, DiskWork>,
    owned: Option<Owned>,
    served: bool,
    shape: Shape,
    /// The owner has grown the volume before this replica has: what lies behind its end, and what came after it.
    beyond_the_end: VecDeque<(Option<u64>, ToReplica<Vec<u8>>)>,
}

impl Engine {
    fn serves(&self) -> bool {
        self.owned.as_ref().is_some_and(|owned| {
            owned.primary.is_serving() && matches!(owned.hand_over, HandOver::No | HandOver::Wished(_))
        })
    }
}

impl Simulation {
    /// The owner's machine of this volume takes requests here.
    pub(super) fn serves(&self, at: usize, volume: usize) -> bool {
        self.nodes[at].leased(self.now) && self.nodes[at].engines.get(&volume).is_some_and(Engine::serves)
    }

    fn instant(&self, at: usize) -> Instant {
        Instant(self.nodes[at].clock(self.now))
    }

    /// Replicas follow a view.
    pub(super) fn follow_replicas(&mut self, at: usize, install: &Install) {
        for volume in install.view.volumes.values() {
            self.follow_replica(at, &install.view, volume, install.events_lost);
        }
    }

    fn follow_replica(&mut self, at: usize, view: &ClusterView, volume: &VolumeView, gap: bool) {
        let number = number_of(volume.id);
        let config = &volume.config;
        if volume.removing.iter().any(|member| member.node == view.me) {
            return self.remove_replica(at, number);
        }
        let owns = view.owns(volume);
        let owned = self.nodes[at].engines.get(&number).and_then(|engine| engine.owned.as_ref());
        if owned.is_some_and(|owned| !owns || (gap && owned.config.epoch() != config.epoch())) {
            self.end_ownership(at, number);
        }
        if config.member(view.me).is_none() {
            return self.close_replica(at, number);
        }
        if !self.nodes[at].engines.contains_key(&number) && !self.open_replica(at, view, volume) {
            return;
        }
        self.grow(at, number, kept(volume.geometry.blocks()));
        if owns {
            self.own(at, view, volume);
        }
        self.pump(at, number);
    }

    /// It is no longer of the volume.
    fn remove_replica(&mut self, at: usize, volume: usize) {
        self.close_replica(at, volume);
        if self.nodes[at].disks.remove(&volume).is_some() {
            self.mark("a replica was removed");
        }
        self.tell_removed(at, volume);
    }

    /// Said again in every session, as long as the cluster does not know.
    pub(super) fn tell_removed(&mut self, at: usize, volume: usize) {
        let removed = holdfast_proto::node::ReplicaRemoved { volume_id: super::founding::volume_id(volume) };
        let message = holdfast_proto::node::from_node::Message::ReplicaRemoved(removed);
        let message = holdfast_proto::node::FromNode { message: Some(message) };
        self.up(at, super::Up::Session(message));
    }

    /// The replica becomes as large as the volume, and then its machines may use it.
    fn grow(&mut self, at: usize, volume: usize, blocks: u64) {
        let now = self.instant(at);
        let node = &mut self.nodes[at];
        let (Some(engine), Some(disk)) = (node.engines.get_mut(&volume), node.disks.get_mut(&volume)) else {
            return;
        };
        disk.grow(blocks);
        let shape = shape(blocks);
        if shape == engine.shape {
            return;
        }
        engine.shape = shape;
        engine.secondary.grow(shape);
        let waiting = std::mem::take(&mut engine.beyond_the_end);
        if let Some(owned) = &mut engine.owned {
            owned.primary.grow(now, shape);
        }
        self.mark("a replica has grown");
        for (link, frame) in waiting {
            self.mark("a frame waited for a replica to grow");
            self.take_request(at, volume, link, frame);
        }
    }

    fn open_replica(&mut self, at: usize, view: &ClusterView, volume: &VolumeView) -> bool {
        let number = number_of(volume.id);
        let config = &volume.config;
        let learns = config.learners().iter().any(|member| member.node == view.me);
        let Some(boot) = view.my_node().map(|node| node.boot) else { return false };
        let log = match () {
            () if learns => ActivityLog::untrusted(),
            () if config.epoch() <= NEW_UNTIL => {
                ActivityLog::new(config.in_sync().iter().map(|member| member.node).collect())
            }
            () if self.nodes[at].disks.contains_key(&number) => ActivityLog::untrusted(),
            () => {
                self.violated(format!(
                    "node {at} has no replica of volume {number}, which was served before"
                ));
                return false;
            }
        };
        let engine_number = self.nodes[at].fresh();
        let blocks = kept(volume.geometry.blocks());
        let disk =
            self.nodes[at].disks.entry(number).or_insert_with(|| Disk::new(volume.id, view.me, blocks, log));
        let shape = shape(disk.blocks.len() as u64);
        let (promised, log, bitmaps) = match disk.open(shape) {
            Ok(found) => found,
            Err(why) => {
                self.violated(format!("node {at}, volume {number}: {why}"));
                return false;
            }
        };
        // Of the process before, what it had written may not be on the medium yet.
        disk.flush();
        let opened = Opened {
            volume: volume.id,
            shape,
            me: view.me,
            boot,
            crc32c: crc,
            promised,
            log,
            bitmaps,
            faults: Faults::NONE,
        };
        let engine = Engine {
            number: engine_number,
            secondary: Secondary::new(opened),
            newest: None,
            commands: VecDeque::new(),
            work: BTreeMap::new(),
            owned: None,
            served: false,
            shape,
            beyond_the_end: VecDeque::new(),
        };
        self.nodes[at].engines.insert(number, engine);
        true
    }

    fn own(&mut self, at: usize, view: &ClusterView, volume: &VolumeView) {
        let now = self.instant(at);
        let number = number_of(volume.id);
        let me = Owner { node: view.me, incarnation: view.my_incarnation };
        let config = &volume.config;
        let slow = self.ways.slow_copies;
        let Some(engine) = self.nodes[at].engines.get_mut(&number) else { return };
        match &mut engine.owned {
            Some(owned) if owned.me == me => {
                if config.epoch() > owned.config.epoch() {
                    owned.config = config.clone();
                    owned.primary.configured(now, config);
                    if let HandOver::Proposed(to) = owned.hand_over {
                        owned.hand_over = HandOver::Draining(to);
                    }
                }
            }
            _ => {
                let start = Start {
                    volume: volume.id,
                    shape: engine.shape,
                    me,
                    config: config.clone(),
                    new_volume: config.epoch() <= NEW_UNTIL,
                    faults: Faults::NONE,
                };
                let mut primary = Primary::new(now, start);
                primary.set_copy_rate(slow.then_some(100));
                let own_session = primary.connected(now, me.node);
                engine.owned = Some(Owned {
                    me,
                    config: config.clone(),
                    primary,
                    links: BTreeMap::new(),
                    own_session,
                    jobs: BTreeMap::new(),
                    last_job: 0,
                    waiting: VecDeque::new(),
                    hand_over: HandOver::No,
                });
                self.note(|| format!("node {at} owns volume {number} in epoch {:?}", config.epoch()));
            }
        }
        let Some(owned) = self.owned(at, number) else { return };
        owned.hand_over = match (volume.hand_over_to, owned.hand_over) {
            (None, HandOver::Proposed(to)) => HandOver::Proposed(to),
            (None, _) => HandOver::No,
            (Some(to), HandOver::No | HandOver::Wished(_)) => HandOver::Wished(to),
            (Some(_), under_way) => under_way,
        };
        self.connect(at, number);
    }

    fn owned(&mut self, at: usize, volume: usize) -> Option<&mut Owned> {
        self.nodes[at].engines.get_mut(&volume)?.owned.as_mut()
    }

    /// What is not answered is answered for what is known of it.
    fn end_ownership(&mut self, at: usize, volume: usize) {
        let Some(engine) = self.nodes[at].engines.get_mut(&volume) else { return };
        let Some(mut owned) = engine.owned.take() else { return };
        if let Some(session) = owned.own_session {
            engine.secondary.disconnected(owned.primary.term(), session);
        }
        owned.primary.stop();
        for job in owned.jobs.into_values() {
            let ended = if job.changes { Ended::Unknown } else { Ended::NotExecuted };
            self.io_ended(at, job.of, ended);
        }
    }

    fn close_replica(&mut self, at: usize, volume: usize) {
        self.end_ownership(at, volume);
        let Some(engine) = self.nodes[at].engines.remove(&volume) else { return };
        for work in engine.work.into_values() {
            self.carry_out(at, volume, work);
        }
        self.break_links_of(at, Some(volume));
    }

    /// The process is gone. With `power` goes what only the cache had.
    pub(super) fn crash_replicas(&mut self, at: usize, power: bool) {
        for (volume, engine) in std::mem::take(&mut self.nodes[at].engines) {
            let Some(disk) = self.nodes[at].disks.get_mut(&volume) else { continue };
            for work in engine.work.into_values() {
                let torn = match work {
                    DiskWork::Persist(parts) => disk.tear(&parts, &mut self.random),
                    DiskWork::Apply { lba, values, .. } => {
                        if self.random.below(2) == 0 {
                            disk.write(lba, &values, self.random.below(2) == 0);
                        }
                        Ok(())
                    }
                    DiskWork::Flush => Ok(()),
                };
                if let Err(why) = torn {
                    self.violation.get_or_insert(why);
                }
            }
        }
        if power {
            self.nodes[at].boot += 1;
            for disk in self.nodes[at].disks.values_mut() {
                disk.lose_power(&mut self.random);
            }
        }
        self.break_links_of(at, None);
    }

    /// Takes what a unit wants of its volume.
    pub(super) fn begin_job(&mut self, at: usize, volume: usize, of: For, wish: Wish) {
        let serves = self.serves(at, volume);
        let Some(owned) = self.owned(at, volume).filter(|_| serves) else {
            return self.io_ended(at, of, Ended::NotExecuted);
        };
        owned.last_job += 1;
        let id = owned.last_job;
        owned.jobs.insert(id, Job { of, wish, changes: false, read: Vec::new() });
        if owned.waiting.is_empty() {
            self.try_job(at, volume, id);
        } else {
            owned.waiting.push_back(id);
        }
        self.pump(at, volume);
    }

    /// False: there is still no room for it.
    fn try_job(&mut self, at: usize, volume: usize, id: u64) -> bool {
        let now = self.instant(at);
        let Some(owned) = self.owned(at, volume) else { return true };
        let Some(job) = owned.jobs.get_mut(&id) else { return true };
        let taken = match &job.wish {
            Wish::Read(span) => owned.primary.read(now, id, *span),
            Wish::Flush => owned.primary.flush(now, id),
            Wish::Write(span, values, durable) => {
                owned.primary.write(now, id, *span, Body::Data(bytes_of(values)), *durable)
            }
        };
        match taken {
            Ok(()) => job.changes = matches!(job.wish, Wish::Write(..)),
            Err(Refusal::Busy) => {
                owned.waiting.push_front(id);
                return false;
            }
            Err(Refusal::NotServing | Refusal::NotEnoughReplicas) => {
                self.end_job(at, volume, id, Ended::NotExecuted);
            }
            Err(Refusal::Misuse) => {
                self.violated(format!("node {at}: a step that the replication core cannot take"));
            }
        }
        true
    }

    fn end_job(&mut self, at: usize, volume: usize, id: u64, ended: Ended) {
        if let Some(job) = self.owned(at, volume).and_then(|owned| owned.jobs.remove(&id)) {
            self.io_ended(at, job.of, ended);
        }
    }

    /// Time passes for the replicas of a node.
    pub(super) fn tick_replicas(&mut self, at: usize) {
        let now = self.instant(at);
        let leased = self.nodes[at].leased(self.now);
        let until = self.nodes[at].shared.gate.serve_until_ms();
        let view = self.nodes[at].shared.view.load_full();
        let volumes: Vec<usize> = self.nodes[at].engines.keys().copied().collect();
        for volume in volumes {
            self.look_at_links(at, volume);
            self.connect(at, volume);
            let sweeps = self.random.below(100) == 0;
            let Some(engine) = self.nodes[at].engines.get_mut(&volume) else { continue };
            if sweeps && engine.work.is_empty() {
                engine.secondary.sweep();
            }
            if let Some(owned) = &mut engine.owned {
                for node in owned.primary.peers().collect::<Vec<_>>() {
                    let known = view.as_ref().and_then(|view| view.nodes.get(&node));
                    if known.is_some_and(|node| !node.live) {
                        owned.primary.node_down(now, node);
                    }
                }
                if let HandOver::Wished(to) = owned.hand_over
                    && owned.primary.is_serving()
                {
                    owned.hand_over = HandOver::Draining(to);
                }
                if let Some(until) = until {
                    owned.primary.set_lease(Instant(until));
                    if leased {
                        owned.primary.tick(now);
                    }
                }
            }
            self.pump(at, volume);
        }
        self.drive_changes(at);
    }

    /// Why the replicas of a volume are not whole and alike, once nothing is broken.
    pub(super) fn replicas_differ(&self) -> Option<String> {
        for volume in self.controllers.volumes() {
            let number = number_of(volume.id);
            let config = &volume.config;
            let whole = config.in_sync().len() >= volume.replicas as usize;
            if !whole || !config.learners().is_empty() || !volume.moves.is_empty() {
                return Some(format!("volume {number} has not all its copies: {config:?}"));
            }
            let copies: Vec<(NodeNumber, &[u64])> = config
                .in_sync()
                .iter()
                .filter_map(|member| {
                    let disk = self.nodes[usize::from(member.node.get()) - 1].disks.get(&number)?;
                    Some((member.node, &disk.blocks[..]))
                })
                .collect();
            if copies.iter().any(|(_, blocks)| *blocks != copies[0].1) {
                return Some(format!("the copies of volume {number} differ: {copies:?}"));
            }
        }
        None
    }
}

fn bytes_of(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_be_bytes()).collect()
}

fn values_of(bytes: &[u8]) -> Vec<u64> {
    bytes.as_chunks().0.iter().map(|value| u64::from_be_bytes(*value)).collect()
}
