//! Volumes that are put back to what snapshots have: all of a request by one entry, or none.

use holdfast_proto::state::{self as records, JobState, MakingPhase, MakingStep};
use holdfast_replica::{epoch::Epoch, ids::VolumeId};

use super::build::*;
use crate::state::{Body, StateMachine};

fn restore(of: &[(&str, &str, u8)], in_use: bool) -> Body {
    let restores = of.iter().map(|(volume, snapshot, id)| records::RestoreOf {
        volume: (*volume).to_owned(),
        snapshot: (*snapshot).to_owned(),
        id: vec![*id; 16],
    });
    Body::RestoreVolumes(records::RestoreVolumes { request: None, restores: restores.collect(), in_use })
}

fn step(id: u8, number: u32, step: MakingStep) -> Body {
    Body::ReportMaking(records::ReportMaking {
        volume_id: vec![id; 16],
        number,
        incarnation: 1,
        step: step.into(),
        message: "disk full".to_owned(),
    })
}

/// Volumes a (of node 1) and b (of node 2) on both nodes, and snapshots sa and sb of them.
fn with_snapshots() -> Cluster {
    let mut cluster = Cluster::new();
    for (id, name, owner, other) in [(1, "a", 1, 2), (2, "b", 2, 1)] {
        let others = vec![records::ReplicaPlace { node: other, pool: "default".to_owned() }];
        let volume = volume_of(id, name, owner, 1 << 20);
        cluster.done(Body::CreateVolume(records::CreateVolume { replicas: 2, others, ..volume }));
    }
    let copies = [("a", 11, "sa"), ("b", 12, "sb")].map(|(source, id, name)| records::CopyOf {
        source: source.to_owned(),
        id: vec![id; 16],
        name: name.to_owned(),
    });
    let make = records::MakeCopies { request: None, copies: copies.to_vec(), clones: false };
    cluster.done(Body::MakeCopies(make));
    cluster.done(step(11, 1, MakingStep::Frozen));
    cluster.done(step(12, 2, MakingStep::Frozen));
    for (id, number) in [(11, 1), (11, 2), (12, 1), (12, 2)] {
        cluster.done(step(id, number, MakingStep::Taken));
    }
    cluster.done(step(11, 1, MakingStep::Confirmed));
    cluster.done(step(12, 2, MakingStep::Confirmed));
    cluster
}

fn phase(cluster: &Cluster, name: &str) -> Option<MakingPhase> {
    cluster.volume(name).restoring.as_ref().map(|restoring| restoring.making.phase)
}

fn epoch(cluster: &Cluster, name: &str) -> Epoch {
    cluster.volume(name).config.epoch()
}

/// Up to the last but one word.
fn nearly(cluster: &mut Cluster) {
    cluster.done(restore(&[("a", "sa", 21), ("b", "sb", 22)], false));
    cluster.done(step(21, 1, MakingStep::Frozen));
    assert_eq!(phase(cluster, "a"), Some(MakingPhase::Freeze));
    cluster.done(step(22, 2, MakingStep::Frozen));
    for (id, number) in [(21, 1), (21, 2), (22, 1)] {
        assert_eq!(phase(cluster, "b"), Some(MakingPhase::Take));
        cluster.done(step(id, number, MakingStep::Taken));
    }
}

/// As before, in a later epoch.
fn given_up(cluster: &Cluster, reason: &str, before: [Epoch; 2]) {
    for (name, before) in ["a", "b"].into_iter().zip(before) {
        let volume = cluster.volume(name);
        assert!(volume.restoring.is_none() && volume.restored.is_none(), "{name}");
        assert!(volume.config.epoch() > before, "{name}: nodes cannot tell that it is given up");
    }
    let job = cluster.state.jobs().find(|job| job.subject == "volume/a" && job.state() == JobState::Failed);
    assert!(job.unwrap().message.contains(reason), "{}", job.unwrap().message);
}

