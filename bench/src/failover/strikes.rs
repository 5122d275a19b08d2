//! The cluster, and the blows that it gets.
//!
//! Volumes are made anew after each node was struck once: the leader lets a copy that comes and goes wait longer each time, up to a
//! minute, which would measure that instead.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use holdfast_tests::{
    cluster::INITIATOR_A,
    netcluster::{NetCluster, Shape},
    patience,
};

use super::{
    Kind,
    host::{Habits, Host},
    report::Row,
    say,
    session::Way,
};

const NODES: [&str; 2] = ["node-1", "node-2"];
const MACHINE: &str = "host-1";
/// Any wait for the cluster or the host, at most.
const PATIENCE: Duration = Duration::from_secs(90);
/// Writes of each volume that a new owner has acknowledged before it counts as serving.
const PROOF: u64 = 50;
/// Size of a volume: room for what the host writes at depth 64.
const SIZE: &str = "16MiB";

/// See the module.
pub(super) struct Field {
    cluster: NetCluster,
    volumes: u16,
    made: u32,
}

impl Field {
    /// A cluster that serves.
    pub(super) fn start(disk: Option<PathBuf>, volumes: u16) -> anyhow::Result<Self> {
        let shape = Shape { hosts: 1, disk, logs: None, ..Shape::default() };
        Ok(Self { cluster: NetCluster::start(shape)?, volumes, made: 0 })
    }

    /// State is on a real disk.
    pub(super) fn on_disk(&self) -> bool {
        self.cluster.is_on_disk()
    }

    /// Strikes until there are `count` samples, or it is too late.
    pub(super) fn measure(
        &mut self,
        mut row: Row,
        habits: Habits,
        count: usize,
        by: Instant,
    ) -> anyhow::Result<Row> {
        let begun = Instant::now();
        let of = format!("{} at depth {}", row.kind.name(), row.depth);
        while row.stalls_ms.len() < count && (row.blows == 0 || Instant::now() < by) {
            let set = self.make_volumes()?;
            let mut host = self.host(habits)?;
            // Planned moves leave nobody absent: one set of volumes does.
            let rounds = if row.kind == Kind::Planned { count.div_ceil(NODES.len()) } else { 1 };
            for number in 0..rounds * NODES.len() {
                if row.stalls_ms.len() >= count || row.blows > 0 && Instant::now() >= by {
                    break;
                }
                let struck = NODES[number % NODES.len()];
                let stalls = match row.kind {
                    Kind::Planned => self.hand_over(&set, number, &mut host)?,
                    kind => self.strike(kind, &set, struck, &mut host)?,
                };
                row.blows += 1;
                let words: Vec<String> = stalls.iter().map(|ms| format!("{ms:.0}")).collect();
                row.stalls_ms.extend(stalls);
                let (have, errors) = (row.stalls_ms.len(), host.seen().errors.len());
                let seconds = begun.elapsed().as_secs();
                say(&format!(
                    "{of}: {have} of {count}, {seconds} s; stalled for {} ms; {errors} errors",
                    words.join(", ")
                ));
                host.verify(PATIENCE)?;
            }
            row.add(&host.finish()?);
            self.remove_volumes(&set)?;
        }
        row.took_s = begun.elapsed().as_secs_f64();
        Ok(row)
    }

    /// Volumes of two copies, all owned by the first node.
    fn make_volumes(&mut self) -> anyhow::Result<Vec<String>> {
        self.made += 1;
        let set: Vec<String> = (0..self.volumes).map(|n| format!("v{}-{n}", self.made)).collect();
        for (name, lun) in set.iter().zip(0..) {
            let arguments = ["--size", SIZE, "--replicas", "2", "--node", &NODES.join(",")];
            self.cluster.volume_for_both(name, lun, &arguments)?;
        }
        self.until_whole(&set)?;
        Ok(set)
    }

    /// All copies are alike; then all of it goes.
    fn remove_volumes(&self, set: &[String]) -> anyhow::Result<()> {
        self.until_whole(set)?;
        for name in set {
            let shown = self.cluster.json(&["volume", "show", name])?;
            let id = shown["status"]["id"].as_str().context("id")?;
            let found = self.cluster.same_in_every_pool(&format!("{id}/data"))?;
            ensure!(found == NODES.len(), "{name}: {found} copies were found");
            for host in ["a", "b"] {
                self.cluster.cli(&["map", "delete", name, host])?;
            }
            self.cluster.cli(&["volume", "delete", name])?;
        }
        Ok(())
    }

