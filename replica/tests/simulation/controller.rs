//! The controller as one atomic register: the configuration, changed by compare-and-set, and the leases.

use std::collections::BTreeMap;

use holdfast_replica::{
    config::{CacheState, Member, Owner, VolumeConfig},
    epoch::Epoch,
    ids::{BootId, Incarnation, NodeNumber},
    primary::Change,
};

pub(crate) const LEASE_MS: u64 = 2_500;

/// See the module.
#[derive(Debug)]
pub(crate) struct Controller {
    pub(crate) config: VolumeConfig,
    boots: BTreeMap<NodeNumber, BootId>,
    newest: BTreeMap<NodeNumber, Incarnation>,
    leases: BTreeMap<(NodeNumber, Incarnation), u64>,
    /// Breaks the rule that only members of the in-sync set are promoted.
    pub(crate) promote_anyone: bool,
    /// Times that every in-sync replica had lost its memory.
    pub(crate) lost_everywhere: u64,
}

impl Controller {
    pub(crate) fn new(nodes: &[NodeNumber], boot: BootId, min_in_sync: u8) -> Controller {
        let member = |node: &NodeNumber| Member { node: *node, boot, pool: "default".into() };
        let config = VolumeConfig::new(nodes.iter().map(member).collect(), min_in_sync).expect("members");
        Controller {
            config,
            boots: BTreeMap::new(),
            newest: BTreeMap::new(),
            leases: BTreeMap::new(),
            promote_anyone: false,
            lost_everywhere: 0,
        }
    }

    /// Grants a lease from now on, unless the node has been started again since.
    pub(crate) fn renew(
        &mut self,
        now: u64,
        node: NodeNumber,
        incarnation: Incarnation,
        boot: BootId,
    ) -> bool {
        let newest = self.newest.entry(node).or_insert(incarnation);
        if incarnation < *newest {
            return false;
        }
        *newest = incarnation;
        self.boots.insert(node, boot);
        self.leases.insert((node, incarnation), now + LEASE_MS);
        true
    }

    fn lease_runs(&self, now: u64, node: NodeNumber, incarnation: Incarnation) -> bool {
        self.leases.get(&(node, incarnation)).is_some_and(|end| now <= *end)
    }

    fn is_live(&self, now: u64, node: NodeNumber) -> bool {
        self.newest.get(&node).is_some_and(|incarnation| self.lease_runs(now, node, *incarnation))
    }

    /// True if the proposal is refused for good.
    pub(crate) fn propose(&mut self, now: u64, owner: Owner, change: Change, epoch: Epoch) -> bool {
        if epoch != self.config.epoch() || !self.lease_runs(now, owner.node, owner.incarnation) {
            return false;
        }
        let next = match change {
            Change::Evict(node) => self.config.remove_from_in_sync(epoch, owner, node),
            Change::Admit(node) => self.config.admit_learner(epoch, owner, node),
        };
        match next {
            Ok(next) => {
                self.config = next;
                false
            }
            Err(_) => true,
        }
    }

    /// Replaces an owner whose lease has run out, and lets absent nodes come back.
    pub(crate) fn tick(&mut self, now: u64) {
        let epoch = self.config.epoch();
        let served = self.config.owner().is_some_and(|o| self.lease_runs(now, o.node, o.incarnation));
        if !served {
            let boots = self.boots.clone();
            let candidates: Vec<NodeNumber> = self.newest.keys().copied().collect();
            let start = now as usize / 20 % candidates.len().max(1);
            for node in candidates.iter().cycle().skip(start).take(candidates.len()) {
                let Some(incarnation) = self.newest.get(node).filter(|_| self.is_live(now, *node)) else {
                    continue;
                };
                let owner = Owner { node: *node, incarnation: *incarnation };
                let mut config = self.config.clone();
                if self.promote_anyone && config.in_sync().iter().all(|m| m.node != *node) {
                    let mut members = config.in_sync().to_vec();
                    members.truncate(2);
                    members.push(Member { node: *node, boot: boots[node], pool: "default".into() });
                    config = VolumeConfig::from_parts(epoch, None, members, vec![], config.min_in_sync())
                        .expect("members");
                }
                if let Ok((next, cache)) = config.change_owner(epoch, owner, |n| boots.get(&n).copied()) {
                    self.config = next;
                    self.lost_everywhere += u64::from(cache == CacheState::LostEverywhere);
                    return;
                }
            }
            return;
        }
        let live: Vec<NodeNumber> = self.newest.keys().filter(|n| self.is_live(now, **n)).copied().collect();
        for node in live {
            let boot = self.boots[&node];
            let learner = self.config.learners().iter().find(|m| m.node == node);
            let next = match learner {
                Some(member) if member.boot != boot => self.config.remove_learner(epoch, node),
                None if self.config.member(node).is_none() => {
                    self.config.add_learner(epoch, Member { node, boot, pool: "default".into() })
                }
                _ => continue,
            };
            self.config = next.expect("a learner");
            return;
        }
    }
}
