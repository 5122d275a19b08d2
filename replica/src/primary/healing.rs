//! Blocks that one replica has lost and another one still has.
//!
//! **The owner's own.** A read of a host fails, a copy cannot be read, or the shell has found damage by itself. The range is locked, read from
//! another in-sync replica, and written to the own one like any write of the owner (numbered, logged, drained by the next promise); then
//! the host's read is done again. Where the others cannot read it either, the host is told, and nothing else changes.
//!
//! **Another one's.** A replica that says that it has lost blocks gets the owner's, under the lock of their range.
//!
//! ```text
//!  Queued --range locked--> Asking: Read to one replica --Blocks--> Writing: to the own replica --Done--> healed: read again
//!                              | Failed(Unreadable), or it is gone      |
//!                              +--> the next one; none is left: failed  +--> own disk fails: as ever
//! ```
//!
//! Invariants: what is read elsewhere is written here only while the range has been locked all the time between; so all in-sync replicas
//! have what is written. An in-sync replica that has not been asked is waited for: the blocks count as lost only when all have said so.

use alloc::{
    collections::{BTreeMap, VecDeque},
    vec::Vec,
};

use super::{Holder, Host, Instant, Outcome, Primary, Purpose, Stop};
use crate::{
    ids::NodeNumber,
    limits::{HEAL_BYTES, HEALED_KEPT_MAX, HEALS_MAX},
    ranges::{Mode, Ticket},
    replication::{Body, Request},
    span::Span,
};

/// Whom it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum For {
    /// A read of a host.
    Read(u64),
    /// A copy, which has the range locked.
    Copy(u64),
    /// Nobody waits.
    Itself,
}

#[derive(Debug)]
struct Heal {
    span: Span,
    purpose: For,
    ticket: Option<Ticket>,
    /// Waits for a replica that has not been asked.
    waits: bool,
    tried: Vec<NodeNumber>,
}

/// What is being healed.
#[derive(Debug, Default)]
pub(super) struct Heals {
    last: u64,
    heals: BTreeMap<u64, Heal>,
    /// What was written to the own replica, and whose it is.
    healed: VecDeque<(Span, NodeNumber)>,
}

impl<B: AsRef<[u8]> + Clone + From<Vec<u8>>> Primary<B> {
    /// The blocks of a read cannot be read from the own disk, though that works otherwise: gets them from another in-sync replica.
    /// `lost`: the first run of them that is lost, where that is known.
    pub fn read_failed(&mut self, now: Instant, id: u64, lost: Option<Span>) {
        self.reading.remove(&id);
        let others = self.has_other_in_sync();
        let Some(Host::Read { span, ticket, healed_until }) = self.hosts.get_mut(&id) else { return };
        let (span, healed, ticket) = (*span, *healed_until, ticket.take());
        let from = lost.map_or(span.lba().max(healed), Span::lba);
        if others && (from < healed || from >= span.end()) {
            // What was written a moment ago cannot be read: hosts are better off without this disk.
            self.end(Stop::ReplicaFailed);
            return;
        }
        if let Some(ticket) = ticket {
            self.unlock(now, ticket);
        }
        let blocks = lost.map_or(span.end().saturating_sub(from), Span::blocks);
        let piece = Span::new(from, blocks.min(self.start.shape.copy_blocks()));
        match piece.filter(|piece| others && self.start.shape.holds(*piece)).map(|piece| self.widened(piece))
        {
            Some(piece) if self.heals.heals.len() < HEALS_MAX => {
                self.hosts.insert(id, Host::Read { span, ticket: None, healed_until: piece.end() });
                self.heal(now, piece, For::Read(id));
            }
            _ => self.read_is_lost(id),
        }
    }

    /// Blocks of the own replica were found damaged. Heals them if another replica may have them.
    pub fn damaged(&mut self, now: Instant, span: Span) {
        let under_way = self.heals.heals.values().any(|heal| heal.span.overlaps(span));
        if self.is_serving()
            && self.has_other_in_sync()
            && !under_way
            && self.start.shape.holds(span)
            && self.fits(span)
            && self.heals.heals.len() < HEALS_MAX
        {
            self.heal(now, self.widened(span), For::Itself);
        }
    }

    /// Blocks of the own replica that were written anew since the last call, with the node whose replica had them. At most the last
    /// [`HEALED_KEPT_MAX`] ranges.
    pub fn take_healed(&mut self) -> impl Iterator<Item = (Span, NodeNumber)> {
        core::mem::take(&mut self.heals.healed).into_iter()
    }

    /// Another replica says that it has lost blocks: it gets the own ones.
    pub(super) fn damaged_elsewhere(&mut self, node: NodeNumber, span: Span) {
        let in_sync = self.peers.get(&node).is_some_and(|p| p.in_sync() && p.streams);
        if in_sync && self.is_serving() && self.start.shape.holds(span) && self.fits(span) {
            self.mend(node, self.widened(span));
        }
    }

    /// A copy cannot be read. False: nobody else may have it.
    pub(super) fn heal_copy(&mut self, now: Instant, copy: u64, span: Span) -> bool {
        if !self.has_other_in_sync() {
            return false;
        }
        self.heal(now, span, For::Copy(copy));
        true
    }

    fn fits(&self, span: Span) -> bool {
        span.blocks() <= self.start.shape.copy_blocks()
    }

    fn has_other_in_sync(&self) -> bool {
        self.peers.iter().any(|(node, p)| *node != self.start.me.node && p.in_sync())
    }

