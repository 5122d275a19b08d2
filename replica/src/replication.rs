//! Frames between the owner of a volume and its replicas, behind the header that [`crate::frame`] draws.
//!
//! The owner sends on one connection to each replica, in order; a replica answers on the same. Fields of the header:
//!
//! ```text
//!  field      owner -> replica                         replica -> owner
//!  epoch      of the owner                             promised by the replica
//!  sequence   number of the request (Promise: the      number that is answered; 0: the promise
//!             last one so far; Settled: 0)
//!  token      session                                  session
//!  clock      writes up to here are everywhere         0
//!  flags      1 durable, 2 unmap, 4 recovered,         1 untrusted (Promised)
//!             8 atomic
//! ```
//!
//! Every meta begins with the volume id (16 bytes) and, from the owner, the number up to which writes are on all disks
//! (8 bytes). All numbers are big endian. What follows, at byte 24 (owner) or 16 (replica):
//!
//! ```text
//!  Promise       term: generation (4), number (8); members in sync (1), learners (1), node numbers (2 each)
//!  Write         LBA (8), blocks (8); data: the blocks    flag 8: whole or not at all, whatever stops the replica
//!  Zeroes        LBA (8), blocks (8)          flag 2: their space may be given back
//!  Flush         -
//!  Record        data: extent numbers, 8 bytes each
//!  Merge         absent node (2), page of its bitmap (4); data: the bits of the page
//!  Read          LBA (8), blocks (8)
//!  Settled       -                            says only what the header says
//!  Whole         -                            all of an untrusted replica has been copied to it, and is on its disk
//!
//!  Promised      boot id (16); data: entries of the activity log, 8 bytes each (crate::activity_log)
//!  Refused       -                            the header names the epoch that was promised to somebody else
//!  Done          -
//!  Failed        reason (1): 1 I/O error, 2 no space, 3 log full, 4 out of range, 5 unreadable
//!  Blocks        data: the blocks
//!  Damaged       LBA (8), blocks (8)          of its own accord; sequence 0
//! ```
//!
//! Invariants: every byte is accounted for; a field that is out of range, or a flag without a meaning, makes the whole
//! frame malformed, and the connection ends.

use alloc::vec::Vec;

use crate::{
    Crc32c,
    activity_log::{LogEntry, Settled},
    bitmap::PAGE_BITS_LEN,
    epoch::Epoch,
    frame::{Frame, Header, Kind, Outgoing},
    ids::{BootId, NodeNumber, VolumeId},
    limits::{LEARNERS_MAX, LOG_ENTRIES_MAX, REPLICAS_MAX},
    span::Span,
};

const FLAG_DURABLE: u16 = 1;
const FLAG_UNMAP: u16 = 2;
const FLAG_RECOVERED: u16 = 4;
const FLAG_ATOMIC: u16 = 8;
const FLAG_UNTRUSTED: u16 = 1;

/// What a write leaves behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body<B> {
    /// These bytes.
    Data(B),
    /// These bytes, all of them or none, whatever stops the replica: at most [`ATOMIC_BYTES_MAX`](crate::limits::ATOMIC_BYTES_MAX).
    Atomic(B),
    /// Zeroes; the space stays.
    Zeroes,
    /// Zeroes; the space may be given back.
    Unmap,
}

impl<B> Body<B> {
    /// The bytes that it carries.
    pub const fn data(&self) -> Option<&B> {
        match self {
            Body::Data(data) | Body::Atomic(data) => Some(data),
            Body::Zeroes | Body::Unmap => None,
        }
    }
}

/// What a replica is asked to promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promise {
    /// The epoch in which this owner began: write numbers are of this term.
    pub term: Epoch,
    /// The in-sync set of the epoch.
    pub in_sync: Vec<NodeNumber>,
    /// Its learners.
    pub learners: Vec<NodeNumber>,
}

