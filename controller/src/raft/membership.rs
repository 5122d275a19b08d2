//! Members added and removed at run time, and leadership handed to a chosen one.
//!
//! Invariants
//! * One change at a time, by the leader, through openraft's joint configurations; a change that a dead leader left half-done is
//!   finished by the next one before anything else is changed.
//! * A new member votes only after it has caught up. A change that would leave fewer answering voters than a quorum is refused.
//! * A member is known by the id of its store too (drawn when the store is made): one whose disk was lost or replaced forgot
//!   what it voted for, so it takes no part until it is removed and added again.
//! * A removed member is told, and stops serving; one that was away learns it from the committed membership of another.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use holdfast_pki::Identity;
use holdfast_proto::raft::{DescribeRequest, DescribeResponse, RetireRequest, members_client::MembersClient};
use openraft::{
    ChangeMembers,
    async_runtime::WatchReceiver as _,
    errors::{ClientWriteError, RaftError},
    type_config::alias::InstantOf,
};
use tonic::Request;

use super::{
    Handle,
    handle::MemberMetrics,
    network::CallError,
    network::channel,
    options,
    types::{Member, StoreId, TypeConfig},
};

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
    /// The change may or may not have been made.
    #[error("{0}; see 'holdfast controller list'")]
    Unclear(String),
}

use MembershipError::{Exists, Refused, Unclear};

/// May a controller of this name, id and address be added?
fn check_addition(members: &[MemberMetrics], id: u64, new: &Member) -> Result<(), MembershipError> {
    for known in members {
        let at = format!("{} (id {}, {})", known.member.name, known.id, known.member.address);
        if known.member.name == new.name && known.id == id {
            return Err(Exists(format!("controller {} is a member already", new.name)));
        }
        for (same, what) in [
            (known.id == id, format!("id {id}")),
            (known.member.name == new.name, format!("name {}", new.name)),
            (known.member.address == new.address, format!("address {}", new.address)),
        ] {
            if same {
                return Err(Exists(format!("{what} belongs to controller {at}; give the new one its own")));
            }
        }
    }
    if members.iter().filter(|known| known.voter).count() >= VOTERS_MAX {
        return Err(Refused(format!(
            "the cluster has {VOTERS_MAX} controllers, and more are not possible; remove one first"
        )));
    }
    // The new one counts as answering: it was asked. One more member may mean that one more is needed.
    let voters: Vec<_> = members.iter().filter(|known| known.voter).collect();
    let silent: Vec<_> = voters.iter().filter(|m| !m.live).map(|m| m.member.name.as_str()).collect();
    let (after, answering) = (voters.len() + 1, voters.len() + 1 - silent.len());
    if answering < after / 2 + 1 {
        return Err(Refused(format!(
            "with {} there would be {after} controllers, of which only {answering} answer (silent: {}); {} are needed: \
             bring one back first",
            new.name,
            silent.join(", "),
            after / 2 + 1
        )));
    }
    Ok(())
}

/// May the controller of this name be removed? Gives its id.
fn check_removal(members: &[MemberMetrics], name: &str) -> Result<u64, MembershipError> {
    let gone = members
        .iter()
        .find(|known| known.member.name == name)
        .ok_or_else(|| MembershipError::Unknown(crate::state::names::printable(name)))?;
    let rest: Vec<_> = members.iter().filter(|known| known.voter && known.id != gone.id).collect();
    if !gone.voter {
        return Ok(gone.id);
    }
    if rest.is_empty() {
        return Err(Refused(format!("controller {name} is the last one; a cluster cannot be without")));
    }
    let silent: Vec<_> = rest.iter().filter(|m| !m.live).map(|m| m.member.name.as_str()).collect();
    let (answering, needed) = (rest.len() - silent.len(), rest.len() / 2 + 1);
    if answering < needed {
        return Err(Refused(format!(
            "removing {name} would lose the quorum: of the {} others only {answering} answer (silent: {}), and {needed} are \
             needed; bring one back first, or remove a silent one",
            rest.len(),
            silent.join(", ")
        )));
    }
    Ok(gone.id)
}

/// What a member says of itself.
pub(super) async fn describe(identity: &Identity, member: &Member) -> Result<DescribeResponse, CallError> {
    let mut client = MembersClient::new(channel(identity, member)?);
    let mut request = Request::new(DescribeRequest {});
    request.set_timeout(options::CONNECT_TIMEOUT);
    let answer = tokio::time::timeout(options::CONNECT_TIMEOUT, client.describe(request)).await;
    Ok(answer.map_err(|_| CallError::Silent(options::CONNECT_TIMEOUT))??.into_inner())
}

