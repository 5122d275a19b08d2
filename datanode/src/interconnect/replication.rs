//! Connections between owners and replicas: frames of [`holdfast_replica::replication`] over the same TLS as forwarded
//! commands, told apart by the protocol that the handshake agrees on (ALPN [`PROTOCOL`]).
//!
//! Invariants: a connection speaks for the node that its certificate names; the connecting side says [`Kind::Clock`] at
//! intervals, the accepting side answers [`Kind::Alive`], and whoever hears nothing for too long ends it; a frame that
//! makes no sense ends it; payloads go from where they are to TLS without a copy in between.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    io::{self, Read as _},
    sync::Arc,
};

use holdfast_pki::{Role, server_name};
use holdfast_replica::{
    frame::{FrameReader, Header, Kind, Outgoing},
    ids::NodeNumber,
    limits::{CLOCK_INTERVAL_MS, SILENCE_MS_MAX},
    replication::{FromReplica, ToReplica},
};
use holdfast_scsi::time::Instant;
use mio::{Registry, Token};

use super::{
    Tls, crc32c,
    node::{PAUSE_MS_MAX, PAUSE_MS_MIN},
    tls::{Link, LinkError, peer},
};
use crate::{
    data_plane::{mailbox::Mailboxes, router::Bytes},
    view::Shared,
    volume::link::{Link as Line, Parcel},
};

/// What the handshake agrees on.
pub(super) const PROTOCOL: &[u8] = b"holdfast-replica/1";

/// One connection whose handshake has ended.
pub(super) struct Channel {
    line: Arc<Line>,
    reader: FrameReader,
    /// This side has made the connection.
    connects: bool,
    heard: Instant,
    said: Instant,
    control: VecDeque<Outgoing<Bytes>>,
}

impl Channel {
    pub(super) fn new(
        node: NodeNumber,
        worker: usize,
        mailboxes: Mailboxes,
        connects: bool,
        now: Instant,
    ) -> Channel {
        Channel {
            line: Line::new(node, worker, mailboxes),
            reader: FrameReader::new(crc32c),
            connects,
            heard: now,
            said: now,
            control: VecDeque::new(),
        }
    }

