//! Three nodes, their network, their disks, the controller, and the hosts, in one deterministic order of events.

use std::collections::BTreeMap;

use holdfast_replica::{
    activity_log::ActivityLog,
    config::{Owner, VolumeConfig},
    epoch::Epoch,
    faults::{Fault, Faults},
    frame::{Frame, FrameReader, Outgoing},
    gate::lease_end_ms,
    ids::{BootId, Incarnation, NodeNumber},
    primary::{Change, Instant, Outcome, Output, Primary, Start, Stop},
    replication::{Body, FromReplica, ToReplica},
    secondary::{Command, Opened, Part, Secondary},
    span::{Shape, Span},
};

use crate::{
    controller::{Controller, LEASE_MS},
    disk::{Disk, VOLUME, crc},
    oracle::Oracle,
    random::Random,
};

pub(crate) const BLOCKS: u64 = 96;
const NODES: usize = 3;
const BLOCK_SIZE: u32 = 8;

/// What is tried.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) faults: Faults,
    pub(crate) promote_anyone: bool,
}

#[derive(Debug)]
enum DiskWork {
    Persist(Vec<Part>),
    Apply { lba: u64, values: Vec<u64>, durable: bool },
    Flush,
}

#[derive(Debug)]
enum Event {
    Tick {
        node: usize,
        life: u64,
    },
    DiskDone {
        node: usize,
        life: u64,
        id: u64,
    },
    Read {
        node: usize,
        life: u64,
        id: u64,
        span: Span,
    },
    Copy {
        node: usize,
        life: u64,
        id: u64,
        span: Span,
    },
    ToReplica {
        link: u64,
        bytes: Vec<u8>,
    },
    FromReplica {
        link: u64,
        bytes: Vec<u8>,
    },
    /// One end notices that the connection is gone.
    Lost {
        link: u64,
        owner_side: bool,
    },
    Renew {
        node: usize,
        life: u64,
        sent: u64,
    },
    Renewed {
        node: usize,
        life: u64,
        lease_end: Option<u64>,
        config: VolumeConfig,
    },
    Proposal {
        node: usize,
        life: u64,
        change: Change,
        epoch: Epoch,
    },
    Proposed {
        node: usize,
        life: u64,
        refused: bool,
        epoch: Epoch,
        config: VolumeConfig,
    },
    ControllerTick,
    Host,
    Chaos,
    Start {
        node: usize,
    },
}

#[derive(Debug)]
enum HostWork {
    Read { lba: u64, begun: u64, values: Vec<u64> },
    Write { lba: u64, blocks: u64, value: u64, durable: bool },
    Flush { begun: u64 },
}

#[derive(Debug)]
struct Link {
    owner: usize,
    replica: usize,
    owner_life: u64,
    replica_life: u64,
    session: u64,
    open: bool,
    last: [u64; 2],
}

struct Process {
    incarnation: Incarnation,
    secondary: Secondary<Vec<u8>>,
    primary: Option<Primary<Vec<u8>>>,
    lease_end: u64,
    proposal: Option<(Change, Epoch)>,
    work: BTreeMap<u64, DiskWork>,
    hosts: BTreeMap<u64, HostWork>,
}

struct Node {
    number: NodeNumber,
    boot: u8,
    life: u64,
    disk: Disk,
    process: Option<Process>,
    /// Its way to the controller is cut.
    cut_off: bool,
    disk_slow_until: u64,
}

/// See the module.
pub(crate) struct World {
    plan: Plan,
    now: u64,
    random: Random,
    events: BTreeMap<(u64, u64), Event>,
    last_event: u64,
    nodes: Vec<Node>,
    links: BTreeMap<u64, Link>,
    last_link: u64,
    cut: [[bool; NODES]; NODES],
    stalled_until: [[u64; NODES]; NODES],
    controller: Controller,
    pub(crate) oracle: Oracle,
    last_value: u64,
    last_host: u64,
    losses_seen: u64,
    /// Longest time between two troubles.
    pace_ms: u64,
    calm: bool,
    trace: bool,
}

