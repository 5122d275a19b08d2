//! Nodes, lines and a controller that keeps the record.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant as Clock};

use holdfast_replica::activity_log::ActivityLog;
use holdfast_replica::config::{Member, Owner, VolumeConfig};
use holdfast_replica::faults::Faults;
use holdfast_replica::ids::{BootId, ClusterId, Incarnation, NodeNumber, VolumeId};
use holdfast_replica::secondary::Opened;
use holdfast_replica::span::{Shape, Span};
use holdfast_replica::superblock::Superblock;

use super::disk::Disk;
use crate::agent::handle::{Request, Requests};
use crate::agent::{self, ChangeConfiguration, ChangeResult, WantedChange};
use crate::clock;
use crate::data_plane::mailbox::{Inbox, Mailboxes};
use crate::data_plane::router::Bytes;
use crate::store::io_threads::IoThreads;
use crate::store::replica::Replica;
use crate::view::{Epoch, Shared};
use crate::volume::Surroundings;
use crate::volume::engine::Engine;
use crate::volume::jobs::{HostFailure, HostResult, Job, Step};
use crate::volume::link::{Link, Parcel};

pub(super) const VOLUME: VolumeId = VolumeId([7; 16]);
/// 16 MiB: 256 chunks, 4 extents.
pub(super) const BLOCKS: u64 = 32 * 1024;
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn node(n: u32) -> NodeNumber {
    NodeNumber::new(n).unwrap()
}

/// A node that runs.
pub(super) struct Running {
    pub(super) engine: Arc<Engine>,
    shared: Arc<Shared>,
    requests: Requests,
    incarnation: Incarnation,
    _mailboxes: Mailboxes,
    _inboxes: Vec<Inbox>,
    _poll: mio::Poll,
}

impl Running {
    /// The lease has run out.
    pub(super) fn close_gate(&self) {
        self.shared.gate.close();
    }
}

/// What outlives a process.
pub(super) struct Machine {
    folder: tempfile::TempDir,
    pub(super) disk: Disk,
    pub(super) boot: u8,
    starts: u64,
    pub(super) process: Option<Running>,
}

struct Line {
    owner: NodeNumber,
    replica: NodeNumber,
    there: Arc<Link>,
    back: Arc<Link>,
}

/// See the module.
pub(super) struct Bench {
    pub(super) machines: BTreeMap<NodeNumber, Machine>,
    pub(super) config: VolumeConfig,
    pub(super) shape: Shape,
    lines: Vec<Line>,
    /// Nodes that nothing reaches.
    pub(super) cut_off: Vec<NodeNumber>,
    pub(super) asked: Vec<ChangeConfiguration>,
}

impl Bench {
    /// A new volume with a copy on each of so many nodes, owned by node 1.
    pub(super) fn new(copies: u32) -> Bench {
        let shape = Shape::new(BLOCKS, 512).unwrap();
        let members =
            (1..=copies).map(|n| Member { node: node(n), boot: BootId([1; 16]), pool: "pool".into() });
        let config = VolumeConfig::new(members.collect(), 1).unwrap();
        let machine = || Machine {
            folder: tempfile::tempdir().unwrap(),
            disk: Disk::new(BLOCKS * 512),
            boot: 1,
            starts: 0,
            process: None,
        };
        let machines = (1..=3).map(|n| (node(n), machine())).collect();
        let mut bench = Bench { machines, config, shape, lines: vec![], cut_off: vec![], asked: vec![] };
        for n in 1..=copies {
            bench.start(n);
        }
        bench.give_to(1);
        bench
    }

