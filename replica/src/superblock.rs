//! The header of a replica on disk: whose it is, its shape, and the highest epoch that it promised.
//!
//! Two slots of [`SLOT_LEN`] bytes are written in turn, so that a torn write leaves the other one. All numbers are big
//! endian. One slot:
//!
//! ```text
//!  byte
//!     0  "HFREPLIC"                               magic, 8 bytes
//!     8  0x0001          | 0x0000                 format version, reserved
//!    12  0x00000000                               reserved
//!    16  cluster id                               16 bytes
//!    32  volume id                                16 bytes
//!    48  node number     | 0x0000                 2 bytes, reserved
//!    52  block size                               4 bytes, in bytes
//!    56  blocks                                   8 bytes, capacity in blocks
//!    64  sequence number                          8 bytes, grows by one with each write; the higher slot counts
//!    72  promised epoch: generation               4 bytes
//!    76  0x00000000                               reserved
//!    80  promised epoch: number                   8 bytes
//!    88  zeroes
//!  4092  CRC32C of bytes 0..4092                  4 bytes
//! ```
//!
//! Invariants: sequence number and promised epoch only grow; identity never changes; a slot with a valid checksum that
//! this version cannot read stops the replica (an older slot would be a step back in time), a slot without one is a torn
//! write and is passed over while the other slot is whole.

use alloc::boxed::Box;
use core::fmt;

use crate::{
    Crc32c,
    epoch::Epoch,
    ids::{ClusterId, NodeNumber, VolumeId},
};

/// Length of one slot, in bytes: one block of any disk, written whole.
pub const SLOT_LEN: usize = 4096;
/// Number of slots.
pub const SLOTS: usize = 2;

const MAGIC: [u8; 8] = *b"HFREPLIC";
const VERSION: u16 = 1;
const CRC_AT: usize = SLOT_LEN - 4;

/// What a slot says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// The cluster.
    pub cluster: ClusterId,
    /// The volume.
    pub volume: VolumeId,
    /// The data node that the replica was made for.
    pub node: NodeNumber,
    /// Block size in bytes, 512 or 4096.
    pub block_size: u32,
    /// Capacity in blocks, at least 1.
    pub blocks: u64,
    /// Grows by one with each write.
    pub sequence: u64,
    /// Highest epoch that the replica promised: data messages of lower ones are refused.
    pub promised: Epoch,
}

/// Why there is no superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SuperblockError {
    /// Both slots hold zeroes: no replica was ever made here.
    Blank,
    /// Neither slot is whole. The replica cannot be trusted.
    Corrupt,
    /// Written by a later version (its number).
    UnknownVersion(u16),
    /// A whole slot with a field out of range.
    Field(&'static str),
    /// Both slots are whole and name different replicas.
    Disagree,
}

impl fmt::Display for SuperblockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SuperblockError::Blank => f.write_str("there is no replica"),
            SuperblockError::Corrupt => f.write_str("both superblocks are damaged"),
            SuperblockError::UnknownVersion(v) => {
                write!(f, "superblock version {v} is newer than this program")
            }
            SuperblockError::Field(name) => write!(f, "the superblock's {name} is out of range"),
            SuperblockError::Disagree => f.write_str("the two superblocks name different replicas"),
        }
    }
}

impl core::error::Error for SuperblockError {}

/// What one slot holds.
enum SlotContent {
    Blank,
    /// No valid checksum: a torn write, or damage.
    Torn,
    Whole(Superblock),
}

impl Superblock {
    /// Slot that this state is written to; the other one keeps the state before it.
    pub const fn slot(&self) -> usize {
        if self.sequence.is_multiple_of(2) { 0 } else { 1 }
    }

    /// The state after one more write, with a promise at least as high as before. `None` when `promised` is lower or the
    /// sequence numbers are used up.
    #[must_use]
    pub fn promise(&self, promised: Epoch) -> Option<Superblock> {
        (promised >= self.promised).then_some(())?;
        Some(Superblock { sequence: self.sequence.checked_add(1)?, promised, ..self.clone() })
    }

