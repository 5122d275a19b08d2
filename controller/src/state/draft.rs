//! Changes of mappings and groups that are being thought through: every fault of all of them is found before anything is
//! changed.
//!
//! Invariant: a draft reads the state and never changes it; what [`Draft::finish`] gives holds the invariants of
//! [`mapping`](super::mapping).

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};

use holdfast_proto::state as records;
use holdfast_replica::ids::VolumeId;

use super::{
    Refusal, StateMachine,
    group::Group,
    limits,
    mapping::{Difference, LunMap, Mapped, Plan, Target},
    names::printable,
    refusal::Violation,
};

/// A mapping that is asked for.
struct Wish {
    /// Number of its edit.
    at: usize,
    lun: Option<u32>,
    read_only: bool,
}

/// See the module.
pub(super) struct Draft<'a> {
    state: &'a StateMachine,
    /// The own mappings of hosts, and those of groups, that are touched.
    maps: BTreeMap<Target, LunMap>,
    /// New members of groups.
    members: BTreeMap<String, BTreeSet<String>>,
    wishes: BTreeMap<(Target, VolumeId), Wish>,
    removed: BTreeSet<(Target, VolumeId)>,
    violations: Vec<Violation>,
    /// A mapping that was to be removed and is not there.
    pub(super) missing: Option<String>,
}

impl<'a> Draft<'a> {
    pub(super) fn new(state: &'a StateMachine) -> Self {
        Draft {
            state,
            maps: BTreeMap::new(),
            members: BTreeMap::new(),
            wishes: BTreeMap::new(),
            removed: BTreeSet::new(),
            violations: Vec::new(),
            missing: None,
        }
    }

    fn wrong(&mut self, field: String, reason: String) {
        if self.violations.len() < limits::VIOLATIONS_TOLD_MAX {
            self.violations.push(Violation { field, reason });
        }
    }

    /// Gives a group other members.
    pub(super) fn set_members(&mut self, group: &str, members: BTreeSet<String>) {
        self.touch(&Target::Group(group.to_owned()));
        self.members.insert(group.to_owned(), members);
    }

    fn touch(&mut self, target: &Target) {
        if let Entry::Vacant(place) = self.maps.entry(target.clone()) {
            place.insert(match target {
                Target::Host(host) => self.state.own_mappings(host),
                Target::Group(group) => {
                    self.state.groups.get(group).map(|g| g.luns.clone()).unwrap_or_default()
                }
            });
        }
    }

    /// Takes the edit numbered `at`, and notes what is wrong with it by itself.
    pub(super) fn note(&mut self, at: usize, edit: &records::MappingEdit) {
        let field = |name: &str| format!("edits[{at}].{name}");
        let target = match (edit.host.as_str(), edit.group.as_str()) {
            ("", "") => return self.wrong(field("host"), "a host or a group is needed".to_owned()),
            (host, "") if self.state.hosts.contains_key(host) => Target::Host(host.to_owned()),
            (host, "") => {
                return self.wrong(field("host"), format!("host {} does not exist", printable(host)));
            }
            ("", group) if self.state.groups.contains_key(group) => Target::Group(group.to_owned()),
            ("", group) => {
                return self.wrong(field("group"), format!("host group {} does not exist", printable(group)));
            }
            _ => return self.wrong(field("group"), "a host or a group, not both".to_owned()),
        };
        let Some(volume) = self.state.volume_by_name(&edit.volume) else {
            let reason = format!("volume {} does not exist", printable(&edit.volume));
            return self.wrong(field("volume"), reason);
        };
        if volume.making.is_some() {
            let reason = format!("volume {} is still being made", volume.name);
            return self.wrong(field("volume"), reason);
        }
        self.touch(&target);
        let key = (target.clone(), volume.id);
        if self.wishes.contains_key(&key) || self.removed.contains(&key) {
            let reason = format!("volume {} and {target} are named twice", volume.name);
            return self.wrong(field("volume"), reason);
        }
        let lun = self.lun_of(&target, volume.id);
        if edit.remove {
            if lun.is_none() {
                let from_group = match &target {
                    Target::Host(host) => self.state.group_of_mapping(host, volume.id),
                    Target::Group(_) => None,
                };
                let reason = match from_group {
                    Some(group) => format!(
                        "volume {} is mapped to {target} by host group {group}; unmap it from the group",
                        volume.name
                    ),
                    None => {
                        self.missing = Some(format!("of volume {} to {target}", volume.name));
                        format!("volume {} is not mapped to {target}", volume.name)
                    }
                };
                return self.wrong(field("volume"), reason);
            }
            self.removed.insert(key);
            return;
        }
        if volume.deleting {
            return self.wrong(field("volume"), format!("volume {} is being deleted", volume.name));
        }
        if let Some(lun) = edit.lun.filter(|lun| *lun > limits::LUN_MAX) {
            return self.wrong(field("lun"), format!("{lun} is not between 0 and {}", limits::LUN_MAX));
        }
        self.wishes.insert(key, Wish { at, lun: edit.lun, read_only: edit.read_only });
    }

