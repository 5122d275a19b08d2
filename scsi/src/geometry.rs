//! The shape of a logical unit, and ranges of its logical blocks.
//!
//! Invariant: a [`Geometry`] has a supported block size and a capacity between 1 block and
//! [`limits::CAPACITY_BYTES_MAX`], so no arithmetic on a range that lies within it can overflow.

use crate::limits;

/// Block size and capacity of a logical unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Geometry {
    block_size: u32,
    blocks: u64,
}

impl Geometry {
    /// `block_size` in bytes (one of [`limits::BLOCK_SIZES`]), `blocks` the number of logical blocks (at least 1, and
    /// at most [`limits::CAPACITY_BYTES_MAX`] bytes). `None` for anything else.
    pub const fn new(block_size: u32, blocks: u64) -> Option<Geometry> {
        if !(block_size == limits::BLOCK_SIZES[0] || block_size == limits::BLOCK_SIZES[1]) || blocks == 0 {
            return None;
        }
        match blocks.checked_mul(block_size as u64) {
            Some(bytes) if bytes <= limits::CAPACITY_BYTES_MAX => Some(Geometry { block_size, blocks }),
            _ => None,
        }
    }

    /// Bytes in a logical block: 512 or 4096.
    pub const fn block_size(&self) -> u32 {
        self.block_size
    }

    /// Number of logical blocks, never 0.
    pub const fn blocks(&self) -> u64 {
        self.blocks
    }

    /// LBA of the last logical block.
    pub const fn last_lba(&self) -> u64 {
        self.blocks.saturating_sub(1)
    }

    /// Capacity in bytes.
    pub const fn bytes(&self) -> u64 {
        self.blocks.saturating_mul(self.block_size as u64)
    }

    /// The range of `blocks` blocks from `lba`, if it lies within the capacity. An empty range has to begin at a block
    /// that exists, too (SBC-4: an LBA beyond the capacity is an error whatever the length).
    pub const fn extent(&self, lba: u64, blocks: u32) -> Option<Extent> {
        match lba.checked_add(blocks as u64) {
            Some(end) if end <= self.blocks && lba < self.blocks => Some(Extent { lba, blocks }),
            _ => None,
        }
    }

    /// True if `lba` is a logical block of this unit.
    pub const fn contains(&self, lba: u64) -> bool {
        lba < self.blocks
    }
}

/// A range of logical blocks. `blocks` may be 0 (a READ of nothing is no error).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Extent {
    /// First logical block.
    pub lba: u64,
    /// Number of logical blocks.
    pub blocks: u32,
}

impl Extent {
    /// First LBA behind the range.
    pub const fn end(&self) -> u64 {
        self.lba.saturating_add(self.blocks as u64)
    }

    /// True for a range of no blocks.
    pub const fn is_empty(&self) -> bool {
        self.blocks == 0
    }

    /// True if both ranges share a block. An empty range overlaps nothing.
    pub const fn overlaps(&self, other: &Extent) -> bool {
        !self.is_empty() && !other.is_empty() && self.lba < other.end() && other.lba < self.end()
    }

    /// True if the whole range lies within `geometry`.
    pub const fn within(&self, geometry: &Geometry) -> bool {
        self.end() <= geometry.blocks()
    }

    /// Offset of the range in bytes from the start of the unit.
    pub const fn byte_offset(&self, geometry: &Geometry) -> u64 {
        self.lba.saturating_mul(geometry.block_size() as u64)
    }

    /// Length of the range in bytes.
    pub const fn byte_len(&self, geometry: &Geometry) -> u64 {
        (self.blocks as u64).saturating_mul(geometry.block_size() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_supported_block_sizes_and_capacities_exist() {
        assert!(Geometry::new(512, 1).is_some() && Geometry::new(4096, 1 << 40).is_some());
        assert!(Geometry::new(520, 1).is_none());
        assert!(Geometry::new(512, 0).is_none());
        assert!(Geometry::new(4096, u64::MAX).is_none());
        assert!(Geometry::new(512, (1 << 51) + 1).is_none());
    }

    #[test]
    fn extent_that_wraps_is_refused() {
        let g = Geometry::new(512, 100).unwrap();
        assert_eq!(g.extent(99, 1), Some(Extent { lba: 99, blocks: 1 }));
        assert_eq!(g.extent(99, 2), None);
        assert_eq!(g.extent(u64::MAX, 2), None);
        assert_eq!(g.extent(99, 0), Some(Extent { lba: 99, blocks: 0 }));
        assert_eq!(g.extent(100, 0), None);
    }

    #[test]
    fn empty_extents_overlap_nothing() {
        let a = Extent { lba: 5, blocks: 5 };
        assert!(a.overlaps(&Extent { lba: 9, blocks: 1 }));
        assert!(!a.overlaps(&Extent { lba: 10, blocks: 1 }));
        assert!(!a.overlaps(&Extent { lba: 7, blocks: 0 }));
    }
}
