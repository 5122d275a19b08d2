//! What a copy does next: its legs and pieces. Knows nothing of tasks.
//!
//! Invariants: a piece lies within both units as they were when the copy began (each unit checks again); a copy within one
//! unit whose ranges overlap is done in the order that reads every block before it is written.

use alloc::vec::Vec;

use super::CopyRole;
use crate::{
    copy::{
        Designator, OWN_UNIT,
        extended::{Amount, Cscd, ExtendedCopy, Segment},
        token::{Claim, OFFSET_AT, RodToken, WriteUsing},
    },
    limits,
    sense::{Sense, asc},
};

/// A unit that a copy can reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyUnit {
    /// UUID of the volume.
    pub unit: [u8; 16],
    /// Bytes of a logical block.
    pub block_size: u32,
    /// Number of logical blocks.
    pub blocks: u64,
}

/// Where a leg's data comes from.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// A unit.
    Unit(CopyUnit),
    /// What a token represents.
    Token(CopyUnit),
    Zeroes,
}

/// One contiguous range to copy.
#[derive(Clone, Debug)]
pub(super) struct Leg {
    pub(super) source: Source,
    /// First block, or the first of the token's data.
    source_lba: u64,
    destination: CopyUnit,
    destination_lba: u64,
    bytes: u64,
    done: u64,
    /// From the end on.
    backwards: bool,
}

/// What is to be done outside.
pub(super) enum Next {
    Read { unit: [u8; 16], cdb: [u8; 16], token: Option<RodToken> },
    Write { unit: [u8; 16], cdb: [u8; 16] },
    Done,
}

#[derive(Clone, Debug)]
enum Kind {
    Extended { immediate: bool, cscds: Vec<Cscd>, units: Vec<Option<CopyUnit>>, segments: Vec<Segment> },
    Token { write: WriteUsing, claim: Claim, source: Option<CopyUnit> },
}

/// A whole copy.
#[derive(Clone, Debug)]
pub(super) struct Job {
    kind: Kind,
    own: CopyUnit,
    /// Segments begun.
    begun: u16,
    leg: Option<Leg>,
    /// Bytes of the piece that is under way.
    piece: u64,
    /// Blocks of the token that the ranges so far have taken.
    token_blocks: u64,
    residual: bool,
}

/// READ (16).
pub(super) fn read(lba: u64, blocks: u32) -> [u8; 16] {
    block_cdb(0x88, 0, lba, blocks)
}

fn block_cdb(opcode: u8, flags: u8, lba: u64, blocks: u32) -> [u8; 16] {
    let [a, b, c, d, e, f, g, h] = lba.to_be_bytes();
    let [i, j, k, l] = blocks.to_be_bytes();
    [opcode, flags, a, b, c, d, e, f, g, h, i, j, k, l, 0, 0]
}

const WRITE_16: u8 = 0x8a;
const WRITE_SAME_16: u8 = 0x93;
/// UNMAP and NDOB: zeroes, which need no space.
const ZEROES: u8 = 0x09;

impl Job {
    pub(super) fn extended(copy: ExtendedCopy, own: CopyUnit) -> Job {
        let ExtendedCopy { immediate, cscds, segments, .. } = copy;
        Job::new(Kind::Extended { immediate, cscds, units: Vec::new(), segments }, own)
    }

    pub(super) fn token(write: WriteUsing, claim: Claim, own: CopyUnit) -> Job {
        Job::new(Kind::Token { write, claim, source: None }, own)
    }

    fn new(kind: Kind, own: CopyUnit) -> Job {
        Job { kind, own, begun: 0, leg: None, piece: 0, token_blocks: 0, residual: false }
    }

    /// The units to be looked up.
    pub(super) fn designators(&self) -> Vec<Designator> {
        match &self.kind {
            Kind::Extended { cscds, .. } => cscds.iter().map(|cscd| cscd.designator).collect(),
            Kind::Token { claim: Claim::Unit { designator, .. }, .. } => Vec::from([*designator]),
            Kind::Token { claim: Claim::Zero, .. } => Vec::new(),
        }
    }

