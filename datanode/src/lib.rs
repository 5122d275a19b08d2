//! A data node: it owns replicas of volumes and serves initiators. A shell round the pure cores.
//!
//! | Looking for | Module |
//! |---|---|
//! | arguments | [`config`] |
//! | starting and stopping the whole | [`process`] |
//! | what the controller said, as a picture | [`view`] |
//! | may we serve now? | [`gate`] |
//! | the session with the controller, proposals | [`agent`] |
//! | commands forwarded between data nodes | [`interconnect`] |
//! | threads, portals, routing of commands | [`data_plane`] |
//! | logical units that are owned here | [`lu`] |
//! | the replicated block store of one volume | [`volume`] |
//! | where a byte meets the disk | [`store`] |
//!
//! Invariants: a command is executed only while the lease gate is open and this incarnation owns the volume; no control
//! plane work runs on a data-plane thread; a record of the controller that does not parse closes the gate.

pub mod agent;
pub mod clock;
pub mod config;
pub mod data_plane;
pub mod gate;
pub mod interconnect;
pub mod lu;
pub mod process;
pub mod store;
pub mod view;
pub mod volume;
