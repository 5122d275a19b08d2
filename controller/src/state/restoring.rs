//! Volumes that are put back to what snapshots of them have: hold back, make ready, and one entry that does it.
//!
//! ```text
//!   RestoreVolumes   each volume names its snapshot, and the epoch in which all of it has to happen
//!     FREEZE         each owner begins nothing new
//!     TAKE           each node in sync makes the snapshot's content ready beside its replica, durably, and opens no later epoch until it is decided
//!   done             the entry of the last Taken: a new epoch, and the name of the restore. From here on the volumes have the snapshots' contents
//! ```
//!
//! Invariants: all volumes of one request are restored by the same entry, or none is; the end, done or given up, is an entry after which the
//! volume is in a later epoch than the one that `making` names, and `restored` tells which of both it was; a volume is restored only on nodes
//! that have made ready; what was not in sync is removed, because no bitmap says what it lacks.

use std::collections::BTreeSet;

use holdfast_proto::state::{self as records, JobKind, JobState, MakingPhase, MakingStep, change};
use holdfast_replica::{
    config::VolumeConfig,
    ids::{NodeNumber, VolumeId},
};
use holdfast_scsi::sense::asc;

use super::{
    CorruptState, Outcome, Refusal, StateMachine, Volume,
    convert::corrupt,
    effects::{Audience, Effects},
    limits,
    making::Making,
    names::{bounded, printable},
};

/// How far a volume is restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restoring {
    /// Names the restore.
    pub id: VolumeId,
    /// Whose content it gets.
    pub snapshot: VolumeId,
    /// Its steps; the members are the volumes that are restored with it.
    pub making: Making,
}

impl Restoring {
    pub(super) fn record(&self) -> records::Restoring {
        records::Restoring {
            id: self.id.0.to_vec(),
            snapshot_id: self.snapshot.0.to_vec(),
            making: Some(self.making.record()),
        }
    }

    pub(super) fn from_record(record: records::Restoring) -> Result<Restoring, CorruptState> {
        let wrong = || corrupt("a volume that is being restored");
        Ok(Restoring {
            id: VolumeId::from_slice(&record.id).ok_or_else(wrong)?,
            snapshot: VolumeId::from_slice(&record.snapshot_id).ok_or_else(wrong)?,
            making: Making::from_record(record.making.ok_or_else(wrong)?)?,
        })
    }
}

impl StateMachine {
    pub(super) fn restore_volumes(
        &mut self,
        command: &records::RestoreVolumes,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        let count = command.restores.len();
        if !(1..=limits::COPIES_AT_ONCE_MAX).contains(&count) {
            let reason = format!("{count} are asked for; 1 to {}", limits::COPIES_AT_ONCE_MAX);
            return Err(Refusal::invalid("snapshots", reason));
        }
        let mut begun = Vec::new();
        for wish in &command.restores {
            let id = VolumeId::from_slice(&wish.id).ok_or_else(|| Refusal::invalid("id", "not 16 bytes"))?;
            if self.volumes.contains_key(&id) || self.restore_of(id).is_some() {
                return Err(Refusal::invalid("id", "is that of something else"));
            }
            let (volume, snapshot) = self.check_restore(&wish.volume, &wish.snapshot)?;
            if let Some(held) = volume.held_by_hosts().filter(|_| !command.in_use) {
                return Err(Refusal::Precondition(format!(
                    "volume {} is in use: {held}; stop the hosts first, or ask for it while in use",
                    volume.name
                )));
            }
            if begun.iter().any(|(_, other, _)| *other == volume.id) {
                let reason = format!("volume {} is named twice", volume.name);
                return Err(Refusal::invalid("snapshots", reason));
            }
            begun.push((id, volume.id, snapshot.id));
        }
        let members: Vec<VolumeId> = begun.iter().map(|(_, volume, _)| *volume).collect();
        let Some(first) = members.first().and_then(|id| self.volumes.get(id)) else {
            return Ok(Outcome::Done);
        };
        let subject = format!("volume/{}", first.name);
        self.begin_job(JobKind::Restore, subject, count as u64, "copies are made ready", effects)?;
        for (id, volume, snapshot) in begun {
            let Some(volume) = self.volumes.get_mut(&volume) else { continue };
            let making = Making {
                phase: MakingPhase::Freeze,
                source_epoch: volume.config.epoch(),
                owner_done: false,
                taken: BTreeSet::new(),
                members: members.clone(),
            };
            volume.restoring = Some(Restoring { id, snapshot, making });
            effects.change(change::Change::Volume(volume.record()));
        }
        let record = members.first().and_then(|id| self.volumes.get(id)).map(Volume::record);
        Ok(record.map_or(Outcome::Done, Outcome::Volume))
    }

