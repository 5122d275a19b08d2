//! Persistent reservations of one logical unit by SPC-5 5.14, in the few lines that these histories need: nexuses are numbers, keys
//! belong to one nexus each, and the all-registrants types are left out.
//!
//! Written from the standard's text, without a look at the product's rules: it judges those.

use std::collections::BTreeMap;

use super::linearizable::{self, Model, NotLinearizable, Timed};

const EXCLUSIVE_ACCESS: u8 = 3;
const WRITE_EXCLUSIVE_REGISTRANTS_ONLY: u8 = 5;
const EXCLUSIVE_ACCESS_REGISTRANTS_ONLY: u8 = 6;

/// A nexus of the history.
pub type Nexus = u8;

/// PERSISTENT RESERVE OUT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// REGISTER: reservation key, service action reservation key.
    Register(u64, u64),
    /// REGISTER AND IGNORE EXISTING KEY.
    RegisterAndIgnore(u64),
    /// RESERVE: type, key.
    Reserve(u8, u64),
    /// RELEASE: type, key.
    Release(u8, u64),
    /// CLEAR: key.
    Clear(u64),
    /// PREEMPT or PREEMPT AND ABORT: type, key, service action reservation key.
    Preempt(u8, u64, u64),
}

/// How a request was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// GOOD.
    Good,
    /// RESERVATION CONFLICT.
    Conflict,
    /// CHECK CONDITION, ILLEGAL REQUEST.
    Illegal,
    /// Not told.
    Unknown,
}

/// What a history consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// A change.
    Out(Nexus, Request, Answer),
    /// READ KEYS: generation and keys, sorted.
    ReadKeys(u32, Vec<u64>),
    /// READ RESERVATION: generation, and key and type where there is one.
    ReadReservation(u32, Option<(u64, u8)>),
    /// A read or a write, carried out or stopped by RESERVATION CONFLICT.
    Access {
        /// Whose.
        nexus: Nexus,
        /// It changes the medium.
        writes: bool,
        /// Carried out.
        allowed: bool,
    },
}

/// Registrations and reservation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct State {
    generation: u32,
    keys: BTreeMap<Nexus, u64>,
    held: Option<(Nexus, u8)>,
}

impl State {
    /// SPC-5 table 69, for commands that read or write the medium.
    fn admits(&self, nexus: Nexus, writes: bool) -> bool {
        let Some((holder, kind)) = self.held else { return true };
        let registrants_only =
            matches!(kind, WRITE_EXCLUSIVE_REGISTRANTS_ONLY | EXCLUSIVE_ACCESS_REGISTRANTS_ONLY);
        let stops_reads = matches!(kind, EXCLUSIVE_ACCESS | EXCLUSIVE_ACCESS_REGISTRANTS_ONLY);
        holder == nexus || (registrants_only && self.keys.contains_key(&nexus)) || (!writes && !stops_reads)
    }

    /// What becomes of a request, and the state after it.
    fn apply(&self, nexus: Nexus, request: Request) -> (Answer, State) {
        let mut after = self.clone();
        let own = self.keys.get(&nexus).copied();
        let answer = match request {
            Request::Register(key, _) if own.unwrap_or(0) != key => Answer::Conflict,
            Request::Register(_, 0) | Request::RegisterAndIgnore(0) => {
                after.keys.remove(&nexus);
                if own.is_some() && after.held.is_some_and(|(holder, _)| holder == nexus) {
                    after.held = None;
                }
                after.generation += u32::from(own.is_some());
                Answer::Good
            }
            Request::Register(_, key) | Request::RegisterAndIgnore(key) => {
                after.keys.insert(nexus, key);
                after.generation += 1;
                Answer::Good
            }
            Request::Reserve(_, key)
            | Request::Release(_, key)
            | Request::Clear(key)
            | Request::Preempt(_, key, _)
                if own != Some(key) =>
            {
                Answer::Conflict
            }
            Request::Reserve(kind, _) => match self.held {
                None => {
                    after.held = Some((nexus, kind));
                    Answer::Good
                }
                Some(held) if held == (nexus, kind) => Answer::Good,
                Some(_) => Answer::Conflict,
            },
            Request::Release(kind, _) => match self.held {
                Some((holder, held)) if holder == nexus && held != kind => Answer::Illegal,
                Some((holder, _)) if holder == nexus => {
                    after.held = None;
                    Answer::Good
                }
                _ => Answer::Good,
            },
            Request::Clear(_) => {
                after.keys.clear();
                after.held = None;
                after.generation += 1;
                Answer::Good
            }
            Request::Preempt(_, _, 0) => Answer::Illegal,
            Request::Preempt(kind, _, victim) => {
                let holder_key = self.held.and_then(|(holder, _)| self.keys.get(&holder));
                let preempts = holder_key == Some(&victim);
                if preempts {
                    after.held = Some((nexus, kind));
                } else if !self.keys.values().any(|key| *key == victim) {
                    return (Answer::Conflict, after);
                }
                // Where only registrations are removed, one's own key takes one's own registration too.
                after.keys.retain(|of, key| *key != victim || (preempts && *of == nexus));
                after.generation += 1;
                Answer::Good
            }
        };
        (answer, after)
    }
}

/// The sequential object.
#[derive(Debug, Clone, Copy)]
pub struct Unit;

impl Model for Unit {
    type State = State;
    type Operation = Operation;

    fn initial(&self) -> State {
        State::default()
    }

    fn may_vanish(&self, operation: &Operation) -> bool {
        matches!(operation, Operation::Out(_, _, Answer::Unknown))
    }

    fn step(&self, state: &State, operation: &Operation) -> Vec<State> {
        match operation {
            Operation::Out(nexus, request, seen) => {
                let (answer, after) = state.apply(*nexus, *request);
                match *seen {
                    // Without an effect it is as if it had never been sent.
                    Answer::Unknown if after == *state => vec![],
                    Answer::Unknown => vec![after],
                    seen if seen == answer => vec![after],
                    _ => vec![],
                }
            }
            Operation::ReadKeys(generation, keys) => {
                let mut held: Vec<u64> = state.keys.values().copied().collect();
                held.sort_unstable();
                if *generation == state.generation && *keys == held { vec![state.clone()] } else { vec![] }
            }
            Operation::Access { nexus, writes, allowed } => {
                if state.admits(*nexus, *writes) == *allowed {
                    vec![state.clone()]
                } else {
                    vec![]
                }
            }
            Operation::ReadReservation(generation, seen) => {
                let held = state.held.and_then(|(holder, kind)| Some((*state.keys.get(&holder)?, kind)));
                if *generation == state.generation && *seen == held { vec![state.clone()] } else { vec![] }
            }
        }
    }
}

/// Checks the history of one logical unit. With `late_max`, a change of unknown outcome takes effect within so long after it was
/// sent, or never.
///
/// # Errors
/// [`NotLinearizable`].
pub fn check(history: &[Timed<Operation>], late_max: Option<u64>) -> Result<(), NotLinearizable> {
    let bounded = |timed: &Timed<Operation>| {
        let mut timed = timed.clone();
        if let (None, Some(late_max)) = (timed.answered, late_max) {
            timed.answered = Some(timed.sent.saturating_add(late_max));
        }
        timed
    };
    linearizable::check(&Unit, &history.iter().map(bounded).collect::<Vec<_>>())
}
