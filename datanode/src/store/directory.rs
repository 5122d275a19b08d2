//! A pool that is a directory of a file system: a folder for each replica, with its data as a sparse file.
//!
//! ```text
//! DIR/lock               held while a process uses the pool; names that process
//! DIR/pool               which cluster and node the pool belongs to
//! DIR/<volume uuid>/     a replica: `superblock`, `data`, `checksums`, `log`, `intent-<n>` and `bitmap-<node>`
//! DIR/restores/          other contents of replicas, that may take their places: [`restores`]
//! DIR/layers/            what replicas have in common, for snapshots and clones: [`super::layers`]
//! DIR/.<volume uuid>.new      being created; never served, removed at the next start
//! DIR/.<volume uuid>.removed  being removed; removed for good at the next start
//! ```
//!
//! Invariants: a replica's folder appears whole or not at all, and what a crash left half is removed at the next start. What the pool does not
//! know it leaves alone.

mod restores;

use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use holdfast_replica::ids::{BootId, ClusterId, NodeNumber, VolumeId};

use super::bookkeeping::{Area, Bookkeeping};
use super::checked;
use super::file::FileStore;
use super::layers::library::{Library, TakeError};
use super::layers::{sync_directory, synced};
use super::pool::{Backend, Fill, PoolError, Space, Staged};
use super::replica::{ReplicaError, ReplicaShape};
use super::{Store, StoreError};

const LOCK_FILE: &str = "lock";
const MARKER_FILE: &str = "pool";
const MARKER_TITLE: &str = "holdfast pool 1";
/// Longest marker file that is read, in bytes.
const MARKER_LEN_MAX: u64 = 4096;
const SUPERBLOCK_FILE: &str = "superblock";
const CHECKSUMS_FILE: &str = "checksums";
const LOG_FILE: &str = "log";
const BITMAP_PREFIX: &str = "bitmap-";
const INTENT_PREFIX: &str = "intent-";

/// A directory that this process holds.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    library: Library,
    /// Held open for its lock.
    _lock: File,
}

impl Directory {
    /// Takes the directory for `node` of `cluster`, and makes it if there is none. Removes what a crash left half created or half
    /// removed.
    pub(super) fn open(
        path: &Path,
        boot: BootId,
        cluster: ClusterId,
        node: &str,
    ) -> Result<Directory, PoolError> {
        let failed = |action| move |error| PoolError::Io { place: place(path), action, error };
        // Not `create_dir_all` alone: it says of a disk that cannot be read that the directory exists.
        match fs::metadata(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(path).map_err(failed("create"))?;
            }
            found => {
                found.map_err(failed("look at it"))?;
            }
        }
        let lock = lock(path)?;
        check_or_write_marker(path, cluster, node)?;
        let library = Library::new(path, boot);
        let directory = Directory { path: path.to_path_buf(), library, _lock: lock };
        directory.sweep().map_err(failed("remove leftovers"))?;
        Ok(directory)
    }

    fn folder(&self, volume: VolumeId) -> PathBuf {
        self.path.join(volume.to_string())
    }

    fn sweep(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            let Some(name) = name.to_str() else { continue };
            let inner =
                name.strip_prefix('.').and_then(|n| n.strip_suffix(".new").or(n.strip_suffix(".removed")));
            if inner.and_then(parse_uuid).is_some() {
                tracing::info!(
                    pool = %self.path.display(),
                    leftover = name,
                    "removing what a stop left behind"
                );
                remove_folder(&self.path.join(name))?;
            }
        }
        self.sweep_restores()?;
        // A pool of which not all can be read still serves the rest; nothing is removed from it.
        if let Err(error) = self.library.sweep() {
            tracing::warn!(pool = %self.path.display(), %error, "layers that nothing lies on cannot be looked for");
        }
        Ok(())
    }

    fn create_on(
        &self,
        volume: VolumeId,
        shape: &ReplicaShape,
        fill: Fill<'_>,
        layer: Option<VolumeId>,
    ) -> Result<(), ReplicaError> {
        self.create_in(&self.path, volume, shape, &|folder| fill(&Folder::create(folder)?), layer)
    }

    /// Makes the folder of a replica in `parent`.
    fn create_in(
        &self,
        parent: &Path,
        volume: VolumeId,
        shape: &ReplicaShape,
        fill: &dyn Fn(&Path) -> io::Result<()>,
        layer: Option<VolumeId>,
    ) -> Result<(), ReplicaError> {
        let folder = parent.join(volume.to_string());
        if folder.exists() {
            return Err(ReplicaError::Io(io::ErrorKind::AlreadyExists.into()));
        }
        let temporary = parent.join(format!(".{volume}.new"));
        remove_folder(&temporary)?;
        fs::create_dir(&temporary)?;
        let make = || -> Result<(), ReplicaError> {
            self.library.create_data(&temporary, shape.bytes(), !shape.thin, layer)?;
            if shape.checksums {
                let len = checked::sums_len(shape.bytes());
                let sums = FileStore::create(&temporary.join(CHECKSUMS_FILE), len, !shape.thin)?;
                checked::create(&sums, volume)?;
            }
            fill(&temporary)?;
            sync_directory(&temporary)?;
            fs::rename(&temporary, &folder)?;
            Ok(sync_directory(parent)?)
        };
        make().inspect_err(|_| {
            // A full disk is the usual cause: what was reserved must not stay behind.
            let _ = remove_folder(&temporary);
        })
    }
}

