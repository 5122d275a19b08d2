//! Forced recovery: an operator's decision to go on with one replica, whatever it lacks.
//!
//! Invariants: never while a member of the in-sync set may take the volume by the rules; a new recovery generation begins, so that
//! nothing of the old one is believed any more; every nexus is told (29/01), because acknowledged writes may be gone. That no lease of the
//! old owner can run is the proposer's duty.

use holdfast_proto::state as records;
use holdfast_replica::{
    config::{CacheState, Member},
    ids::NodeNumber,
};
use holdfast_scsi::sense::asc;

use super::{
    Kind, Outcome, Refusal, StateMachine, check_lease_term,
    convert::epoch_of,
    effects::{Audience, Effects},
};

impl StateMachine {
    pub(super) fn force_recovery(
        &mut self,
        command: &records::ForceRecovery,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        check_lease_term(self.lease_term(), command.lease_term)?;
        let volume = self.live_volume(&command.volume)?;
        let asked = epoch_of(command.expected.as_ref());
        let name = self.node_name(command.node);
        let refuse =
            |why: String| Refusal::Precondition(format!("volume {} is not recovered: {why}", volume.name));
        let number = NodeNumber::new(command.node)
            .ok_or_else(|| Refusal::not_found(Kind::Node, &format!("number {}", command.node)))?;
        let process = self.process_of(number).ok_or_else(|| Refusal::not_found(Kind::Node, &name))?;
        if process.incarnation.0 != command.incarnation {
            return Err(Refusal::StaleIncarnation {
                number: command.node,
                asked: command.incarnation,
                current: process.incarnation.0,
            });
        }
        let live = self.nodes.get(&command.node).is_some_and(|node| node.live);
        let (true, Some(boot)) = (live, self.boot_of(number)) else {
            return Err(refuse(format!("node {name} holds no lease")));
        };
        if let Some(able) = self.able_to_serve(volume) {
            let able = self.node_name(u32::from(able.get()));
            return Err(refuse(format!("node {able} has a copy that is in sync and serves it")));
        }
        let stale = |error| volume.refusal(asked, error, |error| format!("volume {}: {error}", volume.name));
        let mut config = volume.config.clone();
        let mut expected = asked;
        if let Some(absent) = volume.absent.iter().find(|m| m.node == number) {
            config = config.add_learner(expected, Member { boot, ..absent.clone() }).map_err(stale)?;
            expected = config.epoch();
        }
        let (config, given_up) = config.force_recovery(expected, process, boot).map_err(stale)?;
        let id = volume.id;
        let lost: Vec<String> = given_up.iter().map(|m| self.node_name(u32::from(m.node.get()))).collect();
        let message = format!(
            "volume {} goes on with the copy of node {name} alone, by decision of an operator; given up: {}",
            volume.name,
            if lost.is_empty() { "nothing".to_owned() } else { lost.join(", ") }
        );
        effects.event("volume.recovered", format!("volume/{}", volume.name), message);
        let Some(volume) = self.volumes.get_mut(&id) else { return Ok(Outcome::Done) };
        volume.absent.retain(|m| m.node != number);
        volume.absent.extend(given_up);
        let outcome = self.give(id, config, CacheState::Kept, "forced recovery", effects);
        effects.unit_attention(id, asc::POWER_ON, Audience::Everyone);
        Ok(outcome)
    }

    /// A live in-sync node that owns the volume, or may by the rules.
    fn able_to_serve(&self, volume: &super::Volume) -> Option<NodeNumber> {
        let expected = volume.config.epoch();
        let members = volume.config.in_sync().iter().map(|m| m.node);
        members.into_iter().find(|node| self.may_take(volume, expected, *node).is_ok())
    }
}
