//! NOP-Out and NOP-In (RFC 7143 11.18, 11.19).

use super::{Bhs, CommandNumbers, FINAL, Numbers, opcode};

/// NOP-Out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NopOut {
    /// Logical unit number, meaningful with a target transfer tag.
    pub lun: [u8; 8],
    /// [`super::TAG_NONE`] if no answer is wanted.
    pub initiator_task_tag: u32,
    /// The NOP-In that this answers, or [`super::TAG_NONE`].
    pub target_transfer_tag: u32,
    /// Numbering.
    pub numbers: CommandNumbers,
}

impl NopOut {
    /// From a header.
    #[must_use]
    pub fn decode(bhs: &Bhs) -> Self {
        Self {
            lun: bhs.lun(),
            initiator_task_tag: bhs.word::<16>(),
            target_transfer_tag: bhs.word::<20>(),
            numbers: CommandNumbers::of(bhs),
        }
    }

    /// As a header.
    #[must_use]
    pub fn encode(&self) -> Bhs {
        let mut bhs = Bhs::request(opcode::NOP_OUT, self.numbers.immediate, FINAL);
        bhs.set_lun(self.lun);
        bhs.set_word::<16>(self.initiator_task_tag);
        bhs.set_word::<20>(self.target_transfer_tag);
        self.numbers.write(&mut bhs);
        bhs
    }
}

/// NOP-In.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NopIn {
    /// The NOP-Out that this answers, or [`super::TAG_NONE`].
    pub initiator_task_tag: u32,
    /// Names a ping that wants an answer, or [`super::TAG_NONE`].
    pub target_transfer_tag: u32,
    /// Sequence numbers; only an answer takes a StatSN.
    pub numbers: Numbers,
}

impl NopIn {
    /// As a header.
    #[must_use]
    pub fn encode(&self) -> Bhs {
        let mut bhs = Bhs::new(opcode::NOP_IN, FINAL);
        bhs.set_word::<16>(self.initiator_task_tag);
        bhs.set_word::<20>(self.target_transfer_tag);
        bhs.set_numbers(self.numbers);
        bhs
    }

    /// From a header.
    #[must_use]
    pub fn decode(bhs: &Bhs) -> Self {
        Self {
            initiator_task_tag: bhs.word::<16>(),
            target_transfer_tag: bhs.word::<20>(),
            numbers: bhs.numbers(),
        }
    }
}
