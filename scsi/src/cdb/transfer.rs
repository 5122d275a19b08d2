//! How much data a command moves, and which way.

use super::{Command, ModeSense, SanitizeAction, VerifyCheck, WriteSameSource};
use crate::geometry::Geometry;

/// Direction of the data, as the standards name it: from the initiator's view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// No data.
    None,
    /// To the initiator.
    In,
    /// From the initiator.
    Out,
}

impl Command {
    /// Which way the data goes. A transfer of zero bytes keeps its direction.
    pub const fn data_direction(&self) -> Direction {
        match self {
            Command::Copy(copy) => copy.transfer_len().0,
            Command::TestUnitReady
            | Command::SynchronizeCache { .. }
            | Command::PreFetch { .. }
            | Command::Reserve
            | Command::Release
            | Command::StartStopUnit { .. }
            | Command::PreventAllowMediumRemoval { .. }
            | Command::FormatUnit { header_len: 0 }
            | Command::LogSelect { parameter_list_length: 0, .. }
            | Command::SendDiagnostic { .. } => Direction::None,
            Command::Sanitize { action: SanitizeAction::Overwrite, .. } => Direction::Out,
            Command::Sanitize { .. } => Direction::None,
            Command::Verify { check: VerifyCheck::Medium, .. } => Direction::None,
            Command::WriteSame { source: WriteSameSource::Zeroes, .. } => Direction::None,
            Command::RequestSense { .. }
            | Command::ReadBuffer { .. }
            | Command::Inquiry { .. }
            | Command::ModeSense(_)
            | Command::LogSense { .. }
            | Command::ReceiveDiagnosticResults { .. }
            | Command::ReadCapacity10
            | Command::ReadCapacity16 { .. }
            | Command::Read { .. }
            | Command::GetLbaStatus { .. }
            | Command::ReportLuns { .. }
            | Command::ReportTargetPortGroups { .. }
            | Command::ReportSupportedOperationCodes { .. }
            | Command::ReportSupportedTaskManagementFunctions { .. }
            | Command::ReportIdentifyingInformation { .. }
            | Command::ReportTimestamp { .. }
            | Command::PersistentReserveIn { .. } => Direction::In,
            Command::ModeSelect { .. }
            | Command::LogSelect { .. }
            | Command::FormatUnit { .. }
            | Command::WriteBuffer { .. }
            | Command::SetIdentifyingInformation { .. }
            | Command::SetTimestamp { .. }
            | Command::SetTargetPortGroups { .. }
            | Command::Write { .. }
            | Command::WriteAndVerify { .. }
            | Command::Verify { .. }
            | Command::Unmap { .. }
            | Command::WriteSame { .. }
            | Command::CompareAndWrite { .. }
            | Command::OrWrite { .. }
            | Command::WriteAtomic { .. }
            | Command::PersistentReserveOut { .. } => Direction::Out,
        }
    }

    /// Direction and length in bytes. For the commands with an ALLOCATION LENGTH that is the most they can return; for
    /// all others it is exactly what the CDB asks for.
    pub const fn transfer_len(&self, geometry: &Geometry) -> (Direction, u64) {
        let block = geometry.block_size() as u64;
        let len = match self {
            Command::Copy(copy) => copy.transfer_len().1,
            Command::Read { extent, .. }
            | Command::Write { extent, .. }
            | Command::WriteAndVerify { extent, .. }
            | Command::OrWrite { extent, .. }
            | Command::WriteAtomic { extent, .. }
            | Command::Verify { extent, check: VerifyCheck::Bytes, .. } => extent.byte_len(geometry),
            Command::CompareAndWrite { extent, .. } => extent.byte_len(geometry).saturating_mul(2),
            Command::Verify { extent, check: VerifyCheck::OneBlock, .. } => {
                if extent.is_empty() {
                    0
                } else {
                    block
                }
            }
            Command::WriteSame { source: WriteSameSource::DataOutBlock, .. } => block,
            Command::WriteSame { source: WriteSameSource::Zeroes, .. }
            | Command::Verify { check: VerifyCheck::Medium, .. }
            | Command::TestUnitReady
            | Command::SynchronizeCache { .. }
            | Command::PreFetch { .. }
            | Command::Reserve
            | Command::Release
            | Command::StartStopUnit { .. }
            | Command::PreventAllowMediumRemoval { .. }
            | Command::SendDiagnostic { .. } => 0,
            Command::ReadCapacity10 => 8,
            Command::RequestSense { allocation_length, .. } => *allocation_length as u64,
            Command::Inquiry { allocation_length, .. }
            | Command::PersistentReserveIn { allocation_length, .. }
            | Command::LogSense { allocation_length, .. }
            | Command::ReceiveDiagnosticResults { allocation_length }
            | Command::ModeSense(ModeSense { allocation_length, .. }) => *allocation_length as u64,
            Command::ReadCapacity16 { allocation_length }
            | Command::GetLbaStatus { allocation_length, .. }
            | Command::ReportLuns { allocation_length, .. }
            | Command::ReportTargetPortGroups { allocation_length, .. }
            | Command::ReportSupportedOperationCodes { allocation_length, .. }
            | Command::ReportIdentifyingInformation { allocation_length, .. }
            | Command::ReadBuffer { allocation_length, .. }
            | Command::ReportTimestamp { allocation_length }
            | Command::ReportSupportedTaskManagementFunctions { allocation_length, .. } => {
                *allocation_length as u64
            }
            Command::ModeSelect { parameter_list_length, .. }
            | Command::LogSelect { parameter_list_length, .. }
            | Command::Unmap { parameter_list_length } => *parameter_list_length as u64,
            Command::FormatUnit { header_len } => *header_len as u64,
            Command::Sanitize { parameter_list_length, .. } => *parameter_list_length as u64,
            Command::SetIdentifyingInformation { parameter_list_length, .. }
            | Command::WriteBuffer { parameter_list_length }
            | Command::SetTimestamp { parameter_list_length }
            | Command::SetTargetPortGroups { parameter_list_length }
            | Command::PersistentReserveOut { parameter_list_length, .. } => *parameter_list_length as u64,
        };
        (self.data_direction(), len)
    }

    /// The range of logical blocks that the CDB names, if it names one.
    pub const fn extent(&self) -> Option<crate::geometry::Extent> {
        match self {
            Command::Read { extent, .. }
            | Command::Write { extent, .. }
            | Command::WriteAndVerify { extent, .. }
            | Command::Verify { extent, .. }
            | Command::WriteSame { extent, .. }
            | Command::CompareAndWrite { extent, .. }
            | Command::OrWrite { extent, .. }
            | Command::WriteAtomic { extent, .. } => Some(*extent),
            Command::SynchronizeCache { extent, .. } | Command::PreFetch { extent, .. } => *extent,
            _ => None,
        }
    }

    /// True if the command changes the contents of the medium: what write protection refuses.
    pub const fn writes_medium(&self) -> bool {
        matches!(
            self,
            Command::Write { .. }
                | Command::WriteAndVerify { .. }
                | Command::WriteSame { .. }
                | Command::CompareAndWrite { .. }
                | Command::OrWrite { .. }
                | Command::WriteAtomic { .. }
                | Command::FormatUnit { .. }
                | Command::Sanitize { .. }
                | Command::Unmap { .. }
                | Command::Copy(super::CopyCommand::WriteUsingToken { .. })
        )
    }
}
