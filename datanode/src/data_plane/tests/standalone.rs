//! A node alone: the whole data plane on real sockets and real files, under a view made by hand. In the place of the
//! controller stands [`Authority`], which applies reservations with the same function as the controller's state machine.

use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use holdfast_iscsi::PortalOptions;
use holdfast_proto::state::{self, change::Change as Record};
use holdfast_scsi::lu_state::{Change, Context, UnixMillis};
use holdfast_scsi::mode::ModeParameters;
use holdfast_scsi::nexus::RelativePort;
use holdfast_scsi::pr::state::Refusal;
use holdfast_scsi::sense::AdditionalSense;
use holdfast_scsi::status::Status;
use holdfast_scsi::ua::UaScope;

use crate::agent::handle::{Request, Requests};
use crate::agent::{
    EstablishUnitAttention, Established, Handle, Heartbeats, Install, Installer, ProposalResult,
    ProposeReservation, ProposedChange, UnitAttentionScope,
};
use crate::clock;
use crate::data_plane::router::Unconnected;
use crate::data_plane::{DataPlane, Setup};
use crate::store::pool::{Pool, PoolPlace};
use crate::view::{
    AbortTasks, ClusterId, ClusterView, Incarnation, NodeNumber, ReservationView, Shared, UnitAttentionEvent,
    VolumeId, VolumeView,
};

pub(super) const TARGET: &str = "iqn.2026-01.example.holdfast:cluster";
pub(super) const CLUSTER: ClusterId = ClusterId([0xc1; 16]);

/// A node without a cluster. Stopped when dropped.
pub(super) struct Standalone {
    plane: Option<Arc<DataPlane>>,
    pub(super) shared: Arc<Shared>,
    pub(super) authority: Arc<Authority>,
    agent: Option<JoinHandle<()>>,
    _dir: Option<tempfile::TempDir>,
}

/// What stands for the controller: it holds the view, and hands out log indexes.
pub(super) struct Authority {
    /// None once the node has stopped.
    plane: Mutex<Option<Arc<DataPlane>>>,
    view: Mutex<Arc<ClusterView>>,
    installed: Mutex<u64>,
    changed: Condvar,
    removed: Mutex<Vec<VolumeId>>,
}

impl Standalone {
    pub(super) fn start(portal: SocketAddr) -> Standalone {
        let dir = tempfile::tempdir().unwrap();
        let mut node = Standalone::start_in(portal, dir.path(), 1);
        node._dir = Some(dir);
        node
    }

    /// With its pool under `directory`, as the given incarnation.
    pub(super) fn start_in(portal: SocketAddr, directory: &std::path::Path, incarnation: u64) -> Standalone {
        let pool =
            Pool::open("p", &PoolPlace::Directory(directory.join("pool")), CLUSTER, "node-1", directory)
                .unwrap();
        let (handle, requests) = Handle::new();
        let shared = Arc::new(Shared::default());
        let workers = 2;
        let setup = Setup {
            portals: vec![portal],
            workers,
            pools: vec![pool],
            scrub: crate::volume::ScrubPace::default(),
            portal_options: PortalOptions::default(),
            shared: Arc::clone(&shared),
            agent: handle,
            heartbeats: Heartbeats::new(workers),
            interconnect: Box::new(|_| Box::new(Unconnected::default())),
        };
        let plane = Arc::new(DataPlane::start(setup).unwrap());
        let me = NodeNumber::new(1).unwrap();
        let authority = Arc::new(Authority {
            plane: Mutex::new(Some(Arc::clone(&plane))),
            view: Mutex::new(Arc::new(ClusterView::empty(CLUSTER, TARGET, me, Incarnation(incarnation)))),
            installed: Mutex::new(0),
            changed: Condvar::new(),
            removed: Mutex::default(),
        });
        let agent = {
            let authority = Arc::clone(&authority);
            std::thread::spawn(move || authority.run(requests))
        };
        let node = Standalone { plane: Some(plane), shared, authority, agent: Some(agent), _dir: None };
        let portal = node.portal().to_string();
        node.authority.change(vec![Record::Node(state::Node {
            name: "node-1".into(),
            number: 1,
            ports: vec![state::Port { relative_port: 1, portal }],
            interconnect: "127.0.0.1:1".into(),
            boot_id: vec![1; 16],
            incarnation,
            live: true,
            ..Default::default()
        })]);
        node.open_gate();
        node
    }

