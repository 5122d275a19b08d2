//! Task Management Function Request and Response (RFC 7143 11.5, 11.6).

use super::{Bhs, CommandNumbers, FINAL, Numbers, opcode};
use crate::event::TaskManagementResponse;

/// Task Management Function Request. The function stays a code: whether it is offered is the receiver's matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskManagementRequest {
    /// 1 ABORT TASK to 8 TASK REASSIGN, 9 QUERY TASK to 12 QUERY ASYNCHRONOUS EVENT (RFC 7144).
    pub function: u8,
    /// Logical unit number.
    pub lun: [u8; 8],
    /// The request's tag.
    pub initiator_task_tag: u32,
    /// The task that ABORT TASK means.
    pub referenced_task_tag: u32,
    /// CmdSN of that task.
    pub ref_cmd_sn: u32,
    /// Numbering.
    pub numbers: CommandNumbers,
}

impl TaskManagementRequest {
    /// From a header.
    #[must_use]
    pub fn decode(bhs: &Bhs) -> Self {
        Self {
            function: bhs.flags() & 0x7f,
            lun: bhs.lun(),
            initiator_task_tag: bhs.word::<16>(),
            referenced_task_tag: bhs.word::<20>(),
            ref_cmd_sn: bhs.word::<32>(),
            numbers: CommandNumbers::of(bhs),
        }
    }

    /// As a header.
    #[must_use]
    pub fn encode(&self) -> Bhs {
        let flags = FINAL | self.function;
        let mut bhs = Bhs::request(opcode::TASK_MANAGEMENT_REQUEST, self.numbers.immediate, flags);
        bhs.set_lun(self.lun);
        bhs.set_word::<16>(self.initiator_task_tag);
        bhs.set_word::<20>(self.referenced_task_tag);
        self.numbers.write(&mut bhs);
        bhs.set_word::<32>(self.ref_cmd_sn);
        bhs
    }
}

/// Task Management Function Response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskManagementResponsePdu {
    /// The answer's code.
    pub response: u8,
    /// Additional response information: bytes 8 to 10 (RFC 7144), zero but for a query that found something.
    pub additional: [u8; 3],
    /// The request's tag.
    pub initiator_task_tag: u32,
    /// Sequence numbers.
    pub numbers: Numbers,
}

impl TaskManagementResponsePdu {
    /// 4: task allegiance reassignment not supported.
    pub const REASSIGN_NOT_SUPPORTED: u8 = 4;

    /// As a header.
    #[must_use]
    pub fn encode(&self) -> Bhs {
        let mut bhs = Bhs::new(opcode::TASK_MANAGEMENT_RESPONSE, FINAL);
        bhs.0[2] = self.response;
        bhs.0[8..11].copy_from_slice(&self.additional);
        bhs.set_word::<16>(self.initiator_task_tag);
        bhs.set_numbers(self.numbers);
        bhs
    }

    /// From a header.
    #[must_use]
    pub fn decode(bhs: &Bhs) -> Self {
        Self {
            response: bhs.0[2],
            additional: [bhs.0[8], bhs.0[9], bhs.0[10]],
            initiator_task_tag: bhs.word::<16>(),
            numbers: bhs.numbers(),
        }
    }
}

impl TaskManagementResponse {
    /// The code on the wire.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Complete => 0,
            Self::TaskDoesNotExist => 1,
            Self::LunDoesNotExist => 2,
            Self::NotSupported => 5,
            Self::AuthorizationFailed => 6,
            Self::Succeeded(_) => 7,
            Self::Rejected => 255,
        }
    }

    /// The additional response information that goes with it.
    #[must_use]
    pub fn additional(self) -> [u8; 3] {
        match self {
            Self::Succeeded(additional) => additional,
            _ => [0; 3],
        }
    }
}
