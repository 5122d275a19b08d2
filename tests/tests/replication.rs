//! Volumes with several copies while their nodes are killed, stopped, cut off and restarted: no write that was answered is lost, no
//! stale value is read, and in the end the copies are alike.

use anyhow::{Context, ensure};
use holdfast_tests::{
    cluster::INITIATOR_A,
    netcluster::{NetCluster, Shape},
    replicated::{Bench, epoch, in_sync, other},
};
use rustix::process::Signal;

#[test]
fn killed_owner_costs_a_stall_and_nothing_else() -> anyhow::Result<()> {
    let mut bench = Bench::new(2, 2, &[])?;
    for _ in 0..2 {
        let owner = bench.owner()?;
        bench.do_without(&owner)?;
        bench.go_on()?;
    }
    bench.finish(2)?;
    Ok(())
}

#[test]
fn killed_replica_costs_hosts_a_moment_and_gets_what_it_missed() -> anyhow::Result<()> {
    let mut bench = Bench::new(2, 2, &["--write-cache", "off"])?;
    let replica = other(&bench.owner()?);
    for _ in 0..2 {
        bench.do_without(replica)?;
    }
    bench.finish(2)?;
    Ok(())
}

#[test]
fn owner_stopped_past_its_lease_serves_nothing_stale_afterwards() -> anyhow::Result<()> {
    let mut bench = Bench::new(2, 2, &[])?;
    let owner = bench.owner()?;
    bench.cluster(|cluster| cluster.signal(&owner, Signal::STOP))?;
    bench.until_not_owner(&owner)?;
    bench.go_on()?;
    bench.cluster(|cluster| cluster.signal(&owner, Signal::CONT))?;
    bench.until_in_sync(2)?;
    bench.finish(2)?;
    Ok(())
}

#[test]
fn three_copies_survive_one_after_the_other() -> anyhow::Result<()> {
    let mut bench = Bench::new(3, 3, &[])?;
    for node in ["node-1", "node-2", "node-3"] {
        bench.do_without(node)?;
    }
    bench.finish(3)?;
    Ok(())
}

#[test]
fn planned_moves_show_hosts_no_error() -> anyhow::Result<()> {
    let mut bench = Bench::new(2, 2, &[])?;
    let before = epoch(&bench)?;
    for _ in 0..4 {
        let to = other(&bench.owner()?);
        bench.cluster(|cluster| cluster.cli(&["volume", "move", "disk", "--node", to]))?;
        bench.until("the new owner", |cluster| {
            ensure!(cluster.owner("disk")? == to, "not yet");
            Ok(())
        })?;
        bench.go_on()?;
    }
    // Each move is one epoch. More would mean that leases have lapsed on this machine, which hosts may see.
    let undisturbed = epoch(&bench)? == before + 4;
    let report = bench.finish(2)?;
    let seen = (report.path_errors, report.busy, report.aborted);
    ensure!(!undisturbed || seen == (0, 0, 0), "hosts saw it: {report:?}");
    Ok(())
}

#[test]
fn owner_cut_off_from_the_controllers_serves_nothing_stale() -> anyhow::Result<()> {
    let mut bench = Bench::new(2, 2, &[])?;
    for _ in 0..2 {
        bench.go_on()?;
        let owner = bench.owner()?;
        bench.cluster(|cluster| cluster.network.isolate(&owner, ["ctl-1", "ctl-2", "ctl-3"]))?;
        bench.until_not_owner(&owner)?;
        bench.go_on()?;
        bench.cluster(|cluster| cluster.network.heal())?;
        bench.until_in_sync(2)?;
    }
    bench.finish(2)?;
    Ok(())
}

#[test]
fn owner_cut_off_from_its_replica_goes_on_without_it() -> anyhow::Result<()> {
    let mut bench = Bench::new(2, 2, &[])?;
    for _ in 0..2 {
        bench.go_on()?;
        bench.cluster(|cluster| cluster.network.cut("node-1", "node-2"))?;
        bench.until_in_sync(1)?;
        bench.go_on()?;
        bench.cluster(|cluster| cluster.network.heal())?;
        bench.until_in_sync(2)?;
    }
    bench.finish(2)?;
    Ok(())
}

#[test]
fn copies_are_added_moved_and_grown_under_a_host() -> anyhow::Result<()> {
    let mut bench = Bench::new(3, 1, &[])?;
    bench.cluster(|cluster| cluster.cli(&["volume", "replica", "add", "disk", "--node", "node-2"]))?;
    bench.until_in_sync(2)?;
    bench.go_on()?;
    bench.cluster(|cluster| cluster.cli(&["volume", "resize", "disk", "--size", "96MiB"]))?;
    bench.go_on()?;
    let owner = bench.owner()?;
    let from = other(&owner);
    let arguments = ["volume", "replica", "move", "disk", "--from", from, "--to", "node-3"];
    bench.cluster(|cluster| cluster.cli(&arguments))?;
    bench.until("the move", |cluster| {
        let shown = cluster.json(&["volume", "show", "disk"])?;
        let in_sync = shown["status"]["in_sync"].as_array().context("in_sync")?;
        ensure!(in_sync.iter().any(|n| n == "node-3") && !in_sync.iter().any(|n| n == from), "{shown}");
        Ok(())
    })?;
    bench.go_on()?;
    bench.change(|cluster| cluster.kill(&owner))?;
    bench.go_on()?;
    bench.change(|cluster| cluster.launch(&owner))?;
    bench.finish(2)?;
    Ok(())
}

