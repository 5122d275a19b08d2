//! One replica on disk: the superblock with the promised epoch, the bookkeeping of replication, and the data.
//!
//! A volume with one copy is served from here directly, under [`Replica::admit`]. Where there are more copies, the
//! replication core orders all I/O, and the replica is [suspended](Replica::suspend) for everyone else.
//!
//! Invariants (design 6.6): the highest epoch promised is on the medium before any I/O runs under it; I/O of a lower epoch
//! is refused from the moment the promise begins, and what was submitted before has ended when the promise returns. A
//! superblock of another cluster or volume, or one that cannot be read in either slot, is never served and never
//! overwritten.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use holdfast_replica::activity_log::{ActivityLog, LogError};
use holdfast_replica::bitmap::Bitmap;
use holdfast_replica::epoch::Epoch;
use holdfast_replica::ids::{ClusterId, NodeNumber, VolumeId};
use holdfast_replica::secondary::Part;
use holdfast_replica::span::Shape;
use holdfast_replica::superblock::{Superblock, SuperblockError};

use super::checked::{CheckedStore, OpenError, SidecarError};
use super::intents::{self, Failed, Intents};
use super::metadata::{Metadata, PageImage};
use super::{Durability, Store, StoreError};

/// No volume ever gets here: what is admitted from this epoch on is nothing.
const NEVER: Epoch = Epoch { generation: u32::MAX, number: u64::MAX };

/// What a replica has to look like, by the volume's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaShape {
    /// Bytes of a logical block.
    pub block_size: u32,
    /// Number of logical blocks.
    pub blocks: u64,
    /// No space is reserved.
    pub thin: bool,
    /// A checksum is kept for every 4096 bytes.
    pub checksums: bool,
}

impl ReplicaShape {
    /// Its size in bytes.
    pub fn bytes(&self) -> u64 {
        self.blocks.saturating_mul(u64::from(self.block_size))
    }
}

/// Why a replica cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// The system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The superblock cannot be used.
    #[error(transparent)]
    Superblock(#[from] SuperblockError),
    /// The superblock is another volume's, node's or cluster's.
    #[error("the replica belongs to volume {volume} on node {node} of cluster {cluster}")]
    Foreign {
        /// The cluster in the superblock.
        cluster: ClusterId,
        /// The volume in the superblock.
        volume: VolumeId,
        /// The node in the superblock.
        node: NodeNumber,
    },
    /// Sequence numbers are used up, or a change that no superblock admits.
    #[error("the superblock admits no such change")]
    Exhausted,
    /// The replica has another block size, or is larger than the record says.
    #[error("the replica has {found:?} where the record says {expected:?}")]
    Shape {
        /// On disk: block size and number of blocks.
        found: (u32, u64),
        /// In the record.
        expected: (u32, u64),
    },
    /// A higher epoch was promised already.
    #[error("epoch {promised} was promised, so {asked} comes too late")]
    StaleEpoch {
        /// What stands on the medium.
        promised: Epoch,
        /// What was asked for.
        asked: Epoch,
    },
    /// The data cannot be grown or read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The checksums cannot be used.
    #[error(transparent)]
    Checksums(#[from] SidecarError),
}

impl From<OpenError> for ReplicaError {
    fn from(error: OpenError) -> ReplicaError {
        match error {
            OpenError::Sidecar(error) => ReplicaError::Checksums(error),
            OpenError::Store(error) => ReplicaError::Store(error),
        }
    }
}

/// A replica's data, and the same where it keeps checksums.
pub(super) type Stores = (Box<dyn Store>, Option<Arc<CheckedStore>>);

/// Which replica it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaIdentity {
    /// Of this cluster,
    pub cluster: ClusterId,
    /// of this volume,
    pub volume: VolumeId,
    /// on this node.
    pub node: NodeNumber,
}

/// An open replica. See the module's invariants.
#[derive(Debug)]
pub struct Replica {
    store: Box<dyn Store>,
    /// The same where it keeps checksums.
    checked: Option<Arc<CheckedStore>>,
    metadata: Metadata,
    intents: Intents,
    /// Locked while the superblock is being written, which blocks; taken before `state`.
    superblock: Mutex<Superblock>,
    /// Never locked while something blocks.
    state: Mutex<State>,
    drained: Condvar,
}

#[derive(Debug)]
struct State {
    /// The epoch on the medium.
    promised: Epoch,
    /// I/O of a lower epoch is refused. At least the promised one; higher while a promise is being made.
    admits_from: Epoch,
    /// The replication core drives the replica: nobody else's I/O is admitted before the next promise here.
    suspended: bool,
    /// I/O under way, all of it of epochs up to the promised one.
    in_flight: usize,
    /// Threads that wait for the end of what is in flight. To notify nobody would be a system call for each I/O.
    draining: usize,
}

