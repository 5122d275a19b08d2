//! The state machine by itself, without network or disk: what it costs in memory, and how long one step takes. In a process of its own
//! for each size, so that one does not warm another's memory.
//!
//! Invariant: nothing is measured that was not carried out: a refusal fails the run.

use std::time::Instant;

use anyhow::{bail, ensure};
use holdfast_controller::{
    lease::{
        Millis,
        memory::Memory,
        plan,
        reports::Reports,
        table::{LeaseTable, Renewal},
    },
    state::{Body, Command, Outcome, StateMachine},
};
use holdfast_proto::state as records;
use holdfast_scsi::transport_id::TransportId;
use prost::Message as _;
use serde::{Deserialize, Serialize};

/// Registrations of each volume.
const REGISTRATIONS: u32 = 4;
/// Steps of which the mean is taken.
const STEPS: u32 = 2_000;

/// What one size came to.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Core {
    /// Volumes, each mapped to one host, with two copies.
    pub volumes: u32,
    /// Hosts.
    pub hosts: u32,
    /// Data nodes.
    pub nodes: u32,
    /// Resident memory of one volume with its indexes, in bytes.
    pub volume_bytes: f64,
    /// Of one mapping.
    pub mapping_bytes: f64,
    /// Of one registration; there are four for each volume.
    pub registration_bytes: f64,
    /// Of everything: state and program.
    pub resident_bytes: u64,
    /// All records, encoded.
    pub records_bytes: u64,
    /// Applying one PR OUT, in microseconds.
    pub reserve_out_us: f64,
    /// Applying one change of a mapping, in microseconds.
    pub map_change_us: f64,
    /// One look of the leader at what is due, in microseconds: it looks 20 times a second.
    pub tick_us: f64,
}

struct Machine {
    state: StateMachine,
    index: u64,
}

impl Machine {
    fn apply(&mut self, body: Body) -> anyhow::Result<Outcome> {
        self.index += 1;
        match self.state.apply(self.index, &Command::new(self.index, body)).response {
            Ok(outcome) => Ok(outcome),
            Err(refusal) => bail!("{refusal}"),
        }
    }
}

fn id(n: u32) -> Vec<u8> {
    // Spread like ids that are drawn.
    let spread = n.wrapping_mul(0x9e37_79b1);
    [spread.to_be_bytes(), n.to_be_bytes(), [0; 4], [0; 4]].concat()
}

fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}

/// Measures one size, in this process.
///
/// # Errors
/// A command was refused.
pub fn measure(volumes: u32, hosts: u32, nodes: u32) -> anyhow::Result<Core> {
    ensure!(volumes > 0 && hosts > 0 && nodes > 1, "at least one volume, one host and two nodes are needed");
    let mut machine = Machine { state: StateMachine::default(), index: 0 };
    let target_iqn = "iqn.2026-11.example:bench".to_owned();
    machine.apply(Body::ClusterInit(records::ClusterInit { id: vec![1; 16], target_iqn }))?;
    machine.apply(Body::BeginLeaseTerm(records::BeginLeaseTerm { term: 1 }))?;
    for number in 1..=nodes {
        machine.apply(join(number))?;
        machine.apply(Body::NodeLive(records::NodeLive { number, incarnation: 1, lease_term: 1 }))?;
    }
    for host in 0..hosts {
        let initiators = vec![format!("iqn.2026-11.example:{host}")];
        let host = Some(records::Host { name: format!("host-{host}"), initiators, chap: None });
        machine.apply(Body::CreateHost(records::CreateHost { request: None, host }))?;
    }
    let empty = resident_bytes();
    for n in 0..volumes {
        machine.apply(create(n, nodes))?;
    }
    let with_volumes = resident_bytes();
    for n in 0..volumes {
        machine.apply(map(n, n % hosts))?;
    }
    let mapped = resident_bytes();
    for n in 0..volumes {
        for nexus in 0..REGISTRATIONS {
            machine.reserve(n, nodes, nexus, 1)?;
        }
    }
    let registered = resident_bytes();
    let each = |from: u64, to: u64, count: u32| to.saturating_sub(from) as f64 / f64::from(count);

    let begun = Instant::now();
    for step in 0..STEPS {
        machine.reserve(step % volumes, nodes, step % REGISTRATIONS, u64::from(step) + 2)?;
    }
    let reserve_out_us = us(begun, STEPS);
    let begun = Instant::now();
    for step in 0..STEPS / 2 {
        let (volume, host) = (step % volumes, (step % volumes + 1) % hosts);
        // To the next host, and away from it again; with one host, the other way round.
        let steps = [map(volume, host), unmap(volume, host)];
        for body in if hosts == 1 { [steps[1].clone(), steps[0].clone()] } else { steps } {
            machine.apply(body)?;
        }
    }
    let map_change_us = us(begun, STEPS);
    let tick_us = tick(&machine.state, nodes)?;
    let records = machine.state.to_changes();
    Ok(Core {
        volumes,
        hosts,
        nodes,
        volume_bytes: each(empty, with_volumes, volumes),
        mapping_bytes: each(with_volumes, mapped, volumes),
        registration_bytes: each(mapped, registered, volumes * REGISTRATIONS),
        resident_bytes: registered,
        records_bytes: records.iter().map(|record| record.encoded_len() as u64).sum(),
        reserve_out_us,
        map_change_us,
        tick_us,
    })
}

