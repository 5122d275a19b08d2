//! Refusals and failures as gRPC statuses: whose fault it is, and the exact reason.
//!
//! Invariant: UNAVAILABLE means that nothing was changed; DEADLINE_EXCEEDED means that the outcome is not known.

use tonic::{Code, Status, metadata::MetadataValue};

use crate::{
    raft::{LeaderAddress, ReadError, WriteError},
    state::Refusal,
};

/// Metadata key under which a member that does not lead names the leader's address.
pub(crate) const LEADER: &str = "holdfast-leader";

/// A refusal of the state machine.
pub(crate) fn refused(refusal: &Refusal) -> Status {
    let code = match refusal {
        Refusal::Invalid { .. } | Refusal::RequestIdReused(_) => Code::InvalidArgument,
        Refusal::NotFound { .. } => Code::NotFound,
        Refusal::AlreadyExists { .. } => Code::AlreadyExists,
        Refusal::Precondition(_)
        | Refusal::StaleEpoch { .. }
        | Refusal::StaleIncarnation { .. }
        | Refusal::NoLease { .. } => Code::FailedPrecondition,
        Refusal::Exhausted { .. } => Code::ResourceExhausted,
        Refusal::StaleVersion { .. } | Refusal::StaleLeaseTerm { .. } => Code::Aborted,
        Refusal::NotInitialised => Code::Unavailable,
    };
    Status::new(code, refusal.to_string())
}

/// A command that was not confirmed.
pub(crate) fn not_written(error: &WriteError) -> Status {
    match error {
        WriteError::NotLeader { leader } => not_leading(leader.as_ref()),
        WriteError::NoQuorum | WriteError::Stopped(_) => {
            Status::unavailable(format!("{error}; nothing was changed"))
        }
        WriteError::Unknown(_) => {
            Status::deadline_exceeded(format!("{error}; ask again with the same request id"))
        }
    }
}

/// Leadership that was not confirmed.
pub(crate) fn not_confirmed(error: &ReadError) -> Status {
    match error {
        ReadError::NotLeader { leader } => not_leading(leader.as_ref()),
        ReadError::NoQuorum | ReadError::Stopped(_) => {
            Status::unavailable(format!("{error}; nothing was changed"))
        }
    }
}

/// Another member leads (FAILED_PRECONDITION, with its address), or none (UNAVAILABLE).
pub(crate) fn not_leading(leader: Option<&LeaderAddress>) -> Status {
    let address = leader.and_then(|leader| Some((leader, MetadataValue::try_from(&leader.address).ok()?)));
    match address {
        Some((leader, address)) => {
            let text = format!("controller {} at {} leads", leader.name, leader.address);
            let mut status = Status::failed_precondition(text);
            status.metadata_mut().insert(LEADER, address);
            status
        }
        None => Status::unavailable("no controller leads now; nothing was changed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leader_is_named_where_it_is_known() {
        let leader = LeaderAddress { id: 2, name: "ctl-2".to_owned(), address: "127.0.0.1:7002".to_owned() };
        let status = not_leading(Some(&leader));
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(status.metadata().get(LEADER).unwrap(), "127.0.0.1:7002");
        assert_eq!(not_leading(None).code(), Code::Unavailable);
    }

    #[test]
    fn unknown_outcome_is_told_apart_from_nothing_happened() {
        assert_eq!(not_written(&WriteError::NoQuorum).code(), Code::Unavailable);
        assert_eq!(not_written(&WriteError::Unknown("x")).code(), Code::DeadlineExceeded);
    }
}
