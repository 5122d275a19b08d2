//! What members tell each other beside Raft. The role check stands before this service (see `access`).

use holdfast_proto::{
    raft::{ReportRefusalsResponse, members_server::Members},
    state::RecordRefusals,
};
use tonic::{Request, Response, Status};

use super::refusals;
use crate::{api::status, raft::Handle, state::limits};

/// The service of this member.
pub(super) struct MembersService {
    pub(super) handle: Handle,
}

#[tonic::async_trait]
impl Members for MembersService {
    async fn report_refusals(
        &self,
        request: Request<RecordRefusals>,
    ) -> Result<Response<ReportRefusalsResponse>, Status> {
        let batch = request.into_inner();
        if batch.calls.len() > limits::REFUSALS_PER_ENTRY_MAX {
            return Err(Status::invalid_argument("calls: too many"));
        }
        refusals::commit_here(&self.handle, batch).await.map_err(|error| status::not_written(&error))?;
        Ok(Response::new(ReportRefusalsResponse {}))
    }
}
