//! One thread of the data plane: its loop, its timers, and who gets which event.
//!
//! One turn: wait for readiness; take messages; feed connections; carry answers out until there are none; try held
//! commands; then one vectored write for each connection that has something to send.
//!
//! Invariants: nothing in the loop waits for a disk, another thread or a peer; each turn's work is bounded, so that every
//! connection gets its turn; a panic ends the process, because a thread that is gone would hold its sessions for ever.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use holdfast_iscsi::{CloseReason, Connection, Event, Instant as IscsiInstant, PortalConfig};
use holdfast_scsi::nexus::Nexus;
use holdfast_scsi::time::Instant;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

use super::commands::Request;
use super::limits;
use super::mailbox::{Inbox, Message, SessionAddress};
use super::portal::{CLOSING_MS_MAX, Flow, Portal, Stage};
use super::router::{ForwardToken, INTERCONNECT_TOKENS_FROM, Interconnect, Origin};
use super::sessions::Sessions;
use crate::agent::Heartbeats;
use crate::clock;
use crate::lu::table::Table;
use crate::lu::{Driver, Finished, LogicalUnit, Services};
use crate::view::{ClusterView, Shared};
use holdfast_scsi::device_server::TaskId;

/// Token of the mailbox's waker.
pub(super) const WAKER: Token = Token(0);
/// Tokens of listeners begin here.
const LISTENERS_FROM: usize = 1;
/// Tokens of connections begin here; a connection's number is its token, never reused.
const CONNECTIONS_FROM: u64 = 1 << 16;
/// A worker with sessions looks at the lease at least this often, the first one also at barriers, in milliseconds.
const LEASE_CHECK_MS: u64 = 500;

/// A worker's own data; see the module's documentation.
pub(super) struct Worker {
    pub(super) index: usize,
    pub(super) poll: Poll,
    pub(super) inbox: Inbox,
    pub(super) shared: Arc<Shared>,
    pub(super) services: Services,
    pub(super) table: Table,
    pub(super) sessions: Arc<Sessions>,
    pub(super) heartbeats: Heartbeats,
    pub(super) portal_config: Arc<PortalConfig>,
    /// Addresses of the node's portals, by number.
    pub(super) portals: Arc<[SocketAddr]>,
    /// Listeners, with the acceptor only.
    pub(super) listeners: Vec<TcpListener>,
    pub(super) interconnect: Box<dyn Interconnect>,
    /// The view that this worker has applied.
    pub(super) view: Option<Arc<ClusterView>>,
    pub(super) connections: HashMap<u64, Portal>,
    pub(super) next_connection: u64,
    pub(super) requests: HashMap<ForwardToken, Request>,
    pub(super) next_token: ForwardToken,
    /// Answers for this worker that its own calls into units have produced.
    pub(super) answers: Vec<Finished>,
    /// Connections to be written to at the end of the turn.
    pub(super) dirty: HashSet<u64>,
    /// Connections that had more to read or write than one turn allows.
    pub(super) ready: HashSet<u64>,
    pub(super) timers: BTreeSet<(u64, u64)>,
    /// Connections with held commands.
    pub(super) holding: HashSet<u64>,
    pub(super) retry: bool,
    /// Logins that wait for the lease.
    pub(super) held_logins: Vec<super::login::HeldLogin>,
    /// Sessions that are ending: the nexus is still ours until every owner has heard of it.
    pub(super) endings: HashMap<Nexus, super::login::Ending>,
    pub(super) ending_tokens: HashMap<ForwardToken, Nexus>,
    /// Commands of other nodes under way here.
    pub(super) peer_tasks: HashMap<Origin, (Arc<LogicalUnit>, TaskId, Nexus)>,
    pub(super) peer_nexuses: HashMap<u64, HashSet<Nexus>>,
    /// Since when the lease gate has been closed, in boot-time milliseconds.
    pub(super) closed_since: Option<u64>,
    /// When the first worker looks at waiting barriers again, in boot-time milliseconds.
    pub(super) next_tick: u64,
    pub(super) read_buffer: Vec<u8>,
    pub(super) stopping: bool,
}

