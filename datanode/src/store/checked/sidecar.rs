//! The file `checksums` of a replica, byte by byte. All numbers are big endian; drawn for people in `docs/checksums.md`.
//!
//! ```text
//!      0  slot 0: 8192 bytes      two slots, written in turn, each with the whole head
//!   8192  slot 1: 8192 bytes
//!  16384  checksums, 4 bytes for each 4096 bytes of data: block n at 16384 + 4 * n
//!
//!  slot
//!      0  "HFCHKSUM"                 8
//!      8  version 1                  2
//!     10  unsettled extents, 0..=504 2
//!     12  bad blocks, 0..=504        2
//!     14  zeroes                     2
//!     16  volume id                 16
//!     32  sequence number            8    the higher whole slot counts
//!     40  scrub: next block          8    where the pass that is under way goes on; 0: none is, or it has just begun
//!     48  scrub: last pass ended     8    milliseconds since 1970; 0: none has
//!     56  scrub: last request obeyed 8
//!     64  unsettled extents          8 each, ascending: numbers of 4 MiB
//!         bad blocks                 8 each, ascending: numbers of 4096 bytes
//!         zeroes
//!   8188  CRC32C of 0..8188          4
//! ```
//!
//! The checksum of a block is the CRC32C of its 4096 bytes, exclusive-or the CRC32C of 4096 zeroes. So a block of zeroes, one that
//! was never written, and one that was unmapped all have 0, and a hole in `data` belongs to a hole here. The bytes that the last block
//! has behind the end of the volume count as zeroes.
//!
//! Invariants: a slot is taken whole or not at all; what no slot of today says is refused.

use std::collections::BTreeSet;

use holdfast_replica::ids::VolumeId;

/// Bytes of data under one checksum.
pub const BLOCK: u64 = 4096;
/// Bytes of an extent: those of an extent of the activity log, and what one page of checksums covers.
pub(super) const EXTENT: u64 = 4 * 1024 * 1024;
pub(super) const BLOCKS_PER_EXTENT: u64 = EXTENT / BLOCK;
pub(super) const SUM_LEN: u64 = 4;
pub(super) const SLOT_LEN: usize = 8192;
pub(super) const SUMS_AT: u64 = 2 * SLOT_LEN as u64;
/// Extents that may be unsettled at a time: what an open after a crash reads again is at most 2 GiB.
pub(super) const UNSETTLED_MAX: usize = 504;
/// Bad blocks that are remembered over a restart.
pub(super) const BAD_MAX: usize = 504;
/// CRC32C of 4096 zeroes.
const OF_ZEROES: u32 = 0x98f9_4189;

const MAGIC: &[u8; 8] = b"HFCHKSUM";
const VERSION: u16 = 1;
const ENTRIES_AT: usize = 64;
const CRC_AT: usize = SLOT_LEN - 4;

/// Why the checksums of a replica cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SidecarError {
    /// Neither slot is whole.
    #[error("the replica's file of checksums is damaged: remove this copy of the volume and add it again")]
    Damaged,
    /// They are another volume's.
    #[error("the replica's file of checksums belongs to volume {0}")]
    Foreign(VolumeId),
    /// The pool is not a directory.
    #[error(
        "pool {pool} is not a directory: it has no place for checksums; use another pool, or a volume without them"
    )]
    NoPlace {
        /// Its name.
        pool: String,
    },
    /// There are none, and the record says that there are; or the other way round.
    #[error("{}", if *.expected { "the replica has no checksums, and its volume has" } else { "the replica has checksums, and its volume has none" })]
    Other {
        /// The record says that there are.
        expected: bool,
    },
}

/// Where a scrub is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubMark {
    /// The next block to look at.
    pub next_block: u64,
    /// When the last pass ended, in milliseconds since 1970; 0: none has.
    pub finished_unix_ms: u64,
    /// The last request for a pass that was obeyed.
    pub request: u64,
}

/// What a slot says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) sequence: u64,
    pub(super) unsettled: BTreeSet<u64>,
    pub(super) bad: BTreeSet<u64>,
    pub(super) scrub: ScrubMark,
}

impl Head {
    /// Where its slot is.
    pub(super) fn offset(&self) -> u64 {
        (self.sequence % 2) * SLOT_LEN as u64
    }

    /// The slot. Entries over the bounds are left out: callers keep them.
    pub(super) fn encode(&self, volume: VolumeId) -> Vec<u8> {
        let mut slot = Vec::with_capacity(SLOT_LEN);
        let unsettled = self.unsettled.len().min(UNSETTLED_MAX);
        let bad = self.bad.len().min(BAD_MAX);
        slot.extend_from_slice(MAGIC);
        slot.extend_from_slice(&VERSION.to_be_bytes());
        slot.extend_from_slice(&(unsettled as u16).to_be_bytes());
        slot.extend_from_slice(&(bad as u16).to_be_bytes());
        slot.extend_from_slice(&[0; 2]);
        slot.extend_from_slice(&volume.0);
        let ScrubMark { next_block, finished_unix_ms, request } = self.scrub;
        for number in [self.sequence, next_block, finished_unix_ms, request] {
            slot.extend_from_slice(&number.to_be_bytes());
        }
        for entry in self.unsettled.iter().take(unsettled).chain(self.bad.iter().take(bad)) {
            slot.extend_from_slice(&entry.to_be_bytes());
        }
        slot.resize(CRC_AT, 0);
        let crc = crc32c::crc32c(&slot);
        slot.extend_from_slice(&crc.to_be_bytes());
        slot
    }

