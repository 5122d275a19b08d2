//! What waits to be sent: headers and small data in one growing buffer, large data by reference to the shell's buffers,
//! in order, ready for one vectored write.
//!
//! Invariants: PDUs leave whole and in the order in which they were pushed; padding is zero; a payload is held until
//! its last byte was sent, and no longer.

use crate::config::Crc32c;
use crate::digest;
use crate::event::Payload;
use crate::limits;
use crate::pdu::Bhs;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::ops::Range;

/// Consecutive bytes from one place.
#[derive(Debug)]
enum Segment {
    /// The next so many bytes of `owned`.
    Owned(usize),
    /// Bytes of the foremost payload; the payload is done after `last`.
    Payload { range: Range<usize>, last: bool },
}

/// Which digests PDUs carry.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Digests {
    pub(crate) header: bool,
    pub(crate) data: bool,
}

/// The queue of one connection.
#[derive(Debug)]
pub(crate) struct Transmit<B> {
    crc32c: Crc32c,
    pub(crate) digests: Digests,
    owned: Vec<u8>,
    owned_sent: usize,
    segments: VecDeque<Segment>,
    payloads: VecDeque<B>,
    len: usize,
}

impl<B: AsRef<[u8]>> Transmit<B> {
    pub(crate) fn new(crc32c: Crc32c) -> Self {
        Self {
            crc32c,
            digests: Digests::default(),
            owned: Vec::new(),
            owned_sent: 0,
            segments: VecDeque::new(),
            payloads: VecDeque::new(),
            len: 0,
        }
    }

