//! The initiator's half of the protocol, for tests: it makes the requests of a well-behaved initiator, lets a test
//! make any other, and reads what the target sends. Like the engine it has no I/O.
//!
//! Invariant: numbering is kept as RFC 7143 demands (CmdSN, ExpStatSN, tags), so that a test says only what it is about.

mod read;

pub use read::{Fault, Received, TargetPdu};

use crate::config::Crc32c;
use crate::digest;
use crate::event::TaskAttribute;
use crate::negotiation::SessionParameters;
use crate::pdu::{
    AdditionalHeaders, Bhs, CommandNumbers, DataOut, LoginRequestPdu, LogoutReason, LogoutRequest, NopOut,
    ReadyToTransfer, ScsiCommand, Stage, TAG_NONE, TaskManagementRequest, TextRequest,
};
use crate::receive::Receiver;
use crate::text;
use crate::transmit::Digests;
use alloc::vec::Vec;

/// One connection, seen from the initiator.
#[derive(Debug)]
pub struct Initiator {
    /// CmdSN of the next numbered request.
    pub cmd_sn: u32,
    /// Tag of the next request.
    pub next_tag: u32,
    /// ISID of the login.
    pub isid: [u8; 6],
    exp_stat_sn: u32,
    max_cmd_sn: u32,
    crc32c: Crc32c,
    digests: Digests,
    receiver: Receiver,
    data: Vec<u8>,
}

impl Default for Initiator {
    fn default() -> Self {
        let mut receiver = Receiver::new(digest::crc32c);
        receiver.data_len_max = 0x00ff_ffff;
        Self {
            cmd_sn: 1000,
            next_tag: 1,
            isid: [0x80, 0, 0, 0, 0, 1],
            exp_stat_sn: 0,
            max_cmd_sn: 1000,
            crc32c: digest::crc32c,
            digests: Digests::default(),
            receiver,
            data: Vec::new(),
        }
    }
}

/// A command to send.
#[derive(Clone, Debug)]
pub struct CommandRequest<'a> {
    /// Logical unit number.
    pub lun: [u8; 8],
    /// CDB, up to 260 bytes.
    pub cdb: &'a [u8],
    /// Whether data is expected.
    pub read: bool,
    /// Data to send.
    pub data_out: Option<&'a [u8]>,
    /// Bytes expected; of the data-out if there is any.
    pub expected_data_len: u32,
    /// For immediate delivery.
    pub immediate: bool,
}

impl Initiator {
    /// The last MaxCmdSN that the target told.
    #[must_use]
    pub fn max_cmd_sn(&self) -> u32 {
        self.max_cmd_sn
    }

    /// Uses digests from here on, both ways.
    pub fn use_digests(&mut self, header: bool, data: bool) {
        self.digests = Digests { header, data };
        self.receiver.digests = self.digests;
    }

    /// Puts a PDU on the wire: digests, padding, lengths.
    #[must_use]
    pub fn frame(&self, mut bhs: Bhs, additional: &[u8], data: &[u8]) -> Vec<u8> {
        bhs.set_additional_headers_len(additional.len());
        bhs.set_data_segment_len(data.len());
        let mut bytes = Vec::from(bhs.0);
        bytes.extend_from_slice(additional);
        if self.digests.header {
            bytes.extend_from_slice(&digest::to_wire((self.crc32c)(0, &bytes)));
        }
        let start = bytes.len();
        bytes.extend_from_slice(data);
        bytes.resize(start + data.len().next_multiple_of(4), 0);
        if self.digests.data && !data.is_empty() {
            let crc = (self.crc32c)(0, bytes.get(start..).unwrap_or_default());
            bytes.extend_from_slice(&digest::to_wire(crc));
        }
        bytes
    }

    /// The numbers of the next request; takes a CmdSN unless it is immediate.
    pub fn numbers(&mut self, immediate: bool) -> CommandNumbers {
        let numbers = CommandNumbers { immediate, cmd_sn: self.cmd_sn, exp_stat_sn: self.exp_stat_sn };
        if !immediate {
            self.cmd_sn = self.cmd_sn.wrapping_add(1);
        }
        numbers
    }

    /// A tag not used before.
    pub fn take_tag(&mut self) -> u32 {
        let tag = self.next_tag;
        self.next_tag = match tag.wrapping_add(1) {
            TAG_NONE => 0,
            next => next,
        };
        tag
    }

    /// The header of a login request, to be sent as it is or changed.
    pub fn login_header(&mut self, current_stage: Stage, next_stage: Option<Stage>) -> LoginRequestPdu {
        LoginRequestPdu {
            more: false,
            current_stage,
            next_stage,
            version_max: 0,
            version_min: 0,
            isid: self.isid,
            tsih: 0,
            initiator_task_tag: 0,
            cid: 1,
            numbers: self.numbers(true),
        }
    }

    /// A login request with these keys.
    pub fn login(&mut self, current: Stage, next: Option<Stage>, keys: &[(&str, &str)]) -> Vec<u8> {
        let header = self.login_header(current, next);
        self.frame(header.encode(), &[], &keys_text(keys))
    }

