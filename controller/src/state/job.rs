//! Jobs: long work that people follow, with its progress.
//!
//! How to use one
//! * In the state machine, in the very entry that begins the work: [`StateMachine::begin_job`], then [`StateMachine::report_job`]
//!   and [`StateMachine::end_job`] as its entries come. `delete_volume` and `remove_replica` show it.
//! * From outside (the leader's own tasks, a node's session): propose [`Body::BeginJob`](super::Body::BeginJob), `ReportJob` at
//!   most once a second, `EndJob`. All three are refused for a job that has ended; `BeginJob` while one of the same kind and
//!   subject runs.
//! * [`StateMachine::running_job`] finds the job of a resource. A runner looks at its `cancel_requested`, stops, and ends the job
//!   as cancelled.
//!
//! Invariants: ids grow and are never reused; at most one job of a kind runs for a subject; an ended job never changes again;
//! running jobs are never forgotten, and of the ended ones the [`limits::JOBS_ENDED_KEPT`] youngest are kept. Data nodes see
//! nothing of jobs.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_proto::state::{self as records, JobKind, JobState, change};

use super::{
    CorruptState, Kind, Outcome, Refusal, StateMachine,
    convert::corrupt,
    effects::Effects,
    limits,
    names::{bounded, printable},
    node::exhausted,
};

/// All kinds that there are.
pub const KINDS: [JobKind; 8] = [
    JobKind::DeleteVolume,
    JobKind::ReSync,
    JobKind::Move,
    JobKind::Drain,
    JobKind::Rebalance,
    JobKind::Snapshot,
    JobKind::Clone,
    JobKind::Restore,
];

/// As people write it.
pub fn kind_name(kind: JobKind) -> &'static str {
    match kind {
        JobKind::Unspecified => "",
        JobKind::DeleteVolume => "delete-volume",
        JobKind::ReSync => "re-sync",
        JobKind::Move => "move",
        JobKind::Drain => "drain",
        JobKind::Rebalance => "rebalance",
        JobKind::Snapshot => "snapshot",
        JobKind::Clone => "clone",
        JobKind::Restore => "restore",
    }
}

/// What its progress counts.
pub fn unit(kind: JobKind) -> &'static str {
    match kind {
        JobKind::Unspecified => "",
        JobKind::DeleteVolume => "replicas",
        JobKind::ReSync | JobKind::Move => "bytes",
        JobKind::Drain | JobKind::Rebalance | JobKind::Snapshot | JobKind::Clone | JobKind::Restore => {
            "volumes"
        }
    }
}

/// Why a job of this kind cannot be given up halfway; `None`: it can.
fn uncancellable(kind: JobKind) -> Option<&'static str> {
    match kind {
        JobKind::Move | JobKind::Drain | JobKind::Rebalance => None,
        JobKind::DeleteVolume => Some("the volume's data is going already"),
        JobKind::ReSync => Some("the volume would stay without the replica that it is to have"),
        JobKind::Snapshot | JobKind::Clone => {
            Some("it is made or given up within seconds; delete it instead")
        }
        JobKind::Restore => Some("it is done or given up within seconds"),
        JobKind::Unspecified => Some("it is of no known kind"),
    }
}

/// As people write it.
pub fn state_name(state: JobState) -> &'static str {
    match state {
        JobState::Unspecified => "",
        JobState::Running => "running",
        JobState::Done => "done",
        JobState::Failed => "failed",
        JobState::Cancelled => "cancelled",
    }
}

/// Milliseconds that the rest of a running job takes at the rate so far, as of its last report. `None`: cannot be told.
pub fn estimated_ms_left(job: &records::Job) -> Option<u64> {
    let elapsed_ms = job.updated_unix_ms.checked_sub(job.began_unix_ms)?;
    if job.state() != JobState::Running || job.done == 0 || job.total < job.done {
        return None;
    }
    let left = u128::from(elapsed_ms) * u128::from(job.total - job.done) / u128::from(job.done);
    u64::try_from(left).ok()
}

