//! Volumes grow, and end.
//!
//! Invariants: a volume never shrinks; one that is being deleted has no mappings and stays until every node that holds a replica of
//! it, in sync or not, has removed it or is itself removed from the cluster.

use holdfast_proto::state::{self as records, JobKind, JobState, change};
use holdfast_replica::ids::{NodeNumber, VolumeId};
use holdfast_scsi::sense::asc;

use super::{
    Kind, Outcome, Refusal, StateMachine,
    effects::{Audience, Effects},
    names::printable,
    volume::check_geometry,
};

impl StateMachine {
    pub(super) fn resize_volume(
        &mut self,
        command: &records::ResizeVolume,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        let volume = self.live_volume(&command.name)?;
        if volume.is_snapshot() {
            return Err(Refusal::Precondition(format!(
                "volume {} is a snapshot, which never changes; clone it, and make the clone larger",
                volume.name
            )));
        }
        check_geometry(command.size_bytes, volume.block_size, volume.physical_block_exponent)?;
        if command.size_bytes < volume.size_bytes {
            return Err(Refusal::Precondition(format!(
                "volume {} has {} bytes and cannot shrink to {}: hosts would lose data",
                volume.name, volume.size_bytes, command.size_bytes
            )));
        }
        let grows_by = command.size_bytes.saturating_sub(volume.size_bytes);
        for member in volume.kept() {
            let node = self.nodes.get(&u32::from(member.node.get()));
            let free = node.and_then(|n| n.pools.iter().find(|p| p.name == member.pool));
            if let (Some(node), Some(pool)) = (node, free)
                && pool.free_bytes < grows_by
            {
                return Err(Refusal::Precondition(format!(
                    "pool {} of node {} has {} bytes free; growing volume {} needs {grows_by}",
                    pool.name, node.name, pool.free_bytes, volume.name
                )));
            }
        }
        let id = volume.id;
        let volume =
            self.volumes.get_mut(&id).ok_or_else(|| Refusal::not_found(Kind::Volume, &command.name))?;
        if grows_by > 0 {
            let message = format!(
                "volume {} grew from {} to {} bytes",
                volume.name, volume.size_bytes, command.size_bytes
            );
            volume.size_bytes = command.size_bytes;
            effects.event("volume.resized", format!("volume/{}", volume.name), message);
            effects.change(change::Change::Volume(volume.record()));
            effects.unit_attention(id, asc::CAPACITY_DATA_CHANGED, Audience::Everyone);
        }
        Ok(Outcome::Volume(volume.record()))
    }

    pub(super) fn delete_volume(
        &mut self,
        command: &records::DeleteVolume,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        let volume = self
            .volume_by_name(&command.name)
            .ok_or_else(|| Refusal::not_found(Kind::Volume, &printable(&command.name)))?;
        if let Some((host, lun)) = self.mappings_of_volume(volume.id).next() {
            return Err(Refusal::Precondition(format!(
                "volume {} is mapped to host {host} as LUN {lun}; delete the mapping first",
                volume.name
            )));
        }
        if let Some((group, lun)) = self.host_groups().find_map(|(name, group)| {
            group.luns.iter().find(|(_, mapped)| mapped.volume == volume.id).map(|(lun, _)| (name, *lun))
        }) {
            return Err(Refusal::Precondition(format!(
                "volume {} is mapped to host group {group} as LUN {lun}; delete the mapping first",
                volume.name
            )));
        }
        let id = volume.id;
        if volume.deleting {
            return Ok(Outcome::Done);
        }
        let subject = format!("volume/{}", volume.name);
        let replicas = volume.held().count();
        let message = "nodes remove their replicas";
        self.begin_job(JobKind::DeleteVolume, subject, replicas as u64, message, effects)?;
        if let Some(volume) = self.volumes.get_mut(&id) {
            volume.deleting = true;
            volume.hand_over_to = None;
            let message = format!("volume {} is being deleted", volume.name);
            effects.event("volume.deleting", format!("volume/{}", volume.name), message);
            effects.change(change::Change::Volume(volume.record()));
        }
        Ok(Outcome::Done)
    }

    pub(super) fn remove_replica(
        &mut self,
        command: &records::RemoveReplica,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        let id = VolumeId::from_slice(&command.volume_id)
            .ok_or_else(|| Refusal::invalid("volume_id", "not 16 bytes"))?;
        // Told again after the last one: nothing is left to do.
        let Some(volume) = self.volumes.get_mut(&id) else { return Ok(Outcome::Done) };
        let member = NodeNumber::new(command.number).filter(|n| volume.held().any(|m| m.node == *n));
        let is_to_go = |n: &NodeNumber| volume.deleting || volume.removing.iter().any(|m| m.node == *n);
        let Some(number) = member.filter(is_to_go) else {
            let why = if member.is_some() { "keeps its replica" } else { "holds no replica" };
            return Err(Refusal::Precondition(format!(
                "node number {} {why} of volume {}",
                command.number, volume.name
            )));
        };
        if volume.deleting {
            if !volume.removed_replicas.insert(number) {
                return Ok(Outcome::Done);
            }
        } else {
            volume.removing.retain(|m| m.node != number);
        }
        if !volume.deleting {
            effects.change(change::Change::Volume(volume.record()));
            return Ok(Outcome::Done);
        }
        let all = volume.held().count();
        let done = volume.removed_replicas.len();
        let subject = format!("volume/{}", volume.name);
        if done < all {
            effects.change(change::Change::Volume(volume.record()));
        }
        if let Some(job) = self.running_job(JobKind::DeleteVolume, &subject).map(|job| job.id) {
            if done < all {
                self.report_job(job, done as u64, all as u64, "", effects)?;
            } else {
                self.end_job(job, JobState::Done, "every replica is removed", effects)?;
            }
        }
        if done < all {
            return Ok(Outcome::Done);
        }
        let Some(volume) = self.volumes.get(&id) else { return Ok(Outcome::Done) };
        let message = format!("volume {} was deleted", volume.name);
        effects.event("volume.deleted", format!("volume/{}", volume.name), message);
        effects.change(change::Change::RemovedVolume(id.0.to_vec()));
        self.volumes.remove(&id);
        Ok(Outcome::Done)
    }
}
