//! The C side of this crate; `module/hf_core.h` declares the same. The only unsafe code here.
//!
//! What C promises for every call: pointers are to live memory of the stated length, aligned for 8 bytes where they are to what
//! this crate laid out, and nobody writes to it meanwhile; an image that was built stays unchanged until it is freed.
//! Invariants: no call keeps a pointer, allocates, sleeps or panics; each tolerates any bytes from the data node or the
//! initiator.
#![allow(unsafe_code)]

use core::{mem::MaybeUninit, slice};

use holdfast_scsi::{
    nexus::{Nexus, RelativePort},
    pr::{Registrant, Relation},
    sense::{AdditionalSense, Sense},
    status::Status,
    transport_id::TransportId,
    ua::{UaQueue, UnitAttention},
};

use crate::{
    command::{self, Answer, Asker},
    image::{self, Head, Image},
    limits::SENSE_LEN_MAX,
};

/// Offset of the registrants behind a [`Head`].
const HEAD_LEN: usize = size_of::<Head>().next_multiple_of(8);

/// One command: what C knows, and what it is told. Same layout as `struct hf_command`.
#[repr(C)]
#[derive(Debug)]
pub struct HfCommand {
    /// As received.
    pub cdb: *const u8,
    /// Bytes of it.
    pub cdb_len: u32,
    /// 1: registered, 2: holder; of the image that is passed along.
    pub relation: u32,
    /// Made by [`hf_core_nexus`].
    pub nexus: *const Nexus,
    /// Made by [`hf_core_ua_init`]; what is reported is taken off it.
    pub attentions: *mut UaQueue,
    /// For parameter data.
    pub out: *mut u8,
    /// Room there.
    pub out_len: u32,
    /// Out: one of the `ANSWER_` values.
    pub answer: u32,
    /// Out: status code, with `ANSWER_STATUS`.
    pub status: u8,
    /// Out: bytes of `sense`.
    pub sense_len: u8,
    /// Out: bit 0: the write is durable before GOOD.
    pub flags: u8,
    /// Zero.
    pub reserved: u8,
    /// Out: blocks, or bytes of parameter data, or room needed.
    pub len: u32,
    /// Out: first block.
    pub lba: u64,
    /// Out.
    pub sense: [u8; SENSE_LEN_MAX],
}

/// Complete with `status` and `sense`.
pub const ANSWER_STATUS: u32 = 0;
/// Complete with GOOD and `len` bytes of `out`.
pub const ANSWER_DATA: u32 = 1;
/// Call again with room for `len` bytes.
pub const ANSWER_MORE_ROOM: u32 = 2;
/// Read `len` blocks from `lba`.
pub const ANSWER_READ: u32 = 3;
/// Write `len` blocks from `lba`.
pub const ANSWER_WRITE: u32 = 4;
/// Make everything durable.
pub const ANSWER_FLUSH: u32 = 5;
/// Zero `len` blocks from `lba`.
pub const ANSWER_ZEROES: u32 = 6;
/// The data node answers.
pub const ANSWER_ASK: u32 = 7;

/// # Safety
/// `bytes` is null or points to `len` readable bytes that nobody changes.
unsafe fn bytes<'a>(bytes: *const u8, len: usize) -> &'a [u8] {
    if bytes.is_null() || len == 0 {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { slice::from_raw_parts(bytes, len) }
}

/// Bytes that an image needs in memory, 0 if it cannot be one.
///
/// # Safety
/// As the module says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hf_core_image_size(message: *const u8, len: usize) -> usize {
    // SAFETY: the caller's promise.
    match image::registrants(unsafe { bytes(message, len) }) {
        Ok(count) => (count as usize).saturating_mul(size_of::<Registrant>()).saturating_add(HEAD_LEN),
        Err(_) => 0,
    }
}

