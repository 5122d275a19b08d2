//! The one gRPC listener of a controller, with all its services.
//!
//! Every call passes [`access`] first: TLS has verified the certificate, `access` decides by role and path, management calls
//! of a member that does not lead are passed on ([`forward`]), and the service finds the caller as [`Caller`] in the request's
//! extensions.
//!
//! What is refused here goes into the audit ([`refusals`]).
//!
//! Invariant: a clean stop hands leadership over before anything is closed, and never waits for a caller longer than
//! [`DRAIN_TIMEOUT`].

mod access;
mod forward;
mod members;
mod refusals;

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use holdfast_pki::Identity;
use holdfast_proto::raft::members_server::MembersServer;
use holdfast_telemetry::server::TraceLayer;
use tokio::{net::TcpListener, task::JoinHandle};
use tonic::{
    service::{Routes, RoutesBuilder},
    transport::Server,
};

use access::AccessLayer;
pub(crate) use access::stamp_metadata;
pub use access::{Call, Caller};
use forward::Forwarder;
use members::MembersService;
use refusals::Refusals;

use crate::raft::{Handle, RunningMember};

/// How long open calls may go on after a stop was asked for.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// How often a controller looks whether it is still a member, to say so in its health.
const MEMBERSHIP_LOOKED_AT_EVERY: Duration = Duration::from_millis(500);
/// Streams at a time on one connection.
const STREAMS_PER_CONNECTION_MAX: u32 = 1024;
/// A connection whose TLS or HTTP/2 peer is silent is closed after interval + timeout.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the listener did not come up; each message is one line.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another process has the port.
    #[error("{0} is in use by another process; give --listen another address")]
    InUse(SocketAddr),
    /// Any other reason.
    #[error("cannot listen on {address}: {source}")]
    Io {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The descriptors for reflection are broken.
    #[error("reflection: {0}")]
    Reflection(String),
}

/// Takes the port.
///
/// # Errors
/// [`ListenError::InUse`] or [`ListenError::Io`].
pub async fn bind(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).await.map_err(|source| match source.kind() {
        std::io::ErrorKind::AddrInUse => ListenError::InUse(address),
        _ => ListenError::Io { address, source },
    })
}

/// Health and reflection; all other services are added to them.
fn common() -> Result<(Routes, tonic_health::server::HealthReporter), ListenError> {
    let (reporter, health) = tonic_health::server::health_reporter();
    let broken = |error: tonic_reflection::server::Error| ListenError::Reflection(error.to_string());
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(holdfast_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(broken)?;
    let mut routes = RoutesBuilder::default();
    routes.add_service(health).add_service(reflection);
    Ok((routes.routes(), reporter))
}

/// Says SERVING while a leader is known and the cluster has its record, so that whoever waits for a cluster sees when calls
/// get an answer.
async fn report_health(handle: Handle, reporter: tonic_health::server::HealthReporter) {
    reporter.set_service_status("", tonic_health::ServingStatus::NotServing).await;
    let founded = |_: &u64| handle.read(|machine| machine.cluster().is_some());
    if handle.watch_applied().wait_for(founded).await.is_err() {
        return;
    }
    let mut leader = handle.watch_leader();
    loop {
        let known = leader.borrow_and_update().is_some() && handle.is_member();
        let status = if known {
            tonic_health::ServingStatus::Serving
        } else {
            tonic_health::ServingStatus::NotServing
        };
        reporter.set_service_status("", status).await;
        // Membership is looked at now and then.
        if let Ok(Err(_)) = tokio::time::timeout(MEMBERSHIP_LOOKED_AT_EVERY, leader.changed()).await {
            reporter.set_service_status("", tonic_health::ServingStatus::NotServing).await;
            return;
        }
    }
}

/// Serves until `stop` completes, then stops cleanly: leadership is handed over, calls get [`DRAIN_TIMEOUT`], Raft is stopped
/// with everything on disk. Also ends, with an error, when the member's Raft fails by itself.
///
/// `services` adds what is not Raft's own: node sessions and management.
///
/// # Errors
/// [`ListenError`] before serving; the reason of the failure after it.
pub async fn serve(
    listener: TcpListener,
    identity: Arc<Identity>,
    member: RunningMember,
    services: impl FnOnce(&mut RoutesBuilder),
    stop: impl Future<Output = ()>,
) -> Result<(), anyhow::Error> {
    let handle = member.handle();
    let (common, reporter) = common()?;
    let mut routes = RoutesBuilder::from(common);
    routes.add_service(member.service().into_server());
    routes.add_service(MembersServer::new(MembersService { handle: handle.clone() }));
    services(&mut routes);
    let refusals = Refusals::default();
    let layer = AccessLayer {
        cluster: identity.own().cluster,
        refusals: refusals.clone(),
        forwarder: Arc::new(Forwarder::new(handle.clone(), Arc::clone(&identity))),
    };
    let incoming = identity.incoming(listener);
    let (close, closed) = tokio::sync::oneshot::channel::<()>();
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .max_concurrent_streams(Some(STREAMS_PER_CONNECTION_MAX))
        .layer(TraceLayer)
        .layer(layer)
        .add_routes(routes.routes())
        .serve_with_incoming_shutdown(incoming, async {
            // Closing and losing the sender mean the same.
            let _ = closed.await;
        });
    let mut server: JoinHandle<Result<(), tonic::transport::Error>> = tokio::spawn(server);
    let renewed = Arc::clone(&identity);
    let renewer = tokio::spawn(async move { holdfast_pki::keep_current(&renewed).await });
    let recorder = tokio::spawn(refusals.run(handle.clone(), identity));
    let health = tokio::spawn(report_health(handle, reporter));
    let outcome = tokio::select! {
        () = stop => Ok(()),
        reason = member.failed() => Err(anyhow::anyhow!("Raft has stopped: {reason}")),
        ended = &mut server => Err(anyhow::anyhow!("the listener has ended: {ended:?}")),
    };
    if outcome.is_ok() {
        member.hand_over().await;
    }
    let _ = close.send(());
    if !server.is_finished() && tokio::time::timeout(DRAIN_TIMEOUT, &mut server).await.is_err() {
        tracing::debug!("calls were still open");
        server.abort();
    }
    health.abort();
    recorder.abort();
    renewer.abort();
    member.stop().await;
    outcome
}
