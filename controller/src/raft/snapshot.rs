//! The member's folder of snapshots: the current one, and files that are being written.
//!
//! Invariants: there is one current snapshot, whole and durable; an older one never replaces a newer one; what a crash left
//! half-written is removed at the next start.

use std::{
    fs,
    io::{self, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use openraft::RaftSnapshotBuilder;
use parking_lot::Mutex;
use tokio::{sync::oneshot, task::JoinHandle};

use super::{
    snapshot_file::{SnapshotFile, verify},
    store::{Store, View},
    types::{LogId, Snapshot, SnapshotMeta, TypeConfig},
};

const CURRENT: &str = "current.snapshot";
const TEMPORARY: &str = "tmp";

/// The folder.
pub(super) struct SnapshotFolder {
    path: PathBuf,
    /// Holds the meta of the current snapshot; taken while it is replaced.
    current: Mutex<Option<SnapshotMeta>>,
    next_temporary: AtomicU64,
}

impl SnapshotFolder {
    /// Opens the folder below `directory`; `applied` is what the records of the state stand for.
    pub(super) fn open(directory: &Path, applied: Option<LogId>) -> io::Result<Arc<Self>> {
        let path = directory.join("snapshots");
        fs::create_dir_all(&path)?;
        for found in fs::read_dir(&path)? {
            let found = found?.path();
            if found.extension().is_some_and(|extension| extension == TEMPORARY) {
                fs::remove_file(found)?;
            }
        }
        let file = path.join(CURRENT);
        let current = match verify(&file) {
            Ok(meta) => Some(meta),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            // The records hold all that it held, unless it was just being installed. Then its meta says so, if it still can.
            Err(error) => {
                let needed = SnapshotFile::open(file.clone())
                    .and_then(|mut file| file.read_meta())
                    .map(|meta| meta.last_log_id > applied);
                if applied.is_none() || needed.unwrap_or(false) {
                    return Err(error);
                }
                tracing::warn!(%error, file = %file.display(), "removed a damaged snapshot; the records are whole");
                fs::remove_file(&file)?;
                None
            }
        };
        Ok(Arc::new(Self { path, current: Mutex::new(current), next_temporary: AtomicU64::new(0) }))
    }

    /// A file to be filled.
    pub(super) fn create(&self) -> io::Result<SnapshotFile> {
        let number = self.next_temporary.fetch_add(1, Ordering::Relaxed);
        SnapshotFile::create(self.path.join(format!("{number}.{TEMPORARY}")))
    }

    /// Makes a whole file the current snapshot, unless the current one stands for as much or more.
    pub(super) fn make_current(&self, meta: &SnapshotMeta, mut file: SnapshotFile) -> io::Result<()> {
        let mut current = self.current.lock();
        if current.as_ref().is_some_and(|current| current.last_log_id >= meta.last_log_id) {
            return Ok(());
        }
        file.rename_to(self.path.join(CURRENT))?;
        *current = Some(meta.clone());
        Ok(())
    }

    /// Makes a snapshot that is being installed the current one.
    pub(super) fn adopt(&self, meta: &SnapshotMeta, mut file: SnapshotFile) -> io::Result<()> {
        if file.path == self.path.join(CURRENT) {
            // Installed again after a crash.
            return Ok(());
        }
        if !file.temporary {
            // Somebody else's: leave it to them.
            let mut copy = self.create()?;
            file.file.seek(SeekFrom::Start(0))?;
            io::copy(&mut file.file, &mut copy.file)?;
            file = copy;
        }
        self.make_current(meta, file)
    }

    /// The current snapshot, to be read.
    pub(super) fn current(&self) -> io::Result<Option<Snapshot>> {
        let current = self.current.lock();
        let Some(meta) = current.clone() else { return Ok(None) };
        let snapshot = SnapshotFile::open(self.path.join(CURRENT))?;
        Ok(Some(Snapshot { meta, snapshot }))
    }
}

/// Writes a snapshot of the records as they are when it is begun. Applying goes on meanwhile: the database keeps what was, and nothing
/// of it is gathered in memory.
pub(super) struct SnapshotWriter {
    /// Dropped unsent: nothing is written.
    begin: oneshot::Sender<()>,
    written: JoinHandle<io::Result<Option<Snapshot>>>,
}

impl SnapshotWriter {
    /// Takes the view. `meta` is what the records stand for until this returns.
    pub(super) async fn take(store: Arc<Store>, folder: Arc<SnapshotFolder>, meta: SnapshotMeta) -> Self {
        let (begin, begun) = oneshot::channel();
        let (seen, is_seen) = oneshot::channel();
        let written = tokio::task::spawn_blocking(move || {
            let view = store.view();
            // Who waited may be gone: then nobody begins it either.
            let _ = seen.send(());
            if begun.blocking_recv().is_err() {
                return Ok(None);
            }
            let mut file = folder.create()?;
            write(&store, &view, &meta, &mut file)?;
            drop(view);
            folder.make_current(&meta, file)?;
            folder.current()
        });
        // An error means that the task has ended: its result says why.
        let _ = is_seen.await;
        Self { begin, written }
    }
}

fn write(store: &Store, view: &View<'_>, meta: &SnapshotMeta, file: &mut SnapshotFile) -> io::Result<()> {
    let stands_for = view.applied()?;
    if stands_for != (meta.last_log_id, meta.last_membership.clone()) {
        return Err(io::Error::other(format!("the records stand for {stands_for:?}, not for {meta}")));
    }
    let mut out = file.writer(meta)?;
    // Values are the very records that a snapshot holds.
    for found in view.scan(store.state_cf()) {
        out.change(&found?.1)?;
    }
    for found in view.scan(store.events_cf()) {
        out.event(&found?.1)?;
    }
    for found in view.scan(store.audit_cf()) {
        out.audit(&found?.1)?;
    }
    out.finish(view.events_dropped()?, view.audit_dropped()?)
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotWriter {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let (closed, _) = oneshot::channel();
        let _ = std::mem::replace(&mut self.begin, closed).send(());
        let written = (&mut self.written).await.map_err(io::Error::other)??;
        written.ok_or_else(|| io::Error::other("the snapshot that was just made is gone"))
    }
}
