//! What people change, and what the cluster remembers of it.

use std::{
    fs::{self, File},
    process::Child,
};

use anyhow::{Context, ensure};
use holdfast_tests::{
    cdb,
    cluster::{Cluster, INITIATOR_A, INITIATOR_B, holdfast},
    initiator::Initiator,
};
use rustix::process::Signal;
use serde_json::Value;

/// LUN 300 in flat space addressing, as an initiator that takes 16 bits has to spell it.
const FLAT_300: u16 = 0x4000 | 300;

/// Audit records of a subject.
fn audit(cluster: &Cluster, subject: &str) -> anyhow::Result<Vec<Value>> {
    let answer = cluster.json(&["audit", "list", "--subject", subject])?;
    Ok(answer["records"].as_array().context("records")?.clone())
}

#[test]
fn the_audit_outlives_a_restart_and_tells_refusals() -> anyhow::Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.cli(&["volume", "create", "disk", "--size", "16MiB", "--node", "node-1"])?;
    cluster.cli_refused(&["volume", "resize", "disk", "--size", "1MiB"])?;
    let before = audit(&cluster, "volume/disk")?;
    ensure!(before.len() == 2, "{before:#?}");
    let (done, refused) = (&before[0], &before[1]);
    ensure!(done["role"] == "admin" && done["action"] == "volume.create" && done["outcome"] == "done");
    ensure!(done["fields"][0] == serde_json::json!({"name": "size_bytes", "value": "16777216"}), "{done}");
    ensure!(
        refused["outcome"] == "refused" && refused["reason"].as_str().is_some_and(|r| r.contains("shrink"))
    );
    let table = cluster.cli(&["audit", "list", "--subject", "volume/disk"])?;
    ensure!(table.contains("volume.create") && table.contains("refused: volume disk has"), "{table}");
    cluster.stop()?;
    cluster.up(&[])?;
    ensure!(audit(&cluster, "volume/disk")?[..2] == before[..], "the audit changed over a restart");
    let index = done["index"].as_str().context("index")?;
    let later = cluster.json(&["audit", "list", "--after", index, "--subject", "volume/disk"])?;
    ensure!(later["records"][0] == *refused, "{later}");
    cluster.stop()
}

#[test]
fn controllers_are_listed_made_leader_and_removed() -> anyhow::Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.volume_for_both("disk", "16MiB", "node-1", 0)?;
    // The first of the endpoints that commands try: they must go past it once it is removed.
    let other = "ctl-1".to_owned();
    let made = cluster.cli(&["controller", "transfer", &other])?;
    ensure!(made.contains("leader") && cluster.leader()? == other, "{made}");
    let list = cluster.json(&["controller", "remove", &other])?;
    let left = list["members"].as_array().context("members")?;
    ensure!(left.len() == 2 && left.iter().all(|member| member["name"] != *other), "{list:#}");
    // The data goes on, and so does management.
    let mut a = Initiator::login(&cluster.portals[1], &cluster.target, INITIATOR_A, 1, None)?;
    a.become_ready(0)?;
    a.write_blocks(0, 0, 1, 7)?.good()?;
    cluster.wait_for("a change by the two others", || {
        cluster.cli(&["volume", "create", "second", "--size", "1MiB"]).map(|_| ())
    })?;
    for (arguments, expected) in [
        (&["controller", "remove", "ctl-9"][..], "ctl-9 is not a member"),
        (&["controller", "transfer", other.as_str()], "is not a member"),
        (&["controller", "add", "ctl-9", "--id", "9", "--address", "127.0.0.1:1"], "does not answer"),
        (&["controller", "add", "ctl-9", "--id", "9", "--address", "nowhere"], "ADDRESS:PORT"),
    ] {
        let said = cluster.cli_refused(arguments)?;
        ensure!(said.contains(expected), "{arguments:?}: {said}");
    }
    // It still runs, and can be added again.
    let address = cluster.controllers[usize::from(other.as_bytes()[4] - b'1')].clone();
    let id = &other[4..];
    let list = cluster.json(&["controller", "add", &other, "--id", id, "--address", &address])?;
    ensure!(list["members"].as_array().is_some_and(|members| members.len() == 3), "{list:#}");
    let told = audit(&cluster, &format!("controller/{other}"))?;
    let actions: Vec<_> = told.iter().filter_map(|record| record["action"].as_str()).collect();
    ensure!(actions.ends_with(&["controller.remove", "controller.admit", "controller.add"]), "{actions:?}");
    drop(a);
    cluster.stop()
}

