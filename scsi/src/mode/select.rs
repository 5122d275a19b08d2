//! The parameter list of MODE SELECT: all of it is checked before anything changes (SPC-5 6.13).

use super::pages::{self, Field, PageId};
use super::{
    Interlock, LONGLBA, ModeParameters, QueueError, ReportMethod, long_block_descriptor,
    short_block_descriptor,
};
use crate::cdb::ModeForm;
use crate::geometry::Geometry;
use crate::sense::Sense;

/// SPF: the page has the subpage format.
const SPF: u8 = 0x40;
/// PS is reserved in MODE SELECT, but hosts send back what MODE SENSE gave them.
const PAGE_CODE: u8 = 0x3f;

/// The parameters that are in force once this list is accepted; equal to the current ones if it changes nothing (then no
/// 2A/01 is due). An empty list changes nothing.
///
/// # Errors
/// PARAMETER LIST LENGTH ERROR if the list ends inside its header, its block descriptor or a page; INVALID FIELD IN
/// PARAMETER LIST, pointing at the bit, for an unknown page, a wrong page length, another block size or capacity, or a
/// bit that is not changeable.
pub fn parse_select(
    form: ModeForm,
    list: &[u8],
    current: &ModeParameters,
    geometry: &Geometry,
) -> Result<ModeParameters, Sense> {
    if list.is_empty() {
        return Ok(*current);
    }
    let (medium_type_at, descriptor_at, descriptor_len, long) = match form {
        ModeForm::Six => {
            let [_, _, _, len] = *list.first_chunk().ok_or(Sense::parameter_list_length())?;
            (1, 4, usize::from(len), false)
        }
        ModeForm::Ten => {
            let [_, _, _, _, flags, _, high, low] =
                *list.first_chunk().ok_or(Sense::parameter_list_length())?;
            (2, 8, usize::from(u16::from_be_bytes([high, low])), flags & LONGLBA != 0)
        }
    };
    if list.get(medium_type_at).copied() != Some(0) {
        return Err(Sense::illegal_field_parameter(pointer(medium_type_at), None));
    }
    let pages_at = descriptor_at + descriptor_len;
    let descriptor = list.get(descriptor_at..pages_at).ok_or(Sense::parameter_list_length())?;
    check_block_descriptor(descriptor, descriptor_at, long, geometry)?;

    let mut selected = *current;
    let mut at = pages_at;
    while let Some(rest @ [_, ..]) = list.get(at..) {
        at = at.saturating_add(select_page(rest, at, current, &mut selected)?);
    }
    Ok(selected)
}

/// A field pointer's byte.
fn pointer(at: usize) -> u16 {
    u16::try_from(at).unwrap_or(u16::MAX)
}

/// The capacity may be given as it is, as 0 or as all ones ("do not change"); the block size as it is.
fn check_block_descriptor(given: &[u8], at: usize, long: bool, geometry: &Geometry) -> Result<(), Sense> {
    // Offset of the descriptor's length field in the header, for the pointer.
    let length_at = if at == 4 { 3 } else { 6 };
    match (given.len(), long) {
        (0, _) => Ok(()),
        (8, false) => {
            let ours = short_block_descriptor(geometry);
            check_descriptor_fields(given, &ours, at, 4)
        }
        (16, true) => {
            let ours = long_block_descriptor(geometry);
            check_descriptor_fields(given, &ours, at, 8)
        }
        _ => Err(Sense::illegal_field_parameter(length_at, None)),
    }
}

fn check_descriptor_fields(given: &[u8], ours: &[u8], at: usize, count_len: usize) -> Result<(), Sense> {
    let (Some((count, size)), Some((our_count, our_size))) =
        (given.split_at_checked(count_len), ours.split_at_checked(count_len))
    else {
        return Err(Sense::parameter_list_length());
    };
    let unchanged =
        count == our_count || count.iter().all(|byte| *byte == 0) || count.iter().all(|byte| *byte == 0xff);
    if !unchanged {
        return Err(Sense::illegal_field_parameter(pointer(at), None));
    }
    if size != our_size {
        return Err(Sense::illegal_field_parameter(pointer(at.saturating_add(count_len)), None));
    }
    Ok(())
}

