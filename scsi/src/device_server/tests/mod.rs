//! Rules of the seam that the scenarios do not show: what actions look like, and what odd answers lead to.

mod copy;

use super::*;
use crate::{
    alua::AluaState,
    cdb::WriteSameSource,
    geometry::{Extent, Geometry},
    identity::{LuIdentity, LuProperties},
    limits,
    lu_state::LuState,
    nexus::RelativePort,
    pr::state::Reservations,
    sense::{Sense, SenseKey},
    transport_id::TransportId,
    ua::UnitAttention,
};
use std::{vec, vec::Vec};

const NOW: Instant = Instant(7);
const TUR: [u8; 6] = [0; 6];
const READ: [u8; 10] = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];
const WRITE: [u8; 10] = [0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0];
const REGISTER: [u8; 10] = [0x5f, 0, 0, 0, 0, 0, 0, 0, 24, 0];
const READ_KEYS: [u8; 10] = [0x5e, 0, 0, 0, 0, 0, 0, 0, 64, 0];

fn nexus(n: u8) -> Nexus {
    Nexus::new(TransportId::sas([n; 8]), RelativePort(1))
}

fn config(blocks: u64, write_cache: bool) -> LuConfig {
    let properties = LuProperties {
        identity: LuIdentity { volume_uuid: [1; 16], revision: *b"0001" },
        geometry: Geometry::new(512, blocks).unwrap(),
        physical_block_exponent: 3,
    };
    let mode = ModeParameters::new(write_cache);
    LuConfig { properties, mode, read_only: false }
}

fn server_with(write_cache: bool) -> DeviceServer {
    let mut server = DeviceServer::new(config(100, write_cache));
    server.install_topology(Topology {
        target_name: "iqn.2026-01.x:t".into(),
        groups: vec![PortGroup {
            id: 1,
            state: AluaState::ActiveOptimized,
            preferred: true,
            ports: vec![RelativePort(1)],
        }],
        ..Topology::default()
    });
    server
}

fn server() -> DeviceServer {
    server_with(true)
}

fn send_ua(
    server: &mut DeviceServer,
    id: u64,
    cdb: &[u8],
    data: DataOut<'_>,
    unit_attention: Option<UnitAttention>,
) {
    let data_out_len = if let DataOut::Ready(bytes) = data { bytes.len() as u32 } else { 512 };
    let request = CommandRequest {
        task: TaskId(id),
        nexus: &nexus(1),
        cdb,
        attribute: TaskAttribute::Simple,
        data_out_len,
        unit_attention,
        read_only: false,
    };
    server.handle_command(NOW, request, data).unwrap();
}

fn send(server: &mut DeviceServer, id: u64, cdb: &[u8], data: DataOut<'_>) {
    send_ua(server, id, cdb, data, None);
}

fn actions(server: &mut DeviceServer) -> Vec<Action> {
    core::iter::from_fn(|| server.poll_action()).collect()
}

/// The one completion among the actions.
fn completion(server: &mut DeviceServer, id: u64) -> Completion {
    match actions(server).as_slice() {
        [Action::Complete { task, response: Response::Completed(completion) }] if task.0 == id => {
            completion.clone()
        }
        other => panic!("{other:?}"),
    }
}

fn sense_of(completion: &Completion) -> (SenseKey, crate::sense::AdditionalSense) {
    let sense = completion.sense.unwrap();
    (sense.key, sense.additional)
}

fn registered() -> Reservations {
    let registrant = crate::pr::Registrant { nexus: nexus(2), key: 9, all_target_ports: false };
    Reservations::from_parts(1, false, vec![registrant], None).unwrap()
}

