//! What every kind of pool and store has to keep, tried on each of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_proto::state::PoolKind;
use holdfast_replica::activity_log::ActivityLog;
use holdfast_replica::bitmap::Bitmap;
use holdfast_replica::epoch::Epoch;
use holdfast_replica::ids::{ClusterId, NodeNumber, VolumeId};
use holdfast_replica::secondary::Part;
use holdfast_replica::span::{Shape, Span};

use super::block::tests::{CLUSTER, Platter, open_on};
use super::pool::{Pool, PoolPlace};
use super::replica::{Replica, ReplicaError, ReplicaShape};
use super::{Durability, Run, Store, StoreError, Wait};

const VOLUME: VolumeId = VolumeId([2; 16]);
const MEBI: u64 = 1 << 20;
/// Covers several extents, and ends within one.
const SIZE: u64 = 14 * MEBI;
const SHAPE: ReplicaShape =
    ReplicaShape { block_size: 512, blocks: SIZE / 512, thin: true, checksums: false };
/// Of the pools that have a bound.
const POOL: u64 = 48 * MEBI;

/// One kind of pool.
struct Kind {
    name: &'static str,
    dir: tempfile::TempDir,
    /// In place of a device.
    platter: Option<Platter>,
    place: PoolPlace,
    /// Replicas outlive the process.
    keeps: bool,
    /// Space is given out in pieces of so many bytes.
    unit: u64,
}

impl Kind {
    fn open(&self) -> Pool {
        match &self.platter {
            Some(platter) => {
                Pool::with_backend(Arc::new(open_on(platter).unwrap()), PoolKind::Block, CLUSTER)
            }
            None => Pool::open("p", &self.place, CLUSTER, "node-1", self.dir.path()).unwrap(),
        }
    }

    /// The pool after the end of the process: opened anew, or, where nothing outlives the process, the same one.
    fn opened_again(&self, pool: Pool) -> Pool {
        if self.keeps {
            drop(pool);
            self.open()
        } else {
            pool
        }
    }
}

fn kinds() -> Vec<Kind> {
    let kind = |name, keeps, unit, platter: Option<Platter>, place: fn(&std::path::Path) -> PoolPlace| {
        let dir = tempfile::tempdir().unwrap();
        let place = place(dir.path());
        if let PoolPlace::Device(path) = &place {
            std::fs::File::create(path).unwrap().set_len(POOL).unwrap();
        }
        Kind { name, dir, platter, place, keeps, unit }
    };
    vec![
        kind("file", true, 4096, None, |dir| PoolPlace::Directory(dir.join("pool"))),
        kind("block", true, 4 * MEBI, None, |dir| PoolPlace::Device(dir.join("disk"))),
        kind("block, sectors of 4096", true, 4 * MEBI, Some(Platter::new(POOL, 4096)), |_| {
            PoolPlace::Nothing
        }),
        kind("memory", false, 65536, None, |_| PoolPlace::Memory { bytes_max: POOL }),
    ]
}

fn node(n: u32) -> NodeNumber {
    NodeNumber::new(n).unwrap()
}

fn make(pool: &Pool, volume: VolumeId) -> Replica {
    pool.create_replica(volume, node(1), &SHAPE, ActivityLog::new(vec![node(1)])).unwrap()
}

fn read(store: &dyn Store, at: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0xee; len as usize];
    store.read_at(at, &mut bytes, Wait::Allowed).unwrap();
    bytes
}

fn random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *seed >> 33
}

