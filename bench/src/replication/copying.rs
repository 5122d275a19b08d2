//! A third copy is made of a volume: how fast, beside a plain copy of its file; with an idle host and with one that writes, and what that
//! one feels of it. And the memory that volumes take.

use std::{
    fs::File,
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};

use super::{
    Stage,
    report::{Copying, Memory},
    say,
};
use crate::{
    case::{Case, Mix, Pattern},
    cost,
    lean::Client,
    run::median,
};

const NAME: &str = "copied";
const ADDED: &str = "node-3";
/// A copy that takes longer fails the run.
const COPY_MAX: Duration = Duration::from_secs(300);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Runs are cut into pieces so long while a copy is made.
const PIECE: Duration = Duration::from_millis(250);
/// What the host does meanwhile.
const CASE: Case = Case { size: 4096, depth: 8, sessions: 1, mix: Mix::Mixed, pattern: Pattern::Random };
/// Measures copies.
pub(super) fn copies(stage: &Stage, bytes: u64, rounds: u32, length: Duration) -> anyhow::Result<Copying> {
    let login = stage.volume(NAME, bytes, 2, true)?;
    let mut client = Client::new(bytes / 512)?;
    client.connect(&login, 1)?;
    client.fill_and_check()?;
    let shown = stage.cluster.json(&["volume", "show", NAME])?;
    let id = shown["status"]["id"].as_str().context("id")?;
    let file = stage.cluster.folder().join("node-1/pool").join(id).join("data");
    let rate = |took: Duration| bytes as f64 / took.as_secs_f64().max(1e-9) / f64::from(1 << 20);
    let (mut plain, mut idle, mut busy) = (Vec::new(), Vec::new(), Vec::new());
    let (mut before, mut during, mut after) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        plain.push(rate(plain_copy(&file)?));
        client.serve_idle()?;
        let begun = Instant::now();
        add(stage)?;
        until_copied(stage)?;
        idle.push(rate(begun.elapsed()));
        // What the copy left in the page cache is none of the host's.
        client.serve_idle()?;
        after.push(speed(&mut client, length * 2)?);
        remove(stage)?;
        before.push(speed(&mut client, length * 2)?);
        let (took, commands_per_second) = copy_under_load(stage, &mut client)?;
        busy.push(rate(took));
        during.push(commands_per_second);
        remove(stage)?;
        say(&format!("copies: round {} of {rounds} done", round + 1));
    }
    Ok(Copying {
        mib: bytes >> 20,
        plain_mib_s: median(plain),
        idle_mib_s: median(idle),
        busy_mib_s: median(busy),
        case: CASE,
        before_per_second: median(before),
        during_per_second: median(during),
        after_per_second: median(after),
    })
}

/// `cp` of the volume's file beside it, and fsync.
fn plain_copy(file: &Path) -> anyhow::Result<Duration> {
    let to = file.with_file_name("bench-plain-copy");
    let begun = Instant::now();
    let status = Command::new("cp").args(["--reflink=never", "--sparse=auto"]).args([file, &to]).status()?;
    ensure!(status.success(), "cp: {status}");
    File::open(&to)?.sync_all()?;
    let took = begun.elapsed();
    std::fs::remove_file(&to)?;
    Ok(took)
}

fn add(stage: &Stage) -> anyhow::Result<()> {
    stage.cluster.cli(&["volume", "replica", "add", NAME, "--node", ADDED])?;
    Ok(())
}

fn until_copied(stage: &Stage) -> anyhow::Result<()> {
    let by = Instant::now() + COPY_MAX;
    while stage.in_sync(NAME)? < 3 {
        ensure!(Instant::now() < by, "the copy is not made");
        thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

fn remove(stage: &Stage) -> anyhow::Result<()> {
    stage.cluster.cli(&["volume", "replica", "remove", NAME, "--node", ADDED])?;
    stage.cluster.wait_for("the copy to be gone", || {
        let shown = stage.cluster.json(&["volume", "show", NAME])?;
        let replicas = shown["status"]["replicas"].as_array().context("replicas")?;
        ensure!(replicas.iter().all(|replica| replica["node"] != ADDED), "{shown}");
        Ok(())
    })
}

/// Commands in a second.
fn speed(client: &mut Client, length: Duration) -> anyhow::Result<f64> {
    let done = client.run(&CASE, (length / 5, length), || Ok(()), || Ok(()))?;
    Ok(done.commands as f64 / done.elapsed.as_secs_f64().max(1e-9))
}

/// The time that the copy took, and the host's commands in a second until then.
fn copy_under_load(stage: &Stage, client: &mut Client) -> anyhow::Result<(Duration, f64)> {
    let made = AtomicBool::new(false);
    let begun = Instant::now();
    add(stage)?;
    thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let copied = until_copied(stage);
            made.store(true, Ordering::Relaxed);
            copied.map(|()| begun.elapsed())
        });
        let (mut commands, mut time) = (0, Duration::ZERO);
        while !made.load(Ordering::Relaxed) {
            let done = client.run(&CASE, (Duration::ZERO, PIECE), || Ok(()), || Ok(()))?;
            // A piece that ended after the copy was made is not of it, unless there is none before.
            if !made.load(Ordering::Relaxed) || commands == 0 {
                commands += done.commands;
                time += done.elapsed;
            }
        }
        let took = watch.join().map_err(|_| anyhow::anyhow!("the watch fell"))??;
        Ok((took, commands as f64 / time.as_secs_f64().max(1e-9)))
    })
}

/// Memory of the data nodes before and with so many more volumes of this size.
pub(super) fn memory(stage: &Stage, volumes: u16, size_bytes: u64) -> anyhow::Result<Memory> {
    let resident = || {
        let pids = stage.cluster.pids()?;
        let nodes: Vec<_> = pids.iter().filter(|(name, _)| name.starts_with("node-")).collect();
        let bytes: anyhow::Result<Vec<u64>> = nodes
            .iter()
            .map(|(_, pid)| cost::resident_bytes(pid.as_raw_nonzero().get().unsigned_abs()))
            .collect();
        bytes
    };
    let before = resident()?;
    for number in 0..volumes {
        stage.volume(&format!("memory-{number}"), size_bytes, 2, true)?;
    }
    let after = resident()?;
    let grown: u64 = after.iter().zip(&before).map(|(after, before)| after.saturating_sub(*before)).sum();
    Ok(Memory {
        volumes,
        size_gib: size_bytes >> 30,
        node_mib_before: before.iter().map(|bytes| *bytes as f64 / f64::from(1 << 20)).collect(),
        node_mib_after: after.iter().map(|bytes| *bytes as f64 / f64::from(1 << 20)).collect(),
        copy_kib: grown as f64 / 1024.0 / f64::from(volumes) / 2.0,
    })
}
