//! Which volumes go to pools of which kind.

use holdfast_proto::state::{self as records, PoolKind};

use super::build::*;
use crate::state::placement::{NewVolume, Wish};
use crate::state::{Body, StateMachine};

/// Both nodes with a pool of each kind; what keeps nothing has the most room.
fn cluster() -> Cluster {
    let mut cluster = Cluster::new();
    let pool = |name: &str, kind: PoolKind, gibibytes: u64| records::Pool {
        name: name.to_owned(),
        capacity_bytes: gibibytes << 30,
        free_bytes: gibibytes << 30,
        kind: kind.into(),
    };
    for number in [1, 2] {
        let pools = vec![
            pool("default", PoolKind::File, 2),
            pool("fast", PoolKind::Block, 1),
            pool("ram", PoolKind::Memory, 3),
            pool("nothing", PoolKind::Null, 4),
        ];
        cluster.done(Body::ReportPools(records::ReportPools { number, incarnation: 1, pools }));
    }
    cluster
}

fn chosen(state: &StateMachine, size_bytes: u64, volatile: bool, pool: &str) -> Result<String, String> {
    let wish = Wish { node: "node-1".to_owned(), pool: pool.to_owned() };
    let places = state.places(&NewVolume { size_bytes, copies: 1, volatile, checksums: false }, &[wish])?;
    Ok(places[0].pool.clone())
}

fn volume_in(pool: &str, volatile: bool) -> Body {
    Body::CreateVolume(records::CreateVolume {
        pool: pool.to_owned(),
        volatile,
        ..volume_of(1, "db1", 1, 1 << 20)
    })
}

#[test]
fn pools_that_keep_nothing_are_never_chosen_for_what_must_be_kept() {
    let cluster = cluster();
    let chosen = |size, volatile, pool| chosen(&cluster.state, size, volatile, pool);
    assert_eq!(chosen(1 << 20, false, "").unwrap(), "default", "the most room among those that keep");
    assert_eq!(chosen(1 << 20, false, "fast").unwrap(), "fast");
    assert_eq!(chosen(1 << 20, true, "").unwrap(), "ram");
    assert_eq!(chosen(1 << 20, true, "default").unwrap(), "default");
    assert_eq!(chosen(1 << 20, true, "nothing").unwrap(), "nothing");
    assert!(chosen(1 << 20, false, "ram").unwrap_err().contains("is in memory"));
    assert!(chosen(1 << 20, false, "nothing").unwrap_err().contains("keeps nothing"));
    assert!(chosen(3 << 30, false, "").unwrap_err().contains("bytes free"));
}

#[test]
fn checksums_go_to_directories() {
    let mut cluster = cluster();
    let fast = |checksums| {
        Body::CreateVolume(records::CreateVolume {
            pool: "fast".to_owned(),
            checksums,
            ..volume_of(1, "db1", 1, 1 << 20)
        })
    };
    assert!(cluster.refused(fast(true)).to_string().contains("no place for checksums"));
    let new = NewVolume { size_bytes: 1 << 20, copies: 1, volatile: true, checksums: true };
    assert_eq!(cluster.state.places(&new, &[]).unwrap()[0].pool, "default");
    cluster.done(fast(false));
}

#[test]
fn kinds_are_checked_where_the_volume_is_made() {
    let mut cluster = cluster();
    assert!(cluster.refused(volume_in("ram", false)).to_string().contains("make the volume volatile"));
    assert!(cluster.refused(volume_in("nothing", false)).to_string().contains("make the volume volatile"));
    let two = Body::CreateVolume(records::CreateVolume {
        pool: "nothing".to_owned(),
        volatile: true,
        replicas: 2,
        others: vec![records::ReplicaPlace { node: 2, pool: "default".to_owned() }],
        ..volume_of(1, "db1", 1, 1 << 20)
    });
    assert!(cluster.refused(two).to_string().contains("one copy only"));
    cluster.done(volume_in("ram", true));
    assert!(cluster.volume("db1").volatile && cluster.volume("db1").record().volatile);
}

#[test]
fn copy_of_what_keeps_nothing_is_never_made() {
    let mut cluster = cluster();
    cluster.done(volume_in("nothing", true));
    let why = cluster.state.place_for(cluster.volume("db1")).unwrap_err();
    assert!(why.contains("keeps nothing that could be copied"), "{why}");
    let add = Body::AddReplica(records::AddReplica {
        volume: "db1".to_owned(),
        place: Some(records::ReplicaPlace { node: 2, pool: "default".to_owned() }),
        ..Default::default()
    });
    assert!(cluster.refused(add).to_string().contains("keeps nothing that could be copied"));
}

#[test]
fn further_copies_of_a_volume_that_must_be_kept_are_kept() {
    let mut cluster = cluster();
    cluster.done(volume_in("fast", false));
    let place = cluster.state.place_for(cluster.volume("db1")).unwrap();
    assert_eq!((place.node, place.pool.as_str()), (2, "default"));
    let add = |pool: &str| {
        Body::AddReplica(records::AddReplica {
            volume: "db1".to_owned(),
            place: Some(records::ReplicaPlace { node: 2, pool: pool.to_owned() }),
            ..Default::default()
        })
    };
    assert!(cluster.refused(add("ram")).to_string().contains("is in memory"));
    assert!(cluster.refused(add("nothing")).to_string().contains("keeps nothing"));
    cluster.done(add("default"));
}
