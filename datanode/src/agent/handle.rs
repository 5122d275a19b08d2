//! What the data plane may ask of the agent: cheap to clone, usable from any thread, never blocking.
//!
//! Invariants: every request's reply is called exactly once, on the agent's thread; [`ProposalResult::NotExecuted`]
//! means that nothing happened and nothing will; an outcome is told only when this node has installed its log index.

use std::fmt;

use holdfast_proto::{
    node::{Inspection, ReplicaState},
    state,
};
use holdfast_scsi::{
    limits::CDB_LEN_MAX, nexus::Nexus, sense::AdditionalSense, sense::Sense, status::Status,
};
use tokio::sync::mpsc;

use crate::view::{BootId, Epoch, Incarnation, NodeNumber, VolumeId};

/// Requests that may wait for the agent at once; more are answered as not executed. Above what all logical units can
/// have under way, since each proposes one at a time per nexus.
const REQUESTS_MAX: usize = 4096;

/// Told once how a request ended. Called on the agent's thread: post to a mailbox, do not work in it.
pub type Reply<T> = Box<dyn FnOnce(T) + Send>;

/// A change of what the cluster keeps of a logical unit, validated by its owner.
#[derive(Clone, Debug)]
pub struct ProposeReservation {
    /// Of which volume.
    pub volume: VolumeId,
    /// Epoch in which this node owns it.
    pub epoch: Epoch,
    /// Version of the reservations that it was validated against.
    pub expected_version: u64,
    /// From whom.
    pub nexus: Nexus,
    /// What changes it.
    pub change: ProposedChange,
    /// This node's clock, in milliseconds since 1970 (UTC).
    pub now_unix_ms: u64,
    /// Drawn at random, once for each command.
    pub proposal_id: [u8; 16],
}

/// What is proposed.
#[derive(Clone, Debug)]
pub enum ProposedChange {
    /// A command of the nexus.
    Command {
        /// The CDB.
        cdb: [u8; CDB_LEN_MAX],
        /// The parameter list as received.
        parameter_list: Vec<u8>,
    },
    /// The nexus is gone.
    NexusLost,
    /// LOGICAL UNIT RESET, which the nexus asked for.
    Reset,
    /// FORMAT UNIT or SANITIZE has ended; the nexus does not matter.
    OperationEnded {
        /// Not well.
        failed: bool,
    },
}

/// How a proposal ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProposalResult {
    /// Committed, the barrier has passed, and this node has installed `version`.
    Outcome {
        /// SCSI status.
        status: Status,
        /// Sense data of CHECK CONDITION.
        sense: Option<Sense>,
        /// Log index of the change.
        version: u64,
    },
    /// The reservations have changed since they were validated: validate again (with a new id).
    StaleVersion,
    /// Nothing happened, for this reason. Answer BUSY.
    NotExecuted(String),
    /// It may have happened. Answer ABORTED COMMAND; never BUSY.
    Unknown,
}

/// Which nexuses a Unit Attention is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnitAttentionScope {
    /// Every nexus that the volume is mapped to.
    All,
    /// All but this one.
    Except(Nexus),
    /// This one.
    Only(Nexus),
}

/// A Unit Attention for all ports of the cluster, for another reason than a reservation.
#[derive(Clone, Debug)]
pub struct EstablishUnitAttention {
    /// Of which volume.
    pub volume: VolumeId,
    /// Epoch in which this node owns it.
    pub epoch: Epoch,
    /// What is reported.
    pub additional: AdditionalSense,
    /// To whom.
    pub scope: UnitAttentionScope,
    /// Drawn at random, once for each condition.
    pub request_id: [u8; 16],
}

/// How establishing a Unit Attention ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Established {
    /// Committed and installed here.
    Done,
    /// Nothing happened, for this reason.
    NotExecuted(String),
    /// It may have happened.
    Unknown,
}

/// A change of a volume's configuration, by its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeConfiguration {
    /// Of which volume.
    pub volume: VolumeId,
    /// The configuration that it starts from.
    pub expected: Epoch,
    /// Of the owner.
    pub incarnation: Incarnation,
    /// What is to change.
    pub change: WantedChange,
}

/// See [`ChangeConfiguration`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WantedChange {
    /// Go on without this node's replica.
    Evict(NodeNumber),
    /// Count this learner as in sync, which has caught up under this boot.
    Admit(NodeNumber, BootId),
    /// Give the volume to another in-sync node. Nothing is served under the expected epoch from here on.
    HandOver {
        /// To whom; `None`: anyone that may.
        to: Option<NodeNumber>,
        /// The own replica has failed: it leaves the in-sync set.
        leave: bool,
    },
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeResult {
    /// The volume has left the expected epoch: the view tells for what.
    Settled,
    /// It was not made, for this reason, and will not be unless it is asked for again.
    Refused(String),
}

