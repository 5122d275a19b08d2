//! Rules of hosts, host groups, and changes of many mappings.

use holdfast_proto::state::{self as records, change};
use holdfast_scsi::transport_id::TransportId;

use super::build::*;
use crate::state::{Applied, Body, Outcome, Refusal, StateMachine, is_node_visible, mapping::Target};

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|name| (*name).to_owned()).collect()
}

fn update(name: &str, add: &[&str], remove: &[&str]) -> Body {
    Body::UpdateHost(records::UpdateHost {
        name: name.to_owned(),
        add_initiators: names(add),
        remove_initiators: names(remove),
        ..Default::default()
    })
}

fn wildcards(allowed: bool) -> Body {
    Body::SetWildcardInitiators(records::SetWildcardInitiators { request: None, allowed })
}

fn group(name: &str, hosts: &[&str]) -> Body {
    let (name, hosts) = (name.to_owned(), names(hosts));
    Body::CreateHostGroup(records::CreateHostGroup { request: None, name, hosts })
}

fn members(name: &str, add: &[&str], remove: &[&str]) -> Body {
    Body::UpdateHostGroup(records::UpdateHostGroup {
        request: None,
        name: name.to_owned(),
        add_hosts: names(add),
        remove_hosts: names(remove),
    })
}

/// "db1 host h 3", "db1 group g", "db1 host h -" (taken away).
fn edit(text: &str) -> records::MappingEdit {
    let words: Vec<&str> = text.split(' ').collect();
    let mut edit = records::MappingEdit { volume: words[0].to_owned(), ..Default::default() };
    match words[1] {
        "host" => edit.host = words[2].to_owned(),
        _ => edit.group = words[2].to_owned(),
    }
    match words.get(3) {
        Some(&"-") => edit.remove = true,
        Some(lun) => edit.lun = Some(lun.parse().unwrap()),
        None => {}
    }
    edit
}

fn apply(edits: &[&str]) -> Body {
    let edits = edits.iter().map(|text| edit(text)).collect();
    Body::ApplyMappings(records::ApplyMappings { request: None, edits, prune: false })
}

fn violations(cluster: &mut Cluster, edits: &[&str]) -> Vec<String> {
    match cluster.refused(apply(edits)) {
        Refusal::Several(all) => all.iter().map(ToString::to_string).collect(),
        other => panic!("{other:?}"),
    }
}

/// "h 0=db1 3=db2".
fn map_of(cluster: &Cluster, host: &str) -> String {
    let luns: Vec<String> = cluster
        .state
        .mappings_of_host(host)
        .map(|(lun, m)| format!("{lun}={}", cluster.state.volume_name(m.volume)))
        .collect();
    luns.join(" ")
}

/// Hosts that are told 3F/0E.
fn told(applied: &Applied) -> Vec<&str> {
    assert!(applied.commit.unit_attentions.iter().all(|ua| ua.additional == 0x3f0e));
    applied.commit.unit_attentions.iter().map(|ua| ua.host.as_str()).collect()
}

/// Two volumes, hosts h1, h2, h3.
fn world() -> Cluster {
    let mut cluster = Cluster::new();
    for (id, name) in [(1, "db1"), (2, "db2"), (3, "db3")] {
        cluster.done(create_volume(id, name));
    }
    for n in 1..=3 {
        cluster.done(create_host(&format!("h{n}"), &[&format!("iqn.2026-01.x:host-{n}")]));
    }
    cluster
}

#[test]
fn initiators_of_every_kind_are_kept_in_their_normal_form() {
    let mut cluster = Cluster::new();
    let given = ["50:01:43:80:12:34:56:7A", "srp-guid:0002:c903:000a:0b0c", "IQN.2026-01.X:A"];
    let Ok(Outcome::Host(host)) = cluster.ask(create_host("h", &given)) else { panic!() };
    assert_eq!(host.initiators, ["fc:500143801234567a", "srp-guid:0002c903000a0b0c", "iqn.2026-01.x:a"]);
    let fc = TransportId::fibre_channel([0x50, 0x01, 0x43, 0x80, 0x12, 0x34, 0x56, 0x7a]);
    assert_eq!(cluster.state.host_of_initiator(&fc), Some("h"));
    let twice = cluster.refused(create_host("i", &["fc:5001438012345670", "50:01:43:80:12:34:56:70"]));
    assert_eq!(twice.to_string(), "spec.initiators: 'fc:5001438012345670' is given twice");
    let taken = cluster.refused(create_host("i", &["wwpn.500143801234567a"]));
    assert_eq!(
        taken.to_string(),
        "initiator fc:500143801234567a belongs to host h; an initiator belongs to one host only"
    );
    let wrong = cluster.refused(create_host("i", &["eui.12"])).to_string();
    assert_eq!(wrong, "spec.initiators: 'eui.12' has 2 hexadecimal digits; 16 are needed");
}

