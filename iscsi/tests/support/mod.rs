//! A portal in memory for the tests: a [`Connection`] with a small shell that knows some targets and hosts, and an
//! [`Initiator`] at its other end. The shell answers logins; commands are the tests' own.
#![allow(dead_code, unreachable_pub)]

use holdfast_iscsi::chap::{Algorithm, ChapCredentials, Secret};
use holdfast_iscsi::initiator::{CommandRequest, Initiator, Received, TargetPdu};
use holdfast_iscsi::pdu::Stage;
use holdfast_iscsi::{
    Admission, CloseReason, Connection, Event, Instant, LoginAnswer, LoginRequest, LoginStatus, PortalConfig,
    PortalOptions, PortalRecord, SendTargets, SessionInfo, SessionParameters, SessionStart, SessionType,
    TargetRecord,
};
use std::num::NonZeroU16;
use std::sync::Arc;

pub const INITIATOR: &str = "iqn.2026-01.test.host:a";
/// A target that is elsewhere for now.
pub const MOVED: &str = "iqn.2026-01.test.array:moved";
pub const DENIED: &str = "iqn.2026-01.test.host:denied";
pub const TARGET: &str = "iqn.2026-01.test.array:t";
pub const ENTROPY: [u8; 32] = [0x5a; 32];
pub const TSIH: u16 = 7;

/// CHAP that the portal demands.
#[derive(Clone, Debug)]
pub struct Chap {
    pub user: (String, String),
    pub mutual: Option<(String, String)>,
    pub weakest: Algorithm,
}

impl Chap {
    fn credentials(&self) -> ChapCredentials {
        let secret =
            |(name, secret): &(String, String)| Secret::new(name.clone(), secret.clone().into_bytes());
        ChapCredentials::new(secret(&self.user), self.mutual.as_ref().map(secret), self.weakest).unwrap()
    }
}

/// Both ends.
pub struct Portal {
    pub connection: Connection<Vec<u8>>,
    pub initiator: Initiator,
    pub now: Instant,
    pub chap: Option<Chap>,
    /// Events that are not the shell's routine.
    pub events: Vec<Event>,
    pub login: Option<LoginRequest>,
    pub session: Option<SessionInfo>,
    pub closed: Option<CloseReason>,
    /// How many bytes are given to the connection at once.
    pub split: usize,
}

impl Default for Portal {
    fn default() -> Self {
        Self::new(PortalOptions::default())
    }
}

impl Portal {
    pub fn new(options: PortalOptions) -> Self {
        let config = Arc::new(PortalConfig::new(options).unwrap());
        Self {
            connection: Connection::new(config, Instant(0), ENTROPY),
            initiator: Initiator::default(),
            now: Instant(0),
            chap: None,
            events: Vec::new(),
            login: None,
            session: None,
            closed: None,
            split: usize::MAX,
        }
    }

    /// Gives bytes to the connection and lets the shell do its routine.
    pub fn give(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(self.split.clamp(1, bytes.len().max(1))) {
            self.connection.handle_input(self.now, piece);
            self.routine();
        }
    }

    pub fn routine(&mut self) {
        while let Some(event) = self.connection.poll_event() {
            match event {
                Event::Login(login) => {
                    let answer = self.judge(&login);
                    self.login = Some(login);
                    self.connection.login_answer(self.now, answer);
                }
                Event::SessionStarting(info) => {
                    self.session = Some(info);
                    let go = SessionStart::Go(NonZeroU16::new(TSIH).unwrap());
                    self.connection.start_session(self.now, go);
                }
                Event::SendTargets(asked) => {
                    let targets = match asked {
                        SendTargets::All => vec![record()],
                        SendTargets::Named(name) if name == TARGET => vec![record()],
                        SendTargets::Named(_) => vec![],
                    };
                    self.connection.send_targets_answer(&targets);
                }
                Event::Closed(reason) => self.closed = Some(reason),
                other => self.events.push(other),
            }
        }
    }

