//! Rules of volumes with several copies.

use holdfast_proto::state as records;

use super::build::*;
use crate::state::placement::NewVolume;
use crate::state::{Applied, Body, Outcome, Refusal, StateMachine};

fn additional(applied: &Applied) -> Vec<u32> {
    applied.commit.unit_attentions.iter().map(|event| event.additional).collect()
}

fn kinds(applied: &Applied) -> Vec<&str> {
    applied.events.iter().map(|event| event.kind.as_str()).collect()
}

#[test]
fn a_new_volume_is_in_sync_on_each_of_its_nodes() {
    let mut cluster = Cluster::of(3);
    let Ok(Outcome::Volume(volume)) = cluster.ask(replicated(1, "db1", &[2, 1, 3], true)) else { panic!() };
    assert_eq!((volume.owner, volume.replicas, volume.min_in_sync), (2, 3, 2));
    assert_eq!(volume.epoch, Some(epoch(2)));
    assert_eq!(cluster.sets("db1"), [vec![2, 1, 3], vec![], vec![], vec![]]);
    let Ok(Outcome::Volume(two)) = cluster.ask(replicated(2, "db2", &[1, 2], true)) else { panic!() };
    assert_eq!(two.min_in_sync, 1);
}

#[test]
fn copies_stand_on_nodes_of_their_own_that_can_keep_them() {
    let mut cluster = Cluster::of(3);
    let twice = cluster.refused(replicated(1, "db1", &[1, 1], true));
    assert_eq!(twice.to_string(), "spec.replicas: node node-1 is named for two copies");
    cluster.done(lost(2, 1));
    let away = cluster.refused(replicated(1, "db1", &[1, 2], true));
    assert_eq!(away.to_string(), "node node-2 holds no lease; start it or choose another");
    let Body::NodeJoin(join) = join(4, 1) else { unreachable!() };
    cluster.done(Body::NodeJoin(records::NodeJoin { replicates: false, ..join }));
    cluster.done(live(4, 1));
    let old = cluster.refused(replicated(1, "db1", &[1, 4], true));
    assert_eq!(old.to_string(), "node node-4 runs a version that keeps no copies of others");
    cluster.done(create_volume(1, "db1"));
    assert!(cluster.refused(add_replica("db1", 4, 0)).to_string().contains("keeps no copies"));
}

#[test]
fn an_evicted_replica_is_absent_comes_back_as_a_learner_and_is_admitted() {
    let mut cluster = Cluster::of(2);
    cluster.done(replicated(1, "db1", &[1, 2], true));
    let applied = cluster.done(cluster.evict("db1", 2));
    assert_eq!(kinds(&applied), ["replica.evicted"]);
    assert_eq!(applied.events[0].message, "volume db1 goes on without its replica on node node-2: silent");
    assert_eq!(additional(&applied), Vec::<u32>::new());
    assert_eq!(cluster.sets("db1"), [vec![1], vec![], vec![2], vec![]]);
    cluster.done(boot(2, 7, 2));
    let waits = cluster.refused(cluster.returned("db1", 2));
    assert_eq!(waits, Refusal::NoLease { number: 2 });
    cluster.done(live(2, 2));
    cluster.done(cluster.returned("db1", 2));
    assert_eq!(cluster.sets("db1"), [vec![1], vec![2], vec![], vec![]]);
    assert_eq!(cluster.volume("db1").record().learners[0].boot_id, [7; 16]);
    cluster.done(cluster.admit("db1", 2));
    assert_eq!(cluster.sets("db1"), [vec![1, 2], vec![], vec![], vec![]]);
    assert_eq!(cluster.volume("db1").record().epoch, Some(epoch(5)));
}

#[test]
fn a_learner_that_reboots_begins_anew_and_is_not_admitted_under_the_old_boot() {
    let mut cluster = Cluster::of(2);
    cluster.done(replicated(1, "db1", &[1, 2], true));
    cluster.done(cluster.evict("db1", 2));
    cluster.done(cluster.returned("db1", 2));
    let late = cluster.admit("db1", 2);
    cluster.done(boot(2, 7, 2));
    cluster.done(live(2, 2));
    // It has another boot now, and the owner has not heard of it yet.
    let before = cluster.admit("db1", 2);
    assert!(cluster.refused(before).to_string().ends_with("it has caught up under another boot"));
    cluster.done(cluster.returned("db1", 2));
    assert!(matches!(cluster.refused(late), Refusal::StaleEpoch { .. }));
    cluster.done(cluster.admit("db1", 2));
}

