//! Snapshots and clones while they are made: freeze all, take all, confirm all.
//!
//! A copy is a volume of its own from the first entry on, with a replica on each node that has its source in sync, and a [`Making`] record
//! until it is whole. Owners and nodes follow the record; each step that they report is an entry.
//!
//! Invariants: all copies of one request go from phase to phase together, and are whole or given up together; a snapshot is
//! whole only if every source's owner confirms, in the very epoch in which it began, that it has held writes back from
//! before the first replica was made until after the last; whatever changes a source's epoch in between, ends a source, or
//! takes a node away that has not made its replica yet gives all of them up. What is given up is deleted as a volume is.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use holdfast_proto::state::{self as records, JobKind, JobState, MakingPhase, MakingStep, PoolKind, change};
use holdfast_replica::{
    config::VolumeConfig,
    epoch::Epoch,
    ids::{NodeNumber, VolumeId},
};
use holdfast_scsi::lu_state::LuState;

use super::{
    CorruptState, Kind, Outcome, Refusal, StateMachine, Volume,
    convert::corrupt,
    effects::Effects,
    limits,
    names::{bounded, check_name, printable},
    node::exhausted,
    provenance::Provenance,
    volume::min_in_sync,
};

/// What a volume is a copy of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The source, which may be gone.
    pub volume: VolumeId,
    /// Its name at that time.
    pub name: String,
    /// Never written.
    pub is_snapshot: bool,
    /// Proposer's clock, for people.
    pub time_unix_ms: u64,
    /// Id of the first volume that was made with it.
    pub group: VolumeId,
}

/// How far a copy is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Making {
    /// What is being done.
    pub phase: MakingPhase,
    /// The source's, in which all of it has to happen.
    pub source_epoch: Epoch,
    /// The source's owner has done its part of this phase.
    pub owner_done: bool,
    /// Nodes that have made their replica.
    pub taken: BTreeSet<NodeNumber>,
    /// All that are made at this point.
    pub members: Vec<VolumeId>,
}

impl Origin {
    pub(super) fn record(&self) -> records::VolumeOrigin {
        records::VolumeOrigin {
            volume_id: self.volume.0.to_vec(),
            volume: self.name.clone(),
            snapshot: self.is_snapshot,
            time_unix_ms: self.time_unix_ms,
            group: self.group.0.to_vec(),
        }
    }

    pub(super) fn from_record(record: records::VolumeOrigin) -> Result<Origin, CorruptState> {
        let id = |bytes: &[u8]| VolumeId::from_slice(bytes).ok_or_else(|| corrupt("a volume's origin"));
        Ok(Origin {
            volume: id(&record.volume_id)?,
            group: id(&record.group)?,
            name: record.volume,
            is_snapshot: record.snapshot,
            time_unix_ms: record.time_unix_ms,
        })
    }
}

impl Making {
    pub(super) fn record(&self) -> records::Making {
        records::Making {
            phase: self.phase.into(),
            source_generation: self.source_epoch.generation,
            source_epoch: self.source_epoch.number,
            owner_done: self.owner_done,
            taken: self.taken.iter().map(|node| u32::from(node.get())).collect(),
            members: self.members.iter().map(|id| id.0.to_vec()).collect(),
        }
    }

    pub(super) fn from_record(record: records::Making) -> Result<Making, CorruptState> {
        let wrong = || corrupt("a volume that is being made");
        let phase = record.phase();
        let members = record.members.iter().map(|id| VolumeId::from_slice(id)).collect::<Option<Vec<_>>>();
        let taken = record.taken.iter().map(|n| NodeNumber::new(*n)).collect::<Option<BTreeSet<_>>>();
        if phase == MakingPhase::Unspecified {
            return Err(wrong());
        }
        Ok(Making {
            phase,
            source_epoch: Epoch { generation: record.source_generation, number: record.source_epoch },
            owner_done: record.owner_done,
            taken: taken.ok_or_else(wrong)?,
            members: members.ok_or_else(wrong)?,
        })
    }
}

impl Volume {
    /// It is a snapshot: never written.
    pub fn is_snapshot(&self) -> bool {
        self.origin.as_ref().is_some_and(|origin| origin.is_snapshot)
    }
}

/// Jobs that make snapshots or clones.
const MAKING: [JobKind; 2] = [JobKind::Snapshot, JobKind::Clone];

