//! A volume that is put back to what a snapshot has, as a node takes part in it: the owner holds commands back, every node in sync makes the
//! other content beside its replica, and puts it in place once the record says that the restore is done.
//!
//! ```text
//!   staged in epoch e        record still in epoch e: not decided, the replica takes no other epoch (a node that is not the owner closes it)
//!                            later epoch, the record names this restore as done: it takes the replica's place
//!                            later epoch, it does not: it is removed
//! ```
//!
//! Invariants: the end of a restore, done or given up, is an entry that changes the epoch, so a record of a later epoch always says which of both it
//! is, for good; between staging and that record no replica serves or promises a later epoch, so no write of a later epoch ever goes to
//! the content that is left; what is staged has promised the epoch in which it was made.

use std::sync::{Arc, PoisonError};

use holdfast_proto::state::{MakingPhase, MakingStep};
use holdfast_replica::activity_log::ActivityLog;

use super::hosting::{Hosted, Hosting, PrepareError, Role, State, Wanted, lane};
use crate::store::pool::Staged;
use crate::view::{ClusterView, RestoringView, VolumeId, VolumeView};

impl Hosting {
    /// Takes part in restoring a volume.
    pub(super) fn follow_restoring(&self, state: &mut State, view: &ClusterView, volume: &VolumeView) {
        let Some(restoring) = &volume.restoring else { return };
        let making = &restoring.making;
        if volume.config.epoch() != making.source_epoch {
            return;
        }
        match making.phase {
            MakingPhase::Freeze if view.owns(volume) => self.freeze(restoring.id, making),
            MakingPhase::Take => self.stage(state, view, volume, restoring),
            _ => {}
        }
    }

    /// True where the replica of a volume is to be settled before anything else.
    pub(super) fn has_staged(&self, id: VolumeId) -> bool {
        self.makings().staged.contains(&id)
    }

    fn stage(&self, state: &mut State, view: &ClusterView, volume: &VolumeView, restoring: &RestoringView) {
        let me = view.me;
        let is_member = volume.config.in_sync().iter().any(|member| member.node == me);
        if !is_member || restoring.making.taken.contains(&me) || !self.makings().staging.insert(restoring.id)
        {
            return;
        }
        let own = Arc::clone(state.slots.entry(volume.id).or_default());
        let snapshot = state.slots.get(&restoring.snapshot).cloned();
        let (id, restoring, owns) = (volume.id, restoring.clone(), view.owns(volume));
        let hosting = self.clone();
        let job = move || {
            let mut hosted = own.lock().unwrap_or_else(PoisonError::into_inner);
            let made = hosting.stage_now(id, &restoring, snapshot.as_ref(), &mut hosted, owns);
            drop(hosted);
            hosting.makings().staging.remove(&restoring.id);
            let (step, message) = match made {
                Ok(()) => {
                    tracing::info!(volume = %id, snapshot = %restoring.snapshot, "ready to be put back to the snapshot");
                    (MakingStep::Taken, String::new())
                }
                Err(why) => {
                    tracing::error!(volume = %id, snapshot = %restoring.snapshot, why, "cannot be put back to the snapshot");
                    (MakingStep::Failed, why)
                }
            };
            hosting.around.agent.report_making(restoring.id, step, message);
        };
        self.around.io.submit(lane(volume.id), Box::new(job));
    }

    /// On an I/O thread, with the replica's slot.
    fn stage_now(
        &self,
        id: VolumeId,
        restoring: &RestoringView,
        snapshot: Option<&super::hosting::Slot>,
        hosted: &mut Hosted,
        owns: bool,
    ) -> Result<(), String> {
        // Before it is looked whether the epoch is still that one: whoever follows a later one sees this, or is seen here.
        self.makings().staged.insert(id);
        let wanted = self.lock().wanted.get(&id).cloned();
        let wanted = wanted.filter(|wanted| {
            matches!(wanted.role, Role::Owner | Role::InSync)
                && wanted.config.epoch() == restoring.making.source_epoch
        });
        let wanted = wanted.ok_or("its replica is not in use")?;
        let snapshot = snapshot.ok_or("it has no replica of the snapshot")?;
        let snapshot = snapshot.lock().unwrap_or_else(PoisonError::into_inner);
        let good = self.lock().wanted.get(&restoring.snapshot).cloned();
        let good = good.filter(|w| matches!(w.role, Role::Owner | Role::InSync) && w.pool == wanted.pool);
        let source = snapshot.replica.as_ref().filter(|_| good.is_some());
        let source = source.ok_or("its replica of the snapshot is not in use")?;
        let pool = self.pools.iter().find(|pool| pool.name() == wanted.pool);
        let pool = pool.ok_or_else(|| format!("it has no pool {:?}", wanted.pool))?;
        let log = ActivityLog::new(wanted.config.in_sync().iter().map(|member| member.node).collect());
        let staged = Staged { id: restoring.id, epoch: restoring.making.source_epoch };
        let made = pool.stage(source, id, wanted.me.node, &wanted.shape, log, &staged);
        made.map_err(|error| error.to_string())?;
        if !owns {
            // A promise that is asked for waits until it is known which content it is for.
            self.close(id, hosted);
        }
        Ok(())
    }

    /// Decides what becomes of another content that lies beside a replica. False while that is not known: the replica is not to be opened.
    pub(super) fn settle_restore(
        &self,
        id: VolumeId,
        hosted: &mut Hosted,
        wanted: &Wanted,
    ) -> Result<bool, PrepareError> {
        let Some(pool) = self.pools.iter().find(|pool| pool.name() == wanted.pool) else { return Ok(true) };
        let Some(staged) = pool.staged(id)? else {
            self.makings().staged.remove(&id);
            return Ok(true);
        };
        if wanted.config.epoch() <= staged.epoch {
            self.makings().staged.insert(id);
            return Ok(wanted.role == Role::Owner && hosted.replica.is_some());
        }
        let is_done = wanted.restored == Some(staged.id);
        if is_done {
            self.close(id, hosted);
        }
        pool.settle(id, is_done)?;
        self.makings().staged.remove(&id);
        tracing::info!(volume = %id, restore = %staged.id, is_done, "what was made beside the replica is settled");
        Ok(true)
    }
}
