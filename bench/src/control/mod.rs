//! The control plane: latency and rate of reservations, changes of LUN maps and failovers, and how they grow with what there is.
//!
//! Three controllers as processes with fsync on, simulated data nodes with real sessions over TLS, real calls of an administrator. Every
//! figure stands beside the floor of the machine (one fsync and one loopback round trip), measured in the same run; the state grows
//! from step to step, so that what grows with it shows.
//!
//! | Looking for | Module |
//! |---|---|
//! | controllers as processes | [`controllers`] |
//! | data nodes as the controllers see them | [`node`] |
//! | what is done and timed, step by step | [`steps`] |
//! | the state machine by itself | [`machine`] |
//! | what no durable commit can be quicker than | [`floor`] |
//! | latencies | [`latency`] |
//! | the table and the JSON | [`report`] |
//!
//! Invariants: nothing is measured that was not checked to have been done; every run is bounded; no time is asserted.

pub mod controllers;
pub mod floor;
pub mod latency;
pub mod machine;
pub mod node;
pub mod report;
pub mod steps;

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};

use self::{
    machine::Core,
    report::{Report, Size},
    steps::Bench,
};

/// What to measure.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The controller's program
    #[arg(long, value_name = "FILE")]
    controller: PathBuf,
    /// Numbers of volumes to measure at, growing
    #[arg(long, value_delimiter = ',', default_value = "10,1000,10000")]
    volumes: Vec<u32>,
    /// Hosts
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(2..=1000))]
    hosts: u32,
    /// Simulated data nodes
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u8).range(3..=200))]
    nodes: u8,
    /// Seconds for each measurement
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// How often the leader is killed, at each size
    #[arg(long, default_value_t = 3)]
    failovers: u32,
    /// All of it, small: a few seconds
    #[arg(long)]
    quick: bool,
    /// Folder on the disk to measure; a new one below it is used and removed
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// Where control.md and control.json go
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// One size of the state machine by itself; the result goes to standard output.
#[derive(Debug, clap::Args)]
pub struct CoreArguments {
    volumes: u32,
    hosts: u32,
    nodes: u32,
}

/// Measures, prints, writes.
///
/// # Errors
/// Something was not done.
pub fn run(mut arguments: Arguments) -> anyhow::Result<()> {
    if arguments.quick {
        arguments.volumes = vec![4, 40];
        (arguments.hosts, arguments.nodes, arguments.failovers) = (6, 4, 1);
        arguments.seconds = arguments.seconds.min(0.2);
    }
    ensure!(arguments.volumes.is_sorted() && !arguments.volumes.is_empty(), "--volumes: growing numbers");
    holdfast_pki::install_crypto_provider();
    let report =
        tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(all(&arguments))?;
    let markdown = report.markdown();
    print!("{markdown}");
    if let Some(out) = arguments.out {
        std::fs::create_dir_all(&out)?;
        std::fs::write(out.join("control.md"), markdown)?;
        std::fs::write(out.join("control.json"), serde_json::to_vec_pretty(&report)?)?;
    }
    Ok(())
}

/// Measures one size of the state machine and prints it as JSON.
///
/// # Errors
/// A command was refused.
pub fn run_core(arguments: &CoreArguments) -> anyhow::Result<()> {
    let core = machine::measure(arguments.volumes, arguments.hosts, arguments.nodes)?;
    println!("{}", serde_json::to_string(&core)?);
    Ok(())
}

async fn all(arguments: &Arguments) -> anyhow::Result<Report> {
    let mut report = Report {
        machine: crate::report::machine(),
        load_before: crate::report::load(),
        lease_ms: f64::from(holdfast_controller::lease::LEASE_MS),
        ..Report::default()
    };
    for volumes in &arguments.volumes {
        report.cores.push(core(*volumes, arguments.hosts, u32::from(arguments.nodes))?);
    }
    say("the state machine is measured");
    let folder = tempfile::Builder::new().prefix("bench-control-").tempdir_in(&arguments.dir)?;
    let budget = Duration::from_secs_f64(arguments.seconds);
    report.fsync = floor::fsync(folder.path(), budget / 2)?;
    report.round_trip = floor::round_trip(budget / 4)?;
    say(&format!("the floor is {:.0} us", report.floor_us()));
    let mut bench = Bench::start(&arguments.controller, folder.path(), arguments.nodes, budget).await?;
    say(&format!("{} nodes have joined", arguments.nodes));
    bench.make_hosts(arguments.hosts).await?;
    for volumes in &arguments.volumes {
        report.sizes.push(measure(&mut bench, *volumes, arguments).await?);
    }
    bench.nodes.clear();
    report.restart = bench.restart().await?;
    // Of these figures the second fsync floor says whether the disk went on as it began.
    report.fsync_after = floor::fsync(folder.path(), budget / 2)?;
    report.load_after = crate::report::load();
    Ok(report)
}

async fn measure(bench: &mut Bench, volumes: u32, arguments: &Arguments) -> anyhow::Result<Size> {
    let mut size = Size { volumes, hosts: arguments.hosts, nodes: arguments.nodes, ..Size::default() };
    size.creations_per_second = bench.make_volumes(volumes).await?;
    say(&format!("{volumes} volumes are made and mapped"));
    bench.reserve(&mut size).await?;
    bench.map(&mut size).await?;
    bench.map_many(&mut size).await?;
    ensure!(
        bench.nodes.iter().all(node::Node::is_connected),
        "a node lost its session during the measurement"
    );
    size.owner_failover = bench.lose_node().await?;
    for round in 0..arguments.failovers {
        size.leader_failovers.push(bench.lose_leader(round).await?);
    }
    let leader = bench.controllers.leader().await?;
    size.leader_resident_bytes = bench.controllers.resident_bytes(leader);
    size.leader_stored_bytes = bench.controllers.stored_bytes(leader);
    Ok(size)
}

/// In a process of its own.
fn core(volumes: u32, hosts: u32, nodes: u32) -> anyhow::Result<Core> {
    let own = std::env::current_exe().unwrap_or_else(|_| Path::new("/proc/self/exe").to_owned());
    let done = Command::new(own)
        .arg("control-core")
        .args([volumes, hosts, nodes].map(|n| n.to_string()))
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(done.status.success(), "measuring the state machine failed");
    serde_json::from_slice(&done.stdout).context("what the measurement of the state machine says")
}

fn say(what: &str) {
    eprintln!("bench-control: {what}");
}
