//! Linearizability by the algorithm of Wing and Gong with Lowe's memory of configurations already seen.
//!
//! Operations of unknown outcome have no end: they may take effect at any later moment, or never. Equal times count as concurrent.
//!
//! Invariant: the verdict depends on the history alone; a history is accepted only with a witness order.

use std::{collections::HashSet, hash::Hash};

/// What a sequential object does.
pub trait Model {
    /// Its state.
    type State: Clone + Eq + Hash;
    /// An operation with what was seen of it.
    type Operation;
    /// The first state.
    fn initial(&self) -> Self::State;
    /// The states after `operation`, if it can happen in `state` with what was seen.
    fn step(&self, state: &Self::State, operation: &Self::Operation) -> Vec<Self::State>;
    /// Whether `operation` may also never have happened, although it has an end: the last moment at which it may.
    fn may_vanish(&self, _operation: &Self::Operation) -> bool {
        false
    }
}

/// An operation in time (any unit, one clock).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timed<O> {
    /// When it was sent.
    pub sent: u64,
    /// When it was answered; `None`: the outcome is unknown.
    pub answered: Option<u64>,
    /// The operation with what was seen.
    pub operation: O,
}

/// No order explains the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotLinearizable {
    /// Operations (numbers in the history) of the longest order found, the last ones of it.
    pub explained: Vec<usize>,
    /// The operation whose answer could not be explained then.
    pub stuck: usize,
    /// The search was given up: there may be an order all the same.
    pub undecided: bool,
}

/// Configurations after which a search is given up.
const CONFIGURATIONS_MAX: usize = 4_000_000;

/// Operations of the longest order that are told.
const TOLD: usize = 12;
const NONE: usize = usize::MAX;

#[derive(Clone, Copy)]
struct Entry {
    operation: usize,
    answer: bool,
    before: usize,
    after: usize,
}

/// Calls and answers in time, as a list from which operations are lifted once they are in the order.
struct Entries {
    entries: Vec<Entry>,
    // Of each operation: its call and, where there is one, its answer.
    places: Vec<(usize, usize)>,
}

impl Entries {
    fn new<O>(history: &[Timed<O>]) -> Self {
        let mut events: Vec<(u64, bool, usize)> = Vec::new();
        for (number, timed) in history.iter().enumerate() {
            events.push((timed.sent, false, number));
            if let Some(answered) = timed.answered {
                events.push((answered, true, number));
            }
        }
        // Calls before answers at the same time: concurrent.
        events.sort_unstable();
        let mut places = vec![(NONE, NONE); history.len()];
        // Entry 0 is the head.
        let mut entries = vec![Entry { operation: NONE, answer: false, before: NONE, after: NONE }];
        for (_, answer, operation) in events {
            let at = entries.len();
            entries[at - 1].after = at;
            entries.push(Entry { operation, answer, before: at - 1, after: NONE });
            if answer {
                places[operation].1 = at;
            } else {
                places[operation].0 = at;
            }
        }
        Self { entries, places }
    }

    fn unlink(&mut self, at: usize) {
        let Entry { before, after, .. } = self.entries[at];
        self.entries[before].after = after;
        if after != NONE {
            self.entries[after].before = before;
        }
    }

    fn relink(&mut self, at: usize) {
        let Entry { before, after, .. } = self.entries[at];
        self.entries[before].after = at;
        if after != NONE {
            self.entries[after].before = at;
        }
    }

    fn lift(&mut self, operation: usize) {
        let (call, answer) = self.places[operation];
        self.unlink(call);
        if answer != NONE {
            self.unlink(answer);
        }
    }

    fn put_back(&mut self, operation: usize) {
        let (call, answer) = self.places[operation];
        if answer != NONE {
            self.relink(answer);
        }
        self.relink(call);
    }
}

/// Which operations are in the order, in a form that is short while few are out of turn.
#[derive(Clone)]
struct Done {
    words: Vec<u64>,
    // All words below are full.
    full: usize,
}

impl Done {
    fn key(&self) -> (usize, Vec<u64>) {
        let last = self.words.iter().rposition(|word| *word != 0).map_or(self.full, |at| at + 1);
        (self.full, self.words.get(self.full..last.max(self.full)).unwrap_or_default().to_vec())
    }

    fn set(&mut self, at: usize) {
        self.words[at / 64] |= 1 << (at % 64);
        while self.words.get(self.full) == Some(&u64::MAX) {
            self.full += 1;
        }
    }

    fn clear(&mut self, at: usize) {
        self.words[at / 64] &= !(1 << (at % 64));
        self.full = self.full.min(at / 64);
    }
}

/// Checks a history.
///
/// # Errors
/// [`NotLinearizable`] when no order explains it.
pub fn check<M: Model>(model: &M, history: &[Timed<M::Operation>]) -> Result<(), NotLinearizable> {
    let mut unanswered = history.iter().filter(|timed| timed.answered.is_some()).count();
    let mut entries = Entries::new(history);
    // Numbers by time of the call, so that what is done is nearly a prefix.
    let mut rank = vec![0; history.len()];
    let mut by_call: Vec<usize> = (0..history.len()).collect();
    by_call.sort_by_key(|number| (history[*number].sent, *number));
    for (at, number) in by_call.into_iter().enumerate() {
        rank[number] = at;
    }
    let mut done = Done { words: vec![0; history.len() / 64 + 1], full: 0 };
    let mut seen = HashSet::new();
    let mut order: Vec<(usize, M::State)> = Vec::new();
    let mut state = model.initial();
    let mut best = NotLinearizable { explained: Vec::new(), stuck: 0, undecided: false };
    let mut best_len = None;
    let mut at = entries.entries[0].after;
    while unanswered > 0 {
        let entry = entries.entries[at];
        if entry.answer {
            let number = entry.operation;
            if model.may_vanish(&history[number].operation) {
                done.set(rank[number]);
                let (full, words) = done.key();
                if seen.insert((full, words, state.clone())) {
                    order.push((number, state.clone()));
                    entries.lift(number);
                    unanswered -= 1;
                    at = entries.entries[0].after;
                    continue;
                }
                done.clear(rank[number]);
            }
            // Everything that could come before this answer was tried.
            if best_len.is_none_or(|best| order.len() > best) {
                best_len = Some(order.len());
                let tail = order.len().saturating_sub(TOLD);
                best.explained = order[tail..].iter().map(|(number, _)| *number).collect();
                best.stuck = entry.operation;
            }
            if seen.len() > CONFIGURATIONS_MAX {
                best.undecided = true;
                return Err(best);
            }
            let Some((number, before)) = order.pop() else { return Err(best) };
            state = before;
            done.clear(rank[number]);
            entries.put_back(number);
            unanswered += usize::from(history[number].answered.is_some());
            // Once more from the same call: it may have other outcomes, and those tried are remembered.
            at = entries.places[number].0;
            continue;
        }
        let number = entry.operation;
        done.set(rank[number]);
        let next = model.step(&state, &history[number].operation).into_iter().find(|next| {
            let (full, words) = done.key();
            seen.insert((full, words, next.clone()))
        });
        if let Some(next) = next {
            order.push((number, std::mem::replace(&mut state, next)));
            entries.lift(number);
            unanswered -= usize::from(history[number].answered.is_some());
            at = entries.entries[0].after;
        } else {
            done.clear(rank[number]);
            at = entry.after;
        }
    }
    Ok(())
}
