//! What a PERSISTENT RESERVE OUT asks for (SPC-5 6.16): the CDB and its parameter list, read once.
//!
//! Invariants: a [`PrOut`] holds valid values only; the device server and the controller's state machine read the very
//! same bytes (CDB and parameter list) with this function, so they cannot understand a request differently.

use super::ReservationType;
use crate::{
    cdb::PrOutAction,
    limits,
    nexus::RelativePort,
    sense::Sense,
    transport_id::{TransportId, TransportIdError},
};

/// Operation code of PERSISTENT RESERVE OUT.
pub const OPCODE: u8 = 0x5f;
/// Length of the CDB, in bytes.
pub const CDB_LEN: usize = 10;
/// Length of the parameter list without TransportIDs, in bytes.
pub const PARAMETER_LIST_LEN: usize = 24;

const SPEC_I_PT: u8 = 0x08;
const ALL_TG_PT: u8 = 0x04;
const APTPL: u8 = 0x01;
const UNREG: u8 = 0x02;
/// Where the TransportID of REGISTER AND MOVE, or the length of the SPEC_I_PT list, stands.
const ADDITIONAL: usize = 24;
const SPEC_I_PT_LIST: usize = 28;

/// One PERSISTENT RESERVE OUT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "the kernel tier has no box, and a request lives on the stack for one call"
)]
pub enum PrOut<'a> {
    /// REGISTER, and REGISTER AND IGNORE EXISTING KEY.
    Register {
        /// RESERVATION KEY; `None` where the existing key is ignored.
        existing_key: Option<u64>,
        /// SERVICE ACTION RESERVATION KEY; 0 unregisters.
        new_key: u64,
        /// APTPL.
        aptpl: bool,
        /// ALL_TG_PT.
        all_target_ports: bool,
        /// SPEC_I_PT: the initiator ports to register beside the issuer's own.
        initiator_ports: Option<TransportIds<'a>>,
    },
    /// RESERVE.
    Reserve {
        /// RESERVATION KEY.
        key: u64,
        /// TYPE.
        kind: ReservationType,
    },
    /// RELEASE.
    Release {
        /// RESERVATION KEY.
        key: u64,
        /// TYPE, `None` when scope or type is none that can be held: then it matches no reservation.
        kind: Option<ReservationType>,
    },
    /// CLEAR.
    Clear {
        /// RESERVATION KEY.
        key: u64,
    },
    /// PREEMPT and PREEMPT AND ABORT.
    Preempt {
        /// RESERVATION KEY.
        key: u64,
        /// SERVICE ACTION RESERVATION KEY: whose registrations go.
        victim: u64,
        /// TYPE of the reservation that takes the place of a preempted one. Looked at in that case only (SPC-5
        /// 5.14.11.4), so that an invalid one is no error before.
        kind: Option<ReservationType>,
        /// PREEMPT AND ABORT.
        abort: bool,
    },
    /// REGISTER AND MOVE.
    RegisterAndMove {
        /// RESERVATION KEY.
        key: u64,
        /// SERVICE ACTION RESERVATION KEY: the key of the new holder, never 0.
        new_key: u64,
        /// UNREG: the issuer's own registration goes.
        unregister: bool,
        /// APTPL.
        aptpl: bool,
        /// The new holder's initiator port.
        initiator: TransportId,
        /// The new holder's target port.
        port: RelativePort,
    },
}

