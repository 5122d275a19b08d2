//! What the controller says in a session, and what follows from it: views to install, and when the gate opens.
//!
//! No I/O: messages and times come in, effects are calls to the installer and the gate. Invariants: the gate is extended
//! only to the end of a lease counted from the sending of its renewal, and only once every worker has installed the
//! log index that the grant names; the view never goes back; a message that makes no sense ends the session, and a record
//! that makes none closes the gate.

use std::{collections::VecDeque, sync::Arc};

use holdfast_pki::SealingKey;
use holdfast_proto::{
    node::{FromNode, Hello, LeaseGrant, Renew, SnapshotPart, ToNode, Welcome, from_node, to_node},
    state,
};
use holdfast_replica::gate::lease_end_ms;

use super::{Install, Installer};
use crate::view::{ClusterId, ClusterView, Incarnation, NodeNumber, RecordError, Shared, parse};

/// Renewals that may be unanswered; older ones are forgotten, and a late answer to them is worth nothing.
const RENEWALS_MAX: usize = 64;
/// Changes that a snapshot may have.
const SNAPSHOT_CHANGES_MAX: usize = 4_000_000;

/// Why a session cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The controller broke the contract.
    #[error("the controller's message makes no sense: {0}")]
    Protocol(String),
    /// A record that this node cannot serve by.
    #[error("the controller's record makes no sense: {0}")]
    Record(#[from] RecordError),
    /// The controller's picture is older than ours: it is catching up.
    #[error("the controller is behind: it knows log index {theirs}, we are at {ours}")]
    Behind {
        /// Log index of its picture.
        theirs: u64,
        /// Log index of ours.
        ours: u64,
    },
    /// Another process has started under this node's name.
    #[error("another process serves as '{0}' now")]
    NameTaken(String),
}

/// What stays the same for the life of the process.
pub struct Facts {
    /// The cluster that it belongs to.
    pub cluster: ClusterId,
    /// Its name.
    pub name: String,
    /// What it says first; the rest is filled in.
    pub hello: Hello,
    /// Opens secrets.
    pub key: SealingKey,
}

/// Timing of a session, as the welcome set it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Length of a lease.
    pub lease_ms: u32,
    /// Between two renewals.
    pub renew_interval_ms: u32,
}

struct Welcomed {
    target_iqn: String,
    me: NodeNumber,
    incarnation: Incarnation,
    timing: Timing,
}

/// Where the session stands.
enum Stage {
    /// Nothing has come.
    Opening,
    /// Welcome has come; the snapshot is coming in.
    Snapshot(Welcomed, Vec<state::Change>),
    /// Commits come. `from` is the index of the view at which a resumed session began: what it repeats is skipped.
    Following(Timing, u64),
}

struct Grant {
    end_ms: u64,
    applied_index: u64,
}

/// The picture, the lease and the session.
pub struct Core {
    facts: Facts,
    shared: Arc<Shared>,
    installer: Arc<dyn Installer>,
    /// Index that every worker has installed.
    installed: u64,
    /// The last snapshot or commit did not parse: only a whole snapshot helps.
    spoiled: bool,
    stage: Stage,
    next_renewal: u64,
    /// Sequence number and moment of sending of unanswered renewals.
    renewals: VecDeque<(u64, u64)>,
    /// Grants that wait for their index.
    grants: VecDeque<Grant>,
}

impl Core {
    /// Nothing known yet.
    pub fn new(facts: Facts, shared: Arc<Shared>, installer: Arc<dyn Installer>) -> Core {
        Core {
            facts,
            shared,
            installer,
            installed: 0,
            spoiled: false,
            stage: Stage::Opening,
            next_renewal: 0,
            renewals: VecDeque::new(),
            grants: VecDeque::new(),
        }
    }

    /// Begins a session: the first message to send. Leases that were granted before run on.
    pub fn begin(&mut self, pools: Vec<state::Pool>) -> FromNode {
        self.stage = Stage::Opening;
        self.renewals.clear();
        self.grants.clear();
        let applied_index = if self.spoiled { 0 } else { self.installed };
        from(from_node::Message::Hello(Hello { pools, applied_index, ..self.facts.hello.clone() }))
    }

