//! Requests to the leader whose outcome must become known: asked again by the same id until it is.
//!
//! Invariants: a request is answered once; "not executed" is said only while no attempt of it may have reached a leader, or when
//! a leader says it of every attempt; an outcome is told only when this node has installed its index. A leader that falls silent
//! is left with its session, and the next one is asked by the same id: a pause of a leader costs time, not the outcome. A lapse of
//! the lease ends the asking only when the sessions of hosts end too.

use std::{
    error::Error as _,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use holdfast_proto::{
    node::{
        AwaitBarrierRequest, EstablishUnitAttentionRequest, ProposeReservationRequest,
        node_agent_client::NodeAgentClient,
    },
    state,
};
use holdfast_scsi::{sense::Sense, status::Status as ScsiStatus};
use holdfast_telemetry::propagation::Propagate;
use tokio::{sync::watch, time};
use tonic::{Code, Status, service::interceptor::InterceptedService, transport::Channel};
use tracing::Instrument as _;

use super::handle::{
    EstablishUnitAttention, Established, ProposalResult, ProposeReservation, ProposedChange, Reply,
    UnitAttentionScope,
};
use crate::{
    clock,
    data_plane::limits::HOLD_MS_MAX,
    view::{Shared, parse},
};

/// Name of the metadata by which a member names the leader.
pub(super) const LEADER: &str = "holdfast-leader";
/// One attempt; the controller's barrier is bounded by a lease.
const ATTEMPT_MAX: Duration = Duration::from_secs(15);
/// Name of the metadata by which a refusal is about all attempts.
const SETTLED: &str = "holdfast-settled";
/// How often the lease is looked at while waiting.
const LOOK: Duration = Duration::from_millis(100);
/// Operation code of PERSISTENT RESERVE OUT (SPC-5 6.16).
const RESERVE_OUT: u8 = 0x5f;
/// Pause before the next attempt.
const PAUSE: Duration = Duration::from_millis(20);
/// Without a lease for so long a node has ended its sessions.
const LEASELESS_MAX: Duration = Duration::from_millis(HOLD_MS_MAX);
/// A request that never reached a leader is given up after this time: the initiator may be told BUSY.
const UNSENT_MAX: Duration = Duration::from_secs(5);

/// A client whose calls carry the trace that they belong to.
type Client = NodeAgentClient<InterceptedService<Channel, Propagate>>;

/// What a request needs of the agent.
#[derive(Clone)]
pub(super) struct Road {
    pub(super) shared: Arc<Shared>,
    /// The connection of the present session.
    pub(super) leader: watch::Receiver<Option<Channel>>,
    /// Log index that every worker has installed.
    pub(super) installed: watch::Receiver<u64>,
}

/// What an attempt told.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Attempt<T> {
    Known(T),
    /// The leader says that nothing happened by this attempt.
    Refused(Code, String),
    /// The leader says that nothing happened by any attempt with this id, and nothing will.
    Settled(Code, String),
    /// It never reached a leader.
    Unsent,
    /// It may have.
    Unknown,
}

enum End<T> {
    Known(T),
    NotExecuted(Code, String),
    Unknown,
}

impl Road {
    fn leased(&self) -> bool {
        self.shared.gate.open(clock::now_ms())
    }

    /// Completes when this node has had no lease for so long that the sessions of its hosts end: nobody is left to be answered.
    async fn given_up(&self) {
        let mut leased_at = time::Instant::now();
        while leased_at.elapsed() < LEASELESS_MAX {
            if self.leased() {
                leased_at = time::Instant::now();
            } else if self.shared.cut_off.load(Ordering::Acquire) {
                return;
            }
            time::sleep(LOOK).await;
        }
    }

