//! Volumes: what they are, their creation, and their records.
//!
//! Invariants: a volume's id is drawn once; its configuration changes only by the functions of `holdfast_replica::config`; a
//! node stands once among those in sync, catching up, absent, and removing.

use std::collections::{BTreeSet, VecDeque};

use holdfast_proto::state::{self as records, change};
use holdfast_replica::{
    config::{Member, Owner, VolumeConfig},
    ids::{BootId, Incarnation, NodeNumber, VolumeId},
    limits::REPLICAS_MAX,
};
use holdfast_scsi::{lu_state::LuState, nexus::Nexus, sense::asc};

use super::{
    CorruptState, Kind, Outcome, Refusal, StateMachine,
    convert::{corrupt, epoch_of, epoch_record, member_of, member_record, nexus_of},
    effects::{Audience, Effects, nexus_name},
    limits,
    making::{Making, Origin},
    names::{check_name, printable},
    node::exhausted,
    placement::{NewVolume, admits},
    provenance::Provenance,
    restoring::Restoring,
};

/// A replicated block store, the logical unit made of it, and its reservations.
#[derive(Clone, Debug, PartialEq)]
pub struct Volume {
    /// Its identity.
    pub id: VolumeId,
    /// Its name.
    pub name: String,
    /// Size, in bytes.
    pub size_bytes: u64,
    /// Logical block size, in bytes.
    pub block_size: u32,
    /// Log2 of logical blocks per physical block.
    pub physical_block_exponent: u32,
    /// WCE.
    pub write_cache: bool,
    /// Space is allocated on first write.
    pub thin: bool,
    /// Its copies keep checksums.
    pub checksums: bool,
    /// It may be lost when nodes stop.
    pub volatile: bool,
    /// Copies wished for.
    pub replicas: u32,
    /// Owner, in-sync set, learners, epoch.
    pub config: VolumeConfig,
    /// Being deleted.
    pub deleting: bool,
    /// Nodes that have removed their replica, during deletion.
    pub removed_replicas: BTreeSet<NodeNumber>,
    /// Replicas that exist but are neither in sync nor catching up.
    pub absent: Vec<Member>,
    /// In-sync node that the owner shall hand over to.
    pub hand_over_to: Option<NodeNumber>,
    /// The nexus whose SET TARGET PORT GROUPS asked for that.
    pub hand_over_by: Option<Nexus>,
    /// The present owner became it by SET TARGET PORT GROUPS.
    pub owner_by_host: bool,
    /// Replicas that are no longer of the volume and not yet removed.
    pub removing: Vec<Member>,
    /// Replicas (second) that take the place of others (first).
    pub moves: Vec<(NodeNumber, NodeNumber)>,
    /// What it is a snapshot or clone of.
    pub origin: Option<Origin>,
    /// How far it is made, until it is.
    pub making: Option<Making>,
    /// How far it is put back to what a snapshot has.
    pub restoring: Option<Restoring>,
    /// The last restore that was done.
    pub restored: Option<VolumeId>,
    /// Persistent reservations, mode parameters and what else commands change.
    pub lu: LuState,
    /// Log index of the last change of `lu`; 0 = never changed.
    pub reservation_version: u64,
    /// Where its registrations come from.
    pub provenance: Provenance,
    /// The last changes of the reservations, by proposal.
    pub(super) outcomes: VecDeque<records::ProposalOutcome>,
    /// Version of the newest change that is not among `outcomes` any more; 0 = all are.
    pub(super) outcomes_forgotten: u64,
}