#[test]
fn commands_sent_before_the_report_was_known_do_not_report_it_again() {
    let mut server = server();
    let first = UnitAttention { id: 5, additional: asc::CAPACITY_DATA_CHANGED };
    let ua = Some(first);
    send_ua(&mut server, 1, &TUR, DataOut::None, ua);
    assert_eq!(completion(&mut server, 1).unit_attention_reported, Some(5));
    send_ua(&mut server, 2, &TUR, DataOut::None, ua);
    assert_eq!(completion(&mut server, 2), Completion::good());
    let next = Some(UnitAttention { id: 6, ..first });
    send_ua(&mut server, 3, &TUR, DataOut::None, next);
    assert_eq!(completion(&mut server, 3).unit_attention_reported, Some(6));
    server.handle_nexus_loss(NOW, &nexus(1));
    send_ua(&mut server, 4, &TUR, DataOut::None, next);
    assert_eq!(completion(&mut server, 4).unit_attention_reported, Some(6));
}

#[test]
fn full_task_set_is_told_and_a_duplicate_name_is_the_callers_error() {
    let mut server = server();
    for id in 0..limits::TASKS_PER_NEXUS_MAX as u64 {
        send(&mut server, id, &READ, DataOut::None);
    }
    actions(&mut server);
    send(&mut server, 9999, &TUR, DataOut::None);
    assert_eq!(completion(&mut server, 9999).status, Status::TaskSetFull);
    let again = CommandRequest {
        task: TaskId(3),
        nexus: &nexus(1),
        cdb: &TUR,
        attribute: TaskAttribute::Simple,
        data_out_len: 0,
        unit_attention: None,
        read_only: false,
    };
    assert_eq!(server.handle_command(NOW, again, DataOut::None), Err(DuplicateTask));
    assert!(actions(&mut server).is_empty());
}

#[test]
fn write_without_cache_is_asked_for_as_durable() {
    for (write_cache, durable) in [(true, false), (false, true)] {
        let mut server = server_with(write_cache);
        send(&mut server, 1, &WRITE, DataOut::Ready(&[0; 512]));
        let extent = Extent { lba: 0, blocks: 1 };
        let expected = Action::Write { task: TaskId(1), extent, data_offset: 0, fua: durable };
        assert_eq!(actions(&mut server), [expected]);
        assert_eq!(server.oldest_submission(), Some(NOW));
        server.handle_io(NOW, TaskId(1), IoDone::Done);
        assert_eq!(completion(&mut server, 1).transfer_len, 512);
        assert_eq!(server.oldest_submission(), None);
    }
}

#[test]
fn write_same_of_zeroes_with_unmap_may_deallocate() {
    let mut cdb = [0x41, 0x08, 0, 0, 0, 0, 0, 0, 4, 0];
    for (byte, unmap, expected) in [
        (0, true, (WriteSameSource::Zeroes, true)),
        (1, true, (WriteSameSource::DataOutBlock, false)),
        (0, false, (WriteSameSource::DataOutBlock, false)),
    ] {
        cdb[1] = if unmap { 0x08 } else { 0 };
        let mut server = server();
        send(&mut server, 1, &cdb, DataOut::Ready(&[byte; 512]));
        let [Action::WriteSame { source, deallocate, .. }] = actions(&mut server)[..] else { panic!() };
        assert_eq!((source, deallocate), expected);
    }
}

#[test]
fn data_out_of_the_wrong_length_is_refused_before_it_is_fetched() {
    let caw = [0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0];
    let mut caw_of_nothing = caw;
    caw_of_nothing[13] = 0;
    let (in_unit, in_cdb) = (asc::INVALID_FIELD_IN_COMMAND_IU, asc::INVALID_FIELD_IN_CDB);
    for (cdb, sent, wanted, additional) in [
        (&WRITE[..], 200, 512, in_unit),
        (&[0x8b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0], 512, 1024, in_unit),
        (&[0x41, 0, 0, 0, 0, 0, 0, 0, 1, 0], 1024, 512, in_unit),
        (&caw, 512, 1024, in_cdb),
        (&caw, 2048, 1024, in_cdb),
        (&caw_of_nothing, 512 * 512, 0, in_cdb),
    ] {
        let mut server = server();
        send(&mut server, 1, cdb, DataOut::Ready(&vec![0; sent]));
        let refused = completion(&mut server, 1);
        assert_eq!(sense_of(&refused), (SenseKey::IllegalRequest, additional));
        assert_eq!(refused.transfer_len, wanted);
    }
    let mut server = server();
    send(&mut server, 1, &caw_of_nothing, DataOut::None);
    assert_eq!(completion(&mut server, 1).status, Status::Good);
    send(&mut server, 2, &WRITE, DataOut::Ready(&[0; 2048]));
    assert_eq!(actions(&mut server).len(), 1, "more than a WRITE wants is a residual, no error");
}

