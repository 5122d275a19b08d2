//! A replica's data as one sparse file, read and written through the page cache.
//!
//! Invariants: one open file description for the life of the process, because the kernel tells a failed write-back
//! only once to each; after a failed flush nothing is served any more (see [`super::Store`]); bytes beyond the end of the
//! file never come into being but by [`Store::grow`].

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::{Errno, ReadWriteFlags};

use super::{Durability, Room, Run, Store, StoreError, Wait, layers};

/// Longest part of a write that the page cache takes at once, in bytes. A folio of the page cache becomes as long as the part that made it,
/// and the file system looks at every block of a folio, however short the write is that comes to lie in it later.
const PART_LEN_MAX: usize = 64 * 1024;
/// Zeroes written at a time where the file system cannot make a range zero by itself.
const ZEROES_LEN: usize = 256 * 1024;
static ZEROES: [u8; ZEROES_LEN] = [0; ZEROES_LEN];

/// The file. See the module's invariants.
#[derive(Debug)]
pub struct FileStore {
    file: File,
    size: AtomicU64,
    out_of_service: AtomicBool,
    /// The file system refused RWF_NOWAIT once; asking again would only cost a system call.
    nowait_refused: AtomicBool,
}

impl FileStore {
    /// Takes an existing file of exactly `size` bytes.
    ///
    /// # Errors
    /// It cannot be opened for reading and writing, or has another size (then `InvalidData`).
    pub fn open(path: &Path, size: u64) -> io::Result<FileStore> {
        let file = File::options().read(true).write(true).open(path)?;
        let found = file.metadata()?.len();
        if found < size {
            let message = format!("{} has {found} bytes instead of {size}", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        Ok(FileStore::new(file, size))
    }

    /// Makes a new file of `size` bytes, all zero; with `reserve` its space is allocated now. Durable when it returns,
    /// but for the entry in its directory.
    ///
    /// # Errors
    /// As the system reports them; `AlreadyExists` if there is such a file.
    pub fn create(path: &Path, size: u64, reserve: bool) -> io::Result<FileStore> {
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        file.set_len(size)?;
        if reserve {
            match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, size) {
                Ok(()) => {}
                Err(Errno::OPNOTSUPP) => tracing::warn!(
                    path = %path.display(),
                    "the file system cannot reserve space: a full disk can hit this volume although it is not thin"
                ),
                Err(e) => return Err(e.into()),
            }
        }
        file.sync_all()?;
        layers::synced(&file);
        Ok(FileStore::new(file, size))
    }

    fn new(file: File, size: u64) -> FileStore {
        FileStore {
            file,
            size: AtomicU64::new(size),
            out_of_service: AtomicBool::new(false),
            nowait_refused: AtomicBool::new(false),
        }
    }

    fn check(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        if self.out_of_service.load(Ordering::Acquire) {
            return Err(StoreError::OutOfService);
        }
        match offset.checked_add(len) {
            Some(end) if end <= self.size() => Ok(()),
            _ => Err(StoreError::OutOfRange),
        }
    }

    fn read_cached(&self, offset: u64, buffer: &mut [u8]) -> Result<(), StoreError> {
        if self.nowait_refused.load(Ordering::Relaxed) {
            return Err(StoreError::WouldBlock);
        }
        let wanted = buffer.len();
        let read =
            rustix::io::preadv2(&self.file, &mut [IoSliceMut::new(buffer)], offset, ReadWriteFlags::NOWAIT);
        match read {
            Ok(n) if n == wanted => Ok(()),
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Err(StoreError::WouldBlock),
            Err(Errno::OPNOTSUPP | Errno::INVAL) => {
                self.nowait_refused.store(true, Ordering::Relaxed);
                Err(StoreError::WouldBlock)
            }
            Err(e) => Err(classify(e.into())),
        }
    }

    /// Writes all, resuming after short writes.
    fn write_all(&self, mut offset: u64, mut data: &[u8], flags: ReadWriteFlags) -> Result<(), StoreError> {
        // One that is flushed at once is flushed once.
        let part_len = if flags.contains(ReadWriteFlags::DSYNC) { data.len() } else { PART_LEN_MAX };
        while !data.is_empty() {
            let part = data.get(..part_len).unwrap_or(data);
            match rustix::io::pwritev2(&self.file, &[IoSlice::new(part)], offset, flags) {
                Ok(0) => return Err(StoreError::NoSpace),
                Ok(n) => {
                    data = data.get(n..).unwrap_or_default();
                    offset = offset.saturating_add(n as u64);
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(classify(e.into())),
            }
        }
        Ok(())
    }

    fn fallocate(&self, mode: FallocateFlags, offset: u64, len: u64) -> Result<bool, StoreError> {
        loop {
            match rustix::fs::fallocate(&self.file, mode | FallocateFlags::KEEP_SIZE, offset, len) {
                Ok(()) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP) => return Ok(false),
                Err(e) => return Err(classify(e.into())),
            }
        }
    }

    fn write_zero_bytes(&self, mut offset: u64, mut len: u64) -> Result<(), StoreError> {
        while len > 0 {
            let part = len.min(ZEROES_LEN as u64);
            let zeroes = ZEROES.get(..part as usize).unwrap_or(&ZEROES);
            self.write_all(offset, zeroes, ReadWriteFlags::empty())?;
            offset = offset.saturating_add(part);
            len -= part;
        }
        Ok(())
    }

    fn give_up(&self, error: &io::Error) {
        self.out_of_service.store(true, Ordering::Release);
        tracing::error!(%error, "a flush failed: the replica is out of service until it is opened anew");
    }

    /// Where the run that `offset` lies in ends, and whether it is data.
    fn run_at(&self, offset: u64, end: u64) -> Result<Run, StoreError> {
        let run =
            |to: u64, allocated| Run { len: to.clamp(offset.saturating_add(1), end) - offset, allocated };
        match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
            Ok(data) if data > offset => Ok(run(data, false)),
            Ok(_) => match rustix::fs::seek(&self.file, SeekFrom::Hole(offset)) {
                Ok(hole) => Ok(run(hole, true)),
                Err(e) => Err(classify(e.into())),
            },
            Err(Errno::NXIO) => Ok(run(end, false)),
            // A file system that knows no holes: all is data.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(run(end, true)),
            Err(e) => Err(classify(e.into())),
        }
    }
}

