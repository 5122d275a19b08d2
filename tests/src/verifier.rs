//! An initiator that knows what must be on a volume: it writes and reads one after the other, goes on through another
//! path when one fails, and notices every value that was answered and is not there.
//!
//! Invariants: a write is repeated with the same value until it is answered GOOD, so after it exactly that value may be read; what
//! is not GOOD, BUSY, a Unit Attention, ABORTED COMMAND or an access state that asks for another path ends the run with an error.

use std::{
    sync::{
        Arc,
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
const BUSY: u8 = 0x08;
/// A host gives its disk up after this time.
const GIVE_UP: Duration = Duration::from_secs(90);

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

/// The running verifier.
pub struct Verifier {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
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
        let answered = Arc::new(AtomicU64::new(0));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&answered));
        let thread = thread::spawn(move || {
            let report = Report { values: vec![0; SLOTS as usize], ..Report::default() };
            let random = seed.wrapping_mul(2).wrapping_add(1);
            let mut run = Run { login, paths, lun, path: 0, session: None, report, random };
            while !stopped.load(Ordering::Relaxed) {
                run.one()?;
                count.fetch_add(1, Ordering::Relaxed);
            }
            for path in 0..run.paths {
                run.check_all(path)?;
            }
            Ok(run.report)
        });
        Self { stop, answered, thread: Some(thread) }
    }

    /// Commands answered so far.
    ///
    /// # Errors
    /// Why the run has ended by itself.
    pub fn answered(&mut self) -> anyhow::Result<u64> {
        if self.thread.as_ref().is_none_or(JoinHandle::is_finished) {
            self.join()?;
            bail!("the verifier has ended");
        }
        Ok(self.answered.load(Ordering::Relaxed))
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
