//! Identifying information (SPC-5 5.6.2) and the timestamp (SPC-5 5.2) of a logical unit.
//!
//! Invariant: an identifying text ends with its only zero byte.

use alloc::vec::Vec;

use crate::{
    cdb::IdentifyingKind,
    limits,
    reply::{Reply, ReplyWriter},
    sense::Sense,
};

/// Milliseconds since 1970 (UTC).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnixMillis(pub u64);

/// What SET IDENTIFYING INFORMATION left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdentifyingInformation {
    /// Peripheral device identifying information.
    pub device: Vec<u8>,
    /// Peripheral device text identifying information: UTF-8 that ends with a zero, or nothing.
    pub text: Vec<u8>,
}

impl IdentifyingInformation {
    /// True if it is within the limits.
    pub(super) fn fits(&self) -> bool {
        self.device.len() <= limits::IDENTIFYING_INFORMATION_MAX
            && self.text.len() <= limits::IDENTIFYING_TEXT_MAX
            && check_text(&self.text).is_ok()
    }

    /// Replaces one kind; true if it is another one than before.
    pub(super) fn set(&mut self, kind: IdentifyingKind, given: &[u8]) -> Result<bool, Sense> {
        let (place, max) = match kind {
            IdentifyingKind::Device => (&mut self.device, limits::IDENTIFYING_INFORMATION_MAX),
            IdentifyingKind::Text => {
                check_text(given)?;
                (&mut self.text, limits::IDENTIFYING_TEXT_MAX)
            }
            IdentifyingKind::Supported => return Err(Sense::illegal_field_cdb(10, Some(7))),
        };
        if given.len() > max {
            return Err(Sense::illegal_field_cdb(6, None));
        }
        let changed = place.as_slice() != given;
        *place = given.to_vec();
        Ok(changed)
    }
}

fn check_text(text: &[u8]) -> Result<(), Sense> {
    let Some((last, body)) = text.split_last() else { return Ok(()) };
    let at = |at: usize| Sense::illegal_field_parameter(u16::try_from(at).unwrap_or(u16::MAX), None);
    match body.iter().position(|byte| *byte == 0) {
        Some(zero) => Err(at(zero)),
        None if *last != 0 => Err(at(body.len())),
        None => core::str::from_utf8(body).map(|_| ()).map_err(|error| at(error.valid_up_to())),
    }
}

/// REPORT IDENTIFYING INFORMATION.
pub fn report_identifying_information(
    kind: IdentifyingKind,
    information: &IdentifyingInformation,
    allocation_length: u32,
    out: &mut [u8],
) -> Reply {
    let mut w = ReplyWriter::new(out, allocation_length);
    w.put_zeroes(4);
    match kind {
        IdentifyingKind::Device => w.put(&information.device),
        IdentifyingKind::Text => w.put(&information.text),
        IdentifyingKind::Supported => {
            for (code, max) in [
                (IdentifyingKind::Device, limits::IDENTIFYING_INFORMATION_MAX),
                (IdentifyingKind::Text, limits::IDENTIFYING_TEXT_MAX),
            ] {
                w.put(&[code.code() << 1, 0]);
                w.put_u16(u16::try_from(max).unwrap_or(u16::MAX));
            }
        }
    }
    w.patch_len16(2, 4);
    w.finish()
}

/// TIMESTAMP ORIGIN: set by SET TIMESTAMP.
const ORIGIN_SET: u8 = 0b010;
/// TIMESTAMP ORIGIN: from outside.
const ORIGIN_OUTSIDE: u8 = 0b011;
/// A timestamp has 48 bits.
const TIMESTAMP_MASK: u64 = 0xffff_ffff_ffff;
/// Length of the parameter list of SET TIMESTAMP.
const TIMESTAMP_LIST_LEN: usize = 12;

/// REPORT TIMESTAMP, at this moment of the cluster's clock.
pub fn report_timestamp(
    now: UnixMillis,
    ahead: Option<i64>,
    allocation_length: u32,
    out: &mut [u8],
) -> Reply {
    let origin = if ahead.is_some() { ORIGIN_SET } else { ORIGIN_OUTSIDE };
    let stamp = now.0.wrapping_add_signed(ahead.unwrap_or(0)) & TIMESTAMP_MASK;
    let mut w = ReplyWriter::new(out, allocation_length);
    w.put(&[0, 10, origin, 0]);
    let [_, _, stamp @ ..] = stamp.to_be_bytes();
    w.put(&stamp);
    w.put_zeroes(2);
    w.finish()
}

/// The timestamp in a parameter list of SET TIMESTAMP.
pub(super) fn timestamp_of(list: &[u8]) -> Result<UnixMillis, Sense> {
    let list: &[u8; TIMESTAMP_LIST_LEN] = list.first_chunk().ok_or(Sense::parameter_list_length())?;
    let [r0, r1, r2, r3, a, b, c, d, e, f, r10, r11] = *list;
    for (at, reserved) in [(0, r0), (1, r1), (2, r2), (3, r3), (10, r10), (11, r11)] {
        if reserved != 0 {
            return Err(Sense::illegal_field_parameter(at, None));
        }
    }
    Ok(UnixMillis(u64::from_be_bytes([0, 0, a, b, c, d, e, f])))
}
