//! Seeded random CDBs of a disk: mostly valid, each sometimes with one thing wrong, which the case names.
//!
//! NACA is left out: one target establishes ACA conditions and the other has none, and the next commands would be about that.
//!
//! Invariants: the same seed gives the same cases; a case says whether it can have changed data or reservations, so that
//! both targets can be made alike again after a difference.

/// Blocks that commands read and write, at the beginning of the medium.
pub(super) const AREA_BLOCKS: u64 = 256;

/// A small generator of random numbers (splitmix64): the same on every machine and in every version.
#[derive(Debug, Clone)]
pub(super) struct Random(pub u64);

impl Random {
    /// The next number.
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}

/// Data of a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Data {
    /// None.
    None,
    /// So many bytes are read.
    In(u32),
    /// These bytes in hex are sent.
    Out(String),
    /// So many bytes of this value are sent.
    Fill(u8, u32),
}

/// What a case can have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing.
    None,
    /// Blocks of the area.
    Blocks,
    /// Reservations or registrations.
    Reservations,
}

/// One command to send to both targets.
#[derive(Debug, Clone)]
pub(super) struct Case {
    /// Which of the two initiators sends it.
    pub nexus: usize,
    /// The CDB.
    pub cdb: Vec<u8>,
    /// Its data.
    pub data: Data,
    /// What is wrong or special about it: "plain", "reserved-bit", "protect", "beyond-end", "zero-length",
    /// "short-allocation", "dpo-fua", "unmap", "bad-field", or the page that only one target knows.
    pub twist: &'static str,
    /// What it can change.
    pub effect: Effect,
}

impl Case {
    /// Opcode in hex, with the service action where the opcode has some: "28", "9e/10".
    pub(super) fn command(&self) -> String {
        let opcode = self.cdb[0];
        match opcode {
            0x9e | 0xa3 | 0x5e | 0x5f => format!("{opcode:02x}/{:02x}", self.cdb[1] & 0x1f),
            _ => format!("{opcode:02x}"),
        }
    }
}