    /// A SCSI command with the data that the parameters let it send unasked; its tag.
    pub fn command(
        &mut self,
        parameters: &SessionParameters,
        request: &CommandRequest<'_>,
    ) -> (u32, Vec<u8>) {
        let data = request.data_out.unwrap_or_default();
        let segment = parameters.recv_data_segment_length as usize;
        let first_burst = data.len().min(parameters.first_burst_length as usize);
        let immediate = if parameters.immediate_data { first_burst.min(segment) } else { 0 };
        let unsolicited = if parameters.initial_r2t { immediate } else { first_burst };
        let initiator_task_tag = self.take_tag();
        let mut cdb = [0; 16];
        let (first, rest) = request.cdb.split_at_checked(16).unwrap_or((request.cdb, &[]));
        cdb.iter_mut().zip(first).for_each(|(to, from)| *to = *from);
        let header = ScsiCommand {
            last: unsolicited == immediate,
            read: request.read,
            write: request.data_out.is_some(),
            attribute: TaskAttribute::Simple,
            priority: 0,
            lun: request.lun,
            initiator_task_tag,
            expected_data_len: request.expected_data_len,
            numbers: self.numbers(request.immediate),
            cdb,
        };
        let additional =
            AdditionalHeaders { extended_cdb: rest.to_vec(), bidirectional_read_len: None }.encode();
        let mut bytes = self.frame(header.encode(), &additional, data.get(..immediate).unwrap_or_default());
        bytes.extend(self.data_out(
            (initiator_task_tag, TAG_NONE),
            request.lun,
            data,
            immediate..unsolicited,
            segment,
        ));
        (initiator_task_tag, bytes)
    }

    /// Data-Outs of one sequence: these bytes of `data`, under (initiator task tag, target transfer tag).
    #[must_use]
    pub fn data_out(
        &self,
        (initiator_task_tag, target_transfer_tag): (u32, u32),
        lun: [u8; 8],
        data: &[u8],
        range: core::ops::Range<usize>,
        segment: usize,
    ) -> Vec<u8> {
        let mut bytes = Vec::new();
        let (mut start, mut data_sn) = (range.start, 0);
        while start < range.end {
            let end = (start + segment).min(range.end);
            let header = DataOut {
                last: end == range.end,
                lun,
                initiator_task_tag,
                target_transfer_tag,
                exp_stat_sn: self.exp_stat_sn,
                data_sn,
                buffer_offset: start as u32,
            };
            bytes.extend(self.frame(header.encode(), &[], data.get(start..end).unwrap_or_default()));
            start = end;
            data_sn += 1;
        }
        bytes
    }

    /// The answer to an R2T.
    #[must_use]
    pub fn solicited(&self, r2t: &ReadyToTransfer, data: &[u8], segment: usize) -> Vec<u8> {
        let start = r2t.buffer_offset as usize;
        let range = start..start + r2t.desired_len as usize;
        self.data_out((r2t.initiator_task_tag, r2t.target_transfer_tag), r2t.lun, data, range, segment)
    }

    /// A NOP-Out that wants an answer; its tag.
    pub fn ping(&mut self, immediate: bool, data: &[u8]) -> (u32, Vec<u8>) {
        let initiator_task_tag = self.take_tag();
        let numbers = self.numbers(immediate);
        let header = NopOut { lun: [0; 8], initiator_task_tag, target_transfer_tag: TAG_NONE, numbers };
        (initiator_task_tag, self.frame(header.encode(), &[], data))
    }

    /// The answer to a ping of the target's.
    pub fn pong(&mut self, target_transfer_tag: u32) -> Vec<u8> {
        let numbers = self.numbers(true);
        let header = NopOut { lun: [0; 8], initiator_task_tag: TAG_NONE, target_transfer_tag, numbers };
        self.frame(header.encode(), &[], &[])
    }

    /// A text request that is whole; its tag.
    pub fn text(&mut self, keys: &[(&str, &str)]) -> (u32, Vec<u8>) {
        let initiator_task_tag = self.take_tag();
        let header = TextRequest {
            last: true,
            more: false,
            lun: [0; 8],
            initiator_task_tag,
            target_transfer_tag: TAG_NONE,
            numbers: self.numbers(true),
        };
        (initiator_task_tag, self.frame(header.encode(), &[], &keys_text(keys)))
    }

    /// A task management request; its tag.
    pub fn task_management(&mut self, function: u8, lun: [u8; 8], referenced: u32) -> (u32, Vec<u8>) {
        let initiator_task_tag = self.take_tag();
        let header = TaskManagementRequest {
            function,
            lun,
            initiator_task_tag,
            referenced_task_tag: referenced,
            ref_cmd_sn: 0,
            numbers: self.numbers(true),
        };
        (initiator_task_tag, self.frame(header.encode(), &[], &[]))
    }

    /// A logout that closes the session; its tag.
    pub fn logout(&mut self) -> (u32, Vec<u8>) {
        let initiator_task_tag = self.take_tag();
        let header = LogoutRequest {
            reason: LogoutReason::CloseSession,
            initiator_task_tag,
            cid: 1,
            numbers: self.numbers(true),
        };
        (initiator_task_tag, self.frame(header.encode(), &[], &[]))
    }
}

/// The text of these keys.
#[must_use]
pub fn keys_text(keys: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (key, value) in keys {
        text::push(&mut bytes, key, value);
    }
    bytes
}
