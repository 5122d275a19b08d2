//! Three members in one process: a runtime each, real stores, real TLS on loopback.
//!
//! A kill is the end of a member's runtime: connections, tasks and timers go at once, as with a process.

use std::{future::Future, path::PathBuf, sync::Arc, time::Duration};

use futures::future::select_all;
use holdfast_pki::{Authority, Identity, Role};
use holdfast_proto::{
    raft::{Frame, raft_client::RaftClient},
    state as records, v1,
    v1::{cluster_service_client::ClusterServiceClient, cluster_service_server as cluster_service},
};
use openraft::async_runtime::WatchReceiver as _;
use tempfile::TempDir;
use tokio::{
    runtime::{Builder, Runtime},
    sync::oneshot,
    task::JoinHandle,
};
use tonic::{
    Code, Request, Response, Status,
    metadata::MetadataValue,
    service::RoutesBuilder,
    transport::{Channel, Endpoint},
};

use super::{
    Handle, Member, RunningMember, StoreError, WriteError, Written, alone, member::MemberConfig, options,
    options::Compaction,
};
use crate::{
    server::{self, Caller},
    state::{Body, Command, StateMachine},
};

/// Long enough for a loaded machine; a test that needs it has failed.
const LIMIT: Duration = Duration::from_secs(60);

struct Cluster {
    directory: TempDir,
    authority: Authority,
    members: Vec<(u64, Member)>,
    compaction: Compaction,
    running: Vec<Option<Running>>,
}

struct Running {
    runtime: Runtime,
    handle: Handle,
    stop: oneshot::Sender<()>,
    served: JoinHandle<anyhow::Result<()>>,
}

/// Answers with what the service sees of its caller.
struct WhoAmI(String);

#[tonic::async_trait]
impl cluster_service::ClusterService for WhoAmI {
    async fn get_cluster(
        &self,
        request: Request<v1::GetClusterRequest>,
    ) -> Result<Response<v1::Cluster>, Status> {
        let caller = request.extensions().get::<Caller>().cloned();
        let caller = caller.ok_or_else(|| Status::internal("no caller"))?;
        Ok(Response::new(v1::Cluster {
            id: format!("{} {}", caller.role, caller.name),
            version: self.0.clone(),
            ..Default::default()
        }))
    }

    async fn set_cluster_options(
        &self,
        _: Request<v1::SetClusterOptionsRequest>,
    ) -> Result<Response<v1::Cluster>, Status> {
        Err(Status::unimplemented("only says who asks"))
    }

    async fn rebalance_cluster(
        &self,
        _: Request<v1::RebalanceClusterRequest>,
    ) -> Result<Response<v1::Cluster>, Status> {
        Err(Status::unimplemented("only says who asks"))
    }
}

impl Cluster {
    fn new(compaction: Compaction) -> Self {
        holdfast_pki::install_crypto_provider();
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::create(&directory.path().join("ca")).unwrap();
        let mut members = Vec::new();
        // All ports are taken at once, so that no two are the same.
        let taken: Vec<_> = (0..3).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        for (id, port) in (1..).zip(&taken) {
            let name = format!("ctl-{id}");
            authority.issue((Role::Controller, &name), &directory.path().join(&name)).unwrap();
            members.push((id, Member::new(name, port.local_addr().unwrap().to_string())));
        }
        drop(taken);
        let mut cluster =
            Self { directory, authority, members, compaction, running: (0..3).map(|_| None).collect() };
        (0..3).for_each(|at| cluster.start(at));
        run(async {
            for handle in cluster.handles() {
                let founded = |_: &u64| handle.read(|machine| machine.cluster().is_some());
                handle.watch_applied().wait_for(founded).await.unwrap();
            }
        });
        cluster
    }

    fn folder(&self, at: usize) -> PathBuf {
        self.directory.path().join(format!("state-{at}"))
    }

    fn start(&mut self, at: usize) {
        assert!(self.running[at].is_none());
        let (id, member) = self.members[at].clone();
        let identity = Arc::new(Identity::load(&self.directory.path().join(&member.name)).unwrap());
        let config = MemberConfig {
            id,
            directory: self.folder(at),
            identity: Arc::clone(&identity),
            bootstrap: self.members.clone(),
            target_iqn: "iqn.2026-11.internal.holdfast:test".to_owned(),
            compaction: self.compaction,
        };
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (stop, stopped) = oneshot::channel();
        let (handle, served) = runtime.block_on(async {
            let listener = server::bind(member.address.parse().unwrap()).await.unwrap();
            let running = RunningMember::start(config).await.unwrap();
            let handle = running.handle();
            let services = move |routes: &mut RoutesBuilder| {
                routes.add_service(cluster_service::ClusterServiceServer::new(WhoAmI(member.name)));
            };
            let stopped = async {
                let _ = stopped.await;
            };
            (handle, tokio::spawn(server::serve(listener, identity, running, services, stopped)))
        });
        self.running[at] = Some(Running { runtime, handle, stop, served });
    }

