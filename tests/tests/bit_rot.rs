//! Disks that change bytes behind everybody's back, under volumes with checksums: a host never sees one of those bytes.

use std::{fs::File, os::unix::fs::FileExt, path::PathBuf};

use anyhow::{Context, ensure};
use holdfast_tests::{
    cluster::{Cluster, INITIATOR_A},
    initiator::Initiator,
    patience::{PATIENCE, wait_for},
};

/// Bytes under one checksum.
const BLOCK: u64 = 4096;
/// Blocks of 512 bytes in it.
const SECTORS: u32 = 8;

/// The file that holds a volume's blocks on a node.
fn data(cluster: &Cluster, volume: &str, node: &str) -> anyhow::Result<PathBuf> {
    let shown = cluster.json(&["volume", "show", volume])?;
    let id = shown["status"]["id"].as_str().context("id")?;
    Ok(cluster.folder().join(node).join("pool").join(id).join("data"))
}

fn file(cluster: &Cluster, node: &str) -> anyhow::Result<File> {
    let path = data(cluster, "disk", node)?;
    File::options().read(true).write(true).open(&path).with_context(|| path.display().to_string())
}

/// Flips a bit in a block of 4096 bytes of the node's copy of volume `disk`.
fn rot(cluster: &Cluster, node: &str, block: u64) -> anyhow::Result<()> {
    let file = file(cluster, node)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, block * BLOCK + 100)?;
    byte[0] ^= 0x10;
    file.write_all_at(&byte, block * BLOCK + 100)?;
    Ok(())
}

fn host(cluster: &Cluster, portal: usize) -> anyhow::Result<Initiator> {
    let mut host = Initiator::login(&cluster.portals[portal], &cluster.target, INITIATOR_A, 1, None)?;
    host.become_ready(0)?;
    Ok(host)
}

#[test]
fn only_copy_that_rots_is_a_medium_error_and_all_else_is_served() -> anyhow::Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.volume_for_both_with("disk", "16MiB", "node-1", 0, &["--checksums"])?;
    ensure!(cluster.json(&["volume", "show", "disk"])?["spec"]["checksums"] == true);
    let mut host = host(&cluster, 0)?;
    host.write_blocks(0, 0, 64, 7)?.good()?;
    rot(&cluster, "node-1", 2)?;
    // A block that was never written rots as well.
    rot(&cluster, "node-1", 1000)?;
    for again in 0..2 {
        host.read_blocks(0, 2 * SECTORS, 8)?.check("3/11/00")?;
        host.read_blocks(0, 0, 64)?.check("3/11/00")?;
        host.read_blocks(0, 1000 * SECTORS + 3, 1)?.check("3/11/00")?;
        ensure!(host.read_blocks(0, 0, 16)?.good()? == vec![7; 16 * 512]);
        ensure!(host.read_blocks(0, 3 * SECTORS, 40)?.good()? == vec![7; 40 * 512]);
        if again == 0 {
            // A part of the block does not make the rest of it right.
            host.write_blocks(0, 2 * SECTORS, 1, 9)?.good()?;
        }
    }
    host.write_blocks(0, 2 * SECTORS, 8, 9)?.good()?;
    ensure!(host.read_blocks(0, 2 * SECTORS, 8)?.good()? == vec![9; 8 * 512]);
    drop(host);
    cluster.stop()?;
    cluster.up(&[])?;
    let mut host = self::host(&cluster, 1)?;
    ensure!(host.read_blocks(0, 2 * SECTORS, 8)?.good()? == vec![9; 8 * 512]);
    host.read_blocks(0, 1000 * SECTORS, 8)?.check("3/11/00")?;
    drop(host);
    cluster.stop()
}

#[test]
fn killed_data_node_is_no_rot() -> anyhow::Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.volume_for_both_with("disk", "64MiB", "node-1", 0, &["--checksums", "--write-cache", "off"])?;
    let mut host = host(&cluster, 0)?;
    for round in 0..40_u8 {
        host.write_blocks(0, u32::from(round) * 3001, 13, round + 1)?.good()?;
    }
    host.abandon();
    cluster.signal("node-1", rustix::process::Signal::KILL)?;
    cluster.stop().ok();
    cluster.up(&[])?;
    let mut host = self::host(&cluster, 0)?;
    for round in 0..40_u8 {
        let found = host.read_blocks(0, u32::from(round) * 3001, 13)?.good()?;
        ensure!(found == vec![round + 1; 13 * 512], "round {round}");
    }
    drop(host);
    cluster.stop()
}

