//! One truth on every path while nodes and controllers are cut off, paused and killed: every process has a network namespace of its own.
//!
//! What came before what is judged on the boot-time clock of the machine alone.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context, ensure};
use holdfast_tests::{
    cdb,
    clock::boottime_ns,
    cluster::{INITIATOR_A, INITIATOR_B},
    initiator::{CHECK_CONDITION, GOOD, Initiator, RESERVATION_CONFLICT},
    netcluster::{NetCluster, Shape},
    raw::RawInitiator,
};
use rustix::process::Signal;

const KEY_A: u64 = 0xa;
const KEY_B: u64 = 0xb;
const BUSY: u8 = 0x08;
/// NOT READY, LOGICAL UNIT NOT ACCESSIBLE, TARGET PORT IN UNAVAILABLE STATE.
const NOT_SERVED: &str = "2/04/0c";
/// ABORTED COMMAND, LOGICAL UNIT COMMUNICATION FAILURE: what became of the command is not known.
const NOBODY_KNOWS: &str = "b/08/00";
const REGISTRANTS: u8 = cdb::WRITE_EXCLUSIVE_REGISTRANTS_ONLY;

/// One command of a hammering initiator, by the machine's boot-time clock.
struct Beat {
    sent_ns: u64,
    answered_ns: u64,
    good: bool,
}

/// Sends writes and reads one after the other until it is told to stop, or its session is gone.
fn hammer(mut initiator: Initiator, lun: u16, stop: Arc<AtomicBool>) -> JoinHandle<Vec<Beat>> {
    thread::spawn(move || {
        let mut beats = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let sent_ns = boottime_ns();
            let answer = match beats.len() % 2 {
                0 => initiator.write_blocks(lun, 0, 1, 7),
                _ => initiator.read_blocks(lun, 0, 1),
            };
            let good = answer.as_ref().is_ok_and(|answer| answer.status == GOOD);
            beats.push(Beat { sent_ns, answered_ns: boottime_ns(), good });
            if answer.is_err() {
                break;
            }
        }
        beats
    })
}

#[test]
fn a_reservation_waits_until_a_node_that_is_cut_off_has_no_lease_and_serves_nothing() -> anyhow::Result<()> {
    let cluster = NetCluster::start(Shape::default())?;
    cluster.volume_for_both("one", 0, &["--size", "16MiB", "--node", "node-1"])?;
    cluster.volume_for_both("two", 1, &["--size", "16MiB", "--node", "node-2"])?;
    let mut a = cluster.login("host-1", "node-1", INITIATOR_A, 1)?;
    a.become_ready(0)?;
    a.reserve_out(0, cdb::REGISTER, 0, 0, KEY_A)?.good()?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut hammers = Vec::new();
    for lun in [0, 1] {
        let mut b = cluster.login("host-2", "node-2", INITIATOR_B, 2 + lun)?;
        b.become_ready(0)?;
        b.become_ready(1)?;
        hammers.push(hammer(b, lun, Arc::clone(&stop)));
    }
    // The way between the nodes stays open: only the lease can stop node 2.
    cluster.network.isolate("node-2", ["ctl-1", "ctl-2", "ctl-3"])?;
    let sent_ns = boottime_ns();
    a.reserve_out(0, cdb::RESERVE, cdb::EXCLUSIVE_ACCESS, KEY_A, 0)?.good()?;
    let good_ns = boottime_ns();
    // Long enough for anything that node 2 still served to be seen.
    let later = a.read_blocks(0, 0, 1)?;
    ensure!(later.status == GOOD, "the holder reads: {later:?}");
    cluster.wait_for("a hammer after the reservation", || {
        ensure!(boottime_ns() > good_ns + 1_000_000_000 || hammers.iter().all(JoinHandle::is_finished));
        Ok(())
    })?;
    stop.store(true, Ordering::Relaxed);
    for (lun, hammer) in hammers.into_iter().enumerate() {
        let beats = hammer.join().map_err(|_| anyhow::anyhow!("the hammer fell"))?;
        let served_meanwhile = beats.iter().filter(|beat| beat.good && beat.sent_ns > sent_ns).count();
        ensure!(served_meanwhile > 0, "LUN {lun}: node 2 had a lease still and should have served within it");
        let late: Vec<_> = beats.iter().filter(|beat| beat.good && beat.sent_ns >= good_ns).collect();
        ensure!(
            late.is_empty(),
            "LUN {lun}: node 2 served {} commands that were sent after the reservation's GOOD, the last answered {} ms after it",
            late.len(),
            late.last().map_or(0, |beat| (beat.answered_ns - good_ns) / 1_000_000)
        );
    }
    Ok(())
}

