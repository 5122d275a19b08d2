//! Replicas come and go at the wish of people, of a drain, or of the leader's plan.
//!
//! Invariants: a new replica begins as a learner, and never on a node that holds one of this volume, also one that is still being
//! removed; a replica that is given up is remembered until its node has removed it; the owner's own is never given up, and the last
//! ones that writes need are not either.

use holdfast_proto::state::{self as records, JobKind, change};
use holdfast_replica::{
    config::Member,
    ids::NodeNumber,
    limits::{LEARNERS_MAX, REPLICAS_MAX},
};

use super::{
    Kind, Outcome, Refusal, StateMachine, Volume, check_lease_term, convert::epoch_of, effects::Effects,
    placement::NewVolume, volume::min_in_sync,
};

impl StateMachine {
    pub(super) fn add_replica(
        &mut self,
        command: &records::AddReplica,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        let volume = self.live_volume(&command.volume)?;
        let place = command.place.clone().unwrap_or_default();
        let refuse =
            |why: String| Refusal::Precondition(format!("volume {} gets no new replica: {why}", volume.name));
        let number = NodeNumber::new(place.node)
            .ok_or_else(|| Refusal::not_found(Kind::Node, &format!("number {}", place.node)))?;
        let name = self.node_name(place.node);
        if volume.removing.iter().any(|m| m.node == number) {
            return Err(refuse(format!("node {name} has not removed its earlier replica yet")));
        }
        if volume.kept().any(|m| m.node == number) {
            return Err(refuse(format!("node {name} holds one already")));
        }
        if volume.config.learners().len() >= LEARNERS_MAX {
            return Err(refuse(format!("{LEARNERS_MAX} are catching up already")));
        }
        let mut replicas = volume.replicas;
        let mut replaces = None;
        if command.replaces != 0 {
            let from = NodeNumber::new(command.replaces)
                .filter(|from| volume.kept().any(|m| m.node == *from))
                .ok_or_else(|| refuse(format!("node {} holds none", self.node_name(command.replaces))))?;
            let is_moving = volume.moves.iter().any(|(a, b)| *a == from || *b == from);
            if is_moving {
                let from = self.node_name(command.replaces);
                return Err(refuse(format!("that of node {from} is being moved already")));
            }
            replaces = Some((from, number));
        } else if command.missing {
            if volume.copies() >= volume.replicas as usize {
                return Err(refuse("none is missing".to_owned()));
            }
        } else {
            replicas += 1;
            if replicas as usize > REPLICAS_MAX {
                return Err(refuse(format!("it has {REPLICAS_MAX} copies, the most that are kept")));
            }
        }
        let owner = volume.owner_node().and_then(|owner| self.nodes.get(&u32::from(owner.get())));
        if let Some(owner) = owner.filter(|owner| !owner.replicates) {
            return Err(refuse(format!(
                "node {}, which owns it, runs a version that keeps no copies",
                owner.name
            )));
        }
        if let Some(member) = volume.held().find(|member| self.keeps_nothing(member)) {
            let reason = format!("its copy in pool {} keeps nothing that could be copied", member.pool);
            return Err(refuse(reason));
        }
        let new = NewVolume {
            size_bytes: volume.size_bytes,
            copies: 2,
            volatile: volume.volatile,
            checksums: volume.checksums,
        };
        let (_, member) = self.check_placement(place.node, &place.pool, &new)?;
        let config = volume
            .config
            .add_learner(volume.config.epoch(), member)
            .map_err(|error| refuse(error.to_string()))?;
        let message = match replaces {
            None => format!("a replica of volume {} is being made on node {name}", volume.name),
            Some(_) => format!(
                "a replica of volume {} is being made on node {name}, in place of that on node {}",
                volume.name,
                self.node_name(command.replaces)
            ),
        };
        let id = volume.id;
        let Some(volume) = self.volumes.get_mut(&id) else { return Ok(Outcome::Done) };
        volume.replicas = replicas;
        volume.moves.extend(replaces);
        volume.adopt(config).tell(id, effects);
        let (record, subject) = (volume.record(), format!("volume/{}", volume.name));
        if replaces.is_some() && self.running_job(JobKind::Move, &subject).is_none() {
            // Too many jobs run: it is moved without one.
            let _ = self.begin_job(JobKind::Move, subject.clone(), 0, &message, effects);
        }
        effects.event("replica.added", subject, message);
        effects.change(change::Change::Volume(record.clone()));
        Ok(Outcome::Volume(record))
    }

