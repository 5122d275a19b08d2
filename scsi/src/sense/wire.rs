//! Fixed and descriptor format sense data (SPC-5 4.4.2 and 4.4.3).

use super::{AdditionalSense, Forwarded, Sense, SenseKey, SenseSpecific};
use crate::limits;
use crate::status::Status;

/// Bytes of fixed format sense data.
pub(super) const FIXED_LEN: usize = 18;
/// Bytes of fixed format sense data behind which a copy source's or destination's status and sense data follow.
pub(super) const FIXED_LEN_MAX: usize = FIXED_LEN + 1 + FIXED_LEN;
/// Most bytes of descriptor format sense data written here: header, information, command-specific, sense-key specific,
/// forwarded sense data. (Forwarded sense data never comes with information.)
pub(super) const DESCRIPTOR_LEN_MAX: usize = 8 + 12 + 12 + 8 + FORWARDED_LEN;
/// A forwarded sense data descriptor with sense data that has no descriptors of its own.
const FORWARDED_LEN: usize = 4 + 8;

const CURRENT_FIXED: u8 = 0x70;
const CURRENT_DESCRIPTOR: u8 = 0x72;
const VALID: u8 = 0x80;
const SKSV: u8 = 0x80;
const COMMAND_DATA: u8 = 0x40;
const BIT_POINTER_VALID: u8 = 0x08;
const SEGMENT_DESCRIPTOR: u8 = 0x20;
const FORWARDED: u8 = 0x0c;
const FORWARDED_BY_SOURCE: u8 = 0x01;
const FORWARDED_BY_DESTINATION: u8 = 0x02;

impl Sense {
    /// Writes the format that D_SENSE or DESC asks for, where [`Sense::in_descriptor_format`] lets it; see
    /// [`Sense::write_fixed`] and [`Sense::write_descriptor`].
    pub fn write(&self, descriptor: bool, out: &mut [u8]) -> usize {
        if self.in_descriptor_format(descriptor) { self.write_descriptor(out) } else { self.write_fixed(out) }
    }

    /// The format that [`Sense::write`] uses. A Unit Attention 29/xx or MODE PARAMETERS CHANGED is always in fixed format
    /// (SPC-4 4.5.1): it may be what tells the host that D_SENSE is no longer what it thinks.
    pub const fn in_descriptor_format(&self, wanted: bool) -> bool {
        let always_fixed = matches!(self.key, SenseKey::UnitAttention)
            && matches!((self.additional.asc, self.additional.ascq), (0x29, _) | (0x2a, 0x01));
        wanted && !always_fixed
    }

    /// Writes fixed format, 18 bytes and what a copy source or destination answered, cut off at the end of `out`. Returns the
    /// bytes written.
    pub fn write_fixed(&self, out: &mut [u8]) -> usize {
        let mut data = [0u8; FIXED_LEN_MAX];
        let mut len = FIXED_LEN;
        let narrow = |value: Option<u64>| value.and_then(|v| u32::try_from(v).ok());
        let information = narrow(self.information);
        data[0] = CURRENT_FIXED | if information.is_some() { VALID } else { 0 };
        data[2] = self.key as u8;
        data[3..7].copy_from_slice(&information.unwrap_or(0).to_be_bytes());
        data[8..12].copy_from_slice(&narrow(self.command_specific).unwrap_or(0).to_be_bytes());
        data[12] = self.additional.asc;
        data[13] = self.additional.ascq;
        data[15..18].copy_from_slice(&specific_bytes(self.specific));
        if let Some(forwarded) = self.forwarded {
            // Byte 8 or 9 tells where the status of the source or the destination is (SPC-4 5.16.7.4).
            data[if forwarded.by_source { 8 } else { 9 }] = FIXED_LEN as u8;
            data[FIXED_LEN] = forwarded.status.code();
            len = FIXED_LEN + 1;
            if let (Some((key, additional)), Some(inner)) =
                (forwarded.sense, data.get_mut(len..FIXED_LEN_MAX))
            {
                len += Sense::new(key, additional).write_plain_fixed(inner);
            }
        }
        data[7] = (len - 8) as u8;
        copy_prefix(data.get(..len).unwrap_or(&data), out)
    }

