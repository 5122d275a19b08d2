//! Three nodes, their network, their disks, the controller, and the hosts, in one deterministic order of events.

mod hosts;
mod machines;

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
    replication::{Body, Failure, FromReplica, ToReplica},
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
    ReplicaRead {
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
    term: Epoch,
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
            if self.controller.config.in_sync().len() < NODES {
                // It may be that nobody else has what has rotted: no copy could be made.
                self.nodes.iter_mut().for_each(|node| node.disk.mend());
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
                let lost = self.nodes[node].disk.lost(span);
                let Some(process) = self.process(node, life) else { return Ok(()) };
                if let (Some(lba), Some(primary)) = (lost, &mut process.primary) {
                    primary.read_failed(now, id, Span::new(lba, 1));
                    self.drain(node);
                    return Ok(());
                }
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
                let lost = self.nodes[node].disk.lost(span);
                let Some(process) = self.process(node, life) else { return Ok(()) };
                if let Some(primary) = &mut process.primary {
                    primary.copy_data(now, id, lost.is_none().then_some(Body::Data(data)));
                }
                self.drain(node);
            }
            Event::ReplicaRead { node, life, id, span } => {
                let data = bytes(&self.values(node, span));
                let lost = self.nodes[node].disk.lost(span);
                let Some(process) = self.process(node, life) else { return Ok(()) };
                let result = if lost.is_none() { Ok(data) } else { Err(Failure::Unreadable) };
                process.secondary.read_done(id, result);
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
