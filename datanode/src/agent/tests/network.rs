//! The whole agent against a server on loopback: finding the leader, resuming, proposals.

use std::time::Duration;

use holdfast_proto::{
    node::{Applied, ProposeReservationResponse, from_node::Message},
    state::ProposalOutcome,
};
use holdfast_scsi::{
    nexus::{Nexus, RelativePort},
    sense::asc,
    status::Status as ScsiStatus,
    transport_id::TransportId,
};
use tokio::sync::oneshot;
use tonic::Status;

use super::super::{
    Agent, EstablishUnitAttention, Established, Heartbeats, Options, ProposalResult, ProposeReservation,
    ProposedChange, UnitAttentionScope,
};
use super::controller::{Controller, Session};
use super::*;
use crate::{
    clock,
    view::{BootId, Epoch, Shared, VolumeId},
};

/// A node whose agent runs.
struct Running {
    pki: Pki,
    handle: Handle,
    shared: Arc<Shared>,
    workers: Arc<Workers>,
    agent: Option<Agent>,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(agent) = self.agent.take() {
            agent.stop();
        }
    }
}

impl Running {
    fn start(pki: Pki, controllers: &[&Controller]) -> Running {
        Running::start_at(pki, controllers.iter().map(|c| c.address.to_string()).collect())
    }

    fn start_at(pki: Pki, controllers: Vec<String>) -> Running {
        let identity = pki.identity(Role::Node, "node-1");
        let (handle, requests) = Agent::channel();
        let workers = Workers::confirming(&handle);
        let shared = Arc::new(Shared::default());
        let options = Options {
            name: "node-1".into(),
            boot: BootId([1; 16]),
            process_id: [2; 16],
            controllers,
            portals: vec!["127.0.0.1:3260".parse().unwrap()],
            interconnect: "127.0.0.1:4000".parse().unwrap(),
            pools: vec![],
        };
        let installer = Arc::clone(&workers) as Arc<dyn Installer>;
        let agent = Agent::start(
            options,
            &identity,
            requests,
            Arc::clone(&shared),
            Heartbeats::new(1),
            installer,
            |_| (),
        )
        .unwrap();
        Running { pki, handle, shared, workers, agent: Some(agent) }
    }

    /// Takes the next session through its greeting and a first lease that is as long as the test.
    async fn lease(&self, controller: &mut Controller, index: u64) -> Session {
        let mut session = controller.sessions.recv().await.unwrap();
        session.next(|m| matches!(m, Message::Hello(_)).then_some(())).await;
        session.say(welcome(self.pki.cluster_id(), 1, false));
        session.say(snapshot(index, vec![]));
        self.grant(&mut session, index).await;
        session
    }

    /// Grants the next renewal and waits until the gate is open for it.
    async fn grant(&self, session: &mut Session, index: u64) {
        let sequence = session.next(|m| match m {
            Message::Renew(renew) => Some(renew.sequence),
            _ => None,
        });
        let sequence = sequence.await;
        session.say(grant(sequence, 600_000, index));
        wait_for(|| self.shared.gate.open(clock::now_ms())).await;
    }

