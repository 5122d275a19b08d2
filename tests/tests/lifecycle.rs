//! `holdfast dev up`: clusters beside each other, clean ends, clear refusals.

use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    path::Path,
    process::{Child, Stdio},
};

use anyhow::{Context, ensure};
use holdfast_tests::cluster::{Cluster, holdfast};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

#[test]
fn two_clusters_run_beside_each_other() -> anyhow::Result<()> {
    let mut first = Cluster::start()?;
    let mut second = Cluster::start_with(&["--controllers", "1", "--datanodes", "1"])?;
    ensure!(first.target != second.target, "two clusters have one target name");
    first.cli(&["volume", "create", "only-here", "--size", "1MiB"])?;
    let refusal = second.cli_refused(&["volume", "show", "only-here"])?;
    ensure!(refusal.contains("only-here"), "{refusal}");
    second.stop()?;
    first.cli(&["volume", "show", "only-here"])?;
    first.stop()
}

#[test]
fn one_folder_is_one_cluster() -> anyhow::Result<()> {
    let mut cluster = Cluster::start_with(&["--controllers", "1", "--datanodes", "1"])?;
    let again = holdfast(&["dev", "up", "--dir"]).arg(cluster.folder()).output()?;
    let said = String::from_utf8(again.stderr)?;
    ensure!(!again.status.success() && said.contains("runs in"), "{said}");
    cluster.stop()?;
    let other_shape = holdfast(&["dev", "up", "--datanodes", "3", "--dir"]).arg(cluster.folder()).output()?;
    let said = String::from_utf8(other_shape.stderr)?;
    ensure!(!other_shape.status.success() && said.contains("has 1 datanodes"), "{said}");
    Ok(())
}

#[test]
fn a_port_in_use_is_named() -> anyhow::Result<()> {
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let port = taken.local_addr()?.port();
    let folder = tempfile::tempdir()?;
    // The port falls on the controller, on the portal, on the interconnect in turn.
    for before in 0..3 {
        let base = port - before;
        let outcome = holdfast(&["dev", "up", "--controllers", "1", "--datanodes", "1", "--port-base"])
            .arg(base.to_string())
            .arg("--dir")
            .arg(folder.path().join(before.to_string()))
            .output()?;
        let said = String::from_utf8(outcome.stderr)?;
        ensure!(!outcome.status.success(), "a taken port was not noticed");
        ensure!(said.contains(&format!("127.0.0.1:{port}")), "the port is not named: {said}");
    }
    Ok(())
}

#[test]
fn children_end_with_a_supervisor_that_is_killed() -> anyhow::Result<()> {
    let mut cluster = Cluster::start()?;
    let pids = cluster.pids()?;
    ensure!(pids.len() == 5, "{pids:?}");
    cluster.kill_supervisor()?;
    for (name, pid) in pids {
        cluster.wait_for(&format!("the end of {name}"), || {
            ensure!(test_kill_process(pid).is_err(), "{name} runs");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_killed_data_node_comes_back_with_its_volumes() -> anyhow::Result<()> {
    let mut cluster = Cluster::start_with(&["--restart"])?;
    cluster.volume_for_both("disk", "16MiB", "node-1", 0)?;
    let epoch = |cluster: &Cluster| -> anyhow::Result<String> {
        let volume = cluster.json(&["volume", "show", "disk"])?;
        ensure!(volume["status"]["state"] == "online", "{volume}");
        Ok(volume["status"]["epoch_number"].to_string())
    };
    let before = cluster.wait_for("the volume", || epoch(&cluster))?;
    cluster.signal("node-1", Signal::KILL)?;
    cluster.wait_for("the volume under a new epoch", || {
        let now = epoch(&cluster)?;
        ensure!(now != before, "still epoch {before}");
        Ok(())
    })?;
    cluster.stop()
}

/// A `dev up` in no particular folder, up to its ready line.
#[test]
fn cluster_is_stopped_also_while_a_node_waits_for_its_restart() -> anyhow::Result<()> {
    let mut cluster = Cluster::start_with(&["--restart", "--controllers", "1"])?;
    cluster.signal("node-1", Signal::KILL)?;
    // The list says so at once, the new process comes a second later.
    cluster.wait_for("the end of the node to be noticed", || {
        ensure!(!cluster.pids()?.contains_key("node-1"), "it is listed");
        Ok(())
    })?;
    cluster.stop()
}

fn up_by_default(state: &Path) -> anyhow::Result<(Child, String)> {
    let mut command = holdfast(&["dev", "up", "--controllers", "1", "--datanodes", "1"]);
    let mut child =
        command.env("XDG_STATE_HOME", state).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut ready = String::new();
    BufReader::new(child.stdout.take().context("no standard output")?).read_line(&mut ready)?;
    ensure!(ready.starts_with("ready: "), "{ready:?}");
    Ok((child, ready))
}

fn interrupt(mut child: Child) -> anyhow::Result<()> {
    kill_process(Pid::from_child(&child), Signal::INT)?;
    let status = child.wait()?;
    ensure!(status.success(), "{status}");
    Ok(())
}

#[test]
fn clusters_without_a_named_folder_do_not_collide() -> anyhow::Result<()> {
    let state = tempfile::tempdir()?;
    let say = |arguments: &[&str]| -> anyhow::Result<(bool, String)> {
        let output = holdfast(arguments).env("XDG_STATE_HOME", state.path()).output()?;
        Ok((output.status.success(), String::from_utf8([output.stdout, output.stderr].concat())?))
    };
    let (_, nothing) = say(&["node", "list"])?;
    ensure!(nothing.contains("dev up"), "{nothing}");
    let (first, ready) = up_by_default(state.path())?;
    // One cluster runs: it needs no name.
    let (found, listed) = say(&["node", "list"])?;
    ensure!(found && listed.contains("node-1"), "{listed}");
    let (second, also_ready) = up_by_default(state.path())?;
    ensure!(ready != also_ready, "two clusters in one place: {ready}");
    let (chosen, several) = say(&["node", "list"])?;
    ensure!(!chosen && several.contains("dev-1") && several.contains("dev-2"), "{several}");
    let (_, running) = say(&["dev", "list"])?;
    ensure!(running.lines().count() == 2, "{running}");
    interrupt(first)?;
    interrupt(second)?;
    let (_, running) = say(&["dev", "list"])?;
    ensure!(running.is_empty(), "{running}");
    let erased = state.path().join("holdfast/dev-1");
    let (done, said) = say(&["--dir", &erased.display().to_string(), "dev", "erase"])?;
    ensure!(done && !erased.exists(), "{said}");
    Ok(())
}
