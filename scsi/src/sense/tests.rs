use super::*;
use crate::limits;
use proptest::prelude::*;
use std::vec::Vec;

fn any_key() -> impl Strategy<Value = SenseKey> {
    (0u8..=15).prop_filter_map("reserved key", SenseKey::from_code)
}

fn any_specific(key: SenseKey) -> BoxedStrategy<SenseSpecific> {
    let some = match key {
        SenseKey::IllegalRequest => (any::<bool>(), any::<u16>(), prop::option::of(0u8..8))
            .prop_map(|(in_cdb, byte, bit)| SenseSpecific::FieldPointer { in_cdb, byte, bit })
            .boxed(),
        SenseKey::CopyAborted => (any::<bool>(), any::<u16>(), prop::option::of(0u8..8))
            .prop_map(|(in_segment, byte, bit)| SenseSpecific::SegmentPointer { in_segment, byte, bit })
            .boxed(),
        SenseKey::NoSense | SenseKey::NotReady => any::<u16>().prop_map(SenseSpecific::Progress).boxed(),
        SenseKey::HardwareError | SenseKey::MediumError | SenseKey::RecoveredError => {
            any::<u16>().prop_map(SenseSpecific::Retries).boxed()
        }
        _ => Just(SenseSpecific::None).boxed(),
    };
    prop_oneof![Just(SenseSpecific::None), some].boxed()
}

prop_compose! {
    fn any_sense(widest: u64)(key in any_key())(
        key in Just(key), asc in any::<u8>(), ascq in any::<u8>(),
        information in prop::option::of(0..=widest),
        command_specific in prop::option::of(1..=widest),
        specific in any_specific(key),
    ) -> Sense {
        let additional = AdditionalSense::new(asc, ascq);
        // With COPY ABORTED it is the number of a segment.
        let segment = key == SenseKey::CopyAborted;
        let command_specific = command_specific.filter(|value| !segment || *value <= 0xffff);
        Sense { key, additional, information, command_specific, specific, forwarded: None }
    }
}

proptest! {
    #[test]
    fn fixed_format_reads_back(sense in any_sense(u64::from(u32::MAX))) {
        let mut out = [0xff; limits::SENSE_LEN_MAX];
        let len = sense.write_fixed(&mut out);
        prop_assert_eq!(len, 18);
        prop_assert_eq!(Sense::parse(&out[..len]), Some(sense));
    }

    #[test]
    fn descriptor_format_reads_back(sense in any_sense(u64::MAX)) {
        let mut out = [0xff; limits::SENSE_LEN_MAX];
        let len = sense.write_descriptor(&mut out);
        prop_assert!(len <= 40);
        prop_assert_eq!(Sense::parse(&out[..len]), Some(sense));
    }

    #[test]
    fn any_bytes_are_parsed_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Sense::parse(&bytes);
    }

    #[test]
    fn short_buffers_hold_the_beginning(sense in any_sense(u64::MAX), descriptor in any::<bool>(), room in 0usize..45) {
        let mut full = [0u8; 64];
        let len = sense.write(descriptor, &mut full);
        let mut cut: Vec<u8> = std::vec![0xee; room];
        let written = sense.write(descriptor, &mut cut);
        prop_assert_eq!(written, len.min(room));
        prop_assert_eq!(&cut[..written], &full[..written]);
        prop_assert!(cut[written..].iter().all(|b| *b == 0xee));
    }
}

#[test]
fn fixed_format_bytes_are_those_of_the_standard() {
    let mut out = [0; 18];
    Sense::illegal_field_cdb(1, Some(7)).write_fixed(&mut out);
    assert_eq!(out, [0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x24, 0, 0, 0xcf, 0, 1]);
    Sense::lba_out_of_range(0x1234).write_fixed(&mut out);
    assert_eq!(out, [0xf0, 0, 5, 0, 0, 0x12, 0x34, 10, 0, 0, 0, 0, 0x21, 0, 0, 0, 0, 0]);
}

#[test]
fn information_too_wide_for_fixed_format_is_left_out() {
    let mut out = [0; 18];
    Sense::lba_out_of_range(1 << 32).write_fixed(&mut out);
    assert_eq!((out[0], &out[3..7]), (0x70, &[0u8; 4][..]));
}

#[test]
fn descriptor_format_bytes_are_those_of_the_standard() {
    let mut out = [0; 64];
    let len = Sense::illegal_field_parameter(0x102, None).with_information(7).write_descriptor(&mut out);
    assert_eq!(&out[..8], [0x72, 5, 0x26, 0, 0, 0, 0, 20]);
    assert_eq!(&out[8..20], [0, 10, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
    assert_eq!(&out[20..len], [2, 6, 0, 0, 0x80, 1, 2, 0]);
}

#[test]
fn resets_and_mode_changes_are_told_in_fixed_format_whatever_d_sense_says() {
    let format = |sense: Sense| {
        let mut out = [0; 64];
        sense.write(true, &mut out);
        out[0]
    };
    assert_eq!(format(Sense::unit_attention(asc::POWER_ON_OR_RESET)), 0x70);
    assert_eq!(format(Sense::unit_attention(asc::I_T_NEXUS_LOSS)), 0x70);
    assert_eq!(format(Sense::unit_attention(asc::MODE_PARAMETERS_CHANGED)), 0x70);
    assert_eq!(format(Sense::unit_attention(asc::RESERVATIONS_RELEASED)), 0x72);
    assert_eq!(format(Sense::illegal(asc::INVALID_FIELD_IN_CDB)), 0x72);
}

#[test]
fn no_two_names_share_a_code() {
    for (i, (code, _)) in asc::ALL.iter().enumerate() {
        assert!(asc::ALL[i + 1..].iter().all(|(other, _)| other != code), "{code}");
    }
    assert_eq!(asc::name(asc::ALUA_STATE_CHANGED), Some("ALUA_STATE_CHANGED"));
}

#[test]
fn what_a_copy_source_or_destination_answered_reads_back_in_both_formats() {
    for by_source in [true, false] {
        for inner in [None, Some((SenseKey::DataProtect, asc::WRITE_PROTECTED))] {
            let forwarded =
                Forwarded { by_source, status: crate::status::Status::CheckCondition, sense: inner };
            let sense = Sense::copy_aborted(asc::THIRD_PARTY_DEVICE_FAILURE, 7)
                .with_segment_pointer(false, 48, None)
                .with_forwarded(forwarded);
            let mut out = [0xff; limits::SENSE_LEN_MAX];
            let len = sense.write_fixed(&mut out);
            assert_eq!((len, usize::from(out[7])), (if inner.is_some() { 37 } else { 19 }, len - 8));
            assert_eq!((out[8], out[9]), if by_source { (18, 0) } else { (0, 18) });
            assert_eq!(out[10..12], [0, 7]);
            assert_eq!(out[18], 0x02);
            assert_eq!(Sense::parse(&out[..len]), Some(sense));
            let len = sense.write_descriptor(&mut out);
            assert!(len <= 40, "{len}");
            assert_eq!(Sense::parse(&out[..len]), Some(sense));
        }
    }
}
