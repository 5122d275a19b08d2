//! A medium that loses power, and tests of what a block pool makes of the devices that it is given.

use std::fs::File;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::*;

pub(in crate::store) const CLUSTER: ClusterId = ClusterId([1; 16]);
const MEBI: u64 = 1024 * 1024;
const TEAR: usize = 512;

#[derive(Debug)]
struct Bytes {
    seen: Vec<u8>,
    durable: Vec<u8>,
    /// Sectors of 512 bytes in which the two may differ.
    pending: Vec<u32>,
    operations: u64,
    cut_at: u64,
    flush_fails: bool,
}

/// A device with a cache of its own. Clones are the same one.
#[derive(Clone, Debug)]
pub(in crate::store) struct Platter {
    bytes: Arc<Mutex<Bytes>>,
    sector: u64,
}

impl Platter {
    pub(in crate::store) fn new(size: u64, sector: u64) -> Platter {
        let zeroes = vec![0; size as usize];
        let bytes = Bytes {
            durable: zeroes.clone(),
            seen: zeroes,
            pending: Vec::new(),
            operations: 0,
            cut_at: u64::MAX,
            flush_fails: false,
        };
        Platter { bytes: Arc::new(Mutex::new(bytes)), sector }
    }

    /// The power goes within the operation of this number (from 1): writes, zeroings and flushes count.
    pub(super) fn cut_at(&self, operation: u64) {
        let mut bytes = self.bytes.lock();
        (bytes.operations, bytes.cut_at) = (0, operation);
    }

    pub(super) fn is_cut(&self) -> bool {
        let bytes = self.bytes.lock();
        bytes.operations >= bytes.cut_at
    }

    /// Another one with the same content.
    pub(super) fn copy(&self) -> Platter {
        let bytes = self.bytes.lock();
        let copy = Bytes {
            seen: bytes.seen.clone(),
            durable: bytes.durable.clone(),
            pending: bytes.pending.clone(),
            ..*bytes
        };
        Platter { bytes: Arc::new(Mutex::new(copy)), sector: self.sector }
    }

    /// The power comes back: of what was not flushed each sector is there or not, as `keeps` says.
    pub(super) fn revive(&self, mut keeps: impl FnMut() -> bool) {
        let mut bytes = self.bytes.lock();
        let Bytes { seen, durable, pending, .. } = &mut *bytes;
        for sector in pending.drain(..) {
            let range = sector as usize * TEAR..(sector as usize + 1) * TEAR;
            if keeps() {
                durable[range.clone()].copy_from_slice(&seen[range.clone()]);
            }
            seen[range.clone()].copy_from_slice(&durable[range]);
        }
        (bytes.operations, bytes.cut_at) = (0, u64::MAX);
    }

    pub(super) fn fail_flushes(&self) {
        self.bytes.lock().flush_fails = true;
    }

    fn change(&self, offset: u64, len: u64, change: impl FnOnce(&mut [u8])) -> io::Result<()> {
        assert!((offset | len).is_multiple_of(self.sector), "{offset} + {len} is not in whole sectors");
        let mut bytes = self.bytes.lock();
        step(&mut bytes)?;
        change(&mut bytes.seen[offset as usize..(offset + len) as usize]);
        bytes.pending.extend((offset / TEAR as u64) as u32..((offset + len) / TEAR as u64) as u32);
        if bytes.operations == bytes.cut_at { Err(gone()) } else { Ok(()) }
    }
}

fn gone() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

fn step(bytes: &mut Bytes) -> io::Result<()> {
    if bytes.operations >= bytes.cut_at {
        return Err(gone());
    }
    bytes.operations += 1;
    Ok(())
}

impl Medium for Platter {
    fn size(&self) -> u64 {
        self.bytes.lock().seen.len() as u64
    }

