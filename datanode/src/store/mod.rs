//! Where a byte meets the disk: the narrow interface that volumes see, and what implements it.
//!
//! | Looking for | Module |
//! |---|---|
//! | a replica's data as a sparse file | [`file`] |
//! | the same in layers, for snapshots and clones | [`layers`] |
//! | a checksum for each block, verified on every read | [`checked`] |
//! | writes that are done whole or not at all | [`intents`] |
//! | a replica's superblock, activity log and bitmaps | [`metadata`], [`bookkeeping`] says where they lie |
//! | where replicas are kept | [`pool`]; of what it can be made: `directory`, `block`, `memory`, `null` |
//! | threads for what may block | [`io_threads`] |
//!
//! Invariants of every [`Store`]: what was never written, or was unmapped or zeroed, reads as zeroes; a write that
//! returned with [`Durability::OnMedium`], and every write before a [`Store::flush`] that returned, survives a loss of
//! power; once a flush has failed nobody knows what is on the medium, so every later call fails until the
//! replica is opened anew and reconciled.

mod block;
pub mod bookkeeping;
pub(crate) mod buffers;
pub mod checked;
#[cfg(test)]
mod contract_tests;
mod directory;
pub mod file;
pub mod intents;
pub mod io_threads;
pub mod layers;
mod memory;
pub mod metadata;
mod null;
pub mod pool;
#[cfg(test)]
mod pool_tests;
pub mod replica;

use std::io;

use layers::Layered;

/// Whether a read may wait for the medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Only what is in memory; else [`StoreError::WouldBlock`].
    Never,
    /// As long as it takes.
    Allowed,
}

/// When a write counts as done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// In the page cache: survives the process, not the machine.
    Cached,
    /// On the medium.
    OnMedium,
}

/// A run of bytes that are all backed by the medium, or all not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Its length in bytes, never 0.
    pub len: u64,
    /// Whether space is allocated for it.
    pub allocated: bool,
}

/// Space below a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// For new blocks, in bytes.
    pub available_bytes: u64,
    /// Of this store, in bytes.
    pub used_bytes: u64,
}

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Not in memory, and waiting was not allowed. Nothing was done.
    #[error("not in memory")]
    WouldBlock,
    /// The medium is full. Part of a write may have been done.
    #[error("no space left")]
    NoSpace,
    /// The medium lost or refused these bytes.
    #[error("medium error: {0}")]
    Medium(#[source] io::Error),
    /// These bytes are not what was written there. None of them was handed out; all others are well.
    #[error("{len} bytes at {offset} do not fit their checksums")]
    Corrupt {
        /// The first of them.
        offset: u64,
        /// How many.
        len: u64,
    },
    /// Anything else the system reports.
    #[error("input/output failed: {0}")]
    Hardware(#[source] io::Error),
    /// An earlier flush failed: the replica is out of service until it is opened anew and reconciled.
    #[error("out of service since a flush failed")]
    OutOfService,
    /// Beyond the end: the caller's fault.
    #[error("range lies outside of the store")]
    OutOfRange,
}

/// Bytes of one replica. Object-safe; every call may come from any thread. Callers order overlapping writes.
pub trait Store: Send + Sync + std::fmt::Debug {
    /// Capacity in bytes.
    fn size(&self) -> u64;

    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// [`StoreError`]; after `WouldBlock` the buffer's content means nothing.
    fn read_at(&self, offset: u64, buffer: &mut [u8], wait: Wait) -> Result<(), StoreError>;

    /// Writes all of `data` at `offset`.
    ///
    /// # Errors
    /// [`StoreError`]; how much was written is then unknown.
    fn write_at(&self, offset: u64, data: &[u8], durability: Durability) -> Result<(), StoreError>;

    /// True if a cached write there may have to wait for the medium.
    fn write_waits(&self, offset: u64, len: u64) -> bool {
        let _ = (offset, len);
        false
    }

    /// Makes every write that returned before durable.
    ///
    /// # Errors
    /// [`StoreError`]; the store is out of service after that.
    fn flush(&self) -> Result<(), StoreError>;

    /// Gives the space of these bytes back; they read as zeroes.
    ///
    /// # Errors
    /// [`StoreError`]; how much was done is then unknown.
    fn unmap(&self, offset: u64, len: u64) -> Result<(), StoreError>;

    /// Makes these bytes zero and keeps space for them.
    ///
    /// # Errors
    /// [`StoreError`]; how much was done is then unknown.
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), StoreError>;

    /// Which parts of `len` bytes from `offset` have space, in order and without gaps, at most `runs_max` (at least one).
    ///
    /// # Errors
    /// [`StoreError`].
    fn allocation(&self, offset: u64, len: u64, runs_max: usize) -> Result<Vec<Run>, StoreError>;

    /// How much space there is for new blocks, and how much the store uses. Not exact: others use the same space meanwhile.
    ///
    /// # Errors
    /// [`StoreError`].
    fn room(&self) -> Result<Room, StoreError>;

    /// Makes the store larger; the new bytes are zero. Durable when it returns. Less than now changes nothing.
    ///
    /// # Errors
    /// [`StoreError`].
    fn grow(&self, size: u64) -> Result<(), StoreError>;

    /// The same as what can be made a layer of; none where no snapshot can be taken.
    fn as_layered(&self) -> Option<&Layered> {
        None
    }
}

impl<S: Store + ?Sized> Store for std::sync::Arc<S> {
    fn size(&self) -> u64 {
        (**self).size()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8], wait: Wait) -> Result<(), StoreError> {
        (**self).read_at(offset, buffer, wait)
    }

    fn write_at(&self, offset: u64, data: &[u8], durability: Durability) -> Result<(), StoreError> {
        (**self).write_at(offset, data, durability)
    }

    fn write_waits(&self, offset: u64, len: u64) -> bool {
        (**self).write_waits(offset, len)
    }

    fn as_layered(&self) -> Option<&Layered> {
        (**self).as_layered()
    }

    fn flush(&self) -> Result<(), StoreError> {
        (**self).flush()
    }

    fn unmap(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        (**self).unmap(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        (**self).write_zeroes(offset, len)
    }

    fn allocation(&self, offset: u64, len: u64, runs_max: usize) -> Result<Vec<Run>, StoreError> {
        (**self).allocation(offset, len, runs_max)
    }

    fn room(&self) -> Result<Room, StoreError> {
        (**self).room()
    }

    fn grow(&self, size: u64) -> Result<(), StoreError> {
        (**self).grow(size)
    }
}
