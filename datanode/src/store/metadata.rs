//! The bookkeeping of a replica on disk, beside its data: the activity log and a bitmap for each absent replica, in the
//! slots that [`holdfast_replica::activity_log`] and [`holdfast_replica::bitmap`] draw.
//!
//! ```text
//! DIR/<volume uuid>/log          the activity log, two slots
//! DIR/<volume uuid>/bitmap-<n>   chunks that node n lacks, two slots for each page
//! ```
//!
//! Invariants: what [`Metadata::write_log`] and [`Metadata::write_pages`] were given is on the medium when they return, the entry
//! in the directory too; a slot that is damaged or missing is told as such and never mended here.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use holdfast_replica::activity_log::{self, ActivityLog, LogError};
use holdfast_replica::bitmap::{self, Bitmap};
use holdfast_replica::ids::{NodeNumber, VolumeId};
use holdfast_replica::span::Shape;

use super::pool::sync_directory;

const LOG_FILE: &str = "log";
const BITMAP_PREFIX: &str = "bitmap-";

/// One page of a bitmap and the slot that it belongs to.
pub type PageImage = (usize, Box<[u8; bitmap::PAGE_LEN]>);

/// The files. See the module's invariants.
#[derive(Debug)]
pub struct Metadata {
    folder: PathBuf,
    volume: VolumeId,
    log: File,
}

impl Metadata {
    /// Makes the files of a new replica, with this log. Durable but for the entry of the folder itself.
    ///
    /// # Errors
    /// As the system reports them.
    pub(super) fn create(folder: &Path, volume: VolumeId, mut log: ActivityLog) -> io::Result<()> {
        let file = File::options().write(true).create_new(true).open(folder.join(LOG_FILE))?;
        file.write_all_at(&[0; 2 * activity_log::SLOT_LEN], 0)?;
        let (slot, image) = log.image(volume, crc32c::crc32c_append);
        file.write_all_at(&*image, (slot * activity_log::SLOT_LEN) as u64)?;
        file.sync_all()
    }

    /// Opens the files of a replica. A log that is missing is made, empty: it then reads as damaged.
    ///
    /// # Errors
    /// As the system reports them.
    pub(super) fn open(folder: &Path, volume: VolumeId) -> io::Result<Metadata> {
        let path = folder.join(LOG_FILE);
        let log = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        Ok(Metadata { folder: folder.to_path_buf(), volume, log })
    }

    /// The activity log as it stands on the medium.
    ///
    /// # Errors
    /// Outside: the system's; inside: why the slots are none.
    pub fn log(&self) -> io::Result<Result<ActivityLog, LogError>> {
        let mut slots = [[0; activity_log::SLOT_LEN]; 2];
        for (at, slot) in slots.iter_mut().enumerate() {
            read_slot(&self.log, slot, at * activity_log::SLOT_LEN)?;
        }
        let [first, second] = &slots;
        Ok(ActivityLog::decode([first, second], self.volume, crc32c::crc32c_append))
    }

    /// Every bitmap that has a file.
    ///
    /// # Errors
    /// As the system reports them.
    pub fn bitmaps(&self, shape: Shape) -> io::Result<Vec<Bitmap>> {
        let mut bitmaps = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix(BITMAP_PREFIX));
            let Some(node) = number.and_then(|n| n.parse().ok()).and_then(NodeNumber::new) else { continue };
            let bytes = fs::read(self.bitmap_path(node))?;
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
        self.log.write_all_at(image, (slot * activity_log::SLOT_LEN) as u64)?;
        self.log.sync_data()
    }

    /// Writes pages of the bitmap for `node`.
    ///
    /// # Errors
    /// As the system reports them; the slots are then in doubt.
    pub fn write_pages(&self, node: NodeNumber, pages: &[PageImage]) -> io::Result<()> {
        let path = self.bitmap_path(node);
        let (file, new) = match File::options().write(true).open(&path) {
            Ok(file) => (file, false),
            Err(e) if e.kind() == io::ErrorKind::NotFound => (File::create_new(&path)?, true),
            Err(e) => return Err(e),
        };
        for (slot, image) in pages {
            file.write_all_at(&**image, (slot * bitmap::PAGE_LEN) as u64)?;
        }
        file.sync_data()?;
        if new { sync_directory(&self.folder) } else { Ok(()) }
    }

    /// Removes the bitmap for `node`; none is no error.
    ///
    /// # Errors
    /// As the system reports them.
    pub fn drop_bitmap(&self, node: NodeNumber) -> io::Result<()> {
        match fs::remove_file(self.bitmap_path(node)) {
            Ok(()) => sync_directory(&self.folder),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e),
        }
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
                self.log.write_all_at(&[0; 2 * activity_log::SLOT_LEN], 0)?;
                ActivityLog::new(vec![me])
            }
        };
        for entry in fs::read_dir(&self.folder)? {
            let name = entry?.file_name();
            if name.to_str().is_some_and(|name| name.starts_with(BITMAP_PREFIX)) {
                fs::remove_file(self.folder.join(name))?;
            }
        }
        sync_directory(&self.folder)?;
        let (slot, image) = log.image(self.volume, crc32c::crc32c_append);
        self.write_log(slot, &image)
    }

    fn bitmap_path(&self, node: NodeNumber) -> PathBuf {
        self.folder.join(format!("{BITMAP_PREFIX}{}", node.get()))
    }
}

/// Fills `slot`; what the file lacks stays zero.
fn read_slot(file: &File, slot: &mut [u8], offset: usize) -> io::Result<()> {
    let mut filled = 0;
    while let Some(rest) = slot.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, (offset + filled) as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_replica::span::Span;

    const VOLUME: VolumeId = VolumeId([4; 16]);

    fn node(n: u32) -> NodeNumber {
        NodeNumber::new(n).unwrap()
    }

    fn shape() -> Shape {
        Shape::new(1 << 20, 512).unwrap()
    }

    fn made() -> (tempfile::TempDir, Metadata) {
        let dir = tempfile::tempdir().unwrap();
        Metadata::create(dir.path(), VOLUME, ActivityLog::new(vec![node(1), node(2)])).unwrap();
        let metadata = Metadata::open(dir.path(), VOLUME).unwrap();
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
        fs::remove_file(dir.path().join(LOG_FILE)).unwrap();
        let metadata = Metadata::open(dir.path(), VOLUME).unwrap();
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
