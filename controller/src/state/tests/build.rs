//! Short ways to build commands and states.

use holdfast_proto::state as records;
use holdfast_scsi::transport_id::TransportId;

use crate::state::{Applied, Body, Command, Refusal, Response, StateMachine};

/// A state machine with its log position.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Cluster {
    pub(super) state: StateMachine,
    pub(super) index: u64,
}

impl Cluster {
    /// Initialised, lease term 1, nodes node-1 and node-2 (one portal, a pool of 1 GiB) live.
    pub(super) fn new() -> Cluster {
        let mut cluster = Cluster::default();
        cluster.done(Body::ClusterInit(records::ClusterInit {
            id: vec![9; 16],
            target_iqn: "iqn.2026-01.org.holdfast:cluster".to_owned(),
        }));
        cluster.done(Body::BeginLeaseTerm(records::BeginLeaseTerm { term: 1 }));
        for number in [1, 2] {
            cluster.done(join(number, 1));
            cluster.done(live(number, 1));
        }
        cluster
    }

    pub(super) fn apply(&mut self, body: Body) -> Applied {
        self.index += 1;
        let applied = self.state.apply(self.index, &Command::new(1000 * self.index, body));
        self.state.check_invariants().unwrap();
        applied
    }

    pub(super) fn ask(&mut self, body: Body) -> Response {
        self.apply(body).response
    }

    pub(super) fn done(&mut self, body: Body) -> Applied {
        let applied = self.apply(body);
        assert!(applied.response.is_ok(), "{:?}", applied.response);
        applied
    }

    /// Refused, and nothing changed.
    pub(super) fn refused(&mut self, body: Body) -> Refusal {
        let before = self.state.clone();
        let applied = self.apply(body);
        assert_eq!(self.state, before);
        assert!(applied.commit.changes.is_empty() && applied.commit.unit_attentions.is_empty());
        assert!(applied.events.is_empty());
        applied.response.unwrap_err()
    }

    pub(super) fn volume(&self, name: &str) -> &crate::state::Volume {
        self.state.volume_by_name(name).unwrap()
    }
}

pub(super) fn join(number: u32, process: u8) -> Body {
    Body::NodeJoin(records::NodeJoin {
        name: format!("node-{number}"),
        boot_id: vec![number as u8; 16],
        process_id: vec![process; 16],
        portals: vec![format!("127.0.0.{number}:3260")],
        interconnect: format!("127.0.0.{number}:3270"),
        pools: vec![records::Pool {
            name: "default".to_owned(),
            capacity_bytes: 2 << 30,
            free_bytes: 1 << 30,
            kind: 0,
        }],
        version: String::new(),
        replicates: true,
    })
}

pub(super) fn live(number: u32, incarnation: u64) -> Body {
    Body::NodeLive(records::NodeLive { number, incarnation, lease_term: 1 })
}

pub(super) fn lost(number: u32, incarnation: u64) -> Body {
    Body::NodeLost(records::NodeLost { number, incarnation, lease_term: 1 })
}

/// `id` tells volumes apart.
pub(super) fn volume_of(id: u8, name: &str, node: u32, size_bytes: u64) -> records::CreateVolume {
    records::CreateVolume {
        request: None,
        id: vec![id; 16],
        name: name.to_owned(),
        size_bytes,
        block_size: 512,
        physical_block_exponent: 3,
        write_cache: true,
        thin: true,
        checksums: false,
        volatile: false,
        replicas: 1,
        node,
        pool: "default".to_owned(),
        others: Vec::new(),
    }
}

pub(super) fn create_volume(id: u8, name: &str) -> Body {
    Body::CreateVolume(volume_of(id, name, 1, 1 << 20))
}

pub(super) fn delete_volume(name: &str) -> Body {
    Body::DeleteVolume(records::DeleteVolume { request: None, name: name.to_owned() })
}

pub(super) fn resize(name: &str, size_bytes: u64) -> Body {
    Body::ResizeVolume(records::ResizeVolume { request: None, name: name.to_owned(), size_bytes })
}

pub(super) fn removed(id: u8, number: u32) -> Body {
    Body::RemoveReplica(records::RemoveReplica { volume_id: vec![id; 16], number })
}