    pub(super) fn portal(&self) -> SocketAddr {
        self.plane().portals()[0]
    }

    pub(super) fn plane(&self) -> &DataPlane {
        self.plane.as_ref().unwrap()
    }

    pub(super) fn open_gate(&self) {
        self.shared.gate.extend(clock::now_ms() + 3_600_000);
    }

    /// A volume of so many bytes, at its first epoch.
    pub(super) fn volume(&self, id: u8, size_bytes: u64) -> state::Volume {
        state::Volume {
            id: vec![id; 16],
            name: format!("volume-{id}"),
            size_bytes,
            block_size: 512,
            physical_block_exponent: 3,
            write_cache: true,
            thin: true,
            replicas: 1,
            epoch: Some(state::Epoch { generation: 0, number: 2 }),
            owner: 1,
            owner_incarnation: self.authority.view().my_incarnation.0,
            in_sync: vec![state::ReplicaMember { node: 1, boot_id: vec![1; 16], pool: "p".into() }],
            min_in_sync: 1,
            ..Default::default()
        }
    }

    pub(super) fn host(name: &str, initiators: &[&str]) -> Record {
        let initiators = initiators.iter().map(|i| i.to_string()).collect();
        Record::Host(state::Host { name: name.into(), initiators, chap: None })
    }

    pub(super) fn mapping(host: &str, volume: u8, lun: u32) -> Record {
        Record::Mapping(state::Mapping {
            host: host.into(),
            volume_id: vec![volume; 16],
            lun,
            read_only: false,
            group: String::new(),
        })
    }
}

impl Drop for Standalone {
    fn drop(&mut self) {
        // The agent's thread ends with the last handle, and the data plane holds it.
        self.authority.plane.lock().unwrap().take();
        self.plane.take();
        if let Some(agent) = self.agent.take() {
            let _ = agent.join();
        }
    }
}

impl Authority {
    pub(super) fn view(&self) -> Arc<ClusterView> {
        Arc::clone(&self.view.lock().unwrap())
    }

    /// Commits records and waits until every worker has them.
    pub(super) fn change(&self, records: Vec<Record>) -> u64 {
        self.commit(|view, index| {
            let changes: Vec<_> = records.iter().map(|r| state::Change { change: Some(r.clone()) }).collect();
            // Secrets are sealed with nothing here.
            let view = view.with_changes(index, &changes, &|_, sealed| Ok(sealed.to_vec())).unwrap();
            (view, Vec::new(), Vec::new())
        })
    }

    /// Commits a Unit Attention.
    pub(super) fn unit_attention(
        &self,
        volume: VolumeId,
        additional: AdditionalSense,
        scope: &UnitAttentionScope,
    ) -> u64 {
        let (only, except) = match scope {
            UnitAttentionScope::All => (None, None),
            UnitAttentionScope::Only(nexus) => (Some(*nexus), None),
            UnitAttentionScope::Except(nexus) => (None, Some(*nexus)),
        };
        self.commit(|view, index| {
            let event = UnitAttentionEvent {
                id: index << 8,
                volume: Some(volume),
                additional,
                only,
                except,
                host: None,
            };
            (ClusterView { index, ..view.clone() }, vec![event], Vec::new())
        })
    }

    /// Volumes whose replicas were reported as removed.
    pub(super) fn removed(&self) -> Vec<VolumeId> {
        self.removed.lock().unwrap().clone()
    }

    fn commit(
        &self,
        change: impl FnOnce(&ClusterView, u64) -> (ClusterView, Vec<UnitAttentionEvent>, Vec<AbortTasks>),
    ) -> u64 {
        let mut held = self.view.lock().unwrap();
        let index = held.index + 1;
        let (view, unit_attentions, aborts) = change(&held, index);
        *held = Arc::new(view);
        let install = Install { view: Arc::clone(&held), unit_attentions, aborts, events_lost: false };
        match &*self.plane.lock().unwrap() {
            Some(plane) => plane.install(install),
            None => return index,
        }
        drop(held);
        let mut installed = self.installed.lock().unwrap();
        while *installed < index {
            installed = self.changed.wait(installed).unwrap();
        }
        index
    }

