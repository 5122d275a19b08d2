//! What commands change of a logical unit, as hosts on different nodes see it, through the loss of a host and a restart of the cluster.

use std::net::TcpStream;

use anyhow::{Context, ensure};
use holdfast_tests::{
    cdb,
    cluster::{Cluster, INITIATOR_A, INITIATOR_B},
    initiator::Initiator,
    raw::RawInitiator,
};

const RESERVE: &str = "160000000000";
const RELEASE: &str = "170000000000";
/// MODE SENSE(6) of the Control page without a block descriptor: current and saved values.
const CONTROL: &str = "1a080a00ff00";
const CONTROL_SAVED: &str = "1a08ca00ff00";
/// MODE SELECT(6) with SP=1 of 16 bytes, and a Control page with D_SENSE=1 and TAS=1.
const SELECT: &str = "151100001000";
const CONTROL_PAGE: &str = "000000000a0a061000400000ffff0000";
/// SANITIZE, BLOCK ERASE.
const BLOCK_ERASE: &str = "48020000000000000000";

/// Bytes 2 to 5 of the Control page.
fn control(host: &mut Initiator, sense: &str) -> anyhow::Result<Vec<u8>> {
    let data = host.read(0, sense, 255)?.good()?;
    Ok(data[6..10].to_vec())
}

#[test]
fn mode_parameters_are_one_truth_for_all_nodes_and_outlive_the_owner() -> anyhow::Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.volume_for_both("disk", "16MiB", "node-1", 0)?;
    let (mut a, mut b) = cluster.log_in_both()?;
    b.write(0, SELECT, CONTROL_PAGE)?.good()?;
    a.command(0, cdb::TEST_UNIT_READY)?.check("6/2a/01")?;
    for host in [&mut a, &mut b] {
        ensure!(control(host, CONTROL)? == [0x06, 0x10, 0x00, 0x40]);
        ensure!(control(host, CONTROL_SAVED)? == [0x06, 0x10, 0x00, 0x40]);
    }
    drop((a, b));
    cluster.stop()?;
    cluster.up(&[])?;
    let (mut a, b) = cluster.log_in_both()?;
    ensure!(control(&mut a, CONTROL)? == [0x06, 0x10, 0x00, 0x40], "lost with the processes");
    drop((a, b));
    cluster.stop()
}

#[test]
fn an_spc2_reservation_holds_on_every_node_and_ends_with_its_host() -> anyhow::Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.volume_for_both("disk", "16MiB", "node-1", 0)?;
    let (mut a, mut b) = cluster.log_in_both()?;
    b.command(0, RESERVE)?.good()?;
    a.read_blocks(0, 0, 1)?.conflict()?;
    a.command(0, RESERVE)?.conflict()?;
    b.write_blocks(0, 0, 1, 7)?.good()?;
    b.command(0, RELEASE)?.good()?;
    a.command(0, RESERVE)?.good()?;
    b.read_blocks(0, 0, 1)?.conflict()?;
    // The host goes away without a word.
    a.abandon();
    cluster.wait_for("the end of the reservation", || {
        ensure!(b.read_blocks(0, 0, 1)?.good().is_ok(), "still reserved");
        Ok(())
    })?;
    drop(b);
    cluster.stop()
}

#[test]
fn sanitize_leaves_zeroes_through_every_path() -> anyhow::Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.volume_for_both("disk", "64MiB", "node-1", 0)?;
    let (mut a, mut b) = cluster.log_in_both()?;
    a.write_blocks(0, 1000, 8, 0x5a)?.good()?;
    b.command(0, BLOCK_ERASE)?.good()?;
    for host in [&mut a, &mut b] {
        let read = host.read_blocks(0, 1000, 8)?.good()?;
        ensure!(read.iter().all(|byte| *byte == 0), "old data is left");
    }
    drop((a, b));
    cluster.stop()
}

