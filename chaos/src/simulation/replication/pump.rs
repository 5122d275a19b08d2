//! What the machines of the replication core want, carried to the disk, to the other end, to the unit.

use holdfast_replica::{
    epoch::Epoch,
    primary::{Change, Outcome, Output, Stop},
    replication::{Answer, Body, FromReplica, Request, ToReplica},
    secondary::{Command, Part},
    span::Span,
};

use super::{Ended, HandOver, Simulation, bytes_of, changes::Wanted, links::Way, values_of};
use crate::simulation::{Event, Place};

/// What is under way at the disk.
#[derive(Debug)]
pub(super) enum DiskWork {
    Persist(Vec<Part>),
    Apply { lba: u64, values: Vec<u64>, durable: bool },
    Flush,
}

/// A read for the owner's machine.
#[derive(Debug, Clone, Copy)]
pub(in crate::simulation) struct ReadOf {
    term: Epoch,
    id: u64,
    span: Span,
    copies: bool,
}

/// Where the newest promise was asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Newest {
    epoch: Epoch,
    session: u64,
    pub(super) term: Epoch,
    /// None: by this node itself.
    pub(super) link: Option<u64>,
}

impl Newest {
    pub(super) fn session(&self) -> u64 {
        self.session
    }
}

impl Simulation {
    pub(super) fn pump(&mut self, at: usize, volume: usize) {
        loop {
            let now = self.instant(at);
            let leased = self.nodes[at].leased(self.now);
            let Some(engine) = self.nodes[at].engines.get_mut(&volume) else { return };
            if let Some(command) = engine.commands.pop_front().or_else(|| engine.secondary.poll_command()) {
                self.command(at, volume, command);
                continue;
            }
            let Some(owned) = &mut engine.owned else { break };
            if let Some(output) = owned.primary.poll_output() {
                self.output(at, volume, output);
            } else if leased && let Some((id, outcome)) = owned.primary.poll_completion(now) {
                let ended = match outcome {
                    Outcome::Done => match owned.jobs.get_mut(&id) {
                        Some(job) if !job.read.is_empty() => Ended::Read(std::mem::take(&mut job.read)),
                        _ => Ended::Done,
                    },
                    Outcome::NotEnoughReplicas => Ended::Unknown,
                    Outcome::NoSpace | Outcome::ReadFailed => {
                        return self.violated(format!("node {at}: {outcome:?} of a sound disk"));
                    }
                };
                self.end_job(at, volume, id, ended);
            } else if let Some(id) = owned.waiting.pop_front() {
                if !self.try_job(at, volume, id) {
                    break;
                }
            } else if let HandOver::Draining(to) = owned.hand_over
                && owned.jobs.is_empty()
            {
                owned.hand_over = HandOver::Proposed(to);
                let (expected, me) = (owned.config.epoch(), owned.me);
                self.want_change(at, volume, expected, me, Wanted::HandOver(to));
            } else {
                break;
            }
        }
        let serves = self.serves(at, volume);
        let Some(engine) = self.nodes[at].engines.get_mut(&volume) else { return };
        if serves != engine.served {
            engine.served = serves;
            let epoch = engine.owned.as_ref().map(|owned| owned.config.epoch());
            self.note(|| format!("node {at}, volume {volume}: serves: {serves} ({epoch:?})"));
        }
    }

    fn command(&mut self, at: usize, volume: usize, command: Command<Vec<u8>>) {
        let (id, work) = match command {
            Command::Persist(id, parts) => (id, DiskWork::Persist(parts)),
            Command::Apply { id, span, body, durable } => {
                let values = match body {
                    Body::Data(data) | Body::Atomic(data) => values_of(&data),
                    Body::Zeroes | Body::Unmap => vec![0; span.blocks() as usize],
                };
                (id, DiskWork::Apply { lba: span.lba(), values, durable })
            }
            Command::Flush(id) => (id, DiskWork::Flush),
            // No disk of this world loses blocks, so no owner asks for any; one that does gets them.
            Command::Read(id, span) => {
                let Some(disk) = self.nodes[at].disks.get(&volume) else { return };
                let values = disk.blocks[span.lba() as usize..span.end() as usize].to_vec();
                if let Some(engine) = self.nodes[at].engines.get_mut(&volume) {
                    engine.secondary.read_done(id, Ok(bytes_of(&values)));
                }
                return;
            }
            Command::Answer(answer) => {
                let newest = self.nodes[at].engines.get(&volume).and_then(|engine| engine.newest);
                if let Some(newest) = newest.filter(|newest| newest.session == answer.session) {
                    self.answer_to(at, volume, newest.link, answer);
                }
                return;
            }
        };
        let wait = match work {
            DiskWork::Flush if self.ways.flushes && self.random.below(2) == 0 => self.random.below(1_500),
            _ => self.disk_wait(),
        };
        let process = self.nodes[at].process;
        let Some(engine) = self.nodes[at].engines.get_mut(&volume) else { return };
        engine.work.insert(id, work);
        let engine = engine.number;
        self.later(wait, Event::Disk { node: at, process, volume, engine, id });
    }

