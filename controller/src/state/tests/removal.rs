//! A node that has stopped for good is removed.

use holdfast_proto::state::change;

use super::build::*;
use crate::state::{Outcome, Refusal};

fn reason(refusal: Refusal) -> String {
    refusal.to_string()
}

#[test]
fn a_node_that_is_live_or_holds_a_replica_stays() {
    let mut cluster = Cluster::new();
    cluster.done(create_volume(1, "db1"));
    cluster.done(create_volume(2, "db2"));
    assert!(reason(cluster.refused(remove_node(1, 1))).starts_with("node node-1 is live; stop its process"));
    cluster.done(lost(1, 1));
    assert_eq!(
        reason(cluster.refused(remove_node(1, 1))),
        "node node-1 holds a replica of volume db1 and of 1 other volumes; move or delete what it holds first"
    );
    cluster.done(delete_volume("db2"));
    assert_eq!(
        reason(cluster.refused(remove_node(1, 1))),
        "node node-1 holds a replica of volume db1; move or delete what it holds first"
    );
    assert!(matches!(cluster.refused(remove_node(9, 1)), Refusal::NotFound { .. }));
}

#[test]
fn a_removal_ends_deletions_that_waited_for_the_node() {
    let mut cluster = Cluster::new();
    cluster.done(create_volume(1, "db1"));
    cluster.done(delete_volume("db1"));
    cluster.done(lost(1, 1));
    let applied = cluster.done(remove_node(1, 1));
    assert!(cluster.state.volume_by_name("db1").is_none() && cluster.state.node_by_name("node-1").is_none());
    let kinds: Vec<_> = applied.events.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!(kinds, ["job.done", "volume.deleted", "node.removed"]);
    let gone = |change: &holdfast_proto::state::Change| matches!(&change.change, Some(change::Change::RemovedNode(name)) if name == "node-1");
    assert!(applied.commit.changes.iter().any(gone));
}

#[test]
fn numbers_and_relative_ports_of_a_removed_node_are_not_handed_out_again() {
    let mut cluster = Cluster::new();
    cluster.done(lost(2, 1));
    cluster.done(remove_node(2, 1));
    let Ok(Outcome::Node(again)) = cluster.ask(join(2, 1)) else { panic!() };
    assert_eq!((again.number, again.ports[0].relative_port, again.incarnation), (3, 3, 1));
}

#[test]
fn a_removal_that_a_deposed_leader_proposed_does_nothing() {
    let mut cluster = Cluster::new();
    cluster.done(lost(2, 1));
    assert!(matches!(cluster.refused(remove_node(2, 7)), Refusal::StaleLeaseTerm { .. }));
}
