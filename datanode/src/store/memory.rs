//! A pool in memory, up to a bound: for volumes that may be lost when the data node stops.
//!
//! What was lost must not come back as zeroes. So a pool notes in the node's state directory for which volumes it has made a replica, and
//! after a restart it makes none for them but as a learner, which gets everything from another copy.
//!
//! Invariants: the note is on the disk before the replica exists; bytes in use never exceed the bound.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use holdfast_replica::ids::{NodeNumber, VolumeId};
use parking_lot::{Mutex, RwLock};

use super::bookkeeping::{Area, Bookkeeping, InMemory};
use super::layers::sync_directory;
use super::pool::{Backend, Fill, PoolError, Space};
use super::replica::{ReplicaError, ReplicaShape};
use super::{Durability, Room, Run, Store, StoreError, Wait};

/// Bytes that are allocated at once.
const CHUNK: u64 = 64 * 1024;
const STRIPES: usize = 16;

/// See the module's invariants.
#[derive(Debug)]
pub(super) struct MemoryPool {
    budget: Arc<Budget>,
    replicas: Mutex<BTreeMap<VolumeId, Known>>,
    /// A file for each volume that had a replica here.
    notes: PathBuf,
}

#[derive(Clone, Debug)]
struct Known {
    bookkeeping: Arc<InMemory>,
    bytes: Arc<Bytes>,
}

#[derive(Debug)]
struct Budget {
    bytes_max: u64,
    used: AtomicU64,
}

impl Budget {
    fn take(&self) -> Result<(), StoreError> {
        let more = |used: u64| used.checked_add(CHUNK).filter(|used| *used <= self.bytes_max);
        match self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more) {
            Ok(_) => Ok(()),
            Err(_) => Err(StoreError::NoSpace),
        }
    }

    fn give_back(&self, chunks: u64) {
        self.used.fetch_sub(chunks.saturating_mul(CHUNK), Ordering::Relaxed);
    }

    fn available(&self) -> u64 {
        self.bytes_max.saturating_sub(self.used.load(Ordering::Relaxed))
    }
}

impl MemoryPool {
    /// Of at most `bytes_max`; `notes` is a folder for it alone, which is made if there is none.
    pub(super) fn open(bytes_max: u64, notes: &Path) -> Result<MemoryPool, PoolError> {
        let place = || format!("notes {}", notes.display());
        let failed = |error| PoolError::Io { place: place(), action: "create", error };
        fs::create_dir_all(notes).map_err(failed)?;
        notes.parent().map_or(Ok(()), sync_directory).map_err(failed)?;
        let budget = Arc::new(Budget { bytes_max, used: AtomicU64::new(0) });
        Ok(MemoryPool { budget, replicas: Mutex::default(), notes: notes.to_path_buf() })
    }

    fn known(&self, volume: VolumeId) -> io::Result<Known> {
        self.replicas.lock().get(&volume).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn note(&self, volume: VolumeId) -> PathBuf {
        self.notes.join(volume.to_string())
    }
}

impl Backend for MemoryPool {
    fn space(&self) -> io::Result<Space> {
        Ok(Space { capacity_bytes: self.budget.bytes_max, free_bytes: self.budget.available() })
    }

    fn replicas(&self) -> io::Result<Vec<VolumeId>> {
        Ok(self.replicas.lock().keys().copied().collect())
    }

    fn has_replica(&self, volume: VolumeId) -> bool {
        self.replicas.lock().contains_key(&volume)
    }

    fn may_begin_empty(&self, volume: VolumeId, is_new: bool) -> bool {
        // Whatever cannot be looked at counts as noted.
        is_new && self.note(volume).try_exists().is_ok_and(|noted| !noted)
    }

    fn create(&self, volume: VolumeId, shape: &ReplicaShape, fill: Fill<'_>) -> Result<(), ReplicaError> {
        if self.has_replica(volume) {
            return Err(ReplicaError::Io(io::ErrorKind::AlreadyExists.into()));
        }
        let bytes = Arc::new(Bytes::new(Arc::clone(&self.budget)));
        if !shape.thin {
            for chunk in 0..shape.bytes().div_ceil(CHUNK) {
                bytes.with_chunk(chunk, |_| ())?;
            }
        }
        let bookkeeping = Arc::new(InMemory::default());
        fill(&*bookkeeping)?;
        fs::File::create(self.note(volume))?.sync_all()?;
        sync_directory(&self.notes)?;
        self.replicas.lock().insert(volume, Known { bookkeeping, bytes });
        Ok(())
    }

    fn bookkeeping(&self, volume: VolumeId) -> io::Result<Box<dyn Bookkeeping>> {
        Ok(Box::new(self.known(volume)?.bookkeeping))
    }

