//! The allocation table: which part of which replica each extent of the device holds.
//!
//! Pages of 4096 bytes, each in two slots that are written in turn; the whole one with the higher sequence number counts. An entry is
//! one extent, so no change needs two pages to agree.
//!
//! Invariants: what a page says of an extent is written only after the extent's bytes, so a crash never shows what an extent held
//! before; an extent that was given up is used again only after the table on the medium says so; sequence numbers grow with every change, and name
//! replicas too, so that no number is used twice. After a failed write or flush nobody knows what is on the medium: nothing is served until the
//! pool is opened anew.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, MutexGuard};

use super::layout::{EXTENT, Layout, PAGE_ENTRIES, SLOT, array, is_sealed, put, seal};
use super::medium::Medium;
use crate::store::StoreError;
use crate::store::file::classify;

const MAGIC: [u8; 4] = *b"HFBT";
const VERSION: u16 = 1;
const ENTRIES_AT: usize = 40;
const ENTRY_LEN: usize = 24;
/// Pages that are read at a time.
const PAGES_READ: u64 = 128;
/// The sequence number that an empty table begins with.
const FIRST: u64 = 1;

/// What an extent can hold of a replica. Numbers in between are for what is to come.
pub(super) const DATA: u16 = 0;
pub(super) const METADATA: u16 = 0xffff;

/// Which part of which replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Part {
    /// Number of the replica, not 0.
    pub(super) replica: u64,
    pub(super) stream: u16,
    /// Which extent of the stream.
    pub(super) index: u32,
}

/// An extent in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) part: Part,
    /// When it was given out: of two extents for one part the later one counts.
    pub(super) sequence: u64,
}

/// See the module's invariants.
#[derive(Debug)]
pub(super) struct Table {
    medium: Arc<dyn Medium>,
    layout: Layout,
    /// Held while pages are being written; taken before `state`.
    commit: Mutex<()>,
    /// Never locked while something blocks.
    state: Mutex<State>,
    failed: AtomicBool,
}

#[derive(Debug)]
struct State {
    entries: Vec<Option<Entry>>,
    /// Of each page: the slot that counts.
    slots: Vec<u8>,
    /// Pages that differ from the medium.
    dirty: BTreeSet<u64>,
    /// Pages are being written that differed.
    committing: bool,
    /// Free, and the medium says so.
    free: Vec<u32>,
    /// Free; the medium may not say so yet.
    freed: Vec<u32>,
    sequence: u64,
}

impl State {
    fn next(&mut self) -> u64 {
        self.sequence = self.sequence.saturating_add(1);
        self.sequence
    }

    fn put(&mut self, extent: u32, entry: Option<Entry>) {
        if let Some(place) = self.entries.get_mut(extent as usize) {
            *place = entry;
            self.dirty.insert(u64::from(extent) / PAGE_ENTRIES);
        }
    }

    fn image(&self, page: u64, sequence: u64) -> Box<[u8; SLOT]> {
        let mut slot = head(page, sequence);
        let entries = self.entries.iter().skip((page * PAGE_ENTRIES) as usize).take(PAGE_ENTRIES as usize);
        for (at, entry) in entries.enumerate() {
            let Some(Entry { part, sequence }) = entry else { continue };
            let at = ENTRIES_AT + at * ENTRY_LEN;
            put(&mut slot, at, &part.replica.to_be_bytes());
            put(&mut slot, at + 8, &part.stream.to_be_bytes());
            put(&mut slot, at + 12, &part.index.to_be_bytes());
            put(&mut slot, at + 16, &sequence.to_be_bytes());
        }
        seal(&mut slot);
        slot
    }
}

impl Table {
    /// Writes an empty table. Durable when it returns.
    pub(super) fn format(medium: &dyn Medium, layout: &Layout) -> io::Result<()> {
        for page in 0..layout.pages() {
            let mut image = head(page, FIRST);
            seal(&mut image);
            // One write for both slots: the first is blank, so that the second counts.
            let mut both = vec![0; SLOT];
            both.extend_from_slice(&*image);
            medium.write(Layout::page_at(page, 0), &both, false)?;
        }
        medium.flush()
    }

