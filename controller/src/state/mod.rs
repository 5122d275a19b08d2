//! The replicated state machine: the one truth about nodes, volumes, hosts, mappings, reservations and Unit Attentions.
//!
//! | Looking for | Module |
//! |---|---|
//! | what may be asked for | [`command`] |
//! | why it is refused | [`refusal`] |
//! | where PR OUT, MODE SELECT and RESERVE commit | [`reservation`] |
//! | their record, and what ends with a node | `lu_state` |
//! | what ends with the power (APTPL = 0) | `power_loss` |
//! | long work and its progress | [`job`] |
//! | who owns a volume | `ownership` |
//! | what an owner may change: evict, admit, hand over | `configuration` |
//! | replicas made, given up, coming back | `replicas` |
//! | where a replica may go | [`placement`] |
//! | nodes that are emptied, options, rebalancing | `drain` |
//! | recovery by decision of an operator | `forced` |
//! | volumes grown and deleted | `lifecycle` |
//! | the whole state as records | `snapshot` |
//! | what is looked up without a search | `index` |
//! | what the audit keeps | [`audit`] |
//! | bounds | [`limits`] |
//!
//! Invariants
//! * Pure: no clock, no random numbers, no I/O. The same log gives the same state on every member.
//! * Preconditions are checked inside [`StateMachine::apply`], never only before a command is proposed.
//! * Names are unique; LUNs are unique per host; an initiator name belongs to one host; node numbers and relative target port
//!   identifiers are handed out once; a volume's epoch only grows, and its owner is in its in-sync set.

pub mod audit;
pub mod command;
mod configuration;
pub mod convert;
mod draft;
mod drain;
mod effects;
mod forced;
pub mod group;
pub mod host;
mod index;
pub mod job;
mod lifecycle;
pub mod limits;
mod lu_state;
pub mod making;
pub mod mapping;
pub mod names;
mod node;
mod ownership;
pub mod placement;
mod power_loss;
pub mod provenance;
pub mod refusal;
mod replicas;
mod requests;
pub mod reservation;
pub mod restoring;
mod snapshot;
pub mod volume;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use holdfast_proto::{
    state::{self as records, change},
    v1,
};
use holdfast_replica::ids::VolumeId;
use holdfast_scsi::{
    initiator::{Initiator, InitiatorTable},
    transport_id::TransportId,
};

pub use command::{Body, Command, DecodeError};
pub use mapping::Mapped;
pub use refusal::{Kind, Refusal};
pub use volume::Volume;

use effects::Effects;
use group::Group;
use index::Indexes;
use job::Jobs;
use mapping::{Difference, LunMap};
use requests::Requests;

/// What became of a command.
pub type Response = Result<Outcome, Refusal>;

/// What a command that was carried out made.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "one for each entry, and gone with its answer")]
pub enum Outcome {
    /// Done; nothing to tell.
    Done,
    /// The node as it is now.
    Node(records::Node),
    /// The volume as it is now, or as it was when the same request was carried out first.
    Volume(records::Volume),
    /// The host, likewise.
    Host(records::Host),
    /// The mapping, likewise.
    Mapping(records::Mapping),
    /// What became of a proposed PERSISTENT RESERVE OUT, now or when it was proposed first.
    Proposal(records::ProposalOutcome),
    /// The job, likewise.
    Job(records::Job),
    /// The host group, likewise.
    HostGroup(records::HostGroup),
    /// Mappings were changed: how many, and which. A request that is asked again is told only how many.
    Mappings(records::MappingsApplied, Vec<Difference>),
    /// Unit Attentions were established by the entry with this index.
    Established(u64),
}

/// What applying one entry did.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    /// For the proposer.
    pub response: Response,
    /// Every record that changed, also those that controllers keep for themselves ([`is_node_visible`]), with the Unit
    /// Attentions and aborts for data nodes.
    pub commit: records::Commit,
    /// What people may want to hear of.
    pub events: Vec<v1::Event>,
    /// Who asked for what, and what became of it.
    pub audit: Vec<v1::AuditRecord>,
}

/// Records that do not hold a valid state: corruption.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stored state is corrupt: {0}")]
pub struct CorruptState(pub String);

/// True if data nodes see this record.
pub fn is_node_visible(change: &records::Change) -> bool {
    use change::Change::{Head, HostGroup, Job, RemovedHostGroup, RemovedJob, Request};
    !matches!(
        change.change,
        None | Some(Request(_) | Head(_) | Job(_) | RemovedJob(_) | HostGroup(_) | RemovedHostGroup(_))
    )
}

