//! A cluster with one volume of several copies and a verifying initiator on every node's portal: what tests of replication work on.

use std::{
    process::Command,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::{
    cluster::INITIATOR_A,
    initiator::Initiator,
    netcluster::{NetCluster, Shape},
    patience,
    verifier::{Login, Report, VOLUME_SIZE, Verifier},
};

type Shared = Arc<RwLock<NetCluster>>;

/// A path that is silent for so long is left for another one.
const PATH_PATIENCE_S: &str = "12";
/// Commands that a verifier gets through before the next blow.
const SOME: u64 = 150;
/// A lease, a recovery and a re-synchronisation take their time on a machine under load.
const STEP_PATIENCE: Duration = Duration::from_secs(90);

/// See the module.
pub struct Bench {
    cluster: Shared,
    /// At work.
    pub verifier: Verifier,
    copies: usize,
}

impl Bench {
    /// A cluster with one volume of `copies` copies, owned by node 1, and a verifier, which is at work, on each node's portal.
    ///
    /// # Errors
    /// When the cluster or the volume does not come up.
    pub fn new(datanodes: u8, copies: usize, more: &[&str]) -> anyhow::Result<Self> {
        Self::of(Shape { datanodes, ..Shape::default() }, copies, more)
    }

    /// The same with two data nodes on disks that fail on command.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn on_bad_disks(more: &[&str]) -> anyhow::Result<Self> {
        Self::of(Shape { bad_disks: true, ..Shape::default() }, 2, more)
    }

    /// The same in a cluster of any shape.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn of(shape: Shape, copies: usize, more: &[&str]) -> anyhow::Result<Self> {
        let datanodes = shape.datanodes;
        let cluster = NetCluster::start(shape)?;
        let nodes: Vec<_> = (1..=copies).map(|number| format!("node-{number}")).collect();
        let (number, wished) = (copies.to_string(), nodes.join(","));
        let arguments = ["--size", VOLUME_SIZE, "--replicas", &number, "--node", &wished];
        cluster.volume_for_both("disk", 0, &[&arguments, more].concat())?;
        let cluster = Arc::new(RwLock::new(cluster));
        until_in_sync(&cluster, copies)?;
        let verifier = Verifier::start(login(Arc::clone(&cluster)), datanodes.into(), 0, 7);
        let mut bench = Self { cluster, verifier, copies };
        bench.go_on()?;
        Ok(bench)
    }

    /// Looks at the cluster.
    ///
    /// # Errors
    /// Those of `with`.
    pub fn cluster<T>(&self, with: impl FnOnce(&NetCluster) -> anyhow::Result<T>) -> anyhow::Result<T> {
        with(&self.cluster.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the cluster.
    ///
    /// # Errors
    /// Those of `with`.
    pub fn change<T>(&self, with: impl FnOnce(&mut NetCluster) -> anyhow::Result<T>) -> anyhow::Result<T> {
        with(&mut self.cluster.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until `condition` gives a value.
    ///
    /// # Errors
    /// The condition's last word.
    pub fn until<T>(
        &self,
        what: &str,
        condition: impl FnMut(&NetCluster) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        until(&self.cluster, what, condition)
    }

    /// Waits until so many copies are in sync.
    ///
    /// # Errors
    /// How many are.
    pub fn until_in_sync(&self, copies: usize) -> anyhow::Result<()> {
        until_in_sync(&self.cluster, copies)
    }

    /// The verifier has got through some commands since.
    ///
    /// # Errors
    /// When it does not, or has found something wrong.
    pub fn go_on(&mut self) -> anyhow::Result<()> {
        self.verifier.until_answered(SOME)
    }

    /// Name of the owner, as soon as there is one.
    ///
    /// # Errors
    /// When there is none for long.
    pub fn owner(&self) -> anyhow::Result<String> {
        self.until("an owner", |cluster| cluster.owner("disk"))
    }

    /// Waits until another node owns the volume.
    ///
    /// # Errors
    /// That it still does.
    pub fn until_not_owner(&self, node: &str) -> anyhow::Result<()> {
        self.until("another owner", |cluster| {
            ensure!(cluster.owner("disk")? != node, "{node} still");
            Ok(())
        })
    }

    /// The node is killed, hosts go on without it, and it comes back and gets what it missed.
    ///
    /// # Errors
    /// When hosts do not go on, or the copy does not come back.
    pub fn do_without(&mut self, node: &str) -> anyhow::Result<()> {
        self.change(|cluster| cluster.kill(node))?;
        self.go_on()?;
        self.change(|cluster| cluster.launch(node))?;
        self.until_in_sync(self.copies)
    }

    /// Ends the run: everything is read once more, and all copies are alike.
    ///
    /// # Errors
    /// What was found wrong.
    pub fn finish(mut self, copies: usize) -> anyhow::Result<Report> {
        self.go_on()?;
        self.until_in_sync(copies)?;
        let report = self.verifier.finish()?;
        println!("{report:?}");
        ensure!(report.writes > SOME && report.reads > 0, "too little was tried: {report:?}");
        let cluster = self.cluster.read().unwrap_or_else(PoisonError::into_inner);
        let shown = cluster.json(&["volume", "show", "disk"])?;
        let id = shown["status"]["id"].as_str().context("id")?;
        let found = cluster.same_in_every_pool(&format!("{id}/data"))?;
        ensure!(found >= copies, "only {found} copies were found");
        Ok(report)
    }
}

/// Logs in through a node's portal, from the hosts' network.
fn login(cluster: Shared) -> Login {
    Box::new(move |path: usize| {
        let node = format!("node-{}", path + 1);
        let cluster = cluster.read().unwrap_or_else(PoisonError::into_inner);
        let spawn = |mut command: Command| {
            command.env("HOLDFAST_INITIATOR_PATIENCE_S", PATH_PATIENCE_S);
            cluster.network.spawn("host-1", command)
        };
        let portal = cluster.portal(&node)?.to_string();
        let mut session = Initiator::login_with(spawn, &portal, &cluster.target, INITIATOR_A, 10, None)?;
        session.become_ready(0)?;
        Ok(session)
    })
}

/// Waits for a condition. The lock is let go of between two looks, so that a verifier can log in.
fn until<T>(
    cluster: &Shared,
    what: &str,
    mut condition: impl FnMut(&NetCluster) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let look = || condition(&cluster.read().unwrap_or_else(PoisonError::into_inner));
    patience::wait_for(what, STEP_PATIENCE, look, String::new)
}

fn until_in_sync(cluster: &Shared, copies: usize) -> anyhow::Result<()> {
    until(cluster, &format!("{copies} copies in sync"), |cluster| {
        let shown = cluster.json(&["volume", "show", "disk"])?;
        let in_sync = in_sync(&shown);
        ensure!(in_sync == copies, "{in_sync} of {copies} copies are in sync: {shown}");
        Ok(())
    })
}

/// How many copies of a shown volume are in sync.
pub fn in_sync(shown: &Value) -> usize {
    shown["status"]["in_sync"].as_array().map_or(0, Vec::len)
}

/// The volume's epoch.
///
/// # Errors
/// When it is not shown.
pub fn epoch(bench: &Bench) -> anyhow::Result<u64> {
    let shown = bench.cluster(|cluster| cluster.json(&["volume", "show", "disk"]))?;
    Ok(shown["status"]["epoch_number"].as_str().context("epoch_number")?.parse()?)
}

/// The other one of two nodes.
pub fn other(node: &str) -> &'static str {
    if node == "node-1" { "node-2" } else { "node-1" }
}