impl Volume {
    /// The durable record of everything but the reservations.
    pub fn record(&self) -> records::Volume {
        let owner = self.config.owner();
        records::Volume {
            id: self.id.0.to_vec(),
            name: self.name.clone(),
            size_bytes: self.size_bytes,
            block_size: self.block_size,
            physical_block_exponent: self.physical_block_exponent,
            write_cache: self.write_cache,
            thin: self.thin,
            checksums: self.checksums,
            volatile: self.volatile,
            replicas: self.replicas,
            epoch: Some(epoch_record(self.config.epoch())),
            owner: owner.map_or(0, |o| u32::from(o.node.get())),
            owner_incarnation: owner.map_or(0, |o| o.incarnation.0),
            in_sync: self.config.in_sync().iter().map(member_record).collect(),
            learners: self.config.learners().iter().map(member_record).collect(),
            min_in_sync: u32::from(self.config.min_in_sync()),
            deleting: self.deleting,
            removed_replicas: self.removed_replicas.iter().map(|n| u32::from(n.get())).collect(),
            absent: self.absent.iter().map(member_record).collect(),
            hand_over_to: self.hand_over_to.map_or(0, |n| u32::from(n.get())),
            hand_over_by: self.hand_over_by.as_ref().map(nexus_name),
            owner_by_host: self.owner_by_host,
            removing: self.removing.iter().map(member_record).collect(),
            origin: self.origin.as_ref().map(Origin::record),
            making: self.making.as_ref().map(Making::record),
            restoring: self.restoring.as_ref().map(Restoring::record),
            restored: self.restored.map_or_else(Vec::new, |id| id.0.to_vec()),
            moves: self
                .moves
                .iter()
                .map(|(from, to)| records::ReplicaMove {
                    from: u32::from(from.get()),
                    to: u32::from(to.get()),
                })
                .collect(),
        }
    }

    /// From its record, without reservations.
    pub(super) fn from_record(record: records::Volume) -> Result<Volume, CorruptState> {
        let id = VolumeId::from_slice(&record.id).ok_or_else(|| corrupt("a volume's id"))?;
        let wrong = |what: &str| corrupt(&format!("volume {id}: {what}"));
        let owner = match record.owner {
            0 => None,
            number => Some(Owner {
                node: NodeNumber::new(number).ok_or_else(|| wrong("owner"))?,
                incarnation: Incarnation(record.owner_incarnation),
            }),
        };
        let members = |list: &[records::ReplicaMember]| {
            list.iter().map(member_of).collect::<Option<Vec<_>>>().ok_or_else(|| wrong("a replica"))
        };
        let removed =
            record.removed_replicas.iter().map(|n| NodeNumber::new(*n)).collect::<Option<BTreeSet<_>>>();
        let hand_over_to = match record.hand_over_to {
            0 => None,
            number => Some(NodeNumber::new(number).ok_or_else(|| wrong("hand_over_to"))?),
        };
        let hand_over_by = match &record.hand_over_by {
            None => None,
            Some(name) => {
                Some(nexus_of(&name.transport_id, name.relative_port).ok_or_else(|| wrong("hand_over_by"))?)
            }
        };
        let moves = record.moves.iter().map(|m| Some((NodeNumber::new(m.from)?, NodeNumber::new(m.to)?)));
        let moves = moves.collect::<Option<Vec<_>>>();
        let config = VolumeConfig::from_parts(
            epoch_of(record.epoch.as_ref()),
            owner,
            members(&record.in_sync)?,
            members(&record.learners)?,
            u8::try_from(record.min_in_sync).map_err(|_| wrong("min_in_sync"))?,
        )
        .map_err(|error| wrong(&error.to_string()))?;
        check_geometry(record.size_bytes, record.block_size, record.physical_block_exponent)
            .map_err(|refusal| wrong(&refusal.to_string()))?;
        Ok(Volume {
            id,
            name: record.name,
            size_bytes: record.size_bytes,
            block_size: record.block_size,
            physical_block_exponent: record.physical_block_exponent,
            write_cache: record.write_cache,
            thin: record.thin,
            checksums: record.checksums,
            volatile: record.volatile,
            replicas: record.replicas,
            config,
            deleting: record.deleting,
            removed_replicas: removed.ok_or_else(|| wrong("removed_replicas"))?,
            absent: members(&record.absent)?,
            hand_over_to,
            hand_over_by,
            owner_by_host: record.owner_by_host,
            removing: members(&record.removing)?,
            moves: moves.ok_or_else(|| wrong("moves"))?,
            origin: record.origin.map(Origin::from_record).transpose()?,
            making: record.making.map(Making::from_record).transpose()?,
            restoring: record.restoring.map(Restoring::from_record).transpose()?,
            restored: match record.restored.as_slice() {
                [] => None,
                id => Some(VolumeId::from_slice(id).ok_or_else(|| wrong("restored"))?),
            },
            lu: LuState::default(),
            reservation_version: 0,
            provenance: Provenance::default(),
            outcomes: VecDeque::new(),
            outcomes_forgotten: 0,
        })
    }
}

