//! SCSI commands and their data (RFC 7143 11.3, 11.4, 11.7, 11.8).
//!
//! Invariants: a command is handed to the shell once, when its CmdSN is due; each is answered at most once; what arrives
//! for a task that has ended is dropped unstored.

use super::full_feature::{FullFeature, Incoming, violation};
use super::link::Links;
use crate::data_in;
use crate::data_out::{Progress, Transfer, Verdict};
use crate::event::{Cdb, CloseReason, Condition, DataState, Event, ScsiOutcome, TaskTag, Violation};
use crate::limits;
use crate::pdu::{
    AdditionalHeaders, Bhs, DataIn, DataInStatus, DataOut, ReadyToTransfer, RejectReason, Residual,
    ScsiCommand, ScsiResponse, TAG_NONE,
};
use crate::session::{Held, Memory, Order, PendingCommand, Task};
use alloc::boxed::Box;
use alloc::vec::Vec;

const GOOD: u8 = 0x00;
const CHECK_CONDITION: u8 = 0x02;
const CONDITION_MET: u8 = 0x04;

impl FullFeature {
    pub(super) fn command_header<B: AsRef<[u8]>>(
        &mut self,
        link: &mut Links<B>,
        bhs: &Bhs,
    ) -> Result<Incoming, CloseReason> {
        let pdu = ScsiCommand::decode(bhs).map_err(|field| violation(field.0))?;
        let additional = AdditionalHeaders::decode(link.receiver.additional_headers())
            .map_err(|_| CloseReason::ProtocolError(Violation::AdditionalHeader))?;
        let data_len = bhs.data_segment_len();
        if pdu.initiator_task_tag == TAG_NONE {
            return Err(violation("Initiator Task Tag"));
        }
        if !pdu.write && (data_len > 0 || !pdu.last) {
            return Err(violation("W"));
        }
        let (immediate, cmd_sn) = (pdu.numbers.immediate, pdu.numbers.cmd_sn);
        if !immediate && self.session.order(cmd_sn) == Order::Ignored {
            return Ok(Incoming::Nothing);
        }
        if self.session.tag_in_use(pdu.initiator_task_tag) {
            let incoming = self.reject(link, bhs, RejectReason::TaskInProgress);
            if !immediate {
                self.in_order(link, cmd_sn, Held::Void)?;
            }
            return Ok(incoming);
        }
        if immediate && !self.session.admits_immediate() {
            return Ok(self.reject(link, bhs, RejectReason::ImmediateCommandReject));
        }
        let transfer = pdu.write.then(|| {
            let wanted = pdu.expected_data_len.min(link.options().data_out_len_max);
            let mut transfer = Transfer::new(wanted, link.spare_buffer());
            transfer.open(&self.parameters, pdu.expected_data_len, data_len, pdu.last);
            if transfer.failed().is_none() && (data_len > 0 || !pdu.last) {
                transfer.reserve(if pdu.last { data_len } else { self.parameters.first_burst_length });
            }
            transfer
        });
        let tag = self.session.next_tag();
        let whole = (!additional.extended_cdb.is_empty())
            .then(|| Box::from([&pdu.cdb[..], &additional.extended_cdb].concat()));
        let sam_5 = self.parameters.protocol_level >= limits::PROTOCOL_LEVEL_SAM_5;
        let cdb = Cdb { first: pdu.cdb, whole };
        let priority = if sam_5 { pdu.priority } else { 0 };
        self.session.insert(Task {
            tag,
            link: link.id,
            initiator_task_tag: pdu.initiator_task_tag,
            lun: pdu.lun,
            read: pdu.read,
            write: pdu.write,
            immediate,
            expected_data_len: pdu.expected_data_len,
            bidirectional_read_len: additional
                .bidirectional_read_len
                .filter(|_| pdu.read && pdu.write)
                .unwrap_or_default(),
            pending: Some(PendingCommand { cdb, attribute: pdu.attribute, priority }),
            transfer,
            memory: Memory::Unasked,
            counted: false,
        });
        Ok(Incoming::Command { tag, cmd_sn })
    }

    /// A command's turn has come.
    pub(super) fn hand_on<B: AsRef<[u8]>>(&mut self, link: &mut Links<B>, tag: TaskTag) {
        self.session.count(tag);
        let Some(task) = self.session.task(tag) else { return };
        if let Some(condition) = task.transfer.as_ref().and_then(Transfer::failed) {
            // It never became a task of the shell's.
            self.fail(link, tag, condition);
            return;
        }
        let data = match task.transfer.as_mut().map(Transfer::progress) {
            None => DataState::None,
            Some(Progress::Whole(data)) if data.is_empty() => DataState::None,
            Some(Progress::Whole(data)) => DataState::Complete(data),
            Some(Progress::Going | Progress::Failed(_)) => DataState::Awaited,
        };
        if let Some(command) = task.hand_on(data) {
            link.events.push_back(Event::Command(command));
        }
        self.solicit(link, tag);
    }