#[test]
fn only_the_owner_that_is_live_is_heard_and_only_through_the_leader_in_force() {
    let mut cluster = Cluster::of(3);
    cluster.done(replicated(1, "db1", &[1, 2], true));
    let Body::ChangeConfiguration(evict) = cluster.evict("db1", 2) else { unreachable!() };
    let with = |change: &dyn Fn(&mut records::ChangeConfiguration)| {
        let mut evict = evict.clone();
        change(&mut evict);
        Body::ChangeConfiguration(evict)
    };
    assert!(matches!(cluster.refused(with(&|e| e.proposer = 2)), Refusal::StaleEpoch { .. }));
    assert!(matches!(cluster.refused(with(&|e| e.proposer = 9)), Refusal::StaleIncarnation { .. }));
    assert!(matches!(cluster.refused(with(&|e| e.owner_incarnation = 2)), Refusal::StaleIncarnation { .. }));
    assert!(matches!(cluster.refused(with(&|e| e.lease_term = 2)), Refusal::StaleLeaseTerm { .. }));
    assert!(matches!(cluster.refused(with(&|e| e.expected = Some(epoch(1)))), Refusal::StaleEpoch { .. }));
    assert!(matches!(cluster.refused(with(&|e| e.change = None)), Refusal::Invalid { .. }));
    assert!(matches!(cluster.refused(cluster.evict("db1", 1)), Refusal::Precondition(_)));
    assert!(matches!(cluster.refused(cluster.evict("db1", 3)), Refusal::Precondition(_)));
    assert!(matches!(cluster.refused(cluster.admit("db1", 3)), Refusal::Precondition(_)));
    cluster.done(lost(1, 1));
    assert_eq!(cluster.refused(with(&|_| {})), Refusal::NoLease { number: 1 });
    cluster.done(live(1, 1));
    cluster.done(with(&|_| {}));
}

#[test]
fn the_owner_hands_over_at_once_and_hosts_are_told() {
    let mut cluster = Cluster::of(3);
    cluster.done(replicated(1, "db1", &[1, 2, 3], true));
    let applied = cluster.done(cluster.hand_over("db1", 3, false));
    assert_eq!(additional(&applied), [0x2a06]);
    assert_eq!(cluster.volume("db1").record().owner, 3);
    assert_eq!(cluster.sets("db1")[0], [1, 2, 3]);
    // To whoever has least, of those that are not cordoned.
    cluster.done(replicated(2, "db2", &[2, 1], true));
    cluster.done(cluster.hand_over("db1", 0, false));
    assert_eq!(cluster.volume("db1").record().owner, 1);
    cluster.done(lost(2, 1));
    cluster.done(lost(3, 1));
    assert_eq!(
        cluster.refused(cluster.hand_over("db1", 0, false)).to_string(),
        "volume db1 is not handed over: node node-3 holds no lease; node node-2 holds no lease"
    );
}

#[test]
fn an_owner_whose_replica_has_failed_leaves_the_set_as_it_hands_over() {
    let mut cluster = Cluster::of(2);
    cluster.done(replicated(1, "db1", &[1, 2], true));
    cluster.done(cluster.hand_over("db1", 0, true));
    assert_eq!(cluster.sets("db1"), [vec![2], vec![], vec![1], vec![]]);
    assert_eq!(
        (cluster.volume("db1").record().owner, cluster.volume("db1").record().epoch),
        (2, Some(epoch(4)))
    );
    assert_eq!(
        cluster.refused(cluster.hand_over("db1", 0, true)).to_string(),
        "volume db1 is not handed over: no other node has a copy that is in sync"
    );
}