/// The replicated state.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StateMachine {
    head: u64,
    cluster: Option<records::Cluster>,
    nodes: BTreeMap<u32, records::Node>,
    volumes: BTreeMap<VolumeId, Volume>,
    hosts: BTreeMap<String, records::Host>,
    /// Initiators to names of hosts.
    initiators: InitiatorTable<String>,
    groups: BTreeMap<String, Group>,
    /// Host to whole LUN map, with what groups give it; no empty maps.
    mappings: BTreeMap<String, LunMap>,
    requests: Requests,
    jobs: Jobs,
    indexes: Indexes,
}

impl StateMachine {
    /// Applies the entry at `index`. Indexes grow from call to call. A refused command changes nothing.
    pub fn apply(&mut self, index: u64, command: &Command) -> Applied {
        let mut effects = Effects::new(index, command.time_unix_ms, &command.caller);
        let asked = audit::asked(self, command);
        let response = self.dispatch(&command.body, &mut effects);
        self.check_making(&mut effects);
        self.check_restoring(&mut effects);
        let audit = match &command.body {
            Body::RecordRefusals(refused) => audit::refusals(index, refused),
            _ => asked
                .and_then(|asked| audit::record(asked, index, command, &response, effects.has_any()))
                .into_iter()
                .collect(),
        };
        if effects.are_node_visible() {
            self.head = index;
            effects.change(change::Change::Head(index));
        }
        let (commit, events) = effects.finish();
        self.follow_changes(&commit.changes);
        Applied { response, commit, events, audit }
    }

    fn dispatch(&mut self, body: &Body, effects: &mut Effects) -> Response {
        if let Body::ClusterInit(command) = body {
            return self.cluster_init(command, effects);
        }
        // It is part of a change of the members that is made already: never refused.
        if let Body::RecordMembership(command) = body {
            return Ok(self.record_membership(command, effects));
        }
        if self.cluster.is_none() {
            return Err(Refusal::NotInitialised);
        }
        match body {
            Body::ClusterInit(_) | Body::RecordMembership(_) => Ok(Outcome::Done),
            // Only the audit hears of it.
            Body::RecordRefusals(_) => Ok(Outcome::Done),
            Body::BeginLeaseTerm(command) => self.begin_lease_term(command, effects),
            Body::NodeJoin(command) => self.node_join(command, effects),
            Body::NodeLive(command) => self.node_live(command, effects),
            Body::NodeLost(command) => self.node_lost(command, effects),
            Body::ReportPools(command) => self.report_pools(command, effects),
            Body::CordonNode(c) => self.once(&c.request, effects, |s, e| s.cordon_node(c, e)),
            Body::RemoveNode(c) => self.once(&c.request, effects, |s, e| s.remove_node(c, e)),
            Body::RemoveReplica(command) => self.remove_replica(command, effects),
            Body::ChangeOwner(command) => self.change_owner(command, effects),
            Body::ChangeConfiguration(command) => self.change_configuration(command, effects),
            Body::RequestHandOver(c) => self.once(&c.request, effects, |s, e| s.request_hand_over(c, e)),
            Body::ReturnReplica(command) => self.return_replica(command, effects),
            Body::SetClusterOptions(c) => self.once(&c.request, effects, |s, e| s.set_cluster_options(c, e)),
            Body::Rebalance(c) => self.once(&c.request, effects, |s, e| s.rebalance(c, e)),
            Body::AddReplica(c) => self.once(&c.request, effects, |s, e| s.add_replica(c, e)),
            Body::DropReplica(c) => self.once(&c.request, effects, |s, e| s.drop_replica(c, e)),
            Body::ForceRecovery(c) => self.once(&c.request, effects, |s, e| s.force_recovery(c, e)),
            Body::ProposeReservation(command) => self.propose_reservation(command, effects),
            Body::RecordSessionEnd(c) => self.once(&c.request, effects, |_, effects| {
                let whose = audit::nexus(c.nexus.as_ref());
                let message = format!("the session of {whose} at node {} was ended", c.node);
                effects.event("session.ended", format!("session/{whose}"), message);
                Ok(Outcome::Done)
            }),
            Body::RecordScrub(c) => self.once(&c.request, effects, |_, effects| {
                let message = format!("a scrub of volume {} was begun at {}", c.volume, c.nodes.join(", "));
                effects.event("scrub.begun", format!("volume/{}", c.volume), message);
                Ok(Outcome::Done)
            }),
            Body::ClearReservation(c) => self.once(&c.request, effects, |s, e| s.clear_reservation(c, e)),
            Body::EstablishUnitAttention(command) => self.establish_unit_attention(command, effects),
            Body::CreateVolume(c) => self.once(&c.request, effects, |s, e| s.create_volume(c, e)),
            Body::MakeCopies(c) => self.once(&c.request, effects, |s, e| s.make_copies(c, e)),
            Body::ReportMaking(command) => self.report_making(command, effects),
            Body::RestoreVolumes(c) => self.once(&c.request, effects, |s, e| s.restore_volumes(c, e)),
            Body::ResizeVolume(c) => self.once(&c.request, effects, |s, e| s.resize_volume(c, e)),
            Body::DeleteVolume(c) => self.once(&c.request, effects, |s, e| s.delete_volume(c, e)),
            Body::CreateHost(c) => self.once(&c.request, effects, |s, e| s.create_host(c, e)),
            Body::DeleteHost(c) => self.once(&c.request, effects, |s, e| s.delete_host(c, e)),
            Body::CreateMapping(c) => self.once(&c.request, effects, |s, e| s.create_mapping(c, e)),
            Body::DeleteMapping(c) => self.once(&c.request, effects, |s, e| s.delete_mapping(c, e)),
            Body::UpdateHost(c) => self.once(&c.request, effects, |s, e| s.update_host(c, e)),
            Body::SetWildcardInitiators(c) => {
                self.once(&c.request, effects, |s, e| s.set_wildcard_initiators(c, e))
            }
            Body::CreateHostGroup(c) => self.once(&c.request, effects, |s, e| s.create_host_group(c, e)),
            Body::UpdateHostGroup(c) => self.once(&c.request, effects, |s, e| s.update_host_group(c, e)),
            Body::DeleteHostGroup(c) => self.once(&c.request, effects, |s, e| s.delete_host_group(c, e)),
            Body::ApplyMappings(c) => self.once(&c.request, effects, |s, e| s.apply_mappings(c, e)),
            Body::BeginJob(c) => self.once(&c.request, effects, |s, e| s.propose_job(c, e)),
            Body::ReportJob(c) => {
                self.report_job(c.id, c.done, c.total, &c.message, effects).map(|()| Outcome::Done)
            }
            Body::EndJob(c) => self.end_job(c.id, c.state(), &c.message, effects).map(|()| Outcome::Done),
            Body::CancelJob(c) => self.once(&c.request, effects, |s, e| s.cancel_job(c, e)),
        }
    }

