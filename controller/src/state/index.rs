//! What is looked up for a command or a tick, kept beside the records, so that neither costs more the more volumes, hosts and nodes
//! there are.
//!
//! Invariants: an index is a function of the records alone ([`Indexes::of`]) and is brought up to date by the very changes that an
//! entry writes; within one entry it says what was before it. It is not stored.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use holdfast_proto::state::{self as records, change};
use holdfast_replica::ids::{Incarnation, NodeNumber, VolumeId};
use holdfast_scsi::nexus::RelativePort;

use super::{StateMachine, Volume};

/// What of a volume is indexed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Facts {
    name: String,
    owner: Option<(NodeNumber, Incarnation)>,
    /// Nodes with a replica of any kind.
    held: Vec<NodeNumber>,
    /// Those that keep theirs.
    kept: Vec<NodeNumber>,
    is_settled: bool,
    is_being_made: bool,
    is_being_restored: bool,
}

/// See the module. No set in it is empty, so that equal states have equal indexes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Indexes {
    facts: BTreeMap<VolumeId, Facts>,
    volumes: BTreeMap<String, VolumeId>,
    nodes: BTreeMap<String, u32>,
    ports: Arc<[RelativePort]>,
    owned: BTreeMap<(NodeNumber, Incarnation), BTreeSet<VolumeId>>,
    held: BTreeMap<NodeNumber, BTreeSet<VolumeId>>,
    kept: BTreeMap<NodeNumber, usize>,
    unsettled: BTreeSet<VolumeId>,
    being_made: BTreeSet<VolumeId>,
    being_restored: BTreeSet<VolumeId>,
    /// Hosts that see a volume, with the LUN.
    mapped: BTreeMap<VolumeId, BTreeMap<String, u32>>,
    /// Members of each group, and the groups of each host.
    members: BTreeMap<String, BTreeSet<String>>,
    groups: BTreeMap<String, BTreeSet<String>>,
}

impl Indexes {
    /// Of a whole state.
    pub(super) fn of(state: &StateMachine) -> Indexes {
        let mut indexes = Indexes::default();
        for volume in state.volumes.values() {
            indexes.set_volume(volume.id, Some(facts(volume)));
        }
        for node in state.nodes.values() {
            indexes.nodes.insert(node.name.clone(), node.number);
        }
        indexes.ports = ports(state);
        for (host, map) in &state.mappings {
            for (lun, mapped) in map {
                indexes.mapped.entry(mapped.volume).or_default().insert(host.clone(), *lun);
            }
        }
        for (name, group) in &state.groups {
            indexes.set_group(name, &group.hosts);
        }
        indexes
    }

    /// After the entry that made these changes; `state` is as the entry left it.
    fn follow(&mut self, state: &StateMachine, changes: &[records::Change]) {
        use change::Change as C;
        for change in changes.iter().filter_map(|change| change.change.as_ref()) {
            match change {
                C::Volume(record) => self.look_at(state, &record.id),
                C::RemovedVolume(id) => self.look_at(state, id),
                C::Node(node) => {
                    self.nodes.insert(node.name.clone(), node.number);
                    self.ports = ports(state);
                }
                C::RemovedNode(name) => {
                    self.nodes.remove(name);
                    self.ports = ports(state);
                }
                C::Mapping(mapping) => {
                    if let Some(id) = VolumeId::from_slice(&mapping.volume_id) {
                        self.mapped.entry(id).or_default().insert(mapping.host.clone(), mapping.lun);
                    }
                }
                C::RemovedMapping(key) => {
                    if let Some(id) = VolumeId::from_slice(&key.volume_id)
                        && let Some(hosts) = self.mapped.get_mut(&id)
                    {
                        hosts.remove(&key.host);
                        if hosts.is_empty() {
                            self.mapped.remove(&id);
                        }
                    }
                }
                C::HostGroup(group) => self.set_group(&group.name, &group.hosts.iter().cloned().collect()),
                C::RemovedHostGroup(name) => self.set_group(name, &BTreeSet::new()),
                C::Cluster(_)
                | C::Reservation(_)
                | C::Host(_)
                | C::RemovedHost(_)
                | C::Request(_)
                | C::Head(_)
                | C::Job(_)
                | C::RemovedJob(_) => {}
            }
        }
    }

