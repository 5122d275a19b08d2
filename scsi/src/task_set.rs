//! The task set of one logical unit (SAM-5 clause 8): which tasks are in it, and which may run.
//!
//! Invariants: a SIMPLE task runs when no older ORDERED and no HEAD OF QUEUE task is left; an ORDERED task when nothing
//! older and no HEAD OF QUEUE task is left; a HEAD OF QUEUE task at once. The number of tasks is bounded, for the unit
//! and for each I_T nexus, so that one host cannot lock the others out. With TST=001b each I_T nexus has a task set of its own
//! as far as order goes; while an ACA condition exists only tasks with the ACA attribute become enabled.

use alloc::boxed::Box;
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
    /// To deal with an ACA condition: runs while all else is blocked.
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
    /// In boxes: the map moves its neighbours whenever one comes or goes.
    tasks: BTreeMap<TaskId, Box<Entry>>,
    /// All tasks in the order of their arrival.
    by_age: BTreeMap<u64, TaskId>,
    ordered: BTreeSet<u64>,
    head_of_queue: BTreeSet<u64>,
    dormant: BTreeSet<u64>,
    per_nexus: BTreeMap<Nexus, usize>,
    next_sequence: u64,
    separate: bool,
    faulted: BTreeSet<Nexus>,
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
        let may_run = self.may_run(sequence, attribute, nexus);
        self.tasks.insert(task, Box::new(Entry { sequence, attribute, nexus: *nexus }));
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

    /// Puts a task in beside the order of the others: it runs at once. What a copy manager sends belongs to a task that has had
    /// its turn already, perhaps in this very set, and would otherwise wait for itself.
    pub fn admit_beside(&mut self, task: TaskId, nexus: &Nexus) -> Result<(), NotAdmitted> {
        self.admit(task, nexus, TaskAttribute::Simple)?;
        if let Some(entry) = self.tasks.get(&task) {
            self.dormant.remove(&entry.sequence);
        }
        Ok(())
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
        // In one task set, what blocks the oldest waiting task blocks every younger one too.
        let looked_at = if self.separate { self.dormant.len() } else { 1 };
        let found = self.dormant.iter().take(looked_at).find_map(|sequence| {
            let task = *self.by_age.get(sequence)?;
            let entry = self.tasks.get(&task)?;
            self.may_run(*sequence, entry.attribute, &entry.nexus).then_some((*sequence, task))
        });
        let (sequence, task) = found?;
        self.dormant.remove(&sequence);
        Some(task)
    }

    /// TST: whether each I_T nexus has a task set of its own.
    pub fn separate(&mut self, separate: bool) {
        self.separate = separate;
    }

    /// Establishes an ACA condition for this nexus.
    pub fn fault(&mut self, nexus: &Nexus) {
        self.faulted.insert(*nexus);
    }

    /// Clears the ACA condition of this nexus; true if it had one. Call [`TaskSet::next_enabled`] afterwards.
    pub fn clear_fault(&mut self, nexus: &Nexus) -> bool {
        self.faulted.remove(nexus)
    }

    /// Clears every ACA condition.
    pub fn clear_faults(&mut self) {
        self.faulted.clear();
    }

    /// The faulted nexus of the task set that this nexus's tasks are in.
    pub fn faulted_for(&self, nexus: &Nexus) -> Option<&Nexus> {
        match self.separate {
            true => self.faulted.get(nexus),
            false => self.faulted.first(),
        }
    }

    /// True if this nexus has a task with the ACA attribute.
    pub fn has_aca_task(&self, nexus: &Nexus) -> bool {
        self.tasks.values().any(|entry| entry.nexus == *nexus && entry.attribute == TaskAttribute::Aca)
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

    fn may_run(&self, sequence: u64, attribute: TaskAttribute, nexus: &Nexus) -> bool {
        if attribute == TaskAttribute::Aca {
            return true;
        }
        if self.faulted_for(nexus).is_some() {
            return false;
        }
        if self.separate {
            return self.may_run_among_its_own(sequence, attribute, nexus);
        }
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

    fn may_run_among_its_own(&self, sequence: u64, attribute: TaskAttribute, nexus: &Nexus) -> bool {
        let own = || self.tasks.values().filter(|entry| entry.nexus == *nexus && entry.sequence != sequence);
        let no_head = || own().all(|entry| entry.attribute != TaskAttribute::HeadOfQueue);
        match attribute {
            TaskAttribute::HeadOfQueue | TaskAttribute::Aca => true,
            TaskAttribute::Simple => {
                let older_ordered =
                    |entry: &Entry| entry.attribute == TaskAttribute::Ordered && entry.sequence < sequence;
                no_head() && !own().map(Box::as_ref).any(older_ordered)
            }
            TaskAttribute::Ordered => no_head() && own().all(|entry| entry.sequence > sequence),
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
    fn with_task_sets_of_their_own_one_nexus_holds_no_other_up() {
        let mut set = TaskSet::default();
        set.separate(true);
        assert_eq!(set.admit(TaskId(1), &nexus(1), Simple), Ok(true));
        assert_eq!(set.admit(TaskId(2), &nexus(1), Ordered), Ok(false));
        assert_eq!(set.admit(TaskId(3), &nexus(2), Ordered), Ok(true));
        assert_eq!(set.admit(TaskId(4), &nexus(2), Simple), Ok(false));
        assert_eq!(set.admit(TaskId(5), &nexus(1), HeadOfQueue), Ok(true));
        set.remove(TaskId(3));
        assert_eq!(enabled(&mut set), [4]);
        set.remove(TaskId(1));
        assert_eq!(enabled(&mut set), []);
        set.remove(TaskId(5));
        assert_eq!(enabled(&mut set), [2]);
    }

    #[test]
    fn aca_blocks_all_but_its_own_attribute_until_it_is_cleared() {
        let mut set = TaskSet::default();
        set.fault(&nexus(1));
        assert_eq!(set.faulted_for(&nexus(2)), Some(&nexus(1)));
        assert_eq!(set.admit(TaskId(1), &nexus(2), HeadOfQueue), Ok(false));
        assert_eq!(set.admit(TaskId(2), &nexus(1), TaskAttribute::Aca), Ok(true));
        assert!(set.has_aca_task(&nexus(1)) && !set.has_aca_task(&nexus(2)));
        assert_eq!(enabled(&mut set), []);
        assert!(!set.clear_fault(&nexus(2)));
        assert!(set.clear_fault(&nexus(1)));
        assert_eq!(enabled(&mut set), [1]);
        set.remove(TaskId(1));
        set.separate(true);
        set.fault(&nexus(1));
        assert_eq!(set.faulted_for(&nexus(2)), None);
        assert_eq!(set.admit(TaskId(3), &nexus(2), Simple), Ok(true));
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
