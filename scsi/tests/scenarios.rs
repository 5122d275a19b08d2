//! Runs the scripts in `scenarios/`: what hosts do, line by line, and what they are answered.
//!
//! ```text
//! # a comment
//! A: REGISTER key=0 new=10 -> GOOD          a command of host A and its outcome
//! B: WRITE 0 1 x -> CONFLICT
//! A: WRITE 0 1 y as w -> PENDING            named, because it does not end at once
//! w -> GOOD                                 how it ended since
//! store holds | store goes on | store fails one
//! controller holds | controller goes on | controller loses quorum | controller has quorum | a second passes
//! data w                                    the Data-Out of a command sent with `later`
//! map A 0=v 2=x                             a new LUN map
//! cluster tells 2A/09                       a Unit Attention for every nexus of the unit
//! ```
//!
//! Words behind a command: `as NAME`, `lun=N`, `ordered`, `head`, `aca` (attribute), `naca`, `later` (its data comes later). Hosts A, B and C start
//! with LUN 0 (the unit) and LUN 1 mapped and nothing pending; A and C use port 1, B port 2.

mod world;

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use holdfast_scsi::{
    device_server::{Response, TaskManagementFunction, TmfResponse},
    lun::Lun,
    port::MappedUnit,
    sense::{AdditionalSense, Sense, SenseKey},
    status::Status,
    task_set::{TaskAttribute, TaskId},
};
use world::{BLOCK, Ended, Pace, Quorum, VOLUME, World, cdbs};

struct Script {
    world: World,
    names: BTreeMap<String, u64>,
}

/// The words of one command line.
struct Words<'a> {
    plain: Vec<&'a str>,
    pairs: BTreeMap<&'a str, &'a str>,
}

impl<'a> Words<'a> {
    fn new(text: &'a str) -> Words<'a> {
        let (mut plain, mut pairs) = (Vec::new(), BTreeMap::new());
        for word in text.split_whitespace() {
            match word.split_once('=') {
                Some((name, value)) => _ = pairs.insert(name, value),
                None => plain.push(word),
            }
        }
        Words { plain, pairs }
    }

    fn has(&self, word: &str) -> bool {
        self.plain.contains(&word)
    }

    fn number(&self, at: usize) -> u64 {
        self.plain[at].parse().unwrap_or_else(|_| panic!("no number: {}", self.plain[at]))
    }

    fn fill(&self, at: usize) -> u8 {
        match self.plain[at] {
            "0" => 0,
            text => text.as_bytes()[0],
        }
    }

    fn key(&self, name: &str) -> u64 {
        self.pairs.get(name).map_or(0, |v| u64::from_str_radix(v, 16).unwrap())
    }

    fn kind(&self) -> u8 {
        match self.pairs.get("type").copied() {
            None => 0,
            Some("WE") => 1,
            Some("EA") => 3,
            Some("WERO") => 5,
            Some("EARO") => 6,
            Some("WEAR") => 7,
            Some("EAAR") => 8,
            Some(code) => u8::from_str_radix(code, 16).unwrap(),
        }
    }
}

impl Script {
    fn line(&mut self, line: &str) -> Result<(), String> {
        let (left, expected) = match line.split_once("->") {
            Some((left, right)) => (left.trim(), Some(right.trim())),
            None => (line.trim(), None),
        };
        let got = match left.split_once(':') {
            Some((host, text)) => self.act(host.trim().chars().next().unwrap(), &Words::new(text)),
            None => self.event(left),
        };
        match expected {
            Some(expected) if expected != got => Err(format!("expected {expected}, got {got}")),
            _ => Ok(()),
        }
    }

