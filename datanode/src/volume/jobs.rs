//! What hosts ask of an owned volume: one job for each action of a device server, done in steps that the owner's machine takes.
//!
//! Invariants: a job is answered once; "not executed" is said only while no step that changes anything was taken; a job that
//! the machine has no room for waits its turn, in order.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use holdfast_replica::limits::{EXTENT_BYTES, SPAN_EXTENTS_MAX};
use holdfast_replica::primary::{Outcome, Primary, Refusal};
use holdfast_replica::replication::Body;
use holdfast_replica::span::Span;
use holdfast_scsi::time::Instant;
use rustc_hash::FxHashMap;

use super::engine::Work;
use crate::data_plane::router::Bytes;

/// One thing for the owner's machine.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Read(Span),
    /// As long as its data.
    Write {
        span: Span,
        data: Bytes,
        durable: bool,
    },
    /// The same, whole or not at all. Durable.
    WriteAtomic {
        span: Span,
        data: Bytes,
    },
    /// The same blocks (`pattern`) over and over.
    Repeat {
        span: Span,
        pattern: Bytes,
        block_size: u32,
        durable: bool,
    },
    Zeroes {
        span: Span,
        unmap: bool,
        block_size: u32,
        durable: bool,
    },
    Flush,
}

/// How a job ended.
#[derive(Debug)]
pub(crate) enum HostResult {
    Done,
    Read(Arc<Vec<u8>>),
    Failed(HostFailure),
}

/// Why a job failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HostFailure {
    /// Nothing was done and nothing will be.
    NotExecuted,
    /// It may have been done.
    Unknown,
    NoSpace,
    /// The first block that is lost, where it is known.
    Medium(Option<u64>),
    Hardware,
}

impl HostResult {
    pub(crate) const NOT_EXECUTED: HostResult = HostResult::Failed(HostFailure::NotExecuted);
}

/// Told how a job ended, outside of every lock.
pub(crate) type Reply = Box<dyn FnOnce(HostResult) + Send>;

/// Steps to take one after the other.
pub(crate) struct Job {
    pub(crate) steps: VecDeque<Step>,
    pub(crate) reply: Reply,
}

struct Running {
    steps: VecDeque<Step>,
    reply: Reply,
    /// A step that changes something was taken.
    changes: bool,
    read: Option<Arc<Vec<u8>>>,
    failure: HostFailure,
}

/// The jobs of one ownership.
#[derive(Default)]
pub(super) struct Jobs {
    last: u64,
    running: FxHashMap<u64, Running>,
    /// Those that the machine had no room for.
    waiting: VecDeque<u64>,
    ended: VecDeque<(u64, Reply, HostResult)>,
}

impl fmt::Debug for Jobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Jobs({} running, {} waiting)", self.running.len(), self.waiting.len())
    }
}

impl Jobs {
    /// True if none is under way or untold.
    pub(super) fn is_empty(&self) -> bool {
        self.running.is_empty() && self.ended.is_empty()
    }

    /// Takes a job; returns its name.
    pub(super) fn begin(&mut self, now: Instant, primary: &mut Primary<Bytes>, job: Job) -> u64 {
        self.last += 1;
        let Job { steps, reply } = job;
        let failure = HostFailure::Hardware;
        self.running.insert(self.last, Running { steps, reply, changes: false, read: None, failure });
        if self.waiting.is_empty() {
            self.advance(now, primary, self.last);
        } else {
            self.waiting.push_back(self.last);
        }
        self.last
    }

    /// The blocks of a read, or why there are none.
    pub(super) fn read(&mut self, id: u64, result: Result<Arc<Vec<u8>>, HostFailure>) {
        if let Some(job) = self.running.get_mut(&id) {
            match result {
                Ok(bytes) => job.read = Some(bytes),
                Err(failure) => job.failure = failure,
            }
        }
    }

