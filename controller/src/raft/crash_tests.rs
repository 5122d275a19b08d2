//! A crash after every single step that changes the disk: the member starts again, has kept what it promised, and comes to be what the
//! other members are: state, audit, events, membership.
//!
//! Each step is crashed in two ways. A killed process leaves all that it wrote: a copy of its folder. A power cut leaves what was
//! synced: a copy whose write-ahead log ends at the last sync. (Files of snapshots are synced before they get their name.)

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use holdfast_proto::state::{self as records, Change};
use openraft::{
    Membership, RaftLogReader as _, RaftSnapshotBuilder as _,
    entry::{RaftEntry as _, RaftPayload as _},
    storage::{IOFlushed, RaftLogStorage as _, RaftStateMachine as _},
    type_config::{TypeConfigExt as _, alias::CommittedLeaderIdOf},
    vote::{RaftLeaderId as _, RaftVote as _},
};
use parking_lot::Mutex;
use tempfile::TempDir;

use super::{
    applied::Shared,
    audit_log::{self, KeptAudit},
    crash_steps,
    events::{self, KeptEvents},
    log::LogStore,
    machine::MachineStore,
    store::{Store, StoreIdentity},
    store_tests::copy,
    types::{EncodedCommand, Entry, LogId, Payload, StoredMembership, TypeConfig, Vote},
};
use crate::state::{Body, Command, StateMachine};

const OWN: StoreIdentity = StoreIdentity { cluster: [7; 16], member: 1 };
/// Entries that the leader of term 1 wrote and that were agreed on; its others were not.
const AGREED_IN_TERM_1: u64 = 6;
const LAST: u64 = 22;

fn log_id(index: u64) -> LogId {
    let term = if index <= AGREED_IN_TERM_1 { 1 } else { 2 };
    LogId::new(<CommittedLeaderIdOf<TypeConfig>>::new(term), index)
}

fn host(name: &str) -> records::Host {
    let initiators = vec![format!("iqn.2026-11.example:{name}")];
    records::Host { name: name.to_owned(), initiators, chap: None }
}

/// What the cluster agreed on: changes by people, some refused, some taken back, and a change of the members.
fn history() -> Vec<Entry> {
    let admin = || records::Caller { role: "admin".to_owned(), name: "alice".to_owned() };
    let request =
        |index: u64| Some(records::ClientRequest { id: format!("r{index}"), digest: vec![index as u8; 32] });
    let body = |index: u64| match index {
        1 => Body::ClusterInit(records::ClusterInit {
            id: OWN.cluster.to_vec(),
            target_iqn: "iqn.2026-11.internal.holdfast:test".to_owned(),
        }),
        2 => Body::BeginLeaseTerm(records::BeginLeaseTerm { term: 1 }),
        _ if index.is_multiple_of(5) => Body::CreateHost(records::CreateHost {
            request: None,
            host: Some(host(&format!("host-{}", index - 2))),
        }),
        _ if index.is_multiple_of(7) => Body::DeleteHost(records::DeleteHost {
            request: request(index),
            name: format!("host-{}", index - 3),
        }),
        _ => Body::CreateHost(records::CreateHost {
            request: request(index),
            host: Some(host(&format!("host-{index}"))),
        }),
    };
    let members = |ids: &[u64]| Membership::new_with_defaults(vec![ids.iter().copied().collect()], []);
    let entry = |index: u64| {
        let payload = match index {
            0 => Payload::membership(members(&[1])),
            16 => Payload::membership(members(&[1, 2, 3])),
            _ => Payload::normal(EncodedCommand::new(&Command::new(index, body(index)).by(admin()))),
        };
        Entry::new(log_id(index), payload)
    };
    (0..=LAST).map(entry).collect()
}

/// All that a member has made of the log.
#[derive(Clone, Debug, PartialEq)]
struct Whole {
    applied: Option<LogId>,
    membership: StoredMembership,
    state: Vec<Change>,
    audit: KeptAudit,
    events: KeptEvents,
}

async fn whole(store: &Store, machine: &mut MachineStore, shared: &Shared) -> Whole {
    let (applied, membership) = machine.applied_state().await.unwrap();
    let state = shared.read(|machine, _| machine.to_changes());
    // In memory as on disk.
    let stored = super::records::load(store).unwrap();
    assert!(shared.read(|machine, _| *machine == stored));
    let audit = audit_log::all(store, u64::MAX).unwrap();
    let events = events::after(store, 0, usize::MAX).unwrap();
    Whole { applied, membership, state, audit, events }
}

