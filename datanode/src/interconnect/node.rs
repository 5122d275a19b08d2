//! The interconnect of one worker: connections to owners, connections from other ports.
//!
//! Invariants: a connection to a node is made when something is to be sent to it, and after a failure not before a
//! pause that grows to a bound; what waits for a connection that fails was definitely not executed; the number of an
//! accepted connection is its token and never used again.

use std::{
    any::Any,
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    net::TcpListener as StdListener,
    sync::Arc,
};

use holdfast_pki::{PeerIdentity, Role, server_name};
use holdfast_replica::{
    forward::{Client, Link as Ends, Neighbour, Server, ServerEvent},
    ids::{ClusterId, NodeNumber},
};
use holdfast_scsi::{nexus::Nexus, time::Instant};
use mio::{Interest, Registry, Token, net::TcpListener};

use super::{
    Tls, convert, crc32c,
    replication::{Channel, Outward, PROTOCOL},
    tls::{Link, LinkError, peer, take_plaintext},
};
use crate::{
    data_plane::{
        Seat,
        mailbox::Mailboxes,
        router::{
            Bytes, CommandFor, ForwardToken, INTERCONNECT_TOKENS_FROM, Interconnect, InterconnectEvent,
            LuFunctionOutcome, Origin, Outcome, TaskManagementFor,
        },
    },
    view::Shared,
    volume::link::this_thread_is_worker,
};

/// Pause after the first failure to connect, in milliseconds; doubles with each.
pub(super) const PAUSE_MS_MIN: u64 = 50;
pub(super) const PAUSE_MS_MAX: u64 = 1_000;
/// A peer that has not shown who it is after this time is let go, in milliseconds.
const HANDSHAKE_MS_MAX: u64 = 5_000;
/// Connections accepted on one worker.
const ACCEPTED_MAX: usize = 1024;
/// Sockets accepted per turn.
const ACCEPTS_PER_TURN_MAX: usize = 64;

const LISTENER: usize = INTERCONNECT_TOKENS_FROM;

/// An accepted socket for another worker.
struct Accepted(std::net::TcpStream);

/// The way to one owner.
struct Peer {
    machine: Client<Bytes>,
    link: Option<(usize, Link)>,
    /// Not before this moment is the next attempt made.
    not_before: Instant,
    failures: u32,
}

/// A connection from another node.
struct Guest {
    link: Link,
    since: Instant,
    machine: Option<Machine>,
}

/// What a guest speaks.
enum Machine {
    Commands(Box<Server<Bytes>>),
    Replicas(Box<Channel>),
}

impl Guest {
    fn commands(&mut self) -> Option<&mut Server<Bytes>> {
        match &mut self.machine {
            Some(Machine::Commands(server)) => Some(server),
            _ => None,
        }
    }
}

/// See the module.
pub(super) struct Node {
    worker: usize,
    registry: Registry,
    mailboxes: Mailboxes,
    tls: Tls,
    shared: Arc<Shared>,
    listener: Option<TcpListener>,
    /// Worker that gets the next accepted socket.
    next_worker: usize,
    next_token: usize,
    peers: BTreeMap<NodeNumber, Peer>,
    peer_of_token: HashMap<usize, NodeNumber>,
    guests: BTreeMap<usize, Guest>,
    outward: Outward,
    /// Nodes whose connections are kept although nothing is to be sent.
    watched: Vec<NodeNumber>,
    /// Guests and peers with more to read than one turn allows.
    unread: HashSet<usize>,
    events: VecDeque<InterconnectEvent>,
}

impl Node {
    pub(super) fn new(seat: Seat, tls: Tls, shared: Arc<Shared>, listener: Option<StdListener>) -> Node {
        let listener = listener.map(|listener| {
            let mut listener = TcpListener::from_std(listener);
            if let Err(error) = seat.registry.register(&mut listener, Token(LISTENER), Interest::READABLE) {
                // Without it no other node reaches what is owned here: better not to run than to seem to.
                tracing::error!(%error, "the interconnect's listener cannot be watched: ending the process");
                std::process::abort();
            }
            listener
        });
        this_thread_is_worker(seat.worker);
        shared.links.attach(seat.mailboxes.clone());
        Node {
            outward: Outward::new(seat.worker, seat.mailboxes.clone()),
            worker: seat.worker,
            registry: seat.registry,
            mailboxes: seat.mailboxes,
            tls,
            shared,
            listener,
            next_worker: 0,
            next_token: LISTENER + 1,
            peers: BTreeMap::new(),
            peer_of_token: HashMap::new(),
            guests: BTreeMap::new(),
            watched: Vec::new(),
            unread: HashSet::new(),
            events: VecDeque::new(),
        }
    }

