//! Every bound of the data plane, in one place. What one initiator can make a node hold is the product of these, the
//! portal's options and the SCSI core's limits.

/// Connections (sessions of all kinds, also those that are logging in) of one node; more are closed at once.
pub const CONNECTIONS_MAX: usize = 1024;
/// Bytes taken from a socket at a time.
pub const READ_BUFFER_LEN: usize = 256 * 1024;
/// Reads of one connection in one turn of the loop, so that a fast one does not starve the others.
pub const READS_PER_TURN_MAX: usize = 8;
/// Connections accepted in one turn of the loop.
pub const ACCEPTS_PER_TURN_MAX: usize = 64;
/// Slices in one vectored write.
pub const SEGMENTS_PER_WRITE_MAX: usize = 128;
/// Vectored writes of one connection in one turn of the loop.
pub const WRITES_PER_TURN_MAX: usize = 16;
/// Readiness events taken at a time.
pub const EVENTS_PER_POLL_MAX: usize = 256;
/// Messages taken from the mailbox in one turn of the loop.
pub const MESSAGES_PER_TURN_MAX: usize = 1024;

/// How long a port holds a command that cannot be executed now (no owner, lease lapsed, owner changing) before it
/// answers BUSY, in milliseconds. Below the time-out of hosts' commands (30 s).
pub const HOLD_MS_MAX: u64 = 10_000;
/// A worker with sessions looks at the lease at least this often, the first one also at barriers, in milliseconds.
pub const LEASE_CHECK_MS: u64 = 500;
/// How often the first worker looks at the lease and at the other nodes while the lease is not renewed, in milliseconds.
pub const LAPSE_CHECK_MS: u64 = 50;
/// A lease that runs for no longer than this is not being renewed as it should (every 0.4 s of 2 s): the other nodes are asked
/// whether theirs are, in milliseconds.
pub const WATCH_BEFORE_MS: u64 = 1_000;
/// How long after the end of its lease a node waits before it concludes anything, in milliseconds.
pub const LAPSE_GRACE_MS: u64 = 500;
/// Leases of two nodes that the controllers have stopped to renew at one moment end no further apart than this, in milliseconds:
/// an interval of renewals and what a renewal may be late.
pub const GRANTS_APART_MS_MAX: u64 = 1_000;
/// A leader of the controllers that said something within this time is one to wait for, in milliseconds.
pub const LEADER_SILENCE_MS: u64 = 1_000;
/// A node from which nothing came for so long, while it was asked, is not reached, in milliseconds: two clock tokens and some more.
pub const NEIGHBOUR_SILENCE_MS: u64 = 1_200;
/// How often held commands are tried again where nothing else tells that they can be, in milliseconds.
pub const HOLD_RETRY_MS: u64 = 20;
/// How long a login waits for this node's lease before it is refused as "service unavailable", in milliseconds: a change of the
/// controllers' leader or a restart must not cost a host its path. Below the time that initiators give a login (15 s).
pub const LOGIN_HOLD_MS_MAX: u64 = 5_000;
/// How long the end of an older session of the same nexus is waited for before the new login is refused, in milliseconds.
pub const REINSTATEMENT_MS_MAX: u64 = 10_000;

/// Reads and writes up to this length are done by the worker itself, in bytes; longer ones by the I/O threads.
pub const INLINE_IO_LEN_MAX: u64 = 1024 * 1024;

/// How long a node that stops waits for what is under way, in milliseconds: with the longest pause of a store it stays below what
/// a supervisor waits before it kills.
pub const DRAIN_MS_MAX: u64 = 4_000;
/// How long it waits for initiators to log out, in milliseconds; those that do know the way to another node at once.
pub const DRAIN_LOGOUT_MS_MAX: u64 = 500;