/// The right to one I/O under an epoch; the promise of a higher one waits for its end.
#[derive(Debug)]
pub struct Admitted<'a>(&'a Replica);

impl Admitted<'_> {
    /// The data.
    pub fn store(&self) -> &dyn Store {
        &*self.0.store
    }

    /// [`Replica::write_atomic`], durable.
    ///
    /// # Errors
    /// As there.
    pub fn write_atomic(&self, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        self.0.write_atomic(offset, data, Durability::OnMedium)
    }
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.in_flight = state.in_flight.saturating_sub(1);
        if state.in_flight == 0 && state.draining > 0 {
            self.0.drained.notify_all();
        }
    }
}

impl Replica {
    /// Opens what `metadata` describes; `stores` opens its data, of so many bytes, and says whether it keeps checksums.
    pub(super) fn open(
        metadata: Metadata,
        identity: ReplicaIdentity,
        shape: &ReplicaShape,
        stores: impl FnOnce(u64) -> Result<Stores, ReplicaError>,
    ) -> Result<Replica, ReplicaError> {
        let superblock = metadata.superblock()??;
        let Superblock { cluster, volume, node, .. } = superblock;
        if (ReplicaIdentity { cluster, volume, node }) != identity {
            return Err(ReplicaError::Foreign { cluster, volume, node });
        }
        let found = (superblock.block_size, superblock.blocks);
        if found.0 != shape.block_size || found.1 > shape.blocks {
            return Err(ReplicaError::Shape { found, expected: (shape.block_size, shape.blocks) });
        }
        let size = found.1.saturating_mul(u64::from(found.0));
        let (store, checked) = stores(size)?;
        intents::finish(&metadata, &*store)?;
        let replica = Replica { checked, ..Replica::new(store, metadata, superblock) };
        replica.grow(shape.blocks)?;
        Ok(replica)
    }

    fn new(store: Box<dyn Store>, metadata: Metadata, superblock: Superblock) -> Replica {
        let promised = superblock.promised;
        Replica {
            store,
            checked: None,
            metadata,
            intents: Intents::default(),
            superblock: Mutex::new(superblock),
            state: Mutex::new(State {
                promised,
                admits_from: promised,
                suspended: false,
                in_flight: 0,
                draining: 0,
            }),
            drained: Condvar::new(),
        }
    }

    /// A replica over another store, for tests of what stores do wrong.
    #[cfg(test)]
    pub(crate) fn with_store(store: Box<dyn Store>, superblock: Superblock) -> Replica {
        let place = Box::new(super::bookkeeping::InMemory::default());
        let metadata = Metadata::new(place, superblock.volume);
        Replica::new(store, metadata, superblock)
    }

    /// The same with its bookkeeping in `folder`, under this log.
    #[cfg(test)]
    pub(crate) fn with_store_and_log(
        store: Box<dyn Store>,
        folder: &std::path::Path,
        superblock: Superblock,
        log: ActivityLog,
    ) -> io::Result<Replica> {
        use super::directory::Folder;
        if !folder.join("superblock").exists() {
            Metadata::create(&Folder::create(folder)?, &superblock, log)?;
        }
        let metadata = Metadata::new(Box::new(Folder::open(folder)?), superblock.volume);
        Ok(Replica::new(store, metadata, superblock))
    }

    /// The data, for the replication core, which orders its I/O itself.
    pub fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// Writes `data` at `offset`, whole or not at all, whatever stops the process or the machine meanwhile. What is not there already is
    /// on the medium when it returns; what is, if `durability` asks for it. At most [`ATOMIC_BYTES_MAX`] bytes. Blocks.
    ///
    /// [`ATOMIC_BYTES_MAX`]: holdfast_replica::limits::ATOMIC_BYTES_MAX
    ///
    /// # Errors
    /// [`StoreError`]. Nothing was written then, or the replica admits nothing any more until it is opened anew.
    pub fn write_atomic(&self, offset: u64, data: &[u8], durability: Durability) -> Result<(), StoreError> {
        match self.intents.write(&self.metadata, &*self.store, offset, data, durability) {
            Ok(()) => Ok(()),
            Err(Failed::Undone(error)) => Err(error),
            Err(Failed::InDoubt(error)) => {
                tracing::error!(%error, "an atomic write is in doubt: the replica is out of service until it is opened anew");
                self.lock().admits_from = NEVER;
                Err(StoreError::OutOfService)
            }
        }
    }

    /// The same where it keeps checksums.
    pub fn checked(&self) -> Option<&CheckedStore> {
        self.checked.as_deref()
    }

    /// Activity log and bitmaps as they stand on the medium.
    ///
    /// # Errors
    /// Outside: the system's; inside: why there is no log.
    pub fn bookkeeping(&self, shape: Shape) -> io::Result<(Result<ActivityLog, LogError>, Vec<Bitmap>)> {
        Ok((self.metadata.log()?, self.metadata.bitmaps(shape)?))
    }

