//! The copy manager of a logical unit: EXTENDED COPY and WRITE USING TOKEN, piece by piece.
//!
//! The copy manager reads and writes its sources and destinations by commands of the same I_T nexus that asked for the copy
//! ([`Action::CopyCommand`]), which take the way of every other command: maps, reservations, access states, write protection,
//! range locks and leases are checked for each piece, by the owner of each unit, whichever node that is.
//!
//! Invariants: a copy has at most one such command under way, and what is under way is waited for before the copy ends,
//! well or aborted; access to the unit that got the copy is checked again before each piece; a copy holds no lock between
//! its pieces, so that two copies never wait for each other; its outcome is told once, and kept while it may be asked for.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::{
    Action, Completion, CopyAnswer, CopyRole, CopyUnit, DeviceServer,
    copy_plan::{self, Job, Next},
    task::Stage,
};
use crate::{
    cdb::CopyCommand,
    copy::{
        extended::{self, Form},
        report::{Outcome, State},
        token::{self, Claim},
    },
    limits,
    nexus::Nexus,
    sense::{Forwarded, Sense, SenseKey, asc},
    status::Status,
    task_set::TaskId,
    time::Instant,
};

/// A copy under way.
#[derive(Clone, Debug)]
pub(super) struct Copy {
    nexus: Nexus,
    list_id: Option<u32>,
    service_action: u8,
    /// The command has been answered.
    background: bool,
    job: Job,
    step: CopyStep,
    /// What was read and is to be written.
    piece: Vec<u8>,
    operations: u16,
    bytes: u64,
    /// COPY OPERATION ABORT asked for its end; these commands wait for it.
    aborters: Vec<TaskId>,
}

/// What is under way outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CopyStep {
    /// The units are looked up.
    Finding,
    /// The token is checked.
    Validating,
    Reading,
    Writing,
    /// The token is deleted.
    Deleting,
}

/// The names of copies whose command has been answered: above those of tasks, below that of the unit's own work.
const BACKGROUND_FROM: u64 = 1 << 63;

impl DeviceServer {
    /// EXTENDED COPY or WRITE USING TOKEN has all of its data.
    pub(super) fn begin_copy(&mut self, id: TaskId, command: CopyCommand) {
        let Some(task) = self.tasks.get(&id) else { return };
        if let Some(refused) = self.data_length_refusal(task) {
            return self.complete(id, refused);
        }
        let nexus = task.nexus;
        let planned = self.plan(&task.data, command);
        let (list_id, job) = match planned {
            Ok(Some(planned)) => planned,
            Ok(None) => return self.complete(id, Completion::good()),
            Err(sense) => return self.complete(id, Completion::check(sense)),
        };
        if let Some(refused) = self.copy_refusal(&nexus, list_id) {
            return self.complete(id, refused);
        }
        let service_action = match command {
            CopyCommand::ExtendedCopyLid1 { .. } => 0x00,
            CopyCommand::ExtendedCopyLid4 { .. } => 0x01,
            _ => 0x11,
        };
        let designators = job.designators();
        let copy = Copy {
            nexus,
            list_id,
            service_action,
            background: false,
            job,
            step: CopyStep::Finding,
            piece: Vec::new(),
            operations: 0,
            bytes: 0,
            aborters: Vec::new(),
        };
        self.copies.insert(id, copy);
        self.set_copying(id);
        self.actions.push_back(Action::FindCopyUnits { task: id, nexus: Box::new(nexus), designators });
    }

    fn plan(&self, data: &[u8], command: CopyCommand) -> Result<Option<(Option<u32>, Job)>, Sense> {
        let extended = |form, len: u32| {
            let list = data.get(..len as usize).unwrap_or(data);
            Ok(extended::parse(form, list)?.map(|copy| (copy.list_id, Job::extended(copy, self.own_unit()))))
        };
        match command {
            CopyCommand::ExtendedCopyLid1 { parameter_list_length } => {
                extended(Form::Lid1, parameter_list_length)
            }
            CopyCommand::ExtendedCopyLid4 { parameter_list_length } => {
                extended(Form::Lid4, parameter_list_length)
            }
            CopyCommand::WriteUsingToken { list_id, parameter_list_length } => {
                let list = data.get(..parameter_list_length as usize).unwrap_or(data);
                let Some(write) = token::parse_write_using(list, &self.config.properties.geometry)? else {
                    return Ok(None);
                };
                let claim = write.token.claim()?;
                let own = self.own_unit();
                if let Claim::Unit { block_size, .. } = claim
                    && block_size != own.block_size
                {
                    return Err(Sense::illegal(asc::INVALID_TOKEN_OPERATION));
                }
                Ok(Some((Some(list_id), Job::token(write, claim, own))))
            }
            _ => Err(Sense::illegal(asc::INVALID_COMMAND_OPERATION_CODE)),
        }
    }

