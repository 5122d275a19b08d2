//! Parameter lists that lie about their length, or hold what cannot be.

use holdfast_scsi::{
    limits,
    sense::{Sense, asc},
    transport_id::TransportId,
};

use crate::{
    Case, Expected, run,
    world::{BLOCKS, cdbs},
};

const LENGTH_ERROR: Expected = Expected::Code(asc::PARAMETER_LIST_LENGTH_ERROR);
const LIST_ERROR: Expected = Expected::Code(asc::INVALID_FIELD_IN_PARAMETER_LIST);

fn pr_out_cdb(action: u8, kind: u8, len: u32) -> Vec<u8> {
    let l = len.to_be_bytes();
    vec![0x5f, action, kind, 0, 0, l[0], l[1], l[2], l[3], 0]
}

pub(crate) fn pr_out_lengths() -> Vec<Case> {
    let mut cases = Vec::new();
    for action in 0..8u8 {
        let kind = if matches!(action, 1 | 2 | 4 | 5) { 1 } else { 0 };
        for len in [0usize, 1, 8, 23, 25, 28] {
            // REGISTER AND MOVE is longer than the others in any case.
            let name = format!("action {action}: {len} bytes");
            cases.push(Case::new(name, pr_out_cdb(action, kind, len as u32), vec![0; len], LENGTH_ERROR));
        }
        let most = limits::PR_OUT_PARAMETER_LIST_MAX;
        for len in [most + 1, 0x0100_0000, u32::MAX] {
            let name = format!("action {action}: {len:x} bytes announced");
            cases.push(Case::new(name, pr_out_cdb(action, kind, len), vec![0; 64], LENGTH_ERROR));
        }
    }
    cases
}

/// REGISTER with SPEC_I_PT, whose TransportIDs are these bytes, of which it says there are `claimed`.
fn spec_i_pt(claimed: usize, ids: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut list = vec![0; 24];
    list[15] = 7;
    list[20] = 0x08;
    list.extend((claimed as u32).to_be_bytes());
    list.extend(ids);
    (pr_out_cdb(0, 0, list.len() as u32), list)
}

pub(crate) fn transport_ids() -> Vec<Case> {
    let good = TransportId::iscsi("iqn.2026-01.test:D", [4; 6]).unwrap();
    let good = good.as_bytes();
    let mut cases = Vec::new();
    let mut add = |name: &str, (cdb, list): (Vec<u8>, Vec<u8>), expected: Expected| {
        cases.push(Case::new(name, cdb, list, expected));
    };
    let with = |at: usize, byte: u8| {
        let mut id = good.to_vec();
        id[at] = byte;
        id
    };
    add("the length is one more", spec_i_pt(good.len() + 1, good), LENGTH_ERROR);
    add("the length is one less", spec_i_pt(good.len() - 1, good), LENGTH_ERROR);
    add("the length is all ones", spec_i_pt(u32::MAX as usize, good), LENGTH_ERROR);
    add("the length is 0 with an ID behind", spec_i_pt(0, good), LENGTH_ERROR);
    add("an ID of no bytes", spec_i_pt(1, &[0]), LIST_ERROR);
    add("an ID of its header", spec_i_pt(4, &good[..4]), LIST_ERROR);
    for cut in [8, 20, 23, good.len() - 4, good.len() - 1] {
        add(&format!("an ID cut at {cut}"), spec_i_pt(cut, &good[..cut]), LIST_ERROR);
    }
    add("a second ID cut short", spec_i_pt(good.len() + 12, &[good, &good[..12]].concat()), LIST_ERROR);
    for protocol in [0x01, 0x02, 0x07, 0x0f] {
        let id = with(0, good[0] & 0xf0 | protocol);
        add(&format!("protocol {protocol:x}"), spec_i_pt(id.len(), &id), LIST_ERROR);
    }
    for format in [0x80, 0xc0] {
        let id = with(0, format | 0x05);
        add(&format!("iSCSI format {format:x}"), spec_i_pt(id.len(), &id), LIST_ERROR);
    }
    for (what, high, low) in [("0", 0, 0), ("all ones", 0xff, 0xff), ("not of four", 0, 21)] {
        let mut id = with(2, high);
        id[3] = low;
        add(&format!("an ID that says it is {what}"), spec_i_pt(id.len(), &id), LIST_ERROR);
    }
    let no_end = [&good[..4], &[b'x'; 36][..]].concat();
    let mut no_end = no_end;
    no_end[3] = 36;
    add("a name that does not end", spec_i_pt(no_end.len(), &no_end), LIST_ERROR);
    let mut no_name = vec![0x45, 0, 0, 20];
    no_name.extend([0; 20]);
    add("a name of nothing", spec_i_pt(no_name.len(), &no_name), LIST_ERROR);
    let many = good.repeat(limits::PR_OUT_PARAMETER_LIST_MAX as usize / good.len());
    add("more IDs than any list holds", spec_i_pt(many.len(), &many), LENGTH_ERROR);
    for action in 1..7u8 {
        let (_, list) = spec_i_pt(good.len(), good);
        let kind = if matches!(action, 1 | 2 | 4 | 5) { 1 } else { 0 };
        let cdb = pr_out_cdb(action, kind, list.len() as u32);
        add(&format!("SPEC_I_PT with action {action}"), (cdb, list), LIST_ERROR);
    }
    // REGISTER AND MOVE has its own place for one ID.
    let moving = |claimed: usize, id: &[u8]| {
        let mut list = vec![0; 24];
        list[15] = 7;
        list[19] = 1;
        list[20..24].copy_from_slice(&(claimed as u32).to_be_bytes());
        list.extend(id);
        (pr_out_cdb(7, 0, list.len() as u32), list)
    };
    add("move: the length is one more", moving(good.len() + 1, good), LENGTH_ERROR);
    add("move: the length is all ones", moving(u32::MAX as usize, good), LENGTH_ERROR);
    add("move: no ID", moving(0, &[]), LIST_ERROR);
    add("move: an ID cut short", moving(20, &good[..20]), LIST_ERROR);
    let two = good.repeat(2);
    add("move: two IDs", moving(two.len(), &two), LIST_ERROR);
    cases
}