/// What the owner asks of a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request<B> {
    /// Drain what was submitted, persist the epoch, and serve this owner alone.
    Promise(Promise),
    /// Change blocks.
    Write {
        /// Which.
        span: Span,
        /// To what.
        body: Body<B>,
        /// Done only when it is on disk.
        durable: bool,
    },
    /// Bring every write before this one to disk.
    Flush,
    /// Record these extents as active until recovery has ended.
    Record(Vec<u64>),
    /// Add these bits to the bitmap kept for an absent replica.
    Merge {
        /// The absent one.
        node: NodeNumber,
        /// Page of its bitmap.
        page: u32,
        /// The page's bits.
        bits: alloc::boxed::Box<[u8; PAGE_BITS_LEN]>,
    },
    /// Read blocks and send them.
    Read(Span),
    /// All of the replica, which said that it cannot be trusted, is on its disk: record that. Sent before its admission is
    /// proposed, so that a replica that counts can be trusted whatever happens next.
    Whole,
    /// Nothing; the frame's [`Settled`] counts.
    Settled,
}

/// A request with what every frame says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToReplica<B> {
    /// The volume.
    pub volume: VolumeId,
    /// Epoch of the owner.
    pub epoch: Epoch,
    /// Names the connection; each new one of an owner has a higher number.
    pub session: u64,
    /// Number of the request within the term, from 1 on. [`Request::Promise`]: the last number given so far;
    /// [`Request::Settled`]: 0.
    pub number: u64,
    /// How far the owner's writes are everywhere.
    pub settled: Settled,
    /// The request.
    pub request: Request<B>,
}

/// Why a replica could not do what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The disk failed. The replica serves no more until it is opened anew.
    Io,
    /// The disk is full.
    NoSpace,
    /// The activity log has no room.
    LogFull,
    /// The blocks lie behind the end of the replica, or the data has another length. The owner is at fault.
    OutOfRange,
    /// The blocks cannot be read here. The replica serves on.
    Unreadable,
}

/// What a replica answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The epoch is promised and durable, and everything submitted before has ended.
    Promised {
        /// The boot that the replica runs under.
        boot: BootId,
        /// What it holds cannot be trusted; all of it has to be copied.
        untrusted: bool,
        /// Its activity log.
        entries: Vec<LogEntry>,
    },
    /// The epoch is too low.
    Refused,
    /// The request has been carried out with the durability asked.
    Done,
    /// It has not, or not wholly.
    Failed(Failure),
    /// The blocks of [`Request::Read`].
    Blocks(Vec<u8>),
    /// Of its own accord, with number 0: these blocks are lost here.
    Damaged(Span),
}

/// An answer with what every frame says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FromReplica {
    /// The volume.
    pub volume: VolumeId,
    /// Epoch that the replica has promised.
    pub epoch: Epoch,
    /// Of the request.
    pub session: u64,
    /// Of the request.
    pub number: u64,
    /// The answer.
    pub answer: Answer,
}

