//! What people change, and what the cluster remembers of it.

use anyhow::{Context, ensure};
use holdfast_tests::cluster::Cluster;
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