impl StateMachine {
    pub(super) fn make_copies(
        &mut self,
        command: &records::MakeCopies,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        if command.copies.is_empty() || command.copies.len() > limits::COPIES_AT_ONCE_MAX {
            let reason =
                format!("{} are asked for; 1 to {}", command.copies.len(), limits::COPIES_AT_ONCE_MAX);
            return Err(Refusal::invalid("snapshots", reason));
        }
        if self.volumes.len() + command.copies.len() > limits::VOLUMES_MAX {
            return Err(exhausted("volumes", limits::VOLUMES_MAX));
        }
        let ids =
            command.copies.iter().map(|copy| VolumeId::from_slice(&copy.id)).collect::<Option<Vec<_>>>();
        let ids = ids.ok_or_else(|| Refusal::invalid("id", "not 16 bytes"))?;
        let (mut names, mut sources, mut made) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
        for (copy, id) in command.copies.iter().zip(&ids) {
            let volume = self.copy_of(copy, *id, &ids, command.clones, effects.time_unix_ms())?;
            let source = volume.origin.as_ref().map(|origin| origin.volume);
            if !names.insert(copy.name.clone()) || !sources.insert(source) {
                let reason =
                    format!("'{}' of '{}' is named twice", printable(&copy.name), printable(&copy.source));
                return Err(Refusal::invalid("snapshots", reason));
            }
            made.push(volume);
        }
        let Some(first) = made.first() else { return Ok(Outcome::Done) };
        let (subject, record) = (format!("volume/{}", first.name), first.record());
        let kind = if command.clones { JobKind::Clone } else { JobKind::Snapshot };
        self.begin_job(kind, subject, made.len() as u64, "it is being made", effects)?;
        for volume in made {
            effects.change(change::Change::Volume(volume.record()));
            self.volumes.insert(volume.id, volume);
        }
        Ok(Outcome::Volume(record))
    }

    /// The volume that a copy will be.
    fn copy_of(
        &self,
        copy: &records::CopyOf,
        id: VolumeId,
        members: &[VolumeId],
        clone: bool,
        time_unix_ms: u64,
    ) -> Result<Volume, Refusal> {
        check_name("name", &copy.name)?;
        let source = self.live_volume(&copy.source)?;
        let refuse =
            |why: String| Refusal::Precondition(format!("volume {} is not copied: {why}", source.name));
        match (clone, source.is_snapshot()) {
            (true, false) => {
                return Err(refuse("only a snapshot is cloned; take one of it first".to_owned()));
            }
            (false, true) => {
                return Err(refuse(
                    "it is a snapshot itself, which never changes; clone it instead".to_owned(),
                ));
            }
            _ => {}
        }
        if source.checksums {
            return Err(refuse(
                "its copies keep checksums, and no snapshots are taken of such yet".to_owned(),
            ));
        }
        self.check_new(id, &copy.name)?;
        let busy = self.being_made().find(|made| {
            made.making.is_some() && made.origin.as_ref().is_some_and(|origin| origin.volume == source.id)
        });
        if let Some(busy) = busy {
            return Err(refuse(format!(
                "{} is being made of it now; ask again when that is done",
                busy.name
            )));
        }
        if source.restoring.is_some() {
            return Err(refuse("it is being restored now; ask again when that is done".to_owned()));
        }
        let owner = source.config.owner().ok_or_else(|| refuse("no node owns it".to_owned()))?;
        for member in source.config.in_sync() {
            let node = self.nodes.get(&u32::from(member.node.get()));
            let serves = |node: &&records::Node| {
                node.live && (member.node != owner.node || node.incarnation == owner.incarnation.0)
            };
            let Some(node) = node.filter(serves) else {
                let name = self.node_name(u32::from(member.node.get()));
                return Err(refuse(format!("node {name}, which has it in sync, holds no lease now")));
            };
            // What its page cache had at the end of the boot before may be gone, and not yet made good.
            if self.boot_of(member.node) != Some(member.boot) {
                return Err(refuse(format!(
                    "node {} was started anew, and is not known to have all of it",
                    node.name
                )));
            }
            let pool = node.pools.iter().find(|pool| pool.name == member.pool);
            if !pool.is_none_or(|pool| matches!(pool.kind(), PoolKind::Unspecified | PoolKind::File)) {
                return Err(refuse(format!(
                    "pool {} of node {} is no directory, and no snapshots are taken there yet",
                    member.pool, node.name
                )));
            }
        }
        let in_sync = source.config.in_sync().to_vec();
        let boot = in_sync.iter().find(|member| member.node == owner.node).map(|member| member.boot);
        let min = min_in_sync(source.replicas).min(u8::try_from(in_sync.len()).unwrap_or(u8::MAX));
        let config = VolumeConfig::new(in_sync, min)
            .and_then(|new| new.change_owner(new.epoch(), owner, |_| boot))
            .map_err(|error| refuse(error.to_string()))?
            .0;
        let origin = Origin {
            volume: source.id,
            name: source.name.clone(),
            is_snapshot: !clone,
            time_unix_ms,
            group: members.first().copied().unwrap_or(id),
        };
        let making = Making {
            phase: if clone { MakingPhase::Take } else { MakingPhase::Freeze },
            source_epoch: source.config.epoch(),
            owner_done: false,
            taken: BTreeSet::new(),
            members: members.to_vec(),
        };
        Ok(Volume {
            id,
            name: copy.name.clone(),
            size_bytes: source.size_bytes,
            block_size: source.block_size,
            physical_block_exponent: source.physical_block_exponent,
            write_cache: source.write_cache,
            thin: source.thin,
            checksums: false,
            volatile: source.volatile,
            replicas: source.replicas,
            config,
            deleting: false,
            removed_replicas: BTreeSet::new(),
            absent: Vec::new(),
            hand_over_to: None,
            hand_over_by: None,
            owner_by_host: false,
            removing: Vec::new(),
            moves: Vec::new(),
            origin: Some(origin),
            making: Some(making),
            restoring: None,
            restored: None,
            lu: LuState::default(),
            reservation_version: 0,
            provenance: Provenance::default(),
            outcomes: VecDeque::new(),
            outcomes_forgotten: 0,
        })
    }

