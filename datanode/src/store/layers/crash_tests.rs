//! A history of writes, flushes, snapshots, clones, deletions and merges on a real directory, cut at every step at which something
//! reaches the medium: by a kill, which leaves all that was written, and by a loss of power, which leaves only what was brought to
//! the medium. Whatever is opened afterwards reads as it may: what was flushed is there, a snapshot is all of its moment
//! or is not there.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use holdfast_replica::activity_log::ActivityLog;
use holdfast_replica::epoch::Epoch;
use holdfast_replica::ids::{BootId, ClusterId, NodeNumber, VolumeId};

use crate::store::pool::{Pool, Staged};
use crate::store::replica::{Replica, ReplicaShape};
use crate::store::{Durability, StoreError, Wait};

const SHAPE: ReplicaShape = ReplicaShape { block_size: 512, blocks: 600, thin: true, checksums: false };
const BYTES: usize = 600 * 512;
const CHUNK: u64 = 65536;

/// What is on the medium, by what was synced; and when to stop.
#[derive(Default)]
struct Medium {
    root: PathBuf,
    /// Content by inode.
    files: HashMap<u64, Vec<u8>>,
    /// Entries of directories, by inode: name, inode, is a directory.
    by_inode: HashMap<u64, Vec<(String, u64, bool)>>,
    steps: usize,
    cut_at: usize,
    /// The picture at the cut: of a kill and of a loss of power.
    cut: Option<(PathBuf, PathBuf)>,
}

thread_local! {
    static MEDIUM: RefCell<Option<Medium>> = const { RefCell::new(None) };
}

pub(super) fn synced(file: &File) {
    step(|medium| {
        let Ok(meta) = file.metadata() else { return };
        let mut bytes = vec![0; meta.len() as usize];
        if file.read_exact_at(&mut bytes, 0).is_ok() || reopen(file, &mut bytes) {
            medium.files.insert(meta.ino(), bytes);
        }
    });
}

/// A file that was opened for writing only.
fn reopen(file: &File, bytes: &mut [u8]) -> bool {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    File::open(path).is_ok_and(|again| again.read_exact_at(bytes, 0).is_ok())
}

pub(super) fn synced_part(file: &File, offset: u64, len: usize) {
    step(|medium| {
        let Ok(meta) = file.metadata() else { return };
        let kept = medium.files.entry(meta.ino()).or_default();
        kept.resize(meta.len() as usize, 0);
        let mut bytes = vec![0; len];
        if file.read_exact_at(&mut bytes, offset).is_ok() {
            kept[offset as usize..offset as usize + len].copy_from_slice(&bytes);
        }
    });
}

pub(super) fn synced_directory(directory: &Path) {
    step(|medium| medium.note_directory(directory));
}

fn step(note: impl FnOnce(&mut Medium)) {
    MEDIUM.with_borrow_mut(|medium| {
        let Some(medium) = medium else { return };
        if medium.cut.is_some() {
            return;
        }
        medium.steps += 1;
        if medium.steps == medium.cut_at {
            medium.take_pictures();
            return;
        }
        note(medium);
    });
}

impl Medium {
    fn note_directory(&mut self, directory: &Path) {
        let (Ok(entries), Ok(meta)) = (fs::read_dir(directory), fs::metadata(directory)) else { return };
        let entries = entries.filter_map(|entry| {
            let entry = entry.ok()?;
            let meta = entry.metadata().ok()?;
            Some((entry.file_name().into_string().ok()?, meta.ino(), meta.is_dir()))
        });
        self.by_inode.insert(meta.ino(), entries.collect());
    }

    fn note_all(&mut self) {
        let root = self.root.clone();
        self.note_directory(&root);
        for entry in fs::read_dir(&root).unwrap() {
            let entry = entry.unwrap();
            self.files.insert(entry.metadata().unwrap().ino(), fs::read(entry.path()).unwrap());
        }
    }

