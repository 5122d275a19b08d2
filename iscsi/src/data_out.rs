//! The data-out of one task: what came with the command, what comes unsolicited, what is solicited by R2T
//! (RFC 7143 4.2.4, 11.7, 11.8).
//!
//! DataPDUInOrder and DataSequenceInOrder are always agreed as Yes, so the buffer only grows at its end.
//!
//! Invariants: the buffer never holds more than `wanted` bytes; a byte is taken only inside the sequence that allows it;
//! at most MaxOutstandingR2T sequences are outstanding; once failed, nothing more is stored.

use crate::event::Condition;
use crate::negotiation::SessionParameters;
use crate::pdu::{DataOut, TAG_NONE};
use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// A run of Data-Outs up to an F bit.
#[derive(Debug)]
struct Sequence {
    /// [`TAG_NONE`] if unsolicited.
    target_transfer_tag: u32,
    next_offset: u32,
    end: u32,
    next_data_sn: u32,
}

/// An R2T to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Solicitation {
    pub(crate) target_transfer_tag: u32,
    pub(crate) r2t_sn: u32,
    pub(crate) buffer_offset: u32,
    pub(crate) desired_len: u32,
}

/// What to do with a Data-Out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Its data belongs at the end of the buffer.
    Take,
    /// Its data is lost anyway.
    Drop,
    /// It names no outstanding R2T: reject it.
    Stale,
    /// Its fields contradict its sequence: the session is over.
    Violation,
}

/// Where a transfer stands.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Data is outstanding.
    Going,
    /// All is here.
    Whole(Vec<u8>),
    /// It failed, and all that was outstanding has come.
    Failed(Condition),
}

/// A transfer.
#[derive(Debug)]
pub(crate) struct Transfer {
    wanted: u32,
    buffer: Vec<u8>,
    /// Bytes received, for the residual of a task that ends early.
    received: u32,
    /// In the order in which they will be filled: unsolicited first.
    outstanding: VecDeque<Sequence>,
    /// First byte not yet asked for nor announced.
    next_offset: u32,
    r2t_sn: u32,
    failed: Option<Condition>,
    reported: bool,
}

impl Transfer {
    /// For `wanted` bytes, with an empty `buffer` to fill.
    pub(crate) fn new(wanted: u32, buffer: Vec<u8>) -> Self {
        Self {
            wanted,
            buffer,
            received: 0,
            outstanding: VecDeque::new(),
            next_offset: 0,
            r2t_sn: 0,
            failed: None,
            reported: false,
        }
    }

    /// Judges what comes unasked: `immediate_len` bytes in the command, and more in Data-Outs if the command was
    /// not `last`. `expected` is what the initiator means to send in all.
    pub(crate) fn open(
        &mut self,
        parameters: &SessionParameters,
        expected: u32,
        immediate_len: u32,
        last: bool,
    ) {
        let first_burst = parameters.first_burst_length.min(expected);
        if immediate_len > expected {
            self.fail(Condition::IncorrectAmountOfData);
        } else if (immediate_len > 0 && !parameters.immediate_data)
            || immediate_len > first_burst
            || (!last && parameters.initial_r2t)
        {
            self.fail(Condition::UnexpectedUnsolicitedData);
        }
        self.next_offset = immediate_len.min(self.wanted);
        if !last && !parameters.initial_r2t {
            self.outstanding.push_back(Sequence {
                target_transfer_tag: TAG_NONE,
                next_offset: immediate_len,
                end: first_burst.max(immediate_len),
                next_data_sn: 0,
            });
            self.next_offset = first_burst.max(immediate_len).min(self.wanted);
        }
    }

    /// Whether an R2T is the next step, so that memory for the whole is needed.
    pub(crate) fn wants_soliciting(&self) -> bool {
        let unsolicited = self.outstanding.iter().any(|s| s.target_transfer_tag == TAG_NONE);
        self.failed.is_none() && !unsolicited && self.next_offset < self.wanted
    }

    pub(crate) fn wanted(&self) -> u32 {
        self.wanted
    }

    pub(crate) fn received(&self) -> u32 {
        self.received
    }

    /// R2Ts sent.
    pub(crate) fn r2ts(&self) -> u32 {
        self.r2t_sn
    }

    pub(crate) fn failed(&self) -> Option<Condition> {
        self.failed
    }

    /// Whether its end was told.
    pub(crate) fn is_reported(&self) -> bool {
        self.reported
    }