    /// What a node has done of a copy. Told again or too late, it does nothing.
    pub(super) fn report_making(
        &mut self,
        command: &records::ReportMaking,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        let id = VolumeId::from_slice(&command.volume_id)
            .ok_or_else(|| Refusal::invalid("volume_id", "not 16 bytes"))?;
        let Some((number, node)) = NodeNumber::new(command.number).zip(self.nodes.get(&command.number))
        else {
            return Err(Refusal::not_found(Kind::Node, &format!("number {}", command.number)));
        };
        if node.incarnation != command.incarnation {
            return Err(Refusal::StaleIncarnation {
                number: command.number,
                asked: command.incarnation,
                current: node.incarnation,
            });
        }
        let name = node.name.clone();
        let Some(volume) = self.volumes.get(&id).filter(|volume| !volume.deleting) else {
            self.report_restoring(id, number, command, effects);
            return Ok(Outcome::Done);
        };
        let (Some(making), Some(origin)) = (&volume.making, &volume.origin) else { return Ok(Outcome::Done) };
        let owner = self.volumes.get(&origin.volume).and_then(Volume::owner_node);
        let by_owner = owner == Some(number);
        let members = making.members.clone();
        let mut making = making.clone();
        match (command.step(), making.phase) {
            (MakingStep::Frozen, MakingPhase::Freeze) | (MakingStep::Confirmed, MakingPhase::Confirm)
                if by_owner && !making.owner_done =>
            {
                making.owner_done = true;
            }
            (MakingStep::Taken, MakingPhase::Take) if volume.is_in_sync(number) => {
                if !making.taken.insert(number) {
                    return Ok(Outcome::Done);
                }
            }
            (MakingStep::Failed, _) if by_owner || volume.is_in_sync(number) => {
                self.give_up(&members, &format!("node {name}: {}", printable(&command.message)), effects);
                return Ok(Outcome::Done);
            }
            _ => return Ok(Outcome::Done),
        }
        self.set_making(id, Some(making), effects);
        self.advance(&members, effects);
        Ok(Outcome::Done)
    }

