//! Files as real block devices, where the machine lets us (loop devices; that takes root).
//!
//! Invariant: a device that was attached is detached when it is dropped; one that is in use then goes when it is let go.

use std::path::{Path, PathBuf};

use crate::tools;

/// A block device.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    /// Makes a device with sectors of so many bytes of a file. `None`, with the reason on standard error, where that cannot be had.
    pub fn attach(file: &Path, sector: u32) -> Option<LoopDevice> {
        let (sector, file) = (sector.to_string(), file.display().to_string());
        match tools::expect_success("losetup", &["--find", "--show", "--sector-size", &sector, &file]) {
            Ok(said) => Some(LoopDevice { path: said.trim().into() }),
            Err(why) => {
                eprintln!("no block device can be had on this machine: {why:#}");
                None
            }
        }
    }

    /// Its path in `/dev`.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        if let Err(why) = tools::expect_success("losetup", &["--detach", &self.path.display().to_string()]) {
            eprintln!("a block device is left behind: {why:#}");
        }
    }
}
