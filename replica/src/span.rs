//! Runs of blocks, and the units in which a volume's bookkeeping counts them.
//!
//! Invariants: a [`Span`] is never empty and its end does not overflow; a [`Shape`]'s extents and chunks are powers of two
//! in blocks, so that every block lies in exactly one of each.

use crate::limits::{BITMAP_BITS_MAX, CHUNK_BYTES_MIN, COPY_BYTES, EXTENT_BYTES};

/// A run of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    lba: u64,
    blocks: u64,
}

impl Span {
    /// `blocks` blocks from `lba` on. `None` when there are none, or when they end past the last 64-bit address.
    pub const fn new(lba: u64, blocks: u64) -> Option<Span> {
        if blocks == 0 || lba.checked_add(blocks).is_none() { None } else { Some(Span { lba, blocks }) }
    }

    /// The first block.
    pub const fn lba(self) -> u64 {
        self.lba
    }

    /// How many blocks, at least 1.
    pub const fn blocks(self) -> u64 {
        self.blocks
    }

    /// The block behind the last one.
    pub const fn end(self) -> u64 {
        self.lba.saturating_add(self.blocks)
    }

    /// True if both have a block in common.
    pub const fn overlaps(self, other: Span) -> bool {
        self.lba < other.end() && other.lba < self.end()
    }
}

/// Size of a volume and of its extents and chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    blocks: u64,
    block_size: u32,
    extent_shift: u32,
    chunk_shift: u32,
    copy_blocks: u64,
}

impl Shape {
    /// A volume of `blocks` blocks of `block_size` bytes (a power of two, at most 64 KiB), with the units of
    /// [`crate::limits`]. `None` when out of range.
    pub fn new(blocks: u64, block_size: u32) -> Option<Shape> {
        if !block_size.is_power_of_two() || u64::from(block_size) > CHUNK_BYTES_MIN {
            return None;
        }
        let shift = block_size.trailing_zeros();
        let mut chunk_shift = CHUNK_BYTES_MIN.trailing_zeros().checked_sub(shift)?;
        while blocks.div_ceil(1 << chunk_shift) > BITMAP_BITS_MAX {
            chunk_shift += 1;
        }
        let extent_shift = EXTENT_BYTES.trailing_zeros().checked_sub(shift)?;
        Shape::with_units(blocks, block_size, extent_shift, chunk_shift, COPY_BYTES >> shift)
    }

    /// A volume with other units: extents of 2^`extent_shift` blocks, chunks of 2^`chunk_shift`, copies of `copy_blocks`.
    /// `None` when a unit is out of range, or a bitmap would be larger than allowed.
    pub fn with_units(
        blocks: u64,
        block_size: u32,
        extent_shift: u32,
        chunk_shift: u32,
        copy_blocks: u64,
    ) -> Option<Shape> {
        let bytes = blocks.checked_mul(u64::from(block_size)).filter(|bytes| *bytes <= i64::MAX as u64)?;
        let units = extent_shift < 48 && chunk_shift < 48 && copy_blocks > 0;
        let fits = units && blocks.div_ceil(1 << chunk_shift) <= BITMAP_BITS_MAX;
        (bytes > 0 && fits).then_some(Shape { blocks, block_size, extent_shift, chunk_shift, copy_blocks })
    }

    /// Capacity in blocks.
    pub const fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Block size in bytes.
    pub const fn block_size(&self) -> u32 {
        self.block_size
    }

    /// Chunks are of 2^this blocks.
    pub const fn chunk_shift(&self) -> u32 {
        self.chunk_shift
    }

    /// Blocks that one copy moves at most.
    pub const fn copy_blocks(&self) -> u64 {
        self.copy_blocks
    }

    /// True if the span lies within the volume.
    pub const fn holds(&self, span: Span) -> bool {
        span.end() <= self.blocks
    }

    /// How many extents there are.
    pub const fn extents(&self) -> u64 {
        self.blocks.div_ceil(1 << self.extent_shift)
    }

    /// How many chunks there are.
    pub const fn chunks(&self) -> u64 {
        self.blocks.div_ceil(1 << self.chunk_shift)
    }

    /// The extents that a span touches.
    pub fn extents_of(&self, span: Span) -> core::ops::Range<u64> {
        units(span, self.extent_shift)
    }

    /// The chunks that a span touches.
    pub fn chunks_of(&self, span: Span) -> core::ops::Range<u64> {
        units(span, self.chunk_shift)
    }

    /// The blocks of an extent; `None` behind the end.
    pub fn extent_span(&self, extent: u64) -> Option<Span> {
        self.unit_span(extent, self.extent_shift)
    }

    /// The blocks of a chunk; `None` behind the end.
    pub fn chunk_span(&self, chunk: u64) -> Option<Span> {
        self.unit_span(chunk, self.chunk_shift)
    }

    /// The whole volume.
    pub const fn whole(&self) -> Span {
        Span { lba: 0, blocks: self.blocks }
    }

    fn unit_span(&self, unit: u64, shift: u32) -> Option<Span> {
        let lba = unit.checked_mul(1 << shift)?;
        Span::new(lba, self.blocks.checked_sub(lba)?.min(1 << shift))
    }
}

fn units(span: Span, shift: u32) -> core::ops::Range<u64> {
    (span.lba >> shift)..((span.end() - 1) >> shift) + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_never_empty_and_never_wrap() {
        assert_eq!(Span::new(5, 0), None);
        assert_eq!(Span::new(u64::MAX, 1), None);
        let (a, b) = (Span::new(0, 4).unwrap(), Span::new(4, 1).unwrap());
        assert!(!a.overlaps(b) && !b.overlaps(a) && a.overlaps(Span::new(3, 9).unwrap()));
    }

    #[test]
    fn bitmap_of_a_huge_volume_is_small() {
        let tib = 1u64 << 40;
        let shape = Shape::new(16 * tib / 512, 512).unwrap();
        assert_eq!(shape.chunks(), BITMAP_BITS_MAX);
        assert_eq!(shape.chunk_span(0).unwrap().blocks() * 512, 16 << 20);
        assert_eq!(
            Shape::new(1 << 30 >> 9, 512).unwrap().chunk_span(0).unwrap().blocks() * 512,
            CHUNK_BYTES_MIN
        );
        assert!(Shape::new((i64::MAX as u64) / 4096, 4096).unwrap().chunks() <= BITMAP_BITS_MAX);
        assert_eq!(Shape::new(u64::MAX, 4096), None);
        assert_eq!(Shape::new(0, 512), None);
    }

    #[test]
    fn last_unit_ends_with_the_volume() {
        let shape = Shape::with_units(70, 512, 5, 4, 8).unwrap();
        assert_eq!((shape.extents(), shape.chunks()), (3, 5));
        assert_eq!(shape.extent_span(2), Span::new(64, 6));
        assert_eq!(shape.extent_span(3), None);
        assert_eq!(shape.extents_of(Span::new(31, 2).unwrap()), 0..2);
        assert_eq!(shape.chunks_of(Span::new(16, 16).unwrap()), 1..2);
    }
}
