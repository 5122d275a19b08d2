//! Data in both directions: writes by every way that data may come, reads cut and put together again, residuals, memory.

mod support;

use holdfast_iscsi::initiator::TargetPdu;
use holdfast_iscsi::pdu::Residual;
use holdfast_iscsi::{Condition, DataState, Event, Payload, PortalOptions, ScsiOutcome, TaskTag};
use proptest::prelude::*;
use support::{Portal, pattern, read, write};

/// Plays a write to its end and gives the data that the shell got, and the answer.
fn play_write(portal: &mut Portal, data: &[u8]) -> (Vec<u8>, TargetPdu) {
    portal.command(&write(data));
    let Event::Command(command) = portal.events.remove(0) else { panic!("not a command") };
    assert_eq!((command.write, command.data_out_len as usize), (true, data.len()));
    let got = match command.data {
        DataState::None => vec![],
        DataState::Complete(data) => data,
        DataState::Awaited => answer_r2ts(portal, data, command.tag),
    };
    portal.connection.complete(command.tag, ScsiOutcome::status(0));
    let mut received = portal.received();
    assert_eq!(received.len(), 1, "{received:?}");
    (got, received.remove(0).pdu)
}

fn answer_r2ts(portal: &mut Portal, data: &[u8], tag: TaskTag) -> Vec<u8> {
    let parameters = portal.connection.parameters().unwrap().clone();
    let mut r2t_sn = 0;
    loop {
        if !portal.events.is_empty() {
            let Event::DataOut { tag: of, data } = portal.event() else { panic!("not data") };
            assert_eq!(of, tag);
            return data;
        }
        let received = portal.received();
        assert!((1..=parameters.max_outstanding_r2t as usize).contains(&received.len()), "{received:?}");
        for pdu in received {
            let TargetPdu::ReadyToTransfer(r2t) = pdu.pdu else { panic!("{pdu:?}") };
            assert!((1..=parameters.max_burst_length).contains(&r2t.desired_len));
            assert_eq!(r2t.r2t_sn, r2t_sn);
            r2t_sn += 1;
            let segment = parameters.recv_data_segment_length as usize;
            let bytes = portal.initiator.solicited(&r2t, data, segment);
            portal.give(&bytes);
        }
    }
}

