//! The host's thread: writes, answers, the choice of paths. See [`super::host`] for what it keeps to.

use std::{
    collections::HashMap,
    os::fd::AsRawFd as _,
    sync::mpsc,
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, Token, unix::SourceFd};

use super::{
    alua::{self, Access},
    host::{Habits, Message, Seen, Shared, lock, verified},
    session::{Answer, Found, Heard, SenseCode, Session},
};

/// Token of the waker.
pub(super) const WAKE: Token = Token(usize::MAX);
/// Bytes of a write: eight logical blocks.
const WRITE_LEN: usize = 4096;
const BLOCKS: u16 = 8;
/// Places that each slot writes one after the other.
const PLACES: usize = 16;
/// BUSY and the like: tried again after this, as hosts do.
const AGAIN: Duration = Duration::from_millis(10);
/// States of paths that are not usable are asked for so often, and pings sent.
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// A command that no path has done by then is an error.
const GIVE_UP: Duration = Duration::from_secs(60);
/// Errors that are kept in words.
const ERRORS_MAX: usize = 20;

const GOOD: u8 = 0x00;
const CHECK_CONDITION: u8 = 0x02;
const BUSY: u8 = 0x08;
const TASK_SET_FULL: u8 = 0x28;
const TASK_ABORTED: u8 = 0x40;

/// What a command is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// The write or read of a slot.
    Slot(usize, usize),
    /// The states of a unit's groups.
    Groups(usize),
}

#[derive(Debug)]
struct Link {
    session: Option<Session>,
    group: u16,
    access: Vec<Access>,
    asked: Vec<bool>,
    in_flight: HashMap<u32, Purpose>,
    heard: Instant,
    pinged: Option<Instant>,
    wanted: mpsc::Sender<Option<Session>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Sent again or begun at that time.
    Due(Instant),
    Sent,
    /// Has read everything back.
    Rests,
}

#[derive(Debug)]
struct Slot {
    /// The value of each place, 0 for never written.
    values: [u64; PLACES],
    place: usize,
    /// What is being written; none: what is there is being read.
    value: Option<u64>,
    /// Since when.
    since: Instant,
    step: Step,
    /// Places still to be read back.
    to_verify: usize,
}

/// See the module.
pub(super) struct Machine {
    poll: Poll,
    inbox: mpsc::Receiver<Message>,
    seen: Shared,
    links: Vec<Link>,
    /// By unit.
    slots: Vec<Vec<Slot>>,
    habits: Habits,
    last_value: u64,
    verifying: bool,
}

impl Machine {
    pub(super) fn new(
        poll: Poll,
        inbox: mpsc::Receiver<Message>,
        seen: Shared,
        connectors: Vec<mpsc::Sender<Option<Session>>>,
        habits: Habits,
        units: u16,
    ) -> Self {
        let now = Instant::now();
        let count = usize::from(units);
        let link = |wanted| Link {
            session: None,
            group: 0,
            access: vec![Access::Unusable; count],
            asked: vec![false; count],
            in_flight: HashMap::new(),
            heard: now,
            pinged: None,
            wanted,
        };
        let slot = || Slot {
            values: [0; PLACES],
            place: 0,
            value: None,
            since: now,
            step: Step::Due(now),
            to_verify: 0,
        };
        let slots = (0..count).map(|_| (0..habits.depth).map(|_| slot()).collect()).collect();
        let links = connectors.into_iter().map(link).collect();
        Self { poll, inbox, seen, links, slots, habits, last_value: 0, verifying: false }
    }

