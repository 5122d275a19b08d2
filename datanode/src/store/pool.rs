//! A pool: a directory in which this node keeps replicas, one folder each.
//!
//! ```text
//! DIR/lock               held while a process uses the pool; names that process
//! DIR/pool               which cluster and node the pool belongs to
//! DIR/<volume uuid>/     a replica: `superblock`, `data`, `log` and `bitmap-<node>`
//! DIR/.<volume uuid>.new      being created; never served, removed at the next start
//! DIR/.<volume uuid>.removed  being removed; removed for good at the next start
//! ```
//!
//! Invariants: one process at a time; a pool of another cluster or node is never touched; a replica's folder appears whole
//! or not at all, and is removed only by [`Pool::remove_replica`], which the caller reaches only when the cluster's record says
//! so. What the pool does not know it leaves alone.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use holdfast_replica::activity_log::ActivityLog;
use holdfast_replica::ids::{ClusterId, NodeNumber, VolumeId};

use super::replica::{Replica, ReplicaError, ReplicaIdentity, ReplicaShape};

const LOCK_FILE: &str = "lock";
const MARKER_FILE: &str = "pool";
const MARKER_TITLE: &str = "holdfast pool 1";
/// Longest marker file that is read, in bytes.
const MARKER_LEN_MAX: u64 = 4096;

/// Why a pool cannot be used, or a replica in it.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// Another process has it.
    #[error("pool directory {} is in use by process {process}", .directory.display())]
    InUse {
        /// The directory.
        directory: PathBuf,
        /// Number of the process, as it wrote it down itself.
        process: String,
    },
    /// It belongs to someone else.
    #[error("pool directory {} belongs to {found}, not to {expected}", .directory.display())]
    Foreign {
        /// The directory.
        directory: PathBuf,
        /// Whose it is.
        found: String,
        /// Who we are.
        expected: String,
    },
    /// The marker file cannot be understood.
    #[error("pool directory {} has a marker file that is not one of Holdfast", .directory.display())]
    Marker {
        /// The directory.
        directory: PathBuf,
    },
    /// The directory has other files in it and no marker: it is not taken over.
    #[error("pool directory {} is not empty and not a pool: name an empty one", .directory.display())]
    NotEmpty {
        /// The directory.
        directory: PathBuf,
    },
    /// The system refused.
    #[error("pool directory {}: {action}: {error}", .directory.display())]
    Io {
        /// The directory.
        directory: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        error: io::Error,
    },
}

/// Space of the file system that a pool lies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// In all, in bytes.
    pub capacity_bytes: u64,
    /// Free for us, in bytes.
    pub free_bytes: u64,
}

/// A pool that this process holds.
#[derive(Debug)]
pub struct Pool {
    name: String,
    directory: PathBuf,
    cluster: ClusterId,
    /// Held open for its lock.
    _lock: File,
}

impl Pool {
    /// Takes the pool `name` in `directory` for `node` of `cluster`, and makes the directory if there is none. Removes what a
    /// crash left half created or half removed.
    ///
    /// # Errors
    /// [`PoolError`].
    pub fn open(name: &str, directory: &Path, cluster: ClusterId, node: &str) -> Result<Pool, PoolError> {
        let failed =
            |action| move |error| PoolError::Io { directory: directory.to_path_buf(), action, error };
        // Not `create_dir_all` alone: it says of a disk that cannot be read that the directory exists.
        match fs::metadata(directory) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(directory).map_err(failed("create"))?;
            }
            found => {
                found.map_err(failed("look at it"))?;
            }
        }
        let lock = lock(directory)?;
        check_or_write_marker(directory, cluster, node)?;
        let pool = Pool { name: name.to_owned(), directory: directory.to_path_buf(), cluster, _lock: lock };
        pool.sweep().map_err(failed("remove leftovers"))?;
        Ok(pool)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// How full it is.
    ///
    /// # Errors
    /// As the system reports them.
    pub fn space(&self) -> io::Result<Space> {
        let fs = rustix::fs::statvfs(&self.directory)?;
        Ok(Space {
            capacity_bytes: fs.f_blocks.saturating_mul(fs.f_frsize),
            free_bytes: fs.f_bavail.saturating_mul(fs.f_frsize),
        })
    }

    /// The replicas in it, whether the cluster still knows them or not.
    ///
    /// # Errors
    /// As the system reports them.
    pub fn replicas(&self) -> io::Result<Vec<VolumeId>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            found.extend(entry?.file_name().to_str().and_then(parse_uuid));
        }
        found.sort_unstable();
        Ok(found)
    }

    /// True if there is a replica of this volume.
    pub fn has_replica(&self, volume: VolumeId) -> bool {
        self.folder(volume).is_dir()
    }

    /// Opens the replica of `volume`. A larger `shape` than it was left with makes it grow.
    ///
    /// # Errors
    /// [`ReplicaError`].
    pub fn open_replica(
        &self,
        volume: VolumeId,
        node: NodeNumber,
        shape: &ReplicaShape,
    ) -> Result<Replica, ReplicaError> {
        let identity = ReplicaIdentity { cluster: self.cluster, volume, node };
        Replica::open(&self.folder(volume), identity, shape)
    }

    /// Makes an empty replica of `volume` with this activity log. A crash leaves a whole one or none.
    ///
    /// # Errors
    /// [`ReplicaError`]; `AlreadyExists` among them if there is one.
    pub fn create_replica(
        &self,
        volume: VolumeId,
        node: NodeNumber,
        shape: &ReplicaShape,
        log: ActivityLog,
    ) -> Result<Replica, ReplicaError> {
        let identity = ReplicaIdentity { cluster: self.cluster, volume, node };
        let folder = self.folder(volume);
        if folder.exists() {
            return Err(ReplicaError::Io(io::ErrorKind::AlreadyExists.into()));
        }
        let temporary = self.directory.join(format!(".{volume}.new"));
        remove_folder(&temporary)?;
        fs::create_dir(&temporary)?;
        let made = Replica::create(&temporary, identity, shape, log).and_then(|()| {
            sync_directory(&temporary)?;
            fs::rename(&temporary, &folder)?;
            sync_directory(&self.directory)?;
            Ok(())
        });
        if let Err(error) = made {
            // A full disk is the usual cause: what was reserved must not stay behind.
            let _ = remove_folder(&temporary);
            return Err(error);
        }
        Replica::open(&folder, identity, shape)
    }

    /// Removes the replica of `volume` for good; none is no error. Nobody may have it open.
    ///
    /// # Errors
    /// As the system reports them; trying again is safe.
    pub fn remove_replica(&self, volume: VolumeId) -> io::Result<()> {
        let removed = self.directory.join(format!(".{volume}.removed"));
        match fs::rename(self.folder(volume), &removed) {
            Ok(()) => sync_directory(&self.directory)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        remove_folder(&removed)?;
        sync_directory(&self.directory)
    }

    fn folder(&self, volume: VolumeId) -> PathBuf {
        self.directory.join(volume.to_string())
    }

    fn sweep(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            let Some(name) = name.to_str() else { continue };
            let inner =
                name.strip_prefix('.').and_then(|n| n.strip_suffix(".new").or(n.strip_suffix(".removed")));
            if inner.and_then(parse_uuid).is_some() {
                tracing::info!(pool = %self.name, leftover = name, "removing what a stop left behind");
                remove_folder(&self.directory.join(name))?;
            }
        }
        Ok(())
    }
}