/// (number, state) of the target port groups, and the STATUS CODE of the first.
fn groups(host: &mut Initiator, lun: u16) -> anyhow::Result<(Vec<(u16, u8)>, u8)> {
    let data = host.read(lun, cdb::REPORT_TARGET_PORT_GROUPS, 1024)?.good()?;
    let (mut groups, mut at) = (Vec::new(), 4);
    while let Some([state, _, high, low, _, _, _, ports]) = data.get(at..at + 8) {
        groups.push((u16::from_be_bytes([*high, *low]), state & 0x0f));
        at += 8 + 4 * usize::from(*ports);
    }
    Ok((groups, data[9]))
}

/// SET TARGET PORT GROUPS: this group becomes active/optimized.
fn set_group(group: u16) -> (&'static str, String) {
    ("a40a00000000000000080000", format!("000000000000{group:04x}"))
}

#[test]
fn a_host_makes_its_own_path_the_optimized_one() -> anyhow::Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.volume_for_both_with("disk", "16MiB", "node-1", 0, &["--replicas", "2"])?;
    cluster.volume_for_both("alone", "16MiB", "node-1", 1)?;
    let (mut a, mut b) = cluster.log_in_both()?;
    a.become_ready(1)?;
    b.become_ready(1)?;
    let inquiry = a.read(0, cdb::INQUIRY, 255)?.good()?;
    ensure!(inquiry[5] & 0x30 == 0x30, "TPGS is not 11b");
    let (before, _) = groups(&mut a, 0)?;
    let slow = before.iter().find(|(_, state)| *state == 1).context("an active/non-optimized group")?.0;
    let fast = before.iter().find(|(_, state)| *state == 0).context("an active/optimized group")?.0;
    a.write_blocks(0, 0, 8, 0x5a)?.good()?;

    let (stpg, list) = set_group(slow);
    b.write(0, stpg, &list)?.good()?;
    // The sender knows it by its status; everyone else is told.
    b.command(0, cdb::TEST_UNIT_READY)?.good()?;
    a.command(0, cdb::TEST_UNIT_READY)?.check("6/2a/06")?;
    for host in [&mut a, &mut b] {
        let (mut states, status) = groups(host, 0)?;
        states.sort_by_key(|(_, state)| *state);
        ensure!(states == [(slow, 0), (fast, 1)] && status == 1, "{states:?} status {status}");
        ensure!(host.read_blocks(0, 0, 8)?.good()?.iter().all(|byte| *byte == 0x5a));
    }
    ensure!(cluster.json(&["volume", "show", "disk"])?["status"]["owner"] == "node-2");
    // And back, through the path that is not the owner's now.
    let (stpg, list) = set_group(fast);
    a.write(0, stpg, &list)?.good()?;
    b.command(0, cdb::TEST_UNIT_READY)?.check("6/2a/06")?;
    a.write_blocks(0, 0, 8, 0xa5)?.good()?;
    ensure!(b.read_blocks(0, 0, 8)?.good()?.iter().all(|byte| *byte == 0xa5));

    // A node without an in-sync copy cannot be the owner; nothing changes, nobody is told.
    let (stpg, list) = set_group(slow);
    b.write(1, stpg, &list)?.check("4/67/0a")?;
    b.write(1, stpg, "0000000002000001")?.check("5/26/00")?;
    a.command(1, cdb::TEST_UNIT_READY)?.good()?;
    // It needs the rights of a writer.
    a.reserve_out(0, cdb::REGISTER, 0, 0, 0xa)?.good()?;
    a.reserve_out(0, cdb::RESERVE, cdb::WRITE_EXCLUSIVE, 0xa, 0)?.good()?;
    b.write(0, stpg, &list)?.conflict()?;
    drop((a, b));
    cluster.stop()
}

