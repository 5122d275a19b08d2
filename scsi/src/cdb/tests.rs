//! Every command's fields: what decodes to what, and which field a refusal points at.

use super::*;
use crate::limits;
use crate::opcode::TABLE;
use proptest::prelude::*;
use std::vec::Vec;

/// 512-byte blocks, more of them than 32 bits can address.
fn large() -> Geometry {
    Geometry::new(512, 1 << 33).unwrap()
}

/// 1000 blocks of 512 bytes.
fn small() -> Geometry {
    Geometry::new(512, 1000).unwrap()
}

fn field(byte: u16, bit: u8) -> Result<Command, Sense> {
    Err(Sense::illegal_field_cdb(byte, Some(bit)))
}

fn bytes_at(byte: u16) -> Result<Command, Sense> {
    Err(Sense::illegal_field_cdb(byte, None))
}

/// A CDB of the READ/WRITE shape.
fn rw(opcode: u8, flags: u8, lba: u64, blocks: u32) -> Vec<u8> {
    let mut cdb = std::vec![opcode, flags];
    match opcode >> 5 {
        1 | 2 => {
            cdb.extend((lba as u32).to_be_bytes());
            cdb.push(0);
            cdb.extend((blocks as u16).to_be_bytes());
            cdb.push(0);
        }
        5 => {
            cdb.extend((lba as u32).to_be_bytes());
            cdb.extend(blocks.to_be_bytes());
            cdb.extend([0, 0]);
        }
        _ => {
            cdb.extend(lba.to_be_bytes());
            cdb.extend(blocks.to_be_bytes());
            cdb.extend([0, 0]);
        }
    }
    cdb
}

const READS: [u8; 3] = [0x28, 0xa8, 0x88];
const WRITES: [u8; 3] = [0x2a, 0xaa, 0x8a];
const WRITE_AND_VERIFIES: [u8; 3] = [0x2e, 0xae, 0x8e];
const VERIFIES: [u8; 3] = [0x2f, 0xaf, 0x8f];

#[test]
fn read_and_write_take_lba_length_fua_and_dpo() {
    let extent = Extent { lba: 0x0102_0304, blocks: 0x0506 };
    for (flags, fua, dpo) in
        [(0x00, false, false), (0x08, true, false), (0x10, false, true), (0x18, true, true)]
    {
        for opcode in READS {
            let got = parse(&rw(opcode, flags, extent.lba, extent.blocks), &large());
            assert_eq!(got, Ok(Command::Read { extent, fua, dpo }));
        }
        for opcode in WRITES {
            let got = parse(&rw(opcode, flags, extent.lba, extent.blocks), &large());
            assert_eq!(got, Ok(Command::Write { extent, fua, dpo }));
        }
        let got = parse(&rw(0x8b, flags, extent.lba, extent.blocks), &large());
        assert_eq!(got, Ok(Command::OrWrite { extent, fua, dpo }));
    }
    let far = Extent { lba: 0x1_0203_0405, blocks: 1 };
    let got = parse(&rw(0x88, 0, far.lba, 1), &large());
    assert_eq!(got, Ok(Command::Read { extent: far, fua: false, dpo: false }));
}

#[test]
fn six_byte_forms_have_21_bits_of_lba_and_zero_means_256_blocks() {
    let read = |cdb: [u8; 6]| parse(&cdb, &large());
    let expect = |lba, blocks| Ok(Command::Read { extent: Extent { lba, blocks }, fua: false, dpo: false });
    assert_eq!(read([0x08, 0x1f, 0xff, 0xfe, 1, 0]), expect(0x1f_fffe, 1));
    assert_eq!(read([0x08, 0x01, 0x02, 0x03, 0, 0]), expect(0x1_0203, 256));
    assert_eq!(read([0x08, 0x20, 0, 0, 1, 0]), field(1, 7));
    let write = parse(&[0x0a, 0, 0, 9, 2, 0], &large());
    assert_eq!(write, Ok(Command::Write { extent: Extent { lba: 9, blocks: 2 }, fua: false, dpo: false }));
    assert_eq!(parse(&[0x08, 0, 0x03, 0xe7, 2, 0], &small()), Err(Sense::lba_out_of_range(1000)));
}

