use super::*;
use crate::reply::full_reply;
use proptest::prelude::*;
use std::vec::Vec;

const DEFAULT: ModeParameters = ModeParameters::new(true);
const SAVED: ModeParameters = ModeParameters { task_aborted_status: true, ..DEFAULT };

fn unit() -> Geometry {
    Geometry::new(512, 0x1_2345).unwrap()
}

fn state(current: ModeParameters) -> ModeState {
    ModeState { current, default: DEFAULT, saved: SAVED, read_only: false, geometry: unit() }
}

fn ask(form: ModeForm, control: PageControl, page: u8, subpage: u8) -> ModeSense {
    ModeSense {
        form,
        control,
        page,
        subpage,
        block_descriptor: false,
        long_lba: false,
        allocation_length: u16::MAX,
    }
}

fn reply(request: ModeSense, state: ModeState) -> Vec<u8> {
    full_reply(|len, out| {
        let request = ModeSense { allocation_length: len.min(0xffff) as u16, ..request };
        sense(&request, &state, out).unwrap()
    })
}

fn pages(request: ModeSense, state: ModeState) -> Vec<u8> {
    let header = if request.form == ModeForm::Six { 4 } else { 8 };
    reply(request, state).split_off(header)
}

#[test]
fn header_tells_length_protection_and_dpofua() {
    let six = reply(ask(ModeForm::Six, PageControl::Current, 0x08, 0), state(DEFAULT));
    assert_eq!(six[..4], [23, 0, 0x10, 0]);
    assert_eq!(six.len(), 24);
    let ten = reply(ask(ModeForm::Ten, PageControl::Current, 0x08, 0), state(DEFAULT));
    assert_eq!(ten[..8], [0, 26, 0, 0x10, 0, 0, 0, 0]);
    let protected = ModeParameters { software_write_protect: true, ..DEFAULT };
    assert_eq!(reply(ask(ModeForm::Six, PageControl::Current, 0x08, 0), state(protected))[2], 0x90);
    let read_only = ModeState { read_only: true, ..state(DEFAULT) };
    assert_eq!(reply(ask(ModeForm::Six, PageControl::Current, 0x08, 0), read_only)[2], 0x90);
}

#[test]
fn block_descriptor_comes_short_or_long() {
    let mut request = ask(ModeForm::Ten, PageControl::Current, 0x08, 0);
    request.block_descriptor = true;
    assert_eq!(reply(request, state(DEFAULT))[6..16], [0, 8, 0, 1, 0x23, 0x45, 0, 0, 2, 0]);
    request.long_lba = true;
    let long = reply(request, state(DEFAULT));
    assert_eq!(long[4..8], [1, 0, 0, 16]);
    assert_eq!(long[8..24], [0, 0, 0, 0, 0, 1, 0x23, 0x45, 0, 0, 0, 0, 0, 0, 2, 0]);
}

#[test]
fn all_pages_are_each_page_in_order_with_and_without_subpages() {
    let each = |list: &[(u8, u8)]| -> Vec<u8> {
        let one = |(p, s): &(u8, u8)| pages(ask(ModeForm::Ten, PageControl::Current, *p, *s), state(DEFAULT));
        list.iter().flat_map(one).collect()
    };
    let all = |subpage| pages(ask(ModeForm::Ten, PageControl::Current, 0x3f, subpage), state(DEFAULT));
    assert_eq!(all(0x00), each(&[(1, 0), (8, 0), (0x0a, 0), (0x1c, 0)]));
    assert_eq!(all(0xff), each(&[(1, 0), (8, 0), (0x0a, 0), (0x0a, 1), (0x1c, 0), (0x1c, 2)]));
    let control = pages(ask(ModeForm::Ten, PageControl::Current, 0x0a, 0xff), state(DEFAULT));
    assert_eq!(control, each(&[(0x0a, 0), (0x0a, 1)]));
}

#[test]
fn unknown_pages_and_subpages_point_at_their_field() {
    let refused = |page, subpage| {
        sense(&ask(ModeForm::Six, PageControl::Current, page, subpage), &state(DEFAULT), &mut [])
    };
    assert_eq!(refused(0x02, 0), Err(Sense::illegal_field_cdb(2, Some(5))));
    assert_eq!(refused(0x08, 1), Err(Sense::illegal_field_cdb(3, None)));
    assert_eq!(refused(0x3f, 1), Err(Sense::illegal_field_cdb(3, None)));
}

