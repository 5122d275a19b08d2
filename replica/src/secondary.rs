//! One replica of a volume: what it does with the frames of its owner. The owner's own replica is driven in the same way,
//! through a connection of no length, so each rule about a replica is written once.
//!
//! * **Promise** (6.6): a higher epoch, or a newer connection of the same one, first drains everything submitted before, then is
//!   made durable, then answered; frames behind it wait. A lower epoch is refused, with the one promised.
//! * **Write** (6.7, 6.16): overlapping ones one after the other, in their order; its extents in the activity log and its
//!   chunks in the bitmap of each absent replica are durable before it is applied; it is answered when it is as durable
//!   as was asked.
//! * **Who is absent** follows from the durable log, which names the in-sync set of the last promise: a node that has
//!   left it since lacks at most what the log holds, and gets a bitmap of that; a learner without a bitmap lacks
//!   everything. The bitmaps are durable before the log names the new set.
//!
//! Metadata goes to disk in batches, one at a time: [`Command::Persist`] must be durable, all of it, when it is reported done.
//!
//! Invariants: nothing is applied before its batch is durable; nothing is answered for a session that has ended; after
//! an I/O error everything is refused until the replica is opened anew; the extents of a write that failed, also for want of
//! space, stay in the log.

mod absent;
mod damage;

use alloc::{
    boxed::Box,
    collections::{BTreeMap, VecDeque},
    vec::Vec,
};

use crate::{
    Crc32c,
    activity_log::{self, ActivityLog},
    bitmap::{self, Bitmap},
    epoch::Epoch,
    faults::{Fault, Faults},
    ids::{BootId, NodeNumber, VolumeId},
    limits::{READ_BYTES_MAX, REPLICA_REQUESTS_MAX},
    ranges::{Mode, Ranges, Ticket},
    replication::{Answer, Body, Failure, FromReplica, Promise, Request, ToReplica},
    span::{Shape, Span},
};

/// What a replica is and what its disk held when it was opened.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The volume.
    pub volume: VolumeId,
    /// Its size and units.
    pub shape: Shape,
    /// This node.
    pub me: NodeNumber,
    /// The boot it runs under.
    pub boot: BootId,
    /// Checksums.
    pub crc32c: Crc32c,
    /// From the superblock.
    pub promised: Epoch,
    /// The activity log.
    pub log: ActivityLog,
    /// The bitmaps, one for each absent node that has a file.
    pub bitmaps: Vec<Bitmap>,
    /// [`Faults::NONE`].
    pub faults: Faults,
}

/// Metadata to bring to disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// The promise, into the superblock.
    Promise(Epoch),
    /// An image of the activity log and its slot.
    Log(usize, Box<[u8; activity_log::SLOT_LEN]>),
    /// A page of the bitmap for a node and its slot.
    Page(NodeNumber, usize, Box<[u8; bitmap::PAGE_LEN]>),
    /// The bitmap for a node is not needed any more.
    DropBitmap(NodeNumber),
}

/// What the shell is to do. Each one but [`Command::Answer`] and [`Command::Read`] is reported by [`Secondary::done`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command<B> {
    /// Bring all of these to disk, in any order. Done means durable.
    Persist(u64, Vec<Part>),
    /// Change blocks. Done means applied, and on disk if `durable`.
    Apply {
        /// Names the command.
        id: u64,
        /// Which blocks.
        span: Span,
        /// To what.
        body: Body<B>,
        /// Whether "done" means on disk.
        durable: bool,
    },
    /// Bring everything applied so far to disk.
    Flush(u64),
    /// Read blocks, then call [`Secondary::read_done`].
    Read(u64, Span),
    /// Send an answer to the owner.
    Answer(FromReplica),
}

#[derive(Debug)]
enum Work<B> {
    Write {
        span: Span,
        body: Option<Body<B>>,
        durable: bool,
        ticket: Ticket,
        granted: bool,
        recorded: bool,
    },
    Flush,
    Read {
        span: Span,
        ticket: Ticket,
        granted: bool,
    },
    /// Only metadata.
    Metadata,
}

