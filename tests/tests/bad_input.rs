//! What is refused, and in which words.

use std::fs;

use anyhow::{Context, ensure};
use holdfast_tests::{
    cdb,
    cluster::{Cluster, INITIATOR_A, INITIATOR_B},
    initiator::{Chap, Initiator},
};

#[test]
fn an_initiator_without_a_host_is_refused() -> anyhow::Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.volume_for_both("disk", "16MiB", "node-1", 0)?;
    for portal in &cluster.portals {
        let refused = Initiator::login(portal, &cluster.target, "iqn.2026-11.example:stranger", 1, None);
        let words = refused.err().map(|error| error.to_string()).unwrap_or_default();
        ensure!(words.contains("Authorization failure") || words.contains("uthoriz"), "{words:?}");
    }
    let wrong =
        Initiator::login(&cluster.portals[0], "iqn.2026-11.example:no-such-target", INITIATOR_A, 1, None);
    ensure!(wrong.is_err(), "a target that does not exist took a login");
    cluster.stop()
}

#[test]
fn chap_lets_in_only_who_knows_the_secret() -> anyhow::Result<()> {
    let mut cluster = Cluster::start_with(&["--controllers", "1", "--datanodes", "1"])?;
    let folder = tempfile::tempdir()?;
    let (secret, target_secret) = (folder.path().join("secret"), folder.path().join("target-secret"));
    fs::write(&secret, "a secret of the host\n")?;
    fs::write(&target_secret, "a secret of the target\n")?;
    cluster.cli(&["volume", "create", "disk", "--size", "1MiB"])?;
    cluster.cli(&[
        "host",
        "create",
        "a",
        "--initiator",
        INITIATOR_A,
        "--chap-user",
        "host-a",
        "--chap-secret-file",
        &secret.display().to_string(),
        "--chap-target-user",
        "target",
        "--chap-target-secret-file",
        &target_secret.display().to_string(),
    ])?;
    cluster.cli(&["map", "create", "disk", "a"])?;
    let login = |chap| Initiator::login(&cluster.portals[0], &cluster.target, INITIATOR_A, 1, chap);
    let good = ("host-a", "a secret of the host");
    ensure!(login(None).is_err(), "no CHAP was asked");
    for wrong in [("host-a", "another secret!!"), ("host-b", "a secret of the host")] {
        ensure!(login(Some(Chap { initiator: wrong, target: None })).is_err(), "{wrong:?} was let in");
    }
    login(Some(Chap { initiator: good, target: None }))?.become_ready(0)?;
    login(Some(Chap { initiator: good, target: Some(("target", "a secret of the target")) }))?
        .become_ready(0)?;
    let false_target = login(Some(Chap { initiator: good, target: Some(("target", "not its secret!!")) }));
    ensure!(false_target.is_err(), "the initiator accepted a target that does not know its secret");
    // Nobody reads a secret back.
    let shown = cluster.cli(&["host", "show", "a", "-o", "json"])?;
    ensure!(!shown.contains("secret of"), "{shown}");
    cluster.stop()
}

#[test]
fn the_command_line_says_in_one_line_what_is_wrong() -> anyhow::Result<()> {
    let mut cluster = Cluster::start_with(&["--controllers", "1", "--datanodes", "1"])?;
    cluster.volume_for_both("disk", "16MiB", "node-1", 0)?;
    for (arguments, expected) in [
        (&["volume", "create", "disk", "--size", "1MiB"][..], "disk"),
        (&["volume", "create", "x", "--size", "1000"], "size"),
        (&["volume", "create", "bad/name", "--size", "1MiB"], "name"),
        (&["volume", "create", "x", "--size", "1MiB", "--replicas", "2"], "replicas"),
        (&["volume", "create", "x", "--size", "1MiB", "--node", "node-9"], "node-9"),
        (&["volume", "show", "nothing"], "nothing"),
        (&["volume", "delete", "disk"], "mapped"),
        (&["volume", "move", "disk", "--node", "node-9"], "node-9"),
        (&["node", "drain", "node-1"], "disk"),
        (&["volume", "resize", "disk", "--size", "1MiB"], "disk"),
        (&["host", "create", "c", "--initiator", INITIATOR_A], "a"),
        (&["host", "create", "c", "--initiator", "not-an-iqn"], "not-an-iqn"),
        (&["host", "delete", "a"], "mapp"),
        (&["map", "create", "disk", "a", "--lun", "1"], "disk"),
        (&["map", "create", "nothing", "a"], "nothing"),
        (&["map", "delete", "disk", "nobody"], "nobody"),
        (&["reservation", "show", "nothing"], "nothing"),
        (&["node", "show", "nothing"], "nothing"),
    ] {
        let said = cluster.cli_refused(arguments)?;
        ensure!(said.starts_with("holdfast: ") && said.contains(expected), "{arguments:?}: {said}");
    }
    cluster.stop()
}

