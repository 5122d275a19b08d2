//! Volumes with several copies while their nodes are killed, stopped, cut off and restarted: no write that was answered is lost, no
//! stale value is read, and in the end the copies are alike.

use std::{
    process::Command,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use holdfast_tests::{
    cluster::INITIATOR_A,
    initiator::Initiator,
    netcluster::{NetCluster, Shape},
    verifier::{Report, VOLUME_SIZE, Verifier},
};
use rustix::process::Signal;
use serde_json::Value;

type Shared = Arc<RwLock<NetCluster>>;

/// A path that is silent for so long is left for another one.
const PATH_PATIENCE_S: &str = "12";
/// Commands that a verifier gets through before the next blow.
const SOME: u64 = 150;

struct Bench {
    cluster: Shared,
    verifier: Option<Verifier>,
}

impl Bench {
    /// A cluster with one volume of `copies` copies, owned by node 1, and a verifier on each node's portal.
    fn new(datanodes: u8, copies: u8, more: &[&str]) -> anyhow::Result<Self> {
        let cluster = NetCluster::start(Shape { datanodes, ..Shape::default() })?;
        let copies = copies.to_string();
        let nodes = "node-1,node-2,node-3";
        let wished = nodes.get(..(7 * copies.parse::<usize>()? - 1)).context("nodes")?;
        let arguments = ["--size", VOLUME_SIZE, "--replicas", &copies, "--node", wished];
        cluster.volume_for_both("disk", 0, &[&arguments, more].concat())?;
        let bench = Self { cluster: Arc::new(RwLock::new(cluster)), verifier: None };
        bench.until_in_sync(copies.parse()?)?;
        Ok(bench)
    }

    fn verify(&mut self, datanodes: usize) {
        let cluster = Arc::clone(&self.cluster);
        let login = Box::new(move |path: usize| {
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
        });
        self.verifier = Some(Verifier::start(login, datanodes, 0, 7));
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
        mut condition: impl FnMut(&NetCluster) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        // The lock is let go of between two looks, so that a verifier can log in.
        let begun = Instant::now();
        loop {
            match self.cluster(&mut condition) {
                Ok(value) => return Ok(value),
                Err(error) if begun.elapsed() > Duration::from_secs(90) => {
                    return Err(error).with_context(|| format!("waited for {what}"));
                }
                Err(_) => std::thread::yield_now(),
            }
        }
    }

    fn until_in_sync(&self, copies: usize) -> anyhow::Result<()> {
        self.until(&format!("{copies} copies in sync"), |cluster| {
            let shown = cluster.json(&["volume", "show", "disk"])?;
            let in_sync = in_sync(&shown);
            ensure!(in_sync == copies, "{in_sync} of {copies} copies are in sync: {shown}");
            Ok(())
        })
    }

    /// The verifier has got through some commands since.
    fn go_on(&mut self) -> anyhow::Result<()> {
        let before = self.verifier()?.answered()?;
        let begun = Instant::now();
        while self.verifier()?.answered()? < before + SOME {
            ensure!(begun.elapsed() < Duration::from_secs(90), "the verifier does not get on");
            std::thread::yield_now();
        }
        Ok(())
    }

    fn verifier(&mut self) -> anyhow::Result<&mut Verifier> {
        self.verifier.as_mut().context("no verifier")
    }

    fn owner(&self) -> anyhow::Result<String> {
        self.until("an owner", |cluster| cluster.owner("disk"))
    }

    fn finish(mut self, copies: usize) -> anyhow::Result<Report> {
        self.go_on()?;
        self.until_in_sync(copies)?;
        let report = self.verifier.take().context("no verifier")?.finish()?;
        println!("{report:?}");
        ensure!(report.writes > SOME && report.reads > 0, "too little was tried: {report:?}");
        self.cluster(|cluster| {
            let id =
                cluster.json(&["volume", "show", "disk"])?["status"]["id"].as_str().context("id")?.to_owned();
            let found = cluster.same_in_every_pool(&format!("{id}/data"))?;
            ensure!(found >= copies, "only {found} copies were found");
            Ok(())
        })?;
        Ok(report)
    }
}

fn in_sync(shown: &Value) -> usize {
    shown["status"]["in_sync"].as_array().map_or(0, Vec::len)
}

fn other(node: &str) -> &'static str {
    if node == "node-1" { "node-2" } else { "node-1" }
}