#[derive(Debug)]
struct Job<B> {
    term: Epoch,
    session: u64,
    number: u64,
    work: Work<B>,
    /// Batch that must be durable before the next step.
    batch: u64,
    submitted: bool,
}

#[derive(Debug)]
enum Promising {
    /// Everything submitted before has to end.
    Draining,
    /// Bitmaps first.
    Bitmaps(u64),
    /// Then the promise and the log.
    Log(u64),
}

/// See the module.
#[derive(Debug)]
pub struct Secondary<B> {
    opened: Opened,
    bitmaps: BTreeMap<NodeNumber, Bitmap>,
    term: Epoch,
    session: u64,
    promising: Option<(ToReplica<()>, Promise, Promising)>,
    held: VecDeque<ToReplica<B>>,
    jobs: BTreeMap<u64, Job<B>>,
    ranges: Ranges,
    last_id: u64,
    batch_durable: u64,
    batch_in_flight: Option<(u64, u64)>,
    parts: Vec<Part>,
    broken: bool,
    commands: VecDeque<Command<B>>,
}

impl<B> Secondary<B> {
    /// A replica as its disk shows it. It answers nobody before a promise.
    pub fn new(opened: Opened) -> Secondary<B> {
        let bitmaps = opened.bitmaps.iter().map(|b| (b.node(), b.clone())).collect();
        Secondary {
            bitmaps,
            opened,
            term: Epoch::ZERO,
            session: 0,
            promising: None,
            held: VecDeque::new(),
            jobs: BTreeMap::new(),
            ranges: Ranges::default(),
            last_id: 0,
            batch_durable: 0,
            batch_in_flight: None,
            parts: Vec::new(),
            broken: false,
            commands: VecDeque::new(),
        }
    }

    /// The epoch that it has promised durably.
    pub fn promised(&self) -> Epoch {
        self.opened.promised
    }

    /// The bitmap kept for `node`; `None`: everything has to be copied to it.
    pub fn bitmap(&self, node: NodeNumber) -> Option<&Bitmap> {
        self.bitmaps.get(&node)
    }

    /// All bitmaps.
    pub fn bitmaps(&self) -> impl Iterator<Item = &Bitmap> {
        self.bitmaps.values()
    }

    /// True once a disk has failed: close the replica.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// The next thing to do.
    pub fn poll_command(&mut self) -> Option<Command<B>> {
        self.commands.pop_front()
    }

    /// Shortens the log while nothing else is written. For idle moments.
    pub fn sweep(&mut self) {
        if self.batch_in_flight.is_none() && self.promising.is_none() && !self.broken {
            self.opened.log.sweep();
            self.persist();
        }
    }

    /// The replica has been made larger on disk.
    pub fn grow(&mut self, shape: Shape) {
        self.opened.shape = shape;
        let next_batch = self.next_batch();
        for bitmap in self.bitmaps.values_mut() {
            bitmap.grow(shape, next_batch);
        }
        self.persist();
    }

    /// A frame of an owner.
    pub fn handle(&mut self, frame: ToReplica<B>) {
        if frame.volume != self.opened.volume {
            return;
        }
        let (epoch, session, number) = (frame.epoch, frame.session, frame.number);
        let newest = self.promising.as_ref().map_or(self.opened.promised, |(asked, ..)| asked.epoch);
        let newest_session = self.promising.as_ref().map_or(self.session, |(asked, ..)| asked.session);
        let allowed = self.opened.faults.has(Fault::AcceptOldEpoch);
        if epoch < newest && !allowed {
            self.answer(session, number, Answer::Refused);
            return;
        }
        match frame.request {
            // In its place in the stream: what came before it is of the epoch before.
            Request::Promise(ref next)
                if session == newest_session
                    && self.promising.as_ref().is_some_and(|(_, now, _)| now.term == next.term) =>
            {
                if self.held.len() < REPLICA_REQUESTS_MAX {
                    self.held.push_back(frame);
                }
            }
            Request::Promise(promise) => {
                let newer = (epoch, session) > (newest, newest_session);
                if !newer {
                    return;
                }
                if session != newest_session || self.term != promise.term {
                    // Only what is at the disk already has to end; the rest is sent again if it is still wanted.
                    self.held.clear();
                    self.drop_waiting();
                }
                let asked = ToReplica {
                    volume: frame.volume,
                    epoch,
                    session,
                    number,
                    settled: frame.settled,
                    request: Request::Settled,
                };
                self.promising = Some((asked, promise, Promising::Draining));
                self.advance_promise();
            }
            request => {
                if session != newest_session && !allowed {
                    return;
                }
                let frame = ToReplica { request, ..frame };
                if self.promising.is_some() {
                    if self.held.len() < REPLICA_REQUESTS_MAX {
                        self.held.push_back(frame);
                    }
                } else if epoch == self.opened.promised || allowed {
                    self.begin(frame);
                } else {
                    self.answer(session, number, Answer::Refused);
                }
            }
        }
    }