    /// The machine says how a step ended.
    pub(super) fn completed(
        &mut self,
        now: Instant,
        primary: &mut Primary<Bytes>,
        id: u64,
        outcome: Outcome,
    ) {
        match outcome {
            Outcome::Done => self.advance(now, primary, id),
            Outcome::NotEnoughReplicas => self.fail(id, HostFailure::Unknown),
            Outcome::NoSpace => self.fail(id, HostFailure::NoSpace),
            Outcome::ReadFailed => {
                let failure = self.running.get(&id).map_or(HostFailure::Hardware, |job| job.failure);
                self.fail(id, failure);
            }
        }
    }

    /// Tries those again that had to wait. True if one could go on.
    pub(super) fn retry(&mut self, now: Instant, primary: &mut Primary<Bytes>) -> bool {
        let Some(id) = self.waiting.pop_front() else { return false };
        let behind = self.waiting.len();
        self.advance(now, primary, id);
        if self.waiting.len() > behind {
            // Still no room: it keeps its place.
            if let Some(id) = self.waiting.pop_back() {
                self.waiting.push_front(id);
            }
            return false;
        }
        true
    }

    /// The next one that has ended.
    pub(super) fn poll_ended(&mut self) -> Option<Work> {
        self.ended.pop_front().map(|(id, reply, result)| Work::Reply(id, reply, result))
    }

    /// The ownership ends.
    pub(super) fn end(&mut self, work: &mut Vec<Work>) {
        self.waiting.clear();
        for (id, job) in self.running.drain() {
            let failure = if job.changes { HostFailure::Unknown } else { HostFailure::NotExecuted };
            self.ended.push_back((id, job.reply, HostResult::Failed(failure)));
        }
        work.extend(std::iter::from_fn(|| self.poll_ended()));
    }

    fn fail(&mut self, id: u64, failure: HostFailure) {
        if let Some(job) = self.running.remove(&id) {
            let failure = match failure {
                HostFailure::NotExecuted if job.changes => HostFailure::Unknown,
                failure => failure,
            };
            self.ended.push_back((id, job.reply, HostResult::Failed(failure)));
        }
    }

    fn advance(&mut self, now: Instant, primary: &mut Primary<Bytes>, id: u64) {
        let Some(job) = self.running.get_mut(&id) else { return };
        let Some(step) = job.steps.pop_front() else {
            if let Some(job) = self.running.remove(&id) {
                let result = job.read.map_or(HostResult::Done, HostResult::Read);
                self.ended.push_back((id, job.reply, result));
            }
            return;
        };
        let (step, rest) = step.split();
        if let Some(rest) = rest {
            job.steps.push_front(rest);
        }
        let changes = !matches!(step, Step::Read(_) | Step::Flush);
        let taken = match step.clone() {
            Step::Read(span) => primary.read(now, id, span),
            Step::Flush => primary.flush(now, id),
            Step::Write { span, data, durable } => primary.write(now, id, span, Body::Data(data), durable),
            Step::WriteAtomic { span, data } => primary.write(now, id, span, Body::Atomic(data), true),
            Step::Repeat { span, pattern, block_size, durable } => {
                let data = pattern.slice(0, bytes_of(span, block_size));
                primary.write(now, id, span, Body::Data(data), durable)
            }
            Step::Zeroes { span, unmap, durable, .. } => {
                let body = if unmap { Body::Unmap } else { Body::Zeroes };
                primary.write(now, id, span, body, durable)
            }
        };
        match taken {
            Ok(()) => job.changes |= changes,
            Err(Refusal::Busy) => {
                job.steps.push_front(step);
                self.waiting.push_back(id);
            }
            Err(Refusal::NotServing | Refusal::NotEnoughReplicas) => self.fail(id, HostFailure::NotExecuted),
            Err(Refusal::Misuse) => {
                tracing::error!(?step, "a step that the replication core cannot take");
                self.fail(id, HostFailure::Hardware);
            }
        }
    }
}

fn bytes_of(span: Span, block_size: u32) -> usize {
    usize::try_from(span.blocks().saturating_mul(u64::from(block_size))).unwrap_or(usize::MAX)
}

