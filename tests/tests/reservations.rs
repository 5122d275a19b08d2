//! Persistent reservations as hosts on different nodes see them, through the loss of a controller and of the whole cluster.

use anyhow::ensure;
use holdfast_tests::{
    cdb,
    cluster::{Cluster, INITIATOR_A, INITIATOR_B},
    initiator::{GOOD, Initiator},
    tools::{qemu_image, run},
};
use rustix::process::Signal;

const KEY_A: u64 = 0xa;
const KEY_B: u64 = 0xb;

#[test]
fn a_reservation_through_one_node_refuses_a_write_through_the_other() -> anyhow::Result<()> {
    let mut cluster = Cluster::start()?;
    for (owner, lun) in [("node-1", 0), ("node-2", 1)] {
        cluster.volume_for_both(&format!("on-{owner}"), "16MiB", owner, lun)?;
    }
    let (mut a, mut b) = cluster.log_in_both()?;
    for lun in [0, 1] {
        a.become_ready(lun)?;
        b.become_ready(lun)?;
        a.reserve_out(lun, cdb::REGISTER, 0, 0, KEY_A)?.good()?;
        a.reserve_out(lun, cdb::RESERVE, cdb::WRITE_EXCLUSIVE, KEY_A, 0)?.good()?;
        a.write_blocks(lun, 0, 8, 0x5a)?.good()?;
        b.write_blocks(lun, 0, 8, 0xb0)?.conflict()?;
        let read = b.read_blocks(lun, 0, 8)?.good()?;
        ensure!(read.iter().all(|byte| *byte == 0x5a), "the refused write left its bytes");
        // Exclusive access refuses reads too.
        a.reserve_out(lun, cdb::RELEASE, cdb::WRITE_EXCLUSIVE, KEY_A, 0)?.good()?;
        a.reserve_out(lun, cdb::RESERVE, cdb::EXCLUSIVE_ACCESS, KEY_A, 0)?.good()?;
        b.read_blocks(lun, 0, 8)?.conflict()?;
        // QEMU's driver sees the same.
        let image = qemu_image(&cluster.portals[1], &cluster.target, lun, INITIATOR_B);
        let write = run("qemu-io", &["--image-opts", &image, "-c", "write -P 7 0 4096"])?;
        ensure!(!write.status.success() || String::from_utf8_lossy(&write.stdout).contains("failed"));
    }
    drop((a, b));
    cluster.stop()
}

#[test]
fn a_preempted_host_on_another_node_is_told_and_fenced() -> anyhow::Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.volume_for_both("disk", "16MiB", "node-1", 0)?;
    let (mut a, mut b) = cluster.log_in_both()?;
    let kind = cdb::WRITE_EXCLUSIVE_REGISTRANTS_ONLY;
    a.reserve_out(0, cdb::REGISTER, 0, 0, KEY_A)?.good()?;
    b.reserve_out(0, cdb::REGISTER, 0, 0, KEY_B)?.good()?;
    a.reserve_out(0, cdb::RESERVE, kind, KEY_A, 0)?.good()?;
    b.write_blocks(0, 0, 1, 1)?.good()?;
    a.reserve_out(0, cdb::PREEMPT_AND_ABORT, kind, KEY_A, KEY_B)?.good()?;
    // A conflict is checked before this Unit Attention and does not consume it.
    b.write_blocks(0, 0, 1, 2)?.conflict()?;
    b.command(0, cdb::TEST_UNIT_READY)?.check("6/2a/05")?;
    b.command(0, cdb::TEST_UNIT_READY)?.good()?;
    let keys = b.read(0, &cdb::persistent_reserve_in(0), 4096)?.good()?;
    ensure!(keys[4..8] == [0, 0, 0, 8] && keys[8..16] == KEY_A.to_be_bytes(), "keys {keys:x?}");
    drop((a, b));
    cluster.stop()
}

#[test]
fn reservations_and_io_outlive_the_leader_and_the_cluster() -> anyhow::Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.volume_for_both("disk", "16MiB", "node-1", 0)?;
    let (mut a, mut b) = cluster.log_in_both()?;
    a.reserve_out(0, cdb::REGISTER, 0, 0, KEY_A)?.good()?;
    a.reserve_out(0, cdb::RESERVE, cdb::WRITE_EXCLUSIVE, KEY_A, 0)?.good()?;

    let leader = cluster.leader()?;
    cluster.signal(&leader, Signal::KILL)?;
    // No host notices: neither I/O nor refusals wait for the election.
    for round in 0..50_u8 {
        a.write_blocks(0, u32::from(round), 1, round)?.good()?;
        b.write_blocks(0, u32::from(round), 1, 0xff)?.conflict()?;
    }
    cluster.wait_for("another leader", || {
        let new = cluster.leader()?;
        ensure!(new != leader, "still {leader}");
        Ok(())
    })?;
    // Changes are agreed again by the two that are left.
    a.reserve_out(0, cdb::RELEASE, cdb::WRITE_EXCLUSIVE, KEY_A, 0)?.good()?;
    a.reserve_out(0, cdb::RESERVE, cdb::EXCLUSIVE_ACCESS, KEY_A, 0)?.good()?;
    b.read_blocks(0, 0, 1)?.conflict()?;
    drop((a, b));

    cluster.stop()?;
    cluster.up(&[])?;
    let shown = cluster.json(&["reservation", "show", "disk"])?;
    ensure!(
        shown["type"].as_str().is_some_and(|kind| kind.eq_ignore_ascii_case("exclusive access")),
        "{shown}"
    );
    let (mut a, mut b) = (
        Initiator::login(&cluster.portals[0], &cluster.target, INITIATOR_A, 1, None)?,
        Initiator::login(&cluster.portals[1], &cluster.target, INITIATOR_B, 2, None)?,
    );
    // A new nexus finds a Unit Attention first; the conflict comes for whatever is not exempt.
    a.become_ready(0)?;
    let read = a.read_blocks(0, 7, 1)?.good()?;
    ensure!(read.iter().all(|byte| *byte == 7), "data lost");
    let reservation = a.read(0, &cdb::persistent_reserve_in(1), 4096)?.good()?;
    ensure!(
        reservation[8..16] == KEY_A.to_be_bytes() && reservation[21] == cdb::EXCLUSIVE_ACCESS,
        "{reservation:x?}"
    );
    let refused = (0..4)
        .map(|_| b.read_blocks(0, 7, 1))
        .find(|answer| answer.as_ref().map_or(true, |answer| answer.sense == "0/00/00"));
    refused.expect("an answer other than a Unit Attention")?.conflict()?;
    drop((a, b));
    cluster.stop()
}

#[test]
fn a_lun_reset_through_one_node_is_told_on_the_other() -> anyhow::Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.volume_for_both("disk", "16MiB", "node-1", 0)?;
    let (mut a, mut b) = cluster.log_in_both()?;
    ensure!(b.lun_reset(0)? == 0, "LUN RESET was not complete");
    let answer = a.command(0, cdb::TEST_UNIT_READY)?;
    ensure!(answer.sense.starts_with("6/29/"), "{answer:?}");
    ensure!(a.command(0, cdb::TEST_UNIT_READY)?.status == GOOD);
    drop((a, b));
    cluster.stop()
}
