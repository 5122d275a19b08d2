//! The layers of a pool: who lies on whom, layers taken, merged, and removed once nobody lies on them.
//!
//! ```text
//! DIR/<volume uuid>/origin, data-<n>, present-<n>   a replica that lies on a layer
//! DIR/layers/<uuid>/data, present, origin           a layer, named for the snapshot or clone that it was taken for
//! DIR/layers/.<uuid>.new                            being made; removed at the next start
//! ```
//!
//! Invariants: a layer appears whole or not at all; a folder is put on it by one durable step, before anything is written to its new
//! top; a layer is removed only when no folder names it, and nothing is removed while one cannot be read. A crash at any
//! moment leaves every replica reading what it read before.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use holdfast_replica::ids::{BootId, VolumeId};
use rustix::io::Errno;

use super::layer::{Layer, Over, classify};
use super::origin::Origin;
use super::present::{Present, chunk_shift};
use super::{Layered, Parts, crash, sync_directory};
use crate::store::directory::parse_uuid;
use crate::store::file::FileStore;
use crate::store::{Store as _, StoreError};

const FOLDER: &str = "layers";
/// Holds folders of replicas that are to take the place of others.
pub const RESTORES: &str = "restores";
/// Layers that a replica may lie on, itself among them: each read of what is far below looks at all of them.
pub const DEPTH_MAX: usize = 64;
/// A layer that only one lies on is merged into that one once it takes no more than this many times as many bytes: all layers of a
/// replica then take no more than half again of what it reads as, and each byte is copied a few times at most.
const MERGE_FACTOR: u64 = 2;
/// Layers of so few bytes are merged at once.
const MERGE_ALWAYS_BYTES: u64 = 4 << 20;

/// Why no layer was taken.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// It lies on too many already.
    #[error(
        "its copy has {DEPTH_MAX} layers, the most that there may be; delete snapshots of it, or wait until layers are merged"
    )]
    TooDeep,
    /// The store cannot.
    #[error("no snapshots are taken of volumes with checksums, nor in pools that are no directories")]
    Unsupported,
    /// The system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The data cannot be flushed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// See the module.
#[derive(Debug)]
pub struct Library {
    pool: PathBuf,
    boot: BootId,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    layers: HashMap<VolumeId, Weak<Layer>>,
    tops: HashMap<VolumeId, Weak<Parts>>,
    /// Layers that something is about to lie on.
    pinned: Vec<VolumeId>,
}

/// Keeps a layer, whether anything lies on it already or not, until it is dropped.
#[derive(Debug)]
pub struct Pin<'a>(&'a Library, VolumeId);

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        let mut open = self.0.lock();
        if let Some(at) = open.pinned.iter().position(|layer| *layer == self.1) {
            open.pinned.swap_remove(at);
        }
    }
}

/// Who lies on a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum User {
    Replica(VolumeId),
    Layer(VolumeId),
    /// Something that is being made.
    Coming,
}

impl Library {
    /// Of the pool in this directory, which this process holds, under this boot.
    pub fn new(pool: &Path, boot: BootId) -> Library {
        Library { pool: pool.to_path_buf(), boot, open: Mutex::default() }
    }

    /// Makes the data of a new replica in `folder`: empty, or reading as a layer does. Durable but for the entries in the folder.
    ///
    /// # Errors
    /// As the system reports them; `NotFound` if there is no such layer.
    pub fn create_data(
        &self,
        folder: &Path,
        size: u64,
        reserve: bool,
        on: Option<VolumeId>,
    ) -> io::Result<()> {
        let Some(layer) = on else {
            FileStore::create(&folder.join(Origin::default().data_file()), size, reserve)?;
            return Ok(());
        };
        let _locked = self.lock();
        if !self.folder(layer).is_dir() {
            let message = format!("there is no layer {layer} in pool directory {}", self.pool.display());
            return Err(io::Error::new(io::ErrorKind::NotFound, message));
        }
        let origin = Origin { generation: 1, below: Some((layer, chunk_shift(size))) };
        self.make_top(folder, &origin, size, reserve)?;
        origin.write(folder)
    }