fn yes_no(yes: bool) -> &'static str {
    if yes { "Yes" } else { "No" }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn a_write_arrives_whole_with_every_combination_of_keys(
        len in prop_oneof![0usize..3, 500usize..1500, 0usize..100_000],
        segment in 512u32..20_000,
        max_burst in 512u32..60_000,
        first_burst in 512u32..60_000,
        (initial_r2t, immediate_data, header_digest, data_digest) in any::<(bool, bool, bool, bool)>(),
        outstanding in 1u32..5,
        split in 1usize..5000,
    ) {
        let mut portal = Portal::new(PortalOptions {
            max_recv_data_segment_length: segment,
            max_outstanding_r2t: 4,
            ..PortalOptions::default()
        });
        portal.split = split;
        let digest = |yes| if yes { "CRC32C" } else { "None" };
        let parameters = portal.log_in(&[
            ("MaxBurstLength", &max_burst.to_string()),
            ("FirstBurstLength", &first_burst.to_string()),
            ("InitialR2T", yes_no(initial_r2t)),
            ("ImmediateData", yes_no(immediate_data)),
            ("MaxOutstandingR2T", &outstanding.to_string()),
            ("HeaderDigest", digest(header_digest)),
            ("DataDigest", digest(data_digest)),
            ("DataPDUInOrder", "No"),
            ("DataSequenceInOrder", "No"),
        ]);
        prop_assert_eq!((parameters.initial_r2t, parameters.immediate_data), (initial_r2t, immediate_data));
        let data = pattern(len);
        for _ in 0..2 {
            let (got, answer) = play_write(&mut portal, &data);
            prop_assert!(got == data);
            let TargetPdu::ScsiResponse(response) = answer else { panic!("{answer:?}") };
            prop_assert_eq!((response.status, response.residual), (0, Residual::None));
        }
        prop_assert!(portal.closed.is_none());
    }

    #[test]
    fn a_read_arrives_whole(
        len in 0usize..60_000,
        expected in 0u32..60_000,
        segment in 512u32..9000,
        max_burst in 512u32..20_000,
        data_digest in any::<bool>(),
    ) {
        let mut portal = Portal::default();
        portal.log_in(&[
            ("MaxRecvDataSegmentLength", &segment.to_string()),
            ("MaxBurstLength", &max_burst.to_string()),
            ("DataDigest", if data_digest { "CRC32C" } else { "None" }),
        ]);
        portal.command(&read(0, expected));
        let command = portal.command_event();
        let data = pattern(len + 7);
        let payload = Payload::part(data.clone(), 7..len + 7);
        portal.connection.complete(command.tag, ScsiOutcome::status(0).with_data_in(payload));
        let (mut got, mut status, mut data_sn) = (Vec::new(), None, 0);
        for received in portal.received() {
            prop_assert!(status.is_none());
            match received.pdu {
                TargetPdu::DataIn(pdu) => {
                    prop_assert_eq!((pdu.buffer_offset as usize, pdu.data_sn), (got.len(), data_sn));
                    prop_assert!(received.data.len() <= segment as usize && !received.data.is_empty());
                    data_sn += 1;
                    got.extend(received.data);
                    status = pdu.status.map(|status| (status.status, status.residual));
                }
                TargetPdu::ScsiResponse(pdu) => {
                    prop_assert_eq!(pdu.exp_data_sn, data_sn);
                    status = Some((pdu.status, pdu.residual));
                }
                other => panic!("{other:?}"),
            }
        }
        let sent = len.min(expected as usize);
        prop_assert!(got == data[7..7 + sent]);
        let residual = match len.cmp(&(expected as usize)) {
            std::cmp::Ordering::Less => Residual::Underflow(expected - len as u32),
            std::cmp::Ordering::Equal => Residual::None,
            std::cmp::Ordering::Greater => Residual::Overflow(len as u32 - expected),
        };
        prop_assert_eq!(status, Some((0, residual)));
    }
}

#[test]
fn good_status_rides_in_the_last_data_in() {
    let mut portal = Portal::default();
    portal.log_in(&[]);
    portal.command(&read(0, 512));
    let tag = portal.command_event().tag;
    portal.connection.complete(tag, ScsiOutcome::status(0).with_data_in(Payload::new(vec![1; 512])));
    let received = portal.received();
    assert_eq!(received.len(), 1);
    let TargetPdu::DataIn(pdu) = received[0].pdu else { panic!("{received:?}") };
    assert!(pdu.last && pdu.status.is_some());
}

#[test]
fn sense_goes_in_a_response_after_the_data() {
    let mut portal = Portal::default();
    portal.log_in(&[]);
    portal.command(&read(0, 512));
    let tag = portal.command_event().tag;
    let outcome = ScsiOutcome::status(2).with_sense(vec![0x70; 18]).with_data_in(Payload::new(vec![1; 100]));
    portal.connection.complete(tag, outcome);
    let received = portal.received();
    let TargetPdu::DataIn(pdu) = received[0].pdu else { panic!("{received:?}") };
    assert!(pdu.last && pdu.status.is_none());
    let TargetPdu::ScsiResponse(pdu) = received[1].pdu else { panic!("{received:?}") };
    assert_eq!((pdu.status, pdu.residual, pdu.exp_data_sn), (2, Residual::Underflow(412), 1));
    assert_eq!(received[1].data, [&[0, 18][..], &[0x70; 18]].concat());
}

#[test]
fn a_write_that_needs_less_or_more_than_was_expected_has_a_residual() {
    for (wants, residual) in [(512, Residual::Underflow(512)), (4096, Residual::Overflow(3072))] {
        let mut portal = Portal::default();
        portal.log_in(&[]);
        portal.command(&write(&pattern(1024)));
        let tag = portal.command_event().tag;
        portal.connection.complete(tag, ScsiOutcome::status(0).with_transfer_len(wants));
        let TargetPdu::ScsiResponse(pdu) = portal.received()[0].pdu else { panic!() };
        assert_eq!(pdu.residual, residual);
    }
}

