//! Whether this member leads, since when.
//!
//! Invariant: `since` is never earlier than the election itself, so that waiting a full lease from it waits long enough.

use std::time::Instant;

use openraft::async_runtime::WatchReceiver as _;
use tokio::{sync::watch, task::JoinHandle};

use super::types::Raft;

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

/// Follows Raft until it stops; then says that it does not lead.
pub(super) fn follow(raft: &Raft) -> (watch::Receiver<Leadership>, JoinHandle<()>) {
    let (sender, receiver) = watch::channel(Leadership::default());
    let mut metrics = raft.server_metrics();
    let task = tokio::spawn(async move {
        loop {
            let (leads, term) = {
                let now = metrics.borrow_watched();
                (now.state.is_leader(), now.vote.leader_id.term)
            };
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
        sender.send_replace(Leadership::default());
    });
    (receiver, task)
}