    fn event(&mut self, text: &str) -> String {
        let words: Vec<&str> = text.split_whitespace().collect();
        match words.as_slice() {
            ["store", "holds"] => self.world.store_pace = Pace::Holds,
            ["store", "goes", "on"] => {
                self.world.store_pace = Pace::Prompt;
                while self.world.release_one_io(false) {}
            }
            ["store", "fails", "one"] => assert!(self.world.release_one_io(true), "nothing is held"),
            ["store", "ends", "one"] => assert!(self.world.release_one_io(false), "nothing is held"),
            ["controller", "holds"] => self.world.controller_pace = Pace::Holds,
            ["controller", "goes", "on"] => {
                self.world.controller_pace = Pace::Prompt;
                while self.world.release_one_proposal() {}
            }
            ["controller", "loses", "quorum"] => self.world.quorum = Quorum::Lost,
            ["controller", "has", "quorum"] => self.world.quorum = Quorum::There,
            ["store", "has", sets] => self.world.store_has(sets.parse().unwrap()),
            ["cluster", "hands", "over"] => self.world.end_transition(true),
            ["cluster", "gives", "up"] => self.world.end_transition(false),
            ["other", "copy", "is", "behind"] => self.world.in_sync = false,
            ["other", "copy", "is", "in", "sync"] => self.world.in_sync = true,
            ["a", "second", "passes"] => self.world.pass_second(),
            ["data", name] => self.world.send_data(self.names[*name]),
            ["map", host, entries @ ..] => {
                let entry = |text: &&str| {
                    let (lun, volume) = text.split_once('=').unwrap();
                    let read_only = volume.ends_with("(ro)");
                    (lun.parse().unwrap(), MappedUnit { volume: volume.chars().next().unwrap(), read_only })
                };
                let map = entries.iter().map(entry).collect();
                let host = host.chars().next().unwrap();
                self.world.hosts.get_mut(&host).unwrap().port.install_map(map);
            }
            ["cluster", "tells", code] => {
                let (asc, ascq) = code.split_once('/').unwrap();
                let byte = |text| u8::from_str_radix(text, 16).unwrap();
                let additional = AdditionalSense::new(byte(asc), byte(ascq));
                for host in self.world.hosts.values_mut() {
                    host.port.raise(&VOLUME, additional);
                }
            }
            [name] => return self.outcome(self.names[*name], ""),
            _ => panic!("not understood: {text}"),
        }
        String::new()
    }

    fn act(&mut self, host: char, words: &Words<'_>) -> String {
        let verb = words.plain[0];
        if let Some(text) = self.manage(host, verb, words) {
            return text;
        }
        if verb == "RELOGIN" {
            self.world.relogin(host);
            return String::new();
        }
        let (cdb, data) = self.command(verb, words);
        let lun = Lun::from_number(words.key("lun") as u16).unwrap();
        let attribute = match () {
            () if words.has("ordered") => TaskAttribute::Ordered,
            () if words.has("head") => TaskAttribute::HeadOfQueue,
            () if words.has("aca") => TaskAttribute::Aca,
            () => TaskAttribute::Simple,
        };
        let mut cdb = cdb;
        if words.has("naca") {
            let at = if cdb[0] == 0x7f { 1 } else { cdb.len() - 1 };
            cdb[at] |= 0x04;
        }
        let id = self.world.send(host, lun, &cdb, data, words.has("later"), attribute);
        if let Some(at) = words.plain.iter().position(|w| *w == "as") {
            self.names.insert(words.plain[at + 1].to_string(), id);
        }
        self.outcome(id, verb)
    }

    fn manage(&mut self, host: char, verb: &str, words: &Words<'_>) -> Option<String> {
        let task = || TaskId(self.names[words.plain[1]]);
        let function = match verb {
            "ABORT-TASK" => TaskManagementFunction::AbortTask(task()),
            "QUERY-TASK" => TaskManagementFunction::QueryTask(task()),
            "ABORT-TASK-SET" => TaskManagementFunction::AbortTaskSet,
            "CLEAR-TASK-SET" => TaskManagementFunction::ClearTaskSet,
            "LUN-RESET" => TaskManagementFunction::LogicalUnitReset,
            "I-T-NEXUS-RESET" => TaskManagementFunction::ItNexusReset,
            "CLEAR-ACA" => TaskManagementFunction::ClearAca,
            "QUERY-TASK-SET" => TaskManagementFunction::QueryTaskSet,
            _ => return None,
        };
        let id = self.world.manage(host, function);
        if let Some(at) = words.plain.iter().position(|w| *w == "as") {
            self.names.insert(words.plain[at + 1].to_string(), id);
        }
        Some(self.outcome(id, ""))
    }

