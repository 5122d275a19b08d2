//! A task of the device server: what it asks for, and how far it is.

use alloc::vec::Vec;

use super::message::{CommandRequest, Completion, DataOut};
use super::task_management::Abort;
use crate::{
    cdb::{self, Command, Direction, VerifyCheck, WriteSameSource},
    copy::token::RodToken,
    geometry::Geometry,
    limits::CDB_LEN_MAX,
    nexus::Nexus,
    sense::Sense,
    task_set::TaskAttribute,
    time::Instant,
    ua::UnitAttention,
};

/// A command on its way.
#[derive(Clone, Debug)]
pub(super) struct Task {
    pub(super) nexus: Nexus,
    /// When it came.
    pub(super) arrived: Instant,
    /// The command, or why its CDB is refused when its turn comes.
    pub(super) command: Result<Command, Sense>,
    /// The CDB's first bytes, for a proposal.
    pub(super) cdb: [u8; CDB_LEN_MAX],
    /// Bytes of Data-Out that the CDB asks for: what the residual is counted from.
    pub(super) data_out_asked: u64,
    /// Bytes that the initiator sends.
    pub(super) data_out_len: u32,
    /// The Data-Out is complete.
    pub(super) data_ready: bool,
    /// The Data-Out, where the command's bytes are looked at here and not only handed to the store.
    pub(super) data: Vec<u8>,
    pub(super) unit_attention: Option<UnitAttention>,
    pub(super) read_only: bool,
    pub(super) stage: Stage,
    /// It ends so, as soon as what is under way has ended.
    pub(super) aborted: Option<Abort>,
    /// NACA: a CHECK CONDITION establishes an ACA condition.
    pub(super) naca: bool,
    /// It has the ACA attribute.
    pub(super) has_aca_attribute: bool,
    /// Something was written: BUSY would be a lie.
    pub(super) wrote: bool,
    /// How it ends once a Unit Attention for its nexus is established.
    pub(super) ends_with: Option<Completion>,
    /// A copy manager sent it.
    pub(super) of_copy: bool,
    /// It reads what this token represents.
    pub(super) token: Option<RodToken>,
    /// Its change turns the write cache off: what is in it becomes durable before GOOD.
    pub(super) flushes: bool,
    /// The group that it makes the active/optimized one, once that was proposed.
    pub(super) transition_to: Option<u16>,
}

/// How far a task is. What is under way outside ([`Stage::is_under_way`]) can only be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Its turn in the task set has not come.
    Dormant,
    /// Admitted; the Data-Out is on its way.
    AwaitingData,
    /// Waits for ranges.
    AwaitingLock,
    /// An I/O action is under way.
    Submitted {
        /// Which.
        step: Step,
        /// Installed reservation version at its submission.
        version: u64,
        /// When it was submitted.
        since: Instant,
    },
    /// A proposal is under way.
    Proposed {
        /// The reservation version that it was validated against.
        expected_version: u64,
        /// Its GOOD waits for older I/O.
        drains: bool,
    },
    /// Its proposal came second: waits for a version newer than this one.
    AwaitingVersion(u64),
    /// Its answer shows a state whose barrier has not passed.
    AwaitingBarrier,
    /// Its change is committed: waits until it is installed here and, if it drains, older I/O has ended.
    AwaitingDrain {
        /// The version of the change.
        version: u64,
        /// Older I/O is waited for.
        drains: bool,
    },
    /// Something that the nexus did before it was lost has to end first.
    AwaitingEvent,
    /// The SPC-2 reservation that is in its way ends with a nexus that was lost: judged again once that is settled.
    AwaitingLoss,
    /// The cluster is making the transition that it asked for.
    AwaitingTransition,
    /// Waits for the end of the FORMAT UNIT or SANITIZE that it began.
    AwaitingOperation,
    /// Waits until a Unit Attention is established.
    AwaitingUnitAttention,
    /// A copy: something of it is under way outside, perhaps in another unit.
    Copying {
        /// Installed reservation version at its last piece.
        version: u64,
    },
    /// COPY OPERATION ABORT: waits for the end of the copy.
    AwaitingCopy,
    /// POPULATE TOKEN: waits for what makes its token.
    AwaitingRandom,
}

