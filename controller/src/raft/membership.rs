//! Members added and removed at run time, and leadership handed to a chosen one.
//!
//! Invariants
//! * One change at a time, by the leader, of one voter at most: two majorities before and after it always share a member. A change
//!   is one log entry, which holds its record for the audit too ([`Payload`]): no leader can die between the two, and nothing is
//!   ever half done but an addition that stopped at a learner, which can be asked for again.
//! * A new member votes only after it has caught up. A change that would leave fewer answering voters than a quorum is refused.
//! * A member is known by the id of its store too (drawn when the store is made): one whose disk was lost or replaced forgot
//!   what it voted for, so it takes no part until it is removed and added again.

mod removal;
mod rules;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use holdfast_pki::Identity;
use holdfast_proto::{
    raft::{DescribeRequest, DescribeResponse, members_client::MembersClient},
    state as records,
};
use openraft::{
    RaftMetrics,
    async_runtime::WatchReceiver as _,
    errors::{ChangeMembershipError, ClientWriteError, RaftError},
    raft::Precondition,
    type_config::alias::InstantOf,
};
use tonic::Request;

use self::{
    removal::{retire, version_of},
    rules::{Addition, check_addition, check_removal},
};
use super::{
    Handle, ReadError,
    handle::MemberMetrics,
    member::unix_ms,
    network::CallError,
    network::channel,
    options,
    types::{EncodedCommand, Member, Membership, Payload, StoreId, TypeConfig},
};
use crate::state::{Body, Command};

/// Voters at most: more make every commit slower and fail no less often.
pub const VOTERS_MAX: usize = 5;

/// Why a member was not added, removed or made leader; each message is one line that says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// Nothing has that name.
    #[error("controller {0} is not a member")]
    Unknown(String),
    /// Name, id or address belong to a member.
    #[error("{0}")]
    Exists(String),
    /// The members as they are forbid it. Nothing was changed.
    #[error("{0}")]
    Refused(String),
    /// This member does not lead (any more). Nothing was changed.
    #[error("this controller does not lead any more; nothing was changed, ask again")]
    NotLeader,
    /// No quorum answers this member. Nothing was changed.
    #[error("no quorum of controllers answers; nothing was changed, ask again")]
    NoQuorum,
    /// The change may or may not have been made.
    #[error("{0}; see 'holdfast controller list'")]
    Unclear(String),
}

use MembershipError::{Refused, Unclear};

/// What a member says of itself.
pub(super) async fn describe(identity: &Identity, member: &Member) -> Result<DescribeResponse, CallError> {
    let mut client = MembersClient::new(channel(identity, member)?);
    let mut request = Request::new(DescribeRequest {});
    request.set_timeout(options::CONNECT_TIMEOUT);
    let answer = tokio::time::timeout(options::CONNECT_TIMEOUT, client.describe(request)).await;
    Ok(answer.map_err(|_| CallError::Silent(options::CONNECT_TIMEOUT))??.into_inner())
}

/// Who asks for a change of the members.
#[derive(Debug, Clone)]
pub struct Wish {
    /// For the audit.
    pub caller: records::Caller,
    /// What the change is remembered by, once it is made.
    pub request: Option<records::ClientRequest>,
}

/// What becomes of one member by a change.
#[derive(Clone, Copy)]
enum Change {
    Admitted,
    Added,
    Removed,
    Withdrawn,
}

impl Change {
    /// As the log's record names it.
    fn as_str(self) -> &'static str {
        match self {
            Self::Admitted => "admitted",
            Self::Added => "added",
            Self::Removed => "removed",
            Self::Withdrawn => "withdrawn",
        }
    }

    /// The membership after it. There is one set of voters: no change of ours makes a joint one.
    fn applied_to(self, known: &Membership, id: u64, member: &Member) -> Result<Membership, MembershipError> {
        let mut voters: BTreeSet<u64> = known.voter_ids().collect();
        let mut nodes: BTreeMap<u64, Member> =
            known.nodes().map(|(id, member)| (*id, member.clone())).collect();
        match self {
            Self::Admitted => {
                nodes.insert(id, member.clone());
            }
            Self::Added => {
                voters.insert(id);
            }
            Self::Removed | Self::Withdrawn => {
                voters.remove(&id);
                nodes.remove(&id);
            }
        }
        Membership::new(vec![voters], nodes).map_err(|error| Refused(error.to_string()))
    }
}

