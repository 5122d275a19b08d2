//! The same random commands to Holdfast and to another target: every difference must have a rule that explains it.
//!
//! Both get each case from the same of two initiators. A Unit Attention on one side is its own difference, and the command
//! is then sent again there. After a difference that can have left the two in different states they are made alike.
//!
//! Invariant: a difference is never dropped: it is explained by a rule, or the run fails and shows it.

mod generate;
mod rules;

use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};

use self::generate::{AREA_BLOCKS, Case, Data, Effect, Random};
pub use self::rules::{Difference, Rules};
use crate::{
    cdb,
    cluster::{INITIATOR_A, INITIATOR_B},
    initiator::{Answer, CHECK_CONDITION, GOOD, Initiator, RESERVATION_CONFLICT},
};

/// A target with a unit to compare.
pub struct Side {
    portal: String,
    target: String,
    initiators: [Initiator; 2],
    lun: u16,
}

/// START STOP UNIT, start.
const START_UNIT: &str = "1b0000000100";
/// Commands that find a stopped unit before it is started again.
const STOPPED_CASES: usize = 4;
const NAMES: [&str; 2] = [INITIATOR_A, INITIATOR_B];
/// Stands for the status where the answer ended the session.
const LOST: u8 = 0xff;

impl Side {
    /// Logs in twice.
    ///
    /// # Errors
    /// A failed login.
    pub fn new(portal: &str, target: &str, lun: u16) -> anyhow::Result<Self> {
        let login = |name| Initiator::login(portal, target, name, 1, None);
        let initiators = [login(NAMES[0])?, login(NAMES[1])?];
        Ok(Self { portal: portal.to_owned(), target: target.to_owned(), initiators, lun })
    }

    fn send(&mut self, case: &Case) -> anyhow::Result<Answer> {
        let cdb: String = case.cdb.iter().map(|byte| format!("{byte:02x}")).collect();
        let lun = self.lun;
        let data = match &case.data {
            Data::None => String::new(),
            Data::In(length) => format!(" in {length}"),
            Data::Out(hex) => format!(" out {hex}"),
            Data::Fill(value, length) => format!(" fill {value} {length}"),
        };
        let initiator = &mut self.initiators[case.nexus];
        initiator.send(&format!("cdb {lun} {cdb}{data}"))?;
        let Ok(answer) = initiator.answer() else {
            // libiscsi gave the session up: what it was sent was no answer.
            *initiator = Initiator::login(&self.portal, &self.target, NAMES[case.nexus], 1, None)
                .with_context(|| format!("after CDB {cdb}{data}"))?;
            self.ready()?;
            return Ok(Answer { status: LOST, sense: String::new(), data: Vec::new() });
        };
        Ok(answer)
    }

    fn ready(&mut self) -> anyhow::Result<()> {
        let lun = self.lun;
        for initiator in &mut self.initiators {
            // A reservation's conflict is no Unit Attention, nor is a unit that was stopped.
            while initiator.command(lun, cdb::TEST_UNIT_READY)?.sense.starts_with("6/") {}
        }
        Ok(())
    }

    /// Starts the unit.
    fn start(&mut self) -> anyhow::Result<()> {
        let lun = self.lun;
        for initiator in &mut self.initiators {
            initiator.command(lun, START_UNIT)?;
        }
        Ok(())
    }

    /// Ends every reservation and registration, allows removal, starts the unit.
    fn release_all(&mut self) -> anyhow::Result<()> {
        self.ready()?;
        let lun = self.lun;
        for initiator in &mut self.initiators {
            initiator.command(lun, "170000000000")?;
        }
        for (at, key) in [0x11_u64, 0x22].into_iter().enumerate() {
            let initiator = &mut self.initiators[at];
            for _ in 0..2 {
                let answer = reserve_out(initiator, lun, cdb::REGISTER_AND_IGNORE, 0, key)?;
                if answer.status == GOOD {
                    reserve_out(initiator, lun, cdb::CLEAR, key, 0)?;
                }
            }
            self.ready()?;
        }
        self.start()
    }

    /// Writes the whole area with one value.
    fn fill(&mut self) -> anyhow::Result<()> {
        let lun = self.lun;
        let initiator = &mut self.initiators[0];
        if let Err(error) = initiator.write_blocks(lun, 0, AREA_BLOCKS as u16, 0)?.good() {
            let keys = initiator.read(lun, &cdb::persistent_reserve_in(0), 64)?;
            let holder = initiator.read(lun, &cdb::persistent_reserve_in(1), 64)?;
            return Err(
                error.context(format!("the unit of {} stays reserved: {keys:?} {holder:?}", self.target))
            );
        }
        Ok(())
    }
}

/// READ(16) of the first block that a WRITE SAME wrote.
fn read_first_block(write_same: &[u8]) -> Vec<u8> {
    let mut read = vec![0; 16];
    read[0] = 0x88;
    read[13] = 1;
    match write_same[0] {
        0x41 => read[6..10].copy_from_slice(&write_same[2..6]),
        _ => read[2..10].copy_from_slice(&write_same[2..10]),
    }
    read
}

/// PERSISTENT RESERVE OUT without APTPL, which a peer need not know.
fn reserve_out(
    initiator: &mut Initiator,
    lun: u16,
    action: u8,
    key: u64,
    new: u64,
) -> anyhow::Result<Answer> {
    let list = format!("{key:016x}{new:016x}0000000000000000");
    initiator.write(lun, &format!("5f{action:02x}0000000000001800"), &list)
}

