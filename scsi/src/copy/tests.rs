//! Every error of the parameter lists, and lists that nobody would send in good faith.

use super::{
    extended::{self, Amount, Form},
    token::{self, Claim, RodToken},
    *,
};
use crate::{
    geometry::{Extent, Geometry},
    identity::tests::unit,
    limits,
    sense::{Sense, asc},
    time::Instant,
};
use std::{vec, vec::Vec};

fn cscd() -> Vec<u8> {
    Designator::descriptor(&unit().identity, 512).to_vec()
}

fn segment(code: u8, flags: u8, source: u16, destination: u16, count: u16) -> Vec<u8> {
    let mut out = vec![code, flags, 0, 0x18];
    out.extend(source.to_be_bytes());
    out.extend(destination.to_be_bytes());
    out.extend([0, 0]);
    out.extend(count.to_be_bytes());
    out.extend(5_u64.to_be_bytes());
    out.extend(9_u64.to_be_bytes());
    out
}

fn lid1(id: u8, usage: u8, cscds: &[Vec<u8>], segments: &[Vec<u8>]) -> Vec<u8> {
    let (cscds, segments) = (cscds.concat(), segments.concat());
    let mut out = vec![id, usage << 3];
    out.extend((cscds.len() as u16).to_be_bytes());
    out.extend([0; 4]);
    out.extend((segments.len() as u32).to_be_bytes());
    out.extend([0; 4]);
    out.extend(cscds);
    out.extend(segments);
    out
}

fn lid4(id: u32, usage: u8, immediate: bool, cscds: &[Vec<u8>], segments: &[Vec<u8>]) -> Vec<u8> {
    let (cscds, segments) = (cscds.concat(), segments.concat());
    let mut out = vec![0; 48];
    out[0] = 1;
    out[1] = usage << 3;
    out[3] = 0x20;
    out[15] = u8::from(immediate);
    out[16] = 0xff;
    out[20..24].copy_from_slice(&id.to_be_bytes());
    out[42..44].copy_from_slice(&(cscds.len() as u16).to_be_bytes());
    out[44..46].copy_from_slice(&(segments.len() as u16).to_be_bytes());
    out.extend(cscds);
    out.extend(segments);
    out
}

fn usual() -> Vec<u8> {
    lid1(7, 0, &[cscd()], &[segment(2, 0, 0, 0, 3)])
}

fn refused(list: &[u8]) -> Sense {
    extended::parse(Form::Lid1, list).expect_err("accepted")
}

#[test]
fn both_forms_say_the_same() {
    let one = extended::parse(Form::Lid1, &usual()).unwrap().unwrap();
    let list = lid4(7, 0, true, &[cscd()], &[segment(2, 0, 0, 0, 3)]);
    let four = extended::parse(Form::Lid4, &list).unwrap().unwrap();
    assert_eq!((one.list_id, four.list_id, one.immediate, four.immediate), (Some(7), Some(7), false, true));
    assert_eq!(one.segments, four.segments);
    assert_eq!((one.cscds[0].at, four.cscds[0].at), (16, 48));
    assert!(one.cscds[0].designator.names(&unit().identity));
    let [only] = one.segments.as_slice() else { panic!() };
    assert_eq!((only.source_lba, only.destination_lba, only.amount), (5, 9, Amount::SourceBlocks(3)));
    let destination = extended::parse(Form::Lid1, &lid1(0, 3, &[cscd()], &[segment(2, 2, 0, 0, 3)]));
    let destination = destination.unwrap().unwrap();
    assert_eq!((destination.list_id, destination.segments[0].amount), (None, Amount::DestinationBlocks(3)));
    assert_eq!(extended::parse(Form::Lid1, &[]), Ok(None));
}

#[test]
fn lists_that_are_cut_off_or_too_long_are_a_length_error() {
    let list = usual();
    for len in 1..list.len() {
        assert_eq!(refused(&list[..len]), Sense::parameter_list_length(), "{len}");
    }
    assert_eq!(refused(&[list.clone(), vec![0]].concat()), Sense::parameter_list_length());
    let mut lying = list;
    lying[8..12].copy_from_slice(&u32::MAX.to_be_bytes());
    assert_eq!(refused(&lying), Sense::parameter_list_length());
    let whole = lid4(1, 0, false, &[cscd()], &[segment(2, 0, 0, 0, 3)]);
    for len in 1..whole.len() {
        assert_eq!(extended::parse(Form::Lid4, &whole[..len]), Err(Sense::parameter_list_length()), "{len}");
    }
}

