//! A layer: a file, and a map of the chunks of it that count; the others are those of the layer below.
//!
//! ```text
//!   volume X        snapshot S        what a chunk reads as: the highest layer that has it
//!      |                |
//!   top of X        top of S          written; everything else never changes what it reads as
//!        \            /
//!         layer of S                  all that X was when S was taken
//!             |
//!           ...
//! ```
//!
//! Invariants: only a top is written by hosts, and what is written to it changes nothing below; the first write to a chunk brings the
//! whole chunk up, and the chunk counts only once it is all there; it counts after a loss of power only if all of it is on the
//! medium. Bringing up a chunk that nobody has written changes nothing that anyone reads.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwapOption;

use super::present::Present;
use crate::store::file::FileStore;
use crate::store::{Durability, Run, Store, StoreError, Wait};

/// Locks of chunks: chunk n takes the one of n modulo this.
const STRIPES: usize = 64;

/// What lies below a layer, and what of it the layer hides.
#[derive(Debug)]
pub(super) struct Over {
    pub(super) base: Arc<Layer>,
    pub(super) present: Arc<Present>,
}

/// See the module.
#[derive(Debug)]
pub struct Layer {
    pub(super) file: FileStore,
    over: ArcSwapOption<Over>,
    stripes: [Mutex<()>; STRIPES],
    /// One flush of data and map at a time.
    flushing: Mutex<()>,
    broken: AtomicBool,
}

/// What becomes of bytes.
#[derive(Clone, Copy)]
enum Fill<'a> {
    Data(&'a [u8]),
    Zeroes,
    Hole,
}

impl Layer {
    pub(super) fn new(file: FileStore, over: Option<Over>) -> Layer {
        Layer {
            file,
            over: ArcSwapOption::from(over.map(Arc::new)),
            stripes: std::array::from_fn(|_| Mutex::default()),
            flushing: Mutex::default(),
            broken: AtomicBool::new(false),
        }
    }

    /// What lies below.
    pub(super) fn over(&self) -> Option<Arc<Over>> {
        self.over.load_full()
    }

    /// Something else lies below from now on, that reads the same wherever this layer has nothing.
    pub(super) fn set_below(&self, base: Option<Arc<Layer>>) {
        let present = self.over().map(|over| Arc::clone(&over.present));
        self.over.store(base.zip(present).map(|(base, present)| Arc::new(Over { base, present })));
    }

    /// Layers, this one among them.
    pub(super) fn depth(&self) -> usize {
        let (mut depth, mut over) = (1, self.over());
        while let Some(now) = over {
            depth += 1;
            over = now.base.over();
        }
        depth
    }

    /// Bytes that the layers take, this one among them.
    pub(super) fn used_bytes(&self) -> Result<u64, StoreError> {
        let own = self.file.room()?.used_bytes;
        Ok(own.saturating_add(self.over().map_or(Ok(0), |over| over.base.used_bytes())?))
    }

    /// Nothing is served any more.
    pub(super) fn give_up(&self) {
        self.broken.store(true, Ordering::Release);
    }

    fn check(&self) -> Result<(), StoreError> {
        if self.broken.load(Ordering::Acquire) { Err(StoreError::OutOfService) } else { Ok(()) }
    }

    /// Bytes behind the end are zero: a volume may have grown since.
    pub(super) fn read(&self, offset: u64, buffer: &mut [u8], wait: Wait) -> Result<(), StoreError> {
        self.check()?;
        let Some(over) = self.over.load_full() else {
            let own = self.file.size().saturating_sub(offset).min(buffer.len() as u64);
            let (own, behind) = buffer.split_at_mut(usize::try_from(own).unwrap_or(usize::MAX));
            behind.fill(0);
            return if own.is_empty() { Ok(()) } else { self.file.read_at(offset, own, wait) };
        };
        let (mut at, mut rest) = (offset, buffer);
        while !rest.is_empty() {
            let (own, len) = over.run(at, rest.len() as u64);
            let (part, behind) =
                std::mem::take(&mut rest).split_at_mut(usize::try_from(len).unwrap_or(usize::MAX));
            if own {
                self.read_own(at, part, wait)?
            } else {
                over.base.read(at, part, wait)?
            }
            at = at.saturating_add(len);
            rest = behind;
        }
        Ok(())
    }

    fn read_own(&self, offset: u64, buffer: &mut [u8], wait: Wait) -> Result<(), StoreError> {
        let own = self.file.size().saturating_sub(offset).min(buffer.len() as u64);
        let (own, behind) = buffer.split_at_mut(usize::try_from(own).unwrap_or(usize::MAX));
        behind.fill(0);
        if own.is_empty() { Ok(()) } else { self.file.read_at(offset, own, wait) }
    }

