//! The security stage: AuthMethod and CHAP, step by step (RFC 7143 6.3.2, 12.1).
//!
//! Invariants: [`Security::passed`] holds only if no authentication is demanded, or the initiator's response was
//! verified on this connection; each step happens once and in order; our own proof is given only after the initiator's.

use super::status::LoginStatus;
use crate::binary_value;
use crate::chap::{Algorithm, Challenge, ChapCredentials};
use crate::limits;
use crate::text::{self, Pair};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

/// Where authentication stands.
#[derive(Debug)]
enum Step {
    /// AuthMethod is awaited.
    Method,
    /// CHAP was agreed, CHAP_A is awaited.
    Algorithm,
    /// The challenge is out.
    Response(Algorithm),
    /// Through, or nothing was demanded and the method agreed.
    Done,
}

/// Authentication of one connection.
#[derive(Debug)]
pub(super) struct Security {
    demanded: Option<Box<ChapCredentials>>,
    step: Step,
    challenge: Challenge,
}

/// The keys of this stage that one request holds.
#[derive(Default)]
pub(super) struct SecurityKeys<'a> {
    method: Option<&'a str>,
    algorithm: Option<&'a str>,
    id: Option<&'a str>,
    challenge: Option<&'a str>,
    name: Option<&'a str>,
    response: Option<&'a str>,
}

impl<'a> SecurityKeys<'a> {
    /// Takes the pair if it is one of this stage's.
    pub(super) fn take(&mut self, pair: &Pair<'a>) -> bool {
        let slot = match pair.key {
            "AuthMethod" => &mut self.method,
            "CHAP_A" => &mut self.algorithm,
            "CHAP_I" => &mut self.id,
            "CHAP_C" => &mut self.challenge,
            "CHAP_N" => &mut self.name,
            "CHAP_R" => &mut self.response,
            _ => return false,
        };
        *slot = Some(pair.value);
        true
    }

    pub(super) fn is_empty(&self) -> bool {
        self.method.is_none() && self.algorithm.is_none() && !self.any_proof()
    }

    fn any_proof(&self) -> bool {
        [self.id, self.challenge, self.name, self.response].iter().any(Option::is_some)
    }
}

impl Security {
    pub(super) fn new(demanded: Option<Box<ChapCredentials>>, challenge: Challenge) -> Self {
        Self { demanded, step: Step::Method, challenge }
    }

    /// Whether the initiator may leave this stage.
    pub(super) fn passed(&self) -> bool {
        self.demanded.is_none() || matches!(self.step, Step::Done)
    }

    /// Whether an exchange has begun, so that the initiator must only wait for its next step.
    pub(super) fn under_way(&self) -> bool {
        matches!(self.step, Step::Algorithm | Step::Response(_))
    }

    /// One request's keys of this stage; appends the answer to `reply`.
    pub(super) fn step(&mut self, keys: &SecurityKeys<'_>, reply: &mut Vec<u8>) -> Result<(), LoginStatus> {
        if keys.is_empty() {
            return Ok(());
        }
        self.step = match (&self.step, keys.method, keys.algorithm) {
            (Step::Method, Some(methods), None) if !keys.any_proof() => self.choose_method(methods, reply)?,
            (Step::Algorithm, None, Some(list)) if !keys.any_proof() => self.send_challenge(list, reply)?,
            (&Step::Response(algorithm), None, None) => self.verify(algorithm, keys, reply)?,
            // Keys out of their order: no step is skipped, repeated or mixed with another.
            _ => return Err(self.out_of_order()),
        };
        Ok(())
    }

    fn out_of_order(&self) -> LoginStatus {
        if self.passed() { LoginStatus::InitiatorError } else { LoginStatus::AuthenticationFailure }
    }

    fn choose_method(&self, methods: &str, reply: &mut Vec<u8>) -> Result<Step, LoginStatus> {
        let (method, next) =
            if self.demanded.is_some() { ("CHAP", Step::Algorithm) } else { ("None", Step::Done) };
        if !methods.split(',').any(|offered| offered == method) {
            return Err(LoginStatus::AuthenticationFailure);
        }
        text::push(reply, "AuthMethod", method);
        Ok(next)
    }

    fn send_challenge(&self, list: &str, reply: &mut Vec<u8>) -> Result<Step, LoginStatus> {
        let credentials = self.demanded.as_ref().ok_or(LoginStatus::InitiatorError)?;
        let algorithm =
            Algorithm::choose(list, credentials.weakest).ok_or(LoginStatus::AuthenticationFailure)?;
        let mut challenge = String::new();
        binary_value::encode(&self.challenge.bytes, &mut challenge);
        text::push(reply, "CHAP_A", &alloc::format!("{}", algorithm.number()));
        text::push(reply, "CHAP_I", &alloc::format!("{}", self.challenge.id));
        text::push(reply, "CHAP_C", &challenge);
        Ok(Step::Response(algorithm))
    }

    fn verify(
        &self,
        algorithm: Algorithm,
        keys: &SecurityKeys<'_>,
        reply: &mut Vec<u8>,
    ) -> Result<Step, LoginStatus> {
        const FAILED: LoginStatus = LoginStatus::AuthenticationFailure;
        let credentials = self.demanded.as_ref().ok_or(LoginStatus::InitiatorError)?;
        let (Some(name), Some(response)) = (keys.name, keys.response) else {
            return Err(FAILED);
        };
        let len = algorithm.response_len();
        let response = binary_value::decode(response, len, len).ok_or(FAILED)?;
        if !credentials.initiator.verify(algorithm, &self.challenge, name, &response) {
            return Err(FAILED);
        }
        match (keys.id, keys.challenge) {
            (None, None) => {}
            (Some(id), Some(challenge)) => {
                let proof = self.prove(credentials, algorithm, id, challenge).ok_or(FAILED)?;
                let mut response = String::new();
                binary_value::encode(&proof.1, &mut response);
                text::push(reply, "CHAP_N", &proof.0);
                text::push(reply, "CHAP_R", &response);
            }
            _ => return Err(FAILED),
        }
        Ok(Step::Done)
    }

    /// Our name and our answer to the initiator's challenge.
    fn prove(
        &self,
        credentials: &ChapCredentials,
        algorithm: Algorithm,
        id: &str,
        challenge: &str,
    ) -> Option<(String, Vec<u8>)> {
        let target = credentials.target.as_ref()?;
        let id = u8::try_from(text::number(id)?).ok()?;
        let bytes =
            binary_value::decode(challenge, limits::CHAP_CHALLENGE_LEN_MIN, limits::CHAP_CHALLENGE_LEN_MAX)?;
        // Our own challenge coming back is a peer that fishes for an answer to it (RFC 7143 9.2.1).
        if bytes == self.challenge.bytes {
            return None;
        }
        Some((target.name().into(), target.respond(algorithm, &Challenge { id, bytes })))
    }
}
