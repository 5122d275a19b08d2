//! What a leader remembers from tick to tick, so that its plans are patient: since when a node is away, how often a replica has come and
//! gone, what was proposed lately. Pure: time comes in.
//!
//! Invariant: all of it may be lost at any moment (a new leader begins empty); then plans wait longer, and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_replica::ids::{NodeNumber, VolumeId};

use super::{Millis, table::LeaseTable};
use crate::state::StateMachine;

/// A replica that was taken out comes back after this at the earliest, in milliseconds; twice as long each time.
const RETURN_MS_MIN: u64 = 1_000;
/// And after this at the latest, in milliseconds.
const RETURN_MS_MAX: u64 = 60_000;
/// A replica that has stayed for so long, in milliseconds, has a clean record again.
const STAYED_MS: u64 = 300_000;
/// An owner that has not handed over after so long, in milliseconds, is not waited for.
pub(super) const HAND_OVER_MS_MAX: u64 = 30_000;
/// A replica that could not be placed is tried again after this, in milliseconds.
const PLACE_AGAIN_MS: u64 = 5_000;

/// The progress of a job is put on record so often, in milliseconds.
const REPORT_MS: u64 = 2_000;

/// How a replica came and went.
#[derive(Clone, Copy, Debug)]
struct Absence {
    is_absent: bool,
    since: Millis,
    times: u32,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    away: BTreeMap<u32, Millis>,
    absences: BTreeMap<(VolumeId, NodeNumber), Absence>,
    hand_overs: BTreeMap<VolumeId, (NodeNumber, Millis)>,
    placed: BTreeMap<VolumeId, Millis>,
    reported: BTreeMap<u64, Millis>,
    /// Volumes that were not handed over when they should have been, while ownership is being spread.
    pub(super) stuck: BTreeSet<VolumeId>,
}

impl Memory {
    /// Looks at what there is now. Once for each tick, before the plans.
    pub fn observe(&mut self, state: &StateMachine, table: &LeaseTable, now: Millis) {
        self.away.retain(|number, _| state.node(*number).is_some());
        for node in state.nodes() {
            if table.is_leased(node.number, node.incarnation, now) {
                self.away.remove(&node.number);
            } else {
                self.away.entry(node.number).or_insert(now);
            }
        }
        for absence in self.absences.values_mut().filter(|a| !a.is_absent) {
            absence.times = if now.since(absence.since) > STAYED_MS { 0 } else { absence.times };
        }
        self.absences.retain(|(volume, node), absence| {
            absence.times > 0 && state.volume(*volume).is_some_and(|v| v.kept().any(|m| m.node == *node))
        });
        for volume in state.unsettled() {
            for member in &volume.absent {
                let absence = self.absences.entry((volume.id, member.node)).or_insert(Absence {
                    is_absent: false,
                    since: now,
                    times: 0,
                });
                if !absence.is_absent {
                    *absence =
                        Absence { is_absent: true, since: now, times: absence.times.saturating_add(1) };
                }
            }
            if let Some(to) = volume.hand_over_to {
                let entry = self.hand_overs.entry(volume.id).or_insert((to, now));
                if entry.0 != to {
                    *entry = (to, now);
                }
            }
        }
        for ((volume, node), absence) in &mut self.absences {
            let absent = state.volume(*volume).is_some_and(|v| v.absent.iter().any(|m| m.node == *node));
            if absence.is_absent && !absent {
                *absence = Absence { is_absent: false, since: now, ..*absence };
            }
        }
        self.hand_overs.retain(|volume, _| state.volume(*volume).is_some_and(|v| v.hand_over_to.is_some()));
        self.placed.retain(|_, at| now.since(*at) < PLACE_AGAIN_MS);
        self.reported.retain(|_, at| now.since(*at) < REPORT_MS);
        if !state.cluster().is_some_and(|cluster| cluster.rebalancing) {
            self.stuck.clear();
        }
    }

    /// The absent replica has been away long enough to be tried again.
    pub(super) fn may_return(&self, volume: VolumeId, node: NodeNumber, now: Millis) -> bool {
        let Some(absence) = self.absences.get(&(volume, node)) else { return false };
        let doubled = RETURN_MS_MIN << absence.times.saturating_sub(1).min(16);
        now.since(absence.since) >= doubled.min(RETURN_MS_MAX)
    }

    /// It is proposed that the replica comes back. If it is absent still when next looked at, it has gone again.
    pub(super) fn returns(&mut self, volume: VolumeId, node: NodeNumber, now: Millis) {
        if let Some(absence) = self.absences.get_mut(&(volume, node)) {
            *absence = Absence { is_absent: false, since: now, ..*absence };
        }
    }

    /// For how long the replica has been absent, in milliseconds.
    pub(super) fn absent_ms(&self, volume: VolumeId, node: NodeNumber, now: Millis) -> u64 {
        let absence = self.absences.get(&(volume, node)).filter(|a| a.is_absent);
        absence.map_or(0, |absence| now.since(absence.since))
    }

    /// For how long the node has held no lease, in milliseconds.
    pub(super) fn away_ms(&self, node: u32, now: Millis) -> u64 {
        self.away.get(&node).map_or(0, |since| now.since(*since))
    }

    /// The owner was asked to hand over long ago.
    pub(super) fn is_stuck(&self, volume: VolumeId, now: Millis) -> bool {
        self.hand_overs.get(&volume).is_some_and(|(_, since)| now.since(*since) >= HAND_OVER_MS_MAX)
    }

    /// True, once for some time: the progress of this job may be put on record.
    pub(super) fn may_report(&mut self, job: u64, now: Millis) -> bool {
        if self.reported.contains_key(&job) {
            return false;
        }
        self.reported.insert(job, now);
        true
    }

    /// True, once for some time: a place for a replica of this volume may be looked for.
    pub(super) fn may_place(&mut self, volume: VolumeId, now: Millis) -> bool {
        if self.placed.contains_key(&volume) {
            return false;
        }
        self.placed.insert(volume, now);
        true
    }
}
