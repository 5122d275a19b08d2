//! What the machines say, carried between them and out: the part of an engine that thinks.
//!
//! Invariants: called under the engine's lock, and does no I/O; every wish of a machine becomes work or a frame exactly once;
//! a refusal goes to the one who asked, every other answer to the connection that the newest promise came by.

use super::*;

impl Inner {
    /// The owner may have grown the volume before this replica has: what lies behind its end waits, and what comes after it.
    pub(super) fn take_or_keep_request(&mut self, source: Source, frame: ToReplica<Bytes>) {
        let beyond = matches!(&frame.request, Request::Write { span, .. } | Request::Read(span) if span.end() > self.shape.blocks());
        if matches!(frame.request, Request::Promise(_)) {
            // What it drops is sent again.
            self.beyond_the_end.clear();
        } else if (beyond || !self.beyond_the_end.is_empty())
            && self.beyond_the_end.len() < REPLICA_REQUESTS_MAX
        {
            self.beyond_the_end.push_back((source, frame));
            return;
        }
        self.take_request(source, frame);
    }

    pub(super) fn take_request(&mut self, source: Source, frame: ToReplica<Bytes>) {
        self.last_active = clock::scsi_now();
        self.swept = false;
        if let Request::Promise(promise) = &frame.request {
            let newer = |n: &Newest| (frame.epoch, frame.session) > (n.epoch, n.session);
            if self.newest.as_ref().is_none_or(newer) && frame.epoch >= self.secondary.promised() {
                self.newest = Some(Newest {
                    epoch: frame.epoch,
                    session: frame.session,
                    term: promise.term,
                    source: source.clone(),
                });
            }
        }
        self.secondary.handle(frame);
        // A refusal is for the one who just asked; everything else is for the newest owner.
        while let Some(command) = self.secondary.poll_command() {
            match command {
                Command::Answer(answer) if answer.answer == Answer::Refused => {
                    self.answer_to(&source, answer)
                }
                other => self.commands.push_back(other),
            }
        }
    }

    /// Lets the machines say all that they want done.
    pub(super) fn pump(&mut self, engine: &Engine, work: &mut Vec<Work>) {
        let now = clock::scsi_now();
        loop {
            if let Some(command) = self.commands.pop_front().or_else(|| self.secondary.poll_command()) {
                self.command(command, work);
                continue;
            }
            let Some(owned) = &mut self.owned else { return };
            if let Some(output) = owned.primary.poll_output() {
                self.output(engine, now, output, work);
            } else if engine.around.shared.gate.open(clock::now_ms())
                && let Some((id, outcome)) = owned.primary.poll_completion(now)
            {
                owned.jobs.completed(now, &mut owned.primary, id, outcome);
            } else if let Some(reply) = owned.jobs.poll_ended() {
                work.push(reply);
            } else if owned.jobs.retry(now, &mut owned.primary) {
            } else if let HandOver::Draining(to) = owned.hand_over
                && owned.jobs.is_empty()
            {
                owned.hand_over = HandOver::Proposed(to, owned.config.epoch());
                let change = WantedChange::HandOver { to: Some(to), leave: false };
                work.push(Work::Propose(wanted(engine.id, owned.me, &owned.config, change)));
            } else {
                return;
            }
        }
    }

    fn command(&mut self, command: Command<Bytes>, work: &mut Vec<Work>) {
        let job = match command {
            Command::Persist(id, parts) => DiskJob::Persist(id, parts),
            Command::Apply { id, span, body, durable } => DiskJob::Apply { id, span, body, durable },
            Command::Flush(id) => DiskJob::Flush(id),
            Command::Read(id, span) => DiskJob::Send(id, span),
            Command::Answer(answer) => {
                if let Some(Newest { source, session, .. }) = &self.newest
                    && *session == answer.session
                {
                    let source = source.clone();
                    self.answer_to(&source, answer);
                }
                return;
            }
        };
        self.under_way += 1;
        work.push(Work::Disk(job));
    }

    fn output(&mut self, engine: &Engine, now: Instant, output: Output<Bytes>, work: &mut Vec<Work>) {
        let Some(owned) = &mut self.owned else { return };
        match output {
            Output::Send(node, frame) if node == owned.me.node => self.take_request(Source::Own, frame),
            Output::Send(node, frame) => {
                if let Some(link) = owned.links.get(&node) {
                    link.push(Parcel::Request(frame));
                }
            }
            Output::Read(id, span) => {
                self.under_way += 1;
                work.push(Work::Disk(DiskJob::Read(owned.primary.term(), id, span)));
            }
            Output::Copy(id, span) => {
                self.under_way += 1;
                work.push(Work::Disk(DiskJob::Copy(owned.primary.term(), id, span)));
            }
            Output::Propose(change, epoch) => {
                let change = match change {
                    Change::Evict(node) => WantedChange::Evict(node),
                    Change::Admit(node) => match owned.config.member(node) {
                        Some(member) => WantedChange::Admit(node, member.boot),
                        None => return owned.primary.refused(now),
                    },
                };
                let wanted = wanted(engine.id, owned.me, &owned.config, change);
                work.push(Work::Propose(ChangeConfiguration { expected: epoch, ..wanted }));
            }
            Output::StartResync(node) => {
                tracing::info!(volume = %engine.id, %node, whole = self.secondary.bitmap(node).is_none(), "a replica is brought up");
                owned.primary.start_resync(now, node, self.secondary.bitmap(node));
            }
            Output::MergeBitmaps(node) => owned.primary.merge_bitmaps(now, node, self.secondary.bitmaps()),
            Output::Stopped(why) => {
                if why == Stop::ReplicaFailed {
                    let change = WantedChange::HandOver { to: None, leave: true };
                    self.leaving = Leaving::Proposed(wanted(engine.id, owned.me, &owned.config, change));
                    if let Leaving::Proposed(wanted) = &self.leaving {
                        work.push(Work::Propose(wanted.clone()));
                    }
                }
                self.end_ownership(work);
                work.push(Work::Stopped(why));
            }
        }
    }

    pub(in crate::volume) fn ended_one(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
    }

    fn answer_to(&mut self, source: &Source, answer: FromReplica) {
        match source {
            Source::Link(link) => link.push(Parcel::Answer(answer)),
            Source::Own => {
                if let Some(owned) = &mut self.owned {
                    owned.primary.handle(clock::scsi_now(), owned.me.node, answer);
                }
            }
        }
    }

    /// Connects to every replica that can be reached.
    pub(super) fn connect(&mut self, engine: &Engine) {
        let now = clock::scsi_now();
        let Some(owned) = &mut self.owned else { return };
        for node in owned.primary.peers().collect::<Vec<_>>() {
            if node == owned.me.node || owned.primary.is_connected(node) {
                continue;
            }
            if let Some(link) = engine.around.shared.links.to(engine.id, node).filter(|link| link.is_open()) {
                owned.links.insert(node, link);
                owned.primary.connected(now, node);
            }
        }
        let peers: Vec<NodeNumber> = owned.primary.peers().collect();
        owned.links.retain(|node, _| peers.contains(node));
    }

    /// Ends the ownership; what is not answered is answered for what is known of it.
    pub(super) fn end_ownership(&mut self, work: &mut Vec<Work>) {
        let Some(mut owned) = self.owned.take() else { return };
        if let Some(session) = owned.own_session {
            self.secondary.disconnected(owned.primary.term(), session);
        }
        owned.primary.stop();
        owned.jobs.end(work);
    }
}