    fn decode(slot: &[u8]) -> Option<(VolumeId, Head)> {
        let (body, crc) = slot.split_at_checked(CRC_AT)?;
        if crc32c::crc32c(body).to_be_bytes() != crc || body.get(..8)? != MAGIC {
            return None;
        }
        let short = |at: usize| Some(u16::from_be_bytes(body.get(at..at + 2)?.try_into().ok()?));
        let long = |at: usize| Some(u64::from_be_bytes(body.get(at..at + 8)?.try_into().ok()?));
        let (unsettled, bad) = (usize::from(short(10)?), usize::from(short(12)?));
        if short(8)? != VERSION || short(14)? != 0 || unsettled > UNSETTLED_MAX || bad > BAD_MAX {
            return None;
        }
        let entries = |from: usize, count: usize| -> Option<BTreeSet<u64>> {
            let list =
                (from..from + count).map(|n| long(ENTRIES_AT + 8 * n)).collect::<Option<Vec<u64>>>()?;
            list.is_sorted_by(|a, b| a < b).then(|| list.into_iter().collect())
        };
        let head = Head {
            sequence: long(32)?,
            unsettled: entries(0, unsettled)?,
            bad: entries(unsettled, bad)?,
            scrub: ScrubMark { next_block: long(40)?, finished_unix_ms: long(48)?, request: long(56)? },
        };
        let rest = body.get(ENTRIES_AT + 8 * (unsettled + bad)..)?;
        let volume = VolumeId(body.get(16..32)?.try_into().ok()?);
        rest.iter().all(|b| *b == 0).then_some((volume, head))
    }

    /// The newer of the whole slots.
    pub(super) fn newest(volume: VolumeId, slots: &[u8]) -> Result<Head, SidecarError> {
        let whole = slots.chunks(SLOT_LEN).filter_map(Head::decode);
        let (found, head) = whole.max_by_key(|(_, head)| head.sequence).ok_or(SidecarError::Damaged)?;
        if found == volume { Ok(head) } else { Err(SidecarError::Foreign(found)) }
    }
}

/// Length of the file for so many bytes of data.
pub(super) fn file_len(data_len: u64) -> u64 {
    SUMS_AT.saturating_add(data_len.div_ceil(BLOCK).saturating_mul(SUM_LEN))
}

/// Where the checksum of a block is.
pub(super) fn sum_at(block: u64) -> u64 {
    SUMS_AT.saturating_add(block.saturating_mul(SUM_LEN))
}

/// The checksum of a block; what it lacks of 4096 bytes counts as zeroes.
pub(super) fn sum(block: &[u8]) -> u32 {
    static ZEROES: [u8; BLOCK as usize] = [0; BLOCK as usize];
    let crc = crc32c::crc32c(block);
    let missing = ZEROES.get(block.len()..).unwrap_or_default();
    crc32c::crc32c_append(crc, missing) ^ OF_ZEROES
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn zeroes_have_the_checksum_zero_and_the_end_is_padded() {
        assert_eq!(sum(&[0; 4096]), 0);
        assert_eq!(sum(&[]), 0);
        let mut padded = [0; 4096];
        padded[..512].fill(7);
        assert_eq!(sum(&padded[..512]), sum(&padded));
        assert_ne!(sum(&padded), 0);
    }

    #[test]
    fn every_change_of_a_slot_is_noticed_and_the_other_one_counts() {
        let volume = VolumeId([7; 16]);
        let old = Head { sequence: 4, ..Head::default() };
        let new = Head { sequence: 5, unsettled: [1, 9].into(), bad: [3].into(), ..Head::default() };
        let slots = [old.encode(volume), new.encode(volume)].concat();
        assert_eq!(Head::newest(volume, &slots).unwrap(), new);
        for at in 0..SLOT_LEN {
            let mut torn = slots.clone();
            torn[SLOT_LEN + at] ^= 0x40;
            assert_eq!(Head::newest(volume, &torn).unwrap(), old, "byte {at}");
        }
        assert!(matches!(Head::newest(VolumeId([8; 16]), &slots), Err(SidecarError::Foreign(_))));
        assert!(matches!(Head::newest(volume, &[0; 2 * SLOT_LEN]), Err(SidecarError::Damaged)));
    }

    proptest! {
        #[test]
        fn heads_read_back(
            sequence: u64, unsettled in proptest::collection::btree_set(any::<u64>(), 0..=UNSETTLED_MAX),
            bad in proptest::collection::btree_set(any::<u64>(), 0..=BAD_MAX), next_block: u64, finished_unix_ms: u64, request: u64,
        ) {
            let scrub = ScrubMark { next_block, finished_unix_ms, request };
            let head = Head { sequence, unsettled, bad, scrub };
            let slot = head.encode(VolumeId([1; 16]));
            prop_assert_eq!(slot.len(), SLOT_LEN);
            prop_assert_eq!(Head::decode(&slot), Some((VolumeId([1; 16]), head)));
        }
    }
}