    /// Asks until the outcome is known, or nobody is left to be told.
    async fn ask<T, F>(&mut self, call: impl FnMut(Client) -> F) -> End<T>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let looker = self.clone();
        tokio::select! {
            end = self.ask_on(call) => end,
            () = looker.given_up() => End::Unknown,
        }
    }

    async fn ask_on<T, F>(&mut self, mut call: impl FnMut(Client) -> F) -> End<T>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let begun = time::Instant::now();
        let mut maybe_sent = false;
        loop {
            let channel = self.leader.borrow_and_update().clone();
            let attempt = match channel {
                None => Attempt::Unsent,
                Some(channel) => {
                    let call = call(NodeAgentClient::with_interceptor(channel, Propagate));
                    tokio::select! {
                        // What has been answered counts, also when the session has ended since.
                        biased;
                        result = time::timeout(ATTEMPT_MAX, call) => match result {
                            Ok(Ok(response)) => Attempt::Known(response),
                            Ok(Err(status)) => judge(&status),
                            Err(_) => Attempt::Unknown,
                        },
                        // The session with this leader is over: it is paused or cut off, or leads no more.
                        _ = self.leader.changed() => Attempt::Unknown,
                    }
                }
            };
            match attempt {
                Attempt::Known(response) => return End::Known(response),
                Attempt::Settled(code, reason) => return End::NotExecuted(code, reason),
                Attempt::Refused(code, reason) if !maybe_sent => return End::NotExecuted(code, reason),
                // Its version or epoch has passed for good, but the attempt before may have been in time, and its
                // outcome forgotten since.
                Attempt::Refused(Code::Aborted | Code::FailedPrecondition | Code::InvalidArgument, _) => {
                    return End::Unknown;
                }
                Attempt::Refused(..) => {}
                Attempt::Unsent if !maybe_sent && (begun.elapsed() >= UNSENT_MAX || !self.leased()) => {
                    return End::NotExecuted(Code::Unavailable, "no controller leads".into());
                }
                Attempt::Unsent => {}
                Attempt::Unknown => maybe_sent = true,
            }
            // A new session wakes us at once.
            let _ = time::timeout(PAUSE, self.leader.changed()).await;
        }
    }

    /// Waits until every worker has installed `index`. False when nobody is left to be told.
    async fn until_installed(&mut self, index: u64) -> bool {
        let mut installed = self.installed.clone();
        let looker = self.clone();
        tokio::select! {
            result = installed.wait_for(|now| *now >= index) => result.is_ok(),
            () = looker.given_up() => false,
        }
    }
}

pub(super) fn judge<T>(status: &Status) -> Attempt<T> {
    // A status with a source was made on this side: the connection failed, before or after the leader got the request.
    if status.source().is_some() {
        return Attempt::Unknown;
    }
    match status.code() {
        code @ (Code::FailedPrecondition | Code::Aborted) if status.metadata().contains_key(SETTLED) => {
            Attempt::Settled(code, status.message().to_owned())
        }
        Code::FailedPrecondition if status.metadata().contains_key(LEADER) => Attempt::Unsent,
        code @ (Code::Unavailable
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::InvalidArgument
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::NotFound
        | Code::ResourceExhausted
        | Code::Unimplemented) => Attempt::Refused(code, status.message().to_owned()),
        _ => Attempt::Unknown,
    }
}

/// Carries a proposal to its end.
pub(super) async fn propose_reservation(
    road: Road,
    proposal: ProposeReservation,
    reply: Reply<ProposalResult>,
) {
    let what = match &proposal.change {
        ProposedChange::Command { cdb, .. } if cdb.first() == Some(&RESERVE_OUT) => "PERSISTENT RESERVE OUT",
        ProposedChange::Command { .. } => "command that changes the unit",
        ProposedChange::NexusLost => "nexus lost",
        ProposedChange::Reset => "reset",
        ProposedChange::OperationEnded { .. } => "operation ended",
    };
    let span = holdfast_telemetry::span!(
        "proposal",
        otel.name = what,
        volume = %proposal.volume,
        nexus = %proposal.nexus,
        outcome = tracing::field::Empty,
    );
    let result = proposed(road, proposal).instrument(span.clone()).await;
    if !span.is_disabled() {
        span.record("outcome", tracing::field::debug(&result));
    }
    reply(result);
}

async fn proposed(mut road: Road, proposal: ProposeReservation) -> ProposalResult {
    let (event, cdb, parameter_list) = match proposal.change {
        ProposedChange::Command { cdb, parameter_list } => {
            (state::UnitEvent::Unspecified, cdb.to_vec(), parameter_list)
        }
        ProposedChange::NexusLost => (state::UnitEvent::NexusLost, Vec::new(), Vec::new()),
        ProposedChange::Reset => (state::UnitEvent::Reset, Vec::new(), Vec::new()),
        ProposedChange::OperationEnded { failed: false } => {
            (state::UnitEvent::OperationComplete, Vec::new(), Vec::new())
        }
        ProposedChange::OperationEnded { failed: true } => {
            (state::UnitEvent::OperationFailed, Vec::new(), Vec::new())
        }
    };
    let request = ProposeReservationRequest {
        proposal_id: proposal.proposal_id.to_vec(),
        volume_id: proposal.volume.0.to_vec(),
        epoch: Some(parse::epoch_record(proposal.epoch)),
        expected_version: proposal.expected_version,
        nexus: Some(parse::nexus_name(&proposal.nexus)),
        cdb,
        parameter_list,
        now_unix_ms: proposal.now_unix_ms,
        event: event.into(),
    };
    let end = road
        .ask(|mut client| {
            let request = request.clone();
            async move { client.propose_reservation(request).await.map(tonic::Response::into_inner) }
        })
        .await;
    match end {
        End::Known(response) => match response.outcome.as_ref().and_then(outcome) {
            Some(ProposalResult::Outcome { status: ScsiStatus::Good, version, .. })
                if !road
                    .until_installed(version)
                    .instrument(holdfast_telemetry::span!("install", version))
                    .await =>
            {
                ProposalResult::Unknown
            }
            Some(result) => result,
            // An outcome that cannot be read is none that may be told.
            None => ProposalResult::Unknown,
        },
        End::NotExecuted(Code::Aborted, _) => ProposalResult::StaleVersion,
        End::NotExecuted(_, reason) => ProposalResult::NotExecuted(reason),
        End::Unknown => ProposalResult::Unknown,
    }
}

