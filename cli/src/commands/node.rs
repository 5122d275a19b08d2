//! `holdfast node`.

use holdfast_proto::v1::{
    CordonNodeRequest, DrainNodeRequest, GetNodeRequest, ListNodesRequest, ListNodesResponse,
    Node as NodeRecord, RemoveNodeRequest, UncordonNodeRequest, node_service_client::NodeServiceClient,
};
use std::time::Duration;

use tonic::{Response, Status};

use super::PAGE_SIZE;
use crate::{
    arguments::{Client, Node},
    connection::{Connection, connect, refusal, request_id},
    output::{or_dash, print, table},
    size::Size,
};

/// How often a drain is looked at.
const DRAIN_ASKED_EVERY: Duration = Duration::from_millis(500);

pub(crate) async fn run(client: &Client, verb: Node) -> anyhow::Result<()> {
    let mut service = NodeServiceClient::new(connect(client).await?);
    let one = match verb {
        Node::List => {
            let nodes = list(&mut service).await?;
            let answer = ListNodesResponse { nodes, next_page_token: String::new() };
            return print(client.output, "ListNodesResponse", &answer, || rows(&answer.nodes));
        }
        Node::Show { name } => service.get_node(GetNodeRequest { name }).await,
        Node::Cordon { name } => {
            service.cordon_node(CordonNodeRequest { request_id: request_id(), name }).await
        }
        Node::Remove { name } => {
            let request = RemoveNodeRequest { request_id: request_id(), name: name.clone() };
            service.remove_node(request).await.map_err(refusal)?;
            println!("node {name} removed");
            return Ok(());
        }
        Node::Drain { name, keep_replicas, no_wait } => {
            let request = DrainNodeRequest { request_id: request_id(), name: name.clone(), keep_replicas };
            let begun = service.drain_node(request).await;
            if no_wait {
                begun
            } else {
                drained(&mut service, name, begun.map_err(refusal)?.into_inner()).await
            }
        }
        Node::Uncordon { name } => {
            service.uncordon_node(UncordonNodeRequest { request_id: request_id(), name }).await
        }
    };
    let node = one.map_err(refusal)?.into_inner();
    print(client.output, "Node", &node, || rows(std::slice::from_ref(&node)))
}

/// Follows a drain to its end, and says on standard error what is left whenever that changes.
async fn drained(
    service: &mut NodeServiceClient<Connection>,
    name: String,
    mut node: NodeRecord,
) -> Result<Response<NodeRecord>, Status> {
    let mut said = String::new();
    loop {
        let status = node.status.clone().unwrap_or_default();
        let draining = node.spec.as_ref().is_some_and(|spec| spec.draining);
        if status.drained || !draining {
            for line in &status.staying {
                eprintln!("{name} {line}");
            }
            return Ok(Response::new(node));
        }
        let left =
            format!("{name} owns {} volumes and holds {} copies", status.volumes_owned, status.replicas);
        if left != said {
            eprintln!("{left}");
            said = left;
        }
        tokio::time::sleep(DRAIN_ASKED_EVERY).await;
        node = service.get_node(GetNodeRequest { name: name.clone() }).await?.into_inner();
    }
}

/// Every node, page by page.
pub(crate) async fn list(service: &mut NodeServiceClient<Connection>) -> anyhow::Result<Vec<NodeRecord>> {
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
        ["node", "number", "state", "portals", "rtpi", "pools", "owned", "copies"],
        nodes.iter().map(|node| {
            let status = node.status.clone().unwrap_or_default();
            let cordoned = node.spec.as_ref().is_some_and(|spec| spec.cordoned);
            let state = if status.live { "live" } else { "no lease" };
            [
                node.name.clone(),
                status.number.to_string(),
                match node.spec.as_ref() {
                    Some(spec) if spec.draining && status.drained => format!("{state}, drained"),
                    Some(spec) if spec.draining => format!("{state}, draining"),
                    _ if cordoned => format!("{state}, cordoned"),
                    _ => state.to_owned(),
                },
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
                status.replicas.to_string(),
            ]
        }),
    )
}
