//! Classes of vulnerabilities of SCSI targets, each as a table of cases that an initiator can send. `docs/vulnerabilities.md`
//! lists the classes with the number of cases; a test compares the two.
//!
//! Whatever is sent, the device server ends every task once, answers with the standard's sense data, and a refused command
//! changes nothing of the medium: [`Bench::run`] checks all three for every case.

mod world;

#[path = "vulnerabilities/lengths.rs"]
mod lengths;
#[path = "vulnerabilities/lists.rs"]
mod lists;
#[path = "vulnerabilities/ranges.rs"]
mod ranges;

use std::collections::BTreeSet;

use holdfast_scsi::{
    device_server::{Completion, Response},
    lun::Lun,
    sense::{AdditionalSense, Sense},
    status::Status,
    task_set::TaskAttribute,
};
use world::World;

/// What an initiator sends, and what it is to be answered.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) lun: u16,
    pub(crate) cdb: Vec<u8>,
    pub(crate) data: Vec<u8>,
    pub(crate) expected: Expected,
}

/// The answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Expected {
    Good,
    /// GOOD with these bytes.
    Data(Vec<u8>),
    /// CHECK CONDITION with exactly this.
    Check(Sense),
    /// CHECK CONDITION with this code, wherever it points.
    Code(AdditionalSense),
}

impl Case {
    pub(crate) fn new(name: impl Into<String>, cdb: Vec<u8>, data: Vec<u8>, expected: Expected) -> Case {
        Case { name: name.into(), lun: 0, cdb, data, expected }
    }
}

/// A unit with something on its medium.
pub(crate) struct Bench(pub(crate) World);

impl Bench {
    pub(crate) fn new() -> Bench {
        let mut world = World::new();
        for (at, byte) in world.store.iter_mut().enumerate() {
            *byte = (at / 512 + 1) as u8;
        }
        Bench(world)
    }

    pub(crate) fn send(&mut self, lun: u16, cdb: &[u8], data: Vec<u8>) -> (Completion, Vec<u8>) {
        let lun = Lun::from_number(lun).unwrap();
        let id = self.0.send('A', lun, cdb, data, false, TaskAttribute::Simple);
        self.0.release_all();
        let ended = self.0.ended.remove(&id).expect("it never ended");
        let Response::Completed(completion) = ended.response else { panic!("aborted") };
        (completion, ended.data_in)
    }

    /// Sends a case to a new unit; what is wrong with the answer, if anything.
    pub(crate) fn run(case: &Case) -> Result<(), String> {
        let mut bench = Bench::new();
        let before = bench.0.store.clone();
        let (completion, data_in) = bench.send(case.lun, &case.cdb, case.data.clone());
        let got = match (completion.status, completion.sense) {
            (Status::Good, _) if data_in.is_empty() => Expected::Good,
            (Status::Good, _) => Expected::Data(data_in),
            (Status::CheckCondition, Some(sense)) => match &case.expected {
                Expected::Code(_) => Expected::Code(sense.additional),
                _ => Expected::Check(sense),
            },
            other => return Err(format!("{}: {other:?}", case.name)),
        };
        if got != case.expected {
            return Err(format!("{}: expected {:?}, got {got:?}", case.name, case.expected));
        }
        if completion.status != Status::Good && bench.0.store != before {
            return Err(format!("{}: refused, and yet the medium changed", case.name));
        }
        Ok(())
    }
}

/// Runs a class; every case has a name of its own.
pub(crate) fn run(cases: &[Case]) {
    let names: BTreeSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names.len(), cases.len(), "two cases of one name");
    let wrong: Vec<String> = cases.iter().filter_map(|case| Bench::run(case).err()).collect();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

/// The classes, with the number of their cases.
fn classes() -> Vec<(&'static str, usize)> {
    vec![
        ("ranges::beyond_the_end", ranges::beyond_the_end().len()),
        ("ranges::longer_than_block_limits_allow", ranges::too_long().len()),
        ("ranges::zero_blocks", ranges::zero_blocks().len()),
        ("lists::persistent_reserve_out_lengths", lists::pr_out_lengths().len()),
        ("lists::transport_ids", lists::transport_ids().len()),
        ("lists::unmap_descriptors", lists::unmap_descriptors().len()),
        ("lists::mode_select_lists", lists::mode_select_lists().len()),
        ("lists::information_lists", lists::information_lists().len()),
        ("lengths::allocation_lengths", lengths::allocation_lengths().len()),
        ("lengths::short_cdbs", lengths::short_cdbs().len()),
        ("lengths::reserved_bits", lengths::reserved_bits().len()),
        ("lengths::unknown_operation_codes", lengths::unknown_operation_codes().len()),
        ("lengths::luns_that_are_not_mapped", lengths::not_mapped().len()),
    ]
}

#[test]
fn document_lists_every_class_with_its_number_of_cases() {
    let document = include_str!("../../docs/vulnerabilities.md");
    let (_, section) = document.split_once("\n## SCSI").expect("a section on SCSI");
    let rows: Vec<&str> = section
        .lines()
        .filter(|line| ["`ranges::", "`lists::", "`lengths::"].iter().any(|module| line.contains(module)))
        .collect();
    let classes = classes();
    for (name, cases) in &classes {
        let ending = format!("| `{name}` | {cases} |");
        assert!(rows.iter().any(|row| row.ends_with(&ending)), "missing: ... {ending}; all: {classes:?}");
    }
    assert_eq!(rows.len(), classes.len(), "the document lists classes that are not there");
    assert!(classes.iter().map(|(_, cases)| cases).sum::<usize>() >= 300);
}
