//! ScrubService: what data nodes say of the scrubs of their copies when they are asked, and passes that are begun.
//!
//! Invariants: nothing is shown from memory; a pass that a node says to have begun is in the audit, and success is answered only when at least one
//! has; a call that comes again with its id begins nothing more.

use futures::future::join_all;
use holdfast_proto::{
    node::{ScrubQuestion, ScrubState},
    state as records,
    v1::{
        BeginScrubRequest, GetScrubRequest, Scrub, ScrubCopy, ScrubSource, scrub_service_server::ScrubService,
    },
};
use tonic::{Request, Response, Status};

use super::{Api, called, request::client_request, status};
use crate::{
    session::registry::NoAnswer,
    state::{
        Body, Kind, Refusal, StateMachine,
        audit::timestamp,
        names::{bounded, printable},
    },
};

/// What became of the wish for a pass at one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begun {
    Yes,
    No,
    /// The node was asked, and has not answered.
    Unknown,
}

/// A volume with checksums, and the nodes of its copies.
struct Target {
    name: String,
    id: Vec<u8>,
    nodes: Vec<(u32, String)>,
}

impl Target {
    fn of(state: &StateMachine, name: &str) -> Result<Target, Refusal> {
        let volume = state
            .volume_by_name(name)
            .ok_or(Refusal::NotFound { kind: Kind::Volume, name: printable(name) })?;
        let record = volume.record();
        if !record.checksums {
            return Err(Refusal::Precondition(format!(
                "volume {name} keeps no checksums, so that damage cannot be told: they are chosen when a volume is created"
            )));
        }
        // One that is being removed is gone in a moment.
        let members = record.in_sync.iter().chain(&record.learners).chain(&record.absent);
        let nodes = members.map(|member| (member.node, state.node_name(member.node))).collect();
        Ok(Target { name: record.name.clone(), id: record.id.clone(), nodes })
    }
}

impl Api {
    async fn scrub_target(&self, name: &str) -> Result<Target, Status> {
        self.read(|state| Target::of(state, name)).await?.map_err(|refusal| status::refused(&refusal))
    }

    /// Asks every node of the volume at the same time.
    async fn ask_scrubs(&self, target: &Target, begin: bool, request_id: &str) -> Vec<(Begun, ScrubCopy)> {
        let asked = target.nodes.iter().map(|(number, name)| async move {
            let question = ScrubQuestion { volume_id: target.id.clone(), begin };
            let answer = self.nodes.ask_scrub(*number, question, request_id.to_owned()).await;
            let unknown = |begun, reason: String| {
                (begun, ScrubCopy { node: name.clone(), reason, ..ScrubCopy::default() })
            };
            match answer.map(|inspection| inspection.scrub) {
                Ok(Some(state)) if state.present => {
                    let begun = if state.begun { Begun::Yes } else { Begun::No };
                    let refused = begin && !state.begun;
                    (begun, self.raft.read(|names| copy(names, name, &state, refused)))
                }
                Ok(Some(_)) => unknown(Begun::No, "its copy is not in use there now".to_owned()),
                Ok(None) => unknown(Begun::No, "its version cannot tell".to_owned()),
                Err(NoAnswer::Silent) if begin => {
                    unknown(Begun::Unknown, format!("{}; it may have begun one", NoAnswer::Silent))
                }
                Err(error) => unknown(Begun::No, error.to_string()),
            }
        });
        join_all(asked).await
    }
}

fn copy(names: &StateMachine, node: &str, state: &ScrubState, refused: bool) -> ScrubCopy {
    let moment = |unix_ms: u64| (unix_ms > 0).then(|| timestamp(unix_ms));
    let word = match (state.off, state.running) {
        (true, _) => "off",
        (false, true) => "running",
        (false, false) => "idle",
    };
    let reason = match refused {
        true if state.off => "its scrub is off: it was started with --scrub-bytes-per-second-max 0",
        true => "it has begun none",
        false => "",
    };
    let source = |node: u32| if node == 0 { String::new() } else { names.node_name(node) };
    ScrubCopy {
        node: node.to_owned(),
        answered: true,
        reason: reason.to_owned(),
        state: word.to_owned(),
        position_bytes: if state.running { state.position_bytes } else { 0 },
        size_bytes: state.size_bytes,
        read_bytes: state.read_bytes,
        estimated_seconds_left: state.estimated_seconds_left,
        began: moment(state.began_unix_ms),
        ended: moment(state.ended_unix_ms),
        damaged_blocks: state.damaged_blocks,
        healed_blocks: state.healed.iter().map(|healing| healing.blocks).sum(),
        healed_from: state
            .healed
            .iter()
            .map(|healing| ScrubSource { node: source(healing.node), blocks: healing.blocks })
            .collect(),
        damaged_blocks_left: state.damaged_blocks_left,
        failed: bounded(&state.failed),
    }
}

#[tonic::async_trait]
impl ScrubService for Api {
    async fn get_scrub(&self, request: Request<GetScrubRequest>) -> Result<Response<Scrub>, Status> {
        let target = self.scrub_target(&request.into_inner().volume).await?;
        let copies = self.ask_scrubs(&target, false, "").await.into_iter().map(|(_, copy)| copy).collect();
        Ok(Response::new(Scrub { volume: target.name, copies }))
    }

    async fn begin_scrub(&self, request: Request<BeginScrubRequest>) -> Result<Response<Scrub>, Status> {
        let (call, mut request) = called(request)?;
        let request_id = std::mem::take(&mut request.request_id);
        let client = client_request(request_id.clone(), "BeginScrub", &request);
        let done = self.answered(client.as_ref()).await?.is_some();
        let target = self.scrub_target(&request.volume).await?;
        let told = self.ask_scrubs(&target, !done, &request_id).await;
        let nodes: Vec<String> = told
            .iter()
            .filter(|(begun, _)| *begun == Begun::Yes)
            .map(|(_, copy)| copy.node.clone())
            .collect();
        let unknown = told.iter().any(|(begun, _)| *begun == Begun::Unknown);
        let copies: Vec<ScrubCopy> = told.into_iter().map(|(_, copy)| copy).collect();
        if done {
            return Ok(Response::new(Scrub { volume: target.name, copies }));
        }
        if nodes.is_empty() {
            let reasons = copies.iter().map(|copy| format!("node {}: {}", copy.node, copy.reason));
            let reasons = reasons.collect::<Vec<_>>().join("; ");
            let reason = format!("no scrub of volume {} was begun: {reasons}", target.name);
            return Err(match unknown {
                true => Status::deadline_exceeded(reason),
                false => Status::failed_precondition(reason),
            });
        }
        let volume = target.name.clone();
        let record = records::RecordScrub { volume, nodes, request: client };
        if let Err(error) = self.write(&call, Body::RecordScrub(record)).await {
            tracing::error!(%error, volume = target.name, "the beginning of a scrub is not in the audit");
        }
        Ok(Response::new(Scrub { volume: target.name, copies }))
    }
}
