//! Snapshots and clones while they are made: all of a group or none.

use holdfast_proto::state::{self as records, JobState, MakingPhase, MakingStep};
use holdfast_replica::ids::VolumeId;

use super::build::*;
use crate::state::{Body, Outcome, StateMachine};

fn make(copies: &[(&str, u8, &str)], clones: bool) -> Body {
    let copies = copies.iter().map(|(source, id, name)| records::CopyOf {
        source: (*source).to_owned(),
        id: vec![*id; 16],
        name: (*name).to_owned(),
    });
    Body::MakeCopies(records::MakeCopies { request: None, copies: copies.collect(), clones })
}

fn step(id: u8, number: u32, step: MakingStep) -> Body {
    let message = if step == MakingStep::Failed { "disk full".to_owned() } else { String::new() };
    let volume_id = vec![id; 16];
    Body::ReportMaking(records::ReportMaking {
        volume_id,
        number,
        incarnation: 1,
        step: step.into(),
        message,
    })
}

/// Volumes a (owned by node 1) and b (owned by node 2), two copies each.
fn two() -> Cluster {
    let mut cluster = Cluster::new();
    for (id, name, owner, other) in [(1, "a", 1, 2), (2, "b", 2, 1)] {
        let others = vec![records::ReplicaPlace { node: other, pool: "default".to_owned() }];
        let volume = volume_of(id, name, owner, 1 << 20);
        cluster.done(Body::CreateVolume(records::CreateVolume { replicas: 2, others, ..volume }));
    }
    cluster
}

fn phase(cluster: &Cluster, name: &str) -> Option<MakingPhase> {
    cluster.volume(name).making.as_ref().map(|making| making.phase)
}

fn freeze_and_take(cluster: &mut Cluster) {
    cluster.done(make(&[("a", 11, "sa"), ("b", 12, "sb")], false));
    cluster.done(step(11, 1, MakingStep::Frozen));
    assert_eq!(phase(cluster, "sa"), Some(MakingPhase::Freeze));
    cluster.done(step(12, 2, MakingStep::Frozen));
    for id in [11, 12] {
        for number in [1, 2] {
            assert_eq!(phase(cluster, "sa"), Some(MakingPhase::Take));
            cluster.done(step(id, number, MakingStep::Taken));
        }
    }
}

fn gone(cluster: &Cluster, reason: &str) {
    for name in ["sa", "sb"] {
        assert!(cluster.volume(name).deleting && cluster.volume(name).making.is_none(), "{name}");
    }
    let job = cluster.state.jobs().find(|job| job.subject == "volume/sa").unwrap();
    assert_eq!(job.state(), JobState::Failed);
    assert!(job.message.contains(reason), "{}", job.message);
}

#[test]
fn group_is_frozen_taken_and_confirmed_together() {
    let mut cluster = two();
    freeze_and_take(&mut cluster);
    assert_eq!(phase(&cluster, "sb"), Some(MakingPhase::Confirm));
    cluster.done(step(11, 1, MakingStep::Confirmed));
    assert!(phase(&cluster, "sa").is_some(), "one owner has not confirmed");
    cluster.done(step(12, 2, MakingStep::Confirmed));
    for (name, of) in [("sa", "a"), ("sb", "b")] {
        let volume = cluster.volume(name);
        assert!(volume.making.is_none() && !volume.deleting && volume.is_snapshot());
        assert_eq!(volume.origin.as_ref().unwrap().name, of);
        assert_eq!(volume.origin.as_ref().unwrap().group, VolumeId([11; 16]));
        assert_eq!(volume.owner_node(), cluster.volume(of).owner_node());
    }
    let job = cluster.state.jobs().find(|job| job.subject == "volume/sa").unwrap();
    assert_eq!(job.state(), JobState::Done);
    let again = StateMachine::from_changes(cluster.state.to_changes()).unwrap();
    assert_eq!(again, cluster.state);
}

#[test]
fn steps_of_others_too_early_or_told_again_do_nothing() {
    let mut cluster = two();
    cluster.done(make(&[("a", 11, "sa"), ("b", 12, "sb")], false));
    for early in
        [step(11, 2, MakingStep::Frozen), step(11, 1, MakingStep::Taken), step(11, 1, MakingStep::Confirmed)]
    {
        let applied = cluster.done(early);
        assert!(applied.commit.changes.is_empty());
    }
    cluster.done(step(11, 1, MakingStep::Frozen));
    assert!(cluster.done(step(11, 1, MakingStep::Frozen)).commit.changes.is_empty());
    assert!(cluster.done(step(99, 1, MakingStep::Frozen)).commit.changes.is_empty());
    let stale =
        records::ReportMaking { volume_id: vec![12; 16], number: 2, incarnation: 7, ..Default::default() };
    cluster.refused(Body::ReportMaking(stale));
}