/// Whose fault an error of the system is.
pub(super) fn classify(error: io::Error) -> StoreError {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => StoreError::NoSpace,
        Some(Errno::IO | Errno::UCLEAN | Errno::BADMSG | Errno::ILSEQ) => StoreError::Medium(error),
        _ => StoreError::Hardware(error),
    }
}

impl Store for FileStore {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8], wait: Wait) -> Result<(), StoreError> {
        self.check(offset, buffer.len() as u64)?;
        if buffer.is_empty() {
            return Ok(());
        }
        match wait {
            Wait::Never => self.read_cached(offset, buffer),
            Wait::Allowed => self.file.read_exact_at(buffer, offset).map_err(classify),
        }
    }

    fn write_at(&self, offset: u64, data: &[u8], durability: Durability) -> Result<(), StoreError> {
        self.check(offset, data.len() as u64)?;
        let flags = match durability {
            Durability::Cached => ReadWriteFlags::empty(),
            Durability::OnMedium => ReadWriteFlags::DSYNC,
        };
        let done = self.write_all(offset, data, flags);
        if let (Durability::OnMedium, Err(StoreError::Medium(e) | StoreError::Hardware(e))) =
            (durability, &done)
        {
            // The write-back inside a synchronous write is a flush: once it failed the pages count as clean.
            self.give_up(e);
        }
        if done.is_ok() && durability == Durability::OnMedium {
            layers::synced_part(&self.file, offset, data.len());
        }
        done
    }

    fn flush(&self) -> Result<(), StoreError> {
        self.check(0, 0)?;
        match rustix::fs::fdatasync(&self.file) {
            Ok(()) => {
                layers::synced(&self.file);
                Ok(())
            }
            Err(e) => {
                let e = io::Error::from(e);
                self.give_up(&e);
                Err(classify(e))
            }
        }
    }

    fn unmap(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        self.check(offset, len)?;
        if len == 0 || self.fallocate(FallocateFlags::PUNCH_HOLE, offset, len)? {
            return Ok(());
        }
        self.write_zero_bytes(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        self.check(offset, len)?;
        if len == 0 || self.fallocate(FallocateFlags::ZERO_RANGE, offset, len)? {
            return Ok(());
        }
        self.write_zero_bytes(offset, len)
    }

    fn allocation(&self, offset: u64, len: u64, runs_max: usize) -> Result<Vec<Run>, StoreError> {
        self.check(offset, len)?;
        let end = offset.saturating_add(len);
        let mut runs: Vec<Run> = Vec::new();
        let mut at = offset;
        while at < end {
            let run = self.run_at(at, end)?;
            at = at.saturating_add(run.len);
            let full = runs.len() >= runs_max.max(1);
            match runs.last_mut() {
                Some(last) if last.allocated == run.allocated => last.len += run.len,
                _ if full => break,
                _ => runs.push(run),
            }
        }
        Ok(runs)
    }

    fn room(&self) -> Result<Room, StoreError> {
        /// What `st_blocks` counts in, in bytes.
        const STAT_BLOCK: u64 = 512;
        let failed = |e: Errno| classify(e.into());
        let space = rustix::fs::fstatvfs(&self.file).map_err(failed)?;
        let file = rustix::fs::fstat(&self.file).map_err(failed)?;
        Ok(Room {
            available_bytes: space.f_bavail.saturating_mul(space.f_frsize),
            used_bytes: u64::try_from(file.st_blocks).unwrap_or(0).saturating_mul(STAT_BLOCK),
        })
    }

    fn grow(&self, size: u64) -> Result<(), StoreError> {
        self.check(0, 0)?;
        if size <= self.size() {
            return Ok(());
        }
        if self.file.metadata().map_err(classify)?.len() < size {
            self.file.set_len(size).map_err(classify)?;
        }
        match self.file.sync_all() {
            Ok(()) => {
                layers::synced(&self.file);
                self.size.store(size, Ordering::Release);
            }
            Err(e) => {
                self.give_up(&e);
                return Err(classify(e));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 4 * 1024 * 1024;

    fn store() -> (tempfile::TempDir, FileStore) {
        let dir = tempfile::tempdir().unwrap();
        let store = FileStore::create(&dir.path().join("data"), SIZE, false).unwrap();
        (dir, store)
    }

    fn read(store: &FileStore, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0xee; len];
        store.read_at(offset, &mut bytes, Wait::Allowed).unwrap();
        bytes
    }

    #[test]
    fn what_was_never_written_reads_as_zeroes() {
        let (_dir, store) = store();
        assert_eq!(read(&store, SIZE - 4096, 4096), vec![0; 4096]);
    }

    #[test]
    fn what_was_written_reads_back_also_from_the_cache_alone() {
        let (_dir, store) = store();
        for durability in [Durability::Cached, Durability::OnMedium] {
            store.write_at(512, &[7; 4096], durability).unwrap();
            assert_eq!(read(&store, 512, 4096), vec![7; 4096]);
        }
        let mut bytes = vec![0; 4096];
        match store.read_at(512, &mut bytes, Wait::Never) {
            Ok(()) => assert_eq!(bytes, vec![7; 4096]),
            Err(e) => assert!(matches!(e, StoreError::WouldBlock), "{e}"),
        }
        store.flush().unwrap();
    }

    #[test]
    fn room_follows_what_is_written_and_unmapped() {
        let (_dir, store) = store();
        assert_eq!(store.room().unwrap().used_bytes, 0);
        store.write_at(0, &[9; 65536], Durability::OnMedium).unwrap();
        let written = store.room().unwrap();
        assert!(written.used_bytes >= 65536 && written.available_bytes > 0);
        store.unmap(0, 65536).unwrap();
        assert!(store.room().unwrap().used_bytes < written.used_bytes);
    }

    #[test]
    fn nothing_reaches_beyond_the_end() {
        let (_dir, store) = store();
        let mut one = [0];
        assert!(matches!(store.read_at(SIZE, &mut one, Wait::Allowed), Err(StoreError::OutOfRange)));
        for at in [SIZE, u64::MAX] {
            assert!(matches!(store.write_at(at, &one, Durability::Cached), Err(StoreError::OutOfRange)));
        }
        assert!(matches!(store.unmap(SIZE - 1, 2), Err(StoreError::OutOfRange)));
        assert!(matches!(store.write_zeroes(1, u64::MAX), Err(StoreError::OutOfRange)));
        assert!(matches!(store.allocation(0, SIZE + 1, 8), Err(StoreError::OutOfRange)));
        assert_eq!(store.file.metadata().unwrap().len(), SIZE);
    }

    #[test]
    fn unmapped_bytes_read_as_zeroes_and_give_their_space_back() {
        let (_dir, store) = store();
        let mebi = 1024 * 1024;
        store.write_at(0, &vec![9; 3 * mebi], Durability::OnMedium).unwrap();
        store.unmap(mebi as u64, mebi as u64).unwrap();
        assert_eq!(read(&store, mebi as u64, mebi), vec![0; mebi]);
        assert_eq!(read(&store, 0, mebi), vec![9; mebi]);
        let runs = store.allocation(0, SIZE, 16).unwrap();
        let mebi = mebi as u64;
        let expected = [(mebi, true), (mebi, false), (mebi, true), (mebi, false)];
        assert_eq!(runs.iter().map(|r| (r.len, r.allocated)).collect::<Vec<_>>(), expected);
        assert_eq!(store.allocation(0, SIZE, 2).unwrap().len(), 2);
    }

    #[test]
    fn zeroed_bytes_read_as_zeroes() {
        let (_dir, store) = store();
        store.write_at(0, &[9; 65536], Durability::Cached).unwrap();
        store.write_zeroes(512, 1024).unwrap();
        assert_eq!(read(&store, 512, 1024), vec![0; 1024]);
        assert_eq!(read(&store, 1536, 512), vec![9; 512]);
    }

    #[test]
    fn larger_store_keeps_its_bytes_and_smaller_is_refused_silently() {
        let (dir, store) = store();
        store.write_at(0, &[1; 512], Durability::Cached).unwrap();
        store.grow(2 * SIZE).unwrap();
        store.grow(SIZE).unwrap();
        assert_eq!(store.size(), 2 * SIZE);
        assert_eq!(read(&store, 2 * SIZE - 512, 512), vec![0; 512]);
        drop(store);
        let again = FileStore::open(&dir.path().join("data"), 2 * SIZE).unwrap();
        assert_eq!(read(&again, 0, 512), vec![1; 512]);
        assert!(FileStore::open(&dir.path().join("data"), 4 * SIZE).is_err());
    }

    #[test]
    fn existing_file_is_never_created_over() {
        let (dir, store) = store();
        store.write_at(0, &[1; 512], Durability::Cached).unwrap();
        let again = FileStore::create(&dir.path().join("data"), SIZE, false);
        assert_eq!(again.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(read(&store, 0, 512), vec![1; 512]);
    }

    #[test]
    fn full_disk_is_no_space_and_the_store_stays_in_service() {
        // Every write to /dev/full fails with ENOSPC, as on a full file system.
        let store = FileStore::new(File::options().read(true).write(true).open("/dev/full").unwrap(), SIZE);
        assert!(matches!(store.write_at(0, &[1; 512], Durability::Cached), Err(StoreError::NoSpace)));
        assert_eq!(read(&store, 0, 512), vec![0; 512]);
    }

    #[test]
    fn after_a_failed_flush_nothing_is_served() {
        // A pipe end takes no fdatasync: EINVAL stands for any failure of the flush.
        let (reader, _writer) = io::pipe().unwrap();
        let store = FileStore::new(File::from(std::os::fd::OwnedFd::from(reader)), SIZE);
        assert!(matches!(store.flush(), Err(StoreError::Hardware(_))));
        assert!(matches!(store.flush(), Err(StoreError::OutOfService)));
        let mut bytes = [0; 512];
        assert!(matches!(store.read_at(0, &mut bytes, Wait::Allowed), Err(StoreError::OutOfService)));
        assert!(matches!(store.write_at(0, &bytes, Durability::Cached), Err(StoreError::OutOfService)));
    }
}
