//! What hosts may see: each block is a register, and its reads and writes must be linearizable.
//!
//! Written values are unique, so the exact test is short (Gibbons and Korach, "Testing shared memories", 1997): the operations on one
//! value form a zone from the earliest end to the latest begin; no two forward zones may overlap, and no
//! backward zone may lie within a forward one.
//!
//! When every in-sync replica has lost its memory (and every host is told), a block may fall back to a cached value, but
//! never behind one that was flushed: the history is cut there, and one admissible value begins the next part.

use std::collections::{BTreeMap, BTreeSet};

const NEVER: u64 = u64::MAX;

#[derive(Clone, Debug)]
struct Written {
    begun: u64,
    ended: u64,
    durable: bool,
}

#[derive(Clone, Debug, Default)]
struct Block {
    writes: BTreeMap<u64, Written>,
    /// (value, begun, ended)
    reads: Vec<(u64, u64, u64)>,
    /// Values of earlier parts that may begin this one; empty in the first part.
    admissible: BTreeSet<u64>,
    cut: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Oracle {
    clock: u64,
    blocks: Vec<Block>,
    /// Reads and writes that were answered.
    pub(crate) answered: u64,
}

impl Oracle {
    pub(crate) fn new(blocks: u64) -> Oracle {
        let first = Written { begun: 0, ended: 0, durable: true };
        let block = Block { writes: BTreeMap::from([(0, first)]), ..Block::default() };
        Oracle { clock: 0, blocks: vec![block; blocks as usize], answered: 0 }
    }

    /// A moment; each is later than the one before.
    pub(crate) fn moment(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    pub(crate) fn write_begun(&mut self, lba: u64, blocks: u64, value: u64) {
        let begun = self.moment();
        for block in &mut self.blocks[lba as usize..(lba + blocks) as usize] {
            block.writes.insert(value, Written { begun, ended: NEVER, durable: false });
        }
    }

    /// It was refused before anything happened.
    pub(crate) fn write_refused(&mut self, lba: u64, blocks: u64, value: u64) {
        for block in &mut self.blocks[lba as usize..(lba + blocks) as usize] {
            block.writes.remove(&value);
        }
    }

    pub(crate) fn write_answered(&mut self, lba: u64, blocks: u64, value: u64, durable: bool) {
        let now = self.moment();
        self.answered += 1;
        for block in &mut self.blocks[lba as usize..(lba + blocks) as usize] {
            if let Some(written) = block.writes.get_mut(&value) {
                (written.ended, written.durable) = (now, durable);
            }
        }
    }

    /// A flush that was begun at `begun` was answered.
    pub(crate) fn flush_answered(&mut self, begun: u64) {
        for written in self.blocks.iter_mut().flat_map(|b| b.writes.values_mut()) {
            written.durable |= written.ended < begun;
        }
    }

    pub(crate) fn read_answered(&mut self, lba: u64, begun: u64, values: &[u64]) {
        let now = self.moment();
        self.answered += 1;
        for (at, value) in values.iter().enumerate() {
            self.blocks[lba as usize + at].reads.push((*value, begun, now));
        }
    }

    /// All in-sync replicas have lost what they had cached; nothing is under way.
    pub(crate) fn lost_everywhere(&mut self) -> Result<(), String> {
        self.check()?;
        for block in &mut self.blocks {
            let floor = |w: &Written| {
                block.writes.values().any(|d| d.durable && d.ended != NEVER && d.begun > w.ended)
            };
            let mut admissible: BTreeSet<u64> =
                block.writes.iter().filter(|(_, w)| !floor(w)).map(|(v, _)| *v).collect();
            if block.cut {
                // What began this part may still be there, unless something flushed replaced it.
                let replaced = block.writes.values().any(|d| d.durable && d.ended != NEVER);
                if !replaced {
                    admissible.extend(&block.admissible);
                }
            }
            *block = Block { admissible, cut: true, ..Block::default() };
        }
        Ok(())
    }

    pub(crate) fn check(&self) -> Result<(), String> {
        for (lba, block) in self.blocks.iter().enumerate() {
            block.check().map_err(|why| format!("block {lba}: {why}"))?;
        }
        Ok(())
    }
}

impl Block {
    fn check(&self) -> Result<(), String> {
        let mut writes = self.writes.clone();
        if self.cut {
            let old: BTreeSet<u64> =
                self.reads.iter().map(|r| r.0).filter(|v| !self.writes.contains_key(v)).collect();
            if old.len() > 1 {
                return Err(format!("more than one value outlived the loss: {old:?}"));
            }
            for value in old {
                if !self.admissible.contains(&value) {
                    return Err(format!("value {value} came back, and flushed writes are lost"));
                }
                writes.insert(value, Written { begun: 0, ended: 0, durable: true });
            }
        }
        // (value, earliest end, latest begin)
        let mut zones = BTreeMap::new();
        for (value, write) in &writes {
            zones.insert(*value, (write.ended, write.begun));
        }
        for (value, begun, ended) in &self.reads {
            let write = writes.get(value).ok_or(format!("value {value} was read, and nobody wrote it"))?;
            if *ended < write.begun {
                return Err(format!("value {value} was read before it was written"));
            }
            let zone = zones.get_mut(value).ok_or("no zone")?;
            *zone = (zone.0.min(*ended), zone.1.max(*begun));
        }
        let forward: Vec<(u64, u64, u64)> =
            zones.iter().filter(|(_, z)| z.0 < z.1).map(|(v, z)| (*v, z.0, z.1)).collect();
        for (value, end, begin) in &forward {
            for (other, zone) in &zones {
                let (low, high) = (zone.0.min(zone.1), zone.0.max(zone.1));
                let clash =
                    if zone.0 < zone.1 { low < *begin && *end < high } else { *end < low && high < *begin };
                if other != value && clash {
                    return Err(format!(
                        "value {value} was there at {end} and still at {begin}, but {other} was there at {low} and {high}"
                    ));
                }
            }
        }
        Ok(())
    }
}

#[test]
fn stale_and_lost_values_are_noticed() {
    let history = |reads: &[(u64, u64, u64)]| {
        let mut oracle = Oracle::new(1);
        for value in [10, 20] {
            oracle.write_begun(0, 1, value);
            oracle.write_answered(0, 1, value, false);
        }
        for (value, begun, ended) in reads {
            oracle.blocks[0].reads.push((*value, *begun, *ended));
        }
        oracle.check()
    };
    assert_eq!(history(&[(20, 5, 6), (20, 7, 8)]), Ok(()));
    // Overlaps the second write, so either value will do, but not the new one and then the old one.
    assert_eq!(history(&[(10, 3, 9)]), Ok(()));
    assert!(history(&[(10, 5, 6)]).is_err());
    assert!(history(&[(0, 5, 6)]).is_err());
    assert!(history(&[(30, 5, 6)]).is_err());
    assert!(history(&[(20, 1, 2)]).is_err());
}

#[test]
fn loss_everywhere_spares_what_was_flushed() {
    let mut oracle = Oracle::new(1);
    for value in [10, 20, 30] {
        oracle.write_begun(0, 1, value);
        oracle.write_answered(0, 1, value, false);
        if value == 20 {
            let begun = oracle.moment();
            oracle.flush_answered(begun);
        }
    }
    oracle.lost_everywhere().unwrap();
    for (value, fine) in [(10, false), (20, true), (30, true)] {
        let mut later = Oracle { clock: oracle.clock, blocks: oracle.blocks.clone(), answered: 0 };
        let begun = later.moment();
        later.read_answered(0, begun, &[value]);
        assert_eq!(later.check().is_ok(), fine, "{value}");
    }
}
