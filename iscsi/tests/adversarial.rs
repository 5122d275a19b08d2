//! What an initiator must not say, or says to no good end, one case a line: `adversarial/*.txt`.
//!
//! A file is a list of classes, each begun by `== name` and listed with its number of cases in `docs/vulnerabilities.md`. A case is
//!
//! ```text
//! STEP ; STEP ; ...  =>  OUTCOME , OUTCOME , ...
//! ```
//!
//! Steps:
//!
//! ```text
//! keys K=V ...           the operational keys of the login that goes before all other steps
//! discovery | bare       the session before all other steps is one for discovery; there is none
//! chap | mutual          the portal asks for CHAP of alice; it can answer for itself too
//! say CSG[>NSG] K=V ...  a login request; the key `names` stands for InitiatorName and TargetName
//! more CSG K=V ...       the same with the C bit
//! pdu OPCODE FLAGS [FIELD=HEX ...] [sn=+N] [len=N] [lie=N] [ahs=HEX]
//!                        any header; fields: itt w20 w32 w36 w40 w44 h20 b2 b3 b5 lun; lie: a data segment length without its data
//! text K=V ...           a text request
//! raw HEX                any bytes
//! TIMES x STEP           the step so often
//! complete               every task ends GOOD
//! wait MS                time passes
//! ```
//!
//! Outcomes, in their order, are what the shell is told and what the initiator is sent; `-` is nothing. A value `A*N` is A N times, `%20` a
//! space, `@answer:SECRET` the CHAP response to the last challenge, `@echo` that challenge. With the variable `SHOW` set
//! each case is printed with what came of it.

mod support;

use holdfast_iscsi::chap::{Algorithm, Challenge};
use holdfast_iscsi::initiator::{Received, TargetPdu, keys_text};
use holdfast_iscsi::pdu::{Bhs, LoginRequestPdu, Stage};
use holdfast_iscsi::{Event, Instant, ScsiOutcome, TaskManagementResponse, TaskTag};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use support::{Chap, INITIATOR, Portal, TARGET};

/// What a session of one initiator may hold after a case, in bytes: the longest data of one command, and small change.
const HELD_MAX: usize = 17 << 20;

/// Classes with their cases.
fn classes() -> Vec<(String, Vec<String>)> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/adversarial");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut classes: Vec<(String, Vec<String>)> = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            match line.strip_prefix("== ") {
                Some(name) => classes.push((name.to_owned(), Vec::new())),
                None => classes.last_mut().expect("a class begins with ==").1.push(line.to_owned()),
            }
        }
    }
    classes
}

#[test]
fn cases() {
    let show = std::env::var_os("SHOW").is_some();
    let mut wrong = String::new();
    for (class, cases) in classes() {
        if show {
            println!("== {class}");
        }
        for case in cases {
            let (steps, expected) = case.split_once("=>").unwrap_or_else(|| panic!("{case}: no =>"));
            let mut play = Play::new(steps);
            steps.split(';').for_each(|step| play.step(step.trim()));
            let found = play.summary();
            let held = play.portal.connection.bytes_held();
            assert!(held <= HELD_MAX, "{class}: {case}: {held} bytes are held");
            if show {
                println!("{}  =>  {found}", steps.trim());
            }
            if found != expected.split_whitespace().collect::<Vec<_>>().join(" ") {
                let _ = writeln!(
                    wrong,
                    "{class}: {}\n  expected {}\n  found    {found}",
                    steps.trim(),
                    expected.trim()
                );
            }
        }
    }
    assert!(wrong.is_empty() || show, "{wrong}");
}

/// `docs/vulnerabilities.md` lists every class with its number of cases, and there are more than three hundred.
#[test]
fn document_counts_every_class() {
    let document = include_str!("../../docs/vulnerabilities.md");
    let classes = classes();
    for (class, cases) in &classes {
        let mut seen = std::collections::BTreeSet::new();
        let twice: Vec<_> = cases.iter().filter(|case| !seen.insert(case.split("=>").next())).collect();
        assert!(twice.is_empty(), "{class}: {twice:?}");
        let row = format!("| {class} | {} |", cases.len());
        assert!(document.contains(&row), "the document does not say: {row}");
    }
    let total: usize = classes.iter().map(|(_, cases)| cases.len()).sum();
    assert!(total > 300, "{total} cases");
    assert!(document.contains(&format!("{total} cases")), "the document does not say: {total} cases");
}