fn shape() -> Shape {
    Shape::with_units(BLOCKS, BLOCK_SIZE, 3, 2, 4).expect("shape")
}

impl World {
    pub(crate) fn new(plan: Plan) -> World {
        let mut random = Random(plan.seed);
        let numbers: Vec<NodeNumber> = (1..=NODES as u32).filter_map(NodeNumber::new).collect();
        let min_in_sync = 1 + u8::from(random.one_in(3));
        let pace_ms = [300, 800, 3_000][random.below(3) as usize];
        let mut controller = Controller::new(&numbers, BootId([0; 16]), min_in_sync);
        controller.promote_anyone = plan.promote_anyone;
        let node = |number: &NodeNumber| Node {
            number: *number,
            boot: 0,
            life: 0,
            disk: Disk::new(*number, shape(), ActivityLog::new(numbers.clone())),
            process: None,
            cut_off: false,
            disk_slow_until: 0,
        };
        let nodes = numbers.iter().map(node).collect();
        let mut world = World {
            plan,
            now: 0,
            random,
            events: BTreeMap::new(),
            last_event: 0,
            nodes,
            links: BTreeMap::new(),
            last_link: 0,
            cut: [[false; NODES]; NODES],
            stalled_until: [[0; NODES]; NODES],
            controller,
            oracle: Oracle::new(BLOCKS),
            last_value: 0,
            last_host: 0,
            losses_seen: 0,
            pace_ms,
            calm: false,
            trace: std::env::var_os("HOLDFAST_SIMULATION_TRACE").is_some(),
        };
        for node in 0..NODES {
            world.start(node);
        }
        world.after(0, Event::ControllerTick);
        world.after(50, Event::Host);
        world.after(300, Event::Chaos);
        world
    }

    /// Runs the whole plan: trouble, then healing, then the last look.
    pub(crate) fn run(&mut self) -> Result<(), String> {
        while self.now < 9_000 {
            self.step()?;
        }
        self.heal();
        let end = self.now + 60_000;
        while !self.is_healed() {
            if self.now > end {
                for node in &self.nodes {
                    let process = node.process.as_ref();
                    self.log(|| format!("{:#?}", process.map(|p| (&p.secondary, &p.primary))));
                }
                return Err(format!("not healed after a minute: {:?}", self.controller.config));
            }
            self.step()?;
        }
        self.look_at_everything()?;
        self.oracle.check()?;
        for node in &self.nodes[1..] {
            if let Some(at) =
                (0..BLOCKS as usize).find(|at| node.disk.blocks[*at] != self.nodes[0].disk.blocks[*at])
            {
                let values: Vec<u64> = self.nodes.iter().map(|n| n.disk.blocks[at]).collect();
                return Err(format!("replicas differ at block {at}: {values:?}"));
            }
        }
        Ok(())
    }

    fn step(&mut self) -> Result<(), String> {
        let Some(((at, _), event)) = self.events.pop_first() else { return Err("nothing happens".into()) };
        self.now = at;
        self.handle(event)?;
        if self.controller.lost_everywhere > self.losses_seen {
            self.losses_seen = self.controller.lost_everywhere;
            self.log(|| "every cache is lost".into());
            self.oracle.lost_everywhere()?;
        }
        Ok(())
    }

    fn log(&self, what: impl FnOnce() -> String) {
        if self.trace {
            println!("{:6} {}", self.now, what());
        }
    }

    fn after(&mut self, ms: u64, event: Event) {
        self.last_event += 1;
        self.events.insert((self.now + ms, self.last_event), event);
    }

    fn process(&mut self, node: usize, life: u64) -> Option<&mut Process> {
        let node = &mut self.nodes[node];
        if node.life == life { node.process.as_mut() } else { None }
    }

