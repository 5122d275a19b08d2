//! A controller's leader dies under a data node: leases, ownership and reservations go on with the next one.
//!
//! Three members in one process, a runtime each: ending a runtime is what kill -9 is to a process.

#![allow(missing_docs)]

mod common;

use std::sync::Arc;

use common::{Node, hello, in_time, nodes, reservations, volumes};
use holdfast_controller::{
    api,
    lease::Manager,
    raft::{Handle, Member, RunningMember, member::MemberConfig, options::Compaction},
    server,
};
use holdfast_pki::{Authority, Identity, Role};
use holdfast_proto::{
    node::{ProposeReservationRequest, node_agent_client::NodeAgentClient},
    state::NexusName,
    v1::{
        CordonNodeRequest, CreateVolumeRequest, UncordonNodeRequest, VolumeSpec,
        node_service_client::NodeServiceClient, volume_service_client::VolumeServiceClient,
    },
};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use tonic::{
    Code, Status,
    service::RoutesBuilder,
    transport::{Channel, Endpoint},
};

struct Running {
    runtime: Runtime,
    handle: Handle,
}

struct Trio {
    directory: TempDir,
    authority: Authority,
    members: Vec<(u64, Member)>,
    running: Vec<Option<Running>>,
}

impl Trio {
    fn start() -> Trio {
        holdfast_pki::install_crypto_provider();
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::create(&directory.path().join("ca")).unwrap();
        let taken: Vec<_> = (0..3).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let members: Vec<(u64, Member)> = (1..)
            .zip(&taken)
            .map(|(id, port)| {
                let member = Member::new(format!("ctl-{id}"), port.local_addr().unwrap().to_string());
                (id, member)
            })
            .collect();
        drop(taken);
        let mut trio = Trio { directory, authority, members, running: Vec::new() };
        trio.running = (0..3).map(|at| Some(trio.member(at))).collect();
        trio
    }

    fn member(&self, at: usize) -> Running {
        let (id, member) = self.members[at].clone();
        let folder = self.directory.path().join(&member.name);
        self.authority.issue((Role::Controller, &member.name), &folder).unwrap();
        let identity = Arc::new(Identity::load(&folder).unwrap());
        let config = MemberConfig {
            id,
            directory: folder.join("state"),
            identity: Arc::clone(&identity),
            bootstrap: self.members.clone(),
            target_iqn: "iqn.2026-11.internal.holdfast:test".to_owned(),
            compaction: Compaction::default(),
        };
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let handle = runtime.block_on(async {
            let listener = server::bind(member.address.parse().unwrap()).await.unwrap();
            let running = RunningMember::start(config).await.unwrap();
            let handle = running.handle();
            let leases = Manager::new(handle.clone());
            tokio::spawn(leases.clone().run());
            let (raft, sealing) = (handle.clone(), Arc::clone(&identity));
            let services = move |routes: &mut RoutesBuilder| api::install(routes, raft, leases, sealing);
            tokio::spawn(server::serve(listener, identity, running, services, std::future::pending()));
            handle
        });
        Running { runtime, handle }
    }