    pub(super) fn write(&self, offset: u64, data: &[u8], durability: Durability) -> Result<(), StoreError> {
        self.check()?;
        let len = data.len() as u64;
        let Some(over) = self.over.load_full().filter(|_| len > 0) else {
            return self.file.write_at(offset, data, durability);
        };
        if over.is_durable(offset, len) {
            return self.file.write_at(offset, data, durability);
        }
        self.change(&over, offset, len, |from, to| {
            Fill::Data(data.get(from as usize..to as usize).unwrap_or_default())
        })?;
        // The chunks count after a loss of power only when their map is there too.
        if durability == Durability::OnMedium { self.flush() } else { Ok(()) }
    }

    pub(super) fn fill(&self, offset: u64, len: u64, hole: bool) -> Result<(), StoreError> {
        self.check()?;
        match self.over.load_full().filter(|_| len > 0) {
            Some(over) => {
                self.change(&over, offset, len, |_, _| if hole { Fill::Hole } else { Fill::Zeroes })
            }
            None if hole => self.file.unmap(offset, len),
            None => self.file.write_zeroes(offset, len),
        }
    }

    /// Changes bytes chunk by chunk. `fill` is asked with a range relative to `offset`.
    fn change<'a>(
        &self,
        over: &Over,
        offset: u64,
        len: u64,
        fill: impl Fn(u64, u64) -> Fill<'a>,
    ) -> Result<(), StoreError> {
        let end = offset.saturating_add(len);
        if end > self.file.size() {
            return Err(StoreError::OutOfRange);
        }
        let mut at = offset;
        while at < end {
            let (own, run) = over.run(at, end - at);
            let next = at.saturating_add(run);
            if own {
                self.put(at, run, fill(at - offset, next - offset))?;
                at = next;
                continue;
            }
            // Chunks that are replaced as a whole need nothing of what lies below.
            let (first, behind) = over.whole_chunks(at, next, self.file.size());
            if first == at && behind > at {
                let whole = (first >> over.shift(), behind.div_ceil(1 << over.shift()));
                let _locked = self.lock_chunks(whole.0, whole.1);
                self.put(first, behind - first, fill(first - offset, behind - offset))?;
                over.present.set(whole.0, whole.1).map_err(classify)?;
                at = behind;
                continue;
            }
            let chunk = at >> over.shift();
            let part_end = next.min((chunk + 1) << over.shift());
            self.bring_up(over, chunk, Some((at, part_end - at, fill(at - offset, part_end - offset))))?;
            at = part_end;
        }
        Ok(())
    }

    /// Makes a chunk the layer's own, with a change in it.
    fn bring_up(
        &self,
        over: &Over,
        chunk: u64,
        change: Option<(u64, u64, Fill<'_>)>,
    ) -> Result<(), StoreError> {
        let _locked = self.lock_chunks(chunk, chunk + 1);
        if !over.present.has(chunk) {
            let start = chunk << over.shift();
            let len = self.file.size().saturating_sub(start).min(1 << over.shift());
            let runs = over.base.allocation(start, len, 1)?;
            if runs.iter().all(|run| !run.allocated && run.len >= len) {
                // A write that a crash cut short may have left something there.
                self.file.unmap(start, len)?;
            } else {
                let mut bytes = vec![0; usize::try_from(len).map_err(|_| StoreError::OutOfRange)?];
                over.base.read(start, &mut bytes, Wait::Allowed)?;
                self.file.write_at(start, &bytes, Durability::Cached)?;
            }
        }
        if let Some((at, len, fill)) = change {
            self.put(at, len, fill)?;
        }
        over.present.set(chunk, chunk + 1).map_err(classify)
    }

    fn put(&self, offset: u64, len: u64, fill: Fill<'_>) -> Result<(), StoreError> {
        match fill {
            Fill::Data(data) => self.file.write_at(offset, data, Durability::Cached),
            Fill::Zeroes => self.file.write_zeroes(offset, len),
            Fill::Hole => self.file.unmap(offset, len),
        }
    }

    /// Always in rising order, so that nobody waits for each other.
    fn lock_chunks(&self, first: u64, behind: u64) -> Vec<MutexGuard<'_, ()>> {
        let count = behind.saturating_sub(first);
        let taken = |stripe: &u64| {
            count >= STRIPES as u64
                || (stripe + STRIPES as u64 - first % STRIPES as u64) % (STRIPES as u64) < count
        };
        let stripes = (0..STRIPES as u64).filter(taken);
        stripes
            .filter_map(|stripe| self.stripes.get(stripe as usize))
            .map(|stripe| stripe.lock().unwrap_or_else(PoisonError::into_inner))
            .collect()
    }

    pub(super) fn flush(&self) -> Result<(), StoreError> {
        self.check()?;
        let Some(over) = self.over.load_full() else { return self.file.flush() };
        let _one = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        // Chunks that count by now have been written by now.
        let pending = over.present.pending();
        self.file.flush()?;
        over.present.write(pending).map_err(|error| {
            tracing::error!(%error, "the map of a layer cannot be written: the replica is out of service");
            self.give_up();
            StoreError::Hardware(error)
        })
    }

    pub(super) fn grow(&self, size: u64) -> Result<(), StoreError> {
        self.check()?;
        if let Some(over) = self.over.load_full() {
            over.present.grow(size).map_err(classify)?;
        }
        self.file.grow(size)
    }

    pub(super) fn allocation(&self, offset: u64, len: u64, runs_max: usize) -> Result<Vec<Run>, StoreError> {
        let mut runs: Vec<Run> = Vec::new();
        self.each_run(offset, len, &mut |run: Run| {
            let full = runs.len() >= runs_max.max(1);
            match runs.last_mut() {
                Some(last) if last.allocated == run.allocated => last.len += run.len,
                _ if full => return false,
                _ => runs.push(run),
            }
            true
        })?;
        Ok(runs)
    }

    /// Calls `take` with each run until it wants no more.
    fn each_run(&self, offset: u64, len: u64, take: &mut dyn FnMut(Run) -> bool) -> Result<bool, StoreError> {
        let over = self.over.load_full();
        let end = offset.saturating_add(len);
        let mut at = offset;
        while at < end {
            let (own, run) = over.as_ref().map_or((true, end - at), |over| over.run(at, end - at));
            let more = match &over {
                Some(over) if !own => over.base.each_run(at, run, take)?,
                _ => self.each_own_run(at, run, take)?,
            };
            if !more {
                return Ok(false);
            }
            at = at.saturating_add(run);
        }
        Ok(true)
    }

    fn each_own_run(
        &self,
        offset: u64,
        len: u64,
        take: &mut dyn FnMut(Run) -> bool,
    ) -> Result<bool, StoreError> {
        /// Runs asked for at a time.
        const AT_ONCE: usize = 64;
        let end = offset.saturating_add(len);
        let own_end = end.min(self.file.size());
        let mut at = offset;
        while at < own_end {
            for run in self.file.allocation(at, own_end - at, AT_ONCE)? {
                at = at.saturating_add(run.len);
                if !take(run) {
                    return Ok(false);
                }
            }
        }
        Ok(at >= end || take(Run { len: end - at, allocated: false }))
    }

    /// True if a write there would have to bring something up first.
    pub(super) fn brings_up(&self, offset: u64, len: u64) -> bool {
        let over = self.over.load();
        over.as_ref().is_some_and(|over| len > 0 && over.run(offset, len) != (true, len))
    }

    /// Brings up chunks that the layer just below has, about `bytes_max`. True once there is none left: the layer reads the same without the one
    /// below then.
    pub(super) fn bring_up_some(&self, bytes_max: u64) -> Result<bool, StoreError> {
        self.check()?;
        let Some(over) = self.over.load_full() else { return Ok(true) };
        let mut left = bytes_max;
        for chunk in 0..self.file.size().div_ceil(1 << over.shift()) {
            if over.present.has(chunk) || !over.base.owns_some(chunk << over.shift(), 1 << over.shift()) {
                continue;
            }
            if left == 0 {
                return Ok(false);
            }
            self.bring_up(&over, chunk, None)?;
            left = left.saturating_sub(1 << over.shift());
        }
        Ok(true)
    }

    fn owns_some(&self, offset: u64, len: u64) -> bool {
        offset < self.file.size()
            && self.over.load().as_ref().is_none_or(|over| over.run(offset, len) != (false, len))
    }
}

