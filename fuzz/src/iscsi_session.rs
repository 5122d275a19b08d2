//! The full feature phase of a session with two connections: PDUs of plausible fields and any bytes, in any order, on either
//! connection, while the shell ends tasks as it likes. No panic, bounded memory, and an end that is an end.

use crate::portal::{ENTROPY, INITIATOR, TARGET, TSIH};
use arbitrary::{Arbitrary, Unstructured};
use holdfast_iscsi::initiator::{Initiator, keys_text};
use holdfast_iscsi::pdu::{Bhs, Stage};
use holdfast_iscsi::{
    Admission, Connection, Event, Instant, Join, LinkId, LoginAnswer, Payload, PortalConfig, PortalOptions,
    ScsiOutcome, SessionStart, TaskManagementResponse, TaskTag,
};
use std::num::NonZeroU16;
use std::sync::Arc;

/// What a session of these options can hold at most: solicited data, unsolicited data of the whole window, early requests.
const HELD_MAX: usize = 24 * 1024 * 1024;

#[derive(Arbitrary, Debug)]
enum Step {
    Pdu {
        second: bool,
        opcode: u8,
        flags: u8,
        tags: (u8, u8),
        ahead: i8,
        len: u16,
        sn: u8,
        offset: u8,
        data: u16,
    },
    Noise {
        second: bool,
        bytes: Vec<u8>,
    },
    Complete {
        task: u8,
        len: u16,
    },
    Discard {
        task: u8,
    },
    Wait {
        ms: u16,
    },
    AskForLogout,
    Forget {
        second: bool,
    },
}

fn options() -> PortalOptions {
    PortalOptions {
        command_window: 16,
        data_out_len_max: 128 * 1024,
        data_out_bytes_max: 256 * 1024,
        ..PortalOptions::default()
    }
}

/// A connection that has logged in but for the last answer.
fn log_in(cid: u16, tsih: u16) -> Connection<Vec<u8>> {
    let mut connection =
        Connection::new(Arc::new(PortalConfig::new(options()).unwrap()), Instant(0), ENTROPY);
    let mut initiator = Initiator::default();
    let mut header = initiator.login_header(Stage::Operational, Some(Stage::FullFeature));
    (header.cid, header.tsih) = (cid, tsih);
    let mut keys = vec![("InitiatorName", INITIATOR), ("TargetName", TARGET)];
    if tsih == 0 {
        keys.extend([
            ("MaxConnections", "2"),
            ("InitialR2T", "No"),
            ("MaxOutstandingR2T", "3"),
            ("iSCSIProtocolLevel", "2"),
        ]);
    }
    let bytes = initiator.frame(header.encode(), &[], &keys_text(&keys));
    connection.handle_input(Instant(0), &bytes);
    while let Some(event) = connection.poll_event() {
        if let Event::Login(_) = event {
            let admission = Admission { chap: None, target_portal_group_tag: 1, moved_to: None };
            connection.login_answer(Instant(0), LoginAnswer::Accept(admission));
        }
    }
    connection
}

/// The target.
pub fn iscsi_session(data: &[u8]) {
    let Ok(steps) = Vec::<Step>::arbitrary_take_rest(Unstructured::new(data)) else { return };
    let tsih = NonZeroU16::new(TSIH).unwrap();
    let mut engine = log_in(1, 0);
    engine.start_session(Instant(0), SessionStart::Go(tsih));
    let mut joining = log_in(2, TSIH);
    let Join::Go { exp_cmd_sn, max_cmd_sn } = engine.join(2) else { panic!("there is room for two") };
    joining.start_session(Instant(0), SessionStart::Join { tsih, exp_cmd_sn, max_cmd_sn });
    let second_link = engine.take_in(joining).expect("both are in");
    let (initiator, mut now) = (Initiator::default(), Instant(0));
    let (mut tasks, mut delivered, mut closed): (Vec<TaskTag>, u32, bool) = (Vec::new(), 0, false);
    for step in steps.iter().take(200) {
        let link = |second: bool| if second { second_link } else { LinkId::LEADING };
        match step {
            &Step::Pdu { second, opcode, flags, tags, ahead, len, sn, offset, data } => {
                let mut bytes = [0; 48];
                (bytes[0], bytes[1]) = (opcode, flags);
                bytes[16..20].copy_from_slice(&u32::from(tags.0 % 8).to_be_bytes());
                let word = match tags.1 {
                    255 => u32::MAX,
                    tag if opcode & 0x3f == 1 => u32::from(len) | u32::from(tag >> 6) << 16,
                    tag => u32::from(tag % 16),
                };
                bytes[20..24].copy_from_slice(&word.to_be_bytes());
                let next = exp_cmd_sn.wrapping_add(delivered).wrapping_add_signed(i32::from(ahead));
                bytes[24..28].copy_from_slice(&next.to_be_bytes());
                bytes[36..40].copy_from_slice(&u32::from(sn % 4).to_be_bytes());
                bytes[40..44].copy_from_slice(&(u32::from(offset % 8) * 512).to_be_bytes());
                let data = vec![7; usize::from(data % 9000)];
                engine.handle_input_of(link(second), now, &initiator.frame(Bhs(bytes), &[], &data));
            }
            Step::Noise { second, bytes } => engine.handle_input_of(link(*second), now, bytes),
            Step::Complete { task, len } if !tasks.is_empty() => {
                let tag = tasks.remove(usize::from(*task) % tasks.len());
                let data = Payload::new(vec![1; usize::from(*len)]);
                engine.complete(tag, ScsiOutcome::status(*task % 3).with_data_in(data));
            }
            Step::Discard { task } if !tasks.is_empty() => {
                let tag = tasks.remove(usize::from(*task) % tasks.len());
                engine.discard_task(tag);
            }
            Step::Complete { .. } | Step::Discard { .. } => {}
            Step::Wait { ms } => {
                now = now.after_ms(u64::from(*ms));
                engine.handle_timeout(now);
                assert!(engine.poll_timeout().is_none_or(|at| at > now), "what was due was done");
            }
            Step::AskForLogout => engine.request_logout(now, 5),
            Step::Forget { second } => engine.forget_link(link(*second)),
        }
        while let Some(event) = engine.poll_event() {
            assert!(!closed, "an event behind the end: {event:?}");
            match event {
                Event::Command(command) => {
                    delivered += u32::from(!command.immediate);
                    tasks.push(command.tag);
                }
                Event::TaskManagement(request) => {
                    engine.task_management_answer(request.id, TaskManagementResponse::Rejected);
                }
                Event::SendTargets(_) => engine.send_targets_answer(&[]),
                Event::Closed(_) => closed = true,
                _ => {}
            }
        }
        for link in [LinkId::LEADING, second_link] {
            let len = engine.transmit_len_of(link);
            engine.advance_of(link, len);
        }
        assert!(engine.bytes_held() <= HELD_MAX, "{} bytes are held", engine.bytes_held());
    }
}
