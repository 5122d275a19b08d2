//! Locks on runs of blocks: whoever changes blocks and their checksums is alone with them, readers share.
//!
//! Invariants: no two holders overlap unless both read; nothing that is held waits for another lock of this kind.

use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

#[derive(Debug)]
struct Held {
    name: u64,
    blocks: Range<u64>,
    exclusive: bool,
}

#[derive(Debug, Default)]
struct State {
    last: u64,
    held: Vec<Held>,
}

impl State {
    fn take(&mut self, blocks: &Range<u64>, exclusive: bool) -> Option<u64> {
        let clashes = |held: &Held| {
            (held.exclusive || exclusive) && held.blocks.start < blocks.end && blocks.start < held.blocks.end
        };
        if self.held.iter().any(clashes) {
            return None;
        }
        self.last += 1;
        self.held.push(Held { name: self.last, blocks: blocks.clone(), exclusive });
        Some(self.last)
    }
}

/// See the module. As many are held as there are threads that do I/O.
#[derive(Debug, Default)]
pub(super) struct Locks {
    state: Mutex<State>,
    freed: Condvar,
}

/// Gives the blocks back when it is dropped.
#[derive(Debug)]
pub(super) struct Lock<'a>(&'a Locks, u64);

impl Locks {
    /// Waits until nobody changes any of these blocks.
    pub(super) fn shared(&self, blocks: &Range<u64>) -> Lock<'_> {
        self.wait(blocks, false)
    }

    /// The same without waiting; `None`: somebody does.
    pub(super) fn try_shared(&self, blocks: &Range<u64>) -> Option<Lock<'_>> {
        self.lock().take(blocks, false).map(|name| Lock(self, name))
    }

    /// Waits until nobody has any of these blocks.
    pub(super) fn exclusive(&self, blocks: &Range<u64>) -> Lock<'_> {
        self.wait(blocks, true)
    }

    /// True if somebody has any of them.
    pub(super) fn busy(&self, blocks: &Range<u64>) -> bool {
        self.lock().held.iter().any(|held| held.blocks.start < blocks.end && blocks.start < held.blocks.end)
    }

    fn wait(&self, blocks: &Range<u64>, exclusive: bool) -> Lock<'_> {
        let mut state = self.lock();
        loop {
            if let Some(name) = state.take(blocks, exclusive) {
                return Lock(self, name);
            }
            state = self.freed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        self.0.lock().held.retain(|held| held.name != self.1);
        self.0.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_share_and_a_change_is_alone() {
        let locks = Locks::default();
        let first = locks.shared(&(0..8));
        let second = locks.try_shared(&(4..12)).unwrap();
        let third = locks.exclusive(&(12..13));
        assert!(locks.try_shared(&(12..20)).is_none());
        assert!(locks.busy(&(0..1)) && !locks.busy(&(13..14)));
        drop((first, second, third));
        assert!(locks.try_shared(&(12..20)).is_some());
    }

    #[test]
    fn one_that_waits_gets_its_turn() {
        let locks = Locks::default();
        let held = locks.shared(&(0..2));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| drop(locks.exclusive(&(1..3))));
            drop(held);
            waiting.join().unwrap();
        });
        assert!(!locks.busy(&(0..3)));
    }
}