    fn look_at(&mut self, state: &StateMachine, id: &[u8]) {
        if let Some(id) = VolumeId::from_slice(id) {
            self.set_volume(id, state.volumes.get(&id).map(facts));
        }
    }

    fn set_volume(&mut self, id: VolumeId, new: Option<Facts>) {
        if self.facts.get(&id) == new.as_ref() {
            return;
        }
        if let Some(old) = self.facts.remove(&id) {
            self.volumes.remove(&old.name);
            old.owner.into_iter().for_each(|owner| take(&mut self.owned, owner, &id));
            old.held.iter().for_each(|node| take(&mut self.held, *node, &id));
            for node in old.kept {
                let count = self.kept.get(&node).copied().unwrap_or_default().saturating_sub(1);
                if count == 0 {
                    self.kept.remove(&node);
                } else {
                    self.kept.insert(node, count);
                }
            }
            self.unsettled.remove(&id);
            self.being_made.remove(&id);
            self.being_restored.remove(&id);
        }
        let Some(new) = new else { return };
        self.volumes.insert(new.name.clone(), id);
        if let Some(owner) = new.owner {
            self.owned.entry(owner).or_default().insert(id);
        }
        for node in &new.held {
            self.held.entry(*node).or_default().insert(id);
        }
        for node in &new.kept {
            *self.kept.entry(*node).or_default() += 1;
        }
        if !new.is_settled {
            self.unsettled.insert(id);
        }
        if new.is_being_made {
            self.being_made.insert(id);
        }
        if new.is_being_restored {
            self.being_restored.insert(id);
        }
        self.facts.insert(id, new);
    }

    fn set_group(&mut self, name: &str, hosts: &BTreeSet<String>) {
        for host in self.members.remove(name).into_iter().flatten() {
            if let Some(groups) = self.groups.get_mut(&host) {
                groups.remove(name);
                if groups.is_empty() {
                    self.groups.remove(&host);
                }
            }
        }
        if hosts.is_empty() {
            return;
        }
        for host in hosts {
            self.groups.entry(host.clone()).or_default().insert(name.to_owned());
        }
        self.members.insert(name.to_owned(), hosts.clone());
    }
}

fn take<K: Ord>(sets: &mut BTreeMap<K, BTreeSet<VolumeId>>, key: K, id: &VolumeId) {
    if let Some(set) = sets.get_mut(&key) {
        set.remove(id);
        if set.is_empty() {
            sets.remove(&key);
        }
    }
}

fn facts(volume: &Volume) -> Facts {
    Facts {
        name: volume.name.clone(),
        owner: volume.config.owner().map(|owner| (owner.node, owner.incarnation)),
        held: volume.held().map(|m| m.node).collect(),
        kept: volume.kept().map(|m| m.node).collect(),
        is_settled: volume.is_settled(),
        is_being_made: volume.making.is_some(),
        is_being_restored: volume.restoring.is_some(),
    }
}

/// Every relative target port identifier in use, in order.
fn ports(state: &StateMachine) -> Arc<[RelativePort]> {
    let ports = state.nodes.values().flat_map(|node| &node.ports);
    let mut ports: Vec<RelativePort> =
        ports.filter_map(|port| u16::try_from(port.relative_port).ok().map(RelativePort)).collect();
    ports.sort_unstable();
    ports.into()
}

impl Volume {
    /// Nothing is under way with it, and it has what was asked for: an owner, every copy in sync, no move and no hand-over. Whether
    /// it has to be looked at then depends on its nodes alone.
    pub fn is_settled(&self) -> bool {
        self.config.owner().is_some()
            && self.config.learners().is_empty()
            && self.absent.is_empty()
            && self.moves.is_empty()
            && self.hand_over_to.is_none()
            && self.copies() >= self.replicas as usize
    }
}

