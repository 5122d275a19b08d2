//! The controllers: one log, a state machine that applies it, a lease table and a memory for each member, elections.
//!
//! Invariants: an entry that was answered for stays in the log; of the others an election keeps a random first part; a member that
//! was deposed and has not noticed acts on the state as it knew it, and no quorum confirms it.

mod leader;

use std::collections::BTreeMap;

use holdfast_controller::{
    lease::{LEASE_MS, Millis, RENEW_INTERVAL_MS, memory::Memory, reports::Reports, table::LeaseTable},
    session::{join_of, visible},
    state::{Body, Command, Outcome, Refusal, StateMachine, Volume},
};
use holdfast_proto::{
    node::{FromNode, Renew, SnapshotPart, ToNode, Welcome, from_node, to_node},
    state as records,
};

use holdfast_replica::ids::VolumeId;

use super::{Down, Event, MEMBERS, Place, SessionId, Simulation, Up, founding::CLUSTER};

/// Entries that a member keeps for nodes that come back.
const KEPT: usize = 40;

/// What a node asks of the leader.
#[derive(Debug, Clone)]
pub(super) enum Request {
    Propose(records::ProposeReservation),
    Establish(records::EstablishUnitAttention),
    AwaitBarrier(u64),
}

/// What it is told.
#[derive(Debug, Clone)]
pub(super) enum Answer {
    Proposal(records::ProposalOutcome),
    Established(u64),
    Barrier,
    /// Nothing happened.
    Refused(Refused),
    NotLeading,
    /// The leader lost its place meanwhile.
    Unknown,
}

/// Why nothing happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// No quorum; another attempt may do.
    Unavailable,
    /// Its version has passed.
    Stale,
    /// Its epoch has passed, or it is wrong.
    Never,
    /// So it is with every attempt of this id, now and later. Whether its version has passed.
    Settled(bool),
}

/// What waits for a quorum's word that the member leads.
#[derive(Debug, Clone)]
pub(super) enum Then {
    Grant { node: usize, session: SessionId, renew: Renew },
    Append { body: Box<Body>, waiter: Waiter },
    Barrier { index: u64, waiter: Waiter },
}

/// Who waits for an entry, a barrier.
#[derive(Debug, Clone)]
pub(super) enum Waiter {
    Nobody,
    Call { session: SessionId, call: u64 },
    Change { session: SessionId, id: u64 },
    Join { session: SessionId, hello: Box<holdfast_proto::node::Hello> },
}

struct Pending {
    ticket: u64,
    term: u64,
    member: usize,
    body: Body,
    waiter: Waiter,
}

struct Waiting {
    index: u64,
    waiter: Waiter,
    answer: Answer,
}

struct Member {
    /// The term in which it believes to lead.
    leads: Option<u64>,
    table: LeaseTable,
    memory: Memory,
    reports: Reports,
    /// The state as it knew it when it was deposed without noticing.
    stale: Option<(StateMachine, u64)>,
    sessions: BTreeMap<usize, SessionId>,
    waiting: Vec<Waiting>,
}

pub(super) struct Controllers {
    state: StateMachine,
    index: u64,
    commits: Vec<records::Commit>,
    leader: Option<(usize, u64)>,
    term: u64,
    members: Vec<Member>,
    pending: Vec<Pending>,
    next_ticket: u64,
    /// Session, node, member.
    sessions: BTreeMap<SessionId, (usize, usize)>,
    proposed: BTreeMap<String, u64>,
    /// When the last entry was committed.
    pub(super) committed_at: u64,
}

impl Controllers {
    pub(super) fn new() -> Self {
        let member = || Member {
            leads: None,
            table: LeaseTable::new(),
            memory: Memory::default(),
            reports: Reports::default(),
            stale: None,
            sessions: BTreeMap::new(),
            waiting: Vec::new(),
        };
        Self {
            state: StateMachine::default(),
            index: 0,
            commits: Vec::new(),
            leader: None,
            term: 0,
            members: (0..MEMBERS).map(|_| member()).collect(),
            pending: Vec::new(),
            next_ticket: 1,
            sessions: BTreeMap::new(),
            proposed: BTreeMap::new(),
            committed_at: 0,
        }
    }