    fn store(&self, volume: VolumeId, size: u64) -> io::Result<Box<dyn Store>> {
        Ok(Box::new(MemoryStore { bytes: self.known(volume)?.bytes, size: AtomicU64::new(size) }))
    }

    fn remove(&self, volume: VolumeId) -> io::Result<()> {
        self.replicas.lock().remove(&volume);
        match fs::remove_file(self.note(volume)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => sync_directory(&self.notes),
        }
    }
}

impl Bookkeeping for Arc<InMemory> {
    fn read(&self, area: Area) -> io::Result<Vec<u8>> {
        (**self).read(area)
    }

    fn write(&self, area: Area, parts: &[(u64, &[u8])]) -> io::Result<()> {
        (**self).write(area, parts)
    }

    fn remove_bitmap(&self, node: NodeNumber) -> io::Result<()> {
        (**self).remove_bitmap(node)
    }

    fn bitmaps(&self) -> io::Result<Vec<NodeNumber>> {
        (**self).bitmaps()
    }
}

/// What was written, in chunks; a chunk that is not there is zero.
#[derive(Debug)]
struct Bytes {
    budget: Arc<Budget>,
    stripes: [RwLock<HashMap<u64, Box<[u8]>>>; STRIPES],
    chunks: AtomicU64,
}

impl Drop for Bytes {
    fn drop(&mut self) {
        self.budget.give_back(self.chunks.load(Ordering::Relaxed));
    }
}

impl Bytes {
    fn new(budget: Arc<Budget>) -> Bytes {
        Bytes { budget, stripes: std::array::from_fn(|_| RwLock::default()), chunks: AtomicU64::new(0) }
    }

    fn stripe(&self, chunk: u64) -> &RwLock<HashMap<u64, Box<[u8]>>> {
        self.stripes.get((chunk % STRIPES as u64) as usize).unwrap_or(&self.stripes[0])
    }

    /// Lets `change` at a chunk, which is made if there is none.
    fn with_chunk(&self, chunk: u64, change: impl FnOnce(&mut [u8])) -> Result<(), StoreError> {
        let mut stripe = self.stripe(chunk).write();
        if let Some(bytes) = stripe.get_mut(&chunk) {
            change(bytes);
            return Ok(());
        }
        self.budget.take()?;
        self.chunks.fetch_add(1, Ordering::Relaxed);
        change(stripe.entry(chunk).or_insert_with(|| vec![0; CHUNK as usize].into_boxed_slice()));
        Ok(())
    }

    fn has(&self, chunk: u64) -> bool {
        self.stripe(chunk).read().contains_key(&chunk)
    }

    fn drop_chunk(&self, chunk: u64) {
        if self.stripe(chunk).write().remove(&chunk).is_some() {
            self.chunks.fetch_sub(1, Ordering::Relaxed);
            self.budget.give_back(1);
        }
    }
}

#[derive(Debug)]
struct MemoryStore {
    bytes: Arc<Bytes>,
    size: AtomicU64,
}

/// What lies within one chunk.
struct Piece {
    chunk: u64,
    /// From the start of the chunk, and from the start of the request.
    from: usize,
    done: usize,
    len: usize,
}

fn pieces(offset: u64, len: u64) -> impl Iterator<Item = Piece> {
    let end = offset.saturating_add(len);
    let mut at = offset;
    std::iter::from_fn(move || {
        let part = (CHUNK - at % CHUNK).min(end.checked_sub(at).filter(|left| *left > 0)?);
        let (chunk, from) = (at / CHUNK, (at % CHUNK) as usize);
        let piece = Piece { chunk, from, done: (at - offset) as usize, len: part as usize };
        at = at.saturating_add(part);
        Some(piece)
    })
}

/// The bytes of a piece in a chunk, or in a request. Pieces never reach out of either.
fn within(bytes: &[u8], from: usize, len: usize) -> &[u8] {
    bytes.get(from..).and_then(|rest| rest.get(..len)).unwrap_or_default()
}

fn within_mut(bytes: &mut [u8], from: usize, len: usize) -> &mut [u8] {
    bytes.get_mut(from..).and_then(|rest| rest.get_mut(..len)).unwrap_or_default()
}

impl MemoryStore {
    fn check(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size() => Ok(()),
            _ => Err(StoreError::OutOfRange),
        }
    }
}

