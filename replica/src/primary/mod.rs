//! The owner of a volume: takes the requests of hosts and keeps every in-sync replica alike.
//!
//! * **Writes** (`writes`): locked by range in the order of arrival, numbered, sent to every in-sync replica and every
//!   learner that streams, answered when every in-sync replica has them (6.7).
//! * **Reads** wait for the writes that they overlap, and writes for reads (6.8): what a host has read is on every
//!   in-sync replica.
//! * **Members** (`members`): promises, connections, the silent one that is removed by compare-and-set before anything is
//!   answered without it (6.9), and the learner that counts before it is admitted (6.16).
//! * **Recovery** (`recovery`): a new owner copies its version of what was active over the others (6.15); a rejoining
//!   replica is brought up (6.16, 6.17).
//! * **Healing** (`healing`): what one disk has lost comes from another.
//!
//! The owner's own replica is a [`crate::secondary::Secondary`] like the others, behind a connection of no length. The shell
//! connects to every member that it is told of, carries frames, reads blocks when asked, and puts proposals to the
//! controller.
//!
//! Invariants: an answer is given only under the lease, and only when every replica that counts has the request, where
//! all of them have promised the present epoch; while a change of the configuration is under way, those of the old and of
//! the new one count; no change takes effect here before it is committed.

mod healing;
mod members;
mod recovery;

mod writes;

use alloc::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    vec::Vec,
};

use crate::{
    activity_log::{LogEntry, Settled},
    config::{Owner, VolumeConfig},
    epoch::Epoch,
    faults::{Fault, Faults},
    ids::{BootId, NodeNumber, VolumeId},
    limits::{ATOMIC_BYTES_MAX, COPY_BYTES, WINDOW_BYTES, WINDOW_REQUESTS},
    ranges::{Mode, Ranges, Ticket},
    replication::{Body, Promise, Request, ToReplica},
    span::{Shape, Span},
};

pub use holdfast_scsi::time::Instant;
pub use recovery::Progress;

/// A change of the configuration that the owner asks for, by compare-and-set on its epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Go on without a replica.
    Evict(NodeNumber),
    /// Count a learner that has caught up.
    Admit(NodeNumber),
}

/// Why the owner has stopped. It serves no more; a new [`Primary`] takes a new epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The volume has another owner, or a replica has promised a higher epoch.
    Deposed,
    /// Its own replica failed: hand over and leave the in-sync set (6.12).
    ReplicaFailed,
    /// The shell stopped it.
    Asked,
}

/// What the shell is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output<B> {
    /// Send a frame on the connection to a replica.
    Send(NodeNumber, ToReplica<B>),
    /// Read blocks for a host, then call [`Primary::read_done`].
    Read(u64, Span),
    /// Read blocks to copy, then call [`Primary::copy_data`].
    Copy(u64, Span),
    /// Ask the controller for a change of the configuration with this epoch, until it is known what became of it.
    Propose(Change, Epoch),
    /// Call [`Primary::start_resync`] with the bitmap that the own replica keeps for this learner.
    StartResync(NodeNumber),
    /// Call [`Primary::merge_bitmaps`] with the bitmaps that the own replica keeps.
    MergeBitmaps(NodeNumber),
    /// Stop serving.
    Stopped(Stop),
}

/// How a request of a host ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done, with the durability asked.
    Done,
    /// Too few replicas are left; the write may or may not outlive the ones that are.
    NotEnoughReplicas,
    /// There is only one copy, and no space on its disk. Part of the write may have been done.
    NoSpace,
    /// The blocks could not be read.
    ReadFailed,
}

/// Why a request was not taken. Nothing was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Not (yet, any more) the owner, or no lease.
    NotServing,
    /// Fewer replicas are in sync than the volume needs to be written (6.10).
    NotEnoughReplicas,
    /// The window is full.
    Busy,
    /// Out of the volume, longer than one request may be, or data of another length; or the id is in use. The caller is at
    /// fault.
    Misuse,
}

/// How a replica is, as its owner sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerState {
    /// It has not promised the present epoch on a connection that is up.
    Connecting,
    /// It counts for every answer.
    InSync,
    /// It waits for its turn to catch up.
    Waiting,
    /// It gets what it lacks.
    Copying(Progress),
    /// It has all of it, or is about to begin: a matter of moments.
    Joining,
}

