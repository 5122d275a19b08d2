//! What an entry means to the audit: who asked for what, and what became of it.
//!
//! Invariants
//! * Pure: a function of the command, the state before it and its outcome, so every member writes the same audit.
//! * No secret, sealed or not, and no request id appears in a field; every text is bounded ([`limits::AUDIT_TEXT_CHARS_MAX`]).
//! * What is left out: reports of free space, which nobody asks for; entries of data nodes and controllers that changed
//!   nothing, since they are made again and again.

use holdfast_proto::{
    state::{self as records, change_configuration::Change},
    v1,
};
use holdfast_replica::ids::VolumeId;
use holdfast_scsi::{opcode, status::Status};

use super::{
    Body, Command, Outcome, Response, StateMachine,
    convert::{epoch_of, nexus_of},
    job, limits,
};

const PERSISTENT_RESERVE_OUT: u8 = 0x5f;

/// Which bound a record counts against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Changes by people.
    Management,
    /// Changes by data nodes and controllers.
    Cluster,
    /// Calls that did not reach the log.
    Refused,
}

impl Part {
    /// All parts.
    pub const ALL: [Part; 3] = [Part::Management, Part::Cluster, Part::Refused];

    /// As records name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Part::Management => "management",
            Part::Cluster => "cluster",
            Part::Refused => "refused",
        }
    }

    /// The part of a record; what names none counts as the smallest.
    pub fn of(record: &v1::AuditRecord) -> Part {
        Part::ALL.into_iter().find(|part| part.as_str() == record.part).unwrap_or(Part::Refused)
    }
}

/// Action, subject and fields of a command.
pub(super) struct Asked {
    action: &'static str,
    subject: String,
    fields: Vec<(&'static str, String)>,
}

impl Asked {
    fn new(action: &'static str, subject: impl Into<String>) -> Asked {
        Asked { action, subject: text(&subject.into()), fields: Vec::new() }
    }

