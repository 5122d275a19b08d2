//! The replicated state machine: the one truth about nodes, volumes, hosts, mappings, reservations and Unit Attentions.
//!
//! | Looking for | Module |
//! |---|---|
//! | what may be asked for | [`command`] |
//! | why it is refused | [`refusal`] |
//! | bounds | [`limits`] |
//!
//! Invariants
//! * Pure: no clock, no random numbers, no I/O. The same log gives the same state on every member.
//! * Preconditions are checked inside [`StateMachine::apply`], never only before a command is proposed.
//! * Names are unique; LUNs are unique per host; an initiator name belongs to one host; node numbers and relative target port
//!   identifiers are handed out once; a volume's epoch only grows, and its owner is in its in-sync set.

pub mod command;
pub mod limits;
pub mod refusal;

use holdfast_proto::state as records;

pub use command::{Body, Command, DecodeError};
pub use refusal::{Kind, Refusal};

/// What became of a command.
pub type Response = Result<Outcome, Refusal>;

/// What a command that was carried out made.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Done; nothing to tell.
    Done,
    /// The node as it is now.
    Node(records::Node),
    /// The volume as it is now, or as it was when the same request was carried out first.
    Volume(records::Volume),
    /// The host, likewise.
    Host(records::Host),
    /// The mapping, likewise.
    Mapping(records::Mapping),
    /// What became of a proposed PERSISTENT RESERVE OUT, now or when it was proposed first.
    Proposal(records::ProposalOutcome),
    /// Unit Attentions were established by the entry with this index.
    Established(u64),
}

/// What applying one entry did.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    /// For the proposer.
    pub response: Response,
    /// Every record that changed, also those that controllers keep for themselves ([`is_node_visible`]), with the Unit
    /// Attentions and aborts for data nodes. Replaying `commit.changes` by key onto the state before gives the state after.
    pub commit: records::Commit,
    /// What people may want to hear of (the same records are in `commit.changes`).
    pub events: Vec<records::EventRecord>,
}

/// A snapshot that does not hold a valid state: corruption.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the snapshot is corrupt: {0}")]
pub struct CorruptState(pub String);

/// True if data nodes see this record.
pub fn is_node_visible(change: &records::Change) -> bool {
    use records::change::Change::{Event, Head, Request};
    !matches!(change.change, None | Some(Request(_) | Event(_) | Head(_)))
}

/// The replicated state.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StateMachine {
    head: u64,
}

impl StateMachine {
    /// Log index of the last entry that changed anything data nodes see.
    pub fn head(&self) -> u64 {
        self.head
    }

    /// Applies the entry at `index`. Indexes grow from call to call.
    pub fn apply(&mut self, index: u64, _command: &Command) -> Applied {
        Applied {
            response: Err(Refusal::NotInitialised),
            commit: records::Commit { index, ..Default::default() },
            events: Vec::new(),
        }
    }

    /// The whole state as records, in a fixed order: equal states give equal lists.
    pub fn to_changes(&self) -> Vec<records::Change> {
        vec![records::Change { change: Some(records::change::Change::Head(self.head)) }]
    }

    /// The state of which [`StateMachine::to_changes`] made these records.
    pub fn from_changes(
        changes: impl IntoIterator<Item = records::Change>,
    ) -> Result<StateMachine, CorruptState> {
        let mut state = StateMachine::default();
        for change in changes {
            if let Some(records::change::Change::Head(head)) = change.change {
                state.head = head;
            }
        }
        Ok(state)
    }
}