    /// Goes to the next phase, if all have done this one.
    fn advance(&mut self, members: &[VolumeId], effects: &mut Effects) {
        let all: BTreeMap<VolumeId, Making> =
            members.iter().filter_map(|id| Some((*id, self.volumes.get(id)?.making.clone()?))).collect();
        let Some(phase) = all.values().next().map(|making| making.phase) else { return };
        let is_clone = members.first().and_then(|id| self.volumes.get(id)).is_some_and(|v| !v.is_snapshot());
        let done = |(id, making): (&VolumeId, &Making)| match phase {
            MakingPhase::Take => self
                .volumes
                .get(id)
                .is_some_and(|volume| volume.config.in_sync().iter().all(|m| making.taken.contains(&m.node))),
            _ => making.owner_done,
        };
        if all.len() != members.len() || !all.iter().all(done) {
            return;
        }
        let next = match phase {
            MakingPhase::Freeze => Some(MakingPhase::Take),
            MakingPhase::Take if !is_clone => Some(MakingPhase::Confirm),
            _ => None,
        };
        for (id, making) in all {
            let making = next.map(|phase| Making { phase, owner_done: false, ..making });
            self.set_making(id, making, effects);
        }
        if next.is_some() {
            return;
        }
        for id in members {
            let Some((volume, origin)) = self.volumes.get(id).and_then(|v| Some((v, v.origin.as_ref()?)))
            else {
                continue;
            };
            let (kind, what) = match origin.is_snapshot {
                true => ("snapshot.created", "snapshot"),
                false => ("volume.cloned", "clone"),
            };
            let message = format!("volume {} was made, a {what} of volume {}", volume.name, origin.name);
            effects.event(kind, format!("volume/{}", volume.name), message);
        }
        self.end_job_of(&MAKING, members, JobState::Done, "it is whole", effects);
    }

    fn set_making(&mut self, id: VolumeId, making: Option<Making>, effects: &mut Effects) {
        if let Some(volume) = self.volumes.get_mut(&id) {
            volume.making = making;
            effects.change(change::Change::Volume(volume.record()));
        }
    }

    /// None of them is made: they are deleted.
    fn give_up(&mut self, members: &[VolumeId], reason: &str, effects: &mut Effects) {
        let reason = bounded(reason);
        self.end_job_of(&MAKING, members, JobState::Failed, &reason, effects);
        for id in members {
            let Some(volume) = self.volumes.get_mut(id) else { continue };
            volume.making = None;
            volume.deleting = true;
            let message = format!("volume {} is not made: {reason}", volume.name);
            effects.event("snapshot.failed", format!("volume/{}", volume.name), message);
            effects.change(change::Change::Volume(volume.record()));
        }
    }

    /// Ends the job of one of these kinds that works on these volumes.
    pub(super) fn end_job_of(
        &mut self,
        kinds: &[JobKind],
        members: &[VolumeId],
        state: JobState,
        message: &str,
        effects: &mut Effects,
    ) {
        let Some(first) = members.first().and_then(|id| self.volumes.get(id)) else { return };
        let subject = format!("volume/{}", first.name);
        let job = kinds.iter().find_map(|kind| self.running_job(*kind, &subject)).map(|job| job.id);
        // One that runs is ended; there is no other reason to refuse it.
        if let Some(job) = job {
            let _ = self.end_job(job, state, message, effects);
        }
    }

    /// After an entry: gives up what can no longer become whole.
    pub(super) fn check_making(&mut self, effects: &mut Effects) {
        let hopeless: Vec<(Vec<VolumeId>, String)> = self
            .being_made()
            .filter_map(|volume| Some((volume.making.as_ref()?, self.why_hopeless(volume)?)))
            .map(|(making, reason)| (making.members.clone(), reason))
            .collect();
        for (members, reason) in hopeless {
            let still = members.iter().any(|id| self.volumes.get(id).is_some_and(|v| v.making.is_some()));
            if still {
                self.give_up(&members, &reason, effects);
            }
        }
    }

    fn why_hopeless(&self, volume: &Volume) -> Option<String> {
        let (making, origin) = (volume.making.as_ref()?, volume.origin.as_ref()?);
        let source = self.volumes.get(&origin.volume).filter(|source| !source.deleting);
        let Some(source) = source else { return Some(format!("volume {} is gone", origin.name)) };
        if source.config.epoch() != making.source_epoch {
            return Some(format!("the owner or the copies in sync of volume {} have changed", origin.name));
        }
        let is_there = |id: &VolumeId| self.volumes.get(id).is_some_and(|member| !member.deleting);
        if !making.members.iter().all(is_there) {
            return Some("one of those that are made with it is gone".to_owned());
        }
        let mut missing = volume.config.in_sync().iter().filter(|member| {
            !making.taken.contains(&member.node)
                && self.nodes.get(&u32::from(member.node.get())).is_none_or(|node| !node.live)
        });
        if let Some(away) = missing.next() {
            return Some(format!(
                "node {} holds no lease any more",
                self.node_name(u32::from(away.node.get()))
            ));
        }
        let mut anew = volume.config.in_sync().iter().filter(|member| {
            !making.taken.contains(&member.node) && self.boot_of(member.node) != Some(member.boot)
        });
        let anew = anew.next()?;
        Some(format!("node {} was started anew", self.node_name(u32::from(anew.node.get()))))
    }
}
