//! Atomic writes: whole or not at all, whatever stops the process or the machine in the middle.
//!
//! No file system and no disk promises that of more than a sector. So what is to be written is brought to the medium beside its place
//! first, as an *intent* with checksums; then it is written in place and is on the medium there; then the intent is taken back. A replica
//! that is opened with an intent finishes that write before anything else.
//!
//! ```text
//!  byte  intent, in its area of the bookkeeping
//!     0  "HFINTENT"                 8
//!     8  version 1, reserved        2 + 6
//!    16  volume id                 16
//!    32  offset in the data         8
//!    40  length                     8    at most 1 MiB
//!    48  CRC32C of the data         4
//!        zeroes
//!  4092  CRC32C of 0..4092          4
//!  4096  the data, filled up with zeroes to a multiple of 4096
//! ```
//!
//! Invariants: nothing is written in place before the whole intent is on the medium; an intent is taken back, durably, before its write
//! is reported, so that none is ever older than another write to the same bytes; when neither can be had, nobody may use the replica
//! before it is opened anew. Callers keep overlapping writes apart.

use std::io;
use std::sync::{Condvar, Mutex, PoisonError};

use holdfast_replica::ids::VolumeId;
use holdfast_replica::limits::ATOMIC_BYTES_MAX;

use super::metadata::Metadata;
use super::{Durability, Run, Store, StoreError, Wait, file};

/// How many a replica has: so many atomic writes are under way at once, others wait.
pub const INTENTS: u8 = 2;
/// Bytes of the head.
pub const HEAD_LEN: usize = 4096;
/// Bytes of the longest intent.
pub const LEN_MAX: usize = HEAD_LEN + ATOMIC_BYTES_MAX as usize;

const MAGIC: [u8; 8] = *b"HFINTENT";
const VERSION: u16 = 1;
const CRC_AT: usize = HEAD_LEN - 4;

/// What the head of an intent says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    offset: u64,
    len: usize,
    crc: u32,
}

impl Head {
    /// Bytes of the intent.
    pub(super) const fn whole_len(&self) -> usize {
        HEAD_LEN + self.len.next_multiple_of(HEAD_LEN)
    }

    /// What a slot begins with; `None`: nothing is under way there.
    pub(super) fn decode(slot: &[u8], volume: VolumeId) -> Option<Head> {
        let head = slot.get(..HEAD_LEN)?;
        let field = |at: usize| head.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        let (rest, crc) = head.split_at_checked(CRC_AT)?;
        let is_one = head.starts_with(&MAGIC)
            && head.get(8..10)? == VERSION.to_be_bytes()
            && head.get(16..32)? == volume.0
            && crc == crc32c::crc32c(rest).to_be_bytes();
        let len = u64::from_be_bytes(field(40)?);
        if !is_one || len > ATOMIC_BYTES_MAX {
            return None;
        }
        let crc = u32::from_be_bytes(head.get(48..52)?.try_into().ok()?);
        Some(Head { offset: u64::from_be_bytes(field(32)?), len: usize::try_from(len).ok()?, crc })
    }

    /// The data, if it came to the medium whole.
    fn data<'a>(&self, slot: &'a [u8]) -> Option<&'a [u8]> {
        let data = slot.get(HEAD_LEN..HEAD_LEN.checked_add(self.len)?)?;
        (crc32c::crc32c(data) == self.crc).then_some(data)
    }
}

/// The intent of writing `data` at `offset`.
pub(super) fn encode(volume: VolumeId, offset: u64, data: &[u8]) -> Vec<u8> {
    let mut slot = vec![0; HEAD_LEN];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(to) = slot.get_mut(at..at + bytes.len()) {
            to.copy_from_slice(bytes);
        }
    };
    put(0, &MAGIC);
    put(8, &VERSION.to_be_bytes());
    put(16, &volume.0);
    put(32, &offset.to_be_bytes());
    put(40, &(data.len() as u64).to_be_bytes());
    put(48, &crc32c::crc32c(data).to_be_bytes());
    let crc = crc32c::crc32c(slot.get(..CRC_AT).unwrap_or_default());
    if let Some(to) = slot.get_mut(CRC_AT..) {
        to.copy_from_slice(&crc.to_be_bytes());
    }
    slot.extend_from_slice(data);
    slot.resize(slot.len().next_multiple_of(HEAD_LEN), 0);
    slot
}

