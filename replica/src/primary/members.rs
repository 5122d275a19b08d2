//! Replicas come, answer, fall silent and change their place.
//!
//! Invariants: a replica whose boot is not the one it was last in sync under has lost what it had cached: it leaves the
//! set and comes back as a learner (6.11); only one change of the configuration is under way at a time; what a peer that
//! does not count has missed is never waited for.

use alloc::vec::Vec;

use super::{Change, Instant, Output, Peer, PeerState, Phase, Primary, Stage, Stop};
use crate::{
    activity_log::Settled,
    config::VolumeConfig,
    faults::Fault,
    ids::NodeNumber,
    limits::{OWN_DISK_STALL_MS_MAX, PROMISE_AGAIN_MS, REPLICA_MADE_MS_MAX, REPLICA_SILENCE_MS_MAX},
    replication::{Answer, Failure, FromReplica, Request},
    span::Shape,
};

impl<B: AsRef<[u8]> + Clone + From<Vec<u8>>> Primary<B> {
    /// The replicas that the shell should be connected to.
    pub fn peers(&self) -> impl Iterator<Item = NodeNumber> + '_ {
        self.peers.keys().copied()
    }

    /// True while a connection to `node` is known.
    pub fn is_connected(&self, node: NodeNumber) -> bool {
        self.peers.get(&node).is_some_and(|p| p.session.is_some())
    }

    /// How a replica is; `None`: it is none of the volume's.
    pub fn peer_state(&self, node: NodeNumber) -> Option<PeerState> {
        let peer = self.peers.get(&node)?;
        Some(match &peer.stage {
            _ if !peer.promised => PeerState::Connecting,
            Stage::InSync => PeerState::InSync,
            Stage::Waiting => PeerState::Waiting,
            Stage::Copying(_) => match self.progress(node) {
                Some(progress) => PeerState::Copying(progress),
                None => PeerState::Joining,
            },
            Stage::Beginning(_) | Stage::Merging(_) | Stage::Counted => PeerState::Joining,
        })
    }

    /// The volume is larger now, on this node's disk at least. A replica that is not yet so large leaves what lies behind its end
    /// waiting.
    pub fn grow(&mut self, now: Instant, shape: Shape) {
        let other_chunks = shape.chunk_shift() != self.start.shape.chunk_shift();
        self.start.shape = shape;
        // Their locks of the whole volume are of the old one, and so are their chunks.
        let anew = |p: &Peer| match p.stage {
            Stage::Beginning(_) | Stage::Merging(_) => true,
            Stage::Copying(_) => other_chunks,
            Stage::InSync | Stage::Waiting | Stage::Counted => false,
        };
        let nodes: Vec<NodeNumber> = self.peers.iter().filter(|(_, p)| anew(p)).map(|(n, _)| *n).collect();
        for node in nodes {
            self.reset_learner(now, node);
        }
    }

    /// A connection to a replica is up; earlier ones to it are gone. Returns the number that its frames carry.
    pub fn connected(&mut self, now: Instant, node: NodeNumber) -> Option<u64> {
        self.disconnected(now, node);
        let peer = self.peers.get_mut(&node).filter(|_| !self.stopped)?;
        self.last_session += 1;
        peer.session = Some(self.last_session);
        peer.failed &= peer.in_sync();
        peer.lost = false;
        self.ask_promise(now, node);
        Some(self.last_session)
    }

    /// The connection to a replica is gone.
    pub fn disconnected(&mut self, now: Instant, node: NodeNumber) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if peer.session.take().is_some() && peer.promised {
            peer.asked = now;
        }
        peer.promised = false;
        peer.streams = false;
        if !peer.in_sync() && self.pending != Some(Change::Admit(node)) {
            self.reset_learner(now, node);
        }
    }

    /// The node of a replica is known to be down: one that is not connected is not waited for any longer.
    pub fn node_down(&mut self, now: Instant, node: NodeNumber) {
        if let Some(peer) = self.peers.get_mut(&node).filter(|p| p.session.is_none() && !p.lost) {
            peer.lost = true;
            self.tick(now);
        }
    }

    /// A learner begins anew: nothing waits for it.
    pub(super) fn reset_learner(&mut self, now: Instant, node: NodeNumber) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.streams = false;
        let stage = core::mem::replace(&mut peer.stage, Stage::Waiting);
        self.forget_copies(now, node);
        if let Stage::Beginning(ticket) | Stage::Merging(ticket) = stage {
            self.unlock(now, ticket);
        }
        self.wait_no_more(now, node);
    }

    fn wait_no_more(&mut self, now: Instant, node: NodeNumber) {
        self.in_flight.retain(|_, r| !r.purpose.is_barrier(node));
        for request in self.in_flight.values_mut() {
            request.waiting.remove(&node);
        }
        self.complete_all_done(now);
    }

    /// An answer of a replica.
    pub fn handle(&mut self, now: Instant, node: NodeNumber, frame: FromReplica) {
        let epoch = self.config.epoch();
        let Some(peer) = self.peers.get_mut(&node).filter(|p| p.session == Some(frame.session)) else {
            return;
        };
        if self.stopped || frame.volume != self.start.volume {
            return;
        }
        match frame.answer {
            Answer::Promised { boot, untrusted, entries } if frame.epoch == epoch => {
                peer.untrusted = untrusted;
                if boot != peer.boot || (untrusted && peer.in_sync()) {
                    // What it had cached is gone. (The own one is of this boot, or the record is of another owner.)
                    peer.failed = true;
                    if node == self.start.me.node {
                        self.end(Stop::ReplicaFailed);
                    }
                    self.tick(now);
                    return;
                }
                peer.promised = true;
                if self.phase == Phase::Collecting || !peer.counts() {
                    peer.entries = entries;
                }
                if peer.counts() && !peer.streams {
                    self.stream(node);
                }
                self.all_may_have_promised(now);
                self.begin_learner(now, node);
            }
            Answer::Promised { .. } => {}
            Answer::Refused if frame.epoch > epoch => self.end(Stop::Deposed),
            Answer::Refused => {}
            Answer::Done => self.acknowledged(now, node, frame.number),
            Answer::Blocks(bytes) => self.blocks_came(now, node, frame.number, bytes),
            Answer::Damaged(span) => self.damaged_elsewhere(node, span),
            Answer::Failed(Failure::Unreadable) => self.unreadable(now, node, frame.number),
            Answer::Failed(Failure::NoSpace)
                if node == self.start.me.node && self.config.in_sync().len() == 1 =>
            {
                self.own_disk_full(now, frame.number);
            }
            Answer::Failed(_) => {
                peer.failed = true;
                if node == self.start.me.node {
                    self.end(Stop::ReplicaFailed);
                } else if !peer.counts() {
                    self.disconnected(now, node);
                }
                self.tick(now);
            }
        }
    }

    /// Sends everything again that a replica has not answered: it may have got some of it on an earlier connection. None of that
    /// overlaps, so doing it twice does no harm.
    fn stream(&mut self, node: NodeNumber) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.streams = true;
        }
        // What it recorded before it was opened anew goes with the next flush.
        self.flush_wanted = true;
        let owed = self.in_flight.iter().filter(|(_, r)| r.waiting.contains(&node));
        let owed: Vec<(u64, Request<B>)> = owed.map(|(n, r)| (*n, r.request.clone())).collect();
        for (number, request) in owed {
            self.send(node, number, request);
        }
    }

    pub(super) fn all_promised(&self) -> bool {
        self.peers.values().all(|p| p.promised || !p.in_sync())
    }

    fn all_may_have_promised(&mut self, now: Instant) {
        if self.all_promised() {
            if self.phase == Phase::Collecting {
                self.begin_recovery(now);
            }
            self.complete_all_done(now);
        }
    }

    /// Acts on time that passed: silent replicas, copies that were held back, notices. Call it every few tens of milliseconds.
    pub fn tick(&mut self, now: Instant) {
        if self.stopped || !self.lease_open(now) {
            return;
        }
        self.refill(now);
        let me = self.start.me.node;
        if self.own_disk_stalls(now) {
            self.end(Stop::ReplicaFailed);
            return;
        }
        let silent =
            self.peers.iter().find(|(node, p)| **node != me && p.in_sync() && self.is_silent(now, **node));
        if let Some(node) = silent.map(|(node, _)| *node)
            && self.pending.is_none()
        {
            if self.start.faults.has(Fault::EvictWithoutCommit) {
                self.peers.remove(&node);
                self.wait_no_more(now, node);
                self.all_may_have_promised(now);
                return;
            }
            self.propose(Change::Evict(node));
        }
        // One that could not make its promise durable says nothing. It may have been opened anew since.
        let late =
            |p: &Peer| p.session.is_some() && !p.promised && now.millis_since(p.asked) >= PROMISE_AGAIN_MS;
        let late: Vec<NodeNumber> =
            self.peers.iter().filter(|(_, p)| !p.in_sync() && late(p)).map(|(node, _)| *node).collect();
        for node in late {
            self.disconnected(now, node);
        }
        let learners: Vec<NodeNumber> = self.peers.keys().copied().collect();
        for node in learners {
            self.begin_learner(now, node);
        }
        self.pump_copies(now);
        self.pump_heals(now);
        self.flush_for_room(now);
        self.tell_settled();
    }

    fn is_silent(&self, now: Instant, node: NodeNumber) -> bool {
        let Some(peer) = self.peers.get(&node) else { return false };
        let late = |since: Instant| now.millis_since(since) >= REPLICA_SILENCE_MS_MAX;
        let making = self.start.new_volume && self.phase == Phase::Collecting;
        let patience = if making { REPLICA_MADE_MS_MAX } else { REPLICA_SILENCE_MS_MAX };
        let owes = |r: &&super::InFlight<B>| r.waiting.contains(&node);
        let oldest = self.in_flight.values().filter(owes).map(|r| r.issued).min();
        let promise_late = !peer.promised && now.millis_since(peer.asked) >= patience;
        peer.failed || peer.lost || promise_late || oldest.is_some_and(late)
    }

    /// The own disk has kept something for too long, and another replica could serve: hosts are better off there.
    fn own_disk_stalls(&self, now: Instant) -> bool {
        let me = self.start.me.node;
        let oldest_write =
            self.in_flight.values().filter(|r| r.waiting.contains(&me)).map(|r| r.issued).min();
        let oldest = oldest_write.into_iter().chain(self.reading.values().min().copied()).min();
        let well = |(node, p): (&NodeNumber, &Peer)| {
            *node != me && p.in_sync() && p.promised && !self.is_silent(now, *node)
        };
        oldest.is_some_and(|since| now.millis_since(since) >= OWN_DISK_STALL_MS_MAX)
            && self.peers.iter().any(well)
    }

    pub(super) fn propose(&mut self, change: Change) {
        self.pending = Some(change);
        self.outputs.push_back(Output::Propose(change, self.config.epoch()));
    }

    fn tell_settled(&mut self) {
        let settled = self.settled;
        let idle = |p: &Peer| {
            let told = Settled { recovered: settled.recovered && p.in_sync(), ..settled };
            p.streams && p.told != told
        };
        let to: Vec<NodeNumber> = self.peers.iter().filter(|(_, p)| idle(p)).map(|(n, _)| *n).collect();
        for node in to {
            self.send(node, 0, Request::Settled);
        }
    }

    /// A committed configuration, whoever asked for it.
    pub fn configured(&mut self, now: Instant, config: &VolumeConfig) {
        if self.stopped || config.epoch() <= self.config.epoch() {
            return;
        }
        if config.owner() != Some(self.start.me) {
            self.end(Stop::Deposed);
            return;
        }
        self.config = config.clone();
        self.pending = None;
        // First of all: the promise is the first frame of an epoch, and nothing completes before all have given it.
        let connected: Vec<NodeNumber> =
            self.peers.iter().filter(|(_, p)| p.session.is_some()).map(|(n, _)| *n).collect();
        for node in self.peers.values_mut() {
            node.promised = false;
        }
        for node in connected {
            self.ask_promise(now, node);
        }
        self.adopt_members(now);
        self.all_may_have_promised(now);
    }

    /// The change that was proposed will not happen: the controller has refused it for good.
    pub fn refused(&mut self, now: Instant) {
        if let Some(Change::Admit(node)) = self.pending.take() {
            self.reset_learner(now, node);
        }
    }

    /// Peers as the configuration has them.
    pub(super) fn adopt_members(&mut self, now: Instant) {
        let config = self.config.clone();
        let gone: Vec<NodeNumber> =
            self.peers.keys().filter(|n| config.member(**n).is_none()).copied().collect();
        for node in gone {
            self.reset_learner(now, node);
            self.peers.remove(&node);
        }
        for member in config.in_sync().iter().chain(config.learners()) {
            let in_sync = config.in_sync().iter().any(|m| m.node == member.node);
            let peer = self.peers.entry(member.node).or_insert_with(|| Peer {
                stage: Stage::Waiting,
                boot: member.boot,
                session: None,
                promised: false,
                asked: now,
                streams: false,
                failed: false,
                lost: false,
                untrusted: false,
                entries: Vec::new(),
                told: Settled::default(),
            });
            if peer.boot != member.boot {
                peer.boot = member.boot;
                peer.failed = false;
            }
            match (in_sync, peer.in_sync()) {
                (true, false) => peer.stage = Stage::InSync,
                (false, true) => {
                    peer.stage = Stage::Waiting;
                    peer.failed = false;
                    self.reset_learner(now, member.node);
                }
                // Another change came before its admission.
                (false, false) if matches!(peer.stage, Stage::Counted) => {
                    if peer.streams {
                        self.begin_merging(now, member.node);
                    } else {
                        self.reset_learner(now, member.node);
                    }
                }
                _ => {}
            }
        }
    }
}
