//! The lean client: one thread, raw iSCSI PDUs, all that is ready of a session in one vectored write, received data
//! counted and not copied. It shows where the target's own limit lies.
//!
//! Invariants: numbering is kept as RFC 7143 demands; no more than the command window is in flight; any status other than
//! GOOD ends the run, but for a Unit Attention: that command is not counted.

mod pdu;
mod session;

pub use session::{Login, Session};

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use mio::{Events, Interest, Poll, Token};

use crate::case::{Case, Mix, Pattern};
use crate::histogram::Histogram;

/// Sessions with one target, on one thread.
pub struct Client {
    poll: Poll,
    events: Events,
    sessions: Vec<Session>,
    buffer: Vec<u8>,
    /// Blocks of 512 bytes of the volume.
    blocks: u64,
    random: u64,
}

/// What a run did within its time.
#[derive(Clone, Debug, Default)]
pub struct Done {
    /// Commands that ended.
    pub commands: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// From sending to the end.
    pub latencies: Histogram,
}

/// Bytes read from a socket at a time.
const READ_LEN: usize = 1 << 20;
/// No answer for so long is a failure.
const PATIENCE: Duration = Duration::from_secs(30);

impl Client {
    /// A client without sessions, for a volume of `blocks` blocks of 512 bytes.
    ///
    /// # Errors
    /// The system.
    pub fn new(blocks: u64) -> anyhow::Result<Client> {
        Ok(Client {
            poll: Poll::new()?,
            events: Events::with_capacity(1024),
            sessions: Vec::new(),
            buffer: vec![0; READ_LEN],
            blocks,
            random: 0x9e37_79b9_7f4a_7c15,
        })
    }

    /// Has at least `count` sessions.
    ///
    /// # Errors
    /// A login fails.
    pub fn connect(&mut self, login: &Login, count: usize) -> anyhow::Result<()> {
        while self.sessions.len() < count {
            let number = self.sessions.len();
            let mut session = Session::login(login, number as u32)
                .with_context(|| format!("session {number} at {}", login.portal))?;
            session.register(self.poll.registry(), Token(number), Interest::READABLE | Interest::WRITABLE)?;
            self.sessions.push(session);
        }
        Ok(())
    }

