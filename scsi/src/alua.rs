//! Asymmetric logical unit access, implicit and explicit (SPC-5 5.17), REPORT TARGET PORT GROUPS (SPC-5 6.35), and what SET TARGET PORT
//! GROUPS asks for (SPC-5 6.45).
//!
//! Invariant: one group is active/optimized, the owner's. So the one thing that can be set is who that is: an in-sync copy's node,
//! which the cluster makes the owner; all other groups follow.

use crate::nexus::RelativePort;
use crate::reply::{Reply, ReplyWriter};
use crate::sense::{Sense, SenseKey, asc};

/// IMPLICIT TRANSITION TIME, in seconds: how long a host should let "transitioning" last before it gives a path up.
pub const IMPLICIT_TRANSITION_TIME_S: u8 = 30;

/// Asymmetric access state of a target port group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum AluaState {
    /// The owner's group.
    ActiveOptimized = 0x0,
    /// Commands are forwarded to the owner.
    ActiveNonOptimized = 0x1,
    /// Admits only what tells about the unit, and reservations.
    Standby = 0x2,
    /// Admits only what tells about the unit.
    Unavailable = 0x3,
    /// The group cannot be reached.
    Offline = 0xe,
    /// The owner is changing.
    Transitioning = 0xf,
}

/// T_SUP, U_SUP, AN_SUP, AO_SUP.
const SUPPORTED_STATES: u8 = 0x8b;

/// STATUS CODE: what changed the states last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum ChangedBy {
    /// 01h: SET TARGET PORT GROUPS.
    Command = 0x01,
    /// 02h: the cluster by itself.
    #[default]
    Implicit = 0x02,
}

/// What SET TARGET PORT GROUPS asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// What is so already.
    Nothing,
    /// This group becomes the active/optimized one.
    Optimized(u16),
}

/// The transition cannot be made (SPC-5 6.45): nothing has changed.
pub const SET_FAILED: Sense = Sense::new(SenseKey::HardwareError, asc::SET_TARGET_PORT_GROUPS_FAILED);

/// Reads the parameter list of SET TARGET PORT GROUPS against the groups as they are.
///
/// # Errors
/// INVALID FIELD IN PARAMETER LIST for a state that cannot be set (all but active/optimized and active/non-optimized), a group that
/// there is not or that is named twice, and a combination without exactly one active/optimized group; [`SET_FAILED`] for a group that
/// cannot be reached.
pub fn wanted(list: &[u8], groups: impl Iterator<Item = (u16, AluaState)> + Clone) -> Result<Wanted, Sense> {
    let wrong =
        |at: usize, bit| Err(Sense::illegal_field_parameter(u16::try_from(at).unwrap_or(u16::MAX), bit));
    if let Some(at) = list.iter().take(SET_HEADER_LEN).position(|byte| *byte != 0) {
        return wrong(at, None);
    }
    let descriptors = || list.get(SET_HEADER_LEN..).unwrap_or(&[]).chunks_exact(SET_DESCRIPTOR_LEN);
    let mut optimized = None;
    let mut leaves_owner = None;
    for (number, descriptor) in descriptors().enumerate() {
        let [state, reserved, high, low] = *descriptor else { return Err(Sense::parameter_list_length()) };
        let at = SET_HEADER_LEN + number * SET_DESCRIPTOR_LEN;
        if state >> 4 != 0 {
            return wrong(at, Some(7));
        }
        if state > AluaState::ActiveNonOptimized as u8 {
            return wrong(at, Some(3));
        }
        if reserved != 0 {
            return wrong(at + 1, None);
        }
        let id = u16::from_be_bytes([high, low]);
        let Some((_, now)) = groups.clone().find(|(group, _)| *group == id) else {
            return wrong(at + 2, None);
        };
        if descriptors().take(number).any(|earlier| earlier.ends_with(&[high, low])) {
            return wrong(at + 2, None);
        }
        if !matches!(now, AluaState::ActiveOptimized | AluaState::ActiveNonOptimized) {
            return Err(SET_FAILED);
        }
        match (state == AluaState::ActiveOptimized as u8, now) {
            (true, _) if optimized.is_some() => return wrong(at, Some(3)),
            (true, _) => optimized = Some((id, now)),
            (false, AluaState::ActiveOptimized) => leaves_owner = Some(at),
            (false, _) => {}
        }
    }
    match (optimized, leaves_owner) {
        (Some((_, AluaState::ActiveOptimized)), _) | (None, None) => Ok(Wanted::Nothing),
        (Some((id, _)), _) => Ok(Wanted::Optimized(id)),
        // Somebody has to be the owner, and nobody was named.
        (None, Some(at)) => wrong(at, Some(3)),
    }
}

/// The parameter list of SET TARGET PORT GROUPS: a header of reserved bytes, and descriptors.
pub(crate) const SET_HEADER_LEN: usize = 4;
pub(crate) const SET_DESCRIPTOR_LEN: usize = 4;
/// FORMAT TYPE 001b of the extended header.
const FORMAT_EXTENDED: u8 = 0x10;

/// A target port group as one logical unit reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetPortGroup<'a> {
    /// TARGET PORT GROUP number: the node's.
    pub id: u16,
    /// Access state for this unit.
    pub state: AluaState,
    /// PREF: the controller would have the owner here.
    pub preferred: bool,
    /// Its ports; at most 255 are reported.
    pub ports: &'a [RelativePort],
}