    fn command(&self, verb: &str, w: &Words<'_>) -> (Vec<u8>, Vec<u8>) {
        let none = Vec::new();
        let flags = || {
            let bit = |word, bit| if w.has(word) { bit } else { 0 };
            bit("aptpl", 0x01) | bit("all-ports", 0x04)
        };
        match verb {
            "TUR" => (vec![0; 6], none),
            "INQUIRY" => (vec![0x12, 0, 0, 0, 96, 0], none),
            "DEVICE-ID" => (vec![0x12, 1, 0x83, 1, 0, 0], none),
            "REQUEST-SENSE" => (vec![0x03, 0, 0, 0, 252, 0], none),
            "MODE-SENSE" => (vec![0x1a, 0, 0x3f, 0, 255, 0], none),
            // Bytes 2 to 5 of the Control mode page, as its fields make them.
            "CONTROL" => {
                let fields = [
                    0x02 | (w.key("tst") as u8) << 5 | (w.key("dsense") as u8) << 2,
                    0x10 | (w.key("qerr") as u8) << 1,
                    (w.key("intlck") as u8) << 4 | (w.key("swp") as u8) << 3,
                    (w.key("tas") as u8) << 6,
                ];
                cdbs::mode_select_control(w.has("save"), fields)
            }
            "CONTROL?" => (vec![0x1a, 0x08, if w.has("saved") { 0xca } else { 0x0a }, 0, 255, 0], none),
            "THRESHOLD" => cdbs::mode_select_threshold(w.number(1) as u32),
            "EXCEPTIONS" => cdbs::mode_select_exceptions(w.key("mrie") as u8),
            "FORMAT" => (vec![0x04, 0, 0, 0, 0, 0], none),
            "FORMAT-IMMED" => (vec![0x04, 0x10, 0, 0, 0, 0], vec![0, 0x02, 0, 0]),
            "ERASE" => (vec![0x48, if w.has("immed") { 0x82 } else { 0x02 }, 0, 0, 0, 0, 0, 0, 0, 0], none),
            "ERASE-MAY-EXIT" => (vec![0x48, 0x22, 0, 0, 0, 0, 0, 0, 0, 0], none),
            "EXIT-FAILURE" => (vec![0x48, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0], none),
            "OVERWRITE" => {
                let list =
                    vec![w.number(1) as u8 | if w.has("invert") { 0x80 } else { 0 }, 0, 0, 1, w.fill(2)];
                (vec![0x48, 0x01, 0, 0, 0, 0, 0, 0, 5, 0], list)
            }
            "WRITE-ECHO" => {
                let data = w.plain[1].as_bytes().to_vec();
                (vec![0x3b, 0x0a, 0, 0, 0, 0, 0, 0, data.len() as u8, 0], data)
            }
            "READ-ECHO" => (vec![0x3c, 0x0a, 0, 0, 0, 0, 0, 0, 64, 0], none),
            "CACHE-ON" => cdbs::mode_select_write_cache(true),
            "CACHE-OFF" => cdbs::mode_select_write_cache(false),
            "SET-TIMESTAMP" => {
                let mut list = vec![0; 12];
                list[2..10].copy_from_slice(&w.number(1).to_be_bytes());
                list[2..4].fill(0);
                (vec![0xa4, 0x0f, 0, 0, 0, 0, 0, 0, 0, 12, 0, 0], list)
            }
            "TIMESTAMP" => (vec![0xa3, 0x0f, 0, 0, 0, 0, 0, 0, 0, 12, 0, 0], none),
            "SET-IDENTIFYING" => {
                let text = w.plain[1].as_bytes().to_vec();
                (vec![0xa4, 0x06, 0, 0, 0, 0, 0, 0, 0, text.len() as u8, 0, 0], text)
            }
            "IDENTIFYING" => (vec![0xa3, 0x05, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0], none),
            "SET-SWP" => cdbs::mode_select_swp(true),
            "CLEAR-SWP" => cdbs::mode_select_swp(false),
            "READ-CAPACITY" => (vec![0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], none),
            "RTPG" => (vec![0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], none),
            // Group and state, as in 2=0 for active/optimized.
            "STPG" => {
                let mut list = vec![0; 4];
                for group in 1..=9u8 {
                    if let Some(state) = w.pairs.get(group.to_string().as_str()) {
                        list.extend([u8::from_str_radix(state, 16).unwrap(), 0, 0, group]);
                    }
                }
                (vec![0xa4, 0x0a, 0, 0, 0, 0, 0, 0, 0, list.len() as u8, 0, 0], list)
            }
            "REPORT-LUNS" => (vec![0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], none),
            "BAD" => (vec![0xff; 6], none),
            // RDPROTECT where there is no protection information.
            "WRONG-READ" => (cdbs::ten(0x28, 0x20, 0, 1), none),
            "READ-32" => (cdbs::thirty_two(0x09, w.number(1), w.number(2) as u32), none),
            "WRITE-32" => {
                let blocks = w.number(2);
                (cdbs::thirty_two(0x0b, w.number(1), blocks as u32), cdbs::fill(w.fill(3), blocks as usize))
            }
            "VERIFY-32" => (cdbs::thirty_two(0x0a, w.number(1), 1), none),
            "STATISTICS" => (vec![0x4d, 0, 0x59, 0, 0, 0, 0, 1, 0, 0], none),
            "LOG-RESET" => (vec![0x4c, 0x02, 0, 0, 0, 0, 0, 0, 0, 0], none),
            "LOG-LIST" => (vec![0x4c, 0, 0, 0, 0, 0, 0, 0, 8, 0], vec![0x19, 0, 0, 4, 0, 1, 0, 0]),
            "START" => (vec![0x1b, 0, 0, 0, 1, 0], none),
            "STOP" => (vec![0x1b, 0, 0, 0, 0, 0], none),
            "PREVENT" => (vec![0x1e, 0, 0, 0, 1, 0], none),
            "ALLOW" => (vec![0x1e, 0, 0, 0, 0, 0], none),
            "RESERVE-UNIT" => (vec![0x16, 0, 0, 0, 0, 0], none),
            "RELEASE-UNIT" => (vec![0x17, 0, 0, 0, 0, 0], none),
            "SYNC" => (cdbs::ten(0x35, 0, 0, 0), none),
            "READ" => (cdbs::ten(0x28, 0, w.number(1) as u32, w.number(2) as u16), none),
            "WRITE" => {
                let blocks = w.number(2);
                (
                    cdbs::ten(0x2a, 0, w.number(1) as u32, blocks as u16),
                    cdbs::fill(w.fill(3), blocks as usize),
                )
            }
            "SHORT-WRITE" => (cdbs::ten(0x2a, 0, 0, 2), cdbs::fill(b's', 1)),
            "WRITE-VERIFY" => (cdbs::ten(0x2e, 0x02, w.number(1) as u32, 1), cdbs::fill(w.fill(2), 1)),
            "VERIFY" => (cdbs::ten(0x2f, 0x02, w.number(1) as u32, 1), cdbs::fill(w.fill(2), 1)),
            "VERIFY-ALL" => {
                (cdbs::ten(0x2f, 0x06, w.number(1) as u32, w.number(2) as u16), cdbs::fill(w.fill(3), 1))
            }
            "WRITE-SAME" => {
                (cdbs::ten(0x41, 0, w.number(1) as u32, w.number(2) as u16), cdbs::fill(w.fill(3), 1))
            }
            "UNMAP" => cdbs::unmap(w.number(1), w.number(2) as u32),
            "WRITE-ATOMIC" => {
                let blocks = w.number(2) as u32;
                (cdbs::sixteen(0x9c, 0, w.number(1), blocks), cdbs::fill(w.fill(3), blocks as usize))
            }
            "ORWRITE" => (cdbs::sixteen(0x8b, 0, w.number(1), 1), cdbs::fill(w.fill(2), 1)),
            "CAW" => {
                let data = [cdbs::fill(w.fill(2), 1), cdbs::fill(w.fill(3), 1)].concat();
                (cdbs::compare_and_write(w.number(1), 1), data)
            }
            "GET-LBA-STATUS" => {
                let mut cdb = cdbs::sixteen(0x9e, 0x12, w.number(1), 64);
                cdb[14] = 0;
                (cdb, none)
            }
            "REGISTER" => cdbs::pr_out(0, 0, w.key("key"), w.key("new"), flags()),
            "REGISTER-IGNORE" => cdbs::pr_out(6, 0, 0, w.key("new"), flags()),
            "REGISTER-WITH" => {
                let others: Vec<_> =
                    w.pairs["others"].chars().map(|host| self.world.nexus(host).initiator).collect();
                cdbs::register_others(w.key("new"), &others)
            }
            "REGISTER-LONG" => cdbs::pr_out_with(0, 0, vec![0; 28]),
            "RESERVE" => cdbs::pr_out(1, w.kind(), w.key("key"), 0, 0),
            "RELEASE" => cdbs::pr_out(2, w.kind(), w.key("key"), 0, 0),
            "CLEAR" => cdbs::pr_out(3, 0, w.key("key"), 0, 0),
            "PREEMPT" => cdbs::pr_out(4, w.kind(), w.key("key"), w.key("victim"), 0),
            "PREEMPT-ABORT" => cdbs::pr_out(5, w.kind(), w.key("key"), w.key("victim"), 0),
            "MOVE" => {
                let to = self.world.nexus(w.pairs["to"].chars().next().unwrap());
                cdbs::register_and_move(
                    w.key("key"),
                    w.key("new"),
                    w.has("unregister"),
                    &to.initiator,
                    to.port.0,
                )
            }
            "KEYS" => (cdbs::pr_in(0), none),
            "RESERVATION" => (cdbs::pr_in(1), none),
            "STATUS" => (cdbs::pr_in(3), none),
            _ => panic!("not understood: {verb}"),
        }
    }