/// Builds an image in `memory`, which has `size` bytes as [`hf_core_image_size`] said. 0, or 1 if the message is refused;
/// then `memory` holds nothing.
///
/// # Safety
/// As the module says; nobody else knows `memory` yet.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hf_core_image_build(
    message: *const u8,
    len: usize,
    memory: *mut u8,
    size: usize,
) -> u32 {
    // SAFETY: the caller's promise.
    let message = unsafe { bytes(message, len) };
    let Ok(count) = image::registrants(message) else { return 1 };
    let needed = (count as usize).saturating_mul(size_of::<Registrant>()).saturating_add(HEAD_LEN);
    if memory.is_null() || size < needed {
        return 1;
    }
    // SAFETY: `memory` has room for the head, which comes first, and is aligned for it.
    let head = unsafe { &mut *memory.cast::<MaybeUninit<Head>>() };
    // SAFETY: the registrants follow within `size`; HEAD_LEN keeps them aligned, and they do not overlap the head.
    let registrants = unsafe {
        slice::from_raw_parts_mut(memory.add(HEAD_LEN).cast::<MaybeUninit<Registrant>>(), count as usize)
    };
    u32::from(image::build(message, head, registrants).is_err())
}

/// # Safety
/// `memory` holds an image that [`hf_core_image_build`] made of a message with `count` registrants.
unsafe fn image<'a>(memory: *const u8, count: u32) -> Option<Image<'a>> {
    // SAFETY: the caller's promise: both parts are initialised and stay unchanged.
    unsafe {
        let registrants = slice::from_raw_parts(memory.add(HEAD_LEN).cast::<Registrant>(), count as usize);
        Image::new(&*memory.cast::<Head>(), registrants)
    }
}

/// What C needs to know of an image. Same layout as `struct hf_image_facts`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HfImageFacts {
    /// Log index of the reservation's last change.
    pub version: u64,
    /// Number of the epoch.
    pub epoch_number: u64,
    /// Recovery generation of the epoch.
    pub epoch_generation: u32,
    /// Bytes in a block.
    pub block_size: u32,
    /// Blocks.
    pub blocks: u64,
    /// Registrants.
    pub registrants: u32,
    /// Zero.
    pub reserved: u32,
}

/// Facts of an image that was just built of `message`.
///
/// # Safety
/// As the module says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hf_core_image_facts(
    memory: *const u8,
    message: *const u8,
    len: usize,
    facts: *mut HfImageFacts,
) -> u32 {
    // SAFETY: the caller's promise.
    let Ok(registrants) = image::registrants(unsafe { bytes(message, len) }) else { return 1 };
    // SAFETY: the caller's promise.
    let Some(image) = (unsafe { image(memory, registrants) }) else { return 1 };
    let (epoch_generation, epoch_number) = image.epoch();
    let geometry = image.geometry();
    let told = HfImageFacts {
        version: image.version(),
        epoch_number,
        epoch_generation,
        block_size: geometry.block_size(),
        blocks: geometry.blocks(),
        registrants,
        reserved: 0,
    };
    // SAFETY: the caller's promise.
    unsafe { facts.write(told) };
    0
}

/// Bytes of a nexus in memory.
#[unsafe(no_mangle)]
pub extern "C" fn hf_core_nexus_size() -> usize {
    size_of::<Nexus>()
}

/// Which TransportID [`hf_core_nexus`] makes of a name.
pub const PROTOCOL_FC: u32 = 0;
/// SRP: 16 bytes.
pub const PROTOCOL_SRP: u32 = 4;
/// iSCSI: a name, and an ISID of 6 bytes.
pub const PROTOCOL_ISCSI: u32 = 5;
/// SAS: 8 bytes.
pub const PROTOCOL_SAS: u32 = 6;

