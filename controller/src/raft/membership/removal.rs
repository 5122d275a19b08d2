//! How a member learns that it was removed, and what it knows of the membership.
//!
//! Invariant: a removed member is told, and stops serving; one that was away learns it from the committed membership of another,
//! and remembers it over restarts.

use holdfast_pki::Identity;
use holdfast_proto::raft::{RetireRequest, members_client::MembersClient};
use openraft::async_runtime::WatchReceiver as _;
use tonic::Request;

use super::describe;
use crate::raft::{
    Handle, StoreId,
    network::{CallError, channel},
    options,
    types::{LogId, Member},
};

/// A membership's version: the log index of its entry plus 1 (the first entry of a log has index 0); 0 = none.
pub(super) fn version_of(log_id: &Option<LogId>) -> u64 {
    log_id.as_ref().map_or(0, |log_id| log_id.index + 1)
}

impl Handle {
    /// The membership as this member knows it.
    pub fn membership(&self) -> KnownMembership {
        let watched = self.raft.metrics();
        let metrics = watched.borrow_watched();
        let effective = &metrics.membership_config;
        let committed = &metrics.committed_membership_config;
        KnownMembership {
            effective: version_of(effective.log_id()),
            is_in_effective: effective.membership().get_node(&metrics.id).is_some(),
            committed: version_of(committed.log_id()),
            committed_ids: committed.membership().nodes().map(|(id, _)| *id).collect(),
        }
    }

    /// Whether a controller of this name is a member, voter or learner, as far as this member knows.
    pub fn has_member(&self, name: &str) -> bool {
        let watched = self.raft.metrics();
        let metrics = watched.borrow_watched();
        metrics.membership_config.membership().nodes().any(|(_, member)| member.name == name)
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
    pub(in crate::raft) async fn learn_of_removal(self, identity: std::sync::Arc<Identity>) {
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

/// Tells a member that the membership of this version is without it.
pub(super) async fn retire(
    identity: &Identity,
    member: &Member,
    membership_version: u64,
) -> Result<(), CallError> {
    let mut client = MembersClient::new(channel(identity, member)?);
    let mut request = Request::new(RetireRequest { membership_version, store_id: member.store.0.to_vec() });
    request.set_timeout(options::CONNECT_TIMEOUT);
    let answer = tokio::time::timeout(options::CONNECT_TIMEOUT, client.retire(request)).await;
    answer.map_err(|_| CallError::Silent(options::CONNECT_TIMEOUT))??;
    Ok(())
}
