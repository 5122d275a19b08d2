//! TLS over a nonblocking socket: plaintext in, frames out, one vectored write for all that is ready.
//!
//! Invariants: never blocks; reads a bounded amount per call and says when there is more; holds at most
//! [`BUFFER_MAX`] bytes of ciphertext, so that a slow peer costs its frames, not a second copy of them.

use std::{
    collections::VecDeque,
    io::{self, IoSlice, Read as _, Write as _},
    net::SocketAddr,
    sync::Arc,
};

use holdfast_pki::{PeerIdentity, PkiError};
use holdfast_replica::frame::{FrameError, Kind, Outgoing};
use mio::{Interest, Registry, Token, net::TcpStream};
use rustls_pki_types::ServerName;

use crate::data_plane::router::Bytes;

/// Plaintext that may wait in the TLS layer, in bytes.
const BUFFER_MAX: usize = 256 * 1024;
/// Bytes read per call, before others get their turn.
const READ_MAX: usize = 4 * 1024 * 1024;
/// Frames gathered into one write.
const GATHER_MAX: usize = 32;

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    /// The peer closed it.
    #[error("the peer closed the connection")]
    Closed,
    /// The socket failed.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// TLS refused the peer or its bytes.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The certificate carries no identity.
    #[error("the peer's certificate: {0}")]
    Pki(#[from] PkiError),
    /// The peer is nobody that may be here.
    #[error("{0} may not use the interconnect of this cluster")]
    Stranger(String),
    /// The peer broke the rules of forwarding.
    #[error("the peer broke a rule: {0}")]
    Violation(#[from] holdfast_replica::forward::Violation),
    /// The peer sent bytes that are no frame.
    #[error("the peer's bytes are no frame: {0}")]
    Frame(#[from] FrameError),
    /// A frame of this kind that makes no sense, or not here.
    #[error("a frame of the peer makes no sense here: {0:?}")]
    Malformed(Kind),
    /// Nothing has come for too long.
    #[error("the peer is silent")]
    Silent,
}

/// One connection.
pub(super) struct Link {
    stream: TcpStream,
    tls: rustls::Connection,
    readable: bool,
    writable: bool,
    /// Frames that TLS has not taken whole, at most [`GATHER_MAX`].
    queue: VecDeque<Outgoing<Bytes>>,
    /// How much of the first it has taken.
    sent: usize,
}

impl Link {
    /// Begins to connect.
    pub(super) fn connect(
        address: SocketAddr,
        name: ServerName<'static>,
        config: Arc<rustls::ClientConfig>,
        registry: &Registry,
        token: Token,
    ) -> Result<Link, LinkError> {
        let stream = TcpStream::connect(address)?;
        let tls = rustls::ClientConnection::new(config, name)?;
        Self::new(stream, tls.into(), registry, token)
    }

    /// Takes an accepted socket.
    pub(super) fn accept(
        stream: std::net::TcpStream,
        config: Arc<rustls::ServerConfig>,
        registry: &Registry,
        token: Token,
    ) -> Result<Link, LinkError> {
        stream.set_nonblocking(true)?;
        let tls = rustls::ServerConnection::new(config)?;
        Self::new(TcpStream::from_std(stream), tls.into(), registry, token)
    }

    fn new(
        mut stream: TcpStream,
        mut tls: rustls::Connection,
        registry: &Registry,
        token: Token,
    ) -> Result<Link, LinkError> {
        // Before the connection is up this fails on some systems; it is set again when it is.
        let _ = stream.set_nodelay(true);
        tls.set_buffer_limit(Some(BUFFER_MAX));
        registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
        Ok(Link { stream, tls, readable: false, writable: false, queue: VecDeque::new(), sent: 0 })
    }

    /// Takes a readiness event. A connection that failed to come up tells so at the next read.
    pub(super) fn ready(&mut self, event: &mio::event::Event) {
        if event.is_readable() || event.is_read_closed() || event.is_error() {
            self.readable = true;
        }
        if event.is_writable() || event.is_write_closed() {
            if !self.writable {
                let _ = self.stream.set_nodelay(true);
            }
            self.writable = true;
        }
    }

    /// Reads what is there and hands out plaintext: `take` gets a reader and returns the bytes that it took. True when
    /// there may be more.
    pub(super) fn read(
        &mut self,
        mut take: impl FnMut(&mut rustls::Connection) -> Result<(), LinkError>,
    ) -> Result<bool, LinkError> {
        let mut total = 0;
        while self.readable {
            match self.tls.read_tls(&mut self.stream) {
                Ok(0) => return Err(LinkError::Closed),
                Ok(n) => total += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = false;
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            }
            if let Err(error) = self.tls.process_new_packets() {
                // Tells the peer why.
                let _ = self.tls.write_tls(&mut self.stream);
                return Err(error.into());
            }
            take(&mut self.tls)?;
            if total >= READ_MAX {
                break;
            }
        }
        Ok(self.readable)
    }

    /// Sends what `next` gives, as far as the socket takes it.
    pub(super) fn write(
        &mut self,
        mut next: impl FnMut() -> Option<Outgoing<Bytes>>,
    ) -> Result<(), LinkError> {
        loop {
            let filled = self.fill(&mut next)?;
            while self.writable && self.tls.wants_write() {
                match self.tls.write_tls(&mut self.stream) {
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error.into()),
                }
            }
            if !filled || !self.writable {
                return Ok(());
            }
        }
    }

    /// Hands frames to TLS until it takes no more. False if it took nothing.
    fn fill(&mut self, next: &mut impl FnMut() -> Option<Outgoing<Bytes>>) -> Result<bool, LinkError> {
        let mut any = false;
        loop {
            while self.queue.len() < GATHER_MAX {
                let Some(frame) = next() else { break };
                self.queue.push_back(frame);
            }
            let mut slices = Vec::with_capacity(self.queue.len() * 2);
            let mut skip = self.sent;
            for frame in &self.queue {
                for piece in [frame.head.as_slice(), frame.data.as_ref().map_or(&[][..], Bytes::as_slice)] {
                    let cut = skip.min(piece.len());
                    skip -= cut;
                    if let Some(rest) = piece.get(cut..).filter(|rest| !rest.is_empty()) {
                        slices.push(IoSlice::new(rest));
                    }
                }
            }
            if slices.is_empty() {
                return Ok(any);
            }
            let taken = self.tls.writer().write_vectored(&slices)?;
            if taken == 0 {
                return Ok(any);
            }
            any = true;
            self.sent += taken;
            while let Some(frame) = self.queue.pop_front_if(|frame| frame.len() <= self.sent) {
                self.sent -= frame.len();
            }
        }
    }

    /// False while the socket takes no more.
    pub(super) fn is_writable(&self) -> bool {
        self.writable
    }

    /// Says goodbye and lets go of the socket.
    pub(super) fn close(mut self, registry: &Registry) {
        self.tls.send_close_notify();
        let _ = self.tls.write_tls(&mut self.stream);
        let _ = registry.deregister(&mut self.stream);
    }
}

/// Who is at the other end, once the handshake has told.
pub(super) fn peer(tls: &rustls::Connection) -> Result<Option<PeerIdentity>, LinkError> {
    if tls.is_handshaking() {
        return Ok(None);
    }
    match tls.peer_certificates().and_then(<[_]>::first) {
        Some(certificate) => Ok(Some(PeerIdentity::from_certificate(certificate)?)),
        None => Err(LinkError::Stranger("a peer without a certificate".into())),
    }
}

/// Copies plaintext straight to where a frame wants it: `space` gives the place, `advance` takes what was filled.
pub(super) fn take_plaintext<M>(
    tls: &mut rustls::Connection,
    machine: &mut M,
    space: impl Fn(&mut M) -> &mut [u8],
    mut advance: impl FnMut(&mut M, usize) -> Result<(), holdfast_replica::forward::Violation>,
) -> Result<(), LinkError> {
    loop {
        match tls.reader().read(space(machine)) {
            Ok(0) => return Err(LinkError::Closed),
            Ok(n) => advance(machine, n)?,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}