    /// Carries a client's request out once; the same request again gets the same answer.
    fn once(
        &mut self,
        request: &Option<records::ClientRequest>,
        effects: &mut Effects,
        carry_out: impl FnOnce(&mut Self, &mut Effects) -> Response,
    ) -> Response {
        if let Some(outcome) = self.requests.seen(request.as_ref())? {
            return Ok(outcome);
        }
        let outcome = carry_out(self, effects)?;
        self.requests.remember(request.as_ref(), &outcome, effects);
        Ok(outcome)
    }

    /// A change of the members is made already, so it is recorded also where its request's id was used for something else; that one's
    /// answer stays.
    fn record_membership(&mut self, command: &records::RecordMembership, effects: &mut Effects) -> Outcome {
        record_membership(command, effects);
        if let Ok(None) = self.requests.seen(command.request.as_ref()) {
            self.requests.remember(command.request.as_ref(), &Outcome::Done, effects);
        }
        Outcome::Done
    }

    fn cluster_init(&mut self, command: &records::ClusterInit, effects: &mut Effects) -> Response {
        if command.id.len() != 16 {
            return Err(Refusal::invalid("id", "not 16 bytes"));
        }
        let target_iqn = names::iscsi_name("target_iqn", &command.target_iqn)?;
        if let Some(cluster) = &self.cluster {
            if cluster.id == command.id && cluster.target_iqn == target_iqn {
                return Ok(Outcome::Done);
            }
            return Err(Refusal::Precondition("the cluster is initialised already".to_owned()));
        }
        let cluster = records::Cluster {
            id: command.id.clone(),
            target_iqn,
            next_relative_port: 1,
            next_node_number: 1,
            ..Default::default()
        };
        let message = format!("the cluster was made; its target is {}", cluster.target_iqn);
        effects.event("cluster.created", "cluster".to_owned(), message);
        effects.change(change::Change::Cluster(cluster.clone()));
        self.cluster = Some(cluster);
        Ok(Outcome::Done)
    }