    /// Starts the process of a node. A replica that is not there is made as the record would have it.
    pub(super) fn start(&mut self, n: u32) {
        let number = node(n);
        let in_sync: Vec<NodeNumber> = self.config.in_sync().iter().map(|m| m.node).collect();
        let shape = self.shape;
        let machine = self.machines.get_mut(&number).unwrap();
        machine.starts += 1;
        let new = !machine.folder.path().join("superblock").exists();
        let log =
            if in_sync.contains(&number) { ActivityLog::new(in_sync) } else { ActivityLog::untrusted() };
        let superblock = match std::fs::read(machine.folder.path().join("superblock")) {
            Ok(bytes) if bytes.len() == 8192 => {
                let (slots, _) = bytes.as_chunks::<4096>();
                Superblock::decode([&slots[0], &slots[1]], crc32c::crc32c_append).unwrap()
            }
            _ => Superblock {
                cluster: ClusterId([1; 16]),
                volume: VOLUME,
                node: number,
                block_size: 512,
                blocks: BLOCKS,
                sequence: 1,
                promised: Epoch::ZERO,
            },
        };
        let store = Box::new(machine.disk.clone());
        let replica = Replica::with_store_and_log(store, machine.folder.path(), superblock, log).unwrap();
        if new {
            let file = std::fs::File::options().write(true).open(machine.folder.path().join("superblock"));
            file.unwrap().set_len(8192).unwrap();
        }
        replica.suspend();
        let (log, bitmaps) = replica.bookkeeping(shape).unwrap();
        let shared = Arc::new(Shared::default());
        shared.gate.extend(clock::now_ms() + 3_600_000);
        let poll = mio::Poll::new().unwrap();
        let waker = mio::Waker::new(poll.registry(), mio::Token(0)).unwrap();
        let (mailboxes, inboxes) = Mailboxes::new(vec![waker]);
        shared.links.attach(mailboxes.clone());
        let (agent, requests) = agent::Handle::new();
        let around = Surroundings { shared: Arc::clone(&shared), io: IoThreads::start(3).unwrap(), agent };
        let opened = Opened {
            volume: VOLUME,
            shape,
            me: number,
            boot: BootId([machine.boot; 16]),
            crc32c: crc32c::crc32c_append,
            promised: replica.promised(),
            log: log.unwrap_or_else(|_| ActivityLog::untrusted()),
            bitmaps,
            faults: Faults::NONE,
        };
        let engine = Engine::new(around, Arc::new(replica), opened);
        shared.links.open(&engine);
        let incarnation = Incarnation(machine.starts);
        machine.process = Some(Running {
            engine,
            shared,
            requests,
            incarnation,
            _mailboxes: mailboxes,
            _inboxes: inboxes,
            _poll: poll,
        });
    }

    /// Ends the process of a node as kill -9 does: nobody is told anything but by the ends of their lines.
    pub(super) fn kill(&mut self, n: u32) {
        let number = node(n);
        let process = self.machines.get_mut(&number).unwrap().process.take().unwrap();
        process.shared.gate.close();
        self.break_lines(|line| line.owner == number || line.replica == number);
        // What is at the disk ends; what it led to is heard by nobody.
        process.engine.close();
        process.shared.links.clear();
    }

    /// The same with the power: what was not flushed is lost.
    pub(super) fn lose_power(&mut self, n: u32) {
        self.kill(n);
        let machine = self.machines.get_mut(&node(n)).unwrap();
        machine.disk.lose_power();
        machine.boot += 1;
    }

    /// Destroys the replica of a node that is down.
    pub(super) fn lose_replica(&mut self, n: u32) {
        let machine = self.machines.get_mut(&node(n)).unwrap();
        machine.folder = tempfile::tempdir().unwrap();
        machine.disk = Disk::new(self.shape.blocks() * 512);
    }

    /// Damages the activity log of a node that is down.
    pub(super) fn damage_log(&mut self, n: u32) {
        std::fs::write(self.machines[&node(n)].folder.path().join("log"), vec![0x5a; 16384]).unwrap();
    }

    pub(super) fn engine(&self, n: u32) -> &Arc<Engine> {
        &self.process(n).engine
    }

    fn process(&self, n: u32) -> &Running {
        self.machines[&node(n)].process.as_ref().unwrap()
    }

    /// The controller gives the volume to a node.
    pub(super) fn give_to(&mut self, n: u32) {
        let owner = Owner { node: node(n), incarnation: self.process(n).incarnation };
        let boots: BTreeMap<NodeNumber, BootId> =
            self.machines.iter().map(|(node, m)| (*node, BootId([m.boot; 16]))).collect();
        let boot_now = |node: NodeNumber| boots.get(&node).copied();
        let (config, _) = self.config.change_owner(self.config.epoch(), owner, boot_now).unwrap();
        self.decide(config);
    }

    /// The controller lets a node's replica catch up.
    pub(super) fn add_learner(&mut self, n: u32) {
        let boot = BootId([self.machines[&node(n)].boot; 16]);
        let member = Member { node: node(n), boot, pool: "pool".into() };
        let config = self.config.add_learner(self.config.epoch(), member).unwrap();
        self.decide(config);
    }

