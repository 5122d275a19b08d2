//! VolumeService.

use std::time::Duration;

use holdfast_proto::{
    state as records,
    v1::{
        AddReplicaRequest, AssessRecoveryRequest, AssessRecoveryResponse, CloneVolumeRequest,
        CreateSnapshotRequest, CreateSnapshotResponse, CreateVolumeRequest, DeleteVolumeRequest,
        DeleteVolumeResponse, GetVolumeRequest, ListVolumesRequest, ListVolumesResponse, MoveReplicaRequest,
        MoveVolumeRequest, RecoverVolumeRequest, RemoveReplicaRequest, ResizeVolumeRequest,
        RestoreSnapshotRequest, RestoreSnapshotResponse, Volume, VolumeChange, WatchVolumesRequest,
        volume_change::Change, volume_service_server::VolumeService,
    },
};
use holdfast_replica::ids::VolumeId;
use tonic::{Request, Response, Status};

use super::{
    Api, called,
    handover::in_the_way_of_move,
    nouns::Volumes,
    page,
    request::client_request,
    status, unexpected,
    volume_view::view,
    watch::{Step, Watch},
};
use crate::state::{
    Body, Kind, Outcome, Refusal,
    convert::epoch_record,
    names::{check_name, printable},
    placement::{NewVolume, Wish},
    volume::{check_geometry, check_replicas},
};

const BLOCK_SIZE_DEFAULT: u32 = 512;
/// Sector of today's disks, in bytes: what the physical block exponent makes of a logical block.
const PHYSICAL_BLOCK_BYTES: u32 = 4096;
/// How long a call waits for an owner to hand over.
const HAND_OVER_WAIT: Duration = Duration::from_secs(15);

impl Api {
    pub(super) fn volume_answer(&self, outcome: Outcome) -> Result<Response<Volume>, Status> {
        match outcome {
            Outcome::Volume(record) => Ok(Response::new(self.volume_view(&record))),
            other => Err(unexpected(&other)),
        }
    }

    /// A volume as people see it: from the state, and what nodes said of its replicas.
    pub(super) fn volume_view(&self, record: &records::Volume) -> Volume {
        self.leases.read_reports(|reports| self.raft.read(|state| view(state, reports, record)))
    }

    /// Waits until the node owns the volume, for a while.
    async fn wait_hand_over(&self, id: VolumeId, to: u32) -> Result<Response<Volume>, Status> {
        let mut applied = self.raft.watch_applied();
        let handed_over = async {
            loop {
                applied.borrow_and_update();
                let done = self.raft.read(|state| {
                    // Gone: nothing to wait for.
                    state.volume(id).is_none_or(|v| v.hand_over_to.map(|n| u32::from(n.get())) != Some(to))
                });
                if done || applied.changed().await.is_err() {
                    return;
                }
            }
        };
        // Not done in time: the answer says so.
        let _ = tokio::time::timeout(HAND_OVER_WAIT, handed_over).await;
        let record = self.raft.read(|state| state.volume(id).map(crate::state::Volume::record));
        let record = record.ok_or_else(|| Status::not_found("the volume was deleted meanwhile"))?;
        if record.owner != to && record.hand_over_to != to {
            return Err(Status::aborted(format!(
                "volume {} was not moved: its owner changed or did not hand over in time; look at it and try again",
                record.name
            )));
        }
        Ok(Response::new(self.volume_view(&record)))
    }
}

