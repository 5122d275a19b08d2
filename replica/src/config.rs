//! Owner, in-sync set and learners of a volume, and the only ways in which they change.
//!
//! Invariants: an in-sync set is never empty; a node stands in one of the two sets, once; the owner is in sync; every
//! change names the epoch that it starts from (compare-and-set) and makes a higher one; only forced recovery raises the
//! recovery generation. Whether leases have run out is not known here: the caller waits for that first.

use alloc::{string::String, vec::Vec};
use core::fmt;

use crate::{
    epoch::Epoch,
    ids::{BootId, Incarnation, NodeNumber},
    limits::{LEARNERS_MAX, POOL_NAME_LEN_MAX, REPLICAS_MAX},
};

/// A replica: where it is, and under which boot it was last known in sync.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The data node.
    pub node: NodeNumber,
    /// The boot under which its page cache holds what was acknowledged.
    pub boot: BootId,
    /// Pool of that node, 1..=[`POOL_NAME_LEN_MAX`] bytes.
    pub pool: String,
}

/// The data node that executes the commands of the volume, in the incarnation that the epoch was given to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The data node.
    pub node: NodeNumber,
    /// Its process's incarnation.
    pub incarnation: Incarnation,
}

/// What a promotion knows about acknowledged writes that sat in page caches only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheState {
    /// The new owner has not rebooted since it was last in sync.
    Kept,
    /// Every in-sync replica has rebooted: the new owner's copy wins, and every nexus is told by 29/01.
    LostEverywhere,
}

/// Why a change, or a stored record, is refused. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// Another change came first; this is the epoch now.
    StaleEpoch(Epoch),
    /// The node holds no replica that is in sync.
    NotInSync(NodeNumber),
    /// The node is not catching up.
    NotALearner(NodeNumber),
    /// The node holds a replica already.
    AlreadyAMember(NodeNumber),
    /// The one who asks is not the owner in this epoch.
    NotTheOwner,
    /// The owner cannot be removed from the in-sync set; ownership has to move first.
    OwnerStays,
    /// The node rebooted since it was last in sync, and another in-sync replica did not.
    Rebooted(NodeNumber),
    /// The in-sync set would be empty.
    Empty,
    /// More replicas than [`REPLICAS_MAX`], or more learners than [`LEARNERS_MAX`].
    TooMany,
    /// `min_in_sync` is 0 or more than [`REPLICAS_MAX`].
    MinInSync,
    /// A pool's name is empty or too long.
    PoolName,
    /// Epoch numbers are used up, or a record has epoch 0.0.
    Epoch,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigError::StaleEpoch(now) => {
                write!(f, "the configuration has changed: its epoch is {now} now")
            }
            ConfigError::NotInSync(node) => write!(f, "node {node} has no replica that is in sync"),
            ConfigError::NotALearner(node) => write!(f, "node {node} has no replica that is catching up"),
            ConfigError::AlreadyAMember(node) => write!(f, "node {node} has a replica already"),
            ConfigError::NotTheOwner => f.write_str("only the owner may ask for this"),
            ConfigError::OwnerStays => f.write_str("the owner cannot leave the in-sync set"),
            ConfigError::Rebooted(node) => {
                write!(f, "node {node} has rebooted and may lack writes that another replica has")
            }
            ConfigError::Empty => f.write_str("the in-sync set would be empty"),
            ConfigError::TooMany => f.write_str("too many replicas"),
            ConfigError::MinInSync => {
                write!(f, "the smallest in-sync set that takes writes must be 1..{REPLICAS_MAX}")
            }
            ConfigError::PoolName => f.write_str("a pool's name is empty or too long"),
            ConfigError::Epoch => f.write_str("an epoch is out of range"),
        }
    }
}

impl core::error::Error for ConfigError {}

/// One configuration of a volume. See the module's invariants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeConfig {
    epoch: Epoch,
    owner: Option<Owner>,
    in_sync: Vec<Member>,
    learners: Vec<Member>,
    min_in_sync: u8,
}

impl VolumeConfig {
    /// The first configuration of a new volume: no owner yet.
    pub fn new(in_sync: Vec<Member>, min_in_sync: u8) -> Result<VolumeConfig, ConfigError> {
        Self::from_parts(Epoch::FIRST, None, in_sync, Vec::new(), min_in_sync)
    }

