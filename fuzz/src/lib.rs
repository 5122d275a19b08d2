//! What is fuzzed: each target is a function of any bytes, which must neither panic nor hang nor take memory on the word of a
//! peer. `run.sh` gives them bytes that libFuzzer finds; the test `replay` gives them the kept corpus.
//!
//! Invariant: a target depends on nothing but its bytes, so that what was found once is found again.

mod device_server;
mod iscsi_decoders;
mod iscsi_login;
mod iscsi_session;
mod replica_frames;
mod replica_metadata;
mod scsi_decoders;

/// A portal and an initiator in memory, as the tests of the engine have them.
#[path = "../../iscsi/tests/support/mod.rs"]
mod portal;
/// A unit with its hosts, its store and its controller, as the tests of the device server have them.
#[path = "../../scsi/tests/world/mod.rs"]
mod world;

pub use device_server::device_server;
pub use iscsi_decoders::iscsi_decoders;
pub use iscsi_login::iscsi_login;
pub use iscsi_session::iscsi_session;
pub use replica_frames::replica_frames;
pub use replica_metadata::replica_metadata;
pub use scsi_decoders::scsi_decoders;

/// Takes any bytes.
pub type Target = fn(&[u8]);

/// Every target by its name, which is also its program's and its corpus' name.
pub const TARGETS: [(&str, Target); 7] = [
    ("device_server", device_server),
    ("iscsi_decoders", iscsi_decoders),
    ("iscsi_login", iscsi_login),
    ("iscsi_session", iscsi_session),
    ("replica_frames", replica_frames),
    ("replica_metadata", replica_metadata),
    ("scsi_decoders", scsi_decoders),
];
