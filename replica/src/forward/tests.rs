//! Client and server wired back to back: what each side may believe, whatever happens to the connection.

use super::*;
use crate::limits::{CLOCK_INTERVAL_MS, COMMAND_AGE_MS_MAX, DATA_OUT_MAX, SILENCE_MS_MAX};
use alloc::{collections::BTreeMap, vec};
use holdfast_scsi::{nexus::RelativePort, sense::asc, transport_id::TransportId};
use proptest::prelude::*;

fn crc(so_far: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(so_far, bytes)
}

fn node(n: u32) -> NodeNumber {
    NodeNumber::new(n).unwrap()
}

fn link(me: u32, peer: u32) -> Link {
    Link { cluster: ClusterId([1; 16]), me: node(me), peer: node(peer), crc32c: crc }
}

fn nexus(n: u8) -> Nexus {
    let isid = [0, 2, 0x3d, 0, 0, n];
    Nexus::new(TransportId::iscsi("iqn.2026-01.x:host", isid).unwrap(), RelativePort(1))
}

fn write(n: u8, data: DataOut<Vec<u8>>) -> Command<Vec<u8>> {
    Command {
        volume: VolumeId([n; 16]),
        epoch: Epoch::FIRST,
        nexus: nexus(n),
        cdb: vec![0x2a; 16],
        attribute: TaskAttribute::Ordered,
        data_out_len: 512,
        data,
        unit_attention: Some(UnitAttention { id: 77, additional: asc::CAPACITY_DATA_CHANGED }),
        read_only: true,
        copy: None,
    }
}

fn good(data: Option<Vec<u8>>) -> Outcome<Vec<u8>> {
    let sense = Some(Sense::illegal_field_cdb(2, Some(3)));
    Outcome::Reply(Reply {
        status: Status::Good,
        sense,
        descriptor_sense: true,
        data,
        transfer_len: 512,
        unit_attention_reported: Some(77),
    })
}

/// Both machines and the two directions of the connection between them.
struct Pair {
    client: Client<Vec<u8>>,
    server: Server<Vec<u8>>,
    /// Bytes that each direction still lets through.
    to_server: usize,
    to_client: usize,
}

impl Pair {
    fn new(now: Instant) -> Pair {
        let mut client = Client::new(link(1, 2), now);
        client.connected(now);
        Pair { client, server: Server::new(link(2, 1), now), to_server: usize::MAX, to_client: usize::MAX }
    }

    /// Moves everything that is ready, as far as the directions let it through. False if a side wants to close.
    fn pump(&mut self, now: Instant) -> Result<(), Violation> {
        loop {
            let mut moved = false;
            while let Some(frame) = self.client.poll_transmit() {
                moved = true;
                let bytes = [frame.head, frame.data.unwrap_or_default()].concat();
                let n = bytes.len().min(self.to_server);
                self.to_server -= n;
                feed(&bytes[..n], |part| {
                    let n = part.len().min(self.server.space().len());
                    self.server.space()[..n].copy_from_slice(&part[..n]);
                    self.server.advance(now, n).map(|()| n)
                })?;
            }
            while let Some(frame) = self.server.poll_transmit() {
                moved = true;
                let bytes = [frame.head, frame.data.unwrap_or_default()].concat();
                let n = bytes.len().min(self.to_client);
                self.to_client -= n;
                feed(&bytes[..n], |part| {
                    let n = part.len().min(self.client.space().len());
                    self.client.space()[..n].copy_from_slice(&part[..n]);
                    self.client.advance(now, n).map(|()| n)
                })?;
            }
            if !moved {
                return Ok(());
            }
        }
    }

    fn served(&mut self) -> Vec<ServerEvent> {
        core::iter::from_fn(|| self.server.poll_event()).collect()
    }

    fn ended(&mut self) -> Vec<ClientEvent> {
        core::iter::from_fn(|| self.client.poll_event()).collect()
    }
}

fn feed(mut bytes: &[u8], mut take: impl FnMut(&[u8]) -> Result<usize, Violation>) -> Result<(), Violation> {
    while !bytes.is_empty() {
        let n = take(bytes)?;
        bytes = &bytes[n..];
    }
    Ok(())
}

const T0: Instant = Instant(1_000_000);