impl<'a> PrOut<'a> {
    /// Reads a request. `cdb` has its 10 bytes, `parameter_list` what the initiator sent. Errors are the sense data to
    /// answer with: 05/24/00 for the CDB, 05/1A/00 for a wrong length, 05/26/00 for the list.
    pub fn parse(cdb: &[u8], parameter_list: &'a [u8]) -> Result<PrOut<'a>, Sense> {
        let cdb: &[u8; CDB_LEN] = cdb.first_chunk().ok_or(Sense::illegal_field_cdb(0, None))?;
        let [opcode, action, scope_type, _, _, l0, l1, l2, l3, _] = *cdb;
        if opcode != OPCODE {
            return Err(Sense::illegal_field_cdb(0, None));
        }
        let action = action_of(action & 0x1f).ok_or(Sense::illegal_field_cdb(1, Some(4)))?;
        let announced = usize::try_from(u32::from_be_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
        if announced < PARAMETER_LIST_LEN || announced > limits::PR_OUT_PARAMETER_LIST_MAX as usize {
            return Err(Sense::parameter_list_length());
        }
        // Fewer bytes than announced is the transport's truncation: the request is not whole.
        let list = parameter_list.get(..announced).ok_or(Sense::parameter_list_length())?;
        let kind = if scope_type >> 4 == 0 { ReservationType::from_code(scope_type & 0x0f) } else { None };
        if action == PrOutAction::RegisterAndMove {
            return Self::parse_register_and_move(list);
        }
        Self::parse_basic(action, kind, list)
    }

    fn parse_basic(
        action: PrOutAction,
        kind: Option<ReservationType>,
        list: &'a [u8],
    ) -> Result<PrOut<'a>, Sense> {
        let (key, victim) = (be64(list, 0)?, be64(list, 8)?);
        let flags = byte(list, 20)?;
        let (aptpl, all_target_ports) = (flags & APTPL != 0, flags & ALL_TG_PT != 0);
        let initiator_ports = if flags & SPEC_I_PT == 0 {
            if list.len() != PARAMETER_LIST_LEN {
                return Err(Sense::parameter_list_length());
            }
            None
        } else if action == PrOutAction::Register {
            Some(TransportIds::parse(list)?)
        } else {
            return Err(Sense::illegal_field_parameter(20, Some(3)));
        };
        Ok(match action {
            PrOutAction::Register | PrOutAction::RegisterAndIgnoreExistingKey => PrOut::Register {
                existing_key: (action == PrOutAction::Register).then_some(key),
                new_key: victim,
                aptpl,
                all_target_ports,
                initiator_ports,
            },
            PrOutAction::Reserve => {
                PrOut::Reserve { key, kind: kind.ok_or(Sense::illegal_field_cdb(2, Some(7)))? }
            }
            PrOutAction::Release => PrOut::Release { key, kind },
            PrOutAction::Clear => PrOut::Clear { key },
            PrOutAction::Preempt => PrOut::Preempt { key, victim, kind, abort: false },
            PrOutAction::PreemptAndAbort => PrOut::Preempt { key, victim, kind, abort: true },
            PrOutAction::RegisterAndMove => return Self::parse_register_and_move(list),
            PrOutAction::ReplaceLostReservation => return Err(Sense::illegal_field_cdb(1, Some(4))),
        })
    }

    fn parse_register_and_move(list: &[u8]) -> Result<PrOut<'a>, Sense> {
        let (key, new_key) = (be64(list, 0)?, be64(list, 8)?);
        let flags = byte(list, 17)?;
        let announced = be32(list, 20)?;
        let id_bytes = list.get(ADDITIONAL..).unwrap_or_default();
        if announced != id_bytes.len() {
            return Err(Sense::parameter_list_length());
        }
        if new_key == 0 {
            return Err(Sense::illegal_field_parameter(8, None));
        }
        let (initiator, taken) =
            TransportId::parse(id_bytes).map_err(|e| transport_id_sense(e, ADDITIONAL))?;
        if taken != announced {
            return Err(Sense::illegal_field_parameter(20, None));
        }
        Ok(PrOut::RegisterAndMove {
            key,
            new_key,
            unregister: flags & UNREG != 0,
            aptpl: flags & APTPL != 0,
            initiator,
            port: RelativePort(be16(list, 18)?),
        })
    }
}

/// The TransportIDs of SPEC_I_PT: a list that was read once and is known to be valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransportIds<'a>(&'a [u8]);

