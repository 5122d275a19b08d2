//! A server of the data nodes' service over real TLS whose every word the test says.

use std::{net::SocketAddr, pin::Pin};

use holdfast_pki::Identity;
use holdfast_proto::node::{
    AwaitBarrierRequest, AwaitBarrierResponse, ChangeConfigurationRequest, ChangeConfigurationResponse,
    EstablishUnitAttentionRequest, EstablishUnitAttentionResponse, FromNode, ProposeReservationRequest,
    ProposeReservationResponse, ToNode, from_node,
    node_agent_server::{NodeAgent, NodeAgentServer},
};
use tokio::{
    net::TcpListener,
    sync::{Mutex, mpsc, oneshot},
};
use tokio_stream::{Stream, wrappers::TcpListenerStream, wrappers::UnboundedReceiverStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};

/// A proposal, and the way to answer it.
pub(super) type Proposal =
    (ProposeReservationRequest, oneshot::Sender<Result<ProposeReservationResponse, Status>>);

/// One session: what the node says, and what it is told.
pub(super) struct Session {
    pub(super) from: mpsc::UnboundedReceiver<FromNode>,
    pub(super) to: mpsc::UnboundedSender<Result<ToNode, Status>>,
}

impl Session {
    /// The next message that is `wanted`; others are passed over.
    pub(super) async fn next<T>(&mut self, wanted: impl Fn(from_node::Message) -> Option<T>) -> T {
        loop {
            let message = self.from.recv().await.expect("the session goes on");
            if let Some(found) = message.message.and_then(&wanted) {
                return found;
            }
        }
    }

    pub(super) fn say(&self, message: ToNode) {
        self.to.send(Ok(message)).unwrap();
    }
}

/// The server.
pub(super) struct Controller {
    pub(super) address: SocketAddr,
    pub(super) sessions: mpsc::UnboundedReceiver<Session>,
    pub(super) proposals: mpsc::UnboundedReceiver<Proposal>,
}

struct Service {
    sessions: mpsc::UnboundedSender<Session>,
    proposals: mpsc::UnboundedSender<Proposal>,
    /// Set in a member that does not lead.
    leader: Option<SocketAddr>,
    last: Mutex<()>,
}

impl Controller {
    /// Listens on loopback. With `leader`, it only ever names that one.
    pub(super) async fn start(identity: &Identity, leader: Option<SocketAddr>) -> Controller {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sessions, sessions_received) = mpsc::unbounded_channel();
        let (proposals, proposals_received) = mpsc::unbounded_channel();
        let service = Service { sessions, proposals, leader, last: Mutex::new(()) };
        let server = Server::builder()
            .tls_config(identity.tonic_server())
            .unwrap()
            .add_service(NodeAgentServer::new(service))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(server);
        Controller { address, sessions: sessions_received, proposals: proposals_received }
    }
}

#[tonic::async_trait]
impl NodeAgent for Service {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<ToNode, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<FromNode>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        if let Some(leader) = self.leader {
            let mut status = Status::failed_precondition("not the leader");
            status.metadata_mut().insert("holdfast-leader", leader.to_string().parse().unwrap());
            return Err(status);
        }
        let mut incoming = request.into_inner();
        let (heard, from) = mpsc::unbounded_channel();
        let (to, said) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok(Some(message)) = incoming.message().await {
                if heard.send(message).is_err() {
                    return;
                }
            }
        });
        self.sessions.send(Session { from, to }).unwrap();
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(said))))
    }

    async fn propose_reservation(
        &self,
        request: Request<ProposeReservationRequest>,
    ) -> Result<Response<ProposeReservationResponse>, Status> {
        let (answer, answered) = oneshot::channel();
        self.proposals.send((request.into_inner(), answer)).unwrap();
        answered
            .await
            .unwrap_or_else(|_| Err(Status::deadline_exceeded("nobody answered")))
            .map(Response::new)
    }

    async fn await_barrier(
        &self,
        _: Request<AwaitBarrierRequest>,
    ) -> Result<Response<AwaitBarrierResponse>, Status> {
        Ok(Response::new(AwaitBarrierResponse {}))
    }

    async fn change_configuration(
        &self,
        _: Request<ChangeConfigurationRequest>,
    ) -> Result<Response<ChangeConfigurationResponse>, Status> {
        Err(Status::unavailable("no change of a configuration is expected here"))
    }

    async fn establish_unit_attention(
        &self,
        request: Request<EstablishUnitAttentionRequest>,
    ) -> Result<Response<EstablishUnitAttentionResponse>, Status> {
        // Numbered by the order of the calls; the event's own fields are looked at by the test that asks.
        let _one_at_a_time = self.last.lock().await;
        let event = request.into_inner().event.ok_or_else(|| Status::invalid_argument("event"))?;
        Ok(Response::new(EstablishUnitAttentionResponse { index: u64::from(event.additional) }))
    }
}
