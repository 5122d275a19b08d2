//! The audit on disk.
//!
//! Key: part, log index and ordinal within the entry, big-endian. Value: the record in protobuf.
//!
//! Invariants: records are written with the entry that made them. Each part has a bound of its own, in bytes of keys and
//! values, so that calls that were refused never push out what was changed; when a part is over its bound by an eighth, its oldest
//! entries go, whole, down to the bound, and the highest index that went is remembered.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
};

use holdfast_proto::v1::AuditRecord;
use prost::Message as _;
use rocksdb::{Direction, IteratorMode, WriteBatch};

use super::{
    options::AUDIT_BYTES_KEPT,
    records::corrupt,
    store::{Pair, Store, rocks},
};
use crate::state::audit::Part;

/// Number of parts.
const PARTS: usize = Part::ALL.len();

/// How much there is; the records themselves are in the store.
pub(super) struct AuditLog {
    bytes: [AtomicU64; PARTS],
}

/// All kept records, as a snapshot carries them.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct KeptAudit {
    pub(super) records: Vec<AuditRecord>,
    /// Highest index that was dropped, by part.
    pub(super) dropped: [u64; PARTS],
}

fn key(part: usize, index: u64, ordinal: u32) -> Vec<u8> {
    let mut key = vec![part as u8];
    key.extend(index.to_be_bytes());
    key.extend(ordinal.to_be_bytes());
    key
}

fn position(part: Part) -> usize {
    Part::ALL.iter().position(|known| *known == part).unwrap_or(PARTS - 1)
}

/// Keys and values of one part, oldest first, from `index` on.
fn scan(store: &Store, part: usize, index: u64) -> impl Iterator<Item = io::Result<Pair>> {
    let from = key(part, index, 0);
    store
        .db()
        .iterator_cf(store.audit_cf(), IteratorMode::From(&from, Direction::Forward))
        .map(|found| found.map_err(rocks))
        .take_while(move |found| {
            found.as_ref().map_or(true, |(key, _)| key.first().copied().map(usize::from) == Some(part))
        })
}

fn decode(key: &[u8], value: &[u8]) -> io::Result<AuditRecord> {
    AuditRecord::decode(value).map_err(|error| corrupt(format!("audit record {key:02x?}: {error}")))
}

impl AuditLog {
    pub(super) fn open(store: &Store) -> io::Result<Self> {
        let mut bytes = [const { AtomicU64::new(0) }; PARTS];
        for (part, bytes) in bytes.iter_mut().enumerate() {
            for found in scan(store, part, 0) {
                let (key, value) = found?;
                *bytes.get_mut() += (key.len() + value.len()) as u64;
            }
        }
        Ok(Self { bytes })
    }