    /// Opens the data of the replica of `volume` in `folder`.
    ///
    /// # Errors
    /// As the system reports them; `InvalidData` where something is damaged.
    pub fn open_data(&self, volume: VolumeId, folder: &Path, size: u64) -> io::Result<Layered> {
        let mut open = self.lock();
        let origin = Origin::read(folder)?;
        remove_other_files(folder, &origin)?;
        let top = self.open_files(&mut open, folder, &origin, size)?;
        let layered = Layered::new(folder, top);
        open.tops.insert(volume, Arc::downgrade(&layered.0));
        Ok(layered)
    }

    /// The layer that reads as `data` does now, which stays at least as long as what is returned. One of the name `name` is made, if there is
    /// none yet. Nothing may be written meanwhile, and what was written is durable afterwards. Blocks.
    ///
    /// # Errors
    /// [`TakeError`]. Where it is not known which top counts after a crash, `data` is out of service from then on.
    pub fn take(&self, data: &Layered, name: VolumeId) -> Result<(VolumeId, Pin<'_>), TakeError> {
        let mut open = self.lock();
        let layer = match same_as(data)? {
            Some(layer) => layer,
            None => {
                self.take_new(&mut open, data, name)?;
                name
            }
        };
        open.pinned.push(layer);
        Ok((layer, Pin(self, layer)))
    }

    fn take_new(&self, open: &mut Open, data: &Layered, name: VolumeId) -> Result<(), TakeError> {
        let _alone = data.0.gate.write().unwrap_or_else(PoisonError::into_inner);
        if self.folder(name).is_dir() {
            if self.users()?.get(&name).is_some_and(|users| !users.is_empty()) {
                return Ok(());
            }
            remove_folder(&self.folder(name))?;
        }
        let top = data.0.top.load_full();
        if top.depth() >= DEPTH_MAX {
            return Err(TakeError::TooDeep);
        }
        top.flush()?;
        let origin = Origin::read(&data.0.folder)?;
        fs::create_dir_all(self.pool.join(FOLDER))?;
        sync_directory(&self.pool)?;
        let new = self.pool.join(FOLDER).join(format!(".{name}.new"));
        remove_folder(&new)?;
        fs::create_dir(&new)?;
        let below = Origin { generation: 0, ..origin };
        if below.below.is_none()
            && reflink(&data.0.folder.join(origin.data_file()), &new.join(below.data_file()))?
        {
            self.put_in_place(&new, name)?;
            return Ok(());
        }
        fs::hard_link(data.0.folder.join(origin.data_file()), new.join(below.data_file()))?;
        if below.below.is_some() {
            fs::hard_link(data.0.folder.join(origin.present_file()), new.join(below.present_file()))?;
            below.write(&new)?;
        }
        self.put_in_place(&new, name)?;
        let size = top.file.size();
        let generation =
            origin.generation.checked_add(1).ok_or_else(|| io::Error::other("no more generations"))?;
        let over = Origin { generation, below: Some((name, chunk_shift(size))) };
        remove_other_files(&data.0.folder, &origin)?;
        let (file, present) = self.make_top(&data.0.folder, &over, size, false)?;
        if let Err(error) = over.write(&data.0.folder) {
            // Which top a restart finds is not known, so nothing may be written to either.
            top.give_up();
            return Err(error.into());
        }
        open.layers.insert(name, Arc::downgrade(&top));
        data.0.top.store(Arc::new(Layer::new(file, Some(Over { base: top, present: Arc::new(present) }))));
        if let Err(error) = remove_other_files(&data.0.folder, &over) {
            tracing::warn!(%error, "what a snapshot left behind is removed when the replica is opened next");
        }
        Ok(())
    }

    /// Removes the layers that nobody lies on any more.
    ///
    /// # Errors
    /// As the system reports them.
    pub fn sweep(&self) -> io::Result<()> {
        let mut open = self.lock();
        let layers = self.pool.join(FOLDER);
        if !layers.is_dir() {
            return Ok(());
        }
        loop {
            let users = self.users_and_pins(&open)?;
            let mut found = false;
            for entry in fs::read_dir(&layers)? {
                let name = entry?.file_name();
                let name = name.to_str().unwrap_or_default();
                let leftover =
                    name.strip_prefix('.').and_then(|n| n.strip_suffix(".new")).and_then(parse_uuid);
                let layer = parse_uuid(name).filter(|id| !users.contains_key(id));
                if leftover.or(layer).is_none() {
                    continue;
                }
                tracing::info!(layer = name, "removing a layer that nothing lies on");
                remove_folder(&layers.join(name))?;
                if let Some(id) = layer {
                    open.layers.remove(&id);
                    found = true;
                }
            }
            sync_directory(&layers)?;
            if !found {
                return Ok(());
            }
        }
    }

