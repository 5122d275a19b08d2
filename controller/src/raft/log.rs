//! The replicated log and the vote on RocksDB.
//!
//! Key: index, big-endian. Value: the entry in postcard behind a format byte.
//!
//! Invariants: entries are readable when `append` returns and acknowledged after a sync ([`Flusher`]); the vote is synced
//! before `save_vote` returns; the purge marker and the removal of what it covers are one write, after a sync of all before.

use std::{fmt::Debug, io, ops::Bound, ops::RangeBounds, sync::Arc};

use openraft::{
    LogState, OptionalSend, RaftLogReader,
    entry::RaftEntry as _,
    storage::{IOFlushed, RaftLogStorage},
};
use rocksdb::{Direction, IteratorMode, ReadOptions};

use super::{
    flusher::Flusher,
    options::LOG_READ_BYTES_MAX,
    store::{Store, decode, encode, rocks},
    types::{Entry, LogId, TypeConfig, Vote},
};

/// The log, for Raft's core.
pub(super) struct LogStore {
    reader: LogReader,
    flusher: Flusher,
}

/// The log, for those who replicate it.
#[derive(Clone)]
pub(super) struct LogReader {
    store: Arc<Store>,
}

impl LogStore {
    pub(super) fn new(store: Arc<Store>) -> io::Result<Self> {
        Ok(Self { flusher: Flusher::start(Arc::clone(&store))?, reader: LogReader { store } })
    }

    fn store(&self) -> &Store {
        &self.reader.store
    }

    fn last(&self) -> io::Result<Option<LogId>> {
        let store = self.store();
        let mut newest_first = store.db().iterator_cf(store.log_cf(), IteratorMode::End);
        let Some(found) = newest_first.next() else { return Ok(None) };
        let (key, value) = found.map_err(rocks)?;
        Ok(Some(entry(&key, &value)?.log_id()))
    }
}

fn key(index: u64) -> [u8; 8] {
    index.to_be_bytes()
}

fn entry(key: &[u8], value: &[u8]) -> io::Result<Entry> {
    let found: Entry = decode(value)
        .map_err(|error| io::Error::new(error.kind(), format!("log entry {key:02x?}: {error}")))?;
    if key != found.log_id().index.to_be_bytes() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("log entry {key:02x?} is another entry"),
        ));
    }
    Ok(found)
}

impl LogReader {
    /// Entries from `start` to before `end` (`None`: to the last), at most about `bytes_max`, at least one if there is one.
    fn read(&self, start: u64, end: Option<u64>, bytes_max: usize) -> io::Result<Vec<Entry>> {
        let store = &self.store;
        let mut options = ReadOptions::default();
        if let Some(end) = end {
            if end <= start {
                return Ok(Vec::new());
            }
            options.set_iterate_upper_bound(key(end).to_vec());
        }
        let from = key(start);
        let found = store.db().iterator_cf_opt(
            store.log_cf(),
            options,
            IteratorMode::From(&from, Direction::Forward),
        );
        let (mut entries, mut bytes) = (Vec::new(), 0);
        // Entries below the first were purged; from it on there is no hole.
        let mut expected = None;
        for pair in found {
            let (key, value) = pair.map_err(rocks)?;
            bytes += value.len();
            if bytes > bytes_max && !entries.is_empty() {
                break;
            }
            let found = entry(&key, &value)?;
            let index = found.log_id().index;
            if expected.is_some_and(|expected| expected != index) {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("the log has a hole before {index}"),
                ));
            }
            expected = Some(index + 1);
            entries.push(found);
        }
        Ok(entries)
    }
}

fn limits(range: &impl RangeBounds<u64>) -> (u64, Option<u64>) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last.checked_add(1),
        Bound::Excluded(end) => Some(*end),
        Bound::Unbounded => None,
    };
    (start, end)
}

impl RaftLogReader<TypeConfig> for LogReader {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let (start, end) = limits(&range);
        self.read(start, end, usize::MAX)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.read(start, Some(end), LOG_READ_BYTES_MAX)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        self.store.vote()
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let last_purged_log_id = self.store().purged()?;
        let last_log_id = self.last()?.or(last_purged_log_id);
        Ok(LogState { last_purged_log_id, last_log_id })
    }

    async fn get_log_reader(&mut self) -> LogReader {
        self.reader.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.store().save_vote(vote)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let store = self.store();
        let mut batch = store.batch();
        for entry in entries {
            batch.put_cf(store.log_cf(), key(entry.log_id().index), encode(&entry)?);
        }
        store.commit(batch)?;
        self.flusher.acknowledge(callback)
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let store = self.store();
        let from = last_log_id.map_or(0, |log_id| log_id.index + 1);
        let mut batch = store.batch();
        batch.delete_range_cf(store.log_cf(), key(from), key(u64::MAX));
        store.commit_synced(batch)
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        let store = self.store();
        // What makes these entries dispensable is on disk before they go.
        store.sync()?;
        let mut batch = store.batch();
        store.put_purged(&mut batch, &log_id)?;
        batch.delete_range_cf(store.log_cf(), key(0), key(log_id.index + 1));
        store.commit(batch)
    }
}
