//! Two interconnects over real TLS on loopback, each on a loop of its own, driven by turns.

use std::{sync::Arc, time::Duration};

use holdfast_pki::{Authority, Identity, Role};
use holdfast_replica::{epoch::Epoch, ids::NodeNumber, ids::VolumeId, limits::COMMAND_AGE_MS_MAX};
use holdfast_scsi::{
    nexus::{Nexus, RelativePort},
    sense::Sense,
    status::Status,
    task_set::TaskAttribute,
    transport_id::TransportId,
};
use mio::{Events, Poll, Token, Waker};

use super::*;
use crate::{
    clock,
    data_plane::{
        Seat,
        mailbox::Mailboxes,
        router::{
            Bytes, CommandData, CommandFor, Interconnect, InterconnectEvent, LuFunction, LuFunctionOutcome,
            Outcome, Reply, TaskManagementFor,
        },
    },
    view::{ClusterView, Incarnation, NodeView},
};

/// One worker with nothing but an interconnect.
struct Side {
    poll: Poll,
    events: Events,
    interconnect: Box<dyn Interconnect>,
    seen: Vec<InterconnectEvent>,
    // The waker's end; nothing is posted with one worker.
    _mailboxes: Mailboxes,
}

impl Side {
    fn new(interconnects: Interconnects, shared: Arc<Shared>) -> Side {
        let poll = Poll::new().unwrap();
        let waker = Waker::new(poll.registry(), Token(0)).unwrap();
        let (mailboxes, _inboxes) = Mailboxes::new(vec![waker]);
        let registry = poll.registry().try_clone().unwrap();
        let seat = Seat { worker: 0, registry, mailboxes: mailboxes.clone() };
        let interconnect = interconnects.into_parts(shared)(seat);
        Side {
            poll,
            events: Events::with_capacity(64),
            interconnect,
            seen: Vec::new(),
            _mailboxes: mailboxes,
        }
    }

    fn turn(&mut self) {
        self.poll.poll(&mut self.events, Some(Duration::from_millis(1))).unwrap();
        let now = clock::scsi_now();
        for event in &self.events {
            self.interconnect.handle_event(now, event);
        }
        if self.interconnect.poll_timeout().is_some_and(|at| at <= now) {
            self.interconnect.handle_timeout(now);
        }
        self.seen.extend(std::iter::from_fn(|| self.interconnect.poll_event()));
        self.interconnect.flush(now);
    }
}

struct Pair {
    port: Side,
    owner: Side,
}

impl Pair {
    /// Node 1 forwards to node 2. `names` are those in their certificates, `known` those in the view.
    fn new(names: [&str; 2], known: [&str; 2]) -> Pair {
        holdfast_pki::install_crypto_provider();
        let root = tempfile::tempdir().unwrap();
        let authority = Authority::create(&root.path().join("ca")).unwrap();
        let bind = |at: usize| {
            let directory = root.path().join(format!("node-{at}"));
            authority.issue((Role::Node, names[at]), &directory).unwrap();
            let identity = Identity::load(&directory).unwrap();
            Interconnects::bind("127.0.0.1:0".parse().unwrap(), &identity).unwrap()
        };
        let (first, second) = (bind(0), bind(1));
        let addresses = [first.address(), second.address()];
        let shared = |me: u32| {
            let cluster = ClusterId(authority.cluster().0);
            let mut view =
                ClusterView::empty(cluster, "iqn.2026-01.x:t", NodeNumber::new(me).unwrap(), Incarnation(1));
            for (at, name) in known.iter().enumerate() {
                let number = NodeNumber::new(at as u32 + 1).unwrap();
                let node = NodeView {
                    name: (*name).to_owned(),
                    number,
                    live: true,
                    cordoned: false,
                    draining: false,
                    incarnation: Incarnation(1),
                    boot: crate::view::BootId([1; 16]),
                    ports: vec![],
                    interconnect: addresses[at],
                };
                Arc::make_mut(&mut view.nodes).insert(number, Arc::new(node));
            }
            let shared = Shared::default();
            shared.view.store(Some(Arc::new(view)));
            Arc::new(shared)
        };
        Pair { port: Side::new(first, shared(1)), owner: Side::new(second, shared(2)) }
    }

    /// Both loops turn until the condition holds.
    fn until(&mut self, condition: impl Fn(&Pair) -> bool) {
        while !condition(self) {
            self.port.turn();
            self.owner.turn();
        }
    }

