//! `holdfast event`.

use holdfast_proto::v1::{WatchEventsRequest, event_service_client::EventServiceClient};

use crate::{
    arguments::{Client, Event},
    connection::{Access, refusal},
    output::print_line,
};

pub(crate) async fn run(client: &Client, verb: Event) -> anyhow::Result<()> {
    let Event::Watch { after } = verb;
    let mut service = EventServiceClient::new(Access::find(client)?.connect_for_stream().await?);
    let mut events =
        service.watch_events(WatchEventsRequest { after_index: after }).await.map_err(refusal)?.into_inner();
    loop {
        tokio::select! {
            event = events.message() => match event.map_err(refusal)? {
                Some(event) => print_line(client.output, "Event", &event, || {
                    format!("{:>8}  {:<22} {:<24} {}", event.index, event.kind, event.subject, event.message)
                })?,
                None => return Ok(()),
            },
            interrupted = tokio::signal::ctrl_c() => return Ok(interrupted?),
        }
    }
}