    fn take_pictures(&mut self) {
        let outside = self.root.parent().unwrap();
        let (killed, dark) = (outside.join("killed"), outside.join("dark"));
        copy(&self.root, &killed, &mut HashMap::new());
        let root = fs::metadata(&self.root).unwrap().ino();
        self.restore(root, &dark, &mut HashMap::new());
        self.cut = Some((killed, dark));
    }

    fn restore(&self, directory: u64, to: &Path, made: &mut HashMap<u64, PathBuf>) {
        fs::create_dir_all(to).unwrap();
        for (name, inode, is_directory) in self.by_inode.get(&directory).into_iter().flatten() {
            let to = to.join(name);
            match made.get(inode) {
                _ if *is_directory => self.restore(*inode, &to, made),
                Some(first) => fs::hard_link(first, &to).unwrap(),
                None => {
                    fs::write(&to, self.files.get(inode).map_or(&[][..], |bytes| bytes)).unwrap();
                    made.insert(*inode, to);
                }
            }
        }
    }
}

/// With hard links as they are.
fn copy(from: &Path, to: &Path, made: &mut HashMap<u64, PathBuf>) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (meta, to) = (entry.metadata().unwrap(), to.join(entry.file_name()));
        match made.get(&meta.ino()) {
            _ if meta.is_dir() => copy(&entry.path(), &to, made),
            Some(first) => fs::hard_link(first, &to).unwrap(),
            None => {
                fs::copy(entry.path(), &to).unwrap();
                made.insert(meta.ino(), to);
            }
        }
    }
}

fn id(n: u8) -> VolumeId {
    VolumeId([n; 16])
}

fn node() -> NodeNumber {
    NodeNumber::new(1).unwrap()
}

fn open(directory: &Path) -> Pool {
    open_under(1, directory)
}

fn open_under(boot: u8, directory: &Path) -> Pool {
    Pool::open_under(BootId([boot; 16]), "p", directory, ClusterId([1; 16]), "n").unwrap()
}

/// What may be read after a cut: of each volume, and whether it has to be there.
#[derive(Clone, Default)]
struct Expected {
    /// As flushed last, and after each change since: a block is as in one of them after a loss of power.
    volumes: BTreeMap<u8, Vec<Vec<u8>>>,
    /// Whole or not there.
    perhaps: BTreeMap<u8, Vec<Vec<u8>>>,
    /// There or not, unchanged.
    leaving: BTreeMap<u8, Vec<Vec<u8>>>,
    /// It is decided that this one is restored.
    restored: Option<u8>,
}

fn is_cut() -> bool {
    MEDIUM.with_borrow(|medium| medium.as_ref().is_some_and(|medium| medium.cut.is_some()))
}

