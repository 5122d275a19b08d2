//! A development cluster in a temporary folder, of the binaries under test.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread,
};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    initiator::Initiator,
    patience::{self, PATIENCE},
};

/// Name of the first host of tests.
pub const INITIATOR_A: &str = "iqn.2026-11.example:host-a";
/// Name of the second host of tests.
pub const INITIATOR_B: &str = "iqn.2026-11.example:host-b";

/// Folder of the binaries under test.
pub fn binaries() -> PathBuf {
    env::var_os("HOLDFAST_BIN_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/debug"), PathBuf::from)
}

/// `holdfast` with arguments, in no particular cluster.
pub fn holdfast(arguments: &[&str]) -> Command {
    let mut command = Command::new(binaries().join("holdfast"));
    for variable in ["HOLDFAST_DIR", "HOLDFAST_ENDPOINTS", "HOLDFAST_TLS"] {
        command.env_remove(variable);
    }
    command.args(arguments);
    command
}

/// A running cluster.
pub struct Cluster {
    folder: PathBuf,
    // Kept for its removal at the end.
    temporary: Option<TempDir>,
    supervisor: Option<Child>,
    /// Name of the target.
    pub target: String,
    /// Portals, by node.
    pub portals: Vec<String>,
    /// Endpoints of the controllers.
    pub controllers: Vec<String>,
}

impl Cluster {
    /// Three controllers and two data nodes in a new folder.
    ///
    /// # Errors
    /// What `holdfast dev up` said.
    pub fn start() -> anyhow::Result<Self> {
        Self::start_with(&[])
    }

    /// One controller and one data node whose pool is a file system of `size` ("40m") that only they see.
    ///
    /// # Errors
    /// What `holdfast dev up` said.
    pub fn start_with_small_pool(size: &str) -> anyhow::Result<Self> {
        let mut cluster = Self::new()?;
        let mut command = Command::new("unshare");
        if !rustix::process::geteuid().is_root() {
            command.arg("--map-root-user");
        }
        // The mount ends with the last process of its namespace.
        command.args(["--mount", "sh", "-euc"]).arg(
            "mkdir -p \"$1/node-1/pool\"\nmount -t tmpfs -o size=\"$2\" tmpfs \"$1/node-1/pool\"\nshift 2\nexec \"$@\"",
        );
        command.arg("sh").arg(&cluster.folder).arg(size).arg(binaries().join("holdfast")).arg("--dir");
        command.arg(&cluster.folder).args(["dev", "up", "--controllers", "1", "--datanodes", "1"]);
        cluster.launch(command)?;
        Ok(cluster)
    }

    fn new() -> anyhow::Result<Self> {
        let temporary = tempfile::Builder::new().prefix("holdfast-test-").tempdir()?;
        Ok(Self {
            folder: temporary.path().join("cluster"),
            temporary: Some(temporary),
            supervisor: None,
            target: String::new(),
            portals: Vec::new(),
            controllers: Vec::new(),
        })
    }

    /// The same with more arguments for `dev up`.
    ///
    /// # Errors
    /// What `holdfast dev up` said.
    pub fn start_with(arguments: &[&str]) -> anyhow::Result<Self> {
        let mut cluster = Self::new()?;
        cluster.up(arguments)?;
        Ok(cluster)
    }

    /// The same with variables in the environment of all its processes.
    ///
    /// # Errors
    /// What `holdfast dev up` said.
    pub fn start_in(environment: &[(&str, &str)]) -> anyhow::Result<Self> {
        let mut cluster = Self::new()?;
        let mut command = holdfast(&["dev", "up", "--dir"]);
        command.arg(&cluster.folder).envs(environment.iter().copied());
        cluster.launch(command)?;
        Ok(cluster)
    }

    /// Starts the processes again after [`Self::stop`].
    ///
    /// # Errors
    /// What `holdfast dev up` said.
    pub fn up(&mut self, arguments: &[&str]) -> anyhow::Result<()> {
        ensure!(self.supervisor.is_none(), "the cluster is up");
        let mut command = holdfast(&["dev", "up", "--dir"]);
        command.arg(&self.folder).args(arguments);
        self.launch(command)
    }

