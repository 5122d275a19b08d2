//! What a run found, for people and for programs: JSON, Markdown tables, ratios.

use std::fmt::Write as _;

use serde::Serialize;

use crate::run::{ClientKind, Row};

/// A whole run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The machine: processors, kernel.
    pub machine: String,
    /// Its rows.
    pub rows: Vec<Row>,
}

/// What this machine is.
pub fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model =
        cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("an unknown processor");
    let processors = std::thread::available_parallelism().map_or(0, |n| n.get());
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{processors} x {}, Linux {}", model.trim_start_matches([' ', '\t', ':']), kernel.trim())
}

/// The load of this machine over the last minute.
pub fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|load| load.parse().ok()).unwrap_or(0.0)
}

impl Report {
    /// Rows of one case and client.
    pub fn groups(&self) -> impl Iterator<Item = &[Row]> {
        self.rows.chunk_by(|a, b| a.case == b.case && a.client == b.client)
    }

    /// As Markdown: a table for each client.
    pub fn markdown(&self) -> String {
        let mut text = format!("Machine: {}.\n", self.machine);
        for client in [ClientKind::Lean, ClientKind::Libiscsi] {
            let mut groups =
                self.groups().filter(|g| g.first().is_some_and(|r| r.client == client)).peekable();
            if groups.peek().is_none() {
                continue;
            }
            let name = match client {
                ClientKind::Lean => "The lean client",
                ClientKind::Libiscsi => "libiscsi as the client",
            };
            let _ = write!(
                text,
                "\n### {name}\n\n| Case | Target | IOPS | MB/s | CPU us/IO | of holdfast's | p50 us | p99 us | p99.9 us | switches/IO | syscalls/IO |\n|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n"
            );
            for group in groups {
                let own = group.iter().find(|row| row.target == "holdfast");
                for row in group {
                    let ratio = own.map_or(String::new(), |own| format!("{:.2}", row.cpu_us / own.cpu_us));
                    let calls = row.syscalls.map_or(String::new(), |n| format!("{n:.2}"));
                    let [p50, p99, p999] = row.latency_us;
                    let _ = writeln!(
                        text,
                        "| {} | {} | {:.0} | {:.1} | {:.2} | {ratio} | {p50:.1} | {p99:.1} | {p999:.1} | {:.3} | {calls} |",
                        row.case.name(),
                        row.target,
                        row.iops,
                        row.mb_per_s,
                        row.cpu_us,
                        row.switches,
                    );
                }
            }
        }
        text
    }
}
