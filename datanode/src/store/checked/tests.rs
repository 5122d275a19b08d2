//! What a checked store does while nobody crashes.

use std::sync::{Arc, Mutex};

use super::disk::{Disk, Machine};
use super::sidecar::{EXTENT, SUMS_AT, UNSETTLED_MAX};
use super::*;

const VOLUME: VolumeId = VolumeId([9; 16]);
const SIZE: u64 = 2 * EXTENT + 3 * BLOCK + 512;

struct World {
    machine: Arc<Mutex<Machine>>,
    data: Disk,
    sums: Disk,
}

fn world(size: u64) -> World {
    let machine = Machine::new(1);
    let (data, sums) = (Disk::new(&machine, size), Disk::new(&machine, file_len(size)));
    create(&sums, VOLUME).unwrap();
    World { machine, data, sums }
}

impl World {
    fn open(&self) -> CheckedStore {
        CheckedStore::open(Box::new(self.data.clone()), Box::new(self.sums.clone()), VOLUME).unwrap()
    }
}

fn read(store: &CheckedStore, offset: u64, len: usize) -> Result<Vec<u8>, StoreError> {
    let mut bytes = vec![0xee; len];
    store.read_at(offset, &mut bytes, Wait::Allowed).map(|()| bytes)
}

fn corrupt(result: Result<Vec<u8>, StoreError>) -> (u64, u64) {
    match result {
        Err(StoreError::Corrupt { offset, len }) => (offset, len),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_was_never_written_reads_as_zeroes() {
    let world = world(SIZE);
    let store = world.open();
    assert_eq!(read(&store, 0, SIZE as usize).unwrap(), vec![0; SIZE as usize]);
    assert!(store.verify(0, SIZE).unwrap().is_empty());
}

#[test]
fn writes_of_any_alignment_read_back_and_verify() {
    let world = world(SIZE);
    let store = world.open();
    let mut model = vec![0_u8; SIZE as usize];
    let writes = [
        (0, 4096),
        (512, 512),
        (4096 - 512, 1024),
        (8192, 65536),
        (EXTENT - 512, 8192),
        (SIZE - 512, 512),
        (SIZE - 4608, 1024),
    ];
    for (n, (offset, len)) in writes.into_iter().enumerate() {
        let durability = if n % 2 == 0 { Durability::Cached } else { Durability::OnMedium };
        let data = vec![n as u8 + 1; len as usize];
        store.write_at(offset, &data, durability).unwrap();
        model[offset as usize..(offset + len) as usize].copy_from_slice(&data);
    }
    store.unmap(8192 + 512, 9000 - 9000 % 512).unwrap();
    model[8704..8704 + 8704].fill(0);
    store.write_zeroes(EXTENT + 512, 4096).unwrap();
    model[(EXTENT + 512) as usize..(EXTENT + 4608) as usize].fill(0);
    assert_eq!(read(&store, 0, SIZE as usize).unwrap(), model);
    assert_eq!(read(&store, 8192 + 1024, 3 * 512).unwrap(), model[9216..9216 + 1536]);
    assert!(store.verify(0, SIZE).unwrap().is_empty());
    store.close();
    let store = world.open();
    assert_eq!(read(&store, 0, SIZE as usize).unwrap(), model);
}

#[test]
fn rot_is_found_and_the_bytes_are_not_handed_out() {
    let world = world(SIZE);
    let store = world.open();
    store.write_at(0, &[7; 65536], Durability::OnMedium).unwrap();
    world.data.rot(3 * BLOCK + 77);
    world.data.rot(4 * BLOCK);
    assert_eq!(corrupt(read(&store, 0, 65536)), (3 * BLOCK, 2 * BLOCK));
    assert_eq!(corrupt(read(&store, 4 * BLOCK - 512, 512)), (4 * BLOCK - 512, 512));
    let mut bytes = [0xee; 4096];
    assert!(store.read_at(3 * BLOCK, &mut bytes, Wait::Allowed).is_err());
    assert_eq!(bytes, [0; 4096]);
    // On the way that may not wait somebody who may has to look.
    assert!(matches!(store.read_at(3 * BLOCK, &mut bytes, Wait::Never), Err(StoreError::WouldBlock)));
    assert_eq!(read(&store, 5 * BLOCK, 4096).unwrap(), vec![7; 4096]);
    assert_eq!(store.verify(0, SIZE).unwrap(), [3, 4]);
    assert_eq!(store.bad_blocks(), [3, 4]);
}

#[test]
fn rot_in_the_checksums_and_in_a_hole_is_found_too() {
    let world = world(SIZE);
    let store = world.open();
    store.write_at(0, &[7; 8192], Durability::OnMedium).unwrap();
    world.sums.rot(SUMS_AT + 5);
    world.data.rot(EXTENT + 9);
    assert_eq!(corrupt(read(&store, 0, 8192)), (BLOCK, BLOCK));
    assert_eq!(corrupt(read(&store, EXTENT, 4096)), (EXTENT, BLOCK));
}

#[test]
fn part_of_a_bad_block_does_not_make_it_good_and_the_whole_of_it_does() {
    let world = world(SIZE);
    let store = world.open();
    store.write_at(0, &[7; 8192], Durability::OnMedium).unwrap();
    world.data.rot(1000);
    store.write_at(512, &[8; 512], Durability::Cached).unwrap();
    assert_eq!(corrupt(read(&store, 0, 8192)), (0, BLOCK));
    store.write_zeroes(0, 512).unwrap();
    store.unmap(3072, 4096).unwrap();
    assert_eq!(corrupt(read(&store, 3072, 512)), (3072, 512));
    store.write_at(0, &[9; 4096], Durability::Cached).unwrap();
    assert_eq!(read(&store, 0, 4096).unwrap(), [9; 4096]);
    assert!(store.bad_blocks().is_empty());
}

#[test]
fn whole_blocks_written_again_mend_data_and_checksums() {
    let world = world(SIZE);
    let store = world.open();
    store.write_at(0, &[7; 8192], Durability::OnMedium).unwrap();
    world.data.rot(1);
    world.sums.rot(SUMS_AT + 4);
    assert_eq!(store.verify(0, 8192).unwrap(), [0, 1]);
    store.write_at(0, &[7; 8192], Durability::OnMedium).unwrap();
    assert_eq!(read(&store, 0, 8192).unwrap(), [7; 8192]);
    assert!(store.bad_blocks().is_empty());
    world.data.rot(SIZE - 1);
    assert_eq!(store.verify(SIZE - 512, 512).unwrap(), [SIZE / BLOCK]);
    store.write_at(SIZE - 512, &[1; 512], Durability::OnMedium).unwrap();
    assert_eq!(read(&store, SIZE - 512, 512).unwrap(), [1; 512]);
}

#[test]
fn nothing_reaches_beyond_the_end_and_growing_keeps_the_last_block() {
    let world = world(SIZE);
    let store = world.open();
    store.write_at(SIZE - 512, &[3; 512], Durability::Cached).unwrap();
    assert!(matches!(
        store.write_at(SIZE - 512, &[1; 1024], Durability::Cached),
        Err(StoreError::OutOfRange)
    ));
    assert!(matches!(read(&store, u64::MAX, 512), Err(StoreError::OutOfRange)));
    store.grow(3 * EXTENT).unwrap();
    assert_eq!(read(&store, SIZE - 512, 512).unwrap(), [3; 512]);
    assert_eq!(read(&store, SIZE, 8192).unwrap(), [0; 8192]);
    store.write_at(3 * EXTENT - 512, &[4; 512], Durability::Cached).unwrap();
    assert!(store.verify(0, 3 * EXTENT).unwrap().is_empty());
}

#[test]
fn after_a_failed_flush_of_either_nothing_is_served() {
    let world = world(SIZE);
    let store = world.open();
    store.write_at(0, &[7; 4096], Durability::Cached).unwrap();
    world.machine.lock().unwrap().fail_flushes = true;
    assert!(matches!(store.flush(), Err(StoreError::Hardware(_))));
    world.machine.lock().unwrap().fail_flushes = false;
    assert!(matches!(store.flush(), Err(StoreError::OutOfService)));
    assert!(matches!(read(&store, 0, 4096), Err(StoreError::OutOfService)));
    assert!(matches!(store.write_at(0, &[7; 4096], Durability::Cached), Err(StoreError::OutOfService)));
}

#[test]
fn full_disk_refuses_the_write_and_spoils_nothing() {
    let world = world(SIZE);
    let store = world.open();
    store.write_at(0, &[7; 8192], Durability::Cached).unwrap();
    world.machine.lock().unwrap().full = true;
    assert!(matches!(store.write_at(EXTENT, &[8; 4096], Durability::Cached), Err(StoreError::NoSpace)));
    world.machine.lock().unwrap().full = false;
    assert_eq!(read(&store, 0, 8192).unwrap(), [7; 8192]);
    assert_eq!(read(&store, EXTENT, 4096).unwrap(), [0; 4096]);
    store.write_at(EXTENT, &[8; 4096], Durability::Cached).unwrap();
    assert!(store.verify(0, SIZE).unwrap().is_empty());
}

#[test]
fn short_writes_wait_for_the_medium_only_where_nothing_was_written_yet() {
    let world = world(SIZE);
    let store = world.open();
    assert!(store.write_waits(0, 4096));
    store.write_at(0, &[7; 4096], Durability::Cached).unwrap();
    assert!(!store.write_waits(8192, 4096));
    assert!(store.write_waits(EXTENT, 4096) && store.write_waits(512, 512));
}

#[test]
fn more_extents_than_the_record_holds_are_flushed_and_settled() {
    let extents = UNSETTLED_MAX as u64 + 40;
    let world = world(extents * EXTENT);
    let store = world.open();
    for extent in 0..extents {
        store.write_at(extent * EXTENT, &[extent as u8; 512], Durability::Cached).unwrap();
    }
    for extent in 0..extents {
        assert_eq!(read(&store, extent * EXTENT, 512).unwrap(), [extent as u8; 512]);
    }
    store.flush().unwrap();
    store.settle().unwrap();
    store.settle().unwrap();
    assert!(store.write_waits(0, 4096));
}

#[test]
fn scrub_mark_outlives_an_orderly_end() {
    let world = world(SIZE);
    let store = world.open();
    let mark = ScrubMark { next_block: 5, finished_unix_ms: 77, request: 3 };
    store.set_scrub_mark(mark).unwrap();
    store.close();
    assert_eq!(world.open().scrub_mark(), mark);
}

#[test]
fn checksums_of_another_volume_are_refused() {
    let world = world(SIZE);
    let (data, sums) = (world.data.clone(), world.sums.clone());
    let opened = CheckedStore::open(Box::new(data), Box::new(sums), VolumeId([1; 16]));
    assert!(opened.unwrap_err().to_string().contains("belongs to volume"));
}

#[test]
fn after_the_orderly_end_nothing_is_served() {
    let world = world(SIZE);
    let store = world.open();
    store.write_at(0, &[7; 4096], Durability::Cached).unwrap();
    store.close();
    assert!(matches!(store.write_at(0, &[8; 4096], Durability::Cached), Err(StoreError::OutOfService)));
    let again = world.open();
    assert!(again.write_waits(0, 4096), "nothing is unsettled");
    // The object that has ended leaves what the new one has recorded alone.
    again.write_at(0, &[9; 4096], Durability::Cached).unwrap();
    store.close();
    drop(store);
    drop(again);
    assert_eq!(read(&world.open(), 0, 4096).unwrap(), [9; 4096]);
}
