//! ROD tokens, and the parameter lists of POPULATE TOKEN and WRITE USING TOKEN (SPC-4 5.16.6 and 6.42, SBC-4 5.17 and
//! 5.57).
//!
//! ```text
//! byte 0    ROD TOKEN TYPE          6    ROD TOKEN LENGTH (01F8h)       8    COPY MANAGER ROD TOKEN IDENTIFIER
//!      16   CREATOR LOGICAL UNIT DESCRIPTOR (an identification descriptor CSCD descriptor)
//!      48   NUMBER OF BYTES REPRESENTED (16 bytes)
//!      96   device type specific data: block length, as in READ CAPACITY (16)
//!      480  a secret of 32 random bytes, which nobody can guess
//! ```
//!
//! Invariant: what a token says of itself is believed only where its unit knows the same 512 bytes.

use alloc::{boxed::Box, vec::Vec};

use super::{ACCESS_UPON_REFERENCE, CHANGE_VULNERABLE, Designator, Fields, IDENTIFICATION, ZERO};
use crate::{
    geometry::{Extent, Geometry},
    identity::LuIdentity,
    limits,
    sense::{Sense, asc},
};

/// Bytes of a ROD token.
pub const TOKEN_LEN: usize = 512;
/// Random bytes that make a token: its identifier and its secret.
pub const RANDOM_LEN: usize = 8 + SECRET_LEN;
const SECRET_LEN: usize = 32;
const SECRET_AT: usize = TOKEN_LEN - SECRET_LEN;

/// Bytes of a ROD management token.
const MANAGEMENT_LEN: usize = 96;
const _: () = assert!(SECRET_AT >= MANAGEMENT_LEN);

/// ROD TOKEN LENGTH: what follows that field.
const BODY_LEN: u16 = (TOKEN_LEN - 8) as u16;

/// The 512 bytes of a ROD token.
#[derive(Clone, PartialEq, Eq)]
pub struct RodToken(pub Box<[u8; TOKEN_LEN]>);

impl core::fmt::Debug for RodToken {
    /// Never its secret.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "RodToken({:02x?})", self.0.get(8..16).unwrap_or_default())
    }
}

impl RodToken {
    /// A new token for `bytes` bytes of a unit.
    pub fn new(
        kind: u32,
        unit: &LuIdentity,
        geometry: &Geometry,
        bytes: u64,
        random: &[u8; RANDOM_LEN],
    ) -> RodToken {
        let mut token = Box::new([0; TOKEN_LEN]);
        let (identifier, secret) = random.split_at(8);
        let parts: [(usize, &[u8]); 7] = [
            (0, &kind.to_be_bytes()),
            (6, &BODY_LEN.to_be_bytes()),
            (8, identifier),
            (16, &Designator::descriptor(unit, geometry.block_size())),
            (56, &bytes.to_be_bytes()),
            (96, &geometry.block_size().to_be_bytes()),
            (SECRET_AT, secret),
        ];
        for (at, part) in parts {
            for (to, from) in token.iter_mut().skip(at).zip(part) {
                *to = *from;
            }
        }
        RodToken(token)
    }

    /// From a parameter list or a frame.
    pub fn from_bytes(bytes: &[u8; TOKEN_LEN]) -> RodToken {
        RodToken(Box::new(*bytes))
    }

