//! AuditService.

use holdfast_proto::v1::{
    AuditRecord, ListAuditRequest, ListAuditResponse, audit_service_server::AuditService,
};
use tonic::{Request, Response, Status};

use super::{Api, page};

/// True if `subject` asks for the record: the same resource, or any of its kind for one that ends in '/'.
fn wanted(record: &AuditRecord, subject: &str) -> bool {
    subject.is_empty()
        || record.subject == subject
        || (subject.ends_with('/') && record.subject.starts_with(subject))
}

#[tonic::async_trait]
impl AuditService for Api {
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
