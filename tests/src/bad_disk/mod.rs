//! A disk that does what disks do: a file system in memory, over FUSE, that forgets at a loss of power what was not brought to
//! it, fails, fills up, answers late, loses writes and rots, on command. The programs under test run on it unchanged.
//!
//! [`platter`] is what lies on it, [`filesystem`] its face to the kernel, [`BadDisk`] a running one, as tests hold it.
//!
//! Invariant: nothing of it outlives the test.

pub mod filesystem;
pub mod platter;

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, ensure};

use crate::{cluster::binaries, netns::Network};

/// A running disk.
#[derive(Debug)]
pub struct BadDisk {
    child: Child,
    talk: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
}

impl BadDisk {
    /// Mounts one of `size` bytes on an empty folder that the cluster's processes see.
    ///
    /// # Errors
    /// When the kernel has no FUSE, or this user may not mount; it says so.
    pub fn mount(network: &Network, folder: &str, size: u64) -> anyhow::Result<Self> {
        let mut command = Command::new(binaries().join("holdfast-bad-disk"));
        command.args([folder, &size.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = network.spawn("admin", command)?;
        let talk = (
            child.stdin.take().context("no standard input")?,
            BufReader::new(child.stdout.take().context("no standard output")?),
        );
        let disk = Self { child, talk: Mutex::new(talk) };
        ensure!(disk.answer()? == "ready", "the disk for {folder} is not mounted (is there a /dev/fuse?)");
        Ok(disk)
    }

    /// Gives it a command ([`platter::Platter::command`]), which has taken effect when this returns; gives its answer.
    ///
    /// # Errors
    /// What is wrong with the command.
    pub fn tell(&self, command: &str) -> anyhow::Result<String> {
        {
            let mut talk = self.talk.lock().unwrap_or_else(PoisonError::into_inner);
            writeln!(talk.0, "{command}")?;
            talk.0.flush()?;
        }
        let answer = self.answer()?;
        let done = answer.strip_prefix("done ").with_context(|| format!("{command}: {answer}"))?;
        Ok(done.to_owned())
    }

    fn answer(&self) -> anyhow::Result<String> {
        let mut line = String::new();
        let mut talk = self.talk.lock().unwrap_or_else(PoisonError::into_inner);
        talk.1.read_line(&mut line)?;
        ensure!(!line.is_empty(), "the disk has ended");
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for BadDisk {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
