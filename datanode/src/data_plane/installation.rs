//! One view on its way to every worker.
//!
//! Invariant: the agent hears of an index exactly once, from the last worker that has applied it; since workers apply in
//! order, all earlier ones are then applied too.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::agent;
use crate::agent::Install;

/// The view and the workers that have not applied it.
pub(crate) struct Installation {
    pub(crate) install: Install,
    missing: AtomicUsize,
    agent: agent::Handle,
}

impl Installation {
    /// For so many workers.
    pub(crate) fn new(install: Install, workers: usize, agent: agent::Handle) -> Installation {
        Installation { install, missing: AtomicUsize::new(workers), agent }
    }

    /// One worker has applied it.
    pub(crate) fn applied(&self) {
        if self.missing.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.agent.installed(self.install.view.index);
        }
    }
}
