//! Volumes with several copies, against a real member: what owners ask for, what people ask for, and what becomes of it.

#![allow(missing_docs)]

mod common;

use common::{Controller, in_time};
use holdfast_proto::{
    node::{
        ChangeConfigurationRequest, ChangeConfigurationResponse, ChangeOutcome, ReplicaPhase, ReplicaRemoved,
        ReplicaReport, ReplicaState, change_configuration_request::Change, from_node,
    },
    state::{AdmitReplica, EvictReplica, HandOver, JobKind, JobState},
    v1::{
        AssessRecoveryRequest, CreateVolumeRequest, DrainNodeRequest, GetNodeRequest, GetVolumeRequest,
        MoveReplicaRequest, MoveVolumeRequest, RecoverVolumeRequest, Volume, VolumeSpec,
        node_service_client::NodeServiceClient, volume_service_client::VolumeServiceClient,
    },
};
use tonic::{Code, Status, transport::Channel};

fn volumes(controller: &Controller) -> VolumeServiceClient<Channel> {
    VolumeServiceClient::new(controller.admin())
}

async fn create(controller: &Controller, replicas: u32) -> Volume {
    let spec = VolumeSpec { size_bytes: 1 << 20, replicas, node: "node-1".to_owned(), ..Default::default() };
    let request =
        CreateVolumeRequest { request_id: "v".to_owned(), name: "db1".to_owned(), spec: Some(spec) };
    volumes(controller).create_volume(request).await.unwrap().into_inner()
}

async fn show(controller: &Controller) -> Volume {
    let request = GetVolumeRequest { name: "db1".to_owned() };
    volumes(controller).get_volume(request).await.unwrap().into_inner()
}

/// The change in the epoch that is, asked for by the first process of node `number`.
async fn ask(
    controller: &Controller,
    number: u8,
    change: Change,
) -> Result<ChangeConfigurationResponse, Status> {
    let record = controller.handle.read(|state| state.volume_by_name("db1").unwrap().record());
    let request = ChangeConfigurationRequest {
        volume_id: record.id,
        expected: record.epoch,
        owner_incarnation: 1,
        change: Some(change),
    };
    ask_exactly(controller, number, request).await
}

async fn ask_exactly(
    controller: &Controller,
    number: u8,
    request: ChangeConfigurationRequest,
) -> Result<ChangeConfigurationResponse, Status> {
    let mut agent = controller.agent(&format!("node-{number}"));
    Ok(in_time("change", agent.change_configuration(request)).await?.into_inner())
}

fn evict(node: u32) -> Change {
    Change::Evict(EvictReplica { node, reason: "silent for 1000 ms".to_owned() })
}

