//! Proof by breaking things: oracles that judge what hosts saw ([`oracle`]), and runs of the shipped binaries under faults drawn from a
//! seed ([`run`]). Exhaustive models of the cluster's rules are in `tests/`: the barrier with leases, and replication with epochs.
//!
//! Invariant: nothing here shares code with what it judges; it speaks to the cluster as hosts and administrators do.

pub mod oracle;
pub mod random;
pub mod run;
