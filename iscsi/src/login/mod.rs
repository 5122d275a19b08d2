//! The login phase of one connection (RFC 7143 section 6.3): leading request, security stage, operational stage.
//!
//! Invariants: stages only go forward; nothing is negotiated before the shell admitted the initiator; the operational
//! stage is entered only if `security::Security::passed`; text and PDUs are bounded; a refusal ends it.

mod identity;
mod security;
pub mod status;

use crate::chap::Challenge;
use crate::config::PortalOptions;
use crate::event::{Admission, Event, LoginAnswer, LoginRequest, SessionInfo, SessionStart, SessionType};
use crate::limits;
use crate::negotiation::{Answer, Negotiation, SessionParameters};
use crate::pdu::{LoginRequestPdu, Stage};
use crate::text;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use security::{Security, SecurityKeys};
use status::LoginStatus;

/// Whether a key has its place in login alone.
pub(crate) fn is_known(key: &str) -> bool {
    identity::is_declaration(key) || SecurityKeys::default().take(&text::Pair { key, value: "" })
}

/// What a login response says beside its numbers.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) current_stage: Stage,
    pub(crate) next_stage: Option<Stage>,
    pub(crate) tsih: u16,
    pub(crate) text: Vec<u8>,
}

/// What comes of a login PDU or of the shell's answer.
#[derive(Debug)]
pub(crate) enum Progress {
    /// Send this and go on.
    Reply(Reply),
    /// Ask the shell.
    Ask(Event),
    /// Send the initiator to this portal, after the last words of authentication, and end.
    Moved { address: String, text: Vec<u8> },
    /// Send this; the full feature phase begins.
    Finished(Reply, SessionParameters),
}

/// What the shell was asked.
#[derive(Debug)]
enum Asked {
    Nothing,
    /// Whether to admit the initiator, who wishes to go to this stage next.
    Admission(Option<Stage>),
    /// Whether to start the session, with the last response ready.
    Start(Reply, SessionParameters),
}

/// The login phase.
#[derive(Debug)]
pub(crate) struct Login {
    challenge: Challenge,
    leading: Option<LoginRequestPdu>,
    stage: Stage,
    text: Vec<u8>,
    pdus: u32,
    identity: Option<LoginRequest>,
    security: Option<Security>,
    /// Where the initiator is sent once it has authenticated.
    moved_to: Option<String>,
    negotiation: Negotiation,
    /// The group tag that the first answer must tell.
    group_tag: Option<u16>,
    declared: bool,
    asked: Asked,
}

impl Login {
    pub(crate) fn new(entropy: &[u8; 32]) -> Self {
        Self {
            challenge: Challenge::from_entropy(entropy),
            leading: None,
            stage: Stage::Security,
            text: Vec::new(),
            pdus: 0,
            identity: None,
            security: None,
            moved_to: None,
            negotiation: Negotiation::default(),
            group_tag: None,
            declared: false,
            asked: Asked::Nothing,
        }
    }

    /// Whether the shell owes an answer, so that the initiator may not send more.
    pub(crate) fn waits_for_shell(&self) -> bool {
        !matches!(self.asked, Asked::Nothing)
    }

    /// The leading request.
    pub(crate) fn leading(&self) -> Option<&LoginRequestPdu> {
        self.leading.as_ref()
    }

    pub(crate) fn bytes_held(&self) -> usize {
        self.text.capacity()
    }

    pub(crate) fn stage(&self) -> Stage {
        self.stage
    }

    pub(crate) fn identity(&self) -> Option<&LoginRequest> {
        self.identity.as_ref()
    }