struct Play {
    portal: Portal,
    tasks: Vec<TaskTag>,
    tags: BTreeMap<u64, u32>,
    found: Vec<String>,
    /// CmdSN behind the login.
    first_sn: u32,
    challenge: BTreeMap<String, String>,
}

impl Play {
    /// With whatever login the steps want first.
    fn new(steps: &str) -> Self {
        let mut portal = Portal::default();
        let words = |name: &str| steps.split(';').map(str::trim).find_map(|step| step.strip_prefix(name));
        let secret = |name: &str, secret: &str| (name.to_owned(), secret.to_owned());
        if words("chap").or(words("mutual")).is_some() {
            let mutual = words("mutual").map(|_| secret("array", "close-sesame-5678"));
            portal.chap =
                Some(Chap { user: secret("alice", "open-sesame-1234"), mutual, weakest: Algorithm::Md5 });
        } else if words("discovery").is_some() {
            portal.log_in_for_discovery();
        } else if words("bare").is_none() {
            let keys = words("keys").unwrap_or_default();
            let keys: Vec<_> = keys.split_whitespace().map(|word| word.split_once('=').unwrap()).collect();
            portal.log_in(&keys);
        }
        let first_sn = portal.initiator.cmd_sn;
        let (tasks, tags, found) = (Vec::new(), BTreeMap::new(), Vec::new());
        Self { portal, tasks, tags, found, first_sn, challenge: BTreeMap::new() }
    }

    fn step(&mut self, step: &str) {
        let words: Vec<&str> = step.split_whitespace().collect();
        match words[0] {
            "keys" | "discovery" | "bare" | "chap" | "mutual" => return,
            "say" => self.say(false, words[1], &words[2..]),
            "more" => self.say(true, words[1], &words[2..]),
            "pdu" => self.pdu(&words[1..]),
            "text" => {
                let text = self.text(&words[1..]);
                let bhs = self.header(0x44, 0x80, &["itt=70", "w20=ffffffff"]);
                let frame = self.portal.initiator.frame(bhs, &[], &text);
                self.portal.give(&frame);
            }
            "raw" => {
                let bytes = unhex(&words[1..].concat());
                self.portal.give(&bytes);
            }
            "complete" => {
                for tag in std::mem::take(&mut self.tasks) {
                    self.portal.connection.complete(tag, ScsiOutcome::status(0));
                }
            }
            "wait" => {
                self.portal.now = Instant(self.portal.now.0 + words[1].parse::<u64>().unwrap());
                self.portal.connection.handle_timeout(self.portal.now);
                self.portal.routine();
            }
            times if words.get(1) == Some(&"x") => {
                for _ in 0..times.parse::<u32>().unwrap() {
                    self.step(&words[2..].join(" "));
                }
                return;
            }
            other => panic!("{other}: no such step"),
        }
        self.outcomes();
    }

    /// Outcomes in their order; what came several times in a row once, with its number.
    fn summary(&self) -> String {
        let mut found: Vec<(usize, &str)> = Vec::new();
        for outcome in &self.found {
            match found.last_mut() {
                Some((times, last)) if *last == outcome.as_str() => *times += 1,
                _ => found.push((1, outcome.as_str())),
            }
        }
        let words = found.iter().map(|(times, outcome)| match times {
            1 => (*outcome).to_owned(),
            _ => format!("{times} x {outcome}"),
        });
        let words: Vec<String> = words.collect();
        if words.is_empty() { "-".to_owned() } else { words.join(" , ") }
    }

