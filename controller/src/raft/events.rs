//! The last management events on disk, for `WatchEvents`.
//!
//! Key: log index and ordinal within the entry, big-endian. Value: the event in protobuf.
//!
//! Invariant: events are written with the entry that made them; the oldest go first, whole entries at a time, and the
//! highest index that went is remembered, so that a reader can tell what it may have missed.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
};

use holdfast_proto::v1::Event;
use prost::Message as _;
use rocksdb::{Direction, IteratorMode, WriteBatch};

use super::{
    options::EVENTS_KEPT,
    records::corrupt,
    store::{Store, rocks},
};

/// How many there are; the events themselves are in the store.
pub(super) struct EventLog {
    count: AtomicU64,
}

/// All kept events, as a snapshot carries them.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct KeptEvents {
    pub(super) events: Vec<Event>,
    /// Highest index that was dropped for age.
    pub(super) dropped: u64,
}

fn key(index: u64, ordinal: u32) -> Vec<u8> {
    let mut key = index.to_be_bytes().to_vec();
    key.extend(ordinal.to_be_bytes());
    key
}

impl EventLog {
    pub(super) fn open(store: &Store) -> io::Result<Self> {
        let mut count = 0;
        for found in store.db().iterator_cf(store.events_cf(), IteratorMode::Start) {
            found.map_err(rocks)?;
            count += 1;
        }
        Ok(Self { count: AtomicU64::new(count) })
    }

    /// Adds one entry's events to the batch. The oldest go when there are too many.
    pub(super) fn put(
        &self,
        store: &Store,
        batch: &mut WriteBatch,
        index: u64,
        events: &[Event],
    ) -> io::Result<()> {
        for (ordinal, event) in (0..).zip(events) {
            let event = Event { index, ..event.clone() };
            batch.put_cf(store.events_cf(), key(index, ordinal), event.encode_to_vec());
        }
        let added = events.len() as u64;
        let count = self.count.fetch_add(added, Ordering::Relaxed) + added;
        // In larger steps, so that not every entry pays for it.
        if count >= EVENTS_KEPT + EVENTS_KEPT / 8 {
            let removed = drop_oldest(store, batch, count - EVENTS_KEPT)?;
            self.count.fetch_sub(removed, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Replaces all events by a snapshot's.
    pub(super) fn replace(&self, store: &Store, batch: &mut WriteBatch, kept: &KeptEvents) -> io::Result<()> {
        batch.delete_range_cf(store.events_cf(), key(0, 0), key(u64::MAX, u32::MAX));
        store.put_events_dropped(batch, kept.dropped)?;
        let mut previous = (0, 0);
        for event in &kept.events {
            let ordinal = if previous.0 == event.index { previous.1 + 1 } else { 0 };
            previous = (event.index, ordinal);
            batch.put_cf(store.events_cf(), key(event.index, ordinal), event.encode_to_vec());
        }
        self.count.store(kept.events.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}

/// Events above `after`, oldest first, at most `limit` and a whole last entry; and the highest dropped index.
pub(super) fn after(store: &Store, after: u64, limit: usize) -> io::Result<KeptEvents> {
    let mut events: Vec<Event> = Vec::new();
    if let Some(from) = after.checked_add(1) {
        let from = key(from, 0);
        for found in store.db().iterator_cf(store.events_cf(), IteratorMode::From(&from, Direction::Forward))
        {
            let (key, value) = found.map_err(rocks)?;
            let event = Event::decode(value.as_ref())
                .map_err(|error| corrupt(format!("event {key:02x?}: {error}")))?;
            if events.len() >= limit && events.last().is_none_or(|last| last.index != event.index) {
                break;
            }
            events.push(event);
        }
    }
    Ok(KeptEvents { events, dropped: store.events_dropped()? })
}

fn drop_oldest(store: &Store, batch: &mut WriteBatch, at_least: u64) -> io::Result<u64> {
    let mut removed = 0;
    let mut last = None;
    for found in store.db().iterator_cf(store.events_cf(), IteratorMode::Start) {
        let (key, _) = found.map_err(rocks)?;
        let index = key.first_chunk::<8>().map(|bytes| u64::from_be_bytes(*bytes));
        if removed >= at_least && index != last {
            break;
        }
        batch.delete_cf(store.events_cf(), &key);
        (last, removed) = (index, removed + 1);
    }
    if let Some(index) = last {
        store.put_events_dropped(batch, index)?;
    }
    Ok(removed)
}