    /// Entries that are there from the beginning.
    pub(super) fn found(&mut self, bodies: Vec<Body>) {
        for body in bodies {
            self.index += 1;
            let applied = self.state.apply(self.index, &Command::new(0, body));
            assert!(applied.response.is_ok(), "{:?}", applied.response);
            self.commits.push(applied.commit);
        }
        self.term = 1;
    }

    pub(super) fn leader(&self) -> Option<usize> {
        self.leader.map(|(member, _)| member)
    }

    pub(super) fn volumes(&self) -> impl Iterator<Item = &Volume> {
        self.state.volumes()
    }

    pub(super) fn owner_of(&self, volume: usize) -> Option<usize> {
        let volume = self.state.volume(VolumeId([volume as u8 + 1; 16]))?;
        volume.owner_node().map(|number| usize::from(number.get()) - 1)
    }

    /// Number of the owner, and the epoch.
    fn owner_now(&self, volume: &[u8]) -> Option<(u32, records::Epoch)> {
        let volume = self.state.volume(VolumeId::from_slice(volume)?)?;
        let epoch = super::unit::epoch_record(volume.config.epoch());
        Some((u32::from(volume.owner_node()?.get()), epoch))
    }

    pub(super) fn epoch_of(&self, volume: usize) -> Option<records::Epoch> {
        let id = VolumeId([volume as u8 + 1; 16]);
        self.state.volume(id).map(|volume| super::unit::epoch_record(volume.config.epoch()))
    }

    /// Nodes that hold a replica of a volume, the owner's last, and one that holds none.
    pub(super) fn places_of(&self, volume: usize) -> (Vec<u32>, Option<u32>) {
        let id = VolumeId([volume as u8 + 1; 16]);
        let Some(volume) = self.state.volume(id) else { return (Vec::new(), None) };
        let mut holders: Vec<u32> = volume.kept().map(|member| u32::from(member.node.get())).collect();
        let owner = volume.owner_node().map(|node| u32::from(node.get()));
        holders.sort_by_key(|node| Some(*node) == owner);
        let taken = |node: &u32| {
            holders.contains(node) || volume.removing.iter().any(|m| u32::from(m.node.get()) == *node)
        };
        let free = (1..=super::NODES as u32).find(|node| !taken(node));
        (holders, free)
    }

    pub(super) fn size_of(&self, volume: usize) -> u64 {
        let name = format!("volume-{volume}");
        self.state.volumes().find(|v| v.name == name).map_or(0, |v| v.size_bytes)
    }
}

impl Simulation {
    pub(super) fn node_of(&self, session: SessionId) -> usize {
        self.controllers.sessions.get(&session).map_or(0, |(node, _)| *node)
    }

    pub(super) fn member_of(&self, session: SessionId) -> usize {
        self.controllers.sessions.get(&session).map_or(0, |(_, member)| *member)
    }

    pub(super) fn new_session(&mut self, node: usize, member: usize) -> SessionId {
        let id = self.next_session;
        self.next_session += 1;
        self.controllers.sessions.insert(id, (node, member));
        id
    }

    fn is_leader(&self, member: usize, term: u64) -> bool {
        self.controllers.leader == Some((member, term))
    }

    fn down(&mut self, member: usize, node: usize, session: SessionId, message: Down) {
        let event = Event::ToNode { node, session, message: Box::new(message) };
        self.send(Place::Member(member), Place::Node(node), event);
    }

    fn tell(&mut self, member: usize, waiter: &Waiter, answer: Answer) {
        if let Waiter::Call { session, call } = waiter {
            let node = self.node_of(*session);
            self.down(member, node, *session, Down::Answer { call: *call, answer });
        }
    }

