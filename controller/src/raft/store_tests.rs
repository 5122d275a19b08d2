//! The stores against openraft's own suite, and against every crash point that can be made here.
//!
//! A killed process leaves what it wrote: a copy of the folder between two writes is that crash. A power cut leaves a prefix of
//! what was not synced: a copy whose newest write-ahead log is cut anywhere is that crash.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use holdfast_proto::state as records;
use openraft::{
    Membership, RaftLogReader as _, RaftSnapshotBuilder as _, StorageError,
    entry::{RaftEntry as _, RaftPayload as _},
    storage::{IOFlushed, RaftLogStorage as _, RaftStateMachine as _},
    testing::log::{StoreBuilder, Suite},
    type_config::{TypeConfigExt as _, alias::CommittedLeaderIdOf},
    vote::{RaftLeaderId as _, RaftVote as _},
};
use tempfile::TempDir;

use super::{
    log::{LogReader, LogStore},
    machine::MachineStore,
    store::{Store, StoreError, StoreIdentity},
    types::{EncodedCommand, Entry, LogId, Payload, TypeConfig, Vote},
};
use crate::state::{Body, Command, StateMachine};

const OWN: StoreIdentity = StoreIdentity { cluster: [7; 16], member: 1 };

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, MachineStore, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, MachineStore), StorageError<TypeConfig>> {
        let directory = tempfile::tempdir().unwrap();
        let (log, machine) = open(directory.path());
        Ok((directory, log, machine))
    }
}

#[test]
fn openraft_suite() {
    TypeConfig::run(async { Suite::test_all(Builder).await }).unwrap();
}

fn open(directory: &Path) -> (LogStore, MachineStore) {
    let store = Store::open(directory, OWN).unwrap();
    let log = LogStore::new(Arc::clone(&store)).unwrap();
    let (machine, _) = MachineStore::open(store, directory).unwrap();
    (log, machine)
}

/// Copies a folder with all that is in it.
pub(super) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(<CommittedLeaderIdOf<TypeConfig>>::new(term), index)
}

fn command(index: u64) -> Command {
    let body = if index == 1 {
        Body::ClusterInit(records::ClusterInit {
            id: OWN.cluster.to_vec(),
            target_iqn: "iqn.2026-11.internal.holdfast:test".to_owned(),
        })
    } else {
        let name = format!("host-{index}");
        let initiators = vec![format!("iqn.2026-11.example:{index}")];
        Body::CreateHost(records::CreateHost {
            request: Some(records::ClientRequest { id: format!("r{index}"), digest: vec![index as u8; 32] }),
            host: Some(records::Host { name, initiators, chap: None }),
        })
    };
    Command::new(index, body)
}

/// Index 0 is the membership, the others are commands.
fn entry(term: u64, index: u64) -> Entry {
    let payload = if index == 0 {
        Payload::membership(Membership::new_with_defaults(vec![[1].into()], []))
    } else {
        Payload::normal(EncodedCommand::new(&command(index)))
    };
    Entry::new(log_id(term, index), payload)
}

async fn append(log: &mut LogStore, entries: Vec<Entry>) {
    let (done, flushed) = TypeConfig::oneshot();
    log.append(entries, IOFlushed::signal(done)).await.unwrap();
    flushed.await.unwrap().unwrap();
}

async fn apply(machine: &mut MachineStore, entries: Vec<Entry>) {
    let entries = futures::stream::iter(entries.into_iter().map(|entry| Ok((entry, None))));
    machine.apply(entries).await.unwrap();
}

/// What the commands up to `applied` make.
fn expected(applied: Option<LogId>) -> StateMachine {
    let mut machine = StateMachine::default();
    for index in 1..=applied.map_or(0, |log_id| log_id.index) {
        machine.apply(index, &command(index)).response.unwrap();
    }
    machine
}

/// What a folder holds, read after a crash.
#[derive(Debug, PartialEq)]
struct Seen {
    vote: Option<Vote>,
    purged: Option<LogId>,
    last: Option<LogId>,
    log: Vec<LogId>,
    applied: Option<LogId>,
}

