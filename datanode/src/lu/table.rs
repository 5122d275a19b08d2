//! Which logical units this node serves, following the view: units appear with ownership, are prepared on the I/O threads
//! (replica opened or made, epoch promised, grown), and are closed when the ownership ends. Replicas of deleted volumes
//! are removed here, and nowhere else.
//!
//! Invariants: views are followed in log order, without waiting for a disk; a unit serves only under the epoch and with the
//! configuration of the newest view, prepared completely; a replica has one [`Replica`] object for the life of the
//! process, so that a promise waits for all I/O of every earlier ownership. An empty replica is made only for a volume that was
//! never served before: a missing one is never replaced by zeroes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use holdfast_replica::epoch::Epoch;
use holdfast_scsi::alua::AluaState;
use holdfast_scsi::device_server::{LuConfig, PortGroup, Topology};
use holdfast_scsi::identity::{LuIdentity, LuProperties};
use holdfast_scsi::mode::ModeParameters;
use holdfast_scsi::nexus::Nexus;

use super::{Driver, LogicalUnit, Services};
use crate::data_plane::mailbox::Message;
use crate::store::pool::Pool;
use crate::store::replica::{Replica, ReplicaError, ReplicaShape};
use crate::view::{AbortTasks, ClusterView, NodeNumber, Shared, VolumeId, VolumeView};
use crate::volume::Volume;

/// PRODUCT REVISION LEVEL of every unit: the same on all nodes, whatever program version they run.
const REVISION: [u8; 4] = *b"0001";
/// A volume at a later epoch has been served before, so its replica has to be there.
const NEW_UNTIL: Epoch = Epoch { generation: 0, number: 2 };

type Units = HashMap<VolumeId, Arc<LogicalUnit>>;
/// Locked while the replica is being opened, made or removed.
type ReplicaSlot = Arc<Mutex<Option<Arc<Replica>>>>;

/// The units of this node.
#[derive(Clone)]
pub(crate) struct Table {
    shared: Arc<Shared>,
    services: Services,
    pools: Arc<Vec<Pool>>,
    units: Arc<ArcSwap<Units>>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    last: Option<Arc<ClusterView>>,
    wanted: HashMap<VolumeId, Wanted>,
    replicas: HashMap<VolumeId, ReplicaSlot>,
    removing: HashSet<VolumeId>,
}

/// What a unit is to be prepared for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    epoch: Epoch,
    config: LuConfig,
    thin: bool,
    node: NodeNumber,
    pool: String,
}