impl Handle {
    /// Adds a controller that runs and waits at `address`: first as a learner, and as a voter once it has caught up.
    ///
    /// # Errors
    /// [`MembershipError`].
    pub async fn add_member(
        &self,
        identity: &Identity,
        id: u64,
        name: &str,
        address: &str,
    ) -> Result<(), MembershipError> {
        let _one_at_a_time = self.changing.lock().await;
        self.finish_change().await?;
        let mut new = Member::new(name, address);
        check_addition(&self.metrics().members, id, &new)?;
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
        let learners = ChangeMembers::AddNodes(BTreeMap::from([(id, new)]));
        self.change(learners, true).await?;
        if let Err(reason) = self.caught_up(id).await {
            // Nobody counts on it yet: the cluster is as it was.
            let undone = self.change(ChangeMembers::RemoveNodes(BTreeSet::from([id])), false).await;
            return Err(undone.err().unwrap_or(Refused(reason)));
        }
        // It may have died meanwhile, or another one may have.
        let others: Vec<_> = self.metrics().members.into_iter().filter(|known| known.id != id).collect();
        if let Err(refused) = check_addition(&others, id, &Member::new(name, address)) {
            self.change(ChangeMembers::RemoveNodes(BTreeSet::from([id])), false).await?;
            return Err(refused);
        }
        self.change(ChangeMembers::AddVoterIds(BTreeSet::from([id])), true).await
    }

    /// Whether the controller of this name may be removed now.
    ///
    /// # Errors
    /// [`MembershipError`], as from [`Handle::remove_member`].
    pub fn check_removal(&self, name: &str) -> Result<(), MembershipError> {
        check_removal(&self.metrics().members, name).map(|_| ())
    }

