//! The results as Markdown and a chart, for people, and as JSON, for programs.

use std::fmt::Write as _;

use serde::Serialize;

use super::{Kind, host::Seen, lease_ms};
use crate::plot::{self, Group};

/// All that a run measured.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    machine: String,
    load_before: f64,
    load_after: f64,
    lease_ms: f64,
    /// Volumes that are struck at once, but for planned moves.
    volumes: u16,
    pause_us: u64,
    on_disk: bool,
    pub(super) rows: Vec<Row>,
}

/// One kind of blow at one depth.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) kind: Kind,
    pub(super) depth: u16,
    /// Blows; each gives a sample for each volume that it strikes.
    pub(super) blows: usize,
    /// One for each failover of a volume, in milliseconds.
    pub(super) stalls_ms: Vec<f64>,
    /// What a program on the host would have been told; none is right.
    pub(super) host_errors: Vec<String>,
    pub(super) took_s: f64,
    writes: u64,
    verified: u64,
    lost_sessions: u64,
    busy: u64,
    aborted: u64,
    attentions: u64,
    access_states: u64,
}

impl Row {
    pub(super) fn new(kind: Kind, depth: u16) -> Self {
        Self {
            kind,
            depth,
            blows: 0,
            stalls_ms: Vec::new(),
            host_errors: Vec::new(),
            took_s: 0.0,
            writes: 0,
            verified: 0,
            lost_sessions: 0,
            busy: 0,
            aborted: 0,
            attentions: 0,
            access_states: 0,
        }
    }

    /// What a host has seen in all.
    pub(super) fn add(&mut self, seen: &Seen) {
        self.host_errors.extend(seen.errors.iter().cloned());
        self.writes += seen.units.iter().map(|unit| unit.writes).sum::<u64>();
        self.verified += seen.verified;
        self.lost_sessions += seen.lost_sessions;
        self.busy += seen.busy;
        self.aborted += seen.aborted;
        self.attentions += seen.attentions;
        self.access_states += seen.access_states;
    }

    /// The least stall that `part` (0 to 1) of all do not exceed; 0 without any.
    fn percentile(&self, part: f64) -> f64 {
        let mut sorted = self.stalls_ms.clone();
        sorted.sort_by(f64::total_cmp);
        let at = (sorted.len() as f64 * part).ceil() as usize;
        sorted.get(at.saturating_sub(1)).copied().unwrap_or(0.0)
    }
}

impl Report {
    pub(super) fn new(volumes: u16, pause_us: u64, on_disk: bool) -> Self {
        Self {
            machine: crate::report::machine(),
            load_before: crate::report::load(),
            load_after: 0.0,
            lease_ms: lease_ms(),
            volumes,
            pause_us,
            on_disk,
            rows: Vec::new(),
        }
    }

    pub(super) fn end(&mut self) {
        self.load_after = crate::report::load();
    }

    pub(super) fn markdown(&self) -> String {
        let mut text = format!(
            "Machine: {}; load {:.1} before the run, {:.1} after it. Three controllers, two data nodes, the host: all on it; state {}; a lease is \
             {:.0} ms.\n\n",
            self.machine,
            self.load_before,
            self.load_after,
            if self.on_disk { "on disk" } else { "in memory" },
            self.lease_ms
        );
        let mut line = |words: String| {
            // Writing to a String does not fail.
            let _ = writeln!(text, "{words}");
        };
        line("| Owner changes by | depth | failovers (blows) | p50 | p99 | max | target | within it | errors at the host |".into());
        line("|---|--:|--:|--:|--:|--:|--:|--:|--:|".into());
        for row in &self.rows {
            let target = row.kind.target_ms();
            let within = row.stalls_ms.iter().filter(|ms| **ms < target).count();
            let (count, p) = (row.stalls_ms.len(), |part| row.percentile(part));
            line(format!(
                "| {} | {} | {count} ({}) | {:.0} ms | {:.0} ms | {:.0} ms | {target:.0} ms | {within} of {count} | {} |",
                row.kind.name(),
                row.depth,
                row.blows,
                p(0.5),
                p(0.99),
                p(1.0),
                row.host_errors.len(),
            ));
        }
        line(String::new());
        line("| | depth | writes | blocks read back | sessions lost | BUSY | ABORTED COMMAND | access states | Unit Attentions | took |".into());
        line("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|".into());
        for row in &self.rows {
            line(format!(
                "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {:.0} s |",
                row.kind.name(),
                row.depth,
                row.writes,
                row.verified,
                row.lost_sessions,
                row.busy,
                row.aborted,
                row.access_states,
                row.attentions,
                row.took_s
            ));
        }
        line(String::new());
        line(format!(
            "A failover is that of one volume. A planned one moves one volume; the other blows strike {} volumes that a node owns at once, and give as many \
             samples. A stall is the longest time between two acknowledged writes of a volume, from just before the blow until every copy is in sync \
             again. The host writes 4 KiB to each volume, {} us after the answer to the last one, so shorter stalls than that do not show.",
            self.volumes, self.pause_us
        ));
        text
    }

    /// Bars of p50, p99 and the longest.
    pub(super) fn chart(&self) -> String {
        let groups: Vec<Group<'_>> = self
            .rows
            .iter()
            .map(|row| Group {
                name: format!("{}, depth {}", row.kind.name(), row.depth),
                bars: vec![
                    ("p50", row.percentile(0.5)),
                    ("p99", row.percentile(0.99)),
                    ("longest", row.percentile(1.0)),
                    ("target", row.kind.target_ms()),
                ],
            })
            .collect();
        plot::grouped("How long a host stands still when a volume gets another owner", "ms", &groups)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_samples() {
        let mut row = Row::new(Kind::Kill, 1);
        assert_eq!(row.percentile(0.5), 0.0);
        row.stalls_ms = (1..=100).rev().map(f64::from).collect();
        assert_eq!([0.5, 0.99, 1.0].map(|part| row.percentile(part)), [50.0, 99.0, 100.0]);
    }
}
