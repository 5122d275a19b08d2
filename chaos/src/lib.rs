//! Proof by breaking things: oracles that judge what hosts saw ([`oracle`]), runs of the shipped binaries under faults drawn from a
//! seed ([`run`]), and a whole cluster in one thread, from one seed ([`simulation`]). Exhaustive models of the cluster's rules are in
//! `tests/`: the barrier with leases, and replication with epochs.
//!
//! Invariant: what judges shares no code with what it judges.

pub mod oracle;
pub mod random;
pub mod run;
pub mod simulation;
