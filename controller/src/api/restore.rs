//! The call of VolumeService that puts volumes back to what snapshots of them have.
//!
//! Invariants: unless the caller says otherwise nothing is begun while a host has a session on a volume, or while a node does not tell which
//! sessions it has; success is answered only when all of them are restored.

use std::time::Duration;

use holdfast_proto::{
    state as records,
    v1::{RestoreSnapshotRequest, RestoreSnapshotResponse},
};
use tonic::{Response, Status};

use super::{
    Api, Call,
    request::client_request,
    session::{answers, sessions},
    status,
    volume::draw_uuid,
};
use crate::state::{Body, StateMachine, Volume};

/// How long a call waits; owners give up before.
const WAIT: Duration = Duration::from_secs(15);
/// Users that a refusal names.
const NAMED_MAX: usize = 3;

impl Api {
    pub(super) async fn restore(
        &self,
        call: &Call,
        mut request: RestoreSnapshotRequest,
    ) -> Result<Response<RestoreSnapshotResponse>, Status> {
        let id = std::mem::take(&mut request.request_id);
        let client = client_request(id, "RestoreSnapshot", &request);
        let names: Vec<String> = request.snapshots.iter().map(|of| of.volume.clone()).collect();
        if self.answered(client.as_ref()).await?.is_none() {
            let in_use_by = self.users_of(&request).await?;
            if request.dry_run {
                let volumes = self.views(&names);
                return Ok(Response::new(RestoreSnapshotResponse { volumes, in_use_by }));
            }
            if !request.in_use && !in_use_by.is_empty() {
                let more = in_use_by.len().saturating_sub(NAMED_MAX);
                let named = in_use_by.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join("; ");
                let more = if more == 0 { String::new() } else { format!("; and {more} more") };
                return Err(Status::failed_precondition(format!(
                    "in use: {named}{more}; stop the hosts first, or ask for it while in use"
                )));
            }
        }
        let mut restores = Vec::new();
        for of in &request.snapshots {
            let (volume, snapshot) = (of.volume.clone(), of.name.clone());
            restores.push(records::RestoreOf { volume, snapshot, id: draw_uuid()?.to_vec() });
        }
        let mut applied = self.raft.watch_applied();
        let command = records::RestoreVolumes { request: client, restores, in_use: request.in_use };
        self.write(call, Body::RestoreVolumes(command)).await?;
        let done = async {
            loop {
                applied.borrow_and_update();
                if let Some(done) = self.raft.read(|state| outcome(state, &names)) {
                    return done;
                }
                if applied.changed().await.is_err() {
                    return Err(Status::unavailable("this controller stops; ask again with the same id"));
                }
            }
        };
        match tokio::time::timeout(WAIT, done).await {
            Ok(done) => done?,
            Err(_) => {
                return Err(Status::deadline_exceeded(
                    "it is still being restored; volume show tells what becomes of it",
                ));
            }
        }
        let volumes = self.views(&names);
        Ok(Response::new(RestoreSnapshotResponse { volumes, in_use_by: Vec::new() }))
    }

    fn views(&self, names: &[String]) -> Vec<holdfast_proto::v1::Volume> {
        let found = self.raft.read(|state| {
            let volumes = names.iter().filter_map(|name| state.volume_by_name(name));
            volumes.map(Volume::record).collect::<Vec<_>>()
        });
        found.iter().map(|record| self.volume_view(record)).collect()
    }

    /// What hosts hold of the volumes, if they can be restored at all.
    async fn users_of(&self, request: &RestoreSnapshotRequest) -> Result<Vec<String>, Status> {
        let held = self
            .read(|state| {
                let mut users = Vec::new();
                for of in &request.snapshots {
                    let (volume, _) = state.check_restore(&of.volume, &of.name)?;
                    users.extend(volume.held_by_hosts().map(|held| format!("{}: {held}", volume.name)));
                }
                Ok(users)
            })
            .await?;
        let mut users = held.map_err(|refusal| status::refused(&refusal))?;
        let told = self.inspect("").await;
        self.raft.read(|state| {
            for (_, session) in sessions(state, &told) {
                for of in &request.snapshots {
                    if session.luns.iter().any(|lun| lun.volume == of.volume) {
                        let (initiator, node) = (&session.initiator, &session.node);
                        users.push(format!("{}: session of {initiator} at node {node}", of.volume));
                    }
                }
            }
            // A node without a lease serves nobody.
            let live = |name: &str| state.node_by_name(name).is_some_and(|node| node.live);
            let silent = answers(&told).into_iter().filter(|n| (!n.answered || n.truncated) && live(&n.node));
            users.extend(silent.map(|n| format!("node {} does not tell all of its sessions", n.node)));
        });
        Ok(users)
    }
}

/// None while it is under way.
fn outcome(state: &StateMachine, names: &[String]) -> Option<Result<(), Status>> {
    let first = names.first()?;
    let under_way =
        names.iter().any(|name| state.volume_by_name(name).is_some_and(|volume| volume.restoring.is_some()));
    if under_way {
        return None;
    }
    let subject = format!("volume/{first}");
    let of_it = |job: &&records::Job| job.subject == subject && job.kind() == records::JobKind::Restore;
    match state.jobs().filter(of_it).last() {
        Some(job) if job.state() == records::JobState::Done => Some(Ok(())),
        job => {
            let reason = job.map_or("the volume is gone", |job| job.message.as_str());
            Some(Err(Status::failed_precondition(format!("nothing was restored: {reason}"))))
        }
    }
}