    pub(super) fn run(&mut self) -> anyhow::Result<()> {
        let mut events = Events::with_capacity(64);
        let mut checked = Instant::now();
        loop {
            let now = Instant::now();
            if now.duration_since(checked) >= CHECK_EVERY / 4 {
                checked = now;
                self.check(now);
            }
            self.begin_what_is_due(now);
            for path in 0..self.links.len() {
                let sent = self.links[path].session.as_mut().map_or(Ok(()), Session::send);
                if sent.is_err() {
                    self.down(path, now);
                }
            }
            let due = self.slots.iter().flatten().filter_map(|slot| match slot.step {
                Step::Due(at) => Some(at.saturating_duration_since(now)),
                Step::Sent | Step::Rests => None,
            });
            let wait = due.min().unwrap_or(CHECK_EVERY).clamp(Duration::from_micros(100), CHECK_EVERY / 4);
            match self.poll.poll(&mut events, Some(wait)) {
                Err(error) if error.kind() != std::io::ErrorKind::Interrupted => return Err(error.into()),
                _ => {}
            }
            let now = Instant::now();
            while let Ok(message) = self.inbox.try_recv() {
                match message {
                    Message::Up(path, found) => self.up(path, *found, now)?,
                    Message::Verify => self.begin_to_verify(),
                    Message::Stop => return Ok(()),
                }
            }
            let ready: Vec<usize> = events.iter().map(|event| event.token().0).collect();
            // The waker's token is no path's.
            ready.into_iter().for_each(|path| self.hear(path, now));
        }
    }

    fn note<T>(&self, with: impl FnOnce(&mut Seen) -> T) -> T {
        with(&mut lock(&self.seen))
    }

    fn up(&mut self, path: usize, found: Found, now: Instant) -> anyhow::Result<()> {
        let Some(link) = self.links.get_mut(path) else { return Ok(()) };
        self.poll.registry().register(
            &mut SourceFd(&found.session.socket.as_raw_fd()),
            Token(path),
            Interest::READABLE | Interest::WRITABLE,
        )?;
        (link.session, link.group, link.heard, link.pinged) = (Some(found.session), found.group, now, None);
        self.note(|seen| seen.paths += 1);
        for (unit, groups) in found.groups.into_iter().enumerate() {
            self.learn(unit, &groups);
        }
        Ok(())
    }

    /// A path is gone: what it had is sent again on others.
    fn down(&mut self, path: usize, now: Instant) {
        let Some(link) = self.links.get_mut(path) else { return };
        let Some(session) = link.session.take() else { return };
        link.access.fill(Access::Unusable);
        link.asked.fill(false);
        let purposes: Vec<Purpose> = link.in_flight.drain().map(|(_, purpose)| purpose).collect();
        // The end of the thread ends everything.
        let _ = link.wanted.send(Some(session));
        for purpose in purposes {
            if let Purpose::Slot(unit, slot) = purpose {
                self.again(unit, slot, now);
            }
        }
        self.note(|seen| {
            seen.lost_sessions += 1;
            seen.paths -= 1;
        });
        // Another owner is likely.
        for unit in 0..self.slots.len() {
            self.ask_all(unit);
        }
    }

    fn hear(&mut self, path: usize, now: Instant) {
        let Some(link) = self.links.get_mut(path) else { return };
        let Some(session) = &mut link.session else { return };
        let heard = session.hear();
        let Ok(heard) = heard else { return self.down(path, now) };
        if !heard.is_empty() {
            (link.heard, link.pinged) = (now, None);
        }
        for heard in heard {
            match heard {
                Heard::Answer(answer) => {
                    let purpose = self.links.get_mut(path).and_then(|l| l.in_flight.remove(&answer.tag));
                    match purpose {
                        Some(Purpose::Slot(unit, slot)) => self.answered(path, unit, slot, answer, now),
                        Some(Purpose::Groups(unit)) => self.groups_answered(path, unit, &answer),
                        None => {}
                    }
                }
                Heard::Life => {}
                Heard::Leave => return self.down(path, now),
            }
        }
    }

    /// Pings, and asks what paths that could not be used have become.
    fn check(&mut self, now: Instant) {
        for path in 0..self.links.len() {
            let Some(link) = self.links.get_mut(path) else { continue };
            let Some(session) = &mut link.session else { continue };
            let silent = now.duration_since(link.heard);
            if link.pinged.is_some() && silent > self.habits.silence {
                self.down(path, now);
                continue;
            }
            if link.pinged.is_none() && silent > self.habits.silence / 2 {
                link.pinged = Some(now);
                session.ping();
            }
            for unit in 0..self.slots.len() {
                if self.links[path].access[unit] > Access::NonOptimized {
                    self.ask(path, unit);
                }
            }
        }
    }

    fn ask_all(&mut self, unit: usize) {
        (0..self.links.len()).for_each(|path| self.ask(path, unit));
    }

