//! The I_T nexus (SAM-5 4.3): an initiator port as seen by one target port. Registrations and Unit Attentions hang on it.
//!
//! Invariant: a nexus is named by what the cluster agrees on (TransportID and relative target port identifier), never
//! by a session, so that it is the same before and after a failover.

use core::fmt;

use crate::transport_id::TransportId;

/// Relative target port identifier (RTPI): assigned by the controller, unique in the cluster, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelativePort(pub u16);

/// An initiator port talking to a target port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nexus {
    /// The initiator port.
    pub initiator: TransportId,
    /// The target port.
    pub port: RelativePort,
}

impl Nexus {
    /// The nexus of these two ports.
    pub const fn new(initiator: TransportId, port: RelativePort) -> Nexus {
        Nexus { initiator, port }
    }
}

impl fmt::Display for Nexus {
    /// `iqn...,i,0x... -> port 3`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> port {}", self.initiator, self.port.0)
    }
}

impl fmt::Debug for Nexus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
