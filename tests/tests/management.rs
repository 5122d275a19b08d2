//! What people change, and what the cluster remembers of it.

use anyhow::{Context, ensure};
use holdfast_tests::{
    cluster::{Cluster, INITIATOR_A},
    initiator::Initiator,
};
use serde_json::Value;

/// Audit records of a subject.
fn audit(cluster: &Cluster, subject: &str) -> anyhow::Result<Vec<Value>> {
    let answer = cluster.json(&["audit", "list", "--subject", subject])?;
    Ok(answer["records"].as_array().context("records")?.clone())
}

#[test]
fn the_audit_outlives_a_restart_and_tells_refusals() -> anyhow::Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.cli(&["volume", "create", "disk", "--size", "16MiB", "--node", "node-1"])?;
    cluster.cli_refused(&["volume", "resize", "disk", "--size", "1MiB"])?;
    let before = audit(&cluster, "volume/disk")?;
    ensure!(before.len() == 2, "{before:#?}");
    let (done, refused) = (&before[0], &before[1]);
    ensure!(done["role"] == "admin" && done["action"] == "volume.create" && done["outcome"] == "done");
    ensure!(done["fields"][0] == serde_json::json!({"name": "size_bytes", "value": "16777216"}), "{done}");
    ensure!(
        refused["outcome"] == "refused" && refused["reason"].as_str().is_some_and(|r| r.contains("shrink"))
    );
    let table = cluster.cli(&["audit", "list", "--subject", "volume/disk"])?;
    ensure!(table.contains("volume.create") && table.contains("refused: volume disk has"), "{table}");
    cluster.stop()?;
    cluster.up(&[])?;
    ensure!(audit(&cluster, "volume/disk")?[..2] == before[..], "the audit changed over a restart");
    let index = done["index"].as_str().context("index")?;
    let later = cluster.json(&["audit", "list", "--after", index, "--subject", "volume/disk"])?;
    ensure!(later["records"][0] == *refused, "{later}");
    cluster.stop()
}

#[test]
fn controllers_are_listed_made_leader_and_removed() -> anyhow::Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.volume_for_both("disk", "16MiB", "node-1", 0)?;
    // The first of the endpoints that commands try: they must go past it once it is removed.
    let other = "ctl-1".to_owned();
    let made = cluster.cli(&["controller", "transfer", &other])?;
    ensure!(made.contains("leader") && cluster.leader()? == other, "{made}");
    let list = cluster.json(&["controller", "remove", &other])?;
    let left = list["members"].as_array().context("members")?;
    ensure!(left.len() == 2 && left.iter().all(|member| member["name"] != *other), "{list:#}");
    // The data goes on, and so does management.
    let mut a = Initiator::login(&cluster.portals[1], &cluster.target, INITIATOR_A, 1, None)?;
    a.become_ready(0)?;
    a.write_blocks(0, 0, 1, 7)?.good()?;
    cluster.wait_for("a change by the two others", || {
        cluster.cli(&["volume", "create", "second", "--size", "1MiB"]).map(|_| ())
    })?;
    for (arguments, expected) in [
        (&["controller", "remove", "ctl-9"][..], "ctl-9 is not a member"),
        (&["controller", "transfer", other.as_str()], "is not a member"),
        (&["controller", "add", "ctl-9", "--id", "9", "--address", "127.0.0.1:1"], "does not answer"),
        (&["controller", "add", "ctl-9", "--id", "9", "--address", "nowhere"], "ADDRESS:PORT"),
    ] {
        let said = cluster.cli_refused(arguments)?;
        ensure!(said.contains(expected), "{arguments:?}: {said}");
    }
    // It still runs, and can be added again.
    let address = cluster.controllers[usize::from(other.as_bytes()[4] - b'1')].clone();
    let id = &other[4..];
    let list = cluster.json(&["controller", "add", &other, "--id", id, "--address", &address])?;
    ensure!(list["members"].as_array().is_some_and(|members| members.len() == 3), "{list:#}");
    let told = audit(&cluster, &format!("controller/{other}"))?;
    let actions: Vec<_> = told.iter().filter_map(|record| record["action"].as_str()).collect();
    ensure!(actions.ends_with(&["controller.remove", "controller.add"]), "{actions:?}");
    drop(a);
    cluster.stop()
}

#[test]
fn a_node_that_is_live_or_holds_a_volume_is_not_removed() -> anyhow::Result<()> {
    let cluster = Cluster::start()?;
    cluster.volume_for_both("disk", "16MiB", "node-1", 0)?;
    let said = cluster.cli_refused(&["node", "remove", "node-2"])?;
    ensure!(said.contains("may still hold a lease"), "{said}");
    cluster.signal("node-2", rustix::process::Signal::KILL)?;
    cluster
        .wait_for("the removal of a node that has stopped", || cluster.cli(&["node", "remove", "node-2"]))?;
    let nodes = cluster.json(&["node", "list"])?;
    ensure!(nodes["nodes"].as_array().is_some_and(|nodes| nodes.len() == 1), "{nodes:#}");
    // The other node goes on.
    let mut a = Initiator::login(&cluster.portals[0], &cluster.target, INITIATOR_A, 1, None)?;
    a.become_ready(0)?;
    a.write_blocks(0, 0, 1, 7)?.good()?;
    let told = audit(&cluster, "node/node-2")?;
    ensure!(told.iter().any(|r| r["action"] == "node.remove" && r["outcome"] == "done"), "{told:#?}");
    Ok(())
}

#[test]
fn the_deletion_of_a_volume_is_a_job_that_can_be_waited_for() -> anyhow::Result<()> {
    let cluster = Cluster::start_with(&["--controllers", "1", "--datanodes", "1"])?;
    cluster.cli(&["volume", "create", "disk", "--size", "16MiB"])?;
    cluster.cli(&["volume", "delete", "disk"])?;
    let listed = cluster.json(&["job", "list", "--kind", "delete-volume", "--subject", "volume/disk"])?;
    let jobs = listed["jobs"].as_array().context("jobs")?;
    ensure!(jobs.len() == 1 && jobs[0]["status"]["total"] == "1", "{listed:#}");
    let id = jobs[0]["id"].as_str().context("id")?;
    let done = cluster.json(&["job", "wait", id])?;
    ensure!(done["status"]["state"] == "done" && done["status"]["done"] == "1", "{done:#}");
    let said = cluster.cli_refused(&["job", "cancel", id])?;
    ensure!(said.contains("has ended already: it is done"), "{said}");
    let said = cluster.cli_refused(&["job", "list", "--kind", "laundry"])?;
    ensure!(said.contains("kind: 'laundry' is none of delete-volume,"), "{said}");
    Ok(())
}
