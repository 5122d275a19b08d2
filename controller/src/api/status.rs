//! Refusals and failures as gRPC statuses: whose fault it is, and the exact reason.
//!
//! Where a field is at fault, the status carries a google.rpc.BadRequest with each field; where a resource is missing or there
//! already, a google.rpc.ResourceInfo.
//!
//! Invariant: UNAVAILABLE means that nothing was changed; DEADLINE_EXCEEDED means that the outcome is not known.

use tonic::{Code, Status, metadata::MetadataValue};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};

use crate::{
    raft::{LeaderAddress, ReadError, WriteError},
    state::Refusal,
};

/// Metadata key under which a member that does not lead names the leader's address.
pub(crate) const LEADER: &str = "holdfast-leader";

/// Metadata key of a refusal that is about every attempt with the same id, not about this one alone: none of them changed anything,
/// and none will.
pub(crate) const SETTLED: &str = "holdfast-settled";

/// A refusal of the state machine.
pub(crate) fn refused(refusal: &Refusal) -> Status {
    let code = match refusal {
        Refusal::Invalid { .. } | Refusal::RequestIdReused(_) => Code::InvalidArgument,
        Refusal::Several(_) => Code::FailedPrecondition,
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
    let text = refusal.to_string();
    match refusal {
        Refusal::Invalid { field, reason } => {
            Status::with_error_details(code, text, ErrorDetails::with_bad_request_violation(*field, reason))
        }
        Refusal::RequestIdReused(_) => {
            let details = ErrorDetails::with_bad_request_violation("request_id", &text);
            Status::with_error_details(code, text, details)
        }
        Refusal::Several(violations) => {
            let fields = violations.iter().map(|one| FieldViolation::new(&one.field, &one.reason));
            let details = ErrorDetails::with_bad_request(fields.collect::<Vec<_>>());
            Status::with_error_details(code, text, details)
        }
        Refusal::NotFound { kind, name } | Refusal::AlreadyExists { kind, name } => {
            let details = ErrorDetails::with_resource_info(kind.to_string(), name, "", "");
            Status::with_error_details(code, text, details)
        }
        _ => Status::new(code, text),
    }
}

/// A field of a request that cannot be so.
pub(crate) fn invalid(field: &str, reason: impl std::fmt::Display) -> Status {
    let details = ErrorDetails::with_bad_request_violation(field, reason.to_string());
    Status::with_error_details(Code::InvalidArgument, format!("{field}: {reason}"), details)
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
    use crate::state::{Kind, refusal::Violation};

    #[test]
    fn leader_is_named_where_it_is_known() {
        let leader = LeaderAddress { id: 2, name: "ctl-2".to_owned(), address: "127.0.0.1:7002".to_owned() };
        let status = not_leading(Some(&leader));
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(status.metadata().get(LEADER).unwrap(), "127.0.0.1:7002");
        assert_eq!(not_leading(None).code(), Code::Unavailable);
    }

    #[test]
    fn each_field_at_fault_is_in_the_details() {
        let fault = |field: &str| Violation { field: field.to_owned(), reason: "is odd".to_owned() };
        let status = refused(&Refusal::Several(vec![fault("edits[1].lun"), fault("edits[2].host")]));
        assert_eq!(status.message(), "edits[1].lun: is odd (and 1 more)");
        let told = status.get_details_bad_request().unwrap().field_violations;
        assert_eq!(
            told.iter().map(|v| v.field.as_str()).collect::<Vec<_>>(),
            ["edits[1].lun", "edits[2].host"]
        );
        let status = invalid("name", "is odd");
        assert_eq!(status.message(), "name: is odd");
        assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].description, "is odd");
        let missing = Refusal::NotFound { kind: Kind::Host, name: "h".to_owned() };
        assert_eq!(refused(&missing).get_details_resource_info().unwrap().resource_name, "h");
    }

    #[test]
    fn unknown_outcome_is_told_apart_from_nothing_happened() {
        assert_eq!(not_written(&WriteError::NoQuorum).code(), Code::Unavailable);
        assert_eq!(not_written(&WriteError::Unknown("x")).code(), Code::DeadlineExceeded);
    }
}
