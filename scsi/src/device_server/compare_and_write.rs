//! Commands of several steps: COMPARE AND WRITE, ORWRITE, VERIFY, WRITE AND VERIFY (SBC-4 5.3, 5.22, 5.37, 5.44).
//!
//! Invariant: between the steps the task keeps its ranges, and access is checked before each; a task that was fenced
//! between its read and its write does not write.

use alloc::vec::Vec;

use super::{Action, Completion, DeviceServer, task::Step};
use crate::{
    cdb::{Command, VerifyCheck, WriteSameSource},
    sense::Sense,
    task_set::TaskId,
};

impl DeviceServer {
    /// VERIFY, or the second half of WRITE AND VERIFY, has read the medium.
    pub(super) fn verify_read(&mut self, id: TaskId, command: &Command, medium: &[u8]) {
        let data = self.tasks.get(&id).map(|task| task.data.as_slice()).unwrap_or_default();
        let differs = match command {
            Command::Verify { check: VerifyCheck::OneBlock, .. } => {
                // Each block of the medium against the one block in the Data-Out buffer.
                medium.chunks(data.len().max(1)).find_map(|block| first_difference(block, data))
            }
            _ if DeviceServer::compares(command) => first_difference(medium, data),
            _ => None,
        };
        self.complete(id, miscompare_or_good(differs));
    }

    /// The write of WRITE AND VERIFY is done: read it back.
    pub(super) fn verify_written(&mut self, id: TaskId, command: &Command) {
        if let Some(refused) = self.recheck(id) {
            return self.complete(id, refused);
        }
        match command.extent() {
            Some(extent) => self.submit(id, Step::Verify, Action::Read { task: id, extent, fua: true }),
            None => self.complete(id, Completion::good()),
        }
    }

    /// COMPARE AND WRITE has read: the first half of the Data-Out has to match, the second half is written.
    pub(super) fn compare_read(&mut self, id: TaskId, command: &Command, medium: &[u8]) {
        let Command::CompareAndWrite { extent, fua, .. } = *command else { return };
        let data = self.tasks.get(&id).map(|task| task.data.as_slice()).unwrap_or_default();
        if let Some(offset) = first_difference(medium, data) {
            return self.complete(id, Completion::check(Sense::miscompare(offset)));
        }
        if let Some(refused) = self.recheck(id) {
            return self.complete(id, refused);
        }
        let data_offset = u32::try_from(medium.len()).unwrap_or(u32::MAX);
        let fua = fua || !self.mode.write_cache;
        self.submit(id, Step::Write, Action::Write { task: id, extent, data_offset, fua });
    }

    /// ORWRITE has read: write the medium ORed with the Data-Out.
    pub(super) fn or_read(&mut self, id: TaskId, command: &Command, medium: &[u8]) {
        let Command::OrWrite { extent, fua, .. } = *command else { return };
        if let Some(refused) = self.recheck(id) {
            return self.complete(id, refused);
        }
        let data = self.tasks.get(&id).map(|task| task.data.as_slice()).unwrap_or_default();
        let ored: Vec<u8> = medium.iter().zip(data).map(|(old, new)| old | new).collect();
        let fua = fua || !self.mode.write_cache;
        self.submit(id, Step::Write, Action::WriteBytes { task: id, extent, data: ored, fua });
    }

    /// WRITE SAME of a block of zeroes may be done by deallocation, if UNMAP asks for it (then the block was kept).
    pub(super) fn write_same_source(&self, id: TaskId, source: WriteSameSource) -> WriteSameSource {
        let block = self.tasks.get(&id).map(|task| task.data.as_slice()).unwrap_or_default();
        if !block.is_empty() && block.iter().all(|b| *b == 0) { WriteSameSource::Zeroes } else { source }
    }
}

/// Offset of the first byte of `medium` that `data` does not have in the same place.
fn first_difference(medium: &[u8], data: &[u8]) -> Option<u64> {
    let at = medium.iter().zip(data).position(|(a, b)| a != b);
    at.or_else(|| (data.len() < medium.len()).then_some(data.len())).map(|at| at as u64)
}

fn miscompare_or_good(differs: Option<u64>) -> Completion {
    match differs {
        Some(offset) => Completion::check(Sense::miscompare(offset)),
        None => Completion::good(),
    }
}
