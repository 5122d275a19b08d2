//! The newest session of each data node.
//!
//! Invariant: a node has one session; a newer one ends the older.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// Sessions by node number.
#[derive(Clone, Debug, Default)]
pub(super) struct Registry {
    sessions: Arc<Mutex<HashMap<u32, oneshot::Sender<()>>>>,
}

impl Registry {
    /// Begins a session of the node. The one before is told, and so is this one when the next begins: its receiver completes.
    pub(super) fn begin(&self, node: u32) -> oneshot::Receiver<()> {
        let (ended, receiver) = oneshot::channel();
        // Dropping the sender tells as well as sending.
        self.sessions.lock().insert(node, ended);
        receiver
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn newer_session_ends_the_older_of_the_same_node_only() {
        let registry = Registry::default();
        let first = registry.begin(1);
        let mut other = registry.begin(2);
        let mut second = registry.begin(1);
        assert!(first.await.is_err());
        assert!(other.try_recv() == Err(oneshot::error::TryRecvError::Empty));
        assert!(second.try_recv() == Err(oneshot::error::TryRecvError::Empty));
    }
}
