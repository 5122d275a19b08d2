//! Sessions of data nodes, leases, ownership and the barrier of reservations, against a real member.

#![allow(missing_docs)]

mod common;

use std::time::{Duration, Instant};

use common::{Controller, LIMIT, Node, hello, in_time, nodes, reservations, volumes};
use holdfast_controller::lease::LEASE_MS;
use holdfast_pki::Role;
use holdfast_proto::{
    node::{
        EstablishUnitAttentionRequest, ProposeReservationRequest, ReplicaRemoved, from_node,
        node_agent_client::NodeAgentClient,
    },
    state::{NexusName, UnitAttentionEvent, change},
    v1::{
        CreateVolumeRequest, DeleteVolumeRequest, GetVolumeRequest, Volume, VolumeSpec, WatchEventsRequest,
        event_service_client::EventServiceClient, volume_service_client::VolumeServiceClient,
    },
};
use tonic::{Code, Status, transport::Channel};

async fn create_volume(controller: &Controller, node: &str) -> Volume {
    let spec = VolumeSpec { size_bytes: 1 << 20, node: node.to_owned(), ..Default::default() };
    VolumeServiceClient::new(controller.admin())
        .create_volume(CreateVolumeRequest {
            request_id: "v".to_owned(),
            name: "db1".to_owned(),
            spec: Some(spec),
        })
        .await
        .unwrap()
        .into_inner()
}

/// REGISTER by initiator `n` through port 1, on the one volume as it is now.
fn register(controller: &Controller, proposal: u8, n: u8) -> ProposeReservationRequest {
    let (volume_id, epoch, expected_version) = controller.handle.read(|state| {
        let volume = state.volume_by_name("db1").unwrap();
        (volume.id.0.to_vec(), volume.record().epoch, volume.reservation_version)
    });
    let id = holdfast_scsi::transport_id::TransportId::iscsi("iqn.2026-11.x:host", [n; 6]).unwrap();
    let mut parameter_list = vec![0; 24];
    parameter_list[15] = n;
    ProposeReservationRequest {
        proposal_id: vec![proposal; 16],
        volume_id,
        epoch,
        expected_version,
        nexus: Some(NexusName { transport_id: id.as_bytes().to_vec(), relative_port: 1 }),
        cdb: vec![0x5f, 0, 0, 0, 0, 0, 0, 0, 24, 0],
        parameter_list,
        ..Default::default()
    }
}

