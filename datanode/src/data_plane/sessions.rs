//! Which nexus is logged in, on which worker: the only thing about sessions that workers share.
//!
//! Invariants: a nexus has at most one session that may send commands; a newer one enters only after the older one has
//! left, that is after its tasks have ended everywhere (session reinstatement, RFC 7143 6.3.5). Session identifiers
//! (TSIH) of living sessions differ and are never 0.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroU16;
use std::sync::{Mutex, MutexGuard, PoisonError};

use holdfast_scsi::nexus::Nexus;

use super::mailbox::SessionAddress;

/// What [`Sessions::enter`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// The nexus is ours, under this TSIH.
    Entered(NonZeroU16),
    /// This one has it still: have it ended, then try again.
    Occupied(SessionAddress),
    /// No TSIH is left.
    Full,
}

#[derive(Default)]
struct State {
    by_nexus: HashMap<Nexus, (SessionAddress, NonZeroU16)>,
    tsihs: HashSet<NonZeroU16>,
    last_tsih: u16,
}

/// The directory.
#[derive(Default)]
pub(crate) struct Sessions {
    state: Mutex<State>,
}

impl Sessions {
    /// Takes the nexus for a connection that has logged in, unless another one has it.
    pub(crate) fn enter(&self, nexus: Nexus, address: SessionAddress) -> Entry {
        let mut state = self.lock();
        if let Some((other, _)) = state.by_nexus.get(&nexus) {
            return Entry::Occupied(*other);
        }
        let Some(tsih) = state.free_tsih() else { return Entry::Full };
        state.by_nexus.insert(nexus, (address, tsih));
        Entry::Entered(tsih)
    }

    /// Where the session of a nexus is, if it has this TSIH.
    pub(crate) fn find(&self, nexus: &Nexus, tsih: NonZeroU16) -> Option<SessionAddress> {
        self.lock().by_nexus.get(nexus).filter(|(_, its)| *its == tsih).map(|(address, _)| *address)
    }

    /// Frees the nexus, if this connection has it.
    pub(crate) fn leave(&self, nexus: &Nexus, address: SessionAddress) {
        let mut state = self.lock();
        if let Some((holder, tsih)) = state.by_nexus.get(nexus).copied()
            && holder == address
        {
            state.by_nexus.remove(nexus);
            state.tsihs.remove(&tsih);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn free_tsih(&mut self) -> Option<NonZeroU16> {
        for _ in 0..=u16::MAX {
            self.last_tsih = self.last_tsih.wrapping_add(1);
            if let Some(tsih) = NonZeroU16::new(self.last_tsih)
                && self.tsihs.insert(tsih)
            {
                return Some(tsih);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_scsi::{nexus::RelativePort, transport_id::TransportId};

    fn nexus(isid: u8) -> Nexus {
        Nexus::new(TransportId::iscsi("iqn.2026-01.example:host", [isid; 6]).unwrap(), RelativePort(1))
    }

    const A: SessionAddress = SessionAddress { worker: 0, connection: 1 };
    const B: SessionAddress = SessionAddress { worker: 1, connection: 1 };

    #[test]
    fn newer_session_enters_only_after_the_older_has_left() {
        let sessions = Sessions::default();
        let Entry::Entered(first) = sessions.enter(nexus(1), A) else { panic!("free nexus refused") };
        assert_eq!(sessions.enter(nexus(1), B), Entry::Occupied(A));
        sessions.leave(&nexus(1), B);
        assert_eq!(sessions.enter(nexus(1), B), Entry::Occupied(A));
        sessions.leave(&nexus(1), A);
        let Entry::Entered(second) = sessions.enter(nexus(1), B) else { panic!("freed nexus refused") };
        assert_ne!(first, second);
    }

    #[test]
    fn session_identifiers_differ_and_run_out_cleanly() {
        let sessions = Sessions::default();
        for n in 0..u16::MAX {
            let name = format!("iqn.2026-01.example:{n}");
            let nexus = Nexus::new(TransportId::iscsi(&name, [0; 6]).unwrap(), RelativePort(1));
            assert!(matches!(sessions.enter(nexus, A), Entry::Entered(_)));
        }
        assert_eq!(sessions.enter(nexus(1), A), Entry::Full);
    }
}
