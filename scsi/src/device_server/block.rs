//! Commands that touch the medium: range locks, submission, and what follows when an I/O action has ended.

use alloc::vec::Vec;

use super::{
    Action, Completion, DataIn, DeviceServer, IoDone, IoFailure, OWN_WORK,
    task::{Stage, Step, Task},
};
use crate::{
    cdb::{self, Command, VerifyCheck, WriteSameSource},
    geometry::Extent,
    lba_status,
    range_lock::LockMode,
    sense::{Sense, SenseKey, asc},
    status::Status,
    task_set::TaskId,
    time::Instant,
};

impl DeviceServer {
    /// A Data-Out that cannot be what the CDB speaks of: too short (nothing is written rather than half of a block or
    /// what did not come), or not exactly right where the buffer has an inner structure. Judged before data is fetched.
    ///
    /// COMPARE AND WRITE takes locks: GOOD for another number of blocks than the buffer holds, none included, would be
    /// taken for a lock. Its one-byte NUMBER OF LOGICAL BLOCKS is also where a longer count was cut off.
    pub(super) fn data_length_refusal(&self, task: &Task) -> Option<Completion> {
        let wanted = task.data_out_wanted(&self.config.properties.geometry);
        let sent = u64::from(task.data_out_len);
        let (exact, sense) = match task.command {
            Ok(Command::CompareAndWrite { .. }) => (true, Sense::illegal_field_cdb(13, None)),
            Ok(Command::WriteSame { .. }) => (wanted > 0, Sense::illegal(asc::INVALID_FIELD_IN_COMMAND_IU)),
            _ => (false, Sense::illegal(asc::INVALID_FIELD_IN_COMMAND_IU)),
        };
        let wrong = sent < wanted || (exact && sent != wanted);
        wrong.then(|| Completion::check(sense))
    }

    /// Asks for the command's ranges; goes on at once where none are needed.
    pub(super) fn lock(&mut self, id: TaskId, command: &Command) {
        // The transport may have brought less than it announced.
        if let Some(refused) = self.tasks.get(&id).and_then(|task| self.data_length_refusal(task)) {
            return self.complete(id, refused);
        }
        let (mode, extents) = match self.ranges(id, command) {
            Ok(ranges) => ranges,
            Err(sense) => return self.complete(id, Completion::check(sense)),
        };
        if extents.is_empty() || self.locks.acquire(id, mode, &extents) {
            return self.submit_first(id);
        }
        self.set_stage(id, Stage::AwaitingLock);
    }

    /// The non-empty ranges that a command works on, and how it locks them.
    fn ranges(&self, id: TaskId, command: &Command) -> Result<(LockMode, Vec<Extent>), Sense> {
        let geometry = &self.config.properties.geometry;
        let (mode, extents) = match command {
            Command::Read { extent, .. } | Command::Verify { extent, .. } => {
                (LockMode::Shared, Vec::from([*extent]))
            }
            Command::Write { extent, .. }
            | Command::WriteAndVerify { extent, .. }
            | Command::WriteSame { extent, .. }
            | Command::CompareAndWrite { extent, .. }
            | Command::OrWrite { extent, .. }
            | Command::WriteAtomic { extent, .. } => (LockMode::Exclusive, Vec::from([*extent])),
            Command::Copy(_) => (LockMode::Shared, self.populate_ranges(id)?),
            Command::Unmap { parameter_list_length } => {
                let data = self.tasks.get(&id).map(|task| task.data.as_slice()).unwrap_or_default();
                let list = data.get(..usize::from(*parameter_list_length)).unwrap_or(data);
                (LockMode::Exclusive, cdb::parse_unmap_list(list, geometry)?.collect())
            }
            _ => (LockMode::Shared, Vec::new()),
        };
        // The unit may have been resized since the CDB was decoded.
        if let Some(outside) = extents.iter().find(|extent| !extent.within(geometry)) {
            return Err(Sense::lba_out_of_range(outside.lba.max(geometry.blocks())));
        }
        Ok((mode, extents.into_iter().filter(|extent| !extent.is_empty()).collect()))
    }

