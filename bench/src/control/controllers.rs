//! Three controllers as processes, with their certificates, in a folder of their own.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use holdfast_pki::{Authority, Identity, Role};
use holdfast_proto::v1::{
    GetClusterRequest, ListControllersRequest, Member, cluster_service_client::ClusterServiceClient,
    controller_service_client::ControllerServiceClient,
};
use rustix::process::{Pid, Signal, kill_process};
use tonic::transport::{Channel, Endpoint};

/// Controllers of the cluster under test.
pub const MEMBERS: usize = 3;
/// Longest wait for anything.
pub const LIMIT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(2);

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// ctl-1 to ctl-3.
pub struct Controllers {
    directory: PathBuf,
    program: PathBuf,
    authority: Authority,
    addresses: Vec<String>,
    processes: Vec<Option<Process>>,
}

impl Controllers {
    /// Starts a new cluster of `program` below `directory`, and waits until it serves.
    ///
    /// # Errors
    /// The program is not there, or the cluster does not come up.
    pub async fn start(program: &Path, directory: &Path) -> anyhow::Result<Self> {
        let authority = Authority::create(&directory.join("ca"))?;
        for id in 1..=MEMBERS {
            let name = format!("ctl-{id}");
            authority.issue((Role::Controller, &name), &directory.join(&name))?;
        }
        authority.issue((Role::Admin, "bench"), &directory.join("admin"))?;
        // All are taken at once, so that no two are the same.
        let taken: Vec<_> =
            (0..MEMBERS).map(|_| std::net::TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
        let addresses = taken
            .iter()
            .map(|port| Ok(port.local_addr()?.to_string()))
            .collect::<std::io::Result<Vec<_>>>()?;
        drop(taken);
        let mut controllers = Self {
            directory: directory.to_owned(),
            program: program.to_owned(),
            authority,
            addresses,
            processes: (0..MEMBERS).map(|_| None).collect(),
        };
        for id in 1..=MEMBERS {
            controllers.spawn(id)?;
        }
        controllers.serving().await?;
        Ok(controllers)
    }

    /// Starts the process of controller `id`.
    ///
    /// # Errors
    /// The program is not there.
    pub fn spawn(&mut self, id: usize) -> anyhow::Result<()> {
        let bootstrap: Vec<_> =
            (1..).zip(&self.addresses).map(|(id, address)| format!("{id}=ctl-{id}={address}")).collect();
        let name = format!("ctl-{id}");
        let log =
            File::options().create(true).append(true).open(self.directory.join(format!("{name}.log")))?;
        let child = Command::new(&self.program)
            .args(["--id", &id.to_string(), "--name", &name, "--listen", &self.addresses[id - 1]])
            .arg("--dir")
            .arg(self.directory.join(format!("state-{id}")))
            .arg("--tls")
            .arg(self.directory.join(&name))
            .args(["--bootstrap", &bootstrap.join(","), "--die-with-parent"])
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| self.program.display().to_string())?;
        self.processes[id - 1] = Some(Process(child));
        Ok(())
    }

    /// SIGKILL.
    pub fn kill(&mut self, id: usize) {
        self.processes[id - 1] = None;
    }

