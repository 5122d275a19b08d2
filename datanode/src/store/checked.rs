//! A store that knows when its medium lies: a checksum for each 4096 bytes, kept beside the data, verified on every read.
//!
//! | Looking for | Module |
//! |---|---|
//! | the file of checksums, byte by byte | `sidecar` |
//! | where data and checksums may disagree after a crash | `unsettled` |
//! | who may touch a block now | `locks` |
//! | what is done at an open | `opening` |
//!
//! Both lie in stores of their own, in the page cache of the system: the memory that a volume needs here is bounded by
//! 504 extents and 504 bad blocks, whatever its size.
//!
//! Invariants: bytes that do not fit their checksum are never handed out; a block that is bad stays bad until it is written as a whole:
//! a write of a part of it leaves the difference between data and checksum as it was; an extent is recorded as unsettled
//! before anything is written to it, so that a crash is never taken for rot, and rot is taken for a crash only in an extent that had unflushed
//! writes and in a block that nobody had found bad; once a flush of either store has failed nothing is served.

mod locks;
mod opening;
mod sidecar;
mod unsettled;

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod disk;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use holdfast_replica::ids::VolumeId;

use self::locks::Locks;
use self::sidecar::{BLOCKS_PER_EXTENT, EXTENT, Head, SLOT_LEN, SUM_LEN, file_len, sum, sum_at};
use self::unsettled::{Medium, Unsettled};
use super::{Durability, Room, Run, Store, StoreError, Wait};

pub use opening::{OpenError, create, sums_len};
pub use sidecar::{BLOCK, ScrubMark, SidecarError};

/// Bytes that are changed under one lock at most.
const CHANGE_LEN_MAX: u64 = 4 * EXTENT;

/// See the module.
#[derive(Debug)]
pub struct CheckedStore {
    data: Box<dyn Store>,
    sums: Box<dyn Store>,
    volume: VolumeId,
    locks: Locks,
    unsettled: Unsettled,
    out_of_service: AtomicBool,
}

/// What becomes of a run of bytes.
#[derive(Clone, Copy, Debug)]
enum Change<'a> {
    Data(&'a [u8], Durability),
    Zeroes(u64),
    Unmap(u64),
}

impl<'a> Change<'a> {
    fn len(&self) -> u64 {
        match self {
            Change::Data(data, _) => data.len() as u64,
            Change::Zeroes(len) | Change::Unmap(len) => *len,
        }
    }

    fn cached(&self) -> bool {
        !matches!(self, Change::Data(_, Durability::OnMedium))
    }

    /// The first `len` bytes, and the rest.
    fn split(self, len: u64) -> (Change<'a>, Option<Change<'a>>) {
        let rest = self.len().saturating_sub(len);
        if rest == 0 {
            return (self, None);
        }
        match self {
            Change::Data(data, durability) => {
                let (first, rest) = data.split_at_checked(len as usize).unwrap_or((data, &[]));
                (Change::Data(first, durability), Some(Change::Data(rest, durability)))
            }
            Change::Zeroes(_) => (Change::Zeroes(len), Some(Change::Zeroes(rest))),
            Change::Unmap(_) => (Change::Unmap(len), Some(Change::Unmap(rest))),
        }
    }

    /// Puts `block`'s part of it, which begins `at` bytes into the change, over its old content.
    fn lay_over(&self, at: u64, part: &mut [u8]) {
        match self {
            Change::Data(data, _) => {
                let at = at as usize;
                if let Some(bytes) = data.get(at..at.saturating_add(part.len())) {
                    part.copy_from_slice(bytes);
                }
            }
            Change::Zeroes(_) | Change::Unmap(_) => part.fill(0),
        }
    }
}

fn blocks_of(offset: u64, len: u64) -> Range<u64> {
    offset / BLOCK..offset.saturating_add(len).div_ceil(BLOCK)
}

fn extents_of(offset: u64, len: u64) -> Range<u64> {
    offset / EXTENT..offset.saturating_add(len).div_ceil(EXTENT)
}

impl CheckedStore {
    /// Blocks that were found bad and not written anew since, at most 504 of them.
    pub fn bad_blocks(&self) -> Vec<u64> {
        self.unsettled.bad().into_iter().collect()
    }

    /// True while more bad blocks would not be remembered.
    pub fn forgets_bad(&self) -> bool {
        self.unsettled.forgets_bad()
    }

    /// Where the scrub is.
    pub fn scrub_mark(&self) -> ScrubMark {
        self.unsettled.scrub()
    }

