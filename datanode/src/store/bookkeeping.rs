//! Where a replica's bookkeeping lies: its superblock, its activity log, its intents, and a bitmap for each absent replica.
//!
//! What the bytes mean is the matter of [`super::metadata`]; a pool says where they are. So a replica is the same on a directory, on
//! a device and in memory.
//!
//! Invariants: what [`Bookkeeping::write`] was given is on the medium when it returns, and so is the area's existence; what was
//! never written reads as zeroes; a failed write leaves the bytes that it was given in doubt, and no others.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use holdfast_replica::ids::NodeNumber;

/// A part of the bookkeeping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Area {
    /// Two slots: identity, shape, promised epoch.
    Superblock,
    /// Two slots: the activity log.
    Log,
    /// An atomic write that is under way: one of [`INTENTS`](super::intents::INTENTS), each for one.
    Intent(u8),
    /// Two slots for each page: what this node lacks. The only kind that comes and goes.
    Bitmap(NodeNumber),
}

/// The bookkeeping of one replica. See the module's invariants. Callers write one area at a time.
pub trait Bookkeeping: Send + Sync + std::fmt::Debug {
    /// All bytes of an area, up to the last one that was ever written or further.
    ///
    /// # Errors
    /// As the system reports them.
    fn read(&self, area: Area) -> io::Result<Vec<u8>>;

    /// At most its first `len` bytes.
    ///
    /// # Errors
    /// As the system reports them.
    fn read_start(&self, area: Area, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = self.read(area)?;
        bytes.truncate(len);
        Ok(bytes)
    }

    /// Writes bytes at offsets of an area, all of them or in doubt. An area that is not there is made, all zero.
    ///
    /// # Errors
    /// As the system reports them.
    fn write(&self, area: Area, parts: &[(u64, &[u8])]) -> io::Result<()>;

    /// Removes a bitmap; none is no error.
    ///
    /// # Errors
    /// As the system reports them.
    fn remove_bitmap(&self, node: NodeNumber) -> io::Result<()>;

    /// The nodes for which there is a bitmap.
    ///
    /// # Errors
    /// As the system reports them.
    fn bitmaps(&self) -> io::Result<Vec<NodeNumber>>;
}

/// Bookkeeping that ends with the process.
#[derive(Debug, Default)]
pub struct InMemory {
    areas: Mutex<BTreeMap<Area, Vec<u8>>>,
}

impl InMemory {
    fn areas(&self) -> MutexGuard<'_, BTreeMap<Area, Vec<u8>>> {
        self.areas.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bookkeeping for InMemory {
    fn read(&self, area: Area) -> io::Result<Vec<u8>> {
        Ok(self.areas().get(&area).cloned().unwrap_or_default())
    }

    fn write(&self, area: Area, parts: &[(u64, &[u8])]) -> io::Result<()> {
        let mut areas = self.areas();
        let bytes = areas.entry(area).or_default();
        for (offset, part) in parts {
            let offset = usize::try_from(*offset).map_err(io::Error::other)?;
            let end = offset.checked_add(part.len()).ok_or(io::ErrorKind::InvalidInput)?;
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            if let Some(to) = bytes.get_mut(offset..end) {
                to.copy_from_slice(part);
            }
        }
        Ok(())
    }

    fn remove_bitmap(&self, node: NodeNumber) -> io::Result<()> {
        self.areas().remove(&Area::Bitmap(node));
        Ok(())
    }

    fn bitmaps(&self) -> io::Result<Vec<NodeNumber>> {
        let areas = self.areas();
        let bitmap = |area: &Area| match area {
            Area::Bitmap(node) => Some(*node),
            Area::Superblock | Area::Log | Area::Intent(_) => None,
        };
        Ok(areas.keys().filter_map(bitmap).collect())
    }
}