fn unmap_cdb(len: u16) -> Vec<u8> {
    cdbs::ten(0x42, 0, 0, len)
}

/// A list with these ranges, and with these lengths in its header.
fn unmap_list(data_length: u16, descriptors_length: u16, ranges: &[(u64, u32)]) -> Vec<u8> {
    let mut list = data_length.to_be_bytes().to_vec();
    list.extend(descriptors_length.to_be_bytes());
    list.extend([0; 4]);
    for (lba, blocks) in ranges {
        list.extend(lba.to_be_bytes());
        list.extend(blocks.to_be_bytes());
        list.extend([0; 4]);
    }
    list
}

pub(crate) fn unmap_descriptors() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |name: &str, len: usize, list: Vec<u8>, expected: Expected| {
        cases.push(Case::new(name, unmap_cdb(len as u16), list, expected));
    };
    for len in 1..8 {
        add(&format!("a header of {len} bytes"), len, vec![0; len], LENGTH_ERROR);
    }
    let whole = |ranges: &[(u64, u32)]| {
        let body = 16 * ranges.len() as u16;
        unmap_list(body.wrapping_add(6), body, ranges)
    };
    let out_of_range = |lba| Expected::Check(Sense::lba_out_of_range(lba));
    let one = |range: (u64, u32)| whole(&[range]);
    add("one block behind the end", 24, one((BLOCKS, 1)), out_of_range(BLOCKS));
    add("the last block and one more", 24, one((BLOCKS - 1, 2)), out_of_range(BLOCKS));
    add("all there can be", 24, one((0, u32::MAX)), out_of_range(BLOCKS));
    add("round 2^64", 24, one((u64::MAX, 2)), out_of_range(u64::MAX));
    add("nothing, wherever it points", 24, one((u64::MAX, 0)), Expected::Good);
    add("a good one, then a bad one", 40, whole(&[(0, 1), (BLOCKS, 1)]), out_of_range(BLOCKS));
    let most = limits::UNMAP_DESCRIPTORS_MAX as usize;
    let many = whole(&vec![(0, 1); most]);
    add("as many as there may be", many.len(), many, Expected::Good);
    let more = whole(&vec![(0, 1); most + 1]);
    add("one more than there may be", more.len(), more, Expected::Check(Sense::illegal_field_cdb(7, None)));
    add("65535 bytes", 65535, vec![0; 65535], Expected::Check(Sense::illegal_field_cdb(7, None)));
    let multiplied = whole(&vec![(0, 2048); most]);
    let allowed = most * 2048 <= limits::UNMAP_BLOCKS_MAX as usize;
    assert!(allowed, "this case is about what is allowed");
    add("the same range many times", multiplied.len(), multiplied, Expected::Good);
    add("a header that promises more", 24, unmap_list(0xffff, 0xffff, &[(0, 1)]), Expected::Good);
    add("a header that promises nothing", 24, unmap_list(6, 0, &[(BLOCKS, 1)]), Expected::Good);
    let mut cut = whole(&[(0, 1), (BLOCKS, 1)]);
    cut.truncate(30);
    add("a descriptor cut short is none", 30, cut, Expected::Good);
    let short = Expected::Code(asc::INVALID_FIELD_IN_COMMAND_IU);
    add("fewer bytes than the CDB says", 40, one((0, 1)), short);
    cases
}