async fn propose(
    mut agent: NodeAgentClient<Channel>,
    request: ProposeReservationRequest,
) -> Result<(u32, u64), Status> {
    let answer = in_time("proposal", agent.propose_reservation(request)).await?.into_inner();
    let outcome = answer.outcome.unwrap();
    Ok((outcome.status, outcome.version))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_joins_and_becomes_live_by_its_first_lease() {
    let controller = Controller::start().await;
    let mut node = controller.node(1, 1, 0).await;
    assert_eq!((node.welcome.lease_ms, node.number(), node.incarnation()), (LEASE_MS, 1, 1));
    let snapshot = node.snapshot.clone().unwrap();
    assert_eq!(
        nodes(&snapshot.changes).map(|n| (n.name.as_str(), n.live)).collect::<Vec<_>>(),
        [("node-1", false)]
    );
    let grant = node.renew().await;
    assert!(grant.applied_index <= snapshot.index, "nothing that nodes see has changed since");
    let commit = node.install_until(|c| nodes(&c.changes).any(|n| n.live)).await;
    assert!(node.renew().await.applied_index >= commit.index);
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificate_and_name_must_agree() {
    let controller = Controller::start().await;
    let refused = Node::begin(controller.agent("node-1"), hello(2, 1, 0)).await.err().unwrap();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    let stranger = NodeAgentClient::new(controller.channel(Role::Admin, "node-1"));
    let refused = Node::begin(stranger, hello(1, 1, 0)).await.err().unwrap();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    let mut wrong = hello(1, 1, 0);
    wrong.portals = vec!["0.0.0.0:3260".to_owned()];
    let refused = Node::begin(controller.agent("node-1"), wrong).await.err().unwrap();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().starts_with("portals: '0.0.0.0:3260' names every address"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn newer_session_ends_the_older() {
    let controller = Controller::start().await;
    let mut old = controller.node(1, 1, 0).await;
    let new = controller.node(1, 1, 0).await;
    assert_eq!(old.end().await.code(), Code::Aborted);
    assert_eq!(new.incarnation(), 1, "the same process");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn session_resumes_where_its_process_stood() {
    let controller = Controller::start().await;
    let mut node = controller.live_node(1).await;
    let stood = node.applied;
    drop(node);
    create_volume(&controller, "").await;
    node = controller.node(1, 1, stood).await;
    assert!(node.welcome.resumes && node.snapshot.is_none());
    node.take_until(|c| volumes(&c.changes).any(|v| v.name == "db1")).await;
    // What no controller can have told it is not resumed from.
    let node = controller.node(1, 1, 1 << 40).await;
    assert!(!node.welcome.resumes && node.snapshot.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reservation_is_good_only_after_every_port_has_installed_it() {
    let controller = Controller::start().await;
    let mut owner = controller.live_node(1).await;
    let mut other = controller.live_node(2).await;
    owner.renew().await;
    create_volume(&controller, "node-1").await;
    owner.install_until(|c| volumes(&c.changes).next().is_some()).await;
    other.install_until(|c| volumes(&c.changes).next().is_some()).await;
    owner.renew().await;
    let granted = Instant::now();
    other.renew().await;
    let request = register(&controller, 1, 1);
    let proposal = tokio::spawn(propose(controller.agent("node-1"), request.clone()));
    let commit = owner.install_until(|c| reservations(&c.changes).next().is_some()).await;
    assert_eq!(other.take_until(|c| reservations(&c.changes).next().is_some()).await, commit);
    // A renewal with the older index does not help it over the barrier.
    other.renew().await;
    if granted.elapsed() < Duration::from_millis(u64::from(LEASE_MS)) {
        assert!(!proposal.is_finished(), "GOOD before node-2 has installed it");
    }
    other.report(commit.index).await;
    assert_eq!(proposal.await.unwrap().unwrap(), (0, commit.index));
    // Asked again by its id: the same outcome. Against an old version under a new id: nothing.
    assert_eq!(propose(controller.agent("node-1"), request.clone()).await.unwrap(), (0, commit.index));
    let stale = ProposeReservationRequest { proposal_id: vec![2; 16], ..request.clone() };
    assert_eq!(propose(controller.agent("node-1"), stale).await.unwrap_err().code(), Code::Aborted);
    let not_the_owner = ProposeReservationRequest { proposal_id: vec![3; 16], ..request };
    let refused = propose(controller.agent("node-2"), not_the_owner).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.metadata().get("holdfast-leader").is_none());
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_port_holds_a_reservation_up_for_its_lease_and_no_longer() {
    let controller = Controller::start().await;
    let mut owner = controller.live_node(1).await;
    let mut silent = controller.live_node(2).await;
    owner.renew().await;
    create_volume(&controller, "node-1").await;
    owner.install_until(|c| volumes(&c.changes).next().is_some()).await;
    let before = Instant::now();
    silent.renew().await;
    let proposal = tokio::spawn(propose(controller.agent("node-1"), register(&controller, 1, 1)));
    let commit = owner.install_until(|c| reservations(&c.changes).next().is_some()).await;
    assert_eq!(proposal.await.unwrap().unwrap(), (0, commit.index));
    // Never before the lease that was granted on an older index is over.
    assert!(before.elapsed() >= Duration::from_millis(u64::from(LEASE_MS)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reset_is_told_to_every_port_before_it_is_answered() {
    let controller = Controller::start().await;
    let mut owner = controller.live_node(1).await;
    owner.renew().await;
    create_volume(&controller, "node-1").await;
    owner.install_until(|c| volumes(&c.changes).next().is_some()).await;
    let like = register(&controller, 0, 1);
    let request = EstablishUnitAttentionRequest {
        request_id: vec![4; 16],
        epoch: like.epoch,
        event: Some(UnitAttentionEvent {
            volume_id: like.volume_id,
            additional: 0x2903,
            except: like.nexus,
            ..Default::default()
        }),
    };
    let mut agent = controller.agent("node-1");
    let asked = tokio::spawn(async move { agent.establish_unit_attention(request).await });
    let commit = owner.install_until(|c| !c.unit_attentions.is_empty()).await;
    assert_eq!(commit.unit_attentions[0].additional, 0x2903);
    let answer = in_time("answer", asked).await.unwrap().unwrap().into_inner();
    assert_eq!(answer.index, commit.index);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarted_node_takes_its_volume_over_in_a_new_epoch_after_its_old_lease() {
    let controller = Controller::start().await;
    let mut node = controller.live_node(1).await;
    let before = create_volume(&controller, "node-1").await.status.unwrap();
    let granted = Instant::now();
    node.renew().await;
    drop(node);
    let mut node = controller.node(1, 2, 0).await;
    assert_eq!(node.incarnation(), 2);
    let taken = loop {
        node.renew().await;
        if let Some(at) =
            node.commits.iter().position(|c| volumes(&c.changes).any(|v| v.owner_incarnation == 2))
        {
            break node.commits.remove(at).unwrap();
        }
        node.applied = node.commits.back().map_or(node.applied, |c| c.index);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(granted.elapsed() < LIMIT);
    };
    assert!(granted.elapsed() >= Duration::from_millis(u64::from(LEASE_MS)));
    let volume = volumes(&taken.changes).next().unwrap();
    assert_eq!(volume.epoch.unwrap().number, before.epoch_number + 1);
    assert!(taken.unit_attentions.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_lease_takes_volumes_offline_and_says_so() {
    let controller = Controller::start().await;
    let mut node = controller.live_node(1).await;
    create_volume(&controller, "node-1").await;
    let mut events = EventServiceClient::new(controller.admin())
        .watch_events(WatchEventsRequest { after_index: 0 })
        .await
        .unwrap()
        .into_inner();
    let event = in_time("event", events.message()).await.unwrap().unwrap();
    assert_eq!((event.kind.as_str(), event.subject.as_str()), ("node.lost", "node/node-1"));
    assert!(event.time.is_some());
    let mut client = VolumeServiceClient::new(controller.admin());
    let mut state = async || {
        let request = GetVolumeRequest { name: "db1".to_owned() };
        client.get_volume(request).await.unwrap().into_inner().status.unwrap().state
    };
    assert_eq!(state().await, "offline: node node-1 holds no lease");
    node.take_until(|c| nodes(&c.changes).any(|n| !n.live)).await;
    node.become_live().await;
    assert_eq!(state().await, "online");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_volume_goes_when_its_node_has_removed_it() {
    let controller = Controller::start().await;
    let mut node = controller.live_node(1).await;
    create_volume(&controller, "").await;
    let request = DeleteVolumeRequest { request_id: String::new(), name: "db1".to_owned() };
    VolumeServiceClient::new(controller.admin()).delete_volume(request).await.unwrap();
    let commit = node.take_until(|c| volumes(&c.changes).any(|v| v.deleting)).await;
    let volume_id = volumes(&commit.changes).next().unwrap().id.clone();
    node.send(from_node::Message::ReplicaRemoved(ReplicaRemoved { volume_id: volume_id.clone() })).await;
    let gone = change::Change::RemovedVolume(volume_id);
    node.take_until(|c| c.changes.iter().any(|c| c.change.as_ref() == Some(&gone))).await;
    controller.until("gone", |state| state.volumes().count() == 0).await;
}
