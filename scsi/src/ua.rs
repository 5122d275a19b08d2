//! Unit Attention conditions of one (I_T nexus, logical unit), in a queue of fixed size (SAM-5 5.14).
//!
//! Invariants: a condition is never lost. It leaves the queue only by [`UaQueue::dequeue`] with its own id, by a rule of
//! the standard (REPORT LUNS and 3F/0E), or when the queue is full: then all collapse into one 29/00, which tells the
//! host to assume anything. Identical conditions are queued once; the later event's id replaces the earlier one, so a
//! report of the earlier event that is still under way does not take the later one with it. Reset-class conditions
//! stand before all others.

use crate::limits::UA_QUEUE_MAX;
use crate::nexus::Nexus;
use crate::sense::{AdditionalSense, Sense, asc};

/// Which group a Unit Attention belongs to in the order of checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UaClass {
    /// 29/xx, 2F/01 and 3F/01: reported before reservations are looked at.
    Reset,
    /// Reported only when no reservation conflict stands in the way.
    Other,
}

/// Who gets a Unit Attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UaScope {
    /// Every nexus to which the unit is mapped.
    All,
    /// Only this one.
    Only(Nexus),
    /// Every one but this.
    AllExcept(Nexus),
}

/// One pending Unit Attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnitAttention {
    /// Number of the event that raised it; unique and growing within a port's queue.
    pub id: u64,
    /// What is reported.
    pub additional: AdditionalSense,
}

impl UnitAttention {
    /// Reset class, or other.
    pub const fn class(&self) -> UaClass {
        class_of(self.additional)
    }

    /// The sense data that reports it.
    pub const fn sense(&self) -> Sense {
        Sense::unit_attention(self.additional)
    }
}

/// The class of a Unit Attention with this code.
pub const fn class_of(additional: AdditionalSense) -> UaClass {
    match (additional.asc, additional.ascq) {
        (0x29, _) | (0x2f, 0x01) | (0x3f, 0x01) => UaClass::Reset,
        _ => UaClass::Other,
    }
}

/// What [`UaQueue::raise`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Raised {
    /// A new entry.
    Queued,
    /// An identical condition was pending; it carries the new id now.
    Merged,
    /// The queue was full: everything pending became one 29/00 with the new id.
    Collapsed,
}

/// Pending Unit Attentions, oldest first, reset class before the others.
#[derive(Clone, Debug)]
pub struct UaQueue {
    entries: [Option<UnitAttention>; UA_QUEUE_MAX],
    /// Entries in use, all at the front.
    len: usize,
}

impl Default for UaQueue {
    fn default() -> Self {
        UaQueue::new()
    }
}

impl UaQueue {
    /// An empty queue.
    pub const fn new() -> UaQueue {
        UaQueue { entries: [None; UA_QUEUE_MAX], len: 0 }
    }

    /// The one that is reported next.
    pub fn head(&self) -> Option<UnitAttention> {
        self.iter().next()
    }

