//! The other commands of block devices: capacity, cache, provisioning, START STOP UNIT (SBC-4 clause 5).

use super::fields::{RawCdb, extent};
use super::{Command, SanitizeAction, WriteSameSource};
use crate::geometry::{Extent, Geometry};
use crate::limits;
use crate::sense::Sense;

pub(crate) fn read_capacity10(_: &RawCdb, _: &Geometry) -> Result<Command, Sense> {
    Ok(Command::ReadCapacity10)
}

pub(crate) fn read_capacity16(raw: &RawCdb, _: &Geometry) -> Result<Command, Sense> {
    Ok(Command::ReadCapacity16 { allocation_length: raw.u32::<10>() })
}

/// LBA and length of the commands where zero blocks means "to the end of the unit".
fn range_or_rest(geometry: &Geometry, lba: u64, blocks: u32) -> Result<Option<Extent>, Sense> {
    let range = extent(geometry, lba, blocks)?;
    Ok((!range.is_empty()).then_some(range))
}

pub(crate) fn synchronize_cache10(raw: &RawCdb, geometry: &Geometry) -> Result<Command, Sense> {
    let extent = range_or_rest(geometry, u64::from(raw.u32::<2>()), u32::from(raw.u16::<7>()))?;
    Ok(Command::SynchronizeCache { extent, immediate: raw.bit::<1, 1>() })
}

pub(crate) fn synchronize_cache16(raw: &RawCdb, geometry: &Geometry) -> Result<Command, Sense> {
    let extent = range_or_rest(geometry, raw.u64::<2>(), raw.u32::<10>())?;
    Ok(Command::SynchronizeCache { extent, immediate: raw.bit::<1, 1>() })
}

fn pre_fetch(
    raw: &RawCdb,
    geometry: &Geometry,
    lba: u64,
    blocks: u32,
    length_at: u16,
) -> Result<Command, Sense> {
    let extent = range_or_rest(geometry, lba, blocks)?;
    if blocks > limits::PREFETCH_BLOCKS_MAX {
        return Err(Sense::illegal_field_cdb(length_at, None));
    }
    Ok(Command::PreFetch { extent, immediate: raw.bit::<1, 1>() })
}

pub(crate) fn pre_fetch10(raw: &RawCdb, geometry: &Geometry) -> Result<Command, Sense> {
    pre_fetch(raw, geometry, u64::from(raw.u32::<2>()), u32::from(raw.u16::<7>()), 7)
}

pub(crate) fn pre_fetch16(raw: &RawCdb, geometry: &Geometry) -> Result<Command, Sense> {
    pre_fetch(raw, geometry, raw.u64::<2>(), raw.u32::<10>(), 10)
}

fn write_same(
    geometry: &Geometry,
    (lba, blocks): (u64, u32),
    length_at: u16,
    (unmap, source): (bool, WriteSameSource),
) -> Result<Command, Sense> {
    if blocks == 0 {
        return Err(Sense::illegal_field_cdb(length_at, None));
    }
    let extent = extent(geometry, lba, blocks)?;
    if blocks > limits::WRITE_SAME_BLOCKS_MAX {
        return Err(Sense::illegal_field_cdb(length_at, None));
    }
    Ok(Command::WriteSame { extent, unmap, source })
}

pub(crate) fn write_same10(raw: &RawCdb, geometry: &Geometry) -> Result<Command, Sense> {
    let range = (u64::from(raw.u32::<2>()), u32::from(raw.u16::<7>()));
    write_same(geometry, range, 7, (raw.bit::<1, 3>(), WriteSameSource::DataOutBlock))
}

pub(crate) fn write_same16(raw: &RawCdb, geometry: &Geometry) -> Result<Command, Sense> {
    let mode = (raw.bit::<1, 3>(), write_same_source(raw.bit::<1, 0>()));
    write_same(geometry, (raw.u64::<2>(), raw.u32::<10>()), 10, mode)
}

pub(crate) fn write_same32(raw: &RawCdb, geometry: &Geometry) -> Result<Command, Sense> {
    let mode = (raw.bit::<10, 3>(), write_same_source(raw.bit::<10, 0>()));
    write_same(geometry, (raw.u64::<12>(), raw.u32::<28>()), 28, mode)
}

