//! SET TARGET PORT GROUPS in the log: who is asked to hand over, who is told of what became of it.

use holdfast_proto::state as records;

use super::build::*;
use crate::state::{Applied, Body, Outcome, StateMachine};

/// SET TARGET PORT GROUPS of nexus `n`, so that the group becomes active/optimized.
fn set(cluster: &Cluster, id: u8, n: u8, descriptors: &[[u8; 4]]) -> Body {
    let record = cluster.volume("db1").record();
    let list = [&[[0; 4]], descriptors].concat().concat();
    Body::ProposeReservation(records::ProposeReservation {
        cdb: vec![0xa4, 0x0a, 0, 0, 0, 0, 0, 0, 0, list.len() as u8, 0, 0],
        parameter_list: list,
        epoch: record.epoch,
        proposer: record.owner,
        ..propose(id, cluster.volume("db1").reservation_version, n, &PrOut::register(1))
    })
}

fn proposal(applied: &Applied) -> (u32, u64, Vec<u8>) {
    let Ok(Outcome::Proposal(outcome)) = &applied.response else { panic!("{:?}", applied.response) };
    (outcome.status, outcome.version, outcome.sense.clone())
}

/// Sense key, ASC, ASCQ of a refusal.
fn refusal(applied: &Applied) -> (u8, u8, u8) {
    let (status, _, sense) = proposal(applied);
    assert_eq!(status, 0x02);
    assert!(applied.commit.changes.is_empty() && applied.commit.unit_attentions.is_empty());
    (sense[2] & 0x0f, sense[12], sense[13])
}

fn told(applied: &Applied) -> Vec<(u32, Option<records::NexusName>)> {
    applied.commit.unit_attentions.iter().map(|t| (t.additional, t.except.clone())).collect()
}

fn cluster() -> Cluster {
    let mut cluster = Cluster::of(3);
    cluster.done(replicated(1, "db1", &[1, 2], true));
    cluster
}

#[test]
fn the_owner_is_asked_to_hand_over_and_all_others_are_told_when_it_has() {
    let mut cluster = cluster();
    let asked = cluster.apply(set(&cluster, 1, 1, &[[0, 0, 0, 2]]));
    assert_eq!((proposal(&asked).0, proposal(&asked).1), (0, cluster.index));
    assert_eq!(told(&asked), []);
    let record = cluster.volume("db1").record();
    assert_eq!((record.hand_over_to, record.hand_over_by.clone()), (2, Some(nexus(1, 1))));
    assert_eq!(StateMachine::from_changes(cluster.state.to_changes()).unwrap(), cluster.state);
    // Asked again by its id it was asked once.
    let again = cluster.apply(set(&cluster, 1, 1, &[[0, 0, 0, 2]]));
    assert_eq!(proposal(&again), proposal(&asked));
    let made = cluster.done(cluster.hand_over("db1", 2, false));
    assert_eq!(told(&made), [(0x2a06, Some(nexus(1, 1)))]);
    let record = cluster.volume("db1").record();
    assert_eq!(
        (record.owner, record.hand_over_to, record.hand_over_by, record.owner_by_host),
        (2, 0, None, true)
    );
    // The next change is the cluster's own: everyone is told.
    let back = cluster.done(cluster.hand_over("db1", 1, false));
    assert_eq!(told(&back), [(0x2a06, None)]);
    assert!(!cluster.volume("db1").record().owner_by_host);
}

#[test]
fn a_group_without_an_in_sync_copy_or_a_lease_is_refused() {
    let mut cluster = cluster();
    assert_eq!(refusal(&cluster.apply(set(&cluster, 1, 1, &[[0, 0, 0, 3]]))), (0x4, 0x67, 0x0a));
    cluster.done(lost(2, 1));
    assert_eq!(refusal(&cluster.apply(set(&cluster, 2, 1, &[[0, 0, 0, 2]]))), (0x4, 0x67, 0x0a));
    // What cannot be is refused by the same function as at the owner.
    assert_eq!(refusal(&cluster.apply(set(&cluster, 3, 1, &[[2, 0, 0, 1]]))), (0x5, 0x26, 0x00));
    assert_eq!(refusal(&cluster.apply(set(&cluster, 4, 1, &[[1, 0, 0, 1]]))), (0x5, 0x26, 0x00));
    assert_eq!(cluster.volume("db1").record().hand_over_to, 0);
}

#[test]
fn only_the_owner_proposes_and_only_against_the_version_that_it_saw() {
    let mut cluster = cluster();
    let Body::ProposeReservation(proposal) = set(&cluster, 1, 1, &[[0, 0, 0, 2]]) else { panic!() };
    let other = records::ProposeReservation { proposer: 2, ..proposal.clone() };
    cluster.refused(Body::ProposeReservation(other));
    // A reservation came in between.
    let version = cluster.volume("db1").reservation_version;
    cluster.done(Body::ProposeReservation(propose(2, version, 2, &PrOut::register(7))));
    cluster.refused(Body::ProposeReservation(proposal));
    assert_eq!(cluster.volume("db1").record().hand_over_to, 0);
}

#[test]
fn a_transition_that_is_given_up_is_told_to_everyone_unless_a_host_waits_for_it() {
    let mut cluster = cluster();
    let ask = |cluster: &Cluster, to| {
        let record = cluster.volume("db1").record();
        Body::RequestHandOver(records::RequestHandOver {
            request: None,
            volume_id: record.id,
            expected: record.epoch,
            to,
        })
    };
    // Nothing was under way: nothing failed.
    assert_eq!(told(&cluster.done(ask(&cluster, 0))), []);
    cluster.done(ask(&cluster, 2));
    assert_eq!(told(&cluster.done(ask(&cluster, 0))), [(0x2a07, None)]);
    cluster.done(ask(&cluster, 2));
    assert_eq!(told(&cluster.done(cluster.evict("db1", 2))), [(0x2a07, None)]);

    let mut cluster = self::cluster();
    cluster.apply(set(&cluster, 1, 1, &[[0, 0, 0, 2]]));
    assert_eq!(told(&cluster.done(ask(&cluster, 0))), []);
    cluster.apply(set(&cluster, 2, 1, &[[0, 0, 0, 2]]));
    assert_eq!(told(&cluster.done(cluster.evict("db1", 2))), []);
    assert_eq!(cluster.volume("db1").record().hand_over_by, None);
}
