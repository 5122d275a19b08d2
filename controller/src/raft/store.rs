//! One RocksDB of a member: log, facts about Raft (`meta`), records of the state machine (`state`), management events,
//! audit.
//!
//! Invariants
//! * One write-ahead log serves all column families, and after a crash exactly a prefix of it is there. So a record is
//!   never on disk without the log entries written before it.
//! * Only a torn tail of the write-ahead log is forgiven; any other corruption refuses to open.
//! * After one failed sync or write nothing succeeds any more: what the kernel forgot cannot be synced again.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use rocksdb::{
    ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType, DBRecoveryMode, IteratorMode, LogLevel,
    Options, ReadOptions, Snapshot, WriteBatch, WriteOptions,
};
use serde::{Serialize, de::DeserializeOwned};

use super::types::{LogId, StoreId, StoredMembership, Vote};

const LOG: &str = "log";
const META: &str = "meta";
const STATE: &str = "state";
const EVENTS: &str = "events";
const AUDIT: &str = "audit";

const IDENTITY: &[u8] = b"identity";
const VOTE: &[u8] = b"vote";
const PURGED: &[u8] = b"purged";
const APPLIED: &[u8] = b"applied";
const EVENTS_DROPPED: &[u8] = b"events dropped";
const STORE_ID: &[u8] = b"store id";
const RETIRED: &[u8] = b"retired";
const AUDIT_DROPPED: &[u8] = b"audit dropped";

/// First byte of every value that is openraft's type in postcard. 1 was before members had stores,
/// 2 before an entry could hold a membership and a command.
const FORMAT: u8 = 3;

/// Whose store this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StoreIdentity {
    /// Of the certificates.
    pub(super) cluster: [u8; 16],
    /// Member id.
    pub(super) member: u64,
}

/// Why a store did not open. Each message is one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it.
    #[error("{0} is in use by another process; end that one, or give --dir another directory")]
    InUse(PathBuf),
    /// It was made by another cluster.
    #[error(
        "{path} belongs to cluster {found}, and the certificate is of cluster {expected}; give --dir or --tls the right directory"
    )]
    OtherCluster {
        /// The store.
        path: PathBuf,
        /// Cluster id in it, hex.
        found: String,
        /// Cluster id of the certificate, hex.
        expected: String,
    },
    /// It was made by another member.
    #[error(
        "{path} belongs to member {found}, and this is member {expected}; give --dir or --id the right value"
    )]
    OtherMember {
        /// The store.
        path: PathBuf,
        /// Member id in it.
        found: u64,
        /// Own id.
        expected: u64,
    },
    /// Reading or writing failed.
    #[error("{path}: {source}")]
    Io {
        /// The store.
        path: PathBuf,
        /// What the system or RocksDB said.
        source: io::Error,
    },
}

/// The open database.
pub(super) struct Store {
    db: DB,
    path: PathBuf,
    failed: AtomicBool,
    id: StoreId,
}

impl Store {
    /// Opens or makes the store below `directory` and checks whose it is.
    pub(super) fn open(directory: &Path, identity: StoreIdentity) -> Result<Arc<Self>, StoreError> {
        let path = directory.join("raft");
        let failed = |source: io::Error| StoreError::Io { path: path.clone(), source };
        std::fs::create_dir_all(directory).map_err(failed)?;
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        options.set_paranoid_checks(true);
        options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
        // Column families reach their files together, like they do through the write-ahead log.
        options.set_atomic_flush(true);
        options.set_max_total_wal_size(64 << 20);
        options.set_keep_log_file_num(2);
        options.set_log_level(LogLevel::Warn);
        options.set_max_open_files(256);
        let family = |name: &str| {
            let mut options = Options::default();
            options.set_write_buffer_size(8 << 20);
            options.set_compression_type(DBCompressionType::Lz4);
            ColumnFamilyDescriptor::new(name, options)
        };
        let db = DB::open_cf_descriptors(&options, &path, [LOG, META, STATE, EVENTS, AUDIT].map(family))
            .map_err(|error| {
                // RocksDB has no kind of its own for a lock that is held.
                if error.as_ref().contains("lock") && error.as_ref().contains("LOCK") {
                    StoreError::InUse(path.clone())
                } else {
                    failed(rocks(error))
                }
            })?;
        let mut store =
            Self { db, path: path.clone(), failed: AtomicBool::new(false), id: StoreId::default() };
        store.claim(identity)?;
        store.id = store
            .meta::<StoreId>(STORE_ID)
            .map_err(failed)?
            .ok_or_else(|| failed(io::Error::new(io::ErrorKind::InvalidData, "the store has no id")))?;
        Ok(Arc::new(store))
    }

