//! A run: the shipped binaries in network namespaces, faults from a seed, hosts that work meanwhile, judges at the end.

pub mod blocks;
pub mod chronicle;
pub mod faults;
pub mod fence;
pub mod io;
pub mod paths;
pub mod report;
pub mod reserving;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use holdfast_tests::{
    cluster::{INITIATOR_A, INITIATOR_B},
    netcluster::{NetCluster, Shape},
};

use crate::{
    oracle::{
        block, fencing,
        linearizable::{NotLinearizable, Timed},
        reservations,
    },
    random::Random,
};
use chronicle::Chronicle;
use faults::Injector;
use io::{IoHost, Record};
use paths::{Paths, Ways};
use report::Totals;
use reserving::Reserver;

/// LUNs of the three volumes.
const LUN_IO: u16 = 0;
const LUN_RESERVATIONS: u16 = 1;
const LUN_FENCE: u16 = 2;
/// Blocks under I/O.
const BLOCKS: u64 = 96;
/// Hosts that do I/O, and nexuses that change reservations.
const IO_HOSTS: u16 = 4;
const NEXUSES: u8 = 3;
/// A write that has waited longer than this on its way is refused by the product: it may not land later. Its bound is 15 s, and the
/// node that holds it must have had the time to judge it.
const LATE_MAX_NS: u64 = 17_000_000_000;

/// A change of reservations of unknown outcome is decided by then: its owner asks for the outcome while it has a lease, and no longer.
const LATE_CHANGE_MAX_NS: u64 = 20_000_000_000;

/// What to run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Everything is drawn from it.
    pub seed: u64,
    /// How long faults are injected.
    pub duration: Duration,
    /// Copies of the volumes.
    pub replicas: u32,
    /// Data nodes.
    pub datanodes: u8,
    /// Where logs and the table go.
    pub folder: PathBuf,
}

/// Runs the plan; the table, and whether every judge was content.
///
/// # Errors
/// When the cluster does not come up, or not again after a fault was healed.
pub fn run(plan: &Plan) -> anyhow::Result<(String, bool)> {
    fs::create_dir_all(&plan.folder).with_context(|| plan.folder.display().to_string())?;
    let chronicle = Arc::new(Chronicle::open(&plan.folder)?);
    let mut random = Random::new(plan.seed);
    let cluster = start(plan, &mut random, &chronicle)?;
    let stop = Arc::new(AtomicBool::new(false));
    let nodes = cluster.datanodes();
    let portals: anyhow::Result<Vec<_>> = nodes.iter().map(|name| cluster.portal(name)).collect();
    let ways = Ways {
        network: cluster.network.clone(),
        target: cluster.target.clone(),
        portals: portals?,
        stop: Arc::clone(&stop),
    };
    let count = nodes.len();
    let all = |first: usize| (0..count).map(|n| (n + first) % count).collect::<Vec<_>>();
    let machine =
        |n: u64| if n.is_multiple_of(2) { ("host-1", INITIATOR_A) } else { ("host-2", INITIATOR_B) };

    let io: Vec<_> = (1..=u64::from(IO_HOSTS))
        .map(|number| {
            let (host, name) = machine(number);
            let paths = Paths::new(&ways, host, name, 10 + number as u16, all(number as usize / 2));
            let chronicle = Arc::clone(&chronicle);
            let random = random.fork();
            let host = IoHost { number, lun: LUN_IO, blocks: BLOCKS, random, paths, chronicle };
            thread::spawn(move || host.run())
        })
        .collect();
    let reserving: Vec<_> = (1..=NEXUSES)
        .map(|nexus| {
            let (host, name) = machine(u64::from(nexus));
            let node = usize::from(nexus) % count;
            let paths = Paths::new(&ways, host, name, 30 + u16::from(nexus), vec![node]);
            let (random, chronicle) = (random.fork(), Arc::clone(&chronicle));
            let reserver = Reserver { nexus, lun: LUN_RESERVATIONS, random, paths, chronicle };
            thread::spawn(move || reserver.run())
        })
        .collect();
    let fence = {
        let a = Paths::new(&ways, "host-1", INITIATOR_A, 40, vec![0]);
        let b = Paths::new(&ways, "host-2", INITIATOR_B, 41, vec![1 % count]);
        let (mut random, chronicle) = (random.fork(), Arc::clone(&chronicle));
        thread::spawn(move || fence::play(LUN_FENCE, a, b, &mut random, &chronicle))
    };

    let injector = Injector {
        cluster,
        random: random.fork(),
        chronicle: Arc::clone(&chronicle),
        volume: "io".to_owned(),
        hosts: vec!["host-1".to_owned(), "host-2".to_owned()],
    };
    let broken = injector.run(Instant::now() + plan.duration);
    stop.store(true, Ordering::Relaxed);
    chronicle.say("the hosts stop");
    let mut totals = Totals { seed: plan.seed, replicas: plan.replicas, ..Totals::default() };
    let mut records = Vec::new();
    for host in io {
        records.push(host.join().map_err(|_| anyhow::anyhow!("a host's thread fell"))?);
    }
    let mut reservations = Vec::new();
    for host in reserving {
        reservations.extend(host.join().map_err(|_| anyhow::anyhow!("a reserving host's thread fell"))?);
    }
    let played = fence.join().map_err(|_| anyhow::anyhow!("the fencing game fell"))?;
    match broken {
        Ok(cluster) => drop(cluster),
        Err(error) => {
            chronicle.violation(format!("the healed cluster does not serve: {}", first_line(&error)));
            fs::write(plan.folder.join("broken.txt"), format!("{error:?}"))?;
        }
    }
    chronicle.say("blocks are judged");
    judge_blocks(records, &mut totals, &chronicle);
    chronicle.say("fencing is judged");
    judge_fence(&played, &mut totals, &chronicle);
    chronicle.say("reservations are judged");
    judge_reservations(&reservations, &plan.folder, &mut totals, &chronicle);
    let (table, passed) = report::table(&mut totals, &chronicle);
    fs::write(plan.folder.join("table.txt"), &table)?;
    Ok((table, passed))
}

