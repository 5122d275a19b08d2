//! What applying one entry collects for everybody else: changed records, Unit Attentions, aborts, events.

use holdfast_proto::{
    state::{self as records, change},
    v1,
};
use holdfast_replica::ids::VolumeId;
use holdfast_scsi::{nexus::Nexus, sense::AdditionalSense};

use super::{audit::timestamp, is_node_visible};

/// Effects of one entry, in the order in which they came about.
pub(super) struct Effects {
    pub(super) index: u64,
    time_unix_ms: u64,
    caller: String,
    changes: Vec<records::Change>,
    unit_attentions: Vec<records::UnitAttentionEvent>,
    aborts: Vec<records::AbortTasks>,
    events: Vec<v1::Event>,
}

/// To which nexuses a Unit Attention is addressed.
pub(super) enum Audience<'a> {
    /// Every nexus that the volume is mapped to.
    Everyone,
    /// One nexus.
    Only(&'a Nexus),
    /// Every nexus but this one.
    Except(&'a Nexus),
}

impl Effects {
    pub(super) fn new(index: u64, time_unix_ms: u64, caller: &records::Caller) -> Effects {
        Effects {
            index,
            time_unix_ms,
            caller: format!("{} {}", caller.role, caller.name).trim().to_owned(),
            changes: Vec::new(),
            unit_attentions: Vec::new(),
            aborts: Vec::new(),
            events: Vec::new(),
        }
    }

    /// The proposer's clock, for people.
    pub(super) fn time_unix_ms(&self) -> u64 {
        self.time_unix_ms
    }

    /// Role and name of who asks: "admin alice".
    pub(super) fn caller(&self) -> &str {
        &self.caller
    }

    pub(super) fn change(&mut self, change: change::Change) {
        self.changes.push(records::Change { change: Some(change) });
    }

    /// A Unit Attention on one volume.
    pub(super) fn unit_attention(&mut self, volume: VolumeId, additional: AdditionalSense, to: Audience<'_>) {
        let (only, except) = match to {
            Audience::Everyone => (None, None),
            Audience::Only(nexus) => (Some(nexus_name(nexus)), None),
            Audience::Except(nexus) => (None, Some(nexus_name(nexus))),
        };
        self.push(records::UnitAttentionEvent {
            volume_id: volume.0.to_vec(),
            additional: code(additional),
            only,
            except,
            ..Default::default()
        });
    }

    /// A Unit Attention on every logical unit that a host sees.
    pub(super) fn unit_attention_for_host(&mut self, host: &str, additional: AdditionalSense) {
        self.push(records::UnitAttentionEvent {
            additional: code(additional),
            host: host.to_owned(),
            ..Default::default()
        });
    }

    /// Numbers the event and adds it.
    pub(super) fn push(&mut self, event: records::UnitAttentionEvent) {
        let ordinal = u32::try_from(self.unit_attentions.len()).unwrap_or(u32::MAX);
        self.unit_attentions.push(records::UnitAttentionEvent { index: self.index, ordinal, ..event });
    }

    pub(super) fn abort(&mut self, volume: VolumeId, nexuses: &[Nexus]) {
        if !nexuses.is_empty() {
            self.aborts.push(records::AbortTasks {
                volume_id: volume.0.to_vec(),
                nexuses: nexuses.iter().map(nexus_name).collect(),
            });
        }
    }

    /// Something for people: `kind` "volume.created", `subject` "volume/db1".
    pub(super) fn event(&mut self, kind: &str, subject: String, message: String) {
        self.events.push(v1::Event {
            index: self.index,
            time: Some(timestamp(self.time_unix_ms)),
            kind: kind.to_owned(),
            subject,
            message,
            caller: self.caller.clone(),
        });
    }

    /// True if anything came about at all.
    pub(super) fn has_any(&self) -> bool {
        !self.changes.is_empty() || !self.unit_attentions.is_empty() || !self.aborts.is_empty()
    }

    /// True if data nodes see anything of it.
    pub(super) fn are_node_visible(&self) -> bool {
        !self.unit_attentions.is_empty()
            || !self.aborts.is_empty()
            || self.changes.iter().any(is_node_visible)
    }

    pub(super) fn finish(self) -> (records::Commit, Vec<v1::Event>) {
        let commit = records::Commit {
            index: self.index,
            changes: self.changes,
            unit_attentions: self.unit_attentions,
            aborts: self.aborts,
        };
        (commit, self.events)
    }
}

/// The name of a nexus in records.
pub(super) fn nexus_name(nexus: &Nexus) -> records::NexusName {
    records::NexusName {
        transport_id: nexus.initiator.as_bytes().to_vec(),
        relative_port: u32::from(nexus.port.0),
    }
}

fn code(additional: AdditionalSense) -> u32 {
    u32::from(additional.asc) << 8 | u32::from(additional.ascq)
}
