//! Reject (RFC 7143 11.17). Its data segment is the header of the PDU that was refused.

use super::{Bhs, FINAL, InvalidField, Numbers, TAG_NONE, opcode};

/// Why a PDU was refused; the reasons that a target of error recovery level 0 gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectReason {
    /// 02h: its data was damaged.
    DataDigestError,
    /// 03h: there is no recovery by SNACK at this level.
    SnackReject,
    /// 04h: it does not belong here.
    ProtocolError,
    /// 05h: no such opcode.
    CommandNotSupported,
    /// 06h: too many immediate commands.
    ImmediateCommandReject,
    /// 07h: its tag is in use.
    TaskInProgress,
    /// 09h: a field makes no sense.
    InvalidPduField,
    /// 0Ch: only a logout is accepted any more.
    WaitingForLogout,
}

impl RejectReason {
    const ALL: [(Self, u8); 8] = [
        (Self::DataDigestError, 2),
        (Self::SnackReject, 3),
        (Self::ProtocolError, 4),
        (Self::CommandNotSupported, 5),
        (Self::ImmediateCommandReject, 6),
        (Self::TaskInProgress, 7),
        (Self::InvalidPduField, 9),
        (Self::WaitingForLogout, 0x0c),
    ];

    /// The code on the wire.
    #[must_use]
    pub fn code(self) -> u8 {
        Self::ALL.iter().find(|(reason, _)| *reason == self).map_or(4, |&(_, code)| code)
    }
}

/// Reject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reject {
    /// Why.
    pub reason: RejectReason,
    /// Sequence numbers.
    pub numbers: Numbers,
}

impl Reject {
    /// As a header.
    #[must_use]
    pub fn encode(&self) -> Bhs {
        let mut bhs = Bhs::new(opcode::REJECT, FINAL);
        bhs.0[2] = self.reason.code();
        bhs.set_word::<16>(TAG_NONE);
        bhs.set_numbers(self.numbers);
        bhs
    }

    /// From a header.
    ///
    /// # Errors
    /// A reason that we never give.
    pub fn decode(bhs: &Bhs) -> Result<Self, InvalidField> {
        let reason = RejectReason::ALL.iter().find(|&&(_, code)| code == bhs.0[2]);
        let &(reason, _) = reason.ok_or(InvalidField("Reason"))?;
        Ok(Self { reason, numbers: bhs.numbers() })
    }
}