    /// Makes room for the first `bytes` of it at once.
    pub(crate) fn reserve(&mut self, bytes: u32) {
        let bytes = bytes.min(self.wanted) as usize;
        self.buffer.reserve_exact(bytes.saturating_sub(self.buffer.len()));
    }

    /// Bytes of memory that the buffer takes.
    pub(crate) fn bytes_held(&self) -> usize {
        self.buffer.capacity()
    }

    /// The transfer cannot succeed any more.
    pub(crate) fn fail(&mut self, condition: Condition) {
        self.failed.get_or_insert(condition);
        self.buffer = Vec::new();
    }

    /// Takes data that a [`Verdict::Take`], or the command itself, let in.
    pub(crate) fn take(&mut self, bytes: &[u8]) {
        self.received = self.received.saturating_add(bytes.len() as u32);
        let room = (self.wanted as usize).saturating_sub(self.buffer.len());
        if self.failed.is_none() && bytes.len() <= room {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// Judges a Data-Out of `len` bytes and moves its sequence on.
    pub(crate) fn data_out(&mut self, pdu: &DataOut, len: u32) -> Verdict {
        let Some(at) = self.outstanding.iter().position(|s| s.target_transfer_tag == pdu.target_transfer_tag)
        else {
            return Verdict::Stale;
        };
        let failed = self.failed.is_some();
        let Some(sequence) = self.outstanding.get_mut(at) else { return Verdict::Stale };
        // A lost PDU shows as a gap in DataSN; from there on only the F bit matters.
        if !failed && pdu.data_sn != sequence.next_data_sn {
            self.fail(Condition::ProtocolServiceCrcError);
            return self.drop_rest(at, pdu.last);
        }
        if failed {
            return self.drop_rest(at, pdu.last);
        }
        let end = pdu.buffer_offset.checked_add(len);
        let in_order = at == 0 && pdu.buffer_offset == sequence.next_offset;
        let Some(end) = end.filter(|end| in_order && *end <= sequence.end) else {
            return Verdict::Violation;
        };
        sequence.next_offset = end;
        sequence.next_data_sn = sequence.next_data_sn.wrapping_add(1);
        match (pdu.last, end == sequence.end) {
            (true, true) => {
                self.outstanding.pop_front();
            }
            (false, false) => {}
            // Unsolicited data may be less than allowed; the rest is asked for.
            (true, false) if pdu.target_transfer_tag == TAG_NONE => {
                self.next_offset = end;
                self.outstanding.pop_front();
            }
            (true, false) => {
                self.outstanding.pop_front();
                self.fail(Condition::IncorrectAmountOfData);
                return Verdict::Drop;
            }
            (false, true) => return Verdict::Violation,
        }
        Verdict::Take
    }

    fn drop_rest(&mut self, at: usize, last: bool) -> Verdict {
        if last {
            self.outstanding.remove(at);
        }
        Verdict::Drop
    }

    /// The next R2T to send, under tag `target_transfer_tag`.
    pub(crate) fn solicit(
        &mut self,
        parameters: &SessionParameters,
        target_transfer_tag: u32,
    ) -> Option<Solicitation> {
        let full = self.outstanding.len() >= parameters.max_outstanding_r2t as usize;
        if full || !self.wants_soliciting() {
            return None;
        }
        let buffer_offset = self.next_offset;
        let desired_len = (self.wanted - buffer_offset).min(parameters.max_burst_length);
        let r2t_sn = self.r2t_sn;
        self.r2t_sn = self.r2t_sn.wrapping_add(1);
        self.next_offset = buffer_offset + desired_len;
        self.outstanding.push_back(Sequence {
            target_transfer_tag,
            next_offset: buffer_offset,
            end: self.next_offset,
            next_data_sn: 0,
        });
        Some(Solicitation { target_transfer_tag, r2t_sn, buffer_offset, desired_len })
    }

    /// Whether it has come to an end; tells so once.
    pub(crate) fn progress(&mut self) -> Progress {
        if self.reported || !self.outstanding.is_empty() {
            return Progress::Going;
        }
        if let Some(condition) = self.failed {
            self.reported = true;
            return Progress::Failed(condition);
        }
        if self.buffer.len() < self.wanted as usize {
            return Progress::Going;
        }
        self.reported = true;
        Progress::Whole(core::mem::take(&mut self.buffer))
    }

    /// The buffer of a task that ends early.
    pub(crate) fn into_buffer(self) -> Vec<u8> {
        self.buffer
    }
}
