//! Nodes: their start and end, their connections, and what their machines want done.

use super::*;

impl World {
    pub(super) fn start(&mut self, at: usize) {
        if self.nodes[at].process.is_some() {
            return;
        }
        let faults = self.plan.faults;
        let node = &mut self.nodes[at];
        node.life += 1;
        let (promised, log, bitmaps) = node.disk.open(shape());
        let opened = Opened {
            volume: VOLUME,
            shape: shape(),
            me: node.number,
            boot: BootId([node.boot; 16]),
            crc32c: crc,
            promised,
            log,
            bitmaps,
            faults,
        };
        node.process = Some(Process {
            incarnation: Incarnation(node.life),
            secondary: Secondary::new(opened),
            primary: None,
            lease_end: 0,
            proposal: None,
            work: BTreeMap::new(),
            hosts: BTreeMap::new(),
        });
        let life = node.life;
        self.after(0, Event::Tick { node: at, life });
    }

    /// Ends a process. With the power goes the cache.
    pub(super) fn kill(&mut self, at: usize, power: bool) {
        self.log(|| format!("node {} {}", at + 1, if power { "loses power" } else { "is killed" }));
        let node = &mut self.nodes[at];
        node.life += 1;
        if let Some(process) = node.process.take() {
            for work in process.work.into_values() {
                match work {
                    DiskWork::Persist(parts) => node.disk.tear(&parts, &mut self.random),
                    DiskWork::Apply { lba, values, .. } if self.random.one_in(2) => {
                        node.disk.write(lba, &values, power && self.random.one_in(2));
                    }
                    DiskWork::Apply { .. } | DiskWork::Flush => {}
                }
            }
        }
        if power {
            node.boot += 1;
            node.disk.power_cut(&mut self.random);
        }
        let links: Vec<u64> =
            self.links.iter().filter(|(_, l)| l.owner == at || l.replica == at).map(|(n, _)| *n).collect();
        for link in links {
            self.break_link(link);
        }
        let delay = match self.random.below(3) {
            0 => self.random.below(50),
            1 => self.random.below(900),
            _ => self.random.below(6_000),
        };
        self.after(delay, Event::Start { node: at });
    }

    pub(super) fn break_link(&mut self, number: u64) {
        if let Some(link) = self.links.get_mut(&number)
            && link.open
        {
            link.open = false;
            let local = link.owner == link.replica;
            for owner_side in [true, false] {
                let delay = if local { 0 } else { self.random.below(200) };
                self.after(delay, Event::Lost { link: number, owner_side });
            }
        }
    }

    pub(super) fn connection_lost(&mut self, number: u64, owner_side: bool) {
        let now = Instant(self.now);
        let Some(link) = self.links.get(&number) else { return };
        let (owner, replica, owner_life, replica_life) =
            (link.owner, link.replica, link.owner_life, link.replica_life);
        let (term, session) = (link.term, link.session);
        if owner_side {
            let number_of_replica = self.nodes[replica].number;
            let newer = self
                .links
                .range(number + 1..)
                .any(|(_, l)| l.owner == owner && l.owner_life == owner_life && l.replica == replica);
            if let Some(process) = self.process(owner, owner_life).filter(|_| !newer)
                && let Some(primary) = &mut process.primary
            {
                primary.disconnected(now, number_of_replica);
            }
            self.drain(owner);
        } else {
            if let Some(process) = self.process(replica, replica_life) {
                process.secondary.disconnected(term, session);
            }
            self.drain(replica);
        }
    }