#[test]
fn every_page_has_the_length_its_header_says() {
    for id in PageId::ALL {
        let page = id.bytes(&DEFAULT);
        let bytes = page.as_slice();
        let body = match id.subpage() {
            0 => usize::from(bytes[1]) + 2,
            _ => usize::from(u16::from_be_bytes([bytes[2], bytes[3]])) + 4,
        };
        assert_eq!((bytes[0] & 0x3f, body), (id.page(), bytes.len()));
        assert_eq!(id.changeable().as_slice().len(), bytes.len());
    }
}

#[test]
fn current_default_and_changeable_values_differ_as_they_should() {
    let now = ModeParameters {
        write_cache: false,
        software_write_protect: true,
        descriptor_sense: true,
        queue_error: QueueError::AbortOwn,
        interlock: Interlock::Keep,
        ..DEFAULT
    };
    let page = |control, page| pages(ask(ModeForm::Six, control, page, 0), state(now));
    assert_eq!(page(PageControl::Current, 0x08)[2], 0x00);
    assert_eq!(page(PageControl::Default, 0x08)[2], 0x04);
    assert_eq!(page(PageControl::Changeable, 0x08)[..3], [0x88, 0x12, 0x04]);
    assert_eq!(page(PageControl::Current, 0x0a)[2..6], [0x06, 0x16, 0x28, 0]);
    assert_eq!(page(PageControl::Default, 0x0a)[2..6], [0x02, 0x10, 0x00, 0]);
    assert_eq!(page(PageControl::Saved, 0x0a)[2..6], [0x02, 0x10, 0x00, 0x40]);
    assert_eq!(page(PageControl::Changeable, 0x0a), [0x8a, 0x0a, 0x24, 6, 0x38, 0x40, 0, 0, 0, 0, 0, 0]);
}

fn select(form: ModeForm, list: &[u8]) -> Result<ModeParameters, Sense> {
    parse_select(form, list, &DEFAULT, &unit())
}

fn any_parameters() -> impl Strategy<Value = ModeParameters> {
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let codes = (0usize..3, 0usize..3, 0usize..3);
    let thresholds = (any::<bool>(), any::<Option<u32>>(), any::<Option<u32>>());
    (flags, codes, thresholds).prop_map(|((a, b, c, d, e, f), (queue, interlock, method), (g, h, i))| {
        ModeParameters {
            write_cache: a,
            software_write_protect: b,
            descriptor_sense: c,
            task_set_per_nexus: d,
            queue_error: [QueueError::Continue, QueueError::AbortAll, QueueError::AbortOwn][queue],
            task_aborted_status: e,
            interlock: [Interlock::None, Interlock::Keep, Interlock::KeepAndEstablish][interlock],
            exceptions: InformationalExceptions {
                disabled: f,
                test: a ^ b,
                method: [ReportMethod::None, ReportMethod::UnitAttention, ReportMethod::OnRequest][method],
            },
            provisioning: Thresholds { single_initiator: g, available: h, used: i },
        }
    })
}

