//! The management API: what people and programs talk to.
//!
//! | Looking for | Module |
//! |---|---|
//! | a service | `audit`, `cluster`, `controller`, `node`, `volume`, `host`, `group`, `mapping`, `reservation`, `session`, `scrub`, `job`, `event` |
//! | refusals as gRPC statuses | `status` |
//! | copies made, moved, removed; forced recovery | `replica` |
//! | snapshots and clones | `snapshot` |
//! | request ids | `request` |
//! | pages of a list | `page` |
//! | why a command would conflict | `explain` |
//! | watches of resources | `watch`, `nouns` |
//!
//! Invariants: a read shows everything that was acknowledged before it began (ReadIndex); a change is decided by the state
//! machine, and checks here only make better messages of what it would refuse; a secret is sealed before it is proposed, and
//! never returned.

mod audit;
mod cluster;
mod controller;
mod event;
mod explain;
mod group;
mod handover;
mod host;
mod job;
mod mapping;
mod node;
mod nouns;
mod page;
mod replica;
mod request;
mod reservation;
mod restore;
mod scrub;
mod session;
mod snapshot;
pub(crate) mod status;
mod volume;
mod volume_view;
mod watch;

use std::sync::Arc;

use holdfast_pki::Identity;
use holdfast_proto::state::ClientRequest;
use holdfast_proto::v1::{
    audit_service_server::AuditServiceServer, cluster_service_server::ClusterServiceServer,
    controller_service_server::ControllerServiceServer, event_service_server::EventServiceServer,
    host_group_service_server::HostGroupServiceServer, host_service_server::HostServiceServer,
    job_service_server::JobServiceServer, mapping_service_server::MappingServiceServer,
    node_service_server::NodeServiceServer, reservation_service_server::ReservationServiceServer,
    scrub_service_server::ScrubServiceServer, session_service_server::SessionServiceServer,
    volume_service_server::VolumeServiceServer,
};
use tonic::{Status, service::RoutesBuilder};

use crate::{
    lease::{Manager, manager::unix_ms},
    raft::{Handle, ReadError, WriteError},
    server::Call,
    session::{NodeAgentService, registry::Registry},
    state::{Body, Command, Outcome, StateMachine},
};

/// What all management services share; to be cloned freely.
#[derive(Clone)]
pub struct Api {
    raft: Handle,
    leases: Manager,
    identity: Arc<Identity>,
    /// Data nodes that can be asked.
    nodes: Registry,
}

/// Adds the services for data nodes and for management to a server. [`Manager::run`] has to run beside them.
pub fn install(routes: &mut RoutesBuilder, raft: Handle, leases: Manager, identity: Arc<Identity>) {
    let nodes = Registry::default();
    routes.add_service(NodeAgentService::new(raft.clone(), leases.clone(), nodes.clone()).into_server());
    let api = Api { raft, leases, identity, nodes };
    routes
        .add_service(AuditServiceServer::new(api.clone()))
        .add_service(ClusterServiceServer::new(api.clone()))
        .add_service(ControllerServiceServer::new(api.clone()))
        .add_service(NodeServiceServer::new(api.clone()))
        .add_service(VolumeServiceServer::new(api.clone()))
        .add_service(HostServiceServer::new(api.clone()))
        .add_service(HostGroupServiceServer::new(api.clone()))
        .add_service(MappingServiceServer::new(api.clone()))
        .add_service(ReservationServiceServer::new(api.clone()))
        .add_service(SessionServiceServer::new(api.clone()))
        .add_service(ScrubServiceServer::new(api.clone()))
        .add_service(JobServiceServer::new(api.clone()))
        .add_service(EventServiceServer::new(api));
}

impl Api {
    /// Looks at the state, which shows everything that was acknowledged before this call.
    async fn read<R>(&self, look: impl FnOnce(&StateMachine) -> R) -> Result<R, Status> {
        match self.raft.ensure_linearizable().await {
            Ok(_) => Ok(self.raft.read(look)),
            Err(ReadError::NotLeader { .. }) => Err(leader_changed()),
            Err(error) => Err(status::not_confirmed(&error)),
        }
    }

    /// What became of a request that was carried out before, as of every acknowledged change; `None` for a new one.
    async fn answered(&self, request: Option<&ClientRequest>) -> Result<Option<Outcome>, Status> {
        let answer = self.read(|state| state.answer(request)).await?;
        answer.map_err(|refusal| status::refused(&refusal))
    }

    /// Proposes a command and waits until it is committed.
    async fn write(&self, call: &Call, body: Body) -> Result<Outcome, Status> {
        let command = Command::new(unix_ms(), body).by(call.caller.record());
        if !command.fits() {
            return Err(Status::invalid_argument("the request is too large"));
        }
        call.proposed.set();
        match self.raft.write(&command).await {
            Ok(written) => written.response.map_err(|refusal| status::refused(&refusal)),
            Err(WriteError::NotLeader { .. }) => Err(leader_changed()),
            Err(error) => Err(status::not_written(&error)),
        }
    }

    /// As [`Api::write`], for what decides which host may do what: answered once every port that may serve has it. So a host that logs in
    /// after the answer finds it on every path, and one that lost its access has lost it.
    async fn write_access(&self, call: &Call, body: Body) -> Result<Outcome, Status> {
        let outcome = self.write(call, body).await?;
        self.pass_barrier(self.raft.read(StateMachine::head)).await?;
        Ok(outcome)
    }

    /// Waits until every port that may serve has installed the entry at `index`.
    async fn pass_barrier(&self, index: u64) -> Result<(), Status> {
        self.leases.pass_barrier(index).await.map_err(|lost| {
            Status::deadline_exceeded(format!(
                "it is committed, but {lost}; ask again with the same request id"
            ))
        })
    }
}

/// A writing request's call, and its content.
fn called<T>(request: tonic::Request<T>) -> Result<(Call, T), Status> {
    let call = Call::of(&request).ok_or_else(|| Status::internal("a call without a caller"))?;
    Ok((call, request.into_inner()))
}

/// A call reached a member that has just ceased to lead.
fn leader_changed() -> Status {
    Status::unavailable("the controllers are electing a leader; nothing was changed, try again")
}

/// An answer of another kind than the command asks for: a fault of this program.
fn unexpected(outcome: &Outcome) -> Status {
    tracing::error!(?outcome, "a command was answered like another one");
    Status::internal("a command was answered like another one")
}
