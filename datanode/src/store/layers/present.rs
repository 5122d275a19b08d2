//! Which chunks of a layer are its own: the others are read from the layer below.
//!
//! ```text
//! page n lies in slots 2n and 2n+1, 4096 bytes each, written in turn
//!  byte
//!     0  "HFPM"                 4
//!     4  version 1              2
//!     6  chunk size, 2^n bytes  1
//!     7  reserved               1
//!     8  page number            4
//!    12  reserved               4
//!    16  sequence number        8    the higher whole slot counts
//!    24  bits                4064    chunk n of the page: bit n % 64 of word n / 64, words little endian
//!  4088  reserved               4
//!  4092  CRC32C of 0..4092      4
//! ```
//!
//! The same bits lie in a second file, `recent`, that is never flushed and counts only under the boot that wrote it, so that what a
//! process has answered from the page cache outlives the process, as the data does: 16 bytes of boot id, and from byte
//! 4096 on the words of all pages.
//!
//! Invariants: a bit is set in memory only when the chunk's bytes have been written, and on the medium only when they are on
//! the medium: whoever writes pages has flushed the data since it asked for them. Bits are never cleared. Both slots of every page are
//! there from the start, so a page of which no slot is whole is damage, not news.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use holdfast_replica::ids::BootId;

use super::crash;

/// Bytes of a slot.
const SLOT_LEN: usize = 4096;
const MAGIC: [u8; 4] = *b"HFPM";
const VERSION: u16 = 1;
const BITS_AT: usize = 24;
const WORDS: usize = 508;
const CRC_AT: usize = 4092;
/// Where the words begin in the other file.
const RECENT_AT: u64 = 4096;
/// Chunks of a page.
const CHUNKS: u64 = WORDS as u64 * 64;

/// Smallest chunk, in bytes: 2^16. Less would make the map large, more would copy more for a short write.
pub const CHUNK_SHIFT_MIN: u8 = 16;
/// Chunks that a map is made for at most, unless its volume grows later: 2 MiB of bits. Volumes of more than 1 TiB get larger chunks.
const CHUNKS_MAX: u64 = 1 << 24;

/// Log2 of the chunk size of a new layer of `size` bytes.
pub fn chunk_shift(size: u64) -> u8 {
    (CHUNK_SHIFT_MIN..40).find(|shift| size >> shift <= CHUNKS_MAX).unwrap_or(40)
}

/// Bits of a page that are to be brought to the medium.
pub type Pending = Vec<(usize, Box<[u64; WORDS]>)>;

#[derive(Debug)]
struct Page {
    sequence: u64,
    /// As on the medium.
    durable: Box<[u64; WORDS]>,
}

/// See the module.
#[derive(Debug)]
pub struct Present {
    file: File,
    chunk_shift: u8,
    bits: RwLock<Vec<AtomicU64>>,
    pages: Mutex<Vec<Page>>,
    /// None: nothing is ever answered from it before it is flushed.
    recent: Option<Mutex<File>>,
}

impl Present {
    /// A map of nothing for `size` bytes. Durable but for the entry in its directory.
    ///
    /// # Errors
    /// As the system reports them.
    pub fn create(
        path: &Path,
        size: u64,
        chunk_shift: u8,
        recent: &Path,
        boot: BootId,
    ) -> io::Result<Present> {
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        let recent = Some(Mutex::new(begin_recent(recent, boot)?));
        let (bits, pages) = (RwLock::new(Vec::new()), Mutex::new(Vec::new()));
        let present = Present { file, chunk_shift, bits, pages, recent };
        present.grow(size)?;
        Ok(present)
    }

