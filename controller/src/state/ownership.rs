//! Change of owner: compare-and-set on the epoch.
//!
//! Invariants: the rules of who may be promoted are those of `holdfast_replica::config`. A change that the leader asks for is made
//! after the old owner's lease has run out, which is the proposer's duty (the lease manager): the state knows no time. A change
//! that the owner asks for is made at once: it has stopped to serve before it asked.

use holdfast_proto::state::{self as records, change};
use holdfast_replica::{
    config::{CacheState, ConfigError, Owner, VolumeConfig},
    epoch::Epoch,
    ids::{BootId, Incarnation, NodeNumber, VolumeId},
};
use holdfast_scsi::{
    alua::{self, AluaState, Wanted},
    nexus::Nexus,
    sense::{Sense, asc},
};

use super::{
    Kind, Outcome, Refusal, StateMachine, Volume, check_lease_term,
    convert::epoch_of,
    effects::{Audience, Effects},
    names::printable,
};

impl StateMachine {
    /// The process that runs under this node number now.
    pub(super) fn process_of(&self, number: NodeNumber) -> Option<Owner> {
        let node = self.nodes.get(&u32::from(number.get()))?;
        Some(Owner { node: number, incarnation: Incarnation(node.incarnation) })
    }

    /// The boot that a node has now, as far as it has told.
    pub(super) fn boot_of(&self, number: NodeNumber) -> Option<BootId> {
        self.nodes.get(&u32::from(number.get())).and_then(|node| BootId::from_slice(&node.boot_id))
    }

    /// The volume's configuration once the present process of node `number` owns it.
    ///
    /// # Errors
    /// Why it may not.
    pub fn promotion(
        &self,
        volume: &Volume,
        expected: Epoch,
        number: NodeNumber,
    ) -> Result<(VolumeConfig, CacheState), ConfigError> {
        let owner = self.process_of(number).ok_or(ConfigError::NotInSync(number))?;
        if volume.may_cache() {
            return volume.config.change_owner(expected, owner, |n| self.boot_of(n));
        }
        // Every acknowledged write is on every disk: no other member holds more in its memory, so each counts as rebooted.
        let others = |n: NodeNumber| volume.config.member(n).map(|m| BootId(m.boot.0.map(|byte| !byte)));
        volume.config.change_owner(expected, owner, |n| if n == number { self.boot_of(n) } else { others(n) })
    }

    pub(super) fn change_owner(
        &mut self,
        command: &records::ChangeOwner,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        check_lease_term(self.lease_term(), command.lease_term)?;
        let volume = self.volume_of(&command.volume_id)?;
        let node = self
            .nodes
            .get(&command.owner)
            .ok_or_else(|| Refusal::not_found(Kind::Node, &format!("number {}", command.owner)))?;
        if node.incarnation != command.owner_incarnation {
            return Err(Refusal::StaleIncarnation {
                number: node.number,
                asked: command.owner_incarnation,
                current: node.incarnation,
            });
        }
        let number =
            NodeNumber::new(node.number).ok_or_else(|| Refusal::invalid("owner", "is not a node number"))?;
        let asked = epoch_of(command.expected.as_ref());
        let (config, cache) = self.promotion(volume, asked, number).map_err(|error| {
            volume.refusal(asked, error, |error| {
                format!("node {} cannot own volume {}: {error}", node.name, volume.name)
            })
        })?;
        let id = volume.id;
        Ok(self.give(id, config, cache, "", effects))
    }

