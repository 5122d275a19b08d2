//! The processes of a development cluster: started, watched, stopped.
//!
//! Invariants: every child ends with the supervisor (`--die-with-parent` covers its sudden death); a child that ends by itself is
//! reported at once with the last thing it said.

use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    future::Future,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::{Child, Command},
    signal::unix::{Signal as Signals, SignalKind, signal},
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};

use super::{
    binary,
    layout::{self, Layout},
};

/// A process that has not ended this long after SIGTERM is killed, and that is said.
const STOP_PATIENCE: Duration = Duration::from_secs(20);
/// A process that keeps ending is started again no faster than this.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

struct Recipe {
    name: String,
    program: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
}

impl Recipe {
    fn spawn(&self) -> anyhow::Result<Child> {
        let log = fs::OpenOptions::new().create(true).append(true).open(&self.log);
        let log = log.with_context(|| self.log.display().to_string())?;
        Command::new(&self.program)
            .args(&self.arguments)
            .arg("--die-with-parent")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C goes to the foreground group: the supervisor alone takes it, and stops the children in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| self.program.display().to_string())
    }

    /// The last line of its log, where a process says why it ends.
    fn last_words(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("(its log is empty)").to_owned()
    }
}

/// The running processes by name.
pub(super) struct Supervisor {
    recipes: BTreeMap<String, Recipe>,
    running: BTreeMap<String, Pid>,
    ended: mpsc::UnboundedReceiver<(String, ExitStatus)>,
    ended_sender: mpsc::UnboundedSender<(String, ExitStatus)>,
    pids: PathBuf,
    restart: bool,
    // From the beginning to the end: one that is made anew misses what came before.
    interrupt: Signals,
    terminate: Signals,
}

impl Supervisor {
    /// Starts every process of the cluster.
    pub(super) fn start(
        directory: &Path,
        layout: &Layout,
        pools: &[String],
        restart: bool,
    ) -> anyhow::Result<Self> {
        let logs = directory.join("log");
        fs::create_dir_all(&logs).with_context(|| logs.display().to_string())?;
        let (ended_sender, ended) = mpsc::unbounded_channel();
        let mut supervisor = Self {
            recipes: recipes(directory, layout, pools)?,
            running: BTreeMap::new(),
            ended,
            ended_sender,
            pids: directory.join("pids"),
            restart,
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        };
        let names: Vec<_> = supervisor.recipes.keys().cloned().collect();
        for name in names {
            supervisor.spawn(&name)?;
        }
        Ok(supervisor)
    }

