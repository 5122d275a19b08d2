//! The replicated block store of a logical unit: what its owner uses, and the replicas of this node.
//!
//! | Looking for | Module |
//! |---|---|
//! | I/O of an owned volume, and whether it may be done now | [`Volume`] |
//! | which replicas there are, following the view | `hosting` |
//! | the replication core of one volume, driven | `engine` |
//! | what hosts ask of it | `jobs` |
//! | what it asks of the disk | `disk` |
//! | connections to other nodes' replicas | [`Links`] |
//! | a snapshot or clone made here, a volume restored | `making`, `restoring` |
//! | time | `pulse` |
//! | damage looked for, and told to the owner | `scrub` |
//!
//! Invariants: no byte is read or written for a host unless the gate is open, this incarnation owns the volume, and the replica
//! has durably promised the volume's epoch; the caller asks [`Volume::may_reply`] after the I/O and before every reply.

mod disk;
mod engine;
pub(crate) mod hosting;
pub(crate) mod jobs;
pub(crate) mod link;
mod making;
mod pulse;
mod report;
mod restoring;
mod scrub;
#[cfg(test)]
mod tests;
#[expect(clippy::module_inception, reason = "the volume is this module's one idea")]
mod volume;

pub(crate) use engine::Surroundings;
pub use link::Links;
pub use scrub::ScrubPace;
pub(crate) use volume::Serving;
pub use volume::{Volume, VolumeError};
