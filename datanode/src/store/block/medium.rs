//! The bytes below a block pool: a device, a partition or a large file, read and written past the page cache.
//!
//! Invariants: offsets and lengths are multiples of the sector; nothing reaches beyond the size; what was written before a
//! [`Medium::flush`] that returned survives a loss of power, and what was written with `durable` does so at once. One open file description
//! for the life of the pool.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{AtFlags, FallocateFlags, StatxFlags};
use rustix::io::{Errno, ReadWriteFlags};

use super::layout::SLOT;

/// Bytes that go through a buffer of ours at a time.
const BOUNCE_LEN: usize = 1024 * 1024;

/// See the module's invariants. Every call may come from any thread.
pub(in crate::store) trait Medium: Send + Sync + std::fmt::Debug {
    /// In bytes.
    fn size(&self) -> u64;

    /// The smallest part that can be written, in bytes: 512 to 4096, a power of two.
    fn sector(&self) -> u64;

    /// Fills `buffer`.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes `data`; when it fails any part may have been written.
    fn write(&self, offset: u64, data: &[u8], durable: bool) -> io::Result<()>;

    /// Makes every write that returned before durable.
    fn flush(&self) -> io::Result<()>;

    /// Makes bytes zero.
    fn zero(&self, offset: u64, len: u64) -> io::Result<()>;

    /// The content of these bytes is not needed any more.
    fn discard(&self, offset: u64, len: u64);

    /// Sees to it that there is room for all bytes.
    fn reserve(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A device or file that this process holds.
#[derive(Debug)]
pub(super) struct Disk {
    file: File,
    size: u64,
    sector: u64,
    /// What the address of a buffer has to be a multiple of, in bytes.
    memory_align: usize,
    is_device: bool,
}

impl Disk {
    /// Takes a device or an existing file. Nobody else may hold it: a mounted device is refused as well.
    ///
    /// # Errors
    /// `ResourceBusy` if someone else has it; `InvalidInput` for what is neither; else as the system reports them.
    pub(super) fn open(path: &Path) -> io::Result<Disk> {
        let misuse = |text: &str| io::Error::new(io::ErrorKind::InvalidInput, text.to_owned());
        let kind = std::fs::metadata(path)?.file_type();
        let is_device = kind.is_block_device();
        if !is_device && !kind.is_file() {
            return Err(misuse("it is neither a block device nor a file"));
        }
        let mut flags = libc::O_DIRECT;
        if is_device {
            // Refuses what is mounted, part of an array, or held by another process in this way.
            flags |= libc::O_EXCL;
        }
        let file =
            File::options().read(true).write(true).custom_flags(flags).open(path).map_err(|e| {
                match e.raw_os_error() {
                    Some(libc::EINVAL) => misuse("its file system has no direct I/O (O_DIRECT)"),
                    _ => e,
                }
            })?;
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(io::ErrorKind::ResourceBusy.into()),
            Err(std::fs::TryLockError::Error(e)) => return Err(e),
        }
        if file.metadata()?.file_type().is_block_device() != is_device {
            return Err(misuse("it was replaced while it was being opened"));
        }
        let size = if is_device {
            rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0))?
        } else {
            file.metadata()?.len()
        };
        let (sector, memory_align) = alignment(&file, is_device)?;
        if !(512..=SLOT as u64).contains(&sector) || !sector.is_power_of_two() {
            return Err(misuse("its sectors are larger than 4096 bytes"));
        }
        Ok(Disk { file, size: size - size % sector, sector, memory_align, is_device })
    }

    fn is_aligned(&self, bytes: &[u8]) -> bool {
        (bytes.as_ptr() as usize).is_multiple_of(self.memory_align)
    }

    fn write_aligned(&self, mut offset: u64, mut data: &[u8], flags: ReadWriteFlags) -> io::Result<()> {
        while !data.is_empty() {
            match rustix::io::pwritev2(&self.file, &[IoSlice::new(data)], offset, flags) {
                Ok(0) => return Err(Errno::NOSPC.into()),
                Ok(n) => {
                    data = data.get(n..).unwrap_or_default();
                    offset = offset.saturating_add(n as u64);
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn fallocate(&self, mode: FallocateFlags, offset: u64, len: u64) -> io::Result<bool> {
        loop {
            match rustix::fs::fallocate(&self.file, mode | FallocateFlags::KEEP_SIZE, offset, len) {
                Ok(()) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NODEV | Errno::INVAL) => return Ok(false),
                Err(e) => return Err(e.into()),
            }
        }
    }
}

impl Medium for Disk {
    fn size(&self) -> u64 {
        self.size
    }

    fn sector(&self) -> u64 {
        self.sector
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if self.is_aligned(buffer) {
            return self.file.read_exact_at(buffer, offset);
        }
        let mut bounce = Aligned::new(buffer.len().min(BOUNCE_LEN));
        let mut at = offset;
        for part in buffer.chunks_mut(BOUNCE_LEN) {
            let bytes = bounce.bytes(part.len());
            self.file.read_exact_at(bytes, at)?;
            part.copy_from_slice(bytes);
            at = at.saturating_add(part.len() as u64);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8], durable: bool) -> io::Result<()> {
        let flags = if durable { ReadWriteFlags::DSYNC } else { ReadWriteFlags::empty() };
        if self.is_aligned(data) {
            return self.write_aligned(offset, data, flags);
        }
        let mut bounce = Aligned::new(data.len().min(BOUNCE_LEN));
        let mut at = offset;
        for part in data.chunks(BOUNCE_LEN) {
            let bytes = bounce.bytes(part.len());
            bytes.copy_from_slice(part);
            self.write_aligned(at, bytes, flags)?;
            at = at.saturating_add(part.len() as u64);
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 || self.fallocate(FallocateFlags::ZERO_RANGE, offset, len)? {
            return Ok(());
        }
        let mut zeroes = Aligned::new(BOUNCE_LEN.min(usize::try_from(len).unwrap_or(BOUNCE_LEN)));
        let (mut at, mut left) = (offset, len);
        while left > 0 {
            let part = left.min(BOUNCE_LEN as u64);
            self.write_aligned(at, zeroes.bytes(part as usize), ReadWriteFlags::empty())?;
            at = at.saturating_add(part);
            left -= part;
        }
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) {
        // A file keeps its room: it is there so that the pool never runs into a full file system.
        if self.is_device
            && let Err(error) = self.fallocate(FallocateFlags::PUNCH_HOLE, offset, len)
        {
            tracing::debug!(%error, offset, "an extent could not be discarded");
        }
    }

    fn reserve(&self) -> io::Result<()> {
        if self.is_device {
            return Ok(());
        }
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, self.size) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP) => {
                tracing::warn!(
                    "the file system cannot reserve room for the pool's file: it can run full below it"
                );
                Ok(())
            }
            Err(e) => Err(e.into()),
        }
    }
}

