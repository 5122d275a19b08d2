//! Where data reaches the medium, told to a test that wants to know: it keeps what is durable, and so knows what a loss of
//! power would leave. Elsewhere these are plain calls.

use std::fs::File;
use std::io;
use std::path::Path;

/// A file has been flushed.
#[inline]
pub(in crate::store) fn synced(file: &File) {
    #[cfg(test)]
    super::crash_tests::synced(file);
    #[cfg(not(test))]
    let _ = file;
}

/// A part of a file has been written through.
#[inline]
pub(in crate::store) fn synced_part(file: &File, offset: u64, len: usize) {
    #[cfg(test)]
    super::crash_tests::synced_part(file, offset, len);
    #[cfg(not(test))]
    let _ = (file, offset, len);
}

/// Makes a change of a directory's entries durable.
pub(in crate::store) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()?;
    #[cfg(test)]
    super::crash_tests::synced_directory(directory);
    Ok(())
}
