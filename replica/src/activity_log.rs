//! The durable activity log of a replica: the extents that its copy may differ in from the others.
//!
//! An extent is *active* while a write to it may be missing from some in-sync replica, and *unflushed* while a cached write to
//! it may not be on the disk of every in-sync replica. The log also names the in-sync set that the replica last
//! promised to, so that it can tell who has left since.
//!
//! Two slots of [`SLOT_LEN`] bytes are written in turn, each with the whole log, so that a torn write leaves the one before.
//! All numbers are big endian. One slot:
//!
//! ```text
//!  byte
//!     0  "HFACTLOG"                               magic, 8 bytes
//!     8  0x0001          | members, 0..=3         format version, how many of the three node numbers count
//!    12  entries                                  4 bytes, at most LOG_ENTRIES_MAX
//!    16  volume id                                16 bytes
//!    32  sequence number                          8 bytes, grows by one with each write; the higher slot counts
//!    40  in-sync set: three node numbers          3 x 2 bytes, 0 behind the last
//!    46  0x0001: untrusted                        2 bytes; what the replica holds cannot be trusted, all of it
//!                                                 has to be copied to it
//!    48  zeroes                                   16 bytes
//!    64  entries, by extent number, ascending     8 bytes each:
//!          bit 63  active
//!          bit 62  unflushed
//!          bits 61..56  zero
//!          bits 55..0   extent number
//!        zeroes
//!  8188  CRC32C of bytes 0..8188                  4 bytes
//! ```
//!
//! Invariants: [`ActivityLog::begin_write`] names the batch that must be durable before the write is applied; a flag is
//! cleared only when every member is known to have the writes (see [`Settled`]), and never while a write to the extent is
//! under way here; what a disk or an earlier owner left (*carried*) goes only after recovery. So what is on the disk,
//! torn or not, is always a superset of what is needed.

use alloc::{boxed::Box, collections::BTreeMap, vec, vec::Vec};
use core::fmt;

use crate::{
    Crc32c,
    ids::{NodeNumber, VolumeId},
    limits::{LIVE_EXTENTS_MAX, LOG_ENTRIES_MAX, REPLICAS_MAX},
};

/// Length of one slot, in bytes.
pub const SLOT_LEN: usize = 8192;
const MAGIC: [u8; 8] = *b"HFACTLOG";
const VERSION: u16 = 1;
const ENTRIES_AT: usize = 64;
const CRC_AT: usize = SLOT_LEN - 4;
const ACTIVE: u8 = 2;
const UNFLUSHED: u8 = 1;
const EXTENT_BITS: u32 = 56;

/// How far the owner knows the writes of its term to be everywhere. Write numbers start at 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Every write up to this number is on all in-sync replicas.
    pub written: u64,
    /// Every write up to this number is on the disks of all in-sync replicas.
    pub flushed: u64,
    /// What earlier terms left has been made equal everywhere, and flushed.
    pub recovered: bool,
}

/// One extent of the log, as the disk and the frames show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogEntry {
    /// Number of the extent, below 2^56.
    pub extent: u64,
    /// A write may be missing somewhere.
    pub active: bool,
    /// A cached write may not be on every disk.
    pub unflushed: bool,
}

impl LogEntry {
    /// The eight bytes of the entry.
    pub fn encode(self) -> [u8; 8] {
        let flags = u64::from(self.active) << 63 | u64::from(self.unflushed) << 62;
        (self.extent & ((1 << EXTENT_BITS) - 1) | flags).to_be_bytes()
    }

    /// From its eight bytes; `None` if a bit is set that has no meaning, or no flag is.
    pub fn decode(bytes: [u8; 8]) -> Option<LogEntry> {
        let raw = u64::from_be_bytes(bytes);
        let entry = LogEntry {
            extent: raw & ((1 << EXTENT_BITS) - 1),
            active: raw >> 63 & 1 == 1,
            unflushed: raw >> 62 & 1 == 1,
        };
        (entry.encode() == bytes && (entry.active || entry.unflushed)).then_some(entry)
    }
}

