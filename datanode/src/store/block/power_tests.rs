//! The power goes at every write and every flush of a history of a block pool, and comes back with any part of what was not flushed.
//!
//! What must hold then: the pool opens; a replica whose making was answered is there, and one whose removal was answered is not; what was
//! flushed is there; no byte of another replica is ever seen; a promise that was answered stands.

use std::collections::BTreeMap;

use holdfast_proto::state::PoolKind;
use holdfast_replica::activity_log::ActivityLog;
use holdfast_replica::bitmap::Bitmap;
use holdfast_replica::epoch::Epoch;
use holdfast_replica::ids::{NodeNumber, VolumeId};
use holdfast_replica::secondary::Part;
use holdfast_replica::span::{Shape, Span};

use super::tests::{CLUSTER, Platter, open_on};
use super::*;
use crate::store::pool::Pool;
use crate::store::replica::Replica;
use crate::store::{Durability, Wait};

const DEVICE: u64 = 40 << 20;
const SHAPE: ReplicaShape =
    ReplicaShape { block_size: 512, blocks: 3 * EXTENT / 512, thin: true, checksums: false };
const BLOCK: u64 = 512;
/// Writes and flushes of the history, at least.
const CUTS_MIN: u64 = 55;
/// Tags of a volume are its number times this, and up.
const TAGS: u8 = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Being {
    Made,
    Kept,
    Removed,
    Gone,
}

/// What was asked for one volume, and what was answered.
#[derive(Clone, Debug)]
struct Expected {
    being: Being,
    promised: u64,
    /// What each block may be: the last flushed value first.
    blocks: BTreeMap<u64, Vec<u8>>,
    bitmap: bool,
}

#[derive(Default)]
struct History {
    volumes: BTreeMap<u8, Expected>,
    open: BTreeMap<u8, Replica>,
}

/// Power is gone.
struct Cut;

fn id(volume: u8) -> VolumeId {
    VolumeId([volume; 16])
}

fn node(n: u32) -> NodeNumber {
    NodeNumber::new(n).unwrap()
}

impl History {
    fn make(&mut self, pool: &Pool, volume: u8) -> Result<(), Cut> {
        let blocks = BTreeMap::new();
        let being = Being::Made;
        self.volumes.insert(volume, Expected { being, promised: 0, blocks, bitmap: false });
        let log = ActivityLog::new(vec![node(1)]);
        let replica = pool.create_replica(id(volume), node(1), &SHAPE, log).map_err(|_| Cut)?;
        self.open.insert(volume, replica);
        self.volumes.get_mut(&volume).unwrap().being = Being::Kept;
        Ok(())
    }

    fn write(&mut self, volume: u8, at: u64, tag: u8, durability: Durability) -> Result<(), Cut> {
        let expected = self.volumes.get_mut(&volume).unwrap().blocks.entry(at).or_insert_with(|| vec![0]);
        let tag = volume * TAGS + tag;
        expected.push(tag);
        let data = [tag; BLOCK as usize];
        self.open[&volume].store().write_at(at, &data, durability).map_err(|_| Cut)?;
        if durability == Durability::OnMedium {
            *self.volumes.get_mut(&volume).unwrap().blocks.get_mut(&at).unwrap() = vec![tag];
        }
        Ok(())
    }

    fn unmap(&mut self, volume: u8, at: u64, len: u64) -> Result<(), Cut> {
        for (_, values) in self.volumes.get_mut(&volume).unwrap().blocks.range_mut(at..at + len) {
            values.push(0);
        }
        self.open[&volume].store().unmap(at, len).map_err(|_| Cut)
    }

    fn flush(&mut self, volume: u8) -> Result<(), Cut> {
        self.open[&volume].store().flush().map_err(|_| Cut)?;
        for values in self.volumes.get_mut(&volume).unwrap().blocks.values_mut() {
            *values = vec![*values.last().unwrap()];
        }
        Ok(())
    }