    /// Reads it. `InvalidData` if a page is not whole in either slot.
    pub(super) fn load(medium: Arc<dyn Medium>, layout: Layout) -> io::Result<Table> {
        let mut state = State {
            entries: Vec::with_capacity(layout.extents as usize),
            slots: Vec::new(),
            dirty: BTreeSet::new(),
            committing: false,
            free: Vec::new(),
            freed: Vec::new(),
            sequence: FIRST,
        };
        let mut page = 0;
        while page < layout.pages() {
            let count = PAGES_READ.min(layout.pages() - page);
            let mut bytes = vec![0; count as usize * 2 * SLOT];
            medium.read(Layout::page_at(page, 0), &mut bytes)?;
            let (slots, _) = bytes.as_chunks::<SLOT>();
            for pair in slots.chunks(2) {
                let [first, second] = pair else { continue };
                let newest = match (sequence_of(first, page), sequence_of(second, page)) {
                    (None, None) => {
                        let text = format!("page {page} of its allocation table is damaged in both slots");
                        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
                    }
                    (Some(a), b) if b.is_none_or(|b| a > b) => (0, a, first),
                    (_, b) => (1, b.unwrap_or(FIRST), second),
                };
                let (slot, sequence, image) = newest;
                state.slots.push(slot);
                state.sequence = state.sequence.max(sequence);
                let rest = layout.extents - page * PAGE_ENTRIES;
                for at in 0..PAGE_ENTRIES.min(rest) as usize {
                    state.entries.push(entry_at(image, ENTRIES_AT + at * ENTRY_LEN));
                }
                page += 1;
            }
        }
        let entries = state.entries.iter().zip(0_u32..);
        state.free = entries.filter(|(entry, _)| entry.is_none()).map(|(_, extent)| extent).collect();
        // The last one is taken first.
        state.free.reverse();
        let newest = state.entries.iter().flatten().map(|e| e.sequence.max(e.part.replica)).max();
        state.sequence = state.sequence.max(newest.unwrap_or(0));
        let (commit, failed) = (Mutex::new(()), AtomicBool::new(false));
        Ok(Table { medium, layout, commit, state: Mutex::new(state), failed })
    }

    /// Every extent in use.
    pub(super) fn entries(&self) -> Vec<(u32, Entry)> {
        let state = self.state.lock();
        let entries = state.entries.iter().zip(0_u32..);
        entries.filter_map(|(entry, extent)| Some((extent, (*entry)?))).collect()
    }

    /// A number for a new replica.
    pub(super) fn new_replica(&self) -> u64 {
        self.state.lock().next()
    }

    /// Bytes that can still be given out.
    pub(super) fn available(&self) -> u64 {
        if self.check().is_err() {
            return 0;
        }
        let state = self.state.lock();
        (state.free.len() as u64).saturating_add(state.freed.len() as u64).saturating_mul(EXTENT)
    }

