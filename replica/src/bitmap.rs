//! The dirty bitmap that a replica keeps for one that is absent: the chunks that the absent one may lack.
//!
//! A chunk has 64 KiB, or more where the volume is so large that the bitmap would have more than
//! [`crate::limits::BITMAP_BITS_MAX`] bits. On disk it is a row of pages of [`PAGE_LEN`] bytes, each in two slots that are
//! written in turn (page `n` has slots `2n` and `2n + 1`). All numbers are big endian. One page:
//!
//! ```text
//!  byte
//!     0  "HFBM"                        magic, 4 bytes
//!     4  0x0001          | 0x0000      format version, reserved
//!     8  volume id                     16 bytes
//!    24  absent node     | shift | 0   node number (2), chunk size as a power of two in blocks (1), reserved (1)
//!    28  page number                   4 bytes
//!    32  sequence number               8 bytes, grows by one with each write of this page; the higher slot counts
//!    40  bits                          4048 bytes; chunk n of the page is bit n % 8 (of value 2^(n % 8)) of byte n / 8
//!  4088  0x00000000                    reserved
//!  4092  CRC32C of bytes 0..4092       4 bytes
//! ```
//!
//! Invariants: [`Bitmap::mark`] names the batch that must be durable before the write is acknowledged; bits are only ever
//! set; a page of which no slot can be trusted counts as all set, so damage costs copying and never a write.

use alloc::{boxed::Box, vec, vec::Vec};

use crate::{
    Crc32c,
    ids::{NodeNumber, VolumeId},
    span::{Shape, Span},
};

/// Length of a page in bytes.
pub const PAGE_LEN: usize = 4096;
/// Bytes of bits in a page.
pub const PAGE_BITS_LEN: usize = 4048;
const MAGIC: [u8; 4] = *b"HFBM";
const VERSION: u16 = 1;
const BITS_AT: usize = 40;
const CRC_AT: usize = PAGE_LEN - 4;
const PAGE_BITS: u64 = PAGE_BITS_LEN as u64 * 8;

#[derive(Clone, Debug)]
struct Page {
    bits: Box<[u8; PAGE_BITS_LEN]>,
    sequence: u64,
    batch: u64,
    changed: bool,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Bitmap {
    node: NodeNumber,
    shape: Shape,
    pages: Vec<Page>,
}

impl Bitmap {
    /// A bitmap for `node` in which every chunk is clean, or every chunk dirty. Every page is yet to be written, with
    /// `next_batch`.
    pub fn new(node: NodeNumber, shape: Shape, dirty: bool, next_batch: u64) -> Bitmap {
        let fill = if dirty { 0xff } else { 0 };
        let page =
            Page { bits: Box::new([fill; PAGE_BITS_LEN]), sequence: 0, batch: next_batch, changed: true };
        let pages = shape.chunks().div_ceil(PAGE_BITS) as usize;
        let mut bitmap = Bitmap { node, shape, pages: vec![page; pages] };
        bitmap.trim();
        bitmap
    }

    /// From the slots of its file (two for each page); a missing one is as good as a damaged one.
    pub fn decode<'a>(
        node: NodeNumber,
        volume: VolumeId,
        shape: Shape,
        mut slot: impl FnMut(usize) -> Option<&'a [u8; PAGE_LEN]>,
        crc32c: Crc32c,
    ) -> Bitmap {
        let mut bitmap = Bitmap::new(node, shape, true, 0);
        for (number, page) in bitmap.pages.iter_mut().enumerate() {
            page.changed = false;
            let head = head(node, volume, shape, number as u32);
            for at in [2 * number, 2 * number + 1] {
                let Some(slot) = slot(at) else { continue };
                let (body, crc) = slot.split_at(CRC_AT);
                let sequence = u64::from_be_bytes(array(slot, 32));
                if slot.starts_with(&head) && crc == crc32c(0, body).to_be_bytes() && sequence > page.sequence
                {
                    page.sequence = sequence;
                    *page.bits = array(slot, BITS_AT);
                }
            }
        }
        bitmap.trim();
        bitmap
    }

