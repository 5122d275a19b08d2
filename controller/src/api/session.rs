//! SessionService: what data nodes say of their sessions when they are asked.

use futures::future::join_all;
use holdfast_proto::{
    node::{Inspection, SessionState},
    state as records,
    v1::{
        EndSessionRequest, EndSessionResponse, ListSessionsRequest, ListSessionsResponse, NodeAnswer,
        Session, SessionCounters, SessionLun, session_service_server::SessionService,
    },
};
use holdfast_replica::ids::VolumeId;
use holdfast_scsi::{
    nexus::{Nexus, RelativePort},
    transport_id::TransportId,
};
use tonic::{Request, Response, Status};

use super::{Api, called, request::client_request, status};
use crate::{
    session::registry::NoAnswer,
    state::{
        Body, Kind, Refusal, StateMachine,
        audit::timestamp,
        convert::{nexus_of, nexus_record},
        names::printable,
    },
};

/// What the nodes have told, each with its record.
pub(super) type Told = Vec<(records::Node, Result<Inspection, NoAnswer>)>;

impl Api {
    /// Asks every node, or the one of this name, at the same time.
    pub(super) async fn inspect(&self, only: &str) -> Told {
        let nodes: Vec<records::Node> = self
            .raft
            .read(|state| state.nodes().filter(|n| only.is_empty() || n.name == only).cloned().collect());
        let asked = nodes.into_iter().map(|node| async move {
            let answer = self.nodes.ask(node.number, None).await;
            (node, answer)
        });
        join_all(asked).await
    }
}

/// Which nodes have answered.
pub(super) fn answers(told: &Told) -> Vec<NodeAnswer> {
    told.iter()
        .map(|(node, answer)| match answer {
            Ok(inspection) => NodeAnswer {
                node: node.name.clone(),
                answered: true,
                reason: String::new(),
                applied_index: inspection.applied_index,
                truncated: inspection.truncated,
            },
            Err(error) => {
                NodeAnswer { node: node.name.clone(), reason: error.to_string(), ..Default::default() }
            }
        })
        .collect()
}

/// All sessions that were told, in the order of their node, port and initiator.
pub(super) fn sessions(state: &StateMachine, told: &Told) -> Vec<(Nexus, Session)> {
    let mut all = Vec::new();
    for (node, answer) in told {
        let Ok(inspection) = answer else { continue };
        all.extend(inspection.sessions.iter().filter_map(|session| view(state, node, session)));
    }
    all.sort_by(|(a, one), (b, other)| {
        (&one.node, a.port, &one.initiator).cmp(&(&other.node, b.port, &other.initiator))
    });
    all
}

/// `None` for one that names no nexus: a node of another version.
fn view(state: &StateMachine, node: &records::Node, session: &SessionState) -> Option<(Nexus, Session)> {
    let name = session.nexus.as_ref()?;
    let nexus = nexus_of(&name.transport_id, name.relative_port)?;
    let portal = node.ports.iter().find(|port| port.relative_port == name.relative_port);
    let luns = session.luns.iter().map(|lun| SessionLun {
        lun: lun.lun,
        volume: VolumeId::from_slice(&lun.volume_id).map_or_else(String::new, |id| state.volume_name(id)),
        read_only: lun.read_only,
        unit_attentions: lun
            .unit_attentions
            .iter()
            .map(|code| format!("{:02x}/{:02x}", code >> 8 & 0xff, code & 0xff))
            .collect(),
    });
    let view = Session {
        initiator: nexus.initiator.to_string(),
        host: session.host.clone(),
        node: node.name.clone(),
        relative_port: name.relative_port,
        portal: portal.map_or_else(String::new, |port| port.portal.clone()),
        alias: printable(&session.alias),
        tsih: session.tsih,
        since: Some(timestamp(session.since_unix_ms)),
        header_digest: session.header_digest,
        data_digest: session.data_digest,
        max_burst_bytes: session.max_burst_bytes,
        first_burst_bytes: session.first_burst_bytes,
        initial_r2t: session.initial_r2t,
        immediate_data: session.immediate_data,
        max_outstanding_r2t: session.max_outstanding_r2t,
        send_segment_bytes: session.send_segment_bytes,
        receive_segment_bytes: session.receive_segment_bytes,
        commands_under_way: session.commands_under_way,
        luns: luns.collect(),
        counters: session.counters.map(|counted| SessionCounters {
            commands: counted.commands,
            data_in_bytes: counted.data_in_bytes,
            data_out_bytes: counted.data_out_bytes,
            check_conditions: counted.check_conditions,
            unit_attentions: counted.unit_attentions,
            reservation_conflicts: counted.reservation_conflicts,
            busy: counted.busy,
            aborted: counted.aborted,
        }),
    };
    Some((nexus, view))
}

