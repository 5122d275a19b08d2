//! The targets that are measured: each a process of this run, on loopback, on a file of the same size in the same file
//! system; stopped when dropped.

mod holdfast;
mod peers;

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::lean::Login;

pub use holdfast::Cluster;

/// The initiator's name that all clients have.
pub const INITIATOR: &str = "iqn.2026-11.example:bench";
/// Longest wait for a target to come up.
const PATIENCE: Duration = Duration::from_secs(20);

/// A target that has not ended this long after it was asked to is killed.
const STOPPING_MAX: Duration = Duration::from_secs(5);

/// A running target.
pub struct Target {
    /// As the tables name it.
    pub name: &'static str,
    /// Where and how to log in.
    pub login: Login,
    /// The process whose costs count.
    pub pid: u32,
    /// It stores nothing: no bytes are checked.
    pub stores: bool,
    _running: Running,
}

#[expect(dead_code, reason = "held for their Drop")]
enum Running {
    Cluster(Box<Cluster>),
    Process(Process),
}

/// Which targets to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Holdfast itself: one controller, one data node.
    Holdfast,
    /// `tgt` on a file, and on its null store.
    Tgt,
    /// `istgt` on a file.
    Istgt,
    /// The bare TCP exchange.
    Floor,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 4] = [Kind::Holdfast, Kind::Tgt, Kind::Istgt, Kind::Floor];

    /// Starts it, with a file of `bytes` in `folder`. None when its program is not installed.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start(self, folder: &Path, bytes: u64) -> anyhow::Result<Option<Vec<Target>>> {
        match self {
            Kind::Holdfast => {
                let cluster = Cluster::start(&folder.join("holdfast"))?;
                cluster.add_volume("bench", bytes)?;
                Ok(Some(vec![Target {
                    name: "holdfast",
                    login: cluster.login(0),
                    pid: cluster.node_pid()?,
                    stores: true,
                    _running: Running::Cluster(Box::new(cluster)),
                }]))
            }
            Kind::Tgt => peers::tgt(folder, bytes),
            Kind::Istgt => peers::istgt(folder, bytes),
            Kind::Floor => Ok(Some(vec![floor()?])),
        }
    }
}

fn floor() -> anyhow::Result<Target> {
    use std::io::BufRead as _;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("floor").stdout(Stdio::piped());
    let mut process = Process::start(command)?;
    let output = process.0.stdout.take().context("no standard output")?;
    let mut line = String::new();
    std::io::BufReader::new(output).read_line(&mut line)?;
    let login = Login { portal: line.trim().parse()?, target: None, initiator: INITIATOR.to_owned(), lun: 0 };
    let pid = process.0.id();
    Ok(Target { name: "bare TCP", login, pid, stores: false, _running: Running::Process(process) })
}

/// A child that ends with its owner.
struct Process(Child);

impl Process {
    fn start(mut command: Command) -> anyhow::Result<Process> {
        let name = format!("{command:?}");
        Ok(Process(command.stdin(Stdio::null()).spawn().context(name)?))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(pid) = Pid::from_raw(self.0.id() as i32) {
            let _ = kill_process(pid, Signal::TERM);
        }
        // Peers that stay for their sessions' sake have nothing worth waiting for.
        let by = Instant::now() + STOPPING_MAX;
        while matches!(self.0.try_wait(), Ok(None)) {
            if Instant::now() > by {
                let _ = self.0.kill();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Waits until something listens there.
fn until_listening(address: SocketAddr) -> anyhow::Result<()> {
    let by = Instant::now() + PATIENCE;
    while std::net::TcpStream::connect(address).is_err() {
        if Instant::now() > by {
            bail!("nothing listens at {address}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// A port that is free now.
fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders.map(|folder| folder.join(program)).any(|path| path.exists())
}