pub(super) fn create_host(name: &str, initiators: &[&str]) -> Body {
    Body::CreateHost(records::CreateHost {
        request: None,
        host: Some(records::Host {
            name: name.to_owned(),
            initiators: initiators.iter().map(|i| (*i).to_owned()).collect(),
            chap: None,
        }),
    })
}

pub(super) fn delete_host(name: &str) -> Body {
    Body::DeleteHost(records::DeleteHost { request: None, name: name.to_owned() })
}

pub(super) fn map(volume: &str, host: &str, lun: Option<u32>) -> Body {
    Body::CreateMapping(records::CreateMapping {
        request: None,
        volume: volume.to_owned(),
        host: host.to_owned(),
        lun,
        read_only: false,
        group: String::new(),
    })
}

pub(super) fn unmap(volume: &str, host: &str) -> Body {
    Body::DeleteMapping(records::DeleteMapping {
        request: None,
        volume: volume.to_owned(),
        host: host.to_owned(),
        group: String::new(),
    })
}

pub(super) fn change_owner(id: u8, expected: records::Epoch, owner: u32, incarnation: u64) -> Body {
    Body::ChangeOwner(records::ChangeOwner {
        volume_id: vec![id; 16],
        expected: Some(expected),
        owner,
        owner_incarnation: incarnation,
        lease_term: 1,
    })
}

pub(super) fn epoch(number: u64) -> records::Epoch {
    records::Epoch { generation: 0, number }
}

/// An initiator port of this node.
pub(super) fn iscsi(name: &str) -> TransportId {
    TransportId::iscsi(name, [1; 6]).unwrap()
}

/// Initiator `n` through port `port`.
pub(super) fn nexus(n: u8, port: u32) -> records::NexusName {
    let id = TransportId::iscsi(&format!("iqn.2026-01.x:host-{n}"), [n; 6]).unwrap();
    records::NexusName { transport_id: id.as_bytes().to_vec(), relative_port: port }
}

/// PERSISTENT RESERVE OUT with a parameter list of 24 bytes.
#[derive(Debug)]
pub(super) struct PrOut {
    pub(super) action: u8,
    pub(super) kind: u8,
    pub(super) key: u64,
    pub(super) action_key: u64,
}

impl PrOut {
    pub(super) fn register(key: u64) -> PrOut {
        PrOut { action: 0, kind: 0, key: 0, action_key: key }
    }

    pub(super) fn reserve(key: u64, kind: u8) -> PrOut {
        PrOut { action: 1, kind, key, action_key: 0 }
    }

    pub(super) fn bytes(&self) -> (Vec<u8>, Vec<u8>) {
        let mut list = vec![0; 24];
        list[..8].copy_from_slice(&self.key.to_be_bytes());
        list[8..16].copy_from_slice(&self.action_key.to_be_bytes());
        (vec![0x5f, self.action, self.kind, 0, 0, 0, 0, 0, 24, 0], list)
    }
}

/// Proposal `id` by node 1 in the first epoch, on volume 1.
pub(super) fn propose(id: u8, expected_version: u64, n: u8, out: &PrOut) -> records::ProposeReservation {
    let (cdb, parameter_list) = out.bytes();
    records::ProposeReservation {
        proposal_id: vec![id; 16],
        volume_id: vec![1; 16],
        epoch: Some(epoch(2)),
        proposer: 1,
        expected_version,
        nexus: Some(nexus(n, 1)),
        cdb,
        parameter_list,
        now_unix_ms: 0,
        event: 0,
    }
}

pub(super) fn remove_node(number: u32, lease_term: u64) -> Body {
    Body::RemoveNode(records::RemoveNode {
        name: format!("node-{number}"),
        number,
        lease_term,
        request: None,
    })
}

/// Node `number` under boot `boot`, in a process of its own.
pub(super) fn boot(number: u32, boot: u8, process: u8) -> Body {
    let Body::NodeJoin(join) = join(number, process) else { unreachable!() };
    Body::NodeJoin(records::NodeJoin { boot_id: vec![boot; 16], ..join })
}