    /// Takes plaintext, and hands on what it says.
    pub(super) fn take(
        &mut self,
        tls: &mut rustls::Connection,
        shared: &Shared,
        now: Instant,
    ) -> Result<(), LinkError> {
        loop {
            let n = match tls.reader().read(self.reader.space()) {
                Ok(0) => return Err(LinkError::Closed),
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            self.heard = now;
            let Some(frame) = self.reader.advance(n)? else { continue };
            match (frame.header.kind, self.connects) {
                (Kind::Clock, false) => self.say(Kind::Alive),
                (Kind::Alive, true) => {}
                (_, true) => {
                    let answer =
                        FromReplica::decode(&frame).ok_or(LinkError::Malformed(frame.header.kind))?;
                    shared.links.answer(&self.line, answer);
                }
                (kind, false) => {
                    let request = ToReplica::decode(frame).ok_or(LinkError::Malformed(kind))?;
                    shared.links.request(&self.line, request.map(Bytes::new));
                }
            }
        }
    }

    /// The next frame to send.
    pub(super) fn next(&mut self) -> Option<Outgoing<Bytes>> {
        if let Some(frame) = self.control.pop_front() {
            return Some(frame);
        }
        loop {
            let frame = match self.line.take()? {
                Parcel::Request(request) => request.encode(crc32c),
                Parcel::Answer(answer) => answer.encode(crc32c),
            };
            match frame {
                Some(frame) => return Some(frame),
                None => tracing::error!(line = ?self.line, "a frame is longer than frames may be: dropped"),
            }
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) -> Result<(), LinkError> {
        if now.millis_since(self.heard) >= SILENCE_MS_MAX {
            return Err(LinkError::Silent);
        }
        if self.connects && now.millis_since(self.said) >= CLOCK_INTERVAL_MS {
            self.said = now;
            self.say(Kind::Clock);
        }
        Ok(())
    }

    pub(super) fn poll_timeout(&self) -> Instant {
        let silent = self.heard.plus_millis(SILENCE_MS_MAX);
        if self.connects { silent.min(self.said.plus_millis(CLOCK_INTERVAL_MS)) } else { silent }
    }

    /// True while something waits to be sent.
    pub(super) fn is_waiting(&self) -> bool {
        !self.control.is_empty() || self.line.is_waiting()
    }

    pub(super) fn begin_sending(&self) {
        self.line.begin_sending();
    }

    pub(super) fn close(self, shared: &Shared) {
        shared.links.link_down(&self.line);
    }

    fn say(&mut self, kind: Kind) {
        self.control.extend(Outgoing::new(&Header::new(kind, 0), &[], None, crc32c));
    }
}

/// The way to the replicas of one node.
struct Peer {
    link: Option<(usize, Link, Option<Channel>)>,
    since: Instant,
    not_before: Instant,
    failures: u32,
}

/// The connections that this worker has made.
pub(super) struct Outward {
    worker: usize,
    mailboxes: Mailboxes,
    peers: BTreeMap<NodeNumber, Peer>,
    node_of_token: HashMap<usize, NodeNumber>,
}

impl Outward {
    pub(super) fn new(worker: usize, mailboxes: Mailboxes) -> Outward {
        Outward { worker, mailboxes, peers: BTreeMap::new(), node_of_token: HashMap::new() }
    }

    pub(super) fn owns(&self, token: usize) -> bool {
        self.node_of_token.contains_key(&token)
    }

    pub(super) fn ready(&mut self, token: usize, event: &mio::event::Event) {
        let node = self.node_of_token.get(&token);
        if let Some((_, link, _)) = node.and_then(|n| self.peers.get_mut(n)).and_then(|p| p.link.as_mut()) {
            link.ready(event);
        }
    }

    /// Connects to a node, unless it is connected or has just failed.
    pub(super) fn connect(
        &mut self,
        now: Instant,
        node: NodeNumber,
        token: usize,
        (shared, tls, registry): (&Shared, &Tls, &Registry),
    ) {
        let peer =
            self.peers.entry(node).or_insert(Peer { link: None, since: now, not_before: now, failures: 0 });
        if peer.link.is_some() || now < peer.not_before {
            return;
        }
        peer.since = now;
        match connect(shared, tls, registry, node, token) {
            Ok(link) => {
                peer.link = Some((token, link, None));
                self.node_of_token.insert(token, node);
            }
            Err(error) => self.lost(now, node, &error, (shared, registry)),
        }
    }

    /// Reads from a connection. True when there may be more.
    pub(super) fn read(&mut self, now: Instant, token: usize, ends: (&Shared, &Registry)) -> bool {
        let Some(node) = self.node_of_token.get(&token).copied() else { return false };
        let Some(Peer { link: Some((_, link, channel)), .. }) = self.peers.get_mut(&node) else {
            return false;
        };
        let (worker, mailboxes, shared) = (self.worker, &self.mailboxes, ends.0);
        let more = link.read(|tls| {
            if channel.is_none() {
                if peer(tls)?.is_none() {
                    return Ok(());
                }
                if tls.alpn_protocol() != Some(PROTOCOL) {
                    return Err(LinkError::Stranger("a node that does not speak of replicas".into()));
                }
                let opened = channel.insert(Channel::new(node, worker, mailboxes.clone(), true, now));
                tracing::info!(peer = %node, "connected to the node's replicas");
                shared.links.link_up(&opened.line);
            }
            match channel {
                Some(channel) => channel.take(tls, shared, now),
                None => Ok(()),
            }
        });
        match more {
            Ok(more) => more,
            Err(error) => {
                self.lost(now, node, &error, ends);
                false
            }
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Instant, ends: (&Shared, &Registry)) {
        for node in self.peers.keys().copied().collect::<Vec<_>>() {
            let Some(peer) = self.peers.get_mut(&node) else { continue };
            let result = match &mut peer.link {
                Some((_, _, Some(channel))) => channel.handle_timeout(now),
                Some((_, _, None)) if now.millis_since(peer.since) >= SILENCE_MS_MAX => {
                    Err(LinkError::Silent)
                }
                _ => Ok(()),
            };
            if let Err(error) = result {
                self.lost(now, node, &error, ends);
            }
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let of = |peer: &Peer| match &peer.link {
            Some((_, link, Some(channel))) if channel.is_waiting() && link.is_writable() => Some(Instant(0)),
            Some((_, _, Some(channel))) => Some(channel.poll_timeout()),
            Some((_, _, None)) => Some(peer.since.plus_millis(SILENCE_MS_MAX)),
            None => None,
        };
        self.peers.values().filter_map(of).min()
    }

    pub(super) fn flush(&mut self, now: Instant, ends: (&Shared, &Registry)) {
        let mut lost = Vec::new();
        for (node, peer) in &mut self.peers {
            let Some((_, link, channel)) = &mut peer.link else { continue };
            if let Some(channel) = channel {
                channel.begin_sending();
            }
            if let Err(error) = link.write(|| channel.as_mut().and_then(Channel::next)) {
                lost.push((*node, error));
            }
        }
        for (node, error) in lost {
            self.lost(now, node, &error, ends);
        }
    }

    fn lost(
        &mut self,
        now: Instant,
        node: NodeNumber,
        error: &LinkError,
        (shared, registry): (&Shared, &Registry),
    ) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let pause = (PAUSE_MS_MIN << peer.failures.min(8)).min(PAUSE_MS_MAX);
        peer.failures = peer.failures.saturating_add(1);
        peer.not_before = now.plus_millis(pause);
        let Some((token, link, channel)) = peer.link.take() else { return };
        self.node_of_token.remove(&token);
        link.close(registry);
        if let Some(channel) = channel {
            tracing::info!(peer = %node, %error, "connection to the node's replicas lost");
            peer.failures = 0;
            channel.close(shared);
        }
    }
}

fn connect(
    shared: &Shared,
    tls: &Tls,
    registry: &Registry,
    node: NodeNumber,
    token: usize,
) -> Result<Link, LinkError> {
    let view = shared.view.load();
    let known = view.as_ref().and_then(|view| view.nodes.get(&node));
    let known = known.ok_or_else(|| LinkError::Stranger(format!("{node:?}")))?;
    let name = server_name(Role::Node, Some(&known.name))?;
    Link::connect(known.interconnect, name, tls.replica_client(), registry, Token(token))
}