    /// Notes where the scrub is, durably.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn set_scrub_mark(&self, mark: ScrubMark) -> Result<(), StoreError> {
        self.unsettled.set_scrub(mark, self)
    }

    /// For idle moments: takes extents off the record that all writes have left, so that a crash leaves less to look at.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn settle(&self) -> Result<(), StoreError> {
        self.check(0, 0)?;
        self.unsettled.settle(false, self)
    }

    /// Which of the blocks that `len` bytes from `offset` touch are bad, or cannot be read. Blocks.
    ///
    /// # Errors
    /// [`StoreError`], but neither `Corrupt` nor `Medium`.
    pub fn verify(&self, offset: u64, len: u64) -> Result<Vec<u64>, StoreError> {
        self.check(offset, len)?;
        let blocks = blocks_of(offset, len);
        let _lock = self.locks.shared(&blocks);
        let mut buffer = vec![0; self.bytes_in(&blocks)];
        match self.load(&blocks, &mut buffer, Wait::Allowed) {
            Ok(sums) => {
                let bad = mismatches(blocks.start, &buffer, &sums);
                self.unsettled.found_bad(&bad, self);
                return Ok(bad);
            }
            Err(StoreError::Medium(_)) => {}
            Err(error) => return Err(error),
        }
        let mut bad = Vec::new();
        for block in blocks {
            let one = block..block + 1;
            let mut buffer = vec![0; self.bytes_in(&one)];
            match self.load(&one, &mut buffer, Wait::Allowed) {
                Ok(sums) => bad.extend(mismatches(block, &buffer, &sums)),
                Err(StoreError::Medium(_)) => bad.push(block),
                Err(error) => return Err(error),
            }
        }
        self.unsettled.found_bad(&bad, self);
        Ok(bad)
    }

    /// The orderly end: nothing is left to look at, and nothing is served afterwards. Where that fails the next open looks. Without it an
    /// open takes what was written last as it finds it, as after a crash.
    pub fn close(&self) {
        if self.out_of_service.load(Ordering::Acquire) {
            return;
        }
        if let Err(error) = self.flush_all().and_then(|()| self.unsettled.settle(true, self)) {
            tracing::warn!(%error, "the checksums cannot be settled: the next open looks at what was written last");
        }
        self.out_of_service.store(true, Ordering::Release);
    }

    /// How many bytes from `offset` on hold nothing, and never did: no data, and no checksum of any.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn nothing_at(&self, offset: u64) -> Result<u64, StoreError> {
        let rest = self.size().saturating_sub(offset);
        let hole = |runs: Vec<Run>| runs.first().filter(|run| !run.allocated).map_or(0, |run| run.len);
        let data = hole(self.data.allocation(offset, rest, 1)?);
        if data == 0 {
            return Ok(0);
        }
        let at = sum_at(offset / BLOCK);
        let sums = hole(self.sums.allocation(at, self.sums.size().saturating_sub(at), 1)?);
        Ok(data.min((sums / SUM_LEN).saturating_mul(BLOCK)))
    }

    fn check(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        if self.out_of_service.load(Ordering::Acquire) {
            return Err(StoreError::OutOfService);
        }
        match offset.checked_add(len) {
            Some(end) if end <= self.size() => Ok(()),
            _ => Err(StoreError::OutOfRange),
        }
    }

    /// What a failure that leaves data and checksums in doubt means.
    fn give_up(&self, error: StoreError) -> StoreError {
        self.out_of_service.store(true, Ordering::Release);
        tracing::error!(%error, "data and checksums may disagree: the replica is out of service until it is opened anew");
        error
    }

    /// Bytes that the volume has in these blocks.
    fn bytes_in(&self, blocks: &Range<u64>) -> usize {
        let end = blocks.end.saturating_mul(BLOCK).min(self.size());
        end.saturating_sub(blocks.start.saturating_mul(BLOCK)) as usize
    }

    fn load_sums(&self, blocks: &Range<u64>, wait: Wait) -> Result<Vec<u32>, StoreError> {
        let mut raw = vec![0; (blocks.end.saturating_sub(blocks.start) * SUM_LEN) as usize];
        self.sums.read_at(sum_at(blocks.start), &mut raw, wait)?;
        Ok(raw.as_chunks().0.iter().map(|raw| u32::from_be_bytes(*raw)).collect())
    }

    fn store_sums(&self, from: u64, sums: &[u32], durability: Durability) -> Result<(), StoreError> {
        let raw: Vec<u8> = sums.iter().flat_map(|sum| sum.to_be_bytes()).collect();
        self.sums.write_at(sum_at(from), &raw, durability)
    }

    /// Whole blocks and their checksums as they are. The caller has them locked.
    fn load(&self, blocks: &Range<u64>, buffer: &mut [u8], wait: Wait) -> Result<Vec<u32>, StoreError> {
        self.data.read_at(blocks.start.saturating_mul(BLOCK), buffer, wait)?;
        self.load_sums(blocks, wait)
    }

    fn change(&self, mut offset: u64, change: Change<'_>) -> Result<(), StoreError> {
        self.check(offset, change.len())?;
        let mut rest = Some(change).filter(|change| change.len() > 0);
        while let Some(change) = rest {
            // Pieces end where extents do.
            let len = CHANGE_LEN_MAX - offset % EXTENT;
            let (piece, behind) = change.split(len);
            self.change_piece(offset, piece)?;
            offset = offset.saturating_add(piece.len());
            rest = behind;
        }
        Ok(())
    }

    fn change_piece(&self, offset: u64, change: Change<'_>) -> Result<(), StoreError> {
        let (blocks, extents) = (blocks_of(offset, change.len()), extents_of(offset, change.len()));
        let _lock = self.locks.exclusive(&blocks);
        self.unsettled.begin(&extents, self)?;
        let done = self.change_locked(offset, &blocks, change);
        self.unsettled.end(&extents, change.cached() || done.is_err());
        done?;
        let whole = offset.div_ceil(BLOCK)..self.whole_until(offset.saturating_add(change.len()));
        if whole.start < whole.end {
            self.unsettled.mended(&whole, !change.cached(), self)?;
        }
        Ok(())
    }

    /// The block behind the last one that is whole before `end`.
    fn whole_until(&self, end: u64) -> u64 {
        if end == self.size() { end.div_ceil(BLOCK) } else { end / BLOCK }
    }

    fn change_locked(&self, offset: u64, blocks: &Range<u64>, change: Change<'_>) -> Result<(), StoreError> {
        let end = offset.saturating_add(change.len());
        let mut sums = Vec::with_capacity((blocks.end - blocks.start) as usize);
        let mut differences = Vec::new();
        for block in blocks.clone() {
            let start = block.saturating_mul(BLOCK);
            let stop = start.saturating_add(BLOCK).min(self.size());
            let (from, to) = (start.max(offset), stop.min(end));
            if (from, to) == (start, stop) {
                sums.push(match change {
                    Change::Data(data, _) => {
                        let at = (from - offset) as usize;
                        sum(data.get(at..at + (to - from) as usize).unwrap_or_default())
                    }
                    Change::Zeroes(_) | Change::Unmap(_) => 0,
                });
                continue;
            }
            let one = block..block + 1;
            let mut content = vec![0; (stop - start) as usize];
            let old = self.load(&one, &mut content, Wait::Allowed)?.first().copied().unwrap_or(0);
            // Nothing in a good block. What was lost in a bad one is not to be found, so it stays as bad as it was.
            let difference = old ^ sum(&content);
            if difference != 0 {
                self.unsettled.found_bad(&[block], self);
                differences.push((block, difference));
            }
            if let Some(part) = content.get_mut((from - start) as usize..(to - start) as usize) {
                change.lay_over(from - offset, part);
            }
            sums.push(sum(&content) ^ difference);
        }
        let done = match change {
            Change::Data(data, durability) => self.data.write_at(offset, data, durability),
            Change::Zeroes(len) => self.data.write_zeroes(offset, len),
            Change::Unmap(len) => self.data.unmap(offset, len),
        };
        if let Err(error) = done {
            return Err(self.after_failure(blocks, &differences, error));
        }
        let durability = if change.cached() { Durability::Cached } else { Durability::OnMedium };
        self.store_sums(blocks.start, &sums, durability).map_err(|error| self.give_up(error))
    }

    /// A change of the data has failed somewhere: what is there now is what counts.
    fn after_failure(
        &self,
        blocks: &Range<u64>,
        differences: &[(u64, u32)],
        error: StoreError,
    ) -> StoreError {
        if !matches!(error, StoreError::NoSpace | StoreError::Medium(_)) {
            return self.give_up(error);
        }
        let mut content = vec![0; self.bytes_in(blocks)];
        match self.data.read_at(blocks.start.saturating_mul(BLOCK), &mut content, Wait::Allowed) {
            Ok(()) => {}
            // Whoever reads them is told, whatever their checksums are.
            Err(StoreError::Medium(_)) => return error,
            Err(_) => return self.give_up(error),
        }
        let sums = content.chunks(BLOCK as usize).zip(blocks.clone()).map(|(content, block)| {
            let difference = differences.iter().find(|(bad, _)| *bad == block).map_or(0, |(_, d)| *d);
            sum(content) ^ difference
        });
        let sums: Vec<u32> = sums.collect();
        match self.store_sums(blocks.start, &sums, Durability::Cached) {
            Ok(()) => error,
            Err(_) => self.give_up(error),
        }
    }

    /// Makes an error of what does not fit, for bytes `offset..offset + len`.
    fn judge(&self, bad: &[u64], offset: u64, len: u64) -> Result<(), StoreError> {
        let Some(first) = bad.first() else { return Ok(()) };
        self.unsettled.found_bad(bad, self);
        let run = bad.iter().enumerate().take_while(|(n, block)| **block == first + *n as u64).count() as u64;
        let from = first.saturating_mul(BLOCK).max(offset);
        let to = (first + run).saturating_mul(BLOCK).min(offset.saturating_add(len));
        Err(StoreError::Corrupt { offset: from, len: to.saturating_sub(from) })
    }
}