    fn tell_changed(&mut self, member: usize, session: SessionId, id: u64, refused: bool) {
        let node = self.node_of(session);
        self.down(member, node, session, Down::Changed { id, refused });
    }

    pub(super) fn at_member(&mut self, member: usize, session: SessionId, message: Up) {
        let node = self.node_of(session);
        let Some(term) = self.controllers.members[member].leads else {
            return match message {
                Up::Session(_) => self.down(member, node, session, Down::Elsewhere),
                Up::Call { call, .. } => {
                    self.tell(member, &Waiter::Call { session, call }, Answer::NotLeading)
                }
                Up::Change { id, .. } => self.tell_changed(member, session, id, false),
            };
        };
        let confirm = |simulation: &mut Self, then| {
            let wait = 1 + simulation.random.below(6);
            simulation.later(wait, Event::Confirmed { member, term, then });
        };
        match message {
            Up::Session(FromNode { message: Some(message) }) => match message {
                from_node::Message::Hello(hello) => {
                    let body = Body::NodeJoin(join_of(&hello));
                    let waiter = Waiter::Join { session, hello: Box::new(hello) };
                    confirm(self, Then::Append { body: Box::new(body), waiter });
                }
                from_node::Message::Renew(renew) => {
                    self.heard(member, node, session, renew.applied_index);
                    confirm(self, Then::Grant { node, session, renew });
                }
                from_node::Message::ReplicaRemoved(removed) => {
                    let number = node as u32 + 1;
                    let volume_id = removed.volume_id;
                    let body = Box::new(Body::RemoveReplica(records::RemoveReplica { volume_id, number }));
                    confirm(self, Then::Append { body, waiter: Waiter::Nobody });
                }
                from_node::Message::Applied(applied) => {
                    self.heard(member, node, session, applied.applied_index);
                }
                _ => {}
            },
            Up::Session(_) => {}
            Up::Change { id, mut change } => {
                let table = &self.controllers.members[member].table;
                let leased = table.is_leased(change.proposer, change.owner_incarnation, Millis(self.now));
                let Some(lease_term) = table.term().filter(|_| leased) else {
                    return self.tell_changed(member, session, id, false);
                };
                change.lease_term = lease_term;
                let body = Box::new(Body::ChangeConfiguration(*change));
                confirm(self, Then::Append { body, waiter: Waiter::Change { session, id } });
            }
            Up::Call { call, request } => {
                let waiter = Waiter::Call { session, call };
                confirm(
                    self,
                    match request {
                        Request::Propose(proposal) => {
                            Then::Append { body: Box::new(Body::ProposeReservation(proposal)), waiter }
                        }
                        Request::Establish(wanted) => {
                            Then::Append { body: Box::new(Body::EstablishUnitAttention(wanted)), waiter }
                        }
                        Request::AwaitBarrier(index) => Then::Barrier { index, waiter },
                    },
                );
            }
        }
    }

    /// What the node of a session has installed.
    fn heard(&mut self, member: usize, node: usize, session: SessionId, applied: u64) {
        let number = node as u32 + 1;
        let Some(incarnation) = self.nodes[node].session_incarnation(session) else { return };
        self.controllers.members[member].table.applied(number, incarnation, applied);
        self.look_at_barriers(member);
    }

    pub(super) fn confirmed(&mut self, member: usize, term: u64, then: Then) {
        if !self.is_leader(member, term) {
            self.mark("a deposed leader was not confirmed");
            return match then {
                Then::Grant { node, session, .. } => self.down(member, node, session, Down::Ended),
                Then::Append { waiter, .. } | Then::Barrier { waiter, .. } => {
                    self.tell(member, &waiter, Answer::Refused(Refused::Unavailable));
                }
            };
        }
        match then {
            Then::Grant { node, session, renew } => {
                let wait =
                    if self.random.below(40) == 0 { self.random.below(1_500) } else { self.random.below(3) };
                self.later(wait, Event::Grant { member, node, session, renew });
            }
            Then::Append { body, waiter } => self.append(member, term, *body, waiter),
            Then::Barrier { index, waiter } => {
                if index > self.controllers.index {
                    return self.tell(member, &waiter, Answer::Refused(Refused::Never));
                }
                self.controllers.members[member].waiting.push(Waiting {
                    index,
                    waiter,
                    answer: Answer::Barrier,
                });
                self.look_at_barriers(member);
            }
        }
    }

