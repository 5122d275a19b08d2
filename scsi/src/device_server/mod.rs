//! The device server of one logical unit, at its owner. Skeleton.

mod message;

pub use crate::task_set::{TaskAttribute, TaskId};
pub use message::*;

use crate::{nexus::Nexus, pr::state::Reservations, time::Instant};

/// The name of a living task was used for a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DuplicateTask;

/// Executes the commands of one logical unit. Sans-io.
#[derive(Debug)]
pub struct DeviceServer {
    _config: LuConfig,
}

impl DeviceServer {
    /// A device server without reservations and topology.
    pub fn new(config: LuConfig) -> DeviceServer {
        DeviceServer { _config: config }
    }
    /// Replaces the configuration.
    pub fn install_config(&mut self, _config: LuConfig) {}
    /// Replaces the topology.
    pub fn install_topology(&mut self, _topology: Topology) {}
    /// Installs a newer reservation state.
    pub fn install_reservations(&mut self, _now: Instant, _version: u64, _reservations: Reservations) {}
    /// The barrier of this version has passed.
    pub fn handle_barrier(&mut self, _now: Instant, _version: u64) {}
    /// Aborts the tasks of preempted nexuses.
    pub fn abort_tasks_of(&mut self, _now: Instant, _nexuses: &[Nexus]) {}
    /// True once I/O submitted under older versions has ended.
    pub fn reservations_drained(&self, _version: u64) -> bool {
        true
    }
    /// A command arrived.
    pub fn handle_command(
        &mut self,
        _now: Instant,
        _request: CommandRequest<'_>,
        _data: DataOut<'_>,
    ) -> Result<(), DuplicateTask> {
        Ok(())
    }
    /// The whole Data-Out of a task is there.
    pub fn handle_data_out(&mut self, _now: Instant, _task: TaskId, _data: &[u8]) {}
    /// An I/O action ended.
    pub fn handle_io(&mut self, _now: Instant, _task: TaskId, _done: IoDone<'_>) {}
    /// A proposal ended.
    pub fn handle_proposal(&mut self, _now: Instant, _task: TaskId, _outcome: ProposalOutcome) {}
    /// New mode parameters are in force in the cluster.
    pub fn install_mode_parameters(&mut self, _parameters: crate::mode::ModeParameters) {}
    /// A change of mode parameters ended.
    pub fn handle_mode_parameters(&mut self, _now: Instant, _task: TaskId, _outcome: ModeOutcome) {}
    /// A Unit Attention is established (`established`), or could not be.
    pub fn handle_unit_attention(&mut self, _now: Instant, _id: u64, _established: bool) {}
    /// A task management request arrived.
    pub fn handle_task_management(&mut self, _now: Instant, _request: TaskManagementRequest<'_>) {}
    /// A nexus is gone.
    pub fn handle_nexus_loss(&mut self, _now: Instant, _nexus: &Nexus) {}
    /// What to do next.
    pub fn poll_action(&mut self) -> Option<Action> {
        None
    }
    /// When the oldest I/O that is under way was submitted: the health of the data path.
    pub fn oldest_submission(&self) -> Option<Instant> {
        None
    }
}
