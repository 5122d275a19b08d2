//! The data of one replica on a block pool: extents of the device, given out when they are first written.
//!
//! Invariants: a part of an extent that was never written reads as zeroes, because an extent is filled whole (with zeroes where the first
//! write does not reach) before the table says whose it is; what was answered outlives the process, so the table on the medium knows an extent
//! before a write to it is answered; whoever does I/O on an extent holds its stripe, shared, and whoever gives the extent
//! out, gives it up, or rewrites a sector in part holds it alone, so no I/O meets an extent that has gone to another replica.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::RwLock;

use super::layout::{EXTENT, Layout};
use super::medium::Medium;
use super::table::{DATA, Part, Table};
use crate::store::file::classify;
use crate::store::{Durability, Room, Run, Store, StoreError, Wait};

const STRIPES: usize = 64;
const NONE: u32 = u32::MAX;

/// What all replicas of a pool use.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) medium: Arc<dyn Medium>,
    pub(super) layout: Layout,
    pub(super) table: Table,
}

/// Where the extents of a replica lie.
#[derive(Debug)]
pub(super) struct Map {
    replica: u64,
    extents: RwLock<Vec<u32>>,
    used: AtomicU64,
    stripes: [RwLock<()>; STRIPES],
    removed: AtomicBool,
}

impl Map {
    pub(super) fn new(replica: u64) -> Map {
        Map {
            replica,
            extents: RwLock::default(),
            used: AtomicU64::new(0),
            stripes: std::array::from_fn(|_| RwLock::new(())),
            removed: AtomicBool::new(false),
        }
    }

    fn stripe(&self, index: u32) -> &RwLock<()> {
        // The modulus is the array's length.
        self.stripes.get(index as usize % STRIPES).unwrap_or(&self.stripes[0])
    }

    fn get(&self, index: u32) -> Option<u32> {
        self.extents.read().get(index as usize).copied().filter(|extent| *extent != NONE)
    }

    /// Gives what stood there before.
    pub(super) fn set(&self, index: u32, extent: Option<u32>) -> Option<u32> {
        let mut extents = self.extents.write();
        let at = index as usize;
        if extents.len() <= at {
            extents.resize(at + 1, NONE);
        }
        let place = extents.get_mut(at)?;
        let before = std::mem::replace(place, extent.unwrap_or(NONE));
        let before = Some(before).filter(|extent| *extent != NONE);
        match (before, extent) {
            (None, Some(_)) => self.used.fetch_add(1, Ordering::Relaxed),
            (Some(_), None) => self.used.fetch_sub(1, Ordering::Relaxed),
            _ => 0,
        };
        before
    }

    /// Nothing is served from it any more; gives all of its extents.
    pub(super) fn remove(&self) -> Vec<u32> {
        self.removed.store(true, Ordering::Release);
        for stripe in &self.stripes {
            // Whoever is at it ends; whoever comes later is refused.
            drop(stripe.write());
        }
        std::mem::take(&mut *self.extents.write()).into_iter().filter(|extent| *extent != NONE).collect()
    }
}

/// See the module's invariants.
#[derive(Debug)]
pub(super) struct BlockStore {
    device: Arc<Device>,
    map: Arc<Map>,
    size: AtomicU64,
}

/// What lies within one extent.
#[derive(Clone, Copy)]
struct Piece {
    index: u32,
    /// From the start of the extent.
    from: u64,
    len: u64,
    /// From the start of the request.
    done: usize,
}

fn pieces(offset: u64, len: u64) -> impl Iterator<Item = Piece> {
    let end = offset.saturating_add(len);
    let mut at = offset;
    std::iter::from_fn(move || {
        let index = u32::try_from(at / EXTENT).ok().filter(|_| at < end)?;
        let from = at % EXTENT;
        let piece = Piece { index, from, len: (EXTENT - from).min(end - at), done: (at - offset) as usize };
        at = at.saturating_add(piece.len);
        Some(piece)
    })
}

impl BlockStore {
    pub(super) fn new(device: Arc<Device>, map: Arc<Map>, size: u64) -> BlockStore {
        BlockStore { device, map, size: AtomicU64::new(size) }
    }

    fn check(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        self.device.table.check()?;
        if self.map.removed.load(Ordering::Acquire) {
            return Err(StoreError::OutOfService);
        }
        match offset.checked_add(len) {
            Some(end) if end <= self.size() => Ok(()),
            _ => Err(StoreError::OutOfRange),
        }
    }

