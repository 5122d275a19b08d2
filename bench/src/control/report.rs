//! The results as Markdown, for people, and as JSON, for programs.

use std::fmt::Write as _;

use serde::Serialize;

use super::{latency::Latency, machine::Core};

/// All that a run measured.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Processor and kernel.
    pub machine: String,
    /// Load of the machine when the run began (one minute).
    pub load_before: f64,
    /// And when it ended.
    pub load_after: f64,
    /// One fsync of a small append.
    pub fsync: Latency,
    /// The same at the end of the run.
    pub fsync_after: Latency,
    /// One round trip over loopback TCP.
    pub round_trip: Latency,
    /// How long a lease lasts, in milliseconds.
    pub lease_ms: f64,
    /// At each number of volumes.
    pub sizes: Vec<Size>,
    /// The state machine by itself, at each number of volumes.
    pub cores: Vec<Core>,
    /// With the most volumes.
    pub restart: Restart,
}

/// What was measured with this many volumes.
#[derive(Debug, Default, Serialize)]
pub struct Size {
    /// Volumes, of two copies, each mapped to one host.
    pub volumes: u32,
    /// Hosts.
    pub hosts: u32,
    /// Simulated data nodes, each with a session.
    pub nodes: u8,
    /// Volumes made in a second, all callers together.
    pub creations_per_second: f64,
    /// PERSISTENT RESERVE OUT, one after the other: committed, and installed on every node.
    pub reserve_out: Latency,
    /// The same, one caller for each node that owns a volume.
    pub reserve_out_all: Latency,
    /// Those callers.
    pub reserve_out_callers: usize,
    /// A mapping made or removed, one after the other.
    pub map_change: Latency,
    /// The same, several callers.
    pub map_change_all: Latency,
    /// Those callers.
    pub map_change_callers: usize,
    /// Many mappings made or removed in one entry.
    pub map_many: Latency,
    /// How many.
    pub map_many_edits: u32,
    /// Records that one node was sent for one PR OUT.
    pub records_per_commit: f64,
    /// And their bytes.
    pub bytes_per_commit: f64,
    /// A node stops without a word.
    pub owner_failover: OwnerFailover,
    /// The leader is killed.
    pub leader_failovers: Vec<LeaderFailover>,
    /// The leader's resident memory, in bytes.
    pub leader_resident_bytes: u64,
    /// What the leader keeps on disk, in bytes.
    pub leader_stored_bytes: u64,
}

/// From the last word of a node to new owners of its volumes, as another node is told; in milliseconds.
#[derive(Debug, Default, Serialize)]
pub struct OwnerFailover {
    /// Volumes that it owned.
    pub volumes: usize,
    /// To the first one's new owner.
    pub first_ms: f64,
    /// To the last one's.
    pub last_ms: f64,
}

/// From the kill of the leader, in milliseconds.
#[derive(Debug, Default, Serialize)]
pub struct LeaderFailover {
    /// To the next commit.
    pub commit_ms: f64,
    /// To the next PR OUT that was GOOD, all nodes having found the new leader.
    pub reserve_out_ms: f64,
}

/// After SIGKILL, in milliseconds.
#[derive(Debug, Default, Serialize)]
pub struct Restart {
    /// From the start of all three processes to the first read that a quorum confirmed.
    pub all_ms: f64,
    /// From the start of one that does not lead until it has applied all that the leader has.
    pub one_ms: f64,
}

impl Report {
    /// The least that a commit must wait for: one fsync and one round trip, in microseconds.
    pub fn floor_us(&self) -> f64 {
        self.fsync.p50_us + self.round_trip.p50_us
    }