    /// A renewal; `now_ms` is read before anything of it can be on its way.
    pub fn renew(&mut self, now_ms: u64, data_path_stalled_ms: u32) -> FromNode {
        self.next_renewal += 1;
        if self.renewals.len() >= RENEWALS_MAX {
            self.renewals.pop_front();
        }
        self.renewals.push_back((self.next_renewal, now_ms));
        let renew =
            Renew { sequence: self.next_renewal, applied_index: self.installed, data_path_stalled_ms };
        from(from_node::Message::Renew(renew))
    }

    /// Every worker has installed this index. Returns false for old news.
    pub fn installed(&mut self, index: u64) -> bool {
        if index <= self.installed {
            return false;
        }
        self.installed = index;
        self.use_grants();
        true
    }

    /// Timing, once commits are being followed: renewals make sense only then.
    pub fn timing(&self) -> Option<Timing> {
        match &self.stage {
            Stage::Following(timing, _) => Some(*timing),
            Stage::Opening | Stage::Snapshot(..) => None,
        }
    }

    /// Takes a message. Returns true for a grant, the sign that the leader still leads.
    pub fn handle(&mut self, message: ToNode) -> Result<bool, SessionError> {
        let message = message.message.ok_or_else(|| protocol("of a kind that this version does not know"))?;
        let result = match message {
            to_node::Message::Welcome(welcome) => self.handle_welcome(welcome).map(|()| false),
            to_node::Message::Snapshot(part) => self.handle_snapshot(part).map(|()| false),
            to_node::Message::Commit(commit) => self.handle_commit(&commit).map(|()| false),
            to_node::Message::Inspect(ask) => {
                self.installer.inspect(ask);
                Ok(false)
            }
            to_node::Message::Lease(grant) => self.handle_grant(grant).map(|()| true),
        };
        if let Err(SessionError::Record(_) | SessionError::NameTaken(_)) = &result {
            // What cannot be read may have taken a right away from us.
            self.spoiled = true;
            self.grants.clear();
            self.shared.gate.close();
        }
        result
    }

    fn handle_welcome(&mut self, welcome: Welcome) -> Result<(), SessionError> {
        if !matches!(self.stage, Stage::Opening) {
            return Err(protocol("a second welcome"));
        }
        if ClusterId::from_slice(&welcome.cluster_id) != Some(self.facts.cluster) {
            return Err(protocol("the welcome is of another cluster"));
        }
        let node = parse::welcome_node(welcome.node.as_ref())?;
        if node.name != self.facts.name {
            return Err(protocol(format!("the welcome is for node '{}'", node.name)));
        }
        if welcome.target_iqn.is_empty() || welcome.renew_interval_ms == 0 {
            return Err(protocol("the welcome lacks the target's name or the interval of renewals"));
        }
        let timing = Timing { lease_ms: welcome.lease_ms, renew_interval_ms: welcome.renew_interval_ms };
        let view = self.shared.view.load_full();
        let same = view.as_ref().is_some_and(|v| v.my_incarnation == node.incarnation && v.me == node.number);
        if view.is_some() && !same {
            // What we owned was given to the incarnation before.
            self.shared.gate.close();
        }
        self.stage = match view {
            Some(view) if welcome.resumes && same && !self.spoiled => Stage::Following(timing, view.index),
            _ if welcome.resumes => return Err(protocol("it resumes what this process does not have")),
            _ => {
                let target_iqn = welcome.target_iqn;
                let (me, incarnation) = (node.number, node.incarnation);
                Stage::Snapshot(Welcomed { target_iqn, me, incarnation, timing }, Vec::new())
            }
        };
        Ok(())
    }

