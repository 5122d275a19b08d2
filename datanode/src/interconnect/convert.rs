//! Between the worker's words ([`crate::data_plane::router`]) and those of the frames ([`holdfast_replica::forward`]).

use holdfast_replica::{
    forward::{self, ClientEvent, DataOut, Function, FunctionOutcome, Instant},
    limits::COMMAND_AGE_MS_MAX,
};
use holdfast_scsi::{
    sense::{AdditionalSense, Sense, SenseKey},
    status::Status,
};

use crate::data_plane::router::{
    Bytes, CommandData, CommandFor, InterconnectEvent, LuFunction, LuFunctionOutcome, Outcome, Reply,
    TaskManagementFor,
};

/// COMMAND TIMEOUT BEFORE PROCESSING: what a command that is too old is told (SPC-5 annex F).
const COMMAND_TIMEOUT_BEFORE_PROCESSING: AdditionalSense = AdditionalSense::new(0x2e, 0x01);

/// The moment at which a command came to its port.
pub(super) fn arrived(command: &CommandFor) -> Instant {
    Instant(command.execute_by.0.saturating_sub(COMMAND_AGE_MS_MAX))
}

pub(super) fn command_out(command: CommandFor) -> forward::Command<Bytes> {
    forward::Command {
        volume: command.volume,
        epoch: command.epoch,
        nexus: command.nexus,
        cdb: command.cdb,
        attribute: command.attribute,
        data_out_len: command.data_out_len,
        data: match command.data {
            CommandData::None => DataOut::None,
            CommandData::Ready(bytes) => DataOut::Ready(bytes),
            CommandData::Awaited => DataOut::Awaited,
        },
        unit_attention: command.unit_attention,
        read_only: command.read_only,
        copy: command.copy,
    }
}

pub(super) fn command_in(command: forward::Command<Vec<u8>>, execute_by: Instant) -> CommandFor {
    CommandFor {
        volume: command.volume,
        epoch: command.epoch,
        nexus: command.nexus,
        cdb: command.cdb,
        attribute: command.attribute,
        data_out_len: command.data_out_len,
        data: match command.data {
            DataOut::None => CommandData::None,
            DataOut::Ready(bytes) => CommandData::Ready(Bytes::new(bytes)),
            DataOut::Awaited => CommandData::Awaited,
        },
        unit_attention: command.unit_attention,
        read_only: command.read_only,
        copy: command.copy,
        execute_by,
    }
}

pub(super) fn outcome_out(outcome: Outcome) -> forward::Outcome<Bytes> {
    match outcome {
        Outcome::Reply(reply) => forward::Outcome::Reply(forward::Reply {
            status: reply.status,
            sense: reply.sense,
            descriptor_sense: reply.descriptor_sense,
            data: (!reply.data.is_empty()).then_some(reply.data),
            transfer_len: reply.transfer_len,
            unit_attention_reported: reply.unit_attention_reported,
        }),
        Outcome::Aborted => forward::Outcome::Aborted,
        Outcome::NotExecuted => forward::Outcome::NotExecuted,
        Outcome::Unknown => forward::Outcome::Unknown,
    }
}

pub(super) fn event_in(event: ClientEvent) -> InterconnectEvent {
    match event {
        ClientEvent::Outcome { token, outcome } => {
            InterconnectEvent::Outcome { token, outcome: outcome_in(outcome) }
        }
        ClientEvent::TaskManagementDone { token, outcome } => {
            InterconnectEvent::TaskManagementDone { token, outcome: function_outcome_in(outcome) }
        }
        ClientEvent::NexusLossDone { token } => InterconnectEvent::NexusLossDone { token },
    }
}

