//! Runs the dialogues in `scenarios/*.txt`: what an initiator says and what the target must answer, as text.
//!
//! A file is a list of scenarios, each begun by `== name`. Lines:
//!
//! ```text
//! portal: chap=USER:SECRET mutual=USER:SECRET weakest=md5 header_digest=required ...   (before the first I:)
//! I: login csg=0 nsg=1 [c=1] [isid=..] [tsih=..] [version=..] KEY=VALUE ...
//! I: text KEY=VALUE ... | nop WORD | logout | raw HEX
//! T: login status=0000 csg=0 [nsg=1] [tsih=7] KEY=VALUE ...       exactly these keys, in this order
//! T: text KEY=VALUE ... | nop WORD | logout | reject REASON | nothing
//! T: closed REASON
//! ```
//!
//! `_` in a value stands for a space. `T:` values: `*` is any. `@answer:SECRET` is the CHAP response to the target's last
//! challenge, `@proof:SECRET` the one to the initiator's; `@echo` is the target's own challenge, sent back.

mod support;

use holdfast_iscsi::chap::{Algorithm, Challenge};
use holdfast_iscsi::initiator::{Received, TargetPdu, keys_text};
use holdfast_iscsi::pdu::{LoginRequestPdu, Stage};
use holdfast_iscsi::{DigestPolicy, PortalOptions};
use std::collections::{BTreeMap, VecDeque};
use support::{Chap, Portal};

struct Play {
    options: PortalOptions,
    chap: Option<Chap>,
    portal: Option<Portal>,
    answers: VecDeque<Received>,
    /// The last CHAP keys of either side.
    of_target: BTreeMap<String, String>,
    of_initiator: BTreeMap<String, String>,
}

#[test]
fn scenarios() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scenarios");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut count = 0;
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        for (head, body) in split(&text) {
            let mut play = Play {
                options: PortalOptions::default(),
                chap: None,
                portal: None,
                answers: VecDeque::new(),
                of_target: BTreeMap::new(),
                of_initiator: BTreeMap::new(),
            };
            for (number, line) in body {
                play.line(&line, &format!("{name}:{number} ({head})"));
            }
            assert!(play.answers.is_empty(), "{name} ({head}): unexpected {:?}", play.answers);
            count += 1;
        }
    }
    assert!(count >= 40, "only {count} scenarios were found");
}

type Scenario = (String, Vec<(usize, String)>);

fn split(text: &str) -> Vec<Scenario> {
    let mut scenarios: Vec<Scenario> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some(head) = line.strip_prefix("== ") {
            scenarios.push((head.to_string(), Vec::new()));
        } else if !line.is_empty() && !line.starts_with('#') {
            let (_, body) = scenarios.last_mut().expect("a scenario begins with ==");
            // An indented line of keys continues the one before.
            if line.contains(": ") {
                body.push((number + 1, line.to_string()));
            } else {
                let (_, last) = body.last_mut().expect("something to continue");
                last.push(' ');
                last.push_str(line);
            }
        }
    }
    scenarios
}

fn pair(word: &str) -> (&str, &str) {
    word.split_once('=').unwrap_or_else(|| panic!("{word} is no pair"))
}

impl Play {
    fn line(&mut self, line: &str, place: &str) {
        let (who, what) = line.split_once(": ").unwrap();
        let mut words = what.split_whitespace();
        match who {
            "portal" => words.for_each(|word| self.option(word)),
            "I" => self.say(words.next().unwrap(), &words.collect::<Vec<_>>()),
            "T" => self.expect(words.next().unwrap(), &words.collect::<Vec<_>>(), place),
            _ => panic!("{place}: who is {who}?"),
        }
    }

    fn option(&mut self, word: &str) {
        let (key, value) = pair(word);
        let secret = || {
            let (user, secret) = value.split_once(':').unwrap();
            (user.to_string(), secret.to_string())
        };
        let digest = || if value == "required" { DigestPolicy::Required } else { DigestPolicy::Off };
        let options = &mut self.options;
        match key {
            "chap" => self.chap = Some(Chap { user: secret(), mutual: None, weakest: Algorithm::Md5 }),
            "mutual" => self.chap.as_mut().unwrap().mutual = Some(secret()),
            "weakest" => {
                let weakest = Algorithm::ALL.into_iter().find(|a| a.number().to_string() == value);
                self.chap.as_mut().unwrap().weakest = weakest.unwrap();
            }
            "header_digest" => options.header_digest = digest(),
            "data_digest" => options.data_digest = digest(),
            "initial_r2t" => options.initial_r2t = value == "Yes",
            "immediate_data" => options.immediate_data = value == "Yes",
            "max_burst_length" => options.max_burst_length = value.parse().unwrap(),
            "first_burst_length" => options.first_burst_length = value.parse().unwrap(),
            "target_alias" => options.target_alias = value.to_string(),
            _ => panic!("no option {key}"),
        }
    }

    fn portal(&mut self) -> &mut Portal {
        let (options, chap) = (&self.options, &self.chap);
        self.portal.get_or_insert_with(|| {
            let mut portal = Portal::new(options.clone());
            portal.chap = chap.clone();
            portal
        })
    }

    fn say(&mut self, what: &str, words: &[&str]) {
        let bytes = match what {
            "login" => self.login(words),
            "text" => {
                let keys = self.keys(words);
                self.portal().initiator.text(&borrow(&keys)).1
            }
            "nop" => self.portal().initiator.ping(true, words[0].as_bytes()).1,
            "logout" => self.portal().initiator.logout().1,
            "raw" => {
                let hex: String = words.concat();
                (0..hex.len())
                    .step_by(2)
                    .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
                    .collect()
            }
            _ => panic!("cannot say {what}"),
        };
        let received = self.portal().exchange(&bytes);
        self.answers.extend(received);
    }

