//! Logins that are sent to another node, through a real portal.

use holdfast_proto::state::{self, change::Change as Record};

use super::host::Host;
use super::portal::{A, B, node};
use super::standalone::Standalone;

const TARGET_MOVED_TEMPORARILY: u16 = 0x0101;
const AUTHENTICATION_FAILURE: u16 = 0x0201;
const AUTHORIZATION_FAILURE: u16 = 0x0202;
const SERVICE_UNAVAILABLE: u16 = 0x0301;

fn record(number: u32, portal: String, draining: bool) -> state::Node {
    state::Node {
        name: format!("node-{number}"),
        number,
        ports: vec![state::Port { relative_port: number, portal }],
        interconnect: "127.0.0.1:1".into(),
        boot_id: vec![number as u8; 16],
        incarnation: 1,
        live: true,
        draining,
        cordoned: draining,
        ..Default::default()
    }
}

/// This node, draining or not, and another one.
fn two_nodes(node: &Standalone, draining: bool, other: state::Node) {
    let me = record(1, node.portal().to_string(), draining);
    node.authority.change(vec![Record::Node(me), Record::Node(other)]);
}

fn other() -> state::Node {
    record(2, "127.0.0.2:3260".into(), false)
}

#[test]
fn a_node_that_is_drained_sends_new_sessions_to_another_one() {
    let node = node();
    let mut before = Host::log_in(node.portal(), A, 1).unwrap();
    two_nodes(&node, false, other());
    assert!(Host::log_in(node.portal(), A, 2).is_ok(), "both serve");
    two_nodes(&node, true, other());
    assert_eq!(Host::log_in(node.portal(), A, 3).err(), Some(TARGET_MOVED_TEMPORARILY));
    let joined = Host::join(&before, node.portal(), A, 2);
    assert!(joined.is_ok(), "a session that is here stays whole: {:?}", joined.err());
    before.settle(0);
    two_nodes(&node, false, other());
    assert!(Host::log_in(node.portal(), A, 3).is_ok(), "it serves again");
}

#[test]
fn nobody_is_sent_where_it_is_no_better() {
    let node = node();
    let mut dead = other();
    dead.live = false;
    let mut nowhere = other();
    nowhere.ports[0].portal = "0.0.0.0:3260".into();
    let mut unreachable = other();
    unreachable.ports[0].portal = "[::1]:3260".into();
    let draining = record(2, "127.0.0.2:3260".into(), true);
    for (isid, other) in [dead, nowhere, unreachable, draining].into_iter().enumerate() {
        let words = format!("{other:?}");
        two_nodes(&node, true, other);
        assert!(Host::log_in(node.portal(), A, isid as u8 + 1).is_ok(), "{words}");
    }
}

#[test]
fn who_belongs_to_no_host_is_told_nothing() {
    let node = node();
    two_nodes(&node, true, other());
    let stranger = Host::log_in(node.portal(), "iqn.2026-01.example:stranger", 1);
    assert_eq!(stranger.err(), Some(AUTHORIZATION_FAILURE));
}

#[test]
fn who_must_authenticate_is_told_nothing_before() {
    let node = node();
    let chap =
        state::Chap { user: "a".into(), sealed_secret: b"open-sesame-1234".to_vec(), ..Default::default() };
    let host = state::Host { name: "a".into(), initiators: vec![A.into()], chap: Some(chap) };
    node.authority.change(vec![Record::Host(host)]);
    two_nodes(&node, true, other());
    assert_eq!(Host::log_in(node.portal(), A, 1).err(), Some(AUTHENTICATION_FAILURE));
    assert_eq!(
        Host::log_in(node.portal(), B, 1).err(),
        Some(TARGET_MOVED_TEMPORARILY),
        "its host has no CHAP"
    );
}

#[test]
fn a_node_without_a_lease_sends_to_one_that_has_one() {
    let node = node();
    two_nodes(&node, false, other());
    node.shared.gate.close();
    std::thread::scope(|scope| {
        // Both wait for the lease first; side by side.
        let known = scope.spawn(|| Host::log_in(node.portal(), A, 1).err());
        let stranger = scope.spawn(|| Host::log_in(node.portal(), "iqn.2026-01.example:stranger", 1).err());
        assert_eq!(known.join().unwrap(), Some(TARGET_MOVED_TEMPORARILY));
        assert_eq!(stranger.join().unwrap(), Some(SERVICE_UNAVAILABLE));
    });
}
