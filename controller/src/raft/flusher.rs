//! The one thread that makes log entries durable: everything that waits is covered by one sync (group commit).
//!
//! Invariant: an append is acknowledged only after a sync that began after it was written succeeded; a failed sync fails
//! every append that waits and all that follow.

use std::{
    io,
    sync::{Arc, mpsc},
    thread::JoinHandle,
};

use openraft::storage::IOFlushed;

use super::{store::Store, types::TypeConfig};

/// Owner of the thread; dropping it lets the thread finish what waits, and waits for that.
pub(super) struct Flusher {
    queue: Option<mpsc::Sender<IOFlushed<TypeConfig>>>,
    thread: Option<JoinHandle<()>>,
}

impl Flusher {
    pub(super) fn start(store: Arc<Store>) -> io::Result<Self> {
        let (queue, waiting) = mpsc::channel::<IOFlushed<TypeConfig>>();
        let thread = std::thread::Builder::new().name("log-sync".to_owned()).spawn(move || {
            while let Ok(first) = waiting.recv() {
                let mut covered = vec![first];
                covered.extend(waiting.try_iter());
                let result = store.sync();
                for append in covered {
                    append.io_completed(match &result {
                        Ok(()) => Ok(()),
                        Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
                    });
                }
            }
        })?;
        Ok(Self { queue: Some(queue), thread: Some(thread) })
    }

    /// Acknowledges an append that is written, after the next sync.
    pub(super) fn acknowledge(&self, append: IOFlushed<TypeConfig>) -> io::Result<()> {
        let gone = || io::Error::other("the thread that syncs the log has ended");
        self.queue.as_ref().ok_or_else(gone)?.send(append).map_err(|_| gone())
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by the thread itself.
            let _ = thread.join();
        }
    }
}