    /// Adds one entry's records to the batch. The oldest go when a part is over its bound.
    pub(super) fn put(
        &self,
        store: &Store,
        batch: &mut WriteBatch,
        index: u64,
        records: &[AuditRecord],
    ) -> io::Result<()> {
        let mut added = [0; PARTS];
        for (ordinal, record) in (0..).zip(records) {
            let part = position(Part::of(record));
            let (key, value) = (key(part, index, ordinal), record.encode_to_vec());
            added[part] += (key.len() + value.len()) as u64;
            batch.put_cf(store.audit_cf(), key, value);
        }
        for (part, added) in added.into_iter().enumerate().filter(|(_, added)| *added > 0) {
            let bound = AUDIT_BYTES_KEPT[part];
            let bytes = self.bytes[part].fetch_add(added, Ordering::Relaxed) + added;
            // In larger steps, so that not every entry pays for it.
            if bytes > bound + bound / 8 {
                let removed = drop_oldest(store, batch, part, bytes - bound)?;
                self.bytes[part].fetch_sub(removed, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Replaces all records by a snapshot's.
    pub(super) fn replace(&self, store: &Store, batch: &mut WriteBatch, kept: &KeptAudit) -> io::Result<()> {
        batch.delete_range_cf(store.audit_cf(), key(0, 0, 0), key(PARTS, u64::MAX, u32::MAX));
        store.put_audit_dropped(batch, &kept.dropped)?;
        let mut bytes = [0; PARTS];
        for record in &kept.records {
            let part = position(Part::of(record));
            let (key, value) = (key(part, record.index, record.ordinal), record.encode_to_vec());
            bytes[part] += (key.len() + value.len()) as u64;
            batch.put_cf(store.audit_cf(), key, value);
        }
        for (part, bytes) in bytes.into_iter().enumerate() {
            self.bytes[part].store(bytes, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Everything that is kept of entries up to `index`.
#[cfg(test)]
pub(super) fn all(store: &Store, index: u64) -> io::Result<KeptAudit> {
    let mut records = Vec::new();
    for part in 0..PARTS {
        for found in scan(store, part, 0) {
            let (key, value) = found?;
            let record = decode(&key, &value)?;
            if record.index > index {
                break;
            }
            records.push(record);
        }
    }
    Ok(KeptAudit { records, dropped: store.audit_dropped()? })
}

/// At most `limit` records above (index, ordinal) `after` that `wanted` lets through, in the order of the log; and the highest
/// dropped index.
pub(super) fn after(
    store: &Store,
    after: (u64, u32),
    limit: usize,
    wanted: impl Fn(&AuditRecord) -> bool,
) -> io::Result<(Vec<AuditRecord>, u64)> {
    let mut records = Vec::new();
    for part in 0..PARTS {
        let mut taken = 0;
        for found in scan(store, part, after.0) {
            let (key, value) = found?;
            let record = decode(&key, &value)?;
            if (record.index, record.ordinal) <= after || !wanted(&record) {
                continue;
            }
            records.push(record);
            taken += 1;
            if taken == limit {
                break;
            }
        }
    }
    records.sort_by_key(|record| (record.index, record.ordinal));
    records.truncate(limit);
    Ok((records, store.audit_dropped()?.into_iter().max().unwrap_or(0)))
}

fn drop_oldest(store: &Store, batch: &mut WriteBatch, part: usize, at_least: u64) -> io::Result<u64> {
    let (mut removed, mut last) = (0, None);
    for found in scan(store, part, 0) {
        let (key, value) = found?;
        let index =
            key.get(1..9).and_then(|bytes| bytes.first_chunk()).map(|bytes| u64::from_be_bytes(*bytes));
        if removed >= at_least && index != last {
            break;
        }
        removed += (key.len() + value.len()) as u64;
        batch.delete_cf(store.audit_cf(), &key);
        last = index;
    }
    if let Some(index) = last {
        let mut dropped = store.audit_dropped()?;
        dropped[part] = index;
        store.put_audit_dropped(batch, &dropped)?;
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::{super::store::StoreIdentity, *};

    fn record(index: u64, part: Part) -> AuditRecord {
        let part = part.as_str().to_owned();
        AuditRecord { index, part, reason: "r".repeat(1000), ..Default::default() }
    }

    fn put(log: &AuditLog, store: &Store, index: u64, part: Part) {
        let mut batch = store.batch();
        log.put(store, &mut batch, index, &[record(index, part)]).unwrap();
        store.commit(batch).unwrap();
    }

    #[test]
    fn a_flood_of_refusals_is_bounded_and_pushes_out_no_change() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path(), StoreIdentity { cluster: [1; 16], member: 1 }).unwrap();
        let log = AuditLog::open(&store).unwrap();
        put(&log, &store, 1, Part::Management);
        let bound = AUDIT_BYTES_KEPT[position(Part::Refused)];
        let last = 1 + 2 * bound / 1000;
        (2..=last).for_each(|index| put(&log, &store, index, Part::Refused));
        let bytes = log.bytes[position(Part::Refused)].load(Ordering::Relaxed);
        assert!(bytes <= bound + bound / 8, "{bytes}");
        // Counted again from the disk, it is the same.
        let again = AuditLog::open(&store).unwrap();
        assert_eq!(again.bytes[position(Part::Refused)].load(Ordering::Relaxed), bytes);
        let (records, dropped) = after(&store, (0, 0), usize::MAX, |_| true).unwrap();
        assert_eq!(records.first().map(|r| r.index), Some(1), "the change stays");
        assert_eq!(records.last().map(|r| r.index), Some(last), "the newest refusal is there");
        assert_eq!(records.get(1).map(|r| r.index), Some(dropped + 1), "the oldest went, and it is told");
    }

    #[test]
    fn parts_are_read_in_the_order_of_the_log_page_by_page() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path(), StoreIdentity { cluster: [1; 16], member: 1 }).unwrap();
        let log = AuditLog::open(&store).unwrap();
        for index in 1..=9 {
            put(&log, &store, index, Part::ALL[index as usize % 3]);
        }
        let (first, _) = after(&store, (0, 0), 4, |_| true).unwrap();
        assert_eq!(first.iter().map(|r| r.index).collect::<Vec<_>>(), [1, 2, 3, 4]);
        let (rest, _) = after(&store, (4, 0), 9, |r| r.index != 6).unwrap();
        assert_eq!(rest.iter().map(|r| r.index).collect::<Vec<_>>(), [5, 7, 8, 9]);
    }

    #[test]
    fn a_snapshot_carries_all_of_it() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let open = |directory: &tempfile::TempDir| {
            Store::open(directory.path(), StoreIdentity { cluster: [1; 16], member: 1 }).unwrap()
        };
        let (from, to) = (open(&one), open(&two));
        let log = AuditLog::open(&from).unwrap();
        (1..=5).for_each(|index| put(&log, &from, index, Part::Management));
        let kept = all(&from, 4).unwrap();
        assert_eq!(kept.records.len(), 4, "later entries are not part of it");
        let log = AuditLog::open(&to).unwrap();
        put(&log, &to, 77, Part::Cluster);
        let mut batch = to.batch();
        log.replace(&to, &mut batch, &kept).unwrap();
        to.commit(batch).unwrap();
        assert_eq!(all(&to, u64::MAX).unwrap(), kept);
    }
}