    fn outcome(&self, id: u64, verb: &str) -> String {
        if let Some(function) = self.world.functions.get(&id) {
            return match function {
                None => "PENDING",
                Some(TmfResponse::Complete) => "COMPLETE",
                Some(TmfResponse::Succeeded) => "SUCCEEDED",
                Some(TmfResponse::TaskDoesNotExist) => "NO-TASK",
                Some(TmfResponse::NotSupported) => "NOT-SUPPORTED",
                Some(TmfResponse::Rejected) => "REJECTED",
            }
            .into();
        }
        let Some(Ended { response, data_in }) = self.world.ended.get(&id) else { return "PENDING".into() };
        let Response::Completed(completion) = response else { return "ABORTED".into() };
        match (completion.status, completion.sense) {
            (Status::Good, _) => self.good(verb, data_in).trim_end().to_string(),
            (Status::ReservationConflict, _) => "CONFLICT".into(),
            (Status::Busy, _) => "BUSY".into(),
            (Status::TaskSetFull, _) => "FULL".into(),
            (_, Some(sense)) if sense.key == SenseKey::UnitAttention => format!("UA {}", sense.additional),
            (_, Some(sense)) => {
                let at = sense.information.map_or(String::new(), |at| format!(" at {at}"));
                format!("CHECK {}{at}", triple(&sense))
            }
            (status, None) => format!("{status:?}"),
        }
    }

