//! Changes of a volume's configuration that its owner asks for, asked again until its own view shows what became of them.
//!
//! Invariants (as in the product): asked by compare-and-set on the epoch; "refused" is said only while no attempt of unknown fate may
//! still be carried out.

use holdfast_datanode::view::{BootId, NodeNumber};
use holdfast_proto::state::{self as records, change_configuration};
use holdfast_replica::{config::Owner, epoch::Epoch};

use super::{HandOver, Simulation};
use crate::simulation::{Up, founding::volume_id, unit::epoch_record};

/// The pause before the next attempt, in milliseconds.
const PAUSE_MS: u64 = 60;
/// The pause after a refusal, where nobody can take the volume, in milliseconds.
const LEAVE_AGAIN_MS: u64 = 1_000;

/// What an owner wants.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wanted {
    Evict(NodeNumber),
    Admit(NodeNumber, BootId),
    HandOver(NodeNumber),
    /// The own replica cannot be used: any other one in sync is to take the volume.
    Leave,
}

#[derive(Debug, Clone)]
pub(in crate::simulation) struct Asked {
    volume: usize,
    expected: Epoch,
    me: Owner,
    wanted: Wanted,
    sent: u64,
    answered: u64,
    next_at: u64,
}

impl Simulation {
    pub(super) fn want_change(
        &mut self,
        at: usize,
        volume: usize,
        expected: Epoch,
        me: Owner,
        wanted: Wanted,
    ) {
        let asked = Asked { volume, expected, me, wanted, sent: 0, answered: 0, next_at: self.now };
        let id = self.nodes[at].fresh();
        self.note(|| format!("node {at} asks for {wanted:?} of volume {volume} at {expected:?}"));
        self.nodes[at].changes.insert(id, asked);
    }

    pub(super) fn drive_changes(&mut self, at: usize) {
        let now = self.now;
        let Some(view) = self.nodes[at].shared.view.load_full() else { return };
        let has_session = self.nodes[at].has_session();
        let mut due = Vec::new();
        self.nodes[at].changes.retain(|id, asked| {
            let stands = view.volumes.values().any(|volume| {
                super::number_of(volume.id) == asked.volume
                    && view.owns(volume)
                    && view.my_incarnation == asked.me.incarnation
                    && volume.config.epoch() <= asked.expected
            });
            if stands && has_session && now >= asked.next_at {
                asked.next_at = now + PAUSE_MS;
                asked.sent += 1;
                due.push((*id, request(asked)));
            }
            stands
        });
        for (id, change) in due {
            self.up(at, Up::Change { id, change: Box::new(change) });
        }
    }

    /// The leader's word on an attempt.
    pub(in crate::simulation) fn change_answered(&mut self, at: usize, id: u64, refused: bool) {
        let Some(asked) = self.nodes[at].changes.get_mut(&id) else { return };
        asked.answered += 1;
        if !refused || asked.answered != asked.sent {
            return;
        }
        if let Wanted::Leave = asked.wanted {
            (asked.sent, asked.answered, asked.next_at) = (0, 0, self.now + LEAVE_AGAIN_MS);
            return;
        }
        let Some(asked) = self.nodes[at].changes.remove(&id) else { return };
        self.mark("a change of the configuration was refused");
        let now = self.instant(at);
        if let Some(owned) = self.owned(at, asked.volume).filter(|o| o.config.epoch() == asked.expected) {
            match (asked.wanted, owned.hand_over) {
                (Wanted::HandOver(_), HandOver::Proposed(to)) => owned.hand_over = HandOver::Wished(to),
                (Wanted::HandOver(_), _) => {}
                _ => owned.primary.refused(now),
            }
        }
        self.pump(at, asked.volume);
    }
}

fn request(asked: &Asked) -> records::ChangeConfiguration {
    let change = match asked.wanted {
        Wanted::Evict(node) => change_configuration::Change::Evict(records::EvictReplica {
            node: u32::from(node.get()),
            reason: "it is silent".to_owned(),
        }),
        Wanted::Admit(node, boot) => change_configuration::Change::Admit(records::AdmitReplica {
            node: u32::from(node.get()),
            boot_id: boot.0.to_vec(),
        }),
        Wanted::HandOver(to) => change_configuration::Change::HandOver(records::HandOver {
            to: u32::from(to.get()),
            leave: false,
            reason: "it was asked to".to_owned(),
        }),
        Wanted::Leave => change_configuration::Change::HandOver(records::HandOver {
            to: 0,
            leave: true,
            reason: "the owner's replica failed".to_owned(),
        }),
    };
    records::ChangeConfiguration {
        volume_id: volume_id(asked.volume),
        expected: Some(epoch_record(asked.expected)),
        proposer: u32::from(asked.me.node.get()),
        owner_incarnation: asked.me.incarnation.0,
        // The leader's own, which sees the lease.
        lease_term: 0,
        change: Some(change),
    }
}
