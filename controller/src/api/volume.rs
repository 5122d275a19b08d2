//! VolumeService.

use holdfast_proto::{
    state as records,
    v1::{
        CreateVolumeRequest, DeleteVolumeRequest, DeleteVolumeResponse, GetVolumeRequest, ListVolumesRequest,
        ListVolumesResponse, MoveVolumeRequest, ResizeVolumeRequest, Volume, VolumeSpec, VolumeStatus,
        volume_service_server::VolumeService,
    },
};
use holdfast_replica::ids::VolumeId;
use holdfast_scsi::identity::LuIdentity;
use tonic::{Request, Response, Status};

use super::{
    Api, called, handover::in_the_way_of_move, page::page, placement, request::client_request, status,
    unexpected,
};
use crate::state::{
    Body, Kind, Outcome, Refusal, StateMachine,
    names::{check_name, printable},
    volume::check_geometry,
};

const BLOCK_SIZE_DEFAULT: u32 = 512;
/// Sector of today's disks, in bytes: what the physical block exponent makes of a logical block.
const PHYSICAL_BLOCK_BYTES: u32 = 4096;

fn view(state: &StateMachine, record: &records::Volume) -> Volume {
    let id = VolumeId::from_slice(&record.id);
    let epoch = record.epoch.unwrap_or_default();
    let pool = record.in_sync.iter().find(|m| m.node == record.owner).or(record.in_sync.first());
    let names =
        |members: &[records::ReplicaMember]| members.iter().map(|m| state.node_name(m.node)).collect();
    Volume {
        name: record.name.clone(),
        spec: Some(VolumeSpec {
            size_bytes: record.size_bytes,
            block_size: record.block_size,
            replicas: record.replicas,
            write_cache: Some(record.write_cache),
            node: pool.map_or(String::new(), |m| state.node_name(m.node)),
            pool: pool.map_or(String::new(), |m| m.pool.clone()),
        }),
        status: Some(VolumeStatus {
            id: id.map_or(String::new(), |id| id.to_string()),
            naa: id.map_or(String::new(), naa),
            owner: if record.owner == 0 { String::new() } else { state.node_name(record.owner) },
            epoch_generation: epoch.generation,
            epoch_number: epoch.number,
            in_sync: names(&record.in_sync),
            min_in_sync: record.min_in_sync,
            state: describe(state, record),
            mappings: id
                .map_or(0, |id| u32::try_from(state.mappings_of_volume(id).count()).unwrap_or(u32::MAX)),
        }),
    }
}

