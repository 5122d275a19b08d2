//! Watches that go on from a revision, against a real member.

#![allow(missing_docs)]

mod common;

use std::collections::BTreeMap;

use common::{Controller, in_time};
use holdfast_proto::node::{ReplicaRemoved, from_node};
use holdfast_proto::v1::{
    CreateHostRequest, CreateMappingRequest, CreateVolumeRequest, DeleteHostRequest, DeleteMappingRequest,
    DeleteVolumeRequest, GetVolumeRequest, HostSpec, VolumeChange, VolumeSpec, WatchAuditRequest,
    WatchHostsRequest, WatchMappingsRequest, WatchNodesRequest, WatchReservationsRequest,
    WatchVolumesRequest, audit_service_client::AuditServiceClient, host_change,
    host_service_client::HostServiceClient, mapping_change, mapping_service_client::MappingServiceClient,
    node_service_client::NodeServiceClient, reservation_service_client::ReservationServiceClient,
    volume_change::Change, volume_service_client::VolumeServiceClient,
};
use tonic::{Code, Streaming, transport::Channel};

/// What somebody knows who applies every step.
#[derive(Debug, Default)]
struct Seen {
    sizes: BTreeMap<String, u64>,
    revision: u64,
    steps: usize,
}

impl Seen {
    fn apply(&mut self, step: VolumeChange) -> bool {
        assert!(step.revision >= self.revision, "revisions only grow");
        self.revision = step.revision;
        self.steps += 1;
        match step.change.unwrap() {
            Change::Changed(volume) => drop(self.sizes.insert(volume.name, volume.spec.unwrap().size_bytes)),
            Change::Removed(name) => drop(self.sizes.remove(&name)),
            Change::Synced(_) => return true,
        }
        false
    }

    async fn until_synced(&mut self, stream: &mut Streaming<VolumeChange>) {
        while !self.apply(in_time("a step", stream.message()).await.unwrap().unwrap()) {}
    }
}

async fn watch(volumes: &mut VolumeServiceClient<Channel>, after_revision: u64) -> Streaming<VolumeChange> {
    volumes.watch_volumes(WatchVolumesRequest { after_revision }).await.unwrap().into_inner()
}

