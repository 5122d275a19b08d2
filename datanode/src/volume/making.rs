//! Snapshots and clones while they are made, as a node takes part in it: the owner of a source holds its writes back, every node in sync
//! makes its replica, the owner confirms.
//!
//! Invariants: a freeze ends by itself after [`FREEZE_MAX`], whatever others do; an owner confirms only while the very freeze stands that it
//! reported, in the same epoch; a replica is made under the lock of its source's slot, of a source that is in sync in the epoch
//! that the record names, and of its own, so that it is not made once it is being removed. Writes that are held back are not refused: ports
//! hold and repeat them.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use holdfast_proto::state::{MakingPhase, MakingStep};
use holdfast_replica::activity_log::ActivityLog;
use holdfast_replica::epoch::Epoch;

use super::engine::Engine;
use super::hosting::{Hosting, Role, State, Unit, lane};
use crate::store::replica::ReplicaShape;
use crate::view::{ClusterView, MakingView, VolumeId, VolumeView};

/// Longest time for which writes are held back, from before the first until after the last replica is made.
const FREEZE_MAX: Duration = Duration::from_secs(5);
/// How often it is looked whether what was under way has ended.
const LOOK: Duration = Duration::from_millis(2);
/// Bytes of layers that are merged at a time, and pauses, in milliseconds: while there is more to do, and else.
const MERGE_BYTES: u64 = 32 << 20;
const MERGE_AGAIN_MS: u64 = 1_000;
const MERGE_LOOK_MS: u64 = 30_000;

/// What this node does for volumes that are being made.
#[derive(Default)]
pub(super) struct Makings {
    /// Writes held back, by the volume that is made.
    freezes: HashMap<VolumeId, Freeze>,
    /// Replicas that are being made now. Taken off when they are not wanted any more: then none is begun.
    taking: HashMap<VolumeId, Epoch>,
    /// Those that this node has confirmed.
    confirmed: HashSet<VolumeId>,
    /// Volumes beside whose replicas another content lies, or is about to.
    pub(super) staged: HashSet<VolumeId>,
    /// Contents that are being made, by restore.
    pub(super) staging: HashSet<VolumeId>,
    merge_at_ms: u64,
}

struct Freeze {
    source: VolumeId,
    epoch: Epoch,
    began: Instant,
    /// None before it is begun on the unit.
    unit: Option<Arc<dyn Unit>>,
    engine: Option<Arc<Engine>>,
    reported: bool,
}

impl Freeze {
    fn stands(&self) -> bool {
        self.reported
            && self.began.elapsed() < FREEZE_MAX
            && self.unit.as_ref().is_some_and(|unit| unit.volume().is_frozen_still(self.epoch))
    }
}

impl Hosting {
    /// Takes part in making a volume. True if it is being made: it is not served yet.
    pub(super) fn follow_making(&self, state: &mut State, view: &ClusterView, volume: &VolumeView) -> bool {
        let Some(making) = &volume.making else { return false };
        let id = volume.id;
        let source = view.volumes.get(&making.source);
        let owns = source.is_some_and(|s| view.owns(s) && s.config.epoch() == making.source_epoch);
        match making.phase {
            MakingPhase::Freeze if owns => self.freeze(id, making),
            MakingPhase::Take => self.take(state, view, volume, making),
            MakingPhase::Confirm if owns => {
                let step = {
                    let mut makings = self.makings();
                    match makings.freezes.get(&id) {
                        Some(freeze) if freeze.stands() => {
                            makings.confirmed.insert(id);
                            Some((MakingStep::Confirmed, String::new()))
                        }
                        // It stood until it was confirmed.
                        None if makings.confirmed.contains(&id) => None,
                        // Also where it has ended, and word of that was lost.
                        _ => Some((MakingStep::Failed, "writes could not be held back so long".to_owned())),
                    }
                };
                if let Some((step, message)) = step {
                    self.around.agent.report_making(id, step, message);
                }
                self.thaw(state, id);
            }
            _ => {}
        }
        true
    }