    pub(super) fn found(&mut self, found: Vec<Option<CopyUnit>>) {
        match &mut self.kind {
            Kind::Extended { units, .. } => *units = found,
            Kind::Token { source, .. } => *source = found.first().copied().flatten(),
        }
    }

    /// The command is answered before the copy is done.
    pub(super) fn is_immediate(&self) -> bool {
        match &self.kind {
            Kind::Extended { immediate, .. } => *immediate,
            Kind::Token { write, .. } => write.immediate,
        }
    }

    /// The token is shown to its unit before anything is written: a read of nothing. A token whose unit this host does not
    /// reach is as unknown as one that nobody made.
    pub(super) fn validation(&self) -> Result<Option<([u8; 16], CopyRole)>, Sense> {
        match &self.kind {
            Kind::Token { claim: Claim::Unit { .. }, source: Some(unit), write } => {
                Ok(Some((unit.unit, CopyRole::Token(write.token.clone()))))
            }
            Kind::Token { claim: Claim::Unit { .. }, source: None, .. } => {
                Err(Sense::illegal(asc::TOKEN_UNKNOWN))
            }
            _ => Ok(None),
        }
    }

    /// The token is what it claims to be: now what is asked of it can be judged.
    pub(super) fn validated(&mut self) -> Result<(), Sense> {
        let Some((write, blocks)) = self.token_blocks_in_all() else { return Ok(()) };
        if write.offset >= blocks && !write.extents.is_empty() {
            return Err(Sense::illegal_field_parameter(OFFSET_AT, None));
        }
        Ok(())
    }

    fn token_blocks_in_all(&self) -> Option<(&WriteUsing, u64)> {
        match &self.kind {
            Kind::Token { write, claim: Claim::Unit { bytes, block_size, .. }, .. } => {
                Some((write, bytes.checked_div(u64::from(*block_size)).unwrap_or(0)))
            }
            _ => None,
        }
    }

    /// After the last piece.
    pub(super) fn deletion(&self) -> Option<([u8; 16], CopyRole)> {
        match &self.kind {
            Kind::Token { write, source: Some(unit), .. } if write.delete => {
                Some((unit.unit, CopyRole::DeleteToken(write.token.clone())))
            }
            _ => None,
        }
    }

    /// Segments that are done.
    pub(super) fn segments_done(&self) -> u16 {
        self.begun.saturating_sub(u16::from(self.leg.is_some()))
    }

    /// The ranges asked for more than the token represents.
    pub(super) fn has_residual(&self) -> bool {
        self.residual
    }

    /// The next read or write.
    ///
    /// # Errors
    /// COPY ABORTED where the next segment cannot be done.
    pub(super) fn next(&mut self) -> Result<Next, Sense> {
        loop {
            if let Some(leg) = self.leg.as_ref().filter(|leg| leg.done < leg.bytes) {
                return Ok(self.piece_of(&leg.clone()));
            }
            self.leg = None;
            let number = self.begun;
            let Some(leg) = self.leg_of(number)? else { return Ok(Next::Done) };
            self.begun = number.saturating_add(1);
            self.leg = Some(leg);
        }
    }

    fn piece_of(&mut self, leg: &Leg) -> Next {
        let left = leg.bytes.saturating_sub(leg.done);
        let most = match leg.source {
            Source::Zeroes => {
                u64::from(limits::WRITE_SAME_BLOCKS_MAX).saturating_mul(u64::from(leg.destination.block_size))
            }
            _ => u64::from(limits::COPY_PIECE_BYTES),
        };
        self.piece = left.min(most);
        let offset = if leg.backwards { left.saturating_sub(self.piece) } else { leg.done };
        let at = |lba: u64, unit: &CopyUnit| {
            let blocks = |bytes: u64| bytes.checked_div(u64::from(unit.block_size)).unwrap_or(0);
            (lba.saturating_add(blocks(offset)), u32::try_from(blocks(self.piece)).unwrap_or(u32::MAX))
        };
        match (&leg.source, &self.kind) {
            (Source::Unit(unit), _) => {
                let (lba, blocks) = at(leg.source_lba, unit);
                Next::Read { unit: unit.unit, cdb: read(lba, blocks), token: None }
            }
            (Source::Token(unit), Kind::Token { write, .. }) => {
                let (lba, blocks) = at(leg.source_lba, unit);
                Next::Read { unit: unit.unit, cdb: read(lba, blocks), token: Some(write.token.clone()) }
            }
            _ => {
                let (lba, blocks) = at(leg.destination_lba, &leg.destination);
                Next::Write { unit: leg.destination.unit, cdb: block_cdb(WRITE_SAME_16, ZEROES, lba, blocks) }
            }
        }
    }