    /// Removes a controller, which must not be the leader. Gives what it was.
    ///
    /// # Errors
    /// [`MembershipError`].
    pub async fn remove_member(
        &self,
        identity: &Identity,
        name: &str,
    ) -> Result<(u64, Member), MembershipError> {
        let _one_at_a_time = self.changing.lock().await;
        self.finish_change().await?;
        let members = self.metrics().members;
        let id = check_removal(&members, name)?;
        let gone = members
            .into_iter()
            .find(|known| known.id == id)
            .ok_or_else(|| MembershipError::Unknown(name.to_owned()))?;
        tracing::info!(id, name, "removing a controller");
        let ids = BTreeSet::from([id]);
        if gone.voter {
            self.change(ChangeMembers::RemoveVoters(ids), false).await?;
        } else {
            self.change(ChangeMembers::RemoveNodes(ids), false).await?;
        }
        let membership_version = self.membership().committed;
        if let Err(error) = retire(identity, &gone.member, membership_version).await {
            tracing::info!(name, %error, "the removed controller was not reached; it learns of it when it is back");
        }
        Ok((id, gone.member))
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

    /// Finishes a change that an earlier leader left in its joint configuration.
    async fn finish_change(&self) -> Result<(), MembershipError> {
        let target = {
            let watched = self.raft.metrics();
            let metrics = watched.borrow_watched();
            let configs = metrics.membership_config.membership().get_joint_config();
            if configs.len() < 2 {
                return Ok(());
            }
            configs.last().cloned().unwrap_or_default()
        };
        tracing::info!(?target, "finishing a change of the members that was begun earlier");
        self.change(ChangeMembers::ReplaceAllVoters(target), false).await
    }

    /// Finishes what an earlier leader began, whenever this member comes to lead; for as long as Raft runs.
    pub(super) async fn finish_changes(self) {
        let mut leadership = self.leadership();
        loop {
            let leads = leadership.borrow_and_update().am_leader;
            if leads {
                let _one_at_a_time = self.changing.lock().await;
                if let Err(error) = self.finish_change().await {
                    tracing::warn!(%error, "a change of the members is not finished yet");
                    tokio::time::sleep(options::ELECTION_MAX).await;
                    continue;
                }
            }
            if leadership.changed().await.is_err() {
                return;
            }
        }
    }

    async fn change(&self, change: ChangeMembers<u64, Member>, retain: bool) -> Result<(), MembershipError> {
        let proposal = self.raft.change_membership(change, retain);
        match tokio::time::timeout(options::MEMBERSHIP_TIMEOUT, proposal).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))) => {
                Err(MembershipError::NotLeader)
            }
            Ok(Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error)))) => {
                Err(Refused(format!("{error}; nothing was changed, ask again")))
            }
            Ok(Err(error)) => Err(Unclear(format!("the change was not confirmed: {error}"))),
            Err(_) => Err(Unclear("no quorum confirmed the change in time".to_owned())),
        }
    }

    /// Waits until the learner has what was committed when the wait began. openraft's own wait ends before that.
    async fn caught_up(&self, id: u64) -> Result<(), String> {
        let mut watched = self.raft.metrics();
        let goal = watched.borrow_watched().cluster_committed.as_ref().map_or(0, |log_id| log_id.index);
        let wait = async {
            loop {
                {
                    let metrics = watched.borrow_watched();
                    let Some(replication) = metrics.replication.as_ref() else {
                        return Err("this controller does not lead any more; ask again".to_owned());
                    };
                    let matched = replication.get(&id).and_then(|m| m.as_ref().map(|log_id| log_id.index));
                    if matched.is_some_and(|matched| matched >= goal) {
                        return Ok(());
                    }
                }
                if watched.changed().await.is_err() {
                    return Err("this controller stops".to_owned());
                }
            }
        };
        match tokio::time::timeout(options::CATCH_UP_TIMEOUT, wait).await {
            Ok(done) => done,
            Err(_) => Err(format!(
                "it has not caught up within {} s; it was not added",
                options::CATCH_UP_TIMEOUT.as_secs()
            )),
        }
    }

    /// The membership as this member knows it.
    pub fn membership(&self) -> KnownMembership {
        let watched = self.raft.metrics();
        let metrics = watched.borrow_watched();
        let version =
            |log_id: &Option<super::types::LogId>| log_id.as_ref().map_or(0, |log_id| log_id.index + 1);
        let effective = &metrics.membership_config;
        let committed = &metrics.committed_membership_config;
        KnownMembership {
            effective: version(effective.log_id()),
            is_in_effective: effective.membership().get_node(&metrics.id).is_some(),
            committed: version(committed.log_id()),
            committed_ids: committed.membership().nodes().map(|(id, _)| *id).collect(),
        }
    }

    /// Whether this member is one: in the membership, and not told since that it was removed.
    pub fn is_member(&self) -> bool {
        let known = self.membership();
        known.is_in_effective && known.effective > self.shared.retired_at()
    }

    /// This member was removed by the membership of this version. Remembered over restarts.
    ///
    /// # Errors
    /// When it cannot be stored.
    pub fn retire(&self, version: u64) -> std::io::Result<()> {
        if version <= self.shared.retired_at() {
            return Ok(());
        }
        self.shared.retire(version)?;
        if !self.is_member() {
            tracing::warn!("this controller was removed from the cluster and serves no more");
        }
        Ok(())
    }

    /// Whether this member has a log, or anything applied.
    pub fn has_log(&self) -> bool {
        self.raft.metrics().borrow_watched().last_log_index.is_some() || self.applied_index() > 0
    }

    /// Id of this member's store.
    pub fn store_id(&self) -> StoreId {
        self.shared.store_id()
    }

    /// Asks the other members whether this one was removed while it was away: at the start, often while it has no leader, and now
    /// and then while it has one, since it may know that one only from before; for as long as Raft runs.
    pub(super) async fn learn_of_removal(self, identity: std::sync::Arc<Identity>) {
        let mut leader = self.watch_leader();
        let mut answered = false;
        loop {
            let led = leader.borrow_and_update().as_ref().map(|leader| leader.id);
            if led != Some(self.id()) && self.is_member() {
                answered |= self.ask_whether_removed(&identity, led).await;
            }
            let pause = if answered && led.is_some() {
                options::REMOVAL_ASKED_SELDOM
            } else {
                options::REMOVAL_ASKED_OFTEN
            };
            if let Ok(Err(_)) = tokio::time::timeout(pause, leader.changed()).await {
                return;
            }
        }
    }

    /// Asks others until one knows a membership at least as new as this member's; the leader first.
    async fn ask_whether_removed(&self, identity: &Identity, leader: Option<u64>) -> bool {
        let mut others = self.metrics().members;
        others.retain(|known| known.id != self.id());
        others.sort_by_key(|known| Some(known.id) != leader);
        for known in others {
            let Ok(said) = describe(identity, &known.member).await else { continue };
            let own = self.membership().effective;
            if said.membership_version < own || said.member_ids.is_empty() {
                continue;
            }
            if said.membership_version > own
                && !said.member_ids.contains(&self.id())
                && let Err(error) = self.retire(said.membership_version)
            {
                tracing::error!(%error, "that this controller was removed cannot be stored");
            }
            return true;
        }
        false
    }
}

/// See [`Handle::membership`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownMembership {
    /// Version of the newest membership: the log index of its entry plus 1 (the first entry of a log has index 0); 0 = none.
    pub effective: u64,
    /// It names this member.
    pub is_in_effective: bool,
    /// Version of the newest membership known committed; 0 = none.
    pub committed: u64,
    /// Ids of its members.
    pub committed_ids: Vec<u64>,
}