    fn run(self: Arc<Self>, mut requests: Requests) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async move {
            loop {
                let request = tokio::select! {
                    Some(request) = requests.reports.recv() => request,
                    Some(request) = requests.requests.recv() => request,
                    else => return,
                };
                match request {
                    Request::Inspected(_) => {}
                    Request::Installed(index) => {
                        *self.installed.lock().unwrap() = index;
                        self.changed.notify_all();
                    }
                    Request::ReplicaRemoved(volume) => self.removed.lock().unwrap().push(volume),
                    // One copy: nobody asks for another configuration.
                    Request::Pools(_)
                    | Request::ReplicaReport(_)
                    | Request::Making(..)
                    | Request::ChangeConfiguration(..) => {}
                    // One node: what it has installed has passed.
                    Request::AwaitBarrier(_, reply) => reply(true),
                    // These wait for installations, which this loop reports: on threads of their own.
                    Request::ProposeReservation(proposal, reply) => {
                        let authority = Arc::clone(&self);
                        std::thread::spawn(move || reply(authority.propose(&proposal)));
                    }
                    Request::EstablishUnitAttention(request, reply) => {
                        let authority = Arc::clone(&self);
                        std::thread::spawn(move || reply(authority.establish(&request)));
                    }
                }
            }
        });
    }

    fn establish(&self, request: &EstablishUnitAttention) -> Established {
        self.unit_attention(request.volume, request.additional, &request.scope);
        Established::Done
    }

    fn propose(&self, proposal: &ProposeReservation) -> ProposalResult {
        let mut result = ProposalResult::StaleVersion;
        self.commit(|view, index| {
            let mut next = ClusterView { index, ..view.clone() };
            let volume = &view.volumes[&proposal.volume];
            if volume.reservations.version != proposal.expected_version {
                return (next, Vec::new(), Vec::new());
            }
            let ports: Vec<RelativePort> =
                view.nodes.values().flat_map(|n| n.ports.iter().map(|p| p.relative_port)).collect();
            let mut state = volume.reservations.state.clone();
            let change = match &proposal.change {
                ProposedChange::Command { cdb, parameter_list } => {
                    Change::Command { nexus: &proposal.nexus, cdb, parameter_list }
                }
                ProposedChange::NexusLost => Change::NexusLost(&proposal.nexus),
                ProposedChange::Reset => Change::Reset,
                ProposedChange::OperationEnded { failed } => Change::OperationEnded { failed: *failed },
            };
            let context = Context {
                ports: &ports,
                geometry: volume.geometry,
                mode_default: ModeParameters::new(volume.write_cache),
                now: UnixMillis(proposal.now_unix_ms),
            };
            let applied = match state.apply(&change, &context) {
                Ok(applied) => applied,
                Err(refusal) => {
                    let (status, sense) = match refusal {
                        Refusal::Conflict => (Status::ReservationConflict, None),
                        Refusal::Sense(sense) => (Status::CheckCondition, Some(sense)),
                    };
                    result = ProposalResult::Outcome { status, sense, version: index };
                    return (next, Vec::new(), Vec::new());
                }
            };
            result = ProposalResult::Outcome { status: Status::Good, sense: None, version: index };
            let reservations = Arc::new(ReservationView { version: index, state });
            let changed = VolumeView { reservations, ..VolumeView::clone(volume) };
            next.volumes.insert(proposal.volume, Arc::new(changed));
            let event = |(at, (whom, additional)): (usize, &(UaScope, AdditionalSense))| {
                let (only, except) = match whom {
                    UaScope::All => (None, None),
                    UaScope::Only(nexus) => (Some(*nexus), None),
                    UaScope::AllExcept(nexus) => (None, Some(*nexus)),
                };
                UnitAttentionEvent {
                    id: (index << 8) + at as u64,
                    volume: Some(proposal.volume),
                    additional: *additional,
                    only,
                    except,
                    host: None,
                }
            };
            let events = applied.unit_attentions.iter().enumerate().map(event).collect();
            let aborts = match applied.abort_tasks_of.is_empty() {
                true => Vec::new(),
                false => vec![AbortTasks { volume: proposal.volume, nexuses: applied.abort_tasks_of }],
            };
            (next, events, aborts)
        });
        result
    }
}
