//! What RECEIVE COPY STATUS, DATA, OPERATING PARAMETERS, FAILURE DETAILS, RECEIVE ROD TOKEN INFORMATION and REPORT ALL ROD TOKENS
//! answer (SPC-4 6.20 to 6.26 and 6.31).

use super::{BLOCK_TO_BLOCK, BLOCK_TO_BLOCK_OFFSET, IDENTIFICATION, token::RodToken};
use crate::{
    limits,
    reply::{Reply, ReplyWriter},
    sense::Sense,
    status::Status,
    vpd::COPY_GRANULARITY,
};

/// COPY OPERATION STATUS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// In progress, and the command waits for it.
    Foreground,
    /// In progress, the command has been answered.
    Background,
    /// Completed without errors.
    Completed,
    /// Completed without errors, but the token represented less than was asked for.
    CompletedWithResidual,
    /// Completed with errors.
    Failed,
    /// Aborted.
    Aborted,
}

impl State {
    const fn lid1(self) -> u8 {
        match self {
            State::Foreground | State::Background => 0x00,
            State::Completed | State::CompletedWithResidual => 0x01,
            State::Failed | State::Aborted => 0x02,
        }
    }

    const fn lid4(self) -> u8 {
        match self {
            State::Foreground => 0x11,
            State::Background => 0x12,
            State::Completed => 0x01,
            State::CompletedWithResidual => 0x04,
            State::Failed => 0x02,
            State::Aborted => 0x60,
        }
    }

    /// True once nothing more will be done.
    pub const fn has_ended(self) -> bool {
        !matches!(self, State::Foreground | State::Background)
    }
}

/// How far a copy is, or what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// SERVICE ACTION of the command that began it.
    pub service_action: u8,
    /// Where it stands.
    pub state: State,
    /// Pieces written.
    pub operations: u16,
    /// Segments done.
    pub segments: u16,
    /// Bytes written.
    pub bytes: u64,
    /// Status that the command ended with.
    pub status: Status,
    /// Sense data that it ended with.
    pub sense: Option<Sense>,
    /// The token that it made.
    pub token: Option<RodToken>,
}

/// TRANSFER COUNT UNITS.
const BYTES: u8 = 0x00;
const MEBIBYTES: u8 = 0x02;
const LOGICAL_BLOCKS: u8 = 0xf1;
/// ESTIMATED STATUS UPDATE DELAY, in milliseconds, while it is under way.
const DELAY_MS: u32 = 500;
/// The same once it has ended: nothing more will come.
const NO_DELAY: u32 = u32::MAX;

/// RECEIVE COPY STATUS (LID1).
pub fn status_lid1(of: &Outcome, allocation_length: u32, out: &mut [u8]) -> Reply {
    let mut w = ReplyWriter::new(out, allocation_length);
    w.put_u32(8);
    w.put_u8(of.state.lid1());
    w.put_u16(of.segments);
    match u32::try_from(of.bytes) {
        Ok(bytes) => {
            w.put_u8(BYTES);
            w.put_u32(bytes);
        }
        Err(_) => {
            w.put_u8(MEBIBYTES);
            w.put_u32(u32::try_from(of.bytes >> 20).unwrap_or(u32::MAX));
        }
    }
    w.finish()
}

/// RECEIVE COPY DATA (LID1), of a copy that held none: there are no segments that hold data.
pub fn data_lid1(allocation_length: u32, out: &mut [u8]) -> Reply {
    let mut w = ReplyWriter::new(out, allocation_length);
    w.put_u32(0);
    w.finish()
}

/// RECEIVE COPY OPERATING PARAMETERS.
pub fn operating_parameters(allocation_length: u32, out: &mut [u8]) -> Reply {
    let mut w = ReplyWriter::new(out, allocation_length);
    w.put_u32(0);
    w.put(&[0x01, 0, 0, 0]); // SNLID: LIST ID USAGE 11b is supported
    w.put_u16(limits::COPY_CSCDS_MAX);
    w.put_u16(limits::COPY_SEGMENTS_MAX);
    w.put_u32(limits::COPY_DESCRIPTORS_LEN_MAX);
    w.put_u32(limits::COPY_SEGMENT_BYTES_MAX);
    w.put_zeroes(4 + 4 + 4); // no inline data, no held data, no streams
    w.put_zeroes(2);
    w.put_u16(u16::from(limits::COPIES_MAX));
    w.put(&[limits::COPIES_MAX, COPY_GRANULARITY, 0, 0]);
    w.put_zeroes(3);
    w.put(&[3, BLOCK_TO_BLOCK, BLOCK_TO_BLOCK_OFFSET, IDENTIFICATION]);
    w.patch_len32(0, 4);
    w.finish()
}

