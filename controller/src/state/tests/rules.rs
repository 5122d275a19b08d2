//! One test per rule.

use holdfast_proto::state::{self as records, change};

use super::build::*;
use crate::state::{Applied, Body, Command, Outcome, Refusal, StateMachine, is_node_visible};

const INQUIRY_DATA_CHANGED: u32 = 0x3f03;

#[test]
fn nothing_is_done_before_the_cluster_is_initialised() {
    let mut cluster = Cluster::default();
    assert_eq!(cluster.refused(join(1, 1)), Refusal::NotInitialised);
}

#[test]
fn cluster_is_initialised_once() {
    let mut cluster = Cluster::new();
    let again =
        records::ClusterInit { id: vec![9; 16], target_iqn: "IQN.2026-01.org.holdfast:cluster".to_owned() };
    assert_eq!(cluster.ask(Body::ClusterInit(again.clone())), Ok(Outcome::Done));
    let other = records::ClusterInit { id: vec![8; 16], ..again };
    assert!(matches!(cluster.refused(Body::ClusterInit(other)), Refusal::Precondition(_)));
}

#[test]
fn node_keeps_number_and_ports_over_restarts_and_counts_incarnations() {
    let mut cluster = Cluster::new();
    let before = cluster.state.node_by_name("node-2").unwrap().clone();
    assert_eq!((before.number, before.ports[0].relative_port, before.incarnation), (2, 2, 1));
    assert_eq!(cluster.ask(join(2, 1)), Ok(Outcome::Node(before.clone())));
    let Ok(Outcome::Node(after)) = cluster.ask(join(2, 7)) else { panic!() };
    assert_eq!((after.number, &after.ports, after.incarnation), (2, &before.ports, 2));
    assert!(!after.live, "a new incarnation holds no lease yet");
    assert!(matches!(cluster.refused(live(2, 1)), Refusal::StaleIncarnation { current: 2, .. }));
}

#[test]
fn joining_again_unchanged_is_seen_by_nobody() {
    let mut cluster = Cluster::new();
    let head = cluster.state.head();
    assert!(cluster.done(join(1, 1)).commit.changes.is_empty());
    assert_eq!(cluster.state.head(), head);
}

#[test]
fn every_host_hears_that_there_are_other_target_ports() {
    let mut cluster = Cluster::new();
    cluster.done(create_host("a", &["iqn.2026-01.org.example:a"]));
    cluster.done(create_host("b", &["iqn.2026-01.org.example:b"]));
    let told = |applied: Applied| -> Vec<(u32, String)> {
        applied.commit.unit_attentions.into_iter().map(|ua| (ua.additional, ua.host)).collect()
    };
    let both = vec![(INQUIRY_DATA_CHANGED, "a".to_owned()), (INQUIRY_DATA_CHANGED, "b".to_owned())];
    assert_eq!(told(cluster.done(join(3, 1))), both, "a node more");
    assert_eq!(told(cluster.done(join(3, 2))), [], "the same ports after a restart");
    let Body::NodeJoin(mut body) = join(3, 2) else { panic!() };
    body.portals = vec!["127.0.0.33:3260".to_owned()];
    assert_eq!(
        told(cluster.done(Body::NodeJoin(body.clone()))),
        [],
        "where a port is reached is not INQUIRY data"
    );
    body.portals.push("127.0.0.33:3261".to_owned());
    assert_eq!(told(cluster.done(Body::NodeJoin(body))), both, "a port more");
    let number = cluster.state.node_by_name("node-3").unwrap().number;
    assert_eq!(told(cluster.done(remove_node(number, 1))), both, "a node less");
}

