//! Sessions of several connections through a real portal, whose threads accept them in turn.

use holdfast_iscsi::initiator::TargetPdu;
use holdfast_iscsi::pdu::AsyncEvent;

use super::host::{Ended, Host};
use super::portal::{A, B, node};
use super::standalone::Standalone;

const GOOD: u8 = 0;
const BUSY: u8 = 8;
const ASKED: AsyncEvent = AsyncEvent::RequestLogout { seconds: 4 };
const READ_BLOCK_0: [u8; 10] = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];

/// The leading connection of a session that has reported its Unit Attentions.
fn leading(node: &Standalone) -> Host {
    let mut host = Host::log_in(node.portal(), A, 1).unwrap();
    host.settle(0);
    host
}

/// Joins; tags of this connection differ from those of all others.
fn join(node: &Standalone, leading: &Host, cid: u16) -> Host {
    let mut host = Host::join(leading, node.portal(), A, cid).unwrap();
    host.use_tags_from(u32::from(cid) << 16);
    host
}

#[test]
fn connections_of_a_session_are_one_nexus_in_one_order() {
    let node = node();
    let mut one = leading(&node);
    let mut two = join(&node, &one, 2);
    let mut three = join(&node, &one, 3);
    assert_eq!(one.write(0, 0, &[7; 512]).status, GOOD);
    // The other way round on the wire: the later number first.
    let next = *one.cmd_sn();
    *three.cmd_sn() = next + 1;
    let later = three.submit(0, &READ_BLOCK_0, None, 512);
    *two.cmd_sn() = next;
    let earlier = two.command(0, &READ_BLOCK_0, None, 512);
    assert_eq!(earlier, Ended { status: GOOD, sense: None, data: vec![7; 512] });
    assert_eq!(three.finish(later, &[]).unwrap().data, [7; 512]);
    // No more than three were agreed.
    *one.cmd_sn() = next + 2;
    assert_eq!(Host::join(&one, node.portal(), A, 4).err(), Some(0x0206));
    assert_eq!(one.read(0, 0, 1).status, GOOD);
}

#[test]
fn a_lost_connection_ends_its_session_on_all_others() {
    let node = node();
    for leading_is_lost in [true, false] {
        let one = leading(&node);
        let two = join(&node, &one, 2);
        let (lost, mut left) = if leading_is_lost { (one, two) } else { (two, one) };
        drop(lost);
        left.wait_closed();
    }
    assert_eq!(leading(&node).read(0, 0, 1).status, GOOD);
}

#[test]
fn the_leading_connection_logs_out_and_the_session_goes_on() {
    let node = node();
    let mut one = leading(&node);
    let mut two = join(&node, &one, 2);
    assert_eq!(one.log_out(1), 0);
    one.wait_closed();
    assert_eq!(two.write(0, 5, &[9; 512]).status, GOOD);
    let mut three = join(&node, &two, 3);
    assert_eq!(three.read(0, 5, 1).data, [9; 512]);
    *two.cmd_sn() = *three.cmd_sn();
    assert_eq!(two.log_out(7), 1, "there is no such connection");
    assert_eq!(two.log_out(3), 0, "one connection logs out another");
    three.wait_closed();
    assert_eq!(two.read(0, 5, 1).data, [9; 512]);
    assert_eq!(two.log_out(2), 0);
    two.wait_closed();
}

#[test]
fn a_connection_is_reinstated_under_its_number() {
    let node = node();
    let one = leading(&node);
    let mut old = join(&node, &one, 2);
    let mut new = join(&node, &one, 2);
    old.wait_closed();
    assert_eq!(new.read(0, 0, 1).status, GOOD);
}

#[test]
fn a_session_is_joined_by_its_own_nexus_only() {
    let node = node();
    let mut one = leading(&node);
    assert_eq!(Host::join(&one, node.portal(), B, 2).err(), Some(0x020a));
    let stranger = Host::join(&one, node.portal(), "iqn.2026-01.example:stranger", 2);
    assert_eq!(stranger.err(), Some(0x0202));
    assert_eq!(one.read(0, 0, 1).status, GOOD);
    // A newer login of the nexus ends the whole session.
    let mut two = join(&node, &one, 2);
    let mut newer = Host::log_in(node.portal(), A, 1).unwrap();
    one.wait_closed();
    two.wait_closed();
    newer.settle(0);
}

#[test]
fn a_node_that_stops_answers_what_is_under_way_and_asks_every_connection_to_log_out() {
    let node = node();
    let mut one = leading(&node);
    let mut two = join(&node, &one, 2);
    assert_eq!(two.write(0, 3, &[5; 512]).status, GOOD);
    std::thread::scope(|scope| {
        scope.spawn(|| node.plane().stop());
        for host in [&mut one, &mut two] {
            let asked = host.unasked();
            assert!(matches!(asked, TargetPdu::Async(message) if message.event == ASKED), "{asked:?}");
        }
        // What comes now is not begun; what initiators do not end the node does.
        *one.cmd_sn() = *two.cmd_sn();
        let late = one.submit(0, &READ_BLOCK_0, None, 512);
        assert!(one.finish(late, &[]).map_or(true, |ended| ended.status == BUSY));
        two.wait_closed();
        one.wait_closed();
    });
    assert!(std::net::TcpStream::connect(node.portal()).is_err(), "nobody listens any more");
}
