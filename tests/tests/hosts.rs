//! Plays `tests/hosts/*.txt`, the conversations of kinds of hosts with their storage, against a real cluster.
//!
//! Invariants: every line is checked, a Unit Attention as well; a scenario begins with new sessions and without registrations,
//! so that none leans on another.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, bail, ensure};
use holdfast_tests::{
    cdb,
    cluster::{Cluster, INITIATOR_A, INITIATOR_B},
    initiator::{Answer, CHECK_CONDITION, GOOD, Initiator, RESERVATION_CONFLICT},
};

/// Number that libiscsi makes the ISID of: the same one is the same initiator port.
const ISID: u16 = 0x41;
/// The unit, on node 1.
const LUN: u16 = 0;
/// A second one, on node 2.
const SECOND: u16 = 1;

struct Scene<'a> {
    cluster: &'a Cluster,
    sessions: BTreeMap<String, Initiator>,
    /// The ROD token that was made last, in hex.
    token: String,
}

#[test]
fn hosts_find_what_they_rely_on() -> anyhow::Result<()> {
    let mut cluster = Cluster::start()?;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("hosts");
    let mut files: Vec<_> = fs::read_dir(folder)?.map(|it| Ok(it?.path())).collect::<anyhow::Result<_>>()?;
    files.retain(|file| file.extension().is_some_and(|it| it == "txt"));
    files.sort();
    cluster.volume_for_both("hosts", "1MiB", "node-1", LUN)?;
    cluster.volume_for_both("second", "1MiB", "node-2", SECOND)?;
    let (mut count, mut wrong) = (0, Vec::new());
    for file in &files {
        let name = file.file_stem().context("a name")?.to_string_lossy().into_owned();
        for scenario in fs::read_to_string(file)?.split("\n== ").skip(1) {
            let (head, body) = scenario.split_once('\n').context("a scenario without lines")?;
            let mut scene = Scene { cluster: &cluster, sessions: BTreeMap::new(), token: String::new() };
            scene.begin(body)?;
            let lines = body.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
            match lines.map(|line| scene.line(line).with_context(|| line.to_owned())).find(Result::is_err) {
                Some(Err(error)) => wrong.push(format!("{name}: {head}: {error:#}")),
                _ => println!("{name}: {head}"),
            }
            count += 1;
        }
    }
    ensure!(count >= 25, "only {count} scenarios were found");
    ensure!(wrong.is_empty(), "{} scenarios went wrong:\n{}", wrong.len(), wrong.join("\n"));
    cluster.stop()
}

fn key(word: &str) -> anyhow::Result<u64> {
    u64::from_str_radix(word, 16).with_context(|| format!("no key: {word}"))
}

fn name_of(who: &str) -> anyhow::Result<(&'static str, usize)> {
    Ok(match who {
        "a1" => (INITIATOR_A, 0),
        "a2" => (INITIATOR_A, 1),
        "b1" => (INITIATOR_B, 0),
        "b2" => (INITIATOR_B, 1),
        _ => bail!("nobody is called {who}"),
    })
}

/// TransportID of the initiator port that `who` logs in as (SPC-5 7.6.4.4, format 01b).
fn transport_id(who: &str) -> anyhow::Result<String> {
    let mut name = format!("{},i,0x80{ISID:06x}0000", name_of(who)?.0).into_bytes();
    name.push(0);
    name.resize(name.len().next_multiple_of(4), 0);
    let hex: String = name.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("4500{:04x}{hex}", name.len()))
}

