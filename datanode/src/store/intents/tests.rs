//! Atomic writes that are stopped at every step, and what an open makes of what is left.

use std::sync::Arc;

use holdfast_replica::ids::NodeNumber;

use super::*;
use crate::store::Room;
use crate::store::bookkeeping::{Area, Bookkeeping, InMemory};

const VOLUME: VolumeId = VolumeId([7; 16]);
const SIZE: usize = 64 * 1024;
const AT: u64 = 1536;
const LEN: usize = 20 * 1024;

/// What a crash leaves: the bytes and the bookkeeping, and how many writes to either are still done. The one after those is torn.
#[derive(Debug)]
struct Machine {
    bytes: Mutex<Vec<u8>>,
    /// Bytes that have no space.
    holes: Mutex<Vec<bool>>,
    place: InMemory,
    writes_left: Mutex<usize>,
    stopped: Mutex<bool>,
    /// Of the torn write, in eighths.
    torn_at: usize,
    full: bool,
}

impl Machine {
    fn new(writes_left: usize, torn_at: usize, full: bool) -> Arc<Machine> {
        let bytes = (0..SIZE).map(|at| if at < SIZE / 4 { at as u8 } else { 0 }).collect();
        Arc::new(Machine {
            bytes: Mutex::new(bytes),
            holes: Mutex::new((0..SIZE).map(|at| at >= SIZE / 4).collect()),
            place: InMemory::default(),
            writes_left: Mutex::new(writes_left),
            stopped: Mutex::new(false),
            torn_at,
            full,
        })
    }

    /// How much of so many bytes is written before the machine stops; once it has, nothing is.
    fn admits(&self, len: usize) -> (usize, bool) {
        let mut left = self.writes_left.lock().unwrap();
        match left.checked_sub(1) {
            Some(fewer) => {
                *left = fewer;
                (len, true)
            }
            None => {
                let torn = !std::mem::replace(&mut *self.stopped.lock().unwrap(), true);
                (if torn { len * self.torn_at / 8 } else { 0 }, false)
            }
        }
    }

    fn metadata(self: &Arc<Machine>) -> Metadata {
        Metadata::new(Box::new(Arc::clone(self)), VOLUME)
    }

    fn content(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().clone()
    }
}

fn stopped() -> io::Error {
    io::Error::other("stopped")
}

impl Bookkeeping for Arc<Machine> {
    fn read(&self, area: Area) -> io::Result<Vec<u8>> {
        self.place.read(area)
    }

    fn write(&self, area: Area, parts: &[(u64, &[u8])]) -> io::Result<()> {
        for (offset, part) in parts {
            let (len, whole) = self.admits(part.len());
            self.place.write(area, &[(*offset, &part[..len])])?;
            if !whole {
                return Err(stopped());
            }
        }
        Ok(())
    }

    fn remove_bitmap(&self, _: NodeNumber) -> io::Result<()> {
        Ok(())
    }

    fn bitmaps(&self) -> io::Result<Vec<NodeNumber>> {
        Ok(Vec::new())
    }
}

