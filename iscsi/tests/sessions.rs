//! Runs the dialogues in `sessions/*.txt`: sessions of several connections, seen from the initiator and from the shell.
//!
//! A file is a list of scenarios, each begun by `== name`. A connection is named by its number (CID); a letter behind it makes
//! another connection of the same number. CmdSNs count from that of the login. Lines:
//!
//! ```text
//! 1 login [KEY=VALUE ...]                      begins the session, or joins it
//! 1 joins | 2b waits | 3 refused 0206          what became of a login that joins
//! 1 read a sn=0 | write a sn=0 [len=512]       a command, named by a letter; a write sends no data unasked
//! 1 data a | nop sn=0 | tmf CODE sn=0 [immediate] [task=a] | logout CID [sn=0] | end sn=0 | raw HEX
//! 1 gets response a | r2t a | function CODE | nop | logout CODE | reject CODE | async CODE | nothing
//! 1 window EXP MAX                             numbers of the last PDU, relative as well
//! shell command a | data a | aborts a | function CODE | ended CID | closed REASON | nothing
//! shell completes a | discards a | answers CODE | forgets 2 | asks for a logout | waits MS
//! ```

mod support;

use holdfast_iscsi::initiator::{Initiator, Received, TargetPdu};
use holdfast_iscsi::pdu::{
    CommandNumbers, LogoutReason, LogoutRequest, NopOut, ReadyToTransfer, ScsiCommand, Stage, TAG_NONE,
    TaskManagementRequest,
};
use holdfast_iscsi::{
    Admission, Connection, Event, Instant, Join, LinkId, LoginAnswer, PortalConfig, PortalOptions,
    ScsiOutcome, SessionStart, TaskAttribute, TaskManagement, TaskManagementFunction, TaskManagementResponse,
    TaskTag,
};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::num::NonZeroU16;
use std::sync::Arc;
use support::{ENTROPY, INITIATOR, TARGET, TSIH};

const BASE: u32 = 1000;

/// One connection of the initiator's.
struct Side {
    initiator: Initiator,
    received: VecDeque<Received>,
    link: Option<LinkId>,
    last: (u32, u32),
    /// Until it is in the session.
    joining: Option<Connection<Vec<u8>>>,
    waits_for: Option<LinkId>,
}

#[derive(Default)]
struct Play {
    engine: Option<Connection<Vec<u8>>>,
    sides: BTreeMap<String, Side>,
    events: VecDeque<Event>,
    /// Tasks by letter: initiator task tag is the letter's code.
    tags: HashMap<char, TaskTag>,
    function: Option<TaskManagement>,
    r2ts: HashMap<char, ReadyToTransfer>,
    now: u64,
}

#[test]
fn sessions() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sessions");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut count = 0;
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        for scenario in text.split("\n== ").skip(1) {
            let (head, body) = scenario.split_once('\n').unwrap();
            let mut play = Play::default();
            for line in body.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
            {
                play.line(line, &format!("{head}: {line}"));
            }
            play.done(head);
            count += 1;
        }
    }
    assert!(count >= 20, "only {count} scenarios were found");
}

fn letter(word: &str) -> char {
    word.chars().next().unwrap()
}

fn option<'a>(words: &[&'a str], name: &str) -> Option<&'a str> {
    words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

fn numbers(words: &[&str]) -> CommandNumbers {
    let sn = option(words, "sn").map_or(0, |sn| sn.parse::<u32>().unwrap());
    let immediate = words.contains(&"immediate") || option(words, "sn").is_none();
    CommandNumbers { immediate, cmd_sn: BASE + sn, exp_stat_sn: 0 }
}

impl Play {
    fn done(&mut self, head: &str) {
        for (name, side) in &self.sides {
            assert!(side.received.is_empty(), "{head}: {name} was sent more: {:?}", side.received);
        }
        assert!(self.events.is_empty(), "{head}: {:?}", self.events);
    }

    fn line(&mut self, line: &str, place: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[0] {
            "shell" => self.shell(&words[1..], place),
            who if words[1] == "gets" => self.gets(who, &words[2..], place),
            who => self.side(who, words[1], &words[2..], place),
        }
    }

    fn engine(&mut self) -> &mut Connection<Vec<u8>> {
        self.engine.as_mut().expect("a session")
    }

    fn give(&mut self, who: &str, bytes: &[u8]) {
        let (now, link) = (Instant(self.now), self.sides[who].link.expect("in the session"));
        self.engine().handle_input_of(link, now, bytes);
        self.collect();
    }

