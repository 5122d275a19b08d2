//! AuditService.

use holdfast_proto::v1::{
    AuditRecord, ListAuditRequest, ListAuditResponse, WatchAuditRequest, audit_service_server::AuditService,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{Api, page};

/// Records that a watch reads at a time.
const WATCH_BATCH: usize = 64;

/// True if `subject` asks for the record: the same resource, or any of its kind for one that ends in '/'.
fn wanted(record: &AuditRecord, subject: &str) -> bool {
    subject.is_empty()
        || record.subject == subject
        || (subject.ends_with('/') && record.subject.starts_with(subject))
}

impl Api {
    /// Sends records above `after` until the receiver goes or this member stops.
    async fn send_audit(
        self,
        after: u64,
        subject: String,
        records: mpsc::Sender<Result<AuditRecord, Status>>,
    ) {
        let mut applied = self.raft.watch_applied();
        let mut place = (after, u32::MAX);
        loop {
            applied.borrow_and_update();
            let (raft, subject) = (self.raft.clone(), subject.clone());
            let read = move || raft.audit_after(place, WATCH_BATCH, |record| wanted(record, &subject));
            let (batch, dropped) = match tokio::task::spawn_blocking(read).await {
                Ok(Ok(read)) => read,
                Ok(Err(error)) => return drop(records.send(Err(Status::data_loss(error.to_string()))).await),
                Err(error) => return drop(records.send(Err(Status::internal(error.to_string()))).await),
            };
            if dropped > place.0 {
                let text =
                    format!("after_index: records up to index {dropped} may be dropped; begin from there");
                return drop(records.send(Err(Status::out_of_range(text))).await);
            }
            let full = batch.len() >= WATCH_BATCH;
            for record in batch {
                place = (record.index, record.ordinal);
                if records.send(Ok(record)).await.is_err() {
                    return;
                }
            }
            if full {
                continue;
            }
            tokio::select! {
                changed = applied.changed() => if changed.is_err() { return },
                () = records.closed() => return,
            }
        }
    }
}

#[tonic::async_trait]
impl AuditService for Api {
    type WatchAuditStream = ReceiverStream<Result<AuditRecord, Status>>;

    async fn watch_audit(
        &self,
        request: Request<WatchAuditRequest>,
    ) -> Result<Response<Self::WatchAuditStream>, Status> {
        let request = request.into_inner();
        self.read(|_| ()).await?;
        let after = if request.after_index == 0 { self.raft.applied_index() } else { request.after_index };
        let (sender, stream) = mpsc::channel(WATCH_BATCH);
        tokio::spawn(self.clone().send_audit(after, request.subject, sender));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn list_audit(
        &self,
        request: Request<ListAuditRequest>,
    ) -> Result<Response<ListAuditResponse>, Status> {
        let request = request.into_inner();
        let size = page::size(request.page_size);
        let after = match page::decode(&request.page_token)? {
            None => (request.after_index, u32::MAX),
            Some(token) => place(&token).ok_or_else(page::no_token)?,
        };
        self.read(|_| ()).await?;
        // One more than shown tells whether there is a next page.
        let raft = self.raft.clone();
        let read = move || raft.audit_after(after, size + 1, |record| wanted(record, &request.subject));
        let (mut records, dropped_index) = tokio::task::spawn_blocking(read)
            .await
            .map_err(|error| Status::internal(error.to_string()))?
            .map_err(|error| Status::data_loss(error.to_string()))?;
        let more = records.len() > size;
        records.truncate(size);
        let last = records.last().filter(|_| more);
        let next_page_token =
            last.map_or(String::new(), |last| page::encode(&format!("{}/{}", last.index, last.ordinal)));
        Ok(Response::new(ListAuditResponse { records, next_page_token, dropped_index }))
    }
}

/// "index/ordinal".
fn place(token: &str) -> Option<(u64, u32)> {
    let (index, ordinal) = token.split_once('/')?;
    Some((index.parse().ok()?, ordinal.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_are_matched_whole_or_by_kind() {
        let record = AuditRecord { subject: "volume/db1".to_owned(), ..Default::default() };
        for yes in ["", "volume/db1", "volume/"] {
            assert!(wanted(&record, yes), "{yes}");
        }
        for no in ["volume/db", "volume", "host/", "db1"] {
            assert!(!wanted(&record, no), "{no}");
        }
    }

    #[test]
    fn a_token_is_a_place() {
        assert_eq!(place("7/2"), Some((7, 2)));
        assert!(place("7").is_none() && place("x/1").is_none() && place("1/99999999999").is_none());
    }
}
