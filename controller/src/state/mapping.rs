//! LUN maps: mappings of hosts and of host groups, one at a time or many in one entry.
//!
//! Invariants
//! * For each host a LUN stands for one volume and a volume has one LUN, whether it comes from the host's own mappings or
//!   from a group's; the map of a host holds every mapping of every group that it is in.
//! * What is asked for in one entry is done whole or not at all, and judged by its result, not by an order.
//! * Every change of a host's map tells that host's nexuses 3F/0E, and nobody else's. Records that free a LUN stand before
//!   those that take it.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_proto::state::{self as records, change};
use holdfast_replica::ids::VolumeId;
use holdfast_scsi::sense::asc;

use super::{
    Kind, Outcome, Refusal, StateMachine, draft::Draft, effects::Effects, group::Group, limits,
    names::printable, refusal::Violation,
};

/// What a LUN of a host or group stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// The volume.
    pub volume: VolumeId,
    /// Writes through this LUN are refused.
    pub read_only: bool,
}

/// LUNs and what they stand for.
pub type LunMap = BTreeMap<u32, Mapped>;

/// Whose mappings.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// A host's own.
    Host(String),
    /// A group's.
    Group(String),
}

impl Target {
    /// The resource that its mapping of a volume is, for events and the audit.
    pub(super) fn subject(&self, volume: &str) -> String {
        match self {
            Target::Host(host) => format!("mapping/{volume}/{host}"),
            Target::Group(group) => format!("mapping/{volume}/group:{group}"),
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::Host(name) => write!(f, "host {name}"),
            Target::Group(name) => write!(f, "host group {name}"),
        }
    }
}

/// What became, or would become, of one mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Whose.
    pub target: Target,
    /// Of which volume.
    pub volume: VolumeId,
    /// LUN and read-only before; `None`: there was none.
    pub before: Option<(u32, bool)>,
    /// LUN and read-only after it; `None`: there is none.
    pub after: Option<(u32, bool)>,
}

/// Changes of many mappings, thought through: nothing is in their way.
pub(super) struct Plan {
    pub(super) differences: Vec<Difference>,
    pub(super) groups: BTreeMap<String, Group>,
    /// Whole maps of the hosts that are touched.
    pub(super) hosts: BTreeMap<String, LunMap>,
}

impl Plan {
    fn counts(&self) -> records::MappingsApplied {
        let count = |is: fn(&Difference) -> bool| {
            u32::try_from(self.differences.iter().filter(|d| is(d)).count()).unwrap_or(u32::MAX)
        };
        records::MappingsApplied {
            created: count(|d| d.before.is_none()),
            changed: count(|d| d.before.is_some() && d.after.is_some()),
            removed: count(|d| d.after.is_none()),
        }
    }
}

impl StateMachine {
    /// What [`records::ApplyMappings`] would do: counts and differences, by target and volume.
    ///
    /// # Errors
    /// What is in its way, with the field of each edit.
    pub fn plan_mappings(
        &self,
        command: &records::ApplyMappings,
    ) -> Result<(records::MappingsApplied, Vec<Difference>), Refusal> {
        let plan = self.plan_edits(command)?;
        Ok((plan.counts(), plan.differences))
    }

    fn plan_edits(&self, command: &records::ApplyMappings) -> Result<Plan, Refusal> {
        if command.edits.is_empty() {
            return Err(Refusal::invalid("edits", "at least one is needed"));
        }
        if command.edits.len() > limits::MAPPING_EDITS_MAX {
            let reason = format!("{} are more than {}", command.edits.len(), limits::MAPPING_EDITS_MAX);
            return Err(Refusal::invalid("edits", reason));
        }
        let mut draft = Draft::new(self);
        for (at, edit) in command.edits.iter().enumerate() {
            draft.note(at, edit);
        }
        draft.finish(command.prune)
    }

    pub(super) fn apply_mappings(
        &mut self,
        command: &records::ApplyMappings,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        let plan = self.plan_edits(command)?;
        let (counts, differences) = (plan.counts(), plan.differences.clone());
        self.carry_out(plan, effects);
        Ok(Outcome::Mappings(counts, differences))
    }

    pub(super) fn create_mapping(
        &mut self,
        command: &records::CreateMapping,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        let volume = self.live_volume(&command.volume)?;
        let id = volume.id;
        let target = self.target(&command.host, &command.group)?;
        let lun = match &target {
            Target::Host(host) => self.lun_of(host, id),
            Target::Group(name) => self
                .groups
                .get(name)
                .and_then(|group| group.luns.iter().find(|(_, m)| m.volume == id).map(|(lun, _)| *lun)),
        };
        if let Some(lun) = lun {
            return Err(Refusal::AlreadyExists {
                kind: Kind::Mapping,
                name: format!("of volume {} to {target} (LUN {lun})", volume.name),
            });
        }
        let edit = records::MappingEdit {
            volume: command.volume.clone(),
            host: command.host.clone(),
            group: command.group.clone(),
            lun: command.lun,
            read_only: command.read_only,
            remove: false,
        };
        let plan = self.plan_one(edit)?;
        let lun = plan.differences.first().and_then(|d| d.after).map_or(0, |(lun, _)| lun);
        self.carry_out(plan, effects);
        Ok(Outcome::Mapping(records::Mapping {
            host: command.host.clone(),
            volume_id: id.0.to_vec(),
            lun,
            read_only: command.read_only,
            group: command.group.clone(),
        }))
    }

