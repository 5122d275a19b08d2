//! Raft: what the members agree on, durable on each of them.
//!
//! | Looking for | Module |
//! |---|---|
//! | propose, read, follow | [`handle`] ([`Handle`]) |
//! | start, bootstrap, stop | [`member`] |
//! | members added and removed | [`membership`] |
//! | one member goes on alone after the others are lost | [`alone`] |
//! | times and bounds | [`options`] |
//! | log, vote, identity on disk | `store`, `log` |
//! | state machine on disk and in memory | `machine`, `records`, `events`, `audit_log`, `applied`, `commits` |
//! | snapshots | `snapshot`, `snapshot_file` |
//! | members' wire | `network` (calling), `service` (answering), `frame` |
//!
//! Invariants
//! * A vote and an acknowledged log entry are on disk (fsync) before anyone hears of them; a failed fsync stops the member.
//! * The records of the state machine and the index that they stand for change in one write.
//! * The log never has a hole, and nothing is purged that a durable state or snapshot does not cover.
//! * A folder belongs to one member of one cluster, and to one process at a time.

pub mod alone;
mod applied;
mod audit_log;
mod commits;
mod events;
mod flusher;
mod frame;
mod handle;
mod leadership;
mod log;
mod machine;
pub mod member;
pub mod membership;
mod network;
pub mod options;
mod records;
mod service;
mod snapshot;
mod snapshot_file;
mod store;
mod types;

#[cfg(test)]
mod cluster_tests;
#[cfg(test)]
mod crash_steps;
#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod store_tests;

pub use commits::{Commits, CommitsEnd};
pub use handle::{ClusterMetrics, Handle, LeaderAddress, MemberMetrics, ReadError, WriteError, Written};
pub use leadership::Leadership;
pub use member::RunningMember;
pub(crate) use network::channel as connect;
pub use service::RaftService;
pub use store::StoreError;
pub use types::{Member, StoreId};
