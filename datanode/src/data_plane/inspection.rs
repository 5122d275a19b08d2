//! What the sessions of this node are just now, and the end of one that an administrator asks for.
//!
//! Invariants: the agent hears of an inspection exactly once, from the last worker that has looked; what is told is bounded
//! ([`SESSIONS_TOLD_MAX`], [`LUNS_TOLD_MAX`]) and says when it was cut; nothing of a session changes by being looked at. One request to
//! end a session ends one session, however often it comes.

use std::collections::VecDeque;
use std::num::NonZeroU16;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use holdfast_iscsi::SessionInfo;
use holdfast_proto::node::{Inspect, Inspection, LunState, SessionState};
use holdfast_scsi::time::Instant;

use super::portal::Session;
use super::worker::Worker;
use crate::agent;
use crate::view::parse::nexus_name;

/// Sessions that one inspection tells.
const SESSIONS_TOLD_MAX: usize = 4096;
/// LUNs of all sessions that one inspection tells: it has to fit into one message.
const LUNS_TOLD_MAX: usize = 32 * 1024;

/// Requests to end a session that are remembered.
const ENDINGS_KEPT: usize = 64;

/// The last requests that have ended a session.
#[derive(Clone, Debug, Default)]
pub(crate) struct Endings(Arc<Mutex<VecDeque<String>>>);

impl Endings {
    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True if this request has ended a session before.
    pub(crate) fn knows(&self, request_id: &str) -> bool {
        !request_id.is_empty() && self.lock().iter().any(|known| known == request_id)
    }

    fn remember(&self, request_id: &str) {
        if request_id.is_empty() {
            return;
        }
        let mut known = self.lock();
        if known.len() >= ENDINGS_KEPT {
            known.pop_front();
        }
        known.push_back(request_id.to_owned());
    }
}

/// What stays the same for the life of a session.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    info: Arc<SessionInfo>,
    tsih: NonZeroU16,
    since_unix_ms: u64,
}

impl Facts {
    /// Of a session that starts now.
    pub(super) fn new(info: &SessionInfo, tsih: NonZeroU16) -> Facts {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        Facts { info: Arc::new(info.clone()), tsih, since_unix_ms: u64::try_from(since).unwrap_or(u64::MAX) }
    }
}

/// One inspection on its way to every worker.
pub(crate) struct Inspecting {
    ask: Inspect,
    found: Mutex<Inspection>,
    missing: AtomicUsize,
    agent: agent::Handle,
    endings: Endings,
}

impl Inspecting {
    /// For so many workers.
    pub(crate) fn new(ask: Inspect, workers: usize, agent: agent::Handle, endings: Endings) -> Inspecting {
        let found = Inspection { id: ask.id, ..Default::default() };
        Inspecting { ask, found: Mutex::new(found), missing: AtomicUsize::new(workers), agent, endings }
    }

    /// One worker has looked.
    fn add(&self, sessions: Vec<SessionState>, ended: bool, index: u64) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.ended |= ended;
        found.applied_index = found.applied_index.max(index);
        let mut luns: usize = found.sessions.iter().map(|session| session.luns.len()).sum();
        for session in sessions {
            luns = luns.saturating_add(session.luns.len());
            if found.sessions.len() >= SESSIONS_TOLD_MAX || luns > LUNS_TOLD_MAX {
                found.truncated = true;
                break;
            }
            found.sessions.push(session);
        }
        if self.missing.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.agent.inspected(std::mem::take(&mut *found));
        }
    }
}

impl Worker {
    pub(super) fn inspect(&mut self, now: Instant, inspecting: &Inspecting) {
        let mut unwanted = Vec::new();
        let mut sessions = Vec::new();
        for (connection, portal) in &mut self.connections {
            let Some(session) = portal.session() else { continue };
            if inspecting.ask.end.as_ref() == Some(&nexus_name(&session.nexus())) {
                unwanted.push(*connection);
            } else if inspecting.ask.end.is_none() {
                sessions.push(state(session));
            }
        }
        let ended = !unwanted.is_empty();
        if ended {
            inspecting.endings.remember(&inspecting.ask.request_id);
        }
        for connection in unwanted {
            tracing::info!("session ended: an administrator asked for it");
            self.close(now, connection);
        }
        inspecting.add(sessions, ended, self.view.as_ref().map_or(0, |view| view.index));
    }
}

fn state(session: &Session) -> SessionState {
    let Facts { info, tsih, since_unix_ms } = &session.facts;
    let parameters = &info.parameters;
    let lun = |(lun, mapped): (u16, &holdfast_scsi::port::MappedUnit<crate::view::VolumeId>)| LunState {
        lun: u32::from(lun),
        volume_id: mapped.volume.0.to_vec(),
        read_only: mapped.read_only,
        unit_attentions: session
            .port
            .pending(lun)
            .iter()
            .map(|ua| u32::from(ua.additional.asc) << 8 | u32::from(ua.additional.ascq))
            .collect(),
    };
    SessionState {
        nexus: Some(nexus_name(&session.nexus())),
        host: session.host.clone(),
        alias: info.login.initiator_alias.clone().unwrap_or_default(),
        tsih: u32::from(tsih.get()),
        since_unix_ms: *since_unix_ms,
        header_digest: parameters.header_digest,
        data_digest: parameters.data_digest,
        max_burst_bytes: parameters.max_burst_length,
        first_burst_bytes: parameters.first_burst_length,
        initial_r2t: parameters.initial_r2t,
        immediate_data: parameters.immediate_data,
        max_outstanding_r2t: parameters.max_outstanding_r2t,
        send_segment_bytes: parameters.send_data_segment_length,
        receive_segment_bytes: parameters.recv_data_segment_length,
        commands_under_way: u32::try_from(session.by_tag.len()).unwrap_or(u32::MAX),
        luns: session.port.map().map(lun).collect(),
        counters: Some(session.counters.record()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_requests_that_ended_a_session_are_known() {
        let endings = Endings::default();
        endings.remember("");
        assert!(!endings.knows("") && !endings.knows("a"));
        endings.remember("a");
        assert!(endings.clone().knows("a"));
        for n in 0..ENDINGS_KEPT {
            endings.remember(&n.to_string());
        }
        assert!(!endings.knows("a") && endings.knows("0"));
    }
}
