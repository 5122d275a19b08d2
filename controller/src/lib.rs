//! The Raft-replicated truth of a Holdfast cluster.
//!
//! Where to look: [`state`] is the pure state machine (what a log entry does); [`raft`] makes it durable and agreed
//! (log store, snapshots, network, membership) and hands out [`raft::Handle`]; [`lease`] grants data nodes their right to
//! serve; [`session`] is what data nodes talk to, [`api`] what people and programs talk to; [`server`] is the one gRPC
//! listener with the role check before all of them.
//!
//! Invariants: nothing is answered as done before a quorum has it on disk; only [`raft`] touches the disk; only `state`
//! decides what an entry does.

pub mod config;
pub mod raft;
pub mod server;

pub mod api;
pub mod lease;
pub mod session;
pub mod state;
