//! A cluster whose processes each have an address and a network namespace of their own, to be cut apart, killed and stopped one
//! by one.
//!
//! Members of the network: `ctl-1`.. and `node-1`.. (one process each), `host-1`.. (initiators), `admin` (the CLI).
//!
//! Invariants: state lives in a memory file system that only the cluster's processes see, so nothing but the logs outlives a
//! crash of the test (a measurement may want a real disk: [`Shape::disk`]); processes are ended by their own ids.

mod pools;
mod processes;
mod users;

use std::{
    collections::BTreeMap,
    env, fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Child,
    thread,
};

use anyhow::{Context as _, ensure};
use tempfile::TempDir;

use crate::{bad_disk::BadDisk, cluster::binaries, netns::Network};

const CONTROLLER_PORT: u16 = 7700;
const PORTAL_PORT: u16 = 3260;
const INTERCONNECT_PORT: u16 = 7800;
/// Size of a controller's disk, where it is one that fails on command.
const CONTROLLER_DISK_SIZE: u64 = 256 << 20;
/// File that takes a pool's room.
const FILLER: &str = ".filler";

/// What a cluster is made of.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Controllers: 1, 3 or 5.
    pub controllers: u8,
    /// Data nodes.
    pub datanodes: u8,
    /// Machines with initiators.
    pub hosts: u8,
    /// Size of each data node's pool ("512m"): a file system of its own.
    pub pool_size: String,
    /// Seconds by which the boot-time and monotonic clocks of a member are ahead of the machine's.
    pub clock_offsets_s: BTreeMap<String, u32>,
    /// Data nodes and controllers keep their state on disks that fail on command ([`NetCluster::disk`]), and data nodes see a boot id of
    /// their own.
    pub bad_disks: bool,
    /// Where the logs go; without it into a temporary folder that stays when the test panics. By default a folder of this process
    /// in `HOLDFAST_TEST_LOGS`, where that is set.
    pub logs: Option<PathBuf>,
    /// Keep all state in a new folder below this one, which is removed at the end, instead of in memory; pools have no size of their own
    /// then.
    pub disk: Option<PathBuf>,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            controllers: 3,
            datanodes: 2,
            hosts: 2,
            pool_size: "512m".to_owned(),
            clock_offsets_s: BTreeMap::new(),
            bad_disks: false,
            logs: env::var_os("HOLDFAST_TEST_LOGS")
                .map(|folder| Path::new(&folder).join(std::process::id().to_string())),
            disk: None,
        }
    }
}

/// The cluster.
#[derive(Debug)]
pub struct NetCluster {
    /// Its network.
    pub network: Network,
    /// Name of the target.
    pub target: String,
    shape: Shape,
    recipes: BTreeMap<String, Vec<String>>,
    running: BTreeMap<String, Child>,
    disks: BTreeMap<String, BadDisk>,
    boots: u32,
    folder: PathBuf,
    logs: PathBuf,
    temporary: Option<TempDir>,
}

/// "512m" as a number.
fn bytes_of(size: &str) -> anyhow::Result<u64> {
    let mebibytes: u64 = size.strip_suffix('m').context("a size in mebibytes")?.parse()?;
    Ok(mebibytes << 20)
}

fn numbered(kind: &str, count: u8) -> impl Iterator<Item = String> {
    (1..=count).map(move |number| format!("{kind}-{number}"))
}

impl NetCluster {
    /// Starts a cluster and waits until it serves.
    ///
    /// # Errors
    /// When namespaces are not to be had, or the cluster does not come up.
    pub fn start(shape: Shape) -> anyhow::Result<Self> {
        let mut members = vec![("admin".to_owned(), Ipv4Addr::new(10, 77, 0, 1))];
        for (third, kind, count) in
            [(1, "ctl", shape.controllers), (2, "node", shape.datanodes), (3, "host", shape.hosts)]
        {
            members.extend(
                numbered(kind, count).zip(1..).map(|(n, last)| (n, Ipv4Addr::new(10, 77, third, last))),
            );
        }
        let named: Vec<_> = members.iter().map(|(name, address)| (name.as_str(), *address)).collect();
        let network = Network::new(&named)?;
        let mut builder = tempfile::Builder::new();
        builder.prefix("holdfast-partition-");
        let temporary = match &shape.disk {
            Some(disk) => builder.tempdir_in(disk)?,
            None => builder.tempdir()?,
        };
        let folder = temporary.path().join("cluster");
        fs::create_dir(&folder)?;
        let logs = shape.logs.clone().unwrap_or_else(|| temporary.path().join("log"));
        fs::create_dir_all(&logs)?;
        let mut cluster = Self {
            network,
            target: String::new(),
            recipes: BTreeMap::new(),
            running: BTreeMap::new(),
            disks: BTreeMap::new(),
            boots: 0,
            folder,
            logs,
            temporary: Some(temporary),
            shape,
        };
        cluster.prepare()?;
        let names: Vec<_> = cluster.recipes.keys().cloned().collect();
        for name in names {
            cluster.launch(&name)?;
        }
        cluster.wait_until_serving()?;
        let shown = cluster.json(&["cluster", "show"])?;
        cluster.target = shown["target_iqn"].as_str().context("target_iqn")?.to_owned();
        Ok(cluster)
    }

