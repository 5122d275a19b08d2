//! The table at the end of a run.

use std::fmt::Write;

use super::chronicle::Chronicle;

/// Counts of a run.
#[derive(Debug, Default)]
pub struct Totals {
    /// Seed.
    pub seed: u64,
    /// Replicas of the volume under I/O.
    pub replicas: u32,
    /// Reads, writes, COMPARE AND WRITEs, by block, that were judged.
    pub block_operations: usize,
    /// Blocks.
    pub blocks: usize,
    /// Changes and reads of reservations that were judged.
    pub reservation_operations: usize,
    /// GOOD preempts of the fencing game.
    pub preempts: usize,
    /// Accepted writes of its victim.
    pub victim_writes: usize,
    /// How long each operation of a host took.
    pub stalls_ns: Vec<u64>,
    /// Blocks whose history shows a lost or stale value.
    pub stale: usize,
}

fn quantile(sorted: &[u64], per_mille: usize) -> f64 {
    let at = (sorted.len() * per_mille / 1000).min(sorted.len().saturating_sub(1));
    sorted.get(at).map_or(0.0, |ns| *ns as f64 / 1e6)
}

/// The table; and whether the run passed.
pub fn table(totals: &mut Totals, chronicle: &Chronicle) -> (String, bool) {
    let (faults, errors, violations) = chronicle.counts();
    totals.stalls_ns.sort_unstable();
    let stalls = &totals.stalls_ns;
    let mut text = String::new();
    let mut row = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<44} {value}");
    };
    row("seed", totals.seed.to_string());
    row("replicas of the volume", totals.replicas.to_string());
    for (kind, count) in &faults {
        row(&format!("fault  {kind}"), count.to_string());
    }
    row("operations of hosts", stalls.len().to_string());
    row("operations judged by block", format!("{} on {} blocks", totals.block_operations, totals.blocks));
    row("reservation operations judged", totals.reservation_operations.to_string());
    row(
        "preempts judged / writes of their victim",
        format!("{} / {}", totals.preempts, totals.victim_writes),
    );
    row(
        "time of an operation, ms: p50 / p99 / p99.9 / max",
        format!(
            "{:.1} / {:.1} / {:.1} / {:.1}",
            quantile(stalls, 500),
            quantile(stalls, 990),
            quantile(stalls, 999),
            quantile(stalls, 1000)
        ),
    );
    let stalled: Vec<u64> = stalls.iter().copied().filter(|ns| *ns > 500_000_000).collect();
    row(
        "stalls over 0.5 s: number, ms p50 / p99 / max",
        format!(
            "{}, {:.0} / {:.0} / {:.0}",
            stalled.len(),
            quantile(&stalled, 500),
            quantile(&stalled, 990),
            quantile(&stalled, 1000)
        ),
    );
    row("errors a host saw", errors.values().sum::<u64>().to_string());
    for (what, count) in &errors {
        row(&format!("  {what}"), count.to_string());
    }
    row("blocks with a lost or stale value", totals.stale.to_string());
    row("violations", violations.len().to_string());
    for violation in &violations {
        row("  VIOLATION", violation.clone());
    }
    (text, violations.is_empty())
}
