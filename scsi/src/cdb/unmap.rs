//! The parameter list of UNMAP (SBC-4 5.36): a header of 8 bytes, then block descriptors of 16.

use crate::geometry::{Extent, Geometry};
use crate::limits;
use crate::sense::{Sense, asc};

const HEADER_LEN: usize = 8;
const DESCRIPTOR_LEN: usize = 16;

/// The ranges of a parameter list that was checked as a whole: all lie within the capacity, their sum within
/// [`limits::UNMAP_BLOCKS_MAX`]. Iterates over the non-empty ones.
#[derive(Clone, Debug)]
pub struct UnmapExtents<'a> {
    descriptors: &'a [u8],
}

impl Iterator for UnmapExtents<'_> {
    type Item = Extent;

    fn next(&mut self) -> Option<Extent> {
        while let Some((descriptor, rest)) = self.descriptors.split_first_chunk() {
            self.descriptors = rest;
            let extent = extent_of(descriptor);
            if !extent.is_empty() {
                return Some(extent);
            }
        }
        None
    }
}

/// Checks the parameter list that an UNMAP command brought (`list` is as long as PARAMETER LIST LENGTH says).
///
/// # Errors
/// PARAMETER LIST LENGTH ERROR for a list of 1 to 7 bytes; LOGICAL BLOCK ADDRESS OUT OF RANGE for a descriptor beyond
/// the capacity; INVALID FIELD IN PARAMETER LIST for more descriptors or blocks than Block Limits allows, with the
/// descriptor where the limit was passed. Nothing has been unmapped then.
pub fn parse_unmap_list<'a>(list: &'a [u8], geometry: &Geometry) -> Result<UnmapExtents<'a>, Sense> {
    if list.is_empty() {
        return Ok(UnmapExtents { descriptors: &[] });
    }
    let Some((header, body)) = list.split_first_chunk::<HEADER_LEN>() else {
        return Err(Sense::parameter_list_length());
    };
    let claimed = usize::from(u16::from_be_bytes([header[2], header[3]]));
    // SBC-4: a list that ends early or in the middle of a descriptor is used as far as whole descriptors go.
    let whole = claimed.min(body.len()) / DESCRIPTOR_LEN * DESCRIPTOR_LEN;
    let descriptors = body.get(..whole).unwrap_or(&[]);
    let mut blocks: u64 = 0;
    let mut remaining = UnmapExtents { descriptors };
    let mut at = HEADER_LEN;
    while let Some((descriptor, rest)) = remaining.descriptors.split_first_chunk() {
        let extent = extent_of(descriptor);
        if at >= HEADER_LEN + DESCRIPTOR_LEN * limits::UNMAP_DESCRIPTORS_MAX as usize {
            return Err(
                Sense::illegal(asc::INVALID_FIELD_IN_PARAMETER_LIST).with_field_pointer(false, 2, None)
            );
        }
        // A descriptor of zero blocks asks for nothing, wherever it points (SBC-4 5.36.3).
        if !extent.is_empty() && geometry.extent(extent.lba, extent.blocks).is_none() {
            return Err(Sense::lba_out_of_range(extent.lba.max(geometry.blocks())));
        }
        blocks = blocks.saturating_add(u64::from(extent.blocks));
        if blocks > u64::from(limits::UNMAP_BLOCKS_MAX) {
            let byte = u16::try_from(at.saturating_add(8)).unwrap_or(u16::MAX);
            return Err(Sense::illegal_field_parameter(byte, None));
        }
        at = at.saturating_add(DESCRIPTOR_LEN);
        remaining.descriptors = rest;
    }
    Ok(UnmapExtents { descriptors })
}

fn extent_of(d: &[u8; DESCRIPTOR_LEN]) -> Extent {
    Extent {
        lba: u64::from_be_bytes([d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]]),
        blocks: u32::from_be_bytes([d[8], d[9], d[10], d[11]]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn list(extents: &[(u64, u32)]) -> Vec<u8> {
        let body = extents.len() * 16;
        let mut out = Vec::new();
        out.extend(((body + 6) as u16).to_be_bytes());
        out.extend((body as u16).to_be_bytes());
        out.extend([0; 4]);
        for (lba, blocks) in extents {
            out.extend(lba.to_be_bytes());
            out.extend(blocks.to_be_bytes());
            out.extend([0; 4]);
        }
        out
    }

    fn unit() -> Geometry {
        Geometry::new(512, 10 << 20).unwrap()
    }

    #[test]
    fn descriptors_become_extents_and_empty_ones_vanish() {
        let bytes = list(&[(5, 3), (unit().blocks(), 0), (u64::MAX, 0), (100, 1)]);
        let got: Vec<Extent> = parse_unmap_list(&bytes, &unit()).unwrap().collect();
        assert_eq!(got, [Extent { lba: 5, blocks: 3 }, Extent { lba: 100, blocks: 1 }]);
    }

    #[test]
    fn no_list_and_no_descriptors_unmap_nothing() {
        assert_eq!(parse_unmap_list(&[], &unit()).unwrap().count(), 0);
        assert_eq!(parse_unmap_list(&list(&[]), &unit()).unwrap().count(), 0);
    }

    #[test]
    fn list_shorter_than_its_header_is_a_length_error() {
        assert_eq!(parse_unmap_list(&[0; 7], &unit()).unwrap_err(), Sense::parameter_list_length());
    }

    #[test]
    fn cut_off_descriptor_is_not_used() {
        let bytes = list(&[(5, 3), (100, 1)]);
        assert_eq!(parse_unmap_list(&bytes[..8 + 31], &unit()).unwrap().count(), 1);
    }

    #[test]
    fn range_beyond_the_capacity_refuses_the_whole_list() {
        let end = unit().blocks();
        let bytes = list(&[(0, 1), (end - 1, 2)]);
        assert_eq!(parse_unmap_list(&bytes, &unit()).unwrap_err(), Sense::lba_out_of_range(end));
        let bytes = list(&[(u64::MAX, 2)]);
        assert_eq!(parse_unmap_list(&bytes, &unit()).unwrap_err(), Sense::lba_out_of_range(u64::MAX));
    }

    #[test]
    fn descriptors_cannot_multiply_past_the_limits() {
        let most = limits::UNMAP_DESCRIPTORS_MAX as usize;
        assert!(parse_unmap_list(&list(&std::vec![(0, 1); most]), &unit()).is_ok());
        let over = parse_unmap_list(&list(&std::vec![(0, 1); most + 1]), &unit()).unwrap_err();
        assert_eq!(over, Sense::illegal_field_parameter(2, None));
        let half = limits::UNMAP_BLOCKS_MAX / 2;
        assert!(parse_unmap_list(&list(&[(0, half), (0, half)]), &unit()).is_ok());
        let over = parse_unmap_list(&list(&[(0, half), (0, half + 1)]), &unit()).unwrap_err();
        assert_eq!(over, Sense::illegal_field_parameter(32, None));
    }
}
