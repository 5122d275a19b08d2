//! Requests that come again: the first answer, and nothing changed twice.

use holdfast_proto::state as records;

use super::build::*;
use crate::state::{Body, Outcome, Refusal, StateMachine, limits};

fn request(id: &str) -> Option<records::ClientRequest> {
    Some(records::ClientRequest { id: id.to_owned(), digest: vec![1; 32] })
}

fn cordon(id: &str, cordoned: bool, drain: bool) -> Body {
    Body::CordonNode(records::CordonNode {
        name: "node-1".to_owned(),
        cordoned,
        drain,
        evacuate: false,
        request: request(id),
    })
}

fn options(id: &str, seconds: u32) -> Body {
    let request = request(id);
    let replace_after_s = Some(seconds);
    Body::SetClusterOptions(records::SetClusterOptions { replace_after_s, request, ..Default::default() })
}

fn rebalance(id: &str, on: bool) -> Body {
    Body::Rebalance(records::Rebalance { on, stopped: !on, request: request(id) })
}

fn session_end(id: &str) -> Body {
    let node = "node-1".to_owned();
    Body::RecordSessionEnd(records::RecordSessionEnd { nexus: Some(nexus(1, 1)), node, request: request(id) })
}

fn scrub(id: &str) -> Body {
    let (volume, nodes) = ("db1".to_owned(), vec!["node-1".to_owned()]);
    Body::RecordScrub(records::RecordScrub { volume, nodes, request: request(id) })
}

fn membership(id: &str) -> Body {
    Body::RecordMembership(records::RecordMembership {
        change: "added".to_owned(),
        name: "ctl-2".to_owned(),
        id: 2,
        address: "127.0.0.1:7001".to_owned(),
        request: request(id),
    })
}

#[test]
fn what_was_undone_since_is_not_done_again_by_the_same_request() {
    for (change, undo) in [
        (cordon("r", true, false), cordon("u", false, false)),
        (cordon("r", false, false), cordon("u", true, false)),
        (cordon("r", true, true), cordon("u", false, false)),
        (options("r", 20), options("u", 30)),
        (rebalance("r", true), rebalance("u", false)),
        (session_end("r"), session_end("u")),
        (scrub("r"), scrub("u")),
        (membership("r"), session_end("u")),
    ] {
        let mut cluster = Cluster::of(2);
        let first = cluster.ask(change.clone()).unwrap();
        cluster.done(undo);
        let before = cluster.state.clone();
        if let Body::RecordMembership(_) = change {
            let Body::RecordMembership(record) = &change else { continue };
            assert_eq!(cluster.state.answer(record.request.as_ref()), Ok(Some(first)));
            continue;
        }
        let again = cluster.apply(change.clone());
        assert_eq!(again.response, Ok(first), "{change:?}");
        assert_eq!(cluster.state, before, "{change:?}");
        assert!(again.events.is_empty(), "{change:?}");
    }
}

#[test]
fn a_node_that_was_removed_and_came_back_is_not_removed_again() {
    let mut cluster = Cluster::new();
    cluster.done(lost(2, 1));
    let Body::RemoveNode(removal) = remove_node(2, 1) else { panic!() };
    let removal = Body::RemoveNode(records::RemoveNode { request: request("r"), ..removal });
    assert_eq!(cluster.ask(removal.clone()), Ok(Outcome::Done));
    cluster.done(join(2, 1));
    assert_eq!(cluster.ask(removal), Ok(Outcome::Done));
    assert!(cluster.state.node_by_name("node-2").is_some());
}

#[test]
fn a_request_that_falls_out_of_the_ring_is_a_new_one() {
    let mut cluster = Cluster::new();
    cluster.done(cordon("first", true, false));
    for n in 0..limits::REQUESTS_KEPT - 1 {
        cluster.done(options(&format!("r-{n}"), 20));
    }
    cluster.done(Body::CordonNode(records::CordonNode { name: "node-1".to_owned(), ..Default::default() }));
    let cordoned = |cluster: &Cluster| cluster.state.node(1).unwrap().cordoned;
    cluster.ask(cordon("first", true, false)).unwrap();
    assert!(!cordoned(&cluster), "it is remembered still");
    cluster.done(options("one more", 20));
    cluster.ask(cordon("first", true, false)).unwrap();
    assert!(cordoned(&cluster), "it is carried out as a new one");
}

fn reset(n: u64) -> Body {
    let mut request_id = vec![0; 8];
    request_id.extend(n.to_be_bytes());
    Body::EstablishUnitAttention(records::EstablishUnitAttention {
        request_id,
        epoch: Some(epoch(2)),
        proposer: 1,
        event: Some(records::UnitAttentionEvent {
            volume_id: vec![1; 16],
            additional: 0x2903,
            ..Default::default()
        }),
    })
}

#[test]
fn requests_of_nodes_do_not_push_out_those_of_clients() {
    let mut cluster = Cluster::new();
    cluster.done(create_volume(1, "db1"));
    let first = cluster.ask(cordon("first", true, false)).unwrap();
    for n in 0..limits::REQUESTS_KEPT + 3 {
        cluster.done(reset(n));
    }
    cluster.done(cordon("other", false, false));
    let before = cluster.state.clone();
    assert_eq!(cluster.ask(cordon("first", true, false)), Ok(first));
    // The oldest of the node is forgotten, the next one is not.
    let established = cluster.ask(reset(3)).unwrap();
    assert_eq!(cluster.state, before);
    assert!(matches!(established, Outcome::Established(_)));
    assert_ne!(cluster.ask(reset(0)), Ok(established));
    let stored = cluster.state.to_changes();
    assert_eq!(StateMachine::from_changes(stored).unwrap(), cluster.state);
}

#[test]
fn a_stale_proposal_is_settled_unless_its_outcome_may_be_forgotten() {
    let mut cluster = Cluster::new();
    cluster.done(create_volume(1, "db1"));
    let mut version = 0;
    let mut first = None;
    let mut key = 0;
    for id in 1..=limits::OUTCOMES_PER_VOLUME_KEPT as u8 + 1 {
        let out = PrOut { action: 0, kind: 0, key, action_key: key + 1 };
        let applied = cluster.done(Body::ProposeReservation(propose(id, version, 1, &out)));
        (version, key) = (applied.commit.index, key + 1);
        first.get_or_insert(version);
    }
    let stale = |cluster: &mut Cluster, expected| {
        let proposal = propose(99, expected, 1, &PrOut::register(1));
        assert!(matches!(cluster.refused(Body::ProposeReservation(proposal)), Refusal::StaleVersion { .. }));
        cluster.state.is_settled_as_refused(&[1; 16], expected)
    };
    assert!(!stale(&mut cluster, 0), "the first change was against this version, and is forgotten");
    let first = first.unwrap();
    assert!(stale(&mut cluster, first), "whatever was done against this version is known");
    assert!(!cluster.state.is_settled_as_refused(&[9; 16], first), "of no volume is anything known");
    let stored = cluster.state.to_changes();
    assert_eq!(StateMachine::from_changes(stored).unwrap(), cluster.state);
}
