//! [`Volume`]: state of service, and I/O in logical blocks.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use holdfast_replica::epoch::Epoch;
use holdfast_scsi::geometry::{Extent, Geometry};

use super::engine::Engine;
use crate::clock;
use crate::store::replica::{Admitted, Replica};
use crate::store::{Durability, Room, Run, StoreError, Wait};
use crate::view::{Shared, VolumeId};

/// Why an I/O on a volume did not succeed.
#[derive(Debug)]
pub enum VolumeError {
    /// Not now and not here: gate closed, not the owner (any more), epoch not promised (yet). Nothing was done.
    NotExecuted,
    /// The store says.
    Store(StoreError),
    /// There is no replica to serve from.
    OutOfService,
}

impl From<StoreError> for VolumeError {
    fn from(error: StoreError) -> VolumeError {
        VolumeError::Store(error)
    }
}

/// How a volume is served just now.
#[derive(Clone, Debug)]
enum Service {
    /// Not (yet, any more): the replica is being opened, or the ownership has ended.
    Stopped,
    /// Alone, under this epoch, which the replica has promised.
    Open(Epoch, Arc<Replica>),
    /// By the replication core, under this epoch.
    Driven(Epoch, Arc<Engine>),
    /// The configuration is changing within this epoch: nothing new is begun, what was done may be answered.
    Paused,
    /// We are the owner but the replica cannot be used: commands run, their I/O fails.
    Broken(Epoch),
}

/// What does the I/O just now.
#[derive(Debug)]
pub(crate) enum Serving {
    /// The volume itself: its calls do I/O.
    Alone,
    /// The replication core, which takes jobs.
    Driven(Arc<Engine>),
}

/// See the module's invariants.
#[derive(Debug)]
pub struct Volume {
    id: VolumeId,
    shared: Arc<Shared>,
    service: RwLock<Service>,
    held: Mutex<Held>,
    idle: Condvar,
}

/// Calls that do I/O alone, and whether new ones wait.
#[derive(Debug, Default)]
struct Held {
    frozen: bool,
    running: usize,
}

/// The right to one call of a host, of one or several I/Os; a freeze waits for its end.
#[derive(Debug)]
pub(crate) struct Running<'a>(&'a Volume);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut held = self.0.held();
        held.running = held.running.saturating_sub(1);
        // To notify is a system call, whether anyone waits or not.
        if held.frozen && held.running == 0 {
            self.0.idle.notify_all();
        }
    }
}

impl Volume {
    /// A volume that is not served yet.
    pub fn new(id: VolumeId, shared: Arc<Shared>) -> Volume {
        Volume {
            id,
            shared,
            service: RwLock::new(Service::Stopped),
            held: Mutex::default(),
            idle: Condvar::new(),
        }
    }

    /// Its id.
    pub fn id(&self) -> VolumeId {
        self.id
    }

    /// What all threads share.
    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// From now on it is served by `replica` under `epoch`, which the replica has promised.
    pub fn open(&self, epoch: Epoch, replica: Arc<Replica>) {
        self.set(Service::Open(epoch, replica));
    }

    /// From now on it is served by the replication core under `epoch`.
    pub(crate) fn drive(&self, epoch: Epoch, engine: Arc<Engine>) {
        self.set(Service::Driven(epoch, engine));
    }

    /// What does the I/O.
    pub(crate) fn serving(&self) -> Serving {
        match &*self.service.read().unwrap_or_else(PoisonError::into_inner) {
            Service::Driven(_, engine) => Serving::Driven(Arc::clone(engine)),
            _ => Serving::Alone,
        }
    }

    /// From now on every I/O fails: the replica cannot be used, and the hosts have to hear of it.
    pub fn break_down(&self, epoch: Epoch) {
        self.set(Service::Broken(epoch));
    }

    /// Until the next change nothing is begun; what is done may still be answered.
    pub fn pause(&self) {
        let mut service = self.service.write().unwrap_or_else(PoisonError::into_inner);
        match &*service {
            Service::Open(..) | Service::Driven(..) | Service::Broken(_) => *service = Service::Paused,
            Service::Stopped | Service::Paused => {}
        }
    }

    /// From now on nothing is executed or answered.
    pub fn stop(&self) {
        self.set(Service::Stopped);
    }

