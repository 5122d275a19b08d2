//! Layers on a real directory, against a model that copies everything.

use std::collections::BTreeMap;

use holdfast_replica::activity_log::ActivityLog;
use holdfast_replica::ids::{BootId, ClusterId, NodeNumber, VolumeId};
use proptest::prelude::*;

use super::library::{DEPTH_MAX, Library, TakeError};
use crate::store::pool::{Pool, PoolPlace};
use crate::store::replica::{Replica, ReplicaShape};
use crate::store::{Durability, Wait};

const BLOCK: u64 = 512;
const BLOCKS: u64 = 700;
const CHUNK: u64 = 65536;

fn id(n: u8) -> VolumeId {
    VolumeId([n; 16])
}

fn node() -> NodeNumber {
    NodeNumber::new(1).unwrap()
}

fn shape(blocks: u64) -> ReplicaShape {
    ReplicaShape { block_size: 512, blocks, thin: true, checksums: false }
}

fn log() -> ActivityLog {
    ActivityLog::new(vec![node()])
}

/// In memory where there is such a place: what is flushed here need not survive the test.
pub(super) fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

struct World {
    _dir: tempfile::TempDir,
    pool: Option<Pool>,
    open: BTreeMap<u8, Replica>,
    model: BTreeMap<u8, Vec<u8>>,
    last: u8,
}

impl World {
    fn new() -> World {
        let dir = directory();
        let mut world =
            World { _dir: dir, pool: None, open: BTreeMap::new(), model: BTreeMap::new(), last: 1 };
        world.reopen();
        let replica = world.pool().create_replica(id(1), node(), &shape(BLOCKS), log()).unwrap();
        world.open.insert(1, replica);
        world.model.insert(1, vec![0; (BLOCKS * BLOCK) as usize]);
        world
    }

    fn pool(&self) -> &Pool {
        self.pool.as_ref().unwrap()
    }

    fn reopen(&mut self) {
        self.open.clear();
        self.pool = None;
        let place = PoolPlace::Directory(self._dir.path().join("pool"));
        let pool = Pool::open("p", &place, ClusterId([1; 16]), "n", self._dir.path()).unwrap();
        for (volume, bytes) in &self.model {
            let replica = pool.open_replica(id(*volume), node(), &shape(bytes.len() as u64 / BLOCK)).unwrap();
            self.open.insert(*volume, replica);
        }
        self.pool = Some(pool);
    }

    /// One of those that there are.
    fn any(&self, pick: u8) -> u8 {
        *self.model.keys().nth(usize::from(pick) % self.model.len()).unwrap()
    }

    fn snapshot(&mut self, of: u8) -> u8 {
        self.last += 1;
        let bytes = self.model[&of].clone();
        let shape = shape(bytes.len() as u64 / BLOCK);
        self.pool().take_snapshot(&self.open[&of], id(self.last), node(), &shape, log()).unwrap();
        let replica = self.pool().open_replica(id(self.last), node(), &shape).unwrap();
        self.open.insert(self.last, replica);
        self.model.insert(self.last, bytes);
        self.last
    }

    fn remove(&mut self, volume: u8) {
        self.open.remove(&volume);
        self.model.remove(&volume);
        self.pool().remove_replica(id(volume)).unwrap();
    }

    fn change(&mut self, volume: u8, what: u8, at: u64, len: u64, seed: u8) {
        let (store, bytes) = (self.open[&volume].store(), self.model.get_mut(&volume).unwrap());
        let blocks = bytes.len() as u64 / BLOCK;
        let at = at % blocks * BLOCK;
        let len = (len * BLOCK).min(blocks * BLOCK - at);
        let range = &mut bytes[at as usize..(at + len) as usize];
        match what {
            0 => range.fill(0),
            _ => {
                range.iter_mut().enumerate().for_each(|(n, byte)| *byte = seed.wrapping_add((n / 512) as u8))
            }
        }
        match (what, seed % 3) {
            (0, 0) => store.unmap(at, len).unwrap(),
            (0, _) => store.write_zeroes(at, len).unwrap(),
            (_, 0) => store.write_at(at, range, Durability::OnMedium).unwrap(),
            _ => store.write_at(at, range, Durability::Cached).unwrap(),
        }
    }

