//! The data plane: one thread per core, each with its own connections, timers and mailbox. The first one accepts and gives
//! each socket to the thread with the fewest connections; a session stays where its first connection is, and others join it there.
//!
//! | Looking for | Module |
//! |---|---|
//! | the loop of one thread | `worker` |
//! | one iSCSI connection | `portal` |
//! | logins, the life of a session | `login` |
//! | connections that join a session | `members` |
//! | how a node stops | `drain` |
//! | a command's way to the owner and back | `commands` |
//! | task management functions | `functions` |
//! | what other nodes ask of us | `peers` |
//! | a new view | `views` |
//! | a lease that has ended | `lapse` |
//! | who is logged in, on which thread | `sessions` |
//! | what runs on another node | [`router`] |
//! | every bound | [`limits`] |

mod commands;
pub(crate) mod copies;
mod counters;
mod drain;
mod functions;
mod inspection;
mod installation;
mod lapse;
pub mod limits;
mod login;
pub mod mailbox;
mod members;
mod peers;
mod portal;
pub mod router;
mod sessions;
mod views;
mod worker;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use holdfast_iscsi::{PortalConfig, PortalOptions};
use mio::net::TcpListener;
use mio::{Interest, Poll, Token, Waker};

use crate::agent::{self, Heartbeats, Install, Installer};
use crate::lu::Services;
use crate::lu::table::Table;
use crate::store::io_threads::{self, IoThreads};
use crate::store::pool::Pool;
use crate::view::Shared;
use crate::volume::ScrubPace;

use self::drain::Drained;
use self::inspection::{Endings, Inspecting};
use self::installation::Installation;
use self::mailbox::{Mailboxes, Message};
use self::router::Interconnect;
use self::sessions::Sessions;
use self::worker::Worker;

/// Makes the interconnect object of one worker, on that worker's thread.
pub type MakeInterconnect = Box<dyn Fn(Seat) -> Box<dyn Interconnect> + Send + Sync>;

/// Where an interconnect object lives.
#[derive(Debug)]
pub struct Seat {
    /// Number of the worker.
    pub worker: usize,
    /// For its sockets, with tokens from [`router::INTERCONNECT_TOKENS_FROM`] on.
    pub registry: mio::Registry,
    /// For messages to its fellows on other workers.
    pub mailboxes: Mailboxes,
}

/// What the data plane is started with.
pub struct Setup {
    /// Addresses that initiators connect to.
    pub portals: Vec<SocketAddr>,
    /// Number of workers, at least 1.
    pub workers: usize,
    /// Where replicas are kept.
    pub pools: Vec<Pool>,
    /// How fast and how often replicas with checksums are scrubbed.
    pub scrub: ScrubPace,
    /// What the portals offer.
    pub portal_options: PortalOptions,
    /// View and gate.
    pub shared: Arc<Shared>,
    /// The agent, for proposals and confirmations.
    pub agent: agent::Handle,
    /// One mark for each worker.
    pub heartbeats: Heartbeats,
    /// The way to other nodes.
    pub interconnect: MakeInterconnect,
}

/// Why the data plane did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The portal's address is taken.
    #[error("portal address {0} is in use")]
    PortalInUse(SocketAddr),
    /// The portal's address cannot be listened on.
    #[error("portal address {address} cannot be listened on: {error}")]
    Portal {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        error: io::Error,
    },
    /// An option of the portal is out of its bounds.
    #[error("portal option: {0}")]
    Options(#[from] holdfast_iscsi::config::InvalidOption),
    /// The system gives no threads or descriptors.
    #[error("cannot start: {0}")]
    Io(#[from] io::Error),
}

/// The running data plane. Dropping it stops the threads.
pub struct DataPlane {
    mailboxes: Mailboxes,
    table: Table,
    agent: agent::Handle,
    io: IoThreads,
    drained: Arc<Drained>,
    endings: Endings,
    portals: Arc<[SocketAddr]>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl std::fmt::Debug for DataPlane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DataPlane").field("portals", &self.portals).finish_non_exhaustive()
    }
}

