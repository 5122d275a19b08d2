//! A checked store that is cut at each of its operations, by the end of its process or with the power, and opened again.
//!
//! What must hold: a block that was not damaged reads as what was last flushed, or as something that was written since; a block that was
//! damaged reads as nothing at all until it is written as a whole.

use std::sync::{Arc, Mutex};

use super::disk::{Disk, Machine};
use super::sidecar::EXTENT;
use super::*;

const VOLUME: VolumeId = VolumeId([9; 16]);
const SECTOR: u64 = 512;
const SIZE: u64 = 3 * EXTENT;
/// Sectors that are written: 40 blocks over the border of the first two extents.
const FIRST: u64 = (EXTENT - 20 * BLOCK) / SECTOR;
const COUNT: u64 = 40 * BLOCK / SECTOR;
/// Rots while its extent is settled.
const ROTTEN: u64 = 2 * EXTENT + 5 * BLOCK;
/// Rots and is found while its extent is being written to.
const FOUND: u64 = EXTENT + 100 * BLOCK;

/// What each sector may hold after a crash: what is on the medium for sure first, then what was written since.
type Allowed = Vec<Vec<u8>>;

fn note(allowed: &mut Allowed, from: u64, count: u64, value: u8) {
    for sector in &mut allowed[from as usize..(from + count) as usize] {
        sector.push(value);
    }
}

fn keep_last(allowed: &mut Allowed, from: u64, count: u64) {
    for sector in &mut allowed[from as usize..(from + count) as usize] {
        let last = sector.pop().unwrap();
        *sector = vec![last];
    }
}

/// Writes, zeroes, unmaps, flushes, repairs, until it is cut.
fn work(store: &CheckedStore, machine: &Arc<Mutex<Machine>>, allowed: &mut Allowed, steps: u64) {
    for step in 0..steps {
        let draw = |bound| machine.lock().unwrap().below(bound);
        let (kind, aligned) = (draw(10), draw(2) == 0);
        let unit = if aligned { BLOCK / SECTOR } else { 1 };
        let count = (1 + draw(24 / unit)) * unit;
        let from = draw((COUNT - count) / unit + 1) * unit;
        let (offset, len) = ((FIRST + from) * SECTOR, count * SECTOR);
        let value = 1 + (step % 250) as u8;
        let done = match kind {
            0 => {
                let done = store.flush();
                if done.is_ok() {
                    keep_last(allowed, 0, COUNT);
                }
                done
            }
            1 => store.settle(),
            2 | 3 => {
                note(allowed, from, count, 0);
                if kind == 2 { store.unmap(offset, len) } else { store.write_zeroes(offset, len) }
            }
            4 | 5 => {
                note(allowed, from, count, value);
                let done = store.write_at(offset, &vec![value; len as usize], Durability::OnMedium);
                if done.is_ok() {
                    keep_last(allowed, from, count);
                }
                done
            }
            _ => {
                note(allowed, from, count, value);
                store.write_at(offset, &vec![value; len as usize], Durability::Cached)
            }
        };
        if done.is_err() {
            return;
        }
    }
}