pub(super) fn iscsi(now: Instant) -> IscsiInstant {
    IscsiInstant(now.0)
}

/// Number of a worker's first connection.
pub(super) const fn first_connection() -> u64 {
    CONNECTIONS_FROM
}

impl Worker {
    /// Runs until told to stop.
    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(limits::EVENTS_PER_POLL_MAX);
        while !self.stopping {
            self.heartbeats.waiting(self.index);
            let timeout = self.timeout(clock::scsi_now());
            if let Err(error) = self.poll.poll(&mut events, timeout)
                && error.kind() != io::ErrorKind::Interrupted
            {
                tracing::error!(%error, "waiting for events failed: ending the process");
                std::process::abort();
            }
            let now = clock::scsi_now();
            self.heartbeats.busy(self.index, now.0);
            self.turn(now, &events);
        }
        self.end_all();
    }

    fn turn(&mut self, now: Instant, events: &Events) {
        for event in events {
            match event.token().0 {
                token if Token(token) == WAKER => {}
                token if token >= INTERCONNECT_TOKENS_FROM => self.interconnect.handle_event(now, event),
                token if token as u64 >= CONNECTIONS_FROM => {
                    let connection = token as u64;
                    if let Some(portal) = self.connections.get_mut(&connection) {
                        portal.readable |= event.is_readable() || event.is_read_closed() || event.is_error();
                        portal.peer_closed |= event.is_read_closed() || event.is_error();
                        portal.writable |= event.is_writable() || event.is_write_closed();
                        self.ready.insert(connection);
                    }
                }
                token => self.accept(token - LISTENERS_FROM),
            }
        }
        self.take_messages(now);
        self.fire_timers(now);
        for connection in std::mem::take(&mut self.ready) {
            self.read(now, connection);
        }
        self.settle(now);
        self.check_lease(now);
        if self.retry || !self.holding.is_empty() {
            self.retry = false;
            self.retry_held(now);
            self.settle(now);
        }
        self.retry_logins(now);
        for connection in std::mem::take(&mut self.dirty) {
            self.write(now, connection);
        }
        self.interconnect.flush(now);
        self.settle(now);
    }

    /// Carries out answers and interconnect events until there are none.
    pub(super) fn settle(&mut self, now: Instant) {
        loop {
            let answers = std::mem::take(&mut self.answers);
            let mut idle = answers.is_empty();
            for finished in answers {
                self.finished(now, finished);
            }
            while let Some(event) = self.interconnect.poll_event() {
                idle = false;
                self.interconnect_event(now, event);
            }
            if idle {
                return;
            }
        }
    }

    fn timeout(&self, now: Instant) -> Option<Duration> {
        if !self.ready.is_empty() || !self.dirty.is_empty() || self.retry {
            return Some(Duration::ZERO);
        }
        let timer = self.timers.first().map(|(at, _)| *at);
        let holds = !self.holding.is_empty() || !self.held_logins.is_empty();
        let held = holds.then(|| now.0.saturating_add(limits::HOLD_RETRY_MS));
        let lease =
            (self.index == 0 || !self.connections.is_empty()).then(|| now.0.saturating_add(LEASE_CHECK_MS));
        let interconnect = self.interconnect.poll_timeout().map(|at| at.0);
        let next = [timer, held, lease, interconnect].into_iter().flatten().min()?;
        Some(Duration::from_millis(next.saturating_sub(now.0)))
    }

    fn take_messages(&mut self, now: Instant) {
        self.inbox.acknowledge();
        for _ in 0..limits::MESSAGES_PER_TURN_MAX {
            let Some(message) = self.inbox.next() else { return };
            match message {
                Message::Accepted(socket, portal) => self.adopt(now, socket, portal),
                Message::Finished(finished) => self.finished(now, finished),
                Message::LuAnswer(answer) => self.lu_answer(answer),
                Message::Install(installation) => self.install(now, &installation),
                Message::Retry => self.retry = true,
                Message::EndSession { connection, nexus, waiting } => {
                    self.end_for(now, connection, nexus, waiting)
                }
                Message::SessionEnded { connection, nexus } => self.try_start(now, connection, Some(nexus)),
                Message::Interconnect(message) => self.interconnect.handle_message(now, message),
                Message::Stop => self.stopping = true,
            }
        }
        self.inbox.wake_again();
    }

    fn fire_timers(&mut self, now: Instant) {
        while let Some((at, connection)) = self.timers.first().copied()
            && at <= now.0
        {
            self.timers.remove(&(at, connection));
            let Some(portal) = self.connections.get_mut(&connection) else { continue };
            portal.timer = None;
            if portal.closing_by.is_some_and(|by| by <= now.0) {
                self.drop_connection(now, connection);
                continue;
            }
            portal.engine.handle_timeout(iscsi(now));
            if matches!(&portal.stage, Stage::Waiting(waiting) if waiting.by_ms <= now.0) {
                self.refuse_start(now, connection);
            }
            self.pump(now, connection);
        }
        if self.interconnect.poll_timeout().is_some_and(|at| at <= now) {
            self.interconnect.handle_timeout(now);
        }
        if self.index == 0 && self.next_tick <= now.0 {
            self.next_tick = now.0.saturating_add(LEASE_CHECK_MS);
            let mut driver =
                Driver { services: &self.services, local: Some((self.index, &mut self.answers)) };
            self.table.tick(&mut driver);
        }
    }

    fn accept(&mut self, listener: usize) {
        for _ in 0..limits::ACCEPTS_PER_TURN_MAX {
            let Some(accepting) = self.listeners.get(listener) else { return };
            match accepting.accept() {
                Ok((socket, peer)) => match self.services.mailboxes.place_connection(limits::CONNECTIONS_MAX)
                {
                    Some(worker) => {
                        let socket = std::net::TcpStream::from(socket);
                        self.services.mailboxes.post(worker, Message::Accepted(socket, listener));
                    }
                    None => tracing::warn!(%peer, "connection closed: there are too many"),
                },
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    // Out of descriptors, or the peer has gone again. The next edge tries again.
                    tracing::warn!(%error, "a connection could not be accepted");
                    return;
                }
            }
        }
        // More may be waiting, and the edge is used up.
        self.retry = true;
        self.inbox.wake_again();
    }

    fn adopt(&mut self, now: Instant, socket: std::net::TcpStream, portal: usize) {
        let connection = self.next_connection;
        self.next_connection += 1;
        let mut entropy = [0; 32];
        let prepared = || -> io::Result<TcpStream> {
            socket.set_nodelay(true)?;
            socket.set_nonblocking(true)?;
            let mut socket = TcpStream::from_std(socket);
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.poll.registry().register(&mut socket, Token(connection as usize), interest)?;
            getrandom::fill(&mut entropy).map_err(io::Error::other)?;
            Ok(socket)
        };
        match prepared() {
            Ok(socket) => {
                let engine = Connection::new(Arc::clone(&self.portal_config), iscsi(now), entropy);
                let portal = Portal {
                    socket,
                    engine,
                    portal,
                    readable: true,
                    writable: true,
                    peer_closed: false,
                    timer: None,
                    closing_by: None,
                    stage: Stage::NoSession,
                };
                self.connections.insert(connection, portal);
                self.read(now, connection);
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be taken in");
                self.services.mailboxes.connection_gone(self.index);
            }
        }
    }

    fn read(&mut self, now: Instant, connection: u64) {
        let Some(portal) = self.connections.get_mut(&connection) else { return };
        match portal.read(iscsi(now), &mut self.read_buffer) {
            Flow::Open => self.pump(now, connection),
            Flow::Gone => {
                // What came before the end still counts: a Logout, or commands that nobody waits for.
                self.pump(now, connection);
                self.drop_connection(now, connection);
            }
        }
    }

    /// Acts on all events of a connection's engine. Called after every call into the engine.
    pub(super) fn pump(&mut self, now: Instant, connection: u64) {
        while let Some(portal) = self.connections.get_mut(&connection) {
            let Some(event) = portal.engine.poll_event() else { break };
            self.event(now, connection, event);
        }
        self.touch(connection);
    }

    /// Marks a connection as having something to send, and sets its timer anew.
    pub(super) fn touch(&mut self, connection: u64) {
        let Some(portal) = self.connections.get_mut(&connection) else { return };
        if portal.engine.transmit_len() > 0 || portal.closing_by.is_some() {
            self.dirty.insert(connection);
        }
        if portal.wants_turn() && portal.readable {
            self.ready.insert(connection);
        }
        let deadline = portal.deadline();
        if portal.timer != deadline {
            if let Some(old) = portal.timer {
                self.timers.remove(&(old, connection));
            }
            portal.timer = deadline;
            if let Some(at) = deadline {
                self.timers.insert((at, connection));
            }
        }
    }

    fn event(&mut self, now: Instant, connection: u64, event: Event) {
        match event {
            Event::Login(request) => self.login(now, connection, request),
            Event::SessionStarting(info) => self.session_starting(now, connection, info),
            Event::SendTargets(request) => self.send_targets(connection, &request),
            Event::Command(command) => self.command(now, connection, command),
            Event::DataOut { tag, data } => self.data_out(now, connection, tag, data),
            Event::DataOutFailed { tag, .. } => self.data_out_failed(now, connection, tag),
            Event::TaskManagement(request) => self.task_management(now, connection, &request),
            Event::Closed(reason) => self.closed(now, connection, reason),
        }
    }

    fn closed(&mut self, now: Instant, connection: u64, reason: CloseReason) {
        self.end_session(now, connection, &format!("{reason:?}"));
        if let Some(portal) = self.connections.get_mut(&connection) {
            portal.closing_by = Some(now.0.saturating_add(CLOSING_MS_MAX));
        }
    }

    fn write(&mut self, now: Instant, connection: u64) {
        let Some(portal) = self.connections.get_mut(&connection) else { return };
        let flow = portal.write();
        let over = portal.closing_by.is_some() && portal.engine.transmit_len() == 0;
        if flow == Flow::Gone || over {
            return self.drop_connection(now, connection);
        }
        if portal.wants_turn() {
            self.ready.insert(connection);
        }
        if portal.writable && portal.engine.transmit_len() > 0 {
            self.dirty.insert(connection);
        }
    }

    /// Ends a connection without another word.
    pub(super) fn drop_connection(&mut self, now: Instant, connection: u64) {
        self.end_session(now, connection, "connection lost");
        let Some(mut portal) = self.connections.remove(&connection) else { return };
        if let Some(at) = portal.timer {
            self.timers.remove(&(at, connection));
        }
        self.dirty.remove(&connection);
        self.ready.remove(&connection);
        let _ = self.poll.registry().deregister(&mut portal.socket);
        self.services.mailboxes.connection_gone(self.index);
    }

    /// Ends a connection from our side; what is ready is still sent.
    pub(super) fn close(&mut self, now: Instant, connection: u64) {
        if let Some(portal) = self.connections.get_mut(&connection) {
            portal.engine.close(CloseReason::Local);
            self.pump(now, connection);
        }
    }

    fn check_lease(&mut self, now: Instant) {
        if self.shared.gate.open(now.0) {
            self.closed_since = None;
            return;
        }
        let since = *self.closed_since.get_or_insert(now.0);
        if now.millis_since(Instant(since)) < limits::HOLD_MS_MAX {
            return;
        }
        // Held commands have been answered BUSY by now; hosts have to look for another path.
        let sessions: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, portal)| matches!(portal.stage, Stage::Session(_)))
            .map(|(connection, _)| *connection)
            .collect();
        for connection in sessions {
            tracing::warn!("session dropped: this node has had no lease for too long");
            self.close(now, connection);
        }
    }

    fn end_all(&mut self) {
        let now = clock::scsi_now();
        for connection in self.connections.keys().copied().collect::<Vec<_>>() {
            self.close(now, connection);
            self.write(now, connection);
        }
        self.interconnect.flush(now);
        self.heartbeats.waiting(self.index);
    }

    /// This worker's address of a connection.
    pub(super) fn address(&self, connection: u64) -> SessionAddress {
        SessionAddress { worker: self.index, connection }
    }

    pub(super) fn token(&mut self) -> ForwardToken {
        self.next_token += 1;
        self.next_token
    }
}
