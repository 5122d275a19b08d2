//! Why a command was not carried out: one variant per rule, with the exact reason as its text.
//!
//! Invariant: a refused command changed nothing. Every member refuses the same command at the same place in the log.

use holdfast_replica::{epoch::Epoch, ids::VolumeId};

/// A resource, for reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A data node.
    Node,
    /// A volume.
    Volume,
    /// A host.
    Host,
    /// A mapping.
    Mapping,
    /// A job.
    Job,
    /// A host group.
    HostGroup,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Kind::Node => "node",
            Kind::Volume => "volume",
            Kind::Host => "host",
            Kind::Mapping => "mapping",
            Kind::Job => "job",
            Kind::HostGroup => "host group",
        })
    }
}

/// One fault of a request that asks for many things.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Name as in the management API: "edits[3].lun".
    pub field: String,
    /// What is wrong, and what would be right.
    pub reason: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.reason)
    }
}

fn first_of(violations: &[Violation]) -> String {
    let first = violations.first().map_or_else(String::new, Violation::to_string);
    match violations.len() {
        0 | 1 => first,
        more => format!("{first} (and {} more)", more - 1),
    }
}

/// Why a command was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A field of the command does not hold a valid value.
    #[error("{field}: {reason}")]
    Invalid {
        /// Name as in the management API.
        field: &'static str,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// Several things are wrong with it; none of it was done.
    #[error("{}", first_of(.0))]
    Several(Vec<Violation>),
    /// Nothing has that name.
    #[error("{kind} {name} does not exist")]
    NotFound {
        /// What was looked for.
        kind: Kind,
        /// Its name.
        name: String,
    },
    /// The name is taken.
    #[error("{kind} {name} exists already")]
    AlreadyExists {
        /// What was to be made.
        kind: Kind,
        /// Its name.
        name: String,
    },
    /// The state forbids it; the text says what is in the way and what to do.
    #[error("{0}")]
    Precondition(String),
    /// A bound of `limits` is reached.
    #[error("{what}: the limit of {limit} is reached")]
    Exhausted {
        /// Of what there are too many.
        what: String,
        /// The bound.
        limit: u64,
    },
    /// The request id was used for a request of other content.
    #[error("request_id: '{0}' was used before for a different request; draw a new one")]
    RequestIdReused(String),
    /// The cluster has no record yet.
    #[error("the cluster is not initialised yet")]
    NotInitialised,
    /// The proposer's epoch is not the volume's, or it does not own the volume. Nothing happened, and with this epoch
    /// nothing ever will.
    #[error("volume {volume} is in epoch {current} of node {owner}; the request is of epoch {asked}")]
    StaleEpoch {
        /// The volume.
        volume: VolumeId,
        /// Epoch in the request.
        asked: Epoch,
        /// Epoch now.
        current: Epoch,
        /// Number of the owner now; 0 = none.
        owner: u32,
    },
    /// The reservation changed since the proposer looked. Nothing happened; look again.
    #[error("reservations of volume {volume} are at version {current}; the proposal expects {expected}")]
    StaleVersion {
        /// The volume.
        volume: VolumeId,
        /// Version in the proposal.
        expected: u64,
        /// Version now.
        current: u64,
    },
    /// Another leader's leases are in force.
    #[error("leases of term {in_force} are in force; the request is of term {asked}")]
    StaleLeaseTerm {
        /// Term in the request.
        asked: u64,
        /// Term now.
        in_force: u64,
    },
    /// The node holds no lease now.
    #[error("node {number} holds no lease")]
    NoLease {
        /// The node.
        number: u32,
    },
    /// Another process of the node has joined since.
    #[error("node {number} is in incarnation {current}; the request is of incarnation {asked}")]
    StaleIncarnation {
        /// The node.
        number: u32,
        /// Incarnation in the request.
        asked: u64,
        /// Incarnation now.
        current: u64,
    },
}

impl Refusal {
    pub(super) fn invalid(field: &'static str, reason: impl Into<String>) -> Refusal {
        Refusal::Invalid { field, reason: reason.into() }
    }

    pub(super) fn not_found(kind: Kind, name: &str) -> Refusal {
        Refusal::NotFound { kind, name: name.to_owned() }
    }
}