impl StateMachine {
    /// Brings the indexes up to what an entry has changed.
    pub(super) fn follow_changes(&mut self, changes: &[records::Change]) {
        let mut indexes = std::mem::take(&mut self.indexes);
        indexes.follow(self, changes);
        self.indexes = indexes;
    }

    /// A node by name.
    pub fn node_by_name(&self, name: &str) -> Option<&records::Node> {
        self.nodes.get(self.indexes.nodes.get(name)?)
    }

    /// A volume by name.
    pub fn volume_by_name(&self, name: &str) -> Option<&Volume> {
        self.volumes.get(self.indexes.volumes.get(name)?)
    }

    /// Volumes by name, from the one after `after` on.
    pub fn volumes_after(&self, after: &str) -> impl Iterator<Item = &Volume> {
        let from = (std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded);
        self.indexes.volumes.range::<str, _>(from).filter_map(|(_, id)| self.volumes.get(id))
    }

    /// Where a volume is mapped: host and LUN, by host.
    pub fn mappings_of_volume(&self, id: VolumeId) -> impl Iterator<Item = (&str, u32)> {
        self.indexes.mapped.get(&id).into_iter().flatten().map(|(host, lun)| (host.as_str(), *lun))
    }

    /// The LUN under which a host sees a volume.
    pub fn lun_of(&self, host: &str, volume: VolumeId) -> Option<u32> {
        self.indexes.mapped.get(&volume)?.get(host).copied()
    }

    /// Names of the groups that a host is in.
    pub fn groups_of(&self, host: &str) -> impl Iterator<Item = &str> {
        self.indexes.groups.get(host).into_iter().flatten().map(String::as_str)
    }

    /// Every relative target port identifier in use, in order.
    pub(super) fn target_ports(&self) -> Arc<[RelativePort]> {
        Arc::clone(&self.indexes.ports)
    }

    /// Volumes that the node owns, under any of its incarnations.
    pub fn owned_by(&self, number: u32) -> usize {
        let Some(node) = NodeNumber::new(number) else { return 0 };
        let all = (node, Incarnation(0))..=(node, Incarnation(u64::MAX));
        self.indexes.owned.range(all).map(|(_, volumes)| volumes.len()).sum()
    }

    /// Replicas that the node holds or is to hold.
    pub fn held_by(&self, number: u32) -> usize {
        NodeNumber::new(number).and_then(|node| self.indexes.kept.get(&node)).copied().unwrap_or_default()
    }

    /// Volumes of which the node holds a replica of any kind: every volume that it owns is among them.
    pub fn volumes_on(&self, number: u32) -> impl Iterator<Item = &Volume> {
        let held = NodeNumber::new(number).and_then(|node| self.indexes.held.get(&node));
        held.into_iter().flatten().filter_map(|id| self.volumes.get(id))
    }

    /// Owners with the volumes that they own.
    pub fn owners(&self) -> impl Iterator<Item = (NodeNumber, Incarnation, &BTreeSet<VolumeId>)> {
        self.indexes.owned.iter().map(|((node, incarnation), volumes)| (*node, *incarnation, volumes))
    }

    /// Volumes that are being made of others, as of the entry before.
    pub(super) fn being_made(&self) -> impl Iterator<Item = &Volume> {
        self.indexes.being_made.iter().filter_map(|id| self.volumes.get(id))
    }

    /// Volumes that are being restored, as of the entry before.
    pub(super) fn being_restored(&self) -> impl Iterator<Item = &Volume> {
        self.indexes.being_restored.iter().filter_map(|id| self.volumes.get(id))
    }

    /// Volumes that are not settled ([`Volume::is_settled`]).
    pub fn unsettled(&self) -> impl Iterator<Item = &Volume> {
        self.indexes.unsettled.iter().filter_map(|id| self.volumes.get(id))
    }
}
