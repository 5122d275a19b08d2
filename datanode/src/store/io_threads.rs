//! Threads for input and output that may wait for a disk: reads that miss the page cache, flushes, synchronous and long
//! writes, unmapping, creating and removing replicas. What does not wait is done by the workers themselves.
//!
//! Invariants: a job runs exactly once, also while the threads are being stopped; one lane (a volume) occupies at most
//! [`LANE_JOBS_MAX`] threads, so that a sick disk under one volume does not stop the others; jobs of one lane begin in
//! the order in which they came. How many jobs wait is bounded by those who submit (task sets).

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Threads of one node.
pub const THREADS: usize = 12;
/// Threads that one lane may occupy.
pub const LANE_JOBS_MAX: usize = 4;

/// What to run.
pub type Job = Box<dyn FnOnce() + Send>;
/// Which lane a job belongs to.
pub type Lane = u64;

#[derive(Default)]
struct LaneState {
    waiting: VecDeque<Job>,
    running: usize,
}

#[derive(Default)]
struct State {
    lanes: HashMap<Lane, LaneState>,
    /// Lanes that have a waiting job and a free thread of their share, each once.
    ready: VecDeque<Lane>,
    stopping: bool,
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Jobs run outside the lock, so a poisoned lock guards an intact state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A handle to the threads; the last one to be dropped stops them.
#[derive(Clone)]
pub struct IoThreads {
    queue: Arc<Queue>,
    threads: Arc<Threads>,
}

struct Threads {
    queue: Arc<Queue>,
    handles: Mutex<Vec<JoinHandle<()>>>,
}

impl std::fmt::Debug for IoThreads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("IoThreads")
    }
}

impl IoThreads {
    /// Starts `threads` of them (at least one).
    ///
    /// # Errors
    /// The system gives no more threads.
    pub fn start(threads: usize) -> std::io::Result<IoThreads> {
        let queue = Arc::new(Queue::default());
        let all = Threads { queue: Arc::clone(&queue), handles: Mutex::default() };
        for n in 0..threads.max(1) {
            let queue = Arc::clone(&queue);
            let thread = std::thread::Builder::new().name(format!("io-{n}")).spawn(move || run(&queue))?;
            all.handles().push(thread);
        }
        Ok(IoThreads { queue, threads: Arc::new(all) })
    }

    /// Runs `job` on one of the threads, behind the other jobs of its lane.
    pub fn submit(&self, lane: Lane, job: Job) {
        let mut state = self.queue.lock();
        let entry = state.lanes.entry(lane).or_default();
        entry.waiting.push_back(job);
        if entry.waiting.len() == 1 && entry.running < LANE_JOBS_MAX {
            state.ready.push_back(lane);
            self.queue.changed.notify_one();
        }
    }

    /// Runs what was submitted, and ends the threads: when this returns no job holds anything any more. Nothing may be
    /// submitted after it.
    pub fn stop(&self) {
        self.threads.stop();
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Threads {
    fn handles(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self) {
        self.queue.lock().stopping = true;
        self.queue.changed.notify_all();
        let me = std::thread::current().id();
        let handles = std::mem::take(&mut *self.handles());
        for handle in handles {
            // The last handle can be dropped by a job itself.
            if handle.thread().id() != me {
                let _ = handle.join();
            }
        }
    }
}

fn run(queue: &Queue) {
    let mut state = queue.lock();
    loop {
        let Some((lane, job)) = next(&mut state) else {
            if state.stopping {
                return;
            }
            state = queue.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        drop(state);
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).is_err() {
            // The job's task is lost and its range stays locked; going on would hide that.
            tracing::error!("an input/output job panicked: ending the process");
            std::process::abort();
        }
        state = queue.lock();
        finish(&mut state, lane);
        if !state.ready.is_empty() {
            queue.changed.notify_one();
        }
    }
}

/// Takes a job; its lane stands in line again if it may run another.
fn next(state: &mut State) -> Option<(Lane, Job)> {
    let lane = state.ready.pop_front()?;
    let entry = state.lanes.get_mut(&lane)?;
    let job = entry.waiting.pop_front()?;
    entry.running += 1;
    if !entry.waiting.is_empty() && entry.running < LANE_JOBS_MAX {
        state.ready.push_back(lane);
    }
    Some((lane, job))
}

fn finish(state: &mut State, lane: Lane) {
    let Some(entry) = state.lanes.get_mut(&lane) else { return };
    let was_full = entry.running == LANE_JOBS_MAX;
    entry.running -= 1;
    if entry.waiting.is_empty() {
        if entry.running == 0 {
            state.lanes.remove(&lane);
        }
    } else if was_full {
        state.ready.push_back(lane);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn stopped_threads_have_let_go_of_everything() {
        let threads = IoThreads::start(4).unwrap();
        let held = Arc::new(());
        for n in 0..200 {
            let held = Arc::clone(&held);
            threads.submit(n, Box::new(move || assert!(Arc::strong_count(&held) > 1)));
        }
        threads.stop();
        assert_eq!(Arc::strong_count(&held), 1);
    }

    #[test]
    fn every_job_runs_once_even_when_stopped_at_once() {
        let (tx, rx) = mpsc::channel();
        let threads = IoThreads::start(3).unwrap();
        for n in 0..1000_u64 {
            let tx = tx.clone();
            threads.submit(n % 7, Box::new(move || tx.send(n).unwrap()));
        }
        drop((threads, tx));
        let mut seen: Vec<u64> = rx.iter().collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..1000).collect::<Vec<_>>());
    }

    #[test]
    fn hanging_lane_leaves_threads_for_the_others() {
        let threads = IoThreads::start(LANE_JOBS_MAX + 1).unwrap();
        let (release, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        for _ in 0..LANE_JOBS_MAX * 3 {
            let gate = Arc::clone(&gate);
            threads.submit(1, Box::new(move || gate.lock().unwrap().recv().unwrap_or_default()));
        }
        let (tx, rx) = mpsc::channel();
        threads.submit(2, Box::new(move || tx.send(()).unwrap()));
        rx.recv().unwrap();
        drop(release);
    }

    #[test]
    fn jobs_of_one_lane_begin_in_order() {
        let threads = IoThreads::start(1).unwrap();
        let (tx, rx) = mpsc::channel();
        for n in 0..100 {
            let tx = tx.clone();
            threads.submit(5, Box::new(move || tx.send(n).unwrap()));
        }
        drop(tx);
        assert_eq!(rx.iter().collect::<Vec<_>>(), (0..100).collect::<Vec<_>>());
    }
}
