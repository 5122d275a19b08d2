//! The audit against real members: who, what, and what became of it, also of what was refused.

#![allow(missing_docs)]

mod common;

use common::{Controller, Node, hello, in_time};
use holdfast_pki::Role;
use holdfast_proto::node::ProposeReservationRequest;
use holdfast_proto::v1::{
    AuditRecord, CordonNodeRequest, CreateHostRequest, CreateVolumeRequest, DeleteVolumeRequest, HostSpec,
    ListAuditRequest, ListAuditResponse, VolumeSpec, WatchEventsRequest,
    audit_service_client::AuditServiceClient, event_service_client::EventServiceClient,
    host_service_client::HostServiceClient, node_service_client::NodeServiceClient,
    volume_service_client::VolumeServiceClient,
};
use tonic::Code;

async fn list(controller: &Controller, request: ListAuditRequest) -> ListAuditResponse {
    AuditServiceClient::new(controller.admin()).list_audit(request).await.unwrap().into_inner()
}

async fn of(controller: &Controller, subject: &str) -> Vec<AuditRecord> {
    let request = ListAuditRequest { subject: subject.to_owned(), ..Default::default() };
    list(controller, request).await.records
}

/// Waits for a record of a refused call.
async fn refused(controller: &Controller, is_it: impl Fn(&AuditRecord) -> bool) -> AuditRecord {
    let mut applied = controller.handle.watch_applied();
    let found = async {
        loop {
            applied.borrow_and_update();
            let all = of(controller, "").await;
            if let Some(record) = all.into_iter().find(|r| r.part == "refused" && is_it(r)) {
                return record;
            }
            applied.changed().await.unwrap();
        }
    };
    in_time("the refused call in the audit", found).await
}