    /// The ranges are held and access has been checked since the last wait: the first I/O is submitted.
    pub(super) fn submit_first(&mut self, id: TaskId) {
        let Some(Ok(command)) = self.tasks.get(&id).map(|task| task.command) else { return };
        let durable = !self.mode.write_cache;
        let geometry = self.config.properties.geometry;
        if let Some(refused) = self.token_refusal(id) {
            return self.complete(id, refused);
        }
        if command.extent().is_some_and(|extent| extent.is_empty()) {
            return self.complete(id, Completion::good());
        }
        match command {
            Command::Copy(_) => self.populate_token(id),
            Command::Read { extent, fua, .. } => {
                self.submit(id, Step::Read, Action::Read { task: id, extent, fua });
            }
            Command::Write { extent, fua, .. } => {
                let fua = fua || durable;
                self.submit(id, Step::Write, Action::Write { task: id, extent, data_offset: 0, fua });
            }
            Command::WriteAndVerify { extent, .. } => {
                let write = Action::Write { task: id, extent, data_offset: 0, fua: true };
                self.submit(id, Step::WriteToVerify, write);
            }
            Command::Verify { extent, .. } => {
                self.submit(id, Step::Verify, Action::Read { task: id, extent, fua: false });
            }
            Command::CompareAndWrite { extent, .. } => {
                self.submit(id, Step::Compare, Action::Read { task: id, extent, fua: false });
            }
            Command::OrWrite { extent, .. } => {
                self.submit(id, Step::OrRead, Action::Read { task: id, extent, fua: false });
            }
            Command::WriteAtomic { extent, boundary, .. } => {
                self.submit(id, Step::Write, Action::WriteAtomic { task: id, extent, boundary });
            }
            Command::WriteSame { extent, unmap, source } => {
                let source = self.write_same_source(id, source);
                let deallocate = unmap && source == WriteSameSource::Zeroes;
                let write = Action::WriteSame { task: id, extent, source, deallocate, fua: durable };
                self.submit(id, Step::Write, write);
            }
            Command::Unmap { .. } => match self.ranges(id, &command) {
                Ok((_, extents)) if extents.is_empty() => self.complete(id, Completion::good()),
                Ok((_, extents)) => {
                    self.submit(id, Step::Write, Action::Unmap { task: id, extents, fua: durable });
                }
                Err(sense) => self.complete(id, Completion::check(sense)),
            },
            Command::SynchronizeCache { extent, .. } => {
                self.submit(id, Step::Flush, Action::Flush { task: id, extent });
            }
            // The unit has no power condition to change; what STOP promises is that nothing is left in a cache.
            Command::StartStopUnit { .. } => {
                self.submit(id, Step::Flush, Action::Flush { task: id, extent: None });
            }
            Command::GetLbaStatus { lba, .. } => match geometry.contains(lba) {
                true => {
                    let rest = geometry.blocks().saturating_sub(lba);
                    let extent = Extent { lba, blocks: u32::try_from(rest).unwrap_or(u32::MAX) };
                    self.submit(id, Step::Allocation, Action::QueryAllocation { task: id, extent });
                }
                false => self.complete(id, Completion::check(Sense::lba_out_of_range(lba))),
            },
            _ => self.complete(id, Completion::check(Sense::illegal(asc::INVALID_COMMAND_OPERATION_CODE))),
        }
    }

    /// Hands an I/O to the shell under the reservations installed now.
    pub(super) fn submit(&mut self, id: TaskId, step: Step, action: Action) {
        let version = self.reservations.installed_version();
        self.revoke_tokens(&action);
        self.set_stage(id, Stage::Submitted { step, version, since: self.now });
        if let Some(task) = self.tasks.get_mut(&id) {
            task.wrote |= step.writes();
        }
        self.actions.push_back(action);
    }

    pub(super) fn set_stage(&mut self, id: TaskId, stage: Stage) {
        if let Some(task) = self.tasks.get_mut(&id) {
            task.stage = stage;
        }
    }

