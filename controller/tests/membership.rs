//! Controllers are added, removed, lost and replaced at run time: real processes, killed with SIGKILL.

#![allow(missing_docs)]

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    future::Future,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Mutex,
    time::Duration,
};

use holdfast_pki::{Authority, Identity, Role};
use holdfast_proto::v1::{
    AddControllerRequest, CreateHostRequest, HostSpec, ListAuditRequest, ListControllersRequest,
    ListHostsRequest, Member, RemoveControllerRequest, TransferLeadershipRequest,
    audit_service_client::AuditServiceClient, controller_service_client::ControllerServiceClient,
    host_service_client::HostServiceClient,
};
use tempfile::TempDir;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

/// Long enough for a loaded machine; what needs it has failed. Below the limit of the whole test, so that it says what failed.
const LIMIT: Duration = Duration::from_secs(90);
const MEMBERS: usize = 5;

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Controllers ctl-1 to ctl-5, of which those run that were started.
struct Cluster {
    directory: TempDir,
    ports: Vec<u16>,
    processes: Vec<Option<Process>>,
    channels: Mutex<HashMap<usize, Channel>>,
}

/// What the controllers said, if the test failed.
impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for id in 1..=MEMBERS {
                eprintln!("--- ctl-{id}\n{}", std::fs::read_to_string(self.log(id)).unwrap_or_default());
            }
        }
    }
}

impl Cluster {
    fn new() -> Self {
        holdfast_pki::install_crypto_provider();
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::create(&directory.path().join("ca")).unwrap();
        for id in 1..=MEMBERS {
            let name = format!("ctl-{id}");
            authority.issue((Role::Controller, &name), &directory.path().join(&name)).unwrap();
        }
        authority.issue((Role::Admin, "alice"), &directory.path().join("alice")).unwrap();
        let taken: Vec<_> =
            (0..MEMBERS).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports = taken.iter().map(|port| port.local_addr().unwrap().port()).collect();
        Self { directory, ports, processes: (0..MEMBERS).map(|_| None).collect(), channels: Mutex::default() }
    }

    fn address(&self, id: usize) -> String {
        format!("127.0.0.1:{}", self.ports[id - 1])
    }

    /// Starts controller `id`, to found a cluster of `founders` or, with none, to wait.
    fn start(&mut self, id: usize, founders: &[usize]) {
        let name = format!("ctl-{id}");
        let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast-controller"));
        command
            .args(["--id", &id.to_string(), "--name", &name, "--listen", &self.address(id)])
            .arg("--dir")
            .arg(self.directory.path().join(format!("state-{id}")))
            .arg("--tls")
            .arg(self.directory.path().join(&name))
            .stdin(Stdio::null())
            .stderr(File::options().create(true).append(true).open(self.log(id)).unwrap());
        if founders.is_empty() {
            command.arg("--join");
        } else {
            let all: Vec<_> =
                founders.iter().map(|id| format!("{id}=ctl-{id}={}", self.address(*id))).collect();
            command.args(["--bootstrap", &all.join(",")]);
        }
        self.processes[id - 1] = Some(Process(command.spawn().unwrap()));
    }

    fn log(&self, id: usize) -> PathBuf {
        self.directory.path().join(format!("log-{id}"))
    }

    fn kill(&mut self, id: usize) {
        self.processes[id - 1] = None;
    }

    fn lose_disk(&mut self, id: usize) {
        self.kill(id);
        std::fs::remove_dir_all(self.directory.path().join(format!("state-{id}"))).unwrap();
    }

    /// Kept, since a handshake costs more than a call. It comes up again when the controller does.
    fn channel(&self, id: usize) -> Channel {
        self.channels.lock().unwrap().entry(id).or_insert_with(|| self.connect(id)).clone()
    }

    fn connect(&self, id: usize) -> Channel {
        let identity = Identity::load(&self.directory.path().join("alice")).unwrap();
        Endpoint::from_shared(format!("https://{}", self.address(id)))
            .unwrap()
            .tls_config(identity.tonic_client(Role::Controller, None).unwrap())
            .unwrap()
            .timeout(LIMIT)
            .connect_lazy()
    }

    fn controllers(&self, through: usize) -> ControllerServiceClient<Channel> {
        ControllerServiceClient::new(self.channel(through))
    }

