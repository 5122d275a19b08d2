//! What the General Statistics and Performance log page counts, and LOG SELECT, which puts it back to zero.
//!
//! Invariant: the counters go back to zero only once everyone else is certain to be told (SPC-5 6.7: LOG PARAMETERS CHANGED).

use super::{
    Completion, DeviceServer, UaScope, UaWaiter,
    task::{Stage, Task},
};
use crate::{
    cdb::Command,
    log_pages::Statistics,
    sense::{Sense, asc},
    status::Status,
    task_set::TaskId,
};

impl DeviceServer {
    /// A task has ended.
    pub(super) fn count(&mut self, task: &Task, status: Status) {
        let counted = &mut self.statistics;
        let took = self.now.millis_since(task.arrived);
        let blocks = |blocks: u32| if status == Status::Good { u64::from(blocks) } else { 0 };
        match task.command {
            Ok(Command::Read { extent, .. }) => {
                counted.read_commands = counted.read_commands.saturating_add(1);
                counted.blocks_transmitted = counted.blocks_transmitted.saturating_add(blocks(extent.blocks));
                counted.read_ms = counted.read_ms.saturating_add(took);
            }
            Ok(
                Command::Write { extent, .. }
                | Command::WriteAndVerify { extent, .. }
                | Command::CompareAndWrite { extent, .. }
                | Command::OrWrite { extent, .. }
                | Command::WriteAtomic { extent, .. },
            ) => {
                counted.write_commands = counted.write_commands.saturating_add(1);
                counted.blocks_received = counted.blocks_received.saturating_add(blocks(extent.blocks));
                counted.write_ms = counted.write_ms.saturating_add(took);
            }
            _ => {}
        }
    }

    /// LOG SELECT.
    pub(super) fn log_select(&mut self, id: TaskId, reset: bool) {
        let Some(task) = self.tasks.get(&id) else { return };
        if let Some(refused) = self.data_length_refusal(task) {
            return self.complete(id, refused);
        }
        if !task.data.is_empty() {
            // No page has a value that a list could set.
            return self.complete(id, Completion::check(Sense::illegal_field_parameter(0, Some(5))));
        }
        if !reset || self.statistics == Statistics::default() {
            return self.complete(id, Completion::good());
        }
        let others = UaScope::AllExcept(task.nexus);
        self.set_stage(id, Stage::AwaitingUnitAttention);
        self.establish(UaWaiter::LogSelect(id), asc::LOG_PARAMETERS_CHANGED, others);
    }

    /// The others have been told of a LOG SELECT, or could not be.
    pub(super) fn log_selected(&mut self, id: TaskId, established: bool) {
        if established {
            self.statistics = Statistics::default();
        }
        self.complete(id, if established { Completion::good() } else { Completion::status(Status::Busy) });
    }
}
