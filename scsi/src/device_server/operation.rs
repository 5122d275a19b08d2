//! FORMAT UNIT and SANITIZE at the owner: the work on every block, piece by piece, under the state's [`Operation`].
//!
//! Invariants: work begins once all older I/O has ended, and no command touches the medium meanwhile ([`Operation::admits`]); its end is
//! told to the cluster only after a flush; an owner that was not told how far another one came begins anew.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::{
    Action, Completion, DeviceServer, IoDone, IoFailure, UnitEvent,
    task::{Stage, Task},
};
use crate::{
    cdb::WriteSameSource,
    geometry::Extent,
    limits,
    lu_state::{Operation, OperationKind},
    task_set::TaskId,
    time::Instant,
};

/// Names the unit's own work in I/O actions; no task has this name.
pub const OWN_WORK: TaskId = TaskId(u64::MAX);
/// Bytes of a pattern that are written at a time.
const PATTERN_BYTES: u32 = 1024 * 1024;

/// Work under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Work {
    /// Passes that are complete.
    passes_done: u8,
    /// The next block.
    lba: u64,
    stage: WorkStage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WorkStage {
    /// Waits until older I/O has ended, or for the next tick.
    Waiting,
    /// A piece is at the store.
    Writing(Extent),
    /// Everything is written, and becomes durable.
    Flushing,
    /// The cluster is told.
    Ending,
}

impl DeviceServer {
    /// Follows the installed state: begins, or lets those that waited for the end go on.
    pub(super) fn follow_operation(&mut self) {
        let operation = self.reservations.installed().unit.operation.clone();
        match &operation {
            Some(operation) if operation.is_running() => {
                self.tokens.revoke_all();
                let begun = Work { passes_done: 0, lba: 0, stage: WorkStage::Waiting };
                self.own_work.get_or_insert(begun);
            }
            ended => {
                self.own_work = None;
                let waiting: Vec<TaskId> = self.tasks_in(Stage::AwaitingOperation);
                for id in waiting {
                    let completion = match ended {
                        None => Completion::good(),
                        Some(failed) => Completion::check(failed.sense(0)),
                    };
                    self.complete(id, completion);
                }
            }
        }
    }

    fn tasks_in(&self, stage: Stage) -> Vec<TaskId> {
        self.tasks.iter().filter(|(_, task)| task.stage == stage).map(|(id, _)| *id).collect()
    }

    /// How far the operation is, in 65536ths.
    pub(super) fn progress(&self) -> u16 {
        let (Some(work), Some(operation)) = (self.own_work, &self.reservations.installed().unit.operation)
        else {
            return 0;
        };
        let passes = u128::from(passes_of(operation));
        let blocks = u128::from(self.config.properties.geometry.blocks());
        let done = u128::from(work.passes_done).saturating_mul(blocks).saturating_add(u128::from(work.lba));
        let part = done.saturating_mul(0x1_0000).checked_div(passes.saturating_mul(blocks)).unwrap_or(0);
        u16::try_from(part).unwrap_or(u16::MAX)
    }

    /// Goes on with work that waits, if it may. True if it did.
    pub(super) fn go_on_with_work(&mut self) -> bool {
        let Some(work) = self.own_work.filter(|work| work.stage == WorkStage::Waiting) else { return false };
        let submitted = |task: &Task| matches!(task.stage, Stage::Submitted { .. });
        if self.work_rests || self.tasks.values().map(Box::as_ref).any(submitted) {
            return false;
        }
        let Some(operation) = self.reservations.installed().unit.operation.clone() else { return false };
        let blocks = self.config.properties.geometry.blocks();
        if work.passes_done >= passes_of(&operation) {
            self.set_work(Work { stage: WorkStage::Flushing, ..work });
            self.actions.push_back(Action::Flush { task: OWN_WORK, extent: None });
            return true;
        }
        let rest = u32::try_from(blocks.saturating_sub(work.lba)).unwrap_or(u32::MAX);
        let action = match operation.kind {
            OperationKind::Format | OperationKind::BlockErase => {
                let extent = Extent { lba: work.lba, blocks: rest.min(limits::WRITE_SAME_BLOCKS_MAX) };
                let source = WriteSameSource::Zeroes;
                Action::WriteSame { task: OWN_WORK, extent, source, deallocate: true, fua: false }
            }
            OperationKind::Overwrite { pattern, passes, invert } => {
                let block_size = self.config.properties.geometry.block_size();
                let at_a_time = PATTERN_BYTES.checked_div(block_size).unwrap_or(1).max(1);
                let extent = Extent { lba: work.lba, blocks: rest.min(at_a_time) };
                let passes_left = passes.saturating_sub(work.passes_done);
                let complement = invert && passes_left.is_multiple_of(2);
                let data = block_of(&pattern, block_size, complement).repeat(extent.blocks as usize);
                Action::WriteBytes { task: OWN_WORK, extent, data, fua: false }
            }
        };
        let extent = match &action {
            Action::WriteSame { extent, .. } | Action::WriteBytes { extent, .. } => *extent,
            _ => return false,
        };
        self.set_work(Work { stage: WorkStage::Writing(extent), ..work });
        self.actions.push_back(action);
        true
    }

    /// A piece of the own work ended.
    pub(super) fn own_io_done(&mut self, now: Instant, done: IoDone<'_>) {
        self.now = now;
        let Some(work) = self.own_work else { return };
        match (work.stage, done) {
            (_, IoDone::Failed(IoFailure::NotExecuted)) => {
                // Not served just now: again at the next tick.
                self.work_rests = true;
                self.set_work(Work { stage: WorkStage::Waiting, ..work });
            }
            (WorkStage::Writing(extent), IoDone::Done) => {
                let blocks = self.config.properties.geometry.blocks();
                let next = match extent.end() >= blocks {
                    true => Work {
                        passes_done: work.passes_done.saturating_add(1),
                        lba: 0,
                        stage: WorkStage::Waiting,
                    },
                    false => Work { lba: extent.end(), stage: WorkStage::Waiting, ..work },
                };
                self.set_work(next);
            }
            (WorkStage::Flushing, IoDone::Done) => self.end_work(work, false),
            (WorkStage::Writing(_) | WorkStage::Flushing, _) => self.end_work(work, true),
            (WorkStage::Waiting | WorkStage::Ending, _) => {}
        }
        self.run();
    }

    fn end_work(&mut self, work: Work, failed: bool) {
        self.set_work(Work { stage: WorkStage::Ending, ..work });
        self.begin_event(UnitEvent::OperationEnded { failed }, None);
    }

    fn set_work(&mut self, work: Work) {
        self.own_work = Some(work);
    }
}

const fn passes_of(operation: &Operation) -> u8 {
    match &operation.kind {
        OperationKind::Format | OperationKind::BlockErase => 1,
        OperationKind::Overwrite { passes, .. } => *passes,
    }
}

/// The pattern repeated to a block, or its complement.
fn block_of(pattern: &[u8], block_size: u32, complement: bool) -> Vec<u8> {
    let mask = if complement { 0xff } else { 0 };
    pattern.iter().cycle().take(block_size as usize).map(|byte| byte ^ mask).collect()
}
