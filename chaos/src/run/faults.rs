//! Faults, one at a time, drawn from the seed: injected, held for a while, healed; then the whole cluster must serve again.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use holdfast_tests::netcluster::NetCluster;
use rustix::process::Signal;

use super::chronicle::Chronicle;
use crate::random::Random;

/// What can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// kill -9 of a data node; its kernel tells everybody.
    KillNode,
    /// kill -9 of the node that owns the volume under test.
    KillOwner,
    /// kill -9 of a controller that may or may not lead.
    KillController,
    /// kill -9 of the leader.
    KillLeader,
    /// kill -9 of the leader and of the owner.
    KillLeaderAndOwner,
    /// A data node vanishes without a word.
    PowerLossOfNode,
    /// Every process is killed.
    KillAll,
    /// SIGSTOP of a data node, often past its lease.
    PauseNode,
    /// SIGSTOP of the leader.
    PauseLeader,
    /// A node and the controllers do not hear each other.
    CutNodeFromControllers,
    /// A node does not hear the controllers, or they do not hear it.
    CutNodeFromControllersOneWay,
    /// Two data nodes do not hear each other.
    CutNodesApart,
    /// One data node does not hear another.
    CutNodesApartOneWay,
    /// A node hears no other member of the cluster; hosts still reach it.
    IsolateNode,
    /// The leader hears nobody.
    IsolateLeader,
    /// A host and a node do not hear each other.
    CutHostFromNode,
    /// The pool of a node is full.
    FullDisk,
}

/// All of them.
pub const FAULTS: [Fault; 17] = [
    Fault::KillNode,
    Fault::KillOwner,
    Fault::KillController,
    Fault::KillLeader,
    Fault::KillLeaderAndOwner,
    Fault::PowerLossOfNode,
    Fault::KillAll,
    Fault::PauseNode,
    Fault::PauseLeader,
    Fault::CutNodeFromControllers,
    Fault::CutNodeFromControllersOneWay,
    Fault::CutNodesApart,
    Fault::CutNodesApartOneWay,
    Fault::IsolateNode,
    Fault::IsolateLeader,
    Fault::CutHostFromNode,
    Fault::FullDisk,
];

impl Fault {
    /// As the table names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::KillNode => "kill -9 of a data node",
            Self::KillOwner => "kill -9 of the owner",
            Self::KillController => "kill -9 of a controller",
            Self::KillLeader => "kill -9 of the leader",
            Self::KillLeaderAndOwner => "kill -9 of leader and owner",
            Self::PowerLossOfNode => "power loss of a data node",
            Self::KillAll => "kill -9 of every process",
            Self::PauseNode => "SIGSTOP of a data node",
            Self::PauseLeader => "SIGSTOP of the leader",
            Self::CutNodeFromControllers => "cut: node and controllers",
            Self::CutNodeFromControllersOneWay => "cut one way: node and controllers",
            Self::CutNodesApart => "cut: two data nodes",
            Self::CutNodesApartOneWay => "cut one way: two data nodes",
            Self::IsolateNode => "cut: a node and all but hosts",
            Self::IsolateLeader => "cut: the leader and all",
            Self::CutHostFromNode => "cut: a host and a node",
            Self::FullDisk => "full disk",
        }
    }
}

/// Injects faults until the time is over.
pub struct Injector {
    /// The cluster.
    pub cluster: NetCluster,
    /// Draws what happens.
    pub random: Random,
    /// The run's log.
    pub chronicle: Arc<Chronicle>,
    /// Volume whose owner is struck.
    pub volume: String,
    /// Machines with initiators.
    pub hosts: Vec<String>,
}

impl Injector {
    /// Works until `end`; gives the cluster back, healed.
    ///
    /// # Errors
    /// When the cluster does not serve again, or a fault cannot be injected.
    pub fn run(mut self, end: Instant) -> anyhow::Result<NetCluster> {
        // Every kind comes once before any comes again.
        let mut left = Vec::new();
        while Instant::now() < end {
            if left.is_empty() {
                left = FAULTS.to_vec();
            }
            let fault = left.swap_remove(self.random.below(left.len() as u64) as usize);
            self.inject(fault)?;
            thread::sleep(Duration::from_millis(200 + self.random.below(5_000)));
            self.heal()?;
            thread::sleep(Duration::from_millis(500 + self.random.below(2_000)));
        }
        Ok(self.cluster)
    }

    fn node(&mut self) -> String {
        self.random.pick(&self.cluster.datanodes()).clone()
    }

