//! The bookkeeping of one replica on a block pool: fixed places in its metadata extent, and a list of which bitmaps there are.
//!
//! The list has two slots that are written in turn, and names the volume as well.
//!
//! Invariants: a bitmap exists from the moment when the list names it, and its place holds nothing older; a failed flush takes the whole
//! pool out of service.

use std::io;
use std::sync::Arc;

use holdfast_replica::ids::{NodeNumber, VolumeId};
use holdfast_replica::limits::BITMAPS_MAX;
use parking_lot::Mutex;

use super::layout::{
    BITMAP_LEN, BITMAPS_AT, INDEX_AT, INDEX_LEN, INTENT_LEN, INTENTS_AT, LOG_AT, LOG_LEN, SLOT,
    SUPERBLOCK_AT, SUPERBLOCK_LEN, array, is_sealed, put, seal,
};
use super::store::Device;
use crate::store::StoreError;
use crate::store::bookkeeping::{Area, Bookkeeping};
use crate::store::intents;

const MAGIC: [u8; 8] = *b"HFRINDEX";
const VERSION: u16 = 1;

/// Which bitmaps there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Index {
    pub(super) volume: VolumeId,
    sequence: u64,
    bitmaps: [Option<NodeNumber>; BITMAPS_MAX],
}

impl Index {
    fn slot(&self) -> u64 {
        self.sequence % 2
    }

    fn encode(&self) -> Box<[u8; SLOT]> {
        let mut slot = Box::new([0; SLOT]);
        put(&mut slot, 0, &MAGIC);
        put(&mut slot, 8, &VERSION.to_be_bytes());
        put(&mut slot, 16, &self.volume.0);
        put(&mut slot, 32, &self.sequence.to_be_bytes());
        for (at, node) in self.bitmaps.iter().enumerate() {
            put(&mut slot, 40 + 2 * at, &node.map_or(0, NodeNumber::get).to_be_bytes());
        }
        seal(&mut slot);
        slot
    }

    fn decode(slot: &[u8; SLOT]) -> Option<Index> {
        if !slot.starts_with(&MAGIC) || !is_sealed(slot) || u16::from_be_bytes(array(slot, 8)) != VERSION {
            return None;
        }
        let bitmaps = std::array::from_fn(|at| {
            NodeNumber::new(u32::from(u16::from_be_bytes(array(slot, 40 + 2 * at))))
        });
        let sequence = u64::from_be_bytes(array(slot, 32));
        Some(Index { volume: VolumeId(array(slot, 16)), sequence, bitmaps })
    }
}

/// See the module's invariants.
#[derive(Debug)]
pub(super) struct Place {
    device: Arc<Device>,
    /// The metadata extent.
    extent: u32,
    index: Mutex<Index>,
}

impl Place {
    /// Makes an extent that was taken ready for the bookkeeping of `volume`. Durable when it returns.
    pub(super) fn create(device: Arc<Device>, extent: u32, volume: VolumeId) -> io::Result<Place> {
        let index = Index { volume, sequence: 1, bitmaps: [None; BITMAPS_MAX] };
        let place = Place { device, extent, index: Mutex::new(index.clone()) };
        place.device.medium.zero(place.at(0), BITMAPS_AT)?;
        // What the extent held for others before must not be taken for intents.
        for number in 0..intents::INTENTS {
            place.device.medium.zero(place.at(intent_place(number).0), SLOT as u64)?;
        }
        place.write_index(&index)?;
        Ok(place)
    }

