//! `holdfast node`.

use holdfast_proto::v1::{
    CordonNodeRequest, DrainNodeRequest, GetNodeRequest, ListNodesRequest, ListNodesResponse,
    Node as NodeRecord, RemoveNodeRequest, UncordonNodeRequest, node_service_client::NodeServiceClient,
};
use tonic::transport::Channel;

use super::PAGE_SIZE;
use crate::{
    arguments::{Client, Node},
    connection::{connect, refusal},
    output::{or_dash, print, table},
    size::Size,
};

pub(crate) async fn run(client: &Client, verb: Node) -> anyhow::Result<()> {
    let mut service = NodeServiceClient::new(connect(client).await?);
    let one = match verb {
        Node::List => {
            let nodes = list(&mut service).await?;
            let answer = ListNodesResponse { nodes, next_page_token: String::new() };
            return print(client.output, "ListNodesResponse", &answer, || rows(&answer.nodes));
        }
        Node::Show { name } => service.get_node(GetNodeRequest { name }).await,
        Node::Cordon { name } => service.cordon_node(CordonNodeRequest { name }).await,
        Node::Remove { name } => {
            service.remove_node(RemoveNodeRequest { name: name.clone() }).await.map_err(refusal)?;
            println!("node {name} removed");
            return Ok(());
        }
        Node::Drain { name } => service.drain_node(DrainNodeRequest { name }).await,
        Node::Uncordon { name } => service.uncordon_node(UncordonNodeRequest { name }).await,
    };
    let node = one.map_err(refusal)?.into_inner();
    print(client.output, "Node", &node, || rows(std::slice::from_ref(&node)))
}

/// Every node, page by page.
pub(crate) async fn list(service: &mut NodeServiceClient<Channel>) -> anyhow::Result<Vec<NodeRecord>> {
    let mut nodes = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListNodesRequest { page_size: PAGE_SIZE, page_token };
        let page = service.list_nodes(request).await.map_err(refusal)?.into_inner();
        nodes.extend(page.nodes);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(nodes);
        }
    }
}

fn rows(nodes: &[NodeRecord]) -> String {
    let join = |texts: Vec<String>| or_dash(&texts.join("\n"));
    table(
        ["node", "number", "state", "portals", "rtpi", "pools", "volumes owned"],
        nodes.iter().map(|node| {
            let status = node.status.clone().unwrap_or_default();
            let cordoned = node.spec.as_ref().is_some_and(|spec| spec.cordoned);
            let state = if status.live { "live" } else { "no lease" };
            [
                node.name.clone(),
                status.number.to_string(),
                if cordoned { format!("{state}, cordoned") } else { state.to_owned() },
                join(status.ports.iter().map(|port| port.portal.clone()).collect()),
                join(status.ports.iter().map(|port| port.relative_port.to_string()).collect()),
                join(
                    status
                        .pools
                        .iter()
                        .map(|pool| {
                            format!(
                                "{}: {} of {} free",
                                pool.name,
                                Size(pool.free_bytes),
                                Size(pool.capacity_bytes)
                            )
                        })
                        .collect(),
                ),
                status.volumes_owned.to_string(),
            ]
        }),
    )
}
