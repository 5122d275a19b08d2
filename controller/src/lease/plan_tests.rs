use super::*;
use crate::lease::{LEASE_MS, table::Renewal};
use crate::state::Command;

const LEASE: u64 = LEASE_MS as u64;

fn apply(state: &mut StateMachine, body: Body) {
    let index = state.head() + 1;
    let applied = state.apply(index, &Command::new(0, body));
    assert!(applied.response.is_ok(), "{:?}", applied.response);
}

fn join(state: &mut StateMachine, process: u8) {
    apply(
        state,
        Body::NodeJoin(records::NodeJoin {
            name: "node-1".to_owned(),
            boot_id: vec![1; 16],
            process_id: vec![process; 16],
            portals: vec!["127.0.0.1:3260".to_owned()],
            interconnect: "127.0.0.1:3270".to_owned(),
            pools: vec![records::Pool {
                name: "p".to_owned(),
                capacity_bytes: 1 << 30,
                free_bytes: 1 << 30,
                kind: 0,
            }],
            version: String::new(),
            replicates: true,
        }),
    );
}

/// One live node that owns one volume; the leader of term 1 was elected at 0.
fn owned() -> (StateMachine, LeaseTable) {
    let mut state = StateMachine::default();
    let iqn = "iqn.2026-01.x:t".to_owned();
    apply(&mut state, Body::ClusterInit(records::ClusterInit { id: vec![1; 16], target_iqn: iqn }));
    apply(&mut state, Body::BeginLeaseTerm(records::BeginLeaseTerm { term: 1 }));
    join(&mut state, 1);
    let mut table = LeaseTable::new();
    table.begin(1, Millis(0));
    grant(&state, &mut table, 1, 10);
    run(&mut state, &table, 10);
    apply(
        &mut state,
        Body::CreateVolume(records::CreateVolume {
            request: None,
            id: vec![7; 16],
            name: "db1".to_owned(),
            size_bytes: 1 << 20,
            block_size: 512,
            physical_block_exponent: 0,
            write_cache: true,
            thin: true,
            checksums: false,
            volatile: false,
            replicas: 1,
            node: 1,
            pool: "p".to_owned(),
            others: Vec::new(),
        }),
    );
    (state, table)
}

fn grant(state: &StateMachine, table: &mut LeaseTable, incarnation: u64, now: u64) {
    table.applied(1, incarnation, state.head());
    table
        .grant(Renewal { node: 1, incarnation, data_path_stalled_ms: 0, head: state.head() }, Millis(now))
        .unwrap();
}

fn kinds(bodies: &[Body]) -> Vec<&'static str> {
    bodies
        .iter()
        .map(|body| match body {
            Body::NodeLive(_) => "live",
            Body::NodeLost(_) => "lost",
            Body::ChangeOwner(_) => "owner",
            _ => "?",
        })
        .collect()
}

/// What is due for a leader that remembers nothing.
fn due(state: &StateMachine, table: &LeaseTable, now: u64) -> Vec<Body> {
    proposals(state, table, &Reports::default(), &mut Memory::default(), Millis(now))
}

/// Proposes and applies what is due.
fn run(state: &mut StateMachine, table: &LeaseTable, now: u64) -> Vec<&'static str> {
    let due_now = due(state, table, now);
    let kinds = kinds(&due_now);
    due_now.into_iter().for_each(|body| apply(state, body));
    assert_eq!(due(state, table, now), [], "what was proposed settles it");
    kinds
}

#[test]
fn nothing_is_due_while_the_owner_is_renewed() {
    let (state, mut table) = owned();
    for now in (10..20_000).step_by(400) {
        grant(&state, &mut table, 1, now);
        assert_eq!(due(&state, &table, now), []);
    }
}

#[test]
fn lost_lease_is_said_once_and_the_only_copy_keeps_its_owner() {
    let (mut state, mut table) = owned();
    grant(&state, &mut table, 1, 5000);
    assert_eq!(due(&state, &table, 5000 + LEASE - 1), []);
    assert_eq!(run(&mut state, &table, 5000 + LEASE), ["lost"]);
    grant(&state, &mut table, 1, 9000);
    assert_eq!(run(&mut state, &table, 9000), ["live"]);
}

#[test]
fn new_incarnation_gets_its_volumes_after_the_old_lease_and_under_its_own() {
    let (mut state, mut table) = owned();
    grant(&state, &mut table, 1, 5000);
    join(&mut state, 2);
    table.joined(1, 2);
    assert_eq!(due(&state, &table, 5100), []);
    grant(&state, &mut table, 2, 5200);
    assert_eq!(run(&mut state, &table, 5200), ["live"]);
    assert_eq!(due(&state, &table, 5000 + LEASE - 1), []);
    assert_eq!(run(&mut state, &table, 5000 + LEASE), ["owner"]);
    let volume = state.volume_by_name("db1").unwrap();
    assert_eq!(volume.config.owner().unwrap().incarnation.0, 2);
}

#[test]
fn new_incarnation_without_a_lease_gets_nothing() {
    let (mut state, mut table) = owned();
    grant(&state, &mut table, 1, 5000);
    join(&mut state, 2);
    table.joined(1, 2);
    assert_eq!(due(&state, &table, 60_000), []);
}

#[test]
fn leader_whose_term_is_not_in_force_proposes_nothing() {
    let (mut state, mut table) = owned();
    grant(&state, &mut table, 1, 5000);
    table.begin(2, Millis(6000));
    assert_eq!(due(&state, &table, 60_000), []);
    apply(&mut state, Body::BeginLeaseTerm(records::BeginLeaseTerm { term: 2 }));
    assert_eq!(due(&state, &table, 6000 + LEASE - 1), []);
    assert_eq!(run(&mut state, &table, 60_000), ["lost"]);
    table.end();
    assert_eq!(due(&state, &table, 90_000), []);
}

#[test]
fn volume_in_deletion_is_left_alone() {
    let (mut state, mut table) = owned();
    join(&mut state, 2);
    apply(&mut state, Body::DeleteVolume(records::DeleteVolume { request: None, name: "db1".to_owned() }));
    grant(&state, &mut table, 2, 60_000);
    assert_eq!(run(&mut state, &table, 60_000), ["live"]);
}
