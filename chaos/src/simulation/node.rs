//! A data node: the product's session with the controllers ([`Core`]), workers with the product's ports, proposals that are asked for
//! again until their outcome is known, commands forwarded to owners.
//!
//! Invariants (the shell's, as in the product): units follow a view before the workers do; an index is confirmed by the last worker;
//! nothing is answered while the gate is closed; a request of unknown outcome is repeated under its id while the lease lasts.

mod calls;
mod ports;

use std::{
    collections::{BTreeMap, VecDeque},
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
};

use holdfast_datanode::{
    agent::{
        Install, Installer,
        session::{Core, Facts},
    },
    view::{ClusterId, Shared, VolumeId},
};
use holdfast_pki::SealingKey;
use holdfast_proto::{node::Hello, state as records};
use holdfast_replica::epoch::Epoch;
use holdfast_scsi::{nexus::Nexus, sense::asc, ua::UnitAttention};

use self::{
    calls::Call,
    ports::{Asked, Worker, lun_map},
};
use super::{
    Down, Event, Place, SessionId, Simulation, Up,
    founding::CLUSTER,
    host,
    replication::{self, Engine, disk::Disk},
    unit::{Outcome, Unit},
};
use crate::random::Random;

/// Threads that hosts' sessions are spread over.
const WORKERS: usize = 2;
const TICK_MS: u64 = 10;
/// A leader that is silent for so long is left.
const SILENCE_MS: u64 = 1_000;
/// Clocks run faster or slower by so much at most: leases allow for two in a hundred.
const DRIFT_PPM_MAX: u64 = 10_000;

/// Posts views where the simulation takes them from.
#[derive(Default)]
struct Inbox(Mutex<VecDeque<Install>>);

impl Installer for Inbox {
    fn install(&self, install: Install) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push_back(install);
    }
}

struct Session {
    id: SessionId,
    incarnation: Option<u64>,
    heard: u64,
    renew_at: u64,
}

/// Between nodes.
#[derive(Debug, Clone)]
pub(super) enum PeerMessage {
    Command(Box<Forwarded>),
    Done { from: usize, process: u64, request: u64, outcome: Outcome },
}

/// A command on its way to its owner.
#[derive(Debug, Clone)]
pub(super) struct Forwarded {
    pub(super) from: usize,
    pub(super) process: u64,
    pub(super) request: u64,
    pub(super) volume: VolumeId,
    pub(super) epoch: Epoch,
    pub(super) command: PortCommand,
    pub(super) execute_by: u64,
}

/// A command as a port hands it on.
#[derive(Debug, Clone)]
pub(super) struct PortCommand {
    pub(super) nexus: Nexus,
    pub(super) cdb: Vec<u8>,
    pub(super) data: Vec<u8>,
    pub(super) unit_attention: Option<UnitAttention>,
    pub(super) read_only: bool,
}

pub(super) struct Node {
    pub(super) up: bool,
    /// Counts processes; names the present one.
    pub(super) process: u64,
    pub(super) paused_until: u64,
    /// Counts losses of power.
    pub(super) boot: u8,
    pub(super) disks: BTreeMap<usize, Disk>,
    pub(super) engines: BTreeMap<usize, Engine>,
    pub(super) changes: BTreeMap<u64, replication::changes::Asked>,
    offset_ms: u64,
    drift_ppm: i64,
    core: Option<Core>,
    pub(super) shared: Arc<Shared>,
    inbox: Arc<Inbox>,
    session: Option<Session>,
    installed: u64,
    /// Since when there has been no lease.
    leaseless_since: Option<u64>,
    /// Threads are slow until then.
    pub(super) slow_until: u64,
    confirmed: BTreeMap<u64, usize>,
    workers: Vec<Worker>,
    pub(super) units: BTreeMap<u64, Unit>,
    pub(super) next: u64,
    requests: BTreeMap<u64, Asked>,
    calls: BTreeMap<u64, Call>,
}