/// The NAA designator that hosts see, in hex.
fn naa(id: VolumeId) -> String {
    let identity = LuIdentity { volume_uuid: id.0, revision: *b"0000" };
    identity.naa().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// "online", "offline: REASON", "deleting".
fn describe(state: &StateMachine, record: &records::Volume) -> String {
    if record.deleting {
        return "deleting".to_owned();
    }
    match state.node(record.owner) {
        None => "offline: no node owns it".to_owned(),
        Some(node) if !node.live => format!("offline: node {} holds no lease", node.name),
        Some(node) if node.incarnation != record.owner_incarnation => {
            format!(
                "offline: node {} has restarted and takes it over once its old lease has run out",
                node.name
            )
        }
        Some(_) => "online".to_owned(),
    }
}

impl Api {
    fn volume_answer(&self, outcome: Outcome) -> Result<Response<Volume>, Status> {
        match outcome {
            Outcome::Volume(record) => Ok(Response::new(self.raft.read(|state| view(state, &record)))),
            other => Err(unexpected(&other)),
        }
    }
}

#[tonic::async_trait]
impl VolumeService for Api {
    async fn create_volume(&self, request: Request<CreateVolumeRequest>) -> Result<Response<Volume>, Status> {
        let (call, mut request) = called(request)?;
        let id = std::mem::take(&mut request.request_id);
        let client = client_request(id, "CreateVolume", &request);
        let refused = |refusal: Refusal| status::refused(&refusal);
        let spec = request.spec.ok_or_else(|| Status::invalid_argument("spec: is missing"))?;
        check_name("name", &request.name).map_err(refused)?;
        let block_size = if spec.block_size == 0 { BLOCK_SIZE_DEFAULT } else { spec.block_size };
        check_geometry(spec.size_bytes, block_size, 0).map_err(refused)?;
        let replicas = if spec.replicas == 0 { 1 } else { spec.replicas };
        // A request that was carried out needs no place any more.
        let (answer, placement) = self
            .read(|state| {
                let answer = state.answer(client.as_ref());
                (answer, placement::choose(state, spec.size_bytes, &spec.node, &spec.pool))
            })
            .await?;
        if let Some(outcome) = answer.map_err(refused)? {
            return self.volume_answer(outcome);
        }
        if self.raft.read(|state| state.volume_by_name(&request.name).is_some_and(|v| !v.deleting)) {
            return Err(refused(Refusal::AlreadyExists { kind: Kind::Volume, name: request.name }));
        }
        let placement = placement
            .map_err(|reason| Status::failed_precondition(format!("no place for the volume: {reason}")))?;
        let body = Body::CreateVolume(records::CreateVolume {
            request: client,
            id: draw_uuid()?.to_vec(),
            name: request.name,
            size_bytes: spec.size_bytes,
            block_size,
            physical_block_exponent: (PHYSICAL_BLOCK_BYTES / block_size.max(1)).checked_ilog2().unwrap_or(0),
            write_cache: spec.write_cache.unwrap_or(true),
            thin: true,
            replicas,
            node: placement.node,
            pool: placement.pool,
            others: Vec::new(),
        });
        self.write(&call, body).await.and_then(|outcome| self.volume_answer(outcome))
    }

    async fn get_volume(&self, request: Request<GetVolumeRequest>) -> Result<Response<Volume>, Status> {
        let name = request.into_inner().name;
        let found = self.read(|state| state.volume_by_name(&name).map(|v| view(state, &v.record()))).await?;
        let missing = || Refusal::NotFound { kind: Kind::Volume, name: printable(&name) };
        found.map(Response::new).ok_or_else(|| status::refused(&missing()))
    }

    async fn list_volumes(
        &self,
        request: Request<ListVolumesRequest>,
    ) -> Result<Response<ListVolumesResponse>, Status> {
        let request = request.into_inner();
        let rows = self
            .read(|state| {
                state.volumes().map(|v| (v.name.clone(), view(state, &v.record()))).collect::<Vec<_>>()
            })
            .await?;
        let (volumes, next_page_token) = page(rows, request.page_size, &request.page_token)?;
        Ok(Response::new(ListVolumesResponse { volumes, next_page_token }))
    }

    async fn resize_volume(&self, request: Request<ResizeVolumeRequest>) -> Result<Response<Volume>, Status> {
        let (call, mut request) = called(request)?;
        let id = std::mem::take(&mut request.request_id);
        let client = client_request(id, "ResizeVolume", &request);
        let (name, size_bytes) = (request.name, request.size_bytes);
        let body = Body::ResizeVolume(records::ResizeVolume { request: client, name, size_bytes });
        self.write(&call, body).await.and_then(|outcome| self.volume_answer(outcome))
    }

    async fn move_volume(&self, request: Request<MoveVolumeRequest>) -> Result<Response<Volume>, Status> {
        let (_, request) = called(request)?;
        let answer = self
            .read(|state| {
                let volume = state
                    .volume_by_name(&request.name)
                    .ok_or(Refusal::NotFound { kind: Kind::Volume, name: printable(&request.name) })?;
                let node = state
                    .node_by_name(&request.node)
                    .ok_or(Refusal::NotFound { kind: Kind::Node, name: printable(&request.node) })?;
                let record = volume.record();
                match in_the_way_of_move(state, &record, node) {
                    Some(reason) => Err(Refusal::Precondition(reason)),
                    None => Ok(view(state, &record)),
                }
            })
            .await?;
        answer.map(Response::new).map_err(|refusal| status::refused(&refusal))
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        let (call, mut request) = called(request)?;
        let id = std::mem::take(&mut request.request_id);
        let client = client_request(id, "DeleteVolume", &request);
        self.write(&call, Body::DeleteVolume(records::DeleteVolume { request: client, name: request.name }))
            .await?;
        Ok(Response::new(DeleteVolumeResponse {}))
    }
}

/// A version 4 UUID.
fn draw_uuid() -> Result<[u8; 16], Status> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|_| Status::unavailable("no random numbers from the system"))?;
    id[6] = id[6] & 0x0f | 0x40;
    id[8] = id[8] & 0x3f | 0x80;
    Ok(id)
}
