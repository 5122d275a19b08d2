//! The harness of the end-to-end tests: a real cluster of real processes ([`cluster`]), real initiators ([`initiator`] on
//! libiscsi, [`tools`]: libiscsi's and QEMU's programs), the CDBs that tests send ([`cdb`]), and libiscsi's conformance suite
//! ([`suite`]) against a cluster ([`conformance`]) and against other targets ([`peers`]). [`netcluster`] is a cluster whose
//! processes have network namespaces of their own ([`netns`]), to be cut apart, on disks that fail on command ([`bad_disk`]).
//! [`loop_device`] makes real block devices. All waiting is done by [`patience`].
//!
//! Invariants: every process that a test starts ends with it, by its own id; every wait is for a condition and has an end.

pub mod bad_disk;
pub mod cdb;
pub mod clock;
pub mod cluster;
pub mod conformance;
pub mod differential;
pub mod initiator;
pub mod loop_device;
pub mod netcluster;
pub mod netns;
pub mod patience;
pub mod peers;
pub mod raw;
pub mod replicated;
pub mod suite;
pub mod tools;
pub mod verifier;