pub(super) fn join(node: usize, process: u64) -> records::NodeJoin {
    holdfast_controller::session::join_of(&hello(node, process, 0))
}

fn hello(node: usize, process: u64, boot: u8) -> Hello {
    let number = node + 1;
    Hello {
        name: format!("node-{number}"),
        boot_id: [vec![number as u8; 15], vec![boot]].concat(),
        process_id: u128::from(process).to_be_bytes().to_vec(),
        portals: vec![format!("127.0.0.{number}:3260")],
        interconnect: format!("127.0.0.{number}:3270"),
        pools: vec![records::Pool {
            name: "default".to_owned(),
            capacity_bytes: 2 << 30,
            free_bytes: 1 << 30,
            kind: 0,
        }],
        replicates: true,
        ..Default::default()
    }
}

impl Node {
    pub(super) fn new(random: &mut Random) -> Self {
        Self {
            up: false,
            process: 0,
            paused_until: 0,
            boot: 0,
            disks: BTreeMap::new(),
            engines: BTreeMap::new(),
            changes: BTreeMap::new(),
            offset_ms: 1 + random.below(1 << 40),
            drift_ppm: random.below(2 * DRIFT_PPM_MAX + 1) as i64 - DRIFT_PPM_MAX as i64,
            core: None,
            shared: Arc::default(),
            inbox: Arc::default(),
            session: None,
            installed: 0,
            leaseless_since: None,
            slow_until: 0,
            confirmed: BTreeMap::new(),
            workers: Vec::new(),
            units: BTreeMap::new(),
            next: 1,
            requests: BTreeMap::new(),
            calls: BTreeMap::new(),
        }
    }

    /// Its boot-time clock.
    pub(super) fn clock(&self, now: u64) -> u64 {
        let rate = (1_000_000 + self.drift_ppm) as u64;
        self.offset_ms + now * rate / 1_000_000
    }

    pub(super) fn leased(&self, now: u64) -> bool {
        self.up && self.shared.gate.open(self.clock(now))
    }

    pub(super) fn session_incarnation(&self, session: SessionId) -> Option<u64> {
        self.session.as_ref().filter(|s| s.id == session)?.incarnation
    }

    pub(super) fn session_joined(&mut self, session: SessionId, incarnation: u64) {
        if let Some(own) = self.session.as_mut().filter(|s| s.id == session) {
            own.incarnation = Some(incarnation);
        }
    }

    pub(super) fn ports(&self) -> impl Iterator<Item = (usize, &ports::Port)> {
        self.workers.iter().flat_map(|worker| worker.ports.iter().map(|(host, port)| (*host, port)))
    }

    pub(super) fn has_session(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.incarnation.is_some())
    }

    /// The connection to its leader is gone.
    pub(super) fn lose_session(&mut self) {
        self.session = None;
    }

    pub(super) fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

impl Simulation {
    pub(super) fn start_node(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        node.up = true;
        node.process += 1;
        node.shared = Arc::default();
        node.inbox = Arc::default();
        let key = SealingKey::from_text(&"5a".repeat(32));
        let Some(key) = key else { return self.violated("no key".into()) };
        let facts = Facts {
            cluster: ClusterId(CLUSTER),
            name: format!("node-{}", at + 1),
            hello: hello(at, node.process, node.boot),
            key,
        };
        let installer: Arc<dyn Installer> = Arc::<Inbox>::clone(&node.inbox);
        node.core = Some(Core::new(facts, Arc::clone(&node.shared), installer));
        node.installed = 0;
        node.leaseless_since = None;
        node.workers = (0..WORKERS).map(|_| Worker::default()).collect();
        let process = node.process;
        self.note(|| format!("node {at} starts as process {process}"));
        self.later(1, Event::NodeTick { node: at, process });
    }