fn put(cdb: &mut [u8], at: usize, bytes: &[u8]) {
    cdb[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Where a block command's LBA and length stand, by opcode: (CDB length, LBA at, its bytes, length at, its bytes).
fn layout(opcode: u8) -> (usize, usize, usize, usize, usize) {
    match opcode {
        0x08 | 0x0a => (6, 1, 3, 4, 1),
        0x28 | 0x2a | 0x2e | 0x2f | 0x34 | 0x35 | 0x41 => (10, 2, 4, 7, 2),
        0xa8 | 0xaa | 0xae | 0xaf => (12, 2, 4, 6, 4),
        _ => (16, 2, 8, 10, 4),
    }
}

/// A command that names blocks.
fn block_command(random: &mut Random, opcode: u8, capacity: u64) -> Case {
    let (len, lba_at, lba_len, count_at, count_len) = layout(opcode);
    let mut cdb = vec![0; len];
    cdb[0] = opcode;
    let mut twist = "plain";
    let mut count = random.one_of(&[1, 1, 2, 3, 8, 16]);
    let mut lba = random.below(AREA_BLOCKS - count);
    match random.below(20) {
        0 => (twist, lba) = ("beyond-end", capacity - random.below(2).min(count - 1)),
        1 => (twist, count) = ("zero-length", 0),
        2 if lba_len == 8 => (twist, lba) = ("beyond-end", u64::MAX - random.below(3)),
        _ => {}
    }
    if lba_len == 3 {
        lba &= 0x1f_ffff;
        if count == 0 {
            // A zero means 256 blocks in the six-byte commands: beyond what both are compared in.
            (twist, count) = ("plain", 1);
        }
    }
    put(&mut cdb, lba_at, &lba.to_be_bytes()[8 - lba_len..]);
    put(&mut cdb, count_at, &count.to_be_bytes()[8 - count_len..]);
    let mut blocks_of_data = count;
    let value = random.below(4) as u8;
    let (reads, writes) = match opcode {
        0x08 | 0x28 | 0xa8 | 0x88 => (true, false),
        0x0a | 0x2a | 0xaa | 0x8a | 0x2e | 0xae | 0x8e | 0x8b => (false, true),
        0x2f | 0xaf | 0x8f => {
            // VERIFY: byte check 0 needs no data, 1 compares with as many blocks.
            let check = random.below(2) as u8;
            cdb[1] |= check << 1;
            (false, check == 1)
        }
        0x41 | 0x93 => {
            if twist == "zero-length" {
                // It means "to the end of the medium".
                (twist, count) = ("plain", 1);
                put(&mut cdb, count_at, &count.to_be_bytes()[8 - count_len..]);
            }
            blocks_of_data = 1;
            if random.below(3) == 0 {
                cdb[1] |= 0x08;
                if twist == "plain" {
                    twist = "unmap";
                }
            }
            (false, true)
        }
        _ => (false, false),
    };
    if twist == "plain" && len > 6 {
        match random.below(16) {
            0 if !matches!(opcode, 0x34 | 0x35 | 0x90 | 0x91) => {
                (twist, cdb[1]) = ("protect", cdb[1] | (random.one_of(&[1_u8, 2, 3, 5]) << 5));
            }
            2 if matches!(opcode, 0x28 | 0x2a | 0xa8 | 0xaa | 0x88 | 0x8a) => {
                (twist, cdb[1]) = ("dpo-fua", cdb[1] | random.one_of(&[0x08_u8, 0x10, 0x18]));
            }
            _ => {}
        }
    }
    let data = match (reads, writes) {
        (true, _) => Data::In((blocks_of_data * 512) as u32),
        (_, true) if blocks_of_data > 0 => Data::Fill(value, (blocks_of_data * 512) as u32),
        _ => Data::None,
    };
    let effect = if writes { Effect::Blocks } else { Effect::None };
    Case { nexus: random.below(2) as usize, cdb, data, twist, effect }
}

/// A command that returns parameter data, with its allocation length's place and bytes.
fn inform(random: &mut Random, cdb: &[u8], at: usize, len: usize) -> Case {
    let mut cdb = cdb.to_vec();
    let (allocation, twist) = match random.below(6) {
        0 => (0, "zero-length"),
        1 => (random.below(8), "short-allocation"),
        _ => (252, "plain"),
    };
    put(&mut cdb, at, &u64::to_be_bytes(allocation)[8 - len..]);
    // The initiator expects data even where the CDB asks for none: a peer dies of a CDB without a buffer.
    let data = Data::In((allocation as u32).max(4));
    Case { nexus: random.below(2) as usize, cdb, data, twist, effect: Effect::None }
}

fn simple(random: &mut Random, cdb: &[u8]) -> Case {
    let nexus = random.below(2) as usize;
    Case { nexus, cdb: cdb.to_vec(), data: Data::None, twist: "plain", effect: Effect::None }
}

fn reserve_out(random: &mut Random) -> Case {
    let action = random.one_of(&[0_u8, 0, 0, 1, 1, 2, 3, 4, 6, 6]);
    let (kind, twist) = match random.below(12) {
        0 => (random.one_of(&[0_u8, 2, 4, 9]), "bad-field"),
        1 => (0x10 | 3, "bad-field"),
        _ => (random.one_of(&[1_u8, 3, 5, 6, 7, 8]), "plain"),
    };
    let mut cdb = vec![0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0];
    let mut twist = twist;
    let nexus = random.below(2) as usize;
    let key = |random: &mut Random| random.one_of(&[0_u64, 0x11, 0x11, 0x22, 0x22, 0x33]);
    let own = if random.below(4) == 0 { key(random) } else { [0x11, 0x22][nexus] };
    let mut list = format!("{own:016x}{:016x}0000000000000000", key(random));
    if random.below(16) == 0 {
        (twist, cdb[8]) = ("bad-field", 20);
        list.truncate(40);
    }
    Case { nexus, cdb, data: Data::Out(list), twist, effect: Effect::Reservations }
}

fn unmap(random: &mut Random, capacity: u64) -> Case {
    let count = random.one_of(&[0_u64, 1, 8, 16]);
    let (lba, twist) = match random.below(6) {
        0 => (capacity - count / 2, "beyond-end"),
        _ => (random.below(AREA_BLOCKS - 16) & !7, "plain"),
    };
    // Header: data length 22, descriptors' length 16, four reserved bytes.
    let list = format!("0016001000000000{lba:016x}{count:08x}00000000");
    let cdb = vec![0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0];
    Case { nexus: random.below(2) as usize, cdb, data: Data::Out(list), twist, effect: Effect::Blocks }
}

/// The next case for a medium of `capacity` blocks.
pub(super) fn case(random: &mut Random, capacity: u64) -> Case {
    const BLOCKS: [u8; 21] = [
        0x08, 0x0a, 0x28, 0x2a, 0x2e, 0x2f, 0x34, 0x35, 0x41, 0x42, 0x88, 0x8a, 0x8e, 0x8f, 0x90, 0x91, 0x93,
        0xa8, 0xaa, 0xae, 0xaf,
    ];
    match random.below(100) {
        0..50 => match random.one_of(&BLOCKS) {
            0x42 => unmap(random, capacity),
            opcode => block_command(random, opcode, capacity),
        },
        50..53 => simple(random, &[0x00, 0, 0, 0, 0, 0]),
        53..56 => inform(random, &[0x12, 0, 0, 0, 0, 0], 3, 2),
        56..62 => {
            let page = random.one_of(&[0x00_u8, 0x80, 0x83, 0xb0, 0xb2, 0x86, 0x55]);
            let mut case = inform(random, &[0x12, 1, page, 0, 0, 0], 3, 2);
            match page {
                0x55 => case.twist = "bad-field",
                0x86 => case.twist = "page-86",
                _ => {}
            }
            case
        }
        62..64 => {
            let mut case = inform(random, &[0x12, 0, 0x80, 0, 0, 0], 3, 2);
            case.twist = "bad-field";
            case
        }
        64..67 => {
            let data = Data::In(8);
            let nexus = random.below(2) as usize;
            let cdb = vec![0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            Case { nexus, cdb, data, twist: "plain", effect: Effect::None }
        }
        67..70 => inform(random, &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 10, 4),
        70..73 => {
            let mut case = inform(random, &[0x9e, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 10, 4);
            if random.below(4) == 0 {
                (case.twist, case.cdb[2]) = ("beyond-end", 1);
            }
            case
        }
        73..79 => {
            let page = random.one_of(&[0x3f_u8, 0x08, 0x0a, 0x1c, 0x02, 0x2f]);
            let control = random.one_of(&[0_u8, 0, 0x40, 0x80, 0xc0]);
            let mut case = if random.below(2) == 0 {
                inform(random, &[0x1a, 0, control | page, 0, 0, 0], 4, 1)
            } else {
                inform(random, &[0x5a, 0, control | page, 0, 0, 0, 0, 0, 0, 0], 7, 2)
            };
            if control == 0xc0 || page == 0x2f {
                case.twist = "bad-field";
            } else if page == 0x02 {
                case.twist = "page-02";
            }
            case
        }
        79..82 => {
            let report = random.one_of(&[0_u8, 0, 2, 1, 0x40]);
            let mut case = inform(random, &[0xa0, 0, report, 0, 0, 0, 0, 0, 0, 0, 0, 0], 6, 4);
            if report == 0x40 {
                case.twist = "bad-field";
            }
            case
        }
        82..84 => inform(random, &[0x03, 0, 0, 0, 0, 0], 4, 1),
        84..86 => {
            let mut cdb = [0x1b, 0, 0, 0, u8::from(random.below(4) > 0), 0];
            cdb[1] = random.below(2) as u8;
            simple(random, &cdb)
        }
        86..88 => {
            let cdb = [0x1e, 0, 0, 0, random.below(2) as u8, 0];
            simple(random, &cdb)
        }
        88..91 => {
            let action = random.below(4) as u8;
            inform(random, &[0x5e, action, 0, 0, 0, 0, 0, 0, 0, 0], 7, 2)
        }
        91..97 => reserve_out(random),
        97..99 => {
            let opcode = random.one_of(&[0x16_u8, 0x17]);
            let mut case = simple(random, &[opcode, 0, 0, 0, 0, 0]);
            case.effect = Effect::Reservations;
            case
        }
        _ => {
            let opcode = random.one_of(&[0x02_u8, 0x44, 0xc1, 0xff, 0x7e]);
            let len = if opcode < 0x20 { 6 } else { 10 };
            let mut cdb = vec![0; len];
            cdb[0] = opcode;
            let mut case = simple(random, &cdb);
            case.twist = "bad-field";
            case
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_gives_the_same_cases_and_all_of_them_are_cdbs() {
        let cases = |seed| {
            let mut random = Random(seed);
            (0..2000).map(|_| case(&mut random, 204_800)).collect::<Vec<_>>()
        };
        for (a, b) in cases(7).iter().zip(cases(7)) {
            assert_eq!((&a.cdb, &a.data), (&b.cdb, &b.data));
            assert!(matches!(a.cdb.len(), 6 | 10 | 12 | 16), "{a:?}");
        }
        assert!(cases(7).iter().zip(cases(8)).any(|(a, b)| a.cdb != b.cdb));
    }
}
