//! A disk with a cache, under orders.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::store::{Durability, Run, Store, StoreError, Wait};

#[derive(Debug, Default)]
pub(super) struct Platter {
    /// What a loss of power leaves.
    pub(super) medium: Vec<u8>,
    /// What reads see.
    pub(super) cache: Vec<u8>,
    pub(super) no_space: bool,
    pub(super) write_error: bool,
    pub(super) read_error: bool,
    pub(super) flush_error: bool,
    /// Bytes written since the last look.
    pub(super) written: u64,
}

/// Outlives the process that uses it.
#[derive(Clone, Debug)]
pub(super) struct Disk(Arc<Mutex<Platter>>);

impl Disk {
    pub(super) fn new(len: u64) -> Disk {
        let bytes = vec![0; len as usize];
        Disk(Arc::new(Mutex::new(Platter { medium: bytes.clone(), cache: bytes, ..Platter::default() })))
    }

    pub(super) fn look(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().unwrap()
    }

    /// The power goes, and with it all that was not flushed.
    pub(super) fn lose_power(&self) {
        let mut platter = self.look();
        platter.cache = platter.medium.clone();
    }

    fn range(&self, offset: u64, len: usize) -> Result<std::ops::Range<usize>, StoreError> {
        let end = offset as usize + len;
        if end > self.look().cache.len() { Err(StoreError::OutOfRange) } else { Ok(offset as usize..end) }
    }
}

fn broken() -> StoreError {
    StoreError::Medium(io::Error::from_raw_os_error(5))
}

impl Store for Disk {
    fn size(&self) -> u64 {
        self.look().cache.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8], _wait: Wait) -> Result<(), StoreError> {
        let range = self.range(offset, buffer.len())?;
        let platter = self.look();
        if platter.read_error {
            return Err(broken());
        }
        buffer.copy_from_slice(&platter.cache[range]);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8], durability: Durability) -> Result<(), StoreError> {
        let range = self.range(offset, data.len())?;
        let mut platter = self.look();
        if platter.write_error {
            return Err(broken());
        }
        if platter.no_space {
            return Err(StoreError::NoSpace);
        }
        platter.written += data.len() as u64;
        platter.cache[range.clone()].copy_from_slice(data);
        if durability == Durability::OnMedium {
            platter.medium[range].copy_from_slice(data);
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), StoreError> {
        let mut platter = self.look();
        if platter.flush_error {
            return Err(broken());
        }
        platter.medium = platter.cache.clone();
        Ok(())
    }

    fn unmap(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        let range = self.range(offset, len as usize)?;
        self.look().cache[range].fill(0);
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        self.unmap(offset, len)
    }

    fn allocation(&self, offset: u64, len: u64, _runs_max: usize) -> Result<Vec<Run>, StoreError> {
        let range = self.range(offset, len as usize)?;
        let allocated = self.look().cache[range].iter().any(|byte| *byte != 0);
        Ok(vec![Run { len, allocated }])
    }

    fn room(&self) -> Result<crate::store::Room, StoreError> {
        Ok(crate::store::Room { available_bytes: 1 << 40, used_bytes: self.look().medium.len() as u64 })
    }

    fn grow(&self, size: u64) -> Result<(), StoreError> {
        let mut platter = self.look();
        platter.cache.resize(size as usize, 0);
        platter.medium.resize(size as usize, 0);
        Ok(())
    }
}
