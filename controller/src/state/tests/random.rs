//! Random commands: none panics, every invariant holds after each, the state survives its records, replay is exact.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_proto::state::{self as records, change};
use proptest::prelude::*;

use super::build::*;
use crate::state::{Body, Command, StateMachine, limits};

const NAMES: [&str; 4] = ["a", "b", "c", "not a name"];
const INITIATORS: [&str; 4] = ["iqn.2026-01.x:host-1", "iqn.2026-01.x:host*", "IQN.2026-01.x:host-1", "x"];

fn name() -> impl Strategy<Value = &'static str> {
    prop_oneof![3 => Just("a"), 2 => Just("b"), 2 => Just("c"), 1 => Just(NAMES[3])]
}

fn request() -> impl Strategy<Value = Option<records::ClientRequest>> {
    let some = (0u8..20, 0u8..2).prop_map(|(id, digest)| {
        Some(records::ClientRequest { id: format!("r{id}"), digest: vec![digest; 32] })
    });
    prop_oneof![Just(None), some]
}

fn pr_out() -> impl Strategy<Value = PrOut> {
    let key = || 0u64..4;
    (0u8..9, 0u8..10, key(), key()).prop_map(|(action, kind, key, action_key)| PrOut {
        action,
        kind,
        key,
        action_key,
    })
}

fn edit() -> impl Strategy<Value = records::MappingEdit> {
    (name(), name(), any::<bool>(), proptest::option::of(0u32..4), any::<bool>(), 0u8..4).prop_map(
        |(volume, name, of_group, lun, read_only, remove)| records::MappingEdit {
            volume: volume.to_owned(),
            host: if of_group { String::new() } else { name.to_owned() },
            group: if of_group { name.to_owned() } else { String::new() },
            lun,
            read_only,
            remove: remove == 0,
        },
    )
}

/// Commands that name things that may exist; versions and epochs are put right half of the time by `steer`.
fn body() -> impl Strategy<Value = Body> {
    let node = || 1u32..4;
    prop_oneof![
        (node(), 1u8..4).prop_map(|(n, process)| join(n, process)),
        (node(), 1u64..4).prop_map(|(n, incarnation)| live(n, incarnation)),
        (node(), 1u64..4).prop_map(|(n, incarnation)| lost(n, incarnation)),
        (node(), any::<bool>(), any::<bool>()).prop_map(|(n, cordoned, drain)| Body::CordonNode(
            records::CordonNode {
                name: format!("node-{n}"),
                cordoned,
                drain: cordoned && drain,
                evacuate: false,
                request: None,
            }
        )),
        (request(), 1u8..5, name(), node(), 0u64..4).prop_map(|(request, id, name, node, mib)| {
            Body::CreateVolume(records::CreateVolume { request, ..volume_of(id, name, node, mib << 20) })
        }),
        (name(), 0u64..6).prop_map(|(name, mib)| resize(name, mib << 20)),
        name().prop_map(delete_volume),
        (1u8..5, node()).prop_map(|(id, node)| removed(id, node)),
        (name(), 0usize..4, 0usize..4)
            .prop_map(|(name, a, b)| create_host(name, &[INITIATORS[a], INITIATORS[b]])),
        (name(), 0usize..4).prop_map(|(name, a)| create_host(name, &[INITIATORS[a]])),
        name().prop_map(delete_host),
        (name(), name(), proptest::option::of(0u32..3)).prop_map(|(v, h, lun)| map(v, h, lun)),
        (name(), name()).prop_map(|(v, h)| unmap(v, h)),
        (1u8..5, 0u64..6, node(), 1u64..4).prop_map(|(id, number, node, incarnation)| change_owner(
            id,
            epoch(number),
            node,
            incarnation
        )),
        (name(), 0usize..4, 0usize..4, any::<bool>()).prop_map(|(name, a, b, clear_chap)| {
            let pick = |at: usize| vec![INITIATORS[at].to_owned()];
            Body::UpdateHost(records::UpdateHost {
                name: name.to_owned(),
                add_initiators: pick(a),
                remove_initiators: if b == 0 { Vec::new() } else { pick(b) },
                clear_chap,
                ..Default::default()
            })
        }),
        any::<bool>().prop_map(|allowed| Body::SetWildcardInitiators(records::SetWildcardInitiators {
            request: None,
            allowed
        })),
        (name(), proptest::collection::vec(name(), 0..3)).prop_map(|(name, hosts)| {
            let hosts = hosts.into_iter().map(str::to_owned).collect();
            Body::CreateHostGroup(records::CreateHostGroup { request: None, name: name.to_owned(), hosts })
        }),
        (name(), name(), any::<bool>()).prop_map(|(name, host, add)| {
            let hosts = vec![host.to_owned()];
            let (add_hosts, remove_hosts) = if add { (hosts, Vec::new()) } else { (Vec::new(), hosts) };
            let name = name.to_owned();
            Body::UpdateHostGroup(records::UpdateHostGroup { request: None, name, add_hosts, remove_hosts })
        }),
        name().prop_map(|name| Body::DeleteHostGroup(records::DeleteHostGroup {
            request: None,
            name: name.to_owned()
        })),
        (request(), proptest::collection::vec(edit(), 0..5), any::<bool>()).prop_map(
            |(request, edits, prune)| Body::ApplyMappings(records::ApplyMappings { request, edits, prune })
        ),
        (0u64..6, 0u64..3, 0i32..5).prop_map(|(id, done, state)| match done {
            0 => Body::EndJob(records::EndJob { id, state, message: String::new() }),
            1 => Body::CancelJob(records::CancelJob { request: None, id }),
            _ => Body::ReportJob(records::ReportJob { id, done, total: done, message: "x".to_owned() }),
        }),
        (request(), name(), 0i32..6).prop_map(|(request, name, kind)| {
            let subject = format!("volume/{name}");
            Body::BeginJob(records::BeginJob { request, kind, subject, ..Default::default() })
        }),
        (any::<u8>(), 1u8..5, 0u64..4, 1u8..4, 1u32..4, node(), pr_out()).prop_map(
            |(id, volume, version, n, port, proposer, out)| {
                Body::ProposeReservation(records::ProposeReservation {
                    volume_id: vec![volume; 16],
                    proposer,
                    nexus: Some(nexus(n, port)),
                    ..propose(id, version, n, &out)
                })
            }
        ),
    ]
}

