//! Extents in which data and checksums may disagree on the medium: the durable record of them, and what it takes to end it.
//!
//! ```text
//!            a write comes                 the write ends              flushed, and nobody writes there
//!  settled ----------------> unsettled,  ----------------> unsettled, ----------------------------------> may be settled with
//!            recorded on the  writers > 0                   cached                                          the next record
//!            medium first
//! ```
//!
//! Bad blocks are recorded with them, so that what an open after a crash takes as it finds it never hides a block that was known to be bad.
//!
//! Invariants: an extent is on the medium as unsettled before anything is written to it; it is taken off only when all writes to it are on
//! the medium, data and checksums; one record is written at a time, to the slot that the last one was not written to.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::sidecar::{BAD_MAX, BLOCKS_PER_EXTENT, Head, ScrubMark, UNSETTLED_MAX};
use crate::store::StoreError;

/// Extents that stay unsettled without need, because they are likely to be written again: each costs an open after a crash 4 MiB of reading.
const IDLE_KEPT_MAX: usize = 64;

#[derive(Debug, Default)]
struct Extent {
    writers: usize,
    /// The round of flushing in which it was last written to without being flushed.
    cached_in: Option<u64>,
    /// On the medium as unsettled.
    recorded: bool,
    /// For the choice of those that are not used any more.
    used: u64,
}

#[derive(Debug, Default)]
struct State {
    extents: BTreeMap<u64, Extent>,
    /// Those that were written anew since: in which round of flushing.
    bad: BTreeMap<u64, Option<u64>>,
    scrub: ScrubMark,
    sequence: u64,
    writing: bool,
    round: u64,
    /// Everything up to this round is on the medium.
    flushed: u64,
    uses: u64,
    used_at_settling: u64,
}

impl State {
    fn is_settled(&self, extent: &Extent) -> bool {
        extent.writers == 0 && extent.cached_in.is_none_or(|round| round <= self.flushed)
    }

    /// Takes off what needs not be there, the longest unused first, until no more than `keep` are left.
    fn make_room(&mut self, keep: usize) {
        let mut idle: Vec<(u64, u64)> = (self.extents.iter())
            .filter(|(_, extent)| self.is_settled(extent))
            .map(|(number, extent)| (extent.used, *number))
            .collect();
        idle.sort_unstable();
        let surplus = self.extents.len().saturating_sub(keep);
        for (_, number) in idle.into_iter().take(surplus) {
            self.extents.remove(&number);
        }
    }

    fn head(&self) -> Head {
        Head {
            sequence: self.sequence + 1,
            unsettled: self.extents.keys().copied().collect(),
            bad: self.bad.keys().copied().collect(),
            scrub: self.scrub,
        }
    }

    /// A crash now could hide what is noted of these blocks, or not know of it.
    fn matters(&self, blocks: &[u64]) -> bool {
        blocks.iter().any(|block| self.extents.contains_key(&(block / BLOCKS_PER_EXTENT)))
    }
}

