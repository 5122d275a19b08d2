//! MappingService.

use holdfast_proto::{
    state as records,
    v1::{
        ApplyMappingsRequest, ApplyMappingsResponse, CreateMappingRequest, DeleteMappingRequest,
        DeleteMappingResponse, ListMappingsRequest, ListMappingsResponse, Mapping, MappingChange,
        MappingDifference, WatchMappingsRequest, mapping_change::Change,
        mapping_service_server::MappingService,
    },
};
use holdfast_replica::ids::VolumeId;
use tonic::{Request, Response, Status};

use super::{
    Api, called,
    nouns::Mappings,
    page::page,
    request::client_request,
    status, unexpected,
    watch::{Step, Watch},
};
use crate::state::{
    Body, Kind, Mapped, Outcome, Refusal, StateMachine,
    mapping::{Difference, Target},
    names::printable,
};

/// A mapping as a host sees it.
pub(super) fn mapping_of_host(state: &StateMachine, host: &str, lun: u32, mapped: &Mapped) -> Mapping {
    Mapping {
        volume: state.volume_name(mapped.volume),
        host: host.to_owned(),
        lun,
        read_only: mapped.read_only,
        group: state.group_of_mapping(host, mapped.volume).unwrap_or_default().to_owned(),
    }
}

/// A mapping of a group itself.
pub(super) fn mapping_of_group(state: &StateMachine, group: &str, lun: u32, mapped: &Mapped) -> Mapping {
    Mapping {
        volume: state.volume_name(mapped.volume),
        host: String::new(),
        lun,
        read_only: mapped.read_only,
        group: group.to_owned(),
    }
}

fn rows(state: &StateMachine, request: &ListMappingsRequest) -> Result<Vec<(String, Mapping)>, Refusal> {
    let (volume, host) = (request.volume.as_str(), request.host.as_str());
    let missing = |kind, name: &str| Refusal::NotFound { kind, name: printable(name) };
    if !volume.is_empty() && state.volume_by_name(volume).is_none() {
        return Err(missing(Kind::Volume, volume));
    }
    if !host.is_empty() && state.host(host).is_none() {
        return Err(missing(Kind::Host, host));
    }
    let seen = state.mappings().map(|(host, lun, mapped)| mapping_of_host(state, host, lun, mapped));
    let seen = seen.filter(|m| !request.as_made || m.group.is_empty());
    let of_groups = state.host_groups().filter(|_| request.as_made).flat_map(|(name, group)| {
        let wanted = host.is_empty() || group.hosts.contains(host);
        let luns = group.luns.iter().filter(move |_| wanted);
        luns.map(move |(lun, mapped)| mapping_of_group(state, name, *lun, mapped))
    });
    Ok(seen
        .filter(|m| host.is_empty() || m.host == host)
        .chain(of_groups)
        .filter(|m| volume.is_empty() || m.volume == volume)
        // '/' is in no name and sorts before every letter and digit.
        .map(|m| (format!("{}/{}/{:05}", m.host, m.group, m.lun), m))
        .map(|(key, m)| (if request.as_made { key } else { format!("{}/{:05}", m.host, m.lun) }, m))
        .collect())
}

/// What was, or would be, done about one mapping.
fn difference(state: &StateMachine, difference: &Difference) -> MappingDifference {
    let (host, group) = match &difference.target {
        Target::Host(host) => (host.as_str(), ""),
        Target::Group(group) => ("", group.as_str()),
    };
    let mapping = |(lun, read_only): (u32, bool)| Mapping {
        volume: state.volume_name(difference.volume),
        host: host.to_owned(),
        lun,
        read_only,
        group: group.to_owned(),
    };
    MappingDifference { before: difference.before.map(mapping), after: difference.after.map(mapping) }
}

fn applied(
    state: &StateMachine,
    counts: records::MappingsApplied,
    differences: &[Difference],
) -> ApplyMappingsResponse {
    ApplyMappingsResponse {
        differences: differences.iter().map(|d| difference(state, d)).collect(),
        created: counts.created,
        changed: counts.changed,
        removed: counts.removed,
    }
}

