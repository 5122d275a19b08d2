//! A pool: where this node keeps replicas.
//!
//! What a pool is made of is the matter of its [`Backend`]; what a replica is, and whose, is the same on all of them.
//!
//! Invariants: one process at a time; a pool of another cluster or node is never touched; a replica appears whole or not at all,
//! and is removed only by [`Pool::remove_replica`], which the caller reaches only when the cluster's record says so.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_proto::state::PoolKind;
use holdfast_replica::activity_log::ActivityLog;
use holdfast_replica::epoch::Epoch;
use holdfast_replica::ids::{BootId, ClusterId, NodeNumber, VolumeId};
use holdfast_replica::superblock::Superblock;

use super::block::BlockPool;
use super::bookkeeping::Bookkeeping;
use super::checked::{CheckedStore, SidecarError};
use super::directory::Directory;
use super::layers::library::TakeError;
use super::memory::MemoryPool;
use super::metadata::Metadata;
use super::null::NullPool;
use super::replica::{Replica, ReplicaError, ReplicaIdentity, ReplicaShape, Stores};
use super::{Store, StoreError};
use crate::config;

/// Why a pool cannot be used, or a replica in it.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// Another process has it.
    #[error("pool {place} is in use by process {process}")]
    InUse {
        /// The directory or device.
        place: String,
        /// Number of the process, as it wrote it down itself.
        process: String,
    },
    /// It belongs to someone else.
    #[error("pool {place} belongs to {found}, not to {expected}")]
    Foreign {
        /// The directory or device.
        place: String,
        /// Whose it is.
        found: String,
        /// Who we are.
        expected: String,
    },
    /// The marker file cannot be understood.
    #[error("pool directory {} has a marker file that is not one of Holdfast", .directory.display())]
    Marker {
        /// The directory.
        directory: PathBuf,
    },
    /// The directory has other files in it and no marker: it is not taken over.
    #[error("pool directory {} is not empty and not a pool: name an empty one", .directory.display())]
    NotEmpty {
        /// The directory.
        directory: PathBuf,
    },
    /// Mounted, part of something else, or another process has it.
    #[error("pool {place} is mounted or in use by another process")]
    Busy {
        /// The device.
        place: String,
    },
    /// The device holds something else: it is not taken over.
    #[error(
        "pool {place} is not blank and not a pool; if nothing on it is needed, zero its first and last MiB"
    )]
    NotBlank {
        /// The device.
        place: String,
    },
    /// What the pool says of itself cannot be read.
    #[error("pool {place} is damaged: {what}")]
    Damaged {
        /// The device.
        place: String,
        /// What is wrong.
        what: String,
    },
    /// Made by a later version.
    #[error("pool {place} is of version {version}, which this program does not know")]
    Version {
        /// The device.
        place: String,
        /// As the header says.
        version: u16,
    },
    /// Too small to hold anything.
    #[error("pool {place} is too small: at least {bytes_min} bytes are needed")]
    TooSmall {
        /// The device.
        place: String,
        /// In bytes.
        bytes_min: u64,
    },
    /// The system refused.
    #[error("pool {place}: {action}: {error}")]
    Io {
        /// The directory or device.
        place: String,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        error: io::Error,
    },
}

/// Space of a pool, or of the file system that it lies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// In all, in bytes.
    pub capacity_bytes: u64,
    /// Free for us, in bytes.
    pub free_bytes: u64,
}

/// Another content of a replica, that lies beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Staged {
    /// Of the restore that it was made for, drawn as a volume's.
    pub id: VolumeId,
    /// The volume's, in which it was made. A later one says what becomes of it.
    pub epoch: Epoch,
}

/// Writes the bookkeeping of a replica that is being made.
pub(super) type Fill<'a> = &'a dyn Fn(&dyn Bookkeeping) -> io::Result<()>;

/// What a pool is made of. Calls may come from any thread; those for one volume come one after the other.
pub(super) trait Backend: Send + Sync + std::fmt::Debug {
    /// How full it is.
    fn space(&self) -> io::Result<Space>;

    /// The replicas in it, in order.
    fn replicas(&self) -> io::Result<Vec<VolumeId>>;

    /// True if there is a replica of this volume.
    fn has_replica(&self, volume: VolumeId) -> bool;

