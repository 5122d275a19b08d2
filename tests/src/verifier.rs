//! An initiator that knows what must be on a volume: it writes and reads one after the other, goes on through another
//! path when one fails, and notices every value that was answered and is not there.
//!
//! Invariants: a write is repeated with the same value until it is answered GOOD, so after it exactly that value may be read; what
//! is not GOOD, BUSY, a Unit Attention, ABORTED COMMAND or an access state that asks for another path ends the run with an error.

use std::{
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};

use crate::initiator::{Answer, CHECK_CONDITION, GOOD, Initiator};

/// Runs of blocks that are written, far enough apart to lie in several extents of the activity log.
const SLOTS: u32 = 48;
/// Blocks between the beginnings of two slots: 1 MiB.
const STRIDE: u32 = 2048;
/// Blocks of a slot.
const BLOCKS: u16 = 8;
const BUSY: u8 = 0x08;
/// A host gives its disk up after this time.
const GIVE_UP: Duration = Duration::from_secs(90);

/// How often a run that is waited for is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Size of the volume that the slots need.
pub const VOLUME_SIZE: &str = "64MiB";

/// Logs in by the path of this number.
pub type Login = Box<dyn FnMut(usize) -> anyhow::Result<Initiator> + Send>;

/// What a run has seen.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Writes answered GOOD.
    pub writes: u64,
    /// Reads answered GOOD with the right value.
    pub reads: u64,
    /// Commands that a host without a second path would have seen fail.
    pub path_errors: u64,
    /// Commands answered BUSY, and sent again.
    pub busy: u64,
    /// Commands answered ABORTED COMMAND, and sent again.
    pub aborted: u64,
    /// Longest time from a command's first sending to its GOOD.
    pub stall_max: Duration,
    /// What must be in each slot.
    pub values: Vec<u8>,
}

/// Commands answered so far, and who waits for more of them.
#[derive(Debug, Default)]
struct Progress {
    answered: Mutex<u64>,
    changed: Condvar,
}

impl Progress {
    fn one_more(&self) {
        *self.answered.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.changed.notify_all();
    }
}

/// The running verifier.
pub struct Verifier {
    stop: Arc<AtomicBool>,
    progress: Arc<Progress>,
    thread: Option<JoinHandle<anyhow::Result<Report>>>,
}

struct Run {
    login: Login,
    paths: usize,
    lun: u16,
    path: usize,
    session: Option<Initiator>,
    report: Report,
    random: u64,
}

impl Verifier {
    /// Begins, on path 0 of so many.
    pub fn start(login: Login, paths: usize, lun: u16, seed: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let progress = Arc::new(Progress::default());
        let (stopped, told) = (Arc::clone(&stop), Arc::clone(&progress));
        let thread = thread::spawn(move || {
            let report = Report { values: vec![0; SLOTS as usize], ..Report::default() };
            let random = seed.wrapping_mul(2).wrapping_add(1);
            let mut run = Run { login, paths, lun, path: 0, session: None, report, random };
            while !stopped.load(Ordering::Relaxed) {
                run.one()?;
                told.one_more();
            }
            for path in 0..run.paths {
                run.check_all(path)?;
            }
            Ok(run.report)
        });
        Self { stop, progress, thread: Some(thread) }
    }

    /// Waits until so many more commands are answered.
    ///
    /// # Errors
    /// Why the run has ended by itself, or that it does not get on.
    pub fn until_answered(&mut self, more: u64) -> anyhow::Result<()> {
        let begun = Instant::now();
        let progress = Arc::clone(&self.progress);
        let mut answered = progress.answered.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = *answered + more;
        while *answered < wanted {
            ensure!(begun.elapsed() < GIVE_UP, "the verifier does not get on");
            // A run that has ended tells nobody: it is looked at once in a while.
            if self.thread.as_ref().is_none_or(JoinHandle::is_finished) {
                self.join()?;
                bail!("the verifier has ended");
            }
            let waited = progress.changed.wait_timeout(answered, LOOK_EVERY);
            answered = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// Ends the run, and reads everything once more on every path.
    ///
    /// # Errors
    /// What it found wrong.
    pub fn finish(mut self) -> anyhow::Result<Report> {
        self.stop.store(true, Ordering::Relaxed);
        self.join()
    }

    fn join(&mut self) -> anyhow::Result<Report> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(report)) => report,
            Some(Err(_)) => bail!("the verifier panicked"),
            None => bail!("the verifier has been asked before"),
        }
    }
}