/// Host A through node 1 and host B through node 2, both registered for LUN 0, which node 1 owns.
fn registered_pair(cluster: &NetCluster) -> anyhow::Result<(Initiator, Initiator)> {
    cluster.volume_for_both("disk", 0, &["--size", "16MiB", "--node", "node-1"])?;
    let mut a = cluster.login("host-1", "node-1", INITIATOR_A, 1)?;
    let mut b = cluster.login("host-2", "node-2", INITIATOR_B, 2)?;
    a.become_ready(0)?;
    b.become_ready(0)?;
    a.reserve_out(0, cdb::REGISTER, 0, 0, KEY_A)?.good()?;
    b.reserve_out(0, cdb::REGISTER, 0, 0, KEY_B)?.good()?;
    Ok((a, b))
}

/// Host A through node 1, which owns LUN 0, and host B through node 2, which sends data when it is told to.
fn pair_with_a_slow_host(cluster: &NetCluster) -> anyhow::Result<(Initiator, RawInitiator)> {
    cluster.volume_for_both("disk", 0, &["--size", "16MiB", "--node", "node-1"])?;
    let mut a = cluster.login("host-1", "node-1", INITIATOR_A, 1)?;
    a.become_ready(0)?;
    let mut b = RawInitiator::login(cluster.connect("host-2", "node-2")?, &cluster.target, INITIATOR_B, 1)?;
    b.become_ready(0)?;
    Ok((a, b))
}

/// PRGENERATION as the controllers know it.
fn generation(cluster: &NetCluster) -> anyhow::Result<u64> {
    let shown = cluster.json(&["reservation", "show", "disk"])?;
    shown["generation"].as_u64().with_context(|| shown.to_string())
}

#[test]
fn a_preempt_waits_for_a_paused_node_and_its_host_is_told_and_fenced() -> anyhow::Result<()> {
    let cluster = NetCluster::start(Shape::default())?;
    let (mut a, mut b) = registered_pair(&cluster)?;
    a.reserve_out(0, cdb::RESERVE, REGISTRANTS, KEY_A, 0)?.good()?;
    b.write_blocks(0, 0, 1, 1)?.good()?;
    let before = generation(&cluster)?;
    cluster.signal("node-2", Signal::STOP)?;
    let (cdb, list) = cdb::persistent_reserve_out(cdb::PREEMPT, REGISTRANTS, KEY_A, KEY_B);
    a.send(&format!("cdb 0 {cdb} out {list}"))?;
    cluster.wait_for("the commit", || {
        ensure!(generation(&cluster)? > before, "not committed");
        Ok(())
    })?;
    cluster.signal("node-2", Signal::CONT)?;
    a.answer()?.good()?;
    // The node's lease may have ended, when this machine was slow: then it serves nothing for a while, and the new session that
    // follows is told what new ones are told.
    let judged = cluster.wait_for("a lease", || match b.write_blocks(0, 0, 1, 2) {
        Ok(answer) => {
            ensure!(!answer.sense.starts_with(NOT_SERVED), "no lease: {answer:?}");
            Ok(Some(answer))
        }
        Err(_) => Ok(None),
    })?;
    let fenced = match judged {
        Some(answer) => {
            answer.conflict()?;
            b.command(0, cdb::TEST_UNIT_READY)?.check("6/2a/05")?;
            b.write_blocks(0, 0, 1, 2)?
        }
        None => {
            b = cluster.wait_for("another session", || cluster.login("host-2", "node-2", INITIATOR_B, 2))?;
            b.become_ready(0)?;
            b.write_blocks(0, 0, 1, 2)?
        }
    };
    fenced.conflict()?;
    let read = a.read_blocks(0, 0, 1)?.good()?;
    ensure!(read.iter().all(|byte| *byte == 1), "a write of the preempted host landed");
    Ok(())
}