    /// True if the replica of a volume that has none here may begin with zeroes. `is_new`: the volume was never served before.
    fn may_begin_empty(&self, volume: VolumeId, is_new: bool) -> bool {
        let _ = volume;
        is_new
    }

    /// Makes a replica, all zero, with the bookkeeping that `fill` writes. A crash leaves a whole one or none; so does an error.
    /// `AlreadyExists` if there is one.
    fn create(&self, volume: VolumeId, shape: &ReplicaShape, fill: Fill<'_>) -> Result<(), ReplicaError>;

    /// Makes a replica that reads as `source`, of this pool, does now; nothing may be written to that meanwhile. Else as `create`.
    fn create_from(
        &self,
        _source: &dyn Store,
        _volume: VolumeId,
        _shape: &ReplicaShape,
        _fill: Fill<'_>,
    ) -> Result<(), TakeError> {
        Err(TakeError::Unsupported)
    }

    /// Makes another content for the replica of `volume`, beside it, that reads as `source`, of this pool, does now. Else as `create_from`.
    fn stage(
        &self,
        _source: &dyn Store,
        _volume: VolumeId,
        _shape: &ReplicaShape,
        _staged: &Staged,
        _fill: Fill<'_>,
    ) -> Result<(), TakeError> {
        Err(TakeError::Unsupported)
    }

    /// What lies beside a replica.
    fn staged(&self, _volume: VolumeId) -> io::Result<Option<Staged>> {
        Ok(None)
    }

    /// Ends that: with `keep` it takes the replica's place, else it is removed. None is no error; trying again is safe.
    fn settle(&self, _volume: VolumeId, _keep: bool) -> io::Result<()> {
        Ok(())
    }

    /// Merges what replicas have in common with nobody any more, about so many bytes now. True if there is more to do.
    fn merge_layers(&self, _bytes_max: u64) -> Result<bool, StoreError> {
        Ok(false)
    }

    /// Where the bookkeeping of a replica lies.
    fn bookkeeping(&self, volume: VolumeId) -> io::Result<Box<dyn Bookkeeping>>;

    /// Opens the data of a replica, of `size` bytes.
    fn store(&self, volume: VolumeId, size: u64) -> io::Result<Box<dyn Store>>;

    /// True if replicas may keep checksums here.
    fn keeps_checksums(&self) -> bool {
        false
    }

    /// Opens the checksums of a replica of `size` bytes; `None`: it keeps none.
    fn checksums(&self, volume: VolumeId, size: u64) -> io::Result<Option<Box<dyn Store>>> {
        let _ = (volume, size);
        Ok(None)
    }

    /// Removes a replica for good; none is no error. Trying again is safe.
    fn remove(&self, volume: VolumeId) -> io::Result<()>;

    /// The directory, where the pool is one.
    fn directory(&self) -> Option<&Path> {
        None
    }
}

/// A pool that this process holds.
#[derive(Debug)]
pub struct Pool {
    name: String,
    cluster: ClusterId,
    backend: Arc<dyn Backend>,
    kind: PoolKind,
}

/// Where a pool is, or what it is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PoolPlace {
    /// A directory of a file system.
    Directory(PathBuf),
    /// A block device, a partition, or a file in place of one.
    Device(PathBuf),
    /// Memory.
    Memory {
        /// Its bound, in bytes.
        bytes_max: u64,
    },
    /// Nothing is kept.
    Nothing,
}

impl PoolPlace {
    /// Its kind.
    pub fn kind(&self) -> PoolKind {
        match self {
            PoolPlace::Directory(_) => PoolKind::File,
            PoolPlace::Device(_) => PoolKind::Block,
            PoolPlace::Memory { .. } => PoolKind::Memory,
            PoolPlace::Nothing => PoolKind::Null,
        }
    }
}

/// The space of a pool, apart from its use. The pool stays held while this lives.
#[derive(Clone, Debug)]
pub struct Gauge {
    name: String,
    kind: PoolKind,
    backend: Arc<dyn Backend>,
}

impl Gauge {
    /// Of this pool.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is made of.
    pub fn kind(&self) -> PoolKind {
        self.kind
    }

    /// How full it is.
    ///
    /// # Errors
    /// As the system reports them.
    pub fn space(&self) -> io::Result<Space> {
        self.backend.space()
    }
}

