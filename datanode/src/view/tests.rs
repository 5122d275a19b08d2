use super::*;
use holdfast_proto::state::{self, change::Change as Record};

fn no_secrets(_: &str, _: &[u8]) -> Result<Vec<u8>, String> {
    Err("sealed with another key".into())
}

fn change(record: Record) -> state::Change {
    state::Change { change: Some(record) }
}

fn empty() -> ClusterView {
    let me = NodeNumber::new(1).unwrap();
    ClusterView::empty(ClusterId([7; 16]), "iqn.2026-01.holdfast:c", me, Incarnation(3))
}

fn node(number: u32) -> state::Node {
    state::Node {
        name: format!("node-{number}"),
        number,
        ports: vec![state::Port { relative_port: number, portal: format!("127.0.0.1:{}", 3260 + number) }],
        interconnect: format!("127.0.0.1:{}", 4000 + number),
        boot_id: vec![number as u8; 16],
        incarnation: 3,
        live: true,
        ..Default::default()
    }
}

fn volume(id: u8) -> state::Volume {
    state::Volume {
        id: vec![id; 16],
        name: format!("volume-{id}"),
        size_bytes: 1 << 20,
        block_size: 512,
        replicas: 1,
        epoch: Some(state::Epoch { generation: 0, number: 4 }),
        owner: 1,
        owner_incarnation: 3,
        in_sync: vec![state::ReplicaMember { node: 1, boot_id: vec![1; 16], pool: "default".into() }],
        min_in_sync: 1,
        ..Default::default()
    }
}

fn host(name: &str, initiator: &str) -> state::Host {
    state::Host { name: name.into(), initiators: vec![initiator.into()], chap: None }
}

fn mapping(host: &str, volume: u8, lun: u32) -> state::Mapping {
    state::Mapping {
        host: host.into(),
        volume_id: vec![volume; 16],
        lun,
        read_only: false,
        group: String::new(),
    }
}

fn registrant(port: u32) -> state::Registrant {
    let id = holdfast_scsi::transport_id::TransportId::iscsi("iqn.x:h", [0, 2, 0x3d, 0, 0, 1]).unwrap();
    state::Registrant {
        transport_id: id.as_bytes().to_vec(),
        relative_port: port,
        key: 5,
        all_target_ports: false,
        origin: None,
    }
}

fn whole() -> Vec<state::Change> {
    vec![
        // In front of its volume, as a snapshot in order of keys may have it.
        change(Record::Reservation(state::Reservation {
            volume_id: vec![9; 16],
            version: 10,
            generation: 2,
            registrants: vec![registrant(1), registrant(2)],
            r#type: 5,
            holder: 1,
            ..Default::default()
        })),
        change(Record::Node(node(1))),
        change(Record::Node(node(2))),
        change(Record::Volume(volume(9))),
        change(Record::Host(host("db1", "IQN.2026-01.x:DB1"))),
        change(Record::Mapping(mapping("db1", 9, 4))),
    ]
}

fn problem_of(records: Vec<state::Change>) -> String {
    empty().with_changes(20, &records, &no_secrets).unwrap_err().to_string()
}

#[test]
fn whole_picture_is_read() {
    let view = empty().with_changes(20, &whole(), &no_secrets).unwrap();
    assert_eq!(view.index, 20);
    let volume = view.owned_volume(VolumeId([9; 16])).unwrap();
    assert_eq!(volume.reservations.version, 10);
    let reservation = volume.reservations.state.reservations.reservation().unwrap();
    assert_eq!(reservation.holder().unwrap().port, RelativePort(2));
    assert_eq!(view.owner_of(volume).unwrap().name, "node-1");
    assert_eq!(view.host_of("iqn.2026-01.X:db1").unwrap().name, "db1");
    assert_eq!(view.mappings_of("db1").iter().map(|m| m.lun).collect::<Vec<_>>(), [4]);
    assert_eq!(view.mappings_of("db2"), []);
}

#[test]
fn what_another_incarnation_owns_is_not_ours() {
    let mut records = whole();
    records.push(change(Record::Volume(state::Volume { owner_incarnation: 2, ..volume(9) })));
    let view = empty().with_changes(20, &records, &no_secrets).unwrap();
    assert!(view.owned_volume(VolumeId([9; 16])).is_none());
}

