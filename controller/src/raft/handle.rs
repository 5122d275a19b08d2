//! What the rest of the controller holds of Raft: propose, read, follow.
//!
//! Invariants
//! * `Ok` from [`Handle::write`] means committed by a quorum and applied here. [`WriteError::NotLeader`] and
//!   [`WriteError::NoQuorum`] mean that nothing was proposed; [`WriteError::Unknown`] means that it may still commit.
//! * [`Handle::read`] shows applied state only; it is current only after [`Handle::ensure_linearizable`].
//! * A commit is visible to `read` before any [`Commits`] shows it, and `read_and_follow` misses and repeats none.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use holdfast_proto::{state::Caller, v1};
use openraft::{
    ReadPolicy,
    async_runtime::WatchReceiver as _,
    errors::{ClientWriteError, ForwardReason, ForwardToLeader, LinearizableReadError, RaftError},
    type_config::alias::InstantOf,
};
use tokio::sync::watch;
use tracing::Instrument as _;

use super::{
    applied::Shared,
    commits::Commits,
    leadership::Leadership,
    membership::{heard, is_live},
    options,
    types::{EncodedCommand, Member, Raft, TypeConfig},
};
use crate::state::{Command, Response, StateMachine};

/// A committed and applied command.
#[derive(Debug, Clone)]
pub struct Written {
    /// Log index of its entry.
    pub index: u64,
    /// What the state machine answered.
    pub response: Response,
}

/// Who leads, as far as this member knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaderAddress {
    /// Member id.
    pub id: u64,
    /// Its name (in its certificate).
    pub name: String,
    /// "address:port" of its gRPC listener.
    pub address: String,
}

/// Why a command was not confirmed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WriteError {
    /// Nothing was proposed here: another member leads (or none does now).
    #[error("this member does not lead")]
    NotLeader {
        /// The leader, when known.
        leader: Option<LeaderAddress>,
    },
    /// Nothing was proposed: this leader has not heard from a quorum lately.
    #[error("no quorum of controllers answers")]
    NoQuorum,
    /// Proposed, and the outcome is not known: it may be or become committed.
    #[error("the outcome is not known: {0}")]
    Unknown(&'static str),
    /// Nothing was proposed: this member's Raft has stopped (clean stop, or its storage failed).
    #[error("this member has stopped: {0}")]
    Stopped(String),
}

/// Why leadership was not confirmed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// Another member leads, or none.
    #[error("this member does not lead")]
    NotLeader {
        /// The leader, when known.
        leader: Option<LeaderAddress>,
    },
    /// No quorum answered in time.
    #[error("no quorum of controllers answers")]
    NoQuorum,
    /// This member's Raft has stopped.
    #[error("this member has stopped: {0}")]
    Stopped(String),
}

/// One member as [`Handle::metrics`] shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberMetrics {
    /// Member id.
    pub id: u64,
    /// Name and address.
    pub member: Member,
    /// Votes, as opposed to a learner.
    pub voter: bool,
    /// Last log index known replicated to it; known to the leader only.
    pub matched_index: Option<u64>,
    /// The leader has heard from it lately, or it is the leader; known to the leader only.
    pub live: bool,
}

/// What GetCluster shows of Raft.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterMetrics {
    /// This member.
    pub own_id: u64,
    /// All members, by id.
    pub members: Vec<MemberMetrics>,
    /// Who leads, as far as this member knows.
    pub leader: Option<LeaderAddress>,
    /// Current term.
    pub term: u64,
    /// Highest index known committed; 0 = none.
    pub committed_index: u64,
    /// Highest index applied here; 0 = none.
    pub applied_index: u64,
}

/// Raft, to be cloned freely.
#[derive(Clone)]
pub struct Handle {
    pub(super) raft: Raft,
    pub(super) shared: Arc<Shared>,
    pub(super) leadership: watch::Receiver<Leadership>,
    pub(super) leader: watch::Receiver<Option<LeaderAddress>>,
    pub(super) name: Arc<str>,
    /// Held while the membership is changed.
    pub(super) changing: Arc<tokio::sync::Mutex<()>>,
}

impl Handle {
    /// Proposes a command and waits until it is committed and applied here.
    ///
    /// # Errors
    /// See [`WriteError`]: only `Unknown` may have had an effect.
    pub async fn write(&self, command: &Command) -> Result<Written, WriteError> {
        let span = holdfast_telemetry::span!("commit", index = tracing::field::Empty);
        let written = self.propose(command).instrument(span.clone()).await;
        if let Ok(written) = &written {
            span.record("index", written.index);
        }
        written
    }