    fn sector(&self) -> u64 {
        self.sector
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        assert!((offset | buffer.len() as u64).is_multiple_of(self.sector));
        let bytes = self.bytes.lock();
        if bytes.operations >= bytes.cut_at {
            return Err(gone());
        }
        buffer.copy_from_slice(&bytes.seen[offset as usize..][..buffer.len()]);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8], durable: bool) -> io::Result<()> {
        self.change(offset, data.len() as u64, |bytes| bytes.copy_from_slice(data))?;
        if durable {
            let mut bytes = self.bytes.lock();
            bytes.durable[offset as usize..][..data.len()].copy_from_slice(data);
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let mut bytes = self.bytes.lock();
        step(&mut bytes)?;
        if bytes.operations == bytes.cut_at || bytes.flush_fails {
            return Err(gone());
        }
        let Bytes { seen, durable, pending, .. } = &mut *bytes;
        for sector in pending.drain(..) {
            let range = sector as usize * TEAR..(sector as usize + 1) * TEAR;
            durable[range.clone()].copy_from_slice(&seen[range]);
        }
        Ok(())
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 { Ok(()) } else { self.change(offset, len, |bytes| bytes.fill(0)) }
    }

    fn discard(&self, offset: u64, len: u64) {
        // What a device gives afterwards means nothing.
        let _ = self.change(offset, len, |bytes| bytes.fill(0xdd));
    }
}

pub(in crate::store) fn open_on(platter: &Platter) -> Result<BlockPool, PoolError> {
    BlockPool::open_on(Arc::new(platter.clone()), "device test", CLUSTER, "node-1")
}

fn file(len: u64) -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    File::create(&path).unwrap().set_len(len).unwrap();
    (dir, path)
}

#[test]
fn blank_device_becomes_a_pool_once_and_is_held() {
    let (_dir, path) = file(64 * MEBI);
    let pool = BlockPool::open(&path, CLUSTER, "node-1").unwrap();
    assert_eq!(pool.space().unwrap(), Space { capacity_bytes: 14 * EXTENT, free_bytes: 14 * EXTENT });
    let error = BlockPool::open(&path, CLUSTER, "node-1").unwrap_err();
    assert!(matches!(error, PoolError::Busy { .. }), "{error}");
    drop(pool);
    BlockPool::open(&path, CLUSTER, "node-1").unwrap();
    for (cluster, node) in [(ClusterId([9; 16]), "node-1"), (CLUSTER, "node-2")] {
        let error = BlockPool::open(&path, cluster, node).unwrap_err();
        assert!(matches!(error, PoolError::Foreign { .. }), "{error}");
    }
}

#[test]
fn device_that_holds_anything_else_is_left_as_it_is() {
    // Where partition tables, file systems, volume managers and arrays leave their marks.
    for at in [0, 510, 1024, 4096, 65536, MEBI - 512, 64 * MEBI - 512, 64 * MEBI - 65536, 63 * MEBI] {
        let platter = Platter::new(64 * MEBI, 512);
        platter.write(at - at % 512, &[0x53; 512], true).unwrap();
        let before = platter.bytes.lock().seen.clone();
        let error = open_on(&platter).unwrap_err();
        assert!(matches!(error, PoolError::NotBlank { .. }), "{at}: {error}");
        assert!(platter.bytes.lock().seen == before);
    }
    let platter = Platter::new(8 * MEBI, 512);
    assert!(matches!(open_on(&platter), Err(PoolError::TooSmall { .. })));
    assert!(BlockPool::open(Path::new("/dev/null"), CLUSTER, "node-1").is_err());
}

