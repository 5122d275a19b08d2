//! The replicas of this node, following the view: opened or made, grown, given to the replication core or to the volume
//! directly, closed, removed.
//!
//! A volume whose only copy is here, and of which no other copy is remembered, is served **alone**: straight from its replica, without
//! activity log and bitmaps. Those serve other copies, and would cost a flush for each fresh extent. As soon as the record names
//! another copy the volume is paused, its replica flushed, and the replication core takes over; it gives the replica back only
//! where an ownership begins.
//!
//! Invariants: views are followed in log order, without waiting for a disk; a unit serves only under the epoch and with the
//! configuration of the newest view, prepared completely; a replica has one [`Replica`] object at a time. An empty
//! replica is made only for a learner, or for a volume that was never served before: a missing one is never replaced by
//! zeroes. Replicas are removed only where the record says so.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use holdfast_proto::node::{ReplicaPhase, ReplicaState};
use holdfast_replica::activity_log::ActivityLog;
use holdfast_replica::config::{Owner, VolumeConfig};
use holdfast_replica::epoch::Epoch;
use holdfast_replica::secondary::Opened;
use holdfast_replica::span::Shape;
use holdfast_scsi::device_server::LuConfig;

use super::engine::{Engine, Surroundings, without_inline_io};
use super::making::Makings;
use super::pulse::Pulse;
use super::scrub::{Records, Scrub, ScrubPace};
use super::{Links, Volume};
use crate::clock;
use crate::store::StoreError;
use crate::store::io_threads::Lane;
use crate::store::pool::Pool;
use crate::store::replica::{Replica, ReplicaError, ReplicaShape};
use crate::view::{BootId, ClusterView, NodeNumber, VolumeId, VolumeView, parse};

/// A replica that cannot be used is looked at again after this time, and after twice as long each time it still cannot, in milliseconds.
const LOOK_AGAIN_MS: u64 = 2_000;
const LOOK_AGAIN_MS_MAX: u64 = 60_000;
/// A volume at a later epoch has been served before, so its replicas have to be there.
const NEW_UNTIL: Epoch = Epoch { generation: 0, number: 2 };

/// The unit of an owned volume, as hosting sees it.
pub(crate) trait Unit: Send + Sync {
    /// What it does I/O on.
    fn volume(&self) -> &Volume;
    /// The volume is ready for the configuration that the unit was shown: it may take effect.
    fn ready(&self);
    /// Compared to tell whether anything has changed.
    fn config(&self) -> LuConfig;
}

/// What this node is to a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Owner,
    InSync,
    Learner,
    /// Its replica, if there is one, is kept and not used.
    Nothing,
}

#[derive(Clone)]
pub(super) struct Wanted {
    pub(super) role: Role,
    pub(super) config: VolumeConfig,
    /// No other copy is remembered.
    alone: bool,
    hand_over_to: Option<NodeNumber>,
    pub(super) shape: ReplicaShape,
    pub(super) me: Owner,
    boot: BootId,
    pub(super) pool: String,
    /// It began as a copy of another one: an empty replica is none of it.
    is_copy: bool,
    /// The last restore of the volume that was done.
    pub(super) restored: Option<VolumeId>,
    pub(super) unit: Option<Arc<dyn Unit>>,
}

impl PartialEq for Wanted {
    fn eq(&self, other: &Wanted) -> bool {
        let lu = |wanted: &Wanted| wanted.unit.as_ref().map(|unit| unit.config());
        self.is_like(other)
            && (&self.config, self.role, self.hand_over_to, self.alone)
                == (&other.config, other.role, other.hand_over_to, other.alone)
            && lu(self) == lu(other)
    }
}

impl Wanted {
    /// Wants the same of the disk.
    fn is_like(&self, other: &Wanted) -> bool {
        (self.shape, &self.pool, self.me, self.boot, self.restored)
            == (other.shape, &other.pool, other.me, other.boot, other.restored)
    }

    fn is_new_volume(&self) -> bool {
        self.config.epoch() <= NEW_UNTIL && !self.is_copy
    }
}

/// What there is of a volume here. Locked while it is being opened, made or removed.
#[derive(Default)]
pub(super) struct Hosted {
    pub(super) replica: Option<Arc<Replica>>,
    pub(super) engine: Option<Arc<Engine>>,
}

pub(super) type Slot = Arc<Mutex<Hosted>>;

#[derive(Default)]
pub(super) struct State {
    pub(super) wanted: HashMap<VolumeId, Wanted>,
    pub(super) slots: HashMap<VolumeId, Slot>,
    removing: HashSet<VolumeId>,
    /// Replicas that cannot be used.
    failed: HashMap<VolumeId, LookAgain>,
}

