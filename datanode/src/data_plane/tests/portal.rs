//! Sessions and commands through a real portal.

use holdfast_iscsi::initiator::TargetPdu;
use holdfast_iscsi::pdu::AsyncEvent;
use holdfast_proto::state::change::Change as Record;
use holdfast_scsi::sense::asc;
use holdfast_scsi::status::Status;

use super::host::{Closed, Host};
use super::standalone::Standalone;

pub(super) const A: &str = "iqn.2026-01.example:a";
pub(super) const B: &str = "iqn.2026-01.example:b";
const GOOD: u8 = Status::Good.code();
const CHECK: u8 = Status::CheckCondition.code();
const CONFLICT: u8 = Status::ReservationConflict.code();

/// A node with volume 1 (64 MiB) as LUN 0 of hosts a and b.
pub(super) fn node() -> Standalone {
    let node = Standalone::start("127.0.0.1:0".parse().unwrap());
    let volume = node.volume(1, 64 << 20);
    node.authority.change(vec![
        Record::Volume(volume),
        Standalone::host("a", &[A]),
        Standalone::host("b", &[B]),
        Standalone::mapping("a", 1, 0),
        Standalone::mapping("b", 1, 0),
    ]);
    node
}

fn host(node: &Standalone, name: &str) -> Host {
    let mut host = Host::log_in(node.portal(), name, 1).unwrap();
    host.settle(0);
    host
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n ^ (n >> 9)) as u8).collect()
}

#[test]
fn initiator_of_no_host_is_refused() {
    let node = node();
    assert_eq!(Host::log_in(node.portal(), "iqn.2026-01.example:stranger", 1).err(), Some(0x0202));
    assert!(Host::log_in(node.portal(), "IQN.2026-01.EXAMPLE:A", 1).is_ok(), "names have no case");
}

#[test]
fn nobody_logs_in_without_a_lease() {
    let node = node();
    node.shared.gate.close();
    assert_eq!(Host::log_in(node.portal(), A, 1).err(), Some(0x0301));
}

#[test]
fn login_waits_for_the_lease() {
    let node = node();
    node.shared.gate.close();
    std::thread::scope(|scope| {
        // Whether the login arrives before or after the gate opens, it succeeds.
        let host = scope.spawn(|| Host::log_in(node.portal(), A, 1).map(|mut a| a.settle(0)));
        node.open_gate();
        assert_eq!(host.join().unwrap().ok(), Some(vec![asc::POWER_ON_OR_RESET]));
    });
}

#[test]
fn new_nexus_reports_29_00_once_on_each_lun() {
    let node = node();
    let mut a = Host::log_in(node.portal(), A, 1).unwrap();
    assert_eq!(a.settle(0), [asc::POWER_ON_OR_RESET]);
    assert_eq!(a.settle(0), []);
}

#[test]
fn what_is_written_is_read_back_by_another_host() {
    let node = node();
    let (mut a, mut b) = (host(&node, A), host(&node, B));
    for (lba, len) in [(0, 512), (7, 8192), (1000, 300 * 1024), (9000, 1 << 20)] {
        assert_eq!(a.write(0, lba, &pattern(len)).status, GOOD);
        let read = b.read(0, lba, (len / 512) as u16);
        assert_eq!(read.status, GOOD);
        assert!(read.data == pattern(len), "lba {lba}");
    }
    assert_eq!(a.command(0, &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], None, 0).status, GOOD);
}

#[test]
fn write_of_what_was_not_announced_is_never_good() {
    let node = node();
    let mut a = host(&node, A);
    assert_eq!(a.write(0, 0, &pattern(1024)).status, GOOD);
    let two_blocks = [0x2a, 0, 0, 0, 0, 0, 0, 0, 2, 0];
    // Data to the initiator, half a block: refused.
    let backwards = a.command(0, &two_blocks, None, 1024);
    assert_eq!(backwards.additional(), Some(asc::INVALID_FIELD_IN_COMMAND_IU));
    let part = a.command(0, &two_blocks, Some(&[7; 700]), 0);
    assert_eq!(part.additional(), Some(asc::INVALID_FIELD_IN_COMMAND_IU));
    assert!(a.read(0, 0, 2).data == pattern(1024));
    // One whole block: that one is written, the rest is the residual.
    assert_eq!(a.command(0, &two_blocks, Some(&[7; 512]), 0).status, GOOD);
    assert!(a.read(0, 0, 2).data == [&[7; 512], &pattern(1024)[512..]].concat());
}