    /// To be asked again under the stripe, so that nothing is given out to a replica that has been removed.
    fn still_there(&self) -> Result<(), StoreError> {
        if self.map.removed.load(Ordering::Acquire) { Err(StoreError::OutOfService) } else { Ok(()) }
    }

    fn sector(&self) -> u64 {
        self.device.medium.sector()
    }

    fn is_aligned(&self, piece: &Piece) -> bool {
        (piece.from | piece.len).is_multiple_of(self.sector())
    }

    fn at(&self, extent: u32, from: u64) -> u64 {
        self.device.layout.extent_at(extent).saturating_add(from)
    }

    fn write(&self, at: u64, data: &[u8], durability: Durability) -> Result<(), StoreError> {
        let medium = &self.device.medium;
        if durability == Durability::Cached {
            return medium.write(at, data, false).map_err(classify);
        }
        let Err(error) = medium.write(at, data, true) else { return Ok(()) };
        let error = match classify(error) {
            StoreError::Medium(error) | StoreError::Hardware(error) => error,
            other => return Err(other),
        };
        // The write itself, or the flush within it? After that one nothing is known of other writes either.
        if medium.write(at, data, false).is_ok() {
            self.device.table.fail(&error);
        }
        Err(classify(error))
    }

    /// The whole sectors around `piece` with `data` in its place; what is around it as `around` finds it, else zero.
    fn in_sectors(
        &self,
        piece: &Piece,
        data: &[u8],
        around: Option<u32>,
    ) -> Result<(u64, Vec<u8>), StoreError> {
        let sector = self.sector();
        let (from, end) = (piece.from, piece.from + piece.len);
        let (first, last) = (from - from % sector, end.next_multiple_of(sector));
        let mut bytes = vec![0; (last - first) as usize];
        if let Some(extent) = around {
            let mut read = |at: u64| {
                let range = (at - first) as usize..(at - first + sector) as usize;
                let into = bytes.get_mut(range).ok_or(StoreError::OutOfRange)?;
                self.device.medium.read(self.at(extent, at), into).map_err(classify)
            };
            if first < from {
                read(first)?;
            }
            if end < last && (last - sector > first || first == from) {
                read(last - sector)?;
            }
        }
        let into = bytes.get_mut((from - first) as usize..(end - first) as usize);
        into.ok_or(StoreError::OutOfRange)?.copy_from_slice(data);
        Ok((first, bytes))
    }

    /// Gives out an extent for `piece`, with `data` in its place and zeroes around it. Under the stripe, alone.
    fn fill_fresh(&self, piece: &Piece, data: &[u8]) -> Result<(), StoreError> {
        self.still_there()?;
        let Device { medium, table, .. } = &*self.device;
        let extent = table.take()?;
        let fill = || {
            let (first, bytes) = self.in_sectors(piece, data, None)?;
            let last = first.saturating_add(bytes.len() as u64);
            medium.zero(self.at(extent, 0), first).map_err(classify)?;
            if !bytes.is_empty() {
                medium.write(self.at(extent, first), &bytes, false).map_err(classify)?;
            }
            medium.zero(self.at(extent, last), EXTENT - last).map_err(classify)
        };
        if let Err(error) = fill() {
            table.give_back(extent);
            return Err(error);
        }
        table.assign(extent, Part { replica: self.map.replica, stream: DATA, index: piece.index });
        // Before anybody is answered: what was answered outlives this process, flushed or not.
        table.flush()?;
        self.map.set(piece.index, Some(extent));
        Ok(())
    }

    /// Makes a part of an extent zero. Under the stripe, alone.
    fn zero_part(&self, extent: u32, piece: &Piece) -> Result<(), StoreError> {
        let sector = self.sector();
        let end = piece.from + piece.len;
        let first = piece.from.next_multiple_of(sector).min(end);
        let last = (end - end % sector).max(first);
        self.device.medium.zero(self.at(extent, first), last - first).map_err(classify)?;
        for (from, to) in [(piece.from, first), (last, end)] {
            if from < to {
                let edge = Piece { from, len: to - from, ..*piece };
                let zeroes = vec![0; edge.len as usize];
                let (at, bytes) = self.in_sectors(&edge, &zeroes, Some(extent))?;
                self.write(self.at(extent, at), &bytes, Durability::Cached)?;
            }
        }
        Ok(())
    }
}

