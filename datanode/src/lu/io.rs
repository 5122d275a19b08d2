//! One I/O of a device server on its volume: inline where it cannot wait for a disk, else on the I/O threads.
//!
//! Invariant: what is reported as done durably has been flushed before; a failure is told as what it is, never as done.

use std::collections::VecDeque;
use std::sync::Arc;

use holdfast_replica::span::Span;
use holdfast_scsi::cdb::WriteSameSource;
use holdfast_scsi::device_server::{Action, IoDone, IoFailure, TaskId};
use holdfast_scsi::geometry::{Extent, Geometry};
use holdfast_scsi::lba_status::{LbaStatus, Provisioning};
use holdfast_scsi::limits::{ATOMIC_BYTES_MAX, LBA_STATUS_DESCRIPTORS_MAX};

use crate::data_plane::limits::INLINE_IO_LEN_MAX;
use crate::data_plane::router::Bytes;
use crate::store::{Durability, Run, StoreError, Wait, buffers};
use crate::volume::jobs::{HostFailure, HostResult, Step};
use crate::volume::{Volume, VolumeError};

const _: () = assert!(ATOMIC_BYTES_MAX as u64 <= holdfast_replica::limits::ATOMIC_BYTES_MAX);

/// Bytes of a repeated block that are written at a time.
const REPEAT_LEN: usize = 256 * 1024;

/// An I/O with all that it needs.
#[derive(Debug)]
pub(super) enum Io {
    Read { extent: Extent, fua: bool },
    Write { lba: u64, data: Bytes, fua: bool },
    Atomic { parts: VecDeque<(u64, Bytes)> },
    Repeat { extent: Extent, block: Bytes, fua: bool },
    Zeroes { extent: Extent, deallocate: bool, fua: bool },
    Unmap { extents: Vec<Extent>, fua: bool },
    Flush,
    QueryAllocation { extent: Extent },
}

/// How it ended.
#[derive(Debug)]
pub(super) enum IoResult {
    Done,
    Read(Arc<Vec<u8>>),
    Allocation(Vec<LbaStatus>),
    Failed(IoFailure),
}

impl From<HostResult> for IoResult {
    fn from(result: HostResult) -> IoResult {
        match result {
            HostResult::Done => IoResult::Done,
            HostResult::Read(bytes) => IoResult::Read(bytes),
            HostResult::Failed(failure) => IoResult::Failed(match failure {
                HostFailure::NotExecuted => IoFailure::NotExecuted,
                HostFailure::Unknown => IoFailure::Unknown,
                HostFailure::NoSpace => IoFailure::NoSpace,
                HostFailure::Medium(lba) => IoFailure::Medium { lba },
                HostFailure::Hardware => IoFailure::Hardware,
            }),
        }
    }
}

impl IoResult {
    pub(super) fn as_done(&self) -> IoDone<'_> {
        match self {
            IoResult::Done => IoDone::Done,
            IoResult::Read(bytes) => IoDone::Read(bytes),
            IoResult::Allocation(states) => IoDone::Allocation(states),
            IoResult::Failed(failure) => IoDone::Failed(*failure),
        }
    }
}

/// What an action asks for.
#[derive(Debug)]
pub(super) enum Asked {
    /// I/O for a task.
    Io(TaskId, Io),
    /// Something else.
    Other(Box<Action>),
}

impl Io {
    /// The I/O that an action asks for, if it asks for one. `data` is the task's Data-Out.
    pub(super) fn of(action: Action, g: &Geometry, data: impl Fn(TaskId) -> Bytes) -> Asked {
        let (task, io) = match action {
            Action::Read { task, extent, fua } => (task, Io::Read { extent, fua }),
            Action::Write { task, extent, data_offset, fua } => {
                let data = data(task).slice(data_offset as usize, extent.byte_len(g) as usize);
                (task, Io::Write { lba: extent.lba, data, fua })
            }
            Action::WriteBytes { task, extent, data, fua } => {
                (task, Io::Write { lba: extent.lba, data: Bytes::new(data), fua })
            }
            Action::WriteAtomic { task, extent, boundary } => {
                (task, Io::Atomic { parts: atomic_parts(g, extent, boundary, &data(task)) })
            }
            Action::WriteSame { task, extent, source: WriteSameSource::Zeroes, deallocate, fua } => {
                (task, Io::Zeroes { extent, deallocate, fua })
            }
            Action::WriteSame { task, extent, source: WriteSameSource::DataOutBlock, fua, .. } => {
                let block = data(task).slice(0, g.block_size() as usize);
                (task, Io::Repeat { extent, block, fua })
            }
            Action::Unmap { task, extents, fua } => (task, Io::Unmap { extents, fua }),
            Action::Flush { task, .. } => (task, Io::Flush),
            Action::QueryAllocation { task, extent } => (task, Io::QueryAllocation { extent }),
            other => return Asked::Other(Box::new(other)),
        };
        Asked::Io(task, io)
    }

