//! ControllerService: the members themselves.

use std::time::Duration;

use holdfast_proto::{
    state as records,
    v1::{
        AddControllerRequest, ListControllersRequest, ListControllersResponse, Member,
        RemoveControllerRequest, TransferLeadershipRequest,
        controller_service_client::ControllerServiceClient, controller_service_server::ControllerService,
    },
};
use holdfast_telemetry::propagation::Propagate;
use tonic::{Code, Request, Response, Status};

use super::{Api, called, leader_changed, request::client_request, status};
use crate::{
    raft::{
        Member as RaftMember, connect,
        membership::{MembershipError, Wish},
    },
    server::{Call, stamp_metadata},
    state::{
        Body,
        names::{check_address, check_name, printable},
    },
};

/// How long a leader that is to be removed looks for a successor that does it.
const SUCCESSION_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause between two tries.
const SUCCESSION_RETRY: Duration = Duration::from_millis(50);

impl Api {
    /// The members as this leader sees them.
    pub(super) fn members(&self) -> Vec<Member> {
        let metrics = self.raft.metrics();
        let leader = metrics.leader.map_or(0, |leader| leader.id);
        let members = metrics.members.into_iter().map(|m| Member {
            id: m.id,
            name: m.member.name,
            address: m.member.address,
            voter: m.voter,
            matched_index: m.matched_index,
            live: m.live,
            store_id: m.member.store.to_string(),
            leader: m.id == leader,
        });
        members.collect()
    }

    /// The answer to a change of the members. What is refused because it is so already may have been done by the same request, sent
    /// twice: that is no refusal.
    async fn told(
        &self,
        request: Option<records::ClientRequest>,
        changed: Result<(), MembershipError>,
    ) -> Result<Response<ListControllersResponse>, Status> {
        let Err(error) = changed else { return Ok(self.listed()) };
        match self.answered(request.as_ref()).await {
            Ok(Some(_)) => Ok(self.listed()),
            Ok(None) | Err(_) => Err(refused(&error)),
        }
    }

    fn listed(&self) -> Response<ListControllersResponse> {
        Response::new(ListControllersResponse { members: self.members() })
    }

    /// Puts into the audit that leadership is handed over, before it is: this member cannot write after it. That it failed is
    /// audited as a call that was refused, so this write does not count as the call's.
    async fn record_transfer(
        &self,
        call: &Call,
        request: Option<records::ClientRequest>,
        to: &Member,
    ) -> Result<(), Status> {
        let body = Body::RecordMembership(records::RecordMembership {
            change: "leader".to_owned(),
            name: to.name.clone(),
            id: to.id,
            address: to.address.clone(),
            request,
        });
        self.write(&Call { proposed: Default::default(), ..call.clone() }, body).await.map(|_| ())
    }
}

fn refused(error: &MembershipError) -> Status {
    let text = error.to_string();
    match error {
        MembershipError::Unknown(_) => Status::not_found(text),
        MembershipError::Exists(_) => Status::already_exists(text),
        MembershipError::Refused(_) => Status::failed_precondition(text),
        MembershipError::NotLeader => leader_changed(),
        MembershipError::NoQuorum => Status::unavailable(text),
        MembershipError::Unclear(_) => Status::deadline_exceeded(text),
    }
}

#[tonic::async_trait]
impl ControllerService for Api {
    async fn list_controllers(
        &self,
        _: Request<ListControllersRequest>,
    ) -> Result<Response<ListControllersResponse>, Status> {
        self.read(|_| ()).await?;
        Ok(self.listed())
    }

    async fn add_controller(
        &self,
        request: Request<AddControllerRequest>,
    ) -> Result<Response<ListControllersResponse>, Status> {
        let (call, mut request) = called(request)?;
        let request_id = std::mem::take(&mut request.request_id);
        let client = client_request(request_id, "AddController", &request);
        check_name("name", &request.name).map_err(|refusal| status::refused(&refusal))?;
        check_address("address", &request.address).map_err(|refusal| status::refused(&refusal))?;
        if request.id == 0 {
            return Err(Status::invalid_argument("id: 0 is no member's; 1 or more"));
        }
        if self.answered(client.as_ref()).await?.is_some() {
            return Ok(self.listed());
        }
        let wish = Wish { caller: call.caller.record(), request: client };
        let added =
            self.raft.add_member(&self.identity, &wish, request.id, &request.name, &request.address).await;
        self.told(wish.request, added).await
    }