    fn handle(&mut self, event: Event) -> Result<(), String> {
        let now = Instant(self.now);
        match event {
            Event::Tick { node, life } => self.tick(node, life),
            Event::DiskDone { node, life, id } => {
                let Some(process) = self.process(node, life) else { return Ok(()) };
                let Some(work) = process.work.remove(&id) else { return Ok(()) };
                process.secondary.done(id, Ok(()));
                let disk = &mut self.nodes[node].disk;
                match work {
                    DiskWork::Persist(parts) => disk.persist(&parts),
                    DiskWork::Apply { lba, values, durable } => disk.write(lba, &values, durable),
                    DiskWork::Flush => disk.flush(),
                }
                self.drain(node);
            }
            Event::Read { node, life, id, span } => {
                let values = self.values(node, span);
                let Some(process) = self.process(node, life) else { return Ok(()) };
                if let Some(HostWork::Read { values: to, .. }) = process.hosts.get_mut(&id) {
                    *to = values;
                }
                if let Some(primary) = &mut process.primary {
                    primary.read_done(now, id, true);
                }
                self.drain(node);
            }
            Event::Copy { node, life, id, span } => {
                let data = bytes(&self.values(node, span));
                let Some(process) = self.process(node, life) else { return Ok(()) };
                if let Some(primary) = &mut process.primary {
                    primary.copy_data(now, id, Some(data));
                }
                self.drain(node);
            }
            Event::ToReplica { link, bytes } => {
                let Some(Link { replica, replica_life, open: true, .. }) = self.links.get(&link) else {
                    return Ok(());
                };
                let (replica, life) = (*replica, *replica_life);
                let frame = ToReplica::decode(read(&bytes)).ok_or("an owner's frame is malformed")?;
                self.log(|| {
                    format!("to {} {}/{} {:?}", replica + 1, frame.epoch, frame.number, frame.request)
                        .chars()
                        .take(110)
                        .collect()
                });
                let Some(process) = self.process(replica, life) else { return Ok(()) };
                process.secondary.handle(frame);
                self.drain(replica);
            }
            Event::FromReplica { link, bytes } => {
                let Some(Link { owner, owner_life, replica, open: true, .. }) = self.links.get(&link) else {
                    return Ok(());
                };
                let (owner, life, from) = (*owner, *owner_life, self.nodes[*replica].number);
                let frame = FromReplica::decode(&read(&bytes)).ok_or("a replica's frame is malformed")?;
                self.log(|| {
                    format!("from {from} {}/{} {:?}", frame.epoch, frame.number, frame.answer)
                        .chars()
                        .take(110)
                        .collect()
                });
                let Some(process) = self.process(owner, life) else { return Ok(()) };
                if let Some(primary) = &mut process.primary {
                    primary.handle(now, from, frame);
                }
                self.drain(owner);
            }
            Event::Lost { link, owner_side } => self.connection_lost(link, owner_side),
            Event::Renew { node, life, sent } => {
                let Some(process) = self.process(node, life) else { return Ok(()) };
                let incarnation = process.incarnation;
                let boot = BootId([self.nodes[node].boot; 16]);
                let granted = self.controller.renew(self.now, self.nodes[node].number, incarnation, boot);
                let lease_end = granted.then_some(lease_end_ms(sent, LEASE_MS as u32));
                let config = self.controller.config.clone();
                let delay = 1 + self.random.below(10);
                self.after(delay, Event::Renewed { node, life, lease_end, config });
            }
            Event::Renewed { node, life, lease_end, config } => {
                if self.nodes[node].cut_off {
                    return Ok(());
                }
                let Some(process) = self.process(node, life) else { return Ok(()) };
                process.lease_end = process.lease_end.max(lease_end.unwrap_or(0));
                self.adopt(node, life, &config);
            }
            Event::Proposal { node, life, change, epoch } => {
                let Some(process) = self.process(node, life) else { return Ok(()) };
                let incarnation = process.incarnation;
                let owner = Owner { node: self.nodes[node].number, incarnation };
                let refused = self.controller.propose(self.now, owner, change, epoch);
                let config = self.controller.config.clone();
                self.log(|| {
                    format!("node {} proposes {change:?} at {epoch}: now {}", node + 1, config.epoch())
                });
                let delay = 1 + self.random.below(10);
                self.after(delay, Event::Proposed { node, life, refused, epoch, config });
            }
            Event::Proposed { node, life, refused, epoch, config } => {
                if self.nodes[node].cut_off {
                    return Ok(());
                }
                let Some(process) = self.process(node, life) else { return Ok(()) };
                if refused && process.proposal.is_some_and(|(_, e)| e == epoch) {
                    process.proposal = None;
                    if let Some(primary) = &mut process.primary {
                        primary.refused(now);
                    }
                }
                self.adopt(node, life, &config);
            }
            Event::ControllerTick => {
                let before = self.controller.config.epoch();
                self.controller.tick(self.now);
                if self.controller.config.epoch() != before {
                    self.log(|| format!("controller: {:?}", self.controller.config));
                }
                self.after(20, Event::ControllerTick);
            }
            Event::Host => {
                if !self.calm {
                    self.host_request();
                    let delay = if self.random.one_in(3) { 0 } else { self.random.below(25) };
                    self.after(delay, Event::Host);
                }
            }
            Event::Chaos => {
                if !self.calm {
                    self.chaos();
                    let delay = 20 + self.random.below(self.pace_ms);
                    self.after(delay, Event::Chaos);
                }
            }
            Event::Start { node } => self.start(node),
        }
        Ok(())
    }