/// The blocks that do not fit their checksums.
fn mismatches(from: u64, content: &[u8], sums: &[u32]) -> Vec<u64> {
    let blocks = content.chunks(BLOCK as usize).zip(sums).zip(from..);
    blocks.filter(|((content, expected), _)| sum(content) != **expected).map(|(_, block)| block).collect()
}

impl Medium for CheckedStore {
    fn reserve(&self, extents: &[u64]) -> Result<(), StoreError> {
        for extent in extents {
            let from = extent.saturating_mul(BLOCKS_PER_EXTENT);
            let to = from.saturating_add(BLOCKS_PER_EXTENT).min(self.size().div_ceil(BLOCK));
            // Nobody writes there before this returns, so writing what is there gets it space and changes nothing.
            let sums = self.load_sums(&(from..to), Wait::Allowed)?;
            self.store_sums(from, &sums, Durability::Cached)?;
        }
        Ok(())
    }

    fn record(&self, head: &Head) -> Result<(), StoreError> {
        debug_assert!(head.encode(self.volume).len() == SLOT_LEN);
        self.sums.write_at(head.offset(), &head.encode(self.volume), Durability::OnMedium)
    }

    fn flush_all(&self) -> Result<(), StoreError> {
        let round = self.unsettled.begin_flush();
        self.data.flush().and_then(|()| self.sums.flush()).map_err(|error| self.give_up(error))?;
        self.unsettled.flushed(round, self)
    }
}