    fn forward(&mut self, token: u64, data: CommandData) {
        let now = clock::scsi_now();
        let to = NodeNumber::new(2).unwrap();
        self.port.interconnect.forward(now, to, token, command(data));
    }
}

fn nexus() -> Nexus {
    Nexus::new(TransportId::iscsi("iqn.2026-01.x:h", [0; 6]).unwrap(), RelativePort(1))
}

fn command(data: CommandData) -> CommandFor {
    CommandFor {
        volume: VolumeId([9; 16]),
        epoch: Epoch::FIRST,
        nexus: nexus(),
        cdb: vec![0x8a; 16],
        attribute: TaskAttribute::Simple,
        data_out_len: 3 << 20,
        data,
        unit_attention: None,
        read_only: false,
        copy: None,
        execute_by: clock::scsi_now().plus_millis(COMMAND_AGE_MS_MAX),
    }
}

/// Bytes that show it when one is lost or moved.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect()
}

const NODES: [&str; 2] = ["node-1", "node-2"];

#[test]
fn large_data_travels_both_ways_unharmed() {
    let mut pair = Pair::new(NODES, NODES);
    let data = pattern(3 << 20);
    pair.forward(1, CommandData::Ready(Bytes::new(data.clone())));
    pair.forward(2, CommandData::Awaited);
    let to = NodeNumber::new(2).unwrap();
    pair.port.interconnect.forward_data(clock::scsi_now(), to, 2, Bytes::new(data.clone()));
    pair.until(|pair| pair.owner.seen.len() == 3);
    let now = clock::scsi_now();
    let mut answered = 0;
    for event in std::mem::take(&mut pair.owner.seen) {
        match event {
            InterconnectEvent::Command { origin, command } => {
                if let CommandData::Ready(bytes) = &command.data {
                    assert_eq!(bytes.as_slice(), data);
                }
                assert!(command.execute_by > now);
                let reply = Reply {
                    status: Status::Good,
                    sense: None,
                    descriptor_sense: false,
                    data: Bytes::part(Arc::new(data.clone()), 5, 2 << 20),
                    transfer_len: 7,
                    unit_attention_reported: Some(3),
                };
                pair.owner.interconnect.answer(now, origin, Outcome::Reply(reply));
                answered += 1;
            }
            InterconnectEvent::DataOut { data: came, .. } => assert_eq!(came, data),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(answered, 2);
    pair.until(|pair| pair.port.seen.len() == 2);
    for event in &pair.port.seen {
        let InterconnectEvent::Outcome { outcome: Outcome::Reply(reply), .. } = event else {
            panic!("{event:?}")
        };
        assert_eq!(reply.data.as_slice(), &data[5..5 + (2 << 20)]);
        assert_eq!((reply.transfer_len, reply.unit_attention_reported), (7, Some(3)));
    }
}

#[test]
fn functions_and_losses_are_answered() {
    let mut pair = Pair::new(NODES, NODES);
    pair.forward(1, CommandData::None);
    let (now, to) = (clock::scsi_now(), NodeNumber::new(2).unwrap());
    let request = TaskManagementFor {
        volume: VolumeId([9; 16]),
        epoch: Epoch::FIRST,
        nexus: nexus(),
        function: LuFunction::AbortTask(1),
    };
    pair.port.interconnect.forward_task_management(now, to, 2, request);
    pair.port.interconnect.forward_nexus_loss(now, to, 3, nexus());
    pair.until(|pair| pair.owner.seen.len() == 3);
    for event in std::mem::take(&mut pair.owner.seen) {
        match event {
            InterconnectEvent::Command { origin, .. } => {
                pair.owner.interconnect.answer(now, origin, Outcome::Aborted);
            }
            InterconnectEvent::TaskManagement { origin, request } => {
                assert_eq!(request.function, LuFunction::AbortTask(1));
                let outcome = LuFunctionOutcome::TaskDoesNotExist;
                pair.owner.interconnect.answer_task_management(now, origin, outcome);
            }
            InterconnectEvent::NexusLoss { origin, nexus: lost } => {
                assert_eq!(lost, nexus());
                pair.owner.interconnect.answer_nexus_loss(now, origin);
            }
            other => panic!("{other:?}"),
        }
    }
    pair.until(|pair| pair.port.seen.len() == 3);
    assert!(matches!(pair.port.seen[0], InterconnectEvent::Outcome { token: 1, outcome: Outcome::Aborted }));
    assert!(matches!(
        pair.port.seen[1],
        InterconnectEvent::TaskManagementDone { token: 2, outcome: LuFunctionOutcome::TaskDoesNotExist }
    ));
    assert!(matches!(pair.port.seen[2], InterconnectEvent::NexusLossDone { token: 3 }));
}

#[test]
fn owner_that_dies_leaves_the_outcome_unknown_and_the_port_tells_the_owner_of_its_end() {
    let mut pair = Pair::new(NODES, NODES);
    pair.forward(1, CommandData::None);
    pair.until(|pair| pair.owner.seen.len() == 1);
    let Pair { mut port, owner } = pair;
    drop(owner);
    while port.seen.is_empty() {
        port.turn();
    }
    assert!(matches!(port.seen[..], [InterconnectEvent::Outcome { token: 1, outcome: Outcome::Unknown }]));
    // Nobody listens there any more: what is sent now was definitely not executed.
    port.interconnect.forward(clock::scsi_now(), NodeNumber::new(2).unwrap(), 2, command(CommandData::None));
    while port.seen.len() < 2 {
        port.turn();
    }
    assert!(matches!(port.seen[1], InterconnectEvent::Outcome { token: 2, outcome: Outcome::NotExecuted }));
}

#[test]
fn port_that_dies_is_told_to_the_owner() {
    let mut pair = Pair::new(NODES, NODES);
    pair.forward(1, CommandData::None);
    pair.until(|pair| pair.owner.seen.len() == 1);
    let Pair { port, mut owner } = pair;
    drop(port);
    while owner.seen.len() < 2 {
        owner.turn();
    }
    let InterconnectEvent::Command { origin, .. } = &owner.seen[0] else { panic!("{:?}", owner.seen) };
    let connection = origin.connection;
    assert!(matches!(owner.seen[1], InterconnectEvent::Disconnected { connection: c } if c == connection));
    // Too late, and no harm.
    owner.interconnect.answer(clock::scsi_now(), *origin, Outcome::Aborted);
}

#[test]
fn owner_with_another_name_in_its_certificate_gets_nothing() {
    let mut pair = Pair::new(["node-1", "node-9"], NODES);
    pair.forward(1, CommandData::None);
    pair.until(|pair| !pair.port.seen.is_empty());
    let InterconnectEvent::Outcome { token: 1, outcome } = &pair.port.seen[0] else {
        panic!("{:?}", pair.port.seen)
    };
    // The greeting had been handed to TLS already, but the command waits for the peer's.
    assert!(matches!(outcome, Outcome::NotExecuted));
    assert!(pair.owner.seen.iter().all(|event| matches!(event, InterconnectEvent::Disconnected { .. })));
}

#[test]
fn port_that_the_owner_does_not_know_gets_nothing() {
    let mut pair = Pair::new(["node-7", "node-2"], NODES);
    pair.forward(1, CommandData::None);
    pair.until(|pair| !pair.port.seen.is_empty());
    assert!(matches!(
        pair.port.seen[0],
        InterconnectEvent::Outcome { token: 1, outcome: Outcome::NotExecuted }
    ));
    assert!(pair.owner.seen.iter().all(|event| matches!(event, InterconnectEvent::Disconnected { .. })));
}

#[test]
fn address_in_use_is_named() {
    holdfast_pki::install_crypto_provider();
    let root = tempfile::tempdir().unwrap();
    let authority = Authority::create(&root.path().join("ca")).unwrap();
    authority.issue((Role::Node, "node-1"), &root.path().join("tls")).unwrap();
    let identity = Identity::load(&root.path().join("tls")).unwrap();
    let first = Interconnects::bind("127.0.0.1:0".parse().unwrap(), &identity).unwrap();
    let second = Interconnects::bind(first.address(), &identity).unwrap_err();
    assert_eq!(second.to_string(), format!("interconnect address {} is in use", first.address()));
}

#[test]
fn command_that_is_too_old_is_told_so_with_sense() {
    let mut pair = Pair::new(NODES, NODES);
    // As if it had come to its port when the machine booted.
    let old = CommandFor { execute_by: holdfast_scsi::time::Instant(0), ..command(CommandData::None) };
    pair.port.interconnect.forward(clock::scsi_now(), NodeNumber::new(2).unwrap(), 1, old);
    pair.until(|pair| !pair.port.seen.is_empty());
    let InterconnectEvent::Outcome { outcome: Outcome::Reply(reply), .. } = &pair.port.seen[0] else {
        panic!("{:?}", pair.port.seen)
    };
    assert_eq!(reply.status, Status::CheckCondition);
    let sense: Sense = reply.sense.unwrap();
    assert_eq!((sense.additional.asc, sense.additional.ascq), (0x2e, 0x01));
}
