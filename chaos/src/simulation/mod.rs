//! A cluster in one thread, from one seed: the controllers' state machine, lease table and plans, the data nodes' sessions, device
//! servers, ports and replication (all of them the product's own code), hosts with a path through every node, and between them a network,
//! clocks and processes that fail as the seed has it.
//!
//! | Looking for | Module |
//! |---|---|
//! | how it begins | [`founding`] |
//! | log, elections, leases, barriers | [`controllers`] |
//! | a data node: its session, its views, its hosts' sessions, what it asks of the leader | [`node`] |
//! | a logical unit at its owner | [`unit`] |
//! | replicas, their disks and links | [`replication`] |
//! | what hosts do | [`host`] |
//! | what goes wrong | [`faults`] |
//! | what must not happen | [`judge`] |
//! | what a long run must have met | [`coverage`] |
//!
//! What stands in for the product: a log that elections cut off at a random entry (for openraft), messages without bytes (for gRPC, iSCSI
//! and the frames of replication, which its own simulation encodes).
//!
//! Invariants: nothing but the seed decides what happens; first trouble, then healing, then every host must get on within
//! [`HEALED_MS_MAX`].

mod controllers;
pub mod coverage;
mod faults;
mod founding;
mod host;
mod judge;
mod node;
mod replication;
mod unit;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use holdfast_proto::{
    node::{FromNode, ToNode},
    state as records,
};

use crate::random::Random;

/// Data nodes, controllers, hosts and volumes of a cluster.
const NODES: usize = 3;
const MEMBERS: usize = 3;
const HOSTS: usize = 3;
const VOLUMES: usize = 2;
/// How long there is trouble, in milliseconds.
const TROUBLE_MS: u64 = 12_000;
/// How long every host may take to get on once nothing is broken, in milliseconds.
pub const HEALED_MS_MAX: u64 = 30_000;
/// After so long without an entry nothing more is to be expected, in milliseconds.
const QUIET_MS: u64 = 3_000;
/// Lines of the trace that are told.
const TOLD: usize = 60;

/// What a run has done.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Commands of hosts that were answered.
    pub answered: u64,
    /// PERSISTENT RESERVE OUTs answered GOOD.
    pub changes: u64,
    /// PERSISTENT RESERVE OUTs of unknown outcome.
    pub unknown: u64,
    /// Unit Attentions seen by hosts.
    pub attentions: u64,
    /// Faults by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// Rare branches that were taken.
    pub marks: BTreeSet<&'static str>,
    /// Of all that happened, in order.
    pub trace_hash: u64,
}

/// Something that must not happen has happened.
#[derive(Debug, Clone)]
pub struct Violation {
    /// What was run.
    pub plan: Plan,
    /// How much trouble there had been.
    pub troubles: u32,
    /// When, in simulated milliseconds.
    pub at_ms: u64,
    /// What.
    pub what: String,
    /// The last lines before it.
    pub trace: Vec<String>,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for line in &self.trace {
            writeln!(f, "  {line}")?;
        }
        let Plan { seed, without, .. } = &self.plan;
        writeln!(f, "seed {seed} at {} ms: {}", self.at_ms, self.what)?;
        let left = self.troubles.saturating_sub(without.len() as u32);
        writeln!(f, "troubles before it: {left}, left out: {}", without.len())?;
        write!(
            f,
            "replay: cargo run --release -p holdfast-chaos --bin holdfast-sim -- --first {seed} --seeds 1 --trace"
        )?;
        if without.is_empty() {
            return Ok(());
        }
        let numbers: Vec<String> = without.iter().map(u32::to_string).collect();
        write!(f, " --without {}", numbers.join(","))
    }
}

/// Who sends or gets a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Member(usize),
    Node(usize),
}

/// Of a session between a node and a member.
type SessionId = u64;

