//! What the messages of a session do, message by message.

use holdfast_proto::node::{FromNode, Hello, from_node};
use holdfast_replica::gate::lease_end_ms;

use super::super::session::{Core, Facts, SessionError};
use super::*;
use crate::view::{ClusterId, Shared, VolumeId};

struct Node {
    cluster: Vec<u8>,
    core: Core,
    shared: Arc<Shared>,
    workers: Arc<Workers>,
}

fn node() -> Node {
    let pki = Pki::new();
    let identity = pki.identity(Role::Node, "node-1");
    let shared = Arc::new(Shared::default());
    let workers = Arc::new(Workers::default());
    let facts = Facts {
        cluster: ClusterId::from_slice(&pki.cluster_id()).unwrap(),
        name: "node-1".into(),
        hello: Hello { name: "node-1".into(), ..Default::default() },
        key: identity.sealing_key().unwrap().clone(),
    };
    let core = Core::new(facts, Arc::clone(&shared), Arc::clone(&workers) as Arc<dyn Installer>);
    Node { cluster: pki.cluster_id(), core, shared, workers }
}

impl Node {
    /// A session that follows commits from `index` on, installed.
    fn following(index: u64) -> Node {
        let mut node = node();
        node.begin(false);
        node.core.handle(snapshot(index, vec![])).unwrap();
        node.core.installed(index);
        node
    }

    fn begin(&mut self, resumes: bool) -> u64 {
        let hello = self.core.begin(vec![]);
        self.core.handle(welcome(self.cluster.clone(), 1, resumes)).unwrap();
        match hello {
            FromNode { message: Some(from_node::Message::Hello(hello)) } => hello.applied_index,
            other => panic!("not a greeting: {other:?}"),
        }
    }

    fn until(&self) -> Option<u64> {
        self.shared.gate.serve_until_ms()
    }
}

#[test]
fn lease_is_counted_from_the_sending_of_its_renewal() {
    let mut node = Node::following(5);
    node.core.renew(1_000, 0);
    node.core.renew(1_400, 0);
    assert!(node.core.handle(grant(1, 2_000, 5)).unwrap());
    assert_eq!(node.until(), Some(lease_end_ms(1_000, 2_000)));
    node.core.handle(grant(2, 2_000, 5)).unwrap();
    assert_eq!(node.until(), Some(lease_end_ms(1_400, 2_000)));
}

#[test]
fn grant_is_of_no_use_before_every_worker_has_its_index() {
    let mut node = Node::following(5);
    node.core.renew(1_000, 0);
    node.core.handle(grant(1, 2_000, 7)).unwrap();
    assert_eq!(node.until(), None);
    node.core.handle(commit(7, vec![])).unwrap();
    assert_eq!(node.until(), None, "posted, but not installed");
    node.core.installed(6);
    assert_eq!(node.until(), None);
    node.core.installed(7);
    assert_eq!(node.until(), Some(lease_end_ms(1_000, 2_000)));
}

#[test]
fn lease_that_nobody_asked_for_ends_the_session() {
    let mut node = Node::following(5);
    assert!(matches!(node.core.handle(grant(1, 2_000, 5)), Err(SessionError::Protocol(_))));
    node.core.renew(1_000, 0);
    assert!(matches!(node.core.handle(grant(0, 2_000, 5)), Err(SessionError::Protocol(_))));
    assert_eq!(node.until(), None);
}

#[test]
fn renewal_is_worth_one_grant() {
    let mut node = Node::following(5);
    node.core.renew(1_000, 0);
    node.core.handle(grant(1, 500, 5)).unwrap();
    node.core.handle(grant(1, 60_000, 5)).unwrap();
    assert_eq!(node.until(), Some(lease_end_ms(1_000, 500)));
}

#[test]
fn grants_of_a_session_end_with_it_but_a_lease_runs_on() {
    let mut node = Node::following(5);
    node.core.renew(1_000, 0);
    node.core.renew(1_100, 0);
    node.core.handle(grant(1, 2_000, 5)).unwrap();
    node.core.handle(grant(2, 2_000, 9)).unwrap();
    let until = node.until();
    node.begin(true);
    assert_eq!(node.until(), until);
    node.core.handle(commit(9, vec![])).unwrap();
    node.core.installed(9);
    assert_eq!(node.until(), until, "the grant that waited was of the session before");
}

