//! One session of a data node: what comes up, what goes down.
//!
//! Invariants: Welcome goes first; then the whole state, or the commits above what the node says it has; then every commit that
//! nodes see, in log order, until a gap, which ends the session. A renewal is answered only by [`Manager::renew`]; while one
//! is being answered the newest of those that arrive waits. Nothing that a node sends makes the session hold more than a
//! bounded amount of memory.

use std::collections::VecDeque;

use futures::future::{BoxFuture, FutureExt as _};
use holdfast_proto::{
    node::{FromNode, Inspect, LeaseGrant, Renew, ToNode, from_node, to_node},
    state as records,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Duration, sleep},
};
use tonic::{Status, Streaming};

use super::{parts, registry::Registry};
use crate::{
    api::status,
    lease::{
        Manager,
        manager::{RenewError, unix_ms},
        table::NotGranted,
    },
    raft::{Commits, CommitsEnd, Handle, WriteError},
    state::{Body, Command, limits},
};

/// Messages that wait to be sent; beyond it commits stay with Raft until some are gone.
const OUTBOX_MAX: usize = 256;
/// Pause before a report that was not confirmed is proposed again.
const REPORT_PAUSE: Duration = Duration::from_millis(100);

/// Parts of a session once its node has joined.
pub(super) struct Session {
    pub(super) raft: Handle,
    pub(super) leases: Manager,
    pub(super) node: records::Node,
    pub(super) commits: Commits,
    /// Welcome, and the snapshot if there is one.
    pub(super) outbox: VecDeque<ToNode>,
    pub(super) inbound: Streaming<FromNode>,
    pub(super) outbound: mpsc::Sender<Result<ToNode, Status>>,
    pub(super) superseded: oneshot::Receiver<()>,
    /// What people ask the node.
    pub(super) questions: mpsc::Receiver<Inspect>,
    pub(super) registry: Registry,
    /// Term in which the node joined.
    pub(super) term: u64,
    /// The node, for the audit.
    pub(super) caller: records::Caller,
}

impl Session {
    /// Runs the session to its end, and tells the node why it ended.
    pub(super) async fn run(mut self) {
        let name = self.node.name.clone();
        let outbound = self.outbound.clone();
        let end = self.follow().await;
        tracing::info!(node = %name, reason = %end.message(), "session ended");
        // The node may be gone or not reading: its session ends all the same.
        let _ = outbound.try_send(Err(end));
    }

    async fn follow(&mut self) -> Status {
        let mut leadership = self.raft.leadership();
        let mut renewing: Option<BoxFuture<'static, Result<LeaseGrant, RenewError>>> = None;
        let mut next_renewal: Option<Renew> = None;
        let mut reporting: Option<BoxFuture<'static, Result<(), Body>>> = None;
        let mut reports: VecDeque<Body> = VecDeque::new();
        loop {
            {
                let leads = *leadership.borrow_and_update();
                if !leads.am_leader || leads.term != self.term {
                    return status::not_leading(self.raft.leader().as_ref());
                }
            }
            if renewing.is_none()
                && let Some(renew) = next_renewal.take()
            {
                renewing = Some(self.renew(renew));
            }
            if reporting.is_none()
                && let Some(body) = reports.pop_front()
            {
                reporting = Some(report(self.raft.clone(), self.caller.clone(), body));
            }
            tokio::select! {
                biased;
                _ = &mut self.superseded => {
                    return Status::aborted(format!("a newer session of node {} has begun", self.node.name));
                }
                changed = leadership.changed() => if changed.is_err() {
                    return Status::unavailable("this controller stops");
                },
                message = self.inbound.message() => match message {
                    Err(status) => return status,
                    Ok(None) => return Status::cancelled("the node has ended the session"),
                    Ok(Some(message)) => if let Err(status) = self.take(message, &mut next_renewal, &mut reports) {
                        return status;
                    },
                },
                result = completion(&mut renewing) => {
                    renewing = None;
                    match self.renewed(result) {
                        Ok(grant) => self.outbox.extend(grant),
                        Err(status) => return status,
                    }
                }
                result = completion(&mut reporting) => {
                    reporting = None;
                    if let Err(again) = result {
                        reports.push_front(again);
                    }
                }
                Some(ask) = self.questions.recv(), if self.outbox.len() < OUTBOX_MAX => {
                    self.outbox.push_back(ToNode { message: Some(to_node::Message::Inspect(ask)) });
                }
                permit = self.outbound.reserve(), if !self.outbox.is_empty() => match permit {
                    Err(_) => return Status::cancelled("the node has ended the session"),
                    Ok(permit) => if let Some(message) = self.outbox.pop_front() {
                        permit.send(Ok(message));
                    },
                },
                commit = self.commits.next(), if self.outbox.len() < OUTBOX_MAX => match commit {
                    Ok(commit) => self.outbox.extend(parts::visible(&commit).map(commit_message)),
                    Err(CommitsEnd::Gap) => {
                        return Status::aborted(format!("node {} fell behind; begin again", self.node.name));
                    }
                    Err(CommitsEnd::Stopped) => return Status::unavailable("this controller stops"),
                },
            }
        }
    }

