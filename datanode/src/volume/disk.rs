//! What the machines want of the disk, done: inline where it does not wait for a medium, else on the I/O threads.
//!
//! Invariants: a write that is asked to be durable, and all bookkeeping, is on the medium when it is reported done; a
//! failure is reported as what it is; blocks for which no space is allocated are copied as such.

use std::sync::Arc;

use holdfast_replica::epoch::Epoch;
use holdfast_replica::replication::{Body, Failure};
use holdfast_replica::secondary::Part;
use holdfast_replica::span::Span;

use super::engine::{Engine, Inner, may_do_io};
use super::jobs::HostFailure;
use crate::clock;
use crate::data_plane::limits::INLINE_IO_LEN_MAX;
use crate::data_plane::router::Bytes;
use crate::store::replica::ReplicaError;
use crate::store::{Durability, StoreError, Wait, buffers};

/// One thing for the disk.
#[derive(Debug)]
pub(super) enum DiskJob {
    Persist(u64, Vec<Part>),
    Apply {
        id: u64,
        span: Span,
        body: Body<Bytes>,
        durable: bool,
    },
    Flush(u64),
    /// For the owner of this term.
    Read(Epoch, u64, Span),
    Copy(Epoch, u64, Span),
    /// For another node's owner.
    Send(u64, Span),
}

/// How it ended.
#[derive(Debug)]
pub(super) enum DiskResult {
    Command(u64, Result<(), Failure>),
    Read(Epoch, u64, Result<Arc<Vec<u8>>, StoreError>),
    Copy(Epoch, u64, Option<Body<Bytes>>),
    Send(u64, Result<Vec<u8>, Failure>),
}

impl Engine {
    /// Does it now if that does not wait for a medium.
    pub(super) fn perform(self: &Arc<Self>, job: DiskJob) -> Option<DiskResult> {
        let block_size = self.block_size;
        let inline = |span: Span| {
            may_do_io() && span.blocks().saturating_mul(u64::from(block_size)) <= INLINE_IO_LEN_MAX
        };
        match &job {
            DiskJob::Read(term, id, span) if inline(*span) => match self.read(*span, block_size, Wait::Never)
            {
                Err(StoreError::WouldBlock) => {}
                done => {
                    return Some(DiskResult::Read(*term, *id, done));
                }
            },
            DiskJob::Apply { span, body: Body::Data(_), durable: false, .. }
                if inline(*span) && !self.write_waits(*span, block_size) =>
            {
                return Some(self.carry_out(job, block_size));
            }
            _ => {}
        }
        // Bookkeeping has a lane of its own, so that it does not queue behind reads and flushes.
        let lane = self.lane().wrapping_add(u64::from(matches!(job, DiskJob::Persist(..))));
        let engine = Arc::clone(self);
        let run = Box::new(move || {
            let result = engine.carry_out(job, block_size);
            engine.disk_done(result);
        });
        self.around.io.submit(lane, run);
        None
    }

    fn write_waits(&self, span: Span, block_size: u32) -> bool {
        let (offset, len) = bytes_of(span, block_size);
        self.replica.store().write_waits(offset, len)
    }

    fn carry_out(&self, job: DiskJob, block_size: u32) -> DiskResult {
        match job {
            DiskJob::Persist(id, parts) => {
                let done = self.replica.persist(&parts).map_err(|error| {
                    tracing::error!(volume = %self.id, %error, "the replica's bookkeeping cannot be written");
                    failure_of_bookkeeping(&error)
                });
                DiskResult::Command(id, done)
            }
            DiskJob::Apply { id, span, body, durable } => DiskResult::Command(
                id,
                self.apply(span, &body, durable, block_size).map_err(|e| self.failure(&e)),
            ),
            DiskJob::Flush(id) => {
                // Whatever it is: nobody knows what is on the medium now.
                let done = self.replica.store().flush().map_err(|e| {
                    self.failure(&e);
                    Failure::Io
                });
                DiskResult::Command(id, done)
            }
            DiskJob::Read(term, id, span) => {
                let done = self.read(span, block_size, Wait::Allowed);
                if let Err(error) = &done {
                    tracing::error!(volume = %self.id, lba = span.lba(), %error, "blocks cannot be read");
                }
                DiskResult::Read(term, id, done)
            }
            DiskJob::Copy(term, id, span) => DiskResult::Copy(term, id, self.copy(span, block_size)),
            DiskJob::Send(id, span) => {
                let done = self.read(span, block_size, Wait::Allowed).map(Arc::unwrap_or_clone).map_err(|error| {
                    tracing::error!(volume = %self.id, lba = span.lba(), %error, "blocks cannot be read for the owner");
                    match error {
                        StoreError::Medium(_) | StoreError::Corrupt { .. } => Failure::Unreadable,
                        _ => Failure::Io,
                    }
                });
                DiskResult::Send(id, done)
            }
        }
    }

