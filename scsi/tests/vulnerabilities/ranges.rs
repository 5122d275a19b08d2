//! Ranges of blocks: LBA plus length beyond the end, round 2^32 or 2^64, longer than Block Limits says, and empty.

use holdfast_scsi::{
    cdb,
    geometry::Geometry,
    limits,
    sense::{AdditionalSense, Sense, asc},
};

use crate::{Case, Expected, run, world::BLOCKS};

/// A command that names a range: where its LBA and its length stand, and how much Data-Out it wants.
struct Ranged {
    name: &'static str,
    cdb: &'static [u8],
    lba: (usize, usize),
    length: (usize, usize),
    data_out: DataOut,
}

#[derive(Clone, Copy, PartialEq)]
enum DataOut {
    None,
    Range,
    TwoRanges,
    OneBlock,
}

const fn ranged(
    name: &'static str,
    cdb: &'static [u8],
    lba: (usize, usize),
    length: (usize, usize),
    data_out: DataOut,
) -> Ranged {
    Ranged { name, cdb, lba, length, data_out }
}

const fn zeroes<const N: usize>(first: u8, second: u8) -> [u8; N] {
    let mut cdb = [0; N];
    cdb[0] = first;
    cdb[1] = second;
    cdb
}

const TEN: ((usize, usize), (usize, usize)) = ((2, 4), (7, 2));
const TWELVE: ((usize, usize), (usize, usize)) = ((2, 4), (6, 4));
const SIXTEEN: ((usize, usize), (usize, usize)) = ((2, 8), (10, 4));

const fn thirty_two(action: u8) -> [u8; 32] {
    let mut cdb = [0; 32];
    [cdb[0], cdb[7], cdb[9]] = [0x7f, 0x18, action];
    cdb
}

const THIRTY_TWO: ((usize, usize), (usize, usize)) = ((12, 8), (28, 4));

const COMMANDS: &[Ranged] = &[
    ranged("READ(10)", &zeroes::<10>(0x28, 0), TEN.0, TEN.1, DataOut::None),
    ranged("READ(12)", &zeroes::<12>(0xa8, 0), TWELVE.0, TWELVE.1, DataOut::None),
    ranged("READ(16)", &zeroes::<16>(0x88, 0), SIXTEEN.0, SIXTEEN.1, DataOut::None),
    ranged("WRITE(10)", &zeroes::<10>(0x2a, 0), TEN.0, TEN.1, DataOut::Range),
    ranged("WRITE(12)", &zeroes::<12>(0xaa, 0), TWELVE.0, TWELVE.1, DataOut::Range),
    ranged("WRITE(16)", &zeroes::<16>(0x8a, 0), SIXTEEN.0, SIXTEEN.1, DataOut::Range),
    ranged("WRITE AND VERIFY(10)", &zeroes::<10>(0x2e, 0), TEN.0, TEN.1, DataOut::Range),
    ranged("WRITE AND VERIFY(12)", &zeroes::<12>(0xae, 0), TWELVE.0, TWELVE.1, DataOut::Range),
    ranged("WRITE AND VERIFY(16)", &zeroes::<16>(0x8e, 0), SIXTEEN.0, SIXTEEN.1, DataOut::Range),
    ranged("VERIFY(10)", &zeroes::<10>(0x2f, 0), TEN.0, TEN.1, DataOut::None),
    ranged("VERIFY(12)", &zeroes::<12>(0xaf, 0), TWELVE.0, TWELVE.1, DataOut::None),
    ranged("VERIFY(16)", &zeroes::<16>(0x8f, 0), SIXTEEN.0, SIXTEEN.1, DataOut::None),
    ranged("VERIFY(10), BYTCHK=01b", &zeroes::<10>(0x2f, 2), TEN.0, TEN.1, DataOut::Range),
    ranged("VERIFY(16), BYTCHK=11b", &zeroes::<16>(0x8f, 6), SIXTEEN.0, SIXTEEN.1, DataOut::OneBlock),
    ranged("PRE-FETCH(10)", &zeroes::<10>(0x34, 0), TEN.0, TEN.1, DataOut::None),
    ranged("PRE-FETCH(16)", &zeroes::<16>(0x90, 0), SIXTEEN.0, SIXTEEN.1, DataOut::None),
    ranged("SYNCHRONIZE CACHE(10)", &zeroes::<10>(0x35, 0), TEN.0, TEN.1, DataOut::None),
    ranged("SYNCHRONIZE CACHE(16)", &zeroes::<16>(0x91, 0), SIXTEEN.0, SIXTEEN.1, DataOut::None),
    ranged("WRITE SAME(10)", &zeroes::<10>(0x41, 0), TEN.0, TEN.1, DataOut::OneBlock),
    ranged("WRITE SAME(16)", &zeroes::<16>(0x93, 0), SIXTEEN.0, SIXTEEN.1, DataOut::OneBlock),
    ranged("WRITE SAME(16), NDOB=1", &zeroes::<16>(0x93, 1), SIXTEEN.0, SIXTEEN.1, DataOut::None),
    ranged("ORWRITE(16)", &zeroes::<16>(0x8b, 0), SIXTEEN.0, SIXTEEN.1, DataOut::Range),
    ranged("READ(32)", &thirty_two(0x09), THIRTY_TWO.0, THIRTY_TWO.1, DataOut::None),
    ranged("VERIFY(32)", &thirty_two(0x0a), THIRTY_TWO.0, THIRTY_TWO.1, DataOut::None),
    ranged("WRITE(32)", &thirty_two(0x0b), THIRTY_TWO.0, THIRTY_TWO.1, DataOut::Range),
    ranged("WRITE AND VERIFY(32)", &thirty_two(0x0c), THIRTY_TWO.0, THIRTY_TWO.1, DataOut::Range),
    ranged("WRITE SAME(32)", &thirty_two(0x0d), THIRTY_TWO.0, THIRTY_TWO.1, DataOut::OneBlock),
    ranged("WRITE ATOMIC(16)", &zeroes::<16>(0x9c, 0), SIXTEEN.0, (12, 2), DataOut::Range),
    ranged("COMPARE AND WRITE", &zeroes::<16>(0x89, 0), (2, 8), (13, 1), DataOut::TwoRanges),
];