    pub(super) fn tick(&mut self, at: usize, life: u64) {
        let now = Instant(self.now);
        let ignore_lease = self.plan.faults.has(Fault::IgnoreLease);
        let Some(process) = self.process(at, life) else { return };
        let Some((lapsed, proposal)) = Some((
            process.primary.is_some() && process.lease_end <= now.0 && !ignore_lease,
            process.proposal,
        )) else {
            return;
        };
        self.after(10, Event::Tick { node: at, life });
        if lapsed {
            // A lapse voids the ownership; a new process takes a new epoch.
            self.log(|| format!("node {}: the lease has lapsed", at + 1));
            self.kill(at, false);
            return;
        }
        if !self.nodes[at].cut_off {
            let delay = 1 + self.random.below(10);
            self.after(delay, Event::Renew { node: at, life, sent: now.0 });
            if let Some((change, epoch)) = proposal {
                let delay = 1 + self.random.below(10);
                self.after(delay, Event::Proposal { node: at, life, change, epoch });
            }
        }
        self.connect(at);
        let sweep = self.random.one_in(10);
        let down: Vec<NodeNumber> =
            self.nodes.iter().filter(|n| n.process.is_none()).map(|n| n.number).collect();
        let told = self.random.one_in(20);
        let scrubs = (251..=400).contains(&self.plan.seed) && self.random.one_in(10);
        let rotten: Vec<u64> = self.nodes[at].disk.rotten().filter(|_| scrubs).collect();
        if let Some(process) = self.process(at, life) {
            if let Some(primary) = &mut process.primary {
                primary.set_lease(Instant(process.lease_end));
                for node in down.into_iter().filter(|_| told) {
                    primary.node_down(now, node);
                }
                primary.tick(now);
            }
            if sweep {
                process.secondary.sweep();
            }
            for lba in rotten {
                let Some(span) = Span::new(lba, 1) else { continue };
                match &mut process.primary {
                    Some(primary) => primary.damaged(now, span),
                    None => process.secondary.damaged(span),
                }
            }
        }
        self.drain(at);
    }

    /// The owner connects to every replica that it can reach.
    pub(super) fn connect(&mut self, owner: usize) {
        let now = Instant(self.now);
        for replica in 0..NODES {
            let reachable = !self.cut[owner][replica] && self.nodes[replica].process.is_some();
            let (number, replica_life) = (self.nodes[replica].number, self.nodes[replica].life);
            let owner_life = self.nodes[owner].life;
            let Some(process) = &mut self.nodes[owner].process else { return };
            let Some(primary) = &mut process.primary else { return };
            if !reachable || primary.is_connected(number) {
                continue;
            }
            let term = primary.term();
            if let Some(session) = primary.connected(now, number) {
                self.last_link += 1;
                let last = [self.now; 2];
                let link = Link { owner, replica, owner_life, replica_life, term, session, open: true, last };
                self.links.insert(self.last_link, link);
            }
        }
    }

    pub(super) fn adopt(&mut self, at: usize, life: u64, config: &VolumeConfig) {
        let now = Instant(self.now);
        let plan = self.plan;
        let number = self.nodes[at].number;
        let Some(process) = self.process(at, life) else { return };
        let me = Owner { node: number, incarnation: process.incarnation };
        if process.proposal.is_some_and(|(_, epoch)| config.epoch() > epoch) {
            process.proposal = None;
        }
        match &mut process.primary {
            Some(primary) => primary.configured(now, config),
            None if config.owner() == Some(me) => {
                let start = Start {
                    volume: VOLUME,
                    shape: shape(),
                    me,
                    config: config.clone(),
                    new_volume: config.epoch().number <= 2,
                    faults: plan.faults,
                };
                let mut primary = Primary::new(now, start);
                // Some owners copy slowly.
                primary.set_copy_rate(plan.seed.is_multiple_of(4).then_some(1_500));
                process.primary = Some(primary);
            }
            None => {}
        }
        self.drain(at);
    }

    /// Carries out what the machines of a node want.
    pub(super) fn drain(&mut self, at: usize) {
        let now = Instant(self.now);
        let life = self.nodes[at].life;
        loop {
            let Some(process) = &mut self.nodes[at].process else { return };
            if let Some(command) = process.secondary.poll_command() {
                self.command(at, life, command);
                continue;
            }
            let Some(primary) = &mut process.primary else { return };
            if let Some(output) = primary.poll_output() {
                self.output(at, life, output);
                continue;
            }
            let Some((id, outcome)) = primary.poll_completion(now) else { return };
            if let Some(work) = process.hosts.remove(&id) {
                self.answered(work, outcome);
            }
        }
    }

