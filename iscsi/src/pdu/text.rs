//! Text Request and Text Response (RFC 7143 11.10, 11.11).

use super::{Bhs, CONTINUE, CommandNumbers, FINAL, Numbers, opcode};

fn flags(last: bool, more: bool) -> u8 {
    (if last { FINAL } else { 0 }) | if more { CONTINUE } else { 0 }
}

/// Text Request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextRequest {
    /// The F bit: the initiator has no more to say.
    pub last: bool,
    /// The C bit: this text goes on in the next PDU.
    pub more: bool,
    /// Logical unit number.
    pub lun: [u8; 8],
    /// The request's tag.
    pub initiator_task_tag: u32,
    /// Copied from the response that this continues, else [`super::TAG_NONE`].
    pub target_transfer_tag: u32,
    /// Numbering.
    pub numbers: CommandNumbers,
}

impl TextRequest {
    /// From a header.
    #[must_use]
    pub fn decode(bhs: &Bhs) -> Self {
        Self {
            last: bhs.flags() & FINAL != 0,
            more: bhs.flags() & CONTINUE != 0,
            lun: bhs.lun(),
            initiator_task_tag: bhs.word::<16>(),
            target_transfer_tag: bhs.word::<20>(),
            numbers: CommandNumbers::of(bhs),
        }
    }

    /// As a header.
    #[must_use]
    pub fn encode(&self) -> Bhs {
        let mut bhs = Bhs::request(opcode::TEXT_REQUEST, self.numbers.immediate, flags(self.last, self.more));
        bhs.set_lun(self.lun);
        bhs.set_word::<16>(self.initiator_task_tag);
        bhs.set_word::<20>(self.target_transfer_tag);
        self.numbers.write(&mut bhs);
        bhs
    }
}

/// Text Response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextResponse {
    /// The F bit: the exchange is over.
    pub last: bool,
    /// The C bit: this text goes on in the next response.
    pub more: bool,
    /// The request's tag.
    pub initiator_task_tag: u32,
    /// To be copied into the request that continues the exchange, else [`super::TAG_NONE`].
    pub target_transfer_tag: u32,
    /// Sequence numbers.
    pub numbers: Numbers,
}

impl TextResponse {
    /// As a header.
    #[must_use]
    pub fn encode(&self) -> Bhs {
        let mut bhs = Bhs::new(opcode::TEXT_RESPONSE, flags(self.last, self.more));
        bhs.set_word::<16>(self.initiator_task_tag);
        bhs.set_word::<20>(self.target_transfer_tag);
        bhs.set_numbers(self.numbers);
        bhs
    }

    /// From a header.
    #[must_use]
    pub fn decode(bhs: &Bhs) -> Self {
        Self {
            last: bhs.flags() & FINAL != 0,
            more: bhs.flags() & CONTINUE != 0,
            initiator_task_tag: bhs.word::<16>(),
            target_transfer_tag: bhs.word::<20>(),
            numbers: bhs.numbers(),
        }
    }
}