    /// From a durable record.
    pub fn from_parts(
        epoch: Epoch,
        owner: Option<Owner>,
        in_sync: Vec<Member>,
        learners: Vec<Member>,
        min_in_sync: u8,
    ) -> Result<VolumeConfig, ConfigError> {
        if epoch == Epoch::ZERO {
            return Err(ConfigError::Epoch);
        }
        if in_sync.is_empty() {
            return Err(ConfigError::Empty);
        }
        if in_sync.len() > REPLICAS_MAX || learners.len() > LEARNERS_MAX {
            return Err(ConfigError::TooMany);
        }
        if min_in_sync == 0 || usize::from(min_in_sync) > REPLICAS_MAX {
            return Err(ConfigError::MinInSync);
        }
        let mut seen: Vec<NodeNumber> = Vec::new();
        for member in in_sync.iter().chain(&learners) {
            if member.pool.is_empty() || member.pool.len() > POOL_NAME_LEN_MAX {
                return Err(ConfigError::PoolName);
            }
            if seen.contains(&member.node) {
                return Err(ConfigError::AlreadyAMember(member.node));
            }
            seen.push(member.node);
        }
        if let Some(owner) = owner
            && !in_sync.iter().any(|m| m.node == owner.node)
        {
            return Err(ConfigError::NotInSync(owner.node));
        }
        Ok(VolumeConfig { epoch, owner, in_sync, learners, min_in_sync })
    }

    /// Number of this configuration.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Who executes commands; `None`: nobody now.
    pub fn owner(&self) -> Option<Owner> {
        self.owner
    }

    /// Replicas that have every acknowledged write. Never empty.
    pub fn in_sync(&self) -> &[Member] {
        &self.in_sync
    }

    /// Replicas that are catching up.
    pub fn learners(&self) -> &[Member] {
        &self.learners
    }

    /// Writes are taken only while this many replicas are in sync.
    pub fn min_in_sync(&self) -> u8 {
        self.min_in_sync
    }

    /// True while enough replicas are in sync to take writes.
    pub fn takes_writes(&self) -> bool {
        self.in_sync.len() >= usize::from(self.min_in_sync)
    }

    /// The replica of `node`, in sync or catching up.
    pub fn member(&self, node: NodeNumber) -> Option<&Member> {
        self.in_sync.iter().chain(&self.learners).find(|m| m.node == node)
    }

    /// Gives the volume to `owner`, which must be in sync. `boot_now` tells a node's boot today (`None`: not known).
    /// The caller has waited out the old owner's lease, or has its word that it stopped.
    pub fn change_owner(
        &self,
        expected: Epoch,
        owner: Owner,
        boot_now: impl Fn(NodeNumber) -> Option<BootId>,
    ) -> Result<(VolumeConfig, CacheState), ConfigError> {
        let mut next = self.next(expected)?;
        let candidate = Self::find(&self.in_sync, owner.node).ok_or(ConfigError::NotInSync(owner.node))?;
        let boot = boot_now(owner.node).ok_or(ConfigError::Rebooted(owner.node))?;
        let cache = if boot == candidate.boot {
            CacheState::Kept
        } else if self
            .in_sync
            .iter()
            .any(|m| m.node != owner.node && boot_now(m.node).is_none_or(|b| b == m.boot))
        {
            // Another replica may still hold what this one has lost.
            return Err(ConfigError::Rebooted(owner.node));
        } else {
            CacheState::LostEverywhere
        };
        for member in &mut next.in_sync {
            if member.node == owner.node {
                member.boot = boot;
            }
        }
        next.owner = Some(owner);
        Ok((next, cache))
    }

    /// Takes the volume from its owner and gives it to nobody.
    pub fn remove_owner(&self, expected: Epoch) -> Result<VolumeConfig, ConfigError> {
        let mut next = self.next(expected)?;
        next.owner = None;
        Ok(next)
    }

    /// Goes on without the replica of `node`. Asked for by the owner, which must hold a live lease in the same entry.
    pub fn remove_from_in_sync(
        &self,
        expected: Epoch,
        proposer: Owner,
        node: NodeNumber,
    ) -> Result<VolumeConfig, ConfigError> {
        let mut next = self.next(expected)?;
        self.check_owner(proposer)?;
        if node == proposer.node {
            return Err(ConfigError::OwnerStays);
        }
        Self::find(&self.in_sync, node).ok_or(ConfigError::NotInSync(node))?;
        next.in_sync.retain(|m| m.node != node);
        Ok(next)
    }

    /// Lets a new replica begin to catch up.
    pub fn add_learner(&self, expected: Epoch, learner: Member) -> Result<VolumeConfig, ConfigError> {
        let mut next = self.next(expected)?;
        next.learners.push(learner);
        next.checked()
    }

    /// Gives up a replica that was catching up.
    pub fn remove_learner(&self, expected: Epoch, node: NodeNumber) -> Result<VolumeConfig, ConfigError> {
        let mut next = self.next(expected)?;
        Self::find(&self.learners, node).ok_or(ConfigError::NotALearner(node))?;
        next.learners.retain(|m| m.node != node);
        Ok(next)
    }

