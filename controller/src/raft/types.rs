//! openraft's types as Holdfast fixes them.
//!
//! Invariants
//! * A log entry holds a command as the bytes that it was proposed with, so that every member stores and applies the same bytes
//!   whatever version it runs.
//! * A change of the members and the command that records it are one entry: both are committed, or neither.

use std::fmt;

use bytes::Bytes;
use openraft::{
    entry::RaftPayload,
    type_config::alias::{EntryOf, LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf, VoteOf},
    vote::leader_id_std,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{machine::MachineStore, snapshot_file::SnapshotFile};
use crate::state::{Command, Response};

openraft::declare_raft_types!(
    /// One leader per term, as in the Raft paper.
    pub(super) TypeConfig:
        D = EncodedCommand,
        R = Answer,
        NodeId = u64,
        Node = Member,
        LeaderId = leader_id_std::LeaderId<u64, u64>,
        Payload = Payload,
);

pub(super) type Raft = openraft::Raft<TypeConfig, MachineStore>;
pub(super) type Entry = EntryOf<TypeConfig>;
pub(super) type Membership = openraft::Membership<u64, Member>;
pub(super) type LogId = LogIdOf<TypeConfig>;
pub(super) type Vote = VoteOf<TypeConfig>;
pub(super) type StoredMembership = StoredMembershipOf<TypeConfig>;
pub(super) type SnapshotMeta = SnapshotMetaOf<TypeConfig>;
pub(super) type Snapshot = SnapshotOf<TypeConfig, SnapshotFile>;

/// A controller member as the membership records it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its name, which is in its certificate.
    pub name: String,
    /// "address:port" of its gRPC listener.
    pub address: String,
    /// Its store; unknown in what people write, known in every membership.
    pub store: StoreId,
}

impl Member {
    /// A member whose store is not known yet.
    pub fn new(name: impl Into<String>, address: impl Into<String>) -> Self {
        Self { name: name.into(), address: address.into(), store: StoreId::default() }
    }
}

/// Drawn when a store is made: tells a member from one of the same name that lost its disk. Zeros: not known.
#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreId(pub [u8; 16]);

impl StoreId {
    /// From exactly 16 bytes that are not all zero.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        let id = Self(bytes.try_into().ok()?);
        (id != Self::default()).then_some(id)
    }
}

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A command as the log holds it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct EncodedCommand(pub(super) Bytes);

impl EncodedCommand {
    pub(super) fn new(command: &Command) -> Self {
        Self(Bytes::from(command.encode()))
    }
}

impl fmt::Debug for EncodedCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EncodedCommand({} bytes)", self.0.len())
    }
}

impl fmt::Display for EncodedCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "command of {} bytes", self.0.len())
    }
}

/// What an entry holds: a command; a membership, with the command that records its change (without one only the first, which makes
/// the cluster); or nothing, which is a new leader's first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Payload {
    pub(super) command: Option<EncodedCommand>,
    pub(super) membership: Option<Membership>,
}

impl RaftPayload for Payload {
    type D = EncodedCommand;
    type NodeId = u64;
    type Node = Member;

    fn blank() -> Self {
        Self::default()
    }

    fn with_normal(self, command: EncodedCommand) -> Self {
        Self { command: Some(command), ..self }
    }

    /// Keeps the command: that is what makes the two one entry.
    fn with_membership(self, membership: Membership) -> Self {
        Self { membership: Some(membership), ..self }
    }

    fn get_membership(&self) -> Option<Membership> {
        self.membership.clone()
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.command, &self.membership) {
            (None, None) => f.write_str("blank"),
            (Some(command), None) => command.fmt(f),
            (None, Some(membership)) => write!(f, "membership {membership}"),
            (Some(command), Some(membership)) => write!(f, "membership {membership} and {command}"),
        }
    }
}

/// What the state machine answered to an entry; `None` for entries of Raft's own.
#[derive(Debug, Clone)]
pub(super) struct Answer(pub(super) Option<Response>);

// openraft asks for these of every type that it knows, and calls neither: an answer never leaves the process.
impl Serialize for Answer {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("an answer of the state machine stays in its process"))
    }
}

impl<'de> Deserialize<'de> for Answer {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(serde::de::Error::custom("an answer of the state machine stays in its process"))
    }
}