fn us(begun: Instant, steps: u32) -> f64 {
    begun.elapsed().as_secs_f64() * 1e6 / f64::from(steps)
}

fn join(number: u32) -> Body {
    let at = number as u8;
    Body::NodeJoin(records::NodeJoin {
        name: format!("node-{number}"),
        boot_id: vec![at; 16],
        process_id: vec![at; 16],
        portals: vec![format!("127.0.1.{number}:3260")],
        interconnect: format!("127.0.1.{number}:3270"),
        pools: vec![records::Pool {
            name: "default".to_owned(),
            capacity_bytes: 1 << 50,
            free_bytes: 1 << 50,
            kind: 0,
        }],
        version: "bench".to_owned(),
        replicates: true,
    })
}

fn create(n: u32, nodes: u32) -> Body {
    let place = records::ReplicaPlace { node: (n + 1) % nodes + 1, pool: "default".to_owned() };
    Body::CreateVolume(records::CreateVolume {
        request: None,
        id: id(n),
        name: format!("volume-{n}"),
        size_bytes: 1 << 30,
        block_size: 512,
        physical_block_exponent: 3,
        write_cache: true,
        thin: true,
        checksums: false,
        volatile: false,
        replicas: 2,
        node: n % nodes + 1,
        pool: "default".to_owned(),
        others: vec![place],
    })
}

fn map(volume: u32, host: u32) -> Body {
    Body::CreateMapping(records::CreateMapping {
        volume: format!("volume-{volume}"),
        host: format!("host-{host}"),
        ..Default::default()
    })
}

fn unmap(volume: u32, host: u32) -> Body {
    Body::DeleteMapping(records::DeleteMapping {
        volume: format!("volume-{volume}"),
        host: format!("host-{host}"),
        ..Default::default()
    })
}

impl Machine {
    /// REGISTER AND IGNORE EXISTING KEY by one nexus of the owner.
    fn reserve(&mut self, volume: u32, nodes: u32, nexus: u32, key: u64) -> anyhow::Result<()> {
        let id = id(volume);
        let found = holdfast_replica::ids::VolumeId::from_slice(&id).and_then(|id| self.state.volume(id));
        let Some(found) = found else { bail!("volume-{volume} is not there") };
        let (expected_version, epoch) = (found.reservation_version, found.record().epoch);
        let initiator = TransportId::iscsi(&format!("iqn.2026-11.example:{nexus}"), [nexus as u8; 6])
            .map_err(|error| anyhow::anyhow!("{error:?}"))?;
        let mut parameter_list = vec![0; 24];
        parameter_list[8..16].copy_from_slice(&key.to_be_bytes());
        let proposal_id = u128::from(self.index).to_be_bytes().to_vec();
        let proposal = records::ProposeReservation {
            proposal_id,
            volume_id: id,
            epoch,
            proposer: volume % nodes + 1,
            expected_version,
            nexus: Some(records::NexusName {
                transport_id: initiator.as_bytes().to_vec(),
                relative_port: volume % nodes + 1,
            }),
            cdb: vec![0x5f, 0x06, 0, 0, 0, 0, 0, 0, 24, 0],
            parameter_list,
            ..Default::default()
        };
        match self.apply(Body::ProposeReservation(proposal))? {
            Outcome::Proposal(outcome) if outcome.status == 0 => Ok(()),
            other => bail!("PR OUT: {other:?}"),
        }
    }
}

/// What the leader looks at while everything is well.
fn tick(state: &StateMachine, nodes: u32) -> anyhow::Result<f64> {
    let mut table = LeaseTable::new();
    table.begin(1, Millis(0));
    for node in 1..=nodes {
        table.applied(node, 1, state.head());
        table.grant(
            Renewal { node, incarnation: 1, data_path_stalled_ms: 0, head: state.head() },
            Millis(10_000),
        )?;
    }
    let (reports, mut memory) = (Reports::default(), Memory::default());
    let begun = Instant::now();
    for _ in 0..STEPS {
        let due = plan::proposals(state, &table, &reports, &mut memory, Millis(10_001));
        ensure!(due.is_empty(), "something is due: {due:?}");
    }
    Ok(us(begun, STEPS))
}
