//! Images are read back as they were written, and anything else is refused.

use std::{vec, vec::Vec};

use super::*;
use crate::encode::{self, Facts};

pub(crate) const NAME: &str = "iqn.2026-01.example.holdfast:target";

pub(crate) fn groups() -> Vec<encode::Group> {
    vec![
        encode::Group {
            id: 1,
            state: AluaState::ActiveOptimized,
            preferred: true,
            ports: vec![RelativePort(1), RelativePort(2)],
        },
        encode::Group {
            id: 2,
            state: AluaState::ActiveNonOptimized,
            preferred: false,
            ports: vec![RelativePort(3)],
        },
    ]
}

pub(crate) fn facts<'a>(groups: &'a [encode::Group]) -> Facts<'a> {
    Facts {
        unit: LuProperties {
            identity: LuIdentity { volume_uuid: [7; 16], revision: *b"0001" },
            geometry: Geometry::new(512, 2048).unwrap(),
            physical_block_exponent: 3,
        },
        mode: ModeParameters::new(false),
        read_only: false,
        version: 9,
        barrier_passed: true,
        epoch: (1, 4),
        group: 1,
        target_name: NAME,
        groups,
    }
}

pub(crate) fn registrant(port: u16, key: u64) -> Registrant {
    let initiator = TransportId::iscsi("iqn.2026-01.example:host", [0, 0, 0, 0, 0, port as u8]).unwrap();
    Registrant { nexus: Nexus::new(initiator, RelativePort(port)), key, all_target_ports: false }
}

pub(crate) fn with_image<T>(message: &[u8], read: impl FnOnce(Image<'_>) -> T) -> Result<T, ImageError> {
    let count = registrants(message)? as usize;
    let mut head = MaybeUninit::uninit();
    let mut list: Vec<MaybeUninit<Registrant>> = (0..count).map(|_| MaybeUninit::uninit()).collect();
    build(message, &mut head, &mut list)?;
    #[expect(unsafe_code, reason = "what `build` promises")]
    // SAFETY: `build` succeeded, so all of both is initialised.
    let (head, list) =
        unsafe { (head.assume_init(), list.into_iter().map(|slot| slot.assume_init()).collect::<Vec<_>>()) };
    Ok(read(Image::new(&head, &list).unwrap()))
}

fn reserved() -> Vec<u8> {
    let registrants = [registrant(1, 0xa), registrant(3, 0xb)];
    let reservation = Reservation::new(ReservationType::WriteExclusive, registrants[1].nexus);
    let view =
        View { generation: 5, aptpl: true, registrants: &registrants, reservation: Some(&reservation) };
    encode::image(&facts(&groups()), &view)
}

#[test]
fn what_was_written_is_read() {
    with_image(&reserved(), |image| {
        let view = image.view();
        assert_eq!((view.generation, view.aptpl, view.registrants.len()), (5, true, 2));
        assert_eq!(view.reservation.unwrap().holder(), Some(&registrant(3, 0xb).nexus));
        assert_eq!((image.version(), image.epoch()), (9, (1, 4)));
        assert_eq!(image.port(RelativePort(3)).unwrap().target_port_group, 2);
        assert_eq!(image.port(RelativePort(2)).unwrap().target_name, NAME);
        assert!(image.port(RelativePort(4)).is_none());
    })
    .unwrap();
}

#[test]
fn an_image_that_ends_early_or_late_is_refused() {
    let whole = reserved();
    for len in 0..whole.len() {
        assert!(with_image(&whole[..len], |_| ()).is_err(), "{len} bytes");
    }
    let longer = [whole.as_slice(), &[0]].concat();
    assert_eq!(with_image(&longer, |_| ()).unwrap_err(), ImageError::Length);
}

#[test]
fn values_that_no_unit_has_are_refused() {
    // (offset, value): flags, block size, blocks 0, exponent, access state, reservation type, reserved bytes, epoch 0.0,
    // holder behind the list, own group that is not there, name length 0.
    let cases: [(usize, &[u8]); 12] = [
        (6, &[0x80]),
        (28, &[0, 0, 2, 1]),
        (32, &[0; 8]),
        (40, &[16]),
        (41, &[7]),
        (42, &[2]),
        (43, &[1]),
        (60, &[0, 0, 0, 2]),
        (78, &[0, 9]),
        (80, &[0, 0]),
        (82, &[1]),
        (88, &[0x80]),
    ];
    for (at, bytes) in cases {
        let mut message = reserved();
        message[at..at + bytes.len()].copy_from_slice(bytes);
        assert!(with_image(&message, |_| ()).is_err(), "offset {at}");
    }
}

#[test]
fn a_single_holder_is_there_exactly_where_the_type_has_one() {
    let mut message = reserved();
    message[60..64].copy_from_slice(&NO_HOLDER.to_be_bytes());
    assert_eq!(with_image(&message, |_| ()).unwrap_err(), ImageError::Value);
    message[42] = ReservationType::WriteExclusiveAllRegistrants.code();
    assert!(with_image(&message, |_| ()).is_ok());
}

#[test]
fn every_changed_byte_is_refused_or_read_without_harm() {
    let whole = reserved();
    for at in 0..whole.len() {
        for value in [0, 1, 0x7f, 0xff] {
            let mut message = whole.clone();
            message[at] = value;
            let _ = with_image(&message, |image| image.view().registrants.len());
        }
    }
}

#[test]
fn claims_beyond_the_bounds_are_refused_before_memory_is_made() {
    let mut message = reserved();
    message[72..76].copy_from_slice(&(REGISTRANTS_MAX + 1).to_be_bytes());
    assert_eq!(registrants(&message), Err(ImageError::TooMany));
    let mut message = reserved();
    message[76..78].copy_from_slice(&(GROUPS_MAX as u16 + 1).to_be_bytes());
    assert_eq!(with_image(&message, |_| ()).unwrap_err(), ImageError::TooMany);
}