    /// So many bytes were read. False: that is no answer to what was asked. What a token represents may be in several
    /// places, and then less than asked for comes at a time.
    pub(super) fn read(&mut self, bytes: usize) -> bool {
        let Some(leg) = &self.leg else { return false };
        let bytes = bytes as u64;
        let fits = match leg.source {
            Source::Token(_) => {
                bytes > 0
                    && bytes <= self.piece
                    && bytes.is_multiple_of(u64::from(leg.destination.block_size).max(1))
            }
            _ => bytes == self.piece,
        };
        self.piece = bytes;
        fits
    }

    /// The write of what was read.
    pub(super) fn write_of_read(&self) -> Option<([u8; 16], [u8; 16])> {
        let leg = self.leg.as_ref()?;
        let unit = &leg.destination;
        let left = leg.bytes.saturating_sub(leg.done);
        let offset = if leg.backwards { left.checked_sub(self.piece)? } else { leg.done };
        let blocks = |bytes: u64| bytes.checked_div(u64::from(unit.block_size));
        let lba = leg.destination_lba.checked_add(blocks(offset)?)?;
        let cdb = block_cdb(WRITE_16, 0, lba, u32::try_from(blocks(self.piece)?).ok()?);
        Some((unit.unit, cdb))
    }

    /// The piece has been written. Its length in bytes.
    pub(super) fn written(&mut self) -> u64 {
        if let Some(leg) = &mut self.leg {
            leg.done = leg.done.saturating_add(self.piece);
        }
        core::mem::take(&mut self.piece)
    }

    /// Whose fault a failure is: the segment, and where the CSCD descriptor begins in the parameter list.
    pub(super) fn blamed(&self, source: bool) -> (u16, Option<u16>) {
        let number = self.begun.saturating_sub(1);
        let at = match &self.kind {
            Kind::Extended { cscds, segments, .. } => segments.get(usize::from(number)).and_then(|segment| {
                let index = if source { segment.source } else { segment.destination };
                cscds.get(usize::from(index)).map(|cscd| cscd.at)
            }),
            Kind::Token { .. } => None,
        };
        (number, at)
    }

    /// True if an answer is the outcome of the command itself: of WRITE USING TOKEN, what its own unit says of the write, and
    /// what is wrong with the token.
    pub(super) fn speaks_for_itself(&self, source: bool, sense: Option<&Sense>) -> bool {
        let of_token = sense.is_some_and(|sense| sense.additional.asc == asc::TOKEN_UNKNOWN.asc);
        matches!(self.kind, Kind::Token { .. }) && (!source || of_token)
    }

    fn leg_of(&mut self, number: u16) -> Result<Option<Leg>, Sense> {
        match &self.kind {
            Kind::Extended { segments, .. } => match segments.get(usize::from(number)) {
                Some(segment) => self.segment_leg(number, segment).map(Some),
                None => Ok(None),
            },
            Kind::Token { .. } => Ok(self.token_leg(number)),
        }
    }