async fn look(directory: &Path) -> Seen {
    let store = Store::open(directory, OWN).unwrap();
    let mut log = LogStore::new(Arc::clone(&store)).unwrap();
    let state = log.get_log_state().await.unwrap();
    let mut reader: LogReader = log.get_log_reader().await;
    let entries = reader.try_get_log_entries(0..).await.unwrap();
    let vote = reader.read_vote().await.unwrap();
    let (mut machine, shared) = MachineStore::open(store, directory).unwrap();
    // As openraft does at its start.
    if let Some(snapshot) = machine.get_current_snapshot().await.unwrap()
        && snapshot.meta.last_log_id > machine.applied_state().await.unwrap().0
    {
        machine.install_snapshot(&snapshot.meta, snapshot.snapshot).await.unwrap();
    }
    let (applied, _) = machine.applied_state().await.unwrap();
    shared.read(|machine, _| {
        assert!(*machine == expected(applied), "records and applied index differ at {applied:?}")
    });
    let (events, _) = shared.events_after(0, usize::MAX).unwrap();
    assert_eq!(events.len() as u64, applied.map_or(0, |log_id| log_id.index), "one event for each command");
    Seen {
        vote,
        purged: state.last_purged_log_id,
        last: state.last_log_id,
        log: entries.iter().map(Entry::log_id).collect(),
        applied,
    }
}

/// Copies the folder as a kill leaves it now, and looks at the copy.
async fn after_kill(directory: &Path) -> Seen {
    let crashed = tempfile::tempdir().unwrap();
    copy(directory, crashed.path());
    look(crashed.path()).await
}

fn vote(term: u64) -> Vote {
    Vote::from_leader_id(<TypeConfig as openraft::RaftTypeConfig>::LeaderId::new(term, 1), false)
}

#[tokio::test]
async fn a_kill_between_any_two_writes_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (mut log, mut machine) = open(directory.path());
    log.save_vote(&vote(1)).await.unwrap();
    assert_eq!(after_kill(directory.path()).await.vote, Some(vote(1)));

    append(&mut log, (0..10).map(|index| entry(1, index)).collect()).await;
    let seen = after_kill(directory.path()).await;
    assert_eq!((seen.last, seen.log.len(), seen.applied), (Some(log_id(1, 9)), 10, None));

    for index in 0..6 {
        apply(&mut machine, vec![entry(1, index)]).await;
        assert_eq!(after_kill(directory.path()).await.applied, Some(log_id(1, index)));
    }

    log.truncate_after(Some(log_id(1, 6))).await.unwrap();
    assert_eq!(after_kill(directory.path()).await.last, Some(log_id(1, 6)));
    append(&mut log, (7..12).map(|index| entry(2, index)).collect()).await;
    let seen = after_kill(directory.path()).await;
    assert_eq!(seen.log[6..8], [log_id(1, 6), log_id(2, 7)]);

    let mut writer = machine.try_create_snapshot_builder(true).await.unwrap();
    apply(&mut machine, vec![entry(1, 6)]).await;
    let snapshot = writer.build_snapshot().await.unwrap();
    assert_eq!(snapshot.meta.last_log_id, Some(log_id(1, 5)));
    assert_eq!(after_kill(directory.path()).await.applied, Some(log_id(1, 6)));

    log.purge(log_id(1, 5)).await.unwrap();
    let seen = after_kill(directory.path()).await;
    assert_eq!(
        (seen.purged, seen.log[0], seen.last),
        (Some(log_id(1, 5)), log_id(1, 6), Some(log_id(2, 11)))
    );

    log.purge(log_id(2, 11)).await.unwrap();
    let seen = after_kill(directory.path()).await;
    assert_eq!((seen.purged, seen.last, seen.log.len()), (Some(log_id(2, 11)), Some(log_id(2, 11)), 0));

    log.save_vote(&vote(3)).await.unwrap();
    assert_eq!(after_kill(directory.path()).await.vote, Some(vote(3)));
}

/// The newest write-ahead log of a folder, with its length.
fn newest_wal(directory: &Path) -> (PathBuf, u64) {
    let logs = fs::read_dir(directory.join("raft")).unwrap().map(|entry| entry.unwrap().path());
    let newest =
        logs.filter(|path| path.extension().is_some_and(|extension| extension == "log")).max().unwrap();
    let length = fs::metadata(&newest).unwrap().len();
    (newest, length)
}

#[tokio::test]
async fn a_power_cut_leaves_a_prefix_and_all_that_was_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let (mut log, mut machine) = open(directory.path());
    // (bytes of the log when it was acknowledged, what must be there from then on)
    let mut promises: Vec<(u64, Option<Vote>, Option<LogId>)> = Vec::new();
    let start = newest_wal(directory.path()).1;
    log.save_vote(&vote(1)).await.unwrap();
    promises.push((newest_wal(directory.path()).1, Some(vote(1)), None));
    for index in 0..8 {
        append(&mut log, vec![entry(1, index)]).await;
        promises.push((newest_wal(directory.path()).1, Some(vote(1)), Some(log_id(1, index))));
        // Not synced: it may go, but never without, and never before, the log.
        apply(&mut machine, vec![entry(1, index)]).await;
    }
    log.save_vote(&vote(2)).await.unwrap();
    let (wal, end) = newest_wal(directory.path());
    promises.push((end, Some(vote(2)), Some(log_id(1, 7))));

    let name = wal.file_name().unwrap().to_owned();
    // What matters is round the end of a record; between them a few will do.
    let cuts =
        (start..=end).filter(|cut| cut % 61 == 0 || promises.iter().any(|(at, ..)| at.abs_diff(*cut) < 2));
    for cut in cuts {
        let crashed = tempfile::tempdir().unwrap();
        copy(directory.path(), crashed.path());
        let torn = crashed.path().join("raft").join(&name);
        fs::OpenOptions::new().write(true).open(torn).unwrap().set_len(cut).unwrap();
        let seen = look(crashed.path()).await;
        let kept = promises.iter().rev().find(|(at, ..)| *at <= cut);
        if let Some((_, vote, last)) = kept {
            assert!(seen.vote >= *vote, "cut at {cut}: a vote is lost");
            assert!(seen.last >= *last, "cut at {cut}: an acknowledged entry is lost");
        }
        assert!(seen.applied <= seen.last, "cut at {cut}: applied without the log");
    }
}

