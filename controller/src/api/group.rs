//! HostGroupService.

use holdfast_proto::{
    state as records,
    v1::{
        CreateHostGroupRequest, DeleteHostGroupRequest, DeleteHostGroupResponse, GetHostGroupRequest,
        HostGroup, HostGroupChange, HostGroupSpec, HostGroupStatus, ListHostGroupsRequest,
        ListHostGroupsResponse, UpdateHostGroupRequest, WatchHostGroupsRequest, host_group_change::Change,
        host_group_service_server::HostGroupService,
    },
};
use tonic::{Request, Response, Status};

use super::{
    Api, called,
    mapping::mapping_of_group,
    nouns::HostGroups,
    page::page,
    request::client_request,
    status, unexpected,
    watch::{Step, Watch},
};
use crate::state::{Body, Kind, Outcome, Refusal, StateMachine, group::Group, names::printable};

pub(super) fn view(state: &StateMachine, name: &str, group: &Group) -> HostGroup {
    let mappings = group.luns.iter().map(|(lun, mapped)| mapping_of_group(state, name, *lun, mapped));
    HostGroup {
        name: name.to_owned(),
        spec: Some(HostGroupSpec { hosts: group.hosts.iter().cloned().collect() }),
        status: Some(HostGroupStatus { mappings: mappings.collect() }),
    }
}

impl Api {
    fn group_answer(&self, outcome: Outcome) -> Result<Response<HostGroup>, Status> {
        match outcome {
            Outcome::HostGroup(record) => {
                let group =
                    Group::from_record(&record).map_err(|error| Status::internal(error.to_string()))?;
                Ok(Response::new(self.raft.read(|state| view(state, &record.name, &group))))
            }
            other => Err(unexpected(&other)),
        }
    }
}

/// A step of a watch as its message.
fn watched(revision: u64, step: Step<HostGroup>) -> HostGroupChange {
    let change = match step {
        Step::Changed(row) => Change::Changed(row),
        Step::Removed(name) => Change::Removed(name),
        Step::Synced => Change::Synced(true),
    };
    HostGroupChange { change: Some(change), revision }
}

#[tonic::async_trait]
impl HostGroupService for Api {
    async fn create_host_group(
        &self,
        request: Request<CreateHostGroupRequest>,
    ) -> Result<Response<HostGroup>, Status> {
        let (call, mut request) = called(request)?;
        let id = std::mem::take(&mut request.request_id);
        let client = client_request(id, "CreateHostGroup", &request);
        let hosts = request.spec.unwrap_or_default().hosts;
        let body =
            Body::CreateHostGroup(records::CreateHostGroup { request: client, name: request.name, hosts });
        self.write_access(&call, body).await.and_then(|outcome| self.group_answer(outcome))
    }

    async fn get_host_group(
        &self,
        request: Request<GetHostGroupRequest>,
    ) -> Result<Response<HostGroup>, Status> {
        let name = request.into_inner().name;
        let found = self.read(|state| state.host_group(&name).map(|group| view(state, &name, group))).await?;
        let missing = || Refusal::NotFound { kind: Kind::HostGroup, name: printable(&name) };
        found.map(Response::new).ok_or_else(|| status::refused(&missing()))
    }

    async fn list_host_groups(
        &self,
        request: Request<ListHostGroupsRequest>,
    ) -> Result<Response<ListHostGroupsResponse>, Status> {
        let request = request.into_inner();
        let rows = self
            .read(|state| {
                state.host_groups().map(|(name, group)| (name.to_owned(), view(state, name, group))).collect()
            })
            .await?;
        let (groups, next_page_token) = page(rows, request.page_size, &request.page_token)?;
        Ok(Response::new(ListHostGroupsResponse { groups, next_page_token }))
    }

    type WatchHostGroupsStream = Watch<HostGroupChange>;

    async fn watch_host_groups(
        &self,
        request: Request<WatchHostGroupsRequest>,
    ) -> Result<Response<Self::WatchHostGroupsStream>, Status> {
        let request = request.into_inner();
        self.watch(HostGroups, request.after_revision, watched).await.map(Response::new)
    }

    async fn update_host_group(
        &self,
        request: Request<UpdateHostGroupRequest>,
    ) -> Result<Response<HostGroup>, Status> {
        let (call, mut request) = called(request)?;
        let id = std::mem::take(&mut request.request_id);
        let client = client_request(id, "UpdateHostGroup", &request);
        let body = Body::UpdateHostGroup(records::UpdateHostGroup {
            request: client,
            name: request.name,
            add_hosts: request.add_hosts,
            remove_hosts: request.remove_hosts,
        });
        self.write_access(&call, body).await.and_then(|outcome| self.group_answer(outcome))
    }

    async fn delete_host_group(
        &self,
        request: Request<DeleteHostGroupRequest>,
    ) -> Result<Response<DeleteHostGroupResponse>, Status> {
        let (call, mut request) = called(request)?;
        let id = std::mem::take(&mut request.request_id);
        let client = client_request(id, "DeleteHostGroup", &request);
        let body = Body::DeleteHostGroup(records::DeleteHostGroup { request: client, name: request.name });
        self.write_access(&call, body).await?;
        Ok(Response::new(DeleteHostGroupResponse {}))
    }
}
