//! The whole state as records, and back.
//!
//! Invariants: `from_changes(to_changes())` is the same state; what does not hold the invariants of the state machine is
//! refused as corrupt instead of being served.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_proto::state::{self as records, change};
use holdfast_replica::ids::VolumeId;
use holdfast_scsi::initiator::Initiator;

use super::{
    CorruptState, Mapped, StateMachine, Volume, convert::corrupt, group::Group, index::Indexes, job::Jobs,
    limits, requests::Requests,
};

impl StateMachine {
    /// The whole state as records, in a fixed order: equal states give equal lists.
    pub fn to_changes(&self) -> Vec<records::Change> {
        let mut all = self.node_changes();
        all.extend(
            self.groups.iter().map(|(name, group)| wrap(change::Change::HostGroup(group.record(name)))),
        );
        all.extend(self.jobs.records().cloned().map(change::Change::Job).map(wrap));
        all.extend(self.requests.records().cloned().map(change::Change::Request).map(wrap));
        all.push(wrap(change::Change::Head(self.head)));
        all
    }

    /// The part of the state that data nodes see, in a fixed order.
    pub fn node_changes(&self) -> Vec<records::Change> {
        let mut all = Vec::new();
        all.extend(self.cluster.iter().cloned().map(change::Change::Cluster));
        all.extend(self.nodes.values().cloned().map(change::Change::Node));
        for volume in self.volumes.values() {
            all.push(change::Change::Volume(volume.record()));
            // Outcomes are kept also of what changes no reservation.
            if volume.reservation_version != 0 || !volume.outcomes.is_empty() {
                all.push(change::Change::Reservation(volume.reservation_record()));
            }
        }
        all.extend(self.hosts.values().cloned().map(change::Change::Host));
        for (host, map) in &self.mappings {
            all.extend(map.iter().map(|(lun, mapped)| {
                change::Change::Mapping(records::Mapping {
                    host: host.clone(),
                    volume_id: mapped.volume.0.to_vec(),
                    lun: *lun,
                    read_only: mapped.read_only,
                    group: String::new(),
                })
            }));
        }
        all.into_iter().map(wrap).collect()
    }

    /// The state of which [`StateMachine::to_changes`] made these records, in any order.
    ///
    /// # Errors
    /// The first record that does not fit: corruption.
    pub fn from_changes(
        changes: impl IntoIterator<Item = records::Change>,
    ) -> Result<StateMachine, CorruptState> {
        let mut state = StateMachine::default();
        let (mut reservations, mut mappings, mut requests) = (Vec::new(), Vec::new(), Vec::new());
        let mut jobs = Vec::new();
        for change in changes {
            match change.change {
                Some(change::Change::Cluster(cluster)) => state.cluster = Some(cluster),
                Some(change::Change::Node(node)) => insert(&mut state.nodes, node.number, node, "node")?,
                Some(change::Change::Volume(record)) => {
                    let volume = Volume::from_record(record)?;
                    insert(&mut state.volumes, volume.id, volume, "volume")?;
                }
                Some(change::Change::Host(host)) => {
                    for name in &host.initiators {
                        let initiator = Initiator::parse(name).map_err(|_| corrupt("an initiator's name"))?;
                        if state.initiators.insert(initiator, host.name.clone()).is_some() {
                            return Err(corrupt("an initiator of two hosts"));
                        }
                    }
                    insert(&mut state.hosts, host.name.clone(), host, "host")?;
                }
                Some(change::Change::Reservation(record)) => reservations.push(record),
                Some(change::Change::Mapping(record)) => mappings.push(record),
                Some(change::Change::Request(record)) => requests.push(record),
                Some(change::Change::Job(record)) => jobs.push(record),
                Some(change::Change::HostGroup(record)) => {
                    let group = Group::from_record(&record)?;
                    insert(&mut state.groups, record.name, group, "host group")?;
                }
                Some(change::Change::Head(head)) => state.head = head,
                Some(
                    change::Change::RemovedNode(_)
                    | change::Change::RemovedVolume(_)
                    | change::Change::RemovedHost(_)
                    | change::Change::RemovedMapping(_)
                    | change::Change::RemovedJob(_)
                    | change::Change::RemovedHostGroup(_),
                ) => return Err(corrupt("a removal in a whole state")),
                None => return Err(corrupt("a record of a later version")),
            }
        }
        for record in reservations {
            let volume = VolumeId::from_slice(&record.volume_id)
                .and_then(|id| state.volumes.get_mut(&id))
                .ok_or_else(|| corrupt("reservations of no volume"))?;
            volume.restore_reservations(record)?;
        }
        for record in mappings {
            let volume =
                VolumeId::from_slice(&record.volume_id).ok_or_else(|| corrupt("a mapping's volume"))?;
            let mapped = Mapped { volume, read_only: record.read_only };
            insert(state.mappings.entry(record.host).or_default(), record.lun, mapped, "LUN")?;
        }
        state.requests = Requests::from_records(requests)?;
        state.jobs = Jobs::from_records(jobs)?;
        state.indexes = Indexes::of(&state);
        state.check_invariants()?;
        Ok(state)
    }

