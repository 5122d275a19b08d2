//! Data nodes: joining, leases gained and lost as far as the state remembers them, pools, cordons.
//!
//! Invariants: node numbers and relative target port identifiers are handed out once and never again; a new process under
//! a name is a new incarnation, which owns nothing until ownership is given to it.

use std::collections::BTreeSet;

use holdfast_proto::state::{self as records, change};

use holdfast_replica::ids::{NodeNumber, VolumeId};
use holdfast_scsi::sense::asc;

use super::{
    Kind, Outcome, Refusal, StateMachine, Volume, check_lease_term,
    effects::Effects,
    limits,
    names::{check_address, check_name, printable},
};

impl StateMachine {
    pub(super) fn node_join(
        &mut self,
        join: &records::NodeJoin,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        self.check_join(join)?;
        let mut cluster = self.cluster.clone().ok_or(Refusal::NotInitialised)?;
        let known = self.node_by_name(&join.name).cloned();
        let mut node = match &known {
            Some(node) => node.clone(),
            None => {
                if self.nodes.len() >= limits::NODES_MAX {
                    return Err(exhausted("data nodes", limits::NODES_MAX));
                }
                let number = cluster.next_node_number;
                cluster.next_node_number = next_identifier(number, "node numbers")?;
                records::Node { name: join.name.clone(), number, ..Default::default() }
            }
        };
        let is_new_process = node.process_id != join.process_id;
        if is_new_process {
            node.incarnation =
                node.incarnation.checked_add(1).ok_or_else(|| exhausted("incarnations", usize::MAX))?;
            node.live = false;
        }
        node.process_id.clone_from(&join.process_id);
        let has_booted = node.boot_id != join.boot_id;
        if has_booted {
            node.booted_index = effects.index;
        }
        node.boot_id.clone_from(&join.boot_id);
        node.interconnect.clone_from(&join.interconnect);
        node.pools.clone_from(&join.pools);
        node.replicates = join.replicates;
        node.ports = assign_ports(&node.ports, &join.portals, &mut cluster)?;

        // Checked; from here on the state changes.
        if self.cluster.as_ref() != Some(&cluster) {
            effects.change(change::Change::Cluster(cluster.clone()));
            self.cluster = Some(cluster);
        }
        if known.as_ref() != Some(&node) {
            effects.change(change::Change::Node(node.clone()));
            self.nodes.insert(node.number, node.clone());
        }
        if is_new_process {
            let message = format!(
                "node {} joined as number {}, incarnation {}",
                node.name, node.number, node.incarnation
            );
            effects.event("node.joined", format!("node/{}", node.name), message);
        }
        if is_new_process {
            self.end_nexuses_of(&node.ports, effects);
        }
        self.tell_of_ports(known.as_ref().map_or(&[], |known| &known.ports), &node.ports, effects);
        if has_booted {
            self.end_what_lost_power(effects);
        }
        Ok(Outcome::Node(node))
    }

    fn check_join(&self, join: &records::NodeJoin) -> Result<(), Refusal> {
        check_name("name", &join.name)?;
        for (field, id) in [("boot_id", &join.boot_id), ("process_id", &join.process_id)] {
            if id.len() != 16 {
                return Err(Refusal::invalid(field, format!("{} bytes; it has 16", id.len())));
            }
        }
        check_address("interconnect", &join.interconnect)?;
        check_pools(&join.pools)?;
        if join.portals.len() > limits::PORTALS_PER_NODE_MAX {
            return Err(exhausted("portals of a node", limits::PORTALS_PER_NODE_MAX));
        }
        let mut seen = BTreeSet::new();
        for portal in &join.portals {
            check_address("portals", portal)?;
            if !seen.insert(portal) {
                return Err(Refusal::invalid("portals", format!("'{}' is given twice", printable(portal))));
            }
        }
        let others = self.nodes.values().filter(|n| n.name != join.name);
        for other in others {
            if let Some(port) = other.ports.iter().find(|port| seen.contains(&port.portal)) {
                return Err(Refusal::Precondition(format!(
                    "portal {} belongs to node {}; give each portal its own address and port",
                    port.portal, other.name
                )));
            }
        }
        let other_ports: usize =
            self.nodes.values().filter(|n| n.name != join.name).map(|n| n.ports.len()).sum();
        if other_ports.saturating_add(join.portals.len()) > holdfast_scsi::limits::TARGET_PORTS_MAX {
            return Err(exhausted("target ports", holdfast_scsi::limits::TARGET_PORTS_MAX));
        }
        Ok(())
    }

