//! The replicated block store of one logical unit, as its owner uses it. Today the in-sync set has one member, this node's
//! own replica; the checks are those of any number: epoch and lease gate at submission, and again before the reply.
//!
//! Invariants: no byte is read or written unless the gate is open, this incarnation owns the volume, and the replica
//! has durably promised the volume's epoch; the caller asks [`Volume::may_reply`] after the I/O and before every reply.

#[expect(clippy::module_inception, reason = "the volume is this module's one idea")]
mod volume;

pub use volume::{Volume, VolumeError};