/// Writes the nexus of an initiator port and a relative target port to `memory`. 0, or 1 for a name that is none.
///
/// # Safety
/// As the module says; `isid` is null or has 6 bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hf_core_nexus(
    memory: *mut Nexus,
    protocol: u32,
    name: *const u8,
    name_len: usize,
    isid: *const u8,
    relative_port: u16,
) -> u32 {
    // SAFETY: the caller's promise.
    let (name, isid) = unsafe { (bytes(name, name_len), bytes(isid, if isid.is_null() { 0 } else { 6 })) };
    let initiator = match protocol {
        PROTOCOL_FC => name.try_into().ok().map(TransportId::fibre_channel),
        PROTOCOL_SAS => name.try_into().ok().map(TransportId::sas),
        PROTOCOL_SRP => name.try_into().ok().map(TransportId::srp),
        PROTOCOL_ISCSI => core::str::from_utf8(name)
            .ok()
            .zip(isid.try_into().ok())
            .and_then(|(name, isid)| TransportId::iscsi(name, isid).ok()),
        _ => None,
    };
    let Some(initiator) = initiator.filter(|_| relative_port != 0) else { return 1 };
    // SAFETY: the caller's promise.
    unsafe { memory.write(Nexus::new(initiator, RelativePort(relative_port))) };
    0
}

/// Writes a nexus to `memory` from the bytes of a TransportID, as messages carry it. 0, or 1 if they are none.
///
/// # Safety
/// As the module says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hf_core_nexus_parse(
    memory: *mut Nexus,
    transport_id: *const u8,
    len: usize,
    relative_port: u16,
) -> u32 {
    // SAFETY: the caller's promise.
    match TransportId::parse(unsafe { bytes(transport_id, len) }) {
        Ok((initiator, taken)) if taken == len && relative_port != 0 => {
            // SAFETY: the caller's promise.
            unsafe { memory.write(Nexus::new(initiator, RelativePort(relative_port))) };
            0
        }
        _ => 1,
    }
}

/// 1 if both name the same nexus.
///
/// # Safety
/// As the module says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hf_core_nexus_same(a: *const Nexus, b: *const Nexus) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { u32::from(*a == *b) }
}

/// Copies the bytes of a nexus' TransportID, at most 248; returns how many there are.
///
/// # Safety
/// As the module says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hf_core_nexus_name(nexus: *const Nexus, out: *mut u8, room: usize) -> usize {
    // SAFETY: the caller's promise.
    let name = unsafe { (*nexus).initiator.as_bytes() };
    if name.len() <= room {
        // SAFETY: the caller's promise, and there is room; `out` is C's buffer, which is not the nexus.
        unsafe { core::ptr::copy_nonoverlapping(name.as_ptr(), out, name.len()) };
    }
    name.len()
}

/// How a nexus stands to an image's reservation (1: registered, 2: holder). Walks over the registrants: ask once for each
/// image.
///
/// # Safety
/// As the module says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hf_core_relation(memory: *const u8, registrants: u32, nexus: *const Nexus) -> u32 {
    // SAFETY: the caller's promise.
    let Some(image) = (unsafe { image(memory, registrants) }) else { return 0 };
    // SAFETY: the caller's promise.
    let relation = command::relation(&image, unsafe { &*nexus });
    u32::from(relation.registered) | u32::from(relation.holder) << 1
}

/// Bytes of a Unit Attention queue in memory.
#[unsafe(no_mangle)]
pub extern "C" fn hf_core_ua_size() -> usize {
    size_of::<UaQueue>()
}

/// Makes an empty queue.
///
/// # Safety
/// As the module says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hf_core_ua_init(memory: *mut UaQueue) {
    // SAFETY: the caller's promise.
    unsafe { memory.write(UaQueue::new()) };
}

/// Queues a condition; a full queue collapses into 29/00.
///
/// # Safety
/// As the module says; the queue's lock is held.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hf_core_ua_raise(queue: *mut UaQueue, id: u64, additional: u16) {
    let [asc, ascq] = additional.to_be_bytes();
    // SAFETY: the caller's promise.
    unsafe { (*queue).raise(id, AdditionalSense::new(asc, ascq)) };
}

/// Number pending.
///
/// # Safety
/// As the module says; the queue's lock is held.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hf_core_ua_len(queue: *const UaQueue) -> usize {
    // SAFETY: the caller's promise.
    unsafe { (*queue).len() }
}

