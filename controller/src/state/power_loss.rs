//! What ends with the power: reservations that were not asked to persist (APTPL = 0, SPC-5 5.14.5), and mode parameters that were not
//! saved.
//!
//! Invariant: the cluster loses its power only when all of it does. Such a reservation outlives any node's failure, and every
//! restart of processes; it ends when each data node with ports has rejoined under a boot id that is newer than the reservation's last
//! change, or was removed. A node that is away may come back as it was, so it keeps the reservation.

use holdfast_proto::state::change;

use super::{StateMachine, Volume, effects::Effects, provenance::Provenance};

impl StateMachine {
    /// A node has rejoined under a new boot id, or was removed: ends what no node can hold any more.
    pub(super) fn end_what_lost_power(&mut self, effects: &mut Effects) {
        let with_ports = self.nodes.values().filter(|node| !node.ports.is_empty());
        // The node that has been up longest remembers most.
        let oldest = with_ports.map(|node| node.booted_index).min().unwrap_or(u64::MAX);
        for volume in self.volumes.values_mut().filter(|volume| has_lost_power(volume, oldest)) {
            let had_reservations =
                !volume.lu.reservations.aptpl() && !volume.lu.reservations.registrants().is_empty();
            volume.lu.lose_power();
            volume.provenance = Provenance::default();
            volume.reservation_version = effects.index;
            let message = format!(
                "registrations and reservation of volume {} ended: every data node has lost its power since, and they were not \
                 asked to persist",
                volume.name
            );
            if had_reservations {
                effects.event("reservation.ended", format!("volume/{}", volume.name), message);
            }
            effects.change(change::Change::Reservation(volume.reservation_record()));
        }
    }
}

fn has_lost_power(volume: &Volume, oldest: u64) -> bool {
    // Most are not older: nothing is copied for them.
    if oldest <= volume.reservation_version {
        return false;
    }
    let mut after = volume.lu.clone();
    after.lose_power();
    after != volume.lu
}
