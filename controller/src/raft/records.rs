//! Records of the state machine as keys and values.
//!
//! Key: one byte of kind, then the record's own key. Value: the `Change` that sets it, in protobuf. The kinds' bytes are part
//! of the format on disk: never reuse one.
//!
//! Invariant: putting every change of every commit, by its key, leaves exactly the records of `StateMachine::to_changes`.

use std::io;

use holdfast_proto::state::{Change, change::Change as Kind};
use prost::Message as _;
use rocksdb::{IteratorMode, WriteBatch};

use super::store::{Store, rocks};
use crate::state::{StateMachine, limits};

const CLUSTER: u8 = 1;
const NODE: u8 = 2;
const VOLUME: u8 = 3;
const RESERVATION: u8 = 4;
const HOST: u8 = 5;
const MAPPING: u8 = 6;
const REQUEST: u8 = 7;
const HEAD: u8 = 9;
const JOB: u8 = 10;
const HOST_GROUP: u8 = 11;

enum Place {
    Set(Vec<u8>),
    Removed(Vec<Vec<u8>>),
}

fn key(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut key = vec![kind];
    for part in parts {
        // Parts before the last carry their length, so that two names never run into one another.
        key.extend((part.len() as u32).to_be_bytes());
        key.extend_from_slice(part);
    }
    key
}

fn place(change: &Change) -> io::Result<Place> {
    let kind = change
        .change
        .as_ref()
        .ok_or_else(|| io::Error::other("a change of a kind that this version does not know"))?;
    let name = |kind: u8, name: &str| key(kind, &[name.as_bytes()]);
    Ok(match kind {
        Kind::Cluster(_) => Place::Set(key(CLUSTER, &[])),
        Kind::Node(node) => Place::Set(name(NODE, &node.name)),
        Kind::Volume(volume) => Place::Set(key(VOLUME, &[&volume.id])),
        Kind::Reservation(reservation) => Place::Set(key(RESERVATION, &[&reservation.volume_id])),
        Kind::Host(host) => Place::Set(name(HOST, &host.name)),
        Kind::Mapping(mapping) => Place::Set(key(MAPPING, &[mapping.host.as_bytes(), &mapping.volume_id])),
        // A ring: a newer record takes the place of the one that it displaces.
        Kind::Request(request) => {
            let place = (request.sequence % limits::REQUESTS_KEPT).to_be_bytes();
            Place::Set(if request.of_node {
                key(REQUEST, &[&place, b"node"])
            } else {
                key(REQUEST, &[&place])
            })
        }
        Kind::Job(job) => Place::Set(key(JOB, &[&job.id.to_be_bytes()])),
        Kind::RemovedJob(id) => Place::Removed(vec![key(JOB, &[&id.to_be_bytes()])]),
        Kind::HostGroup(group) => Place::Set(name(HOST_GROUP, &group.name)),
        Kind::RemovedHostGroup(removed) => Place::Removed(vec![name(HOST_GROUP, removed)]),
        Kind::Head(_) => Place::Set(key(HEAD, &[])),
        Kind::RemovedNode(removed) => Place::Removed(vec![name(NODE, removed)]),
        // A volume's reservation has no life of its own.
        Kind::RemovedVolume(id) => Place::Removed(vec![key(VOLUME, &[id]), key(RESERVATION, &[id])]),
        Kind::RemovedHost(removed) => Place::Removed(vec![name(HOST, removed)]),
        Kind::RemovedMapping(removed) => {
            Place::Removed(vec![key(MAPPING, &[removed.host.as_bytes(), &removed.volume_id])])
        }
    })
}

/// Adds what `change` means on disk to the batch.
pub(super) fn put(store: &Store, batch: &mut WriteBatch, change: &Change) -> io::Result<()> {
    match place(change)? {
        Place::Set(key) => batch.put_cf(store.state_cf(), key, change.encode_to_vec()),
        Place::Removed(keys) => keys.iter().for_each(|key| batch.delete_cf(store.state_cf(), key)),
    }
    Ok(())
}

/// Removes all records.
pub(super) fn clear(store: &Store, batch: &mut WriteBatch) {
    batch.delete_range_cf(store.state_cf(), [0_u8].as_slice(), [u8::MAX].as_slice());
}

/// The state of the records on disk.
pub(super) fn load(store: &Store) -> io::Result<StateMachine> {
    let mut changes = Vec::new();
    for found in store.db().iterator_cf(store.state_cf(), IteratorMode::Start) {
        let (key, value) = found.map_err(rocks)?;
        let change =
            Change::decode(value.as_ref()).map_err(|error| corrupt(format!("record {key:02x?}: {error}")))?;
        if !matches!(place(&change)?, Place::Set(own) if own == *key) {
            return Err(corrupt(format!("record {key:02x?} is another record")));
        }
        changes.push(change);
    }
    StateMachine::from_changes(changes).map_err(|error| corrupt(error.to_string()))
}

pub(super) fn corrupt(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
