//! Commands and copies of blocks between data nodes: frames over mutual TLS, on the workers' own loops.
//!
//! Each worker has one connection to each node that it forwards to, made when it is first needed, and serves those
//! connections of other nodes that worker 0 has accepted and handed to it. The rules are in
//! [`holdfast_replica::forward`]; here are sockets and TLS.
//!
//! | Looking for | Module |
//! |---|---|
//! | the object of one worker | `node` |
//! | connections between owners and replicas | `replication` |
//! | TLS over a nonblocking socket | `tls` |
//! | the worker's words and those of the frames | `convert` |
//!
//! Invariants: a peer is who its certificate says, a node of this cluster that the view knows; a connection that breaks
//! any rule is closed, and what was sent on it is unknown; nothing blocks.

mod convert;
mod node;
mod replication;
#[cfg(test)]
mod tests;
mod tls;

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
};

use holdfast_pki::{Identity, PkiError};
use holdfast_replica::ids::ClusterId;
use parking_lot::Mutex;

use crate::{data_plane::MakeInterconnect, view::Shared};

/// Why the interconnect did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address is taken.
    #[error("interconnect address {0} is in use")]
    InUse(SocketAddr),
    /// The address cannot be listened on.
    #[error("interconnect address {address} cannot be listened on: {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        error: io::Error,
    },
    /// The certificate cannot be used.
    #[error(transparent)]
    Pki(#[from] PkiError),
}

/// The interconnect of the process, until its workers take their parts.
pub struct Interconnects {
    address: SocketAddr,
    listener: TcpListener,
    tls: Tls,
}

/// TLS of both sides.
#[derive(Clone)]
struct Tls {
    cluster: ClusterId,
    /// Asked anew for each connection: it may have been renewed.
    identity: Identity,
}

impl Tls {
    fn client(&self) -> Arc<rustls::ClientConfig> {
        self.identity.rustls_client()
    }

    /// For connections to replicas.
    fn replica_client(&self) -> Arc<rustls::ClientConfig> {
        let mut config = rustls::ClientConfig::clone(&self.identity.rustls_client());
        config.alpn_protocols = vec![replication::PROTOCOL.to_vec()];
        Arc::new(config)
    }

    fn server(&self) -> Arc<rustls::ServerConfig> {
        let mut config = rustls::ServerConfig::clone(&self.identity.rustls_server());
        config.alpn_protocols = vec![replication::PROTOCOL.to_vec()];
        Arc::new(config)
    }
}

impl std::fmt::Debug for Interconnects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Interconnects({})", self.address)
    }
}

impl Interconnects {
    /// Listens on `address` as `identity`.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn bind(address: SocketAddr, identity: &Identity) -> Result<Interconnects, StartError> {
        let listen = || {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            let bound = listener.local_addr()?;
            Ok((listener, bound))
        };
        let (listener, bound) = listen().map_err(|error: io::Error| match error.kind() {
            io::ErrorKind::AddrInUse => StartError::InUse(address),
            _ => StartError::Listen { address, error },
        })?;
        let tls = Tls { cluster: ClusterId(identity.own().cluster.0), identity: identity.clone() };
        Ok(Interconnects { address: bound, listener, tls })
    }

    /// Where other nodes connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Gives each worker its part; worker 0 gets the listener.
    pub fn into_parts(self, shared: Arc<Shared>) -> MakeInterconnect {
        let Interconnects { listener, tls, .. } = self;
        let listener = Mutex::new(Some(listener));
        Box::new(move |seat| {
            let listener = if seat.worker == 0 { listener.lock().take() } else { None };
            Box::new(node::Node::new(seat, tls.clone(), Arc::clone(&shared), listener))
        })
    }
}

/// CRC32C with the machine's instructions.
fn crc32c(so_far: u32, bytes: &[u8]) -> u32 {
    ::crc32c::crc32c_append(so_far, bytes)
}