impl Volume {
    /// Every replica that belongs to the volume: in sync, catching up, absent.
    pub fn kept(&self) -> impl Iterator<Item = &Member> {
        self.config.in_sync().iter().chain(self.config.learners()).chain(&self.absent)
    }

    /// Every replica that exists in some pool, also those that are being removed.
    pub fn held(&self) -> impl Iterator<Item = &Member> {
        self.kept().chain(&self.removing)
    }

    /// True if the replica of `node` is in sync.
    pub fn is_in_sync(&self, node: NodeNumber) -> bool {
        self.config.in_sync().iter().any(|m| m.node == node)
    }

    /// An acknowledged write may sit in page caches only: the write cache is on, by the volume's specification or because a host
    /// has turned it on.
    pub fn may_cache(&self) -> bool {
        let unit = &self.lu.unit;
        self.write_cache || [&unit.mode, &unit.saved_mode].into_iter().flatten().any(|mode| mode.write_cache)
    }

    /// Node number of the owner.
    pub fn owner_node(&self) -> Option<NodeNumber> {
        self.config.owner().map(|owner| owner.node)
    }

    /// Takes `config` as the configuration, with what follows from it: wishes that it fulfils or makes void end, and
    /// `min_in_sync` goes with the copies wished for, up only once they are all in sync. Says what became of a hand-over that was asked
    /// for.
    pub(super) fn adopt(&mut self, config: VolumeConfig) -> HandOver {
        let before = self.owner_node();
        let (asked, by_host) = (self.hand_over_to.is_some(), self.hand_over_by.is_some());
        let wished = min_in_sync(self.replicas);
        let full = config.in_sync().len() >= self.replicas as usize;
        self.config = if wished < config.min_in_sync() || full {
            let (in_sync, learners) = (config.in_sync().to_vec(), config.learners().to_vec());
            let settled = VolumeConfig::from_parts(config.epoch(), config.owner(), in_sync, learners, wished);
            settled.unwrap_or(config)
        } else {
            config
        };
        let owner = self.owner_node();
        if owner != before || self.hand_over_to.is_some_and(|to| Some(to) == owner || !self.is_in_sync(to)) {
            self.hand_over_to = None;
            self.hand_over_by = None;
        }
        self.absent.retain(|m| self.config.member(m.node).is_none());
        let kept: BTreeSet<NodeNumber> = self.kept().map(|m| m.node).collect();
        self.moves.retain(|(from, to)| kept.contains(from) && kept.contains(to));
        match asked && self.hand_over_to.is_none() && owner == before && !by_host {
            true => HandOver::GivenUp,
            false => HandOver::NotGivenUp,
        }
    }
}

/// What a new configuration makes of a hand-over that the cluster or an administrator asked for. (A host that asked for one waits for it.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HandOver {
    /// It cannot be made any more: an implicit transition has failed (SPC-5 5.17.2.6).
    GivenUp,
    /// Made, still to be made, or never asked for.
    NotGivenUp,
}

impl HandOver {
    /// Tells hosts of a failure.
    pub(super) fn tell(self, id: VolumeId, effects: &mut Effects) {
        if self == HandOver::GivenUp {
            effects.unit_attention(id, asc::IMPLICIT_ALUA_TRANSITION_FAILED, Audience::Everyone);
        }
    }
}

