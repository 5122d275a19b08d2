//! Connections between data nodes as the volumes see them: queues of requests and answers, and who gets what comes in.
//!
//! Sockets and TLS are the interconnect's; each connection lives on one worker. A volume uses the connection of the
//! worker that its id falls to, so that its frames stay in order and many volumes share few connections.
//!
//! Invariants: what is pushed leaves in the order of pushing, or not at all once the connection is gone; whoever pushes from
//! another thread wakes the worker, whoever is the worker itself costs no system call; requests for a replica that is
//! not open yet wait for it, a bounded number of them.

use std::cell::Cell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use arc_swap::ArcSwap;
use holdfast_replica::ids::{NodeNumber, VolumeId};
use holdfast_replica::replication::{FromReplica, Request, ToReplica};

use super::engine::Engine;
use crate::data_plane::mailbox::{Mailboxes, Message};
use crate::data_plane::router::Bytes;

/// Promises that wait for a replica which is not open yet, for each volume. Each owner has one at a time.
const WAITING_MAX: usize = 16;

thread_local! {
    static WORKER: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// Says that this thread is a worker: what it pushes it also sends, at the end of its turn.
pub(crate) fn this_thread_is_worker(worker: usize) {
    WORKER.set(worker);
}

/// What goes over a connection.
#[derive(Debug)]
pub(crate) enum Parcel {
    Request(ToReplica<Bytes>),
    Answer(FromReplica),
}

/// Wakes a worker to look at its connections and at what is wished for.
#[derive(Debug)]
pub(crate) struct Poke;

/// One connection, in either direction.
pub(crate) struct Link {
    id: u64,
    node: NodeNumber,
    worker: usize,
    mailboxes: Mailboxes,
    queue: Mutex<VecDeque<Parcel>>,
    poked: AtomicBool,
    open: AtomicBool,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Link({} with {})", self.id, self.node)
    }
}

impl Link {
    /// A connection with `node` on this worker.
    pub(crate) fn new(node: NodeNumber, worker: usize, mailboxes: Mailboxes) -> Arc<Link> {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Arc::new(Link {
            id: LAST.fetch_add(1, Ordering::Relaxed),
            node,
            worker,
            mailboxes,
            queue: Mutex::default(),
            poked: AtomicBool::new(false),
            open: AtomicBool::new(true),
        })
    }

    /// Never the same for two connections of a process.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// The other end.
    pub(crate) fn node(&self) -> NodeNumber {
        self.node
    }

    /// Puts something in line. Dropped once the connection is gone.
    pub(crate) fn push(&self, parcel: Parcel) {
        if !self.is_open() {
            return;
        }
        self.queue().push_back(parcel);
        if WORKER.get() != self.worker && !self.poked.swap(true, Ordering::AcqRel) {
            self.mailboxes.post_interconnect(self.worker, Box::new(Poke));
        }
    }

    /// The worker begins to send: who pushes from now on wakes it again.
    pub(crate) fn begin_sending(&self) {
        self.poked.store(false, Ordering::Release);
    }

    /// The next one to send.
    pub(crate) fn take(&self) -> Option<Parcel> {
        self.queue().pop_front()
    }

