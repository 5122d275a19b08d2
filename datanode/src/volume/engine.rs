//! The replication core of one volume on this node, driven: its [`Secondary`], and its [`Primary`] while this node is the owner.
//!
//! ```text
//!   host I/O (jobs)      frames of other nodes (link)      view (hosting)      time (pulse)
//!         \                     |                              |                /
//!          +--------------------+---- one lock, no I/O under it ----------------+
//!                               |
//!           work: disk (disk), frames out, proposals (agent), replies to units
//! ```
//!
//! Invariants: the lock is held for thinking only, never during I/O or while a unit is told; what the machines want is done in
//! the order in which they want it, as far as they ask for an order; a request of a host is answered once; an answer is
//! taken from the owner's machine only while the lease gate is open; a machine's answers go to the connection
//! that its newest promise came by.

mod damage;
mod pump;

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use holdfast_replica::config::{Owner, VolumeConfig};
use holdfast_replica::epoch::Epoch;
use holdfast_replica::ids::{NodeNumber, VolumeId};
use holdfast_replica::limits::REPLICA_REQUESTS_MAX;
use holdfast_replica::primary::{Change, Output, Primary, Start, Stop};
use holdfast_replica::replication::{Answer, FromReplica, Request, ToReplica};
use holdfast_replica::secondary::{Command, Opened, Secondary};
use holdfast_replica::span::Shape;
use holdfast_scsi::time::Instant;

use super::disk::{DiskJob, DiskResult};
use super::hosting::lane;
use super::jobs::{HostFailure, HostResult, Job, Jobs, Reply, deliver};
use super::link::{Link, Parcel};
use super::report::Speed;
use crate::agent::{self, ChangeConfiguration, ChangeResult, WantedChange};
use crate::clock;
use crate::data_plane::router::Bytes;
use crate::store::Store;
use crate::store::io_threads::{IoThreads, Lane};
use crate::store::replica::Replica;
use crate::view::Shared;

/// A hand-over that was refused is asked for again after this time, in milliseconds.
const HAND_OVER_AGAIN_MS: u64 = 1_000;
/// Copies to learners move no more than this while hosts use the volume, in bytes a second: about a third of what a link of
/// 1 Gbit/s or a disk moves, so that hosts keep most of their speed.
const COPY_RATE_BUSY: u64 = 40 * 1024 * 1024;
/// Hosts that have asked for nothing for so long do not use the volume, in milliseconds.
const BUSY_MS: u64 = 1_000;
/// A replica that has had nothing to do for so long shortens its log, in milliseconds.
const SWEEP_AFTER_MS: u64 = 1_000;

/// What an engine needs of the process.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings {
    pub(crate) shared: Arc<Shared>,
    pub(crate) io: IoThreads,
    pub(crate) agent: agent::Handle,
}

thread_local! {
    static INLINE_IO: Cell<bool> = const { Cell::new(true) };
}

/// Does something on a thread that must not even write to the page cache.
pub(super) fn without_inline_io<T>(something: impl FnOnce() -> T) -> T {
    INLINE_IO.set(false);
    let result = something();
    INLINE_IO.set(true);
    result
}

/// True where short I/O may be done at once.
pub(super) fn may_do_io() -> bool {
    INLINE_IO.get()
}

/// See the module.
pub(crate) struct Engine {
    pub(super) id: VolumeId,
    pub(super) replica: Arc<Replica>,
    pub(super) around: Surroundings,
    /// In bytes; never changes.
    pub(super) block_size: u32,
    inner: Mutex<Inner>,
    /// Told when nothing is under way any more.
    idle: Condvar,
    serving: AtomicBool,
    out_of_service: AtomicBool,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Engine({})", self.id)
    }
}

/// Where the newest promise was asked for.
#[derive(Clone, Debug)]
enum Source {
    Own,
    Link(Arc<Link>),
}

#[derive(Debug)]
struct Newest {
    epoch: Epoch,
    session: u64,
    term: Epoch,
    source: Source,
}

/// This node as the owner.
pub(super) struct Owned {
    pub(super) me: Owner,
    pub(super) config: VolumeConfig,
    pub(super) primary: Primary<Bytes>,
    links: HashMap<NodeNumber, Arc<Link>>,
    own_session: Option<u64>,
    pub(super) jobs: Jobs,
    pub(super) speeds: HashMap<NodeNumber, Speed>,
    hand_over: HandOver,
}

