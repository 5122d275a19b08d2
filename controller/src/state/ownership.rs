//! Change of owner: compare-and-set on the epoch.
//!
//! Invariant: the rules of who may be promoted are those of `holdfast_replica::config`. That the old owner's lease has run
//! out is the proposer's duty (the lease manager): the state knows no time.

use holdfast_proto::state::{self as records, change};
use holdfast_replica::{
    config::{CacheState, ConfigError, Owner},
    ids::{BootId, Incarnation, NodeNumber, VolumeId},
};
use holdfast_scsi::sense::asc;

use super::{
    Kind, Outcome, Refusal, StateMachine, check_lease_term,
    convert::epoch_of,
    effects::{Audience, Effects},
};

impl StateMachine {
    pub(super) fn change_owner(
        &mut self,
        command: &records::ChangeOwner,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        check_lease_term(self.lease_term(), command.lease_term)?;
        let id = VolumeId::from_slice(&command.volume_id)
            .ok_or_else(|| Refusal::invalid("volume_id", "not 16 bytes"))?;
        let volume =
            self.volumes.get(&id).ok_or_else(|| Refusal::not_found(Kind::Volume, &id.to_string()))?;
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
        let owner = Owner { node: number, incarnation: Incarnation(node.incarnation) };
        let before = volume.config.owner().map(|o| o.node);
        let asked = epoch_of(command.expected.as_ref());
        let boot_now =
            |n: NodeNumber| self.nodes.get(&u32::from(n.get())).and_then(|n| BootId::from_slice(&n.boot_id));
        let (config, cache) =
            volume.config.change_owner(asked, owner, boot_now).map_err(|error| match error {
                ConfigError::StaleEpoch(current) => Refusal::StaleEpoch {
                    volume: id,
                    asked,
                    current,
                    owner: before.map_or(0, |n| u32::from(n.get())),
                },
                other => Refusal::Precondition(format!(
                    "node {} cannot own volume {}: {other}",
                    node.name, volume.name
                )),
            })?;
        let message = format!(
            "node {} (incarnation {}) owns volume {} in epoch {}",
            node.name,
            node.incarnation,
            volume.name,
            config.epoch()
        );
        effects.event("owner.changed", format!("volume/{}", volume.name), message);
        let Some(volume) = self.volumes.get_mut(&id) else { return Ok(Outcome::Done) };
        volume.config = config;
        let record = volume.record();
        effects.change(change::Change::Volume(record.clone()));
        if before != Some(number) {
            effects.unit_attention(id, asc::ALUA_STATE_CHANGED, Audience::Everyone);
        }
        // Acknowledged writes that were in page caches only may be gone: hosts must know.
        if cache == CacheState::LostEverywhere && volume.write_cache {
            effects.unit_attention(id, asc::POWER_ON, Audience::Everyone);
        }
        Ok(Outcome::Volume(record))
    }
}