    fn kill(&mut self, at: usize) {
        let Running { runtime, handle } = self.running[at].take().unwrap();
        drop(handle);
        runtime.shutdown_timeout(common::LIMIT);
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

    fn agent(&self, at: usize) -> NodeAgentClient<Channel> {
        NodeAgentClient::new(self.channel(at, Role::Node, "node-1"))
    }

    /// A session of node-1 with whoever leads, found as a data node finds it: ask any, follow the hint.
    async fn session(&self, applied_index: u64) -> (usize, Node) {
        let find = async {
            loop {
                for at in (0..3).filter(|at| self.running[*at].is_some()) {
                    match Node::begin(self.agent(at), hello(1, 1, applied_index)).await {
                        Ok(node) => return (at, node),
                        Err(status) => self.check_refusal(&status),
                    }
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        in_time("session with the leader", find).await
    }

    /// A member that does not lead says so, and names the leader when it knows it.
    fn check_refusal(&self, status: &Status) {
        match status.code() {
            Code::FailedPrecondition => {
                let leader = status.metadata().get("holdfast-leader").expect("the leader is named");
                assert!(
                    self.members.iter().any(|(_, member)| member.address.as_bytes() == leader.as_bytes())
                );
            }
            Code::Unavailable | Code::DeadlineExceeded => {}
            _ => panic!("{status}"),
        }
    }
}

fn run<T>(test: impl Future<Output = T>) -> T {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap().block_on(test)
}

#[test]
fn reservations_and_leases_go_on_when_the_leader_dies() {
    let mut trio = Trio::start();
    let (leader, stood, request, first) = run(async {
        let (leader, mut node) = trio.session(0).await;
        node.become_live().await;
        // Through any member: it passes the call on.
        let any = (leader + 1) % 3;
        let spec = Some(VolumeSpec { size_bytes: 1 << 20, ..Default::default() });
        let create = CreateVolumeRequest { request_id: "v".to_owned(), name: "db1".to_owned(), spec };
        VolumeServiceClient::new(trio.channel(any, Role::Admin, "admin"))
            .create_volume(create)
            .await
            .unwrap();
        let commit = node.install_until(|c| volumes(&c.changes).next().is_some()).await;
        let volume = volumes(&commit.changes).next().unwrap();
        let id = holdfast_scsi::transport_id::TransportId::iscsi("iqn.2026-11.x:host", [1; 6]).unwrap();
        let mut parameter_list = vec![0; 24];
        parameter_list[15] = 7;
        let request = ProposeReservationRequest {
            proposal_id: vec![1; 16],
            volume_id: volume.id.clone(),
            epoch: volume.epoch,
            expected_version: 0,
            nexus: Some(NexusName { transport_id: id.as_bytes().to_vec(), relative_port: 1 }),
            cdb: vec![0x5f, 0, 0, 0, 0, 0, 0, 0, 24, 0],
            parameter_list,
            ..Default::default()
        };
        let mut agent = trio.agent(leader);
        let asked = request.clone();
        let proposal = tokio::spawn(async move { agent.propose_reservation(asked).await });
        let commit = node.install_until(|c| reservations(&c.changes).next().is_some()).await;
        let first = in_time("outcome", proposal).await.unwrap().unwrap().into_inner().outcome.unwrap();
        assert_eq!((first.status, first.version), (0, commit.index));
        (leader, node.applied, request, first)
    });
    trio.kill(leader);
    run(async {
        let (next, mut node) = trio.session(stood).await;
        assert_ne!(next, leader);
        assert!(node.welcome.resumes, "a member that was there all along has the commits");
        assert_eq!(node.incarnation(), 1);
        // The new leader grants as soon as its lease term is in force.
        node.renew().await;
        // An unknown outcome is asked for by its id.
        let mut agent = trio.agent(next);
        let again = agent.propose_reservation(request.clone());
        let again = in_time("outcome again", again).await.unwrap().into_inner().outcome.unwrap();
        assert_eq!(again, first);
        // The node installs what the new leader commits, and a further change passes its barrier.
        let mut agent = trio.agent(next);
        let mut change = request;
        change.proposal_id = vec![2; 16];
        change.expected_version = first.version;
        change.parameter_list[7] = 7;
        change.parameter_list[15] = 8;
        let proposal = tokio::spawn(async move { agent.propose_reservation(change).await });
        let commit = node.install_until(|c| reservations(&c.changes).next().is_some()).await;
        let outcome = in_time("next outcome", proposal).await.unwrap().unwrap().into_inner().outcome.unwrap();
        assert_eq!((outcome.status, outcome.version), (0, commit.index));
        // It was never lost, and nobody took its volume.
        let handle = trio.running[next].as_ref().unwrap().handle.clone();
        handle.read(|state| {
            let volume = state.volume_by_name("db1").unwrap();
            assert_eq!(volume.config.owner().unwrap().incarnation.0, 1);
            assert_eq!(volume.config.epoch().number, 2);
        });
        assert!(!node.commits.iter().any(|c| nodes(&c.changes).any(|n| !n.live)));
    });
}

#[test]
fn what_a_dead_leader_has_changed_is_answered_again_and_not_changed_again() {
    let mut trio = Trio::start();
    let create = |name: &str, size_bytes| CreateVolumeRequest {
        request_id: "create".to_owned(),
        name: name.to_owned(),
        spec: Some(VolumeSpec { size_bytes, ..Default::default() }),
    };
    let cordon = || CordonNodeRequest { name: "node-1".to_owned(), request_id: "cordon".to_owned() };
    let (leader, stood, volume, node) = run(async {
        let (leader, mut node) = trio.session(0).await;
        node.become_live().await;
        let any = (leader + 1) % 3;
        let mut volumes = VolumeServiceClient::new(trio.channel(any, Role::Admin, "admin"));
        let volume = volumes.create_volume(create("db1", 1 << 20)).await.unwrap().into_inner();
        let mut nodes = NodeServiceClient::new(trio.channel(any, Role::Admin, "admin"));
        let cordoned = nodes.cordon_node(cordon()).await.unwrap().into_inner();
        assert!(cordoned.spec.as_ref().unwrap().cordoned);
        // Undone since, by another request.
        let undo = UncordonNodeRequest { name: "node-1".to_owned(), request_id: "uncordon".to_owned() };
        assert!(!nodes.uncordon_node(undo).await.unwrap().into_inner().spec.unwrap().cordoned);
        (leader, node.applied, volume, cordoned)
    });
    trio.kill(leader);
    run(async {
        let (next, _node) = trio.session(stood).await;
        let mut volumes = VolumeServiceClient::new(trio.channel(next, Role::Admin, "admin"));
        let again = in_time("the answer again", volumes.create_volume(create("db1", 1 << 20))).await.unwrap();
        assert_eq!(again.into_inner().status.unwrap().id, volume.status.unwrap().id);
        let other = volumes.create_volume(create("db2", 1 << 20)).await.unwrap_err();
        assert_eq!(other.code(), Code::InvalidArgument, "{other}");
        let mut nodes = NodeServiceClient::new(trio.channel(next, Role::Admin, "admin"));
        let again = in_time("the answer again", nodes.cordon_node(cordon())).await.unwrap().into_inner();
        assert_eq!(again.spec, node.spec, "as it was when it was carried out");
        let handle = trio.running[next].as_ref().unwrap().handle.clone();
        handle.read(|state| {
            assert!(!state.node_by_name("node-1").unwrap().cordoned, "and nothing was changed");
            assert_eq!(state.volumes().count(), 1);
        });
    });
}