proptest! {
    #[test]
    fn what_sense_returns_can_be_selected(
        old in any_parameters(), new in any_parameters(), ten in any::<bool>(), descriptor in any::<bool>(),
        long in any::<bool>(),
    ) {
        let form = if ten { ModeForm::Ten } else { ModeForm::Six };
        let request = ModeSense {
            block_descriptor: descriptor, long_lba: ten && long, ..ask(form, PageControl::Current, 0x3f, 0xff)
        };
        let list = reply(request, state(new));
        prop_assert_eq!(parse_select(form, &list, &old, &unit()), Ok(new));
    }

    #[test]
    fn any_list_is_parsed_without_panic(list in prop::collection::vec(any::<u8>(), 0..80), ten in any::<bool>()) {
        let _ = select(if ten { ModeForm::Ten } else { ModeForm::Six }, &list);
    }

    #[test]
    fn a_list_cut_anywhere_is_an_error_or_a_shorter_list(cut in 1usize..130) {
        let list = reply(ask(ModeForm::Six, PageControl::Current, 0x3f, 0xff), state(DEFAULT));
        let ends = [4, 4 + 12, 4 + 32, 4 + 44, 4 + 76, 4 + 88, 4 + 120];
        prop_assert_eq!(list.len(), 124);
        let cut = cut.min(list.len());
        match select(ModeForm::Six, &list[..cut]) {
            Ok(same) => prop_assert!(ends.contains(&cut) && same == DEFAULT),
            Err(sense) => prop_assert!(!ends.contains(&cut) && sense == Sense::parameter_list_length()),
        }
    }

    #[test]
    fn only_changeable_bits_change(at in 0usize..124, bit in 0u8..8) {
        let mut list = reply(ask(ModeForm::Six, PageControl::Current, 0x3f, 0xff), state(DEFAULT));
        list[at] ^= 1 << bit;
        let result = select(ModeForm::Six, &list);
        match (at, bit) {
            // Header: MODE DATA LENGTH and DEVICE-SPECIFIC PARAMETER are reserved here; PS of each page is ignored.
            (0 | 2, _) | (4 | 16 | 36 | 48 | 80 | 92, 7) => prop_assert_eq!(result, Ok(DEFAULT)),
            // WCE; TST and D_SENSE; QERR 01b; UA_INTLCK 10b and SWP; TAS; DEXCPT and TEST; MRIE 2h; SITUA; ENABLED.
            (18, 2) | (38, 5 | 2) | (39, 1) | (40, 5 | 3) | (41, 6) | (82, 2 | 3) | (83, 1) | (96, 0) | (108 | 116, 7) => {
                prop_assert!(result.is_ok_and(|new| new != DEFAULT));
            }
            // Reserved values of a field point at its first bit.
            (39, 2) | (40, 4) | (83, 0 | 2 | 3) => {
                let first = match at { 39 => 2, 40 => 5, _ => 3 };
                prop_assert_eq!(result, Err(Sense::illegal_field_parameter(at as u16, Some(first))));
            }
            // A count of a threshold that is not enabled.
            (112..116 | 120..124, _) => prop_assert!(result.is_err()),
            // Body bytes: the pointer says exactly which bit.
            (6..16 | 18..36 | 38..48 | 52..80 | 82..92 | 96.., _) => {
                prop_assert_eq!(result, Err(Sense::illegal_field_parameter(at as u16, Some(bit))));
            }
            _ => prop_assert!(result.is_err()),
        }
    }
}

#[test]
fn wrong_lists_point_at_the_wrong_field() {
    let wrong = |list: &[u8]| select(ModeForm::Six, list).unwrap_err();
    assert_eq!(wrong(&[0, 0, 0]), Sense::parameter_list_length());
    assert_eq!(wrong(&[0, 1, 0, 0]), Sense::illegal_field_parameter(1, None));
    assert_eq!(wrong(&[0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]), Sense::illegal_field_parameter(3, None));
    assert_eq!(wrong(&[0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 2, 0]), Sense::illegal_field_parameter(4, None));
    assert_eq!(wrong(&[0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 16, 0]), Sense::illegal_field_parameter(8, None));
    assert_eq!(wrong(&[0, 0, 0, 0, 0x02, 0]), Sense::illegal_field_parameter(4, Some(5)));
    assert_eq!(wrong(&[0, 0, 0, 0, 0x08, 0x13, 4]), Sense::illegal_field_parameter(5, None));
    assert_eq!(wrong(&[0, 0, 0, 0, 0x4a, 0x02, 0, 0]), Sense::illegal_field_parameter(4, Some(5)));
    assert_eq!(wrong(&[0, 0, 0, 0, 0x4a, 0x00, 0, 8]), Sense::illegal_field_parameter(4, Some(5)));
}

#[test]
fn capacity_of_zero_or_all_ones_means_unchanged() {
    for count in [[0; 4], [0xff; 4], [0, 1, 0x23, 0x45]] {
        let list = [[0, 0, 0, 8].as_slice(), &count, &[0, 0, 2, 0]].concat();
        assert_eq!(select(ModeForm::Six, &list), Ok(DEFAULT));
    }
    assert_eq!(select(ModeForm::Six, &[]), Ok(DEFAULT));
}