#[test]
fn volume_keeps_its_reservations_when_its_record_changes() {
    let first = empty().with_changes(20, &whole(), &no_secrets).unwrap();
    let grown = state::Volume { size_bytes: 2 << 20, ..volume(9) };
    let next = first.with_changes(21, &[change(Record::Volume(grown))], &no_secrets).unwrap();
    let volume = &next.volumes[&VolumeId([9; 16])];
    assert_eq!(volume.geometry.blocks(), 4096);
    assert_eq!(volume.reservations.version, 10);
    assert!(Arc::ptr_eq(&first.hosts, &next.hosts), "what has not changed is shared");
}

#[test]
fn removal_takes_the_initiators_and_mappings_along() {
    let first = empty().with_changes(20, &whole(), &no_secrets).unwrap();
    let removals = [
        change(Record::RemovedMapping(state::MappingKey { host: "db1".into(), volume_id: vec![9; 16] })),
        change(Record::RemovedHost("db1".into())),
        change(Record::RemovedVolume(vec![9; 16])),
        change(Record::RemovedNode("node-2".into())),
    ];
    let next = first.with_changes(21, &removals, &no_secrets).unwrap();
    assert!(next.hosts.is_empty() && next.host_by_initiator.is_empty() && next.volumes.is_empty());
    assert!(next.mappings.is_empty());
    assert_eq!(next.nodes.len(), 1);
}

#[test]
fn initiator_moves_with_its_host_record() {
    let first = empty().with_changes(20, &whole(), &no_secrets).unwrap();
    let renamed = [change(Record::Host(host("db1", "iqn.2026-01.x:new")))];
    let next = first.with_changes(21, &renamed, &no_secrets).unwrap();
    assert!(next.host_of("iqn.2026-01.x:db1").is_none());
    assert!(next.host_of("iqn.2026-01.x:new").is_some());
}

#[test]
fn records_that_contradict_each_other_make_no_view() {
    let with = |record| {
        let mut records = whole();
        records.push(change(record));
        problem_of(records)
    };
    let message = with(Record::Host(host("db2", "iqn.2026-01.x:db1")));
    assert_eq!(message, "host 'db2': iqn.2026-01.x:db1 belongs to host 'db1' too");
    let message = with(Record::Mapping(mapping("db2", 9, 1)));
    assert_eq!(message, "mapping 'db2': its host does not exist");
    assert!(with(Record::RemovedVolume(vec![9; 16])).contains("does not exist"));
    let stolen_port = state::Node { ports: node(1).ports, ..node(2) };
    assert!(with(Record::Node(stolen_port)).contains("relative port 1 is node"));
    let second = vec![change(Record::Volume(volume(8))), change(Record::Mapping(mapping("db1", 8, 4)))];
    let message = problem_of(whole().into_iter().chain(second).collect());
    assert_eq!(message, "mapping 'db1': LUN 4 is given twice");
}

#[test]
fn fields_out_of_range_make_no_view() {
    let bad_volumes = [
        state::Volume { id: vec![9; 15], ..volume(9) },
        state::Volume { block_size: 0, ..volume(9) },
        state::Volume { size_bytes: 513, ..volume(9) },
        state::Volume { physical_block_exponent: 9, ..volume(9) },
        state::Volume { epoch: None, ..volume(9) },
        state::Volume { owner: 2, ..volume(9) },
        state::Volume { owner: 70_000, ..volume(9) },
        state::Volume { in_sync: vec![], ..volume(9) },
        state::Volume { min_in_sync: 0, ..volume(9) },
    ];
    for bad in bad_volumes {
        assert!(problem_of(vec![change(Record::Volume(bad))]).starts_with("volume 'volume-9'"));
    }
    let bad_node = state::Node { interconnect: "nowhere".into(), ..node(1) };
    assert_eq!(
        problem_of(vec![change(Record::Node(bad_node))]),
        "node 'node-1': 'nowhere' is not ADDRESS:PORT"
    );
    assert!(problem_of(vec![change(Record::Mapping(mapping("db1", 9, 16384)))]).contains("above 16383"));
    assert!(problem_of(vec![state::Change { change: None }]).contains("does not know"));
    let other = state::Cluster { id: vec![8; 16], ..Default::default() };
    assert!(problem_of(vec![change(Record::Cluster(other))]).contains("not that of the session"));
}