    pub(super) fn node_live(
        &mut self,
        command: &records::NodeLive,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        check_lease_term(self.lease_term(), command.lease_term)?;
        let node = self.node_of_incarnation(command.number, command.incarnation)?;
        if !node.live {
            node.live = true;
            let message = format!("node {} holds a lease", node.name);
            effects.event("node.live", format!("node/{}", node.name), message);
            effects.change(change::Change::Node(node.clone()));
        }
        Ok(Outcome::Done)
    }

    pub(super) fn node_lost(
        &mut self,
        command: &records::NodeLost,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        check_lease_term(self.lease_term(), command.lease_term)?;
        let node = self.node_of_incarnation(command.number, command.incarnation)?;
        if node.live {
            node.live = false;
            let message = format!("the lease of node {} has run out", node.name);
            effects.event("node.lost", format!("node/{}", node.name), message);
            effects.change(change::Change::Node(node.clone()));
            let ports = node.ports.clone();
            self.end_nexuses_of(&ports, effects);
        }
        Ok(Outcome::Done)
    }

    pub(super) fn report_pools(
        &mut self,
        command: &records::ReportPools,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        check_pools(&command.pools)?;
        let node = self.node_of_incarnation(command.number, command.incarnation)?;
        if node.pools != command.pools {
            node.pools.clone_from(&command.pools);
            effects.change(change::Change::Node(node.clone()));
        }
        Ok(Outcome::Done)
    }

    /// A node that has stopped for good. That none of its processes can hold a lease is the proposer's duty (the lease manager),
    /// for the term that the command names.
    pub(super) fn remove_node(
        &mut self,
        command: &records::RemoveNode,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        check_lease_term(self.lease_term(), command.lease_term)?;
        let node = self
            .node_by_name(&command.name)
            .filter(|node| node.number == command.number)
            .ok_or_else(|| Refusal::not_found(Kind::Node, &printable(&command.name)))?;
        let name = node.name.clone();
        if node.live {
            return Err(Refusal::Precondition(format!(
                "node {name} is live; stop its process for good and wait until its lease has run out"
            )));
        }
        let number = NodeNumber::new(command.number)
            .ok_or_else(|| Refusal::not_found(Kind::Node, &printable(&command.name)))?;
        let in_sync = |volume: &&Volume| !volume.deleting && volume.is_in_sync(number);
        let staying: Vec<&str> =
            self.volumes_on(command.number).filter(in_sync).map(|volume| volume.name.as_str()).collect();
        if let Some((first, others)) = staying.split_first() {
            let more = others.len();
            let others = if more == 0 { String::new() } else { format!(" and of {more} other volumes") };
            return Err(Refusal::Precondition(format!(
                "node {name} holds a replica of volume {first}{others}; move or delete what it holds first"
            )));
        }
        let holds = |volume: &&Volume| volume.held().any(|m| m.node == number);
        let held: Vec<VolumeId> =
            self.volumes_on(command.number).filter(holds).map(|volume| volume.id).collect();
        for id in held {
            self.forget_replica(id, number, effects)?;
        }
        let message = format!("node {name}, number {}, was removed", command.number);
        effects.event("node.removed", format!("node/{name}"), message);
        effects.change(change::Change::RemovedNode(name));
        if let Some(removed) = self.nodes.remove(&command.number) {
            self.end_nexuses_of(&removed.ports, effects);
            self.tell_of_ports(&removed.ports, &[], effects);
        }
        self.end_what_lost_power(effects);
        Ok(Outcome::Done)
    }

