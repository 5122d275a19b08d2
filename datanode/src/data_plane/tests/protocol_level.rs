//! What iSCSIProtocolLevel 2 brings (RFC 7144), through a real portal: queries, I_T NEXUS RESET, status qualifiers.

use holdfast_iscsi::initiator::TargetPdu;
use holdfast_iscsi::pdu::ReadyToTransfer;
use holdfast_proto::state::change::Change as Record;
use holdfast_scsi::sense::asc;
use holdfast_scsi::status::Status;

use super::host::Host;
use super::portal::{A, B, node};
use super::standalone::Standalone;

const GOOD: u8 = Status::Good.code();
const FUNCTION_COMPLETE: u8 = 0;
const LUN_DOES_NOT_EXIST: u8 = 2;
const FUNCTION_SUCCEEDED: u8 = 7;
const QUERY_TASK: u8 = 9;
const QUERY_TASK_SET: u8 = 10;
const I_T_NEXUS_RESET: u8 = 11;
const QUERY_ASYNCHRONOUS_EVENT: u8 = 12;
const NO_TASK: u32 = u32::MAX;

fn host(node: &Standalone, name: &str) -> Host {
    let mut host = Host::log_in(node.portal(), name, 1).unwrap();
    host.settle(0);
    host
}

/// A WRITE that waits for its data.
fn begin_write(host: &mut Host, data: &[u8]) -> (u32, ReadyToTransfer) {
    let blocks = (data.len() / 512) as u8;
    let tag = host.submit(0, &[0x2a, 0, 0, 0, 0, 0, 0, 0, blocks, 0], Some(data), 0);
    match host.unasked() {
        TargetPdu::ReadyToTransfer(r2t) => (tag, r2t),
        other => panic!("{other:?}"),
    }
}

#[test]
fn query_task_finds_a_task_as_long_as_it_is_there() {
    let node = node();
    let (mut a, mut b) = (host(&node, A), host(&node, B));
    let data = [7; 16384];
    let (tag, r2t) = begin_write(&mut a, &data);
    assert_eq!(a.task_management(QUERY_TASK, 0, tag), FUNCTION_SUCCEEDED);
    assert_eq!(a.task_management(QUERY_TASK_SET, 0, NO_TASK), FUNCTION_SUCCEEDED);
    assert_eq!(a.task_management(QUERY_TASK, 0, tag + 1000), FUNCTION_COMPLETE, "no such task");
    assert_eq!(b.task_management(QUERY_TASK_SET, 0, NO_TASK), FUNCTION_COMPLETE, "of the nexus alone");
    assert_eq!(a.task_management(QUERY_TASK_SET, 9, NO_TASK), LUN_DOES_NOT_EXIST);
    a.send_solicited(&r2t, &data);
    assert_eq!(a.finish(tag, &data).unwrap().status, GOOD);
    assert_eq!(a.task_management(QUERY_TASK, 0, tag), FUNCTION_COMPLETE);
    assert_eq!(a.task_management(QUERY_TASK_SET, 0, NO_TASK), FUNCTION_COMPLETE);
}

#[test]
fn a_command_that_is_held_is_in_the_task_set() {
    let node = node();
    let mut a = host(&node, A);
    let mut lost = node.volume(1, 64 << 20);
    lost.epoch.as_mut().unwrap().number = 3;
    lost.owner_incarnation = 99;
    node.authority.change(vec![Record::Volume(lost)]);
    let held = a.submit(0, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], None, 512);
    assert_eq!(a.task_management(QUERY_TASK, 0, held), FUNCTION_SUCCEEDED);
    assert_eq!(a.task_management(QUERY_TASK_SET, 0, NO_TASK), FUNCTION_SUCCEEDED);
    let mut back = node.volume(1, 64 << 20);
    back.epoch.as_mut().unwrap().number = 4;
    node.authority.change(vec![Record::Volume(back)]);
    assert_eq!(a.finish(held, &[]).unwrap().status, GOOD, "asking has not harmed it");
}

#[test]
fn i_t_nexus_reset_ends_what_the_nexus_has_in_every_unit_and_nothing_of_others() {
    let node = node();
    let (mut a, mut b) = (host(&node, A), host(&node, B));
    let second = node.volume(2, 1 << 20);
    node.authority.change(vec![
        Record::Volume(second),
        Standalone::mapping("a", 2, 1),
        Standalone::mapping("b", 2, 1),
    ]);
    for lun in [0, 1] {
        a.settle(lun);
        b.settle(lun);
    }
    assert_eq!(a.reserve_out(0, 0, 0, 0, 0xa).status, GOOD);
    assert_eq!(a.command(1, &[0x16, 0, 0, 0, 0, 0], None, 0).status, GOOD);
    let (doomed, _) = begin_write(&mut a, &[9; 16384]);
    assert_eq!(a.task_management(I_T_NEXUS_RESET, 0, NO_TASK), FUNCTION_COMPLETE);
    assert_eq!(a.task_management(QUERY_TASK, 0, doomed), FUNCTION_COMPLETE, "it was aborted");
    assert_eq!((a.settle(0), a.settle(1)), (vec![asc::I_T_NEXUS_LOSS], vec![asc::I_T_NEXUS_LOSS]));
    assert_eq!((b.settle(0), b.settle(1)), (vec![], vec![]));
    assert_eq!(b.command(1, &[0x16, 0, 0, 0, 0, 0], None, 0).status, GOOD, "the SPC-2 reservation has ended");
    let keys = a.command(0, &[0x5e, 0, 0, 0, 0, 0, 0, 0, 64, 0], None, 64).data;
    assert_eq!(keys.get(8..16), Some(&0xa_u64.to_be_bytes()[..]), "a registration stays");
    assert_eq!(a.read(0, 0, 1).data, [0; 512], "nothing of the aborted write");
}

#[test]
fn query_asynchronous_event_tells_of_a_unit_attention_and_leaves_it() {
    let node = node();
    let mut a = Host::log_in(node.portal(), A, 1).unwrap();
    let pending = (FUNCTION_SUCCEEDED, [0x16, 0x29, 0x00]);
    assert_eq!(a.ask(QUERY_ASYNCHRONOUS_EVENT, 0, NO_TASK), pending);
    assert_eq!(a.ask(QUERY_ASYNCHRONOUS_EVENT, 0, NO_TASK), pending, "it stays");
    assert_eq!(a.settle(0), [asc::POWER_ON_OR_RESET]);
    assert_eq!(a.ask(QUERY_ASYNCHRONOUS_EVENT, 0, NO_TASK), (FUNCTION_COMPLETE, [0; 3]));
    assert_eq!(a.ask(QUERY_ASYNCHRONOUS_EVENT, 9, NO_TASK), (LUN_DOES_NOT_EXIST, [0; 3]));
}