#[test]
fn preempt_and_abort_ends_a_slow_write_through_another_node() -> anyhow::Result<()> {
    let cluster = NetCluster::start(Shape::default())?;
    let (mut a, mut b) = pair_with_a_slow_host(&cluster)?;
    a.reserve_out(0, cdb::REGISTER, 0, 0, KEY_A)?.good()?;
    a.reserve_out(0, cdb::RESERVE, REGISTRANTS, KEY_A, 0)?.good()?;
    b.reserve_out(0, cdb::REGISTER, 0, KEY_B)?;
    let held = b.begin_write(0, 0, vec![0xbb; 16 * 512])?;
    // It does not wait for data that never comes.
    a.reserve_out(0, cdb::PREEMPT_AND_ABORT, REGISTRANTS, KEY_A, KEY_B)?.good()?;
    b.send_data(&held)?;
    ensure!(b.write_of_one_block(0, 40)? == RESERVATION_CONFLICT, "the preempted host writes");
    ensure!(b.test_unit_ready(0)? == CHECK_CONDITION, "the preempted host was not told");
    ensure!(b.test_unit_ready(0)? == GOOD);
    let read = a.read_blocks(0, 0, 16)?.good()?;
    ensure!(read.iter().all(|byte| *byte == 0), "data of the aborted write landed");
    Ok(())
}

#[test]
fn queries_and_i_t_nexus_reset_reach_the_owner_through_another_node() -> anyhow::Result<()> {
    const I_T_NEXUS_RESET: u8 = 11;
    let (query_task, query_task_set) = (9, 10);
    let (complete, succeeded) = (0, 7);
    let cluster = NetCluster::start(Shape::default())?;
    let (mut a, mut b) = pair_with_a_slow_host(&cluster)?;
    ensure!(b.task_management(query_task_set, 0, None)? == complete, "no task is there yet");
    let held = b.begin_write(0, 0, vec![0xbb; 16 * 512])?;
    ensure!(b.task_management(query_task, 0, Some(&held))? == succeeded, "the task is there");
    ensure!(b.task_management(query_task_set, 0, None)? == succeeded, "a task is there");
    ensure!(b.task_management(I_T_NEXUS_RESET, 0, None)? == complete);
    ensure!(b.task_management(query_task, 0, Some(&held))? == complete, "the reset has ended it");
    b.send_data(&held)?;
    ensure!(b.test_unit_ready(0)? == CHECK_CONDITION, "the nexus was not told of its reset");
    ensure!(b.test_unit_ready(0)? == GOOD);
    // The host on the other path hears nothing, and sees nothing of the write.
    let read = a.read_blocks(0, 0, 16)?.good()?;
    ensure!(read.iter().all(|byte| *byte == 0), "data of the aborted write landed");
    Ok(())
}

