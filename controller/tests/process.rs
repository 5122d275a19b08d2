//! The controller as a process: what it says when it cannot start, how it stops, and that three of them are a cluster.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use holdfast_pki::{Authority, Identity, Role};
use holdfast_proto::v1::{
    AuditRecord, CreateHostRequest, GetClusterRequest, Host, HostSpec, ListAuditRequest, ListHostsRequest,
    TransferLeadershipRequest, audit_service_client::AuditServiceClient,
    cluster_service_client::ClusterServiceClient, controller_service_client::ControllerServiceClient,
    host_service_client::HostServiceClient,
};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

const LIMIT: Duration = Duration::from_secs(60);

struct Cluster {
    directory: TempDir,
    ports: Vec<u16>,
    processes: Vec<Option<Process>>,
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Cluster {
    fn new() -> Self {
        holdfast_pki::install_crypto_provider();
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::create(&directory.path().join("ca")).unwrap();
        for id in 1..=3 {
            let name = format!("ctl-{id}");
            authority.issue((Role::Controller, &name), &directory.path().join(&name)).unwrap();
        }
        authority.issue((Role::Admin, "admin"), &directory.path().join("admin")).unwrap();
        authority.issue((Role::Viewer, "viewer"), &directory.path().join("viewer")).unwrap();
        let taken: Vec<_> = (0..3).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports = taken.iter().map(|port| port.local_addr().unwrap().port()).collect();
        Self { directory, ports, processes: (0..3).map(|_| None).collect() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self, at: usize) -> Command {
        let bootstrap: Vec<String> =
            (1..).zip(&self.ports).map(|(id, port)| format!("{id}=ctl-{id}=127.0.0.1:{port}")).collect();
        let name = format!("ctl-{}", at + 1);
        let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast-controller"));
        command
            .args(["--id", &(at + 1).to_string(), "--name", &name])
            .arg("--dir")
            .arg(self.path(&format!("state-{at}")))
            .args(["--listen", &format!("127.0.0.1:{}", self.ports[at])])
            .arg("--tls")
            .arg(self.path(&name))
            .args(["--bootstrap", &bootstrap.join(",")])
            .stdin(Stdio::null());
        command
    }

    fn start(&mut self, at: usize) {
        let child = self.command(at).stderr(Stdio::null()).spawn().unwrap();
        self.processes[at] = Some(Process(child));
    }

    fn terminate(&mut self, at: usize) -> ExitStatus {
        let mut process = self.processes[at].take().unwrap();
        let status = Command::new("kill").args(["-TERM", &process.0.id().to_string()]).status().unwrap();
        assert!(status.success());
        process.0.wait().unwrap()
    }

    fn channel(&self, at: usize, role: Role) -> Channel {
        let identity = Identity::load(&self.path(role.as_str())).unwrap();
        Endpoint::from_shared(format!("https://127.0.0.1:{}", self.ports[at]))
            .unwrap()
            .tls_config(identity.tonic_client(Role::Controller, None).unwrap())
            .unwrap()
            .connect_lazy()
    }

    /// Asks until the member says that the cluster has a leader and its record; the server itself waits for an election.
    async fn leader(&self, at: usize) -> usize {
        let mut client = ClusterServiceClient::new(self.channel(at, Role::Viewer));
        loop {
            match client.get_cluster(GetClusterRequest {}).await {
                Ok(cluster)
                    if cluster.get_ref().leader_id > 0 && !cluster.get_ref().target_iqn.is_empty() =>
                {
                    return usize::try_from(cluster.get_ref().leader_id).unwrap() - 1;
                }
                _ => tokio::task::yield_now().await,
            }
        }
    }
}

/// Runs to the end; answers the exit status and what it said.
fn refused(command: &mut Command) -> (ExitStatus, String) {
    let output = command.env("RUST_LOG", "off").output().unwrap();
    (output.status, String::from_utf8(output.stderr).unwrap())
}

fn assert_one_line(said: &str, mentions: &str) {
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    assert!(said.contains(mentions), "{said}");
}

fn create(number: u32) -> CreateHostRequest {
    CreateHostRequest {
        request_id: format!("r{number}"),
        name: format!("host-{number}"),
        spec: Some(HostSpec {
            initiators: vec![format!("iqn.2026-11.example:{number}")],
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_processes_are_a_cluster_that_survives_its_leader_and_a_restart() {
    let mut cluster = Cluster::new();
    let test = async {
        (0..3).for_each(|at| cluster.start(at));
        let leader = cluster.leader(0).await;
        let follower = (leader + 1) % 3;
        let mut hosts = HostServiceClient::new(cluster.channel(follower, Role::Admin));
        hosts.create_host(create(1)).await.unwrap();
        let mut viewer = HostServiceClient::new(cluster.channel(follower, Role::Viewer));
        assert_eq!(viewer.create_host(create(2)).await.unwrap_err().code(), tonic::Code::PermissionDenied);

        cluster.processes[leader] = None;
        while let Err(status) = hosts.create_host(create(2)).await {
            assert!(
                matches!(status.code(), tonic::Code::Unavailable | tonic::Code::DeadlineExceeded),
                "{status}"
            );
        }
        cluster.start(leader);
        for at in 0..3 {
            cluster.leader(at).await;
        }
        // A clean stop of whoever leads: the next call finds the new leader.
        let leader = cluster.leader(follower).await;
        let stopped = tokio::task::block_in_place(|| cluster.terminate(leader));
        assert_eq!(stopped.code(), Some(0));
        let other = (leader + 1) % 3;
        let mut hosts = HostServiceClient::new(cluster.channel(other, Role::Admin));
        while hosts.create_host(create(3)).await.is_err() {}

        for at in (0..3).filter(|at| *at != leader) {
            cluster.processes[at] = None;
        }
        (0..3).for_each(|at| cluster.start(at));
        for at in 0..3 {
            cluster.leader(at).await;
            let mut hosts = HostServiceClient::new(cluster.channel(at, Role::Viewer));
            let list = hosts.list_hosts(ListHostsRequest::default()).await.unwrap().into_inner();
            assert_eq!(list.hosts.len(), 3);
        }
    };
    tokio::time::timeout(LIMIT, test).await.unwrap();
}

/// Everything that a member holds, read from it while it leads.
async fn held_by(cluster: &Cluster, at: usize, until: u64) -> (Vec<Host>, Vec<AuditRecord>) {
    let name = format!("ctl-{}", at + 1);
    while cluster.leader(at).await != at {
        let mut controllers = ControllerServiceClient::new(cluster.channel(at, Role::Admin));
        // Refused while a member is still catching up.
        let _ = controllers
            .transfer_leadership(TransferLeadershipRequest { name: name.clone(), ..Default::default() })
            .await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut hosts = HostServiceClient::new(cluster.channel(at, Role::Viewer));
    let request = ListHostsRequest { page_size: 1000, ..Default::default() };
    let hosts = hosts.list_hosts(request).await.unwrap().into_inner().hosts;
    let mut audit = AuditServiceClient::new(cluster.channel(at, Role::Admin));
    let (mut records, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListAuditRequest { page_size: 1000, page_token, ..Default::default() };
        let page = audit.list_audit(request).await.unwrap().into_inner();
        records.extend(page.records.into_iter().filter(|record| until == 0 || record.index <= until));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return (hosts, records);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_were_killed_at_any_moment_hold_the_same_state_and_audit() {
    let mut cluster = Cluster::new();
    let test = async {
        (0..3).for_each(|at| cluster.start(at));
        cluster.leader(0).await;
        let channels = [0, 1, 2].map(|at| cluster.channel(at, Role::Admin));
        let (acknowledged, mut written) = tokio::sync::watch::channel(0);
        let writer = tokio::spawn(async move {
            let mut at = 0;
            for number in 1.. {
                // The same request until somebody says that it is done.
                while HostServiceClient::new(channels[at].clone()).create_host(create(number)).await.is_err()
                {
                    at = (at + 1) % 3;
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                if acknowledged.send(number).is_err() {
                    return;
                }
            }
        });
        // Each of them, then two, then all: the writes go on meanwhile, so that every kill meets the log in another state.
        for (round, killed) in [&[0][..], &[1], &[2], &[0, 1], &[1, 2], &[0, 1, 2]].into_iter().enumerate() {
            killed.iter().for_each(|at| cluster.processes[*at] = None);
            killed.iter().for_each(|at| cluster.start(*at));
            let enough = *written.borrow_and_update() + 3 + round as u32;
            written.wait_for(|number| *number >= enough).await.unwrap();
        }
        let last = *written.borrow();
        drop(written);
        writer.await.unwrap();

        let leader = cluster.leader(0).await;
        let (hosts, records) = held_by(&cluster, leader, 0).await;
        let until = records.last().map_or(0, |record| record.index);
        for number in 1..=last {
            let name = format!("host-{number}");
            assert_eq!(hosts.iter().filter(|host| host.name == name).count(), 1, "{name}");
            let subject = format!("host/{name}");
            // Asked again by the same id, it is on record again, and done once.
            let is_told = records.iter().any(|record| record.subject == subject && record.outcome == "done");
            assert!(is_told, "{name} was acknowledged and is not in the audit");
        }
        for at in (0..3).filter(|at| *at != leader) {
            let held = held_by(&cluster, at, until).await;
            assert_eq!(held.0, hosts, "member {at}");
            assert_eq!(held.1, records, "member {at}");
        }
    };
    tokio::time::timeout(LIMIT, test).await.unwrap();
}

#[test]
fn what_cannot_start_says_why_in_one_line() {
    let mut cluster = Cluster::new();
    let busy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let free = std::mem::replace(&mut cluster.ports[0], busy.local_addr().unwrap().port());
    let (status, said) = refused(&mut cluster.command(0));
    assert_eq!(status.code(), Some(1));
    assert_one_line(&said, &format!("127.0.0.1:{} is in use", cluster.ports[0]));
    cluster.ports[0] = free;

    // A folder that another process has.
    let mut first = Process(cluster.command(0).stderr(Stdio::piped()).spawn().unwrap());
    let mut log = BufReader::new(first.0.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("serving") {
        line.clear();
        assert_ne!(log.read_line(&mut line).unwrap(), 0, "it ended early");
    }
    let drained = std::thread::spawn(move || log.read_to_end(&mut Vec::new()));
    let mut other_port = Cluster::arguments_with(&cluster, 0, &["--listen", "127.0.0.1:0"]);
    let (status, said) = refused(&mut other_port);
    assert_eq!(status.code(), Some(1));
    assert_one_line(&said, "in use by another process");
    drop(first);
    drained.join().unwrap().unwrap();

    // A folder of another cluster.
    let stranger = Cluster::new();
    let mut command =
        Cluster::arguments_with(&cluster, 0, &["--tls", stranger.path("ctl-1").to_str().unwrap()]);
    let (status, said) = refused(&mut command);
    assert_eq!(status.code(), Some(1));
    assert_one_line(&said, "belongs to cluster");

    // Another member's certificate, and none at all.
    let mut command =
        Cluster::arguments_with(&cluster, 0, &["--tls", cluster.path("ctl-2").to_str().unwrap()]);
    assert_one_line(&refused(&mut command).1, "the certificate is of controller 'ctl-2'");
    let missing = Path::new("/nonexistent");
    let mut command = Cluster::arguments_with(&cluster, 0, &["--tls", missing.to_str().unwrap()]);
    assert_one_line(&refused(&mut command).1, "/nonexistent");
}

impl Cluster {
    /// The command with some arguments replaced.
    fn arguments_with(&self, at: usize, replaced: &[&str]) -> Command {
        let command = self.command(at);
        let mut arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
        for pair in replaced.chunks_exact(2) {
            let position = arguments.iter().position(|argument| argument == pair[0]).unwrap();
            arguments[position + 1] = pair[1].into();
        }
        let mut changed = Command::new(command.get_program());
        changed.args(arguments).stdin(Stdio::null());
        changed
    }
}