    async fn list(&self, through: usize) -> Vec<Member> {
        self.until("the list", || async {
            let answer = self.controllers(through).list_controllers(ListControllersRequest {}).await?;
            Ok::<_, Status>(answer.into_inner().members)
        })
        .await
    }

    async fn leader(&self, through: usize) -> usize {
        self.until("a leader", || async {
            let list = self.list(through).await;
            list.iter().find(|m| m.leader).map(|m| usize::try_from(m.id).unwrap()).ok_or("none")
        })
        .await
    }

    async fn add(&self, through: usize, id: usize) -> Result<(), Status> {
        let request = addition(id, self.address(id));
        self.settled(|| async { self.controllers(through).add_controller(request.clone()).await }).await
    }

    async fn remove(&self, through: usize, id: usize) -> Result<(), Status> {
        let request = RemoveControllerRequest { name: format!("ctl-{id}"), ..Default::default() };
        self.settled(|| async { self.controllers(through).remove_controller(request.clone()).await }).await
    }

    /// Asks again while leadership moves, as a person would: on a loaded machine it moves by itself. What an attempt whose outcome
    /// is not known has done is done.
    async fn settled<T, F: Future<Output = Result<T, Status>>>(
        &self,
        attempt: impl Fn() -> F,
    ) -> Result<(), Status> {
        let unclear = std::cell::Cell::new(false);
        self.until("a leader that stays", || async {
            match attempt().await {
                Err(status) if status.code() == Code::Unavailable && !is_not_member(&status) => Err(status),
                Err(status) if status.code() == Code::DeadlineExceeded => {
                    unclear.set(true);
                    Err(status)
                }
                Err(status)
                    if unclear.get() && matches!(status.code(), Code::AlreadyExists | Code::NotFound) =>
                {
                    Ok(Ok(()))
                }
                other => Ok(other.map(|_| ())),
            }
        })
        .await
    }

    /// The members as the audit tells of them, from the founders on: true if they voted at the end of it.
    async fn audited(&self, through: usize, founders: &[usize]) -> BTreeMap<String, bool> {
        let request = ListAuditRequest { subject: "controller/".to_owned(), ..Default::default() };
        let audit = self
            .until("the audit", || async {
                AuditServiceClient::new(self.channel(through)).list_audit(request.clone()).await
            })
            .await;
        let mut members: BTreeMap<_, _> =
            founders.iter().map(|id| (format!("controller/ctl-{id}"), true)).collect();
        for record in audit.into_inner().records {
            assert_eq!((record.name.as_str(), record.outcome.as_str()), ("alice", "done"), "{record:?}");
            let before = members.get(&record.subject).copied();
            let allowed = match record.action.as_str() {
                "controller.admit" => before.is_none() && members.insert(record.subject, false).is_none(),
                "controller.add" => before == Some(false) && members.insert(record.subject, true).is_some(),
                "controller.withdraw" => before == Some(false) && members.remove(&record.subject).is_some(),
                "controller.remove" => members.remove(&record.subject).is_some(),
                "controller.transfer" => before == Some(true),
                other => panic!("{other}"),
            };
            assert!(allowed, "{} of one that was {before:?}", record.action);
        }
        members
    }

    /// Makes host `n`; idempotent.
    async fn write(&self, through: usize, n: u32) -> Result<(), Status> {
        let spec = HostSpec { initiators: vec![format!("iqn.2026-11.example:{n}")], ..Default::default() };
        let request = CreateHostRequest {
            request_id: format!("r{n}"),
            name: format!("host-{n}"),
            spec: Some(spec),
            ..Default::default()
        };
        HostServiceClient::new(self.channel(through)).create_host(request).await.map(|_| ())
    }

    async fn hosts(&self, through: usize) -> usize {
        self.until("the hosts", || async {
            let mut client = HostServiceClient::new(self.channel(through));
            let answer = client.list_hosts(ListHostsRequest::default()).await?;
            Ok::<_, Status>(answer.into_inner().hosts.len())
        })
        .await
    }