impl<B: AsRef<[u8]> + From<Vec<u8>>> ToReplica<B> {
    /// The frame; the data of a write is not copied. `None` when a part is longer than a frame may be.
    pub fn encode(self, crc32c: Crc32c) -> Option<Outgoing<B>> {
        let mut meta = Vec::with_capacity(48);
        meta.extend_from_slice(&self.volume.0);
        meta.extend_from_slice(&self.settled.flushed.to_be_bytes());
        let mut flags = if self.settled.recovered { FLAG_RECOVERED } else { 0 };
        let mut data = None;
        let kind = match self.request {
            Request::Promise(promise) => {
                meta.extend_from_slice(&promise.term.generation.to_be_bytes());
                meta.extend_from_slice(&promise.term.number.to_be_bytes());
                meta.push(u8::try_from(promise.in_sync.len()).ok()?);
                meta.push(u8::try_from(promise.learners.len()).ok()?);
                for node in promise.in_sync.iter().chain(&promise.learners) {
                    meta.extend_from_slice(&node.get().to_be_bytes());
                }
                Kind::Promise
            }
            Request::Write { span, body, durable } => {
                meta.extend_from_slice(&span.lba().to_be_bytes());
                meta.extend_from_slice(&span.blocks().to_be_bytes());
                flags |= if durable { FLAG_DURABLE } else { 0 };
                match body {
                    Body::Data(bytes) => {
                        data = Some(bytes);
                        Kind::ReplicaWrite
                    }
                    Body::Atomic(bytes) => {
                        flags |= FLAG_ATOMIC;
                        data = Some(bytes);
                        Kind::ReplicaWrite
                    }
                    Body::Zeroes => Kind::ReplicaZeroes,
                    Body::Unmap => {
                        flags |= FLAG_UNMAP;
                        Kind::ReplicaZeroes
                    }
                }
            }
            Request::Flush => Kind::ReplicaFlush,
            Request::Record(extents) => {
                let bytes: Vec<u8> = extents.iter().flat_map(|e| e.to_be_bytes()).collect();
                data = Some(bytes.into());
                Kind::Record
            }
            Request::Merge { node, page, bits } => {
                meta.extend_from_slice(&node.get().to_be_bytes());
                meta.extend_from_slice(&page.to_be_bytes());
                data = Some(Vec::from(*bits).into());
                Kind::Merge
            }
            Request::Read(span) => {
                meta.extend_from_slice(&span.lba().to_be_bytes());
                meta.extend_from_slice(&span.blocks().to_be_bytes());
                Kind::ReplicaRead
            }
            Request::Whole => Kind::Whole,
            Request::Settled => Kind::Settled,
        };
        let header = Header {
            kind,
            flags,
            epoch: self.epoch,
            sequence: self.number,
            token: self.session,
            clock: self.settled.written,
        };
        Outgoing::new(&header, &meta, data, crc32c)
    }
}

impl<B> ToReplica<B> {
    /// The same with the data of a write in another kind of buffer.
    pub fn map<C>(self, buffer: impl FnOnce(B) -> C) -> ToReplica<C> {
        let ToReplica { volume, epoch, session, number, settled, request } = self;
        let request = match request {
            Request::Promise(promise) => Request::Promise(promise),
            Request::Write { span, body, durable } => {
                let body = match body {
                    Body::Data(data) => Body::Data(buffer(data)),
                    Body::Atomic(data) => Body::Atomic(buffer(data)),
                    Body::Zeroes => Body::Zeroes,
                    Body::Unmap => Body::Unmap,
                };
                Request::Write { span, body, durable }
            }
            Request::Flush => Request::Flush,
            Request::Record(extents) => Request::Record(extents),
            Request::Merge { node, page, bits } => Request::Merge { node, page, bits },
            Request::Read(span) => Request::Read(span),
            Request::Whole => Request::Whole,
            Request::Settled => Request::Settled,
        };
        ToReplica { volume, epoch, session, number, settled, request }
    }
}