#[test]
fn store_does_what_plain_bytes_do() {
    for kind in kinds() {
        let pool = kind.open();
        let replica = make(&pool, VOLUME);
        let store = replica.store();
        assert_eq!(store.size(), SIZE);
        let mut model = vec![0; SIZE as usize];
        assert!(read(store, 0, SIZE) == model, "{}: new bytes are not zero", kind.name);
        let mut seed = 7;
        for turn in 0..120_u32 {
            // Near the borders of extents more often than not.
            let middle = (random(&mut seed) % 4) * 4 * MEBI + random(&mut seed) % 65536 * 512 % MEBI;
            let at = middle.saturating_sub(random(&mut seed) % 64 * 512).min(SIZE - 512);
            let len = match turn % 20 {
                19 => 5 * MEBI,
                18 => 4 * MEBI,
                _ => (1 + random(&mut seed) % 40) * 512,
            }
            .min(SIZE - at);
            let range = at as usize..(at + len) as usize;
            match random(&mut seed) % 8 {
                0 => {
                    store.unmap(at, len).unwrap();
                    model[range.clone()].fill(0);
                }
                1 => {
                    store.write_zeroes(at, len).unwrap();
                    model[range.clone()].fill(0);
                }
                2 => store.flush().unwrap(),
                other => {
                    let data: Vec<u8> = (0..len).map(|n| (n / 512) as u8 ^ turn as u8 | 1).collect();
                    let durable = if other < 4 { Durability::OnMedium } else { Durability::Cached };
                    store.write_at(at, &data, durable).unwrap();
                    model[range.clone()].copy_from_slice(&data);
                }
            }
            assert!(read(store, at, len) == model[range], "{}, turn {turn}: {at} + {len}", kind.name);
        }
        assert!(read(store, 0, SIZE) == model, "{}", kind.name);
        // The process ends, and nothing was flushed: what was answered is there.
        drop(replica);
        let pool = kind.opened_again(pool);
        let replica = pool.open_replica(VOLUME, node(1), &SHAPE).unwrap();
        assert!(read(replica.store(), 0, SIZE) == model, "{}: opened again", kind.name);
    }
}

#[test]
fn nothing_reaches_beyond_the_end() {
    for kind in kinds() {
        let pool = kind.open();
        let replica = make(&pool, VOLUME);
        let store = replica.store();
        let one = [1];
        let outside = |done: Result<(), StoreError>| {
            assert!(matches!(done, Err(StoreError::OutOfRange)), "{}: {done:?}", kind.name);
        };
        for at in [SIZE, SIZE + 1, u64::MAX] {
            outside(store.write_at(at, &one, Durability::Cached));
            outside(store.read_at(at, &mut [0], Wait::Allowed));
        }
        outside(store.unmap(SIZE - 1, 2));
        outside(store.write_zeroes(1, u64::MAX));
        outside(store.allocation(0, SIZE + 1, 8).map(|_| ()));
    }
}

#[test]
fn space_follows_what_is_written_and_unmapped() {
    for kind in kinds() {
        let pool = kind.open();
        let replica = make(&pool, VOLUME);
        let (store, unit) = (replica.store(), kind.unit);
        let before = store.room().unwrap();
        assert_eq!(before.used_bytes, 0, "{}", kind.name);
        store.write_at(0, &vec![9; 3 * unit as usize], Durability::OnMedium).unwrap();
        let written = store.room().unwrap();
        assert!(written.used_bytes >= 3 * unit, "{}", kind.name);
        store.unmap(unit, unit).unwrap();
        assert!(store.room().unwrap().used_bytes < written.used_bytes, "{}", kind.name);
        let rest = SIZE - 3 * unit;
        let expected = [(unit, true), (unit, false), (unit, true), (rest, false)];
        let runs = |max| {
            let runs: Vec<Run> = store.allocation(0, SIZE, max).unwrap();
            runs.iter().map(|r| (r.len, r.allocated)).collect::<Vec<_>>()
        };
        assert_eq!(runs(16), expected, "{}", kind.name);
        assert_eq!(runs(2), expected[..2], "{}", kind.name);
        assert_eq!(runs(0), expected[..1], "{}", kind.name);
        // Zeroes that are written keep space, those that are unmapped do not. (A file system tells no data where nothing but zeroes are.)
        store.write_zeroes(unit, unit).unwrap();
        if kind.name != "file" {
            assert_eq!(runs(16), [(3 * unit, true), (rest, false)], "{}", kind.name);
        }
        store.unmap(0, SIZE).unwrap();
        assert_eq!(runs(16), [(SIZE, false)], "{}", kind.name);
        assert_eq!(store.room().unwrap().used_bytes, 0, "{}: the last piece is shorter", kind.name);
    }
}

