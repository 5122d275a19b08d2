//! Another content of a replica, made beside it, that takes its place as a whole: for a volume that is restored from a snapshot.
//!
//! ```text
//! DIR/restores/<volume uuid>/           a whole replica, as in DIR/<volume uuid>/, and `restore`: which restore it is of
//! DIR/restores/.<volume uuid>.new       being made
//! DIR/restores/.<volume uuid>.removed   being removed; both go at the next start
//!
//! restore:  0 "HFRESTOR"  8    8 generation of the epoch  4    12 reserved  4    16 number of the epoch  8
//!          24 id of the restore  16    40 reserved  20    60 CRC32C of 0..60  4
//! ```
//!
//! Invariants: it appears whole or not at all; it takes the replica's place by two renames, and a crash between them leaves no replica and the other
//! content, which takes the place when it is tried again. The layers that it lies on stay as long as it is there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use holdfast_replica::epoch::Epoch;
use holdfast_replica::ids::VolumeId;

use super::{Directory, Folder, remove_folder};
use crate::store::Store;
use crate::store::layers::library::{RESTORES, TakeError};
use crate::store::layers::{sync_directory, synced};
use crate::store::pool::{Fill, Staged};
use crate::store::replica::{ReplicaError, ReplicaShape};

const FILE: &str = "restore";
const MAGIC: [u8; 8] = *b"HFRESTOR";
const LEN: usize = 64;
const CRC_AT: usize = 60;

impl Directory {
    fn restores(&self) -> PathBuf {
        self.path.join(RESTORES)
    }

    /// Removes what a stop left half made or half removed.
    pub(super) fn sweep_restores(&self) -> io::Result<()> {
        let entries = match fs::read_dir(self.restores()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let name = entry?.file_name();
            if name.to_str().is_some_and(|name| name.starts_with('.')) {
                remove_folder(&self.restores().join(name))?;
            }
        }
        Ok(())
    }

    pub(super) fn stage_restore(
        &self,
        source: &dyn Store,
        volume: VolumeId,
        shape: &ReplicaShape,
        staged: &Staged,
        fill: Fill<'_>,
    ) -> Result<(), TakeError> {
        let data = source.as_layered().filter(|_| !shape.checksums).ok_or(TakeError::Unsupported)?;
        match self.find_staged(volume)? {
            Some(found) if found == *staged => return Ok(()),
            // Of one that was given up.
            Some(_) => self.settle_restore(volume, false)?,
            None => {}
        }
        fs::create_dir_all(self.restores())?;
        sync_directory(&self.path)?;
        let (layer, _pin) = self.library.take(data, staged.id)?;
        let fill = |folder: &Path| {
            fill(&Folder::create(folder)?)?;
            let file = fs::File::create_new(folder.join(FILE))?;
            io::Write::write_all(&mut &file, &encode(staged))?;
            file.sync_all()?;
            synced(&file);
            Ok(())
        };
        self.create_in(&self.restores(), volume, shape, &fill, Some(layer)).map_err(|error| match error {
            ReplicaError::Io(error) => TakeError::Io(error),
            other => TakeError::Io(io::Error::other(other)),
        })
    }

    pub(super) fn find_staged(&self, volume: VolumeId) -> io::Result<Option<Staged>> {
        let folder = self.restores().join(volume.to_string());
        if !folder.try_exists()? {
            return Ok(None);
        }
        let path = folder.join(FILE);
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, format!("{}: damaged", path.display()));
        decode(&fs::read(&path)?).map(Some).ok_or_else(damaged)
    }

    pub(super) fn settle_restore(&self, volume: VolumeId, keep: bool) -> io::Result<()> {
        let restores = self.restores();
        let staged = restores.join(volume.to_string());
        if !staged.try_exists()? {
            return Ok(());
        }
        let removed = if keep { &self.path } else { &restores }.join(format!(".{volume}.removed"));
        remove_folder(&removed)?;
        {
            // Nobody counts who lies on which layer in the middle of it.
            let _held = self.library.hold();
            if keep {
                let folder = self.folder(volume);
                match fs::rename(&folder, &removed) {
                    Ok(()) => sync_directory(&self.path)?,
                    // A crash came between the two.
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    Err(e) => return Err(e),
                }
                fs::rename(&staged, &folder)?;
                sync_directory(&self.path)?;
            } else {
                fs::rename(&staged, &removed)?;
            }
            sync_directory(&restores)?;
        }
        remove_folder(&removed)?;
        // What lay below only that.
        self.library.sweep()
    }
}

fn encode(staged: &Staged) -> [u8; LEN] {
    let mut bytes = Vec::with_capacity(LEN);
    bytes.extend(MAGIC);
    bytes.extend(staged.epoch.generation.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(staged.epoch.number.to_le_bytes());
    bytes.extend(staged.id.0);
    bytes.resize(CRC_AT, 0);
    let crc = crc32c::crc32c(&bytes);
    bytes.extend(crc.to_le_bytes());
    let mut all = [0; LEN];
    all.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    all
}

fn decode(bytes: &[u8]) -> Option<Staged> {
    let crc = u32::from_le_bytes(bytes.get(CRC_AT..LEN)?.try_into().ok()?);
    if bytes.len() != LEN || bytes.get(..8)? != MAGIC || crc != crc32c::crc32c(bytes.get(..CRC_AT)?) {
        return None;
    }
    let generation = u32::from_le_bytes(bytes.get(8..12)?.try_into().ok()?);
    let number = u64::from_le_bytes(bytes.get(16..24)?.try_into().ok()?);
    Some(Staged { id: VolumeId::from_slice(bytes.get(24..40)?)?, epoch: Epoch { generation, number } })
}