/// When a replica that cannot be used is looked at again.
#[derive(Clone, Copy)]
struct LookAgain {
    /// None: it is in use again, and has not proved itself yet.
    at_ms: Option<u64>,
    wait_ms: u64,
}

impl LookAgain {
    fn after(before: Option<LookAgain>) -> LookAgain {
        let wait_ms = before.map_or(LOOK_AGAIN_MS, |before| before.wait_ms.saturating_mul(2));
        let wait_ms = wait_ms.min(LOOK_AGAIN_MS_MAX);
        LookAgain { at_ms: Some(clock::now_ms().saturating_add(wait_ms)), wait_ms }
    }
}

/// Why a replica could not be prepared.
#[derive(Debug, thiserror::Error)]
pub(super) enum PrepareError {
    #[error("this node has no pool {0:?}")]
    NoPool(String),
    #[error("its replica is missing from pool {0:?}; it has been served before, so no empty one is made")]
    Missing(String),
    #[error("its replica has failed")]
    Broken,
    #[error("the record's size is out of range")]
    Shape,
    #[error(transparent)]
    Replica(#[from] ReplicaError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Hosting {
    pub(super) around: Surroundings,
    pub(super) pools: Arc<Vec<Pool>>,
    state: Arc<Mutex<State>>,
    pulse: Arc<Pulse>,
    scrub: Arc<Scrub>,
    pub(super) scrubs: Records,
    pub(super) making: Arc<Mutex<Makings>>,
}

impl fmt::Debug for Hosting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hosting")
    }
}

impl Hosting {
    /// Of the replicas in these pools, which are scrubbed so fast and so often.
    pub(crate) fn new(around: Surroundings, pools: Vec<Pool>, pace: ScrubPace) -> Hosting {
        let hosting = Hosting {
            around,
            pools: Arc::new(pools),
            state: Arc::default(),
            pulse: Arc::new(Pulse::none()),
            scrub: Arc::new(Scrub::none()),
            scrubs: Records::new(pace.bytes_per_second_max == 0),
            making: Arc::default(),
        };
        let again = hosting.clone();
        let pulse = Arc::new(Pulse::start(&hosting.around, move || again.look_again()));
        let hosting = Hosting { pulse, ..hosting };
        Hosting { scrub: Arc::new(Scrub::start(hosting.clone(), pace)), ..hosting }
    }

    /// Ends all of it. The I/O threads still run.
    pub(crate) fn stop(&self) {
        self.pulse.stop();
        self.scrub.stop();
        self.links().clear();
        let slots: Vec<Slot> = self.lock().slots.drain().map(|(_, slot)| slot).collect();
        for slot in slots {
            let hosted = std::mem::take(&mut *slot.lock().unwrap_or_else(PoisonError::into_inner));
            if let Some(engine) = hosted.engine {
                engine.close();
            }
            if let Some(replica) = hosted.replica {
                replica.retire();
            }
        }
    }

    /// The volumes that there is something of here.
    pub(super) fn hosted(&self) -> Vec<VolumeId> {
        self.lock().slots.keys().copied().collect()
    }

    /// What there is of a volume.
    pub(super) fn slot(&self, id: VolumeId) -> Option<Slot> {
        self.lock().slots.get(&id).cloned()
    }

    /// Follows the record of a volume. `unit`: where this node owns it. `gap`: what came between the record before and this one is
    /// not known.
    pub(crate) fn follow(
        &self,
        view: &ClusterView,
        volume: &VolumeView,
        unit: Option<Arc<dyn Unit>>,
        gap: bool,
    ) {
        let mut state = self.lock();
        let id = volume.id;
        self.end_making(&state, view, volume);
        if let Some(engine) = self.links().engine(id) {
            // At once, so that a later ownership is never taken for the same one.
            without_inline_io(|| match view.owns(volume) {
                true if gap => engine.resume_at(volume.config.epoch()),
                true => {}
                false => engine.disown(),
            });
        }
        let removed = volume.removing.iter().find(|member| member.node == view.me);
        if let Some(member) = removed.or_else(|| volume.any_replica_of(view.me).filter(|_| volume.deleting)) {
            return self.remove(&mut state, id, member.pool.clone());
        }
        if volume.deleting || self.follow_making(&mut state, view, volume) {
            return;
        }
        self.follow_restoring(&mut state, view, volume);
        let (wanted, stands) = match self.wanted(view, volume, unit) {
            Some(wanted) => (wanted, state.wanted.get(&id)),
            None => return,
        };
        if stands == Some(&wanted) || (stands.is_none() && wanted.role == Role::Nothing) {
            return;
        }
        let quick = stands.is_some_and(|stands| stands.is_like(&wanted)) && wanted.role != Role::Nothing;
        let same_owner =
            stands.is_some_and(|stands| stands.role == Role::Owner && wanted.role == Role::Owner);
        if matches!(wanted.role, Role::Owner | Role::InSync) {
            state.failed.remove(&id);
        }
        state.wanted.insert(id, wanted.clone());
        if quick
            && !self.has_staged(id)
            && let Some(engine) = self.links().engine(id).filter(|engine| !engine.is_broken())
            && !(wanted.role == Role::Owner && wanted.alone && !engine.is_owned())
        {
            return without_inline_io(|| self.direct(&engine, &wanted));
        }
        if let Some(unit) = &wanted.unit {
            // What is under way may still be answered where the replica and its owner stay.
            if same_owner { unit.volume().pause() } else { unit.volume().stop() }
        }
        let hosting = self.clone();
        let slot = Arc::clone(state.slots.entry(id).or_default());
        self.around.io.submit(lane(id), Box::new(move || hosting.prepare(id, &slot, &wanted)));
    }

