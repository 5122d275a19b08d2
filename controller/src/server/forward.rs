//! Passing management calls on to the leader, unread.
//!
//! Invariants
//! * A call is passed on once; a member that gets a passed-on call and does not lead refuses it, with nothing done. Only members
//!   pass calls on: one that was removed speaks for nobody any more.
//! * A writing call whose connection broke is answered DEADLINE_EXCEEDED (outcome not known), never UNAVAILABLE
//!   (nothing was changed), unless it never left.

use std::{collections::HashMap, error::Error, sync::Arc, time::Duration};

use holdfast_pki::Identity;
use http::{Request, Response, Uri};
use parking_lot::Mutex;
use tonic::{Status, body::Body, transport::Channel};
use tower::{Service as _, ServiceExt as _};

use super::access::Admitted;
use crate::raft::{Handle, LeaderAddress, Member, connect};

/// How long a call waits for a leader to be elected before it is answered UNAVAILABLE.
const LEADER_WAIT: Duration = Duration::from_secs(3);
/// How long a call that was passed on here waits for this member to see itself elected.
const ELECTED_WAIT: Duration = Duration::from_millis(300);

/// Knows the leader and the connections to the members.
pub(super) struct Forwarder {
    handle: Handle,
    identity: Arc<Identity>,
    channels: Mutex<HashMap<(String, String), Channel>>,
}

impl Forwarder {
    pub(super) fn new(handle: Handle, identity: Arc<Identity>) -> Self {
        Self { handle, identity, channels: Mutex::default() }
    }

    /// Whether this controller is a member of the cluster.
    pub(super) fn is_member(&self) -> bool {
        self.handle.is_member()
    }

    /// Where a management call goes: `None` = it is carried out here.
    pub(super) async fn destination(&self, call: &Admitted) -> Result<Option<LeaderAddress>, Status> {
        let own = self.handle.id();
        if let Some(speaker) = &call.forwarded_by {
            // Whoever passed it on heard of the election from this member's first entry, and may be quicker than this member's
            // own books.
            let mut leader = self.handle.watch_leader();
            let elected = leader.wait_for(|leader| leader.as_ref().is_some_and(|leader| leader.id == own));
            if !matches!(tokio::time::timeout(ELECTED_WAIT, elected).await, Ok(Ok(_))) {
                return Err(Status::unavailable("leadership is changing; nothing was changed, ask again"));
            }
            if !self.handle.has_member(speaker) {
                return Err(Status::permission_denied(format!(
                    "controller {speaker} is not a member of the cluster: it may not speak for others"
                )));
            }
            return Ok(None);
        }
        match self.handle.wait_leader(LEADER_WAIT).await {
            Some(leader) if leader.id == own => Ok(None),
            Some(leader) => Ok(Some(leader)),
            None => {
                Err(Status::unavailable("the controllers have no leader (no quorum); nothing was changed"))
            }
        }
    }

    fn channel(&self, leader: &LeaderAddress) -> Result<Channel, Status> {
        let key = (leader.name.clone(), leader.address.clone());
        let mut channels = self.channels.lock();
        if let Some(channel) = channels.get(&key) {
            return Ok(channel.clone());
        }
        let member = Member::new(leader.name.as_str(), leader.address.as_str());
        let channel =
            connect(&self.identity, &member).map_err(|error| Status::unavailable(error.to_string()))?;
        channels.insert(key, channel.clone());
        Ok(channel)
    }

    /// Passes the call on and its answer back, both unread.
    pub(super) async fn pass_on(
        &self,
        leader: LeaderAddress,
        mut request: Request<Body>,
        writes: bool,
    ) -> Response<Body> {
        let mut channel = match self.channel(&leader) {
            Ok(channel) => channel,
            Err(status) => return status.into_http(),
        };
        // The channel adds scheme and authority of its own.
        let path = request.uri().path_and_query().cloned();
        let mut parts = http::uri::Parts::default();
        parts.path_and_query = path;
        *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
        holdfast_telemetry::propagation::inject(request.headers_mut());
        let answered = match channel.ready().await {
            Ok(ready) => ready.call(request).await,
            Err(error) => Err(error),
        };
        answered.unwrap_or_else(|error| failed(&leader, &error, writes).into_http())
    }
}

fn failed(leader: &LeaderAddress, error: &(dyn Error + 'static), writes: bool) -> Status {
    let mut cause = Some(error);
    let mut never_left = false;
    while let Some(current) = cause {
        never_left |= current.is::<tonic::ConnectError>();
        cause = current.source();
    }
    let whom = format!("the leader {} at {}", leader.name, leader.address);
    if never_left {
        return Status::unavailable(format!("{whom} cannot be reached; nothing was changed, ask again"));
    }
    if writes {
        let text = format!(
            "the connection to {whom} broke; the call may have been carried out: ask again with the same request_id"
        );
        return Status::deadline_exceeded(text);
    }
    Status::unavailable(format!("the connection to {whom} broke; ask again"))
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] Box<dyn Error + Send + Sync>);

    #[test]
    fn only_what_never_left_is_said_to_have_changed_nothing() {
        let leader = LeaderAddress { id: 1, name: "ctl-1".to_owned(), address: "127.0.0.1:1".to_owned() };
        let refused = Outer(Box::new(tonic::ConnectError("refused".into())));
        let broken = Outer("reset".into());
        assert_eq!(failed(&leader, &refused, true).code(), Code::Unavailable);
        assert_eq!(failed(&leader, &broken, true).code(), Code::DeadlineExceeded);
        assert_eq!(failed(&leader, &broken, false).code(), Code::Unavailable);
    }
}