#[tokio::test]
async fn damage_inside_the_write_ahead_log_refuses_to_open() {
    let directory = tempfile::tempdir().unwrap();
    let (mut log, machine) = open(directory.path());
    for index in 0..8 {
        append(&mut log, vec![entry(1, index)]).await;
    }
    drop((log, machine));
    let (wal, length) = newest_wal(directory.path());
    let mut bytes = fs::read(&wal).unwrap();
    bytes[length as usize / 2] ^= 0x10;
    fs::write(&wal, bytes).unwrap();
    assert!(matches!(Store::open(directory.path(), OWN), Err(StoreError::Io { .. })));
}

#[tokio::test]
async fn a_snapshot_installs_also_when_the_crash_came_between_file_and_records() {
    let source = tempfile::tempdir().unwrap();
    let (_log, mut machine) = open(source.path());
    apply(&mut machine, (0..9).map(|index| entry(1, index)).collect()).await;
    let snapshot = machine.try_create_snapshot_builder(true).await.unwrap().build_snapshot().await.unwrap();

    let behind = tempfile::tempdir().unwrap();
    {
        let (mut log, mut machine) = open(behind.path());
        append(&mut log, (0..3).map(|index| entry(1, index)).collect()).await;
        apply(&mut machine, (0..3).map(|index| entry(1, index)).collect()).await;
        // The first half of an installation, and then the end.
        machine.folder().adopt(&snapshot.meta, snapshot.snapshot).unwrap();
        assert_eq!(machine.applied_state().await.unwrap().0, Some(log_id(1, 2)));
    }
    assert_eq!(look(behind.path()).await.applied, Some(log_id(1, 8)));

    // And undisturbed, onto a member that has other records.
    let other = tempfile::tempdir().unwrap();
    let (_log, mut installed) = open(other.path());
    apply(&mut installed, (0..2).map(|index| entry(1, index)).collect()).await;
    let snapshot = machine.get_current_snapshot().await.unwrap().unwrap();
    installed.install_snapshot(&snapshot.meta, snapshot.snapshot).await.unwrap();
    assert_eq!(after_kill(other.path()).await.applied, Some(log_id(1, 8)));
}

#[tokio::test]
async fn a_damaged_snapshot_is_made_anew_while_the_records_are_whole() {
    let directory = tempfile::tempdir().unwrap();
    {
        let (_log, mut machine) = open(directory.path());
        apply(&mut machine, (0..5).map(|index| entry(1, index)).collect()).await;
        machine.try_create_snapshot_builder(true).await.unwrap().build_snapshot().await.unwrap();
    }
    let file = directory.path().join("snapshots/current.snapshot");
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes).unwrap();
    fs::write(directory.path().join("snapshots/9.tmp"), b"half").unwrap();
    let (_log, mut machine) = open(directory.path());
    assert!(machine.get_current_snapshot().await.unwrap().is_none());
    assert_eq!(fs::read_dir(directory.path().join("snapshots")).unwrap().count(), 0);
    assert_eq!(machine.applied_state().await.unwrap().0, Some(log_id(1, 4)));
}

#[test]
fn a_store_has_one_owner() {
    let directory = tempfile::tempdir().unwrap();
    let first = Store::open(directory.path(), OWN).unwrap();
    assert!(matches!(Store::open(directory.path(), OWN), Err(StoreError::InUse(_))));
    drop(first);
    let stranger = StoreIdentity { cluster: [8; 16], ..OWN };
    assert!(matches!(Store::open(directory.path(), stranger), Err(StoreError::OtherCluster { .. })));
    let other = StoreIdentity { member: 2, ..OWN };
    assert!(matches!(Store::open(directory.path(), other), Err(StoreError::OtherMember { found: 1, .. })));
    Store::open(directory.path(), OWN).unwrap();
}