#[test]
fn one_failure_gives_up_the_whole_group() {
    let mut cluster = two();
    cluster.done(make(&[("a", 11, "sa"), ("b", 12, "sb")], false));
    cluster.done(step(12, 1, MakingStep::Failed));
    gone(&cluster, "node node-1: disk full");
    for id in [11, 12] {
        for number in [1, 2] {
            cluster.done(removed(id, number));
        }
    }
    assert!(cluster.state.volume_by_name("sa").is_none() && cluster.state.volume_by_name("sb").is_none());
}

#[test]
fn change_of_a_source_or_loss_of_a_node_gives_up_the_whole_group() {
    for until in 0..3 {
        let mut cluster = two();
        cluster.done(make(&[("a", 11, "sa"), ("b", 12, "sb")], false));
        if until > 0 {
            cluster.done(step(11, 1, MakingStep::Frozen));
            cluster.done(step(12, 2, MakingStep::Frozen));
        }
        if until > 1 {
            cluster.done(step(11, 1, MakingStep::Taken));
        }
        cluster.done(lost(2, 1));
        gone(&cluster, "node node-2 holds no lease any more");
    }
    let mut cluster = two();
    freeze_and_take(&mut cluster);
    let epoch = cluster.volume("b").config.epoch();
    cluster.done(Body::ChangeOwner(records::ChangeOwner {
        volume_id: vec![2; 16],
        expected: Some(crate::state::convert::epoch_record(epoch)),
        owner: 1,
        owner_incarnation: 1,
        lease_term: 1,
    }));
    gone(&cluster, "of volume b have changed");
    let mut cluster = two();
    cluster.done(make(&[("a", 11, "sa"), ("b", 12, "sb")], false));
    cluster.done(delete_volume("a"));
    gone(&cluster, "volume a is gone");
    let mut cluster = two();
    cluster.done(make(&[("a", 11, "sa"), ("b", 12, "sb")], false));
    cluster.done(delete_volume("sb"));
    gone(&cluster, "made with it is gone");
}

#[test]
fn clone_needs_a_snapshot_and_no_freeze() {
    let mut cluster = two();
    let refused = cluster.refused(make(&[("a", 13, "ca")], true)).to_string();
    assert!(refused.contains("only a snapshot is cloned"), "{refused}");
    freeze_and_take(&mut cluster);
    let refused = cluster.refused(make(&[("sa", 13, "ca")], true)).to_string();
    assert!(refused.contains("still being made"), "{refused}");
    cluster.done(step(11, 1, MakingStep::Confirmed));
    cluster.done(step(12, 2, MakingStep::Confirmed));
    let refused = cluster.refused(make(&[("sa", 13, "s2")], false)).to_string();
    assert!(refused.contains("clone it instead"), "{refused}");
    let Ok(Outcome::Volume(_)) = cluster.ask(make(&[("sa", 13, "ca")], true)) else { panic!() };
    for number in [1, 2] {
        assert_eq!(phase(&cluster, "ca"), Some(MakingPhase::Take));
        cluster.done(step(13, number, MakingStep::Taken));
    }
    let clone = cluster.volume("ca");
    assert!(clone.making.is_none() && !clone.is_snapshot() && clone.origin.is_some());
}

#[test]
fn what_is_asked_for_wrongly_is_refused_and_nothing_is_begun() {
    let mut cluster = two();
    for wrong in [
        make(&[], false),
        make(&[("a", 11, "s"), ("b", 12, "s")], false),
        make(&[("a", 11, "s"), ("a", 12, "t")], false),
        make(&[("a", 11, "b")], false),
        make(&[("a", 1, "s")], false),
        make(&[("nobody", 11, "s")], false),
        make(&[("a", 11, "-")], false),
    ] {
        cluster.refused(wrong);
    }
    cluster.done(make(&[("a", 11, "sa")], false));
    let refused = cluster.refused(make(&[("a", 12, "again")], false)).to_string();
    assert!(refused.contains("sa is being made of it now"), "{refused}");
    cluster.done(create_host("h", &["iqn.2026-01.org.example:h"]));
    cluster.refused(map("sa", "h", None));
    cluster.done(lost(2, 1));
    let refused = cluster.refused(make(&[("a", 12, "other")], false)).to_string();
    assert!(refused.contains("holds no lease now"), "{refused}");
}

/// Node 2 as after a reboot: with another boot id, and live again.
fn rebooted() -> [Body; 2] {
    let Body::NodeJoin(node) = join(2, 2) else { panic!() };
    [Body::NodeJoin(records::NodeJoin { boot_id: vec![77; 16], ..node }), live(2, 2)]
}

#[test]
fn node_that_was_started_anew_may_lack_what_others_have() {
    // What it had in its page cache is gone, so what it would take now is another point.
    let mut cluster = two();
    rebooted().into_iter().for_each(|body| drop(cluster.done(body)));
    let refused = cluster.refused(make(&[("a", 11, "sa")], false)).to_string();
    assert!(refused.contains("node node-2 was started anew"), "{refused}");
    let mut cluster = two();
    cluster.done(make(&[("a", 11, "sa"), ("b", 12, "sb")], false));
    let [join, _] = rebooted();
    cluster.done(join);
    gone(&cluster, "node-2");
}
