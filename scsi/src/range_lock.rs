//! Locks on ranges of logical blocks, held from the submission of a command's I/O until its end.
//!
//! Invariants: an exclusive lock overlaps no other lock that is held; a request is granted as soon as nothing that it
//! conflicts with is held or was asked for before it. So overlapping commands run in the order in which they were
//! submitted, and neither readers nor writers starve. A request may name several ranges and gets all of them at once,
//! which leaves nothing to deadlock on.

use alloc::vec::Vec;

use crate::geometry::Extent;

/// What others may do in the ranges meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// Others may read.
    Shared,
    /// Nobody else may read or write.
    Exclusive,
}

#[derive(Clone, Debug)]
struct Request<Id> {
    id: Id,
    mode: LockMode,
    extents: Vec<Extent>,
    held: bool,
}

impl<Id> Request<Id> {
    fn conflicts(&self, other: &Request<Id>) -> bool {
        (self.mode == LockMode::Exclusive || other.mode == LockMode::Exclusive)
            && self.extents.iter().any(|a| other.extents.iter().any(|b| a.overlaps(b)))
    }
}

/// The locks of one logical unit, in the order in which they were asked for.
#[derive(Clone, Debug)]
pub struct RangeLocks<Id> {
    requests: Vec<Request<Id>>,
}

impl<Id> Default for RangeLocks<Id> {
    fn default() -> Self {
        RangeLocks { requests: Vec::new() }
    }
}

impl<Id: Copy + PartialEq> RangeLocks<Id> {
    /// Asks for `extents`; true if they are held at once. Otherwise a later [`RangeLocks::release`] grants them.
    /// `id` must not be in use.
    pub fn acquire(&mut self, id: Id, mode: LockMode, extents: &[Extent]) -> bool {
        let mut request = Request { id, mode, extents: extents.to_vec(), held: false };
        request.held = !self.requests.iter().any(|earlier| request.conflicts(earlier));
        let held = request.held;
        self.requests.push(request);
        held
    }

    /// Gives up what `id` holds or waits for, and returns whose requests are granted by that, in order.
    pub fn release(&mut self, id: Id) -> Vec<Id> {
        let Some(at) = self.requests.iter().position(|r| r.id == id) else { return Vec::new() };
        self.requests.remove(at);
        let mut granted = Vec::new();
        // Only those behind it can have waited for it.
        for i in at..self.requests.len() {
            let Some((request, earlier)) = self.requests.get(..=i).and_then(|upto| upto.split_last()) else {
                break;
            };
            if !request.held && !earlier.iter().any(|e| request.conflicts(e)) {
                granted.push((i, request.id));
                if let Some(request) = self.requests.get_mut(i) {
                    request.held = true;
                }
            }
        }
        granted.into_iter().map(|(_, id)| id).collect()
    }

    /// True if nothing is held or waited for.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn extent(lba: u64, blocks: u32) -> Extent {
        Extent { lba, blocks }
    }

    #[test]
    fn readers_share_and_writers_exclude() {
        let mut locks = RangeLocks::default();
        assert!(locks.acquire(1, LockMode::Shared, &[extent(0, 8)]));
        assert!(locks.acquire(2, LockMode::Shared, &[extent(4, 8)]));
        assert!(!locks.acquire(3, LockMode::Exclusive, &[extent(7, 1)]));
        assert!(locks.acquire(4, LockMode::Exclusive, &[extent(100, 1)]));
        assert!(locks.release(1).is_empty());
        assert_eq!(locks.release(2), [3]);
    }

    #[test]
    fn later_readers_do_not_overtake_a_waiting_writer() {
        let mut locks = RangeLocks::default();
        locks.acquire(1, LockMode::Shared, &[extent(0, 8)]);
        assert!(!locks.acquire(2, LockMode::Exclusive, &[extent(0, 8)]));
        assert!(!locks.acquire(3, LockMode::Shared, &[extent(0, 1)]));
        assert_eq!(locks.release(1), [2]);
        assert_eq!(locks.release(2), [3]);
    }

    #[test]
    fn giving_up_a_wait_lets_the_next_pass() {
        let mut locks = RangeLocks::default();
        locks.acquire(1, LockMode::Shared, &[extent(0, 8)]);
        locks.acquire(2, LockMode::Exclusive, &[extent(0, 8)]);
        locks.acquire(3, LockMode::Shared, &[extent(0, 8)]);
        assert_eq!(locks.release(2), [3]);
        assert!(locks.release(9).is_empty());
    }

    #[test]
    fn several_ranges_are_granted_together_and_empty_ones_conflict_with_nothing() {
        let mut locks = RangeLocks::default();
        locks.acquire(1, LockMode::Exclusive, &[extent(0, 1), extent(10, 1)]);
        assert!(locks.acquire(2, LockMode::Exclusive, &[extent(0, 0)]));
        assert!(!locks.acquire(3, LockMode::Exclusive, &[extent(10, 1), extent(20, 1)]));
        assert!(!locks.acquire(4, LockMode::Shared, &[extent(20, 1)]));
        assert_eq!(locks.release(1), [3]);
    }

    proptest::proptest! {
        #[test]
        fn no_two_holders_conflict_and_all_are_granted_in_the_end(
            wanted in proptest::collection::vec((0u64..20, 1u32..6, proptest::bool::ANY), 1..40),
        ) {
            let mut locks = RangeLocks::default();
            let mut held = Vec::new();
            for (id, (lba, blocks, shared)) in wanted.iter().enumerate() {
                let mode = if *shared { LockMode::Shared } else { LockMode::Exclusive };
                if locks.acquire(id, mode, &[extent(*lba, *blocks)]) {
                    held.push(id);
                }
            }
            let mut served = 0;
            while !held.is_empty() {
                for (i, a) in held.iter().enumerate() {
                    for b in &held[i + 1..] {
                        let ((la, na, sa), (lb, nb, sb)) = (wanted[*a], wanted[*b]);
                        proptest::prop_assert!((sa && sb) || !extent(la, na).overlaps(&extent(lb, nb)));
                    }
                }
                let id = held.remove(0);
                served += 1;
                held.extend(locks.release(id));
            }
            proptest::prop_assert_eq!(served, wanted.len());
            proptest::prop_assert!(locks.is_empty());
        }
    }
}
