//! Making replicas equal: after a change of owner, and for one that comes back.
//!
//! **A new owner** (6.15) takes the union of the active extents of all in-sync replicas, locks them, has the union recorded
//! in every log, serves everything else, and copies its own version of each extent over the others; then all of
//! them flush, and what earlier terms left in the logs may go.
//!
//! **A rejoining replica** (6.16, 6.17) goes through these stages:
//!
//! ```text
//! Waiting --promise--> Beginning --no write under way--> Copying --nothing left--> Merging --no write under way--+
//!                      the stream of live writes begins   own version of what it   bitmaps of other absent ones  |
//!                      here; its todo is what the own     lacks, each copy under   go into the stream            |
//!                      bitmap says and its own log        the lock of its range                                  v
//! in sync <--admitted, by compare-and-set-- proposed <--barrier flush through-- Counted: every answer waits for it
//! ```
//!
//! Invariants: a copy holds the exclusive lock of its range from before its blocks are read until they are on the replica, so
//! an old copy never lands over a newer write; both stages that wait for "no write under way" do so by a lock of
//! the whole volume, so that a write is either in what was handed over or in the stream, never in neither.

use alloc::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    vec::Vec,
};

use super::{Change, Holder, Instant, Output, Phase, Primary, Purpose, Stage, Stop, allowance_max};
use crate::{
    bitmap::Bitmap,
    faults::Fault,
    ids::NodeNumber,
    limits::{COPIES_MAX, HEALS_MAX},
    ranges::{Mode, Ticket},
    replication::{Body, Request},
    span::Span,
};

/// What a learner still lacks.
#[derive(Debug)]
pub(super) struct Todo {
    dirty: Bitmap,
    chunk: Option<u64>,
    lba: u64,
    under_way: usize,
    chunks_total: u64,
    chunks_left: u64,
}

impl Todo {
    fn new(dirty: Bitmap) -> Todo {
        let total = dirty.dirty_count();
        let chunk = dirty.next_dirty(0);
        Todo { dirty, chunk, lba: 0, under_way: 0, chunks_total: total, chunks_left: total }
    }
}

/// How far a re-synchronisation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Chunks that the replica lacked when it began.
    pub chunks_total: u64,
    /// Chunks whose copying has not begun.
    pub chunks_left: u64,
}

/// The copies under way.
#[derive(Debug, Default)]
pub(super) struct Copies {
    last: u64,
    copies: BTreeMap<u64, Copy>,
    /// Extents of a recovery that are not yet wholly copied: lock and pieces left.
    recovering: BTreeMap<u64, (Ticket, usize)>,
    pieces: VecDeque<(u64, Span)>,
    union: Vec<u64>,
    bytes_per_second: Option<u64>,
    allowance: u64,
    refilled: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Copy {
    span: Span,
    target: Target,
    ticket: Option<Ticket>,
    /// The own replica had lost some of it, and has it again.
    healed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Recovery(u64),
    Learner(NodeNumber),
    /// It has lost these blocks.
    Damaged(NodeNumber),
}

impl<B: AsRef<[u8]> + Clone + From<Vec<u8>>> Primary<B> {
    pub(super) fn begin_recovery(&mut self, now: Instant) {
        let in_sync = self.peers.values().filter(|p| p.in_sync());
        let entries: Vec<_> = in_sync.flat_map(|p| p.entries.iter().copied()).collect();
        self.carried = entries.iter().map(|e| e.extent).collect();
        let active: BTreeSet<u64> = entries.iter().filter(|e| e.active).map(|e| e.extent).collect();
        self.phase = Phase::Recording;
        if self.start.faults.has(Fault::SkipRecovery) {
            self.extents_recorded(now);
            return;
        }
        for extent in active {
            if let Some(span) = self.start.shape.extent_span(extent) {
                let (ticket, _) = self.ranges.lock(span, Mode::Exclusive);
                self.holders.insert(ticket, Holder::Recovery);
                self.copies.recovering.insert(extent, (ticket, 0));
                self.copies.union.push(extent);
            }
        }
        let union = core::mem::take(&mut self.copies.union);
        self.issue(now, Request::Record(union), Purpose::Record);
    }

    /// The union is in every log: serves, and copies.
    pub(super) fn extents_recorded(&mut self, now: Instant) {
        self.phase = Phase::Recovering;
        let step = self.start.shape.copy_blocks();
        for (extent, (_, pieces)) in &mut self.copies.recovering {
            let Some(span) = self.start.shape.extent_span(*extent) else { continue };
            let mut lba = span.lba();
            while let Some(piece) = Span::new(lba, step.min(span.end() - lba)) {
                self.copies.pieces.push_back((*extent, piece));
                *pieces += 1;
                lba = piece.end();
            }
        }
        self.pump_recovery(now);
    }