#[test]
fn larger_store_is_zero_behind_its_old_end() {
    for kind in kinds() {
        let pool = kind.open();
        let replica = make(&pool, VOLUME);
        replica.store().write_at(SIZE - 512, &[1; 512], Durability::Cached).unwrap();
        let larger = ReplicaShape { blocks: SHAPE.blocks + 8192, ..SHAPE };
        replica.grow(larger.blocks).unwrap();
        replica.grow(SHAPE.blocks).unwrap();
        assert_eq!(replica.store().size(), larger.bytes(), "{}", kind.name);
        assert!(read(replica.store(), SIZE, larger.bytes() - SIZE).iter().all(|b| *b == 0), "{}", kind.name);
        replica.store().flush().unwrap();
        drop(replica);
        let replica = pool.open_replica(VOLUME, node(1), &larger).unwrap();
        assert_eq!(read(replica.store(), SIZE - 512, 1024), [[1; 512], [0; 512]].concat(), "{}", kind.name);
        let smaller = pool.open_replica(VOLUME, node(1), &SHAPE);
        assert!(matches!(smaller, Err(ReplicaError::Shape { .. })), "{}", kind.name);
    }
}

#[test]
fn full_pool_is_no_space_and_what_is_there_stays() {
    // A directory is as large as its file system; the file store has a test of its own.
    for kind in kinds().into_iter().filter(|kind| kind.name != "file") {
        let pool = kind.open();
        let volumes: Vec<VolumeId> = (1..=4).map(|n| VolumeId([n; 16])).collect();
        let replicas: BTreeMap<VolumeId, Replica> =
            volumes.iter().map(|volume| (*volume, make(&pool, *volume))).collect();
        let mut full = false;
        for replica in replicas.values() {
            for at in (0..SIZE).step_by(MEBI as usize) {
                match replica.store().write_at(at, &[3; 512], Durability::OnMedium) {
                    Ok(()) => {}
                    Err(StoreError::NoSpace) => full = true,
                    Err(error) => panic!("{}: {error}", kind.name),
                }
            }
        }
        if kind.unit < MEBI {
            // It takes whole chunks to fill it.
            for replica in replicas.values() {
                full |= replica.store().write_zeroes(0, SIZE).is_err();
            }
        } else {
            assert_eq!(read(replicas[&volumes[0]].store(), 0, 512), [3; 512], "{}", kind.name);
        }
        assert!(full, "{}: never full", kind.name);
        assert!(pool.space().unwrap().free_bytes < kind.unit, "{}", kind.name);
        // Room that one gives up another can have, at once.
        let last = replicas[&volumes[3]].store();
        replicas[&volumes[0]].store().unmap(0, 4 * MEBI).unwrap();
        last.write_at(SIZE - 512, &[4; 512], Durability::OnMedium).unwrap();
        assert_eq!(read(last, SIZE - 1024, 1024), [[0; 512], [4; 512]].concat(), "{}", kind.name);
    }
}

#[test]
fn nothing_of_a_removed_volume_is_ever_seen_in_another() {
    for kind in kinds() {
        let pool = kind.open();
        let free = pool.space().unwrap().free_bytes;
        let replica = make(&pool, VOLUME);
        replica.store().write_at(0, &vec![0x77; SIZE as usize], Durability::OnMedium).unwrap();
        replica.retire();
        drop(replica);
        pool.remove_replica(VOLUME).unwrap();
        pool.remove_replica(VOLUME).unwrap();
        assert!(!pool.has_replica(VOLUME), "{}", kind.name);
        if kind.name != "file" {
            assert_eq!(pool.space().unwrap().free_bytes, free, "{}", kind.name);
        }
        for n in 3..=4 {
            let replica = make(&pool, VolumeId([n; 16]));
            for at in (0..SIZE).step_by(2 * MEBI as usize + 1536) {
                match replica.store().write_at(at, &[1; 512], Durability::Cached) {
                    Ok(()) | Err(StoreError::NoSpace) => {}
                    Err(error) => panic!("{}: {error}", kind.name),
                }
            }
            let bytes = read(replica.store(), 0, SIZE);
            assert!(bytes.iter().all(|byte| *byte <= 1), "{}: old bytes are seen", kind.name);
        }
    }
}

