//! Where registrations come from, and how an administrator takes one away.

use holdfast_proto::state as records;

use super::build::*;
use crate::state::{Body, Outcome, Refusal, StateMachine, convert::nexus_of};

fn clear(whose: Option<records::NexusName>) -> Body {
    Body::ClearReservation(records::ClearReservation {
        request: None,
        volume: "db1".to_owned(),
        nexus: whose,
    })
}

fn proposed(cluster: &mut Cluster, id: u8, n: u8, out: &PrOut) -> u64 {
    let version = cluster.volume("db1").reservation_version;
    cluster.done(Body::ProposeReservation(propose(id, version, n, out)));
    cluster.index
}

/// Initiators 1 and 2 are registered, 1 holds write exclusive for registrants.
fn world() -> (Cluster, u64, u64) {
    let mut cluster = Cluster::new();
    cluster.done(create_volume(1, "db1"));
    let first = proposed(&mut cluster, 1, 1, &PrOut::register(0xa1));
    proposed(&mut cluster, 2, 2, &PrOut::register(0xa2));
    let reserved = proposed(&mut cluster, 3, 1, &PrOut::reserve(0xa1, 5));
    (cluster, first, reserved)
}

#[test]
fn each_registration_and_the_reservation_know_the_entry_that_made_them() {
    let (mut cluster, first, reserved) = world();
    let nexus_1 = nexus_of(&nexus(1, 1).transport_id, 1).unwrap();
    let provenance = &cluster.volume("db1").provenance;
    let origin = provenance.registrant(&nexus_1).unwrap();
    assert_eq!((origin.index, origin.action.as_str(), origin.nexus), (first, "REGISTER", Some(nexus_1)));
    let origin = provenance.reservation().unwrap();
    assert_eq!((origin.index, origin.action.as_str()), (reserved, "RESERVE"));
    assert_eq!(provenance.last().unwrap().index, reserved);
    // Another key is another origin; the reservation stays as it was.
    let again = PrOut { action: 0, kind: 0, key: 0xa1, action_key: 0xb1 };
    let changed = proposed(&mut cluster, 4, 1, &again);
    let provenance = &cluster.volume("db1").provenance;
    assert_eq!(provenance.registrant(&nexus_1).unwrap().index, changed);
    assert_eq!(provenance.reservation().unwrap().index, reserved);
    assert_eq!(StateMachine::from_changes(cluster.state.to_changes()), Ok(cluster.state));
}

#[test]
fn registration_that_is_taken_away_is_told_to_it_and_to_those_whom_it_kept_out() {
    let (mut cluster, ..) = world();
    let strange = cluster.refused(clear(Some(nexus(3, 1))));
    assert!(strange.to_string().ends_with("is not registered with volume db1"), "{strange}");
    let applied = cluster.done(clear(Some(nexus(1, 1))));
    assert_eq!(applied.response, Ok(Outcome::Established(cluster.index)));
    let told: Vec<_> =
        applied.commit.unit_attentions.iter().map(|ua| (ua.only.clone().unwrap(), ua.additional)).collect();
    // The holder of a type for registrants went: the reservation is released (SPC-5 5.14.11.2).
    assert_eq!(told, [(nexus(2, 1), 0x2a04), (nexus(1, 1), 0x2a05)]);
    let volume = cluster.volume("db1");
    assert!(volume.lu.reservations.reservation().is_none());
    assert_eq!(volume.lu.reservations.registrants().len(), 1);
    assert_eq!(volume.reservation_version, cluster.index);
    assert!(volume.provenance.reservation().is_none());
    assert_eq!(applied.audit[0].action, "reservation.clear");
}

#[test]
fn clearing_everything_tells_every_registrant() {
    let (mut cluster, ..) = world();
    let applied = cluster.done(clear(None));
    let mut told: Vec<_> =
        applied.commit.unit_attentions.iter().map(|ua| (ua.only.clone().unwrap(), ua.additional)).collect();
    told.sort_by_key(|(name, _)| name.transport_id.clone());
    assert_eq!(told, [(nexus(1, 1), 0x2a03), (nexus(2, 1), 0x2a03)]);
    let volume = cluster.volume("db1");
    assert!(
        volume.lu.reservations.registrants().is_empty() && volume.lu.reservations.reservation().is_none()
    );
    assert!(matches!(cluster.refused(clear(None)), Refusal::Precondition(_)));
    // A proposal that was validated against what was cleared is refused.
    let late = cluster.refused(Body::ProposeReservation(propose(9, 1, 1, &PrOut::reserve(0xa1, 1))));
    assert!(matches!(late, Refusal::StaleVersion { .. }));
}
