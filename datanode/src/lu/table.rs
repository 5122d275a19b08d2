//! Which logical units this node serves, following the view: units appear with ownership and are closed when it ends. Their
//! replicas are the business of [`Hosting`], which is told of every volume.
//!
//! Invariants: views are followed in log order, without waiting for a disk; a unit is shown reservations and topology with
//! the view, and its size and mode once its replica is ready for them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use holdfast_proto::node::{ScrubQuestion, ScrubState};
use holdfast_scsi::alua::{AluaState, ChangedBy};
use holdfast_scsi::device_server::{LuConfig, PortGroup, Topology};
use holdfast_scsi::identity::{LuIdentity, LuProperties};
use holdfast_scsi::mode::ModeParameters;
use holdfast_scsi::nexus::Nexus;
use rustc_hash::FxHashMap;

use super::{Driver, LogicalUnit, Services};
use crate::store::pool::Pool;
use crate::view::{AbortTasks, ClusterView, NodeNumber, Shared, VolumeId, VolumeView};
use crate::volume::hosting::{Hosting, Unit};
use crate::volume::{ScrubPace, Surroundings, Volume};

/// PRODUCT REVISION LEVEL of every unit: the same on all nodes, whatever program version they run.
pub(super) const REVISION: [u8; 4] = *b"0001";

type Units = FxHashMap<VolumeId, Arc<LogicalUnit>>;

/// The units of this node.
#[derive(Clone)]
pub(crate) struct Table {
    shared: Arc<Shared>,
    services: Services,
    hosting: Hosting,
    units: Arc<ArcSwap<Units>>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    last: Option<Arc<ClusterView>>,
}

/// A unit and the configuration that it takes once its replica is ready.
struct Prepared {
    services: Services,
    unit: Arc<LogicalUnit>,
    config: LuConfig,
}

impl Unit for Prepared {
    fn volume(&self) -> &Volume {
        &self.unit.volume
    }

    fn ready(&self) {
        self.unit.install_config(&mut Driver::remote(&self.services), self.config);
    }

    fn config(&self) -> LuConfig {
        self.config
    }
}

impl Table {
    /// An empty table.
    pub(crate) fn new(shared: Arc<Shared>, services: Services, pools: Vec<Pool>, pace: ScrubPace) -> Table {
        let around = Surroundings {
            shared: Arc::clone(&shared),
            io: services.io.clone(),
            agent: services.agent.clone(),
        };
        let hosting = Hosting::new(around, pools, pace);
        Table { shared, services, hosting, units: Arc::default(), state: Arc::default() }
    }

    /// Ends every replica. The workers have ended, the I/O threads have not.
    pub(crate) fn stop(&self) {
        self.hosting.stop();
    }

    /// See [`Hosting::scrub`].
    pub(crate) fn scrub(&self, question: &ScrubQuestion, request_id: &str) -> ScrubState {
        self.hosting.scrub(question, request_id)
    }

    /// The unit of a volume, if it is owned here.
    pub(crate) fn get(&self, volume: VolumeId) -> Option<Arc<LogicalUnit>> {
        self.units.load().get(&volume).cloned()
    }

    /// The nexus is gone, for every unit.
    pub(crate) fn nexus_loss(&self, driver: &mut Driver<'_>, nexus: &Nexus) {
        for unit in self.units.load().values() {
            unit.nexus_loss(driver, nexus);
        }
    }

    /// See [`LogicalUnit::tick`].
    pub(crate) fn tick(&self, driver: &mut Driver<'_>) {
        for unit in self.units.load().values() {
            unit.tick(driver);
        }
    }