/// Why there is no activity log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogError {
    /// Both slots hold zeroes: none was ever made here.
    Blank,
    /// Neither slot is whole: the replica must be copied anew.
    Corrupt,
    /// Written by a later version (its number).
    UnknownVersion(u16),
    /// A whole slot with a field out of range, or of another volume.
    Field(&'static str),
}

impl fmt::Display for LogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LogError::Blank => f.write_str("there is no activity log"),
            LogError::Corrupt => f.write_str("both activity logs are damaged"),
            LogError::UnknownVersion(v) => write!(f, "activity log version {v} is newer than this program"),
            LogError::Field(name) => write!(f, "the activity log's {name} is out of range"),
        }
    }
}

impl core::error::Error for LogError {}

/// The log has no room: the write must not be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogFull;

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    /// Flags in the newest image, or in the next one.
    flags: u8,
    /// The batch that brings the newest of them to disk.
    batch: u64,
    last_write: u64,
    last_cached: u64,
    /// Writes of this replica under way, or failed.
    under_way: u32,
    carried: u8,
}

impl Entry {
    fn needed(&self, settled: Settled) -> u8 {
        let mut flags = self.carried;
        if self.last_write > settled.written || self.under_way > 0 {
            flags |= ACTIVE;
        }
        if self.last_cached > settled.flushed {
            flags |= UNFLUSHED;
        }
        flags
    }
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct ActivityLog {
    entries: BTreeMap<u64, Entry>,
    in_sync: Vec<NodeNumber>,
    untrusted: bool,
    sequence: u64,
    settled: Settled,
    /// Carried entries go when the writes up to this number are on all disks, and not before recovery has ended.
    carried_through: u64,
    changed: bool,
}

impl ActivityLog {
    /// The log of one of the first replicas of a new volume, which are alike; its first image is yet to be written.
    pub fn new(in_sync: Vec<NodeNumber>) -> ActivityLog {
        ActivityLog { in_sync, changed: true, ..ActivityLog::default() }
    }

    /// The log of a replica that is to be copied as a whole: a new one of a volume that has data, or one whose log is lost.
    pub fn untrusted() -> ActivityLog {
        ActivityLog { untrusted: true, changed: true, ..ActivityLog::default() }
    }

    /// An empty log that takes the place of this one on disk: the replica is the only copy from here on.
    #[must_use]
    pub fn successor(&self, in_sync: Vec<NodeNumber>) -> ActivityLog {
        ActivityLog { sequence: self.sequence, ..ActivityLog::new(in_sync) }
    }

    /// True until all of the replica has been copied to it.
    pub fn is_untrusted(&self) -> bool {
        self.untrusted
    }

    /// What the replica holds is not what it should hold: all of it has to be copied to it.
    pub fn set_untrusted(&mut self) {
        self.changed |= !self.untrusted;
        self.untrusted = true;
    }

    /// All of the replica has been copied to it.
    pub fn set_trusted(&mut self) {
        self.changed |= self.untrusted;
        self.untrusted = false;
    }

    /// The newest of two slots. Everything in it is carried.
    pub fn decode(
        slots: [&[u8; SLOT_LEN]; 2],
        volume: VolumeId,
        crc32c: Crc32c,
    ) -> Result<ActivityLog, LogError> {
        let [first, second] = slots;
        match (decode_slot(first, volume, crc32c)?, decode_slot(second, volume, crc32c)?) {
            (Slot::Whole(a), Slot::Whole(b)) => Ok(if a.sequence >= b.sequence { a } else { b }),
            (Slot::Whole(only), _) | (_, Slot::Whole(only)) => Ok(only),
            (Slot::Blank, Slot::Blank) => Err(LogError::Blank),
            _ => Err(LogError::Corrupt),
        }
    }

    /// The in-sync set of the last promise.
    pub fn in_sync(&self) -> &[NodeNumber] {
        &self.in_sync
    }