    /// A volume that is not being made any more needs no freeze.
    pub(super) fn end_making(&self, state: &State, view: &ClusterView, volume: &VolumeView) {
        if volume.deleting || volume.making.is_none() {
            self.thaw(state, volume.id);
            self.forget_making(volume.id);
        }
        // Another epoch of a source: whatever was begun in the one before is void.
        let void: Vec<VolumeId> = {
            let makings = self.makings();
            let of_source = makings.freezes.iter().filter(|(_, freeze)| freeze.source == volume.id);
            of_source
                .filter(|(_, f)| f.epoch != volume.config.epoch() || !view.owns(volume))
                .map(|(id, _)| *id)
                .collect()
        };
        let is_restored = !void.is_empty() && self.has_staged(volume.id);
        for id in void {
            let unit = self.makings().freezes.get(&id).and_then(|freeze| freeze.unit.clone());
            if let Some(unit) = unit.filter(|_| is_restored) {
                // Nothing more is read of the content that is left.
                unit.volume().stop();
            }
            self.thaw(state, id);
        }
    }

    /// No replica of it is made from now on. One that is being made is there once its slot can be locked.
    pub(super) fn forget_making(&self, id: VolumeId) {
        let mut makings = self.makings();
        makings.taking.remove(&id);
        makings.confirmed.remove(&id);
    }

    pub(super) fn freeze(&self, id: VolumeId, making: &MakingView) {
        let (source, epoch) = (making.source, making.source_epoch);
        let mut makings = self.makings();
        if makings.freezes.contains_key(&id) {
            return;
        }
        let began = Instant::now();
        let freeze = Freeze { source, epoch, began, unit: None, engine: None, reported: false };
        makings.freezes.insert(id, freeze);
        drop(makings);
        let hosting = self.clone();
        self.around.io.submit(lane(source), Box::new(move || hosting.begin_freeze(id, source, epoch, began)));
    }

    /// On an I/O thread.
    fn begin_freeze(&self, id: VolumeId, source: VolumeId, epoch: Epoch, began: Instant) {
        let wanted = self.lock().wanted.get(&source).cloned();
        let unit = wanted
            .filter(|wanted| wanted.role == Role::Owner && wanted.config.epoch() == epoch)
            .and_then(|wanted| wanted.unit);
        let engine = self.links().engine(source);
        let Some(unit) = unit else {
            return self.around.agent.report_making(
                id,
                MakingStep::Failed,
                "its source is not served here".to_owned(),
            );
        };
        {
            // Noted before it is begun, so that whoever ends it finds it.
            let mut makings = self.makings();
            let Some(freeze) = makings.freezes.get_mut(&id) else { return };
            (freeze.unit, freeze.engine) = (Some(Arc::clone(&unit)), engine.clone());
            if let Some(engine) = &engine {
                engine.freeze();
            }
        }
        unit.volume().freeze(FREEZE_MAX.saturating_sub(began.elapsed()));
        while began.elapsed() < FREEZE_MAX {
            let mut makings = self.makings();
            let Some(freeze) = makings.freezes.get_mut(&id) else {
                drop(makings);
                return self.let_go(&unit, engine.as_ref());
            };
            if unit.volume().is_frozen_still(epoch) {
                freeze.reported = true;
                drop(makings);
                tracing::info!(volume = %source, snapshot = %id, "writes are held back");
                return self.around.agent.report_making(id, MakingStep::Frozen, String::new());
            }
            drop(makings);
            thread::sleep(LOOK);
        }
        // It is overdue: the next look ends it and says so.
    }

    /// On whatever thread: lets writes go on that were held back for this volume.
    pub(super) fn thaw(&self, _: &State, id: VolumeId) {
        let freeze = self.makings().freezes.remove(&id);
        if let Some(freeze) = freeze
            && let Some(unit) = &freeze.unit
        {
            self.let_go(unit, freeze.engine.as_ref());
        }
    }

    fn let_go(&self, unit: &Arc<dyn Unit>, engine: Option<&Arc<Engine>>) {
        unit.volume().thaw();
        if let Some(engine) = engine {
            super::engine::without_inline_io(|| engine.thaw());
        }
        self.links().retry();
    }