#[test]
fn volumes_are_restored_together_by_the_last_word_of_their_nodes() {
    let mut cluster = with_snapshots();
    let before = [epoch(&cluster, "a"), epoch(&cluster, "b")];
    nearly(&mut cluster);
    assert_eq!([epoch(&cluster, "a"), epoch(&cluster, "b")], before);
    let applied = cluster.done(step(22, 2, MakingStep::Taken));
    for (name, id, before) in [("a", 21, before[0]), ("b", 22, before[1])] {
        let volume = cluster.volume(name);
        assert_eq!((volume.restored, &volume.restoring), (Some(VolumeId([id; 16])), &None));
        assert_eq!(volume.config.epoch(), before.next().unwrap());
        assert!(volume.owner_node().is_some() && volume.config.in_sync().len() == 2);
    }
    // Every nexus of both: UA 28/00.
    let told: Vec<_> =
        applied.commit.unit_attentions.iter().map(|ua| (ua.volume_id[0], ua.additional)).collect();
    assert_eq!(told, [(1, 0x2800), (2, 0x2800)]);
    assert!(applied.commit.unit_attentions.iter().all(|ua| ua.only.is_none() && ua.except.is_none()));
    let again = StateMachine::from_changes(cluster.state.to_changes()).unwrap();
    assert_eq!(again, cluster.state);
}

#[test]
fn whatever_comes_between_leaves_all_of_them_as_they_were() {
    type Hindrance = (&'static str, fn() -> Vec<Body>);
    let hindrances: [Hindrance; 5] = [
        ("disk full", || vec![step(22, 1, MakingStep::Failed)]),
        ("holds no lease any more", || vec![lost(2, 1)]),
        ("snapshot is gone", || vec![delete_volume("sb")]),
        ("restored with it is gone", || vec![delete_volume("b")]),
        ("have changed", || {
            vec![Body::ChangeOwner(records::ChangeOwner {
                volume_id: vec![2; 16],
                expected: Some(records::Epoch { generation: 0, number: 2 }),
                owner: 1,
                owner_incarnation: 1,
                lease_term: 1,
            })]
        }),
    ];
    for (reason, hindrance) in hindrances {
        let mut cluster = with_snapshots();
        let before = [epoch(&cluster, "a"), epoch(&cluster, "b")];
        nearly(&mut cluster);
        hindrance().into_iter().for_each(|body| drop(cluster.done(body)));
        given_up(&cluster, reason, before);
        // The word that was still missing comes too late.
        assert!(cluster.done(step(22, 2, MakingStep::Taken)).commit.changes.is_empty());
    }
}

#[test]
fn copies_that_are_not_in_sync_go_when_the_volume_is_restored() {
    // Their bitmaps tell what they lack of the content that was left.
    let mut cluster = with_snapshots();
    cluster.done(join(3, 1));
    cluster.done(live(3, 1));
    cluster.done(Body::AddReplica(records::AddReplica {
        request: None,
        volume: "a".to_owned(),
        place: Some(records::ReplicaPlace { node: 3, pool: "default".to_owned() }),
        replaces: 0,
        missing: false,
    }));
    assert_eq!(cluster.volume("a").config.learners().len(), 1);
    cluster.done(restore(&[("a", "sa", 21)], false));
    cluster.done(step(21, 1, MakingStep::Frozen));
    cluster.done(step(21, 1, MakingStep::Taken));
    cluster.done(step(21, 2, MakingStep::Taken));
    let volume = cluster.volume("a");
    assert!(volume.restored.is_some() && volume.config.learners().is_empty() && volume.absent.is_empty());
    assert_eq!(volume.removing.iter().map(|m| m.node.get()).collect::<Vec<_>>(), [3]);
}

#[test]
fn what_cannot_be_restored_is_refused_and_nothing_is_begun() {
    let mut cluster = with_snapshots();
    for (wrong, reason) in [
        (restore(&[], false), "1 to 16"),
        (restore(&[("a", "sb", 21)], false), "is no snapshot of it"),
        (restore(&[("a", "b", 21)], false), "is no snapshot of it"),
        (restore(&[("a", "nothing", 21)], false), "does not exist"),
        (restore(&[("a", "sa", 21), ("a", "sa", 22)], false), "named twice"),
        (restore(&[("a", "sa", 1)], false), "something else"),
    ] {
        let refused = cluster.refused(wrong).to_string();
        assert!(refused.contains(reason), "{refused}");
    }
    cluster.done(restore(&[("a", "sa", 21)], false));
    let refused = cluster.refused(restore(&[("a", "sa", 22)], false)).to_string();
    assert!(refused.contains("being restored now"), "{refused}");
    cluster.done(lost(2, 1));
    let refused = cluster.refused(restore(&[("a", "sa", 22)], false)).to_string();
    assert!(refused.contains("holds no lease now"), "{refused}");
}