#[test]
fn command_travels_whole_and_its_answer_comes_back_whole() {
    let mut pair = Pair::new(T0);
    pair.client.forward(T0, 5, T0, write(1, DataOut::Ready(vec![7; 512])));
    pair.pump(T0).unwrap();
    let execute_by = T0.plus_millis(COMMAND_AGE_MS_MAX);
    let command = write(1, DataOut::Ready(vec![7; 512]));
    assert_eq!(pair.served(), [ServerEvent::Command { token: 5, command, execute_by }]);
    pair.server.answer(T0, 5, good(Some(vec![9; 4096])));
    pair.pump(T0).unwrap();
    assert_eq!(pair.ended(), [ClientEvent::Outcome { token: 5, outcome: good(Some(vec![9; 4096])) }]);
    assert_eq!(pair.client.outstanding(), 0);
    // A second answer goes nowhere.
    pair.server.answer(T0, 5, Outcome::Aborted);
    pair.pump(T0).unwrap();
    assert_eq!(pair.ended(), []);
}

#[test]
fn commands_of_copy_managers_travel_whole_and_beside_the_streams() {
    use holdfast_scsi::{copy::token::RodToken, device_server::CopyRole};
    let mut pair = Pair::new(T0);
    pair.pump(T0).unwrap();
    let token = RodToken::from_bytes(&core::array::from_fn(|at| at as u8));
    let roles = [CopyRole::Plain, CopyRole::Token(token.clone()), CopyRole::DeleteToken(token)];
    for (n, role) in roles.into_iter().enumerate() {
        let command = Command { copy: Some(role), ..write(1, DataOut::Ready(vec![7; 512])) };
        pair.client.forward(T0, n as u64, T0, command.clone());
        pair.pump(T0).unwrap();
        let served = pair.served();
        let [ServerEvent::Command { command: arrived, .. }] = served.as_slice() else { panic!("{served:?}") };
        assert_eq!(*arrived, command);
    }
    // The host's own stream begins with its first number as if they had never been.
    pair.client.forward(T0, 9, T0, write(1, DataOut::None));
    pair.pump(T0).unwrap();
    assert_eq!(pair.served().len(), 1);
}

#[test]
fn awaited_data_follows_and_late_data_of_an_answered_command_is_dropped() {
    let mut pair = Pair::new(T0);
    pair.client.forward(T0, 1, T0, write(1, DataOut::Awaited));
    pair.client.forward(T0, 2, T0, write(1, DataOut::Awaited));
    pair.pump(T0).unwrap();
    assert_eq!(pair.served().len(), 2);
    pair.client.forward_data(1, vec![3; 512]);
    pair.client.forward_data(2, vec![4; 512]);
    pair.server.answer(T0, 2, Outcome::NotExecuted);
    pair.pump(T0).unwrap();
    assert_eq!(pair.served(), [ServerEvent::DataOut { token: 1, data: vec![3; 512] }]);
    pair.client.forward_abort(1);
    pair.pump(T0).unwrap();
    assert_eq!(pair.served(), [ServerEvent::Abort { token: 1 }]);
    pair.server.answer(T0, 1, Outcome::Aborted);
    pair.pump(T0).unwrap();
    assert_eq!(pair.ended().last(), Some(&ClientEvent::Outcome { token: 1, outcome: Outcome::Aborted }));
}

#[test]
fn function_stands_behind_the_commands_of_its_stream() {
    let mut pair = Pair::new(T0);
    let request = TaskManagement {
        volume: VolumeId([1; 16]),
        epoch: Epoch::FIRST,
        nexus: nexus(1),
        function: Function::AbortTask(1),
    };
    pair.client.forward(T0, 1, T0, write(1, DataOut::None));
    pair.client.forward_task_management(2, request);
    pair.client.forward_nexus_loss(3, nexus(1));
    pair.client.forward(T0, 4, T0, write(1, DataOut::None));
    pair.pump(T0).unwrap();
    let served = pair.served();
    assert!(matches!(served[0], ServerEvent::Command { token: 1, .. }));
    assert_eq!(served[1], ServerEvent::TaskManagement { token: 2, request });
    assert_eq!(served[2], ServerEvent::NexusLoss { token: 3, nexus: nexus(1) });
    assert!(matches!(served[3], ServerEvent::Command { token: 4, .. }), "the stream begins anew");
    pair.server.answer_task_management(T0, 2, FunctionOutcome::Complete);
    pair.server.answer_nexus_loss(T0, 3);
    pair.pump(T0).unwrap();
    let done = ClientEvent::TaskManagementDone { token: 2, outcome: FunctionOutcome::Complete };
    assert_eq!(pair.ended(), [done, ClientEvent::NexusLossDone { token: 3 }]);
}

