//! The SCSI rules of Holdfast, written once: what a command means, who may run it, and what is answered.
//!
//! Two tiers. Without the feature `alloc` (the *kernel tier*) nothing here allocates, nothing panics, and every reply is
//! written into the caller's buffer: that is what the kernel front end links. The feature `alloc` (on by default) adds
//! what lives in user space only: reservation state, task set, device server, target port.
//!
//! Invariants of the whole crate: no I/O, no clock, no threads, no random numbers, no `unsafe`. Whatever comes from a
//! peer is parsed once into types that hold valid values only; all bounds are constants in [`limits`].
//!
//! | Looking for | Module |
//! |---|---|
//! | where a CDB is decoded | [`cdb`], with the table of supported commands in [`opcode`] |
//! | the order of checks before a command runs | [`checks`] |
//! | sense data | [`sense`] |
//! | Unit Attentions | [`ua`] |
//! | INQUIRY and VPD pages | [`inquiry`], [`vpd`] |
//! | mode pages | [`mode`] |
//! | third-party copy: lists, tokens, reports | [`copy`] |
//! | who may run what under a reservation | [`pr::access`] |
//! | where PERSISTENT RESERVE OUT changes the state | [`pr::state`] |
//! | what the cluster keeps of a unit, and the one function that changes it | `lu_state` |
//! | the device server of a logical unit | `device_server` |
//! | names of initiators, and whose they are | `initiator` |
//! | a nexus: LUN map, REPORT LUNS, pending Unit Attentions | `port` |
#![no_std]
#![forbid(unsafe_code)]

#[cfg(feature = "alloc")]
extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod alua;
pub mod capacity;
pub mod cdb;
pub mod checks;
pub mod copy;
#[cfg(feature = "alloc")]
pub mod device_server;
pub mod geometry;
pub mod identity;
#[cfg(feature = "alloc")]
pub mod initiator;
pub mod inquiry;
pub mod lba_status;
pub mod limits;
pub mod log_pages;
#[cfg(feature = "alloc")]
pub mod lu_state;
pub mod lun;
pub mod mode;
pub mod nexus;
pub mod opcode;
#[cfg(feature = "alloc")]
pub mod port;
pub mod pr;
#[cfg(feature = "alloc")]
pub mod range_lock;
pub mod reply;
pub mod report_luns;
pub mod rsoc;
pub mod sense;
pub mod status;
#[cfg(feature = "alloc")]
pub mod task_set;
pub mod time;
pub mod transport_id;
pub mod ua;
pub mod ua_table;
pub mod vpd;