/// What a new owner knows.
#[derive(Clone, Debug)]
pub struct Start {
    /// The volume.
    pub volume: VolumeId,
    /// Its size and units.
    pub shape: Shape,
    /// This node and process.
    pub me: Owner,
    /// The configuration that gives it the volume.
    pub config: VolumeConfig,
    /// Its replicas are being made just now: they may take longer for their first promise.
    pub new_volume: bool,
    /// [`Faults::NONE`].
    pub faults: Faults,
}

#[derive(Debug)]
enum Stage {
    /// Counts for every answer.
    InSync,
    /// Not connected, or waiting for its turn.
    Waiting,
    /// Waits until no write is under way, so that its stream begins at a clean cut.
    Beginning(Ticket),
    /// Gets live writes, and copies of what it lacks.
    Copying(recovery::Todo),
    /// Waits until no write is under way, so that the bitmaps that it gets are complete.
    Merging(Ticket),
    /// Counts for every answer, until the barrier is through and then until it is admitted.
    Counted,
}

#[derive(Debug)]
struct Peer {
    stage: Stage,
    boot: BootId,
    /// Of the present connection.
    session: Option<u64>,
    /// It has promised the present epoch on it.
    promised: bool,
    /// When the promise was asked for.
    asked: Instant,
    /// Numbered requests may be sent.
    streams: bool,
    failed: bool,
    /// Its node is down.
    lost: bool,
    untrusted: bool,
    entries: Vec<LogEntry>,
    told: Settled,
}

impl Peer {
    fn counts(&self) -> bool {
        matches!(self.stage, Stage::InSync | Stage::Counted)
    }

    fn in_sync(&self) -> bool {
        matches!(self.stage, Stage::InSync)
    }
}

/// What a numbered request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    HostWrite(u64),
    HostFlush(u64, u64),
    /// To make room in the log: (writes up to here).
    Flush(u64),
    Record,
    Copy(u64),
    RecoveryFlush,
    Merge,
    Barrier(NodeNumber),
    /// The learner records that it can be trusted.
    Whole(NodeNumber),
    /// Blocks that the own replica has lost.
    Heal(u64),
    Repair(u64),
}

impl Purpose {
    /// One of the last steps of a learner, which begin anew with its barrier.
    fn is_barrier(self, of: NodeNumber) -> bool {
        matches!(self, Purpose::Barrier(node) | Purpose::Whole(node) if node == of)
    }
}

#[derive(Debug)]
struct InFlight<B> {
    request: Request<B>,
    purpose: Purpose,
    waiting: BTreeSet<NodeNumber>,
    issued: Instant,
}

#[derive(Debug)]
enum Host<B> {
    Read { span: Span, ticket: Option<Ticket>, healed_until: u64 },
    Write { span: Span, body: Body<B>, durable: bool, ticket: Ticket },
    Flush,
}

/// Who holds or waits for a lock.
#[derive(Clone, Copy, Debug)]
enum Holder {
    Host(u64),
    Recovery,
    Copy(u64),
    Begin(NodeNumber),
    Merge(NodeNumber),
    Heal(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Every in-sync replica has to promise.
    Collecting,
    /// The union of their active extents goes to their logs.
    Recording,
    /// Serving; those extents are still being copied.
    Recovering,
    /// Serving; what was copied goes to the disks.
    Flushing,
    /// Nothing is left of earlier terms.
    Recovered,
}

#[derive(Clone, Copy, Debug, Default)]
struct LiveExtent {
    in_flight: u32,
    last_cached: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Primary<B> {
    start: Start,
    term: Epoch,
    config: VolumeConfig,
    phase: Phase,
    stopped: bool,
    lease_end: Instant,
    peers: BTreeMap<NodeNumber, Peer>,
    pending: Option<Change>,
    last_session: u64,
    last_number: u64,
    settled: Settled,
    ranges: Ranges,
    holders: BTreeMap<Ticket, Holder>,
    hosts: BTreeMap<u64, Host<B>>,
    /// Reads that are at the own disk, since when.
    reading: BTreeMap<u64, Instant>,
    host_bytes: u64,
    in_flight: BTreeMap<u64, InFlight<B>>,
    extents: BTreeMap<u64, LiveExtent>,
    carried: BTreeSet<u64>,
    /// Writes that wait for room in the activity log.
    parked: VecDeque<u64>,
    flush_wanted: bool,
    copies: recovery::Copies,
    heals: healing::Heals,
    outputs: VecDeque<Output<B>>,
    completions: VecDeque<(u64, Outcome)>,
}

impl<B: AsRef<[u8]> + Clone + From<Vec<u8>>> Primary<B> {
    /// A new owner under `start.config`, whose owner is `start.me`. Its term is that epoch.
    pub fn new(now: Instant, start: Start) -> Primary<B> {
        let mut primary = Primary {
            term: start.config.epoch(),
            config: start.config.clone(),
            start,
            phase: Phase::Collecting,
            stopped: false,
            lease_end: Instant(0),
            peers: BTreeMap::new(),
            pending: None,
            last_session: 0,
            last_number: 0,
            settled: Settled::default(),
            ranges: Ranges::default(),
            holders: BTreeMap::new(),
            hosts: BTreeMap::new(),
            reading: BTreeMap::new(),
            host_bytes: 0,
            in_flight: BTreeMap::new(),
            extents: BTreeMap::new(),
            carried: BTreeSet::new(),
            parked: VecDeque::new(),
            flush_wanted: false,
            copies: recovery::Copies::default(),
            heals: healing::Heals::default(),
            outputs: VecDeque::new(),
            completions: VecDeque::new(),
        };
        primary.adopt_members(now);
        primary
    }

