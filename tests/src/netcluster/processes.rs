//! The processes of a [`NetCluster`]: launched, signalled, killed, and without power.
//!
//! Invariant: a process is ended by its own id.

use std::{
    fs,
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::{CONTROLLER_PORT, NetCluster};
use crate::{
    cluster::binaries,
    patience::{self, PATIENCE},
};

impl NetCluster {
    /// The machine of a data node boots: its kernel tells another boot id from now on.
    pub(super) fn boot(&mut self, name: &str) -> anyhow::Result<()> {
        self.boots += 1;
        let id = format!("{:08x}-0000-4000-8000-{:012x}", self.boots, std::process::id());
        let file = self.path(&[&format!("boot-{name}")]);
        self.tool(&["sh", "-c", &format!("echo {id} >{file}")])
    }

    /// Loss of power of these machines: their processes end, and what their disks had not been told to keep is gone. `tear`: a seed that
    /// decides which sectors of that got there all the same.
    ///
    /// # Errors
    /// When a process does not run or its disk is an ordinary one.
    pub fn lose_power_of(&mut self, names: &[String], tear: Option<u64>) -> anyhow::Result<()> {
        for name in names {
            self.kill(name)?;
        }
        let command = tear.map_or("power-loss".to_owned(), |seed| format!("power-loss tear {seed}"));
        for name in names {
            let lost = self.disk(name)?.tell(&command)?;
            println!("{name} lost {lost} pages");
            self.boot(name)?;
        }
        Ok(())
    }

    #[expect(clippy::unused_self, reason = "a recipe belongs to a cluster")]
    pub(super) fn recipe(&self, program: &str, arguments: &[(&str, &str)]) -> Vec<String> {
        let mut recipe = vec![binaries().join(program).display().to_string()];
        recipe.extend(arguments.iter().flat_map(|(name, value)| [(*name).to_owned(), (*value).to_owned()]));
        recipe
    }

    pub(super) fn endpoints(&self) -> anyhow::Result<String> {
        let all: anyhow::Result<Vec<_>> =
            self.controllers().iter().map(|name| Ok(self.at(name, CONTROLLER_PORT)?.to_string())).collect();
        Ok(all?.join(","))
    }

    /// Starts a process that does not run.
    ///
    /// # Errors
    /// When it runs, is unknown, or cannot be started.
    pub fn launch(&mut self, name: &str) -> anyhow::Result<()> {
        ensure!(!self.running.contains_key(name), "{name} runs");
        let recipe = self.recipes.get(name).with_context(|| format!("no process {name}"))?;
        let log =
            fs::OpenOptions::new().create(true).append(true).open(self.logs.join(format!("{name}.log")))?;
        let boot = format!("mount --bind {} /proc/sys/kernel/random/boot_id && exec \"$@\"", {
            self.path(&[&format!("boot-{name}")])
        });
        let mut command = match self.shape.clock_offsets_s.get(name) {
            None if self.shape.bad_disks
                && !self.controllers().iter().any(|controller| controller == name) =>
            {
                // `unshare` becomes the shell, and that the program.
                let mut command = Command::new("unshare");
                command.args(["--mount", "sh", "-c", &boot, "sh"]).args(recipe);
                command
            }
            // `unshare` becomes the program: the process id stays.
            Some(offset) => {
                let mut command = Command::new("unshare");
                command.args([
                    "--time",
                    "--boottime",
                    &offset.to_string(),
                    "--monotonic",
                    &offset.to_string(),
                ]);
                command.args(recipe);
                command
            }
            None => {
                let (program, arguments) = recipe.split_first().context("an empty recipe")?;
                let mut command = Command::new(program);
                command.args(arguments);
                command
            }
        };
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = self.network.spawn(name, command)?;
        self.running.insert(name.to_owned(), child);
        Ok(())
    }

    /// Starts a process that must end by itself at once; gives the last line that it said.
    ///
    /// # Errors
    /// When it goes on running, or ends well.
    pub fn launch_refused(&mut self, name: &str) -> anyhow::Result<String> {
        self.launch(name)?;
        let mut child = self.running.remove(name).context("just launched")?;
        let status = patience::wait_for(
            "the process to end",
            PATIENCE,
            || child.try_wait()?.context("it runs"),
            || format!("logs: {}", self.tails()),
        );
        if status.is_err() {
            let _ = child.kill();
            let _ = child.wait();
        }
        ensure!(!status?.success(), "{name} ended well");
        let log = fs::read_to_string(self.logs.join(format!("{name}.log")))?;
        Ok(log.lines().last().unwrap_or_default().to_owned())
    }

    /// A second data node on the pool of one that runs; gives what it said.
    ///
    /// # Errors
    /// When it does not end by itself.
    pub fn second_process(&self, node: &str) -> anyhow::Result<String> {
        let recipe = self.recipes.get(node).with_context(|| format!("no process {node}"))?;
        let (state, any_port) = (self.path(&["second"]), self.at(node, 0)?.to_string());
        let mut arguments = vec!["timeout".to_owned(), "30".to_owned()];
        let mut before = "";
        for word in recipe {
            arguments.push(match before {
                "--dir" => state.clone(),
                "--interconnect" => any_port.clone(),
                _ => word.clone(),
            });
            before = word;
        }
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let output = self.network.spawner.output(Some(&self.network.member(node)?.namespace), &words)?;
        ensure!(!output.status.success(), "a second process runs");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// True while the process has not been ended by [`Self::kill`] or [`Self::stop`].
    pub fn runs(&self, name: &str) -> bool {
        self.running.contains_key(name)
    }

    /// Processes that ended without being told to, with their exit status.
    pub fn fallen(&mut self) -> Vec<String> {
        let mut fallen = Vec::new();
        self.running.retain(|name, child| match child.try_wait() {
            Ok(None) => true,
            Ok(Some(status)) => {
                fallen.push(format!("{name}: {status}"));
                false
            }
            Err(error) => {
                fallen.push(format!("{name}: {error}"));
                false
            }
        });
        fallen
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process does not run.
    pub fn signal(&self, name: &str, signal: Signal) -> anyhow::Result<()> {
        let child = self.running.get(name).with_context(|| format!("{name} does not run"))?;
        let pid = Pid::from_raw(child.id().try_into()?).context("a process id")?;
        kill_process(pid, signal).with_context(|| name.to_owned())
    }

    /// Memory that a process has in use, in bytes.
    ///
    /// # Errors
    /// When it does not run.
    pub fn memory_bytes(&self, name: &str) -> anyhow::Result<u64> {
        let child = self.running.get(name).with_context(|| format!("{name} does not run"))?;
        let status = fs::read_to_string(format!("/proc/{}/status", child.id()))?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        let kibibytes: u64 = resident.split_whitespace().next().context("a number")?.parse()?;
        Ok(kibibytes << 10)
    }

    /// Bytes that a member has got over its network so far.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn received_bytes(&self, name: &str) -> anyhow::Result<u64> {
        let namespace = &self.network.member(name)?.namespace;
        let output = self.network.spawner.output(Some(namespace), &["cat", "/proc/thread-self/net/dev"])?;
        let text = String::from_utf8(output.stdout)?;
        let line = text.lines().find_map(|line| line.trim().strip_prefix("eth0:")).context("eth0")?;
        Ok(line.split_whitespace().next().context("a number")?.parse()?)
    }

    /// `kill -9`, and waits for the end.
    ///
    /// # Errors
    /// When the process does not run.
    pub fn kill(&mut self, name: &str) -> anyhow::Result<()> {
        let mut child = self.running.remove(name).with_context(|| format!("{name} does not run"))?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Loss of power: nobody hears that the process ended, not even by its kernel's TCP. Heal the network before the process
    /// is launched again.
    ///
    /// # Errors
    /// When the process does not run.
    pub fn lose_power(&mut self, name: &str) -> anyhow::Result<()> {
        self.network.isolate(name, self.network.names())?;
        self.kill(name)
    }
}
