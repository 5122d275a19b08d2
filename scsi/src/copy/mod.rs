//! Third-party copy: what its parameter lists say (SPC-4 5.16 and 6.4, SBC-4 5.17 and 5.57).
//!
//! | Looking for | Module |
//! |---|---|
//! | EXTENDED COPY's parameter lists | [`extended`] |
//! | those of POPULATE TOKEN and WRITE USING TOKEN, and the 512 bytes of a ROD token | [`token`] |
//! | which tokens a logical unit has given out, and what ends them | [`tokens`] |
//! | what RECEIVE COPY ... and RECEIVE ROD TOKEN INFORMATION answer | [`report`] |
//!
//! Invariants: a list is judged whole before anything of it is done; what a plan names lies within the bounds of
//! [`crate::limits`], except logical blocks, whose unit is not known here.

#[cfg(feature = "alloc")]
pub mod extended;
#[cfg(feature = "alloc")]
pub mod report;
#[cfg(feature = "alloc")]
pub mod token;
#[cfg(feature = "alloc")]
pub mod tokens;

#[cfg(test)]
mod tests;

use crate::identity::LuIdentity;

/// DESCRIPTOR TYPE CODE of the identification descriptor CSCD descriptor.
pub const IDENTIFICATION: u8 = 0xe4;
/// DESCRIPTOR TYPE CODE of the block device to block device segment descriptor.
pub const BLOCK_TO_BLOCK: u8 = 0x02;
/// DESCRIPTOR TYPE CODE of the block device to block device with offset segment descriptor.
pub const BLOCK_TO_BLOCK_OFFSET: u8 = 0x0a;
/// CSCD descriptor ID of the copy manager's own logical unit.
pub const OWN_UNIT: u16 = 0xffff;
/// ROD TYPE access upon reference.
pub const ACCESS_UPON_REFERENCE: u32 = 0x0001_0000;
/// ROD TYPE point in time copy, change vulnerable: the token is revoked when what it represents changes.
pub const CHANGE_VULNERABLE: u32 = 0x0080_0001;
/// ROD TYPE block device zero ROD token.
pub const ZERO: u32 = 0xffff_0001;

/// A name that a CSCD descriptor gives a logical unit: one that our device identification page shows and that fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Designator {
    /// NAA.
    Naa([u8; 8]),
    /// UUID, without the two bytes before it.
    Uuid([u8; 16]),
    /// Of a kind that no unit here has.
    Foreign,
}

/// DESIGNATOR TYPEs, CODE SET binary, ASSOCIATION logical unit.
const NAA: u8 = 0x3;
#[cfg(feature = "alloc")]
const UUID: u8 = 0xa;
const BINARY: u8 = 1;

impl Designator {
    #[cfg(feature = "alloc")]
    /// Reads the 24 bytes of an identification descriptor CSCD descriptor that describe the designator.
    fn parse(bytes: &[u8; 24]) -> Designator {
        let [code_set, kind, _, len, designator @ ..] = bytes;
        // Bits 7..4 of the first byte are the PROTOCOL IDENTIFIER, which says nothing without PIV.
        let of_unit = code_set & 0x0f == BINARY && kind & 0x30 == 0;
        match (kind & 0x0f, len, designator) {
            (NAA, 8, [a, b, c, d, e, f, g, h, ..]) if of_unit => {
                Designator::Naa([*a, *b, *c, *d, *e, *f, *g, *h])
            }
            (UUID, 18, [0x10, 0, uuid @ ..]) if of_unit => {
                uuid.first_chunk().map_or(Designator::Foreign, |uuid| Designator::Uuid(*uuid))
            }
            _ => Designator::Foreign,
        }
    }

    /// True if it names this unit.
    pub fn names(&self, unit: &LuIdentity) -> bool {
        match self {
            Designator::Naa(naa) => *naa == unit.naa(),
            Designator::Uuid(uuid) => *uuid == unit.volume_uuid,
            Designator::Foreign => false,
        }
    }

    /// The 32 bytes of an identification descriptor CSCD descriptor that names `unit` by its NAA designator.
    pub fn descriptor(unit: &LuIdentity, block_size: u32) -> [u8; 32] {
        let mut out = [0; 32];
        let [a, b, c, d, e, f, g, h] = unit.naa();
        let [_, high, middle, low] = block_size.to_be_bytes();
        let (head, tail) = out.split_at_mut(28);
        for (to, from) in
            head.iter_mut().zip([IDENTIFICATION, 0, 0, 0, BINARY, NAA, 0, 8, a, b, c, d, e, f, g, h])
        {
            *to = from;
        }
        for (to, from) in tail.iter_mut().zip([0, high, middle, low]) {
            *to = from;
        }
        out
    }
}

/// Big-endian fields of a parameter list.
#[cfg(feature = "alloc")]
#[derive(Clone, Copy, Debug)]
struct Fields<'a>(&'a [u8]);

#[cfg(feature = "alloc")]
impl<'a> Fields<'a> {
    fn array<const N: usize>(&self, at: usize) -> Option<&'a [u8; N]> {
        self.0.get(at..)?.first_chunk()
    }

    fn u8(&self, at: usize) -> Option<u8> {
        self.0.get(at).copied()
    }

    fn u16(&self, at: usize) -> Option<u16> {
        self.array(at).map(|bytes| u16::from_be_bytes(*bytes))
    }

    fn u32(&self, at: usize) -> Option<u32> {
        self.array(at).map(|bytes| u32::from_be_bytes(*bytes))
    }

    fn u64(&self, at: usize) -> Option<u64> {
        self.array(at).map(|bytes| u64::from_be_bytes(*bytes))
    }
}
