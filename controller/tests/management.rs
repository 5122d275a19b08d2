//! The management API against a real member.

#![allow(missing_docs)]

mod common;

use common::{Controller, in_time};
use holdfast_pki::Role;
use holdfast_proto::v1::{
    self, CordonNodeRequest, CreateHostRequest, CreateMappingRequest, CreateVolumeRequest, DeleteHostRequest,
    DeleteMappingRequest, DeleteVolumeRequest, GetClusterRequest, GetHostRequest, GetNodeRequest,
    GetReservationRequest, HostSpec, ListHostsRequest, ListMappingsRequest, ListNodesRequest,
    ListVolumesRequest, RemoveNodeRequest, ResizeVolumeRequest, VolumeSpec, WatchEventsRequest,
    cluster_service_client::ClusterServiceClient, event_service_client::EventServiceClient,
    host_service_client::HostServiceClient, mapping_service_client::MappingServiceClient,
    node_service_client::NodeServiceClient, reservation_service_client::ReservationServiceClient,
    volume_service_client::VolumeServiceClient,
};
use tonic::{Code, Status, transport::Channel};

struct Clients {
    volumes: VolumeServiceClient<Channel>,
    hosts: HostServiceClient<Channel>,
    mappings: MappingServiceClient<Channel>,
    nodes: NodeServiceClient<Channel>,
}

impl Clients {
    fn new(controller: &Controller) -> Clients {
        let channel = controller.admin();
        Clients {
            volumes: VolumeServiceClient::new(channel.clone()),
            hosts: HostServiceClient::new(channel.clone()),
            mappings: MappingServiceClient::new(channel.clone()),
            nodes: NodeServiceClient::new(channel),
        }
    }

    async fn volume(&mut self, request_id: &str, name: &str, spec: VolumeSpec) -> Result<v1::Volume, Status> {
        let request = CreateVolumeRequest {
            request_id: request_id.to_owned(),
            name: name.to_owned(),
            spec: Some(spec),
        };
        self.volumes.create_volume(request).await.map(tonic::Response::into_inner)
    }

    async fn host(&mut self, name: &str, initiator: &str) -> Result<v1::Host, Status> {
        let spec = HostSpec { initiators: vec![initiator.to_owned()], ..Default::default() };
        let request = CreateHostRequest { name: name.to_owned(), spec: Some(spec), ..Default::default() };
        self.hosts.create_host(request).await.map(tonic::Response::into_inner)
    }

    async fn map(&mut self, volume: &str, host: &str, lun: Option<u32>) -> Result<v1::Mapping, Status> {
        let request = CreateMappingRequest {
            request_id: String::new(),
            volume: volume.to_owned(),
            host: host.to_owned(),
            lun,
            read_only: false,
            group: String::new(),
        };
        self.mappings.create_mapping(request).await.map(tonic::Response::into_inner)
    }
}

fn mib(n: u64) -> VolumeSpec {
    VolumeSpec { size_bytes: n << 20, ..Default::default() }
}