async fn retire(identity: &Identity, member: &Member, membership_version: u64) -> Result<(), CallError> {
    let mut client = MembersClient::new(channel(identity, member)?);
    let mut request = Request::new(RetireRequest { membership_version, store_id: member.store.0.to_vec() });
    request.set_timeout(options::CONNECT_TIMEOUT);
    let answer = tokio::time::timeout(options::CONNECT_TIMEOUT, client.retire(request)).await;
    answer.map_err(|_| CallError::Silent(options::CONNECT_TIMEOUT))??;
    Ok(())
}

/// True if the leader has heard from a member lately.
pub(super) fn is_live(heard: Option<InstantOf<TypeConfig>>) -> bool {
    heard.is_some_and(|at| <InstantOf<TypeConfig> as openraft::Instant>::now() - at < LIVE_SILENCE_MAX)
}

/// A member that the leader has not heard from for this long does not count as answering.
const LIVE_SILENCE_MAX: Duration = Duration::from_millis(1000);

#[cfg(test)]
mod tests {
    use super::*;

    fn members(list: &[(u64, bool)]) -> Vec<MemberMetrics> {
        list.iter()
            .map(|(id, live)| MemberMetrics {
                id: *id,
                member: Member::new(format!("ctl-{id}"), format!("127.0.0.1:{id}")),
                voter: true,
                matched_index: None,
                live: *live,
            })
            .collect()
    }

    fn removal(list: &[(u64, bool)], name: &str) -> Result<u64, String> {
        check_removal(&members(list), name).map_err(|error| error.to_string())
    }

    #[test]
    fn the_last_one_and_an_unknown_one_stay() {
        assert_eq!(
            removal(&[(1, true)], "ctl-1").unwrap_err(),
            "controller ctl-1 is the last one; a cluster cannot be without"
        );
        assert_eq!(removal(&[(1, true)], "ctl-9").unwrap_err(), "controller ctl-9 is not a member");
    }

    #[test]
    fn a_removal_keeps_a_quorum_of_those_that_answer() {
        assert_eq!(removal(&[(1, true), (2, true), (3, false)], "ctl-3"), Ok(3));
        assert_eq!(removal(&[(1, true), (2, true), (3, true)], "ctl-2"), Ok(2));
        assert_eq!(
            removal(&[(1, true), (2, true), (3, false)], "ctl-2").unwrap_err(),
            "removing ctl-2 would lose the quorum: of the 2 others only 1 answer (silent: ctl-3), and 2 are needed; bring one \
             back first, or remove a silent one"
        );
        assert_eq!(removal(&[(1, true), (2, true), (3, true), (4, false), (5, false)], "ctl-4"), Ok(4));
    }

    #[test]
    fn names_ids_and_addresses_belong_to_one() {
        let three = members(&[(1, true), (2, true), (3, true)]);
        let add = |id, name: &str, address: &str| {
            check_addition(&three, id, &Member::new(name, address)).map_err(|error| error.to_string())
        };
        assert_eq!(add(4, "ctl-4", "127.0.0.1:4"), Ok(()));
        assert_eq!(add(3, "ctl-3", "127.0.0.1:3").unwrap_err(), "controller ctl-3 is a member already");
        assert!(add(3, "ctl-4", "127.0.0.1:4").unwrap_err().starts_with("id 3 belongs to controller ctl-3"));
        assert!(add(4, "ctl-3", "127.0.0.1:4").unwrap_err().starts_with("name ctl-3 belongs"));
        assert!(add(4, "ctl-4", "127.0.0.1:3").unwrap_err().starts_with("address 127.0.0.1:3 belongs"));
    }

    #[test]
    fn an_addition_keeps_a_quorum_and_there_are_five_at_most() {
        let add =
            |list: &[(u64, bool)]| check_addition(&members(list), 9, &Member::new("ctl-9", "127.0.0.1:9"));
        assert_eq!(add(&[(1, true)]), Ok(()));
        assert_eq!(add(&[(1, true), (2, true), (3, false)]), Ok(()));
        assert_eq!(add(&[(1, true), (2, false)]), Ok(()));
        let refused = add(&[(1, true), (2, false), (3, false)]).unwrap_err().to_string();
        assert!(refused.contains("only 2 answer (silent: ctl-2, ctl-3); 3 are needed"), "{refused}");
        let five: Vec<_> = (1..=5).map(|id| (id, true)).collect();
        assert!(add(&five).unwrap_err().to_string().contains("more are not possible"));
    }
}