#[test]
fn write_of_fewer_blocks_than_the_cdb_asks_for_writes_what_was_announced() {
    let mut three = WRITE;
    three[8] = 3;
    for (cdb0, sent) in [(0x2a, 0), (0x2a, 512), (0x2a, 1024), (0x2e, 1024)] {
        three[0] = cdb0;
        let mut server = server();
        send(&mut server, 1, &three, DataOut::Ready(&vec![0; sent as usize]));
        if sent > 0 {
            let [Action::Write { extent, .. }] = actions(&mut server)[..] else { panic!() };
            assert_eq!(extent, Extent { lba: 0, blocks: sent / 512 });
            server.handle_io(NOW, TaskId(1), IoDone::Done);
        }
        if cdb0 == 0x2e {
            let [Action::Read { extent, .. }] = actions(&mut server)[..] else { panic!() };
            assert_eq!(extent.blocks, sent / 512, "no more is verified than was written");
            server.handle_io(NOW, TaskId(1), IoDone::Read(&vec![0; sent as usize]));
        }
        let done = completion(&mut server, 1);
        assert_eq!((done.status, done.transfer_len), (Status::Good, 3 * 512), "{sent}");
    }
}

#[test]
fn data_that_was_announced_and_did_not_come_writes_nothing() {
    let mut two = WRITE;
    two[8] = 2;
    let mut server = server();
    let request = CommandRequest {
        task: TaskId(1),
        nexus: &nexus(1),
        cdb: &two,
        attribute: TaskAttribute::Simple,
        data_out_len: 1024,
        unit_attention: None,
        read_only: false,
    };
    server.handle_command(NOW, request, DataOut::Awaited).unwrap();
    server.handle_data_out(NOW, TaskId(1), &[0; 512]);
    let refused = completion(&mut server, 1);
    assert_eq!(sense_of(&refused), (SenseKey::IllegalRequest, asc::INVALID_FIELD_IN_COMMAND_IU));
}

#[test]
fn port_that_the_topology_does_not_know_is_not_ready_yet() {
    let mut server = DeviceServer::new(config(100, true));
    send(&mut server, 1, &READ, DataOut::None);
    assert_eq!(sense_of(&completion(&mut server, 1)), (SenseKey::NotReady, asc::ALUA_TRANSITION));
    send(&mut server, 2, &[0x12, 1, 0x83, 0, 255, 0], DataOut::None);
    assert_eq!(completion(&mut server, 2).status, Status::Busy);
}