    /// Sends REPORT TARGET PORT GROUPS.
    fn ask(&mut self, path: usize, unit: usize) {
        let Some(link) = self.links.get_mut(path) else { return };
        let Some(session) = &mut link.session else { return };
        if link.asked[unit] || !session.window_open() {
            return;
        }
        let tag = session.submit(unit as u16, &alua::report_target_port_groups(), None, alua::LEN);
        link.asked[unit] = true;
        link.in_flight.insert(tag, Purpose::Groups(unit));
    }

    fn groups_answered(&mut self, path: usize, unit: usize, answer: &Answer) {
        if let Some(link) = self.links.get_mut(path) {
            link.asked[unit] = false;
        }
        match (answer.status, answer.sense.0) {
            (GOOD, _) => match alua::groups(&answer.data) {
                Ok(groups) => self.learn(unit, &groups),
                Err(error) => self.error(unit, &format!("REPORT TARGET PORT GROUPS: {error}")),
            },
            (CHECK_CONDITION, 6) => {
                self.note(|seen| seen.attentions += 1);
                self.ask(path, unit);
            }
            _ => {}
        }
    }

    fn learn(&mut self, unit: usize, groups: &[(u16, Access)]) {
        for link in self.links.iter_mut().filter(|link| link.session.is_some()) {
            if let Some((_, access)) = groups.iter().find(|(group, _)| *group == link.group) {
                link.access[unit] = *access;
            }
        }
    }

    /// The best path for a unit.
    fn best(&self, unit: usize) -> Option<usize> {
        let open = |link: &&(usize, &Link)| {
            link.1.access[unit] <= Access::NonOptimized
                && link.1.session.as_ref().is_some_and(Session::window_open)
        };
        let links: Vec<(usize, &Link)> = self.links.iter().enumerate().collect();
        links.iter().filter(open).min_by_key(|(_, link)| link.access[unit]).map(|(path, _)| *path)
    }

    fn again(&mut self, unit: usize, slot: usize, at: Instant) {
        self.slots[unit][slot].step = Step::Due(at);
    }

    fn begin_what_is_due(&mut self, now: Instant) {
        for unit in 0..self.slots.len() {
            for slot in 0..self.slots[unit].len() {
                if matches!(self.slots[unit][slot].step, Step::Due(at) if at <= now) {
                    self.begin(unit, slot, now);
                }
            }
        }
    }

    fn begin(&mut self, unit: usize, slot: usize, now: Instant) {
        let Some(path) = self.best(unit) else {
            let since = self.slots[unit][slot].since;
            let tried = self.slots[unit][slot].value.is_some() || self.slots[unit][slot].to_verify > 0;
            if tried && now.duration_since(since) > GIVE_UP {
                self.error(unit, "no path");
                self.slots[unit][slot].since = now;
            }
            return self.again(unit, slot, now + AGAIN);
        };
        let depth = self.habits.depth;
        let state = &mut self.slots[unit][slot];
        if state.value.is_none() && state.to_verify == 0 {
            self.last_value += 1;
            (state.value, state.since) = (Some(self.last_value), now);
        }
        let lba = ((state.place * depth + slot) * usize::from(BLOCKS)) as u32;
        let cdb = alua::block_command(state.value.is_some(), lba, BLOCKS);
        let data = state.value.map(|value| content(value, unit, lba));
        state.step = Step::Sent;
        let Some(link) = self.links.get_mut(path) else { return };
        let Some(session) = &mut link.session else { return };
        let len = if data.is_some() { 0 } else { WRITE_LEN as u32 };
        let tag = session.submit(unit as u16, &cdb, data.as_deref(), len);
        link.in_flight.insert(tag, Purpose::Slot(unit, slot));
    }

