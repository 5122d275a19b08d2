//! Hosts that change persistent reservations of one unit at random, from several nexuses at once, and note what they saw.

use std::sync::Arc;

use super::{
    chronicle::Chronicle,
    paths::{Outcome, Paths},
};
use crate::{
    oracle::{
        linearizable::Timed,
        reservations::{Answer, Nexus, Operation, Request},
    },
    random::Random,
};

/// Types of reservation that refuse writes of those who are not registered, without the all-registrants ones.
const KINDS: [u8; 4] = [1, 3, 5, 6];

/// PERSISTENT RESERVE OUT as a request line.
pub fn request_line(lun: u16, request: Request, abort: bool) -> String {
    let (action, kind, key, service) = match request {
        Request::Register(key, service) => (0, 0, key, service),
        Request::RegisterAndIgnore(service) => (6, 0, 0, service),
        Request::Reserve(kind, key) => (1, kind, key, 0),
        Request::Release(kind, key) => (2, kind, key, 0),
        Request::Clear(key) => (3, 0, key, 0),
        Request::Preempt(kind, key, service) => (if abort { 5 } else { 4 }, kind, key, service),
    };
    // The last bit of byte 20: registrations survive a loss of power.
    format!("cdb {lun} 5f{action:02x}{kind:02x}00000000001800 out {key:016x}{service:016x}0000000001000000")
}

/// One nexus's thread.
pub struct Reserver {
    /// The nexus, by number.
    pub nexus: Nexus,
    /// LUN of the unit.
    pub lun: u16,
    /// Draws what to do.
    pub random: Random,
    /// One path.
    pub paths: Paths,
    /// The run's log.
    pub chronicle: Arc<Chronicle>,
}

impl Reserver {
    /// Works until the run is over.
    pub fn run(mut self) -> Vec<Timed<Operation>> {
        let mut history = Vec::new();
        // Keys seen of others, and the own one as far as known.
        let (mut seen_keys, mut own, mut serial) = (Vec::new(), 0, 0_u64);
        loop {
            serial += 1;
            let fresh = u64::from(self.nexus) << 40 | serial;
            let kind = *self.random.pick(&KINDS);
            let victim = if seen_keys.is_empty() { fresh } else { *self.random.pick(&seen_keys) };
            let request = match self.random.below(12) {
                0 => Request::Register(own, fresh),
                1 if own == 0 => Request::RegisterAndIgnore(fresh),
                1 => Request::RegisterAndIgnore(own),
                2 => Request::RegisterAndIgnore(fresh),
                3 | 4 => Request::Reserve(kind, own),
                5 => Request::Release(kind, own),
                6 if self.random.below(4) == 0 => Request::Clear(own),
                6 => Request::Register(own, 0),
                7 | 8 if victim != own => Request::Preempt(kind, own, victim),
                _ => {
                    let Some(read) = self.read(&mut seen_keys) else { return history };
                    history.extend(read);
                    continue;
                }
            };
            if own == 0 && matches!(request, Request::Register(0, 0)) {
                continue;
            }
            let line = request_line(self.lun, request, self.random.below(2) == 0);
            let Some(attempt) = self.paths.attempt(&line) else { return history };
            let answer = match attempt.outcome {
                Outcome::Good(_) => Answer::Good,
                Outcome::Conflict => Answer::Conflict,
                Outcome::Illegal => Answer::Illegal,
                Outcome::Unknown => Answer::Unknown,
                // Nothing happened, says the target; the checker would find it if something had.
                Outcome::Busy | Outcome::Attention(_) => continue,
                Outcome::Miscompare | Outcome::Failed(_) => {
                    self.chronicle.host_error(&format!("{:?}", attempt.outcome), &line);
                    Answer::Unknown
                }
            };
            if answer == Answer::Good {
                match request {
                    Request::Register(_, key) | Request::RegisterAndIgnore(key) => own = key,
                    Request::Clear(_) => own = 0,
                    _ => {}
                }
            }
            history.push(Timed {
                sent: attempt.sent_ns,
                answered: (answer != Answer::Unknown).then_some(attempt.seen_ns),
                operation: Operation::Out(self.nexus, request, answer),
            });
        }
    }

    /// READ KEYS or READ RESERVATION; `None` when the run is over, nothing inside when it was not answered.
    fn read(&mut self, seen_keys: &mut Vec<u64>) -> Option<Option<Timed<Operation>>> {
        let keys = self.random.below(2) == 0;
        let action = u8::from(!keys);
        let line = format!("cdb {} 5e{action:02x}0000000000100000 in 4096", self.lun);
        let attempt = self.paths.attempt(&line)?;
        let Outcome::Good(data) = attempt.outcome else { return Some(None) };
        let number = |at: usize, len: usize| {
            data.get(at..at + len)
                .unwrap_or_default()
                .iter()
                .fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte))
        };
        let (generation, length) = (number(0, 4) as u32, number(4, 4) as usize);
        let operation = if keys {
            let mut all: Vec<u64> = (0..length / 8).map(|at| number(8 + 8 * at, 8)).collect();
            all.sort_unstable();
            seen_keys.clone_from(&all);
            Operation::ReadKeys(generation, all)
        } else {
            let held = (length >= 16).then(|| (number(8, 8), number(21, 1) as u8 & 0xf));
            Operation::ReadReservation(generation, held)
        };
        Some(Some(Timed { sent: attempt.sent_ns, answered: Some(attempt.seen_ns), operation }))
    }
}