    /// Ends freezes that have stood for too long, once a second.
    pub(super) fn thaw_overdue(&self, state: &State) {
        let overdue: Vec<VolumeId> = {
            let makings = self.makings();
            makings
                .freezes
                .iter()
                .filter(|(_, f)| f.began.elapsed() >= FREEZE_MAX)
                .map(|(id, _)| *id)
                .collect()
        };
        for id in overdue {
            tracing::warn!(snapshot = %id, "writes were held back for too long: they go on, and there is no snapshot");
            self.thaw(state, id);
            let why = format!("not every copy was made within {} s", FREEZE_MAX.as_secs());
            self.around.agent.report_making(id, MakingStep::Failed, why);
        }
    }

    fn take(&self, state: &mut State, view: &ClusterView, volume: &VolumeView, making: &MakingView) {
        let Some(member) = volume.config.in_sync().iter().find(|member| member.node == view.me) else {
            return;
        };
        let id = volume.id;
        let (source, epoch) = (making.source, making.source_epoch);
        if making.taken.contains(&view.me) || self.makings().taking.insert(id, epoch).is_some() {
            return;
        }
        let shape = ReplicaShape {
            block_size: volume.geometry.block_size(),
            blocks: volume.geometry.blocks(),
            thin: volume.thin,
            checksums: false,
        };
        let (pool, me) = (member.pool.clone(), view.me);
        let log = ActivityLog::new(volume.config.in_sync().iter().map(|member| member.node).collect());
        let slot = state.slots.get(&source).cloned();
        let own = Arc::clone(state.slots.entry(id).or_default());
        let hosting = self.clone();
        let job = move || {
            // Whoever removes it waits for this one, and nothing is made after that.
            let own = own.lock().unwrap_or_else(PoisonError::into_inner);
            if hosting.makings().taking.get(&id) != Some(&epoch) {
                return;
            }
            let made = || -> Result<(), String> {
                let slot = slot.ok_or("it has no replica of its source")?;
                let hosted = slot.lock().unwrap_or_else(PoisonError::into_inner);
                let wanted = hosting.lock().wanted.get(&source).cloned();
                let good = wanted.is_some_and(|wanted| {
                    matches!(wanted.role, Role::Owner | Role::InSync) && wanted.config.epoch() == epoch
                });
                let replica = hosted.replica.as_ref().filter(|_| good);
                let replica = replica.ok_or("its replica of the source is not in use")?;
                let found = hosting.pools.iter().find(|found| found.name() == pool);
                let found = found.ok_or_else(|| format!("it has no pool {pool:?}"))?;
                found.take_snapshot(replica, id, me, &shape, log).map_err(|error| error.to_string())
            };
            let made = made();
            drop(own);
            hosting.makings().taking.remove(&id);
            match made {
                Ok(()) => {
                    tracing::info!(volume = %source, copy = %id, "replica of a snapshot or clone made");
                    hosting.around.agent.report_making(id, MakingStep::Taken, String::new());
                }
                Err(why) => {
                    tracing::error!(volume = %source, copy = %id, why, "a snapshot or clone cannot be made");
                    hosting.around.agent.report_making(id, MakingStep::Failed, why);
                }
            }
        };
        self.around.io.submit(lane(source), Box::new(job));
    }

    /// Merges layers that only one replica lies on, in the background.
    pub(super) fn merge_layers(&self, now_ms: u64) {
        let mut makings = self.makings();
        if makings.merge_at_ms > now_ms {
            return;
        }
        // Moved on at once, so that one job runs at a time; the job says when the next is due.
        makings.merge_at_ms = u64::MAX;
        drop(makings);
        let hosting = self.clone();
        let job = move || {
            let mut more = false;
            for pool in hosting.pools.iter() {
                match pool.merge_layers(MERGE_BYTES) {
                    Ok(again) => more |= again,
                    Err(error) => tracing::warn!(pool = pool.name(), %error, "layers cannot be merged now"),
                }
            }
            let pause = if more { MERGE_AGAIN_MS } else { MERGE_LOOK_MS };
            hosting.makings().merge_at_ms = crate::clock::now_ms().saturating_add(pause);
        };
        // A lane of its own.
        self.around.io.submit(u64::MAX, Box::new(job));
    }

    pub(super) fn makings(&self) -> MutexGuard<'_, Makings> {
        self.making.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
