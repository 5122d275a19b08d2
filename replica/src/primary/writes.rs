//! Numbered requests: issued to the replicas, complete when all that count have them.
//!
//! Invariants: a request completes only while every in-sync replica has promised the present epoch; an extent is released
//! in the logs only by [`Settled`](crate::activity_log::Settled), which never covers a request that is still in flight.

use alloc::vec::Vec;

use super::{Host, InFlight, Instant, Outcome, Phase, Primary, Purpose};
use crate::{
    faults::Fault,
    ids::NodeNumber,
    limits::{LIVE_EXTENTS_MAX, LOG_ENTRIES_MAX, SPAN_EXTENTS_MAX},
    replication::Request,
    span::Span,
};

impl<B: AsRef<[u8]> + Clone + From<Vec<u8>>> Primary<B> {
    pub(super) fn touches_few(&self, span: Span) -> bool {
        let extents = self.start.shape.extents_of(span);
        extents.end - extents.start <= SPAN_EXTENTS_MAX
    }

    /// Its range is locked: numbers a write and sends it, once the logs have room for its extents.
    pub(super) fn begin_write(&mut self, now: Instant, id: u64) {
        let Some(Host::Write { span, body, durable, .. }) = self.hosts.get(&id) else { return };
        let (span, durable) = (*span, *durable);
        if !self.has_room(span) {
            self.parked.push_back(id);
            self.flush_wanted = true;
            self.flush_for_room(now);
            return;
        }
        let request = Request::Write { span, body: body.clone(), durable };
        let number = self.last_number + 1;
        for extent in self.start.shape.extents_of(span) {
            let live = self.extents.entry(extent).or_default();
            live.in_flight += 1;
            if !durable {
                live.last_cached = number;
            }
        }
        self.issue(now, request, Purpose::HostWrite(id));
    }

    fn has_room(&self, span: Span) -> bool {
        let new = self.start.shape.extents_of(span).filter(|e| !self.extents.contains_key(e));
        let new: Vec<u64> = new.collect();
        let not_carried = new.iter().filter(|e| !self.carried.contains(e)).count();
        let carried_only = self.carried.iter().filter(|e| !self.extents.contains_key(e)).count();
        self.extents.len() + new.len() <= LIVE_EXTENTS_MAX
            && carried_only + self.extents.len() + not_carried <= LOG_ENTRIES_MAX - LIVE_EXTENTS_MAX / 2
    }

    /// Issues a request to every replica that counts, connected or not, and every learner that streams.
    pub(super) fn issue(&mut self, now: Instant, request: Request<B>, purpose: Purpose) {
        let to = self.peers.iter().filter(|(_, p)| p.counts() || p.streams).map(|(node, _)| *node);
        let to: Vec<NodeNumber> = to.collect();
        self.issue_to(now, request, purpose, to);
    }

    /// Issues a request to these replicas.
    pub(super) fn issue_to(
        &mut self,
        now: Instant,
        request: Request<B>,
        purpose: Purpose,
        to: Vec<NodeNumber>,
    ) {
        self.last_number += 1;
        let number = self.last_number;
        let waiting = to.iter().copied().collect();
        self.in_flight.insert(number, InFlight { request: request.clone(), purpose, waiting, issued: now });
        for node in to {
            if self.peers.get(&node).is_some_and(|p| p.streams) {
                self.send(node, number, request.clone());
            }
        }
        self.complete_if_done(now, number);
    }

    /// A replica has carried a request out.
    pub(super) fn acknowledged(&mut self, now: Instant, node: NodeNumber, number: u64) {
        if let Some(request) = self.in_flight.get_mut(&number) {
            request.waiting.remove(&node);
            self.complete_if_done(now, number);
        }
    }

    /// After a change of who counts.
    pub(super) fn complete_all_done(&mut self, now: Instant) {
        let numbers: Vec<u64> = self.in_flight.keys().copied().collect();
        for number in numbers {
            self.complete_if_done(now, number);
        }
    }

    fn is_done(&self, request: &InFlight<B>) -> bool {
        let me = self.start.me.node;
        let counts = |node: &NodeNumber| self.peers.get(node).is_some_and(|p| p.counts());
        match request.purpose {
            Purpose::HostWrite(_) if self.start.faults.has(Fault::AcknowledgeEarly) => {
                !request.waiting.contains(&me)
            }
            Purpose::HostFlush(..) if self.start.faults.has(Fault::FlushOwnReplicaOnly) => {
                !request.waiting.contains(&me)
            }
            Purpose::Copy(_)
            | Purpose::Merge
            | Purpose::Barrier(_)
            | Purpose::Whole(_)
            | Purpose::Heal(_)
            | Purpose::Repair(_) => request.waiting.is_empty(),
            _ => self.all_promised() && !request.waiting.iter().any(counts),
        }
    }