    /// Counts a replica that has caught up as in sync. Asked for by the owner, which has made its acknowledgements depend
    /// on that replica before it asks.
    pub fn admit_learner(
        &self,
        expected: Epoch,
        proposer: Owner,
        node: NodeNumber,
    ) -> Result<VolumeConfig, ConfigError> {
        let mut next = self.next(expected)?;
        self.check_owner(proposer)?;
        let learner = Self::find(&self.learners, node).ok_or(ConfigError::NotALearner(node))?.clone();
        next.learners.retain(|m| m.node != node);
        next.in_sync.push(learner);
        next.checked()
    }

    /// Forced recovery: goes on with the one replica of `owner.node`, whatever it lacks, in a new recovery generation.
    /// Returns the members that are given up. The caller has waited out all leases and names in the audit log what may be lost.
    pub fn force_recovery(
        &self,
        expected: Epoch,
        owner: Owner,
        boot: BootId,
    ) -> Result<(VolumeConfig, Vec<Member>), ConfigError> {
        self.check_epoch(expected)?;
        let survivor = self.member(owner.node).ok_or(ConfigError::NotInSync(owner.node))?;
        let given_up =
            self.in_sync.iter().chain(&self.learners).filter(|m| m.node != owner.node).cloned().collect();
        let next = VolumeConfig {
            epoch: self.epoch.next_generation().ok_or(ConfigError::Epoch)?,
            owner: Some(owner),
            in_sync: Vec::from([Member { boot, ..survivor.clone() }]),
            learners: Vec::new(),
            min_in_sync: self.min_in_sync,
        };
        Ok((next, given_up))
    }

    fn check_epoch(&self, expected: Epoch) -> Result<(), ConfigError> {
        if expected == self.epoch { Ok(()) } else { Err(ConfigError::StaleEpoch(self.epoch)) }
    }

    fn check_owner(&self, proposer: Owner) -> Result<(), ConfigError> {
        if self.owner == Some(proposer) { Ok(()) } else { Err(ConfigError::NotTheOwner) }
    }

    fn next(&self, expected: Epoch) -> Result<VolumeConfig, ConfigError> {
        self.check_epoch(expected)?;
        Ok(VolumeConfig { epoch: self.epoch.next().ok_or(ConfigError::Epoch)?, ..self.clone() })
    }

    fn checked(self) -> Result<VolumeConfig, ConfigError> {
        Self::from_parts(self.epoch, self.owner, self.in_sync, self.learners, self.min_in_sync)
    }