    /// True while something waits to be sent.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.queue().is_empty()
    }

    /// False once it is gone.
    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    fn close(&self) {
        self.open.store(false, Ordering::Release);
        self.queue().clear();
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Parcel>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Requests for replicas that are not open yet, and the connections that they came by.
type Waiting = HashMap<VolumeId, VecDeque<(Arc<Link>, ToReplica<Bytes>)>>;
type Engines = HashMap<VolumeId, Arc<Engine>>;

/// All of a process.
#[derive(Default)]
pub struct Links {
    mailboxes: OnceLock<Mailboxes>,
    engines: ArcSwap<Engines>,
    waiting: Mutex<Waiting>,
    up: Mutex<HashMap<(usize, NodeNumber), Arc<Link>>>,
    wishes: Mutex<HashSet<(usize, NodeNumber)>>,
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Links({} engines)", self.engines.load().len())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Links {
    /// The workers are there. Only the first call counts.
    pub(crate) fn attach(&self, mailboxes: Mailboxes) {
        let _ = self.mailboxes.set(mailboxes);
    }

    /// The engine of a volume, while its replica is open here.
    pub(crate) fn engine(&self, volume: VolumeId) -> Option<Arc<Engine>> {
        self.engines.load().get(&volume).cloned()
    }

    /// Every engine.
    pub(crate) fn engines(&self) -> Vec<Arc<Engine>> {
        self.engines.load().values().cloned().collect()
    }

    /// A replica is open: it gets what has waited for it.
    pub(crate) fn open(&self, engine: &Arc<Engine>) {
        let mut waiting = lock(&self.waiting);
        self.engines.rcu(|engines| {
            let mut engines = Engines::clone(engines);
            engines.insert(engine.id(), Arc::clone(engine));
            engines
        });
        let waited = waiting.remove(&engine.id()).unwrap_or_default();
        drop(waiting);
        for (link, frame) in waited {
            if link.is_open() {
                engine.request(&link, frame);
            }
        }
    }

    /// A replica is closed.
    pub(crate) fn close(&self, volume: VolumeId) {
        self.engines.rcu(|engines| {
            let mut engines = Engines::clone(engines);
            engines.remove(&volume);
            engines
        });
    }

    /// The end of the process's data plane: nothing refers to anything any more.
    pub(crate) fn clear(&self) {
        self.engines.store(Arc::default());
        lock(&self.waiting).clear();
        lock(&self.up).clear();
        lock(&self.wishes).clear();
    }

    /// A request of an owner has come in.
    pub(crate) fn request(&self, link: &Arc<Link>, frame: ToReplica<Bytes>) {
        if let Some(engine) = self.engine(frame.volume) {
            return engine.request(link, frame);
        }
        if !matches!(frame.request, Request::Promise(_)) {
            return;
        }
        let mut waiting = lock(&self.waiting);
        // It may have been opened just now.
        if let Some(engine) = self.engine(frame.volume) {
            drop(waiting);
            return engine.request(link, frame);
        }
        let of_volume = waiting.entry(frame.volume).or_default();
        of_volume.retain(|(link, _)| link.is_open());
        if of_volume.len() >= WAITING_MAX {
            of_volume.pop_front();
        }
        of_volume.push_back((Arc::clone(link), frame));
    }

    /// An answer of a replica has come in.
    pub(crate) fn answer(&self, link: &Arc<Link>, frame: FromReplica) {
        if let Some(engine) = self.engine(frame.volume) {
            engine.answer(link, frame);
        }
    }

    /// The connection from a worker to a node, if it is up; else it is wished for.
    pub(crate) fn to(&self, volume: VolumeId, node: NodeNumber) -> Option<Arc<Link>> {
        let mailboxes = self.mailboxes.get()?;
        let [.., last] = volume.0;
        let worker = usize::from(last) % mailboxes.workers().max(1);
        if let Some(link) = lock(&self.up).get(&(worker, node)) {
            return Some(Arc::clone(link));
        }
        if lock(&self.wishes).insert((worker, node)) {
            mailboxes.post_interconnect(worker, Box::new(Poke));
        }
        None
    }

    /// The nodes that a worker is to connect to; asked once.
    pub(crate) fn take_wishes(&self, worker: usize) -> Vec<NodeNumber> {
        let mut wishes = lock(&self.wishes);
        if wishes.is_empty() {
            return Vec::new();
        }
        let mine: Vec<NodeNumber> = wishes.iter().filter(|(w, _)| *w == worker).map(|(_, n)| *n).collect();
        wishes.retain(|(w, _)| *w != worker);
        mine
    }

    /// A connection that this node made is up.
    pub(crate) fn link_up(&self, link: &Arc<Link>) {
        lock(&self.up).insert((link.worker, link.node), Arc::clone(link));
        for engine in self.engines() {
            engine.connect();
        }
    }

    /// A connection, of either direction, is gone.
    pub(crate) fn link_down(&self, link: &Arc<Link>) {
        link.close();
        let mut up = lock(&self.up);
        if up.get(&(link.worker, link.node)).is_some_and(|now| now.id == link.id) {
            up.remove(&(link.worker, link.node));
        }
        drop(up);
        for engine in self.engines() {
            engine.disconnected(link);
        }
    }

    /// A unit has begun to serve: the ports try again what they hold.
    pub(crate) fn retry(&self) {
        if let Some(mailboxes) = self.mailboxes.get() {
            mailboxes.post_all(|| Message::Retry);
        }
    }
}
