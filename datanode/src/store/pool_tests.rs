//! Tests of pools and replicas on a real directory.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, mpsc};

use holdfast_replica::activity_log::ActivityLog;
use holdfast_replica::epoch::Epoch;
use holdfast_replica::ids::{ClusterId, NodeNumber, VolumeId};

use super::pool::{Pool, PoolError, PoolPlace};
use super::replica::{Replica, ReplicaError, ReplicaShape};
use super::{Durability, StoreError, Wait};

const CLUSTER: ClusterId = ClusterId([1; 16]);
const VOLUME: VolumeId = VolumeId([2; 16]);
const SHAPE: ReplicaShape = ReplicaShape { block_size: 512, blocks: 2048, thin: true, checksums: false };

fn log() -> ActivityLog {
    ActivityLog::new(vec![node()])
}

fn node() -> NodeNumber {
    NodeNumber::new(1).unwrap()
}

fn epoch(number: u64) -> Epoch {
    Epoch { generation: 0, number }
}

fn open(dir: &tempfile::TempDir) -> Result<Pool, PoolError> {
    Pool::open("p", &PoolPlace::Directory(dir.path().join("pool")), CLUSTER, "node-1", dir.path())
}

fn pool() -> (tempfile::TempDir, Pool) {
    let dir = tempfile::tempdir().unwrap();
    let pool = open(&dir).unwrap();
    (dir, pool)
}

#[test]
fn pool_in_use_is_refused_and_names_the_process() {
    let (dir, pool) = pool();
    let error = open(&dir).unwrap_err();
    assert!(matches!(error, PoolError::InUse { .. }), "{error}");
    assert!(error.to_string().ends_with(&format!("is in use by process {}", std::process::id())), "{error}");
    drop(pool);
    open(&dir).unwrap();
}

#[test]
fn pool_of_another_cluster_or_node_is_refused() {
    let (dir, pool) = pool();
    drop(pool);
    let directory = dir.path().join("pool");
    for (cluster, node) in [(ClusterId([9; 16]), "node-1"), (CLUSTER, "node-2")] {
        let place = PoolPlace::Directory(directory.clone());
        let error = Pool::open("p", &place, cluster, node, dir.path()).unwrap_err();
        assert!(matches!(error, PoolError::Foreign { .. }), "{error}");
    }
    fs::write(directory.join("pool"), "something else\n").unwrap();
    assert!(matches!(open(&dir), Err(PoolError::Marker { .. })));
}

#[test]
fn directory_with_other_files_is_not_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("pool")).unwrap();
    fs::write(dir.path().join("pool/holiday.jpg"), "x").unwrap();
    assert!(matches!(open(&dir), Err(PoolError::NotEmpty { .. })));
    assert_eq!(fs::read(dir.path().join("pool/holiday.jpg")).unwrap(), b"x");
}

#[test]
fn replica_keeps_its_data_promise_and_size() {
    let (dir, pool) = pool();
    let replica = pool.create_replica(VOLUME, node(), &SHAPE, log()).unwrap();
    replica.promise(epoch(3)).unwrap();
    replica.admit(epoch(3)).unwrap().store().write_at(512, &[7; 512], Durability::OnMedium).unwrap();
    replica.grow(4096).unwrap();
    drop((replica, pool));
    let pool = open(&dir).unwrap();
    assert_eq!(pool.replicas().unwrap(), [VOLUME]);
    let larger = ReplicaShape { blocks: 4096, ..SHAPE };
    let replica = pool.open_replica(VOLUME, node(), &larger).unwrap();
    assert_eq!(replica.promised(), epoch(3));
    let mut bytes = [0; 512];
    let admitted = replica.admit(epoch(3)).unwrap();
    admitted.store().read_at(512, &mut bytes, Wait::Allowed).unwrap();
    assert_eq!((bytes, admitted.store().size()), ([7; 512], 4096 * 512));
}

#[test]
fn replica_is_never_made_over_another_nor_served_for_another() {
    let (_dir, pool) = pool();
    drop(pool.create_replica(VOLUME, node(), &SHAPE, log()).unwrap());
    let again = pool.create_replica(VOLUME, node(), &SHAPE, log());
    assert!(
        matches!(&again, Err(ReplicaError::Io(e)) if e.kind() == io::ErrorKind::AlreadyExists),
        "{again:?}"
    );
    let other_node = NodeNumber::new(2).unwrap();
    assert!(matches!(pool.open_replica(VOLUME, other_node, &SHAPE), Err(ReplicaError::Foreign { .. })));
    let smaller = ReplicaShape { blocks: 1024, ..SHAPE };
    assert!(matches!(pool.open_replica(VOLUME, node(), &smaller), Err(ReplicaError::Shape { .. })));
    let moved = VolumeId([3; 16]);
    fs::rename(
        pool.directory().unwrap().join(VOLUME.to_string()),
        pool.directory().unwrap().join(moved.to_string()),
    )
    .unwrap();
    assert!(matches!(pool.open_replica(moved, node(), &SHAPE), Err(ReplicaError::Foreign { .. })));
}