    /// Sends the R2Ts that a task may have outstanding.
    fn solicit<B: AsRef<[u8]>>(&mut self, link: &mut Links<B>, tag: TaskTag) {
        let wants = |task: &&mut Task| task.transfer.as_ref().is_some_and(Transfer::wants_soliciting);
        let Some(id) = self.session.task(tag).filter(wants).map(|task| task.link) else { return };
        if !self.session.may_solicit(tag) || !link.select(id) || !link.is_open() {
            return;
        }
        loop {
            let target_transfer_tag = self.session.next_transfer_tag();
            let numbers = link.peek_stat_sn(self.window());
            let Some(task) = self.session.task(tag) else { return };
            let (lun, initiator_task_tag) = (task.lun, task.initiator_task_tag);
            let parameters = &self.parameters;
            let Some(r2t) = task.transfer.as_mut().and_then(|t| t.solicit(parameters, target_transfer_tag))
            else {
                return;
            };
            let pdu = ReadyToTransfer {
                lun,
                initiator_task_tag,
                target_transfer_tag,
                numbers,
                r2t_sn: r2t.r2t_sn,
                buffer_offset: r2t.buffer_offset,
                desired_len: r2t.desired_len,
            };
            link.transmit.push(pdu.encode(), &[]);
        }
    }

    pub(super) fn data_out_header<B: AsRef<[u8]>>(
        &mut self,
        link: &mut Links<B>,
        bhs: &Bhs,
    ) -> Result<Incoming, CloseReason> {
        let pdu = DataOut::decode(bhs);
        // A task that has ended may still be sent what it once asked for.
        let Some(task) = self.session.by_initiator_tag(pdu.initiator_task_tag) else {
            return Ok(Incoming::Nothing);
        };
        let tag = task.tag;
        // With a transfer tag the LUN is the command's, without one it is reserved (RFC 7143 11.7.4); fields that contradict
        // each other end the session (7.6).
        if pdu.target_transfer_tag != TAG_NONE && pdu.lun != task.lun {
            return Err(violation("LUN"));
        }
        // A command's data comes on the connection that the command came on (RFC 7143 4.2.2).
        if task.link != link.id {
            return Ok(self.reject(link, bhs, RejectReason::ProtocolError));
        }
        let verdict =
            task.transfer.as_mut().map_or(Verdict::Stale, |t| t.data_out(&pdu, bhs.data_segment_len()));
        match verdict {
            Verdict::Take => Ok(Incoming::DataOut { tag, take: true }),
            Verdict::Drop => Ok(Incoming::DataOut { tag, take: false }),
            Verdict::Stale => Ok(self.reject(link, bhs, RejectReason::ProtocolError)),
            Verdict::Violation => Err(CloseReason::ProtocolError(Violation::DataOutOfRange)),
        }
    }

    pub(super) fn data_out_end<B: AsRef<[u8]>>(&mut self, link: &mut Links<B>, tag: TaskTag, intact: bool) {
        let Some(task) = self.session.task(tag) else { return };
        let Some(transfer) = &mut task.transfer else { return };
        if !intact {
            transfer.fail(Condition::ProtocolServiceCrcError);
        }
        if task.pending.is_some() {
            return;
        }
        match transfer.progress() {
            Progress::Whole(data) => link.events.push_back(Event::DataOut { tag, data }),
            Progress::Failed(condition) => link.events.push_back(Event::DataOutFailed { tag, condition }),
            Progress::Going => self.solicit(link, tag),
        }
    }

    /// Takes a task out of the table and lets others have its memory.
    fn end_task<B: AsRef<[u8]>>(&mut self, link: &mut Links<B>, tag: TaskTag) -> Option<Box<Task>> {
        let task = self.session.remove(tag)?;
        while let Some(next) = self.session.next_with_memory() {
            self.solicit(link, next);
        }
        Some(task)
    }

