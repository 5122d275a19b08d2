//! Locks on runs of blocks, granted in the order of asking.
//!
//! Invariants: no two granted locks that overlap unless both are shared; a lock waits for every earlier one that it clashes
//! with, granted or not, so nobody starves and overlapping requests keep their order.

use alloc::{collections::BTreeMap, vec::Vec};

use crate::span::Span;

/// Names a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// Who may hold the same blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Other shared holders: a read.
    Shared,
    /// Nobody else: whatever changes data.
    Exclusive,
}

#[derive(Clone, Copy, Debug)]
struct Lock {
    span: Span,
    mode: Mode,
    granted: bool,
}

impl Lock {
    fn clashes(&self, other: &Lock) -> bool {
        (self.mode == Mode::Exclusive || other.mode == Mode::Exclusive) && self.span.overlaps(other.span)
    }
}

/// The locks of one volume.
#[derive(Clone, Debug, Default)]
pub struct Ranges {
    locks: BTreeMap<Ticket, Lock>,
    last: u64,
}

impl Ranges {
    /// Asks for a lock. True if it is granted at once; else [`Ranges::release`] of another one grants it.
    pub fn lock(&mut self, span: Span, mode: Mode) -> (Ticket, bool) {
        self.last += 1;
        let ticket = Ticket(self.last);
        let mut lock = Lock { span, mode, granted: false };
        lock.granted = !self.locks.values().any(|other| other.clashes(&lock));
        self.locks.insert(ticket, lock);
        (ticket, lock.granted)
    }

    /// Gives a lock back, granted or not. Returns those that this has granted, oldest first.
    pub fn release(&mut self, ticket: Ticket) -> Vec<Ticket> {
        let Some(gone) = self.locks.remove(&ticket) else { return Vec::new() };
        let candidates = self.locks.range(ticket..).filter(|(_, l)| !l.granted && l.clashes(&gone));
        let candidates: Vec<Ticket> = candidates.map(|(t, _)| *t).collect();
        let mut granted = Vec::new();
        for ticket in candidates {
            let Some(lock) = self.locks.get(&ticket).copied() else { continue };
            if !self.locks.range(..ticket).any(|(_, earlier)| earlier.clashes(&lock)) {
                self.locks.insert(ticket, Lock { granted: true, ..lock });
                granted.push(ticket);
            }
        }
        granted
    }

    /// How many locks there are, granted or not.
    pub fn len(&self) -> usize {
        self.locks.len()
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.locks.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn span(lba: u64, blocks: u64) -> Span {
        Span::new(lba, blocks).unwrap()
    }

    #[test]
    fn reads_share_and_writes_exclude() {
        let mut ranges = Ranges::default();
        let (r1, granted) = ranges.lock(span(0, 8), Mode::Shared);
        assert!(granted);
        assert!(ranges.lock(span(4, 8), Mode::Shared).1);
        let (w, granted) = ranges.lock(span(0, 1), Mode::Exclusive);
        assert!(!granted);
        // A read behind the waiting write does not overtake it.
        let (r2, granted) = ranges.lock(span(0, 1), Mode::Shared);
        assert!(!granted);
        assert!(ranges.lock(span(100, 1), Mode::Exclusive).1);
        assert_eq!(ranges.release(r1), [w]);
        assert_eq!(ranges.release(w), [r2]);
    }

    proptest! {
        #[test]
        fn granted_locks_never_clash_and_everyone_is_served(
            asks in proptest::collection::vec((0u64..20, 1u64..6, any::<bool>()), 1..40),
        ) {
            let mut ranges = Ranges::default();
            let mut held = std::collections::VecDeque::new();
            for (lba, blocks, shared) in &asks {
                let mode = if *shared { Mode::Shared } else { Mode::Exclusive };
                let (ticket, granted) = ranges.lock(span(*lba, *blocks), mode);
                if granted {
                    held.push_back(ticket);
                }
            }
            let mut served = 0;
            while let Some(ticket) = held.pop_front() {
                let granted: Vec<Lock> = ranges.locks.values().filter(|l| l.granted).copied().collect();
                for (at, lock) in granted.iter().enumerate() {
                    prop_assert!(!granted[at + 1..].iter().any(|other| other.clashes(lock)));
                }
                held.extend(ranges.release(ticket));
                served += 1;
            }
            prop_assert_eq!(served, asks.len());
            prop_assert!(ranges.is_empty());
        }
    }
}
