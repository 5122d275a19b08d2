//! MappingService.

use holdfast_proto::{
    state as records,
    v1::{
        CreateMappingRequest, DeleteMappingRequest, DeleteMappingResponse, ListMappingsRequest,
        ListMappingsResponse, Mapping, mapping_service_server::MappingService,
    },
};
use holdfast_replica::ids::VolumeId;
use tonic::{Request, Response, Status};

use super::{Api, called, page::page, request::client_request, status, unexpected};
use crate::state::{Body, Kind, Outcome, Refusal, StateMachine, names::printable};

fn rows(state: &StateMachine, volume: &str, host: &str) -> Result<Vec<(String, Mapping)>, Refusal> {
    let missing = |kind, name: &str| Refusal::NotFound { kind, name: printable(name) };
    if !volume.is_empty() && state.volume_by_name(volume).is_none() {
        return Err(missing(Kind::Volume, volume));
    }
    if !host.is_empty() && state.host(host).is_none() {
        return Err(missing(Kind::Host, host));
    }
    let all = state.mappings().map(|(host, lun, mapped)| Mapping {
        volume: state.volume_name(mapped.volume),
        host: host.to_owned(),
        lun,
        read_only: mapped.read_only,
    });
    Ok(all
        .filter(|m| (volume.is_empty() || m.volume == volume) && (host.is_empty() || m.host == host))
        // '/' is in no name and sorts before every letter and digit.
        .map(|m| (format!("{}/{:05}", m.host, m.lun), m))
        .collect())
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
        });
        match self.write(&call, body).await? {
            Outcome::Mapping(record) => {
                let volume = VolumeId::from_slice(&record.volume_id)
                    .and_then(|id| self.raft.read(|state| state.volume(id).map(|v| v.name.clone())));
                Ok(Response::new(Mapping {
                    volume: volume.unwrap_or(request.volume),
                    host: record.host,
                    lun: record.lun,
                    read_only: record.read_only,
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
        let rows = self
            .read(|state| rows(state, &request.volume, &request.host))
            .await?
            .map_err(|refusal| status::refused(&refusal))?;
        let (mappings, next_page_token) = page(rows, request.page_size, &request.page_token)?;
        Ok(Response::new(ListMappingsResponse { mappings, next_page_token }))
    }

    async fn delete_mapping(
        &self,
        request: Request<DeleteMappingRequest>,
    ) -> Result<Response<DeleteMappingResponse>, Status> {
        let (call, mut request) = called(request)?;
        let id = std::mem::take(&mut request.request_id);
        let client = client_request(id, "DeleteMapping", &request);
        let (volume, host) = (request.volume, request.host);
        self.write(&call, Body::DeleteMapping(records::DeleteMapping { request: client, volume, host }))
            .await?;
        Ok(Response::new(DeleteMappingResponse {}))
    }
}