    /// All that are pending, in the order in which they will be reported.
    pub fn iter(&self) -> impl Iterator<Item = UnitAttention> + '_ {
        self.entries.iter().take(self.len).flatten().copied()
    }

    /// Number pending.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// True if none is pending.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Queues a condition.
    pub fn raise(&mut self, id: u64, additional: AdditionalSense) -> Raised {
        let new = UnitAttention { id, additional };
        if let Some(same) =
            self.entries.iter_mut().take(self.len).flatten().find(|pending| pending.additional == additional)
        {
            same.id = id;
            return Raised::Merged;
        }
        if self.len >= UA_QUEUE_MAX {
            *self = UaQueue::new();
            self.insert(0, UnitAttention { id, additional: asc::POWER_ON_OR_RESET });
            return Raised::Collapsed;
        }
        let at = match new.class() {
            UaClass::Reset => self.iter().take_while(|pending| pending.class() == UaClass::Reset).count(),
            UaClass::Other => self.len,
        };
        self.insert(at, new);
        Raised::Queued
    }

    /// Removes the condition with this id, once it was reported. False if it is not pending (any more).
    pub fn dequeue(&mut self, id: u64) -> bool {
        self.remove_where(|pending| pending.id == id)
    }

    /// Gives the condition with this id another one, in its place. False if it is not pending (any more).
    pub fn renumber(&mut self, id: u64, new_id: u64) -> bool {
        let found = self.entries.iter_mut().take(self.len).flatten().find(|pending| pending.id == id);
        found.map(|pending| pending.id = new_id).is_some()
    }

    /// Removes 3F/0E, which REPORT LUNS does for every logical unit of its nexus (SPC-5 6.33). Call it only when the
    /// queue's owner has not raised another 3F/0E since the reply was built.
    pub fn clear_reported_luns_changed(&mut self) -> bool {
        self.remove_where(|pending| pending.additional == asc::REPORTED_LUNS_DATA_CHANGED)
    }

    fn insert(&mut self, at: usize, new: UnitAttention) {
        let mut carried = Some(new);
        for slot in self.entries.iter_mut().skip(at) {
            core::mem::swap(slot, &mut carried);
        }
        self.len = (self.len + 1).min(UA_QUEUE_MAX);
    }

    fn remove_where(&mut self, doomed: impl Fn(&UnitAttention) -> bool) -> bool {
        let before = self.len;
        let mut kept = UaQueue::new();
        for pending in self.iter().filter(|pending| !doomed(pending)) {
            kept.insert(kept.len, pending);
        }
        *self = kept;
        self.len != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    #[derive(Clone, Debug)]
    enum Step {
        Raise(AdditionalSense),
        /// Dequeue what was the head so many steps ago.
        Report(usize),
    }

    fn any_step() -> impl Strategy<Value = Step> {
        let code = (prop::sample::select(&[0x29u8, 0x2a, 0x2f, 0x3f][..]), 0u8..16)
            .prop_map(|(asc, ascq)| AdditionalSense::new(asc, ascq));
        prop_oneof![3 => code.prop_map(Step::Raise), 1 => (0usize..4).prop_map(Step::Report)]
    }

    proptest! {
        /// Whatever happened after its last event, a condition is pending, was reported by a head that was read after
        /// that event, or is covered by a pending or reported 29/00.
        #[test]
        fn no_condition_is_ever_lost(steps in prop::collection::vec(any_step(), 0..200)) {
            let mut q = UaQueue::new();
            let mut heads: Vec<Option<UnitAttention>> = Vec::new();
            // Every condition that the host has not been told of since it was last raised.
            let mut owed: Vec<AdditionalSense> = Vec::new();
            for (id, step) in (1u64..).zip(steps) {
                match step {
                    Step::Raise(code) => {
                        q.raise(id, code);
                        if !owed.contains(&code) {
                            owed.push(code);
                        }
                    }
                    Step::Report(ago) => {
                        let Some(Some(told)) = heads.iter().rev().nth(ago).copied() else { continue };
                        if q.dequeue(told.id) {
                            owed.retain(|code| *code != told.additional);
                            if told.additional == asc::POWER_ON_OR_RESET {
                                owed.retain(|code| codes(&q).contains(code));
                            }
                        }
                    }
                }
                heads.push(q.head());
                let pending = codes(&q);
                prop_assert_eq!(pending.len(), q.len());
                prop_assert!(q.len() <= UA_QUEUE_MAX);
                let covered = pending.contains(&asc::POWER_ON_OR_RESET);
                prop_assert!(owed.iter().all(|code| covered || pending.contains(code)), "{:?} {:?}", owed, pending);
                let classes: Vec<UaClass> = q.iter().map(|ua| ua.class()).collect();
                let resets = classes.iter().take_while(|class| **class == UaClass::Reset).count();
                prop_assert!(classes[resets..].iter().all(|class| *class == UaClass::Other));
                for (at, code) in pending.iter().enumerate() {
                    prop_assert!(!pending[at + 1..].contains(code));
                }
            }
        }
    }

    fn codes(q: &UaQueue) -> Vec<AdditionalSense> {
        q.iter().map(|ua| ua.additional).collect()
    }

    #[test]
    fn first_in_first_out() {
        let mut q = UaQueue::new();
        q.raise(1, asc::CAPACITY_DATA_CHANGED);
        q.raise(2, asc::ALUA_STATE_CHANGED);
        assert_eq!(q.head(), Some(UnitAttention { id: 1, additional: asc::CAPACITY_DATA_CHANGED }));
        assert!(q.dequeue(1));
        assert_eq!(q.head().map(|ua| ua.id), Some(2));
        assert!(q.dequeue(2) && q.is_empty());
        assert_eq!(q.head(), None);
    }

    #[test]
    fn reset_class_stands_before_the_others_in_its_own_order() {
        let mut q = UaQueue::new();
        q.raise(1, asc::CAPACITY_DATA_CHANGED);
        q.raise(2, asc::BUS_DEVICE_RESET);
        q.raise(3, asc::I_T_NEXUS_LOSS);
        assert_eq!(codes(&q), [asc::BUS_DEVICE_RESET, asc::I_T_NEXUS_LOSS, asc::CAPACITY_DATA_CHANGED]);
    }

    #[test]
    fn identical_conditions_are_queued_once() {
        let mut q = UaQueue::new();
        assert_eq!(q.raise(1, asc::CAPACITY_DATA_CHANGED), Raised::Queued);
        assert_eq!(q.raise(2, asc::CAPACITY_DATA_CHANGED), Raised::Merged);
        assert_eq!(q.len(), 1);
    }

    #[test]
    fn report_of_an_earlier_event_does_not_consume_a_later_one() {
        let mut q = UaQueue::new();
        q.raise(1, asc::CAPACITY_DATA_CHANGED);
        let reported = q.head().unwrap();
        q.raise(2, asc::CAPACITY_DATA_CHANGED);
        assert!(!q.dequeue(reported.id));
        assert_eq!(codes(&q), [asc::CAPACITY_DATA_CHANGED]);
    }

    #[test]
    fn overflow_collapses_to_power_on_and_loses_nothing_silently() {
        let mut q = UaQueue::new();
        for n in 0..UA_QUEUE_MAX as u8 {
            assert_eq!(q.raise(u64::from(n), AdditionalSense::new(0x2a, n)), Raised::Queued);
        }
        assert_eq!(q.len(), UA_QUEUE_MAX);
        assert_eq!(q.raise(99, asc::INQUIRY_DATA_CHANGED), Raised::Collapsed);
        assert_eq!(q.head(), Some(UnitAttention { id: 99, additional: asc::POWER_ON_OR_RESET }));
        assert_eq!(q.len(), 1);
    }

    #[test]
    fn report_luns_clears_its_condition_only() {
        let mut q = UaQueue::new();
        q.raise(1, asc::REPORTED_LUNS_DATA_CHANGED);
        q.raise(2, asc::CAPACITY_DATA_CHANGED);
        assert!(q.clear_reported_luns_changed());
        assert!(!q.clear_reported_luns_changed());
        assert_eq!(codes(&q), [asc::CAPACITY_DATA_CHANGED]);
    }

    #[test]
    fn classes_are_those_of_the_order_of_checks() {
        for code in [asc::POWER_ON_OR_RESET, asc::I_T_NEXUS_LOSS, asc::COMMANDS_CLEARED_BY_POWER_LOSS] {
            assert_eq!(class_of(code), UaClass::Reset);
        }
        assert_eq!(class_of(asc::MICROCODE_CHANGED), UaClass::Reset);
        for code in [asc::COMMANDS_CLEARED_BY_ANOTHER_INITIATOR, asc::REPORTED_LUNS_DATA_CHANGED] {
            assert_eq!(class_of(code), UaClass::Other);
        }
    }
}