    /// Everything but the disks is gone, with `power` also what only their caches had.
    pub(super) fn crash_node(&mut self, at: usize, power: bool) {
        self.crash_replicas(at, power);
        let node = &mut self.nodes[at];
        node.up = false;
        node.core = None;
        node.session = None;
        node.confirmed.clear();
        node.units.clear();
        node.calls.clear();
        node.changes.clear();
        node.paused_until = 0;
        let gone: Vec<_> = node.workers.drain(..).flat_map(|w| w.ports.into_iter()).collect();
        let asked = std::mem::take(&mut node.requests);
        for (host, port) in gone {
            self.judge.session_ended(host, at, port.session);
            self.later(1, Event::Answer { host, number: 0, answer: host::Answer::SessionGone { node: at } });
        }
        for asked in asked.into_values() {
            let (host, number) = (asked.host, asked.number);
            self.later(1, Event::Answer { host, number, answer: host::Answer::Unknown });
        }
        self.note(|| format!("node {at} {}", if power { "loses power" } else { "crashes" }));
    }

    pub(super) fn up(&mut self, at: usize, message: Up) {
        let Some(session) = self.nodes[at].session.as_ref().map(|s| s.id) else { return };
        let member = self.member_of(session);
        let event = Event::ToMember { member, session, message: Box::new(message) };
        self.send(Place::Node(at), Place::Member(member), event);
    }

    fn begin_session(&mut self, at: usize) {
        let member = match self.controllers.leader() {
            Some(leader) if self.random.below(3) > 0 => leader,
            _ => self.random.below(super::MEMBERS as u64) as usize,
        };
        let id = self.new_session(at, member);
        let now = self.now;
        let node = &mut self.nodes[at];
        let Some(core) = &mut node.core else { return };
        let hello = core.begin(super::node::hello(at, node.process, node.boot).pools);
        node.session = Some(Session { id, incarnation: None, heard: now, renew_at: now });
        self.up(at, Up::Session(hello));
    }

    pub(super) fn node_tick(&mut self, at: usize) {
        let process = self.nodes[at].process;
        self.later(TICK_MS, Event::NodeTick { node: at, process });
        let now = self.now;
        let node = &mut self.nodes[at];
        if node.session.as_ref().is_some_and(|s| now > s.heard + SILENCE_MS) {
            node.session = None;
        }
        if node.session.is_none() {
            self.begin_session(at);
        }
        let node = &mut self.nodes[at];
        let clock = node.clock(now);
        let mut renewal = None;
        if let (Some(core), Some(session)) = (&mut node.core, &mut node.session)
            && let Some(timing) = core.timing()
            && now >= session.renew_at
        {
            session.renew_at = now + u64::from(timing.renew_interval_ms);
            renewal = Some(core.renew(clock, 0));
        }
        let renews = renewal.is_some();
        if let Some(renewal) = renewal {
            self.up(at, Up::Session(renewal));
        }
        self.look_at_lease(at);
        self.retry_held(at);
        if renews {
            self.tell_removed_again(at);
        }
        self.drive_calls(at);
        self.tick_replicas(at);
        self.tick_units(at);
    }

    pub(super) fn at_node(&mut self, at: usize, session: SessionId, message: Down) {
        let now = self.now;
        let node = &mut self.nodes[at];
        let Some(own) = node.session.as_mut().filter(|s| s.id == session) else { return };
        own.heard = now;
        match message {
            Down::Elsewhere | Down::Ended => node.session = None,
            Down::Changed { id, refused } => self.change_answered(at, id, refused),
            Down::Answer { call, answer } => self.call_answered(at, session, call, answer),
            Down::Session(message) => {
                let Some(core) = &mut node.core else { return };
                let result = core.handle(message);
                if let Err(error) = result {
                    self.note(|| format!("node {at}: {error}"));
                    self.mark("a node ended its session");
                    self.nodes[at].session = None;
                }
                self.take_installs(at);
            }
        }
    }