    /// Notes the in-sync set of a promise; only the first [`REPLICAS_MAX`] count.
    pub fn set_in_sync(&mut self, mut in_sync: Vec<NodeNumber>) {
        in_sync.truncate(REPLICAS_MAX);
        self.changed |= self.in_sync != in_sync;
        self.in_sync = in_sync;
    }

    /// Records the extents of a write that is about to be applied. `next_batch` is the next batch of metadata that the
    /// caller will write. Returns the batch that must be durable first.
    ///
    /// # Errors
    /// [`LogFull`]: nothing was recorded.
    pub fn begin_write(
        &mut self,
        extents: core::ops::Range<u64>,
        number: u64,
        cached: bool,
        next_batch: u64,
    ) -> Result<u64, LogFull> {
        self.make_room(extents.clone())?;
        let flags = if cached { ACTIVE | UNFLUSHED } else { ACTIVE };
        let mut required = 0;
        for extent in extents {
            required = required.max(self.add(extent, flags, next_batch));
            let entry = self.entries.entry(extent).or_default();
            entry.under_way += 1;
            entry.last_write = entry.last_write.max(number);
            if cached {
                entry.last_cached = entry.last_cached.max(number);
            }
        }
        Ok(required)
    }

    /// The write has been applied. Not called for one that failed: its extents stay active.
    pub fn end_write(&mut self, extents: core::ops::Range<u64>) {
        for extent in extents {
            if let Some(entry) = self.entries.get_mut(&extent) {
                entry.under_way = entry.under_way.saturating_sub(1);
            }
        }
    }

    /// Records extents as active until recovery has ended. Returns the batch that must be durable before that counts.
    ///
    /// # Errors
    /// [`LogFull`].
    pub fn record(&mut self, extents: &[u64], next_batch: u64) -> Result<u64, LogFull> {
        let mut required = 0;
        for extent in extents {
            self.make_room(*extent..*extent + 1)?;
            required = required.max(self.add(*extent, ACTIVE, next_batch));
            self.entries.entry(*extent).or_default().carried |= ACTIVE;
        }
        Ok(required)
    }

    /// What the owner said about its writes. Nothing goes back.
    pub fn settle(&mut self, settled: Settled) {
        self.settled.written = self.settled.written.max(settled.written);
        self.settled.flushed = self.settled.flushed.max(settled.flushed);
        self.settled.recovered |= settled.recovered;
        if self.settled.recovered && self.settled.written.min(self.settled.flushed) >= self.carried_through {
            for entry in self.entries.values_mut() {
                entry.carried = 0;
            }
        }
    }

    /// The term ends, or the replica was opened within one: only the owner can say when today's extents are equal again.
    /// Writes up to `through` may be under way in its term: what is carried stays until those are on all disks.
    pub fn carry(&mut self, through: u64) {
        self.carried_through = through;
        for entry in self.entries.values_mut() {
            *entry =
                Entry { flags: entry.flags, batch: entry.batch, carried: entry.flags, ..Entry::default() };
        }
        self.settled = Settled::default();
    }

    /// Forgets what is not needed any more; the next image shows it. For idle moments: a short log is a short recovery.
    pub fn sweep(&mut self) {
        let settled = self.settled;
        let mut changed = false;
        self.entries.retain(|_, entry| {
            let needed = entry.needed(settled);
            changed |= needed != entry.flags;
            entry.flags = needed;
            needed != 0
        });
        self.changed |= changed;
    }

    /// The entries, by extent.
    pub fn entries(&self) -> impl Iterator<Item = LogEntry> + '_ {
        self.entries.iter().map(|(extent, entry)| LogEntry {
            extent: *extent,
            active: entry.flags & ACTIVE != 0,
            unflushed: entry.flags & UNFLUSHED != 0,
        })
    }

    /// True if the next batch has to hold an image.
    pub fn changed(&self) -> bool {
        self.changed
    }