#[test]
fn a_task_that_ends_early_drops_what_still_comes() {
    let mut portal = Portal::default();
    portal.log_in(&[("ImmediateData", "No")]);
    let data = pattern(8192);
    portal.command(&write(&data));
    let tag = portal.command_event().tag;
    let TargetPdu::ReadyToTransfer(r2t) = portal.received()[0].pdu else { panic!() };
    let sense = vec![0x70, 0, 5];
    portal.connection.complete(tag, ScsiOutcome::status(2).with_sense(sense));
    let TargetPdu::ScsiResponse(pdu) = portal.received()[0].pdu else { panic!() };
    assert_eq!((pdu.status, pdu.residual), (2, Residual::Underflow(8192)));
    let held = portal.connection.bytes_held();
    let late = portal.initiator.solicited(&r2t, &data, 512);
    assert!(portal.exchange(&late).is_empty());
    assert!(portal.events.is_empty() && portal.closed.is_none());
    assert!(portal.connection.bytes_held() <= held);
    let (got, _) = play_write(&mut portal, &data);
    assert!(got == data);
}

#[test]
fn solicited_data_waits_for_memory_in_order() {
    let mut portal = Portal::new(PortalOptions {
        data_out_len_max: 64 * 1024,
        data_out_bytes_max: 100 * 1024,
        ..PortalOptions::default()
    });
    portal.log_in(&[("ImmediateData", "No")]);
    let data = pattern(64 * 1024);
    for _ in 0..3 {
        portal.command(&write(&data));
    }
    let tags: Vec<TaskTag> = portal
        .events
        .drain(..)
        .map(|event| match event {
            Event::Command(command) => command.tag,
            other => panic!("{other:?}"),
        })
        .collect();
    let mut r2ts = portal.received();
    for (turn, tag) in tags.iter().enumerate() {
        assert_eq!(r2ts.len(), 1, "one R2T fits the budget at a time: {r2ts:?}");
        let TargetPdu::ReadyToTransfer(r2t) = r2ts[0].pdu else { panic!("{r2ts:?}") };
        assert!(portal.connection.bytes_held() <= 100 * 1024);
        let bytes = portal.initiator.solicited(&r2t, &data, 8192);
        portal.give(&bytes);
        let Event::DataOut { tag: of, data: got } = portal.event() else { panic!() };
        assert!(of == *tag && got == data);
        assert!(portal.received().is_empty(), "memory is held until the task ends");
        portal.connection.complete(*tag, ScsiOutcome::status(0));
        r2ts = portal.received();
        r2ts.retain(|received| matches!(received.pdu, TargetPdu::ReadyToTransfer(_)));
        assert_eq!(r2ts.is_empty(), turn == 2);
    }
}

#[test]
fn a_damaged_data_out_fails_its_task_alone() {
    let mut portal = Portal::default();
    portal.log_in(&[("ImmediateData", "No"), ("DataDigest", "CRC32C")]);
    let data = pattern(1024);
    portal.command(&write(&data));
    let tag = portal.command_event().tag;
    let TargetPdu::ReadyToTransfer(r2t) = portal.received()[0].pdu else { panic!() };
    let mut bytes = portal.initiator.solicited(&r2t, &data, 512);
    bytes[60] ^= 1;
    let rejects = portal.exchange(&bytes);
    assert!(matches!(rejects[..], [ref one] if matches!(one.pdu, TargetPdu::Reject(_))), "{rejects:?}");
    let Event::DataOutFailed { tag: of, condition } = portal.event() else { panic!() };
    assert_eq!((of, condition), (tag, Condition::ProtocolServiceCrcError));
    portal.connection.discard_task(tag);
    let received = portal.received();
    let TargetPdu::ScsiResponse(pdu) = received[0].pdu else { panic!("{received:?}") };
    assert_eq!((pdu.status, received[0].data[14], received[0].data[15]), (2, 0x47, 0x05));
    assert!(portal.closed.is_none());
}