    fn judge(&self, login: &LoginRequest) -> LoginAnswer {
        let target = login.target_name.as_deref();
        match login.session_type {
            SessionType::Normal if ![Some(TARGET), Some(MOVED)].contains(&target) => {
                LoginAnswer::Refuse(LoginStatus::NotFound)
            }
            _ if login.initiator_name == DENIED => LoginAnswer::Refuse(LoginStatus::AuthorizationFailure),
            _ if login.tsih != 0 => LoginAnswer::Refuse(LoginStatus::SessionDoesNotExist),
            _ => LoginAnswer::Accept(Admission {
                chap: self.chap.as_ref().map(|chap| Box::new(chap.credentials())),
                target_portal_group_tag: 1,
                moved_to: (target == Some(MOVED)).then(|| "127.0.0.2:3260".to_owned()),
            }),
        }
    }

    /// Everything that the target sent since.
    pub fn sent(&mut self) -> Vec<u8> {
        let bytes: Vec<u8> = self.connection.segments().flatten().copied().collect();
        assert_eq!(bytes.len(), self.connection.transmit_len());
        self.connection.advance(bytes.len());
        bytes
    }

    /// The same, read by the initiator.
    pub fn received(&mut self) -> Vec<Received> {
        let bytes = self.sent();
        self.initiator.receive(&bytes).expect("the target's stream is sound")
    }

    /// Sends a request, reads the answers.
    pub fn exchange(&mut self, bytes: &[u8]) -> Vec<Received> {
        self.give(bytes);
        self.received()
    }

    /// Logs in with these operational keys, without authentication.
    pub fn log_in(&mut self, keys: &[(&str, &str)]) -> SessionParameters {
        let mut all = vec![("InitiatorName", INITIATOR), ("TargetName", TARGET), ("SessionType", "Normal")];
        all.extend(keys);
        let request = self.initiator.login(Stage::Operational, Some(Stage::FullFeature), &all);
        self.finish_login(&request)
    }

    /// A discovery session.
    pub fn log_in_for_discovery(&mut self) -> SessionParameters {
        let keys = [("InitiatorName", INITIATOR), ("SessionType", "Discovery")];
        let request = self.initiator.login(Stage::Operational, Some(Stage::FullFeature), &keys);
        self.finish_login(&request)
    }

    pub fn finish_login(&mut self, request: &[u8]) -> SessionParameters {
        let received = self.exchange(request);
        let TargetPdu::Login(response) = received[0].pdu else { panic!("{received:?}") };
        assert_eq!((response.status, response.next_stage), (0, Some(Stage::FullFeature)), "{received:?}");
        let parameters = self.connection.parameters().unwrap().clone();
        self.initiator.use_digests(parameters.header_digest, parameters.data_digest);
        parameters
    }

    /// Sends a command; its initiator task tag.
    pub fn command(&mut self, request: &CommandRequest<'_>) -> u32 {
        let parameters = self.connection.parameters().unwrap().clone();
        let (tag, bytes) = self.initiator.command(&parameters, request);
        self.give(&bytes);
        tag
    }

    /// The one event there is.
    pub fn event(&mut self) -> Event {
        assert_eq!(self.events.len(), 1, "{:?}", self.events);
        self.events.remove(0)
    }

    /// The command that the one event is.
    pub fn command_event(&mut self) -> holdfast_iscsi::Command {
        match self.event() {
            Event::Command(command) => command,
            other => panic!("{other:?}"),
        }
    }
}

fn record() -> TargetRecord {
    let portal = |address: &str, group| PortalRecord { address: address.into(), group };
    TargetRecord {
        name: TARGET.into(),
        portals: vec![portal("127.0.0.1:3260", 1), portal("127.0.0.2:3260", 2)],
    }
}

pub fn read(lun: u8, expected: u32) -> CommandRequest<'static> {
    let lun = [0, lun, 0, 0, 0, 0, 0, 0];
    CommandRequest {
        lun,
        cdb: &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0],
        read: true,
        data_out: None,
        expected_data_len: expected,
        immediate: false,
    }
}

pub fn write(data: &[u8]) -> CommandRequest<'_> {
    CommandRequest {
        lun: [0; 8],
        cdb: &[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0],
        read: false,
        data_out: Some(data),
        expected_data_len: data.len() as u32,
        immediate: false,
    }
}

/// Bytes of which each says where it stands.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n ^ (n >> 8) ^ (n >> 16)) as u8).collect()
}
