//! A cluster whose processes each have an address and a network namespace of their own, to be cut apart, killed and stopped one
//! by one.
//!
//! Members of the network: `ctl-1`.. and `node-1`.. (one process each), `host-1`.. (initiators), `admin` (the CLI).
//!
//! Invariants: state lives in a memory file system that only the cluster's processes see, so nothing but the logs outlives a
//! crash of the test (a measurement may want a real disk: [`Shape::disk`]); processes are ended by their own ids.

use std::{
    collections::BTreeMap,
    env, fs,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    bad_disk::BadDisk,
    cluster::{INITIATOR_A, INITIATOR_B, binaries},
    initiator::Initiator,
    netns::Network,
    patience::{self, PATIENCE},
};

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

    fn bad_disk(&mut self, name: &str, folder: &str, size: u64) -> anyhow::Result<()> {
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

    /// The machine of a data node boots: its kernel tells another boot id from now on.
    fn boot(&mut self, name: &str) -> anyhow::Result<()> {
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
    fn recipe(&self, program: &str, arguments: &[(&str, &str)]) -> Vec<String> {
        let mut recipe = vec![binaries().join(program).display().to_string()];
        recipe.extend(arguments.iter().flat_map(|(name, value)| [(*name).to_owned(), (*value).to_owned()]));
        recipe
    }

    fn endpoints(&self) -> anyhow::Result<String> {
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

    /// `holdfast ...` as the administrator; its exit status is the caller's to judge.
    ///
    /// # Errors
    /// When the program is not there.
    pub fn try_cli(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let holdfast = binaries().join("holdfast").display().to_string();
        let (endpoints, tls) = (self.endpoints()?, self.path(&["tls", "admin"]));
        let mut command = Command::new(holdfast);
        for variable in ["HOLDFAST_DIR", "HOLDFAST_ENDPOINTS", "HOLDFAST_TLS"] {
            command.env_remove(variable);
        }
        command.args(["--endpoints", &endpoints, "--tls", &tls]).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(self.network.spawn("admin", command)?.wait_with_output()?)
    }

    /// The same, where only success will do.
    ///
    /// # Errors
    /// What the command said.
    pub fn cli(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.try_cli(arguments)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "holdfast {}: {said}", arguments.join(" "));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The same as JSON.
    ///
    /// # Errors
    /// What the command said.
    pub fn json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.cli(&[arguments, &["-o", "json"]].concat())?)?)
    }

    /// Name of the controller that leads.
    ///
    /// # Errors
    /// When none is known.
    pub fn leader(&self) -> anyhow::Result<String> {
        let cluster = self.json(&["cluster", "show"])?;
        let members = cluster["members"].as_array().context("members")?;
        let leader =
            members.iter().find(|member| member["id"] == cluster["leader_id"]).context("no leader")?;
        Ok(leader["name"].as_str().context("name")?.to_owned())
    }

    /// Name of the node that owns a volume.
    ///
    /// # Errors
    /// When the volume or its owner is unknown.
    pub fn owner(&self, volume: &str) -> anyhow::Result<String> {
        let shown = self.json(&["volume", "show", volume])?;
        let owner = shown["status"]["owner"].as_str();
        Ok(owner.with_context(|| format!("no owner in {shown}"))?.to_owned())
    }

    /// Waits until every process that runs serves.
    ///
    /// # Errors
    /// The last reason why not.
    pub fn wait_until_serving(&mut self) -> anyhow::Result<()> {
        // A process that has ended never serves: no reason to wait.
        let ended = |cluster: &mut Self| {
            let fallen = cluster.fallen();
            ensure!(fallen.is_empty(), "ended by themselves: {fallen:?}; logs: {}", cluster.tails());
            Ok(())
        };
        let mut failed = None;
        let served = patience::wait_for(
            "all to serve",
            PATIENCE,
            || {
                failed = ended(self).err();
                if failed.is_some() { Ok(()) } else { self.serves() }
            },
            String::new,
        );
        match failed {
            Some(error) => Err(error),
            None => served.with_context(|| format!("not up; logs: {}", self.tails())),
        }
    }

    fn serves(&self) -> anyhow::Result<()> {
        let shown = self.json(&["node", "list"])?;
        let nodes = shown["nodes"].as_array().context("nodes")?;
        for name in self.datanodes().iter().filter(|name| self.runs(name)) {
            let status =
                &nodes.iter().find(|node| node["name"] == **name).context("not known yet")?["status"];
            let left = &status["lease_ms_left"];
            let leased =
                left.as_u64().is_some_and(|left| left > 0) || left.as_str().is_some_and(|left| left != "0");
            ensure!(status["live"] == true && leased, "{name} holds no lease: {status}");
            let portal = self.portal(name)?;
            let admin = &self.network.member("admin")?.namespace;
            self.network
                .spawner
                .inside(admin, move || TcpStream::connect_timeout(&portal, Duration::from_secs(2)))?
                .with_context(|| format!("portal of {name}"))?;
        }
        Ok(())
    }

    /// Waits until `condition` gives a value.
    ///
    /// # Errors
    /// The condition's last word, when patience ends.
    pub fn wait_for<T>(&self, what: &str, condition: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
        patience::wait_for(what, PATIENCE, condition, || format!("logs: {}", self.tails()))
    }

    /// A volume mapped as LUN `lun` to the hosts A and B, which are made when they are not there; `more` goes to `volume create`.
    ///
    /// # Errors
    /// What a command said.
    pub fn volume_for_both(&self, name: &str, lun: u16, more: &[&str]) -> anyhow::Result<()> {
        let hosts = self.json(&["host", "list"])?;
        for (host, initiator) in [("a", INITIATOR_A), ("b", INITIATOR_B)] {
            let known =
                hosts["hosts"].as_array().is_some_and(|all| all.iter().any(|known| known["name"] == host));
            if !known {
                self.cli(&["host", "create", host, "--initiator", initiator])?;
            }
        }
        self.cli(&[&["volume", "create", name], more].concat())?;
        for host in ["a", "b"] {
            self.cli(&["map", "create", name, host, "--lun", &lun.to_string()])?;
        }
        Ok(())
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

    /// Logs an initiator of machine `host` in through `node`.
    ///
    /// # Errors
    /// The login's failure as libiscsi words it.
    pub fn login(&self, host: &str, node: &str, name: &str, isid: u16) -> anyhow::Result<Initiator> {
        let portal = self.portal(node)?.to_string();
        Initiator::login_with(
            |command| self.network.spawn(host, command),
            &portal,
            &self.target,
            name,
            isid,
            None,
        )
    }

    /// A TCP connection from machine `host` to a node's portal.
    ///
    /// # Errors
    /// When there is none within two seconds.
    pub fn connect(&self, host: &str, node: &str) -> anyhow::Result<TcpStream> {
        let (portal, host) = (self.portal(node)?, &self.network.member(host)?.namespace);
        Ok(self
            .network
            .spawner
            .inside(host, move || TcpStream::connect_timeout(&portal, Duration::from_secs(2)))??)
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
