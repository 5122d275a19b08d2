//! The commands of third-party copy (SPC-4 6.4 to 6.20, SBC-4 5.17 and 5.57): operation codes 83h and 84h.
//!
//! Only their CDBs; the parameter lists are for `copy` to judge.

use super::fields::RawCdb;
use super::{Command, Direction};
use crate::geometry::Geometry;
use crate::limits;
use crate::sense::Sense;

/// A command of third-party copy. Lengths are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyCommand {
    /// EXTENDED COPY (LID1).
    ExtendedCopyLid1 {
        /// PARAMETER LIST LENGTH, at most [`limits::COPY_PARAMETER_LIST_MAX`].
        parameter_list_length: u32,
    },
    /// EXTENDED COPY (LID4).
    ExtendedCopyLid4 {
        /// PARAMETER LIST LENGTH, at most [`limits::COPY_PARAMETER_LIST_MAX`].
        parameter_list_length: u32,
    },
    /// POPULATE TOKEN.
    PopulateToken {
        /// LIST IDENTIFIER.
        list_id: u32,
        /// PARAMETER LIST LENGTH, at most [`limits::COPY_PARAMETER_LIST_MAX`].
        parameter_list_length: u32,
    },
    /// WRITE USING TOKEN.
    WriteUsingToken {
        /// LIST IDENTIFIER.
        list_id: u32,
        /// PARAMETER LIST LENGTH, at most [`limits::COPY_PARAMETER_LIST_MAX`].
        parameter_list_length: u32,
    },
    /// COPY OPERATION ABORT.
    Abort {
        /// LIST IDENTIFIER.
        list_id: u32,
    },
    /// RECEIVE COPY STATUS (LID1).
    ReceiveStatusLid1 {
        /// LIST IDENTIFIER.
        list_id: u8,
        /// ALLOCATION LENGTH.
        allocation_length: u32,
    },
    /// RECEIVE COPY DATA (LID1).
    ReceiveDataLid1 {
        /// LIST IDENTIFIER.
        list_id: u8,
        /// ALLOCATION LENGTH.
        allocation_length: u32,
    },
    /// RECEIVE COPY OPERATING PARAMETERS.
    ReceiveOperatingParameters {
        /// ALLOCATION LENGTH.
        allocation_length: u32,
    },
    /// RECEIVE COPY FAILURE DETAILS (LID1).
    ReceiveFailureDetails {
        /// LIST IDENTIFIER.
        list_id: u8,
        /// ALLOCATION LENGTH.
        allocation_length: u32,
    },
    /// RECEIVE COPY STATUS (LID4).
    ReceiveStatusLid4 {
        /// LIST IDENTIFIER.
        list_id: u32,
        /// ALLOCATION LENGTH.
        allocation_length: u32,
    },
    /// RECEIVE COPY DATA (LID4).
    ReceiveDataLid4 {
        /// LIST IDENTIFIER.
        list_id: u32,
        /// ALLOCATION LENGTH.
        allocation_length: u32,
    },
    /// RECEIVE ROD TOKEN INFORMATION.
    ReceiveRodTokenInformation {
        /// LIST IDENTIFIER.
        list_id: u32,
        /// ALLOCATION LENGTH.
        allocation_length: u32,
    },
    /// REPORT ALL ROD TOKENS.
    ReportAllRodTokens {
        /// ALLOCATION LENGTH.
        allocation_length: u32,
    },
}

impl CopyCommand {
    /// Which way the data goes, and how much at most.
    pub const fn transfer_len(&self) -> (Direction, u64) {
        match self {
            CopyCommand::ExtendedCopyLid1 { parameter_list_length }
            | CopyCommand::ExtendedCopyLid4 { parameter_list_length }
            | CopyCommand::PopulateToken { parameter_list_length, .. }
            | CopyCommand::WriteUsingToken { parameter_list_length, .. } => {
                (Direction::Out, *parameter_list_length as u64)
            }
            CopyCommand::Abort { .. } => (Direction::None, 0),
            CopyCommand::ReceiveStatusLid1 { allocation_length, .. }
            | CopyCommand::ReceiveDataLid1 { allocation_length, .. }
            | CopyCommand::ReceiveOperatingParameters { allocation_length }
            | CopyCommand::ReceiveFailureDetails { allocation_length, .. }
            | CopyCommand::ReceiveStatusLid4 { allocation_length, .. }
            | CopyCommand::ReceiveDataLid4 { allocation_length, .. }
            | CopyCommand::ReceiveRodTokenInformation { allocation_length, .. }
            | CopyCommand::ReportAllRodTokens { allocation_length } => {
                (Direction::In, *allocation_length as u64)
            }
        }
    }