#[test]
fn each_wrong_field_is_pointed_at() {
    let at = Sense::illegal_field_parameter;
    assert_eq!(refused(&lid1(1, 1, &[cscd()], &[])), at(1, Some(4)));
    assert_eq!(refused(&lid1(1, 3, &[cscd()], &[])), at(0, None));
    let mut inline = usual();
    inline[15] = 4;
    assert_eq!(refused(&inline), Sense::illegal(asc::INLINE_DATA_LENGTH_EXCEEDED));
    let mut uneven = usual();
    (uneven[3], uneven[11]) = (33, 27);
    assert_eq!(refused(&uneven), at(2, None));
    let mut long_name = cscd();
    long_name[7] = 21;
    assert_eq!(refused(&lid1(1, 0, &[long_name], &[])), at(23, None));
    let mut wrong_length = segment(2, 0, 0, 0, 3);
    wrong_length[3] = 0x14;
    assert_eq!(refused(&lid1(1, 0, &[cscd()], &[wrong_length])), at(50, None));
    let four = |change: fn(&mut Vec<u8>)| {
        let mut list = lid4(1, 0, false, &[cscd()], &[]);
        change(&mut list);
        extended::parse(Form::Lid4, &list).expect_err("accepted")
    };
    assert_eq!(four(|list| list[0] = 0), at(0, None));
    assert_eq!(four(|list| list[3] = 0x40), at(2, None));
    assert_eq!(four(|list| list[16] = 0), at(16, None));
    assert_eq!(four(|list| (list[1], list[15], list[23]) = (0x18, 1, 0)), at(15, Some(0)));
}

#[test]
fn descriptors_are_counted_and_their_types_checked() {
    let count = usize::from(limits::COPY_CSCDS_MAX);
    let last = vec![segment(2, 0, 0, 0, 1)];
    assert!(extended::parse(Form::Lid1, &lid1(1, 0, &vec![cscd(); count], &last)).is_ok());
    let many = lid1(1, 0, &vec![cscd(); count + 1], &last);
    assert_eq!(refused(&many), Sense::illegal(asc::TOO_MANY_TARGET_DESCRIPTORS));
    let count = usize::from(limits::COPY_SEGMENTS_MAX);
    assert!(
        extended::parse(Form::Lid1, &lid1(1, 0, &[cscd()], &vec![segment(2, 0, 0, 0, 1); count])).is_ok()
    );
    let many = lid1(1, 0, &[cscd()], &vec![segment(2, 0, 0, 0, 1); count + 1]);
    assert_eq!(refused(&many), Sense::illegal(asc::TOO_MANY_SEGMENT_DESCRIPTORS));
    // More than the longest list there can be: not even counted.
    let vast = lid1(1, 0, &vec![cscd(); 600], &last);
    assert_eq!(refused(&vast), Sense::parameter_list_length());
    for code in (0..=255).filter(|code| *code != IDENTIFICATION) {
        let mut foreign = cscd();
        foreign[0] = code;
        let list = lid1(1, 0, &[foreign], &last);
        assert_eq!(refused(&list), Sense::illegal(asc::UNSUPPORTED_TARGET_DESCRIPTOR), "{code:02x}");
    }
    for code in (0..=255).filter(|code| ![BLOCK_TO_BLOCK, BLOCK_TO_BLOCK_OFFSET].contains(code)) {
        let list = lid1(1, 0, &[cscd()], &[segment(code, 0, 0, 0, 1)]);
        assert_eq!(refused(&list), Sense::illegal(asc::UNSUPPORTED_SEGMENT_DESCRIPTOR), "{code:02x}");
    }
}

#[test]
fn only_names_of_our_pages_are_known() {
    let names = |change: fn(&mut Vec<u8>)| {
        let mut bytes = cscd();
        change(&mut bytes);
        Designator::parse(bytes[4..28].first_chunk().unwrap()).names(&unit().identity)
    };
    assert!(names(|_| {}));
    assert!(!names(|bytes| bytes[4] = 2), "ASCII");
    assert!(!names(|bytes| bytes[5] = 0x13), "of a port");
    assert!(!names(|bytes| bytes[7] = 16), "another length");
    assert!(!names(|bytes| bytes[15] ^= 1), "another unit");
    assert!(names(|bytes| {
        (bytes[5], bytes[7]) = (0x0a, 18);
        bytes[8..10].copy_from_slice(&[0x10, 0]);
        bytes[10..26].copy_from_slice(&unit().identity.volume_uuid);
    }));
}

fn geometry() -> Geometry {
    unit().geometry
}

fn ranges(extents: &[(u64, u32)]) -> Vec<u8> {
    let one = |(lba, blocks): &(u64, u32)| [&lba.to_be_bytes()[..], &blocks.to_be_bytes(), &[0; 4]].concat();
    extents.iter().flat_map(one).collect()
}