#[test]
fn wildcards_are_opted_in_and_go_behind_exact_names() {
    let mut cluster = Cluster::new();
    let all = create_host("all", &["iqn.2026-01.x:*"]);
    let refusal = cluster.refused(all.clone());
    assert!(matches!(refusal, Refusal::Invalid { field: "spec.initiators", .. }), "{refusal}");
    cluster.done(wildcards(true));
    cluster.done(all);
    cluster.done(create_host("one", &["iqn.2026-01.x:a"]));
    assert_eq!(cluster.state.host_of_initiator(&iscsi("iqn.2026-01.x:a")), Some("one"));
    assert_eq!(cluster.state.host_of_initiator(&iscsi("iqn.2026-01.x:b")), Some("all"));
    let refusal = cluster.refused(wildcards(false)).to_string();
    assert_eq!(refusal, "host all has wildcards; give it names of initiators instead first");
    cluster.done(update("all", &["iqn.2026-01.x:b"], &["iqn.2026-01.x:*"]));
    cluster.done(wildcards(false));
    assert_eq!(cluster.state.host_of_initiator(&iscsi("iqn.2026-01.x:c")), None);
}

#[test]
fn host_changes_its_initiators_and_chap_whole_or_not_at_all() {
    let mut cluster = world();
    let Ok(Outcome::Host(host)) =
        cluster.ask(update("h1", &["eui.0123456789abcdef"], &["IQN.2026-01.x:host-1"]))
    else {
        panic!()
    };
    assert_eq!(host.initiators, ["eui.0123456789abcdef"]);
    assert_eq!(cluster.state.host_of_initiator(&iscsi("iqn.2026-01.x:host-1")), None);
    for (body, expected) in [
        (update("h1", &["iqn.2026-01.x:host-2"], &[]), "belongs to host h2"),
        (update("h1", &[], &["iqn.2026-01.x:host-2"]), "remove_initiators: host h1 has no initiator"),
        (update("h1", &[], &["eui.0123456789abcdef"]), "at least one initiator is needed"),
        (update("h1", &["eui.0123456789abcdef"], &["eui.0123456789abcdef"]), "is to be removed as well"),
        (update("h9", &[], &[]), "host h9 does not exist"),
    ] {
        let text = cluster.refused(body).to_string();
        assert!(text.contains(expected), "{text}");
    }
    // Given again, nothing changes, and nobody hears of it.
    assert!(cluster.done(update("h1", &["EUI.0123456789abcdef"], &[])).commit.changes.is_empty());
    let chap = records::Chap { user: "u".to_owned(), sealed_secret: vec![1], ..Default::default() };
    let set = records::UpdateHost { name: "h1".to_owned(), chap: Some(chap), ..Default::default() };
    cluster.done(Body::UpdateHost(set));
    assert!(cluster.state.host("h1").unwrap().chap.is_some());
    let clear = records::UpdateHost { name: "h1".to_owned(), clear_chap: true, ..Default::default() };
    cluster.done(Body::UpdateHost(clear));
    assert!(cluster.state.host("h1").unwrap().chap.is_none());
}

#[test]
fn many_mappings_change_as_one_and_only_those_concerned_are_told() {
    let mut cluster = world();
    let applied = cluster.done(apply(&["db1 host h1 0", "db2 host h1 300", "db3 host h2"]));
    assert_eq!(told(&applied), ["h1", "h2"]);
    assert_eq!(
        (map_of(&cluster, "h1").as_str(), map_of(&cluster, "h2").as_str()),
        ("0=db1 300=db2", "0=db3")
    );
    // Two volumes change places; a third goes; what stays stays, and its host hears nothing.
    let applied = cluster.done(apply(&["db1 host h1 300", "db2 host h1 0", "db3 host h2 0"]));
    assert_eq!(told(&applied), ["h1"]);
    assert_eq!(map_of(&cluster, "h1"), "0=db2 300=db1");
    // A record that frees a LUN stands before the one that takes it.
    let visible: Vec<_> = applied.commit.changes.iter().filter(|c| is_node_visible(c)).collect();
    let frees = |c: &&&records::Change| matches!(c.change, Some(change::Change::RemovedMapping(_)));
    assert_eq!(visible.iter().take_while(frees).count(), 2);
    assert_eq!(visible.len(), 4);
    let Ok(Outcome::Mappings(counts, differences)) = applied.response else { panic!() };
    assert_eq!((counts.created, counts.changed, counts.removed), (0, 2, 0));
    assert_eq!(differences[0].target, Target::Host("h1".to_owned()));
    // Nothing to do is nothing done.
    assert!(cluster.done(apply(&["db1 host h1", "db3 host h2"])).commit.changes.is_empty());
}

