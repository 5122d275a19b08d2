//! What lies in the pools of a [`NetCluster`], and the disks below them.
//!
//! Invariant: what is done to a pool is done in the name space that its processes see.

use anyhow::Context as _;

use super::{FILLER, NetCluster};
use crate::bad_disk::BadDisk;

impl NetCluster {
    pub(super) fn bad_disk(&mut self, name: &str, folder: &str, size: u64) -> anyhow::Result<()> {
        self.tool(&["mkdir", "-p", folder])?;
        self.disks.insert(name.to_owned(), BadDisk::mount(&self.network, folder, size)?);
        Ok(())
    }

    /// The disk of a data node (its pool) or controller (its folder).
    ///
    /// # Errors
    /// When it has none that fails on command.
    pub fn disk(&self, name: &str) -> anyhow::Result<&BadDisk> {
        self.disks.get(name).with_context(|| format!("{name} has no disk that fails on command"))
    }

    /// Runs a line of shell in a node's pool; its folder is `..`.
    ///
    /// # Errors
    /// What it said.
    pub fn in_pool(&self, node: &str, line: &str) -> anyhow::Result<()> {
        self.tool(&["sh", "-euc", &format!("cd {} && {line}", self.path(&[node, "pool"]))])
    }

    /// Copies all replicas of one node into the pool of another.
    ///
    /// # Errors
    /// What the tool said.
    pub fn copy_replicas(&self, from: &str, to: &str) -> anyhow::Result<()> {
        let pool = self.path(&[from, "pool"]);
        self.in_pool(to, &format!("cp -r {pool}/*-*-*-*-* ."))
    }

    /// Leaves no room in a node's pool.
    ///
    /// # Errors
    /// When the tool is not there.
    pub fn fill_disk(&self, node: &str) -> anyhow::Result<()> {
        // It ends with "no space left", which is what is wanted.
        let fill = format!("cat /dev/zero >{} 2>&-; true", self.path(&[node, "pool", FILLER]));
        self.tool(&["sh", "-c", &fill])
    }

    /// Makes room again.
    ///
    /// # Errors
    /// When the tool is not there.
    pub fn empty_disk(&self, node: &str) -> anyhow::Result<()> {
        self.tool(&["rm", "-f", &self.path(&[node, "pool", FILLER])])
    }

    /// Compares a file of the first pool that has it with that of every other one; gives how many have it.
    ///
    /// # Errors
    /// When two differ.
    pub fn same_in_every_pool(&self, file: &str) -> anyhow::Result<usize> {
        let paths: Vec<String> =
            self.datanodes().iter().map(|node| self.path(&[node, "pool", file])).collect();
        let there = |path: &String| {
            let output = self.network.spawner.output(None, &["test", "-e", path]);
            output.is_ok_and(|output| output.status.success())
        };
        let there: Vec<&String> = paths.iter().filter(|path| there(path)).collect();
        if let Some((first, others)) = there.split_first() {
            for other in others {
                self.tool(&["cmp", first, other])?;
            }
        }
        Ok(there.len())
    }
}