/// All jobs that are kept. What runs and what has ended is known without a search.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Jobs {
    by_id: BTreeMap<u64, records::Job>,
    /// Running jobs by kind and subject.
    running: BTreeMap<(i32, String), u64>,
    /// The same by id.
    running_ids: BTreeSet<u64>,
    ended: BTreeSet<u64>,
}

impl Jobs {
    pub(super) fn records(&self) -> impl Iterator<Item = &records::Job> {
        self.by_id.values()
    }

    /// From stored records, in any order.
    pub(super) fn from_records(stored: Vec<records::Job>) -> Result<Jobs, CorruptState> {
        let mut jobs = Jobs::default();
        for job in stored {
            let good = job.id != 0
                && job.state() != JobState::Unspecified
                && job.kind() != JobKind::Unspecified
                && (job.total == 0 || job.done <= job.total)
                && (job.state() != JobState::Running || jobs.running(job.kind(), &job.subject).is_none());
            if !good || jobs.by_id.contains_key(&job.id) {
                return Err(corrupt(&format!("job {}", job.id)));
            }
            jobs.insert(job);
        }
        Ok(jobs)
    }

    fn insert(&mut self, job: records::Job) {
        if job.state() == JobState::Running {
            self.running.insert((job.kind, job.subject.clone()), job.id);
            self.running_ids.insert(job.id);
        } else {
            self.ended.insert(job.id);
        }
        self.by_id.insert(job.id, job);
    }

    fn running(&self, kind: JobKind, subject: &str) -> Option<&records::Job> {
        self.by_id.get(self.running.get(&(kind.into(), subject.to_owned()))?)
    }

    fn running_mut(&mut self, id: u64) -> Result<&mut records::Job, Refusal> {
        let job = self.by_id.get_mut(&id).ok_or_else(|| Refusal::not_found(Kind::Job, &id.to_string()))?;
        match job.state() {
            JobState::Running => Ok(job),
            ended => {
                Err(Refusal::Precondition(format!("job {id} has ended already: it is {}", state_name(ended))))
            }
        }
    }

    /// Drops the oldest of the ended jobs beyond the bound.
    fn forget(&mut self, effects: &mut Effects) {
        while self.ended.len() > limits::JOBS_ENDED_KEPT {
            let Some(id) = self.ended.pop_first() else { break };
            self.by_id.remove(&id);
            effects.change(change::Change::RemovedJob(id));
        }
    }
}

impl StateMachine {
    /// All jobs that are kept, by id.
    pub fn jobs(&self) -> impl Iterator<Item = &records::Job> {
        self.jobs.by_id.values()
    }

    /// Those that run, by id.
    pub fn running_jobs(&self) -> impl Iterator<Item = &records::Job> {
        self.jobs.running_ids.iter().filter_map(|id| self.jobs.by_id.get(id))
    }

    /// A job by id.
    pub fn job(&self, id: u64) -> Option<&records::Job> {
        self.jobs.by_id.get(&id)
    }

    /// The job of this kind that runs for `subject` ("volume/db1").
    pub fn running_job(&self, kind: JobKind, subject: &str) -> Option<&records::Job> {
        self.jobs.running(kind, subject)
    }

    /// Begins a job and gives its id. `total`: 0 = not known yet.
    ///
    /// # Errors
    /// One of this kind runs for the subject already, or too many run.
    pub(super) fn begin_job(
        &mut self,
        kind: JobKind,
        subject: String,
        total: u64,
        message: &str,
        effects: &mut Effects,
    ) -> Result<u64, Refusal> {
        if kind == JobKind::Unspecified {
            return Err(Refusal::invalid("kind", "is no kind of job"));
        }
        if let Some(running) = self.jobs.running(kind, &subject) {
            return Err(Refusal::Precondition(format!(
                "job {} ({} of {subject}) is running already",
                running.id,
                kind_name(kind)
            )));
        }
        if self.jobs.running_ids.len() >= limits::JOBS_RUNNING_MAX {
            return Err(exhausted("running jobs", limits::JOBS_RUNNING_MAX));
        }
        let id = self.jobs.by_id.last_key_value().map_or(1, |(last, _)| last.saturating_add(1));
        let job = records::Job {
            id,
            kind: kind.into(),
            state: JobState::Running.into(),
            total,
            message: bounded(message),
            began_unix_ms: effects.time_unix_ms(),
            begun_by: effects.caller().to_owned(),
            subject,
            ..Default::default()
        };
        let text = format!("job {id} began: {} of {}", kind_name(kind), job.subject);
        effects.event("job.began", format!("job/{id}"), text);
        effects.change(change::Change::Job(job.clone()));
        self.jobs.insert(job);
        Ok(id)
    }

