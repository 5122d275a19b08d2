//! What members tell each other beside Raft. The role check stands before this service (see `access`).

use holdfast_proto::{
    raft::{
        DescribeRequest, DescribeResponse, ReportRefusalsResponse, RetireRequest, RetireResponse,
        members_server::Members,
    },
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

    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<DescribeResponse>, Status> {
        let known = self.handle.membership();
        Ok(Response::new(DescribeResponse {
            id: self.handle.id(),
            name: self.handle.own_caller().name,
            store_id: self.handle.store_id().0.to_vec(),
            has_log: self.handle.has_log(),
            membership_version: known.committed,
            member_ids: known.committed_ids,
        }))
    }

    async fn retire(&self, request: Request<RetireRequest>) -> Result<Response<RetireResponse>, Status> {
        let request = request.into_inner();
        if request.store_id != self.handle.store_id().0 {
            return Err(Status::failed_precondition("the call is for a member with another store"));
        }
        self.handle
            .retire(request.membership_version)
            .map_err(|error| Status::internal(format!("it cannot be stored: {error}")))?;
        Ok(Response::new(RetireResponse {}))
    }
}