/// A planned hand-over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HandOver {
    No,
    /// Wished for, not before this moment.
    Wished(NodeNumber, Instant),
    /// Nothing new is begun; what is under way ends.
    Draining(NodeNumber),
    /// Asked for, starting from this epoch.
    Proposed(NodeNumber, Epoch),
}

pub(super) struct Inner {
    pub(super) secondary: Secondary<Bytes>,
    newest: Option<Newest>,
    pub(super) owned: Option<Owned>,
    pub(super) shape: Shape,
    /// Commands that the replica's machine has given and that are not yet looked at.
    commands: VecDeque<Command<Bytes>>,
    beyond_the_end: VecDeque<(Source, ToReplica<Bytes>)>,
    leaving: Leaving,
    /// Nothing new of hosts is begun, while a snapshot is taken.
    frozen: bool,
    closed: bool,
    under_way: usize,
    last_active: Instant,
    /// When a host last asked for something.
    last_asked: Instant,
    swept: bool,
}

/// The own replica has failed: the volume is to go to another one.
#[derive(Clone, Debug)]
enum Leaving {
    No,
    Proposed(ChangeConfiguration),
    /// Nobody may take it now. Asked for again from this moment on.
    Refused(ChangeConfiguration, Instant),
}

/// What is left to do outside the lock.
pub(super) enum Work {
    Disk(DiskJob),
    Reply(u64, Reply, HostResult),
    Propose(ChangeConfiguration),
    Stopped(Stop),
}

impl Engine {
    /// Drives what was opened. `flushed`: the caller has brought the replica's data to the medium.
    pub(crate) fn new(around: Surroundings, replica: Arc<Replica>, opened: Opened) -> Arc<Engine> {
        let (id, shape) = (opened.volume, opened.shape);
        let inner = Inner {
            secondary: Secondary::new(opened),
            newest: None,
            owned: None,
            shape,
            commands: VecDeque::new(),
            beyond_the_end: VecDeque::new(),
            leaving: Leaving::No,
            frozen: false,
            closed: false,
            under_way: 0,
            last_active: clock::scsi_now(),
            last_asked: Instant(0),
            swept: false,
        };
        Arc::new(Engine {
            id,
            replica,
            around,
            block_size: shape.block_size(),
            inner: Mutex::new(inner),
            idle: Condvar::new(),
            serving: AtomicBool::new(false),
            out_of_service: AtomicBool::new(false),
        })
    }

    /// Its volume.
    pub(crate) fn id(&self) -> VolumeId {
        self.id
    }

    /// The data of the own replica.
    pub(crate) fn store(&self) -> &dyn Store {
        self.replica.store()
    }

    /// True while the owner's machine takes requests (under a lease).
    pub(crate) fn is_serving(&self) -> bool {
        self.serving.load(Ordering::Acquire)
    }

    /// True once the owner's replica has failed and nobody else can serve: hosts have to hear of it.
    pub(crate) fn is_out_of_service(&self) -> bool {
        self.out_of_service.load(Ordering::Acquire)
    }

    /// True once its disk has failed: it has to be opened anew.
    pub(crate) fn is_broken(&self) -> bool {
        self.lock().secondary.is_broken()
    }

    /// True while the owner's machine runs here.
    pub(crate) fn is_owned(&self) -> bool {
        self.lock().owned.is_some()
    }

    /// This node owns the volume by this configuration: begins, or goes on where nobody can have come between.
    pub(crate) fn own(self: &Arc<Self>, me: Owner, config: &VolumeConfig, new_volume: bool) {
        let now = clock::scsi_now();
        let mut inner = self.lock();
        if inner.closed {
            return;
        }
        // Whoever else owned it in between would have ended the ownership here: see `disown` and `resume_at`.
        let goes_on = inner.owned.as_ref().is_some_and(|owned| owned.me == me);
        if goes_on {
            if let Some(owned) = &mut inner.owned
                && config.epoch() > owned.config.epoch()
            {
                owned.config = config.clone();
                owned.primary.configured(now, config);
                if let HandOver::Proposed(to, _) = owned.hand_over {
                    owned.hand_over = HandOver::Draining(to);
                }
            }
            return self.run(inner, None, &mut None);
        }
        let mut work = Vec::new();
        inner.end_ownership(&mut work);
        inner.leaving = Leaving::No;
        self.out_of_service.store(false, Ordering::Release);
        let faults = holdfast_replica::faults::Faults::NONE;
        let start =
            Start { volume: self.id, shape: inner.shape, me, config: config.clone(), new_volume, faults };
        let mut primary = Primary::new(now, start);
        let own_session = primary.connected(now, me.node);
        inner.owned = Some(Owned {
            me,
            config: config.clone(),
            primary,
            links: HashMap::new(),
            own_session,
            jobs: Jobs::default(),
            speeds: HashMap::new(),
            hand_over: HandOver::No,
        });
        inner.connect(self);
        self.run_with(inner, work, None, &mut None);
    }