#[derive(Debug)]
enum Event {
    /// A member looks at its leases.
    MemberTick(usize),
    /// A quorum was asked whether the member leads.
    Confirmed {
        member: usize,
        term: u64,
        then: controllers::Then,
    },
    /// The lease is granted, after the leader was sure that it led.
    Grant {
        member: usize,
        node: usize,
        session: SessionId,
        renew: holdfast_proto::node::Renew,
    },
    /// An entry is on a quorum.
    Committed(u64),
    Elected {
        member: usize,
        term: u64,
    },
    /// A member notices that another one leads.
    Deposed {
        member: usize,
        term: u64,
    },
    ToMember {
        member: usize,
        session: SessionId,
        message: Box<Up>,
    },
    ToNode {
        node: usize,
        session: SessionId,
        message: Box<Down>,
    },
    NodeTick {
        node: usize,
        process: u64,
    },
    /// A worker gets to its next view.
    Worker {
        node: usize,
        process: u64,
        worker: usize,
    },
    /// A disk has done something for a replica.
    Disk {
        node: usize,
        process: u64,
        volume: usize,
        engine: u64,
        id: u64,
    },
    /// The replica hears of it.
    DiskTold {
        node: usize,
        process: u64,
        volume: usize,
        engine: u64,
        id: u64,
    },
    BlocksRead {
        node: usize,
        process: u64,
        volume: usize,
        read: replication::pump::ReadOf,
    },
    Frame {
        link: u64,
        way: replication::links::Way,
    },
    LinkLost {
        link: u64,
        owner_side: bool,
    },
    Io {
        node: usize,
        process: u64,
        unit: u64,
        io: unit::Io,
    },
    Peer {
        to: usize,
        message: Box<node::PeerMessage>,
    },
    /// A forwarded command has had its time.
    ForwardDue {
        node: usize,
        process: u64,
        request: u64,
        attempt: u64,
    },
    HostStep(usize),
    ToPort {
        host: usize,
        node: usize,
        command: Box<host::Sent>,
    },
    Answer {
        host: usize,
        number: u64,
        answer: host::Answer,
    },
    Fault,
    Heal(faults::Healing),
}

/// From a node to a member, within a session.
#[derive(Debug, Clone)]
enum Up {
    Session(FromNode),
    Call {
        call: u64,
        request: controllers::Request,
    },
    /// An owner asks for a change of its volume's configuration.
    Change {
        id: u64,
        change: Box<records::ChangeConfiguration>,
    },
}

/// From a member to a node, within a session.
#[derive(Debug, Clone)]
enum Down {
    Session(ToNode),
    /// This member does not lead.
    Elsewhere,
    Ended,
    Answer {
        call: u64,
        answer: controllers::Answer,
    },
    /// What became of a change: refused, or made, or not tried.
    Changed {
        id: u64,
        refused: bool,
    },
}

/// How a seed differs from others beside its troubles: what is rare in one is frequent in another.
#[derive(Debug, Clone, Copy)]
struct Ways {
    /// Between two commands of a host, at most.
    host_pause_ms: u64,
    /// Blocks that hosts use.
    lbas: u64,
    slow_disks: bool,
    slow_links: bool,
    slow_copies: bool,
    /// Between two faults, at most.
    pause_ms: u64,
    /// Threads of a node take their time to apply a view.
    slow_workers: bool,
    /// Hosts flush often, and the power goes everywhere.
    flushes: bool,
    /// A port without a lease holds commands and sessions for so long.
    hold_ms: u64,
    /// A command is carried out within this time, or not at all.
    age_ms: u64,
    /// A host gives a command up after so long.
    patience_ms: u64,
}

struct Simulation {
    now: u64,
    order: u64,
    queue: BTreeMap<(u64, u64), Event>,
    random: Random,
    controllers: controllers::Controllers,
    nodes: Vec<node::Node>,
    hosts: Vec<host::Host>,
    /// Between owners and replicas, by number.
    links: BTreeMap<u64, replication::links::Link>,
    judge: judge::Judge,
    /// Ways that are cut, and when the last message on each way arrives: messages of one way keep their order.
    cut: BTreeSet<(Place, Place)>,
    last: BTreeMap<(Place, Place), u64>,
    /// Sessions of which a message was lost: nothing more comes through.
    broken: BTreeSet<SessionId>,
    next_session: SessionId,
    trouble: bool,
    ways: Ways,
    /// Draws troubles: what is left out changes none of the others.
    trouble_random: Random,
    troubles: u32,
    without: BTreeSet<u32>,
    trace: Option<Vec<String>>,
    lines: Vec<String>,
    hash: DefaultHasher,
    report: Report,
    violation: Option<String>,
}

/// What is run.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// Where all of it comes from.
    pub seed: u64,
    /// Tell all that happens.
    pub trace: bool,
    /// Troubles that are left out, by number.
    pub without: BTreeSet<u32>,
}

impl Plan {
    /// All that the seed has.
    pub fn of(seed: u64) -> Self {
        Self { seed, ..Self::default() }
    }
}

/// Runs a cluster.
///
/// # Errors
/// What must not have happened.
pub fn run(plan: &Plan) -> Result<Report, Box<Violation>> {
    let mut simulation = Simulation::new(plan);
    let result = simulation.whole();
    if let Some(lines) = &simulation.trace {
        for line in lines {
            println!("{line}");
        }
    }
    simulation.report.trace_hash = simulation.hash.finish();
    match result {
        Ok(()) => Ok(simulation.report),
        Err(what) => Err(Box::new(Violation {
            plan: plan.clone(),
            troubles: simulation.troubles,
            at_ms: simulation.now,
            what,
            trace: simulation.lines,
        })),
    }
}

