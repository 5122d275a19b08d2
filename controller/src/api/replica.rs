//! The calls of VolumeService that make, remove and move copies, and the forced recovery.
//!
//! Invariants: the state machine decides; a forced recovery is proposed only with the caller's agreement to what was shown, in the epoch
//! that was shown, and after the leases of all other members have run out.

use holdfast_proto::{
    state as records,
    v1::{
        AddReplicaRequest, AssessRecoveryResponse, MoveReplicaRequest, RecoverVolumeRequest, RecoveryChoice,
        RemoveReplicaRequest, Volume,
    },
};
use holdfast_replica::{config::Member, epoch::Epoch};
use tonic::{Response, Status};

use super::{Api, request::client_request, status};
use crate::{
    server::Call,
    state::{Body, Kind, Refusal, StateMachine, convert::epoch_record, names::printable, placement::Wish},
};

fn volume_of<'a>(state: &'a StateMachine, name: &str) -> Result<&'a crate::state::Volume, Refusal> {
    state.volume_by_name(name).ok_or(Refusal::NotFound { kind: Kind::Volume, name: printable(name) })
}

fn node_of<'a>(state: &'a StateMachine, name: &str) -> Result<&'a records::Node, Refusal> {
    state.node_by_name(name).ok_or(Refusal::NotFound { kind: Kind::Node, name: printable(name) })
}

impl Api {
    pub(super) async fn new_replica(
        &self,
        call: &Call,
        mut request: AddReplicaRequest,
    ) -> Result<Response<Volume>, Status> {
        let id = std::mem::take(&mut request.request_id);
        let client = client_request(id, "AddReplica", &request);
        let wish = Wish { node: request.node, pool: request.pool };
        self.place_replica(call, client, &request.volume, wish, None).await
    }

    pub(super) async fn replace_replica(
        &self,
        call: &Call,
        mut request: MoveReplicaRequest,
    ) -> Result<Response<Volume>, Status> {
        let id = std::mem::take(&mut request.request_id);
        let client = client_request(id, "MoveReplica", &request);
        let wish = Wish { node: request.to, pool: request.pool };
        self.place_replica(call, client, &request.volume, wish, Some(request.from)).await
    }

    async fn place_replica(
        &self,
        call: &Call,
        client: Option<records::ClientRequest>,
        name: &str,
        wish: Wish,
        replaces: Option<String>,
    ) -> Result<Response<Volume>, Status> {
        let (answer, body) = self
            .read(|state| {
                let choose = || {
                    let volume = volume_of(state, name)?;
                    let replaces = replaces.as_deref().map(|from| node_of(state, from)).transpose()?;
                    let place = state.place_for_wish(volume, &wish).map_err(|reason| {
                        let name = &volume.name;
                        Refusal::Precondition(format!("no place for a replica of volume {name}: {reason}"))
                    })?;
                    Ok(Body::AddReplica(records::AddReplica {
                        request: client.clone(),
                        volume: name.to_owned(),
                        place: Some(records::ReplicaPlace { node: place.node, pool: place.pool }),
                        replaces: replaces.map_or(0, |node| node.number),
                        missing: false,
                    }))
                };
                (state.answer(client.as_ref()), choose())
            })
            .await?;
        if let Some(outcome) = answer.map_err(|refusal| status::refused(&refusal))? {
            return self.volume_answer(outcome);
        }
        let body = body.map_err(|refusal: Refusal| status::refused(&refusal))?;
        self.write(call, body).await.and_then(|outcome| self.volume_answer(outcome))
    }

    pub(super) async fn drop_replica(
        &self,
        call: &Call,
        mut request: RemoveReplicaRequest,
    ) -> Result<Response<Volume>, Status> {
        let id = std::mem::take(&mut request.request_id);
        let client = client_request(id, "RemoveReplica", &request);
        if let Some(outcome) = self.answered(client.as_ref()).await? {
            return self.volume_answer(outcome);
        }
        let node = self.raft.read(|state| node_of(state, &request.node).map(|node| node.number));
        let node = node.map_err(|refusal| status::refused(&refusal))?;
        let body = Body::DropReplica(records::DropReplica {
            request: client,
            volume: request.volume,
            node,
            fewer: true,
        });
        self.write(call, body).await.and_then(|outcome| self.volume_answer(outcome))
    }