#[test]
fn lun_reset_ends_a_slow_write_through_another_node() -> anyhow::Result<()> {
    let cluster = NetCluster::start(Shape::default())?;
    let (mut a, mut b) = pair_with_a_slow_host(&cluster)?;
    let held = b.begin_write(0, 0, vec![0xbb; 16 * 512])?;
    ensure!(a.lun_reset(0)? == 0, "LUN RESET was not complete");
    b.send_data(&held)?;
    // Both are told, and the abort is silent.
    a.become_ready(0)?;
    ensure!(b.test_unit_ready(0)? == CHECK_CONDITION, "the other host was not told");
    ensure!(b.test_unit_ready(0)? == GOOD);
    let read = a.read_blocks(0, 0, 16)?.good()?;
    ensure!(read.iter().all(|byte| *byte == 0), "data of the aborted write landed");
    // The other way round a slow write that nobody aborts ends well: the harness does not make this up.
    let held = b.begin_write(0, 0, vec![0xbb; 16 * 512])?;
    b.send_data(&held)?;
    ensure!(b.status(&held)? == GOOD);
    let read = a.read_blocks(0, 0, 16)?.good()?;
    ensure!(read.iter().all(|byte| *byte == 0xbb), "data of the write is not there");
    Ok(())
}

#[test]
fn a_unit_attention_whose_answer_was_lost_between_the_nodes_is_told_again() -> anyhow::Result<()> {
    let cluster = NetCluster::start(Shape::default())?;
    for (lun, name) in [(0, "disk"), (1, "other")] {
        cluster.volume_for_both(name, lun, &["--size", "16MiB", "--node", "node-1"])?;
    }
    let mut b = cluster.login("host-2", "node-2", INITIATOR_B, 1)?;
    b.become_ready(0)?;
    // The owner hears what is asked, and is not heard.
    cluster.network.cut_one_way("node-1", "node-2")?;
    b.command(1, cdb::TEST_UNIT_READY)?.check(NOBODY_KNOWS)?;
    cluster.network.heal()?;
    // Not executed while there is no way to the owner yet, it may be BUSY.
    let answer = cluster.wait_for("the way to the owner", || {
        let answer = b.command(1, cdb::TEST_UNIT_READY)?;
        ensure!(answer.status != BUSY && answer.sense != NOBODY_KNOWS, "no way yet: {answer:?}");
        Ok(answer)
    })?;
    answer.check("6/29/00")?;
    b.command(1, cdb::TEST_UNIT_READY)?.good()?;
    Ok(())
}

#[test]
fn without_a_quorum_a_reservation_is_busy_and_never_good() -> anyhow::Result<()> {
    let mut cluster = NetCluster::start(Shape::default())?;
    let (mut a, _b) = registered_pair(&cluster)?;
    let before = generation(&cluster)?;
    let leader = cluster.wait_for("a leader", || cluster.leader())?;
    // The leader itself stays: alone it must not decide.
    let others: Vec<_> = cluster.controllers().into_iter().filter(|name| *name != leader).collect();
    for name in &others {
        cluster.kill(name)?;
    }
    let answer = a.reserve_out(0, cdb::RESERVE, cdb::EXCLUSIVE_ACCESS, KEY_A, 0);
    // A node that holds no lease any more ends its sessions: that is no GOOD either.
    if let Ok(answer) = answer {
        ensure!(answer.status == BUSY, "BUSY expected: {answer:?}");
    }
    for name in &others {
        cluster.launch(name)?;
    }
    cluster.wait_until_serving()?;
    ensure!(generation(&cluster)? == before, "a key changed");
    let shown = cluster.json(&["reservation", "show", "disk"])?;
    ensure!(shown["type"] == "none", "what was not GOOD is not there: {shown}");
    let mut a = cluster.login("host-1", "node-1", INITIATOR_A, 1)?;
    a.become_ready(0)?;
    a.reserve_out(0, cdb::RESERVE, cdb::EXCLUSIVE_ACCESS, KEY_A, 0)?.good().map(|_| ())
}

/// What becomes of a controller.
#[derive(Debug, Clone, Copy)]
enum Blow {
    Kill,
    Pause,
    CutOff,
}

