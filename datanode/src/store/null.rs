//! A pool that keeps nothing: every read gives zeroes, every write is dropped. For measuring what is above the stores.
//!
//! Invariant: the cluster puts only single copies here that are said to be volatile; this module cannot know.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use holdfast_replica::ids::VolumeId;
use parking_lot::Mutex;

use super::bookkeeping::{Bookkeeping, InMemory};
use super::pool::{Backend, Fill, Space};
use super::replica::{ReplicaError, ReplicaShape};
use super::{Durability, Room, Run, Store, StoreError, Wait};

/// What it says of its room, in bytes: 1 PiB.
const CAPACITY: u64 = 1 << 50;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct NullPool {
    replicas: Mutex<BTreeMap<VolumeId, Arc<InMemory>>>,
}

impl Backend for NullPool {
    fn space(&self) -> io::Result<Space> {
        Ok(Space { capacity_bytes: CAPACITY, free_bytes: CAPACITY })
    }

    fn replicas(&self) -> io::Result<Vec<VolumeId>> {
        Ok(self.replicas.lock().keys().copied().collect())
    }

    fn has_replica(&self, volume: VolumeId) -> bool {
        self.replicas.lock().contains_key(&volume)
    }

    fn may_begin_empty(&self, _volume: VolumeId, _is_new: bool) -> bool {
        // It was never anything but zeroes.
        true
    }

    fn create(&self, volume: VolumeId, _shape: &ReplicaShape, fill: Fill<'_>) -> Result<(), ReplicaError> {
        if self.has_replica(volume) {
            return Err(ReplicaError::Io(io::ErrorKind::AlreadyExists.into()));
        }
        let bookkeeping = Arc::new(InMemory::default());
        fill(&*bookkeeping)?;
        self.replicas.lock().insert(volume, bookkeeping);
        Ok(())
    }

    fn bookkeeping(&self, volume: VolumeId) -> io::Result<Box<dyn Bookkeeping>> {
        let found = self.replicas.lock().get(&volume).cloned();
        Ok(Box::new(found.ok_or(io::ErrorKind::NotFound)?))
    }

    fn store(&self, _volume: VolumeId, size: u64) -> io::Result<Box<dyn Store>> {
        Ok(Box::new(NullStore { size: AtomicU64::new(size) }))
    }

    fn remove(&self, volume: VolumeId) -> io::Result<()> {
        self.replicas.lock().remove(&volume);
        Ok(())
    }
}

#[derive(Debug)]
struct NullStore {
    size: AtomicU64,
}

impl NullStore {
    fn check(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size() => Ok(()),
            _ => Err(StoreError::OutOfRange),
        }
    }
}

impl Store for NullStore {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8], _wait: Wait) -> Result<(), StoreError> {
        self.check(offset, buffer.len() as u64)?;
        buffer.fill(0);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8], _durability: Durability) -> Result<(), StoreError> {
        self.check(offset, data.len() as u64)
    }

    fn flush(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn unmap(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        self.check(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        self.check(offset, len)
    }

    fn allocation(&self, offset: u64, len: u64, _runs_max: usize) -> Result<Vec<Run>, StoreError> {
        self.check(offset, len)?;
        Ok(if len == 0 { Vec::new() } else { vec![Run { len, allocated: false }] })
    }

    fn room(&self) -> Result<Room, StoreError> {
        Ok(Room { available_bytes: CAPACITY, used_bytes: 0 })
    }

    fn grow(&self, size: u64) -> Result<(), StoreError> {
        self.size.fetch_max(size, Ordering::AcqRel);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_taken_and_nothing_kept() {
        let pool = NullPool::default();
        let store = pool.store(VolumeId([1; 16]), 4096).unwrap();
        store.write_at(512, &[7; 512], Durability::OnMedium).unwrap();
        let mut bytes = [9; 1024];
        store.read_at(0, &mut bytes, Wait::Never).unwrap();
        assert_eq!(bytes, [0; 1024]);
        assert!(matches!(store.write_at(4096, &[1], Durability::Cached), Err(StoreError::OutOfRange)));
        store.grow(8192).unwrap();
        store.write_at(4096, &[1], Durability::Cached).unwrap();
    }
}
