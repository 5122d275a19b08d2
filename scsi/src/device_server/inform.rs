//! Commands that only tell something, and MODE SELECT.

use alloc::vec;
use alloc::vec::Vec;

use super::{Action, Completion, DeviceServer, ModeOutcome, UaScope, UaWaiter, task::Stage};
use crate::{
    alua, capacity,
    cdb::{Command, ModeForm},
    checks,
    checks::WriteProtect,
    identity::PortContext,
    inquiry, log_pages, mode,
    mode::ModeState,
    reply::Reply,
    rsoc,
    sense::{Sense, SenseKey, asc},
    status::Status,
    task_set::TaskId,
    time::Instant,
    vpd,
};

/// Room for nearly every reply; a longer one is written again into as much as it needs.
const USUAL_LEN: usize = 4096;

/// Runs a writer of parameter data and returns what it wrote.
pub(super) fn parameter_data(allocation_length: u32, write: impl Fn(&mut [u8]) -> Reply) -> Vec<u8> {
    try_parameter_data(allocation_length, |out| Ok(write(out))).unwrap_or_default()
}

fn try_parameter_data(
    allocation_length: u32,
    write: impl Fn(&mut [u8]) -> Result<Reply, Sense>,
) -> Result<Vec<u8>, Sense> {
    let asked = usize::try_from(allocation_length).unwrap_or(usize::MAX);
    let mut out = vec![0; USUAL_LEN.min(asked)];
    let mut reply = write(&mut out)?;
    let whole = reply.full.min(asked);
    if whole > out.len() {
        out = vec![0; whole];
        reply = write(&mut out)?;
    }
    out.truncate(reply.written);
    Ok(out)
}

impl DeviceServer {
    /// The answer of a command that changes nothing.
    pub(super) fn inform(&mut self, id: TaskId, command: &Command) -> Completion {
        match self.parameter_data_of(id, command) {
            Ok(completion) => completion,
            Err(sense) => Completion::check(sense),
        }
    }

    fn parameter_data_of(&self, id: TaskId, command: &Command) -> Result<Completion, Sense> {
        let unit = &self.config.properties;
        let data = match *command {
            // What would be written is nothing: there is no medium to prevent removal of, no self-test that differs from
            // what every I/O tests, and a PRE-FETCH into a cache without room for it is GOOD (SBC-4 5.15).
            Command::TestUnitReady
            | Command::PreventAllowMediumRemoval { .. }
            | Command::SendDiagnostic { .. }
            | Command::PreFetch { .. }
            | Command::StartStopUnit { .. } => return Ok(Completion::good()),
            Command::RequestSense { descriptor, allocation_length } => {
                return Ok(self.request_sense(id, descriptor, allocation_length));
            }
            Command::Inquiry { vpd_page: None, allocation_length } => {
                parameter_data(u32::from(allocation_length), |out| {
                    inquiry::standard(&unit.identity, allocation_length, out)
                })
            }
            Command::Inquiry { vpd_page: Some(page), allocation_length } => {
                // Designators of a port that is not known yet must not differ from what they will be.
                let Some(port) = self.port_context(id) else { return Ok(Completion::status(Status::Busy)) };
                try_parameter_data(u32::from(allocation_length), |out| {
                    vpd::write(page, unit, &port, allocation_length, out)
                })?
            }
            Command::ModeSense(request) => {
                let state = self.mode_state(id);
                try_parameter_data(u32::from(request.allocation_length), |out| {
                    mode::sense(&request, &state, out)
                })?
            }
            Command::LogSense { page, allocation_length } => {
                let allocation_length = u32::from(allocation_length);
                parameter_data(allocation_length, |out| log_pages::log_sense(page, allocation_length, out))
            }
            Command::ReceiveDiagnosticResults { allocation_length } => {
                let allocation_length = u32::from(allocation_length);
                parameter_data(allocation_length, |out| {
                    log_pages::supported_diagnostic_pages(allocation_length, out)
                })
            }
            Command::ReadCapacity10 => {
                parameter_data(8, |out| capacity::read_capacity10(&unit.geometry, out))
            }
            Command::ReadCapacity16 { allocation_length } => parameter_data(allocation_length, |out| {
                capacity::read_capacity16(unit, allocation_length, out)
            }),
            Command::ReportTargetPortGroups { extended, allocation_length } => {
                parameter_data(allocation_length, |out| {
                    let groups = self.topology.groups.iter().map(|group| alua::TargetPortGroup {
                        id: group.id,
                        state: group.state,
                        preferred: group.preferred,
                        ports: &group.ports,
                    });
                    alua::report_target_port_groups(groups, extended, allocation_length, out)
                })
            }
            Command::ReportSupportedOperationCodes { options, timeouts, allocation_length } => {
                try_parameter_data(allocation_length, |out| {
                    rsoc::supported_operation_codes(options, timeouts, allocation_length, out)
                })?
            }
            Command::ReportSupportedTaskManagementFunctions { extended, allocation_length } => {
                parameter_data(allocation_length, |out| {
                    rsoc::supported_task_management_functions(extended, allocation_length, out)
                })
            }
            // REPORT LUNS is the port's to answer, the rest is not of this kind.
            _ => return Err(Sense::new(SenseKey::HardwareError, asc::INTERNAL_TARGET_FAILURE)),
        };
        Ok(Completion::bytes(data))
    }