    /// Why no copy with this list identifier can begin now.
    pub(super) fn copy_refusal(&mut self, nexus: &Nexus, list_id: Option<u32>) -> Option<Completion> {
        if list_id.is_some() && self.copy_of(nexus, list_id).is_some() {
            return Some(Completion::check(Sense::illegal(asc::OPERATION_IN_PROGRESS)));
        }
        if self.copies.len() >= usize::from(limits::COPIES_MAX) {
            return Some(Completion::status(Status::Busy));
        }
        if let Some(list_id) = list_id {
            self.held_copies.discard(nexus, list_id);
        }
        None
    }

    fn copy_of(&self, nexus: &Nexus, list_id: Option<u32>) -> Option<TaskId> {
        let of = |copy: &Copy| copy.nexus == *nexus && copy.list_id == list_id;
        self.copies.iter().find(|(_, copy)| of(copy)).map(|(id, _)| *id)
    }

    fn own_unit(&self) -> CopyUnit {
        let unit = &self.config.properties;
        CopyUnit {
            unit: unit.identity.volume_uuid,
            block_size: unit.geometry.block_size(),
            blocks: unit.geometry.blocks(),
        }
    }

    fn set_copying(&mut self, id: TaskId) {
        let version = self.reservations.installed_version();
        self.set_stage(id, Stage::Copying { version });
    }

    /// The units of a copy, in the order of the designators; `None` for one that its host cannot reach.
    pub fn handle_copy_units(&mut self, now: Instant, task: TaskId, units: Vec<Option<CopyUnit>>) {
        self.now = now;
        if self.copy_was_stopped(task) {
            return self.run();
        }
        let Some(copy) = self.copies.get_mut(&task).filter(|copy| copy.step == CopyStep::Finding) else {
            return;
        };
        copy.job.found(units);
        let (immediate, validation) = (copy.job.is_immediate(), copy.job.validation());
        match validation {
            Ok(None) => {
                let id = if immediate { self.go_to_background(task) } else { task };
                self.copy_on(id);
            }
            Ok(Some((unit, role))) => {
                self.send_copy_command(
                    task,
                    CopyStep::Validating,
                    unit,
                    copy_plan::read(0, 0),
                    Vec::new(),
                    role,
                );
            }
            Err(sense) => self.end_copy(task, State::Failed, Completion::check(sense)),
        }
        self.run();
    }

    /// What the command of a copy was answered.
    pub fn handle_copy_answer(&mut self, now: Instant, task: TaskId, answer: CopyAnswer) {
        self.now = now;
        if !self.copy_was_stopped(task) {
            self.copy_answered(task, answer);
        }
        self.run();
    }

    fn copy_answered(&mut self, id: TaskId, answer: CopyAnswer) {
        let Some(copy) = self.copies.get_mut(&id) else { return };
        let step = copy.step;
        let data = match answer {
            CopyAnswer::Ended { status: Status::Good, data, .. } => data,
            failed => return self.copy_failed(id, step, failed),
        };
        match step {
            CopyStep::Finding => {}
            CopyStep::Validating => {
                if let Err(sense) = copy.job.validated() {
                    return self.end_copy(id, State::Failed, Completion::check(sense));
                }
                let id = if copy.job.is_immediate() { self.go_to_background(id) } else { id };
                self.copy_on(id);
            }
            CopyStep::Reading => match copy.job.read(data.len()) {
                true => {
                    copy.piece = data;
                    self.write_piece(id);
                }
                false => self.copy_failed(id, step, CopyAnswer::Unknown),
            },
            CopyStep::Writing => {
                let written = copy.job.written();
                copy.bytes = copy.bytes.saturating_add(written);
                copy.operations = copy.operations.saturating_add(1);
                self.copy_on(id);
            }
            CopyStep::Deleting => self.copy_completed(id),
        }
    }

