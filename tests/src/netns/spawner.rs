//! A thread that starts processes inside network namespaces, and the namespaces themselves.
//!
//! Namespaces have no names: each lives as long as something holds its file or runs in it. So nothing is left behind, however the
//! program that made them ends, and programs side by side never meet.
//!
//! Invariants: only this thread changes namespaces, so that the rest of the program stays where it was; every process that it
//! starts is killed (also when it is stopped) once this thread is gone.

use std::{
    fs::File,
    io,
    os::{fd::AsFd, fd::AsRawFd, unix::process::CommandExt},
    process::{Child, Command, Output},
    sync::{Arc, mpsc},
    thread,
};

use anyhow::{Context, anyhow, ensure};
use rustix::{
    process::{Signal, set_parent_process_death_signal},
    thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe},
};

const OWN_NETWORK: &str = "/proc/thread-self/ns/net";

/// A network namespace, kept alive by its open file.
#[derive(Debug, Clone)]
pub struct Namespace {
    file: Arc<File>,
}

impl Namespace {
    /// A path under which tools of this machine find it while this program runs.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }
}

type Work = Box<dyn FnOnce() + Send>;

/// The thread. It ends when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Spawner {
    work: mpsc::Sender<Work>,
}

impl Spawner {
    /// Starts the thread in a mount namespace of its own: what it mounts vanishes with it and its processes.
    ///
    /// # Errors
    /// When this machine or user may not make namespaces; it says so.
    pub fn start() -> anyhow::Result<Self> {
        let (work, queue) = mpsc::channel::<Work>();
        thread::Builder::new().name("spawner".to_owned()).spawn(move || {
            for work in queue {
                work();
            }
        })?;
        let spawner = Self { work };
        spawner.run(|| leave(UnshareFlags::NEWNS, "mount"))??;
        let private = spawner.output(None, &["mount", "--make-rprivate", "/"])?;
        ensure!(private.status.success(), "mount: {}", String::from_utf8_lossy(&private.stderr));
        Ok(spawner)
    }

    fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> anyhow::Result<T> {
        let (sender, answer) = mpsc::channel();
        let work = Box::new(move || {
            // Nobody waits any more only when the asking thread has ended.
            let _ = sender.send(work());
        });
        self.work.send(work).map_err(|_| anyhow!("the spawner has ended"))?;
        answer.recv().context("the spawner has ended")
    }

    /// A new network namespace, empty but for a loopback that is down.
    ///
    /// # Errors
    /// When this machine or user may not make namespaces; it says so.
    pub fn new_network(&self) -> anyhow::Result<Namespace> {
        self.run(|| {
            leave(UnshareFlags::NEWNET, "network")?;
            let file = File::open(OWN_NETWORK).context(OWN_NETWORK)?;
            Ok(Namespace { file: Arc::new(file) })
        })?
    }

    /// Does `work` on the thread, inside `namespace`. It must be short: others wait.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn inside<T: Send + 'static>(
        &self,
        namespace: &Namespace,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> anyhow::Result<T> {
        let file = Arc::clone(&namespace.file);
        self.run(move || {
            enter(&file)?;
            Ok(work())
        })?
    }

    /// Starts a process inside `namespace`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, namespace: &Namespace, mut command: Command) -> anyhow::Result<Child> {
        let program = command.get_program().display().to_string();
        // SAFETY: between fork and exec the closure makes one system call, takes no lock and allocates nothing.
        unsafe {
            command.pre_exec(|| {
                // It follows this thread, which ends with the program or with the network.
                set_parent_process_death_signal(Some(Signal::KILL)).map_err(io::Error::from)
            });
        }
        self.inside(namespace, move || command.spawn())?.context(program)
    }

    /// Runs a short-lived tool to its end: inside `namespace`, or wherever the thread is.
    ///
    /// # Errors
    /// When it is not there.
    pub fn output(&self, namespace: Option<&Namespace>, command: &[&str]) -> anyhow::Result<Output> {
        let (program, arguments) = command.split_first().context("no program")?;
        let mut tool = Command::new(program);
        tool.args(arguments);
        let done = match namespace {
            Some(namespace) => self.inside(namespace, move || tool.output())?,
            None => self.run(move || tool.output())?,
        };
        done.with_context(|| {
            format!("{program} (is it installed? 'build/setup.sh test' installs what tests need)")
        })
    }
}

fn enter(file: &File) -> anyhow::Result<()> {
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .context("entering a network namespace")
}

fn leave(flags: UnshareFlags, kind: &str) -> anyhow::Result<()> {
    // SAFETY: the flags are NEWNET or NEWNS; neither touches memory or the table of files, so nothing of Rust's is unshared.
    unsafe { unshare_unsafe(flags) }.with_context(|| {
        format!("a {kind} namespace cannot be made here: partition tests need root (CAP_SYS_ADMIN) and a kernel that has them")
    })
}
