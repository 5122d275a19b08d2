//! Frames between data nodes: a fixed header, a short fixed part ("meta") of the message, and bulk data.
//!
//! All numbers are big endian. The header has [`HEADER_LEN`] bytes:
//!
//! ```text
//!  byte
//!     0  "HFRM"                        magic, 4 bytes
//!     4  version (1) | kind            1 byte each
//!     6  flags                         2 bytes, by kind; unknown ones are refused
//!     8  epoch: generation             4 bytes
//!    12  reserved (0)                  4 bytes
//!    16  epoch: number                 8 bytes
//!    24  sequence                      8 bytes, number in the stream of (nexus, volume)
//!    32  token                         8 bytes, names the request
//!    40  clock                         8 bytes, clock token; 0 = none
//!    48  length of meta                4 bytes, at most FRAME_META_LEN_MAX
//!    52  length of data                4 bytes, at most FRAME_DATA_LEN_MAX
//!    56  CRC32C of meta and data       4 bytes
//!    60  CRC32C of bytes 0..60         4 bytes
//!    64  meta, then data
//! ```
//!
//! Invariants: lengths are believed only once the header's checksum and bounds have been checked; a frame is handed on
//! only whole and with a correct checksum; the first error ends the connection, since nothing behind it can be trusted.

use alloc::{vec, vec::Vec};
use core::fmt;

use crate::{
    Crc32c,
    epoch::Epoch,
    limits::{FRAME_DATA_LEN_MAX, FRAME_META_LEN_MAX},
};

/// Length of the header in bytes.
pub const HEADER_LEN: usize = 64;

const MAGIC: [u8; 4] = *b"HFRM";
const VERSION: u8 = 1;
const HEADER_CRC_AT: usize = 60;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $code:literal,)*) => {
        /// What a frame says.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Kind { $($(#[$doc])* $name = $code,)* }

        impl Kind {
            /// Every kind.
            pub const ALL: &[Kind] = &[$(Kind::$name),*];

            /// The kind with this code.
            pub const fn from_code(code: u8) -> Option<Kind> {
                match code {
                    $($code => Some(Kind::$name),)*
                    _ => None,
                }
            }
        }
    };
}

kinds! {
    /// First frame of the connecting side.
    Hello = 0x01,
    /// First frame of the accepting side, with its first clock token.
    Welcome = 0x02,
    /// A clock token of the accepting side.
    Clock = 0x03,
    /// Answers [`Kind::Clock`].
    Alive = 0x04,
    /// A command for the owner.
    Command = 0x10,
    /// The data of a command.
    DataOut = 0x11,
    /// The data of a command will not come, or its port gives it up.
    Abort = 0x12,
    /// A task management function.
    TaskManagement = 0x13,
    /// A nexus has ended.
    NexusLoss = 0x14,
    /// Status, sense and data-in of a command.
    Reply = 0x20,
    /// The command was aborted.
    Aborted = 0x21,
    /// The command was definitely not executed.
    NotExecuted = 0x22,
    /// The command was definitely not executed, because it is too old.
    Stale = 0x23,
    /// The owner itself does not know whether the command was executed.
    Unknown = 0x24,
    /// The function has been carried out, or refused.
    TaskManagementDone = 0x25,
    /// The tasks of the nexus have ended.
    NexusLossDone = 0x26,
    /// The owner asks a replica to promise its epoch. This and the kinds below: [`crate::replication`].
    Promise = 0x30,
    /// Blocks to write.
    ReplicaWrite = 0x31,
    /// Blocks to fill with zeroes or to unmap.
    ReplicaZeroes = 0x32,
    /// Bring writes to disk.
    ReplicaFlush = 0x33,
    /// Extents to record as active.
    Record = 0x34,
    /// Bits to add to the bitmap of an absent replica.
    Merge = 0x35,
    /// How far the owner's writes are everywhere.
    Settled = 0x36,
    /// Blocks to read.
    ReplicaRead = 0x37,
    /// The epoch is promised.
    Promised = 0x38,
    /// The epoch is too low.
    PromiseRefused = 0x39,
    /// A request of the owner has been carried out.
    ReplicaDone = 0x3a,
    /// It has not.
    ReplicaFailed = 0x3b,
    /// Blocks that were asked for.
    ReplicaBlocks = 0x3c,
    /// Blocks that a replica has lost.
    Damaged = 0x3d,
    /// All of a replica that could not be trusted has been copied to it: it says so durably.
    Whole = 0x3e,
}