#[test]
fn data_survives_a_restart_of_the_node() {
    let dir = tempfile::tempdir().unwrap();
    let portal = "127.0.0.1:0".parse().unwrap();
    for incarnation in 1..=3_u64 {
        let node = Standalone::start_in(portal, dir.path(), incarnation);
        let mut volume = node.volume(1, 64 << 20);
        volume.epoch.as_mut().unwrap().number = 1 + incarnation;
        let records =
            vec![Record::Volume(volume), Standalone::host("a", &[A]), Standalone::mapping("a", 1, 0)];
        node.authority.change(records);
        let mut a = host(&node, A);
        if incarnation == 1 {
            assert_eq!(a.write(0, 5, &pattern(4096)).status, GOOD);
        }
        assert!(a.read(0, 5, 8).data == pattern(4096), "incarnation {incarnation}");
    }
}

#[test]
fn missing_replica_of_a_used_volume_is_an_error_and_not_zeroes() {
    let node = Standalone::start("127.0.0.1:0".parse().unwrap());
    let mut volume = node.volume(1, 64 << 20);
    volume.epoch.as_mut().unwrap().number = 9;
    let records = vec![Record::Volume(volume), Standalone::host("a", &[A]), Standalone::mapping("a", 1, 0)];
    node.authority.change(records);
    let mut a = host(&node, A);
    let read = a.read(0, 0, 1);
    assert_eq!((read.status, read.additional()), (CHECK, Some(asc::INTERNAL_TARGET_FAILURE)));
}

#[test]
fn absent_lun_answers_for_itself_and_lun_0_enumerates() {
    let node = node();
    let records = vec![Standalone::host("c", &["iqn.2026-01.example:c"])];
    node.authority.change(records);
    let mut c = Host::log_in(node.portal(), "iqn.2026-01.example:c", 1).unwrap();
    let turned_away = c.command(0, &[0; 6], None, 0);
    assert_eq!(turned_away.additional(), Some(asc::LOGICAL_UNIT_NOT_SUPPORTED));
    let luns = c.command(0, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], None, 256);
    assert_eq!((luns.status, luns.data.get(..4)), (GOOD, Some(&[0; 4][..])));
    let refused = c.write(0, 0, &pattern(512 * 1024));
    assert_eq!(refused.additional(), Some(asc::LOGICAL_UNIT_NOT_SUPPORTED));
}

#[test]
fn reservation_of_one_host_shuts_the_other_out() {
    let node = node();
    let (mut a, mut b) = (host(&node, A), host(&node, B));
    assert_eq!(a.write(0, 0, &pattern(512)).status, GOOD);
    assert_eq!(a.reserve_out(0, 0, 0, 0, 0xa).status, GOOD);
    assert_eq!(a.reserve_out(0, 1, 1, 0xa, 0).status, GOOD);
    assert_eq!(b.write(0, 0, &[0; 512]).status, CONFLICT);
    assert!(b.read(0, 0, 1).data == pattern(512));
    // The other host takes it away; the first one hears of it, and is shut out itself.
    assert_eq!(b.reserve_out(0, 0, 0, 0, 0xb).status, GOOD);
    assert_eq!(b.reserve_out(0, 4, 1, 0xb, 0xa).status, GOOD);
    assert_eq!(a.write(0, 0, &[0; 512]).status, CONFLICT);
    assert_eq!(a.settle(0), [asc::REGISTRATIONS_PREEMPTED]);
    let keys = a.command(0, &[0x5e, 0, 0, 0, 0, 0, 0, 0, 64, 0], None, 64);
    assert_eq!(keys.data[4..16], [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0xb]);
}

#[test]
fn spc2_reservation_ends_with_its_session() {
    let node = node();
    let (mut a, mut b) = (host(&node, A), host(&node, B));
    assert_eq!(a.command(0, &[0x16, 0, 0, 0, 0, 0], None, 0).status, GOOD);
    assert_eq!(b.write(0, 0, &[0; 512]).status, CONFLICT);
    drop(a);
    while b.write(0, 0, &[0; 512]).status == CONFLICT {
        std::thread::yield_now();
    }
}