    fn values(&self, node: usize, span: Span) -> Vec<u64> {
        self.nodes[node].disk.blocks[span.lba() as usize..span.end() as usize].to_vec()
    }

    fn start(&mut self, at: usize) {
        if self.nodes[at].process.is_some() {
            return;
        }
        let faults = self.plan.faults;
        let node = &mut self.nodes[at];
        node.life += 1;
        let (promised, log, bitmaps) = node.disk.open(shape());
        let opened = Opened {
            volume: VOLUME,
            shape: shape(),
            me: node.number,
            boot: BootId([node.boot; 16]),
            crc32c: crc,
            promised,
            log,
            bitmaps,
            faults,
        };
        node.process = Some(Process {
            incarnation: Incarnation(node.life),
            secondary: Secondary::new(opened),
            primary: None,
            lease_end: 0,
            proposal: None,
            work: BTreeMap::new(),
            hosts: BTreeMap::new(),
        });
        let life = node.life;
        self.after(0, Event::Tick { node: at, life });
    }

    /// Ends a process. With the power goes the cache.
    fn kill(&mut self, at: usize, power: bool) {
        self.log(|| format!("node {} {}", at + 1, if power { "loses power" } else { "is killed" }));
        let node = &mut self.nodes[at];
        node.life += 1;
        if let Some(process) = node.process.take() {
            for work in process.work.into_values() {
                match work {
                    DiskWork::Persist(parts) => node.disk.tear(&parts, &mut self.random),
                    DiskWork::Apply { lba, values, .. } if self.random.one_in(2) => {
                        node.disk.write(lba, &values, power && self.random.one_in(2));
                    }
                    DiskWork::Apply { .. } | DiskWork::Flush => {}
                }
            }
        }
        if power {
            node.boot += 1;
            node.disk.power_cut(&mut self.random);
        }
        let links: Vec<u64> =
            self.links.iter().filter(|(_, l)| l.owner == at || l.replica == at).map(|(n, _)| *n).collect();
        for link in links {
            self.break_link(link);
        }
        let delay = match self.random.below(3) {
            0 => self.random.below(50),
            1 => self.random.below(900),
            _ => self.random.below(6_000),
        };
        self.after(delay, Event::Start { node: at });
    }