    /// As Markdown.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        let mut line = |words: String| {
            let _ = writeln!(text, "{words}");
        };
        line(format!(
            "Machine: {}; load {:.1} before the run, {:.1} after it (the run itself is most of that).",
            self.machine, self.load_before, self.load_after
        ));
        line(String::new());
        line("| Floor | p50 | p99 |".into());
        line("|---|--:|--:|".into());
        let floor = self.floor_us();
        for (what, p50, p99) in [
            ("one fsync of 512 bytes", self.fsync.p50_us, self.fsync.p99_us),
            ("one loopback round trip", self.round_trip.p50_us, self.round_trip.p99_us),
            ("together: the floor", floor, self.fsync.p99_us + self.round_trip.p99_us),
            ("the fsync at the end of the run", self.fsync_after.p50_us, self.fsync_after.p99_us),
        ] {
            line(format!("| {what} | {} | {} |", us(p50), us(p99)));
        }
        self.latencies(&mut line);
        self.growth(&mut line);
        self.failovers(&mut line);
        text
    }

    fn latencies(&self, line: &mut impl FnMut(String)) {
        let floor = self.floor_us().max(1e-9);
        line(String::new());
        line(
            "| | volumes | p50 | x floor | p99 | x floor | a second | callers: a second | p50 | p99 |".into(),
        );
        line("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|".into());
        let reserve = |size: &Size| (size.reserve_out, size.reserve_out_all, size.reserve_out_callers);
        let map = |size: &Size| (size.map_change, size.map_change_all, size.map_change_callers);
        type Pick<'a> = &'a dyn Fn(&Size) -> (Latency, Latency, usize);
        let kinds: [(&str, Pick<'_>); 2] = [
            ("PR OUT: committed, installed on every node", &reserve),
            ("change of a LUN map: committed, installed on every node", &map),
        ];
        for (title, pick) in kinds {
            for size in &self.sizes {
                let (one, all, callers) = pick(size);
                line(format!(
                    "| {title} | {} | {} | {:.1} | {} | {:.1} | {:.0} | {callers}: {:.0} | {} | {} |",
                    size.volumes,
                    us(one.p50_us),
                    one.p50_us / floor,
                    us(one.p99_us),
                    one.p99_us / floor,
                    one.per_second,
                    all.per_second,
                    us(all.p50_us),
                    us(all.p99_us)
                ));
            }
        }
        for size in &self.sizes {
            let many = size.map_many;
            line(format!(
                "| {} changes of LUN maps in one entry | {} | {} | {:.1} | {} | {:.1} | {:.1} | | | |",
                size.map_many_edits,
                size.volumes,
                us(many.p50_us),
                many.p50_us / floor,
                us(many.p99_us),
                many.p99_us / floor,
                many.per_second
            ));
        }
    }

    fn growth(&self, line: &mut impl FnMut(String)) {
        line(String::new());
        line(
            "| Growth | hosts | nodes | volumes made a second | sent to a node per PR OUT | leader's memory | leader's disk | apply PR OUT | apply a map change | leader's look at what is due |"
                .into(),
        );
        line("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|".into());
        for (size, core) in self.sizes.iter().zip(&self.cores) {
            line(format!(
                "| {} volumes | {} | {} | {:.0} | {:.2} records, {:.0} bytes | {:.0} MiB | {:.0} MiB | {:.1} us | {:.1} us | {:.1} us |",
                size.volumes,
                size.hosts,
                size.nodes,
                size.creations_per_second,
                size.records_per_commit,
                size.bytes_per_commit,
                mib(size.leader_resident_bytes),
                mib(size.leader_stored_bytes),
                core.reserve_out_us,
                core.map_change_us,
                core.tick_us
            ));
        }
        // The memory of few is lost in that of the pages.
        if let Some(core) = self.cores.iter().rfind(|core| core.volumes >= 1000) {
            line(String::new());
            line(format!(
                "State machine with {} volumes of two copies, one mapping and four registrations each: {:.1} KiB a volume, {:.1} KiB a mapping, {:.1} KiB a registration; {:.0} MiB in all with the program, {:.0} MiB as records.",
                core.volumes,
                core.volume_bytes / 1024.0,
                core.mapping_bytes / 1024.0,
                core.registration_bytes / 1024.0,
                mib(core.resident_bytes),
                mib(core.records_bytes)
            ));
        }
    }

    fn failovers(&self, line: &mut impl FnMut(String)) {
        let floor_ms = self.floor_us().max(1e-9) / 1e3;
        line(String::new());
        line(format!(
            "| Failover | volumes | a node stops: its volumes | first new owner | last new owner | above the lease of {:.0} ms, x floor | the leader is killed: next commit (median, longest) | next PR OUT GOOD (median, longest) |",
            self.lease_ms
        ));
        line("|---|--:|--:|--:|--:|--:|--:|--:|".into());
        for size in &self.sizes {
            let owner = &size.owner_failover;
            let of = |pick: fn(&LeaderFailover) -> f64| {
                let mut all: Vec<f64> = size.leader_failovers.iter().map(pick).collect();
                all.sort_by(f64::total_cmp);
                let median = all.get(all.len() / 2).copied().unwrap_or(0.0);
                format!("{median:.0} ms, {:.0} ms", all.last().copied().unwrap_or(0.0))
            };
            line(format!(
                "| | {} | {} | {:.0} ms | {:.0} ms | {:.0} ms, {:.0} | {} | {} |",
                size.volumes,
                owner.volumes,
                owner.first_ms,
                owner.last_ms,
                owner.last_ms - self.lease_ms,
                (owner.last_ms - self.lease_ms).max(0.0) / floor_ms,
                of(|failover| failover.commit_ms),
                of(|failover| failover.reserve_out_ms)
            ));
        }
        line(String::new());
        line(format!(
            "Restart with {} volumes after SIGKILL: all three controllers to the first confirmed read {:.0} ms; one of them until it has applied everything {:.0} ms.",
            self.sizes.last().map_or(0, |size| size.volumes),
            self.restart.all_ms,
            self.restart.one_ms
        ));
    }
}

fn us(us: f64) -> String {
    if us < 10_000.0 { format!("{us:.0} us") } else { format!("{:.1} ms", us / 1000.0) }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