impl Scene<'_> {
    /// Ends what an earlier scenario left, then logs in whoever has a part in this one.
    fn begin(&mut self, body: &str) -> anyhow::Result<()> {
        let session = self.session("a1")?;
        for lun in [LUN, SECOND] {
            session.reserve_out(lun, cdb::REGISTER_AND_IGNORE, 0, 0, 1)?.good()?;
            session.reserve_out(lun, cdb::CLEAR, 0, 1, 0)?.good()?;
        }
        self.sessions.clear();
        for line in body.lines().filter(|line| line.contains(" -> ")) {
            self.session(line.split_whitespace().next().context("nobody speaks")?)?;
        }
        Ok(())
    }

    fn line(&mut self, line: &str) -> anyhow::Result<()> {
        let (request, expected) = line.split_once(" -> ").context("no answer")?;
        let words: Vec<_> = request.split_whitespace().collect();
        let [who, verb, arguments @ ..] = words.as_slice() else { bail!("who does what?") };
        match (*verb, arguments) {
            ("until", [verb, arguments @ ..]) => {
                let cluster = self.cluster;
                cluster.wait_for(line, || fits(&self.act(who, verb, arguments)?, expected))
            }
            _ => fits(&self.act(who, verb, arguments)?, expected),
        }
    }

    fn session(&mut self, who: &str) -> anyhow::Result<&mut Initiator> {
        if !self.sessions.contains_key(who) {
            let (name, node) = name_of(who)?;
            let (portal, target) = (&self.cluster.portals[node], &self.cluster.target);
            let mut session = Initiator::login(portal, target, name, ISID, None)?;
            session.become_ready(LUN)?;
            session.become_ready(SECOND)?;
            self.sessions.insert(who.to_owned(), session);
        }
        self.sessions.get_mut(who).context("the session that was just made")
    }

    fn act(&mut self, who: &str, verb: &str, words: &[&str]) -> anyhow::Result<String> {
        match (verb, words) {
            ("at", [lun, verb, words @ ..]) => self.act_at(lun.parse()?, who, verb, words),
            _ => self.act_at(LUN, who, verb, words),
        }
    }

    /// EXTENDED COPY (LID1), sent to the source: one segment between units that are named by their NAA designators.
    fn copy(&mut self, from: u16, who: &str, words: &[&str]) -> anyhow::Result<Answer> {
        let [from_lba, to, to_lba, blocks] = words else { bail!("copy LBA LUN LBA BLOCKS") };
        let (from_lba, to_lba, blocks) =
            (from_lba.parse::<u64>()?, to_lba.parse::<u64>()?, blocks.parse::<u16>()?);
        let session = self.session(who)?;
        let mut list = String::from("01000040000000000000001c00000000");
        for lun in [from, to.parse()?] {
            let page = session.read(lun, "120183010000", 256)?.good()?;
            let naa = page.get(8..16).context("an NAA designator")?;
            let naa = naa.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
            list += &format!("e400000001030008{naa}00000000000000000000000000000200");
        }
        list += &format!("02000018000000010000{blocks:04x}{from_lba:016x}{to_lba:016x}");
        session.write(from, &format!("8300000000000000000000{:06x}0000", list.len() / 2), &list)
    }

    /// POPULATE TOKEN, then RECEIVE ROD TOKEN INFORMATION.
    fn populate(&mut self, lun: u16, who: &str, lba: u32, blocks: u32) -> anyhow::Result<Answer> {
        let session = self.session(who)?;
        let list = format!("001e00000000000000000000000000100000{lba:012x}{blocks:08x}00000000");
        let answer = session.write(lun, "83100000000000000007000000200000", &list)?;
        if answer.status != GOOD {
            return Ok(answer);
        }
        let told = session.read(lun, "84070000000700000000000004000000", 1024)?.good()?;
        ensure!(told.get(5) == Some(&0x01), "the token is not there");
        let token = told.get(38..550).context("a token")?;
        self.token = token.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
        Ok(answer)
    }

    /// WRITE USING TOKEN, of the token that was made last, by whomever.
    fn write_using(&mut self, lun: u16, who: &str, lba: u32, blocks: u32) -> anyhow::Result<Answer> {
        let list = format!(
            "02260000000000000000000000000000{}0000000000000010{lba:016x}{blocks:08x}00000000",
            self.token
        );
        self.session(who)?.write(lun, "83110000000000000008000002280000", &list)
    }

    fn act_at(&mut self, lun: u16, who: &str, verb: &str, words: &[&str]) -> anyhow::Result<String> {
        let pair = || match words {
            [lba, blocks] => anyhow::Ok((lba.parse::<u32>()?, blocks.parse::<u32>()?)),
            _ => bail!("{verb} LBA BLOCKS"),
        };
        match verb {
            "copy" => return Ok(spoken(&self.copy(lun, who, words)?)),
            "populate" => {
                let (lba, blocks) = pair()?;
                return Ok(spoken(&self.populate(lun, who, lba, blocks)?));
            }
            "write-using" => {
                let (lba, blocks) = pair()?;
                return Ok(spoken(&self.write_using(lun, who, lba, blocks)?));
            }
            _ => {}
        }
        let session = self.session(who)?;
        let word = |at: usize| words.get(at).copied().with_context(|| format!("{verb}: too few words"));
        let number = |at: usize| anyhow::Ok(word(at)?.parse::<u32>()?);
        let value = |at: usize| anyhow::Ok(u8::from_str_radix(word(at)?, 16)?);
        let kind = || anyhow::Ok(word(0)?.parse::<u8>()?);
        let block = |byte: u8| format!("{byte:02x}").repeat(512);
        // REGISTER with flags: SPEC_I_PT 8, ALL_TG_PT 4, APTPL 1.
        let mut register = |from: u64, new: u64, flags: u8, ids: &str| {
            let mut list = format!("{from:016x}{new:016x}00000000{flags:02x}000000");
            if flags & 8 != 0 {
                list += &format!("{:08x}{ids}", ids.len() / 2);
            }
            session.write(lun, &format!("5f00000000{:08x}00", list.len() / 2), &list)
        };
        let answer = match verb {
            "register" => register(key(word(0)?)?, key(word(1)?)?, 1, "")?,
            "register-all-ports" => register(0, key(word(0)?)?, 5, "")?,
            "register-all-ports-from" => register(key(word(0)?)?, key(word(1)?)?, 5, "")?,
            "register-for" | "register-for-all-ports" => {
                let others = words.get(1..).unwrap_or_default();
                let ids: String =
                    others.iter().map(|who| transport_id(who)).collect::<anyhow::Result<_>>()?;
                register(0, key(word(0)?)?, if verb == "register-for" { 9 } else { 13 }, &ids)?
            }
            "register-ignore" => session.reserve_out(lun, cdb::REGISTER_AND_IGNORE, 0, 0, key(word(0)?)?)?,
            "reserve" => session.reserve_out(lun, cdb::RESERVE, kind()?, key(word(1)?)?, 0)?,
            "release" => session.reserve_out(lun, cdb::RELEASE, kind()?, key(word(1)?)?, 0)?,
            "clear" => session.reserve_out(lun, cdb::CLEAR, 0, key(word(0)?)?, 0)?,
            "preempt" | "preempt-abort" => {
                let action = if verb == "preempt" { cdb::PREEMPT } else { cdb::PREEMPT_AND_ABORT };
                session.reserve_out(lun, action, kind()?, key(word(1)?)?, key(word(2)?)?)?
            }
            "keys" => return keys(&session.read(lun, &cdb::persistent_reserve_in(0), 4096)?.good()?),
            "reservation" => {
                return reservation(&session.read(lun, &cdb::persistent_reserve_in(1), 4096)?.good()?);
            }
            "tur" => session.command(lun, cdb::TEST_UNIT_READY)?,
            "read" => {
                let answer = session.read_blocks(lun, number(0)?, 1)?;
                if answer.status == GOOD {
                    let first = *answer.data.first().context("no data")?;
                    ensure!(answer.data.iter().all(|byte| *byte == first), "the block is torn");
                    return Ok(format!("byte {first:02x}"));
                }
                answer
            }
            "write" => session.write_blocks(lun, number(0)?, 1, value(1)?)?,
            "compare-and-write" => {
                let (lba, data) = (number(0)?, block(value(1)?) + &block(value(2)?));
                session.write(lun, &format!("890000000000{lba:08x}000000010000"), &data)?
            }
            "write-same" => {
                let (lba, blocks, data) = (number(0)?, number(1)?, block(value(2)?));
                session.write(lun, &format!("930000000000{lba:08x}{blocks:08x}0000"), &data)?
            }
            "unmap" => {
                let list = format!("0016001000000000{:016x}{:08x}00000000", number(0)?, number(1)?);
                session.write(lun, "42000000000000001800", &list)?
            }
            "reset" => {
                let response = session.lun_reset(lun)?;
                return Ok(if response == 0 { "complete".into() } else { format!("response {response}") });
            }
            "send" => match words {
                [cdb] => session.command(lun, cdb)?,
                [cdb, "in", length] => session.read(lun, cdb, length.parse()?)?,
                [cdb, "out", hex] => session.write(lun, cdb, hex)?,
                _ => bail!("send CDB, send CDB in BYTES, or send CDB out HEX"),
            },
            _ => bail!("no verb {verb}"),
        };
        Ok(spoken(&answer))
    }
}

