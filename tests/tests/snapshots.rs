//! Snapshots and clones under hosts that write: all at one point, never written, shared with their sources and free of them, whole or not
//! there when nodes die in the middle.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};
use std::thread::{self, JoinHandle};

use anyhow::{Context, ensure};
use holdfast_tests::{
    cdb,
    cluster::{Cluster, INITIATOR_A, INITIATOR_B},
    initiator::Initiator,
};
use rustix::process::Signal;

const A: u16 = 0;
const B: u16 = 1;
const GOOD: u8 = 0;
/// Blocks over which the writer also writes, so that many chunks are brought up.
const SPREAD: u64 = 16 * 1024;

/// A block that holds a number over and over.
fn block(number: u64) -> String {
    format!("{number:016x}").repeat(64)
}

fn read_number(session: &mut Initiator, lun: u16, lba: u32) -> anyhow::Result<u64> {
    let data = session.read_blocks(lun, lba, 1)?.good()?;
    let (numbers, _) = data.as_chunks::<8>();
    let first = u64::from_be_bytes(*numbers.first().context("an empty block")?);
    ensure!(numbers.iter().all(|n| u64::from_be_bytes(*n) == first), "a torn block");
    Ok(first)
}

/// Writes n to A, then n to B, for n = 1, 2, ...; and n somewhere else on A.
struct Writer {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    thread: JoinHandle<anyhow::Result<()>>,
}

impl Writer {
    fn start(cluster: &Cluster, path: usize) -> anyhow::Result<Writer> {
        let portal = cluster.portals.get(path).context("a portal")?;
        let mut session = Initiator::login(portal, &cluster.target, INITIATOR_A, 7, None)?;
        session.become_ready(A)?;
        session.become_ready(B)?;
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&written));
        let thread = thread::spawn(move || {
            for number in 1_u64.. {
                if stopped.load(Ordering::Acquire) {
                    break;
                }
                for lun in [A, B] {
                    let mut answer = session.write(lun, &cdb::write_10(0, 1), &block(number))?;
                    // New copies and owners are told to hosts; a write on hold is not.
                    while answer.sense.starts_with("6/") {
                        answer = session.write(lun, &cdb::write_10(0, 1), &block(number))?;
                    }
                    answer.good()?;
                }
                let elsewhere = u32::try_from(1 + number.wrapping_mul(4099) % (SPREAD - 1))?;
                session.write(A, &cdb::write_10(elsewhere, 1), &block(number))?.good()?;
                count.store(number, Ordering::Release);
            }
            Ok(())
        });
        Ok(Writer { stop, written, thread })
    }

    fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    fn until(&self, cluster: &Cluster, number: u64) -> anyhow::Result<()> {
        cluster.wait_for("the writer to go on", || {
            ensure!(self.written() >= number, "{} of {number} written", self.written());
            Ok(())
        })
    }

    fn finish(self) -> anyhow::Result<u64> {
        self.stop.store(true, Ordering::Release);
        self.thread.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        Ok(self.written.load(Ordering::Acquire))
    }
}

fn two_volumes(more: &[&str]) -> anyhow::Result<Cluster> {
    let cluster = Cluster::start_with(&["--restart"])?;
    let arguments = [&["--replicas", "2"], more].concat();
    cluster.volume_for_both_with("a", "16MiB", "node-1", A, &arguments)?;
    cluster.volume_for_both_with("b", "16MiB", "node-2", B, &arguments)?;
    Ok(cluster)
}

fn map(cluster: &Cluster, volume: &str, lun: u16) -> anyhow::Result<()> {
    cluster.cli(&["map", "create", volume, "b", "--lun", &lun.to_string()]).map(drop)
}

fn reader(cluster: &Cluster, path: usize, luns: &[u16]) -> anyhow::Result<Initiator> {
    let portal = cluster.portals.get(path).context("a portal")?;
    let mut session = Initiator::login(portal, &cluster.target, INITIATOR_B, 9, None)?;
    luns.iter().try_for_each(|lun| session.become_ready(*lun))?;
    Ok(session)
}

