//! Hosts that read and write, the trouble that is made for them, and the last look when it is over.

use super::*;

impl World {
    pub(super) fn host_request(&mut self) {
        let owners =
            |n: &Node| n.process.as_ref().and_then(|p| p.primary.as_ref()).is_some_and(Primary::is_serving);
        let serving: Vec<usize> = (0..NODES).filter(|at| owners(&self.nodes[*at])).collect();
        if serving.is_empty() {
            return;
        }
        let at = serving[self.random.below(serving.len() as u64) as usize];
        // Most requests go to few blocks, so that they meet.
        let lba = if self.random.one_in(3) { self.random.below(BLOCKS - 8) } else { self.random.below(12) };
        let span = Span::new(lba, 1 + self.random.below(6)).expect("span");
        let kind = self.random.below(100);
        self.request(at, span, kind);
    }

    pub(super) fn request(&mut self, at: usize, span: Span, kind: u64) {
        let now = Instant(self.now);
        self.last_host += 1;
        let id = self.last_host;
        let begun = self.oracle.moment();
        let (lba, blocks) = (span.lba(), span.blocks());
        let Some(process) = &mut self.nodes[at].process else { return };
        let Some(primary) = &mut process.primary else { return };
        let (work, result) = match kind {
            0..45 => (HostWork::Read { lba, begun, values: vec![] }, primary.read(now, id, span)),
            45..92 => {
                self.last_value += 1;
                let (value, durable) = (self.last_value, kind >= 80);
                self.oracle.write_begun(lba, blocks, value);
                let data = bytes(&vec![value; blocks as usize]);
                let result = primary.write(now, id, span, Body::Data(data), durable);
                if result.is_err() {
                    self.oracle.write_refused(lba, blocks, value);
                }
                (HostWork::Write { lba, blocks, value, durable }, result)
            }
            _ => (HostWork::Flush { begun }, primary.flush(now, id)),
        };
        if result.is_ok() {
            process.hosts.insert(id, work);
        }
        self.drain(at);
    }

    pub(super) fn answered(&mut self, work: HostWork, outcome: Outcome) {
        match (work, outcome) {
            (HostWork::Read { lba, begun, values }, Outcome::Done) => {
                self.log(|| format!("read  {lba} {values:?}"));
                self.oracle.read_answered(lba, begun, &values);
            }
            (HostWork::Write { lba, blocks, value, durable }, Outcome::Done) => {
                self.log(|| format!("write {lba}+{blocks} {value}{}", if durable { " durable" } else { "" }));
                self.oracle.write_answered(lba, blocks, value, durable);
            }
            (HostWork::Flush { begun }, Outcome::Done) => self.oracle.flush_answered(begun),
            _ => {}
        }
    }

    pub(super) fn chaos(&mut self) {
        let at = self.random.below(NODES as u64) as usize;
        let other = (at + 1 + self.random.below(2) as usize) % NODES;
        // In some worlds disks rot.
        if (251..=400).contains(&self.plan.seed) && self.random.one_in(3) {
            self.rot(at);
        }
        match self.random.below(20) {
            0..3 => self.kill(at, false),
            3..5 => self.kill(at, true),
            5 => (0..NODES).for_each(|node| self.kill(node, true)),
            6 => (0..NODES).for_each(|node| self.kill(node, false)),
            7..9 => {
                self.log(|| format!("nodes {} and {} are cut apart", at + 1, other + 1));
                self.set_cut(at, other, true);
            }
            9 => {
                self.log(|| format!("node {} is cut off", at + 1));
                (0..NODES).filter(|n| *n != at).for_each(|n| self.set_cut(at, n, true));
                self.nodes[at].cut_off = self.random.one_in(2);
            }
            10 => {
                self.log(|| format!("node {} is cut off from the controller", at + 1));
                self.nodes[at].cut_off = true;
            }
            11..14 => {
                (0..NODES).for_each(|a| (0..NODES).for_each(|b| self.set_cut(a, b, false)));
                self.nodes.iter_mut().for_each(|n| n.cut_off = false);
            }
            14..17 => self.stalled_until[at][other] = self.now + self.random.below(6_000),
            17 => {
                self.stalled_until[at] = [self.now + self.random.below(4_000); NODES];
                self.nodes[at].cut_off = true;
            }
            _ => self.nodes[at].disk_slow_until = self.now + self.random.below(2_500),
        }
    }

    /// A block that the others have is lost on one disk.
    fn rot(&mut self, at: usize) {
        let lba = if self.random.one_in(2) { self.random.below(12) } else { self.random.below(BLOCKS) };
        let span = Span::new(lba, 1).expect("span");
        let elsewhere = self.nodes.iter().any(|node| node.disk.lost(span).is_some());
        if self.controller.config.in_sync().len() == NODES && !elsewhere {
            self.log(|| format!("block {lba} rots on node {}", at + 1));
            self.nodes[at].disk.rot(lba);
        }
    }

    pub(super) fn set_cut(&mut self, a: usize, b: usize, cut: bool) {
        (self.cut[a][b], self.cut[b][a]) = (cut, cut);
        if cut {
            let between = |l: &Link| (l.owner == a && l.replica == b) || (l.owner == b && l.replica == a);
            let links: Vec<u64> = self.links.iter().filter(|(_, l)| between(l)).map(|(n, _)| *n).collect();
            for link in links {
                self.break_link(link);
            }
        }
    }

    pub(super) fn heal(&mut self) {
        self.log(|| "healing".into());
        self.calm = true;
        self.cut = [[false; NODES]; NODES];
        self.stalled_until = [[0; NODES]; NODES];
        for node in 0..NODES {
            self.nodes[node].cut_off = false;
            self.nodes[node].disk_slow_until = 0;
            self.start(node);
        }
    }

    pub(super) fn is_healed(&self) -> bool {
        let config = &self.controller.config;
        let quiet = |node: &Node| {
            let process = node.process.as_ref();
            process.is_some_and(|p| p.hosts.is_empty() && p.proposal.is_none())
        };
        let owner = config.owner().map(|o| o.node);
        let serving = self.nodes.iter().filter(|n| Some(n.number) == owner).any(|n| {
            let primary = n.process.as_ref().and_then(|p| p.primary.as_ref());
            primary.is_some_and(|p| p.is_recovered() && p.epoch() == config.epoch())
        });
        let rotten = self.nodes.iter().any(|node| node.disk.rotten().next().is_some());
        serving && !rotten && config.in_sync().len() == NODES && self.nodes.iter().all(quiet)
    }

    pub(super) fn look_at_everything(&mut self) -> Result<(), String> {
        let owner = self.controller.config.owner().map(|o| o.node);
        let at = (0..NODES).find(|at| Some(self.nodes[*at].number) == owner).ok_or("no owner")?;
        for lba in (0..BLOCKS).step_by(8) {
            self.request(at, Span::new(lba, 8).ok_or("span")?, 0);
        }
        let end = self.now + 5_000;
        while self.nodes[at].process.as_ref().is_some_and(|p| !p.hosts.is_empty()) {
            if self.now > end {
                return Err("the last reads are not answered".into());
            }
            self.step()?;
        }
        Ok(())
    }
}
