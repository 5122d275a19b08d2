//! `holdfast cluster`.

use holdfast_proto::v1::{
    AssessRecoveryRequest, Cluster as ClusterRecord, GetClusterRequest, RebalanceClusterRequest,
    RecoverVolumeRequest, SetClusterOptionsRequest, cluster_service_client::ClusterServiceClient,
    volume_service_client::VolumeServiceClient,
};

use super::{controller::rows, volume::details};
use crate::{
    arguments::{Client, Cluster},
    connection::{connect, refusal, request_id},
    output::{facts, print, table},
};

pub(crate) async fn run(client: &Client, verb: Cluster) -> anyhow::Result<()> {
    let mut service = ClusterServiceClient::new(connect(client).await?);
    let cluster = match verb {
        Cluster::Show => service.get_cluster(GetClusterRequest {}).await,
        Cluster::Set(set) => {
            let request = SetClusterOptionsRequest {
                request_id: request_id(),
                replace_after_seconds: set.replace_after,
                replace_never: Some(set.replace_never),
            };
            service.set_cluster_options(request).await
        }
        Cluster::Rebalance { stop } => {
            service.rebalance_cluster(RebalanceClusterRequest { request_id: request_id(), stop }).await
        }
        Cluster::Recover { volume, from, accept_data_loss } => {
            return recover(client, volume, from.zip(accept_data_loss)).await;
        }
    };
    let cluster = cluster.map_err(refusal)?.into_inner();
    print(client.output, "Cluster", &cluster, || text(&cluster))
}

fn text(cluster: &ClusterRecord) -> String {
    let replace = if cluster.replace_never {
        "never".to_owned()
    } else {
        format!("after {} s without its node", cluster.replace_after_seconds)
    };
    let head = facts([
        ("cluster", cluster.id.clone()),
        ("target", cluster.target_iqn.clone()),
        ("term", cluster.term.to_string()),
        ("committed", cluster.committed_index.to_string()),
        ("version", cluster.version.clone()),
        ("a copy is replaced", replace),
        ("ownership", if cluster.rebalancing { "is being spread" } else { "stays where it is" }.to_owned()),
    ]);
    format!("{head}\n{}", rows(&cluster.members))
}

/// Shows what a forced recovery would lose, or makes it, once that was agreed to.
async fn recover(
    client: &Client,
    volume: String,
    agreed: Option<(String, (u32, u64))>,
) -> anyhow::Result<()> {
    let mut service = VolumeServiceClient::new(connect(client).await?);
    if let Some((node, (epoch_generation, epoch_number))) = agreed {
        let request = RecoverVolumeRequest {
            request_id: request_id(),
            volume,
            node,
            epoch_generation,
            epoch_number,
            accept_data_loss: true,
        };
        let volume = service.recover_volume(request).await.map_err(refusal)?.into_inner();
        return print(client.output, "Volume", &volume, || details(&volume));
    }
    let request = AssessRecoveryRequest { volume: volume.clone() };
    let found = service.assess_recovery(request).await.map_err(refusal)?.into_inner();
    let epoch = format!("{}.{}", found.epoch_generation, found.epoch_number);
    print(client.output, "AssessRecoveryResponse", &found, || {
        if !found.refused.is_empty() {
            return found.refused.clone();
        }
        let copies = table(
            ["copy on", "can be chosen", "what would be lost"],
            found.choices.iter().map(|choice| {
                let can = if choice.available { "yes" } else { "no: node away" };
                [choice.node.clone(), can.to_owned(), choice.loses.clone()]
            }),
        );
        format!(
            "No node can serve volume {volume} by the rules. What is better than going on with one copy is to bring back a node \
             whose copy\nis in sync. To go on with one, and give up what it lacks:\n\n{copies}\n  holdfast cluster recover {volume} \
             --from NODE --accept-data-loss {epoch}"
        )
    })
}