fn crash(seed: u64, cut_after: Option<usize>, power: bool) -> usize {
    let machine = Machine::new(seed);
    let (data, sums) = (Disk::new(&machine, SIZE), Disk::new(&machine, file_len(SIZE)));
    create(&sums, VOLUME).unwrap();
    let open = || CheckedStore::open(Box::new(data.clone()), Box::new(sums.clone()), VOLUME);
    let store = open().unwrap();
    for offset in [ROTTEN, FOUND] {
        store.write_at(offset, &[0x55; BLOCK as usize], Durability::OnMedium).unwrap();
    }
    store.close();
    data.rot(ROTTEN + 9);
    data.rot(FOUND + 600);
    let store = open().unwrap();
    let mut allowed = vec![vec![0]; COUNT as usize];
    let before = {
        let mut machine = machine.lock().unwrap();
        machine.operations_left = cut_after.unwrap_or(usize::MAX);
        machine.operations_done
    };
    work(&store, &machine, &mut allowed, 6);
    let mut bytes = vec![0; BLOCK as usize];
    let found = store.read_at(FOUND, &mut bytes, Wait::Allowed);
    let found =
        matches!(found, Err(StoreError::Corrupt { .. })) && machine.lock().unwrap().operations_left > 0;
    // A part of a bad block is written, which it must outlive.
    let _ = store.write_at(FOUND, &[1; SECTOR as usize], Durability::Cached);
    if machine.lock().unwrap().operations_left > 0 {
        work(&store, &machine, &mut allowed, 12);
    }
    let done = machine.lock().unwrap().operations_done - before;
    if cut_after.is_none() {
        return done;
    }
    drop(store);
    machine.lock().unwrap().operations_left = usize::MAX;
    if power {
        data.lose_power();
        sums.lose_power();
    }
    for again in [false, true] {
        let store = open().unwrap();
        for block in 0..COUNT * SECTOR / BLOCK {
            let offset = FIRST * SECTOR + block * BLOCK;
            store
                .read_at(offset, &mut bytes, Wait::Allowed)
                .unwrap_or_else(|error| panic!("seed {seed} cut {cut_after:?} power {power}: {error}"));
            for (n, sector) in bytes.chunks(SECTOR as usize).enumerate() {
                let may = &allowed[(block * BLOCK / SECTOR) as usize + n];
                let holds = may.iter().any(|value| sector.iter().all(|byte| byte == value));
                assert!(holds, "seed {seed} cut {cut_after:?} power {power}: {:?} not of {may:?}", sector[0]);
                if !power && may.len() > 1 && again {
                    // What was written is still there after a process has ended, but for the last write.
                    assert!(may[may.len().saturating_sub(2)..].contains(&sector[0]));
                }
            }
        }
        let rotten = store.read_at(ROTTEN, &mut bytes, Wait::Allowed);
        assert!(
            matches!(rotten, Err(StoreError::Corrupt { .. })),
            "seed {seed} cut {cut_after:?}: rot is hidden"
        );
        if found {
            let hidden = store.read_at(FOUND, &mut bytes, Wait::Allowed);
            assert!(
                matches!(hidden, Err(StoreError::Corrupt { .. })),
                "seed {seed} cut {cut_after:?}: rot is forgotten"
            );
        }
    }
    done
}

#[test]
fn crash_after_every_operation_is_no_rot_and_hides_none() {
    for seed in 1..=4 {
        let operations = crash(seed, None, false);
        assert!(operations > 20, "the work is too short to try anything");
        for cut in 0..operations {
            for power in [false, true] {
                crash(seed, Some(cut), power);
            }
        }
    }
}

#[test]
fn healing_that_is_cut_leaves_a_bad_block_bad_or_good() {
    for power in [false, true] {
        for cut in 0..12 {
            let machine = Machine::new(cut + 1);
            let (data, sums) = (Disk::new(&machine, SIZE), Disk::new(&machine, file_len(SIZE)));
            create(&sums, VOLUME).unwrap();
            let open = || CheckedStore::open(Box::new(data.clone()), Box::new(sums.clone()), VOLUME).unwrap();
            let store = open();
            store.write_at(FOUND, &[0x55; BLOCK as usize], Durability::OnMedium).unwrap();
            store.write_at(FOUND + BLOCK, &[0x66; 512], Durability::Cached).unwrap();
            data.rot(FOUND + 600);
            machine.lock().unwrap().operations_left = cut as usize;
            let _ = store.read_at(FOUND, &mut [0; 512], Wait::Allowed);
            let recorded = machine.lock().unwrap().operations_left > 0;
            let mended = store.write_at(FOUND, &[0x55; BLOCK as usize], Durability::OnMedium).is_ok();
            drop(store);
            machine.lock().unwrap().operations_left = usize::MAX;
            if power {
                data.lose_power();
                sums.lose_power();
            }
            let store = open();
            let mut bytes = [0; BLOCK as usize];
            match store.read_at(FOUND, &mut bytes, Wait::Allowed) {
                Ok(()) if recorded => assert_eq!(bytes, [0x55; BLOCK as usize], "cut {cut} power {power}"),
                // Cut before anybody could write down that it was found.
                Ok(()) => assert!(!mended),
                Err(error) => assert!(!mended && matches!(error, StoreError::Corrupt { .. }), "{error}"),
            }
        }
    }
}
