//! `holdfast cluster`.

use holdfast_proto::v1::{GetClusterRequest, cluster_service_client::ClusterServiceClient};

use super::controller::rows;
use crate::{
    arguments::{Client, Cluster},
    connection::{connect, refusal},
    output::{facts, print},
};

pub(crate) async fn run(client: &Client, verb: Cluster) -> anyhow::Result<()> {
    let Cluster::Show = verb;
    let mut service = ClusterServiceClient::new(connect(client).await?);
    let cluster = service.get_cluster(GetClusterRequest {}).await.map_err(refusal)?.into_inner();
    print(client.output, "Cluster", &cluster, || {
        let head = facts([
            ("cluster", cluster.id.clone()),
            ("target", cluster.target_iqn.clone()),
            ("term", cluster.term.to_string()),
            ("committed", cluster.committed_index.to_string()),
            ("version", cluster.version.clone()),
        ]);
        format!("{head}\n{}", rows(&cluster.members))
    })
}
