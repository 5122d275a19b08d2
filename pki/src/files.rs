//! Reading and writing of key material. Invariant: what is secret is never readable by others, not even for a moment.

use std::{fs, io::Write, os::unix::fs::OpenOptionsExt, path::Path};

use crate::PkiError;

pub(crate) fn io_error(path: &Path) -> impl FnOnce(std::io::Error) -> PkiError + '_ {
    move |source| PkiError::Io { path: path.display().to_string(), source }
}

pub(crate) fn malformed(path: &Path, reason: impl ToString) -> PkiError {
    PkiError::Malformed { path: path.display().to_string(), reason: reason.to_string() }
}

pub(crate) fn read(path: &Path) -> Result<String, PkiError> {
    fs::read_to_string(path).map_err(io_error(path))
}

/// Writes a file with the given mode, replacing an older one in one step so that a reader never sees half of it.
pub(crate) fn write(path: &Path, content: &str, mode: u32) -> Result<(), PkiError> {
    let temporary = path.with_extension("new");
    // A left-over of a crash may have another mode, which opening would keep.
    let _ = fs::remove_file(&temporary);
    let mut file = fs::OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(mode)
        .open(&temporary)
        .map_err(io_error(&temporary))?;
    file.write_all(content.as_bytes()).and_then(|()| file.sync_all()).map_err(io_error(&temporary))?;
    fs::rename(&temporary, path).map_err(io_error(path))
}

pub(crate) fn create_directory(path: &Path) -> Result<(), PkiError> {
    fs::create_dir_all(path).map_err(io_error(path))
}