#[test]
fn a_node_that_rebooted_takes_no_volume_from_one_that_did_not() {
    let mut cluster = Cluster::of(2);
    cluster.done(replicated(1, "db1", &[1, 2], true));
    cluster.done(replicated(2, "log", &[1, 2], false));
    cluster.done(boot(2, 7, 2));
    cluster.done(live(2, 2));
    assert!(cluster.refused(cluster.hand_over("db1", 2, false)).to_string().contains("has rebooted"));
    cluster.done(lost(1, 1));
    assert!(cluster.refused(cluster.promoted("db1", 2)).to_string().contains("has rebooted"));
    // Without a write cache everything that was acknowledged is on its disk.
    let applied = cluster.done(cluster.promoted("log", 2));
    assert_eq!(additional(&applied), [0x2a06]);
}

#[test]
fn when_all_have_rebooted_one_wins_and_hosts_hear_of_the_loss() {
    let mut cluster = Cluster::of(2);
    cluster.done(replicated(1, "db1", &[1, 2], true));
    cluster.done(replicated(2, "log", &[1, 2], false));
    cluster.done(boot(1, 7, 2));
    cluster.done(live(1, 2));
    // Node 2 may still have what node 1 has lost.
    assert!(cluster.refused(cluster.promoted("db1", 1)).to_string().contains("has rebooted"));
    cluster.done(boot(2, 7, 2));
    let applied = cluster.done(cluster.promoted("db1", 1));
    assert_eq!(additional(&applied), [0x2901]);
    let applied = cluster.done(cluster.promoted("log", 1));
    assert_eq!(additional(&applied), Vec::<u32>::new());
}

#[test]
fn a_request_to_hand_over_changes_no_epoch_and_ends_with_the_change_of_owner() {
    let mut cluster = Cluster::of(3);
    cluster.done(replicated(1, "db1", &[1, 2], true));
    let ask = |cluster: &Cluster, to| {
        let record = cluster.volume("db1").record();
        Body::RequestHandOver(records::RequestHandOver {
            volume_id: record.id,
            expected: record.epoch,
            to,
            request: None,
        })
    };
    assert_eq!(
        cluster.refused(ask(&cluster, 3)).to_string(),
        "volume db1 is not moved: node node-3 has no copy that is in sync"
    );
    cluster.done(ask(&cluster, 2));
    let record = cluster.volume("db1").record();
    assert_eq!((record.hand_over_to, record.epoch), (2, Some(epoch(2))));
    cluster.done(cluster.hand_over("db1", 2, false));
    assert_eq!(cluster.volume("db1").record().hand_over_to, 0);
    // To itself: nothing to do.
    cluster.done(ask(&cluster, 2));
    assert_eq!(cluster.volume("db1").record().hand_over_to, 0);
    cluster.done(ask(&cluster, 1));
    cluster.done(cluster.evict("db1", 1));
    assert_eq!(cluster.volume("db1").record().hand_over_to, 0);
}

#[test]
fn a_copy_is_added_and_counts_for_writes_once_all_are_in_sync() {
    let mut cluster = Cluster::of(4);
    cluster.done(replicated(1, "db1", &[1, 2], true));
    assert!(cluster.refused(add_replica("db1", 2, 0)).to_string().ends_with("node node-2 holds one already"));
    cluster.done(add_replica("db1", 3, 0));
    let record = cluster.volume("db1").record();
    assert_eq!((record.replicas, record.min_in_sync), (3, 1));
    cluster.done(cluster.admit("db1", 3));
    assert_eq!(cluster.volume("db1").record().min_in_sync, 2);
    assert!(cluster.refused(add_replica("db1", 4, 0)).to_string().ends_with("the most that are kept"));
    cluster.done(drop_replica("db1", 2, true));
    let record = cluster.volume("db1").record();
    assert_eq!((record.replicas, record.min_in_sync), (2, 1));
    assert_eq!(cluster.sets("db1"), [vec![1, 3], vec![], vec![], vec![2]]);
    // Until it is removed there, no new one.
    assert!(
        cluster.refused(add_replica("db1", 2, 0)).to_string().contains("has not removed its earlier replica")
    );
    cluster.done(removed(1, 2));
    cluster.done(add_replica("db1", 2, 0));
}

