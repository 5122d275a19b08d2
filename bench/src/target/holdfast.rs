//! Holdfast: a real cluster of `holdfast dev up` with one controller and one data node, of the binaries in
//! HOLDFAST_BIN_DIR.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};

use super::{INITIATOR, Process};
use crate::lean::Login;

/// A running cluster.
pub struct Cluster {
    folder: PathBuf,
    target: String,
    portal: SocketAddr,
    _supervisor: Process,
}

fn program() -> PathBuf {
    let folder = std::env::var_os("HOLDFAST_BIN_DIR").map(PathBuf::from);
    let own = std::env::current_exe().ok().and_then(|path| path.parent().map(Path::to_owned));
    folder.or(own).unwrap_or_default().join("holdfast")
}

impl Cluster {
    /// Starts one in a new folder, with a host `bench`.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start(folder: &Path) -> anyhow::Result<Cluster> {
        let mut command = Command::new(program());
        command.arg("--dir").arg(folder).args(["dev", "up", "--controllers", "1", "--datanodes", "1"]);
        let mut supervisor = Process::start({
            command.stdout(Stdio::piped());
            command
        })?;
        let output = supervisor.0.stdout.take().context("no standard output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let field = |name: &str| line.split_whitespace().find_map(|part| part.strip_prefix(name));
        let target = field("target=").with_context(|| format!("holdfast dev up: {line:?}"))?.to_owned();
        let portal =
            field("portals=").and_then(|list| list.split(',').next()).context("no portal")?.parse()?;
        let cluster = Cluster { folder: folder.to_owned(), target, portal, _supervisor: supervisor };
        cluster.holdfast(&["host", "create", "bench", "--initiator", INITIATOR])?;
        Ok(cluster)
    }

    /// Runs the command line tool.
    ///
    /// # Errors
    /// What it said.
    pub fn holdfast(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = Command::new(program()).arg("--dir").arg(&self.folder).args(arguments).output()?;
        ensure!(
            output.status.success(),
            "holdfast {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Makes a volume and maps it as the next LUN.
    ///
    /// # Errors
    /// What the tool said.
    pub fn add_volume(&self, name: &str, bytes: u64) -> anyhow::Result<()> {
        self.holdfast(&["volume", "create", name, "--size", &format!("{}KiB", bytes / 1024)])?;
        self.holdfast(&["map", "create", name, "bench", "--lun", "0"])?;
        Ok(())
    }

    /// How to log in for a LUN.
    pub fn login(&self, lun: u16) -> Login {
        Login { portal: self.portal, target: Some(self.target.clone()), initiator: INITIATOR.to_owned(), lun }
    }

    /// The data node's process.
    ///
    /// # Errors
    /// The cluster's folder does not say.
    pub fn node_pid(&self) -> anyhow::Result<u32> {
        let pids = fs::read_to_string(self.folder.join("pids"))?;
        let pid = pids.lines().find_map(|line| line.strip_prefix("node-1 ")).context("no node-1")?;
        pid.trim().parse().with_context(|| pid.to_owned())
    }
}
