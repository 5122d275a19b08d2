//! The state machine on disk: applies committed entries in memory and on disk, takes and installs snapshots.
//!
//! Invariants: the records and the index they stand for change in one write; an answer is given, and a commit announced, only
//! after that write; an entry that this version cannot read stops the member rather than being skipped.

use std::{io, path::Path, sync::Arc};

use futures::{Stream, StreamExt as _};
use openraft::{
    OptionalSend,
    entry::RaftEntry as _,
    storage::{ApplyResponder, EntryResponder, RaftStateMachine},
};

use super::{
    applied::Shared,
    audit_log::AuditLog,
    events::EventLog,
    options::APPLY_BATCH_MAX,
    records::{self, corrupt},
    snapshot::{SnapshotFolder, SnapshotWriter},
    snapshot_file::{Content, SnapshotFile},
    store::Store,
    types::{Answer, Entry, LogId, Snapshot, SnapshotMeta, StoredMembership, TypeConfig},
};
use crate::state::{Command, StateMachine};

/// The state machine, for Raft's core.
pub(super) struct MachineStore {
    store: Arc<Store>,
    folder: Arc<SnapshotFolder>,
    shared: Arc<Shared>,
    events: EventLog,
    audit: AuditLog,
    applied: Option<LogId>,
    membership: StoredMembership,
}

type Waiting = (Entry, Option<ApplyResponder<TypeConfig>>);

impl MachineStore {
    /// Loads the state as it is on disk.
    pub(super) fn open(store: Arc<Store>, directory: &Path) -> io::Result<(Self, Arc<Shared>)> {
        let (applied, membership) = store.applied()?;
        let folder = SnapshotFolder::open(directory, applied)?;
        let machine = records::load(&store)?;
        let events = EventLog::open(&store)?;
        let audit = AuditLog::open(&store)?;
        let shared = Arc::new(Shared::new(machine, index(applied), Arc::clone(&store))?);
        Ok((Self { store, folder, events, audit, shared: Arc::clone(&shared), applied, membership }, shared))
    }

    /// Where received snapshots are put.
    pub(super) fn folder(&self) -> Arc<SnapshotFolder> {
        Arc::clone(&self.folder)
    }

    fn apply_batch(&mut self, waiting: Vec<Waiting>) -> io::Result<()> {
        let Some((last, _)) = waiting.last() else { return Ok(()) };
        let applied = Some(last.log_id());
        let mut commands = Vec::with_capacity(waiting.len());
        let mut membership = None;
        for (entry, _) in &waiting {
            let log_id = entry.log_id();
            let command =
                entry.payload.command.as_ref().map(|encoded| Command::decode(&encoded.0)).transpose();
            commands.push(command.map_err(|error| corrupt(format!("log entry {}: {error}", log_id.index)))?);
            if let Some(new) = &entry.payload.membership {
                membership = Some(StoredMembership::new(Some(log_id), new.clone()));
            }
        }
        let index = index(applied);
        let (answers, commits, events, audit) = self.shared.update(|machine| {
            let mut answers = Vec::with_capacity(waiting.len());
            let mut commits = Vec::new();
            let mut events = Vec::new();
            let mut audit = Vec::new();
            for ((entry, _), command) in waiting.iter().zip(&commands) {
                let answer = command.as_ref().map(|command| {
                    let done = machine.apply(entry.log_id().index, command);
                    commits.push(done.commit);
                    if !done.events.is_empty() {
                        events.push((entry.log_id().index, done.events));
                    }
                    if !done.audit.is_empty() {
                        audit.push((entry.log_id().index, done.audit));
                    }
                    done.response
                });
                answers.push(Answer(answer));
            }
            Ok(((answers, commits, events, audit), index))
        })?;
        let mut batch = self.store.batch();
        for change in commits.iter().flat_map(|commit| &commit.changes) {
            records::put(&self.store, &mut batch, change)?;
        }
        for (index, events) in &events {
            self.events.put(&self.store, &mut batch, *index, events)?;
        }
        for (index, records) in &audit {
            self.audit.put(&self.store, &mut batch, *index, records)?;
        }
        let membership = membership.unwrap_or_else(|| self.membership.clone());
        self.store.put_applied(&mut batch, &applied, &membership)?;
        self.store.commit(batch)?;
        (self.applied, self.membership) = (applied, membership);
        self.shared.announce(commits, index);
        for ((_, responder), answer) in waiting.into_iter().zip(answers) {
            if let Some(responder) = responder {
                responder.send(answer);
            }
        }
        Ok(())
    }

    fn install(&mut self, meta: &SnapshotMeta, mut file: SnapshotFile) -> io::Result<()> {
        let Content { meta: written_for, changes, events, audit } = file.read()?;
        if written_for != *meta {
            return Err(corrupt(format!("snapshot: it stands for {written_for}, not for {meta}")));
        }
        let mut batch = self.store.batch();
        records::clear(&self.store, &mut batch);
        for change in &changes {
            records::put(&self.store, &mut batch, change)?;
        }
        self.events.replace(&self.store, &mut batch, &events)?;
        self.audit.replace(&self.store, &mut batch, &audit)?;
        let machine = StateMachine::from_changes(changes).map_err(|error| corrupt(error.to_string()))?;
        self.store.put_applied(&mut batch, &meta.last_log_id, &meta.last_membership)?;
        // First the file: a crash between the two installs it again at the next start.
        self.folder.adopt(meta, file)?;
        self.store.commit_synced(batch)?;
        (self.applied, self.membership) = (meta.last_log_id, meta.last_membership.clone());
        self.shared.replace(machine, index(self.applied));
        Ok(())
    }
}

fn index(log_id: Option<LogId>) -> u64 {
    log_id.map_or(0, |log_id| log_id.index)
}

impl RaftStateMachine<TypeConfig> for MachineStore {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = SnapshotWriter;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let mut batches = entries.ready_chunks(APPLY_BATCH_MAX);
        while let Some(batch) = batches.next().await {
            self.apply_batch(batch.into_iter().collect::<Result<_, _>>()?)?;
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotWriter {
        let meta = SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() };
        SnapshotWriter::take(Arc::clone(&self.store), Arc::clone(&self.folder), meta).await
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotFile,
    ) -> Result<(), io::Error> {
        self.install(meta, snapshot)
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        self.folder.current()
    }
}