/// "iqn...,i,0x..." of an iSCSI initiator port, as sessions and registrations show it; also "fc:..." and "srp:...".
pub(super) fn initiator_port(text: &str) -> Option<TransportId> {
    let bytes = |hex: &str| -> Option<Vec<u8>> {
        let pairs = hex.is_ascii().then(|| hex.as_bytes().chunks_exact(2))?;
        pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
    };
    if let Some((name, isid)) = text.split_once(",i,0x") {
        return TransportId::iscsi(name, bytes(isid)?.try_into().ok()?).ok();
    }
    match text.split_once(':')? {
        ("fc", hex) => Some(TransportId::fibre_channel(bytes(hex)?.try_into().ok()?)),
        ("srp", hex) => Some(TransportId::srp(bytes(hex)?.try_into().ok()?)),
        ("sas", hex) => Some(TransportId::sas(bytes(hex)?.try_into().ok()?)),
        _ => None,
    }
}

/// The nexus that a request names by initiator port and target port.
pub(super) fn named_nexus(initiator: &str, relative_port: u32) -> Result<Nexus, Status> {
    let port = initiator_port(initiator).ok_or_else(|| {
        let reason =
            format!("'{}' is no initiator port as in iqn.2026-01.x:a,i,0x00023d000001", printable(initiator));
        status::invalid("initiator", reason)
    })?;
    let relative_port = u16::try_from(relative_port).ok().filter(|port| *port != 0).ok_or_else(|| {
        status::invalid("relative_port", format!("{relative_port} is not between 1 and 65535"))
    })?;
    Ok(Nexus::new(port, RelativePort(relative_port)))
}

#[tonic::async_trait]
impl SessionService for Api {
    async fn list_sessions(
        &self,
        request: Request<ListSessionsRequest>,
    ) -> Result<Response<ListSessionsResponse>, Status> {
        let request = request.into_inner();
        let missing = self
            .read(|state| {
                let missing = |kind, name: &str| Refusal::NotFound { kind, name: printable(name) };
                if !request.host.is_empty() && state.host(&request.host).is_none() {
                    return Some(missing(Kind::Host, &request.host));
                }
                if !request.node.is_empty() && state.node_by_name(&request.node).is_none() {
                    return Some(missing(Kind::Node, &request.node));
                }
                (!request.volume.is_empty() && state.volume_by_name(&request.volume).is_none())
                    .then(|| missing(Kind::Volume, &request.volume))
            })
            .await?;
        if let Some(refusal) = missing {
            return Err(status::refused(&refusal));
        }
        let told = self.inspect(&request.node).await;
        let all = self.raft.read(|state| sessions(state, &told));
        let wanted = all.into_iter().map(|(_, session)| session).filter(|session| {
            (request.host.is_empty() || session.host == request.host)
                && (request.volume.is_empty() || session.luns.iter().any(|lun| lun.volume == request.volume))
        });
        Ok(Response::new(ListSessionsResponse { sessions: wanted.collect(), nodes: answers(&told) }))
    }

    async fn end_session(
        &self,
        request: Request<EndSessionRequest>,
    ) -> Result<Response<EndSessionResponse>, Status> {
        let (call, mut request) = called(request)?;
        let request_id = std::mem::take(&mut request.request_id);
        let client = client_request(request_id.clone(), "EndSession", &request);
        if self.answered(client.as_ref()).await?.is_some() {
            return Ok(Response::new(EndSessionResponse {}));
        }
        let nexus = named_nexus(&request.initiator, request.relative_port)?;
        let node = self
            .read(|state| {
                let has = |node: &&records::Node| {
                    node.ports.iter().any(|port| port.relative_port == request.relative_port)
                };
                state.nodes().find(has).map(|node| (node.number, node.name.clone()))
            })
            .await?;
        let Some((number, name)) = node else {
            let reason = format!("{} is no target port of this cluster", request.relative_port);
            return Err(status::invalid("relative_port", reason));
        };
        let answer = self.nodes.ask(number, Some((nexus_record(&nexus), request_id))).await;
        let answer = answer.map_err(|error| match error {
            NoAnswer::Silent => {
                Status::deadline_exceeded(format!("node {name}: {error}; it may have ended it"))
            }
            NoAnswer::Busy | NoAnswer::NotConnected => Status::unavailable(format!("node {name}: {error}")),
        })?;
        if !answer.ended {
            return Err(Status::not_found(format!("node {name} has no session of {nexus}")));
        }
        let record =
            records::RecordSessionEnd { request: client, nexus: Some(nexus_record(&nexus)), node: name };
        if let Err(error) = self.write(&call, Body::RecordSessionEnd(record)).await {
            tracing::error!(%error, %nexus, "the end of a session is not in the audit");
        }
        Ok(Response::new(EndSessionResponse {}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn initiator_ports_read_back_as_they_are_shown() {
        for port in [
            TransportId::iscsi("iqn.2026-01.x:a", [0, 2, 0x3d, 0, 0, 1]).unwrap(),
            TransportId::fibre_channel([0x50, 1, 2, 3, 4, 5, 6, 7]),
            TransportId::srp([7; 16]),
        ] {
            assert_eq!(initiator_port(&port.to_string()), Some(port));
        }
        for odd in ["", "iqn.2026-01.x:a", "iqn.2026-01.x:a,i,0x12", "fc:zz", "fc:\u{e9}\u{e9}", "x:01"] {
            assert_eq!(initiator_port(odd), None, "{odd}");
        }
        assert!(named_nexus("fc:5001020304050607", 0).is_err());
    }
}