impl Ranged {
    fn cdb(&self, lba: u64, blocks: u32) -> Vec<u8> {
        let mut cdb = self.cdb.to_vec();
        for ((at, width), value) in [(self.lba, lba), (self.length, u64::from(blocks))] {
            cdb[at..at + width].copy_from_slice(&value.to_be_bytes()[8 - width..]);
        }
        cdb
    }

    fn data(&self, blocks: u32) -> Vec<u8> {
        // What cannot be sent in one piece is cut: it is refused before anyone looks.
        let blocks = blocks.min(4) as usize;
        match self.data_out {
            DataOut::None => Vec::new(),
            DataOut::Range => vec![0xee; 512 * blocks],
            DataOut::TwoRanges => vec![0xee; 1024 * blocks],
            DataOut::OneBlock => vec![0xee; 512],
        }
    }

    fn lba_max(&self) -> u64 {
        u64::MAX >> (64 - 8 * self.lba.1)
    }

    fn length_max(&self) -> u32 {
        u32::MAX >> (32 - 8 * self.length.1)
    }
}

pub(crate) fn beyond_the_end() -> Vec<Case> {
    let mut cases = Vec::new();
    for command in COMMANDS {
        for (what, lba, blocks) in [
            ("the last block and one more", BLOCKS - 1, 2),
            ("one block behind the end", BLOCKS, 1),
            ("all that the length can say from the middle", BLOCKS / 2, command.length_max()),
            ("the last LBA there can be", command.lba_max(), 1),
            ("round the end of the numbers", command.lba_max() - 1, command.length_max().min(9)),
        ] {
            if lba.saturating_add(u64::from(blocks)) <= BLOCKS {
                continue;
            }
            let expected = Expected::Check(Sense::lba_out_of_range(lba.max(BLOCKS)));
            let name = format!("{}: {what}", command.name);
            cases.push(Case::new(name, command.cdb(lba, blocks), command.data(blocks), expected));
        }
    }
    for (name, opcode) in [("READ(6)", 0x08), ("WRITE(6)", 0x0a)] {
        for (what, cdb, lba) in [
            ("the last block and one more", [opcode, 0, 0x07, 0xff, 2, 0], 2048),
            ("length 0 is 256 blocks", [opcode, 0, 0x07, 0x01, 0, 0], 2048),
            ("the last LBA there can be", [opcode, 0x1f, 0xff, 0xff, 1, 0], 0x1f_ffff),
        ] {
            let data = if opcode == 0x0a { vec![0xee; 1024] } else { Vec::new() };
            let expected = Expected::Check(Sense::lba_out_of_range(lba));
            cases.push(Case::new(format!("{name}: {what}"), cdb.to_vec(), data, expected));
        }
    }
    for lba in [BLOCKS, u64::MAX] {
        let mut cdb = zeroes::<16>(0x9e, 0x12).to_vec();
        cdb[2..10].copy_from_slice(&lba.to_be_bytes());
        cdb[13] = 64;
        let expected = Expected::Check(Sense::lba_out_of_range(lba));
        cases.push(Case::new(format!("GET LBA STATUS: {lba:x}"), cdb, Vec::new(), expected));
    }
    cases
}

