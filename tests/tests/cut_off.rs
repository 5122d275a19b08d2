//! A node loses its lease while hosts still reach it: it lets them go where it alone is cut off, and keeps them where the controllers are gone.

use std::{thread, time::Duration};

use anyhow::ensure;
use holdfast_tests::{
    cdb,
    clock::boottime_ns,
    cluster::{INITIATOR_A, INITIATOR_B},
    initiator::{GOOD, Initiator},
    netcluster::{NetCluster, Shape},
};
use rustix::process::Signal;

/// Longer than any lease lasts.
const SERVES_ON_MS: u64 = 6_000;

/// A volume of two copies, owned by node 1, and a host that reaches it through node 1 and through node 2.
fn two_paths(cluster: &NetCluster) -> anyhow::Result<(Initiator, Initiator)> {
    cluster.volume_for_both("disk", 0, &["--size", "16MiB", "--node", "node-1,node-2", "--replicas", "2"])?;
    let mut one = cluster.login("host-1", "node-1", INITIATOR_A, 1)?;
    let mut other = cluster.login("host-1", "node-2", INITIATOR_A, 2)?;
    one.become_ready(0)?;
    other.become_ready(0)?;
    one.write_blocks(0, 0, 1, 1)?.good()?;
    Ok((one, other))
}

/// Writes until the path is gone; what was answered GOOD last, and after how many milliseconds the path was.
fn write_until_gone(path: &mut Initiator, begun_ns: u64) -> anyhow::Result<(u8, u64)> {
    let mut last = 1_u8;
    loop {
        let passed_ms = (boottime_ns() - begun_ns) / 1_000_000;
        match path.write_blocks(0, 0, 1, last.wrapping_add(1)) {
            Ok(answer) if answer.status == GOOD => last = last.wrapping_add(1),
            Ok(answer) => anyhow::bail!("a path that is to be left answers nothing: {answer:?}"),
            Err(_) => return Ok((last, (boottime_ns() - begun_ns) / 1_000_000)),
        }
        ensure!(passed_ms < SERVES_ON_MS, "the path serves on without a lease");
    }
}

/// Node 1 is cut off from these; its host moves to the other path, and finds everything there.
fn leaves_the_node(lost: &[&str]) -> anyhow::Result<()> {
    let cluster = NetCluster::start(Shape::default())?;
    let (mut one, mut other) = two_paths(&cluster)?;
    cluster.network.isolate("node-1", lost.iter().copied())?;
    let begun_ns = boottime_ns();
    let (last, gone_ms) = write_until_gone(&mut one, begun_ns)?;
    // The write that the path took with it may have been done.
    let read = cluster.wait_for("the other path", || other.read_blocks(0, 0, 1)?.good())?;
    let stall_ms = (boottime_ns() - begun_ns) / 1_000_000;
    ensure!(
        read.iter().all(|byte| *byte == last || *byte == last.wrapping_add(1)),
        "{last} was acknowledged: {:?}",
        &read[..4]
    );
    other.write_blocks(0, 0, 1, 77)?.good()?;
    println!(
        "cut off from {}: the path was gone after {gone_ms} ms, the other one served after {stall_ms} ms",
        lost.join(", ")
    );
    // It comes back by itself.
    cluster.network.heal()?;
    let mut back =
        cluster.wait_for("a login through node 1", || cluster.login("host-1", "node-1", INITIATOR_A, 3))?;
    // Its own view of its port may be of the time before.
    cluster.wait_for("node 1", || back.become_ready(0))?;
    ensure!(back.read_blocks(0, 0, 1)?.good()?.iter().all(|byte| *byte == 77), "a stale read");
    Ok(())
}

#[test]
fn hosts_leave_an_owner_that_is_cut_off_from_the_controllers_alone() -> anyhow::Result<()> {
    leaves_the_node(&["ctl-1", "ctl-2", "ctl-3"])
}

#[test]
fn hosts_leave_an_owner_that_reaches_nobody_but_them() -> anyhow::Result<()> {
    leaves_the_node(&["ctl-1", "ctl-2", "ctl-3", "node-2"])
}

#[test]
fn hosts_keep_their_paths_while_all_controllers_are_stopped() -> anyhow::Result<()> {
    let cluster = NetCluster::start(Shape::default())?;
    let (mut one, mut other) = two_paths(&cluster)?;
    for controller in cluster.controllers() {
        cluster.signal(&controller, Signal::STOP)?;
    }
    // No lease lasts as long as this, and no node lets hosts go before it.
    thread::sleep(Duration::from_secs(6));
    for controller in cluster.controllers() {
        cluster.signal(&controller, Signal::CONT)?;
    }
    // The same sessions: nobody was thrown off.
    for path in [&mut one, &mut other] {
        cluster.wait_for("the path", || path.command(0, cdb::TEST_UNIT_READY)?.good())?;
        path.write_blocks(0, 0, 1, 9)?.good()?;
    }
    Ok(())
}

#[test]
fn hosts_of_the_only_node_keep_their_paths_while_its_controllers_are_cut_off() -> anyhow::Result<()> {
    let cluster = NetCluster::start(Shape { datanodes: 1, controllers: 1, ..Shape::default() })?;
    cluster.volume_for_both("disk", 0, &["--size", "16MiB"])?;
    let mut path = cluster.login("host-2", "node-1", INITIATOR_B, 1)?;
    path.become_ready(0)?;
    cluster.network.isolate("node-1", ["ctl-1"])?;
    thread::sleep(Duration::from_secs(6));
    cluster.network.heal()?;
    cluster.wait_for("the path", || path.command(0, cdb::TEST_UNIT_READY)?.good())?;
    Ok(())
}