    /// This node does not own the volume (any more).
    pub(crate) fn disown(self: &Arc<Self>) {
        let mut work = Vec::new();
        let mut inner = self.lock();
        inner.leaving = Leaving::No;
        self.out_of_service.store(false, Ordering::Release);
        inner.end_ownership(&mut work);
        self.run_with(inner, work, None, &mut None);
    }

    /// What has happened up to `epoch` is not known: an ownership that is not of this very epoch ends.
    pub(crate) fn resume_at(self: &Arc<Self>, epoch: Epoch) {
        if self.look(|inner| inner.owned.as_ref().is_some_and(|owned| owned.config.epoch() != epoch)) {
            self.disown();
        }
    }

    /// The owner is to hand over to `to`; `None`: it is not, after all.
    pub(crate) fn wish_hand_over(self: &Arc<Self>, to: Option<NodeNumber>) {
        let now = clock::scsi_now();
        let mut inner = self.lock();
        if let Some(owned) = &mut inner.owned {
            owned.hand_over = match (to, owned.hand_over) {
                (None, HandOver::Proposed(..)) => owned.hand_over,
                (None, _) => HandOver::No,
                (Some(to), HandOver::No | HandOver::Wished(..)) => HandOver::Wished(to, now),
                (Some(_), under_way) => under_way,
            };
        }
        self.run(inner, None, &mut None);
    }