    fn promise(&mut self, volume: u8, number: u64) -> Result<(), Cut> {
        self.open[&volume].promise(Epoch { generation: 0, number }).map_err(|_| Cut)?;
        self.volumes.get_mut(&volume).unwrap().promised = number;
        Ok(())
    }

    /// Keeps a bitmap with one chunk for the node, then drops it and keeps it for another.
    fn bitmaps(&mut self, volume: u8) -> Result<(), Cut> {
        let shape = Shape::new(SHAPE.blocks, SHAPE.block_size).unwrap();
        let write = |replica: &Replica, n: u32, lba: u64| {
            let mut bitmap = Bitmap::new(node(n), shape, false, 1);
            bitmap.mark(Span::new(lba, 1).unwrap(), 1);
            let images = bitmap.images(id(volume), crc32c::crc32c_append).into_iter();
            let parts: Vec<Part> = images.map(|(slot, image)| Part::Page(node(n), slot, image)).collect();
            replica.persist(&parts).map_err(|_| Cut)
        };
        let replica = &self.open[&volume];
        write(replica, 2, 0)?;
        replica.persist(&[Part::DropBitmap(node(2))]).map_err(|_| Cut)?;
        write(replica, 3, 4096)?;
        self.volumes.get_mut(&volume).unwrap().bitmap = true;
        Ok(())
    }

    fn remove(&mut self, pool: &Pool, volume: u8) -> Result<(), Cut> {
        self.volumes.get_mut(&volume).unwrap().being = Being::Removed;
        self.open.remove(&volume).unwrap().retire();
        pool.remove_replica(id(volume)).map_err(|_| Cut)?;
        self.volumes.get_mut(&volume).unwrap().being = Being::Gone;
        Ok(())
    }

    /// All of it: the pool has eight extents, so what is given up is used again.
    fn run(&mut self, platter: &Platter) -> Result<(), Cut> {
        let pool = pool(platter)?;
        self.make(&pool, 1)?;
        self.promise(1, 1)?;
        self.write(1, 0, 1, Durability::Cached)?;
        self.write(1, EXTENT + 1024, 2, Durability::Cached)?;
        self.flush(1)?;
        self.write(1, 2 * EXTENT, 3, Durability::OnMedium)?;
        self.make(&pool, 2)?;
        self.write(2, 512, 1, Durability::OnMedium)?;
        self.bitmaps(2)?;
        self.unmap(1, EXTENT, EXTENT)?;
        self.write(1, EXTENT + 1024, 4, Durability::Cached)?;
        self.write(2, EXTENT, 2, Durability::Cached)?;
        self.flush(1)?;
        self.unmap(1, 0, EXTENT)?;
        self.write(2, 2 * EXTENT + 4096, 3, Durability::Cached)?;
        self.flush(2)?;
        self.promise(2, 5)?;
        self.unmap(1, 2 * EXTENT, 4096)?;
        self.flush(1)?;
        self.remove(&pool, 1)?;
        self.make(&pool, 3)?;
        for extent in 0..3 {
            self.write(3, extent * EXTENT + 2048, 1, Durability::Cached)?;
        }
        self.flush(3)?;
        self.remove(&pool, 2)
    }

    /// What must hold after any cut.
    fn check(&self, platter: &Platter, when: &str) {
        let pool = pool(platter).ok().unwrap_or_else(|| panic!("{when}: the pool does not open"));
        for (volume, expected) in &self.volumes {
            let there = pool.has_replica(id(*volume));
            match expected.being {
                Being::Kept => assert!(there, "{when}: volume {volume} is lost"),
                Being::Gone => assert!(!there, "{when}: volume {volume} is back"),
                Being::Made | Being::Removed => {}
            }
            if there {
                self.check_volume(&pool, *volume, expected, when);
            }
        }
        // Whatever is free now holds things of others: none of it may be seen.
        let log = ActivityLog::new(vec![node(1)]);
        let Ok(replica) = pool.create_replica(id(7), node(1), &SHAPE, log) else {
            return assert_eq!(pool.space().unwrap().free_bytes, 0, "{when}");
        };
        for extent in 0..3 {
            let _ = replica.store().write_at(extent * EXTENT + 1024, &[0xe0; 512], Durability::OnMedium);
        }
        check_bytes(&replica, 7, when);
    }

