//! A disk in memory that loses power and is cut at any operation, for tests.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::store::{Durability, Room, Run, Store, StoreError, Wait};

const SECTOR: u64 = 512;
type Sector = [u8; SECTOR as usize];

/// What all files of a test share: how many operations they still do, and what is drawn at random.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) operations_left: usize,
    pub(super) operations_done: usize,
    pub(super) fail_flushes: bool,
    pub(super) full: bool,
    random: u64,
}

impl Machine {
    pub(super) fn new(seed: u64) -> Arc<Mutex<Machine>> {
        Arc::new(Mutex::new(Machine {
            operations_left: usize::MAX,
            operations_done: 0,
            fail_flushes: false,
            full: false,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        }))
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % bound.max(1)
    }
}

#[derive(Debug, Default)]
struct State {
    size: u64,
    cache: BTreeMap<u64, Sector>,
    medium: BTreeMap<u64, Sector>,
    dirty: BTreeSet<u64>,
}

/// A file on it. Clones are the same file.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    machine: Arc<Mutex<Machine>>,
    state: Arc<Mutex<State>>,
}

impl Disk {
    pub(super) fn new(machine: &Arc<Mutex<Machine>>, size: u64) -> Disk {
        let state = Arc::new(Mutex::new(State { size, ..State::default() }));
        Disk { machine: Arc::clone(machine), state }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The power goes: of what was not flushed some sectors are on the medium, others are not.
    pub(super) fn lose_power(&self) {
        let mut state = self.lock();
        for sector in std::mem::take(&mut state.dirty) {
            if self.machine.lock().unwrap().below(2) == 0 {
                let content = state.cache.get(&sector).copied().unwrap_or([0; SECTOR as usize]);
                state.medium.insert(sector, content);
            }
        }
        state.cache = state.medium.clone();
    }

    /// Flips a bit behind everybody's back, on the medium and in the cache.
    pub(super) fn rot(&self, offset: u64) {
        let mut state = self.lock();
        let State { cache, medium, .. } = &mut *state;
        for layer in [cache, medium] {
            layer.entry(offset / SECTOR).or_insert([0; SECTOR as usize])[(offset % SECTOR) as usize] ^= 4;
        }
    }

    /// False: the machine is dead. The last operation is done in part.
    fn operate(&self) -> bool {
        let mut machine = self.machine.lock().unwrap();
        machine.operations_done += 1;
        let alive = machine.operations_left > 0;
        machine.operations_left = machine.operations_left.saturating_sub(1);
        alive
    }

    fn put(
        &self,
        offset: u64,
        len: u64,
        byte_at: impl Fn(u64) -> u8,
        durability: Durability,
    ) -> Result<(), StoreError> {
        if self.machine.lock().unwrap().full {
            return Err(StoreError::NoSpace);
        }
        let before = self.machine.lock().unwrap().operations_left;
        let alive = self.operate();
        if before == 0 {
            return Err(dead());
        }
        // The operation at which the machine dies is done for some sectors only.
        let last = self.machine.lock().unwrap().operations_left == 0;
        let mut state = self.lock();
        if offset + len > state.size {
            return Err(StoreError::OutOfRange);
        }
        let mut at = offset;
        while at < offset + len {
            let sector = at / SECTOR;
            let end = ((sector + 1) * SECTOR).min(offset + len);
            if !last || self.machine.lock().unwrap().below(2) == 0 {
                let content = state.cache.entry(sector).or_insert([0; SECTOR as usize]);
                for byte in at..end {
                    content[(byte % SECTOR) as usize] = byte_at(byte - offset);
                }
                let content = *content;
                state.dirty.insert(sector);
                if durability == Durability::OnMedium {
                    state.dirty.remove(&sector);
                    state.medium.insert(sector, content);
                }
            }
            at = end;
        }
        if last || !alive { Err(dead()) } else { Ok(()) }
    }
}

fn dead() -> StoreError {
    StoreError::Hardware(std::io::ErrorKind::BrokenPipe.into())
}

impl Store for Disk {
    fn size(&self) -> u64 {
        self.lock().size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8], _: Wait) -> Result<(), StoreError> {
        let state = self.lock();
        if offset + buffer.len() as u64 > state.size {
            return Err(StoreError::OutOfRange);
        }
        let mut at = offset;
        let end = offset + buffer.len() as u64;
        buffer.fill(0);
        while at < end {
            let sector = at / SECTOR;
            let stop = ((sector + 1) * SECTOR).min(end);
            if let Some(content) = state.cache.get(&sector) {
                let from = (at % SECTOR) as usize;
                buffer[(at - offset) as usize..(stop - offset) as usize]
                    .copy_from_slice(&content[from..from + (stop - at) as usize]);
            }
            at = stop;
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8], durability: Durability) -> Result<(), StoreError> {
        self.put(offset, data.len() as u64, |at| data[at as usize], durability)
    }

    fn flush(&self) -> Result<(), StoreError> {
        if self.machine.lock().unwrap().fail_flushes || !self.operate() {
            return Err(dead());
        }
        if self.machine.lock().unwrap().operations_left == 0 {
            return Err(dead());
        }
        let mut state = self.lock();
        for sector in std::mem::take(&mut state.dirty) {
            let content = state.cache.get(&sector).copied().unwrap_or([0; SECTOR as usize]);
            state.medium.insert(sector, content);
        }
        Ok(())
    }

    fn unmap(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        self.put(offset, len, |_| 0, Durability::Cached)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        self.put(offset, len, |_| 0, Durability::Cached)
    }

    fn allocation(&self, _: u64, len: u64, _: usize) -> Result<Vec<Run>, StoreError> {
        Ok(vec![Run { len, allocated: true }])
    }

    fn room(&self) -> Result<Room, StoreError> {
        Ok(Room { available_bytes: 1 << 40, used_bytes: self.lock().cache.len() as u64 * SECTOR })
    }

    fn grow(&self, size: u64) -> Result<(), StoreError> {
        self.lock().size = size;
        Ok(())
    }
}