#[test]
fn one_damaged_header_is_passed_over_and_two_stop_the_pool() {
    let platter = Platter::new(64 * MEBI, 512);
    let layout = open_on(&platter).unwrap().device.layout;
    let damage = |at: u64| {
        let mut sector = [0; 512];
        platter.read(at, &mut sector).unwrap();
        sector[40] ^= 0xff;
        platter.write(at, &sector, true).unwrap();
    };
    damage(layout.tail_at);
    open_on(&platter).unwrap();
    damage(0);
    assert!(matches!(open_on(&platter), Err(PoolError::Damaged { .. })));
    damage(layout.tail_at);
    open_on(&platter).unwrap();
    damage(0);
    // A page of the table in one slot, then in both.
    damage(Layout::page_at(0, 0));
    open_on(&platter).unwrap();
    damage(Layout::page_at(0, 1));
    assert!(matches!(open_on(&platter), Err(PoolError::Damaged { .. })));
}

#[test]
fn device_that_has_shrunk_is_refused_and_one_that_has_grown_is_not() {
    let (_dir, path) = file(64 * MEBI);
    drop(BlockPool::open(&path, CLUSTER, "node-1").unwrap());
    let resize = |len| File::options().write(true).open(&path).unwrap().set_len(len).unwrap();
    resize(80 * MEBI);
    let pool = BlockPool::open(&path, CLUSTER, "node-1").unwrap();
    assert_eq!(pool.space().unwrap().capacity_bytes, 14 * EXTENT);
    drop(pool);
    resize(48 * MEBI);
    assert!(matches!(BlockPool::open(&path, CLUSTER, "node-1"), Err(PoolError::Damaged { .. })));
}

#[test]
fn after_a_failed_flush_nothing_of_the_pool_is_served() {
    let platter = Platter::new(64 * MEBI, 512);
    let pool = open_on(&platter).unwrap();
    let (one, two) = (VolumeId([1; 16]), VolumeId([2; 16]));
    let shape = ReplicaShape { block_size: 512, blocks: 8192, thin: true, checksums: false };
    for volume in [one, two] {
        pool.create(volume, &shape, &|_| Ok(())).unwrap();
    }
    let (a, b) = (pool.store(one, shape.bytes()).unwrap(), pool.store(two, shape.bytes()).unwrap());
    platter.fail_flushes();
    assert!(matches!(a.flush(), Err(StoreError::Medium(_))));
    // It is one device: what the other one had in its cache may be lost as well.
    let mut bytes = [0; 512];
    assert!(matches!(b.read_at(0, &mut bytes, super::super::Wait::Allowed), Err(StoreError::OutOfService)));
    assert!(matches!(b.flush(), Err(StoreError::OutOfService)));
    assert!(pool.bookkeeping(one).unwrap().read(crate::store::bookkeeping::Area::Log).is_err());
    assert!(pool.remove(one).is_err() && pool.create(VolumeId([3; 16]), &shape, &|_| Ok(())).is_err());
}

#[test]
fn replica_with_all_of_its_room_takes_it_at_once_or_is_not_made() {
    let platter = Platter::new(64 * MEBI, 512);
    let pool = open_on(&platter).unwrap();
    let shape = |extents: u64| ReplicaShape {
        block_size: 512,
        blocks: extents * EXTENT / 512,
        thin: false,
        checksums: false,
    };
    pool.create(VolumeId([1; 16]), &shape(5), &|_| Ok(())).unwrap();
    assert_eq!(pool.space().unwrap().free_bytes, 8 * EXTENT);
    let refused = pool.create(VolumeId([2; 16]), &shape(8), &|_| Ok(()));
    assert!(matches!(refused, Err(ReplicaError::Store(StoreError::NoSpace))));
    assert_eq!(pool.space().unwrap().free_bytes, 8 * EXTENT, "what was refused took nothing");
    let store = pool.store(VolumeId([1; 16]), 5 * EXTENT).unwrap();
    let runs = store.allocation(0, 5 * EXTENT, 8).unwrap();
    assert_eq!(runs, [super::super::Run { len: 5 * EXTENT, allocated: true }]);
    drop(pool);
    let pool = open_on(&platter).unwrap();
    assert_eq!(pool.space().unwrap().free_bytes, 8 * EXTENT);
}