    fn handle_snapshot(&mut self, part: SnapshotPart) -> Result<(), SessionError> {
        let Stage::Snapshot(_, changes) = &mut self.stage else {
            return Err(protocol("a part of a snapshot out of place"));
        };
        changes.extend(part.changes);
        if changes.len() > SNAPSHOT_CHANGES_MAX {
            return Err(protocol("a snapshot of too many records"));
        }
        if !part.last {
            return Ok(());
        }
        let Stage::Snapshot(welcomed, changes) = std::mem::replace(&mut self.stage, Stage::Opening) else {
            return Err(protocol("a part of a snapshot out of place"));
        };
        let before = self.shared.view.load_full();
        if let Some(before) = &before
            && part.index < before.index
        {
            return Err(SessionError::Behind { theirs: part.index, ours: before.index });
        }
        let Welcomed { target_iqn, me, incarnation, timing } = welcomed;
        let empty = ClusterView::empty(self.facts.cluster, &target_iqn, me, incarnation);
        let view = empty.with_changes(part.index, &changes, &|context, sealed| self.open(context, sealed))?;
        self.check_own_name(&view)?;
        let events_lost = before.is_some_and(|before| before.index != part.index || self.spoiled);
        self.spoiled = false;
        self.stage = Stage::Following(timing, 0);
        self.install(Install {
            view: Arc::new(view),
            unit_attentions: Vec::new(),
            aborts: Vec::new(),
            events_lost,
        });
        Ok(())
    }

    fn handle_commit(&mut self, commit: &state::Commit) -> Result<(), SessionError> {
        let Stage::Following(_, resumed_from) = &self.stage else {
            return Err(protocol("a commit before the snapshot's end"));
        };
        let Some(view) = self.shared.view.load_full() else {
            return Err(protocol("a commit without a view"));
        };
        if commit.index <= view.index {
            if commit.index <= *resumed_from {
                return Ok(());
            }
            return Err(protocol(format!("commit {} after {}", commit.index, view.index)));
        }
        let open = |context: &str, sealed: &[u8]| self.open(context, sealed);
        let next = view.with_changes(commit.index, &commit.changes, &open)?;
        self.check_own_name(&next)?;
        let unit_attentions = parse::unit_attentions(&commit.unit_attentions)?;
        let aborts = parse::abort_tasks(&commit.aborts)?;
        self.install(Install { view: Arc::new(next), unit_attentions, aborts, events_lost: false });
        Ok(())
    }

    fn handle_grant(&mut self, grant: LeaseGrant) -> Result<(), SessionError> {
        let position = self.renewals.iter().position(|(sequence, _)| *sequence == grant.sequence);
        // An answer to a renewal that was forgotten is old; an answer to none was never asked for.
        let Some(position) = position else {
            if grant.sequence > self.next_renewal || grant.sequence == 0 {
                return Err(protocol("a lease that was not asked for"));
            }
            return Ok(());
        };
        let Some((_, sent_ms)) = self.renewals.drain(..=position).next_back() else { return Ok(()) };
        if grant.lease_ms == 0 {
            return Ok(());
        }
        let end_ms = lease_end_ms(sent_ms, grant.lease_ms);
        self.grants.push_back(Grant { end_ms, applied_index: grant.applied_index });
        self.use_grants();
        Ok(())
    }

    fn use_grants(&mut self) {
        let installed = self.installed;
        let gate = &self.shared.gate;
        self.grants.retain(|grant| {
            let usable = grant.applied_index <= installed;
            if usable {
                gate.extend(grant.end_ms);
            }
            !usable
        });
        while self.grants.len() > RENEWALS_MAX {
            self.grants.pop_front();
        }
    }

    fn check_own_name(&self, view: &ClusterView) -> Result<(), SessionError> {
        match view.my_node() {
            Some(node) if node.name == self.facts.name => {
                if node.incarnation > view.my_incarnation {
                    return Err(SessionError::NameTaken(self.facts.name.clone()));
                }
                Ok(())
            }
            _ => Err(SessionError::Record(RecordError {
                record: "node",
                key: self.facts.name.clone(),
                problem: "this node's own record is gone".into(),
            })),
        }
    }

    fn open(&self, context: &str, sealed: &[u8]) -> Result<Vec<u8>, String> {
        self.facts.key.open(context, sealed).map_err(|error| error.to_string())
    }

    fn install(&self, install: Install) {
        self.shared.view.store(Some(Arc::clone(&install.view)));
        self.installer.install(install);
    }
}

fn protocol(problem: impl Into<String>) -> SessionError {
    SessionError::Protocol(problem.into())
}

pub(super) fn from(message: from_node::Message) -> FromNode {
    FromNode { message: Some(message) }
}