    /// As kill -9.
    fn kill(&mut self, at: usize) {
        let Running { runtime, handle, .. } = self.running[at].take().unwrap();
        drop(handle);
        runtime.shutdown_timeout(LIMIT);
    }

    /// As SIGTERM.
    fn stop(&mut self, at: usize) {
        let Running { runtime, handle, stop, served } = self.running[at].take().unwrap();
        drop(handle);
        stop.send(()).unwrap();
        runtime.block_on(served).unwrap().unwrap();
        runtime.shutdown_timeout(LIMIT);
    }

    fn handles(&self) -> Vec<Handle> {
        self.running.iter().flatten().map(|running| running.handle.clone()).collect()
    }

    fn handle(&self, at: usize) -> Handle {
        self.running[at].as_ref().unwrap().handle.clone()
    }

    /// Position of a member that leads and has confirmed it with a quorum.
    async fn leader(&self) -> usize {
        loop {
            let mut changes = Vec::new();
            for (at, running) in self.running.iter().enumerate() {
                let Some(running) = running else { continue };
                let mut leadership = running.handle.leadership();
                if leadership.borrow_and_update().am_leader
                    && running.handle.ensure_linearizable().await.is_ok()
                {
                    return at;
                }
                changes.push(Box::pin(async move { leadership.changed().await.is_ok() }));
            }
            // One that leads and is not confirmed yet changes nothing that could be waited for.
            let _ = tokio::time::timeout(Duration::from_millis(100), select_all(changes)).await;
        }
    }

    /// Writes through whoever leads; the command is idempotent.
    async fn write(&self, command: &Command) -> Written {
        loop {
            let leader = self.leader().await;
            match self.handle(leader).write(command).await {
                Ok(written) => return written,
                Err(WriteError::Stopped(reason)) => panic!("{reason}"),
                Err(_) => {}
            }
        }
    }

    async fn write_hosts(&self, numbers: impl Iterator<Item = u64>) -> u64 {
        let mut last = 0;
        for number in numbers {
            let written = self.write(&create_host(number)).await;
            written.response.unwrap();
            last = written.index;
        }
        last
    }

    /// Waits until all running members have applied up to `index`, and compares their states.
    async fn converge(&self, index: u64) {
        let mut states: Vec<StateMachine> = Vec::new();
        for handle in self.handles() {
            handle.watch_applied().wait_for(|applied| *applied >= index).await.unwrap();
            states.push(handle.read(Clone::clone));
        }
        assert!(states.windows(2).all(|pair| pair[0] == pair[1]), "members differ");
    }

    fn channel(&self, at: usize, role: Role, name: &str) -> Channel {
        let folder = self.directory.path().join(format!("{role}-{name}"));
        if !folder.exists() {
            self.authority.issue((role, name), &folder).unwrap();
        }
        let identity = Identity::load(&folder).unwrap();
        let member = &self.members[at].1;
        Endpoint::from_shared(format!("https://{}", member.address))
            .unwrap()
            .tls_config(identity.tonic_client(Role::Controller, Some(&member.name)).unwrap())
            .unwrap()
            .connect_lazy()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for running in self.running.iter_mut().filter_map(Option::take) {
            drop(running.handle);
            running.runtime.shutdown_timeout(LIMIT);
        }
    }
}

fn create_host(number: u64) -> Command {
    let host = records::Host {
        name: format!("host-{number}"),
        initiators: vec![format!("iqn.2026-11.example:{number}")],
        chap: None,
    };
    let request = records::ClientRequest { id: format!("r{number}"), digest: vec![number as u8; 32] };
    Command::new(number, Body::CreateHost(records::CreateHost { request: Some(request), host: Some(host) }))
}

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(LIMIT, test).await }).expect("in time")
}

fn hosts(handle: &Handle) -> usize {
    handle.read(|machine| machine.hosts().count())
}

