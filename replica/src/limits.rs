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
