//! A replica's data in layers: what snapshots and clones share lies below, what has changed since on top.
//!
//! | Looking for | Module |
//! |---|---|
//! | reading and writing through layers | [`layer`] |
//! | which chunks are a layer's own, on disk | [`present`] |
//! | which files a folder uses, on disk | [`origin`] |
//! | layers of a pool: taken, opened, merged, removed | [`library`] |
//!
//! Taking a snapshot makes what a replica is at that moment a layer, and puts an empty top over it: one for the replica, one for the
//! snapshot. So a write after it touches files of its own replica only; nobody else's copy has to be on the medium before it, and
//! replicas are removed in any order. `docs/snapshots.md` argues it.

mod crash;
#[cfg(test)]
mod crash_tests;
pub mod layer;
pub mod library;
pub mod origin;
pub mod present;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use arc_swap::ArcSwap;

pub(super) use crash::{sync_directory, synced, synced_part};
use layer::Layer;

use super::{Durability, Room, Run, Store, StoreError, Wait};

/// A replica's data: its top and what lies below. See the modules.
#[derive(Debug)]
pub struct Layered(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    folder: PathBuf,
    top: ArcSwap<Layer>,
    /// Held shared by what changes the top, alone by what puts another one in its place.
    gate: RwLock<()>,
}

impl Layered {
    fn new(folder: &Path, top: Layer) -> Layered {
        Layered(Arc::new(Parts {
            folder: folder.to_path_buf(),
            top: ArcSwap::from_pointee(top),
            gate: RwLock::new(()),
        }))
    }

    fn change(&self, what: impl FnOnce(&Layer) -> Result<(), StoreError>) -> Result<(), StoreError> {
        let _shared = self.0.gate.read().unwrap_or_else(PoisonError::into_inner);
        what(&self.0.top.load())
    }

    /// How many layers there are, the top among them.
    pub fn depth(&self) -> usize {
        self.0.top.load().depth()
    }
}

impl Store for Layered {
    fn size(&self) -> u64 {
        self.0.top.load().file.size()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8], wait: Wait) -> Result<(), StoreError> {
        let top = self.0.top.load();
        match offset.checked_add(buffer.len() as u64) {
            Some(end) if end <= top.file.size() => top.read(offset, buffer, wait),
            _ => Err(StoreError::OutOfRange),
        }
    }

    fn write_at(&self, offset: u64, data: &[u8], durability: Durability) -> Result<(), StoreError> {
        self.change(|top| top.write(offset, data, durability))
    }

    fn flush(&self) -> Result<(), StoreError> {
        self.change(Layer::flush)
    }

    fn unmap(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        self.change(|top| top.fill(offset, len, true))
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        self.change(|top| top.fill(offset, len, false))
    }

    fn allocation(&self, offset: u64, len: u64, runs_max: usize) -> Result<Vec<Run>, StoreError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size() => self.0.top.load().allocation(offset, len, runs_max),
            _ => Err(StoreError::OutOfRange),
        }
    }

    fn room(&self) -> Result<Room, StoreError> {
        let top = self.0.top.load();
        // What lies below counts for everyone who reads it.
        Ok(Room { used_bytes: top.used_bytes()?, ..top.file.room()? })
    }

    fn grow(&self, size: u64) -> Result<(), StoreError> {
        self.change(|top| top.grow(size))
    }

    fn write_waits(&self, offset: u64, len: u64) -> bool {
        self.0.top.load().brings_up(offset, len)
    }

    fn as_layered(&self) -> Option<&Layered> {
        Some(self)
    }
}
