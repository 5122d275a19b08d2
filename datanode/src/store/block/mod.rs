//! A pool that is one block device, partition or large file, past the page cache (O_DIRECT), with a layout of its own: self-contained, so that
//! the device can be carried to another machine. `docs/stores.md` draws it and says why it is so.
//!
//! | Looking for | Module |
//! |---|---|
//! | where things lie, and the header | [`layout`] |
//! | the device itself | [`medium`] |
//! | which extent belongs to whom | [`table`] |
//! | a replica's data | [`store`] |
//! | a replica's bookkeeping | [`place`] |
//!
//! Invariants: a device that holds anything else is never written to; a replica exists from the moment when the table on the medium names its
//! metadata extent, and until it does not; extents of replicas that do not exist are free.

mod layout;
pub(super) mod medium;
mod place;
#[cfg(test)]
mod power_tests;
mod store;
mod table;
#[cfg(test)]
pub(super) mod tests;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::Path;
use std::sync::Arc;

use holdfast_replica::ids::{ClusterId, VolumeId};
use parking_lot::Mutex;

use self::layout::{EXTENT, EXTENTS_MIN, Found, GUARD, Header, Layout, SLOT};
use self::medium::{Disk, Medium};
use self::place::Place;
use self::store::{BlockStore, Device, Map};
use self::table::{DATA, METADATA, Part, Table};
use super::bookkeeping::Bookkeeping;
use super::pool::{Backend, Fill, PoolError, Space};
use super::replica::{ReplicaError, ReplicaShape};
use super::{Store, StoreError};

/// Extents that are given up in one step.
const RELEASED_AT_ONCE: usize = 16 * 1024;

/// See the module's invariants.
#[derive(Debug)]
pub(super) struct BlockPool {
    device: Arc<Device>,
    replicas: Mutex<BTreeMap<VolumeId, Known>>,
}

/// A replica that exists.
#[derive(Clone, Debug)]
struct Known {
    /// Its metadata extent.
    metadata: u32,
    map: Arc<Map>,
}

impl BlockPool {
    /// Takes the device for `node` of `cluster`. One that is blank is made a pool.
    pub(super) fn open(path: &Path, cluster: ClusterId, node: &str) -> Result<BlockPool, PoolError> {
        let place = format!("device {}", path.display());
        let disk = match Disk::open(path) {
            Ok(disk) => disk,
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy => return Err(PoolError::Busy { place }),
            Err(error) => return Err(PoolError::Io { place, action: "open", error }),
        };
        BlockPool::open_on(Arc::new(disk), &place, cluster, node)
    }

    pub(super) fn open_on(
        medium: Arc<dyn Medium>,
        place: &str,
        cluster: ClusterId,
        node: &str,
    ) -> Result<BlockPool, PoolError> {
        let place = || place.to_owned();
        let failed = |action| move |error| PoolError::Io { place: place(), action, error };
        let layout = Layout::of(medium.size())
            .ok_or_else(|| PoolError::TooSmall { place: place(), bytes_min: (EXTENTS_MIN + 3) * EXTENT })?;
        let own = Header { cluster, node: node.to_owned(), layout };
        let header = match read_headers(&*medium, &own).map_err(failed("read its headers"))? {
            Headers::Pool(header) => header,
            Headers::Blank => {
                tracing::info!(device = place(), "making a pool of it");
                medium.reserve().map_err(failed("reserve room for all of the file"))?;
                format(&*medium, &own).map_err(failed("make it a pool"))?;
                own.clone()
            }
            Headers::Alien => return Err(PoolError::NotBlank { place: place() }),
            Headers::Damaged => {
                return Err(PoolError::Damaged { place: place(), what: "its headers are damaged".into() });
            }
            Headers::Version(version) => return Err(PoolError::Version { place: place(), version }),
        };
        if header.cluster != cluster || header.node != node {
            return Err(PoolError::Foreign {
                place: place(),
                found: format!("cluster {}, node {}", header.cluster, header.node),
                expected: format!("cluster {cluster}, node {node}"),
            });
        }
        let layout = header.layout;
        if layout.device > medium.size() {
            let what = format!("it was made with {} bytes and has {}", layout.device, medium.size());
            return Err(PoolError::Damaged { place: place(), what });
        }
        let table = match Table::load(Arc::clone(&medium), layout) {
            Ok(table) => table,
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                return Err(PoolError::Damaged { place: place(), what: e.to_string() });
            }
            Err(error) => return Err(failed("read its allocation table")(error)),
        };
        let device = Arc::new(Device { medium, layout, table });
        let replicas = replicas_of(&device).map_err(failed("look at its replicas"))?;
        Ok(BlockPool { device, replicas: Mutex::new(replicas) })
    }

    fn known(&self, volume: VolumeId) -> io::Result<Known> {
        self.replicas.lock().get(&volume).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Takes extents and makes them zero, for a replica that is to have all of its room from the beginning.
    fn take_zeroed(&self, count: u64, taken: &mut Vec<u32>) -> Result<(), StoreError> {
        for _ in 0..count {
            let extent = self.device.table.take()?;
            taken.push(extent);
            let at = self.device.layout.extent_at(extent);
            self.device.medium.zero(at, EXTENT).map_err(super::file::classify)?;
        }
        Ok(())
    }
}