    fn break_link(&mut self, number: u64) {
        if let Some(link) = self.links.get_mut(&number)
            && link.open
        {
            link.open = false;
            let local = link.owner == link.replica;
            for owner_side in [true, false] {
                let delay = if local { 0 } else { self.random.below(200) };
                self.after(delay, Event::Lost { link: number, owner_side });
            }
        }
    }

    fn connection_lost(&mut self, number: u64, owner_side: bool) {
        let now = Instant(self.now);
        let Some(link) = self.links.get(&number) else { return };
        let (owner, replica, owner_life, replica_life, session) =
            (link.owner, link.replica, link.owner_life, link.replica_life, link.session);
        if owner_side {
            let number_of_replica = self.nodes[replica].number;
            let newer = self
                .links
                .range(number + 1..)
                .any(|(_, l)| l.owner == owner && l.owner_life == owner_life && l.replica == replica);
            if let Some(process) = self.process(owner, owner_life).filter(|_| !newer)
                && let Some(primary) = &mut process.primary
            {
                primary.disconnected(now, number_of_replica);
            }
            self.drain(owner);
        } else {
            if let Some(process) = self.process(replica, replica_life) {
                process.secondary.disconnected(session);
            }
            self.drain(replica);
        }
    }

    fn tick(&mut self, at: usize, life: u64) {
        let now = Instant(self.now);
        let ignore_lease = self.plan.faults.has(Fault::IgnoreLease);
        let Some(process) = self.process(at, life) else { return };
        let Some((lapsed, proposal)) = Some((
            process.primary.is_some() && process.lease_end <= now.0 && !ignore_lease,
            process.proposal,
        )) else {
            return;
        };
        self.after(10, Event::Tick { node: at, life });
        if lapsed {
            // A lapse voids the ownership; a new process takes a new epoch.
            self.log(|| format!("node {}: the lease has lapsed", at + 1));
            self.kill(at, false);
            return;
        }
        if !self.nodes[at].cut_off {
            let delay = 1 + self.random.below(10);
            self.after(delay, Event::Renew { node: at, life, sent: now.0 });
            if let Some((change, epoch)) = proposal {
                let delay = 1 + self.random.below(10);
                self.after(delay, Event::Proposal { node: at, life, change, epoch });
            }
        }
        self.connect(at);
        let sweep = self.random.one_in(10);
        if let Some(process) = self.process(at, life) {
            if let Some(primary) = &mut process.primary {
                primary.set_lease(Instant(process.lease_end));
                primary.tick(now);
            }
            if sweep {
                process.secondary.sweep();
            }
        }
        self.drain(at);
    }

    /// The owner connects to every replica that it can reach.
    fn connect(&mut self, owner: usize) {
        let now = Instant(self.now);
        for replica in 0..NODES {
            let reachable = !self.cut[owner][replica] && self.nodes[replica].process.is_some();
            let (number, replica_life) = (self.nodes[replica].number, self.nodes[replica].life);
            let owner_life = self.nodes[owner].life;
            let Some(process) = &mut self.nodes[owner].process else { return };
            let Some(primary) = &mut process.primary else { return };
            if !reachable || primary.is_connected(number) {
                continue;
            }
            if let Some(session) = primary.connected(now, number) {
                self.last_link += 1;
                let last = [self.now; 2];
                let link = Link { owner, replica, owner_life, replica_life, session, open: true, last };
                self.links.insert(self.last_link, link);
            }
        }
    }

    fn adopt(&mut self, at: usize, life: u64, config: &VolumeConfig) {
        let now = Instant(self.now);
        let plan = self.plan;
        let number = self.nodes[at].number;
        let Some(process) = self.process(at, life) else { return };
        let me = Owner { node: number, incarnation: process.incarnation };
        if process.proposal.is_some_and(|(_, epoch)| config.epoch() > epoch) {
            process.proposal = None;
        }
        match &mut process.primary {
            Some(primary) => primary.configured(now, config),
            None if config.owner() == Some(me) => {
                let start =
                    Start { volume: VOLUME, shape: shape(), me, config: config.clone(), faults: plan.faults };
                process.primary = Some(Primary::new(now, start));
            }
            None => {}
        }
        self.drain(at);
    }

