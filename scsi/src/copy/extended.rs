//! Parameter lists of EXTENDED COPY, LID1 and LID4 (SPC-4 6.4 and 6.5).
//!
//! Supported: identification descriptor CSCD descriptors (E4h), block device to block device (02h) and block device to
//! block device with offset (0Ah) segment descriptors, the latter where offsets and length are whole logical blocks. No
//! inline data, no held data.

use alloc::vec::Vec;

use super::{BLOCK_TO_BLOCK, BLOCK_TO_BLOCK_OFFSET, Designator, Fields, IDENTIFICATION};
use crate::{
    limits,
    sense::{Sense, asc},
};

/// Which form of the command a list belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// EXTENDED COPY (LID1).
    Lid1,
    /// EXTENDED COPY (LID4).
    Lid4,
}

/// What an EXTENDED COPY asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtendedCopy {
    /// LIST IDENTIFIER; `None`: the initiator will not ask for it.
    pub list_id: Option<u32>,
    /// IMMED: the copy is answered before it is done.
    pub immediate: bool,
    /// Copy sources and destinations.
    pub cscds: Vec<Cscd>,
    /// What is copied, in this order.
    pub segments: Vec<Segment>,
}

/// A copy source or copy destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cscd {
    /// Where its descriptor begins in the parameter list.
    pub at: u16,
    /// Its name.
    pub designator: Designator,
    /// PERIPHERAL DEVICE TYPE.
    pub device_type: u8,
    /// DISK BLOCK LENGTH in bytes; 0: not told.
    pub block_size: u32,
}

/// A segment descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// SOURCE CSCD DESCRIPTOR ID.
    pub source: u16,
    /// DESTINATION CSCD DESCRIPTOR ID.
    pub destination: u16,
    /// SOURCE BLOCK DEVICE LOGICAL BLOCK ADDRESS.
    pub source_lba: u64,
    /// DESTINATION BLOCK DEVICE LOGICAL BLOCK ADDRESS.
    pub destination_lba: u64,
    /// How much.
    pub amount: Amount,
}

/// How much a segment copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// Blocks of the source (DC=0).
    SourceBlocks(u16),
    /// Blocks of the destination (DC=1).
    DestinationBlocks(u16),
    /// Bytes, from these byte offsets behind the LBAs on.
    Bytes {
        /// NUMBER OF BYTES.
        count: u32,
        /// SOURCE BLOCK BYTE OFFSET.
        source_offset: u16,
        /// DESTINATION BLOCK BYTE OFFSET.
        destination_offset: u16,
    },
}

/// The fields that the two forms have in different places.
struct Header {
    list_id: u32,
    usage_at: u16,
    id_at: u16,
    usage: u8,
    immediate: bool,
    immediate_at: u16,
    cscds_len: u32,
    cscds_len_at: u16,
    segments_len: u32,
    inline_len: u32,
    len: u32,
}

/// LIST ID USAGE.
const USAGE_SHIFT: u32 = 3;
const USAGE_RESERVED: u8 = 0b01;
const USAGE_NONE: u8 = 0b11;

/// Reads a parameter list. `None`: an empty one, which copies nothing.
///
/// # Errors
/// PARAMETER LIST LENGTH ERROR for one that is cut off or longer than it says, TOO MANY or UNSUPPORTED TARGET or SEGMENT
/// DESCRIPTORS, INLINE DATA LENGTH EXCEEDED, otherwise INVALID FIELD IN PARAMETER LIST pointing at the field.
pub fn parse(form: Form, list: &[u8]) -> Result<Option<ExtendedCopy>, Sense> {
    if list.is_empty() {
        return Ok(None);
    }
    let header = match form {
        Form::Lid1 => lid1(list),
        Form::Lid4 => lid4(list)?,
    };
    let header = header.ok_or(Sense::parameter_list_length())?;
    if header.usage == USAGE_RESERVED {
        return Err(Sense::illegal_field_parameter(header.usage_at, Some(4)));
    }
    if header.usage == USAGE_NONE && header.list_id != 0 {
        return Err(Sense::illegal_field_parameter(header.id_at, None));
    }
    if header.usage == USAGE_NONE && header.immediate {
        // Nobody could ask what became of it.
        return Err(Sense::illegal_field_parameter(header.immediate_at, Some(0)));
    }
    if header.inline_len > 0 {
        return Err(Sense::illegal(asc::INLINE_DATA_LENGTH_EXCEEDED));
    }
    let descriptors_len = header.cscds_len.saturating_add(header.segments_len);
    if descriptors_len > limits::COPY_DESCRIPTORS_LEN_MAX
        || usize::try_from(descriptors_len.saturating_add(header.len)) != Ok(list.len())
    {
        return Err(Sense::parameter_list_length());
    }
    if !header.cscds_len.is_multiple_of(CSCD_LEN) {
        return Err(Sense::illegal_field_parameter(header.cscds_len_at, None));
    }
    if header.cscds_len > u32::from(limits::COPY_CSCDS_MAX).saturating_mul(CSCD_LEN) {
        return Err(Sense::illegal(asc::TOO_MANY_TARGET_DESCRIPTORS));
    }
    let segments_at = header.len.saturating_add(header.cscds_len) as usize;
    let cscds = cscds(list, header.len as usize, segments_at)?;
    let segments = segments(list, segments_at)?;
    let list_id = (header.usage != USAGE_NONE).then_some(header.list_id);
    Ok(Some(ExtendedCopy { list_id, immediate: header.immediate, cscds, segments }))
}

