//! Volumes on pools of every kind, under real initiators, while data nodes are killed.

use std::fs;

use anyhow::{Context, ensure};
use holdfast_tests::{
    cluster::{Cluster, INITIATOR_A},
    initiator::{GOOD, Initiator},
    loop_device::LoopDevice,
    replicated::in_sync,
    tools::{expect_success, qemu_image},
    verifier::{VOLUME_SIZE, Verifier},
};
use rustix::process::Signal;

const DEVICE_LEN: u64 = 256 << 20;
/// Commands that a verifier has answered between two faults.
const SOME: u64 = 150;

/// Two data nodes, each with a directory, a file in place of a device, memory, and nothing; killed ones start again.
fn cluster() -> anyhow::Result<(tempfile::TempDir, Cluster)> {
    let devices = tempfile::tempdir()?;
    for node in ["node-1", "node-2"] {
        fs::File::create(devices.path().join(node))?.set_len(DEVICE_LEN)?;
    }
    let fast = format!("fast=block:{}/{{node}}", devices.path().display());
    let arguments = ["--restart", "--pool", &fast, "--pool", "ram=memory:128MiB", "--pool", "nothing=null:"];
    let cluster = Cluster::start_with(&arguments)?;
    Ok((devices, cluster))
}

fn until_in_sync(cluster: &Cluster, copies: usize) -> anyhow::Result<()> {
    cluster.wait_for("copies in sync", || {
        let shown = cluster.json(&["volume", "show", "disk"])?;
        ensure!(in_sync(&shown) == copies && shown["status"]["state"] == "online", "{shown}");
        Ok(())
    })
}

fn epoch(cluster: &Cluster) -> anyhow::Result<String> {
    Ok(cluster.json(&["volume", "show", "disk"])?["status"]["epoch_number"].to_string())
}

fn epoch_number(cluster: &Cluster) -> anyhow::Result<u64> {
    let epoch = epoch(cluster)?;
    epoch.trim_matches('"').parse().with_context(|| epoch.clone())
}

/// Writes and reads on LUN 0 through both nodes.
fn verifier(cluster: &Cluster) -> Verifier {
    let (portals, target) = (cluster.portals.clone(), cluster.target.clone());
    let login = move |path: usize| {
        let portal = portals.get(path).context("a portal")?;
        let mut session = Initiator::login(portal, &target, INITIATOR_A, 1, None)?;
        session.become_ready(0)?;
        Ok(session)
    };
    Verifier::start(Box::new(login), 2, 0, 11)
}

/// An image of which every third block is not zero.
fn image(folder: &std::path::Path) -> anyhow::Result<String> {
    let path = folder.join("image.raw");
    let block = |at: usize| if at.is_multiple_of(3) { [(at % 255) as u8 + 1; 4096] } else { [0; 4096] };
    fs::write(&path, (0..(24 << 20) / 4096).flat_map(block).collect::<Vec<u8>>())?;
    Ok(path.display().to_string())
}

fn compare(cluster: &Cluster, node: usize, image: &str) -> anyhow::Result<()> {
    let source = format!("driver=raw,file.driver=file,file.filename={image}");
    let there = qemu_image(&cluster.portals[node], &cluster.target, 0, INITIATOR_A);
    let said = expect_success("qemu-img", &["compare", "--image-opts", &there, &source])?;
    ensure!(said.contains("Images are identical"), "{said}");
    Ok(())
}

fn write_image(cluster: &Cluster, image: &str) -> anyhow::Result<()> {
    let there = qemu_image(&cluster.portals[0], &cluster.target, 0, INITIATOR_A);
    expect_success("qemu-img", &["convert", "-n", "-f", "raw", image, "--target-image-opts", &there])?;
    Ok(())
}

#[test]
fn volume_in_a_large_file_loses_nothing_when_its_node_is_killed() -> anyhow::Result<()> {
    let (_files, cluster) = cluster()?;
    loses_nothing_when_its_node_is_killed(cluster)
}