    fn pump_recovery(&mut self, now: Instant) {
        let under_way =
            |c: &Copies| c.copies.values().filter(|copy| matches!(copy.target, Target::Recovery(_))).count();
        while under_way(&self.copies) < COPIES_MAX
            && let Some((extent, span)) = self.copies.pieces.pop_front()
        {
            self.copies.last += 1;
            let copy = Copy { span, target: Target::Recovery(extent), ticket: None, healed: false };
            self.copies.copies.insert(self.copies.last, copy);
            self.outputs.push_back(Output::Copy(self.copies.last, span));
        }
        if self.phase == Phase::Recovering && self.copies.recovering.is_empty() {
            self.phase = Phase::Flushing;
            self.issue(now, Request::Flush, Purpose::RecoveryFlush);
        }
    }

    /// What [`Output::Copy`] asked for, as bytes or as "nothing is there"; `None` if it cannot be read.
    pub fn copy_data(&mut self, now: Instant, copy: u64, body: Option<Body<B>>) {
        let Some(Copy { span, target, .. }) = self.copies.copies.get(&copy).copied() else { return };
        let Some(body) = body else {
            let entry = self.copies.copies.get_mut(&copy);
            let healed = entry.is_none_or(|copy| core::mem::replace(&mut copy.healed, true));
            if healed || !self.heal_copy(now, copy, span) {
                self.copy_is_lost(now, copy);
            }
            return;
        };
        let me = self.start.me.node;
        if let Target::Damaged(node) = target
            && !self.peers.get(&node).is_some_and(|p| p.in_sync())
        {
            // It has left, and gets what it lacks when it comes back.
            return self.copy_is_lost(now, copy);
        }
        let to = match target {
            Target::Recovery(_) => {
                let others = self.peers.iter().filter(|(node, p)| p.in_sync() && **node != me);
                others.map(|(node, _)| *node).collect()
            }
            Target::Learner(node) | Target::Damaged(node) => Vec::from([node]),
        };
        let durable = matches!(target, Target::Damaged(_));
        // The own copy may hold an atomic write that the others lack. They are in sync, and one of them may become the owner in the middle
        // of this: what it has of such a write has to be all or nothing.
        let body = match (target, body) {
            (Target::Recovery(_), Body::Data(bytes)) => Body::Atomic(bytes),
            (_, body) => body,
        };
        let request = Request::Write { span, body, durable };
        self.issue_to(now, request, Purpose::Copy(copy), to);
    }

    pub(super) fn copy_done(&mut self, now: Instant, copy: u64) {
        let Some(Copy { target, ticket, .. }) = self.copies.copies.remove(&copy) else { return };
        if let Some(ticket) = ticket {
            self.unlock(now, ticket);
        }
        match target {
            Target::Recovery(extent) => {
                if let Some((ticket, pieces)) = self.copies.recovering.get_mut(&extent) {
                    *pieces -= 1;
                    let ticket = *ticket;
                    if *pieces == 0 {
                        self.copies.recovering.remove(&extent);
                        self.unlock(now, ticket);
                    }
                }
                self.pump_recovery(now);
            }
            Target::Learner(node) => {
                if let Some(Stage::Copying(todo)) = self.peers.get_mut(&node).map(|p| &mut p.stage) {
                    todo.under_way = todo.under_way.saturating_sub(1);
                }
                self.pump_copies(now);
            }
            Target::Damaged(_) => {}
        }
    }

    /// A copy can be read nowhere.
    pub(super) fn copy_is_lost(&mut self, now: Instant, copy: u64) {
        let Some(Copy { target, ticket, .. }) = self.copies.copies.get(&copy).copied() else { return };
        match target {
            Target::Recovery(_) => self.end(Stop::ReplicaFailed),
            // It cannot catch up before a host has written those blocks anew: begins again on a new connection, after a while.
            Target::Learner(node) => {
                self.reset_learner(now, node);
                if let Some(peer) = self.peers.get_mut(&node) {
                    peer.promised = false;
                    peer.asked = now;
                }
            }
            Target::Damaged(_) => {
                self.copies.copies.remove(&copy);
                if let Some(ticket) = ticket {
                    self.unlock(now, ticket);
                }
            }
        }
    }

    pub(super) fn has_copy(&self, copy: u64) -> bool {
        self.copies.copies.contains_key(&copy)
    }

