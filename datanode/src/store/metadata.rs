//! The bookkeeping of a replica: superblock, activity log, intents and a bitmap for each absent replica, in the slots that
//! [`holdfast_replica::superblock`], [`holdfast_replica::activity_log`] and [`holdfast_replica::bitmap`] draw.
//!
//! Invariants: what was written is on the medium when the call returns (a promise of [`Bookkeeping`]); a slot that is damaged or missing
//! is told as such and never mended here.

use std::io;

use holdfast_replica::activity_log::{self, ActivityLog, LogError};
use holdfast_replica::bitmap::{self, Bitmap};
use holdfast_replica::ids::{NodeNumber, VolumeId};
use holdfast_replica::span::Shape;
use holdfast_replica::superblock::{self, Superblock, SuperblockError};

use super::bookkeeping::{Area, Bookkeeping};
use super::intents;

/// One page of a bitmap and the slot that it belongs to.
pub type PageImage = (usize, Box<[u8; bitmap::PAGE_LEN]>);

/// The bookkeeping of one replica. See the module's invariants.
#[derive(Debug)]
pub struct Metadata {
    place: Box<dyn Bookkeeping>,
    volume: VolumeId,
}

impl Metadata {
    /// Fills the empty `place` of a new replica.
    ///
    /// # Errors
    /// As the system reports them.
    pub(super) fn create(
        place: &dyn Bookkeeping,
        superblock: &Superblock,
        mut log: ActivityLog,
    ) -> io::Result<()> {
        write_superblock(place, superblock)?;
        let (slot, image) = log.image(superblock.volume, crc32c::crc32c_append);
        // Both slots, so that the area has its full length from the beginning.
        let blank = [0; activity_log::SLOT_LEN];
        let other = slot_offset(1 - slot.min(1), activity_log::SLOT_LEN);
        place.write(Area::Log, &[(other, &blank), (slot_offset(slot, activity_log::SLOT_LEN), &*image)])
    }

    /// Of the replica of `volume` at `place`.
    pub(super) fn new(place: Box<dyn Bookkeeping>, volume: VolumeId) -> Metadata {
        Metadata { place, volume }
    }

    /// The superblock as it stands on the medium, whosever it is.
    ///
    /// # Errors
    /// Outside: the system's; inside: why the slots are none.
    pub(super) fn superblock(&self) -> io::Result<Result<Superblock, SuperblockError>> {
        let bytes = self.place.read(Area::Superblock)?;
        let [first, second] = two_slots::<{ superblock::SLOT_LEN }>(&bytes);
        Ok(Superblock::decode([&first, &second], crc32c::crc32c_append))
    }

    /// Writes the slot that the sequence number stands for; the other slot keeps the state before.
    ///
    /// # Errors
    /// As the system reports them; the slot is then in doubt.
    pub(super) fn write_superblock(&self, superblock: &Superblock) -> io::Result<()> {
        write_superblock(&*self.place, superblock)
    }

    /// The activity log as it stands on the medium.
    ///
    /// # Errors
    /// Outside: the system's; inside: why the slots are none.
    pub fn log(&self) -> io::Result<Result<ActivityLog, LogError>> {
        let bytes = self.place.read(Area::Log)?;
        let [first, second] = two_slots::<{ activity_log::SLOT_LEN }>(&bytes);
        Ok(ActivityLog::decode([&first, &second], self.volume, crc32c::crc32c_append))
    }

    /// Every bitmap that there is.
    ///
    /// # Errors
    /// As the system reports them.
    pub fn bitmaps(&self, shape: Shape) -> io::Result<Vec<Bitmap>> {
        let mut bitmaps = Vec::new();
        for node in self.place.bitmaps()? {
            let bytes = self.place.read(Area::Bitmap(node))?;
            let (slots, _) = bytes.as_chunks::<{ bitmap::PAGE_LEN }>();
            let slot = |at: usize| slots.get(at);
            bitmaps.push(Bitmap::decode(node, self.volume, shape, slot, crc32c::crc32c_append));
        }
        Ok(bitmaps)
    }