    /// True if it may change what a later read returns.
    pub(super) fn changes(&self) -> bool {
        match self {
            Io::Read { .. } | Io::Flush | Io::QueryAllocation { .. } => false,
            Io::Write { .. }
            | Io::Atomic { .. }
            | Io::Repeat { .. }
            | Io::Zeroes { .. }
            | Io::Unmap { .. } => true,
        }
    }

    /// The same for the replication core; `None` for what only looks.
    pub(super) fn as_steps(&self, g: &Geometry) -> Option<VecDeque<Step>> {
        let block_size = g.block_size();
        let span = |extent: &Extent| Span::new(extent.lba, u64::from(extent.blocks));
        let zeroes = |extent: &Extent, unmap, durable| {
            span(extent).map(|span| Step::Zeroes { span, unmap, block_size, durable })
        };
        let steps = match self {
            Io::Read { extent, fua } => {
                let flush = fua.then_some(Step::Flush);
                flush.into_iter().chain(span(extent).map(Step::Read)).collect()
            }
            Io::Write { lba, data, fua } => {
                let span = Span::new(*lba, data.len() as u64 / u64::from(block_size.max(1)));
                span.map(|span| Step::Write { span, data: data.clone(), durable: *fua }).into_iter().collect()
            }
            Io::Atomic { parts } => {
                let part = |(lba, data): &(u64, Bytes)| {
                    let span = Span::new(*lba, data.len() as u64 / u64::from(block_size.max(1)));
                    span.map(|span| Step::WriteAtomic { span, data: data.clone() })
                };
                parts.iter().filter_map(part).collect()
            }
            Io::Repeat { extent, block, fua } => {
                let pattern = Bytes::new(repeated(*extent, block.as_slice()));
                let step = |span| Step::Repeat { span, pattern, block_size, durable: *fua };
                span(extent).map(step).into_iter().collect()
            }
            Io::Zeroes { extent, deallocate, fua } => zeroes(extent, *deallocate, *fua).into_iter().collect(),
            Io::Unmap { extents, fua } => extents.iter().filter_map(|e| zeroes(e, true, *fua)).collect(),
            Io::Flush => VecDeque::from([Step::Flush]),
            Io::QueryAllocation { .. } => return None,
        };
        Some(steps)
    }

    /// Does it now if that does not wait for a disk; `None` if it has to go to the I/O threads.
    pub(super) fn try_inline(&self, volume: &Volume, g: &Geometry) -> Option<IoResult> {
        match self {
            Io::Read { extent, fua: false } if extent.byte_len(g) <= INLINE_IO_LEN_MAX => {
                match read(volume, g, *extent, Wait::Never) {
                    Err(VolumeError::Store(StoreError::WouldBlock)) => None,
                    done => Some(result(g, done)),
                }
            }
            Io::Write { lba, data, fua: false }
                if data.len() as u64 <= INLINE_IO_LEN_MAX && !volume.write_waits(g, *lba, data.len()) =>
            {
                Some(self.run(volume, g))
            }
            _ => None,
        }
    }

    /// Does it, however long it takes.
    pub(super) fn run(&self, volume: &Volume, g: &Geometry) -> IoResult {
        let Some(_running) = volume.begin().filter(|_| volume.serving_epoch().is_some()) else {
            return IoResult::Failed(IoFailure::NotExecuted);
        };
        let done = self.steps(volume, g);
        match (&done, self) {
            // One step: refused means that nothing was done.
            (_, Io::Read { .. } | Io::Write { .. } | Io::Flush | Io::QueryAllocation { .. }) => done,
            (_, Io::Atomic { parts }) if parts.len() <= 1 => done,
            // Refused somewhere on the way.
            (IoResult::Failed(IoFailure::NotExecuted), _) => IoResult::Failed(IoFailure::Unknown),
            _ => done,
        }
    }