fn open(directory: &Path) -> (Arc<Store>, LogStore, MachineStore, Arc<Shared>) {
    let store = Store::open(directory, OWN).unwrap();
    let log = LogStore::new(Arc::clone(&store)).unwrap();
    let (machine, shared) = MachineStore::open(Arc::clone(&store), directory).unwrap();
    (store, log, machine, shared)
}

async fn append(log: &mut LogStore, entries: &[Entry]) {
    let (done, flushed) = TypeConfig::oneshot();
    log.append(entries.to_vec(), IOFlushed::signal(done)).await.unwrap();
    flushed.await.unwrap().unwrap();
}

async fn apply(machine: &mut MachineStore, entries: &[Entry]) {
    let entries: Vec<_> = entries.iter().map(|entry| Ok((entry.clone(), None))).collect();
    machine.apply(futures::stream::iter(entries)).await.unwrap();
}

fn vote(term: u64) -> Vote {
    Vote::from_leader_id(<TypeConfig as openraft::RaftTypeConfig>::LeaderId::new(term, 1), false)
}

/// What the member has told others, and must know after any crash.
#[derive(Clone, Debug, Default)]
struct Promised {
    vote: Option<Vote>,
    /// Acknowledged, and agreed on for all that it knows.
    last: Option<LogId>,
}

struct Crash {
    name: String,
    directory: PathBuf,
    promised: Promised,
}

#[derive(Default)]
struct Recorded {
    promised: Promised,
    synced: u64,
    crashes: Vec<Crash>,
}

/// The newest write-ahead log of a folder, with its length.
fn newest_wal(directory: &Path) -> (PathBuf, u64) {
    let logs = fs::read_dir(directory.join("raft")).unwrap().map(|entry| entry.unwrap().path());
    let newest = logs.filter(|path| path.extension().is_some_and(|e| e == "log")).max().unwrap();
    let length = fs::metadata(&newest).unwrap().len();
    (newest, length)
}

/// Copies the folder of a member as each kind of crash would leave it now.
fn crash(directory: &Path, copies: &Path, step: &'static str, recorded: &mut Recorded) {
    let (wal, length) = newest_wal(directory);
    if step.ends_with("synced") {
        recorded.synced = length;
    }
    let kinds = [("killed", length), ("power cut", recorded.synced)];
    // Where nothing is unsynced they are the same.
    for (kind, kept) in kinds.into_iter().take(if recorded.synced < length { 2 } else { 1 }) {
        let at = recorded.crashes.len();
        let copied = copies.join(at.to_string());
        copy(directory, &copied);
        let torn = copied.join("raft").join(wal.file_name().unwrap());
        fs::OpenOptions::new().write(true).open(torn).unwrap().set_len(kept).unwrap();
        let promised = recorded.promised.clone();
        recorded.crashes.push(Crash {
            name: format!("{at}: {kind} when {step}"),
            directory: copied,
            promised,
        });
    }
}