fn outcome(record: &state::ProposalOutcome) -> Option<ProposalResult> {
    let status = u8::try_from(record.status).ok().and_then(ScsiStatus::from_code)?;
    let sense = match status {
        ScsiStatus::CheckCondition => Some(Sense::parse(&record.sense)?),
        _ => None,
    };
    Some(ProposalResult::Outcome { status, sense, version: record.version })
}

/// Carries a Unit Attention to its end.
pub(super) async fn establish_unit_attention(
    mut road: Road,
    wanted: EstablishUnitAttention,
    reply: Reply<Established>,
) {
    let (only, except) = match &wanted.scope {
        UnitAttentionScope::All => (None, None),
        UnitAttentionScope::Only(nexus) => (Some(parse::nexus_name(nexus)), None),
        UnitAttentionScope::Except(nexus) => (None, Some(parse::nexus_name(nexus))),
    };
    let additional = u16::from_be_bytes([wanted.additional.asc, wanted.additional.ascq]);
    let event = state::UnitAttentionEvent {
        volume_id: wanted.volume.0.to_vec(),
        additional: u32::from(additional),
        only,
        except,
        ..Default::default()
    };
    let request = EstablishUnitAttentionRequest {
        request_id: wanted.request_id.to_vec(),
        epoch: Some(parse::epoch_record(wanted.epoch)),
        event: Some(event),
    };
    let end = road
        .ask(|mut client| {
            let request = request.clone();
            async move { client.establish_unit_attention(request).await.map(tonic::Response::into_inner) }
        })
        .await;
    reply(match end {
        End::Known(response) if road.until_installed(response.index).await => Established::Done,
        End::Known(_) | End::Unknown => Established::Unknown,
        End::NotExecuted(_, reason) => Established::NotExecuted(reason),
    });
}

/// Waits for the barrier of a commit. It changes nothing, so an attempt whose fate is unknown is merely repeated.
pub(super) async fn await_barrier(mut road: Road, index: u64, reply: Reply<bool>) {
    let end =
        road.ask(|mut client| async move { client.await_barrier(AwaitBarrierRequest { index }).await }).await;
    reply(matches!(end, End::Known(_)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::metadata::MetadataValue;

    #[test]
    fn only_what_a_leader_says_is_definite() {
        let judged = |status: Status| judge::<()>(&status);
        assert!(matches!(judged(Status::unavailable("no quorum")), Attempt::Refused(Code::Unavailable, _)));
        assert!(matches!(judged(Status::aborted("version")), Attempt::Refused(Code::Aborted, _)));
        assert_eq!(judged(Status::deadline_exceeded("barrier")), Attempt::Unknown);
        assert_eq!(judged(Status::internal("?")), Attempt::Unknown);
        assert_eq!(judged(Status::cancelled("?")), Attempt::Unknown);
        let broken = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        assert_eq!(judged(Status::from_error(Box::new(broken))), Attempt::Unknown);
        let mut elsewhere = Status::failed_precondition("not the leader");
        elsewhere.metadata_mut().insert(LEADER, MetadataValue::from_static("127.0.0.1:1"));
        assert_eq!(judged(elsewhere), Attempt::Unsent);
    }

    #[test]
    fn outcome_that_cannot_be_read_is_none() {
        let record =
            |status, sense| state::ProposalOutcome { status, sense, version: 9, ..Default::default() };
        assert!(outcome(&record(0x18, vec![])).is_some());
        assert!(outcome(&record(0x02, vec![])).is_none());
        assert!(outcome(&record(0x99, vec![])).is_none());
    }
}