/// The header of a frame, without the lengths and checksums that follow from its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the frame says.
    pub kind: Kind,
    /// By kind.
    pub flags: u16,
    /// Epoch that a command was sent in.
    pub epoch: Epoch,
    /// Number in the stream of (nexus, volume).
    pub sequence: u64,
    /// Names the request.
    pub token: u64,
    /// Clock token; 0 = none.
    pub clock: u64,
}

impl Header {
    /// A header with this kind and token, and zeroes.
    pub const fn new(kind: Kind, token: u64) -> Header {
        Header { kind, flags: 0, epoch: Epoch::ZERO, sequence: 0, token, clock: 0 }
    }
}

/// Why bytes are no frame. The peer (or the way to it) is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// It does not begin with the magic.
    Magic,
    /// A version that this program does not speak.
    Version(u8),
    /// The header's checksum is wrong.
    HeaderCrc,
    /// The payload's checksum is wrong.
    PayloadCrc,
    /// A kind that does not exist.
    Kind(u8),
    /// A length above its bound.
    Length(u32),
    /// A reserved field is not 0.
    Reserved,
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FrameError::Magic => f.write_str("not a frame"),
            FrameError::Version(v) => write!(f, "frame version {v} is not spoken here"),
            FrameError::HeaderCrc => f.write_str("the frame header's checksum is wrong"),
            FrameError::PayloadCrc => f.write_str("the frame payload's checksum is wrong"),
            FrameError::Kind(kind) => write!(f, "frame kind {kind:#04x} does not exist"),
            FrameError::Length(len) => write!(f, "a frame part of {len} bytes is too long"),
            FrameError::Reserved => f.write_str("a reserved field of the frame header is not zero"),
        }
    }
}

impl core::error::Error for FrameError {}

/// A frame that has come in whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its header.
    pub header: Header,
    /// Its fixed part.
    pub meta: Vec<u8>,
    /// Its bulk data.
    pub data: Vec<u8>,
}

/// A frame to send: `head` (header and meta), then `data`, which is not copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing<B> {
    /// Header and meta.
    pub head: Vec<u8>,
    /// Bulk data.
    pub data: Option<B>,
}

impl<B: AsRef<[u8]>> Outgoing<B> {
    /// Puts the header in front of `meta`. `None` when a part is longer than its bound.
    pub fn new(header: &Header, meta: &[u8], data: Option<B>, crc32c: Crc32c) -> Option<Outgoing<B>> {
        let bulk = data.as_ref().map_or(&[][..], B::as_ref);
        if meta.len() > FRAME_META_LEN_MAX || bulk.len() > FRAME_DATA_LEN_MAX {
            return None;
        }
        let mut head = Vec::with_capacity(HEADER_LEN + meta.len());
        head.extend_from_slice(&MAGIC);
        head.extend_from_slice(&[VERSION, header.kind as u8]);
        head.extend_from_slice(&header.flags.to_be_bytes());
        head.extend_from_slice(&header.epoch.generation.to_be_bytes());
        head.extend_from_slice(&[0; 4]);
        for field in [header.epoch.number, header.sequence, header.token, header.clock] {
            head.extend_from_slice(&field.to_be_bytes());
        }
        let payload_crc = crc32c(crc32c(0, meta), bulk);
        for field in [u32::try_from(meta.len()).ok()?, u32::try_from(bulk.len()).ok()?, payload_crc] {
            head.extend_from_slice(&field.to_be_bytes());
        }
        let header_crc = crc32c(0, &head);
        head.extend_from_slice(&header_crc.to_be_bytes());
        head.extend_from_slice(meta);
        Some(Outgoing { head, data: data.filter(|d| !d.as_ref().is_empty()) })
    }

    /// Length on the wire in bytes.
    pub fn len(&self) -> usize {
        self.head.len() + self.data.as_ref().map_or(0, |d| d.as_ref().len())
    }

    /// Never: a frame has a header.
    pub fn is_empty(&self) -> bool {
        false
    }
}

struct Lengths {
    meta: usize,
    data: usize,
    payload_crc: u32,
}