#[test]
fn snapshots_of_two_volumes_are_of_one_point_and_hosts_see_a_pause_only() -> anyhow::Result<()> {
    for cache in ["on", "off"] {
        let mut cluster = two_volumes(&["--write-cache", cache])?;
        let writer = Writer::start(&cluster, 0)?;
        let mut luns = Vec::new();
        for (round, lun) in (0..4_u16).map(|round| (round, 10 + 2 * round)) {
            writer.until(&cluster, writer.written() + 20)?;
            let before = writer.written();
            cluster.cli(&["snapshot", "create", &format!("a=a{round}"), &format!("b=b{round}")])?;
            luns.push((round, lun, before));
        }
        writer.until(&cluster, writer.written() + 20)?;
        writer.finish()?;
        let mut all = Vec::new();
        for (round, lun, _) in &luns {
            map(&cluster, &format!("a{round}"), *lun)?;
            map(&cluster, &format!("b{round}"), lun + 1)?;
            all.extend([*lun, lun + 1]);
        }
        for path in 0..2 {
            let mut session = reader(&cluster, path, &all)?;
            for (round, lun, before) in &luns {
                let (a, b) = (read_number(&mut session, *lun, 0)?, read_number(&mut session, lun + 1, 0)?);
                ensure!(a == b || a == b + 1, "snapshot {round} has {a} and {b}");
                ensure!(a >= *before, "snapshot {round} has {a}, and {before} was answered before");
                let refused = session.write(*lun, &cdb::write_10(0, 1), &block(1))?;
                ensure!(refused.sense.starts_with("7/27"), "a snapshot was written: {refused:?}");
                ensure!(read_number(&mut session, *lun, 0)? == a, "a snapshot has changed");
            }
        }
        let listed = cluster.json(&["snapshot", "list", "--volume", "a"])?;
        ensure!(listed["volumes"].as_array().map(Vec::len) == Some(4), "{listed}");
        let jobs = cluster.json(&["job", "list"])?;
        ensure!(jobs.to_string().contains("snapshot"), "{jobs}");
        cluster.stop()?;
    }
    Ok(())
}

#[test]
fn clones_and_sources_are_free_of_each_other_and_go_in_any_order() -> anyhow::Result<()> {
    let mut cluster = two_volumes(&[])?;
    let mut host = reader(&cluster, 0, &[A])?;
    for lba in [0, 300, 9000] {
        host.write(A, &cdb::write_10(lba, 1), &block(u64::from(lba) + 1))?.good()?;
    }
    cluster.cli(&["snapshot", "create", "a=then"])?;
    for lba in [0, 9000] {
        host.write(A, &cdb::write_10(lba, 1), &block(77))?.good()?;
    }
    cluster.cli(&["volume", "clone", "then", "copy"])?;
    let refused = cluster.cli_refused(&["volume", "clone", "a", "other"])?;
    ensure!(refused.contains("snapshot"), "{refused}");
    let refused = cluster.cli_refused(&["snapshot", "create", "then=again"])?;
    ensure!(refused.contains("clone it"), "{refused}");
    let refused = cluster.cli_refused(&["volume", "resize", "then", "--size", "32MiB"])?;
    ensure!(refused.contains("is a snapshot"), "{refused}");
    let refused = cluster.cli_refused(&["snapshot", "create", "a=copy"])?;
    ensure!(refused.contains("exists"), "{refused}");
    // The source grows; what was taken of it does not.
    cluster.cli(&["volume", "resize", "a", "--size", "24MiB"])?;
    let shown = cluster.json(&["snapshot", "show", "then"])?;
    ensure!(shown["spec"]["size_bytes"] == "16777216", "{shown}");
    map(&cluster, "copy", 20)?;
    map(&cluster, "then", 21)?;
    drop(host);
    let mut host = reader(&cluster, 1, &[A, 20, 21])?;
    for lba in [0, 300, 9000] {
        for lun in [20, 21] {
            ensure!(read_number(&mut host, lun, lba)? == u64::from(lba) + 1, "LUN {lun}, LBA {lba}");
        }
    }
    host.write(20, &cdb::write_10(301, 1), &block(5))?.good()?;
    ensure!(read_number(&mut host, 20, 300)? == 301 && read_number(&mut host, 20, 301)? == 5, "the clone");
    ensure!(
        read_number(&mut host, A, 301)? == 0 && read_number(&mut host, 21, 301)? == 0,
        "a clone's write shows"
    );
    // The source goes first, the snapshot next; the clone has all that it had, also after its nodes were killed.
    for host in ["a", "b"] {
        cluster.cli(&["map", "delete", "a", host])?;
    }
    cluster.cli(&["volume", "delete", "a"])?;
    // The map has changed.
    host.become_ready(21)?;
    ensure!(read_number(&mut host, 21, 0)? == 1, "the snapshot lost a block with its source");
    cluster.cli(&["map", "delete", "then", "b"])?;
    cluster.cli(&["snapshot", "delete", "then"])?;
    cluster.wait_for("source and snapshot to be gone", || {
        let listed = cluster.json(&["volume", "list"])?;
        ensure!(listed["volumes"].as_array().map(Vec::len) == Some(2), "{listed}");
        Ok(())
    })?;
    for node in ["node-1", "node-2"] {
        let before = cluster.pids()?.get(node).copied();
        cluster.signal(node, Signal::KILL)?;
        cluster.wait_for("the clone's copies", || {
            let now = cluster.pids()?.get(node).copied();
            ensure!(now.is_some() && now != before, "{node} is not there again");
            let shown = cluster.json(&["volume", "show", "copy"])?;
            ensure!(shown["status"]["state"] == "online", "{shown}");
            ensure!(shown["status"]["in_sync"].as_array().map(Vec::len) == Some(2), "{shown}");
            Ok(())
        })?;
    }
    cluster.wait_for("the clone to be read", || {
        let mut host = reader(&cluster, 0, &[20])?;
        for (lba, number) in [(0, 1), (300, 301), (301, 5), (9000, 9001)] {
            let found = read_number(&mut host, 20, lba)?;
            ensure!(found == number, "LBA {lba} has {found}, not {number}");
        }
        Ok(())
    })?;
    cluster.stop()
}