    fn steps(&self, volume: &Volume, g: &Geometry) -> IoResult {
        let durable = |fua: bool, done: Result<(), VolumeError>| match (fua, done) {
            (true, Ok(())) => volume.flush(),
            (_, done) => done,
        };
        result(
            g,
            match self {
                Io::Read { extent, fua } => {
                    durable(*fua, Ok(())).and_then(|()| read(volume, g, *extent, Wait::Allowed))
                }
                Io::Write { lba, data, fua } => {
                    let durability = if *fua { Durability::OnMedium } else { Durability::Cached };
                    volume.write(g, *lba, data.as_slice(), durability).map(|()| IoResult::Done)
                }
                Io::Atomic { parts } => {
                    let mut parts = parts.iter();
                    parts
                        .try_for_each(|(lba, data)| volume.write_atomic(g, *lba, data.as_slice()))
                        .map(|()| IoResult::Done)
                }
                Io::Repeat { extent, block, fua } => {
                    durable(*fua, repeat(volume, g, *extent, block.as_slice())).map(|()| IoResult::Done)
                }
                Io::Zeroes { extent, deallocate: true, fua } => {
                    durable(*fua, volume.unmap(g, *extent)).map(|()| IoResult::Done)
                }
                Io::Zeroes { extent, deallocate: false, fua } => {
                    durable(*fua, volume.write_zeroes(g, *extent)).map(|()| IoResult::Done)
                }
                Io::Unmap { extents, fua } => {
                    let done = extents.iter().try_for_each(|extent| volume.unmap(g, *extent));
                    durable(*fua, done).map(|()| IoResult::Done)
                }
                Io::Flush => volume.flush().map(|()| IoResult::Done),
                Io::QueryAllocation { extent } => volume
                    .allocation(g, *extent, LBA_STATUS_DESCRIPTORS_MAX)
                    .map(|runs| IoResult::Allocation(block_states(g, *extent, &runs))),
            },
        )
    }
}

fn read(volume: &Volume, g: &Geometry, extent: Extent, wait: Wait) -> Result<IoResult, VolumeError> {
    let len = usize::try_from(extent.byte_len(g)).map_err(|_| StoreError::OutOfRange)?;
    buffers::fill(len, |bytes| volume.read(g, extent, bytes, wait)).map(IoResult::Read)
}

/// The atomic write operations of one command: cut where an LBA is a multiple of `boundary`, if that is not 0.
fn atomic_parts(g: &Geometry, extent: Extent, boundary: u16, data: &Bytes) -> VecDeque<(u64, Bytes)> {
    let mut parts = VecDeque::new();
    let (mut lba, mut from) = (extent.lba, 0);
    while lba < extent.end() {
        let rest = extent.end() - lba;
        let blocks = match u64::from(boundary) {
            0 => rest,
            boundary => rest.min(boundary - lba % boundary),
        };
        let len = usize::try_from(blocks.saturating_mul(u64::from(g.block_size()))).unwrap_or(usize::MAX);
        parts.push_back((lba, data.slice(from, len)));
        (lba, from) = (lba.saturating_add(blocks), from.saturating_add(len));
    }
    parts
}

/// Writes the same block all over `extent`.
fn repeat(volume: &Volume, g: &Geometry, extent: Extent, block: &[u8]) -> Result<(), VolumeError> {
    let buffer = repeated(extent, block);
    let per_write = (buffer.len() / block.len().max(1)).max(1) as u64;
    let mut lba = extent.lba;
    while lba < extent.end() {
        let blocks = per_write.min(extent.end() - lba);
        let bytes = Extent { lba, blocks: blocks as u32 }.byte_len(g) as usize;
        volume.write(g, lba, buffer.get(..bytes).unwrap_or(&buffer), Durability::Cached)?;
        lba = lba.saturating_add(blocks);
    }
    Ok(())
}

