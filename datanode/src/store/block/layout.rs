//! Where everything lies on the device of a block pool, and its header. Drawn byte by byte in `docs/stores.md`.
//!
//! Invariants: both headers are written once, when the pool is made, and are the same but for their number, so that a header that was torn
//! then is told from anything else; a device is made a pool only if its first and last MiB hold nothing else.

use holdfast_replica::activity_log;
use holdfast_replica::ids::ClusterId;
use holdfast_replica::limits::BITMAPS_MAX;
use holdfast_replica::superblock;

use crate::store::intents;

/// Bytes of everything that is written whole.
pub(super) const SLOT: usize = 4096;
/// Bytes that are allocated at once.
pub(super) const EXTENT: u64 = 4 * MEBI;
/// Length of the first and the last part, which hold a header each.
pub(super) const GUARD: u64 = MEBI;
/// Extents of the smallest pool.
pub(super) const EXTENTS_MIN: u64 = 4;
/// Entries of one page of the allocation table.
pub(super) const PAGE_ENTRIES: u64 = 168;

/// Of the metadata extent of a replica: the superblock,
pub(super) const SUPERBLOCK_AT: u64 = 0;
pub(super) const SUPERBLOCK_LEN: u64 = (superblock::SLOTS * superblock::SLOT_LEN) as u64;
/// the activity log,
pub(super) const LOG_AT: u64 = SUPERBLOCK_AT + SUPERBLOCK_LEN;
pub(super) const LOG_LEN: u64 = 2 * activity_log::SLOT_LEN as u64;
/// the list of bitmaps,
pub(super) const INDEX_AT: u64 = LOG_AT + LOG_LEN;
pub(super) const INDEX_LEN: u64 = 2 * SLOT as u64;
/// and the bitmaps.
pub(super) const BITMAPS_AT: u64 = INDEX_AT + INDEX_LEN;
/// Room for 34 pages of two slots; the largest bitmap has 33.
pub(super) const BITMAP_LEN: u64 = 68 * SLOT as u64;
/// Behind them the intents.
pub(super) const INTENTS_AT: u64 = BITMAPS_AT + BITMAP_LEN * BITMAPS_MAX as u64;
pub(super) const INTENT_LEN: u64 = intents::LEN_MAX as u64;

const MEBI: u64 = 1024 * 1024;
const MAGIC: [u8; 8] = *b"HFBLKPOL";
const VERSION: u16 = 1;
const CRC_AT: usize = SLOT - 4;
/// Longest name of a node, in bytes.
const NODE_LEN_MAX: usize = 63;
/// The smallest part that a torn write leaves whole.
const SECTOR: usize = 512;

const _: () = assert!(INTENTS_AT + INTENT_LEN * intents::INTENTS as u64 <= EXTENT);

/// Where things are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Bytes of the device when the pool was made, in whole sectors.
    pub(super) device: u64,
    /// Extents that can be allocated.
    pub(super) extents: u64,
    /// Where extent 0 begins.
    pub(super) data_at: u64,
    /// Where the second header lies.
    pub(super) tail_at: u64,
}

impl Layout {
    /// For a device of so many bytes; `None` if it is too small, or larger than extent numbers reach.
    pub(super) fn of(device: u64) -> Option<Layout> {
        let tail_at = (device - device % MEBI).checked_sub(GUARD)?;
        let mut extents = device / EXTENT;
        loop {
            let data_at = (GUARD + table_len(extents)).next_multiple_of(EXTENT);
            let fit = tail_at.saturating_sub(data_at) / EXTENT;
            if fit < EXTENTS_MIN || fit > u64::from(u32::MAX) {
                return None;
            }
            if fit >= extents {
                return Some(Layout { device, extents, data_at, tail_at });
            }
            extents = fit;
        }
    }

    /// Pages of the allocation table.
    pub(super) fn pages(&self) -> u64 {
        self.extents.div_ceil(PAGE_ENTRIES)
    }

    /// Where a slot of a page of the table lies.
    pub(super) fn page_at(page: u64, slot: u64) -> u64 {
        GUARD + (2 * page + slot) * SLOT as u64
    }

    /// Where an extent lies.
    pub(super) fn extent_at(&self, extent: u32) -> u64 {
        self.data_at + u64::from(extent) * EXTENT
    }
}

fn table_len(extents: u64) -> u64 {
    extents.div_ceil(PAGE_ENTRIES) * 2 * SLOT as u64
}

/// Whose pool it is, and its layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) cluster: ClusterId,
    pub(super) node: String,
    pub(super) layout: Layout,
}

/// What the place of a header holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    Header(Header),
    /// Zeroes, or a part of the header that would be written here: the making of the pool was cut off, or never begun.
    Unfinished,
    /// Of a later version.
    Version(u16),
    /// Once a header, by its first bytes.
    Damaged,
    /// Someone else's.
    Alien,
}

impl Header {
    /// The bytes of header 0 or 1.
    pub(super) fn encode(&self, number: u8) -> Box<[u8; SLOT]> {
        let mut slot = Box::new([0; SLOT]);
        let layout = &self.layout;
        put(&mut slot, 0, &MAGIC);
        put(&mut slot, 8, &VERSION.to_be_bytes());
        put(&mut slot, 10, &[number]);
        put(&mut slot, 16, &self.cluster.0);
        let node = self.node.as_bytes().get(..NODE_LEN_MAX).unwrap_or(self.node.as_bytes());
        put(&mut slot, 32, &[node.len() as u8]);
        put(&mut slot, 33, node);
        put(&mut slot, 96, &layout.device.to_be_bytes());
        put(&mut slot, 104, &EXTENT.to_be_bytes());
        put(&mut slot, 112, &layout.extents.to_be_bytes());
        put(&mut slot, 120, &layout.data_at.to_be_bytes());
        put(&mut slot, 128, &layout.tail_at.to_be_bytes());
        seal(&mut slot);
        slot
    }