/// Runs the history and stops at the cut. Gives what may be there then.
fn history(directory: &Path) -> Expected {
    // The pool itself is made before: its marker is not what is tried here.
    let pool = open(directory);
    let mut open_now: BTreeMap<u8, Replica> = BTreeMap::new();
    let mut expected = Expected::default();
    let mut written: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
    macro_rules! unless_cut {
        ($($done:tt)*) => { if is_cut() { return expected; } $($done)* };
    }
    let fill = |seed: u8, len: u64| (0..len).map(|at| seed ^ (at / 512) as u8).collect::<Vec<u8>>();
    pool.create_replica(id(1), node(), &SHAPE, ActivityLog::new(vec![node()]))
        .map(|r| open_now.insert(1, r))
        .unwrap();
    unless_cut! { written.insert(1, vec![0; BYTES]); expected.volumes.insert(1, vec![vec![0; BYTES]]); }
    let steps: &[(&str, u8, u64, u64, u8)] = &[
        ("write", 1, 0, 3 * CHUNK, 11),
        ("snapshot", 1, 0, 0, 2),
        ("write", 1, 1000 * 2 / 512 * 512, 1024, 22),
        ("flush", 1, 0, 0, 0),
        ("write", 1, CHUNK, CHUNK, 33),
        ("durable", 1, 2 * CHUNK + 512, 512, 44),
        ("snapshot", 1, 0, 0, 3),
        ("unmap", 1, 512, 2 * CHUNK, 0),
        ("clone", 2, 0, 0, 4),
        ("durable", 4, 5 * 512, 512, 55),
        ("write", 4, CHUNK - 512, 1024, 66),
        ("flush", 4, 0, 0, 0),
        ("remove", 2, 0, 0, 0),
        ("write", 1, 4 * CHUNK, 512, 77),
        ("merge", 0, 0, 0, 0),
        ("durable", 1, 0, 512, 88),
        ("stage", 1, 3, 0, 200),
        ("merge", 0, 0, 0, 0),
        ("restore", 1, 3, 0, 0),
        ("write", 1, CHUNK + 512, 512, 90),
        ("remove", 3, 0, 0, 0),
        ("merge", 0, 0, 0, 0),
        ("write", 1, 3 * 512, 512, 99),
        ("snapshot", 1, 0, 0, 5),
        ("remove", 1, 0, 0, 0),
        ("merge", 0, 0, 0, 0),
        ("durable", 4, 0, 2 * CHUNK, 111),
    ];
    for (what, volume, at, len, seed) in steps.iter().copied() {
        let store = open_now.get(&volume).map(|replica| replica.store());
        match (what, store) {
            ("write" | "durable" | "unmap", Some(store)) => {
                let bytes = if what == "unmap" { vec![0; len as usize] } else { fill(seed, len) };
                let range = at as usize..(at + len) as usize;
                written.get_mut(&volume).unwrap()[range.clone()].copy_from_slice(&bytes);
                expected.volumes.get_mut(&volume).unwrap().push(written[&volume].clone());
                match what {
                    "unmap" => store.unmap(at, len).unwrap(),
                    "write" => store.write_at(at, &bytes, Durability::Cached).unwrap(),
                    _ => store.write_at(at, &bytes, Durability::OnMedium).unwrap(),
                }
                unless_cut! {
                    if what == "durable" {
                        let versions = expected.volumes.get_mut(&volume).unwrap();
                        versions.iter_mut().for_each(|version| version[range.clone()].copy_from_slice(&bytes));
                    }
                }
            }
            ("flush", Some(store)) => {
                store.flush().unwrap();
                unless_cut! { expected.volumes.insert(volume, vec![written[&volume].clone()]); }
            }
            ("snapshot" | "clone", Some(_)) => {
                let now = written[&volume].clone();
                expected.perhaps.insert(seed, vec![now.clone()]);
                let log = ActivityLog::new(vec![node()]);
                pool.take_snapshot(&open_now[&volume], id(seed), node(), &SHAPE, log).unwrap();
                unless_cut! {
                    expected.perhaps.remove(&seed);
                    expected.volumes.insert(seed, vec![now.clone()]);
                    expected.volumes.insert(volume, vec![now.clone()]);
                    written.insert(seed, now);
                    open_now.insert(seed, pool.open_replica(id(seed), node(), &SHAPE).unwrap());
                }
            }
            ("stage", Some(_)) => {
                let staged = Staged { id: id(seed), epoch: Epoch { generation: 0, number: 5 } };
                let log = ActivityLog::new(vec![node()]);
                pool.stage(&open_now[&(at as u8)], id(volume), node(), &SHAPE, log, &staged).unwrap();
                unless_cut! { assert_eq!(pool.staged(id(volume)).unwrap(), Some(staged)); }
            }
            ("restore", Some(_)) => {
                // Decided elsewhere: whatever happens now, it ends that way.
                let now = written[&(at as u8)].clone();
                expected.restored = Some(volume);
                expected.volumes.insert(volume, vec![now.clone()]);
                written.insert(volume, now);
                open_now.remove(&volume);
                pool.settle(id(volume), true).unwrap();
                unless_cut! {
                    let replica = pool.open_replica(id(volume), node(), &SHAPE).unwrap();
                    assert_eq!(replica.promised(), Epoch { generation: 0, number: 5 });
                    open_now.insert(volume, replica);
                }
            }
            ("remove", Some(_)) => {
                open_now.remove(&volume);
                let versions = expected.volumes.remove(&volume).unwrap();
                expected.leaving.insert(volume, versions);
                pool.remove_replica(id(volume)).unwrap();
                unless_cut! { expected.leaving.remove(&volume); }
            }
            _ => {
                while pool.merge_layers(CHUNK).unwrap() {
                    unless_cut! {}
                }
            }
        }
        unless_cut! {}
    }
    expected
}