impl ToReplica<Vec<u8>> {
    /// The request of a frame; `None` if it is malformed or not of the owner's kinds.
    pub fn decode(frame: Frame) -> Option<ToReplica<Vec<u8>>> {
        let Frame { header, meta, data } = frame;
        let mut input = Input(&meta);
        let volume = VolumeId(input.array()?);
        let flushed = input.u64()?;
        let mut flags = header.flags & !FLAG_RECOVERED;
        let has_data = !data.is_empty();
        let mut data = Some(data).filter(|d| !d.is_empty());
        let request = match header.kind {
            Kind::Promise => {
                let term = Epoch { generation: u32::from_be_bytes(input.array()?), number: input.u64()? };
                let [in_sync, learners] = input.array()?.map(usize::from);
                if in_sync == 0 || in_sync > REPLICAS_MAX || learners > LEARNERS_MAX {
                    return None;
                }
                let in_sync = input.nodes(in_sync)?;
                let learners = input.nodes(learners)?;
                Request::Promise(Promise { term, in_sync, learners })
            }
            Kind::ReplicaWrite | Kind::ReplicaZeroes => {
                let span = Span::new(input.u64()?, input.u64()?)?;
                let durable = flags & FLAG_DURABLE != 0;
                flags &= !FLAG_DURABLE;
                let body = match (header.kind, flags) {
                    (Kind::ReplicaWrite, FLAG_ATOMIC) => Body::Atomic(data.take()?),
                    (Kind::ReplicaWrite, _) => Body::Data(data.take()?),
                    (_, FLAG_UNMAP) => Body::Unmap,
                    _ => Body::Zeroes,
                };
                flags &= match body {
                    Body::Unmap => !FLAG_UNMAP,
                    Body::Atomic(_) => !FLAG_ATOMIC,
                    Body::Data(_) | Body::Zeroes => !0,
                };
                Request::Write { span, body, durable }
            }
            Kind::ReplicaFlush => Request::Flush,
            Kind::Record => {
                let bytes = data.take().unwrap_or_default();
                let (extents, rest) = bytes.as_chunks::<8>();
                if !rest.is_empty() || extents.len() > LOG_ENTRIES_MAX {
                    return None;
                }
                Request::Record(extents.iter().map(|e| u64::from_be_bytes(*e)).collect())
            }
            Kind::Merge => {
                let node = *input.nodes(1)?.first()?;
                let page = u32::from_be_bytes(input.array()?);
                let bits = data.take()?.into_boxed_slice().try_into().ok()?;
                Request::Merge { node, page, bits }
            }
            Kind::ReplicaRead => Request::Read(Span::new(input.u64()?, input.u64()?)?),
            Kind::Whole => Request::Whole,
            Kind::Settled => Request::Settled,
            _ => return None,
        };
        input.end()?;
        let number_fits = match request {
            Request::Promise(_) => true,
            Request::Settled => header.sequence == 0,
            _ => header.sequence != 0,
        };
        if flags != 0 || data.is_some() || !number_fits {
            return None;
        }
        if has_data
            && matches!(request, Request::Flush | Request::Read(_) | Request::Whole | Request::Settled)
        {
            return None;
        }
        let recovered = header.flags & FLAG_RECOVERED != 0;
        let settled = Settled { written: header.clock, flushed, recovered };
        Some(ToReplica {
            volume,
            epoch: header.epoch,
            session: header.token,
            number: header.sequence,
            settled,
            request,
        })
    }
}

impl FromReplica {
    /// The frame. `None` never: all its parts are bounded.
    pub fn encode<B: AsRef<[u8]> + From<Vec<u8>>>(&self, crc32c: Crc32c) -> Option<Outgoing<B>> {
        let mut meta = Vec::from(self.volume.0);
        let mut data = None;
        let mut flags = 0;
        let kind = match &self.answer {
            Answer::Promised { boot, untrusted, entries } => {
                flags = u16::from(*untrusted);
                meta.extend_from_slice(&boot.0);
                let bytes: Vec<u8> = entries.iter().flat_map(|e| e.encode()).collect();
                data = Some(bytes.into());
                Kind::Promised
            }
            Answer::Refused => Kind::PromiseRefused,
            Answer::Done => Kind::ReplicaDone,
            Answer::Failed(failure) => {
                meta.push(match failure {
                    Failure::Io => 1,
                    Failure::NoSpace => 2,
                    Failure::LogFull => 3,
                    Failure::OutOfRange => 4,
                    Failure::Unreadable => 5,
                });
                Kind::ReplicaFailed
            }
            Answer::Blocks(bytes) => {
                data = Some(bytes.clone().into());
                Kind::ReplicaBlocks
            }
            Answer::Damaged(span) => {
                meta.extend_from_slice(&span.lba().to_be_bytes());
                meta.extend_from_slice(&span.blocks().to_be_bytes());
                Kind::Damaged
            }
        };
        let header =
            Header { flags, epoch: self.epoch, sequence: self.number, ..Header::new(kind, self.session) };
        Outgoing::new(&header, &meta, data, crc32c)
    }

