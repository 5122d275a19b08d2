//! One block as hosts see it: a register with compare-and-swap, whose unflushed values a loss of power may take away.
//!
//! Every write of a history has a value of its own, so that a read tells which write it saw. Value 0 is the block as it was made.

use std::collections::HashMap;

use super::linearizable::{self, Model, NotLinearizable, Timed};

/// What happened to a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// A write of this value.
    Write(u64),
    /// A read that returned this value.
    Read(u64),
    /// COMPARE AND WRITE.
    CompareAndWrite {
        /// What the block had to hold.
        expected: u64,
        /// What is written then.
        written: u64,
        /// Whether it matched; `None`: unknown.
        matched: Option<bool>,
    },
    /// A flush of everything that was answered before it was sent.
    Flush,
    /// All replicas lost power: what was not flushed may be gone.
    PowerLoss,
}

/// The register.
#[derive(Debug, Clone, Copy, Default)]
struct Block {
    /// Whether values since the last flush matter.
    loses_power: bool,
}

/// Its value, and those that it might fall back to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    value: u64,
    earlier: Vec<u64>,
}

impl Block {
    fn put(&self, state: &State, value: u64) -> State {
        let mut earlier = state.earlier.clone();
        if self.loses_power && !earlier.contains(&state.value) {
            earlier.push(state.value);
            earlier.sort_unstable();
        }
        State { value, earlier }
    }
}

impl Model for Block {
    type State = State;
    type Operation = Operation;

    fn initial(&self) -> State {
        State { value: 0, earlier: Vec::new() }
    }

    fn step(&self, state: &State, operation: &Operation) -> Vec<State> {
        match *operation {
            Operation::Write(value) => vec![self.put(state, value)],
            Operation::Read(value) if value == state.value => vec![state.clone()],
            Operation::Read(_) => vec![],
            Operation::CompareAndWrite { expected, written, matched } => {
                match (expected == state.value, matched) {
                    (true, Some(true) | None) => vec![self.put(state, written)],
                    (false, Some(false)) => vec![state.clone()],
                    // A mismatch that nobody was told of is as if it had never been sent.
                    _ => vec![],
                }
            }
            Operation::Flush => vec![State { value: state.value, earlier: Vec::new() }],
            Operation::PowerLoss => {
                let left = state.earlier.iter().chain([&state.value]);
                left.map(|value| State { value: *value, earlier: Vec::new() }).collect()
            }
        }
    }
}

/// Writes of unknown outcome that nobody read and that are tried as the cause of a mismatch: the last ones before it.
const SUSPECTS_MAX: usize = 8;

/// Checks the history of one block.
///
/// A write of unknown outcome whose value was seen took effect before it was seen; one whose value was never seen is dropped first, and
/// tried as the cause of a COMPARE AND WRITE's mismatch only when the history cannot be explained without.
///
/// With `late_max`, a write of unknown outcome takes effect within so long after it was sent, or never.
///
/// # Errors
/// [`NotLinearizable`], with numbers of the history as given.
pub fn check(history: &[Timed<Operation>], late_max: Option<u64>) -> Result<(), NotLinearizable> {
    let mut first_seen: HashMap<u64, u64> = HashMap::new();
    for timed in history {
        let (Some(answered), Some(value)) = (timed.answered, saw(timed.operation)) else { continue };
        let first = first_seen.entry(value).or_insert(answered);
        *first = answered.min(*first);
    }
    let mut kept = Vec::new();
    let mut unseen = Vec::new();
    for (number, timed) in history.iter().enumerate() {
        let mut timed = timed.clone();
        if timed.answered.is_none() && timed.operation != Operation::PowerLoss {
            let Some(written) = wrote(timed.operation) else { continue };
            let Some(seen) = first_seen.get(&written) else {
                unseen.push((number, timed));
                continue;
            };
            // Its effect came before the end of the first read that saw it, and its verdict was a match.
            let latest = late_max.map_or(u64::MAX, |late_max| timed.sent.saturating_add(late_max));
            timed.answered = Some((*seen).max(timed.sent).min(latest));
        }
        kept.push((number, timed));
    }
    let found = match judge(history, &kept) {
        Ok(()) => return Ok(()),
        Err(found) => found,
    };
    let miss = history
        .iter()
        .filter(|timed| matches!(timed.operation, Operation::CompareAndWrite { matched: Some(false), .. }));
    let Some(last_miss) = miss.filter_map(|timed| timed.answered).max() else { return Err(found) };
    let until = history[found.stuck].answered.unwrap_or(last_miss).min(last_miss);
    unseen.retain(|(_, timed)| timed.sent <= until);
    unseen.sort_by_key(|(_, timed)| timed.sent);
    kept.extend(unseen.split_off(unseen.len().saturating_sub(SUSPECTS_MAX)));
    judge(history, &kept).map_err(|_| found)
}

/// The value that an operation saw.
fn saw(operation: Operation) -> Option<u64> {
    match operation {
        Operation::Read(value) => Some(value),
        Operation::CompareAndWrite { expected, matched: Some(true), .. } => Some(expected),
        _ => None,
    }
}

/// The value that an operation may have written.
fn wrote(operation: Operation) -> Option<u64> {
    match operation {
        Operation::Write(value) => Some(value),
        Operation::CompareAndWrite { written, .. } => Some(written),
        Operation::Read(_) | Operation::Flush | Operation::PowerLoss => None,
    }
}

fn judge(history: &[Timed<Operation>], kept: &[(usize, Timed<Operation>)]) -> Result<(), NotLinearizable> {
    let loses_power = history.iter().any(|timed| timed.operation == Operation::PowerLoss);
    let short: Vec<_> = kept.iter().map(|(_, timed)| timed.clone()).collect();
    linearizable::check(&Block { loses_power }, &short).map_err(|found| NotLinearizable {
        explained: found.explained.into_iter().map(|number| kept[number].0).collect(),
        stuck: kept[found.stuck].0,
        undecided: found.undecided,
    })
}