    /// What lies in a header's place, where `expected` would be written.
    pub(super) fn look(slot: &[u8; SLOT], expected: &[u8; SLOT]) -> Found {
        if !is_sealed(slot) || !slot.starts_with(&MAGIC) {
            let ours = |(found, ours): (&[u8], &[u8])| found.iter().all(|b| *b == 0) || found == ours;
            return match () {
                () if slot.chunks(SECTOR).zip(expected.chunks(SECTOR)).all(ours) => Found::Unfinished,
                () if slot.starts_with(&MAGIC) => Found::Damaged,
                () => Found::Alien,
            };
        }
        let version = u16::from_be_bytes(array(slot, 8));
        if version != VERSION {
            return Found::Version(version);
        }
        let layout = Layout {
            device: u64::from_be_bytes(array(slot, 96)),
            extents: u64::from_be_bytes(array(slot, 112)),
            data_at: u64::from_be_bytes(array(slot, 120)),
            tail_at: u64::from_be_bytes(array(slot, 128)),
        };
        let [len] = array(slot, 32);
        let node = slot.get(33..33 + usize::from(len).min(NODE_LEN_MAX));
        let node = node.and_then(|name| std::str::from_utf8(name).ok());
        match node {
            // The layout follows from the size: anything else was not written by us.
            Some(node)
                if Layout::of(layout.device) == Some(layout)
                    && u64::from_be_bytes(array(slot, 104)) == EXTENT =>
            {
                Found::Header(Header { cluster: ClusterId(array(slot, 16)), node: node.to_owned(), layout })
            }
            _ => Found::Damaged,
        }
    }
}

/// Puts the checksum at the end.
pub(super) fn seal(slot: &mut [u8; SLOT]) {
    let crc = crc32c::crc32c(slot.get(..CRC_AT).unwrap_or_default());
    put(slot, CRC_AT, &crc.to_be_bytes());
}

/// True if the checksum at the end is right.
pub(super) fn is_sealed(slot: &[u8; SLOT]) -> bool {
    let (body, crc) = slot.split_at(CRC_AT);
    crc == crc32c::crc32c(body).to_be_bytes()
}

pub(super) fn put(slot: &mut [u8; SLOT], at: usize, bytes: &[u8]) {
    for (to, from) in slot.iter_mut().skip(at).zip(bytes) {
        *to = *from;
    }
}

/// Every offset is a constant within the slot, so this never gives zeroes in place of bytes.
pub(super) fn array<const N: usize>(slot: &[u8; SLOT], at: usize) -> [u8; N] {
    slot.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        let layout = Layout::of(64 << 20).unwrap();
        Header { cluster: ClusterId([7; 16]), node: "node-1".into(), layout }
    }

    #[test]
    fn parts_of_a_device_do_not_overlap_whatever_its_size() {
        for device in (1_u64 << 20..100 << 20).step_by(1 << 20).chain([1 << 40, (1 << 40) + 512, 16 << 40]) {
            let Some(layout) = Layout::of(device) else {
                assert!(device < 30 << 20, "{device}");
                continue;
            };
            assert!(layout.extents >= EXTENTS_MIN);
            assert!(Layout::page_at(layout.pages() - 1, 1) + SLOT as u64 <= layout.data_at);
            assert!(layout.extent_at(layout.extents as u32 - 1) + EXTENT <= layout.tail_at);
            assert!(layout.tail_at + GUARD <= device && layout.data_at.is_multiple_of(EXTENT));
            // No more is lost than the headers, the table and one extent.
            assert!(layout.extents + 2 + table_len(layout.extents) / EXTENT + 1 >= device / EXTENT);
        }
    }

    #[test]
    fn header_reads_back_and_no_other_is_taken_for_it() {
        let header = header();
        let image = header.encode(0);
        assert_eq!(Header::look(&image, &image), Found::Header(header.clone()));
        let mut later = image.clone();
        later[9] = 9;
        seal(&mut later);
        assert_eq!(Header::look(&later, &image), Found::Version(9));
        let mut wrong = image.clone();
        wrong[119] ^= 1;
        seal(&mut wrong);
        assert_eq!(Header::look(&wrong, &image), Found::Damaged);
        let mut damaged = image.clone();
        damaged[40] ^= 1;
        assert_eq!(Header::look(&damaged, &image), Found::Damaged);
        let mut alien = [0; SLOT];
        alien[510] = 0x55;
        assert_eq!(Header::look(&alien, &image), Found::Alien);
    }

    #[test]
    fn header_that_was_torn_while_the_pool_was_made_is_known_as_such() {
        let image = header().encode(1);
        assert_eq!(Header::look(&[0; SLOT], &image), Found::Unfinished);
        for torn in 0..7 {
            let mut slot = image.clone();
            slot[torn * SECTOR..(torn + 1) * SECTOR].fill(0);
            let expected = if torn == 0 { Found::Unfinished } else { Found::Header(header()) };
            assert_eq!(Header::look(&slot, &image), expected, "sector {torn}");
        }
        let mut slot = image.clone();
        slot[SLOT - SECTOR..].fill(0);
        assert_eq!(Header::look(&slot, &image), Found::Unfinished);
    }
}