    fn token_leg(&mut self, number: u16) -> Option<Leg> {
        let in_all = self.token_blocks_in_all().map(|(_, blocks)| blocks);
        let Kind::Token { write, source, .. } = &self.kind else { return None };
        let extent = *write.extents.get(usize::from(number))?;
        let offset = write.offset.saturating_add(self.token_blocks);
        let left = in_all.map_or(u64::MAX, |blocks| blocks.saturating_sub(offset));
        let blocks = u64::from(extent.blocks).min(left);
        self.residual |= blocks < u64::from(extent.blocks);
        self.token_blocks = self.token_blocks.saturating_add(blocks);
        Some(Leg {
            source: source.map_or(Source::Zeroes, Source::Token),
            source_lba: offset,
            destination: self.own,
            destination_lba: extent.lba,
            bytes: blocks.saturating_mul(u64::from(self.own.block_size)),
            done: 0,
            backwards: false,
        })
    }

    /// SPC-4 6.4.6: what is wrong with a segment shows when its turn comes, as COPY ABORTED with a pointer into it.
    fn segment_leg(&self, number: u16, segment: &Segment) -> Result<Leg, Sense> {
        let invalid = |byte| {
            Sense::copy_aborted(asc::NO_ADDITIONAL_SENSE, number).with_segment_pointer(true, byte, None)
        };
        let source = self.cscd(number, segment.source, 4)?;
        let destination = self.cscd(number, segment.destination, 6)?;
        let inexact = Sense::copy_aborted(asc::UNEXPECTED_INEXACT_SEGMENT, number);
        let (from, to) = (u64::from(source.block_size), u64::from(destination.block_size));
        let (bytes, source_offset, destination_offset) = match segment.amount {
            Amount::SourceBlocks(count) => (u64::from(count).saturating_mul(from), 0, 0),
            Amount::DestinationBlocks(count) => (u64::from(count).saturating_mul(to), 0, 0),
            Amount::Bytes { count, source_offset, destination_offset } => {
                (u64::from(count), u64::from(source_offset), u64::from(destination_offset))
            }
        };
        let whole = |value: u64, block: u64| value.is_multiple_of(block.max(1));
        if !whole(bytes, from)
            || !whole(bytes, to)
            || !whole(source_offset, from)
            || !whole(destination_offset, to)
        {
            return Err(inexact);
        }
        if bytes > u64::from(limits::COPY_SEGMENT_BYTES_MAX) {
            return Err(invalid(8));
        }
        let place = |lba: u64, offset: u64, unit: &CopyUnit| {
            let blocks = |bytes: u64| bytes.checked_div(u64::from(unit.block_size));
            let first = lba.checked_add(blocks(offset)?)?;
            (first.checked_add(blocks(bytes)?)? <= unit.blocks).then_some(first)
        };
        let source_lba = place(segment.source_lba, source_offset, &source).ok_or(invalid(12))?;
        let destination_lba =
            place(segment.destination_lba, destination_offset, &destination).ok_or(invalid(20))?;
        let backwards = source.unit == destination.unit && destination_lba > source_lba;
        Ok(Leg {
            source: Source::Unit(source),
            source_lba,
            destination,
            destination_lba,
            bytes,
            done: 0,
            backwards,
        })
    }

    /// The unit of a CSCD descriptor ID, which stands in this byte of the segment descriptor.
    fn cscd(&self, number: u16, index: u16, field: u16) -> Result<CopyUnit, Sense> {
        let Kind::Extended { cscds, units, .. } = &self.kind else { return Ok(self.own) };
        if index == OWN_UNIT {
            return Ok(self.own);
        }
        let unknown =
            Sense::copy_aborted(asc::UNREACHABLE_COPY_TARGET, number).with_segment_pointer(true, field, None);
        let cscd = cscds.get(usize::from(index)).ok_or(unknown)?;
        let wrong = |what, byte: u16| {
            Sense::copy_aborted(what, number).with_segment_pointer(false, cscd.at.saturating_add(byte), None)
        };
        let unit = units.get(usize::from(index)).copied().flatten();
        let unit = unit.ok_or(wrong(asc::COPY_TARGET_NOT_REACHABLE, 0))?;
        if cscd.device_type != 0 {
            return Err(wrong(asc::INCORRECT_COPY_TARGET_TYPE, 1));
        }
        if cscd.block_size != 0 && cscd.block_size != unit.block_size {
            return Err(wrong(asc::NO_ADDITIONAL_SENSE, 29));
        }
        Ok(unit)
    }
}