    /// The next piece, or the end.
    fn copy_on(&mut self, id: TaskId) {
        if let Some(refused) = self.recheck(id) {
            return self.end_copy(id, State::Failed, refused);
        }
        let Some(copy) = self.copies.get_mut(&id) else { return };
        match copy.job.next() {
            Err(sense) => self.end_copy(id, State::Failed, Completion::check(sense)),
            Ok(Next::Done) => match copy.job.deletion() {
                Some((unit, role)) => {
                    let cdb = copy_plan::read(0, 0);
                    self.send_copy_command(id, CopyStep::Deleting, unit, cdb, Vec::new(), role);
                }
                None => self.copy_completed(id),
            },
            Ok(Next::Read { unit, cdb, token }) => {
                let role = token.map_or(CopyRole::Plain, CopyRole::Token);
                self.send_copy_command(id, CopyStep::Reading, unit, cdb, Vec::new(), role);
            }
            Ok(Next::Write { unit, cdb }) => {
                self.send_copy_command(id, CopyStep::Writing, unit, cdb, Vec::new(), CopyRole::Plain);
            }
        }
    }

    fn write_piece(&mut self, id: TaskId) {
        if let Some(refused) = self.recheck(id) {
            return self.end_copy(id, State::Failed, refused);
        }
        let Some(copy) = self.copies.get_mut(&id) else { return };
        let data = core::mem::take(&mut copy.piece);
        match copy.job.write_of_read() {
            Some((unit, cdb)) => {
                self.send_copy_command(id, CopyStep::Writing, unit, cdb, data, CopyRole::Plain);
            }
            None => self.copy_failed(id, CopyStep::Reading, CopyAnswer::Unknown),
        }
    }

    fn send_copy_command(
        &mut self,
        id: TaskId,
        step: CopyStep,
        unit: [u8; 16],
        cdb: [u8; 16],
        data_out: Vec<u8>,
        role: CopyRole,
    ) {
        let Some(copy) = self.copies.get_mut(&id) else { return };
        copy.step = step;
        let nexus = copy.nexus;
        self.set_copying(id);
        let writes = step == CopyStep::Writing;
        if let Some(task) = self.tasks.get_mut(&id) {
            task.wrote |= writes;
        }
        let command = CopyCommandOut { task: id, nexus, unit, cdb, data_out, writes, role };
        self.actions.push_back(Action::CopyCommand(Box::new(command)));
    }

    /// A copy that was aborted ends once nothing of it is under way. True if it has.
    fn copy_was_stopped(&mut self, id: TaskId) -> bool {
        let Some(copy) = self.copies.get(&id) else { return true };
        let aborted = self.tasks.get(&id).is_none_or(|task| task.aborted.is_some());
        if !aborted && copy.aborters.is_empty() {
            return false;
        }
        self.end_copy(id, State::Aborted, Completion::status(Status::TaskAborted));
        true
    }

    fn copy_failed(&mut self, id: TaskId, step: CopyStep, answer: CopyAnswer) {
        let Some(copy) = self.copies.get(&id) else { return };
        let by_source = !matches!(step, CopyStep::Writing);
        let (segment, at) = copy.job.blamed(by_source);
        let aborted = |what| {
            let sense = Sense::copy_aborted(what, segment);
            at.map_or(sense, |at| sense.with_segment_pointer(false, at, None))
        };
        let completion = match answer {
            // What is wrong with a token, and what the unit itself says of its own writes, is the command's own outcome.
            CopyAnswer::Ended { status, sense, .. }
                if copy.job.speaks_for_itself(by_source, sense.as_ref()) =>
            {
                Completion { sense, ..Completion::status(status) }
            }
            CopyAnswer::Ended { status, sense, .. } => {
                let sense = sense.map(|sense| (sense.key, sense.additional));
                let forwarded = Forwarded { by_source, status, sense };
                Completion::check(aborted(asc::THIRD_PARTY_DEVICE_FAILURE).with_forwarded(forwarded))
            }
            CopyAnswer::Aborted => {
                let forwarded = Forwarded { by_source, status: Status::TaskAborted, sense: None };
                Completion::check(aborted(asc::THIRD_PARTY_DEVICE_FAILURE).with_forwarded(forwarded))
            }
            CopyAnswer::Unreachable => Completion::check(aborted(asc::COPY_TARGET_NOT_REACHABLE)),
            CopyAnswer::Unknown => {
                Completion::check(Sense::new(SenseKey::AbortedCommand, asc::COMMUNICATION_FAILURE))
            }
        };
        self.end_copy(id, State::Failed, completion);
    }