    /// The state after one more write, with a larger capacity. `None` when it would shrink.
    #[must_use]
    pub fn resize(&self, blocks: u64) -> Option<Superblock> {
        (blocks >= self.blocks).then_some(())?;
        Some(Superblock { sequence: self.sequence.checked_add(1)?, blocks, ..self.clone() })
    }

    /// The bytes of a slot.
    pub fn encode(&self, crc32c: Crc32c) -> Box<[u8; SLOT_LEN]> {
        let mut slot = Box::new([0; SLOT_LEN]);
        put(&mut slot, 0, &MAGIC);
        put(&mut slot, 8, &VERSION.to_be_bytes());
        put(&mut slot, 16, &self.cluster.0);
        put(&mut slot, 32, &self.volume.0);
        put(&mut slot, 48, &self.node.get().to_be_bytes());
        put(&mut slot, 52, &self.block_size.to_be_bytes());
        put(&mut slot, 56, &self.blocks.to_be_bytes());
        put(&mut slot, 64, &self.sequence.to_be_bytes());
        put(&mut slot, 72, &self.promised.generation.to_be_bytes());
        put(&mut slot, 80, &self.promised.number.to_be_bytes());
        let crc = crc32c(0, slot.get(..CRC_AT).unwrap_or_default());
        put(&mut slot, CRC_AT, &crc.to_be_bytes());
        slot
    }

    /// The newest state of two slots.
    pub fn decode(slots: [&[u8; SLOT_LEN]; SLOTS], crc32c: Crc32c) -> Result<Superblock, SuperblockError> {
        let [first, second] = slots;
        match (decode_slot(first, crc32c)?, decode_slot(second, crc32c)?) {
            (SlotContent::Whole(a), SlotContent::Whole(b)) => {
                if (a.cluster, a.volume, a.node) != (b.cluster, b.volume, b.node) {
                    return Err(SuperblockError::Disagree);
                }
                Ok(if a.sequence >= b.sequence { a } else { b })
            }
            (SlotContent::Whole(only), _) | (_, SlotContent::Whole(only)) => Ok(only),
            (SlotContent::Blank, SlotContent::Blank) => Err(SuperblockError::Blank),
            _ => Err(SuperblockError::Corrupt),
        }
    }
}

fn decode_slot(slot: &[u8; SLOT_LEN], crc32c: Crc32c) -> Result<SlotContent, SuperblockError> {
    if slot.iter().all(|byte| *byte == 0) {
        return Ok(SlotContent::Blank);
    }
    let (body, crc) = slot.split_at(CRC_AT);
    if array::<8>(slot, 0) != MAGIC || crc != crc32c(0, body).to_be_bytes() {
        return Ok(SlotContent::Torn);
    }
    let version = u16::from_be_bytes(array(slot, 8));
    if version != VERSION {
        return Err(SuperblockError::UnknownVersion(version));
    }
    let node = NodeNumber::new(u32::from(u16::from_be_bytes(array(slot, 48))));
    let block_size = u32::from_be_bytes(array(slot, 52));
    let blocks = u64::from_be_bytes(array(slot, 56));
    if !matches!(block_size, 512 | 4096) {
        return Err(SuperblockError::Field("block size"));
    }
    if blocks == 0 || blocks.checked_mul(u64::from(block_size)).is_none_or(|bytes| bytes > i64::MAX as u64) {
        return Err(SuperblockError::Field("capacity"));
    }
    Ok(SlotContent::Whole(Superblock {
        cluster: ClusterId(array(slot, 16)),
        volume: VolumeId(array(slot, 32)),
        node: node.ok_or(SuperblockError::Field("node number"))?,
        block_size,
        blocks,
        sequence: u64::from_be_bytes(array(slot, 64)),
        promised: Epoch {
            generation: u32::from_be_bytes(array(slot, 72)),
            number: u64::from_be_bytes(array(slot, 80)),
        },
    }))
}

fn put(slot: &mut [u8; SLOT_LEN], at: usize, bytes: &[u8]) {
    for (to, from) in slot.iter_mut().skip(at).zip(bytes) {
        *to = *from;
    }
}