    /// # Errors
    /// Out of service.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        if self.failed.load(Ordering::Acquire) { Err(StoreError::OutOfService) } else { Ok(()) }
    }

    /// Takes an extent that nothing on the medium refers to. Its bytes are whatever they were.
    ///
    /// # Errors
    /// No space, or out of service.
    pub(super) fn take(&self) -> Result<u32, StoreError> {
        loop {
            self.check()?;
            let mut state = self.state.lock();
            if let Some(extent) = state.free.pop() {
                return Ok(extent);
            }
            if state.freed.is_empty() && !state.committing {
                return Err(StoreError::NoSpace);
            }
            drop(state);
            self.flush()?;
        }
    }

    /// Takes back what was taken and not assigned.
    pub(super) fn give_back(&self, extent: u32) {
        self.state.lock().free.push(extent);
    }

    /// From now on a taken extent holds `part`, as durable as the next flush makes it. Its bytes have been written.
    pub(super) fn assign(&self, extent: u32, part: Part) {
        let mut state = self.state.lock();
        let sequence = state.next();
        state.put(extent, Some(Entry { part, sequence }));
    }

    /// These extents hold nothing any more.
    pub(super) fn release(&self, extents: &[u32]) {
        let mut state = self.state.lock();
        for extent in extents {
            state.put(*extent, None);
            state.freed.push(*extent);
        }
    }

    /// True if the medium may not know yet what was assigned or released.
    pub(super) fn is_behind(&self) -> bool {
        let state = self.state.lock();
        state.committing || !state.dirty.is_empty()
    }

    /// Makes all that was written, assigned and released before durable.
    ///
    /// # Errors
    /// The pool is out of service after that.
    pub(super) fn flush(&self) -> Result<(), StoreError> {
        self.check()?;
        let done = if self.is_behind() {
            let turn = self.commit.lock();
            self.check()?;
            self.write_pages(&turn)
        } else {
            self.medium.flush()
        };
        done.map_err(|error| {
            self.fail(&error);
            classify(error)
        })
    }

    /// What the medium said means that nobody knows what is on it.
    pub(super) fn fail(&self, error: &io::Error) {
        self.failed.store(true, Ordering::Release);
        tracing::error!(%error, "a flush failed: the pool is out of service until the data node is started anew");
    }

    fn write_pages(&self, _turn: &MutexGuard<'_, ()>) -> io::Result<()> {
        let mut state = self.state.lock();
        let pages = std::mem::take(&mut state.dirty);
        let freed = std::mem::take(&mut state.freed);
        let sequence = state.next();
        let slot_of = |page: u64| u64::from(state.slots.get(page as usize) == Some(&0));
        let images: Vec<_> =
            pages.iter().map(|page| (*page, slot_of(*page), state.image(*page, sequence))).collect();
        state.committing = !images.is_empty();
        drop(state);
        // What the extents hold, before anything says that they hold it.
        self.medium.flush()?;
        if images.is_empty() {
            return Ok(());
        }
        for (page, slot, image) in &images {
            self.medium.write(Layout::page_at(*page, *slot), &**image, false)?;
        }
        self.medium.flush()?;
        for extent in &freed {
            self.medium.discard(self.layout.extent_at(*extent), EXTENT);
        }
        let mut state = self.state.lock();
        for (page, slot, _) in images {
            if let Some(place) = state.slots.get_mut(page as usize) {
                *place = slot as u8;
            }
        }
        state.free.extend(freed);
        state.committing = false;
        Ok(())
    }
}

fn head(page: u64, sequence: u64) -> Box<[u8; SLOT]> {
    let mut slot = Box::new([0; SLOT]);
    put(&mut slot, 0, &MAGIC);
    put(&mut slot, 4, &VERSION.to_be_bytes());
    put(&mut slot, 8, &page.to_be_bytes());
    put(&mut slot, 16, &sequence.to_be_bytes());
    slot
}

/// `None` if the slot is not whole.
fn sequence_of(slot: &[u8; SLOT], page: u64) -> Option<u64> {
    let sequence = u64::from_be_bytes(array(slot, 16));
    let begins_right = slot.get(..24) == head(page, sequence).get(..24);
    (begins_right && is_sealed(slot)).then_some(sequence)
}

fn entry_at(slot: &[u8; SLOT], at: usize) -> Option<Entry> {
    let replica = u64::from_be_bytes(array(slot, at));
    let stream = u16::from_be_bytes(array(slot, at + 8));
    let index = u32::from_be_bytes(array(slot, at + 12));
    let sequence = u64::from_be_bytes(array(slot, at + 16));
    (replica != 0).then_some(Entry { part: Part { replica, stream, index }, sequence })
}
