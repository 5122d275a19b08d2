//! Volumes with several copies while their nodes are killed, stopped, cut off and restarted: no write that was answered is lost, no
//! stale value is read, and in the end the copies are alike.

use std::{
    process::Command,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use anyhow::{Context, ensure};
use holdfast_tests::{
    cluster::INITIATOR_A,
    initiator::Initiator,
    netcluster::{NetCluster, Shape},
    patience,
    verifier::{Login, Report, VOLUME_SIZE, Verifier},
};
use rustix::process::Signal;
use serde_json::Value;

type Shared = Arc<RwLock<NetCluster>>;

/// A path that is silent for so long is left for another one.
const PATH_PATIENCE_S: &str = "12";
/// Commands that a verifier gets through before the next blow.
const SOME: u64 = 150;
/// A lease, a recovery and a re-synchronisation take their time on a machine under load.
const STEP_PATIENCE: Duration = Duration::from_secs(90);

struct Bench {
    cluster: Shared,
    verifier: Verifier,
    copies: usize,
}

impl Bench {
    /// A cluster with one volume of `copies` copies, owned by node 1, and a verifier, which is at work, on each node's portal.
    fn new(datanodes: u8, copies: usize, more: &[&str]) -> anyhow::Result<Self> {
        let cluster = NetCluster::start(Shape { datanodes, ..Shape::default() })?;
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

    fn cluster<T>(&self, with: impl FnOnce(&NetCluster) -> anyhow::Result<T>) -> anyhow::Result<T> {
        with(&self.cluster.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn change<T>(&self, with: impl FnOnce(&mut NetCluster) -> anyhow::Result<T>) -> anyhow::Result<T> {
        with(&mut self.cluster.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn until<T>(
        &self,
        what: &str,
        condition: impl FnMut(&NetCluster) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        until(&self.cluster, what, condition)
    }

    fn until_in_sync(&self, copies: usize) -> anyhow::Result<()> {
        until_in_sync(&self.cluster, copies)
    }

    /// The verifier has got through some commands since.
    fn go_on(&mut self) -> anyhow::Result<()> {
        self.verifier.until_answered(SOME)
    }

    fn owner(&self) -> anyhow::Result<String> {
        self.until("an owner", |cluster| cluster.owner("disk"))
    }

    fn until_not_owner(&self, node: &str) -> anyhow::Result<()> {
        self.until("another owner", |cluster| {
            ensure!(cluster.owner("disk")? != node, "{node} still");
            Ok(())
        })
    }

    /// The node is killed, hosts go on without it, and it comes back and gets what it missed.
    fn do_without(&mut self, node: &str) -> anyhow::Result<()> {
        self.change(|cluster| cluster.kill(node))?;
        self.go_on()?;
        self.change(|cluster| cluster.launch(node))?;
        self.until_in_sync(self.copies)
    }

    fn finish(mut self, copies: usize) -> anyhow::Result<Report> {
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

fn in_sync(shown: &Value) -> usize {
    shown["status"]["in_sync"].as_array().map_or(0, Vec::len)
}

fn epoch(bench: &Bench) -> anyhow::Result<u64> {
    let shown = bench.cluster(|cluster| cluster.json(&["volume", "show", "disk"]))?;
    Ok(shown["status"]["epoch_number"].as_str().context("epoch_number")?.parse()?)
}

fn other(node: &str) -> &'static str {
    if node == "node-1" { "node-2" } else { "node-1" }
}

#[test]
fn killed_owner_costs_a_stall_and_nothing_else() -> anyhow::Result<()> {
    let mut bench = Bench::new(2, 2, &[])?;
    for _ in 0..2 {
        let owner = bench.owner()?;
        bench.do_without(&owner)?;
        bench.go_on()?;
    }
    bench.finish(2)?;
    Ok(())
}

#[test]
fn killed_replica_costs_hosts_a_moment_and_gets_what_it_missed() -> anyhow::Result<()> {
    let mut bench = Bench::new(2, 2, &["--write-cache", "off"])?;
    let replica = other(&bench.owner()?);
    for _ in 0..2 {
        bench.do_without(replica)?;
    }
    bench.finish(2)?;
    Ok(())
}

#[test]
fn owner_stopped_past_its_lease_serves_nothing_stale_afterwards() -> anyhow::Result<()> {
    let mut bench = Bench::new(2, 2, &[])?;
    let owner = bench.owner()?;
    bench.cluster(|cluster| cluster.signal(&owner, Signal::STOP))?;
    bench.until_not_owner(&owner)?;
    bench.go_on()?;
    bench.cluster(|cluster| cluster.signal(&owner, Signal::CONT))?;
    bench.until_in_sync(2)?;
    bench.finish(2)?;
    Ok(())
}

#[test]
fn three_copies_survive_one_after_the_other() -> anyhow::Result<()> {
    let mut bench = Bench::new(3, 3, &[])?;
    for node in ["node-1", "node-2", "node-3"] {
        bench.do_without(node)?;
    }
    bench.finish(3)?;
    Ok(())
}

#[test]
fn planned_moves_show_hosts_no_error() -> anyhow::Result<()> {
    let mut bench = Bench::new(2, 2, &[])?;
    let before = epoch(&bench)?;
    for _ in 0..4 {
        let to = other(&bench.owner()?);
        bench.cluster(|cluster| cluster.cli(&["volume", "move", "disk", "--node", to]))?;
        bench.until("the new owner", |cluster| {
            ensure!(cluster.owner("disk")? == to, "not yet");
            Ok(())
        })?;
        bench.go_on()?;
    }
    // Each move is one epoch. More would mean that leases have lapsed on this machine, which hosts may see.
    let undisturbed = epoch(&bench)? == before + 4;
    let report = bench.finish(2)?;
    let seen = (report.path_errors, report.busy, report.aborted);
    ensure!(!undisturbed || seen == (0, 0, 0), "hosts saw it: {report:?}");
    Ok(())
}

#[test]
fn owner_cut_off_from_the_controllers_serves_nothing_stale() -> anyhow::Result<()> {
    let mut bench = Bench::new(2, 2, &[])?;
    for _ in 0..2 {
        bench.go_on()?;
        let owner = bench.owner()?;
        bench.cluster(|cluster| cluster.network.isolate(&owner, ["ctl-1", "ctl-2", "ctl-3"]))?;
        bench.until_not_owner(&owner)?;
        bench.go_on()?;
        bench.cluster(|cluster| cluster.network.heal())?;
        bench.until_in_sync(2)?;
    }
    bench.finish(2)?;
    Ok(())
}

#[test]
fn owner_cut_off_from_its_replica_goes_on_without_it() -> anyhow::Result<()> {
    let mut bench = Bench::new(2, 2, &[])?;
    for _ in 0..2 {
        bench.go_on()?;
        bench.cluster(|cluster| cluster.network.cut("node-1", "node-2"))?;
        bench.until_in_sync(1)?;
        bench.go_on()?;
        bench.cluster(|cluster| cluster.network.heal())?;
        bench.until_in_sync(2)?;
    }
    bench.finish(2)?;
    Ok(())
}

#[test]
fn copies_are_added_moved_and_grown_under_a_host() -> anyhow::Result<()> {
    let mut bench = Bench::new(3, 1, &[])?;
    bench.cluster(|cluster| cluster.cli(&["volume", "replica", "add", "disk", "--node", "node-2"]))?;
    bench.until_in_sync(2)?;
    bench.go_on()?;
    bench.cluster(|cluster| cluster.cli(&["volume", "resize", "disk", "--size", "96MiB"]))?;
    bench.go_on()?;
    let owner = bench.owner()?;
    let from = other(&owner);
    let arguments = ["volume", "replica", "move", "disk", "--from", from, "--to", "node-3"];
    bench.cluster(|cluster| cluster.cli(&arguments))?;
    bench.until("the move", |cluster| {
        let shown = cluster.json(&["volume", "show", "disk"])?;
        let in_sync = shown["status"]["in_sync"].as_array().context("in_sync")?;
        ensure!(in_sync.iter().any(|n| n == "node-3") && !in_sync.iter().any(|n| n == from), "{shown}");
        Ok(())
    })?;
    bench.go_on()?;
    bench.change(|cluster| cluster.kill(&owner))?;
    bench.go_on()?;
    bench.change(|cluster| cluster.launch(&owner))?;
    bench.finish(2)?;
    Ok(())
}

#[test]
fn unrest_of_controllers_and_nodes_at_once_loses_nothing() -> anyhow::Result<()> {
    let mut bench = Bench::new(3, 3, &[])?;
    for round in 0..4 {
        let leader = bench.until("a leader", NetCluster::leader)?;
        let owner = bench.owner()?;
        let stopped = round % 2 == 0;
        bench.change(|cluster| cluster.kill(&leader))?;
        if stopped {
            bench.cluster(|cluster| cluster.signal(&owner, Signal::STOP))?;
        } else {
            bench.change(|cluster| cluster.kill(&owner))?;
        }
        bench.until_not_owner(&owner)?;
        if stopped {
            bench.cluster(|cluster| cluster.signal(&owner, Signal::CONT))?;
        } else {
            bench.change(|cluster| cluster.launch(&owner))?;
        }
        bench.change(|cluster| cluster.launch(&leader))?;
        bench.go_on()?;
        bench.until_in_sync(3)?;
    }
    bench.finish(3)?;
    Ok(())
}