    fn lun_of(&self, target: &Target, volume: VolumeId) -> Option<u32> {
        let map = self.maps.get(target)?;
        map.iter().find(|(_, mapped)| mapped.volume == volume).map(|(lun, _)| *lun)
    }

    /// Puts everything together. With `prune`, what the touched targets have and no edit sets is removed.
    pub(super) fn finish(mut self, prune: bool) -> Result<Plan, Refusal> {
        let before = self.maps.clone();
        let wishes = std::mem::take(&mut self.wishes);
        for (target, map) in &mut self.maps {
            map.retain(|_, mapped| {
                let key = (target.clone(), mapped.volume);
                !prune && !wishes.contains_key(&key) && !self.removed.contains(&key)
            });
        }
        // Those with a LUN first: the others take what is left.
        for ((target, volume), wish) in &wishes {
            if let Some(lun) = wish.lun {
                self.place(target, *volume, lun, wish);
            }
        }
        for ((target, volume), wish) in &wishes {
            if wish.lun.is_none() {
                let own = before.get(target).and_then(|map| map.iter().find(|(_, m)| m.volume == *volume));
                let taken = self.taken(target);
                let kept = own.map(|(lun, _)| *lun).filter(|lun| !taken.contains(lun));
                match kept.or_else(|| (0..=limits::LUN_MAX).find(|lun| !taken.contains(lun))) {
                    Some(lun) => self.place(target, *volume, lun, wish),
                    None => {
                        self.wrong(format!("edits[{}].lun", wish.at), format!("{target} has no free LUN"))
                    }
                }
            }
        }
        let hosts = self.expand(&wishes);
        if !self.violations.is_empty() {
            return Err(Refusal::Several(self.violations));
        }
        Ok(Plan { differences: differences(&before, &self.maps), groups: self.groups(), hosts })
    }

    fn place(&mut self, target: &Target, volume: VolumeId, lun: u32, wish: &Wish) {
        let Some(map) = self.maps.get_mut(target) else { return };
        match map.entry(lun) {
            Entry::Vacant(place) => {
                place.insert(Mapped { volume, read_only: wish.read_only });
            }
            Entry::Occupied(other) => {
                let other = self.state.volume_name(other.get().volume);
                let reason = format!("LUN {lun} of {target} is volume {other}; choose another or none");
                self.wrong(format!("edits[{}].lun", wish.at), reason);
            }
        }
    }

    /// LUNs that a new mapping of the target cannot have.
    fn taken(&self, target: &Target) -> BTreeSet<u32> {
        let hosts: Vec<&String> = match target {
            Target::Host(host) => vec![host],
            Target::Group(group) => self.members_of(group).into_iter().flatten().collect(),
        };
        let mut taken: BTreeSet<u32> =
            self.maps.get(target).into_iter().flat_map(|map| map.keys().copied()).collect();
        for host in hosts {
            let own = Target::Host(host.clone());
            match self.maps.get(&own) {
                Some(map) => taken.extend(map.keys()),
                None => taken.extend(self.state.own_mappings(host).keys()),
            }
            for group in self.groups_with(host) {
                let luns = self.maps.get(&Target::Group(group.clone()));
                let luns = luns.or_else(|| self.state.groups.get(&group).map(|g| &g.luns));
                taken.extend(luns.into_iter().flat_map(|map| map.keys().copied()));
            }
        }
        taken
    }

    fn members_of(&self, group: &str) -> Option<&BTreeSet<String>> {
        self.members.get(group).or_else(|| self.state.groups.get(group).map(|g| &g.hosts))
    }

    /// Names of the groups that the host will be in.
    fn groups_with(&self, host: &str) -> Vec<String> {
        let names = self.state.groups_of(host).chain(self.members.keys().map(String::as_str));
        let with: BTreeSet<&str> =
            names.filter(|group| self.members_of(group).is_some_and(|m| m.contains(host))).collect();
        with.into_iter().map(str::to_owned).collect()
    }

