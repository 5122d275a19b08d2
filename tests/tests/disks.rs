//! Volumes with several copies on disks that forget at a loss of power, fail, fill up, answer late and are pulled out, under a host
//! that verifies: what was promised is there, the disk at fault is left, hosts see no error, and in the end the copies are alike.

use anyhow::{Context, ensure};
use holdfast_tests::{
    cdb,
    cluster::INITIATOR_A,
    netcluster::{NetCluster, Shape},
    replicated::{Bench, in_sync, other},
};

/// Every machine loses its power; then all are on again.
fn lose_all_power(bench: &mut Bench, seed: u64) -> anyhow::Result<()> {
    let machines = bench.cluster(|cluster| Ok([cluster.datanodes(), cluster.controllers()].concat()))?;
    bench.change(|cluster| cluster.lose_power_of(&machines, Some(seed)))?;
    bench.verifier.power_was_lost();
    bench.change(|cluster| machines.iter().try_for_each(|name| cluster.launch(name)))
}

/// Waits until a node is not in sync any more.
fn until_left(bench: &Bench, node: &str) -> anyhow::Result<()> {
    bench.until(&format!("{node} to leave the in-sync set"), |cluster| {
        let shown = cluster.json(&["volume", "show", "disk"])?;
        let members = shown["status"]["in_sync"].as_array().context("in_sync")?;
        ensure!(members.iter().all(|member| member != node), "{node} is in sync: {shown}");
        Ok(())
    })
}

fn tell(bench: &Bench, node: &str, command: &str) -> anyhow::Result<String> {
    bench.cluster(|cluster| cluster.disk(node)?.tell(command))
}

/// The disk of the owner or of the other copy fails by `commands`, is left, mended by `mend`, and used again.
fn disk_fails(of_the_owner: bool, commands: &[&str], mend: &[&str]) -> anyhow::Result<()> {
    let mut bench = Bench::on_bad_disks(&[])?;
    for command in commands {
        let owner = bench.owner()?;
        let struck = if of_the_owner { owner.as_str() } else { other(&owner) };
        tell(&bench, struck, command)?;
        until_left(&bench, struck)?;
        let serving = bench.owner()?;
        ensure!(serving != struck, "{struck} still owns the volume");
        bench.go_on()?;
        for command in mend {
            tell(&bench, struck, command)?;
        }
        bench.until_in_sync(2)?;
        bench.go_on()?;
    }
    bench.finish(2)?;
    Ok(())
}

const MEND: [&str; 3] = ["write ok", "read off", "flush off"];

#[test]
fn without_a_write_cache_every_answered_write_survives_the_power_of_all_machines() -> anyhow::Result<()> {
    let mut bench = Bench::on_bad_disks(&["--write-cache", "off"])?;
    for round in 0..3 {
        bench.go_on()?;
        lose_all_power(&mut bench, round)?;
    }
    let report = bench.finish(2)?;
    // Nothing is unsure without a cache: the verifier takes older values only where no flush came between.
    ensure!(report.older == 0, "{} blocks were back to an older value", report.older);
    Ok(())
}

#[test]
fn with_a_write_cache_every_flushed_write_survives_the_power_of_all_machines() -> anyhow::Result<()> {
    let mut bench = Bench::on_bad_disks(&[])?;
    for round in 0..3 {
        bench.go_on()?;
        lose_all_power(&mut bench, round)?;
    }
    bench.finish(2)?;
    Ok(())
}

#[test]
fn cached_writes_survive_the_power_of_one_machine_at_a_time() -> anyhow::Result<()> {
    let mut bench = Bench::on_bad_disks(&[])?;
    for round in 0..2 {
        for of_the_owner in [true, false] {
            let owner = bench.owner()?;
            let struck = if of_the_owner { owner } else { other(&owner).to_owned() };
            bench.change(|cluster| cluster.lose_power_of(std::slice::from_ref(&struck), Some(round)))?;
            bench.go_on()?;
            bench.change(|cluster| cluster.launch(&struck))?;
            bench.until_in_sync(2)?;
            bench.go_on()?;
        }
    }
    let report = bench.finish(2)?;
    ensure!(report.older == 0, "{} blocks were back to an older value", report.older);
    Ok(())
}