/// A step of a watch as its message.
fn watched(revision: u64, step: Step<Mapping>) -> MappingChange {
    let change = match step {
        Step::Changed(row) => Change::Changed(row),
        Step::Removed(name) => Change::Removed(name),
        Step::Synced => Change::Synced(true),
    };
    MappingChange { change: Some(change), revision }
}

#[tonic::async_trait]
impl MappingService for Api {
    async fn create_mapping(
        &self,
        request: Request<CreateMappingRequest>,
    ) -> Result<Response<Mapping>, Status> {
        let (call, mut request) = called(request)?;
        let id = std::mem::take(&mut request.request_id);
        let client = client_request(id, "CreateMapping", &request);
        let body = Body::CreateMapping(records::CreateMapping {
            request: client,
            volume: request.volume.clone(),
            host: request.host,
            lun: request.lun,
            read_only: request.read_only,
            group: request.group,
        });
        match self.write_access(&call, body).await? {
            Outcome::Mapping(record) => {
                let volume = VolumeId::from_slice(&record.volume_id)
                    .and_then(|id| self.raft.read(|state| state.volume(id).map(|v| v.name.clone())));
                Ok(Response::new(Mapping {
                    volume: volume.unwrap_or(request.volume),
                    host: record.host,
                    lun: record.lun,
                    read_only: record.read_only,
                    group: record.group,
                }))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn list_mappings(
        &self,
        request: Request<ListMappingsRequest>,
    ) -> Result<Response<ListMappingsResponse>, Status> {
        let request = request.into_inner();
        let rows =
            self.read(|state| rows(state, &request)).await?.map_err(|refusal| status::refused(&refusal))?;
        let (mappings, next_page_token) = page(rows, request.page_size, &request.page_token)?;
        Ok(Response::new(ListMappingsResponse { mappings, next_page_token }))
    }

    type WatchMappingsStream = Watch<MappingChange>;

    async fn watch_mappings(
        &self,
        request: Request<WatchMappingsRequest>,
    ) -> Result<Response<Self::WatchMappingsStream>, Status> {
        let request = request.into_inner();
        self.watch(Mappings { host: request.host, volume: request.volume }, request.after_revision, watched)
            .await
            .map(Response::new)
    }

    async fn delete_mapping(
        &self,
        request: Request<DeleteMappingRequest>,
    ) -> Result<Response<DeleteMappingResponse>, Status> {
        let (call, mut request) = called(request)?;
        let id = std::mem::take(&mut request.request_id);
        let client = client_request(id, "DeleteMapping", &request);
        let body = Body::DeleteMapping(records::DeleteMapping {
            request: client,
            volume: request.volume,
            host: request.host,
            group: request.group,
        });
        self.write_access(&call, body).await?;
        Ok(Response::new(DeleteMappingResponse {}))
    }

    async fn apply_mappings(
        &self,
        request: Request<ApplyMappingsRequest>,
    ) -> Result<Response<ApplyMappingsResponse>, Status> {
        let (call, mut request) = called(request)?;
        let id = std::mem::take(&mut request.request_id);
        let client = client_request(id, "ApplyMappings", &request);
        let edits = request.edits.into_iter().map(|edit| records::MappingEdit {
            volume: edit.volume,
            host: edit.host,
            group: edit.group,
            lun: edit.lun,
            read_only: edit.read_only,
            remove: edit.remove,
        });
        let command =
            records::ApplyMappings { request: client, edits: edits.collect(), prune: request.prune };
        if request.dry_run {
            let planned = self.read(|state| {
                state.plan_mappings(&command).map(|(counts, all)| applied(state, counts, &all))
            });
            return planned.await?.map(Response::new).map_err(|refusal| status::refused(&refusal));
        }
        match self.write_access(&call, Body::ApplyMappings(command)).await? {
            Outcome::Mappings(counts, all) => {
                Ok(Response::new(self.raft.read(|state| applied(state, counts, &all))))
            }
            other => Err(unexpected(&other)),
        }
    }
}