    /// A login request with its piece of text.
    pub(crate) fn request(
        &mut self,
        options: &PortalOptions,
        pdu: &LoginRequestPdu,
        piece: &[u8],
    ) -> Result<Progress, LoginStatus> {
        self.pdus += 1;
        self.check(pdu)?;
        if self.text.len() + piece.len() > limits::LOGIN_TEXT_LEN_MAX {
            return Err(LoginStatus::InitiatorError);
        }
        self.text.extend_from_slice(piece);
        if pdu.more {
            return Ok(Progress::Reply(self.reply(None, Vec::new())));
        }
        if self.identity.is_some() {
            return self.proceed(options, pdu.next_stage);
        }
        let pairs = text::pairs(&self.text).map_err(|_| LoginStatus::InitiatorError)?;
        let login = identity::of_leading(pdu, &pairs)?;
        self.identity = Some(login.clone());
        self.asked = Asked::Admission(pdu.next_stage);
        Ok(Progress::Ask(Event::Login(login)))
    }

    fn check(&mut self, pdu: &LoginRequestPdu) -> Result<(), LoginStatus> {
        if pdu.version_min > 0 {
            return Err(LoginStatus::UnsupportedVersion);
        }
        let leading = *self.leading.get_or_insert_with(|| {
            self.stage = pdu.current_stage;
            *pdu
        });
        let same = (pdu.isid, pdu.tsih, pdu.cid, pdu.initiator_task_tag)
            == (leading.isid, leading.tsih, leading.cid, leading.initiator_task_tag);
        let forward = pdu.next_stage.is_none_or(|next| next > pdu.current_stage && !pdu.more);
        let in_login = pdu.current_stage != Stage::FullFeature && pdu.current_stage == self.stage;
        if same && forward && in_login && self.pdus <= limits::LOGIN_PDUS_MAX {
            Ok(())
        } else {
            Err(LoginStatus::InitiatorError)
        }
    }

    /// The shell's answer to [`Event::Login`]; `None` if it was not asked.
    pub(crate) fn answer(
        &mut self,
        options: &PortalOptions,
        answer: LoginAnswer,
    ) -> Option<Result<Progress, LoginStatus>> {
        let Asked::Admission(next) = self.asked else { return None };
        self.asked = Asked::Nothing;
        Some(match answer {
            LoginAnswer::Refuse(status) => Err(status),
            LoginAnswer::Accept(admission) => {
                self.admit(admission).and_then(|()| self.proceed(options, next))
            }
        })
    }

    fn admit(&mut self, admission: Admission) -> Result<(), LoginStatus> {
        let normal = self.identity.as_ref().is_some_and(|login| login.session_type == SessionType::Normal);
        if self.leading.is_some_and(|pdu| pdu.tsih != 0) {
            self.negotiation.join();
        } else if !normal {
            self.negotiation.discover();
        }
        self.moved_to = admission.moved_to;
        self.group_tag = normal.then_some(admission.target_portal_group_tag);
        let security = Security::new(admission.chap, self.challenge.clone());
        // Going straight to the operational stage is to offer no authentication.
        if self.stage == Stage::Operational && !security.passed() {
            return Err(LoginStatus::AuthenticationFailure);
        }
        self.security = Some(security);
        Ok(())
    }

    /// The shell's answer to [`Event::SessionStarting`]; `None` if it was not asked.
    pub(crate) fn start(&mut self, start: SessionStart) -> Option<Result<Progress, LoginStatus>> {
        match core::mem::replace(&mut self.asked, Asked::Nothing) {
            Asked::Start(mut reply, parameters) => Some(match start {
                SessionStart::Refuse(status) => Err(status),
                SessionStart::Go(tsih) | SessionStart::Join { tsih, .. } => {
                    reply.tsih = tsih.get();
                    Ok(Progress::Finished(reply, parameters))
                }
            }),
            other => {
                self.asked = other;
                None
            }
        }
    }

    fn reply(&self, next_stage: Option<Stage>, text: Vec<u8>) -> Reply {
        let tsih = self.leading.map_or(0, |pdu| pdu.tsih);
        Reply { current_stage: self.stage, next_stage, tsih, text }
    }

