//! Nodes that take nothing new, nodes that are emptied, and the options of the cluster.
//!
//! Invariants: a node that is drained is cordoned; a drain that cannot end is refused, with the exact reason, and changes nothing. What a
//! drain has still to do follows from the state alone, so that any leader goes on with it.

use holdfast_proto::state::{self as records, JobKind, JobState, change};
use holdfast_replica::ids::NodeNumber;

use super::{Kind, Outcome, Refusal, StateMachine, Volume, effects::Effects, limits, names::printable};

impl StateMachine {
    pub(super) fn cordon_node(
        &mut self,
        command: &records::CordonNode,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        let node = self
            .node_by_name(&command.name)
            .ok_or_else(|| Refusal::not_found(Kind::Node, &printable(&command.name)))?;
        if command.drain && !command.cordoned {
            return Err(Refusal::invalid("drain", "a node that is drained is cordoned"));
        }
        if command.drain {
            self.check_drain(node, command.evacuate)?;
        }
        let mut changed = node.clone();
        changed.cordoned = command.cordoned;
        // A cordon alone ends a drain; the node takes nothing new all the same.
        changed.draining = command.cordoned && command.drain;
        changed.evacuating = changed.draining && command.evacuate;
        let (subject, was_draining) = (format!("node/{}", node.name), node.draining);
        if changed != *node {
            let kind = match (command.drain, command.cordoned) {
                (true, _) => "draining",
                (false, true) => "cordoned",
                (false, false) => "uncordoned",
            };
            let message = match kind {
                "draining" => format!("node {} is being drained", node.name),
                kind => format!("node {} was {kind}", node.name),
            };
            effects.event(&format!("node.{kind}"), format!("node/{}", node.name), message);
            effects.change(change::Change::Node(changed.clone()));
            self.nodes.insert(changed.number, changed.clone());
        }
        let running = self.running_job(JobKind::Drain, &subject).map(|job| job.id);
        match running {
            Some(job) if was_draining && !changed.draining => {
                self.end_job(job, JobState::Cancelled, "the node is not drained any more", effects)?;
            }
            None if changed.draining => {
                let total = self.left_on(&changed) as u64;
                // Too many jobs run: the drain goes on without one.
                let _ = self.begin_job(JobKind::Drain, subject, total, "hands over what it owns", effects);
            }
            _ => {}
        }
        Ok(Outcome::Node(changed))
    }

    fn check_drain(&self, node: &records::Node, evacuate: bool) -> Result<(), Refusal> {
        let stuck: Vec<(&Volume, String)> = self
            .volumes_on(node.number)
            .filter_map(|v| Some((v, self.in_the_way_of_drain(node.number, v, evacuate)?)))
            .collect();
        let Some(((first, why), others)) = stuck.split_first() else { return Ok(()) };
        let more = if others.is_empty() { String::new() } else { format!(" and {} more", others.len()) };
        Err(Refusal::Precondition(format!(
            "node {} is not drained: it owns {}{more}, {why}; 'node cordon' keeps new volumes off it",
            node.name, first.name
        )))
    }

    /// Why this volume, if the node owns it, can go to no other node.
    pub fn in_the_way_of_drain(&self, node: u32, volume: &Volume, evacuate: bool) -> Option<String> {
        let own = NodeNumber::new(node)?;
        if volume.deleting || volume.owner_node() != Some(own) {
            return None;
        }
        let others = volume.config.in_sync().iter().filter(|m| m.node != own);
        let mut reasons = Vec::new();
        for other in others {
            match self.may_take(volume, volume.config.epoch(), other.node) {
                Ok(_) => return None,
                Err(reason) => reasons.push(reason),
            }
        }
        if reasons.is_empty() {
            reasons.push("of which no other node has a copy in sync".to_owned());
        }
        if evacuate {
            // It gets one.
            match self.place_for(volume) {
                Ok(_) => return None,
                Err(reason) => reasons.push(format!("and no other has room for one ({reason})")),
            }
        }
        Some(reasons.join(", "))
    }

    /// Volumes that a drain of the node has to do something about.
    pub fn left_on(&self, node: &records::Node) -> usize {
        let Some(own) = NodeNumber::new(node.number) else { return 0 };
        let left = |volume: &&Volume| {
            volume.owner_node() == Some(own) || (node.evacuating && volume.held().any(|m| m.node == own))
        };
        self.volumes_on(node.number).filter(|v| !v.deleting).filter(left).count()
    }