    /// Carries out what the machines of a node want.
    fn drain(&mut self, at: usize) {
        let now = Instant(self.now);
        let life = self.nodes[at].life;
        loop {
            let Some(process) = &mut self.nodes[at].process else { return };
            if let Some(command) = process.secondary.poll_command() {
                self.command(at, life, command);
                continue;
            }
            let Some(primary) = &mut process.primary else { return };
            if let Some(output) = primary.poll_output() {
                self.output(at, life, output);
                continue;
            }
            let Some((id, outcome)) = primary.poll_completion(now) else { return };
            if let Some(work) = process.hosts.remove(&id) {
                self.answered(work, outcome);
            }
        }
    }

    fn command(&mut self, at: usize, life: u64, command: Command<Vec<u8>>) {
        let (id, work) = match command {
            Command::Persist(id, parts) => (id, DiskWork::Persist(parts)),
            Command::Apply { id, span, body, durable } => {
                let values = match body {
                    Body::Data(data) => data.as_chunks().0.iter().map(|v| u64::from_be_bytes(*v)).collect(),
                    Body::Zeroes | Body::Unmap => vec![0; span.blocks() as usize],
                };
                (id, DiskWork::Apply { lba: span.lba(), values, durable })
            }
            Command::Flush(id) => (id, DiskWork::Flush),
            Command::Answer(frame) => {
                let session = frame.session;
                let link = self.links.iter().rev().find(|(_, l)| {
                    l.replica == at && l.replica_life == life && l.session == session && l.open
                });
                if let Some((number, _)) = link {
                    self.transmit(*number, 1, frame.encode(crc));
                }
                return;
            }
        };
        let slow = self.nodes[at].disk_slow_until.saturating_sub(self.now);
        let delay = slow + if self.random.one_in(20) { self.random.below(200) } else { self.random.below(8) };
        if let Some(process) = self.process(at, life) {
            process.work.insert(id, work);
        }
        self.after(delay, Event::DiskDone { node: at, life, id });
    }

    fn transmit(&mut self, number: u64, way: usize, frame: Option<Outgoing<Vec<u8>>>) {
        let frame = frame.expect("frames are bounded");
        let bytes = [frame.head, frame.data.unwrap_or_default()].concat();
        let Some(link) = self.links.get_mut(&number) else { return };
        let (from, to) = if way == 0 { (link.owner, link.replica) } else { (link.replica, link.owner) };
        let delay = if from == to { 0 } else { 1 + self.random.below(6) };
        let stalled = if from == to { 0 } else { self.stalled_until[from][to] };
        link.last[way] = link.last[way].max(self.now + delay).max(stalled);
        let delay = link.last[way] - self.now;
        let event = match way {
            0 => Event::ToReplica { link: number, bytes },
            _ => Event::FromReplica { link: number, bytes },
        };
        self.after(delay, event);
    }

