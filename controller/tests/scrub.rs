//! Scrubs that people ask for, against a real member: whom it asks, what it tells, and what stays in the audit.

#![allow(missing_docs)]

mod common;

use common::{Controller, Node, in_time};
use holdfast_proto::{
    node::{Inspection, ScrubHealing, ScrubState, from_node},
    v1::{
        BeginScrubRequest, CreateVolumeRequest, GetScrubRequest, ListAuditRequest, Scrub, VolumeSpec,
        audit_service_client::AuditServiceClient, scrub_service_client::ScrubServiceClient,
        volume_service_client::VolumeServiceClient,
    },
};
use tonic::{Code, Status};

async fn create(controller: &Controller, name: &str, checksums: bool) {
    let spec = VolumeSpec { size_bytes: 1 << 20, node: "node-1".to_owned(), checksums, ..Default::default() };
    let request =
        CreateVolumeRequest { request_id: name.to_owned(), name: name.to_owned(), spec: Some(spec) };
    VolumeServiceClient::new(controller.admin()).create_volume(request).await.unwrap();
}

async fn get(controller: &Controller, volume: &str) -> Result<Scrub, Status> {
    let request = GetScrubRequest { volume: volume.to_owned() };
    Ok(ScrubServiceClient::new(controller.admin()).get_scrub(request).await?.into_inner())
}

async fn begin(controller: &Controller, volume: &str, request_id: &str) -> Result<Scrub, Status> {
    let request = BeginScrubRequest { request_id: request_id.to_owned(), volume: volume.to_owned() };
    Ok(ScrubServiceClient::new(controller.admin()).begin_scrub(request).await?.into_inner())
}

/// Answers the next question, which asks to begin a pass or does not.
async fn answer(node: &mut Node, begin: bool, state: ScrubState) {
    let question = node.question().await;
    assert_eq!(question.scrub.map(|asked| asked.begin), Some(begin));
    let answer = Inspection { id: question.id, scrub: Some(state), ..Default::default() };
    node.send(from_node::Message::Inspection(answer)).await;
}

async fn scrubs_in_audit(controller: &Controller) -> usize {
    let request = ListAuditRequest { subject: "volume/sums".to_owned(), ..Default::default() };
    let listed = AuditServiceClient::new(controller.admin()).list_audit(request).await.unwrap().into_inner();
    listed.records.iter().filter(|record| record.action == "volume.scrub" && record.outcome == "done").count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_without_checksums_or_none_at_all_is_refused() {
    let controller = Controller::start().await;
    let _node = controller.live_node(1).await;
    create(&controller, "plain", false).await;
    for refused in [get(&controller, "plain").await, begin(&controller, "plain", "r").await] {
        let refused = refused.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert_eq!(
            refused.message(),
            "volume plain keeps no checksums, so that damage cannot be told: they are chosen when a volume is created"
        );
    }
    assert_eq!(get(&controller, "nothing").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(begin(&controller, "nothing", "r").await.unwrap_err().code(), Code::NotFound);
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pass_is_begun_once_by_a_request_and_is_in_the_audit() {
    let controller = Controller::start().await;
    let mut node = controller.live_node(1).await;
    create(&controller, "sums", true).await;
    let none = ScrubState::default();
    let (refused, ()) = in_time("refusal", async {
        tokio::join!(begin(&controller, "sums", "q"), answer(&mut node, true, none))
    })
    .await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(
        refused.message(),
        "no scrub of volume sums was begun: node node-1: its copy is not in use there now"
    );
    assert_eq!(scrubs_in_audit(&controller).await, 0);
    let running = ScrubState {
        present: true,
        running: true,
        begun: true,
        began_unix_ms: 5_000,
        size_bytes: 1 << 20,
        ..Default::default()
    };
    let (begun, ()) = in_time("beginning", async {
        tokio::join!(begin(&controller, "sums", "r"), answer(&mut node, true, running))
    })
    .await;
    let begun = begun.unwrap();
    assert_eq!((begun.volume.as_str(), begun.copies.len()), ("sums", 1));
    let copy = &begun.copies[0];
    assert!(copy.answered && copy.reason.is_empty() && copy.ended.is_none(), "{copy:?}");
    assert_eq!((copy.node.as_str(), copy.state.as_str()), ("node-1", "running"));
    assert_eq!(copy.began.map(|time| time.seconds), Some(5));
    assert_eq!(scrubs_in_audit(&controller).await, 1);
    let ended = ScrubState {
        present: true,
        ended_unix_ms: 9_000,
        damaged_blocks: 4,
        damaged_blocks_left: 1,
        healed: vec![ScrubHealing { node: 0, blocks: 2 }, ScrubHealing { node: 1, blocks: 1 }],
        ..Default::default()
    };
    // The call comes again: only a question.
    let (again, ()) = in_time("answer", async {
        tokio::join!(begin(&controller, "sums", "r"), answer(&mut node, false, ended))
    })
    .await;
    let again = again.unwrap();
    let copy = &again.copies[0];
    assert_eq!((copy.state.as_str(), copy.reason.as_str(), copy.healed_blocks), ("idle", "", 3));
    let from: Vec<_> = copy.healed_from.iter().map(|from| (from.node.as_str(), from.blocks)).collect();
    assert_eq!(from, [("", 2), ("node-1", 1)]);
    assert_eq!(scrubs_in_audit(&controller).await, 1);
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_cannot_tell_is_named_with_its_reason() {
    let controller = Controller::start().await;
    let mut node = controller.live_node(1).await;
    create(&controller, "sums", true).await;
    let off = ScrubState { present: true, off: true, ..Default::default() };
    let (refused, ()) = in_time("refusal", async {
        tokio::join!(begin(&controller, "sums", ""), answer(&mut node, true, off))
    })
    .await;
    assert_eq!(
        refused.unwrap_err().message(),
        "no scrub of volume sums was begun: node node-1: its scrub is off: it was started with \
         --scrub-bytes-per-second-max 0"
    );
    // A version that knows sessions only.
    let older = async {
        let question = node.question().await;
        let answer = Inspection { id: question.id, ..Default::default() };
        node.send(from_node::Message::Inspection(answer)).await;
    };
    let (told, ()) = in_time("answer", async { tokio::join!(get(&controller, "sums"), older) }).await;
    let copy = told.unwrap().copies.remove(0);
    assert_eq!((copy.answered, copy.reason.as_str()), (false, "its version cannot tell"));
    controller.stop().await;
}
