//! `holdfast cluster`.

use holdfast_proto::v1::{GetClusterRequest, cluster_service_client::ClusterServiceClient};

use crate::{
    arguments::{Client, Cluster},
    connection::{connect, refusal},
    output::{facts, print, table},
};

pub(crate) async fn run(client: &Client, verb: Cluster) -> anyhow::Result<()> {
    let Cluster::Show = verb;
    let mut service = ClusterServiceClient::new(connect(client).await?);
    let cluster = service.get_cluster(GetClusterRequest {}).await.map_err(refusal)?.into_inner();
    print(client.output, "Cluster", &cluster, || {
        let members = cluster.members.iter().map(|member| {
            let role = match (member.id == cluster.leader_id, member.voter) {
                (true, _) => "leader",
                (false, true) => "voter",
                (false, false) => "learner",
            };
            let matched = member.matched_index.map_or_else(|| "-".to_owned(), |index| index.to_string());
            [member.name.clone(), member.id.to_string(), member.address.clone(), role.to_owned(), matched]
        });
        let head = facts([
            ("cluster", cluster.id.clone()),
            ("target", cluster.target_iqn.clone()),
            ("term", cluster.term.to_string()),
            ("committed", cluster.committed_index.to_string()),
            ("version", cluster.version.clone()),
        ]);
        format!("{head}\n{}", table(["controller", "id", "address", "role", "matched"], members))
    })
}