    /// The volume is larger now. Where its chunks get larger with it everything counts as dirty; else what is new is clean, since it
    /// is zero everywhere.
    pub fn grow(&mut self, shape: Shape, next_batch: u64) {
        if shape.chunk_shift() != self.shape.chunk_shift() {
            *self = Bitmap::new(self.node, shape, true, next_batch);
            return;
        }
        let more = Bitmap::new(self.node, shape, false, next_batch);
        self.pages.extend(more.pages.into_iter().skip(self.pages.len()));
        self.shape = shape;
    }

    /// The absent replica.
    pub fn node(&self) -> NodeNumber {
        self.node
    }

    /// Number of pages.
    pub fn page_count(&self) -> usize {
        self.pages.len()
    }

    /// Marks the chunks of `span`. Returns the batch that must be durable before a write there is acknowledged.
    pub fn mark(&mut self, span: Span, next_batch: u64) -> u64 {
        let mut required = 0;
        for chunk in self.shape.chunks_of(span) {
            required = required.max(self.mark_chunk(chunk, next_batch));
        }
        required
    }

    fn mark_chunk(&mut self, chunk: u64, next_batch: u64) -> u64 {
        let Some(page) = self.pages.get_mut((chunk / PAGE_BITS) as usize) else { return 0 };
        let bit = chunk % PAGE_BITS;
        let Some(byte) = page.bits.get_mut((bit / 8) as usize) else { return 0 };
        if *byte & 1 << (bit % 8) == 0 {
            *byte |= 1 << (bit % 8);
            page.changed = true;
            page.batch = next_batch;
        }
        page.batch
    }

    /// Adds the bits of another replica's page. Returns the batch that must be durable before that counts; `None` when there is
    /// no such page.
    pub fn merge_page(&mut self, number: u32, bits: &[u8; PAGE_BITS_LEN], next_batch: u64) -> Option<u64> {
        let page = self.pages.get_mut(number as usize)?;
        for (to, from) in page.bits.iter_mut().zip(bits) {
            *to |= from;
        }
        page.changed = true;
        page.batch = next_batch;
        self.trim();
        Some(next_batch)
    }

    /// Adds the chunks of another bitmap of the same volume.
    pub fn merge(&mut self, other: &Bitmap, next_batch: u64) {
        for chunk in other.dirty_chunks() {
            self.mark_chunk(chunk, next_batch);
        }
    }

    /// The bits of each page.
    pub fn pages(&self) -> impl Iterator<Item = (u32, &[u8; PAGE_BITS_LEN])> + '_ {
        self.pages.iter().enumerate().map(|(number, page)| (number as u32, &*page.bits))
    }

    /// True if the chunk is dirty.
    pub fn is_dirty(&self, chunk: u64) -> bool {
        let byte = self
            .pages
            .get((chunk / PAGE_BITS) as usize)
            .and_then(|p| p.bits.get((chunk % PAGE_BITS / 8) as usize));
        byte.is_some_and(|byte| byte >> (chunk % 8) & 1 == 1)
    }

    /// The first dirty chunk at or behind `from`.
    pub fn next_dirty(&self, from: u64) -> Option<u64> {
        let mut chunk = from;
        while chunk < self.shape.chunks() {
            let page = self.pages.get((chunk / PAGE_BITS) as usize)?;
            match page.bits.get((chunk % PAGE_BITS / 8) as usize)? >> (chunk % 8) {
                0 => chunk = (chunk / 8 + 1) * 8,
                rest => {
                    chunk += u64::from(rest.trailing_zeros());
                    return Some(chunk);
                }
            }
        }
        None
    }

    /// The dirty chunks, ascending.
    pub fn dirty_chunks(&self) -> impl Iterator<Item = u64> + '_ {
        let mut from = 0;
        core::iter::from_fn(move || {
            let chunk = self.next_dirty(from)?;
            from = chunk + 1;
            Some(chunk)
        })
    }

    /// How many chunks are dirty.
    pub fn dirty_count(&self) -> u64 {
        self.pages.iter().flat_map(|p| p.bits.iter()).map(|byte| u64::from(byte.count_ones())).sum()
    }

    /// True if a page has changed since it was last written.
    pub fn changed(&self) -> bool {
        self.pages.iter().any(|page| page.changed)
    }

    /// The pages that have changed, each with the number of the slot it belongs to. Only one round of them may be on its way to
    /// disk at a time.
    pub fn images(&mut self, volume: VolumeId, crc32c: Crc32c) -> Vec<(usize, Box<[u8; PAGE_LEN]>)> {
        let (node, shape) = (self.node, self.shape);
        let changed = self.pages.iter_mut().enumerate().filter(|(_, page)| page.changed);
        let image = |(number, page): (usize, &mut Page)| {
            page.changed = false;
            page.sequence = page.sequence.saturating_add(1);
            let mut slot = Box::new([0; PAGE_LEN]);
            put(&mut slot, 0, &head(node, volume, shape, number as u32));
            put(&mut slot, 32, &page.sequence.to_be_bytes());
            put(&mut slot, BITS_AT, page.bits.as_slice());
            let crc = crc32c(0, slot.get(..CRC_AT).unwrap_or_default());
            put(&mut slot, CRC_AT, &crc.to_be_bytes());
            (2 * number + (page.sequence % 2) as usize, slot)
        };
        changed.map(image).collect()
    }

    /// Clears the bits behind the last chunk.
    fn trim(&mut self) {
        let last = self.shape.chunks() % PAGE_BITS;
        let Some(page) = self.pages.last_mut().filter(|_| last != 0) else { return };
        for (at, byte) in page.bits.iter_mut().enumerate() {
            let first_bit = at as u64 * 8;
            if first_bit >= last {
                *byte = 0;
            } else if last - first_bit < 8 {
                *byte &= (1 << (last - first_bit)) - 1;
            }
        }
    }
}

