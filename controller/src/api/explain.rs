//! Would a command conflict, and because of whom?
//!
//! Invariant: the verdict is that of `holdfast_scsi::pr::access`, by which owners judge; nothing is decided here.

use std::collections::BTreeSet;

use holdfast_proto::v1::{ExplainReservationRequest, ExplainReservationResponse, PathVerdict};
use holdfast_scsi::{
    cdb::{self, Command},
    geometry::Geometry,
    nexus::{Nexus, RelativePort},
    opcode::{self, Row},
    pr::{
        Reservation as Held, View,
        access::{Access, check_spc2, check_view},
    },
};
use tonic::Status;

use super::{
    reservation::{origin_view, registrations},
    session::{Told, answers, sessions},
    status,
};
use crate::state::{StateMachine, Volume, reservation::type_name};

/// Any logical unit: what a command needs of a reservation does not hang on its size.
const GEOMETRY: Option<Geometry> = Geometry::new(512, 1 << 32);

/// The command with this operation code and service action, with fields that mean as little as they may.
pub(super) fn command(opcode: u32, service_action: Option<u32>) -> Result<(&'static Row, Command), Status> {
    let code = u8::try_from(opcode)
        .map_err(|_| status::invalid("opcode", format!("{opcode} is not between 0 and 255")))?;
    let rows = opcode::rows(code);
    let first = rows.first().ok_or_else(|| {
        status::invalid("opcode", format!("{code:#04x} is not supported by any logical unit"))
    })?;
    let row = match (first.service_action, service_action) {
        (None, None) => first,
        (None, Some(_)) => {
            return Err(status::invalid("service_action", format!("{} has none", first.name)));
        }
        (Some(_), asked) => {
            let all: Vec<String> = rows
                .iter()
                .filter_map(|row| Some(format!("{:#04x} {}", row.service_action?, row.name)))
                .collect();
            let found = rows.iter().find(|row| asked.is_some() && row.service_action.map(u32::from) == asked);
            found.ok_or_else(|| status::invalid("service_action", format!("one of {}", all.join(", "))))?
        }
    };
    let geometry = GEOMETRY.ok_or_else(|| Status::internal("no geometry"))?;
    let mut bytes = vec![0u8; row.usage.len()];
    row.name_in(&mut bytes);
    // Some commands take no length of 0, or want one bit set; PERSISTENT RESERVE OUT takes no length below 24.
    let kept = if row.service_action.is_some() { 2 } else { 1 };
    // READ BUFFER and WRITE BUFFER want a MODE.
    let modes = (1..0x20).filter(|_| row.service_action.is_none()).map(|mode| (1, mode));
    let bits = (kept..bytes.len()).flat_map(|at| (0..8).map(move |bit| (at, 1u8 << bit)));
    for (at, value) in [(0, code), (8, 24)].into_iter().chain(bits).chain(modes) {
        let mut changed = bytes.clone();
        set(&mut changed, at, value);
        if let Ok(command) = cdb::parse(&changed, &geometry) {
            return Ok((row, command));
        }
    }
    Err(status::invalid("opcode", format!("{} cannot be judged without its fields", row.name)))
}

fn set(bytes: &mut [u8], at: usize, value: u8) {
    if let Some(byte) = bytes.get_mut(at) {
        *byte = value;
    }
}

/// A path of the host: a nexus, and whether it has a session; `None`: any other initiator port of it.
type Path = Option<(Nexus, bool)>;

fn verdict(state: &StateMachine, volume: &Volume, command: &Command, path: Path) -> PathVerdict {
    let view = volume.lu.reservations.view();
    // A port that is no port is registered nowhere.
    let stranger = holdfast_scsi::transport_id::TransportId::fibre_channel([0; 8]);
    let nexus = path.map_or(Nexus::new(stranger, RelativePort(0)), |(nexus, _)| nexus);
    let relation = view.relation_of(&nexus);
    let by_spc2 =
        volume.lu.unit.spc2_holder.filter(|holder| check_spc2(command, *holder == nexus) == Access::Conflict);
    let conflict = by_spc2.is_some() || check_view(command, &view, &nexus) == Access::Conflict;
    let port = u32::from(nexus.port.0);
    let node = state.nodes().find(|node| node.ports.iter().any(|p| p.relative_port == port));
    PathVerdict {
        initiator: path.map_or_else(String::new, |(nexus, _)| nexus.initiator.to_string()),
        relative_port: port,
        node: node.map_or_else(String::new, |node| node.name.clone()),
        conflict,
        registered: relation.registered,
        holder: relation.holder,
        session: path.is_some_and(|(_, session)| session),
        reason: match by_spc2 {
            Some(holder) => format!("the unit is reserved by RESERVE of SPC-2, by {holder}"),
            None => reason(state, volume, &view, command, &nexus, conflict),
        },
    }
}