    /// The epoch in which it began. With the number of a session it names a connection.
    pub fn term(&self) -> Epoch {
        self.term
    }

    /// The epoch it serves under.
    pub fn epoch(&self) -> Epoch {
        self.config.epoch()
    }

    /// True once it takes requests (under a lease).
    pub fn is_serving(&self) -> bool {
        !self.stopped && !matches!(self.phase, Phase::Collecting | Phase::Recording)
    }

    /// True once nothing of earlier terms is left to copy.
    pub fn is_recovered(&self) -> bool {
        self.phase == Phase::Recovered
    }

    /// The lease runs until `end`. It only moves on; a lease that has lapsed ends this owner: call [`Primary::stop`].
    pub fn set_lease(&mut self, end: Instant) {
        self.lease_end = self.lease_end.max(end);
    }

    fn lease_open(&self, now: Instant) -> bool {
        now < self.lease_end || self.start.faults.has(Fault::IgnoreLease)
    }

    /// Takes a write, zeroing or unmapping of a host. Answered by [`Primary::poll_completion`]. `durable`: write cache off, or
    /// FUA.
    ///
    /// # Errors
    /// [`Refusal`]: nothing was done.
    pub fn write(
        &mut self,
        now: Instant,
        id: u64,
        span: Span,
        body: Body<B>,
        durable: bool,
    ) -> Result<(), Refusal> {
        self.check(now, id)?;
        if !self.config.takes_writes() {
            return Err(Refusal::NotEnoughReplicas);
        }
        let len = span.blocks().saturating_mul(u64::from(self.start.shape.block_size()));
        let bytes = body.data().map_or(0, |data| data.as_ref().len() as u64);
        if !self.start.shape.holds(span)
            || (body.data().is_some() && bytes != len)
            || (matches!(body, Body::Atomic(_)) && bytes > ATOMIC_BYTES_MAX)
            || !self.touches_few(span)
        {
            return Err(Refusal::Misuse);
        }
        if self.host_bytes.saturating_add(bytes) > WINDOW_BYTES && self.host_bytes > 0 {
            return Err(Refusal::Busy);
        }
        self.host_bytes += bytes;
        let (ticket, granted) = self.ranges.lock(span, Mode::Exclusive);
        self.holders.insert(ticket, Holder::Host(id));
        self.hosts.insert(id, Host::Write { span, body, durable, ticket });
        if granted {
            self.begin_write(now, id);
        }
        Ok(())
    }

    /// Takes a read of a host.
    ///
    /// # Errors
    /// [`Refusal`]: nothing was done.
    pub fn read(&mut self, now: Instant, id: u64, span: Span) -> Result<(), Refusal> {
        self.check(now, id)?;
        if !self.start.shape.holds(span) {
            return Err(Refusal::Misuse);
        }
        if self.start.faults.has(Fault::ReadWithoutWaiting) {
            self.hosts.insert(id, Host::Read { span, ticket: None, healed_until: 0 });
            self.begin_read(now, id, span);
            return Ok(());
        }
        let (ticket, granted) = self.ranges.lock(span, Mode::Shared);
        self.holders.insert(ticket, Holder::Host(id));
        self.hosts.insert(id, Host::Read { span, ticket: Some(ticket), healed_until: 0 });
        if granted {
            self.begin_read(now, id, span);
        }
        Ok(())
    }

    fn begin_read(&mut self, now: Instant, id: u64, span: Span) {
        self.reading.insert(id, now);
        self.outputs.push_back(Output::Read(id, span));
    }