/// As many times the block as are written at a time.
fn repeated(extent: Extent, block: &[u8]) -> Vec<u8> {
    let per_write = (REPEAT_LEN / block.len().max(1)).max(1) as u64;
    block.repeat(per_write.min(u64::from(extent.blocks)) as usize)
}

/// Runs of bytes as states of whole blocks; a block that is backed in part counts as mapped.
fn block_states(g: &Geometry, extent: Extent, runs: &[Run]) -> Vec<LbaStatus> {
    let block = u64::from(g.block_size());
    let mut states: Vec<LbaStatus> = Vec::new();
    let (mut bytes, mut from) = (0_u64, 0_u64);
    for (at, run) in runs.iter().enumerate() {
        bytes = bytes.saturating_add(run.len);
        // An allocated run takes the block that it ends in; the last one has none behind it.
        let to = if run.allocated || at + 1 == runs.len() { bytes.div_ceil(block) } else { bytes / block };
        let to = to.min(u64::from(extent.blocks));
        if to > from {
            let provisioning = if run.allocated { Provisioning::Mapped } else { Provisioning::Deallocated };
            let part = Extent { lba: extent.lba.saturating_add(from), blocks: (to - from) as u32 };
            states.push(LbaStatus { extent: part, provisioning });
            from = to;
        }
    }
    states
}

fn result(g: &Geometry, done: Result<IoResult, VolumeError>) -> IoResult {
    let failure = match done {
        Ok(done) => return done,
        Err(VolumeError::NotExecuted) => IoFailure::NotExecuted,
        Err(VolumeError::OutOfService) => IoFailure::Hardware,
        Err(VolumeError::Store(StoreError::NoSpace)) => IoFailure::NoSpace,
        Err(VolumeError::Store(StoreError::Medium(error))) => {
            tracing::error!(%error, "the medium failed");
            IoFailure::Medium { lba: None }
        }
        Err(VolumeError::Store(StoreError::Corrupt { offset, len })) => {
            tracing::error!(offset, len, "blocks are damaged and there is no other copy");
            IoFailure::Medium { lba: Some(offset / u64::from(g.block_size().max(1))) }
        }
        Err(VolumeError::Store(error)) => {
            tracing::error!(%error, "the store failed");
            IoFailure::Hardware
        }
    };
    IoResult::Failed(failure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn atomic_writes_are_cut_at_multiples_of_their_boundary_only() {
        let g = Geometry::new(512, 1000).unwrap();
        let data = Bytes::new((0..20 * 512).map(|at| (at / 512) as u8).collect());
        let cut = |boundary| -> Vec<(u64, usize, u8)> {
            let parts = atomic_parts(&g, Extent { lba: 6, blocks: 20 }, boundary, &data);
            parts.iter().map(|(lba, part)| (*lba, part.len() / 512, part.as_slice()[0])).collect()
        };
        assert_eq!(cut(0), [(6, 20, 0)]);
        assert_eq!(cut(8), [(6, 2, 0), (8, 8, 2), (16, 8, 10), (24, 2, 18)]);
        assert_eq!(cut(512), [(6, 20, 0)]);
        assert_eq!(cut(1).len(), 20);
    }

    #[test]
    fn block_backed_in_part_is_mapped() {
        let g = Geometry::new(4096, 100).unwrap();
        let extent = Extent { lba: 10, blocks: 4 };
        let run = |len, allocated| Run { len, allocated };
        let state = |lba, blocks, mapped| LbaStatus {
            extent: Extent { lba, blocks },
            provisioning: if mapped { Provisioning::Mapped } else { Provisioning::Deallocated },
        };
        let runs = [run(4096, true), run(1024, true), run(3 * 4096 - 1024, false)];
        assert_eq!(
            block_states(&g, extent, &runs),
            [state(10, 1, true), state(11, 1, true), state(12, 2, false)]
        );
        let runs = [run(1024, false), run(4096, true), run(11 * 1024, false)];
        assert_eq!(block_states(&g, extent, &runs), [state(10, 2, true), state(12, 2, false)]);
        assert_eq!(block_states(&g, extent, &[run(4 * 4096, false)]), [state(10, 4, false)]);
    }
}