    /// Gives a replica blocks that it has lost.
    pub(super) fn mend(&mut self, node: NodeNumber, span: Span) {
        let mends = self.copies.copies.values().filter(|copy| copy.target == Target::Damaged(node));
        if mends.clone().count() >= HEALS_MAX || mends.clone().any(|copy| copy.span.overlaps(span)) {
            return;
        }
        self.copies.last += 1;
        let id = self.copies.last;
        let (ticket, granted) = self.ranges.lock(span, Mode::Exclusive);
        self.holders.insert(ticket, Holder::Copy(id));
        let copy = Copy { span, target: Target::Damaged(node), ticket: Some(ticket), healed: false };
        self.copies.copies.insert(id, copy);
        if granted {
            self.begin_copy(id);
        }
    }

    /// Lets copies to learners move no more than so many bytes in a second; `None`: as many as they can.
    pub fn set_copy_rate(&mut self, bytes_per_second: Option<u64>) {
        self.copies.bytes_per_second = bytes_per_second;
    }

    /// How far the re-synchronisation of `node` is; `None` while there is none.
    pub fn progress(&self, node: NodeNumber) -> Option<Progress> {
        match &self.peers.get(&node)?.stage {
            Stage::Copying(todo) => {
                Some(Progress { chunks_total: todo.chunks_total, chunks_left: todo.chunks_left })
            }
            _ => None,
        }
    }

    pub(super) fn refill(&mut self, now: Instant) {
        let Some(rate) = self.copies.bytes_per_second else { return };
        let last = self.copies.refilled.replace(now).unwrap_or(now);
        let more = rate.saturating_mul(now.millis_since(last)) / 1000;
        self.copies.allowance = self.copies.allowance.saturating_add(more).min(allowance_max(rate));
    }

    /// A learner that has promised takes its turn once recovery has ended; one at a time waits for a clean cut.
    pub(super) fn begin_learner(&mut self, now: Instant, node: NodeNumber) {
        let turn = self.phase == Phase::Recovered && self.pending.is_none() && self.all_promised();
        let Some(peer) = self.peers.get_mut(&node).filter(|_| turn) else { return };
        if !matches!(peer.stage, Stage::Waiting) || !peer.promised || peer.failed {
            return;
        }
        let (ticket, granted) = self.ranges.lock(self.start.shape.whole(), Mode::Exclusive);
        peer.stage = Stage::Beginning(ticket);
        self.holders.insert(ticket, Holder::Begin(node));
        if granted {
            self.granted(now, ticket);
        }
    }

    /// Answers [`Output::StartResync`]: what `node` lacks as the own replica knows; `None`: everything.
    pub fn start_resync(&mut self, now: Instant, node: NodeNumber, bitmap: Option<&Bitmap>) {
        let shape = self.start.shape;
        let trust = self.start.faults.has(Fault::TrustRejoining);
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let Stage::Beginning(ticket) = peer.stage else { return };
        let mut dirty =
            bitmap.filter(|_| !peer.untrusted).cloned().unwrap_or_else(|| Bitmap::new(node, shape, true, 0));
        // Whatever it has done that may not have been done elsewhere (6.17).
        for entry in peer.entries.iter().filter(|_| !trust) {
            if let Some(span) = shape.extent_span(entry.extent) {
                dirty.mark(span, 0);
            }
        }
        peer.stage = Stage::Copying(Todo::new(dirty));
        peer.streams = true;
        self.unlock(now, ticket);
        self.pump_copies(now);
    }

    pub(super) fn pump_copies(&mut self, now: Instant) {
        let nodes: Vec<NodeNumber> = self.peers.keys().copied().collect();
        for node in nodes {
            while let Some(span) = self.next_copy(node) {
                self.copies.last += 1;
                let id = self.copies.last;
                if self.start.faults.has(Fault::CopyWithoutLock) {
                    let copy = Copy { span, target: Target::Learner(node), ticket: None, healed: false };
                    self.copies.copies.insert(id, copy);
                    self.begin_copy(id);
                    continue;
                }
                let (ticket, granted) = self.ranges.lock(span, Mode::Exclusive);
                self.holders.insert(ticket, Holder::Copy(id));
                let copy = Copy { span, target: Target::Learner(node), ticket: Some(ticket), healed: false };
                self.copies.copies.insert(id, copy);
                if granted {
                    self.begin_copy(id);
                }
            }
            self.end_copying(now, node);
        }
    }

    pub(super) fn begin_copy(&mut self, copy: u64) {
        if let Some(Copy { span, .. }) = self.copies.copies.get(&copy) {
            self.outputs.push_back(Output::Copy(copy, *span));
        }
    }