/// Finishes what was under way when the replica was last used.
///
/// # Errors
/// Of the store, or of the bookkeeping.
pub(super) fn finish(metadata: &Metadata, store: &dyn Store) -> Result<(), StoreError> {
    for number in 0..INTENTS {
        let slot = metadata.intent(number).map_err(file::classify)?;
        let Some(head) = Head::decode(&slot, metadata.volume()) else { continue };
        if let Some(data) = head.data(&slot) {
            tracing::info!(volume = %metadata.volume(), offset = head.offset, len = head.len, "finishing an atomic write");
            store.write_at(head.offset, data, Durability::OnMedium)?;
        }
        metadata.clear_intent(number).map_err(file::classify)?;
    }
    Ok(())
}

/// Why an atomic write was not done.
#[derive(Debug)]
pub(super) enum Failed {
    /// The bytes are what they were.
    Undone(StoreError),
    /// Part of it may be in place: the replica must not be used before it is opened anew.
    InDoubt(StoreError),
}

/// The intents of one replica.
#[derive(Debug, Default)]
pub(super) struct Intents {
    taken: Mutex<[bool; INTENTS as usize]>,
    given_back: Condvar,
}

/// One of them, taken.
struct Taken<'a>(&'a Intents, usize);

impl Taken<'_> {
    fn number(&self) -> u8 {
        u8::try_from(self.1).unwrap_or(u8::MAX)
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut taken = self.0.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(taken) = taken.get_mut(self.1) {
            *taken = false;
        }
        self.0.given_back.notify_one();
    }
}

impl Intents {
    fn take(&self) -> Taken<'_> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some((at, free)) = taken.iter_mut().enumerate().find(|(_, taken)| !**taken) {
                *free = true;
                return Taken(self, at);
            }
            taken = self.given_back.wait(taken).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Writes all of `data` or nothing. Blocks. Bytes that are there already are not written again, and are on the medium only if
    /// `durability` asks for it; all others are.
    pub(super) fn write(
        &self,
        metadata: &Metadata,
        store: &dyn Store,
        offset: u64,
        data: &[u8],
        durability: Durability,
    ) -> Result<(), Failed> {
        if data.len() as u64 > ATOMIC_BYTES_MAX {
            return Err(Failed::Undone(StoreError::OutOfRange));
        }
        // What cannot be read cannot be put back; only a full disk asks for that.
        let before = Before::read(store, offset, data.len());
        if before.as_ref().is_ok_and(|before| before.bytes == data) {
            let flushed = if durability == Durability::OnMedium { store.flush() } else { Ok(()) };
            return flushed.map_err(Failed::Undone);
        }
        let intent = self.take();
        if let Err(error) = metadata.write_intent(intent.number(), offset, data) {
            // It may be on the medium all the same.
            self.give_up_intent(metadata, &intent)?;
            return Err(Failed::Undone(file::classify(error)));
        }
        match store.write_at(offset, data, Durability::OnMedium) {
            Ok(()) => self.give_up_intent(metadata, &intent),
            Err(StoreError::NoSpace) => {
                let undone = before.and_then(|before| before.put_back(store, offset));
                undone.map_err(Failed::InDoubt)?;
                self.give_up_intent(metadata, &intent)?;
                Err(Failed::Undone(StoreError::NoSpace))
            }
            // Nothing was begun.
            Err(error @ (StoreError::OutOfRange | StoreError::OutOfService)) => {
                self.give_up_intent(metadata, &intent)?;
                Err(Failed::Undone(error))
            }
            Err(error) => Err(Failed::InDoubt(error)),
        }
    }

    fn give_up_intent(&self, metadata: &Metadata, intent: &Taken<'_>) -> Result<(), Failed> {
        metadata
            .clear_intent(intent.number())
            .map_err(|error: io::Error| Failed::InDoubt(StoreError::Hardware(error)))
    }
}

/// What was in a place.
struct Before {
    bytes: Vec<u8>,
    runs: Vec<Run>,
}

impl Before {
    fn read(store: &dyn Store, offset: u64, len: usize) -> Result<Before, StoreError> {
        let mut bytes = vec![0; len];
        store.read_at(offset, &mut bytes, Wait::Allowed)?;
        Ok(Before { bytes, runs: store.allocation(offset, len as u64, usize::MAX)? })
    }

    /// Puts it back, durably, without asking for more space than it had.
    fn put_back(&self, store: &dyn Store, offset: u64) -> Result<(), StoreError> {
        let mut at = 0_u64;
        for run in &self.runs {
            let (from, to) = (at as usize, at.saturating_add(run.len) as usize);
            match run.allocated {
                true => {
                    let bytes = self.bytes.get(from..to.min(self.bytes.len())).unwrap_or_default();
                    store.write_at(offset.saturating_add(at), bytes, Durability::Cached)?;
                }
                false => store.unmap(offset.saturating_add(at), run.len)?,
            }
            at = at.saturating_add(run.len);
        }
        store.flush()
    }
}

#[cfg(test)]
mod tests;
