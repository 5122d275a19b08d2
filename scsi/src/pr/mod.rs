//! Persistent reservations (SPC-5 5.14): the words, and a read-only view that needs no memory of its own.
//!
//! | Looking for | Module |
//! |---|---|
//! | may this command run? | [`access`] |
//! | PERSISTENT RESERVE IN | [`report`] |
//! | what a PERSISTENT RESERVE OUT asks for | [`out`] |
//! | what it changes (the only place) | [`state`] |
//!
//! Invariants: an all-registrants [`Reservation`] names no single holder, every other kind names exactly one; the I/O
//! path reads a [`View`] of a whole, validated state and never a state in change.

pub mod access;
pub mod out;
pub mod report;
#[cfg(feature = "alloc")]
pub mod state;

use crate::nexus::Nexus;

/// TYPE of a persistent reservation (SPC-5 6.16.3.4). The scope is always LU_SCOPE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum ReservationType {
    /// Only the holder writes; everyone reads.
    WriteExclusive = 1,
    /// Only the holder reads and writes.
    ExclusiveAccess = 3,
    /// Only registrants write; everyone reads. One registrant holds it.
    WriteExclusiveRegistrantsOnly = 5,
    /// Only registrants read and write. One registrant holds it.
    ExclusiveAccessRegistrantsOnly = 6,
    /// Only registrants write; everyone reads. Every registrant holds it.
    WriteExclusiveAllRegistrants = 7,
    /// Only registrants read and write. Every registrant holds it.
    ExclusiveAccessAllRegistrants = 8,
}

impl ReservationType {
    /// Every type, in the order of the codes.
    pub const ALL: [ReservationType; 6] = [
        ReservationType::WriteExclusive,
        ReservationType::ExclusiveAccess,
        ReservationType::WriteExclusiveRegistrantsOnly,
        ReservationType::ExclusiveAccessRegistrantsOnly,
        ReservationType::WriteExclusiveAllRegistrants,
        ReservationType::ExclusiveAccessAllRegistrants,
    ];

    /// The type with this code; `None` for reserved and obsolete codes.
    pub const fn from_code(code: u8) -> Option<ReservationType> {
        Some(match code {
            1 => ReservationType::WriteExclusive,
            3 => ReservationType::ExclusiveAccess,
            5 => ReservationType::WriteExclusiveRegistrantsOnly,
            6 => ReservationType::ExclusiveAccessRegistrantsOnly,
            7 => ReservationType::WriteExclusiveAllRegistrants,
            8 => ReservationType::ExclusiveAccessAllRegistrants,
            _ => return None,
        })
    }

    /// The code on the wire.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// True where every registrant is a holder.
    pub const fn is_all_registrants(self) -> bool {
        matches!(
            self,
            ReservationType::WriteExclusiveAllRegistrants | ReservationType::ExclusiveAccessAllRegistrants
        )
    }

    /// True where being registered is enough for access (registrants only, all registrants).
    pub const fn admits_registrants(self) -> bool {
        !matches!(self, ReservationType::WriteExclusive | ReservationType::ExclusiveAccess)
    }

    /// True where those without access may still read.
    pub const fn is_write_exclusive(self) -> bool {
        matches!(
            self,
            ReservationType::WriteExclusive
                | ReservationType::WriteExclusiveRegistrantsOnly
                | ReservationType::WriteExclusiveAllRegistrants
        )
    }
}

/// A persistent reservation of the logical unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reservation {
    kind: ReservationType,
    holder: Option<Nexus>,
}

impl Reservation {
    /// A reservation of `kind` made by `holder`; an all-registrants one does not remember who made it.
    pub fn new(kind: ReservationType, holder: Nexus) -> Reservation {
        Reservation { kind, holder: (!kind.is_all_registrants()).then_some(holder) }
    }

    /// From stored parts; `None` unless `holder` is there exactly when `kind` has a single one.
    pub fn from_parts(kind: ReservationType, holder: Option<Nexus>) -> Option<Reservation> {
        (kind.is_all_registrants() == holder.is_none()).then_some(Reservation { kind, holder })
    }

    /// Its type.
    pub const fn kind(&self) -> ReservationType {
        self.kind
    }

    /// The single holder; `None` where every registrant holds it.
    pub const fn holder(&self) -> Option<&Nexus> {
        self.holder.as_ref()
    }
}

/// A registration: an I_T nexus and its reservation key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registrant {
    /// Who is registered.
    pub nexus: Nexus,
    /// Its reservation key, never 0.
    pub key: u64,
    /// The registration was made for all target ports at once (ALL_TG_PT). Each port has its own registrant; this only
    /// tells an administrator how it came about.
    pub all_target_ports: bool,
}

/// How an I_T nexus stands to the reservation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Relation {
    /// It is registered.
    pub registered: bool,
    /// It holds the reservation (alone, or as one of all registrants).
    pub holder: bool,
}

/// One whole reservation state of a logical unit, read-only. The kernel builds it over its snapshot, user space over
/// [`state::Reservations`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View<'a> {
    /// PRGENERATION.
    pub generation: u32,
    /// Activate persist through power loss, as last asked for.
    pub aptpl: bool,
    /// Registrants in the order in which they registered.
    pub registrants: &'a [Registrant],
    /// The reservation, if there is one.
    pub reservation: Option<&'a Reservation>,
}

impl View<'_> {
    /// No registrants, no reservation.
    pub const EMPTY: View<'static> =
        View { generation: 0, aptpl: false, registrants: &[], reservation: None };

    /// The registration of `nexus`.
    pub fn registrant(&self, nexus: &Nexus) -> Option<&Registrant> {
        self.registrants.iter().find(|r| r.nexus == *nexus)
    }

    /// True if this registrant holds the reservation.
    pub fn holds(&self, nexus: &Nexus) -> bool {
        self.relation_of(nexus).holder
    }

    /// How `nexus` stands to the reservation.
    pub fn relation_of(&self, nexus: &Nexus) -> Relation {
        let registered = self.registrant(nexus).is_some();
        let holder = registered && self.reservation.is_some_and(|r| r.holder().is_none_or(|h| h == nexus));
        Relation { registered, holder }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{nexus::RelativePort, transport_id::TransportId};

    #[test]
    fn type_codes_read_back_and_obsolete_ones_are_no_types() {
        for kind in ReservationType::ALL {
            assert_eq!(ReservationType::from_code(kind.code()), Some(kind));
        }
        assert!([0, 2, 4, 9, 15].iter().all(|c| ReservationType::from_code(*c).is_none()));
    }

    #[test]
    fn only_all_registrants_types_lack_a_single_holder() {
        let a = Nexus::new(TransportId::sas([1; 8]), RelativePort(1));
        for kind in ReservationType::ALL {
            assert_eq!(Reservation::new(kind, a).holder().is_none(), kind.is_all_registrants());
            assert!(Reservation::from_parts(kind, Reservation::new(kind, a).holder().copied()).is_some());
            let wrong = if kind.is_all_registrants() { Some(a) } else { None };
            assert!(Reservation::from_parts(kind, wrong).is_none());
        }
    }
}