    pub(super) fn delete_mapping(
        &mut self,
        command: &records::DeleteMapping,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        if self.volume_by_name(&command.volume).is_none() {
            return Err(Refusal::not_found(Kind::Volume, &printable(&command.volume)));
        }
        self.target(&command.host, &command.group)?;
        let edit = records::MappingEdit {
            volume: command.volume.clone(),
            host: command.host.clone(),
            group: command.group.clone(),
            remove: true,
            ..Default::default()
        };
        let plan = self.plan_one(edit)?;
        self.carry_out(plan, effects);
        Ok(Outcome::Done)
    }

    fn target(&self, host: &str, group: &str) -> Result<Target, Refusal> {
        match (host, group) {
            (host, "") if self.hosts.contains_key(host) => Ok(Target::Host(host.to_owned())),
            (host, "") => Err(Refusal::not_found(Kind::Host, &printable(host))),
            ("", group) if self.groups.contains_key(group) => Ok(Target::Group(group.to_owned())),
            ("", group) => Err(Refusal::not_found(Kind::HostGroup, &printable(group))),
            _ => Err(Refusal::invalid("group", "a host or a group, not both")),
        }
    }

    /// One edit by itself: what is wrong is told without its number.
    fn plan_one(&self, edit: records::MappingEdit) -> Result<Plan, Refusal> {
        let mut draft = Draft::new(self);
        draft.note(0, &edit);
        let missing = draft.missing.clone();
        draft.finish(false).map_err(|refusal| match refusal {
            Refusal::Several(violations) => match (missing, violations.into_iter().next()) {
                (Some(name), _) => Refusal::NotFound { kind: Kind::Mapping, name },
                (None, Some(Violation { field, reason }))
                    if field.ends_with(".lun") && reason.contains("not between") =>
                {
                    Refusal::invalid("lun", reason)
                }
                (None, Some(first)) => Refusal::Precondition(first.reason),
                (None, None) => Refusal::Precondition("nothing is known of why".to_owned()),
            },
            other => other,
        })
    }

    /// Makes the state what the plan says.
    pub(super) fn carry_out(&mut self, plan: Plan, effects: &mut Effects) {
        for difference in &plan.differences {
            let volume = self.volume_name(difference.volume);
            let (kind, what) = match (difference.before, difference.after) {
                (None, Some((lun, _))) => {
                    ("mapping.created", format!("was mapped to {} as LUN {lun}", difference.target))
                }
                (Some((lun, _)), None) => (
                    "mapping.deleted",
                    format!("is no longer mapped to {} (was LUN {lun})", difference.target),
                ),
                (Some((from, _)), Some((to, read_only))) => (
                    "mapping.changed",
                    format!(
                        "is mapped to {} as LUN {to} (was LUN {from}), {}",
                        difference.target,
                        if read_only { "read-only" } else { "read-write" }
                    ),
                ),
                (None, None) => continue,
            };
            effects.event(kind, difference.target.subject(&volume), format!("volume {volume} {what}"));
        }
        for (name, group) in plan.groups {
            if self.groups.get(&name) != Some(&group) {
                effects.change(change::Change::HostGroup(group.record(&name)));
                self.groups.insert(name, group);
            }
        }
        let empty = LunMap::new();
        let mut set = Vec::new();
        let mut told = BTreeSet::new();
        for (host, after) in &plan.hosts {
            let before = self.mappings.get(host).unwrap_or(&empty);
            for (lun, mapped) in before.iter().filter(|(lun, mapped)| after.get(lun) != Some(mapped)) {
                told.insert(host.clone());
                let stays = after.get(lun).is_some_and(|new| new.volume == mapped.volume);
                if !stays {
                    effects.change(change::Change::RemovedMapping(records::MappingKey {
                        host: host.clone(),
                        volume_id: mapped.volume.0.to_vec(),
                    }));
                }
            }
            for (lun, mapped) in after.iter().filter(|(lun, mapped)| before.get(lun) != Some(mapped)) {
                told.insert(host.clone());
                set.push(records::Mapping {
                    host: host.clone(),
                    volume_id: mapped.volume.0.to_vec(),
                    lun: *lun,
                    read_only: mapped.read_only,
                    group: String::new(),
                });
            }
        }
        for mapping in set {
            effects.change(change::Change::Mapping(mapping));
        }
        for host in told {
            effects.unit_attention_for_host(&host, asc::REPORTED_LUNS_DATA_CHANGED);
        }
        for (host, after) in plan.hosts {
            if after.is_empty() {
                self.mappings.remove(&host);
            } else {
                self.mappings.insert(host, after);
            }
        }
    }
}