    /// The invariants that records alone cannot express.
    ///
    /// # Errors
    /// The first that does not hold.
    pub fn check_invariants(&self) -> Result<(), CorruptState> {
        #[cfg(test)]
        assert!(self.indexes == Indexes::of(self), "an index is not what the records say");
        let cluster = match &self.cluster {
            Some(cluster) => cluster,
            None if self.nodes.is_empty() && self.volumes.is_empty() && self.hosts.is_empty() => {
                return Ok(());
            }
            None => return Err(corrupt("records without a cluster")),
        };
        let mut names = BTreeSet::new();
        let mut ports = BTreeSet::new();
        for node in self.nodes.values() {
            if !names.insert(&node.name) || node.number == 0 || node.number >= cluster.next_node_number {
                return Err(corrupt(&format!("node {}: name or number", node.name)));
            }
            for port in &node.ports {
                let handed_out = (1..cluster.next_relative_port).contains(&port.relative_port);
                if !handed_out || !ports.insert(port.relative_port) {
                    return Err(corrupt(&format!(
                        "node {}: relative port {}",
                        node.name, port.relative_port
                    )));
                }
            }
        }
        let mut names = BTreeSet::new();
        for volume in self.volumes.values() {
            let known = volume.held().all(|m| self.nodes.contains_key(&u32::from(m.node.get())));
            if !names.insert(&volume.name) || !known || volume.reservation_version > self.head {
                return Err(corrupt(&format!("volume {}: name, members or reservations", volume.name)));
            }
            let mut seen = BTreeSet::new();
            let once = volume.held().all(|m| seen.insert(m.node));
            let kept = |node| volume.kept().any(|m| m.node == node);
            let moves = volume.moves.iter().all(|(from, to)| from != to && kept(*from) && kept(*to));
            let hand_over =
                volume.hand_over_to.is_none_or(|to| volume.is_in_sync(to) && Some(to) != volume.owner_node());
            if !once || !moves || !hand_over {
                return Err(corrupt(&format!("volume {}: absent replicas, moves or hand-over", volume.name)));
            }
        }
        for (host, map) in &self.mappings {
            let volumes: BTreeSet<VolumeId> = map.values().map(|m| m.volume).collect();
            let stays = |id: &VolumeId| self.volumes.get(id).is_some_and(|v| !v.deleting);
            let good = self.hosts.contains_key(host)
                && !map.is_empty()
                && volumes.len() == map.len()
                && volumes.iter().all(stays)
                && map.keys().all(|lun| *lun <= limits::LUN_MAX);
            if !good {
                return Err(corrupt(&format!("the LUN map of host {host}")));
            }
        }
        for (name, group) in &self.groups {
            let mut volumes = group.luns.values().map(|mapped| mapped.volume);
            let stays = |id: VolumeId| self.volumes.get(&id).is_some_and(|v| !v.deleting);
            let sees = |host: &String| {
                let map = self.mappings.get(host);
                group.luns.iter().all(|(lun, mapped)| map.and_then(|map| map.get(lun)) == Some(mapped))
            };
            let known = |host: &String| self.hosts.contains_key(host);
            if !volumes.all(stays) || !group.hosts.iter().all(|host| known(host) && sees(host)) {
                return Err(corrupt(&format!("host group {name}")));
            }
        }
        Ok(())
    }
}

fn wrap(change: change::Change) -> records::Change {
    records::Change { change: Some(change) }
}

fn insert<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: V, what: &str) -> Result<(), CorruptState> {
    match map.insert(key, value) {
        None => Ok(()),
        Some(_) => Err(corrupt(&format!("a {what} stands there twice"))),
    }
}
