//! The benchmark itself works: every case of the short set runs against Holdfast, the floor and whichever peers are
//! installed, and the report has all of them. No figure is judged.

use std::process::Command;

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