/// What the caller does for the record.
pub(super) trait Medium {
    /// Makes sure that the checksums of these extents have their space.
    fn reserve(&self, extents: &[u64]) -> Result<(), StoreError>;
    /// Brings a head to its slot, durably.
    fn record(&self, head: &Head) -> Result<(), StoreError>;
    /// Brings data and checksums to the medium, and says so by [`Unsettled::flushed`].
    fn flush_all(&self) -> Result<(), StoreError>;
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Unsettled {
    state: Mutex<State>,
    changed: Condvar,
}

impl Unsettled {
    /// As the medium has it, once all has been looked at: nothing is unsettled.
    pub(super) fn new(head: &Head) -> Unsettled {
        let state = State {
            sequence: head.sequence,
            bad: head.bad.iter().map(|block| (*block, None)).collect(),
            scrub: head.scrub,
            round: 1,
            ..State::default()
        };
        Unsettled { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Before a write to these extents: they are on the medium as unsettled when this returns.
    pub(super) fn begin(&self, extents: &Range<u64>, medium: &impl Medium) -> Result<(), StoreError> {
        let mut flushed = false;
        let mut state = self.lock();
        loop {
            let fresh: Vec<u64> =
                extents.clone().filter(|e| !state.extents.get(e).is_some_and(|e| e.recorded)).collect();
            if fresh.is_empty() {
                state.uses += 1;
                let used = state.uses;
                for (_, extent) in state.extents.range_mut(extents.clone()) {
                    extent.writers += 1;
                    extent.used = used;
                }
                return Ok(());
            }
            if state.writing {
                state = self.wait(state);
                continue;
            }
            state.make_room(IDLE_KEPT_MAX.saturating_sub(fresh.len()));
            if state.extents.len() + fresh.len() > UNSETTLED_MAX {
                state.make_room(UNSETTLED_MAX.saturating_sub(fresh.len()));
            }
            if state.extents.len() + fresh.len() > UNSETTLED_MAX {
                if flushed {
                    // All that is left is being written to: that ends.
                    state = self.wait(state);
                } else {
                    drop(state);
                    medium.flush_all()?;
                    flushed = true;
                    state = self.lock();
                }
                continue;
            }
            // What was settled just now to make room may be of this write, too.
            let fresh: Vec<u64> =
                extents.clone().filter(|e| !state.extents.get(e).is_some_and(|e| e.recorded)).collect();
            for extent in &fresh {
                state.extents.entry(*extent).or_default().writers += 1;
            }
            let (again, done) = self.record(state, |head| {
                medium.reserve(&fresh)?;
                medium.record(head)
            });
            state = again;
            for extent in &fresh {
                if let Some(entry) = state.extents.get_mut(extent) {
                    entry.writers = entry.writers.saturating_sub(1);
                    entry.recorded = done.is_ok();
                }
                if done.is_err() {
                    state.extents.remove(extent);
                }
            }
            done?;
        }
    }

    /// A write to these extents has ended; `cached`: it is not on the medium.
    pub(super) fn end(&self, extents: &Range<u64>, cached: bool) {
        let mut state = self.lock();
        let round = state.round;
        for (_, extent) in state.extents.range_mut(extents.clone()) {
            extent.writers = extent.writers.saturating_sub(1);
            if cached {
                extent.cached_in = Some(round);
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    /// True if a write there need not wait for the medium.
    pub(super) fn has(&self, extents: &Range<u64>) -> bool {
        let state = self.lock();
        extents.clone().all(|extent| state.extents.get(&extent).is_some_and(|extent| extent.recorded))
    }

    /// A flush begins. What ends from now on is of the next round.
    pub(super) fn begin_flush(&self) -> u64 {
        let mut state = self.lock();
        state.round += 1;
        state.round - 1
    }

    /// All of this round is on the medium.
    pub(super) fn flushed(&self, round: u64, medium: &impl Medium) -> Result<(), StoreError> {
        let mut state = self.lock();
        state.flushed = state.flushed.max(round);
        let flushed = state.flushed;
        let over = state.bad.iter().filter(|(_, mended)| mended.is_some_and(|round| round <= flushed));
        let over: Vec<u64> = over.map(|(block, _)| *block).collect();
        self.forget_bad(state, &over, medium)
    }

    /// Takes those off the medium that are settled and were not used since the last call; with `all` every settled one.
    pub(super) fn settle(&self, all: bool, medium: &impl Medium) -> Result<(), StoreError> {
        let mut state = self.lock();
        let since = state.used_at_settling;
        state.used_at_settling = state.uses;
        let over: Vec<u64> = (state.extents.iter())
            .filter(|(_, extent)| state.is_settled(extent) && (all || extent.used <= since))
            .map(|(number, _)| *number)
            .collect();
        if over.is_empty() && !all {
            return Ok(());
        }
        if state.writing {
            // Another time: what is used meanwhile must not be taken off.
            return Ok(());
        }
        for number in over {
            state.extents.remove(&number);
        }
        self.record(state, |head| medium.record(head)).1
    }

    /// Blocks that are known to be bad.
    pub(super) fn bad(&self) -> BTreeSet<u64> {
        self.lock().bad.iter().filter(|(_, mended)| mended.is_none()).map(|(block, _)| *block).collect()
    }

    /// True while no more of them can be remembered.
    pub(super) fn forgets_bad(&self) -> bool {
        self.lock().bad.len() >= BAD_MAX
    }

    /// These blocks are bad. On the medium at once where a crash could hide it; else with the next record, which a write there waits for.
    pub(super) fn found_bad(&self, blocks: &[u64], medium: &impl Medium) {
        let mut state = self.lock();
        let mut fresh = Vec::new();
        for block in blocks {
            if (state.bad.len() < BAD_MAX || state.bad.contains_key(block))
                && state.bad.insert(*block, None).is_none()
            {
                fresh.push(*block);
            }
        }
        if state.matters(&fresh)
            && let Err(error) = self.record(state, |head| medium.record(head)).1
        {
            tracing::error!(%error, "bad blocks cannot be recorded");
        }
    }

    /// These blocks have been written anew, durably or in the cache.
    pub(super) fn mended(
        &self,
        blocks: &Range<u64>,
        durably: bool,
        medium: &impl Medium,
    ) -> Result<(), StoreError> {
        let mut state = self.lock();
        let round = state.round;
        let over: Vec<u64> = state.bad.range(blocks.clone()).map(|(block, _)| *block).collect();
        if over.is_empty() {
            return Ok(());
        }
        if durably {
            return self.forget_bad(state, &over, medium);
        }
        for (_, mended) in state.bad.range_mut(blocks.clone()) {
            *mended = Some(round);
        }
        Ok(())
    }

    /// The next write of such a block would be taken for rot if it were cut, where the medium still called it bad.
    fn forget_bad(
        &self,
        mut state: MutexGuard<'_, State>,
        blocks: &[u64],
        medium: &impl Medium,
    ) -> Result<(), StoreError> {
        state.bad.retain(|block, _| !blocks.contains(block));
        if state.matters(blocks) { self.record(state, |head| medium.record(head)).1 } else { Ok(()) }
    }

    /// Where the scrub is.
    pub(super) fn scrub(&self) -> ScrubMark {
        self.lock().scrub
    }

    /// Notes where the scrub is.
    pub(super) fn set_scrub(&self, scrub: ScrubMark, medium: &impl Medium) -> Result<(), StoreError> {
        let mut state = self.lock();
        state.scrub = scrub;
        self.record(state, |head| medium.record(head)).1
    }

    fn record<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        write: impl FnOnce(&Head) -> Result<(), StoreError>,
    ) -> (MutexGuard<'a, State>, Result<(), StoreError>) {
        while state.writing {
            state = self.wait(state);
        }
        let head = state.head();
        state.writing = true;
        drop(state);
        let done = write(&head);
        let mut state = self.lock();
        state.writing = false;
        if done.is_ok() {
            state.sequence = head.sequence;
        }
        self.changed.notify_all();
        (state, done)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
