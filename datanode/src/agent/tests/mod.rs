//! The agent: what a session's messages do, and the whole of it against a server on loopback.

mod controller;
mod network;
mod session;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use holdfast_pki::{Authority, Identity, Role};
use holdfast_proto::{
    node::{LeaseGrant, SnapshotPart, ToNode, Welcome, to_node},
    state::{self, change::Change as Record},
};
use parking_lot::Mutex;

use super::{Handle, Install, Installer};

/// A cluster authority on disk with identities made from it.
struct Pki {
    root: tempfile::TempDir,
    authority: Authority,
}

impl Pki {
    fn new() -> Pki {
        holdfast_pki::install_crypto_provider();
        let root = tempfile::tempdir().unwrap();
        let authority = Authority::create(&root.path().join("ca")).unwrap();
        Pki { root, authority }
    }

    fn identity(&self, role: Role, name: &str) -> Identity {
        let directory = self.root.path().join(format!("{}-{name}", role.as_str()));
        self.authority.issue((role, name), &directory).unwrap();
        Identity::load(&directory).unwrap()
    }

    fn cluster_id(&self) -> Vec<u8> {
        self.authority.cluster().0.to_vec()
    }
}

/// Stands for the workers: notes what is installed, and confirms it when it may.
#[derive(Default)]
struct Workers {
    installs: Mutex<Vec<Install>>,
    handle: Mutex<Option<Handle>>,
    hold: AtomicBool,
}

impl Workers {
    fn confirming(handle: &Handle) -> Arc<Workers> {
        let workers = Workers::default();
        *workers.handle.lock() = Some(handle.clone());
        Arc::new(workers)
    }

    fn indices(&self) -> Vec<u64> {
        self.installs.lock().iter().map(|install| install.view.index).collect()
    }
}

impl Installer for Workers {
    fn install(&self, install: Install) {
        let index = install.view.index;
        self.installs.lock().push(install);
        if !self.hold.load(Ordering::SeqCst)
            && let Some(handle) = &*self.handle.lock()
        {
            handle.installed(index);
        }
    }
}

fn change(record: Record) -> state::Change {
    state::Change { change: Some(record) }
}

fn node_record(incarnation: u64) -> state::Node {
    state::Node {
        name: "node-1".into(),
        number: 1,
        ports: vec![state::Port { relative_port: 1, portal: "127.0.0.1:3260".into() }],
        interconnect: "127.0.0.1:4000".into(),
        boot_id: vec![1; 16],
        incarnation,
        live: true,
        ..Default::default()
    }
}

fn volume_record(id: u8) -> state::Volume {
    state::Volume {
        id: vec![id; 16],
        name: format!("volume-{id}"),
        size_bytes: 1 << 20,
        block_size: 512,
        replicas: 1,
        epoch: Some(state::Epoch { generation: 0, number: 1 }),
        in_sync: vec![state::ReplicaMember { node: 1, boot_id: vec![1; 16], pool: "default".into() }],
        min_in_sync: 1,
        ..Default::default()
    }
}

fn to_node(message: to_node::Message) -> ToNode {
    ToNode { message: Some(message) }
}

fn welcome(cluster_id: Vec<u8>, incarnation: u64, resumes: bool) -> ToNode {
    to_node(to_node::Message::Welcome(Welcome {
        cluster_id,
        target_iqn: "iqn.2026-01.holdfast:c".into(),
        node: Some(node_record(incarnation)),
        lease_ms: 60_000,
        renew_interval_ms: 20,
        resumes,
    }))
}

fn snapshot(index: u64, changes: Vec<state::Change>) -> ToNode {
    let changes = std::iter::once(change(Record::Node(node_record(1)))).chain(changes).collect();
    to_node(to_node::Message::Snapshot(SnapshotPart { index, changes, last: true }))
}

fn commit(index: u64, changes: Vec<state::Change>) -> ToNode {
    to_node(to_node::Message::Commit(state::Commit { index, changes, ..Default::default() }))
}

fn grant(sequence: u64, lease_ms: u32, applied_index: u64) -> ToNode {
    to_node(to_node::Message::Lease(LeaseGrant { sequence, lease_ms, applied_index }))
}