    /// The volume is gone from the view.
    pub(crate) fn forget(&self, id: VolumeId) {
        let mut state = self.lock();
        self.thaw(&state, id);
        self.forget_making(id);
        state.failed.remove(&id);
        state.wanted.remove(&id);
        let Some(slot) = state.slots.remove(&id) else { return };
        let hosting = self.clone();
        let job = move || hosting.close(id, &mut slot.lock().unwrap_or_else(PoisonError::into_inner));
        self.around.io.submit(lane(id), Box::new(job));
    }

    fn wanted(&self, view: &ClusterView, volume: &VolumeView, unit: Option<Arc<dyn Unit>>) -> Option<Wanted> {
        let config = &volume.config;
        let is = |members: &[crate::view::Member]| members.iter().any(|member| member.node == view.me);
        let role = match () {
            () if view.owns(volume) => Role::Owner,
            () if is(config.in_sync()) => Role::InSync,
            () if is(config.learners()) => Role::Learner,
            () => Role::Nothing,
        };
        let others = config.in_sync().len() > 1 || !config.learners().is_empty();
        let remembered = volume.absent.iter().chain(&volume.removing).any(|member| member.node != view.me);
        Some(Wanted {
            role,
            config: config.clone(),
            alone: !others && !remembered,
            hand_over_to: volume.hand_over_to,
            shape: ReplicaShape {
                block_size: volume.geometry.block_size(),
                blocks: volume.geometry.blocks(),
                thin: volume.thin,
                checksums: volume.checksums,
            },
            me: Owner { node: view.me, incarnation: view.my_incarnation },
            boot: view.my_node()?.boot,
            is_copy: volume.is_copy,
            restored: volume.restored,
            pool: volume.any_replica_of(view.me).map(|member| member.pool.clone()).unwrap_or_default(),
            unit: unit.filter(|_| role == Role::Owner),
        })
    }

    /// Where the replication core runs already, it only has to be told.
    fn direct(&self, engine: &Arc<Engine>, wanted: &Wanted) {
        if wanted.role != Role::Owner {
            return engine.disown();
        }
        engine.own(wanted.me, &wanted.config, wanted.is_new_volume());
        engine.wish_hand_over(wanted.hand_over_to);
        if let Some(unit) = &wanted.unit {
            unit.ready();
            unit.volume().drive(wanted.config.epoch(), Arc::clone(engine));
        }
        self.links().retry();
    }