fn told(result: Result<impl std::fmt::Debug, Status>) -> (Code, String) {
    let status = result.unwrap_err();
    (status.code(), status.message().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_hosts_and_mappings_live_and_die() {
    let controller = Controller::start().await;
    let _node = controller.kept_node(1).await;
    let mut c = Clients::new(&controller);
    let created = c.volume("r1", "db1", mib(4)).await.unwrap();
    let (spec, status) = (created.spec.clone().unwrap(), created.status.clone().unwrap());
    assert_eq!((spec.block_size, spec.replicas, spec.write_cache), (512, 1, Some(true)));
    assert_eq!((spec.node.as_str(), spec.pool.as_str()), ("node-1", "default"));
    assert_eq!((status.owner.as_str(), status.state.as_str(), status.in_sync.len()), ("node-1", "online", 1));
    assert_eq!((status.id.len(), status.naa.len()), (36, 16));
    assert!(status.naa.starts_with('3'));
    // The same request: the same volume. The same id for another request: refused.
    assert_eq!(c.volume("r1", "db1", mib(4)).await.unwrap(), created);
    assert_eq!(told(c.volume("r1", "db1", mib(8)).await).0, Code::InvalidArgument);
    let exists = (Code::AlreadyExists, "volume db1 exists already".to_owned());
    assert_eq!(told(c.volume("r2", "db1", mib(4)).await), exists);

    let host = c.host("win1", "IQN.2026-11.X:Win1").await.unwrap();
    assert_eq!(host.spec.unwrap().initiators, ["iqn.2026-11.x:win1"]);
    let mapping = c.map("db1", "win1", None).await.unwrap();
    assert_eq!((mapping.volume.as_str(), mapping.lun), ("db1", 0));
    let shown = c.hosts.get_host(GetHostRequest { name: "win1".to_owned() }).await.unwrap().into_inner();
    assert_eq!(shown.status.unwrap().mappings, std::slice::from_ref(&mapping));
    let filter = ListMappingsRequest { volume: "db1".to_owned(), ..Default::default() };
    let listed = c.mappings.list_mappings(filter).await.unwrap().into_inner();
    assert_eq!((listed.mappings, listed.next_page_token.as_str()), (vec![mapping], ""));

    let delete = DeleteVolumeRequest { request_id: String::new(), name: "db1".to_owned() };
    let in_use = "volume db1 is mapped to host win1 as LUN 0; delete the mapping first".to_owned();
    assert_eq!(
        told(c.volumes.delete_volume(delete.clone()).await),
        (Code::FailedPrecondition, in_use.clone())
    );
    let delete_host = DeleteHostRequest { request_id: String::new(), name: "win1".to_owned() };
    assert_eq!(told(c.hosts.delete_host(delete_host.clone()).await), (Code::FailedPrecondition, in_use));
    let grown =
        ResizeVolumeRequest { request_id: String::new(), name: "db1".to_owned(), size_bytes: 8 << 20 };
    let grown = c.volumes.resize_volume(grown).await.unwrap().into_inner();
    assert_eq!((grown.spec.unwrap().size_bytes, grown.status.unwrap().mappings), (8 << 20, 1));
    let unmap =
        DeleteMappingRequest { volume: "db1".to_owned(), host: "win1".to_owned(), ..Default::default() };
    c.mappings.delete_mapping(unmap.clone()).await.unwrap();
    assert_eq!(told(c.mappings.delete_mapping(unmap).await).0, Code::NotFound);
    c.hosts.delete_host(delete_host).await.unwrap();
    c.volumes.delete_volume(delete).await.unwrap();
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests_are_told_what_is_wrong() {
    let controller = Controller::start().await;
    let mut c = Clients::new(&controller);
    let bad = |text: &str| (Code::InvalidArgument, text.to_owned());
    let odd = VolumeSpec { size_bytes: 1000, ..Default::default() };
    assert_eq!(
        told(c.volume("", "db1", odd).await),
        bad("spec.size_bytes: 1000 is not a multiple of the block size 512")
    );
    assert_eq!(
        told(c.volume("", "-x", mib(1)).await),
        bad(
            "name: '-x' is not a valid name: 1..63 letters, digits, '.', '_' or '-', beginning with a letter or digit"
        )
    );
    let nowhere =
        (Code::FailedPrecondition, "no place for the volume: no data node has joined yet".to_owned());
    assert_eq!(told(c.volume("", "db1", mib(1)).await), nowhere);
    let _node = controller.kept_node(1).await;
    let two = VolumeSpec { replicas: 2, ..mib(1) };
    assert_eq!(
        told(c.volume("", "db1", two).await),
        (
            Code::FailedPrecondition,
            "no place for the volume with 2 replicas: node node-1 holds a copy already".to_owned()
        )
    );
    let four = VolumeSpec { replicas: 4, ..mib(1) };
    assert_eq!(
        told(c.volume("", "db1", four).await),
        bad("spec.replicas: 4 copies asked for; 1 to 3 are kept")
    );
    let elsewhere = VolumeSpec { node: "node-9".to_owned(), ..mib(1) };
    assert_eq!(
        told(c.volume("", "db1", elsewhere).await).1,
        "no place for the volume: node node-9 does not exist"
    );
    let long = "r".repeat(65);
    assert_eq!(told(c.volume(&long, "db1", mib(1)).await), bad("request_id: longer than 64 bytes"));
    let page = ListVolumesRequest { page_size: 1, page_token: "nonsense".to_owned() };
    assert_eq!(told(c.volumes.list_volumes(page).await), bad("page_token: is not a token of this list"));
    assert_eq!(
        told(c.map("db1", "win1", None).await),
        (Code::NotFound, "volume db1 does not exist".to_owned())
    );
    c.nodes.cordon_node(CordonNodeRequest { name: "node-1".to_owned(), ..Default::default() }).await.unwrap();
    assert_eq!(told(c.volume("", "db1", mib(1)).await).1, "no place for the volume: node node-1 is cordoned");
    let viewer = controller.channel(Role::Viewer, "eve");
    let refused = HostServiceClient::new(viewer.clone()).create_host(CreateHostRequest::default()).await;
    assert_eq!(told(refused).0, Code::PermissionDenied);
    HostServiceClient::new(viewer).list_hosts(ListHostsRequest::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_volumes_go_where_the_fewest_are() {
    let controller = Controller::start().await;
    let _one = controller.kept_node(1).await;
    let _two = controller.kept_node(2).await;
    let mut c = Clients::new(&controller);
    let mut owners = Vec::new();
    for name in ["a", "b", "c", "d"] {
        owners.push(c.volume("", name, mib(1)).await.unwrap().status.unwrap().owner);
    }
    owners.sort();
    assert_eq!(owners, ["node-1", "node-1", "node-2", "node-2"]);
    let first = c.volumes.list_volumes(ListVolumesRequest { page_size: 3, page_token: String::new() });
    let first = first.await.unwrap().into_inner();
    let rest = ListVolumesRequest { page_size: 3, page_token: first.next_page_token };
    let rest = c.volumes.list_volumes(rest).await.unwrap().into_inner();
    let names: Vec<_> = first.volumes.iter().chain(&rest.volumes).map(|v| v.name.as_str()).collect();
    assert_eq!((names, rest.next_page_token.as_str()), (vec!["a", "b", "c", "d"], ""));
    let nodes = c.nodes.list_nodes(ListNodesRequest::default()).await.unwrap().into_inner().nodes;
    assert_eq!(nodes.iter().map(|n| n.status.as_ref().unwrap().volumes_owned).collect::<Vec<_>>(), [2, 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_shows_lease_and_ports() {
    let controller = Controller::start().await;
    let _node = controller.kept_node(1).await;
    let mut c = Clients::new(&controller);
    let shown = c.nodes.get_node(GetNodeRequest { name: "node-1".to_owned() }).await.unwrap().into_inner();
    let status = shown.status.unwrap();
    assert_eq!(
        (status.number, status.ports[0].relative_port, status.incarnation, status.live),
        (1, 1, 1, true)
    );
    assert!(status.lease_ms_left <= holdfast_controller::lease::LEASE_MS);
    assert!(status.applied_index > 0 && status.applied_index <= controller.handle.applied_index());
    let cluster = ClusterServiceClient::new(controller.admin())
        .get_cluster(GetClusterRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!((cluster.leader_id, cluster.members.len(), cluster.id.len()), (1, 1, 32));
    assert_eq!(cluster.target_iqn, "iqn.2026-11.internal.holdfast:test");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chap_secrets_are_sealed_and_never_shown() {
    let controller = Controller::start().await;
    let secret = "a-long-enough-secret";
    let request = CreateHostRequest {
        request_id: "h".to_owned(),
        name: "win1".to_owned(),
        spec: Some(HostSpec {
            initiators: vec!["iqn.2026-11.x:a".to_owned()],
            chap_user: "win1".to_owned(),
            chap_target_user: String::new(),
        }),
        chap_secret: secret.to_owned(),
        chap_target_secret: String::new(),
    };
    let mut hosts = HostServiceClient::new(controller.admin());
    let first = hosts.create_host(request.clone()).await.unwrap().into_inner();
    assert!(!format!("{first:?}").contains(secret));
    // Sealed anew with another nonce, and still the same request.
    assert_eq!(hosts.create_host(request).await.unwrap().into_inner(), first);
    let sealed =
        controller.handle.read(|state| state.host("win1").unwrap().chap.clone().unwrap().sealed_secret);
    assert!(sealed.len() > secret.len());
    assert!(!sealed.windows(secret.len()).any(|part| part == secret.as_bytes()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_watched_from_an_index_on() {
    let controller = Controller::start().await;
    let mut c = Clients::new(&controller);
    let mut watch = EventServiceClient::new(controller.admin());
    let mut new = watch.watch_events(WatchEventsRequest { after_index: 0 }).await.unwrap().into_inner();
    c.host("a", "iqn.2026-11.x:a").await.unwrap();
    let first = in_time("event", new.message()).await.unwrap().unwrap();
    assert_eq!((first.kind.as_str(), first.subject.as_str()), ("host.created", "host/a"));
    c.host("b", "iqn.2026-11.x:b").await.unwrap();
    let request = WatchEventsRequest { after_index: first.index };
    let mut later = watch.watch_events(request).await.unwrap().into_inner();
    let second = in_time("event", later.message()).await.unwrap().unwrap();
    assert_eq!(second.subject, "host/b");
    assert_eq!(in_time("event", new.message()).await.unwrap().unwrap(), second);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reservation_of_a_new_volume_is_none() {
    let controller = Controller::start().await;
    let _node = controller.kept_node(1).await;
    Clients::new(&controller).volume("", "db1", mib(1)).await.unwrap();
    let mut client = ReservationServiceClient::new(controller.admin());
    let request = GetReservationRequest { volume: "db1".to_owned(), paths: false };
    let shown = client.get_reservation(request).await.unwrap().into_inner();
    assert_eq!((shown.r#type.as_str(), shown.version, shown.registrations.len()), ("none", 0, 0));
    let missing = GetReservationRequest { volume: "db2".to_owned(), paths: false };
    assert_eq!(told(client.get_reservation(missing).await).0, Code::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_removed_once_it_has_stopped_and_holds_nothing() {
    let controller = Controller::start().await;
    let one = controller.kept_node(1).await;
    let _two = controller.kept_node(2).await;
    let mut c = Clients::new(&controller);
    c.volume("", "db1", VolumeSpec { node: "node-1".to_owned(), ..mib(1) }).await.unwrap();
    let remove = |name: &str| RemoveNodeRequest { name: name.to_owned(), ..Default::default() };
    let refused = told(c.nodes.remove_node(remove("node-1")).await);
    assert_eq!(refused.0, Code::FailedPrecondition);
    assert!(refused.1.contains("may still hold a lease, for "), "{}", refused.1);
    // The refusal took nothing from it: it goes on being live.
    drop(one);
    controller.until("node-1 lost", |state| !state.node_by_name("node-1").unwrap().live).await;
    assert_eq!(
        told(c.nodes.remove_node(remove("node-1")).await).1,
        "node node-1 holds a replica of volume db1; move or delete what it holds first"
    );
    // Refused, it may come back.
    drop(controller.live_node(1).await);
    controller.until("node-1 lost again", |state| !state.node_by_name("node-1").unwrap().live).await;
    let delete = DeleteVolumeRequest { request_id: String::new(), name: "db1".to_owned() };
    c.volumes.delete_volume(delete).await.unwrap();
    c.nodes.remove_node(remove("node-1")).await.unwrap();
    assert_eq!(told(c.nodes.remove_node(remove("node-1")).await).0, Code::NotFound);
    assert!(controller.handle.read(|state| state.volumes().count() == 0), "its deletion is done");
    // The same name joins as another node.
    let again = controller.node(1, 1, 0).await;
    assert_eq!((again.number(), again.incarnation()), (3, 1));
}
