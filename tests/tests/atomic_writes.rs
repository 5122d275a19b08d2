//! WRITE ATOMIC while processes are killed and machines lose their power in the middle: what is read afterwards is one write, whole, and
//! none that is older than the last one that was answered.

use std::fs;

use anyhow::{Context, ensure};
use holdfast_tests::{
    cdb,
    cluster::{Cluster, INITIATOR_A},
    initiator::{GOOD, Initiator},
    netcluster::{NetCluster, Shape},
    replicated::in_sync,
};
use rustix::process::Signal;

/// Not aligned to anything: 1 MiB, the most that one may be, from an odd block on.
const LBA: u64 = 1001;
const BLOCKS: u16 = 2048;
/// Writes that are under way or wait when the trouble comes.
const SENT: u8 = 30;

fn write_atomic(boundary: u16, blocks: u16) -> String {
    format!("9c00{LBA:016x}{boundary:04x}{blocks:04x}0000")
}

/// Sends writes of the values from `first` on, and makes `trouble` when so many of them were answered. Gives the last value that was
/// answered with GOOD.
fn write_until(
    session: &mut Initiator,
    lun: u16,
    first: u8,
    answered: u8,
    trouble: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<u8> {
    let cdb = write_atomic(0, BLOCKS);
    for value in first..first + SENT {
        session.send(&format!("cdb {lun} {cdb} fill {value} {}", u32::from(BLOCKS) * 512))?;
    }
    for value in first..first + answered {
        let answer = session.answer()?;
        ensure!(answer.status == GOOD, "{value}: {answer:?}");
    }
    trouble()?;
    let mut last = first + answered - 1;
    // Those behind it were answered meanwhile, or fail, or nobody is there any more.
    for value in first + answered..first + SENT {
        match session.answer() {
            Ok(answer) if answer.status == GOOD => last = value,
            Ok(_) => {}
            Err(_) => break,
        }
    }
    Ok(last)
}

/// All blocks are of one write: `last` or a later one.
fn check(session: &mut Initiator, lun: u16, last: u8, sent: u8) -> anyhow::Result<()> {
    let read = session.read(lun, &cdb::read_10(u32::try_from(LBA)?, BLOCKS), u32::from(BLOCKS) * 512)?;
    let data = read.good()?;
    let value = *data.first().context("no data")?;
    let torn = data.iter().position(|byte| *byte != value);
    ensure!(torn.is_none(), "{value} up to byte {torn:?}, then {:?}", torn.and_then(|at| data.get(at)));
    ensure!((last..=sent).contains(&value), "found {value}; {last} was answered");
    Ok(())
}

#[test]
fn atomic_writes_of_killed_nodes_are_whole() -> anyhow::Result<()> {
    let devices = tempfile::tempdir()?;
    for node in ["node-1", "node-2"] {
        fs::File::create(devices.path().join(node))?.set_len(256 << 20)?;
    }
    let fast = format!("fast=block:{}/{{node}}", devices.path().display());
    let mut cluster = Cluster::start_with(&["--restart", "--pool", &fast])?;
    // A single copy on a device, one in a directory with checksums, and two copies of different kinds.
    let volumes: [(&str, &str, &[&str]); 3] = [
        ("device", "node-1", &["--pool", "fast"]),
        ("checked", "node-1", &["--checksums"]),
        ("both", "node-1,node-2", &["--replicas", "2", "--pool", "fast,default"]),
    ];
    for (lun, (name, node, more)) in (0..).zip(volumes) {
        cluster.volume_for_both_with(name, "32MiB", node, lun, more)?;
        cluster.wait_for("all copies in sync", || {
            let shown = cluster.json(&["volume", "show", name])?;
            ensure!(in_sync(&shown) == node.split(',').count(), "{shown}");
            Ok(())
        })?;
    }
    let login = |isid| {
        cluster.wait_for("a session", || {
            let mut session =
                Initiator::login(&cluster.portals[1], &cluster.target, INITIATOR_A, isid, None)?;
            (0..3).try_for_each(|lun| session.become_ready(lun))?;
            Ok(session)
        })
    };
    let mut isid = 1;
    for (lun, (name, ..)) in (0..).zip(volumes) {
        for (round, answered) in (0..).zip([1, 4, 7]) {
            let mut session = login(isid)?;
            isid += 1;
            let first = 1 + round * (SENT + 1);
            // The owner, whoever that is now; the session is through the other node, or ends.
            let shown = cluster.json(&["volume", "show", name])?;
            let owner = shown["status"]["owner"].as_str().context("owner")?.to_owned();
            let epoch = shown["status"]["epoch_number"].clone();
            let last =
                write_until(&mut session, lun, first, answered, || cluster.signal(&owner, Signal::KILL))?;
            session.abandon();
            cluster.wait_for("the volume under a new epoch", || {
                let shown = cluster.json(&["volume", "show", name])?;
                ensure!(shown["status"]["epoch_number"] != epoch, "{shown}");
                ensure!(shown["status"]["state"] == "online", "{shown}");
                Ok(())
            })?;
            let mut session = login(isid)?;
            isid += 1;
            check(&mut session, lun, last, first + SENT - 1)?;
        }
    }
    cluster.stop()
}

#[test]
fn atomic_writes_survive_a_loss_of_power_that_tears_what_was_not_flushed() -> anyhow::Result<()> {
    let mut cluster = NetCluster::start(Shape { bad_disks: true, ..Shape::default() })?;
    cluster.volume_for_both("one", 0, &["--size", "32MiB", "--node", "node-1"])?;
    cluster.volume_for_both("two", 1, &["--size", "32MiB", "--node", "node-1,node-2", "--replicas", "2"])?;
    let machines = [cluster.datanodes(), cluster.controllers()].concat();
    let online = |cluster: &NetCluster, isid: u16| {
        cluster.wait_for("both volumes in service", || {
            for (name, copies) in [("one", 1), ("two", 2)] {
                let shown = cluster.json(&["volume", "show", name])?;
                ensure!(in_sync(&shown) == copies && shown["status"]["state"] == "online", "{shown}");
            }
            let mut session = cluster.login("host-1", "node-1", INITIATOR_A, isid)?;
            (0..2).try_for_each(|lun| session.become_ready(lun))?;
            Ok(session)
        })
    };
    let mut isid = 1;
    for (round, answered) in (0_u8..).zip([1, 5, 9]) {
        for lun in 0..2 {
            let mut session = online(&cluster, isid)?;
            let first = 1 + round * (SENT + 1);
            let last = write_until(&mut session, lun, first, answered, || {
                cluster.lose_power_of(&machines, Some(u64::from(round) * 2 + u64::from(lun)))
            })?;
            session.abandon();
            machines.iter().try_for_each(|name| cluster.launch(name))?;
            let mut session = online(&cluster, isid + 1)?;
            check(&mut session, lun, last, first + SENT - 1)?;
            isid += 2;
        }
    }
    Ok(())
}

#[test]
fn atomic_writes_in_parts_and_beyond_the_limits() -> anyhow::Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.volume_for_both("disk", "32MiB", "node-1", 0)?;
    let (mut a, mut b) = cluster.log_in_both()?;
    // VPD B0h: 1 MiB in one piece, 8 MiB in parts, no alignment and no granularity; the same through both nodes.
    let limits = a.read(0, "1201b0004000", 64)?.good()?;
    assert_eq!(limits, b.read(0, "1201b0004000", 64)?.good()?);
    let fields: Vec<u32> = limits[44..]
        .chunks(4)
        .map(|field| u32::from_be_bytes(field.try_into().unwrap_or_default()))
        .collect();
    assert_eq!(fields, [2048, 0, 0, 16384, 2048]);
    let fill = |session: &mut Initiator, boundary, blocks: u16, value: u8| {
        session.send(&format!(
            "cdb 0 {} fill {value} {}",
            write_atomic(boundary, blocks),
            u32::from(blocks) * 512
        ))?;
        session.answer()
    };
    fill(&mut b, 0, BLOCKS, 1)?.good()?;
    check(&mut a, 0, 1, 1)?;
    fill(&mut a, 64, 2 * BLOCKS, 2)?.good()?;
    check(&mut b, 0, 2, 2)?;
    fill(&mut a, 0, BLOCKS + 1, 3)?.check("5/24/00")?;
    fill(&mut a, BLOCKS + 1, 8, 3)?.check("5/24/00")?;
    a.write(0, &write_atomic(0, 2), &"33".repeat(512))?.check("5/0e/03")?;
    fill(&mut a, 0, 0, 3)?.good()?;
    check(&mut a, 0, 2, 2)?;
    cluster.stop()
}