    /// Replicas that it has removed, until its view knows.
    fn tell_removed_again(&mut self, at: usize) {
        let Some(view) = self.nodes[at].shared.view.load_full() else { return };
        for volume in view.volumes.values() {
            let number = super::unit::number_of(volume.id);
            let removing = volume.removing.iter().any(|member| member.node == view.me);
            if removing && !self.nodes[at].disks.contains_key(&number) {
                self.tell_removed(at, number);
            }
        }
    }

    fn take_installs(&mut self, at: usize) {
        loop {
            let next = {
                let inbox = &self.nodes[at].inbox;
                inbox.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
            };
            let Some(install) = next else { return };
            let install = Rc::new(install);
            self.follow(at, &install);
            self.follow_replicas(at, &install);
            let process = self.nodes[at].process;
            for worker in 0..WORKERS {
                self.nodes[at].workers[worker].queue.push_back(Rc::clone(&install));
                self.slow_down(at, worker);
                let wait = self.random.below(5);
                self.later(wait, Event::Worker { node: at, process, worker });
            }
        }
    }

    /// Some views come to a thread that is busy.
    fn slow_down(&mut self, at: usize, worker: usize) {
        let slow = self.now < self.nodes[at].slow_until;
        let often = if slow { 2 } else { 30 - 22 * u64::from(self.ways.slow_workers) };
        if self.random.below(often) == 0 {
            let longest = if slow || self.ways.slow_workers { 1_200 } else { 300 };
            let until = self.now + self.random.below(longest);
            let worker = &mut self.nodes[at].workers[worker];
            worker.busy_until = until.max(worker.busy_until);
        }
    }

    /// A worker applies its next view.
    pub(super) fn worker(&mut self, at: usize, number: usize) {
        let (now, process) = (self.now, self.nodes[at].process);
        let node = &mut self.nodes[at];
        let busy_until = node.workers[number].busy_until;
        if now < busy_until {
            self.mark("a thread was busy when a view came");
            return self.later(busy_until - now, Event::Worker { node: at, process, worker: number });
        }
        let Some(install) = node.workers[number].queue.pop_front() else { return };
        let view = &install.view;
        let worker = &mut node.workers[number];
        let mut unwelcome = Vec::new();
        let mut lost = Vec::new();
        for (host, port) in &mut worker.ports {
            if view.host_of(&host::initiator(*host)).is_none_or(|known| known.name != port.host) {
                unwelcome.push(*host);
                continue;
            }
            port.nexus.install_map(lun_map(view, &port.host));
            if install.events_lost {
                port.nexus.raise_everywhere(asc::POWER_ON_OR_RESET);
                lost.push((*host, port.session));
            }
            for event in &install.unit_attentions {
                let own = *port.nexus.nexus();
                let meant = event.only.is_none_or(|only| only == own)
                    && event.except != Some(own)
                    && event.host.as_ref().is_none_or(|host| *host == port.host);
                match &event.volume {
                    Some(volume) if meant => port.nexus.raise(volume, event.additional),
                    None if meant => port.nexus.raise_everywhere(event.additional),
                    _ => {}
                }
            }
        }
        worker.view = Some(Arc::clone(view));
        let index = view.index;
        let done = node.confirmed.entry(index).or_default();
        *done += 1;
        let all = *done == WORKERS;
        for (host, session) in lost {
            self.judge.events_lost(host, at, session);
        }
        for host in unwelcome {
            self.end_port(at, host);
        }
        if all {
            let node = &mut self.nodes[at];
            node.confirmed.remove(&index);
            if node.core.as_mut().is_some_and(|core| core.installed(index)) {
                node.installed = index;
                let applied =
                    holdfast_proto::node::from_node::Message::Applied(holdfast_proto::node::Applied {
                        applied_index: index,
                    });
                self.up(at, Up::Session(holdfast_proto::node::FromNode { message: Some(applied) }));
            }
            self.drive_calls(at);
        }
    }
}
