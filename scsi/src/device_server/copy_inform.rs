//! Commands that tell of copies, POPULATE TOKEN, and the commands that a copy manager sends to this unit.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

use super::{
    Action, CommandRequest, Completion, DataOut, DeviceServer, DuplicateTask, Work,
    inform::parameter_data,
    task::{Stage, Task},
};
use crate::{
    cdb::{self, Command, CopyCommand},
    copy::{
        report::{self, Outcome, State},
        token::{self, Populate, RANDOM_LEN, RodToken},
    },
    geometry::Extent,
    limits,
    nexus::Nexus,
    sense::{Sense, asc},
    status::Status,
    task_set::{NotAdmitted, TaskId},
    time::Instant,
};

/// What a unit has to know of a command that a copy manager sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopyRole {
    /// It is part of a copy: it goes beside the tasks of the host.
    Plain,
    /// It reads what this token represents: the LBA counts from there.
    Token(RodToken),
    /// It deletes this token.
    DeleteToken(RodToken),
}

/// Outcomes of copies that have ended, by nexus and list identifier.
#[derive(Debug, Default)]
pub(super) struct HeldCopies {
    held: VecDeque<(Nexus, u32, Outcome)>,
}

impl HeldCopies {
    pub(super) fn insert(&mut self, nexus: Nexus, list_id: u32, outcome: Outcome) {
        self.discard(&nexus, list_id);
        if self.held.len() >= limits::HELD_COPIES_MAX {
            self.held.pop_front();
        }
        self.held.push_back((nexus, list_id, outcome));
    }

    pub(super) fn find(&self, nexus: &Nexus, list_id: u32) -> Option<&Outcome> {
        self.held.iter().find(|(of, id, _)| of == nexus && *id == list_id).map(|(_, _, outcome)| outcome)
    }

    pub(super) fn discard(&mut self, nexus: &Nexus, list_id: u32) {
        self.held.retain(|(of, id, _)| of != nexus || *id != list_id);
    }

    /// The nexus is gone, or all are (LOGICAL UNIT RESET).
    pub(super) fn discard_of(&mut self, nexus: Option<&Nexus>) {
        self.held.retain(|(of, _, _)| nexus.is_some_and(|nexus| of != nexus));
    }
}

impl DeviceServer {
    /// A command of third-party copy whose turn has come and whose data is there.
    pub(super) fn copy_command(&mut self, id: TaskId, command: CopyCommand) {
        match command {
            CopyCommand::ExtendedCopyLid1 { .. }
            | CopyCommand::ExtendedCopyLid4 { .. }
            | CopyCommand::WriteUsingToken { .. } => self.begin_copy(id, command),
            CopyCommand::PopulateToken { .. } => self.lock(id, &Command::Copy(command)),
            CopyCommand::Abort { list_id } => self.copy_operation_abort(id, list_id),
            CopyCommand::ReceiveOperatingParameters { allocation_length } => {
                let write = |out: &mut [u8]| report::operating_parameters(allocation_length, out);
                self.complete(id, Completion::bytes(parameter_data(allocation_length, write)));
            }
            CopyCommand::ReceiveStatusLid1 { list_id, allocation_length } => {
                self.tell_of_copy(id, u32::from(list_id), allocation_length, |of, out| {
                    report::status_lid1(of, allocation_length, out)
                });
            }
            CopyCommand::ReceiveDataLid1 { list_id, .. }
            | CopyCommand::ReceiveFailureDetails { list_id, .. }
                if self.copy_outcome_of(id, u32::from(list_id)).is_none_or(|of| !of.state.has_ended()) =>
            {
                self.complete(id, Completion::check(Sense::illegal_field_cdb(2, None)));
            }
            CopyCommand::ReceiveDataLid1 { allocation_length, .. } => {
                let write = |out: &mut [u8]| report::data_lid1(allocation_length, out);
                self.complete(id, Completion::bytes(parameter_data(allocation_length, write)));
            }
            CopyCommand::ReceiveFailureDetails { list_id, allocation_length } => {
                self.tell_of_copy(id, u32::from(list_id), allocation_length, |of, out| {
                    report::failure_details(of, allocation_length, out)
                });
            }
            CopyCommand::ReceiveStatusLid4 { list_id, allocation_length } => {
                self.tell_of_copy(id, list_id, allocation_length, |of, out| {
                    report::status_lid4(of, allocation_length, out)
                });
            }
            // Of the outcome nothing is taken away: RECEIVE COPY STATUS may still ask for it.
            CopyCommand::ReceiveDataLid4 { list_id, allocation_length } => {
                let completion = match self.copy_outcome_of(id, list_id) {
                    Some(of) => Completion::bytes(parameter_data(allocation_length, |out| {
                        report::data_lid4(&of, allocation_length, out)
                    })),
                    None => Completion::check(Sense::illegal_field_cdb(2, None)),
                };
                self.complete(id, completion);
            }
            CopyCommand::ReportAllRodTokens { allocation_length } => {
                let data = parameter_data(allocation_length, |out| {
                    report::all_rod_tokens(self.tokens.valid(self.now), allocation_length, out)
                });
                self.complete(id, Completion::bytes(data));
            }
            CopyCommand::ReceiveRodTokenInformation { list_id, allocation_length } => {
                let block_size = self.config.properties.geometry.block_size();
                self.tell_of_copy(id, list_id, allocation_length, |of, out| {
                    report::rod_token_information(of, block_size, allocation_length, out)
                });
            }
        }
    }