    /// Which target ports there are is INQUIRY data of every unit (VPD page 88h): every host that sees one is told that it has changed.
    /// Where a port is reached is not part of it.
    fn tell_of_ports(&self, before: &[records::Port], after: &[records::Port], effects: &mut Effects) {
        let identifiers = |ports: &[records::Port]| -> BTreeSet<u32> {
            ports.iter().map(|port| port.relative_port).collect()
        };
        if identifiers(before) != identifiers(after) {
            for host in self.hosts.keys() {
                effects.unit_attention_for_host(host, asc::INQUIRY_DATA_CHANGED);
            }
        }
    }

    /// What a node that is gone held, and no write depends on.
    fn forget_replica(
        &mut self,
        id: VolumeId,
        number: NodeNumber,
        effects: &mut Effects,
    ) -> Result<(), Refusal> {
        let Some(volume) = self.volumes.get_mut(&id) else { return Ok(()) };
        if volume.deleting {
            let command =
                records::RemoveReplica { volume_id: id.0.to_vec(), number: u32::from(number.get()) };
            return self.remove_replica(&command, effects).map(|_| ());
        }
        volume.absent.retain(|m| m.node != number);
        volume.removing.retain(|m| m.node != number);
        let without = volume.config.remove_learner(volume.config.epoch(), number);
        let config = without.unwrap_or_else(|_| volume.config.clone());
        volume.adopt(config).tell(id, effects);
        effects.change(change::Change::Volume(volume.record()));
        Ok(())
    }

    fn node_of_incarnation(&mut self, number: u32, incarnation: u64) -> Result<&mut records::Node, Refusal> {
        let node = self
            .nodes
            .get_mut(&number)
            .ok_or_else(|| Refusal::not_found(Kind::Node, &format!("number {number}")))?;
        if node.incarnation != incarnation {
            return Err(Refusal::StaleIncarnation { number, asked: incarnation, current: node.incarnation });
        }
        Ok(node)
    }
}

/// A port keeps its identifier while its address stays; one whose address changed keeps the identifier of the port that it
/// replaces (registrations hang on identifiers); what is left over gets new ones.
fn assign_ports(
    old: &[records::Port],
    portals: &[String],
    cluster: &mut records::Cluster,
) -> Result<Vec<records::Port>, Refusal> {
    let mut vacant = old.iter().filter(|port| !portals.contains(&port.portal)).map(|port| port.relative_port);
    let mut ports = Vec::with_capacity(portals.len());
    for portal in portals {
        let kept = old.iter().find(|port| port.portal == *portal).map(|port| port.relative_port);
        let relative_port = match kept.or_else(|| vacant.next()) {
            Some(relative_port) => relative_port,
            None => {
                let relative_port = cluster.next_relative_port;
                cluster.next_relative_port =
                    next_identifier(relative_port, "relative target port identifiers")?;
                relative_port
            }
        };
        ports.push(records::Port { relative_port, portal: portal.clone() });
    }
    Ok(ports)
}

/// The identifier after `used`, which is handed out now. They have 16 bits and are never reused.
fn next_identifier(used: u32, what: &str) -> Result<u32, Refusal> {
    if (1..=u32::from(u16::MAX)).contains(&used) {
        Ok(used + 1)
    } else {
        Err(exhausted(what, usize::from(u16::MAX)))
    }
}

fn check_pools(pools: &[records::Pool]) -> Result<(), Refusal> {
    if pools.len() > limits::POOLS_PER_NODE_MAX {
        return Err(exhausted("pools of a node", limits::POOLS_PER_NODE_MAX));
    }
    let mut seen = BTreeSet::new();
    for pool in pools {
        check_name("pools.name", &pool.name)?;
        if !seen.insert(&pool.name) {
            return Err(Refusal::invalid("pools", format!("'{}' is given twice", pool.name)));
        }
    }
    Ok(())
}

pub(super) fn exhausted(what: &str, limit: usize) -> Refusal {
    Refusal::Exhausted { what: what.to_owned(), limit: limit as u64 }
}
