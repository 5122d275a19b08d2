//! `holdfast-bench`: measures Holdfast beside other targets and the bare network. See `docs/performance.md`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use holdfast_bench::case::Set;
use holdfast_bench::control;
use holdfast_bench::failover;
use holdfast_bench::replication;
use holdfast_bench::report::{self, Report};
use holdfast_bench::run::{self, ClientKind, Plan, Row};
use holdfast_bench::target::Kind;
use holdfast_bench::{floor, plot};

#[derive(Parser)]
#[command(name = "holdfast-bench", about = "Measures Holdfast beside other targets and the bare network")]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Sizes, depths, sessions and mixes, against every target that is installed
    Run(Run),
    /// The control plane: reservations, LUN maps, failovers, and how they grow
    Control(control::Arguments),
    /// How long hosts stand still when a volume gets another owner
    Failover(failover::Arguments),
    /// What copies cost: writes, re-synchronisation, memory
    Replication(replication::Arguments),
    /// The bare exchange that stores, as a server; `replication` starts it
    #[command(hide = true)]
    ReplicationFloor(replication::floor::Arguments),
    /// The state machine at one size; `control` starts it
    #[command(hide = true)]
    ControlCore(control::CoreArguments),
    /// The bare TCP exchange, as a server; `run` starts it
    #[command(hide = true)]
    Floor,
}

#[derive(clap::Args)]
struct Run {
    /// Which cases
    #[arg(long, default_value = "headline")]
    set: Set,
    /// Only cases whose name contains this, such as "4k random read, 1 x 32"
    #[arg(long)]
    only: Option<String>,
    /// Which targets (may be given several times) [default: all]
    #[arg(long)]
    target: Vec<Kind>,
    /// Rounds; the figures are their medians
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Milliseconds of one run
    #[arg(long, default_value_t = 500)]
    milliseconds: u64,
    /// MiB of each volume
    #[arg(long, default_value_t = 256)]
    mib: u64,
    /// Also with libiscsi as the client
    #[arg(long)]
    libiscsi: bool,
    /// Also count system calls, by perf
    #[arg(long)]
    syscalls: bool,
    /// Leave threads where the system puts them, instead of a processor each for client and target
    #[arg(long)]
    unpinned: bool,
    /// Where the volumes are [default: the system's folder for temporary files]
    #[arg(long)]
    scratch: Option<PathBuf>,
    /// Where to put report.json, report.md and the plots [default: print the tables only]
    #[arg(long)]
    out: Option<PathBuf>,
}

/// What a plot shows of a row.
type Value = fn(&Row) -> f64;

fn main() -> anyhow::Result<()> {
    match Arguments::parse().what {
        What::Run(arguments) => measure(arguments),
        What::Control(arguments) => control::run(arguments),
        What::Failover(arguments) => failover::run(&arguments),
        What::Replication(arguments) => replication::run(arguments),
        What::ReplicationFloor(arguments) => replication::floor::serve(&arguments),
        What::ControlCore(arguments) => control::run_core(&arguments),
        What::Floor => floor::serve(),
    }
}

fn measure(arguments: Run) -> anyhow::Result<()> {
    let plan = Plan {
        cases: {
            let only = arguments.only.unwrap_or_default();
            arguments.set.cases().into_iter().filter(|case| case.name().contains(&only)).collect()
        },
        kinds: if arguments.target.is_empty() { Kind::ALL.to_vec() } else { arguments.target },
        rounds: arguments.rounds.max(1),
        length: Duration::from_millis(arguments.milliseconds.max(1)),
        bytes: arguments.mib.max(64) << 20,
        syscalls: arguments.syscalls,
        libiscsi: arguments.libiscsi,
        pin: !arguments.unpinned,
    };
    let scratch = match &arguments.scratch {
        Some(folder) => tempfile::tempdir_in(folder),
        None => tempfile::tempdir(),
    };
    let scratch = scratch.context("a folder for the volumes")?;
    // Before threads are bound to processors.
    let machine = report::machine();
    let rows = run::run(&plan, scratch.path())?;
    let report = Report { machine, rows };
    println!("{}", report.markdown());
    if let Some(folder) = arguments.out {
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("report.json"), serde_json::to_string_pretty(&report)?)?;
        std::fs::write(folder.join("report.md"), report.markdown())?;
        let lean =
            || report.groups().filter(|group| group.first().is_some_and(|r| r.client == ClientKind::Lean));
        let plots: [(&str, &str, &str, Value); 3] = [
            ("cpu.svg", "Processor time of the target for a command", "us", |row| row.cpu_us),
            ("iops.svg", "Commands per second", "IOPS", |row| row.iops),
            ("p99.svg", "99th percentile of latency", "us", |row| row.latency_us[1]),
        ];
        for (file, title, unit, value) in plots {
            std::fs::write(folder.join(file), plot::bars(title, unit, lean(), value))?;
        }
        eprintln!("written to {}", folder.display());
    }
    Ok(())
}