impl<'a> TransportIds<'a> {
    /// The initiator ports, in the order of the list.
    pub fn iter(&self) -> impl Iterator<Item = TransportId> + 'a {
        let mut rest = self.0;
        core::iter::from_fn(move || {
            let (id, taken) = TransportId::parse(rest).ok()?;
            rest = rest.get(taken..)?;
            Some(id)
        })
    }

    fn parse(list: &'a [u8]) -> Result<TransportIds<'a>, Sense> {
        if list.len() < SPEC_I_PT_LIST {
            return Err(Sense::parameter_list_length());
        }
        let ids = list.get(SPEC_I_PT_LIST..).unwrap_or_default();
        if be32(list, ADDITIONAL)? != ids.len() {
            return Err(Sense::parameter_list_length());
        }
        let mut at = 0;
        while let Some(rest) = ids.get(at..).filter(|rest| !rest.is_empty()) {
            let (_, taken) = TransportId::parse(rest)
                .map_err(|e| transport_id_sense(e, SPEC_I_PT_LIST.saturating_add(at)))?;
            at = at.saturating_add(taken);
        }
        Ok(TransportIds(ids))
    }
}

/// REPLACE LOST RESERVATION (08h) is not supported: reservations are never lost here (RLR_C is 0), so there is nothing
/// to replace.
const fn action_of(code: u8) -> Option<PrOutAction> {
    Some(match code {
        0 => PrOutAction::Register,
        1 => PrOutAction::Reserve,
        2 => PrOutAction::Release,
        3 => PrOutAction::Clear,
        4 => PrOutAction::Preempt,
        5 => PrOutAction::PreemptAndAbort,
        6 => PrOutAction::RegisterAndIgnoreExistingKey,
        7 => PrOutAction::RegisterAndMove,
        _ => return None,
    })
}

fn transport_id_sense(_: TransportIdError, at: usize) -> Sense {
    Sense::illegal_field_parameter(u16::try_from(at).unwrap_or(u16::MAX), None)
}

fn byte(list: &[u8], at: usize) -> Result<u8, Sense> {
    list.get(at).copied().ok_or(Sense::parameter_list_length())
}

fn chunk<const N: usize>(list: &[u8], at: usize) -> Result<[u8; N], Sense> {
    list.get(at..).and_then(|l| l.first_chunk()).copied().ok_or(Sense::parameter_list_length())
}

fn be16(list: &[u8], at: usize) -> Result<u16, Sense> {
    chunk(list, at).map(u16::from_be_bytes)
}

fn be32(list: &[u8], at: usize) -> Result<usize, Sense> {
    chunk(list, at).map(|b| usize::try_from(u32::from_be_bytes(b)).unwrap_or(usize::MAX))
}