    /// Key and additional sense code in fixed format.
    fn write_plain_fixed(&self, out: &mut [u8]) -> usize {
        let mut data = [0u8; FIXED_LEN];
        data[0] = CURRENT_FIXED;
        data[2] = self.key as u8;
        data[7] = (FIXED_LEN - 8) as u8;
        data[12] = self.additional.asc;
        data[13] = self.additional.ascq;
        copy_prefix(&data, out)
    }

    /// Writes descriptor format, 8 to 52 bytes, cut off at the end of `out`. Returns the bytes written.
    pub fn write_descriptor(&self, out: &mut [u8]) -> usize {
        let mut data = [0u8; DESCRIPTOR_LEN_MAX];
        data[0] = CURRENT_DESCRIPTOR;
        data[1] = self.key as u8;
        data[2] = self.additional.asc;
        data[3] = self.additional.ascq;
        let mut len = 8;
        for (kind, value) in [(0x00, self.information), (0x01, self.command_specific)] {
            if let (Some(value), Some(d)) = (value, data.get_mut(len..len + 12)) {
                d[0] = kind;
                d[1] = 10;
                d[2] = if kind == 0 { VALID } else { 0 };
                d[4..12].copy_from_slice(&value.to_be_bytes());
                len += 12;
            }
        }
        if self.specific != SenseSpecific::None
            && let Some(d) = data.get_mut(len..len + 8)
        {
            d[0] = 0x02;
            d[1] = 6;
            d[4..7].copy_from_slice(&specific_bytes(self.specific));
            len += 8;
        }
        if let (Some(forwarded), Some(d)) = (self.forwarded, data.get_mut(len..len + FORWARDED_LEN)) {
            d[0] = FORWARDED;
            d[2] = if forwarded.by_source { FORWARDED_BY_SOURCE } else { FORWARDED_BY_DESTINATION };
            d[3] = forwarded.status.code();
            let mut descriptor_len = 4;
            if let Some((key, additional)) = forwarded.sense {
                d[4..8].copy_from_slice(&[CURRENT_DESCRIPTOR, key as u8, additional.asc, additional.ascq]);
                descriptor_len = FORWARDED_LEN;
            }
            d[1] = (descriptor_len - 2) as u8;
            len += descriptor_len;
        }
        data[7] = (len - 8) as u8;
        copy_prefix(data.get(..len).unwrap_or(&data), out)
    }

    /// Reads current sense data in fixed or descriptor format. `None` if it is cut off within its header, deferred, or
    /// in a format of its own. A zero COMMAND-SPECIFIC INFORMATION in fixed format reads as absent.
    pub fn parse(bytes: &[u8]) -> Option<Sense> {
        let bytes = bytes.get(..bytes.len().min(limits::SENSE_LEN_MAX))?;
        match *bytes.first()? & 0x7f {
            CURRENT_FIXED => parse_fixed(bytes),
            CURRENT_DESCRIPTOR => parse_descriptor(bytes),
            _ => None,
        }
    }
}

fn parse_fixed(bytes: &[u8]) -> Option<Sense> {
    let key = SenseKey::from_code(*bytes.get(2)? & 0x0f)?;
    let additional = AdditionalSense::new(*bytes.get(12)?, *bytes.get(13)?);
    let mut sense = Sense::new(key, additional);
    if *bytes.first()? & VALID != 0 {
        sense.information = Some(u64::from(u32::from_be_bytes(*bytes.get(3..)?.first_chunk()?)));
    }
    let command_specific = u32::from_be_bytes(*bytes.get(8..)?.first_chunk()?);
    if key == SenseKey::CopyAborted {
        let [source, destination, high, low] = command_specific.to_be_bytes();
        let segment = u16::from_be_bytes([high, low]);
        sense.command_specific = (segment != 0).then_some(u64::from(segment));
        sense.forwarded = [(source, true), (destination, false)]
            .into_iter()
            .filter(|(at, _)| *at != 0)
            .find_map(|(at, by_source)| parse_forwarded(by_source, bytes.get(usize::from(at)..)?));
    } else if command_specific != 0 {
        sense.command_specific = Some(u64::from(command_specific));
    }
    if let Some(specific) = bytes.get(15..).and_then(|b| b.first_chunk()) {
        sense.specific = parse_specific(key, *specific);
    }
    Some(sense)
}

