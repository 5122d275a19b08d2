//! SendTargets (RFC 7143 appendix C): what it asks and how it is answered.
//!
//! Invariant: an answer lists whole targets only, and no more than [`limits::TEXT_RESPONSE_LEN_MAX`] bytes.

use crate::event::{SendTargets, SessionType, TargetRecord};
use crate::limits;
use crate::text;
use alloc::string::ToString;
use alloc::vec::Vec;

/// What a SendTargets value asks for; `None` if such a session may not ask it.
pub(crate) fn asked(value: &str, session: SessionType, target: Option<&str>) -> Option<SendTargets> {
    match (session, value) {
        (SessionType::Discovery, "All") => Some(SendTargets::All),
        (SessionType::Discovery, "") | (SessionType::Normal, "All") => None,
        (SessionType::Discovery, name) => Some(SendTargets::Named(name.to_string())),
        (SessionType::Normal, "") => target.map(|name| SendTargets::Named(name.to_string())),
        (SessionType::Normal, name) => target
            .filter(|target| target.eq_ignore_ascii_case(name))
            .map(|target| SendTargets::Named(target.to_string())),
    }
}

/// Appends the targets to a text.
pub(crate) fn answer(targets: &[TargetRecord], reply: &mut Vec<u8>) {
    for target in targets {
        let before = reply.len();
        text::push(reply, "TargetName", &target.name);
        for portal in &target.portals {
            text::push(reply, "TargetAddress", &alloc::format!("{},{}", portal.address, portal.group));
        }
        if reply.len() > limits::TEXT_RESPONSE_LEN_MAX {
            reply.truncate(before);
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::PortalRecord;
    use alloc::vec;

    #[test]
    fn a_normal_session_sees_its_own_target_only() {
        let target = Some("iqn.2026-01.example:a");
        let own = Some(SendTargets::Named("iqn.2026-01.example:a".into()));
        assert_eq!(asked("", SessionType::Normal, target), own);
        assert_eq!(asked("iqn.2026-01.example:A", SessionType::Normal, target), own);
        assert_eq!(asked("All", SessionType::Normal, target), None);
        assert_eq!(asked("iqn.2026-01.example:b", SessionType::Normal, target), None);
        assert_eq!(asked("All", SessionType::Discovery, None), Some(SendTargets::All));
    }

    #[test]
    fn portals_follow_their_target_with_group_tags() {
        let portal = |address: &str, group| PortalRecord { address: address.into(), group };
        let target = TargetRecord {
            name: "iqn.x:y".into(),
            portals: vec![portal("127.0.0.1:3260", 1), portal("[::1]:3260", 2)],
        };
        let mut reply = Vec::new();
        answer(&[target], &mut reply);
        let expected = b"TargetName=iqn.x:y\0TargetAddress=127.0.0.1:3260,1\0TargetAddress=[::1]:3260,2\0";
        assert_eq!(reply, expected);
    }
}