/// On a unit that is large enough for what they ask.
pub(crate) fn too_long() -> Vec<(String, Vec<u8>, Sense)> {
    let mut cases = Vec::new();
    for command in COMMANDS {
        let (at, max) = (command.length.0 as u16, u64::from(command.length_max()));
        let limit = match command.name {
            name if name.starts_with("PRE-FETCH") => limits::PREFETCH_BLOCKS_MAX,
            name if name.starts_with("WRITE SAME") => limits::WRITE_SAME_BLOCKS_MAX,
            name if name.starts_with("SYNCHRONIZE") => continue,
            "COMPARE AND WRITE" => continue,
            "WRITE ATOMIC(16)" => limits::atomic_blocks_max(512),
            _ => limits::transfer_blocks_max(512),
        };
        for blocks in [u64::from(limit) + 1, max] {
            if blocks <= max && blocks > u64::from(limit) {
                let sense = Sense::illegal_field_cdb(at, None);
                cases.push((format!("{}: {blocks}", command.name), command.cdb(0, blocks as u32), sense));
            }
        }
    }
    cases
}

/// Nothing to do is nothing done, and where it could be taken for more it is refused.
pub(crate) fn zero_blocks() -> Vec<Case> {
    let mut cases = Vec::new();
    for command in COMMANDS {
        let data = if command.data_out == DataOut::OneBlock { command.data(0) } else { Vec::new() };
        let expected = match command.name {
            name if name.starts_with("WRITE SAME") => {
                Expected::Check(Sense::illegal_field_cdb(command.length.0 as u16, None))
            }
            _ => Expected::Good,
        };
        let name = format!("{}: no blocks", command.name);
        cases.push(Case::new(name, command.cdb(5, 0), data, expected));
        let name = format!("{}: no blocks behind the end", command.name);
        let data = if command.data_out == DataOut::OneBlock { command.data(0) } else { Vec::new() };
        let behind: AdditionalSense = match command.name {
            name if name.starts_with("WRITE SAME") => asc::INVALID_FIELD_IN_CDB,
            _ => asc::LBA_OUT_OF_RANGE,
        };
        cases.push(Case::new(name, command.cdb(BLOCKS, 0), data, Expected::Code(behind)));
    }
    let mut lock = zeroes::<16>(0x89, 0).to_vec();
    lock[9] = 5;
    let refused = Expected::Check(Sense::illegal_field_cdb(13, None));
    cases.push(Case::new("COMPARE AND WRITE: no blocks, but data for a lock", lock, vec![0; 1024], refused));
    cases
}

#[test]
fn lba_and_length_stay_within_the_unit() {
    run(&beyond_the_end());
}

#[test]
fn lengths_stay_within_block_limits() {
    let large = Geometry::new(512, 1 << 41).unwrap();
    for (name, cdb, sense) in too_long() {
        assert_eq!(cdb::parse(&cdb, &large), Err(sense), "{name}");
    }
}

#[test]
fn zero_blocks_are_no_blocks() {
    run(&zero_blocks());
}
