//! What a replica's folder, or a layer's, says of its files: which of them are in use, and which layer lies below.
//!
//! ```text
//!  byte
//!     0  "HFORIGIN"                8
//!     8  version 1                 2
//!    10  chunk size, 2^n bytes     1    0 without a layer below
//!    11  a layer lies below, 0/1   1
//!    12  generation                4    of the files: `data-<n>`, `present-<n>`, `recent-<n>`; without number for 0
//!    16  layer below              16
//!    32  reserved                 28
//!    60  CRC32C of 0..60           4
//! ```
//!
//! Invariant: the file is replaced as a whole, durably: a crash leaves the old one or the new one. A folder without one holds
//! `data`, and nothing lies below.

use std::fs;
use std::io;
use std::path::Path;

use holdfast_replica::ids::VolumeId;

use super::crash;

const FILE: &str = "origin";
const LEN: usize = 64;
const CRC_AT: usize = 60;
const MAGIC: [u8; 8] = *b"HFORIGIN";
const VERSION: u16 = 1;

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// Of the files.
    pub generation: u32,
    /// The layer below, and the log2 of the size of the chunks that lie over it.
    pub below: Option<(VolumeId, u8)>,
}

impl Origin {
    /// Of a folder.
    ///
    /// # Errors
    /// As the system reports them; `InvalidData` where the file is damaged.
    pub fn read(folder: &Path) -> io::Result<Origin> {
        let bytes = match fs::read(folder.join(FILE)) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Origin::default()),
            Err(e) => return Err(e),
        };
        Origin::decode(&bytes).ok_or_else(|| {
            let message = format!("{}: damaged", folder.join(FILE).display());
            io::Error::new(io::ErrorKind::InvalidData, message)
        })
    }

    /// Puts it into a folder in place of what was there.
    ///
    /// # Errors
    /// As the system reports them: which of both holds is then not known.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        let temporary = folder.join(".origin.tmp");
        let file = fs::File::create(&temporary)?;
        io::Write::write_all(&mut &file, &self.encode())?;
        file.sync_all()?;
        crash::synced(&file);
        fs::rename(&temporary, folder.join(FILE))?;
        crash::sync_directory(folder)
    }

    /// Name of the data's file.
    pub fn data_file(&self) -> String {
        name("data", self.generation)
    }

    /// Name of the map's file.
    pub fn present_file(&self) -> String {
        name("present", self.generation)
    }

    /// Name of the file of what is not flushed yet.
    pub fn recent_file(&self) -> String {
        name("recent", self.generation)
    }

    fn encode(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        let mut put = |at: usize, part: &[u8]| {
            if let Some(place) = bytes.get_mut(at..at + part.len()) {
                place.copy_from_slice(part);
            }
        };
        put(0, &MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(12, &self.generation.to_le_bytes());
        if let Some((layer, shift)) = self.below {
            put(10, &[shift, 1]);
            put(16, &layer.0);
        }
        let crc = crc32c::crc32c(bytes.get(..CRC_AT).unwrap_or_default());
        if let Some(place) = bytes.get_mut(CRC_AT..) {
            place.copy_from_slice(&crc.to_le_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Origin> {
        let crc = u32::from_le_bytes(bytes.get(CRC_AT..LEN)?.try_into().ok()?);
        if bytes.len() != LEN
            || crc != crc32c::crc32c(bytes.get(..CRC_AT)?)
            || bytes.get(..8)? != MAGIC
            || bytes.get(8..10)? != VERSION.to_le_bytes()
        {
            return None;
        }
        let generation = u32::from_le_bytes(bytes.get(12..16)?.try_into().ok()?);
        let layer = VolumeId::from_slice(bytes.get(16..32)?)?;
        let below = match (*bytes.get(11)?, *bytes.get(10)?) {
            (0, 0) => None,
            (1, shift @ 9..=40) => Some((layer, shift)),
            _ => return None,
        };
        Some(Origin { generation, below })
    }
}

fn name(kind: &str, generation: u32) -> String {
    if generation == 0 { kind.to_owned() } else { format!("{kind}-{generation}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origin_reads_back_and_damage_is_told() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Origin::read(dir.path()).unwrap(), Origin::default());
        for below in [None, Some((VolumeId([7; 16]), 16))] {
            let origin = Origin { generation: 9, below };
            origin.write(dir.path()).unwrap();
            assert_eq!(Origin::read(dir.path()).unwrap(), origin);
        }
        let mut bytes = fs::read(dir.path().join(FILE)).unwrap();
        for at in 0..LEN {
            bytes[at] ^= 1;
            assert_eq!(Origin::decode(&bytes), None, "byte {at}");
            bytes[at] ^= 1;
        }
        fs::write(dir.path().join(FILE), &bytes[..LEN - 1]).unwrap();
        assert_eq!(Origin::read(dir.path()).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
