//! A volume as people see it.
//!
//! Invariant: what it is comes from the replicated state; only progress comes from what nodes said lately.

use holdfast_proto::{
    node::{ReplicaPhase, ReplicaState},
    state as records,
    v1::{Replica, ReplicaPlace, Volume, VolumeOrigin, VolumeSpec, VolumeStatus},
};
use holdfast_replica::ids::VolumeId;
use holdfast_scsi::identity::LuIdentity;

use crate::{
    lease::reports::Reports,
    state::{StateMachine, audit::timestamp},
};

pub(super) fn view(state: &StateMachine, reports: &Reports, record: &records::Volume) -> Volume {
    let id = VolumeId::from_slice(&record.id);
    let epoch = record.epoch.unwrap_or_default();
    let first = record.in_sync.iter().find(|m| m.node == record.owner).or(record.in_sync.first());
    let names =
        |members: &[records::ReplicaMember]| members.iter().map(|m| state.node_name(m.node)).collect();
    let name_of = |number: u32| if number == 0 { String::new() } else { state.node_name(number) };
    let others = record.in_sync.iter().filter(|m| first.is_none_or(|first| first.node != m.node));
    Volume {
        name: record.name.clone(),
        spec: Some(VolumeSpec {
            size_bytes: record.size_bytes,
            block_size: record.block_size,
            replicas: record.replicas,
            write_cache: Some(record.write_cache),
            checksums: record.checksums,
            node: first.map_or(String::new(), |m| state.node_name(m.node)),
            pool: first.map_or(String::new(), |m| m.pool.clone()),
            others: others
                .map(|m| ReplicaPlace { node: state.node_name(m.node), pool: m.pool.clone() })
                .collect(),
            volatile: record.volatile,
        }),
        status: Some(VolumeStatus {
            id: id.map_or(String::new(), |id| id.to_string()),
            naa: id.map_or(String::new(), naa),
            owner: name_of(record.owner),
            epoch_generation: epoch.generation,
            epoch_number: epoch.number,
            in_sync: names(&record.in_sync),
            min_in_sync: record.min_in_sync,
            state: describe(state, record),
            mappings: id
                .map_or(0, |id| u32::try_from(state.mappings_of_volume(id).count()).unwrap_or(u32::MAX)),
            replicas: replicas(state, reports, record),
            hand_over_to: name_of(record.hand_over_to),
            origin: record.origin.as_ref().map(origin),
        }),
    }
}

fn origin(origin: &records::VolumeOrigin) -> VolumeOrigin {
    let id = |bytes: &[u8]| VolumeId::from_slice(bytes).map_or(String::new(), |id| id.to_string());
    VolumeOrigin {
        volume: origin.volume.clone(),
        volume_id: id(&origin.volume_id),
        snapshot: origin.snapshot,
        time: Some(timestamp(origin.time_unix_ms)),
        group: id(&origin.group),
    }
}

fn replicas(state: &StateMachine, reports: &Reports, record: &records::Volume) -> Vec<Replica> {
    let lists = [
        ("in sync", &record.in_sync),
        ("catching up", &record.learners),
        ("absent", &record.absent),
        ("removing", &record.removing),
    ];
    let all = lists.into_iter().flat_map(|(word, members)| members.iter().map(move |m| (word, m)));
    all.map(|(word, member)| {
        let said = VolumeId::from_slice(&record.id)
            .and_then(|id| reports.of(id, member.node, record.owner))
            .cloned()
            .unwrap_or_default();
        let copying = said.phase() == ReplicaPhase::Copying;
        let left = copying.then(|| said.remaining_bytes.checked_div(said.bytes_per_second)).flatten();
        let replaced = record.moves.iter().find(|m| m.to == member.node);
        Replica {
            node: state.node_name(member.node),
            pool: member.pool.clone(),
            state: word.to_owned(),
            node_live: state.node(member.node).is_some_and(|node| node.live),
            phase: phase(&said),
            remaining_bytes: said.remaining_bytes,
            total_bytes: said.total_bytes,
            bytes_per_second: said.bytes_per_second,
            estimated_seconds_left: left,
            replaces: replaced.map_or(String::new(), |m| state.node_name(m.from)),
        }
    })
    .collect()
}

fn phase(said: &ReplicaState) -> String {
    match said.phase() {
        ReplicaPhase::Unspecified => String::new(),
        ReplicaPhase::Connecting => "connecting".to_owned(),
        ReplicaPhase::Recovering => "recovering".to_owned(),
        ReplicaPhase::Serving => "serving".to_owned(),
        ReplicaPhase::Copying => "copying".to_owned(),
        ReplicaPhase::Failed => format!("failed: {}", said.failed),
    }
}

/// The NAA designator that hosts see, in hex.
fn naa(id: VolumeId) -> String {
    let identity = LuIdentity { volume_uuid: id.0, revision: *b"0000" };
    identity.naa().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// As VolumeStatus.state has it.
pub(super) fn describe(state: &StateMachine, record: &records::Volume) -> String {
    if record.deleting {
        return "deleting".to_owned();
    }
    if record.making.is_some() {
        return "being made".to_owned();
    }
    if record.restoring.is_some() {
        return "being restored".to_owned();
    }
    match state.node(record.owner) {
        None => "offline: no node owns it".to_owned(),
        Some(node) if !node.live => match waits_for(state, record) {
            Some(reason) => format!("offline: node {} holds no lease; {reason}", node.name),
            None => format!("offline: node {} holds no lease", node.name),
        },
        Some(node) if node.incarnation != record.owner_incarnation => {
            format!(
                "offline: node {} has restarted and takes it over once its old lease has run out",
                node.name
            )
        }
        Some(_) if record.in_sync.len() < record.min_in_sync as usize => {
            format!("read-only: {} in sync, and writes need {}", record.in_sync.len(), record.min_in_sync)
        }
        Some(_) if record.in_sync.len() < record.replicas as usize => {
            format!("degraded: {} of {} copies in sync", record.in_sync.len(), record.replicas)
        }
        Some(_) => "online".to_owned(),
    }
}

/// Why no other node takes over a volume whose owner is gone; `None` if one does.
fn waits_for(state: &StateMachine, record: &records::Volume) -> Option<String> {
    let volume = VolumeId::from_slice(&record.id).and_then(|id| state.volume(id))?;
    let others = volume.config.in_sync().iter().filter(|m| Some(m.node) != volume.owner_node());
    let mut reasons = Vec::new();
    for other in others {
        match state.may_take(volume, volume.config.epoch(), other.node) {
            Ok(_) => return Some("another node takes it over".to_owned()),
            Err(reason) => reasons.push(reason),
        }
    }
    (!reasons.is_empty()).then(|| reasons.join("; "))
}
