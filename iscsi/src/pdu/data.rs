//! SCSI Data-Out, SCSI Data-In and Ready To Transfer (RFC 7143 11.7, 11.8).

use super::{Bhs, FINAL, Numbers, Residual, opcode};

const STATUS: u8 = 0x01;

/// SCSI Data-Out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataOut {
    /// Last of its sequence.
    pub last: bool,
    /// Logical unit number.
    pub lun: [u8; 8],
    /// The command's tag.
    pub initiator_task_tag: u32,
    /// The R2T's tag, or [`super::TAG_NONE`] if unsolicited.
    pub target_transfer_tag: u32,
    /// The next StatSN that the initiator expects.
    pub exp_stat_sn: u32,
    /// Number within the sequence.
    pub data_sn: u32,
    /// Where the data starts within the command's data-out.
    pub buffer_offset: u32,
}

impl DataOut {
    /// From a header.
    #[must_use]
    pub fn decode(bhs: &Bhs) -> Self {
        Self {
            last: bhs.flags() & FINAL != 0,
            lun: bhs.lun(),
            initiator_task_tag: bhs.word::<16>(),
            target_transfer_tag: bhs.word::<20>(),
            exp_stat_sn: bhs.word::<28>(),
            data_sn: bhs.word::<36>(),
            buffer_offset: bhs.word::<40>(),
        }
    }

    /// As a header.
    #[must_use]
    pub fn encode(&self) -> Bhs {
        let mut bhs = Bhs::new(opcode::DATA_OUT, if self.last { FINAL } else { 0 });
        bhs.set_lun(self.lun);
        bhs.set_word::<16>(self.initiator_task_tag);
        bhs.set_word::<20>(self.target_transfer_tag);
        bhs.set_word::<28>(self.exp_stat_sn);
        bhs.set_word::<36>(self.data_sn);
        bhs.set_word::<40>(self.buffer_offset);
        bhs
    }
}

/// Status that rides in the last Data-In (the S bit).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataInStatus {
    /// SAM status.
    pub status: u8,
    /// What was not, or could not be, moved.
    pub residual: Residual,
}

/// SCSI Data-In.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataIn {
    /// Last of its sequence.
    pub last: bool,
    /// Status, only with `last`.
    pub status: Option<DataInStatus>,
    /// The command's tag.
    pub initiator_task_tag: u32,
    /// Sequence numbers; StatSN counts only with a status.
    pub numbers: Numbers,
    /// Number within the command.
    pub data_sn: u32,
    /// Where the data starts within the command's data-in.
    pub buffer_offset: u32,
}

impl DataIn {
    /// As a header.
    #[must_use]
    pub fn encode(&self) -> Bhs {
        let mut bhs = Bhs::new(opcode::DATA_IN, if self.last { FINAL } else { 0 });
        if let Some(DataInStatus { status, residual }) = self.status {
            bhs.0[1] |= STATUS;
            bhs.0[3] = status;
            residual.write(&mut bhs);
        }
        bhs.set_word::<16>(self.initiator_task_tag);
        bhs.set_word::<20>(super::TAG_NONE);
        bhs.set_numbers(self.numbers);
        bhs.set_word::<36>(self.data_sn);
        bhs.set_word::<40>(self.buffer_offset);
        bhs
    }

    /// From a header.
    #[must_use]
    pub fn decode(bhs: &Bhs) -> Self {
        let status = DataInStatus { status: bhs.0[3], residual: Residual::read(bhs) };
        Self {
            last: bhs.flags() & FINAL != 0,
            status: (bhs.flags() & STATUS != 0).then_some(status),
            initiator_task_tag: bhs.word::<16>(),
            numbers: bhs.numbers(),
            data_sn: bhs.word::<36>(),
            buffer_offset: bhs.word::<40>(),
        }
    }
}

/// Ready To Transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadyToTransfer {
    /// Logical unit number.
    pub lun: [u8; 8],
    /// The command's tag.
    pub initiator_task_tag: u32,
    /// Names this R2T in the Data-Outs that answer it.
    pub target_transfer_tag: u32,
    /// Sequence numbers; takes no StatSN.
    pub numbers: Numbers,
    /// Number within the command.
    pub r2t_sn: u32,
    /// Where the wanted data starts.
    pub buffer_offset: u32,
    /// Bytes wanted, not 0.
    pub desired_len: u32,
}

impl ReadyToTransfer {
    /// As a header.
    #[must_use]
    pub fn encode(&self) -> Bhs {
        let mut bhs = Bhs::new(opcode::READY_TO_TRANSFER, FINAL);
        bhs.set_lun(self.lun);
        bhs.set_word::<16>(self.initiator_task_tag);
        bhs.set_word::<20>(self.target_transfer_tag);
        bhs.set_numbers(self.numbers);
        bhs.set_word::<36>(self.r2t_sn);
        bhs.set_word::<40>(self.buffer_offset);
        bhs.set_word::<44>(self.desired_len);
        bhs
    }

    /// From a header.
    #[must_use]
    pub fn decode(bhs: &Bhs) -> Self {
        Self {
            lun: bhs.lun(),
            initiator_task_tag: bhs.word::<16>(),
            target_transfer_tag: bhs.word::<20>(),
            numbers: bhs.numbers(),
            r2t_sn: bhs.word::<36>(),
            buffer_offset: bhs.word::<40>(),
            desired_len: bhs.word::<44>(),
        }
    }
}