    /// Writes a slot of the activity log.
    ///
    /// # Errors
    /// As the system reports them; the slot is then in doubt.
    pub fn write_log(&self, slot: usize, image: &[u8; activity_log::SLOT_LEN]) -> io::Result<()> {
        self.place.write(Area::Log, &[(slot_offset(slot, activity_log::SLOT_LEN), image)])
    }

    /// Writes pages of the bitmap for `node`.
    ///
    /// # Errors
    /// As the system reports them; the slots are then in doubt.
    pub fn write_pages(&self, node: NodeNumber, pages: &[PageImage]) -> io::Result<()> {
        let parts: Vec<(u64, &[u8])> = pages
            .iter()
            .map(|(slot, image)| (slot_offset(*slot, bitmap::PAGE_LEN), image.as_slice()))
            .collect();
        self.place.write(Area::Bitmap(node), &parts)
    }

    /// Removes the bitmap for `node`; none is no error.
    ///
    /// # Errors
    /// As the system reports them.
    pub fn drop_bitmap(&self, node: NodeNumber) -> io::Result<()> {
        self.place.remove_bitmap(node)
    }

    /// Whose replica it is.
    pub(super) fn volume(&self) -> VolumeId {
        self.volume
    }

    /// The intent with this number, as [`intents`] draws it, if its head says that there is one.
    ///
    /// # Errors
    /// As the system reports them.
    pub(super) fn intent(&self, number: u8) -> io::Result<Vec<u8>> {
        let area = Area::Intent(number);
        let head = self.place.read_start(area, intents::HEAD_LEN)?;
        match intents::Head::decode(&head, self.volume) {
            Some(head) => self.place.read_start(area, head.whole_len()),
            None => Ok(Vec::new()),
        }
    }

    /// Notes the intent of writing `data` at `offset`.
    ///
    /// # Errors
    /// As the system reports them; whether there is one is then in doubt.
    pub(super) fn write_intent(&self, number: u8, offset: u64, data: &[u8]) -> io::Result<()> {
        self.place.write(Area::Intent(number), &[(0, &intents::encode(self.volume, offset, data))])
    }

    /// Takes an intent back.
    ///
    /// # Errors
    /// As the system reports them; whether there is one is then in doubt.
    pub(super) fn clear_intent(&self, number: u8) -> io::Result<()> {
        self.place.write(Area::Intent(number), &[(0, &[0; intents::HEAD_LEN])])
    }

    /// Begins anew as the only copy: nobody is absent, nothing may differ from anything.
    ///
    /// # Errors
    /// As the system reports them.
    pub fn reset(&self, me: NodeNumber) -> io::Result<()> {
        // The newest sequence number has to win, whatever the slots held.
        let mut log = match self.log()? {
            Ok(log) => log.successor(vec![me]),
            Err(_) => {
                self.place.write(Area::Log, &[(0, &[0; 2 * activity_log::SLOT_LEN])])?;
                ActivityLog::new(vec![me])
            }
        };
        for node in self.place.bitmaps()? {
            self.place.remove_bitmap(node)?;
        }
        let (slot, image) = log.image(self.volume, crc32c::crc32c_append);
        self.write_log(slot, &image)
    }
}

fn write_superblock(place: &dyn Bookkeeping, superblock: &Superblock) -> io::Result<()> {
    let image = superblock.encode(crc32c::crc32c_append);
    place.write(Area::Superblock, &[(slot_offset(superblock.slot(), superblock::SLOT_LEN), &*image)])
}

fn slot_offset(slot: usize, len: usize) -> u64 {
    (slot as u64).saturating_mul(len as u64)
}

/// The two slots; what the area lacks is zero.
fn two_slots<const N: usize>(bytes: &[u8]) -> [Box<[u8; N]>; 2] {
    [0, 1].map(|slot| {
        let mut image = Box::new([0; N]);
        for (to, from) in image.iter_mut().zip(bytes.iter().skip(slot * N)) {
            *to = *from;
        }
        image
    })
}