    fn copy_outcome_of(&self, id: TaskId, list_id: u32) -> Option<Outcome> {
        self.copy_outcome(&self.tasks.get(&id)?.nexus, list_id)
    }

    /// Tells of a copy. One that has ended and is told whole is forgotten, unless it failed: its details may be asked for too,
    /// and go with the next use of the list identifier.
    fn tell_of_copy(
        &mut self,
        id: TaskId,
        list_id: u32,
        allocation_length: u32,
        write: impl Fn(&Outcome, &mut [u8]) -> crate::reply::Reply,
    ) {
        let Some(of) = self.copy_outcome_of(id, list_id) else {
            return self.complete(id, Completion::check(Sense::illegal_field_cdb(2, None)));
        };
        let data = parameter_data(allocation_length, |out| write(&of, out));
        let whole = write(&of, &mut []).full <= data.len();
        if whole
            && of.state.has_ended()
            && of.state != State::Failed
            && let Some(nexus) = self.tasks.get(&id).map(|task| task.nexus)
        {
            self.held_copies.discard(&nexus, list_id);
        }
        self.complete(id, Completion::bytes(data));
    }

    /// What POPULATE TOKEN asks for.
    pub(super) fn populate_request(&self, id: TaskId) -> Result<Option<(u32, Populate)>, Sense> {
        let Some(task) = self.tasks.get(&id) else { return Ok(None) };
        let Ok(Command::Copy(CopyCommand::PopulateToken { list_id, parameter_list_length })) = task.command
        else {
            return Ok(None);
        };
        let list = task.data.get(..parameter_list_length as usize).unwrap_or(&task.data);
        let request = token::parse_populate(list, &self.config.properties.geometry)?;
        Ok(request.map(|request| (list_id, request)))
    }

    /// POPULATE TOKEN holds its ranges: no write to them is under way.
    pub(super) fn populate_token(&mut self, id: TaskId) {
        let Some(nexus) = self.tasks.get(&id).map(|task| task.nexus) else { return };
        match self.populate_request(id) {
            Err(sense) => self.complete(id, Completion::check(sense)),
            Ok(None) => self.complete(id, Completion::good()),
            Ok(Some((list_id, _))) => match self.copy_refusal(&nexus, Some(list_id)) {
                Some(refused) => self.complete(id, refused),
                None => {
                    self.set_stage(id, Stage::AwaitingRandom);
                    self.actions.push_back(Action::DrawRandom { task: id });
                }
            },
        }
    }

    /// Random bytes for the token of a POPULATE TOKEN.
    pub fn handle_random(&mut self, now: Instant, task: TaskId, random: &[u8; RANDOM_LEN]) {
        self.now = now;
        let waiting = self.tasks.get(&task).filter(|task| task.stage == Stage::AwaitingRandom);
        let Some(nexus) = waiting.map(|task| task.nexus) else { return };
        if let Ok(Some((list_id, request))) = self.populate_request(task) {
            let geometry = self.config.properties.geometry;
            let bytes = request.extents.iter().map(|extent| extent.byte_len(&geometry)).sum();
            let identity = &self.config.properties.identity;
            let token = RodToken::new(request.kind, identity, &geometry, bytes, random);
            self.tokens.insert(now, token.clone(), request.extents, request.inactivity_s);
            let outcome = Outcome {
                service_action: 0x10,
                state: State::Completed,
                operations: 0,
                segments: 0,
                bytes,
                status: Status::Good,
                sense: None,
                token: Some(token),
            };
            self.held_copies.insert(nexus, list_id, outcome);
        }
        self.complete(task, Completion::good());
        self.run();
    }

