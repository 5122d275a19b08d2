//! READ, WRITE, WRITE AND VERIFY, VERIFY, COMPARE AND WRITE, ORWRITE and WRITE ATOMIC (SBC-4 clause 5).

use super::fields::{RawCdb, extent};
use super::{Command, VerifyCheck};
use crate::geometry::{Extent, Geometry};
use crate::limits;
use crate::sense::Sense;

/// Where a command of the READ/WRITE shape keeps its LBA and its length.
#[derive(Clone, Copy)]
enum Form {
    Ten,
    Twelve,
    Sixteen,
    ThirtyTwo,
}

/// The byte with RDPROTECT or its like, DPO, FUA or BYTCHK.
fn flags(raw: &RawCdb, form: Form) -> u8 {
    match form {
        Form::Ten | Form::Twelve | Form::Sixteen => raw.u8::<1>(),
        Form::ThirtyTwo => raw.u8::<10>(),
    }
}

const FUA: u8 = 0x08;
const DPO: u8 = 0x10;

/// LBA and length, checked: against the capacity first, then against MAXIMUM TRANSFER LENGTH.
fn range(raw: &RawCdb, geometry: &Geometry, form: Form) -> Result<Extent, Sense> {
    let (lba, blocks, length_at) = match form {
        Form::Ten => (u64::from(raw.u32::<2>()), u32::from(raw.u16::<7>()), 7),
        Form::Twelve => (u64::from(raw.u32::<2>()), raw.u32::<6>(), 6),
        Form::Sixteen => (raw.u64::<2>(), raw.u32::<10>(), 10),
        Form::ThirtyTwo => (raw.u64::<12>(), raw.u32::<28>(), 28),
    };
    let extent = extent(geometry, lba, blocks)?;
    if blocks > limits::transfer_blocks_max(geometry.block_size()) {
        return Err(Sense::illegal_field_cdb(length_at, None));
    }
    Ok(extent)
}

fn range6(raw: &RawCdb, geometry: &Geometry) -> Result<Extent, Sense> {
    let lba = raw.u32::<0>() & 0x001f_ffff;
    // A TRANSFER LENGTH of zero stands for 256 blocks in the six-byte commands (SBC-3 5.9).
    let blocks = match raw.u8::<4>() {
        0 => 256,
        blocks => u32::from(blocks),
    };
    extent(geometry, u64::from(lba), blocks)
}

fn read(raw: &RawCdb, geometry: &Geometry, form: Form) -> Result<Command, Sense> {
    let flags = flags(raw, form);
    Ok(Command::Read { extent: range(raw, geometry, form)?, fua: flags & FUA != 0, dpo: flags & DPO != 0 })
}

fn write(raw: &RawCdb, geometry: &Geometry, form: Form) -> Result<Command, Sense> {
    let flags = flags(raw, form);
    Ok(Command::Write { extent: range(raw, geometry, form)?, fua: flags & FUA != 0, dpo: flags & DPO != 0 })
}

fn write_and_verify(raw: &RawCdb, geometry: &Geometry, form: Form) -> Result<Command, Sense> {
    let flags = flags(raw, form);
    let compare = match (flags >> 1) & 0b11 {
        0b00 => false,
        0b01 => true,
        _ => return Err(wrong_bytchk(form)),
    };
    Ok(Command::WriteAndVerify { extent: range(raw, geometry, form)?, compare, dpo: flags & DPO != 0 })
}

fn verify(raw: &RawCdb, geometry: &Geometry, form: Form) -> Result<Command, Sense> {
    let flags = flags(raw, form);
    let check = match (flags >> 1) & 0b11 {
        0b00 => VerifyCheck::Medium,
        0b01 => VerifyCheck::Bytes,
        0b11 => VerifyCheck::OneBlock,
        _ => return Err(wrong_bytchk(form)),
    };
    Ok(Command::Verify { extent: range(raw, geometry, form)?, check, dpo: flags & DPO != 0 })
}

const fn wrong_bytchk(form: Form) -> Sense {
    let at = match form {
        Form::Ten | Form::Twelve | Form::Sixteen => 1,
        Form::ThirtyTwo => 10,
    };
    Sense::illegal_field_cdb(at, Some(2))
}

pub(crate) fn read6(raw: &RawCdb, geometry: &Geometry) -> Result<Command, Sense> {
    Ok(Command::Read { extent: range6(raw, geometry)?, fua: false, dpo: false })
}

pub(crate) fn write6(raw: &RawCdb, geometry: &Geometry) -> Result<Command, Sense> {
    Ok(Command::Write { extent: range6(raw, geometry)?, fua: false, dpo: false })
}