/// REPORT TARGET PORT GROUPS. All nodes have to pass the groups in the same order (by number), so that the data is
/// identical through every path.
pub fn report_target_port_groups<'a>(
    groups: impl IntoIterator<Item = TargetPortGroup<'a>>,
    changed_by: ChangedBy,
    extended: bool,
    allocation_length: u32,
    out: &mut [u8],
) -> Reply {
    let mut w = ReplyWriter::new(out, allocation_length);
    w.put_zeroes(4);
    if extended {
        w.put(&[FORMAT_EXTENDED, IMPLICIT_TRANSITION_TIME_S, 0, 0]);
    }
    for group in groups {
        let count = u8::try_from(group.ports.len()).unwrap_or(u8::MAX);
        let preferred = if group.preferred { 0x80 } else { 0 };
        w.put(&[preferred | group.state as u8, SUPPORTED_STATES]);
        w.put_u16(group.id);
        w.put(&[0, changed_by as u8, 0, count]);
        for port in group.ports.iter().take(usize::from(count)) {
            w.put_u16(0);
            w.put_u16(port.0);
        }
    }
    w.patch_len32(0, 4);
    w.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reply::full_reply;

    fn groups() -> [TargetPortGroup<'static>; 2] {
        const ONE: &[RelativePort] = &[RelativePort(1), RelativePort(0x102)];
        const TWO: &[RelativePort] = &[RelativePort(3)];
        [
            TargetPortGroup { id: 1, state: AluaState::ActiveOptimized, preferred: true, ports: ONE },
            TargetPortGroup { id: 2, state: AluaState::ActiveNonOptimized, preferred: false, ports: TWO },
        ]
    }

    #[test]
    fn every_group_is_listed_with_its_ports() {
        let data =
            full_reply(|len, out| report_target_port_groups(groups(), ChangedBy::Implicit, false, len, out));
        let expected = [
            [0, 0, 0, 28].as_slice(),
            &[0x80, 0x8b, 0, 1, 0, 2, 0, 2, 0, 0, 0, 1, 0, 0, 1, 2],
            &[0x01, 0x8b, 0, 2, 0, 2, 0, 1, 0, 0, 0, 3],
        ]
        .concat();
        assert_eq!(data, expected);
    }

    #[test]
    fn what_is_wanted_is_who_becomes_the_owner() {
        let now = [
            (1, AluaState::ActiveOptimized),
            (2, AluaState::ActiveNonOptimized),
            (3, AluaState::ActiveNonOptimized),
            (0x104, AluaState::Unavailable),
        ];
        let ask =
            |descriptors: &[[u8; 4]]| wanted(&[&[[0; 4]], descriptors].concat().concat(), now.into_iter());
        let wrong = |byte, bit| Err(Sense::illegal_field_parameter(byte, bit));
        assert_eq!(wanted(&[], now.into_iter()), Ok(Wanted::Nothing));
        assert_eq!(ask(&[]), Ok(Wanted::Nothing));
        assert_eq!(ask(&[[0, 0, 0, 1]]), Ok(Wanted::Nothing), "it is the owner");
        assert_eq!(ask(&[[1, 0, 0, 2], [1, 0, 0, 3]]), Ok(Wanted::Nothing));
        assert_eq!(ask(&[[0, 0, 0, 2]]), Ok(Wanted::Optimized(2)));
        assert_eq!(ask(&[[1, 0, 0, 1], [0, 0, 0, 3], [1, 0, 0, 2]]), Ok(Wanted::Optimized(3)));
        assert_eq!(ask(&[[1, 0, 0, 1]]), wrong(4, Some(3)), "nobody would be the owner");
        assert_eq!(ask(&[[0, 0, 0, 2], [0, 0, 0, 3]]), wrong(8, Some(3)), "two owners");
        assert_eq!(ask(&[[0, 0, 0, 2], [1, 0, 0, 2]]), wrong(10, None), "named twice");
        assert_eq!(ask(&[[0, 0, 0, 9]]), wrong(6, None), "no such group");
        for state in 2..16 {
            assert_eq!(ask(&[[state, 0, 0, 2]]), wrong(4, Some(3)), "state {state:x}");
        }
        assert_eq!(ask(&[[0x10, 0, 0, 2]]), wrong(4, Some(7)));
        assert_eq!(ask(&[[0, 1, 0, 2]]), wrong(5, None));
        assert_eq!(wanted(&[0, 0, 1, 0], now.into_iter()), wrong(2, None));
        assert_eq!(ask(&[[0, 0, 1, 4]]), Err(SET_FAILED), "its node is not there");
    }

    #[test]
    fn extended_header_adds_the_transition_time() {
        let told = |extended| {
            full_reply(|len, out| report_target_port_groups(groups(), ChangedBy::Command, extended, len, out))
        };
        let (long, short) = (told(true), told(false));
        assert_eq!(short[9], 1, "by SET TARGET PORT GROUPS");
        assert_eq!(long[..8], [0, 0, 0, 32, 0x10, IMPLICIT_TRANSITION_TIME_S, 0, 0]);
        assert_eq!(long[8..], short[4..]);
    }
}