impl Over {
    fn shift(&self) -> u8 {
        self.present.chunk_shift()
    }

    /// Whether the byte at `offset` is the layer's own, and for how many bytes that is so, at most `len`.
    fn run(&self, offset: u64, len: u64) -> (bool, u64) {
        let end = offset.saturating_add(len);
        let mut chunk = offset >> self.shift();
        let own = self.present.has(chunk);
        loop {
            chunk += 1;
            let start = chunk << self.shift();
            if start >= end {
                return (own, len);
            }
            if self.present.has(chunk) != own {
                return (own, start - offset);
            }
        }
    }

    fn is_durable(&self, offset: u64, len: u64) -> bool {
        self.present.is_durable(offset >> self.shift(), offset.saturating_add(len - 1) >> self.shift())
    }

    /// Where the whole chunks between two places begin, and where they end; the last one of a layer of `size` may be short.
    fn whole_chunks(&self, from: u64, to: u64, size: u64) -> (u64, u64) {
        let chunk = 1_u64 << self.shift();
        let first = from.next_multiple_of(chunk);
        let behind = if to >= size { to } else { to / chunk * chunk };
        (first, behind.max(first))
    }
}

/// Of the map's file.
pub(super) fn classify(error: io::Error) -> StoreError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::NoSpace,
        _ => StoreError::Hardware(error),
    }
}