/// The first 32 bytes of a page: what it belongs to.
fn head(node: NodeNumber, volume: VolumeId, shape: Shape, number: u32) -> [u8; 32] {
    let mut out = [0; PAGE_LEN];
    put(&mut out, 0, &MAGIC);
    put(&mut out, 4, &VERSION.to_be_bytes());
    put(&mut out, 8, &volume.0);
    put(&mut out, 24, &node.get().to_be_bytes());
    put(&mut out, 26, &[shape.chunk_shift() as u8]);
    put(&mut out, 28, &number.to_be_bytes());
    array(&out, 0)
}

fn put(slot: &mut [u8; PAGE_LEN], at: usize, bytes: &[u8]) {
    for (to, from) in slot.iter_mut().skip(at).zip(bytes) {
        *to = *from;
    }
}

/// Every offset above lies within the page, so this never gives zeroes in place of bytes.
fn array<const N: usize>(slot: &[u8; PAGE_LEN], at: usize) -> [u8; N] {
    slot.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    fn crc(so_far: u32, bytes: &[u8]) -> u32 {
        crc32c::crc32c_append(so_far, bytes)
    }

    const VOLUME: VolumeId = VolumeId([7; 16]);

    fn node() -> NodeNumber {
        NodeNumber::new(2).unwrap()
    }

    /// 40,000 chunks: two pages, the second one not full.
    fn shape() -> Shape {
        Shape::with_units(40_000 * 16 - 3, 512, 13, 4, 64).unwrap()
    }

    fn span(lba: u64, blocks: u64) -> Span {
        Span::new(lba, blocks).unwrap()
    }

    type Disk = BTreeMap<usize, Box<[u8; PAGE_LEN]>>;

    fn decode(disk: &Disk) -> Bitmap {
        Bitmap::decode(node(), VOLUME, shape(), |at| disk.get(&at).map(|b| &**b), crc)
    }

    #[test]
    fn only_new_bits_wait_for_the_disk() {
        let mut bitmap = Bitmap::new(node(), shape(), false, 1);
        bitmap.images(VOLUME, crc);
        assert_eq!(bitmap.mark(span(0, 17), 5), 5);
        assert_eq!(bitmap.images(VOLUME, crc).len(), 1);
        assert_eq!(bitmap.mark(span(3, 1), 9), 5);
        assert!(!bitmap.changed());
        assert_eq!(bitmap.dirty_chunks().collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn new_replica_is_dirty_to_its_end_and_not_behind() {
        let bitmap = Bitmap::new(node(), shape(), true, 1);
        assert_eq!((bitmap.page_count(), bitmap.dirty_count()), (2, 40_000));
        assert_eq!(bitmap.dirty_chunks().last(), Some(39_999));
        assert!(bitmap.is_dirty(39_999) && !bitmap.is_dirty(40_000));
    }

    #[test]
    fn lost_page_counts_as_dirty() {
        let mut bitmap = Bitmap::new(node(), shape(), false, 1);
        let mut disk: Disk = bitmap.images(VOLUME, crc).into_iter().collect();
        assert_eq!(decode(&disk).dirty_count(), 0);
        bitmap.mark(span(0, 1), 2);
        disk.extend(bitmap.images(VOLUME, crc));
        assert_eq!(decode(&disk).dirty_count(), 1);
        // A torn write of the page leaves the one before; with both gone everything in it is dirty.
        disk.get_mut(&0).unwrap()[100..].fill(0xee);
        assert_eq!(decode(&disk).dirty_count(), 0);
        disk.get_mut(&1).unwrap()[100..].fill(0xee);
        assert_eq!(decode(&disk).dirty_count(), PAGE_BITS);
        disk.clear();
        assert_eq!(decode(&disk).dirty_count(), 40_000);
    }

    #[test]
    fn pages_of_another_node_volume_or_unit_are_not_taken() {
        let mut bitmap = Bitmap::new(node(), shape(), false, 1);
        let disk: Disk = bitmap.images(VOLUME, crc).into_iter().collect();
        let slot = |at: usize| disk.get(&at).map(|b| &**b);
        let other = NodeNumber::new(3).unwrap();
        assert_eq!(Bitmap::decode(other, VOLUME, shape(), slot, crc).dirty_count(), 40_000);
        assert_eq!(Bitmap::decode(node(), VolumeId([1; 16]), shape(), slot, crc).dirty_count(), 40_000);
        let coarse = Shape::with_units(shape().blocks(), 512, 13, 5, 64).unwrap();
        assert_eq!(Bitmap::decode(node(), VOLUME, coarse, slot, crc).dirty_count(), 20_000);
    }

    #[test]
    fn larger_volume_keeps_what_is_dirty_and_adds_clean_chunks() {
        let shape = |blocks| Shape::new(blocks, 512).unwrap();
        let mut bitmap = Bitmap::new(node(), shape(1 << 12), false, 1);
        bitmap.mark(Span::new(200, 1).unwrap(), 1);
        bitmap.grow(shape(1 << 25), 2);
        assert_eq!(bitmap.dirty_chunks().collect::<Vec<_>>(), [1]);
        assert!(bitmap.page_count() > 1);
        bitmap.mark(Span::new((1 << 25) - 1, 1).unwrap(), 2);
        assert!(bitmap.is_dirty(shape(1 << 25).chunks() - 1));
        // 1 TiB has chunks of 1 MiB.
        let huge = shape(1 << 31);
        bitmap.grow(huge, 3);
        assert_eq!(bitmap.dirty_count(), huge.chunks());
    }

    proptest! {
        #[test]
        fn marks_read_back_and_merge(
            a in proptest::collection::vec((0u64..639_000, 1u64..900), 0..20),
            b in proptest::collection::vec((0u64..639_000, 1u64..900), 0..20),
        ) {
            let mut model = BTreeSet::new();
            let mut make = |marks: &[(u64, u64)]| {
                let mut bitmap = Bitmap::new(node(), shape(), false, 1);
                for (lba, blocks) in marks {
                    bitmap.mark(span(*lba, *blocks), 1);
                    model.extend(shape().chunks_of(span(*lba, *blocks)));
                }
                bitmap
            };
            let (mut first, second) = (make(&a), make(&b));
            let mut by_page = first.clone();
            first.merge(&second, 2);
            for (number, bits) in second.pages() {
                by_page.merge_page(number, bits, 2);
            }
            prop_assert_eq!(by_page.merge_page(2, &[0; PAGE_BITS_LEN], 2), None);
            let expected: Vec<u64> = model.into_iter().collect();
            prop_assert_eq!(first.dirty_count(), expected.len() as u64);
            let disk: Disk = first.images(VOLUME, crc).into_iter().collect();
            for bitmap in [first, by_page, decode(&disk)] {
                prop_assert_eq!(bitmap.dirty_chunks().collect::<Vec<_>>(), expected.clone());
            }
        }
    }
}