    /// A record is committed, and every node that runs hears of it.
    pub(super) fn decide(&mut self, config: VolumeConfig) {
        self.config = config;
        for machine in self.machines.values() {
            let Some(process) = &machine.process else { continue };
            match self.config.owner() {
                Some(owner) if self.engine_of(owner).is_some_and(|e| Arc::ptr_eq(e, &process.engine)) => {
                    let new = self.config.epoch().number <= 2;
                    process.engine.own(owner, &self.config, new);
                }
                _ => process.engine.disown(),
            }
        }
    }

    fn engine_of(&self, owner: Owner) -> Option<&Arc<Engine>> {
        let process = self.machines.get(&owner.node)?.process.as_ref()?;
        (process.incarnation == owner.incarnation).then_some(&process.engine)
    }

    fn break_lines(&mut self, which: impl Fn(&Line) -> bool) {
        let (gone, stay) = std::mem::take(&mut self.lines).into_iter().partition(which);
        self.lines = stay;
        let gone: Vec<Line> = gone;
        for line in gone {
            for (node, end) in [(line.owner, &line.there), (line.replica, &line.back)] {
                if let Some(process) = &self.machines[&node].process {
                    process.shared.links.link_down(end);
                }
            }
        }
    }

    /// One turn: lines, the controller, time.
    pub(super) fn turn(&mut self) {
        let cut_off = self.cut_off.clone();
        let is_cut = |line: &Line| cut_off.contains(&line.owner) || cut_off.contains(&line.replica);
        self.break_lines(is_cut);
        if let Some(owner) = self.config.owner()
            && !cut_off.contains(&owner.node)
            && self.machines[&owner.node].process.is_some()
        {
            let running: Vec<NodeNumber> = self
                .machines
                .iter()
                .filter(|(n, m)| m.process.is_some() && **n != owner.node && !cut_off.contains(n))
                .map(|(n, _)| *n)
                .collect();
            for replica in running {
                if !self.lines.iter().any(|l| (l.owner, l.replica) == (owner.node, replica)) {
                    self.connect(owner.node, replica);
                }
            }
        }
        for line in &self.lines {
            let (Some(owner), Some(replica)) =
                (&self.machines[&line.owner].process, &self.machines[&line.replica].process)
            else {
                continue;
            };
            line.there.begin_sending();
            line.back.begin_sending();
            while let Some(Parcel::Request(frame)) = line.there.take() {
                replica.shared.links.request(&line.back, frame);
            }
            while let Some(Parcel::Answer(frame)) = line.back.take() {
                owner.shared.links.answer(&line.there, frame);
            }
        }
        self.control();
        for machine in self.machines.values() {
            if let Some(process) = &machine.process {
                process.engine.tick();
            }
        }
        std::thread::yield_now();
    }

    fn connect(&mut self, owner: NodeNumber, replica: NodeNumber) {
        let mailboxes = |n: &NodeNumber| self.machines[n].process.as_ref().unwrap()._mailboxes.clone();
        let there = Link::new(replica, 0, mailboxes(&owner));
        let back = Link::new(owner, 0, mailboxes(&replica));
        self.machines[&owner].process.as_ref().unwrap().shared.links.link_up(&there);
        self.lines.push(Line { owner, replica, there, back });
    }

    /// Carries out what owners ask of the controller.
    fn control(&mut self) {
        let mut asked = Vec::new();
        for (number, machine) in &mut self.machines {
            let Some(process) = &mut machine.process else { continue };
            while let Ok(request) = process.requests.reports.try_recv() {
                if let Request::ChangeConfiguration(wanted, reply) = request {
                    asked.push((*number, wanted, reply));
                }
            }
        }
        for (by, wanted, reply) in asked {
            self.asked.push(wanted.clone());
            let proposer = Owner { node: by, incarnation: wanted.incarnation };
            let decided = match wanted.change {
                WantedChange::Evict(node) => self.config.remove_from_in_sync(wanted.expected, proposer, node),
                WantedChange::Admit(node, _) => self.config.admit_learner(wanted.expected, proposer, node),
                WantedChange::HandOver { to, leave } => self.hand_over(&wanted, to, leave),
            };
            match decided {
                Ok(config) => {
                    self.decide(config);
                    reply(ChangeResult::Settled);
                }
                Err(error) => reply(ChangeResult::Refused(error.to_string())),
            }
        }
    }