#[test]
fn killed_owner_costs_a_stall_and_nothing_else() -> anyhow::Result<()> {
    let mut bench = Bench::new(2, 2, &[])?;
    bench.verify(2);
    bench.go_on()?;
    for _ in 0..2 {
        let owner = bench.owner()?;
        bench.change(|cluster| cluster.kill(&owner))?;
        bench.go_on()?;
        bench.change(|cluster| cluster.launch(&owner))?;
        bench.until_in_sync(2)?;
        bench.go_on()?;
    }
    bench.finish(2)?;
    Ok(())
}

#[test]
fn killed_replica_costs_hosts_a_moment_and_gets_what_it_missed() -> anyhow::Result<()> {
    let mut bench = Bench::new(2, 2, &["--write-cache", "off"])?;
    bench.verify(2);
    bench.go_on()?;
    let replica = other(&bench.owner()?);
    for _ in 0..2 {
        bench.change(|cluster| cluster.kill(replica))?;
        bench.go_on()?;
        bench.change(|cluster| cluster.launch(replica))?;
        bench.until_in_sync(2)?;
    }
    bench.finish(2)?;
    Ok(())
}

#[test]
fn owner_stopped_past_its_lease_serves_nothing_stale_afterwards() -> anyhow::Result<()> {
    let mut bench = Bench::new(2, 2, &[])?;
    bench.verify(2);
    bench.go_on()?;
    let owner = bench.owner()?;
    bench.cluster(|cluster| cluster.signal(&owner, Signal::STOP))?;
    bench.until("another owner", |cluster| {
        ensure!(cluster.owner("disk")? != owner, "{owner} still");
        Ok(())
    })?;
    bench.go_on()?;
    bench.cluster(|cluster| cluster.signal(&owner, Signal::CONT))?;
    bench.until_in_sync(2)?;
    bench.finish(2)?;
    Ok(())
}

#[test]
fn three_copies_survive_one_after_the_other() -> anyhow::Result<()> {
    let mut bench = Bench::new(3, 3, &[])?;
    bench.verify(3);
    bench.go_on()?;
    for node in ["node-1", "node-2", "node-3"] {
        bench.change(|cluster| cluster.kill(node))?;
        bench.go_on()?;
        bench.change(|cluster| cluster.launch(node))?;
        bench.until_in_sync(3)?;
    }
    bench.finish(3)?;
    Ok(())
}

#[test]
fn planned_moves_show_hosts_no_error() -> anyhow::Result<()> {
    let mut bench = Bench::new(2, 2, &[])?;
    bench.verify(2);
    bench.go_on()?;
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
    let shown = bench.cluster(|cluster| cluster.json(&["volume", "show", "disk"]))?;
    let undisturbed = shown["status"]["epoch_number"].as_str() == Some("6");
    let report = bench.finish(2)?;
    let seen = (report.path_errors, report.busy, report.aborted);
    ensure!(!undisturbed || seen == (0, 0, 0), "hosts saw it: {report:?}");
    Ok(())
}

#[test]
fn owner_cut_off_from_the_controllers_serves_nothing_stale() -> anyhow::Result<()> {
    let mut bench = Bench::new(2, 2, &[])?;
    bench.verify(2);
    for _ in 0..2 {
        bench.go_on()?;
        let owner = bench.owner()?;
        bench.cluster(|cluster| cluster.network.isolate(&owner, ["ctl-1", "ctl-2", "ctl-3"]))?;
        bench.until("another owner", |cluster| {
            ensure!(cluster.owner("disk")? != owner, "{owner} still");
            Ok(())
        })?;
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
    bench.verify(2);
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
    bench.verify(3);
    bench.go_on()?;
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
    bench.verify(3);
    bench.go_on()?;
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
        bench.until("another owner", |cluster| {
            ensure!(cluster.owner("disk")? != owner, "{owner} still");
            Ok(())
        })?;
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
