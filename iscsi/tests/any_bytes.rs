//! Whatever bytes come, split anywhere: no panic, bounded memory, and the same result for every split.

mod support;

use holdfast_iscsi::initiator::Initiator;
use holdfast_iscsi::pdu::Bhs;
use holdfast_iscsi::{Event, Payload, PortalOptions, ScsiOutcome, TaskManagementResponse, TaskTag};
use proptest::collection::vec;
use proptest::prelude::*;
use support::{INITIATOR, Portal, TARGET, pattern};

/// What a session of these options can hold at the very most: solicited data, unsolicited data of every place in the
/// window, early requests, and small change.
const HELD_MAX: usize = 256 * 1024 + (16 + 8) * 2 * 64 * 1024 + 256 * 1024 + 16 * 1024 * 1024 + 1024 * 1024;

fn options() -> PortalOptions {
    PortalOptions {
        command_window: 16,
        data_out_len_max: 128 * 1024,
        data_out_bytes_max: 256 * 1024,
        ..PortalOptions::default()
    }
}

fn config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) }
}

/// A step of a logged-in initiator that means no good.
#[derive(Clone, Debug)]
enum Step {
    /// A PDU of plausible fields.
    Pdu {
        opcode: u8,
        flags: u8,
        tags: (u8, u8),
        cmd_sn: i8,
        length: u32,
        sn: u8,
        offset: u8,
        data: u16,
        ahs: u8,
    },
    /// Bytes of no meaning.
    Noise(Vec<u8>),
    /// The shell ends the n-th task it knows.
    Complete(u8, u16),
    /// The shell drops it.
    Discard(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let opcode = prop_oneof![
        8 => prop::sample::select(vec![0x01u8, 0x41, 0x05, 0x05, 0x05]),
        3 => prop::sample::select(vec![0x00u8, 0x40, 0x02, 0x42, 0x44, 0x04]),
        1 => any::<u8>(),
    ];
    let flags =
        prop_oneof![prop::sample::select(vec![0xa1u8, 0x21, 0xc1, 0x81, 0x80, 0x00, 0x85]), any::<u8>()];
    let pdu = (
        (opcode, flags, (0u8..6, 0u8..12), -2i8..5),
        (
            prop_oneof![0u32..40_000, any::<u32>()],
            0u8..3,
            0u8..4,
            prop_oneof![Just(0u16), 0u16..9000],
            0u8..2,
        ),
    )
        .prop_map(|((opcode, flags, tags, cmd_sn), (length, sn, offset, data, ahs))| Step::Pdu {
            opcode,
            flags,
            tags,
            cmd_sn,
            length,
            sn,
            offset,
            data,
            ahs,
        });
    prop_oneof![
        20 => pdu,
        1 => vec(any::<u8>(), 0..100).prop_map(Step::Noise),
        4 => (any::<u8>(), any::<u16>()).prop_map(|(n, len)| Step::Complete(n, len)),
        1 => any::<u8>().prop_map(Step::Discard),
    ]
}

#[derive(Default)]
struct Shell {
    tasks: Vec<TaskTag>,
    delivered: usize,
}

/// Plays the steps; everything that the target said, and how much was delivered.
fn play(steps: &[Step], split: usize, keys: &[(&str, &str)]) -> (Vec<u8>, usize, String) {
    let mut portal = Portal::new(options());
    let parameters = portal.log_in(keys);
    portal.split = split;
    let (mut said, mut shell) = (Vec::new(), Shell::default());
    let first = portal.initiator.cmd_sn;
    for (number, step) in steps.iter().enumerate() {
        match step {
            Step::Noise(bytes) => portal.give(bytes),
            Step::Complete(n, len) if !shell.tasks.is_empty() => {
                let tag = shell.tasks.remove(usize::from(*n) % shell.tasks.len());
                let data = Payload::new(pattern(usize::from(*len)));
                portal.connection.complete(tag, ScsiOutcome::status(*n % 3).with_data_in(data));
            }
            Step::Discard(n) if !shell.tasks.is_empty() => {
                let tag = shell.tasks.remove(usize::from(*n) % shell.tasks.len());
                portal.connection.discard_task(tag);
            }
            Step::Complete(..) | Step::Discard(_) => {}
            &Step::Pdu { opcode, flags, tags, cmd_sn, length, sn, offset, data, ahs } => {
                let mut bytes = [0; 48];
                bytes[0] = opcode;
                bytes[1] = flags;
                bytes[16..20].copy_from_slice(&u32::from(tags.0).to_be_bytes());
                let command = opcode & 0x3f == 1;
                // Commands carry a length there, Data-Outs a target transfer tag.
                let word = match tags.1 {
                    _ if command => length,
                    11 => u32::MAX,
                    tag => u32::from(tag),
                };
                bytes[20..24].copy_from_slice(&word.to_be_bytes());
                let next = first.wrapping_add(shell.delivered as u32).wrapping_add_signed(i32::from(cmd_sn));
                bytes[24..28].copy_from_slice(&next.to_be_bytes());
                bytes[36..40].copy_from_slice(&u32::from(sn).to_be_bytes());
                bytes[40..44].copy_from_slice(&(u32::from(offset) * 512).to_be_bytes());
                let additional: &[u8] =
                    if ahs == 1 && number % 7 == 0 { &[0, 5, 2, 0, 0, 0, 1, 0] } else { &[] };
                let frame = portal.initiator.frame(Bhs(bytes), additional, &pattern(usize::from(data)));
                portal.give(&frame);
            }
        }
        for event in portal.events.drain(..) {
            match event {
                Event::Command(command) => {
                    shell.delivered += usize::from(!command.immediate);
                    shell.tasks.push(command.tag);
                }
                Event::TaskManagement(request) => {
                    portal.connection.task_management_answer(request.id, TaskManagementResponse::Rejected);
                }
                _ => {}
            }
        }
        said.extend(portal.sent());
        assert!(portal.connection.bytes_held() <= HELD_MAX, "{}", portal.connection.bytes_held());
    }
    // What the target said is sound, however it was provoked.
    let mut reader = Initiator::default();
    reader.use_digests(parameters.header_digest, parameters.data_digest);
    reader.receive(&said).unwrap_or_else(|fault| {
        // The reader starts in the middle, so only the numbering of its first PDU may surprise it.
        assert_eq!(fault, holdfast_iscsi::initiator::Fault::StatSn);
        Vec::new()
    });
    (said, shell.delivered, format!("{:?}", portal.closed))
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn before_login(bytes in vec(any::<u8>(), 0..2000), split in 1usize..100, like_a_login in any::<bool>()) {
        let mut portal = Portal::new(options());
        portal.split = split;
        let mut bytes = bytes;
        if like_a_login && bytes.len() > 8 {
            bytes[0] = 0x43;
            bytes[4..6].fill(0);
        }
        portal.give(&bytes);
        prop_assert!(portal.session.is_none());
        prop_assert!(portal.connection.bytes_held() < 128 * 1024);
        portal.sent();
    }

    #[test]
    fn login_texts(
        keys in vec(("[A-Za-z0-9_=]{0,70}", "[ -~]{0,40}"), 0..20),
        current in 0u8..4,
        next in 0u8..8,
        garbage in vec(any::<u8>(), 0..20),
    ) {
        let mut portal = Portal::new(options());
        let mut text = format!("InitiatorName={INITIATOR}\0TargetName={TARGET}\0").into_bytes();
        for (key, value) in &keys {
            text.extend(format!("{key}={value}\0").bytes());
        }
        text.extend(&garbage);
        let mut header = portal.initiator.login_header(holdfast_iscsi::pdu::Stage::Security, None).encode();
        header.0[1] = current << 2 | (next & 3) | if next > 3 { 0x80 } else { 0 };
        let frame = portal.initiator.frame(header, &[], &text);
        for received in portal.exchange(&frame) {
            prop_assert!(received.data.len() <= 8192);
        }
    }

    #[test]
    fn a_session_under_attack(steps in vec(step(), 0..80), splits in (1usize..60, 60usize..20_000)) {
        let keys = [("HeaderDigest", "None"), ("MaxOutstandingR2T", "3"), ("InitialR2T", "No")];
        let one = play(&steps, splits.0, &keys);
        let other = play(&steps, splits.1, &keys);
        prop_assert_eq!(one, other, "the split must not matter");
    }

    #[test]
    fn a_session_with_digests_under_attack(steps in vec(step(), 0..80), split in 1usize..2000) {
        play(&steps, split, &[("HeaderDigest", "CRC32C"), ("DataDigest", "CRC32C"), ("InitialR2T", "No")]);
    }
}