    fn check(&self) {
        for (volume, bytes) in &self.model {
            let store = self.open[volume].store();
            let mut found = vec![0xee; bytes.len()];
            store.read_at(0, &mut found, Wait::Allowed).unwrap();
            let wrong = found.chunks(512).zip(bytes.chunks(512)).position(|(a, b)| a != b);
            assert_eq!(wrong, None, "volume {volume} differs at this block");
            let runs = store.allocation(0, bytes.len() as u64, 1000).unwrap();
            assert_eq!(runs.iter().map(|run| run.len).sum::<u64>(), bytes.len() as u64);
            let mut at = 0;
            for run in runs {
                let part = &bytes[at..at + run.len as usize];
                assert!(run.allocated || part.iter().all(|b| *b == 0), "data in a hole at {at}");
                at += part.len();
            }
        }
    }

    fn layers(&self) -> usize {
        std::fs::read_dir(self.pool().directory().unwrap().join("layers")).map_or(0, Iterator::count)
    }
}

#[derive(Clone, Debug)]
enum Step {
    Change(u8, u8, u64, u64, u8),
    Snapshot(u8),
    Remove(u8),
    Grow(u8, u64),
    Merge(u64),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let len = prop_oneof![1..4_u64, 100..300_u64, Just(BLOCKS)];
    prop_oneof![
        8 => (any::<u8>(), 0..4_u8, 0..2 * BLOCKS, len, any::<u8>()).prop_map(|(v, w, a, l, s)| Step::Change(v, w, a, l, s)),
        3 => any::<u8>().prop_map(Step::Snapshot),
        2 => any::<u8>().prop_map(Step::Remove),
        1 => (any::<u8>(), 1..300_u64).prop_map(|(v, b)| Step::Grow(v, b)),
        1 => prop_oneof![Just(CHUNK), Just(u64::MAX)].prop_map(Step::Merge),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn any_history_reads_as_if_every_snapshot_were_a_copy(steps in proptest::collection::vec(step(), 1..40)) {
        let mut world = World::new();
        for step in steps {
            match step {
                Step::Change(v, what, at, len, seed) => world.change(world.any(v), what, at, len, seed),
                Step::Snapshot(v) if world.model.len() < 8 => { world.snapshot(world.any(v)); }
                Step::Snapshot(_) => {}
                Step::Remove(v) if world.model.len() > 1 => world.remove(world.any(v)),
                Step::Remove(_) => {}
                Step::Grow(v, more) => {
                    let volume = world.any(v);
                    let bytes = world.model.get_mut(&volume).unwrap();
                    if bytes.len() as u64 / BLOCK + more < 4 * BLOCKS {
                        bytes.resize(bytes.len() + (more * BLOCK) as usize, 0);
                        world.open[&volume].grow(world.model[&volume].len() as u64 / BLOCK).unwrap();
                    }
                }
                Step::Merge(bytes) => { world.pool().merge_layers(bytes).unwrap(); }
                Step::Reopen => world.reopen(),
            }
            world.check();
        }
        world.reopen();
        world.check();
        for volume in world.model.keys().copied().collect::<Vec<_>>() {
            world.remove(volume);
        }
        prop_assert_eq!(world.layers(), 0);
    }
}

#[test]
fn snapshot_keeps_what_was_and_its_source_goes_on() {
    let mut world = World::new();
    world.change(1, 1, 0, BLOCKS, 7);
    let snapshot = world.snapshot(1);
    world.change(1, 1, 3, 1, 9);
    world.change(1, 0, 128, 128, 0);
    world.check();
    world.remove(1);
    world.check();
    world.reopen();
    world.check();
    assert_eq!((snapshot, world.layers()), (2, 1));
    world.remove(snapshot);
    assert_eq!(world.layers(), 0);
}

#[test]
fn short_write_over_a_layer_takes_a_chunk_and_no_more() {
    let mut world = World::new();
    world.change(1, 1, 0, BLOCKS, 7);
    world.snapshot(1);
    let before = world.open[&1].store().room().unwrap().used_bytes;
    assert!(world.open[&1].store().write_waits(0, 512));
    world.change(1, 1, 0, 1, 8);
    world.open[&1].store().flush().unwrap();
    assert!(!world.open[&1].store().write_waits(512, CHUNK - 512));
    assert!(world.open[&1].store().write_waits(512, CHUNK));
    let used = world.open[&1].store().room().unwrap().used_bytes - before;
    assert!((CHUNK..2 * CHUNK).contains(&used), "{used}");
}

#[test]
fn layer_that_one_lies_on_is_merged_when_that_one_has_grown() {
    let mut world = World::new();
    world.change(1, 1, 0, BLOCKS, 7);
    for _ in 0..5 {
        let snapshot = world.snapshot(1);
        world.change(1, 1, 17, 200, 9);
        world.remove(snapshot);
    }
    assert_eq!(world.layers(), 5);
    while world.pool().merge_layers(CHUNK).unwrap() {
        world.check();
    }
    world.check();
    assert_eq!(world.layers(), 0);
    assert_eq!(world.open[&1].store().as_layered().unwrap().depth(), 1);
    world.change(1, 1, 0, 300, 1);
    world.reopen();
    world.check();
}

#[test]
fn clone_of_an_untouched_snapshot_lies_on_the_same_layer() {
    let mut world = World::new();
    world.change(1, 1, 0, BLOCKS, 7);
    let snapshot = world.snapshot(1);
    let clones = [world.snapshot(snapshot), world.snapshot(snapshot)];
    assert_eq!(world.layers(), 1);
    world.change(clones[0], 1, 5, 10, 3);
    world.check();
    world.remove(snapshot);
    world.check();
}

#[test]
fn layers_have_a_bound_and_reaching_it_changes_nothing() {
    let mut world = World::new();
    for n in 0..DEPTH_MAX as u8 - 1 {
        world.snapshot(1);
        world.change(1, 1, u64::from(n), 1, n);
    }
    let refused = world.pool().take_snapshot(&world.open[&1], id(200), node(), &shape(BLOCKS), log());
    assert!(matches!(refused, Err(TakeError::TooDeep)), "{refused:?}");
    world.check();
    world.change(1, 1, 0, BLOCKS, 1);
    world.check();
}

#[test]
fn taking_it_again_is_no_second_snapshot() {
    let mut world = World::new();
    world.change(1, 1, 0, 8, 7);
    let snapshot = world.snapshot(1);
    world.change(1, 1, 0, 8, 9);
    world.pool().take_snapshot(&world.open[&1], id(snapshot), node(), &shape(BLOCKS), log()).unwrap();
    world.check();
}

#[test]
fn damaged_map_or_origin_is_told_and_removes_no_layer() {
    let mut world = World::new();
    world.change(1, 1, 0, BLOCKS, 7);
    world.snapshot(1);
    let folder = world.pool().directory().unwrap().join(id(2).to_string());
    let origin = std::fs::read(folder.join("origin")).unwrap();
    world.open.clear();
    std::fs::write(folder.join("origin"), b"garbage").unwrap();
    assert!(world.pool().open_replica(id(2), node(), &shape(BLOCKS)).is_err());
    assert!(world.pool().remove_replica(id(1)).is_err());
    assert_eq!(world.layers(), 1);
    std::fs::write(folder.join("origin"), origin).unwrap();
    world.pool().open_replica(id(2), node(), &shape(BLOCKS)).unwrap();
    std::fs::write(folder.join("present-1"), vec![0x55; 8192]).unwrap();
    assert!(world.pool().open_replica(id(2), node(), &shape(BLOCKS)).is_err());
}

#[test]
fn first_write_over_a_layer_of_holes_reads_back() {
    let mut world = World::new();
    world.snapshot(1);
    world.check();
    world.change(1, 1, 0, 1, 7);
    world.check();
}

#[test]
fn layer_stays_while_something_is_about_to_lie_on_it() {
    let dir = directory();
    let library = Library::new(dir.path(), BootId([1; 16]));
    let folder = dir.path().join(id(1).to_string());
    std::fs::create_dir(&folder).unwrap();
    library.create_data(&folder, 1 << 20, false, None).unwrap();
    let data = library.open_data(id(1), &folder, 1 << 20).unwrap();
    let (layer, pin) = library.take(&data, id(2)).unwrap();
    let there = dir.path().join("layers").join(layer.to_string());
    // The one that it was taken of goes before the one that it was taken for has come.
    drop(data);
    std::fs::remove_dir_all(&folder).unwrap();
    library.sweep().unwrap();
    assert!(there.is_dir());
    drop(pin);
    library.sweep().unwrap();
    assert!(!there.exists());
}