fn parse_descriptor(bytes: &[u8]) -> Option<Sense> {
    let [_, key, asc, ascq, _, _, _, additional_len] = *bytes.first_chunk()?;
    let key = SenseKey::from_code(key & 0x0f)?;
    let mut sense = Sense::new(key, AdditionalSense::new(asc, ascq));
    let all = bytes.get(8..)?;
    let mut rest = all.get(..usize::from(additional_len)).unwrap_or(all);
    while let [kind, len, tail @ ..] = rest {
        let Some((body, next)) = tail.split_at_checked(usize::from(*len)) else { break };
        match (*kind, body) {
            (0x00, [flags, _, value @ ..]) if flags & VALID != 0 => sense.information = parse_u64(value),
            (0x01, [_, _, value @ ..]) => sense.command_specific = parse_u64(value),
            (0x02, [_, _, a, b, c, ..]) => sense.specific = parse_specific(key, [*a, *b, *c]),
            (FORWARDED, [by, answered @ ..]) => {
                sense.forwarded = parse_forwarded(by & 0x0f == FORWARDED_BY_SOURCE, answered);
            }
            _ => {}
        }
        rest = next;
    }
    Some(sense)
}

/// A status and, behind it, sense data in either format.
fn parse_forwarded(by_source: bool, bytes: &[u8]) -> Option<Forwarded> {
    let (status, rest) = bytes.split_first()?;
    let sense = match rest {
        [CURRENT_FIXED, _, key, ..] => {
            SenseKey::from_code(key & 0x0f).zip(rest.get(12..).and_then(|b| b.first_chunk::<2>()))
        }
        [CURRENT_DESCRIPTOR, key, code @ ..] => SenseKey::from_code(key & 0x0f).zip(code.first_chunk::<2>()),
        _ => None,
    };
    let sense = sense.map(|(key, [asc, ascq])| (key, AdditionalSense::new(*asc, *ascq)));
    Some(Forwarded { by_source, status: Status::from_code(*status)?, sense })
}

fn parse_u64(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(*bytes.first_chunk()?))
}

fn specific_bytes(specific: SenseSpecific) -> [u8; 3] {
    match specific {
        SenseSpecific::None => [0; 3],
        SenseSpecific::FieldPointer { in_cdb, byte, bit } => {
            let [high, low] = byte.to_be_bytes();
            let first = SKSV
                | if in_cdb { COMMAND_DATA } else { 0 }
                | bit.map_or(0, |bit| BIT_POINTER_VALID | (bit & 7));
            [first, high, low]
        }
        SenseSpecific::SegmentPointer { in_segment, byte, bit } => {
            let [high, low] = byte.to_be_bytes();
            let first = SKSV
                | if in_segment { SEGMENT_DESCRIPTOR } else { 0 }
                | bit.map_or(0, |bit| BIT_POINTER_VALID | (bit & 7));
            [first, high, low]
        }
        SenseSpecific::Progress(value) | SenseSpecific::Retries(value) => {
            let [high, low] = value.to_be_bytes();
            [SKSV, high, low]
        }
    }
}

fn parse_specific(key: SenseKey, [first, high, low]: [u8; 3]) -> SenseSpecific {
    let value = u16::from_be_bytes([high, low]);
    match key {
        _ if first & SKSV == 0 => SenseSpecific::None,
        SenseKey::IllegalRequest => SenseSpecific::FieldPointer {
            in_cdb: first & COMMAND_DATA != 0,
            byte: value,
            bit: (first & BIT_POINTER_VALID != 0).then_some(first & 7),
        },
        SenseKey::CopyAborted => SenseSpecific::SegmentPointer {
            in_segment: first & SEGMENT_DESCRIPTOR != 0,
            byte: value,
            bit: (first & BIT_POINTER_VALID != 0).then_some(first & 7),
        },
        SenseKey::NoSense | SenseKey::NotReady => SenseSpecific::Progress(value),
        SenseKey::HardwareError | SenseKey::MediumError | SenseKey::RecoveredError => {
            SenseSpecific::Retries(value)
        }
        _ => SenseSpecific::None,
    }
}

fn copy_prefix(data: &[u8], out: &mut [u8]) -> usize {
    let len = data.len().min(out.len());
    for (to, from) in out.iter_mut().zip(data) {
        *to = *from;
    }
    len
}