#[test]
fn every_function_and_its_outcome_arrive_as_they_were_sent() {
    let functions = [
        Function::AbortTask(9),
        Function::AbortTaskSet,
        Function::ClearTaskSet,
        Function::LogicalUnitReset,
        Function::ClearAca,
        Function::ItNexusReset,
        Function::QueryTask(9),
        Function::QueryTaskSet,
    ];
    let outcomes = [
        FunctionOutcome::Complete,
        FunctionOutcome::Succeeded,
        FunctionOutcome::Rejected,
        FunctionOutcome::TaskDoesNotExist,
        FunctionOutcome::NotSupported,
        FunctionOutcome::NotExecuted,
        FunctionOutcome::Unknown,
    ];
    for (at, function) in functions.into_iter().enumerate() {
        let mut pair = Pair::new(T0);
        let request =
            TaskManagement { volume: VolumeId([1; 16]), epoch: Epoch::FIRST, nexus: nexus(1), function };
        pair.client.forward_task_management(1, request);
        pair.pump(T0).unwrap();
        assert_eq!(pair.served(), [ServerEvent::TaskManagement { token: 1, request }]);
        let outcome = outcomes[at % outcomes.len()];
        pair.server.answer_task_management(T0, 1, outcome);
        pair.pump(T0).unwrap();
        assert_eq!(pair.ended(), [ClientEvent::TaskManagementDone { token: 1, outcome }]);
    }
}

#[test]
fn missing_number_in_a_stream_is_a_violation() {
    let mut pair = Pair::new(T0);
    pair.pump(T0).unwrap();
    pair.client.forward(T0, 1, T0, write(1, DataOut::None));
    pair.client.poll_transmit().unwrap();
    pair.client.forward(T0, 2, T0, write(1, DataOut::None));
    assert_eq!(pair.pump(T0), Err(Violation::Sequence { expected: 1, got: 2 }));
}

#[test]
fn old_command_is_judged_on_the_owners_clock_only() {
    // The owner's clock is far from the port's.
    let (port, owner) = (Instant(10), Instant(9_000_000));
    let mut pair = Pair::new(port);
    pair.server = Server::new(link(2, 1), owner);
    let pump = |pair: &mut Pair, port: Instant, owner: Instant| {
        while let Some(frame) = pair.client.poll_transmit() {
            let bytes = [frame.head, frame.data.unwrap_or_default()].concat();
            feed(&bytes, |part| {
                let n = part.len().min(pair.server.space().len());
                pair.server.space()[..n].copy_from_slice(&part[..n]);
                pair.server.advance(owner, n).map(|()| n)
            })
            .unwrap();
        }
        while let Some(frame) = pair.server.poll_transmit() {
            let bytes = [frame.head, frame.data.unwrap_or_default()].concat();
            feed(&bytes, |part| {
                let n = part.len().min(pair.client.space().len());
                pair.client.space()[..n].copy_from_slice(&part[..n]);
                pair.client.advance(port, n).map(|()| n)
            })
            .unwrap();
        }
    };
    pump(&mut pair, port, owner);
    // Delayed on the way by as much as is allowed: still executed, but at once or never.
    pair.client.forward(port, 1, port, write(1, DataOut::None));
    let at_bound = owner.plus_millis(COMMAND_AGE_MS_MAX);
    pump(&mut pair, port, at_bound);
    let served = pair.served();
    assert!(matches!(served[..], [ServerEvent::Command { execute_by, .. }] if execute_by == at_bound));
    // A moment longer: refused, definitely.
    pair.client.forward(port, 2, port, write(1, DataOut::None));
    pump(&mut pair, port, at_bound.plus_millis(1));
    assert_eq!(pair.served(), []);
    assert_eq!(pair.ended(), [ClientEvent::Outcome { token: 2, outcome: Outcome::Stale }]);
}