    fn token(&mut self) -> usize {
        self.next_token += 1;
        self.next_token
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        let mut accepted = Vec::new();
        for _ in 0..ACCEPTS_PER_TURN_MAX {
            match listener.accept() {
                Ok((stream, _)) => accepted.push(stream),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    tracing::warn!(%error, "a connection of the interconnect could not be accepted");
                    break;
                }
            }
        }
        if accepted.len() == ACCEPTS_PER_TURN_MAX {
            self.unread.insert(LISTENER);
        }
        for stream in accepted {
            let stream = std::net::TcpStream::from(stream);
            let to = self.next_worker % self.mailboxes.workers().max(1);
            self.next_worker = self.next_worker.wrapping_add(1);
            if to == self.worker {
                self.adopt(crate::clock::scsi_now(), stream);
            } else {
                self.mailboxes.post_interconnect(to, Box::new(Accepted(stream)));
            }
        }
    }

    fn adopt(&mut self, now: Instant, stream: std::net::TcpStream) {
        if self.guests.len() >= ACCEPTED_MAX {
            tracing::warn!("too many connections of the interconnect: one is turned away");
            return;
        }
        let token = self.token();
        match Link::accept(stream, self.tls.server(), &self.registry, Token(token)) {
            Ok(link) => {
                self.guests.insert(token, Guest { link, since: now, machine: None });
            }
            Err(error) => tracing::warn!(%error, "a connection of the interconnect could not be taken"),
        }
    }

    /// The way to a node, connecting if need be.
    fn peer(&mut self, now: Instant, node: NodeNumber) -> Option<&mut Client<Bytes>> {
        if !self.peers.contains_key(&node) {
            let machine = Client::new(self.ends(node)?, now);
            self.peers.insert(node, Peer { machine, link: None, not_before: now, failures: 0 });
        }
        self.connect_if_due(now, node);
        self.peers.get_mut(&node).map(|peer| &mut peer.machine)
    }

    fn ends(&self, peer: NodeNumber) -> Option<Ends> {
        let me = self.shared.view.load().as_ref()?.me;
        Some(Ends { cluster: self.tls.cluster, me, peer, crc32c })
    }

    fn connect_if_due(&mut self, now: Instant, node: NodeNumber) {
        let due = |peer: &Peer| peer.link.is_none() && now >= peer.not_before;
        if !self.peers.get(&node).is_some_and(due) {
            return;
        }
        let token = self.token();
        let result = self.connect(node, token);
        let Some(peer) = self.peers.get_mut(&node) else { return };
        match result {
            Ok(link) => {
                peer.link = Some((token, link));
                peer.machine.connected(now);
                self.peer_of_token.insert(token, node);
            }
            Err(error) => self.peer_lost(now, node, &error),
        }
    }

    fn connect(&self, node: NodeNumber, token: usize) -> Result<Link, LinkError> {
        let view = self.shared.view.load();
        let known = view.as_ref().and_then(|view| view.nodes.get(&node));
        let known = known.ok_or_else(|| LinkError::Stranger(format!("{node:?}")))?;
        let name = server_name(Role::Node, Some(&known.name))?;
        Link::connect(known.interconnect, name, self.tls.client(), &self.registry, Token(token))
    }

    fn peer_lost(&mut self, now: Instant, node: NodeNumber, error: &LinkError) {
        let ends = self.ends(node);
        let Some(peer) = self.peers.get_mut(&node) else { return };
        tracing::info!(peer = %node, %error, "connection to the node lost");
        if let Some((token, link)) = peer.link.take() {
            self.peer_of_token.remove(&token);
            self.unread.remove(&token);
            link.close(&self.registry);
        }
        if peer.machine.is_open() {
            peer.failures = 0;
        }
        peer.machine.connection_lost();
        while let Some(event) = peer.machine.poll_event() {
            self.events.push_back(convert::event_in(event));
        }
        let pause = (PAUSE_MS_MIN << peer.failures.min(8)).min(PAUSE_MS_MAX);
        peer.failures = peer.failures.saturating_add(1);
        peer.not_before = now.plus_millis(pause);
        match ends {
            Some(ends) => peer.machine = Client::new(ends, now),
            None => {
                self.peers.remove(&node);
            }
        }
    }

    fn guest_lost(&mut self, token: usize, error: &LinkError) {
        let Some(guest) = self.guests.remove(&token) else { return };
        tracing::info!(connection = token, %error, "connection from a node lost");
        self.unread.remove(&token);
        guest.link.close(&self.registry);
        match guest.machine {
            Some(Machine::Replicas(channel)) => channel.close(&self.shared),
            _ => self.events.push_back(InterconnectEvent::Disconnected { connection: token as u64 }),
        }
    }

    fn read(&mut self, now: Instant, token: usize) {
        if token == LISTENER {
            return self.accept();
        }
        if self.outward.owns(token) {
            if self.outward.read(now, token, (&self.shared, &self.registry)) {
                self.unread.insert(token);
            }
            return;
        }
        let result = if let Some(node) = self.peer_of_token.get(&token).copied() {
            let result = self.read_peer(now, node);
            if let Err(error) = &result {
                return self.peer_lost(now, node, error);
            }
            result
        } else {
            let result = self.read_guest(now, token);
            if let Err(error) = &result {
                return self.guest_lost(token, error);
            }
            result
        };
        if matches!(result, Ok(true)) {
            self.unread.insert(token);
        }
    }

    fn read_peer(&mut self, now: Instant, node: NodeNumber) -> Result<bool, LinkError> {
        let Some(Peer { machine, link: Some((_, link)), .. }) = self.peers.get_mut(&node) else {
            return Ok(false);
        };
        let more = link.read(|tls| take_plaintext(tls, machine, Client::space, |m, n| m.advance(now, n)));
        // What came before an error counts.
        while let Some(event) = machine.poll_event() {
            self.events.push_back(convert::event_in(event));
        }
        more
    }

    fn read_guest(&mut self, now: Instant, token: usize) -> Result<bool, LinkError> {
        let Some(Guest { link, machine, .. }) = self.guests.get_mut(&token) else { return Ok(false) };
        let (shared, cluster) = (&self.shared, self.tls.cluster);
        let (worker, mailboxes) = (self.worker, &self.mailboxes);
        let lease_end = lease_end(shared);
        let more = link.read(|tls| {
            if machine.is_none() {
                let Some(identity) = peer(tls)? else { return Ok(()) };
                let ends = admit(shared, cluster, &identity)?;
                *machine = Some(if tls.alpn_protocol() == Some(PROTOCOL) {
                    let channel = Channel::new(ends.peer, worker, mailboxes.clone(), false, now);
                    Machine::Replicas(Box::new(channel))
                } else {
                    let mut server = Server::new(ends, now);
                    server.set_lease(lease_end);
                    Machine::Commands(Box::new(server))
                });
            }
            match machine {
                Some(Machine::Commands(machine)) => {
                    take_plaintext(tls, &mut **machine, Server::space, |m, n| m.advance(now, n))
                }
                Some(Machine::Replicas(channel)) => channel.take(tls, shared, now),
                None => Ok(()),
            }
        });
        let connection = token as u64;
        let Some(Machine::Commands(machine)) = machine else { return more };
        while let Some(event) = machine.poll_event() {
            let origin = |token| Origin { connection, token };
            self.events.push_back(match event {
                ServerEvent::Command { token, command, execute_by } => InterconnectEvent::Command {
                    origin: origin(token),
                    command: convert::command_in(command, execute_by),
                },
                ServerEvent::DataOut { token, data } => {
                    InterconnectEvent::DataOut { origin: origin(token), data }
                }
                ServerEvent::Abort { token } => InterconnectEvent::Abort { origin: origin(token) },
                ServerEvent::TaskManagement { token, request } => InterconnectEvent::TaskManagement {
                    origin: origin(token),
                    request: convert::function_in(request),
                },
                ServerEvent::NexusLoss { token, nexus } => {
                    InterconnectEvent::NexusLoss { origin: origin(token), nexus }
                }
            });
        }
        more
    }

    fn guest(&mut self, origin: Origin) -> Option<&mut Server<Bytes>> {
        let token = usize::try_from(origin.connection).ok()?;
        self.guests.get_mut(&token)?.commands()
    }
}