    pub(super) fn complete<B: AsRef<[u8]>>(
        &mut self,
        link: &mut Links<B>,
        tag: TaskTag,
        outcome: ScsiOutcome<B>,
    ) {
        let failed =
            self.session.task(tag).and_then(|task| task.transfer.as_ref()).and_then(Transfer::failed);
        if let Some(condition) = failed {
            self.fail(link, tag, condition);
        } else if let Some(mut task) = self.end_task(link, tag) {
            self.respond(link, &task, outcome);
            if let Some(transfer) = task.transfer.take() {
                link.recycle(transfer.into_buffer());
            }
            self.task_gone(link, task.link);
        }
    }

    pub(super) fn discard<B: AsRef<[u8]>>(&mut self, link: &mut Links<B>, tag: TaskTag) {
        let transfer = self.session.task(tag).and_then(|task| task.transfer.as_mut());
        match transfer.and_then(|transfer| transfer.failed().filter(|_| transfer.is_reported())) {
            Some(condition) => self.fail(link, tag, condition),
            None => {
                if let Some(task) = self.end_task(link, tag) {
                    self.task_gone(link, task.link);
                }
            }
        }
    }

    /// Ends a task whose data went wrong.
    fn fail<B: AsRef<[u8]>>(&mut self, link: &mut Links<B>, tag: TaskTag, condition: Condition) {
        if let Some(task) = self.end_task(link, tag) {
            let sense = Vec::from(condition.sense());
            self.respond(link, &task, ScsiOutcome::status(CHECK_CONDITION).with_sense(sense));
            self.task_gone(link, task.link);
        }
    }

    fn respond<B: AsRef<[u8]>>(&mut self, link: &mut Links<B>, task: &Task, outcome: ScsiOutcome<B>) {
        if !link.select(task.link) || !link.is_open() {
            return;
        }
        let window = self.window();
        let bidirectional = task.read && task.write;
        let read_expected = match (task.read, task.write) {
            (true, true) => task.bidirectional_read_len,
            (true, false) => task.expected_data_len,
            (false, _) => 0,
        };
        let produced = outcome.data_in.as_ref().map_or(0, |data| data.len() as u64);
        let residual = if task.write {
            let (received, wanted) = task.transfer.as_ref().map_or((0, 0), |t| (t.received(), t.wanted()));
            let good = matches!(outcome.status, GOOD | CONDITION_MET);
            let moved = if good { wanted } else { received };
            Residual::of(task.expected_data_len, outcome.transfer_len.unwrap_or(moved.into()))
        } else {
            Residual::of(read_expected, outcome.transfer_len.unwrap_or(produced))
        };
        let bidirectional_residual =
            if bidirectional { Residual::of(read_expected, produced) } else { Residual::None };

        let mut data_sn = task.transfer.as_ref().map_or(0, Transfer::r2ts);
        let collapse = outcome.status == GOOD && outcome.sense.is_empty() && !bidirectional;
        let len = produced.min(read_expected.into()) as usize;
        if let Some(data) = outcome.data_in.filter(|_| len > 0) {
            let plain = link.peek_stat_sn(window);
            let status_sn = collapse.then(|| link.take_stat_sn(window));
            let parameters = &self.parameters;
            let parts = data_in::parts(len, link.send_len, parameters.max_burst_length);
            let pdus = parts.map(|part| {
                let whole = part.range.end == len;
                let with_status = status_sn.filter(|_| whole);
                let pdu = DataIn {
                    last: part.last,
                    status: with_status.map(|_| DataInStatus { status: outcome.status, residual }),
                    initiator_task_tag: task.initiator_task_tag,
                    numbers: with_status.unwrap_or(plain),
                    data_sn,
                    buffer_offset: part.range.start as u32,
                };
                data_sn = data_sn.wrapping_add(1);
                (pdu.encode(), part.range)
            });
            link.transmit.push_parts(data, pdus);
            if collapse {
                return;
            }
        }
        let sam_5 = self.parameters.protocol_level >= limits::PROTOCOL_LEVEL_SAM_5;
        let pdu = ScsiResponse {
            status: outcome.status,
            status_qualifier: if sam_5 { outcome.status_qualifier } else { 0 },
            initiator_task_tag: task.initiator_task_tag,
            numbers: link.take_stat_sn(window),
            exp_data_sn: data_sn,
            residual,
            bidirectional_residual,
        };
        link.transmit.push(pdu.encode(), &sense_segment(&outcome.sense));
    }
}

/// Sense data behind its length (RFC 7143 11.4.7).
fn sense_segment(sense: &[u8]) -> Vec<u8> {
    if sense.is_empty() {
        return Vec::new();
    }
    let mut segment = Vec::with_capacity(2 + sense.len());
    segment.extend_from_slice(&(sense.len() as u16).to_be_bytes());
    segment.extend_from_slice(sense);
    segment
}