    /// The owner's word that it has stopped: the volume goes to another in-sync node, without waiting for a lease.
    pub(super) fn hand_over(
        &mut self,
        id: VolumeId,
        asked: Epoch,
        proposer: Owner,
        command: &records::HandOver,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        let volume = self.volume_of(&id.0)?;
        let refuse =
            |why: String| Refusal::Precondition(format!("volume {} is not handed over: {why}", volume.name));
        if volume.config.owner() != Some(proposer) {
            return Err(volume.refusal(asked, ConfigError::NotTheOwner, |e| e.to_string()));
        }
        if volume.config.epoch() != asked {
            let stale = ConfigError::StaleEpoch(volume.config.epoch());
            return Err(volume.refusal(asked, stale, |e| e.to_string()));
        }
        let mut candidates: Vec<NodeNumber> = match command.to {
            0 => volume.config.in_sync().iter().map(|m| m.node).collect(),
            to => vec![NodeNumber::new(to).ok_or_else(|| Refusal::invalid("to", "is not a node number"))?],
        };
        candidates.retain(|n| *n != proposer.node);
        candidates.sort_by_key(|n| {
            let node = self.nodes.get(&u32::from(n.get()));
            (node.is_none_or(|node| node.cordoned), self.owned_by(u32::from(n.get())), *n)
        });
        let mut reasons = Vec::new();
        let mut found = None;
        for candidate in candidates {
            match self.may_take(volume, asked, candidate) {
                Ok(change) => {
                    found = Some(change);
                    break;
                }
                Err(reason) => reasons.push(reason),
            }
        }
        let Some((mut config, cache)) = found else {
            let none = "no other node has a copy that is in sync".to_owned();
            return Err(refuse(if reasons.is_empty() { none } else { reasons.join("; ") }));
        };
        let mut left = None;
        if command.leave
            && let Some(owner) = config.owner()
        {
            left = config.in_sync().iter().find(|m| m.node == proposer.node).cloned();
            config = config
                .remove_from_in_sync(config.epoch(), owner, proposer.node)
                .map_err(|error| refuse(error.to_string()))?;
        }
        let reason = printable(&command.reason);
        if let Some(volume) = self.volumes.get_mut(&id) {
            volume.absent.extend(left);
        }
        Ok(self.give(id, config, cache, &reason, effects))
    }

    /// May the node take the volume from a living owner?
    ///
    /// # Errors
    /// Why not, in words.
    pub fn may_take(
        &self,
        volume: &Volume,
        expected: Epoch,
        number: NodeNumber,
    ) -> Result<(VolumeConfig, CacheState), String> {
        let name = self.node_name(u32::from(number.get()));
        if !self.nodes.get(&u32::from(number.get())).is_some_and(|node| node.live) {
            return Err(format!("node {name} holds no lease"));
        }
        self.promotion(volume, expected, number).map_err(|error| match error {
            ConfigError::NotInSync(_) => format!("node {name} has no copy that is in sync"),
            ConfigError::Rebooted(_) => {
                format!("node {name} has rebooted and may lack writes that another copy has")
            }
            other => other.to_string(),
        })
    }

    /// Puts a configuration with another owner in force; hosts are told.
    pub(super) fn give(
        &mut self,
        id: VolumeId,
        config: VolumeConfig,
        cache: CacheState,
        reason: &str,
        effects: &mut Effects,
    ) -> Outcome {
        let names =
            config.owner().map(|owner| (self.node_name(u32::from(owner.node.get())), owner.incarnation));
        let Some(volume) = self.volumes.get_mut(&id) else { return Outcome::Done };
        let before = volume.owner_node();
        // SPC-5 5.17.2.6: the nexus that asked for it learns of it by its status.
        let asked_for =
            volume.hand_over_to.is_some() && volume.hand_over_to == config.owner().map(|o| o.node);
        let asked_by = volume.hand_over_by.filter(|_| asked_for);
        volume.adopt(config).tell(id, effects);
        if before != volume.owner_node() {
            volume.owner_by_host = asked_by.is_some();
        }
        if let Some((node, incarnation)) = names {
            let because = if reason.is_empty() { String::new() } else { format!(": {reason}") };
            let epoch = volume.config.epoch();
            let message = format!(
                "node {node} (incarnation {incarnation}) owns volume {} in epoch {epoch}{because}",
                volume.name
            );
            effects.event("owner.changed", format!("volume/{}", volume.name), message);
        }
        let record = volume.record();
        effects.change(change::Change::Volume(record.clone()));
        if before != volume.owner_node() {
            let audience = asked_by.as_ref().map_or(Audience::Everyone, Audience::Except);
            effects.unit_attention(id, asc::ALUA_STATE_CHANGED, audience);
        }
        // Acknowledged writes that were in page caches only may be gone: hosts must know.
        if cache == CacheState::LostEverywhere && volume.may_cache() {
            effects.unit_attention(id, asc::POWER_ON, Audience::Everyone);
        }
        Outcome::Volume(record)
    }