#[test]
fn commands_of_32_bytes_come_through_every_path() -> anyhow::Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.volume_for_both("disk", "16MiB", "node-1", 0)?;
    let mut a = Initiator::login(&cluster.portals[0], &cluster.target, INITIATOR_A, 1, None)?;
    a.become_ready(0)?;
    for (at, portal) in cluster.portals.iter().enumerate() {
        let lba = 100 + at as u8;
        let mut b = RawInitiator::login(TcpStream::connect(portal)?, &cluster.target, INITIATOR_B, 1)?;
        b.become_ready(0)?;
        let mut write = [0; 32];
        [write[0], write[7], write[9], write[19], write[31]] = [0x7f, 0x18, 0x0b, lba, 1];
        ensure!(b.write(0, &write, vec![lba; 512])? == 0, "WRITE(32) through {portal}");
        ensure!(a.read_blocks(0, lba.into(), 1)?.good()? == vec![lba; 512]);
        // Without its second half it is no command; the data is not written.
        ensure!(b.write(0, &write[..16], vec![0; 512])? == 0x02, "half of a WRITE(32)");
        ensure!(a.read_blocks(0, lba.into(), 1)?.good()? == vec![lba; 512]);
    }
    drop(a);
    cluster.stop()
}

/// Threshold sets of 2 MiB that the pool has left, by the Logical Block Provisioning log page.
fn sets_left(page: &[u8]) -> anyhow::Result<u32> {
    ensure!(page.get(4..6) == Some(&[0, 1]), "no count of available resources: {page:x?}");
    Ok(u32::from_be_bytes(page[8..12].try_into()?))
}

/// LOG SENSE of that page.
const PROVISIONING: &str = "4d004c00000000010000";

#[test]
fn a_pool_that_runs_short_is_told_before_it_is_full() -> anyhow::Result<()> {
    let mut cluster = Cluster::start_with_small_pool("48m")?;
    // Each fits by itself; both together do not.
    cluster.volume_for_both("disk", "40MiB", "node-1", 0)?;
    cluster.volume_for_both("other", "40MiB", "node-1", 1)?;
    let mut a = Initiator::login(&cluster.portals[0], &cluster.target, INITIATOR_A, 1, None)?;
    a.become_ready(0)?;
    a.become_ready(1)?;
    let left = cluster
        .wait_for("the count of threshold sets", || sets_left(&a.read(0, PROVISIONING, 256)?.good()?))?;
    ensure!((8..=24).contains(&left), "{left} sets in 48 MiB");
    // MODE SELECT(6) of 1C/02: available resources, 6 sets.
    let page = format!("000000005c02001c{:024}80010000{:08x}0102000000000000", 0, 6);
    a.write(0, "151000002400", &page)?.good()?;
    a.command(0, cdb::TEST_UNIT_READY)?.good()?;
    let mut written = 0;
    let told = cluster.wait_for("the threshold", || {
        // Whichever command comes first is told.
        let page = a.read(0, PROVISIONING, 256)?;
        if page.status != 0 {
            return Ok(page);
        }
        ensure!(sets_left(&page.data)? > 6, "nothing is told");
        let answer = a.write_blocks(0, written % 40 * 2048, 2048, 0x5a)?;
        written += 1;
        ensure!(answer.status != 0, "nothing is told yet");
        Ok(answer)
    })?;
    told.check("6/38/07")?;
    a.command(0, cdb::TEST_UNIT_READY)?.good()?;
    // Full: refused, and nothing that was acknowledged is lost.
    let full = (0..40).find(|mib| {
        a.write_blocks(1, mib * 2048, 2048, 0xa5).is_ok_and(|answer| answer.check("7/27/07").is_ok())
    });
    let full = full.context("more than 48 MiB fitted")?;
    ensure!(full > 0 && a.read_blocks(1, (full - 1) * 2048, 2048)?.good()?.iter().all(|byte| *byte == 0xa5));
    ensure!(a.read_blocks(0, 0, 2048)?.good()?.iter().all(|byte| *byte == 0x5a));
    drop(a);
    cluster.stop()
}