    fn claim(&self, own: StoreIdentity) -> Result<(), StoreError> {
        let failed = |source: io::Error| StoreError::Io { path: self.path.clone(), source };
        let found: Option<([u8; 16], u64)> = self.meta(IDENTITY).map_err(failed)?;
        match found {
            None => {
                let mut id = [0; 16];
                getrandom::fill(&mut id).map_err(|error| failed(io::Error::other(error.to_string())))?;
                let mut batch = self.batch();
                batch.put_cf(self.meta_cf(), STORE_ID, encode(&StoreId(id)).map_err(failed)?);
                batch.put_cf(self.meta_cf(), IDENTITY, encode(&(own.cluster, own.member)).map_err(failed)?);
                self.commit_synced(batch).map_err(failed)
            }
            Some((cluster, _)) if cluster != own.cluster => Err(StoreError::OtherCluster {
                path: self.path.clone(),
                found: hex(&cluster),
                expected: hex(&own.cluster),
            }),
            Some((_, member)) if member != own.member => {
                Err(StoreError::OtherMember { path: self.path.clone(), found: member, expected: own.member })
            }
            Some(_) => Ok(()),
        }
    }

    fn cf(&self, name: &str) -> &ColumnFamily {
        // Opened with exactly these families; they are never dropped.
        #[allow(clippy::expect_used, reason = "the families are made by `open`")]
        self.db.cf_handle(name).expect("a column family that `open` made")
    }

    pub(super) fn log_cf(&self) -> &ColumnFamily {
        self.cf(LOG)
    }

    pub(super) fn meta_cf(&self) -> &ColumnFamily {
        self.cf(META)
    }

    pub(super) fn state_cf(&self) -> &ColumnFamily {
        self.cf(STATE)
    }

    pub(super) fn events_cf(&self) -> &ColumnFamily {
        self.cf(EVENTS)
    }

    pub(super) fn audit_cf(&self) -> &ColumnFamily {
        self.cf(AUDIT)
    }

    pub(super) fn db(&self) -> &DB {
        &self.db
    }

    pub(super) fn batch(&self) -> WriteBatch {
        WriteBatch::default()
    }

    /// Writes in one piece; durable after the next sync.
    pub(super) fn commit(&self, batch: WriteBatch) -> io::Result<()> {
        self.write(batch, false)
    }

    /// Writes in one piece; durable on return, with everything written before.
    pub(super) fn commit_synced(&self, batch: WriteBatch) -> io::Result<()> {
        self.write(batch, true)
    }

    fn write(&self, batch: WriteBatch, sync: bool) -> io::Result<()> {
        self.check()?;
        let mut options = WriteOptions::default();
        options.set_sync(sync);
        self.guard(self.db.write_opt(batch, &options))?;
        #[cfg(test)]
        super::crash_steps::reached(&self.path, if sync { "written and synced" } else { "written" });
        Ok(())
    }

