//! For tests: the moments after which a crash leaves something else on disk than before.
//!
//! Invariant: the code that is tested does the same whether or not anybody watches.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;

type Watcher = Arc<dyn Fn(&'static str) + Send + Sync>;

static WATCHED: Mutex<Vec<(PathBuf, Watcher)>> = Mutex::new(Vec::new());

/// From now on `look` is called at every step of the member whose folder this is, on the thread that has made it.
pub(super) fn watch(directory: &Path, look: impl Fn(&'static str) + Send + Sync + 'static) {
    WATCHED.lock().push((directory.to_owned(), Arc::new(look)));
}

/// Nobody watches this folder any more.
pub(super) fn unwatch(directory: &Path) {
    WATCHED.lock().retain(|(watched, _)| watched != directory);
}

/// Something below `path` was done.
pub(super) fn reached(path: &Path, step: &'static str) {
    let watched = WATCHED.lock().iter().find(|(directory, _)| path.starts_with(directory)).cloned();
    if let Some((_, look)) = watched {
        look(step);
    }
}
