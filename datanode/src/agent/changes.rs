//! Changes of a volume's configuration that its owner asks for: asked again until it is known what became of them.
//!
//! Invariants: a change is asked for by compare-and-set on the epoch, so asking twice does no harm; "refused" is said only
//! while no attempt of unknown fate may still be carried out; what has been committed is believed when this node's own view
//! shows it, never before.

use std::time::Duration;

use holdfast_proto::{
    node::{
        ChangeConfigurationRequest, ChangeOutcome, change_configuration_request::Change,
        node_agent_client::NodeAgentClient,
    },
    state,
};
use tokio::time;

use super::{
    handle::{ChangeConfiguration, ChangeResult, Reply, WantedChange},
    proposals::{Attempt, Road, judge},
};
use crate::view::parse;

/// One attempt.
const ATTEMPT_MAX: Duration = Duration::from_secs(5);
/// Pause before the next attempt.
const PAUSE: Duration = Duration::from_millis(50);

/// Carries a change to its end.
pub(super) async fn change_configuration(
    mut road: Road,
    wanted: ChangeConfiguration,
    reply: Reply<ChangeResult>,
) {
    let result = ask(&mut road, &wanted).await;
    reply(result);
}

async fn ask(road: &mut Road, wanted: &ChangeConfiguration) -> ChangeResult {
    let request = request(wanted);
    let mut maybe_sent = false;
    loop {
        if !road.is_owned_in(wanted) {
            return ChangeResult::Settled;
        }
        let channel = road.leader.borrow_and_update().clone();
        let attempt = match channel {
            None => Attempt::Unsent,
            Some(channel) => {
                let mut client = NodeAgentClient::new(channel);
                match time::timeout(ATTEMPT_MAX, client.change_configuration(request.clone())).await {
                    Ok(Ok(response)) => Attempt::Known(response.into_inner()),
                    Ok(Err(status)) => judge(&status),
                    Err(_) => Attempt::Unknown,
                }
            }
        };
        match attempt {
            Attempt::Known(response) => match response.outcome() {
                ChangeOutcome::RefusedRule if !maybe_sent => return ChangeResult::Refused(response.reason),
                // The view will say; until then the question is asked again, and does no harm.
                ChangeOutcome::Committed
                | ChangeOutcome::RefusedEpoch
                | ChangeOutcome::RefusedRule
                | ChangeOutcome::RefusedLease
                | ChangeOutcome::Unspecified => {}
            },
            Attempt::Refused(code, reason) | Attempt::Settled(code, reason) => {
                tracing::debug!(volume = %wanted.volume, ?code, reason, "a change of the configuration has to wait");
            }
            Attempt::Unsent => {}
            Attempt::Unknown => maybe_sent = true,
        }
        // A new session wakes us at once.
        let _ = time::timeout(PAUSE, road.leader.changed()).await;
    }
}

impl Road {
    /// True while this node's own view shows the epoch that the change starts from, under this process.
    fn is_owned_in(&self, wanted: &ChangeConfiguration) -> bool {
        let view = self.shared.view.load();
        view.as_ref().is_some_and(|view| {
            let volume = view.owned_volume(wanted.volume);
            view.my_incarnation == wanted.incarnation
                && volume.is_some_and(|volume| volume.config.epoch() <= wanted.expected)
        })
    }
}

fn request(wanted: &ChangeConfiguration) -> ChangeConfigurationRequest {
    let change = match wanted.change {
        WantedChange::Evict(node) => Change::Evict(state::EvictReplica {
            node: u32::from(node.get()),
            reason: "it is silent, failed, or comes from another boot".to_owned(),
        }),
        WantedChange::Admit(node, boot) => {
            Change::Admit(state::AdmitReplica { node: u32::from(node.get()), boot_id: boot.0.to_vec() })
        }
        WantedChange::HandOver { to, leave } => Change::HandOver(state::HandOver {
            to: to.map_or(0, |node| u32::from(node.get())),
            leave,
            reason: if leave { "the owner's replica failed" } else { "it was asked to" }.to_owned(),
        }),
    };
    ChangeConfigurationRequest {
        volume_id: wanted.volume.0.to_vec(),
        expected: Some(parse::epoch_record(wanted.expected)),
        owner_incarnation: wanted.incarnation.0,
        change: Some(change),
    }
}