#[test]
fn newer_login_of_the_same_nexus_ends_the_older_session() {
    let node = node();
    let mut older = host(&node, A);
    assert_eq!(older.command(0, &[0x16, 0, 0, 0, 0, 0], None, 0).status, GOOD);
    // The workers take connections in turn, so these meet across threads.
    for _ in 0..20 {
        let mut newer = host(&node, A);
        older.wait_closed();
        assert_eq!(newer.write(0, 0, &pattern(512)).status, GOOD);
        older = newer;
    }
    // What the older one held is gone with it.
    assert_eq!(host(&node, B).write(0, 0, &pattern(512)).status, GOOD);
}

#[test]
fn other_isid_is_another_nexus() {
    let node = node();
    let mut first = host(&node, A);
    let mut second = Host::log_in(node.portal(), A, 2).unwrap();
    second.settle(0);
    assert_eq!(first.command(0, &[0; 6], None, 0).status, GOOD);
    assert_eq!(second.command(0, &[0; 6], None, 0).status, GOOD);
}

#[test]
fn changed_map_is_told_on_every_lun() {
    let node = node();
    let mut a = host(&node, A);
    let second = node.volume(2, 1 << 20);
    node.authority.change(vec![Record::Volume(second), Standalone::mapping("a", 2, 7)]);
    assert_eq!(a.settle(0), [asc::REPORTED_LUNS_DATA_CHANGED]);
    assert_eq!(a.settle(7), [asc::POWER_ON_OR_RESET, asc::REPORTED_LUNS_DATA_CHANGED]);
    let luns = a.command(0, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], None, 256);
    assert_eq!((luns.data.len(), luns.data[9], luns.data[17]), (24, 0, 7));
}

#[test]
fn unit_attention_reaches_every_nexus_but_the_excepted_once() {
    use crate::agent::UnitAttentionScope;
    let node = node();
    let (mut a, mut b) = (host(&node, A), host(&node, B));
    let volume = crate::view::VolumeId([1; 16]);
    node.authority.unit_attention(volume, asc::CAPACITY_DATA_CHANGED, &UnitAttentionScope::All);
    assert_eq!(
        (a.settle(0), b.settle(0)),
        (vec![asc::CAPACITY_DATA_CHANGED], vec![asc::CAPACITY_DATA_CHANGED])
    );
    let initiator = holdfast_scsi::transport_id::TransportId::iscsi(A, [0x80, 0, 0, 0, 0, 1]).unwrap();
    let nexus = holdfast_scsi::nexus::Nexus::new(initiator, holdfast_scsi::nexus::RelativePort(1));
    node.authority.unit_attention(volume, asc::CAPACITY_DATA_CHANGED, &UnitAttentionScope::Except(nexus));
    assert_eq!((a.settle(0), b.settle(0)), (vec![], vec![asc::CAPACITY_DATA_CHANGED]));
}

#[test]
fn removed_host_loses_its_session() {
    let node = node();
    let (mut a, mut b) = (host(&node, A), host(&node, B));
    node.authority.change(vec![
        Record::RemovedMapping(holdfast_proto::state::MappingKey {
            host: "a".into(),
            volume_id: vec![1; 16],
        }),
        Record::RemovedHost("a".into()),
    ]);
    a.wait_closed();
    assert_eq!(b.command(0, &[0; 6], None, 0).status, GOOD);
    assert_eq!(Host::log_in(node.portal(), A, 1).err(), Some(0x0202));
}

#[test]
fn commands_wait_for_the_lease_and_run_in_order() {
    let node = node();
    let mut a = host(&node, A);
    node.shared.gate.close();
    let first = pattern(512);
    let write = a.submit(0, &[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0], Some(&first), 0);
    let read = a.submit(0, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], None, 512);
    node.open_gate();
    assert_eq!(a.finish(write, &first).unwrap().status, GOOD);
    assert!(a.finish(read, &[]).unwrap().data == first);
}

#[test]
fn held_command_can_be_aborted() {
    let node = node();
    let mut a = host(&node, A);
    node.shared.gate.close();
    let doomed = a.submit(0, &[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0], Some(&[0xdd; 512]), 0);
    assert_eq!(a.task_management(1, 0, doomed), 0);
    node.open_gate();
    assert_eq!(a.read(0, 0, 1).data, [0; 512], "aborted before it ran, so it never runs");
}

