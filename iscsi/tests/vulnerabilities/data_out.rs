//! What a logged-in initiator can send as Data-Out.

use super::pdus::{good_status, rejects};
use crate::support::{Portal, pattern, read, write};
use holdfast_iscsi::initiator::TargetPdu;
use holdfast_iscsi::pdu::{Bhs, DataOut, ReadyToTransfer, RejectReason, TAG_NONE};
use holdfast_iscsi::{CloseReason, Condition, Event, ScsiOutcome, TaskTag, Violation};

/// A session with a write of 8 KiB whose one R2T is out.
fn solicited(keys: &[(&str, &str)]) -> (Portal, TaskTag, ReadyToTransfer) {
    let mut portal = Portal::default();
    portal.log_in(&[&[("ImmediateData", "No")], keys].concat());
    portal.command(&write(&pattern(8192)));
    let tag = portal.command_event().tag;
    let received = portal.received();
    let TargetPdu::ReadyToTransfer(r2t) = received[0].pdu else { panic!("{received:?}") };
    (portal, tag, r2t)
}

fn data_out(r2t: &ReadyToTransfer, data_sn: u32, buffer_offset: u32, last: bool) -> Bhs {
    DataOut {
        last,
        lun: r2t.lun,
        initiator_task_tag: r2t.initiator_task_tag,
        target_transfer_tag: r2t.target_transfer_tag,
        exp_stat_sn: 0,
        data_sn,
        buffer_offset,
    }
    .encode()
}

/// BufferOffset plus length wraps round 2^32.
#[test]
fn buffer_offset_and_length_wrap() {
    for offset in [u32::MAX, u32::MAX - 511, 1 << 31] {
        let (mut portal, _, r2t) = solicited(&[]);
        let bytes = portal.initiator.frame(data_out(&r2t, 0, offset, true), &[], &[0; 512]);
        portal.give(&bytes);
        assert_eq!(portal.closed, Some(CloseReason::ProtocolError(Violation::DataOutOfRange)));
    }
}

/// A LUN that is not the command's; without a transfer tag the field is reserved, whatever stands there.
#[test]
fn data_out_for_another_lun() {
    let (mut portal, _, r2t) = solicited(&[]);
    let elsewhere = ReadyToTransfer { lun: [0, 1, 0, 0, 0, 0, 0, 0], ..r2t };
    let bytes = portal.initiator.frame(data_out(&elsewhere, 0, 0, true), &[], &[0; 8192]);
    portal.give(&bytes);
    assert_eq!(portal.closed, Some(CloseReason::ProtocolError(Violation::Header("LUN"))));
    assert!(portal.events.iter().all(|event| !matches!(event, Event::DataOut { .. })));

    let mut portal = Portal::default();
    portal.log_in(&[("InitialR2T", "No"), ("ImmediateData", "No")]);
    let data = pattern(8192);
    let parameters = portal.connection.parameters().unwrap().clone();
    let (_, mut bytes) = portal.initiator.command(&parameters, &write(&data));
    // The command's header, then the first Data-Out's.
    assert_eq!(bytes[48] & 0x3f, 0x05);
    bytes[48 + 8..48 + 16].fill(0xff);
    portal.give(&bytes);
    let Some(Event::DataOut { data: got, .. }) = portal.events.pop() else { panic!() };
    assert!(got == data);
}

/// Data-Out beyond what the R2T asked for, or not where the last one ended, or longer than declared.
#[test]
fn data_out_beyond_or_beside_its_r2t() {
    let cases: [(u32, usize, bool); 5] =
        [(0, 8193, true), (0, 8192, false), (4, 512, false), (8192, 4, true), (8188, 8, true)];
    for (offset, len, last) in cases {
        let (mut portal, _, r2t) = solicited(&[]);
        let bytes = portal.initiator.frame(data_out(&r2t, 0, offset, last), &[], &vec![0; len]);
        portal.give(&bytes);
        let expected = CloseReason::ProtocolError(Violation::DataOutOfRange);
        assert_eq!(portal.closed, Some(expected), "{offset} {len} {last}");
        assert!(portal.events.iter().all(|event| !matches!(event, Event::DataOut { .. })));
    }
}

/// Lengths that are no multiple of four are padded, and only the data counts.
#[test]
fn unaligned_data_out() {
    let (mut portal, tag, r2t) = solicited(&[("DataDigest", "CRC32C")]);
    let data = pattern(8192);
    let bytes = portal.initiator.solicited(&r2t, &data, 1001);
    portal.give(&bytes);
    let Event::DataOut { data: got, .. } = portal.event() else { panic!() };
    assert!(got == data);
    good_status(&mut portal, tag);
}

