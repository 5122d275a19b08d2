//! libiscsi's whole conformance suite through either node's portal. Prints a table; a test that fails and is not in
//! `known-failures.txt` fails the run, and so does a known failure that passes (take it off the list then).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use anyhow::{Context, ensure};
use holdfast_tests::{
    cluster::{Cluster, INITIATOR_A, INITIATOR_B},
    tools::url,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed,
    Skipped,
}

#[test]
fn libiscsi_suite_through_either_portal() -> anyhow::Result<()> {
    let mut cluster = Cluster::start()?;
    // 100 MiB as the suite's own documentation proposes; the LU is node 1's, so node 2 forwards every command.
    cluster.volume_for_both("suite", "100MiB", "node-1", 0)?;
    let known = known_failures()?;
    let mut unexpected = Vec::new();
    let mut passing = known.clone();
    for (portal, path) in cluster.portals.iter().zip(["owner's portal", "other node's portal"]) {
        let outcomes = run_suite(&url(portal, &cluster.target, 0))?;
        print_table(path, &outcomes);
        for (name, (outcome, detail)) in &outcomes {
            if *outcome == Outcome::Failed {
                passing.remove(name);
                if !known.contains(name) {
                    unexpected.push(format!("{path}: {name}\n{detail}"));
                }
            }
        }
    }
    ensure!(unexpected.is_empty(), "{} unexpected failures\n{}", unexpected.len(), unexpected.join("\n"));
    ensure!(passing.is_empty(), "known failures that pass now: {passing:?}");
    cluster.stop()
}

/// One line each: the test's name, then why it fails.
fn known_failures() -> anyhow::Result<BTreeSet<String>> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("known-failures.txt"))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(lines.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
}

/// Runs every test of the suite; gives outcome and output by "Suite.Test".
fn run_suite(url: &str) -> anyhow::Result<BTreeMap<String, (Outcome, String)>> {
    let run = Command::new("iscsi-test-cu")
        .args(["--initiator-name", INITIATOR_A, "--initiator-name-2", INITIATOR_B])
        .args(["--dataloss", "--allow-sanitize", "--Verbose-scsi", "--test=ALL", url])
        .output()
        .context("iscsi-test-cu (package libiscsi-bin)")?;
    let text = String::from_utf8_lossy(&run.stdout);
    let mut outcomes = BTreeMap::new();
    let (mut suite, mut current): (String, Option<(String, String)>) = (String::new(), None);
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("Suite: ") {
            finish(&mut outcomes, current.take());
            suite = name.trim().to_owned();
        } else if let Some(rest) = line.trim_start().strip_prefix("Test: ") {
            finish(&mut outcomes, current.take());
            let name = rest.split([' ', '.']).next().unwrap_or(rest);
            current = Some((format!("{suite}.{name}"), format!("{line}\n")));
        } else if line.starts_with("Run Summary") {
            finish(&mut outcomes, current.take());
        } else if let Some((_, detail)) = &mut current {
            detail.push_str(line);
            detail.push('\n');
        }
    }
    finish(&mut outcomes, current.take());
    ensure!(outcomes.len() > 100, "the suite ran {} tests only:\n{text}", outcomes.len());
    Ok(outcomes)
}

fn finish(outcomes: &mut BTreeMap<String, (Outcome, String)>, test: Option<(String, String)>) {
    let Some((name, detail)) = test else { return };
    // The suite calls a skipped test passed.
    let outcome = if detail.contains("FAILED") {
        Outcome::Failed
    } else if detail.contains("[SKIPPED]") {
        Outcome::Skipped
    } else {
        Outcome::Passed
    };
    outcomes.insert(name, (outcome, detail));
}

fn print_table(path: &str, outcomes: &BTreeMap<String, (Outcome, String)>) {
    let mut families: BTreeMap<&str, [usize; 3]> = BTreeMap::new();
    for (name, (outcome, _)) in outcomes {
        let family = name.split('.').next().unwrap_or(name);
        families.entry(family).or_default()[*outcome as usize] += 1;
    }
    println!("\niscsi-test-cu through the {path}");
    println!("{:28} {:>6} {:>6} {:>7}", "family", "passed", "failed", "skipped");
    let mut sum = [0; 3];
    for (family, counts) in &families {
        println!("{family:28} {:>6} {:>6} {:>7}", counts[0], counts[1], counts[2]);
        for (total, count) in sum.iter_mut().zip(counts) {
            *total += count;
        }
    }
    println!("{:28} {:>6} {:>6} {:>7}", "all", sum[0], sum[1], sum[2]);
}