fn populate(extents: &[(u64, u32)]) -> Vec<u8> {
    let ranges = ranges(extents);
    let mut out = vec![0; 16];
    out[..2].copy_from_slice(&(14 + ranges.len() as u16).to_be_bytes());
    out[14..16].copy_from_slice(&(ranges.len() as u16).to_be_bytes());
    out.extend(ranges);
    out
}

fn write_using(token: &RodToken, extents: &[(u64, u32)]) -> Vec<u8> {
    let ranges = ranges(extents);
    let mut out = vec![0; 536];
    out[..2].copy_from_slice(&(534 + ranges.len() as u16).to_be_bytes());
    out[16..528].copy_from_slice(token.0.as_slice());
    out[534..536].copy_from_slice(&(ranges.len() as u16).to_be_bytes());
    out.extend(ranges);
    out
}

#[test]
fn ranges_of_tokens_are_checked() {
    let parse = |list: &[u8]| token::parse_populate(list, &geometry());
    let at = Sense::illegal_field_parameter;
    let good = parse(&populate(&[(0, 8), (100, 0), (8, 8)])).unwrap().unwrap();
    assert_eq!(good.extents, [Extent { lba: 0, blocks: 8 }, Extent { lba: 8, blocks: 8 }]);
    assert_eq!(good.inactivity_s, limits::TOKEN_INACTIVITY_S_DEFAULT);
    assert_eq!(parse(&[]), Ok(None));
    assert_eq!(parse(&populate(&[(2040, 9)])), Err(Sense::lba_out_of_range(2048)));
    assert_eq!(parse(&populate(&[(u64::MAX, 2)])), Err(Sense::lba_out_of_range(u64::MAX)));
    assert_eq!(parse(&populate(&[(0, 8), (7, 1)])), Err(at(32, None)), "overlapping");
    assert_eq!(parse(&populate(&[])), Err(at(0, None)));
    let many: Vec<(u64, u32)> = (0..=u64::from(limits::TOKEN_RANGES_MAX)).map(|lba| (lba, 1)).collect();
    assert_eq!(parse(&populate(&many)), Err(Sense::illegal(asc::TOO_MANY_SEGMENT_DESCRIPTORS)));
    assert!(parse(&populate(&many[1..])).is_ok());
    let list = populate(&[(0, 8)]);
    for len in 1..list.len() {
        assert!(parse(&list[..len]).is_err(), "{len}");
    }
    let changed = |at: usize, value: u8| {
        let mut list = populate(&[(0, 8)]);
        list[at] = value;
        parse(&list)
    };
    assert_eq!(changed(15, 17), Err(at(14, None)));
    assert_eq!(changed(4, 1), Err(at(4, None)), "too long a timeout");
    assert_eq!(changed(2, 2), Err(at(8, None)), "RTV without a ROD TYPE that there is");
    let large = Geometry::new(4096, 1 << 30).unwrap();
    let most = (limits::TOKEN_TRANSFER_BYTES_MAX / 4096) as u32;
    assert!(token::parse_populate(&populate(&[(0, most)]), &large).is_ok());
    assert_eq!(token::parse_populate(&populate(&[(0, most), (1 << 28, 1)]), &large), Err(at(40, None)));
}

fn a_token(random: u8) -> RodToken {
    RodToken::new(CHANGE_VULNERABLE, &unit().identity, &geometry(), 4096, &[random; token::RANDOM_LEN])
}

#[test]
fn tokens_say_what_they_are() {
    let token = a_token(1);
    let Ok(Claim::Unit { designator, bytes, block_size }) = token.claim() else { panic!() };
    assert!(designator.names(&unit().identity));
    assert_eq!((bytes, block_size), (4096, 512));
    let changed = |at: usize, value: u8| {
        let mut bytes = *a_token(1).0;
        bytes[at] = value;
        RodToken::from_bytes(&bytes).claim()
    };
    assert_eq!(changed(7, 0), Err(Sense::illegal(asc::INVALID_TOKEN_LENGTH)));
    assert_eq!(changed(3, 2), Err(Sense::illegal(asc::UNSUPPORTED_TOKEN_TYPE)));
    assert_eq!(changed(16, 0xe0), Err(Sense::illegal(asc::TOKEN_CORRUPT)));
    let mut zero = [0; 512];
    zero[..8].copy_from_slice(&[0xff, 0xff, 0, 1, 0, 0, 0x01, 0xf8]);
    assert_eq!(RodToken::from_bytes(&zero).claim(), Ok(Claim::Zero));
    let list = write_using(&token, &[(3, 5)]);
    let parsed = token::parse_write_using(&list, &geometry()).unwrap().unwrap();
    assert!(parsed.token.is(&token) && !parsed.immediate && !parsed.delete && parsed.offset == 0);
    for len in 1..list.len() {
        assert!(token::parse_write_using(&list[..len], &geometry()).is_err(), "{len}");
    }
    assert!(
        !std::format!("{token:?}").contains("01, 01, 01, 01, 01, 01, 01, 01, 01"),
        "the secret is never shown"
    );
}