    fn fields(&self) -> Fields<'_> {
        Fields(self.0.as_slice())
    }

    /// COPY MANAGER ROD TOKEN IDENTIFIER.
    pub fn identifier(&self) -> [u8; 8] {
        self.fields().array(8).copied().unwrap_or_default()
    }

    /// The ROD management token (SPC-4 5.17.6.4): header and body, which anyone may see.
    pub fn management_token(&self) -> &[u8] {
        self.0.get(..MANAGEMENT_LEN).unwrap_or_default()
    }

    /// The same token, compared in a time that does not tell where it differs.
    pub fn is(&self, other: &RodToken) -> bool {
        self.0.iter().zip(other.0.iter()).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
    }

    /// What the token claims to be.
    ///
    /// # Errors
    /// INVALID TOKEN LENGTH, UNSUPPORTED TOKEN TYPE, or TOKEN CORRUPT where no descriptor names a unit.
    pub fn claim(&self) -> Result<Claim, Sense> {
        let fields = self.fields();
        if fields.u16(6) != Some(BODY_LEN) {
            return Err(Sense::illegal(asc::INVALID_TOKEN_LENGTH));
        }
        match fields.u32(0) {
            Some(ZERO) => return Ok(Claim::Zero),
            Some(ACCESS_UPON_REFERENCE | CHANGE_VULNERABLE) => {}
            _ => return Err(Sense::illegal(asc::UNSUPPORTED_TOKEN_TYPE)),
        }
        let corrupt = Sense::illegal(asc::TOKEN_CORRUPT);
        if fields.u8(16) != Some(IDENTIFICATION) {
            return Err(corrupt);
        }
        let designator = fields.array::<24>(20).map(Designator::parse).ok_or(corrupt)?;
        let (bytes, block_size) = (fields.u64(56).ok_or(corrupt)?, fields.u32(96).ok_or(corrupt)?);
        Ok(Claim::Unit { designator, bytes, block_size })
    }
}

/// What a token says that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The block device zero ROD token: as many zeroes as anyone wants.
    Zero,
    /// Data of a unit.
    Unit {
        /// The unit.
        designator: Designator,
        /// Bytes represented.
        bytes: u64,
        /// Bytes of its logical blocks.
        block_size: u32,
    },
}

/// What POPULATE TOKEN asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Populate {
    /// ROD TYPE of the token.
    pub kind: u32,
    /// INACTIVITY TIMEOUT, in seconds, never 0.
    pub inactivity_s: u32,
    /// The ranges, none empty, none overlapping another.
    pub extents: Vec<Extent>,
}

/// What WRITE USING TOKEN asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteUsing {
    /// IMMED.
    pub immediate: bool,
    /// DEL_TKN: the token is deleted afterwards.
    pub delete: bool,
    /// BLOCK OFFSET INTO ROD.
    pub offset: u64,
    /// The token.
    pub token: RodToken,
    /// The ranges, none empty, none overlapping another.
    pub extents: Vec<Extent>,
}

const RANGE_LEN: u16 = 16;
const POPULATE_RANGES_AT: u16 = 16;
const WRITE_USING_RANGES_AT: u16 = 536;
/// Where BLOCK OFFSET INTO ROD is.
pub const OFFSET_AT: u16 = 8;

/// Reads the parameter list of POPULATE TOKEN. `None`: an empty one, which does nothing.
///
/// # Errors
/// PARAMETER LIST LENGTH ERROR, TOO MANY SEGMENT DESCRIPTORS, LOGICAL BLOCK ADDRESS OUT OF RANGE, or INVALID FIELD IN
/// PARAMETER LIST pointing at the field.
pub fn parse_populate(list: &[u8], geometry: &Geometry) -> Result<Option<Populate>, Sense> {
    if list.is_empty() {
        return Ok(None);
    }
    let fields = Fields(list);
    let cut_off = Sense::parameter_list_length();
    let flags = fields.u8(2).ok_or(cut_off)?;
    let (inactivity_s, kind) = (fields.u32(4).ok_or(cut_off)?, fields.u32(8).ok_or(cut_off)?);
    check_lengths(list, POPULATE_RANGES_AT)?;
    if inactivity_s > limits::TOKEN_INACTIVITY_S_MAX {
        return Err(Sense::illegal_field_parameter(4, None));
    }
    let inactivity_s = if inactivity_s == 0 { limits::TOKEN_INACTIVITY_S_DEFAULT } else { inactivity_s };
    const RTV: u8 = 0x02;
    let kind = match kind {
        _ if flags & RTV == 0 => CHANGE_VULNERABLE,
        ACCESS_UPON_REFERENCE | CHANGE_VULNERABLE => kind,
        _ => return Err(Sense::illegal_field_parameter(8, None)),
    };
    let extents = ranges(list, POPULATE_RANGES_AT, geometry)?;
    Ok(Some(Populate { kind, inactivity_s, extents }))
}