/// What a run found.
#[derive(Debug, Default)]
pub struct Findings {
    /// Cases sent.
    pub cases: usize,
    /// Cases that both answered alike.
    pub alike: usize,
    /// Differences without a rule: how often, and one case each.
    pub unexplained: BTreeMap<Difference, (usize, String)>,
}

fn word(answer: &Answer) -> String {
    match answer.status {
        GOOD => "good".into(),
        CHECK_CONDITION => answer.sense.clone(),
        RESERVATION_CONFLICT => "conflict".into(),
        LOST => "lost".into(),
        status => format!("status-{status:02x}"),
    }
}

/// Sends `count` cases of a seed to both.
///
/// # Errors
/// A lost session, or units that differ in size.
pub fn compare(
    ours: &mut Side,
    theirs: &mut Side,
    seed: u64,
    count: usize,
    rules: &mut Rules,
) -> anyhow::Result<Findings> {
    let capacity = |side: &mut Side| -> anyhow::Result<u64> {
        side.ready()?;
        let lun = side.lun;
        let data = side.initiators[0].read(lun, cdb::READ_CAPACITY_16, 32)?.good()?;
        let last: [u8; 8] = data.get(..8).context("READ CAPACITY (16)")?.try_into()?;
        Ok(u64::from_be_bytes(last) + 1)
    };
    let blocks = capacity(ours)?;
    ensure!(blocks == capacity(theirs)?, "the units differ in size");
    let mut random = Random(seed);
    let mut findings = Findings::default();
    for side in [&mut *ours, &mut *theirs] {
        side.release_all()?;
        side.fill()?;
    }
    let mut start_at = usize::MAX;
    // Who holds our unit by RESERVE of SPC-2.
    let mut reserved = None;
    for number in 0..count {
        let mut case = generate::case(&mut random, blocks);
        findings.cases += 1;
        let mut answers = [ours.send(&case)?, theirs.send(&case)?];
        let mut differed = false;
        // A Unit Attention says that the command was not executed.
        for _ in 0..8 {
            let attention =
                answers.each_ref().map(|it| it.status == CHECK_CONDITION && it.sense.starts_with("6/"));
            match attention {
                [true, true] if word(&answers[0]) == word(&answers[1]) => {
                    answers = [ours.send(&case)?, theirs.send(&case)?];
                }
                [true, _] => {
                    differed |= note(&mut findings, rules, &case, &word(&answers[0]), "none", number);
                    answers[0] = ours.send(&case)?;
                }
                [_, true] => {
                    differed |= note(&mut findings, rules, &case, "none", &word(&answers[1]), number);
                    answers[1] = theirs.send(&case)?;
                }
                [false, false] => break,
            }
        }
        match case.cdb[0] {
            0x16 if answers[0].status == GOOD => reserved = Some(case.nexus),
            0x17 if reserved == Some(case.nexus) && answers[0].status == GOOD => reserved = None,
            _ => {}
        }
        let unmapped = case.twist == "unmap" && answers.iter().all(|it| it.status == GOOD);
        if unmapped {
            // What the blocks hold now says whether the data was kept.
            let read = Case { data: Data::In(512), cdb: read_first_block(&case.cdb), ..case.clone() };
            answers = [ours.send(&read)?, theirs.send(&read)?];
        }
        if reserved.is_some() && answers[0].status == RESERVATION_CONFLICT {
            case.twist = "reserved";
        }
        let [mut a, mut b] = answers.each_ref().map(word);
        if a == b && answers[0].data != answers[1].data {
            (a, b) = ("data".into(), "data".into());
        }
        if a != b || a == "data" {
            differed |= note(&mut findings, rules, &case, &a, &b, number);
            match case.effect {
                Effect::Reservations => {
                    [&mut *ours, &mut *theirs].into_iter().try_for_each(Side::release_all)?
                }
                Effect::Blocks => {
                    reserved = None;
                    for side in [&mut *ours, &mut *theirs] {
                        side.release_all()?;
                        side.fill()?;
                    }
                }
                Effect::None => {}
            }
        }
        if !differed {
            findings.alike += 1;
        }
        if case.cdb[0] == 0x1b && case.cdb[4] & 1 == 0 {
            start_at = number + STOPPED_CASES;
        }
        if number == start_at {
            ours.start()?;
            theirs.start()?;
        }
        // Both begin anew now and then, so that one long-lived reservation does not hide the rest.
        if number % 200 == 199 {
            reserved = None;
            for side in [&mut *ours, &mut *theirs] {
                side.release_all()?;
            }
        }
    }
    if findings.cases != count {
        bail!("{} of {count} cases were sent", findings.cases);
    }
    Ok(findings)
}

fn note(
    findings: &mut Findings,
    rules: &mut Rules,
    case: &Case,
    ours: &str,
    theirs: &str,
    number: usize,
) -> bool {
    let difference = Difference {
        command: case.command(),
        twist: case.twist.into(),
        ours: ours.into(),
        theirs: theirs.into(),
    };
    if !rules.explain(&difference) {
        let entry = findings.unexplained.entry(difference);
        entry.or_insert_with(|| (0, format!("case {number}: {:02x?} {:?}", case.cdb, case.data))).0 += 1;
    }
    true
}
