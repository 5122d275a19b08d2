//! What data nodes talk to: their sessions, proposals of reservations, Unit Attentions.
//!
//! Invariants
//! * Only the leader serves; another member names it.
//! * A proposal is answered GOOD only after its barrier: every port that may serve has installed the change.
//! * UNAVAILABLE, FAILED_PRECONDITION, ABORTED and INVALID_ARGUMENT mean that this call changed nothing; DEADLINE_EXCEEDED means
//!   that the outcome is unknown and can be asked for again by the same id.

mod parts;
pub(crate) mod registry;
mod stream;

pub use self::parts::visible;

use std::collections::VecDeque;

use holdfast_pki::Role;
use holdfast_proto::{
    node::{
        AwaitBarrierRequest, AwaitBarrierResponse, ChangeConfigurationRequest, ChangeConfigurationResponse,
        ChangeOutcome, EstablishUnitAttentionRequest, EstablishUnitAttentionResponse, FromNode, Hello,
        ProposeReservationRequest, ProposeReservationResponse, ToNode, Welcome, change_configuration_request,
        from_node,
        node_agent_server::{NodeAgent, NodeAgentServer},
        to_node,
    },
    state::{self as records, change_configuration::Change},
};
use holdfast_replica::ids::VolumeId;
use holdfast_scsi::status::Status as ScsiStatus;
use tokio::{
    sync::mpsc,
    time::{Duration, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, metadata::MetadataValue};
use tracing::Instrument as _;

use self::{registry::Registry, stream::Session};
use crate::{
    api::status,
    lease::{LEASE_MS, Manager, RENEW_INTERVAL_MS, manager::unix_ms},
    raft::{Commits, Handle, Written},
    server::{Call, Caller},
    state::{Body, Command, Outcome, Refusal, Volume},
};

/// How long a new connection may take to say hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Messages between a session and its connection.
const CHANNEL_MESSAGES: usize = 16;

/// The service for data nodes.
#[derive(Clone)]
pub struct NodeAgentService {
    raft: Handle,
    leases: Manager,
    sessions: Registry,
}

impl NodeAgentService {
    /// Of this member.
    pub(crate) fn new(raft: Handle, leases: Manager, sessions: Registry) -> NodeAgentService {
        NodeAgentService { raft, leases, sessions }
    }

    /// To be added to a server.
    pub fn into_server(self) -> NodeAgentServer<NodeAgentService> {
        NodeAgentServer::new(self)
    }

    async fn write(&self, call: &Call, body: Body) -> Result<Written, Status> {
        let command = Command::new(unix_ms(), body).by(call.caller.record());
        if !command.fits() {
            return Err(Status::invalid_argument("the request is too large"));
        }
        // Without a quorum nothing is proposed, so that the owner may say BUSY.
        self.raft.ensure_linearizable().await.map_err(|error| status::not_confirmed(&error))?;
        call.proposed.set();
        self.raft.write(&command).await.map_err(|error| status::not_written(&error))
    }

    /// Number of the calling node.
    fn caller(&self, caller: &Caller) -> Result<u32, Status> {
        self.raft
            .read(|state| state.node_by_name(&caller.name).map(|node| node.number))
            .ok_or_else(|| Status::failed_precondition(format!("node {} has not joined yet", caller.name)))
    }

    async fn pass_barrier(&self, index: u64) -> Result<(), Status> {
        self.leases
            .pass_barrier(index)
            .instrument(holdfast_telemetry::span!("barrier", index))
            .await
            .map_err(|lost| Status::deadline_exceeded(format!("{lost}; ask again with the same id")))
    }

    /// The state for a node that has joined: from where it stands, or whole.
    fn start(&self, hello: &Hello) -> (bool, VecDeque<ToNode>, Commits) {
        if let Some(commits) =
            self.raft.follow_after(hello.applied_index).filter(|_| hello.applied_index != 0)
        {
            return (true, VecDeque::new(), commits);
        }
        let ((index, changes), commits) =
            self.raft.read_and_follow(|state, index| (index, state.node_changes()));
        let parts = parts::snapshot(index, changes);
        let messages = parts.into_iter().map(|part| message(to_node::Message::Snapshot(part))).collect();
        (false, messages, commits)
    }
}

#[tonic::async_trait]
impl NodeAgent for NodeAgentService {
    type SessionStream = ReceiverStream<Result<ToNode, Status>>;

    async fn session(
        &self,
        request: Request<tonic::Streaming<FromNode>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let call = node_call(&request)?;
        let caller = &call.caller;
        let mut inbound = request.into_inner();
        let first = timeout(HELLO_TIMEOUT, inbound.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no hello came"))??;
        let Some(FromNode { message: Some(from_node::Message::Hello(hello)) }) = first else {
            return Err(Status::invalid_argument("the first message of a session is hello"));
        };
        if hello.name != caller.name {
            return Err(Status::permission_denied(format!(
                "hello.name: the certificate is of node {}, not of '{}'",
                caller.name,
                crate::state::names::printable(&hello.name)
            )));
        }
        let term = {
            let leads = *self.raft.leadership().borrow();
            if !leads.am_leader {
                return Err(status::not_leading(self.raft.leader().as_ref()));
            }
            leads.term
        };
        let written = self.write(&call, Body::NodeJoin(join_of(&hello))).await?;
        let node = match written.response {
            Ok(Outcome::Node(node)) => node,
            Ok(_) => return Err(Status::internal("a join was answered like another command")),
            Err(refusal) => return Err(status::refused(&refusal)),
        };
        self.leases.joined(node.number, node.incarnation);
        if hello.applied_index <= self.raft.applied_index() {
            // So that a barrier after an election need not wait for the first report.
            self.leases.applied(node.number, node.incarnation, hello.applied_index);
        }
        let (superseded, questions) = self.sessions.begin(node.number);
        self.leases.begin_reports(node.number);
        let (resumes, mut outbox, commits) = self.start(&hello);
        let cluster = self.raft.read(|state| state.cluster().cloned()).unwrap_or_default();
        outbox.push_front(message(to_node::Message::Welcome(Welcome {
            cluster_id: cluster.id,
            target_iqn: cluster.target_iqn,
            node: Some(node.clone()),
            lease_ms: LEASE_MS,
            renew_interval_ms: RENEW_INTERVAL_MS,
            resumes,
        })));
        tracing::info!(node = %node.name, incarnation = node.incarnation, resumes, "session began");
        let (outbound, stream) = mpsc::channel(CHANNEL_MESSAGES);
        let session = Session {
            raft: self.raft.clone(),
            leases: self.leases.clone(),
            node,
            commits,
            outbox,
            inbound,
            outbound,
            superseded,
            questions,
            registry: self.sessions.clone(),
            term,
            caller: call.caller.record(),
        };
        tokio::spawn(session.run());
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn propose_reservation(
        &self,
        request: Request<ProposeReservationRequest>,
    ) -> Result<Response<ProposeReservationResponse>, Status> {
        let call = node_call(&request)?;
        let proposer = self.caller(&call.caller)?;
        let request = request.into_inner();
        let (volume_id, expected_version) = (request.volume_id.clone(), request.expected_version);
        let body = Body::ProposeReservation(records::ProposeReservation {
            proposal_id: request.proposal_id,
            volume_id: request.volume_id,
            epoch: request.epoch,
            proposer,
            expected_version: request.expected_version,
            nexus: request.nexus,
            cdb: request.cdb,
            parameter_list: request.parameter_list,
            now_unix_ms: request.now_unix_ms,
            event: request.event,
        });
        let outcome = match self.write(&call, body).await?.response {
            Ok(Outcome::Proposal(outcome)) => outcome,
            Ok(_) => return Err(Status::internal("a proposal was answered like another command")),
            Err(refusal) => {
                let mut status = status::refused(&refusal);
                let stale = matches!(refusal, Refusal::StaleEpoch { .. } | Refusal::StaleVersion { .. });
                if stale && self.raft.read(|state| state.is_settled_as_refused(&volume_id, expected_version))
                {
                    status.metadata_mut().insert(status::SETTLED, MetadataValue::from_static("1"));
                }
                return Err(status);
            }
        };
        if outcome.status == u32::from(ScsiStatus::Good as u8) {
            self.pass_barrier(outcome.version).await?;
        }
        Ok(Response::new(ProposeReservationResponse { outcome: Some(outcome) }))
    }

    async fn await_barrier(
        &self,
        request: Request<AwaitBarrierRequest>,
    ) -> Result<Response<AwaitBarrierResponse>, Status> {
        self.caller(&node_call(&request)?.caller)?;
        // The commit may have been another leader's: it has to be applied here before its barrier can be judged.
        let applied = self.raft.ensure_linearizable().await.map_err(|error| status::not_confirmed(&error))?;
        let index = request.get_ref().index;
        if index > applied {
            return Err(Status::invalid_argument(format!("index: {index} is not committed")));
        }
        self.pass_barrier(index).await?;
        Ok(Response::new(AwaitBarrierResponse {}))
    }

    async fn change_configuration(
        &self,
        request: Request<ChangeConfigurationRequest>,
    ) -> Result<Response<ChangeConfigurationResponse>, Status> {
        let call = node_call(&request)?;
        let proposer = self.caller(&call.caller)?;
        let request = request.into_inner();
        let id = VolumeId::from_slice(&request.volume_id)
            .ok_or_else(|| Status::invalid_argument("volume_id: not 16 bytes"))?;
        // What an earlier call made of it has to be seen here.
        self.raft.ensure_linearizable().await.map_err(|error| status::not_confirmed(&error))?;
        let answer = |outcome: ChangeOutcome, reason: String| {
            let volume = self.raft.read(|state| state.volume(id).map(Volume::record));
            let outcome = i32::from(outcome);
            Ok(Response::new(ChangeConfigurationResponse { outcome, reason, volume }))
        };
        let Some(lease_term) = self.leases.term_of(proposer, request.owner_incarnation) else {
            let reason = "the leader knows of no lease of this process";
            return answer(ChangeOutcome::RefusedLease, reason.to_owned());
        };
        let body = Body::ChangeConfiguration(records::ChangeConfiguration {
            volume_id: request.volume_id,
            expected: request.expected,
            proposer,
            owner_incarnation: request.owner_incarnation,
            lease_term,
            change: request.change.map(|change| match change {
                change_configuration_request::Change::Evict(evict) => Change::Evict(evict),
                change_configuration_request::Change::Admit(admit) => Change::Admit(admit),
                change_configuration_request::Change::HandOver(hand_over) => Change::HandOver(hand_over),
            }),
        });
        match self.write(&call, body).await?.response {
            Ok(Outcome::Volume(volume)) => {
                let outcome = i32::from(ChangeOutcome::Committed);
                let volume = Some(volume);
                Ok(Response::new(ChangeConfigurationResponse { outcome, reason: String::new(), volume }))
            }
            Ok(_) => Err(Status::internal("a change of a configuration was answered like another command")),
            Err(refusal) => {
                let outcome = match refusal {
                    Refusal::StaleEpoch { .. } | Refusal::StaleIncarnation { .. } => {
                        ChangeOutcome::RefusedEpoch
                    }
                    Refusal::NoLease { .. } | Refusal::StaleLeaseTerm { .. } => ChangeOutcome::RefusedLease,
                    Refusal::Precondition(_) => ChangeOutcome::RefusedRule,
                    other => return Err(status::refused(&other)),
                };
                answer(outcome, refusal.to_string())
            }
        }
    }

    async fn establish_unit_attention(
        &self,
        request: Request<EstablishUnitAttentionRequest>,
    ) -> Result<Response<EstablishUnitAttentionResponse>, Status> {
        let call = node_call(&request)?;
        let proposer = self.caller(&call.caller)?;
        let request = request.into_inner();
        let body = Body::EstablishUnitAttention(records::EstablishUnitAttention {
            request_id: request.request_id,
            epoch: request.epoch,
            proposer,
            event: request.event,
        });
        let index = match self.write(&call, body).await?.response {
            Ok(Outcome::Established(index)) => index,
            Ok(_) => return Err(Status::internal("a Unit Attention was answered like another command")),
            Err(refusal) => return Err(status::refused(&refusal)),
        };
        self.pass_barrier(index).await?;
        Ok(Response::new(EstablishUnitAttentionResponse { index }))
    }
}

/// What a node's hello asks the log for.
pub fn join_of(hello: &Hello) -> records::NodeJoin {
    records::NodeJoin {
        name: hello.name.clone(),
        boot_id: hello.boot_id.clone(),
        process_id: hello.process_id.clone(),
        portals: hello.portals.clone(),
        interconnect: hello.interconnect.clone(),
        pools: hello.pools.clone(),
        version: hello.version.chars().take(64).collect(),
        replicates: hello.replicates,
    }
}

fn message(message: to_node::Message) -> ToNode {
    ToNode { message: Some(message) }
}

/// The caller as its verified certificate tells it.
fn node_call<T>(request: &Request<T>) -> Result<Call, Status> {
    Call::of(request)
        .filter(|call| call.caller.role == Role::Node)
        .ok_or_else(|| Status::unauthenticated("a certificate of a data node is needed"))
}
