//! What a session has done since it began: counted by the one thread that serves it, so that counting costs an addition and no
//! lock; told by an inspection.
//!
//! Invariant: a command is counted once when it is taken, and once by how it ended; nothing is counted down.

use holdfast_proto::node::SessionCounters;
use holdfast_scsi::{sense::SenseKey, status::Status};

use super::router::{Outcome, Reply};

/// Of one session. Every count wraps after 2^64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counters {
    commands: u64,
    data_in_bytes: u64,
    data_out_bytes: u64,
    check_conditions: u64,
    unit_attentions: u64,
    reservation_conflicts: u64,
    busy: u64,
    aborted: u64,
}

fn add(count: &mut u64, more: usize) {
    *count = count.wrapping_add(more as u64);
}

impl Counters {
    /// A command came, with so many bytes of its data.
    pub(super) fn command(&mut self, data_out_bytes: usize) {
        add(&mut self.commands, 1);
        add(&mut self.data_out_bytes, data_out_bytes);
    }

    /// The data of a command came.
    pub(super) fn data_out(&mut self, bytes: usize) {
        add(&mut self.data_out_bytes, bytes);
    }

    /// A command ended.
    pub(super) fn ended(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Reply(reply) => self.replied(reply),
            Outcome::Aborted => add(&mut self.aborted, 1),
            // Told as ABORTED COMMAND.
            Outcome::NotExecuted | Outcome::Unknown => add(&mut self.check_conditions, 1),
        }
    }

    fn replied(&mut self, reply: &Reply) {
        add(&mut self.data_in_bytes, reply.data.as_slice().len());
        add(&mut self.unit_attentions, usize::from(reply.unit_attention_reported.is_some()));
        match reply.status {
            Status::CheckCondition => {
                let told = reply.sense.is_some_and(|sense| sense.key == SenseKey::UnitAttention);
                add(&mut self.check_conditions, usize::from(!told));
            }
            Status::ReservationConflict => add(&mut self.reservation_conflicts, 1),
            Status::Busy | Status::TaskSetFull => add(&mut self.busy, 1),
            _ => {}
        }
    }

    pub(super) fn record(&self) -> SessionCounters {
        SessionCounters {
            commands: self.commands,
            data_in_bytes: self.data_in_bytes,
            data_out_bytes: self.data_out_bytes,
            check_conditions: self.check_conditions,
            unit_attentions: self.unit_attentions,
            reservation_conflicts: self.reservation_conflicts,
            busy: self.busy,
            aborted: self.aborted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data_plane::router::Bytes;
    use holdfast_scsi::sense::{Sense, asc};

    fn reply(status: Status, sense: Option<Sense>, data: usize, reported: Option<u64>) -> Outcome {
        Outcome::Reply(Reply {
            status,
            sense,
            descriptor_sense: false,
            data: Bytes::new(vec![0; data]),
            transfer_len: 0,
            unit_attention_reported: reported,
        })
    }

    #[test]
    fn every_end_of_a_command_is_counted_as_what_it_is() {
        let mut counters = Counters::default();
        counters.command(0);
        counters.command(512);
        counters.data_out(4096);
        let attention = Sense::new(SenseKey::UnitAttention, asc::POWER_ON);
        for outcome in [
            reply(Status::Good, None, 100, None),
            reply(Status::CheckCondition, Some(attention), 0, Some(7)),
            // REQUEST SENSE tells one with GOOD.
            reply(Status::Good, None, 18, Some(8)),
            reply(Status::CheckCondition, Some(Sense::illegal(asc::INVALID_FIELD_IN_CDB)), 0, None),
            reply(Status::ReservationConflict, None, 0, None),
            reply(Status::Busy, None, 0, None),
            reply(Status::TaskSetFull, None, 0, None),
            Outcome::Unknown,
            Outcome::Aborted,
        ] {
            counters.ended(&outcome);
        }
        let expected = SessionCounters {
            commands: 2,
            data_in_bytes: 118,
            data_out_bytes: 4608,
            check_conditions: 2,
            unit_attentions: 2,
            reservation_conflicts: 1,
            busy: 2,
            aborted: 1,
        };
        assert_eq!(counters.record(), expected);
    }
}