#[test]
fn atomic_writes_are_as_long_as_block_limits_say_and_are_split_only_where_that_is_asked_for() {
    let cdb = |flags: u8, boundary: u16, blocks: u16| {
        let mut cdb = rw(0x9c, flags, 5, 0);
        cdb[10..12].copy_from_slice(&boundary.to_be_bytes());
        cdb[12..14].copy_from_slice(&blocks.to_be_bytes());
        cdb
    };
    let whole = limits::atomic_blocks_max(512) as u16;
    for (flags, dpo) in [(0x00, false), (0x08, false), (0x18, true)] {
        for (boundary, blocks) in [(0, 0), (0, whole), (1, whole + 1), (whole, 16 * 1024)] {
            let extent = Extent { lba: 5, blocks: u32::from(blocks) };
            let got = parse(&cdb(flags, boundary, blocks), &large());
            assert_eq!(got, Ok(Command::WriteAtomic { extent, boundary, dpo }));
        }
    }
    assert_eq!(parse(&cdb(0, 0, whole + 1), &large()), Err(Sense::illegal_field_cdb(12, None)));
    assert_eq!(parse(&cdb(0, 8, 16 * 1024 + 1), &large()), Err(Sense::illegal_field_cdb(12, None)));
    assert_eq!(parse(&cdb(0, whole + 1, 1), &large()), Err(Sense::illegal_field_cdb(10, None)));
    assert_eq!(parse(&cdb(0x20, 0, 1), &large()), field(1, 7));
    assert_eq!(parse(&cdb(0x04, 0, 1), &large()), field(1, 2));
}

#[test]
fn protection_information_is_refused_at_its_field() {
    for opcode in [READS, WRITES, WRITE_AND_VERIFIES, VERIFIES].concat() {
        for protect in 1..8 {
            assert_eq!(parse(&rw(opcode, protect << 5, 0, 1), &small()), field(1, 7), "{opcode:02x}");
        }
    }
    for opcode in [0x41, 0x93, 0x89, 0x8b] {
        assert_eq!(parse(&rw(opcode, 0x20, 0, 1), &small()), field(1, 7), "{opcode:02x}");
    }
}

#[test]
fn obsolete_bits_and_group_numbers_are_ignored() {
    for (opcode, group_at) in [(0x28, 6), (0xa8, 10), (0x88, 14), (0x2a, 6), (0xaa, 10), (0x8a, 14)] {
        let mut cdb = rw(opcode, 0x02, 5, 1);
        cdb[group_at] = 0x1f;
        assert_eq!(parse(&cdb, &small()), parse(&rw(opcode, 0, 5, 1), &small()));
        cdb[group_at] = 0x20;
        assert_eq!(parse(&cdb, &small()), field(group_at as u16, 5));
    }
    let mut sync = rw(0x35, 0x06, 5, 1);
    sync[6] = 3;
    let extent = Some(Extent { lba: 5, blocks: 1 });
    assert_eq!(parse(&sync, &small()), Ok(Command::SynchronizeCache { extent, immediate: true }));
}