impl Handle {
    /// Adds a controller that runs and waits at `address`, for whoever wishes it: first as a learner, and as a voter once it has caught up.
    ///
    /// # Errors
    /// [`MembershipError`].
    pub async fn add_member(
        &self,
        identity: &Identity,
        wish: &Wish,
        id: u64,
        name: &str,
        address: &str,
    ) -> Result<(), MembershipError> {
        let _one_at_a_time = self.changing.lock().await;
        self.settled().await?;
        let mut new = Member::new(name, address);
        let addition = self.heard_out(|members| check_addition(members, id, &new)).await?;
        let said = describe(identity, &new).await.map_err(|error| {
            Refused(format!(
                "controller {name} does not answer at {address}: {error}; start it with --join and a certificate of \
                 controller {name}"
            ))
        })?;
        if said.id != id {
            return Err(Refused(format!(
                "the controller at {address} has id {}, not {id}; give --id {}",
                said.id, said.id
            )));
        }
        new.store = StoreId::from_slice(&said.store_id)
            .ok_or_else(|| Refused(format!("controller {name} named no store")))?;
        tracing::info!(id, name, address, "adding a controller");
        if addition == Addition::New {
            self.change(Change::Admitted, wish, id, &new).await?;
        } else if self.member(id).is_some_and(|known| known.store != new.store) {
            // What it had when it was admitted is gone.
            self.change(Change::Withdrawn, wish, id, &new).await?;
            self.change(Change::Admitted, wish, id, &new).await?;
        }
        let ready = match self.caught_up(id).await {
            Err(unclear @ Unclear(_)) => return Err(unclear),
            Err(refused) => Err(refused),
            // It may have died meanwhile, or another one may have.
            Ok(()) => self.heard_out(|members| check_addition(members, id, &new)).await.map(|_| ()),
        };
        if let Err(refused) = ready {
            // Nobody counts on it yet: the cluster is as it was.
            self.change(Change::Withdrawn, wish, id, &new).await?;
            return Err(refused);
        }
        self.change(Change::Added, wish, id, &new).await.map(|_| ())
    }

