//! Changes of the unit's state that no command asked for: a nexus was lost, the unit was reset.
//!
//! An event is judged once the tasks that it aborts have ended, for one of them may be a proposal under way; it is proposed
//! like a command, against the version that it was judged by, until the state shows nothing more of it. Invariants: the loss
//! of a nexus is never given up; a nexus that comes back changes nothing of the state before its loss is settled.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::{Action, Completion, DeviceServer, ProposalOutcome, UnitEvent, Work, task::Stage};
use crate::{nexus::Nexus, pr::access::Access, status::Status, task_set::TaskId, time::Instant};

/// An event that is not settled.
#[derive(Clone, Copy, Debug)]
pub(super) struct PendingEvent {
    id: u64,
    event: UnitEvent,
    /// The task management function that waits for it.
    function: Option<u64>,
    stage: EventStage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EventStage {
    /// To be judged as soon as the tasks that it aborts have ended.
    Open,
    /// Proposed against this version.
    Proposed(u64),
    /// Another change was first: waits for a version newer than this one.
    AwaitingVersion(u64),
    /// Could not be proposed, or nobody knows: again at the next [`DeviceServer::handle_tick`].
    Retry,
}

impl DeviceServer {
    pub(super) fn begin_event(&mut self, event: UnitEvent, function: Option<u64>) -> u64 {
        self.last_event = self.last_event.saturating_add(1);
        let id = self.last_event;
        self.events.push(PendingEvent { id, event, function, stage: EventStage::Open });
        id
    }

    /// True while the loss of this nexus is not settled.
    pub(super) fn awaits_event(&self, nexus: &Nexus) -> bool {
        self.events.iter().any(|pending| pending.event == UnitEvent::NexusLost(*nexus))
    }

    /// True while the loss of the nexus whose SPC-2 reservation stops this task is being agreed on: its host has been told that the
    /// session has ended, so nobody may be told of a conflict with it any more.
    pub(super) fn awaits_loss_of_holder(&self, id: TaskId) -> bool {
        let Some(holder) = self.reservations.installed().unit.spc2_holder else { return false };
        let Some(task) = self.tasks.get(&id) else { return false };
        let stopped = self.reservations.spc2_access(task) == Access::Conflict;
        let lost = |pending: &PendingEvent| {
            pending.event == UnitEvent::NexusLost(holder) && pending.stage != EventStage::Retry
        };
        stopped && task.nexus != holder && self.events.iter().any(lost)
    }

    /// Time has passed: what could not be proposed is tried again. To be called about once a second.
    pub fn handle_tick(&mut self, now: Instant) {
        self.now = now;
        self.work_rests = false;
        for pending in &mut self.events {
            if pending.stage == EventStage::Retry {
                pending.stage = EventStage::Open;
            }
        }
        self.run();
    }

    /// The proposal of an event ended.
    pub fn handle_event_proposal(&mut self, now: Instant, id: u64, outcome: ProposalOutcome) {
        self.now = now;
        let Some(pending) = self.events.iter_mut().find(|pending| pending.id == id) else { return };
        let EventStage::Proposed(expected) = pending.stage else { return };
        match (outcome, pending.function) {
            // Judged again as the state shows it.
            (ProposalOutcome::Committed { version }, _) => {
                pending.stage = EventStage::AwaitingVersion(version.saturating_sub(1));
            }
            (ProposalOutcome::VersionChanged, _) => pending.stage = EventStage::AwaitingVersion(expected),
            // Whoever asked for it asks again.
            (_, Some(function)) => {
                self.events.retain(|pending| pending.id != id);
                self.event_ended(function, false);
            }
            (_, None) => {
                pending.stage = EventStage::Retry;
                // The cluster cannot agree now. Nothing has happened to those who wait.
                let waiting = self.tasks.iter().filter(|(_, task)| task.stage == Stage::AwaitingLoss);
                for id in waiting.map(|(id, _)| *id).collect::<Vec<_>>() {
                    self.complete(id, Completion::status(Status::Busy));
                }
            }
        }
        self.run();
    }

    /// Goes on with every event that can go on. True if one was settled.
    pub(super) fn settle_events(&mut self) -> bool {
        let version = self.reservations.installed_version();
        let mut settled = false;
        for at in 0..self.events.len() {
            let Some(pending) = self.events.get(at).copied() else { break };
            let may_go_on = match pending.stage {
                EventStage::Open => true,
                EventStage::AwaitingVersion(older) => version > older,
                EventStage::Proposed(_) | EventStage::Retry => false,
            };
            if !may_go_on || self.is_under_way_for(&pending.event) {
                continue;
            }
            let mut next = self.reservations.installed().clone();
            let changes = self.judge(&mut next, &pending.event.change()).is_ok_and(|applied| applied.changed);
            if let Some(pending) = self.events.get_mut(at) {
                pending.stage = if changes { EventStage::Proposed(version) } else { EventStage::Open };
            }
            match changes {
                true => self.actions.push_back(Action::ProposeEvent {
                    id: pending.id,
                    event: Box::new(pending.event),
                    expected_version: version,
                }),
                false => {
                    self.events.retain(|other| other.id != pending.id);
                    if let Some(function) = pending.function {
                        self.event_ended(function, true);
                    }
                    settled = true;
                    break;
                }
            }
        }
        if settled {
            let waiting = self.tasks.iter().filter(|(_, task)| task.stage == Stage::AwaitingEvent);
            self.work.extend(waiting.map(|(id, _)| Work::Execute(*id)));
            let waiting = self.tasks.iter().filter(|(_, task)| task.stage == Stage::AwaitingLoss);
            self.work.extend(waiting.map(|(id, _)| Work::Start(*id)));
        }
        settled
    }

    /// A task that the event aborts may still change the state.
    fn is_under_way_for(&self, event: &UnitEvent) -> bool {
        let concerned = |nexus: &Nexus| match event {
            UnitEvent::NexusLost(lost) => lost == nexus,
            UnitEvent::Reset(_) => true,
            UnitEvent::OperationEnded { .. } => false,
        };
        self.tasks.values().any(|task| task.aborted.is_some() && concerned(&task.nexus))
    }
}