#[test]
fn what_is_expected_beyond_the_bound_is_not_solicited() {
    let mut portal = Portal::new(PortalOptions { data_out_len_max: 64 * 1024, ..PortalOptions::default() });
    portal.log_in(&[("ImmediateData", "No")]);
    let data = pattern(64 * 1024);
    let request = holdfast_iscsi::initiator::CommandRequest { expected_data_len: u32::MAX, ..write(&data) };
    portal.command(&request);
    let command = portal.command_event();
    assert_eq!((command.expected_data_len, command.data_out_len), (u32::MAX, 64 * 1024));
    assert!(answer_r2ts(&mut portal, &data, command.tag) == data);
    portal.connection.complete(command.tag, ScsiOutcome::status(0));
    let TargetPdu::ScsiResponse(pdu) = portal.received()[0].pdu else { panic!() };
    assert_eq!(pdu.residual, Residual::Underflow(u32::MAX - 64 * 1024));
}

#[test]
fn a_small_write_does_not_overtake_a_large_one_that_waits_for_memory() {
    let mut portal = Portal::new(PortalOptions {
        data_out_len_max: 64 * 1024,
        data_out_bytes_max: 100 * 1024,
        ..PortalOptions::default()
    });
    portal.log_in(&[("ImmediateData", "No")]);
    let (large, small) = (pattern(64 * 1024), pattern(8 * 1024));
    let tags = [&large, &large, &small].map(|data| {
        portal.command(&write(data));
        (portal.command_event().tag, portal.received().len())
    });
    assert_eq!(tags.map(|(_, r2ts)| r2ts), [1, 0, 0]);
    portal.connection.discard_task(tags[0].0);
    let received = portal.received();
    let asked = received.iter().filter(|r| matches!(r.pdu, TargetPdu::ReadyToTransfer(_))).count();
    assert_eq!(asked, 2, "both fit now");
    portal.connection.discard_task(tags[1].0);
    portal.connection.discard_task(tags[2].0);
    assert_eq!(play_write(&mut portal, &large).0, large, "all memory came back");
}

/// A write of which all data comes unasked, sent behind a gap in the numbering; then the gap is filled.
fn early_write(portal: &mut Portal, data: &[u8], damage: bool) -> Vec<TargetPdu> {
    let parameters =
        portal.log_in(&[("ImmediateData", "No"), ("InitialR2T", "No"), ("DataDigest", "CRC32C")]);
    let missing = portal.initiator.cmd_sn;
    portal.initiator.cmd_sn += 1;
    let (_, mut bytes) = portal.initiator.command(&parameters, &write(data));
    if damage {
        let last = bytes.len() - 5;
        bytes[last] ^= 1;
    }
    portal.give(&bytes);
    assert!(portal.events.is_empty(), "nothing before its turn: {:?}", portal.events);
    portal.initiator.cmd_sn = missing;
    let (_, bytes) = portal.initiator.ping(false, b"");
    portal.give(&bytes);
    portal.received().into_iter().map(|received| received.pdu).collect()
}

#[test]
fn an_early_write_is_handed_on_whole_when_its_turn_comes() {
    let (mut portal, data) = (Portal::default(), pattern(4096));
    early_write(&mut portal, &data, false);
    let DataState::Complete(got) = portal.command_event().data else { panic!("all is here") };
    assert!(got == data);
}

#[test]
fn an_early_write_that_was_damaged_is_answered_when_its_turn_comes() {
    let mut portal = Portal::default();
    let said = early_write(&mut portal, &pattern(4096), true);
    let [TargetPdu::Reject(_), TargetPdu::NopIn(_), TargetPdu::ScsiResponse(answer)] = said[..] else {
        panic!("{said:?}")
    };
    assert_eq!(answer.status, 2);
    assert!(portal.events.is_empty(), "the shell never saw it");
}