    /// What the engine has to say to everyone.
    fn collect(&mut self) {
        let Some(engine) = &mut self.engine else { return };
        while let Some(event) = engine.poll_event() {
            if let Event::Command(command) = &event {
                let letter = char::from_u32(command.initiator_task_tag).unwrap();
                self.tags.insert(letter, command.tag);
            }
            self.events.push_back(event);
        }
        for side in self.sides.values_mut() {
            let Some(link) = side.link else { continue };
            let bytes: Vec<u8> = engine.segments_of(link).flatten().copied().collect();
            engine.advance_of(link, bytes.len());
            for received in side.initiator.receive(&bytes).expect("a sound stream") {
                let bhs = &received.bhs.0;
                let word = |at: usize| u32::from_be_bytes(bhs[at..at + 4].try_into().unwrap());
                side.last = (word(28).wrapping_sub(BASE), word(32).wrapping_sub(BASE));
                side.received.push_back(received);
            }
        }
    }

    fn side(&mut self, who: &str, verb: &str, words: &[&str], place: &str) {
        let cid: u16 = who.trim_end_matches(char::is_alphabetic).parse().unwrap();
        let lun = [0; 8];
        match verb {
            "login" => self.login(who, cid, words),
            "joins" => assert!(self.sides[who].link.is_some(), "{place}"),
            "waits" => assert!(self.sides[who].waits_for.is_some(), "{place}"),
            "refused" => {
                let last = self.sides.get_mut(who).unwrap().received.pop_front().expect(place);
                let TargetPdu::Login(pdu) = last.pdu else { panic!("{place}: {last:?}") };
                assert_eq!(format!("{:04x}", pdu.status), words[0], "{place}");
            }
            "window" => {
                let (exp, max) = self.sides[who].last;
                assert_eq!(format!("{exp} {}", max as i32), words.join(" "), "{place}");
            }
            "read" | "write" => {
                let tag = letter(words[0]);
                let write = verb == "write";
                let expected = option(words, "len").map_or(512, |len| len.parse().unwrap());
                let header = ScsiCommand {
                    last: true,
                    read: !write,
                    write,
                    attribute: TaskAttribute::Simple,
                    priority: option(words, "priority").map_or(0, |priority| priority.parse().unwrap()),
                    lun,
                    initiator_task_tag: tag.into(),
                    expected_data_len: expected,
                    numbers: numbers(words),
                    cdb: [0; 16],
                };
                let bytes = self.sides[who].initiator.frame(header.encode(), &[], &[]);
                self.give(who, &bytes);
            }
            "data" => {
                let r2t = self.r2ts[&letter(words[0])];
                let data = vec![7; (r2t.buffer_offset + r2t.desired_len) as usize];
                let bytes = self.sides[who].initiator.solicited(&r2t, &data, 8192);
                self.give(who, &bytes);
            }
            "nop" => {
                let numbers = numbers(words);
                let header =
                    NopOut { lun, initiator_task_tag: 0x7000, target_transfer_tag: TAG_NONE, numbers };
                let bytes = self.sides[who].initiator.frame(header.encode(), &[], b"ping");
                self.give(who, &bytes);
            }
            "tmf" => {
                let header = TaskManagementRequest {
                    function: words[0].parse().unwrap(),
                    lun,
                    initiator_task_tag: 0x8000,
                    referenced_task_tag: option(words, "task").map_or(TAG_NONE, |task| letter(task).into()),
                    ref_cmd_sn: BASE,
                    numbers: numbers(words),
                };
                let bytes = self.sides[who].initiator.frame(header.encode(), &[], &[]);
                self.give(who, &bytes);
            }
            "logout" | "end" => {
                let reason =
                    if verb == "end" { LogoutReason::CloseSession } else { LogoutReason::CloseConnection };
                let cid = words.first().and_then(|word| word.parse().ok()).unwrap_or(cid);
                let header =
                    LogoutRequest { reason, initiator_task_tag: 0x9000, cid, numbers: numbers(words) };
                let bytes = self.sides[who].initiator.frame(header.encode(), &[], &[]);
                self.give(who, &bytes);
            }
            "raw" => {
                let hex = words.concat();
                let bytes: Vec<u8> = (0..hex.len())
                    .step_by(2)
                    .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
                    .collect();
                self.give(who, &bytes);
            }
            _ => panic!("{place}: cannot {verb}"),
        }
    }