    /// An owner is asked to hand over, or not to.
    pub(super) fn request_hand_over(
        &mut self,
        command: &records::RequestHandOver,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        let volume = self.volume_of(&command.volume_id)?;
        let asked = epoch_of(command.expected.as_ref());
        if volume.config.epoch() != asked {
            let stale = ConfigError::StaleEpoch(volume.config.epoch());
            return Err(volume.refusal(asked, stale, |e| e.to_string()));
        }
        let to = match command.to {
            0 => None,
            number => {
                Some(NodeNumber::new(number).ok_or_else(|| Refusal::invalid("to", "is not a node number"))?)
            }
        };
        let refuse =
            |why: String| Refusal::Precondition(format!("volume {} is not moved: {why}", volume.name));
        if volume.deleting {
            return Err(refuse("it is being deleted".to_owned()));
        }
        if let Some(to) = to.filter(|to| Some(*to) != volume.owner_node()) {
            self.may_take(volume, asked, to).map_err(refuse)?;
        }
        let to = to.filter(|to| Some(*to) != volume.owner_node());
        let id = volume.id;
        let Some(volume) = self.volumes.get_mut(&id) else { return Ok(Outcome::Done) };
        // A transition that a host asked for and that fails is told by its status (SPC-5 5.17.2.6).
        let given_up = volume.hand_over_to.is_some() && to.is_none() && volume.hand_over_by.is_none();
        if volume.hand_over_to != to {
            volume.hand_over_to = to;
            volume.hand_over_by = None;
            effects.change(change::Change::Volume(volume.record()));
        }
        let record = volume.record();
        if given_up {
            effects.unit_attention(id, asc::IMPLICIT_ALUA_TRANSITION_FAILED, Audience::Everyone);
        }
        Ok(Outcome::Volume(record))
    }

    /// SET TARGET PORT GROUPS of a nexus, proposed by the owner: it is to hand over to the group that becomes active/optimized.
    ///
    /// # Errors
    /// The sense data; nothing has changed.
    pub(super) fn set_target_port_groups(
        &mut self,
        id: VolumeId,
        nexus: &Nexus,
        list: &[u8],
        effects: &mut Effects,
    ) -> Result<(), Sense> {
        let volume = self.volumes.get(&id).ok_or(alua::SET_FAILED)?;
        let owner = volume.owner_node();
        let groups = self.nodes.values().filter_map(|node| {
            let number = NodeNumber::new(node.number)?;
            let state = match (Some(number) == owner, node.live) {
                (true, _) => AluaState::ActiveOptimized,
                (false, true) => AluaState::ActiveNonOptimized,
                (false, false) => AluaState::Unavailable,
            };
            Some((number.get(), state))
        });
        let Wanted::Optimized(group) = alua::wanted(list, groups)? else { return Ok(()) };
        let to = NodeNumber::new(u32::from(group)).ok_or(alua::SET_FAILED)?;
        if volume.deleting || self.may_take(volume, volume.config.epoch(), to).is_err() {
            return Err(alua::SET_FAILED);
        }
        let node = self.node_name(u32::from(group));
        let Some(volume) = self.volumes.get_mut(&id) else { return Err(alua::SET_FAILED) };
        volume.hand_over_to = Some(to);
        volume.hand_over_by = Some(*nexus);
        effects.change(change::Change::Volume(volume.record()));
        let message =
            format!("volume {} is to move to node {node}: SET TARGET PORT GROUPS by {nexus}", volume.name);
        effects.event("owner.requested", format!("volume/{}", volume.name), message);
        Ok(())
    }

    /// A volume by the bytes of its id.
    pub(super) fn volume_of(&self, id: &[u8]) -> Result<&Volume, Refusal> {
        let id = VolumeId::from_slice(id).ok_or_else(|| Refusal::invalid("volume_id", "not 16 bytes"))?;
        self.volumes.get(&id).ok_or_else(|| Refusal::not_found(Kind::Volume, &id.to_string()))
    }
}

impl Volume {
    /// A change of the configuration that is refused; `text` says why where neither the epoch nor the owner is the reason.
    pub(super) fn refusal(
        &self,
        asked: Epoch,
        error: ConfigError,
        text: impl FnOnce(ConfigError) -> String,
    ) -> Refusal {
        match error {
            ConfigError::StaleEpoch(_) | ConfigError::NotTheOwner => Refusal::StaleEpoch {
                volume: self.id,
                asked,
                current: self.config.epoch(),
                owner: self.owner_node().map_or(0, |n| u32::from(n.get())),
            },
            other => Refusal::Precondition(text(other)),
        }
    }
}