/// A CDB of 32 bytes.
fn rw32(action: u8, flags: u8, lba: u64, blocks: u32) -> Vec<u8> {
    let mut cdb = std::vec![0; 32];
    [cdb[0], cdb[7], cdb[9], cdb[10]] = [0x7f, 0x18, action, flags];
    cdb[12..20].copy_from_slice(&lba.to_be_bytes());
    cdb[28..].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

/// 32-byte forms decode to what the 16-byte ones do.
#[test]
fn commands_of_32_bytes_are_those_of_16_bytes() {
    let pairs = [(0x09, 0x88), (0x0a, 0x8f), (0x0b, 0x8a), (0x0c, 0x8e), (0x0d, 0x93)];
    for (action, opcode) in pairs {
        for flags in 0..=255 {
            for (lba, blocks) in
                [(0, 1), (999, 1), (999, 2), (1000, 1), (5, 0), (5, 0xffff_ffff), (u64::MAX, 1)]
            {
                let moved = |sense: Sense| match sense.specific {
                    crate::sense::SenseSpecific::FieldPointer { byte: 1, bit, .. } => {
                        Sense::illegal_field_cdb(10, bit)
                    }
                    crate::sense::SenseSpecific::FieldPointer { byte: 10, bit, .. } => {
                        Sense::illegal_field_cdb(28, bit)
                    }
                    _ => sense,
                };
                let long = parse(&rw32(action, flags, lba, blocks), &small());
                let short = parse(&rw(opcode, flags, lba, blocks), &small());
                assert_eq!(long, short.map_err(moved), "{action:02x} {flags:02x} {lba} {blocks}");
            }
        }
    }
}

#[test]
fn tags_of_protection_information_are_ignored_where_none_is_asked_for() {
    for action in 0x09..=0x0d {
        let plain = parse(&rw32(action, 0, 7, 1), &small());
        assert!(plain.is_ok());
        let mut cdb = rw32(action, 0, 7, 1);
        cdb[20..28].fill(0xff);
        assert_eq!(parse(&cdb, &small()), plain);
        for protect in 1..8 {
            cdb[10] = protect << 5;
            assert_eq!(parse(&cdb, &small()), field(10, 7), "{action:02x}");
        }
    }
}

#[test]
fn variable_length_cdbs_are_as_long_as_they_say() {
    let mut cdb = rw32(0x09, 0, 7, 1);
    for length in (0..=255).filter(|length| *length != 0x18) {
        cdb[7] = length;
        assert_eq!(parse(&cdb, &small()), bytes_at(7));
    }
    for action in [0x0008u16, 0x000e, 0x000f, 0x0109, 0xffff] {
        let mut cdb = rw32(0, 0, 7, 1);
        cdb[8..10].copy_from_slice(&action.to_be_bytes());
        assert_eq!(parse(&cdb, &small()), bytes_at(8), "{action:04x}");
    }
    assert_eq!(parse(&rw32(0x09, 0, 7, 1)[..16], &small()), bytes_at(16), "the rest did not come");
}

#[test]
fn ranges_beyond_the_capacity_name_the_first_missing_block() {
    let all = [READS, WRITES, WRITE_AND_VERIFIES, VERIFIES].concat();
    for opcode in all.into_iter().chain([0x8b, 0x41, 0x93, 0x34, 0x90, 0x35, 0x91]) {
        let at = |lba, blocks| parse(&rw(opcode, 0, lba, blocks), &small());
        assert!(at(999, 1).is_ok(), "{opcode:02x}");
        assert_eq!(at(999, 2), Err(Sense::lba_out_of_range(1000)), "{opcode:02x}");
        assert_eq!(at(1000, 1), Err(Sense::lba_out_of_range(1000)), "{opcode:02x}");
        assert_eq!(at(0xffff_fffe, 2), Err(Sense::lba_out_of_range(0xffff_fffe)), "{opcode:02x}");
    }
    for opcode in [0x88, 0x8a, 0x8b, 0x8e, 0x8f, 0x90, 0x91, 0x93] {
        for lba in [1 << 63, u64::MAX] {
            assert_eq!(parse(&rw(opcode, 0, lba, 2), &small()), Err(Sense::lba_out_of_range(lba)));
        }
    }
}

#[test]
fn nothing_may_be_read_but_not_from_beyond_the_end() {
    for opcode in [READS, WRITES, WRITE_AND_VERIFIES, VERIFIES].concat().into_iter().chain([0x8b]) {
        assert_eq!(
            parse(&rw(opcode, 0, 999, 0), &small()).map(|c| c.extent()),
            Ok(Some(Extent { lba: 999, blocks: 0 }))
        );
        assert_eq!(parse(&rw(opcode, 0, 1000, 0), &small()), Err(Sense::lba_out_of_range(1000)));
    }
}

#[test]
fn transfers_above_the_maximum_point_at_the_length() {
    let most = limits::transfer_blocks_max(512);
    let families = [READS, WRITES, WRITE_AND_VERIFIES, VERIFIES].concat();
    for (opcode, length_at) in families.into_iter().chain([0x8b]).map(|opcode| match opcode >> 5 {
        1 => (opcode, 7),
        5 => (opcode, 6),
        _ => (opcode, 10),
    }) {
        assert!(parse(&rw(opcode, 0, 0, most), &large()).is_ok());
        assert_eq!(parse(&rw(opcode, 0, 0, most + 1), &large()), bytes_at(length_at), "{opcode:02x}");
        // Out of range comes first: what does not exist cannot be too long.
        assert_eq!(parse(&rw(opcode, 0, 0, most + 1), &small()), Err(Sense::lba_out_of_range(1000)));
    }
}

#[test]
fn bytchk_values_without_a_meaning_are_refused() {
    let extent = Extent { lba: 3, blocks: 2 };
    for opcode in VERIFIES {
        let verify = |flags| parse(&rw(opcode, flags, 3, 2), &small());
        let ok = |check, dpo| Ok(Command::Verify { extent, check, dpo });
        assert_eq!(verify(0x00), ok(VerifyCheck::Medium, false));
        assert_eq!(verify(0x02), ok(VerifyCheck::Bytes, false));
        assert_eq!(verify(0x16), ok(VerifyCheck::OneBlock, true));
        assert_eq!(verify(0x04), field(1, 2));
        assert_eq!(verify(0x08), field(1, 3));
        assert_eq!(verify(0x01), field(1, 0));
    }
    for opcode in WRITE_AND_VERIFIES {
        let write = |flags| parse(&rw(opcode, flags, 3, 2), &small());
        assert_eq!(write(0x10), Ok(Command::WriteAndVerify { extent, compare: false, dpo: true }));
        assert_eq!(write(0x02), Ok(Command::WriteAndVerify { extent, compare: true, dpo: false }));
        assert_eq!(write(0x04), field(1, 2));
        assert_eq!(write(0x06), field(1, 2));
    }
}

#[test]
fn write_same_needs_blocks_within_its_maximum() {
    let most = limits::WRITE_SAME_BLOCKS_MAX;
    let extent = Extent { lba: 1, blocks: 9 };
    let block = WriteSameSource::DataOutBlock;
    assert_eq!(
        parse(&rw(0x41, 0x08, 1, 9), &small()),
        Ok(Command::WriteSame { extent, unmap: true, source: block })
    );
    assert_eq!(
        parse(&rw(0x93, 0x00, 1, 9), &small()),
        Ok(Command::WriteSame { extent, unmap: false, source: block })
    );
    assert_eq!(
        parse(&rw(0x93, 0x09, 1, 9), &small()),
        Ok(Command::WriteSame { extent, unmap: true, source: WriteSameSource::Zeroes })
    );
    assert_eq!(parse(&rw(0x41, 0, 0, 0), &small()), bytes_at(7), "WSNZ=1");
    assert_eq!(parse(&rw(0x93, 0, 0, 0), &small()), bytes_at(10), "WSNZ=1");
    assert!(parse(&rw(0x93, 0, 0, most), &large()).is_ok());
    assert_eq!(parse(&rw(0x93, 0, 0, most + 1), &large()), bytes_at(10));
    assert_eq!(parse(&rw(0x41, 0x10, 0, 1), &small()), field(1, 4), "ANCHOR");
    assert_eq!(parse(&rw(0x41, 0x01, 0, 1), &small()), field(1, 0), "no NDOB in the ten-byte form");
}

#[test]
fn compare_and_write_moves_both_halves() {
    let mut cdb = rw(0x89, 0x18, 7, 0);
    cdb[13] = 255;
    let command = parse(&cdb, &small()).unwrap();
    let extent = Extent { lba: 7, blocks: 255 };
    assert_eq!(command, Command::CompareAndWrite { extent, fua: true, dpo: true });
    assert_eq!(command.transfer_len(&small()), (Direction::Out, 2 * 255 * 512));
    cdb[12] = 1;
    assert_eq!(parse(&cdb, &small()), field(12, 0));
}

#[test]
fn zero_blocks_mean_the_rest_for_cache_commands() {
    for opcode in [0x35, 0x91] {
        assert_eq!(
            parse(&rw(opcode, 0, 9, 0), &small()),
            Ok(Command::SynchronizeCache { extent: None, immediate: false })
        );
    }
    for opcode in [0x34, 0x90] {
        let extent = Some(Extent { lba: 9, blocks: 4 });
        assert_eq!(
            parse(&rw(opcode, 0x02, 9, 4), &small()),
            Ok(Command::PreFetch { extent, immediate: true })
        );
        assert_eq!(
            parse(&rw(opcode, 0, 9, 0), &small()),
            Ok(Command::PreFetch { extent: None, immediate: false })
        );
        assert_eq!(parse(&rw(opcode, 0, 1001, 0), &small()), Err(Sense::lba_out_of_range(1001)));
    }
    assert_eq!(parse(&rw(0x90, 0, 0, limits::PREFETCH_BLOCKS_MAX + 1), &large()), bytes_at(10));
}

#[test]
fn unmap_lists_have_a_header_and_a_bound() {
    let unmap = |len: u16| {
        let [high, low] = len.to_be_bytes();
        parse(&[0x42, 0, 0, 0, 0, 0, 0, high, low, 0], &small())
    };
    assert_eq!(unmap(0), Ok(Command::Unmap { parameter_list_length: 0 }));
    assert_eq!(unmap(7), Err(Sense::parameter_list_length()));
    assert_eq!(unmap(24), Ok(Command::Unmap { parameter_list_length: 24 }));
    let most = limits::UNMAP_PARAMETER_LIST_MAX as u16;
    assert!(unmap(most).is_ok());
    assert_eq!(unmap(most + 1), bytes_at(7));
    assert_eq!(parse(&[0x42, 1, 0, 0, 0, 0, 0, 0, 24, 0], &small()), field(1, 0), "ANCHOR");
}

#[test]
fn service_action_in_commands_decode_by_their_action() {
    let mut cdb = [0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0];
    assert_eq!(parse(&cdb, &small()), Ok(Command::ReadCapacity16 { allocation_length: 32 }));
    cdb[9] = 1;
    assert_eq!(parse(&cdb, &small()), Ok(Command::ReadCapacity16 { allocation_length: 32 }), "obsolete LBA");
    cdb[1] = 0x12;
    assert_eq!(parse(&cdb, &small()), Ok(Command::GetLbaStatus { lba: 1, allocation_length: 32 }));
    cdb[8..10].copy_from_slice(&[3, 0xe8]);
    assert_eq!(parse(&cdb, &small()), Err(Sense::lba_out_of_range(1000)));
    cdb[1] = 0x11;
    assert_eq!(parse(&cdb, &small()), field(1, 4), "no such service action");
    cdb[1] = 0x12;
    cdb[9] = 0;
    cdb[14] = 1;
    assert_eq!(parse(&cdb, &small()), field(14, 0), "REPORT TYPE");
}

#[test]
fn read_capacity_10_ignores_what_is_obsolete() {
    assert_eq!(parse(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], &small()), Ok(Command::ReadCapacity10));
    assert_eq!(parse(&[0x25, 1, 0xff, 0xff, 0xff, 0xff, 0, 0, 1, 0], &small()), Ok(Command::ReadCapacity10));
    assert_eq!(parse(&[0x25, 0, 0, 0, 0, 0, 1, 0, 0, 0], &small()), field(6, 0));
}