/// Sends a PR OUT again until it is GOOD: after BUSY (nothing happened), after ABORTED COMMAND (it may have), and over a new session.
fn insist(cluster: &NetCluster, a: &mut Initiator, service_action: u8) -> anyhow::Result<()> {
    cluster.wait_for("GOOD", || match a.reserve_out(0, service_action, REGISTRANTS, KEY_A, 0) {
        Ok(answer) => answer.good().map(|_| ()),
        Err(lost) => {
            *a = cluster.login("host-1", "node-1", INITIATOR_A, 1)?;
            Err(lost)
        }
    })
}

#[test]
fn no_reservation_and_no_unit_attention_is_lost_with_a_leader() -> anyhow::Result<()> {
    let mut cluster = NetCluster::start(Shape::default())?;
    let (mut a, mut b) = registered_pair(&cluster)?;
    for blow in [Blow::Kill, Blow::Pause, Blow::CutOff, Blow::Kill, Blow::CutOff, Blow::Pause] {
        insist(&cluster, &mut a, cdb::RESERVE)?;
        let leader = cluster.wait_for("a leader", || cluster.leader())?;
        // In flight when the leader is struck.
        let (cdb, list) = cdb::persistent_reserve_out(cdb::RELEASE, REGISTRANTS, KEY_A, 0);
        a.send(&format!("cdb 0 {cdb} out {list}"))?;
        match blow {
            Blow::Kill => cluster.kill(&leader)?,
            Blow::Pause => cluster.signal(&leader, Signal::STOP)?,
            Blow::CutOff => cluster.network.isolate(&leader, cluster.network.names())?,
        }
        let first = a.answer();
        if first.is_err() {
            a = cluster.wait_for("another session", || cluster.login("host-1", "node-1", INITIATOR_A, 1))?;
        }
        insist(&cluster, &mut a, cdb::RELEASE).with_context(|| format!("{blow:?} of {leader}, {first:?}"))?;
        match b.command(0, cdb::TEST_UNIT_READY) {
            // "Reservations released" once, or all at once: what happened is not known any more.
            Ok(told) => {
                ensure!(
                    told.sense == "6/2a/04" || told.sense.starts_with("6/29/"),
                    "B was not told after {blow:?} of {leader}: {told:?}"
                );
                b.command(0, cdb::TEST_UNIT_READY)?.good()?;
            }
            Err(_) => {
                b = cluster
                    .wait_for("another session", || cluster.login("host-2", "node-2", INITIATOR_B, 2))?;
                b.become_ready(0)?;
            }
        }
        match blow {
            Blow::Kill => cluster.launch(&leader)?,
            Blow::Pause => cluster.signal(&leader, Signal::CONT)?,
            Blow::CutOff => cluster.network.heal()?,
        }
        cluster.wait_until_serving()?;
        // Both registrations and nothing else outlived it.
        let mut keys = a.read(0, &cdb::persistent_reserve_in(0), 4096)?.good()?.split_off(8);
        keys.sort_unstable();
        ensure!(keys.ends_with(&[KEY_A as u8, KEY_B as u8]) && keys.len() == 16, "keys {keys:x?}");
    }
    Ok(())
}

/// The keys that are registered for LUN 0, in rising order.
fn keys(initiator: &mut Initiator) -> anyhow::Result<Vec<u64>> {
    let data = initiator.read(0, &cdb::persistent_reserve_in(0), 4096)?.good()?;
    let mut keys: Vec<u64> = data[8..]
        .chunks_exact(8)
        .map(|key| key.iter().fold(0, |all, byte| all << 8 | u64::from(*byte)))
        .collect();
    keys.sort_unstable();
    Ok(keys)
}