impl Store for MemoryStore {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8], _wait: Wait) -> Result<(), StoreError> {
        self.check(offset, buffer.len() as u64)?;
        for piece in pieces(offset, buffer.len() as u64) {
            let into = within_mut(buffer, piece.done, piece.len);
            match self.bytes.stripe(piece.chunk).read().get(&piece.chunk) {
                Some(chunk) => into.copy_from_slice(within(chunk, piece.from, piece.len)),
                None => into.fill(0),
            }
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8], _durability: Durability) -> Result<(), StoreError> {
        self.check(offset, data.len() as u64)?;
        for piece in pieces(offset, data.len() as u64) {
            self.bytes.with_chunk(piece.chunk, |chunk| {
                let into = within_mut(chunk, piece.from, piece.len);
                into.copy_from_slice(within(data, piece.done, piece.len));
            })?;
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn unmap(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        self.check(offset, len)?;
        for piece in pieces(offset, len) {
            if piece.len as u64 == CHUNK {
                self.bytes.drop_chunk(piece.chunk);
            } else if let Some(chunk) = self.bytes.stripe(piece.chunk).write().get_mut(&piece.chunk) {
                within_mut(chunk, piece.from, piece.len).fill(0);
            }
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        self.check(offset, len)?;
        for piece in pieces(offset, len) {
            self.bytes.with_chunk(piece.chunk, |chunk| within_mut(chunk, piece.from, piece.len).fill(0))?;
        }
        Ok(())
    }

    fn allocation(&self, offset: u64, len: u64, runs_max: usize) -> Result<Vec<Run>, StoreError> {
        self.check(offset, len)?;
        let mut runs: Vec<Run> = Vec::new();
        for piece in pieces(offset, len) {
            let allocated = self.bytes.has(piece.chunk);
            let full = runs.len() >= runs_max.max(1);
            match runs.last_mut() {
                Some(last) if last.allocated == allocated => last.len += piece.len as u64,
                _ if full => break,
                _ => runs.push(Run { len: piece.len as u64, allocated }),
            }
        }
        Ok(runs)
    }

    fn room(&self) -> Result<Room, StoreError> {
        Ok(Room {
            available_bytes: self.bytes.budget.available(),
            used_bytes: self.bytes.chunks.load(Ordering::Relaxed).saturating_mul(CHUNK),
        })
    }

    fn grow(&self, size: u64) -> Result<(), StoreError> {
        self.size.fetch_max(size, Ordering::AcqRel);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: VolumeId = VolumeId([5; 16]);
    const SHAPE: ReplicaShape = ReplicaShape { block_size: 512, blocks: 2048, thin: true, checksums: false };

    #[test]
    fn replica_that_was_lost_with_the_process_never_begins_empty_again() {
        let dir = tempfile::tempdir().unwrap();
        let pool = MemoryPool::open(1 << 20, &dir.path().join("m")).unwrap();
        assert!(pool.may_begin_empty(VOLUME, true) && !pool.may_begin_empty(VOLUME, false));
        pool.create(VOLUME, &SHAPE, &|_| Ok(())).unwrap();
        assert!(pool.has_replica(VOLUME));
        drop(pool);
        let pool = MemoryPool::open(1 << 20, &dir.path().join("m")).unwrap();
        assert!(!pool.has_replica(VOLUME) && !pool.may_begin_empty(VOLUME, true));
        // A learner's replica gets everything from another copy.
        pool.create(VOLUME, &SHAPE, &|_| Ok(())).unwrap();
        pool.remove(VOLUME).unwrap();
        assert!(pool.may_begin_empty(VOLUME, true), "removed is not lost");
    }

    #[test]
    fn bound_holds_for_all_replicas_together_and_removal_gives_room_back() {
        let dir = tempfile::tempdir().unwrap();
        let pool = MemoryPool::open(2 * CHUNK, &dir.path().join("m")).unwrap();
        let other = VolumeId([6; 16]);
        for volume in [VOLUME, other] {
            pool.create(volume, &SHAPE, &|_| Ok(())).unwrap();
            pool.store(volume, SHAPE.bytes()).unwrap().write_at(0, &[1; 512], Durability::Cached).unwrap();
        }
        let store = pool.store(other, SHAPE.bytes()).unwrap();
        assert!(matches!(store.write_at(CHUNK, &[1; 512], Durability::Cached), Err(StoreError::NoSpace)));
        pool.remove(VOLUME).unwrap();
        store.write_at(CHUNK, &[1; 512], Durability::Cached).unwrap();
        assert_eq!(pool.space().unwrap().free_bytes, 0);
        let whole = ReplicaShape { thin: false, ..SHAPE };
        assert!(matches!(
            pool.create(VOLUME, &whole, &|_| Ok(())),
            Err(ReplicaError::Store(StoreError::NoSpace))
        ));
        drop(store);
        pool.remove(other).unwrap();
        assert_eq!(pool.space().unwrap().free_bytes, 2 * CHUNK, "what was refused took nothing");
    }
}