    /// The map of a layer of `size` bytes as it stands on the medium, and as it was answered from under this boot.
    ///
    /// # Errors
    /// As the system reports them; `InvalidData` where a page is damaged.
    pub fn open(
        path: &Path,
        size: u64,
        chunk_shift: u8,
        recent: Option<(&Path, BootId)>,
    ) -> io::Result<Present> {
        let file = File::options().read(true).write(true).open(path)?;
        let (mut pages, mut words) = (Vec::new(), Vec::new());
        for number in 0..pages_of(size, chunk_shift) {
            let mut best: Option<Page> = None;
            for slot in 0..2 {
                let mut image = [0; SLOT_LEN];
                file.read_exact_at(&mut image, position(number, slot))?;
                let Some(page) = decode(&image, number, chunk_shift) else { continue };
                if best.as_ref().is_none_or(|best| best.sequence < page.sequence) {
                    best = Some(page);
                }
            }
            let Some(page) = best else {
                let message = format!("{}: page {number} is damaged", path.display());
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            };
            words.extend(page.durable.iter().map(|word| AtomicU64::new(*word)));
            pages.push(page);
        }
        let recent = match recent {
            None => None,
            Some((path, boot)) => {
                let found = fs::read(path).unwrap_or_default();
                let recent = match found.get(..16) == Some(&boot.0[..]) {
                    true => File::options().read(true).write(true).open(path)?,
                    false => begin_recent(path, boot)?,
                };
                if found.get(..16) == Some(&boot.0[..]) {
                    let kept = found.get(RECENT_AT as usize..).unwrap_or_default().as_chunks::<8>().0;
                    for (word, kept) in words.iter().zip(kept) {
                        word.fetch_or(u64::from_le_bytes(*kept), Ordering::Relaxed);
                    }
                }
                Some(Mutex::new(recent))
            }
        };
        Ok(Present { file, chunk_shift, bits: RwLock::new(words), pages: Mutex::new(pages), recent })
    }

    /// Log2 of the bytes of a chunk.
    pub fn chunk_shift(&self) -> u8 {
        self.chunk_shift
    }

    /// True if the chunk is the layer's own.
    pub fn has(&self, chunk: u64) -> bool {
        let bits = self.bits.read().unwrap_or_else(PoisonError::into_inner);
        bits.get((chunk / 64) as usize)
            .is_some_and(|word| word.load(Ordering::Acquire) >> (chunk % 64) & 1 == 1)
    }

    /// True if that is on the medium for all chunks from `first` to `last`.
    pub fn is_durable(&self, first: u64, last: u64) -> bool {
        let pages = self.lock();
        (first..=last).all(|chunk| {
            let word = pages
                .get((chunk / CHUNKS) as usize)
                .and_then(|page| page.durable.get((chunk % CHUNKS / 64) as usize));
            word.is_some_and(|word| word >> (chunk % 64) & 1 == 1)
        })
    }

    /// The chunks from `first` on and before `behind` are the layer's own from now on, also if the process dies.
    ///
    /// # Errors
    /// As the system reports them.
    pub fn set(&self, first: u64, behind: u64) -> io::Result<()> {
        let recent = self.recent.as_ref().map(|recent| recent.lock().unwrap_or_else(PoisonError::into_inner));
        let bits = self.bits.read().unwrap_or_else(PoisonError::into_inner);
        let (from, to) = (first / 64, behind.div_ceil(64));
        let mut image = Vec::new();
        for (at, word) in (from..to).zip(bits.get(from as usize..).unwrap_or_default()) {
            let low = u64::MAX << first.saturating_sub(at * 64).min(63);
            let high = u64::MAX >> ((at + 1) * 64).saturating_sub(behind).min(63);
            let before = word.fetch_or(low & high, Ordering::Release);
            image.extend((before | low & high).to_le_bytes());
        }
        match recent {
            Some(recent) => recent.write_all_at(&image, RECENT_AT + from * 8),
            None => Ok(()),
        }
    }

    /// How many chunks are the layer's own.
    pub fn count(&self) -> u64 {
        let bits = self.bits.read().unwrap_or_else(PoisonError::into_inner);
        bits.iter().map(|word| u64::from(word.load(Ordering::Relaxed).count_ones())).sum()
    }

