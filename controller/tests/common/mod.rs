//! A controller of one member in this process, over real TLS, and a data node as the protocol sees it.

#![allow(dead_code, missing_docs, unreachable_pub)]

use std::{collections::VecDeque, future::Future, sync::Arc, time::Duration};

use holdfast_controller::{
    api,
    lease::Manager,
    raft::{Handle, Member, RunningMember, member::MemberConfig, options::Compaction},
    server,
};
use holdfast_pki::{Authority, Identity, Role};
use holdfast_proto::{
    node::{
        Applied, FromNode, Hello, Inspect, LeaseGrant, Renew, SnapshotPart, ToNode, Welcome, from_node,
        node_agent_client::NodeAgentClient, to_node,
    },
    state::{Change, Commit, Pool, change},
};
use tempfile::TempDir;
use tokio::{sync::mpsc, sync::oneshot, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Status, Streaming,
    service::RoutesBuilder,
    transport::{Channel, Endpoint},
};

/// Long enough for a loaded machine; what needs it has failed.
pub const LIMIT: Duration = Duration::from_secs(60);

pub async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.unwrap_or_else(|_| panic!("{what}: not in time"))
}

pub struct Controller {
    directory: TempDir,
    authority: Authority,
    address: String,
    pub handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    served: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Controller {
    pub async fn start() -> Controller {
        holdfast_pki::install_crypto_provider();
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::create(&directory.path().join("ca")).unwrap();
        let folder = directory.path().join("ctl-1");
        authority.issue((Role::Controller, "ctl-1"), &folder).unwrap();
        let identity = Arc::new(Identity::load(&folder).unwrap());
        let listener = server::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let config = MemberConfig {
            id: 1,
            directory: directory.path().join("state"),
            identity: Arc::clone(&identity),
            bootstrap: vec![(1, Member::new("ctl-1", address.as_str()))],
            target_iqn: "iqn.2026-11.internal.holdfast:test".to_owned(),
            compaction: Compaction::default(),
        };
        let member = RunningMember::start(config).await.unwrap();
        let handle = member.handle();
        let leases = Manager::new(handle.clone());
        tokio::spawn(leases.clone().run());
        let (raft, sealing) = (handle.clone(), Arc::clone(&identity));
        let services = move |routes: &mut RoutesBuilder| api::install(routes, raft, leases, sealing);
        let (stop, stopped) = oneshot::channel::<()>();
        let served = tokio::spawn(server::serve(listener, identity, member, services, async {
            let _ = stopped.await;
        }));
        let mut applied = handle.watch_applied();
        let ready = |_: &u64| handle.read(|state| state.lease_term() != 0);
        in_time("the cluster's record", applied.wait_for(ready)).await.unwrap();
        Controller { directory, authority, address, handle, stop: Some(stop), served: Some(served) }
    }

    pub async fn stop(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        in_time("clean stop", self.served.take().unwrap()).await.unwrap().unwrap();
    }

    pub fn channel(&self, role: Role, name: &str) -> Channel {
        let folder = self.directory.path().join(format!("{role}-{name}"));
        if !folder.exists() {
            self.authority.issue((role, name), &folder).unwrap();
        }
        let identity = Identity::load(&folder).unwrap();
        Endpoint::from_shared(format!("https://{}", self.address))
            .unwrap()
            .tls_config(identity.tonic_client(Role::Controller, Some("ctl-1")).unwrap())
            .unwrap()
            .connect_lazy()
    }

    pub fn admin(&self) -> Channel {
        self.channel(Role::Admin, "admin")
    }

    pub fn agent(&self, name: &str) -> NodeAgentClient<Channel> {
        NodeAgentClient::new(self.channel(Role::Node, name))
    }

    /// Node `number` (the `number`th that joins) with a new session and, unless it resumes, the whole snapshot.
    pub async fn node(&self, number: u8, process: u8, applied_index: u64) -> Node {
        Node::begin(self.agent(&format!("node-{number}")), hello(number, process, applied_index))
            .await
            .unwrap()
    }

    /// A node that holds a lease and is known to.
    pub async fn live_node(&self, number: u8) -> Node {
        let mut node = self.node(number, 1, 0).await;
        node.become_live().await;
        node
    }

    /// A live node that renews its lease and has everything installed until it is dropped.
    pub async fn kept_node(&self, number: u8) -> KeptNode {
        let mut node = self.live_node(number).await;
        let up = node.up.clone();
        let task = tokio::spawn(async move {
            loop {
                node.renew().await;
                node.applied = node.commits.back().map_or(node.applied, |commit| commit.index);
                node.commits.clear();
                tokio::time::sleep(Duration::from_millis(u64::from(node.welcome.renew_interval_ms))).await;
            }
        });
        KeptNode(task, up)
    }

    /// Waits until the state, as the leader has applied it, is so.
    pub async fn until(&self, what: &str, is_so: impl Fn(&holdfast_controller::state::StateMachine) -> bool) {
        let mut applied = self.handle.watch_applied();
        in_time(what, applied.wait_for(|_| self.handle.read(&is_so))).await.unwrap();
    }
}

pub struct KeptNode(JoinHandle<()>, mpsc::Sender<FromNode>);

impl KeptNode {
    pub async fn say(&self, message: from_node::Message) {
        self.1.send(FromNode { message: Some(message) }).await.unwrap();
    }
}

impl Drop for KeptNode {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub fn hello(number: u8, process: u8, applied_index: u64) -> Hello {
    Hello {
        replicates: true,
        name: format!("node-{number}"),
        boot_id: vec![number; 16],
        process_id: vec![process; 16],
        portals: vec![format!("127.0.0.{number}:3260")],
        interconnect: format!("127.0.0.{number}:3270"),
        pools: vec![Pool {
            name: "default".to_owned(),
            capacity_bytes: 1 << 40,
            free_bytes: 1 << 40,
            kind: 0,
        }],
        version: "test".to_owned(),
        applied_index,
    }
}

/// A session, from the node's side.
pub struct Node {
    up: mpsc::Sender<FromNode>,
    down: Streaming<ToNode>,
    pub welcome: Welcome,
    pub snapshot: Option<SnapshotPart>,
    pub commits: VecDeque<Commit>,
    pub applied: u64,
    renewals: u64,
}

impl Node {
    pub async fn begin(mut agent: NodeAgentClient<Channel>, hello: Hello) -> Result<Node, Status> {
        let (up, stream) = mpsc::channel(64);
        let applied = hello.applied_index;
        up.send(FromNode { message: Some(from_node::Message::Hello(hello)) }).await.unwrap();
        let mut down = in_time("session", agent.session(ReceiverStream::new(stream))).await?.into_inner();
        let first = in_time("welcome", down.message()).await?;
        let Some(ToNode { message: Some(to_node::Message::Welcome(welcome)) }) = first else {
            panic!("{first:?} instead of a welcome")
        };
        let (commits, renewals) = (VecDeque::new(), 0);
        let mut node = Node { up, down, welcome, snapshot: None, commits, applied, renewals };
        if !node.welcome.resumes {
            let mut whole = SnapshotPart::default();
            while !whole.last {
                match node.message().await? {
                    to_node::Message::Snapshot(part) => {
                        whole.index = part.index;
                        whole.changes.extend(part.changes);
                        whole.last = part.last;
                    }
                    other => panic!("{other:?} inside a snapshot"),
                }
            }
            node.applied = whole.index;
            node.snapshot = Some(whole);
        }
        Ok(node)
    }