    /// The volume and its snapshot, if it can be restored now.
    ///
    /// # Errors
    /// What is in the way.
    pub fn check_restore(&self, volume: &str, snapshot: &str) -> Result<(&Volume, &Volume), Refusal> {
        let volume = self.live_volume(volume)?;
        let snapshot = self.live_volume(snapshot)?;
        let refuse =
            |why: String| Refusal::Precondition(format!("volume {} is not restored: {why}", volume.name));
        let is_of = snapshot.origin.as_ref().is_some_and(|o| o.is_snapshot && o.volume == volume.id);
        if !is_of {
            return Err(refuse(format!("{} is no snapshot of it", snapshot.name)));
        }
        if volume.restoring.is_some() {
            return Err(refuse("it is being restored now".to_owned()));
        }
        if volume.checksums {
            return Err(refuse("its copies keep checksums".to_owned()));
        }
        let busy = self.being_made().find(|made| {
            made.making.is_some() && made.origin.as_ref().is_some_and(|origin| origin.volume == volume.id)
        });
        if let Some(busy) = busy {
            return Err(refuse(format!(
                "{} is being made of it now; ask again when that is done",
                busy.name
            )));
        }
        let owner = volume.config.owner().ok_or_else(|| refuse("no node owns it".to_owned()))?;
        for member in volume.config.in_sync() {
            let name = self.node_name(u32::from(member.node.get()));
            let node = self.nodes.get(&u32::from(member.node.get()));
            let serves = |node: &&records::Node| {
                node.live && (member.node != owner.node || node.incarnation == owner.incarnation.0)
            };
            if node.filter(serves).is_none() {
                return Err(refuse(format!("node {name}, which has it in sync, holds no lease now")));
            }
            let boot = self.boot_of(member.node);
            let beside =
                snapshot.config.in_sync().iter().find(|m| m.node == member.node && m.pool == member.pool);
            let Some(beside) = beside else {
                return Err(refuse(format!(
                    "node {name} has a copy of it, and none in sync of {} in the same pool {}; move or remove that copy, or use a clone",
                    snapshot.name, member.pool
                )));
            };
            if boot != Some(member.boot) || boot != Some(beside.boot) {
                return Err(refuse(format!(
                    "node {name} was started anew, and is not known to have all of it"
                )));
            }
        }
        Ok((volume, snapshot))
    }

    /// The volume of a restore that is under way.
    fn restore_of(&self, id: VolumeId) -> Option<&Volume> {
        self.being_restored().find(|v| v.restoring.as_ref().is_some_and(|restoring| restoring.id == id))
    }