/// What offsets and addresses have to be multiples of, in bytes.
fn alignment(file: &File, is_device: bool) -> io::Result<(u64, usize)> {
    let logical = if is_device { u64::from(rustix::fs::ioctl_blksszget(file)?) } else { 512 };
    match rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) {
        Ok(stat) if stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0 && stat.stx_dio_offset_align != 0 => {
            let memory = (stat.stx_dio_mem_align as usize).max(1);
            Ok((u64::from(stat.stx_dio_offset_align).max(logical), memory))
        }
        // Kernels before 6.1 do not tell: one page satisfies all.
        _ if is_device => Ok((logical, SLOT)),
        _ => Ok((SLOT as u64, SLOT)),
    }
}

/// Bytes at an address that any device takes.
struct Aligned {
    bytes: Vec<u8>,
    from: usize,
}

impl Aligned {
    fn new(len: usize) -> Aligned {
        let bytes = vec![0; len + SLOT];
        let from = (bytes.as_ptr() as usize).next_multiple_of(SLOT) - bytes.as_ptr() as usize;
        Aligned { bytes, from }
    }

    /// The first `len` of them, which it has.
    fn bytes(&mut self, len: usize) -> &mut [u8] {
        self.bytes.get_mut(self.from..).and_then(|rest| rest.get_mut(..len)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_of_any_address_are_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        File::create(&path).unwrap().set_len(8 << 20).unwrap();
        let disk = Disk::open(&path).unwrap();
        disk.reserve().unwrap();
        let len = BOUNCE_LEN + 8192;
        let pattern: Vec<u8> = (0..len + 1).map(|n| (n % 251) as u8).collect();
        for durable in [false, true] {
            disk.write(4096, &pattern[1..], durable).unwrap();
            let mut found = vec![0; len + 3];
            disk.read(4096, &mut found[3..]).unwrap();
            assert!(found[3..] == pattern[1..]);
        }
        disk.zero(8192, 4096).unwrap();
        let mut found = vec![1; 12288];
        disk.read(4096, &mut found).unwrap();
        assert!(found[..4096] == pattern[1..4097] && found[4096..8192] == [0; 4096]);
        disk.flush().unwrap();
    }

    #[test]
    fn held_file_is_not_opened_twice_and_a_folder_never() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        let held = Disk::open(&path).unwrap();
        assert_eq!(Disk::open(&path).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        drop(held);
        Disk::open(&path).unwrap();
        assert_eq!(Disk::open(dir.path()).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