/// Every offset above lies within the slot, so this never gives zeroes in place of bytes.
fn array<const N: usize>(slot: &[u8; SLOT_LEN], at: usize) -> [u8; N] {
    slot.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crc(so_far: u32, bytes: &[u8]) -> u32 {
        crc32c::crc32c_append(so_far, bytes)
    }

    fn sample() -> Superblock {
        Superblock {
            cluster: ClusterId([1; 16]),
            volume: VolumeId([2; 16]),
            node: NodeNumber::new(3).unwrap(),
            block_size: 512,
            blocks: 2048,
            sequence: 1,
            promised: Epoch { generation: 0, number: 7 },
        }
    }

    const BLANK: [u8; SLOT_LEN] = [0; SLOT_LEN];

    #[test]
    fn reads_back_from_either_slot() {
        let slot = sample().encode(crc);
        assert_eq!(Superblock::decode([&slot, &BLANK], crc), Ok(sample()));
        assert_eq!(Superblock::decode([&BLANK, &slot], crc), Ok(sample()));
    }

    #[test]
    fn slots_are_written_in_turn_and_the_newer_counts() {
        let old = sample();
        let new = old.promise(Epoch { generation: 0, number: 8 }).unwrap();
        assert_ne!(old.slot(), new.slot());
        let decoded = Superblock::decode([&new.encode(crc), &old.encode(crc)], crc);
        assert_eq!(decoded, Ok(new.clone()));
        assert_eq!(Superblock::decode([&old.encode(crc), &new.encode(crc)], crc), Ok(new));
    }

    #[test]
    fn torn_write_leaves_the_state_before_it() {
        let old = sample();
        let mut torn = old.promise(Epoch { generation: 0, number: 8 }).unwrap().encode(crc);
        torn[2000..].fill(0xee);
        assert_eq!(Superblock::decode([&torn, &old.encode(crc)], crc), Ok(old));
        assert_eq!(Superblock::decode([&torn, &torn], crc), Err(SuperblockError::Corrupt));
        assert_eq!(Superblock::decode([&torn, &BLANK], crc), Err(SuperblockError::Corrupt));
    }

    #[test]
    fn nothing_written_is_not_damage() {
        assert_eq!(Superblock::decode([&BLANK, &BLANK], crc), Err(SuperblockError::Blank));
    }

    #[test]
    fn later_version_is_never_passed_over() {
        let old = sample();
        let mut later = old.promise(old.promised).unwrap().encode(crc);
        later[9] = 2;
        let sum = crc(0, &later[..CRC_AT]);
        later[CRC_AT..].copy_from_slice(&sum.to_be_bytes());
        let decoded = Superblock::decode([&later, &old.encode(crc)], crc);
        assert_eq!(decoded, Err(SuperblockError::UnknownVersion(2)));
    }

    #[test]
    fn promise_and_capacity_never_go_back() {
        assert_eq!(sample().promise(Epoch { generation: 0, number: 6 }), None);
        assert_eq!(sample().resize(2047), None);
        assert_eq!(sample().resize(4096).unwrap().blocks, 4096);
    }

    #[test]
    fn replicas_of_two_volumes_are_not_mixed() {
        let other = Superblock { volume: VolumeId([9; 16]), ..sample() };
        let decoded = Superblock::decode([&sample().encode(crc), &other.encode(crc)], crc);
        assert_eq!(decoded, Err(SuperblockError::Disagree));
    }

    #[test]
    fn fields_out_of_range_are_named() {
        for (bad, field) in [
            (Superblock { block_size: 520, ..sample() }, "block size"),
            (Superblock { blocks: 0, ..sample() }, "capacity"),
            (Superblock { blocks: u64::MAX, ..sample() }, "capacity"),
        ] {
            let slot = bad.encode(crc);
            assert_eq!(Superblock::decode([&slot, &BLANK], crc), Err(SuperblockError::Field(field)));
        }
    }

    proptest::proptest! {
        #[test]
        fn one_changed_bit_is_found(at in 0usize..SLOT_LEN * 8) {
            let mut slot = sample().encode(crc);
            slot[at / 8] ^= 1 << (at % 8);
            assert_eq!(Superblock::decode([&slot, &BLANK], crc), Err(SuperblockError::Corrupt));
        }
    }
}