    fn disk_wait(&mut self) -> u64 {
        let often = if self.ways.slow_disks { 6 } else { 40 };
        match self.random.below(often) {
            0 => self.random.below(900),
            1 | 2 => self.random.below(100),
            _ => self.random.below(4),
        }
    }

    /// The disk has done it; a node that is stopped hears of it later.
    pub(in crate::simulation) fn disk_ends(&mut self, at: usize, volume: usize, engine: u64, id: u64) {
        let process = self.nodes[at].process;
        let found = self.nodes[at].engines.get_mut(&volume).filter(|e| e.number == engine);
        if let Some(work) = found.and_then(|e| e.work.remove(&id)) {
            self.carry_out(at, volume, work);
            self.later(0, Event::DiskTold { node: at, process, volume, engine, id });
        }
    }

    pub(in crate::simulation) fn disk_told(&mut self, at: usize, volume: usize, engine: u64, id: u64) {
        if let Some(engine) = self.nodes[at].engines.get_mut(&volume).filter(|e| e.number == engine) {
            engine.secondary.done(id, Ok(()));
        }
        self.pump(at, volume);
    }

    pub(super) fn carry_out(&mut self, at: usize, volume: usize, work: DiskWork) {
        let Some(disk) = self.nodes[at].disks.get_mut(&volume) else { return };
        let done = match work {
            DiskWork::Persist(parts) => disk.persist(&parts),
            DiskWork::Apply { lba, values, durable } => {
                disk.write(lba, &values, durable);
                Ok(())
            }
            DiskWork::Flush => {
                disk.flush();
                Ok(())
            }
        };
        if let Err(why) = done {
            self.violated(format!("node {at}: {why}"));
        }
    }

    /// Blocks for the owner's machine: for a host, or for a replica that lacks them.
    pub(in crate::simulation) fn blocks_read(&mut self, at: usize, volume: usize, read: ReadOf) {
        let now = self.instant(at);
        let ReadOf { term, id, span, copies } = read;
        let Some(disk) = self.nodes[at].disks.get(&volume) else { return };
        let values = disk.blocks[span.lba() as usize..span.end() as usize].to_vec();
        let Some(owned) = self.owned(at, volume).filter(|owned| owned.primary.term() == term) else { return };
        if copies {
            owned.primary.copy_data(now, id, Some(Body::Data(bytes_of(&values))));
        } else {
            if let Some(job) = owned.jobs.get_mut(&id) {
                job.read = values;
            }
            owned.primary.read_done(now, id, true);
        }
        self.pump(at, volume);
    }

