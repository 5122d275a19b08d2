//! Asynchronous Message (RFC 7143 11.9).
//!
//! Other events are never raised: 0, a SCSI event, is for units with asynchronous event reporting, whose bit in INQUIRY (AERC) is obsolete;
//! 2, one connection that is dropped, because at error recovery level 0 a session goes as a whole; 4, a wish to negotiate,
//! because nothing changes that was agreed; 5, tasks that are being terminated, because it is forbidden unless
//! TaskReporting=FastAbort was agreed, and only RFC3720 is offered.

use super::{Bhs, FINAL, InvalidField, Numbers, TAG_NONE, opcode};

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AsyncEvent {
    /// 1: log out within so many seconds.
    RequestLogout {
        /// Seconds until the target closes the connection.
        seconds: u16,
    },
    /// 3: all connections of the session will be dropped; seconds before and for which reconnecting makes sense.
    DropSession {
        /// Time2Wait
        time_2_wait: u16,
        /// Time2Retain
        time_2_retain: u16,
    },
}

/// An Asynchronous Message without data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AsyncMessage {
    /// What happened.
    pub event: AsyncEvent,
    /// Sequence numbers.
    pub numbers: Numbers,
}

impl AsyncMessage {
    /// As a header.
    #[must_use]
    pub fn encode(&self) -> Bhs {
        let mut bhs = Bhs::new(opcode::ASYNC_MESSAGE, FINAL);
        bhs.set_word::<16>(TAG_NONE);
        bhs.set_numbers(self.numbers);
        match self.event {
            AsyncEvent::RequestLogout { seconds } => {
                bhs.0[36] = 1;
                bhs.set_half::<42>(seconds);
            }
            AsyncEvent::DropSession { time_2_wait, time_2_retain } => {
                bhs.0[36] = 3;
                bhs.set_half::<40>(time_2_wait);
                bhs.set_half::<42>(time_2_retain);
            }
        }
        bhs
    }

    /// From a header.
    ///
    /// # Errors
    /// An event that we never send.
    pub fn decode(bhs: &Bhs) -> Result<Self, InvalidField> {
        let event = match bhs.0[36] {
            1 => AsyncEvent::RequestLogout { seconds: bhs.half::<42>() },
            3 => AsyncEvent::DropSession { time_2_wait: bhs.half::<40>(), time_2_retain: bhs.half::<42>() },
            _ => return Err(InvalidField("AsyncEvent")),
        };
        Ok(Self { event, numbers: bhs.numbers() })
    }
}