impl Backend for BlockPool {
    fn space(&self) -> io::Result<Space> {
        Ok(Space {
            capacity_bytes: self.device.layout.extents.saturating_mul(EXTENT),
            free_bytes: self.device.table.available(),
        })
    }

    fn replicas(&self) -> io::Result<Vec<VolumeId>> {
        Ok(self.replicas.lock().keys().copied().collect())
    }

    fn has_replica(&self, volume: VolumeId) -> bool {
        self.replicas.lock().contains_key(&volume)
    }

    fn create(&self, volume: VolumeId, shape: &ReplicaShape, fill: Fill<'_>) -> Result<(), ReplicaError> {
        if self.has_replica(volume) {
            return Err(ReplicaError::Io(io::ErrorKind::AlreadyExists.into()));
        }
        let table = &self.device.table;
        let metadata = table.take()?;
        let mut taken = Vec::new();
        let make = |taken: &mut Vec<u32>| -> Result<(), ReplicaError> {
            fill(&Place::create(Arc::clone(&self.device), metadata, volume)?)?;
            let count = if shape.thin { 0 } else { shape.bytes().div_ceil(EXTENT) };
            Ok(self.take_zeroed(count, taken)?)
        };
        if let Err(error) = make(&mut taken) {
            taken.iter().chain([&metadata]).for_each(|extent| table.give_back(*extent));
            return Err(error);
        }
        let replica = table.new_replica();
        let map = Arc::new(Map::new(replica));
        for (extent, index) in taken.into_iter().zip(0..) {
            table.assign(extent, Part { replica, stream: DATA, index });
            map.set(index, Some(extent));
        }
        table.assign(metadata, Part { replica, stream: METADATA, index: 0 });
        table.flush()?;
        self.replicas.lock().insert(volume, Known { metadata, map });
        Ok(())
    }

    fn bookkeeping(&self, volume: VolumeId) -> io::Result<Box<dyn Bookkeeping>> {
        Ok(Box::new(Place::open(Arc::clone(&self.device), self.known(volume)?.metadata)?))
    }

    fn store(&self, volume: VolumeId, size: u64) -> io::Result<Box<dyn Store>> {
        let known = self.known(volume)?;
        Ok(Box::new(BlockStore::new(Arc::clone(&self.device), known.map, size)))
    }

    fn remove(&self, volume: VolumeId) -> io::Result<()> {
        let failed = io::Error::other::<StoreError>;
        let table = &self.device.table;
        // After a failure nobody knows whether one is still there.
        table.check().map_err(failed)?;
        let Some(known) = self.replicas.lock().remove(&volume) else { return Ok(()) };
        // From here on it does not exist, whatever else is still there.
        table.release(&[known.metadata]);
        table.flush().map_err(failed)?;
        for extents in known.map.remove().chunks(RELEASED_AT_ONCE) {
            table.release(extents);
            table.flush().map_err(failed)?;
        }
        Ok(())
    }
}

/// What the places of the two headers say together.
enum Headers {
    Pool(Header),
    Blank,
    Alien,
    Damaged,
    Version(u16),
}