    /// Merges layers that only one lies on into that one, at most about `bytes_max` now. True if there is more to do.
    ///
    /// # Errors
    /// [`StoreError`]; trying again is safe.
    pub fn merge_some(&self, bytes_max: u64) -> Result<bool, StoreError> {
        let Some((user, layer, below)) = self.mergeable().map_err(classify)? else { return Ok(false) };
        // Nothing that anyone reads changes, so nobody is held up. Whoever takes a layer meanwhile makes this one part of it.
        let done = layer.bring_up_some(bytes_max);
        layer.flush()?;
        if !done? {
            return Ok(true);
        }
        let open = self.lock();
        let folder = match user {
            User::Layer(id) => self.folder(id),
            User::Replica(id) => self.pool.join(id.to_string()),
            User::Coming => return Ok(false),
        };
        let is_it = match user {
            User::Layer(id) => {
                open.layers.get(&id).and_then(Weak::upgrade).is_some_and(|now| Arc::ptr_eq(&now, &layer))
            }
            User::Replica(id) => open
                .tops
                .get(&id)
                .and_then(Weak::upgrade)
                .is_some_and(|top| Arc::ptr_eq(&top.top.load(), &layer) && top.folder == folder),
            User::Coming => false,
        };
        let origin = Origin::read(&folder).map_err(classify)?;
        let Some(over) = layer.over().filter(|_| is_it && origin.below.is_some_and(|(id, _)| id == below))
        else {
            return Ok(true);
        };
        let further = Origin::read(&self.folder(below)).map_err(classify)?.below;
        let next = further.and_then(|(id, _)| Some((id, origin.below?.1)));
        if let Err(error) = (Origin { below: next, ..origin }).write(&folder) {
            layer.give_up();
            return Err(classify(error));
        }
        layer.set_below(over.base.over().map(|over| Arc::clone(&over.base)));
        drop(open);
        tracing::info!(layer = %below, "a layer that one lay on was merged into that one");
        self.sweep().map_err(classify)?;
        Ok(true)
    }

    /// A layer or top that is alone on another one, is open, and is worth to be merged with it.
    fn mergeable(&self) -> io::Result<Option<(User, Arc<Layer>, VolumeId)>> {
        let mut open = self.lock();
        if !self.pool.join(FOLDER).is_dir() {
            return Ok(None);
        }
        for (below, users) in self.users_and_pins(&open)? {
            let [user] = users[..] else { continue };
            let layer = match user {
                User::Layer(id) => Some(self.open_layer(&mut open, id)?),
                User::Replica(id) => {
                    open.tops.get(&id).and_then(Weak::upgrade).map(|top| top.top.load_full())
                }
                User::Coming => None,
            };
            let Some(layer) = layer else { continue };
            let Some(over) = layer.over() else { continue };
            let used = |layer: &Layer| layer.file.room().map_or(u64::MAX, |room| room.used_bytes);
            let (own, lower) = (over.present.count() << over.present.chunk_shift(), used(&over.base));
            if lower <= own.saturating_mul(MERGE_FACTOR).max(MERGE_ALWAYS_BYTES) {
                return Ok(Some((user, layer, below)));
            }
        }
        Ok(None)
    }

