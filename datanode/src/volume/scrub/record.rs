//! What is known of the scrub of each replica since the process began, for whoever asks, and the wishes for a pass.
//!
//! Invariants: a question never waits for a disk; a request for a pass begins one pass, however often it comes; of the blocks that were
//! known to be damaged each is counted as damaged still or as well again, never as both.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use holdfast_proto::node::{ScrubHealing, ScrubQuestion, ScrubState};

use crate::clock;
use crate::view::{NodeNumber, VolumeId};

/// Blocks that are well again, of which it may yet be learned where they came from.
const UNEXPLAINED_MAX: usize = 1024;

/// Where the content of blocks came from that are not damaged any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// This node owns the volume, and has healed these blocks from those nodes; what else was written came from hosts.
    Own(Vec<(Range<u64>, NodeNumber)>),
    /// That node owns it: whatever is written here has come from there.
    Owner(NodeNumber),
    /// Nobody has another copy, or nobody owns the volume.
    Hosts,
}

/// Damaged blocks, and what became of them. Blocks of 4096 bytes.
#[derive(Debug, Default)]
struct Damage {
    /// Known to be damaged now.
    open: BTreeSet<u64>,
    /// Found by the present pass, and too many to be remembered one by one.
    uncounted: u64,
    /// All that were damaged.
    found: u64,
    healed: BTreeMap<NodeNumber, u64>,
    /// Well again, by hosts or by nobody knows whom.
    others: u64,
    /// Of the others: the last ones.
    unexplained: BTreeSet<u64>,
}

impl Damage {
    /// A block is damaged that was not, as far as is known.
    fn add(&mut self, block: u64) {
        if self.open.insert(block) {
            self.found += 1;
            self.unexplained.remove(&block);
        }
    }

    /// These were found by the scrub. `known`: what the store remembers now, ascending; `full`: it cannot remember more.
    fn found(&mut self, blocks: &[u64], known: &[u64], full: bool) {
        for block in blocks.iter().filter(|block| !self.open.contains(block)).copied().collect::<Vec<_>>() {
            if known.binary_search(&block).is_ok() || !full {
                // One that is not known any more was healed a moment ago: the next look takes it off.
                self.add(block);
            } else {
                self.found += 1;
                self.uncounted += 1;
            }
        }
    }

    /// The next pass finds again what this one could not remember.
    fn pass_begins(&mut self) {
        self.found = self.found.saturating_sub(std::mem::take(&mut self.uncounted));
    }

    /// These are damaged now (ascending), and whatever else was is well again.
    fn look(&mut self, bad: &[u64], source: &Source) {
        for block in bad {
            self.add(*block);
        }
        let over: Vec<u64> =
            self.open.iter().filter(|block| bad.binary_search(block).is_err()).copied().collect();
        for block in &over {
            self.open.remove(block);
        }
        match source {
            Source::Owner(node) if !over.is_empty() => {
                *self.healed.entry(*node).or_default() += over.len() as u64;
            }
            Source::Owner(_) => {}
            Source::Hosts => self.others += over.len() as u64,
            Source::Own(healed) => {
                self.others += over.len() as u64;
                self.unexplained.extend(over);
                // What was healed is told when it is on the medium, so its blocks are among these.
                for (blocks, node) in healed {
                    let explained: Vec<u64> = self.unexplained.range(blocks.clone()).copied().collect();
                    for block in &explained {
                        self.unexplained.remove(block);
                    }
                    if !explained.is_empty() {
                        self.others = self.others.saturating_sub(explained.len() as u64);
                        *self.healed.entry(*node).or_default() += explained.len() as u64;
                    }
                }
                while self.unexplained.len() > UNEXPLAINED_MAX {
                    self.unexplained.pop_first();
                }
            }
        }
    }

    fn left(&self) -> u64 {
        self.uncounted.saturating_add(self.open.len() as u64)
    }

    fn healed(&self) -> Vec<ScrubHealing> {
        let nodes = self.healed.iter().map(|(node, blocks)| (u32::from(node.get()), *blocks));
        let all = nodes.chain((self.others > 0).then_some((0, self.others)));
        all.map(|(node, blocks)| ScrubHealing { node, blocks }).collect()
    }
}