    /// Sessions there are.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Runs a case: `warm_up` first, then `at_start`, `length`, `at_end`; then waits for what is in flight.
    ///
    /// # Errors
    /// A session fails, or a command ends other than with GOOD.
    pub fn run(
        &mut self,
        case: &Case,
        (warm_up, length): (Duration, Duration),
        mut at_start: impl FnMut() -> anyhow::Result<()>,
        mut at_end: impl FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<Done> {
        let active = case.sessions as usize;
        ensure!(active <= self.sessions.len(), "{active} sessions wanted, there are {}", self.sessions.len());
        let mut next = Addresses::new(case, self.blocks, self.random);
        self.serve_idle()?;
        let begun = Instant::now();
        let (mut start, mut done, mut measuring) = (begun, Done::default(), false);
        let mut touched: Vec<usize> = (0..active).collect();
        let mut now = begun;
        loop {
            for at in touched.drain(..) {
                let session = &mut self.sessions[at];
                while session.in_flight() < case.depth && session.window_open() {
                    let (write, lba) = next.next(at);
                    session.command(now, write, lba, case.size);
                }
                session.send()?;
            }
            self.poll.poll(&mut self.events, Some(PATIENCE)).or_else(interrupted)?;
            ensure!(!self.events.is_empty(), "no answer for {PATIENCE:?}: {}", case.name());
            now = Instant::now();
            for event in &self.events {
                let at = event.token().0;
                let Some(session) = self.sessions.get_mut(at) else { continue };
                session.ready(event.is_readable(), event.is_writable());
                session.receive(&mut self.buffer, |started: Instant| {
                    if measuring {
                        done.commands += 1;
                        done.latencies.add(now.duration_since(started).as_nanos() as u64);
                    }
                })?;
                touched.push(at);
            }
            // Sessions beyond the active ones only answer pings.
            touched.retain(|at| *at < active || self.sessions[*at].send().is_err());
            if !measuring && now.duration_since(begun) >= warm_up {
                at_start()?;
                measuring = true;
                start = Instant::now();
                now = start;
            } else if measuring && now.duration_since(start) >= length {
                at_end()?;
                done.elapsed = now.duration_since(start);
                break;
            }
        }
        self.random = next.random;
        self.drain()?;
        Ok(done)
    }

    /// Waits until nothing is in flight.
    fn drain(&mut self) -> anyhow::Result<()> {
        // The last turn of the run may have learnt that a socket takes more, and not acted on it.
        self.sessions.iter_mut().try_for_each(Session::send)?;
        while self.sessions.iter().any(|session| session.in_flight() > 0) {
            self.poll.poll(&mut self.events, Some(PATIENCE)).or_else(interrupted)?;
            ensure!(!self.events.is_empty(), "no answer for {PATIENCE:?} at the end");
            for event in &self.events {
                let Some(session) = self.sessions.get_mut(event.token().0) else { continue };
                session.ready(event.is_readable(), event.is_writable());
                session.receive(&mut self.buffer, |_| {})?;
                session.send()?;
            }
        }
        Ok(())
    }

    /// Answers what came while nothing ran: pings.
    ///
    /// # Errors
    /// A session has ended.
    pub fn serve_idle(&mut self) -> anyhow::Result<()> {
        for session in &mut self.sessions {
            session.ready(true, true);
            session.receive(&mut self.buffer, |_| {})?;
            session.send()?;
        }
        Ok(())
    }

    /// Fills the volume, and checks by samples that what was written is read back.
    ///
    /// # Errors
    /// A session fails, or other bytes came back.
    pub fn fill_and_check(&mut self) -> anyhow::Result<()> {
        let Some(session) = self.sessions.first_mut() else { return Ok(()) };
        const BYTES: u32 = 1 << 20;
        let step = u64::from(BYTES / 512);
        let chunk = |lba: u64| (0..step).flat_map(|n| stamp(lba + n)).collect::<Vec<u8>>();
        for lba in (0..self.blocks).step_by(step as usize) {
            let blocks = step.min(self.blocks - lba) as usize;
            session.write_now(lba, &chunk(lba)[..blocks * 512])?;
        }
        for lba in [0, self.blocks / 3, self.blocks / 2, self.blocks - 8] {
            let wanted: Vec<u8> = (0..8).flat_map(|n| stamp(lba + n)).collect();
            ensure!(
                session.read_now(lba, 4096)? == wanted,
                "block {lba} came back other than it was written"
            );
        }
        Ok(())
    }
}

fn interrupted(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::Interrupted { Ok(()) } else { Err(error) }
}

/// Bytes that only this block has.
fn stamp(lba: u64) -> [u8; 512] {
    let mut block = [0; 512];
    for (word, n) in block.chunks_exact_mut(8).zip(0u64..) {
        word.copy_from_slice(&(lba.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ n).to_be_bytes());
    }
    block
}

/// Draws addresses and directions.
struct Addresses {
    case: Case,
    places: u64,
    random: u64,
    /// The next place of each session, in sequential order.
    next: Vec<u64>,
}

impl Addresses {
    fn new(case: &Case, blocks: u64, random: u64) -> Addresses {
        let places = blocks * 512 / u64::from(case.size);
        let share = places / u64::from(case.sessions);
        let next = (0..u64::from(case.sessions)).map(|n| n * share).collect();
        Addresses { case: *case, places, random, next }
    }

    fn draw(&mut self) -> u64 {
        // xorshift64*: cheap and even enough.
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Whether it is a write, and the first block.
    fn next(&mut self, session: usize) -> (bool, u64) {
        let draw = self.draw();
        let write = match self.case.mix {
            Mix::Read => false,
            Mix::Write => true,
            Mix::Mixed => draw % 10 < 3,
        };
        let place = match self.case.pattern {
            Pattern::Random => (draw >> 8) % self.places,
            Pattern::Sequential => {
                let place = self.next[session] % self.places;
                self.next[session] = place + 1;
                place
            }
        };
        (write, place * u64::from(self.case.size / 512))
    }
}