    fn take(
        &self,
        message: FromNode,
        next_renewal: &mut Option<Renew>,
        reports: &mut VecDeque<Body>,
    ) -> Result<(), Status> {
        let (number, incarnation) = (self.node.number, self.node.incarnation);
        match message.message {
            Some(from_node::Message::Renew(renew)) => {
                self.leases.applied(number, incarnation, renew.applied_index);
                *next_renewal = Some(renew);
            }
            Some(from_node::Message::Applied(applied)) => {
                self.leases.applied(number, incarnation, applied.applied_index);
            }
            Some(from_node::Message::Pools(report)) => {
                // Only the newest counts.
                reports.retain(|body| !matches!(body, Body::ReportPools(_)));
                let known =
                    self.raft.read(|state| state.node(number).is_some_and(|n| n.pools == report.pools));
                if !known {
                    let pools = report.pools;
                    reports.push_back(Body::ReportPools(records::ReportPools { number, incarnation, pools }));
                }
            }
            Some(from_node::Message::ReplicaRemoved(removed)) => {
                let volume_id = removed.volume_id;
                reports.push_back(Body::RemoveReplica(records::RemoveReplica { volume_id, number }));
            }
            Some(from_node::Message::Making(report)) => {
                let step = report.step().into();
                let (volume_id, message) = (report.volume_id, report.message);
                let step = records::ReportMaking { volume_id, number, incarnation, step, message };
                reports.push_back(Body::ReportMaking(step));
            }
            Some(from_node::Message::Replicas(report)) => self.leases.note(number, report),
            Some(from_node::Message::Inspection(inspection)) => self.registry.answered(number, inspection),
            Some(from_node::Message::Hello(_)) => {
                return Err(Status::invalid_argument("hello: only the first message of a session is one"));
            }
            None => {
                return Err(Status::invalid_argument("a message of a kind that this version does not know"));
            }
        }
        if reports.len() > limits::VOLUMES_MAX {
            return Err(Status::resource_exhausted("too many reports wait to be committed"));
        }
        Ok(())
    }

    fn renew(&self, renew: Renew) -> BoxFuture<'static, Result<LeaseGrant, RenewError>> {
        let (leases, number, incarnation) = (self.leases.clone(), self.node.number, self.node.incarnation);
        async move { leases.renew(number, incarnation, &renew).await }.boxed()
    }

    /// What a renewal's outcome means to the session: a grant to send, nothing, or its end.
    fn renewed(&self, result: Result<LeaseGrant, RenewError>) -> Result<Option<ToNode>, Status> {
        match result {
            Ok(grant) => Ok(Some(ToNode { message: Some(to_node::Message::Lease(grant)) })),
            Err(RenewError::Leadership(error)) => Err(status::not_confirmed(&error)),
            Err(RenewError::NotGranted(NotGranted::StaleIncarnation)) => {
                Err(Status::aborted(format!("a newer process of node {} has joined", self.node.name)))
            }
            Err(RenewError::NotGranted(NotGranted::Removed)) => {
                Err(Status::aborted(format!("node {} is removed from the cluster", self.node.name)))
            }
            // Its lease runs out unless it recovers; fencing must not wait for it.
            Err(RenewError::NotGranted(reason)) => {
                tracing::warn!(node = %self.node.name, %reason, "lease not renewed");
                Ok(None)
            }
        }
    }
}

/// The result of what is under way; never, while nothing is.
async fn completion<T>(under_way: &mut Option<BoxFuture<'static, T>>) -> T {
    match under_way {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

fn commit_message(commit: records::Commit) -> ToNode {
    ToNode { message: Some(to_node::Message::Commit(commit)) }
}

/// Proposes what a node reports. Gives it back, after a pause, when it is not known to be decided.
fn report(raft: Handle, caller: records::Caller, body: Body) -> BoxFuture<'static, Result<(), Body>> {
    async move {
        match raft.write(&Command::new(unix_ms(), body.clone()).by(caller)).await {
            Ok(written) => {
                if let Err(refusal) = written.response {
                    tracing::warn!(%refusal, "a node's report was refused");
                }
                Ok(())
            }
            Err(error) => {
                if !matches!(error, WriteError::NotLeader { .. }) {
                    tracing::warn!(%error, "a node's report is not committed yet");
                }
                sleep(REPORT_PAUSE).await;
                Err(body)
            }
        }
    }
    .boxed()
}