    /// Until what is returned is dropped no layer is taken, merged or removed.
    pub fn hold(&self) -> impl Drop + '_ {
        self.lock()
    }

    fn put_in_place(&self, new: &Path, name: VolumeId) -> io::Result<()> {
        sync_directory(new)?;
        fs::rename(new, self.folder(name))?;
        sync_directory(&self.pool.join(FOLDER))
    }

    fn open_layer(&self, open: &mut Open, id: VolumeId) -> io::Result<Arc<Layer>> {
        if let Some(layer) = open.layers.get(&id).and_then(Weak::upgrade) {
            return Ok(layer);
        }
        let folder = self.folder(id);
        let origin = Origin::read(&folder)?;
        let size = fs::metadata(folder.join(origin.data_file()))?.len();
        let layer = Arc::new(self.open_files(open, &folder, &origin, size)?);
        open.layers.insert(id, Arc::downgrade(&layer));
        Ok(layer)
    }

    fn open_files(&self, open: &mut Open, folder: &Path, origin: &Origin, size: u64) -> io::Result<Layer> {
        let over = match origin.below {
            None => None,
            Some((below, shift)) => {
                let recent = folder.join(origin.recent_file());
                // What a layer has was flushed when it was taken.
                let recent = (origin.generation > 0).then_some((recent.as_path(), self.boot));
                let present = Present::open(&folder.join(origin.present_file()), size, shift, recent)?;
                let present = Arc::new(present);
                Some(Over { base: self.open_layer(open, below)?, present })
            }
        };
        Ok(Layer::new(FileStore::open(&folder.join(origin.data_file()), size)?, over))
    }

    /// The files of an empty top over a layer. The entries in the folder are durable.
    fn make_top(
        &self,
        folder: &Path,
        origin: &Origin,
        size: u64,
        reserve: bool,
    ) -> io::Result<(FileStore, Present)> {
        let shift = origin.below.map_or(chunk_shift(size), |(_, shift)| shift);
        let file = FileStore::create(&folder.join(origin.data_file()), size, reserve)?;
        let (present, recent) = (folder.join(origin.present_file()), folder.join(origin.recent_file()));
        let present = Present::create(&present, size, shift, &recent, self.boot)?;
        sync_directory(folder)?;
        Ok((file, present))
    }

    /// Who lies on each layer.
    fn users(&self) -> io::Result<BTreeMap<VolumeId, Vec<User>>> {
        let mut users: BTreeMap<VolumeId, Vec<User>> = BTreeMap::new();
        let layers = self.pool.join(FOLDER);
        let restores = self.pool.join(RESTORES);
        for (directory, of) in [
            (self.pool.clone(), User::Replica as fn(VolumeId) -> User),
            (layers, User::Layer),
            (restores, |_| User::Coming),
        ] {
            let entries = match fs::read_dir(&directory) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                entries => entries?,
            };
            for entry in entries {
                let name = entry?.file_name();
                let Some(id) = name.to_str().and_then(parse_uuid) else { continue };
                if let Some((below, _)) = Origin::read(&directory.join(&name))?.below {
                    users.entry(below).or_default().push(of(id));
                }
            }
        }
        Ok(users)
    }

    /// The same with what is about to lie on one.
    fn users_and_pins(&self, open: &Open) -> io::Result<BTreeMap<VolumeId, Vec<User>>> {
        let mut users = self.users()?;
        for layer in &open.pinned {
            users.entry(*layer).or_default().push(User::Coming);
        }
        Ok(users)
    }

    fn folder(&self, layer: VolumeId) -> PathBuf {
        self.pool.join(FOLDER).join(layer.to_string())
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The layer that reads as `data` does, if its own top has nothing.
fn same_as(data: &Layered) -> io::Result<Option<VolumeId>> {
    let top = data.0.top.load();
    let untouched = top.over().is_some_and(|over| over.present.count() == 0);
    Ok(Origin::read(&data.0.folder)?.below.filter(|_| untouched).map(|(layer, _)| layer))
}

/// Removes the files of other generations, which a step before or a crash has left.
fn remove_other_files(folder: &Path, origin: &Origin) -> io::Result<()> {
    let mut removed = false;
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let Some(text) = name.to_str() else { continue };
        let is_of = |kind: &str| {
            text.strip_prefix(kind).is_some_and(|rest| {
                rest.is_empty() || rest.strip_prefix('-').is_some_and(|n| n.parse::<u32>().is_ok())
            })
        };
        let is_map = text == origin.present_file() || text == origin.recent_file();
        let used = text == origin.data_file() || (origin.below.is_some() && is_map);
        if ["data", "present", "recent"].into_iter().any(is_of) && !used {
            fs::remove_file(folder.join(text))?;
            removed = true;
        }
    }
    if removed { sync_directory(folder) } else { Ok(()) }
}

/// Shares the blocks of a file with a new one, where the file system can. Durable but for the entry.
fn reflink(from: &Path, to: &Path) -> io::Result<bool> {
    let source = File::open(from)?;
    let target = File::options().write(true).create_new(true).open(to)?;
    match rustix::fs::ioctl_ficlone(&target, &source) {
        Ok(()) => {
            target.sync_all()?;
            crash::synced(&target);
            Ok(true)
        }
        Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::NOSYS | Errno::PERM) => {
            drop(target);
            fs::remove_file(to)?;
            Ok(false)
        }
        Err(e) => Err(e.into()),
    }
}

fn remove_folder(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
