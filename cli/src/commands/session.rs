//! `holdfast session` and `holdfast unit-attention`.

use anyhow::bail;
use holdfast_proto::v1::{
    EndSessionRequest, ListSessionsRequest, ListSessionsResponse, NodeAnswer, Session as SessionRecord,
    SessionLun, session_service_client::SessionServiceClient,
};

use crate::{
    arguments::{Client, Session, SessionFilter, UnitAttention},
    connection::{connect, refusal, request_id},
    output::{facts, or_dash, print, table, utc},
    size::Size,
};

async fn list(client: &Client, filter: SessionFilter) -> anyhow::Result<ListSessionsResponse> {
    let mut service = SessionServiceClient::new(connect(client).await?);
    let request = ListSessionsRequest {
        host: filter.host.unwrap_or_default(),
        node: filter.node.unwrap_or_default(),
        volume: filter.volume.unwrap_or_default(),
    };
    Ok(service.list_sessions(request).await.map_err(refusal)?.into_inner())
}

pub(crate) async fn run(client: &Client, verb: Session) -> anyhow::Result<()> {
    match verb {
        Session::List(filter) => {
            let answer = list(client, filter).await?;
            print(client.output, "ListSessionsResponse", &answer, || {
                with_silent(rows(&answer.sessions), &answer)
            })
        }
        Session::Show { initiator, rtpi } => {
            let answer = list(client, SessionFilter::default()).await?;
            let wanted = |session: &SessionRecord| {
                let name = session.initiator.split(",i,").next();
                let named = session.initiator.eq_ignore_ascii_case(&initiator)
                    || name.is_some_and(|name| name.eq_ignore_ascii_case(&initiator));
                named && rtpi.is_none_or(|port| u32::from(port) == session.relative_port)
            };
            let sessions: Vec<_> = answer.sessions.iter().filter(|s| wanted(s)).cloned().collect();
            if sessions.is_empty() {
                let silent = silent(&answer.nodes);
                bail!("no session of {initiator}{}{silent}", if silent.is_empty() { "" } else { "; " });
            }
            let found = ListSessionsResponse { sessions, nodes: answer.nodes };
            print(client.output, "ListSessionsResponse", &found, || {
                let all: Vec<String> = found.sessions.iter().map(details).collect();
                with_silent(all.join("\n"), &found)
            })
        }
        Session::End { initiator, rtpi } => {
            let mut service = SessionServiceClient::new(connect(client).await?);
            let request = EndSessionRequest {
                request_id: request_id(),
                initiator: initiator.clone(),
                relative_port: u32::from(rtpi),
            };
            service.end_session(request).await.map_err(refusal)?;
            println!("session of {initiator} through port {rtpi} ended");
            Ok(())
        }
    }
}

pub(crate) async fn unit_attentions(client: &Client, verb: UnitAttention) -> anyhow::Result<()> {
    let UnitAttention::List(filter) = verb;
    let volume = filter.volume.clone();
    let mut answer = list(client, filter).await?;
    for session in &mut answer.sessions {
        session.luns.retain(|lun| {
            !lun.unit_attentions.is_empty() && volume.as_ref().is_none_or(|volume| *volume == lun.volume)
        });
    }
    answer.sessions.retain(|session| !session.luns.is_empty());
    print(client.output, "ListSessionsResponse", &answer, || {
        let rows = answer.sessions.iter().flat_map(|session| {
            session.luns.iter().map(|lun| {
                [
                    session.initiator.clone(),
                    or_dash(&session.host),
                    session.node.clone(),
                    session.relative_port.to_string(),
                    lun.lun.to_string(),
                    lun.volume.clone(),
                    lun.unit_attentions.join(" "),
                ]
            })
        });
        let header = ["initiator", "host", "through", "rtpi", "lun", "volume", "pending"];
        with_silent(table(header, rows), &answer)
    })
}

/// "3: 29/00 2a/09".
pub(crate) fn pending(luns: &[SessionLun]) -> String {
    let lun = |lun: &SessionLun| format!("{}: {}", lun.lun, lun.unit_attentions.join(" "));
    let all: Vec<String> = luns.iter().filter(|l| !l.unit_attentions.is_empty()).map(lun).collect();
    or_dash(&all.join("\n"))
}

