//! What the controller said, as one immutable picture in valid-only types. Every thread reads the same one.
//!
//! Invariants: every mapping names a host and a volume of the view; an initiator belongs to one host; relative target
//! ports are unique; a record that does not parse makes no view at all ([`RecordError`]), so that a node never serves by
//! a picture with holes. A new view shares all that has not changed with the one before, and costs what has changed.

pub(crate) mod parse;
mod secret;
mod shared_map;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64},
    },
};

use arc_swap::ArcSwapOption;
use holdfast_proto::state::MakingPhase;
use holdfast_scsi::{
    geometry::Geometry,
    initiator::{Initiator, InitiatorTable},
    lu_state::LuState,
    nexus::{Nexus, RelativePort},
    sense::AdditionalSense,
};

pub use holdfast_replica::{
    config::{Member, Owner, VolumeConfig},
    epoch::Epoch,
    ids::{BootId, ClusterId, Incarnation, NodeNumber, VolumeId},
};
pub use parse::{OpenSecret, RecordError};
pub use secret::Secret;
pub use shared_map::SharedMap;

use crate::{gate::LeaseGate, volume::Links};

/// What all threads of the process share.
#[derive(Debug, Default)]
pub struct Shared {
    /// The newest view; none before the first snapshot. Installed by the agent before the workers hear of it.
    pub view: ArcSwapOption<ClusterView>,
    /// May we serve now?
    pub gate: LeaseGate,
    /// Connections between the replicas.
    pub links: Links,
    /// This node has lost its lease and hosts are better off elsewhere: [`crate::data_plane`] says when. Of no meaning while the gate
    /// is open.
    pub cut_off: AtomicBool,
    /// When a leader of the controllers has said anything last, in boot-time milliseconds.
    pub leader_heard_ms: AtomicU64,
}

/// The cluster as of one log index.
#[derive(Clone, Debug)]
pub struct ClusterView {
    /// Log index that this view stands for.
    pub index: u64,
    /// The cluster.
    pub cluster_id: ClusterId,
    /// iSCSI name of the one target, lower case.
    pub target_iqn: Arc<str>,
    /// This node's number: its target port group and TPGT.
    pub me: NodeNumber,
    /// The incarnation that the controller gave this process. Ownership given to another one is not ours.
    pub my_incarnation: Incarnation,
    /// Data nodes by number.
    pub nodes: Arc<BTreeMap<NodeNumber, Arc<NodeView>>>,
    /// Bytes that are free in the pools of each node, as it told last. They change often and nothing follows them, so they stand by
    /// themselves.
    pub pool_rooms: Arc<BTreeMap<NodeNumber, PoolRooms>>,
    /// Volumes by id.
    pub volumes: SharedMap<VolumeId, Arc<VolumeView>>,
    /// Hosts by name.
    pub hosts: Arc<BTreeMap<String, Arc<HostView>>>,
    /// Hosts by their initiators.
    pub host_by_initiator: Arc<InitiatorTable<Arc<HostView>>>,
    /// Mappings by host name, in order of LUN.
    pub mappings: SharedMap<String, Arc<[MappingView]>>,
}

/// Names of a node's pools with the bytes that are free in each.
pub type PoolRooms = Arc<[(String, u64)]>;

/// A data node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeView {
    /// Its name, as in its certificate.
    pub name: String,
    /// Its number = target port group = TPGT.
    pub number: NodeNumber,
    /// Holds a lease, as far as the controller has said.
    pub live: bool,
    /// Gets no new ownership or replicas.
    pub cordoned: bool,
    /// What it owns is being handed over, or has been: it is about to be stopped.
    pub draining: bool,
    /// Its process's incarnation.
    pub incarnation: Incarnation,
    /// The boot that it runs under.
    pub boot: BootId,
    /// Its target ports.
    pub ports: Vec<PortView>,
    /// Where it takes forwarded commands.
    pub interconnect: SocketAddr,
}

/// A target port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortView {
    /// Its relative target port identifier.
    pub relative_port: RelativePort,
    /// Where initiators connect.
    pub portal: SocketAddr,
}

/// A volume and the logical unit made of it.
#[derive(Clone, Debug)]
pub struct VolumeView {
    /// Identity, for ever.
    pub id: VolumeId,
    /// Name, for people.
    pub name: String,
    /// Block size and capacity.
    pub geometry: Geometry,
    /// Log2 of logical blocks per physical block, 0..=8.
    pub physical_block_exponent: u8,
    /// WCE.
    pub write_cache: bool,
    /// Thin provisioned.
    pub thin: bool,
    /// Its replicas keep checksums.
    pub checksums: bool,
    /// Epoch, owner, in-sync set, learners.
    pub config: VolumeConfig,
    /// Replicas that exist but are neither in sync nor catching up.
    pub absent: Vec<Member>,
    /// Replicas that are no longer of the volume: their nodes remove them.
    pub removing: Vec<Member>,
    /// The in-sync node that the owner is to hand over to now.
    pub hand_over_to: Option<NodeNumber>,
    /// The owner became it by SET TARGET PORT GROUPS.
    pub owner_by_host: bool,
    /// The volume is being deleted: replicas are to be removed.
    pub deleting: bool,
    /// It began as a copy of another one.
    pub is_copy: bool,
    /// It is a snapshot: never written.
    pub is_snapshot: bool,
    /// It is still being made of another one, and not served.
    pub making: Option<MakingView>,
    /// It is being put back to what a snapshot has.
    pub restoring: Option<RestoringView>,
    /// The last restore that was done.
    pub restored: Option<VolumeId>,
    /// Persistent reservations, shared between views until they change.
    pub reservations: Arc<ReservationView>,
}