impl Store for BlockStore {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn write_waits(&self, _offset: u64, _len: u64) -> bool {
        true
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8], wait: Wait) -> Result<(), StoreError> {
        self.check(offset, buffer.len() as u64)?;
        if wait == Wait::Never && !buffer.is_empty() {
            return Err(StoreError::WouldBlock);
        }
        for piece in pieces(offset, buffer.len() as u64) {
            let part = buffer.get_mut(piece.done..).and_then(|rest| rest.get_mut(..piece.len as usize));
            let part = part.ok_or(StoreError::OutOfRange)?;
            let _stripe = self.map.stripe(piece.index).read();
            let Some(extent) = self.map.get(piece.index) else {
                part.fill(0);
                continue;
            };
            if self.is_aligned(&piece) {
                self.device.medium.read(self.at(extent, piece.from), part).map_err(classify)?;
                continue;
            }
            let sector = self.sector();
            let first = piece.from - piece.from % sector;
            let last = (piece.from + piece.len).next_multiple_of(sector);
            let mut bytes = vec![0; (last - first) as usize];
            self.device.medium.read(self.at(extent, first), &mut bytes).map_err(classify)?;
            let within = bytes.get((piece.from - first) as usize..).and_then(|rest| rest.get(..part.len()));
            part.copy_from_slice(within.ok_or(StoreError::OutOfRange)?);
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8], durability: Durability) -> Result<(), StoreError> {
        self.check(offset, data.len() as u64)?;
        for piece in pieces(offset, data.len() as u64) {
            let part = data.get(piece.done..).and_then(|rest| rest.get(..piece.len as usize));
            let part = part.ok_or(StoreError::OutOfRange)?;
            if self.is_aligned(&piece) {
                let _stripe = self.map.stripe(piece.index).read();
                if let Some(extent) = self.map.get(piece.index) {
                    self.write(self.at(extent, piece.from), part, durability)?;
                    continue;
                }
            }
            let _stripe = self.map.stripe(piece.index).write();
            match self.map.get(piece.index) {
                Some(extent) => {
                    let (first, bytes) = self.in_sectors(&piece, part, Some(extent))?;
                    self.write(self.at(extent, first), &bytes, durability)?;
                }
                None => self.fill_fresh(&piece, part)?,
            }
        }
        // Bytes are on the medium only when the table there says whose they are.
        match durability {
            Durability::OnMedium if self.device.table.is_behind() => self.device.table.flush(),
            Durability::OnMedium => self.device.table.check(),
            Durability::Cached => Ok(()),
        }
    }

    fn flush(&self) -> Result<(), StoreError> {
        self.check(0, 0)?;
        self.device.table.flush()
    }

    fn unmap(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        self.check(offset, len)?;
        let mut released = false;
        for piece in pieces(offset, len) {
            let _stripe = self.map.stripe(piece.index).write();
            let Some(extent) = self.map.get(piece.index) else { continue };
            let start = u64::from(piece.index).saturating_mul(EXTENT);
            let to_the_end = start.saturating_add(piece.from + piece.len) >= self.size();
            if piece.from == 0 && (piece.len == EXTENT || to_the_end) {
                self.map.set(piece.index, None);
                self.device.table.release(&[extent]);
                released = true;
            } else {
                self.zero_part(extent, &piece)?;
            }
        }
        // As for an extent that is given out.
        if released { self.device.table.flush() } else { Ok(()) }
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        self.check(offset, len)?;
        for piece in pieces(offset, len) {
            let _stripe = self.map.stripe(piece.index).write();
            match self.map.get(piece.index) {
                Some(extent) => self.zero_part(extent, &piece)?,
                None => self.fill_fresh(&Piece { from: 0, len: 0, ..piece }, &[])?,
            }
        }
        Ok(())
    }

    fn allocation(&self, offset: u64, len: u64, runs_max: usize) -> Result<Vec<Run>, StoreError> {
        self.check(offset, len)?;
        let mut runs: Vec<Run> = Vec::new();
        for piece in pieces(offset, len) {
            let allocated = self.map.get(piece.index).is_some();
            let full = runs.len() >= runs_max.max(1);
            match runs.last_mut() {
                Some(last) if last.allocated == allocated => last.len += piece.len,
                _ if full => break,
                _ => runs.push(Run { len: piece.len, allocated }),
            }
        }
        Ok(runs)
    }

    fn room(&self) -> Result<Room, StoreError> {
        Ok(Room {
            available_bytes: self.device.table.available(),
            used_bytes: self.map.used.load(Ordering::Relaxed).saturating_mul(EXTENT),
        })
    }

    fn grow(&self, size: u64) -> Result<(), StoreError> {
        self.check(0, 0)?;
        // Nothing was ever written behind the end, and what was allocated there is zero.
        self.size.fetch_max(size, Ordering::AcqRel);
        Ok(())
    }
}