    fn other_node(&mut self, than: &str) -> String {
        let others: Vec<_> = self.cluster.datanodes().into_iter().filter(|name| name != than).collect();
        self.random.pick(&others).clone()
    }

    fn leader(&mut self) -> String {
        let any = self.random.pick(&self.cluster.controllers()).clone();
        self.cluster.leader().unwrap_or(any)
    }

    fn owner(&mut self) -> String {
        let any = self.node();
        self.cluster.owner(&self.volume).unwrap_or(any)
    }

    fn inject(&mut self, fault: Fault) -> anyhow::Result<()> {
        let detail = match fault {
            Fault::KillNode => {
                let node = self.node();
                self.kill_all(&[node])?
            }
            Fault::KillOwner => {
                let owner = self.owner();
                self.kill_all(&[owner])?
            }
            Fault::KillController => {
                let any = self.random.pick(&self.cluster.controllers()).clone();
                self.kill_all(&[any])?
            }
            Fault::KillLeader => {
                let leader = self.leader();
                self.kill_all(&[leader])?
            }
            Fault::KillLeaderAndOwner => {
                let both = [self.leader(), self.owner()];
                self.kill_all(&both)?
            }
            Fault::KillAll => {
                let all = [self.cluster.datanodes(), self.cluster.controllers()].concat();
                self.kill_all(&all)?
            }
            Fault::PowerLossOfNode => {
                let node = self.node();
                self.cluster.lose_power(&node)?;
                node
            }
            Fault::PauseNode => {
                let node = self.node();
                self.cluster.signal(&node, Signal::STOP)?;
                node
            }
            Fault::PauseLeader => {
                let leader = self.leader();
                self.cluster.signal(&leader, Signal::STOP)?;
                leader
            }
            Fault::CutNodeFromControllers => {
                let node = self.node();
                for controller in self.cluster.controllers() {
                    self.cluster.network.cut(&node, &controller)?;
                }
                node
            }
            Fault::CutNodeFromControllersOneWay => {
                let (node, deaf) = (self.node(), self.random.below(2) == 0);
                for controller in self.cluster.controllers() {
                    let (from, to) = if deaf { (&controller, &node) } else { (&node, &controller) };
                    self.cluster.network.cut_one_way(from, to)?;
                }
                format!("{node} {}", if deaf { "does not hear" } else { "is not heard" })
            }
            Fault::CutNodesApart => {
                let one = self.node();
                let other = self.other_node(&one);
                self.cluster.network.cut(&one, &other)?;
                format!("{one} and {other}")
            }
            Fault::CutNodesApartOneWay => {
                let one = self.node();
                let other = self.other_node(&one);
                self.cluster.network.cut_one_way(&one, &other)?;
                format!("from {one} to {other}")
            }
            Fault::IsolateNode => {
                let node = self.node();
                let others = [self.cluster.controllers(), self.cluster.datanodes()].concat();
                self.cluster.network.isolate(&node, others.iter().map(String::as_str))?;
                node
            }
            Fault::IsolateLeader => {
                let leader = self.leader();
                self.cluster.network.isolate(&leader, self.cluster.network.names())?;
                leader
            }
            Fault::CutHostFromNode => {
                let (host, node) = (self.random.pick(&self.hosts).clone(), self.node());
                self.cluster.network.cut(&host, &node)?;
                format!("{host} and {node}")
            }
            Fault::FullDisk => {
                let node = self.node();
                self.cluster.fill_disk(&node)?;
                node
            }
        };
        self.chronicle.fault(fault.name(), &detail);
        Ok(())
    }

    fn kill_all(&mut self, names: &[String]) -> anyhow::Result<String> {
        for name in names {
            self.cluster.kill(name)?;
        }
        Ok(names.join(", "))
    }

    fn heal(&mut self) -> anyhow::Result<()> {
        self.cluster.network.heal()?;
        for name in [self.cluster.controllers(), self.cluster.datanodes()].concat() {
            if self.cluster.runs(&name) {
                self.cluster.signal(&name, Signal::CONT)?;
            } else {
                self.cluster.launch(&name)?;
            }
        }
        for node in self.cluster.datanodes() {
            self.cluster.empty_disk(&node)?;
        }
        self.chronicle.say("healed");
        let started = Instant::now();
        self.cluster.wait_until_serving().context("after the fault was healed")?;
        self.chronicle.say(&format!("serves {:.3} s later", started.elapsed().as_secs_f64()));
        Ok(())
    }
}