    /// Bytes not yet sent.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    fn push_owned(&mut self, bytes: &[u8]) {
        self.owned.extend_from_slice(bytes);
        self.len += bytes.len();
        match self.segments.back_mut() {
            Some(Segment::Owned(len)) => *len += bytes.len(),
            _ => self.segments.push_back(Segment::Owned(bytes.len())),
        }
    }

    fn push_header(&mut self, mut bhs: Bhs, data_len: usize) {
        bhs.set_data_segment_len(data_len);
        self.push_owned(&bhs.0);
        if self.digests.header {
            self.push_owned(&digest::to_wire((self.crc32c)(0, &bhs.0)));
        }
    }

    /// Padding and digest behind a data segment of which `crc` is known.
    fn push_tail(&mut self, data_len: usize, crc: u32) {
        let padding = &[0; 3][..data_len.next_multiple_of(4) - data_len];
        self.push_owned(padding);
        if self.digests.data && data_len > 0 {
            self.push_owned(&digest::to_wire((self.crc32c)(crc, padding)));
        }
    }

    fn data_crc(&self, data: &[u8]) -> u32 {
        if self.digests.data { (self.crc32c)(0, data) } else { 0 }
    }

    /// Queues one PDU with data that is copied.
    pub(crate) fn push(&mut self, bhs: Bhs, data: &[u8]) {
        self.push_header(bhs, data.len());
        if !data.is_empty() {
            self.push_owned(data);
            self.push_tail(data.len(), self.data_crc(data));
        }
    }

    /// Queues PDUs whose data are successive, not empty parts of one payload, as ranges from the payload's start.
    pub(crate) fn push_parts(
        &mut self,
        payload: Payload<B>,
        parts: impl Iterator<Item = (Bhs, Range<usize>)>,
    ) {
        let copied = payload.len() <= limits::COPY_LEN_MAX;
        let mut referenced = false;
        for (bhs, part) in parts {
            let range = payload.range.start + part.start..payload.range.start + part.end;
            let Some(data) = payload.buffer.as_ref().get(range.clone()) else { continue };
            if copied {
                self.push(bhs, data);
                continue;
            }
            let crc = self.data_crc(data);
            self.push_header(bhs, data.len());
            self.len += data.len();
            self.segments.push_back(Segment::Payload { range, last: false });
            self.push_tail(part.len(), crc);
            referenced = true;
        }
        if referenced {
            let payload_segment = self.segments.iter_mut().rev().find_map(|segment| match segment {
                Segment::Payload { last, .. } => Some(last),
                Segment::Owned(_) => None,
            });
            if let Some(last) = payload_segment {
                *last = true;
            }
            self.payloads.push_back(payload.buffer);
        }
    }

    /// The bytes to send, in order.
    pub(crate) fn segments(&self) -> impl Iterator<Item = &[u8]> {
        let mut owned = self.owned.get(self.owned_sent..).unwrap_or_default();
        let mut payloads = self.payloads.iter();
        let mut current = payloads.next();
        self.segments.iter().map(move |segment| match segment {
            Segment::Owned(len) => {
                let (bytes, rest) = owned.split_at_checked(*len).unwrap_or((owned, &[]));
                owned = rest;
                bytes
            }
            Segment::Payload { range, last } => {
                let bytes = current.and_then(|p| p.as_ref().get(range.clone())).unwrap_or_default();
                if *last {
                    current = payloads.next();
                }
                bytes
            }
        })
    }

    /// Forgets the first `sent` bytes.
    pub(crate) fn advance(&mut self, mut sent: usize) {
        while let Some(segment) = self.segments.front_mut() {
            let len = match segment {
                Segment::Owned(len) => *len,
                Segment::Payload { range, .. } => range.len(),
            };
            let step = sent.min(len);
            sent -= step;
            self.len -= step;
            match segment {
                Segment::Owned(left) => {
                    *left -= step;
                    self.owned_sent += step;
                }
                Segment::Payload { range, .. } => range.start += step,
            }
            if step < len {
                break;
            }
            if let Some(Segment::Payload { last: true, .. }) = self.segments.pop_front() {
                self.payloads.pop_front();
            }
        }
        self.compact();
    }

    /// Frees sent bytes, at most once per as many bytes sent, so that it costs no more than sending.
    fn compact(&mut self) {
        const WORTH_IT: usize = 64 * 1024;
        if self.owned_sent == self.owned.len() {
            self.owned.clear();
            self.owned.shrink_to(WORTH_IT);
            self.owned_sent = 0;
        } else if self.owned_sent >= WORTH_IT && self.owned_sent * 2 >= self.owned.len() {
            self.owned.drain(..self.owned_sent);
            self.owned_sent = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pdu::opcode;
    use alloc::vec;

    fn bytes(transmit: &Transmit<Vec<u8>>) -> Vec<u8> {
        transmit.segments().flatten().copied().collect()
    }

    fn filled() -> Transmit<Vec<u8>> {
        let mut transmit = Transmit::new(digest::crc32c);
        transmit.digests = Digests { header: true, data: true };
        let bhs = Bhs::new(opcode::DATA_IN, 0);
        let large: Vec<u8> = (0..2000u32).map(|n| n as u8).collect();
        transmit.push(bhs, b"abcde");
        transmit.push_parts(Payload::part(large, 100..1900), [(bhs, 0..1001), (bhs, 1001..1800)].into_iter());
        transmit.push_parts(Payload::new(vec![7; 10]), [(bhs, 0..10)].into_iter());
        transmit.push(bhs, b"");
        transmit
    }

    #[test]
    fn any_partial_writes_give_the_same_stream() {
        let whole = bytes(&filled());
        assert_eq!(whole.len(), filled().len());
        for step in [1, 2, 3, 47, 48, 49, 500, 5000] {
            let (mut transmit, mut sent) = (filled(), Vec::new());
            while transmit.len() > 0 {
                let now: Vec<u8> = bytes(&transmit).into_iter().take(step).collect();
                transmit.advance(now.len());
                sent.extend(now);
            }
            assert_eq!(sent, whole);
            assert!(
                transmit.payloads.is_empty() && transmit.segments.is_empty() && transmit.owned.is_empty()
            );
        }
    }

    #[test]
    fn small_answers_share_one_segment() {
        let mut transmit: Transmit<Vec<u8>> = Transmit::new(digest::crc32c);
        for _ in 0..10 {
            transmit.push(Bhs::new(opcode::SCSI_RESPONSE, 0x80), b"");
        }
        assert_eq!(transmit.segments().count(), 1);
    }
}
