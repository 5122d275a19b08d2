//! When a development cluster serves, and what it says then.

use std::{path::Path, time::Duration};

use anyhow::{Context, bail};
use holdfast_proto::v1::{
    Cluster, GetClusterRequest, NodeStatus, cluster_service_client::ClusterServiceClient,
    node_service_client::NodeServiceClient,
};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep},
};

use super::layout::{self, Layout};
use crate::{
    commands,
    connection::{Access, refusal},
};

/// Longest time from the start of the processes to the cluster's first service. A machine under load is slow.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Waits until a leader is elected, every data node holds a lease and every portal takes connections.
pub(super) async fn wait(directory: &Path, layout: &Layout) -> anyhow::Result<Cluster> {
    let access = Access {
        endpoints: layout.controllers.iter().map(layout::ControllerLayout::address).collect(),
        tls: layout::admin_tls(directory),
    };
    let started = Instant::now();
    loop {
        match attempt(&access, layout).await {
            Ok(cluster) => return Ok(cluster),
            Err(error) if started.elapsed() > PATIENCE => {
                let logs = directory.join("log");
                return Err(error).with_context(|| {
                    format!("not up after {} s (logs: {})", PATIENCE.as_secs(), logs.display())
                });
            }
            Err(_) => sleep(POLL_INTERVAL).await,
        }
    }
}

async fn attempt(access: &Access, layout: &Layout) -> anyhow::Result<Cluster> {
    let channel = access.connect().await?;
    let cluster = ClusterServiceClient::new(channel.clone()).get_cluster(GetClusterRequest {}).await;
    let cluster = cluster.map_err(refusal)?.into_inner();
    if cluster.leader_id == 0 {
        bail!("no leader yet");
    }
    let nodes = commands::node::list(&mut NodeServiceClient::new(channel)).await?;
    for wanted in &layout.datanodes {
        // A lease that this leader granted: after a restart the record alone still says what was true before.
        let leased = |status: &NodeStatus| status.live && status.lease_ms_left > 0;
        let live =
            nodes.iter().any(|node| node.name == wanted.name && node.status.as_ref().is_some_and(leased));
        if !live {
            bail!("{} holds no lease yet", wanted.name);
        }
        TcpStream::connect(wanted.portal()).await.with_context(|| format!("portal {}", wanted.portal()))?;
    }
    Ok(cluster)
}

/// The ready line for programs, and a few lines for people.
pub(super) fn announce(directory: &Path, layout: &Layout, cluster: &Cluster) {
    let join = |texts: Vec<String>| texts.join(",");
    let controllers = join(layout.controllers.iter().map(layout::ControllerLayout::address).collect());
    let portals = join(layout.datanodes.iter().map(layout::DatanodeLayout::portal).collect());
    println!(
        "ready: target={} portals={portals} controllers={controllers} dir={}",
        cluster.target_iqn,
        directory.display()
    );
    eprintln!("\nManage it:   holdfast --dir {} node list", directory.display());
    eprintln!("Logs:        {}", directory.join("log").display());
    eprintln!("Stop it:     Ctrl-C (the same folder again brings it back with its data)");
}