    /// The next span to copy to a learner, if it may begin now.
    fn next_copy(&mut self, node: NodeNumber) -> Option<Span> {
        let shape = self.start.shape;
        let Stage::Copying(todo) = &mut self.peers.get_mut(&node)?.stage else { return None };
        let chunk = shape.chunk_span(todo.chunk?)?;
        if todo.under_way >= COPIES_MAX {
            return None;
        }
        let lba = todo.lba.max(chunk.lba());
        let span = Span::new(lba, shape.copy_blocks().min(chunk.end() - lba))?;
        if self.copies.bytes_per_second.is_some() {
            let bytes = span.blocks() * u64::from(shape.block_size());
            self.copies.allowance = self.copies.allowance.checked_sub(bytes)?;
        }
        todo.lba = span.end();
        todo.under_way += 1;
        if todo.lba >= chunk.end() {
            todo.chunk = todo.dirty.next_dirty(todo.chunk? + 1);
            todo.chunks_left = todo.chunks_left.saturating_sub(1);
        }
        Some(span)
    }

    fn end_copying(&mut self, now: Instant, node: NodeNumber) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if !matches!(&peer.stage, Stage::Copying(todo) if todo.chunk.is_none() && todo.under_way == 0) {
            return;
        }
        self.begin_merging(now, node);
    }

    /// Hands the bitmaps over, for the first time or because a change of who is absent has come between.
    pub(super) fn begin_merging(&mut self, now: Instant, node: NodeNumber) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        self.in_flight.retain(|_, r| !r.purpose.is_barrier(node));
        let (ticket, granted) = self.ranges.lock(self.start.shape.whole(), Mode::Exclusive);
        peer.stage = Stage::Merging(ticket);
        self.holders.insert(ticket, Holder::Merge(node));
        if granted {
            self.granted(now, ticket);
        }
    }

    /// Answers [`Output::MergeBitmaps`]: what the own replica keeps for all that are absent. From here on the learner counts.
    pub fn merge_bitmaps<'a>(
        &mut self,
        now: Instant,
        node: NodeNumber,
        bitmaps: impl Iterator<Item = &'a Bitmap>,
    ) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let Stage::Merging(ticket) = peer.stage else { return };
        peer.stage = Stage::Counted;
        let pages: Vec<_> = bitmaps
            .filter(|b| b.node() != node)
            .flat_map(|b| b.pages().map(|(page, bits)| (b.node(), page, *bits)))
            .collect();
        for (absent, page, bits) in pages {
            let request = Request::Merge { node: absent, page, bits: bits.into() };
            self.issue_to(now, request, Purpose::Merge, Vec::from([node]));
        }
        self.issue_to(now, Request::Flush, Purpose::Barrier(node), Vec::from([node]));
        self.unlock(now, ticket);
    }

    /// Everything up to the barrier is on the learner's disk, and everything behind waits for it. One that could not be trusted has
    /// to know, durably, that it can be: once it is admitted nobody else may be left to tell it.
    pub(super) fn barrier_passed(&mut self, now: Instant, node: NodeNumber) {
        if self.peers.get(&node).is_some_and(|p| p.untrusted) {
            self.issue_to(now, Request::Whole, Purpose::Whole(node), Vec::from([node]));
        } else {
            self.propose_admission(now, node);
        }
    }

    /// Whether it is admitted or not: what it may lack from here on is in the others' bitmaps or in its own log.
    pub(super) fn recorded_as_whole(&mut self, now: Instant, node: NodeNumber) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.untrusted = false;
        }
        self.propose_admission(now, node);
    }

    fn propose_admission(&mut self, now: Instant, node: NodeNumber) {
        if self.pending.is_none() && self.peers.get(&node).is_some_and(|p| p.promised) {
            self.propose(Change::Admit(node));
        } else {
            // Another change came between: the bitmaps of who is absent have to be sent again.
            self.reset_learner(now, node);
        }
    }

    /// The learner is gone, and its copies with it.
    pub(super) fn forget_copies(&mut self, now: Instant, node: NodeNumber) {
        let gone: Vec<u64> = self
            .copies
            .copies
            .iter()
            .filter(|(_, copy)| copy.target == Target::Learner(node))
            .map(|(id, _)| *id)
            .collect();
        self.in_flight.retain(|_, r| !matches!(r.purpose, Purpose::Copy(id) if gone.contains(&id)));
        for id in gone {
            if let Some(Copy { ticket: Some(ticket), .. }) = self.copies.copies.remove(&id) {
                self.unlock(now, ticket);
            }
        }
    }
}
