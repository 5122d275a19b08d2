//! RESERVE of SPC-2, MODE SELECT and what hangs on a nexus, in the log.

use holdfast_proto::state as records;
use holdfast_scsi::mode::{ModeParameters, QueueError};

use super::build::*;
use crate::state::{Applied, Body, Outcome, StateMachine};

const RESERVE: &[u8] = &[0x16, 0, 0, 0, 0, 0];
const PREVENT: &[u8] = &[0x1e, 0, 0, 0, 1, 0];

fn command(cluster: &Cluster, id: u8, n: u8, cdb: &[u8], list: &[u8]) -> Body {
    let version = cluster.volume("db1").reservation_version;
    Body::ProposeReservation(records::ProposeReservation {
        cdb: cdb.to_vec(),
        parameter_list: list.to_vec(),
        ..propose(id, version, n, &PrOut::register(1))
    })
}

fn event(cluster: &Cluster, id: u8, n: u8, event: records::UnitEvent) -> Body {
    let version = cluster.volume("db1").reservation_version;
    Body::ProposeReservation(records::ProposeReservation {
        cdb: Vec::new(),
        parameter_list: Vec::new(),
        event: event as i32,
        ..propose(id, version, n, &PrOut::register(1))
    })
}

fn status(applied: &Applied) -> u32 {
    let Ok(Outcome::Proposal(outcome)) = &applied.response else { panic!("{:?}", applied.response) };
    outcome.status
}

fn cluster() -> Cluster {
    let mut cluster = Cluster::new();
    cluster.done(create_volume(1, "db1"));
    cluster
}

fn told(applied: &Applied) -> Vec<(u32, bool, bool)> {
    let told = &applied.commit.unit_attentions;
    told.iter().map(|t| (t.additional, t.only.is_some(), t.except.is_some())).collect()
}

#[test]
fn mode_select_is_kept_told_to_the_others_and_survives_a_snapshot() {
    let mut cluster = cluster();
    let list = [0, 0, 0, 0, 0x0a, 0x0a, 0x02, 0x12, 0, 0, 0, 0, 0xff, 0xff, 0, 0];
    let applied = cluster.apply(command(&cluster, 1, 1, &[0x15, 0x11, 0, 0, 16, 0], &list));
    assert_eq!((status(&applied), told(&applied)), (0, vec![(0x2a01, false, true)]));
    let again = StateMachine::from_changes(cluster.state.to_changes()).unwrap();
    assert_eq!(again, cluster.state);
    let mode = again.volume_by_name("db1").unwrap().lu.mode(ModeParameters::new(true));
    assert_eq!(mode.queue_error, QueueError::AbortAll);
    // The saved values outlive a reset.
    let reset = cluster.apply(event(&cluster, 2, 1, records::UnitEvent::Reset));
    assert_eq!((status(&reset), reset.commit.changes.len() > 1), (0, true));
    assert_eq!(cluster.volume("db1").lu.mode(ModeParameters::new(true)).queue_error, QueueError::AbortAll);
}

#[test]
fn spc2_reservation_ends_with_its_nexus() {
    let mut cluster = cluster();
    assert_eq!(status(&cluster.apply(command(&cluster, 1, 1, RESERVE, &[]))), 0);
    assert_eq!(status(&cluster.apply(command(&cluster, 2, 2, RESERVE, &[]))), 0x18);
    assert_eq!(status(&cluster.apply(event(&cluster, 3, 1, records::UnitEvent::NexusLost))), 0);
    assert_eq!(status(&cluster.apply(command(&cluster, 4, 2, RESERVE, &[]))), 0);
}

#[test]
fn what_hangs_on_a_nexus_ends_with_its_node_and_the_holder_is_told() {
    for way in 0..2 {
        let mut cluster = cluster();
        cluster.apply(command(&cluster, 1, 1, RESERVE, &[]));
        cluster.apply(command(&cluster, 2, 1, PREVENT, &[]));
        assert_eq!(cluster.volume("db1").lu.nexuses().count(), 2);
        let applied = cluster.apply(if way == 0 { lost(1, 1) } else { join(1, 2) });
        assert_eq!(cluster.volume("db1").lu.nexuses().count(), 0);
        assert_eq!(told(&applied), [(0x2a04, true, false)]);
        assert_eq!(cluster.volume("db1").reservation_version, cluster.index);
    }
}

#[test]
fn reservation_of_a_nexus_on_another_node_stays_when_the_owner_is_lost() {
    let mut cluster = cluster();
    let Body::ProposeReservation(reserve) = command(&cluster, 1, 2, RESERVE, &[]) else { panic!() };
    let of_node_2 = records::ProposeReservation { nexus: Some(nexus(2, 2)), ..reserve };
    assert_eq!(status(&cluster.apply(Body::ProposeReservation(of_node_2))), 0);
    cluster.done(lost(1, 1));
    assert!(cluster.volume("db1").lu.unit.spc2_holder.is_some());
}
