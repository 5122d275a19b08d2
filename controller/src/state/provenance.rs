//! Where each registration and the reservation of a volume come from: for people who ask why a host is kept out.
//!
//! Invariants: every registrant of the state has an origin, and nobody else; it changes with the key, and that of the reservation
//! with its type or holder. It decides nothing.

use std::collections::BTreeMap;

use holdfast_proto::state as records;
use holdfast_scsi::{
    nexus::Nexus,
    pr::{Reservation, state::Reservations},
};

use super::{convert::nexus_of, effects::nexus_name};

/// The entry by which something came to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Log index; 0 = before this was recorded.
    pub index: u64,
    /// Clock of the proposer, milliseconds since 1970 (UTC).
    pub time_unix_ms: u64,
    /// Through which nexus it was asked for; `None`: not by a host.
    pub nexus: Option<Nexus>,
    /// "REGISTER", or who did what to it.
    pub action: String,
}

impl Origin {
    /// Before origins were recorded.
    fn unknown() -> Origin {
        Origin { index: 0, time_unix_ms: 0, nexus: None, action: String::new() }
    }

    pub(super) fn record(&self) -> records::Origin {
        records::Origin {
            index: self.index,
            time_unix_ms: self.time_unix_ms,
            nexus: self.nexus.as_ref().map(nexus_name),
            action: self.action.clone(),
        }
    }

    pub(super) fn from_record(record: Option<&records::Origin>) -> Origin {
        record.map_or_else(Origin::unknown, |record| Origin {
            index: record.index,
            time_unix_ms: record.time_unix_ms,
            nexus: record.nexus.as_ref().and_then(|n| nexus_of(&n.transport_id, n.relative_port)),
            action: record.action.clone(),
        })
    }
}

/// Of one volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Provenance {
    pub(super) registrants: BTreeMap<Nexus, Origin>,
    pub(super) reservation: Option<Origin>,
    pub(super) last: Option<Origin>,
}

impl Provenance {
    /// Of a registration.
    pub fn registrant(&self, nexus: &Nexus) -> Option<&Origin> {
        self.registrants.get(nexus)
    }

    /// Of the reservation.
    pub fn reservation(&self) -> Option<&Origin> {
        self.reservation.as_ref()
    }

    /// Of the last change of anything.
    pub fn last(&self) -> Option<&Origin> {
        self.last.as_ref()
    }

    /// Takes note of what an entry made of `before`.
    pub(super) fn follow(&mut self, before: &Reservations, after: &Reservations, origin: &Origin) {
        let key = |state: &Reservations, nexus: &Nexus| {
            state.registrants().iter().find(|r| r.nexus == *nexus).map(|r| r.key)
        };
        self.registrants.retain(|nexus, _| key(after, nexus).is_some());
        for registrant in after.registrants() {
            if key(before, &registrant.nexus) != Some(registrant.key) {
                self.registrants.insert(registrant.nexus, origin.clone());
            }
        }
        let held = |state: &Reservations| state.reservation().map(|r| (r.kind(), r.holder().copied()));
        match after.reservation() {
            None => self.reservation = None,
            Some(_) if held(before) != held(after) => self.reservation = Some(origin.clone()),
            Some(_) => {}
        }
        self.last = Some(origin.clone());
    }

    /// From what a record holds of each registrant, and of the rest.
    pub(super) fn restore(
        registrants: impl IntoIterator<Item = (Nexus, Origin)>,
        reservation: Option<&Reservation>,
        record: &records::Reservation,
    ) -> Provenance {
        Provenance {
            registrants: registrants.into_iter().collect(),
            reservation: reservation.map(|_| Origin::from_record(record.reserved.as_ref())),
            last: record.changed.as_ref().map(|changed| Origin::from_record(Some(changed))),
        }
    }
}