    pub(super) fn command(&mut self, at: usize, life: u64, command: Command<Vec<u8>>) {
        let (id, work) = match command {
            Command::Persist(id, parts) => (id, DiskWork::Persist(parts)),
            Command::Apply { id, span, body, durable } => {
                let values = match body {
                    Body::Data(data) | Body::Atomic(data) => {
                        data.as_chunks().0.iter().map(|v| u64::from_be_bytes(*v)).collect()
                    }
                    Body::Zeroes | Body::Unmap => vec![0; span.blocks() as usize],
                };
                (id, DiskWork::Apply { lba: span.lba(), values, durable })
            }
            Command::Flush(id) => (id, DiskWork::Flush),
            Command::Read(id, span) => {
                let delay = self.random.below(8);
                return self.after(delay, Event::ReplicaRead { node: at, life, id, span });
            }
            Command::Answer(frame) => {
                let session = frame.session;
                let link = self.links.iter().rev().find(|(_, l)| {
                    l.replica == at && l.replica_life == life && l.session == session && l.open
                });
                if let Some((number, _)) = link {
                    self.transmit(*number, 1, frame.encode(crc));
                }
                return;
            }
        };
        let slow = self.nodes[at].disk_slow_until.saturating_sub(self.now);
        let delay = slow + if self.random.one_in(20) { self.random.below(200) } else { self.random.below(8) };
        if let Some(process) = self.process(at, life) {
            process.work.insert(id, work);
        }
        self.after(delay, Event::DiskDone { node: at, life, id });
    }

    pub(super) fn transmit(&mut self, number: u64, way: usize, frame: Option<Outgoing<Vec<u8>>>) {
        let frame = frame.expect("frames are bounded");
        let bytes = [frame.head, frame.data.unwrap_or_default()].concat();
        let Some(link) = self.links.get_mut(&number) else { return };
        let (from, to) = if way == 0 { (link.owner, link.replica) } else { (link.replica, link.owner) };
        let delay = if from == to { 0 } else { 1 + self.random.below(6) };
        let stalled = if from == to { 0 } else { self.stalled_until[from][to] };
        link.last[way] = link.last[way].max(self.now + delay).max(stalled);
        let delay = link.last[way] - self.now;
        let event = match way {
            0 => Event::ToReplica { link: number, bytes },
            _ => Event::FromReplica { link: number, bytes },
        };
        self.after(delay, event);
    }

    pub(super) fn output(&mut self, at: usize, life: u64, output: Output<Vec<u8>>) {
        let now = Instant(self.now);
        match output {
            Output::Send(to, frame) => {
                let session = frame.session;
                let link =
                    self.links.iter().rev().find(|(_, l)| {
                        l.owner == at && l.owner_life == life && l.session == session && l.open
                    });
                let Some((number, link)) = link else {
                    // The link of this very session is entered right after its promise was asked for.
                    let waits = self.links.iter().any(|(_, l)| l.owner == at && l.session == session);
                    assert!(waits || self.nodes.iter().any(|n| n.number == to), "unknown session");
                    return;
                };
                assert_eq!(self.nodes[link.replica].number, to);
                self.transmit(*number, 0, frame.encode(crc));
            }
            Output::Read(id, span) => {
                let delay = self.random.below(12);
                self.after(delay, Event::Read { node: at, life, id, span });
            }
            Output::Copy(id, span) => {
                let delay = self.random.below(12);
                self.after(delay, Event::Copy { node: at, life, id, span });
            }
            Output::Propose(change, epoch) => {
                if let Some(process) = self.process(at, life) {
                    process.proposal = Some((change, epoch));
                }
            }
            Output::StartResync(node) => {
                let Some(process) = self.process(at, life) else { return };
                if let Some(primary) = &mut process.primary {
                    primary.start_resync(now, node, process.secondary.bitmap(node));
                }
            }
            Output::MergeBitmaps(node) => {
                let Some(process) = self.process(at, life) else { return };
                if let Some(primary) = &mut process.primary {
                    primary.merge_bitmaps(now, node, process.secondary.bitmaps());
                }
            }
            Output::Stopped(why) => {
                self.log(|| format!("node {} stops: {why:?}", at + 1));
                let Some(process) = self.process(at, life) else { return };
                process.hosts.clear();
                match why {
                    Stop::ReplicaFailed => self.kill(at, false),
                    Stop::Deposed | Stop::Asked => {
                        process.primary = None;
                        process.proposal = None;
                    }
                }
            }
        }
    }
}