    /// Brings parts of the bookkeeping to the medium, all of them. Blocks.
    ///
    /// # Errors
    /// An I/O error; what was written is then in doubt.
    pub fn persist(&self, parts: &[Part]) -> Result<(), ReplicaError> {
        let metadata = &self.metadata;
        let mut pages: BTreeMap<NodeNumber, Vec<PageImage>> = BTreeMap::new();
        for part in parts {
            match part {
                Part::Promise(epoch) => self.note_promise(*epoch)?,
                Part::Log(slot, image) => metadata.write_log(*slot, image)?,
                Part::Page(node, slot, image) => {
                    pages.entry(*node).or_default().push((*slot, image.clone()));
                }
                Part::DropBitmap(node) => metadata.drop_bitmap(*node)?,
            }
        }
        for (node, pages) in pages {
            metadata.write_pages(node, &pages)?;
        }
        Ok(())
    }

    /// The replica is the only copy from here on: nobody is absent, nothing may differ from anything. Blocks.
    ///
    /// # Errors
    /// An I/O error.
    pub fn begin_alone(&self) -> Result<(), ReplicaError> {
        let node = self.superblock.lock().unwrap_or_else(PoisonError::into_inner).node;
        Ok(self.metadata.reset(node)?)
    }

    fn note_promise(&self, epoch: Epoch) -> Result<(), ReplicaError> {
        let mut superblock = self.superblock.lock().unwrap_or_else(PoisonError::into_inner);
        if epoch != superblock.promised {
            let next = superblock.promise(epoch).ok_or(ReplicaError::Exhausted)?;
            self.write_superblock(&mut superblock, next)?;
        }
        let mut state = self.lock();
        state.promised = epoch;
        state.admits_from = state.admits_from.max(epoch);
        Ok(())
    }

    /// Admits nothing until the next [`Replica::promise`], and waits for what is under way. Blocks.
    pub fn suspend(&self) {
        let mut state = self.lock();
        state.suspended = true;
        self.drain(state);
    }

    /// The highest epoch promised.
    pub fn promised(&self) -> Epoch {
        self.lock().promised
    }

    /// Promises `epoch`: refuses I/O of lower ones from now on, waits for what is under way, and makes it durable. Blocks.
    ///
    /// # Errors
    /// [`ReplicaError::StaleEpoch`] if a higher one was promised; an I/O error, after which nothing is admitted any more.
    pub fn promise(&self, epoch: Epoch) -> Result<(), ReplicaError> {
        let mut superblock = self.superblock.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.lock();
        if epoch < state.admits_from {
            return Err(ReplicaError::StaleEpoch { promised: state.admits_from, asked: epoch });
        }
        if epoch == state.promised {
            state.suspended = false;
            return Ok(());
        }
        state.admits_from = epoch;
        state.suspended = false;
        self.drain(state);
        let next = superblock.promise(epoch).ok_or(ReplicaError::Exhausted)?;
        self.write_superblock(&mut superblock, next)?;
        self.lock().promised = epoch;
        Ok(())
    }

    /// Makes the replica larger, durably; fewer blocks than now change nothing. Blocks.
    ///
    /// # Errors
    /// An I/O error.
    pub fn grow(&self, blocks: u64) -> Result<(), ReplicaError> {
        let mut superblock = self.superblock.lock().unwrap_or_else(PoisonError::into_inner);
        if blocks <= superblock.blocks {
            return Ok(());
        }
        let next = superblock.resize(blocks).ok_or(ReplicaError::Exhausted)?;
        // First the room, then the record of it: a crash between the two leaves a longer file, which is no harm.
        self.store.grow(blocks.saturating_mul(u64::from(next.block_size)))?;
        self.write_superblock(&mut superblock, next)?;
        Ok(())
    }

    /// Begins an I/O under `epoch`; `None` if that epoch is not the promised one.
    pub fn admit(&self, epoch: Epoch) -> Option<Admitted<'_>> {
        let mut state = self.lock();
        if epoch != state.promised || epoch < state.admits_from || state.suspended {
            return None;
        }
        state.in_flight += 1;
        Some(Admitted(self))
    }

    /// Refuses all I/O from now on and waits for what is under way. Blocks.
    pub fn retire(&self) {
        let mut state = self.lock();
        state.admits_from = NEVER;
        self.drain(state);
        if let Some(checked) = &self.checked {
            checked.close();
        }
    }

    fn drain(&self, mut state: MutexGuard<'_, State>) {
        state.draining += 1;
        while state.in_flight > 0 {
            state = self.drained.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.draining -= 1;
    }

    /// A failure leaves the slot in doubt: nothing is admitted after it.
    fn write_superblock(&self, current: &mut Superblock, next: Superblock) -> io::Result<()> {
        if let Err(error) = self.metadata.write_superblock(&next) {
            self.lock().admits_from = NEVER;
            return Err(error);
        }
        *current = next;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