/// Replicas that must be in sync for writes to be taken, of so many copies (design 6.10).
pub fn min_in_sync(replicas: u32) -> u8 {
    if replicas >= 3 { 2 } else { 1 }
}

impl StateMachine {
    /// A new volume may have this id and name.
    pub(super) fn check_new(&self, id: VolumeId, name: &str) -> Result<(), Refusal> {
        if let Some(taken) = self.volume_by_name(name) {
            if taken.deleting {
                return Err(Refusal::Precondition(format!(
                    "volume {} is still being deleted; wait until its replicas are removed",
                    taken.name
                )));
            }
            return Err(Refusal::AlreadyExists { kind: Kind::Volume, name: name.to_owned() });
        }
        if self.volumes.contains_key(&id) {
            return Err(Refusal::invalid("id", "is that of another volume"));
        }
        Ok(())
    }

    pub(super) fn create_volume(
        &mut self,
        command: &records::CreateVolume,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        check_name("name", &command.name)?;
        check_geometry(command.size_bytes, command.block_size, command.physical_block_exponent)?;
        check_replicas(command.replicas)?;
        if command.others.len() + 1 != command.replicas as usize {
            let reason =
                format!("{} copies need as many places, not {}", command.replicas, command.others.len() + 1);
            return Err(Refusal::invalid("spec.replicas", reason));
        }
        let id = VolumeId::from_slice(&command.id).ok_or_else(|| Refusal::invalid("id", "not 16 bytes"))?;
        self.check_new(id, &command.name)?;
        if self.volumes.len() >= limits::VOLUMES_MAX {
            return Err(exhausted("volumes", limits::VOLUMES_MAX));
        }
        let new = NewVolume {
            size_bytes: command.size_bytes,
            copies: command.replicas as usize,
            volatile: command.volatile,
            checksums: command.checksums,
        };
        let (owner, member) = self.check_placement(command.node, &command.pool, &new)?;
        let boot = member.boot;
        let mut members = vec![member];
        for place in &command.others {
            let other = self.check_placement(place.node, &place.pool, &new)?.1;
            if members.iter().any(|m| m.node == other.node) {
                let reason = format!("node {} is named for two copies", self.node_name(place.node));
                return Err(Refusal::invalid("spec.replicas", reason));
            }
            members.push(other);
        }
        let on: Vec<String> = members.iter().map(|m| self.node_name(u32::from(m.node.get()))).collect();
        let config = VolumeConfig::new(members, min_in_sync(command.replicas))
            .and_then(|new| new.change_owner(new.epoch(), owner, |_| Some(boot)))
            .map_err(|error| Refusal::invalid("spec", error.to_string()))?
            .0;
        let volume = Volume {
            id,
            name: command.name.clone(),
            size_bytes: command.size_bytes,
            block_size: command.block_size,
            physical_block_exponent: command.physical_block_exponent,
            write_cache: command.write_cache,
            thin: command.thin,
            checksums: command.checksums,
            volatile: command.volatile,
            replicas: command.replicas,
            config,
            deleting: false,
            removed_replicas: BTreeSet::new(),
            absent: Vec::new(),
            hand_over_to: None,
            hand_over_by: None,
            owner_by_host: false,
            removing: Vec::new(),
            moves: Vec::new(),
            origin: None,
            making: None,
            restoring: None,
            restored: None,
            lu: LuState::default(),
            reservation_version: 0,
            provenance: Provenance::default(),
            outcomes: VecDeque::new(),
            outcomes_forgotten: 0,
        };
        let record = volume.record();
        let message = format!(
            "volume {} of {} bytes was created on node {}",
            volume.name,
            volume.size_bytes,
            on.join(", ")
        );
        effects.event("volume.created", format!("volume/{}", volume.name), message);
        effects.change(change::Change::Volume(record.clone()));
        self.volumes.insert(id, volume);
        Ok(Outcome::Volume(record))
    }

