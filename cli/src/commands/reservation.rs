//! `holdfast reservation`.

use holdfast_proto::v1::{
    ClearReservationRequest, ExplainReservationRequest, ExplainReservationResponse, GetReservationRequest,
    NodeAnswer, Origin, Registration, Reservation as ReservationRecord,
    reservation_service_client::ReservationServiceClient,
};

use super::session::{pending, silent};
use crate::{
    arguments::{Client, Reservation},
    connection::{connect, refusal, request_id},
    output::{facts, or_dash, print, table, utc},
};

pub(crate) async fn run(client: &Client, verb: Reservation) -> anyhow::Result<()> {
    let mut service = ReservationServiceClient::new(connect(client).await?);
    match verb {
        Reservation::Show { volume } => {
            let request = GetReservationRequest { volume, paths: true };
            let answer = service.get_reservation(request).await.map_err(refusal)?.into_inner();
            print(client.output, "Reservation", &answer, || shown(&answer))
        }
        Reservation::Explain { volume, host, opcode, service_action } => {
            let request = ExplainReservationRequest {
                volume,
                host,
                opcode: u32::from(opcode.0),
                service_action: service_action.map(u32::from),
            };
            let answer = service.explain_reservation(request).await.map_err(refusal)?.into_inner();
            print(client.output, "ExplainReservationResponse", &answer, || explained(&answer))
        }
        Reservation::Clear { volume, initiator, rtpi, .. } => {
            let request = ClearReservationRequest {
                request_id: request_id(),
                volume,
                initiator: initiator.unwrap_or_default(),
                relative_port: rtpi.map_or(0, u32::from),
            };
            let answer = service.clear_reservation(request).await.map_err(refusal)?.into_inner();
            print(client.output, "Reservation", &answer, || shown(&answer))
        }
    }
}

/// "REGISTER at log index 57, 2026-11-22 17:30:00Z, by iqn... (host win1) through port 1".
fn origin(origin: Option<&Origin>) -> String {
    let Some(origin) = origin.filter(|origin| origin.index != 0) else { return "-".to_owned() };
    let time = origin.time.as_ref().map_or_else(String::new, |time| format!(", {}", utc(time.seconds)));
    let by = if origin.initiator.is_empty() {
        String::new()
    } else {
        let host = if origin.host.is_empty() { "no host" } else { &format!("host {}", origin.host) };
        format!(", by {} ({host}) through port {}", origin.initiator, origin.relative_port)
    };
    format!("{} at log index {}{time}{by}", origin.action, origin.index)
}

fn registered(registrations: &[Registration]) -> String {
    let rows = registrations.iter().map(|registration| {
        [
            registration.initiator.clone(),
            or_dash(&registration.host),
            or_dash(&registration.node),
            registration.relative_port.to_string(),
            format!("{:#018x}", registration.key),
            if registration.holder { "yes" } else { "" }.to_owned(),
            origin(registration.origin.as_ref()),
        ]
    });
    table(["initiator", "host", "through", "rtpi", "key", "holder", "committed"], rows)
}

fn shown(answer: &ReservationRecord) -> String {
    let head = facts([
        ("volume", answer.volume.clone()),
        ("reservation", answer.r#type.clone()),
        ("reserved", origin(answer.reserved.as_ref())),
        ("generation", answer.generation.to_string()),
        ("aptpl", if answer.aptpl { "on" } else { "off" }.to_owned()),
        ("version", answer.version.to_string()),
        ("changed", origin(answer.changed.as_ref())),
    ]);
    let rows = answer.sessions.iter().map(|session| {
        [
            session.initiator.clone(),
            or_dash(&session.host),
            session.node.clone(),
            session.relative_port.to_string(),
            session.luns.iter().map(|lun| lun.lun.to_string()).collect::<Vec<_>>().join(","),
            pending(&session.luns),
        ]
    });
    let sessions = table(["session of", "host", "through", "rtpi", "lun", "pending"], rows);
    format!("{head}\n{}\n\n{sessions}{}", registered(&answer.registrations), unknown(&answer.nodes))
}

fn unknown(nodes: &[NodeAnswer]) -> String {
    let silent = silent(nodes);
    if silent.is_empty() { String::new() } else { format!("\n{silent}") }
}

fn explained(answer: &ExplainReservationResponse) -> String {
    let head = facts([
        ("command", format!("{} from host {} to volume {}", answer.command, answer.host, answer.volume)),
        ("reservation", answer.r#type.clone()),
        ("reserved", origin(answer.reserved.as_ref())),
        ("version", answer.version.to_string()),
    ]);
    let rows = answer.paths.iter().map(|path| {
        let port = if path.relative_port == 0 { "any".to_owned() } else { path.relative_port.to_string() };
        [
            if path.initiator.is_empty() { "any other port".to_owned() } else { path.initiator.clone() },
            or_dash(&path.node),
            port,
            if path.session { "yes" } else { "no" }.to_owned(),
            if path.conflict { "CONFLICT" } else { "allowed" }.to_owned(),
            path.reason.clone(),
        ]
    });
    let paths = table(["initiator", "through", "rtpi", "session", "verdict", "why"], rows);
    let holders = if answer.holders.is_empty() {
        String::new()
    } else {
        format!("\n\n{}", registered(&answer.holders))
    };
    format!("{head}\n{paths}{holders}{}", unknown(&answer.nodes))
}