    /// True when a drain of the node has nothing left to do.
    pub fn is_drained(&self, node: &records::Node) -> bool {
        let Some(own) = NodeNumber::new(node.number) else { return true };
        !self.volumes_on(node.number).filter(|v| !v.deleting).any(|volume| {
            let held = volume.held().any(|m| m.node == own);
            let moving = volume.moves.iter().any(|(from, _)| *from == own);
            volume.owner_node() == Some(own)
                || moving
                || (node.evacuating
                    && held
                    && (volume.removing.iter().any(|m| m.node == own) || self.place_for(volume).is_ok()))
        })
    }

    /// Why what a node that is drained still has stays there; a line for each volume, [`limits::STAYING_SHOWN_MAX`] at most.
    pub fn staying(&self, node: &records::Node) -> Vec<String> {
        let Some(own) = NodeNumber::new(node.number).filter(|_| node.draining) else { return Vec::new() };
        let lines = self.volumes_on(node.number).filter(|v| !v.deleting).filter_map(|volume| {
            if volume.owner_node() == Some(own) {
                let reason = self.in_the_way_of_drain(node.number, volume, node.evacuating);
                let reason = reason.unwrap_or_else(|| "it is being handed over".to_owned());
                return Some(format!("owns volume {}: {reason}", volume.name));
            }
            let held = volume.kept().any(|m| m.node == own);
            if !node.evacuating || !held {
                return None;
            }
            let reason = if volume.moves.iter().any(|(from, _)| *from == own) {
                "its successor catches up".to_owned()
            } else {
                self.place_for(volume).err().unwrap_or_else(|| "it waits for its turn".to_owned())
            };
            Some(format!("keeps a copy of volume {}: {reason}", volume.name))
        });
        lines.take(limits::STAYING_SHOWN_MAX).collect()
    }

    pub(super) fn set_cluster_options(
        &mut self,
        command: &records::SetClusterOptions,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        let cluster = self.cluster.as_mut().ok_or(Refusal::NotInitialised)?;
        let mut changed = cluster.clone();
        if let Some(seconds) = command.replace_after_s {
            let range = limits::REPLACE_AFTER_S_MIN..=limits::REPLACE_AFTER_S_MAX;
            if seconds != 0 && !range.contains(&seconds) {
                let reason = format!("{seconds} is not between {} and {}", range.start(), range.end());
                return Err(Refusal::invalid("replace_after_seconds", reason));
            }
            changed.replace_after_s = seconds;
        }
        changed.replace_never = command.replace_never.unwrap_or(changed.replace_never);
        if changed != *cluster {
            *cluster = changed.clone();
            effects.event(
                "cluster.changed",
                "cluster".to_owned(),
                "the cluster's options were changed".to_owned(),
            );
            effects.change(change::Change::Cluster(changed));
        }
        Ok(Outcome::Done)
    }

    pub(super) fn rebalance(
        &mut self,
        command: &records::Rebalance,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        let cluster = self.cluster.as_mut().ok_or(Refusal::NotInitialised)?;
        if cluster.rebalancing != command.on {
            cluster.rebalancing = command.on;
            let changed = cluster.clone();
            let (kind, what) = match (command.on, command.stopped) {
                (true, _) => ("cluster.rebalancing", "ownership is being spread over the nodes"),
                (false, false) => ("cluster.rebalanced", "ownership is spread over the nodes"),
                (false, true) => ("cluster.rebalanced", "the spreading of ownership was stopped"),
            };
            effects.event(kind, "cluster".to_owned(), what.to_owned());
            effects.change(change::Change::Cluster(changed));
            let subject = "cluster".to_owned();
            let running = self.running_job(JobKind::Rebalance, &subject).map(|job| job.id);
            match running {
                // Too many jobs run: it goes on without one.
                None if command.on => {
                    let _ = self.begin_job(JobKind::Rebalance, subject, 0, what, effects);
                }
                Some(job) if !command.on => {
                    let state = if command.stopped { JobState::Cancelled } else { JobState::Done };
                    self.end_job(job, state, what, effects)?;
                }
                _ => {}
            }
        }
        Ok(Outcome::Done)
    }
}
