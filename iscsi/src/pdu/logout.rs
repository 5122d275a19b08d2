//! Logout Request and Logout Response (RFC 7143 11.14, 11.15).

use super::{Bhs, CommandNumbers, FINAL, InvalidField, Numbers, opcode};

/// What is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogoutReason {
    /// 0
    CloseSession,
    /// 1
    CloseConnection,
    /// 2
    RemoveForRecovery,
}

/// Logout Request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogoutRequest {
    /// What is to end.
    pub reason: LogoutReason,
    /// The request's tag.
    pub initiator_task_tag: u32,
    /// Which connection; means nothing when the session ends.
    pub cid: u16,
    /// Numbering.
    pub numbers: CommandNumbers,
}

impl LogoutRequest {
    /// From a header.
    ///
    /// # Errors
    /// A reserved reason.
    pub fn decode(bhs: &Bhs) -> Result<Self, InvalidField> {
        let reason = match bhs.flags() & 0x7f {
            0 => LogoutReason::CloseSession,
            1 => LogoutReason::CloseConnection,
            2 => LogoutReason::RemoveForRecovery,
            _ => return Err(InvalidField("Reason Code")),
        };
        let numbers = CommandNumbers::of(bhs);
        Ok(Self { reason, initiator_task_tag: bhs.word::<16>(), cid: bhs.half::<20>(), numbers })
    }

    /// As a header.
    #[must_use]
    pub fn encode(&self) -> Bhs {
        let reason = match self.reason {
            LogoutReason::CloseSession => 0,
            LogoutReason::CloseConnection => 1,
            LogoutReason::RemoveForRecovery => 2,
        };
        let mut bhs = Bhs::request(opcode::LOGOUT_REQUEST, self.numbers.immediate, FINAL | reason);
        bhs.set_word::<16>(self.initiator_task_tag);
        bhs.set_half::<20>(self.cid);
        self.numbers.write(&mut bhs);
        bhs
    }
}

/// How a logout went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogoutResult {
    /// 0
    Closed,
    /// 1: no such connection.
    CidNotFound,
    /// 2: connection recovery is not supported.
    RecoveryNotSupported,
}

/// Logout Response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogoutResponse {
    /// How it went.
    pub result: LogoutResult,
    /// The request's tag.
    pub initiator_task_tag: u32,
    /// Sequence numbers.
    pub numbers: Numbers,
    /// Seconds to wait before reconnecting.
    pub time_2_wait: u16,
    /// Seconds for which tasks are kept after that.
    pub time_2_retain: u16,
}

impl LogoutResponse {
    /// As a header.
    #[must_use]
    pub fn encode(&self) -> Bhs {
        let mut bhs = Bhs::new(opcode::LOGOUT_RESPONSE, FINAL);
        bhs.0[2] = match self.result {
            LogoutResult::Closed => 0,
            LogoutResult::CidNotFound => 1,
            LogoutResult::RecoveryNotSupported => 2,
        };
        bhs.set_word::<16>(self.initiator_task_tag);
        bhs.set_numbers(self.numbers);
        bhs.set_half::<40>(self.time_2_wait);
        bhs.set_half::<42>(self.time_2_retain);
        bhs
    }

    /// From a header.
    ///
    /// # Errors
    /// A response that we never send.
    pub fn decode(bhs: &Bhs) -> Result<Self, InvalidField> {
        let result = match bhs.0[2] {
            0 => LogoutResult::Closed,
            1 => LogoutResult::CidNotFound,
            2 => LogoutResult::RecoveryNotSupported,
            _ => return Err(InvalidField("Response")),
        };
        Ok(Self {
            result,
            initiator_task_tag: bhs.word::<16>(),
            numbers: bhs.numbers(),
            time_2_wait: bhs.half::<40>(),
            time_2_retain: bhs.half::<42>(),
        })
    }
}