    pub(super) async fn assess(&self, name: &str) -> Result<AssessRecoveryResponse, Status> {
        let assessed = self.read(|state| volume_of(state, name).map(|volume| assess(state, volume))).await?;
        assessed.map_err(|refusal| status::refused(&refusal))
    }

    pub(super) async fn recover(
        &self,
        call: &Call,
        mut request: RecoverVolumeRequest,
    ) -> Result<Response<Volume>, Status> {
        let id = std::mem::take(&mut request.request_id);
        let client = client_request(id, "RecoverVolume", &request);
        let refused = |refusal: Refusal| status::refused(&refusal);
        let found = self
            .read(|state| {
                let volume = volume_of(state, &request.volume)?;
                let node = node_of(state, &request.node)?;
                let loses = assess(state, volume).choices.into_iter().find(|c| c.node == node.name);
                let owner = volume.owner_node().map(|owner| u32::from(owner.get()));
                Ok((loses, node.number, node.incarnation, owner, state.answer(client.as_ref())?))
            })
            .await?;
        let (choice, node, incarnation, owner, answer) = found.map_err(refused)?;
        if let Some(outcome) = answer {
            return self.volume_answer(outcome);
        }
        let choice = choice.ok_or_else(|| {
            let (volume, node) = (&request.volume, &request.node);
            Status::failed_precondition(format!("volume {volume} has no copy on node {node}"))
        })?;
        if !request.accept_data_loss {
            return Err(Status::failed_precondition(format!(
                "volume {} is not recovered without agreement to what is lost: {}",
                request.volume, choice.loses
            )));
        }
        // The one that may still serve; others serve nothing.
        let fenced: Vec<u32> = owner.into_iter().filter(|owner| *owner != node).collect();
        let lease_term = self.leases.all_expired(&fenced).map_err(|(number, within_ms)| {
            let text = if number == 0 {
                "this leader is not in charge of the leases yet; ask again".to_owned()
            } else {
                let name = self.raft.read(|state| state.node_name(number));
                format!("node {name}, its owner, may still hold a lease, for {within_ms} ms at most; stop it and ask again")
            };
            Status::failed_precondition(format!("volume {} is not recovered: {text}", request.volume))
        })?;
        let body = Body::ForceRecovery(records::ForceRecovery {
            request: client,
            volume: request.volume,
            expected: Some(records::Epoch {
                generation: request.epoch_generation,
                number: request.epoch_number,
            }),
            node,
            incarnation,
            lease_term,
        });
        self.write(call, body).await.and_then(|outcome| self.volume_answer(outcome))
    }
}

/// What going on with each copy would lose, best first.
fn assess(state: &StateMachine, volume: &crate::state::Volume) -> AssessRecoveryResponse {
    let epoch: Epoch = volume.config.epoch();
    let record = epoch_record(epoch);
    let able = volume.config.in_sync().iter().find(|m| state.may_take(volume, epoch, m.node).is_ok());
    let refused = match able {
        _ if volume.deleting => format!("volume {} is being deleted", volume.name),
        Some(able) => format!(
            "node {} has a copy that is in sync and serves it; nothing has to be given up",
            state.node_name(u32::from(able.node.get()))
        ),
        None => String::new(),
    };
    let live = |m: &Member| state.node(u32::from(m.node.get())).is_some_and(|node| node.live);
    let has_rebooted =
        |m: &Member| state.node(u32::from(m.node.get())).is_some_and(|node| node.boot_id[..] != m.boot.0[..]);
    let in_sync = volume.config.in_sync().iter().map(|m| match has_rebooted(m) {
        true if volume.may_cache() => {
            (m, 2, "writes that were acknowledged and not yet flushed when its machine went down")
        }
        _ => (m, 1, "nothing that was acknowledged"),
    });
    let absent = volume.absent.iter().map(|m| (m, 3, "everything written since it left the set"));
    let learners = volume.config.learners().iter().map(|m| {
        (m, 4, "an unknown part: it was being overwritten by another copy and is neither the old nor the new one")
    });
    let mut choices: Vec<RecoveryChoice> = in_sync
        .chain(absent)
        .chain(learners)
        .map(|(m, rank, loses)| RecoveryChoice {
            node: state.node_name(u32::from(m.node.get())),
            available: live(m),
            loses: loses.to_owned(),
            rank,
        })
        .collect();
    choices.sort_by_key(|choice| (choice.rank, !choice.available));
    AssessRecoveryResponse {
        refused,
        epoch_generation: record.generation,
        epoch_number: record.number,
        choices,
    }
}
