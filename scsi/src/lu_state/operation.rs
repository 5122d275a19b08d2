//! FORMAT UNIT and SANITIZE: an operation on the whole medium that goes on by itself (SBC-4 4.11 and 4.34).
//!
//! It is the unit's, not its owner's: a new owner begins it again. Invariants: nothing but [`OperationState::Failed`] and the end of
//! the work ends it; only one is there at a time.

use alloc::vec::Vec;

use crate::{
    cdb::{Command, SanitizeAction},
    sense::{AdditionalSense, Sense, SenseKey, asc},
};

/// An operation that is under way, or has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// What is done.
    pub kind: OperationKind,
    /// How far.
    pub state: OperationState,
}

/// What is done to every block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OperationKind {
    /// FORMAT UNIT: deallocated, reads as zeroes.
    Format,
    /// SANITIZE, BLOCK ERASE: deallocated, reads as zeroes.
    BlockErase,
    /// SANITIZE, OVERWRITE.
    Overwrite {
        /// What is written over and over, 1 byte to a block.
        pattern: Vec<u8>,
        /// How often, 1 to 31 times.
        passes: u8,
        /// INVERT: every second pass writes the complement, beginning so that the last pass writes the pattern.
        invert: bool,
    },
}

/// How far an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationState {
    /// Under way.
    Running {
        /// AUSE: its failure may be left by EXIT FAILURE MODE.
        may_exit_failure: bool,
    },
    /// It failed.
    Failed {
        /// AUSE.
        may_exit_failure: bool,
    },
}

impl Operation {
    /// The sense data of commands that it stops, `progress` being in 65536ths.
    pub fn sense(&self, progress: u16) -> Sense {
        let is_format = self.kind == OperationKind::Format;
        match self.state {
            OperationState::Running { .. } => {
                let what = if is_format { asc::FORMAT_IN_PROGRESS } else { asc::SANITIZE_IN_PROGRESS };
                Sense::new(SenseKey::NotReady, what).with_progress(progress)
            }
            OperationState::Failed { .. } => Sense::new(SenseKey::MediumError, self.failure()),
        }
    }

    fn failure(&self) -> AdditionalSense {
        match self.kind {
            OperationKind::Format => asc::FORMAT_COMMAND_FAILED,
            OperationKind::BlockErase | OperationKind::Overwrite { .. } => asc::SANITIZE_COMMAND_FAILED,
        }
    }

    /// True while it is under way.
    pub const fn is_running(&self) -> bool {
        matches!(self.state, OperationState::Running { .. })
    }

    /// True if a command may run meanwhile (SBC-4 4.11.2): what tells about the unit, and what ends a failure.
    pub const fn admits(&self, command: &Command) -> bool {
        match command {
            Command::Inquiry { .. } | Command::RequestSense { .. } | Command::ReportLuns { .. } => true,
            Command::LogSense { .. }
            | Command::ReportSupportedOperationCodes { .. }
            | Command::ReportSupportedTaskManagementFunctions { .. }
            | Command::ReportTargetPortGroups { .. }
            | Command::PersistentReserveIn { .. } => true,
            Command::Sanitize { .. } | Command::FormatUnit { .. } => !self.is_running(),
            _ => false,
        }
    }

    /// What a FORMAT UNIT or SANITIZE begins; `None`: EXIT FAILURE MODE.
    pub(super) fn of(command: &Command, list: &[u8]) -> Result<Option<Operation>, Sense> {
        let (kind, may_exit_failure) = match *command {
            Command::FormatUnit { header_len } => {
                check_format_header(usize::from(header_len), list)?;
                (OperationKind::Format, false)
            }
            Command::Sanitize { action: SanitizeAction::ExitFailureMode, .. } => return Ok(None),
            Command::Sanitize { action: SanitizeAction::BlockErase, may_exit_failure, .. } => {
                (OperationKind::BlockErase, may_exit_failure)
            }
            Command::Sanitize { action: SanitizeAction::Overwrite, may_exit_failure, .. } => {
                (overwrite(list)?, may_exit_failure)
            }
            _ => return Err(Sense::illegal(asc::INVALID_COMMAND_OPERATION_CODE)),
        };
        Ok(Some(Operation { kind, state: OperationState::Running { may_exit_failure } }))
    }
}

/// True if a FORMAT UNIT with this parameter list, or this SANITIZE, is answered before the work is done.
pub(crate) fn is_immediate(command: &Command, list: &[u8]) -> bool {
    const IMMED: u8 = 0x02;
    match command {
        Command::Sanitize { immediate, .. } => *immediate,
        _ => list.get(1).is_some_and(|flags| flags & IMMED != 0),
    }
}

/// No initialization pattern, no defects, no protection information.
fn check_format_header(len: usize, list: &[u8]) -> Result<(), Sense> {
    const IP: u8 = 0x08;
    const FOV_DPRY_DCRT_IMMED: u8 = 0xe2;
    if len == 0 {
        return Ok(());
    }
    let header = list.get(..len).ok_or(Sense::parameter_list_length())?;
    let (Some(usage), Some(flags)) = (header.first(), header.get(1)) else {
        return Err(Sense::parameter_list_length());
    };
    if usage & 0x07 != 0 {
        return Err(Sense::illegal_field_parameter(0, Some(2)));
    }
    if flags & IP != 0 {
        return Err(Sense::illegal_field_parameter(1, Some(3)));
    }
    if flags & !FOV_DPRY_DCRT_IMMED != 0 {
        return Err(Sense::illegal_field_parameter(1, Some(4)));
    }
    // DEFECT LIST LENGTH: two bytes, or four in the long header.
    let defects_at = if len == 4 { 2 } else { 4 };
    match header.get(defects_at..).is_some_and(|length| length.iter().all(|byte| *byte == 0)) {
        true => Ok(()),
        false => Err(Sense::illegal_field_parameter(defects_at as u16, None)),
    }
}

fn overwrite(list: &[u8]) -> Result<OperationKind, Sense> {
    let [flags, _, high, low, ref pattern @ ..] = *list else { return Err(Sense::parameter_list_length()) };
    let passes = flags & 0x1f;
    if flags & 0x60 != 0 {
        return Err(Sense::illegal_field_parameter(0, Some(6)));
    }
    if passes == 0 {
        return Err(Sense::illegal_field_parameter(0, Some(4)));
    }
    if pattern.is_empty() || usize::from(u16::from_be_bytes([high, low])) != pattern.len() {
        return Err(Sense::illegal_field_parameter(2, None));
    }
    Ok(OperationKind::Overwrite { pattern: pattern.to_vec(), passes, invert: flags & 0x80 != 0 })
}
