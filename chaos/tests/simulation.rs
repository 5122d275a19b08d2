//! A budget of seeds of the simulated cluster.

use holdfast_chaos::simulation::{self, Plan};

/// Seeds that continuous integration looks at: about ten seconds.
const SEEDS: u64 = 150;

fn passes(seed: u64) -> simulation::Report {
    simulation::run(&Plan::of(seed)).unwrap_or_else(|violation| panic!("{}", simulation::shrink(violation)))
}

#[test]
fn no_seed_shows_what_must_not_happen() {
    let mut marks = std::collections::BTreeSet::new();
    let (mut changes, mut attentions) = (0, 0);
    for seed in 1..=SEEDS {
        let report = passes(seed);
        changes += report.changes;
        attentions += report.attentions;
        marks.extend(report.marks);
    }
    // A cluster in which nothing happens proves nothing.
    assert!(
        changes > 5 * SEEDS && attentions > 10 * SEEDS,
        "{changes} changes, {attentions} Unit Attentions"
    );
    for branch in [
        "a deposed leader was not confirmed",
        "a forwarded command was not answered in time",
        "a node dropped its sessions with its lease",
        "a request of unknown outcome was asked for again",
        "a session resumed",
        "a replica has caught up",
        "a replica refused an old epoch",
        "an owner went on without a replica",
        "every copy of a volume had lost power",
        "an entry died with its leader",
        "an entry outlived its leader",
    ] {
        assert!(marks.contains(branch), "never: {branch}");
    }
}

#[test]
fn a_seed_does_the_same_again() {
    for seed in [1, 2, 3] {
        assert_eq!(passes(seed).trace_hash, passes(seed).trace_hash, "seed {seed}");
    }
}