    /// GOOD and what the data says.
    fn good(&self, verb: &str, data: &[u8]) -> String {
        let be64 = |at: usize| u64::from_be_bytes(data[at..at + 8].try_into().unwrap());
        let generation = || data.get(3).map_or(0, |b| *b);
        let mut text = String::from("GOOD ");
        match verb {
            "READ" | "READ-32" if data.is_empty() => {}
            "STATISTICS" => {
                let counters: Vec<String> = (0..4).map(|at| be64(8 + 8 * at).to_string()).collect();
                text.push_str(&counters.join(" "));
            }
            "READ" | "READ-32" => {
                for block in data.chunks(BLOCK) {
                    let same = block.iter().all(|b| *b == block[0]);
                    text.push(if !same {
                        '?'
                    } else if block[0] == 0 {
                        '0'
                    } else {
                        block[0] as char
                    });
                }
            }
            "KEYS" => {
                let keys: Vec<String> = data[8..].chunks(8).map(|k| format!("{:x}", k[7])).collect();
                write!(text, "gen={} {}", generation(), keys.join(" ")).unwrap();
            }
            "RESERVATION" if data.len() == 8 => text.push_str("none"),
            "RESERVATION" => write!(text, "key={:x} type={}", be64(8), data[21]).unwrap(),
            "STATUS" => {
                let mut at = 8;
                while at < data.len() {
                    let len = u32::from_be_bytes(data[at + 20..at + 24].try_into().unwrap()) as usize;
                    let id = &data[at + 24..at + 24 + len];
                    let host =
                        self.world.hosts.iter().find(|(_, h)| h.port.nexus().initiator.as_bytes() == id);
                    let star = if data[at + 12] & 1 == 1 { "*" } else { "" };
                    let host = host.map_or('?', |(name, _)| *name);
                    write!(text, "{host}{}:{:x}{star} ", data[at + 19], be64(at)).unwrap();
                    at += 24 + len;
                }
            }
            "RTPG" => {
                let states: Vec<String> =
                    data[4..].chunks(12).map(|group| format!("{}={}", group[3], group[0] & 0x0f)).collect();
                text.push_str(&states.join(" "));
            }
            "REPORT-LUNS" => {
                let luns: Vec<String> = data[8..].chunks(8).map(|l| l[1].to_string()).collect();
                text.push_str(&luns.join(" "));
            }
            "REQUEST-SENSE" if data[15] & 0x80 != 0 => {
                let sense = Sense::parse(data).unwrap();
                write!(text, "{} progress", triple(&sense)).unwrap();
            }
            "REQUEST-SENSE" => text.push_str(&triple(&Sense::parse(data).unwrap())),
            "INQUIRY" => write!(text, "{:02x}", data[0]).unwrap(),
            "READ-ECHO" => text.push_str(std::str::from_utf8(data).unwrap()),
            "CONTROL?" => {
                write!(text, "{:02x} {:02x} {:02x} {:02x}", data[6], data[7], data[8], data[9]).unwrap();
            }
            "TIMESTAMP" => write!(text, "origin {} {}", data[2], be64(2) & 0xffff_ffff_ffff).unwrap(),
            "IDENTIFYING" => text.push_str(std::str::from_utf8(&data[4..]).unwrap()),
            "MODE-SENSE" if data[2] & 0x80 != 0 => text.push_str("protected"),
            _ => {}
        }
        text
    }
}

fn triple(sense: &Sense) -> String {
    format!("{:02X}/{}", sense.key as u8, sense.additional)
}

fn run(path: &Path) -> Result<(), String> {
    let text = fs::read_to_string(path).map_err(|e| e.to_string())?;
    let mut script = Script { world: World::new(), names: BTreeMap::new() };
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or("").trim();
        if !line.is_empty() {
            script.line(line).map_err(|e| format!("{}:{}: {line}: {e}", path.display(), number + 1))?;
        }
    }
    script.world.release_all();
    if !script.world.live_tasks().is_empty() {
        return Err(format!("{}: tasks never ended", path.display()));
    }
    Ok(())
}

#[test]
fn every_scenario_goes_as_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 25, "the scenarios are missing");
    let failures: Vec<String> = paths.iter().filter_map(|path| run(path).err()).collect();
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

#[test]
fn a_wrong_expectation_fails() {
    let mut script = Script { world: World::new(), names: BTreeMap::new() };
    assert!(script.line("A: TUR -> GOOD").is_ok());
    assert!(script.line("A: TUR -> CONFLICT").is_err());
    assert!(script.line("A: READ 0 1 -> GOOD x").is_err());
}