    /// Finds it again. `InvalidData` if the list is damaged in both slots.
    pub(super) fn open(device: Arc<Device>, extent: u32) -> io::Result<Place> {
        let mut bytes = vec![0; INDEX_LEN as usize];
        device.medium.read(device.layout.extent_at(extent).saturating_add(INDEX_AT), &mut bytes)?;
        let (slots, _) = bytes.as_chunks::<SLOT>();
        let index = slots.iter().filter_map(Index::decode).max_by_key(|index| index.sequence);
        let index = index.ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "the bookkeeping of the replica is damaged")
        })?;
        Ok(Place { device, extent, index: Mutex::new(index) })
    }

    /// Whose replica it is.
    pub(super) fn volume(&self) -> VolumeId {
        self.index.lock().volume
    }

    fn at(&self, from: u64) -> u64 {
        self.device.layout.extent_at(self.extent).saturating_add(from)
    }

    fn flush(&self) -> io::Result<()> {
        self.device.medium.flush().inspect_err(|error| self.device.table.fail(error))
    }

    fn write_index(&self, index: &Index) -> io::Result<()> {
        let at = self.at(INDEX_AT + index.slot() * SLOT as u64);
        self.device.medium.write(at, &*index.encode(), false)?;
        self.flush()
    }

    fn change_index(&self, index: &mut Index, at: usize, node: Option<NodeNumber>) -> io::Result<()> {
        let mut next = index.clone();
        next.sequence = next.sequence.saturating_add(1);
        *next.bitmaps.get_mut(at).ok_or(io::ErrorKind::InvalidInput)? = node;
        self.write_index(&next)?;
        *index = next;
        Ok(())
    }

    fn check(&self) -> io::Result<()> {
        self.device.table.check().map_err(io::Error::other)
    }
}

/// Where an area lies and how long it is; `None` for a bitmap that the list does not name.
fn place_of(index: &Index, area: Area) -> Option<(u64, u64)> {
    match area {
        Area::Superblock => Some((SUPERBLOCK_AT, SUPERBLOCK_LEN)),
        Area::Log => Some((LOG_AT, LOG_LEN)),
        Area::Intent(number) => (number < intents::INTENTS).then(|| intent_place(number)),
        Area::Bitmap(node) => index.bitmaps.iter().position(|n| *n == Some(node)).map(bitmap_place),
    }
}

fn intent_place(number: u8) -> (u64, u64) {
    (INTENTS_AT + u64::from(number) * INTENT_LEN, INTENT_LEN)
}

fn bitmap_place(at: usize) -> (u64, u64) {
    (BITMAPS_AT + at as u64 * BITMAP_LEN, BITMAP_LEN)
}

impl Bookkeeping for Place {
    fn read(&self, area: Area) -> io::Result<Vec<u8>> {
        self.read_start(area, usize::MAX)
    }

    fn read_start(&self, area: Area, len: usize) -> io::Result<Vec<u8>> {
        self.check()?;
        let index = self.index.lock();
        let Some((at, whole)) = place_of(&index, area) else { return Ok(Vec::new()) };
        let mut bytes = vec![0; len.min(whole as usize)];
        self.device.medium.read(self.at(at), &mut bytes)?;
        Ok(bytes)
    }

    fn write(&self, area: Area, parts: &[(u64, &[u8])]) -> io::Result<()> {
        self.check()?;
        let mut index = self.index.lock();
        let (place, fresh) = match (place_of(&index, area), area) {
            (Some(place), _) => (place, None),
            (None, Area::Bitmap(node)) => {
                let free = index.bitmaps.iter().position(Option::is_none);
                let at = free.ok_or_else(|| io::Error::other(StoreError::NoSpace))?;
                let place = bitmap_place(at);
                // Slots of an earlier bitmap must not be taken for this one's.
                self.device.medium.zero(self.at(place.0), place.1)?;
                (place, Some((at, node)))
            }
            (None, _) => return Err(io::ErrorKind::InvalidInput.into()),
        };
        for (offset, part) in parts {
            let end = offset.checked_add(part.len() as u64);
            if end.is_none_or(|end| end > place.1) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            self.device.medium.write(self.at(place.0 + offset), part, false)?;
        }
        self.flush()?;
        match fresh {
            Some((at, node)) => self.change_index(&mut index, at, Some(node)),
            None => Ok(()),
        }
    }

    fn remove_bitmap(&self, node: NodeNumber) -> io::Result<()> {
        self.check()?;
        let mut index = self.index.lock();
        match index.bitmaps.iter().position(|n| *n == Some(node)) {
            Some(at) => self.change_index(&mut index, at, None),
            None => Ok(()),
        }
    }

    fn bitmaps(&self) -> io::Result<Vec<NodeNumber>> {
        Ok(self.index.lock().bitmaps.iter().flatten().copied().collect())
    }
}