    /// Nothing is known of what was written to the unit meanwhile: no token is good any more.
    pub fn forget_tokens(&mut self) {
        self.tokens.forget_all();
    }

    /// A command that a copy manager sends on behalf of a nexus. As [`DeviceServer::handle_command`], but it neither waits for
    /// the nexus's tasks nor reports its Unit Attentions, and its failure is the copy's, not a CHECK CONDITION of the nexus.
    ///
    /// # Errors
    /// [`DuplicateTask`]: the caller has a living task of this name.
    pub fn handle_copy_part(
        &mut self,
        now: Instant,
        request: CommandRequest<'_>,
        data: DataOut<'_>,
        role: &CopyRole,
    ) -> Result<(), DuplicateTask> {
        self.now = now;
        let id = request.task;
        if self.tasks.contains_key(&id) {
            return Err(DuplicateTask);
        }
        if self.task_set.faulted_for(request.nexus).is_some() {
            self.refuse_part(id, Status::AcaActive);
            return Ok(());
        }
        let command = match role {
            CopyRole::Plain => cdb::parse(request.cdb, &self.config.properties.geometry),
            CopyRole::Token(token) => self.token_read(request.cdb, token),
            CopyRole::DeleteToken(token) => self.token_read(request.cdb, token).inspect(|_| {
                self.tokens.delete(token);
            }),
        };
        match self.task_set.admit_beside(id, request.nexus) {
            Err(NotAdmitted::Duplicate) => return Err(DuplicateTask),
            Err(NotAdmitted::Full) => {
                self.refuse_part(id, Status::TaskSetFull);
                return Ok(());
            }
            Ok(()) => {}
        }
        let request = CommandRequest { unit_attention: None, ..request };
        let mut task = Task::new(now, &request, command, data, &self.config.properties.geometry);
        task.of_copy = true;
        if let CopyRole::Token(token) = role {
            task.token = Some(token.clone());
        }
        self.tasks.insert(id, Box::new(task));
        self.work.push_back(Work::Start(id));
        self.run();
        Ok(())
    }

    fn refuse_part(&mut self, task: TaskId, status: Status) {
        let response = super::Response::Completed(Completion::status(status));
        self.actions.push_back(Action::Complete { task, response });
    }

    /// The read that a READ (16) of a token's data is.
    fn token_read(&mut self, cdb: &[u8], token: &RodToken) -> Result<Command, Sense> {
        let geometry = self.config.properties.geometry;
        self.tokens.check(self.now, token)?;
        let invalid = Sense::illegal(asc::INVALID_FIELD_IN_COMMAND_IU);
        let &[0x88, _, a, b, c, d, e, f, g, h, i, j, k, l, _, _] = cdb else { return Err(invalid) };
        let (offset, blocks) =
            (u64::from_be_bytes([a, b, c, d, e, f, g, h]), u32::from_be_bytes([i, j, k, l]));
        let extent = match blocks {
            0 => Extent { lba: 0, blocks: 0 },
            _ => self.tokens.part(self.now, token, offset, blocks, &geometry)?.ok_or(invalid)?,
        };
        Ok(Command::Read { extent, fua: false, dpo: false })
    }

    /// A read by a token, before it is submitted and after it has ended: is the token still good?
    pub(super) fn token_refusal(&mut self, id: TaskId) -> Option<Completion> {
        let token = self.tasks.get(&id)?.token.clone()?;
        self.tokens.check(self.now, &token).err().map(Completion::check)
    }

    /// An action is about to change the medium.
    pub(super) fn revoke_tokens(&mut self, action: &Action) {
        if self.tokens.is_empty() {
            return;
        }
        match action {
            Action::Write { extent, .. }
            | Action::WriteBytes { extent, .. }
            | Action::WriteAtomic { extent, .. }
            | Action::WriteSame { extent, .. } => {
                self.tokens.revoke(&[*extent]);
            }
            Action::Unmap { extents, .. } => self.tokens.revoke(extents),
            _ => {}
        }
    }

    /// The ranges that POPULATE TOKEN holds while its token is made.
    pub(super) fn populate_ranges(&self, id: TaskId) -> Result<Vec<Extent>, Sense> {
        Ok(self.populate_request(id)?.map(|(_, request)| request.extents).unwrap_or_default())
    }
}