impl Pool {
    /// Takes the pool `name` at `place` for `node` of `cluster`. A directory that is missing is made, a blank device becomes a pool. Removes
    /// what a crash left half created or half removed. `state` is the node's own directory, in which pools that keep nothing themselves
    /// note what must not be forgotten.
    ///
    /// # Errors
    /// [`PoolError`].
    pub fn open(
        name: &str,
        place: &PoolPlace,
        cluster: ClusterId,
        node: &str,
        state: &Path,
    ) -> Result<Pool, PoolError> {
        let backend: Arc<dyn Backend> = match place {
            PoolPlace::Directory(path) => {
                let boot = config::boot_id().map_err(|error| PoolError::Io {
                    place: format!("directory {}", path.display()),
                    action: "read the boot id",
                    error: io::Error::other(error),
                })?;
                return Pool::open_under(boot, name, path, cluster, node);
            }
            PoolPlace::Device(path) => Arc::new(BlockPool::open(path, cluster, node)?),
            PoolPlace::Memory { bytes_max } => {
                Arc::new(MemoryPool::open(*bytes_max, &state.join(format!("memory-{name}")))?)
            }
            PoolPlace::Nothing => Arc::new(NullPool::default()),
        };
        Ok(Pool { name: name.to_owned(), kind: place.kind(), cluster, backend })
    }

    /// A directory, under this boot.
    pub(super) fn open_under(
        boot: BootId,
        name: &str,
        directory: &Path,
        cluster: ClusterId,
        node: &str,
    ) -> Result<Pool, PoolError> {
        let backend = Arc::new(Directory::open(directory, boot, cluster, node)?);
        Ok(Pool { name: name.to_owned(), kind: PoolKind::File, cluster, backend })
    }

    /// On a device that a test has made.
    #[cfg(test)]
    pub(super) fn with_backend(backend: Arc<dyn Backend>, kind: PoolKind, cluster: ClusterId) -> Pool {
        Pool { name: "p".to_owned(), kind, cluster, backend }
    }

    /// What it is made of.
    pub fn kind(&self) -> PoolKind {
        self.kind
    }

    /// Tells its space for as long as it is needed.
    pub fn gauge(&self) -> Gauge {
        Gauge { name: self.name.clone(), kind: self.kind, backend: Arc::clone(&self.backend) }
    }