    fn login(&mut self, who: &str, cid: u16, words: &[&str]) {
        let options = PortalOptions { command_window: 8, max_connections: 3, ..PortalOptions::default() };
        let mut connection =
            Connection::new(Arc::new(PortalConfig::new(options).unwrap()), Instant(0), ENTROPY);
        let mut initiator = Initiator::default();
        initiator.cmd_sn = BASE;
        let mut header = initiator.login_header(Stage::Operational, Some(Stage::FullFeature));
        header.cid = cid;
        header.tsih = if self.engine.is_some() { TSIH } else { 0 };
        let mut keys = vec![("InitiatorName", INITIATOR), ("TargetName", TARGET)];
        keys.extend(words.iter().filter_map(|word| word.split_once('=')));
        if self.engine.is_none() && !words.iter().any(|word| word.starts_with("MaxConnections")) {
            keys.push(("MaxConnections", "3"));
        }
        let text = holdfast_iscsi::initiator::keys_text(&keys);
        let bytes = initiator.frame(header.encode(), &[], &text);
        connection.handle_input(Instant(self.now), &bytes);
        let mut starting = false;
        while let Some(event) = connection.poll_event() {
            match event {
                Event::Login(_) => {
                    let admission = Admission { chap: None, target_portal_group_tag: 1, moved_to: None };
                    connection.login_answer(Instant(self.now), LoginAnswer::Accept(admission));
                }
                Event::SessionStarting(_) => starting = true,
                other => panic!("{other:?}"),
            }
        }
        assert!(starting, "{who}: the login did not come so far");
        let mut side = Side {
            initiator,
            received: VecDeque::new(),
            link: None,
            last: (0, 0),
            joining: None,
            waits_for: None,
        };
        if self.engine.is_none() {
            connection.start_session(Instant(self.now), SessionStart::Go(NonZeroU16::new(TSIH).unwrap()));
            side.link = Some(LinkId::LEADING);
            self.engine = Some(connection);
        } else {
            side.joining = Some(connection);
        }
        self.sides.insert(who.to_owned(), side);
        self.try_join(who, cid);
        self.collect();
        // The login response was read; the test is about what comes behind it.
        let side = self.sides.get_mut(who).unwrap();
        if side.link.is_some() {
            assert!(
                matches!(side.received.pop_front().unwrap().pdu, TargetPdu::Login(pdu) if pdu.status == 0)
            );
        }
    }

    fn try_join(&mut self, who: &str, cid: u16) {
        let Some(engine) = &mut self.engine else { return };
        let side = self.sides.get_mut(who).unwrap();
        let Some(mut joining) = side.joining.take() else { return };
        let refuse = |mut joining: Connection<Vec<u8>>, side: &mut Side| {
            let status = holdfast_iscsi::LoginStatus::TooManyConnections;
            joining.start_session(Instant(0), SessionStart::Refuse(status));
            let bytes: Vec<u8> = joining.segments().flatten().copied().collect();
            side.received.extend(side.initiator.receive(&bytes).unwrap());
        };
        match engine.join(cid) {
            Join::Go { exp_cmd_sn, max_cmd_sn } => {
                let tsih = NonZeroU16::new(TSIH).unwrap();
                let start = SessionStart::Join { tsih, exp_cmd_sn, max_cmd_sn };
                joining.start_session(Instant(self.now), start);
                side.link = engine.take_in(joining);
                side.waits_for = None;
            }
            Join::Wait(link) => {
                side.waits_for = Some(link);
                side.joining = Some(joining);
            }
            Join::TooMany => refuse(joining, side),
            Join::Ended => panic!("the session is over"),
        }
    }

    fn gets(&mut self, who: &str, words: &[&str], place: &str) {
        let side = self.sides.get_mut(who).unwrap();
        let Some(received) = side.received.pop_front() else {
            return assert_eq!(words, ["nothing"], "{place}: it was sent nothing");
        };
        let found = match received.pdu {
            TargetPdu::ScsiResponse(pdu) => {
                let letter = char::from_u32(pdu.initiator_task_tag).unwrap();
                match (pdu.status, pdu.status_qualifier) {
                    (0, 0) => format!("response {letter}"),
                    (status, qualifier) => {
                        format!("response {letter} status={status:02x} qualifier={qualifier:04x}")
                    }
                }
            }
            TargetPdu::ReadyToTransfer(pdu) => {
                let letter = char::from_u32(pdu.initiator_task_tag).unwrap();
                self.r2ts.insert(letter, pdu);
                format!("r2t {letter}")
            }
            TargetPdu::TaskManagement(pdu) => match pdu.additional {
                [0, 0, 0] => format!("function {}", pdu.response),
                [a, b, c] => format!("function {} {a:02x} {b:02x} {c:02x}", pdu.response),
            },
            TargetPdu::NopIn(_) => "nop".to_owned(),
            TargetPdu::Logout(_) => format!("logout {}", received.bhs.0[2]),
            TargetPdu::Reject(_) => format!("reject {}", received.bhs.0[2]),
            TargetPdu::Async(_) => format!("async {}", received.bhs.0[36]),
            other => format!("{other:?}"),
        };
        assert_eq!(found, words.join(" "), "{place}");
    }