    pub(super) fn drop_replica(
        &mut self,
        command: &records::DropReplica,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        let volume = self.live_volume(&command.volume)?;
        let name = self.node_name(command.node);
        let refuse = |why: String| {
            Refusal::Precondition(format!("volume {} keeps its replica on node {name}: {why}", volume.name))
        };
        let member = NodeNumber::new(command.node)
            .and_then(|number| volume.kept().find(|m| m.node == number))
            .cloned()
            .ok_or_else(|| {
                Refusal::Precondition(format!("volume {} has no replica on node {name}", volume.name))
            })?;
        let number = member.node;
        let is_moving = volume.moves.iter().any(|(from, to)| *from == number || *to == number);
        let replicas = match command.fewer && !is_moving {
            true if volume.replicas <= 1 => {
                return Err(refuse("it is the only copy wished for; delete the volume instead".to_owned()));
            }
            true => volume.replicas - 1,
            false => volume.replicas,
        };
        let config = if Some(number) == volume.owner_node() {
            return Err(refuse("this node owns the volume; move the volume to another one first".to_owned()));
        } else if volume.is_in_sync(number) {
            let owner = volume
                .config
                .owner()
                .ok_or_else(|| refuse("no node owns the volume now, and it may be needed".to_owned()))?;
            let left = volume.config.in_sync().len() - 1;
            let needed = min_in_sync(replicas).min(volume.config.min_in_sync());
            if left < usize::from(needed) {
                return Err(refuse(format!(
                    "{left} in sync would be left, and writes need {needed}; wait until the others are in sync"
                )));
            }
            // The owner's acknowledgements wait for more replicas than necessary until it hears of this.
            Some(volume.config.remove_from_in_sync(volume.config.epoch(), owner, number))
        } else if volume.config.member(number).is_some() {
            Some(volume.config.remove_learner(volume.config.epoch(), number))
        } else {
            None
        };
        let config = match config {
            Some(changed) => changed.map_err(|error| refuse(error.to_string()))?,
            None => volume.config.clone(),
        };
        let message = format!("the replica of volume {} on node {name} is given up", volume.name);
        let id = volume.id;
        let Some(volume) = self.volumes.get_mut(&id) else { return Ok(Outcome::Done) };
        volume.replicas = replicas;
        volume.absent.retain(|m| m.node != number);
        volume.removing.push(member);
        volume.adopt(config).tell(id, effects);
        effects.event("replica.dropped", format!("volume/{}", volume.name), message);
        effects.change(change::Change::Volume(volume.record()));
        Ok(Outcome::Volume(volume.record()))
    }

    /// An absent replica, or a learner of an earlier boot, begins to catch up.
    pub(super) fn return_replica(
        &mut self,
        command: &records::ReturnReplica,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        check_lease_term(self.lease_term(), command.lease_term)?;
        let volume = self.volume_of(&command.volume_id)?;
        let (id, asked) = (volume.id, epoch_of(command.expected.as_ref()));
        let refuse = |error| {
            volume.refusal(asked, error, |error| {
                format!(
                    "volume {} does not take back the replica of node {}: {error}",
                    volume.name, command.node
                )
            })
        };
        let (Some(number), Some(node)) = (NodeNumber::new(command.node), self.nodes.get(&command.node))
        else {
            return Err(Refusal::not_found(Kind::Node, &format!("number {}", command.node)));
        };
        if node.incarnation != command.incarnation {
            return Err(Refusal::StaleIncarnation {
                number: command.node,
                asked: command.incarnation,
                current: node.incarnation,
            });
        }
        let (true, false, Some(boot)) = (node.live, volume.deleting, self.boot_of(number)) else {
            return Err(Refusal::NoLease { number: command.node });
        };
        let learner = volume.config.learners().iter().find(|m| m.node == number);
        let config = if let Some(learner) = learner.filter(|learner| learner.boot != boot) {
            // One entry, two epochs: it never counts under the old boot.
            let again = Member { boot, ..learner.clone() };
            let without = volume.config.remove_learner(asked, number).map_err(refuse)?;
            without.add_learner(without.epoch(), again).map_err(refuse)?
        } else if let Some(absent) = volume.absent.iter().find(|m| m.node == number) {
            volume.config.add_learner(asked, Member { boot, ..absent.clone() }).map_err(refuse)?
        } else {
            return Err(Refusal::Precondition(format!(
                "the replica of volume {} on node {} is not absent",
                volume.name, node.name
            )));
        };
        let message = format!("the replica of volume {} on node {} catches up", volume.name, node.name);
        let Some(volume) = self.volumes.get_mut(&id) else { return Ok(Outcome::Done) };
        volume.adopt(config).tell(id, effects);
        effects.event("replica.returned", format!("volume/{}", volume.name), message);
        effects.change(change::Change::Volume(volume.record()));
        Ok(Outcome::Volume(volume.record()))
    }
}

impl Volume {
    /// Replicas that count towards those wished for: of two of which one replaces the other, one.
    pub fn copies(&self) -> usize {
        self.kept().count() - self.moves.len().min(self.kept().count())
    }
}
