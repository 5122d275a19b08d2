//! The leader of the simulated controllers: elected and deposed, its leases, its barriers, and what is due by the clock.
//!
//! Invariant: what it keeps as leader goes with its term.

use holdfast_controller::{
    lease::{
        LEASE_MS, Millis, TICK_MS,
        memory::Memory,
        plan,
        reports::Reports,
        table::{Barrier, Renewal},
    },
    state::Body,
};
use holdfast_proto::{
    node::{LeaseGrant, Renew, ToNode, to_node},
    state as records,
};

use super::Answer;
use crate::simulation::{Down, Event, MEMBERS, SessionId, Simulation};

impl Simulation {
    /// Leadership goes to another member; the old leader may take its time to notice.
    pub(in crate::simulation) fn depose(&mut self, notices_after_ms: u64) {
        let Some((old, term)) = self.controllers.leader.take() else { return };
        let new = (old + 1 + self.random.below(MEMBERS as u64 - 1) as usize) % MEMBERS;
        let (state, index) = (self.controllers.state.clone(), self.controllers.index);
        self.controllers.members[old].stale = Some((state, index));
        self.note(|| {
            format!("leadership: member {old} has lost it (term {term}); notices after {notices_after_ms} ms")
        });
        self.later(notices_after_ms, Event::Deposed { member: old, term });
        let vacant = 100 + self.random.below(600);
        let term = self.controllers.term + 1;
        self.later(vacant, Event::Elected { member: new, term });
    }

    pub(in crate::simulation) fn elected(&mut self, member: usize, term: u64) {
        if term <= self.controllers.term {
            return;
        }
        self.controllers.term = term;
        self.controllers.leader = Some((member, term));
        // What the old leader had not committed: a first part of it survives.
        let pending = std::mem::take(&mut self.controllers.pending);
        let kept = self.random.below(pending.len() as u64 + 1) as usize;
        for (number, entry) in pending.into_iter().enumerate() {
            if number < kept {
                self.mark("an entry outlived its leader");
                // Whoever asked for it has been told nothing: it asks again.
                let _ = self.apply(entry.body);
            } else {
                self.mark("an entry died with its leader");
            }
        }
        let now = Millis(self.now);
        let new = &mut self.controllers.members[member];
        new.leads = Some(term);
        new.stale = None;
        new.table.begin(term, now);
        new.memory = Memory::default();
        new.reports = Reports::default();
        self.note(|| format!("leadership: member {member} is elected in term {term}"));
    }

    pub(in crate::simulation) fn deposed(&mut self, member: usize, term: u64) {
        let old = &mut self.controllers.members[member];
        if old.leads != Some(term) {
            return;
        }
        old.leads = None;
        old.table.end();
        old.stale = None;
        let sessions = std::mem::take(&mut old.sessions);
        for waiting in std::mem::take(&mut old.waiting) {
            self.tell(member, &waiting.waiter, Answer::Unknown);
        }
        for (node, session) in sessions {
            self.down(member, node, session, Down::Ended);
        }
    }

    pub(in crate::simulation) fn grant(
        &mut self,
        member: usize,
        node: usize,
        session: SessionId,
        renew: &Renew,
    ) {
        let now = Millis(self.now);
        let Some(incarnation) = self.nodes[node].session_incarnation(session) else { return };
        let head = match &self.controllers.members[member].stale {
            Some((state, _)) => state.head(),
            None => self.controllers.state.head(),
        };
        let lease_term = match &self.controllers.members[member].stale {
            Some((state, _)) => state.lease_term(),
            None => self.controllers.state.lease_term(),
        };
        let at = &mut self.controllers.members[member];
        if at.table.term() != Some(lease_term) {
            return;
        }
        let renewal = Renewal {
            node: node as u32 + 1,
            incarnation,
            data_path_stalled_ms: renew.data_path_stalled_ms,
            head,
        };
        if let Err(why) = at.table.grant(renewal, now) {
            self.mark("a renewal was not granted");
            return self.note(|| format!("node {node} is not granted a lease: {why}"));
        }
        let grant = LeaseGrant { sequence: renew.sequence, lease_ms: LEASE_MS, applied_index: head };
        let message = to_node::Message::Lease(grant);
        self.down(member, node, session, Down::Session(ToNode { message: Some(message) }));
    }

    pub(super) fn look_at_barriers(&mut self, member: usize) {
        let now = Millis(self.now);
        let at = &mut self.controllers.members[member];
        let (state, applied) = match &at.stale {
            Some((state, index)) => (state, *index),
            None => (&self.controllers.state, self.controllers.index),
        };
        if at.table.term() != Some(state.lease_term()) {
            return;
        }
        let nodes: Vec<u32> = state.nodes().map(|node| node.number).collect();
        let mut passed = Vec::new();
        let table = &at.table;
        at.waiting.retain(|waiting| {
            let done = waiting.index <= applied
                && table.barrier(waiting.index, nodes.iter().copied(), now) == Barrier::Passed;
            if done {
                passed.push((waiting.waiter.clone(), waiting.answer.clone()));
            }
            !done
        });
        for (waiter, answer) in passed {
            self.tell(member, &waiter, answer);
        }
    }

    pub(in crate::simulation) fn member_tick(&mut self, member: usize) {
        self.later(TICK_MS, Event::MemberTick(member));
        self.look_at_barriers(member);
        let Some(term) = self.controllers.members[member].leads.filter(|term| self.is_leader(member, *term))
        else {
            return;
        };
        if self.controllers.state.lease_term() < term {
            let begin = Body::BeginLeaseTerm(records::BeginLeaseTerm { term });
            return self.propose_own(member, term, begin);
        }
        let now = Millis(self.now);
        let at = &mut self.controllers.members[member];
        let bodies = plan::proposals(&self.controllers.state, &at.table, &at.reports, &mut at.memory, now);
        for body in bodies {
            self.propose_own(member, term, body);
        }
    }
}