    /// The next image and the slot that it belongs to. Only one may be on its way to disk at a time.
    pub fn image(&mut self, volume: VolumeId, crc32c: Crc32c) -> (usize, Box<[u8; SLOT_LEN]>) {
        if self.entries.len() > LIVE_EXTENTS_MAX {
            self.sweep();
        }
        self.changed = false;
        self.sequence = self.sequence.saturating_add(1);
        let mut slot = Box::new([0; SLOT_LEN]);
        let members = self.in_sync.len() as u16;
        put(&mut slot, 0, &MAGIC);
        put(&mut slot, 8, &VERSION.to_be_bytes());
        put(&mut slot, 10, &members.to_be_bytes());
        put(&mut slot, 12, &(self.entries.len() as u32).to_be_bytes());
        put(&mut slot, 16, &volume.0);
        put(&mut slot, 32, &self.sequence.to_be_bytes());
        put(&mut slot, 46, &u16::from(self.untrusted).to_be_bytes());
        for (at, node) in self.in_sync.iter().enumerate() {
            put(&mut slot, 40 + 2 * at, &node.get().to_be_bytes());
        }
        for (at, entry) in self.entries().enumerate() {
            put(&mut slot, ENTRIES_AT + 8 * at, &entry.encode());
        }
        let crc = crc32c(0, slot.get(..CRC_AT).unwrap_or_default());
        put(&mut slot, CRC_AT, &crc.to_be_bytes());
        (usize::from(!self.sequence.is_multiple_of(2)), slot)
    }

    fn add(&mut self, extent: u64, flags: u8, next_batch: u64) -> u64 {
        let entry = self.entries.entry(extent).or_default();
        if entry.flags & flags != flags {
            entry.flags |= flags;
            entry.batch = next_batch;
            self.changed = true;
        }
        entry.batch
    }

    fn make_room(&mut self, extents: core::ops::Range<u64>) -> Result<(), LogFull> {
        let missing = |log: &ActivityLog| extents.clone().filter(|e| !log.entries.contains_key(e)).count();
        if self.entries.len() + missing(self) > LOG_ENTRIES_MAX {
            self.sweep();
        }
        if self.entries.len() + missing(self) > LOG_ENTRIES_MAX { Err(LogFull) } else { Ok(()) }
    }
}

enum Slot {
    Blank,
    Torn,
    Whole(ActivityLog),
}

fn decode_slot(slot: &[u8; SLOT_LEN], volume: VolumeId, crc32c: Crc32c) -> Result<Slot, LogError> {
    if slot.iter().all(|byte| *byte == 0) {
        return Ok(Slot::Blank);
    }
    let (body, crc) = slot.split_at(CRC_AT);
    if array::<8>(slot, 0) != MAGIC || crc != crc32c(0, body).to_be_bytes() {
        return Ok(Slot::Torn);
    }
    let version = u16::from_be_bytes(array(slot, 8));
    if version != VERSION {
        return Err(LogError::UnknownVersion(version));
    }
    if VolumeId(array(slot, 16)) != volume {
        return Err(LogError::Field("volume"));
    }
    let members = usize::from(u16::from_be_bytes(array(slot, 10)));
    let count = u32::from_be_bytes(array(slot, 12)) as usize;
    if members > REPLICAS_MAX || count > LOG_ENTRIES_MAX {
        return Err(LogError::Field("number of entries"));
    }
    let mut in_sync = vec![];
    for at in 0..members {
        let node = u16::from_be_bytes(array(slot, 40 + 2 * at));
        in_sync.push(NodeNumber::new(u32::from(node)).ok_or(LogError::Field("in-sync set"))?);
    }
    let mut entries = BTreeMap::new();
    for at in 0..count {
        let entry =
            LogEntry::decode(array(slot, ENTRIES_AT + 8 * at)).ok_or(LogError::Field("extent entry"))?;
        let flags = if entry.active { ACTIVE } else { 0 } | if entry.unflushed { UNFLUSHED } else { 0 };
        entries.insert(entry.extent, Entry { flags, carried: flags, ..Entry::default() });
    }
    let sequence = u64::from_be_bytes(array(slot, 32));
    let untrusted = match u16::from_be_bytes(array(slot, 46)) {
        0 => false,
        1 => true,
        _ => return Err(LogError::Field("trust")),
    };
    Ok(Slot::Whole(ActivityLog { entries, in_sync, untrusted, sequence, ..ActivityLog::default() }))
}