    /// Whole units of checksums.
    fn widened(&self, span: Span) -> Span {
        let shape = &self.start.shape;
        let unit = (HEAL_BYTES / u64::from(shape.block_size())).clamp(1, shape.copy_blocks());
        let lba = span.lba() - span.lba() % unit;
        let end = span.end().next_multiple_of(unit).min(shape.blocks());
        Span::new(lba, end.saturating_sub(lba)).unwrap_or(span)
    }

    fn heal(&mut self, now: Instant, span: Span, purpose: For) {
        self.heals.last += 1;
        let id = self.heals.last;
        let (ticket, granted) = match purpose {
            For::Copy(_) => (None, true),
            For::Read(_) | For::Itself => {
                let (ticket, granted) = self.ranges.lock(span, Mode::Exclusive);
                self.holders.insert(ticket, Holder::Heal(id));
                (Some(ticket), granted)
            }
        };
        self.heals.heals.insert(id, Heal { span, purpose, ticket, waits: false, tried: Vec::new() });
        if granted {
            self.ask_next(now, id);
        }
    }

    /// Asks the next replica that has not been asked.
    pub(super) fn ask_next(&mut self, now: Instant, id: u64) {
        let me = self.start.me.node;
        let Some(heal) = self.heals.heals.get_mut(&id) else { return };
        let untried = |(node, p): &(&NodeNumber, &super::Peer)| {
            **node != me && p.in_sync() && !heal.tried.contains(node)
        };
        let mut candidates = self.peers.iter().filter(untried).peekable();
        if candidates.peek().is_none() {
            return self.heal_failed(now, id);
        }
        let ready = candidates.find(|(_, p)| p.promised && p.streams).map(|(node, _)| *node);
        heal.waits = ready.is_none();
        if let Some(node) = ready {
            heal.tried.push(node);
            let span = heal.span;
            self.issue_to(now, Request::Read(span), Purpose::Heal(id), Vec::from([node]));
        }
    }

    /// Those that wait for a replica look again.
    pub(super) fn pump_heals(&mut self, now: Instant) {
        let waiting: Vec<u64> =
            self.heals.heals.iter().filter(|(_, heal)| heal.waits).map(|(id, _)| *id).collect();
        for id in waiting {
            self.ask_next(now, id);
        }
    }

    /// Blocks have come.
    pub(super) fn blocks_came(&mut self, now: Instant, node: NodeNumber, number: u64, bytes: Vec<u8>) {
        let asked = self.in_flight.get(&number).filter(|request| request.waiting.contains(&node));
        let Some(Purpose::Heal(id)) = asked.map(|request| request.purpose) else { return };
        self.in_flight.remove(&number);
        self.advance_settled();
        let Some(heal) = self.heals.heals.get(&id) else { return };
        let (span, purpose) = (heal.span, heal.purpose);
        if let For::Copy(copy) = purpose
            && !self.has_copy(copy)
        {
            // Its lock is gone, and with it what was read under it.
            self.heals.heals.remove(&id);
            return;
        }
        let len = span.blocks().saturating_mul(u64::from(self.start.shape.block_size()));
        if bytes.len() as u64 != len {
            return self.ask_next(now, id);
        }
        let request = Request::Write { span, body: Body::Data(bytes.into()), durable: true };
        let me = self.start.me.node;
        self.issue_to(now, request, Purpose::Repair(id), Vec::from([me]));
    }

    /// A replica cannot read them either.
    pub(super) fn unreadable(&mut self, now: Instant, node: NodeNumber, number: u64) {
        let asked = self.in_flight.get(&number).filter(|request| request.waiting.contains(&node));
        if let Some(Purpose::Heal(id)) = asked.map(|request| request.purpose) {
            self.in_flight.remove(&number);
            self.advance_settled();
            self.ask_next(now, id);
        }
    }

    /// They are on the own replica.
    pub(super) fn repaired(&mut self, now: Instant, id: u64) {
        let Some(Heal { span, purpose, ticket, tried, .. }) = self.heals.heals.remove(&id) else { return };
        if let Some(node) = tried.last() {
            if self.heals.healed.len() >= HEALED_KEPT_MAX {
                self.heals.healed.pop_front();
            }
            self.heals.healed.push_back((span, *node));
        }
        if let Some(ticket) = ticket {
            self.unlock(now, ticket);
        }
        match purpose {
            For::Read(read) => self.read_again(now, read),
            For::Copy(copy) => self.begin_copy(copy),
            For::Itself => {}
        }
    }

    fn heal_failed(&mut self, now: Instant, id: u64) {
        let Some(Heal { purpose, ticket, .. }) = self.heals.heals.remove(&id) else { return };
        if let Some(ticket) = ticket {
            self.unlock(now, ticket);
        }
        match purpose {
            For::Read(read) => self.read_is_lost(read),
            For::Copy(copy) => self.copy_is_lost(now, copy),
            For::Itself => {}
        }
    }

    fn read_is_lost(&mut self, id: u64) {
        self.hosts.remove(&id);
        self.completions.push_back((id, Outcome::ReadFailed));
    }

    fn read_again(&mut self, now: Instant, id: u64) {
        let Some(Host::Read { span, healed_until, .. }) = self.hosts.get(&id) else { return };
        let (span, healed_until) = (*span, *healed_until);
        let (ticket, granted) = self.ranges.lock(span, Mode::Shared);
        self.holders.insert(ticket, Holder::Host(id));
        self.hosts.insert(id, Host::Read { span, ticket: Some(ticket), healed_until });
        if granted {
            self.begin_read(now, id, span);
        }
    }
}