#[test]
fn waiting_for_a_connection_counts_as_age() {
    let mut client = Client::<Vec<u8>>::new(link(1, 2), T0);
    let arrived = T0;
    client.forward(T0, 1, arrived, write(1, DataOut::None));
    let connected = T0.plus_millis(COMMAND_AGE_MS_MAX + 1);
    client.connected(connected);
    let mut pair = Pair {
        client,
        server: Server::new(link(2, 1), connected),
        to_server: usize::MAX,
        to_client: usize::MAX,
    };
    pair.pump(connected).unwrap();
    assert_eq!(pair.served(), []);
    assert_eq!(pair.ended(), [ClientEvent::Outcome { token: 1, outcome: Outcome::Stale }]);
    // The port itself does not send what is too old already.
    pair.client.forward(connected, 2, arrived, write(1, DataOut::None));
    assert_eq!(pair.ended(), [ClientEvent::Outcome { token: 2, outcome: Outcome::Stale }]);
}

#[test]
fn fresh_command_on_an_idle_connection_is_not_old() {
    let mut pair = Pair::new(T0);
    let mut now = T0;
    pair.pump(now).unwrap();
    while now < T0.plus_millis(10 * COMMAND_AGE_MS_MAX) {
        now = now.plus_millis(CLOCK_INTERVAL_MS);
        pair.server.handle_timeout(now).unwrap();
        pair.client.handle_timeout(now).unwrap();
        pair.pump(now).unwrap();
    }
    pair.client.forward(now, 1, now, write(1, DataOut::None));
    pair.pump(now).unwrap();
    let least = now.plus_millis(COMMAND_AGE_MS_MAX - CLOCK_INTERVAL_MS);
    assert!(matches!(pair.served()[..], [ServerEvent::Command { execute_by, .. }] if execute_by >= least));
}

#[test]
fn silence_is_noticed_on_both_sides() {
    let mut pair = Pair::new(T0);
    pair.pump(T0).unwrap();
    let end = T0.plus_millis(SILENCE_MS_MAX);
    assert_eq!(pair.client.poll_timeout(), end);
    assert_eq!(pair.client.handle_timeout(end), Err(Violation::Silence));
    assert_eq!(pair.server.handle_timeout(end), Err(Violation::Silence));
}

#[test]
fn strangers_are_turned_away() {
    for wrong in [Link { cluster: ClusterId([2; 16]), ..link(1, 2) }, link(3, 2), link(1, 3)] {
        let mut pair = Pair::new(T0);
        pair.client = Client::new(wrong, T0);
        pair.client.connected(T0);
        pair.client.forward(T0, 1, T0, write(1, DataOut::None));
        assert_eq!(pair.pump(T0), Err(Violation::WrongPeer));
        pair.client.connection_lost();
        assert_eq!(pair.ended(), [ClientEvent::Outcome { token: 1, outcome: Outcome::NotExecuted }]);
    }
}

#[test]
fn more_than_the_owner_can_hold_is_task_set_full() {
    let mut pair = Pair::new(T0);
    pair.pump(T0).unwrap();
    let half = Command { data_out_len: (DATA_OUT_MAX / 16) as u32, ..write(1, DataOut::Awaited) };
    for token in 0..16 {
        pair.client.forward(T0, token, T0, half.clone());
    }
    pair.client.forward(T0, 99, T0, half.clone());
    let full = pair.ended();
    assert!(
        matches!(&full[..], [ClientEvent::Outcome { token: 99, outcome: Outcome::Reply(r) }] if r.status == Status::TaskSetFull)
    );
    pair.pump(T0).unwrap();
    pair.server.answer(T0, 3, Outcome::NotExecuted);
    pair.pump(T0).unwrap();
    pair.client.forward(T0, 100, T0, half);
    pair.pump(T0).unwrap();
    assert_eq!(pair.served().len(), 17);
}

#[test]
fn command_that_announces_too_much_reaches_the_one_who_refuses_it() {
    let mut pair = Pair::new(T0);
    let huge = Command { data_out_len: u32::MAX, ..write(1, DataOut::Awaited) };
    pair.client.forward(T0, 1, T0, huge);
    pair.pump(T0).unwrap();
    assert!(matches!(pair.served()[..], [ServerEvent::Command { token: 1, .. }]));
    pair.server.answer(T0, 1, Outcome::Aborted);
    pair.pump(T0).unwrap();
    assert_eq!(pair.ended().len(), 1);
}

