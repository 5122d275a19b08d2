//! The suite through every path of a cluster, and its results as tables.
//!
//! Invariant: a table shows what ran, never what was meant to run; what was skipped is listed with its reason.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    thread,
};

use anyhow::{anyhow, ensure};

use crate::{
    cluster::Cluster,
    peers::{Kind, Peer},
    suite::{self, Counts, Faults, Order, Outcomes, Verdict},
    tools::url,
};

/// The suite against one target by one path.
#[derive(Debug)]
pub struct Run {
    /// The target and its version.
    pub target: String,
    /// Path and unit.
    pub unit: String,
    /// What became of each test.
    pub outcomes: Outcomes,
}

/// A logical unit of the cluster and the options that it was made with.
struct Unit {
    name: &'static str,
    size: &'static str,
    block_size: u32,
    words: &'static str,
    options: &'static [&'static str],
}

/// Kinds of units. Sizes are what the suite asks for: 100 MiB, and as many blocks of 4096 bytes.
const UNITS: [Unit; 2] = [
    Unit { name: "suite", size: "100MiB", block_size: 512, words: "512, thin", options: &[] },
    Unit {
        name: "suite-4k",
        size: "800MiB",
        block_size: 4096,
        words: "4096, thin",
        options: &["--block-size", "4096"],
    },
];

/// Runs the suite through every path of a cluster. Tells beside the runs what is wrong with them: each failure with what the suite
/// printed, and each known fault of the suite that did not show.
///
/// # Errors
/// A run that did not come to its end.
pub fn holdfast(cluster: &Cluster) -> anyhow::Result<(Vec<Run>, Vec<String>)> {
    let tests = suite::all_tests()?;
    let faults = Faults::read()?;
    let mut used = BTreeSet::new();
    let mut runs = Vec::new();
    let mut wrong = Vec::new();
    let mut run = |words: &str, block_size: u32, tests: &[String], urls: &[String]| -> anyhow::Result<()> {
        let mut outcomes = suite::run(tests, urls, Order::Together, || Ok(()))?;
        used.append(&mut faults.excuse(&mut outcomes, block_size));
        for (name, outcome) in outcomes.iter().filter(|(_, outcome)| outcome.verdict == Verdict::Failed) {
            wrong.push(format!("{words}: {name} failed\n{}", outcome.detail));
        }
        ensure!(outcomes.len() == tests.len(), "{words}: {} of {} tests", outcomes.len(), tests.len());
        let target = format!("Holdfast {}", env!("CARGO_PKG_VERSION"));
        runs.push(Run { target, unit: words.to_owned(), outcomes });
        Ok(())
    };
    for (lun, unit) in UNITS.iter().enumerate() {
        // The LUs are node 1's, so node 2 forwards every command.
        cluster.volume_for_both_with(unit.name, unit.size, "node-1", lun as u16, unit.options)?;
        let url = |node: usize| url(&cluster.portals[node], &cluster.target, lun as u16);
        let paths = [
            ("owner's portal", vec![url(0)]),
            ("other node's portal", vec![url(1)]),
            ("both as one multipath device", vec![url(0), url(1)]),
        ];
        for (path, urls) in paths {
            run(&format!("{path}, {}", unit.words), unit.block_size, &tests, &urls)?;
        }
    }
    // A unit that no one may write to, for the test that wants one.
    let lun = UNITS.len() as u16;
    cluster.cli(&["volume", "create", "suite-ro", "--size", "100MiB", "--node", "node-1"])?;
    cluster.cli(&["map", "create", "suite-ro", "a", "--lun", &lun.to_string(), "--read-only"])?;
    let read_only: Vec<_> = tests.iter().filter(|name| name.starts_with("ReadOnly.")).cloned().collect();
    let path = url(&cluster.portals[1], &cluster.target, lun);
    run("other node's portal, read-only mapping", 512, &read_only, &[path])?;
    let unused = faults.lines().filter(|line| !used.contains(*line));
    wrong.extend(unused.map(|line| format!("a known failure passes now: {line}")));
    Ok((runs, wrong))
}