    async fn remove_controller(
        &self,
        request: Request<RemoveControllerRequest>,
    ) -> Result<Response<ListControllersResponse>, Status> {
        let (call, mut request) = called(request)?;
        let request_id = std::mem::take(&mut request.request_id);
        let client = client_request(request_id.clone(), "RemoveController", &request);
        if self.answered(client.as_ref()).await?.is_some() {
            return Ok(self.listed());
        }
        let own = self.raft.own_caller().name;
        if request.name == own {
            return self.remove_by_successor(&call, &own, request_id).await;
        }
        let wish = Wish { caller: call.caller.record(), request: client };
        let removed = self.raft.remove_member(&self.identity, &wish, &request.name).await;
        self.told(wish.request, removed).await
    }

    async fn transfer_leadership(
        &self,
        request: Request<TransferLeadershipRequest>,
    ) -> Result<Response<ListControllersResponse>, Status> {
        let (call, mut request) = called(request)?;
        let request_id = std::mem::take(&mut request.request_id);
        let client = client_request(request_id, "TransferLeadership", &request);
        let before = self.answered(client.as_ref()).await?;
        let chosen = self.members().into_iter().find(|known| known.name == request.name);
        if before.is_some() {
            return match chosen {
                Some(chosen) if chosen.leader => Ok(self.listed()),
                _ => Err(Status::aborted(format!(
                    "leadership was handed to {} by this request before, and {} leads now; ask with a new request id",
                    printable(&request.name),
                    self.raft.own_caller().name
                ))),
            };
        }
        if let Some(chosen) = chosen.filter(|chosen| chosen.voter && chosen.live && !chosen.leader) {
            self.record_transfer(&call, client, &chosen).await?;
        }
        self.raft.transfer_leadership(&request.name).await.map_err(|error| refused(&error))?;
        Ok(self.listed())
    }
}

impl Api {
    /// The leader does not remove itself: it hands leadership over, and its successor does. Leadership may move on meanwhile, or
    /// come back.
    async fn remove_by_successor(
        &self,
        call: &Call,
        own: &str,
        request_id: String,
    ) -> Result<Response<ListControllersResponse>, Status> {
        let deadline = tokio::time::Instant::now() + SUCCESSION_TIMEOUT;
        loop {
            if self.raft.leader().is_some_and(|leader| leader.id == self.raft.id()) {
                self.raft.check_removal(own).await.map_err(|error| refused(&error))?;
                let others =
                    self.members().into_iter().filter(|known| known.voter && known.live && !known.leader);
                let Some(successor) = others.max_by_key(|known| known.matched_index) else {
                    return Err(Status::failed_precondition("no other controller answers that could lead"));
                };
                match self.raft.transfer_leadership(&successor.name).await {
                    // It may still come.
                    Ok(()) | Err(MembershipError::Unclear(_)) => {}
                    Err(error) => return Err(refused(&error)),
                }
            }
            let Some(leader) = self.raft.wait_leader(SUCCESSION_TIMEOUT).await else {
                return Err(leader_changed());
            };
            let mut answer = Err(leader_changed());
            if leader.id != self.raft.id() {
                let member = RaftMember::new(leader.name, leader.address);
                let channel = connect(&self.identity, &member)
                    .map_err(|error| Status::unavailable(error.to_string()))?;
                let mut request = Request::new(RemoveControllerRequest {
                    name: own.to_owned(),
                    request_id: request_id.clone(),
                });
                stamp_metadata(request.metadata_mut(), &call.caller)?;
                // The successor's audit tells of it.
                call.proposed.set();
                answer = ControllerServiceClient::with_interceptor(channel, Propagate)
                    .remove_controller(request)
                    .await;
            }
            match answer {
                // Nothing was changed.
                Err(status)
                    if status.code() == Code::Unavailable && tokio::time::Instant::now() < deadline =>
                {
                    tokio::time::sleep(SUCCESSION_RETRY).await;
                }
                answer => return answer,
            }
        }
    }
}
