//! Whether this member leads, since when.
//!
//! Invariant: `since` is never earlier than the election itself, so that waiting a full lease from it waits long enough.

use std::time::Instant;

use openraft::async_runtime::WatchReceiver as _;
use tokio::{sync::watch, task::JoinHandle};

use super::{
    handle::LeaderAddress,
    types::{Raft, TypeConfig},
};

/// This member's part in the current term.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Leadership {
    /// It leads, as far as it knows; another may lead already: confirm with `ensure_linearizable`.
    pub am_leader: bool,
    /// The term.
    pub term: u64,
    /// When this process saw itself elected in this term; `None` while it does not lead.
    pub since: Option<Instant>,
}

/// What [`follow`] gives.
pub(super) struct Followed {
    pub(super) leadership: watch::Receiver<Leadership>,
    pub(super) leader: watch::Receiver<Option<LeaderAddress>>,
    pub(super) task: JoinHandle<()>,
}

/// Follows Raft until it stops; then says that it does not lead.
pub(super) fn follow(raft: &Raft) -> Followed {
    let (sender, leadership) = watch::channel(Leadership::default());
    let (leader_sender, leader) = watch::channel(None);
    let mut metrics = raft.server_metrics();
    let task = tokio::spawn(async move {
        loop {
            let (leads, term, leader) = {
                let now = metrics.borrow_watched();
                (now.state.is_leader(), now.vote.leader_id.term, address_of_leader(&now))
            };
            leader_sender.send_if_modified(|current| {
                let changed = *current != leader;
                *current = leader;
                changed
            });
            sender.send_if_modified(|current| {
                if current.am_leader == leads && current.term == term {
                    return false;
                }
                *current = Leadership { am_leader: leads, term, since: leads.then(Instant::now) };
                true
            });
            if metrics.changed().await.is_err() {
                break;
            }
        }
        leader_sender.send_replace(None);
        sender.send_replace(Leadership::default());
    });
    Followed { leadership, leader, task }
}

fn address_of_leader(metrics: &openraft::metrics::RaftServerMetrics<TypeConfig>) -> Option<LeaderAddress> {
    let id = metrics.current_leader?;
    let member = metrics.membership_config.membership().get_node(&id)?;
    Some(LeaderAddress { id, name: member.name.clone(), address: member.address.clone() })
}
