//! The fencing game: host A holds a reservation and preempts host B again and again, while B writes as fast as it can. After each
//! PREEMPT's GOOD B must write no more until it registers again, and must be told.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use holdfast_tests::clock::boottime_ns;

use super::{
    blocks::{filled, hex},
    chronicle::Chronicle,
    paths::{Outcome, Paths},
    reserving::request_line,
};
use crate::{
    oracle::{
        fencing::{AcceptedWrite, Answer, Preempt, Seen},
        reservations::Request,
    },
    random::Random,
};

/// Write Exclusive, Registrants Only.
const KIND: u8 = 5;
const KEY_A: u64 = 0xa;
/// The victim is nexus 2 of the oracle.
const VICTIM: u8 = 2;
/// Answers that the victim gets before it may register again.
const ANSWERS_FENCED: u64 = 5;
const PAUSE: Duration = Duration::from_millis(10);

/// What passes between the two.
#[derive(Debug, Default)]
struct Board {
    /// Registration that the victim has or wants; 0: it is to register.
    key: AtomicU64,
    /// Key with which the victim is registered for certain; 0: none.
    registered: AtomicU64,
    /// Answers of the victim so far.
    answers: AtomicU64,
    /// When the victim last began to register.
    registers: Mutex<Vec<u64>>,
}

/// What was seen of the game.
#[derive(Debug, Default)]
pub struct Played {
    /// GOOD preempts.
    pub preempts: Vec<Preempt>,
    /// Accepted writes of the victim.
    pub writes: Vec<AcceptedWrite>,
    /// Answers of each of the victim's sessions.
    pub sessions: Vec<Vec<Answer>>,
}

/// Plays until the run is over.
pub fn play(lun: u16, a: Paths, b: Paths, random: &mut Random, chronicle: &Arc<Chronicle>) -> Played {
    let board = Arc::new(Board::default());
    let victim = {
        let (board, chronicle) = (Arc::clone(&board), Arc::clone(chronicle));
        thread::spawn(move || be_victim(lun, b, &board, &chronicle))
    };
    let mut preempts = preempt_again_and_again(lun, a, random, &board, chronicle);
    let Ok((writes, sessions)) = victim.join() else {
        chronicle.violation("the victim's thread fell".to_owned());
        return Played::default();
    };
    let registers = board.registers.lock().unwrap_or_else(PoisonError::into_inner);
    for preempt in &mut preempts {
        preempt.lifted = registers.iter().find(|sent| **sent > preempt.sent).copied();
    }
    Played { preempts, writes, sessions }
}

fn preempt_again_and_again(
    lun: u16,
    mut a: Paths,
    random: &mut Random,
    board: &Board,
    chronicle: &Chronicle,
) -> Vec<Preempt> {
    let mut preempts = Vec::new();
    let mut ready = false;
    loop {
        if !ready {
            // Registered and holding: each is GOOD also when it is so already.
            let mut all_good = true;
            for request in [Request::RegisterAndIgnore(KEY_A), Request::Reserve(KIND, KEY_A)] {
                let Some(attempt) = a.attempt(&request_line(lun, request, false)) else { return preempts };
                all_good &= matches!(attempt.outcome, Outcome::Good(_));
            }
            ready = all_good;
            continue;
        }
        let victim = board.registered.load(Ordering::SeqCst);
        if victim == 0 {
            // Something goes over the path, so that an end of the run is noticed.
            if a.attempt(&format!("cdb {lun} 000000000000")).is_none() {
                return preempts;
            }
            thread::sleep(PAUSE);
            continue;
        }
        let request = Request::Preempt(KIND, KEY_A, victim);
        let Some(attempt) = a.attempt(&request_line(lun, request, random.below(2) == 0)) else {
            return preempts;
        };
        match attempt.outcome {
            Outcome::Good(_) => {
                board.registered.store(0, Ordering::SeqCst);
                preempts.push(Preempt {
                    victim: VICTIM,
                    sent: attempt.sent_ns,
                    good: attempt.seen_ns,
                    lifted: None,
                });
                let until = board.answers.load(Ordering::SeqCst) + ANSWERS_FENCED;
                while board.answers.load(Ordering::SeqCst) < until {
                    if a.attempt(&format!("cdb {lun} 000000000000")).is_none() {
                        return preempts;
                    }
                    thread::sleep(PAUSE);
                }
                board.key.store(0, Ordering::SeqCst);
            }
            // An earlier attempt of unknown outcome has done it.
            Outcome::Conflict => {
                board.registered.store(0, Ordering::SeqCst);
                board.key.store(0, Ordering::SeqCst);
                ready = false;
            }
            Outcome::Failed(what) => chronicle.host_error(&what, "PREEMPT"),
            _ => {}
        }
    }
}

fn be_victim(
    lun: u16,
    mut b: Paths,
    board: &Board,
    chronicle: &Chronicle,
) -> (Vec<AcceptedWrite>, Vec<Vec<Answer>>) {
    let (mut writes, mut sessions): (Vec<AcceptedWrite>, Vec<Vec<Answer>>) = Default::default();
    let (mut serial, mut session) = (0, 0);
    loop {
        serial += 1;
        let registers = board.key.load(Ordering::SeqCst) == 0;
        let key = 0xb << 40 | serial;
        let line = if registers {
            board.registers.lock().unwrap_or_else(PoisonError::into_inner).push(boottime_ns());
            request_line(lun, Request::RegisterAndIgnore(key), false)
        } else {
            format!("cdb {lun} 2a000000000000000100 out {}", hex(&filled(key)))
        };
        let Some(attempt) = b.attempt(&line) else { return (writes, sessions) };
        if b.sessions != session {
            session = b.sessions;
            sessions.push(Vec::new());
        }
        let mut saw = |seen| {
            let answer = Answer { sent: attempt.sent_ns, answered: attempt.seen_ns, seen };
            sessions.last_mut().into_iter().for_each(|session| session.push(answer));
        };
        match &attempt.outcome {
            Outcome::Good(_) => {
                saw(Seen::Good);
                if registers {
                    board.key.store(key, Ordering::SeqCst);
                    board.registered.store(key, Ordering::SeqCst);
                } else {
                    writes.push(AcceptedWrite {
                        nexus: VICTIM,
                        sent: attempt.sent_ns,
                        good: attempt.seen_ns,
                    });
                }
            }
            Outcome::Attention(code) if code == "2a/05" || code.starts_with("29/") => saw(Seen::Told),
            Outcome::Failed(what) => chronicle.host_error(what, &line[..20.min(line.len())]),
            _ => {}
        }
        board.answers.fetch_add(1, Ordering::SeqCst);
    }
}