fn decode_header(bytes: &[u8; HEADER_LEN], crc32c: Crc32c) -> Result<(Header, Lengths), FrameError> {
    let (body, crc) = bytes.split_at(HEADER_CRC_AT);
    if array::<4>(bytes, 0) != MAGIC {
        return Err(FrameError::Magic);
    }
    let [version, kind] = array(bytes, 4);
    if version != VERSION {
        return Err(FrameError::Version(version));
    }
    if crc != crc32c(0, body).to_be_bytes() {
        return Err(FrameError::HeaderCrc);
    }
    if array(bytes, 12) != [0; 4] {
        return Err(FrameError::Reserved);
    }
    let bounded = |at, max: usize| {
        let len = u32::from_be_bytes(array(bytes, at));
        usize::try_from(len).ok().filter(|len| *len <= max).ok_or(FrameError::Length(len))
    };
    let header = Header {
        kind: Kind::from_code(kind).ok_or(FrameError::Kind(kind))?,
        flags: u16::from_be_bytes(array(bytes, 6)),
        epoch: Epoch {
            generation: u32::from_be_bytes(array(bytes, 8)),
            number: u64::from_be_bytes(array(bytes, 16)),
        },
        sequence: u64::from_be_bytes(array(bytes, 24)),
        token: u64::from_be_bytes(array(bytes, 32)),
        clock: u64::from_be_bytes(array(bytes, 40)),
    };
    let lengths = Lengths {
        meta: bounded(48, FRAME_META_LEN_MAX)?,
        data: bounded(52, FRAME_DATA_LEN_MAX)?,
        payload_crc: u32::from_be_bytes(array(bytes, 56)),
    };
    Ok((header, lengths))
}