    /// SIGTERM to all, and waits until they have ended.
    ///
    /// # Errors
    /// One does not end.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        for process in self.processes.iter().flatten() {
            let pid = i32::try_from(process.0.id()).ok().and_then(Pid::from_raw).context("process id")?;
            kill_process(pid, Signal::TERM)?;
        }
        for process in &mut self.processes {
            if let Some(mut process) = process.take() {
                process.0.wait()?;
            }
        }
        Ok(())
    }

    /// An identity of this cluster's authority.
    ///
    /// # Errors
    /// It cannot be issued.
    pub fn identity(&self, role: Role, name: &str) -> anyhow::Result<Identity> {
        let folder = self.directory.join(format!("{role}-{name}"));
        if !folder.exists() {
            self.authority.issue((role, name), &folder)?;
        }
        Ok(Identity::load(&folder)?)
    }

    /// A connection to controller `id`, as `identity`.
    ///
    /// # Errors
    /// The identity is of no use.
    pub fn channel(&self, id: usize, identity: &Identity) -> anyhow::Result<Channel> {
        let endpoint = Endpoint::from_shared(format!("https://{}", self.addresses[id - 1]))?
            .tls_config(identity.tonic_client(Role::Controller, None)?)?
            .connect_timeout(Duration::from_secs(2))
            .tcp_nodelay(true);
        Ok(endpoint.connect_lazy())
    }

    /// A connection to controller `id`, as its administrator.
    ///
    /// # Errors
    /// The identity is of no use.
    pub fn admin(&self, id: usize) -> anyhow::Result<Channel> {
        self.channel(id, &Identity::load(&self.directory.join("admin"))?)
    }

    /// Waits until the cluster answers a read that a quorum confirmed, through any of its controllers. Gives how long that took.
    ///
    /// # Errors
    /// It does not, in [`LIMIT`].
    pub async fn serving(&self) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        let mut clients = Vec::new();
        for id in 1..=MEMBERS {
            clients.push(ClusterServiceClient::new(self.admin(id)?));
        }
        while begun.elapsed() < LIMIT {
            for (at, client) in clients.iter_mut().enumerate() {
                if self.processes[at].is_none() {
                    continue;
                }
                let answer = client.get_cluster(GetClusterRequest {});
                if let Ok(Ok(_)) = tokio::time::timeout(Duration::from_millis(500), answer).await {
                    return Ok(begun.elapsed());
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
        bail!(
            "the controllers do not serve within {} s; logs are in {}",
            LIMIT.as_secs(),
            self.directory.display()
        )
    }

    /// Id of the leader.
    ///
    /// # Errors
    /// None within [`LIMIT`].
    pub async fn leader(&self) -> anyhow::Result<usize> {
        let begun = Instant::now();
        while begun.elapsed() < LIMIT {
            for id in (1..=MEMBERS).filter(|id| self.processes[id - 1].is_some()) {
                let mut client = ControllerServiceClient::new(self.admin(id)?);
                if let Ok(list) = client.list_controllers(ListControllersRequest {}).await
                    && let Some(leader) = list.into_inner().members.iter().find(|member| member.leader)
                {
                    return Ok(usize::try_from(leader.id)?);
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
        bail!("no leader within {} s", LIMIT.as_secs())
    }

    /// Waits until controller `id` answers and has all of the leader's log.
    ///
    /// # Errors
    /// It has not, in [`LIMIT`].
    pub async fn caught_up(&self, id: usize) -> anyhow::Result<()> {
        let begun = Instant::now();
        let mut client = ControllerServiceClient::new(self.admin(id)?);
        while begun.elapsed() < LIMIT {
            // It forwards the question: an answer shows that it knows the leader.
            let answer = client.list_controllers(ListControllersRequest {});
            if let Ok(Ok(list)) = tokio::time::timeout(Duration::from_millis(500), answer).await {
                let members = list.into_inner().members;
                let of = |is: &dyn Fn(&Member) -> bool| members.iter().find(|member| is(member));
                let leader = of(&|member| member.leader).and_then(|member| member.matched_index);
                let own = of(&|member| member.id == id as u64).and_then(|member| member.matched_index);
                if own.is_some() && own >= leader {
                    return Ok(());
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
        bail!("controller {id} does not catch up within {} s", LIMIT.as_secs())
    }

    /// Resident memory of controller `id`, in bytes; 0 if it does not run.
    pub fn resident_bytes(&self, id: usize) -> u64 {
        let Some(process) = &self.processes[id - 1] else { return 0 };
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.0.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kib.unwrap_or(0) * 1024
    }

    /// Bytes that controller `id` keeps on disk.
    pub fn stored_bytes(&self, id: usize) -> u64 {
        fn below(path: &Path) -> u64 {
            let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
            let size = |entry: std::fs::DirEntry| match entry.metadata() {
                Ok(meta) if meta.is_dir() => below(&entry.path()),
                Ok(meta) => meta.len(),
                Err(_) => 0,
            };
            entries.map(size).sum()
        }
        below(&self.directory.join(format!("state-{id}")))
    }
}