#[test]
fn inquiry_needs_evpd_for_a_page() {
    let inquiry = |evpd, page| parse(&[0x12, evpd, page, 1, 2, 0], &small());
    assert_eq!(inquiry(0, 0), Ok(Command::Inquiry { vpd_page: None, allocation_length: 258 }));
    assert_eq!(inquiry(1, 0x83), Ok(Command::Inquiry { vpd_page: Some(0x83), allocation_length: 258 }));
    assert_eq!(inquiry(0, 1), bytes_at(2));
    assert_eq!(inquiry(2, 0), field(1, 1), "CMDDT");
}

#[test]
fn mode_commands_decode_both_forms() {
    let sense6 = parse(&[0x1a, 0x08, 0x8a, 0x01, 255, 0], &small());
    let six = ModeSense {
        form: ModeForm::Six,
        control: PageControl::Default,
        page: 0x0a,
        subpage: 1,
        block_descriptor: false,
        long_lba: false,
        allocation_length: 255,
    };
    assert_eq!(sense6, Ok(Command::ModeSense(six)));
    let sense10 = parse(&[0x5a, 0x10, 0x4a, 0x01, 0, 0, 0, 1, 0, 0], &small());
    let ten = ModeSense {
        form: ModeForm::Ten,
        control: PageControl::Changeable,
        block_descriptor: true,
        long_lba: true,
        allocation_length: 256,
        ..six
    };
    assert_eq!(sense10, Ok(Command::ModeSense(ten)));
    let saved = ModeSense { control: PageControl::Saved, subpage: 0, block_descriptor: true, ..six };
    assert_eq!(parse(&[0x1a, 0, 0xca, 0, 255, 0], &small()), Ok(Command::ModeSense(saved)));
    assert_eq!(parse(&[0x1a, 0x10, 0x0a, 0, 255, 0], &small()), field(1, 4), "no LLBAA in the six-byte form");

    assert_eq!(
        parse(&[0x15, 0x10, 0, 0, 24, 0], &small()),
        Ok(Command::ModeSelect { form: ModeForm::Six, save: false, parameter_list_length: 24 })
    );
    assert_eq!(
        parse(&[0x55, 0x10, 0, 0, 0, 0, 0, 1, 0, 0], &small()),
        Ok(Command::ModeSelect { form: ModeForm::Ten, save: false, parameter_list_length: 256 })
    );
    assert_eq!(
        parse(&[0x15, 0x11, 0, 0, 24, 0], &small()),
        Ok(Command::ModeSelect { form: ModeForm::Six, save: true, parameter_list_length: 24 })
    );
    assert_eq!(parse(&[0x15, 0x00, 0, 0, 24, 0], &small()), field(1, 4), "PF");
    assert_eq!(parse(&[0x55, 0x10, 0, 0, 0, 0, 0, 2, 1, 0], &small()), Err(Sense::parameter_list_length()));
}