    /// Runs a tool where the cluster's folder is visible; only success will do.
    fn tool(&self, command: &[&str]) -> anyhow::Result<()> {
        let output = self.network.spawner.output(None, command)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {}", command.join(" "), said.trim());
        Ok(())
    }

    fn path(&self, parts: &[&str]) -> String {
        parts.iter().fold(self.folder.clone(), |path, part| path.join(part)).display().to_string()
    }

    /// Address of a member with a port.
    ///
    /// # Errors
    /// When there is no such member.
    fn at(&self, name: &str, port: u16) -> anyhow::Result<SocketAddr> {
        Ok((self.network.member(name)?.address, port).into())
    }

    /// Address of a node's portal.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn portal(&self, node: &str) -> anyhow::Result<SocketAddr> {
        self.at(node, PORTAL_PORT)
    }

    /// Names of the controllers.
    pub fn controllers(&self) -> Vec<String> {
        numbered("ctl", self.shape.controllers).collect()
    }

    /// Names of the data nodes.
    pub fn datanodes(&self) -> Vec<String> {
        numbered("node", self.shape.datanodes).collect()
    }

    /// The folder, certificates, and how each process is started.
    fn prepare(&mut self) -> anyhow::Result<()> {
        let folder = self.path(&[]);
        if self.shape.disk.is_none() {
            self.tool(&["mount", "-t", "tmpfs", "-o", "mode=0700", "holdfast-test", &folder])?;
        }
        let holdfast = binaries().join("holdfast").display().to_string();
        let authority = self.path(&["ca"]);
        self.tool(&[&holdfast, "pki", "init", "--ca", &authority])?;
        let roles = self.controllers().into_iter().map(|name| ("controller", name));
        let roles = roles.chain(self.datanodes().into_iter().map(|name| ("node", name)));
        for (role, name) in roles.chain([("admin", "admin".to_owned())]) {
            let out = self.path(&["tls", &name]);
            self.tool(&[
                &holdfast, "pki", "issue", "--ca", &authority, "--role", role, "--name", &name, "--out", &out,
            ])?;
        }
        let endpoints = self.endpoints()?;
        let bootstrap: Vec<_> = self
            .controllers()
            .iter()
            .zip(endpoints.split(','))
            .zip(1..)
            .map(|((name, address), id)| format!("{id}={name}={address}"))
            .collect();
        for (name, id) in self.controllers().into_iter().zip(1..) {
            let listen = self.at(&name, CONTROLLER_PORT)?.to_string();
            let (state, tls) = (self.path(&[&name]), self.path(&["tls", &name]));
            if self.shape.bad_disks {
                self.bad_disk(&name, &state, CONTROLLER_DISK_SIZE)?;
            }
            let id = id.to_string();
            let recipe = self.recipe(
                "holdfast-controller",
                &[
                    ("--id", &id),
                    ("--name", &name),
                    ("--dir", &state),
                    ("--listen", &listen),
                    ("--tls", &tls),
                    ("--bootstrap", &bootstrap.join(",")),
                ],
            );
            self.recipes.insert(name, recipe);
        }
        for name in self.datanodes() {
            let pool = self.path(&[&name, "pool"]);
            self.tool(&["mkdir", "-p", &pool])?;
            if self.shape.bad_disks {
                self.bad_disk(&name, &pool, bytes_of(&self.shape.pool_size)?)?;
                self.boot(&name)?;
            } else if self.shape.disk.is_none() {
                let size = format!("size={}", self.shape.pool_size);
                self.tool(&["mount", "-t", "tmpfs", "-o", &size, "holdfast-pool", &pool])?;
            }
            let (portal, interconnect) =
                (self.portal(&name)?.to_string(), self.at(&name, INTERCONNECT_PORT)?.to_string());
            let (state, tls) = (self.path(&[&name]), self.path(&["tls", &name]));
            let recipe = self.recipe(
                "holdfast-datanode",
                &[
                    ("--name", &name),
                    ("--dir", &state),
                    ("--controllers", &endpoints),
                    ("--portal", &portal),
                    ("--interconnect", &interconnect),
                    ("--tls", &tls),
                    ("--pool", &format!("default={pool}")),
                    ("--threads", "2"),
                ],
            );
            self.recipes.insert(name, recipe);
        }
        Ok(())
    }

    /// State is on a real disk.
    pub fn is_on_disk(&self) -> bool {
        self.shape.disk.is_some()
    }

    /// Folder of the logs.
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// Ends of the logs, for messages of failed tests.
    pub fn tails(&self) -> String {
        let mut text = String::new();
        for entry in fs::read_dir(&self.logs).into_iter().flatten().flatten() {
            let log = fs::read_to_string(entry.path()).unwrap_or_default();
            let tail: Vec<_> = log.lines().rev().take(15).collect();
            text += &format!("\n== {}\n", entry.file_name().display());
            text.extend(tail.into_iter().rev().map(|line| format!("{line}\n")));
        }
        text
    }
}

impl Drop for NetCluster {
    fn drop(&mut self) {
        for child in self.running.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if thread::panicking()
            && let Some(temporary) = self.temporary.take()
        {
            eprintln!("the cluster's logs are kept: {}", temporary.keep().display());
        }
    }
}