#[test]
fn a_node_that_is_live_or_holds_a_volume_is_not_removed() -> anyhow::Result<()> {
    let cluster = Cluster::start()?;
    cluster.volume_for_both("disk", "16MiB", "node-1", 0)?;
    let said = cluster.cli_refused(&["node", "remove", "node-2"])?;
    ensure!(said.contains("may still hold a lease"), "{said}");
    cluster.signal("node-2", rustix::process::Signal::KILL)?;
    cluster
        .wait_for("the removal of a node that has stopped", || cluster.cli(&["node", "remove", "node-2"]))?;
    let nodes = cluster.json(&["node", "list"])?;
    ensure!(nodes["nodes"].as_array().is_some_and(|nodes| nodes.len() == 1), "{nodes:#}");
    // The other node goes on.
    let mut a = Initiator::login(&cluster.portals[0], &cluster.target, INITIATOR_A, 1, None)?;
    a.become_ready(0)?;
    a.write_blocks(0, 0, 1, 7)?.good()?;
    let told = audit(&cluster, "node/node-2")?;
    ensure!(told.iter().any(|r| r["action"] == "node.remove" && r["outcome"] == "done"), "{told:#?}");
    Ok(())
}

#[test]
fn the_deletion_of_a_volume_is_a_job_that_can_be_waited_for() -> anyhow::Result<()> {
    let cluster = Cluster::start_with(&["--controllers", "1", "--datanodes", "1"])?;
    cluster.cli(&["volume", "create", "disk", "--size", "16MiB"])?;
    cluster.cli(&["volume", "delete", "disk"])?;
    let listed = cluster.json(&["job", "list", "--kind", "delete-volume", "--subject", "volume/disk"])?;
    let jobs = listed["jobs"].as_array().context("jobs")?;
    ensure!(jobs.len() == 1 && jobs[0]["status"]["total"] == "1", "{listed:#}");
    let id = jobs[0]["id"].as_str().context("id")?;
    let done = cluster.json(&["job", "wait", id])?;
    ensure!(done["status"]["state"] == "done" && done["status"]["done"] == "1", "{done:#}");
    let said = cluster.cli_refused(&["job", "cancel", id])?;
    ensure!(said.contains("has ended already: it is done"), "{said}");
    let said = cluster.cli_refused(&["job", "list", "--kind", "laundry"])?;
    ensure!(said.contains("kind: 'laundry' is none of delete-volume,"), "{said}");
    Ok(())
}

/// LUNs of a REPORT LUNS answer, as they stand on the wire.
fn reported(initiator: &mut Initiator) -> anyhow::Result<Vec<u64>> {
    let data = initiator.read(0, cdb::REPORT_LUNS, 1024)?.good()?;
    let list = data.get(8..).context("a header")?;
    Ok(list.chunks_exact(8).filter_map(|lun| lun.try_into().ok().map(u64::from_be_bytes)).collect())
}

