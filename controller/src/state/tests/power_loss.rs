//! APTPL = 0 ends with the power of the whole cluster, and with nothing less.

use holdfast_proto::state::{self as records, change};

use super::build::*;
use crate::state::Body;

/// Two nodes, and a volume on node 1 with one registration.
fn registered(aptpl: bool) -> Cluster {
    let mut cluster = Cluster::new();
    cluster.done(create_volume(1, "db1"));
    let mut proposal = propose(1, 0, 1, &PrOut::register(7));
    proposal.parameter_list[20] = u8::from(aptpl);
    cluster.done(Body::ProposeReservation(proposal));
    assert_eq!(registrations(&cluster), 1);
    cluster
}

fn registrations(cluster: &Cluster) -> usize {
    cluster.volume("db1").lu.reservations.registrants().len()
}

/// A node joins with a new process, under a boot id.
fn boot(number: u32, process: u8, boot: u8) -> Body {
    let Body::NodeJoin(join) = join(number, process) else { panic!() };
    Body::NodeJoin(records::NodeJoin { boot_id: vec![boot; 16], ..join })
}

#[test]
fn ends_when_every_node_has_rejoined_under_a_new_boot_id() {
    let mut cluster = registered(false);
    cluster.done(boot(1, 2, 91));
    assert_eq!(registrations(&cluster), 1, "node 2 has not lost its power");
    // A process that starts again on the same boot has lost nothing.
    cluster.done(boot(2, 2, 2));
    assert_eq!(registrations(&cluster), 1);
    let applied = cluster.done(boot(2, 3, 92));
    assert_eq!(registrations(&cluster), 0);
    assert_eq!(cluster.volume("db1").reservation_version, cluster.index);
    let told = |change: &records::Change| matches!(&change.change, Some(change::Change::Reservation(r)) if r.registrants.is_empty());
    assert!(applied.commit.changes.iter().any(told), "data nodes are told");
    assert!(applied.events.iter().any(|event| event.kind == "reservation.ended"));
    // Once: the next boot finds nothing to end.
    assert!(!cluster.done(boot(1, 4, 93)).commit.changes.iter().any(told));
}

#[test]
fn a_change_after_a_boot_needs_that_node_to_boot_again() {
    let mut cluster = registered(false);
    cluster.done(boot(1, 2, 91));
    let version = cluster.volume("db1").reservation_version;
    let epoch = cluster.volume("db1").config.epoch();
    let mut again = propose(2, version, 2, &PrOut::register(8));
    again.epoch = Some(crate::state::convert::epoch_record(epoch));
    cluster.done(Body::ProposeReservation(again));
    cluster.done(boot(2, 2, 92));
    assert_eq!(registrations(&cluster), 2, "node 1 has been up since before the last change");
    cluster.done(boot(1, 3, 93));
    assert_eq!(registrations(&cluster), 0);
}

#[test]
fn a_node_that_is_away_keeps_it_until_it_is_removed() {
    let mut cluster = registered(false);
    cluster.done(boot(1, 2, 91));
    cluster.done(lost(2, 1));
    assert_eq!(registrations(&cluster), 1);
    cluster.done(remove_node(2, 1));
    assert_eq!(registrations(&cluster), 0);
}

#[test]
fn with_aptpl_it_outlives_the_power() {
    let mut cluster = registered(true);
    cluster.done(boot(1, 2, 91));
    cluster.done(boot(2, 2, 92));
    assert_eq!(registrations(&cluster), 1);
}
