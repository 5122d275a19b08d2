//! The task set of one logical unit (SAM-5 clause 8): which tasks are in it, and which may run.
//!
//! Invariants: a SIMPLE task runs when no older ORDERED and no HEAD OF QUEUE task is left; an ORDERED task when nothing
//! older and no HEAD OF QUEUE task is left; a HEAD OF QUEUE task at once. The number of tasks is bounded, for the unit
//! and for each I_T nexus, so that one host cannot lock the others out.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use crate::{limits, nexus::Nexus};

/// Task attribute (SAM-5 8.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskAttribute {
    /// In any order between ORDERED tasks.
    Simple,
    /// Behind everything older, before everything younger.
    Ordered,
    /// Before everything else.
    HeadOfQueue,
    /// For ACA conditions, which are not supported (NORMACA is 0): refused.
    Aca,
}

/// Names a task; the caller's, unique while the task lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(pub u64);

/// Why a task was not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAdmitted {
    /// TASK SET FULL: the unit or the nexus has as many tasks as it may.
    Full,
    /// The name is that of a living task.
    Duplicate,
}

#[derive(Clone, Debug)]
struct Entry {
    sequence: u64,
    attribute: TaskAttribute,
    nexus: Nexus,
}

/// The task set.
#[derive(Clone, Debug, Default)]
pub struct TaskSet {
    tasks: BTreeMap<TaskId, Entry>,
    /// All tasks in the order of their arrival.
    by_age: BTreeMap<u64, TaskId>,
    ordered: BTreeSet<u64>,
    head_of_queue: BTreeSet<u64>,
    dormant: BTreeSet<u64>,
    per_nexus: BTreeMap<Nexus, usize>,
    next_sequence: u64,
}

impl TaskSet {
    /// Puts a task in; true if it may run at once, otherwise [`TaskSet::next_enabled`] tells when.
    pub fn admit(
        &mut self,
        task: TaskId,
        nexus: &Nexus,
        attribute: TaskAttribute,
    ) -> Result<bool, NotAdmitted> {
        if self.tasks.contains_key(&task) {
            return Err(NotAdmitted::Duplicate);
        }
        let of_nexus = self.per_nexus.get(nexus).copied().unwrap_or(0);
        if self.tasks.len() >= limits::TASK_SET_MAX || of_nexus >= limits::TASKS_PER_NEXUS_MAX {
            return Err(NotAdmitted::Full);
        }
        let sequence = self.next_sequence;
        self.next_sequence = sequence.saturating_add(1);
        let may_run = self.may_run(sequence, attribute);
        self.tasks.insert(task, Entry { sequence, attribute, nexus: *nexus });
        self.by_age.insert(sequence, task);
        self.per_nexus.insert(*nexus, of_nexus.saturating_add(1));
        match attribute {
            TaskAttribute::Ordered => _ = self.ordered.insert(sequence),
            TaskAttribute::HeadOfQueue => _ = self.head_of_queue.insert(sequence),
            TaskAttribute::Simple | TaskAttribute::Aca => {}
        }
        if !may_run {
            self.dormant.insert(sequence);
        }
        Ok(may_run)
    }

