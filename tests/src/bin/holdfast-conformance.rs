//! `make conformance`: libiscsi's whole suite against Holdfast through every path and, in the same run, against other targets
//! from Debian. Prints the tables; with a file name as argument it writes them there too.
//!
//! Invariant: it ends well only if Holdfast failed nothing and each peer was there to be compared with.

use std::{env, fmt::Write as _, fs, thread};

use anyhow::{Context, anyhow, ensure};
use holdfast_tests::{
    cluster::Cluster,
    conformance::{self, Run},
    peers::Kind,
    suite::Verdict,
};

fn main() -> anyhow::Result<()> {
    // Before minutes are spent.
    for kind in [Kind::Tgt, Kind::Istgt] {
        kind.version()?;
    }
    // Side by side: the peers' time goes in waiting for answers that do not come.
    let peers = thread::spawn(conformance::peers);
    let mut cluster = Cluster::start()?;
    let (ours, wrong) = conformance::holdfast(&cluster)?;
    cluster.stop()?;
    let peers = peers.join().map_err(|_| anyhow!("the run against the peers panicked"))??;
    let text = report(ours, peers);
    print!("{text}");
    if let Some(file) = env::args().nth(1) {
        fs::write(&file, &text).with_context(|| file.clone())?;
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

fn report(mut ours: Vec<Run>, mut peers: Vec<Run>) -> String {
    let mut text = String::from(
        "# Conformance\n\nWhat `make conformance` printed last: Debian's whole `iscsi-test-cu` (libiscsi) with `--dataloss --allow-sanitize`, \
         against each path of a\ncluster and, in the same run, against two other targets from Debian. *Run* is what passed or failed; \
         the rest was skipped by the suite, or fails\nby a fault of the suite's own, for every target alike (`tests/known-failures.txt`). \
         A peer has one path, given twice to the tests that want two.\n\
         Volumes of Holdfast are thin, all of them; peers are run thick too where they know the difference.\n\
         A peer is started anew for each test, so that nothing that one leaves behind is laid at the next one's door; Holdfast takes all of them in a row.\n\n",
    );
    let skipped = conformance::reasons(&ours, Verdict::Skipped);
    let failed = conformance::reasons(&peers, Verdict::Failed);
    ours.append(&mut peers);
    let _ = write!(
        text,
        "{}\n## By family: passed / failed / skipped\n\n{}\n## What was skipped for Holdfast, and why\n\n{skipped}\n\
         ## What failed for the peers\n\n{failed}",
        conformance::summary(&ours),
        conformance::by_family(&ours),
    );
    text
}