#[cfg(test)]
mod tests {
    use super::super::directory::Folder;
    use super::*;
    use holdfast_replica::span::Span;

    const VOLUME: VolumeId = VolumeId([4; 16]);

    fn node(n: u32) -> NodeNumber {
        NodeNumber::new(n).unwrap()
    }

    fn shape() -> Shape {
        Shape::new(1 << 20, 512).unwrap()
    }

    fn superblock() -> Superblock {
        let cluster = holdfast_replica::ids::ClusterId([1; 16]);
        let promised = holdfast_replica::epoch::Epoch::ZERO;
        let (block_size, blocks, sequence) = (512, 1 << 20, 1);
        Superblock { cluster, volume: VOLUME, node: node(1), block_size, blocks, sequence, promised }
    }

    fn opened(dir: &tempfile::TempDir) -> Metadata {
        Metadata::new(Box::new(Folder::open(dir.path()).unwrap()), VOLUME)
    }

    fn made() -> (tempfile::TempDir, Metadata) {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::create(dir.path()).unwrap();
        Metadata::create(&folder, &superblock(), ActivityLog::new(vec![node(1), node(2)])).unwrap();
        let metadata = opened(&dir);
        (dir, metadata)
    }

    #[test]
    fn log_and_bitmaps_read_back() {
        let (_dir, metadata) = made();
        let mut log = metadata.log().unwrap().unwrap();
        assert_eq!(log.in_sync(), [node(1), node(2)]);
        log.record(&[5], 1).unwrap();
        let (slot, image) = log.image(VOLUME, crc32c::crc32c_append);
        metadata.write_log(slot, &image).unwrap();
        assert_eq!(metadata.log().unwrap().unwrap().entries().map(|e| e.extent).collect::<Vec<_>>(), [5]);
        let mut bitmap = Bitmap::new(node(2), shape(), false, 1);
        bitmap.mark(Span::new(4096, 1).unwrap(), 1);
        metadata.write_pages(node(2), &bitmap.images(VOLUME, crc32c::crc32c_append)).unwrap();
        let found = metadata.bitmaps(shape()).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].dirty_chunks().collect::<Vec<_>>(), bitmap.dirty_chunks().collect::<Vec<_>>());
        metadata.drop_bitmap(node(2)).unwrap();
        metadata.drop_bitmap(node(2)).unwrap();
        assert!(metadata.bitmaps(shape()).unwrap().is_empty());
    }

    #[test]
    fn damaged_log_is_told_and_a_missing_one_is_none() {
        let (dir, metadata) = made();
        metadata.write_log(0, &[0x55; activity_log::SLOT_LEN]).unwrap();
        metadata.write_log(1, &[0x55; activity_log::SLOT_LEN]).unwrap();
        assert_eq!(metadata.log().unwrap().unwrap_err(), LogError::Corrupt);
        std::fs::remove_file(dir.path().join("log")).unwrap();
        let metadata = opened(&dir);
        assert_eq!(metadata.log().unwrap().unwrap_err(), LogError::Blank);
    }

    #[test]
    fn only_copy_begins_without_entries_and_bitmaps() {
        let (_dir, metadata) = made();
        let mut log = metadata.log().unwrap().unwrap();
        log.record(&[5, 6], 1).unwrap();
        let (slot, image) = log.image(VOLUME, crc32c::crc32c_append);
        metadata.write_log(slot, &image).unwrap();
        let mut bitmap = Bitmap::new(node(2), shape(), true, 1);
        metadata.write_pages(node(2), &bitmap.images(VOLUME, crc32c::crc32c_append)).unwrap();
        for _ in 0..3 {
            metadata.reset(node(1)).unwrap();
            let log = metadata.log().unwrap().unwrap();
            assert_eq!((log.in_sync(), log.entries().count()), (&[node(1)][..], 0));
            assert!(metadata.bitmaps(shape()).unwrap().is_empty());
        }
    }
}