/// A step of a watch as its message.
fn watched(revision: u64, step: Step<Volume>) -> VolumeChange {
    let change = match step {
        Step::Changed(row) => Change::Changed(row),
        Step::Removed(name) => Change::Removed(name),
        Step::Synced => Change::Synced(true),
    };
    VolumeChange { change: Some(change), revision }
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
        check_replicas(replicas).map_err(refused)?;
        let first = (!spec.node.is_empty() || !spec.pool.is_empty() || !spec.others.is_empty())
            .then(|| Wish { node: spec.node.clone(), pool: spec.pool.clone() });
        let others = spec.others.iter().map(|p| Wish { node: p.node.clone(), pool: p.pool.clone() });
        let wishes: Vec<Wish> = first.into_iter().chain(others).collect();
        // A request that was carried out needs no place any more.
        let (answer, places) = self
            .read(|state| {
                let answer = state.answer(client.as_ref());
                let copies = replicas as usize;
                let new = NewVolume {
                    size_bytes: spec.size_bytes,
                    copies,
                    volatile: spec.volatile,
                    checksums: spec.checksums,
                };
                (answer, state.places(&new, &wishes))
            })
            .await?;
        if let Some(outcome) = answer.map_err(refused)? {
            return self.volume_answer(outcome);
        }
        if self.raft.read(|state| state.volume_by_name(&request.name).is_some_and(|v| !v.deleting)) {
            return Err(refused(Refusal::AlreadyExists { kind: Kind::Volume, name: request.name }));
        }
        let mut places = places
            .map_err(|reason| {
                let copies = if replicas == 1 { String::new() } else { format!(" with {replicas} replicas") };
                Status::failed_precondition(format!("no place for the volume{copies}: {reason}"))
            })?
            .into_iter()
            .map(|place| records::ReplicaPlace { node: place.node, pool: place.pool });
        let owner = places.next().unwrap_or_default();
        let body = Body::CreateVolume(records::CreateVolume {
            request: client,
            id: draw_uuid()?.to_vec(),
            name: request.name,
            size_bytes: spec.size_bytes,
            block_size,
            physical_block_exponent: (PHYSICAL_BLOCK_BYTES / block_size.max(1)).checked_ilog2().unwrap_or(0),
            write_cache: spec.write_cache.unwrap_or(true),
            thin: true,
            checksums: spec.checksums,
            replicas,
            node: owner.node,
            pool: owner.pool,
            others: places.collect(),
            volatile: spec.volatile,
        });
        self.write(&call, body).await.and_then(|outcome| self.volume_answer(outcome))
    }

    async fn get_volume(&self, request: Request<GetVolumeRequest>) -> Result<Response<Volume>, Status> {
        let name = request.into_inner().name;
        let found = self.read(|state| state.volume_by_name(&name).map(|v| v.record())).await?;
        let missing = || Refusal::NotFound { kind: Kind::Volume, name: printable(&name) };
        found
            .map(|record| Response::new(self.volume_view(&record)))
            .ok_or_else(|| status::refused(&missing()))
    }

    async fn list_volumes(
        &self,
        request: Request<ListVolumesRequest>,
    ) -> Result<Response<ListVolumesResponse>, Status> {
        let request = request.into_inner();
        let after = page::decode(&request.page_token)?.unwrap_or_default();
        // One more than the page, so that it is known whether there is another.
        let rows = page::size(request.page_size) + 1;
        let rows = self
            .read(|state| {
                let volumes = state.volumes_after(&after).take(rows);
                volumes.map(|v| (v.name.clone(), v.record())).collect::<Vec<_>>()
            })
            .await?;
        let (records, next_page_token) = page::page(rows, request.page_size, &request.page_token)?;
        let volumes = records.iter().map(|record| self.volume_view(record)).collect();
        Ok(Response::new(ListVolumesResponse { volumes, next_page_token }))
    }

    type WatchVolumesStream = Watch<VolumeChange>;

    async fn watch_volumes(
        &self,
        request: Request<WatchVolumesRequest>,
    ) -> Result<Response<Self::WatchVolumesStream>, Status> {
        let request = request.into_inner();
        self.watch(Volumes, request.after_revision, watched).await.map(Response::new)
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
        let (call, mut request) = called(request)?;
        let request_id = std::mem::take(&mut request.request_id);
        let client = client_request(request_id, "MoveVolume", &request);
        if let Some(outcome) = self.answered(client.as_ref()).await? {
            let Outcome::Volume(asked) = &outcome else { return Err(unexpected(&outcome)) };
            let to = self.raft.read(|state| state.node_by_name(&request.node).map(|node| node.number));
            return match (VolumeId::from_slice(&asked.id), to) {
                (Some(id), Some(to)) => self.wait_hand_over(id, to).await,
                _ => self.volume_answer(outcome),
            };
        }
        let answer = self
            .read(|state| {
                let volume = state
                    .volume_by_name(&request.name)
                    .ok_or(Refusal::NotFound { kind: Kind::Volume, name: printable(&request.name) })?;
                let node = state
                    .node_by_name(&request.node)
                    .ok_or(Refusal::NotFound { kind: Kind::Node, name: printable(&request.node) })?;
                match in_the_way_of_move(state, volume, node) {
                    Some(reason) => Err(Refusal::Precondition(reason)),
                    None => Ok((volume.id, volume.config.epoch(), node.number)),
                }
            })
            .await?;
        let (id, epoch, to) = answer.map_err(|refusal| status::refused(&refusal))?;
        let body = Body::RequestHandOver(records::RequestHandOver {
            request: client,
            volume_id: id.0.to_vec(),
            expected: Some(epoch_record(epoch)),
            to,
        });
        self.write(&call, body).await?;
        self.wait_hand_over(id, to).await
    }

    async fn add_replica(&self, request: Request<AddReplicaRequest>) -> Result<Response<Volume>, Status> {
        let (call, request) = called(request)?;
        self.new_replica(&call, request).await
    }

    async fn remove_replica(
        &self,
        request: Request<RemoveReplicaRequest>,
    ) -> Result<Response<Volume>, Status> {
        let (call, request) = called(request)?;
        self.drop_replica(&call, request).await
    }

    async fn move_replica(&self, request: Request<MoveReplicaRequest>) -> Result<Response<Volume>, Status> {
        let (call, request) = called(request)?;
        self.replace_replica(&call, request).await
    }

    async fn create_snapshot(
        &self,
        request: Request<CreateSnapshotRequest>,
    ) -> Result<Response<CreateSnapshotResponse>, Status> {
        let (call, request) = called(request)?;
        self.snapshots(&call, request).await
    }

    async fn restore_snapshot(
        &self,
        request: Request<RestoreSnapshotRequest>,
    ) -> Result<Response<RestoreSnapshotResponse>, Status> {
        let (call, request) = called(request)?;
        self.restore(&call, request).await
    }

    async fn clone_volume(&self, request: Request<CloneVolumeRequest>) -> Result<Response<Volume>, Status> {
        let (call, request) = called(request)?;
        self.clone_of(&call, request).await
    }

    async fn assess_recovery(
        &self,
        request: Request<AssessRecoveryRequest>,
    ) -> Result<Response<AssessRecoveryResponse>, Status> {
        self.assess(&request.into_inner().volume).await.map(Response::new)
    }

    async fn recover_volume(
        &self,
        request: Request<RecoverVolumeRequest>,
    ) -> Result<Response<Volume>, Status> {
        let (call, request) = called(request)?;
        self.recover(&call, request).await
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        let (call, mut request) = called(request)?;
        let id = std::mem::take(&mut request.request_id);
        let client = client_request(id, "DeleteVolume", &request);
        self.write_access(
            &call,
            Body::DeleteVolume(records::DeleteVolume { request: client, name: request.name }),
        )
        .await?;
        Ok(Response::new(DeleteVolumeResponse {}))
    }
}

/// A version 4 UUID.
pub(super) fn draw_uuid() -> Result<[u8; 16], Status> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|_| Status::unavailable("no random numbers from the system"))?;
    id[6] = id[6] & 0x0f | 0x40;
    id[8] = id[8] & 0x3f | 0x80;
    Ok(id)
}