    fn complete_if_done(&mut self, now: Instant, number: u64) {
        if self.stopped || !self.in_flight.get(&number).is_some_and(|request| self.is_done(request)) {
            return;
        }
        let Some(InFlight { purpose, .. }) = self.in_flight.remove(&number) else { return };
        self.advance_settled();
        match purpose {
            Purpose::HostWrite(id) => self.host_write_done(now, id),
            Purpose::HostFlush(id, through) => {
                self.hosts.remove(&id);
                self.completions.push_back((id, Outcome::Done));
                self.flushed(now, through);
            }
            Purpose::Flush(through) => self.flushed(now, through),
            Purpose::Record => self.extents_recorded(now),
            Purpose::Copy(copy) => self.copy_done(now, copy),
            Purpose::RecoveryFlush => {
                self.phase = Phase::Recovered;
                self.settled.recovered = true;
                self.carried.clear();
                self.unpark(now);
            }
            Purpose::Merge => {}
            Purpose::Barrier(node) => self.barrier_passed(now, node),
            Purpose::Whole(node) => self.recorded_as_whole(now, node),
            // Whoever was asked is gone.
            Purpose::Heal(heal) => self.ask_next(now, heal),
            Purpose::Repair(heal) => self.repaired(now, heal),
        }
    }

    /// The only copy has no space for a write: the host is told. Learners that got it begin anew, with what their logs name.
    pub(super) fn own_disk_full(&mut self, now: Instant, number: u64) {
        let Some(Purpose::HostWrite(id)) = self.in_flight.get(&number).map(|r| r.purpose) else {
            return self.replica_failed();
        };
        let learners: Vec<NodeNumber> =
            self.peers.iter().filter(|(_, p)| p.streams && !p.in_sync()).map(|(node, _)| *node).collect();
        for node in learners {
            self.disconnected(now, node);
        }
        self.in_flight.remove(&number);
        self.advance_settled();
        self.host_write_ends(now, id, Outcome::NoSpace);
    }

    fn host_write_done(&mut self, now: Instant, id: u64) {
        // Below the least number of replicas nothing is promised any more (6.10).
        let enough = self.config.takes_writes();
        self.host_write_ends(now, id, if enough { Outcome::Done } else { Outcome::NotEnoughReplicas });
    }

    fn host_write_ends(&mut self, now: Instant, id: u64, outcome: Outcome) {
        let Some(Host::Write { span, body, ticket, .. }) = self.hosts.remove(&id) else { return };
        if let Some(data) = body.data() {
            self.host_bytes = self.host_bytes.saturating_sub(data.as_ref().len() as u64);
        }
        for extent in self.start.shape.extents_of(span) {
            if let Some(live) = self.extents.get_mut(&extent) {
                live.in_flight = live.in_flight.saturating_sub(1);
            }
        }
        self.prune_extents();
        self.completions.push_back((id, outcome));
        self.unlock(now, ticket);
        self.unpark(now);
        self.flush_for_room(now);
    }

    pub(super) fn advance_settled(&mut self) {
        if self.all_promised() {
            let before_first = self.in_flight.keys().next().map(|first| first - 1);
            let written = before_first.unwrap_or(self.last_number);
            self.settled.written = self.settled.written.max(written);
        }
    }

    fn flushed(&mut self, now: Instant, through: u64) {
        self.settled.flushed = self.settled.flushed.max(through);
        self.prune_extents();
        self.unpark(now);
        self.flush_for_room(now);
    }

    fn prune_extents(&mut self) {
        let flushed = self.settled.flushed;
        self.extents.retain(|_, live| live.in_flight > 0 || live.last_cached > flushed);
    }

    fn unpark(&mut self, now: Instant) {
        for _ in 0..self.parked.len() {
            if let Some(id) = self.parked.pop_front() {
                self.begin_write(now, id);
            }
        }
    }

    /// Flushes of its own accord when writes wait for extents, or a replica's log holds what only a flush can clear.
    pub(super) fn flush_for_room(&mut self, now: Instant) {
        let under_way = self.in_flight.values().any(|r| matches!(r.purpose, Purpose::Flush(_)));
        let through = self.settled.written;
        if self.flush_wanted && !under_way && self.is_serving() && through > self.settled.flushed {
            self.flush_wanted = !self.parked.is_empty();
            self.issue(now, Request::Flush, Purpose::Flush(through));
        }
    }
}