/// Two data nodes, each with a real block device, where the machine gives us such.
fn cluster_on_devices(sector: u32) -> anyhow::Result<Option<(tempfile::TempDir, Vec<LoopDevice>, Cluster)>> {
    let folder = tempfile::tempdir()?;
    let mut devices = Vec::new();
    for node in ["node-1", "node-2"] {
        let file = folder.path().join(format!("{node}.image"));
        fs::File::create(&file)?.set_len(DEVICE_LEN)?;
        let Some(device) = LoopDevice::attach(&file, sector) else { return Ok(None) };
        std::os::unix::fs::symlink(device.path(), folder.path().join(node))?;
        devices.push(device);
    }
    let fast = format!("fast=block:{}/{{node}}", folder.path().display());
    let cluster = Cluster::start_with(&["--restart", "--pool", &fast])?;
    Ok(Some((folder, devices, cluster)))
}

#[test]
fn volume_on_a_block_device_loses_nothing_when_its_node_is_killed() -> anyhow::Result<()> {
    let Some((_folder, _devices, cluster)) = cluster_on_devices(512)? else { return Ok(()) };
    loses_nothing_when_its_node_is_killed(cluster)
}

#[test]
fn block_device_with_large_sectors_keeps_its_volumes_over_a_stop_and_is_one_nodes_alone() -> anyhow::Result<()>
{
    let Some((folder, devices, mut cluster)) = cluster_on_devices(4096)? else { return Ok(()) };
    cluster.volume_for_both_with("disk", "24MiB", "node-1", 0, &["--pool", "fast"])?;
    let image = image(folder.path())?;
    write_image(&cluster, &image)?;
    // A pool that is in use is held exclusively: nobody mounts it, or makes a file system of it.
    let held = is_held(devices[0].path())?;
    cluster.stop()?;
    ensure!(held && !is_held(devices[0].path())?, "the device is held while the node runs, and then no more");
    let fast = format!("fast=block:{}/{{node}}", folder.path().display());
    cluster.up(&["--pool", &fast])?;
    compare(&cluster, 1, &image)?;
    cluster.stop()
}

/// Whether somebody holds a device exclusively.
fn is_held(device: &std::path::Path) -> anyhow::Result<bool> {
    use rustix::fs::{Mode, OFlags};
    match rustix::fs::open(device, OFlags::RDWR | OFlags::EXCL | OFlags::CLOEXEC, Mode::empty()) {
        Ok(_) => Ok(false),
        Err(rustix::io::Errno::BUSY) => Ok(true),
        Err(other) => Err(other.into()),
    }
}

fn loses_nothing_when_its_node_is_killed(mut cluster: Cluster) -> anyhow::Result<()> {
    cluster.volume_for_both_with("disk", VOLUME_SIZE, "node-1", 0, &["--pool", "fast"])?;
    let mut verifier = verifier(&cluster);
    for _ in 0..3 {
        verifier.until_answered(SOME)?;
        let before = epoch(&cluster)?;
        cluster.signal("node-1", Signal::KILL)?;
        cluster.wait_for("the volume under a new epoch", || {
            ensure!(epoch(&cluster)? != before, "still epoch {before}");
            Ok(())
        })?;
    }
    verifier.until_answered(SOME)?;
    let report = verifier.finish()?;
    ensure!(report.writes > SOME && report.reads > 0, "too little was tried: {report:?}");
    // What is unmapped goes back to the pool.
    let free = || -> anyhow::Result<u64> {
        let pool = cluster.json(&["pool", "show", "node-1", "fast"])?;
        ensure!(pool["kind"] == "block", "{pool}");
        Ok(pool["free_bytes"].as_str().context("free_bytes")?.parse()?)
    };
    let before = cluster.wait_for("room that is taken", || {
        let free = free()?;
        ensure!(free < DEVICE_LEN - (56 << 20), "{free} bytes are free");
        Ok(free)
    })?;
    let there = qemu_image(&cluster.portals[0], &cluster.target, 0, INITIATOR_A);
    expect_success("qemu-io", &["--image-opts", "-d", "unmap", &there, "-c", "discard 0 48M"])?;
    cluster.wait_for("room that is given back", || {
        let free = free()?;
        ensure!(free >= before + (40 << 20), "{free} bytes are free, {before} were");
        Ok(())
    })?;
    cluster.stop()
}