/// An I/O action, by what comes after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Read for the initiator.
    Read,
    /// Read to look at (VERIFY, and WRITE AND VERIFY after its write).
    Verify,
    /// Read to compare before a write (COMPARE AND WRITE).
    Compare,
    /// Read to be ORed (ORWRITE).
    OrRead,
    /// Write, WRITE SAME or UNMAP that ends the task.
    Write,
    /// Write that is verified next (WRITE AND VERIFY).
    WriteToVerify,
    /// Flush.
    Flush,
    /// Allocation query.
    Allocation,
}

impl Step {
    pub(super) const fn writes(self) -> bool {
        matches!(self, Step::Write | Step::WriteToVerify)
    }
}

impl Stage {
    pub(super) const fn is_under_way(&self) -> bool {
        // A committed change cannot be taken back either: its task ends when the change is in force.
        matches!(
            self,
            Stage::Submitted { .. }
                | Stage::Proposed { .. }
                | Stage::AwaitingDrain { .. }
                | Stage::AwaitingUnitAttention
                | Stage::Copying { .. }
        )
    }
}

impl Task {
    pub(super) fn new(
        arrived: Instant,
        request: &CommandRequest<'_>,
        command: Result<Command, Sense>,
        data: DataOut<'_>,
        geometry: &Geometry,
    ) -> Task {
        let mut cdb = [0; CDB_LEN_MAX];
        for (to, from) in cdb.iter_mut().zip(request.cdb) {
            *to = *from;
        }
        let mut task = Task {
            nexus: *request.nexus,
            arrived,
            command,
            cdb,
            data_out_asked: 0,
            data_out_len: request.data_out_len,
            data_ready: true,
            data: Vec::new(),
            unit_attention: request.unit_attention,
            read_only: request.read_only,
            stage: Stage::Dormant,
            aborted: None,
            naca: cdb::naca(request.cdb),
            has_aca_attribute: request.attribute == TaskAttribute::Aca,
            wrote: false,
            ends_with: None,
            of_copy: false,
            token: None,
            flushes: false,
            transition_to: None,
        };
        match data {
            DataOut::None => task.data_out_len = 0,
            DataOut::Ready(bytes) => task.take_data(bytes),
            DataOut::Awaited => task.data_ready = false,
        }
        task.data_out_asked = task.data_out_wanted(geometry);
        task.cut_to_announced(geometry);
        task
    }

    /// An initiator may announce fewer blocks than its CDB asks for: those are written and the rest is the residual
    /// overflow (RFC 7143 11.4.5.2). Only for whole blocks, and only by what was announced: data that was announced
    /// and did not come, or half a block, is refused in `data_length_refusal`.
    fn cut_to_announced(&mut self, geometry: &Geometry) {
        let announced = self.data_out_len;
        let (Some(blocks), Some(0)) =
            (announced.checked_div(geometry.block_size()), announced.checked_rem(geometry.block_size()))
        else {
            return;
        };
        if let Ok(Command::Write { extent, .. } | Command::WriteAndVerify { extent, .. }) = &mut self.command
            && blocks < extent.blocks
        {
            extent.blocks = blocks;
        }
    }

    /// The whole Data-Out came.
    pub(super) fn take_data(&mut self, bytes: &[u8]) {
        self.data_ready = true;
        self.data_out_len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        if self.command.as_ref().is_ok_and(looks_at_data) {
            self.data = bytes.to_vec();
        }
    }

    /// Bytes of Data-Out that the command wants.
    pub(super) fn data_out_wanted(&self, geometry: &Geometry) -> u64 {
        match self.command.as_ref().map(|command| command.transfer_len(geometry)) {
            Ok((Direction::Out, len)) => len,
            _ => 0,
        }
    }
}

/// Commands whose Data-Out decides what is done. The others' goes from the port to the store.
const fn looks_at_data(command: &Command) -> bool {
    matches!(
        command,
        Command::CompareAndWrite { .. }
            | Command::OrWrite { .. }
            | Command::WriteAndVerify { compare: true, .. }
            | Command::Verify { check: VerifyCheck::Bytes | VerifyCheck::OneBlock, .. }
            | Command::WriteSame { source: WriteSameSource::DataOutBlock, unmap: true, .. }
            | Command::Unmap { .. }
            | Command::ModeSelect { .. }
            | Command::LogSelect { .. }
            | Command::SetTargetPortGroups { .. }
            | Command::SetIdentifyingInformation { .. }
            | Command::SetTimestamp { .. }
            | Command::FormatUnit { .. }
            | Command::Sanitize { .. }
            | Command::WriteBuffer { .. }
            | Command::PersistentReserveOut { .. }
            | Command::Copy(_)
    )
}