impl Step {
    /// As much as the machine takes at once, and the rest.
    fn split(self) -> (Step, Option<Step>) {
        let (span, blocks_max) = match &self {
            Step::Zeroes { span, block_size, .. } => {
                // One less, because a run may begin within an extent.
                (*span, (SPAN_EXTENTS_MAX - 1) * (EXTENT_BYTES / u64::from((*block_size).max(1))))
            }
            Step::Repeat { span, pattern, block_size, .. } => {
                (*span, (pattern.len() as u64 / u64::from((*block_size).max(1))).max(1))
            }
            Step::Read(_) | Step::Write { .. } | Step::WriteAtomic { .. } | Step::Flush => {
                return (self, None);
            }
        };
        let first = Span::new(span.lba(), span.blocks().min(blocks_max));
        let rest = Span::new(span.lba().saturating_add(blocks_max), span.blocks().saturating_sub(blocks_max));
        match (first, rest) {
            (Some(first), Some(rest)) => (self.clone().with_span(first), Some(self.with_span(rest))),
            _ => (self, None),
        }
    }

    fn with_span(self, to: Span) -> Step {
        match self {
            Step::Repeat { pattern, block_size, durable, .. } => {
                Step::Repeat { span: to, pattern, block_size, durable }
            }
            Step::Zeroes { unmap, block_size, durable, .. } => {
                Step::Zeroes { span: to, unmap, block_size, durable }
            }
            Step::Read(_) => Step::Read(to),
            other => other,
        }
    }
}

thread_local! {
    /// Replies that wait for the one which is being told on this thread; none while nobody is being told.
    static TELLING: RefCell<Option<VecDeque<(Reply, HostResult)>>> = const { RefCell::new(None) };
}

/// Tells a unit how its job ended. What that leads to may end further jobs: those are told after it, not within it, so that the
/// stack stays short.
pub(super) fn deliver(reply: Reply, result: HostResult) {
    let waits = TELLING.with_borrow_mut(|telling| match telling {
        Some(queue) => {
            queue.push_back((reply, result));
            None
        }
        None => {
            *telling = Some(VecDeque::new());
            Some((reply, result))
        }
    });
    let mut next = waits;
    while let Some((reply, result)) = next {
        reply(result);
        next = TELLING.with_borrow_mut(|telling| {
            let next = telling.as_mut().and_then(VecDeque::pop_front);
            if next.is_none() {
                *telling = None;
            }
            next
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(lba: u64, blocks: u64) -> Span {
        Span::new(lba, blocks).unwrap()
    }

    #[test]
    fn long_steps_are_taken_in_pieces_without_gap_or_overlap() {
        let whole = span(1000, 1 << 30);
        let mut rest = Some(Step::Zeroes { span: whole, unmap: true, block_size: 512, durable: false });
        let mut at = whole.lba();
        while let Some(step) = rest {
            let (Step::Zeroes { span, .. }, next) = step.split() else { panic!() };
            assert_eq!(span.lba(), at);
            assert!(span.blocks() * 512 / EXTENT_BYTES < SPAN_EXTENTS_MAX);
            at = span.end();
            rest = next;
        }
        assert_eq!(at, whole.end());
        let pattern = Bytes::new(vec![7; 4096]);
        let step = Step::Repeat { span: span(5, 17), pattern, block_size: 512, durable: true };
        let (Step::Repeat { span: first, .. }, Some(Step::Repeat { span: rest, .. })) = step.split() else {
            panic!()
        };
        assert_eq!((first, rest), (span(5, 8), span(13, 9)));
    }

    #[test]
    fn replies_told_within_a_reply_wait_for_its_end() {
        use std::sync::{Arc, Mutex};
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (outer, inner) = (Arc::clone(&seen), Arc::clone(&seen));
        deliver(
            Box::new(move |_| {
                deliver(Box::new(move |_| inner.lock().unwrap().push("inner")), HostResult::Done);
                outer.lock().unwrap().push("outer");
            }),
            HostResult::Done,
        );
        assert_eq!(*seen.lock().unwrap(), ["outer", "inner"]);
    }
}