/// REPORT LUNS was answered: 3F/0E ends.
///
/// # Safety
/// As the module says; the queue's lock is held.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hf_core_ua_luns_reported(queue: *mut UaQueue) {
    // SAFETY: the caller's promise.
    unsafe { (*queue).clear_reported_luns_changed() };
}

/// Judges a command.
///
/// # Safety
/// As the module says; the queue's lock is held where `attentions` is not null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hf_core_execute(memory: *const u8, registrants: u32, command: *mut HfCommand) {
    // SAFETY: the caller's promise.
    let told = unsafe { &mut *command };
    // SAFETY: the caller's promise.
    let Some(image) = (unsafe { image(memory, registrants) }) else {
        told.answer = ANSWER_STATUS;
        told.status = Status::Busy.code();
        return;
    };
    // SAFETY: the caller's promise.
    let (cdb, nexus, queue) =
        unsafe { (bytes(told.cdb, told.cdb_len as usize), &*told.nexus, told.attentions.as_mut()) };
    let head: Option<UnitAttention> = queue.as_ref().and_then(|queue| queue.head());
    let relation = Relation { registered: told.relation & 1 != 0, holder: told.relation & 2 != 0 };
    let asker = Asker { nexus, relation, unit_attention: head };
    let room = if told.out.is_null() { 0 } else { told.out_len as usize };
    let out: &mut [u8] = if room == 0 {
        &mut []
    } else {
        // SAFETY: the caller's promise: C's buffer, of this length, initialised.
        unsafe { slice::from_raw_parts_mut(told.out, room) }
    };
    let answer = command::execute(&image, &asker, cdb, out);
    let reported = tell(told, &answer, image.head.mode.descriptor_sense);
    if let (Some(queue), Some(id)) = (queue, reported) {
        queue.dequeue(id);
    }
}

fn tell(told: &mut HfCommand, answer: &Answer, descriptor: bool) -> Option<u64> {
    told.sense_len = 0;
    told.status = 0;
    told.flags = 0;
    told.len = 0;
    told.lba = 0;
    let small = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
    let mut range = |answer, extent: &holdfast_scsi::geometry::Extent| {
        told.lba = extent.lba;
        told.len = extent.blocks;
        answer
    };
    let (answer, reported) = match answer {
        Answer::Status { status, sense, reported } => {
            told.status = status.code();
            if let Some(sense) = sense {
                told.sense_len = sense_bytes(sense, descriptor, &mut told.sense);
            }
            (ANSWER_STATUS, *reported)
        }
        Answer::Data { len, reported } => {
            told.len = small(*len);
            (ANSWER_DATA, *reported)
        }
        Answer::MoreRoom(len) => {
            told.len = small(*len);
            (ANSWER_MORE_ROOM, None)
        }
        Answer::Read(extent) => (range(ANSWER_READ, extent), None),
        Answer::Write { extent, durable } => {
            let answer = range(ANSWER_WRITE, extent);
            told.flags = u8::from(*durable);
            (answer, None)
        }
        Answer::Flush => (ANSWER_FLUSH, None),
        Answer::Zeroes(extent) => (range(ANSWER_ZEROES, extent), None),
        Answer::Ask => (ANSWER_ASK, None),
    };
    told.answer = answer;
    reported
}

fn sense_bytes(sense: &Sense, descriptor: bool, out: &mut [u8; SENSE_LEN_MAX]) -> u8 {
    u8::try_from(sense.write(descriptor, out)).unwrap_or(0)
}

/// Sense data of an I/O error of the store, fixed format; returns its length.
///
/// # Safety
/// `out` has 64 bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hf_core_io_error(write: u32, out: *mut [u8; SENSE_LEN_MAX]) -> u8 {
    // SAFETY: the caller's promise.
    sense_bytes(&command::io_error(write != 0), false, unsafe { &mut *out })
}

#[cfg(test)]
mod tests;