/// How far a volume is put back to what a snapshot has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoringView {
    /// Names the restore.
    pub id: VolumeId,
    /// Whose content it gets.
    pub snapshot: VolumeId,
    /// Its steps; the source is the volume itself.
    pub making: MakingView,
}

/// How far a snapshot or clone is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MakingView {
    /// The volume that it is made of.
    pub source: VolumeId,
    /// The epoch of that one in which all of it has to happen.
    pub source_epoch: Epoch,
    /// What is being done.
    pub phase: MakingPhase,
    /// Nodes that have made their replica.
    pub taken: Vec<NodeNumber>,
}

/// What the cluster keeps of a logical unit beside its data, as commands leave it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReservationView {
    /// Log index of the last change ("pr_version"); 0 = never changed.
    pub version: u64,
    /// The state.
    pub state: LuState,
}

/// A set of initiators that is given access as one.
#[derive(Clone, Debug)]
pub struct HostView {
    /// Its name.
    pub name: String,
    /// Its initiators, of every kind.
    pub initiators: Vec<Initiator>,
    /// What it must authenticate with; `None`: no authentication is asked.
    pub chap: Option<ChapView>,
}

/// CHAP credentials with the secrets in the clear.
#[derive(Clone, Debug)]
pub struct ChapView {
    /// Name that the initiator gives.
    pub user: String,
    /// Its secret.
    pub secret: Secret,
    /// Name and secret that the target answers with, for mutual CHAP.
    pub target: Option<(String, Secret)>,
}

/// A volume as one host sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappingView {
    /// 0..=16383.
    pub lun: u16,
    /// The volume.
    pub volume: VolumeId,
    /// Writes are refused.
    pub read_only: bool,
}

/// A Unit Attention to establish at this node's ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitAttentionEvent {
    /// Unique and growing in the cluster: log index and ordinal in one.
    pub id: u64,
    /// The volume; `None`: every logical unit that the nexus sees.
    pub volume: Option<VolumeId>,
    /// What is reported.
    pub additional: AdditionalSense,
    /// Only this nexus; `None`: every one that the volume is mapped to.
    pub only: Option<Nexus>,
    /// Not this nexus.
    pub except: Option<Nexus>,
    /// Only nexuses of this host.
    pub host: Option<String>,
}

/// Tasks of these nexuses on this volume are to be aborted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AbortTasks {
    /// The volume.
    pub volume: VolumeId,
    /// Whose tasks.
    pub nexuses: Vec<Nexus>,
}

impl ClusterView {
    /// This node's own record.
    pub fn my_node(&self) -> Option<&Arc<NodeView>> {
        self.nodes.get(&self.me)
    }

    /// The volume, if this incarnation of this node owns it. The gate has to be open too before it is served.
    pub fn owned_volume(&self, id: VolumeId) -> Option<&Arc<VolumeView>> {
        self.volumes.get(&id).filter(|volume| self.owns(volume))
    }

    /// True if this incarnation of this node owns the volume.
    pub fn owns(&self, volume: &VolumeView) -> bool {
        volume.config.owner() == Some(Owner { node: self.me, incarnation: self.my_incarnation })
    }

    /// The node that owns the volume, this one or another.
    pub fn owner_of(&self, volume: &VolumeView) -> Option<&Arc<NodeView>> {
        self.nodes.get(&volume.config.owner()?.node)
    }

    /// The least that is free below a copy of the volume on another node, in sync or catching up, in bytes. `None`: there is none, or its
    /// node has not told.
    pub fn least_room_elsewhere(&self, id: VolumeId) -> Option<u64> {
        let config = &self.volumes.get(&id)?.config;
        let others = config.in_sync().iter().chain(config.learners()).filter(|m| m.node != self.me);
        let room = |member: &Member| {
            let pools = self.pool_rooms.get(&member.node)?;
            pools.iter().find(|(name, _)| *name == member.pool).map(|(_, free)| *free)
        };
        others.filter_map(room).min()
    }

    /// The host that an initiator belongs to, by its iSCSI name in any case.
    pub fn host_of(&self, initiator_name: &str) -> Option<&Arc<HostView>> {
        self.host_by_initiator.find_iscsi(initiator_name)
    }

    /// What a host sees, in order of LUN.
    pub fn mappings_of(&self, host: &str) -> &[MappingView] {
        self.mappings.get(host).map_or(&[], |mappings| mappings)
    }

    /// A host sees the same through this view as through an earlier one that it was made from.
    pub fn has_same_map(&self, earlier: &ClusterView, host: &str) -> bool {
        if self.mappings.is_same(&earlier.mappings) {
            return true;
        }
        match (self.mappings.get(host), earlier.mappings.get(host)) {
            (Some(now), Some(before)) => Arc::ptr_eq(now, before),
            (now, before) => now.is_none() && before.is_none(),
        }
    }
}

impl VolumeView {
    /// It is there, whole, and stays.
    pub fn is_served(&self) -> bool {
        !self.deleting && self.making.is_none()
    }

    /// A node's replica, in sync or catching up.
    pub fn replica_of(&self, node: NodeNumber) -> Option<&Member> {
        self.config.member(node)
    }

    /// A node's replica, whatever its state.
    pub fn any_replica_of(&self, node: NodeNumber) -> Option<&Member> {
        self.replica_of(node).or_else(|| self.absent.iter().chain(&self.removing).find(|m| m.node == node))
    }
}