#[test]
fn failing_disk_of_the_owner_moves_the_volume_without_an_error() -> anyhow::Result<()> {
    disk_fails(true, &["write eio", "read on"], &MEND)
}

#[test]
fn disk_of_the_owner_that_cannot_flush_moves_the_volume_without_an_error() -> anyhow::Result<()> {
    disk_fails(true, &["flush on"], &MEND)
}

#[test]
fn failing_disk_of_a_replica_is_left_without_an_error() -> anyhow::Result<()> {
    disk_fails(false, &["write eio", "flush on"], &MEND)
}

#[test]
fn full_disk_of_a_replica_is_left_without_an_error() -> anyhow::Result<()> {
    disk_fails(false, &["write enospc"], &MEND)
}

#[test]
fn full_disk_of_the_owner_moves_the_volume_without_an_error() -> anyhow::Result<()> {
    disk_fails(true, &["write enospc"], &MEND)
}

#[test]
fn slow_disk_of_a_replica_leaves_the_in_sync_set_instead_of_stalling_hosts() -> anyhow::Result<()> {
    disk_fails(false, &["flush-delay 8000"], &["flush-delay 0"])
}

#[test]
fn slow_disk_of_the_owner_gives_the_volume_away_instead_of_stalling_hosts() -> anyhow::Result<()> {
    disk_fails(true, &["flush-delay 15000"], &["flush-delay 0"])
}

#[test]
fn failed_flush_is_never_taken_for_done_by_the_next_one() -> anyhow::Result<()> {
    for of_the_owner in [true, false] {
        let mut bench = Bench::on_bad_disks(&[])?;
        let owner = bench.owner()?;
        let struck = if of_the_owner { owner.as_str() } else { other(&owner) };
        tell(&bench, struck, "flush-once on")?;
        bench.until("the flush to fail", |cluster| {
            ensure!(cluster.disk(struck)?.tell("failed")? == "1", "not yet");
            Ok(())
        })?;
        // It left, was opened anew, and got again what the failed flush was to keep: this disk alone can tell whether it did.
        bench.go_on()?;
        bench.until_in_sync(2)?;
        bench.go_on()?;
        lose_all_power(&mut bench, 5)?;
        bench.finish(2)?;
    }
    Ok(())
}

#[test]
fn disk_that_is_pulled_out_costs_its_copy_only() -> anyhow::Result<()> {
    let mut bench = Bench::on_bad_disks(&[])?;
    for of_the_owner in [true, false] {
        let owner = bench.owner()?;
        let struck = if of_the_owner { owner.clone() } else { other(&owner).to_owned() };
        tell(&bench, &struck, "gone on")?;
        until_left(&bench, &struck)?;
        bench.go_on()?;
        // A node does not start on a disk that is not there, and says so.
        bench.change(|cluster| cluster.kill(&struck))?;
        let said = bench.change(|cluster| cluster.launch_refused(&struck))?;
        ensure!(said.contains("pool") && said.contains("Input/output error"), "{said}");
        tell(&bench, &struck, "gone off")?;
        bench.change(|cluster| cluster.launch(&struck))?;
        bench.until_in_sync(2)?;
        bench.go_on()?;
    }
    bench.finish(2)?;
    Ok(())
}

#[test]
fn lost_replica_is_never_replaced_by_zeroes_but_copied_anew() -> anyhow::Result<()> {
    let mut bench = Bench::new(2, 2, &[])?;
    let owner = bench.owner()?;
    let struck = other(&owner);
    bench.change(|cluster| {
        cluster.kill(struck)?;
        cluster.in_pool(struck, "rm -r *-*-*-*-*")?;
        cluster.launch(struck)
    })?;
    bench.go_on()?;
    bench.until_in_sync(2)?;
    // Now the one that was made anew is all there is.
    bench.do_without(&owner)?;
    bench.finish(2)?;
    Ok(())
}

