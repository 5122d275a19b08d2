//! What a node asks of the leader: asked again under the same id until its outcome is known, or cannot be any more.
//!
//! Invariants (the shell's, as in the product): "not executed" is said only while no attempt may have reached a leader; an outcome is told
//! only once this node has installed it; a lapse of the lease ends the asking only when the sessions of hosts end too.

use crate::simulation::{
    SessionId, Simulation, Up,
    controllers::{Answer, Refused, Request},
    unit::CallFor,
};

/// A request that never reached a leader is given up after this time.
const UNSENT_MS: u64 = 5_000;

/// A request to the leader.
pub(super) struct Call {
    request: Request,
    asker: CallFor,
    maybe_sent: bool,
    sent_on: Option<SessionId>,
    begun: u64,
    /// Known, but this node has not installed it.
    known: Option<(u64, Answer)>,
}

impl Simulation {
    pub(in crate::simulation) fn ask_leader(&mut self, at: usize, request: Request, asker: CallFor) {
        let call = Call { request, asker, maybe_sent: false, sent_on: None, begun: self.now, known: None };
        let id = self.nodes[at].fresh();
        self.nodes[at].calls.insert(id, call);
        self.drive_calls(at);
    }

    pub(super) fn drive_calls(&mut self, at: usize) {
        let ids: Vec<u64> = self.nodes[at].calls.keys().copied().collect();
        for id in ids {
            self.drive_call(at, id);
        }
    }

    fn drive_call(&mut self, at: usize, id: u64) {
        let now = self.now;
        let hold_ms = self.ways.hold_ms;
        let node = &mut self.nodes[at];
        let leased = node.leased(now);
        // Without a lease for so long its hosts' sessions have ended: nobody is left to be told.
        let given_up = node.leaseless_since.is_some_and(|since| now >= since + hold_ms);
        let session = node.session.as_ref().filter(|s| s.incarnation.is_some()).map(|s| s.id);
        let installed = node.installed;
        let Some(call) = node.calls.get_mut(&id) else { return };
        if let Some((index, answer)) = &call.known {
            if installed >= *index {
                let answer = answer.clone();
                return self.call_done(at, id, answer);
            }
            if given_up {
                return self.call_done(at, id, Answer::Unknown);
            }
            return;
        }
        if call.sent_on.is_some() && call.sent_on != session {
            // Its session has ended: nobody knows what became of it.
            call.sent_on = None;
            call.maybe_sent = true;
        }
        if given_up {
            return self.call_done(at, id, Answer::Unknown);
        }
        let unsent = session.is_none() && !call.maybe_sent;
        if unsent && (!leased || now > call.begun + UNSENT_MS) {
            return self.call_done(at, id, Answer::Refused(Refused::Unavailable));
        }
        if call.sent_on.is_none() && session.is_some() {
            if call.maybe_sent {
                self.mark("a request of unknown outcome was asked for again");
            }
            let node = &mut self.nodes[at];
            let Some(call) = node.calls.get_mut(&id) else { return };
            call.sent_on = session;
            let request = call.request.clone();
            self.up(at, Up::Call { call: id, request });
        }
    }

    pub(super) fn call_answered(&mut self, at: usize, session: SessionId, id: u64, answer: Answer) {
        let Some(call) = self.nodes[at].calls.get_mut(&id) else { return };
        if call.sent_on != Some(session) || call.known.is_some() {
            return;
        }
        match answer {
            Answer::Refused(Refused::Settled(_)) => return self.call_done(at, id, answer),
            Answer::Refused(_) if !call.maybe_sent => return self.call_done(at, id, answer),
            // Its version has passed for good, but the attempt before may have been in time.
            Answer::Refused(Refused::Stale | Refused::Never) => {
                return self.call_done(at, id, Answer::Unknown);
            }
            Answer::Refused(Refused::Unavailable) | Answer::NotLeading => call.sent_on = None,
            Answer::Unknown => {
                call.sent_on = None;
                call.maybe_sent = true;
            }
            Answer::Proposal(ref outcome) if outcome.status == 0 => {
                call.known = Some((outcome.version, answer))
            }
            Answer::Established(index) => call.known = Some((index, answer)),
            known => return self.call_done(at, id, known),
        }
        self.drive_call(at, id);
    }

    fn call_done(&mut self, at: usize, id: u64, answer: Answer) {
        let Some(call) = self.nodes[at].calls.remove(&id) else { return };
        self.leader_said(at, call.asker, answer);
    }
}
