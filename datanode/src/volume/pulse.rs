//! The thread that tells the replication cores that time passes, and the controller how the replicas are.
//!
//! Invariants: every engine is told about every [`TICK`]; each change of a replica's state is reported, at most once in
//! [`REPORT_MS`].

use std::collections::HashMap;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use holdfast_proto::node::ReplicaState;

use super::engine::Surroundings;
use crate::clock;

const TICK: Duration = Duration::from_millis(20);
/// While no volume has several copies.
const TICK_IDLE: Duration = Duration::from_millis(200);
const REPORT_MS: u64 = 1_000;

/// See the module.
#[derive(Debug)]
pub(super) struct Pulse {
    thread: Mutex<Option<(mpsc::Sender<()>, JoinHandle<()>)>>,
}

impl Pulse {
    /// No thread.
    pub(super) fn none() -> Pulse {
        Pulse { thread: Mutex::new(None) }
    }

    /// Starts the thread, which also calls `each_second` about so often. Without it nothing replicated could go on, so a system that gives none ends the process.
    pub(super) fn start(around: &Surroundings, each_second: impl Fn() + Send + 'static) -> Pulse {
        let around = around.clone();
        let (stop, stopped) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("pulse".into())
            .spawn(move || run(&around, &stopped, &each_second));
        match thread {
            Ok(thread) => Pulse { thread: Mutex::new(Some((stop, thread))) },
            Err(error) => {
                tracing::error!(%error, "the system gives no thread for replication: ending the process");
                std::process::abort();
            }
        }
    }

    /// Ends the thread.
    pub(super) fn stop(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((stop, thread)) = thread {
            drop(stop);
            let _ = thread.join();
        }
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.stop();
    }
}

fn run(around: &Surroundings, stopped: &mpsc::Receiver<()>, each_second: &dyn Fn()) {
    let mut told: HashMap<(Vec<u8>, u32), ReplicaState> = HashMap::new();
    let mut report_at = 0;
    loop {
        let engines = around.shared.links.engines();
        let wait = if engines.is_empty() { TICK_IDLE } else { TICK };
        match stopped.recv_timeout(wait) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
        }
        for engine in &engines {
            engine.tick();
        }
        let now_ms = clock::now_ms();
        if now_ms < report_at {
            continue;
        }
        report_at = now_ms.saturating_add(REPORT_MS);
        each_second();
        let states: Vec<ReplicaState> = engines.iter().flat_map(|engine| engine.replica_states()).collect();
        told.retain(|key, _| states.iter().any(|state| (&state.volume_id, state.node) == (&key.0, key.1)));
        let mut news = Vec::new();
        for state in states {
            let key = (state.volume_id.clone(), state.node);
            if told.get(&key) != Some(&state) {
                told.insert(key, state.clone());
                news.push(state);
            }
        }
        if !news.is_empty() {
            around.agent.report_replicas(news);
        }
    }
}