/// When a pass began, and where.
#[derive(Clone, Copy, Debug)]
struct Began {
    unix_ms: u64,
    at_ms: u64,
    position: u64,
}

#[derive(Debug, Default)]
struct Record {
    /// The replica is open.
    open: bool,
    size: u64,
    /// A pass is wished for that has not begun.
    asked: bool,
    /// Who wished for the last one.
    request: String,
    running: bool,
    position: u64,
    read: u64,
    began: Option<Began>,
    ended_unix_ms: u64,
    failed: String,
    damage: Damage,
}

impl Record {
    fn begin(&mut self, position: u64) {
        let (unix_ms, at_ms) = (clock::unix_millis().0, clock::now_ms());
        self.began = Some(Began { unix_ms, at_ms, position });
        (self.running, self.position, self.read) = (true, position, 0);
        self.failed.clear();
        self.damage.pass_begins();
    }

    fn state(&self, now_ms: u64) -> ScrubState {
        let left = self.began.filter(|_| self.running).and_then(|began| {
            let elapsed_ms = u128::from(now_ms.saturating_sub(began.at_ms));
            let left_ms = (elapsed_ms * u128::from(self.size.saturating_sub(self.position)))
                .checked_div(u128::from(self.position.saturating_sub(began.position)))?;
            u64::try_from(left_ms.div_ceil(1_000)).ok()
        });
        ScrubState {
            present: true,
            running: self.running,
            position_bytes: self.position,
            size_bytes: self.size,
            read_bytes: self.read,
            estimated_seconds_left: left,
            began_unix_ms: self.began.map_or(0, |began| began.unix_ms),
            ended_unix_ms: self.ended_unix_ms,
            damaged_blocks: self.damage.found,
            healed: self.damage.healed(),
            damaged_blocks_left: self.damage.left(),
            failed: self.failed.clone(),
            ..ScrubState::default()
        }
    }
}

/// See the module. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(in crate::volume) struct Records {
    /// The rate is 0.
    off: bool,
    records: Arc<Mutex<HashMap<VolumeId, Record>>>,
}

