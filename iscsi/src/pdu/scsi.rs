//! SCSI Command and SCSI Response (RFC 7143 11.3, 11.4).

use super::{Bhs, CommandNumbers, FINAL, InvalidField, Numbers, opcode};
use crate::event::TaskAttribute;

const READ: u8 = 0x40;
const WRITE: u8 = 0x20;

/// SCSI Command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScsiCommand {
    /// The F bit: no unsolicited Data-Out follows.
    pub last: bool,
    /// The R bit.
    pub read: bool,
    /// The W bit.
    pub write: bool,
    /// Task attribute.
    pub attribute: TaskAttribute,
    /// Command priority, 0 to 15: the upper half of byte 2 (RFC 7144); reserved before protocol level 2.
    pub priority: u8,
    /// Logical unit number.
    pub lun: [u8; 8],
    /// The task's tag.
    pub initiator_task_tag: u32,
    /// Expected Data Transfer Length.
    pub expected_data_len: u32,
    /// Numbering.
    pub numbers: CommandNumbers,
    /// First 16 bytes of the CDB.
    pub cdb: [u8; 16],
}

impl ScsiCommand {
    /// From a header.
    ///
    /// # Errors
    /// A reserved task attribute.
    pub fn decode(bhs: &Bhs) -> Result<Self, InvalidField> {
        let attribute = match bhs.flags() & 7 {
            0 => TaskAttribute::Untagged,
            1 => TaskAttribute::Simple,
            2 => TaskAttribute::Ordered,
            3 => TaskAttribute::HeadOfQueue,
            4 => TaskAttribute::Aca,
            _ => return Err(InvalidField("ATTR")),
        };
        let mut cdb = [0; 16];
        cdb.copy_from_slice(&bhs.0[32..]);
        Ok(Self {
            last: bhs.flags() & FINAL != 0,
            read: bhs.flags() & READ != 0,
            write: bhs.flags() & WRITE != 0,
            attribute,
            priority: bhs.0[2] >> 4,
            lun: bhs.lun(),
            initiator_task_tag: bhs.word::<16>(),
            expected_data_len: bhs.word::<20>(),
            numbers: CommandNumbers::of(bhs),
            cdb,
        })
    }

    /// As a header.
    #[must_use]
    pub fn encode(&self) -> Bhs {
        let bit = |set: bool, bit: u8| if set { bit } else { 0 };
        let attribute = match self.attribute {
            TaskAttribute::Untagged => 0,
            TaskAttribute::Simple => 1,
            TaskAttribute::Ordered => 2,
            TaskAttribute::HeadOfQueue => 3,
            TaskAttribute::Aca => 4,
        };
        let flags = bit(self.last, FINAL) | bit(self.read, READ) | bit(self.write, WRITE) | attribute;
        let mut bhs = Bhs::request(opcode::SCSI_COMMAND, self.numbers.immediate, flags);
        bhs.0[2] = self.priority << 4;
        bhs.set_lun(self.lun);
        bhs.set_word::<16>(self.initiator_task_tag);
        bhs.set_word::<20>(self.expected_data_len);
        self.numbers.write(&mut bhs);
        bhs.0[32..].copy_from_slice(&self.cdb);
        bhs
    }
}

/// Bytes expected but not moved, or wanted but not expected (RFC 7143 11.4.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Residual {
    /// Exactly what was expected.
    #[default]
    None,
    /// So many bytes less than expected (the U bit).
    Underflow(u32),
    /// So many bytes more than expected, not moved (the O bit).
    Overflow(u32),
}

impl Residual {
    /// Of `expected` bytes, `wanted` were or would have been moved.
    #[must_use]
    pub fn of(expected: u32, wanted: u64) -> Self {
        let expected = u64::from(expected);
        // Neither difference is cut short in practice; a command that wants 4 GiB more than expected is capped.
        let count = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
        match wanted.cmp(&expected) {
            core::cmp::Ordering::Less => Self::Underflow(count(expected - wanted)),
            core::cmp::Ordering::Equal => Self::None,
            core::cmp::Ordering::Greater => Self::Overflow(count(wanted - expected)),
        }
    }

    pub(super) fn write(self, bhs: &mut Bhs) {
        let (flag, count) = match self {
            Self::None => (0, 0),
            Self::Underflow(count) => (0x02, count),
            Self::Overflow(count) => (0x04, count),
        };
        bhs.0[1] |= flag;
        bhs.set_word::<44>(count);
    }

    pub(super) fn read(bhs: &Bhs) -> Self {
        match bhs.flags() & 0x06 {
            0x02 => Self::Underflow(bhs.word::<44>()),
            0x04 => Self::Overflow(bhs.word::<44>()),
            _ => Self::None,
        }
    }
}

/// SCSI Response of a command that completed at the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScsiResponse {
    /// SAM status.
    pub status: u8,
    /// Status qualifier: bytes 8 and 9 (RFC 7144); reserved before protocol level 2.
    pub status_qualifier: u16,
    /// The task's tag.
    pub initiator_task_tag: u32,
    /// Sequence numbers.
    pub numbers: Numbers,
    /// R2Ts and Data-Ins sent for the command.
    pub exp_data_sn: u32,
    /// Residual of the data-out, or of the data-in of a command that only reads.
    pub residual: Residual,
    /// Residual of a bidirectional command's data-in.
    pub bidirectional_residual: Residual,
}

impl ScsiResponse {
    /// As a header.
    #[must_use]
    pub fn encode(&self) -> Bhs {
        let mut bhs = Bhs::new(opcode::SCSI_RESPONSE, FINAL);
        bhs.0[3] = self.status;
        bhs.set_half::<8>(self.status_qualifier);
        bhs.set_word::<16>(self.initiator_task_tag);
        bhs.set_numbers(self.numbers);
        bhs.set_word::<36>(self.exp_data_sn);
        self.residual.write(&mut bhs);
        let (flag, count) = match self.bidirectional_residual {
            Residual::None => (0, 0),
            Residual::Underflow(count) => (0x08, count),
            Residual::Overflow(count) => (0x10, count),
        };
        bhs.0[1] |= flag;
        bhs.set_word::<40>(count);
        bhs
    }

    /// From a header.
    ///
    /// # Errors
    /// A response code other than "completed at target", which is all that we send.
    pub fn decode(bhs: &Bhs) -> Result<Self, InvalidField> {
        if bhs.0[2] != 0 {
            return Err(InvalidField("Response"));
        }
        let bidirectional_residual = match bhs.flags() & 0x18 {
            0x08 => Residual::Underflow(bhs.word::<40>()),
            0x10 => Residual::Overflow(bhs.word::<40>()),
            _ => Residual::None,
        };
        Ok(Self {
            status: bhs.0[3],
            status_qualifier: bhs.half::<8>(),
            initiator_task_tag: bhs.word::<16>(),
            numbers: bhs.numbers(),
            exp_data_sn: bhs.word::<36>(),
            residual: Residual::read(bhs),
            bidirectional_residual,
        })
    }
}