/// Makes a change of a directory's entries durable.
pub(super) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Writes a whole file so that a crash leaves the old one or the new one.
fn write_file(directory: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let temporary = directory.join(format!(".{name}.tmp"));
    let mut file = File::create(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, directory.join(name))?;
    sync_directory(directory)
}

fn remove_folder(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn lock(directory: &Path) -> Result<File, PoolError> {
    let failed = |error| PoolError::Io { directory: directory.to_path_buf(), action: "lock", error };
    let path = directory.join(LOCK_FILE);
    let mut file =
        File::options().read(true).write(true).create(true).truncate(false).open(path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut process = String::new();
            let _ = (&mut file).take(32).read_to_string(&mut process);
            let process = match process.trim() {
                "" => "unknown".to_owned(),
                number => number.to_owned(),
            };
            return Err(PoolError::InUse { directory: directory.to_path_buf(), process });
        }
        Err(TryLockError::Error(e)) => return Err(failed(e)),
    }
    file.set_len(0).and_then(|()| file.rewind()).map_err(failed)?;
    writeln!(file, "{}", std::process::id()).map_err(failed)?;
    Ok(file)
}

fn check_or_write_marker(directory: &Path, cluster: ClusterId, node: &str) -> Result<(), PoolError> {
    let failed = |action| move |error| PoolError::Io { directory: directory.to_path_buf(), action, error };
    let expected = format!("{MARKER_TITLE}\ncluster {cluster}\nnode {node}\n");
    let mut found = String::new();
    match File::open(directory.join(MARKER_FILE)) {
        Ok(file) => {
            file.take(MARKER_LEN_MAX).read_to_string(&mut found).map_err(failed("read the marker"))?;
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            for entry in fs::read_dir(directory).map_err(failed("read"))? {
                let name = entry.map_err(failed("read"))?.file_name();
                let ours = [LOCK_FILE, ".pool.tmp", "lost+found"];
                if !ours.iter().any(|n| name == *n) {
                    return Err(PoolError::NotEmpty { directory: directory.to_path_buf() });
                }
            }
            return write_file(directory, MARKER_FILE, expected.as_bytes())
                .map_err(failed("write the marker"));
        }
        Err(e) => return Err(failed("open the marker")(e)),
    }
    if found == expected {
        return Ok(());
    }
    let mut lines = found.lines();
    if lines.next() != Some(MARKER_TITLE) {
        return Err(PoolError::Marker { directory: directory.to_path_buf() });
    }
    Err(PoolError::Foreign {
        directory: directory.to_path_buf(),
        found: lines.collect::<Vec<_>>().join(", "),
        expected: format!("cluster {cluster}, node {node}"),
    })
}

/// The inverse of `VolumeId`'s `Display`, and nothing else.
fn parse_uuid(text: &str) -> Option<VolumeId> {
    let mut id = [0; 16];
    let mut digits = text.bytes().filter(|b| *b != b'-');
    for byte in &mut id {
        let mut digit = || char::from(digits.next()?).to_digit(16);
        *byte = u8::try_from(digit()? << 4 | digit()?).ok()?;
    }
    let id = VolumeId(id);
    (id.to_string() == text).then_some(id)
}