    /// True for those that tell of copies and tokens, and change nothing: operation code 84h.
    pub const fn tells_only(&self) -> bool {
        matches!(self.transfer_len().0, Direction::In)
    }

    /// True for those that begin a copy operation or represent data: what a parameter list comes with.
    pub const fn has_parameter_list(&self) -> bool {
        matches!(self.transfer_len().0, Direction::Out)
    }
}

/// Bytes 10 to 13, in every one of them that has a parameter list.
const fn parameter_list_length(raw: &RawCdb) -> Result<u32, Sense> {
    let length = raw.u32::<10>();
    if length > limits::COPY_PARAMETER_LIST_MAX { Err(Sense::parameter_list_length()) } else { Ok(length) }
}

pub(crate) fn extended_copy_lid1(raw: &RawCdb, _: &Geometry) -> Result<Command, Sense> {
    let parameter_list_length = parameter_list_length(raw)?;
    Ok(Command::Copy(CopyCommand::ExtendedCopyLid1 { parameter_list_length }))
}

pub(crate) fn extended_copy_lid4(raw: &RawCdb, _: &Geometry) -> Result<Command, Sense> {
    let parameter_list_length = parameter_list_length(raw)?;
    Ok(Command::Copy(CopyCommand::ExtendedCopyLid4 { parameter_list_length }))
}

pub(crate) fn populate_token(raw: &RawCdb, _: &Geometry) -> Result<Command, Sense> {
    let parameter_list_length = parameter_list_length(raw)?;
    Ok(Command::Copy(CopyCommand::PopulateToken { list_id: raw.u32::<6>(), parameter_list_length }))
}

pub(crate) fn write_using_token(raw: &RawCdb, _: &Geometry) -> Result<Command, Sense> {
    let parameter_list_length = parameter_list_length(raw)?;
    Ok(Command::Copy(CopyCommand::WriteUsingToken { list_id: raw.u32::<6>(), parameter_list_length }))
}

pub(crate) fn copy_operation_abort(raw: &RawCdb, _: &Geometry) -> Result<Command, Sense> {
    Ok(Command::Copy(CopyCommand::Abort { list_id: raw.u32::<2>() }))
}

pub(crate) fn receive_copy_status_lid1(raw: &RawCdb, _: &Geometry) -> Result<Command, Sense> {
    let (list_id, allocation_length) = (raw.u8::<2>(), raw.u32::<10>());
    Ok(Command::Copy(CopyCommand::ReceiveStatusLid1 { list_id, allocation_length }))
}

pub(crate) fn receive_copy_data_lid1(raw: &RawCdb, _: &Geometry) -> Result<Command, Sense> {
    let (list_id, allocation_length) = (raw.u8::<2>(), raw.u32::<10>());
    Ok(Command::Copy(CopyCommand::ReceiveDataLid1 { list_id, allocation_length }))
}

pub(crate) fn receive_copy_operating_parameters(raw: &RawCdb, _: &Geometry) -> Result<Command, Sense> {
    Ok(Command::Copy(CopyCommand::ReceiveOperatingParameters { allocation_length: raw.u32::<10>() }))
}

pub(crate) fn receive_copy_failure_details(raw: &RawCdb, _: &Geometry) -> Result<Command, Sense> {
    let (list_id, allocation_length) = (raw.u8::<2>(), raw.u32::<10>());
    Ok(Command::Copy(CopyCommand::ReceiveFailureDetails { list_id, allocation_length }))
}

pub(crate) fn receive_copy_status_lid4(raw: &RawCdb, _: &Geometry) -> Result<Command, Sense> {
    let (list_id, allocation_length) = (raw.u32::<2>(), raw.u32::<10>());
    Ok(Command::Copy(CopyCommand::ReceiveStatusLid4 { list_id, allocation_length }))
}

pub(crate) fn receive_copy_data_lid4(raw: &RawCdb, _: &Geometry) -> Result<Command, Sense> {
    let (list_id, allocation_length) = (raw.u32::<2>(), raw.u32::<10>());
    Ok(Command::Copy(CopyCommand::ReceiveDataLid4 { list_id, allocation_length }))
}

pub(crate) fn report_all_rod_tokens(raw: &RawCdb, _: &Geometry) -> Result<Command, Sense> {
    Ok(Command::Copy(CopyCommand::ReportAllRodTokens { allocation_length: raw.u32::<10>() }))
}

pub(crate) fn receive_rod_token_information(raw: &RawCdb, _: &Geometry) -> Result<Command, Sense> {
    let (list_id, allocation_length) = (raw.u32::<2>(), raw.u32::<10>());
    Ok(Command::Copy(CopyCommand::ReceiveRodTokenInformation { list_id, allocation_length }))
}
