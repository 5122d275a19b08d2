//! The ports of a node: hosts' sessions, and their commands until they are answered.
//!
//! Invariants (the shell's, as in the product): nothing is submitted without a lease, and what cannot be executed now is held, in vain
//! for a while and then answered BUSY; a command is submitted again only after a definite "not executed"; the owner is the one of the
//! view that the session's worker has applied; what was done is told under the lease only, what the cluster agreed on once it is back.

use std::{
    collections::{BTreeMap, VecDeque},
    rc::Rc,
    sync::Arc,
};

use holdfast_datanode::{
    agent::Install,
    view::{ClusterView, VolumeId},
};
use holdfast_scsi::{
    cdb,
    device_server::Completion,
    lun::Lun,
    nexus::{Nexus, RelativePort},
    port::{LunMap, MappedUnit, NexusPort, Route},
    status::Status,
    transport_id::TransportId,
};

use super::{Forwarded, Node, PeerMessage, PortCommand, WORKERS};
use crate::simulation::{
    Event, Place, Simulation,
    host::{self, Sent},
    unit::{Asker, Outcome},
};

/// A forwarded command's answer is waited for so much longer than it may take to be carried out.
const FORWARD_SLACK_MS: u64 = 100;
/// At least.
const FORWARD_MS_MIN: u64 = 300;

/// An I_T nexus at its port.
pub(in crate::simulation) struct Port {
    pub(in crate::simulation) nexus: NexusPort<VolumeId>,
    pub(super) host: String,
    /// Of the login.
    pub(in crate::simulation) session: u64,
}

#[derive(Default)]
pub(super) struct Worker {
    pub(super) queue: VecDeque<Rc<Install>>,
    pub(super) view: Option<Arc<ClusterView>>,
    pub(super) ports: BTreeMap<usize, Port>,
    /// It does something else until then.
    pub(super) busy_until: u64,
}

/// A command that a host waits for.
pub(super) struct Asked {
    pub(super) host: usize,
    pub(super) number: u64,
    session: u64,
    command: host::Command,
    /// The Unit Attention that it took along.
    unit_attention: Option<u64>,
    /// Counts how often it was submitted.
    attempt: u64,
    held: bool,
    /// By the node's clock: until when it is held.
    hold_until: u64,
    /// Later it is not carried out any more.
    execute_by: u64,
    /// How it ended while there was no lease.
    settled: Option<Outcome>,
}

impl Simulation {
    /// Without a lease for long a node drops its hosts' sessions.
    pub(super) fn look_at_lease(&mut self, at: usize) {
        let now = self.now;
        let node = &mut self.nodes[at];
        if node.leased(now) {
            node.leaseless_since = None;
            return;
        }
        let since = *node.leaseless_since.get_or_insert(now);
        if now < since + self.ways.hold_ms {
            return;
        }
        let hosts: Vec<usize> = node.ports().map(|(host, _)| host).collect();
        if !hosts.is_empty() {
            self.mark("a node dropped its sessions with its lease");
        }
        for host in hosts {
            self.end_port(at, host);
        }
    }

    /// The session of a host ends.
    pub(in crate::simulation) fn end_port(&mut self, at: usize, host: usize) {
        let node = &mut self.nodes[at];
        let Some(port) = node.workers.iter_mut().find_map(|worker| worker.ports.remove(&host)) else {
            return;
        };
        let nexus = *port.nexus.nexus();
        let gone: Vec<u64> =
            node.requests.iter().filter(|(_, a)| a.session == port.session).map(|(id, _)| *id).collect();
        let asked: Vec<Asked> = gone.iter().filter_map(|id| node.requests.remove(id)).collect();
        self.judge.session_ended(host, at, port.session);
        self.note(|| format!("the session of host {host} with node {at} ends"));
        for asked in asked {
            let number = asked.number;
            self.later(1, Event::Answer { host, number, answer: host::Answer::Unknown });
        }
        self.later(1, Event::Answer { host, number: 0, answer: host::Answer::SessionGone { node: at } });
        let units: Vec<u64> = self.nodes[at].units.keys().copied().collect();
        for unit in units {
            self.with_unit(at, unit, |unit, now| unit.server.handle_nexus_loss(now, &nexus));
        }
    }

    pub(in crate::simulation) fn at_port(&mut self, host: usize, at: usize, sent: Sent) {
        let number = sent.number;
        let now = self.now;
        if !self.nodes[at].up {
            // It went down while the command was on its way: nobody has seen it.
            return self
                .later(1, Event::Answer { host, number, answer: host::Answer::SessionGone { node: at } });
        }
        let Some(command) = sent.command else {
            return self.log_in(host, at, number);
        };
        let (hold_ms, age_ms) = (self.ways.hold_ms, self.ways.age_ms);
        let node = &mut self.nodes[at];
        if node.port(host, sent.session).is_none() {
            let answer = host::Answer::SessionGone { node: at };
            return self.later(1, Event::Answer { host, number, answer });
        }
        let clock = node.clock(now);
        let asked = Asked {
            host,
            number,
            session: sent.session,
            command,
            unit_attention: None,
            attempt: 0,
            held: true,
            hold_until: clock + hold_ms,
            execute_by: now + age_ms,
            settled: None,
        };
        let request = node.fresh();
        node.requests.insert(request, asked);
        self.submit_request(at, request);
    }

