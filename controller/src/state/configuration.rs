//! Changes of a volume's configuration that its owner asks for: a replica leaves, or has caught up, or the volume goes to
//! another node.
//!
//! Invariants: only the owner's present process is heard, only while it is live, only for the epoch that is, and only through a leader
//! whose leases are in force; a refused change changed nothing. A replica that leaves is remembered as absent.

use holdfast_proto::state::{self as records, change, change_configuration::Change};
use holdfast_replica::{
    config::Owner,
    epoch::Epoch,
    ids::{Incarnation, NodeNumber, VolumeId},
};

use super::{
    Outcome, Refusal, StateMachine, check_lease_term, convert::epoch_of, effects::Effects, names::printable,
};

impl StateMachine {
    pub(super) fn change_configuration(
        &mut self,
        command: &records::ChangeConfiguration,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        check_lease_term(self.lease_term(), command.lease_term)?;
        let volume = self.volume_of(&command.volume_id)?;
        let (id, asked) = (volume.id, epoch_of(command.expected.as_ref()));
        let node = NodeNumber::new(command.proposer)
            .ok_or_else(|| Refusal::invalid("proposer", "is not a node number"))?;
        let proposer = Owner { node, incarnation: Incarnation(command.owner_incarnation) };
        let current = self.nodes.get(&command.proposer).map_or(0, |node| node.incarnation);
        if current != command.owner_incarnation {
            let (number, asked) = (command.proposer, command.owner_incarnation);
            return Err(Refusal::StaleIncarnation { number, asked, current });
        }
        if volume.deleting {
            return Err(Refusal::Precondition(format!("volume {} is being deleted", volume.name)));
        }
        if !self.nodes.get(&command.proposer).is_some_and(|node| node.live) {
            return Err(Refusal::NoLease { number: command.proposer });
        }
        match &command.change {
            Some(Change::Evict(evict)) => self.evict(id, asked, proposer, evict, effects),
            Some(Change::Admit(admit)) => self.admit(id, asked, proposer, admit, effects),
            Some(Change::HandOver(hand_over)) => self.hand_over(id, asked, proposer, hand_over, effects),
            None => Err(Refusal::invalid("change", "is missing, or of a later version")),
        }
    }

    fn evict(
        &mut self,
        id: VolumeId,
        asked: Epoch,
        proposer: Owner,
        command: &records::EvictReplica,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        let volume = self.volume_of(&id.0)?;
        let node =
            NodeNumber::new(command.node).ok_or_else(|| Refusal::invalid("node", "is not a node number"))?;
        let member = volume.config.in_sync().iter().find(|m| m.node == node).cloned();
        let config = volume.config.remove_from_in_sync(asked, proposer, node).map_err(|error| {
            volume.refusal(asked, error, |error| {
                format!("volume {} keeps its replica on node number {node}: {error}", volume.name)
            })
        })?;
        let name = self.node_name(command.node);
        let Some(volume) = self.volumes.get_mut(&id) else { return Ok(Outcome::Done) };
        volume.absent.extend(member);
        volume.adopt(config).tell(id, effects);
        let message = format!(
            "volume {} goes on without its replica on node {name}: {}",
            volume.name,
            printable(&command.reason)
        );
        effects.event("replica.evicted", format!("volume/{}", volume.name), message);
        effects.change(change::Change::Volume(volume.record()));
        Ok(Outcome::Volume(volume.record()))
    }

    fn admit(
        &mut self,
        id: VolumeId,
        asked: Epoch,
        proposer: Owner,
        command: &records::AdmitReplica,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        let volume = self.volume_of(&id.0)?;
        let node =
            NodeNumber::new(command.node).ok_or_else(|| Refusal::invalid("node", "is not a node number"))?;
        let refuse = |error| {
            volume.refusal(asked, error, |error| {
                format!("volume {} does not take in the replica of node number {node}: {error}", volume.name)
            })
        };
        let learner = volume.config.learners().iter().find(|m| m.node == node);
        let mut config = volume.config.clone();
        // In the same entry it takes the place of the one that it replaces, so that three copies can be moved.
        let replaced = volume.moves.iter().find(|(_, to)| *to == node).map(|(from, _)| *from);
        let replaced = replaced.filter(|from| Some(*from) != volume.owner_node());
        let gone = replaced.and_then(|from| volume.kept().find(|m| m.node == from)).cloned();
        let mut expected = asked;
        if let Some(from) = replaced.filter(|_| learner.is_some()) {
            let without = if volume.is_in_sync(from) {
                Some(config.remove_from_in_sync(expected, proposer, from))
            } else if config.member(from).is_some() {
                Some(config.remove_learner(expected, from))
            } else {
                None
            };
            if let Some(without) = without {
                config = without.map_err(refuse)?;
                expected = config.epoch();
            }
        }
        let config = config.admit_learner(expected, proposer, node).map_err(refuse)?;
        if learner.is_some_and(|learner| learner.boot.0[..] != command.boot_id[..]) {
            return Err(Refusal::Precondition(format!(
                "volume {} does not take in the replica of node number {node}: it has caught up under another boot",
                volume.name
            )));
        }
        let name = self.node_name(command.node);
        let Some(volume) = self.volumes.get_mut(&id) else { return Ok(Outcome::Done) };
        if let Some(gone) = gone {
            volume.absent.retain(|m| m.node != gone.node);
            volume.removing.push(gone);
        }
        volume.adopt(config).tell(id, effects);
        let message = format!("the replica of volume {} on node {name} is in sync", volume.name);
        effects.event("replica.in-sync", format!("volume/{}", volume.name), message);
        effects.change(change::Change::Volume(volume.record()));
        Ok(Outcome::Volume(volume.record()))
    }
}
