//! Asymmetric logical unit access, implicit only (SPC-5 5.17), and REPORT TARGET PORT GROUPS (SPC-5 6.35).

use crate::nexus::RelativePort;
use crate::reply::{Reply, ReplyWriter};

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

/// T_SUP, U_SUP, S_SUP, AN_SUP, AO_SUP.
const SUPPORTED_STATES: u8 = 0x8f;
/// STATUS CODE: changed by implicit behaviour.
const STATUS_IMPLICIT: u8 = 0x02;
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
        w.put(&[0, STATUS_IMPLICIT, 0, count]);
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
        let data = full_reply(|len, out| report_target_port_groups(groups(), false, len, out));
        let expected = [
            [0, 0, 0, 28].as_slice(),
            &[0x80, 0x8f, 0, 1, 0, 2, 0, 2, 0, 0, 0, 1, 0, 0, 1, 2],
            &[0x01, 0x8f, 0, 2, 0, 2, 0, 1, 0, 0, 0, 3],
        ]
        .concat();
        assert_eq!(data, expected);
    }

    #[test]
    fn extended_header_adds_the_transition_time() {
        let long = full_reply(|len, out| report_target_port_groups(groups(), true, len, out));
        let short = full_reply(|len, out| report_target_port_groups(groups(), false, len, out));
        assert_eq!(long[..8], [0, 0, 0, 32, 0x10, IMPLICIT_TRANSITION_TIME_S, 0, 0]);
        assert_eq!(long[8..], short[4..]);
    }
}