#[test]
fn node_killed_in_the_middle_leaves_whole_snapshots_or_none() -> anyhow::Result<()> {
    let mut cluster = two_volumes(&[])?;
    let mut host = reader(&cluster, 0, &[A, B])?;
    for lun in [A, B] {
        host.write(lun, &cdb::write_10(0, 1), &block(9))?.good()?;
    }
    drop(host);
    for (round, node) in ["node-1", "node-2", "node-1", "node-2"].into_iter().enumerate() {
        cluster.wait_for("both volumes to be whole", || {
            for volume in ["a", "b"] {
                let shown = cluster.json(&["volume", "show", volume])?;
                ensure!(shown["status"]["state"] == "online", "{shown}");
            }
            Ok(())
        })?;
        let names = [format!("a{round}"), format!("b{round}")];
        let asked: Vec<String> =
            ["a", "b"].iter().zip(&names).map(|(volume, name)| format!("{volume}={name}")).collect();
        let made = thread::scope(|scope| {
            let create = scope.spawn(|| cluster.try_cli(&["snapshot", "create", &asked[0], &asked[1]]));
            cluster.signal(node, Signal::KILL)?;
            create.join().map_err(|_| anyhow::anyhow!("the call panicked"))?
        })?;
        let said = String::from_utf8_lossy(&made.stderr).into_owned();
        let there = cluster.wait_for("the snapshots to be whole or gone", || {
            let listed = cluster.json(&["volume", "list"])?;
            let volumes = listed["volumes"].as_array().context("volumes")?;
            let found: Vec<_> =
                volumes.iter().filter(|v| names.iter().any(|name| v["name"] == **name)).collect();
            let settled = found.iter().all(|v| {
                let state = v["status"]["state"].as_str().unwrap_or_default();
                state != "being made" && state != "deleting"
            });
            ensure!(settled, "{found:?}");
            Ok(found.len())
        })?;
        println!("round {round}, {node}: {there} there; {said}");
        ensure!(there == 0 || there == 2, "half of the snapshots are there");
        ensure!(there == 2 || !made.status.success(), "success was told of what is not there");
        if there == 2 {
            cluster.wait_for("the snapshots to be read", || {
                let luns = [30 + 2 * u16::try_from(round)?, 31 + 2 * u16::try_from(round)?];
                for (name, lun) in names.iter().zip(luns) {
                    let mapped = cluster.json(&["map", "list"])?.to_string().contains(&format!("\"{name}\""));
                    if !mapped {
                        map(&cluster, name, lun)?;
                    }
                }
                let mut host = reader(&cluster, 0, &luns)?;
                for lun in luns {
                    ensure!(read_number(&mut host, lun, 0)? == 9, "LUN {lun} is not what was written");
                }
                Ok(())
            })?;
        }
    }
    // Writes go on.
    cluster.wait_for("a write", || {
        let mut host = reader(&cluster, 1, &[A, B])?;
        for lun in [A, B] {
            let answer = host.write(lun, &cdb::write_10(0, 1), &block(10))?;
            ensure!(answer.status == GOOD, "{answer:?}");
        }
        Ok(())
    })?;
    cluster.stop()
}