    fn propose(&self, id: u8) -> oneshot::Receiver<ProposalResult> {
        let (reply, result) = oneshot::channel();
        let initiator = TransportId::iscsi("iqn.2026-01.x:h", [0; 6]).unwrap();
        let proposal = ProposeReservation {
            volume: VolumeId([9; 16]),
            epoch: Epoch::FIRST,
            expected_version: 3,
            nexus: Nexus::new(initiator, RelativePort(1)),
            change: ProposedChange::Command { cdb: [0x5f; 32], parameter_list: vec![0; 24] },
            now_unix_ms: 0,
            proposal_id: [id; 16],
        };
        self.handle.propose_reservation(proposal, Box::new(move |result| drop(reply.send(result))));
        result
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_controller_that_still_takes_connections_is_left_for_another() {
    let pki = Pki::new();
    // Its kernel completes the connection; nobody ever answers.
    let stopped = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut controller = Controller::start(&pki.identity(Role::Controller, "ctl-2"), None).await;
    let stopped = stopped.local_addr().map(|at| (at, stopped)).unwrap();
    let node = Running::start_at(pki, vec![stopped.0.to_string(), controller.address.to_string()]);
    let _session = node.lease(&mut controller, 1).await;
}

/// Waits for a condition that something else brings about.
async fn wait_for(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn good(version: u64) -> ProposeReservationResponse {
    let outcome = ProposalOutcome { status: 0, version, ..Default::default() };
    ProposeReservationResponse { outcome: Some(outcome) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_is_found_by_the_hint_and_the_gate_opens() {
    let pki = Pki::new();
    let mut leader = Controller::start(&pki.identity(Role::Controller, "ctl-2"), None).await;
    let other = Controller::start(&pki.identity(Role::Controller, "ctl-1"), Some(leader.address)).await;
    let node = Running::start(pki, &[&other]);
    let mut session = node.lease(&mut leader, 5).await;
    session.say(commit(6, vec![]));
    let applied = session.next(|m| match m {
        Message::Applied(Applied { applied_index: 6 }) => Some(()),
        _ => None,
    });
    applied.await;
    assert_eq!(node.workers.indices(), [5, 6]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_without_a_controllers_certificate_is_not_believed() {
    let pki = Pki::new();
    let mut false_leader = Controller::start(&pki.identity(Role::Node, "node-9"), None).await;
    let mut leader = Controller::start(&pki.identity(Role::Controller, "ctl-1"), None).await;
    let node = Running::start(pki, &[&false_leader, &leader]);
    node.lease(&mut leader, 5).await;
    assert!(false_leader.sessions.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn session_that_breaks_is_resumed_and_the_lease_runs_on() {
    let pki = Pki::new();
    let mut controller = Controller::start(&pki.identity(Role::Controller, "ctl-1"), None).await;
    let node = Running::start(pki, &[&controller]);
    let session = node.lease(&mut controller, 5).await;
    // A commit that goes back: the node ends the session.
    session.say(commit(4, vec![]));
    let mut session = controller.sessions.recv().await.unwrap();
    let hello = session.next(|m| match m {
        Message::Hello(hello) => Some(hello),
        _ => None,
    });
    let hello = hello.await;
    assert_eq!((hello.applied_index, hello.process_id), (5, vec![2; 16]));
    assert!(node.shared.gate.open(clock::now_ms()));
    session.say(welcome(node.pki.cluster_id(), 1, true));
    session.say(commit(6, vec![]));
    wait_for(|| node.workers.indices() == [5, 6]).await;
    session.next(|m| matches!(m, Message::Renew(renew) if renew.applied_index == 6).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proposal_of_unknown_outcome_is_asked_again_by_the_same_id() {
    let pki = Pki::new();
    let mut controller = Controller::start(&pki.identity(Role::Controller, "ctl-1"), None).await;
    let node = Running::start(pki, &[&controller]);
    let session = node.lease(&mut controller, 5).await;
    let mut result = node.propose(7);
    let (first, answer) = controller.proposals.recv().await.unwrap();
    answer.send(Err(Status::deadline_exceeded("barrier"))).unwrap();
    // Now a definite word would be about this attempt only.
    let (second, answer) = controller.proposals.recv().await.unwrap();
    answer.send(Err(Status::unavailable("no quorum"))).unwrap();
    let (third, answer) = controller.proposals.recv().await.unwrap();
    assert_eq!((&first, &first), (&second, &third));
    assert_eq!(first.proposal_id, vec![7; 16]);
    node.workers.hold.store(true, Ordering::SeqCst);
    answer.send(Ok(good(8))).unwrap();
    session.say(commit(8, vec![]));
    wait_for(|| node.workers.indices().contains(&8)).await;
    assert!(result.try_recv().is_err(), "the workers have not installed it yet");
    node.handle.installed(8);
    let expected = ProposalResult::Outcome { status: ScsiStatus::Good, sense: None, version: 8 };
    assert_eq!(result.await, Ok(expected));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn definite_refusals_are_told_as_such() {
    let pki = Pki::new();
    let mut controller = Controller::start(&pki.identity(Role::Controller, "ctl-1"), None).await;
    let node = Running::start(pki, &[&controller]);
    let _session = node.lease(&mut controller, 5).await;
    for (status, expected) in [
        (Status::unavailable("no quorum"), ProposalResult::NotExecuted("no quorum".into())),
        (Status::failed_precondition("stale epoch"), ProposalResult::NotExecuted("stale epoch".into())),
        (Status::aborted("version 4"), ProposalResult::StaleVersion),
    ] {
        let result = node.propose(1);
        let (_, answer) = controller.proposals.recv().await.unwrap();
        answer.send(Err(status)).unwrap();
        assert_eq!(result.await, Ok(expected));
    }
    let result = node.propose(2);
    let (_, answer) = controller.proposals.recv().await.unwrap();
    let conflict = ProposalOutcome { status: 0x18, version: 99, ..Default::default() };
    answer.send(Ok(ProposeReservationResponse { outcome: Some(conflict) })).unwrap();
    let expected =
        ProposalResult::Outcome { status: ScsiStatus::ReservationConflict, sense: None, version: 99 };
    assert_eq!(result.await, Ok(expected));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lapse_of_the_lease_costs_time_and_not_the_outcome() {
    let pki = Pki::new();
    let mut controller = Controller::start(&pki.identity(Role::Controller, "ctl-1"), None).await;
    let node = Running::start(pki, &[&controller]);
    let session = node.lease(&mut controller, 5).await;
    let mut result = node.propose(3);
    let (first, answer) = controller.proposals.recv().await.unwrap();
    node.shared.gate.close();
    answer.send(Err(Status::deadline_exceeded("barrier"))).unwrap();
    let (second, answer) = controller.proposals.recv().await.unwrap();
    assert_eq!(first, second);
    assert!(result.try_recv().is_err());
    session.say(commit(8, vec![]));
    answer.send(Ok(good(8))).unwrap();
    let expected = ProposalResult::Outcome { status: ScsiStatus::Good, sense: None, version: 8 };
    assert_eq!(result.await, Ok(expected));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_falls_silent_is_not_waited_for() {
    let pki = Pki::new();
    let mut silent = Controller::start(&pki.identity(Role::Controller, "ctl-1"), None).await;
    let mut next = Controller::start(&pki.identity(Role::Controller, "ctl-2"), None).await;
    let node = Running::start(pki, &[&silent, &next]);
    let session = node.lease(&mut silent, 5).await;
    let result = node.propose(4);
    // It never answers, and its session ends.
    let (first, _unanswered) = silent.proposals.recv().await.unwrap();
    drop(session);
    let session = node.lease(&mut next, 6).await;
    let (second, answer) = next.proposals.recv().await.unwrap();
    assert_eq!(first, second);
    answer.send(Ok(good(7))).unwrap();
    session.say(commit(7, vec![]));
    let expected = ProposalResult::Outcome { status: ScsiStatus::Good, sense: None, version: 7 };
    assert_eq!(result.await, Ok(expected));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_an_unknown_attempt_only_a_word_about_all_of_them_settles_it() {
    let pki = Pki::new();
    let mut controller = Controller::start(&pki.identity(Role::Controller, "ctl-1"), None).await;
    let node = Running::start(pki, &[&controller]);
    let _session = node.lease(&mut controller, 5).await;
    for (settled, expected) in [(false, ProposalResult::Unknown), (true, ProposalResult::StaleVersion)] {
        let result = node.propose(5);
        let (_, answer) = controller.proposals.recv().await.unwrap();
        answer.send(Err(Status::deadline_exceeded("barrier"))).unwrap();
        let (_, answer) = controller.proposals.recv().await.unwrap();
        let mut stale = Status::aborted("version 9");
        if settled {
            stale.metadata_mut().insert("holdfast-settled", "1".parse().unwrap());
        }
        answer.send(Err(stale)).unwrap();
        assert_eq!(result.await, Ok(expected));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unit_attention_is_done_once_it_is_installed() {
    let pki = Pki::new();
    let mut controller = Controller::start(&pki.identity(Role::Controller, "ctl-1"), None).await;
    let node = Running::start(pki, &[&controller]);
    let session = node.lease(&mut controller, 5).await;
    let (reply, mut result) = oneshot::channel();
    let wanted = EstablishUnitAttention {
        volume: VolumeId([9; 16]),
        epoch: Epoch::FIRST,
        additional: asc::BUS_DEVICE_RESET,
        scope: UnitAttentionScope::All,
        request_id: [4; 16],
    };
    node.handle.establish_unit_attention(wanted, Box::new(move |result| drop(reply.send(result))));
    // The server answers with ASC and ASCQ as the index.
    let index = u64::from(u16::from_be_bytes([asc::BUS_DEVICE_RESET.asc, asc::BUS_DEVICE_RESET.ascq]));
    session.say(commit(index - 1, vec![]));
    wait_for(|| node.workers.indices().contains(&(index - 1))).await;
    assert!(result.try_recv().is_err());
    session.say(commit(index, vec![]));
    assert_eq!(result.await, Ok(Established::Done));
}