#[test]
fn relative_ports_are_never_reused() {
    let mut cluster = Cluster::new();
    let with = |portals: &[&str]| {
        let Body::NodeJoin(mut body) = join(1, 1) else { panic!() };
        body.portals = portals.iter().map(|p| (*p).to_owned()).collect();
        Body::NodeJoin(body)
    };
    let mut ports = |portals: &[&str]| {
        let Ok(Outcome::Node(node)) = cluster.ask(with(portals)) else { panic!() };
        node.ports.iter().map(|p| p.relative_port).collect::<Vec<_>>()
    };
    assert_eq!(ports(&["127.0.0.1:3260", "127.0.0.1:3261"]), [1, 3]);
    // Another order, another address of the second port: identifiers stay with their ports.
    assert_eq!(ports(&["127.0.0.1:3262", "127.0.0.1:3260"]), [3, 1]);
    assert_eq!(ports(&["127.0.0.1:3260"]), [1]);
    assert_eq!(ports(&["127.0.0.1:3260", "127.0.0.1:3261"]), [1, 4]);
}

#[test]
fn portal_of_another_node_is_refused() {
    let mut cluster = Cluster::new();
    let Body::NodeJoin(mut body) = join(3, 1) else { panic!() };
    body.portals = vec!["127.0.0.1:3260".to_owned()];
    let refusal = cluster.refused(Body::NodeJoin(body)).to_string();
    assert_eq!(
        refusal,
        "portal 127.0.0.1:3260 belongs to node node-1; give each portal its own address and port"
    );
}

#[test]
fn deposed_leader_decides_nothing_about_leases() {
    let mut cluster = Cluster::new();
    cluster.done(create_volume(1, "db1"));
    cluster.done(Body::BeginLeaseTerm(records::BeginLeaseTerm { term: 4 }));
    let stale = Refusal::StaleLeaseTerm { asked: 1, in_force: 4 };
    assert_eq!(cluster.refused(lost(1, 1)), stale);
    assert_eq!(cluster.refused(live(1, 1)), stale);
    assert_eq!(cluster.refused(change_owner(1, epoch(2), 1, 1)), stale);
    let older = Body::BeginLeaseTerm(records::BeginLeaseTerm { term: 3 });
    assert_eq!(cluster.refused(older), Refusal::StaleLeaseTerm { asked: 3, in_force: 4 });
}

#[test]
fn new_volume_is_owned_by_its_node_in_an_epoch_of_its_own() {
    let mut cluster = Cluster::new();
    let Ok(Outcome::Volume(volume)) = cluster.ask(create_volume(1, "db1")) else { panic!() };
    assert_eq!((volume.owner, volume.owner_incarnation, volume.epoch), (1, 1, Some(epoch(2))));
    assert_eq!(
        volume.in_sync,
        [records::ReplicaMember { node: 1, boot_id: vec![1; 16], pool: "default".to_owned() }]
    );
    assert!(matches!(cluster.refused(create_volume(2, "db1")), Refusal::AlreadyExists { .. }));
    assert!(matches!(cluster.refused(create_volume(1, "db2")), Refusal::Invalid { field: "id", .. }));
}

#[test]
fn node_that_owns_a_volume_is_not_drained_and_stays_as_it_was() {
    let mut cluster = Cluster::new();
    let drain = |name: &str| {
        Body::CordonNode(records::CordonNode {
            name: name.to_owned(),
            cordoned: true,
            drain: true,
            evacuate: false,
            request: None,
        })
    };
    cluster.done(Body::CreateVolume(volume_of(1, "db1", 1, 1 << 20)));
    let refusal = cluster.refused(drain("node-1")).to_string();
    assert!(refusal.starts_with("node node-1 is not drained: it owns db1"), "{refusal}");
    // Not cordoned: it still takes volumes.
    cluster.done(Body::CreateVolume(volume_of(2, "db2", 1, 1 << 20)));
    cluster.done(drain("node-2"));
    let refusal = cluster.refused(Body::CreateVolume(volume_of(3, "db3", 2, 1 << 20))).to_string();
    assert!(refusal.contains("cordoned"), "{refusal}");
}

