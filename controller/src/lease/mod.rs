//! The leader's leases: how long each data node may serve. This is where a lease is granted.
//!
//! | Looking for | Module |
//! |---|---|
//! | who holds a lease, may one be granted, has a barrier passed | [`table`] (pure) |
//! | what the leader proposes when leases begin and end | [`plan`] (pure) |
//! | what it proposes so that volumes become what was asked for | `plan_replicas` (pure) |
//! | how far jobs are | `plan_jobs` (pure) |
//! | what it remembers for that | [`memory`] (pure) |
//! | what nodes say of their replicas | [`reports`] (pure) |
//! | the task that drives all, renewals, waiting for barriers | [`manager`] |
//!
//! Invariants (all times are the leader's own)
//! * A renewal is answered only after the leader has confirmed its leadership with a quorum asked after the renewal arrived.
//! * A lease ends at the controller later than at the node, which counts from the sending of its renewal.
//! * A new leader treats every node as holding a lease until a full lease after its election, and neither grants nor decides
//!   anything before its term is the lease term in force in the replicated state.
//! * Ownership moves only when no lease of the old owner, of any of its incarnations, can still run.

pub mod manager;
pub mod memory;
pub mod plan;
mod plan_jobs;
mod plan_replicas;
pub mod reports;
pub mod table;

pub use manager::{BarrierLost, Manager};

/// How long a lease is, in milliseconds. Above the time of an election, so that one does not cost every host its paths.
pub const LEASE_MS: u32 = 2000;
/// How often a node renews its lease, in milliseconds.
pub const RENEW_INTERVAL_MS: u32 = 400;
/// A node whose data path has hung for longer than this is not renewed, in milliseconds: it must not hold up fencing.
pub const DATA_PATH_STALLED_MS_MAX: u32 = 1500;
/// How often the leader looks at what ran out, in milliseconds.
pub const TICK_MS: u64 = 50;
/// Grants of one node that are told apart; more are merged, to the safe side.
pub const GRANTS_KEPT: usize = 16;

/// Milliseconds of the leader's monotonic clock since some moment of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Millis(pub u64);

impl Millis {
    /// `ms` later.
    pub const fn plus(self, ms: u32) -> Millis {
        Millis(self.0.saturating_add(ms as u64))
    }

    /// Milliseconds from `earlier` to here; 0 if it is not earlier.
    pub const fn since(self, earlier: Millis) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}