    /// Works through one whole text of an admitted initiator that wishes to go to `next`.
    fn proceed(&mut self, options: &PortalOptions, next: Option<Stage>) -> Result<Progress, LoginStatus> {
        if let Some(address) = self.moved_to.take_if(|_| self.security.as_ref().is_some_and(Security::passed))
        {
            return Ok(Progress::Moved { address, text: Vec::new() });
        }
        let text = core::mem::take(&mut self.text);
        let mut reply = Vec::new();
        if let Some(tag) = self.group_tag.take() {
            text::push(&mut reply, "TargetPortalGroupTag", &tag.to_string());
            if !options.target_alias.is_empty() {
                text::push(&mut reply, "TargetAlias", &options.target_alias);
            }
        }
        self.keys(options, &text, &mut reply)?;
        if self.stage == Stage::Operational && !self.declared {
            self.declared = true;
            let ours = options.max_recv_data_segment_length.to_string();
            text::push(&mut reply, "MaxRecvDataSegmentLength", &ours);
        }
        // Today's bounds on keys keep every answer below it; should they change, no PDU grows too long.
        if reply.len() > limits::LOGIN_DATA_SEGMENT_LEN_MAX {
            return Err(LoginStatus::InitiatorError);
        }
        self.transit(options, next, reply)
    }

    fn keys(&mut self, options: &PortalOptions, text: &[u8], reply: &mut Vec<u8>) -> Result<(), LoginStatus> {
        let pairs = text::pairs(text).map_err(|_| LoginStatus::InitiatorError)?;
        let identity = self.identity.as_ref().ok_or(LoginStatus::InitiatorError)?;
        let mut security_keys = SecurityKeys::default();
        if let Some(pair) = pairs.iter().find(|pair| pair.key == "MaxBurstLength") {
            self.negotiation.announce_max_burst(pair.value);
        }
        for pair in &pairs {
            if identity::is_declaration(pair.key) {
                identity::check_again(identity, pair)?;
            } else if security_keys.take(pair) {
                if self.stage != Stage::Security {
                    return Err(LoginStatus::InitiatorError);
                }
            } else if self.stage == Stage::Operational {
                match self.negotiation.offer(options, pair.key, pair.value) {
                    Answer::Value(value) => text::push(reply, pair.key, &value),
                    Answer::Nothing => {}
                    Answer::Repeated => return Err(LoginStatus::InitiatorError),
                }
            } else {
                // An operational key agreed before authentication would be agreed with anyone.
                text::push(reply, pair.key, "Reject");
            }
        }
        match &mut self.security {
            Some(security) => security.step(&security_keys, reply),
            None => Err(LoginStatus::InitiatorError),
        }
    }

    fn transit(
        &mut self,
        options: &PortalOptions,
        next: Option<Stage>,
        text: Vec<u8>,
    ) -> Result<Progress, LoginStatus> {
        let security = self.security.as_ref().ok_or(LoginStatus::InitiatorError)?;
        if !security.passed() {
            // An initiator that wants to leave without having begun has nothing to authenticate with.
            if next.is_some() && !security.under_way() {
                return Err(LoginStatus::AuthenticationFailure);
            }
            return Ok(Progress::Reply(self.reply(None, text)));
        }
        if let Some(address) = self.moved_to.take() {
            return Ok(Progress::Moved { address, text });
        }
        let reply = self.reply(next, text);
        match next {
            None | Some(Stage::Security) => {}
            Some(Stage::Operational) => self.stage = Stage::Operational,
            Some(Stage::FullFeature) => {
                let parameters = self.negotiation.finish(options).map_err(|_| LoginStatus::InitiatorError)?;
                let login = self.identity.clone().ok_or(LoginStatus::InitiatorError)?;
                self.asked = Asked::Start(reply, parameters.clone());
                return Ok(Progress::Ask(Event::SessionStarting(SessionInfo { login, parameters })));
            }
        }
        Ok(Progress::Reply(reply))
    }
}