    /// Tries until it succeeds. What is tried waits itself: for an answer, or for an election.
    async fn until<T, E: std::fmt::Debug, F: Future<Output = Result<T, E>>>(
        &self,
        what: &str,
        mut attempt: impl FnMut() -> F,
    ) -> T {
        let mut last = None;
        let tried = async {
            loop {
                match attempt().await {
                    Ok(done) => return done,
                    Err(error) => last = Some(error),
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        match tokio::time::timeout(LIMIT, tried).await {
            Ok(done) => done,
            Err(_) => panic!("{what}: {last:?}"),
        }
    }
}

fn addition(id: usize, address: String) -> AddControllerRequest {
    AddControllerRequest { name: format!("ctl-{id}"), id: id as u64, address, ..Default::default() }
}

/// As [`Cluster::audited`] tells it.
fn told(list: &[Member]) -> BTreeMap<String, bool> {
    list.iter().map(|member| (format!("controller/{}", member.name), member.voter)).collect()
}

fn is_not_member(status: &Status) -> bool {
    status.message().contains("is not a member")
}

fn voters(list: &[Member]) -> Vec<u64> {
    list.iter().filter(|m| m.voter).map(|m| m.id).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_becomes_three_and_five_and_one_again() {
    let mut cluster = Cluster::new();
    cluster.start(1, &[1]);
    cluster.until("first write", || cluster.write(1, 1)).await;

    // It waits, and says so.
    cluster.start(2, &[]);
    let waits = cluster
        .until("a member that waits", || async {
            match cluster.write(2, 9).await {
                Err(status) if is_not_member(&status) => Ok(status),
                other => Err(other),
            }
        })
        .await;
    assert_eq!(waits.code(), Code::Unavailable);
    // One that is not there, and one that says it is another.
    let refused = cluster.add(1, 3).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("ctl-3 does not answer at"), "{}", refused.message());
    let wrong_id = AddControllerRequest {
        name: "ctl-2".to_owned(),
        id: 7,
        address: cluster.address(2),
        ..Default::default()
    };
    let refused = cluster
        .settled(|| async { cluster.controllers(1).add_controller(wrong_id.clone()).await })
        .await
        .unwrap_err();
    assert!(refused.message().contains("has id 2, not 7"), "{}", refused.message());

    for id in 2..=5 {
        if id > 2 {
            cluster.start(id, &[]);
        }
        cluster
            .until("added", || async {
                match cluster.add(1, id).await {
                    // Its process is just starting.
                    Err(status) if status.message().contains("does not answer") => Err(status),
                    other => Ok(other),
                }
            })
            .await
            .unwrap();
    }
    assert_eq!(voters(&cluster.list(3).await), [1, 2, 3, 4, 5]);
    assert_eq!(cluster.add(2, 3).await.unwrap_err().code(), Code::AlreadyExists);
    cluster.until("written", || cluster.write(5, 2)).await;
    assert_eq!(cluster.hosts(4).await, 2);

    // To a chosen one; then it removes itself through its successor.
    let request = TransferLeadershipRequest { name: "ctl-4".to_owned(), ..Default::default() };
    cluster
        .settled(|| async { cluster.controllers(1).transfer_leadership(request.clone()).await })
        .await
        .unwrap();
    cluster.remove(1, 4).await.unwrap();
    assert_eq!(voters(&cluster.list(1).await), [1, 2, 3, 5]);
    // A removed member stops serving.
    let refused = cluster.write(4, 9).await.unwrap_err();
    assert!(is_not_member(&refused), "{}", refused.message());

    // One that is down while it is removed learns of it when it is back. Until then it may still pass a call on, and is refused:
    // it speaks for nobody any more.
    cluster.kill(5);
    cluster.until("removed", || cluster.remove(1, 5)).await;
    cluster.start(5, &[]);
    cluster
        .until("ctl-5 to learn that it was removed", || async {
            match cluster.write(5, 9).await {
                Err(status) if is_not_member(&status) => Ok(()),
                other => Err(other),
            }
        })
        .await;

    cluster.until("removed", || cluster.remove(1, 3)).await;
    cluster.until("removed", || cluster.remove(1, 2)).await;
    assert_eq!(voters(&cluster.list(1).await), [1]);
    let last = cluster.remove(1, 1).await.unwrap_err();
    assert_eq!(last.message(), "controller ctl-1 is the last one; a cluster cannot be without");
    assert_eq!(cluster.remove(1, 2).await.unwrap_err().code(), Code::NotFound);
    // A removed one can come back, with the store that it had.
    cluster.add(1, 2).await.unwrap();
    cluster.until("written", || cluster.write(2, 3)).await;
    assert_eq!(cluster.hosts(2).await, 3);
    assert_eq!(cluster.audited(1, &[1]).await, told(&cluster.list(1).await));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_lost_its_disk_votes_again_only_once_it_was_removed_and_added() {
    let mut cluster = Cluster::new();
    (1..=3).for_each(|id| cluster.start(id, &[1, 2, 3]));
    cluster.until("first write", || cluster.write(1, 1)).await;
    let before = cluster.list(1).await;
    assert!(before.iter().all(|m| m.store_id.len() == 32 && m.store_id != "0".repeat(32)));
    cluster.lose_disk(3);
    cluster.start(3, &[1, 2, 3]);
    cluster.until("two of three go on", || cluster.write(1, 2)).await;
    // With one more gone there is no quorum: the forgetful one counts for nothing.
    cluster.kill(2);
    cluster
        .until("no quorum", || async {
            match cluster.write(1, 3).await {
                Err(status) if status.code() == Code::Unavailable => Ok(()),
                other => Err(other),
            }
        })
        .await;
    // Nor may it be counted on to remove another.
    cluster.start(2, &[1, 2, 3]);
    cluster.until("two of three again", || cluster.write(1, 4)).await;
    let refused = cluster
        .until("a refusal", || async {
            match cluster.remove(1, 2).await {
                Err(status) if status.message().contains("lose the quorum") => Ok(status),
                other => Err(other),
            }
        })
        .await;
    assert!(refused.message().contains("silent: ctl-3"), "{}", refused.message());

    cluster.until("removed", || cluster.remove(1, 3)).await;
    cluster.until("added again", || cluster.add(1, 3)).await;
    assert_eq!(cluster.audited(1, &[1, 2, 3]).await, told(&cluster.list(1).await));
    let after = cluster.list(1).await;
    assert_eq!(voters(&after), [1, 2, 3]);
    assert_ne!(after[2].store_id, before[2].store_id);
    // Now it counts.
    cluster.kill(2);
    cluster.until("with the one that came back", || cluster.write(1, 5)).await;
    cluster.until("through it", || cluster.write(3, 6)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_its_leader_did_not_survive_can_be_asked_for_again() {
    let mut cluster = Cluster::new();
    (1..=3).for_each(|id| cluster.start(id, &[1, 2, 3]));
    cluster.until("first write", || cluster.write(1, 1)).await;
    for (round, new) in [4, 5].into_iter().enumerate() {
        cluster.start(new, &[]);
        let leader = cluster.leader(1).await;
        let through = 1 + leader % 3;
        let mut adding = cluster.controllers(through);
        let request = addition(new, cluster.address(new));
        let asked = tokio::spawn(async move { adding.add_controller(request).await });
        if round == 0 {
            // As soon as it is a learner.
            let known = || async {
                let list = cluster.list(through).await;
                let done = asked.is_finished() || list.iter().any(|m| m.id == new as u64);
                done.then_some(()).ok_or("not yet")
            };
            cluster.until("the new one to be known", known).await;
        }
        cluster.kill(leader);
        // Done or not: asked again, it is done, and once.
        let _ = asked.await.unwrap();
        cluster
            .until("added in the end", || async {
                match cluster.add(through, new).await {
                    Err(status) if status.code() == Code::AlreadyExists => Ok(()),
                    other => other,
                }
            })
            .await;
        // Whoever led at what moment: no change is without its record, and no record without its change.
        let list = cluster.list(through).await;
        assert!(voters(&list).contains(&(new as u64)));
        assert_eq!(cluster.audited(through, &[1, 2, 3]).await, told(&list));
        // One that was added may lead by now.
        let founders: &[usize] = if leader <= 3 { &[1, 2, 3] } else { &[] };
        cluster.start(leader, founders);
        cluster
            .until("the old leader to be back", || async {
                let list = cluster.list(leader).await;
                list.iter().all(|m| m.live && m.voter).then_some(()).ok_or(list)
            })
            .await;
    }
    let list = cluster.list(4).await;
    assert_eq!(voters(&list), [1, 2, 3, 4, 5]);
    cluster.until("a write through the newest", || cluster.write(5, 2)).await;
    assert_eq!(cluster.hosts(1).await, 2);
}