/// A volume with a copy on each of `nodes`, the first of which owns it.
pub(super) fn replicated(id: u8, name: &str, nodes: &[u32], write_cache: bool) -> Body {
    let others = nodes[1..].iter().map(|n| records::ReplicaPlace { node: *n, pool: "default".to_owned() });
    Body::CreateVolume(records::CreateVolume {
        replicas: nodes.len() as u32,
        others: others.collect(),
        write_cache,
        ..volume_of(id, name, nodes[0], 1 << 20)
    })
}

impl Cluster {
    /// Nodes node-1 to node-`count`, live.
    pub(super) fn of(count: u32) -> Cluster {
        let mut cluster = Cluster::new();
        for number in 3..=count {
            cluster.done(join(number, 1));
            cluster.done(live(number, 1));
        }
        cluster
    }

    /// A change that the owner of the volume asks for, as it is now.
    pub(super) fn by_owner(&self, name: &str, change: records::change_configuration::Change) -> Body {
        let record = self.volume(name).record();
        Body::ChangeConfiguration(records::ChangeConfiguration {
            volume_id: record.id,
            expected: record.epoch,
            proposer: record.owner,
            owner_incarnation: record.owner_incarnation,
            lease_term: 1,
            change: Some(change),
        })
    }

    pub(super) fn evict(&self, name: &str, node: u32) -> Body {
        let reason = "silent".to_owned();
        self.by_owner(
            name,
            records::change_configuration::Change::Evict(records::EvictReplica { node, reason }),
        )
    }

    /// Under the boot that the node has now.
    pub(super) fn admit(&self, name: &str, node: u32) -> Body {
        let boot_id = self.state.node(node).map_or(Vec::new(), |node| node.boot_id.clone());
        self.by_owner(
            name,
            records::change_configuration::Change::Admit(records::AdmitReplica { node, boot_id }),
        )
    }

    pub(super) fn hand_over(&self, name: &str, to: u32, leave: bool) -> Body {
        let reason = String::new();
        self.by_owner(
            name,
            records::change_configuration::Change::HandOver(records::HandOver { to, leave, reason }),
        )
    }

    pub(super) fn returned(&self, name: &str, node: u32) -> Body {
        let record = self.volume(name).record();
        Body::ReturnReplica(records::ReturnReplica {
            volume_id: record.id,
            expected: record.epoch,
            node,
            incarnation: self.state.node(node).map_or(0, |node| node.incarnation),
            lease_term: 1,
        })
    }

    pub(super) fn promoted(&self, name: &str, node: u32) -> Body {
        let record = self.volume(name).record();
        Body::ChangeOwner(records::ChangeOwner {
            volume_id: record.id,
            expected: record.epoch,
            owner: node,
            owner_incarnation: self.state.node(node).map_or(0, |node| node.incarnation),
            lease_term: 1,
        })
    }

    pub(super) fn recovered(&self, name: &str, node: u32) -> Body {
        Body::ForceRecovery(records::ForceRecovery {
            request: None,
            volume: name.to_owned(),
            expected: self.volume(name).record().epoch,
            node,
            incarnation: self.state.node(node).map_or(0, |node| node.incarnation),
            lease_term: 1,
        })
    }

    /// Nodes in sync, catching up, absent, being removed.
    pub(super) fn sets(&self, name: &str) -> [Vec<u32>; 4] {
        let record = self.volume(name).record();
        [record.in_sync, record.learners, record.absent, record.removing]
            .map(|members| members.iter().map(|m| m.node).collect())
    }
}

pub(super) fn add_replica(name: &str, node: u32, replaces: u32) -> Body {
    Body::AddReplica(records::AddReplica {
        request: None,
        volume: name.to_owned(),
        place: Some(records::ReplicaPlace { node, pool: "default".to_owned() }),
        replaces,
        missing: false,
    })
}

pub(super) fn drop_replica(name: &str, node: u32, fewer: bool) -> Body {
    Body::DropReplica(records::DropReplica { request: None, volume: name.to_owned(), node, fewer })
}

pub(super) fn drain(number: u32, evacuate: bool) -> Body {
    Body::CordonNode(records::CordonNode {
        name: format!("node-{number}"),
        cordoned: true,
        drain: true,
        evacuate,
        request: None,
    })
}
