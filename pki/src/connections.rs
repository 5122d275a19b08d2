//! gRPC connections of a process that outlives its certificate: each handshake uses the material of that moment.
//!
//! Invariants: connections that are up are left alone; a handshake is bounded in time, and one that is slow holds up no other; at
//! most [`HANDSHAKES_MAX`] are under way.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tower::Service;

use crate::{Identity, PkiError, Role, server_name};

/// Handshakes of a server that are under way at a time.
const HANDSHAKES_MAX: usize = 256;
/// A peer that takes longer is let go.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause when the system gives no more connections.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What HTTP/2 is called in a handshake (RFC 9113 3.2).
const HTTP2: &[u8] = b"h2";

/// Makes the connections of a [`Channel`].
#[derive(Clone)]
pub struct Connector {
    identity: Identity,
    server: ServerName<'static>,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<client::TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move {
            let address =
                uri.authority().ok_or_else(|| io::Error::other("an address without a host"))?.as_str();
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let mut config = (*connector.identity.rustls_client()).clone();
            config.alpn_protocols = vec![HTTP2.to_vec()];
            let stream = TlsConnector::from(Arc::new(config)).connect(connector.server, stream).await?;
            if stream.get_ref().1.alpn_protocol() != Some(HTTP2) {
                return Err(io::Error::other("the server does not speak HTTP/2"));
            }
            Ok(TokioIo::new(stream))
        })
    }
}

impl Identity {
    /// A connection to `address` ("host:port"), of this role (and name, when given); it comes up at its first use, and again after it
    /// broke. `shaped` sets times and bounds.
    ///
    /// # Errors
    /// [`PkiError::BadName`], [`PkiError::BadAddress`].
    pub fn channel(
        &self,
        address: &str,
        role: Role,
        name: Option<&str>,
        shaped: impl FnOnce(Endpoint) -> Endpoint,
    ) -> Result<Channel, PkiError> {
        let (endpoint, connector) = self.endpoint(address, role, name)?;
        Ok(shaped(endpoint).connect_with_connector_lazy(connector))
    }

    /// The same in parts, for `connect_with_connector`.
    ///
    /// # Errors
    /// As [`Identity::channel`].
    pub fn endpoint(
        &self,
        address: &str,
        role: Role,
        name: Option<&str>,
    ) -> Result<(Endpoint, Connector), PkiError> {
        let bad = |reason: &dyn std::fmt::Display| PkiError::BadAddress {
            address: address.to_owned(),
            reason: reason.to_string(),
        };
        let origin = format!("https://{address}").parse::<Uri>().map_err(|error| bad(&error))?;
        // The connector does TLS itself, so to tonic the address is plain.
        let endpoint =
            Endpoint::from_shared(format!("http://{address}")).map_err(|error| bad(&error))?.origin(origin);
        Ok((endpoint, Connector { identity: self.clone(), server: server_name(role, name)? }))
    }

    /// The connections of a server, TLS done; they end with the stream.
    pub fn incoming(
        &self,
        listener: TcpListener,
    ) -> ReceiverStream<io::Result<server::TlsStream<TcpStream>>> {
        let (ready, incoming) = mpsc::channel(1);
        tokio::spawn(accept(self.clone(), listener, ready));
        ReceiverStream::new(incoming)
    }
}

async fn accept(
    identity: Identity,
    listener: TcpListener,
    ready: mpsc::Sender<io::Result<server::TlsStream<TcpStream>>>,
) {
    let under_way = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let Ok(permit) = Arc::clone(&under_way).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = ready.closed() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "a connection is not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let mut config = (*identity.rustls_server()).clone();
        config.alpn_protocols = vec![HTTP2.to_vec()];
        let ready = ready.clone();
        tokio::spawn(async move {
            let shaken = async {
                stream.set_nodelay(true)?;
                TlsAcceptor::from(Arc::new(config)).accept(stream).await
            };
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, shaken).await {
                // An error means that the server has ended.
                Ok(Ok(stream)) => drop(ready.send(Ok(stream)).await),
                Ok(Err(error)) => tracing::debug!(%error, "a handshake failed"),
                Err(_) => tracing::debug!("a handshake was not finished in time"),
            }
            drop(permit);
        });
    }
}