#[test]
fn reports_check_their_selectors_and_least_allocation_lengths() {
    let luns = |select, len| parse(&[0xa0, 0, select, 0, 0, 0, 0, 0, 0, len, 0, 0], &small());
    assert_eq!(luns(2, 16), Ok(Command::ReportLuns { select: SelectReport::All, allocation_length: 16 }));
    assert_eq!(luns(3, 16), bytes_at(2));
    assert_eq!(luns(0, 15), bytes_at(6));

    let groups = |format: u8| parse(&[0xa3, format << 5 | 0x0a, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], &small());
    assert_eq!(groups(0), Ok(Command::ReportTargetPortGroups { extended: false, allocation_length: 256 }));
    assert_eq!(groups(1), Ok(Command::ReportTargetPortGroups { extended: true, allocation_length: 256 }));
    assert_eq!(groups(2), field(1, 7));

    let functions = |repd, len| parse(&[0xa3, 0x0d, repd, 0, 0, 0, 0, 0, 0, len, 0, 0], &small());
    assert_eq!(
        functions(0x80, 4),
        Ok(Command::ReportSupportedTaskManagementFunctions { extended: true, allocation_length: 4 })
    );
    assert_eq!(functions(0, 3), bytes_at(6));
    assert_eq!(functions(1, 4), field(2, 0));

    let codes = |options| parse(&[0xa3, 0x0c, options, 0x9e, 0, 0x10, 0, 0, 1, 0, 0, 0], &small());
    let expect = |options, timeouts| {
        Ok(Command::ReportSupportedOperationCodes { options, timeouts, allocation_length: 256 })
    };
    assert_eq!(codes(0x00), expect(ReportingOptions::All, false));
    assert_eq!(codes(0x81), expect(ReportingOptions::Opcode(0x9e), true));
    assert_eq!(codes(0x02), expect(ReportingOptions::ServiceAction(0x9e, 0x10), false));
    assert_eq!(codes(0x03), expect(ReportingOptions::Either(0x9e, 0x10), false));
    assert_eq!(codes(0x04), field(2, 2));
    assert_eq!(codes(0x08), field(2, 3));
}