fn lid1(list: &[u8]) -> Option<Header> {
    let fields = Fields(list);
    Some(Header {
        list_id: u32::from(fields.u8(0)?),
        id_at: 0,
        usage: fields.u8(1)? >> USAGE_SHIFT & 0b11,
        usage_at: 1,
        immediate: false,
        immediate_at: 0,
        cscds_len: u32::from(fields.u16(2)?),
        cscds_len_at: 2,
        segments_len: fields.u32(8)?,
        inline_len: fields.u32(12)?,
        len: 16,
    })
}

fn lid4(list: &[u8]) -> Result<Option<Header>, Sense> {
    let fields = Fields(list);
    // PARAMETER LIST FORMAT, HEADER CSCD DESCRIPTOR LIST LENGTH, HEADER CSCD DESCRIPTOR TYPE CODE.
    let fixed = [(0, 0x01, None), (2, 0x00, None), (3, 0x20, Some(2)), (16, 0xff, None)];
    for (at, value, field) in fixed {
        if fields.u8(at as usize).is_some_and(|found| found != value) {
            return Err(Sense::illegal_field_parameter(field.unwrap_or(at), None));
        }
    }
    let header = || {
        Some(Header {
            list_id: fields.u32(20)?,
            id_at: 20,
            usage: fields.u8(1)? >> USAGE_SHIFT & 0b11,
            usage_at: 1,
            immediate: fields.u8(15)? & 0x01 != 0,
            immediate_at: 15,
            cscds_len: u32::from(fields.u16(42)?),
            cscds_len_at: 42,
            segments_len: u32::from(fields.u16(44)?),
            inline_len: u32::from(fields.u16(46)?),
            len: 48,
        })
    };
    Ok(header())
}

const CSCD_LEN: u32 = 32;

fn cscds(list: &[u8], from: usize, to: usize) -> Result<Vec<Cscd>, Sense> {
    let mut cscds = Vec::new();
    let mut at = from;
    while at < to {
        let bytes: &[u8; CSCD_LEN as usize] = Fields(list).array(at).ok_or(Sense::parameter_list_length())?;
        let [code, flags, _, _, designation @ ..] = bytes;
        if *code != IDENTIFICATION {
            return Err(Sense::illegal(asc::UNSUPPORTED_TARGET_DESCRIPTOR));
        }
        let Some((designation, [_, high, middle, low])) = designation.split_first_chunk::<24>() else {
            return Err(Sense::parameter_list_length());
        };
        let position = u16::try_from(at).unwrap_or(u16::MAX);
        if designation[3] > 20 {
            return Err(Sense::illegal_field_parameter(position.saturating_add(7), None));
        }
        cscds.push(Cscd {
            at: position,
            designator: Designator::parse(designation),
            device_type: flags & 0x1f,
            block_size: u32::from_be_bytes([0, *high, *middle, *low]),
        });
        at = at.saturating_add(CSCD_LEN as usize);
    }
    Ok(cscds)
}

fn segments(list: &[u8], from: usize) -> Result<Vec<Segment>, Sense> {
    let mut segments = Vec::new();
    let mut at = from;
    while at < list.len() {
        if segments.len() >= usize::from(limits::COPY_SEGMENTS_MAX) {
            return Err(Sense::illegal(asc::TOO_MANY_SEGMENT_DESCRIPTORS));
        }
        let (segment, len) = segment(list, at)?;
        segments.push(segment);
        at = at.saturating_add(len);
    }
    Ok(segments)
}

fn segment(list: &[u8], at: usize) -> Result<(Segment, usize), Sense> {
    let cut_off = Sense::parameter_list_length();
    let fields = Fields(list.get(at..).unwrap_or_default());
    let code = fields.u8(0).ok_or(cut_off)?;
    let len: usize = match code {
        BLOCK_TO_BLOCK => 28,
        BLOCK_TO_BLOCK_OFFSET => 32,
        _ => return Err(Sense::illegal(asc::UNSUPPORTED_SEGMENT_DESCRIPTOR)),
    };
    let stated = fields.u16(2).ok_or(cut_off)?;
    if usize::from(stated).saturating_add(4) != len {
        let position = u16::try_from(at.saturating_add(2)).unwrap_or(u16::MAX);
        return Err(Sense::illegal_field_parameter(position, None));
    }
    let read = || {
        let destination_counts = fields.u8(1)? & 0x02 != 0;
        let amount = match code {
            BLOCK_TO_BLOCK if destination_counts => Amount::DestinationBlocks(fields.u16(10)?),
            BLOCK_TO_BLOCK => Amount::SourceBlocks(fields.u16(10)?),
            _ => Amount::Bytes {
                count: fields.u32(8)?,
                source_offset: fields.u16(28)?,
                destination_offset: fields.u16(30)?,
            },
        };
        fields.0.get(..len)?;
        Some(Segment {
            source: fields.u16(4)?,
            destination: fields.u16(6)?,
            source_lba: fields.u64(12)?,
            destination_lba: fields.u64(20)?,
            amount,
        })
    };
    Ok((read().ok_or(cut_off)?, len))
}