    /// The whole maps of every host that is touched, itself or by a group.
    fn expand(&mut self, wishes: &BTreeMap<(Target, VolumeId), Wish>) -> BTreeMap<String, LunMap> {
        let mut touched = BTreeSet::new();
        for target in self.maps.keys() {
            match target {
                Target::Host(host) => drop(touched.insert(host.clone())),
                Target::Group(group) => {
                    let before = self.state.groups.get(group).map(|g| &g.hosts);
                    touched.extend(before.into_iter().chain(self.members_of(group)).flatten().cloned());
                }
            }
        }
        let mut hosts = BTreeMap::new();
        let mut changed = 0usize;
        for host in touched {
            let mut whole = LunMap::new();
            let mut whose: BTreeMap<VolumeId, (u32, Target)> = BTreeMap::new();
            let own = Target::Host(host.clone());
            let targets = std::iter::once(own).chain(self.groups_with(&host).into_iter().map(Target::Group));
            for target in targets.collect::<Vec<_>>() {
                let map = match (self.maps.get(&target), &target) {
                    (Some(map), _) => map.clone(),
                    (None, Target::Host(host)) => self.state.own_mappings(host),
                    (None, Target::Group(group)) => {
                        self.state.groups.get(group).map(|g| g.luns.clone()).unwrap_or_default()
                    }
                };
                for (lun, mapped) in map {
                    let at_lun = whole.get(&lun).map(|other| (lun, other.volume));
                    let clash =
                        at_lun.or_else(|| whose.get(&mapped.volume).map(|(lun, _)| (*lun, mapped.volume)));
                    if let Some((other_lun, other)) = clash {
                        let other_target =
                            whose.get(&other).map_or_else(|| target.clone(), |(_, t)| t.clone());
                        self.clash(
                            wishes,
                            &host,
                            (&target, mapped.volume, lun),
                            (&other_target, other, other_lun),
                        );
                        continue;
                    }
                    whole.insert(lun, mapped);
                    whose.insert(mapped.volume, (lun, target.clone()));
                }
            }
            if whole.len() > limits::MAPPINGS_PER_HOST_MAX {
                let reason = format!(
                    "host {host} would have {} mappings; the limit is {}",
                    whole.len(),
                    limits::MAPPINGS_PER_HOST_MAX
                );
                self.wrong("edits".to_owned(), reason);
            }
            let empty = LunMap::new();
            let before = self.state.mappings.get(&host).unwrap_or(&empty);
            changed += before.iter().filter(|(lun, m)| whole.get(lun) != Some(m)).count();
            changed += whole.iter().filter(|(lun, m)| before.get(lun) != Some(m)).count();
            hosts.insert(host, whole);
        }
        if changed > limits::MAPPINGS_CHANGED_MAX {
            let reason = format!(
                "{changed} mappings of hosts would change; the limit for one request is {}: do it in parts",
                limits::MAPPINGS_CHANGED_MAX
            );
            self.wrong("edits".to_owned(), reason);
        }
        hosts
    }

    fn clash(
        &mut self,
        wishes: &BTreeMap<(Target, VolumeId), Wish>,
        host: &str,
        (target, volume, lun): (&Target, VolumeId, u32),
        (other_target, other, other_lun): (&Target, VolumeId, u32),
    ) {
        let of =
            |target: &Target, volume: VolumeId| wishes.get(&(target.clone(), volume)).map(|wish| wish.at);
        let field = match of(target, volume).or_else(|| of(other_target, other)) {
            Some(at) => format!("edits[{at}].lun"),
            None => "hosts".to_owned(),
        };
        let by = |target: &Target| match target {
            Target::Host(_) => "by itself".to_owned(),
            Target::Group(group) => format!("by host group {group}"),
        };
        let name = |volume| self.state.volume_name(volume);
        let reason = if volume == other {
            format!(
                "host {host} would see volume {} twice: as LUN {other_lun} {} and as LUN {lun} {}",
                name(volume),
                by(other_target),
                by(target)
            )
        } else {
            format!(
                "LUN {lun} of host {host} would be volume {} {} and volume {} {}",
                name(other),
                by(other_target),
                name(volume),
                by(target)
            )
        };
        self.wrong(field, reason);
    }

    fn groups(&self) -> BTreeMap<String, Group> {
        let touched = self.maps.iter().filter_map(|(target, map)| match target {
            Target::Group(group) => Some((group, map)),
            Target::Host(_) => None,
        });
        touched
            .map(|(name, luns)| {
                let hosts = self.members_of(name).cloned().unwrap_or_default();
                (name.clone(), Group { hosts, luns: luns.clone() })
            })
            .collect()
    }
}

fn differences(before: &BTreeMap<Target, LunMap>, after: &BTreeMap<Target, LunMap>) -> Vec<Difference> {
    let by_volume = |map: &LunMap| -> BTreeMap<VolumeId, (u32, bool)> {
        map.iter().map(|(lun, mapped)| (mapped.volume, (*lun, mapped.read_only))).collect()
    };
    let mut all = Vec::new();
    for (target, map) in after {
        let old = before.get(target).map(by_volume).unwrap_or_default();
        let new = by_volume(map);
        let volumes: BTreeSet<VolumeId> = old.keys().chain(new.keys()).copied().collect();
        for volume in volumes {
            let (before, after) = (old.get(&volume).copied(), new.get(&volume).copied());
            if before != after {
                all.push(Difference { target: target.clone(), volume, before, after });
            }
        }
    }
    all
}