fn hand_over(to: u32) -> Change {
    Change::HandOver(HandOver { to, leave: false, reason: String::new() })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_owner_changes_the_configuration_and_hears_what_became_of_it() {
    let controller = Controller::start().await;
    let _one = controller.kept_node(1).await;
    let _two = controller.kept_node(2).await;
    let volume = create(&controller, 2).await.status.unwrap();
    assert_eq!((volume.owner.as_str(), volume.state.as_str()), ("node-1", "online"));
    assert_eq!(volume.in_sync, ["node-1", "node-2"]);
    let record = controller.handle.read(|state| state.volume_by_name("db1").unwrap().record());
    let request = ChangeConfigurationRequest {
        volume_id: record.id.clone(),
        expected: record.epoch,
        owner_incarnation: 1,
        change: Some(evict(2)),
    };
    // Another node's wish, and one of a process that holds no lease.
    let other = ask_exactly(&controller, 2, request.clone()).await.unwrap();
    assert_eq!(other.outcome(), ChangeOutcome::RefusedEpoch);
    let process = ChangeConfigurationRequest { owner_incarnation: 2, ..request.clone() };
    assert_eq!(ask_exactly(&controller, 1, process).await.unwrap().outcome(), ChangeOutcome::RefusedLease);
    let done = ask_exactly(&controller, 1, request.clone()).await.unwrap();
    assert_eq!((done.outcome(), done.reason.as_str()), (ChangeOutcome::Committed, ""));
    assert_eq!(done.volume.unwrap().in_sync.len(), 1);
    // Asked again after an answer that was lost: the record tells.
    let again = ask_exactly(&controller, 1, request.clone()).await.unwrap();
    assert_eq!(again.outcome(), ChangeOutcome::RefusedEpoch);
    assert!(again.volume.unwrap().in_sync.iter().all(|member| member.node == 1));
    let rule = ask(&controller, 1, evict(1)).await.unwrap();
    assert_eq!(rule.outcome(), ChangeOutcome::RefusedRule);
    assert!(rule.reason.contains("the owner cannot leave the in-sync set"), "{}", rule.reason);
    let unknown = ChangeConfigurationRequest { volume_id: vec![7; 16], ..request };
    assert_eq!(ask_exactly(&controller, 1, unknown).await.unwrap_err().code(), Code::NotFound);
    // Its node holds a lease, so it comes back by itself, and is admitted when the owner says so.
    controller
        .until("learner", |state| !state.volume_by_name("db1").unwrap().config.learners().is_empty())
        .await;
    let admit = Change::Admit(AdmitReplica { node: 2, boot_id: vec![2; 16] });
    assert_eq!(ask(&controller, 1, admit).await.unwrap().outcome(), ChangeOutcome::Committed);
    assert_eq!(show(&controller).await.status.unwrap().state, "online");
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_ends_when_the_owner_has_handed_over() {
    let controller = Controller::start().await;
    let _one = controller.kept_node(1).await;
    let _two = controller.kept_node(2).await;
    create(&controller, 2).await;
    let request =
        MoveVolumeRequest { name: "db1".to_owned(), node: "node-2".to_owned(), ..Default::default() };
    let mut service = volumes(&controller);
    let moving = tokio::spawn(async move { service.move_volume(request).await });
    controller.until("wish", |state| state.volume_by_name("db1").unwrap().hand_over_to.is_some()).await;
    assert_eq!(show(&controller).await.status.unwrap().hand_over_to, "node-2");
    assert_eq!(ask(&controller, 1, hand_over(2)).await.unwrap().outcome(), ChangeOutcome::Committed);
    let moved = in_time("move", moving).await.unwrap().unwrap().into_inner().status.unwrap();
    assert_eq!((moved.owner.as_str(), moved.hand_over_to.as_str()), ("node-2", ""));
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_is_a_job_that_ends_when_nothing_is_left() {
    let controller = Controller::start().await;
    let one = controller.kept_node(1).await;
    let _two = controller.kept_node(2).await;
    create(&controller, 1).await;
    let mut nodes = NodeServiceClient::new(controller.admin());
    let keep = DrainNodeRequest { name: "node-1".to_owned(), keep_replicas: true, ..Default::default() };
    let refused = nodes.drain_node(keep).await.unwrap_err();
    assert!(refused.message().starts_with("node node-1 is not drained: it owns db1"), "{refused}");
    let drain = DrainNodeRequest { name: "node-1".to_owned(), keep_replicas: false, ..Default::default() };
    let node = nodes.drain_node(drain).await.unwrap().into_inner();
    assert!(node.spec.unwrap().draining && !node.status.unwrap().drained);
    // It gets a copy elsewhere, which is admitted; then the owner is asked to hand over.
    let learns = |state: &holdfast_controller::state::StateMachine| {
        !state.volume_by_name("db1").unwrap().config.learners().is_empty()
    };
    controller.until("learner", learns).await;
    let admit = Change::Admit(AdmitReplica { node: 2, boot_id: vec![2; 16] });
    assert_eq!(ask(&controller, 1, admit).await.unwrap().outcome(), ChangeOutcome::Committed);
    controller.until("wish", |state| state.volume_by_name("db1").unwrap().hand_over_to.is_some()).await;
    assert_eq!(ask(&controller, 1, hand_over(2)).await.unwrap().outcome(), ChangeOutcome::Committed);
    controller.until("removal", |state| !state.volume_by_name("db1").unwrap().removing.is_empty()).await;
    let volume_id = controller.handle.read(|state| state.volume_by_name("db1").unwrap().id.0.to_vec());
    one.say(from_node::Message::ReplicaRemoved(ReplicaRemoved { volume_id })).await;
    controller
        .until("the job's end", |state| {
            state.jobs().any(|job| job.kind() == JobKind::Drain && job.state() == JobState::Done)
        })
        .await;
    let request = GetNodeRequest { name: "node-1".to_owned() };
    let status = nodes.get_node(request).await.unwrap().into_inner().status.unwrap();
    assert!(status.drained && status.volumes_owned == 0 && status.replicas == 0);
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_owner_says_of_a_copy_is_shown() {
    let controller = Controller::start().await;
    let one = controller.kept_node(1).await;
    let _two = controller.kept_node(2).await;
    create(&controller, 1).await;
    let request =
        MoveReplicaRequest { volume: "db1".to_owned(), from: "node-1".to_owned(), ..Default::default() };
    let moving = volumes(&controller).move_replica(request).await.unwrap().into_inner().status.unwrap();
    assert_eq!(
        (moving.replicas[1].state.as_str(), moving.replicas[1].replaces.as_str()),
        ("catching up", "node-1")
    );
    let mut said = ReplicaState {
        volume_id: controller.handle.read(|state| state.volume_by_name("db1").unwrap().id.0.to_vec()),
        node: 2,
        remaining_bytes: 600,
        total_bytes: 1000,
        bytes_per_second: 200,
        ..Default::default()
    };
    said.set_phase(ReplicaPhase::Copying);
    one.say(from_node::Message::Replicas(ReplicaReport { replicas: vec![said] })).await;
    // The job of the move takes it over.
    controller
        .until("progress", |state| {
            state.jobs().any(|job| job.kind() == JobKind::Move && (job.done, job.total) == (400, 1000))
        })
        .await;
    let shown = show(&controller).await.status.unwrap().replicas.remove(1);
    assert_eq!((shown.phase.as_str(), shown.estimated_seconds_left), ("copying", Some(3)));
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_is_recovered_only_with_agreement_and_in_the_epoch_that_was_shown() {
    let controller = Controller::start().await;
    let one = controller.kept_node(1).await;
    let _two = controller.kept_node(2).await;
    create(&controller, 2).await;
    assert_eq!(ask(&controller, 1, evict(2)).await.unwrap().outcome(), ChangeOutcome::Committed);
    let assess = AssessRecoveryRequest { volume: "db1".to_owned() };
    let served = volumes(&controller).assess_recovery(assess.clone()).await.unwrap().into_inner();
    assert!(served.refused.contains("node node-1 has a copy that is in sync"), "{}", served.refused);
    drop(one);
    controller.until("loss", |state| !state.node(1).unwrap().live).await;
    let found = volumes(&controller).assess_recovery(assess).await.unwrap().into_inner();
    assert_eq!(found.refused, "");
    let choices: Vec<_> = found.choices.iter().map(|c| (c.node.as_str(), c.available, c.rank)).collect();
    assert_eq!(choices[0], ("node-1", false, 1));
    assert_eq!((choices[1].0, choices[1].1), ("node-2", true));
    let request = RecoverVolumeRequest {
        volume: "db1".to_owned(),
        node: "node-2".to_owned(),
        epoch_generation: found.epoch_generation,
        epoch_number: found.epoch_number,
        ..Default::default()
    };
    let refused = volumes(&controller).recover_volume(request.clone()).await.unwrap_err();
    assert!(refused.message().contains("without agreement to what is lost"), "{refused}");
    let agreed = RecoverVolumeRequest { accept_data_loss: true, ..request };
    let other = RecoverVolumeRequest { epoch_number: found.epoch_number + 7, ..agreed.clone() };
    assert_eq!(
        volumes(&controller).recover_volume(other).await.unwrap_err().code(),
        Code::FailedPrecondition
    );
    let recovered = volumes(&controller).recover_volume(agreed).await.unwrap().into_inner().status.unwrap();
    assert_eq!((recovered.owner.as_str(), recovered.epoch_generation), ("node-2", 1));
    controller.stop().await;
}