fn fits(answer: &str, expected: &str) -> anyhow::Result<()> {
    let one_fits = |one: &str| match one.strip_prefix("bytes ") {
        Some(bytes) => answer.strip_prefix("bytes ").is_some_and(|found| found.starts_with(bytes)),
        None => answer == one || one == "good" && answer.starts_with("bytes "),
    };
    ensure!(expected.split(" or ").any(|one| one_fits(one.trim())), "answered {answer}");
    Ok(())
}

fn spoken(answer: &Answer) -> String {
    match answer.status {
        GOOD if answer.data.is_empty() => "good".into(),
        GOOD => answer.data.iter().fold("bytes ".into(), |text, byte| format!("{text}{byte:02x}")),
        CHECK_CONDITION => answer.sense.clone(),
        RESERVATION_CONFLICT => "conflict".into(),
        status => format!("status {status:02x}"),
    }
}

/// READ KEYS (SPC-5 6.15.2).
fn keys(data: &[u8]) -> anyhow::Result<String> {
    let length = u32::from_be_bytes(data.get(4..8).context("READ KEYS")?.try_into()?) as usize;
    let list = data.get(8..8 + length).context("the list of keys")?;
    let mut keys: Vec<u64> = list
        .chunks_exact(8)
        .map(|it| Ok(u64::from_be_bytes(it.try_into()?)))
        .collect::<anyhow::Result<_>>()?;
    keys.sort_unstable();
    Ok(keys.iter().fold("keys".into(), |text, key| format!("{text} {key:x}")))
}

/// READ RESERVATION (SPC-5 6.15.3).
fn reservation(data: &[u8]) -> anyhow::Result<String> {
    if data.get(4..8).context("READ RESERVATION")? == [0; 4] {
        return Ok("free".into());
    }
    let key = u64::from_be_bytes(data.get(8..16).context("key")?.try_into()?);
    Ok(format!("held {} {key:x}", data.get(21).context("type")? & 0x0f))
}