/// Until both volumes are served by all of their copies.
fn until_whole(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.wait_for("both volumes to be whole", || {
        for volume in ["a", "b"] {
            let shown = cluster.json(&["volume", "show", volume])?;
            ensure!(shown["status"]["state"] == "online", "{shown}");
            ensure!(shown["status"]["in_sync"].as_array().map(Vec::len) == Some(2), "{shown}");
        }
        Ok(())
    })
}

#[test]
fn volumes_are_put_back_together_and_hosts_are_told() -> anyhow::Result<()> {
    let mut cluster = two_volumes(&[])?;
    let mut host = reader(&cluster, 0, &[A, B])?;
    for lun in [A, B] {
        host.write(lun, &cdb::write_10(0, 1), &block(1))?.good()?;
        host.write(lun, &cdb::write_10(9000, 1), &block(2))?.good()?;
    }
    cluster.cli(&["snapshot", "create", "a=a1", "b=b1"])?;
    for lun in [A, B] {
        host.write(lun, &cdb::write_10(0, 1), &block(3))?.good()?;
        host.write(lun, &cdb::write_10(500, 1), &block(4))?.good()?;
    }
    cluster.cli(&["snapshot", "create", "a=a2"])?;
    cluster.cli(&["volume", "resize", "a", "--size", "24MiB"])?;
    host.become_ready(A)?;
    host.write(A, &cdb::write_10(40000, 1), &block(5))?.good()?;
    // A host is logged in: only on purpose.
    let refused = cluster.cli_refused(&["snapshot", "restore", "a=a1", "b=b1"])?;
    ensure!(refused.contains("session of iqn.2026-11.example:host-b"), "{refused}");
    let refused = cluster.cli_refused(&["snapshot", "restore", "a=b1", "--while-in-use"])?;
    ensure!(refused.contains("is no snapshot of it"), "{refused}");
    let shown = cluster.cli(&["snapshot", "restore", "a=a1", "b=b1", "--dry-run"])?;
    ensure!(shown.contains("in use by b: session of"), "{shown}");
    ensure!(read_number(&mut host, A, 0)? == 3, "a dry run has changed something");
    let done = cluster.json(&["snapshot", "restore", "a=a1", "b=b1", "--while-in-use"])?;
    ensure!(done["volumes"].as_array().map(Vec::len) == Some(2), "{done}");
    for lun in [A, B] {
        // Told before anything else of the new content is seen.
        let mut told = Vec::new();
        cluster.wait_for("the unit to be ready", || {
            let answer = host.command(lun, "000000000000")?;
            if answer.status != GOOD {
                told.push(answer.sense.clone());
            }
            ensure!(answer.status == GOOD, "{answer:?}");
            Ok(())
        })?;
        ensure!(told.iter().any(|sense| sense.starts_with("6/28/00")), "LUN {lun} told {told:?}");
        for (lba, number) in [(0, 1), (9000, 2), (500, 0)] {
            let found = read_number(&mut host, lun, lba)?;
            ensure!(found == number, "LUN {lun}, LBA {lba} has {found}, not {number}");
        }
    }
    // It keeps its size, and is zero behind the snapshot's end.
    ensure!(read_number(&mut host, A, 40000)? == 0, "old data behind the snapshot's end");
    host.write(A, &cdb::write_10(500, 1), &block(6))?.good()?;
    // Later snapshots are as they were; the volume goes to one of them, too.
    map(&cluster, "a2", 30)?;
    let mut later = reader(&cluster, 1, &[30])?;
    ensure!(read_number(&mut later, 30, 0)? == 3 && read_number(&mut later, 30, 500)? == 4, "a2 has changed");
    drop((host, later));
    cluster.wait_for("hosts to be gone", || cluster.cli(&["snapshot", "restore", "a=a2"]))?;
    cluster.wait_for("the later one", || {
        let mut host = reader(&cluster, 0, &[A])?;
        ensure!(read_number(&mut host, A, 0)? == 3 && read_number(&mut host, A, 500)? == 4, "it is another");
        Ok(())
    })?;
    let audit = cluster.cli(&["audit", "list"])?;
    ensure!(audit.contains("snapshot.restore"), "{audit}");
    // Both copies have it: each is read alone.
    for node in ["node-1", "node-2"] {
        until_whole(&cluster)?;
        cluster.cli(&["volume", "move", "a", "--node", node])?;
        let mut host = reader(&cluster, 0, &[A])?;
        ensure!(read_number(&mut host, A, 0)? == 3 && read_number(&mut host, A, 9000)? == 2, "at {node}");
    }
    cluster.stop()
}