#[tokio::test]
async fn an_entry_of_a_later_version_stops_and_is_not_skipped() {
    let directory = tempfile::tempdir().unwrap();
    let (_log, mut machine) = open(directory.path());
    apply(&mut machine, vec![entry(1, 0), entry(1, 1)]).await;
    let unknown = Entry::new(log_id(1, 2), Payload::normal(EncodedCommand(bytes::Bytes::new())));
    let result = machine.apply(futures::stream::iter([Ok((unknown, None))])).await;
    assert_eq!(result.unwrap_err().kind(), io::ErrorKind::InvalidData);
    assert_eq!(machine.applied_state().await.unwrap().0, Some(log_id(1, 1)));
}

#[tokio::test]
async fn a_change_of_the_members_and_its_record_are_one_entry() {
    let directory = tempfile::tempdir().unwrap();
    let (mut log, mut machine) = open(directory.path());
    // Before the cluster has its record too: the change is made whatever the state says.
    let body = Body::RecordMembership(records::RecordMembership {
        change: "added".to_owned(),
        name: "ctl-2".to_owned(),
        id: 2,
        address: "127.0.0.1:2".to_owned(),
        request: None,
    });
    let alice = records::Caller { role: "admin".to_owned(), name: "alice".to_owned() };
    let command = EncodedCommand::new(&Command::new(7, body).by(alice));
    let membership = Membership::new_with_defaults(vec![[1, 2].into()], []);
    let both = Entry::new(log_id(1, 1), Payload::normal(command).with_membership(membership.clone()));
    append(&mut log, vec![entry(1, 0), both.clone()]).await;
    let mut reader = log.get_log_reader().await;
    assert_eq!(reader.try_get_log_entries(1..2).await.unwrap(), std::slice::from_ref(&both));
    apply(&mut machine, vec![entry(1, 0), both]).await;
    drop((log, reader, machine));
    let (_log, mut machine) = open(directory.path());
    let (applied, stored) = machine.applied_state().await.unwrap();
    assert_eq!(applied, Some(log_id(1, 1)));
    assert_eq!((stored.log_id(), stored.membership()), (&applied, &membership));
    let mut snapshot = machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    let audit = snapshot.snapshot.read().unwrap().audit.records;
    let told: Vec<_> =
        audit.iter().map(|r| (r.action.as_str(), r.name.as_str(), r.outcome.as_str())).collect();
    assert_eq!(told, [("controller.add", "alice", "done")]);
}

#[tokio::test]
async fn who_has_all_that_nodes_see_goes_on_from_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path(), OWN).unwrap();
    let (mut machine, _) = MachineStore::open(store, directory.path()).unwrap();
    apply(&mut machine, (0..5).map(|index| entry(1, index)).collect()).await;
    // Nodes see nothing of a change of the members.
    let payload = Payload::membership(Membership::new_with_defaults(vec![[1].into()], []));
    apply(&mut machine, vec![Entry::new(log_id(1, 5), payload)]).await;
    drop(machine);
    let store = Store::open(directory.path(), OWN).unwrap();
    let (mut machine, shared) = MachineStore::open(store, directory.path()).unwrap();
    assert_eq!(shared.applied_index(), 5);
    assert!(shared.follow_after(3).is_none(), "something was missed that is kept no more");
    assert!(shared.follow_after(6).is_none(), "nothing is known of that");
    let mut commits = shared.follow_after(4).unwrap();
    apply(&mut machine, vec![entry(1, 6)]).await;
    assert_eq!(commits.try_next().unwrap().unwrap().index, 6);
}

#[tokio::test]
async fn a_snapshot_shows_the_moment_at_which_it_was_taken_and_holds_nothing_up() {
    let directory = tempfile::tempdir().unwrap();
    let (_log, mut machine) = open(directory.path());
    apply(&mut machine, (0..4).map(|index| entry(1, index)).collect()).await;
    let mut early = machine.get_snapshot_builder().await;
    let unused = machine.get_snapshot_builder().await;
    apply(&mut machine, (4..9).map(|index| entry(1, index)).collect()).await;
    let mut late = machine.get_snapshot_builder().await;
    drop(unused);
    let mut snapshot = early.build_snapshot().await.unwrap();
    assert_eq!(snapshot.meta.last_log_id, Some(log_id(1, 3)));
    let content = snapshot.snapshot.read().unwrap();
    assert!(StateMachine::from_changes(content.changes).unwrap() == expected(Some(log_id(1, 3))));
    assert_eq!(content.events.events.len(), 3);
    assert_eq!(content.audit.records.last().map(|record| record.index), Some(3));
    assert_eq!(late.build_snapshot().await.unwrap().meta.last_log_id, Some(log_id(1, 8)));
}