    fn with(mut self, name: &'static str, value: impl std::fmt::Display) -> Asked {
        self.fields.push((name, text(&value.to_string())));
        self
    }
}

/// What `command` asks for, by the names that the state has before it is applied. `None`: not a matter of the audit.
pub(super) fn asked(state: &StateMachine, command: &Command) -> Option<Asked> {
    let volume = |id: &[u8]| {
        let name = VolumeId::from_slice(id).map_or_else(|| "?".to_owned(), |id| state.volume_name(id));
        format!("volume/{name}")
    };
    let node = |number: u32| format!("node/{}", state.node_name(number));
    let host = |name: &str| format!("host/{name}");
    let node_or_any = |number: u32| if number == 0 { "any".to_owned() } else { state.node_name(number) };
    let group = |name: &str| format!("host-group/{name}");
    let mapping = |volume: &str, host: &str, group: &str| {
        let group = if group.is_empty() { String::new() } else { format!("group:{group}") };
        format!("mapping/{volume}/{host}{group}")
    };
    Some(match &command.body {
        Body::ReportPools(_) | Body::ReportJob(_) | Body::RecordRefusals(_) => return None,
        Body::ChangeConfiguration(c) => match &c.change {
            None => Asked::new("configuration.change", volume(&c.volume_id)),
            Some(Change::Evict(evict)) => Asked::new("replica.evict", volume(&c.volume_id))
                .with("node", state.node_name(evict.node))
                .with("reason", &evict.reason),
            Some(Change::Admit(admit)) => {
                Asked::new("replica.admit", volume(&c.volume_id)).with("node", state.node_name(admit.node))
            }
            Some(Change::HandOver(hand_over)) => Asked::new("owner.hand-over", volume(&c.volume_id))
                .with("to", node_or_any(hand_over.to))
                .with("leave", hand_over.leave)
                .with("reason", &hand_over.reason),
        },
        Body::RequestHandOver(c) if c.to == 0 => Asked::new("owner.keep", volume(&c.volume_id)),
        Body::RequestHandOver(c) => {
            Asked::new("owner.move", volume(&c.volume_id)).with("to", state.node_name(c.to))
        }
        Body::AddReplica(c) => {
            let place = c.place.clone().unwrap_or_default();
            let replaces = if c.replaces == 0 { String::new() } else { state.node_name(c.replaces) };
            Asked::new("replica.add", format!("volume/{}", c.volume))
                .with("node", state.node_name(place.node))
                .with("pool", &place.pool)
                .with("replaces", replaces)
        }
        Body::DropReplica(c) => Asked::new("replica.drop", format!("volume/{}", c.volume))
            .with("node", state.node_name(c.node))
            .with("fewer", c.fewer),
        Body::ReturnReplica(c) => {
            Asked::new("replica.return", volume(&c.volume_id)).with("node", state.node_name(c.node))
        }
        Body::ForceRecovery(c) => Asked::new("volume.recover", format!("volume/{}", c.volume))
            .with("node", state.node_name(c.node))
            .with("epoch", epoch_of(c.expected.as_ref()))
            .with("agreed", "to the loss of what this copy lacks"),
        Body::SetClusterOptions(c) => Asked::new("cluster.set", "cluster")
            .with("replace_after_s", c.replace_after_s.map_or(String::new(), |s| s.to_string()))
            .with("replace_never", c.replace_never.map_or(String::new(), |never| never.to_string())),
        Body::Rebalance(c) => {
            Asked::new(if c.on { "cluster.rebalance" } else { "cluster.rebalanced" }, "cluster")
        }
        Body::ClusterInit(c) => Asked::new("cluster.create", "cluster").with("target_iqn", &c.target_iqn),
        Body::RecordMembership(c) => Asked::new(
            match c.change.as_str() {
                "admitted" => "controller.admit",
                "added" => "controller.add",
                "withdrawn" => "controller.withdraw",
                "removed" => "controller.remove",
                "alone" => "controller.recover-alone",
                _ => "controller.transfer",
            },
            format!("controller/{}", c.name),
        )
        .with("id", c.id)
        .with("address", &c.address),
        Body::BeginLeaseTerm(c) => Asked::new("lease-term.begin", "cluster").with("term", c.term),
        Body::NodeJoin(c) => Asked::new("node.join", format!("node/{}", c.name))
            .with("portals", c.portals.join(","))
            .with("interconnect", &c.interconnect)
            .with("boot_id", hex(&c.boot_id))
            .with("process_id", hex(&c.process_id)),
        Body::NodeLive(c) => Asked::new("node.live", node(c.number)).with("incarnation", c.incarnation),
        Body::NodeLost(c) => Asked::new("node.lost", node(c.number)).with("incarnation", c.incarnation),
        Body::BeginJob(c) => Asked::new("job.begin", &c.subject).with("kind", job::kind_name(c.kind())),
        Body::EndJob(c) => Asked::new("job.end", format!("job/{}", c.id))
            .with("state", job::state_name(c.state()))
            .with("message", &c.message),
        Body::CancelJob(c) => Asked::new("job.cancel", format!("job/{}", c.id)),
        Body::CordonNode(c) => {
            let action = match (c.drain, c.cordoned) {
                (true, _) => "node.drain",
                (false, true) => "node.cordon",
                (false, false) => "node.uncordon",
            };
            Asked::new(action, format!("node/{}", c.name))
        }
        Body::RemoveNode(c) => Asked::new("node.remove", format!("node/{}", c.name)).with("number", c.number),
        Body::CreateVolume(c) => Asked::new("volume.create", format!("volume/{}", c.name))
            .with("size_bytes", c.size_bytes)
            .with("block_size", c.block_size)
            .with("replicas", c.replicas)
            .with("write_cache", c.write_cache)
            .with("checksums", c.checksums)
            .with("others", c.others.iter().map(|p| state.node_name(p.node)).collect::<Vec<_>>().join(","))
            .with("node", state.node_name(c.node))
            .with("pool", &c.pool),
        Body::MakeCopies(c) => {
            let sources = c.copies.iter().take(limits::COPIES_AT_ONCE_MAX).map(|copy| copy.source.as_str());
            let names = c.copies.iter().take(limits::COPIES_AT_ONCE_MAX).map(|copy| copy.name.as_str());
            let first = c.copies.first().map_or("", |copy| copy.name.as_str());
            let action = if c.clones { "volume.clone" } else { "snapshot.create" };
            Asked::new(action, format!("volume/{first}"))
                .with("of", sources.collect::<Vec<_>>().join(","))
                .with("names", names.collect::<Vec<_>>().join(","))
        }
        Body::RestoreVolumes(c) => {
            let wishes = c.restores.iter().take(limits::COPIES_AT_ONCE_MAX);
            let pairs = wishes.map(|wish| format!("{}={}", wish.volume, wish.snapshot));
            let first = c.restores.first().map_or("", |wish| wish.volume.as_str());
            Asked::new("snapshot.restore", format!("volume/{first}"))
                .with("snapshots", pairs.collect::<Vec<_>>().join(","))
                .with("in_use", c.in_use)
        }
        Body::ReportMaking(c) => Asked::new("snapshot.step", volume(&c.volume_id))
            .with("node", state.node_name(c.number))
            .with("step", c.step().as_str_name())
            .with("message", &c.message),
        Body::ResizeVolume(c) => {
            Asked::new("volume.resize", format!("volume/{}", c.name)).with("size_bytes", c.size_bytes)
        }
        Body::DeleteVolume(c) => Asked::new("volume.delete", format!("volume/{}", c.name)),
        Body::RemoveReplica(c) => {
            Asked::new("replica.remove", volume(&c.volume_id)).with("node", state.node_name(c.number))
        }
        Body::CreateHost(c) => {
            let empty = records::Host::default();
            let asked = c.host.as_ref().unwrap_or(&empty);
            let (user, target_user) =
                asked.chap.as_ref().map_or(("", ""), |chap| (chap.user.as_str(), chap.target_user.as_str()));
            Asked::new("host.create", host(&asked.name))
                .with("initiators", asked.initiators.join(","))
                .with("chap_user", user)
                .with("chap_target_user", target_user)
        }
        Body::DeleteHost(c) => Asked::new("host.delete", host(&c.name)),
        Body::CreateMapping(c) => Asked::new("mapping.create", mapping(&c.volume, &c.host, &c.group))
            .with("lun", c.lun.map_or_else(|| "lowest free".to_owned(), |lun| lun.to_string()))
            .with("read_only", c.read_only),
        Body::UpdateHost(c) => {
            let (user, target_user) =
                c.chap.as_ref().map_or(("", ""), |chap| (chap.user.as_str(), chap.target_user.as_str()));
            Asked::new("host.update", host(&c.name))
                .with("add_initiators", c.add_initiators.join(","))
                .with("remove_initiators", c.remove_initiators.join(","))
                .with("chap_user", user)
                .with("chap_target_user", target_user)
                .with("clear_chap", if c.clear_chap { "true" } else { "" })
        }
        Body::SetWildcardInitiators(c) => {
            Asked::new("host-policy.set", "cluster").with("wildcard_initiators", c.allowed)
        }
        Body::CreateHostGroup(c) => {
            Asked::new("host-group.create", group(&c.name)).with("hosts", c.hosts.join(","))
        }
        Body::UpdateHostGroup(c) => Asked::new("host-group.update", group(&c.name))
            .with("add_hosts", c.add_hosts.join(","))
            .with("remove_hosts", c.remove_hosts.join(",")),
        Body::DeleteHostGroup(c) => Asked::new("host-group.delete", group(&c.name)),
        Body::ApplyMappings(c) => {
            let texts: Vec<String> = c.edits.iter().take(limits::REFUSALS_PER_ENTRY_MAX).map(edit).collect();
            Asked::new("mapping.apply", "mapping")
                .with("edits", c.edits.len())
                .with("prune", c.prune)
                .with("what", texts.join(", "))
        }
        Body::DeleteMapping(c) => Asked::new("mapping.delete", mapping(&c.volume, &c.host, &c.group)),
        Body::ChangeOwner(c) => Asked::new("owner.change", volume(&c.volume_id))
            .with("owner", state.node_name(c.owner))
            .with("owner_incarnation", c.owner_incarnation),
        Body::ProposeReservation(c) => Asked::new("reservation.change", volume(&c.volume_id))
            .with("service_action", service_action(&c.cdb))
            .with("nexus", nexus(c.nexus.as_ref()))
            .with("expected_version", c.expected_version),
        Body::RecordSessionEnd(c) => {
            Asked::new("session.end", format!("session/{}", nexus(c.nexus.as_ref()))).with("node", &c.node)
        }
        Body::RecordScrub(c) => {
            Asked::new("volume.scrub", format!("volume/{}", c.volume)).with("nodes", c.nodes.join(","))
        }
        Body::ClearReservation(c) => {
            let whose = c.nexus.as_ref().map_or_else(|| "all".to_owned(), |name| nexus(Some(name)));
            Asked::new("reservation.clear", format!("volume/{}", c.volume)).with("registrations", whose)
        }
        Body::EstablishUnitAttention(c) => {
            let empty = records::UnitAttentionEvent::default();
            let event = c.event.as_ref().unwrap_or(&empty);
            Asked::new("unit-attention.establish", volume(&event.volume_id)).with(
                "additional",
                format!("{:02x}/{:02x}", event.additional >> 8 & 0xff, event.additional & 0xff),
            )
        }
    })
}

/// The record of a command that was applied.
pub(super) fn record(
    asked: Asked,
    index: u64,
    command: &Command,
    response: &Response,
    changed: bool,
) -> Option<v1::AuditRecord> {
    let caller = &command.caller;
    let part =
        if matches!(caller.role.as_str(), "admin" | "operator") { Part::Management } else { Part::Cluster };
    let reason = match response {
        Err(refusal) => Some(refusal.to_string()),
        Ok(Outcome::Proposal(outcome)) => match u8::try_from(outcome.status) {
            Ok(status) if status == Status::Good as u8 => None,
            Ok(status) if status == Status::ReservationConflict as u8 => {
                Some("RESERVATION CONFLICT".to_owned())
            }
            _ => Some("CHECK CONDITION".to_owned()),
        },
        Ok(_) => None,
    };
    // The leader's own proposals are compare-and-set: those that come too late say nothing of anybody.
    let own = matches!(caller.role.as_str(), "controller" | "");
    if part == Part::Cluster && !changed && (own || reason.is_none()) {
        return None;
    }
    let fields = asked.fields.into_iter().filter(|(_, value)| !value.is_empty());
    Some(v1::AuditRecord {
        index,
        time: Some(timestamp(command.time_unix_ms)),
        part: part.as_str().to_owned(),
        role: text(&caller.role),
        name: text(&caller.name),
        action: asked.action.to_owned(),
        subject: asked.subject,
        fields: fields.map(|(name, value)| v1::AuditField { name: name.to_owned(), value }).collect(),
        outcome: if reason.is_none() { "done" } else { "refused" }.to_owned(),
        reason: text(&reason.unwrap_or_default()),
        times: 1,
        ordinal: 0,
    })
}

/// The records of calls that members refused; what is beyond the bound is left out.
pub(super) fn refusals(index: u64, command: &records::RecordRefusals) -> Vec<v1::AuditRecord> {
    let calls = command.calls.iter().take(limits::REFUSALS_PER_ENTRY_MAX);
    calls
        .zip(0..)
        .map(|(call, ordinal)| {
            let caller = call.caller.clone().unwrap_or_default();
            v1::AuditRecord {
                index,
                ordinal,
                time: Some(timestamp(call.time_unix_ms)),
                part: Part::Refused.as_str().to_owned(),
                role: text(&caller.role),
                name: text(&caller.name),
                action: text(&call.method),
                outcome: "refused".to_owned(),
                reason: text(&call.reason),
                times: call.times.max(1),
                ..Default::default()
            }
        })
        .collect()
}

/// Bounded, and fit for one line.
fn text(value: &str) -> String {
    let mut characters = value.chars().map(|c| if c.is_control() { '?' } else { c });
    let mut text: String = characters.by_ref().take(limits::AUDIT_TEXT_CHARS_MAX).collect();
    if characters.next().is_some() {
        text.push('…');
    }
    text
}

/// "db1 -> host win1 LUN 3 read-only".
fn edit(edit: &records::MappingEdit) -> String {
    let whom = if edit.group.is_empty() {
        format!("host {}", edit.host)
    } else {
        format!("host group {}", edit.group)
    };
    match (edit.remove, edit.lun) {
        (true, _) => format!("{} not to {whom}", edit.volume),
        (false, lun) => {
            let lun = lun.map_or_else(String::new, |lun| format!(" LUN {lun}"));
            let access = if edit.read_only { " read-only" } else { "" };
            format!("{} to {whom}{lun}{access}", edit.volume)
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A nexus for people; "?" for what names none.
pub(super) fn nexus(name: Option<&records::NexusName>) -> String {
    name.and_then(|n| nexus_of(&n.transport_id, n.relative_port))
        .map_or_else(|| "?".to_owned(), |nexus| nexus.to_string())
}

/// Service action of a PERSISTENT RESERVE OUT in words (SPC-5 6.16.2), or the other command's name.
pub fn service_action(cdb: &[u8]) -> String {
    if let Some(row) = opcode::row_of(cdb).filter(|row| row.opcode != PERSISTENT_RESERVE_OUT) {
        return row.name.to_owned();
    }
    let name = match cdb.get(1).map(|byte| byte & 0x1f) {
        Some(0x00) => "REGISTER",
        Some(0x01) => "RESERVE",
        Some(0x02) => "RELEASE",
        Some(0x03) => "CLEAR",
        Some(0x04) => "PREEMPT",
        Some(0x05) => "PREEMPT AND ABORT",
        Some(0x06) => "REGISTER AND IGNORE EXISTING KEY",
        Some(0x07) => "REGISTER AND MOVE",
        Some(0x08) => "REPLACE LOST RESERVATION",
        Some(other) => return format!("{other:#04x}"),
        None => "?",
    };
    name.to_owned()
}

/// A moment for people.
pub fn timestamp(unix_ms: u64) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: i64::try_from(unix_ms / 1000).unwrap_or(i64::MAX),
        nanos: i32::try_from(unix_ms % 1000 * 1_000_000).unwrap_or(0),
    }
}