impl Run {
    fn random(&mut self, below: u32) -> u32 {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.random >> 33) % u64::from(below)) as u32
    }

    fn one(&mut self) -> anyhow::Result<()> {
        let slot = self.random(SLOTS);
        if self.random(3) == 0 {
            return self.check(slot);
        }
        let before = self.report.values.get(slot as usize).copied().context("a slot")?;
        let value = if before == u8::MAX { 1 } else { before + 1 };
        let durable = self.random(8) == 0;
        self.until_good(|session, lun| {
            if durable {
                let cdb = format!("2a08{:08x}00{BLOCKS:04x}00", slot * STRIDE);
                let fill = format!("cdb {lun} {cdb} fill {value} {}", u32::from(BLOCKS) * 512);
                session.send(&fill)?;
                return session.answer();
            }
            session.write_blocks(lun, slot * STRIDE, BLOCKS, value)
        })?;
        *self.report.values.get_mut(slot as usize).context("a slot")? = value;
        self.report.writes += 1;
        Ok(())
    }

    fn check(&mut self, slot: u32) -> anyhow::Result<()> {
        let data = self.until_good(|session, lun| session.read_blocks(lun, slot * STRIDE, BLOCKS))?;
        let value = self.report.values.get(slot as usize).copied().context("a slot")?;
        let wrong = data.iter().find(|byte| **byte != value);
        ensure!(
            wrong.is_none() && data.len() == usize::from(BLOCKS) * 512,
            "slot {slot} holds {wrong:?} instead of {value} after {} writes",
            self.report.writes
        );
        self.report.reads += 1;
        Ok(())
    }

    fn check_all(&mut self, path: usize) -> anyhow::Result<()> {
        if self.path != path {
            self.session = None;
            self.path = path;
        }
        (0..SLOTS).try_for_each(|slot| self.check(slot))
    }

    fn until_good(
        &mut self,
        mut command: impl FnMut(&mut Initiator, u16) -> anyhow::Result<Answer>,
    ) -> anyhow::Result<Vec<u8>> {
        let begun = Instant::now();
        loop {
            ensure!(begun.elapsed() < GIVE_UP, "no path answers; {:?}", self.report);
            if self.session.is_none() {
                match (self.login)(self.path) {
                    Ok(session) => self.session = Some(session),
                    Err(_) => {
                        self.next_path();
                        thread::yield_now();
                        continue;
                    }
                }
            }
            let Some(session) = &mut self.session else { continue };
            match command(session, self.lun) {
                Ok(answer) if answer.status == GOOD => {
                    self.report.stall_max = self.report.stall_max.max(begun.elapsed());
                    return Ok(answer.data);
                }
                Ok(Answer { status: CHECK_CONDITION, sense, .. }) if sense.starts_with("6/") => {}
                Ok(Answer { status: CHECK_CONDITION, sense, .. }) if sense.starts_with("b/") => {
                    self.report.aborted += 1;
                }
                // The port's asymmetric access state is transitioning, standby or unavailable: not by this path now.
                Ok(Answer { status: CHECK_CONDITION, sense, .. })
                    if ["2/04/0a", "2/04/0b", "2/04/0c"].contains(&sense.as_str()) =>
                {
                    self.next_path();
                }
                Ok(answer) if answer.status == BUSY => self.report.busy += 1,
                Ok(answer) => {
                    bail!("status {:02x} sense {}; {:?}", answer.status, answer.sense, self.report)
                }
                Err(_) => self.next_path(),
            }
        }
    }

    fn next_path(&mut self) {
        self.report.path_errors += 1;
        self.session = None;
        self.path = (self.path + 1) % self.paths;
    }
}