impl Backend for Directory {
    fn space(&self) -> io::Result<Space> {
        let fs = rustix::fs::statvfs(&self.path)?;
        Ok(Space {
            capacity_bytes: fs.f_blocks.saturating_mul(fs.f_frsize),
            free_bytes: fs.f_bavail.saturating_mul(fs.f_frsize),
        })
    }

    fn replicas(&self) -> io::Result<Vec<VolumeId>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            found.extend(entry?.file_name().to_str().and_then(parse_uuid));
        }
        found.sort_unstable();
        Ok(found)
    }

    fn has_replica(&self, volume: VolumeId) -> bool {
        self.folder(volume).is_dir()
    }

    fn create(&self, volume: VolumeId, shape: &ReplicaShape, fill: Fill<'_>) -> Result<(), ReplicaError> {
        self.create_on(volume, shape, fill, None)
    }

    fn create_from(
        &self,
        source: &dyn Store,
        volume: VolumeId,
        shape: &ReplicaShape,
        fill: Fill<'_>,
    ) -> Result<(), TakeError> {
        let data = source.as_layered().filter(|_| !shape.checksums).ok_or(TakeError::Unsupported)?;
        // Held until the replica is in place: only then is it seen that it lies on the layer.
        let (layer, _pin) = self.library.take(data, volume)?;
        self.create_on(volume, shape, fill, Some(layer)).map_err(|error| match error {
            ReplicaError::Io(error) => TakeError::Io(error),
            other => TakeError::Io(io::Error::other(other)),
        })
    }

    fn stage(
        &self,
        source: &dyn Store,
        volume: VolumeId,
        shape: &ReplicaShape,
        staged: &Staged,
        fill: Fill<'_>,
    ) -> Result<(), TakeError> {
        self.stage_restore(source, volume, shape, staged, fill)
    }

    fn staged(&self, volume: VolumeId) -> io::Result<Option<Staged>> {
        self.find_staged(volume)
    }

    fn settle(&self, volume: VolumeId, keep: bool) -> io::Result<()> {
        self.settle_restore(volume, keep)
    }

    fn merge_layers(&self, bytes_max: u64) -> Result<bool, StoreError> {
        self.library.merge_some(bytes_max)
    }

    fn bookkeeping(&self, volume: VolumeId) -> io::Result<Box<dyn Bookkeeping>> {
        Ok(Box::new(Folder::open(&self.folder(volume))?))
    }

    fn store(&self, volume: VolumeId, size: u64) -> io::Result<Box<dyn Store>> {
        Ok(Box::new(self.library.open_data(volume, &self.folder(volume), size)?))
    }

    fn keeps_checksums(&self) -> bool {
        true
    }

    fn checksums(&self, volume: VolumeId, size: u64) -> io::Result<Option<Box<dyn Store>>> {
        let path = self.folder(volume).join(CHECKSUMS_FILE);
        if !path.try_exists()? {
            return Ok(None);
        }
        Ok(Some(Box::new(FileStore::open(&path, checked::sums_len(size))?)))
    }

    fn remove(&self, volume: VolumeId) -> io::Result<()> {
        self.settle_restore(volume, false)?;
        let removed = self.path.join(format!(".{volume}.removed"));
        match fs::rename(self.folder(volume), &removed) {
            Ok(()) => sync_directory(&self.path)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        remove_folder(&removed)?;
        sync_directory(&self.path)?;
        self.library.sweep()
    }

    fn directory(&self) -> Option<&Path> {
        Some(&self.path)
    }
}

/// The bookkeeping of one replica, a file for each area.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    superblock: File,
    log: File,
}