    fn login(&mut self, words: &[&str]) -> Vec<u8> {
        let stage = |value: &str| match value {
            "0" => Stage::Security,
            "1" => Stage::Operational,
            "3" => Stage::FullFeature,
            _ => panic!("no stage {value}"),
        };
        let mut header: LoginRequestPdu = self.portal().initiator.login_header(Stage::Security, None);
        let mut keys = Vec::new();
        for word in words {
            let (key, value) = pair(word);
            let number = || u16::from_str_radix(value, 16).unwrap();
            match key {
                "csg" => header.current_stage = stage(value),
                "nsg" => header.next_stage = Some(stage(value)),
                "c" => header.more = true,
                "isid" => header.isid[5] = number() as u8,
                "tsih" => header.tsih = number(),
                "cid" => header.cid = number(),
                "itt" => header.initiator_task_tag = u32::from(number()),
                "version" => header.version_min = number() as u8,
                _ => keys.push(*word),
            }
        }
        let mut text = keys_text(&borrow(&self.keys(&keys)));
        if header.more {
            // A text that goes on may be cut anywhere.
            text.pop();
        }
        self.portal().initiator.frame(header.encode(), &[], &text)
    }

    /// The keys to say, with what stands for CHAP worked out.
    fn keys(&mut self, words: &[&str]) -> Vec<(String, String)> {
        let mut keys = Vec::new();
        for word in words {
            let (key, value) = pair(word);
            let value = self.spell(value);
            self.of_initiator.insert(key.to_string(), value.clone());
            keys.push((key.to_string(), value));
        }
        keys
    }

    fn spell(&self, value: &str) -> String {
        let algorithm = || {
            let number = &self.of_target["CHAP_A"];
            Algorithm::ALL.into_iter().find(|a| a.number().to_string() == *number).unwrap()
        };
        let respond = |keys: &BTreeMap<String, String>, secret: &str| {
            let challenge =
                Challenge { id: keys["CHAP_I"].parse().unwrap(), bytes: unhex(&keys["CHAP_C"][2..]) };
            let bytes = algorithm().response(challenge.id, secret.as_bytes(), &challenge.bytes);
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("0x{hex}")
        };
        match value.split_once(':') {
            Some(("@answer", secret)) => respond(&self.of_target, secret),
            Some(("@proof", secret)) => respond(&self.of_initiator, secret),
            _ if value == "@echo" => self.of_target["CHAP_C"].clone(),
            _ => match value.split_once('*').and_then(|(s, n)| Some((s, n.parse::<usize>().ok()?))) {
                Some((piece, times)) => piece.repeat(times),
                None => value.replace('_', " "),
            },
        }
    }

    fn expect(&mut self, what: &str, words: &[&str], place: &str) {
        if what == "closed" {
            let closed = format!("{:?}", self.portal().closed.expect(place));
            return assert_eq!(closed, words.concat(), "{place}");
        }
        if what == "nothing" {
            return assert!(self.answers.is_empty(), "{place}: {:?}", self.answers);
        }
        let answer = self.answers.pop_front().unwrap_or_else(|| panic!("{place}: the target is silent"));
        let mut keys = words.to_vec();
        match (&answer.pdu, what) {
            (TargetPdu::Login(pdu), "login") => {
                keys.retain(|word| match pair(word) {
                    ("status", value) => {
                        assert_eq!(format!("{:04x}", pdu.status), value, "{place}");
                        false
                    }
                    ("csg", _) => false,
                    ("nsg", _) => false,
                    ("tsih", value) => {
                        assert_eq!(pdu.tsih.to_string(), value, "{place}");
                        false
                    }
                    _ => true,
                });
                let code = |stage| match stage {
                    Stage::Security => "0",
                    Stage::Operational => "1",
                    Stage::FullFeature => "3",
                };
                let of = |name| words.iter().map(|word| pair(word)).find(|(key, _)| *key == name);
                if let Some((_, csg)) = of("csg") {
                    assert_eq!(code(pdu.current_stage), csg, "{place}: csg");
                }
                assert_eq!(pdu.next_stage.map(code), of("nsg").map(|(_, nsg)| nsg), "{place}: nsg");
            }
            (TargetPdu::Text(pdu), "text") => assert!(pdu.last && !pdu.more, "{place}"),
            (TargetPdu::NopIn(_), "nop") => {
                return assert_eq!(answer.data, words[0].as_bytes(), "{place}");
            }
            (TargetPdu::Logout(_), "logout") => return,
            (TargetPdu::Reject(pdu), "reject") => {
                return assert_eq!(format!("{:?}", pdu.reason), words[0], "{place}");
            }
            (pdu, _) => panic!("{place}: {pdu:?}"),
        }
        let said = answer.keys();
        assert_eq!(said.len(), keys.len(), "{place}: {said:?}");
        for (said, expected) in said.iter().zip(&keys) {
            let ((said_key, said_value), (key, value)) = (pair(said), pair(expected));
            self.of_target.insert(said_key.to_string(), said_value.to_string());
            assert_eq!(said_key, key, "{place}: {said:?}");
            if value != "*" {
                assert_eq!(said_value, self.spell(value), "{place}: {said_key}");
            }
        }
    }
}

fn unhex(digits: &str) -> Vec<u8> {
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

fn borrow(keys: &[(String, String)]) -> Vec<(&str, &str)> {
    keys.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect()
}