impl Store for CheckedStore {
    fn size(&self) -> u64 {
        self.data.size()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8], wait: Wait) -> Result<(), StoreError> {
        let len = buffer.len() as u64;
        self.check(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        let blocks = blocks_of(offset, len);
        let _lock = match wait {
            Wait::Allowed => self.locks.shared(&blocks),
            Wait::Never => self.locks.try_shared(&blocks).ok_or(StoreError::WouldBlock)?,
        };
        let whole = self.bytes_in(&blocks);
        let bad = if offset.is_multiple_of(BLOCK) && whole == buffer.len() {
            let sums = self.load(&blocks, buffer, wait)?;
            mismatches(blocks.start, buffer, &sums)
        } else {
            let mut content = vec![0; whole];
            let sums = self.load(&blocks, &mut content, wait)?;
            let skip = (offset % BLOCK) as usize;
            buffer.copy_from_slice(content.get(skip..skip + buffer.len()).ok_or(StoreError::OutOfRange)?);
            mismatches(blocks.start, &content, &sums)
        };
        if bad.is_empty() {
            return Ok(());
        }
        buffer.fill(0);
        match wait {
            // It has to be recorded, and that takes its time.
            Wait::Never => Err(StoreError::WouldBlock),
            Wait::Allowed => self.judge(&bad, offset, len),
        }
    }

    fn write_at(&self, offset: u64, data: &[u8], durability: Durability) -> Result<(), StoreError> {
        self.change(offset, Change::Data(data, durability))
    }

    fn write_waits(&self, offset: u64, len: u64) -> bool {
        let whole = offset.is_multiple_of(BLOCK) && len.is_multiple_of(BLOCK);
        !whole
            || !self.unsettled.has(&extents_of(offset, len))
            || self.locks.busy(&blocks_of(offset, len))
            || self.data.write_waits(offset, len)
    }

    fn flush(&self) -> Result<(), StoreError> {
        self.check(0, 0)?;
        self.flush_all()
    }

    fn unmap(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        self.change(offset, Change::Unmap(len))
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        self.change(offset, Change::Zeroes(len))
    }

    fn allocation(&self, offset: u64, len: u64, runs_max: usize) -> Result<Vec<Run>, StoreError> {
        self.data.allocation(offset, len, runs_max)
    }

    fn room(&self) -> Result<Room, StoreError> {
        let (data, sums) = (self.data.room()?, self.sums.room()?);
        let used_bytes = data.used_bytes.saturating_add(sums.used_bytes);
        Ok(Room { available_bytes: data.available_bytes, used_bytes })
    }

    fn grow(&self, size: u64) -> Result<(), StoreError> {
        self.check(0, 0)?;
        self.sums.grow(file_len(size))?;
        self.data.grow(size)
    }
}