    pub fn number(&self) -> u32 {
        self.welcome.node.as_ref().unwrap().number
    }

    pub fn incarnation(&self) -> u64 {
        self.welcome.node.as_ref().unwrap().incarnation
    }

    async fn message(&mut self) -> Result<to_node::Message, Status> {
        match in_time("message", self.down.message()).await? {
            Some(message) => Ok(message.message.unwrap()),
            None => Err(Status::new(Code::Ok, "end of stream")),
        }
    }

    pub async fn send(&self, message: from_node::Message) {
        self.up.send(FromNode { message: Some(message) }).await.unwrap();
    }

    /// Renews, as often as a node does, until a grant comes; commits that come meanwhile are kept.
    pub async fn renew(&mut self) -> LeaseGrant {
        let interval = Duration::from_millis(u64::from(self.welcome.renew_interval_ms));
        let granted = async {
            loop {
                self.renewals += 1;
                let renew =
                    Renew { sequence: self.renewals, applied_index: self.applied, data_path_stalled_ms: 0 };
                self.send(from_node::Message::Renew(renew)).await;
                while let Ok(message) = tokio::time::timeout(interval, self.message()).await {
                    match message.unwrap() {
                        to_node::Message::Lease(grant) => return grant,
                        to_node::Message::Commit(commit) => self.commits.push_back(commit),
                        other => panic!("{other:?}"),
                    }
                }
            }
        };
        in_time("grant", granted).await
    }