#[test]
fn persistent_reserve_decodes_every_service_action() {
    use PrInAction as In;
    use PrOutAction as Out;
    for action in [In::ReadKeys, In::ReadReservation, In::ReportCapabilities, In::ReadFullStatus] {
        let got = parse(&[0x5e, action as u8, 0, 0, 0, 0, 0, 1, 0, 0], &small());
        assert_eq!(got, Ok(Command::PersistentReserveIn { action, allocation_length: 256 }));
    }
    assert_eq!(parse(&[0x5e, 4, 0, 0, 0, 0, 0, 1, 0, 0], &small()), field(1, 4));
    for action in [
        Out::Register,
        Out::Reserve,
        Out::Release,
        Out::Clear,
        Out::Preempt,
        Out::PreemptAndAbort,
        Out::RegisterAndIgnoreExistingKey,
        Out::RegisterAndMove,
        Out::ReplaceLostReservation,
    ] {
        let got = parse(&[0x5f, action as u8, 0x15, 0, 0, 0, 0, 0, 24, 0], &small());
        let parameter_list_length = 24;
        assert_eq!(
            got,
            Ok(Command::PersistentReserveOut { action, scope: 1, kind: 5, parameter_list_length })
        );
    }
    assert_eq!(parse(&[0x5f, 9, 0, 0, 0, 0, 0, 0, 24, 0], &small()), field(1, 4));
    let long = parse(&[0x5f, 0, 0, 0, 0, 0, 0, 0x40, 1, 0], &small());
    assert_eq!(long, Err(Sense::parameter_list_length()));
}