    fn host(&self, habits: Habits) -> anyhow::Result<Host> {
        let namespace = &self.cluster.network.member(MACHINE)?.namespace;
        let way = |(node, isid): (&str, u8)| {
            Ok(Way {
                portal: self.cluster.portal(node)?,
                target: self.cluster.target.clone(),
                initiator: INITIATOR_A.to_owned(),
                isid,
                units: self.volumes,
                namespace: namespace.clone(),
            })
        };
        let ways: anyhow::Result<Vec<Way>> = NODES.into_iter().zip(1..).map(way).collect();
        let mut host = Host::start(ways?, habits)?;
        host.until("both paths", PATIENCE, |seen| seen.paths == NODES.len())?;
        self.served(&mut host, &vec![0; usize::from(self.volumes)])?;
        Ok(host)
    }

    /// Each unit has acknowledged some writes more than these.
    fn served(&self, host: &mut Host, before: &[u64]) -> anyhow::Result<()> {
        host.until("writes to be acknowledged", PATIENCE, |seen| {
            seen.units.iter().zip(before).all(|(unit, before)| unit.writes >= before + PROOF)
        })
    }

    fn owners(&self, set: &[String]) -> anyhow::Result<Vec<String>> {
        set.iter().map(|name| self.cluster.owner(name)).collect()
    }

    /// Every copy of every volume is in sync.
    fn until_whole(&self, set: &[String]) -> anyhow::Result<()> {
        let look = || {
            let shown = self.cluster.json(&["volume", "list"])?;
            let volumes = shown["volumes"].as_array().context("volumes")?;
            for name in set {
                let volume = volumes.iter().find(|volume| volume["name"] == **name).context("no volume")?;
                let in_sync = volume["status"]["in_sync"].as_array().map_or(0, Vec::len);
                ensure!(in_sync == NODES.len(), "{name}: {in_sync} copies in sync: {volume}");
            }
            Ok(())
        };
        patience::wait_for("every copy to be in sync", PATIENCE, look, || self.cluster.tails())
    }

    /// One volume moves to the other node by plan.
    fn hand_over(&mut self, set: &[String], number: usize, host: &mut Host) -> anyhow::Result<Vec<f64>> {
        let unit = number % set.len();
        let name = &set[unit];
        let owner = self.cluster.owner(name)?;
        let to = if owner == NODES[0] { NODES[1] } else { NODES[0] };
        host.mark();
        self.cluster.cli(&["volume", "move", name, "--node", to])?;
        let moved = || {
            let owner = self.cluster.owner(name)?;
            ensure!(owner == to, "{name} is owned by {owner}");
            Ok(())
        };
        patience::wait_for("the hand-over", PATIENCE, moved, || self.cluster.tails())?;
        self.served(host, &writes(host))?;
        self.until_whole(set)?;
        let (gap, _) = host.gaps()[unit];
        Ok(vec![gap.as_secs_f64() * 1000.0])
    }

    /// The node that owns all volumes is struck, comes back, and has again what it missed.
    fn strike(
        &mut self,
        kind: Kind,
        set: &[String],
        struck: &str,
        host: &mut Host,
    ) -> anyhow::Result<Vec<f64>> {
        let owners = self.owners(set)?;
        ensure!(owners.iter().all(|owner| owner == struck), "{struck} should own all: {owners:?}");
        host.mark();
        match kind {
            Kind::Kill => self.cluster.kill(struck)?,
            Kind::Partition => {
                let others = [self.cluster.controllers(), self.cluster.datanodes()].concat();
                self.cluster.network.isolate(struck, others.iter().map(String::as_str))?;
            }
            Kind::Isolation => self.cluster.network.isolate(struck, self.cluster.network.names())?,
            Kind::Planned => {}
        }
        self.served(host, &writes(host))?;
        let owners = self.owners(set)?;
        ensure!(owners.iter().all(|owner| owner != struck), "{struck} still owns: {owners:?}");
        match kind {
            Kind::Kill => self.cluster.launch(struck)?,
            Kind::Partition | Kind::Isolation => self.cluster.network.heal()?,
            Kind::Planned => {}
        }
        self.cluster.wait_until_serving()?;
        self.until_whole(set)?;
        host.until("both paths", PATIENCE, |seen| seen.paths == NODES.len())?;
        self.served(host, &writes(host))?;
        Ok(host.gaps().into_iter().map(|(gap, _)| gap.as_secs_f64() * 1000.0).collect())
    }
}

/// Writes of each unit so far.
fn writes(host: &Host) -> Vec<u64> {
    host.gaps().into_iter().map(|(_, writes)| writes).collect()
}
