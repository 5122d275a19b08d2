//! Checksums made for new data, and read again at an open.
//!
//! Invariants: what an unsettled extent holds is taken as it is, because a write may have been cut there; what was known to be bad in it
//! stays bad; nothing is served before that is on the medium.

use std::sync::atomic::AtomicBool;

use holdfast_replica::ids::VolumeId;

use super::locks::Locks;
use super::sidecar::{BLOCK, BLOCKS_PER_EXTENT, Head, SLOT_LEN, SUMS_AT, SidecarError, file_len, sum};
use super::unsettled::{Medium, Unsettled};
use super::{CheckedStore, mismatches};
use crate::store::{Durability, Store, StoreError, Wait};

/// Writes the head of a new file of checksums, all of whose bytes are zero, for data that is all zero. Durable when it returns.
///
/// # Errors
/// [`StoreError`].
pub fn create(sums: &dyn Store, volume: VolumeId) -> Result<(), StoreError> {
    for sequence in [0, 1] {
        let head = Head { sequence, ..Head::default() };
        sums.write_at(head.offset(), &head.encode(volume), Durability::OnMedium)?;
    }
    Ok(())
}

/// Bytes of the file of checksums for so many bytes of data.
pub fn sums_len(data_len: u64) -> u64 {
    file_len(data_len)
}

/// Why a checked store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The checksums cannot be used.
    #[error(transparent)]
    Sidecar(#[from] SidecarError),
    /// A store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl CheckedStore {
    /// Opens `data` with its checksums. After a crash it reads the extents again that were being written to, at most 2 GiB. Blocks.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(
        data: Box<dyn Store>,
        sums: Box<dyn Store>,
        volume: VolumeId,
    ) -> Result<CheckedStore, OpenError> {
        let mut slots = vec![0; SUMS_AT as usize];
        sums.read_at(0, &mut slots, Wait::Allowed)?;
        let mut head = Head::newest(volume, &slots)?;
        debug_assert!(slots.len() == 2 * SLOT_LEN);
        let mut store = CheckedStore {
            unsettled: Unsettled::new(&head),
            data,
            sums,
            volume,
            locks: Locks::default(),
            out_of_service: AtomicBool::new(true),
        };
        let mut taken = 0;
        for extent in &head.unsettled {
            taken += store.take_as_it_is(*extent, &head)?;
        }
        let still_bad = store.still_bad(&head)?;
        if !head.unsettled.is_empty() || still_bad != head.bad.iter().copied().collect::<Vec<u64>>() {
            store.data.flush()?;
            store.sums.flush()?;
            tracing::info!(%volume, extents = head.unsettled.len(), blocks = taken, "checksums were computed anew after a stop");
            head.sequence += 1;
            head.unsettled.clear();
            head.bad = still_bad.into_iter().collect();
            store.record(&head)?;
        }
        store.unsettled = Unsettled::new(&head);
        store.out_of_service = AtomicBool::new(false);
        Ok(store)
    }

    /// Gives every block of an extent the checksum of what it holds, but for those that were known to be bad. How many had another one.
    fn take_as_it_is(&self, extent: u64, head: &Head) -> Result<u64, StoreError> {
        let from = extent.saturating_mul(BLOCKS_PER_EXTENT);
        let to = from.saturating_add(BLOCKS_PER_EXTENT).min(self.size().div_ceil(BLOCK));
        if from >= to {
            return Ok(0);
        }
        let blocks = from..to;
        let mut content = vec![0; self.bytes_in(&blocks)];
        match self.data.read_at(from.saturating_mul(BLOCK), &mut content, Wait::Allowed) {
            Ok(()) => {}
            Err(StoreError::Medium(_)) => return self.take_one_by_one(from, to, head),
            Err(error) => return Err(error),
        }
        let sums = self.load_sums(&blocks, Wait::Allowed)?;
        let mut taken = 0;
        for block in mismatches(from, &content, &sums) {
            if head.bad.contains(&block) {
                continue;
            }
            let at = ((block - from) * BLOCK) as usize;
            let end = content.len().min(at + BLOCK as usize);
            let found = sum(content.get(at..end).unwrap_or_default());
            self.store_sums(block, &[found], Durability::Cached)?;
            taken += 1;
        }
        Ok(taken)
    }

    /// The same where some of them cannot be read: those keep their checksums.
    fn take_one_by_one(&self, from: u64, to: u64, head: &Head) -> Result<u64, StoreError> {
        let mut taken = 0;
        for block in (from..to).filter(|block| !head.bad.contains(block)) {
            let mut content = vec![0; self.bytes_in(&(block..block + 1))];
            match self.data.read_at(block.saturating_mul(BLOCK), &mut content, Wait::Allowed) {
                Ok(()) => {
                    self.store_sums(block, &[sum(&content)], Durability::Cached)?;
                    taken += 1;
                }
                Err(StoreError::Medium(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(taken)
    }

    fn still_bad(&self, head: &Head) -> Result<Vec<u64>, StoreError> {
        let mut bad = Vec::new();
        for block in head.bad.iter().copied().filter(|block| *block < self.size().div_ceil(BLOCK)) {
            let one = block..block + 1;
            let mut content = vec![0; self.bytes_in(&one)];
            match self.load(&one, &mut content, Wait::Allowed) {
                Ok(sums) => bad.extend(mismatches(block, &content, &sums)),
                Err(StoreError::Medium(_)) => bad.push(block),
                Err(error) => return Err(error),
            }
        }
        Ok(bad)
    }
}
