//! NodeService.

use holdfast_proto::{
    state as records,
    v1::{
        CordonNodeRequest, DrainNodeRequest, GetNodeRequest, ListNodesRequest, ListNodesResponse, Node,
        NodeChange, NodePool, NodePort, NodeSpec, NodeStatus, RemoveNodeRequest, RemoveNodeResponse,
        UncordonNodeRequest, WatchNodesRequest, node_change::Change, node_service_server::NodeService,
    },
};
use tonic::{Code, Request, Response, Status};

use super::{
    Api, called,
    nouns::Nodes,
    page::page,
    request::client_request,
    status, unexpected,
    watch::{Step, Watch},
};
use crate::server::Call;
use crate::state::{Body, Kind, Outcome, Refusal, StateMachine, names::printable};

impl Api {
    pub(super) fn node_view(&self, state: &StateMachine, node: &records::Node) -> Node {
        Node {
            name: node.name.clone(),
            spec: Some(NodeSpec {
                cordoned: node.cordoned,
                draining: node.draining,
                evacuating: node.evacuating,
            }),
            status: Some(NodeStatus {
                number: node.number,
                ports: node
                    .ports
                    .iter()
                    .map(|p| NodePort { relative_port: p.relative_port, portal: p.portal.clone() })
                    .collect(),
                interconnect: node.interconnect.clone(),
                pools: node
                    .pools
                    .iter()
                    .map(|p| NodePool {
                        name: p.name.clone(),
                        capacity_bytes: p.capacity_bytes,
                        free_bytes: p.free_bytes,
                        kind: kind_name(p.kind()).to_owned(),
                    })
                    .collect(),
                live: node.live,
                // Filled in by `with_lease`: the lease table is locked before the state, never after.
                lease_ms_left: 0,
                incarnation: node.incarnation,
                applied_index: 0,
                volumes_owned: u32::try_from(state.owned_by(node.number)).unwrap_or(u32::MAX),
                replicas: u32::try_from(state.held_by(node.number)).unwrap_or(u32::MAX),
                drained: node.draining && state.is_drained(node),
                staying: state.staying(node),
            }),
        }
    }

    /// Adds what only the leader's lease table knows.
    fn with_lease(&self, mut node: Node) -> Node {
        if let Some(status) = &mut node.status {
            status.lease_ms_left = self.leases.left_ms(status.number);
            status.applied_index = self.leases.applied_index(status.number);
        }
        node
    }

    async fn node_by_name(&self, name: &str) -> Result<Response<Node>, Status> {
        let found =
            self.read(|state| state.node_by_name(name).map(|node| self.node_view(state, node))).await?;
        let missing = || Refusal::NotFound { kind: Kind::Node, name: printable(name) };
        let node = found.ok_or_else(|| status::refused(&missing()))?;
        Ok(Response::new(self.with_lease(node)))
    }

    async fn cordon(&self, call: &Call, command: records::CordonNode) -> Result<Response<Node>, Status> {
        match self.write(call, Body::CordonNode(command)).await? {
            Outcome::Node(node) => {
                let view = self.raft.read(|state| self.node_view(state, &node));
                Ok(Response::new(self.with_lease(view)))
            }
            other => Err(unexpected(&other)),
        }
    }
}

/// A step of a watch as its message.
fn watched(revision: u64, step: Step<Node>) -> NodeChange {
    let change = match step {
        Step::Changed(row) => Change::Changed(row),
        Step::Removed(name) => Change::Removed(name),
        Step::Synced => Change::Synced(true),
    };
    NodeChange { change: Some(change), revision }
}

#[tonic::async_trait]
impl NodeService for Api {
    async fn get_node(&self, request: Request<GetNodeRequest>) -> Result<Response<Node>, Status> {
        self.node_by_name(&request.get_ref().name).await
    }

    async fn list_nodes(
        &self,
        request: Request<ListNodesRequest>,
    ) -> Result<Response<ListNodesResponse>, Status> {
        let request = request.into_inner();
        let rows = self
            .read(|state| {
                state.nodes().map(|node| (node.name.clone(), self.node_view(state, node))).collect::<Vec<_>>()
            })
            .await?;
        let (nodes, next_page_token) = page(rows, request.page_size, &request.page_token)?;
        let nodes = nodes.into_iter().map(|node| self.with_lease(node)).collect();
        Ok(Response::new(ListNodesResponse { nodes, next_page_token }))
    }

    type WatchNodesStream = Watch<NodeChange>;

    async fn watch_nodes(
        &self,
        request: Request<WatchNodesRequest>,
    ) -> Result<Response<Self::WatchNodesStream>, Status> {
        let request = request.into_inner();
        self.watch(Nodes, request.after_revision, watched).await.map(Response::new)
    }

    async fn cordon_node(&self, request: Request<CordonNodeRequest>) -> Result<Response<Node>, Status> {
        let (call, mut request) = called(request)?;
        let id = std::mem::take(&mut request.request_id);
        let client = client_request(id, "CordonNode", &request);
        let (name, cordoned) = (request.name, true);
        let cordon = records::CordonNode { request: client, name, cordoned, ..Default::default() };
        self.cordon(&call, cordon).await
    }

    async fn drain_node(&self, request: Request<DrainNodeRequest>) -> Result<Response<Node>, Status> {
        let (call, mut request) = called(request)?;
        let id = std::mem::take(&mut request.request_id);
        let drain = records::CordonNode {
            request: client_request(id, "DrainNode", &request),
            evacuate: !request.keep_replicas,
            name: request.name,
            cordoned: true,
            drain: true,
        };
        self.cordon(&call, drain).await
    }

    async fn uncordon_node(&self, request: Request<UncordonNodeRequest>) -> Result<Response<Node>, Status> {
        let (call, mut request) = called(request)?;
        let id = std::mem::take(&mut request.request_id);
        let client = client_request(id, "UncordonNode", &request);
        let cordon = records::CordonNode { request: client, name: request.name, ..Default::default() };
        self.cordon(&call, cordon).await
    }

    async fn remove_node(
        &self,
        request: Request<RemoveNodeRequest>,
    ) -> Result<Response<RemoveNodeResponse>, Status> {
        let (call, mut request) = called(request)?;
        let id = std::mem::take(&mut request.request_id);
        let client = client_request(id, "RemoveNode", &request);
        // A node that was removed by this request has no name any more.
        if self.answered(client.as_ref()).await?.is_some() {
            return Ok(Response::new(RemoveNodeResponse {}));
        }
        let number = self.raft.read(|state| state.node_by_name(&request.name).map(|node| node.number));
        let missing = || Refusal::NotFound { kind: Kind::Node, name: printable(&request.name) };
        let number = number.ok_or_else(|| status::refused(&missing()))?;
        let lease_term = self.leases.begin_removal(number).map_err(|reason| {
            Status::failed_precondition(format!("node {} is not removed: {reason}", request.name))
        })?;
        let removal = records::RemoveNode { request: client, name: request.name, number, lease_term };
        match self.write(&call, Body::RemoveNode(removal)).await {
            Ok(_) => Ok(Response::new(RemoveNodeResponse {})),
            // It may still be removed in this term: it goes on being granted nothing.
            Err(status) if status.code() == Code::DeadlineExceeded => Err(status),
            Err(status) => {
                self.leases.keep(number);
                Err(status)
            }
        }
    }
}
/// As people read it.
fn kind_name(kind: records::PoolKind) -> &'static str {
    match kind {
        records::PoolKind::Unspecified | records::PoolKind::File => "file",
        records::PoolKind::Block => "block",
        records::PoolKind::Memory => "memory",
        records::PoolKind::Null => "null",
    }
}
