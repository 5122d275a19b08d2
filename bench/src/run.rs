//! Rounds over cases and targets: who runs when, and what becomes of the samples.
//!
//! Invariants: within a round each case is run against every target before the next case, and the order of targets
//! rotates; the target's processor holds the target alone, as far as this program goes; a row is the median of its rounds.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;

use crate::case::Case;
use crate::cost::{self, Reading, SyscallCounter};
use crate::lean::Client;
use crate::libiscsi;
use crate::target::{Kind, Target};

/// How to run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Which cases.
    pub cases: Vec<Case>,
    /// Which targets.
    pub kinds: Vec<Kind>,
    /// Rounds over all of it.
    pub rounds: u32,
    /// The measured time of one run.
    pub length: Duration,
    /// Bytes of each volume.
    pub bytes: u64,
    /// Count system calls as well.
    pub syscalls: bool,
    /// Run the client on libiscsi as well.
    pub libiscsi: bool,
    /// Bind client and target to a processor each, where there are two.
    pub pin: bool,
}

/// Which client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientKind {
    /// Raw PDUs, batched.
    Lean,
    /// libiscsi.
    Libiscsi,
}

/// One run.
#[derive(Clone, Copy, Debug)]
struct Sample {
    iops: f64,
    cpu_us: f64,
    switches: f64,
    latency_us: [f64; 3],
}

/// The medians of one case against one target.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What was measured.
    pub case: Case,
    /// By which client.
    pub client: ClientKind,
    /// Against which target.
    pub target: &'static str,
    /// Commands per second.
    pub iops: f64,
    /// Megabytes (10^6) per second.
    pub mb_per_s: f64,
    /// Microseconds of processor that the target spent on a command.
    pub cpu_us: f64,
    /// The least and the most of all rounds.
    pub cpu_us_range: [f64; 2],
    /// Context switches of the target for a command.
    pub switches: f64,
    /// System calls of the target for a command; none where they could not be counted.
    pub syscalls: Option<f64>,
    /// Latency in microseconds: p50, p99, p99.9.
    pub latency_us: [f64; 3],
    /// How many runs.
    pub rounds: usize,
}

struct Cell {
    case: Case,
    client: ClientKind,
    target: usize,
    samples: Vec<Sample>,
    syscalls: Option<f64>,
}

/// Runs the plan and gives its rows, by case, client and target.
///
/// # Errors
/// A target does not start, or a run fails.
pub fn run(plan: &Plan, folder: &Path) -> anyhow::Result<Vec<Row>> {
    let mut targets = Vec::new();
    for kind in &plan.kinds {
        match kind.start(folder, plan.bytes)? {
            Some(started) => targets.extend(started),
            None => eprintln!("{kind:?} is not installed: left out"),
        }
    }
    let blocks = plan.bytes / 512;
    let mut clients = Vec::new();
    let cases = &plan.cases;
    let sessions = cases.iter().map(|case| case.sessions).max().unwrap_or(1) as usize;
    for target in &targets {
        let mut client = Client::new(blocks)?;
        client.connect(&target.login, sessions).with_context(|| target.name)?;
        if target.stores {
            client.fill_and_check().with_context(|| target.name)?;
        }
        clients.push(client);
    }
    if plan.pin {
        pin(&targets)?;
    }
    let program = if plan.libiscsi { Some(libiscsi::compile(folder)?) } else { None };
    let mut cells = Vec::new();
    for case in cases {
        for client in [ClientKind::Lean, ClientKind::Libiscsi] {
            for (target, of) in targets.iter().enumerate() {
                let fits = client == ClientKind::Lean || program.is_some() && of.login.target.is_some();
                if fits {
                    cells.push(Cell { case: *case, client, target, samples: Vec::new(), syscalls: None });
                }
            }
        }
    }
    // Cells of one case and client stand together: they are run together, in an order that rotates.
    for round in 0..plan.rounds as usize {
        for group in cells.chunk_by_mut(|a, b| a.case == b.case && a.client == b.client) {
            let len = group.len();
            group.rotate_left(round % len);
            for cell in group.iter_mut() {
                let target = &targets[cell.target];
                let sample = measure(plan, program.as_deref(), cell, target, &mut clients[cell.target]);
                let sample = sample.with_context(|| format!("{}: {}", target.name, cell.case.name()))?;
                cell.samples.push(sample);
            }
            group.rotate_right(round % len);
        }
        eprintln!("round {} of {} done", round + 1, plan.rounds);
    }
    if plan.syscalls {
        for cell in cells.iter_mut().filter(|cell| cell.client == ClientKind::Lean) {
            let (target, client) = (&targets[cell.target], &mut clients[cell.target]);
            cell.syscalls = count_syscalls(plan, cell, target, client)?;
        }
    }
    Ok(cells.iter().map(|cell| row(cell, targets[cell.target].name)).collect())
}

