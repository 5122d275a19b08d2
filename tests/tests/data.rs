//! Data through the cluster's paths, with QEMU's and libiscsi's own programs.

use std::{fs, process::Command};

use anyhow::{Context, ensure};
use holdfast_tests::{
    cdb,
    cluster::{Cluster, INITIATOR_A},
    initiator::Initiator,
    tools::{expect_success, qemu_image, url},
};

#[test]
fn an_image_written_through_one_node_reads_back_through_the_other() -> anyhow::Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.volume_for_both("disk", "16MiB", "node-1", 0)?;
    let folder = tempfile::tempdir()?;
    let image = folder.path().join("image.raw");
    // Neither all zeroes nor all data: holes must come back as holes.
    let mut bytes = vec![0_u8; 16 << 20];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for (at, chunk) in bytes.chunks_mut(4096).enumerate() {
        if at % 3 == 0 {
            for byte in chunk {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                *byte = (state >> 56) as u8;
            }
        }
    }
    fs::write(&image, &bytes)?;
    let image = image.display().to_string();
    let on =
        |cluster: &Cluster, node: usize| qemu_image(&cluster.portals[node], &cluster.target, 0, INITIATOR_A);
    let target = on(&cluster, 0);
    expect_success("qemu-img", &["convert", "-n", "-f", "raw", &image, "--target-image-opts", &target])?;
    let source = format!("driver=raw,file.driver=file,file.filename={image}");
    for node in [0, 1] {
        let said = expect_success("qemu-img", &["compare", "--image-opts", &on(&cluster, node), &source])?;
        ensure!(said.contains("Images are identical"), "{said}");
    }
    cluster.stop()?;
    cluster.up(&[])?;
    expect_success("qemu-img", &["compare", "--image-opts", &on(&cluster, 1), &source])?;
    cluster.stop()
}

#[test]
fn discovery_shows_one_target_with_every_portal() -> anyhow::Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.volume_for_both("disk", "16MiB", "node-2", 5)?;
    for portal in &cluster.portals {
        let said = expect_success("iscsi-ls", &["-i", INITIATOR_A, &format!("iscsi://{portal}")])?;
        for listed in &cluster.portals {
            ensure!(said.contains(&format!("Portal:{listed}")), "{listed} is not in:\n{said}");
        }
        ensure!(said.contains(&cluster.target), "{said}");
        let inquiry = expect_success("iscsi-inq", &["-i", INITIATOR_A, &url(portal, &cluster.target, 5)])?;
        ensure!(inquiry.contains("HOLDFAST"), "{inquiry}");
        let capacity = Command::new("iscsi-readcapacity16")
            .args(["-i", INITIATOR_A, &url(portal, &cluster.target, 5)])
            .output()?;
        let capacity = String::from_utf8(capacity.stdout)?;
        ensure!(capacity.contains("Total size:16777216"), "{capacity}");
    }
    cluster.stop()
}

#[test]
fn every_path_shows_one_identity() -> anyhow::Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.volume_for_both("disk", "16MiB", "node-1", 0)?;
    let mut answers = Vec::new();
    for portal in &cluster.portals {
        let mut host = Initiator::login(portal, &cluster.target, INITIATOR_A, 1, None)?;
        host.become_ready(0)?;
        let mut seen = Vec::new();
        for (cdb, length) in [
            (cdb::INQUIRY, 255),
            (cdb::READ_CAPACITY_16, 32),
            (cdb::REPORT_LUNS, 1024),
            (cdb::REPORT_TARGET_PORT_GROUPS, 1024),
        ] {
            seen.push(host.read(0, cdb, length)?.good()?);
        }
        let identification = host.read(0, cdb::DEVICE_IDENTIFICATION, 1024)?.good()?;
        answers.push((seen, designators(&identification)));
    }
    ensure!(answers[0].0 == answers[1].0, "two paths answer differently: {answers:x?}");
    let of_unit = |list: &[(u8, u8, Vec<u8>)]| list.iter().filter(|d| d.0 == 0).cloned().collect::<Vec<_>>();
    let of_port = |list: &[(u8, u8, Vec<u8>)]| list.iter().filter(|d| d.0 == 1).cloned().collect::<Vec<_>>();
    ensure!(of_unit(&answers[0].1) == of_unit(&answers[1].1), "the LU's designators differ between paths");
    ensure!(of_unit(&answers[0].1).len() >= 2, "too few designators");
    ensure!(of_port(&answers[0].1) != of_port(&answers[1].1), "two ports claim to be one");
    // REPORT TARGET PORT GROUPS: two groups, the owner's active/optimized (0), the other active/non-optimized (1).
    let groups = &answers[0].0[3];
    let mut states: Vec<(u8, u16)> = Vec::new();
    let mut at = 4;
    while at + 8 <= groups.len() {
        let ports = usize::from(groups[at + 7]);
        states.push((groups[at] & 0x0f, u16::from_be_bytes([groups[at + 2], groups[at + 3]])));
        at += 8 + 4 * ports;
    }
    let number = |node: &str| -> anyhow::Result<u16> {
        let shown = cluster.json(&["node", "show", node])?;
        Ok(shown["status"]["number"].as_u64().context("number")?.try_into()?)
    };
    states.sort_unstable();
    ensure!(
        states == [(0, number("node-1")?), (1, number("node-2")?)],
        "port groups {states:?} in {groups:x?}"
    );
    cluster.stop()
}

/// (association, type, designator) of VPD page 83h.
fn designators(page: &[u8]) -> Vec<(u8, u8, Vec<u8>)> {
    let mut found = Vec::new();
    let mut at = 4;
    while at + 4 <= page.len() {
        let length = usize::from(page[at + 3]);
        let (association, kind) = (page[at + 1] >> 4 & 3, page[at + 1] & 0x0f);
        found.push((association, kind, page.get(at + 4..at + 4 + length).unwrap_or_default().to_vec()));
        at += 4 + length;
    }
    found
}