fn read_headers(medium: &dyn Medium, own: &Header) -> io::Result<Headers> {
    let mut slot = [0; SLOT];
    medium.read(0, &mut slot)?;
    let first = Header::look(&slot, &own.encode(0));
    // A device may have grown since: then only the first one says where the second is.
    let tail_at = match &first {
        Found::Header(header) => header.layout.tail_at,
        _ => own.layout.tail_at,
    };
    if tail_at.saturating_add(SLOT as u64) > medium.size() {
        return Ok(match first {
            Found::Header(header) => Headers::Pool(header),
            _ => Headers::Damaged,
        });
    }
    medium.read(tail_at, &mut slot)?;
    let second = Header::look(&slot, &own.encode(1));
    Ok(match (first, second) {
        (Found::Version(version), _) | (_, Found::Version(version)) => Headers::Version(version),
        (Found::Header(a), Found::Header(b)) if a != b => Headers::Damaged,
        (Found::Header(header), Found::Header(_)) => Headers::Pool(header),
        (Found::Header(header), Found::Unfinished) | (Found::Unfinished, Found::Header(header)) => {
            Headers::Pool(header)
        }
        (Found::Header(header), _) | (_, Found::Header(header)) => {
            tracing::warn!(
                "one of the two headers of the pool is damaged: has something else written to the device?"
            );
            Headers::Pool(header)
        }
        (Found::Damaged, _) | (_, Found::Damaged) => Headers::Damaged,
        (Found::Unfinished, Found::Unfinished) if is_blank(medium, own)? => Headers::Blank,
        _ => Headers::Alien,
    })
}

/// True if nothing lies at either end of the device, where every file system, volume manager and partition table leaves its mark. The places of
/// the headers have been looked at.
fn is_blank(medium: &dyn Medium, own: &Header) -> io::Result<bool> {
    let mut bytes = vec![0; GUARD as usize];
    for at in [0, own.layout.tail_at] {
        medium.read(at, &mut bytes)?;
        if !bytes.get(SLOT..).is_some_and(is_zero) {
            return Ok(false);
        }
    }
    let rest = medium.size().saturating_sub(own.layout.tail_at + GUARD);
    let mut bytes = vec![0; rest as usize];
    medium.read(own.layout.tail_at + GUARD, &mut bytes)?;
    Ok(is_zero(&bytes))
}

fn is_zero(bytes: &[u8]) -> bool {
    let (slots, rest) = bytes.as_chunks::<SLOT>();
    slots.iter().all(|slot| *slot == [0; SLOT]) && rest.iter().all(|byte| *byte == 0)
}

fn format(medium: &dyn Medium, own: &Header) -> io::Result<()> {
    Table::format(medium, &own.layout)?;
    // The headers last: until then it is as blank as before.
    for (number, at) in [(1, own.layout.tail_at), (0, 0)] {
        medium.write(at, &*own.encode(number), false)?;
        medium.flush()?;
    }
    Ok(())
}

/// The replicas that the table knows. What belongs to none, and what two extents claim, is given up.
fn replicas_of(device: &Arc<Device>) -> io::Result<BTreeMap<VolumeId, Known>> {
    let entries = device.table.entries();
    let mut newest: HashMap<Part, (u64, u32)> = HashMap::new();
    for (extent, entry) in &entries {
        let place = newest.entry(entry.part).or_insert((entry.sequence, *extent));
        *place = (*place).max((entry.sequence, *extent));
    }
    let mut maps: HashMap<u64, Known> = HashMap::new();
    for (part, (_, extent)) in &newest {
        if part.stream == METADATA {
            let map = Arc::new(Map::new(part.replica));
            maps.insert(part.replica, Known { metadata: *extent, map });
        }
    }
    let mut leftovers = Vec::new();
    for (extent, entry) in entries {
        let Part { replica, stream, index } = entry.part;
        let counts = newest.get(&entry.part).is_some_and(|(_, winner)| *winner == extent);
        match maps.get(&replica).filter(|_| counts) {
            Some(known) if stream == DATA => {
                known.map.set(index, Some(extent));
            }
            Some(_) => {}
            None => leftovers.push(extent),
        }
    }
    if !leftovers.is_empty() {
        tracing::info!(extents = leftovers.len(), "giving up what a stop left behind");
        device.table.release(&leftovers);
        device.table.flush().map_err(io::Error::other)?;
    }
    let mut replicas = BTreeMap::new();
    for known in maps.into_values() {
        match Place::open(Arc::clone(device), known.metadata) {
            Ok(place) => {
                let volume = place.volume();
                if replicas.insert(volume, known).is_some() {
                    let text = format!("it holds two replicas of volume {volume}");
                    return Err(io::Error::new(io::ErrorKind::InvalidData, text));
                }
            }
            // Kept, since nobody knows whose it is.
            Err(error) => tracing::error!(%error, extent = known.metadata, "a replica cannot be used"),
        }
    }
    Ok(replicas)
}
