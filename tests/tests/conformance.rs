//! libiscsi's whole conformance suite through every path. Prints tables; a test that fails and is not in
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

/// What became of one test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Passed,
    Failed,
    Skipped,
}

/// One test's verdict and all that it printed.
#[derive(Debug, Clone)]
struct Outcome {
    verdict: Verdict,
    detail: String,
}

#[test]
fn libiscsi_suite_through_every_path() -> anyhow::Result<()> {
    let mut cluster = Cluster::start()?;
    // 100 MiB as the suite's own documentation proposes; the LUs are node 1's, so node 2 forwards every command.
    cluster.volume_for_both("suite", "100MiB", "node-1", 0)?;
    cluster.volume_for_both_with("suite-4k", "800MiB", "node-1", 1, &["--block-size", "4096"])?;
    // A unit that no one may write to, for the test that wants one.
    cluster.cli(&["volume", "create", "suite-ro", "--size", "100MiB", "--node", "node-1"])?;
    cluster.cli(&["map", "create", "suite-ro", "a", "--lun", "2", "--read-only"])?;
    let url = |node: usize, lun| url(&cluster.portals[node], &cluster.target, lun);
    let runs = [
        (512, "owner's portal", "ALL", vec![url(0, 0)]),
        (512, "other node's portal", "ALL", vec![url(1, 0)]),
        (512, "both portals as one multipath device", "ALL", vec![url(0, 0), url(1, 0)]),
        (512, "other node's portal, read-only", "ALL.ReadOnly", vec![url(1, 2)]),
        (4096, "owner's portal", "ALL", vec![url(0, 1)]),
    ];
    let known = known_failures()?;
    let mut unexpected = Vec::new();
    let mut passing = known.clone();
    for (block_size, path, tests, urls) in &runs {
        let outcomes = run_suite(tests, urls)?;
        let expected = if *tests == "ALL" { 200 } else { 1 };
        ensure!(outcomes.len() >= expected, "the suite ran {} tests only", outcomes.len());
        print_table(&format!("{path}, blocks of {block_size} bytes"), &outcomes);
        for (name, outcome) in &outcomes {
            if outcome.verdict == Verdict::Failed {
                let everywhere = passing.remove(name) || known.contains(name);
                let sized = format!("{name}@{block_size}");
                let with_this_size = passing.remove(&sized) || known.contains(&sized);
                if !(everywhere || with_this_size) {
                    unexpected.push(format!("{path}, {block_size}: {name}\n{}", outcome.detail));
                }
            }
        }
    }
    ensure!(unexpected.is_empty(), "{} unexpected failures\n{}", unexpected.len(), unexpected.join("\n"));
    ensure!(passing.is_empty(), "known failures that pass now: {passing:?}");
    cluster.stop()
}

/// One line each: the test's name, `@` and the block size if it fails with that one only, then why it fails.
fn known_failures() -> anyhow::Result<BTreeSet<String>> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("known-failures.txt"))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(lines.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
}

/// Runs tests of the suite; gives their outcomes by "Suite.Test".
fn run_suite(tests: &str, urls: &[String]) -> anyhow::Result<BTreeMap<String, Outcome>> {
    let run = Command::new("iscsi-test-cu")
        .args(["--initiator-name", INITIATOR_A, "--initiator-name-2", INITIATOR_B])
        .args(["--dataloss", "--allow-sanitize", "--Verbose-scsi", "--test", tests])
        .args(urls)
        .output()
        .context("iscsi-test-cu (package libiscsi-bin)")?;
    Ok(outcomes(&String::from_utf8_lossy(&run.stdout)))
}

/// Reads what the suite prints: CUnit's verdict begins a line or follows the test's name. A test without one (the suite
/// ended in it) failed, and the suite calls a skipped test passed.
fn outcomes(text: &str) -> BTreeMap<String, Outcome> {
    let mut outcomes = BTreeMap::<String, Outcome>::new();
    let (mut suite, mut current) = (String::new(), None::<String>);
    for line in text.lines() {
        let mut rest = line.trim_start();
        if let Some(name) = line.strip_prefix("Suite: ") {
            (suite, current) = (name.trim().to_owned(), None);
        } else if line.starts_with("Run Summary") {
            current = None;
        } else if let Some((name, behind)) = rest.strip_prefix("Test: ").and_then(|it| it.split_once(" ..."))
        {
            let name = format!("{suite}.{name}");
            outcomes.insert(name.clone(), Outcome { verdict: Verdict::Failed, detail: String::new() });
            current = Some(name);
            rest = behind.trim_start();
        }
        let Some(outcome) = current.as_ref().and_then(|name| outcomes.get_mut(name)) else { continue };
        outcome.detail.push_str(line);
        outcome.detail.push('\n');
        if rest.starts_with("passed") {
            let skipped = outcome.detail.contains("[SKIPPED]");
            outcome.verdict = if skipped { Verdict::Skipped } else { Verdict::Passed };
        }
    }
    outcomes
}

#[test]
fn verdicts_are_read_as_cunit_prints_them() {
    let text = "Suite: A\n  Test: One ...passed\n  Test: Two ...\n    [FAILED] RESERVE6: unit attention\n    passed    Send\n  \
                Test: Three ...\n    [SKIPPED] not there\npassed\n  Test: Four ...\nFAILED\n    1. x.c:1\nSuite: B\n  \
                Test: Five ...\n    Send WRITE10\n";
    let verdicts: Vec<_> =
        outcomes(text).into_iter().map(|(name, outcome)| (name, outcome.verdict)).collect();
    let expected = [
        ("A.Four", Verdict::Failed),
        ("A.One", Verdict::Passed),
        ("A.Three", Verdict::Skipped),
        ("A.Two", Verdict::Passed),
        ("B.Five", Verdict::Failed),
    ];
    assert_eq!(verdicts, expected.map(|(name, verdict)| (name.to_owned(), verdict)));
}

fn print_table(path: &str, outcomes: &BTreeMap<String, Outcome>) {
    let mut families: BTreeMap<&str, [usize; 3]> = BTreeMap::new();
    for (name, outcome) in outcomes {
        let family = name.split('.').next().unwrap_or(name);
        families.entry(family).or_default()[outcome.verdict as usize] += 1;
    }
    println!("\niscsi-test-cu through: {path}");
    println!("{:28} {:>6} {:>6} {:>7}", "family", "passed", "failed", "skipped");
    let mut sum = [0; 3];
    for (family, counts) in &families {
        println!("{family:28} {:>6} {:>6} {:>7}", counts[0], counts[1], counts[2]);
        for (total, count) in sum.iter_mut().zip(counts) {
            *total += count;
        }
    }
    println!("{:28} {:>6} {:>6} {:>7}", "all", sum[0], sum[1], sum[2]);
    for (name, outcome) in outcomes.iter().filter(|(_, outcome)| outcome.verdict == Verdict::Skipped) {
        let why = outcome.detail.lines().find_map(|line| line.split_once("[SKIPPED] ")).map_or("", |it| it.1);
        println!("skipped {name}: {why}");
    }
}
