//! `holdfast reservation`.

use holdfast_proto::v1::{GetReservationRequest, reservation_service_client::ReservationServiceClient};

use crate::{
    arguments::{Client, Reservation},
    connection::{connect, refusal},
    output::{facts, or_dash, print, table},
};

pub(crate) async fn run(client: &Client, verb: Reservation) -> anyhow::Result<()> {
    let Reservation::Show { volume } = verb;
    let mut service = ReservationServiceClient::new(connect(client).await?);
    let answer =
        service.get_reservation(GetReservationRequest { volume }).await.map_err(refusal)?.into_inner();
    print(client.output, "Reservation", &answer, || {
        let head = facts([
            ("volume", answer.volume.clone()),
            ("reservation", answer.r#type.clone()),
            ("generation", answer.generation.to_string()),
            ("aptpl", if answer.aptpl { "on" } else { "off" }.to_owned()),
            ("version", answer.version.to_string()),
        ]);
        let rows = answer.registrations.iter().map(|registration| {
            [
                registration.initiator.clone(),
                or_dash(&registration.host),
                registration.node.clone(),
                registration.relative_port.to_string(),
                format!("{:#018x}", registration.key),
                if registration.holder { "yes" } else { "" }.to_owned(),
            ]
        });
        format!("{head}\n{}", table(["initiator", "host", "through", "rtpi", "key", "holder"], rows))
    })
}
