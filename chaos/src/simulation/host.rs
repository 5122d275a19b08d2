//! Hosts with a session through every node: they read and write a few blocks, reserve and preempt, and ask again elsewhere when a
//! path is gone.
//!
//! Invariants: one command at a time; what was answered is told to the judge with when it was sent and answered; what has no
//! answer is of unknown outcome for ever.

use std::collections::BTreeSet;

use holdfast_scsi::status::Status;

use super::{
    Event, HOSTS, NODES, Simulation, VOLUMES,
    founding::kept,
    judge::{Accessed, Told},
    unit::{Reply, block_of, value_of},
};
use crate::oracle::reservations::{self, Request};

/// Blocks of a volume that hosts use, at most.
pub(super) const LBAS: u64 = 3;
/// Reservation types: write exclusive and exclusive access, both also registrants only.
const KINDS: [u8; 4] = [1, 3, 5, 6];

/// The initiator name of a host.
pub(super) fn initiator(host: usize) -> String {
    format!("iqn.2026-11.example:host-{host}")
}

/// A command for a port; none is a login.
#[derive(Debug, Clone)]
pub(super) struct Sent {
    pub(super) number: u64,
    pub(super) session: u64,
    pub(super) command: Option<Command>,
}

#[derive(Debug, Clone)]
pub(super) struct Command {
    pub(super) lun: u16,
    pub(super) cdb: Vec<u8>,
    pub(super) data: Vec<u8>,
}

/// What comes back.
#[derive(Debug, Clone)]
pub(super) enum Answer {
    LoggedIn {
        node: usize,
        session: u64,
    },
    SessionGone {
        node: usize,
    },
    Reply(Box<Reply>),
    /// ABORTED COMMAND, or no answer.
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Want {
    LogIn,
    Ready,
    Write { lba: u64, value: u64 },
    Read { lba: u64 },
    Flush,
    Out(Request, bool),
    ReadKeys,
    ReadReservation,
}

#[derive(Debug, Clone)]
struct InFlight {
    number: u64,
    node: usize,
    lun: u16,
    sent: u64,
    want: Want,
}

pub(super) struct Host {
    /// Sessions by node.
    paths: [Option<u64>; NODES],
    in_flight: Option<InFlight>,
    next: u64,
    values: u64,
    /// Keys that it believes to have registered, by node and volume.
    keys: [[u64; VOLUMES]; NODES],
    /// Once nothing is broken: where it has not got through yet.
    left: Option<BTreeSet<(usize, u16)>>,
}

impl Host {
    pub(super) fn new() -> Self {
        Self {
            paths: [None; NODES],
            in_flight: None,
            next: 1,
            values: 0,
            keys: [[0; VOLUMES]; NODES],
            left: None,
        }
    }

    pub(super) fn ask_all(&mut self) {
        let all = (0..NODES).flat_map(|node| (0..VOLUMES).map(move |volume| (node, volume as u16)));
        self.left = Some(all.collect());
    }

    pub(super) fn is_content(&self) -> bool {
        self.left.as_ref().is_some_and(BTreeSet::is_empty)
    }

    pub(super) fn wants(&self) -> String {
        format!("left (node, LUN): {:?}; under way: {:?}", self.left, self.in_flight)
    }
}

/// The name of a nexus in histories.
pub(super) fn nexus_of(host: usize, node: usize) -> u8 {
    (host * NODES + node) as u8
}

fn fresh_key(nexus: u8, random: u64) -> u64 {
    1_000 + u64::from(nexus) * 10 + 1 + random % 2
}

fn ten(opcode: u8, lba: u64, blocks: u16) -> Vec<u8> {
    let (l, b) = ((lba as u32).to_be_bytes(), blocks.to_be_bytes());
    vec![opcode, 0, l[0], l[1], l[2], l[3], 0, b[0], b[1], 0]
}

fn reserve_out(request: Request, abort: bool) -> (Vec<u8>, Vec<u8>) {
    let (action, kind, key, action_key) = match request {
        Request::Register(key, new) => (0, 0, key, new),
        Request::RegisterAndIgnore(new) => (6, 0, 0, new),
        Request::Reserve(kind, key) => (1, kind, key, 0),
        Request::Release(kind, key) => (2, kind, key, 0),
        Request::Clear(key) => (3, 0, key, 0),
        Request::Preempt(kind, key, victim) => (if abort { 5 } else { 4 }, kind, key, victim),
    };
    let mut list = key.to_be_bytes().to_vec();
    list.extend(action_key.to_be_bytes());
    // APTPL.
    list.extend([0, 0, 0, 0, 1, 0, 0, 0]);
    (vec![0x5f, action, kind, 0, 0, 0, 0, 0, list.len() as u8, 0], list)
}

impl Simulation {
    pub(super) fn host_step(&mut self, at: usize) {
        let now = self.now;
        if self.hosts[at].in_flight.as_ref().is_some_and(|f| now > f.sent + self.ways.patience_ms) {
            let flight = self.hosts[at].in_flight.take();
            if let Some(flight) = flight {
                self.mark("a host gave a command up");
                self.ended_unknown(at, &flight);
                self.hosts[at].paths[flight.node] = None;
            }
        }
        if self.hosts[at].in_flight.is_none() && !self.hosts[at].is_content() {
            self.next_command(at);
        }
        let wait = 2 + self.random.below(self.ways.host_pause_ms);
        self.later(wait, Event::HostStep(at));
    }