/// Makes a command current, so that deep states are reached.
fn steer(state: &StateMachine, mut body: Body) -> Body {
    match &mut body {
        Body::ProposeReservation(proposal) => {
            if let Some(volume) = state.volumes().find(|v| v.id.0[..] == proposal.volume_id[..]) {
                let record = volume.record();
                proposal.epoch = record.epoch;
                proposal.proposer = record.owner;
                proposal.expected_version = volume.reservation_version;
            }
        }
        Body::ChangeOwner(change) => {
            if let Some(volume) = state.volumes().find(|v| v.id.0[..] == change.volume_id[..]) {
                let record = volume.record();
                change.expected = record.epoch;
                change.owner = record.owner;
                change.owner_incarnation = state.node(record.owner).map_or(0, |n| n.incarnation);
            }
        }
        _ => {}
    }
    body
}

/// What must not go back, looked at from outside.
#[derive(Default)]
struct History {
    ports: BTreeMap<u32, String>,
    epochs: BTreeMap<[u8; 16], (u32, u64)>,
    dead: BTreeSet<[u8; 16]>,
}

impl History {
    fn check(&mut self, state: &StateMachine) {
        for node in state.nodes() {
            for port in &node.ports {
                let owner = self.ports.entry(port.relative_port).or_insert_with(|| node.name.clone());
                assert_eq!(*owner, node.name, "a relative port moved to another node");
            }
        }
        let mut hosts_of_initiators = BTreeSet::new();
        for initiator in state.hosts().flat_map(|h| &h.initiators) {
            assert!(hosts_of_initiators.insert(initiator), "{initiator} belongs to two hosts");
        }
        let alive: BTreeSet<[u8; 16]> = state.volumes().map(|v| v.id.0).collect();
        for volume in state.volumes() {
            let epoch = volume.config.epoch();
            let now = (epoch.generation, epoch.number);
            let before = self.epochs.insert(volume.id.0, now);
            if !self.dead.remove(&volume.id.0) {
                assert!(before.is_none_or(|b| b <= now), "an epoch went back");
            }
            let owner = volume.config.owner();
            assert!(owner.is_none_or(|o| volume.config.in_sync().iter().any(|m| m.node == o.node)));
            assert!(volume.lu.reservations.registrants().len() <= holdfast_scsi::limits::PR_REGISTRANTS_MAX);
            assert!(volume.reservation_record().outcomes.len() <= limits::OUTCOMES_PER_VOLUME_KEPT);
        }
        self.dead.extend(self.epochs.keys().filter(|id| !alive.contains(*id)));
    }
}