/// Whatever was cut: the pool opens, and each volume reads as it may.
fn check(directory: &Path, expected: &Expected, power: bool, cut: usize) {
    if !directory.join("pool").exists() {
        assert!(expected.volumes.is_empty(), "cut {cut}: the pool is gone");
        return;
    }
    let pool = open_under(if power { 2 } else { 1 }, directory);
    for volume in expected.volumes.keys() {
        pool.settle(id(*volume), expected.restored == Some(*volume)).unwrap();
        assert_eq!(pool.staged(id(*volume)).unwrap(), None);
    }
    let read = |volume: u8| -> Result<Vec<u8>, String> {
        let replica = pool.open_replica(id(volume), node(), &SHAPE).map_err(|e| e.to_string())?;
        let mut bytes = vec![0xee; BYTES];
        replica.store().read_at(0, &mut bytes, Wait::Allowed).map_err(|e: StoreError| e.to_string())?;
        Ok(bytes)
    };
    let check = |volume: u8, versions: &[Vec<u8>]| {
        // A kill loses nothing that was answered: only the change under way may be there in part.
        let versions = if power { versions } else { &versions[versions.len().saturating_sub(2)..] };
        let found = read(volume).unwrap_or_else(|e| panic!("cut {cut}, power {power}, volume {volume}: {e}"));
        for (at, block) in found.chunks(512).enumerate() {
            let good = versions.iter().any(|version| block == &version[at * 512..(at + 1) * 512]);
            assert!(good, "cut {cut}, power {power}, volume {volume}: block {at} is {:?}", &block[..4]);
        }
    };
    for (volume, versions) in &expected.volumes {
        check(*volume, versions);
    }
    for (volume, versions) in expected.perhaps.iter().chain(&expected.leaving) {
        if pool.has_replica(id(*volume)) {
            check(*volume, versions);
        }
    }
    // It goes on from there.
    for volume in expected.volumes.keys() {
        let replica = pool.open_replica(id(*volume), node(), &SHAPE).unwrap();
        pool.take_snapshot(&replica, id(100 + volume), node(), &SHAPE, ActivityLog::new(vec![node()]))
            .unwrap();
        replica.store().write_at(0, &[1; 512], Durability::OnMedium).unwrap();
        drop(replica);
        pool.remove_replica(id(*volume)).unwrap();
        assert!(read(100 + volume).is_ok());
        pool.remove_replica(id(100 + volume)).unwrap();
    }
    while pool.merge_layers(u64::MAX).unwrap() {}
}

fn run(cut_at: usize) -> Option<usize> {
    let dir = super::tests::directory();
    let root = dir.path().join("pool");
    drop(open(&root));
    let mut medium = Medium { root: root.clone(), cut_at, ..Medium::default() };
    medium.note_all();
    MEDIUM.set(Some(medium));
    let expected = history(&root);
    let medium = MEDIUM.take().unwrap();
    match medium.cut {
        Some((killed, dark)) => {
            for (power, directory) in [(false, &killed), (true, &dark)] {
                check(directory, &expected, power, cut_at);
            }
            None
        }
        None => Some(medium.steps),
    }
}

#[test]
fn history_cut_at_any_step_leaves_every_volume_as_it_may_be() {
    let steps = run(usize::MAX).expect("a whole run");
    assert!(steps > 60, "{steps} steps");
    for cut in 1..=steps {
        assert_eq!(run(cut), None, "cut {cut}");
    }
}