/// Reads the parameter list of WRITE USING TOKEN. `None`: an empty one, which does nothing.
///
/// # Errors
/// As [`parse_populate`]. What is wrong with the token itself is for [`RodToken::claim`].
pub fn parse_write_using(list: &[u8], geometry: &Geometry) -> Result<Option<WriteUsing>, Sense> {
    if list.is_empty() {
        return Ok(None);
    }
    let fields = Fields(list);
    let cut_off = Sense::parameter_list_length();
    let flags = fields.u8(2).ok_or(cut_off)?;
    let token = fields.array(16).map(RodToken::from_bytes).ok_or(cut_off)?;
    let offset = fields.u64(usize::from(OFFSET_AT)).ok_or(cut_off)?;
    check_lengths(list, WRITE_USING_RANGES_AT)?;
    let extents = ranges(list, WRITE_USING_RANGES_AT, geometry)?;
    let (immediate, delete) = (flags & 0x01 != 0, flags & 0x02 != 0);
    Ok(Some(WriteUsing { immediate, delete, offset, token, extents }))
}

/// The data length in the first two bytes, and the length of the range descriptors right before them: both have to be
/// those of the list.
fn check_lengths(list: &[u8], ranges_at: u16) -> Result<(), Sense> {
    let fields = Fields(list);
    let ranges_len_at = ranges_at.saturating_sub(2);
    let cut_off = Sense::parameter_list_length();
    let (data_len, ranges_len) =
        (fields.u16(0).ok_or(cut_off)?, fields.u16(usize::from(ranges_len_at)).ok_or(cut_off)?);
    if data_len < ranges_at.saturating_sub(2).saturating_add(RANGE_LEN) {
        return Err(Sense::illegal_field_parameter(0, None));
    }
    if ranges_len < RANGE_LEN || !ranges_len.is_multiple_of(RANGE_LEN) {
        return Err(Sense::illegal_field_parameter(ranges_len_at, None));
    }
    if ranges_len / RANGE_LEN > limits::TOKEN_RANGES_MAX {
        return Err(Sense::illegal(asc::TOO_MANY_SEGMENT_DESCRIPTORS));
    }
    let whole = usize::from(ranges_at).saturating_add(usize::from(ranges_len));
    if whole > list.len() || usize::from(data_len).saturating_add(2) < whole {
        return Err(cut_off);
    }
    Ok(())
}

fn ranges(list: &[u8], from: u16, geometry: &Geometry) -> Result<Vec<Extent>, Sense> {
    let fields = Fields(list);
    let len = fields.u16(usize::from(from).saturating_sub(2)).unwrap_or(0);
    let mut extents: Vec<Extent> = Vec::new();
    let mut blocks_in_all = 0_u64;
    for at in (from..from.saturating_add(len)).step_by(usize::from(RANGE_LEN)) {
        let position = usize::from(at);
        let (Some(lba), Some(blocks)) = (fields.u64(position), fields.u32(position.saturating_add(8))) else {
            return Err(Sense::parameter_list_length());
        };
        let out_of_range = Sense::lba_out_of_range(lba.max(geometry.blocks()));
        let extent = geometry.extent(lba, blocks).ok_or(out_of_range)?;
        if extents.iter().any(|other| other.overlaps(&extent)) {
            return Err(Sense::illegal_field_parameter(at, None));
        }
        blocks_in_all = blocks_in_all.saturating_add(u64::from(blocks));
        if blocks_in_all.saturating_mul(u64::from(geometry.block_size())) > limits::TOKEN_TRANSFER_BYTES_MAX {
            return Err(Sense::illegal_field_parameter(at.saturating_add(8), None));
        }
        if !extent.is_empty() {
            extents.push(extent);
        }
    }
    Ok(extents)
}