impl Records {
    /// None yet. `off`: no pass is ever begun.
    pub(in crate::volume) fn new(off: bool) -> Records {
        Records { off, records: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<VolumeId, Record>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, id: VolumeId, change: impl FnOnce(&mut Record)) {
        if let Some(record) = self.lock().get_mut(&id) {
            change(record);
        }
    }

    /// Of all others nothing is here.
    pub(super) fn retain(&self, ids: &[VolumeId]) {
        self.lock().retain(|id, _| ids.contains(id));
    }

    /// The replica is open and looked after: these blocks are damaged.
    pub(super) fn look(&self, id: VolumeId, size: u64, ended_unix_ms: u64, bad: &[u64], source: &Source) {
        let mut records = self.lock();
        let record = records.entry(id).or_default();
        (record.open, record.size, record.ended_unix_ms) = (true, size, ended_unix_ms);
        record.damage.look(bad, source);
    }

    /// The replica is not open.
    pub(super) fn closed(&self, id: VolumeId) {
        self.change(id, |record| (record.open, record.asked) = (false, false));
    }

    /// True if a pass is wished for: it has to begin now.
    pub(super) fn take_asked(&self, id: VolumeId) -> bool {
        self.lock().get_mut(&id).is_some_and(|record| std::mem::take(&mut record.asked))
    }

    /// A pass begins, or goes on since before the process began. Bytes.
    pub(super) fn begin(&self, id: VolumeId, position: u64) {
        self.change(id, |record| record.begin(position));
    }

    /// It has come so far. Bytes.
    pub(super) fn go_on(&self, id: VolumeId, position: u64, read: u64) {
        self.change(id, |record| {
            // The next one is wished for already, and shown.
            if !record.asked {
                record.position = position.min(record.size);
                record.read = record.read.saturating_add(read);
            }
        });
    }

    /// The scrub has found these; see [`Damage::found`].
    pub(super) fn found(&self, id: VolumeId, blocks: &[u64], known: &[u64], full: bool) {
        self.change(id, |record| record.damage.found(blocks, known, full));
    }

    /// It has ended, at this moment (milliseconds since 1970), or it cannot go on.
    pub(super) fn end(&self, id: VolumeId, end: Result<u64, String>) {
        self.change(id, |record| {
            let failed = match end {
                Ok(unix_ms) => {
                    record.ended_unix_ms = unix_ms;
                    String::new()
                }
                Err(failed) => failed,
            };
            if !record.asked {
                (record.running, record.failed) = (false, failed);
            }
        });
    }

    /// Answers a question.
    pub(in crate::volume) fn answer(&self, question: &ScrubQuestion, request_id: &str) -> ScrubState {
        let mut records = self.lock();
        let record = VolumeId::from_slice(&question.volume_id).and_then(|id| records.get_mut(&id));
        let Some(record) = record.filter(|record| record.open) else {
            return ScrubState { off: self.off, ..ScrubState::default() };
        };
        let begun = question.begin && !self.off;
        if begun && (request_id.is_empty() || record.request != request_id) {
            record.begin(0);
            record.asked = true;
            request_id.clone_into(&mut record.request);
        }
        ScrubState { off: self.off, begun, ..record.state(clock::now_ms()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: VolumeId = VolumeId([7; 16]);
    const SIZE: u64 = 1 << 20;

    fn node(n: u32) -> NodeNumber {
        NodeNumber::new(n).unwrap()
    }

    fn healing(node: u32, blocks: u64) -> ScrubHealing {
        ScrubHealing { node, blocks }
    }

    fn question(begin: bool) -> ScrubQuestion {
        ScrubQuestion { volume_id: ID.0.to_vec(), begin }
    }

    fn open() -> Records {
        let records = Records::new(false);
        records.look(ID, SIZE, 0, &[], &Source::Hosts);
        records
    }

    fn show(records: &Records) -> ScrubState {
        records.answer(&question(false), "")
    }

    #[test]
    fn a_pass_is_told_from_its_beginning_to_its_end() {
        let records = open();
        assert_eq!((show(&records).running, show(&records).began_unix_ms), (false, 0));
        assert!(!records.take_asked(ID));
        records.begin(ID, 0);
        records.go_on(ID, SIZE / 4, 4096);
        records.go_on(ID, SIZE / 2, 4096);
        let state = show(&records);
        assert!(state.present && state.running && !state.begun && state.began_unix_ms > 0);
        assert_eq!((state.position_bytes, state.size_bytes, state.read_bytes), (SIZE / 2, SIZE, 8192));
        records.end(ID, Err("the disk is gone".to_owned()));
        let state = show(&records);
        assert!(
            !state.running && state.failed == "the disk is gone" && state.estimated_seconds_left.is_none()
        );
        records.begin(ID, 0);
        records.look(ID, SIZE, 77, &[], &Source::Hosts);
        let state = show(&records);
        assert_eq!((state.failed.as_str(), state.ended_unix_ms, state.read_bytes), ("", 77, 0));
    }

    #[test]
    fn the_estimate_is_what_is_left_at_the_speed_so_far() {
        let began = Some(Began { unix_ms: 1, at_ms: 1_000, position: SIZE / 2 });
        let mut record = Record { size: SIZE, running: true, began, position: SIZE / 2, ..Record::default() };
        assert_eq!(record.state(11_000).estimated_seconds_left, None);
        record.position = SIZE / 4 * 3;
        assert_eq!(record.state(11_000).estimated_seconds_left, Some(10));
        record.position = SIZE;
        assert_eq!(record.state(11_000).estimated_seconds_left, Some(0));
    }

    #[test]
    fn a_request_begins_one_pass_however_often_it_comes() {
        let records = open();
        assert!(records.answer(&question(true), "r").begun);
        assert!(show(&records).running && records.take_asked(ID));
        records.end(ID, Ok(5));
        let again = records.answer(&question(true), "r");
        assert_eq!(again.ended_unix_ms, 5);
        assert!(again.begun && !again.running && !records.take_asked(ID));
        assert!(records.answer(&question(true), "s").running && records.take_asked(ID));
        records.end(ID, Ok(5));
        for _ in 0..2 {
            assert!(records.answer(&question(true), "").begun && records.take_asked(ID));
        }
    }

    #[test]
    fn what_the_pass_before_comes_to_does_not_hide_the_one_that_was_asked_for() {
        let records = open();
        records.begin(ID, 0);
        records.answer(&question(true), "r");
        records.go_on(ID, SIZE, 4096);
        records.end(ID, Ok(5));
        let state = show(&records);
        assert_eq!((state.running, state.position_bytes, state.read_bytes), (true, 0, 0));
    }

    #[test]
    fn nothing_begins_where_it_is_off_or_no_copy_is_open() {
        let records = Records::new(true);
        assert_eq!(records.answer(&question(true), "r"), ScrubState { off: true, ..ScrubState::default() });
        records.look(ID, SIZE, 0, &[], &Source::Hosts);
        let state = records.answer(&question(true), "r");
        assert!(state.present && state.off && !state.begun && !state.running && !records.take_asked(ID));
        let records = open();
        records.closed(ID);
        let state = records.answer(&question(true), "r");
        assert!(!state.present && !state.begun && !records.take_asked(ID));
        records.look(ID, SIZE, 0, &[], &Source::Hosts);
        assert!(show(&records).present);
        records.retain(&[]);
        assert!(!show(&records).present);
        assert!(!records.answer(&ScrubQuestion { volume_id: vec![1], begin: true }, "").present);
    }

    #[test]
    fn a_damaged_block_is_counted_once_and_is_left_until_it_is_well() {
        let records = open();
        records.found(ID, &[3, 9], &[3, 9], false);
        records.look(ID, SIZE, 0, &[3, 9], &Source::Hosts);
        records.begin(ID, 0);
        records.found(ID, &[3, 9], &[3, 9], false);
        let state = show(&records);
        assert_eq!((state.damaged_blocks, state.damaged_blocks_left, state.healed), (2, 2, vec![]));
        records.look(ID, SIZE, 0, &[9], &Source::Owner(node(2)));
        let state = show(&records);
        assert_eq!((state.damaged_blocks, state.damaged_blocks_left), (2, 1));
        assert_eq!(state.healed, [healing(2, 1)]);
        // It is damaged again: another damage.
        records.look(ID, SIZE, 0, &[3, 9], &Source::Hosts);
        assert_eq!((show(&records).damaged_blocks, show(&records).damaged_blocks_left), (3, 2));
    }

    #[test]
    fn the_owner_tells_what_it_healed_from_whom_and_the_rest_is_of_hosts() {
        let mut damage = Damage::default();
        damage.look(&[1, 2, 3, 40], &Source::Own(Vec::new()));
        damage.look(&[40], &Source::Own(vec![(1..2, node(3)), (100..200, node(3))]));
        assert_eq!(damage.healed(), [healing(3, 1), healing(0, 2)]);
        // Told a moment after the blocks were well.
        damage.look(&[40], &Source::Own(vec![(2..3, node(2))]));
        assert_eq!(damage.healed(), [healing(2, 1), healing(3, 1), healing(0, 1)]);
        damage.look(&[], &Source::Hosts);
        assert_eq!(damage.healed(), [healing(2, 1), healing(3, 1), healing(0, 2)]);
        assert_eq!((damage.found, damage.left()), (4, 0));
    }

    #[test]
    fn damage_that_nobody_can_remember_is_counted_by_each_pass_anew() {
        let mut damage = Damage::default();
        damage.found(&[1, 2, 3], &[1], true);
        assert_eq!((damage.found, damage.left()), (3, 3));
        damage.pass_begins();
        damage.found(&[2, 3], &[1], true);
        assert_eq!((damage.found, damage.left()), (3, 3));
        damage.pass_begins();
        assert_eq!((damage.found, damage.left()), (1, 1));
        // Found, and healed before it was looked for in the list.
        damage.found(&[8], &[1], false);
        damage.look(&[1], &Source::Owner(node(2)));
        assert_eq!((damage.found, damage.left(), damage.healed()), (2, 1, vec![healing(2, 1)]));
    }
}