#[test]
fn writing_goes_on_when_the_leader_dies_and_it_catches_up_by_log() {
    let mut cluster = Cluster::new(Compaction::default());
    let (dead, term) = run(async {
        let index = cluster.write_hosts(1..20).await;
        cluster.converge(index).await;
        let leader = cluster.leader().await;
        (leader, cluster.handle(leader).metrics().term)
    });
    cluster.kill(dead);
    run(async {
        let index = cluster.write_hosts(20..40).await;
        cluster.converge(index).await;
    });
    cluster.start(dead);
    run(async {
        // The vote that it led by was on disk.
        let vote = cluster.handle(dead).raft.with_raft_state(|state| *state.vote_ref()).await.unwrap();
        assert!(vote.leader_id.term >= term);
        let index = cluster.write_hosts(40..42).await;
        cluster.converge(index).await;
        assert_eq!(hosts(&cluster.handle(dead)), 41);
        assert!(cluster.handle(dead).raft.metrics().borrow_watched().snapshot.is_none());
    });
}

#[test]
fn a_member_that_was_away_long_catches_up_by_snapshot() {
    let mut cluster = Cluster::new(Compaction { snapshot_every: 60, keep: 10 });
    let (away, seen) = run(async {
        let index = cluster.write_hosts(1..10).await;
        cluster.converge(index).await;
        let away = (cluster.leader().await + 1) % 3;
        (away, index)
    });
    cluster.kill(away);
    let index = run(async {
        let index = cluster.write_hosts(10..250).await;
        for handle in cluster.handles() {
            let purged = handle.raft.wait(Some(LIMIT));
            let beyond =
                |purged: Option<_>| purged.is_some_and(|log_id: super::types::LogId| log_id.index > seen);
            purged.metrics(|metrics| beyond(metrics.purged), "the log that it lacks is gone").await.unwrap();
        }
        index
    });
    cluster.start(away);
    run(async {
        let index = cluster.write_hosts(250..252).await.max(index);
        cluster.converge(index).await;
        let handle = cluster.handle(away);
        assert_eq!(hosts(&handle), 251);
        let snapshot = handle.raft.metrics().borrow_watched().snapshot;
        assert!(snapshot.is_some_and(|log_id| log_id.index > seen), "it came by snapshot");
        // Events came along.
        assert_eq!(handle.events_after(0, usize::MAX).unwrap().0.len(), 252);
    });
    // And what was installed is there after another kill.
    cluster.kill(away);
    cluster.start(away);
    run(cluster.converge(index));
}

#[test]
fn without_a_quorum_nothing_is_confirmed() {
    let mut cluster = Cluster::new(Compaction::default());
    let leader = run(async {
        let index = cluster.write_hosts(1..4).await;
        cluster.converge(index).await;
        cluster.leader().await
    });
    let others = [(leader + 1) % 3, (leader + 2) % 3];
    others.iter().for_each(|at| cluster.kill(*at));
    run(async {
        let alone = cluster.handle(leader);
        assert!(alone.ensure_linearizable().await.is_err());
        let mut unknown = 0;
        for number in 4..8 {
            match alone.write(&create_host(number)).await {
                Ok(_) => panic!("confirmed without a quorum"),
                Err(WriteError::Unknown(_)) => unknown += 1,
                Err(WriteError::NoQuorum | WriteError::NotLeader { .. }) => {}
                Err(WriteError::Stopped(reason)) => panic!("{reason}"),
            }
        }
        assert!(unknown <= 1, "after the silence was noticed nothing more is proposed");
        assert_eq!(hosts(&alone), 3);
    });
    cluster.start(others[0]);
    run(async {
        let index = cluster.write_hosts(1..9).await;
        cluster.converge(index).await;
        assert_eq!(hosts(&cluster.handle(leader)), 8);
    });
}

#[test]
fn a_clean_stop_hands_leadership_over_and_the_whole_cluster_restarts() {
    let mut cluster = Cluster::new(Compaction::default());
    let (leader, term) = run(async {
        cluster.write_hosts(1..6).await;
        let leader = cluster.leader().await;
        (leader, cluster.handle(leader).metrics().term)
    });
    let mut successor = cluster.handle((leader + 1) % 3).watch_leader();
    cluster.stop(leader);
    run(async {
        let new = cluster.leader().await;
        assert!(cluster.handle(new).metrics().term > term);
        assert!(successor.borrow_and_update().is_some());
        cluster.write_hosts(6..9).await;
    });
    let others = [(leader + 1) % 3, (leader + 2) % 3];
    others.iter().for_each(|at| cluster.kill(*at));
    drop(successor);
    (0..3).for_each(|at| cluster.start(at));
    run(async {
        let index = cluster.write_hosts(1..10).await;
        cluster.converge(index).await;
        for handle in cluster.handles() {
            assert_eq!(hosts(&handle), 9);
            let founded = handle.events_after(0, usize::MAX).unwrap().0;
            assert_eq!(founded.iter().filter(|event| event.kind == "cluster.created").count(), 1);
        }
    });
}

