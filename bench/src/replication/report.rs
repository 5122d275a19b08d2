//! The results as Markdown and a chart, for people, and as JSON, for programs.

use std::fmt::Write as _;

use serde::Serialize;

use crate::{
    case::{Case, Mix, Pattern, size_name},
    plot::{self, Group},
};

/// All that a run measured.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    pub(super) machine: String,
    pub(super) load_before: f64,
    pub(super) load_after: f64,
    pub(super) writes: Vec<Write>,
    pub(super) copying: Copying,
    pub(super) memory: Memory,
}

/// Writes of one kind; of each pair the first is Holdfast's, the second the bare exchange's.
#[derive(Debug, Serialize)]
pub(super) struct Write {
    pub(super) case: Case,
    pub(super) write_cache: bool,
    pub(super) copies: u32,
    pub(super) p50_us: [f64; 2],
    pub(super) p99_us: [f64; 2],
    pub(super) per_second: [f64; 2],
}

/// A third copy of a volume is made.
#[derive(Debug, Serialize)]
pub(super) struct Copying {
    pub(super) mib: u64,
    /// cp and fsync.
    pub(super) plain_mib_s: f64,
    /// No host uses the volume.
    pub(super) idle_mib_s: f64,
    /// A host uses it.
    pub(super) busy_mib_s: f64,
    /// What that one does.
    pub(super) case: Case,
    /// Its commands in a second with two copies, while the third one is made, and with three.
    pub(super) before_per_second: f64,
    pub(super) during_per_second: f64,
    pub(super) after_per_second: f64,
}

impl Default for Copying {
    fn default() -> Self {
        let case = Case { size: 4096, depth: 1, sessions: 1, mix: Mix::Mixed, pattern: Pattern::Random };
        Self {
            mib: 0,
            plain_mib_s: 0.0,
            idle_mib_s: 0.0,
            busy_mib_s: 0.0,
            case,
            before_per_second: 0.0,
            during_per_second: 0.0,
            after_per_second: 0.0,
        }
    }
}

/// Memory of the data nodes.
#[derive(Debug, Default, Serialize)]
pub(super) struct Memory {
    /// Volumes of two copies, each mapped.
    pub(super) volumes: u16,
    /// Of each volume.
    pub(super) size_gib: u64,
    pub(super) node_mib_before: Vec<f64>,
    pub(super) node_mib_after: Vec<f64>,
    /// Of one copy.
    pub(super) copy_kib: f64,
}

fn ratio([holdfast, bare]: [f64; 2]) -> f64 {
    holdfast / bare.max(1e-9)
}

fn name(write: &Write) -> String {
    let case = &write.case;
    let order = if case.pattern == Pattern::Random { "random" } else { "sequential" };
    format!("{} {order}, depth {}", size_name(case.size), case.depth)
}

fn cache(write_cache: bool) -> &'static str {
    if write_cache { "on" } else { "off" }
}

impl Report {
    pub(super) fn markdown(&self) -> String {
        let mut text = format!(
            "Machine: {}; load {:.1} before the run, {:.1} after it. Controllers, data nodes, client and floor share it and its disk.\n\n",
            self.machine, self.load_before, self.load_after
        );
        let mut line = |words: String| {
            // Writing to a String does not fail.
            let _ = writeln!(text, "{words}");
        };
        line("Bare is the floor: the same bytes over TCP into as many files of the same file system, without a write cache with fdatasync.".into());
        line(String::new());
        line("| Write | write cache | copies | p50 us | bare | ratio | p99 us | bare | ratio | MB/s | bare | ratio |".into());
        line("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|".into());
        for write in &self.writes {
            let [p50, bare_p50] = write.p50_us;
            let [p99, bare_p99] = write.p99_us;
            let [rate, bare_rate] = write.per_second.map(|rate| rate * f64::from(write.case.size) / 1e6);
            line(format!(
                "| {} | {} | {} | {p50:.0} | {bare_p50:.0} | {:.2} | {p99:.0} | {bare_p99:.0} | {:.2} | {rate:.1} | {bare_rate:.1} | {:.2} |",
                name(write),
                cache(write.write_cache),
                write.copies,
                ratio(write.p50_us),
                ratio(write.p99_us),
                ratio(write.per_second),
            ));
        }
        let copying = &self.copying;
        line(String::new());
        line(format!("| A third copy of {} MiB | MiB/s | ratio |", copying.mib));
        line("|---|--:|--:|".into());
        for (what, rate) in [
            ("plain: cp and fsync", copying.plain_mib_s),
            ("no host uses the volume", copying.idle_mib_s),
            ("a host uses it (at most 40 MiB/s by rule)", copying.busy_mib_s),
        ] {
            line(format!("| {what} | {rate:.0} | {:.2} |", ratio([rate, copying.plain_mib_s])));
        }
        line(String::new());
        line(format!("| A host meanwhile: {} | commands a second | ratio |", copying.case.name()));
        line("|---|--:|--:|".into());
        for (what, rate) in [
            ("two copies in sync", copying.before_per_second),
            ("the third one is being made", copying.during_per_second),
            ("three copies in sync", copying.after_per_second),
        ] {
            line(format!("| {what} | {rate:.0} | {:.2} |", ratio([rate, copying.before_per_second])));
        }
        let memory = &self.memory;
        let mib = |nodes: &[f64]| nodes.iter().map(|mib| format!("{mib:.0}")).collect::<Vec<_>>().join(", ");
        line(String::new());
        line(format!(
            "Memory of the data nodes: {} MiB before and {} MiB after {} more volumes of {} GiB and two copies, each mapped to a host of its own: {:.0} KiB for \
             each copy.",
            mib(&memory.node_mib_before),
            mib(&memory.node_mib_after),
            memory.volumes,
            memory.size_gib,
            memory.copy_kib
        ));
        text
    }

    /// Median latency of each kind of write, Holdfast's beside the floor's.
    pub(super) fn chart(&self) -> String {
        let same = |a: &Write, b: &Write| a.case == b.case && a.write_cache == b.write_cache;
        let groups: Vec<Group<'_>> = self
            .writes
            .chunk_by(same)
            .filter_map(|writes| {
                let first = writes.first()?;
                let bars = writes.iter().flat_map(|write| {
                    let (ours, bare) = match write.copies {
                        1 => ("1 copy", "bare, 1 file"),
                        2 => ("2 copies", "bare, 2 files"),
                        _ => ("3 copies", "bare, 3 files"),
                    };
                    [(ours, write.p50_us[0]), (bare, write.p50_us[1])]
                });
                Some(Group {
                    name: format!("{}, cache {}", name(first), cache(first.write_cache)),
                    bars: bars.collect(),
                })
            })
            .collect();
        plot::grouped("Median latency of writes", "us", &groups)
    }
}