#[test]
fn damaged_superblock_stops_the_replica() {
    let (_dir, pool) = pool();
    drop(pool.create_replica(VOLUME, node(), &SHAPE, log()).unwrap());
    let file = pool.directory().unwrap().join(VOLUME.to_string()).join("superblock");
    let mut bytes = fs::read(&file).unwrap();
    bytes.iter_mut().for_each(|b| *b ^= 0x55);
    fs::write(&file, &bytes).unwrap();
    assert!(matches!(pool.open_replica(VOLUME, node(), &SHAPE), Err(ReplicaError::Superblock(_))));
    assert_eq!(fs::read(&file).unwrap(), bytes, "left as it was");
}

#[test]
fn lower_epochs_are_refused_once_a_higher_one_is_promised() {
    let (_dir, pool) = pool();
    let replica = pool.create_replica(VOLUME, node(), &SHAPE, log()).unwrap();
    replica.promise(epoch(4)).unwrap();
    assert!(replica.admit(epoch(3)).is_none() && replica.admit(epoch(5)).is_none());
    assert!(replica.admit(epoch(4)).is_some());
    replica.promise(epoch(4)).unwrap();
    assert!(matches!(replica.promise(epoch(3)), Err(ReplicaError::StaleEpoch { .. })));
    assert_eq!(replica.promised(), epoch(4));
}

#[test]
fn promise_waits_for_io_under_the_epoch_before() {
    let (_dir, pool) = pool();
    let replica = Arc::new(pool.create_replica(VOLUME, node(), &SHAPE, log()).unwrap());
    replica.promise(epoch(2)).unwrap();
    let admitted = replica.admit(epoch(2)).unwrap();
    let (tx, rx) = mpsc::channel();
    let thread = {
        let replica: Arc<Replica> = Arc::clone(&replica);
        std::thread::spawn(move || {
            replica.promise(epoch(3)).unwrap();
            tx.send(()).unwrap();
        })
    };
    // The promise has begun when the old epoch is refused; it cannot have ended.
    while replica.admit(epoch(2)).is_some() {
        std::thread::yield_now();
    }
    assert!(rx.try_recv().is_err());
    assert!(replica.admit(epoch(3)).is_none(), "not before it is on the medium");
    assert_eq!(replica.promised(), epoch(2));
    drop(admitted);
    rx.recv().unwrap();
    thread.join().unwrap();
    assert!(replica.admit(epoch(3)).is_some());
}

#[test]
fn retired_replica_admits_nothing() {
    let (_dir, pool) = pool();
    let replica = pool.create_replica(VOLUME, node(), &SHAPE, log()).unwrap();
    replica.promise(epoch(2)).unwrap();
    replica.retire();
    assert!(replica.admit(epoch(2)).is_none());
    assert!(replica.promise(epoch(3)).is_err());
}

#[test]
fn removed_replica_is_gone_and_leftovers_are_swept() {
    let (dir, pool) = pool();
    drop(pool.create_replica(VOLUME, node(), &SHAPE, log()).unwrap());
    pool.remove_replica(VOLUME).unwrap();
    pool.remove_replica(VOLUME).unwrap();
    assert!(!pool.has_replica(VOLUME));
    let directory = pool.directory().unwrap().to_path_buf();
    drop(pool);
    let half = [format!(".{VOLUME}.new"), format!(".{VOLUME}.removed")];
    for name in &half {
        fs::create_dir(directory.join(name)).unwrap();
        fs::write(directory.join(name).join("data"), "x").unwrap();
    }
    let stray = VolumeId([8; 16]);
    fs::create_dir(directory.join(stray.to_string())).unwrap();
    let pool = open(&dir).unwrap();
    assert!(half.iter().all(|name| !directory.join(name).exists()));
    assert_eq!(pool.replicas().unwrap(), [stray], "what is not known is left alone");
}

#[test]
fn pool_tells_its_space() {
    let (_dir, pool) = pool();
    let space = pool.space().unwrap();
    assert!(space.capacity_bytes > 0 && space.free_bytes <= space.capacity_bytes);
}

#[test]
fn checksummed_replica_notices_what_was_changed_behind_its_back_and_other_shapes_are_refused() {
    let (dir, pool) = pool();
    let shape = ReplicaShape { checksums: true, ..SHAPE };
    let replica = pool.create_replica(VOLUME, node(), &shape, log()).unwrap();
    replica.store().write_at(0, &[7; 8192], Durability::Cached).unwrap();
    replica.retire();
    let data = dir.path().join("pool").join(VOLUME.to_string()).join("data");
    fs::File::options().write(true).open(data).unwrap().write_all_at(&[8], 5000).unwrap();
    let replica = pool.open_replica(VOLUME, node(), &shape).unwrap();
    let mut bytes = [0; 4096];
    replica.store().read_at(0, &mut bytes, Wait::Allowed).unwrap();
    assert_eq!(bytes, [7; 4096]);
    let damaged = replica.store().read_at(4096, &mut bytes, Wait::Allowed).unwrap_err();
    assert!(matches!(damaged, StoreError::Corrupt { offset: 4096, len: 4096 }), "{damaged}");
    replica.retire();
    let refused = pool.open_replica(VOLUME, node(), &SHAPE).unwrap_err();
    assert_eq!(refused.to_string(), "the replica has checksums, and its volume has none");
    let larger = ReplicaShape { blocks: 4096, ..shape };
    let replica = pool.open_replica(VOLUME, node(), &larger).unwrap();
    replica.store().write_at(4095 * 512, &[9; 512], Durability::OnMedium).unwrap();
}