#[test]
fn one_that_is_left_goes_on_alone_after_agreement() {
    let mut cluster = Cluster::new(Compaction::default());
    let left = run(async {
        let index = cluster.write_hosts(1..6).await;
        cluster.converge(index).await;
        (cluster.leader().await + 1) % 3
    });
    let id = cluster.members[left].0;
    let identity = Identity::load(&cluster.directory.path().join(&cluster.members[left].1.name)).unwrap();
    let own = identity.own().cluster.0;
    let folder = cluster.folder(left);
    // While it runs its store is its own.
    let in_use = run(alone::assess(&folder, own, id));
    assert!(matches!(in_use, Err(alone::AloneError::Store(StoreError::InUse(_)))), "{in_use:?}");
    (0..3).for_each(|at| cluster.kill(at));
    let shown = run(alone::assess(&folder, own, id)).unwrap();
    assert_eq!(shown.given_up.len(), 2);
    assert!(shown.last.1 >= shown.applied && shown.applied > 0);
    let other = run(alone::go_on(&folder, own, id, (shown.last.0, shown.last.1 + 1), 7));
    assert!(matches!(other, Err(alone::AloneError::OtherState(..))), "{other:?}");
    assert_eq!(run(alone::assess(&folder, own, id)).unwrap(), shown);
    assert_eq!(run(alone::go_on(&folder, own, id, shown.last, 7)).unwrap(), shown);
    let again = run(alone::assess(&folder, own, id));
    assert!(matches!(again, Err(alone::AloneError::IsAlone)), "{again:?}");
    cluster.start(left);
    run(async {
        assert_eq!(cluster.leader().await, left);
        cluster.write_hosts(6..9).await;
        let handle = cluster.handle(left);
        assert_eq!(hosts(&handle), 8);
        assert_eq!(handle.metrics().members.len(), 1);
        let audit = handle
            .audit_after((0, 0), usize::MAX, |record| record.action.starts_with("controller."))
            .unwrap()
            .0;
        assert_eq!(audit.iter().map(|r| r.action.as_str()).collect::<Vec<_>>(), ["controller.recover-alone"]);
    });
    cluster.stop(left);
    cluster.start(left);
    run(async {
        assert_eq!(cluster.leader().await, left);
        assert_eq!(hosts(&cluster.handle(left)), 8);
    });
}

#[test]
fn a_founder_that_lost_its_disk_founds_no_second_cluster() {
    let mut cluster = Cluster::new(Compaction::default());
    run(async {
        let index = cluster.write_hosts(1..6).await;
        cluster.converge(index).await;
    });
    (0..3).for_each(|at| cluster.kill(at));
    std::fs::remove_dir_all(cluster.folder(0)).unwrap();
    // Only it and one that knows better: it forgot what it voted for, so the two are no quorum.
    cluster.start(0);
    cluster.start(1);
    run(async {
        let known = cluster.handle(1);
        let until = std::time::Instant::now() + 4 * options::ELECTION_MAX;
        while std::time::Instant::now() < until {
            let confirmed = known.ensure_linearizable().await;
            assert!(confirmed.is_err(), "a quorum with a member that forgot what it voted for");
            tokio::time::sleep(options::HEARTBEAT).await;
        }
    });
    cluster.start(2);
    run(async {
        let index = cluster.write_hosts(6..8).await;
        assert_eq!(cluster.handle(0).applied_index(), 0, "it founds nothing and takes no part");
        cluster.handle(1).watch_applied().wait_for(|applied| *applied >= index).await.unwrap();
        assert_eq!(hosts(&cluster.handle(1)), 7);
    });
}

