//! PDUs as they stand on the wire (RFC 7143 section 11): the basic header segment and one plain struct per
//! opcode, each with `decode` and `encode`, so that both sides of a test speak through the same definitions.
//!
//! Invariant: `decode` never fails on lengths (a header is 48 bytes by type) and never trusts: it refuses only codes that
//! have no meaning; how fields go together is judged by whoever knows the state.

mod ahs;
mod asynchronous;
mod data;
mod login;
mod logout;
mod nop;
mod reject;
mod scsi;
mod task_management;
mod text;

pub use ahs::AdditionalHeaders;
pub use asynchronous::{AsyncEvent, AsyncMessage};
pub use data::{DataIn, DataInStatus, DataOut, ReadyToTransfer};
pub use login::{LoginRequestPdu, LoginResponsePdu, Stage};
pub use logout::{LogoutReason, LogoutRequest, LogoutResponse, LogoutResult};
pub use nop::{NopIn, NopOut};
pub use reject::{Reject, RejectReason};
pub use scsi::{Residual, ScsiCommand, ScsiResponse};
pub use task_management::{TaskManagementRequest, TaskManagementResponsePdu};
pub use text::{TextRequest, TextResponse};

use crate::limits::BHS_LEN;
use core::fmt;

/// The reserved tag: "none" for both kinds of task tags.
pub const TAG_NONE: u32 = 0xffff_ffff;

/// Opcodes without the immediate bit (RFC 7143 11.2.1.2).
pub mod opcode {
    /// NOP-Out
    pub const NOP_OUT: u8 = 0x00;
    /// SCSI Command
    pub const SCSI_COMMAND: u8 = 0x01;
    /// SCSI Task Management Function Request
    pub const TASK_MANAGEMENT_REQUEST: u8 = 0x02;
    /// Login Request
    pub const LOGIN_REQUEST: u8 = 0x03;
    /// Text Request
    pub const TEXT_REQUEST: u8 = 0x04;
    /// SCSI Data-Out
    pub const DATA_OUT: u8 = 0x05;
    /// Logout Request
    pub const LOGOUT_REQUEST: u8 = 0x06;
    /// SNACK Request
    pub const SNACK_REQUEST: u8 = 0x10;
    /// NOP-In
    pub const NOP_IN: u8 = 0x20;
    /// SCSI Response
    pub const SCSI_RESPONSE: u8 = 0x21;
    /// SCSI Task Management Function Response
    pub const TASK_MANAGEMENT_RESPONSE: u8 = 0x22;
    /// Login Response
    pub const LOGIN_RESPONSE: u8 = 0x23;
    /// Text Response
    pub const TEXT_RESPONSE: u8 = 0x24;
    /// SCSI Data-In
    pub const DATA_IN: u8 = 0x25;
    /// Logout Response
    pub const LOGOUT_RESPONSE: u8 = 0x26;
    /// Ready To Transfer
    pub const READY_TO_TRANSFER: u8 = 0x31;
    /// Asynchronous Message
    pub const ASYNC_MESSAGE: u8 = 0x32;
    /// Reject
    pub const REJECT: u8 = 0x3f;
}

/// The "final" bit, and the always-one bit where there is no such meaning.
pub(crate) const FINAL: u8 = 0x80;
/// The "continue" bit of texts.
pub(crate) const CONTINUE: u8 = 0x40;
/// The immediate delivery bit beside the opcode.
const IMMEDIATE: u8 = 0x40;

/// A basic header segment.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Bhs(pub [u8; BHS_LEN]);

impl fmt::Debug for Bhs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            write!(f, "{}{byte:02x}", if at > 0 && at % 4 == 0 { " " } else { "" })?;
        }
        Ok(())
    }
}

impl Bhs {
    pub(crate) fn new(opcode: u8, flags: u8) -> Self {
        let mut bytes = [0; BHS_LEN];
        bytes[0] = opcode;
        bytes[1] = flags;
        Self(bytes)
    }

    pub(crate) fn request(opcode: u8, immediate: bool, flags: u8) -> Self {
        Self::new(if immediate { opcode | IMMEDIATE } else { opcode }, flags)
    }

