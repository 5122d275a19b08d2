//! The multipath host: a session through each node, every unit written one block after the other by the best path there is, as
//! dm-multipath with its ALUA handler does; it notices every acknowledged write that is not there, and how long each unit stood still.
//!
//! Invariants: a block is written again with the same value until that is answered GOOD, so at rest exactly that value may be read; what
//! neither another path nor another try hides from a program on the host is an error, counted and kept in words; a gap counts from one GOOD
//! to the next one of the same unit, whichever of its commands it is.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use holdfast_tests::netns::spawner::Spawner;
use mio::{Poll, Waker};

use super::{
    machine::{Machine, WAKE},
    session::{Found, Session, Way},
};

/// How often what the host has seen is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// A path that could not be had is tried again after this.
const CONNECT_AGAIN: Duration = Duration::from_millis(100);

/// How the host works.
#[derive(Debug, Clone, Copy)]
pub(super) struct Habits {
    /// Writes in flight to each unit.
    pub(super) depth: usize,
    /// From an answer to the next write in its place.
    pub(super) pause: Duration,
    /// A path that says nothing for so long, although it was pinged, is left.
    pub(super) silence: Duration,
}

/// What a host has seen.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    /// Of each unit.
    pub(super) units: Vec<UnitSeen>,
    /// What a program on the host would have been told.
    pub(super) errors: Vec<String>,
    /// Sessions that ended.
    pub(super) lost_sessions: u64,
    /// Answers after which a command was sent again: BUSY and TASK SET FULL, ABORTED COMMAND, Unit Attentions, access states.
    pub(super) busy: u64,
    pub(super) aborted: u64,
    pub(super) attentions: u64,
    pub(super) access_states: u64,
    /// Blocks read back and found right.
    pub(super) verified: u64,
    /// Paths that are logged in.
    pub(super) paths: usize,
    verifying: bool,
}

/// What a host has seen of a unit.
#[derive(Debug, Clone)]
pub(super) struct UnitSeen {
    /// Writes answered GOOD.
    pub(super) writes: u64,
    last_good: Instant,
    gap_max: Duration,
}

impl UnitSeen {
    pub(super) fn new(now: Instant) -> Self {
        Self { writes: 0, last_good: now, gap_max: Duration::ZERO }
    }

    /// A write was answered GOOD.
    pub(super) fn good(&mut self, now: Instant) {
        self.writes += 1;
        self.gap_max = self.gap_max.max(now.duration_since(self.last_good));
        self.last_good = now;
    }

    /// Nothing is wanted of it: no gap.
    pub(super) fn rests(&mut self, now: Instant) {
        self.last_good = now;
    }
}

/// Shared by the host's thread and those who watch it.
pub(super) type Shared = Arc<Mutex<Seen>>;

/// What the host's thread is told.
#[derive(Debug)]
pub(super) enum Message {
    /// A path is there.
    Up(usize, Box<Found>),
    /// Reads everything back.
    Verify,
    Stop,
}

/// See the module.
pub(super) struct Host {
    seen: Shared,
    messages: mpsc::Sender<Message>,
    waker: Arc<Waker>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

pub(super) fn lock(seen: &Shared) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Host {
    /// Logs in on all ways and begins to write.
    pub(super) fn start(ways: Vec<Way>, habits: Habits) -> anyhow::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
        let (messages, inbox) = mpsc::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let units = ways.first().context("no way")?.units;
        let mut connectors = Vec::new();
        for (path, way) in ways.into_iter().enumerate() {
            let (wanted, wishes) = mpsc::channel::<Option<Session>>();
            let connector = Connector {
                path,
                way,
                stop: Arc::clone(&stop),
                messages: messages.clone(),
                waker: Arc::clone(&waker),
            };
            let spawner = Spawner::start()?;
            thread::Builder::new()
                .name(format!("path-{path}"))
                .spawn(move || connector.run(&wishes, &spawner))?;
            wanted.send(None)?;
            connectors.push(wanted);
        }
        let now = Instant::now();
        let seen = Seen { units: vec![UnitSeen::new(now); usize::from(units)], ..Seen::default() };
        let shared = Arc::new(Mutex::new(seen));
        let mut machine = Machine::new(poll, inbox, Arc::clone(&shared), connectors, habits, units);
        let thread = thread::Builder::new().name("host".to_owned()).spawn(move || machine.run())?;
        let host = Self { seen: shared, messages, waker, stop, thread: Some(thread) };
        Ok(host)
    }

    /// What it has seen so far.
    pub(super) fn seen(&self) -> Seen {
        lock(&self.seen).clone()
    }

    /// Forgets gaps that have ended. One that is under way counts from its beginning.
    pub(super) fn mark(&self) {
        lock(&self.seen).units.iter_mut().for_each(|unit| unit.gap_max = Duration::ZERO);
    }

    /// The longest gap of each unit since [`Self::mark`], and its writes so far.
    pub(super) fn gaps(&self) -> Vec<(Duration, u64)> {
        let now = Instant::now();
        let seen = lock(&self.seen);
        seen.units
            .iter()
            .map(|unit| (unit.gap_max.max(now.saturating_duration_since(unit.last_good)), unit.writes))
            .collect()
    }

    /// Waits until `wanted`.
    pub(super) fn until(
        &mut self,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&Seen) -> bool,
    ) -> anyhow::Result<()> {
        let by = Instant::now() + limit;
        while !wanted(&lock(&self.seen)) {
            if self.thread.as_ref().is_none_or(JoinHandle::is_finished) {
                self.join()?;
                bail!("the host has ended");
            }
            if Instant::now() > by {
                bail!("waited for {what}: {:?}", lock(&self.seen));
            }
            thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// Lets it read back every block; writes rest meanwhile.
    pub(super) fn verify(&mut self, limit: Duration) -> anyhow::Result<()> {
        lock(&self.seen).verifying = true;
        self.tell(Message::Verify)?;
        self.until("every block to be read back", limit, |seen| !seen.verifying)
    }

    fn tell(&self, message: Message) -> anyhow::Result<()> {
        self.messages.send(message).context("the host has ended")?;
        Ok(self.waker.wake()?)
    }

    /// Logs out; what it has seen.
    pub(super) fn finish(mut self) -> anyhow::Result<Seen> {
        self.join()?;
        Ok(self.seen())
    }

    fn join(&mut self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        // A thread that has ended is not told any more.
        let _ = self.tell(Message::Stop);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(_)) => bail!("the host's thread fell"),
            None => Ok(()),
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // What it would say was asked for by `finish`, or another error is on its way.
        let _ = self.join();
    }
}

/// All that was found right: the host says so itself.
pub(super) fn verified(seen: &mut Seen) {
    seen.verifying = false;
}

/// Makes one path whenever it is wanted.
struct Connector {
    path: usize,
    way: Way,
    stop: Arc<AtomicBool>,
    messages: mpsc::Sender<Message>,
    waker: Arc<Waker>,
}

impl Connector {
    fn run(&self, wishes: &mpsc::Receiver<Option<Session>>, spawner: &Spawner) {
        // An old session is closed before the new one is made.
        for old in wishes {
            drop(old);
            while !self.stop.load(Ordering::Relaxed) {
                let Ok(found) = Session::discover(&self.way, spawner) else {
                    thread::sleep(CONNECT_AGAIN);
                    continue;
                };
                if self.messages.send(Message::Up(self.path, Box::new(found))).is_ok() {
                    // The host looks at its messages once in a while without this too.
                    let _ = self.waker.wake();
                }
                break;
            }
        }
    }
}