fn be64(list: &[u8], at: usize) -> Result<u64, Sense> {
    chunk(list, at).map(u64::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sense::asc;
    use std::{vec, vec::Vec};

    fn cdb(action: u8, scope_type: u8, len: usize) -> [u8; 10] {
        let l = (len as u32).to_be_bytes();
        [OPCODE, action, scope_type, 0, 0, l[0], l[1], l[2], l[3], 0]
    }

    fn basic(key: u64, action_key: u64, flags: u8) -> Vec<u8> {
        let mut list = vec![0; 24];
        list[..8].copy_from_slice(&key.to_be_bytes());
        list[8..16].copy_from_slice(&action_key.to_be_bytes());
        list[20] = flags;
        list
    }

    fn port(n: u8) -> TransportId {
        TransportId::iscsi("iqn.2026-01.x:b", [n; 6]).unwrap()
    }

    #[test]
    fn every_basic_action_is_read() {
        let list = basic(1, 2, 0x05);
        let read = |action, scope_type| PrOut::parse(&cdb(action, scope_type, 24), &list).unwrap();
        let we = ReservationType::WriteExclusive;
        let register = |existing_key| PrOut::Register {
            existing_key,
            new_key: 2,
            aptpl: true,
            all_target_ports: true,
            initiator_ports: None,
        };
        assert_eq!(read(0, 0), register(Some(1)));
        assert_eq!(read(6, 0), register(None));
        assert_eq!(read(1, 1), PrOut::Reserve { key: 1, kind: we });
        assert_eq!(read(2, 1), PrOut::Release { key: 1, kind: Some(we) });
        assert_eq!(read(3, 0), PrOut::Clear { key: 1 });
        assert_eq!(read(4, 1), PrOut::Preempt { key: 1, victim: 2, kind: Some(we), abort: false });
        assert_eq!(read(5, 1), PrOut::Preempt { key: 1, victim: 2, kind: Some(we), abort: true });
    }

    #[test]
    fn reserved_actions_types_and_scopes_point_at_their_field() {
        let list = basic(1, 2, 0);
        assert_eq!(PrOut::parse(&cdb(8, 0, 24), &list), Err(Sense::illegal_field_cdb(1, Some(4))));
        assert_eq!(PrOut::parse(&cdb(1, 2, 24), &list), Err(Sense::illegal_field_cdb(2, Some(7))));
        assert_eq!(PrOut::parse(&cdb(1, 0x21, 24), &list), Err(Sense::illegal_field_cdb(2, Some(7))));
    }

    #[test]
    fn wrong_lengths_are_parameter_list_length_errors() {
        let list = basic(1, 2, 0);
        let long = [&list[..], &[0; 4]].concat();
        for (announced, list) in [(23, &list), (24, &list[..20].to_vec()), (28, &long), (0, &list)] {
            let got = PrOut::parse(&cdb(0, 0, announced), list).unwrap_err();
            assert_eq!(got.additional, asc::PARAMETER_LIST_LENGTH_ERROR, "{announced}");
        }
        assert!(PrOut::parse(&cdb(0, 0, 17 << 10), &vec![0; 17 << 10]).is_err());
    }

    #[test]
    fn spec_i_pt_lists_ports_for_register_only() {
        let mut list = basic(0, 2, SPEC_I_PT);
        let ids = [port(1).as_bytes(), port(2).as_bytes()].concat();
        list.extend_from_slice(&(ids.len() as u32).to_be_bytes());
        list.extend_from_slice(&ids);
        let Ok(PrOut::Register { initiator_ports: Some(read), .. }) =
            PrOut::parse(&cdb(0, 0, list.len()), &list)
        else {
            panic!("not read")
        };
        assert_eq!(read.iter().collect::<Vec<_>>(), [port(1), port(2)]);
        for action in [1, 2, 3, 4, 5, 6] {
            let refused = PrOut::parse(&cdb(action, 1, list.len()), &list).unwrap_err();
            assert_eq!(refused, Sense::illegal_field_parameter(20, Some(3)), "{action}");
        }
    }

    #[test]
    fn spec_i_pt_list_that_disagrees_with_its_length_is_refused() {
        let mut list = basic(0, 2, SPEC_I_PT);
        list.extend_from_slice(&100u32.to_be_bytes());
        list.extend_from_slice(port(1).as_bytes());
        assert_eq!(PrOut::parse(&cdb(0, 0, list.len()), &list), Err(Sense::parameter_list_length()));
        let mut torn = basic(0, 2, SPEC_I_PT);
        torn.extend_from_slice(&20u32.to_be_bytes());
        torn.extend_from_slice(&port(1).as_bytes()[..20]);
        assert_eq!(
            PrOut::parse(&cdb(0, 0, torn.len()), &torn),
            Err(Sense::illegal_field_parameter(28, None))
        );
    }

    #[test]
    fn register_and_move_names_its_destination() {
        let mut list = basic(1, 2, 0);
        list[17] = UNREG | APTPL;
        list[18..20].copy_from_slice(&7u16.to_be_bytes());
        list[20..24].copy_from_slice(&(port(3).as_bytes().len() as u32).to_be_bytes());
        list.extend_from_slice(port(3).as_bytes());
        let read = PrOut::parse(&cdb(7, 0, list.len()), &list).unwrap();
        let expected = PrOut::RegisterAndMove {
            key: 1,
            new_key: 2,
            unregister: true,
            aptpl: true,
            initiator: port(3),
            port: RelativePort(7),
        };
        assert_eq!(read, expected);
        list[8..16].fill(0);
        assert_eq!(PrOut::parse(&cdb(7, 0, list.len()), &list), Err(Sense::illegal_field_parameter(8, None)));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            action in 0u8..16, scope_type: u8, len in 0usize..200, list in proptest::collection::vec(0u8.., 0..200),
        ) {
            let _ = PrOut::parse(&cdb(action, scope_type, len), &list);
        }
    }
}