#[test]
fn not_executed_is_busy_unless_something_was_written() {
    let mut server = server();
    send(&mut server, 1, &WRITE, DataOut::Ready(&[0; 512]));
    actions(&mut server);
    server.handle_io(NOW, TaskId(1), IoDone::Failed(IoFailure::NotExecuted));
    assert_eq!(completion(&mut server, 1).status, Status::Busy);

    let write_and_verify = [0x2e, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    send(&mut server, 2, &write_and_verify, DataOut::Ready(&[0; 512]));
    actions(&mut server);
    server.handle_io(NOW, TaskId(2), IoDone::Done);
    actions(&mut server);
    server.handle_io(NOW, TaskId(2), IoDone::Failed(IoFailure::NotExecuted));
    assert_eq!(sense_of(&completion(&mut server, 2)).0, SenseKey::AbortedCommand);
}

#[test]
fn io_failures_have_their_sense() {
    let cases = [
        (IoFailure::NoSpace, SenseKey::DataProtect, asc::SPACE_ALLOCATION_FAILED),
        (IoFailure::Medium { lba: Some(0) }, SenseKey::MediumError, asc::WRITE_ERROR),
        (IoFailure::Hardware, SenseKey::HardwareError, asc::INTERNAL_TARGET_FAILURE),
        (IoFailure::Unknown, SenseKey::AbortedCommand, asc::COMMUNICATION_FAILURE),
    ];
    for (failure, key, additional) in cases {
        let mut server = server();
        send(&mut server, 1, &WRITE, DataOut::Ready(&[0; 512]));
        actions(&mut server);
        server.handle_io(NOW, TaskId(1), IoDone::Failed(failure));
        assert_eq!(sense_of(&completion(&mut server, 1)), (key, additional));
    }
}

#[test]
fn read_that_returns_another_length_is_an_error() {
    let mut server = server();
    send(&mut server, 1, &READ, DataOut::None);
    actions(&mut server);
    server.handle_io(NOW, TaskId(1), IoDone::Read(&[0; 511]));
    assert_eq!(sense_of(&completion(&mut server, 1)).0, SenseKey::HardwareError);
    server.handle_io(NOW, TaskId(1), IoDone::Read(&[0; 512]));
    assert!(actions(&mut server).is_empty(), "late answers are ignored");
}

#[test]
fn write_that_waited_while_the_unit_shrank_is_out_of_range() {
    let mut server = server();
    let mut at_the_end = WRITE;
    at_the_end[5] = 99;
    send(&mut server, 1, &at_the_end, DataOut::Awaited);
    assert!(actions(&mut server).is_empty());
    server.install_config(config(50, true));
    server.handle_data_out(NOW, TaskId(1), &[0; 512]);
    let refused = completion(&mut server, 1).sense.unwrap();
    assert_eq!(refused, Sense::lba_out_of_range(99));
}

#[test]
fn older_versions_are_not_installed() {
    let mut server = server();
    server.install_state(NOW, 5, registered().into());
    server.install_state(NOW, 4, LuState::default());
    server.install_state(NOW, 5, LuState::default());
    assert_eq!(server.state(), (5, &registered().into()));
    assert_eq!(actions(&mut server), [Action::ReservationsDrained { version: 5 }]);
}

#[test]
fn persistent_reserve_in_shows_settled_versions_only() {
    let mut server = server();
    server.install_state(NOW, 5, registered().into());
    actions(&mut server);
    send(&mut server, 1, &READ_KEYS, DataOut::None);
    send(&mut server, 2, &READ_KEYS, DataOut::None);
    assert_eq!(actions(&mut server), [Action::AwaitBarrier { version: 5 }], "asked for once");
    server.handle_barrier(NOW, 4);
    assert!(actions(&mut server).is_empty());
    server.install_state(NOW, 6, LuState::default());
    server.handle_barrier(NOW, 5);
    let now = [Action::ReservationsDrained { version: 6 }, Action::AwaitBarrier { version: 6 }];
    let mut asked = actions(&mut server);
    asked.sort_by_key(|a| matches!(a, Action::AwaitBarrier { .. }));
    assert_eq!(asked, now);
    server.handle_barrier(NOW, 6);
    assert_eq!(actions(&mut server).len(), 2);
}

#[test]
fn request_that_changes_nothing_is_good_only_once_its_state_is_settled() {
    let mut server = server();
    server.install_state(NOW, 5, registered().into());
    actions(&mut server);
    let nothing = [0; 24];
    send(&mut server, 1, &REGISTER, DataOut::Ready(&nothing));
    assert_eq!(actions(&mut server), [Action::AwaitBarrier { version: 5 }]);
    server.handle_barrier(NOW, 5);
    assert_eq!(completion(&mut server, 1).status, Status::Good);
}

#[test]
fn committed_change_is_good_only_once_it_is_installed() {
    let mut server = server();
    let mut list = [0; 24];
    list[15] = 1;
    send(&mut server, 1, &REGISTER, DataOut::Ready(&list));
    let [Action::ProposeChange { expected_version: 0, .. }] = actions(&mut server)[..] else { panic!() };
    server.handle_proposal(NOW, TaskId(1), ProposalOutcome::Committed { version: 3 });
    assert!(actions(&mut server).is_empty());
    server.install_state(NOW, 3, registered().into());
    let ended = actions(&mut server);
    assert!(ended.contains(&Action::ReservationsDrained { version: 3 }), "{ended:?}");
    assert_eq!(ended.iter().filter(|a| matches!(a, Action::Complete { .. })).count(), 1);
}

#[test]
fn unknown_outcome_of_a_proposal_is_neither_good_nor_busy() {
    let mut server = server();
    let mut list = [0; 24];
    list[15] = 1;
    send(&mut server, 1, &REGISTER, DataOut::Ready(&list));
    actions(&mut server);
    server.handle_proposal(NOW, TaskId(1), ProposalOutcome::Unknown);
    assert_eq!(sense_of(&completion(&mut server, 1)).0, SenseKey::AbortedCommand);
}

#[test]
fn aborted_proposal_ends_when_its_outcome_is_known() {
    let mut server = server();
    let mut list = [0; 24];
    list[15] = 1;
    send(&mut server, 1, &REGISTER, DataOut::Ready(&list));
    actions(&mut server);
    let abort = TaskManagementFunction::AbortTask(TaskId(1));
    server.handle_task_management(NOW, TaskManagementRequest { id: 8, nexus: &nexus(1), function: abort });
    assert!(actions(&mut server).is_empty());
    server.handle_proposal(NOW, TaskId(1), ProposalOutcome::NotProposed);
    let aborted = Action::Complete { task: TaskId(1), response: Response::Aborted };
    let done = Action::TaskManagementDone { id: 8, response: TmfResponse::Complete };
    assert_eq!(actions(&mut server), [aborted, done]);
}

#[test]
fn aca_attribute_without_the_condition_is_refused() {
    let mut server = server();
    let request = CommandRequest {
        task: TaskId(1),
        nexus: &nexus(1),
        cdb: &TUR,
        attribute: TaskAttribute::Aca,
        data_out_len: 0,
        unit_attention: None,
        read_only: false,
    };
    server.handle_command(NOW, request, DataOut::None).unwrap();
    let refused = completion(&mut server, 1);
    assert_eq!(sense_of(&refused), (SenseKey::IllegalRequest, asc::INVALID_MESSAGE_ERROR));
    send(&mut server, 2, &[0, 0, 0, 0, 0, 4], DataOut::None);
    assert_eq!(completion(&mut server, 2).status, Status::Good);
}

#[test]
fn long_parameter_data_is_complete() {
    let mut server = server();
    let many = (0..300u32).map(|n| crate::pr::Registrant {
        nexus: Nexus::new(TransportId::sas(u64::from(n).to_be_bytes()), RelativePort(1)),
        key: 1,
        all_target_ports: false,
    });
    server.install_state(NOW, 1, (Reservations::from_parts(1, false, many.collect(), None).unwrap()).into());
    server.handle_barrier(NOW, 1);
    actions(&mut server);
    send(&mut server, 1, &[0x5e, 3, 0, 0, 0, 0, 0, 0xff, 0xff, 0], DataOut::None);
    let DataIn::Bytes(data) = completion(&mut server, 1).data_in else { panic!() };
    assert_eq!(data.len(), 8 + 300 * 48);
}