#[test]
fn reservations_are_checked_and_never_go_back() {
    let reservation = |r#type, holder| state::Reservation {
        volume_id: vec![9; 16],
        version: 11,
        registrants: vec![registrant(1)],
        r#type,
        holder,
        ..Default::default()
    };
    let with = |r| {
        let mut records = whole();
        records.push(change(Record::Reservation(r)));
        empty().with_changes(20, &records, &no_secrets)
    };
    assert!(with(reservation(7, -1)).is_ok());
    for (kind, holder) in [(0, 0), (1, -1), (7, 0), (2, 0), (1, 1), (1, -2)] {
        assert!(with(reservation(kind, holder)).is_err(), "type {kind}, holder {holder}");
    }
    let older = state::Reservation { version: 9, ..reservation(1, 0) };
    assert!(with(older).unwrap_err().problem.contains("version 9 after 10"));
}

#[test]
fn secret_that_cannot_be_opened_makes_no_view() {
    let chap = state::Chap { user: "u".into(), sealed_secret: vec![1; 40], ..Default::default() };
    let locked = state::Host { chap: Some(chap), ..host("db1", "iqn.2026-01.x:db1") };
    let records = [change(Record::Host(locked))];
    assert_eq!(
        empty().with_changes(1, &records, &no_secrets).unwrap_err().to_string(),
        "host 'db1': sealed with another key"
    );
    let opened = empty().with_changes(1, &records, &|context, _| Ok(context.into())).unwrap();
    let chap = opened.hosts["db1"].chap.as_ref().unwrap();
    assert_eq!(chap.secret.as_bytes(), b"host/db1/chap");
    assert_eq!(format!("{:?}", chap.secret), "Secret(..)");
    assert!(chap.target.is_none());
}

#[test]
fn events_are_numbered_by_index_and_ordinal() {
    let event = state::UnitAttentionEvent { index: 7, ordinal: 2, additional: 0x2a09, ..Default::default() };
    let parsed = parse::unit_attentions(std::slice::from_ref(&event)).unwrap();
    assert_eq!(parsed[0].id, (7 << 16) | 2);
    assert_eq!(parsed[0].additional, AdditionalSense::new(0x2a, 0x09));
    assert_eq!((&parsed[0].volume, &parsed[0].host), (&None, &None));
    let bad = state::UnitAttentionEvent { additional: 0x1_0000, ..event };
    assert!(parse::unit_attentions(&[bad]).is_err());
}

#[test]
fn room_elsewhere_is_the_least_below_the_other_copies() {
    let member = |node: u8| state::ReplicaMember {
        node: u32::from(node),
        boot_id: vec![node; 16],
        pool: "default".into(),
    };
    let with_room = |number, free_bytes| state::Node {
        pools: [("other", 1), ("default", free_bytes)]
            .map(|(name, free_bytes)| state::Pool {
                name: name.into(),
                capacity_bytes: 1000,
                free_bytes,
                kind: 0,
            })
            .into(),
        ..node(number)
    };
    let record = state::Volume { replicas: 3, in_sync: vec![member(1), member(2), member(3)], ..volume(1) };
    let mut view = empty();
    let id = VolumeId([1; 16]);
    // Its own room is not looked up here; of a node that told nothing nothing is known.
    for (index, (record, wanted)) in [
        (Record::Node(with_room(1, 5)), None),
        (Record::Node(node(2)), None),
        (Record::Node(node(3)), None),
        (Record::Volume(record), None),
        (Record::Node(with_room(2, 70)), Some(70)),
        (Record::Node(with_room(3, 60)), Some(60)),
        (Record::Node(with_room(3, 80)), Some(70)),
    ]
    .into_iter()
    .enumerate()
    {
        let nodes = Arc::clone(&view.nodes);
        view = view.with_changes(index as u64 + 1, &[change(record)], &no_secrets).unwrap();
        assert_eq!(view.least_room_elsewhere(id), wanted, "after record {index}");
        // What tells of pools only is no change of the nodes.
        assert!(index < 4 || Arc::ptr_eq(&nodes, &view.nodes));
    }
}