pub(crate) fn read10(raw: &RawCdb, geometry: &Geometry) -> Result<Command, Sense> {
    read(raw, geometry, Form::Ten)
}

pub(crate) fn read12(raw: &RawCdb, geometry: &Geometry) -> Result<Command, Sense> {
    read(raw, geometry, Form::Twelve)
}

pub(crate) fn read16(raw: &RawCdb, geometry: &Geometry) -> Result<Command, Sense> {
    read(raw, geometry, Form::Sixteen)
}

pub(crate) fn write10(raw: &RawCdb, geometry: &Geometry) -> Result<Command, Sense> {
    write(raw, geometry, Form::Ten)
}

pub(crate) fn write12(raw: &RawCdb, geometry: &Geometry) -> Result<Command, Sense> {
    write(raw, geometry, Form::Twelve)
}

pub(crate) fn write16(raw: &RawCdb, geometry: &Geometry) -> Result<Command, Sense> {
    write(raw, geometry, Form::Sixteen)
}

pub(crate) fn write_and_verify10(raw: &RawCdb, geometry: &Geometry) -> Result<Command, Sense> {
    write_and_verify(raw, geometry, Form::Ten)
}

pub(crate) fn write_and_verify12(raw: &RawCdb, geometry: &Geometry) -> Result<Command, Sense> {
    write_and_verify(raw, geometry, Form::Twelve)
}

pub(crate) fn write_and_verify16(raw: &RawCdb, geometry: &Geometry) -> Result<Command, Sense> {
    write_and_verify(raw, geometry, Form::Sixteen)
}

pub(crate) fn verify10(raw: &RawCdb, geometry: &Geometry) -> Result<Command, Sense> {
    verify(raw, geometry, Form::Ten)
}

pub(crate) fn verify12(raw: &RawCdb, geometry: &Geometry) -> Result<Command, Sense> {
    verify(raw, geometry, Form::Twelve)
}

pub(crate) fn verify16(raw: &RawCdb, geometry: &Geometry) -> Result<Command, Sense> {
    verify(raw, geometry, Form::Sixteen)
}

pub(crate) fn read32(raw: &RawCdb, geometry: &Geometry) -> Result<Command, Sense> {
    read(raw, geometry, Form::ThirtyTwo)
}

pub(crate) fn write32(raw: &RawCdb, geometry: &Geometry) -> Result<Command, Sense> {
    write(raw, geometry, Form::ThirtyTwo)
}

pub(crate) fn write_and_verify32(raw: &RawCdb, geometry: &Geometry) -> Result<Command, Sense> {
    write_and_verify(raw, geometry, Form::ThirtyTwo)
}

pub(crate) fn verify32(raw: &RawCdb, geometry: &Geometry) -> Result<Command, Sense> {
    verify(raw, geometry, Form::ThirtyTwo)
}

pub(crate) fn compare_and_write(raw: &RawCdb, geometry: &Geometry) -> Result<Command, Sense> {
    // MAXIMUM COMPARE AND WRITE LENGTH is 255, all that the one-byte field can say: nothing to refuse.
    const { assert!(limits::COMPARE_AND_WRITE_BLOCKS_MAX == u8::MAX) };
    let extent = extent(geometry, raw.u64::<2>(), u32::from(raw.u8::<13>()))?;
    Ok(Command::CompareAndWrite { extent, fua: raw.bit::<1, 3>(), dpo: raw.bit::<1, 4>() })
}

pub(crate) fn or_write16(raw: &RawCdb, geometry: &Geometry) -> Result<Command, Sense> {
    let extent = range(raw, geometry, Form::Sixteen)?;
    Ok(Command::OrWrite { extent, fua: raw.bit::<1, 3>(), dpo: raw.bit::<1, 4>() })
}

pub(crate) fn write_atomic16(raw: &RawCdb, geometry: &Geometry) -> Result<Command, Sense> {
    let (boundary, blocks) = (raw.u16::<10>(), raw.u16::<12>());
    let extent = extent(geometry, raw.u64::<2>(), u32::from(blocks))?;
    let whole_max = limits::atomic_blocks_max(geometry.block_size());
    // Neither alignment nor granularity is asked for (VPD B0h): every range up to the longest can be written atomically.
    if u32::from(boundary) > whole_max {
        return Err(Sense::illegal_field_cdb(10, None));
    }
    let blocks_max =
        if boundary == 0 { whole_max } else { limits::transfer_blocks_max(geometry.block_size()) };
    if u32::from(blocks) > blocks_max {
        return Err(Sense::illegal_field_cdb(12, None));
    }
    Ok(Command::WriteAtomic { extent, boundary, dpo: raw.bit::<1, 4>() })
}