    fn output(&mut self, at: usize, life: u64, output: Output<Vec<u8>>) {
        let now = Instant(self.now);
        match output {
            Output::Send(to, frame) => {
                let session = frame.session;
                let link =
                    self.links.iter().rev().find(|(_, l)| {
                        l.owner == at && l.owner_life == life && l.session == session && l.open
                    });
                let Some((number, link)) = link else {
                    // The link of this very session is entered right after its promise was asked for.
                    let waits = self.links.iter().any(|(_, l)| l.owner == at && l.session == session);
                    assert!(waits || self.nodes.iter().any(|n| n.number == to), "unknown session");
                    return;
                };
                assert_eq!(self.nodes[link.replica].number, to);
                self.transmit(*number, 0, frame.encode(crc));
            }
            Output::Read(id, span) => {
                let delay = self.random.below(12);
                self.after(delay, Event::Read { node: at, life, id, span });
            }
            Output::Copy(id, span) => {
                let delay = self.random.below(12);
                self.after(delay, Event::Copy { node: at, life, id, span });
            }
            Output::Propose(change, epoch) => {
                if let Some(process) = self.process(at, life) {
                    process.proposal = Some((change, epoch));
                }
            }
            Output::StartResync(node) => {
                let Some(process) = self.process(at, life) else { return };
                if let Some(primary) = &mut process.primary {
                    primary.start_resync(now, node, process.secondary.bitmap(node));
                }
            }
            Output::MergeBitmaps(node) => {
                let Some(process) = self.process(at, life) else { return };
                if let Some(primary) = &mut process.primary {
                    primary.merge_bitmaps(now, node, process.secondary.bitmaps());
                }
            }
            Output::Stopped(why) => {
                self.log(|| format!("node {} stops: {why:?}", at + 1));
                let Some(process) = self.process(at, life) else { return };
                process.hosts.clear();
                match why {
                    Stop::ReplicaFailed => self.kill(at, false),
                    Stop::Deposed | Stop::Asked => {
                        process.primary = None;
                        process.proposal = None;
                    }
                }
            }
        }
    }

    fn host_request(&mut self) {
        let owners =
            |n: &Node| n.process.as_ref().and_then(|p| p.primary.as_ref()).is_some_and(Primary::is_serving);
        let serving: Vec<usize> = (0..NODES).filter(|at| owners(&self.nodes[*at])).collect();
        if serving.is_empty() {
            return;
        }
        let at = serving[self.random.below(serving.len() as u64) as usize];
        // Most requests go to few blocks, so that they meet.
        let lba = if self.random.one_in(3) { self.random.below(BLOCKS - 8) } else { self.random.below(12) };
        let span = Span::new(lba, 1 + self.random.below(6)).expect("span");
        let kind = self.random.below(100);
        self.request(at, span, kind);
    }

    fn request(&mut self, at: usize, span: Span, kind: u64) {
        let now = Instant(self.now);
        self.last_host += 1;
        let id = self.last_host;
        let begun = self.oracle.moment();
        let (lba, blocks) = (span.lba(), span.blocks());
        let Some(process) = &mut self.nodes[at].process else { return };
        let Some(primary) = &mut process.primary else { return };
        let (work, result) = match kind {
            0..45 => (HostWork::Read { lba, begun, values: vec![] }, primary.read(now, id, span)),
            45..92 => {
                self.last_value += 1;
                let (value, durable) = (self.last_value, kind >= 80);
                self.oracle.write_begun(lba, blocks, value);
                let data = bytes(&vec![value; blocks as usize]);
                let result = primary.write(now, id, span, Body::Data(data), durable);
                if result.is_err() {
                    self.oracle.write_refused(lba, blocks, value);
                }
                (HostWork::Write { lba, blocks, value, durable }, result)
            }
            _ => (HostWork::Flush { begun }, primary.flush(now, id)),
        };
        if result.is_ok() {
            process.hosts.insert(id, work);
        }
        self.drain(at);
    }

    fn answered(&mut self, work: HostWork, outcome: Outcome) {
        match (work, outcome) {
            (HostWork::Read { lba, begun, values }, Outcome::Done) => {
                self.log(|| format!("read  {lba} {values:?}"));
                self.oracle.read_answered(lba, begun, &values);
            }
            (HostWork::Write { lba, blocks, value, durable }, Outcome::Done) => {
                self.log(|| format!("write {lba}+{blocks} {value}{}", if durable { " durable" } else { "" }));
                self.oracle.write_answered(lba, blocks, value, durable);
            }
            (HostWork::Flush { begun }, Outcome::Done) => self.oracle.flush_answered(begun),
            _ => {}
        }
    }