fn pin(targets: &[Target]) -> anyhow::Result<()> {
    let own = std::process::id();
    if std::thread::available_parallelism().map_or(1, |n| n.get()) < 2 {
        return Ok(());
    }
    cost::pin(own, &[0])?;
    for target in targets {
        cost::pin(target.pid, &[1])?;
    }
    Ok(())
}

fn measure(
    plan: &Plan,
    program: Option<&Path>,
    cell: &Cell,
    target: &Target,
    client: &mut Client,
) -> anyhow::Result<Sample> {
    let readings = std::cell::Cell::new((Reading::default(), Reading::default()));
    let at_start = || {
        readings.set((cost::read(target.pid)?, Reading::default()));
        Ok(())
    };
    let at_end = || {
        readings.set((readings.get().0, cost::read(target.pid)?));
        Ok(())
    };
    let times = (plan.length / 5, plan.length);
    let (commands, elapsed, ns) = match (cell.client, program) {
        (ClientKind::Libiscsi, Some(program)) => {
            let done =
                libiscsi::run(program, &target.login, plan.bytes / 512, &cell.case, times, at_start, at_end)?;
            // Its own sessions stay alive meanwhile.
            client.serve_idle()?;
            (done.commands, done.elapsed, done.percentiles_ns)
        }
        _ => {
            let done = client.run(&cell.case, times, at_start, at_end)?;
            let part = |part| done.latencies.percentile(part);
            (done.commands, done.elapsed, [part(0.5), part(0.99), part(0.999)])
        }
    };
    let (before, after) = readings.get();
    let spent = after.since(before);
    let commands = commands.max(1) as f64;
    Ok(Sample {
        iops: commands / elapsed.as_secs_f64().max(1e-9),
        cpu_us: spent.cpu_ns as f64 / 1000.0 / commands,
        switches: spent.switches as f64 / commands,
        latency_us: ns.map(|ns| ns as f64 / 1000.0),
    })
}

fn count_syscalls(
    plan: &Plan,
    cell: &Cell,
    target: &Target,
    client: &mut Client,
) -> anyhow::Result<Option<f64>> {
    // Started before the load and stopped after it: what an idle target does meanwhile is little.
    let Some(counter) = SyscallCounter::start(target.pid) else { return Ok(None) };
    let done = client.run(&cell.case, (Duration::ZERO, plan.length), || Ok(()), || Ok(()))?;
    Ok(Some(counter.stop()? as f64 / done.commands.max(1) as f64))
}

fn row(cell: &Cell, target: &'static str) -> Row {
    let median = |of: fn(&Sample) -> f64| median(cell.samples.iter().map(of).collect());
    let cpu = || cell.samples.iter().map(|sample| sample.cpu_us);
    let iops = median(|s| s.iops);
    Row {
        case: cell.case,
        client: cell.client,
        target,
        iops,
        mb_per_s: iops * f64::from(cell.case.size) / 1e6,
        cpu_us: median(|s| s.cpu_us),
        cpu_us_range: [cpu().fold(f64::INFINITY, f64::min), cpu().fold(0.0, f64::max)],
        switches: median(|s| s.switches),
        syscalls: cell.syscalls,
        latency_us: [median(|s| s.latency_us[0]), median(|s| s.latency_us[1]), median(|s| s.latency_us[2])],
        rounds: cell.samples.len(),
    }
}

/// The middle one, or between the two middle ones.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}
