//! ReservationService.

use holdfast_proto::{
    state as records,
    v1::{
        ClearReservationRequest, ExplainReservationRequest, ExplainReservationResponse,
        GetReservationRequest, Origin, Registration, Reservation, ReservationChange,
        WatchReservationsRequest, reservation_change::Change, reservation_service_server::ReservationService,
    },
};
use tonic::{Request, Response, Status};

use super::{
    Api, called,
    explain::{command, explain},
    nouns::Reservations,
    request::client_request,
    session::{answers, named_nexus, sessions},
    status, unexpected,
    watch::{Step, Watch},
};
use crate::state::{
    Body, Kind, Outcome, Refusal, StateMachine, Volume, audit::timestamp, convert::nexus_record,
    names::printable, provenance::Origin as StateOrigin, reservation::type_name,
};

pub(super) fn origin_view(state: &StateMachine, origin: &StateOrigin) -> Origin {
    let nexus = origin.nexus.as_ref();
    Origin {
        index: origin.index,
        time: (origin.time_unix_ms != 0).then(|| timestamp(origin.time_unix_ms)),
        initiator: nexus.map_or_else(String::new, |nexus| nexus.initiator.to_string()),
        host: nexus
            .and_then(|nexus| state.host_of_initiator(&nexus.initiator))
            .unwrap_or_default()
            .to_owned(),
        relative_port: nexus.map_or(0, |nexus| u32::from(nexus.port.0)),
        action: origin.action.clone(),
    }
}

pub(super) fn registrations(state: &StateMachine, volume: &Volume) -> Vec<Registration> {
    let reservations = volume.lu.reservations.view();
    let registrations = reservations.registrants.iter().map(|registrant| {
        let nexus = &registrant.nexus;
        let port = u32::from(nexus.port.0);
        let node = state.nodes().find(|node| node.ports.iter().any(|p| p.relative_port == port));
        Registration {
            initiator: nexus.initiator.to_string(),
            host: state.host_of_initiator(&nexus.initiator).unwrap_or_default().to_owned(),
            relative_port: port,
            node: node.map_or(String::new(), |node| node.name.clone()),
            key: registrant.key,
            holder: reservations.holds(nexus),
            all_target_ports: registrant.all_target_ports,
            origin: volume.provenance.registrant(nexus).map(|origin| origin_view(state, origin)),
        }
    });
    registrations.collect()
}

pub(super) fn view(state: &StateMachine, volume: &Volume) -> Reservation {
    let reservations = volume.lu.reservations.view();
    Reservation {
        volume: volume.name.clone(),
        version: volume.reservation_version,
        generation: reservations.generation,
        aptpl: reservations.aptpl,
        r#type: reservations.reservation.map_or("none", |r| type_name(r.kind())).to_owned(),
        registrations: registrations(state, volume),
        reserved: volume.provenance.reservation().map(|origin| origin_view(state, origin)),
        changed: volume.provenance.last().map(|origin| origin_view(state, origin)),
        sessions: Vec::new(),
        nodes: Vec::new(),
    }
}

fn missing(kind: Kind, name: &str) -> Status {
    status::refused(&Refusal::NotFound { kind, name: printable(name) })
}

/// A step of a watch as its message.
fn watched(revision: u64, step: Step<Reservation>) -> ReservationChange {
    let change = match step {
        Step::Changed(row) => Change::Changed(row),
        Step::Removed(name) => Change::Removed(name),
        Step::Synced => Change::Synced(true),
    };
    ReservationChange { change: Some(change), revision }
}

#[tonic::async_trait]
impl ReservationService for Api {
    async fn get_reservation(
        &self,
        request: Request<GetReservationRequest>,
    ) -> Result<Response<Reservation>, Status> {
        let request = request.into_inner();
        let name = request.volume;
        let found = self.read(|state| state.volume_by_name(&name).map(|v| view(state, v))).await?;
        let mut found = found.ok_or_else(|| missing(Kind::Volume, &name))?;
        if request.paths {
            let told = self.inspect("").await;
            let all = self.raft.read(|state| sessions(state, &told));
            found.nodes = answers(&told);
            for (_, mut session) in all {
                session.luns.retain(|lun| lun.volume == name);
                if !session.luns.is_empty() {
                    found.sessions.push(session);
                }
            }
        }
        Ok(Response::new(found))
    }

    async fn explain_reservation(
        &self,
        request: Request<ExplainReservationRequest>,
    ) -> Result<Response<ExplainReservationResponse>, Status> {
        let request = request.into_inner();
        let (row, judged) = command(request.opcode, request.service_action)?;
        // Sessions first: the verdict is of the newest state.
        self.read(|_| ()).await?;
        let told = self.inspect("").await;
        self.read(|state| {
            if state.host(&request.host).is_none() {
                return Err(missing(Kind::Host, &request.host));
            }
            let volume = state
                .volume_by_name(&request.volume)
                .ok_or_else(|| missing(Kind::Volume, &request.volume))?;
            Ok(Response::new(explain(state, volume, &request, (row, &judged), &told)))
        })
        .await?
    }

    type WatchReservationsStream = Watch<ReservationChange>;

    async fn watch_reservations(
        &self,
        request: Request<WatchReservationsRequest>,
    ) -> Result<Response<Self::WatchReservationsStream>, Status> {
        let request = request.into_inner();
        self.watch(Reservations { volume: request.volume }, request.after_revision, watched)
            .await
            .map(Response::new)
    }

    async fn clear_reservation(
        &self,
        request: Request<ClearReservationRequest>,
    ) -> Result<Response<Reservation>, Status> {
        let (call, mut request) = called(request)?;
        let id = std::mem::take(&mut request.request_id);
        let client = client_request(id, "ClearReservation", &request);
        let nexus = match request.initiator.as_str() {
            "" => None,
            initiator => Some(nexus_record(&named_nexus(initiator, request.relative_port)?)),
        };
        let volume = request.volume.clone();
        let body = Body::ClearReservation(records::ClearReservation { request: client, volume, nexus });
        let index = match self.write(&call, body).await? {
            Outcome::Established(index) => index,
            other => return Err(unexpected(&other)),
        };
        self.pass_barrier(index).await?;
        let found = self.read(|state| state.volume_by_name(&request.volume).map(|v| view(state, v))).await?;
        found.map(Response::new).ok_or_else(|| missing(Kind::Volume, &request.volume))
    }
}