    fn copy_completed(&mut self, id: TaskId) {
        let residual = self.copies.get(&id).is_some_and(|copy| copy.job.has_residual());
        let state = if residual { State::CompletedWithResidual } else { State::Completed };
        self.end_copy(id, state, Completion::good());
    }

    /// Ends a copy. Nothing of it is under way.
    fn end_copy(&mut self, id: TaskId, state: State, completion: Completion) {
        let Some(copy) = self.copies.remove(&id) else { return };
        let aborted = self.tasks.get(&id).is_none_or(|task| task.aborted.is_some());
        // One that was aborted with its nexus or its unit's state has no one left to ask for it.
        if let Some(list_id) = copy.list_id.filter(|_| !aborted) {
            let outcome =
                Outcome { status: completion.status, sense: completion.sense, ..outcome(&copy, state) };
            self.held_copies.insert(copy.nexus, list_id, outcome);
        }
        if copy.background {
            self.tasks.remove(&id);
            self.task_ended(id);
        } else if aborted {
            self.end_aborted(id);
        } else {
            self.complete(id, completion);
        }
        for aborter in copy.aborters {
            self.complete(aborter, Completion::good());
        }
    }

    /// IMMED: answers the command and goes on under another name.
    fn go_to_background(&mut self, id: TaskId) -> TaskId {
        let Some((mut copy, task)) = self.copies.remove(&id).zip(self.tasks.get(&id).cloned()) else {
            return id;
        };
        self.last_background_copy = self.last_background_copy.saturating_add(1);
        let name = TaskId(BACKGROUND_FROM.saturating_add(self.last_background_copy));
        copy.background = true;
        self.copies.insert(name, copy);
        self.tasks.insert(name, task);
        self.complete(id, Completion::good());
        name
    }

    /// Copies that go on after their command was answered, of one nexus or of all.
    pub(super) fn background_copies(&self, of: Option<&Nexus>) -> Vec<TaskId> {
        let fits = |copy: &Copy| copy.background && of.is_none_or(|nexus| copy.nexus == *nexus);
        self.copies.iter().filter(|(_, copy)| fits(copy)).map(|(id, _)| *id).collect()
    }

    /// COPY OPERATION ABORT.
    pub(super) fn copy_operation_abort(&mut self, id: TaskId, list_id: u32) {
        let Some(nexus) = self.tasks.get(&id).map(|task| task.nexus) else { return };
        let found = self.copy_of(&nexus, Some(list_id));
        match found.and_then(|copy| self.copies.get_mut(&copy)) {
            Some(copy) => {
                copy.aborters.push(id);
                self.actions.extend(found.map(|task| Action::CancelCopyCommand { task }));
                self.set_stage(id, Stage::AwaitingCopy);
            }
            // One that has ended needs no abort.
            None if self.held_copies.find(&nexus, list_id).is_some() => self.complete(id, Completion::good()),
            None => self.complete(id, Completion::check(Sense::illegal_field_cdb(2, None))),
        }
    }

    /// What became of a copy, or how far it is.
    pub(super) fn copy_outcome(&self, nexus: &Nexus, list_id: u32) -> Option<Outcome> {
        match self.copy_of(nexus, Some(list_id)).and_then(|id| self.copies.get(&id)) {
            Some(copy) => {
                let state = if copy.background { State::Background } else { State::Foreground };
                Some(outcome(copy, state))
            }
            None => self.held_copies.find(nexus, list_id).cloned(),
        }
    }
}

/// A command of the copy manager's for a copy source or destination, which may be this unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyCommandOut {
    /// The copy.
    pub task: TaskId,
    /// On behalf of whom; also the mapping is checked for it.
    pub nexus: Nexus,
    /// UUID of the volume.
    pub unit: [u8; 16],
    /// What to do.
    pub cdb: [u8; 16],
    /// Its Data-Out.
    pub data_out: Vec<u8>,
    /// It may change something.
    pub writes: bool,
    /// What the unit has to know of it.
    pub role: CopyRole,
}

fn outcome(copy: &Copy, state: State) -> Outcome {
    Outcome {
        service_action: copy.service_action,
        state,
        operations: copy.operations,
        segments: copy.job.segments_done(),
        bytes: copy.bytes,
        status: Status::Good,
        sense: None,
        token: None,
    }
}