    /// What is not on the medium yet. To be asked before the data is flushed, and written after it.
    pub fn pending(&self) -> Pending {
        let bits = self.bits.read().unwrap_or_else(PoisonError::into_inner);
        let mut pending = Vec::new();
        for (number, page) in self.lock().iter().enumerate() {
            let mut now = page.durable.clone();
            let words = bits.get(number * WORDS..).unwrap_or_default();
            for (word, bits) in now.iter_mut().zip(words) {
                *word |= bits.load(Ordering::Acquire);
            }
            if now != page.durable {
                pending.push((number, now));
            }
        }
        pending
    }

    /// Brings pages to the medium. One at a time.
    ///
    /// # Errors
    /// As the system reports them: nothing may rely on the map after that.
    pub fn write(&self, pending: Pending) -> io::Result<()> {
        if pending.is_empty() {
            return Ok(());
        }
        let mut pages = self.lock();
        for (number, bits) in &pending {
            let Some(page) = pages.get(*number) else { continue };
            let sequence = page.sequence + 1;
            let image = encode(*number, self.chunk_shift, sequence, bits);
            self.file.write_all_at(&image[..], position(*number, sequence % 2))?;
        }
        self.file.sync_data()?;
        crash::synced(&self.file);
        for (number, bits) in pending {
            if let Some(page) = pages.get_mut(number) {
                *page = Page { sequence: page.sequence + 1, durable: bits };
            }
        }
        Ok(())
    }