    /// Runs what becomes the supervisor, and waits for its ready line.
    fn launch(&mut self, mut command: Command) -> anyhow::Result<()> {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut stderr = child.stderr.take().context("no standard error")?;
        // It must be read to its end, or the supervisor could block on it.
        let errors = thread::spawn(move || {
            let mut text = String::new();
            let _ = stderr.read_to_string(&mut text);
            text
        });
        let mut ready = String::new();
        BufReader::new(child.stdout.take().context("no standard output")?).read_line(&mut ready)?;
        if !ready.starts_with("ready: ") {
            let status = child.wait()?;
            bail!("dev up: {status}: {}", errors.join().unwrap_or_default());
        }
        let field = |name: &str| {
            let found = ready.split_whitespace().find_map(|part| part.strip_prefix(name));
            found.map(str::to_owned).with_context(|| format!("no {name} in: {ready}"))
        };
        let list = |name| Ok::<_, anyhow::Error>(field(name)?.split(',').map(str::to_owned).collect());
        self.supervisor = Some(child);
        self.target = field("target=")?;
        self.portals = list("portals=")?;
        self.controllers = list("controllers=")?;
        Ok(())
    }

    /// Ends the cluster as Ctrl-C does; fails unless it ends well.
    ///
    /// # Errors
    /// A bad exit status.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        let pids = self.pids()?;
        let status = self.interrupt()?;
        ensure!(status.success(), "dev up ended with {status}; logs: {}", self.logs());
        for (name, pid) in pids {
            ensure!(test_kill_process(pid).is_err(), "{name} still runs after the cluster was stopped");
        }
        Ok(())
    }

    /// Kills the supervisor without giving it a chance to stop anything.
    ///
    /// # Errors
    /// When the cluster is not up.
    pub fn kill_supervisor(&mut self) -> anyhow::Result<()> {
        let mut child = self.supervisor.take().context("the cluster is not up")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    fn interrupt(&mut self) -> anyhow::Result<ExitStatus> {
        let mut child = self.supervisor.take().context("the cluster is not up")?;
        kill_process(pid_of(child.id())?, Signal::INT)?;
        Ok(child.wait()?)
    }

    /// Ends of the logs, for messages of failed tests.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for entry in fs::read_dir(self.folder.join("log")).into_iter().flatten().flatten() {
            let log = fs::read_to_string(entry.path()).unwrap_or_default();
            let tail: Vec<_> = log.lines().rev().take(15).collect();
            text += &format!("\n== {}\n", entry.file_name().display());
            for line in tail.into_iter().rev() {
                text += line;
                text.push('\n');
            }
        }
        text
    }

    /// Where it lives.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Process ids by name ("ctl-1", "node-2").
    ///
    /// # Errors
    /// When the supervisor's list cannot be read.
    pub fn pids(&self) -> anyhow::Result<BTreeMap<String, Pid>> {
        fs::read_to_string(self.folder.join("pids"))?
            .lines()
            .map(|line| {
                let (name, pid) = line.split_once(' ').context("a line of pids")?;
                Ok((name.to_owned(), pid_of(pid.parse()?)?))
            })
            .collect()
    }

    /// Sends a signal to one process.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn signal(&self, name: &str, signal: Signal) -> anyhow::Result<()> {
        let pid = *self.pids()?.get(name).with_context(|| format!("no process {name}"))?;
        kill_process(pid, signal).with_context(|| name.to_owned())
    }

    /// `holdfast --dir FOLDER ...`; its exit status is the caller's to judge.
    ///
    /// # Errors
    /// When the program is not there.
    pub fn try_cli(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let mut command = holdfast(&[]);
        command.arg("--dir").arg(&self.folder).args(arguments);
        Ok(command.output()?)
    }

    /// The same, where only success will do.
    ///
    /// # Errors
    /// What the command said.
    pub fn cli(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.try_cli(arguments)?;
        ensure!(
            output.status.success(),
            "holdfast {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The same as JSON.
    ///
    /// # Errors
    /// What the command said.
    pub fn json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.cli(&[arguments, &["-o", "json"]].concat())?)?)
    }

    /// Runs a command that must fail; gives its one line of standard error.
    ///
    /// # Errors
    /// When it succeeds, or says more or less than one line.
    pub fn cli_refused(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let text = self.cli_refused_with_lines(arguments)?;
        ensure!(text.lines().count() == 1, "one line expected, got:\n{text}");
        Ok(text)
    }

    /// The same for a command that names many faults, each in its line.
    ///
    /// # Errors
    /// When it succeeds.
    pub fn cli_refused_with_lines(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.try_cli(arguments)?;
        ensure!(!output.status.success(), "holdfast {} succeeded", arguments.join(" "));
        Ok(String::from_utf8(output.stderr)?.trim_end().to_owned())
    }

    /// A volume on a certain node, mapped as LUN `lun` to hosts A and B (made when they are not there).
    ///
    /// # Errors
    /// What a command said.
    pub fn volume_for_both(&self, name: &str, size: &str, node: &str, lun: u16) -> anyhow::Result<()> {
        self.volume_for_both_with(name, size, node, lun, &[])
    }

    /// The same with more arguments for `volume create`.
    ///
    /// # Errors
    /// A failed command.
    pub fn volume_for_both_with(
        &self,
        name: &str,
        size: &str,
        node: &str,
        lun: u16,
        more: &[&str],
    ) -> anyhow::Result<()> {
        let hosts = self.json(&["host", "list"])?;
        for (host, initiator) in [("a", INITIATOR_A), ("b", INITIATOR_B)] {
            let known =
                hosts["hosts"].as_array().is_some_and(|list| list.iter().any(|known| known["name"] == host));
            if !known {
                self.cli(&["host", "create", host, "--initiator", initiator])?;
            }
        }
        self.cli(&[&["volume", "create", name, "--size", size, "--node", node], more].concat())?;
        for host in ["a", "b"] {
            self.cli(&["map", "create", name, host, "--lun", &lun.to_string()])?;
        }
        Ok(())
    }

    /// Writes a file beside the cluster's folder, for a command to read, and gives its path.
    ///
    /// # Errors
    /// What the system said.
    pub fn write_file(&self, name: &str, content: &str) -> anyhow::Result<String> {
        let path = self.folder.with_file_name(name);
        fs::write(&path, content)?;
        Ok(path.display().to_string())
    }

    /// Name of the controller that leads.
    ///
    /// # Errors
    /// When none is known.
    pub fn leader(&self) -> anyhow::Result<String> {
        let cluster = self.json(&["cluster", "show"])?;
        let leader = &cluster["leader_id"];
        let members = cluster["members"].as_array().context("members")?;
        let member = members.iter().find(|member| member["id"] == *leader).context("no leader")?;
        Ok(member["name"].as_str().context("name")?.to_owned())
    }

    /// Host A through the first node and host B through the second, both ready on LUN 0.
    ///
    /// # Errors
    /// A failed login or command.
    pub fn log_in_both(&self) -> anyhow::Result<(Initiator, Initiator)> {
        let [first, second, ..] = self.portals.as_slice() else { bail!("two portals wanted") };
        let mut a = Initiator::login(first, &self.target, INITIATOR_A, 1, None)?;
        let mut b = Initiator::login(second, &self.target, INITIATOR_B, 2, None)?;
        a.become_ready(0)?;
        b.become_ready(0)?;
        Ok((a, b))
    }

    /// Waits until `condition` gives a value.
    ///
    /// # Errors
    /// The condition's last word, when patience ends.
    pub fn wait_for<T>(&self, what: &str, condition: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
        patience::wait_for(what, PATIENCE, condition, || format!("logs: {}", self.logs()))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.supervisor.is_some() {
            let _ = self.interrupt();
        }
        if thread::panicking()
            && let Some(temporary) = self.temporary.take()
        {
            eprintln!("the cluster's folder is kept: {}", temporary.keep().display());
        }
    }
}

fn pid_of(id: u32) -> anyhow::Result<Pid> {
    Pid::from_raw(id.try_into()?).context("process id 0")
}