/// A gap in DataSN means lost data: the task fails once the sequence is over, with the standard's sense.
#[test]
fn data_sn_gap() {
    for (first, second) in [(1, 2), (0, 0), (0, 2), (27, 28), (u32::MAX, 0), (1, 0)] {
        let (mut portal, tag, r2t) = solicited(&[]);
        let half = [0; 4096];
        let bytes = portal.initiator.frame(data_out(&r2t, first, 0, false), &[], &half);
        portal.give(&bytes);
        assert!(portal.events.is_empty());
        let bytes = portal.initiator.frame(data_out(&r2t, second, 4096, true), &[], &half);
        portal.give(&bytes);
        let Event::DataOutFailed { tag: of, condition } = portal.event() else { panic!() };
        assert_eq!((of, condition), (tag, Condition::ProtocolServiceCrcError));
        portal.connection.complete(tag, ScsiOutcome::status(0));
        let received = portal.received();
        let TargetPdu::ScsiResponse(pdu) = received[0].pdu else { panic!("{received:?}") };
        assert_eq!((pdu.status, &received[0].data[14..16]), (2, &[0x47, 0x05][..]), "never GOOD");
    }
}

/// A sequence that ends early.
#[test]
fn data_out_that_ends_early() {
    let (mut portal, tag, r2t) = solicited(&[]);
    let bytes = portal.initiator.frame(data_out(&r2t, 0, 0, true), &[], &[0; 512]);
    portal.give(&bytes);
    let Event::DataOutFailed { condition, .. } = portal.event() else { panic!() };
    assert_eq!(condition, Condition::IncorrectAmountOfData);
    portal.connection.discard_task(tag);
    assert!(matches!(portal.received()[0].pdu, TargetPdu::ScsiResponse(pdu) if pdu.status == 2));
}

/// A target transfer tag that is not, or no longer, out.
#[test]
fn stale_target_transfer_tag() {
    let (mut portal, tag, r2t) = solicited(&[]);
    for stale in [r2t.target_transfer_tag.wrapping_sub(1), r2t.target_transfer_tag + 1, TAG_NONE] {
        let header = data_out(&ReadyToTransfer { target_transfer_tag: stale, ..r2t }, 0, 0, true);
        let bytes = portal.initiator.frame(header, &[], &[0xee; 8192]);
        assert_eq!(rejects(&portal.exchange(&bytes)), [RejectReason::ProtocolError]);
    }
    let data = pattern(8192);
    let bytes = portal.initiator.solicited(&r2t, &data, 8192);
    portal.give(&bytes);
    let Event::DataOut { data: got, .. } = portal.event() else { panic!() };
    assert!(got == data, "stale data left no trace");
    let bytes = portal.initiator.solicited(&r2t, &data, 8192);
    assert_eq!(rejects(&portal.exchange(&bytes)), [RejectReason::ProtocolError]);
    good_status(&mut portal, tag);
}

/// Data for a read, or for no task at all.
#[test]
fn data_out_for_a_read_or_for_nothing() {
    let mut portal = Portal::default();
    portal.log_in(&[]);
    let initiator_task_tag = portal.command(&read(0, 512));
    let tag = portal.command_event().tag;
    let r2t = ReadyToTransfer {
        lun: [0; 8],
        initiator_task_tag,
        target_transfer_tag: TAG_NONE,
        numbers: Default::default(),
        r2t_sn: 0,
        buffer_offset: 0,
        desired_len: 512,
    };
    let bytes = portal.initiator.solicited(&r2t, &[0; 512], 512);
    assert_eq!(rejects(&portal.exchange(&bytes)), [RejectReason::ProtocolError]);
    let nobody = ReadyToTransfer { initiator_task_tag: 0x7777, ..r2t };
    let bytes = portal.initiator.solicited(&nobody, &[0; 512], 512);
    let held = portal.connection.bytes_held();
    for _ in 0..1000 {
        portal.give(&bytes);
    }
    assert!(portal.received().is_empty());
    assert!(portal.connection.bytes_held() <= held);
    good_status(&mut portal, tag);
}

/// Unsolicited data that was not agreed to never reaches the shell.
#[test]
fn unexpected_unsolicited_data() {
    let data = pattern(2048);
    type Case = (&'static [(&'static str, &'static str)], fn(&mut holdfast_iscsi::SessionParameters));
    let cases: [Case; 3] = [
        (&[("ImmediateData", "No")], |p| p.immediate_data = true),
        (&[("InitialR2T", "Yes"), ("ImmediateData", "No")], |p| p.initial_r2t = false),
        (&[("FirstBurstLength", "1024")], |p| p.first_burst_length = 2048),
    ];
    for (keys, pretend) in cases {
        let mut portal = Portal::default();
        let mut parameters = portal.log_in(keys);
        pretend(&mut parameters);
        let (_, bytes) = portal.initiator.command(&parameters, &write(&data));
        let received = portal.exchange(&bytes);
        let TargetPdu::ScsiResponse(pdu) = received[0].pdu else { panic!("{received:?}") };
        assert_eq!((pdu.status, &received[0].data[14..16]), (2, &[0x0c, 0x0c][..]));
        assert_eq!(received.len(), 1);
        assert!(portal.events.is_empty() && portal.closed.is_none());
    }
}