#[test]
fn blocks_that_share_a_sector_do_not_harm_each_other() {
    for kind in kinds() {
        let pool = kind.open();
        let replica = make(&pool, VOLUME);
        let store = replica.store();
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                scope.spawn(move || {
                    for turn in 0..50_u64 {
                        let block = turn * 4 + thread;
                        let durability =
                            if turn % 7 == 0 { Durability::OnMedium } else { Durability::Cached };
                        store.write_at(block * 512, &[block as u8; 512], durability).unwrap();
                    }
                });
            }
        });
        for block in 0..200_u64 {
            assert_eq!(read(store, block * 512, 512), [block as u8; 512], "{}", kind.name);
        }
    }
}

#[test]
fn bookkeeping_is_kept_whatever_it_lies_on() {
    for kind in kinds() {
        let pool = kind.open();
        let replica = make(&pool, VOLUME);
        replica.promise(Epoch { generation: 0, number: 9 }).unwrap();
        let shape = Shape::new(SHAPE.blocks, SHAPE.block_size).unwrap();
        let (log, bitmaps) = replica.bookkeeping(shape).unwrap();
        assert!(bitmaps.is_empty(), "{}", kind.name);
        let mut log = log.unwrap();
        log.record(&[1, 3], 1).unwrap();
        let (slot, image) = log.image(VOLUME, crc32c::crc32c_append);
        let mut parts = vec![Part::Log(slot, image)];
        for n in 2..=5 {
            let mut bitmap = Bitmap::new(node(n), shape, false, 1);
            bitmap.mark(Span::new(u64::from(n) * 1024, 1).unwrap(), 1);
            let images = bitmap.images(VOLUME, crc32c::crc32c_append).into_iter();
            parts.extend(images.map(|(slot, image)| Part::Page(node(n), slot, image)));
        }
        replica.persist(&parts).unwrap();
        replica.persist(&[Part::DropBitmap(node(3)), Part::DropBitmap(node(9))]).unwrap();
        drop(replica);
        let pool = kind.opened_again(pool);
        let replica = pool.open_replica(VOLUME, node(1), &SHAPE).unwrap();
        assert_eq!(replica.promised().number, 9, "{}", kind.name);
        let (log, bitmaps) = replica.bookkeeping(shape).unwrap();
        assert_eq!(log.unwrap().entries().map(|e| e.extent).collect::<Vec<_>>(), [1, 3], "{}", kind.name);
        let mut nodes: Vec<u16> = bitmaps.iter().map(|b| b.node().get()).collect();
        nodes.sort_unstable();
        assert_eq!(nodes, [2, 4, 5], "{}", kind.name);
        assert!(bitmaps.iter().all(|b| b.dirty_chunks().count() == 1), "{}", kind.name);
        replica.begin_alone().unwrap();
        let (log, bitmaps) = replica.bookkeeping(shape).unwrap();
        assert_eq!((log.unwrap().entries().count(), bitmaps.len()), (0, 0), "{}", kind.name);
    }
}

#[test]
fn replica_is_made_once_and_for_one_identity() {
    for kind in kinds() {
        let pool = kind.open();
        drop(make(&pool, VOLUME));
        assert_eq!(pool.replicas().unwrap(), [VOLUME], "{}", kind.name);
        let again = pool.create_replica(VOLUME, node(1), &SHAPE, ActivityLog::untrusted());
        assert!(
            matches!(&again, Err(ReplicaError::Io(e)) if e.kind() == std::io::ErrorKind::AlreadyExists),
            "{}: {again:?}",
            kind.name
        );
        let other = pool.open_replica(VOLUME, node(2), &SHAPE);
        assert!(matches!(other, Err(ReplicaError::Foreign { .. })), "{}", kind.name);
        assert!(pool.open_replica(VolumeId([8; 16]), node(1), &SHAPE).is_err(), "{}", kind.name);
        let foreign = ClusterId([6; 16]);
        drop(pool);
        if kind.keeps && kind.platter.is_none() {
            assert!(
                Pool::open("p", &kind.place, foreign, "node-1", kind.dir.path()).is_err(),
                "{}",
                kind.name
            );
        }
    }
}