    async fn propose(&self, command: &Command) -> Result<Written, WriteError> {
        let deadline = tokio::time::Instant::now() + options::WRITE_TIMEOUT;
        let encoded = EncodedCommand::new(command);
        let mut settling_until = None;
        loop {
            self.check_quorum()?;
            let proposal = self.raft.client_write(encoded.clone());
            let result = match tokio::time::timeout_at(deadline, proposal).await {
                Ok(result) => result,
                Err(_) => return Err(WriteError::Unknown("no quorum confirmed it in time")),
            };
            match result {
                Ok(done) => {
                    let response = done.data.0.ok_or(WriteError::Unknown("applied without a response"))?;
                    return Ok(Written { index: done.log_id.index, response });
                }
                Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                    // A leader just elected refuses for about a millisecond without naming itself.
                    let until = *settling_until
                        .get_or_insert_with(|| tokio::time::Instant::now() + options::SETTLE_TIMEOUT);
                    if self.is_settling(&forward) && tokio::time::Instant::now() < until {
                        tokio::time::sleep(options::SETTLE_RETRY).await;
                        continue;
                    }
                    return Err(WriteError::NotLeader { leader: address(forward) });
                }
                Err(RaftError::APIError(ClientWriteError::LogEntryDiscarded(_))) => {
                    return Err(WriteError::Unknown("the leader changed before a quorum had confirmed it"));
                }
                Err(RaftError::APIError(other)) => {
                    // Membership and preconditions: never asked for by a command. Say the least that is safe.
                    tracing::error!(%other, "a command was answered like a membership change");
                    return Err(WriteError::Unknown("unexpected answer of Raft"));
                }
                // It may have reached the log, and another member, before this one stopped.
                Err(RaftError::Fatal(_)) => {
                    return Err(WriteError::Unknown("this member stopped meanwhile"));
                }
            }
        }
    }

    /// Confirms with a quorum, asked after this call, that this member leads, and waits until everything that was committed
    /// then is applied here. Returns the index that `read` shows at least.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn ensure_linearizable(&self) -> Result<u64, ReadError> {
        let confirm = self.raft.ensure_linearizable(ReadPolicy::ReadIndex);
        match tokio::time::timeout(options::READ_TIMEOUT, confirm).await {
            Err(_) => Err(ReadError::NoQuorum),
            Ok(Ok(read_id)) => {
                let index = read_id.log_id().index;
                // Applied in Raft's books is applied in ours: `apply` installs before it returns.
                Ok(self.applied_index().max(index))
            }
            Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)))) => {
                Err(ReadError::NotLeader { leader: address(forward) })
            }
            Ok(Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)))) => {
                Err(ReadError::NoQuorum)
            }
            Ok(Err(RaftError::Fatal(fatal))) => Err(ReadError::Stopped(fatal.to_string())),
        }
    }

    /// Looks at the applied state. Keep `look` short: applying waits for it. It must not call back into this handle.
    pub fn read<R>(&self, look: impl FnOnce(&StateMachine) -> R) -> R {
        self.shared.read(|machine, _| look(machine))
    }

    /// Looks at the applied state and its index, and follows from exactly there.
    pub fn read_and_follow<R>(&self, look: impl FnOnce(&StateMachine, u64) -> R) -> (R, Commits) {
        self.shared.read_and_follow(look)
    }

    /// Follows from just above `after`, for one who has everything up to there that data nodes see; `None` if some of what came since
    /// is not kept any more, or `after` is not applied here. What data nodes do not see may be left out.
    pub fn follow_after(&self, after: u64) -> Option<Commits> {
        self.shared.follow_after(after)
    }

    /// Commits from now on, in log order.
    pub fn subscribe_commits(&self) -> Commits {
        self.shared.read_and_follow(|_, _| ()).1
    }

    /// Highest log index applied here; 0 = none.
    pub fn applied_index(&self) -> u64 {
        self.shared.applied_index()
    }

    /// Follows [`Handle::applied_index`].
    pub fn watch_applied(&self) -> watch::Receiver<u64> {
        self.shared.watch_applied()
    }

    /// Management events with an index above `after`, oldest first, at most `limit` (an entry's events are never parted); and
    /// the highest index whose events were dropped for age: above `after` means that some were missed. Follow new ones with
    /// [`Handle::watch_applied`].
    ///
    /// # Errors
    /// What the storage says when it cannot be read.
    pub fn events_after(&self, after: u64, limit: usize) -> std::io::Result<(Vec<v1::Event>, u64)> {
        self.shared.events_after(after, limit)
    }

    /// At most `limit` audit records above (index, ordinal) `after` that `wanted` lets through, in the order of the log; and the
    /// highest index of which records were dropped for size. Reads the disk.
    ///
    /// # Errors
    /// What the storage says when it cannot be read.
    pub fn audit_after(
        &self,
        after: (u64, u32),
        limit: usize,
        wanted: impl Fn(&v1::AuditRecord) -> bool,
    ) -> std::io::Result<(Vec<v1::AuditRecord>, u64)> {
        self.shared.audit_after(after, limit, wanted)
    }

    /// This member as the one who asks for a change.
    pub fn own_caller(&self) -> Caller {
        Caller { role: holdfast_pki::Role::Controller.as_str().to_owned(), name: self.name.to_string() }
    }

    /// Whether this member leads, since when, in which term.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    /// Who leads, as far as this member knows.
    pub fn leader(&self) -> Option<LeaderAddress> {
        self.leader.borrow().clone()
    }

    /// This member's id.
    pub fn id(&self) -> u64 {
        *self.raft.node_id()
    }

    /// The leader, waiting for one to be elected at most this long.
    pub async fn wait_leader(&self, limit: Duration) -> Option<LeaderAddress> {
        let mut leader = self.watch_leader();
        let known = leader.wait_for(Option::is_some);
        match tokio::time::timeout(limit, known).await {
            Ok(Ok(leader)) => leader.clone(),
            _ => None,
        }
    }

    /// Follows who leads, as far as this member knows.
    pub fn watch_leader(&self) -> watch::Receiver<Option<LeaderAddress>> {
        self.leader.clone()
    }

    /// What GetCluster shows.
    pub fn metrics(&self) -> ClusterMetrics {
        let watched = self.raft.metrics();
        let metrics = watched.borrow_watched();
        let membership = metrics.membership_config.membership();
        let members: Vec<MemberMetrics> = membership
            .nodes()
            .map(|(id, member)| MemberMetrics {
                id: *id,
                member: member.clone(),
                voter: membership.voter_ids().any(|voter| voter == *id),
                matched_index: metrics
                    .replication
                    .as_ref()
                    .and_then(|matched| matched.get(id))
                    .and_then(|matched| matched.as_ref().map(|log_id| log_id.index)),
                live: metrics.current_leader == Some(*id) || is_live(heard(&metrics, *id)),
            })
            .collect();
        let leader = metrics.current_leader.and_then(|id| {
            let found = members.iter().find(|member| member.id == id)?;
            Some(LeaderAddress { id, name: found.member.name.clone(), address: found.member.address.clone() })
        });
        ClusterMetrics {
            own_id: metrics.id,
            members,
            leader,
            term: metrics.current_term,
            committed_index: metrics.cluster_committed.as_ref().map_or(0, |log_id| log_id.index),
            applied_index: metrics.last_applied.as_ref().map_or(0, |log_id| log_id.index),
        }
    }

    /// Refuses before anything is proposed when this leader has been cut off from its quorum.
    fn check_quorum(&self) -> Result<(), WriteError> {
        let watched = self.raft.metrics();
        let metrics = watched.borrow_watched();
        if let Err(fatal) = &metrics.running_state {
            return Err(WriteError::Stopped(fatal.to_string()));
        }
        let alone = metrics.membership_config.membership().voter_ids().count() <= 1;
        if !metrics.state.is_leader() || alone {
            return Ok(());
        }
        let led_since = { self.leadership.borrow().since };
        let acknowledged = metrics.last_quorum_acked.as_ref().map(|at| **at);
        let silent_for = match acknowledged {
            Some(at) => <InstantOf<TypeConfig> as openraft::Instant>::now() - at,
            None => led_since.map_or(Duration::ZERO, |since| Instant::now() - since),
        };
        if silent_for > options::QUORUM_SILENCE_MAX { Err(WriteError::NoQuorum) } else { Ok(()) }
    }

    /// No leader is named, and that can be the moment after an election.
    fn is_settling(&self, forward: &ForwardToLeader<TypeConfig>) -> bool {
        forward.leader_id.is_none() && forward.reason != ForwardReason::LeadershipTransfer
    }
}

fn address(forward: ForwardToLeader<TypeConfig>) -> Option<LeaderAddress> {
    let (id, member) = (forward.leader_id?, forward.leader_node?);
    Some(LeaderAddress { id, name: member.name, address: member.address })
}