    fn say(&mut self, more: bool, stages: &str, words: &[&str]) {
        let stage = |text: &str| match text {
            "0" => Stage::Security,
            "1" => Stage::Operational,
            "3" => Stage::FullFeature,
            _ => panic!("no stage {text}"),
        };
        let (current, next) = match stages.split_once('>') {
            Some((current, next)) => (current, Some(stage(next))),
            None => (stages, None),
        };
        let text = self.text(words);
        let header = self.portal.initiator.login_header(stage(current), next);
        let frame = self.portal.initiator.frame(LoginRequestPdu { more, ..header }.encode(), &[], &text);
        self.portal.give(&frame);
    }

    fn text(&self, words: &[&str]) -> Vec<u8> {
        let mut keys: Vec<(String, String)> = Vec::new();
        let mut raw = Vec::new();
        for word in words {
            match word.split_once('=') {
                _ if *word == "names" => {
                    keys.push(("InitiatorName".into(), INITIATOR.into()));
                    keys.push(("TargetName".into(), TARGET.into()));
                }
                Some(("hex", digits)) => raw.extend(unhex(digits)),
                Some((key, value)) => keys.push((self.spell(key), self.spell(value))),
                None => panic!("{word} is no key"),
            }
        }
        let keys: Vec<(&str, &str)> =
            keys.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        [keys_text(&keys), raw].concat()
    }