#[test]
fn a_paused_leader_costs_a_reservation_time_and_not_its_outcome() -> anyhow::Result<()> {
    let mut cluster = NetCluster::start(Shape::default())?;
    let (mut a, mut b) = registered_pair(&cluster)?;
    let mut now = [KEY_A, KEY_B];
    let mut good = 0;
    for round in 0..6 {
        // Through the owner's node and through the other, before the leader is paused and after.
        let (at, paused_first) = (round % 2, round % 4 < 2);
        let host = if at == 0 { &mut a } else { &mut b };
        let leader = cluster.wait_for("a leader", || cluster.leader())?;
        let (cdb, list) = cdb::persistent_reserve_out(cdb::REGISTER, 0, now[at], now[at] + 0x10);
        if paused_first {
            cluster.signal(&leader, Signal::STOP)?;
        }
        host.send(&format!("cdb 0 {cdb} out {list}"))?;
        if !paused_first {
            cluster.signal(&leader, Signal::STOP)?;
        }
        let answer = host.answer()?;
        let when = format!("round {round}, {leader} paused first: {paused_first}");
        match answer.status {
            GOOD => {
                good += 1;
                now[at] += 0x10;
            }
            BUSY => {}
            _ => anyhow::bail!("{when}: neither GOOD nor BUSY: {answer:?}"),
        }
        // What was answered is so, while the old leader is away and when it is back.
        let mut expected = now.to_vec();
        expected.sort_unstable();
        let found = keys(&mut a)?;
        ensure!(found == expected, "{when}: {answer:?}, but keys are {found:x?}, not {expected:x?}");
        cluster.signal(&leader, Signal::CONT)?;
        cluster.wait_until_serving()?;
        let found = keys(&mut b)?;
        ensure!(found == expected, "{when}: keys are {found:x?} now that the old leader is back");
    }
    ensure!(good > 0, "no reservation was carried out while a leader was paused");
    Ok(())
}

#[test]
fn the_command_line_goes_on_while_a_controller_is_stopped() -> anyhow::Result<()> {
    let mut cluster = NetCluster::start(Shape { datanodes: 1, hosts: 1, ..Shape::default() })?;
    for (round, target) in ["leader", "first"].into_iter().enumerate() {
        let leader = cluster.wait_for("a leader", || cluster.leader())?;
        // The first is the one that the command line asks first.
        let stopped = if target == "leader" { leader } else { "ctl-1".to_owned() };
        cluster.signal(&stopped, Signal::STOP)?;
        // One try each: the command line itself goes on at another controller, and the change is made once.
        let name = format!("made-{round}");
        cluster
            .cli(&["volume", "create", &name, "--size", "16MiB"])
            .with_context(|| format!("{stopped}, the {target}, is stopped"))?;
        let shown = cluster.json(&["volume", "show", &name])?;
        ensure!(shown["name"] == name.as_str(), "{shown}");
        cluster.signal(&stopped, Signal::CONT)?;
        cluster.wait_until_serving()?;
    }
    let events = cluster.json(&["audit", "list", "--subject", "volume/"])?;
    let records = events["records"].as_array().context("records")?;
    let made = records.iter().filter(|r| r["action"] == "volume.create" && r["outcome"] == "done").count();
    ensure!(made == 2, "{made} volumes were made: {events}");
    Ok(())
}