    fn request_sense(&self, id: TaskId, descriptor: bool, allocation_length: u8) -> Completion {
        let task = self.tasks.get(&id);
        let already = task.and_then(|task| self.reported.get(&task.nexus)).copied();
        let pending = task.and_then(|task| task.unit_attention).filter(|ua| Some(ua.id) != already);
        let mut data = vec![0; usize::from(allocation_length)];
        let (reply, reported) = checks::request_sense(pending, descriptor, allocation_length, &mut data);
        data.truncate(reply.written);
        Completion { unit_attention_reported: reported, ..Completion::bytes(data) }
    }

    fn port_context(&self, id: TaskId) -> Option<PortContext<'_>> {
        let relative_port = self.tasks.get(&id)?.nexus.port;
        let group = self.topology.groups.iter().find(|group| group.ports.contains(&relative_port))?;
        Some(PortContext {
            relative_port,
            target_port_group: group.id,
            target_name: &self.topology.target_name,
        })
    }

    fn mode_state(&self, id: TaskId) -> ModeState {
        let protect = self.tasks.get(&id).map(|task| self.write_protect(task));
        ModeState {
            current: self.mode,
            default: self.config.mode,
            changeable: self.mode_changeable,
            read_only: protect == Some(WriteProtect::ReadOnly),
            geometry: self.config.properties.geometry,
        }
    }

    /// MODE SELECT: what it changes is proposed to the cluster.
    pub(super) fn mode_select(&mut self, id: TaskId, form: ModeForm, parameter_list_length: u16) {
        let Some(task) = self.tasks.get(&id) else { return };
        let state = self.mode_state(id);
        let Some(list) = task.data.get(..usize::from(parameter_list_length)) else {
            return self.complete(id, Completion::check(Sense::parameter_list_length()));
        };
        match mode::parse_select(form, list, &state) {
            Err(sense) => self.complete(id, Completion::check(sense)),
            Ok(parameters) if parameters == self.mode => self.complete(id, Completion::good()),
            Ok(parameters) => {
                self.set_stage(id, Stage::Proposed { expected_version: 0, drains: false });
                self.actions.push_back(Action::ProposeModeParameters { task: id, parameters });
            }
        }
    }

    /// A change of mode parameters ended. Once committed, the other nexuses are told (2A/01) before GOOD.
    pub fn handle_mode_parameters(&mut self, now: Instant, task: TaskId, outcome: ModeOutcome) {
        self.now = now;
        let Some(proposer) = self.tasks.get(&task) else { return };
        let is_mode_select = matches!(proposer.command, Ok(Command::ModeSelect { .. }));
        if !matches!(proposer.stage, Stage::Proposed { .. }) || !is_mode_select {
            return;
        }
        match outcome {
            ModeOutcome::Committed => {
                let others = UaScope::AllExcept(proposer.nexus);
                self.set_stage(task, Stage::AwaitingUnitAttention);
                self.establish(UaWaiter::Task(task), asc::MODE_PARAMETERS_CHANGED, others);
            }
            ModeOutcome::NotProposed => self.complete(task, Completion::status(Status::Busy)),
            ModeOutcome::Unknown => {
                let sense = Sense::new(SenseKey::AbortedCommand, asc::COMMUNICATION_FAILURE);
                self.complete(task, Completion::check(sense));
            }
        }
        self.run();
    }
}