#[test]
fn device_keeps_its_volumes_over_a_stop_of_everything() -> anyhow::Result<()> {
    let (devices, mut cluster) = cluster()?;
    cluster.volume_for_both_with(
        "disk",
        "24MiB",
        "node-1",
        0,
        &["--pool", "fast", "--block-size", "4096"],
    )?;
    let image = image(devices.path())?;
    write_image(&cluster, &image)?;
    cluster.stop()?;
    let fast = format!("fast=block:{}/{{node}}", devices.path().display());
    cluster.up(&["--pool", &fast])?;
    compare(&cluster, 1, &image)?;
    cluster.stop()
}

#[test]
fn copies_on_a_device_and_in_a_directory_stand_in_for_each_other() -> anyhow::Result<()> {
    let (devices, mut cluster) = cluster()?;
    let copies = ["--replicas", "2", "--pool", "fast,default"];
    cluster.volume_for_both_with("disk", VOLUME_SIZE, "node-1,node-2", 0, &copies)?;
    until_in_sync(&cluster, 2)?;
    let mut verifier = verifier(&cluster);
    // The device, then the directory, then the device again.
    for node in ["node-1", "node-2", "node-1"] {
        verifier.until_answered(SOME)?;
        let before = epoch(&cluster)?;
        cluster.signal(node, Signal::KILL)?;
        cluster.wait_for("another epoch", || {
            ensure!(epoch(&cluster)? != before, "still epoch {before}");
            Ok(())
        })?;
        verifier.until_answered(SOME)?;
        until_in_sync(&cluster, 2)?;
    }
    verifier.finish()?;
    // The same bytes, whichever copy is read.
    let image = devices.path().join("copy.raw").display().to_string();
    for (turn, node) in ["node-1", "node-2"].into_iter().enumerate() {
        if cluster.json(&["volume", "show", "disk"])?["status"]["owner"] != *node {
            cluster.cli(&["volume", "move", "disk", "--node", node])?;
        }
        cluster.wait_for("the owner", || {
            let shown = cluster.json(&["volume", "show", "disk"])?;
            ensure!(shown["status"]["owner"] == *node && in_sync(&shown) == 2, "{shown}");
            Ok(())
        })?;
        if turn == 0 {
            let there = qemu_image(&cluster.portals[0], &cluster.target, 0, INITIATOR_A);
            expect_success("qemu-img", &["convert", "--image-opts", &there, "-O", "raw", &image])?;
        } else {
            compare(&cluster, 1, &image)?;
        }
    }
    cluster.stop()
}

#[test]
fn copy_in_memory_comes_back_from_another_one_and_never_as_zeroes() -> anyhow::Result<()> {
    let (devices, mut cluster) = cluster()?;
    let create = ["volume", "create", "kept", "--size", "24MiB", "--node", "node-1", "--pool", "ram"];
    let refused = cluster.cli_refused(&create)?;
    ensure!(refused.contains("is in memory"), "{refused}");
    let copies = ["--replicas", "2", "--pool", "ram,ram", "--volatile"];
    cluster.volume_for_both_with("disk", "24MiB", "node-1,node-2", 0, &copies)?;
    let shown = cluster.cli(&["volume", "show", "disk"])?;
    ensure!(shown.contains("volatile"), "{shown}");
    until_in_sync(&cluster, 2)?;
    let image = image(devices.path())?;
    write_image(&cluster, &image)?;
    let before = epoch_number(&cluster)?;
    cluster.signal("node-2", Signal::KILL)?;
    cluster.wait_for("the copy out, back, and in sync", || {
        // One epoch each.
        let now = epoch_number(&cluster)?;
        ensure!(now >= before + 3, "epoch {now}, {before} before");
        Ok(())
    })?;
    until_in_sync(&cluster, 2)?;
    // The copy that was made anew is read.
    cluster.cli(&["volume", "move", "disk", "--node", "node-2"])?;
    cluster.wait_for("the owner", || {
        let shown = cluster.json(&["volume", "show", "disk"])?;
        ensure!(shown["status"]["owner"] == "node-2", "{shown}");
        Ok(())
    })?;
    compare(&cluster, 0, &image)?;
    compare(&cluster, 1, &image)?;
    cluster.stop()
}

