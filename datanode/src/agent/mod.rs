//! The agent of the controller: it keeps the session, the lease and the view, and carries proposals. It runs on its own
//! thread with its own runtime, so that no control-plane work ever holds up I/O.
//!
//! | Looking for | Module |
//! |---|---|
//! | what other threads may ask of it | [`handle`] |
//! | what the controller says, and when the gate opens | [`session`] |
//! | which controller to talk to | `endpoints` |
//! | the thread and its loop | `runtime` |
//! | proposals until their outcome is known | `proposals` |
//! | changes of a volume's configuration | `changes` |
//! | what it asks of the data plane | [`Install`], [`Installer`] |
//! | are the data-plane threads alive? | [`heartbeat`] |
//!
//! Invariants: the gate opens only under a grant whose log index is installed on every worker; a lease is counted from
//! the sending of its renewal; commits are installed in log order, and a gap ends the session; a reply to a proposal is
//! given only once this node itself has installed its outcome.

mod changes;
mod endpoints;
pub mod handle;
pub mod heartbeat;
mod proposals;
mod runtime;
pub mod session;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use handle::{
    ChangeConfiguration, ChangeResult, EstablishUnitAttention, Established, Handle, ProposalResult,
    ProposeReservation, ProposedChange, UnitAttentionScope, WantedChange,
};
pub use heartbeat::Heartbeats;
pub use runtime::{Agent, AgentEnd, Options};

use crate::view::{AbortTasks, ClusterView, UnitAttentionEvent};

/// A new view for the data plane, with what came about on the way to it.
#[derive(Clone, Debug)]
pub struct Install {
    /// The view; `view.index` is the log index that [`Handle::installed`] confirms.
    pub view: Arc<ClusterView>,
    /// Unit Attentions to enqueue, in this order, for the nexuses that exist before this index is installed.
    pub unit_attentions: Vec<UnitAttentionEvent>,
    /// Tasks to abort.
    pub aborts: Vec<AbortTasks>,
    /// Events between the view before and this one are not known: every nexus that exists gets 29/00 on every logical
    /// unit instead, so that none is lost silently.
    pub events_lost: bool,
}

/// The data plane, as the agent sees it. Calls come from the agent's thread and must not block.
pub trait Installer: Send + Sync {
    /// Posts the view to every worker. When the last one has applied it, the data plane calls [`Handle::installed`] with
    /// its index. Calls come in log order.
    fn install(&self, install: Install);

    /// Looks at the sessions, or ends one, or looks at a scrub, and tells by [`Handle::inspected`]. What has no sessions need not answer: the
    /// controller's patience is bounded.
    fn inspect(&self, ask: holdfast_proto::node::Inspect) {
        let _ = ask;
    }
}