#[test]
fn maps_of_many_hosts_change_as_one() -> anyhow::Result<()> {
    let cluster = Cluster::start_with(&["--controllers", "1"])?;
    for name in ["db1", "db2", "db3"] {
        cluster.cli(&["volume", "create", name, "--size", "16MiB", "--node", "node-1"])?;
    }
    cluster.cli(&["host", "create", "a", "--initiator", INITIATOR_A])?;
    cluster.cli(&["host", "create", "b", "--initiator", INITIATOR_B])?;
    cluster.cli(&["host-group", "create", "both", "--host", "a", "b"])?;
    let file = cluster.write_file(
        "maps.yaml",
        "mappings:\n- {volume: db1, group: both, lun: 300}\n- volume: db2\n  host: a\n  lun: 1\n",
    )?;
    let apply = ["map", "apply", "-f", &file];
    let shown = cluster.cli(&["map", "apply", "-f", &file, "--dry-run"])?;
    ensure!(
        shown.contains("+ db1 to group both: LUN 300") && shown.contains("2 would be created"),
        "{shown}"
    );
    let none = cluster.json(&["map", "list"])?;
    ensure!(none["mappings"].as_array().is_some_and(Vec::is_empty), "{none:#}");
    cluster.cli(&apply)?;
    // Each through another node; LUN 0, which nothing is mapped to, enumerates; 300 stands in flat space addressing.
    let mut a = Initiator::login(&cluster.portals[0], &cluster.target, INITIATOR_A, 1, None)?;
    let mut b = Initiator::login(&cluster.portals[1], &cluster.target, INITIATOR_B, 1, None)?;
    ensure!(reported(&mut a)? == [1 << 48, 0x412c << 48]);
    ensure!(reported(&mut b)? == [0x412c << 48]);
    a.become_ready(1)?;
    a.become_ready(FLAT_300)?;
    b.become_ready(FLAT_300)?;
    // Two volumes change places for host a; b has no part in it, and hears nothing.
    let file = cluster.write_file(
        "maps.yaml",
        "mappings:\n- {volume: db2, host: a, lun: 2}\n- {volume: db3, host: a, lun: 1, read_only: true}\n",
    )?;
    cluster.cli(&["map", "apply", "-f", &file])?;
    cluster.wait_for("the new map", || {
        let luns = reported(&mut a)?;
        ensure!(luns == [1 << 48, 2 << 48, 0x412c << 48], "{luns:x?}");
        Ok(())
    })?;
    b.command(FLAT_300, cdb::TEST_UNIT_READY)?.good()?;
    // All or nothing, and each fault with its line.
    let file = cluster.write_file(
        "maps.yaml",
        "mappings:\n- {volume: db3, host: b, lun: 300}\n- {volume: db9, host: b}\n- {volume: db3, host: a, lun: 20000}\n",
    )?;
    let said = cluster.cli_refused_with_lines(&["map", "apply", "-f", &file])?;
    ensure!(said.contains("maps.yaml:3: volume: volume db9 does not exist"), "{said}");
    ensure!(said.contains("maps.yaml:4: lun: 20000 is not between 0 and 16383"), "{said}");
    let file = cluster.write_file("maps.yaml", "mappings:\n- {volume: db3, host: b, lun: 300}\n")?;
    let said = cluster.cli_refused_with_lines(&["map", "apply", "-f", &file])?;
    ensure!(said.contains("maps.yaml:2: lun: LUN 300 of host b would be volume"), "{said}");
    // What is exported makes the same maps.
    let exported = cluster.cli(&["map", "export"])?;
    let file = cluster.write_file("maps.yaml", &exported)?;
    let shown = cluster.cli(&["map", "apply", "-f", &file, "--dry-run", "--prune"])?;
    ensure!(shown.contains("0 would be created, 0 would be changed, 0 would be removed"), "{shown}");
    // A host that leaves the group loses its volumes in the same step.
    cluster.cli(&["host-group", "update", "both", "--remove-host", "b"])?;
    cluster.wait_for("the empty map", || {
        let luns = reported(&mut b)?;
        ensure!(luns.is_empty() || luns == [0], "{luns:x?}");
        Ok(())
    })?;
    Ok(())
}

#[test]
fn sessions_end_when_their_initiator_leaves_its_host() -> anyhow::Result<()> {
    let cluster = Cluster::start_with(&["--controllers", "1", "--datanodes", "1"])?;
    cluster.cli(&["volume", "create", "disk", "--size", "16MiB"])?;
    let said = cluster.cli_refused(&["host", "create", "a", "--initiator", "iqn.2026-11.example:*"])?;
    ensure!(said.contains("is a wildcard") && said.contains("host wildcards allow"), "{said}");
    cluster.cli(&["host", "wildcards", "allow"])?;
    cluster.cli(&["host", "create", "a", "--initiator", "iqn.2026-11.example:*"])?;
    cluster.cli(&["map", "create", "disk", "a"])?;
    let login = || Initiator::login(&cluster.portals[0], &cluster.target, INITIATOR_A, 1, None);
    let mut session = login()?;
    session.become_ready(0)?;
    // The exact name goes before the wildcard: the session is of another host now, and ends.
    cluster.cli(&["host", "create", "b", "--initiator", INITIATOR_A])?;
    cluster.wait_for("the end of the session", || {
        ensure!(session.command(0, cdb::TEST_UNIT_READY).is_err(), "it goes on");
        Ok(())
    })?;
    let mut session = login()?;
    ensure!(reported(&mut session)?.is_empty() || reported(&mut session)? == [0]);
    cluster.cli(&[
        "host",
        "update",
        "b",
        "--add-initiator",
        "50:01:43:80:12:34:56:7A",
        "--remove-initiator",
        INITIATOR_A,
    ])?;
    // It belongs to the wildcard's host again.
    cluster.wait_for("the disk", || {
        let mut session = login()?;
        session.become_ready(0)
    })?;
    let host = cluster.json(&["host", "show", "b"])?;
    ensure!(host["spec"]["initiators"] == serde_json::json!(["fc:500143801234567a"]), "{host:#}");
    let found = cluster.json(&["host", "list", "--initiator", INITIATOR_A])?;
    ensure!(found["hosts"][0]["name"] == "a", "{found:#}");
    let said = cluster.cli_refused(&["host", "wildcards", "forbid"])?;
    ensure!(said.contains("host a has wildcards"), "{said}");
    Ok(())
}