#[test]
fn spc2_reservations_are_for_the_whole_unit_and_the_sender() {
    assert_eq!(parse(&[0x16, 0, 0, 0, 0, 0], &small()), Ok(Command::Reserve));
    assert_eq!(parse(&[0x17, 0, 0, 0, 0, 0], &small()), Ok(Command::Release));
    assert_eq!(parse(&[0x16, 0x01, 0, 0, 0, 0], &small()), field(1, 0), "extent");
    assert_eq!(parse(&[0x16, 0x10, 0, 0, 0, 0], &small()), field(1, 4), "third party");
    for (opcode, command) in [(0x56, Command::Reserve), (0x57, Command::Release)] {
        assert_eq!(parse(&[opcode, 0, 0, 0, 0, 0, 0, 0, 0, 0], &small()), Ok(command));
        assert_eq!(parse(&[opcode, 0x10, 0, 1, 0, 0, 0, 0, 0, 0], &small()), field(1, 4));
        assert_eq!(parse(&[opcode, 0x02, 0, 0, 0, 0, 0, 0, 8, 0], &small()), field(1, 1));
        assert_eq!(parse(&[opcode, 0, 0, 1, 0, 0, 0, 0, 0, 0], &small()), bytes_at(3));
        assert_eq!(parse(&[opcode, 0, 0, 0, 0, 0, 0, 0, 8, 0], &small()), bytes_at(7));
    }
}

#[test]
fn unit_control_commands_refuse_what_this_medium_cannot_do() {
    let start_stop = |byte3, byte4| parse(&[0x1b, 1, 0, byte3, byte4, 0], &small());
    assert_eq!(start_stop(0, 1), Ok(Command::StartStopUnit { immediate: true, start: true }));
    assert_eq!(start_stop(0, 4), Ok(Command::StartStopUnit { immediate: true, start: false }), "NO_FLUSH");
    assert_eq!(start_stop(0, 2), field(4, 1), "LOEJ");
    for condition in 1..16 {
        assert_eq!(start_stop(0, condition << 4), field(4, 7), "POWER CONDITION");
        assert_eq!(start_stop(condition, 0), field(3, 3), "POWER CONDITION MODIFIER");
    }
    let prevent = |value| parse(&[0x1e, 0, 0, 0, value, 0], &small());
    assert_eq!(prevent(0), Ok(Command::PreventAllowMediumRemoval { prevent: false }));
    assert_eq!(prevent(1), Ok(Command::PreventAllowMediumRemoval { prevent: true }));
    assert_eq!(prevent(2), field(4, 1));
    assert_eq!(prevent(3), field(4, 1));
    let diagnostic = |flags, len| parse(&[0x1d, flags, 0, 0, len, 0], &small());
    assert_eq!(diagnostic(0x04, 0), Ok(Command::SendDiagnostic { self_test: true }));
    assert_eq!(diagnostic(0x13, 0), Ok(Command::SendDiagnostic { self_test: false }));
    assert_eq!(diagnostic(0x20, 0), field(1, 7), "SELF-TEST CODE");
    assert_eq!(diagnostic(0x10, 4), bytes_at(3), "a parameter list");
    assert_eq!(
        parse(&[0x03, 1, 0, 0, 252, 0], &small()),
        Ok(Command::RequestSense { descriptor: true, allocation_length: 252 })
    );
    assert_eq!(parse(&[0x00, 0, 0, 0, 1, 0], &small()), field(4, 0));
}

#[test]
fn unknown_operation_codes_and_short_cdbs_are_refused() {
    let unknown = Err(Sense::illegal(asc::INVALID_COMMAND_OPERATION_CODE));
    assert_eq!(parse(&[], &small()), unknown);
    assert_eq!(parse(&[0xff; 16], &small()), unknown);
    for row in TABLE {
        for len in 1..row.usage.len() {
            let mut cdb = std::vec![0; len];
            row.name_in(&mut cdb);
            assert_eq!(parse(&cdb, &small()), bytes_at(len as u16), "{} cut to {len}", row.name);
        }
    }
}

#[test]
fn every_control_bit_but_naca_is_refused_where_it_is() {
    for row in TABLE {
        let last = row.control_at();
        for bit in 0..8 {
            let mut cdb = std::vec![0; row.usage.len()];
            row.name_in(&mut cdb);
            let without = parse(&cdb, &small());
            cdb[last] = 1 << bit;
            let expected = if bit == 2 { without } else { field(last as u16, bit) };
            assert_eq!(parse(&cdb, &small()), expected, "{}", row.name);
            assert_eq!(naca(&cdb), bit == 2, "{}", row.name);
        }
    }
}