    fn append(&mut self, member: usize, term: u64, body: Body, waiter: Waiter) {
        let ticket = self.controllers.next_ticket;
        self.controllers.next_ticket += 1;
        self.controllers.pending.push(Pending { ticket, term, member, body, waiter });
        let wait = 1 + self.random.below(12);
        self.later(wait, Event::Committed(ticket));
    }

    /// Entries are committed in order: this one, and those before it.
    pub(super) fn committed(&mut self, ticket: u64) {
        let Some((leader, term)) = self.controllers.leader else { return };
        while let Some(first) = self.controllers.pending.first() {
            if first.ticket > ticket || first.term != term || first.member != leader {
                return;
            }
            let entry = self.controllers.pending.remove(0);
            let settles = match &entry.body {
                Body::ProposeReservation(p) => Some((p.volume_id.clone(), p.expected_version)),
                _ => None,
            };
            let (response, index) = self.apply(entry.body);
            let settled = settles.is_some_and(|(volume, version)| {
                self.controllers.state.is_settled_as_refused(&volume, version)
            });
            self.respond(leader, entry.waiter, response, (index, settled));
        }
    }

    fn apply(&mut self, body: Body) -> (holdfast_controller::state::Response, u64) {
        self.controllers.index += 1;
        self.controllers.committed_at = self.now;
        let index = self.controllers.index;
        let told = format!("{body:?}");
        let proposal = match &body {
            Body::ProposeReservation(proposal) => Some(proposal.clone()),
            _ => None,
        };
        let owner = proposal.as_ref().and_then(|proposal| self.controllers.owner_now(&proposal.volume_id));
        let applied = self.controllers.state.apply(index, &Command::new(self.now, body));
        self.note(|| {
            let told: String = told.chars().take(160).collect();
            format!("commit {index}: {told} -> {}", if applied.response.is_ok() { "done" } else { "refused" })
        });
        if let (Some(proposal), Ok(Outcome::Proposal(outcome))) = (&proposal, &applied.response)
            && outcome.version == index
        {
            if owner != Some((proposal.proposer, proposal.epoch.unwrap_or_default())) {
                self.violated(format!(
                    "commit {index} is a change that node {} asked for; the volume was {owner:?}'s",
                    proposal.proposer
                ));
            }
            self.change_committed(proposal, index);
        }
        let commit = applied.commit;
        for event in &commit.unit_attentions {
            self.attention_due(event);
        }
        if let (Some(message), Some((leader, _))) = (visible(&commit), self.controllers.leader) {
            for (node, session) in self.controllers.members[leader].sessions.clone() {
                let message = to_node::Message::Commit(message.clone());
                self.down(leader, node, session, Down::Session(ToNode { message: Some(message) }));
            }
        }
        self.controllers.commits.push(commit);
        (applied.response, index)
    }