#[test]
fn placement_is_checked_where_it_is_carried_out() {
    let mut cluster = Cluster::new();
    let on = |node, pool: &str, size| {
        Body::CreateVolume(records::CreateVolume { pool: pool.to_owned(), ..volume_of(1, "db1", node, size) })
    };
    assert_eq!(
        cluster.refused(on(1, "default", 2 << 30)).to_string(),
        "pool default of node node-1 has 1073741824 bytes free; the volume needs 2147483648"
    );
    assert_eq!(cluster.refused(on(1, "ssd", 1 << 20)).to_string(), "node node-1 has no pool 'ssd'");
    assert_eq!(cluster.refused(on(7, "default", 1 << 20)).to_string(), "node number 7 does not exist");
    cluster.done(Body::CordonNode(records::CordonNode {
        name: "node-1".to_owned(),
        cordoned: true,
        drain: false,
        evacuate: false,
        request: None,
    }));
    assert_eq!(
        cluster.refused(on(1, "default", 1 << 20)).to_string(),
        "node node-1 is cordoned; uncordon it or choose another"
    );
    cluster.done(lost(2, 1));
    assert_eq!(
        cluster.refused(on(2, "default", 1 << 20)).to_string(),
        "node node-2 holds no lease; start it or choose another"
    );
}

#[test]
fn bad_geometry_names_field_and_reason() {
    let mut cluster = Cluster::new();
    let with = |size_bytes, block_size| {
        Body::CreateVolume(records::CreateVolume { block_size, ..volume_of(1, "db1", 1, size_bytes) })
    };
    for (size, block, text) in [
        (1000, 512, "spec.size_bytes: 1000 is not a multiple of the block size 512"),
        (512, 512, "spec.size_bytes: 512 is not between 1 MiB and 16 TiB"),
        (1 << 20, 520, "spec.block_size: 520 is neither 512 nor 4096"),
        (1 << 45, 4096, "spec.size_bytes: 35184372088832 is not between 1 MiB and 16 TiB"),
    ] {
        assert_eq!(cluster.refused(with(size, block)).to_string(), text);
    }
    let two = records::CreateVolume { replicas: 2, ..volume_of(1, "db1", 1, 1 << 20) };
    assert_eq!(
        cluster.refused(Body::CreateVolume(two)).to_string(),
        "spec.replicas: 2 copies need as many places, not 1"
    );
}

#[test]
fn volume_grows_and_tells_everyone() {
    let mut cluster = Cluster::new();
    cluster.done(create_volume(1, "db1"));
    let applied = cluster.done(resize("db1", 2 << 20));
    let [told] = &applied.commit.unit_attentions[..] else { panic!() };
    assert_eq!(
        (told.additional, &told.volume_id[..], told.index),
        (0x2a09, &[1; 16][..], applied.commit.index)
    );
    assert_eq!((&told.only, &told.except), (&None, &None));
    assert!(cluster.done(resize("db1", 2 << 20)).commit.unit_attentions.is_empty());
    assert!(matches!(cluster.refused(resize("db1", 1 << 20)), Refusal::Precondition(_)));
    assert!(matches!(cluster.refused(resize("db1", 8 << 30)), Refusal::Precondition(_)));
}

#[test]
fn mapped_volume_and_host_in_use_are_not_deleted() {
    let mut cluster = Cluster::new();
    cluster.done(create_volume(1, "db1"));
    cluster.done(create_host("win1", &["iqn.2026-01.x:a"]));
    cluster.done(map("db1", "win1", None));
    let text = "volume db1 is mapped to host win1 as LUN 0; delete the mapping first";
    assert_eq!(cluster.refused(delete_volume("db1")).to_string(), text);
    assert_eq!(cluster.refused(delete_host("win1")).to_string(), text);
    cluster.done(unmap("db1", "win1"));
    cluster.done(delete_host("win1"));
    cluster.done(delete_volume("db1"));
}