#[test]
fn node_killed_in_the_middle_leaves_volumes_restored_or_as_they_were() -> anyhow::Result<()> {
    let mut cluster = two_volumes(&[])?;
    let write = |number: u64| {
        cluster.wait_for("a write", || {
            let mut host = reader(&cluster, 0, &[A, B])?;
            for lun in [A, B] {
                host.write(lun, &cdb::write_10(0, 1), &block(number))?.good()?;
            }
            Ok(())
        })
    };
    write(1)?;
    cluster.cli(&["snapshot", "create", "a=a1", "b=b1"])?;
    let (mut done, mut not) = (0, 0);
    for (round, node) in ["node-1", "node-2", "node-2", "node-1"].into_iter().enumerate() {
        until_whole(&cluster)?;
        cluster.wait_for("the snapshots to be whole", || {
            for name in ["a1", "b1"] {
                let shown = cluster.json(&["snapshot", "show", name])?;
                ensure!(shown["status"]["in_sync"].as_array().map(Vec::len) == Some(2), "{shown}");
            }
            Ok(())
        })?;
        let number = 10 + u64::try_from(round)?;
        write(number)?;
        let before = cluster.pids()?.get(node).copied();
        let asked = ["snapshot", "restore", "a=a1", "b=b1", "--while-in-use"];
        let said = thread::scope(|scope| {
            let restore = scope.spawn(|| cluster.try_cli(&asked));
            // Each round a little later in it.
            thread::sleep(std::time::Duration::from_millis(15 * round as u64));
            cluster.signal(node, Signal::KILL)?;
            restore.join().map_err(|_| anyhow::anyhow!("the call panicked"))?
        })?;
        cluster.wait_for("the node to be back", || {
            let now = cluster.pids()?.get(node).copied();
            ensure!(now.is_some() && now != before, "{node} is not there again");
            Ok(())
        })?;
        until_whole(&cluster)?;
        let mut found = Vec::new();
        for at in ["node-1", "node-2"] {
            for volume in ["a", "b"] {
                cluster.wait_for("a move", || cluster.cli(&["volume", "move", volume, "--node", at]))?;
            }
            found.push(cluster.wait_for("a read", || {
                let mut host = reader(&cluster, 0, &[A, B])?;
                Ok((read_number(&mut host, A, 0)?, read_number(&mut host, B, 0)?))
            })?);
        }
        let all = |number: u64| found.iter().all(|read| *read == (number, number));
        println!("round {round}, {node}: {found:?}; {}", String::from_utf8_lossy(&said.stderr));
        ensure!(all(1) || all(number), "round {round}: copies or volumes differ: {found:?}");
        ensure!(!said.status.success() || all(1), "success was told of what is not there");
        if all(1) { done += 1 } else { not += 1 }
    }
    println!("{done} restored, {not} as they were");
    cluster.stop()
}