/// RECEIVE COPY FAILURE DETAILS (LID1), of a copy that has ended.
pub fn failure_details(of: &Outcome, allocation_length: u32, out: &mut [u8]) -> Reply {
    let mut w = ReplyWriter::new(out, allocation_length);
    w.put_u32(0);
    if of.state == State::Failed {
        w.put_zeroes(52);
        w.put(&[of.status.code(), 0]);
        let (sense, len) = sense_bytes(of.sense.as_ref());
        w.put_u16(len.into());
        w.put(sense.get(..usize::from(len)).unwrap_or_default());
        w.patch_len32(0, 4);
    }
    w.finish()
}

/// RECEIVE COPY STATUS (LID4).
pub fn status_lid4(of: &Outcome, allocation_length: u32, out: &mut [u8]) -> Reply {
    let mut w = ReplyWriter::new(out, allocation_length);
    lid4(&mut w, of, BYTES, of.bytes);
    w.patch_len32(0, 4);
    w.finish()
}

/// RECEIVE COPY DATA (LID4): as of RECEIVE COPY STATUS (LID4), and no held data.
pub fn data_lid4(of: &Outcome, allocation_length: u32, out: &mut [u8]) -> Reply {
    let mut w = ReplyWriter::new(out, allocation_length);
    lid4(&mut w, of, BYTES, of.bytes);
    w.put_u32(0);
    w.patch_len32(0, 4);
    w.finish()
}

/// REPORT ALL ROD TOKENS: of each its header and body, without what makes it usable.
pub fn all_rod_tokens<'a>(
    tokens: impl Iterator<Item = &'a RodToken>,
    allocation_length: u32,
    out: &mut [u8],
) -> Reply {
    let mut w = ReplyWriter::new(out, allocation_length);
    w.put_zeroes(8);
    tokens.for_each(|token| w.put(token.management_token()));
    w.patch_len32(0, 4);
    w.finish()
}

/// RECEIVE ROD TOKEN INFORMATION, of a unit with blocks of `block_size` bytes.
pub fn rod_token_information(of: &Outcome, block_size: u32, allocation_length: u32, out: &mut [u8]) -> Reply {
    let mut w = ReplyWriter::new(out, allocation_length);
    lid4(&mut w, of, LOGICAL_BLOCKS, of.bytes.checked_div(u64::from(block_size)).unwrap_or(0));
    match &of.token {
        Some(token) => {
            w.put_u32(2 + super::token::TOKEN_LEN as u32);
            w.put_u16(0);
            w.put(token.0.as_slice());
        }
        None => w.put_u32(0),
    }
    w.patch_len32(0, 4);
    w.finish()
}

fn lid4(w: &mut ReplyWriter<'_>, of: &Outcome, units: u8, count: u64) {
    let (sense, sense_len) = sense_bytes(of.sense.as_ref());
    w.put_u32(0);
    w.put(&[of.service_action, of.state.lid4()]);
    w.put_u16(of.operations);
    w.put_u32(if of.state.has_ended() { NO_DELAY } else { DELAY_MS });
    w.put(&[of.status.code(), sense_len, sense_len, units]);
    w.put_u64(count);
    w.put_u16(of.segments);
    w.put_zeroes(6);
    w.put(sense.get(..usize::from(sense_len)).unwrap_or_default());
}

/// In descriptor format, which has room for all.
fn sense_bytes(sense: Option<&Sense>) -> ([u8; 64], u8) {
    let mut bytes = [0; 64];
    let len = sense.map_or(0, |sense| sense.write_descriptor(&mut bytes));
    (bytes, u8::try_from(len).unwrap_or(0))
}