    /// What a node has done of a restore; the node is the one that it says. Told again or too late, it does nothing.
    pub(super) fn report_restoring(
        &mut self,
        id: VolumeId,
        node: NodeNumber,
        command: &records::ReportMaking,
        effects: &mut Effects,
    ) {
        let Some(volume) = self.restore_of(id) else { return };
        let Some(mut restoring) = volume.restoring.clone() else { return };
        let (volume, by_owner, in_sync) =
            (volume.id, volume.owner_node() == Some(node), volume.is_in_sync(node));
        let members = restoring.making.members.clone();
        let making = &mut restoring.making;
        match (command.step(), making.phase) {
            (MakingStep::Frozen, MakingPhase::Freeze) if by_owner && !making.owner_done => {
                making.owner_done = true;
            }
            (MakingStep::Taken, MakingPhase::Take) if in_sync => {
                if !making.taken.insert(node) {
                    return;
                }
            }
            (MakingStep::Failed, _) if in_sync => {
                let name = self.node_name(u32::from(node.get()));
                let reason = format!("node {name}: {}", printable(&command.message));
                return self.give_up_restore(&members, &reason, effects);
            }
            _ => return,
        }
        self.set_restoring(volume, restoring, effects);
        self.advance_restore(&members, effects);
    }

    fn set_restoring(&mut self, id: VolumeId, restoring: Restoring, effects: &mut Effects) {
        if let Some(volume) = self.volumes.get_mut(&id) {
            volume.restoring = Some(restoring);
            effects.change(change::Change::Volume(volume.record()));
        }
    }

    /// Goes on, if all have done this step.
    fn advance_restore(&mut self, members: &[VolumeId], effects: &mut Effects) {
        let all: Vec<(VolumeId, Restoring)> =
            members.iter().filter_map(|id| Some((*id, self.volumes.get(id)?.restoring.clone()?))).collect();
        // What would hinder it counts before what has just been done.
        if all.len() != members.len() || all.iter().any(|(id, _)| self.why_not_restored(*id).is_some()) {
            return;
        }
        let frozen = all.iter().all(|(_, r)| r.making.phase == MakingPhase::Freeze && r.making.owner_done);
        let taken = |(id, restoring): &(VolumeId, Restoring)| {
            restoring.making.phase == MakingPhase::Take
                && self.volumes.get(id).is_some_and(|volume| {
                    volume.config.in_sync().iter().all(|m| restoring.making.taken.contains(&m.node))
                })
        };
        if frozen {
            for (id, mut restoring) in all {
                (restoring.making.phase, restoring.making.owner_done) = (MakingPhase::Take, false);
                self.set_restoring(id, restoring, effects);
            }
        } else if all.iter().all(taken) {
            self.restore_now(all, members, effects);
        }
    }

    /// The point of no return.
    fn restore_now(&mut self, all: Vec<(VolumeId, Restoring)>, members: &[VolumeId], effects: &mut Effects) {
        let mut next = Vec::new();
        for (id, restoring) in &all {
            match self.volumes.get(id).and_then(|volume| self.restored_config(volume)) {
                Some(config) => next.push((*id, restoring.clone(), config)),
                None => return self.give_up_restore(members, "the owner has changed", effects),
            }
        }
        self.end_job_of(&[JobKind::Restore], members, JobState::Done, "it is done", effects);
        for (id, restoring, config) in next {
            let snapshot = self.volume_name(restoring.snapshot);
            let Some(volume) = self.volumes.get_mut(&id) else { continue };
            let stale: Vec<_> = volume.config.learners().iter().chain(&volume.absent).cloned().collect();
            volume.removing.extend(stale);
            volume.absent.clear();
            volume.moves.clear();
            volume.restoring = None;
            volume.restored = Some(restoring.id);
            volume.adopt(config).tell(id, effects);
            let message = format!(
                "volume {} was put back to snapshot {snapshot}; what was written since is gone",
                volume.name
            );
            effects.event("volume.restored", format!("volume/{}", volume.name), message);
            effects.change(change::Change::Volume(volume.record()));
            effects.unit_attention(id, asc::MEDIUM_MAY_HAVE_CHANGED, Audience::Everyone);
        }
    }