    fn next_command(&mut self, at: usize) {
        let (node, lun) =
            match self.hosts[at].left.as_ref().map(|left| left.iter().copied().collect::<Vec<_>>()) {
                Some(left) => *self.random.pick(&left),
                None => (self.random.below(NODES as u64) as usize, self.random.below(VOLUMES as u64) as u16),
            };
        let nexus = nexus_of(at, node);
        let volume = usize::from(lun);
        let own = self.hosts[at].keys[node][volume];
        let kind = *self.random.pick(&KINDS);
        let want = if self.hosts[at].paths[node].is_none() {
            Want::LogIn
        } else if self.hosts[at].left.is_some() {
            Want::Ready
        } else {
            // Some flush whenever they have written.
            let mut drawn = self.random.below(if self.ways.flushes { 140 } else { 100 });
            // Where threads are slow, changes that all of them must have installed are frequent.
            if self.ways.slow_workers && self.random.below(3) == 0 {
                drawn = 77 + self.random.below(23);
            }
            match drawn {
                0..=34 => {
                    self.hosts[at].values += 1;
                    let value = 1 + self.hosts[at].values * HOSTS as u64 + at as u64;
                    Want::Write { lba: self.block_for(volume), value }
                }
                35..=59 => Want::Read { lba: self.block_for(volume) },
                60..=62 => Want::Ready,
                63..=65 | 100.. => Want::Flush,
                66..=71 => Want::ReadKeys,
                72..=76 => Want::ReadReservation,
                77..=84 if own == 0 => {
                    Want::Out(Request::RegisterAndIgnore(fresh_key(nexus, self.random.draw())), false)
                }
                77..=82 => Want::Out(Request::Reserve(kind, own), false),
                83..=84 => Want::Out(Request::Release(kind, own), false),
                85..=87 => Want::Out(Request::Register(own, fresh_key(nexus, self.random.draw())), false),
                88 => Want::Out(Request::Register(own, 0), false),
                89 => Want::Out(Request::Clear(own), false),
                _ => {
                    let other = self.random.below((HOSTS * NODES) as u64) as usize;
                    let victim = self.hosts[other / NODES].keys[other % NODES][volume];
                    if own == 0 || victim == 0 {
                        Want::Out(Request::RegisterAndIgnore(fresh_key(nexus, self.random.draw())), false)
                    } else {
                        Want::Out(Request::Preempt(kind, own, victim), self.random.below(2) == 0)
                    }
                }
            }
        };
        let command = match &want {
            Want::LogIn => None,
            Want::Ready => Some((vec![0; 6], Vec::new())),
            Want::Write { lba, value } => Some((ten(0x2a, *lba, 1), block_of(*value))),
            Want::Read { lba } => Some((ten(0x28, *lba, 1), Vec::new())),
            Want::Flush => Some((ten(0x35, 0, 0), Vec::new())),
            Want::Out(request, abort) => Some(reserve_out(*request, *abort)),
            Want::ReadKeys => Some((vec![0x5e, 0, 0, 0, 0, 0, 0, 0x10, 0, 0], Vec::new())),
            Want::ReadReservation => Some((vec![0x5e, 1, 0, 0, 0, 0, 0, 0x10, 0, 0], Vec::new())),
        };
        let host = &mut self.hosts[at];
        host.next += 1;
        let number = host.next;
        let session = host.paths[node].unwrap_or_default();
        let command = command.map(|(cdb, data)| Command { lun, cdb, data });
        host.in_flight = Some(InFlight { number, node, lun, sent: self.now, want });
        let wait = self.random.below(3);
        let command = Box::new(Sent { number, session, command });
        // A node that is down refuses at once.
        if self.nodes[node].up {
            self.later(wait, Event::ToPort { host: at, node, command });
        } else {
            self.later(wait, Event::Answer { host: at, number, answer: Answer::SessionGone { node } });
        }
    }

    /// One of the few that all use, or the last one of a volume that grows.
    fn block_for(&mut self, volume: usize) -> u64 {
        let last = self.controllers.size_of(volume) / 512 - 1;
        if kept(last) != last && self.random.below(16) == 0 {
            return last;
        }
        self.random.below(self.ways.lbas)
    }

    pub(super) fn answered(&mut self, at: usize, number: u64, answer: Answer) {
        if let Answer::SessionGone { node } = &answer
            && number == 0
        {
            self.hosts[at].paths[*node] = None;
            return;
        }
        let Some(flight) = self.hosts[at].in_flight.take_if(|f| f.number == number) else { return };
        match answer {
            Answer::LoggedIn { node, session } => self.hosts[at].paths[node] = Some(session),
            // It came before the command: nothing of it has been executed.
            Answer::SessionGone { node } => self.hosts[at].paths[node] = None,
            Answer::Unknown => self.ended_unknown(at, &flight),
            Answer::Reply(reply) => self.replied(at, &flight, &reply),
        }
    }

