//! Every time and bound of Raft in one place.
//!
//! The relation that matters: heartbeat << election time-out << lease of a data node. A follower stands for election a leader's
//! lease ([`ELECTION_MAX`]) and its own time-out after it last heard of the leader, so a new leader's first commit comes 0.75 to 1 s
//! after the old one died; leases of data nodes outlast that. A heartbeat must be answered before the next one is due, and a vote
//! within [`ELECTION_MIN`]: times much shorter than these elect nobody on a machine whose processes wait for their turn.

use std::{sync::Arc, time::Duration};

use openraft::{Config, SnapshotPolicy};

/// How often a leader shows that it is there.
pub const HEARTBEAT: Duration = Duration::from_millis(100);
/// A follower that heard nothing for a random time in this range asks for an election.
pub const ELECTION_MIN: Duration = Duration::from_millis(250);
/// See [`ELECTION_MIN`].
pub const ELECTION_MAX: Duration = Duration::from_millis(500);
/// A leader that no quorum has acknowledged for this long refuses proposals instead of making them.
pub const QUORUM_SILENCE_MAX: Duration = Duration::from_millis(1000);
/// After this a proposal's outcome is called unknown.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// After this leadership is called unconfirmed.
pub const READ_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a write waits for a leader that is just being elected to accept it.
pub const SETTLE_TIMEOUT: Duration = Duration::from_millis(300);
/// How often it asks meanwhile.
pub const SETTLE_RETRY: Duration = Duration::from_millis(1);

/// Time for a whole snapshot to reach a member and be installed.
pub const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(60);
/// Time for a connection to another member to come up, TLS included, on a machine under load too.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// HTTP/2 keep-alive between members: a silent peer is noticed after interval + timeout.
pub const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(1);
/// See [`KEEP_ALIVE_INTERVAL`].
pub const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// Time for a handed-over leadership to be taken up.
pub const TRANSFER_TIMEOUT: Duration = Duration::from_secs(1);

/// Bytes of one chunk of a snapshot on the wire.
pub const SNAPSHOT_CHUNK_BYTES: usize = 256 * 1024;
/// Largest snapshot that is accepted, in bytes.
pub const SNAPSHOT_BYTES_MAX: u64 = 4 << 30;
/// Largest record in a snapshot file, in bytes.
pub const SNAPSHOT_RECORD_BYTES_MAX: u32 = 16 << 20;
/// Largest gRPC message between members, in bytes: one append with its entries.
pub const FRAME_BYTES_MAX: usize = 16 << 20;
/// One read of the log for a follower stops after this many bytes (but returns at least one entry).
pub const LOG_READ_BYTES_MAX: usize = 1 << 20;
/// Entries applied in one write to disk.
pub const APPLY_BATCH_MAX: usize = 256;
/// Commits kept in memory for followers of the watch, and their bytes.
pub const COMMITS_KEPT: usize = 8192;
/// See [`COMMITS_KEPT`].
pub const COMMITS_KEPT_BYTES: usize = 64 << 20;

/// Management events kept on disk, about.
pub const EVENTS_KEPT: u64 = 10_000;

/// Bytes of the audit kept on disk, about, by part: management, cluster, refused.
pub const AUDIT_BYTES_KEPT: [u64; 3] = [16 << 20, 8 << 20, 4 << 20];

/// Time for a change of the members to be committed.
pub const MEMBERSHIP_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for a new member to catch up, snapshot included.
pub const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(60);
/// How long members that count as silent are waited for before a change is refused for their sake.
pub const HEARD_OUT: Duration = Duration::from_secs(2);
/// A new member that the leader has not heard from for this long, before it has caught up, is given up.
pub const LEARNER_SILENCE_MAX: Duration = Duration::from_secs(10);
/// How often a member asks the others whether it was removed: while it has no leader, or has not been answered yet.
pub const REMOVAL_ASKED_OFTEN: Duration = Duration::from_secs(1);
/// The same while it has one.
pub const REMOVAL_ASKED_SELDOM: Duration = Duration::from_secs(10);

/// How often the log is compacted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compaction {
    /// A snapshot is made after this many entries.
    pub snapshot_every: u64,
    /// Entries before a snapshot that stay, so that a member that was away shortly catches up by log.
    pub keep: u64,
}

impl Default for Compaction {
    fn default() -> Self {
        Self { snapshot_every: 20_000, keep: 5_000 }
    }
}

/// openraft's configuration.
pub(super) fn config(cluster: String, compaction: Compaction) -> Result<Arc<Config>, openraft::ConfigError> {
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let config = Config {
        cluster_name: cluster,
        heartbeat_interval: ms(HEARTBEAT),
        election_timeout_min: ms(ELECTION_MIN),
        election_timeout_max: ms(ELECTION_MAX),
        // The default of 200 ms would abandon every snapshot of some size.
        install_snapshot_timeout: ms(SNAPSHOT_TIMEOUT),
        max_payload_entries: 256,
        max_append_entries: Some(1024),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(compaction.snapshot_every),
        max_in_snapshot_log_to_keep: compaction.keep,
        // A follower further behind gets a snapshot; nearer, the log.
        replication_lag_threshold: compaction.snapshot_every + compaction.keep,
        purge_batch_size: (compaction.keep / 4).clamp(1, 256),
        enable_pre_vote: Some(true),
        ..Config::default()
    };
    config.validate().map(Arc::new)
}