/// Leaves out what trouble it can of a plan that shows a violation, as long as it shows one.
pub fn shrink(violation: Box<Violation>) -> Box<Violation> {
    let mut least = violation;
    for number in (0..least.troubles).rev() {
        let mut plan = least.plan.clone();
        if plan.without.insert(number)
            && let Err(found) = run(&plan)
        {
            least = found;
        }
    }
    least
}

impl Simulation {
    fn new(plan: &Plan) -> Self {
        let mut random = Random::new(plan.seed);
        let trouble_random = random.fork();
        let ways = Ways {
            host_pause_ms: *random.pick(&[3, 12, 40]),
            lbas: *random.pick(&[1, 2, host::LBAS]),
            slow_disks: random.below(3) == 0,
            slow_links: random.below(3) == 0,
            slow_copies: random.below(3) == 0,
            pause_ms: *random.pick(&[1_000, 2_500]),
            slow_workers: random.below(3) == 0,
            flushes: random.below(4) == 0,
            hold_ms: *random.pick(&[800, 2_500, 10_000]),
            age_ms: *random.pick(&[1_500, 5_000]),
            patience_ms: *random.pick(&[6_000, 9_000]),
        };
        let controllers = controllers::Controllers::new();
        let nodes = (0..NODES).map(|_| node::Node::new(&mut random)).collect();
        Self {
            now: 0,
            order: 0,
            queue: BTreeMap::new(),
            controllers,
            nodes,
            hosts: (0..HOSTS).map(|_| host::Host::new()).collect(),
            links: BTreeMap::new(),
            judge: judge::Judge::default(),
            cut: BTreeSet::new(),
            last: BTreeMap::new(),
            broken: BTreeSet::new(),
            next_session: 1,
            trouble: true,
            trace: plan.trace.then(Vec::new),
            trouble_random,
            ways,
            troubles: 0,
            without: plan.without.clone(),
            lines: Vec::new(),
            hash: DefaultHasher::new(),
            report: Report::default(),
            violation: None,
            random,
        }
    }

    fn whole(&mut self) -> Result<(), String> {
        self.found();
        for node in 0..NODES {
            self.start_node(node);
        }
        for host in 0..HOSTS {
            self.later(1_000 + 10 * host as u64, Event::HostStep(host));
        }
        self.later(1_500, Event::Fault);
        self.until(TROUBLE_MS, |_| false)?;
        self.heal_all();
        self.all_get_on()?;
        // What the healing itself has brought about is told too, once nothing more comes.
        let deadline = self.now + HEALED_MS_MAX;
        self.until(deadline, |simulation| simulation.now > simulation.controllers.committed_at + QUIET_MS)?;
        self.hosts.iter_mut().for_each(host::Host::ask_all);
        self.all_get_on()?;
        let deadline = self.now + HEALED_MS_MAX;
        self.until(deadline, |simulation| simulation.replicas_differ().is_none())?;
        if let Some(why) = self.replicas_differ() {
            return Err(why);
        }
        self.judge.finish()
    }

    fn all_get_on(&mut self) -> Result<(), String> {
        let deadline = self.now + HEALED_MS_MAX;
        self.until(deadline, |simulation| simulation.hosts.iter().all(host::Host::is_content))?;
        match self.hosts.iter().position(|host| !host.is_content()) {
            Some(host) => Err(format!("host {host} does not get on: {}", self.hosts[host].wants())),
            None => Ok(()),
        }
    }

