//! How a data node stops: nothing new is begun, what is under way is answered, initiators are asked to log out, and then the
//! connections are closed; all in bounded time.
//!
//! Invariants: a command that comes after the drain began is answered BUSY, which means that nothing happened; one that came
//! before is answered as ever, or its connection ends without an answer, never with a guess; the drain ends whatever hosts do.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use holdfast_scsi::time::Instant;

use super::limits::{DRAIN_LOGOUT_MS_MAX, DRAIN_MS_MAX};
use super::portal::{Home, Portal, Stage};
use super::worker::{Worker, iscsi};

/// A drain under way on a worker, in boot-time milliseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drain {
    /// From when on a session without commands is closed although its initiator has not logged out.
    idle_from_ms: u64,
    /// When everything is closed.
    by_ms: u64,
    told: bool,
}

/// Counts the workers that have nothing left.
#[derive(Debug, Default)]
pub(super) struct Drained {
    workers: Mutex<usize>,
    changed: Condvar,
}

impl Drained {
    fn one_more(&self) {
        *self.workers.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.changed.notify_all();
    }

    /// Waits until so many have, no longer than a drain can take.
    pub(super) fn wait(&self, workers: usize) {
        let count = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        let patience = Duration::from_millis(2 * DRAIN_MS_MAX);
        let _ = self.changed.wait_timeout_while(count, patience, |count| *count < workers);
    }
}

impl Worker {
    pub(super) fn begin_drain(&mut self, now: Instant) {
        if self.drain.is_some() {
            return;
        }
        for mut listener in std::mem::take(&mut self.listeners) {
            let _ = self.poll.registry().deregister(&mut listener);
        }
        let idle_from_ms = now.0.saturating_add(DRAIN_LOGOUT_MS_MAX);
        self.drain = Some(Drain { idle_from_ms, by_ms: now.0.saturating_add(DRAIN_MS_MAX), told: false });
        // What is held was not executed and will not be here.
        for request in self.requests.values_mut() {
            request.hold_until = now.0;
        }
        self.retry = true;
        for connection in self.connections.keys().copied().collect::<Vec<_>>() {
            let held_login = self.is_held_login(connection);
            match self.connections.get_mut(&connection) {
                Some(Portal { stage: Stage::Session(_), home: Home::Own(engine, _), .. }) => {
                    engine.request_logout(iscsi(now), (DRAIN_MS_MAX / 1000) as u16);
                    self.pump(now, connection);
                }
                // Logins that wait are sent to another node below. Of the others, and of discovery, nothing is lost.
                Some(Portal { home: Home::Own(..), .. }) if held_login => {}
                Some(Portal { home: Home::Own(..), .. }) => self.close(now, connection),
                _ => {}
            }
        }
        self.retry_logins(now);
    }

    /// When the drain has something to do.
    pub(super) fn drain_due(&self, now: Instant) -> Option<u64> {
        let drain = self.drain.filter(|drain| !drain.told)?;
        Some(if now.0 < drain.idle_from_ms { drain.idle_from_ms } else { drain.by_ms.min(now.0 + 10) })
    }

    /// Closes the sessions that have nothing left, and at the end of the drain all of them.
    pub(super) fn go_on_draining(&mut self, now: Instant) {
        let Some(drain) = self.drain.filter(|drain| !drain.told) else { return };
        if now.0 >= drain.idle_from_ms {
            for connection in self.connections.keys().copied().collect::<Vec<_>>() {
                let Some(portal) = self.connections.get(&connection) else { continue };
                if let Stage::Session(session) = &portal.stage
                    && (session.by_tag.is_empty() || now.0 >= drain.by_ms)
                {
                    self.close(now, connection);
                }
            }
        }
        if self.connections.is_empty() || now.0 >= drain.by_ms {
            self.drain = Some(Drain { told: true, ..drain });
            self.drained.one_more();
        }
    }
}