    /// The blocks of a read are there, or cannot be read.
    pub fn read_done(&mut self, now: Instant, id: u64, ok: bool) {
        self.reading.remove(&id);
        let Some(Host::Read { ticket, .. }) = self.hosts.get(&id) else { return };
        let ticket = *ticket;
        self.hosts.remove(&id);
        self.completions.push_back((id, if ok { Outcome::Done } else { Outcome::ReadFailed }));
        if let Some(ticket) = ticket {
            self.unlock(now, ticket);
        }
    }

    /// Takes a SYNCHRONIZE CACHE of a host: every write answered before is on disk everywhere when this is answered.
    ///
    /// # Errors
    /// [`Refusal`]: nothing was done.
    pub fn flush(&mut self, now: Instant, id: u64) -> Result<(), Refusal> {
        self.check(now, id)?;
        self.hosts.insert(id, Host::Flush);
        let through = self.settled.written;
        self.issue(now, Request::Flush, Purpose::HostFlush(id, through));
        Ok(())
    }

    fn check(&self, now: Instant, id: u64) -> Result<(), Refusal> {
        if !self.is_serving() || !self.lease_open(now) {
            return Err(Refusal::NotServing);
        }
        if self.hosts.contains_key(&id) {
            return Err(Refusal::Misuse);
        }
        if self.hosts.len() >= WINDOW_REQUESTS { Err(Refusal::Busy) } else { Ok(()) }
    }

    /// The next request that has ended. Asked under the lease only: later nobody may know what this owner thinks.
    pub fn poll_completion(&mut self, now: Instant) -> Option<(u64, Outcome)> {
        if self.stopped || !self.lease_open(now) {
            return None;
        }
        self.completions.pop_front()
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output<B>> {
        self.outputs.pop_front()
    }

    /// Ends this owner. What it has not answered has an unknown outcome (reads and what was refused excepted).
    pub fn stop(&mut self) {
        self.end(Stop::Asked);
    }

    /// The own replica has lost blocks that others have: ends this owner, so that one of them takes the volume.
    pub fn replica_failed(&mut self) {
        self.end(Stop::ReplicaFailed);
    }

    fn end(&mut self, why: Stop) {
        if !self.stopped {
            self.stopped = true;
            self.outputs.clear();
            self.outputs.push_back(Output::Stopped(why));
        }
    }

    /// A lock was granted.
    fn granted(&mut self, now: Instant, ticket: Ticket) {
        match self.holders.get(&ticket).copied() {
            Some(Holder::Host(id)) => match self.hosts.get(&id) {
                Some(Host::Read { span, .. }) => self.begin_read(now, id, *span),
                _ => self.begin_write(now, id),
            },
            Some(Holder::Copy(copy)) => self.begin_copy(copy),
            Some(Holder::Heal(heal)) => self.ask_next(now, heal),
            Some(Holder::Begin(node)) => self.outputs.push_back(Output::StartResync(node)),
            Some(Holder::Merge(node)) => self.outputs.push_back(Output::MergeBitmaps(node)),
            Some(Holder::Recovery) | None => {}
        }
    }

    fn unlock(&mut self, now: Instant, ticket: Ticket) {
        self.holders.remove(&ticket);
        for granted in self.ranges.release(ticket) {
            self.granted(now, granted);
        }
    }

    fn send(&mut self, node: NodeNumber, number: u64, request: Request<B>) {
        let mut settled = self.settled;
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let Some(session) = peer.session else { return };
        // A learner's own log is of use until it is admitted.
        settled.recovered &= peer.in_sync();
        peer.told = settled;
        let (volume, epoch) = (self.start.volume, self.config.epoch());
        let frame = ToReplica { volume, epoch, session, number, settled, request };
        self.outputs.push_back(Output::Send(node, frame));
    }

    fn ask_promise(&mut self, now: Instant, node: NodeNumber) {
        let nodes = |members: &[crate::config::Member]| members.iter().map(|m| m.node).collect();
        let promise = Promise {
            term: self.term,
            in_sync: nodes(self.config.in_sync()),
            learners: nodes(self.config.learners()),
        };
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.promised = false;
            peer.asked = now;
        }
        self.send(node, self.last_number, Request::Promise(promise));
    }
}

/// Bytes that copies may move before the next refill, at most: one second's worth, and never less than one copy.
fn allowance_max(bytes_per_second: u64) -> u64 {
    bytes_per_second.max(COPY_BYTES)
}