    fn until(&mut self, deadline: u64, done: impl Fn(&Self) -> bool) -> Result<(), String> {
        while !done(self) {
            let Some(((at, order), event)) = self.queue.pop_first() else {
                return Err("nothing happens any more".into());
            };
            if at > deadline {
                self.queue.insert((at, order), event);
                self.now = deadline;
                return Ok(());
            }
            self.now = at;
            match self.paused_until(&event) {
                // Under its own number: what came first is first when the node goes on.
                Some(until) => {
                    self.queue.insert((until, order), event);
                }
                None => self.happen(event),
            }
            if let Some(what) = self.violation.take() {
                return Err(what);
            }
        }
        Ok(())
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::MemberTick(member) => self.member_tick(member),
            Event::Confirmed { member, term, then } => self.confirmed(member, term, then),
            Event::Grant { member, node, session, renew } => self.grant(member, node, session, &renew),
            Event::Committed(ticket) => self.committed(ticket),
            Event::Elected { member, term } => self.elected(member, term),
            Event::Deposed { member, term } => self.deposed(member, term),
            Event::ToMember { member, session, message } => {
                if self.arrives(Place::Node(self.node_of(session)), Place::Member(member), session) {
                    self.at_member(member, session, *message);
                }
            }
            Event::ToNode { node, session, message } => {
                let from = Place::Member(self.member_of(session));
                if self.arrives(from, Place::Node(node), session) {
                    self.at_node(node, session, *message);
                }
            }
            Event::NodeTick { node, process } if self.lives(node, process) => self.node_tick(node),
            Event::Worker { node, process, worker } if self.lives(node, process) => self.worker(node, worker),
            Event::Disk { node, process, volume, engine, id } if self.lives(node, process) => {
                self.disk_ends(node, volume, engine, id);
            }
            Event::DiskTold { node, process, volume, engine, id } if self.lives(node, process) => {
                self.disk_told(node, volume, engine, id);
            }
            Event::BlocksRead { node, process, volume, read } if self.lives(node, process) => {
                self.blocks_read(node, volume, read);
            }
            Event::Frame { link, way } => self.frame(link, way),
            Event::LinkLost { link, owner_side } => self.link_lost(link, owner_side),
            Event::Io { node, process, unit, io } if self.lives(node, process) => {
                self.perform(node, unit, io)
            }
            Event::Peer { to, message } => self.at_peer(to, *message),
            Event::ForwardDue { node, process, request, attempt } if self.lives(node, process) => {
                self.forward_due(node, request, attempt)
            }
            Event::NodeTick { .. }
            | Event::Worker { .. }
            | Event::Disk { .. }
            | Event::DiskTold { .. }
            | Event::BlocksRead { .. }
            | Event::Io { .. }
            | Event::ForwardDue { .. } => {}
            Event::HostStep(host) => self.host_step(host),
            Event::ToPort { host, node, command } => self.at_port(host, node, *command),
            Event::Answer { host, number, answer } => self.answered(host, number, answer),
            Event::Fault => self.fault(),
            Event::Heal(healing) => self.heal(healing),
        }
    }

    /// Until when the one whom an event concerns is stopped.
    fn paused_until(&self, event: &Event) -> Option<u64> {
        let node = match event {
            Event::ToNode { node, .. }
            | Event::NodeTick { node, .. }
            | Event::Worker { node, .. }
            | Event::DiskTold { node, .. }
            | Event::BlocksRead { node, .. }
            | Event::Io { node, .. }
            | Event::ForwardDue { node, .. }
            | Event::ToPort { node, .. }
            | Event::Peer { to: node, .. } => *node,
            Event::Frame { link, way } => {
                self.links.get(link)?.end(matches!(way, replication::links::Way::ToOwner(_)))
            }
            Event::LinkLost { link, owner_side } => self.links.get(link)?.end(*owner_side),
            // What was submitted to the disks goes on; its end is noticed later.
            _ => return None,
        };
        Some(self.nodes[node].paused_until).filter(|until| *until > self.now)
    }

    fn later(&mut self, ms: u64, event: Event) {
        self.order += 1;
        self.queue.insert((self.now + ms, self.order), event);
    }

    /// Sends on a way that keeps the order of messages. What is lost breaks the session.
    fn send(&mut self, from: Place, to: Place, event: Event) {
        let spread = if self.random.below(20) == 0 { 60 } else { 4 };
        let at =
            (self.now + 1 + self.random.below(spread)).max(self.last.get(&(from, to)).copied().unwrap_or(0));
        self.last.insert((from, to), at);
        let wait = at - self.now;
        self.later(wait, event);
    }

    fn is_cut(&self, from: Place, to: Place) -> bool {
        self.cut.contains(&(from, to))
    }

    fn arrives(&mut self, from: Place, to: Place, session: SessionId) -> bool {
        if self.is_cut(from, to) {
            self.broken.insert(session);
        }
        !self.broken.contains(&session)
    }

    fn lives(&self, node: usize, process: u64) -> bool {
        self.nodes[node].process == process && self.nodes[node].up
    }

    fn violated(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    fn note(&mut self, line: impl FnOnce() -> String) {
        let mut text = String::new();
        let _ = write!(text, "{:>6} {}", self.now, line());
        text.hash(&mut self.hash);
        if let Some(trace) = &mut self.trace {
            trace.push(text.clone());
        }
        if self.lines.len() >= 2 * TOLD {
            self.lines.drain(..TOLD);
        }
        self.lines.push(text);
    }

    fn mark(&mut self, mark: &'static str) {
        self.report.marks.insert(mark);
    }
}