#[test]
fn each_fault_is_named_with_its_field_and_nothing_is_done() {
    let mut cluster = world();
    cluster.done(apply(&["db1 host h1 0"]));
    assert_eq!(
        violations(
            &mut cluster,
            &[
                "db2 host h1 5",
                "db9 host h1",
                "db2 host h9",
                "db3 host h1 16384",
                "db3 host h2 -",
                "db2 host h1 6"
            ]
        ),
        [
            "edits[1].volume: volume db9 does not exist",
            "edits[2].host: host h9 does not exist",
            "edits[3].lun: 16384 is not between 0 and 16383",
            "edits[4].volume: volume db3 is not mapped to host h2",
            "edits[5].volume: volume db2 and host h1 are named twice",
        ]
    );
    assert_eq!(
        violations(&mut cluster, &["db2 host h1 0"]),
        ["edits[0].lun: LUN 0 of host h1 is volume db1; choose another or none"]
    );
    assert_eq!(map_of(&cluster, "h1"), "0=db1");
}

#[test]
fn pruning_takes_what_the_request_does_not_name() {
    let mut cluster = world();
    cluster.done(apply(&["db1 host h1 0", "db2 host h1 1", "db1 host h2 0"]));
    let edits = vec![edit("db2 host h1")];
    cluster.done(Body::ApplyMappings(records::ApplyMappings { request: None, edits, prune: true }));
    assert_eq!((map_of(&cluster, "h1").as_str(), map_of(&cluster, "h2").as_str()), ("1=db2", "0=db1"));
}

#[test]
fn members_of_a_group_see_its_volumes_at_the_same_luns() {
    let mut cluster = world();
    cluster.done(map("db3", "h1", Some(0)));
    cluster.done(group("g", &["h1", "h2"]));
    // The lowest that is free on each of them.
    let applied = cluster.done(apply(&["db1 group g"]));
    assert_eq!(told(&applied), ["h1", "h2"]);
    assert_eq!((map_of(&cluster, "h1").as_str(), map_of(&cluster, "h2").as_str()), ("0=db3 1=db1", "1=db1"));
    let applied = cluster.done(members("g", &["h3"], &["h2"]));
    assert_eq!(told(&applied), ["h2", "h3"]);
    assert_eq!((map_of(&cluster, "h2").as_str(), map_of(&cluster, "h3").as_str()), ("", "1=db1"));
    assert_eq!(StateMachine::from_changes(cluster.state.to_changes()), Ok(cluster.state.clone()));
    // A host's own mapping gets out of the way of none of them.
    cluster.done(apply(&["db2 host h2 1"]));
    let Refusal::Several(all) = cluster.refused(members("g", &["h2"], &[])) else { panic!() };
    let texts: Vec<String> = all.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        ["hosts: LUN 1 of host h2 would be volume db2 by itself and volume db1 by host group g"]
    );
    assert_eq!(
        violations(&mut cluster, &["db2 group g 7", "db2 host h1 8"]),
        ["edits[0].lun: host h1 would see volume db2 twice: as LUN 8 by itself and as LUN 7 by host group g"]
    );
    assert_eq!(
        cluster.refused(unmap("db1", "h1")).to_string(),
        "volume db1 is mapped to host h1 by host group g; unmap it from the group"
    );
    assert_eq!(
        cluster.refused(map("db1", "h1", None)).to_string(),
        "mapping of volume db1 to host h1 (LUN 1) exists already"
    );
    for (body, expected) in [
        (delete_host("h1"), "host h1 is in host group g; remove it from the group first"),
        (delete_volume("db1"), "volume db1 is mapped to host h1 as LUN 1; delete the mapping first"),
        (members("g", &[], &["h2"]), "remove_hosts: host h2 is not in host group g"),
    ] {
        assert_eq!(cluster.refused(body).to_string(), expected);
    }
    let applied = cluster.done(apply(&["db1 group g -"]));
    assert_eq!(told(&applied), ["h1", "h3"]);
    let delete = records::DeleteHostGroup { request: None, name: "g".to_owned() };
    cluster.done(Body::DeleteHostGroup(delete));
    cluster.done(unmap("db3", "h1"));
    cluster.done(delete_host("h1"));
}

#[test]
fn group_without_hosts_keeps_its_volumes_from_deletion() {
    let mut cluster = world();
    cluster.done(group("g", &[]));
    cluster.done(apply(&["db1 group g 4"]));
    assert_eq!(
        cluster.refused(delete_volume("db1")).to_string(),
        "volume db1 is mapped to host group g as LUN 4; delete the mapping first"
    );
    let delete = records::DeleteHostGroup { request: None, name: "g".to_owned() };
    assert!(cluster.refused(Body::DeleteHostGroup(delete)).to_string().contains("as LUN 4"));
    assert_eq!(told(&cluster.done(members("g", &["h1"], &[]))), ["h1"]);
    assert_eq!(map_of(&cluster, "h1"), "4=db1");
}
