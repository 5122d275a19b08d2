//! Requests of clients and data nodes that were carried out, and their answers: the same request id again gets the same answer.
//!
//! Invariants: only requests that were carried out are kept, so that a refused one can be tried again; the last
//! [`limits::REQUESTS_KEPT`] of clients are kept and as many of data nodes, so that neither push out the other's; secrets are not
//! part of what is remembered.

use std::collections::BTreeMap;

use holdfast_proto::state::{self as records, change, request_record::Answer};

use super::{CorruptState, Outcome, Refusal, effects::Effects, limits};

/// Who asked: each has a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Asker {
    /// Of the management API.
    Client,
    /// A data node, for an initiator.
    Node,
}

/// The place of a record: its ring, and how many were recorded there before it.
type Place = (Asker, u64);

/// The rings of requests.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Requests {
    by_place: BTreeMap<Place, records::RequestRecord>,
    by_id: BTreeMap<String, Place>,
}

impl Requests {
    /// The answer of `request` if it was carried out before.
    pub(super) fn seen(&self, request: Option<&records::ClientRequest>) -> Result<Option<Outcome>, Refusal> {
        let Some(request) = request.filter(|r| !r.id.is_empty()) else { return Ok(None) };
        if request.id.len() > limits::REQUEST_ID_BYTES_MAX {
            let reason = format!("longer than {} bytes", limits::REQUEST_ID_BYTES_MAX);
            return Err(Refusal::invalid("request_id", reason));
        }
        let Some(record) = self.by_id.get(&request.id).and_then(|place| self.by_place.get(place)) else {
            return Ok(None);
        };
        if record.request.as_ref() != Some(request) {
            return Err(Refusal::RequestIdReused(super::names::printable(&request.id)));
        }
        Ok(Some(match &record.answer {
            None => Outcome::Done,
            Some(Answer::Volume(volume)) => Outcome::Volume(volume.clone()),
            Some(Answer::Host(host)) => Outcome::Host(host.clone()),
            Some(Answer::Mapping(mapping)) => Outcome::Mapping(mapping.clone()),
            Some(Answer::Established(index)) => Outcome::Established(*index),
            Some(Answer::Job(job)) => Outcome::Job(job.clone()),
            Some(Answer::HostGroup(group)) => Outcome::HostGroup(group.clone()),
            Some(Answer::MappingsApplied(counts)) => Outcome::Mappings(*counts, Vec::new()),
            Some(Answer::Node(node)) => Outcome::Node(node.clone()),
        }))
    }

    /// Remembers what became of a client's request.
    pub(super) fn remember(
        &mut self,
        request: Option<&records::ClientRequest>,
        outcome: &Outcome,
        effects: &mut Effects,
    ) {
        self.remember_of(Asker::Client, request, outcome, effects);
    }

    /// Remembers what became of a request.
    pub(super) fn remember_of(
        &mut self,
        asker: Asker,
        request: Option<&records::ClientRequest>,
        outcome: &Outcome,
        effects: &mut Effects,
    ) {
        let Some(request) = request.filter(|r| !r.id.is_empty()) else { return };
        let answer = match outcome {
            Outcome::Volume(volume) => Some(Answer::Volume(volume.clone())),
            Outcome::Host(host) => Some(Answer::Host(host.clone())),
            Outcome::Mapping(mapping) => Some(Answer::Mapping(mapping.clone())),
            Outcome::Established(index) => Some(Answer::Established(*index)),
            Outcome::Job(job) => Some(Answer::Job(job.clone())),
            Outcome::HostGroup(group) => Some(Answer::HostGroup(group.clone())),
            Outcome::Mappings(counts, _) => Some(Answer::MappingsApplied(*counts)),
            Outcome::Node(node) => Some(Answer::Node(node.clone())),
            Outcome::Done | Outcome::Proposal(_) => None,
        };
        let last = self.by_place.range((asker, 0)..=(asker, u64::MAX)).next_back();
        let record = records::RequestRecord {
            sequence: last.map_or(1, |((_, last), _)| last.saturating_add(1)),
            request: Some(request.clone()),
            index: effects.index,
            answer,
            of_node: asker == Asker::Node,
        };
        self.insert(record.clone());
        effects.change(change::Change::Request(record));
    }

    /// Adds a record, and drops the one that falls out of its ring.
    fn insert(&mut self, record: records::RequestRecord) {
        let asker = if record.of_node { Asker::Node } else { Asker::Client };
        let (sequence, id) = (record.sequence, record.request.as_ref().map(|r| r.id.clone()));
        self.by_place.insert((asker, sequence), record);
        self.by_id.insert(id.unwrap_or_default(), (asker, sequence));
        let Some(old) = sequence.checked_sub(limits::REQUESTS_KEPT).map(|old| (asker, old)) else { return };
        if let Some(request) = self.by_place.remove(&old).and_then(|record| record.request)
            && self.by_id.get(&request.id) == Some(&old)
        {
            self.by_id.remove(&request.id);
        }
    }

    pub(super) fn records(&self) -> impl Iterator<Item = &records::RequestRecord> {
        self.by_place.values()
    }

    /// From stored records, in any order.
    pub(super) fn from_records(mut stored: Vec<records::RequestRecord>) -> Result<Requests, CorruptState> {
        stored.sort_by_key(|record| record.sequence);
        let mut requests = Requests::default();
        for record in stored {
            let id = record.request.as_ref().map_or("", |r| r.id.as_str());
            if id.is_empty() || requests.by_id.contains_key(id) {
                return Err(CorruptState(format!("request record {} is not valid", record.sequence)));
            }
            requests.insert(record);
        }
        Ok(requests)
    }
}