#[test]
fn single_copy_in_memory_that_is_lost_stays_out_of_service() -> anyhow::Result<()> {
    let (_devices, mut cluster) = cluster()?;
    cluster.volume_for_both_with("disk", "24MiB", "node-1", 0, &["--pool", "ram", "--volatile"])?;
    let mut host = Initiator::login(&cluster.portals[0], &cluster.target, INITIATOR_A, 1, None)?;
    host.become_ready(0)?;
    host.write_blocks(0, 0, 8, 7)?.good()?;
    ensure!(host.read_blocks(0, 0, 8)?.good()? == [7; 4096], "it does not read back");
    host.abandon();
    cluster.signal("node-1", Signal::KILL)?;
    cluster.wait_for("the copy that is missing", || {
        let shown = cluster.cli(&["volume", "show", "disk"])?;
        ensure!(shown.contains("is missing from pool"), "{shown}");
        Ok(())
    })?;
    // Whatever else a host is told: no read succeeds.
    if let Ok(mut host) = Initiator::login(&cluster.portals[0], &cluster.target, INITIATOR_A, 2, None) {
        for _ in 0..2 {
            let Ok(answer) = host.read_blocks(0, 0, 8) else { break };
            ensure!(answer.status != GOOD, "zeroes came in place of what was lost");
        }
        host.abandon();
    }
    cluster.cli(&["map", "delete", "disk", "a"])?;
    cluster.cli(&["map", "delete", "disk", "b"])?;
    cluster.cli(&["volume", "delete", "disk"])?;
    cluster.stop()
}

#[test]
fn null_pool_gives_zeroes_to_single_volatile_copies_only() -> anyhow::Result<()> {
    let (_devices, mut cluster) = cluster()?;
    let create = ["volume", "create", "x", "--size", "24MiB", "--node", "node-1", "--pool", "nothing"];
    let refused = cluster.cli_refused(&create)?;
    ensure!(refused.contains("keeps nothing"), "{refused}");
    let refused = cluster.cli_refused(&[&create[..], &["--volatile", "--replicas", "2"]].concat())?;
    ensure!(refused.contains("one copy only"), "{refused}");
    cluster.volume_for_both_with("disk", "24MiB", "node-1", 0, &["--pool", "nothing", "--volatile"])?;
    let zeroes = |cluster: &Cluster| -> anyhow::Result<()> {
        let mut host = Initiator::login(&cluster.portals[0], &cluster.target, INITIATOR_A, 1, None)?;
        host.become_ready(0)?;
        host.write_blocks(0, 0, 8, 7)?.good()?;
        ensure!(host.read_blocks(0, 0, 8)?.good()? == [0; 4096], "something was kept");
        host.abandon();
        Ok(())
    };
    zeroes(&cluster)?;
    let before = epoch(&cluster)?;
    cluster.signal("node-1", Signal::KILL)?;
    cluster.wait_for("the volume under a new epoch", || {
        ensure!(epoch(&cluster)? != before, "still epoch {before}");
        Ok(())
    })?;
    zeroes(&cluster)?;
    let pools = cluster.cli(&["pool", "list", "--node", "node-2"])?;
    for kind in ["file", "block", "memory", "null"] {
        ensure!(pools.contains(kind), "{pools}");
    }
    cluster.stop()
}
