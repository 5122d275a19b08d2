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

use holdfast_iscsi::{CloseReason, Connection, Event, Instant as IscsiInstant, LinkId, PortalConfig};
use holdfast_scsi::nexus::Nexus;
use holdfast_scsi::time::Instant;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use rustc_hash::{FxHashMap, FxHashSet};

use super::commands::Request;
use super::limits;
use super::mailbox::{Inbox, Message, SessionAddress};
use super::portal::{CLOSING_MS_MAX, Flow, Home, Portal, Stage, Wire};
use super::router::{Bytes, ForwardToken, INTERCONNECT_TOKENS_FROM, Interconnect, Origin};
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

/// A worker's own data; see the module's documentation. What is keyed by numbers of our own making uses the quick hasher.
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
    pub(super) connections: FxHashMap<u64, Portal>,
    pub(super) next_connection: u64,
    pub(super) requests: FxHashMap<ForwardToken, Request>,
    pub(super) next_token: ForwardToken,
    /// Answers for this worker that its own calls into units have produced.
    pub(super) answers: Vec<Finished>,
    /// Connections to be written to at the end of the turn.
    pub(super) dirty: FxHashSet<u64>,
    /// Connections that had more to read or write than one turn allows.
    pub(super) ready: FxHashSet<u64>,
    pub(super) timers: BTreeSet<(u64, u64)>,
    /// Connections with held commands.
    pub(super) holding: FxHashSet<u64>,
    pub(super) retry: bool,
    /// Commands of copies that units of this node have sent.
    pub(super) errands: FxHashMap<ForwardToken, super::copies::Errand>,
    /// Those that cannot be executed now.
    pub(super) held_errands: Vec<super::copies::Errand>,
    /// Logins that wait for the lease.
    pub(super) held_logins: Vec<super::login::HeldLogin>,
    /// Sessions that are ending: the nexus is still ours until every owner has heard of it.
    pub(super) endings: HashMap<Nexus, super::login::Ending>,
    pub(super) ending_tokens: HashMap<ForwardToken, Nexus>,
    /// Commands of other nodes under way here.
    pub(super) peer_tasks: HashMap<Origin, (Arc<LogicalUnit>, TaskId, Nexus)>,
    pub(super) peer_nexuses: HashMap<u64, HashSet<Nexus>>,
    pub(super) lapse: super::lapse::Lapse,
    pub(super) drain: Option<super::drain::Drain>,
    pub(super) drained: Arc<super::drain::Drained>,
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
                    if let Some(wire) = self.connections.get_mut(&connection).and_then(|it| it.wire.as_mut())
                    {
                        wire.readable |= event.is_readable() || event.is_read_closed() || event.is_error();
                        wire.peer_closed |= event.is_read_closed() || event.is_error();
                        wire.writable |= event.is_writable() || event.is_write_closed();
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
        self.retry_errands(now);
        self.go_on_draining(now);
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
        let holds = !self.holding.is_empty() || !self.held_logins.is_empty() || !self.held_errands.is_empty();
        let held = holds.then(|| now.0.saturating_add(limits::HOLD_RETRY_MS));
        let lease = self.lease_check_due(now);
        let interconnect = self.interconnect.poll_timeout().map(|at| at.0);
        let next = [timer, held, lease, interconnect, self.drain_due(now)].into_iter().flatten().min()?;
        Some(Duration::from_millis(next.saturating_sub(now.0)))
    }

    fn take_messages(&mut self, now: Instant) {
        self.inbox.acknowledge();
        for _ in 0..limits::MESSAGES_PER_TURN_MAX {
            let Some(message) = self.inbox.next() else { return };
            match message {
                Message::Accepted(socket, portal) => self.adopt(now, socket, portal),
                Message::Join(visitor) => self.receive_joining(now, *visitor),
                Message::Finished(finished) => self.finished(now, finished),
                Message::LuAnswer(answer) => self.lu_answer(answer),
                Message::Copy(errand) => self.run_errand(now, *errand),
                Message::CancelCopy(unit, task) => self.cancel_errand(now, &unit, task),
                Message::Install(installation) => self.install(now, &installation),
                Message::Inspect(inspecting) => self.inspect(now, &inspecting),
                Message::Retry => self.retry = true,
                Message::EndSession { connection, nexus, waiting } => {
                    self.end_for(now, connection, nexus, waiting)
                }
                Message::SessionEnded { connection, nexus } => self.try_start(now, connection, Some(nexus)),
                Message::Interconnect(message) => self.interconnect.handle_message(now, message),
                Message::Drain => self.begin_drain(now),
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
            if let Some(engine) = portal.engine() {
                engine.handle_timeout(iscsi(now));
            }
            let late = match &portal.stage {
                Stage::Waiting(waiting) => waiting.by_ms <= now.0,
                Stage::Joining(joining) => joining.by_ms <= now.0,
                Stage::NoSession | Stage::Session(_) => false,
            };
            if late {
                self.refuse_start(now, connection);
            }
            self.pump(now, connection);
        }
        if self.interconnect.poll_timeout().is_some_and(|at| at <= now) {
            self.interconnect.handle_timeout(now);
        }
        if self.index == 0 && self.next_tick <= now.0 {
            self.next_tick = now.0.saturating_add(limits::LEASE_CHECK_MS);
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
        if self.drain.is_some() {
            return self.services.mailboxes.connection_gone(self.index);
        }
        let mut entropy = [0; 32];
        let prepared = || -> io::Result<TcpStream> {
            socket.set_nodelay(true)?;
            socket.set_nonblocking(true)?;
            getrandom::fill(&mut entropy).map_err(io::Error::other)?;
            Ok(TcpStream::from_std(socket))
        };
        match prepared() {
            Ok(socket) => {
                let engine = Connection::new(Arc::clone(&self.portal_config), iscsi(now), entropy);
                if let Some(connection) = self.settle_in(socket, engine, portal, Stage::NoSession) {
                    self.read(now, connection);
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be taken in");
                self.services.mailboxes.connection_gone(self.index);
            }
        }
    }

    /// Gives a connection a number and a place here.
    pub(super) fn settle_in(
        &mut self,
        mut socket: TcpStream,
        engine: Connection<Bytes>,
        portal: usize,
        stage: Stage,
    ) -> Option<u64> {
        let connection = self.next_connection;
        self.next_connection += 1;
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = self.poll.registry().register(&mut socket, Token(connection as usize), interest) {
            tracing::warn!(%error, "a connection could not be taken in");
            self.services.mailboxes.connection_gone(self.index);
            return None;
        }
        let wire = Wire { socket, readable: true, writable: true, peer_closed: false };
        let home = Home::Own(Box::new(engine), HashMap::new());
        let (wire, timer, closing_by) = (Some(wire), None, None);
        self.connections.insert(connection, Portal { wire, home, portal, timer, closing_by, stage });
        Some(connection)
    }

    /// The engine that is a connection's own.
    pub(super) fn engine(&mut self, connection: u64) -> Option<&mut Connection<Bytes>> {
        self.connections.get_mut(&connection).and_then(Portal::engine)
    }

    /// The leading connection of the session that a connection belongs to, and its name there.
    pub(super) fn home(&self, connection: u64) -> Option<(u64, LinkId)> {
        match self.connections.get(&connection)?.home {
            Home::Own(..) => Some((connection, LinkId::LEADING)),
            Home::Member(leading, link) => Some((leading, link)),
        }
    }

    /// Lets a connection's socket and the engine that speaks for it work together.
    fn with_engine<T>(
        &mut self,
        connection: u64,
        work: impl FnOnce(&mut Wire, &mut Connection<Bytes>, LinkId, &mut [u8]) -> T,
    ) -> Option<T> {
        let (leading, link) = self.home(connection)?;
        // The socket is out of its place for as long as it works with an engine that may be another connection's.
        let mut wire = self.connections.get_mut(&connection)?.wire.take()?;
        let engine = self.connections.get_mut(&leading).and_then(Portal::engine);
        let result = engine.map(|engine| work(&mut wire, engine, link, &mut self.read_buffer));
        self.connections.get_mut(&connection)?.wire = Some(wire);
        result
    }

    fn read(&mut self, now: Instant, connection: u64) {
        if self.connections.get(&connection).is_none_or(|portal| portal.closing_by.is_some()) {
            return;
        }
        let flow = self.with_engine(connection, |wire, engine, link, buffer| {
            wire.read(engine, link, iscsi(now), buffer)
        });
        match flow {
            Some(Flow::Open) => self.pump(now, connection),
            Some(Flow::Gone) => {
                // What came before the end still counts: a Logout, or commands that nobody waits for.
                self.pump(now, connection);
                self.lost(now, connection);
            }
            None => {}
        }
    }

    /// Acts on all events of the engine that speaks for a connection. Called after every call into an engine.
    pub(super) fn pump(&mut self, now: Instant, connection: u64) {
        let Some((leading, _)) = self.home(connection) else { return };
        while let Some(engine) = self.connections.get_mut(&leading).and_then(Portal::engine) {
            let Some(event) = engine.poll_event() else { break };
            self.event(now, leading, event);
        }
        self.touch(leading);
        // One request may have made answers on several connections.
        if let Some(Portal { home: Home::Own(_, members), .. }) = self.connections.get(&leading)
            && !members.is_empty()
        {
            for member in members.values().copied().collect::<Vec<_>>() {
                self.touch(member);
            }
        }
    }

    /// Marks a connection as having something to send, and sets its timer anew.
    pub(super) fn touch(&mut self, connection: u64) {
        let Some((leading, link)) = self.home(connection) else { return };
        let Some(Portal { home: Home::Own(engine, _), .. }) = self.connections.get(&leading) else { return };
        let Some(portal) = self.connections.get(&connection) else { return };
        let closing = portal.closing_by.is_some();
        if let Some(wire) = &portal.wire {
            if engine.transmit_len_of(link) > 0 || closing {
                self.dirty.insert(connection);
            }
            if wire.readable && wire.wants_turn(engine, link, closing) {
                self.ready.insert(connection);
            }
        }
        let Some(portal) = self.connections.get_mut(&connection) else { return };
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
            Event::LinkEnded(link) => self.link_ended(now, connection, link),
            Event::Closed(reason) => self.closed(now, connection, reason),
        }
    }

    fn closed(&mut self, now: Instant, connection: u64, reason: CloseReason) {
        self.end_session(now, connection, &format!("{reason:?}"));
        let by = now.0.saturating_add(CLOSING_MS_MAX);
        let Some(portal) = self.connections.get_mut(&connection) else { return };
        portal.closing_by = Some(by);
        for member in self.members(connection) {
            if let Some(portal) = self.connections.get_mut(&member) {
                portal.closing_by = Some(by);
            }
        }
    }

    /// Connections that have joined the session of a leading connection.
    pub(super) fn members(&self, leading: u64) -> Vec<u64> {
        match self.connections.get(&leading) {
            Some(Portal { home: Home::Own(_, members), .. }) => members.values().copied().collect(),
            _ => Vec::new(),
        }
    }

    fn write(&mut self, now: Instant, connection: u64) {
        let Some(portal) = self.connections.get(&connection) else { return };
        let closing = portal.closing_by.is_some();
        let done = self.with_engine(connection, |wire, engine, link, _| {
            let flow = wire.write(engine, link);
            (flow, engine.transmit_len_of(link), wire.wants_turn(engine, link, closing), wire.writable)
        });
        let Some((flow, left, wants_turn, writable)) = done else {
            // A leading connection that has left: its session may have ended since.
            if closing {
                self.drop_connection(now, connection);
            }
            return;
        };
        if closing && (flow == Flow::Gone || left == 0) {
            return self.drop_connection(now, connection);
        }
        if flow == Flow::Gone {
            return self.lost(now, connection);
        }
        if wants_turn {
            self.ready.insert(connection);
        }
        if writable && left > 0 {
            self.dirty.insert(connection);
        }
    }

    /// A socket has failed: at error recovery level 0 that is the end of its session (RFC 7143 7.1.4).
    fn lost(&mut self, now: Instant, connection: u64) {
        let closing = self.connections.get(&connection).is_some_and(|portal| portal.closing_by.is_some());
        match self.home(connection) {
            Some((leading, _)) if leading != connection && !closing => self.drop_session(now, leading),
            _ if closing => self.drop_connection(now, connection),
            _ => self.drop_session(now, connection),
        }
    }

    /// Ends a session and all of its connections without another word.
    pub(super) fn drop_session(&mut self, now: Instant, leading: u64) {
        self.end_session(now, leading, "connection lost");
        for member in self.members(leading) {
            self.drop_connection(now, member);
        }
        self.drop_connection(now, leading);
    }

    /// Ends a connection without another word. Of a leading one whose session goes on only the socket goes; its session, if it
    /// has one still and no other connection, ends.
    pub(super) fn drop_connection(&mut self, now: Instant, connection: u64) {
        if let Some(Home::Member(leading, link)) = self.connections.get(&connection).map(|it| &it.home) {
            let (leading, link) = (*leading, *link);
            if let Some(Portal { home: Home::Own(engine, members), .. }) = self.connections.get_mut(&leading)
            {
                members.remove(&link);
                engine.forget_link(link);
            }
            self.close_socket(connection);
            self.connections.remove(&connection);
            // The place of a leading connection that has left was kept for this one.
            let left = self.connections.get(&leading).is_some_and(|portal| {
                portal.wire.is_none() && portal.closing_by.is_some() && self.members(leading).is_empty()
            });
            if left {
                self.drop_connection(now, leading);
            }
            return;
        }
        if !self.members(connection).is_empty() {
            self.close_socket(connection);
            if let Some(portal) = self.connections.get_mut(&connection) {
                portal.closing_by = None;
            }
            if let Some(engine) = self.engine(connection) {
                engine.forget_link(LinkId::LEADING);
            }
            return self.touch(connection);
        }
        self.end_session(now, connection, "connection lost");
        self.close_socket(connection);
        self.connections.remove(&connection);
    }

    /// Closes a connection's socket and takes it off all lists.
    fn close_socket(&mut self, connection: u64) {
        let Some(portal) = self.connections.get_mut(&connection) else { return };
        if let Some(at) = portal.timer.take() {
            self.timers.remove(&(at, connection));
        }
        self.dirty.remove(&connection);
        self.ready.remove(&connection);
        if let Some(mut wire) = portal.wire.take() {
            let _ = self.poll.registry().deregister(&mut wire.socket);
            self.services.mailboxes.connection_gone(self.index);
        }
    }

    /// Ends a session from our side; what is ready is still sent.
    pub(super) fn close(&mut self, now: Instant, connection: u64) {
        if let Some(engine) = self.connections.get_mut(&connection).and_then(Portal::engine) {
            engine.drop_session(CloseReason::Local);
            self.pump(now, connection);
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
