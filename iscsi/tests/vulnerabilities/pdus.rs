//! What a logged-in initiator can send.

use crate::support::{Portal, pattern, read, write};
use holdfast_iscsi::initiator::{CommandRequest, Received, TargetPdu};
use holdfast_iscsi::pdu::{AsyncEvent, Bhs, RejectReason, TAG_NONE, TextRequest};
use holdfast_iscsi::{
    CloseReason, DataState, Event, Payload, PortalOptions, ScsiOutcome, TaskManagementFunction,
    TaskManagementResponse, TaskTag, Violation,
};

pub fn rejects(received: &[Received]) -> Vec<RejectReason> {
    let reason = |received: &Received| match received.pdu {
        TargetPdu::Reject(pdu) => Some(pdu.reason),
        _ => None,
    };
    received.iter().filter_map(reason).collect()
}

pub fn good_status(portal: &mut Portal, tag: TaskTag) {
    portal.connection.complete(tag, ScsiOutcome::status(0));
    let received = portal.received();
    assert!(matches!(received[0].pdu, TargetPdu::ScsiResponse(pdu) if pdu.status == 0), "{received:?}");
}

/// Every length of additional headers x data x padding x digests, split at every boundary: read alike.
#[test]
fn every_boundary_of_headers_data_padding_and_digests() {
    for (header_digest, data_digest) in [(false, false), (true, false), (false, true), (true, true)] {
        let digest = |yes| if yes { "CRC32C" } else { "None" };
        for cdb_len in [6, 16, 17, 20, 31, 32, 255, 260] {
            for data_len in [0, 1, 2, 3, 4, 5, 511, 512] {
                let (cdb, data) = (pattern(cdb_len), pattern(data_len));
                for split in [1, 3, 48, 49, 52, usize::MAX] {
                    let mut portal = Portal::default();
                    portal.log_in(&[
                        ("HeaderDigest", digest(header_digest)),
                        ("DataDigest", digest(data_digest)),
                    ]);
                    portal.split = split;
                    portal.command(&CommandRequest { cdb: &cdb, ..write(&data) });
                    let command = portal.command_event();
                    let mut expected = cdb.clone();
                    expected.resize(cdb_len.max(16), 0);
                    assert_eq!(command.cdb.as_bytes(), expected);
                    match command.data {
                        DataState::Complete(got) => assert_eq!(got, data),
                        DataState::None => assert!(data.is_empty()),
                        DataState::Awaited => panic!("all was sent"),
                    }
                }
            }
        }
    }
}

/// AHS that lie about their length, kind or number; each ends the session.
#[test]
fn malformed_additional_headers() {
    for additional in [
        &[0xff, 0xff, 1, 0][..],
        &[0, 9, 2, 0, 0, 0, 0, 0],
        &[0, 5, 7, 0, 0, 0, 0, 0],
        &[0, 5, 2, 0, 0, 0, 0, 0, 0, 5, 2, 0, 0, 0, 0, 0],
        &[0; 256],
        &[0; 1020],
    ] {
        let mut portal = Portal::default();
        let parameters = portal.log_in(&[]);
        let (_, bytes) = portal.initiator.command(&parameters, &read(0, 0));
        let header = Bhs(bytes[..48].try_into().unwrap());
        let bytes = portal.initiator.frame(header, additional, &[]);
        portal.give(&bytes);
        assert_eq!(portal.closed, Some(CloseReason::ProtocolError(Violation::AdditionalHeader)));
        assert!(portal.events.is_empty());
    }
}

/// An initiator task tag in use again: the second is rejected, the first goes on, the numbering too.
#[test]
fn initiator_task_tag_reuse() {
    let mut portal = Portal::default();
    portal.log_in(&[]);
    let used = portal.command(&read(0, 512));
    let tag = portal.command_event().tag;
    portal.initiator.next_tag = used;
    portal.command(&read(0, 512));
    assert_eq!(rejects(&portal.received()), [RejectReason::TaskInProgress]);
    portal.initiator.next_tag = 100;
    portal.command(&read(0, 512));
    let other = portal.command_event().tag;
    portal.connection.complete(tag, ScsiOutcome::status(0).with_data_in(Payload::new(vec![1; 512])));
    assert_eq!(portal.received().len(), 1);
    portal.initiator.next_tag = used;
    portal.command(&read(0, 512));
    assert_ne!(portal.command_event().tag, other, "free again");
}