    fn check_volume(&self, pool: &Pool, volume: u8, expected: &Expected, when: &str) {
        let replica = pool.open_replica(id(volume), node(1), &SHAPE);
        let replica = replica.unwrap_or_else(|e| panic!("{when}: volume {volume}: {e}"));
        assert!(replica.promised().number >= expected.promised, "{when}: a promise is forgotten");
        check_bytes(&replica, volume, when);
        for (at, values) in &expected.blocks {
            let mut block = [0; BLOCK as usize];
            replica.store().read_at(*at, &mut block, Wait::Allowed).unwrap();
            let ok = values.iter().any(|value| block.iter().all(|byte| byte == value));
            assert!(ok, "{when}: volume {volume} at {at}: {} is none of {values:?}", block[0]);
        }
        let shape = Shape::new(SHAPE.blocks, SHAPE.block_size).unwrap();
        let (log, bitmaps) = replica.bookkeeping(shape).unwrap();
        assert!(log.is_ok(), "{when}: volume {volume}: {log:?}");
        if expected.bitmap {
            assert_eq!(bitmaps.len(), 1, "{when}");
            assert_eq!(bitmaps[0].node(), node(3));
            assert_eq!(bitmaps[0].dirty_chunks().count(), 1, "{when}");
        }
    }
}

/// No byte is another volume's.
fn check_bytes(replica: &Replica, volume: u8, when: &str) {
    let mut bytes = vec![0; EXTENT as usize];
    for extent in 0..3 {
        replica.store().read_at(extent * EXTENT, &mut bytes, Wait::Allowed).unwrap();
        let written = bytes.chunks(512).filter(|block| **block != [0; 512]);
        let foreign = written.flatten().find(|byte| **byte != 0 && **byte / TAGS != volume);
        assert!(foreign.is_none(), "{when}: volume {volume} shows {foreign:?} in extent {extent}");
    }
}

fn pool(platter: &Platter) -> Result<Pool, Cut> {
    let backend = open_on(platter).map_err(|_| Cut)?;
    Ok(Pool::with_backend(Arc::new(backend), PoolKind::Block, CLUSTER))
}

/// Knuth's multiplier; the low bits are of no use.
fn random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *seed >> 33
}

/// Every fourth cut from `first` on, which need not be the first write: so the tests share the work.
fn cut_every_fourth(first: u64) {
    let mut cut = first;
    loop {
        let platter = Platter::new(DEVICE, 512);
        platter.cut_at(cut);
        let mut history = History::default();
        let done = history.run(&platter).is_ok();
        // A discard that was cut does not matter to anyone.
        assert!(done || platter.is_cut());
        history.open.clear();
        // Of what was not flushed some is there; and nothing, or all.
        let all = cut.is_multiple_of(8);
        let copy = platter.copy();
        copy.revive(|| all);
        history.check(&copy, &format!("cut at {cut}, all of what was not flushed: {all}"));
        let mut seed = cut;
        platter.revive(|| random(&mut seed).is_multiple_of(2));
        history.check(&platter, &format!("cut at {cut}, some of what was not flushed"));
        if done {
            break;
        }
        cut += 4;
    }
    // So many it has; fewer would mean that less is tried than it looks.
    assert!(cut >= CUTS_MIN, "{cut}");
}

#[test]
fn power_may_go_at_any_write_or_flush_1() {
    cut_every_fourth(1);
}

#[test]
fn power_may_go_at_any_write_or_flush_2() {
    cut_every_fourth(2);
}

#[test]
fn power_may_go_at_any_write_or_flush_3() {
    cut_every_fourth(3);
}

#[test]
fn power_may_go_at_any_write_or_flush_4() {
    cut_every_fourth(4);
}
