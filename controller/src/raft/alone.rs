//! Recovery after the quorum of controllers is lost for good: one member that is left goes on alone. Offline, by an operator's decision.
//!
//! Invariants: nothing is changed before the operator has agreed to exactly the state that was shown (by its last log entry); what this
//! member has applied is kept whole. What only the lost members had is gone: that they are gone too, and stay so, is the operator's word,
//! because two of them could elect a leader of their own.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
    sync::Arc,
};

use holdfast_proto::state as records;
use openraft::{
    Membership,
    entry::RaftEntry as _,
    storage::RaftLogStorage as _,
    type_config::alias::{CommittedLeaderIdOf, LeaderIdOf},
    vote::{RaftLeaderId as _, RaftVote as _},
};

use super::{
    log::LogStore,
    store::{Store, StoreError, StoreIdentity, encode},
    types::{EncodedCommand, Entry, LogId, Member, Payload, TypeConfig, Vote},
};
use crate::state::{Body, Command};

/// What going on alone means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alone {
    /// Term and index of the last entry of this member's log: what the operator agrees to.
    pub last: (u64, u64),
    /// Index up to which the state is known to be agreed by a quorum; entries above it may or may not have been.
    pub applied: u64,
    /// Names of the members that are given up.
    pub given_up: Vec<String>,
}

/// Why a member cannot go on alone. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum AloneError {
    /// The store does not open.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store cannot be read or written.
    #[error("the store: {0}")]
    Io(#[from] io::Error),
    /// It has never been a member.
    #[error("this controller is no member of a cluster; there is nothing to recover from it")]
    NoMember,
    /// It is the only one already.
    #[error("this controller is the only member already; start it without --recover-alone")]
    IsAlone,
    /// The log is not the one that was shown.
    #[error("the log ends with {0}.{1}, which is not what was agreed to; look again")]
    OtherState(u64, u64),
}

/// What a store holds of Raft.
struct Found {
    store: Arc<Store>,
    term: u64,
    last: LogId,
    applied: u64,
    membership: Membership<u64, Member>,
}

async fn look(directory: &Path, cluster: [u8; 16], id: u64) -> Result<Found, AloneError> {
    let store = Store::open(directory, StoreIdentity { cluster, member: id })?;
    let mut log = LogStore::new(Arc::clone(&store))?;
    let last = log.get_log_state().await?.last_log_id.ok_or(AloneError::NoMember)?;
    let (applied, stored) = store.applied()?;
    let mut membership = stored.membership().clone();
    let mut reader = log.get_log_reader().await;
    for entry in openraft::RaftLogReader::<TypeConfig>::try_get_log_entries(&mut reader, ..).await? {
        if let Some(newer) = entry.get_membership() {
            membership = newer;
        }
    }
    if membership.get_node(&id).is_none() {
        return Err(AloneError::NoMember);
    }
    if membership.nodes().count() == 1 {
        return Err(AloneError::IsAlone);
    }
    let voted = store.vote()?.map_or(0, |vote| vote.leader_id.term);
    let term = voted.max(last.committed_leader_id().term);
    Ok(Found { store, term, last, applied: applied.map_or(0, |at| at.index), membership })
}

impl Found {
    fn shown(&self, id: u64) -> Alone {
        let others = self.membership.nodes().filter(|(other, _)| **other != id);
        Alone {
            last: (self.last.committed_leader_id().term, self.last.index),
            applied: self.applied,
            given_up: others.map(|(_, member)| member.name.clone()).collect(),
        }
    }
}

/// Looks at the store of a stopped member.
///
/// # Errors
/// [`AloneError`].
pub async fn assess(directory: &Path, cluster: [u8; 16], id: u64) -> Result<Alone, AloneError> {
    Ok(look(directory, cluster, id).await?.shown(id))
}

/// Makes the member the only one of its cluster, in a new term; it is started as usual afterwards. `agreed`: [`Alone::last`] as it was
/// shown. `time_unix_ms`: for the audit.
///
/// # Errors
/// [`AloneError`].
pub async fn go_on(
    directory: &Path,
    cluster: [u8; 16],
    id: u64,
    agreed: (u64, u64),
    time_unix_ms: u64,
) -> Result<Alone, AloneError> {
    let found = look(directory, cluster, id).await?;
    let shown = found.shown(id);
    if shown.last != agreed {
        return Err(AloneError::OtherState(shown.last.0, shown.last.1));
    }
    let own = found.membership.get_node(&id).cloned().ok_or(AloneError::NoMember)?;
    let own = Member { store: found.store.id(), ..own };
    let term = found.term + 1;
    let record = Body::RecordMembership(records::RecordMembership {
        change: "alone".to_owned(),
        name: own.name.clone(),
        id,
        address: own.address.clone(),
        request: None,
    });
    // Whoever may start this controller by hand.
    let caller = records::Caller { role: "admin".to_owned(), name: format!("at {}", own.name) };
    let membership = Membership::new(vec![BTreeSet::from([id])], BTreeMap::from([(id, own)]))
        .map_err(|error| io::Error::other(error.to_string()))?;
    let command = EncodedCommand::new(&Command::new(time_unix_ms, record).by(caller));
    // With its record for the audit in the same entry, as every change of the members.
    let payload = Payload { command: Some(command), membership: Some(membership) };
    // The vote first: alone it does no more than any election that nobody won.
    found.store.save_vote(&Vote::from_leader_id(<LeaderIdOf<TypeConfig>>::new(term, id), false))?;
    let mut batch = found.store.batch();
    let at = found.last.index + 1;
    let log_id = LogId::new(<CommittedLeaderIdOf<TypeConfig>>::new(term), at);
    batch.put_cf(found.store.log_cf(), at.to_be_bytes(), encode(&Entry::new(log_id, payload))?);
    found.store.commit_synced(batch)?;
    Ok(shown)
}