    /// Progress of a running job. A `message` that is empty leaves the one that it has.
    ///
    /// # Errors
    /// The job has ended, or is not known.
    pub(super) fn report_job(
        &mut self,
        id: u64,
        done: u64,
        total: u64,
        message: &str,
        effects: &mut Effects,
    ) -> Result<(), Refusal> {
        let job = self.jobs.running_mut(id)?;
        if total != 0 && done > total {
            return Err(Refusal::invalid("done", format!("{done} is more than the total of {total}")));
        }
        let before = job.clone();
        (job.done, job.total) = (done, total);
        if !message.is_empty() {
            job.message = bounded(message);
        }
        if *job != before {
            job.updated_unix_ms = effects.time_unix_ms();
            effects.change(change::Change::Job(job.clone()));
        }
        Ok(())
    }

    /// Ends a running job, as done, failed or cancelled.
    ///
    /// # Errors
    /// The job has ended, or is not known.
    pub(super) fn end_job(
        &mut self,
        id: u64,
        state: JobState,
        message: &str,
        effects: &mut Effects,
    ) -> Result<(), Refusal> {
        if matches!(state, JobState::Unspecified | JobState::Running) {
            return Err(Refusal::invalid("state", "is no state in which a job ends"));
        }
        let job = self.jobs.running_mut(id)?;
        job.state = state.into();
        job.ended_unix_ms = effects.time_unix_ms();
        if state == JobState::Done {
            job.done = job.total;
        }
        if !message.is_empty() {
            job.message = bounded(message);
        }
        let reason = if job.message.is_empty() { String::new() } else { format!(": {}", job.message) };
        let text = format!(
            "job {id} ({} of {}) is {}{reason}",
            kind_name(job.kind()),
            job.subject,
            state_name(state)
        );
        effects.event(&format!("job.{}", state_name(state)), format!("job/{id}"), text);
        effects.change(change::Change::Job(job.clone()));
        let running = (job.kind, job.subject.clone());
        self.jobs.running.remove(&running);
        self.jobs.running_ids.remove(&id);
        self.jobs.ended.insert(id);
        self.jobs.forget(effects);
        Ok(())
    }

    pub(super) fn propose_job(
        &mut self,
        command: &records::BeginJob,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        let (kind, subject) = command.subject.split_once('/').unwrap_or_default();
        if kind.is_empty() || subject.is_empty() || command.subject.len() > limits::JOB_SUBJECT_BYTES_MAX {
            let reason = format!("'{}' is not a resource as in volume/db1", printable(&command.subject));
            return Err(Refusal::invalid("subject", reason));
        }
        let subject = printable(&command.subject);
        let id = self.begin_job(command.kind(), subject, command.total, &command.message, effects)?;
        Ok(self.job(id).map_or(Outcome::Done, |job| Outcome::Job(job.clone())))
    }

    pub(super) fn cancel_job(
        &mut self,
        command: &records::CancelJob,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        let job = self.jobs.running_mut(command.id)?;
        if let Some(reason) = uncancellable(job.kind()) {
            return Err(Refusal::Precondition(format!(
                "job {} ({} of {}) cannot be cancelled: {reason}",
                job.id,
                kind_name(job.kind()),
                job.subject
            )));
        }
        if !job.cancel_requested {
            job.cancel_requested = true;
            let text = format!("job {} ({} of {}) is to end", job.id, kind_name(job.kind()), job.subject);
            effects.event("job.cancelling", format!("job/{}", job.id), text);
            effects.change(change::Change::Job(job.clone()));
        }
        Ok(Outcome::Job(job.clone()))
    }
}