impl DataPlane {
    /// Binds the portals and starts the threads. Nothing is served before the first view and an open gate.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running.
    pub fn start(setup: Setup) -> Result<DataPlane, StartError> {
        let portal_config = Arc::new(PortalConfig::new(setup.portal_options)?);
        let mut listeners = Vec::new();
        for address in &setup.portals {
            let bound = TcpListener::bind(*address).map_err(|error| match error.kind() {
                io::ErrorKind::AddrInUse => StartError::PortalInUse(*address),
                _ => StartError::Portal { address: *address, error },
            });
            listeners.push(bound?);
        }
        let portals: Arc<[SocketAddr]> =
            listeners.iter().map(TcpListener::local_addr).collect::<io::Result<_>>()?;
        let polls = (0..setup.workers.max(1)).map(|_| Poll::new()).collect::<io::Result<Vec<_>>>()?;
        let wakers =
            polls.iter().map(|p| Waker::new(p.registry(), worker::WAKER)).collect::<io::Result<_>>()?;
        let (mailboxes, inboxes) = Mailboxes::new(wakers);
        let io = IoThreads::start(io_threads::THREADS)?;
        let services = Services { io: io.clone(), mailboxes: mailboxes.clone(), agent: setup.agent.clone() };
        let table = Table::new(Arc::clone(&setup.shared), services.clone(), setup.pools, setup.scrub);
        let sessions = Arc::new(Sessions::default());
        let make: Arc<MakeInterconnect> = Arc::new(setup.interconnect);
        let agent = setup.agent;
        let plane = DataPlane {
            mailboxes,
            table,
            agent,
            io,
            endings: Endings::default(),
            drained: Arc::default(),
            portals,
            threads: Mutex::default(),
        };
        for (index, (poll, inbox)) in polls.into_iter().zip(inboxes).enumerate() {
            let mut own = if index == 0 { std::mem::take(&mut listeners) } else { Vec::new() };
            for (at, listener) in own.iter_mut().enumerate() {
                poll.registry().register(listener, Token(1 + at), Interest::READABLE)?;
            }
            let registry = poll.registry().try_clone()?;
            let seat = Seat { worker: index, registry, mailboxes: plane.mailboxes.clone() };
            let (make, shared, services) = (Arc::clone(&make), Arc::clone(&setup.shared), services.clone());
            let (table, sessions) = (plane.table.clone(), Arc::clone(&sessions));
            let (heartbeats, portal_config) = (setup.heartbeats.clone(), Arc::clone(&portal_config));
            let portals = Arc::clone(&plane.portals);
            let drained = Arc::clone(&plane.drained);
            let run = move || {
                let worker = Worker {
                    index,
                    poll,
                    inbox,
                    shared,
                    services,
                    table,
                    sessions,
                    heartbeats,
                    portal_config,
                    portals,
                    listeners: own,
                    interconnect: make(seat),
                    view: None,
                    connections: Default::default(),
                    next_connection: worker::first_connection(),
                    requests: Default::default(),
                    next_token: 0,
                    answers: Vec::new(),
                    dirty: Default::default(),
                    ready: Default::default(),
                    timers: Default::default(),
                    holding: Default::default(),
                    retry: false,
                    held_logins: Vec::new(),
                    errands: Default::default(),
                    held_errands: Vec::new(),
                    endings: HashMap::new(),
                    ending_tokens: HashMap::new(),
                    peer_tasks: HashMap::new(),
                    peer_nexuses: HashMap::new(),
                    lapse: Default::default(),
                    drain: None,
                    drained,
                    next_tick: 0,
                    read_buffer: vec![0; limits::READ_BUFFER_LEN],
                    stopping: false,
                };
                if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| worker.run())).is_err() {
                    tracing::error!("a data-plane thread panicked: ending the process");
                    std::process::abort();
                }
            };
            let thread = std::thread::Builder::new().name(format!("data-{index}")).spawn(run)?;
            plane.threads().push(thread);
        }
        Ok(plane)
    }

    /// Addresses of the portals, as bound.
    pub fn portals(&self) -> &[SocketAddr] {
        &self.portals
    }

    /// Drains, then ends all sessions and threads. Takes no longer than twice [`limits::DRAIN_MS_MAX`].
    pub fn stop(&self) {
        let threads = std::mem::take(&mut *self.threads());
        if !threads.is_empty() {
            self.mailboxes.post_all(|| Message::Drain);
            self.drained.wait(threads.len());
        }
        self.mailboxes.post_all(|| Message::Stop);
        for thread in threads {
            let _ = thread.join();
        }
        self.table.stop();
        // Last: a worker may have submitted to them. The pools are let go of only when no job holds them.
        self.io.stop();
    }

    fn threads(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for DataPlane {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Installer for DataPlane {
    fn install(&self, install: Install) {
        self.table.install(&install.view, &install.aborts, install.events_lost);
        let workers = self.mailboxes.workers();
        let installation = Arc::new(Installation::new(install, workers, self.agent.clone()));
        self.mailboxes.post_all(|| Message::Install(Arc::clone(&installation)));
    }

    fn inspect(&self, ask: holdfast_proto::node::Inspect) {
        if let Some(question) = &ask.scrub {
            let scrub = Some(self.table.scrub(question, &ask.request_id));
            let told = holdfast_proto::node::Inspection { id: ask.id, scrub, ..Default::default() };
            return self.agent.inspected(told);
        }
        if ask.end.is_some() && self.endings.knows(&ask.request_id) {
            let told = holdfast_proto::node::Inspection { id: ask.id, ended: true, ..Default::default() };
            return self.agent.inspected(told);
        }
        let workers = self.mailboxes.workers();
        let (agent, endings) = (self.agent.clone(), self.endings.clone());
        let inspecting = Arc::new(Inspecting::new(ask, workers, agent, endings));
        self.mailboxes.post_all(|| Message::Inspect(Arc::clone(&inspecting)));
    }
}