    fn chaos(&mut self) {
        let at = self.random.below(NODES as u64) as usize;
        let other = (at + 1 + self.random.below(2) as usize) % NODES;
        match self.random.below(20) {
            0..3 => self.kill(at, false),
            3..5 => self.kill(at, true),
            5 => (0..NODES).for_each(|node| self.kill(node, true)),
            6 => (0..NODES).for_each(|node| self.kill(node, false)),
            7..9 => {
                self.log(|| format!("nodes {} and {} are cut apart", at + 1, other + 1));
                self.set_cut(at, other, true);
            }
            9 => {
                self.log(|| format!("node {} is cut off", at + 1));
                (0..NODES).filter(|n| *n != at).for_each(|n| self.set_cut(at, n, true));
                self.nodes[at].cut_off = self.random.one_in(2);
            }
            10 => {
                self.log(|| format!("node {} is cut off from the controller", at + 1));
                self.nodes[at].cut_off = true;
            }
            11..14 => {
                (0..NODES).for_each(|a| (0..NODES).for_each(|b| self.set_cut(a, b, false)));
                self.nodes.iter_mut().for_each(|n| n.cut_off = false);
            }
            14..17 => self.stalled_until[at][other] = self.now + self.random.below(6_000),
            17 => {
                self.stalled_until[at] = [self.now + self.random.below(4_000); NODES];
                self.nodes[at].cut_off = true;
            }
            _ => self.nodes[at].disk_slow_until = self.now + self.random.below(2_500),
        }
    }

    fn set_cut(&mut self, a: usize, b: usize, cut: bool) {
        (self.cut[a][b], self.cut[b][a]) = (cut, cut);
        if cut {
            let between = |l: &Link| (l.owner == a && l.replica == b) || (l.owner == b && l.replica == a);
            let links: Vec<u64> = self.links.iter().filter(|(_, l)| between(l)).map(|(n, _)| *n).collect();
            for link in links {
                self.break_link(link);
            }
        }
    }

    fn heal(&mut self) {
        self.log(|| "healing".into());
        self.calm = true;
        self.cut = [[false; NODES]; NODES];
        self.stalled_until = [[0; NODES]; NODES];
        for node in 0..NODES {
            self.nodes[node].cut_off = false;
            self.nodes[node].disk_slow_until = 0;
            self.start(node);
        }
    }

    fn is_healed(&self) -> bool {
        let config = &self.controller.config;
        let quiet = |node: &Node| {
            let process = node.process.as_ref();
            process.is_some_and(|p| p.hosts.is_empty() && p.proposal.is_none())
        };
        let owner = config.owner().map(|o| o.node);
        let serving = self.nodes.iter().filter(|n| Some(n.number) == owner).any(|n| {
            let primary = n.process.as_ref().and_then(|p| p.primary.as_ref());
            primary.is_some_and(|p| p.is_recovered() && p.epoch() == config.epoch())
        });
        serving && config.in_sync().len() == NODES && self.nodes.iter().all(quiet)
    }

    fn look_at_everything(&mut self) -> Result<(), String> {
        let owner = self.controller.config.owner().map(|o| o.node);
        let at = (0..NODES).find(|at| Some(self.nodes[*at].number) == owner).ok_or("no owner")?;
        for lba in (0..BLOCKS).step_by(8) {
            self.request(at, Span::new(lba, 8).ok_or("span")?, 0);
        }
        let end = self.now + 5_000;
        while self.nodes[at].process.as_ref().is_some_and(|p| !p.hosts.is_empty()) {
            if self.now > end {
                return Err("the last reads are not answered".into());
            }
            self.step()?;
        }
        Ok(())
    }
}

fn bytes(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_be_bytes()).collect()
}

fn read(bytes: &[u8]) -> Frame {
    let mut reader = FrameReader::new(crc);
    let mut rest = bytes;
    loop {
        let n = reader.space().len().min(rest.len());
        reader.space()[..n].copy_from_slice(&rest[..n]);
        rest = &rest[n..];
        if let Some(frame) = reader.advance(n).expect("a frame") {
            return frame;
        }
    }
}