#[test]
fn deleted_volume_stays_until_its_replica_is_removed() {
    let mut cluster = Cluster::new();
    cluster.done(create_volume(1, "db1"));
    assert!(matches!(cluster.refused(removed(1, 1)), Refusal::Precondition(_)));
    cluster.done(delete_volume("db1"));
    cluster.done(create_host("win1", &["iqn.2026-01.x:a"]));
    assert!(matches!(cluster.refused(map("db1", "win1", None)), Refusal::Precondition(_)));
    assert!(matches!(cluster.refused(create_volume(2, "db1")), Refusal::Precondition(_)));
    assert!(matches!(cluster.refused(removed(1, 2)), Refusal::Precondition(_)));
    let applied = cluster.done(removed(1, 1));
    let gone = |c: &records::Change| c.change == Some(change::Change::RemovedVolume(vec![1; 16]));
    assert!(applied.commit.changes.iter().any(gone));
    assert!(cluster.done(removed(1, 1)).commit.changes.is_empty());
    cluster.done(create_volume(2, "db1"));
}

#[test]
fn initiator_belongs_to_one_host_whatever_its_case() {
    let mut cluster = Cluster::new();
    cluster.done(create_host("win1", &["IQN.2026-01.X:A"]));
    assert_eq!(cluster.state.host_of_initiator(&iscsi("iqn.2026-01.x:a")), Some("win1"));
    assert_eq!(
        cluster.refused(create_host("win2", &["iqn.2026-01.x:b", "iqn.2026-01.x:A"])).to_string(),
        "initiator iqn.2026-01.x:a belongs to host win1; an initiator belongs to one host only"
    );
    assert!(matches!(cluster.refused(create_host("win2", &[])), Refusal::Invalid { .. }));
    let twice = ["iqn.2026-01.x:b", "IQN.2026-01.x:b"];
    assert!(matches!(cluster.refused(create_host("win2", &twice)), Refusal::Invalid { .. }));
    cluster.done(delete_host("win1"));
    cluster.done(create_host("win2", &["iqn.2026-01.x:a"]));
}

#[test]
fn luns_are_unique_per_host_and_the_lowest_free_one_is_taken() {
    let mut cluster = Cluster::new();
    for (id, name) in [(1, "a"), (2, "b"), (3, "c")] {
        cluster.done(create_volume(id, name));
    }
    cluster.done(create_host("win1", &["iqn.2026-01.x:a"]));
    let lun = |response| match response {
        Ok(Outcome::Mapping(mapping)) => mapping.lun,
        other => panic!("{other:?}"),
    };
    assert_eq!(lun(cluster.ask(map("a", "win1", Some(1)))), 1);
    assert_eq!(lun(cluster.ask(map("b", "win1", None))), 0);
    assert_eq!(lun(cluster.ask(map("c", "win1", None))), 2);
    assert!(matches!(cluster.refused(map("c", "win1", None)), Refusal::AlreadyExists { .. }));
    cluster.done(unmap("c", "win1"));
    assert_eq!(
        cluster.refused(map("c", "win1", Some(1))).to_string(),
        "LUN 1 of host win1 is volume a; choose another or none"
    );
    assert!(matches!(cluster.refused(map("c", "win1", Some(16384))), Refusal::Invalid { field: "lun", .. }));
    assert_eq!(lun(cluster.ask(map("c", "win1", Some(16383)))), 16383);
}

#[test]
fn change_of_a_lun_map_tells_that_host() {
    let mut cluster = Cluster::new();
    cluster.done(create_volume(1, "db1"));
    cluster.done(create_host("win1", &["iqn.2026-01.x:a"]));
    for body in [map("db1", "win1", None), unmap("db1", "win1")] {
        let applied = cluster.done(body);
        let [told] = &applied.commit.unit_attentions[..] else { panic!() };
        assert_eq!((told.additional, told.host.as_str(), told.volume_id.len()), (0x3f0e, "win1", 0));
    }
}