/// In the past while this node has no lease.
fn lease_end(shared: &Shared) -> Instant {
    Instant(shared.gate.serve_until_ms().unwrap_or(0))
}

/// The peer must be a node of this cluster that the view knows.
fn admit(shared: &Shared, cluster: ClusterId, identity: &PeerIdentity) -> Result<Ends, LinkError> {
    let stranger = || LinkError::Stranger(format!("'{}' ({})", identity.name, identity.role.as_str()));
    if identity.role != Role::Node || identity.cluster.0 != cluster.0 {
        return Err(stranger());
    }
    let view = shared.view.load();
    let view = view.as_ref().ok_or_else(stranger)?;
    let known = view.nodes.values().find(|node| node.name == identity.name).ok_or_else(stranger)?;
    Ok(Ends { cluster, me: view.me, peer: known.number, crc32c })
}

impl Interconnect for Node {
    fn handle_event(&mut self, now: Instant, event: &mio::event::Event) {
        let token = event.token().0;
        let node = self.peer_of_token.get(&token);
        if let Some((_, link)) = node.and_then(|node| self.peers.get_mut(node)).and_then(|p| p.link.as_mut())
        {
            link.ready(event);
        } else if let Some(guest) = self.guests.get_mut(&token) {
            guest.link.ready(event);
        } else {
            self.outward.ready(token, event);
        }
        self.read(now, token);
    }