    /// Makes room for a larger layer, durably; the new chunks are not its own.
    ///
    /// # Errors
    /// As the system reports them.
    pub fn grow(&self, size: u64) -> io::Result<()> {
        let mut pages = self.lock();
        let wanted = pages_of(size, self.chunk_shift);
        if wanted <= pages.len() {
            return Ok(());
        }
        let mut more = Vec::new();
        for number in pages.len()..wanted {
            let page = Page { sequence: 1, durable: Box::new([0; WORDS]) };
            for slot in [1, 0] {
                // Both slots hold it, so that one that tears later leaves the other.
                let image = encode(number, self.chunk_shift, page.sequence - (1 - slot), &page.durable);
                self.file.write_all_at(&image[..], position(number, slot))?;
            }
            more.push(page);
        }
        self.file.sync_all()?;
        crash::synced(&self.file);
        pages.extend(more);
        let mut bits = self.bits.write().unwrap_or_else(PoisonError::into_inner);
        bits.resize_with(wanted * WORDS, AtomicU64::default);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Page>> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn begin_recent(path: &Path, boot: BootId) -> io::Result<File> {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
    file.write_all_at(&boot.0, 0)?;
    Ok(file)
}

fn pages_of(size: u64, chunk_shift: u8) -> usize {
    let chunks = size.div_ceil(1 << chunk_shift);
    usize::try_from(chunks.div_ceil(CHUNKS)).unwrap_or(usize::MAX).max(1)
}

fn position(number: usize, slot: u64) -> u64 {
    (number as u64 * 2 + slot) * SLOT_LEN as u64
}

fn encode(number: usize, chunk_shift: u8, sequence: u64, bits: &[u64; WORDS]) -> Box<[u8; SLOT_LEN]> {
    let mut image = Box::new([0; SLOT_LEN]);
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(place) = image.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    put(0, &MAGIC);
    put(4, &VERSION.to_le_bytes());
    put(6, &[chunk_shift]);
    put(8, &u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes());
    put(16, &sequence.to_le_bytes());
    for (at, word) in bits.iter().enumerate() {
        put(BITS_AT + 8 * at, &word.to_le_bytes());
    }
    let crc = crc32c::crc32c(image.get(..CRC_AT).unwrap_or_default());
    if let Some(place) = image.get_mut(CRC_AT..) {
        place.copy_from_slice(&crc.to_le_bytes());
    }
    image
}

fn decode(image: &[u8; SLOT_LEN], number: usize, chunk_shift: u8) -> Option<Page> {
    let crc = u32::from_le_bytes(image.get(CRC_AT..)?.try_into().ok()?);
    if crc != crc32c::crc32c(image.get(..CRC_AT)?)
        || image.get(..4)? != MAGIC
        || image.get(4..6)? != VERSION.to_le_bytes()
        || *image.get(6)? != chunk_shift
        || u32::from_le_bytes(image.get(8..12)?.try_into().ok()?) as usize != number
    {
        return None;
    }
    let sequence = u64::from_le_bytes(image.get(16..24)?.try_into().ok()?);
    let mut durable = Box::new([0; WORDS]);
    for (word, bytes) in durable.iter_mut().zip(image.get(BITS_AT..)?.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    Some(Page { sequence, durable })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 3 << 30;
    const BOOT: BootId = BootId([1; 16]);

    fn map() -> (tempfile::TempDir, Present) {
        let dir = tempfile::tempdir().unwrap();
        let present =
            Present::create(&dir.path().join("present"), SIZE, 16, &dir.path().join("recent"), BOOT).unwrap();
        (dir, present)
    }

    fn set(present: &Present, chunk: u64) {
        present.set(chunk, chunk + 1).unwrap();
    }

    #[test]
    fn what_was_set_outlives_the_process_and_not_the_boot() {
        let (dir, present) = map();
        present.set(3, 200).unwrap();
        set(&present, CHUNKS + 5);
        let (path, recent) = (dir.path().join("present"), dir.path().join("recent"));
        let open = |boot| Present::open(&path, SIZE, 16, Some((&recent, boot))).unwrap();
        for _ in 0..2 {
            let again = open(BOOT);
            assert_eq!(again.count(), 198);
            assert!(
                !again.has(2) && again.has(3) && again.has(199) && !again.has(200) && again.has(CHUNKS + 5)
            );
            assert!(!again.is_durable(3, 3));
        }
        assert_eq!(open(BootId([2; 16])).count(), 0);
        assert_eq!(open(BOOT).count(), 0);
    }

    #[test]
    fn chunks_grow_with_the_volume_so_that_a_map_stays_small() {
        assert_eq!((chunk_shift(1 << 20), chunk_shift(1 << 40), chunk_shift(1 << 41)), (16, 16, 17));
        assert_eq!(chunk_shift(16 << 40), 20);
    }

    #[test]
    fn bits_are_durable_once_written_and_not_before() {
        let (dir, present) = map();
        for chunk in [0, 63, 64, CHUNKS - 1, CHUNKS, (SIZE >> 16) - 1] {
            set(&present, chunk);
            assert!(present.has(chunk) && !present.is_durable(chunk, chunk));
        }
        let open = || Present::open(&dir.path().join("present"), SIZE, 16, None).unwrap();
        assert_eq!(open().count(), 0);
        present.write(present.pending()).unwrap();
        assert!(present.is_durable(63, 64) && !present.is_durable(63, 65));
        let again = open();
        assert_eq!(again.count(), 6);
        assert!(again.has(CHUNKS) && !again.has(CHUNKS + 1));
        assert!(again.pending().is_empty());
    }

    #[test]
    fn torn_page_leaves_the_one_before_and_two_torn_ones_are_damage() {
        let (dir, present) = map();
        set(&present, 5);
        present.write(present.pending()).unwrap();
        set(&present, 6);
        present.write(present.pending()).unwrap();
        let path = dir.path().join("present");
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(&[0xff; 512], position(0, 1) + 1024).unwrap();
        let torn = Present::open(&path, SIZE, 16, None).unwrap();
        assert!(torn.has(5) && !torn.has(6));
        file.write_all_at(&[0xff; 512], position(0, 0) + 1024).unwrap();
        let damaged = Present::open(&path, SIZE, 16, None).unwrap_err();
        assert_eq!(damaged.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn grown_map_keeps_its_bits() {
        let (dir, present) = map();
        set(&present, 7);
        present.grow(3 * SIZE).unwrap();
        set(&present, ((3 * SIZE) >> 16) - 1);
        present.write(present.pending()).unwrap();
        let again = Present::open(&dir.path().join("present"), 3 * SIZE, 16, None).unwrap();
        assert_eq!(again.count(), 2);
    }
}
