//! The cluster as it is before anything goes wrong.

use holdfast_controller::{lease::TICK_MS, state::Body};
use holdfast_proto::state as records;

use super::{Event, HOSTS, MEMBERS, NODES, Simulation, VOLUMES};

/// Volume ids are this in every byte, and the number.
pub(super) fn volume_id(volume: usize) -> Vec<u8> {
    vec![volume as u8 + 1; 16]
}

/// The cluster's id.
pub(super) const CLUSTER: [u8; 16] = [9; 16];
/// A volume with a write cache may lose what was not flushed, when every copy has lost power; the other one never anything.
pub(super) fn caches(volume: usize) -> bool {
    volume % 2 == 1
}

/// Of each volume.
pub(super) const COPIES: usize = 2;
/// Blocks of a volume at first: the least that there may be.
const BLOCKS: u64 = 2048;
/// Those of them that replicas keep: as many as hosts use, in several extents and chunks.
const KEPT: u64 = 16;

/// Where replicas keep a block: the first ones, and all that a volume has grown by.
pub(super) fn kept(lba: u64) -> u64 {
    if lba < BLOCKS { lba } else { lba - BLOCKS + KEPT }
}

impl Simulation {
    /// The cluster as an administrator has made it: nodes known, volumes of two copies, hosts, maps.
    pub(super) fn found(&mut self) {
        let mut bodies = vec![Body::ClusterInit(records::ClusterInit {
            id: CLUSTER.to_vec(),
            target_iqn: "iqn.2026-11.example:target".to_owned(),
        })];
        bodies.push(Body::BeginLeaseTerm(records::BeginLeaseTerm { term: 1 }));
        for node in 0..NODES {
            bodies.push(Body::NodeJoin(super::node::join(node, 1)));
            let number = node as u32 + 1;
            bodies.push(Body::NodeLive(records::NodeLive { number, incarnation: 1, lease_term: 1 }));
        }
        for volume in 0..VOLUMES {
            let place = |node: usize| (node % NODES) as u32 + 1;
            bodies.push(Body::CreateVolume(records::CreateVolume {
                id: volume_id(volume),
                name: format!("volume-{volume}"),
                size_bytes: BLOCKS * 512,
                block_size: 512,
                physical_block_exponent: 3,
                write_cache: caches(volume),
                thin: true,
                checksums: false,
                volatile: false,
                replicas: COPIES as u32,
                node: place(volume),
                pool: "default".to_owned(),
                others: vec![records::ReplicaPlace { node: place(volume + 1), pool: "default".to_owned() }],
                ..Default::default()
            }));
        }
        for host in 0..HOSTS {
            bodies.push(Body::CreateHost(records::CreateHost {
                request: None,
                host: Some(records::Host {
                    name: format!("host-{host}"),
                    initiators: vec![super::host::initiator(host)],
                    chap: None,
                }),
            }));
            for volume in 0..VOLUMES {
                bodies.push(Body::CreateMapping(records::CreateMapping {
                    volume: format!("volume-{volume}"),
                    host: format!("host-{host}"),
                    lun: Some(volume as u32),
                    ..Default::default()
                }));
            }
        }
        self.controllers.found(bodies);
        self.later(1, Event::Elected { member: 0, term: 2 });
        for member in 0..MEMBERS {
            self.later(TICK_MS, Event::MemberTick(member));
        }
    }
}