#[test]
fn same_request_again_gets_the_same_answer_and_changes_nothing() {
    let mut cluster = Cluster::new();
    let with = |digest: u8, id: u8| {
        let request = Some(records::ClientRequest { id: "r-1".to_owned(), digest: vec![digest; 32] });
        Body::CreateVolume(records::CreateVolume { request, ..volume_of(id, "db1", 1, 1 << 20) })
    };
    let first = cluster.ask(with(1, 1));
    cluster.done(resize("db1", 2 << 20));
    let before = cluster.state.clone();
    // Another id was drawn for the second try; the first one counts.
    assert_eq!(cluster.ask(with(1, 2)), first);
    assert_eq!(cluster.state, before);
    assert_eq!(cluster.refused(with(2, 3)), Refusal::RequestIdReused("r-1".to_owned()));
}

#[test]
fn refused_request_can_be_tried_again() {
    let mut cluster = Cluster::new();
    let request = Some(records::ClientRequest { id: "r-1".to_owned(), digest: vec![1; 32] });
    let delete = Body::DeleteVolume(records::DeleteVolume { request, name: "db1".to_owned() });
    cluster.refused(delete.clone());
    cluster.done(create_volume(1, "db1"));
    assert_eq!(cluster.ask(delete.clone()), Ok(Outcome::Done));
    cluster.done(removed(1, 1));
    assert_eq!(cluster.ask(delete), Ok(Outcome::Done));
}

#[test]
fn answers_are_kept_in_a_bounded_ring() {
    let mut cluster = Cluster::new();
    let kept = crate::state::limits::REQUESTS_KEPT;
    for n in 0..kept + 5 {
        let request = Some(records::ClientRequest { id: format!("r-{n}"), digest: vec![] });
        let name = if n % 2 == 0 { "a" } else { "b" };
        let body = records::CreateMapping {
            request,
            volume: name.to_owned(),
            host: "h".to_owned(),
            ..Default::default()
        };
        if n == 0 {
            cluster.done(create_volume(1, "a"));
            cluster.done(create_volume(2, "b"));
            cluster.done(create_host("h", &["iqn.2026-01.x:a"]));
        }
        cluster.done(Body::CreateMapping(body));
        cluster.done(unmap(name, "h"));
    }
    let requests = |c: &&records::Change| matches!(c.change, Some(change::Change::Request(_)));
    let all = cluster.state.to_changes();
    assert_eq!(all.iter().filter(requests).count() as u64, kept);
    assert_eq!(StateMachine::from_changes(all).unwrap(), cluster.state);
}

#[test]
fn owner_changes_by_compare_and_set_to_an_in_sync_node_only() {
    let mut cluster = Cluster::new();
    cluster.done(create_volume(1, "db1"));
    assert!(matches!(cluster.refused(change_owner(1, epoch(1), 1, 1)), Refusal::StaleEpoch { .. }));
    assert!(matches!(cluster.refused(change_owner(1, epoch(2), 2, 1)), Refusal::Precondition(_)));
    assert!(matches!(cluster.refused(change_owner(1, epoch(2), 1, 9)), Refusal::StaleIncarnation { .. }));
    cluster.done(join(1, 2));
    let applied = cluster.done(change_owner(1, epoch(2), 1, 2));
    assert!(applied.commit.unit_attentions.is_empty(), "same node, same boot: nothing for hosts to know");
    let owner = cluster.volume("db1").config.owner().unwrap();
    assert_eq!((owner.incarnation.0, cluster.volume("db1").config.epoch().number), (2, 3));
}

#[test]
fn lost_page_cache_is_told_to_every_nexus() {
    let mut cluster = Cluster::new();
    cluster.done(create_volume(1, "db1"));
    let Body::NodeJoin(mut rebooted) = join(1, 2) else { panic!() };
    rebooted.boot_id = vec![0xbb; 16];
    cluster.done(Body::NodeJoin(rebooted));
    let applied = cluster.done(change_owner(1, epoch(2), 1, 2));
    let told: Vec<u32> = applied.commit.unit_attentions.iter().map(|ua| ua.additional).collect();
    assert_eq!(told, [0x2901]);
    assert_eq!(cluster.volume("db1").record().in_sync[0].boot_id, [0xbb; 16]);
}