#[test]
fn what_writes_need_is_not_given_up() {
    let mut cluster = Cluster::of(3);
    cluster.done(replicated(1, "db1", &[1, 2, 3], true));
    assert!(cluster.refused(drop_replica("db1", 1, true)).to_string().contains("this node owns the volume"));
    cluster.done(cluster.evict("db1", 3));
    let needed = cluster.refused(drop_replica("db1", 2, false)).to_string();
    assert!(needed.contains("1 in sync would be left, and writes need 2"), "{needed}");
    // One copy less is wished for: one is enough then.
    cluster.done(drop_replica("db1", 2, true));
    assert_eq!(cluster.sets("db1"), [vec![1], vec![], vec![3], vec![2]]);
    cluster.done(drop_replica("db1", 3, true));
    assert!(
        cluster.refused(drop_replica("db1", 1, true)).to_string().contains("it is the only copy wished for")
    );
}

#[test]
fn of_three_copies_one_is_moved_in_the_entry_that_admits_its_successor() {
    let mut cluster = Cluster::of(4);
    cluster.done(replicated(1, "db1", &[1, 2, 3], true));
    cluster.done(add_replica("db1", 4, 3));
    assert!(cluster.refused(add_replica("db1", 4, 2)).to_string().contains("holds one already"));
    let before = cluster.volume("db1").config.epoch();
    cluster.done(cluster.admit("db1", 4));
    assert_eq!(cluster.sets("db1"), [vec![1, 2, 4], vec![], vec![], vec![3]]);
    let volume = cluster.volume("db1");
    assert_eq!((volume.config.epoch().number, volume.replicas), (before.number + 2, 3));
    assert!(volume.moves.is_empty());
}

#[test]
fn the_owners_copy_moves_only_after_the_owner() {
    let mut cluster = Cluster::of(4);
    cluster.done(replicated(1, "db1", &[1, 2], true));
    cluster.done(add_replica("db1", 3, 1));
    cluster.done(cluster.admit("db1", 3));
    assert_eq!(cluster.sets("db1"), [vec![1, 2, 3], vec![], vec![], vec![]]);
    cluster.done(cluster.hand_over("db1", 3, false));
    cluster.done(drop_replica("db1", 1, false));
    assert_eq!(cluster.sets("db1"), [vec![2, 3], vec![], vec![], vec![1]]);
    assert_eq!(cluster.volume("db1").replicas, 2);
    assert!(cluster.volume("db1").moves.is_empty());
}

#[test]
fn a_deletion_waits_for_every_copy_wherever_it_is() {
    let mut cluster = Cluster::of(4);
    cluster.done(replicated(1, "db1", &[1, 2, 3], true));
    cluster.done(cluster.evict("db1", 2));
    cluster.done(add_replica("db1", 4, 3));
    cluster.done(cluster.evict("db1", 3));
    cluster.done(drop_replica("db1", 3, false));
    assert_eq!(cluster.sets("db1"), [vec![1], vec![4], vec![2], vec![3]]);
    cluster.done(delete_volume("db1"));
    for number in [1, 3, 4] {
        cluster.done(removed(1, number));
        assert!(cluster.state.volume_by_name("db1").is_some());
    }
    cluster.done(lost(2, 1));
    cluster.done(remove_node(2, 1));
    assert!(cluster.state.volume_by_name("db1").is_none());
}

#[test]
fn a_removed_node_takes_its_absent_copies_with_it() {
    let mut cluster = Cluster::of(3);
    cluster.done(replicated(1, "db1", &[1, 2], true));
    cluster.done(lost(2, 1));
    assert!(cluster.refused(remove_node(2, 1)).to_string().contains("holds a replica of volume db1"));
    cluster.done(cluster.evict("db1", 2));
    cluster.done(remove_node(2, 1));
    assert_eq!(cluster.sets("db1"), [vec![1], vec![], vec![], vec![]]);
    assert_eq!(cluster.volume("db1").copies(), 1);
    assert_eq!(cluster.volume("db1").replicas, 2);
}

#[test]
fn a_copy_that_is_kept_is_not_reported_as_removed() {
    let mut cluster = Cluster::of(3);
    cluster.done(replicated(1, "db1", &[1, 2], true));
    cluster.done(cluster.evict("db1", 2));
    let refusal = cluster.refused(removed(1, 2)).to_string();
    assert_eq!(refusal, "node number 2 keeps its replica of volume db1");
}

