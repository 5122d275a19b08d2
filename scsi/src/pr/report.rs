//! PERSISTENT RESERVE IN (SPC-5 6.15): what READ KEYS, READ RESERVATION, REPORT CAPABILITIES and READ FULL STATUS answer.
//!
//! Invariants: writes into the caller's buffer only and cuts off at its end; length fields tell the whole length
//! whatever the buffer's (SPC-5 4.2.5.6), so that an initiator can ask again with more room.

use super::{Registrant, View};
use crate::cdb::PrInAction;
use crate::reply::{Reply, ReplyWriter};

/// Writes the parameter data of `action`.
pub fn persistent_reserve_in(
    action: PrInAction,
    view: &View<'_>,
    allocation_length: u16,
    out: &mut [u8],
) -> Reply {
    let mut w = ReplyWriter::new(out, u32::from(allocation_length));
    match action {
        PrInAction::ReadKeys => read_keys(view, &mut w),
        PrInAction::ReadReservation => read_reservation(view, &mut w),
        PrInAction::ReportCapabilities => report_capabilities(view, &mut w),
        PrInAction::ReadFullStatus => read_full_status(view, &mut w),
    }
    w.finish()
}

fn read_keys(view: &View<'_>, w: &mut ReplyWriter<'_>) {
    header(view, w, view.registrants.len().saturating_mul(8));
    for registrant in view.registrants {
        w.put(&registrant.key.to_be_bytes());
    }
}

fn read_reservation(view: &View<'_>, w: &mut ReplyWriter<'_>) {
    let Some(reservation) = view.reservation else { return header(view, w, 0) };
    header(view, w, 16);
    // An all-registrants reservation has no key of its own: zero (SPC-5 6.15.3.2).
    let key = reservation.holder().and_then(|holder| view.registrant(holder)).map_or(0, |r| r.key);
    w.put(&key.to_be_bytes());
    w.put(&[0; 5]);
    w.put(&[reservation.kind().code(), 0, 0]);
}

fn report_capabilities(view: &View<'_>, w: &mut ReplyWriter<'_>) {
    const CRH: u8 = 0x10;
    // 100b: all that SPC-4 table 208 knows are allowed as its table 65 says.
    const ALLOW_COMMANDS: u8 = 0x40;
    const SIP_C: u8 = 0x08;
    const ATP_C: u8 = 0x04;
    const PTPL_C: u8 = 0x01;
    const TMV: u8 = 0x80;
    // Types supported: all six (SPC-5 table "Persistent reservation type mask").
    const TYPE_MASK: [u8; 2] = [0xea, 0x01];
    w.put(&[0, 8, CRH | SIP_C | ATP_C | PTPL_C, TMV | ALLOW_COMMANDS | u8::from(view.aptpl)]);
    w.put(&TYPE_MASK);
    w.put(&[0; 2]);
}

fn full_status_len(registrant: &Registrant) -> usize {
    registrant.nexus.initiator.as_bytes().len().saturating_add(24)
}

fn read_full_status(view: &View<'_>, w: &mut ReplyWriter<'_>) {
    header(view, w, view.registrants.iter().map(full_status_len).sum());
    for registrant in view.registrants {
        let held = view.reservation.filter(|_| view.holds(&registrant.nexus));
        let id = registrant.nexus.initiator.as_bytes();
        w.put(&registrant.key.to_be_bytes());
        w.put(&[0; 4]);
        // One descriptor for each I_T nexus: ALL_TG_PT stays 0, so that the RTPI of each is told.
        w.put(&[u8::from(held.is_some()), held.map_or(0, |r| r.kind().code())]);
        w.put(&[0; 4]);
        w.put(&registrant.nexus.port.0.to_be_bytes());
        w.put(&u32::try_from(id.len()).unwrap_or(u32::MAX).to_be_bytes());
        w.put(id);
    }
}

fn header(view: &View<'_>, w: &mut ReplyWriter<'_>, additional: usize) {
    w.put(&view.generation.to_be_bytes());
    w.put(&u32::try_from(additional).unwrap_or(u32::MAX).to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reply::full_reply;
    use crate::{
        nexus::{Nexus, RelativePort},
        pr::{Reservation, ReservationType},
        transport_id::TransportId,
    };
    use std::vec::Vec;

    fn nexus(n: u8) -> Nexus {
        Nexus::new(TransportId::iscsi("iqn.2026-01.x:a", [n; 6]).unwrap(), RelativePort(u16::from(n)))
    }

    fn registrants() -> Vec<Registrant> {
        (1..=2)
            .map(|n| Registrant { nexus: nexus(n), key: 0x11 * u64::from(n), all_target_ports: false })
            .collect()
    }

    fn answer(action: PrInAction, view: &View<'_>) -> Vec<u8> {
        full_reply(|len, out| {
            let len = u16::try_from(len).unwrap_or(u16::MAX);
            persistent_reserve_in(action, view, len, out)
        })
    }

    #[test]
    fn read_keys_lists_every_registrant_and_keeps_its_length_when_cut() {
        let registrants = registrants();
        let view = View { generation: 7, registrants: &registrants, ..View::EMPTY };
        let whole = answer(PrInAction::ReadKeys, &view);
        assert_eq!(whole, [0, 0, 0, 7, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0x11, 0, 0, 0, 0, 0, 0, 0, 0x22]);
    }

    #[test]
    fn read_reservation_names_the_holders_key_and_zero_for_all_registrants() {
        let registrants = registrants();
        let view = View { registrants: &registrants, ..View::EMPTY };
        assert_eq!(answer(PrInAction::ReadReservation, &view), [0; 8]);
        let one = Reservation::new(ReservationType::WriteExclusive, nexus(2));
        let told = answer(PrInAction::ReadReservation, &View { reservation: Some(&one), ..view });
        assert_eq!(told, [0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0x22, 0, 0, 0, 0, 0, 1, 0, 0]);
        let all = Reservation::new(ReservationType::ExclusiveAccessAllRegistrants, nexus(2));
        let told = answer(PrInAction::ReadReservation, &View { reservation: Some(&all), ..view });
        assert_eq!((&told[8..16], told[21]), (&[0; 8][..], 8));
    }

    #[test]
    fn capabilities_name_all_types_and_the_activated_aptpl() {
        let view = View { aptpl: true, ..View::EMPTY };
        assert_eq!(answer(PrInAction::ReportCapabilities, &view), [0, 8, 0x1d, 0xc1, 0xea, 0x01, 0, 0]);
    }

    #[test]
    fn full_status_marks_the_holder_and_carries_port_and_transport_id() {
        let registrants = registrants();
        let held = Reservation::new(ReservationType::ExclusiveAccess, nexus(2));
        let view = View { registrants: &registrants, reservation: Some(&held), ..View::EMPTY };
        let told = answer(PrInAction::ReadFullStatus, &view);
        let each = 24 + nexus(1).initiator.as_bytes().len();
        assert_eq!(told.len(), 8 + 2 * each);
        let (first, second) = told[8..].split_at(each);
        assert_eq!((first[7], first[12], first[13], first[19]), (0x11, 0, 0, 1));
        assert_eq!((second[7], second[12], second[13], second[19]), (0x22, 1, 3, 2));
        assert_eq!(&second[24..], nexus(2).initiator.as_bytes());
    }
}