    /// The answer of a frame; `None` if it is malformed or not of a replica's kinds.
    pub fn decode(frame: &Frame) -> Option<FromReplica> {
        let Frame { header, meta, data } = frame;
        let mut input = Input(meta);
        let mut flags = header.flags;
        let volume = VolumeId(input.array()?);
        let answer = match header.kind {
            Kind::Promised => {
                let boot = BootId(input.array()?);
                let (raw, rest) = data.as_chunks::<8>();
                if !rest.is_empty() || raw.len() > LOG_ENTRIES_MAX {
                    return None;
                }
                let entries = raw.iter().map(|e| LogEntry::decode(*e)).collect::<Option<Vec<_>>>()?;
                flags &= !FLAG_UNTRUSTED;
                Answer::Promised { boot, untrusted: header.flags & FLAG_UNTRUSTED != 0, entries }
            }
            Kind::PromiseRefused => Answer::Refused,
            Kind::ReplicaDone => Answer::Done,
            Kind::ReplicaFailed => Answer::Failed(match input.array()? {
                [1] => Failure::Io,
                [2] => Failure::NoSpace,
                [3] => Failure::LogFull,
                [4] => Failure::OutOfRange,
                [5] => Failure::Unreadable,
                _ => return None,
            }),
            Kind::ReplicaBlocks if !data.is_empty() => Answer::Blocks(data.clone()),
            Kind::Damaged => Answer::Damaged(Span::new(input.u64()?, input.u64()?)?),
            _ => return None,
        };
        input.end()?;
        let plain = flags == 0 && header.clock == 0;
        let carries = matches!(header.kind, Kind::Promised | Kind::ReplicaBlocks);
        if !plain || (!data.is_empty() && !carries) {
            return None;
        }
        Some(FromReplica {
            volume,
            epoch: header.epoch,
            session: header.token,
            number: header.sequence,
            answer,
        })
    }
}