impl Folder {
    /// Makes the files that always exist. Their entries in the folder are not durable yet.
    pub(super) fn create(path: &Path) -> io::Result<Folder> {
        let make = |name| File::options().read(true).write(true).create_new(true).open(path.join(name));
        Ok(Folder { path: path.to_path_buf(), superblock: make(SUPERBLOCK_FILE)?, log: make(LOG_FILE)? })
    }

    /// A log that is missing is made, empty: it then reads as damaged.
    pub(super) fn open(path: &Path) -> io::Result<Folder> {
        let superblock = File::options().read(true).write(true).open(path.join(SUPERBLOCK_FILE))?;
        let log =
            File::options().read(true).write(true).create(true).truncate(false).open(path.join(LOG_FILE))?;
        Ok(Folder { path: path.to_path_buf(), superblock, log })
    }

    /// Writes a file that may have to be made for it.
    fn write_made(&self, path: &Path, write: impl Fn(&File) -> io::Result<()>) -> io::Result<()> {
        match File::options().write(true).open(path) {
            Ok(file) => write(&file),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                write(&File::create_new(path)?)?;
                sync_directory(&self.path)
            }
            Err(e) => Err(e),
        }
    }

    fn bitmap(&self, node: NodeNumber) -> PathBuf {
        self.path.join(format!("{BITMAP_PREFIX}{}", node.get()))
    }

    fn intent(&self, number: u8) -> PathBuf {
        self.path.join(format!("{INTENT_PREFIX}{number}"))
    }
}

impl Bookkeeping for Folder {
    fn read(&self, area: Area) -> io::Result<Vec<u8>> {
        let whole = |file: &File| {
            let len = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
            let mut bytes = vec![0; len];
            file.read_exact_at(&mut bytes, 0)?;
            Ok(bytes)
        };
        match area {
            Area::Superblock => whole(&self.superblock),
            Area::Log => whole(&self.log),
            Area::Intent(number) => match fs::read(self.intent(number)) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
                read => read,
            },
            Area::Bitmap(node) => fs::read(self.bitmap(node)),
        }
    }

    fn write(&self, area: Area, parts: &[(u64, &[u8])]) -> io::Result<()> {
        let write = |file: &File| {
            parts.iter().try_for_each(|(offset, bytes)| file.write_all_at(bytes, *offset))?;
            file.sync_data()?;
            synced(file);
            Ok(())
        };
        match area {
            Area::Superblock => write(&self.superblock),
            Area::Log => write(&self.log),
            Area::Bitmap(node) => self.write_made(&self.bitmap(node), write),
            Area::Intent(number) => self.write_made(&self.intent(number), write),
        }
    }

    fn remove_bitmap(&self, node: NodeNumber) -> io::Result<()> {
        match fs::remove_file(self.bitmap(node)) {
            Ok(()) => sync_directory(&self.path),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e),
        }
    }

    fn bitmaps(&self) -> io::Result<Vec<NodeNumber>> {
        let mut nodes = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix(BITMAP_PREFIX));
            nodes.extend(number.and_then(|n| n.parse().ok()).and_then(NodeNumber::new));
        }
        Ok(nodes)
    }
}

/// What errors call it.
fn place(path: &Path) -> String {
    format!("directory {}", path.display())
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
    let failed = |error| PoolError::Io { place: place(directory), action: "lock", error };
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
            return Err(PoolError::InUse { place: place(directory), process });
        }
        Err(TryLockError::Error(e)) => return Err(failed(e)),
    }
    file.set_len(0).and_then(|()| file.rewind()).map_err(failed)?;
    writeln!(file, "{}", std::process::id()).map_err(failed)?;
    Ok(file)
}

fn check_or_write_marker(directory: &Path, cluster: ClusterId, node: &str) -> Result<(), PoolError> {
    let failed = |action| move |error| PoolError::Io { place: place(directory), action, error };
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
        place: place(directory),
        found: lines.collect::<Vec<_>>().join(", "),
        expected: format!("cluster {cluster}, node {node}"),
    })
}

/// The inverse of `VolumeId`'s `Display`, and nothing else.
pub(super) fn parse_uuid(text: &str) -> Option<VolumeId> {
    let mut id = [0; 16];
    let mut digits = text.bytes().filter(|b| *b != b'-');
    for byte in &mut id {
        let mut digit = || char::from(digits.next()?).to_digit(16);
        *byte = u8::try_from(digit()? << 4 | digit()?).ok()?;
    }
    let id = VolumeId(id);
    (id.to_string() == text).then_some(id)
}
