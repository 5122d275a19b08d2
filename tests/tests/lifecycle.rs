//! `holdfast dev up`: clusters beside each other, clean ends, clear refusals.

use std::net::TcpListener;

use anyhow::ensure;
use holdfast_tests::cluster::{Cluster, holdfast};
use rustix::process::{Signal, test_kill_process};

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