    /// Follows the view. Called in log order, from one thread at a time, before the workers hear of the view. `gap`: it does
    /// not follow on the one before.
    pub(crate) fn install(&self, view: &Arc<ClusterView>, aborts: &[AbortTasks], gap: bool) {
        let mut driver = Driver::remote(&self.services);
        let mut state = self.lock();
        let last = state.last.replace(Arc::clone(view));
        let follows = last.as_ref().filter(|last| !gap && Arc::ptr_eq(&last.nodes, &view.nodes));
        let changed: BTreeSet<VolumeId> = match (follows, &last) {
            (Some(last), _) => view.volumes.changed_since(&last.volumes).into_iter().collect(),
            (None, last) => {
                let before = last.iter().flat_map(|last| last.volumes.keys());
                view.volumes.keys().chain(before).copied().collect()
            }
        };
        let mut units = self.units.load_full();
        for id in &changed {
            let stays = view.owned_volume(*id).is_some_and(|volume| volume.is_served());
            if let Some(unit) = units.get(id).filter(|_| !stays) {
                // A host may have asked for just this.
                let now = view.volumes.get(id).map(|volume| topology(view, volume));
                unit.close(&mut driver, now.as_ref());
                Arc::make_mut(&mut units).remove(id);
            }
        }
        for id in &changed {
            let Some(volume) = view.volumes.get(id) else {
                self.hosting.forget(*id);
                continue;
            };
            let mut owned: Option<Arc<dyn Unit>> = None;
            if volume.is_served() && view.owns(volume) {
                if !units.contains_key(id) {
                    let inner = Volume::new(*id, Arc::clone(&self.shared));
                    let new = Arc::new(LogicalUnit::new(inner, lu_config(volume)));
                    Arc::make_mut(&mut units).insert(*id, new);
                }
                if let Some(unit) = units.get(id) {
                    let aborts: Vec<_> = aborts
                        .iter()
                        .filter(|abort| abort.volume == *id)
                        .flat_map(|a| a.nexuses.clone())
                        .collect();
                    unit.install(&mut driver, &volume.reservations, topology(view, volume), &aborts);
                    let (services, unit, config) =
                        (self.services.clone(), Arc::clone(unit), lu_config(volume));
                    owned = Some(Arc::new(Prepared { services, unit, config }));
                }
            }
            self.hosting.follow(view, volume, owned, gap);
        }
        // Again for what came in between views; a task that has ended is not found.
        for abort in aborts {
            if let Some(unit) = units.get(&abort.volume) {
                unit.abort_tasks_of(&mut driver, &abort.nexuses);
            }
        }
        if !Arc::ptr_eq(&units, &self.units.load()) {
            self.units.store(units);
        }
        drop(state);
        if last.is_none() {
            self.hosting.report_strays(view);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the unit of a volume is.
pub fn lu_config(volume: &VolumeView) -> LuConfig {
    LuConfig {
        properties: LuProperties {
            identity: LuIdentity { volume_uuid: volume.id.0, revision: REVISION },
            geometry: volume.geometry,
            physical_block_exponent: volume.physical_block_exponent,
        },
        mode: ModeParameters::new(volume.write_cache),
        read_only: volume.is_snapshot || !volume.config.takes_writes(),
    }
}

/// The groups as every path reports them: one for each node, the owner's optimized.
pub fn topology(view: &ClusterView, volume: &VolumeView) -> Topology {
    let owner = volume.config.owner().map(|owner| owner.node);
    let group = |(number, node): (&NodeNumber, &Arc<crate::view::NodeView>)| PortGroup {
        id: number.get(),
        state: match (Some(*number) == owner, node.live) {
            (true, _) => AluaState::ActiveOptimized,
            (false, true) => AluaState::ActiveNonOptimized,
            (false, false) => AluaState::Unavailable,
        },
        preferred: Some(*number) == owner,
        ports: node.ports.iter().map(|port| port.relative_port).collect(),
    };
    let groups: BTreeMap<u16, PortGroup> = view.nodes.iter().map(group).map(|g| (g.id, g)).collect();
    Topology {
        target_name: view.target_iqn.to_string(),
        groups: groups.into_values().collect(),
        changed_by: if volume.owner_by_host { ChangedBy::Command } else { ChangedBy::Implicit },
        moving_to: volume.hand_over_to.map(NodeNumber::get),
    }
}