fn put(slot: &mut [u8; SLOT_LEN], at: usize, bytes: &[u8]) {
    for (to, from) in slot.iter_mut().skip(at).zip(bytes) {
        *to = *from;
    }
}

/// Every offset above lies within the slot, so this never gives zeroes in place of bytes.
fn array<const N: usize>(slot: &[u8; SLOT_LEN], at: usize) -> [u8; N] {
    slot.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn crc(so_far: u32, bytes: &[u8]) -> u32 {
        crc32c::crc32c_append(so_far, bytes)
    }

    const VOLUME: VolumeId = VolumeId([7; 16]);
    const BLANK: [u8; SLOT_LEN] = [0; SLOT_LEN];

    fn node(n: u32) -> NodeNumber {
        NodeNumber::new(n).unwrap()
    }

    fn extents(log: &ActivityLog) -> Vec<(u64, bool, bool)> {
        log.entries().map(|e| (e.extent, e.active, e.unflushed)).collect()
    }

    #[test]
    fn first_write_of_an_extent_waits_for_the_log_and_the_next_does_not() {
        let mut log = ActivityLog::new(vec![node(1)]);
        assert_eq!(log.begin_write(4..6, 1, false, 5), Ok(5));
        log.image(VOLUME, crc);
        // While that image is under way the second write waits for the same batch, not for another.
        assert_eq!(log.begin_write(5..6, 2, false, 6), Ok(5));
        assert!(!log.changed());
        // Cached: the flag is new.
        assert_eq!(log.begin_write(5..6, 3, true, 6), Ok(6));
    }

    #[test]
    fn extent_is_released_only_when_every_member_has_its_writes() {
        let mut log = ActivityLog::new(vec![]);
        log.begin_write(1..2, 1, true, 1).unwrap();
        log.begin_write(2..3, 2, false, 1).unwrap();
        log.end_write(1..2);
        log.end_write(2..3);
        log.settle(Settled { written: 1, flushed: 0, recovered: false });
        log.sweep();
        assert_eq!(extents(&log), [(1, false, true), (2, true, false)]);
        log.settle(Settled { written: 2, flushed: 1, recovered: false });
        // Nothing goes back.
        log.settle(Settled::default());
        log.sweep();
        assert_eq!(extents(&log), []);
    }

    #[test]
    fn failed_or_unfinished_write_keeps_its_extent() {
        let mut log = ActivityLog::new(vec![]);
        log.begin_write(1..2, 1, false, 1).unwrap();
        log.settle(Settled { written: 9, flushed: 9, recovered: true });
        log.sweep();
        assert_eq!(extents(&log), [(1, true, false)]);
    }

    #[test]
    fn what_an_earlier_owner_left_goes_only_after_recovery() {
        let mut log = ActivityLog::new(vec![]);
        log.begin_write(1..2, 8, true, 1).unwrap();
        log.carry(0);
        log.settle(Settled { written: 99, flushed: 99, recovered: false });
        log.sweep();
        assert_eq!(extents(&log), [(1, true, true)]);
        log.settle(Settled { written: 99, flushed: 99, recovered: true });
        log.sweep();
        assert_eq!(extents(&log), []);
    }

    #[test]
    fn replica_opened_in_the_middle_of_a_term_keeps_what_was_under_way() {
        let mut log = ActivityLog::new(vec![]);
        log.begin_write(1..2, 8, true, 1).unwrap();
        log.carry(9);
        for settled in [(9, 8), (8, 9)] {
            log.settle(Settled { written: settled.0.min(8), flushed: settled.1.min(8), recovered: true });
            log.sweep();
            assert_eq!(extents(&log), [(1, true, true)]);
        }
        log.settle(Settled { written: 9, flushed: 9, recovered: true });
        log.sweep();
        assert_eq!(extents(&log), []);
    }

    #[test]
    fn log_is_bounded() {
        let mut log = ActivityLog::new(vec![]);
        for extent in 0..LOG_ENTRIES_MAX as u64 {
            log.begin_write(extent..extent + 1, extent + 1, false, 1).unwrap();
        }
        assert_eq!(log.begin_write(5000..5001, 5000, false, 1), Err(LogFull));
        assert_eq!(log.record(&[5000], 1), Err(LogFull));
        assert_eq!(log.begin_write(3..4, 5001, false, 2), Ok(1));
        log.end_write(0..1);
        log.settle(Settled { written: 1, flushed: 0, recovered: false });
        assert_eq!(log.begin_write(5000..5001, 5002, false, 2), Ok(2));
        let (_, image) = log.image(VOLUME, crc);
        assert_eq!(extents(&ActivityLog::decode([&image, &BLANK], VOLUME, crc).unwrap()), extents(&log));
    }

    #[test]
    fn torn_write_leaves_the_image_before() {
        let mut log = ActivityLog::new(vec![node(1), node(2)]);
        log.begin_write(1..2, 1, false, 1).unwrap();
        let (a, first) = log.image(VOLUME, crc);
        log.begin_write(2..3, 2, true, 2).unwrap();
        let (b, mut second) = log.image(VOLUME, crc);
        assert_ne!(a, b);
        let newest = ActivityLog::decode([&second, &first], VOLUME, crc).unwrap();
        assert_eq!(extents(&newest), [(1, true, false), (2, true, true)]);
        assert_eq!(newest.in_sync(), [node(1), node(2)]);
        second[4096..].fill(0xee);
        let before = ActivityLog::decode([&second, &first], VOLUME, crc).unwrap();
        assert_eq!(extents(&before), [(1, true, false)]);
        assert_eq!(ActivityLog::decode([&second, &BLANK], VOLUME, crc).err(), Some(LogError::Corrupt));
        assert_eq!(ActivityLog::decode([&BLANK, &BLANK], VOLUME, crc).err(), Some(LogError::Blank));
        let other = ActivityLog::decode([&BLANK, &first], VolumeId([8; 16]), crc);
        assert_eq!(other.err(), Some(LogError::Field("volume")));
    }

    proptest! {
        #[test]
        fn one_changed_bit_is_found(at in 0usize..SLOT_LEN * 8) {
            let mut log = ActivityLog::new(vec![node(1)]);
            log.begin_write(1..9, 1, true, 1).unwrap();
            let (_, mut image) = log.image(VOLUME, crc);
            image[at / 8] ^= 1 << (at % 8);
            prop_assert_eq!(ActivityLog::decode([&image, &BLANK], VOLUME, crc).err(), Some(LogError::Corrupt));
        }

        #[test]
        fn whole_slot_with_any_contents_is_read_or_refused(
            bytes in proptest::collection::vec(any::<u8>(), 0..400), count in any::<u8>(),
        ) {
            let mut slot = [0; SLOT_LEN];
            put(&mut slot, 8, &[0, 1, 0, count % 8, 0, 0, 0, count]);
            put(&mut slot, 0, &MAGIC);
            put(&mut slot, 16, &VOLUME.0);
            put(&mut slot, 40, &bytes);
            let sum = crc(0, &slot[..CRC_AT]);
            put(&mut slot, CRC_AT, &sum.to_be_bytes());
            if let Ok(log) = ActivityLog::decode([&slot, &BLANK], VOLUME, crc) {
                prop_assert!(extents(&log).len() <= usize::from(count));
            }
        }

        #[test]
        fn entries_read_back(extent in 0u64..1 << 56, active: bool, unflushed: bool) {
            let entry = LogEntry { extent, active, unflushed };
            prop_assert_eq!(LogEntry::decode(entry.encode()), (active || unflushed).then_some(entry));
        }
    }
}