    /// Submits what is held. It stays held where it cannot be executed now.
    fn submit_request(&mut self, at: usize, request: u64) {
        let now = self.now;
        let node = &mut self.nodes[at];
        if !node.leased(now) {
            return self.mark("a port held a command");
        }
        let process = node.process;
        let Some(asked) = node.requests.get_mut(&request) else { return };
        if let Some(outcome) = asked.settled.take() {
            return self.answer_host(at, request, outcome);
        }
        let (host, session) = (asked.host, asked.session);
        let Some(lun) = Lun::from_number(asked.command.lun) else { return };
        let worker = &mut node.workers[(host + at) % WORKERS];
        let (Some(port), Some(view)) = (worker.ports.get_mut(&host), &worker.view) else { return };
        if port.session != session {
            return;
        }
        let nexus = *port.nexus.nexus();
        let (volume, read_only, unit_attention) = match port.nexus.classify(&lun, &asked.command.cdb) {
            Route::Answer(completion) => {
                return self.answer_host(at, request, Outcome::of(&completion, &[]));
            }
            Route::Forward { volume, read_only, unit_attention } => (volume, read_only, unit_attention),
        };
        // The worker's own view: others may be further.
        let Some(record) = view.volumes.get(&volume) else { return };
        let (epoch, owner) = (record.config.epoch(), view.owner_of(record).map(|node| node.number));
        let local = view.owns(record);
        let remote = owner.filter(|number| *number != view.me).map(|number| usize::from(number.get()) - 1);
        if !local && remote.is_none() {
            return self.mark("a port held a command");
        }
        asked.held = false;
        asked.attempt += 1;
        asked.unit_attention = unit_attention.map(|attention| attention.id);
        let (attempt, execute_by) = (asked.attempt, asked.execute_by);
        let (cdb, data) = (asked.command.cdb.clone(), asked.command.data.clone());
        let command = PortCommand { nexus, cdb, data, unit_attention, read_only };
        let asker = Asker { node: at, process, request };
        let Some(to) = remote else {
            let by = self.nodes[at].clock(now) + execute_by.saturating_sub(now);
            return self.submit(at, volume, epoch, asker, command, by);
        };
        self.mark("a command was forwarded");
        let wait = execute_by.saturating_sub(now).max(FORWARD_MS_MIN) + FORWARD_SLACK_MS;
        self.later(wait, Event::ForwardDue { node: at, process, request, attempt });
        let forwarded = Forwarded { from: at, process, request, volume, epoch, command, execute_by };
        let message = Box::new(PeerMessage::Command(Box::new(forwarded)));
        self.send(Place::Node(at), Place::Node(to), Event::Peer { to, message });
    }

    /// Puts a request among those that are held.
    fn hold(&mut self, at: usize, request: u64) {
        let node = &mut self.nodes[at];
        let Some(asked) = node.requests.get_mut(&request) else { return };
        asked.held = true;
        let carried = asked.unit_attention.take_if(|_| asked.settled.is_none());
        let (host, session, lun) = (asked.host, asked.session, Lun::from_number(asked.command.lun));
        // It has been with an owner, in vain.
        if let (Some(id), Some(lun)) = (carried, lun)
            && let Some(port) = node.port(host, session)
        {
            port.nexus.not_told(&lun, id);
        }
    }

    pub(super) fn retry_held(&mut self, at: usize) {
        let clock = self.nodes[at].clock(self.now);
        let held = self.nodes[at].requests.iter().filter(|(_, asked)| asked.held);
        let held: Vec<(u64, bool)> =
            held.map(|(request, asked)| (*request, asked.hold_until <= clock)).collect();
        for (request, overdue) in held {
            if !overdue {
                self.submit_request(at, request);
                continue;
            }
            let settled = self.nodes[at].requests.get(&request).is_some_and(|asked| asked.settled.is_some());
            let outcome = match settled {
                // Not to be sent again, and not to be told any more.
                true => Outcome::Unknown,
                false => Outcome::of(&Completion::status(Status::Busy), &[]),
            };
            self.answer_host(at, request, outcome);
        }
    }