    fn shell(&mut self, words: &[&str], place: &str) {
        let tag = |play: &Play| play.tags[&letter(words[1])];
        match words[0] {
            "completes" => {
                let tag = tag(self);
                let hex = |name| option(words, name).map_or(0, |text| u16::from_str_radix(text, 16).unwrap());
                let outcome =
                    ScsiOutcome::status(hex("status") as u8).with_status_qualifier(hex("qualifier"));
                self.engine().complete(tag, outcome);
                return self.collect();
            }
            "discards" => {
                let tag = tag(self);
                self.engine().discard_task(tag);
                return self.collect();
            }
            "answers" => {
                let id = self.function.take().expect(place).id;
                let response = match words[1] {
                    "0" => TaskManagementResponse::Complete,
                    "1" => TaskManagementResponse::TaskDoesNotExist,
                    "7" => {
                        let byte =
                            |at: usize| words.get(at).map_or(0, |text| u8::from_str_radix(text, 16).unwrap());
                        TaskManagementResponse::Succeeded([byte(2), byte(3), byte(4)])
                    }
                    _ => TaskManagementResponse::Rejected,
                };
                self.engine().task_management_answer(id, response);
                return self.collect();
            }
            "forgets" => {
                let link = self.sides.get_mut(words[1]).unwrap().link.take().unwrap();
                return self.engine().forget_link(link);
            }
            "asks" => {
                let now = Instant(self.now);
                self.engine().request_logout(now, 5);
                return self.collect();
            }
            "waits" => {
                self.now += words[1].parse::<u64>().unwrap();
                let now = Instant(self.now);
                self.engine().handle_timeout(now);
                return self.collect();
            }
            _ => {}
        }
        let Some(event) = self.events.pop_front() else {
            return assert_eq!(words, ["nothing"], "{place}: the shell was told nothing");
        };
        match event {
            Event::Command(command) => {
                let letter = char::from_u32(command.initiator_task_tag).unwrap();
                let found = match command.priority {
                    0 => format!("command {letter}"),
                    priority => format!("command {letter} priority={priority}"),
                };
                assert_eq!(found, words.join(" "), "{place}");
            }
            Event::DataOut { tag: found, .. } => {
                assert_eq!((words[0], tag(self)), ("data", found), "{place}");
            }
            Event::TaskManagement(request) => match request.function {
                TaskManagementFunction::AbortTask(found) => {
                    assert_eq!((words[0], tag(self)), ("aborts", found), "{place}");
                    self.function = Some(request);
                }
                TaskManagementFunction::QueryTask(found) => {
                    assert_eq!((words[0], tag(self)), ("queries", found), "{place}");
                    self.function = Some(request);
                }
                other => {
                    assert_eq!(format!("function {other:?}"), words.join(" "), "{place}");
                    self.function = Some(request);
                }
            },
            Event::LinkEnded(link) => {
                let found = self.sides.iter().find(|(_, side)| side.link == Some(link));
                let name = found.expect(place).0.clone();
                assert_eq!(words, ["ended", &name], "{place}");
                let waiting = self.sides.iter().filter(|(_, side)| side.waits_for == Some(link));
                let waiting: Vec<String> = waiting.map(|(name, _)| name.clone()).collect();
                for name in waiting {
                    let cid = name.trim_end_matches(char::is_alphabetic).parse().unwrap();
                    self.try_join(&name, cid);
                    self.collect();
                    self.sides.get_mut(&name).unwrap().received.pop_front().expect("a login response");
                }
            }
            Event::Closed(reason) => {
                assert_eq!(format!("closed {reason:?}"), words.join(" "), "{place}");
            }
            other => panic!("{place}: {other:?}"),
        }
    }
}