#[test]
fn what_every_path_has_is_asked_and_a_silent_node_is_named() -> anyhow::Result<()> {
    let cluster = Cluster::start_with(&["--controllers", "1"])?;
    cluster.volume_for_both("disk", "16MiB", "node-1", 0)?;
    let mut a = Initiator::login(&cluster.portals[0], &cluster.target, INITIATOR_A, 1, None)?;
    let mut b = Initiator::login(&cluster.portals[1], &cluster.target, INITIATOR_B, 2, None)?;
    a.become_ready(0)?;
    // B has not heard of its birth yet.
    let listed = cluster.json(&["session", "list", "--volume", "disk"])?;
    let sessions = listed["sessions"].as_array().context("sessions")?;
    ensure!(sessions.len() == 2, "{listed:#}");
    ensure!(
        sessions[0]["node"] == "node-1" && sessions[0]["luns"][0]["unit_attentions"] == serde_json::json!([])
    );
    ensure!(sessions[1]["luns"][0]["unit_attentions"] == serde_json::json!(["29/00"]), "{listed:#}");
    let pending = cluster.cli(&["unit-attention", "list"])?;
    ensure!(
        pending.contains(INITIATOR_B) && pending.contains("29/00") && !pending.contains(INITIATOR_A),
        "{pending}"
    );
    b.become_ready(0)?;
    // A reserves for registrants only; B is kept out, and it is told why.
    a.reserve_out(0, cdb::REGISTER, 0, 0, 0xa1)?.good()?;
    a.reserve_out(0, cdb::RESERVE, cdb::WRITE_EXCLUSIVE_REGISTRANTS_ONLY, 0xa1, 0)?.good()?;
    let shown = cluster.json(&["reservation", "show", "disk"])?;
    ensure!(
        shown["reserved"]["action"] == "RESERVE"
            && shown["reserved"]["initiator"] == shown["registrations"][0]["initiator"],
        "{shown:#}"
    );
    ensure!(shown["sessions"].as_array().is_some_and(|all| all.len() == 2), "{shown:#}");
    let host_b = sessions[1]["host"].as_str().context("host")?;
    let explain = |host: &str, opcode: &str| {
        cluster.json(&["reservation", "explain", "disk", "--host", host, "--opcode", opcode])
    };
    let write = explain(host_b, "write")?;
    ensure!(
        write["paths"]
            .as_array()
            .is_some_and(|paths| paths.len() == 2 && paths.iter().all(|p| p["conflict"] == true)),
        "{write:#}"
    );
    ensure!(
        write["command"] == "WRITE(16)" && write["holders"][0]["origin"]["action"] == "REGISTER",
        "{write:#}"
    );
    ensure!(
        write["paths"][0]["reason"]
            .as_str()
            .is_some_and(|r| r.contains("not registered") && r.contains("(RESERVE)")),
        "{write:#}"
    );
    b.write_blocks(0, 0, 1, 7)?.conflict()?;
    ensure!(explain(host_b, "read")?["paths"][0]["conflict"] == false);
    b.read_blocks(0, 0, 1)?.good()?;
    let host_a = sessions[0]["host"].as_str().context("host")?;
    ensure!(explain(host_a, "0x2a")?["paths"][0]["conflict"] == false);
    let said =
        cluster.cli_refused(&["reservation", "explain", "disk", "--host", host_a, "--opcode", "0x5f"])?;
    ensure!(said.contains("service_action: one of 0x00"), "{said}");
    // An administrator takes the registration away: the reservation goes with it, A is told, B may write.
    let initiator = shown["registrations"][0]["initiator"].as_str().context("initiator")?;
    let ports = [&sessions[0], &sessions[1]].map(|session| session["relative_port"].to_string());
    let cleared =
        cluster.json(&["reservation", "clear", "disk", "--initiator", initiator, "--rtpi", &ports[0]])?;
    ensure!(cleared["type"] == "none" && cleared["registrations"] == serde_json::json!([]), "{cleared:#}");
    a.command(0, cdb::TEST_UNIT_READY)?.check("6/2a/05")?;
    b.write_blocks(0, 0, 1, 7)?.good()?;
    let told = audit(&cluster, "volume/disk")?;
    ensure!(told.iter().any(|r| r["action"] == "reservation.clear" && r["role"] == "admin"), "{told:#?}");
    let said = cluster.cli_refused(&["reservation", "clear", "disk", "--all"])?;
    ensure!(said.contains("nobody is registered"), "{said}");
    // A session is ended, and that is in the audit.
    let port = sessions[1]["initiator"].as_str().context("initiator")?;
    cluster.cli(&["session", "end", port, "--rtpi", &ports[1]])?;
    let said = cluster.cli_refused(&[
        "session",
        "end",
        "iqn.2026-11.example:nobody,i,0x000000000000",
        "--rtpi",
        &ports[1],
    ])?;
    ensure!(said.contains("has no session of"), "{said}");
    ensure!(audit(&cluster, "session/")?.iter().any(|r| r["action"] == "session.end"));
    // What a stopped node has is not known, and said to be so.
    cluster.signal("node-2", rustix::process::Signal::STOP)?;
    let text = cluster.cli(&["session", "list"])?;
    cluster.signal("node-2", rustix::process::Signal::CONT)?;
    ensure!(text.contains("not known: the sessions of node node-2") && text.contains(INITIATOR_A), "{text}");
    Ok(())
}

