//! What a process has spent: processor time and context switches of all its threads, from /proc; system calls by perf.
//!
//! Invariant: costs are differences of two readings of the same threads; a thread that ended between them is not counted
//! (targets keep their threads while they serve).

use std::fs;
use std::io::Read as _;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, bail};

/// A reading.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reading {
    /// Nanoseconds on a processor.
    pub cpu_ns: u64,
    /// Context switches, of both kinds.
    pub switches: u64,
}

/// Reads all threads of a process.
///
/// # Errors
/// It is gone.
pub fn read(pid: u32) -> anyhow::Result<Reading> {
    let mut reading = Reading::default();
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("process {pid}"))?;
    for task in tasks.flatten() {
        let path = task.path();
        let Ok(text) = fs::read_to_string(path.join("schedstat")) else { continue };
        reading.cpu_ns += text.split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        let Ok(text) = fs::read_to_string(path.join("status")) else { continue };
        for line in text.lines() {
            if let Some((_, count)) = line.split_once("ctxt_switches:") {
                reading.switches += count.trim().parse::<u64>().unwrap_or(0);
            }
        }
    }
    Ok(reading)
}

impl Reading {
    /// What was spent since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Reading) -> Reading {
        Reading {
            cpu_ns: self.cpu_ns.saturating_sub(earlier.cpu_ns),
            switches: self.switches.saturating_sub(earlier.switches),
        }
    }
}

/// Resident memory of a process, in bytes.
///
/// # Errors
/// It is gone.
pub fn resident_bytes(pid: u32) -> anyhow::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
    Ok(kib * 1024)
}

/// Binds every thread of a process to these processors.
///
/// # Errors
/// It is gone, or there are no such processors.
pub fn pin(pid: u32, processors: &[usize]) -> anyhow::Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    processors.iter().for_each(|n| set.set(*n));
    for task in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        let Some(id) = task.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        rustix::thread::sched_setaffinity(rustix::thread::Pid::from_raw(id), &set)?;
    }
    Ok(())
}

/// How often perf is looked at until it counts.
const LOOK_EVERY: std::time::Duration = std::time::Duration::from_millis(5);

/// Whether a process has a counter of the kernel's open.
fn counts(pid: u32) -> bool {
    let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    open.flatten()
        .filter_map(|file| fs::read_link(file.path()).ok())
        .any(|target| target.to_string_lossy().contains("perf_event"))
}

/// Counts the system calls of a process by `perf stat`.
pub struct SyscallCounter(Child);

impl SyscallCounter {
    /// Begins; `None` where there is no perf or it may not count.
    pub fn start(pid: u32) -> Option<SyscallCounter> {
        let mut child = Command::new("perf")
            .args(["stat", "-x", ",", "-e", "raw_syscalls:sys_enter", "-p", &pid.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .ok()?;
        // perf does not say that it has begun; its open counter does.
        while let Ok(None) = child.try_wait() {
            if counts(child.id()) {
                return Some(SyscallCounter(child));
            }
            std::thread::sleep(LOOK_EVERY);
        }
        None
    }

    /// Ends, and tells how many there were.
    ///
    /// # Errors
    /// perf's own words.
    pub fn stop(mut self) -> anyhow::Result<u64> {
        if let Some(pid) = rustix::process::Pid::from_raw(self.0.id() as i32) {
            rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
        }
        let mut text = String::new();
        self.0.stderr.take().context("perf without output")?.read_to_string(&mut text)?;
        self.0.wait()?;
        for line in text.lines() {
            if line.contains("sys_enter")
                && let Some(count) = line.split(',').next().and_then(|n| n.parse().ok())
            {
                return Ok(count);
            }
        }
        bail!("perf: {}", text.trim())
    }
}
