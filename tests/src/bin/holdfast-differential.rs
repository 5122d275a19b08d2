//! `make differential`: the same seeded random commands to Holdfast, through the node that forwards, and to `tgt`. Arguments: how many
//! (10,000), and the seed.
//!
//! Invariant: it ends well only if every difference is explained by a rule of `tests/differential-rules.txt`.

use std::env;

use anyhow::{Context, ensure};
use holdfast_tests::{
    cluster::Cluster,
    differential::{Difference, Rules, Side, compare},
    peers::{Kind, Peer},
};

fn main() -> anyhow::Result<()> {
    let number = |at, default| env::args().nth(at).map_or(Ok(default), |text| text.parse::<u64>());
    let count = number(1, 10_000).context("how many cases")?;
    let seed = number(2, 1).context("the seed")?;
    let peer = Peer::start(Kind::Tgt, 512, true)?;
    let mut cluster = Cluster::start()?;
    cluster.volume_for_both("differential", "100MiB", "node-1", 0)?;
    let mut rules = Rules::read()?;
    let mut ours = Side::new(&cluster.portals[1], &cluster.target, 0)?;
    let mut theirs = Side::new(&peer.portal(), peer.target(), 1)?;
    let findings = compare(&mut ours, &mut theirs, seed, count as usize, &mut rules)?;
    println!(
        "differential: {} commands of seed {seed}: {} answered alike by both",
        findings.cases, findings.alike
    );
    for (line, uses) in rules.uses() {
        println!("rule in line {line}: {uses} differences");
    }
    for (Difference { command, twist, ours, theirs }, (times, example)) in &findings.unexplained {
        println!("unexplained, {times} times: {command} | {twist} | {ours} | {theirs}    {example}");
    }
    drop((ours, theirs));
    cluster.stop()?;
    ensure!(
        findings.unexplained.is_empty(),
        "{} kinds of differences without a rule",
        findings.unexplained.len()
    );
    Ok(())
}
