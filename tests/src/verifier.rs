//! An initiator that knows what must be on a volume: it writes and reads one after the other, goes on through another
//! path when one fails, and notices every value that was answered and is not there.
//!
//! Invariants: a write is repeated with the same value until it is answered GOOD, so after it exactly that value may be read; what
//! is not GOOD, BUSY, a Unit Attention, ABORTED COMMAND or an access state that asks for another path ends the run with an error.
//! After [`Verifier::power_was_lost`] each block may hold any value that it has held since the last flush that was answered, and what was found
//! there stays.

use std::{
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
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
const BLOCK: usize = 512;
const BUSY: u8 = 0x08;
const SYNCHRONIZE_CACHE: &str = "35000000000000000000";
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
    /// Flushes answered GOOD.
    pub flushes: u64,
    /// Blocks that were back to an older value after a loss of power.
    pub older: u64,
    /// Longest time from a command's first sending to its GOOD.
    pub stall_max: Duration,
}

/// A value for each block of a slot.
type Values = [u8; BLOCKS as usize];

/// What is known of a slot.
#[derive(Debug, Clone)]
struct Slot {
    now: Values,
    /// What it held at the last flush, and every value since.
    since_flush: Vec<Values>,
    /// The power was lost: it may be any of those.
    unsure: bool,
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
    losses: Arc<AtomicU64>,
    thread: Option<JoinHandle<anyhow::Result<Report>>>,
}

struct Run {
    login: Login,
    paths: usize,
    lun: u16,
    path: usize,
    session: Option<Initiator>,
    report: Report,
    slots: Vec<Slot>,
    last_value: u8,
    losses: Arc<AtomicU64>,
    losses_seen: u64,
    random: u64,
}

impl Verifier {
    /// Begins, on path 0 of so many.
    pub fn start(login: Login, paths: usize, lun: u16, seed: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (progress, losses) = (Arc::new(Progress::default()), Arc::new(AtomicU64::new(0)));
        let (stopped, told, lost) = (Arc::clone(&stop), Arc::clone(&progress), Arc::clone(&losses));
        let thread = thread::spawn(move || {
            let zeroes = [0; BLOCKS as usize];
            let slot = Slot { now: zeroes, since_flush: vec![zeroes], unsure: false };
            let mut run = Run {
                login,
                paths,
                lun,
                path: 0,
                session: None,
                report: Report::default(),
                slots: vec![slot; SLOTS as usize],
                last_value: 0,
                losses: lost,
                losses_seen: 0,
                random: seed.wrapping_mul(2).wrapping_add(1),
            };
            while !stopped.load(Ordering::Relaxed) {
                run.one()?;
                told.one_more();
            }
            for path in 0..run.paths {
                run.check_all(path)?;
            }
            Ok(run.report)
        });
        Self { stop, progress, losses, thread: Some(thread) }
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

    /// Every machine has lost its power, and none is on again yet: what was answered and not flushed may be gone.
    pub fn power_was_lost(&self) {
        self.losses.fetch_add(1, Ordering::Relaxed);
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
        match self.random(24) {
            0 => return self.flush(),
            1..=8 => return self.check(slot),
            _ => {}
        }
        self.last_value = if self.last_value == u8::MAX { 1 } else { self.last_value + 1 };
        let value = self.last_value;
        let durable = self.random(8) == 0;
        self.until_good(|session, lun| {
            if durable {
                let cdb = format!("2a08{:08x}00{BLOCKS:04x}00", slot * STRIDE);
                let fill = format!("cdb {lun} {cdb} fill {value} {}", usize::from(BLOCKS) * BLOCK);
                session.send(&fill)?;
                return session.answer();
            }
            session.write_blocks(lun, slot * STRIDE, BLOCKS, value)
        })?;
        self.note_losses();
        let slot = self.slots.get_mut(slot as usize).context("a slot")?;
        slot.now = [value; BLOCKS as usize];
        slot.unsure = false;
        if durable {
            slot.since_flush.clear();
        }
        slot.since_flush.push(slot.now);
        self.report.writes += 1;
        Ok(())
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        self.until_good(|session, lun| session.command(lun, SYNCHRONIZE_CACHE))?;
        self.note_losses();
        for slot in self.slots.iter_mut().filter(|slot| !slot.unsure) {
            slot.since_flush = vec![slot.now];
        }
        self.report.flushes += 1;
        Ok(())
    }

    fn note_losses(&mut self) {
        let losses = self.losses.load(Ordering::Relaxed);
        if std::mem::replace(&mut self.losses_seen, losses) != losses {
            self.slots.iter_mut().for_each(|slot| slot.unsure = true);
        }
    }

    fn check(&mut self, number: u32) -> anyhow::Result<()> {
        let data = self.until_good(|session, lun| session.read_blocks(lun, number * STRIDE, BLOCKS))?;
        self.note_losses();
        let writes = self.report.writes;
        let slot = self.slots.get_mut(number as usize).context("a slot")?;
        ensure!(data.len() == slot.now.len() * BLOCK, "slot {number}: {} bytes were read", data.len());
        let mut found = slot.now;
        for ((at, value), block) in found.iter_mut().enumerate().zip(data.chunks(BLOCK)) {
            let first = *block.first().context("a block")?;
            let whole = block.iter().all(|byte| *byte == first);
            let may = |values: &Values| values.get(at) == Some(&first);
            let right = if slot.unsure { slot.since_flush.iter().any(may) } else { first == *value };
            ensure!(
                whole && right,
                "block {at} of slot {number} holds {first} (whole: {whole}) instead of {value} after {writes} writes; {slot:?}"
            );
            self.report.older += u64::from(first != *value);
            *value = first;
        }
        if std::mem::replace(&mut slot.unsure, false) {
            slot.since_flush = vec![found];
        }
        slot.now = found;
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