/// Why a unit could not be prepared.
#[derive(Debug, thiserror::Error)]
enum PrepareError {
    #[error("this node has no pool {0:?}")]
    NoPool(String),
    #[error("its replica is missing from pool {0:?}; it has been served before, so no empty one is made")]
    Missing(String),
    #[error(transparent)]
    Replica(#[from] ReplicaError),
}

impl Table {
    /// An empty table.
    pub(crate) fn new(shared: Arc<Shared>, services: Services, pools: Vec<Pool>) -> Table {
        Table { shared, services, pools: Arc::new(pools), units: Arc::default(), state: Arc::default() }
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

    /// Follows the view. Called in log order, from one thread at a time, before the workers hear of the view.
    pub(crate) fn install(&self, view: &Arc<ClusterView>, aborts: &[AbortTasks]) {
        let mut driver = Driver::remote(&self.services);
        let mut state = self.lock();
        let last = state.last.replace(Arc::clone(view));
        let mut units = Units::clone(&self.units.load());
        let before = units.len();
        units.retain(|id, unit| {
            let stays = view.owned_volume(*id).is_some_and(|volume| !volume.deleting);
            if !stays {
                state.wanted.remove(id);
                unit.close(&mut driver);
            }
            stays
        });
        let mut changed = units.len() != before;
        let same_nodes = last.as_ref().is_some_and(|last| Arc::ptr_eq(&last.nodes, &view.nodes));
        for (id, volume) in view.volumes.iter() {
            let same = last.as_ref().and_then(|l| l.volumes.get(id)).is_some_and(|l| Arc::ptr_eq(l, volume));
            if same && same_nodes {
                continue;
            }
            if volume.deleting {
                self.remove_replica(&mut state, view, volume);
            } else if view.owns(volume) {
                let unit = units.entry(*id).or_insert_with(|| {
                    changed = true;
                    let inner = Volume::new(*id, Arc::clone(&self.shared));
                    Arc::new(LogicalUnit::new(inner, lu_config(volume)))
                });
                let aborts: Vec<_> = aborts
                    .iter()
                    .filter(|abort| abort.volume == *id)
                    .flat_map(|a| a.nexuses.clone())
                    .collect();
                unit.install(&mut driver, &volume.reservations, topology(view, volume), &aborts);
                self.want(&mut state, view, volume, unit);
            }
        }
        // Again for what came in between views; a task that has ended is not found.
        for abort in aborts {
            if let Some(unit) = units.get(&abort.volume) {
                unit.abort_tasks_of(&mut driver, &abort.nexuses);
            }
        }
        if changed {
            self.units.store(Arc::new(units));
        }
        drop(state);
        if last.is_none() {
            self.report_strays(view);
        }
    }

    fn want(&self, state: &mut State, view: &ClusterView, volume: &VolumeView, unit: &Arc<LogicalUnit>) {
        let wanted = Wanted {
            epoch: volume.config.epoch(),
            config: lu_config(volume),
            thin: volume.thin,
            node: view.me,
            pool: volume.replica_of(view.me).map(|member| member.pool.clone()).unwrap_or_default(),
        };
        let before = state.wanted.insert(volume.id, wanted.clone());
        match before {
            Some(before) if before == wanted => return,
            // What is under way may still be answered: epoch and replica stay.
            Some(before) if before.epoch == wanted.epoch => unit.volume.pause(),
            _ => unit.volume.stop(),
        }
        let (table, unit) = (self.clone(), Arc::clone(unit));
        let slot = Arc::clone(state.replicas.entry(volume.id).or_default());
        let lane = unit.lane();
        self.services.io.submit(lane, Box::new(move || table.prepare(&unit, &slot, &wanted)));
    }

    /// On an I/O thread: makes the unit ready to serve.
    fn prepare(&self, unit: &Arc<LogicalUnit>, slot: &ReplicaSlot, wanted: &Wanted) {
        let replica = self.open_replica(unit.id(), slot, wanted);
        let state = self.lock();
        if state.wanted.get(&unit.id()) != Some(wanted) {
            return;
        }
        unit.install_config(&mut Driver::remote(&self.services), wanted.config);
        match replica {
            Ok(replica) => {
                tracing::info!(volume = %unit.id(), epoch = %wanted.epoch, "serving");
                unit.volume.open(wanted.epoch, replica);
            }
            Err(error) => {
                tracing::error!(volume = %unit.id(), epoch = %wanted.epoch, %error, "the volume cannot be served");
                unit.volume.break_down(wanted.epoch);
            }
        }
        drop(state);
        self.services.mailboxes.post_all(|| Message::Retry);
    }

    fn open_replica(
        &self,
        id: VolumeId,
        slot: &ReplicaSlot,
        wanted: &Wanted,
    ) -> Result<Arc<Replica>, PrepareError> {
        let geometry = wanted.config.properties.geometry;
        let shape =
            ReplicaShape { block_size: geometry.block_size(), blocks: geometry.blocks(), thin: wanted.thin };
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        let replica = match &*slot {
            Some(replica) => Arc::clone(replica),
            None => {
                let pool = self.pools.iter().find(|pool| pool.name() == wanted.pool);
                let pool = pool.ok_or_else(|| PrepareError::NoPool(wanted.pool.clone()))?;
                let opened = if pool.has_replica(id) {
                    pool.open_replica(id, wanted.node, &shape)?
                } else if wanted.epoch <= NEW_UNTIL {
                    pool.create_replica(id, wanted.node, &shape)?
                } else {
                    return Err(PrepareError::Missing(wanted.pool.clone()));
                };
                let opened = Arc::new(opened);
                *slot = Some(Arc::clone(&opened));
                opened
            }
        };
        replica.promise(wanted.epoch)?;
        replica.grow(shape.blocks)?;
        Ok(replica)
    }

    fn remove_replica(&self, state: &mut State, view: &ClusterView, volume: &VolumeView) {
        let Some(member) = volume.replica_of(view.me) else { return };
        if !state.removing.insert(volume.id) {
            return;
        }
        let (table, id, pool_name) = (self.clone(), volume.id, member.pool.clone());
        let slot = Arc::clone(state.replicas.entry(id).or_default());
        let job = move || {
            let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(replica) = slot.take() {
                replica.retire();
            }
            let removed = match table.pools.iter().find(|pool| pool.name() == pool_name) {
                Some(pool) => pool.remove_replica(id),
                // Without the pool there is nothing of it here.
                None => Ok(()),
            };
            let mut state = table.lock();
            match removed {
                Ok(()) => {
                    tracing::info!(volume = %id, "replica removed");
                    state.replicas.remove(&id);
                    table.services.agent.replica_removed(id);
                }
                Err(error) => {
                    // Tried again with the next change of the volume, or at the next start.
                    tracing::error!(volume = %id, %error, "the replica cannot be removed");
                    state.removing.remove(&id);
                }
            }
        };
        let [a, b, c, d, e, f, g, h, ..] = id.0;
        self.services.io.submit(u64::from_ne_bytes([a, b, c, d, e, f, g, h]), Box::new(job));
    }

    /// Replicas that the cluster does not know here are kept: only a person can say what they are worth.
    fn report_strays(&self, view: &Arc<ClusterView>) {
        let (pools, view) = (Arc::clone(&self.pools), Arc::clone(view));
        let job = move || {
            for pool in pools.iter() {
                match pool.replicas() {
                    Ok(found) => {
                        for id in found {
                            if view.volumes.get(&id).is_none_or(|v| v.replica_of(view.me).is_none()) {
                                tracing::warn!(pool = pool.name(), volume = %id, "stray replica: kept, not used");
                            }
                        }
                    }
                    Err(error) => tracing::warn!(pool = pool.name(), %error, "the pool cannot be listed"),
                }
            }
        };
        self.services.io.submit(0, Box::new(job));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lu_config(volume: &VolumeView) -> LuConfig {
    LuConfig {
        properties: LuProperties {
            identity: LuIdentity { volume_uuid: volume.id.0, revision: REVISION },
            geometry: volume.geometry,
            physical_block_exponent: volume.physical_block_exponent,
        },
        mode: ModeParameters {
            write_cache: volume.write_cache,
            software_write_protect: false,
            descriptor_sense: false,
        },
        read_only: !volume.config.takes_writes(),
    }
}

/// The groups as every path reports them: one for each node, the owner's optimized.
fn topology(view: &ClusterView, volume: &VolumeView) -> Topology {
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
    Topology { target_name: view.target_iqn.to_string(), groups: groups.into_values().collect() }
}