    /// Ends all of it and waits for what is at the disk. Blocks. Nothing is taken afterwards.
    pub(crate) fn close(self: &Arc<Self>) {
        let mut work = Vec::new();
        let mut inner = self.lock();
        inner.closed = true;
        inner.end_ownership(&mut work);
        self.run_with(inner, work, None, &mut None);
        let mut inner = self.lock();
        while inner.under_way > 0 {
            inner = self.idle.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A request of another node's owner has come by `link`.
    pub(crate) fn request(self: &Arc<Self>, link: &Arc<Link>, frame: ToReplica<Bytes>) {
        let mut inner = self.lock();
        if inner.closed {
            return;
        }
        let source = Source::Link(Arc::clone(link));
        inner.take_or_keep_request(source, frame);
        self.run(inner, None, &mut None);
    }

    /// An answer of another node's replica has come by `link`.
    pub(crate) fn answer(self: &Arc<Self>, link: &Arc<Link>, frame: FromReplica) {
        let mut inner = self.lock();
        if let Some(owned) = &mut inner.owned
            && owned.links.get(&link.node()).is_some_and(|known| known.id() == link.id())
        {
            owned.primary.handle(clock::scsi_now(), link.node(), frame);
        }
        self.run(inner, None, &mut None);
    }

    /// A connection may be up now.
    pub(crate) fn connect(self: &Arc<Self>) {
        let mut inner = self.lock();
        inner.connect(self);
        self.run(inner, None, &mut None);
    }

    /// A connection is gone.
    pub(crate) fn disconnected(self: &Arc<Self>, link: &Arc<Link>) {
        let mut inner = self.lock();
        if let Some(owned) = &mut inner.owned
            && owned.links.get(&link.node()).is_some_and(|known| known.id() == link.id())
        {
            owned.links.remove(&link.node());
            owned.primary.disconnected(clock::scsi_now(), link.node());
        }
        if let Some(Newest { term, session, source: Source::Link(by), .. }) = &inner.newest
            && by.id() == link.id()
        {
            let (term, session) = (*term, *session);
            inner.secondary.disconnected(term, session);
        }
        self.run(inner, None, &mut None);
    }

    /// Time passes. Called every few tens of milliseconds.
    pub(crate) fn tick(self: &Arc<Self>) {
        let now = clock::scsi_now();
        let view = self.around.shared.view.load();
        let mut inner = self.lock();
        if let Some(owned) = &mut inner.owned {
            for node in owned.primary.peers().collect::<Vec<_>>() {
                let down = view.as_ref().and_then(|v| v.nodes.get(&node)).is_some_and(|n| !n.live);
                if down {
                    owned.primary.node_down(now, node);
                }
            }
            if let HandOver::Wished(to, at) = owned.hand_over
                && at <= now
                && owned.primary.is_serving()
            {
                tracing::info!(volume = %self.id, %to, "handing over");
                owned.hand_over = HandOver::Draining(to);
            }
        }
        if inner.owned.is_some() {
            inner.connect(self);
        }
        let mut work = Vec::new();
        if let Leaving::Refused(wanted, at) = &inner.leaving
            && *at <= now
        {
            work.push(Work::Propose(wanted.clone()));
            inner.leaving = Leaving::Proposed(wanted.clone());
        }
        let idle = inner.under_way == 0 && now.millis_since(inner.last_active) >= SWEEP_AFTER_MS;
        if idle && !std::mem::replace(&mut inner.swept, true) {
            inner.secondary.sweep();
        }
        let busy = now.millis_since(inner.last_asked) < BUSY_MS;
        if let (Some(owned), Some(until)) = (&mut inner.owned, self.around.shared.gate.serve_until_ms()) {
            owned.primary.set_copy_rate(busy.then_some(COPY_RATE_BUSY));
            owned.primary.set_lease(Instant(until));
            if self.around.shared.gate.open(now.0) {
                owned.primary.tick(now);
            }
        }
        self.run_with(inner, work, None, &mut None);
    }

    /// Takes a request of a host. Its result comes back at once where it can, else by `reply`.
    pub(crate) fn submit(self: &Arc<Self>, job: Job) -> Option<HostResult> {
        if self.is_out_of_service() {
            return Some(HostResult::Failed(HostFailure::Hardware));
        }
        let mut inner = self.lock();
        inner.last_asked = clock::scsi_now();
        inner.last_active = inner.last_asked;
        inner.swept = false;
        let gate = &self.around.shared.gate;
        let serves = self.is_serving() && gate.open(clock::now_ms());
        let frozen = inner.frozen;
        let Some(owned) = inner.owned.as_mut().filter(|owned| serves && !frozen && owned.hand_over.admits())
        else {
            return Some(HostResult::NOT_EXECUTED);
        };
        if let Some(until) = gate.serve_until_ms() {
            owned.primary.set_lease(Instant(until));
        }
        let id = owned.jobs.begin(clock::scsi_now(), &mut owned.primary, job);
        let mut result = None;
        self.run(inner, Some(id), &mut result);
        result
    }

    /// Begins nothing new of hosts until [`Engine::thaw`]; what is under way ends.
    pub(crate) fn freeze(self: &Arc<Self>) {
        let mut inner = self.lock();
        inner.frozen = true;
        self.run(inner, None, &mut None);
    }

    /// Goes on.
    pub(crate) fn thaw(self: &Arc<Self>) {
        let mut inner = self.lock();
        inner.frozen = false;
        self.run(inner, None, &mut None);
    }

    /// True while it is frozen, owns the volume in this epoch, and no replica in sync has anything still to do: they are alike then.
    pub(crate) fn is_frozen_still(&self, epoch: Epoch) -> bool {
        self.look(|inner| {
            inner.frozen
                && inner.owned.as_ref().is_some_and(|owned| {
                    owned.config.epoch() == epoch && owned.jobs.is_empty() && owned.primary.is_recovered()
                })
        })
    }

    /// A disk job has ended, on whatever thread.
    pub(super) fn disk_done(self: &Arc<Self>, result: DiskResult) {
        let mut inner = self.lock();
        inner.disk_done(result);
        self.run(inner, None, &mut None);
    }

    /// What became of a proposal.
    fn proposed(self: &Arc<Self>, wanted: &ChangeConfiguration, result: ChangeResult) {
        let now = clock::scsi_now();
        let mut inner = self.lock();
        if let (Leaving::Proposed(leaving), ChangeResult::Refused(reason)) = (&inner.leaving, &result)
            && leaving.expected == wanted.expected
        {
            tracing::error!(volume = %self.id, reason, "no other replica can take the volume: it is out of service");
            inner.leaving = Leaving::Refused(leaving.clone(), now.plus_millis(HAND_OVER_AGAIN_MS));
            self.out_of_service.store(true, Ordering::Release);
        }
        if let (Some(owned), ChangeResult::Refused(reason)) = (&mut inner.owned, &result)
            && owned.config.epoch() == wanted.expected
        {
            tracing::warn!(volume = %self.id, change = ?wanted.change, reason, "the controller refuses a change");
            match (wanted.change, owned.hand_over) {
                (WantedChange::HandOver { .. }, HandOver::Proposed(to, _)) => {
                    owned.hand_over = HandOver::Wished(to, now.plus_millis(HAND_OVER_AGAIN_MS));
                }
                (WantedChange::HandOver { .. }, _) => {}
                _ => owned.primary.refused(now),
            }
        }
        self.run(inner, None, &mut None);
    }

    /// Reads what the machines know, under the lock.
    pub(super) fn look<T>(&self, at: impl FnOnce(&Inner) -> T) -> T {
        at(&self.lock())
    }

    /// The same where something is noted by the way. The machines are not told anything.
    pub(super) fn change<T>(&self, at: impl FnOnce(&mut Inner) -> T) -> T {
        at(&mut self.lock())
    }

    /// The replica has been made larger: its machines may use it.
    pub(crate) fn grow(self: &Arc<Self>, shape: Shape) {
        let mut inner = self.lock();
        if shape != inner.shape {
            inner.shape = shape;
            inner.secondary.grow(shape);
            for (source, frame) in std::mem::take(&mut inner.beyond_the_end) {
                inner.take_request(source, frame);
            }
            if let Some(owned) = &mut inner.owned {
                owned.primary.grow(clock::scsi_now(), shape);
            }
        }
        self.run(inner, None, &mut None);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|poisoned: PoisonError<_>| {
            tracing::error!(volume = %self.id, "the replication core panicked: ending the process");
            drop(poisoned);
            std::process::abort()
        })
    }

    /// The lane of its data.
    pub(super) fn lane(&self) -> Lane {
        lane(self.id)
    }

    fn run<'a>(
        self: &'a Arc<Self>,
        inner: MutexGuard<'a, Inner>,
        own: Option<u64>,
        own_result: &mut Option<HostResult>,
    ) {
        self.run_with(inner, Vec::new(), own, own_result);
    }

