//! The raw fields of a CDB, read without any way to run out of bytes.

use crate::geometry::{Extent, Geometry};
use crate::limits::CDB_LEN_MAX;
use crate::opcode::{NACA, Row};
use crate::sense::Sense;

/// The bytes of a CDB, zero-filled up to the longest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawCdb([u8; CDB_LEN_MAX]);

impl RawCdb {
    /// Takes the first `len` bytes of `cdb`; a shorter one is refused with a pointer to the first missing byte.
    pub(super) fn new(cdb: &[u8], len: usize) -> Result<RawCdb, Sense> {
        let Some(bytes) = cdb.get(..len) else {
            return Err(Sense::illegal_field_cdb(u16::try_from(cdb.len()).unwrap_or(u16::MAX), None));
        };
        let mut raw = [0; CDB_LEN_MAX];
        for (to, from) in raw.iter_mut().zip(bytes) {
            *to = *from;
        }
        Ok(RawCdb(raw))
    }

    /// Refuses any bit that is set although the command's row has it neither in its usage data nor among those left
    /// to the decoder. This covers reserved fields, unsupported options, and CONTROL but for NACA.
    pub(super) fn refuse_bits_outside(&self, row: &Row) -> Result<(), Sense> {
        for (at, (byte, usage)) in self.0.iter().zip(row.usage).enumerate().skip(1) {
            let unchecked = row.unchecked.get(at).copied().unwrap_or(0);
            let naca = if at == row.control_at() { NACA } else { 0 };
            let wrong = byte & !usage & !unchecked & !naca;
            if wrong != 0 {
                // Bits 7..5 of the byte of flags are one field in every command: RDPROTECT and its like, or reserved.
                let bit = if at == row.flags_at() && wrong & 0xe0 != 0 { 7 } else { highest_bit(wrong) };
                return Err(Sense::illegal_field_cdb(u16::try_from(at).unwrap_or(u16::MAX), Some(bit)));
            }
        }
        Ok(())
    }

    /// Byte `AT`.
    pub(super) const fn u8<const AT: usize>(&self) -> u8 {
        const { assert!(AT < CDB_LEN_MAX) };
        self.0[AT]
    }

    /// Bit `BIT` of byte `AT`.
    pub(super) const fn bit<const AT: usize, const BIT: u8>(&self) -> bool {
        const { assert!(BIT < 8) };
        self.u8::<AT>() & (1 << BIT) != 0
    }

    /// Big-endian 16 bits at `AT`.
    pub(super) const fn u16<const AT: usize>(&self) -> u16 {
        const { assert!(AT + 2 <= CDB_LEN_MAX) };
        u16::from_be_bytes([self.0[AT], self.0[AT + 1]])
    }

    /// Big-endian 32 bits at `AT`.
    pub(super) const fn u32<const AT: usize>(&self) -> u32 {
        const { assert!(AT + 4 <= CDB_LEN_MAX) };
        u32::from_be_bytes([self.0[AT], self.0[AT + 1], self.0[AT + 2], self.0[AT + 3]])
    }

    /// Big-endian 64 bits at `AT`.
    pub(super) const fn u64<const AT: usize>(&self) -> u64 {
        const { assert!(AT + 8 <= CDB_LEN_MAX) };
        let [a, b, c, d] = self.u32::<AT>().to_be_bytes();
        u64::from_be_bytes([a, b, c, d, self.0[AT + 4], self.0[AT + 5], self.0[AT + 6], self.0[AT + 7]])
    }

    /// SERVICE ACTION: bits 4..0 of byte 1, in every CDB of a fixed length that has one.
    pub(super) const fn service_action(&self) -> u16 {
        (self.0[1] & 0x1f) as u16
    }
}

/// The range of `blocks` blocks from `lba`, or LOGICAL BLOCK ADDRESS OUT OF RANGE with the first LBA that is missing.
pub(super) fn extent(geometry: &Geometry, lba: u64, blocks: u32) -> Result<Extent, Sense> {
    geometry.extent(lba, blocks).ok_or(Sense::lba_out_of_range(lba.max(geometry.blocks())))
}

const fn highest_bit(byte: u8) -> u8 {
    7u32.saturating_sub(byte.leading_zeros()) as u8
}
