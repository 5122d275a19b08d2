//! The benchmark itself works: every case of the short set runs against Holdfast, the floor and whichever peers are
//! installed, and the report has all of them; failovers show hosts no error. No figure is judged.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

#[test]
fn every_case_runs_against_every_target() {
    let out = tempfile::tempdir().unwrap();
    // Very short runs: what counts is that commands end well and bytes are read back as written.
    let status = Command::new(env!("CARGO_BIN_EXE_holdfast-bench"))
        .args([
            "run",
            "--set",
            "smoke",
            "--rounds",
            "1",
            "--milliseconds",
            "50",
            "--mib",
            "64",
            "--unpinned",
            "--out",
        ])
        .arg(out.path())
        .status()
        .unwrap();
    assert!(status.success());
    let report = std::fs::read_to_string(out.path().join("report.json")).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    let rows = report["rows"].as_array().unwrap();
    let cases = holdfast_bench::case::Set::Smoke.cases().len();
    for target in ["holdfast", "bare TCP"] {
        let of_target: Vec<_> = rows.iter().filter(|row| row["target"] == target).collect();
        assert_eq!(of_target.len(), cases, "{target}");
        assert!(of_target.iter().all(|row| row["iops"].as_f64().unwrap() > 0.0), "{target}");
    }
    for plot in ["cpu.svg", "iops.svg", "p99.svg", "report.md"] {
        assert!(std::fs::read_to_string(out.path().join(plot)).unwrap().contains("holdfast"), "{plot}");
    }
}

fn controller() -> PathBuf {
    env::var_os("HOLDFAST_BIN_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/debug"), PathBuf::from)
        .join("holdfast-controller")
}

#[test]
fn the_control_planes_measurement_runs_through() {
    let out = tempfile::tempdir().unwrap();
    let done = Command::new(env!("CARGO_BIN_EXE_holdfast-bench"))
        .args(["control", "--quick", "--controller"])
        .arg(controller())
        .arg("--dir")
        .arg(out.path())
        .arg("--out")
        .arg(out.path())
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let report = std::fs::read_to_string(out.path().join("control.json")).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    let sizes = report["sizes"].as_array().unwrap();
    assert_eq!(sizes.iter().map(|size| size["volumes"].as_u64().unwrap()).collect::<Vec<_>>(), [4, 40]);
    for size in sizes {
        for kind in ["reserve_out", "reserve_out_all", "map_change", "map_change_all", "map_many"] {
            assert!(size[kind]["count"].as_u64().unwrap() > 0, "{kind}: {size}");
        }
        // A node is sent what changed, not the state.
        assert!(size["records_per_commit"].as_f64().unwrap() < 4.0, "{size}");
        assert!(size["owner_failover"]["volumes"].as_u64().unwrap() > 0);
        assert_eq!(size["leader_failovers"].as_array().unwrap().len(), 1);
    }
    let text = std::fs::read_to_string(out.path().join("control.md")).unwrap();
    for row in [
        "| one fsync of 512 bytes |",
        "| PR OUT: committed, installed on every node | 40 |",
        "Restart with 40 volumes",
    ] {
        assert!(text.contains(row), "{row}: {text}");
    }
}

fn binaries() -> PathBuf {
    controller().parent().unwrap().to_owned()
}

#[test]
fn failovers_show_hosts_no_error_and_lose_nothing() {
    let out = tempfile::tempdir().unwrap();
    let done = Command::new(env!("CARGO_BIN_EXE_holdfast-bench"))
        .env("HOLDFAST_BIN_DIR", binaries())
        .args(["failover", "--count", "2", "--volumes", "2", "--depths", "2", "--minutes", "3", "--out"])
        .arg(out.path())
        .output()
        .unwrap();
    // It fails by itself when a host saw an error, an acknowledged write was not there, or copies differ.
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let report = std::fs::read_to_string(out.path().join("failover.json")).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(
        rows.iter().map(|row| row["kind"].as_str().unwrap()).collect::<Vec<_>>(),
        ["planned", "kill", "partition"]
    );
    for row in rows {
        assert_eq!(row["stalls_ms"].as_array().unwrap().len(), 2, "{row}");
        assert!(row["host_errors"].as_array().unwrap().is_empty(), "{row}");
        assert!(row["verified"].as_u64().unwrap() > 0 && row["writes"].as_u64().unwrap() > 100, "{row}");
    }
    // The host of a killed node loses a path, and gets it back.
    assert!(rows[1]["lost_sessions"].as_u64().unwrap() > 0, "{}", rows[1]);
    let text = std::fs::read_to_string(out.path().join("failover.md")).unwrap();
    assert!(text.contains("| kill -9 | 2 | 2 (1) |"), "{text}");
    assert!(std::fs::read_to_string(out.path().join("failover.svg")).unwrap().contains("partition"));
}

#[test]
fn the_measurement_of_copies_runs_through() {
    let out = tempfile::tempdir().unwrap();
    let done = Command::new(env!("CARGO_BIN_EXE_holdfast-bench"))
        .env("HOLDFAST_BIN_DIR", binaries())
        .args(["replication", "--quick", "--out"])
        .arg(out.path())
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let report = std::fs::read_to_string(out.path().join("replication.json")).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    let writes = report["writes"].as_array().unwrap();
    assert_eq!(writes.len(), 3 * 2 * 3);
    for write in writes {
        for both in ["p50_us", "p99_us", "per_second"] {
            assert!(write[both].as_array().unwrap().iter().all(|n| n.as_f64().unwrap() > 0.0), "{write}");
        }
    }
    let copying = &report["copying"];
    for rate in ["plain_mib_s", "idle_mib_s", "busy_mib_s", "before_per_second", "during_per_second"] {
        assert!(copying[rate].as_f64().unwrap() > 0.0, "{rate}: {copying}");
    }
    assert_eq!(report["memory"]["node_mib_after"].as_array().unwrap().len(), 3);
    for file in ["replication.md", "replication.svg"] {
        assert!(std::fs::read_to_string(out.path().join(file)).unwrap().contains("bare"), "{file}");
    }
}