#[test]
fn unrest_of_controllers_and_nodes_at_once_loses_nothing() -> anyhow::Result<()> {
    let mut bench = Bench::new(3, 3, &[])?;
    for round in 0..4 {
        let leader = bench.until("a leader", NetCluster::leader)?;
        let owner = bench.owner()?;
        let stopped = round % 2 == 0;
        bench.change(|cluster| cluster.kill(&leader))?;
        if stopped {
            bench.cluster(|cluster| cluster.signal(&owner, Signal::STOP))?;
        } else {
            bench.change(|cluster| cluster.kill(&owner))?;
        }
        bench.until_not_owner(&owner)?;
        if stopped {
            bench.cluster(|cluster| cluster.signal(&owner, Signal::CONT))?;
        } else {
            bench.change(|cluster| cluster.launch(&owner))?;
        }
        bench.change(|cluster| cluster.launch(&leader))?;
        bench.go_on()?;
        bench.until_in_sync(3)?;
    }
    bench.finish(3)?;
    Ok(())
}

/// Room for a volume of a tebibyte: the file system is as large as it says only once it is written to.
const LARGE_POOL: &str = "2200000m";

#[test]
fn drained_node_gives_its_copies_and_volumes_away_without_an_error() -> anyhow::Result<()> {
    let mut bench = Bench::new(3, 2, &[])?;
    for node in ["node-1", "node-2"] {
        bench.cluster(|cluster| cluster.cli(&["node", "drain", node, "--no-wait"]))?;
        bench.until("the drain", |cluster| {
            let shown = cluster.json(&["volume", "show", "disk"])?;
            let replicas = shown["status"]["replicas"].as_array().context("replicas")?;
            ensure!(replicas.iter().all(|replica| replica["node"] != node), "{node} has one: {shown}");
            ensure!(in_sync(&shown) == 2, "{shown}");
            Ok(())
        })?;
        bench.go_on()?;
        bench.cluster(|cluster| cluster.cli(&["node", "uncordon", node]))?;
    }
    let report = bench.finish(2)?;
    // A lease that lapses on a machine that is busy is seen by hosts; an error that no path change hides ends the run.
    println!("seen: {} path errors, {} busy, {} aborted", report.path_errors, report.busy, report.aborted);
    Ok(())
}

#[test]
fn large_sparse_volume_gets_only_what_it_missed() -> anyhow::Result<()> {
    const WRITES: u32 = 16;
    /// Of a volume of this size; the bitmap has a bit for each.
    const CHUNK: u64 = 1 << 20;
    let mut cluster = NetCluster::start(Shape { pool_size: LARGE_POOL.to_owned(), ..Shape::default() })?;
    let arguments = ["--size", "1TiB", "--replicas", "2", "--node", "node-1,node-2"];
    cluster.volume_for_both("disk", 0, &arguments)?;
    let until_in_sync = |cluster: &NetCluster, copies| {
        cluster.wait_for("copies in sync", || {
            let shown = cluster.json(&["volume", "show", "disk"])?;
            ensure!(in_sync(&shown) == copies, "{shown}");
            Ok(())
        })
    };
    until_in_sync(&cluster, 2)?;
    let mut host = cluster.login("host-1", "node-1", INITIATOR_A, 1)?;
    host.become_ready(0)?;
    cluster.kill("node-2")?;
    until_in_sync(&cluster, 1)?;
    let slots = (0..WRITES).map(|number| number * 130_000_000 + 8);
    for slot in slots.clone() {
        host.write_blocks(0, slot, 8, 7)?.good()?;
    }
    let before = cluster.received_bytes("node-2")?;
    cluster.launch("node-2")?;
    until_in_sync(&cluster, 2)?;
    let moved = cluster.received_bytes("node-2")? - before;
    println!("{WRITES} writes of 4 KiB missed in 1 TiB: {moved} bytes moved");
    let needed = u64::from(WRITES) * CHUNK;
    ensure!(moved > u64::from(WRITES) * 4096 && moved < 2 * needed, "{moved} bytes moved");
    // What it got is right.
    drop(host);
    cluster.kill("node-1")?;
    let mut host = cluster.login("host-1", "node-2", INITIATOR_A, 2)?;
    for slot in slots {
        let data = cluster.wait_for("the other copy to serve", || {
            let answer = host.read_blocks(0, slot, 8)?;
            answer.good()
        })?;
        ensure!(data.iter().all(|byte| *byte == 7), "block {slot} is wrong");
    }
    Ok(())
}

#[test]
fn volume_costs_little_memory() -> anyhow::Result<()> {
    const VOLUMES: u16 = 40;
    const BYTES_MAX: u64 = 512 << 10;
    let cluster = NetCluster::start(Shape { pool_size: LARGE_POOL.to_owned(), ..Shape::default() })?;
    let make = |name: &str, lun| {
        cluster.volume_for_both(name, lun, &["--size", "10GiB", "--replicas", "2", "--node", "node-1,node-2"])
    };
    make("first", 0)?;
    let memory = || Ok::<_, anyhow::Error>(cluster.memory_bytes("node-1")? + cluster.memory_bytes("node-2")?);
    let before = memory()?;
    for lun in 1..=VOLUMES {
        make(&format!("volume-{lun}"), lun)?;
    }
    cluster.wait_for("all to be served", || {
        let shown = cluster.json(&["volume", "list"])?;
        let volumes = shown["volumes"].as_array().context("volumes")?;
        ensure!(
            volumes.iter().all(|volume| volume["status"]["in_sync"].as_array().is_some_and(|l| l.len() == 2)),
            "not yet"
        );
        Ok(())
    })?;
    let each = memory()?.saturating_sub(before) / u64::from(VOLUMES) / 2;
    println!("a replica of a mapped volume costs a data node {each} bytes of memory");
    ensure!(each < BYTES_MAX, "{each} bytes for each replica");
    Ok(())
}
