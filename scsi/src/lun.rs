//! Logical unit numbers on the wire (SAM-5 4.7). Peripheral device and flat space addressing, single level.

/// An eight-byte LUN as it came from the wire. Two encodings of one number are equal through [`Lun::number`] only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Lun([u8; 8]);

impl Lun {
    /// Largest number that flat space addressing carries.
    pub const NUMBER_MAX: u16 = 0x3fff;
    /// REPORT LUNS well known logical unit (SAM-5 4.7.11), W-LUN 01h.
    pub const REPORT_LUNS: Lun = Lun([0xc1, 0x01, 0, 0, 0, 0, 0, 0]);

    /// Takes the bytes as they are; whether they name a unit is told by [`Lun::number`].
    pub const fn from_bytes(bytes: [u8; 8]) -> Lun {
        Lun(bytes)
    }

    /// The encoding REPORT LUNS uses: peripheral device addressing up to 255, flat space addressing up to
    /// [`Lun::NUMBER_MAX`]; `None` above.
    pub const fn from_number(number: u16) -> Option<Lun> {
        let [high, low] = number.to_be_bytes();
        match number {
            0..=0xff => Some(Lun([0, low, 0, 0, 0, 0, 0, 0])),
            0x100..=Lun::NUMBER_MAX => Some(Lun([0x40 | high, low, 0, 0, 0, 0, 0, 0])),
            _ => None,
        }
    }

    /// The number, for a single-level LUN in peripheral device (bus 0) or flat space addressing. `None` for
    /// everything else, which no unit of ours answers to.
    pub const fn number(&self) -> Option<u16> {
        let [first, second, 0, 0, 0, 0, 0, 0] = self.0 else { return None };
        match first >> 6 {
            0b00 if first == 0 => Some(second as u16),
            0b01 => Some(u16::from_be_bytes([first & 0x3f, second])),
            _ => None,
        }
    }

    /// The eight bytes on the wire.
    pub const fn to_bytes(self) -> [u8; 8] {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_reads_back() {
        for n in 0..=Lun::NUMBER_MAX {
            assert_eq!(Lun::from_number(n).unwrap().number(), Some(n));
        }
        assert_eq!(Lun::from_number(0x4000), None);
    }

    #[test]
    fn both_encodings_name_the_same_number() {
        assert_eq!(Lun::from_bytes([0x40, 7, 0, 0, 0, 0, 0, 0]).number(), Some(7));
        assert_eq!(Lun::from_bytes([0, 7, 0, 0, 0, 0, 0, 0]).number(), Some(7));
    }

    #[test]
    fn buses_second_levels_and_well_known_luns_name_no_unit() {
        assert_eq!(Lun::from_bytes([1, 7, 0, 0, 0, 0, 0, 0]).number(), None);
        assert_eq!(Lun::from_bytes([0, 7, 0, 1, 0, 0, 0, 0]).number(), None);
        assert_eq!(Lun::from_bytes([0x80, 7, 0, 0, 0, 0, 0, 0]).number(), None);
        assert_eq!(Lun::REPORT_LUNS.number(), None);
    }
}