    /// Takes a task out. Call [`TaskSet::next_enabled`] until it has no more.
    pub fn remove(&mut self, task: TaskId) {
        let Some(entry) = self.tasks.remove(&task) else { return };
        self.by_age.remove(&entry.sequence);
        self.ordered.remove(&entry.sequence);
        self.head_of_queue.remove(&entry.sequence);
        self.dormant.remove(&entry.sequence);
        if let Some(count) = self.per_nexus.get_mut(&entry.nexus) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.per_nexus.remove(&entry.nexus);
            }
        }
    }

    /// The oldest waiting task that may run now; it no longer waits.
    pub fn next_enabled(&mut self) -> Option<TaskId> {
        // What blocks the oldest waiting task blocks every younger one too.
        let sequence = *self.dormant.first()?;
        let task = *self.by_age.get(&sequence)?;
        let attribute = self.tasks.get(&task)?.attribute;
        self.may_run(sequence, attribute).then(|| {
            self.dormant.remove(&sequence);
            task
        })
    }

    /// Number of tasks.
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    /// True without any task.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// True if this nexus has this task.
    pub fn has(&self, task: TaskId, nexus: &Nexus) -> bool {
        self.tasks.get(&task).is_some_and(|entry| entry.nexus == *nexus)
    }

    /// True if this nexus has any task.
    pub fn has_any_of(&self, nexus: &Nexus) -> bool {
        self.per_nexus.contains_key(nexus)
    }

    /// The tasks that fit, oldest first.
    pub fn select(&self, fits: impl Fn(TaskId, &Nexus) -> bool) -> Vec<TaskId> {
        let fits = |task: &&TaskId| self.tasks.get(*task).is_some_and(|entry| fits(**task, &entry.nexus));
        self.by_age.values().filter(fits).copied().collect()
    }

    fn may_run(&self, sequence: u64, attribute: TaskAttribute) -> bool {
        match attribute {
            TaskAttribute::HeadOfQueue | TaskAttribute::Aca => true,
            TaskAttribute::Simple => {
                self.head_of_queue.is_empty() && self.ordered.first().is_none_or(|oldest| *oldest > sequence)
            }
            TaskAttribute::Ordered => {
                self.head_of_queue.is_empty()
                    && self.by_age.keys().next().is_none_or(|oldest| *oldest >= sequence)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{nexus::RelativePort, transport_id::TransportId};
    use TaskAttribute::{HeadOfQueue, Ordered, Simple};

    fn nexus(n: u8) -> Nexus {
        Nexus::new(TransportId::sas([n; 8]), RelativePort(1))
    }

    fn enabled(set: &mut TaskSet) -> Vec<u64> {
        core::iter::from_fn(|| set.next_enabled()).map(|t| t.0).collect()
    }

    #[test]
    fn ordered_waits_for_all_older_and_holds_all_younger() {
        let mut set = TaskSet::default();
        assert_eq!(set.admit(TaskId(1), &nexus(1), Simple), Ok(true));
        assert_eq!(set.admit(TaskId(2), &nexus(1), Simple), Ok(true));
        assert_eq!(set.admit(TaskId(3), &nexus(2), Ordered), Ok(false));
        assert_eq!(set.admit(TaskId(4), &nexus(1), Simple), Ok(false));
        set.remove(TaskId(2));
        assert_eq!(enabled(&mut set), []);
        set.remove(TaskId(1));
        assert_eq!(enabled(&mut set), [3]);
        set.remove(TaskId(3));
        assert_eq!(enabled(&mut set), [4]);
    }

    #[test]
    fn head_of_queue_runs_at_once_and_holds_the_rest() {
        let mut set = TaskSet::default();
        set.admit(TaskId(1), &nexus(1), Simple).unwrap();
        assert_eq!(set.admit(TaskId(2), &nexus(1), HeadOfQueue), Ok(true));
        assert_eq!(set.admit(TaskId(3), &nexus(1), Simple), Ok(false));
        assert_eq!(set.admit(TaskId(4), &nexus(1), Ordered), Ok(false));
        set.remove(TaskId(2));
        assert_eq!(enabled(&mut set), [3]);
        set.remove(TaskId(1));
        set.remove(TaskId(3));
        assert_eq!(enabled(&mut set), [4]);
    }

    #[test]
    fn removing_a_waiting_ordered_task_frees_the_younger() {
        let mut set = TaskSet::default();
        set.admit(TaskId(1), &nexus(1), Simple).unwrap();
        set.admit(TaskId(2), &nexus(1), Ordered).unwrap();
        set.admit(TaskId(3), &nexus(1), Simple).unwrap();
        set.remove(TaskId(2));
        assert_eq!(enabled(&mut set), [3]);
    }

    #[test]
    fn one_nexus_cannot_fill_the_set() {
        let mut set = TaskSet::default();
        for n in 0..limits::TASKS_PER_NEXUS_MAX as u64 {
            assert_eq!(set.admit(TaskId(n), &nexus(1), Simple), Ok(true));
        }
        assert_eq!(set.admit(TaskId(9999), &nexus(1), Simple), Err(NotAdmitted::Full));
        assert_eq!(set.admit(TaskId(9999), &nexus(2), Simple), Ok(true));
        assert_eq!(set.admit(TaskId(9999), &nexus(2), Simple), Err(NotAdmitted::Duplicate));
        set.remove(TaskId(0));
        assert_eq!(set.admit(TaskId(0), &nexus(1), Simple), Ok(true));
    }
}