    /// On an I/O thread: makes the replica ready for its role.
    fn prepare(&self, id: VolumeId, slot: &Slot, wanted: &Wanted) {
        let mut hosted = slot.lock().unwrap_or_else(PoisonError::into_inner);
        // A newer wish has its own job behind this one.
        let is_newest = || self.lock().wanted.get(&id) == Some(wanted);
        if !is_newest() {
            return;
        }
        let prepared = self.prepare_replica(id, &mut hosted, wanted);
        let epoch = wanted.config.epoch();
        if let Err(error) = &prepared {
            tracing::error!(volume = %id, %epoch, %error, "the replica cannot be used");
        }
        if prepared.is_err() && matches!(wanted.role, Role::Learner | Role::Nothing) {
            // The next look begins with what is on the disk then. What it lacks is in its log, and it gets that before it counts.
            self.close(id, &mut hosted);
        }
        let mut state = self.lock();
        let before = state.failed.get(&id).copied();
        if prepared.is_err() {
            state.failed.insert(id, LookAgain::after(before));
        } else if let Some(again) = state.failed.get_mut(&id) {
            again.at_ms = None;
        }
        drop(state);
        match prepared.as_ref().err() {
            Some(error) => self.report(id, wanted, error.to_string()),
            None if before.is_some_and(|again| again.at_ms.is_some()) => {
                self.report(id, wanted, String::new());
            }
            None => {}
        }
        if !is_newest() {
            return;
        }
        match (prepared, &wanted.unit, &hosted.engine, &hosted.replica) {
            (Ok(()), _, Some(engine), _) => self.direct(&Arc::clone(engine), wanted),
            (Ok(()), Some(unit), None, Some(replica)) => {
                tracing::info!(volume = %id, %epoch, "serving alone");
                unit.ready();
                unit.volume().open(epoch, Arc::clone(replica));
                self.links().retry();
            }
            (Err(_), Some(unit), ..) => {
                unit.volume().break_down(epoch);
                self.links().retry();
            }
            _ => {}
        }
    }

    fn prepare_replica(
        &self,
        id: VolumeId,
        hosted: &mut Hosted,
        wanted: &Wanted,
    ) -> Result<(), PrepareError> {
        if !self.settle_restore(id, hosted, wanted)? {
            return Ok(());
        }
        if wanted.role == Role::Nothing {
            self.close(id, hosted);
            let failed = self.lock().failed.get(&id).is_some_and(|again| again.at_ms.is_some());
            let pool = self.pools.iter().find(|pool| pool.name() == wanted.pool);
            if let Some(pool) = pool.filter(|pool| failed && pool.has_replica(id)) {
                // Only to see whether it can be used again: the controller then lets it catch up.
                pool.open_replica(id, wanted.me.node, &wanted.shape)?;
            }
            return Ok(());
        }
        if hosted.engine.as_ref().is_some_and(|engine| engine.is_broken()) {
            self.close(id, hosted);
            if wanted.role != Role::Learner {
                return Err(PrepareError::Broken);
            }
        }
        let replica = match &hosted.replica {
            Some(replica) => Arc::clone(replica),
            None => {
                let replica = Arc::new(self.open_or_make(id, wanted)?);
                hosted.replica = Some(Arc::clone(&replica));
                replica
            }
        };
        replica.grow(wanted.shape.blocks)?;
        let shape = Shape::new(wanted.shape.blocks, wanted.shape.block_size).ok_or(PrepareError::Shape)?;
        let owned = hosted.engine.as_ref().is_some_and(|engine| engine.is_owned());
        if wanted.role == Role::Owner && wanted.alone && !owned {
            self.close_engine(id, hosted);
            replica.promise(wanted.config.epoch())?;
            replica.begin_alone()?;
            return Ok(());
        }
        if let Some(engine) = &hosted.engine {
            engine.grow(shape);
            return Ok(());
        }
        replica.suspend();
        // What was served alone is in no log.
        replica.store().flush()?;
        let (log, bitmaps) = replica.bookkeeping(shape)?;
        let log = log.unwrap_or_else(|error| {
            tracing::error!(volume = %id, %error, "nothing in the replica can be trusted: all of it has to be copied");
            ActivityLog::untrusted()
        });
        let opened = Opened {
            volume: id,
            shape,
            me: wanted.me.node,
            boot: wanted.boot,
            crc32c: crc32c::crc32c_append,
            promised: replica.promised(),
            log,
            bitmaps,
            faults: holdfast_replica::faults::Faults::NONE,
        };
        let engine = Engine::new(self.around.clone(), replica, opened);
        hosted.engine = Some(Arc::clone(&engine));
        self.links().open(&engine);
        Ok(())
    }

    fn open_or_make(&self, id: VolumeId, wanted: &Wanted) -> Result<Replica, PrepareError> {
        let pool = self.pools.iter().find(|pool| pool.name() == wanted.pool);
        let pool = pool.ok_or_else(|| PrepareError::NoPool(wanted.pool.clone()))?;
        let (node, shape) = (wanted.me.node, &wanted.shape);
        let log = match wanted.role {
            _ if pool.has_replica(id) => return Ok(pool.open_replica(id, node, shape)?),
            Role::Learner => ActivityLog::untrusted(),
            _ if pool.may_begin_empty(id, wanted.is_new_volume()) => {
                ActivityLog::new(wanted.config.in_sync().iter().map(|member| member.node).collect())
            }
            _ => return Err(PrepareError::Missing(wanted.pool.clone())),
        };
        Ok(pool.create_replica(id, node, shape, log)?)
    }