/// What is left of a meta.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn nodes(&mut self, count: usize) -> Option<Vec<NodeNumber>> {
        (0..count).map(|_| NodeNumber::new(u32::from(u16::from_be_bytes(self.array()?)))).collect()
    }

    fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::FrameReader;
    use proptest::prelude::*;

    fn crc(so_far: u32, bytes: &[u8]) -> u32 {
        crc32c::crc32c_append(so_far, bytes)
    }

    fn read(out: Outgoing<Vec<u8>>) -> Frame {
        let bytes = [out.head, out.data.unwrap_or_default()].concat();
        let mut reader = FrameReader::new(crc);
        let mut rest = &bytes[..];
        loop {
            let n = reader.space().len().min(rest.len());
            reader.space()[..n].copy_from_slice(&rest[..n]);
            rest = &rest[n..];
            if let Some(frame) = reader.advance(n).unwrap() {
                return frame;
            }
        }
    }

    fn node() -> impl Strategy<Value = NodeNumber> {
        (1u32..65_536).prop_map(|n| NodeNumber::new(n).unwrap())
    }

    fn epoch() -> impl Strategy<Value = Epoch> {
        (any::<u32>(), any::<u64>()).prop_map(|(generation, number)| Epoch { generation, number })
    }

    fn request() -> impl Strategy<Value = Request<Vec<u8>>> {
        let bytes = || proptest::collection::vec(any::<u8>(), 1..600);
        let body = prop_oneof![
            bytes().prop_map(Body::Data),
            bytes().prop_map(Body::Atomic),
            Just(Body::Zeroes),
            Just(Body::Unmap)
        ];
        let nodes = |n: core::ops::RangeInclusive<usize>| proptest::collection::vec(node(), n);
        prop_oneof![
            (epoch(), nodes(1..=3), nodes(0..=3))
                .prop_map(|(term, in_sync, learners)| Request::Promise(Promise { term, in_sync, learners })),
            (0u64..1 << 40, 1u64..1 << 20, body, any::<bool>()).prop_map(|(lba, blocks, body, durable)| {
                Request::Write { span: Span::new(lba, blocks).unwrap(), body, durable }
            }),
            Just(Request::Flush),
            Just(Request::Whole),
            Just(Request::Settled),
            (0u64..1 << 40, 1u64..1 << 20).prop_map(|(lba, n)| Request::Read(Span::new(lba, n).unwrap())),
            proptest::collection::vec(any::<u64>(), 0..50).prop_map(Request::Record),
            (node(), any::<u32>(), any::<u8>()).prop_map(|(node, page, fill)| Request::Merge {
                node,
                page,
                bits: alloc::boxed::Box::new([fill; PAGE_BITS_LEN])
            }),
        ]
    }

    fn entry() -> impl Strategy<Value = LogEntry> {
        (0u64..1 << 56, any::<bool>()).prop_map(|(extent, active)| LogEntry {
            extent,
            active,
            unflushed: !active,
        })
    }

    fn answer() -> impl Strategy<Value = Answer> {
        prop_oneof![
            (any::<[u8; 16]>(), proptest::collection::vec(entry(), 0..40)).prop_map(|(boot, entries)| {
                Answer::Promised { boot: BootId(boot), untrusted: boot[0] > 9, entries }
            }),
            Just(Answer::Refused),
            Just(Answer::Done),
            proptest::collection::vec(any::<u8>(), 1..600).prop_map(Answer::Blocks),
            (0u64..1 << 40, 1u64..1 << 20).prop_map(|(lba, n)| Answer::Damaged(Span::new(lba, n).unwrap())),
            proptest::sample::select(
                &[Failure::Io, Failure::NoSpace, Failure::LogFull, Failure::OutOfRange, Failure::Unreadable]
                    [..]
            )
            .prop_map(Answer::Failed),
        ]
    }

    proptest! {
        #[test]
        fn requests_read_back(request in request(), epoch in epoch(), n in 1u64.., settled: (u64, u64, bool)) {
            let numbered = request != Request::Settled;
            let sent = ToReplica {
                volume: VolumeId([3; 16]),
                epoch,
                session: n ^ 5,
                number: if numbered { n } else { 0 },
                settled: Settled { written: settled.0, flushed: settled.1, recovered: settled.2 },
                request,
            };
            prop_assert_eq!(ToReplica::decode(read(sent.clone().encode(crc).unwrap())), Some(sent));
        }

        #[test]
        fn answers_read_back(answer in answer(), epoch in epoch(), session: u64, number: u64) {
            let sent = FromReplica { volume: VolumeId([3; 16]), epoch, session, number, answer };
            prop_assert_eq!(FromReplica::decode(&read(sent.encode(crc).unwrap())), Some(sent));
        }

        /// What is taken says the same when it is sent again, so no byte was without a meaning.
        #[test]
        fn any_frame_is_taken_whole_or_refused(
            kind in proptest::sample::select(Kind::ALL), flags in 0u16..16, sequence in 0u64..3, clock in 0u64..3,
            meta in proptest::collection::vec(0u8..4, 0..60), data in proptest::collection::vec(0u8..4, 0..40),
        ) {
            let header = Header { flags, sequence, clock, ..Header::new(kind, 9) };
            let frame = Frame { header, meta, data };
            if let Some(message) = ToReplica::decode(frame.clone()) {
                prop_assert_eq!(&read(message.encode(crc).unwrap()), &frame);
            }
            if let Some(message) = FromReplica::decode(&frame) {
                prop_assert_eq!(&read(message.encode(crc).unwrap()), &frame);
            }
        }
    }
}