/// Starts again from what a crash left, as openraft does, and goes on as the leader tells.
async fn recover(crash: &Crash, history: &[Entry], others: &[Whole]) {
    let name = &crash.name;
    let (store, mut log, mut machine, shared) = open(&crash.directory);
    if let Some(snapshot) = machine.get_current_snapshot().await.unwrap()
        && snapshot.meta.last_log_id > machine.applied_state().await.unwrap().0
    {
        machine.install_snapshot(&snapshot.meta, snapshot.snapshot).await.unwrap();
    }
    let found = whole(&store, &mut machine, &shared).await;
    let next = found.applied.map_or(0, |applied| applied.index as usize + 1);
    match next.checked_sub(1) {
        Some(applied) => assert_eq!(found, others[applied], "{name}: not what others were then"),
        None => assert_eq!(found.state, StateMachine::default().to_changes(), "{name}"),
    }
    let mut reader = log.get_log_reader().await;
    assert!(reader.read_vote().await.unwrap() >= crash.promised.vote, "{name}: a vote is lost");
    let state = log.get_log_state().await.unwrap();
    let last = state.last_log_id.max(found.applied);
    assert!(last >= crash.promised.last, "{name}: an acknowledged entry is lost: {last:?}");

    // A snapshot stands for more than the log: the rest of it is of no use.
    if state.last_log_id < found.applied
        && let Some(applied) = found.applied
    {
        log.purge(applied).await.unwrap();
    }
    let kept = reader.try_get_log_entries(0..).await.unwrap();
    let wrong = kept.iter().find(|entry| history[entry.log_id().index as usize].log_id() != entry.log_id());
    if let Some(wrong) = wrong {
        let before = wrong.log_id().index.checked_sub(1).map(log_id);
        assert!(before >= found.applied, "{name}: applied what was not agreed on");
        log.truncate_after(before).await.unwrap();
    }
    let has = log.get_log_state().await.unwrap().last_log_id.map_or(0, |last| last.index as usize + 1);
    append(&mut log, &history[has..]).await;
    apply(&mut machine, &history[next..]).await;
    assert_eq!(
        Some(&whole(&store, &mut machine, &shared).await),
        others.last(),
        "{name}: not what others are"
    );
    let all = reader.try_get_log_entries(0..).await.unwrap();
    let first =
        log.get_log_state().await.unwrap().last_purged_log_id.map_or(0, |purged| purged.index as usize + 1);
    assert_eq!(all, history[first..], "{name}: the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_crash_at_any_step_a_member_becomes_what_the_others_are() {
    let history = history();
    // A member that never crashed, as it was after each entry.
    let other = tempfile::tempdir().unwrap();
    let (store, _log, mut machine, shared) = open(other.path());
    let (mut others, mut received) = (Vec::new(), None);
    for entry in &history {
        apply(&mut machine, std::slice::from_ref(entry)).await;
        others.push(whole(&store, &mut machine, &shared).await);
        if entry.log_id().index == 18 {
            received = Some(machine.get_snapshot_builder().await.build_snapshot().await.unwrap());
        }
    }
    let received = received.unwrap();

    let (own, copies): (TempDir, TempDir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_store, mut log, mut machine, _shared) = open(own.path());
    let synced = newest_wal(own.path()).1;
    let recorded = Arc::new(Mutex::new(Recorded { synced, ..Recorded::default() }));
    let (watched, directory, copied) =
        (Arc::clone(&recorded), own.path().to_owned(), copies.path().to_owned());
    crash_steps::watch(own.path(), move |step| crash(&directory, &copied, step, &mut watched.lock()));
    let promise = |term: u64, last: Option<LogId>| {
        recorded.lock().promised = Promised { vote: Some(vote(term)), last };
    };

    log.save_vote(&vote(1)).await.unwrap();
    promise(1, None);
    append(&mut log, &history[0..=2]).await;
    promise(1, Some(log_id(2)));
    apply(&mut machine, &history[0..=1]).await;
    // The leader of term 1 dies before others have all of what it sent.
    let lost = |index: u64| {
        Entry::new(LogId::new(<CommittedLeaderIdOf<TypeConfig>>::new(1), index), Payload::default())
    };
    append(&mut log, &[&history[3..=6], &[lost(7), lost(8), lost(9)]].concat()).await;
    promise(1, Some(log_id(6)));
    apply(&mut machine, &history[2..=5]).await;
    log.save_vote(&vote(2)).await.unwrap();
    promise(2, Some(log_id(6)));
    log.truncate_after(Some(log_id(6))).await.unwrap();
    append(&mut log, &history[7..=14]).await;
    promise(2, Some(log_id(14)));
    apply(&mut machine, &history[6..=10]).await;
    let mut writer = machine.get_snapshot_builder().await;
    apply(&mut machine, &history[11..=12]).await;
    writer.build_snapshot().await.unwrap();
    log.purge(log_id(9)).await.unwrap();
    apply(&mut machine, &history[13..=13]).await;
    log.save_vote(&vote(3)).await.unwrap();
    promise(3, Some(log_id(14)));
    // It was away: the leader sends its snapshot, then the rest of the log.
    let mut taken = machine.folder().create().unwrap();
    std::io::copy(&mut { received.snapshot }.file, &mut taken.file).unwrap();
    machine.install_snapshot(&received.meta, taken).await.unwrap();
    promise(3, Some(log_id(18)));
    log.purge(log_id(18)).await.unwrap();
    append(&mut log, &history[19..]).await;
    promise(3, Some(log_id(LAST)));
    apply(&mut machine, &history[19..]).await;
    crash_steps::unwatch(own.path());

    let crashes = std::mem::take(&mut recorded.lock().crashes);
    let power_cuts = crashes.iter().filter(|crash| crash.name.contains("power cut")).count();
    assert!(crashes.len() > 40 && power_cuts > 10, "{} crashes, {power_cuts} power cuts", crashes.len());
    for crash in &crashes {
        recover(crash, &history, &others).await;
    }
}
