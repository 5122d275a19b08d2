//! The applied state in memory, with its index, for readers.
//!
//! Invariant: state and index change together under one lock; a commit reaches the ring only after it is readable.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use holdfast_proto::{state::Commit, v1};
use parking_lot::RwLock;
use tokio::sync::watch;

use super::{
    audit_log,
    commits::{CommitRing, Commits},
    events,
    store::Store,
    types::StoreId,
};
use crate::state::StateMachine;

struct Current {
    machine: StateMachine,
    index: u64,
}

/// Shared by the state machine's store, which writes, and all handles, which read.
pub(super) struct Shared {
    current: RwLock<Current>,
    ring: Arc<CommitRing>,
    applied: watch::Sender<u64>,
    store: Arc<Store>,
    retired_at: AtomicU64,
}

impl Shared {
    pub(super) fn new(machine: StateMachine, index: u64, store: Arc<Store>) -> io::Result<Self> {
        Ok(Self {
            retired_at: AtomicU64::new(store.retired()?),
            current: RwLock::new(Current { machine, index }),
            ring: Arc::new(CommitRing::new(index)),
            applied: watch::Sender::new(index),
            store,
        })
    }

    /// Id of the store.
    pub(super) fn store_id(&self) -> StoreId {
        self.store.id()
    }

    /// Version of the membership by which this member was removed last; 0 = never.
    pub(super) fn retired_at(&self) -> u64 {
        self.retired_at.load(Ordering::Acquire)
    }

    /// Remembers that this member was removed by the membership of this version.
    pub(super) fn retire(&self, version: u64) -> io::Result<()> {
        self.store.save_retired(version)?;
        self.retired_at.fetch_max(version, Ordering::AcqRel);
        Ok(())
    }

    pub(super) fn read<R>(&self, look: impl FnOnce(&StateMachine, u64) -> R) -> R {
        let current = self.current.read();
        look(&current.machine, current.index)
    }

    pub(super) fn read_and_follow<R>(&self, look: impl FnOnce(&StateMachine, u64) -> R) -> (R, Commits) {
        let current = self.current.read();
        let seen = look(&current.machine, current.index);
        // What is readable but not yet in the ring has an index that this follower skips.
        (seen, self.ring.follow(current.index))
    }

    pub(super) fn follow_after(&self, after: u64) -> Option<Commits> {
        let current = self.current.read();
        if after > current.index {
            return None;
        }
        if after >= current.machine.head() {
            // Nothing that nodes see has come since, whatever is kept of it.
            return Some(self.ring.follow(current.index));
        }
        self.ring.holds(after).then(|| self.ring.follow(after))
    }

    pub(super) fn applied_index(&self) -> u64 {
        self.current.read().index
    }

    pub(super) fn watch_applied(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    pub(super) fn events_after(&self, after: u64, limit: usize) -> io::Result<(Vec<v1::Event>, u64)> {
        let kept = events::after(&self.store, after, limit)?;
        Ok((kept.events, kept.dropped))
    }

    pub(super) fn audit_after(
        &self,
        after: (u64, u32),
        limit: usize,
        wanted: impl Fn(&v1::AuditRecord) -> bool,
    ) -> io::Result<(Vec<v1::AuditRecord>, u64)> {
        audit_log::after(&self.store, after, limit, wanted)
    }

    /// Changes the state; `change` returns the index that it stands for afterwards.
    pub(super) fn update<R>(
        &self,
        change: impl FnOnce(&mut StateMachine) -> io::Result<(R, u64)>,
    ) -> io::Result<R> {
        let mut current = self.current.write();
        let (done, index) = change(&mut current.machine)?;
        current.index = index;
        Ok(done)
    }

    /// Makes known what [`Shared::update`] did, once it is on its way to disk.
    pub(super) fn announce(&self, commits: Vec<Commit>, index: u64) {
        self.ring.publish(commits);
        self.applied.send_replace(index);
    }

    /// Replaces the whole state by a snapshot's.
    pub(super) fn replace(&self, machine: StateMachine, index: u64) {
        let mut current = self.current.write();
        *current = Current { machine, index };
        // Under the lock, so that no reader follows from the new index before the ring knows it.
        self.ring.restart(index);
        drop(current);
        self.applied.send_replace(index);
    }
}