#[test]
fn length_of_a_cdb_is_known_by_its_operation_code() {
    for row in TABLE {
        assert_eq!(cdb_len(row.opcode), Some(row.usage.len()));
    }
    assert_eq!(
        (cdb_len(0x04), cdb_len(0x55), cdb_len(0x85), cdb_len(0xac)),
        (Some(6), Some(10), Some(16), Some(12))
    );
    assert_eq!((cdb_len(0x7e), cdb_len(0xc0)), (None, None));
}

#[test]
fn exactly_the_writes_may_be_cut_short() {
    for row in TABLE {
        let write = row.name.starts_with("WRITE(") || row.name.starts_with("WRITE AND VERIFY(");
        let mut cdb = std::vec![0; row.usage.len()];
        row.name_in(&mut cdb);
        assert_eq!(may_be_cut_short(&cdb), write, "{}", row.name);
    }
}

#[test]
fn exactly_the_commands_that_change_what_the_cluster_keeps_are_agreed() {
    const NAMES: [&str; 9] = [
        "RESERVE(",
        "RELEASE(",
        "PERSISTENT RESERVE OUT",
        "MODE SELECT(",
        "PREVENT ALLOW",
        "SET IDENTIFYING",
        "SET TIMESTAMP",
        "FORMAT UNIT",
        "SANITIZE",
    ];
    for row in TABLE {
        let agreed = NAMES.iter().any(|name| row.name.starts_with(name));
        let action = row.service_action.map_or(0, |action| action as u8);
        assert_eq!(is_agreed(&[row.opcode, action]), agreed, "{}", row.name);
    }
    assert!(!is_agreed(&[]));
}

/// Any bytes behind an operation code that exists, so that most of them get past the first check.
fn any_cdb() -> impl Strategy<Value = Vec<u8>> {
    let row = (0..TABLE.len()).prop_map(|at| &TABLE[at]);
    (row, prop::collection::vec(any::<u8>(), 31), any::<bool>()).prop_map(|(row, noise, tidy)| {
        let mut cdb = std::vec![row.opcode];
        cdb.extend(noise);
        if tidy {
            for (byte, usage) in cdb.iter_mut().zip(row.usage).skip(1) {
                *byte &= usage;
            }
            if row.service_action.is_some() {
                let flags = cdb[1] & 0xe0;
                row.name_in(&mut cdb);
                cdb[1] |= flags;
            }
        }
        cdb
    })
}

fn any_geometry() -> impl Strategy<Value = Geometry> {
    let blocks = prop_oneof![1u64..5000, 1u64..(1 << 34), 1u64..(1 << 48)];
    (prop_oneof![Just(512u32), Just(4096)], blocks).prop_map(|(size, n)| Geometry::new(size, n).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_decoded_without_panic(
        cdb in prop::collection::vec(any::<u8>(), 0..40), geometry in any_geometry(),
    ) {
        let _ = parse(&cdb, &geometry);
    }

    #[test]
    fn whatever_is_accepted_lies_within_capacity_and_limits(cdb in any_cdb(), geometry in any_geometry()) {
        match parse(&cdb, &geometry) {
            Ok(command) => {
                if let Some(extent) = command.extent() {
                    prop_assert!(extent.within(&geometry) && extent.lba < geometry.blocks());
                }
                let (direction, len) = command.transfer_len(&geometry);
                prop_assert!(direction != Direction::None || len == 0);
                if direction == Direction::Out {
                    prop_assert!(len <= u64::from(limits::TRANSFER_BYTES_MAX));
                }
            }
            Err(sense) => prop_assert_eq!(sense.key, crate::sense::SenseKey::IllegalRequest),
        }
    }

    #[test]
    fn trailing_bytes_are_ignored(cdb in any_cdb(), tail in any::<[u8; 4]>(), geometry in any_geometry()) {
        let len = cdb_len(cdb[0]).unwrap();
        let padded = [&cdb[..len], &tail].concat();
        prop_assert_eq!(parse(&padded, &geometry), parse(&cdb[..len], &geometry));
    }

    #[test]
    fn only_bits_that_are_reported_or_named_as_unchecked_decide(cdb in any_cdb(), geometry in any_geometry()) {
        // What parses still parses to the same with every unreported, ignored bit cleared.
        let Ok(command) = parse(&cdb, &geometry) else { return Ok(()) };
        let row = crate::opcode::row_of(&cdb).unwrap();
        let mut tidy = cdb[..row.usage.len()].to_vec();
        for (byte, usage) in tidy.iter_mut().zip(row.usage).skip(1) {
            *byte &= usage;
        }
        prop_assert_eq!(parse(&tidy, &geometry), Ok(command));
    }
}
