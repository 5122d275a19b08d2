//! EventService.

use holdfast_proto::v1::{Event, WatchEventsRequest, event_service_server::EventService};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::Api;

/// Events that are read from the store at a time.
const BATCH: usize = 256;
/// Events between the store and a connection.
const CHANNEL_EVENTS: usize = 64;

impl Api {
    /// Sends events above `after` until the receiver goes or this member stops.
    async fn send_events(self, mut after: u64, events: mpsc::Sender<Result<Event, Status>>) {
        let mut applied = self.raft.watch_applied();
        loop {
            applied.borrow_and_update();
            let (batch, dropped) = match self.raft.events_after(after, BATCH) {
                Ok(read) => read,
                Err(error) => {
                    let _ = events.send(Err(Status::data_loss(error.to_string()))).await;
                    return;
                }
            };
            if dropped > after {
                let text = format!(
                    "after_index: events up to index {dropped} are not kept any more; begin from there"
                );
                let _ = events.send(Err(Status::out_of_range(text))).await;
                return;
            }
            let full = batch.len() >= BATCH;
            for event in batch {
                after = event.index;
                if events.send(Ok(event)).await.is_err() {
                    return;
                }
            }
            if full {
                continue;
            }
            tokio::select! {
                changed = applied.changed() => if changed.is_err() { return },
                () = events.closed() => return,
            }
        }
    }
}

#[tonic::async_trait]
impl EventService for Api {
    type WatchEventsStream = ReceiverStream<Result<Event, Status>>;

    async fn watch_events(
        &self,
        request: Request<WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let asked = request.into_inner().after_index;
        self.read(|_| ()).await?;
        let after = if asked == 0 { self.raft.applied_index() } else { asked };
        let (sender, stream) = mpsc::channel(CHANNEL_EVENTS);
        tokio::spawn(self.clone().send_events(after, sender));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}