impl Store for Machine {
    fn size(&self) -> u64 {
        SIZE as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8], _: Wait) -> Result<(), StoreError> {
        buffer.copy_from_slice(&self.content()[offset as usize..][..buffer.len()]);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8], _: Durability) -> Result<(), StoreError> {
        let (mut len, mut whole) = self.admits(data.len());
        let mut holes = self.holes.lock().unwrap();
        let range = offset as usize..offset as usize + data.len();
        if self.full
            && let Some(hole) = holes[range.clone()].iter().position(|hole| *hole)
        {
            (len, whole) = (hole.min(len), false);
        }
        self.bytes.lock().unwrap()[range.clone()][..len].copy_from_slice(&data[..len]);
        holes[range][..len].fill(false);
        match (whole, self.full) {
            (true, _) => Ok(()),
            (false, true) => Err(StoreError::NoSpace),
            (false, false) => Err(StoreError::Hardware(stopped())),
        }
    }

    fn flush(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn unmap(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        let range = offset as usize..(offset + len) as usize;
        self.bytes.lock().unwrap()[range.clone()].fill(0);
        self.holes.lock().unwrap()[range].fill(true);
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        self.unmap(offset, len)
    }

    fn allocation(&self, offset: u64, len: u64, _: usize) -> Result<Vec<Run>, StoreError> {
        let holes = self.holes.lock().unwrap();
        let runs = holes[offset as usize..(offset + len) as usize].chunk_by(|a, b| a == b);
        Ok(runs.map(|run| Run { len: run.len() as u64, allocated: !run[0] }).collect())
    }

    fn room(&self) -> Result<Room, StoreError> {
        Ok(Room { available_bytes: 0, used_bytes: 0 })
    }

    fn grow(&self, _: u64) -> Result<(), StoreError> {
        Ok(())
    }
}

fn with(before: &[u8], data: &[u8]) -> Vec<u8> {
    let mut after = before.to_vec();
    after[AT as usize..][..data.len()].copy_from_slice(data);
    after
}

#[test]
fn stopped_at_any_step_it_is_done_whole_or_not_at_all() {
    let data = vec![0xa5; LEN];
    for writes_left in 0..5 {
        for torn_at in 0..=8 {
            let machine = Machine::new(writes_left, torn_at, false);
            let before = machine.content();
            let after = with(&before, &data);
            let intents = Intents::default();
            let done = intents.write(&machine.metadata(), &*machine, AT, &data, Durability::OnMedium).is_ok();
            assert_eq!(done, writes_left >= 3, "{writes_left}");
            // The machine comes back.
            *machine.writes_left.lock().unwrap() = usize::MAX;
            finish(&machine.metadata(), &*machine).unwrap();
            let found = machine.content();
            assert!(found == after || (!done && found == before), "{writes_left} writes, {torn_at}/8");
            // And what is written then is not undone by another start.
            machine.write_at(AT, &[1; 512], Durability::OnMedium).unwrap();
            finish(&machine.metadata(), &*machine).unwrap();
            assert_eq!(machine.content(), with(&found, &[1; 512]));
        }
    }
}

#[test]
fn full_disk_leaves_everything_as_it_was() {
    let machine = Machine::new(usize::MAX, 0, true);
    let (before, holes) = (machine.content(), machine.holes.lock().unwrap().clone());
    let write = Intents::default().write(&machine.metadata(), &*machine, AT, &[9; LEN], Durability::OnMedium);
    assert!(matches!(write, Err(Failed::Undone(StoreError::NoSpace))), "{write:?}");
    assert_eq!(machine.content(), before);
    assert_eq!(*machine.holes.lock().unwrap(), holes);
    finish(&machine.metadata(), &*machine).unwrap();
    assert_eq!(machine.content(), before);
}

#[test]
fn what_is_there_already_is_not_written_again() {
    let machine = Machine::new(0, 0, false);
    let same = machine.content()[AT as usize..][..LEN].to_vec();
    let write = Intents::default().write(&machine.metadata(), &*machine, AT, &same, Durability::Cached);
    assert!(write.is_ok(), "{write:?}");
}

#[test]
fn intents_of_another_volume_and_damaged_ones_are_none() {
    let intent = encode(VOLUME, AT, &[3; 512]);
    assert_eq!((intent.len(), Head::decode(&intent, VOLUME).unwrap().whole_len()), (8192, 8192));
    assert!(Head::decode(&intent, VolumeId([8; 16])).is_none());
    for at in [0, 9, 20, 33, 41, 48, 4095] {
        let mut damaged = intent.clone();
        damaged[at] ^= 1;
        assert!(Head::decode(&damaged, VOLUME).is_none(), "{at}");
    }
    let mut torn = intent;
    torn[4096] ^= 1;
    assert!(Head::decode(&torn, VOLUME).unwrap().data(&torn).is_none());
}