    /// Makes everything written so far durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.check()?;
        self.guard(self.db.flush_wal(true))?;
        #[cfg(test)]
        super::crash_steps::reached(&self.path, "all is synced");
        Ok(())
    }

    fn check(&self) -> io::Result<()> {
        if self.failed.load(Ordering::Acquire) {
            return Err(io::Error::other("an earlier write or sync of the store failed; restart the member"));
        }
        Ok(())
    }

    fn guard(&self, result: Result<(), rocksdb::Error>) -> io::Result<()> {
        result.map_err(|error| {
            self.failed.store(true, Ordering::Release);
            rocks(error)
        })
    }

    /// All of it as it is now, whatever is written from here on.
    pub(super) fn view(&self) -> View<'_> {
        View { store: self, snapshot: self.db.snapshot() }
    }

    fn meta<T: DeserializeOwned>(&self, key: &[u8]) -> io::Result<Option<T>> {
        self.db.get_pinned_cf(self.meta_cf(), key).map_err(rocks)?.map(|bytes| decode(&bytes)).transpose()
    }

    /// Drawn when this store was made.
    pub(super) fn id(&self) -> StoreId {
        self.id
    }

    /// Version of the membership by which this member was removed last; 0 = never.
    pub(super) fn retired(&self) -> io::Result<u64> {
        Ok(self.meta(RETIRED)?.unwrap_or_default())
    }

    pub(super) fn save_retired(&self, index: u64) -> io::Result<()> {
        let mut batch = self.batch();
        batch.put_cf(self.meta_cf(), RETIRED, encode(&index)?);
        self.commit_synced(batch)
    }

    pub(super) fn vote(&self) -> io::Result<Option<Vote>> {
        self.meta(VOTE)
    }

    pub(super) fn save_vote(&self, vote: &Vote) -> io::Result<()> {
        let mut batch = self.batch();
        batch.put_cf(self.meta_cf(), VOTE, encode(vote)?);
        self.commit_synced(batch)
    }

    pub(super) fn purged(&self) -> io::Result<Option<LogId>> {
        self.meta(PURGED)
    }

    pub(super) fn put_purged(&self, batch: &mut WriteBatch, purged: &LogId) -> io::Result<()> {
        batch.put_cf(self.meta_cf(), PURGED, encode(purged)?);
        Ok(())
    }

    /// Highest log index whose events were dropped for age; 0 = none.
    pub(super) fn events_dropped(&self) -> io::Result<u64> {
        Ok(self.meta(EVENTS_DROPPED)?.unwrap_or_default())
    }

    pub(super) fn put_events_dropped(&self, batch: &mut WriteBatch, index: u64) -> io::Result<()> {
        batch.put_cf(self.meta_cf(), EVENTS_DROPPED, encode(&index)?);
        Ok(())
    }

    /// Highest log index whose audit records were dropped for size, by part; 0 = none.
    pub(super) fn audit_dropped(&self) -> io::Result<[u64; 3]> {
        Ok(self.meta(AUDIT_DROPPED)?.unwrap_or_default())
    }

    pub(super) fn put_audit_dropped(&self, batch: &mut WriteBatch, dropped: &[u64; 3]) -> io::Result<()> {
        batch.put_cf(self.meta_cf(), AUDIT_DROPPED, encode(dropped)?);
        Ok(())
    }

    /// What the records of the state machine stand for.
    pub(super) fn applied(&self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok(self.meta(APPLIED)?.unwrap_or_default())
    }

    pub(super) fn put_applied(
        &self,
        batch: &mut WriteBatch,
        applied: &Option<LogId>,
        membership: &StoredMembership,
    ) -> io::Result<()> {
        batch.put_cf(self.meta_cf(), APPLIED, encode(&(applied, membership))?);
        Ok(())
    }
}

/// The store as it was at one moment.
pub(super) struct View<'a> {
    store: &'a Store,
    snapshot: Snapshot<'a>,
}

impl View<'_> {
    /// Keys and values of a column family, in order. Does not push out of the cache what is in use.
    pub(super) fn scan(&self, family: &ColumnFamily) -> impl Iterator<Item = io::Result<Pair>> {
        let mut options = ReadOptions::default();
        options.fill_cache(false);
        let found = self.snapshot.iterator_cf_opt(family, options, IteratorMode::Start);
        found.map(|found| found.map_err(rocks))
    }

    /// What the records of the state machine stand for.
    pub(super) fn applied(&self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok(self.meta(APPLIED)?.unwrap_or_default())
    }

    /// As [`Store::events_dropped`].
    pub(super) fn events_dropped(&self) -> io::Result<u64> {
        Ok(self.meta(EVENTS_DROPPED)?.unwrap_or_default())
    }

    /// As [`Store::audit_dropped`].
    pub(super) fn audit_dropped(&self) -> io::Result<[u64; 3]> {
        Ok(self.meta(AUDIT_DROPPED)?.unwrap_or_default())
    }

    fn meta<T: DeserializeOwned>(&self, key: &[u8]) -> io::Result<Option<T>> {
        let found = self.snapshot.get_pinned_cf(self.store.meta_cf(), key).map_err(rocks)?;
        found.map(|bytes| decode(&bytes)).transpose()
    }
}

/// Key and value.
pub(super) type Pair = (Box<[u8]>, Box<[u8]>);

pub(super) fn rocks(error: rocksdb::Error) -> io::Error {
    let kind = match error.kind() {
        rocksdb::ErrorKind::Corruption => io::ErrorKind::InvalidData,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error.into_string())
}

/// A value as it stands on disk.
pub(super) fn encode(value: &impl Serialize) -> io::Result<Vec<u8>> {
    postcard::to_extend(value, vec![FORMAT])
        .map_err(|error| io::Error::other(format!("cannot be encoded: {error}")))
}

/// Reads what [`encode`] wrote.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    let corrupt = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    match bytes.split_first() {
        Some((&FORMAT, body)) => match postcard::take_from_bytes(body) {
            Ok((value, [])) => Ok(value),
            Ok(_) => Err(corrupt("bytes after the end of a record".to_owned())),
            Err(error) => Err(corrupt(format!("not the record that it should be: {error}"))),
        },
        Some((format, _)) => {
            Err(corrupt(format!("written in format {format}, which this version does not know")))
        }
        None => Err(corrupt("an empty record".to_owned())),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