    /// The connection of an owner is gone: nothing more of it is begun. Sessions are told apart by the owner's term, too.
    pub fn disconnected(&mut self, term: Epoch, session: u64) {
        if (term, session) == (self.term, self.session) && self.promising.is_none() {
            self.held.clear();
            self.drop_waiting();
        }
    }

    /// A command has ended.
    pub fn done(&mut self, id: u64, result: Result<(), Failure>) {
        if let Err(failure) = result {
            self.fail(id, failure);
            return;
        }
        if let Some((batch_id, batch)) = self.batch_in_flight
            && batch_id == id
        {
            self.batch_in_flight = None;
            self.batch_durable = batch;
            self.after_job();
            return;
        }
        let Some(job) = self.jobs.remove(&id) else { return };
        if let Work::Write { span, ticket, recorded, .. } = job.work {
            if recorded {
                self.opened.log.end_write(self.opened.shape.extents_of(span));
            }
            self.release(ticket);
        }
        self.answer_job(job.term, job.session, job.number, Answer::Done);
        self.after_job();
    }

    fn after_job(&mut self) {
        self.continue_waiting();
        self.persist();
        self.advance_promise();
    }

    fn fail(&mut self, id: u64, failure: Failure) {
        // A full disk refuses a write and is none the worse for it. What there was of the write is not known, so its extents
        // stay active.
        if failure == Failure::NoSpace
            && matches!(self.jobs.get(&id), Some(Job { work: Work::Write { .. }, .. }))
            && let Some(Job { term, session, number, work: Work::Write { ticket, .. }, .. }) =
                self.jobs.remove(&id)
        {
            self.release(ticket);
            self.answer_job(term, session, number, Answer::Failed(failure));
            self.after_job();
            return;
        }
        self.broken = true;
        if let Some(job) = self.jobs.remove(&id) {
            self.answer_job(job.term, job.session, job.number, Answer::Failed(failure));
        }
        for (_, job) in core::mem::take(&mut self.jobs) {
            self.answer_job(job.term, job.session, job.number, Answer::Failed(failure));
        }
    }