    fn ended_unknown(&mut self, at: usize, flight: &InFlight) {
        let nexus = nexus_of(at, flight.node);
        self.note(|| format!("host {at} via node {}: {:?}: unknown", flight.node, flight.want));
        let volume = usize::from(flight.lun);
        match &flight.want {
            Want::Write { lba, value } => self.judge.wrote(volume, *lba, *value, flight.sent, None),
            Want::Out(request, _) => {
                self.report.unknown += 1;
                let operation = reservations::Operation::Out(nexus, *request, reservations::Answer::Unknown);
                self.judge.reserved(volume, flight.sent, None, operation);
                self.believe(at, flight, *request);
            }
            _ => {}
        }
    }

    /// Keys that may be registered now.
    fn believe(&mut self, at: usize, flight: &InFlight, request: Request) {
        if let Request::Register(_, key) | Request::RegisterAndIgnore(key) = request {
            self.hosts[at].keys[flight.node][usize::from(flight.lun)] = key;
        }
    }

    fn replied(&mut self, at: usize, flight: &InFlight, reply: &Reply) {
        let now = self.now;
        self.report.answered += 1;
        let (node, lun, volume) = (flight.node, flight.lun, usize::from(flight.lun));
        let nexus = nexus_of(at, node);
        let Some(session) = self.hosts[at].paths[node] else { return };
        self.note(|| {
            let sense = reply
                .sense
                .map(|s| format!("{:?}/{:02x}/{:02x}", s.key, s.additional.asc, s.additional.ascq));
            format!(
                "host {at} via node {node} LUN {lun}: {:?}: {:?} {}",
                flight.want,
                reply.status,
                sense.unwrap_or_default()
            )
        });
        let check = match reply.status {
            Status::CheckCondition => reply.sense,
            Status::Good | Status::ReservationConflict => None,
            // Nothing of it has happened: what it would have done is in no history.
            Status::Busy | Status::TaskSetFull => return self.mark("a host was told BUSY"),
            _ => return self.ended_unknown(at, flight),
        };
        if let Some(sense) = check {
            match sense.key as u8 {
                0x6 => {
                    self.report.attentions += 1;
                    let told = u16::from_be_bytes([sense.additional.asc, sense.additional.ascq]);
                    self.judge.told(at, node, session, lun, told);
                }
                0xb => self.ended_unknown(at, flight),
                0x5 => {
                    if let Want::Out(request, _) = flight.want {
                        let operation =
                            reservations::Operation::Out(nexus, request, reservations::Answer::Illegal);
                        self.judge.reserved(volume, flight.sent, Some(now), operation);
                    }
                }
                _ => {}
            }
            return;
        }
        let good = reply.status == Status::Good;
        if good && let Err(what) = self.judge.served(at, node, session, lun, flight.sent) {
            self.violated(what);
        }
        let accessed = |writes| Accessed { volume, nexus, writes, good, sent: flight.sent, answered: now };
        match &flight.want {
            Want::LogIn => {}
            Want::Ready => {
                if good && let Some(left) = &mut self.hosts[at].left {
                    left.remove(&(node, lun));
                }
            }
            Want::Write { lba, value } => {
                self.judge.accessed(accessed(true));
                if good {
                    self.judge.wrote(volume, *lba, *value, flight.sent, Some(now));
                }
            }
            Want::Read { lba } => {
                self.judge.accessed(accessed(false));
                if good {
                    self.judge.read(volume, *lba, value_of(&reply.data), flight.sent, now);
                }
            }
            Want::Flush => {
                self.judge.accessed(accessed(true));
                if good {
                    self.judge.flushed(volume, flight.sent, now);
                }
            }
            Want::Out(request, _) => {
                let answer = if good { reservations::Answer::Good } else { reservations::Answer::Conflict };
                let operation = reservations::Operation::Out(nexus, *request, answer);
                self.judge.reserved(volume, flight.sent, Some(now), operation);
                if good {
                    self.report.changes += 1;
                    self.believe(at, flight, *request);
                    self.judge.change_was_good(&Told { volume, nexus, now });
                } else {
                    self.hosts[at].keys[node][volume] = 0;
                }
            }
            Want::ReadKeys if good => {
                let mut keys: Vec<u64> =
                    reply.data.get(8..).unwrap_or_default().chunks_exact(8).map(value_of).collect();
                keys.sort_unstable();
                let operation = reservations::Operation::ReadKeys(generation_of(&reply.data), keys);
                self.judge.reserved(volume, flight.sent, Some(now), operation);
            }
            Want::ReadReservation if good => {
                let held = reply.data.get(8..24).map(|d| (value_of(d), d[13] & 0xf));
                let operation = reservations::Operation::ReadReservation(generation_of(&reply.data), held);
                self.judge.reserved(volume, flight.sent, Some(now), operation);
            }
            Want::ReadKeys | Want::ReadReservation => {}
        }
    }
}

fn generation_of(data: &[u8]) -> u32 {
    data.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}