    fn begin_lease_term(&mut self, command: &records::BeginLeaseTerm, effects: &mut Effects) -> Response {
        let cluster = self.cluster.as_mut().ok_or(Refusal::NotInitialised)?;
        if command.term > cluster.lease_term {
            cluster.lease_term = command.term;
            effects.change(change::Change::Cluster(cluster.clone()));
        }
        check_lease_term(cluster.lease_term, command.term).map(|()| Outcome::Done)
    }

    /// The answer of a client's request if it was carried out before.
    ///
    /// # Errors
    /// [`Refusal::RequestIdReused`], or [`Refusal::Invalid`] for an id that is too long.
    pub fn answer(&self, request: Option<&records::ClientRequest>) -> Result<Option<Outcome>, Refusal> {
        self.requests.seen(request)
    }

    /// Raft term of the leader whose leases are in force; 0 = none yet.
    pub fn lease_term(&self) -> u64 {
        self.cluster.as_ref().map_or(0, |cluster| cluster.lease_term)
    }

    /// Log index of the last entry that changed anything data nodes see.
    pub fn head(&self) -> u64 {
        self.head
    }

    /// The cluster's own record, once it is initialised.
    pub fn cluster(&self) -> Option<&records::Cluster> {
        self.cluster.as_ref()
    }

    /// All nodes, by number.
    pub fn nodes(&self) -> impl Iterator<Item = &records::Node> {
        self.nodes.values()
    }

    /// A node by number.
    pub fn node(&self, number: u32) -> Option<&records::Node> {
        self.nodes.get(&number)
    }

    /// All volumes, by id.
    pub fn volumes(&self) -> impl Iterator<Item = &Volume> {
        self.volumes.values()
    }

    /// A volume by id.
    pub fn volume(&self, id: VolumeId) -> Option<&Volume> {
        self.volumes.get(&id)
    }

    /// All hosts, by name.
    pub fn hosts(&self) -> impl Iterator<Item = &records::Host> {
        self.hosts.values()
    }

    /// A host by name.
    pub fn host(&self, name: &str) -> Option<&records::Host> {
        self.hosts.get(name)
    }

    /// The host that an initiator port belongs to.
    pub fn host_of_initiator(&self, initiator: &TransportId) -> Option<&str> {
        self.initiators.find(initiator).map(String::as_str)
    }

    /// The host to which exactly this was given; for the name of an iSCSI node, the one that it belongs to.
    pub fn host_given(&self, initiator: &Initiator) -> Option<&str> {
        let host = match initiator {
            Initiator::Iscsi(name) => self.initiators.find_iscsi(name),
            other => self.initiators.get(other),
        };
        host.map(String::as_str)
    }

    /// The LUN map of a host, by LUN.
    pub fn mappings_of_host(&self, host: &str) -> impl Iterator<Item = (u32, &Mapped)> {
        self.mappings.get(host).into_iter().flatten().map(|(lun, mapped)| (*lun, mapped))
    }

    /// All mappings as (host, LUN, what it stands for), by host and LUN.
    pub fn mappings(&self) -> impl Iterator<Item = (&str, u32, &Mapped)> {
        self.mappings
            .iter()
            .flat_map(|(host, map)| map.iter().map(move |(lun, mapped)| (host.as_str(), *lun, mapped)))
    }

    /// For messages: the name of a node, or its number.
    pub fn node_name(&self, number: u32) -> String {
        self.nodes.get(&number).map_or_else(|| format!("number {number}"), |node| node.name.clone())
    }

    /// For messages: the name of a volume, or its id.
    pub fn volume_name(&self, id: VolumeId) -> String {
        self.volumes.get(&id).map_or_else(|| id.to_string(), |volume| volume.name.clone())
    }
}

fn record_membership(command: &records::RecordMembership, effects: &mut Effects) {
    let (kind, what) = match command.change.as_str() {
        "admitted" => ("controller.admitted", "was admitted to catch up"),
        "added" => ("controller.added", "was added"),
        "removed" => ("controller.removed", "was removed"),
        "alone" => ("controller.alone", "goes on alone; the others were given up"),
        "withdrawn" => ("controller.withdrawn", "was not added: it did not catch up"),
        _ => ("controller.leads", "was chosen to lead"),
    };
    effects.event(
        kind,
        format!("controller/{}", command.name),
        format!("controller {} {what}", command.name),
    );
}

/// What hangs on leases is decided by the leader whose leases are in force, and by no other.
fn check_lease_term(in_force: u64, asked: u64) -> Result<(), Refusal> {
    if in_force == asked { Ok(()) } else { Err(Refusal::StaleLeaseTerm { asked, in_force }) }
}
