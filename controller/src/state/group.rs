//! Host groups: hosts that see the same volumes at the same LUNs, as the members of a cluster have to.
//!
//! Invariants: every member exists; a member's LUN map holds every mapping of its groups (see
//! [`mapping`](super::mapping)); a change of members changes their maps in the same entry, or is refused whole.

use std::collections::BTreeSet;

use holdfast_proto::state::{self as records, change};
use holdfast_replica::ids::VolumeId;

use super::{
    CorruptState, Kind, Outcome, Refusal, StateMachine,
    convert::corrupt,
    draft::Draft,
    effects::Effects,
    limits,
    mapping::{LunMap, Mapped},
    names::{check_name, printable},
    node::exhausted,
};

/// A group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// Names of its hosts.
    pub hosts: BTreeSet<String>,
    /// Its mappings.
    pub luns: LunMap,
}

impl Group {
    /// The durable record.
    pub(super) fn record(&self, name: &str) -> records::HostGroup {
        let mapping = |(lun, mapped): (&u32, &Mapped)| records::GroupMapping {
            volume_id: mapped.volume.0.to_vec(),
            lun: *lun,
            read_only: mapped.read_only,
        };
        records::HostGroup {
            name: name.to_owned(),
            hosts: self.hosts.iter().cloned().collect(),
            mappings: self.luns.iter().map(mapping).collect(),
        }
    }

    /// From its record.
    ///
    /// # Errors
    /// It holds no valid mappings.
    pub fn from_record(record: &records::HostGroup) -> Result<Group, CorruptState> {
        let wrong = || corrupt(&format!("host group {}", record.name));
        let mut group = Group { hosts: record.hosts.iter().cloned().collect(), luns: LunMap::new() };
        for mapping in &record.mappings {
            let volume = VolumeId::from_slice(&mapping.volume_id).ok_or_else(wrong)?;
            let mapped = Mapped { volume, read_only: mapping.read_only };
            if mapping.lun > limits::LUN_MAX || group.luns.insert(mapping.lun, mapped).is_some() {
                return Err(wrong());
            }
        }
        Ok(group)
    }
}

impl StateMachine {
    /// All groups, by name.
    pub fn host_groups(&self) -> impl Iterator<Item = (&str, &Group)> {
        self.groups.iter().map(|(name, group)| (name.as_str(), group))
    }

    /// A group by name.
    pub fn host_group(&self, name: &str) -> Option<&Group> {
        self.groups.get(name)
    }

    /// The group by which a host sees a volume; `None`: by itself, or not at all.
    pub fn group_of_mapping(&self, host: &str, volume: VolumeId) -> Option<&str> {
        self.groups_of(host)
            .find(|name| self.groups.get(*name).is_some_and(|g| g.luns.values().any(|m| m.volume == volume)))
    }

    /// The mappings of a host that no group gave it.
    pub(super) fn own_mappings(&self, host: &str) -> LunMap {
        let of_groups: BTreeSet<VolumeId> = self
            .groups_of(host)
            .filter_map(|name| self.groups.get(name))
            .flat_map(|group| group.luns.values().map(|mapped| mapped.volume))
            .collect();
        self.mappings_of_host(host)
            .filter(|(_, mapped)| !of_groups.contains(&mapped.volume))
            .map(|(lun, mapped)| (lun, *mapped))
            .collect()
    }

    pub(super) fn create_host_group(
        &mut self,
        command: &records::CreateHostGroup,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        check_name("name", &command.name)?;
        if self.groups.contains_key(&command.name) {
            return Err(Refusal::AlreadyExists { kind: Kind::HostGroup, name: command.name.clone() });
        }
        if self.groups.len() >= limits::HOST_GROUPS_MAX {
            return Err(exhausted("host groups", limits::HOST_GROUPS_MAX));
        }
        let hosts = self.known_hosts("hosts", &command.hosts)?;
        check_members(hosts.len())?;
        let group = Group { hosts, luns: LunMap::new() };
        let record = group.record(&command.name);
        let message = format!("host group {} was created with {} hosts", command.name, record.hosts.len());
        effects.event("host-group.created", format!("host-group/{}", command.name), message);
        effects.change(change::Change::HostGroup(record.clone()));
        self.groups.insert(command.name.clone(), group);
        Ok(Outcome::HostGroup(record))
    }

    pub(super) fn update_host_group(
        &mut self,
        command: &records::UpdateHostGroup,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        let missing = || Refusal::not_found(Kind::HostGroup, &printable(&command.name));
        let group = self.groups.get(&command.name).ok_or_else(missing)?;
        let added = self.known_hosts("add_hosts", &command.add_hosts)?;
        let removed = self.known_hosts("remove_hosts", &command.remove_hosts)?;
        if let Some(strange) = removed.iter().find(|host| !group.hosts.contains(*host)) {
            let reason = format!("host {strange} is not in host group {}", command.name);
            return Err(Refusal::invalid("remove_hosts", reason));
        }
        if let Some(both) = added.intersection(&removed).next() {
            return Err(Refusal::invalid("add_hosts", format!("host {both} is to be removed as well")));
        }
        let members: BTreeSet<String> =
            group.hosts.union(&added).filter(|host| !removed.contains(*host)).cloned().collect();
        check_members(members.len())?;
        if members != group.hosts {
            let mut draft = Draft::new(self);
            draft.set_members(&command.name, members);
            let plan = draft.finish(false)?;
            let message = format!(
                "host group {}: {} hosts were added, {} removed",
                command.name,
                added.len(),
                removed.len()
            );
            effects.event("host-group.changed", format!("host-group/{}", command.name), message);
            self.carry_out(plan, effects);
        }
        let group = self.groups.get(&command.name).ok_or_else(missing)?;
        Ok(Outcome::HostGroup(group.record(&command.name)))
    }

    pub(super) fn delete_host_group(
        &mut self,
        command: &records::DeleteHostGroup,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        let group = self
            .groups
            .get(&command.name)
            .ok_or_else(|| Refusal::not_found(Kind::HostGroup, &printable(&command.name)))?;
        if let Some((lun, mapped)) = group.luns.first_key_value() {
            return Err(Refusal::Precondition(format!(
                "volume {} is mapped to host group {} as LUN {lun}; delete the mapping first",
                self.volume_name(mapped.volume),
                command.name
            )));
        }
        let message = format!("host group {} was deleted", command.name);
        effects.event("host-group.deleted", format!("host-group/{}", command.name), message);
        effects.change(change::Change::RemovedHostGroup(command.name.clone()));
        self.groups.remove(&command.name);
        Ok(Outcome::Done)
    }

    fn known_hosts(&self, field: &'static str, names: &[String]) -> Result<BTreeSet<String>, Refusal> {
        let mut hosts = BTreeSet::new();
        for name in names {
            if !self.hosts.contains_key(name) {
                return Err(Refusal::invalid(field, format!("host {} does not exist", printable(name))));
            }
            if !hosts.insert(name.clone()) {
                return Err(Refusal::invalid(field, format!("host {name} is given twice")));
            }
        }
        Ok(hosts)
    }
}

fn check_members(count: usize) -> Result<(), Refusal> {
    if count > limits::HOSTS_PER_GROUP_MAX {
        return Err(exhausted("hosts of a group", limits::HOSTS_PER_GROUP_MAX));
    }
    Ok(())
}