/// A text response is never longer than the initiator's MaxRecvDataSegmentLength.
#[test]
fn text_response_over_the_initiators_limit() {
    let mut portal = Portal::default();
    let keys = [
        ("InitiatorName", crate::support::INITIATOR),
        ("SessionType", "Discovery"),
        ("MaxRecvDataSegmentLength", "512"),
    ];
    let stage = holdfast_iscsi::pdu::Stage::Operational;
    let request = portal.initiator.login(stage, Some(holdfast_iscsi::pdu::Stage::FullFeature), &keys);
    portal.finish_login(&request);
    let long: Vec<String> = (0..60).map(|n| format!("X-{n:050}")).collect();
    let mut keys: Vec<_> = long.iter().map(|key| (key.as_str(), "")).collect();
    keys.push(("SendTargets", "All"));
    let (tag, request) = portal.initiator.text(&keys);
    let mut received = portal.exchange(&request);
    let mut text = Vec::new();
    loop {
        assert_eq!(received.len(), 1);
        let TargetPdu::Text(pdu) = received[0].pdu else { panic!("{received:?}") };
        assert!(received[0].data.len() <= 512);
        text.extend_from_slice(&received[0].data);
        if pdu.last {
            break;
        }
        assert!(pdu.more);
        let header = TextRequest {
            last: true,
            more: false,
            lun: [0; 8],
            initiator_task_tag: tag,
            target_transfer_tag: pdu.target_transfer_tag,
            numbers: portal.initiator.numbers(true),
        };
        let request = portal.initiator.frame(header.encode(), &[], &[]);
        received = portal.exchange(&request);
    }
    let text = String::from_utf8(text).unwrap();
    assert_eq!(text.matches("NotUnderstood").count(), 60);
    assert!(text.ends_with("TargetAddress=127.0.0.2:3260,2\0"));
}

/// A text request without end, with a wrong tag, and one while the shell thinks.
#[test]
fn text_requests_are_bounded_and_one_at_a_time() {
    let mut portal = Portal::default();
    portal.log_in(&[]);
    let mut tag = TAG_NONE;
    let mut sent = 0;
    let reason = loop {
        let header = TextRequest {
            last: false,
            more: true,
            lun: [0; 8],
            initiator_task_tag: 5,
            target_transfer_tag: tag,
            numbers: portal.initiator.numbers(true),
        };
        let request = portal.initiator.frame(header.encode(), &[], &[b'a'; 1000]);
        let received = portal.exchange(&request);
        sent += 1;
        assert!(sent < 10 && portal.connection.bytes_held() < 64 * 1024);
        match received[0].pdu {
            TargetPdu::Text(pdu) => tag = pdu.target_transfer_tag,
            TargetPdu::Reject(pdu) => break pdu.reason,
            ref other => panic!("{other:?}"),
        }
    };
    assert_eq!(reason, RejectReason::ProtocolError);
    let header = TextRequest {
        last: true,
        more: false,
        lun: [0; 8],
        initiator_task_tag: 6,
        target_transfer_tag: 0x1234,
        numbers: portal.initiator.numbers(true),
    };
    let request = portal.initiator.frame(header.encode(), &[], &[]);
    assert_eq!(rejects(&portal.exchange(&request)), [RejectReason::InvalidPduField]);
}