    /// True if the replica of a volume that has none here may begin with zeroes. `is_new`: the volume was never served before.
    pub fn may_begin_empty(&self, volume: VolumeId, is_new: bool) -> bool {
        self.backend.may_begin_empty(volume, is_new)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its directory, if it is one.
    pub fn directory(&self) -> Option<&Path> {
        self.backend.directory()
    }

    /// How full it is.
    ///
    /// # Errors
    /// As the system reports them.
    pub fn space(&self) -> io::Result<Space> {
        self.backend.space()
    }

    /// The replicas in it, whether the cluster still knows them or not.
    ///
    /// # Errors
    /// As the system reports them.
    pub fn replicas(&self) -> io::Result<Vec<VolumeId>> {
        self.backend.replicas()
    }

    /// True if there is a replica of this volume.
    pub fn has_replica(&self, volume: VolumeId) -> bool {
        self.backend.has_replica(volume)
    }

    /// Opens the replica of `volume`. A larger `shape` than it was left with makes it grow.
    ///
    /// # Errors
    /// [`ReplicaError`].
    pub fn open_replica(
        &self,
        volume: VolumeId,
        node: NodeNumber,
        shape: &ReplicaShape,
    ) -> Result<Replica, ReplicaError> {
        let identity = ReplicaIdentity { cluster: self.cluster, volume, node };
        let metadata = Metadata::new(self.backend.bookkeeping(volume)?, volume);
        Replica::open(metadata, identity, shape, |size| self.stores(volume, shape, size))
    }

    fn stores(&self, volume: VolumeId, shape: &ReplicaShape, size: u64) -> Result<Stores, ReplicaError> {
        let data = self.backend.store(volume, size)?;
        match (self.backend.checksums(volume, size)?, shape.checksums) {
            (None, false) => Ok((data, None)),
            (Some(sums), true) => {
                let checked = Arc::new(CheckedStore::open(data, sums, volume)?);
                Ok((Box::new(Arc::clone(&checked)), Some(checked)))
            }
            (_, expected) => Err(SidecarError::Other { expected }.into()),
        }
    }

    /// Makes an empty replica of `volume` with this activity log. A crash leaves a whole one or none.
    ///
    /// # Errors
    /// [`ReplicaError`]; `AlreadyExists` among them if there is one.
    pub fn create_replica(
        &self,
        volume: VolumeId,
        node: NodeNumber,
        shape: &ReplicaShape,
        log: ActivityLog,
    ) -> Result<Replica, ReplicaError> {
        let superblock = self.superblock(volume, node, shape);
        if shape.checksums && !self.backend.keeps_checksums() {
            return Err(SidecarError::NoPlace { pool: self.name.clone() }.into());
        }
        let fill = |place: &dyn Bookkeeping| Metadata::create(place, &superblock, log.clone());
        self.backend.create(volume, shape, &fill)?;
        self.open_replica(volume, node, shape)
    }

    /// Makes a replica of `snapshot`, with this activity log, that reads as `source`, of this pool, does now. Nothing may be written to
    /// `source` meanwhile. One that is there already is left as it is. Blocks.
    ///
    /// # Errors
    /// [`TakeError`]; after some of them `source` is out of service.
    pub fn take_snapshot(
        &self,
        source: &Replica,
        snapshot: VolumeId,
        node: NodeNumber,
        shape: &ReplicaShape,
        log: ActivityLog,
    ) -> Result<(), TakeError> {
        if self.has_replica(snapshot) {
            return Ok(());
        }
        let superblock = self.superblock(snapshot, node, shape);
        let fill = |place: &dyn Bookkeeping| Metadata::create(place, &superblock, log.clone());
        self.backend.create_from(source.store(), snapshot, shape, &fill)
    }

    /// Makes another content for the replica of `volume`, beside it, that reads as `source`, of this pool, does now, with this activity log and
    /// the promise of `staged.epoch`. Nothing may be written to `source` meanwhile. One of the same restore is left as it is. Durable. Blocks.
    ///
    /// # Errors
    /// [`TakeError`].
    pub fn stage(
        &self,
        source: &Replica,
        volume: VolumeId,
        node: NodeNumber,
        shape: &ReplicaShape,
        log: ActivityLog,
        staged: &Staged,
    ) -> Result<(), TakeError> {
        let superblock = Superblock { promised: staged.epoch, ..self.superblock(volume, node, shape) };
        let fill = |place: &dyn Bookkeeping| Metadata::create(place, &superblock, log.clone());
        self.backend.stage(source.store(), volume, shape, staged, &fill)
    }

    /// What lies beside the replica of `volume`.
    ///
    /// # Errors
    /// As the system reports them; `InvalidData` where it is damaged.
    pub fn staged(&self, volume: VolumeId) -> io::Result<Option<Staged>> {
        self.backend.staged(volume)
    }

    /// Ends that: with `keep` it takes the replica's place, which nobody may have open, for good; else it is removed. None is no error. Blocks.
    ///
    /// # Errors
    /// As the system reports them; trying again is safe.
    pub fn settle(&self, volume: VolumeId, keep: bool) -> io::Result<()> {
        self.backend.settle(volume, keep)
    }

    /// Merges layers of replicas that nobody else lies on, about so many bytes now. True if there is more to do. Blocks.
    ///
    /// # Errors
    /// As the store reports them; trying again is safe.
    pub fn merge_layers(&self, bytes_max: u64) -> Result<bool, StoreError> {
        self.backend.merge_layers(bytes_max)
    }

    fn superblock(&self, volume: VolumeId, node: NodeNumber, shape: &ReplicaShape) -> Superblock {
        Superblock {
            cluster: self.cluster,
            volume,
            node,
            block_size: shape.block_size,
            blocks: shape.blocks,
            sequence: 1,
            promised: Epoch::ZERO,
        }
    }

    /// Removes the replica of `volume` for good; none is no error. Nobody may have it open.
    ///
    /// # Errors
    /// As the system reports them; trying again is safe.
    pub fn remove_replica(&self, volume: VolumeId) -> io::Result<()> {
        self.backend.remove(volume)
    }
}