    fn spell(&self, value: &str) -> String {
        let challenge = &self.challenge;
        match value.split_once(':') {
            Some(("@answer", secret)) => {
                let number = &challenge["CHAP_A"];
                let algorithm = Algorithm::ALL.into_iter().find(|a| a.number().to_string() == *number);
                let asked = Challenge {
                    id: challenge["CHAP_I"].parse().unwrap(),
                    bytes: unhex(&challenge["CHAP_C"][2..]),
                };
                let bytes = algorithm.unwrap().response(asked.id, secret.as_bytes(), &asked.bytes);
                format!("0x{}", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
            }
            _ if value == "@echo" => challenge["CHAP_C"].clone(),
            _ => match value.split_once('*').and_then(|(s, n)| Some((s, n.parse::<usize>().ok()?))) {
                Some((piece, times)) => piece.repeat(times),
                None => value.replace("%20", " "),
            },
        }
    }

    fn header(&self, opcode: u8, flags: u8, fields: &[&str]) -> Bhs {
        let mut bhs = Bhs([0; 48]);
        (bhs.0[0], bhs.0[1]) = (opcode, flags);
        bhs.0[24..28].copy_from_slice(&self.first_sn.to_be_bytes());
        for field in fields {
            let (name, value) = field.split_once('=').unwrap_or_else(|| panic!("{field}: no field"));
            let at = match name {
                "itt" => 16,
                "w20" | "h20" => 20,
                "w32" => 32,
                "w36" => 36,
                "w40" => 40,
                "w44" => 44,
                "b2" => 2,
                "b3" => 3,
                "b5" => 5,
                "lun" => 8,
                "sn" => {
                    let ahead: i32 = value.parse().unwrap();
                    let sn = self.first_sn.wrapping_add_signed(ahead);
                    bhs.0[24..28].copy_from_slice(&sn.to_be_bytes());
                    continue;
                }
                "len" | "lie" | "ahs" => continue,
                _ => panic!("{field}: no such field"),
            };
            let number = u64::from_str_radix(value, 16).unwrap_or_else(|_| panic!("{field}"));
            match name.as_bytes()[0] {
                b'b' => bhs.0[at] = number as u8,
                b'h' => bhs.0[at..at + 2].copy_from_slice(&(number as u16).to_be_bytes()),
                b'l' => bhs.0[at..at + 8].copy_from_slice(&number.to_be_bytes()),
                _ => bhs.0[at..at + 4].copy_from_slice(&(number as u32).to_be_bytes()),
            }
        }
        bhs
    }

    fn pdu(&mut self, words: &[&str]) {
        let byte = |at: usize| u8::from_str_radix(words[at], 16).unwrap();
        let option = |name: &str| words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        let number = |name: &str| option(name).map(|value| value.parse::<usize>().unwrap());
        let bhs = self.header(byte(0), byte(1), &words[2..]);
        let data = vec![7; number("len").unwrap_or(0)];
        let additional = option("ahs").map(unhex).unwrap_or_default();
        let mut frame = self.portal.initiator.frame(bhs, &additional, &data);
        if let Some(lie) = number("lie") {
            frame[5..8].copy_from_slice(&(lie as u32).to_be_bytes()[1..]);
        }
        self.portal.give(&frame);
    }

    /// What the shell was told and the initiator was sent since.
    fn outcomes(&mut self) {
        for event in std::mem::take(&mut self.portal.events) {
            let said = match event {
                Event::Command(command) => {
                    self.tasks.push(command.tag);
                    self.tags.insert(command.tag.number(), command.initiator_task_tag);
                    let data = match command.data {
                        holdfast_iscsi::DataState::None => String::new(),
                        holdfast_iscsi::DataState::Complete(data) => format!(" with {}", data.len()),
                        holdfast_iscsi::DataState::Awaited => " awaits".to_owned(),
                    };
                    format!("command {:x}{data}", command.initiator_task_tag)
                }
                Event::DataOut { tag, data } => format!("data {:x} {}", self.tags[&tag.number()], data.len()),
                Event::DataOutFailed { tag, condition } => {
                    let (asc, ascq) = condition.additional_sense();
                    format!("failed {:x} {asc:02x}/{ascq:02x}", self.tags[&tag.number()])
                }
                Event::TaskManagement(request) => {
                    let name = format!("{:?}", request.function);
                    let complete = TaskManagementResponse::Complete;
                    self.portal.connection.task_management_answer(request.id, complete);
                    format!("function {}", name.split('(').next().unwrap())
                }
                other => format!("{other:?}"),
            };
            self.found.push(said);
        }
        for received in self.portal.received() {
            let said = self.sent(&received);
            self.found.push(said);
        }
        if let Some(reason) = self.portal.closed.take() {
            let reason = format!("{reason:?}");
            self.found.push(format!("closed {}", reason.replace("ProtocolError", "").replace('"', "'")));
        }
    }

    fn sent(&mut self, received: &Received) -> String {
        match received.pdu {
            TargetPdu::ScsiResponse(pdu) => {
                let sense = match received.data.get(14..16) {
                    Some([asc, ascq]) => format!(" sense {asc:02x}/{ascq:02x}"),
                    _ => String::new(),
                };
                format!("response {:x} status {:x}{sense}", pdu.initiator_task_tag, pdu.status)
            }
            TargetPdu::ReadyToTransfer(pdu) => {
                format!("r2t {:x} {}+{}", pdu.initiator_task_tag, pdu.buffer_offset, pdu.desired_len)
            }
            TargetPdu::TaskManagement(pdu) => format!("function response {}", pdu.response),
            TargetPdu::NopIn(pdu) => format!("nop {:x} {}", pdu.initiator_task_tag, received.data.len()),
            TargetPdu::Logout(_) => format!("logout {}", received.bhs.0[2]),
            TargetPdu::Reject(pdu) => format!("reject {:?}", pdu.reason),
            TargetPdu::Text(pdu) => {
                let kind = if pdu.last { "text" } else { "text goes on" };
                format!("{kind} {}", received.keys().join(" ")).trim_end().to_owned()
            }
            TargetPdu::Login(pdu) => {
                let mut said = format!("login {:04x}", pdu.status);
                if pdu.next_stage.is_some() {
                    said.push_str(" transit");
                }
                for pair in received.keys() {
                    let (key, value) = pair.split_once('=').unwrap();
                    self.challenge.insert(key.to_owned(), value.to_owned());
                    // Always there, or never the same.
                    match key {
                        "TargetPortalGroupTag" if value != "Reject" => {}
                        "MaxRecvDataSegmentLength" if value != "Reject" => {}
                        "CHAP_I" | "CHAP_C" | "CHAP_R" => _ = write!(said, " {key}=?"),
                        _ => _ = write!(said, " {pair}"),
                    }
                }
                said
            }
            ref other => format!("{other:?}"),
        }
    }
}

fn unhex(digits: &str) -> Vec<u8> {
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}