/// Everything by which a host knows the LU, apart from what a change of owner is meant to change: the ALUA states.
fn face(initiator: &mut Initiator) -> anyhow::Result<Vec<(&'static str, Vec<u8>)>> {
    let mut face = Vec::new();
    for (what, cdb, length) in [
        ("standard INQUIRY", cdb::INQUIRY, 255),
        ("VPD 00h", "120100040000", 1024),
        ("VPD 80h", "120180040000", 1024),
        ("VPD 83h", cdb::DEVICE_IDENTIFICATION, 1024),
        ("VPD 86h", "120186040000", 1024),
        ("VPD B0h", "1201b0040000", 1024),
        ("VPD B1h", "1201b1040000", 1024),
        ("VPD B2h", "1201b2040000", 1024),
        ("READ CAPACITY(10)", "25000000000000000000", 8),
        ("READ CAPACITY(16)", cdb::READ_CAPACITY_16, 32),
        ("REPORT LUNS", cdb::REPORT_LUNS, 1024),
        ("MODE SENSE(10), all pages", "5a003f00000000040000", 1024),
        ("MODE SENSE(10), changeable", "5a007f00000000040000", 1024),
        ("REPORT SUPPORTED OPERATION CODES", "a30c00000000000020000000", 8192),
    ] {
        face.push((what, initiator.read(0, cdb, length)?.good().context(what)?));
    }
    for (what, service_action) in
        [("PR IN, READ KEYS", 0), ("PR IN, READ RESERVATION", 1), ("PR IN, READ FULL STATUS", 3)]
    {
        let cdb = cdb::persistent_reserve_in(service_action);
        face.push((what, initiator.read(0, &cdb, 4096)?.good().context(what)?));
    }
    let mut groups = initiator.read(0, cdb::REPORT_TARGET_PORT_GROUPS, 1024)?.good()?;
    // SPC-5 6.36: descriptors of 8 bytes and 4 per port; the state is in bits 0 to 3 of byte 0, the preference in bit 7, why in byte 5.
    let mut at = 4;
    while at + 8 <= groups.len() {
        groups[at] &= 0x70;
        groups[at + 5] = 0;
        at += 8 + 4 * usize::from(groups[at + 7]);
    }
    face.push(("REPORT TARGET PORT GROUPS", groups));
    Ok(face)
}

/// Fails where two faces differ.
fn same_face(before: &[(&str, Vec<u8>)], after: &[(&str, Vec<u8>)], when: &str) -> anyhow::Result<()> {
    for ((what, before), (_, after)) in before.iter().zip(after) {
        ensure!(before == after, "{when}: {what} changed from {before:02x?} to {after:02x?}");
    }
    Ok(())
}

#[test]
fn a_host_keeps_its_view_through_the_loss_of_owner_and_leader() -> anyhow::Result<()> {
    let mut cluster = NetCluster::start(Shape::default())?;
    cluster.volume_for_both("disk", 0, &["--size", "16MiB", "--node", "node-1"])?;
    // So that nothing of it is as when it was new: the write cache off, two registrations, a reservation.
    let mut a = cluster.login("host-1", "node-1", INITIATOR_A, 1)?;
    a.become_ready(0)?;
    a.write(0, "151000001800", &format!("000000000812{:036}", 0))?.good()?;
    a.reserve_out(0, cdb::REGISTER, 0, 0, KEY_A)?.good()?;
    a.reserve_out(0, cdb::RESERVE, REGISTRANTS, KEY_A, 0)?.good()?;
    let mut b = cluster.login("host-2", "node-2", INITIATOR_B, 2)?;
    b.become_ready(0)?;
    b.reserve_out(0, cdb::REGISTER, 0, 0, KEY_B)?.good()?;
    drop((a, b));
    let mut views = Vec::new();
    for node in ["node-1", "node-2"] {
        let mut host = cluster.login("host-1", node, INITIATOR_A, 1)?;
        host.become_ready(0)?;
        views.push((node, face(&mut host)?));
    }
    for (owner_too, leader_too) in [(false, true), (true, false), (true, true)] {
        let when = format!("owner lost: {owner_too}, leader lost: {leader_too}");
        let leader = cluster.wait_for("a leader", || cluster.leader())?;
        let owner = cluster.wait_for("an owner", || cluster.owner("disk"))?;
        let mut lost = Vec::new();
        if leader_too {
            lost.push(leader);
        }
        if owner_too {
            lost.push(owner);
        }
        for name in &lost {
            cluster.kill(name)?;
        }
        for name in &lost {
            cluster.launch(name)?;
        }
        cluster.wait_until_serving()?;
        for (node, before) in &views {
            let mut host = cluster.wait_for("a login", || cluster.login("host-1", node, INITIATOR_A, 1))?;
            host.become_ready(0)?;
            same_face(before, &face(&mut host)?, &format!("{when}, through {node}"))?;
        }
    }
    Ok(())
}