    /// The next commit. They come in log order, and each holds something for nodes.
    pub async fn commit(&mut self) -> Commit {
        loop {
            if let Some(commit) = self.commits.pop_front() {
                return commit;
            }
            match self.message().await.unwrap() {
                to_node::Message::Commit(commit) => self.commits.push_back(commit),
                to_node::Message::Lease(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// The next question of the controller.
    pub async fn question(&mut self) -> Inspect {
        loop {
            match self.message().await.unwrap() {
                to_node::Message::Inspect(question) => return question,
                to_node::Message::Commit(commit) => self.commits.push_back(commit),
                to_node::Message::Lease(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Takes commits until one that is so, and has it and all before installed.
    pub async fn install_until(&mut self, is_so: impl Fn(&Commit) -> bool) -> Commit {
        let commit = self.take_until(is_so).await;
        self.report(commit.index).await;
        commit
    }

    /// Takes commits until one that is so, and says nothing.
    pub async fn take_until(&mut self, is_so: impl Fn(&Commit) -> bool) -> Commit {
        let mut before = self.applied;
        loop {
            let commit = self.commit().await;
            assert!(commit.index > before, "commit {} after {before}", commit.index);
            before = commit.index;
            if is_so(&commit) {
                return commit;
            }
        }
    }

    pub async fn report(&mut self, applied_index: u64) {
        self.applied = applied_index;
        self.send(from_node::Message::Applied(Applied { applied_index })).await;
    }

    pub async fn become_live(&mut self) {
        let number = self.number();
        self.renew().await;
        self.install_until(|c| nodes(&c.changes).any(|n| n.number == number && n.live)).await;
    }

    /// Reads to the end of the session.
    pub async fn end(&mut self) -> Status {
        loop {
            if let Err(status) = self.message().await {
                return status;
            }
        }
    }
}

pub fn nodes(changes: &[Change]) -> impl Iterator<Item = &holdfast_proto::state::Node> {
    changes.iter().filter_map(|c| match &c.change {
        Some(change::Change::Node(node)) => Some(node),
        _ => None,
    })
}

pub fn volumes(changes: &[Change]) -> impl Iterator<Item = &holdfast_proto::state::Volume> {
    changes.iter().filter_map(|c| match &c.change {
        Some(change::Change::Volume(volume)) => Some(volume),
        _ => None,
    })
}

pub fn reservations(changes: &[Change]) -> impl Iterator<Item = &holdfast_proto::state::Reservation> {
    changes.iter().filter_map(|c| match &c.change {
        Some(change::Change::Reservation(reservation)) => Some(reservation),
        _ => None,
    })
}