    /// The same owner and copies in sync, in a new epoch.
    fn restored_config(&self, volume: &Volume) -> Option<VolumeConfig> {
        let owner = volume.config.owner()?;
        let next =
            volume.config.change_owner(volume.config.epoch(), owner, |node| self.boot_of(node)).ok()?.0;
        let in_sync = next.in_sync().to_vec();
        VolumeConfig::from_parts(next.epoch(), next.owner(), in_sync, Vec::new(), next.min_in_sync()).ok()
    }

    /// None of them is restored, and each is in a later epoch, so that nodes know.
    fn give_up_restore(&mut self, members: &[VolumeId], reason: &str, effects: &mut Effects) {
        let reason = bounded(reason);
        self.end_job_of(&[JobKind::Restore], members, JobState::Failed, &reason, effects);
        for id in members {
            let Some(volume) = self.volumes.get_mut(id) else { continue };
            let Some(restoring) = volume.restoring.take() else { continue };
            if volume.config.epoch() == restoring.making.source_epoch {
                let config = &volume.config;
                let later = config.epoch().next().and_then(|epoch| {
                    let (in_sync, learners) = (config.in_sync().to_vec(), config.learners().to_vec());
                    VolumeConfig::from_parts(epoch, config.owner(), in_sync, learners, config.min_in_sync())
                        .ok()
                });
                if let Some(later) = later {
                    volume.config = later;
                }
            }
            let message = format!("volume {} is not restored, and as it was: {reason}", volume.name);
            effects.event("volume.restore-failed", format!("volume/{}", volume.name), message);
            effects.change(change::Change::Volume(volume.record()));
        }
    }

    /// After an entry: gives up what can no longer be done.
    pub(super) fn check_restoring(&mut self, effects: &mut Effects) {
        let hopeless: Vec<(Vec<VolumeId>, String)> = self
            .being_restored()
            .filter_map(|volume| {
                Some((volume.restoring.as_ref()?.making.members.clone(), self.why_not_restored(volume.id)?))
            })
            .collect();
        for (members, reason) in hopeless {
            if members.iter().any(|id| self.volumes.get(id).is_some_and(|v| v.restoring.is_some())) {
                self.give_up_restore(&members, &reason, effects);
            }
        }
    }

    fn why_not_restored(&self, id: VolumeId) -> Option<String> {
        let volume = self.volumes.get(&id)?;
        let restoring = volume.restoring.as_ref()?;
        let making = &restoring.making;
        if volume.deleting || volume.config.epoch() != making.source_epoch {
            return Some(format!("the owner or the copies in sync of volume {} have changed", volume.name));
        }
        let others = making
            .members
            .iter()
            .all(|id| self.volumes.get(id).is_some_and(|v| !v.deleting && v.restoring.is_some()));
        if !others {
            return Some("one of those that are restored with it is gone".to_owned());
        }
        let snapshot = self.volumes.get(&restoring.snapshot).filter(|snapshot| !snapshot.deleting);
        let Some(snapshot) = snapshot else { return Some("its snapshot is gone".to_owned()) };
        for member in volume.config.in_sync().iter().filter(|m| !making.taken.contains(&m.node)) {
            let name = self.node_name(u32::from(member.node.get()));
            let live = self.nodes.get(&u32::from(member.node.get())).is_some_and(|node| node.live);
            if !live || self.boot_of(member.node) != Some(member.boot) {
                return Some(format!("node {name} holds no lease any more"));
            }
            if !snapshot.is_in_sync(member.node) {
                return Some(format!("node {name} has no copy in sync of {} any more", snapshot.name));
            }
        }
        None
    }
}

impl Volume {
    /// What hosts hold of it, in words.
    pub fn held_by_hosts(&self) -> Option<String> {
        let registrations = self.lu.reservations.registrants().len();
        match (registrations, self.lu.unit.spc2_holder.is_some()) {
            (0, false) => None,
            (0, true) => Some("a host has reserved it".to_owned()),
            (1, _) => Some("there is 1 registration".to_owned()),
            (many, _) => Some(format!("there are {many} registrations")),
        }
    }
}
