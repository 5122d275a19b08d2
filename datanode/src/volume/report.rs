//! How the replicas of an owned volume are, for the controller and for people.

use holdfast_proto::node::{ReplicaPhase, ReplicaState};
use holdfast_replica::primary::PeerState;

use super::engine::Engine;
use crate::clock;
use crate::view::parse;

impl Engine {
    /// The state of every replica that this node drives; none where it is not the owner.
    pub(super) fn replica_states(&self) -> Vec<ReplicaState> {
        let now_ms = clock::now_ms();
        self.change(|inner| {
            let chunk_bytes =
                u64::from(inner.shape.block_size()).saturating_mul(1 << inner.shape.chunk_shift());
            let Some(owned) = &mut inner.owned else { return Vec::new() };
            let mut states = Vec::new();
            for member in owned.config.in_sync().iter().chain(owned.config.learners()) {
                let mut state = ReplicaState {
                    volume_id: self.id.0.to_vec(),
                    node: u32::from(member.node.get()),
                    epoch: Some(parse::epoch_record(owned.config.epoch())),
                    ..ReplicaState::default()
                };
                let phase = match owned.primary.peer_state(member.node) {
                    None | Some(PeerState::Connecting | PeerState::Waiting) => ReplicaPhase::Connecting,
                    Some(PeerState::InSync) if owned.primary.is_recovered() => ReplicaPhase::Serving,
                    Some(PeerState::InSync) => ReplicaPhase::Recovering,
                    Some(PeerState::Copying(progress)) => {
                        state.total_bytes = progress.chunks_total.saturating_mul(chunk_bytes);
                        state.remaining_bytes = progress.chunks_left.saturating_mul(chunk_bytes);
                        let speed = owned.speeds.entry(member.node).or_default();
                        state.bytes_per_second = speed.measure(now_ms, state.remaining_bytes);
                        ReplicaPhase::Copying
                    }
                    Some(PeerState::Joining) => ReplicaPhase::Copying,
                };
                if phase != ReplicaPhase::Copying {
                    owned.speeds.remove(&member.node);
                }
                state.phase = phase.into();
                states.push(state);
            }
            states
        })
    }
}

/// How fast a copy goes, from what was left at two moments.
#[derive(Debug, Default)]
pub(super) struct Speed {
    last: Option<(u64, u64)>,
}

impl Speed {
    fn measure(&mut self, now_ms: u64, remaining: u64) -> u64 {
        let before = self.last.replace((now_ms, remaining));
        let Some((at_ms, left)) = before.filter(|(at_ms, _)| *at_ms < now_ms) else { return 0 };
        left.saturating_sub(remaining).saturating_mul(1_000) / (now_ms - at_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speed_is_of_the_time_between_two_looks() {
        let mut speed = Speed::default();
        assert_eq!(speed.measure(1_000, 10_000), 0);
        assert_eq!(speed.measure(3_000, 4_000), 3_000);
        assert_eq!(speed.measure(3_000, 4_000), 0);
    }
}
