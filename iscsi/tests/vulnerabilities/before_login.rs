//! What anyone who reaches the portal can send.

use crate::support::{Chap, ENTROPY, INITIATOR, Portal, TARGET};
use holdfast_iscsi::chap::{Algorithm, Challenge, ChapCredentials, InvalidCredentials, Secret};
use holdfast_iscsi::initiator::{Initiator, TargetPdu};
use holdfast_iscsi::pdu::Stage;
use holdfast_iscsi::{CloseReason, Connection, Instant, LoginStatus, PortalConfig, PortalOptions, Violation};
use std::sync::Arc;

const WHO: [(&str, &str); 2] = [("InitiatorName", INITIATOR), ("TargetName", TARGET)];

fn chap_portal() -> Portal {
    let chap = Chap {
        user: ("alice".into(), "open-sesame-1234".into()),
        mutual: Some(("array".into(), "close-sesame-5678".into())),
        weakest: Algorithm::Md5,
    };
    Portal { chap: Some(chap), ..Portal::default() }
}

/// A portal that has sent its challenge, and the challenge.
fn challenged(algorithms: &str) -> (Portal, Algorithm, Challenge) {
    let mut portal = chap_portal();
    let keys = [WHO[0], WHO[1], ("AuthMethod", "CHAP")];
    let request = portal.initiator.login(Stage::Security, None, &keys);
    portal.exchange(&request);
    let request = portal.initiator.login(Stage::Security, None, &[("CHAP_A", algorithms)]);
    let received = portal.exchange(&request);
    let keys = received[0].keys();
    let value = |name: &str| keys.iter().find_map(|key| key.strip_prefix(name)).unwrap();
    let digits = value("CHAP_C=0x");
    let bytes =
        (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect();
    let number = value("CHAP_A=");
    let algorithm = Algorithm::ALL.into_iter().find(|a| a.number().to_string() == number).unwrap();
    let id = value("CHAP_I=").parse().unwrap();
    (portal, algorithm, Challenge { id, bytes })
}

fn respond(portal: &mut Portal, response: &str, more: &[(&str, &str)]) {
    let keys = [&[("CHAP_N", "alice"), ("CHAP_R", response)][..], more].concat();
    let request = portal.initiator.login(Stage::Security, Some(Stage::Operational), &keys);
    portal.give(&request);
}

fn refused(portal: &Portal, status: LoginStatus) {
    assert_eq!(portal.closed, Some(CloseReason::LoginRefused(status)));
}

/// CVE-2018-14633: a long hexadecimal or base64 response ran over a buffer of the digest's length.
#[test]
fn chap_response_longer_than_the_digest() {
    for response in [
        format!("0x{}", "41".repeat(17)),
        format!("0x{}", "41".repeat(4000)),
        format!("0b{}", "QUFB".repeat(7)),
        format!("0b{}", "QUFB".repeat(1500)),
        "0x".into(),
        "0b".into(),
        String::new(),
    ] {
        let (mut portal, ..) = challenged("5");
        respond(&mut portal, &response, &[]);
        refused(&portal, LoginStatus::AuthenticationFailure);
    }
}

/// The same for the challenge of mutual CHAP.
#[test]
fn chap_challenge_longer_than_its_bound() {
    let (mut portal, algorithm, challenge) = challenged("5");
    let good = algorithm.response(challenge.id, b"open-sesame-1234", &challenge.bytes);
    let response = format!("0x{}", good.iter().map(|b| format!("{b:02x}")).collect::<String>());
    respond(&mut portal, &response, &[("CHAP_I", "1"), ("CHAP_C", &format!("0x{}", "41".repeat(1025)))]);
    refused(&portal, LoginStatus::AuthenticationFailure);
}

/// CVE-2013-2850: the echo of a long unknown key ran over the response.
#[test]
fn long_unknown_key() {
    for len in [63, 64, 5000] {
        let key = "K".repeat(len);
        let mut portal = Portal::default();
        let request = portal.initiator.login(Stage::Operational, None, &[WHO[0], WHO[1], (&key, "1")]);
        let received = portal.exchange(&request);
        if len <= 63 {
            assert!(received[0].keys().contains(&format!("{key}=NotUnderstood")));
        } else {
            refused(&portal, LoginStatus::InitiatorError);
        }
    }
}

/// CVE-2011-0001: login text beyond the buffer. The answer must not outgrow the initiator's either.
#[test]
fn login_text_at_its_bounds() {
    let mut portal = Portal::default();
    let header = portal.initiator.login_header(Stage::Operational, None).encode();
    let bytes = portal.initiator.frame(header, &[], &vec![0; 8193]);
    portal.give(&bytes);
    assert_eq!(portal.closed, Some(CloseReason::ProtocolError(Violation::DataSegmentTooLong)));

    let mut portal = Portal::default();
    let header = portal.initiator.login_header(Stage::Operational, None).encode();
    let bytes = portal.initiator.frame(header, &[], &vec![b'a'; 8192]);
    portal.give(&bytes);
    refused(&portal, LoginStatus::InitiatorError);

    // Many short keys would be answered at four times their length.
    let keys: Vec<String> = (0..90).map(|n| format!("K{:062}", n)).collect();
    let mut all = WHO.to_vec();
    all.extend(keys.iter().map(|key| (key.as_str(), "")));
    let mut portal = Portal::default();
    let request = portal.initiator.login(Stage::Operational, None, &all);
    let received = portal.exchange(&request);
    assert!(received.iter().all(|received| received.data.len() <= 8192));
}

/// A PDU shorter than its header, then silence: nothing happens until the login timeout.
#[test]
fn pdu_shorter_than_its_header() {
    let mut portal = Portal::default();
    portal.give(&[0x43; 47]);
    assert!(portal.sent().is_empty() && portal.closed.is_none());
    let due = portal.connection.poll_timeout().unwrap();
    portal.connection.handle_timeout(Instant(due.0 - 1));
    portal.routine();
    assert!(portal.closed.is_none());
    portal.connection.handle_timeout(due);
    portal.routine();
    assert_eq!(portal.closed, Some(CloseReason::LoginTimeout));
}

/// A first PDU that is not a login (a target once crashed of it).
#[test]
fn not_a_login_first() {
    for opcode in (0..=0xffu8).filter(|opcode| opcode & 0x3f != 3) {
        let mut portal = Portal::default();
        let mut bytes = [0; 48];
        bytes[0] = opcode;
        portal.give(&bytes);
        assert_eq!(portal.closed, Some(CloseReason::ProtocolError(Violation::NotALogin)));
        assert!(portal.sent().is_empty());
    }
}

/// Reflection: our own challenge, sent back on this or on a parallel connection, is never answered, for an answer
/// needs the initiator's proof first, and the two directions must not share a secret.
#[test]
fn chap_reflection_also_across_connections() {
    let same = |name: &str| Secret::new(name.into(), b"one-secret".to_vec());
    let shared = ChapCredentials::new(same("a"), Some(same("b")), Algorithm::Md5);
    assert_eq!(shared.unwrap_err(), InvalidCredentials::SameSecret);

    let (_, _, first) = challenged("7");
    let (mut second, _, _) = challenged("7");
    let hex: String = first.bytes.iter().map(|b| format!("{b:02x}")).collect();
    let fishing = [("CHAP_I", "1"), ("CHAP_C", &*format!("0x{hex}"))];
    respond(&mut second, &format!("0x{}", "00".repeat(32)), &fishing);
    let received = second.received();
    assert!(received.iter().all(|received| received.data.is_empty()));
    refused(&second, LoginStatus::AuthenticationFailure);
}

/// CVE-2024-45751: a predictable challenge. Ours comes from the shell's entropy, all of it, and shows none of it.
#[test]
fn chap_challenge_comes_from_all_of_the_entropy() {
    let of = Challenge::from_entropy(&ENTROPY);
    for bit in 0..256 {
        let mut entropy = ENTROPY;
        entropy[bit / 8] ^= 1 << (bit % 8);
        assert_ne!(Challenge::from_entropy(&entropy).bytes, of.bytes);
    }
    assert!(of.bytes.len() >= 16 && of.bytes != ENTROPY);
}

/// Sloppy CHAP_A and CHAP_I: prefixes, empty lists, numbers out of range.
#[test]
fn sloppy_chap_algorithm_and_identifier() {
    for list in ["56", "", "5,", "5;6", " 5", "0x", "-5", "5,6,x"] {
        let mut portal = chap_portal();
        let request =
            portal.initiator.login(Stage::Security, None, &[WHO[0], WHO[1], ("AuthMethod", "CHAP")]);
        portal.give(&request);
        let request = portal.initiator.login(Stage::Security, None, &[("CHAP_A", list)]);
        portal.give(&request);
        refused(&portal, LoginStatus::AuthenticationFailure);
    }
    for id in ["256", "-1", "", "1x", "0x100", "99999999999999999999"] {
        let (mut portal, algorithm, challenge) = challenged("7");
        let good = algorithm.response(challenge.id, b"open-sesame-1234", &challenge.bytes);
        let response = format!("0x{}", good.iter().map(|b| format!("{b:02x}")).collect::<String>());
        let theirs = format!("0x{}", "17".repeat(16));
        respond(&mut portal, &response, &[("CHAP_I", id), ("CHAP_C", &theirs)]);
        refused(&portal, LoginStatus::AuthenticationFailure);
    }
}

/// Discovery is no way round authentication.
#[test]
fn discovery_without_chap() {
    let mut portal = chap_portal();
    let keys = [("InitiatorName", INITIATOR), ("SessionType", "Discovery"), ("AuthMethod", "None")];
    let request = portal.initiator.login(Stage::Security, Some(Stage::FullFeature), &keys);
    portal.give(&request);
    refused(&portal, LoginStatus::AuthenticationFailure);
}

/// Every jump over the security stage, and every request out of its stage.
#[test]
fn stage_jumps() {
    for current in [Stage::Security, Stage::Operational, Stage::FullFeature] {
        for next in [None, Some(Stage::Security), Some(Stage::Operational), Some(Stage::FullFeature)] {
            let mut portal = chap_portal();
            let request = portal.initiator.login(current, next, &WHO);
            let received = portal.exchange(&request);
            assert!(portal.session.is_none(), "{current:?} {next:?}");
            let stays = current == Stage::Security && next.is_none();
            assert_eq!(portal.closed.is_none(), stays, "{received:?}");
            let request = portal.initiator.login(Stage::Operational, Some(Stage::FullFeature), &[]);
            portal.give(&request);
            assert!(portal.session.is_none() && portal.closed.is_some());
        }
    }
}

/// Reserved stages.
#[test]
fn reserved_stages() {
    for flags in [0x08, 0x82, 0x86, 0x8b] {
        let mut portal = Portal::default();
        let header = portal.initiator.login_header(Stage::Security, None);
        let mut bytes = portal.initiator.frame(header.encode(), &[], b"");
        bytes[1] = flags;
        portal.give(&bytes);
        refused(&portal, LoginStatus::InitiatorError);
    }
}

/// A key twice, so that two parsers see two values.
#[test]
fn duplicate_keys() {
    for key in ["InitiatorName", "TargetName", "AuthMethod", "MaxBurstLength", "X-unknown"] {
        let mut portal = Portal::default();
        let keys = [WHO[0], WHO[1], (key, "None"), (key, "None")];
        let request = portal.initiator.login(Stage::Security, Some(Stage::Operational), &keys);
        portal.give(&request);
        refused(&portal, LoginStatus::InitiatorError);
    }
}

/// A flood of login requests on one connection, each harmless.
#[test]
fn login_flood() {
    let mut portal = Portal::default();
    let request = portal.initiator.login(Stage::Operational, None, &WHO);
    portal.exchange(&request);
    let mut count = 1;
    while portal.closed.is_none() {
        let request = portal.initiator.login(Stage::Operational, None, &[]);
        portal.exchange(&request);
        count += 1;
        assert!(count <= 40, "it goes on for ever");
    }
    refused(&portal, LoginStatus::InitiatorError);
}

/// A login byte by byte, each just before one would give up: the deadline is for the whole.
#[test]
fn slow_login() {
    let mut portal = Portal::default();
    let due = portal.connection.poll_timeout().unwrap();
    let request = portal.initiator.login(Stage::Operational, Some(Stage::FullFeature), &WHO);
    for (at, byte) in request.iter().enumerate() {
        portal.now = Instant(at as u64 * 1000);
        portal.connection.handle_timeout(portal.now);
        portal.give(&[*byte]);
        assert!(portal.connection.poll_timeout().is_none_or(|at| at == due));
    }
    assert_eq!(portal.closed, Some(CloseReason::LoginTimeout));
}

/// Text without end by the C bit.
#[test]
fn unbounded_text_by_the_c_bit() {
    let mut portal = Portal::default();
    let mut header = portal.initiator.login_header(Stage::Operational, None);
    header.more = true;
    let bytes = portal.initiator.frame(header.encode(), &[], &vec![b'a'; 8000]);
    for _ in 0..10 {
        portal.exchange(&bytes);
        assert!(portal.connection.bytes_held() < 64 * 1024);
    }
    refused(&portal, LoginStatus::InitiatorError);
}

/// A second login PDU before the first was answered, while the shell thinks.
#[test]
fn pipelined_login() {
    let config = Arc::new(PortalConfig::new(PortalOptions::default()).unwrap());
    let mut connection: Connection<Vec<u8>> = Connection::new(config, Instant(0), ENTROPY);
    let mut initiator = Initiator::default();
    let request = initiator.login(Stage::Operational, Some(Stage::FullFeature), &WHO);
    connection.handle_input(Instant(0), &request);
    connection.handle_input(Instant(0), &request);
    assert!(connection.is_closed());
    assert_eq!(connection.transmit_len(), 0);
}

/// Additional headers, or a login that is not immediate, on a login PDU.
#[test]
fn login_with_additional_headers() {
    let mut portal = Portal::default();
    let header = portal.initiator.login_header(Stage::Operational, None);
    let bytes = portal.initiator.frame(header.encode(), &[0, 5, 2, 0, 0, 0, 0, 0], b"");
    let received = portal.exchange(&bytes);
    assert!(matches!(received[0].pdu, TargetPdu::Login(_)));
    refused(&portal, LoginStatus::InitiatorError);
}