    fn spawn(&mut self, name: &str) -> anyhow::Result<()> {
        let recipe = self.recipes.get(name).with_context(|| format!("no process {name}"))?;
        let mut child = recipe.spawn()?;
        let pid =
            child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?)).context("a child without an id")?;
        self.running.insert(name.to_owned(), pid);
        let (name, ended) = (name.to_owned(), self.ended_sender.clone());
        tokio::spawn(async move {
            if let Ok(status) = child.wait().await {
                // The receiver is gone only when the supervisor is.
                let _ = ended.send((name, status));
            }
        });
        self.write_pids()
    }

    /// Scripts that break things on purpose find their victims here.
    fn write_pids(&self) -> anyhow::Result<()> {
        let lines: String =
            self.running.iter().map(|(name, pid)| format!("{name} {}\n", pid.as_raw_nonzero())).collect();
        let temporary = self.pids.with_extension("new");
        fs::write(&temporary, lines)
            .and_then(|()| fs::rename(&temporary, &self.pids))
            .with_context(|| self.pids.display().to_string())
    }

    /// Waits for `work`, unless a process ends first: then the cluster cannot come up.
    pub(super) async fn while_running<T>(
        &mut self,
        work: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        tokio::select! {
            done = work => done,
            Some((name, status)) = self.ended.recv() => {
                self.running.remove(&name);
                let words = self.recipes.get(&name).map(Recipe::last_words).unwrap_or_default();
                bail!("{name} ended while the cluster came up ({status}): {words}")
            }
            _ = self.interrupt.recv() => bail!("interrupted before the cluster was up"),
            _ = self.terminate.recv() => bail!("told to stop before the cluster was up"),
        }
    }

    /// Watches until Ctrl-C or SIGTERM, which count at any moment, also while a process waits for its restart.
    pub(super) async fn until_interrupted(&mut self) -> anyhow::Result<()> {
        // In the order of their ends, so in that of their restarts.
        let mut restarts: VecDeque<(Instant, String)> = VecDeque::new();
        loop {
            let due = restarts.front().map(|(at, _)| *at);
            tokio::select! {
                Some((name, status)) = self.ended.recv() => {
                    self.running.remove(&name);
                    self.write_pids()?;
                    eprintln!("{name} ended: {status}");
                    if self.restart {
                        restarts.push_back((Instant::now() + RESTART_PAUSE, name));
                    } else if self.running.is_empty() {
                        bail!("every process of the cluster has ended");
                    }
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    if let Some((_, name)) = restarts.pop_front() {
                        eprintln!("{name} is started again");
                        self.spawn(&name)?;
                    }
                }
                _ = self.interrupt.recv() => return Ok(()),
                _ = self.terminate.recv() => return Ok(()),
            }
        }
    }

    /// Data nodes first, so that they can still hand back what they hold; then the controllers.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        eprintln!("stopping ...");
        let (controllers, nodes): (Vec<_>, Vec<_>) =
            self.running.keys().cloned().partition(|name| name.starts_with("ctl-"));
        let mut killed = Vec::new();
        for group in [nodes, controllers] {
            for name in &group {
                self.signal(name, Signal::TERM);
            }
            // Whoever ends is taken off the running ones, also a member of the other group.
            while group.iter().any(|name| self.running.contains_key(name)) {
                match timeout(STOP_PATIENCE, self.ended.recv()).await {
                    Ok(Some((name, _))) => {
                        self.running.remove(&name);
                    }
                    Ok(None) => break,
                    Err(_) => {
                        for name in group.iter().filter(|name| self.running.contains_key(*name)) {
                            self.signal(name, Signal::KILL);
                            killed.push(name.clone());
                        }
                    }
                }
            }
        }
        let _ = fs::remove_file(&self.pids);
        if killed.is_empty() {
            Ok(())
        } else {
            bail!("had to be killed after {} s: {}", STOP_PATIENCE.as_secs(), killed.join(", "))
        }
    }

    fn signal(&self, name: &str, signal: Signal) {
        if let Some(pid) = self.running.get(name) {
            // It may have ended by itself a moment ago; then there is nothing to signal.
            let _ = kill_process(*pid, signal);
        }
    }
}

fn recipes(directory: &Path, layout: &Layout, pools: &[String]) -> anyhow::Result<BTreeMap<String, Recipe>> {
    let (controller, datanode) = (binary("holdfast-controller")?, binary("holdfast-datanode")?);
    let text = |path: PathBuf| path.display().to_string();
    let members: Vec<_> =
        layout.controllers.iter().map(|c| format!("{}={}={}", c.id, c.name, c.address())).collect();
    let endpoints: Vec<_> = layout.controllers.iter().map(layout::ControllerLayout::address).collect();
    let mut recipes = BTreeMap::new();
    let mut add = |name: &str, program: &Path, arguments: Vec<String>| {
        let log = directory.join("log").join(format!("{name}.log"));
        let recipe = Recipe { name: name.to_owned(), program: program.to_owned(), arguments, log };
        recipes.insert(recipe.name.clone(), recipe);
    };
    for c in &layout.controllers {
        let arguments = [
            ("--id", c.id.to_string()),
            ("--name", c.name.clone()),
            ("--dir", text(directory.join(&c.name))),
            ("--listen", c.address()),
            ("--tls", text(layout::tls(directory, &c.name))),
            ("--bootstrap", members.join(",")),
        ];
        add(&c.name, &controller, flat(arguments));
    }
    for node in &layout.datanodes {
        let pool = directory.join(&node.name).join("pool");
        let arguments = [
            ("--name", node.name.clone()),
            ("--dir", text(directory.join(&node.name))),
            ("--controllers", endpoints.join(",")),
            ("--portal", node.portal()),
            ("--interconnect", node.interconnect()),
            ("--tls", text(layout::tls(directory, &node.name))),
            ("--pool", format!("default={}", text(pool))),
        ];
        let more = pools.iter().flat_map(|pool| ["--pool".to_owned(), pool.replace("{node}", &node.name)]);
        add(&node.name, &datanode, flat(arguments).into_iter().chain(more).collect());
    }
    Ok(recipes)
}

fn flat<const N: usize>(pairs: [(&str, String); N]) -> Vec<String> {
    pairs.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect()
}
