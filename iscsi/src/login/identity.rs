//! Who logs in to what: the declarations of the leading login request (RFC 7143 6.3.1, 13.4 to 13.6, 13.21).
//!
//! Invariant: a [`LoginRequest`] has a valid InitiatorName, and a TargetName exactly if it is for a normal session.

use super::status::LoginStatus;
use crate::event::{LoginRequest, SessionType};
use crate::limits;
use crate::pdu::LoginRequestPdu;
use crate::text::Pair;
use alloc::string::{String, ToString};

/// Whether a key is one of these declarations.
pub(super) fn is_declaration(key: &str) -> bool {
    matches!(key, "InitiatorName" | "InitiatorAlias" | "TargetName" | "SessionType")
}

fn name(value: &str) -> Result<String, LoginStatus> {
    let good = (1..=limits::NAME_LEN_MAX).contains(&value.len())
        && !value.contains(|c: char| c.is_control() || c.is_whitespace());
    if good { Ok(value.to_string()) } else { Err(LoginStatus::InitiatorError) }
}

fn session_type(value: Option<&str>) -> Result<SessionType, LoginStatus> {
    match value {
        None | Some("Normal") => Ok(SessionType::Normal),
        Some("Discovery") => Ok(SessionType::Discovery),
        Some(_) => Err(LoginStatus::SessionTypeNotSupported),
    }
}

/// The declarations of the leading request.
pub(super) fn of_leading(pdu: &LoginRequestPdu, pairs: &[Pair<'_>]) -> Result<LoginRequest, LoginStatus> {
    let find = |key| pairs.iter().find(|pair| pair.key == key).map(|pair| pair.value);
    let session_type = session_type(find("SessionType"))?;
    let target_name = match session_type {
        SessionType::Normal => Some(name(find("TargetName").ok_or(LoginStatus::MissingParameter)?)?),
        SessionType::Discovery => None,
    };
    Ok(LoginRequest {
        initiator_name: name(find("InitiatorName").ok_or(LoginStatus::MissingParameter)?)?,
        initiator_alias: find("InitiatorAlias").map(ToString::to_string),
        isid: pdu.isid,
        tsih: pdu.tsih,
        cid: pdu.cid,
        target_name,
        session_type,
    })
}

/// Some initiators declare themselves again in a later stage; that is harmless only if nothing changes.
pub(super) fn check_again(login: &LoginRequest, pair: &Pair<'_>) -> Result<(), LoginStatus> {
    let same = match pair.key {
        "InitiatorName" => pair.value == login.initiator_name,
        "SessionType" => session_type(Some(pair.value))? == login.session_type,
        "TargetName" => login.target_name.as_deref().is_none_or(|name| name == pair.value),
        _ => true,
    };
    if same { Ok(()) } else { Err(LoginStatus::InitiatorError) }
}
