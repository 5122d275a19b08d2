//! `holdfast-chaos`: breaks a cluster of the shipped binaries for some minutes, and judges what its hosts saw. Exit code 0: no judge found
//! anything; 1: a violation; 2: it could not be run.

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::Parser;
use holdfast_chaos::run::{self, Plan};

/// Faults on real processes, judged.
#[derive(Debug, Parser)]
#[command(name = "holdfast-chaos", version)]
struct Arguments {
    /// How long faults are injected
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,
    /// Everything is drawn from it [default: drawn from the time]
    #[arg(long)]
    seed: Option<u64>,
    /// Copies of each volume
    #[arg(long, default_value_t = 1)]
    replicas: u32,
    /// Data nodes
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(2..=8))]
    datanodes: u8,
    /// Folder for logs and the table [default: below target/chaos]
    #[arg(long)]
    dir: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::from(now.subsec_nanos()) ^ now.as_secs()
    });
    let outcome = arguments.dir.map_or_else(|| run::folder(seed), Ok).and_then(|folder| {
        println!("seed {seed}; logs in {}", folder.display());
        let seconds = (arguments.minutes * 60.0).clamp(1.0, 86_400.0);
        run::run(&Plan {
            seed,
            duration: Duration::from_secs_f64(seconds),
            replicas: arguments.replicas,
            datanodes: arguments.datanodes,
            folder,
        })
    });
    match outcome {
        Ok((table, passed)) => {
            print!("{table}");
            if passed {
                ExitCode::SUCCESS
            } else {
                println!("again: make chaos SEED={seed} MINUTES={}", arguments.minutes);
                ExitCode::FAILURE
            }
        }
        Err(error) => {
            eprintln!("chaos: {error:#}");
            ExitCode::from(2)
        }
    }
}
