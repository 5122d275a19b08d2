//! Replicas of snapshots and clones that are made while the record says already that they go.

use std::path::Path;
use std::time::{Duration, Instant};

use holdfast_proto::state::{self, MakingPhase, change::Change as Record};

use super::standalone::Standalone;
use crate::view::VolumeId;

const SOURCE: u8 = 1;
const ROUNDS: u8 = 100;

/// A copy of the source, of which the nodes are asked to make their replicas.
fn copy(node: &Standalone, id: u8) -> state::Volume {
    state::Volume {
        origin: Some(state::VolumeOrigin {
            volume_id: vec![SOURCE; 16],
            volume: "source".into(),
            snapshot: true,
            time_unix_ms: 0,
            group: vec![id; 16],
        }),
        making: Some(state::Making {
            phase: MakingPhase::Take.into(),
            source_generation: 0,
            source_epoch: 2,
            members: vec![vec![id; 16]],
            ..Default::default()
        }),
        ..node.volume(id, 1 << 20)
    }
}

fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(60), "waited for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn has(pool: &Path, id: u8) -> bool {
    pool.join(VolumeId([id; 16]).to_string()).is_dir()
}

#[test]
fn what_is_given_up_while_it_is_made_leaves_no_replica() {
    let dir = tempfile::tempdir().unwrap();
    let node = Standalone::start_in("127.0.0.1:0".parse().unwrap(), dir.path(), 1);
    let pool = dir.path().join("pool");
    node.authority.change(vec![Record::Volume(node.volume(SOURCE, 1 << 20))]);
    wait_for("the source", || has(&pool, SOURCE));
    for id in 10..10 + ROUNDS {
        node.authority.change(vec![Record::Volume(copy(&node, id))]);
        let given_up = state::Volume { making: None, deleting: true, ..copy(&node, id) };
        node.authority.change(vec![Record::Volume(given_up)]);
        wait_for("its removal", || node.authority.removed().contains(&VolumeId([id; 16])));
    }
    // It is made after all that may still be under way.
    node.authority.change(vec![Record::Volume(copy(&node, 2))]);
    wait_for("the last one", || has(&pool, 2));
    let left: Vec<u8> = (10..10 + ROUNDS).filter(|id| has(&pool, *id)).collect();
    assert!(left.is_empty(), "replicas of {left:?} were left");
}