/// Which nodes are not shown, and why; empty when all are.
pub(crate) fn silent(nodes: &[NodeAnswer]) -> String {
    let unknown = nodes
        .iter()
        .filter(|node| !node.answered)
        .map(|node| format!("not known: the sessions of node {}: {}", node.node, node.reason));
    let cut = nodes
        .iter()
        .filter(|node| node.truncated)
        .map(|node| format!("not all shown: node {} has more sessions than it can tell at once", node.node));
    unknown.chain(cut).collect::<Vec<_>>().join("\n")
}

fn with_silent(text: String, answer: &ListSessionsResponse) -> String {
    let silent = silent(&answer.nodes);
    if silent.is_empty() { text } else { format!("{text}\n{silent}") }
}

fn rows(sessions: &[SessionRecord]) -> String {
    table(
        [
            "initiator",
            "host",
            "node",
            "rtpi",
            "portal",
            "since",
            "luns",
            "commands",
            "read",
            "written",
            "errors",
            "under way",
            "pending",
        ],
        sessions.iter().map(|session| {
            let counted = session.counters.unwrap_or_default();
            [
                session.initiator.clone(),
                or_dash(&session.host),
                session.node.clone(),
                session.relative_port.to_string(),
                or_dash(&session.portal),
                session.since.as_ref().map_or_else(|| "-".to_owned(), |since| utc(since.seconds)),
                session.luns.len().to_string(),
                counted.commands.to_string(),
                Size(counted.data_in_bytes).to_string(),
                Size(counted.data_out_bytes).to_string(),
                counted.check_conditions.to_string(),
                session.commands_under_way.to_string(),
                pending(&session.luns),
            ]
        }),
    )
}

fn details(session: &SessionRecord) -> String {
    let counted = session.counters.unwrap_or_default();
    let yes = |on: bool| if on { "Yes" } else { "No" }.to_owned();
    let digest = |on: bool| if on { "CRC32C" } else { "None" }.to_owned();
    let luns: Vec<String> = session
        .luns
        .iter()
        .map(|lun| {
            let access = if lun.read_only { ", read-only" } else { "" };
            let pending = lun.unit_attentions.join(" ");
            let pending = if pending.is_empty() { pending } else { format!(", pending {pending}") };
            format!("{}: {}{access}{pending}", lun.lun, lun.volume)
        })
        .collect();
    facts([
        ("initiator", session.initiator.clone()),
        ("alias", or_dash(&session.alias)),
        ("host", or_dash(&session.host)),
        ("node", session.node.clone()),
        ("relative port", session.relative_port.to_string()),
        ("portal", or_dash(&session.portal)),
        ("TSIH", session.tsih.to_string()),
        ("since", session.since.as_ref().map_or_else(|| "-".to_owned(), |since| utc(since.seconds))),
        ("HeaderDigest", digest(session.header_digest)),
        ("DataDigest", digest(session.data_digest)),
        ("MaxBurstLength", session.max_burst_bytes.to_string()),
        ("FirstBurstLength", session.first_burst_bytes.to_string()),
        ("InitialR2T", yes(session.initial_r2t)),
        ("ImmediateData", yes(session.immediate_data)),
        ("MaxOutstandingR2T", session.max_outstanding_r2t.to_string()),
        ("segment to it", session.send_segment_bytes.to_string()),
        ("segment from it", session.receive_segment_bytes.to_string()),
        ("under way", session.commands_under_way.to_string()),
        ("commands", counted.commands.to_string()),
        ("data to it", format!("{} ({} bytes)", Size(counted.data_in_bytes), counted.data_in_bytes)),
        ("data from it", format!("{} ({} bytes)", Size(counted.data_out_bytes), counted.data_out_bytes)),
        ("CHECK CONDITION", counted.check_conditions.to_string()),
        ("Unit Attentions", counted.unit_attentions.to_string()),
        ("RESERVATION CONFLICT", counted.reservation_conflicts.to_string()),
        ("BUSY", counted.busy.to_string()),
        ("aborted", counted.aborted.to_string()),
        ("luns", or_dash(&luns.join("; "))),
    ])
}