/// CmdSN outside the window is ignored in silence, and so is a duplicate; order is restored; the window never closes
/// for good.
#[test]
fn command_window() {
    let options = PortalOptions { command_window: 4, ..PortalOptions::default() };
    let mut portal = Portal::new(options);
    let parameters = portal.log_in(&[]);
    let first = portal.initiator.cmd_sn;
    assert_eq!(portal.initiator.max_cmd_sn(), first + 3);
    // Third, fourth, first (held until the second), a duplicate, one beyond the window, one long past.
    for cmd_sn in [2, 3, 0, 2, 4, u32::MAX] {
        portal.initiator.cmd_sn = first.wrapping_add(cmd_sn);
        let (_, bytes) = portal.initiator.command(&parameters, &read(cmd_sn as u8, 0));
        portal.give(&bytes);
    }
    let luns = |portal: &mut Portal| -> Vec<(u8, TaskTag)> {
        let events = portal.events.drain(..);
        let commands = events.map(|event| match event {
            Event::Command(command) => (command.lun[1], command.tag),
            other => panic!("{other:?}"),
        });
        commands.collect()
    };
    let mut tasks = luns(&mut portal);
    assert_eq!(tasks.iter().map(|task| task.0).collect::<Vec<_>>(), [0]);
    portal.initiator.cmd_sn = first + 1;
    let (_, bytes) = portal.initiator.command(&parameters, &read(1, 0));
    portal.give(&bytes);
    tasks.extend(luns(&mut portal));
    assert_eq!(tasks.iter().map(|task| task.0).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert!(portal.received().is_empty(), "what was ignored is not answered");
    // The window is full now.
    portal.initiator.cmd_sn = first + 4;
    let (_, bytes) = portal.initiator.command(&parameters, &read(4, 0));
    portal.give(&bytes);
    assert!(portal.events.is_empty());
    for (done, (_, tag)) in tasks.into_iter().enumerate() {
        portal.connection.complete(tag, ScsiOutcome::status(0));
        portal.received();
        assert_eq!(portal.initiator.max_cmd_sn(), first + 4 + done as u32);
    }
    portal.give(&bytes);
    assert_eq!(luns(&mut portal).len(), 1);
}

/// CmdSN goes round 2^32.
#[test]
fn command_numbers_wrap() {
    let mut portal = Portal::default();
    portal.initiator.cmd_sn = u32::MAX - 2;
    portal.log_in(&[]);
    for _ in 0..6 {
        portal.command(&read(0, 0));
        let tag = portal.command_event().tag;
        good_status(&mut portal, tag);
    }
}

/// Immediate commands without end: a few are taken, the rest rejected, memory stays.
#[test]
fn immediate_flood() {
    let mut portal = Portal::default();
    portal.log_in(&[]);
    let data = pattern(4096);
    for _ in 0..100 {
        portal.command(&CommandRequest { immediate: true, ..write(&data) });
    }
    assert_eq!(portal.events.len(), 8);
    assert_eq!(rejects(&portal.received()), vec![RejectReason::ImmediateCommandReject; 92]);
    for _ in 0..100 {
        let (_, bytes) = portal.initiator.task_management(5, [0; 8], TAG_NONE);
        portal.give(&bytes);
    }
    assert_eq!(portal.events.len(), 16);
    assert!(portal.connection.bytes_held() < 1024 * 1024);
}

/// The longest commands that the window lets in, without any data following: memory is not taken on their word.
#[test]
fn expected_lengths_take_no_memory() {
    let mut portal = Portal::default();
    let parameters = portal.log_in(&[("ImmediateData", "No"), ("InitialR2T", "Yes")]);
    for _ in 0..200 {
        let request = CommandRequest { expected_data_len: u32::MAX, data_out: Some(&[]), ..write(&[]) };
        let (_, bytes) = portal.initiator.command(&parameters, &request);
        portal.give(&bytes);
    }
    assert_eq!(portal.events.len(), 128);
    assert!(portal.connection.bytes_held() <= 64 * 1024 * 1024 + 1024 * 1024);
}

/// Requests behind a gap in the numbering are bounded.
#[test]
fn held_requests_are_bounded() {
    let mut portal = Portal::default();
    portal.log_in(&[]);
    portal.initiator.cmd_sn += 1;
    let data = pattern(8000);
    for _ in 0..100 {
        let (_, bytes) = portal.initiator.ping(false, &data);
        portal.give(&bytes);
        assert!(portal.connection.bytes_held() < 512 * 1024);
    }
    assert_eq!(portal.closed, Some(CloseReason::ProtocolError(Violation::TooMuchHeld)));
}

/// A CDB that moves less or more than the initiator expects, both ways, with and without the direction bits.
#[test]
fn cdb_length_against_expected_length() {
    for (is_read, expected, produced) in
        [(true, 512, 4096), (true, 4096, 512), (true, 0, 512), (false, 0, 512), (true, u32::MAX, 512)]
    {
        let mut portal = Portal::default();
        portal.log_in(&[]);
        let request = CommandRequest { read: is_read, ..read(0, expected) };
        portal.command(&request);
        let tag = portal.command_event().tag;
        let outcome = ScsiOutcome::status(0).with_data_in(Payload::new(pattern(produced)));
        portal.connection.complete(tag, outcome);
        let got: usize = portal.received().iter().map(|received| received.data.len()).sum();
        let may = if is_read { expected as usize } else { 0 };
        assert_eq!(got, produced.min(may));
    }
}

/// Header fields that contradict each other end the session.
#[test]
fn contradictions_in_a_command() {
    let change: [fn(&mut [u8]); 4] = [
        |b| b[16..20].fill(0xff), // the reserved tag
        |b| b[1] = 0xc7,          // a reserved attribute
        |b| b[1] = 0x40,          // a read with Data-Outs to follow
        |b| b[7] = 4,             // a read with data
    ];
    for change in change {
        let mut portal = Portal::default();
        let parameters = portal.log_in(&[]);
        let (_, mut bytes) = portal.initiator.command(&parameters, &read(0, 512));
        change(&mut bytes);
        portal.give(&bytes);
        assert!(matches!(portal.closed, Some(CloseReason::ProtocolError(Violation::Header(_)))));
        assert!(portal.events.is_empty());
    }
}

/// A data segment longer than we declared is refused by its header, before it is stored.
#[test]
fn data_segment_longer_than_declared() {
    let mut portal = Portal::default();
    let parameters = portal.log_in(&[]);
    let (_, mut bytes) = portal.initiator.command(&parameters, &write(&pattern(512)));
    bytes[5..8].copy_from_slice(&(256 * 1024 + 1u32).to_be_bytes()[1..]);
    portal.give(&bytes[..48]);
    assert_eq!(portal.closed, Some(CloseReason::ProtocolError(Violation::DataSegmentTooLong)));
}

/// A wrong header digest ends the session; a wrong data digest on a command rejects it and ends the session, for its
/// number cannot be filled again at this recovery level.
#[test]
fn wrong_digests() {
    for (at, expected) in [(20, vec![]), (60, vec![RejectReason::DataDigestError])] {
        let mut portal = Portal::default();
        let parameters = portal.log_in(&[("HeaderDigest", "CRC32C"), ("DataDigest", "CRC32C")]);
        let (_, mut bytes) = portal.initiator.command(&parameters, &write(&pattern(512)));
        bytes[at] ^= 0x10;
        portal.give(&bytes);
        assert_eq!(portal.closed, Some(CloseReason::DigestError));
        assert!(portal.events.is_empty());
        assert_eq!(rejects(&portal.received()), expected);
    }
}

/// Opcodes that a target does not take, in the full feature phase.
#[test]
fn opcodes_out_of_place() {
    let mut portal = Portal::default();
    portal.log_in(&[]);
    for opcode in (0x07..=0x3f).chain([0x03]) {
        let mut bytes = [0; 48];
        bytes[0] = opcode | 0x40;
        assert_eq!(rejects(&portal.exchange(&bytes)).len(), 1, "{opcode:02x}");
    }
    assert!(portal.closed.is_none());
}

/// Discovery sessions carry no SCSI.
#[test]
fn scsi_in_a_discovery_session() {
    let mut portal = Portal::default();
    portal.log_in_for_discovery();
    portal.command(&read(0, 512));
    let (_, bytes) = portal.initiator.task_management(5, [0; 8], TAG_NONE);
    portal.give(&bytes);
    assert_eq!(rejects(&portal.received()), [RejectReason::ProtocolError; 2]);
    assert!(portal.events.is_empty());
}

/// ABORT TASK of a task that exists, that does not, of another LUN, and of one that is missing from the numbering.
#[test]
fn abort_task() {
    let mut portal = Portal::default();
    let parameters = portal.log_in(&[]);
    let referenced = portal.command(&read(0, 512));
    let tag = portal.command_event().tag;
    let answer = |portal: &mut Portal, function, lun, referenced, ref_cmd_sn: u32| {
        let (_, mut bytes) = portal.initiator.task_management(function, lun, referenced);
        bytes[32..36].copy_from_slice(&ref_cmd_sn.to_be_bytes());
        let received = portal.exchange(&bytes);
        received.first().map(|received| match received.pdu {
            TargetPdu::TaskManagement(pdu) => pdu.response,
            ref other => panic!("{other:?}"),
        })
    };
    assert_eq!(answer(&mut portal, 1, [0; 8], 0x5555, 0), Some(1));
    let not_yet_sent = portal.initiator.cmd_sn;
    assert_eq!(answer(&mut portal, 1, [0; 8], 0x5555, not_yet_sent), Some(1));
    assert_eq!(answer(&mut portal, 1, [0; 8], 0x5555, not_yet_sent + 1), Some(1));
    assert_eq!(answer(&mut portal, 1, [1; 8], referenced, 0), Some(1));
    assert_eq!(answer(&mut portal, 8, [0; 8], referenced, 0), Some(4));
    assert_eq!(answer(&mut portal, 9, [0; 8], TAG_NONE, 0), Some(5));
    assert_eq!(answer(&mut portal, 1, [0; 8], referenced, 0), None);
    let Event::TaskManagement(request) = portal.event() else { panic!() };
    assert_eq!(request.function, TaskManagementFunction::AbortTask(tag));
    portal.connection.discard_task(tag);
    portal.connection.task_management_answer(request.id, TaskManagementResponse::Complete);
    portal.connection.task_management_answer(request.id, TaskManagementResponse::Complete);
    let received = portal.received();
    assert!(matches!(received[..], [ref one] if matches!(one.pdu, TargetPdu::TaskManagement(_))));
    portal.connection.complete(tag, ScsiOutcome::status(0));
    assert!(portal.received().is_empty(), "an aborted task is not answered");

    let missing = portal.initiator.cmd_sn;
    portal.initiator.cmd_sn += 1;
    portal.command(&read(9, 0));
    assert!(portal.events.is_empty());
    assert_eq!(answer(&mut portal, 1, [0; 8], 0x6666, missing), Some(0));
    assert!(matches!(portal.event(), Event::Command(_)), "what waited for it is due now");
    portal.initiator.cmd_sn = missing;
    let (_, bytes) = portal.initiator.command(&parameters, &read(8, 0));
    portal.give(&bytes);
    assert!(portal.events.is_empty(), "it was aborted before it came");
}

/// A ping that is not answered ends the session; any sign of life is an answer.
#[test]
fn silence() {
    let mut portal = Portal::default();
    portal.log_in(&[]);
    for _ in 0..3 {
        portal.now = portal.connection.poll_timeout().unwrap();
        portal.connection.handle_timeout(portal.now);
        let received = portal.received();
        let TargetPdu::NopIn(ping) = received[0].pdu else { panic!("{received:?}") };
        assert_ne!(ping.target_transfer_tag, TAG_NONE);
        portal.now.0 += 5;
        let pong = portal.initiator.pong(ping.target_transfer_tag);
        portal.give(&pong);
        assert!(portal.sent().is_empty());
    }
    for _ in 0..2 {
        portal.now = portal.connection.poll_timeout().unwrap();
        portal.connection.handle_timeout(portal.now);
        portal.routine();
    }
    assert_eq!(portal.closed, Some(CloseReason::Silent));
}

/// After a request to log out the initiator has its time, and no more.
#[test]
fn logout_on_request_or_by_force() {
    for obeys in [true, false] {
        let mut portal = Portal::default();
        portal.log_in(&[]);
        portal.connection.request_logout(portal.now, 3);
        assert!(matches!(portal.received()[0].pdu, TargetPdu::Async(_)));
        if obeys {
            let (_, bytes) = portal.initiator.logout();
            assert!(matches!(portal.exchange(&bytes)[0].pdu, TargetPdu::Logout(_)));
            assert_eq!(portal.closed, Some(CloseReason::Logout));
        } else {
            portal.connection.handle_timeout(holdfast_iscsi::Instant(portal.now.0 + 3000));
            portal.routine();
            let told = AsyncEvent::DropSession { time_2_wait: 2, time_2_retain: 0 };
            assert!(matches!(portal.received()[0].pdu, TargetPdu::Async(message) if message.event == told));
            assert_eq!(portal.closed, Some(CloseReason::LogoutOverdue));
        }
    }
}

/// An initiator that sends requests but never reads answers is not read from any more.
#[test]
fn answers_that_nobody_reads() {
    let mut portal = Portal::default();
    portal.log_in(&[]);
    let data = pattern(8192);
    let mut count = 0;
    while portal.connection.wants_input() {
        let (_, bytes) = portal.initiator.ping(true, &data);
        portal.give(&bytes);
        count += 1;
        assert!(count < 2000);
    }
    portal.sent();
    assert!(portal.connection.wants_input());
}
