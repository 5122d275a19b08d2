//! Commands of copies: a unit of this node that copies sends them to its sources and destinations, here or elsewhere.
//!
//! Invariants: each is sent on behalf of the nexus that asked for the copy, and only while the newest map of that nexus's host
//! has the unit; it is sent again only after a definite "not executed", for a bounded time; it is answered exactly once.

use std::sync::Arc;

use holdfast_replica::limits::COMMAND_AGE_MS_MAX;
use holdfast_scsi::device_server::{CopyAnswer, CopyCommandOut, TaskAttribute, TaskId};
use holdfast_scsi::time::Instant;

use super::commands::{Owner, Place};
use super::limits::HOLD_MS_MAX;
use super::router::{Bytes, CommandData, CommandFor, ForwardToken, Outcome};
use super::worker::Worker;
use crate::clock;
use crate::lu::{Driver, LogicalUnit, RequestName, Requester};
use crate::view::{Epoch, VolumeId};

/// A command of a copy on its way.
#[derive(Debug)]
pub(crate) struct Errand {
    /// The unit that copies.
    unit: Arc<LogicalUnit>,
    command: CopyCommandOut,
    data: Bytes,
    /// Until when it is held before the unit counts as unreachable, in boot-time milliseconds.
    hold_until: u64,
    place: Place,
}

impl Errand {
    pub(crate) fn new(unit: Arc<LogicalUnit>, mut command: CopyCommandOut) -> Errand {
        let data = Bytes::new(std::mem::take(&mut command.data_out));
        let hold_until = clock::now_ms().saturating_add(HOLD_MS_MAX);
        Errand { unit, command, data, hold_until, place: Place::Held }
    }

    fn is_of(&self, unit: &Arc<LogicalUnit>, task: TaskId) -> bool {
        self.command.task == task && Arc::ptr_eq(&self.unit, unit)
    }
}

impl Worker {
    pub(super) fn run_errand(&mut self, now: Instant, errand: Errand) {
        match self.target_of(&errand) {
            Target::None => self.answer_errand(&errand, CopyAnswer::Unreachable),
            Target::Later => self.held_errands.push(errand),
            Target::Unit { read_only, owner, volume } => {
                self.send_errand(now, errand, volume, read_only, owner)
            }
        }
    }

    fn target_of(&self, errand: &Errand) -> Target {
        if !self.shared.gate.open(clock::now_ms()) {
            return Target::Later;
        }
        let Some(view) = &self.view else { return Target::Later };
        let host = view.host_by_initiator.find(&errand.command.nexus.initiator);
        let mappings = host.map_or(&[][..], |host| view.mappings_of(&host.name));
        let volume = VolumeId(errand.command.unit);
        let Some(mapping) = mappings.iter().find(|mapping| mapping.volume == volume) else {
            return Target::None;
        };
        match self.owner(volume) {
            Owner::NoVolume => Target::None,
            Owner::Nobody => Target::Later,
            owner => Target::Unit { read_only: mapping.read_only, owner, volume },
        }
    }

    fn send_errand(
        &mut self,
        now: Instant,
        mut errand: Errand,
        volume: VolumeId,
        read_only: bool,
        owner: Owner,
    ) {
        let data = match errand.data.is_empty() {
            true => CommandData::None,
            false => CommandData::Ready(errand.data.clone()),
        };
        let mut command = CommandFor {
            volume,
            epoch: Epoch::ZERO,
            nexus: errand.command.nexus,
            cdb: errand.command.cdb.to_vec(),
            attribute: TaskAttribute::Simple,
            data_out_len: u32::try_from(errand.data.len()).unwrap_or(u32::MAX),
            data,
            unit_attention: None,
            read_only,
            copy: Some(errand.command.role.clone()),
            execute_by: now.plus_millis(COMMAND_AGE_MS_MAX),
        };
        let token = self.token();
        match owner {
            Owner::Local(unit, epoch) => {
                command.epoch = epoch;
                let requester = Requester { worker: self.index, request: RequestName::Local(token) };
                let mut driver =
                    Driver { services: &self.services, local: Some((self.index, &mut self.answers)) };
                let task = unit.command(&mut driver, requester, &command);
                errand.place = Place::Local(unit, task);
                self.errands.insert(token, errand);
            }
            Owner::Remote(node, epoch) => {
                command.epoch = epoch;
                errand.place = Place::Remote(node);
                self.errands.insert(token, errand);
                self.interconnect.forward(now, node, token, command);
            }
            Owner::Nobody | Owner::NoVolume => self.answer_errand(&errand, CopyAnswer::Unreachable),
        }
    }

    /// How the command of a copy ended, here or elsewhere.
    pub(super) fn errand_done(&mut self, now: Instant, mut errand: Errand, outcome: Outcome) {
        let answer = match outcome {
            Outcome::NotExecuted if errand.hold_until > now.0 => {
                errand.place = Place::Held;
                self.held_errands.push(errand);
                return;
            }
            Outcome::NotExecuted => CopyAnswer::Unreachable,
            Outcome::Aborted => CopyAnswer::Aborted,
            Outcome::Reply(reply) => CopyAnswer::Ended {
                status: reply.status,
                sense: reply.sense,
                data: reply.data.as_slice().to_vec(),
            },
            Outcome::Unknown => CopyAnswer::Unknown,
        };
        self.answer_errand(&errand, answer);
    }

    /// Tries again what could not be executed.
    pub(super) fn retry_errands(&mut self, now: Instant) {
        if self.held_errands.is_empty() {
            return;
        }
        for errand in std::mem::take(&mut self.held_errands) {
            match errand.hold_until > now.0 {
                true => self.run_errand(now, errand),
                false => self.answer_errand(&errand, CopyAnswer::Unreachable),
            }
        }
        self.settle(now);
    }

    /// The copy was aborted.
    pub(super) fn cancel_errand(&mut self, now: Instant, unit: &Arc<LogicalUnit>, task: TaskId) {
        if let Some(at) = self.held_errands.iter().position(|errand| errand.is_of(unit, task)) {
            let errand = self.held_errands.swap_remove(at);
            return self.answer_errand(&errand, CopyAnswer::Unreachable);
        }
        let found = self.errands.iter().find(|(_, errand)| errand.is_of(unit, task));
        let Some((token, place, nexus)) = found
            .map(|(token, errand): (&ForwardToken, _)| (*token, errand.place.clone(), errand.command.nexus))
        else {
            return;
        };
        match place {
            Place::Held => {}
            Place::Local(unit, task) => {
                let mut driver =
                    Driver { services: &self.services, local: Some((self.index, &mut self.answers)) };
                unit.abort(&mut driver, &nexus, task);
            }
            Place::Remote(node) => self.interconnect.forward_abort(now, node, token),
        }
    }

    fn answer_errand(&mut self, errand: &Errand, answer: CopyAnswer) {
        let mut driver = Driver { services: &self.services, local: Some((self.index, &mut self.answers)) };
        errand.unit.copy_answer(&mut driver, errand.command.task, answer);
    }
}

/// Where the command of a copy goes just now.
enum Target {
    /// The host has no such unit (any more).
    None,
    /// Nowhere yet.
    Later,
    Unit {
        read_only: bool,
        owner: Owner,
        volume: VolumeId,
    },
}
