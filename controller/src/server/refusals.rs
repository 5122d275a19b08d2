//! Calls that were refused before they reached the log, on their way into the audit.
//!
//! Invariants: recording never holds a call up; what waits is bounded in number and text, like calls are one record with a
//! count, and what does not fit is counted; at most one batch of [`REFUSALS_PER_ENTRY_MAX`] is committed per [`PACE`].
//! A member that does not lead hands its refusals to the leader. Those of the last moment before a crash may be lost.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use holdfast_pki::Identity;
use holdfast_proto::{
    raft::members_client::MembersClient,
    state::{Caller as CallerRecord, RecordRefusals, RefusedCall},
};
use http::HeaderMap;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tonic::{Code, Request, Status};

use super::access::Caller;
use crate::{
    api::status::LEADER,
    lease::manager::unix_ms,
    raft::{Handle, Member, connect},
    state::{Body, Command, limits::REFUSALS_PER_ENTRY_MAX},
};

/// Pause between two batches, in which like calls are gathered.
const PACE: Duration = Duration::from_millis(250);
/// Different refusals that wait at most.
const WAITING_MAX: usize = 256;
/// Longest reason kept, in bytes.
const REASON_BYTES_MAX: usize = 512;
/// Time for a batch to be taken.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(2);

/// Says whether a call's command reached the log, where the state machine writes its audit record; in the extensions of every
/// request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Proposed(Arc<AtomicBool>);

impl Proposed {
    /// The call's command is proposed now.
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Default)]
struct Waiting {
    calls: Vec<RefusedCall>,
    lost: u32,
}

/// What waits for the audit; to be cloned freely.
#[derive(Clone, Default)]
pub(super) struct Refusals {
    waiting: Arc<Mutex<Waiting>>,
    some: Arc<Notify>,
}

impl Refusals {
    /// A call of `caller` to `path` was refused.
    pub(super) fn refused(&self, caller: &Caller, path: &str, reason: &str) {
        let caller = CallerRecord { role: caller.role.as_str().to_owned(), name: caller.name.clone() };
        self.add(Some(caller), path, reason);
    }

    /// A call of somebody unknown was refused.
    pub(super) fn refused_stranger(&self, path: &str, reason: &str) {
        self.add(None, path, reason);
    }

    /// What a service answered to an admitted call: a refusal that did not come out of the log is recorded.
    pub(super) fn answered(&self, caller: &Caller, path: &str, proposed: &Proposed, answer: &HeaderMap) {
        let Some(status) = Status::from_header_map(answer) else { return };
        let is_refusal = match status.code() {
            Code::PermissionDenied
            | Code::Unauthenticated
            | Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::ResourceExhausted => true,
            // Another member leads: that is no refusal.
            Code::FailedPrecondition => !answer.contains_key(LEADER),
            _ => false,
        };
        if is_refusal && !proposed.get() {
            self.refused(caller, path, status.message());
        }
    }

    fn add(&self, caller: Option<CallerRecord>, path: &str, reason: &str) {
        let method = path.trim_start_matches('/').trim_start_matches("holdfast.v1.");
        let cut = |text: &str| text.chars().take(REASON_BYTES_MAX / 4).collect::<String>();
        let (method, reason) = (cut(method), cut(reason));
        let mut waiting = self.waiting.lock();
        let like =
            |call: &&mut RefusedCall| call.caller == caller && call.method == method && call.reason == reason;
        if let Some(call) = waiting.calls.iter_mut().find(like) {
            call.times = call.times.saturating_add(1);
        } else if waiting.calls.len() >= WAITING_MAX {
            waiting.lost = waiting.lost.saturating_add(1);
        } else {
            waiting.calls.push(RefusedCall { caller, method, reason, times: 1, time_unix_ms: unix_ms() });
        }
        drop(waiting);
        self.some.notify_one();
    }

    fn take(&self) -> Vec<RefusedCall> {
        let mut waiting = self.waiting.lock();
        let room = waiting.calls.len().min(REFUSALS_PER_ENTRY_MAX - 1);
        let mut batch: Vec<_> = waiting.calls.drain(..room).collect();
        if waiting.lost > 0 {
            batch.push(RefusedCall {
                method: "(different calls, more than could be kept)".to_owned(),
                times: std::mem::take(&mut waiting.lost),
                time_unix_ms: unix_ms(),
                ..Default::default()
            });
        }
        batch
    }