#[test]
fn forced_recovery_goes_on_with_one_copy_and_tells_everyone() {
    let mut cluster = Cluster::of(3);
    cluster.done(replicated(1, "db1", &[1, 2], true));
    cluster.done(cluster.evict("db1", 2));
    let able = cluster.refused(cluster.recovered("db1", 2)).to_string();
    assert!(able.contains("node node-1 has a copy that is in sync and serves it"), "{able}");
    cluster.done(lost(1, 1));
    let applied = cluster.done(cluster.recovered("db1", 2));
    assert_eq!(additional(&applied), [0x2a06, 0x2901]);
    assert_eq!(cluster.sets("db1"), [vec![2], vec![], vec![1], vec![]]);
    let record = cluster.volume("db1").record();
    assert_eq!((record.owner, record.epoch), (2, Some(records::Epoch { generation: 1, number: 1 })));
    assert_eq!(applied.audit[0].action, "volume.recover");
    // The old owner comes back as one that catches up.
    cluster.done(live(1, 1));
    cluster.done(cluster.returned("db1", 1));
    assert_eq!(cluster.sets("db1"), [vec![2], vec![1], vec![], vec![]]);
}

#[test]
fn a_node_is_drained_where_everything_can_go_elsewhere() {
    let mut cluster = Cluster::of(3);
    cluster.done(create_volume(1, "db1"));
    let stuck = cluster.refused(drain(1, false)).to_string();
    assert_eq!(
        stuck,
        "node node-1 is not drained: it owns db1, of which no other node has a copy in sync; 'node cordon' keeps new volumes \
         off it"
    );
    let Outcome::Node(node) = cluster.ask(drain(1, true)).unwrap() else { panic!() };
    assert!(node.cordoned && node.draining && node.evacuating);
    assert!(!cluster.state.is_drained(&node));
    assert_eq!(cluster.state.staying(&node), ["owns volume db1: it is being handed over"]);
    cluster.done(add_replica("db1", 2, 1));
    cluster.done(cluster.admit("db1", 2));
    cluster.done(cluster.hand_over("db1", 2, false));
    cluster.done(drop_replica("db1", 1, false));
    cluster.done(removed(1, 1));
    assert!(cluster.state.is_drained(&node));
    let uncordon = records::CordonNode { name: "node-1".to_owned(), ..Default::default() };
    let Outcome::Node(node) = cluster.ask(Body::CordonNode(uncordon)).unwrap() else { panic!() };
    assert!(!node.cordoned && !node.draining && !node.evacuating);
}

#[test]
fn places_are_spread_by_what_nodes_hold() {
    let mut cluster = Cluster::of(3);
    cluster.done(replicated(1, "db1", &[1, 2], true));
    let nodes = |state: &StateMachine, copies| -> Vec<u32> {
        state
            .places(&NewVolume { size_bytes: 1 << 20, copies, volatile: false, checksums: false }, &[])
            .unwrap()
            .iter()
            .map(|place| place.node)
            .collect()
    };
    assert_eq!(nodes(&cluster.state, 1), [3]);
    assert_eq!(nodes(&cluster.state, 2), [3, 1]);
    cluster.done(replicated(2, "db2", &[3, 1], true));
    // Of 2 and 3, which hold one each, 3 owns one.
    assert_eq!(nodes(&cluster.state, 3), [2, 3, 1]);
    assert!(
        cluster
            .state
            .places(&NewVolume { size_bytes: 1 << 20, copies: 4, volatile: false, checksums: false }, &[])
            .unwrap_err()
            .contains("holds a copy already")
    );
}

#[test]
fn old_records_and_new_ones_read_back() {
    let mut cluster = Cluster::of(4);
    cluster.done(replicated(1, "db1", &[1, 2, 3], true));
    cluster.done(cluster.evict("db1", 2));
    cluster.done(add_replica("db1", 4, 2));
    assert_eq!(StateMachine::from_changes(cluster.state.to_changes()), Ok(cluster.state.clone()));
}
