//! The shell round the lease table: renewals, barriers, and the leader's task that proposes what runs out.
//!
//! Invariants: the table's lock is taken before the state is read, so that a grant carries an index at least as high as that of
//! any barrier that was found passed before it; no lock is held over an await.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use futures::{StreamExt as _, stream};
use holdfast_proto::{
    node::{LeaseGrant, ReplicaReport},
    state as records,
};
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Duration, sleep},
};

use super::{
    LEASE_MS, Millis, TICK_MS,
    memory::Memory,
    plan::proposals,
    reports::Reports,
    table::{Barrier, LeaseTable, NotGranted, Renewal},
};
use crate::{
    raft::{Handle, Leadership, ReadError},
    state::{Body, Command},
};

/// Proposals that are under way at once.
const PROPOSALS_IN_FLIGHT: usize = 32;
/// Pause after a refused proposal, in milliseconds.
const REFUSED_PAUSE_MS: u64 = 250;

/// The leader changed while a barrier was waited for: whether it has passed is not known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the leader changed before every port was known to have installed the change")]
pub struct BarrierLost;

/// Why a renewal was not answered.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// The table does not grant it.
    #[error(transparent)]
    NotGranted(#[from] NotGranted),
    /// Leadership was not confirmed.
    #[error(transparent)]
    Leadership(#[from] ReadError),
}

/// Lease table and clock of this member; to be cloned freely.
#[derive(Clone)]
pub struct Manager {
    inner: Arc<Inner>,
}

/// How far barriers have passed, for those who wait for one.
#[derive(Clone, Debug, Default)]
struct Progress {
    /// Moves when everything has to be looked at anew: another leader, another lease term.
    turn: u64,
    /// Every barrier up to this index has passed in this turn.
    passed: u64,
    /// Nodes that hold the others back. As long as one of them has not moved, reports of others need no look at anything.
    holding: BTreeSet<u32>,
}

struct Inner {
    raft: Handle,
    origin: Instant,
    table: Mutex<LeaseTable>,
    /// What nodes say of their replicas.
    reports: Mutex<Reports>,
    /// How far barriers have passed. Only changed under the lock of the table.
    progress: watch::Sender<Progress>,
    /// Moves whenever something may have to be proposed before the next tick.
    due: watch::Sender<u64>,
}

impl Manager {
    /// For this member. Nothing is granted before [`Manager::run`] runs.
    pub fn new(raft: Handle) -> Manager {
        Manager {
            inner: Arc::new(Inner {
                raft,
                origin: Instant::now(),
                table: Mutex::new(LeaseTable::new()),
                reports: Mutex::new(Reports::default()),
                progress: watch::Sender::new(Progress::default()),
                due: watch::Sender::new(0),
            }),
        }
    }

    /// Drives the leases for as long as this member runs. Ends when Raft has stopped.
    pub async fn run(self) {
        let mut leadership = self.inner.raft.leadership();
        loop {
            let current = *leadership.borrow_and_update();
            self.follow(current);
            let led = async {
                match current.since {
                    Some(_) if current.am_leader => self.lead(current.term).await,
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = leadership.changed() => if changed.is_err() { break },
                () = led => {}
            }
        }
        let mut table = self.inner.table.lock();
        table.end();
        self.turn();
    }

    /// Whoever waits looks again. Under the lock of the table.
    fn turn(&self) {
        self.inner.progress.send_modify(|progress| {
            *progress = Progress { turn: progress.turn.wrapping_add(1), ..Progress::default() };
        });
    }

    fn follow(&self, current: Leadership) {
        let mut table = self.inner.table.lock();
        match current.since {
            Some(since) if current.am_leader => {
                // Rounded up: never earlier than the election.
                let elected_at = since.saturating_duration_since(self.inner.origin).as_millis() as u64 + 1;
                table.begin(current.term, Millis(elected_at));
            }
            _ => table.end(),
        }
        self.turn();
    }

    /// Leads in `term`: puts its lease term in force, then keeps the state in line with the leases. Ends only when cancelled.
    async fn lead(&self, term: u64) {
        let raft = &self.inner.raft;
        let begin = Body::BeginLeaseTerm(records::BeginLeaseTerm { term });
        // Refused until the cluster is initialised; lost when leadership is, which cancels this.
        while raft.read(|state| state.lease_term()) != term {
            if let Err(error) =
                raft.write(&Command::new(unix_ms(), begin.clone()).by(raft.own_caller())).await
            {
                tracing::debug!(%error, term, "lease term not in force yet");
            }
            if raft.read(|state| state.lease_term()) != term {
                sleep(Duration::from_millis(TICK_MS)).await;
            }
        }
        tracing::info!(term, "leases are granted here");
        let mut woken = self.inner.due.subscribe();
        // Barriers may be waiting for the term to be in force.
        {
            let _table = self.inner.table.lock();
            self.turn();
        }
        let mut memory = Memory::default();
        loop {
            woken.borrow_and_update();
            let due = {
                let table = self.inner.table.lock();
                let now = self.now();
                let reports = self.inner.reports.lock();
                raft.read(|state| proposals(state, &table, &reports, &mut memory, now))
            };
            let refused = &AtomicBool::new(false);
            stream::iter(due)
                .for_each_concurrent(PROPOSALS_IN_FLIGHT, |body| async move {
                    let command = Command::new(unix_ms(), body.clone()).by(raft.own_caller());
                    match raft.write(&command).await {
                        Ok(written) => {
                            if let Err(refusal) = written.response {
                                refused.store(true, Ordering::Relaxed);
                                tracing::debug!(%refusal, ?body, "came too late");
                            }
                        }
                        Err(error) => tracing::debug!(%error, ?body, "not confirmed; decided again"),
                    }
                })
                .await;
            if refused.load(Ordering::Relaxed) {
                // What is refused again and again must not fill the log.
                sleep(Duration::from_millis(REFUSED_PAUSE_MS)).await;
            }
            tokio::select! {
                _ = woken.changed() => {}
                () = sleep(Duration::from_millis(TICK_MS)) => {}
            }
        }
    }

    /// Answers a renewal that has just arrived.
    ///
    /// # Errors
    /// [`RenewError`]; the node's lease then runs out.
    pub async fn renew(
        &self,
        node: u32,
        incarnation: u64,
        renew: &holdfast_proto::node::Renew,
    ) -> Result<LeaseGrant, RenewError> {
        self.applied(node, incarnation, renew.applied_index);
        // Begun after the renewal arrived.
        self.inner.raft.ensure_linearizable().await?;
        self.until_in_force().await;
        let granted = {
            let mut table = self.inner.table.lock();
            let (head, in_force, is_known) =
                self.inner.raft.read(|state| (state.head(), state.lease_term(), state.node(node).is_some()));
            if !is_known {
                return Err(NotGranted::Removed.into());
            }
            if table.term() != Some(in_force) {
                return Err(NotGranted::NotLeading.into());
            }
            let renewal =
                Renewal { node, incarnation, data_path_stalled_ms: renew.data_path_stalled_ms, head };
            let first = !table.is_leased(node, incarnation, self.now());
            table.grant(renewal, self.now_rounded_up())?;
            (head, first)
        };
        let (applied_index, first) = granted;
        if first {
            // NodeLive, ownership.
            bump(&self.inner.due);
        }
        Ok(LeaseGrant { sequence: renew.sequence, lease_ms: LEASE_MS, applied_index })
    }

    /// The lease term to name in a change that this process of the node asks for; `None` unless it holds a lease that was granted
    /// here, in the term that is in force.
    pub fn term_of(&self, node: u32, incarnation: u64) -> Option<u64> {
        let table = self.inner.table.lock();
        let in_force = self.inner.raft.read(|state| state.lease_term());
        let term = table.term().filter(|term| *term == in_force)?;
        table.is_leased(node, incarnation, self.now()).then_some(term)
    }

    /// The lease term in force, if no process of any of `nodes` can hold a lease.
    ///
    /// # Errors
    /// The number of one that can, and for how many milliseconds at most as far as known; 0: this member grants none itself.
    pub fn all_expired(&self, nodes: &[u32]) -> Result<u64, (u32, u64)> {
        let table = self.inner.table.lock();
        let in_force = self.inner.raft.read(|state| state.lease_term());
        let term = table.term().filter(|term| *term == in_force).ok_or((0, 0))?;
        let now = self.now();
        match nodes.iter().find(|node| !table.is_expired(**node, now)) {
            None => Ok(term),
            Some(node) => Err((*node, u64::from(LEASE_MS))),
        }
    }

    /// A session of the node begins: it says anew how its replicas are.
    pub fn begin_reports(&self, node: u32) {
        self.inner.reports.lock().begin(node);
    }

    /// A node says how replicas are.
    pub fn note(&self, node: u32, report: ReplicaReport) {
        let mut reports = self.inner.reports.lock();
        self.inner.raft.read(|state| {
            let exists = |id, node| {
                let volume = state.volume(id);
                volume.is_some_and(|v| v.held().any(|m| u32::from(m.node.get()) == node))
            };
            reports.prune(self.now(), exists);
            reports.note(node, report.replicas, exists);
        });
        drop(reports);
        bump(&self.inner.due);
    }

    /// Looks at what nodes said of replicas.
    pub fn read_reports<R>(&self, look: impl FnOnce(&Reports) -> R) -> R {
        look(&self.inner.reports.lock())
    }

    /// From now on the node is granted nothing, so that it can be removed. Gives the lease term for the proposal.
    ///
    /// # Errors
    /// Why not: it may hold a lease, or this member grants none itself.
    pub fn begin_removal(&self, node: u32) -> Result<u64, String> {
        let mut table = self.inner.table.lock();
        let in_force = self.inner.raft.read(|state| state.lease_term());
        let term = table.term().filter(|term| *term == in_force);
        let term =
            term.ok_or_else(|| "this leader is not in charge of the leases yet; ask again".to_owned())?;
        let now = self.now();
        table.begin_removal(node, now).map(|()| term).map_err(|until| {
            let left_ms = until.since(now).max(1);
            format!("it may still hold a lease, for {left_ms} ms; stop its process for good and ask again")
        })
    }

    /// The node is not removed after all.
    pub fn keep(&self, node: u32) {
        self.inner.table.lock().keep(node);
    }

    /// Waits, for a part of a lease at most, until this leader's lease term is in force: right after an election that is a
    /// matter of milliseconds, and a renewal that comes too early would cost its node a whole interval.
    async fn until_in_force(&self) {
        let mut changed = self.inner.progress.subscribe();
        let in_force = async {
            loop {
                changed.borrow_and_update();
                let led = self.inner.table.lock().term();
                if led == Some(self.inner.raft.read(|state| state.lease_term()))
                    || changed.changed().await.is_err()
                {
                    return;
                }
            }
        };
        // Whether it is in force now is asked under the lock, when the lease is granted.
        let _ = tokio::time::timeout(Duration::from_millis(u64::from(LEASE_MS) / 4), in_force).await;
    }

    /// A process of the node has joined.
    pub fn joined(&self, node: u32, incarnation: u64) {
        self.inner.table.lock().joined(node, incarnation);
    }

    /// A node reports what it has installed on all of its ports.
    pub fn applied(&self, node: u32, incarnation: u64, index: u64) {
        let mut table = self.inner.table.lock();
        let before = table.applied_index(node);
        table.applied(node, incarnation, index);
        if table.applied_index(node) == before {
            return;
        }
        let mut was_last = false;
        self.inner.progress.send_if_modified(|progress| {
            was_last = progress.holding.remove(&node) && progress.holding.is_empty();
            false
        });
        if was_last {
            self.look(&table);
        }
    }

    /// Finds out how far barriers have passed, and tells those who wait if it is farther. `None` while the lease term in force is
    /// not the one of this leader.
    fn look(&self, table: &LeaseTable) -> Option<u64> {
        let term = table.term()?;
        let now = self.now();
        let (passed, holding) = self.inner.raft.read(|state| {
            let settled = state.lease_term() == term;
            settled.then(|| table.passed(state.head(), state.nodes().map(|node| node.number), now))
        })?;
        self.inner.progress.send_if_modified(|progress| {
            let farther = passed > progress.passed;
            progress.passed = progress.passed.max(passed);
            progress.holding = holding;
            farther
        });
        Some(self.inner.progress.borrow().passed)
    }

    /// Waits until every port that may serve has installed the commit at `index`, or its lease has provably run out. Call
    /// it after that commit, or one after it, was applied here. Bounded by one lease in a steady term.
    ///
    /// # Errors
    /// [`BarrierLost`] when this member stops leading.
    pub async fn pass_barrier(&self, index: u64) -> Result<(), BarrierLost> {
        let mut changed = self.inner.progress.subscribe();
        loop {
            let (turn, wait_ms) = {
                let table = self.inner.table.lock();
                let term = table.term().ok_or(BarrierLost)?;
                // Who holds the others back has to be known from here on.
                if self.look(&table).is_some_and(|passed| passed >= index) {
                    return Ok(());
                }
                let now = self.now();
                let state = self.inner.raft.read(|state| {
                    let settled = state.lease_term() == term;
                    settled.then(|| table.barrier(index, state.nodes().map(|node| node.number), now))
                });
                let wait_ms = match state {
                    Some(Barrier::Passed) => return Ok(()),
                    Some(Barrier::Waiting(until)) => until.since(now).max(1),
                    // This member was elected again and has not noticed yet.
                    None => TICK_MS,
                };
                (changed.borrow_and_update().turn, wait_ms)
            };
            let moved = async {
                loop {
                    changed.changed().await.map_err(|_| BarrierLost)?;
                    let progress = changed.borrow_and_update();
                    if progress.turn != turn || progress.passed >= index {
                        return Ok(progress.turn == turn);
                    }
                }
            };
            tokio::select! {
                moved = moved => if moved? { return Ok(()) },
                () = sleep(Duration::from_millis(wait_ms)) => {}
            }
        }
    }

    /// Milliseconds left of the node's lease as counted here; 0 = none.
    pub fn left_ms(&self, node: u32) -> u32 {
        self.inner.table.lock().left_ms(node, self.now())
    }

    /// Highest index that the node reported as installed; 0 = none heard of.
    pub fn applied_index(&self, node: u32) -> u64 {
        self.inner.table.lock().applied_index(node)
    }

    fn now(&self) -> Millis {
        Millis(self.inner.origin.elapsed().as_millis() as u64)
    }

    fn now_rounded_up(&self) -> Millis {
        Millis(self.now().0 + 1)
    }
}

fn bump(version: &watch::Sender<u64>) {
    version.send_modify(|version| *version = version.wrapping_add(1));
}

/// Wall clock for events, milliseconds since 1970 (UTC).
pub fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
