//! `holdfast-sim`: clusters in one thread, one after the other, each from its seed. Exit code 0: no seed showed anything that must not
//! happen, and a long run met every kind of fault and every rare branch; 1: one did, and how to replay it is told, or something was never met.

use std::{collections::BTreeMap, process::ExitCode, time::Instant};

use clap::Parser;
use holdfast_chaos::simulation::{self, Plan, coverage};

/// One seed in so many is run twice: it has to do the same again.
const AGAIN: u64 = 100;

/// Clusters from seeds.
#[derive(Debug, Parser)]
#[command(name = "holdfast-sim", version)]
struct Arguments {
    /// The first seed
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// How many seeds
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// Go on after a violation, and tell only in how many seeds there was one
    #[arg(long)]
    count: bool,
    /// Tell all that happens
    #[arg(long)]
    trace: bool,
    /// Troubles to leave out, by number
    #[arg(long, value_delimiter = ',')]
    without: Vec<u32>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.count {
        count(&arguments);
        return ExitCode::SUCCESS;
    }
    let begun = Instant::now();
    let (mut answered, mut changes, mut unknown, mut attentions) = (0, 0, 0, 0);
    let mut faults: BTreeMap<&str, u64> = BTreeMap::new();
    let mut marks: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in arguments.first..arguments.first.saturating_add(arguments.seeds) {
        let plan =
            Plan { seed, trace: arguments.trace, without: arguments.without.iter().copied().collect() };
        let report = match simulation::run(&plan) {
            Ok(report) => report,
            Err(violation) => {
                let violation = if arguments.trace { violation } else { simulation::shrink(violation) };
                println!("{violation}");
                return ExitCode::FAILURE;
            }
        };
        if seed % AGAIN == 0
            && simulation::run(&plan).map(|again| again.trace_hash).ok() != Some(report.trace_hash)
        {
            println!("seed {seed}: another run of it went another way");
            return ExitCode::FAILURE;
        }
        answered += report.answered;
        changes += report.changes;
        unknown += report.unknown;
        attentions += report.attentions;
        for (kind, count) in report.faults {
            *faults.entry(kind).or_default() += count;
        }
        for mark in report.marks {
            *marks.entry(mark).or_default() += 1;
        }
    }
    let hours = begun.elapsed().as_secs_f64() / 3600.0;
    println!(
        "{} seeds, {:.0} an hour; commands answered {answered}, reservations changed {changes}, of unknown outcome {unknown}, Unit Attentions told {attentions}",
        arguments.seeds,
        arguments.seeds as f64 / hours
    );
    for (kind, count) in &faults {
        println!("  {count:>8} {kind}");
    }
    println!("branches taken in so many seeds:");
    for (mark, count) in &marks {
        println!("  {count:>8} {mark}");
    }
    let met = |known: &'static [&'static str], of: &dyn Fn(&str) -> bool| -> Vec<&'static str> {
        known.iter().copied().filter(|name| !of(name)).collect()
    };
    let never: Vec<&str> = [
        met(coverage::FAULTS, &|name| faults.contains_key(name)),
        met(coverage::BRANCHES, &|name| marks.contains_key(name)),
    ]
    .concat();
    println!(
        "coverage: {} of {} kinds of faults and rare branches",
        coverage::FAULTS.len() + coverage::BRANCHES.len() - never.len(),
        coverage::FAULTS.len() + coverage::BRANCHES.len()
    );
    for name in &never {
        println!("  never: {name}");
    }
    if never.is_empty() || arguments.seeds < coverage::SEEDS_MIN {
        return ExitCode::SUCCESS;
    }
    println!("what is never met is not proven: work on the simulation");
    ExitCode::FAILURE
}

/// In how many seeds something is wrong. Code that is broken on purpose may panic too.
fn count(arguments: &Arguments) {
    let seeds = arguments.first..arguments.first.saturating_add(arguments.seeds);
    // A panic is a finding like others; where it comes from is for a run of that seed alone.
    std::panic::set_hook(Box::new(|_| {}));
    let found: Vec<u64> = seeds
        .filter(|seed| !matches!(std::panic::catch_unwind(|| simulation::run(&Plan::of(*seed))), Ok(Ok(_))))
        .collect();
    let first = found.first().map(|seed| format!(", first by seed {seed}")).unwrap_or_default();
    println!("{} of {} seeds{first}", found.len(), arguments.seeds);
}