    fn answered(&mut self, path: usize, unit: usize, slot: usize, answer: Answer, now: Instant) {
        match (answer.status, answer.sense) {
            (GOOD, _) => match self.slots[unit][slot].value.take() {
                Some(value) => {
                    self.note(|seen| seen.units[unit].good(now));
                    let state = &mut self.slots[unit][slot];
                    state.values[state.place] = value;
                    state.place = (state.place + 1) % PLACES;
                    self.next(unit, slot, now);
                }
                None => self.read(unit, slot, &answer.data, now),
            },
            (CHECK_CONDITION, (6, 0x2a, 0x06)) => {
                self.note(|seen| seen.attentions += 1);
                self.ask(path, unit);
                self.again(unit, slot, now);
            }
            (CHECK_CONDITION, (6, ..)) => {
                self.note(|seen| seen.attentions += 1);
                self.again(unit, slot, now);
            }
            (CHECK_CONDITION, (0xb, ..)) | (TASK_ABORTED, _) => {
                self.note(|seen| seen.aborted += 1);
                self.again(unit, slot, now);
            }
            (CHECK_CONDITION, (2, 0x04, ascq @ 0x0a..=0x0c)) => self.refused(path, unit, slot, ascq, now),
            (BUSY | TASK_SET_FULL, _) => {
                self.note(|seen| seen.busy += 1);
                self.again(unit, slot, now + AGAIN);
            }
            (status, sense) => {
                self.error(unit, &words(status, sense));
                self.slots[unit][slot].value = None;
                self.next(unit, slot, now);
            }
        }
        let (since, tried) = (self.slots[unit][slot].since, self.slots[unit][slot].value.is_some());
        if tried && now.duration_since(since) > GIVE_UP {
            self.error(unit, "not done within a minute");
            self.slots[unit][slot].since = now;
        }
    }

    /// The port's access state lets nothing through: another path, and what has become of this one is asked for.
    fn refused(&mut self, path: usize, unit: usize, slot: usize, ascq: u8, now: Instant) {
        self.note(|seen| seen.access_states += 1);
        let access = if ascq == 0x0a { Access::Transitioning } else { Access::Unusable };
        self.links[path].access[unit] = access;
        (0..self.links.len()).filter(|other| *other != path).for_each(|other| self.ask(other, unit));
        self.again(unit, slot, now);
    }

    /// What comes after something that was done.
    fn next(&mut self, unit: usize, slot: usize, now: Instant) {
        let state = &mut self.slots[unit][slot];
        if self.verifying && state.to_verify == 0 && state.value.is_none() {
            (state.to_verify, state.place, state.since) = (PLACES, 0, now);
            state.step = Step::Due(now);
        } else {
            state.step = Step::Due(now + self.habits.pause);
        }
    }

    fn begin_to_verify(&mut self) {
        // Each slot ends its write first.
        self.verifying = true;
    }

    fn read(&mut self, unit: usize, slot: usize, data: &[u8], now: Instant) {
        let depth = self.habits.depth;
        let state = &mut self.slots[unit][slot];
        let value = state.values[state.place];
        let lba = ((state.place * depth + slot) * usize::from(BLOCKS)) as u32;
        let wanted = if value == 0 { vec![0; WRITE_LEN] } else { content(value, unit, lba) };
        if data != wanted {
            let found: Vec<u8> = data.iter().take(8).copied().collect();
            self.error(unit, &format!("block {lba} begins with {found:x?} where {value:x} was acknowledged"));
        } else {
            self.note(|seen| seen.verified += 1);
        }
        let state = &mut self.slots[unit][slot];
        state.place = (state.place + 1) % PLACES;
        state.to_verify -= 1;
        state.step = if state.to_verify > 0 { Step::Due(now) } else { Step::Rests };
        if self.slots.iter().flatten().all(|slot| slot.step == Step::Rests) {
            self.verifying = false;
            self.slots.iter_mut().flatten().for_each(|slot| slot.step = Step::Due(now));
            self.note(|seen| {
                seen.units.iter_mut().for_each(|unit| unit.rests(now));
                verified(seen);
            });
        }
    }

    fn error(&self, unit: usize, words: &str) {
        eprintln!("a host's error on unit {unit}: {words}");
        self.note(|seen| {
            if seen.errors.len() < ERRORS_MAX {
                seen.errors.push(format!("unit {unit}: {words}"));
            }
        });
    }
}

fn words(status: u8, (key, asc, ascq): SenseCode) -> String {
    format!("status {status:#04x}, sense {key:x}/{asc:02x}/{ascq:02x}")
}

/// A block that only this value at this place has.
fn content(value: u64, unit: usize, lba: u32) -> Vec<u8> {
    let place = (unit as u64) << 32 | u64::from(lba);
    (0..WRITE_LEN as u64 / 16).flat_map(|n| [value, place ^ n << 48]).flat_map(u64::to_be_bytes).collect()
}