fn host(name: &str) -> CreateHostRequest {
    CreateHostRequest {
        name: name.to_owned(),
        spec: Some(HostSpec {
            initiators: vec![format!("iqn.2026-11.x:{name}")],
            chap_user: "user-of-host".to_owned(),
            chap_target_user: String::new(),
        }),
        chap_secret: "a-long-enough-secret".to_owned(),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_is_recorded_with_its_caller_and_without_its_secret() {
    let controller = Controller::start().await;
    let mut watch = EventServiceClient::new(controller.admin());
    let mut events = watch.watch_events(WatchEventsRequest { after_index: 0 }).await.unwrap().into_inner();
    let mut hosts = HostServiceClient::new(controller.channel(Role::Operator, "alice"));
    hosts.create_host(host("win1")).await.unwrap();
    assert_eq!(hosts.create_host(host("win1")).await.unwrap_err().code(), Code::AlreadyExists);
    let records = of(&controller, "host/win1").await;
    assert_eq!(records.len(), 2);
    let (done, again) = (&records[0], &records[1]);
    assert_eq!(
        (done.role.as_str(), done.name.as_str(), done.part.as_str()),
        ("operator", "alice", "management")
    );
    assert_eq!((done.action.as_str(), done.outcome.as_str(), done.times), ("host.create", "done", 1));
    assert!(done.time.is_some_and(|time| time.seconds > 0));
    let field = |name: &str| done.fields.iter().find(|f| f.name == name).map(|f| f.value.as_str());
    assert_eq!(field("initiators"), Some("iqn.2026-11.x:win1"));
    assert_eq!(field("chap_user"), Some("user-of-host"));
    assert!(!format!("{done:?}").contains("secret"), "{done:?}");
    assert_eq!((again.outcome.as_str(), again.reason.as_str()), ("refused", "host win1 exists already"));
    let event = in_time("event", events.message()).await.unwrap().unwrap();
    assert_eq!((event.kind.as_str(), event.caller.as_str()), ("host.created", "operator alice"));
    // What was decided in the log is not recorded a second time as a refused call: one that was refused later is there alone.
    let mut viewer = HostServiceClient::new(controller.channel(Role::Viewer, "eve"));
    viewer.create_host(host("win2")).await.unwrap_err();
    refused(&controller, |r| r.name == "eve").await;
    assert_eq!(of(&controller, "").await.iter().filter(|r| r.part == "refused").count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_of_a_wrong_role_and_of_unknown_nodes_are_recorded() {
    let controller = Controller::start().await;
    let mut viewer = HostServiceClient::new(controller.channel(Role::Viewer, "eve"));
    for _ in 0..5 {
        assert_eq!(viewer.create_host(host("win1")).await.unwrap_err().code(), Code::PermissionDenied);
    }
    let record = refused(&controller, |r| r.name == "eve").await;
    assert_eq!((record.role.as_str(), record.action.as_str()), ("viewer", "HostService/CreateHost"));
    assert!(record.reason.contains("is for the role admin or operator"), "{}", record.reason);

    // A node that takes another's name, and a stranger that proposes.
    let mut wrong = hello(2, 1, 0);
    wrong.name = "node-1".to_owned();
    let code = Node::begin(controller.agent("node-2"), wrong).await.err().map(|status| status.code());
    assert_eq!(code, Some(Code::PermissionDenied));
    let record = refused(&controller, |r| r.name == "node-2").await;
    assert!(record.reason.contains("not of 'node-1'"), "{}", record.reason);
    controller.agent("node-9").propose_reservation(ProposeReservationRequest::default()).await.unwrap_err();
    let record = refused(&controller, |r| r.name == "node-9").await;
    assert_eq!(record.reason, "node node-9 has not joined yet");

    // Turned down by the API, before the log.
    let spec = VolumeSpec { size_bytes: 1000, ..Default::default() };
    let request = CreateVolumeRequest { name: "db1".to_owned(), spec: Some(spec), ..Default::default() };
    VolumeServiceClient::new(controller.admin()).create_volume(request).await.unwrap_err();
    let record = refused(&controller, |r| r.action == "VolumeService/CreateVolume").await;
    assert!(record.reason.starts_with("spec.size_bytes: 1000"), "{}", record.reason);
    // Nothing that only reads is a change.
    assert!(of(&controller, "").await.iter().all(|r| !r.action.contains("List")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_nodes_and_their_owner_are_recorded_and_pages_hold_everything_once() {
    let controller = Controller::start().await;
    let _node = controller.kept_node(1).await;
    let joined = of(&controller, "node/node-1").await;
    assert_eq!(joined[0].action, "node.join");
    assert_eq!((joined[0].role.as_str(), joined[0].name.as_str()), ("node", "node-1"));
    assert_eq!((joined[1].action.as_str(), joined[1].name.as_str()), ("node.live", "ctl-1"));
    let mut nodes = NodeServiceClient::new(controller.admin());
    nodes.cordon_node(CordonNodeRequest { name: "node-1".to_owned(), ..Default::default() }).await.unwrap();
    let missing = DeleteVolumeRequest { name: "nothing".to_owned(), ..Default::default() };
    VolumeServiceClient::new(controller.admin()).delete_volume(missing).await.unwrap_err();
    assert_eq!(of(&controller, "volume/").await.len(), 1);

    let whole = of(&controller, "").await;
    assert!(whole.windows(2).all(|pair| (pair[0].index, pair[0].ordinal) < (pair[1].index, pair[1].ordinal)));
    let (mut paged, mut page_token) = (Vec::new(), String::new());
    loop {
        let page =
            list(&controller, ListAuditRequest { page_size: 2, page_token, ..Default::default() }).await;
        assert!(page.records.len() <= 2);
        paged.extend(page.records);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(paged, whole);
    let after = ListAuditRequest { after_index: joined[0].index, ..Default::default() };
    let later = list(&controller, after).await.records;
    assert_eq!(later.as_slice(), &whole[whole.iter().position(|r| r.index > joined[0].index).unwrap()..]);
    let nonsense = ListAuditRequest { page_token: "61".to_owned(), ..Default::default() };
    let answer = AuditServiceClient::new(controller.admin()).list_audit(nonsense).await;
    assert_eq!(answer.unwrap_err().code(), Code::InvalidArgument);
    AuditServiceClient::new(controller.channel(Role::Viewer, "eve"))
        .list_audit(ListAuditRequest::default())
        .await
        .unwrap();
}
