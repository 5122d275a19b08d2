//! ClusterService.

use holdfast_proto::v1::{Cluster, GetClusterRequest, cluster_service_server::ClusterService};
use tonic::{Request, Response, Status};

use super::Api;

#[tonic::async_trait]
impl ClusterService for Api {
    async fn get_cluster(&self, _: Request<GetClusterRequest>) -> Result<Response<Cluster>, Status> {
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
        }))
    }
}