#[test]
fn directory_of_someone_else_is_refused_with_the_reason_and_left_alone() -> anyhow::Result<()> {
    let mut bench = Bench::new(2, 2, &[])?;
    let owner = bench.owner()?;
    let struck = other(&owner);
    // A pool that another process has.
    let said = bench.cluster(|cluster| cluster.second_process(struck))?;
    ensure!(said.contains("in use by process"), "{said}");
    // A pool of another cluster.
    bench.change(|cluster| {
        cluster.kill(struck)?;
        cluster.in_pool(struck, "cp pool ../kept-marker; sed -i 's/^cluster ..../cluster zzzz/' pool")?;
        let said = cluster.launch_refused(struck)?;
        ensure!(said.contains("belongs to cluster zzzz") && said.contains("not to cluster"), "{said}");
        cluster.in_pool(struck, "mv ../kept-marker pool")
    })?;
    // A replica of another node, put in the place of the own one.
    bench.change(|cluster| {
        cluster.in_pool(struck, "mkdir ../kept; mv *-*-*-*-* ../kept")?;
        cluster.copy_replicas(&owner, struck)?;
        cluster.launch(struck)
    })?;
    bench.until("the reason", |cluster| {
        let shown = cluster.json(&["volume", "show", "disk"])?;
        ensure!(shown.to_string().contains("the replica belongs to volume"), "{shown}");
        ensure!(in_sync(&shown) == 1, "{shown}");
        Ok(())
    })?;
    bench.go_on()?;
    // With its own replica back in its place it gets what it missed.
    bench.change(|cluster| {
        cluster.kill(struck)?;
        cluster.in_pool(struck, "rm -r *-*-*-*-*; mv ../kept/* .")?;
        cluster.launch(struck)
    })?;
    bench.finish(2)?;
    Ok(())
}

#[test]
fn two_machines_and_a_witness_survive_either_machine() -> anyhow::Result<()> {
    // ctl-1 and node-1 are one machine, ctl-2 and node-2 another, ctl-3 is alone.
    let mut bench = Bench::of(Shape { bad_disks: true, ..Shape::default() }, 2, &[])?;
    for machine in [1, 2] {
        bench.go_on()?;
        let parts = [format!("ctl-{machine}"), format!("node-{machine}")];
        bench.change(|cluster| {
            for part in &parts {
                cluster.network.isolate(part, cluster.network.names())?;
            }
            cluster.lose_power_of(&parts, Some(machine))
        })?;
        bench.go_on()?;
        bench.change(|cluster| {
            cluster.network.heal()?;
            parts.iter().try_for_each(|part| cluster.launch(part))
        })?;
        bench.until_in_sync(2)?;
    }
    let report = bench.finish(2)?;
    ensure!(report.older == 0, "{} blocks were back to an older value", report.older);
    Ok(())
}

/// LOG SENSE of the Logical Block Provisioning log page.
const PROVISIONING: &str = "4d004c00000000010000";

#[test]
fn a_pool_of_another_copy_that_runs_short_is_told_by_the_owner() -> anyhow::Result<()> {
    let cluster = NetCluster::start(Shape { pool_size: "96m".to_owned(), ..Shape::default() })?;
    cluster.volume_for_both("disk", 0, &["--size", "32MiB", "--replicas", "2", "--node", "node-1,node-2"])?;
    let mut host = cluster.login("host-1", "node-1", INITIATOR_A, 1)?;
    host.become_ready(0)?;
    // MODE SELECT(6) of 1C/02: told when no more than 20 sets of 2 MiB are left.
    let page = format!("000000005c02001c{:024}80010000{:08x}0102000000000000", 0, 20);
    host.write(0, "151000002400", &page)?.good()?;
    host.command(0, cdb::TEST_UNIT_READY)?.good()?;
    // Room for the volume stays.
    cluster.in_pool("node-2", "head -c 60M /dev/zero >.filler")?;
    let told = cluster.wait_for("the threshold", || {
        let answer = host.command(0, cdb::TEST_UNIT_READY)?;
        ensure!(answer.status != 0, "nothing is told yet");
        Ok(answer)
    })?;
    told.check("6/38/07")?;
    let page = host.read(0, PROVISIONING, 256)?.good()?;
    let left = u32::from_be_bytes(page.get(8..12).context("a count")?.try_into()?);
    ensure!((8..=20).contains(&left), "{left} sets are left: {page:x?}");
    ensure!(cluster.owner("disk")? == "node-1");
    Ok(())
}
