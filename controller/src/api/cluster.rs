//! ClusterService.

use holdfast_proto::{
    state as records,
    v1::{
        Cluster, GetClusterRequest, RebalanceClusterRequest, SetClusterOptionsRequest,
        cluster_service_server::ClusterService,
    },
};
use tonic::{Request, Response, Status};

use super::{Api, called, request::client_request};
use crate::state::{Body, limits};

#[tonic::async_trait]
impl ClusterService for Api {
    async fn get_cluster(&self, _: Request<GetClusterRequest>) -> Result<Response<Cluster>, Status> {
        self.cluster_view().await
    }

    async fn set_cluster_options(
        &self,
        request: Request<SetClusterOptionsRequest>,
    ) -> Result<Response<Cluster>, Status> {
        let (call, mut request) = called(request)?;
        let id = std::mem::take(&mut request.request_id);
        let body = Body::SetClusterOptions(records::SetClusterOptions {
            request: client_request(id, "SetClusterOptions", &request),
            replace_after_s: request.replace_after_seconds,
            replace_never: request.replace_never,
        });
        self.write(&call, body).await?;
        self.cluster_view().await
    }

    async fn rebalance_cluster(
        &self,
        request: Request<RebalanceClusterRequest>,
    ) -> Result<Response<Cluster>, Status> {
        let (call, mut request) = called(request)?;
        let id = std::mem::take(&mut request.request_id);
        let body = Body::Rebalance(records::Rebalance {
            request: client_request(id, "RebalanceCluster", &request),
            on: !request.stop,
            stopped: request.stop,
        });
        self.write(&call, body).await?;
        self.cluster_view().await
    }
}

impl Api {
    async fn cluster_view(&self) -> Result<Response<Cluster>, Status> {
        let record = self.read(|state| state.cluster().cloned()).await?;
        let record = record.ok_or_else(|| Status::unavailable("the cluster is not initialised yet"))?;
        let metrics = self.raft.metrics();
        Ok(Response::new(Cluster {
            id: record.id.iter().map(|byte| format!("{byte:02x}")).collect(),
            target_iqn: record.target_iqn,
            members: self.members(),
            leader_id: metrics.leader.map_or(0, |leader| leader.id),
            term: metrics.term,
            committed_index: metrics.committed_index,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            replace_after_seconds: match record.replace_after_s {
                0 => limits::REPLACE_AFTER_S_DEFAULT,
                seconds => seconds,
            },
            replace_never: record.replace_never,
            rebalancing: record.rebalancing,
        }))
    }
}