fn outcome_in(outcome: forward::Outcome<Vec<u8>>) -> Outcome {
    match outcome {
        forward::Outcome::Reply(reply) => Outcome::Reply(Reply {
            status: reply.status,
            sense: reply.sense,
            descriptor_sense: reply.descriptor_sense,
            data: Bytes::new(reply.data.unwrap_or_default()),
            transfer_len: reply.transfer_len,
            unit_attention_reported: reply.unit_attention_reported,
        }),
        forward::Outcome::Aborted => Outcome::Aborted,
        forward::Outcome::NotExecuted => Outcome::NotExecuted,
        // The initiator may have given it up and sent it again on another path: it must not be tried once more here.
        forward::Outcome::Stale => Outcome::Reply(Reply {
            status: Status::CheckCondition,
            sense: Some(Sense::new(SenseKey::AbortedCommand, COMMAND_TIMEOUT_BEFORE_PROCESSING)),
            descriptor_sense: false,
            data: Bytes::default(),
            transfer_len: 0,
            unit_attention_reported: None,
        }),
        forward::Outcome::Unknown => Outcome::Unknown,
    }
}

pub(super) fn function_out(request: TaskManagementFor) -> forward::TaskManagement {
    forward::TaskManagement {
        volume: request.volume,
        epoch: request.epoch,
        nexus: request.nexus,
        function: match request.function {
            LuFunction::AbortTask(token) => Function::AbortTask(token),
            LuFunction::AbortTaskSet => Function::AbortTaskSet,
            LuFunction::ClearTaskSet => Function::ClearTaskSet,
            LuFunction::LogicalUnitReset => Function::LogicalUnitReset,
            LuFunction::ClearAca => Function::ClearAca,
            LuFunction::ItNexusReset => Function::ItNexusReset,
            LuFunction::QueryTask(token) => Function::QueryTask(token),
            LuFunction::QueryTaskSet => Function::QueryTaskSet,
        },
    }
}

pub(super) fn function_in(request: forward::TaskManagement) -> TaskManagementFor {
    TaskManagementFor {
        volume: request.volume,
        epoch: request.epoch,
        nexus: request.nexus,
        function: match request.function {
            Function::AbortTask(token) => LuFunction::AbortTask(token),
            Function::AbortTaskSet => LuFunction::AbortTaskSet,
            Function::ClearTaskSet => LuFunction::ClearTaskSet,
            Function::LogicalUnitReset => LuFunction::LogicalUnitReset,
            Function::ClearAca => LuFunction::ClearAca,
            Function::ItNexusReset => LuFunction::ItNexusReset,
            Function::QueryTask(token) => LuFunction::QueryTask(token),
            Function::QueryTaskSet => LuFunction::QueryTaskSet,
        },
    }
}

pub(super) fn function_outcome_out(outcome: LuFunctionOutcome) -> FunctionOutcome {
    match outcome {
        LuFunctionOutcome::Complete => FunctionOutcome::Complete,
        LuFunctionOutcome::Succeeded => FunctionOutcome::Succeeded,
        LuFunctionOutcome::TaskDoesNotExist => FunctionOutcome::TaskDoesNotExist,
        LuFunctionOutcome::NotSupported => FunctionOutcome::NotSupported,
        LuFunctionOutcome::Rejected => FunctionOutcome::Rejected,
        LuFunctionOutcome::NotExecuted => FunctionOutcome::NotExecuted,
        LuFunctionOutcome::Unknown => FunctionOutcome::Unknown,
    }
}

fn function_outcome_in(outcome: FunctionOutcome) -> LuFunctionOutcome {
    match outcome {
        FunctionOutcome::Complete => LuFunctionOutcome::Complete,
        FunctionOutcome::Succeeded => LuFunctionOutcome::Succeeded,
        FunctionOutcome::TaskDoesNotExist => LuFunctionOutcome::TaskDoesNotExist,
        FunctionOutcome::NotSupported => LuFunctionOutcome::NotSupported,
        FunctionOutcome::Rejected => LuFunctionOutcome::Rejected,
        FunctionOutcome::NotExecuted => LuFunctionOutcome::NotExecuted,
        FunctionOutcome::Unknown => LuFunctionOutcome::Unknown,
    }
}