    /// Judges the members, and does not call one silent at once that may only be slow.
    async fn heard_out<T>(
        &self,
        check: impl Fn(&[MemberMetrics]) -> Result<T, MembershipError>,
    ) -> Result<T, MembershipError> {
        let deadline = tokio::time::Instant::now() + options::HEARD_OUT;
        loop {
            match check(&self.metrics().members) {
                Err(Refused(_)) if tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(options::HEARTBEAT).await;
                }
                judged => return judged,
            }
        }
    }

    fn member(&self, id: u64) -> Option<Member> {
        let watched = self.raft.metrics();
        watched.borrow_watched().membership_config.membership().get_node(&id).cloned()
    }

    /// Whether the controller of this name may be removed now.
    ///
    /// # Errors
    /// [`MembershipError`], as from [`Handle::remove_member`].
    pub async fn check_removal(&self, name: &str) -> Result<(), MembershipError> {
        self.heard_out(|members| check_removal(members, name)).await.map(|_| ())
    }

    /// Removes a controller, which must not be the leader.
    ///
    /// # Errors
    /// [`MembershipError`].
    pub async fn remove_member(
        &self,
        identity: &Identity,
        wish: &Wish,
        name: &str,
    ) -> Result<(), MembershipError> {
        let _one_at_a_time = self.changing.lock().await;
        self.settled().await?;
        let id = self.heard_out(|members| check_removal(members, name)).await?;
        let gone = self.member(id).ok_or_else(|| MembershipError::Unknown(name.to_owned()))?;
        tracing::info!(id, name, "removing a controller");
        let version = self.change(Change::Removed, wish, id, &gone).await?;
        if let Err(error) = retire(identity, &gone, version).await {
            tracing::info!(name, %error, "the removed controller was not reached; it learns of it when it is back");
        }
        Ok(())
    }

    /// Hands leadership to the controller of this name; nothing happens if it leads already. Waits until it does.
    ///
    /// # Errors
    /// [`MembershipError`].
    pub async fn transfer_leadership(&self, name: &str) -> Result<(), MembershipError> {
        let metrics = self.metrics();
        let chosen = metrics
            .members
            .iter()
            .find(|known| known.member.name == name)
            .ok_or_else(|| MembershipError::Unknown(crate::state::names::printable(name)))?;
        if !chosen.voter {
            return Err(Refused(format!("controller {name} does not vote yet; it cannot lead")));
        }
        if metrics.leader.as_ref().is_some_and(|leader| leader.id == chosen.id) {
            return Ok(());
        }
        if !chosen.live {
            return Err(Refused(format!("controller {name} does not answer; it cannot lead")));
        }
        let id = chosen.id;
        if let Err(error) = self.raft.trigger().transfer_leader(id).await {
            return Err(Refused(format!("leadership was not handed over: {error}")));
        }
        let wait = self.raft.wait(Some(2 * options::TRANSFER_TIMEOUT));
        let taken = wait.metrics(|metrics| metrics.current_leader == Some(id), "leadership handed over");
        taken.await.map(|_| ()).map_err(|_| {
            Unclear(format!("controller {name} did not take leadership over in time; it may still do"))
        })
    }

    /// Confirms that this member leads and has committed an entry of its own term, so that the membership it knows is the
    /// cluster's.
    async fn settled(&self) -> Result<(), MembershipError> {
        self.ensure_linearizable().await.map(|_| ()).map_err(|error| match error {
            ReadError::NotLeader { .. } => MembershipError::NotLeader,
            ReadError::NoQuorum => MembershipError::NoQuorum,
            stopped @ ReadError::Stopped(_) => Refused(format!("{stopped}; nothing was changed")),
        })
    }

    /// Commits one change, with its record. Gives the new membership's version.
    async fn change(
        &self,
        change: Change,
        wish: &Wish,
        id: u64,
        member: &Member,
    ) -> Result<u64, MembershipError> {
        let (known, at) = {
            let watched = self.raft.metrics();
            let metrics = watched.borrow_watched();
            let config = &metrics.membership_config;
            (config.membership().clone(), *config.log_id())
        };
        let body = Body::RecordMembership(records::RecordMembership {
            change: change.as_str().to_owned(),
            name: member.name.clone(),
            id,
            address: member.address.clone(),
            // What a client has asked for is done by these two.
            request: wish.request.clone().filter(|_| matches!(change, Change::Added | Change::Removed)),
        });
        let command = Command::new(unix_ms(), body).by(wish.caller.clone());
        let proposed = change.applied_to(&known, id, member)?;
        let deadline = tokio::time::Instant::now() + options::MEMBERSHIP_TIMEOUT;
        loop {
            let payload = Payload { command: Some(EncodedCommand::new(&command)), membership: None };
            let unchanged = Precondition::LastMembershipLogId { last_membership_log_id: at };
            let proposal = self.raft.append_membership(proposed.clone(), payload, [unchanged]);
            let error = match tokio::time::timeout_at(deadline, proposal).await {
                Ok(Ok(done)) => return Ok(version_of(&Some(done.log_id))),
                Ok(Err(RaftError::APIError(error))) => error,
                Ok(Err(fatal)) => return Err(Unclear(format!("the change was not confirmed: {fatal}"))),
                Err(_) => return Err(Unclear("no quorum confirmed the change in time".to_owned())),
            };
            match error {
                ClientWriteError::ForwardToLeader(_) => return Err(MembershipError::NotLeader),
                // The change before, or this leader's first entry, is not known to be committed yet.
                ClientWriteError::ChangeMembershipError(
                    ChangeMembershipError::InProgress(_) | ChangeMembershipError::UncommittedLeaderLog(_),
                ) if tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(options::HEARTBEAT).await;
                }
                ClientWriteError::ChangeMembershipError(error) => {
                    return Err(Refused(format!("{error}; nothing was changed, ask again")));
                }
                ClientWriteError::PreconditionFailed(_) => {
                    return Err(Refused("the members were changed meanwhile; ask again".to_owned()));
                }
                ClientWriteError::LogEntryDiscarded(_) => {
                    return Err(Unclear("the leader changed before a quorum had confirmed it".to_owned()));
                }
            }
        }
    }

    /// Waits until the learner has what was committed when the wait began. openraft's own wait ends before that.
    async fn caught_up(&self, id: u64) -> Result<(), MembershipError> {
        let mut watched = self.raft.metrics();
        let goal = watched.borrow_watched().cluster_committed.as_ref().map_or(0, |log_id| log_id.index);
        let mut silent_since = None;
        let wait = async {
            loop {
                {
                    let metrics = watched.borrow_watched();
                    let Some(replication) = metrics.replication.as_ref() else {
                        return Err(Unclear(
                            "another controller came to lead while the new one was catching up; ask again, and it is finished"
                                .to_owned(),
                        ));
                    };
                    silent_since = match silent_since {
                        _ if is_live(heard(&metrics, id)) => None,
                        None => Some(tokio::time::Instant::now()),
                        since => since,
                    };
                    if silent_since.is_some_and(|since| since.elapsed() > options::LEARNER_SILENCE_MAX) {
                        return Err(Refused(
                            "it stopped answering before it had caught up; it was not added".to_owned(),
                        ));
                    }
                    let matched = replication.get(&id).and_then(|m| m.as_ref().map(|log_id| log_id.index));
                    if matched.is_some_and(|matched| matched >= goal) {
                        return Ok(());
                    }
                }
                // A learner's silence changes no metrics.
                if let Ok(Err(_)) =
                    tokio::time::timeout(options::LEARNER_SILENCE_MAX, watched.changed()).await
                {
                    return Err(Unclear("this controller stops".to_owned()));
                }
            }
        };
        match tokio::time::timeout(options::CATCH_UP_TIMEOUT, wait).await {
            Ok(done) => done,
            Err(_) => Err(Refused(format!(
                "it has not caught up within {} s; it was not added",
                options::CATCH_UP_TIMEOUT.as_secs()
            ))),
        }
    }
}

/// When the leader has heard from a member last.
pub(super) fn heard(metrics: &RaftMetrics<TypeConfig>, id: u64) -> Option<InstantOf<TypeConfig>> {
    metrics.heartbeat.as_ref()?.get(&id)?.as_ref().map(|at| **at)
}

/// True if the leader has heard from a member lately.
pub(super) fn is_live(heard: Option<InstantOf<TypeConfig>>) -> bool {
    heard.is_some_and(|at| <InstantOf<TypeConfig> as openraft::Instant>::now() - at < LIVE_SILENCE_MAX)
}

/// A member that the leader has not heard from for this long does not count as answering.
const LIVE_SILENCE_MAX: Duration = Duration::from_millis(1000);