    fn begin(&mut self, frame: ToReplica<B>) {
        let ToReplica { session, number, settled, request, .. } = frame;
        self.opened.log.settle(settled);
        if matches!(request, Request::Settled | Request::Promise(_)) {
            return;
        }
        if self.broken || self.jobs.len() >= REPLICA_REQUESTS_MAX {
            self.answer(session, number, Answer::Failed(Failure::Io));
            return;
        }
        self.last_id += 1;
        let id = self.last_id;
        let next_batch = self.next_batch();
        let (work, batch) = match request {
            Request::Write { span, body, durable } => {
                if !self.opened.shape.holds(span) {
                    self.answer(session, number, Answer::Failed(Failure::OutOfRange));
                    return;
                }
                let (ticket, granted) = self.ranges.lock(span, Mode::Exclusive);
                let body = Some(body);
                (Work::Write { span, body, durable, ticket, granted, recorded: false }, 0)
            }
            Request::Flush => (Work::Flush, 0),
            Request::Read(span) => {
                let bytes = span.blocks().saturating_mul(u64::from(self.opened.shape.block_size()));
                if !self.opened.shape.holds(span) || bytes > READ_BYTES_MAX {
                    self.answer(session, number, Answer::Failed(Failure::OutOfRange));
                    return;
                }
                let (ticket, granted) = self.ranges.lock(span, Mode::Shared);
                (Work::Read { span, ticket, granted }, 0)
            }
            Request::Record(extents) => match self.opened.log.record(&extents, next_batch) {
                Ok(batch) => (Work::Metadata, batch),
                Err(_) => {
                    self.answer(session, number, Answer::Failed(Failure::LogFull));
                    return;
                }
            },
            Request::Merge { node, page, bits } => {
                let shape = self.opened.shape;
                let bitmap =
                    self.bitmaps.entry(node).or_insert_with(|| Bitmap::new(node, shape, false, next_batch));
                match bitmap.merge_page(page, &bits, next_batch) {
                    Some(batch) => (Work::Metadata, batch),
                    None => {
                        self.answer(session, number, Answer::Failed(Failure::OutOfRange));
                        return;
                    }
                }
            }
            Request::Whole => {
                self.opened.log.set_trusted();
                (Work::Metadata, next_batch)
            }
            Request::Promise(_) | Request::Settled => return,
        };
        self.jobs.insert(id, Job { term: self.term, session, number, work, batch, submitted: false });
        self.continue_job(id);
        self.persist();
    }

    /// Takes a job as far as it can go now.
    fn continue_job(&mut self, id: u64) {
        let next_batch = self.next_batch();
        let first = self.jobs.first_key_value().is_none_or(|(first, _)| *first == id);
        let Some(job) = self.jobs.get_mut(&id).filter(|job| !job.submitted) else { return };
        match &mut job.work {
            Work::Write { granted: false, .. } => {}
            Work::Write { span, body, durable, recorded, .. } => {
                if !*recorded && !self.opened.faults.has(Fault::SkipActivityLog) {
                    let cached = !*durable && !self.opened.faults.has(Fault::ForgetUnflushed);
                    let extents = self.opened.shape.extents_of(*span);
                    match self.opened.log.begin_write(extents, job.number, cached, next_batch) {
                        Ok(batch) => job.batch = batch,
                        Err(_) => {
                            let (session, number) = (job.session, job.number);
                            self.drop_job(id);
                            self.answer(session, number, Answer::Failed(Failure::LogFull));
                            return;
                        }
                    }
                    *recorded = true;
                    if !self.opened.faults.has(Fault::ForgetDirtyChunk) {
                        for bitmap in self.bitmaps.values_mut() {
                            job.batch = job.batch.max(bitmap.mark(*span, next_batch));
                        }
                    }
                }
                if job.batch <= self.batch_durable
                    && let Some(body) = body.take()
                {
                    job.submitted = true;
                    self.commands.push_back(Command::Apply { id, span: *span, body, durable: *durable });
                }
            }
            // Everything before it has ended.
            Work::Flush if first => {
                job.submitted = true;
                self.commands.push_back(Command::Flush(id));
            }
            Work::Flush => {}
            Work::Read { span, granted: true, .. } => {
                job.submitted = true;
                self.commands.push_back(Command::Read(id, *span));
            }
            Work::Read { .. } => {}
            Work::Metadata if job.batch <= self.batch_durable => {
                let (session, number) = (job.session, job.number);
                self.jobs.remove(&id);
                self.answer(session, number, Answer::Done);
            }
            Work::Metadata => {}
        }
    }

    fn continue_waiting(&mut self) {
        let waiting: Vec<u64> = self.jobs.iter().filter(|(_, j)| !j.submitted).map(|(id, _)| *id).collect();
        for id in waiting {
            self.continue_job(id);
        }
    }

    fn release(&mut self, ticket: Ticket) {
        let granted_now = self.ranges.release(ticket);
        for job in self.jobs.values_mut() {
            if let Work::Write { ticket, granted, .. } | Work::Read { ticket, granted, .. } = &mut job.work {
                *granted |= granted_now.contains(ticket);
            }
        }
    }