/// NDOB.
const fn write_same_source(no_data_out_buffer: bool) -> WriteSameSource {
    if no_data_out_buffer { WriteSameSource::Zeroes } else { WriteSameSource::DataOutBlock }
}

pub(crate) fn unmap(raw: &RawCdb, _: &Geometry) -> Result<Command, Sense> {
    let parameter_list_length = raw.u16::<7>();
    match parameter_list_length {
        0 => {}
        1..8 => return Err(Sense::parameter_list_length()),
        // More than a full list cannot be valid; refusing it here bounds the data that is fetched for it.
        _ if u32::from(parameter_list_length) > limits::UNMAP_PARAMETER_LIST_MAX => {
            return Err(Sense::illegal_field_cdb(7, None));
        }
        _ => {}
    }
    Ok(Command::Unmap { parameter_list_length })
}

pub(crate) fn get_lba_status(raw: &RawCdb, geometry: &Geometry) -> Result<Command, Sense> {
    let lba = extent(geometry, raw.u64::<2>(), 0)?.lba;
    // REPORT TYPE 000b, all LBAs, is the only one (the row of the table refuses the others).
    Ok(Command::GetLbaStatus { lba, allocation_length: raw.u32::<10>() })
}

pub(crate) fn start_stop_unit(raw: &RawCdb, _: &Geometry) -> Result<Command, Sense> {
    if raw.u8::<4>() >> 4 != 0 {
        // POWER CONDITION other than START_VALID: no power conditions here (no VPD 8Ah either).
        return Err(Sense::illegal_field_cdb(4, Some(7)));
    }
    if raw.u8::<3>() & 0x0f != 0 {
        return Err(Sense::illegal_field_cdb(3, Some(3)));
    }
    if raw.bit::<4, 1>() {
        // LOEJ: the medium cannot be removed.
        return Err(Sense::illegal_field_cdb(4, Some(1)));
    }
    Ok(Command::StartStopUnit { immediate: raw.bit::<1, 0>(), start: raw.bit::<4, 0>() })
}

pub(crate) fn prevent_allow_medium_removal(raw: &RawCdb, _: &Geometry) -> Result<Command, Sense> {
    if raw.bit::<4, 1>() {
        // PREVENT 10b and 11b were for changers and are obsolete.
        return Err(Sense::illegal_field_cdb(4, Some(1)));
    }
    Ok(Command::PreventAllowMediumRemoval { prevent: raw.bit::<4, 0>() })
}

pub(crate) fn format_unit(raw: &RawCdb, _: &Geometry) -> Result<Command, Sense> {
    // FMTPINFO: no protection information. (DEFECT LIST FORMAT does not matter for a list without defects.)
    if raw.u8::<1>() & 0xc0 != 0 {
        return Err(Sense::illegal_field_cdb(1, Some(7)));
    }
    // FFMT: only 00b, the default.
    if raw.u8::<4>() & 0x03 != 0 {
        return Err(Sense::illegal_field_cdb(4, Some(1)));
    }
    let header_len = match (raw.bit::<1, 4>(), raw.bit::<1, 5>()) {
        (false, _) => 0,
        (true, false) => 4,
        (true, true) => 8,
    };
    Ok(Command::FormatUnit { header_len })
}

pub(crate) fn sanitize(raw: &RawCdb, geometry: &Geometry) -> Result<Command, Sense> {
    let parameter_list_length = raw.u16::<7>();
    let action = match raw.service_action() {
        0x01 => SanitizeAction::Overwrite,
        0x02 => SanitizeAction::BlockErase,
        0x1f => SanitizeAction::ExitFailureMode,
        _ => return Err(Sense::illegal_field_cdb(1, Some(4))),
    };
    let most = u32::from(u16::MAX).min(geometry.block_size().saturating_add(4));
    match action {
        // A header, and a pattern of at least one byte and at most a block.
        SanitizeAction::Overwrite if !(5..=most).contains(&u32::from(parameter_list_length)) => {
            return Err(Sense::illegal_field_cdb(7, None));
        }
        SanitizeAction::BlockErase | SanitizeAction::ExitFailureMode if parameter_list_length != 0 => {
            return Err(Sense::illegal_field_cdb(7, None));
        }
        _ => {}
    }
    Ok(Command::Sanitize {
        action,
        immediate: raw.bit::<1, 7>(),
        may_exit_failure: raw.bit::<1, 5>(),
        parameter_list_length,
    })
}
