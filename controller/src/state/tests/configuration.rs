//! Random histories of one volume: owners, evictions, admissions, reboots, moves. What was acknowledged is with whoever is promoted, or hosts
//! are told of the loss.

use std::collections::BTreeSet;

use holdfast_replica::ids::NodeNumber;
use proptest::prelude::*;

use super::build::*;
use crate::state::{Body, Volume};

/// Number of nodes.
const NODES: u32 = 4;
/// ASC and ASCQ of "power on occurred" (29/01), which a loss raises.
const POWER_ON: u32 = 0x2901;

#[derive(Clone, Copy, Debug)]
enum Step {
    /// The machine loses its power and comes back.
    Reboot(u32),
    /// The process ends and comes back.
    Restart(u32),
    Live(u32),
    Lost(u32),
    Evict(u32),
    Admit(u32),
    HandOver(u32, bool),
    Return(u32),
    Promote(u32),
    Add(u32, u32),
    Drop(u32, bool),
    Removed(u32),
    Recover(u32),
    /// The same as one of the above, but with what was true some steps ago.
    Late(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let node = || 1..=NODES;
    prop_oneof![
        2 => node().prop_map(Step::Reboot),
        1 => node().prop_map(Step::Restart),
        5 => node().prop_map(Step::Live),
        2 => node().prop_map(Step::Lost),
        4 => node().prop_map(Step::Evict),
        6 => node().prop_map(Step::Admit),
        3 => (0..=NODES, any::<bool>()).prop_map(|(to, leave)| Step::HandOver(to, leave)),
        6 => node().prop_map(Step::Return),
        4 => node().prop_map(Step::Promote),
        2 => (node(), 0..=NODES).prop_map(|(node, replaces)| Step::Add(node, replaces)),
        2 => (node(), any::<bool>()).prop_map(|(node, fewer)| Step::Drop(node, fewer)),
        2 => node().prop_map(Step::Removed),
        1 => node().prop_map(Step::Recover),
        2 => (1usize..6).prop_map(Step::Late),
    ]
}

/// Which nodes hold everything that was acknowledged, as the world knows it.
#[derive(Default)]
struct World {
    boots: u8,
    processes: u8,
    whole: BTreeSet<u32>,
}

impl World {
    fn body(&mut self, cluster: &Cluster, step: Step) -> Body {
        let incarnation = |n: u32| cluster.state.node(n).map_or(0, |node| node.incarnation);
        match step {
            Step::Reboot(n) => {
                (self.boots, self.processes) = (self.boots + 1, self.processes + 1);
                boot(n, 50 + self.boots, 10 + self.processes)
            }
            Step::Restart(n) => {
                self.processes += 1;
                let boot_id = cluster.state.node(n).map_or(0, |node| node.boot_id[0]);
                boot(n, boot_id, 10 + self.processes)
            }
            Step::Live(n) => live(n, incarnation(n)),
            Step::Lost(n) => lost(n, incarnation(n)),
            Step::Evict(n) => cluster.evict("v", n),
            Step::Admit(n) => cluster.admit("v", n),
            Step::HandOver(n, leave) => cluster.hand_over("v", n, leave),
            Step::Return(n) => cluster.returned("v", n),
            Step::Promote(n) => cluster.promoted("v", n),
            Step::Add(n, replaces) => add_replica("v", n, replaces),
            Step::Drop(n, fewer) => drop_replica("v", n, fewer),
            Step::Removed(n) => removed(1, n),
            Step::Recover(n) => cluster.recovered("v", n),
            Step::Late(_) => unreachable!(),
        }
    }
}

fn numbers(volume: &Volume) -> BTreeSet<u32> {
    volume.config.in_sync().iter().map(|m| u32::from(m.node.get())).collect()
}

fn check(write_cache: bool, nodes: &[u32], steps: Vec<Step>) -> Result<(), TestCaseError> {
    let mut cluster = Cluster::of(NODES);
    cluster.done(replicated(1, "v", nodes, write_cache));
    let mut world = World { whole: nodes.iter().copied().collect(), ..World::default() };
    let mut past: Vec<Body> = Vec::new();
    for step in steps {
        let body = match step {
            Step::Late(back) => match past.len().checked_sub(back).and_then(|at| past.get(at)) {
                // Only what is compare-and-set can come late: reports of nodes come in the order of their sessions.
                Some(
                    body @ (Body::ChangeConfiguration(_) | Body::ChangeOwner(_) | Body::ReturnReplica(_)),
                ) => body.clone(),
                _ => continue,
            },
            step => world.body(&cluster, step),
        };
        past.push(body.clone());
        let before = cluster.volume("v").clone();
        let applied = cluster.apply(body.clone());
        let after = cluster.volume("v");
        let changed = applied.response.is_ok();
        prop_assert!(changed || *after == before);

        // The order of epochs, and who may own.
        let (old, new) = (before.config.epoch(), after.config.epoch());
        let same = (before.config.owner(), before.config.in_sync(), before.config.learners())
            == (after.config.owner(), after.config.in_sync(), after.config.learners());
        prop_assert!(if same { new >= old } else { new > old }, "{old} to {new}");
        prop_assert!(after.config.min_in_sync() <= 2);
        let forced = matches!(body, Body::ForceRecovery(_)) && changed;
        prop_assert_eq!(new.generation > old.generation, forced);
        let owner = after.config.owner().expect("a volume keeps an owner");
        let number = u32::from(owner.node.get());
        let learners = before.config.learners();
        let joined: Vec<u32> = numbers(after).difference(&numbers(&before)).copied().collect();
        for joined in &joined {
            let node = NodeNumber::new(*joined).unwrap();
            prop_assert!(forced || learners.iter().any(|m| m.node == node), "{joined} was no learner");
        }

        // What the world makes of it.
        if let (Body::NodeJoin(join), true) = (&body, write_cache) {
            let number = cluster.state.node_by_name(&join.name).unwrap().number;
            if matches!(step, Step::Reboot(_)) {
                world.whole.remove(&number);
            }
        }
        let told_of_loss = applied.commit.unit_attentions.iter().any(|event| event.additional == POWER_ON);
        if before.config.owner() != after.config.owner() {
            let node = cluster.state.node(number).unwrap();
            prop_assert_eq!(owner.incarnation.0, node.incarnation);
            if !forced {
                prop_assert!(numbers(&before).contains(&number), "a non-member was promoted");
                prop_assert!(world.whole.contains(&number) || told_of_loss, "acknowledged writes are gone");
            }
            if told_of_loss {
                world.whole = BTreeSet::from([number]);
            }
        }
        // The owner copies to a learner before it is admitted; one without its writes is not admitted anywhere.
        for joined in joined {
            if world.whole.contains(&number) {
                world.whole.insert(joined);
            }
        }
        // A write, if it can be acknowledged: every in-sync replica under the boot of the record, the owner live and of this process.
        let boots = after.config.in_sync().iter().all(|m| {
            cluster.state.node(u32::from(m.node.get())).is_some_and(|node| node.boot_id[..] == m.boot.0[..])
        });
        let process =
            cluster.state.node(number).is_some_and(|n| n.live && n.incarnation == owner.incarnation.0);
        if boots && process && after.config.takes_writes() {
            world.whole = numbers(after);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn what_was_acknowledged_is_never_lost_in_silence(
        write_cache in any::<bool>(),
        copies in 1usize..=3,
        steps in proptest::collection::vec(step(), 1..150),
    ) {
        check(write_cache, &[1, 2, 3][..copies], steps)?;
    }
}