    fn respond(
        &mut self,
        member: usize,
        waiter: Waiter,
        response: holdfast_controller::state::Response,
        (index, settled): (u64, bool),
    ) {
        match (waiter, response) {
            (Waiter::Join { session, hello }, Ok(Outcome::Node(node))) => {
                self.welcome(member, session, &hello, node)
            }
            (waiter @ Waiter::Call { .. }, Ok(Outcome::Proposal(outcome))) => {
                let good = outcome.status == 0;
                let (index, answer) = (outcome.version, Answer::Proposal(outcome));
                if good {
                    self.controllers.members[member].waiting.push(Waiting { index, waiter, answer });
                    self.look_at_barriers(member);
                } else {
                    self.tell(member, &waiter, answer);
                }
            }
            (waiter @ Waiter::Call { .. }, Ok(Outcome::Established(at))) => {
                let answer = Answer::Established(at);
                self.controllers.members[member].waiting.push(Waiting { index, waiter, answer });
                self.look_at_barriers(member);
            }
            (waiter @ Waiter::Call { .. }, Err(refusal)) => {
                let why = match refusal {
                    Refusal::StaleVersion { .. } if settled => Refused::Settled(true),
                    Refusal::StaleEpoch { .. } if settled => Refused::Settled(false),
                    Refusal::StaleVersion { .. } | Refusal::StaleLeaseTerm { .. } => Refused::Stale,
                    Refusal::NotInitialised | Refusal::Exhausted { .. } => Refused::Unavailable,
                    _ => Refused::Never,
                };
                self.tell(member, &waiter, Answer::Refused(why));
            }
            (Waiter::Change { session, id }, response) => {
                let refused = matches!(response, Err(Refusal::Precondition(_)));
                self.tell_changed(member, session, id, refused);
            }
            (Waiter::Join { session, .. }, _) => {
                let node = self.node_of(session);
                self.down(member, node, session, Down::Ended);
            }
            _ => {}
        }
    }

    fn welcome(
        &mut self,
        member: usize,
        session: SessionId,
        hello: &holdfast_proto::node::Hello,
        node: records::Node,
    ) {
        let number = self.node_of(session);
        let index = self.controllers.index;
        let at = &mut self.controllers.members[member];
        at.table.joined(node.number, node.incarnation);
        if hello.applied_index <= index {
            at.table.applied(node.number, node.incarnation, hello.applied_index);
        }
        let before = at.sessions.insert(number, session).filter(|before| *before != session);
        self.nodes[number].session_joined(session, node.incarnation);
        if let Some(before) = before {
            self.mark("a session took the place of another one");
            self.down(member, number, before, Down::Ended);
        }
        let kept = self.controllers.commits.len().saturating_sub(KEPT);
        let first = self.controllers.commits.get(kept).map_or(0, |commit| commit.index);
        let resumes =
            hello.applied_index != 0 && hello.applied_index + 1 >= first && self.random.below(4) != 0;
        let mut messages = vec![to_node::Message::Welcome(Welcome {
            cluster_id: CLUSTER.to_vec(),
            target_iqn: "iqn.2026-11.example:target".to_owned(),
            node: Some(node),
            lease_ms: LEASE_MS,
            renew_interval_ms: RENEW_INTERVAL_MS,
            resumes,
        })];
        if resumes {
            self.mark("a session resumed");
            let missed = self.controllers.commits.iter().filter(|commit| commit.index > hello.applied_index);
            messages.extend(missed.filter_map(visible).map(to_node::Message::Commit));
        } else {
            let changes = self.controllers.state.node_changes();
            messages.push(to_node::Message::Snapshot(SnapshotPart { index, changes, last: true }));
        }
        for message in messages {
            self.down(member, number, session, Down::Session(ToNode { message: Some(message) }));
        }
    }

    /// The leader's own proposals: not again while the last one is on its way.
    fn propose_own(&mut self, member: usize, term: u64, body: Body) {
        let name = format!("{body:?}");
        let recently = self.controllers.proposed.get(&name).is_some_and(|at| self.now < at + 250);
        if !recently {
            self.controllers.proposed.insert(name, self.now);
            self.append(member, term, body, Waiter::Nobody);
        }
    }

    /// What an administrator asks for through the leader.
    pub(super) fn administer(&mut self, body: Body) {
        if let Some((member, term)) = self.controllers.leader {
            self.append(member, term, body, Waiter::Nobody);
        }
    }
}
