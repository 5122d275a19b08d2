//! libiscsi's whole conformance suite through every path. Prints tables; a test that fails and is not in
//! `known-failures.txt` fails the run, and so does a known failure that passes (take it off the list then).

use anyhow::ensure;
use holdfast_tests::{cluster::Cluster, conformance, suite::Verdict};

#[test]
fn libiscsi_suite_through_every_path() -> anyhow::Result<()> {
    let mut cluster = Cluster::start()?;
    let (runs, wrong) = conformance::holdfast(&cluster)?;
    println!("{}", conformance::summary(&runs));
    println!("{}", conformance::by_family(&runs));
    println!("skipped:\n{}", conformance::reasons(&runs, Verdict::Skipped));
    cluster.stop()?;
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}