    fn handle_message(&mut self, now: Instant, message: Box<dyn Any + Send>) {
        match message.downcast::<Accepted>() {
            Ok(accepted) => self.adopt(now, accepted.0),
            // A poke: what there is to send goes out at the end of this turn.
            Err(_) => {
                for node in self.shared.links.take_wishes(self.worker) {
                    let token = self.token();
                    let ends = (&*self.shared, &self.tls, &self.registry);
                    self.outward.connect(now, node, token, ends);
                }
            }
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        for token in std::mem::take(&mut self.unread) {
            self.read(now, token);
        }
        let nodes: Vec<NodeNumber> = self.peers.keys().copied().collect();
        for node in nodes {
            let Some(peer) = self.peers.get_mut(&node) else { continue };
            if peer.link.is_some() {
                if let Err(violation) = peer.machine.handle_timeout(now) {
                    self.peer_lost(now, node, &violation.into());
                }
            } else if peer.machine.outstanding() > 0 || self.watched.contains(&node) {
                self.connect_if_due(now, node);
            }
        }
        let tokens: Vec<usize> = self.guests.keys().copied().collect();
        let lease_end = lease_end(&self.shared);
        for token in tokens {
            let Some(guest) = self.guests.get_mut(&token) else { continue };
            let result = match &mut guest.machine {
                Some(Machine::Commands(machine)) => {
                    machine.set_lease(lease_end);
                    machine.handle_timeout(now).map_err(LinkError::from)
                }
                Some(Machine::Replicas(channel)) => channel.handle_timeout(now),
                None if now.millis_since(guest.since) >= HANDSHAKE_MS_MAX => {
                    Err(LinkError::Stranger("a peer that does not greet".into()))
                }
                None => Ok(()),
            };
            if let Err(error) = result {
                self.guest_lost(token, &error);
            }
        }
        self.outward.handle_timeout(now, (&self.shared, &self.registry));
    }

    fn poll_timeout(&self) -> Option<Instant> {
        if !self.unread.is_empty() {
            return Some(Instant(0));
        }
        let peers = self.peers.iter().filter_map(|(node, peer)| match &peer.link {
            Some(_) => Some(peer.machine.poll_timeout()),
            None => {
                let wanted = peer.machine.outstanding() > 0 || self.watched.contains(node);
                wanted.then_some(peer.not_before)
            }
        });
        let guests = self.guests.values().map(|guest| match &guest.machine {
            Some(Machine::Commands(machine)) => machine.poll_timeout(),
            Some(Machine::Replicas(channel)) if channel.is_waiting() && guest.link.is_writable() => {
                Instant(0)
            }
            Some(Machine::Replicas(channel)) => channel.poll_timeout(),
            None => guest.since.plus_millis(HANDSHAKE_MS_MAX),
        });
        peers.chain(guests).chain(self.outward.poll_timeout()).min()
    }

    fn poll_event(&mut self) -> Option<InterconnectEvent> {
        self.events.pop_front()
    }

    fn flush(&mut self, now: Instant) {
        let mut lost_peers = Vec::new();
        for (node, peer) in &mut self.peers {
            if let Some((_, link)) = &mut peer.link
                && let Err(error) = link.write(|| peer.machine.poll_transmit())
            {
                lost_peers.push((*node, error));
            }
        }
        let mut lost_guests = Vec::new();
        for (token, guest) in &mut self.guests {
            if let Some(Machine::Replicas(channel)) = &guest.machine {
                channel.begin_sending();
            }
            let next = || match &mut guest.machine {
                Some(Machine::Commands(machine)) => machine.poll_transmit(),
                Some(Machine::Replicas(channel)) => channel.next(),
                None => None,
            };
            if let Err(error) = guest.link.write(next) {
                lost_guests.push((*token, error));
            }
        }
        for (node, error) in lost_peers {
            self.peer_lost(now, node, &error);
        }
        for (token, error) in lost_guests {
            self.guest_lost(token, &error);
        }
        self.outward.flush(now, (&self.shared, &self.registry));
    }

    fn watch(&mut self, now: Instant, nodes: &[NodeNumber]) {
        self.watched = nodes.to_vec();
        for node in nodes {
            self.peer(now, *node);
        }
    }

    fn neighbour(&self, node: NodeNumber) -> Option<Neighbour> {
        self.peers.get(&node)?.machine.neighbour()
    }

    fn forward(&mut self, now: Instant, to: NodeNumber, token: ForwardToken, command: CommandFor) {
        let arrived = convert::arrived(&command);
        match self.peer(now, to) {
            Some(machine) => {
                machine.forward(now, token, arrived, convert::command_out(command));
                self.take_events(to);
            }
            None => {
                self.events.push_back(InterconnectEvent::Outcome { token, outcome: Outcome::NotExecuted });
            }
        }
    }

    fn forward_data(&mut self, _now: Instant, to: NodeNumber, token: ForwardToken, data: Bytes) {
        if let Some(peer) = self.peers.get_mut(&to) {
            peer.machine.forward_data(token, data);
        }
    }

    fn forward_abort(&mut self, _now: Instant, to: NodeNumber, token: ForwardToken) {
        if let Some(peer) = self.peers.get_mut(&to) {
            peer.machine.forward_abort(token);
        }
    }

    fn forward_task_management(
        &mut self,
        now: Instant,
        to: NodeNumber,
        token: ForwardToken,
        request: TaskManagementFor,
    ) {
        match self.peer(now, to) {
            Some(machine) => {
                machine.forward_task_management(token, convert::function_out(request));
                self.take_events(to);
            }
            None => self.events.push_back(InterconnectEvent::TaskManagementDone {
                token,
                outcome: LuFunctionOutcome::NotExecuted,
            }),
        }
    }

    fn forward_nexus_loss(&mut self, now: Instant, to: NodeNumber, token: ForwardToken, nexus: Nexus) {
        // Without a connection the owner has heard nothing of the nexus, or has ended its tasks by itself.
        let connected = self.peers.get(&to).is_some_and(|p| p.link.is_some() || p.machine.outstanding() > 0);
        match self.peers.get_mut(&to) {
            Some(peer) if connected => {
                peer.machine.forward_nexus_loss(token, nexus);
                self.take_events(to);
            }
            _ => self.events.push_back(InterconnectEvent::NexusLossDone { token }),
        }
        self.connect_if_due(now, to);
    }

    fn answer(&mut self, now: Instant, origin: Origin, outcome: Outcome) {
        if let Some(machine) = self.guest(origin) {
            machine.answer(now, origin.token, convert::outcome_out(outcome));
        }
    }

    fn answer_task_management(&mut self, now: Instant, origin: Origin, outcome: LuFunctionOutcome) {
        if let Some(machine) = self.guest(origin) {
            machine.answer_task_management(now, origin.token, convert::function_outcome_out(outcome));
        }
    }

    fn answer_nexus_loss(&mut self, now: Instant, origin: Origin) {
        if let Some(machine) = self.guest(origin) {
            machine.answer_nexus_loss(now, origin.token);
        }
    }
}

impl Node {
    fn take_events(&mut self, node: NodeNumber) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        while let Some(event) = peer.machine.poll_event() {
            self.events.push_back(convert::event_in(event));
        }
    }
}