/// Every offset above lies within the header, so this never gives zeroes in place of bytes.
fn array<const N: usize>(bytes: &[u8; HEADER_LEN], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

/// Puts frames together from a stream of bytes that may be split anywhere. The caller reads straight into
/// [`FrameReader::space`], so that bulk data is copied once.
#[derive(Debug)]
pub struct FrameReader {
    crc32c: Crc32c,
    header_bytes: [u8; HEADER_LEN],
    /// Bytes of the present part that are there.
    filled: usize,
    body: Option<Body>,
}

#[derive(Debug)]
struct Body {
    header: Header,
    meta: Vec<u8>,
    data: Vec<u8>,
    payload_crc: u32,
}

impl FrameReader {
    /// At the start of a stream.
    pub fn new(crc32c: Crc32c) -> FrameReader {
        FrameReader { crc32c, header_bytes: [0; HEADER_LEN], filled: 0, body: None }
    }

    /// Where the next bytes of the stream belong. Never empty.
    pub fn space(&mut self) -> &mut [u8] {
        let (part, at) = match &mut self.body {
            None => (self.header_bytes.as_mut_slice(), self.filled),
            Some(body) => match self.filled.checked_sub(body.meta.len()) {
                Some(at) => (body.data.as_mut_slice(), at),
                None => (body.meta.as_mut_slice(), self.filled),
            },
        };
        part.get_mut(at..).unwrap_or_default()
    }

    /// Says that the first `n` bytes of [`FrameReader::space`] have been filled. Returns a frame when it is whole.
    pub fn advance(&mut self, n: usize) -> Result<Option<Frame>, FrameError> {
        self.filled = self.filled.saturating_add(n);
        if self.body.is_none() {
            if self.filled < HEADER_LEN {
                return Ok(None);
            }
            let (header, lengths) = decode_header(&self.header_bytes, self.crc32c)?;
            self.filled = 0;
            self.body = Some(Body {
                header,
                meta: vec![0; lengths.meta],
                data: vec![0; lengths.data],
                payload_crc: lengths.payload_crc,
            });
        }
        let whole = self.body.take_if(|body| self.filled >= body.meta.len() + body.data.len());
        let Some(body) = whole else { return Ok(None) };
        self.filled = 0;
        if (self.crc32c)((self.crc32c)(0, &body.meta), &body.data) != body.payload_crc {
            return Err(FrameError::PayloadCrc);
        }
        Ok(Some(Frame { header: body.header, meta: body.meta, data: body.data }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn crc(so_far: u32, bytes: &[u8]) -> u32 {
        crc32c::crc32c_append(so_far, bytes)
    }

    fn wire(header: &Header, meta: &[u8], data: &[u8]) -> Vec<u8> {
        let out = Outgoing::new(header, meta, Some(data), crc).unwrap();
        assert_eq!(out.len(), HEADER_LEN + meta.len() + data.len());
        [&out.head[..], out.data.unwrap_or_default()].concat()
    }

    /// Feeds bytes in pieces of the given sizes, over and over.
    fn read(bytes: &[u8], pieces: &[usize]) -> Result<Vec<Frame>, FrameError> {
        let mut reader = FrameReader::new(crc);
        let (mut frames, mut rest, mut turn) = (Vec::new(), bytes, 0);
        while !rest.is_empty() {
            let space = reader.space();
            let n = space.len().min(rest.len()).min(pieces[turn % pieces.len()].max(1));
            space[..n].copy_from_slice(&rest[..n]);
            rest = &rest[n..];
            turn += 1;
            frames.extend(reader.advance(n)?);
        }
        Ok(frames)
    }

    fn sample() -> Header {
        let epoch = Epoch { generation: 1, number: 2 };
        Header { kind: Kind::Command, flags: 3, epoch, sequence: 4, token: 5, clock: 6 }
    }

    #[test]
    fn kinds_have_distinct_codes_that_read_back() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_code(*kind as u8), Some(*kind));
        }
        assert_eq!(Kind::from_code(0), None);
    }

    #[test]
    fn every_fault_of_a_header_has_its_name() {
        let good = wire(&sample(), b"meta", b"data");
        let fault = |at: usize, value: u8, mend: bool| {
            let mut bad = good.clone();
            bad[at] = value;
            if mend {
                let sum = crc(0, &bad[..HEADER_CRC_AT]);
                bad[HEADER_CRC_AT..HEADER_LEN].copy_from_slice(&sum.to_be_bytes());
            }
            read(&bad, &[1000]).unwrap_err()
        };
        assert_eq!(fault(0, 0, true), FrameError::Magic);
        assert_eq!(fault(4, 2, true), FrameError::Version(2));
        assert_eq!(fault(5, 0xee, true), FrameError::Kind(0xee));
        assert_eq!(fault(12, 1, true), FrameError::Reserved);
        assert_eq!(fault(48, 1, true), FrameError::Length(0x0100_0004));
        assert_eq!(fault(52, 0xff, true), FrameError::Length(0xff00_0004));
        assert_eq!(fault(24, 1, false), FrameError::HeaderCrc);
        assert_eq!(fault(HEADER_LEN + 1, 0, false), FrameError::PayloadCrc);
    }

    #[test]
    fn parts_above_their_bounds_are_not_sent() {
        let long = vec![0; FRAME_META_LEN_MAX + 1];
        assert_eq!(Outgoing::<&[u8]>::new(&sample(), &long, None, crc), None);
        let long = vec![0; FRAME_DATA_LEN_MAX + 1];
        assert_eq!(Outgoing::new(&sample(), &[], Some(&long), crc), None);
    }

    proptest! {
        #[test]
        fn frames_read_back_however_the_stream_is_split(
            parts in proptest::collection::vec(
                (proptest::collection::vec(any::<u8>(), 0..100), proptest::collection::vec(any::<u8>(), 0..3000)),
                1..5,
            ),
            pieces in proptest::collection::vec(1usize..700, 1..6),
        ) {
            let stream: Vec<u8> = parts.iter().flat_map(|(meta, data)| wire(&sample(), meta, data)).collect();
            let frames = read(&stream, &pieces).unwrap();
            prop_assert_eq!(frames.len(), parts.len());
            for (frame, (meta, data)) in frames.iter().zip(&parts) {
                prop_assert_eq!(&frame.header, &sample());
                prop_assert_eq!(&frame.meta, meta);
                prop_assert_eq!(&frame.data, data);
            }
        }

        #[test]
        fn any_bytes_are_frames_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&bytes, &[7]);
        }

        #[test]
        fn one_changed_bit_is_found(at in 0usize..(HEADER_LEN + 8) * 8) {
            let mut bytes = wire(&sample(), b"meta", b"data");
            bytes[at / 8] ^= 1 << (at % 8);
            // A larger length only waits for bytes that never come.
            prop_assert!(read(&bytes, &[9]).map_or(true, |frames| frames.is_empty()));
        }
    }
}
