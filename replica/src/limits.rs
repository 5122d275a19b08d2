//! Every bound of this crate, in one place.

/// A lease is shortened at the node by one part in this many, the most that the clock rates of two machines may differ.
/// Quartz differs by 1 in 10,000 at worst; the rest allows for clocks that are being slewed.
pub const CLOCK_RATE_MARGIN_DIVISOR: u64 = 50;

/// Most copies of a volume.
pub const REPLICAS_MAX: usize = 3;
/// Most replicas catching up at once.
pub const LEARNERS_MAX: usize = 3;
/// Longest name of a pool, in bytes.
pub const POOL_NAME_LEN_MAX: usize = 63;

/// A command that arrived at its port longer ago than this is not executed any more, in milliseconds. Below the
/// shortest path time-out of hosts (Linux `dev_loss_tmo`, `replacement_timeout` and the 30 s of the SCSI layer), so that a
/// delayed write cannot land after the host sent it again on another path.
pub const COMMAND_AGE_MS_MAX: u64 = 15_000;

/// Longest fixed part of a frame behind its header, in bytes: the longest TransportID and CDB and some numbers.
pub const FRAME_META_LEN_MAX: usize = 1024;
/// Longest bulk data of a frame, in bytes: the most data-out that a port takes for one command. It is more than a command
/// may move: one that announces too much is refused by the device server, not by the way to it.
pub const FRAME_DATA_LEN_MAX: usize = 16 * 1024 * 1024;
/// Longest CDB that is forwarded, in bytes (RFC 7143 11.2.2.3 with the longest additional header segment).
pub const CDB_LEN_MAX: usize = 260;
/// Requests that one connection may have unanswered. One more command is answered TASK SET FULL by the port.
pub const REQUESTS_MAX: usize = 4096;
/// Data-out, in bytes, that the unanswered commands of one connection may have announced; the owner holds it in memory.
pub const DATA_OUT_MAX: u64 = 128 * 1024 * 1024;
/// Streams (I_T nexus and volume) of one connection.
pub const STREAMS_MAX: usize = 16 * 1024;

/// How often the owner hands out a clock token on a connection, in milliseconds. It is also the sign of life.
pub const CLOCK_INTERVAL_MS: u64 = 500;
/// A connection from which nothing has come for so long is dead, in milliseconds.
pub const SILENCE_MS_MAX: u64 = 4_000;
/// Clock tokens that a port remembers: enough to cover [`COMMAND_AGE_MS_MAX`].
pub const CLOCK_TOKENS_KEPT: usize = 64;

/// Bytes of an extent of the activity log: what a new owner copies for one write that was in flight.
pub const EXTENT_BYTES: u64 = 4 * 1024 * 1024;
/// Extents that writes in flight and writes not yet flushed may touch at once: 1 GiB to copy after the loss of an owner.
pub const LIVE_EXTENTS_MAX: usize = 256;
/// Extents in a durable activity log: the union of three logs of [`LIVE_EXTENTS_MAX`], and new writes during recovery.
pub const LOG_ENTRIES_MAX: usize = 1008;
/// Extents that one write, zeroing or unmapping may touch; longer ones are split by the caller.
pub const SPAN_EXTENTS_MAX: u64 = 64;
/// Smallest chunk of a dirty bitmap, in bytes.
pub const CHUNK_BYTES_MIN: u64 = 64 * 1024;
/// Most bits of a dirty bitmap: 128 KiB of memory. Chunks of larger volumes are larger (16 TiB: 16 MiB).
pub const BITMAP_BITS_MAX: u64 = 1 << 20;
/// Bitmaps that a replica keeps: one for each copy that a volume may have or be given. What is dropped is copied whole.
pub const BITMAPS_MAX: usize = REPLICAS_MAX + LEARNERS_MAX;
/// Host requests that the owner of a volume keeps unanswered.
pub const WINDOW_REQUESTS: usize = 1024;
/// Bytes of write data that the owner of a volume keeps unanswered.
pub const WINDOW_BYTES: u64 = 64 * 1024 * 1024;
/// Numbered frames that a replica keeps undone: the owner's window, its copies and its own requests.
pub const REPLICA_REQUESTS_MAX: usize = 2 * WINDOW_REQUESTS;
/// Bytes of one copy of a re-synchronisation; its range is locked while it is under way.
pub const COPY_BYTES: u64 = 1024 * 1024;
/// Longest write that a replica does whole or not at all, in bytes: what an intent holds. A copy of a recovery is one.
pub const ATOMIC_BYTES_MAX: u64 = COPY_BYTES;
/// Copies of a re-synchronisation under way at once, for each replica.
pub const COPIES_MAX: usize = 4;
/// Healing is done in multiples of so many bytes: what a checksum covers.
pub const HEAL_BYTES: u64 = 4096;
/// Ranges that the owner heals at once, and that it mends at once on another replica.
pub const HEALS_MAX: usize = 64;
/// Healed ranges that the owner remembers until it is asked for them.
pub const HEALED_KEPT_MAX: usize = 1024;
/// Bytes that a replica is asked for in one piece: what a host may read at once and a copy, and what a frame may carry.
pub const READ_BYTES_MAX: u64 = FRAME_DATA_LEN_MAX as u64;
/// A replica that leaves something unanswered for so long is removed from the in-sync set, in milliseconds.
pub const REPLICA_SILENCE_MS_MAX: u64 = 1_000;
/// A learner that has not promised for so long is asked again on a new connection, in milliseconds: long enough for a disk that is slow.
pub const PROMISE_AGAIN_MS: u64 = 5_000;
/// An owner whose own disk leaves something undone for so long gives the volume to another in-sync replica, in milliseconds. Longer than
/// for the others: it costs hosts a failover.
pub const OWN_DISK_STALL_MS_MAX: u64 = 5_000;
/// How long the owner of a new volume waits for a replica to be made, in milliseconds.
pub const REPLICA_MADE_MS_MAX: u64 = 10_000;