    /// Takes back what was not committed, as far as there is room.
    fn put_back(&self, batch: Vec<RefusedCall>) {
        let mut waiting = self.waiting.lock();
        for call in batch.into_iter().rev() {
            if waiting.calls.len() < WAITING_MAX {
                waiting.calls.insert(0, call);
            } else {
                waiting.lost = waiting.lost.saturating_add(call.times);
            }
        }
    }

    /// Brings what waits into the audit, for as long as this member runs.
    pub(super) async fn run(self, handle: Handle, identity: Arc<Identity>) {
        loop {
            self.some.notified().await;
            loop {
                tokio::time::sleep(PACE).await;
                let batch = self.take();
                if batch.is_empty() {
                    break;
                }
                if let Err(error) = commit(&handle, &identity, RecordRefusals { calls: batch.clone() }).await
                {
                    tracing::debug!(%error, "refused calls are not in the audit yet");
                    self.put_back(batch);
                }
            }
        }
    }
}

/// Commits the batch here, or through the leader. A batch whose outcome is not known may be recorded twice.
async fn commit(handle: &Handle, identity: &Identity, batch: RecordRefusals) -> anyhow::Result<()> {
    let leader = handle.leader().ok_or_else(|| anyhow::anyhow!("no leader is known"))?;
    if leader.id == handle.id() {
        return commit_here(handle, batch).await.map_err(anyhow::Error::from);
    }
    let member = Member::new(leader.name, leader.address);
    let mut client = MembersClient::new(connect(identity, &member)?);
    let mut request = Request::new(batch);
    request.set_timeout(HAND_OVER_TIMEOUT);
    tokio::time::timeout(HAND_OVER_TIMEOUT, client.report_refusals(request)).await??;
    Ok(())
}

/// Commits the batch as the leader.
pub(super) async fn commit_here(
    handle: &Handle,
    batch: RecordRefusals,
) -> Result<(), crate::raft::WriteError> {
    let command = Command::new(unix_ms(), Body::RecordRefusals(batch)).by(handle.own_caller());
    handle.write(&command).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use holdfast_pki::Role;

    use super::*;

    fn eve() -> Caller {
        Caller { role: Role::Viewer, name: "eve".to_owned() }
    }

    #[test]
    fn like_calls_are_one_record_and_different_ones_are_bounded() {
        let refusals = Refusals::default();
        for _ in 0..1000 {
            refusals.refused(&eve(), "/holdfast.v1.VolumeService/CreateVolume", "no");
        }
        let batch = refusals.take();
        assert_eq!((batch.len(), batch[0].times), (1, 1000));
        assert_eq!(batch[0].method, "VolumeService/CreateVolume");
        for n in 0..1000 {
            refusals.refused_stranger(&format!("/x/{n}"), &"r".repeat(10_000));
        }
        let (mut calls, mut times) = (0, 0);
        loop {
            let batch = refusals.take();
            if batch.is_empty() {
                break;
            }
            assert!(batch.len() <= REFUSALS_PER_ENTRY_MAX);
            assert!(Command::new(0, Body::RecordRefusals(RecordRefusals { calls: batch.clone() })).fits());
            calls += batch.len();
            times += batch.iter().map(|call| call.times).sum::<u32>();
        }
        assert_eq!((calls, times), (WAITING_MAX + 1, 1000), "every call is counted");
    }

    #[test]
    fn what_was_not_committed_waits_again_first() {
        let refusals = Refusals::default();
        refusals.refused(&eve(), "/a", "1");
        let batch = refusals.take();
        refusals.refused(&eve(), "/b", "2");
        refusals.put_back(batch);
        assert_eq!(refusals.take().iter().map(|c| c.method.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn only_refusals_that_did_not_come_out_of_the_log_are_recorded() {
        let waits = |status: Status, proposed: bool| {
            let refusals = Refusals::default();
            let flag = Proposed::default();
            if proposed {
                flag.set();
            }
            refusals.answered(&eve(), "/x", &flag, status.into_http::<()>().headers());
            !refusals.take().is_empty()
        };
        assert!(waits(Status::invalid_argument("size"), false));
        assert!(!waits(Status::invalid_argument("size"), true));
        assert!(!waits(Status::unavailable("no leader"), false));
        assert!(waits(Status::failed_precondition("node x has not joined yet"), false));
    }
}
