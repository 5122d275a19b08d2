//! A host that writes, reads and compares-and-writes blocks through multipath, and notes what it saw of each block.
//!
//! Every attempt of a write is an operation of its own with a value of its own: an attempt of unknown outcome may take effect late, and
//! the history says so.

use std::sync::Arc;

use holdfast_tests::clock::boottime_ns;

use super::{
    blocks::{BLOCK_LEN, filled, hex, value_of},
    chronicle::Chronicle,
    paths::{Outcome, Paths},
};
use crate::{
    oracle::{block::Operation, linearizable::Timed},
    random::Random,
};

/// An operation that no path has brought to an end for this long is an I/O error of the host's.
const HOST_PATIENCE_NS: u64 = 60_000_000_000;
/// Most blocks of one command.
const BLOCKS_MAX: u64 = 4;

/// What a host saw.
#[derive(Debug, Default)]
pub struct Record {
    /// By block.
    pub operations: Vec<(u64, Timed<Operation>)>,
    /// Nanoseconds from the first attempt to the end of each operation.
    pub stalls_ns: Vec<u64>,
}

/// A host's thread.
pub struct IoHost {
    /// Different for every host of a run.
    pub number: u64,
    /// LUN of the volume.
    pub lun: u16,
    /// Blocks in use, from LBA 0 on.
    pub blocks: u64,
    /// Draws what to do.
    pub random: Random,
    /// Ways to the volume.
    pub paths: Paths,
    /// The run's log.
    pub chronicle: Arc<Chronicle>,
}

enum Verb {
    Write,
    Read,
    CompareAndWrite,
}

impl IoHost {
    /// Works until the run is over.
    pub fn run(mut self) -> Record {
        let mut record = Record::default();
        let mut last_seen = vec![0; self.blocks as usize];
        let mut serial = 0;
        loop {
            let verb = match self.random.below(10) {
                0..=3 => Verb::Write,
                4..=8 => Verb::Read,
                _ => Verb::CompareAndWrite,
            };
            let count = match verb {
                Verb::CompareAndWrite => 1,
                _ => 1 + self.random.below(BLOCKS_MAX),
            };
            let first = self.random.below(self.blocks - count + 1);
            let started_ns = boottime_ns();
            let mut tries = 0;
            loop {
                serial += 1;
                tries += 1;
                let value = self.number << 40 | serial;
                let expected = last_seen[first as usize];
                let request = self.request(&verb, first, count, value, expected);
                let Some(attempt) = self.paths.attempt(&request) else { return record };
                let (sent, seen) = (attempt.sent_ns, Some(attempt.seen_ns));
                let mut note = |block: u64, answered: Option<u64>, operation| {
                    record.operations.push((block, Timed { sent, answered, operation }));
                };
                let range = first..first + count;
                let swap = |matched| Operation::CompareAndWrite { expected, written: value, matched };
                let ended = match (&verb, &attempt.outcome) {
                    (Verb::Write, Outcome::Good(_)) => {
                        range.for_each(|block| {
                            last_seen[block as usize] = value;
                            note(block, seen, Operation::Write(value));
                        });
                        true
                    }
                    (Verb::Read, Outcome::Good(data)) => {
                        for (block, bytes) in range.zip(data.chunks(BLOCK_LEN)) {
                            match value_of(bytes) {
                                Some(value) => {
                                    last_seen[block as usize] = value;
                                    note(block, seen, Operation::Read(value));
                                }
                                None => self.chronicle.violation(format!(
                                    "block {block} of LUN {} holds what no write leaves: {}...",
                                    self.lun,
                                    hex(&bytes[..32.min(bytes.len())])
                                )),
                            }
                        }
                        if data.len() != count as usize * BLOCK_LEN {
                            self.chronicle
                                .violation(format!("a READ of {count} blocks gave {} bytes", data.len()));
                        }
                        true
                    }
                    (Verb::CompareAndWrite, Outcome::Good(_)) => {
                        last_seen[first as usize] = value;
                        note(first, seen, swap(Some(true)));
                        true
                    }
                    (Verb::CompareAndWrite, Outcome::Miscompare) => {
                        note(first, seen, swap(Some(false)));
                        true
                    }
                    // Certainly nothing happened: again, with another value all the same.
                    (_, Outcome::Busy | Outcome::Attention(_)) => false,
                    (verb, outcome) => {
                        match verb {
                            Verb::Write => range.for_each(|block| note(block, None, Operation::Write(value))),
                            Verb::CompareAndWrite => note(first, None, swap(None)),
                            Verb::Read => {}
                        }
                        if *outcome == Outcome::Unknown {
                            false
                        } else {
                            self.chronicle.host_error(&format!("{outcome:?}"), &request_name(&request));
                            true
                        }
                    }
                };
                let took_ns = attempt.seen_ns - started_ns;
                if ended {
                    record.stalls_ns.push(took_ns);
                    if took_ns > 1_000_000_000 {
                        let seconds = took_ns as f64 / 1e9;
                        self.chronicle.say(&format!(
                            "stall  host {} waited {seconds:.3} s in {tries} attempts for {}",
                            self.number,
                            request_name(&request)
                        ));
                    }
                    break;
                }
                if took_ns > HOST_PATIENCE_NS {
                    self.chronicle.host_error("no path", &request_name(&request));
                    record.stalls_ns.push(took_ns);
                    break;
                }
            }
        }
    }

    fn request(&self, verb: &Verb, first: u64, count: u64, value: u64, expected: u64) -> String {
        let lun = self.lun;
        match verb {
            Verb::Write => {
                let data = hex(&filled(value).repeat(count as usize));
                format!("cdb {lun} 2a00{first:08x}00{count:04x}00 out {data}")
            }
            Verb::Read => {
                format!("cdb {lun} 2800{first:08x}00{count:04x}00 in {}", count as usize * BLOCK_LEN)
            }
            Verb::CompareAndWrite => {
                let data = hex(&[filled(expected), filled(value)].concat());
                format!("cdb {lun} 8900{first:016x}000000010000 out {data}")
            }
        }
    }
}

/// A request without its data.
fn request_name(request: &str) -> String {
    request.split(" out ").next().unwrap_or_default().to_owned()
}
