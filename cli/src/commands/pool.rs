//! `holdfast pool`.

use anyhow::Context;
use holdfast_proto::v1::{
    ListNodesResponse, ListVolumesRequest, Node as NodeRecord, NodePool, Volume as VolumeRecord,
    node_service_client::NodeServiceClient, volume_service_client::VolumeServiceClient,
};

use super::{PAGE_SIZE, node};
use crate::{
    arguments::{Client, Pool},
    connection::{Connection, connect, refusal},
    output::{print, table},
    size::Size,
};

pub(crate) async fn run(client: &Client, verb: Pool) -> anyhow::Result<()> {
    let connection = connect(client).await?;
    let mut nodes = node::list(&mut NodeServiceClient::new(connection.clone())).await?;
    match verb {
        Pool::List { node } => {
            if let Some(name) = node {
                nodes.retain(|node| node.name == name);
                anyhow::ensure!(!nodes.is_empty(), "node {name} does not exist");
            }
            let answer = ListNodesResponse { nodes, next_page_token: String::new() };
            print(client.output, "ListNodesResponse", &answer, || rows(pools(&answer.nodes)))
        }
        Pool::Show { node, name } => {
            nodes.retain(|record| record.name == node);
            anyhow::ensure!(!nodes.is_empty(), "node {node} does not exist");
            let found = pools(&nodes).find(|(_, pool)| pool.name == name);
            let (_, pool) = found.with_context(|| format!("node {node} has no pool {name}"))?;
            let volumes = volumes(connection).await?;
            let head = rows([(node.as_str(), pool)].into_iter());
            print(client.output, "NodePool", pool, || format!("{head}\n{}", copies(&volumes, &node, &name)))
        }
    }
}

fn pools(nodes: &[NodeRecord]) -> impl Iterator<Item = (&str, &NodePool)> {
    nodes.iter().flat_map(|node| {
        let pools = node.status.as_ref().map(|status| status.pools.as_slice()).unwrap_or_default();
        pools.iter().map(|pool| (node.name.as_str(), pool))
    })
}

fn rows<'a>(pools: impl Iterator<Item = (&'a str, &'a NodePool)>) -> String {
    table(
        ["node", "pool", "kind", "free", "capacity"],
        pools.map(|(node, pool)| {
            [
                node.to_owned(),
                pool.name.clone(),
                pool.kind.clone(),
                Size(pool.free_bytes).to_string(),
                Size(pool.capacity_bytes).to_string(),
            ]
        }),
    )
}

fn copies(volumes: &[VolumeRecord], node: &str, pool: &str) -> String {
    let here = volumes.iter().flat_map(|volume| {
        let copies = volume.status.as_ref().map(|status| status.replicas.as_slice()).unwrap_or_default();
        let here = copies.iter().filter(|copy| copy.node == node && copy.pool == pool);
        here.map(|copy| [volume.name.clone(), copy.state.clone(), copy.phase.clone()])
    });
    table(["volume", "copy", "now"], here)
}

/// Every volume, page by page.
async fn volumes(connection: Connection) -> anyhow::Result<Vec<VolumeRecord>> {
    let mut service = VolumeServiceClient::new(connection);
    let mut volumes = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListVolumesRequest { page_size: PAGE_SIZE, page_token };
        let page = service.list_volumes(request).await.map_err(refusal)?.into_inner();
        volumes.extend(page.volumes);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(volumes);
        }
    }
}
