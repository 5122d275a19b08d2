//! What data nodes say of the replicas that they drive. In the leader's memory only: after a change of leader the nodes say it anew.
//!
//! Invariants: only volumes that exist are kept, and of each (volume, replica) the newest word of each node; what a node said ends with
//! its session. A replica counts as failed only by the word of the node that holds it.

use std::collections::BTreeMap;

use holdfast_proto::node::{ReplicaPhase, ReplicaState};
use holdfast_replica::ids::VolumeId;

use super::Millis;

/// What does not exist any more is forgotten so long after it ended, in milliseconds.
const PRUNE_MS: u64 = 1_000;

/// See the module.
#[derive(Debug, Default)]
pub struct Reports {
    /// When what does not exist any more was last looked for.
    pruned_at: Option<Millis>,
    /// By volume, number of the replica's node, and number of the node that says it.
    by_replica: BTreeMap<(VolumeId, u32, u32), ReplicaState>,
}

impl Reports {
    /// A session of the node begins: nothing that it said before holds any more.
    pub fn begin(&mut self, reporter: u32) {
        self.by_replica.retain(|(_, _, by), _| *by != reporter);
    }

    /// The node says this. Replicas of volumes that `exists` does not know are left out.
    pub fn note(
        &mut self,
        reporter: u32,
        replicas: Vec<ReplicaState>,
        exists: impl Fn(VolumeId, u32) -> bool,
    ) {
        for replica in replicas {
            let Some(volume) = VolumeId::from_slice(&replica.volume_id) else { continue };
            if exists(volume, replica.node) {
                let failed = replica.failed.chars().filter(|c| !c.is_control()).take(200).collect();
                self.by_replica.insert((volume, replica.node, reporter), ReplicaState { failed, ..replica });
            }
        }
    }

    /// Forgets what `exists` does not know any more; looks through all of it once in [`PRUNE_MS`].
    pub fn prune(&mut self, now: Millis, exists: impl Fn(VolumeId, u32) -> bool) {
        if self.pruned_at.is_some_and(|at| now.since(at) < PRUNE_MS) {
            return;
        }
        self.pruned_at = Some(now);
        self.by_replica.retain(|(volume, node, _), _| exists(*volume, *node));
    }

    /// Why the node cannot use its own replica; `None` if it has not said so.
    pub fn failed(&self, volume: VolumeId, node: u32) -> Option<&str> {
        let own = self.by_replica.get(&(volume, node, node))?;
        (own.phase() == ReplicaPhase::Failed).then_some(own.failed.as_str())
    }

    /// How the replica is: by the word of its own node if it has failed, else by that of the owner.
    pub fn of(&self, volume: VolumeId, node: u32, owner: u32) -> Option<&ReplicaState> {
        let own =
            self.by_replica.get(&(volume, node, node)).filter(|own| own.phase() == ReplicaPhase::Failed);
        own.or_else(|| self.by_replica.get(&(volume, node, owner)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(volume: u8, node: u32, phase: ReplicaPhase) -> ReplicaState {
        let mut state = ReplicaState { volume_id: vec![volume; 16], node, ..Default::default() };
        state.set_phase(phase);
        if phase == ReplicaPhase::Failed {
            state.failed = "no\nspace".to_owned();
        }
        state
    }

    #[test]
    fn a_replica_has_failed_by_the_word_of_its_own_node_only() {
        let id = VolumeId([1; 16]);
        let mut reports = Reports::default();
        reports.note(2, vec![state(1, 1, ReplicaPhase::Failed)], |_, _| true);
        assert_eq!(reports.failed(id, 1), None);
        reports.note(1, vec![state(1, 1, ReplicaPhase::Failed)], |_, _| true);
        assert_eq!(reports.failed(id, 1), Some("nospace"));
        reports.note(1, vec![state(1, 1, ReplicaPhase::Serving)], |_, _| true);
        assert_eq!(reports.failed(id, 1), None);
    }

    #[test]
    fn the_owner_tells_of_the_others_and_a_new_session_ends_what_was_said() {
        let id = VolumeId([1; 16]);
        let mut reports = Reports::default();
        reports.note(1, vec![state(1, 2, ReplicaPhase::Copying)], |_, _| true);
        assert_eq!(reports.of(id, 2, 1).unwrap().phase(), ReplicaPhase::Copying);
        assert_eq!(reports.of(id, 2, 3), None);
        reports.begin(1);
        assert_eq!(reports.of(id, 2, 1), None);
    }

    #[test]
    fn what_does_not_exist_is_not_kept() {
        let id = VolumeId([1; 16]);
        let mut reports = Reports::default();
        reports.note(1, vec![state(1, 1, ReplicaPhase::Failed)], |_, _| false);
        assert_eq!(reports.failed(id, 1), None);
        reports.note(1, vec![state(1, 1, ReplicaPhase::Failed)], |_, _| true);
        reports.prune(Millis(5), |_, _| false);
        assert_eq!(reports.failed(id, 1), None);
        reports.note(1, vec![state(1, 1, ReplicaPhase::Failed)], |_, _| true);
        reports.prune(Millis(5 + PRUNE_MS - 1), |_, _| false);
        assert!(reports.failed(id, 1).is_some(), "not looked for all the time");
        reports.prune(Millis(5 + PRUNE_MS), |_, _| false);
        assert_eq!(reports.failed(id, 1), None);
    }
}
