//! What copies cost: latency and rate of writes with 1, 2 and 3 copies beside a bare exchange that stores the same bytes in the same number
//! of files, how fast a new copy is made beside a plain copy of the file, what hosts feel of that, and the memory of a volume.
//!
//! Three controllers and three data nodes as processes (`holdfast dev up`), all on one machine and one disk: what copies cost on machines of
//! their own is less. Everything stands beside its floor, measured in the same run on the same file system.
//!
//! | Looking for | Module |
//! |---|---|
//! | the bare exchange that stores | [`floor`] |
//! | writes, turn by turn | [`writes`] |
//! | a copy is made; memory | [`copying`] |
//! | tables, JSON, chart | [`report`] |
//!
//! Invariants: Holdfast and its floor take turns, so that what disturbs the machine disturbs both; a figure is the median over rounds; a
//! write that is not GOOD fails the run, but for a Unit Attention, which is sent again; no time is asserted.

mod copying;
pub mod floor;
mod report;
mod writes;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, ensure};
use holdfast_tests::cluster::Cluster;

use self::report::Report;
use crate::{lean::Login, target::INITIATOR};

/// What to measure.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Rounds; the figures are their medians
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Milliseconds of one run
    #[arg(long, default_value_t = 1000)]
    milliseconds: u64,
    /// MiB of each volume that is written
    #[arg(long, default_value_t = 128)]
    mib: u64,
    /// MiB of the volume that gets another copy
    #[arg(long, default_value_t = 512)]
    copy_mib: u64,
    /// Volumes over which memory is measured
    #[arg(long, default_value_t = 32)]
    volumes: u16,
    /// GiB of each of them: the room has to be there, though nothing is written
    #[arg(long, default_value_t = 10)]
    gib: u64,
    /// All of it, small: it shows that it works
    #[arg(long)]
    quick: bool,
    /// Where replication.md, replication.json and replication.svg go
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Most copies of a volume.
const COPIES_MAX: u32 = 3;

/// Measures, prints, writes.
///
/// # Errors
/// Something does not come up, or a write was not GOOD.
pub fn run(mut arguments: Arguments) -> anyhow::Result<()> {
    if arguments.quick {
        (arguments.rounds, arguments.milliseconds) = (1, 50);
        (arguments.mib, arguments.copy_mib, arguments.volumes) = (16, 32, 4);
        arguments.gib = 1;
    }
    ensure!(arguments.rounds > 0 && arguments.mib > 0 && arguments.volumes > 0, "nothing to measure");
    let mut report =
        Report { machine: crate::report::machine(), load_before: crate::report::load(), ..Report::default() };
    let cluster = Cluster::start_with(&["--controllers", "3", "--datanodes", "3"])?;
    say("the cluster serves");
    let stage = Stage { cluster };
    let length = Duration::from_millis(arguments.milliseconds.max(1));
    report.writes = writes::measure(&stage, arguments.mib << 20, arguments.rounds, length)?;
    report.copying = copying::copies(&stage, arguments.copy_mib << 20, arguments.rounds, length)?;
    report.memory = copying::memory(&stage, arguments.volumes, arguments.gib << 30)?;
    report.load_after = crate::report::load();
    let markdown = report.markdown();
    print!("{markdown}");
    if let Some(out) = arguments.out {
        std::fs::create_dir_all(&out)?;
        std::fs::write(out.join("replication.md"), markdown)?;
        std::fs::write(out.join("replication.json"), serde_json::to_vec_pretty(&report)?)?;
        std::fs::write(out.join("replication.svg"), report.chart())?;
    }
    Ok(())
}

fn say(what: &str) {
    eprintln!("bench-replication: {what}");
}

/// The cluster.
struct Stage {
    cluster: Cluster,
}

impl Stage {
    /// A volume of so many copies, owned by the first node; how to log in to it there, as an initiator of its own.
    fn volume(&self, name: &str, bytes: u64, copies: u32, write_cache: bool) -> anyhow::Result<Login> {
        let nodes: Vec<String> = (1..=copies).map(|n| format!("node-{n}")).collect();
        self.cluster.cli(&[
            "volume",
            "create",
            name,
            "--size",
            &format!("{}KiB", bytes / 1024),
            "--replicas",
            &copies.to_string(),
            "--node",
            &nodes.join(","),
            "--write-cache",
            if write_cache { "on" } else { "off" },
        ])?;
        let initiator = format!("{INITIATOR}-{name}");
        self.cluster.cli(&["host", "create", name, "--initiator", &initiator])?;
        self.cluster.cli(&["map", "create", name, name, "--lun", "0"])?;
        self.until_in_sync(name, copies as usize)?;
        let portal = self.cluster.portals.first().context("no portal")?.parse()?;
        Ok(Login { portal, target: Some(self.cluster.target.clone()), initiator, lun: 0 })
    }

    fn in_sync(&self, name: &str) -> anyhow::Result<usize> {
        let shown = self.cluster.json(&["volume", "show", name])?;
        Ok(shown["status"]["in_sync"].as_array().map_or(0, Vec::len))
    }

    fn until_in_sync(&self, name: &str, copies: usize) -> anyhow::Result<()> {
        self.cluster.wait_for("copies in sync", || {
            let found = self.in_sync(name)?;
            ensure!(found == copies, "{name}: {found} of {copies} copies are in sync");
            Ok(())
        })
    }
}
