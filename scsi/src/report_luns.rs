//! REPORT LUNS (SPC-5 6.33).

use crate::cdb::SelectReport;
use crate::lun::Lun;
use crate::reply::{Reply, ReplyWriter};

/// The LUNs that a host may use, in the order of `luns` (callers sort by number). There are no well known logical units,
/// so 01h reports an empty list and 02h the same as 00h.
pub fn report_luns(
    select: SelectReport,
    luns: impl IntoIterator<Item = Lun>,
    allocation_length: u32,
    out: &mut [u8],
) -> Reply {
    let mut w = ReplyWriter::new(out, allocation_length);
    w.put_zeroes(8);
    if select != SelectReport::WellKnown {
        for lun in luns {
            w.put(&lun.to_bytes());
        }
    }
    w.patch_len32(0, 8);
    w.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reply::full_reply;

    #[test]
    fn lists_every_lun_in_its_encoding() {
        let luns = [Lun::from_number(1).unwrap(), Lun::from_number(300).unwrap()];
        let data = full_reply(|len, out| report_luns(SelectReport::All, luns, len, out));
        assert_eq!(data[..8], [0, 0, 0, 16, 0, 0, 0, 0]);
        assert_eq!(data[8..], [0, 1, 0, 0, 0, 0, 0, 0, 0x41, 0x2c, 0, 0, 0, 0, 0, 0]);
        let none = full_reply(|len, out| report_luns(SelectReport::WellKnown, luns, len, out));
        assert_eq!(none, [0; 8]);
    }
}