    fn drop_job(&mut self, id: u64) {
        match self.jobs.remove(&id).map(|job| job.work) {
            Some(Work::Write { span, ticket, recorded, .. }) => {
                if recorded {
                    self.opened.log.end_write(self.opened.shape.extents_of(span));
                }
                self.release(ticket);
            }
            Some(Work::Read { ticket, .. }) => self.release(ticket),
            Some(Work::Flush | Work::Metadata) | None => {}
        }
    }

    fn drop_waiting(&mut self) {
        let waiting: Vec<u64> = self.jobs.iter().filter(|(_, j)| !j.submitted).map(|(id, _)| *id).collect();
        for id in waiting.into_iter().rev() {
            self.drop_job(id);
        }
        self.advance_promise();
    }

    fn next_batch(&self) -> u64 {
        self.batch_in_flight.map_or(self.batch_durable, |(_, batch)| batch) + 1
    }

    /// Writes the next batch if there is something for it and the one before is durable.
    fn persist(&mut self) {
        let bitmaps_changed = self.bitmaps.values().any(Bitmap::changed);
        if self.broken
            || self.batch_in_flight.is_some()
            || (self.parts.is_empty() && !bitmaps_changed && !self.opened.log.changed())
        {
            return;
        }
        let (volume, crc32c) = (self.opened.volume, self.opened.crc32c);
        let mut parts = core::mem::take(&mut self.parts);
        // While bitmaps for a promise are on their way the log has to wait: it names who is absent.
        let bitmaps_only = matches!(self.promising, Some((_, _, Promising::Bitmaps(_))));
        if self.opened.log.changed() && !bitmaps_only {
            let (slot, image) = self.opened.log.image(volume, crc32c);
            parts.push(Part::Log(slot, image));
        }
        for (node, bitmap) in &mut self.bitmaps {
            let images = bitmap.images(volume, crc32c);
            parts.extend(images.into_iter().map(|(slot, image)| Part::Page(*node, slot, image)));
        }
        let batch = self.next_batch();
        self.last_id += 1;
        self.batch_in_flight = Some((self.last_id, batch));
        self.commands.push_back(Command::Persist(self.last_id, parts));
    }

    fn advance_promise(&mut self) {
        let Some((asked, promise, stage)) = self.promising.take() else { return };
        let next_batch = self.next_batch();
        let stage = match stage {
            Promising::Draining if !self.jobs.is_empty() || self.batch_in_flight.is_some() => {
                Promising::Draining
            }
            Promising::Draining => {
                self.note_absent(&asked, &promise, next_batch);
                if self.bitmaps.values().any(Bitmap::changed) {
                    Promising::Bitmaps(next_batch)
                } else {
                    self.note_promise(asked.epoch, &promise);
                    Promising::Log(next_batch)
                }
            }
            Promising::Bitmaps(batch) if batch <= self.batch_durable => {
                self.note_promise(asked.epoch, &promise);
                Promising::Log(next_batch)
            }
            Promising::Log(batch) if batch <= self.batch_durable => {
                self.opened.promised = asked.epoch;
                self.session = asked.session;
                self.term = promise.term;
                self.opened.log.settle(asked.settled);
                let entries = self.opened.log.entries().collect();
                let boot = self.opened.boot;
                let untrusted = self.opened.log.is_untrusted();
                self.answer(asked.session, 0, Answer::Promised { boot, untrusted, entries });
                for frame in core::mem::take(&mut self.held) {
                    self.handle(frame);
                }
                return;
            }
            stage => stage,
        };
        self.promising = Some((asked, promise, stage));
        self.persist();
    }

    /// Only to the owner that asked: another one has its own numbers.
    fn answer_job(&mut self, term: Epoch, session: u64, number: u64, answer: Answer) {
        let newest = match &self.promising {
            Some((asked, promise, _)) => (promise.term, asked.session),
            None => (self.term, self.session),
        };
        if (term, session) == newest {
            self.answer(session, number, answer);
        }
    }

    fn answer(&mut self, session: u64, number: u64, answer: Answer) {
        let (volume, epoch) = (self.opened.volume, self.opened.promised);
        self.commands.push_back(Command::Answer(FromReplica { volume, epoch, session, number, answer }));
    }
}