    fn find(members: &[Member], node: NodeNumber) -> Option<&Member> {
        members.iter().find(|m| m.node == node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn node(n: u32) -> NodeNumber {
        NodeNumber::new(n).unwrap()
    }

    fn member(n: u32) -> Member {
        Member { node: node(n), boot: BootId([n as u8; 16]), pool: "default".into() }
    }

    fn owner(n: u32) -> Owner {
        Owner { node: node(n), incarnation: Incarnation(1) }
    }

    fn same_boot(n: NodeNumber) -> Option<BootId> {
        Some(BootId([n.get() as u8; 16]))
    }

    fn owned_by_one() -> VolumeConfig {
        let config = VolumeConfig::new(vec![member(1), member(2)], 1).unwrap();
        config.change_owner(config.epoch(), owner(1), same_boot).unwrap().0
    }

    #[test]
    fn every_change_names_the_epoch_it_starts_from() {
        let config = owned_by_one();
        let old = Epoch::FIRST;
        let stale = Err(ConfigError::StaleEpoch(config.epoch()));
        assert_eq!(config.remove_owner(old), stale);
        assert_eq!(config.remove_from_in_sync(old, owner(1), node(2)), stale);
        assert_eq!(config.add_learner(old, member(3)), stale);
        assert_eq!(config.admit_learner(old, owner(1), node(3)), stale);
        assert_eq!(config.change_owner(old, owner(2), same_boot).map(|c| c.0), stale);
        assert_eq!(config.force_recovery(old, owner(2), BootId([2; 16])).map(|c| c.0), stale);
        assert_eq!(config.remove_owner(config.epoch()).unwrap().epoch(), config.epoch().next().unwrap());
    }

    #[test]
    fn only_an_in_sync_node_is_promoted() {
        let config = owned_by_one();
        let with_learner = config.add_learner(config.epoch(), member(3)).unwrap();
        let e = with_learner.epoch();
        assert_eq!(with_learner.change_owner(e, owner(3), same_boot), Err(ConfigError::NotInSync(node(3))));
        let (moved, cache) = with_learner.change_owner(e, owner(2), same_boot).unwrap();
        assert_eq!((moved.owner(), cache), (Some(owner(2)), CacheState::Kept));
    }

    #[test]
    fn rebooted_node_is_promoted_only_when_all_have_rebooted() {
        let config = owned_by_one();
        let e = config.epoch();
        let two_rebooted = |n: NodeNumber| if n == node(2) { Some(BootId([9; 16])) } else { same_boot(n) };
        assert_eq!(config.change_owner(e, owner(2), two_rebooted), Err(ConfigError::Rebooted(node(2))));
        let (next, cache) = config.change_owner(e, owner(2), |_| Some(BootId([9; 16]))).unwrap();
        assert_eq!(cache, CacheState::LostEverywhere);
        assert_eq!(next.member(node(2)).unwrap().boot, BootId([9; 16]));
        // A member that nobody has heard of may still hold the writes.
        let one_unknown = |n: NodeNumber| (n == node(2)).then_some(BootId([9; 16]));
        assert_eq!(config.change_owner(e, owner(2), one_unknown), Err(ConfigError::Rebooted(node(2))));
    }

    #[test]
    fn owner_removes_others_but_never_itself() {
        let config = owned_by_one();
        let e = config.epoch();
        assert_eq!(config.remove_from_in_sync(e, owner(2), node(1)), Err(ConfigError::NotTheOwner));
        let old_process = Owner { incarnation: Incarnation(0), ..owner(1) };
        assert_eq!(config.remove_from_in_sync(e, old_process, node(2)), Err(ConfigError::NotTheOwner));
        assert_eq!(config.remove_from_in_sync(e, owner(1), node(1)), Err(ConfigError::OwnerStays));
        let alone = config.remove_from_in_sync(e, owner(1), node(2)).unwrap();
        assert_eq!(alone.in_sync(), [member(1)]);
        assert!(alone.takes_writes());
        let again = alone.remove_from_in_sync(alone.epoch(), owner(1), node(2));
        assert_eq!(again, Err(ConfigError::NotInSync(node(2))));
    }

    #[test]
    fn learner_is_admitted_once() {
        let config = owned_by_one();
        let learning = config.add_learner(config.epoch(), member(3)).unwrap();
        let e = learning.epoch();
        assert_eq!(learning.add_learner(e, member(3)), Err(ConfigError::AlreadyAMember(node(3))));
        assert_eq!(learning.add_learner(e, member(1)), Err(ConfigError::AlreadyAMember(node(1))));
        let admitted = learning.admit_learner(e, owner(1), node(3)).unwrap();
        assert_eq!(admitted.in_sync().len(), 3);
        assert!(admitted.learners().is_empty());
        let again = admitted.admit_learner(admitted.epoch(), owner(1), node(3));
        assert_eq!(again, Err(ConfigError::NotALearner(node(3))));
        let gone = learning.remove_learner(e, node(3)).unwrap();
        assert!(gone.learners().is_empty());
    }

    #[test]
    fn fourth_in_sync_replica_is_refused() {
        let config = VolumeConfig::new(vec![member(1), member(2), member(3)], 2).unwrap();
        let (config, _) = config.change_owner(config.epoch(), owner(1), same_boot).unwrap();
        let learning = config.add_learner(config.epoch(), member(4)).unwrap();
        assert_eq!(learning.admit_learner(learning.epoch(), owner(1), node(4)), Err(ConfigError::TooMany));
    }

    #[test]
    fn forced_recovery_raises_the_generation_and_names_what_it_gives_up() {
        let config = owned_by_one();
        let (next, given_up) = config.force_recovery(config.epoch(), owner(2), BootId([7; 16])).unwrap();
        assert_eq!(next.epoch(), Epoch { generation: 1, number: 1 });
        assert_eq!(given_up, [member(1)]);
        assert_eq!(next.in_sync(), [Member { boot: BootId([7; 16]), ..member(2) }]);
        let unknown = config.force_recovery(config.epoch(), owner(5), BootId([5; 16]));
        assert_eq!(unknown, Err(ConfigError::NotInSync(node(5))));
    }

    #[test]
    fn records_that_break_an_invariant_are_refused() {
        let parts = |owner, in_sync, min| VolumeConfig::from_parts(Epoch::FIRST, owner, in_sync, vec![], min);
        assert_eq!(parts(None, vec![], 1), Err(ConfigError::Empty));
        assert_eq!(parts(None, vec![member(1), member(1)], 1), Err(ConfigError::AlreadyAMember(node(1))));
        assert_eq!(parts(Some(owner(2)), vec![member(1)], 1), Err(ConfigError::NotInSync(node(2))));
        assert_eq!(parts(None, vec![member(1)], 0), Err(ConfigError::MinInSync));
        let unnamed = Member { pool: String::new(), ..member(1) };
        assert_eq!(parts(None, vec![unnamed], 1), Err(ConfigError::PoolName));
        let zero = VolumeConfig::from_parts(Epoch::ZERO, None, vec![member(1)], vec![], 1);
        assert_eq!(zero, Err(ConfigError::Epoch));
    }
}