#[test]
fn logical_unit_reset_is_told_to_the_others() {
    let node = node();
    let (mut a, mut b) = (host(&node, A), host(&node, B));
    assert_eq!(a.task_management(5, 0, u32::MAX), 0);
    assert_eq!(b.settle(0), [asc::BUS_DEVICE_RESET]);
    assert_eq!(a.task_management(5, 9, u32::MAX), 2, "there is no such LUN");
}

#[test]
fn target_reset_resets_every_mapped_unit() {
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
    assert_eq!(b.command(1, &[0x16, 0, 0, 0, 0, 0], None, 0).status, GOOD);
    assert_eq!(a.task_management(6, 0, u32::MAX), 0);
    assert_eq!((b.settle(0), b.settle(1)), (vec![asc::BUS_DEVICE_RESET], vec![asc::BUS_DEVICE_RESET]));
    a.settle(1);
    assert_eq!(
        a.command(1, &[0x16, 0, 0, 0, 0, 0], None, 0).status,
        GOOD,
        "the reset has ended the reservation"
    );
    assert_eq!(a.task_management(7, 0, u32::MAX), 5, "a cold reset would end other hosts' sessions");
}

#[test]
fn larger_volume_shows_its_new_size_and_keeps_its_data() {
    let node = node();
    let mut a = host(&node, A);
    assert_eq!(a.write(0, 3, &pattern(512)).status, GOOD);
    node.authority.change(vec![Record::Volume(node.volume(1, 128 << 20))]);
    let capacity = a.command(0, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], None, 8);
    assert_eq!(capacity.data[..4], ((128_u32 << 20) / 512 - 1).to_be_bytes());
    assert_eq!(a.write(0, (64 << 20) / 512, &pattern(4096)).status, GOOD);
    assert!(a.read(0, 3, 1).data == pattern(512));
}

#[test]
fn deleted_volume_loses_its_replica_and_nothing_else() {
    let node = node();
    let mut a = host(&node, A);
    let second = node.volume(2, 1 << 20);
    node.authority.change(vec![Record::Volume(second.clone()), Standalone::mapping("a", 2, 1)]);
    a.settle(0);
    a.settle(1);
    let mut deleting = second;
    deleting.deleting = true;
    node.authority.change(vec![
        Record::RemovedMapping(holdfast_proto::state::MappingKey {
            host: "a".into(),
            volume_id: vec![2; 16],
        }),
        Record::Volume(deleting),
    ]);
    while node.authority.removed().is_empty() {
        std::thread::yield_now();
    }
    assert_eq!(a.settle(0), [asc::REPORTED_LUNS_DATA_CHANGED]);
    assert_eq!(a.write(0, 0, &pattern(512)).status, GOOD);
}

#[test]
fn ownership_that_ends_leaves_commands_waiting_and_not_executed() {
    let node = node();
    let mut a = host(&node, A);
    let mut lost = node.volume(1, 64 << 20);
    lost.epoch.as_mut().unwrap().number = 3;
    lost.owner_incarnation = 99;
    node.authority.change(vec![Record::Volume(lost)]);
    let data = pattern(512);
    let write = a.submit(0, &[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0], Some(&data), 0);
    let mut back = node.volume(1, 64 << 20);
    back.epoch.as_mut().unwrap().number = 4;
    node.authority.change(vec![Record::Volume(back)]);
    assert_eq!(a.finish(write, &data).unwrap().status, GOOD);
    assert!(a.read(0, 0, 1).data == data);
}

#[test]
fn stopped_node_closes_its_sessions() {
    let node = node();
    let mut a = host(&node, A);
    node.plane().stop();
    let mut told = || match a.unasked() {
        TargetPdu::Async(message) => message.event,
        other => panic!("{other:?}"),
    };
    assert!(matches!(told(), AsyncEvent::RequestLogout { .. }));
    assert!(matches!(told(), AsyncEvent::DropSession { time_2_retain: 0, .. }));
    let tag = a.submit(0, &[0; 6], None, 0);
    assert_eq!(a.finish(tag, &[]), Err(Closed), "behind that there is nothing more");
}