pub(crate) fn mode_select_lists() -> Vec<Case> {
    let mut cases = Vec::new();
    let page = [0x0a, 0x0a, 0x02, 0x10, 0, 0, 0, 0, 0xff, 0xff, 0, 0];
    let mut add = |name: &str, list: Vec<u8>, expected: Expected| {
        let cdb = vec![0x15, 0x10, 0, 0, list.len() as u8, 0];
        cases.push(Case::new(name, cdb, list, expected));
    };
    for len in 1..4 {
        add(&format!("a header of {len} bytes"), vec![0; len], LENGTH_ERROR);
    }
    for cut in 1..12 {
        let list = [&[0; 4][..], &page[..cut]].concat();
        add(&format!("a page cut at {cut}"), list, LENGTH_ERROR);
    }
    for len in [1, 7, 9, 255] {
        let name = format!("a block descriptor of {len} bytes that are not there");
        add(&name, vec![0, 0, 0, len], LENGTH_ERROR);
    }
    for (what, code) in [("vendor", 0x00), ("all pages", 0x3f), ("unknown", 0x19)] {
        add(&format!("page {what}"), vec![0, 0, 0, 0, code, 2, 0, 0], LIST_ERROR);
    }
    for length in [0, 9, 11, 255] {
        let mut list = [&[0; 4][..], &page].concat();
        list[5] = length;
        add(&format!("a page that says it has {length} bytes"), list, LIST_ERROR);
    }
    let subpage = vec![0, 0, 0, 0, 0x4a, 0x01, 0xff, 0xff];
    add("a subpage that says it has 65535 bytes", subpage, LIST_ERROR);
    add("a subpage without its length", vec![0, 0, 0, 0, 0x4a, 0x01], LENGTH_ERROR);
    add("a subpage without its number", vec![0, 0, 0, 0, 0x4a], LENGTH_ERROR);
    let twice = [&[0; 4][..], &page, &page].concat();
    add("a page twice", twice, Expected::Good);
    let mut announced = vec![0x55, 0x10, 0, 0, 0, 0, 0, 0xff, 0xff, 0];
    cases.push(Case::new("65535 bytes announced", announced.clone(), vec![0; 64], LENGTH_ERROR));
    announced[7..9].copy_from_slice(&[0, 64]);
    let short = Expected::Code(asc::INVALID_FIELD_IN_COMMAND_IU);
    cases.push(Case::new("fewer bytes than the CDB says", announced, vec![0; 8], short));
    cases
}

pub(crate) fn information_lists() -> Vec<Case> {
    let cdb = |action: u8, len: u32, kind: u8| {
        let l = len.to_be_bytes();
        vec![0xa4, action, 0, 0, 0, 0, l[0], l[1], l[2], l[3], kind << 1, 0]
    };
    let in_cdb = |at, bit| Expected::Check(Sense::illegal_field_cdb(at, bit));
    let mut cases = vec![
        Case::new("identifying information of 513 bytes", cdb(6, 513, 0), vec![1; 513], in_cdb(6, None)),
        Case::new("identifying information of 4 GiB", cdb(6, u32::MAX, 0), vec![1; 64], in_cdb(6, None)),
        Case::new("identifying text of 257 bytes", cdb(6, 257, 2), vec![0; 257], in_cdb(6, None)),
        Case::new("a text that does not end", cdb(6, 4, 2), b"abcd".to_vec(), LIST_ERROR),
        Case::new("a text that ends twice", cdb(6, 4, 2), b"a\0b\0".to_vec(), LIST_ERROR),
        Case::new("a text that is none", cdb(6, 3, 2), b"\xc3\x28\0".to_vec(), LIST_ERROR),
    ];
    for kind in [1u8, 3, 0x40, 0x7f] {
        cases.push(Case::new(format!("kind {kind:x}"), cdb(6, 1, kind), vec![0], in_cdb(10, Some(7))));
    }
    for len in [1u32, 11, 13, u32::MAX] {
        let name = format!("a timestamp of {len} bytes");
        cases.push(Case::new(name, cdb(0x0f, len, 0), vec![0; len.min(64) as usize], LENGTH_ERROR));
    }
    for at in [0usize, 1, 2, 3, 10, 11] {
        let mut list = vec![0; 12];
        list[at] = 1;
        let expected = Expected::Check(Sense::illegal_field_parameter(at as u16, None));
        cases.push(Case::new(
            format!("a timestamp with reserved byte {at}"),
            cdb(0x0f, 12, 0),
            list,
            expected,
        ));
    }
    cases
}

#[test]
fn persistent_reserve_out_has_its_exact_length() {
    run(&pr_out_lengths());
}

#[test]
fn transport_ids_are_whole_and_known() {
    run(&transport_ids());
}

#[test]
fn unmap_descriptors_multiply_within_limits() {
    run(&unmap_descriptors());
}

#[test]
fn mode_select_lists_are_whole() {
    run(&mode_select_lists());
}

#[test]
fn information_has_its_form() {
    run(&information_lists());
}
