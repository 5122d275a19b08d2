//! What commands change of a logical unit, as hosts on different nodes see it, through the loss of a host and a restart of the cluster.

use anyhow::ensure;
use holdfast_tests::{cdb, cluster::Cluster, initiator::Initiator};

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
