//! How data-in is cut into Data-In PDUs (RFC 7143 11.7): none longer than the initiator's MaxRecvDataSegmentLength, the F bit
//! at the end of every MaxBurstLength and of the whole.
//!
//! Invariant: the parts are successive, not empty, and together exactly the data.

use core::ops::Range;

/// One Data-In PDU's share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) range: Range<usize>,
    /// Ends a sequence.
    pub(crate) last: bool,
}

/// The parts of `len` bytes.
pub(crate) fn parts(len: usize, segment_len_max: u32, burst_len_max: u32) -> impl Iterator<Item = Part> {
    let (segment, burst) = (segment_len_max.max(1) as usize, burst_len_max.max(1) as usize);
    let mut start = 0;
    core::iter::from_fn(move || {
        if start >= len {
            return None;
        }
        let burst_end = (start - start % burst).saturating_add(burst).min(len);
        let end = start.saturating_add(segment).min(burst_end);
        let part = Part { range: start..end, last: end == burst_end };
        start = end;
        Some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    #[test]
    fn sequences_end_at_bursts() {
        let found: Vec<_> = parts(2500, 1000, 1500).map(|p| (p.range, p.last)).collect();
        assert_eq!(found, [(0..1000, false), (1000..1500, true), (1500..2500, true)]);
        assert_eq!(parts(0, 512, 512).count(), 0);
    }

    proptest! {
        #[test]
        fn parts_reassemble(len in 0usize..200_000, segment in 512u32..100_000, burst in 512u32..100_000) {
            let mut next = 0;
            let mut burst_start = 0;
            for part in parts(len, segment, burst) {
                prop_assert_eq!(part.range.start, next);
                prop_assert!(!part.range.is_empty() && part.range.len() <= segment as usize);
                next = part.range.end;
                prop_assert!(next - burst_start <= burst as usize);
                prop_assert_eq!(part.last, next == len || next - burst_start == burst as usize);
                if part.last {
                    burst_start = next;
                }
            }
            prop_assert_eq!(next, len);
        }
    }
}