/// Two copies, on node-1 (the owner) and node-2.
fn two_copies(environment: &[(&str, &str)]) -> anyhow::Result<Cluster> {
    let cluster = Cluster::start_in(environment)?;
    cluster.volume_for_both_with("disk", "16MiB", "node-1", 0, &["--checksums", "--replicas", "2"])?;
    wait_for(
        "both copies",
        PATIENCE,
        || {
            let shown = cluster.json(&["volume", "show", "disk"])?;
            ensure!(shown["status"]["in_sync"].as_array().is_some_and(|nodes| nodes.len() == 2), "{shown}");
            Ok(())
        },
        String::new,
    )?;
    Ok(cluster)
}

/// Waits until the node's copy holds the same byte all over some blocks of 4096.
fn until_healed(cluster: &Cluster, node: &str, block: u64, blocks: usize, value: u8) -> anyhow::Result<()> {
    let file = file(cluster, node)?;
    wait_for(
        "the damaged blocks to be healed",
        PATIENCE,
        || {
            let mut found = vec![0; blocks * BLOCK as usize];
            file.read_exact_at(&mut found, block * BLOCK)?;
            ensure!(found.iter().all(|byte| *byte == value), "not yet");
            Ok(())
        },
        || cluster.logs(),
    )
}

#[test]
fn what_rots_on_one_copy_is_read_from_the_other_and_healed() -> anyhow::Result<()> {
    let mut cluster = two_copies(&[("HOLDFAST_SCRUB_BYTES_PER_SECOND_MAX", "0")])?;
    let mut host = host(&cluster, 0)?;
    host.write_blocks(0, 0, 512, 7)?.good()?;
    for block in [2, 9, 10, 40] {
        rot(&cluster, "node-1", block)?;
    }
    ensure!(host.read_blocks(0, 0, 512)?.good()? == vec![7; 512 * 512]);
    until_healed(&cluster, "node-1", 0, 64, 7)?;
    let shown = cluster.json(&["volume", "show", "disk"])?;
    ensure!(
        shown["status"]["owner"] == "node-1"
            && shown["status"]["in_sync"].as_array().is_some_and(|n| n.len() == 2),
        "{shown}"
    );
    // Both copies have lost the same block: nobody is told something else, and a block beside it is served.
    rot(&cluster, "node-1", 5)?;
    rot(&cluster, "node-2", 5)?;
    rot(&cluster, "node-1", 6)?;
    host.read_blocks(0, 5 * SECTORS, 8)?.check("3/11/00")?;
    ensure!(host.read_blocks(0, 6 * SECTORS, 8)?.good()? == vec![7; 8 * 512]);
    host.write_blocks(0, 5 * SECTORS, 8, 9)?.good()?;
    ensure!(host.read_blocks(0, 5 * SECTORS, 8)?.good()? == vec![9; 8 * 512]);
    // A part of a block that only the owner has lost is written: the rest comes from the other copy.
    rot(&cluster, "node-1", 20)?;
    host.write_blocks(0, 20 * SECTORS + 1, 1, 8)?.good()?;
    let found = host.read_blocks(0, 20 * SECTORS, 8)?.good()?;
    ensure!(found[..512] == [7; 512] && found[512..1024] == [8; 512] && found[1024..] == [7; 6 * 512]);
    drop(host);
    cluster.stop()
}

#[test]
fn scrub_finds_and_heals_what_nobody_reads() -> anyhow::Result<()> {
    let mut cluster = two_copies(&[("HOLDFAST_SCRUB_PERIOD_S", "1")])?;
    let mut host = host(&cluster, 0)?;
    host.write_blocks(0, 0, 512, 7)?.good()?;
    for (node, block) in [("node-2", 3), ("node-1", 30), ("node-2", 60)] {
        rot(&cluster, node, block)?;
    }
    for node in ["node-1", "node-2"] {
        until_healed(&cluster, node, 0, 64, 7)?;
    }
    drop(host);
    cluster.stop()
}