#[test]
fn tokens_are_known_by_all_of_their_bytes() {
    let mut tokens = tokens::Tokens::default();
    let extents = vec![Extent { lba: 0, blocks: 4 }, Extent { lba: 100, blocks: 4 }];
    tokens.insert(Instant(0), a_token(1), extents, 60);
    let now = Instant(1);
    assert_eq!(tokens.check(now, &a_token(1)), Ok(()));
    assert_eq!(tokens.check(now, &a_token(2)), Err(Sense::illegal(asc::TOKEN_UNKNOWN)));
    for at in 16..512 {
        let mut forged = *a_token(1).0;
        forged[at] ^= 0x80;
        let forged = RodToken::from_bytes(&forged);
        assert_eq!(tokens.check(now, &forged), Err(Sense::illegal(asc::TOKEN_CORRUPT)), "{at}");
    }
    let part = |tokens: &mut tokens::Tokens, offset, blocks| {
        tokens.part(now, &a_token(1), offset, blocks, &geometry()).unwrap()
    };
    assert_eq!(part(&mut tokens, 2, 8), Some(Extent { lba: 2, blocks: 2 }));
    assert_eq!(part(&mut tokens, 4, 8), Some(Extent { lba: 100, blocks: 4 }));
    assert_eq!(part(&mut tokens, 7, 1), Some(Extent { lba: 103, blocks: 1 }));
    assert_eq!(part(&mut tokens, 8, 1), None);
    assert_eq!(part(&mut tokens, u64::MAX, 1), None);
}

#[test]
fn tokens_end_by_writes_deletion_time_and_number() {
    let fresh = || {
        let mut tokens = tokens::Tokens::default();
        tokens.insert(Instant(0), a_token(1), vec![Extent { lba: 10, blocks: 4 }], 60);
        tokens
    };
    let check = |tokens: &mut tokens::Tokens, at| tokens.check(Instant(at), &a_token(1));
    let mut tokens = fresh();
    tokens.revoke(&[
        Extent { lba: 0, blocks: 10 },
        Extent { lba: 14, blocks: 1 },
        Extent { lba: 12, blocks: 0 },
    ]);
    assert_eq!(check(&mut tokens, 1), Ok(()), "not what it represents");
    tokens.revoke(&[Extent { lba: 13, blocks: 9 }]);
    assert_eq!(check(&mut tokens, 1), Err(Sense::illegal(asc::TOKEN_REVOKED)));
    let mut tokens = fresh();
    tokens.delete(&a_token(1));
    assert_eq!(check(&mut tokens, 1), Err(Sense::illegal(asc::TOKEN_DELETED)));
    let mut tokens = fresh();
    assert_eq!(check(&mut tokens, 60_000), Ok(()));
    assert_eq!(check(&mut tokens, 120_000), Ok(()), "used since");
    assert_eq!(check(&mut tokens, 180_001), Err(Sense::illegal(asc::TOKEN_EXPIRED)));
    let mut tokens = fresh();
    for n in 0..limits::TOKENS_MAX {
        let random = [[2; 32].as_slice(), &(n as u64).to_be_bytes()].concat();
        let random: [u8; token::RANDOM_LEN] =
            random.iter().rev().copied().collect::<Vec<_>>().try_into().unwrap();
        let token = RodToken::new(CHANGE_VULNERABLE, &unit().identity, &geometry(), 512, &random);
        tokens.insert(Instant(0), token, vec![Extent { lba: 0, blocks: 1 }], 60);
    }
    assert_eq!(check(&mut tokens, 1), Err(Sense::illegal(asc::TOKEN_UNKNOWN)), "the oldest goes first");
    let mut tokens = fresh();
    tokens.forget_all();
    assert_eq!(check(&mut tokens, 1), Err(Sense::illegal(asc::TOKEN_UNKNOWN)));
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_judged_without_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..900)) {
        let _ = extended::parse(Form::Lid1, &bytes);
        let _ = extended::parse(Form::Lid4, &bytes);
        let _ = token::parse_populate(&bytes, &geometry());
        let _ = token::parse_write_using(&bytes, &geometry());
    }

    #[test]
    fn a_changed_list_is_judged_without_panic(at in 0usize..76, value in proptest::num::u8::ANY) {
        let mut list = usual();
        list[at] = value;
        if let Ok(Some(copy)) = extended::parse(Form::Lid1, &list) {
            proptest::prop_assert!(copy.cscds.len() == 1 && copy.segments.len() == 1);
        }
    }
}