/// Runs the suite against the peers with both block sizes, thin and thick, each path given twice to the tests that want two.
///
/// # Errors
/// When a peer is not installed or does not start.
pub fn peers() -> anyhow::Result<Vec<Run>> {
    // istgt knows no thin provisioning.
    let kinds = [
        (Kind::Tgt, 512, true),
        (Kind::Tgt, 512, false),
        (Kind::Tgt, 4096, true),
        (Kind::Istgt, 512, false),
        (Kind::Istgt, 4096, false),
    ];
    // Side by side: what takes time is waiting for a peer that hangs.
    thread::scope(|scope| {
        let runs: Vec<_> =
            kinds.into_iter().map(|(kind, size, thin)| scope.spawn(move || peer(kind, size, thin))).collect();
        runs.into_iter()
            .map(|run| run.join().map_err(|_| anyhow!("a run against a peer panicked"))?)
            .collect()
    })
}

fn peer(kind: Kind, block_size: u32, thin: bool) -> anyhow::Result<Run> {
    let mut peer = Peer::start(kind, block_size, thin)?;
    let urls = [peer.url(), peer.url()];
    // A reservation that one test leaves behind is not laid at the next one's door.
    let mut outcomes = suite::run(&suite::all_tests()?, &urls, Order::Alone, || peer.restart())?;
    Faults::read()?.excuse(&mut outcomes, block_size);
    let thin = if thin { "thin" } else { "thick" };
    Ok(Run { target: kind.version()?, unit: format!("{block_size}, {thin}"), outcomes })
}

/// One line for each run.
pub fn summary(runs: &[Run]) -> String {
    let mut text = String::from(
        "| Target | path and unit | run | passed | failed | skipped |\n|---|---|---|---|---|---|\n",
    );
    for Run { target, unit, outcomes } in runs {
        let Counts { passed, failed, skipped } = suite::total(outcomes);
        let _ =
            writeln!(text, "| {target} | {unit} | {} | {passed} | {failed} | {skipped} |", passed + failed);
    }
    text
}

/// One line for each family, a column for each run: passed/failed/skipped.
pub fn by_family(runs: &[Run]) -> String {
    let mut rows = BTreeMap::<String, Vec<Option<Counts>>>::new();
    for (column, run) in runs.iter().enumerate() {
        for (family, counts) in suite::families(&run.outcomes) {
            let row = rows.entry(family).or_insert_with(|| vec![None; runs.len()]);
            row[column] = Some(counts);
        }
    }
    let mut text = String::new();
    let heads: Vec<_> = runs.iter().map(|run| format!("{} ({})", run.target, run.unit)).collect();
    let _ = writeln!(text, "| Family | {} |\n|---|{}", heads.join(" | "), "---|".repeat(runs.len()));
    for (family, cells) in rows {
        let cell = |counts: &Option<Counts>| match counts {
            Some(Counts { passed, failed, skipped }) => format!("{passed} / {failed} / {skipped}"),
            None => "-".to_owned(),
        };
        let cells: Vec<_> = cells.iter().map(cell).collect();
        let _ = writeln!(text, "| {family} | {} |", cells.join(" | "));
    }
    text
}

/// What did not pass, with its reason: each test once, with the runs that it concerns.
pub fn reasons(runs: &[Run], verdict: Verdict) -> String {
    let mut found = BTreeMap::<(&str, &str), Vec<&str>>::new();
    for run in runs {
        for (name, outcome) in run.outcomes.iter().filter(|(_, outcome)| outcome.verdict == verdict) {
            found.entry((name, &outcome.reason)).or_default().push(&run.unit);
        }
    }
    let mut text = String::new();
    for ((name, reason), units) in found {
        let units = if units.len() == runs.len() { "all".to_owned() } else { units.join("; ") };
        let _ = writeln!(text, "* `{name}` ({units}): {reason}");
    }
    text
}