    fn hand_over(
        &self,
        wanted: &ChangeConfiguration,
        to: Option<NodeNumber>,
        leave: bool,
    ) -> Result<VolumeConfig, holdfast_replica::config::ConfigError> {
        let before = self.config.owner().unwrap().node;
        let others = self.config.in_sync().iter().map(|m| m.node).filter(|n| *n != before);
        let running = |n: &NodeNumber| self.machines[n].process.is_some();
        let to = to.or_else(|| others.clone().find(running));
        let to = to.ok_or(holdfast_replica::config::ConfigError::Empty)?;
        let incarnation = self.machines[&to].process.as_ref().unwrap().incarnation;
        let owner = Owner { node: to, incarnation };
        let boot_now = |n: NodeNumber| Some(BootId([self.machines[&n].boot; 16]));
        let (config, _) = self.config.change_owner(wanted.expected, owner, boot_now)?;
        if leave { config.remove_from_in_sync(config.epoch(), owner, before) } else { Ok(config) }
    }

    /// Turns until the condition holds.
    pub(super) fn until(&mut self, what: &str, mut condition: impl FnMut(&mut Bench) -> bool) {
        let begun = Clock::now();
        while !condition(self) {
            assert!(begun.elapsed() < PATIENCE, "waited for {what}; the record: {:?}", self.config);
            self.turn();
        }
    }

    /// Turns until the owner serves.
    pub(super) fn until_served(&mut self) {
        self.until("an owner that serves", |b| {
            b.config.owner().and_then(|o| b.engine_of(o)).is_some_and(|engine| engine.is_serving())
        });
    }

    pub(super) fn until_in_sync(&mut self, copies: usize) {
        self.until("the copies to be in sync", |b| b.config.in_sync().len() == copies);
    }

    /// Begins something at the owner. The result comes by the channel.
    pub(super) fn begin(&mut self, steps: Vec<Step>) -> mpsc::Receiver<HostResult> {
        let (result, done) = mpsc::channel();
        let later = result.clone();
        let reply = Box::new(move |end| {
            let _ = later.send(end);
        });
        let owner = self.config.owner().unwrap();
        let engine = Arc::clone(self.engine_of(owner).unwrap());
        if let Some(end) = engine.submit(Job { steps: VecDeque::from(steps), reply }) {
            result.send(end).unwrap();
        }
        done
    }

    pub(super) fn end(&mut self, done: &mpsc::Receiver<HostResult>) -> HostResult {
        let mut result = None;
        self.until("an answer", |_| {
            result = done.try_recv().ok();
            result.is_some()
        });
        result.unwrap()
    }

    pub(super) fn run(&mut self, step: Step) -> HostResult {
        let done = self.begin(vec![step]);
        self.end(&done)
    }

    /// Writes blocks of one value; it has to succeed.
    pub(super) fn write(&mut self, lba: u64, blocks: u64, value: u8) {
        let result = self.run(write(lba, blocks, value));
        assert!(matches!(result, HostResult::Done), "{result:?}");
    }

    pub(super) fn flush(&mut self) {
        assert!(matches!(self.run(Step::Flush), HostResult::Done));
    }

    /// The value of a block at the owner.
    pub(super) fn read(&mut self, lba: u64) -> u8 {
        match self.run(Step::Read(Span::new(lba, 1).unwrap())) {
            HostResult::Read(bytes) => {
                assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a torn block");
                bytes[0]
            }
            other => panic!("{other:?}"),
        }
    }

    /// Every copy in sync has the same bytes.
    pub(super) fn assert_identical(&mut self) {
        self.flush();
        let in_sync: Vec<NodeNumber> = self.config.in_sync().iter().map(|m| m.node).collect();
        let first = self.machines[&in_sync[0]].disk.look().medium.clone();
        for node in &in_sync[1..] {
            let other = self.machines[node].disk.look().medium.clone();
            let differs = first.iter().zip(&other).position(|(a, b)| a != b);
            assert_eq!(differs.map(|at| at / 512), None, "{node:?} differs in this block");
        }
    }
}

pub(super) fn write(lba: u64, blocks: u64, value: u8) -> Step {
    let data = Bytes::new(vec![value; blocks as usize * 512]);
    Step::Write { span: Span::new(lba, blocks).unwrap(), data, durable: false }
}

pub(super) fn failed(result: &HostResult) -> Option<HostFailure> {
    match result {
        HostResult::Failed(failure) => Some(*failure),
        _ => None,
    }
}