/// The key of a record, and whether the change removes it (with what hangs on it).
fn key(change: &change::Change) -> (Vec<String>, bool) {
    use change::Change as C;
    let volume = |id: &[u8]| format!("volume {id:?}");
    match change {
        C::Cluster(_) => (vec!["cluster".to_owned()], false),
        C::Node(node) => (vec![format!("node {}", node.name)], false),
        C::Volume(v) => (vec![volume(&v.id)], false),
        C::Reservation(r) => (vec![format!("reservation {:?}", r.volume_id)], false),
        C::Host(host) => (vec![format!("host {}", host.name)], false),
        C::Mapping(m) => (vec![format!("mapping {} {:?}", m.host, m.volume_id)], false),
        C::Request(r) => {
            (vec![format!("request {} {}", r.of_node, r.sequence % limits::REQUESTS_KEPT)], false)
        }
        C::Head(_) => (vec!["head".to_owned()], false),
        C::RemovedNode(name) => (vec![format!("node {name}")], true),
        C::RemovedVolume(id) => (vec![volume(id), format!("reservation {id:?}")], true),
        C::RemovedHost(name) => (vec![format!("host {name}")], true),
        C::HostGroup(group) => (vec![format!("group {}", group.name)], false),
        C::RemovedHostGroup(name) => (vec![format!("group {name}")], true),
        C::Job(job) => (vec![format!("job {}", job.id)], false),
        C::RemovedJob(id) => (vec![format!("job {id}")], true),
        C::RemovedMapping(k) => (vec![format!("mapping {} {:?}", k.host, k.volume_id)], true),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn invariants_hold_after_every_command(bodies in proptest::collection::vec((body(), any::<bool>()), 1..120)) {
        let mut cluster = Cluster::new();
        let mut history = History::default();
        // What a member has on disk: the changes of all commits, by key.
        let mut disk: BTreeMap<String, records::Change> = BTreeMap::new();
        for change in cluster.state.to_changes() {
            let key = key(change.change.as_ref().unwrap()).0.remove(0);
            disk.insert(key, change);
        }
        let start = cluster.clone();
        let mut log = Vec::new();
        for (body, steered) in bodies {
            let body = if steered { steer(&cluster.state, body) } else { body };
            let command = Command::new(5, body);
            let before = cluster.state.clone();
            cluster.index += 1;
            let applied = cluster.state.apply(cluster.index, &command);
            log.push((cluster.index, command, applied.clone()));
            cluster.state.check_invariants().unwrap();
            history.check(&cluster.state);
            if applied.response.is_err() {
                prop_assert_eq!(&before, &cluster.state);
            }
            for change in applied.commit.changes {
                let (keys, removed) = key(change.change.as_ref().unwrap());
                for key in keys {
                    if removed { disk.remove(&key); } else { disk.insert(key, change.clone()); }
                }
            }
        }
        // The records are the state: those of a snapshot, and those that a member has written commit by commit.
        prop_assert_eq!(StateMachine::from_changes(cluster.state.to_changes()), Ok(cluster.state.clone()));
        prop_assert_eq!(StateMachine::from_changes(disk.into_values()), Ok(cluster.state.clone()));
        // Another member that reads the same log does the same.
        let mut other = start;
        for (index, command, applied) in log {
            let command = Command::decode(&command.encode()).unwrap();
            prop_assert_eq!(other.state.apply(index, &command), applied);
        }
        prop_assert_eq!(other.state, cluster.state);
    }

    #[test]
    fn bytes_of_any_kind_decode_or_fail(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(command) = Command::decode(&bytes) {
            let mut cluster = Cluster::new();
            cluster.apply(command.body);
        }
    }
}