fn reason(
    state: &StateMachine,
    volume: &Volume,
    view: &View<'_>,
    command: &Command,
    nexus: &Nexus,
    conflict: bool,
) -> String {
    if matches!(command, Command::PersistentReserveOut { .. }) {
        return "each service action has its own rule: it needs the key of its own registration, REGISTER apart".to_owned();
    }
    let relation = view.relation_of(nexus);
    let Some(held) = view.reservation else {
        return if conflict {
            "RESERVE and RELEASE of SPC-2 conflict while anyone is registered".to_owned()
        } else {
            "nobody holds a reservation".to_owned()
        };
    };
    let kind = type_name(held.kind());
    let by = describe_holder(state, held);
    let since = volume
        .provenance
        .reservation()
        .filter(|origin| origin.index != 0)
        .map_or_else(String::new, |origin| format!(", since log index {} ({})", origin.index, origin.action));
    if conflict {
        let own = if relation.registered { "registered, but not the holder" } else { "not registered" };
        return format!("{kind} is held by {by}{since}; this path is {own}");
    }
    if relation.holder {
        return format!("this path holds the reservation ({kind}{since})");
    }
    if relation.registered {
        return format!("{kind} is held by {by}{since}, which lets this through; this path is registered");
    }
    format!("{kind} is held by {by}{since}, which lets this command of anybody through")
}

fn describe_holder(state: &StateMachine, held: &Held) -> String {
    match held.holder() {
        None => "all registrants".to_owned(),
        Some(nexus) => {
            let host = state.host_of_initiator(&nexus.initiator);
            let host = host.map_or_else(|| "no host".to_owned(), |host| format!("host {host}"));
            format!("{nexus} ({host})")
        }
    }
}

/// The whole answer.
pub(super) fn explain(
    state: &StateMachine,
    volume: &Volume,
    request: &ExplainReservationRequest,
    (row, command): (&Row, &Command),
    told: &Told,
) -> ExplainReservationResponse {
    let of_host = |nexus: &Nexus| state.host_of_initiator(&nexus.initiator) == Some(request.host.as_str());
    let live: BTreeSet<Nexus> = sessions(state, told)
        .into_iter()
        .filter(|(_, session)| session.host == request.host)
        .map(|(nexus, _)| nexus)
        .collect();
    let registered = volume.lu.reservations.registrants().iter().map(|r| r.nexus).filter(of_host);
    let known: BTreeSet<Nexus> = registered.chain(live.iter().copied()).collect();
    let paths = known.into_iter().map(|nexus| Some((nexus, live.contains(&nexus)))).chain([None]);
    let all = registrations(state, volume);
    ExplainReservationResponse {
        volume: volume.name.clone(),
        host: request.host.clone(),
        command: row.name.to_owned(),
        r#type: volume.lu.reservations.reservation().map_or("none", |r| type_name(r.kind())).to_owned(),
        version: volume.reservation_version,
        reserved: volume.provenance.reservation().map(|origin| origin_view(state, origin)),
        paths: paths.map(|path| verdict(state, volume, command, path)).collect(),
        holders: all.into_iter().filter(|registration| registration.holder).collect(),
        nodes: answers(told),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_supported_command_can_be_judged() {
        let mut judged = 0;
        for code in 0..=255u8 {
            for row in opcode::rows(code) {
                let action = row.service_action.map(u32::from);
                let (found, _) =
                    command(u32::from(code), action).unwrap_or_else(|e| panic!("{}: {e}", row.name));
                assert_eq!(found.name, row.name);
                judged += 1;
            }
        }
        assert!(judged > 30, "{judged}");
    }

    #[test]
    fn what_is_no_command_is_told() {
        for (code, action, field) in [
            (256, None, "opcode"),
            (0xff, None, "opcode"),
            (0x2a, Some(1), "service_action"),
            (0x5f, None, "service_action"),
        ] {
            assert!(command(code, action).unwrap_err().message().starts_with(field), "{code:#x}");
        }
    }
}