    /// Begins a call of a host; none while the volume is frozen.
    pub(crate) fn begin(&self) -> Option<Running<'_>> {
        let mut held = self.held();
        if held.frozen {
            return None;
        }
        held.running += 1;
        Some(Running(self))
    }

    /// Begins no new call until [`Volume::thaw`], and waits for those under way, at most so long. False if they have not ended. Blocks.
    pub(crate) fn freeze(&self, at_most: Duration) -> bool {
        let mut held = self.held();
        held.frozen = true;
        let done = self.idle.wait_timeout_while(held, at_most, |held| held.running > 0);
        done.unwrap_or_else(PoisonError::into_inner).0.running == 0
    }

    /// Goes on.
    pub(crate) fn thaw(&self) {
        self.held().frozen = false;
    }

    /// True while it is frozen and served in this epoch, alone or not.
    pub(crate) fn is_frozen_still(&self, epoch: Epoch) -> bool {
        let held = self.held();
        let service = self.service.read().unwrap_or_else(PoisonError::into_inner);
        held.frozen
            && held.running == 0
            && match &*service {
                Service::Open(now, _) => *now == epoch,
                Service::Driven(_, engine) => engine.is_frozen_still(epoch),
                Service::Stopped | Service::Paused | Service::Broken(_) => false,
            }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Epoch under which commands are executed now; `None` while none is.
    pub fn serving_epoch(&self) -> Option<Epoch> {
        self.serving_epoch_at(clock::now_ms())
    }

    /// The same, for a caller that has just read the clock ([`clock::now_ms`]).
    pub(crate) fn serving_epoch_at(&self, now_ms: u64) -> Option<Epoch> {
        if !self.shared.gate.open(now_ms) || self.held().frozen {
            return None;
        }
        match &*self.service.read().unwrap_or_else(PoisonError::into_inner) {
            Service::Stopped | Service::Paused => None,
            Service::Driven(epoch, engine) => {
                (engine.is_serving() || engine.is_out_of_service()).then_some(*epoch)
            }
            Service::Open(epoch, _) | Service::Broken(epoch) => Some(*epoch),
        }
    }

    /// True if what was executed may be answered: asked after the last I/O and before the reply.
    pub fn may_reply(&self) -> bool {
        let stopped =
            matches!(*self.service.read().unwrap_or_else(PoisonError::into_inner), Service::Stopped);
        // The gate last: it is what may close at any moment.
        !stopped && self.shared.gate.open(clock::now_ms())
    }

    /// Reads `extent` into `buffer`, which is as long as the extent.
    ///
    /// # Errors
    /// [`VolumeError`]; with [`Wait::Never`] also `WouldBlock`.
    pub fn read(
        &self,
        g: &Geometry,
        extent: Extent,
        buffer: &mut [u8],
        wait: Wait,
    ) -> Result<(), VolumeError> {
        self.with(|r| r.store().read_at(extent.byte_offset(g), buffer, wait))
    }

    /// Writes `data` from `lba` on.
    ///
    /// # Errors
    /// [`VolumeError`].
    pub fn write(
        &self,
        g: &Geometry,
        lba: u64,
        data: &[u8],
        durability: Durability,
    ) -> Result<(), VolumeError> {
        let offset = Extent { lba, blocks: 0 }.byte_offset(g);
        self.with(|r| r.store().write_at(offset, data, durability))
    }

    /// Writes `data` from `lba` on, whole or not at all; durable.
    ///
    /// # Errors
    /// [`VolumeError`].
    pub fn write_atomic(&self, g: &Geometry, lba: u64, data: &[u8]) -> Result<(), VolumeError> {
        let offset = Extent { lba, blocks: 0 }.byte_offset(g);
        self.with(|r| r.write_atomic(offset, data))
    }

    /// True if a cached write of so many bytes from `lba` on may have to wait for the medium.
    pub fn write_waits(&self, g: &Geometry, lba: u64, len: usize) -> bool {
        let offset = Extent { lba, blocks: 0 }.byte_offset(g);
        self.with(|r| Ok(r.store().write_waits(offset, len as u64))).unwrap_or(false)
    }

    /// Makes zeroes of `extent`, keeping its space.
    ///
    /// # Errors
    /// [`VolumeError`].
    pub fn write_zeroes(&self, g: &Geometry, extent: Extent) -> Result<(), VolumeError> {
        self.with(|r| r.store().write_zeroes(extent.byte_offset(g), extent.byte_len(g)))
    }

    /// Gives the space of `extent` back.
    ///
    /// # Errors
    /// [`VolumeError`].
    pub fn unmap(&self, g: &Geometry, extent: Extent) -> Result<(), VolumeError> {
        self.with(|r| r.store().unmap(extent.byte_offset(g), extent.byte_len(g)))
    }

    /// Makes all writes that were answered durable.
    ///
    /// # Errors
    /// [`VolumeError`].
    pub fn flush(&self) -> Result<(), VolumeError> {
        self.with(|r| r.store().flush())
    }

    /// Runs of allocated and free space, from the start of `extent`.
    ///
    /// # Errors
    /// [`VolumeError`].
    pub fn allocation(&self, g: &Geometry, extent: Extent, runs_max: usize) -> Result<Vec<Run>, VolumeError> {
        let (offset, len) = (extent.byte_offset(g), extent.byte_len(g));
        match self.serving() {
            Serving::Alone => self.with(|r| r.store().allocation(offset, len, runs_max)),
            Serving::Driven(engine) => Ok(engine.store().allocation(offset, len, runs_max)?),
        }
    }

    /// Space below the replicas: what this node's uses, and the least that is left below any of them, of other nodes as they told last.
    ///
    /// # Errors
    /// [`VolumeError`].
    pub fn room(&self) -> Result<Room, VolumeError> {
        let room = match self.serving() {
            Serving::Alone => self.with(|r| r.store().room())?,
            Serving::Driven(engine) => engine.store().room()?,
        };
        let elsewhere =
            self.shared.view.load().as_deref().and_then(|view| view.least_room_elsewhere(self.id));
        let available_bytes = room.available_bytes.min(elsewhere.unwrap_or(u64::MAX));
        Ok(Room { available_bytes, ..room })
    }

    fn with<T>(&self, io: impl FnOnce(&Admitted<'_>) -> Result<T, StoreError>) -> Result<T, VolumeError> {
        if !self.shared.gate.open(clock::now_ms()) {
            return Err(VolumeError::NotExecuted);
        }
        // Cloned, so that a long I/O holds up no change of service.
        let service = self.service.read().unwrap_or_else(PoisonError::into_inner).clone();
        match service {
            // The core takes jobs; this road is for a single copy.
            Service::Stopped | Service::Paused | Service::Driven(..) => Err(VolumeError::NotExecuted),
            Service::Broken(_) => Err(VolumeError::OutOfService),
            Service::Open(epoch, replica) => {
                let admitted = replica.admit(epoch).ok_or(VolumeError::NotExecuted)?;
                Ok(io(&admitted)?)
            }
        }
    }

    fn set(&self, service: Service) {
        *self.service.write().unwrap_or_else(PoisonError::into_inner) = service;
    }
}