#[test]
fn commit_out_of_order_ends_the_session() {
    let mut node = Node::following(5);
    node.core.handle(commit(8, vec![])).unwrap();
    for again in [8, 6, 5, 4] {
        assert!(matches!(node.core.handle(commit(again, vec![])), Err(SessionError::Protocol(_))));
    }
    assert_eq!(node.workers.indices(), [5, 8]);
}

#[test]
fn nothing_is_taken_before_its_turn() {
    let mut node = node();
    node.core.begin(vec![]);
    assert!(node.core.handle(commit(1, vec![])).is_err());
    node.core.begin(vec![]);
    assert!(node.core.handle(snapshot(1, vec![])).is_err());
    node.core.begin(vec![]);
    assert!(node.core.handle(ToNode { message: None }).is_err());
    node.core.begin(vec![]);
    let other_cluster = welcome(vec![9; 16], 1, false);
    assert!(node.core.handle(other_cluster).is_err());
    node.core.begin(vec![]);
    let resumed = welcome(node.cluster.clone(), 1, true);
    assert!(node.core.handle(resumed).is_err(), "there is nothing to resume");
    assert!(node.core.timing().is_none() && node.shared.view.load().is_none());
}

#[test]
fn resumed_session_skips_what_it_has_and_loses_no_event() {
    let mut node = Node::following(5);
    node.core.handle(commit(6, vec![])).unwrap();
    // The workers have not confirmed 6: the controller sends it again.
    assert_eq!(node.begin(true), 5);
    node.core.handle(commit(6, vec![])).unwrap();
    node.core.handle(commit(7, vec![change(Record::Volume(volume_record(9)))])).unwrap();
    assert_eq!(node.workers.indices(), [5, 6, 7]);
    assert!(node.workers.installs.lock().iter().all(|install| !install.events_lost));
    assert!(node.shared.view.load_full().unwrap().volumes.contains_key(&VolumeId([9; 16])));
}

#[test]
fn snapshot_in_a_later_session_tells_that_events_may_be_lost() {
    let mut node = Node::following(5);
    node.begin(false);
    node.core.handle(snapshot(5, vec![])).unwrap();
    node.core.installed(5);
    node.begin(false);
    node.core.handle(snapshot(9, vec![])).unwrap();
    let lost: Vec<bool> = node.workers.installs.lock().iter().map(|install| install.events_lost).collect();
    assert_eq!(lost, [false, false, true]);
}

#[test]
fn view_never_goes_back() {
    let mut node = Node::following(5);
    node.begin(false);
    let result = node.core.handle(snapshot(4, vec![]));
    assert!(matches!(result, Err(SessionError::Behind { theirs: 4, ours: 5 })));
    assert_eq!(node.shared.view.load_full().unwrap().index, 5);
}

#[test]
fn record_that_makes_no_sense_closes_the_gate_until_a_whole_snapshot() {
    let mut node = Node::following(5);
    node.core.renew(1_000, 0);
    node.core.handle(grant(1, 2_000, 5)).unwrap();
    assert!(node.until().is_some());
    let bad = state::Volume { block_size: 7, ..volume_record(9) };
    let result = node.core.handle(commit(6, vec![change(Record::Volume(bad))]));
    assert!(matches!(result, Err(SessionError::Record(_))));
    assert_eq!(node.until(), None);
    assert_eq!(node.begin(false), 0, "asks for everything");
    node.core.handle(snapshot(6, vec![])).unwrap();
    assert!(node.workers.installs.lock().last().unwrap().events_lost);
}

#[test]
fn new_incarnation_voids_the_lease_of_the_old() {
    let mut node = Node::following(5);
    node.core.renew(1_000, 0);
    node.core.handle(grant(1, 2_000, 5)).unwrap();
    node.core.begin(vec![]);
    node.core.handle(welcome(node.cluster.clone(), 2, false)).unwrap();
    assert_eq!(node.until(), None);
}

#[test]
fn another_process_under_the_same_name_ends_this_one() {
    let mut node = Node::following(5);
    let newer = change(Record::Node(node_record(2)));
    assert!(matches!(node.core.handle(commit(6, vec![newer])), Err(SessionError::NameTaken(_))));
    let gone = change(Record::RemovedNode("node-1".into()));
    assert!(matches!(node.core.handle(commit(7, vec![gone])), Err(SessionError::Record(_))));
}
