//! Commands that only tell something.

use alloc::vec;
use alloc::vec::Vec;

use super::{Completion, DeviceServer};
use crate::{
    alua, capacity,
    cdb::{BufferMode, Command},
    checks,
    checks::WriteProtect,
    identity::PortContext,
    inquiry, limits,
    log_pages::{self, LogFacts},
    lu_state::{self, UnixMillis},
    mode,
    mode::{ModeState, ReportMethod},
    reply::Reply,
    rsoc,
    sense::{Sense, SenseKey, asc},
    status::Status,
    task_set::TaskId,
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
            // There is no self-test that differs from what every I/O tests, and a PRE-FETCH into a cache without room for it
            // is GOOD (SBC-4 5.15).
            Command::TestUnitReady
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
                    vpd::write(page, unit, &port, self.groups(), allocation_length, out)
                })?
            }
            Command::ModeSense(request) => {
                let state = self.mode_state(id);
                try_parameter_data(u32::from(request.allocation_length), |out| {
                    mode::sense(&request, &state, out)
                })?
            }
            Command::LogSense { page, pointer, allocation_length } => {
                let allocation_length = u32::from(allocation_length);
                let facts = LogFacts {
                    exception: self.mode.exceptions.exception(),
                    resources: self.resource_counts(),
                    statistics: self.statistics,
                };
                parameter_data(allocation_length, |out| {
                    log_pages::log_sense(page, pointer, &facts, allocation_length, out)
                })
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
                    let changed_by = self.topology.changed_by;
                    alua::report_target_port_groups(
                        self.groups(),
                        changed_by,
                        extended,
                        allocation_length,
                        out,
                    )
                })
            }
            Command::ReportSupportedOperationCodes { options, timeouts, allocation_length } => {
                try_parameter_data(allocation_length, |out| {
                    rsoc::supported_operation_codes(options, timeouts, allocation_length, out)
                })?
            }
            Command::ReportSupportedTaskManagementFunctions { extended, allocation_length } => {
                parameter_data(allocation_length, |out| {
                    rsoc::supported_task_management_functions(
                        rsoc::TaskManagementFunctions::All,
                        extended,
                        allocation_length,
                        out,
                    )
                })
            }
            Command::ReadBuffer { mode, allocation_length } => {
                self.read_buffer(id, mode, allocation_length)?
            }
            Command::ReportIdentifyingInformation { kind, allocation_length } => {
                let information = &self.reservations.installed().unit.identifying;
                parameter_data(allocation_length, |out| {
                    lu_state::report_identifying_information(kind, information, allocation_length, out)
                })
            }
            Command::ReportTimestamp { allocation_length } => {
                let ahead = self.reservations.installed().unit.timestamp_ahead;
                let now = self.cluster_clock();
                parameter_data(allocation_length, |out| {
                    lu_state::report_timestamp(now, ahead, allocation_length, out)
                })
            }
            // REPORT LUNS is the port's to answer, the rest is not of this kind.
            _ => return Err(Sense::new(SenseKey::HardwareError, asc::INTERNAL_TARGET_FAILURE)),
        };
        Ok(Completion::bytes(data))
    }

    /// READ BUFFER (SPC-5 6.18): each I_T nexus has an echo buffer of its own, so none is ever overwritten by another.
    fn read_buffer(&self, id: TaskId, mode: BufferMode, allocation_length: u32) -> Result<Vec<u8>, Sense> {
        let [_, _, high, low] = limits::ECHO_BUFFER_LEN.to_be_bytes();
        let whole: &[u8] = match mode {
            BufferMode::Descriptor => &[0; 4],
            BufferMode::EchoBufferDescriptor => &[0, 0, high, low],
            BufferMode::EchoBuffer => {
                let nexus = self.tasks.get(&id).map(|task| task.nexus);
                let echo = nexus.and_then(|nexus| self.echo_buffers.get(&nexus));
                echo.ok_or(Sense::illegal(asc::COMMAND_SEQUENCE_ERROR))?
            }
        };
        let len = whole.len().min(usize::try_from(allocation_length).unwrap_or(usize::MAX));
        Ok(whole.get(..len).unwrap_or(whole).to_vec())
    }

    /// WRITE BUFFER to the echo buffer.
    pub(super) fn write_buffer(&mut self, id: TaskId, parameter_list_length: u32) {
        let Some(task) = self.tasks.get(&id) else { return };
        if let Some(refused) = self.data_length_refusal(task) {
            return self.complete(id, refused);
        }
        let len = usize::try_from(parameter_list_length).unwrap_or(usize::MAX);
        let (nexus, data) = (task.nexus, task.data.get(..len).unwrap_or(&task.data).to_vec());
        if self.echo_buffers.len() >= limits::PREVENTING_MAX && !self.echo_buffers.contains_key(&nexus) {
            return self.complete(id, Completion::check(Sense::illegal(asc::INSUFFICIENT_RESOURCES)));
        }
        self.echo_buffers.insert(nexus, data);
        self.complete(id, Completion::good());
    }

    fn request_sense(&self, id: TaskId, descriptor: bool, allocation_length: u8) -> Completion {
        let task = self.tasks.get(&id);
        let already = task.and_then(|task| self.reported.get(&task.nexus)).copied();
        let pending = task.and_then(|task| task.unit_attention).filter(|ua| Some(ua.id) != already);
        let mut data = vec![0; usize::from(allocation_length)];
        let exceptions = &self.mode.exceptions;
        let exception = exceptions.exception().filter(|_| exceptions.method == ReportMethod::OnRequest);
        let operation = self.reservations.installed().unit.operation.as_ref();
        let otherwise = match (operation, exception) {
            (Some(operation), _) => operation.sense(self.progress()),
            (None, Some(what)) => Sense::new(SenseKey::NoSense, what),
            (None, None) => Sense::NONE,
        };
        let (reply, reported) =
            checks::request_sense(pending, &otherwise, descriptor, allocation_length, &mut data);
        data.truncate(reply.written);
        Completion { unit_attention_reported: reported, ..Completion::bytes(data) }
    }

    fn groups(&self) -> impl Iterator<Item = alua::TargetPortGroup<'_>> {
        self.topology.groups.iter().map(|group| alua::TargetPortGroup {
            id: group.id,
            state: group.state,
            preferred: group.preferred,
            ports: &group.ports,
        })
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

    /// What the cluster's clock shows now.
    pub(super) fn cluster_clock(&self) -> UnixMillis {
        let (then, shown) = self.clock;
        UnixMillis(shown.0.saturating_add(self.now.millis_since(then)))
    }

    fn mode_state(&self, id: TaskId) -> ModeState {
        let protect = self.tasks.get(&id).map(|task| self.write_protect(task));
        ModeState {
            current: self.mode,
            saved: self.reservations.installed().saved_mode(self.config.mode),
            default: self.config.mode,
            read_only: protect == Some(WriteProtect::ReadOnly),
            geometry: self.config.properties.geometry,
        }
    }
}