    fn log_in(&mut self, host: usize, at: usize, number: u64) {
        self.end_port(at, host);
        let refused = host::Answer::SessionGone { node: at };
        let leased = self.nodes[at].leased(self.now);
        let node = &mut self.nodes[at];
        let session = node.fresh();
        // The worker's own view: what it has not applied yet, it will raise for this session too.
        let worker = &mut node.workers[(host + at) % WORKERS];
        let name = host::initiator(host);
        let id = TransportId::iscsi(&name, [host as u8 + 1; 6]);
        let (Some(view), Ok(id), true) = (&worker.view, id, leased) else {
            return self.later(1, Event::Answer { host, number, answer: refused });
        };
        let found = view.host_of(&name).map(|known| known.name.clone());
        let port = view.my_node().and_then(|own| own.ports.first()).map(|port| port.relative_port);
        let (Some(host_name), Some(RelativePort(port))) = (found, port) else {
            return self.later(1, Event::Answer { host, number, answer: refused });
        };
        let map = lun_map(view, &host_name);
        let nexus = NexusPort::new(Nexus::new(id, RelativePort(port)), map, session << 32);
        worker.ports.insert(host, Port { nexus, host: host_name, session });
        self.judge.session_began(host, at, session);
        self.note(|| format!("host {host} has logged in to node {at}"));
        self.later(1, Event::Answer { host, number, answer: host::Answer::LoggedIn { node: at, session } });
    }

    /// The owner's word on a request of a host here.
    pub(in crate::simulation) fn request_done(&mut self, at: usize, request: u64, outcome: Outcome) {
        let leased = self.nodes[at].leased(self.now);
        let Some(asked) = self.nodes[at].requests.get_mut(&request).filter(|asked| !asked.held) else {
            return;
        };
        let agreed = cdb::is_agreed(&asked.command.cdb);
        match outcome {
            Outcome::NotExecuted => self.hold(at, request),
            Outcome::Reply(_) if agreed && !leased => {
                asked.settled = Some(outcome);
                self.mark("an answer waited for the lease of its port");
                self.hold(at, request);
            }
            Outcome::Reply(_) if !leased => self.answer_host(at, request, Outcome::Unknown),
            other => self.answer_host(at, request, other),
        }
    }

    fn answer_host(&mut self, at: usize, request: u64, outcome: Outcome) {
        let node = &mut self.nodes[at];
        let Some(asked) = node.requests.remove(&request) else { return };
        if let (Some(port), Some(lun)) =
            (node.port(asked.host, asked.session), Lun::from_number(asked.command.lun))
        {
            match (&outcome, asked.unit_attention) {
                (Outcome::Reply(reply), _) => {
                    if let Some(id) = reply.unit_attention_reported {
                        port.nexus.reported(&lun, id);
                    }
                }
                (_, Some(id)) => port.nexus.not_told(&lun, id),
                (_, None) => {}
            }
        }
        let answer = match outcome {
            Outcome::Reply(reply) => host::Answer::Reply(Box::new(reply)),
            Outcome::NotExecuted | Outcome::Unknown | Outcome::Aborted => host::Answer::Unknown,
        };
        let (host, number) = (asked.host, asked.number);
        let wait = self.random.below(2);
        self.later(wait, Event::Answer { host, number, answer });
    }

    pub(in crate::simulation) fn forward_due(&mut self, at: usize, request: u64, attempt: u64) {
        let asked = self.nodes[at].requests.get(&request);
        if asked.is_some_and(|asked| !asked.held && asked.attempt == attempt) {
            self.mark("a forwarded command was not answered in time");
            self.request_done(at, request, Outcome::Unknown);
        }
    }

    pub(in crate::simulation) fn at_peer(&mut self, to: usize, message: PeerMessage) {
        let from = match &message {
            PeerMessage::Command(forwarded) => forwarded.from,
            PeerMessage::Done { from, .. } => *from,
        };
        if !self.nodes[to].up || self.is_cut(Place::Node(from), Place::Node(to)) {
            return;
        }
        match message {
            PeerMessage::Done { process, request, outcome, .. } => {
                if self.lives(to, process) {
                    self.request_done(to, request, outcome);
                }
            }
            PeerMessage::Command(f) => {
                let asker = Asker { node: f.from, process: f.process, request: f.request };
                let left = f.execute_by.saturating_sub(self.now);
                let execute_by = self.nodes[to].clock(self.now) + left;
                self.submit(to, f.volume, f.epoch, asker, f.command, execute_by);
            }
        }
    }
}

impl Node {
    fn port(&mut self, host: usize, session: u64) -> Option<&mut Port> {
        let port = self.workers.iter_mut().find_map(|worker| worker.ports.get_mut(&host));
        port.filter(|port| port.session == session)
    }
}

pub(super) fn lun_map(view: &ClusterView, host: &str) -> LunMap<VolumeId> {
    let mapped = |m: &holdfast_datanode::view::MappingView| {
        (m.lun, MappedUnit { volume: m.volume, read_only: m.read_only })
    };
    view.mappings_of(host).iter().map(mapped).collect()
}