#[test]
fn answer_to_nothing_is_a_violation() {
    let mut pair = Pair::new(T0);
    pair.client.forward(T0, 1, T0, write(1, DataOut::None));
    pair.pump(T0).unwrap();
    pair.server.answer(T0, 1, Outcome::Aborted);
    let answer = pair.server.poll_transmit().unwrap();
    for turn in 0..2 {
        let result = feed(&answer.head, |part| {
            let n = part.len().min(pair.client.space().len());
            pair.client.space()[..n].copy_from_slice(&part[..n]);
            pair.client.advance(T0, n).map(|()| n)
        });
        let expected = if turn == 0 { Ok(()) } else { Err(Violation::Unexpected(Kind::Aborted)) };
        assert_eq!(result, expected);
    }
}

/// What the test does next.
#[derive(Clone, Debug)]
enum Step {
    Forward { stream: u8, data: u8 },
    Function { stream: u8 },
    NexusLoss { stream: u8 },
    Data { which: usize },
    Answer { which: usize, how: u8 },
    Pump,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..3, 0u8..3).prop_map(|(stream, data)| Step::Forward { stream, data }),
        1 => (0u8..3).prop_map(|stream| Step::Function { stream }),
        1 => (0u8..3).prop_map(|stream| Step::NexusLoss { stream }),
        2 => (0usize..40).prop_map(|which| Step::Data { which }),
        4 => (0usize..40, 0u8..4).prop_map(|(which, how)| Step::Answer { which, how }),
        4 => Just(Step::Pump),
    ]
}

proptest! {
    /// The connection is cut after any number of bytes in either direction. Every request gets exactly one event, and
    /// "not executed" is only ever said of what the owner's shell has not seen (or has itself not executed).
    #[test]
    fn whatever_is_cut_each_request_ends_once_and_not_executed_is_true(
        steps in proptest::collection::vec(step(), 1..60),
        to_server in prop_oneof![Just(usize::MAX), 0usize..6000],
        to_client in prop_oneof![Just(usize::MAX), 0usize..4000],
    ) {
        let mut pair = Pair::new(T0);
        (pair.to_server, pair.to_client) = (to_server, to_client);
        let mut asked: Vec<u64> = Vec::new();
        let mut ended: BTreeMap<u64, ClientEvent> = BTreeMap::new();
        let mut seen: BTreeMap<u64, ServerEvent> = BTreeMap::new();
        let mut refused: Vec<u64> = Vec::new();
        for (at, step) in steps.iter().enumerate() {
            let token = 1000 + at as u64;
            match step {
                Step::Forward { stream, data } => {
                    let data = match data {
                        0 => DataOut::None,
                        1 => DataOut::Ready(vec![1; 512]),
                        _ => DataOut::Awaited,
                    };
                    asked.push(token);
                    pair.client.forward(T0, token, T0, write(*stream, data));
                }
                Step::Function { stream } => {
                    asked.push(token);
                    pair.client.forward_task_management(token, TaskManagement {
                        volume: VolumeId([*stream; 16]),
                        epoch: Epoch::FIRST,
                        nexus: nexus(*stream),
                        function: Function::AbortTaskSet,
                    });
                }
                Step::NexusLoss { stream } => {
                    asked.push(token);
                    pair.client.forward_nexus_loss(token, nexus(*stream));
                }
                Step::Data { which } => {
                    let awaited = seen.iter().filter(|(_, e)| matches!(
                        e, ServerEvent::Command { command, .. } if command.data == DataOut::Awaited));
                    // Once for each command, as the contract of the shell is.
                    if let Some(token) = awaited.map(|(t, _)| *t).nth(*which) {
                        pair.client.forward_data(token, vec![2; 512]);
                        if let Some(ServerEvent::Command { command, .. }) = seen.get_mut(&token) {
                            command.data = DataOut::None;
                        }
                    }
                }
                Step::Answer { which, how } => {
                    let Some((token, event)) = seen.iter().nth(*which) else { continue };
                    match (event, how) {
                        (ServerEvent::Command { .. }, 0) => {
                            if !refused.contains(token) {
                                refused.push(*token);
                            }
                            pair.server.answer(T0, *token, Outcome::NotExecuted);
                        }
                        (ServerEvent::Command { .. }, _) => {
                            // Only the first answer counts.
                            pair.server.answer(T0, *token, good(Some(vec![9; 100])));
                        }
                        (ServerEvent::TaskManagement { .. }, _) => {
                            pair.server.answer_task_management(T0, *token, FunctionOutcome::Complete);
                        }
                        (_, _) => pair.server.answer_nexus_loss(T0, *token),
                    }
                }
                Step::Pump => {
                    // The peers keep the rules, so there is no violation, cut or not.
                    prop_assert_eq!(pair.pump(T0), Ok(()));
                }
            }
            for event in pair.served() {
                let token = match &event {
                    ServerEvent::Command { token, .. }
                    | ServerEvent::TaskManagement { token, .. }
                    | ServerEvent::NexusLoss { token, .. } => *token,
                    ServerEvent::DataOut { .. } | ServerEvent::Abort { .. } => continue,
                };
                prop_assert!(seen.insert(token, event).is_none());
            }
            for event in pair.ended() {
                prop_assert!(ended.insert(token_of(&event), event).is_none());
            }
        }
        prop_assert_eq!(pair.pump(T0), Ok(()));
        for event in pair.served() {
            if let ServerEvent::Command { token, .. } | ServerEvent::TaskManagement { token, .. } = &event {
                seen.insert(*token, event.clone());
            }
        }
        pair.client.connection_lost();
        for event in pair.ended() {
            prop_assert!(ended.insert(token_of(&event), event).is_none());
        }
        prop_assert_eq!(ended.keys().copied().collect::<Vec<_>>(), asked);
        for (token, event) in &ended {
            let not_executed = matches!(event,
                ClientEvent::Outcome { outcome: Outcome::NotExecuted | Outcome::Stale, .. }
                | ClientEvent::TaskManagementDone { outcome: FunctionOutcome::NotExecuted, .. });
            if not_executed {
                prop_assert!(!seen.contains_key(token) || refused.contains(token));
            }
        }
        // Nothing is taken by a client whose connection is gone.
        pair.client.forward(T0, 1, T0, write(1, DataOut::None));
        prop_assert_eq!(pair.ended(), vec![ClientEvent::Outcome { token: 1, outcome: Outcome::NotExecuted }]);
    }

    #[test]
    fn any_bytes_are_taken_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400), kind in 0usize..16) {
        // Whole frames with arbitrary contents, so that the decoders behind the checksums are reached.
        let kind = crate::frame::Kind::ALL[kind % crate::frame::Kind::ALL.len()];
        let header = crate::frame::Header { clock: 1, sequence: 1, ..crate::frame::Header::new(kind, 1) };
        let frame = crate::frame::Outgoing::<Vec<u8>>::new(&header, &bytes, None, crc).unwrap();
        let mut pair = Pair::new(T0);
        pair.client.forward(T0, 1, T0, write(1, DataOut::None));
        pair.pump(T0).unwrap();
        let _ = feed(&frame.head, |part| {
            let n = part.len().min(pair.client.space().len());
            pair.client.space()[..n].copy_from_slice(&part[..n]);
            pair.client.advance(T0, n).map(|()| n)
        });
        let _ = feed(&frame.head, |part| {
            let n = part.len().min(pair.server.space().len());
            pair.server.space()[..n].copy_from_slice(&part[..n]);
            pair.server.advance(T0, n).map(|()| n)
        });
    }
}

