//! How long hosts stand still when a volume gets another owner: by plan, by kill -9 of the owner's node, by a cut between it and the
//! cluster.
//!
//! Three controllers and two data nodes as processes, each in a network namespace of its own, state on a real disk; one multipath host
//! with a session through each data node, which writes all volumes without an end and reads everything back after every blow. A stall is
//! the longest time between two acknowledged writes of a volume, from just before the blow until every copy is in sync again, so what the
//! return of a node costs is in it.
//!
//! | Looking for | Module |
//! |---|---|
//! | the host: its paths, writes, checks | [`host`], [`machine`] |
//! | one session | [`session`] |
//! | what paths say of themselves | [`alua`] |
//! | the cluster and the blows | [`strikes`] |
//! | tables, JSON, chart | [`report`] |
//!
//! Invariants: one sample is one failover of one volume; a blow that strikes several volumes at once gives one for each, and the report
//! says how many blows there were; an ownership that did not move as the blow wants ends the run; an error that the host could not
//! hide from a program ends the run, after everything else is told; every run is bounded; no time is asserted.

mod alua;
mod host;
mod machine;
mod report;
mod session;
mod strikes;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::ensure;
use serde::Serialize;

use self::{
    host::Habits,
    report::{Report, Row},
    strikes::Field,
};

/// What to measure.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Failovers of a volume for each kind of blow and depth, at least
    #[arg(long, default_value_t = 100)]
    count: usize,
    /// Minutes at most; what was not reached by then is told
    #[arg(long, default_value_t = 25.0)]
    minutes: f64,
    /// Kinds of blows (may be given several times) [default: planned, kill, partition]
    #[arg(long)]
    kind: Vec<Kind>,
    /// Writes in flight to each volume
    #[arg(long, value_delimiter = ',', default_value = "1,8")]
    depths: Vec<u16>,
    /// Volumes that a node owns when it is struck
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=16))]
    volumes: u16,
    /// Microseconds from an answer to the next write in its place: a host that leaves processors to the cluster on the same machine
    #[arg(long, default_value_t = 1000)]
    pause_us: u64,
    /// Milliseconds after which the host leaves a path that does not answer its pings
    #[arg(long, default_value_t = 2000)]
    path_silence_ms: u64,
    /// Folder on the disk to measure; a new one below it is used and removed [default: state in memory]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Where failover.md, failover.json and failover.svg go
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// A kind of blow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// `holdfast volume move`
    Planned,
    /// kill -9 of the owner's data node
    Kill,
    /// The owner's node and the rest of the cluster do not hear each other; hosts still reach it
    Partition,
    /// The owner's node hears nobody, hosts neither
    Isolation,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Kill => "kill -9",
            Self::Partition => "partition",
            Self::Isolation => "isolation",
        }
    }

    /// What a stall is to stay below, in milliseconds.
    fn target_ms(self) -> f64 {
        match self {
            Self::Planned => 1000.0,
            Self::Kill => 3000.0,
            Self::Partition | Self::Isolation => lease_ms() + 1000.0,
        }
    }
}

fn lease_ms() -> f64 {
    f64::from(holdfast_controller::lease::LEASE_MS)
}

/// Measures, prints, writes.
///
/// # Errors
/// The cluster does not come up or not again, ownership does not move, or a host saw an error.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let by = Instant::now() + Duration::from_secs_f64((arguments.minutes * 60.0).clamp(1.0, 86_400.0));
    let kinds = match arguments.kind.as_slice() {
        [] => vec![Kind::Planned, Kind::Kill, Kind::Partition],
        kinds => kinds.to_vec(),
    };
    let mut field = Field::start(arguments.dir.clone(), arguments.volumes)?;
    say("the cluster serves");
    let mut report = Report::new(arguments.volumes, arguments.pause_us, field.on_disk());
    let runs: Vec<(u16, Kind)> =
        arguments.depths.iter().flat_map(|depth| kinds.iter().map(|kind| (*depth, *kind))).collect();
    for (done, (depth, kind)) in runs.iter().enumerate() {
        // Each gets its share of what is left, so that none is left out.
        let left = by.saturating_duration_since(Instant::now());
        let share = left / (runs.len() - done) as u32;
        let habits = Habits {
            depth: usize::from(*depth).max(1),
            pause: Duration::from_micros(arguments.pause_us),
            silence: Duration::from_millis(arguments.path_silence_ms),
        };
        let row = Row::new(*kind, *depth);
        report.rows.push(field.measure(row, habits, arguments.count, Instant::now() + share)?);
    }
    report.end();
    let markdown = report.markdown();
    print!("{markdown}");
    if let Some(out) = &arguments.out {
        std::fs::create_dir_all(out)?;
        std::fs::write(out.join("failover.md"), markdown)?;
        std::fs::write(out.join("failover.json"), serde_json::to_vec_pretty(&report)?)?;
        std::fs::write(out.join("failover.svg"), report.chart())?;
    }
    let errors: usize = report.rows.iter().map(|row| row.host_errors.len()).sum();
    ensure!(errors == 0, "hosts saw {errors} errors: {:?}", report.rows);
    Ok(())
}

fn say(what: &str) {
    eprintln!("bench-failover: {what}");
}
