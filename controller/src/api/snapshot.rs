//! The calls of VolumeService that make snapshots and clones: asked for, then waited for until they are whole or given up.
//!
//! Invariant: success is answered only when every one that was asked for is whole; a call that is repeated with the same id waits for the same
//! ones.

use std::time::Duration;

use holdfast_proto::{
    state as records,
    v1::{CloneVolumeRequest, CreateSnapshotRequest, CreateSnapshotResponse, Volume},
};
use tonic::{Response, Status};

use super::{Api, Call, request::client_request, volume::draw_uuid};
use crate::state::{Body, job::kind_name};

/// How long a call waits; owners give up before.
const WAIT: Duration = Duration::from_secs(15);

impl Api {
    pub(super) async fn snapshots(
        &self,
        call: &Call,
        mut request: CreateSnapshotRequest,
    ) -> Result<Response<CreateSnapshotResponse>, Status> {
        let id = std::mem::take(&mut request.request_id);
        let client = client_request(id, "CreateSnapshot", &request);
        let copies: Vec<(String, String)> =
            request.snapshots.into_iter().map(|snapshot| (snapshot.volume, snapshot.name)).collect();
        let snapshots = self.make(call, client, copies, false).await?;
        Ok(Response::new(CreateSnapshotResponse { snapshots }))
    }

    pub(super) async fn clone_of(
        &self,
        call: &Call,
        mut request: CloneVolumeRequest,
    ) -> Result<Response<Volume>, Status> {
        let id = std::mem::take(&mut request.request_id);
        let client = client_request(id, "CloneVolume", &request);
        let made = self.make(call, client, vec![(request.snapshot, request.name)], true).await?;
        made.into_iter().next().map(Response::new).ok_or_else(|| Status::internal("no clone was made"))
    }

    async fn make(
        &self,
        call: &Call,
        request: Option<records::ClientRequest>,
        copies: Vec<(String, String)>,
        clones: bool,
    ) -> Result<Vec<Volume>, Status> {
        let mut asked = Vec::new();
        for (source, name) in &copies {
            let (source, name) = (source.clone(), name.clone());
            asked.push(records::CopyOf { source, id: draw_uuid()?.to_vec(), name });
        }
        let mut applied = self.raft.watch_applied();
        self.write(call, Body::MakeCopies(records::MakeCopies { request, copies: asked, clones })).await?;
        let whole = async {
            loop {
                applied.borrow_and_update();
                let made = self.raft.read(|state| {
                    let volumes = copies.iter().map(|(_, name)| state.volume_by_name(name));
                    let volumes = volumes.map(|volume| volume.filter(|volume| !volume.deleting));
                    let Some(volumes) = volumes.collect::<Option<Vec<_>>>() else {
                        return Some(Err(why_not(state, &copies, clones)));
                    };
                    let done = volumes.iter().all(|volume| volume.making.is_none());
                    done.then(|| {
                        Ok(volumes.into_iter().map(crate::state::Volume::record).collect::<Vec<_>>())
                    })
                });
                if let Some(made) = made {
                    return made;
                }
                if applied.changed().await.is_err() {
                    return Err(Status::unavailable("this controller stops; ask again with the same id"));
                }
            }
        };
        let records = match tokio::time::timeout(WAIT, whole).await {
            Ok(records) => records?,
            Err(_) => {
                return Err(Status::deadline_exceeded(
                    "it is still being made; volume show tells what becomes of it",
                ));
            }
        };
        Ok(records.iter().map(|record| self.volume_view(record)).collect())
    }
}

/// Why they were given up: the job says.
fn why_not(state: &crate::state::StateMachine, copies: &[(String, String)], clones: bool) -> Status {
    let subject = copies.first().map_or(String::new(), |(_, name)| format!("volume/{name}"));
    let kind = kind_name(if clones { records::JobKind::Clone } else { records::JobKind::Snapshot });
    let job = state.jobs().filter(|job| job.subject == subject && kind_name(job.kind()) == kind).last();
    let reason = job.map_or("it was deleted meanwhile", |job| job.message.as_str());
    Status::failed_precondition(format!("nothing was made: {reason}"))
}
