//! Between durable records and the types that hold valid values only.

use holdfast_proto::state as records;
use holdfast_replica::{
    config::Member,
    epoch::Epoch,
    ids::{BootId, NodeNumber},
};
use holdfast_scsi::{
    nexus::{Nexus, RelativePort},
    transport_id::TransportId,
};

use super::CorruptState;

pub(super) fn corrupt(what: &str) -> CorruptState {
    CorruptState(what.to_owned())
}

/// An absent epoch is the one that no configuration has.
pub fn epoch_of(record: Option<&records::Epoch>) -> Epoch {
    record.map_or(Epoch::ZERO, |e| Epoch { generation: e.generation, number: e.number })
}

/// The record of an epoch.
pub fn epoch_record(epoch: Epoch) -> records::Epoch {
    records::Epoch { generation: epoch.generation, number: epoch.number }
}

pub(super) fn member_of(record: &records::ReplicaMember) -> Option<Member> {
    Some(Member {
        node: NodeNumber::new(record.node)?,
        boot: BootId::from_slice(&record.boot_id)?,
        pool: record.pool.clone(),
    })
}

pub(super) fn member_record(member: &Member) -> records::ReplicaMember {
    records::ReplicaMember {
        node: u32::from(member.node.get()),
        boot_id: member.boot.0.to_vec(),
        pool: member.pool.clone(),
    }
}

/// A nexus by its parts; `None` unless the whole of `transport_id` is one TransportID and the port is 1..65535.
pub fn nexus_of(transport_id: &[u8], relative_port: u32) -> Option<Nexus> {
    let (initiator, taken) = TransportId::parse(transport_id).ok()?;
    let port = u16::try_from(relative_port).ok().filter(|port| *port != 0)?;
    (taken == transport_id.len()).then(|| Nexus::new(initiator, RelativePort(port)))
}

/// The name of a nexus in records.
pub fn nexus_record(nexus: &Nexus) -> records::NexusName {
    super::effects::nexus_name(nexus)
}
