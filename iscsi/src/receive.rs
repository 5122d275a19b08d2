//! Cuts the byte stream into PDUs: header, additional headers, header digest, data, padding, data digest
//! (RFC 7143 11.2).
//!
//! Invariants: a header is judged whole before any byte of its data is taken; the length of the data is bounded at that
//! moment; data passes through without being stored here.

use crate::config::Crc32c;
use crate::digest;
use crate::event::Violation;
use crate::limits;
use crate::pdu::Bhs;
use crate::transmit::Digests;
use alloc::vec::Vec;

/// What comes next in the stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Item<'a> {
    /// A header, to be had from [`Receiver::bhs`] and [`Receiver::additional_headers`].
    Header,
    /// Some of its data.
    Data(&'a [u8]),
    /// The PDU is over; whether its data came whole.
    End {
        /// False: the data digest is wrong.
        intact: bool,
    },
}

/// Why the stream cannot be read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// A wrong header digest: where the next PDU starts is unknown.
    HeaderDigest,
    /// Lengths out of bounds.
    Violation(Violation),
}

#[derive(Clone, Copy, Debug)]
enum State {
    Header,
    /// Data, then padding; bytes left of each.
    Data {
        data: usize,
        padding: usize,
    },
    Digest,
    End {
        intact: bool,
    },
}

/// The receiving half of a connection.
#[derive(Debug)]
pub(crate) struct Receiver {
    crc32c: Crc32c,
    pub(crate) digests: Digests,
    /// The longest data segment accepted.
    pub(crate) data_len_max: usize,
    state: State,
    /// Header, additional headers, digest; or the data digest.
    buffer: Vec<u8>,
    bhs: Bhs,
    additional: usize,
    crc: u32,
}

impl Receiver {
    pub(crate) fn new(crc32c: Crc32c) -> Self {
        Self {
            crc32c,
            digests: Digests::default(),
            data_len_max: limits::LOGIN_DATA_SEGMENT_LEN_MAX,
            state: State::Header,
            buffer: Vec::with_capacity(limits::BHS_LEN + limits::AHS_LEN_MAX + limits::DIGEST_LEN),
            bhs: Bhs::new(0, 0),
            additional: 0,
            crc: 0,
        }
    }

    /// The header of the PDU at hand.
    pub(crate) fn bhs(&self) -> Bhs {
        self.bhs
    }

    /// Its additional header segments; valid right after [`Item::Header`].
    pub(crate) fn additional_headers(&self) -> &[u8] {
        self.buffer.get(limits::BHS_LEN..limits::BHS_LEN + self.additional).unwrap_or_default()
    }

    /// Takes from the front of `input`; `None` if it is used up.
    pub(crate) fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Item<'a>>, Unreadable> {
        loop {
            match self.state {
                State::Header => return self.header(input),
                State::Data { data: 0, padding: 0 } => {
                    self.buffer.clear();
                    let with_digest = self.digests.data && self.bhs.data_segment_len() > 0;
                    self.state = if with_digest { State::Digest } else { State::End { intact: true } };
                }
                State::Data { data: 0, padding } => {
                    let Some(bytes) = take(input, padding) else { return Ok(None) };
                    self.add_to_digest(bytes);
                    self.state = State::Data { data: 0, padding: padding - bytes.len() };
                }
                State::Data { data, padding } => {
                    let Some(bytes) = take(input, data) else { return Ok(None) };
                    self.add_to_digest(bytes);
                    self.state = State::Data { data: data - bytes.len(), padding };
                    return Ok(Some(Item::Data(bytes)));
                }
                State::Digest => {
                    if !self.fill(input, limits::DIGEST_LEN) {
                        return Ok(None);
                    }
                    let intact = self.buffer.as_slice() == digest::to_wire(self.crc);
                    self.state = State::End { intact };
                }
                State::End { intact } => {
                    self.buffer.clear();
                    self.state = State::Header;
                    return Ok(Some(Item::End { intact }));
                }
            }
        }
    }

    fn add_to_digest(&mut self, bytes: &[u8]) {
        if self.digests.data {
            self.crc = (self.crc32c)(self.crc, bytes);
        }
    }

    /// Fills `buffer` up to `len` bytes; whether it is full.
    fn fill(&mut self, input: &mut &[u8], len: usize) -> bool {
        if let Some(bytes) = take(input, len.saturating_sub(self.buffer.len())) {
            self.buffer.extend_from_slice(bytes);
        }
        self.buffer.len() >= len
    }

    fn header<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Item<'a>>, Unreadable> {
        if !self.fill(input, limits::BHS_LEN) {
            return Ok(None);
        }
        if let Some(bytes) = self.buffer.first_chunk() {
            self.bhs = Bhs(*bytes);
        }
        // With a digest, a length is only believed after the digest was checked, but it is needed to find the digest:
        // so it is bounded first, and only then waited for.
        self.additional = self.bhs.additional_headers_len();
        if self.additional > limits::AHS_LEN_MAX {
            return Err(Unreadable::Violation(Violation::AdditionalHeader));
        }
        let headers = limits::BHS_LEN + self.additional;
        if !self.fill(input, headers + if self.digests.header { limits::DIGEST_LEN } else { 0 }) {
            return Ok(None);
        }
        if self.digests.header {
            let (headers, sent) = self.buffer.split_at_checked(headers).unwrap_or_default();
            if sent != digest::to_wire((self.crc32c)(0, headers)) {
                return Err(Unreadable::HeaderDigest);
            }
        }
        let data = self.bhs.data_segment_len() as usize;
        if data > self.data_len_max {
            return Err(Unreadable::Violation(Violation::DataSegmentTooLong));
        }
        self.crc = 0;
        self.state = State::Data { data, padding: data.next_multiple_of(4) - data };
        Ok(Some(Item::Header))
    }
}

/// Up to `most` bytes from the front; `None` if there are none to take or none are wanted.
fn take<'a>(input: &mut &'a [u8], most: usize) -> Option<&'a [u8]> {
    let (bytes, rest) = input.split_at_checked(most).unwrap_or((input, &[]));
    *input = rest;
    (!bytes.is_empty()).then_some(bytes)
}