/// A process that ends with its test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_watch_goes_on_after_the_death_of_its_leader_and_from_where_another_ended() -> anyhow::Result<()> {
    let cluster = Cluster::start()?;
    let folder = cluster.folder().to_str().context("folder")?.to_owned();
    let shown = cluster.folder().join("shown");
    let command = ["--dir", &folder, "watch", "volumes"];
    let _watch = Process(holdfast(&command).stdout(File::create(&shown)?).spawn()?);
    let told = |what: &str| {
        cluster.wait_for(what, || {
            let text = fs::read_to_string(&shown)?;
            let line = text.lines().find(|line| line.contains(what)).context(text.clone())?;
            let revision = line.split_whitespace().next().context("a revision")?;
            Ok(revision.to_owned())
        })
    };
    cluster.cli(&["volume", "create", "disk", "--size", "16MiB"])?;
    told("is   disk")?;
    let before = cluster.leader()?;
    cluster.signal(&before, Signal::KILL)?;
    cluster.cli(&["volume", "resize", "disk", "--size", "24MiB"])?;
    let revision = told("24MiB")?;
    cluster.cli(&["volume", "delete", "disk"])?;
    told("gone disk")?;
    // Another watch, from there: the deletion is told, and nothing from before.
    let later = cluster.folder().join("later");
    let command = ["--dir", &folder, "watch", "volumes", "--after", &revision];
    let _later = Process(holdfast(&command).stdout(File::create(&later)?).spawn()?);
    let text = cluster.wait_for("the deletion", || {
        let text = fs::read_to_string(&later)?;
        ensure!(text.contains("gone disk"), "{text}");
        Ok(text)
    })?;
    ensure!(!text.contains("16MiB"), "{text}");
    Ok(())
}

#[test]
fn access_is_given_and_taken_on_every_path_before_the_command_answers() -> anyhow::Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.volume_for_both("disk", "16MiB", "node-1", 0)?;
    cluster.cli(&["volume", "create", "second", "--size", "1MiB", "--node", "node-1"])?;
    let paths = cluster.portals.clone();
    let mut sessions = Vec::new();
    for (isid, portal) in paths.iter().enumerate() {
        let mut session = Initiator::login(portal, &cluster.target, INITIATOR_A, isid as u16, None)?;
        session.become_ready(0)?;
        sessions.push(session);
    }
    // The last word on LUN 5, behind Unit Attentions.
    let last_word = |session: &mut Initiator| -> anyhow::Result<String> {
        for _ in 0..8 {
            let answer = session.command(5, cdb::TEST_UNIT_READY)?;
            if !answer.sense.starts_with("6/") {
                return Ok(answer.sense);
            }
        }
        anyhow::bail!("Unit Attentions without an end")
    };
    for round in 0..20 {
        cluster.cli(&["map", "create", "second", "a", "--lun", "5"])?;
        for session in &mut sessions {
            let sense = last_word(session)?;
            ensure!(sense != "5/25/00", "round {round}: a path does not have what was mapped");
        }
        cluster.cli(&["map", "delete", "second", "a"])?;
        for session in &mut sessions {
            let sense = last_word(session)?;
            ensure!(sense == "5/25/00", "round {round}: a path has what was taken away: {sense:?}");
        }
    }
    cluster.stop()
}
