//! ReservationService.

use holdfast_proto::v1::{
    GetReservationRequest, Registration, Reservation, reservation_service_server::ReservationService,
};
use tonic::{Request, Response, Status};

use super::{Api, status};
use crate::state::{Kind, Refusal, StateMachine, Volume, names::printable, reservation::type_name};

fn view(state: &StateMachine, volume: &Volume) -> Reservation {
    let reservations = volume.lu.reservations.view();
    let registrations = reservations.registrants.iter().map(|registrant| {
        let nexus = &registrant.nexus;
        let host = state.host_of_initiator(&nexus.initiator);
        let port = u32::from(nexus.port.0);
        let node = state.nodes().find(|node| node.ports.iter().any(|p| p.relative_port == port));
        Registration {
            initiator: nexus.initiator.to_string(),
            host: host.unwrap_or_default().to_owned(),
            relative_port: port,
            node: node.map_or(String::new(), |node| node.name.clone()),
            key: registrant.key,
            holder: reservations.holds(nexus),
            all_target_ports: registrant.all_target_ports,
        }
    });
    Reservation {
        volume: volume.name.clone(),
        version: volume.reservation_version,
        generation: reservations.generation,
        aptpl: reservations.aptpl,
        r#type: reservations.reservation.map_or("none", |r| type_name(r.kind())).to_owned(),
        registrations: registrations.collect(),
    }
}

#[tonic::async_trait]
impl ReservationService for Api {
    async fn get_reservation(
        &self,
        request: Request<GetReservationRequest>,
    ) -> Result<Response<Reservation>, Status> {
        let name = request.into_inner().volume;
        let found = self.read(|state| state.volume_by_name(&name).map(|v| view(state, v))).await?;
        let missing = || Refusal::NotFound { kind: Kind::Volume, name: printable(&name) };
        found.map(Response::new).ok_or_else(|| status::refused(&missing()))
    }
}