    /// Does what the machines want until they want nothing more for now. The result of job `own` goes to `own_result`.
    fn run_with<'a>(
        self: &'a Arc<Self>,
        mut inner: MutexGuard<'a, Inner>,
        mut work: Vec<Work>,
        own: Option<u64>,
        own_result: &mut Option<HostResult>,
    ) {
        loop {
            inner.pump(self, &mut work);
            let serving = inner
                .owned
                .as_ref()
                .is_some_and(|owned| owned.primary.is_serving() && owned.hand_over.admits())
                && !inner.frozen;
            let begins = serving && !self.serving.swap(serving, Ordering::AcqRel);
            if !serving {
                self.serving.store(false, Ordering::Release);
            }
            // A notification is a system call, whether anyone waits or not.
            if inner.closed && inner.under_way == 0 {
                self.idle.notify_all();
            }
            drop(inner);
            if begins {
                tracing::info!(volume = %self.id, "serving");
                self.around.shared.links.retry();
            }
            let mut done = Vec::new();
            for work in work.drain(..) {
                match work {
                    Work::Disk(job) => done.extend(self.perform(job)),
                    Work::Reply(id, _, result) if own == Some(id) => *own_result = Some(result),
                    Work::Reply(_, reply, result) => deliver(reply, result),
                    Work::Propose(wanted) => self.propose(wanted),
                    Work::Stopped(why) => self.stopped(why),
                }
            }
            if done.is_empty() {
                return;
            }
            inner = self.lock();
            for result in done {
                inner.disk_done(result);
            }
        }
    }

    fn propose(self: &Arc<Self>, wanted: ChangeConfiguration) {
        tracing::info!(volume = %self.id, epoch = %wanted.expected, change = ?wanted.change, "asking for a change");
        let (engine, asked) = (Arc::clone(self), wanted.clone());
        let io = self.around.io.clone();
        // The agent's thread does no I/O, and this may lead to some.
        let reply = Box::new(move |result| {
            let lane = engine.lane().wrapping_add(1);
            io.submit(lane, Box::new(move || engine.proposed(&asked, result)));
        });
        self.around.agent.change_configuration(wanted, reply);
    }

    fn stopped(&self, why: Stop) {
        match why {
            Stop::Deposed => {
                tracing::info!(volume = %self.id, "another configuration has come: serving ends")
            }
            Stop::ReplicaFailed => tracing::error!(volume = %self.id, "the owner's own replica failed"),
            Stop::Asked => {}
        }
    }
}

fn wanted(volume: VolumeId, me: Owner, config: &VolumeConfig, change: WantedChange) -> ChangeConfiguration {
    ChangeConfiguration { volume, expected: config.epoch(), incarnation: me.incarnation, change }
}

impl HandOver {
    fn admits(self) -> bool {
        matches!(self, HandOver::No | HandOver::Wished(..))
    }
}