#[test]
fn proposal_is_carried_out_once() {
    let mut cluster = Cluster::new();
    cluster.done(create_volume(1, "db1"));
    let proposal = Body::ProposeReservation(propose(1, 0, 1, &PrOut::register(0xa)));
    let first = cluster.ask(proposal.clone());
    let Ok(Outcome::Proposal(outcome)) = &first else { panic!("{first:?}") };
    assert_eq!((outcome.status, outcome.version), (0, cluster.index));
    let before = cluster.state.clone();
    assert_eq!(cluster.ask(proposal), first);
    assert_eq!(cluster.state, before);
}

#[test]
fn proposal_against_another_version_or_epoch_does_nothing() {
    let mut cluster = Cluster::new();
    cluster.done(create_volume(1, "db1"));
    cluster.done(Body::ProposeReservation(propose(1, 0, 1, &PrOut::register(0xa))));
    let stale = propose(2, 0, 2, &PrOut::register(0xb));
    let Refusal::StaleVersion { current, .. } = cluster.refused(Body::ProposeReservation(stale.clone()))
    else {
        panic!()
    };
    let not_the_owner =
        records::ProposeReservation { proposer: 2, expected_version: current, ..stale.clone() };
    assert!(matches!(cluster.refused(Body::ProposeReservation(not_the_owner)), Refusal::StaleEpoch { .. }));
    let old_epoch = records::ProposeReservation { epoch: Some(epoch(1)), expected_version: current, ..stale };
    assert!(matches!(cluster.refused(Body::ProposeReservation(old_epoch)), Refusal::StaleEpoch { .. }));
}

#[test]
fn outcome_is_told_to_a_new_owner_too() {
    let mut cluster = Cluster::new();
    cluster.done(create_volume(1, "db1"));
    let proposal = propose(1, 0, 1, &PrOut::register(0xa));
    let first = cluster.ask(Body::ProposeReservation(proposal.clone()));
    cluster.done(join(1, 2));
    cluster.done(change_owner(1, epoch(2), 1, 2));
    assert_eq!(cluster.ask(Body::ProposeReservation(proposal)), first);
}

#[test]
fn refused_proposals_answer_with_status_and_sense_and_change_nothing() {
    let mut cluster = Cluster::new();
    cluster.done(create_volume(1, "db1"));
    let before = cluster.state.clone();
    let unregistered = propose(1, 0, 1, &PrOut::reserve(0xa, 1));
    let Ok(Outcome::Proposal(conflict)) = cluster.ask(Body::ProposeReservation(unregistered)) else {
        panic!()
    };
    assert_eq!((conflict.status, conflict.sense.len(), conflict.version), (0x18, 0, 0));
    let nonsense = propose(2, 0, 1, &PrOut { action: 9, kind: 0, key: 0, action_key: 0 });
    let Ok(Outcome::Proposal(check)) = cluster.ask(Body::ProposeReservation(nonsense)) else { panic!() };
    assert_eq!((check.status, check.sense[0], check.sense[2], check.sense[12]), (2, 0x70, 5, 0x24));
    assert_eq!(cluster.state, before);
}

#[test]
fn nexus_of_no_port_is_refused() {
    let mut cluster = Cluster::new();
    cluster.done(create_volume(1, "db1"));
    for bad in [nexus(1, 0), nexus(1, 3), nexus(1, 65_537), records::NexusName::default()] {
        let proposal =
            records::ProposeReservation { nexus: Some(bad), ..propose(1, 0, 1, &PrOut::register(1)) };
        assert!(matches!(
            cluster.refused(Body::ProposeReservation(proposal)),
            Refusal::Invalid { field: "nexus", .. }
        ));
    }
}