/// What `volume scrub --show` tells of a node's copy.
fn scrub(cluster: &Cluster, node: &str) -> anyhow::Result<serde_json::Value> {
    let shown = cluster.json(&["volume", "scrub", "disk", "--show"])?;
    let copies = shown["copies"].as_array().context("copies")?;
    copies.iter().find(|copy| copy["node"] == node).cloned().with_context(|| shown.to_string())
}

#[test]
fn scrub_that_is_asked_for_tells_what_was_healed_and_from_whom() -> anyhow::Result<()> {
    let mut cluster = two_copies(&[])?;
    let mut host = host(&cluster, 0)?;
    host.write_blocks(0, 0, 512, 7)?.good()?;
    // The first pass begins by itself, the second one in a week.
    cluster.wait_for("the first pass", || {
        for node in ["node-1", "node-2"] {
            let copy = scrub(&cluster, node)?;
            ensure!(copy["state"] == "idle" && !copy["ended"].is_null(), "{copy}");
        }
        Ok(())
    })?;
    for (node, block) in [("node-1", 30), ("node-1", 31), ("node-2", 3)] {
        rot(&cluster, node, block)?;
    }
    let begun = cluster.json(&["volume", "scrub", "disk"])?;
    let copies = begun["copies"].as_array().context("copies")?;
    ensure!(copies.len() == 2, "{begun}");
    ensure!(copies.iter().all(|copy| copy["state"] == "running" && copy["reason"] == ""), "{begun}");
    cluster.wait_for("the blocks to be found and healed", || {
        for (node, other, blocks) in [("node-1", "node-2", "2"), ("node-2", "node-1", "1")] {
            let copy = scrub(&cluster, node)?;
            let from = &copy["healed_from"];
            ensure!(copy["state"] == "idle" && copy["damaged_blocks"] == blocks, "{copy}");
            ensure!(copy["healed_blocks"] == blocks && copy["damaged_blocks_left"] == "0", "{copy}");
            ensure!(from[0]["node"] == other && from[0]["blocks"] == blocks && from[1].is_null(), "{copy}");
            ensure!(copy["read_bytes"] != "0" && copy["failed"] == "", "{copy}");
        }
        Ok(())
    })?;
    for node in ["node-1", "node-2"] {
        until_healed(&cluster, node, 0, 64, 7)?;
    }
    let table = cluster.cli(&["volume", "scrub", "disk", "--show"])?;
    ensure!(table.contains("2 from node-2") && table.contains("1 from node-1"), "{table}");
    let shown = cluster.cli(&["volume", "show", "disk"])?;
    ensure!(shown.contains("2 damaged blocks, 2 healed, 0 not healed"), "{shown}");
    let audit = cluster.json(&["audit", "list", "--subject", "volume/disk"])?;
    let records = audit["records"].as_array().context("records")?;
    ensure!(records.iter().filter(|record| record["action"] == "volume.scrub").count() == 1, "{audit}");
    drop(host);
    cluster.stop()
}

#[test]
fn scrub_that_cannot_be_says_why() -> anyhow::Result<()> {
    let mut cluster = Cluster::start_in(&[("HOLDFAST_SCRUB_BYTES_PER_SECOND_MAX", "0")])?;
    cluster.cli(&["volume", "create", "plain", "--size", "16MiB", "--node", "node-1"])?;
    cluster.cli(&["volume", "create", "sums", "--size", "16MiB", "--node", "node-1", "--checksums"])?;
    for arguments in [&["volume", "scrub", "plain"][..], &["volume", "scrub", "plain", "--show"][..]] {
        let said = cluster.cli_refused(arguments)?;
        ensure!(
            said == "holdfast: volume plain keeps no checksums, so that damage cannot be told: they are chosen when a volume is created",
            "{said}"
        );
    }
    let said = cluster.cli_refused(&["volume", "scrub", "none"])?;
    ensure!(said.contains("none") && said.contains("volume"), "{said}");
    cluster.wait_for("the copy to be in use", || {
        let shown = cluster.json(&["volume", "scrub", "sums", "--show"])?;
        ensure!(shown["copies"][0]["state"] == "off", "{shown}");
        Ok(())
    })?;
    let said = cluster.cli_refused(&["volume", "scrub", "sums"])?;
    ensure!(
        said.ends_with(
            "no scrub of volume sums was begun: node node-1: its scrub is off: it was started with --scrub-bytes-per-second-max 0"
        ),
        "{said}"
    );
    cluster.stop()
}