fn first_line(error: &anyhow::Error) -> String {
    format!("{error:#}").lines().next().unwrap_or_default().to_owned()
}

fn start(plan: &Plan, random: &mut Random, chronicle: &Chronicle) -> anyhow::Result<NetCluster> {
    let mut clock_offsets_s = BTreeMap::new();
    for (kind, count) in [("ctl", 3), ("node", plan.datanodes)] {
        for number in 1..=count {
            clock_offsets_s.insert(format!("{kind}-{number}"), random.below(90_000) as u32);
        }
    }
    chronicle.say(&format!("seed {}; clocks ahead by (s) {clock_offsets_s:?}", plan.seed));
    let shape = Shape {
        controllers: 3,
        datanodes: plan.datanodes,
        hosts: 2,
        pool_size: "96m".to_owned(),
        bad_disks: false,
        clock_offsets_s,
        logs: Some(plan.folder.join("log")),
        disk: None,
    };
    let cluster = NetCluster::start(shape)?;
    let replicas = plan.replicas.to_string();
    for (volume, lun) in [("io", LUN_IO), ("reservations", LUN_RESERVATIONS), ("fence", LUN_FENCE)] {
        cluster.volume_for_both(volume, lun, &["--size", "16MiB", "--replicas", &replicas])?;
    }
    chronicle.say("the cluster serves");
    Ok(cluster)
}

fn judge_blocks(records: Vec<Record>, totals: &mut Totals, chronicle: &Chronicle) {
    let mut by_block: BTreeMap<u64, Vec<Timed<block::Operation>>> = BTreeMap::new();
    for record in records {
        totals.stalls_ns.extend(record.stalls_ns);
        for (block, operation) in record.operations {
            by_block.entry(block).or_default().push(operation);
        }
    }
    totals.blocks = by_block.len();
    for (block, history) in by_block {
        totals.block_operations += history.len();
        let Err(found) = block::check(&history, Some(LATE_MAX_NS)) else { continue };
        totals.stale += 1;
        chronicle.say(&format!("block {block}: no order explains its history; the last operations before:"));
        let around = found.explained.iter().chain([&found.stuck]);
        around.for_each(|number| tell(chronicle, &history[*number]));
        chronicle
            .violation(format!("block {block}: not linearizable at {:x?}", history[found.stuck].operation));
    }
}

fn judge_reservations(
    history: &[Timed<reservations::Operation>],
    folder: &Path,
    totals: &mut Totals,
    chronicle: &Chronicle,
) {
    totals.reservation_operations = history.len();
    // For a second look: this history is judged whole.
    let lines: String = history.iter().map(|timed| format!("{timed:x?}\n")).collect();
    if let Err(error) = fs::write(folder.join("reservations.txt"), lines) {
        chronicle.say(&format!("reservations.txt: {error}"));
    }
    let unknown = history.iter().filter(|timed| timed.answered.is_none()).count();
    chronicle.say(&format!("reservations: {} operations, {unknown} of unknown outcome", history.len()));
    let Err(found) = reservations::check(history, Some(LATE_CHANGE_MAX_NS)) else { return };
    chronicle.say("reservations: no order explains the history; the last operations before:");
    found.explained.iter().chain([&found.stuck]).for_each(|number| tell(chronicle, &history[*number]));
    let verdict = verdict(&found);
    chronicle.violation(format!("reservations: {verdict} at {:x?}", history[found.stuck].operation));
}

fn verdict(found: &NotLinearizable) -> &'static str {
    if found.undecided { "undecided, given up" } else { "not linearizable" }
}

fn tell<O: std::fmt::Debug>(chronicle: &Chronicle, timed: &Timed<O>) {
    let answered = timed.answered.map_or("never".to_owned(), |at| format!("{:.6}", chronicle.seconds(at)));
    chronicle.say(&format!("    {:.6} .. {answered}  {:x?}", chronicle.seconds(timed.sent), timed.operation));
}

fn judge_fence(played: &fence::Played, totals: &mut Totals, chronicle: &Chronicle) {
    (totals.preempts, totals.victim_writes) = (played.preempts.len(), played.writes.len());
    for found in fencing::unfenced(&played.preempts, &played.writes) {
        chronicle.violation(format!(
            "a write sent at {:.6} was GOOD at {:.6}, after the GOOD at {:.6} of the PREEMPT of its nexus",
            chronicle.seconds(found.write.sent),
            chronicle.seconds(found.write.good),
            chronicle.seconds(found.preempt.good)
        ));
    }
    for session in &played.sessions {
        for preempt in fencing::untold(&played.preempts, session) {
            chronicle.violation(format!(
                "the victim of the PREEMPT that was GOOD at {:.6} was never told",
                chronicle.seconds(preempt.good)
            ));
        }
    }
}

/// A folder for a run that was given none.
///
/// # Errors
/// When there is no place for it.
pub fn folder(seed: u64) -> anyhow::Result<PathBuf> {
    let root = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    for attempt in 0..1_000 {
        let folder = root.join("chaos").join(format!("seed-{seed}-{attempt}"));
        if !folder.exists() {
            return Ok(folder);
        }
    }
    bail!("a thousand runs of seed {seed} are kept; remove some")
}
