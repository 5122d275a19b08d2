//! The target side of iSCSI (RFC 7143) as a pure engine: bytes, answers and time go in; bytes, events and
//! deadlines come out. No I/O, no clock, no threads, no random numbers.
//!
//! A shell owns a socket and one [`Connection`]:
//!
//! ```text
//! socket bytes  -> handle_input(now, bytes)     poll_event()   -> Login, Command, DataOut, TaskManagement, ...
//! answers       -> complete(tag, outcome) ...   segments()     -> slices for one vectored write; advance(n) after it
//! clock         -> handle_timeout(now)          poll_timeout() -> when to call it
//! ```
//!
//! Invariants: any byte stream, split anywhere, neither panics nor makes a connection hold more than [`limits`] and
//! the [`PortalConfig`] allow; commands come out in CmdSN order; nothing is believed of a peer before it is checked.
#![no_std]

extern crate alloc;

mod binary_value;
pub mod chap;
pub mod config;
mod connection;
mod data_in;
mod data_out;
pub mod digest;
mod discovery;
pub mod event;
#[cfg(feature = "initiator")]
pub mod initiator;
pub mod limits;
pub mod login;
pub mod negotiation;
pub mod pdu;
mod receive;
mod session;
pub mod text;
pub mod time;
mod transmit;

pub use config::{DigestPolicy, PortalConfig, PortalOptions};
pub use connection::Connection;
pub use event::{
    Admission, Cdb, CloseReason, Command, Condition, DataState, Event, Join, LinkId, LoginAnswer,
    LoginRequest, Payload, PortalRecord, ScsiOutcome, SendTargets, SessionInfo, SessionStart, SessionType,
    TargetRecord, TaskAttribute, TaskManagement, TaskManagementFunction, TaskManagementId,
    TaskManagementResponse, TaskTag, Violation,
};
pub use login::status::LoginStatus;
pub use negotiation::SessionParameters;
pub use time::Instant;