    /// See [`opcode`].
    #[must_use]
    pub fn opcode(&self) -> u8 {
        self.0[0] & 0x3f
    }

    /// The I bit.
    #[must_use]
    pub fn immediate(&self) -> bool {
        self.0[0] & IMMEDIATE != 0
    }

    pub(crate) fn flags(&self) -> u8 {
        self.0[1]
    }

    /// Bytes of additional header segments, a multiple of 4, at most 1020.
    #[must_use]
    pub fn additional_headers_len(&self) -> usize {
        usize::from(self.0[4]) * 4
    }

    #[cfg(feature = "initiator")]
    pub(crate) fn set_additional_headers_len(&mut self, bytes: usize) {
        self.0[4] = (bytes / 4) as u8;
    }

    /// DataSegmentLength: bytes without padding, below 2^24.
    #[must_use]
    pub fn data_segment_len(&self) -> u32 {
        u32::from_be_bytes([0, self.0[5], self.0[6], self.0[7]])
    }

    pub(crate) fn set_data_segment_len(&mut self, bytes: usize) {
        let [_, a, b, c] = (bytes as u32).to_be_bytes();
        self.0[5] = a;
        self.0[6] = b;
        self.0[7] = c;
    }

    /// The initiator task tag.
    #[must_use]
    pub fn initiator_task_tag(&self) -> u32 {
        self.word::<16>()
    }

    pub(crate) fn word<const AT: usize>(&self) -> u32 {
        u32::from_be_bytes([self.0[AT], self.0[AT + 1], self.0[AT + 2], self.0[AT + 3]])
    }

    pub(crate) fn set_word<const AT: usize>(&mut self, value: u32) {
        [self.0[AT], self.0[AT + 1], self.0[AT + 2], self.0[AT + 3]] = value.to_be_bytes();
    }

    pub(crate) fn half<const AT: usize>(&self) -> u16 {
        u16::from_be_bytes([self.0[AT], self.0[AT + 1]])
    }

    pub(crate) fn set_half<const AT: usize>(&mut self, value: u16) {
        [self.0[AT], self.0[AT + 1]] = value.to_be_bytes();
    }

    pub(crate) fn lun(&self) -> [u8; 8] {
        let b = &self.0;
        [b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]]
    }

    pub(crate) fn set_lun(&mut self, lun: [u8; 8]) {
        self.set_word::<8>(u32::from_be_bytes([lun[0], lun[1], lun[2], lun[3]]));
        self.set_word::<12>(u32::from_be_bytes([lun[4], lun[5], lun[6], lun[7]]));
    }

    fn numbers(&self) -> Numbers {
        Numbers { stat_sn: self.word::<24>(), exp_cmd_sn: self.word::<28>(), max_cmd_sn: self.word::<32>() }
    }

    fn set_numbers(&mut self, numbers: Numbers) {
        self.set_word::<24>(numbers.stat_sn);
        self.set_word::<28>(numbers.exp_cmd_sn);
        self.set_word::<32>(numbers.max_cmd_sn);
    }
}

/// The sequence numbers that every PDU from the target carries (RFC 7143 4.2.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Status sequence number: this PDU's, or the next one's where it takes none.
    pub stat_sn: u32,
    /// The next CmdSN that is expected.
    pub exp_cmd_sn: u32,
    /// The last CmdSN that is accepted.
    pub max_cmd_sn: u32,
}

/// What a request from the initiator carries of the command numbering (RFC 7143 4.2.2.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommandNumbers {
    /// For immediate delivery, outside the numbering.
    pub immediate: bool,
    /// Command sequence number.
    pub cmd_sn: u32,
    /// The next StatSN that the initiator expects.
    pub exp_stat_sn: u32,
}

impl CommandNumbers {
    pub(crate) fn of(bhs: &Bhs) -> Self {
        Self { immediate: bhs.immediate(), cmd_sn: bhs.word::<24>(), exp_stat_sn: bhs.word::<28>() }
    }

    fn write(self, bhs: &mut Bhs) {
        bhs.set_word::<24>(self.cmd_sn);
        bhs.set_word::<28>(self.exp_stat_sn);
    }
}

/// A field holds a code without meaning; the field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidField(pub &'static str);