    fn apply(
        &self,
        span: Span,
        body: &Body<Bytes>,
        durable: bool,
        block_size: u32,
    ) -> Result<(), StoreError> {
        let store = self.replica.store();
        let (offset, len) = bytes_of(span, block_size);
        let durability = if durable { Durability::OnMedium } else { Durability::Cached };
        match body {
            Body::Data(data) | Body::Atomic(data) if data.len() as u64 != len => {
                return Err(StoreError::OutOfRange);
            }
            Body::Data(data) => return store.write_at(offset, data.as_slice(), durability),
            Body::Atomic(data) => return self.replica.write_atomic(offset, data.as_slice(), durability),
            Body::Zeroes => store.write_zeroes(offset, len)?,
            Body::Unmap => store.unmap(offset, len)?,
        }
        if durable { store.flush() } else { Ok(()) }
    }

    fn read(&self, span: Span, block_size: u32, wait: Wait) -> Result<Arc<Vec<u8>>, StoreError> {
        let (offset, len) = bytes_of(span, block_size);
        let len = usize::try_from(len).map_err(|_| StoreError::OutOfRange)?;
        buffers::fill(len, |bytes| self.replica.store().read_at(offset, bytes, wait))
    }

    fn copy(&self, span: Span, block_size: u32) -> Option<Body<Bytes>> {
        let (offset, len) = bytes_of(span, block_size);
        let hole = self.replica.store().allocation(offset, len, 1);
        if hole.is_ok_and(|runs| runs.first().is_some_and(|run| !run.allocated && run.len >= len)) {
            return Some(Body::Unmap);
        }
        match self.read(span, block_size, Wait::Allowed) {
            Ok(bytes) => {
                let len = bytes.len();
                Some(Body::Data(Bytes::part(bytes, 0, len)))
            }
            Err(error) => {
                tracing::error!(volume = %self.id, lba = span.lba(), %error, "blocks cannot be copied");
                None
            }
        }
    }

    fn failure(&self, error: &StoreError) -> Failure {
        tracing::error!(volume = %self.id, %error, "the replica cannot be written");
        match error {
            StoreError::NoSpace => Failure::NoSpace,
            StoreError::OutOfRange => Failure::OutOfRange,
            StoreError::WouldBlock
            | StoreError::Medium(_)
            | StoreError::Corrupt { .. }
            | StoreError::Hardware(_)
            | StoreError::OutOfService => Failure::Io,
        }
    }
}

impl Inner {
    /// Tells the machines.
    pub(super) fn disk_done(&mut self, result: DiskResult) {
        let now = clock::scsi_now();
        self.ended_one();
        match result {
            DiskResult::Command(id, done) => self.secondary.done(id, done),
            DiskResult::Read(term, id, result) => {
                let Some(owned) = self.owned.as_mut().filter(|o| o.primary.term() == term) else { return };
                let block_size = self.shape.block_size();
                match result {
                    Ok(bytes) => {
                        owned.jobs.read(id, Ok(bytes));
                        owned.primary.read_done(now, id, true);
                    }
                    Err(error @ (StoreError::Medium(_) | StoreError::Corrupt { .. })) => {
                        owned.jobs.read(id, Err(failure_of_read(&error, block_size)));
                        owned.primary.read_failed(now, id, lost(&error, block_size));
                    }
                    // Another replica has these blocks: the volume goes there, and the host is none the wiser.
                    Err(_) if owned.config.in_sync().len() > 1 => owned.primary.replica_failed(),
                    Err(error) => {
                        owned.jobs.read(id, Err(failure_of_read(&error, block_size)));
                        owned.primary.read_done(now, id, false);
                    }
                }
            }
            DiskResult::Send(id, result) => self.secondary.read_done(id, result),
            DiskResult::Copy(term, id, body) => {
                if let Some(owned) = self.owned.as_mut().filter(|o| o.primary.term() == term) {
                    owned.primary.copy_data(now, id, body);
                }
            }
        }
    }
}

fn bytes_of(span: Span, block_size: u32) -> (u64, u64) {
    let block_size = u64::from(block_size);
    (span.lba().saturating_mul(block_size), span.blocks().saturating_mul(block_size))
}

/// The blocks that are lost, where the store knows.
fn lost(error: &StoreError, block_size: u32) -> Option<Span> {
    let StoreError::Corrupt { offset, len } = error else { return None };
    let block_size = u64::from(block_size).max(1);
    Span::new(offset / block_size, len.div_ceil(block_size))
}

fn failure_of_read(error: &StoreError, block_size: u32) -> HostFailure {
    match error {
        StoreError::Medium(_) => HostFailure::Medium(None),
        StoreError::Corrupt { offset, .. } => HostFailure::Medium(offset.checked_div(u64::from(block_size))),
        _ => HostFailure::Hardware,
    }
}

fn failure_of_bookkeeping(error: &ReplicaError) -> Failure {
    match error {
        ReplicaError::Io(e) if e.kind() == std::io::ErrorKind::StorageFull => Failure::NoSpace,
        _ => Failure::Io,
    }
}