    fn output(&mut self, at: usize, volume: usize, output: Output<Vec<u8>>) {
        let now = self.instant(at);
        let process = self.nodes[at].process;
        let Some(engine) = self.nodes[at].engines.get_mut(&volume) else { return };
        let Some(owned) = &mut engine.owned else { return };
        let (me, term) = (owned.me, owned.primary.term());
        match output {
            Output::Send(node, frame) if node == me.node => self.take_request(at, volume, None, frame),
            Output::Send(node, frame) => {
                if let Some(link) = owned.links.get(&node).copied() {
                    self.transmit(link, Way::ToReplica(Box::new(frame)));
                }
            }
            Output::Read(id, span) | Output::Copy(id, span) => {
                let read = ReadOf { term, id, span, copies: matches!(output, Output::Copy(..)) };
                let wait = self.disk_wait();
                self.later(wait, Event::BlocksRead { node: at, process, volume, read });
            }
            Output::Propose(change, epoch) => {
                let wanted = match change {
                    Change::Evict(node) => Wanted::Evict(node),
                    Change::Admit(node) => match owned.config.member(node) {
                        Some(member) => Wanted::Admit(node, member.boot),
                        None => return owned.primary.refused(now),
                    },
                };
                self.mark(match wanted {
                    Wanted::Evict(_) => "an owner went on without a replica",
                    _ => "a replica has caught up",
                });
                self.want_change(at, volume, epoch, me, wanted);
            }
            Output::StartResync(node) => {
                owned.primary.start_resync(now, node, engine.secondary.bitmap(node));
            }
            Output::MergeBitmaps(node) => owned.primary.merge_bitmaps(now, node, engine.secondary.bitmaps()),
            Output::Stopped(why) => {
                self.note(|| format!("node {at}: the owner of volume {volume} stops: {why:?}"));
                if why == Stop::ReplicaFailed {
                    // It was admitted, and its process ended before it had noted that it may be trusted.
                    self.mark("an owner's replica could not be trusted");
                    let expected = self.owned(at, volume).map(|owned| owned.config.epoch());
                    if let Some(expected) = expected {
                        self.want_change(at, volume, expected, me, Wanted::Leave);
                    }
                }
                self.end_ownership(at, volume);
            }
        }
    }

    /// A request of an owner: through a link, or of this node itself.
    pub(super) fn take_request(
        &mut self,
        at: usize,
        volume: usize,
        link: Option<u64>,
        frame: ToReplica<Vec<u8>>,
    ) {
        let Some(engine) = self.nodes[at].engines.get_mut(&volume) else { return };
        let end = engine.shape.blocks();
        let beyond =
            matches!(&frame.request, Request::Write { span, .. } | Request::Read(span) if span.end() > end);
        if matches!(frame.request, Request::Promise(_)) {
            // What it drops is sent again.
            engine.beyond_the_end.clear();
        } else if beyond || !engine.beyond_the_end.is_empty() {
            engine.beyond_the_end.push_back((link, frame));
            return;
        }
        if let Request::Promise(promise) = &frame.request {
            let newer = |n: &Newest| (frame.epoch, frame.session) > (n.epoch, n.session);
            if engine.newest.as_ref().is_none_or(newer) && frame.epoch >= engine.secondary.promised() {
                let (epoch, session, term) = (frame.epoch, frame.session, promise.term);
                engine.newest = Some(Newest { epoch, session, term, link });
            }
        }
        engine.secondary.handle(frame);
        // A refusal is for the one who just asked; everything else is for the newest owner.
        let mut refusals = Vec::new();
        while let Some(command) = engine.secondary.poll_command() {
            match command {
                Command::Answer(answer) if answer.answer == Answer::Refused => refusals.push(answer),
                other => engine.commands.push_back(other),
            }
        }
        for answer in refusals {
            self.mark("a replica refused an old epoch");
            self.answer_to(at, volume, link, answer);
        }
    }

    fn answer_to(&mut self, at: usize, volume: usize, link: Option<u64>, answer: FromReplica) {
        match link {
            Some(link) => self.transmit(link, Way::ToOwner(Box::new(answer))),
            None => {
                let now = self.instant(at);
                if let Some(owned) = self.owned(at, volume) {
                    let me = owned.me.node;
                    owned.primary.handle(now, me, answer);
                }
            }
        }
    }

    /// A frame has come by a link.
    pub(in crate::simulation) fn frame(&mut self, number: u64, way: Way) {
        let Some(link) = self.links.get(&number).filter(|link| link.open) else { return };
        let (owner, replica, volume) = (link.owner, link.replica, link.volume);
        let (from, to) = match way {
            Way::ToReplica(_) => (owner, replica),
            Way::ToOwner(_) => (replica, owner),
        };
        if self.is_cut(Place::Node(from), Place::Node(to)) {
            return self.break_link(number);
        }
        match way {
            Way::ToReplica(frame) => self.take_request(replica, volume, Some(number), *frame),
            Way::ToOwner(answer) => {
                let now = self.instant(owner);
                let node = self.links[&number].node;
                if let Some(owned) = self.owned(owner, volume)
                    && owned.links.get(&node) == Some(&number)
                {
                    owned.primary.handle(now, node, *answer);
                }
            }
        }
        self.pump(to, volume);
    }
}