/// What travels to the agent's thread.
pub(crate) enum Request {
    ProposeReservation(ProposeReservation, Reply<ProposalResult>),
    EstablishUnitAttention(EstablishUnitAttention, Reply<Established>),
    AwaitBarrier(u64, Reply<bool>),
    ChangeConfiguration(ChangeConfiguration, Reply<ChangeResult>),
    ReplicaReport(Vec<ReplicaState>),
    Installed(u64),
    Inspected(Inspection),
    Pools(Vec<state::Pool>),
    ReplicaRemoved(VolumeId),
    Making(VolumeId, state::MakingStep, String),
}

/// The agent, for other threads.
#[derive(Clone)]
pub struct Handle {
    requests: mpsc::Sender<Request>,
    // Confirmations and reports are bounded by what the agent itself hands out, and must not be refused.
    reports: mpsc::UnboundedSender<Request>,
}

/// The agent's end of all handles.
pub(crate) struct Requests {
    pub(crate) requests: mpsc::Receiver<Request>,
    pub(crate) reports: mpsc::UnboundedReceiver<Request>,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("agent::Handle")
    }
}

impl Handle {
    pub(crate) fn new() -> (Handle, Requests) {
        let (requests, requests_received) = mpsc::channel(REQUESTS_MAX);
        let (reports, reports_received) = mpsc::unbounded_channel();
        (Handle { requests, reports }, Requests { requests: requests_received, reports: reports_received })
    }

    /// Proposes a validated change. The agent asks again by the same id until the outcome is known or the
    /// lease is lost.
    pub fn propose_reservation(&self, proposal: ProposeReservation, reply: Reply<ProposalResult>) {
        let request = Request::ProposeReservation(proposal, reply);
        if let Err(refused) = self.requests.try_send(request)
            && let Request::ProposeReservation(_, reply) = refused.into_inner()
        {
            reply(ProposalResult::NotExecuted("the agent takes no more requests".into()));
        }
    }

    /// Establishes a Unit Attention at all ports of the cluster. Same rules of outcome.
    pub fn establish_unit_attention(&self, request: EstablishUnitAttention, reply: Reply<Established>) {
        let request = Request::EstablishUnitAttention(request, reply);
        if let Err(refused) = self.requests.try_send(request)
            && let Request::EstablishUnitAttention(_, reply) = refused.into_inner()
        {
            reply(Established::NotExecuted("the agent takes no more requests".into()));
        }
    }

    /// Asks when the barrier of the commit at `index` has passed. Told `false` when that could not be learned.
    pub fn await_barrier(&self, index: u64, reply: Reply<bool>) {
        let request = Request::AwaitBarrier(index, reply);
        if let Err(refused) = self.requests.try_send(request)
            && let Request::AwaitBarrier(_, reply) = refused.into_inner()
        {
            reply(false);
        }
    }

    /// Asks for a change of the configuration, again and again until the volume has left the expected epoch, or the
    /// controller refuses it for good.
    pub fn change_configuration(&self, wanted: ChangeConfiguration, reply: Reply<ChangeResult>) {
        self.report(Request::ChangeConfiguration(wanted, reply));
    }

    /// How replicas are. Each entry replaces what was said before of the same replica.
    pub fn report_replicas(&self, replicas: Vec<ReplicaState>) {
        self.report(Request::ReplicaReport(replicas));
    }

    /// What this node has done of a snapshot or clone that is being made, or why it cannot; it is told until that is decided.
    pub fn report_making(&self, volume: VolumeId, step: state::MakingStep, message: String) {
        self.report(Request::Making(volume, step, message));
    }

    /// Every worker has applied the view of this log index, and all before it.
    pub fn installed(&self, index: u64) {
        self.report(Request::Installed(index));
    }

    /// What an inspection has found.
    pub fn inspected(&self, inspection: Inspection) {
        self.report(Request::Inspected(inspection));
    }

    /// Capacity and free space of the pools, when they have changed.
    pub fn report_pools(&self, pools: Vec<state::Pool>) {
        self.report(Request::Pools(pools));
    }

    /// This node's replica of a volume that is being deleted is gone.
    pub fn replica_removed(&self, volume: VolumeId) {
        self.report(Request::ReplicaRemoved(volume));
    }

    fn report(&self, report: Request) {
        // An error means that the agent has ended, and the process with it.
        let _ = self.reports.send(report);
    }
}