async fn create(volumes: &mut VolumeServiceClient<Channel>, name: &str) {
    let spec = Some(VolumeSpec { size_bytes: 1 << 20, ..Default::default() });
    let request = CreateVolumeRequest { name: name.to_owned(), spec, ..Default::default() };
    volumes.create_volume(request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_goes_on_where_it_broke_off() {
    let controller = Controller::start().await;
    let node = controller.kept_node(1).await;
    let mut volumes = VolumeServiceClient::new(controller.admin());
    create(&mut volumes, "stays").await;
    create(&mut volumes, "goes").await;
    let mut seen = Seen::default();
    let mut first = watch(&mut volumes, 0).await;
    seen.until_synced(&mut first).await;
    assert_eq!(seen.sizes.keys().collect::<Vec<_>>(), ["goes", "stays"]);
    assert!(seen.revision > 0);
    drop(first);
    // Meanwhile one comes and one goes.
    create(&mut volumes, "comes").await;
    let goes = GetVolumeRequest { name: "goes".to_owned() };
    let id = volumes.get_volume(goes).await.unwrap().into_inner().status.unwrap().id;
    let hex: String = id.chars().filter(|digit| *digit != '-').collect();
    let volume_id = (0..16).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect();
    let delete = DeleteVolumeRequest { name: "goes".to_owned(), ..Default::default() };
    volumes.delete_volume(delete).await.unwrap();
    node.say(from_node::Message::ReplicaRemoved(ReplicaRemoved { volume_id })).await;
    controller.until("it is gone", |state| state.volume_by_name("goes").is_none()).await;
    let mut steps = seen.steps;
    let mut again = watch(&mut volumes, seen.revision).await;
    seen.until_synced(&mut again).await;
    assert_eq!(seen.sizes.keys().collect::<Vec<_>>(), ["comes", "stays"]);
    steps = seen.steps - steps;
    // "stays" is not told again, and every step before the mark is one of the two.
    assert!(steps <= 4, "{steps} steps");
    // Live from there on.
    create(&mut volumes, "later").await;
    while !seen.sizes.contains_key("later") {
        seen.apply(in_time("a step", again.message()).await.unwrap().unwrap());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revision_that_is_not_kept_is_said_to_be_none() {
    let controller = Controller::start().await;
    let _node = controller.kept_node(1).await;
    let nowhere = u64::MAX;
    let status = VolumeServiceClient::new(controller.admin())
        .watch_volumes(WatchVolumesRequest { after_revision: nowhere })
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange);
    assert!(status.message().ends_with("begin anew with 0"), "{}", status.message());
    let nodes = WatchNodesRequest { after_revision: nowhere };
    let told = NodeServiceClient::new(controller.admin()).watch_nodes(nodes).await.unwrap_err();
    assert_eq!(told.code(), Code::OutOfRange);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_tells_what_comes_and_what_goes() {
    let controller = Controller::start().await;
    let _node = controller.kept_node(1).await;
    let mut volumes = VolumeServiceClient::new(controller.admin());
    let mut hosts = HostServiceClient::new(controller.admin());
    let mut maps = MappingServiceClient::new(controller.admin());
    let mut nodes = NodeServiceClient::new(controller.admin());
    let mut reservations = ReservationServiceClient::new(controller.admin());
    let mut audit = AuditServiceClient::new(controller.admin());
    let mut watched_maps = maps.watch_mappings(WatchMappingsRequest::default()).await.unwrap().into_inner();
    let mut watched_hosts = hosts.watch_hosts(WatchHostsRequest::default()).await.unwrap().into_inner();
    let mut audited = audit
        .watch_audit(WatchAuditRequest { subject: "host/".to_owned(), ..Default::default() })
        .await
        .unwrap()
        .into_inner();
    create(&mut volumes, "db1").await;
    let spec = HostSpec { initiators: vec!["iqn.2026-11.x:a".to_owned()], ..Default::default() };
    let host = CreateHostRequest { name: "h".to_owned(), spec: Some(spec), ..Default::default() };
    hosts.create_host(host).await.unwrap();
    let record = in_time("an audit record", audited.message()).await.unwrap().unwrap();
    assert_eq!((record.action.as_str(), record.subject.as_str()), ("host.create", "host/h"));
    let (volume, host) = ("db1".to_owned(), "h".to_owned());
    let map = CreateMappingRequest { volume: volume.clone(), host: host.clone(), ..Default::default() };
    maps.create_mapping(map).await.unwrap();
    let mut after = 0;
    loop {
        let step = in_time("a mapping", watched_maps.message()).await.unwrap().unwrap();
        after = step.revision.max(after);
        if let Some(mapping_change::Change::Changed(mapping)) = step.change {
            assert_eq!((mapping.host.as_str(), mapping.volume.as_str(), mapping.lun), ("h", "db1", 0));
            break;
        }
    }
    drop(watched_maps);
    let unmap = DeleteMappingRequest { volume, host, ..Default::default() };
    maps.delete_mapping(unmap).await.unwrap();
    // Who goes on hears that it is gone, although nothing of it is left.
    let request = WatchMappingsRequest { after_revision: after, ..Default::default() };
    let mut again = maps.watch_mappings(request).await.unwrap().into_inner();
    let step = in_time("what has changed since", again.message()).await.unwrap().unwrap();
    assert_eq!(step.change, Some(mapping_change::Change::Removed("h/db1".to_owned())));
    hosts.delete_host(DeleteHostRequest { name: "h".to_owned(), ..Default::default() }).await.unwrap();
    loop {
        let step = in_time("a host", watched_hosts.message()).await.unwrap().unwrap();
        if let Some(host_change::Change::Removed(name)) = step.change {
            assert_eq!(name, "h");
            break;
        }
    }
    let mut watched = nodes.watch_nodes(WatchNodesRequest::default()).await.unwrap().into_inner();
    let first = in_time("a node", watched.message()).await.unwrap().unwrap();
    assert!(format!("{first:?}").contains("node-1"));
    // Nothing was ever reserved: only the mark.
    let request = WatchReservationsRequest::default();
    let mut watched = reservations.watch_reservations(request).await.unwrap().into_inner();
    let mark = in_time("the mark", watched.message()).await.unwrap().unwrap();
    assert!(mark.revision > 0 && format!("{mark:?}").contains("Synced"));
}
