//! Scenarios as text: each command stands on a line of its own, what it did follows in indented lines.

use std::fmt::Write as _;

use holdfast_proto::state as records;

use super::build::*;
use crate::state::{Applied, Body, Outcome};

#[test]
fn reservations() {
    run(include_str!("scenarios/reservations.txt"));
}

#[test]
fn restart() {
    run(include_str!("scenarios/restart.txt"));
}

/// Carries the commands out and compares the whole text.
fn run(expected: &str) {
    let mut cluster = Cluster::new();
    let mut proposals = 0;
    let mut got = String::new();
    for line in expected.lines() {
        if line.starts_with("  ") {
            continue;
        }
        writeln!(got, "{line}").unwrap();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["owner", name] = words[..] {
            let volume = cluster.volume(name);
            let owner = volume.config.owner().unwrap();
            let node = cluster.state.node_name(u32::from(owner.node.get()));
            writeln!(got, "  {node} incarnation {} epoch {}", owner.incarnation, volume.config.epoch())
                .unwrap();
            continue;
        }
        proposals += 1;
        let body = command(&cluster, &words, proposals);
        let index = cluster.index + 1;
        let applied = cluster.apply(body);
        describe(&cluster, &applied, index, &mut got);
    }
    assert_eq!(got.trim_end(), expected.trim_end(), "\n--- what happened:\n{got}");
}

fn command(cluster: &Cluster, words: &[&str], proposal: u8) -> Body {
    match words {
        ["volume", name] => create_volume(1, name),
        ["host", name, initiator] => create_host(name, &[initiator]),
        ["map", volume, host] => map(volume, host, None),
        ["unmap", volume, host] => unmap(volume, host),
        ["join", node, "process", n] => join(node_number(node), n.parse().unwrap()),
        ["live", node, "incarnation", n] => live(node_number(node), n.parse().unwrap()),
        ["lost", node, "incarnation", n] => lost(node_number(node), n.parse().unwrap()),
        ["change-owner", _, "epoch", number, node, "incarnation", n] => {
            change_owner(1, epoch(number.parse().unwrap()), node_number(node), n.parse().unwrap())
        }
        ["pr", action, "nexus", n, rest @ ..] => {
            let n: u8 = n.parse().unwrap();
            let field = |name: &str| {
                let at = rest.iter().position(|word| *word == name)?;
                let value = rest.get(at + 1)?;
                value
                    .strip_prefix("0x")
                    .map_or_else(|| value.parse().ok(), |hex| u64::from_str_radix(hex, 16).ok())
            };
            let key = field("key").unwrap();
            let kind = field("type").unwrap_or(0) as u8;
            let out = match *action {
                "register" => PrOut::register(key),
                "reserve" => PrOut::reserve(key, kind),
                "release" => PrOut { action: 2, kind, key, action_key: 0 },
                "preempt-and-abort" => PrOut { action: 5, kind, key, action_key: field("victim").unwrap() },
                other => panic!("no action {other}"),
            };
            let version = cluster.volume("db1").reservation_version;
            Body::ProposeReservation(records::ProposeReservation {
                nexus: Some(nexus(n, u32::from(n))),
                ..propose(proposal, version, n, &out)
            })
        }
        other => panic!("no command {other:?}"),
    }
}

fn node_number(name: &str) -> u32 {
    name.strip_prefix("node-").unwrap().parse().unwrap()
}

fn describe(cluster: &Cluster, applied: &Applied, index: u64, out: &mut String) {
    match &applied.response {
        Err(refusal) => writeln!(out, "  refused: {refusal}").unwrap(),
        Ok(Outcome::Proposal(outcome)) => {
            let status = match outcome.status {
                0x00 if outcome.version == index => "GOOD, new version",
                0x00 => "GOOD",
                0x02 => "CHECK CONDITION",
                0x18 => "RESERVATION CONFLICT",
                other => panic!("status {other}"),
            };
            writeln!(out, "  {status}").unwrap();
        }
        Ok(_) => {}
    }
    let port = |n: &records::NexusName| format!("nexus {}", n.relative_port);
    for told in &applied.commit.unit_attentions {
        let whom = match &told.only {
            Some(only) => port(only),
            None if told.host.is_empty() => "everyone".to_owned(),
            None => format!("host {}", told.host),
        };
        let whose = cluster.state.volumes().find(|v| v.id.0[..] == told.volume_id[..]);
        let on = whose.map_or(String::new(), |v| format!(" on {}", v.name));
        writeln!(out, "  UA {:02X}/{:02X} to {whom}{on}", told.additional >> 8, told.additional & 0xff)
            .unwrap();
    }
    for aborts in &applied.commit.aborts {
        let whose: Vec<String> = aborts.nexuses.iter().map(port).collect();
        writeln!(out, "  abort tasks of {} on db1", whose.join(", ")).unwrap();
    }
    for event in &applied.events {
        writeln!(out, "  event {}: {}", event.kind, event.message).unwrap();
    }
}