#[test]
fn a_member_that_lost_its_disk_does_not_bring_the_leader_down() {
    let mut cluster = Cluster::new(Compaction::default());
    let (leader, lost, term) = run(async {
        let index = cluster.write_hosts(1..10).await;
        cluster.converge(index).await;
        let leader = cluster.leader().await;
        (leader, (leader + 1) % 3, cluster.handle(leader).metrics().term)
    });
    cluster.kill(lost);
    std::fs::remove_dir_all(cluster.folder(lost)).unwrap();
    cluster.start(lost);
    run(async {
        // Several heartbeats long: each write is confirmed by the third member.
        cluster.write_hosts(10..100).await;
        let alive =
            cluster.handle(leader).raft.with_raft_state(|state| state.vote_ref().leader_id.term).await;
        assert!(alive.expect("the leader runs") >= term);
        assert_eq!(cluster.handle(lost).applied_index(), 0);
    });
    // Neither does another leader take it back.
    cluster.kill(leader);
    cluster.start(leader);
    run(async {
        cluster.write_hosts(100..102).await;
        assert_eq!(cluster.handle(lost).applied_index(), 0);
    });
}

#[test]
fn commits_are_followed_without_gap_on_a_member_that_does_not_lead() {
    let cluster = Cluster::new(Compaction::default());
    run(async {
        let first = cluster.write_hosts(1..3).await;
        cluster.converge(first).await;
        let follower = (cluster.leader().await + 1) % 3;
        let (seen, mut commits) =
            cluster.handle(follower).read_and_follow(|machine, _| machine.hosts().count());
        assert_eq!(seen, 2);
        let last = cluster.write_hosts(3..30).await;
        let mut followed = Vec::new();
        while followed.last() != Some(&last) {
            let commit = commits.next().await.unwrap();
            followed.push(commit.index);
        }
        assert_eq!(followed.len(), 27);
        assert!(followed.is_sorted());
    });
}

#[test]
fn roles_are_checked_and_management_reaches_the_leader_with_its_caller() {
    let cluster = Cluster::new(Compaction::default());
    run(async {
        let index = cluster.write_hosts(1..2).await;
        cluster.converge(index).await;
        let leader = cluster.leader().await;
        let leader_name = cluster.members[leader].1.name.clone();
        for at in 0..3 {
            let mut client = ClusterServiceClient::new(cluster.channel(at, Role::Viewer, "eve"));
            let mut request = Request::new(v1::GetClusterRequest {});
            // What a caller claims is of no effect.
            request.metadata_mut().insert("holdfast-caller-role", "admin".parse().unwrap());
            request.metadata_mut().insert("holdfast-caller-name", "root".parse().unwrap());
            let seen = client.get_cluster(request).await.unwrap().into_inner();
            assert_eq!((seen.id.as_str(), &seen.version), ("viewer eve", &leader_name));
        }
        let mut node = ClusterServiceClient::new(cluster.channel(leader, Role::Node, "node-1"));
        let refused = node.get_cluster(v1::GetClusterRequest {}).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        for role in [Role::Node, Role::Admin] {
            let mut raft = RaftClient::new(cluster.channel(leader, role, "mallory"));
            let refused = raft.vote(Frame::default()).await.unwrap_err();
            assert_eq!(refused.code(), Code::PermissionDenied);
        }
        // A controller that is no member (any more) speaks for nobody.
        let mut removed = ClusterServiceClient::new(cluster.channel(leader, Role::Controller, "ctl-9"));
        let mut request = Request::new(v1::GetClusterRequest {});
        request.metadata_mut().insert("holdfast-caller-role", "admin".parse().unwrap());
        request.metadata_mut().insert("holdfast-caller-name", "root".parse().unwrap());
        let refused = removed.get_cluster(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        assert!(refused.message().contains("controller ctl-9 is not a member"), "{}", refused.message());
        // A frame of no known format gets an error, also inside a stream.
        let mut raft = RaftClient::new(cluster.channel(leader, Role::Controller, "ctl-9"));
        // Neither does a call that expects another store than the member has.
        assert_eq!(raft.vote(Frame::default()).await.unwrap_err().code(), Code::FailedPrecondition);
        let store: MetadataValue<_> = cluster.handle(leader).store_id().to_string().parse().unwrap();
        let mut vote = Request::new(Frame::default());
        vote.metadata_mut().insert("holdfast-store", store.clone());
        assert_eq!(raft.vote(vote).await.unwrap_err().code(), Code::InvalidArgument);
        let mut append = Request::new(futures::stream::iter([Frame::default()]));
        append.metadata_mut().insert("holdfast-store", store);
        let mut answers = raft.append(append).await.unwrap().into_inner();
        assert_eq!(answers.message().await.unwrap_err().code(), Code::InvalidArgument);
    });
}