fn token_of(event: &ClientEvent) -> u64 {
    match event {
        ClientEvent::Outcome { token, .. }
        | ClientEvent::TaskManagementDone { token, .. }
        | ClientEvent::NexusLossDone { token } => *token,
    }
}

#[test]
fn port_is_told_how_long_the_owners_lease_runs_and_when_it_has_none() {
    let now = Instant(10_000);
    let mut pair = Pair::new(now);
    assert_eq!(pair.client.neighbour(), None);
    pair.server.set_lease(now.plus_millis(700));
    pair.pump(now).unwrap();
    let told = Neighbour { heard: now, lease_end: now.plus_millis(700) };
    assert_eq!(pair.client.neighbour(), Some(told));
    // It has not been renewed when the next clock token goes out.
    let later = now.plus_millis(CLOCK_INTERVAL_MS);
    pair.server.handle_timeout(later).unwrap();
    pair.pump(later).unwrap();
    assert_eq!(pair.client.neighbour(), Some(Neighbour { heard: later, ..told }));
    let later = later.plus_millis(CLOCK_INTERVAL_MS);
    pair.server.handle_timeout(later).unwrap();
    pair.pump(later).unwrap();
    assert_eq!(pair.client.neighbour(), Some(Neighbour { heard: later, lease_end: Instant(0) }));
    pair.client.connection_lost();
    assert_eq!(pair.client.neighbour(), None);
}