    /// An I/O action ended. What nobody waits for is ignored.
    pub fn handle_io(&mut self, now: Instant, task: TaskId, done: IoDone<'_>) {
        if task == OWN_WORK {
            return self.own_io_done(now, done);
        }
        self.now = now;
        let Some(Stage::Submitted { step, .. }) = self.tasks.get(&task).map(|t| t.stage) else { return };
        if self.tasks.get(&task).is_some_and(|t| t.aborted.is_some()) {
            // What was submitted has ended; nothing more of this task is.
            self.end_aborted(task);
        } else {
            match done {
                IoDone::Failed(failure) => self.complete_failed(task, step, failure),
                done => self.continue_after(task, step, done),
            }
        }
        self.run();
    }

    fn continue_after(&mut self, id: TaskId, step: Step, done: IoDone<'_>) {
        let Some(Ok(command)) = self.tasks.get(&id).map(|task| task.command) else { return };
        let expected = command.extent().map_or(0, |e| e.byte_len(&self.config.properties.geometry));
        match (step, done) {
            (Step::Read | Step::Verify | Step::Compare | Step::OrRead, IoDone::Read(bytes))
                if bytes.len() as u64 != expected =>
            {
                self.complete_failed(id, step, IoFailure::Hardware);
            }
            (Step::Read, IoDone::Read(bytes)) => {
                if let Some(refused) = self.token_refusal(id) {
                    return self.complete(id, refused);
                }
                let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                let data_in = DataIn::FromRead { offset: 0, len };
                self.complete(id, Completion { data_in, ..Completion::good() });
            }
            (Step::Verify, IoDone::Read(bytes)) => self.verify_read(id, &command, bytes),
            (Step::Compare, IoDone::Read(bytes)) => self.compare_read(id, &command, bytes),
            (Step::OrRead, IoDone::Read(bytes)) => self.or_read(id, &command, bytes),
            (Step::Write | Step::Flush, IoDone::Done) => self.complete(id, Completion::good()),
            (Step::WriteToVerify, IoDone::Done) => self.verify_written(id, &command),
            (Step::Allocation, IoDone::Allocation(statuses)) => {
                let Command::GetLbaStatus { allocation_length, .. } = command else { return };
                let statuses = statuses.iter().copied();
                let data = super::inform::parameter_data(allocation_length, |out| {
                    lba_status::get_lba_status(statuses.clone(), allocation_length, out)
                });
                self.complete(id, Completion::bytes(data));
            }
            // An answer that does not fit the question: nothing about the I/O is known.
            _ => self.complete_failed(id, step, IoFailure::Unknown),
        }
    }

    fn complete_failed(&mut self, id: TaskId, step: Step, failure: IoFailure) {
        let writes = step.writes();
        // A write under way when the failure came has perhaps not been executed; one before it has.
        let executed = self.tasks.get(&id).is_some_and(|task| task.wrote) && !writes;
        let sense = match failure {
            IoFailure::NotExecuted if !executed => {
                return self.complete(id, Completion::status(Status::Busy));
            }
            IoFailure::NotExecuted | IoFailure::Unknown => {
                Sense::new(SenseKey::AbortedCommand, asc::COMMUNICATION_FAILURE)
            }
            IoFailure::NoSpace => Sense::new(SenseKey::DataProtect, asc::SPACE_ALLOCATION_FAILED),
            IoFailure::Medium { lba } => {
                let what = if writes { asc::WRITE_ERROR } else { asc::UNRECOVERED_READ_ERROR };
                let sense = Sense::new(SenseKey::MediumError, what);
                lba.map_or(sense, |lba| sense.with_information(lba))
            }
            IoFailure::Hardware => Sense::new(SenseKey::HardwareError, asc::INTERNAL_TARGET_FAILURE),
        };
        self.complete(id, Completion::check(sense));
    }

    /// VERIFY without Data-Out has no data to be compared with.
    pub(super) const fn compares(command: &Command) -> bool {
        matches!(
            command,
            Command::WriteAndVerify { compare: true, .. }
                | Command::Verify { check: VerifyCheck::Bytes | VerifyCheck::OneBlock, .. }
        )
    }
}