#[test]
fn preempt_and_abort_names_whom_it_tells_and_whose_tasks_end() {
    let mut cluster = Cluster::new();
    cluster.done(create_volume(1, "db1"));
    let mut version = 0;
    let mut run = |n, out: PrOut, id| {
        let applied = cluster.done(Body::ProposeReservation(propose(id, version, n, &out)));
        version = applied.commit.index;
        applied
    };
    run(1, PrOut::register(0xa), 1);
    run(2, PrOut::register(0xb), 2);
    run(1, PrOut::reserve(0xa, 5), 3);
    let applied = run(2, PrOut { action: 5, kind: 5, key: 0xb, action_key: 0xa }, 4);
    let told: Vec<_> =
        applied.commit.unit_attentions.iter().map(|ua| (ua.additional, ua.only.clone())).collect();
    assert_eq!(told, [(0x2a05, Some(nexus(1, 1)))]);
    let [aborts] = &applied.commit.aborts[..] else { panic!() };
    assert_eq!((&aborts.volume_id[..], &aborts.nexuses[..]), (&[1; 16][..], &[nexus(1, 1)][..]));
    let record = cluster.volume("db1").reservation_record();
    assert_eq!((record.registrants.len(), record.r#type, record.holder, record.outcomes.len()), (1, 5, 0, 4));
}

#[test]
fn unit_attention_of_a_reset_is_established_once_by_the_owner() {
    let mut cluster = Cluster::new();
    cluster.done(create_volume(1, "db1"));
    let reset = records::EstablishUnitAttention {
        request_id: vec![5; 16],
        epoch: Some(epoch(2)),
        proposer: 1,
        event: Some(records::UnitAttentionEvent {
            volume_id: vec![1; 16],
            additional: 0x2903,
            except: Some(nexus(1, 1)),
            ..Default::default()
        }),
    };
    let applied = cluster.done(Body::EstablishUnitAttention(reset.clone()));
    let [told] = &applied.commit.unit_attentions[..] else { panic!() };
    assert_eq!((told.additional, told.except.clone()), (0x2903, Some(nexus(1, 1))));
    assert_eq!(applied.response, Ok(Outcome::Established(applied.commit.index)));
    let again = cluster.done(Body::EstablishUnitAttention(reset.clone()));
    assert_eq!(again.response, applied.response);
    assert!(again.commit.unit_attentions.is_empty());
    let stranger = records::EstablishUnitAttention { request_id: vec![6; 16], proposer: 2, ..reset };
    assert!(matches!(cluster.refused(Body::EstablishUnitAttention(stranger)), Refusal::StaleEpoch { .. }));
}

#[test]
fn records_of_controllers_are_not_shown_to_nodes() {
    let mut cluster = Cluster::new();
    let request = Some(records::ClientRequest { id: "r".to_owned(), digest: vec![1] });
    let body = records::CreateVolume { request, ..volume_of(1, "db1", 1, 1 << 20) };
    let applied = cluster.done(Body::CreateVolume(body));
    let visible: Vec<_> = applied.commit.changes.iter().filter(|c| is_node_visible(c)).collect();
    assert_eq!((applied.commit.changes.len(), visible.len()), (3, 1));
}

#[test]
fn corrupt_records_are_refused() {
    let mut cluster = Cluster::new();
    cluster.done(create_volume(1, "db1"));
    let good = cluster.state.to_changes();
    let without = |kind: fn(&change::Change) -> bool| {
        let rest = good.iter().filter(|c| !c.change.as_ref().is_some_and(kind)).cloned();
        StateMachine::from_changes(rest)
    };
    assert!(without(|c| matches!(c, change::Change::Cluster(_))).is_err());
    assert!(without(|c| matches!(c, change::Change::Node(_))).is_err());
    let twice = good.iter().chain(&good).cloned();
    assert!(StateMachine::from_changes(twice).is_err());
}

#[test]
fn the_audit_holds_every_change_and_refusal_of_a_person_and_no_secret() {
    let mut cluster = Cluster::new();
    let alice = records::Caller { role: "admin".to_owned(), name: "alice".to_owned() };
    let mut ask = |body: Body| {
        cluster.index += 1;
        cluster.state.apply(cluster.index, &Command::new(1, body).by(alice.clone()))
    };
    let chap = records::Chap {
        user: "u".to_owned(),
        sealed_secret: b"sealed-secret".to_vec(),
        target_user: "t".to_owned(),
        sealed_target_secret: b"sealed-secret-2".to_vec(),
    };
    let host = records::Host {
        name: "h".to_owned(),
        initiators: vec!["iqn.2026-01.x:a".to_owned()],
        chap: Some(chap),
    };
    let request = records::ClientRequest { id: "request-id".to_owned(), digest: vec![1] };
    let create = Body::CreateHost(records::CreateHost { request: Some(request), host: Some(host) });
    let applied = ask(create.clone());
    assert_eq!(applied.events[0].caller, "admin alice");
    let [record] = applied.audit.as_slice() else { panic!("{:?}", applied.audit) };
    assert_eq!((record.action.as_str(), record.subject.as_str()), ("host.create", "host/h"));
    assert_eq!((record.part.as_str(), record.outcome.as_str()), ("management", "done"));
    let shown = format!("{record:?}");
    for hidden in ["sealed", "115, 101", "request-id"] {
        assert!(!shown.contains(hidden), "{shown}");
    }
    // Asked again it is done again, as far as the caller sees; refused is refused.
    assert_eq!(ask(create).audit.len(), 1);
    let refused = ask(delete_volume("nothing")).audit;
    assert_eq!(refused[0].reason, "volume nothing does not exist");
    let long = ask(delete_volume(&"x\n".repeat(1000))).audit;
    assert!(long[0].subject.chars().count() <= 257 && !long[0].subject.contains('\n'));
}

#[test]
fn the_audit_leaves_out_what_nobody_asked_for() {
    let mut cluster = Cluster::new();
    let node = records::Caller { role: "node".to_owned(), name: "node-1".to_owned() };
    let controller = records::Caller { role: "controller".to_owned(), name: "ctl-1".to_owned() };
    let mut ask = |body: Body, caller: &records::Caller| {
        cluster.index += 1;
        cluster.state.apply(cluster.index, &Command::new(1, body).by(caller.clone())).audit
    };
    let pools = vec![records::Pool { name: "default".to_owned(), capacity_bytes: 2, free_bytes: 1, kind: 0 }];
    let report = Body::ReportPools(records::ReportPools { number: 1, incarnation: 1, pools });
    assert!(ask(report, &node).is_empty(), "free space");
    let unchanged = ask(join(2, 1), &node);
    assert!(unchanged.is_empty(), "a session that begins again");
    assert!(ask(lost(1, 7), &controller).is_empty(), "a proposal that came too late");
    assert_eq!(ask(lost(1, 1), &controller)[0].action, "node.lost");
    let late = ask(Body::ProposeReservation(propose(1, 9, 1, &PrOut::register(1))), &node);
    assert_eq!((late[0].part.as_str(), late[0].outcome.as_str()), ("cluster", "refused"));
    let calls = vec![records::RefusedCall { method: "X/Y".to_owned(), ..Default::default() }; 100];
    let recorded = ask(Body::RecordRefusals(records::RecordRefusals { calls }), &controller);
    assert_eq!(recorded.len(), crate::state::limits::REFUSALS_PER_ENTRY_MAX);
    assert!(recorded.windows(2).all(|pair| pair[0].ordinal + 1 == pair[1].ordinal));
    assert_eq!((recorded[0].part.as_str(), recorded[0].times), ("refused", 1));
}