#[test]
fn a_mapping_change_reaches_a_host_that_is_logged_in() -> anyhow::Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.volume_for_both("disk", "16MiB", "node-1", 0)?;
    let mut b = Initiator::login(&cluster.portals[1], &cluster.target, INITIATOR_B, 1, None)?;
    b.become_ready(0)?;
    cluster.cli(&["volume", "create", "second", "--size", "16MiB", "--node", "node-2"])?;
    cluster.cli(&["map", "create", "second", "b", "--lun", "3", "--read-only"])?;
    cluster.wait_for("REPORTED LUNS DATA HAS CHANGED", || {
        b.command(0, cdb::TEST_UNIT_READY)?.check("6/3f/0e")
    })?;
    let luns = b.read(0, cdb::REPORT_LUNS, 1024)?.good()?;
    ensure!(luns[..4] == [0, 0, 0, 16] && luns[8..10] == [0, 0] && luns[16..18] == [0, 3], "{luns:x?}");
    b.become_ready(3)?;
    b.read_blocks(3, 0, 1)?.good()?;
    b.write_blocks(3, 0, 1, 1)?.check("7/27/00")?;
    cluster.cli(&["map", "delete", "second", "b"])?;
    cluster.wait_for("the end of the mapping", || b.read_blocks(3, 0, 1)?.check("5/25/00"))?;
    cluster.cli(&["volume", "delete", "second"])?;
    cluster.stop()
}

#[test]
fn a_volume_grows_under_a_host() -> anyhow::Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.volume_for_both("disk", "16MiB", "node-1", 0)?;
    let mut b = Initiator::login(&cluster.portals[1], &cluster.target, INITIATOR_B, 1, None)?;
    b.become_ready(0)?;
    b.read_blocks(0, 32768, 1)?.check("5/21/00")?;
    cluster.cli(&["volume", "resize", "disk", "--size", "32MiB"])?;
    cluster.wait_for("CAPACITY DATA HAS CHANGED", || b.command(0, cdb::TEST_UNIT_READY)?.check("6/2a/09"))?;
    let capacity = b.read(0, cdb::READ_CAPACITY_16, 32)?.good()?;
    ensure!(capacity[..8] == 65535_u64.to_be_bytes(), "{capacity:x?}");
    let grown = b.read_blocks(0, 65535, 1)?.good()?;
    ensure!(grown.iter().all(|byte| *byte == 0), "new blocks show old data");
    drop(b);
    cluster.stop()
}

#[test]
fn a_full_disk_is_told_to_the_host_and_the_cluster_stays_up() -> anyhow::Result<()> {
    let mut cluster = Cluster::start_with_small_pool("40m")?;
    // Each fits by itself; both together do not.
    for (name, lun) in [("first", 0), ("second", 1)] {
        cluster.volume_for_both(name, "30MiB", "node-1", lun)?;
    }
    let mut a = Initiator::login(&cluster.portals[0], &cluster.target, INITIATOR_A, 1, None)?;
    a.become_ready(0)?;
    a.become_ready(1)?;
    let mebibytes = |mib: u32| mib * 2048;
    for mib in 0..30 {
        a.write_blocks(0, mebibytes(mib), 2048, 0xa5)?.good()?;
    }
    let full = (0..30).find(|mib| {
        a.write_blocks(1, mebibytes(*mib), 2048, 0x5a).is_ok_and(|answer| answer.check("7/27/07").is_ok())
    });
    let full = full.context("30 + 30 MiB fitted into 40 MiB")?;
    // What was acknowledged is there, on both volumes; neither is worse off than before the refusal.
    ensure!(
        full > 0 && a.read_blocks(1, mebibytes(full - 1), 2048)?.good()?.iter().all(|byte| *byte == 0x5a)
    );
    ensure!(a.read_blocks(0, mebibytes(29), 2048)?.good()?.iter().all(|byte| *byte == 0xa5));
    a.write_blocks(0, 0, 2048, 0xa6)?.good()?;
    a.command(0, cdb::SYNCHRONIZE_CACHE)?.good()?;
    cluster.cli(&["volume", "list"])?;
    // UNMAP of the first MiB of the first volume makes room for one more of the second.
    a.write(0, "42000000000000001800", &format!("00160010{:08x}{:016x}{:08x}{:08x}", 0, 0, 2048, 0))?
        .good()?;
    a.write_blocks(1, mebibytes(full), 1024, 0x5a)?.good()?;
    drop(a);
    cluster.stop()
}