    /// The node and pool that the proposer chose, looked at again at this place of the log.
    pub(super) fn check_placement(
        &self,
        number: u32,
        pool: &str,
        new: &NewVolume,
    ) -> Result<(Owner, Member), Refusal> {
        let (size_bytes, copies) = (new.size_bytes, new.copies);
        let node = self
            .nodes
            .get(&number)
            .ok_or_else(|| Refusal::not_found(Kind::Node, &format!("number {number}")))?;
        let refuse = |reason: String| Err(Refusal::Precondition(reason));
        if node.cordoned {
            return refuse(format!("node {} is cordoned; uncordon it or choose another", node.name));
        }
        if copies > 1 && !node.replicates {
            return refuse(format!("node {} runs a version that keeps no copies of others", node.name));
        }
        if !node.live {
            return refuse(format!("node {} holds no lease; start it or choose another", node.name));
        }
        let Some(found) = node.pools.iter().find(|p| p.name == pool) else {
            return refuse(format!("node {} has no pool '{}'", node.name, printable(pool)));
        };
        admits(node, found, new).map_err(Refusal::Precondition)?;
        if found.free_bytes < size_bytes {
            return refuse(format!(
                "pool {} of node {} has {} bytes free; the volume needs {size_bytes}",
                found.name, node.name, found.free_bytes
            ));
        }
        let (Some(number), Some(boot)) = (NodeNumber::new(number), BootId::from_slice(&node.boot_id)) else {
            return refuse(format!("node {} has no valid number or boot id", node.name));
        };
        let owner = Owner { node: number, incarnation: Incarnation(node.incarnation) };
        Ok((owner, Member { node: number, boot, pool: pool.to_owned() }))
    }

    /// A volume that is there and stays.
    pub(super) fn live_volume(&self, name: &str) -> Result<&Volume, Refusal> {
        let volume =
            self.volume_by_name(name).ok_or_else(|| Refusal::not_found(Kind::Volume, &printable(name)))?;
        if volume.deleting {
            return Err(Refusal::Precondition(format!("volume {} is being deleted", volume.name)));
        }
        if volume.making.is_some() {
            return Err(Refusal::Precondition(format!("volume {} is still being made", volume.name)));
        }
        Ok(volume)
    }
}

/// Copies that may be asked for.
pub fn check_replicas(replicas: u32) -> Result<(), Refusal> {
    if (1..=REPLICAS_MAX as u32).contains(&replicas) {
        return Ok(());
    }
    let reason = format!("{replicas} copies asked for; 1 to {REPLICAS_MAX} are kept");
    Err(Refusal::invalid("spec.replicas", reason))
}

/// Size and blocks of a volume; fields named as in the management API.
pub fn check_geometry(size_bytes: u64, block_size: u32, physical_block_exponent: u32) -> Result<(), Refusal> {
    if !holdfast_scsi::limits::BLOCK_SIZES.contains(&block_size) {
        return Err(Refusal::invalid("spec.block_size", format!("{block_size} is neither 512 nor 4096")));
    }
    if !size_bytes.is_multiple_of(u64::from(block_size)) {
        let reason = format!("{size_bytes} is not a multiple of the block size {block_size}");
        return Err(Refusal::invalid("spec.size_bytes", reason));
    }
    if !(limits::VOLUME_BYTES_MIN..=limits::VOLUME_BYTES_MAX).contains(&size_bytes) {
        let reason = format!("{size_bytes} is not between 1 MiB and 16 TiB");
        return Err(Refusal::invalid("spec.size_bytes", reason));
    }
    if physical_block_exponent > limits::PHYSICAL_BLOCK_EXPONENT_MAX {
        let reason =
            format!("{physical_block_exponent} is more than {}", limits::PHYSICAL_BLOCK_EXPONENT_MAX);
        return Err(Refusal::invalid("spec.physical_block_exponent", reason));
    }
    Ok(())
}