/// Checks the page at the beginning of `rest`, which is byte `at` of the list, takes its values over, and returns its
/// length.
fn select_page(
    rest: &[u8],
    at: usize,
    current: &ModeParameters,
    selected: &mut ModeParameters,
) -> Result<usize, Sense> {
    let first = rest.first().copied().unwrap_or(0);
    let subpage = match first & SPF {
        0 => 0,
        _ => rest.get(1).copied().ok_or(Sense::parameter_list_length())?,
    };
    let id = PageId::ALL
        .into_iter()
        .find(|id| {
            let format_fits = (id.subpage() != 0) == (first & SPF != 0);
            id.page() == first & PAGE_CODE && id.subpage() == subpage && format_fits
        })
        .ok_or(Sense::illegal_field_parameter(pointer(at), Some(5)))?;
    let ours = id.bytes(current);
    let mask = id.changeable();
    let header_len = if id.subpage() == 0 { 2 } else { 4 };

    let length_at = if id.subpage() == 0 { 1 } else { 2 };
    let given_length = rest.get(length_at..header_len).ok_or(Sense::parameter_list_length())?;
    if Some(given_length) != ours.as_slice().get(length_at..header_len) {
        return Err(Sense::illegal_field_parameter(pointer(at.saturating_add(length_at)), None));
    }
    let given = rest.get(..ours.as_slice().len()).ok_or(Sense::parameter_list_length())?;

    let bytes = given.iter().zip(ours.as_slice()).zip(mask.as_slice()).enumerate().skip(header_len);
    for (offset, ((given, ours), mask)) in bytes {
        let wrong = (given ^ ours) & !mask;
        if wrong != 0 {
            let bit = 7u32.saturating_sub(wrong.leading_zeros()) as u8;
            return Err(Sense::illegal_field_parameter(pointer(at.saturating_add(offset)), Some(bit)));
        }
    }
    let page = Given { bytes: given, at };
    match id {
        PageId::Caching => selected.write_cache = page.is_set(pages::WCE),
        PageId::Control => {
            selected.task_set_per_nexus = page.is_set(pages::TST);
            selected.descriptor_sense = page.is_set(pages::D_SENSE);
            selected.queue_error = page.code(pages::QERR, QueueError::from_code)?;
            selected.interlock = page.code(pages::UA_INTLCK, Interlock::from_code)?;
            selected.software_write_protect = page.is_set(pages::SWP);
            selected.task_aborted_status = page.is_set(pages::TAS);
        }
        PageId::InformationalExceptions => {
            selected.exceptions.disabled = page.is_set(pages::DEXCPT);
            selected.exceptions.test = page.is_set(pages::TEST);
            selected.exceptions.method = page.code(pages::MRIE, ReportMethod::from_code)?;
        }
        PageId::LogicalBlockProvisioning => {
            let thresholds = &mut selected.provisioning;
            thresholds.single_initiator = page.is_set(pages::SITUA);
            thresholds.available = page.threshold(pages::AVAILABLE_ENABLED, pages::AVAILABLE_COUNT_AT)?;
            thresholds.used = page.threshold(pages::USED_ENABLED, pages::USED_COUNT_AT)?;
        }
        PageId::ReadWriteErrorRecovery | PageId::ControlExtension => {}
    }
    Ok(given.len())
}

/// A page as the initiator gave it; it begins at byte `at` of the list.
struct Given<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Given<'_> {
    fn byte(&self, at: usize) -> u8 {
        self.bytes.get(at).copied().unwrap_or(0)
    }

    fn is_set(&self, (at, bits): Field) -> bool {
        self.byte(at) & bits != 0
    }

    /// The value of a field of several bits; a reserved one is refused.
    fn code<T>(&self, (at, bits): Field, read: fn(u8) -> Option<T>) -> Result<T, Sense> {
        let shift = bits.trailing_zeros().min(7);
        let most_significant = 7u32.saturating_sub(bits.leading_zeros()) as u8;
        let wrong =
            Sense::illegal_field_parameter(pointer(self.at.saturating_add(at)), Some(most_significant));
        read((self.byte(at) & bits) >> shift).ok_or(wrong)
    }

    /// A count without ENABLED would be lost: refused.
    fn threshold(&self, enabled: Field, count_at: usize) -> Result<Option<u32>, Sense> {
        let count = self.bytes.get(count_at..).and_then(|rest| rest.first_chunk()).copied();
        let count = count.map_or(0, u32::from_be_bytes);
        match (self.is_set(enabled), count) {
            (true, count) => Ok(Some(count)),
            (false, 0) => Ok(None),
            (false, _) => {
                Err(Sense::illegal_field_parameter(pointer(self.at.saturating_add(count_at)), None))
            }
        }
    }
}