    fn close_engine(&self, id: VolumeId, hosted: &mut Hosted) {
        if let Some(engine) = hosted.engine.take() {
            self.links().close(id);
            engine.close();
        }
    }

    pub(super) fn close(&self, id: VolumeId, hosted: &mut Hosted) {
        self.close_engine(id, hosted);
        if let Some(replica) = hosted.replica.take() {
            replica.retire();
        }
    }

    /// Tells the controller that the replica cannot be used, for this reason; an empty one: that it can be tried again.
    fn report(&self, id: VolumeId, wanted: &Wanted, failed: String) {
        let phase = if failed.is_empty() { ReplicaPhase::Connecting } else { ReplicaPhase::Failed };
        self.around.agent.report_replicas(vec![ReplicaState {
            volume_id: id.0.to_vec(),
            node: u32::from(wanted.me.node.get()),
            epoch: Some(parse::epoch_record(wanted.config.epoch())),
            phase: phase.into(),
            failed,
            ..ReplicaState::default()
        }]);
    }

    /// Looks at replicas again that could not be used: a disk may be mended or have room again. One that serves in the in-sync set is
    /// not touched; its owner decides.
    fn look_again(&self) {
        let now_ms = clock::now_ms();
        self.merge_layers(now_ms);
        let mut state = self.lock();
        self.thaw_overdue(&state);
        let state = &mut *state;
        for (id, wanted) in &state.wanted {
            if !matches!(wanted.role, Role::Learner | Role::Nothing) {
                continue;
            }
            let before = state.failed.get(id).copied();
            let noted = before.is_some_and(|again| again.at_ms.is_some());
            if !noted && self.links().engine(*id).is_some_and(|engine| engine.is_broken()) {
                state.failed.insert(*id, LookAgain::after(before));
            }
            let due = |again: &&mut LookAgain| again.at_ms.is_some_and(|at_ms| at_ms <= now_ms);
            let Some(again) = state.failed.get_mut(id).filter(due) else { continue };
            // Moved on at once, so that it is looked at once however long that takes.
            again.at_ms = Some(now_ms.saturating_add(LOOK_AGAIN_MS_MAX));
            let (hosting, id, wanted) = (self.clone(), *id, wanted.clone());
            let slot = Arc::clone(state.slots.entry(id).or_default());
            self.around.io.submit(lane(id), Box::new(move || hosting.prepare(id, &slot, &wanted)));
        }
    }

    fn remove(&self, state: &mut State, id: VolumeId, pool_name: String) {
        if !state.removing.insert(id) {
            return;
        }
        state.wanted.remove(&id);
        let hosting = self.clone();
        let slot = Arc::clone(state.slots.entry(id).or_default());
        let job = move || {
            let mut hosted = slot.lock().unwrap_or_else(PoisonError::into_inner);
            hosting.close(id, &mut hosted);
            let removed = match hosting.pools.iter().find(|pool| pool.name() == pool_name) {
                Some(pool) => pool.remove_replica(id),
                // Without the pool there is nothing of it here.
                None => Ok(()),
            };
            let mut state = hosting.lock();
            // Tried again with the next change of the volume, or at the next start.
            state.removing.remove(&id);
            match removed {
                Ok(()) => {
                    tracing::info!(volume = %id, "replica removed");
                    hosting.around.agent.replica_removed(id);
                }
                Err(error) => tracing::error!(volume = %id, %error, "the replica cannot be removed"),
            }
        };
        self.around.io.submit(lane(id), Box::new(job));
    }

    /// Replicas that the cluster does not know here are kept: only a person can say what they are worth.
    pub(crate) fn report_strays(&self, view: &Arc<ClusterView>) {
        let (pools, view) = (Arc::clone(&self.pools), Arc::clone(view));
        let job = move || {
            for pool in pools.iter() {
                match pool.replicas() {
                    Ok(found) => {
                        for id in found {
                            if view.volumes.get(&id).is_none_or(|v| v.any_replica_of(view.me).is_none()) {
                                tracing::warn!(pool = pool.name(), volume = %id, "stray replica: kept, not used");
                            }
                        }
                    }
                    Err(error) => tracing::warn!(pool = pool.name(), %error, "the pool cannot be listed"),
                }
            }
        };
        self.around.io.submit(0, Box::new(job));
    }

    pub(super) fn links(&self) -> &Links {
        &self.around.shared.links
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The lane of a volume's I/O.
pub(super) fn lane(id: VolumeId) -> Lane {
    let [a, b, c, d, e, f, g, h, ..] = id.0;
    Lane::from_ne_bytes([a, b, c, d, e, f, g, h])
}
