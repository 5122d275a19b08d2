//! Standard INQUIRY data (SPC-5 6.7.2), and INQUIRY to a LUN that is not mapped.

use crate::identity::{LuIdentity, PRODUCT, VENDOR};
use crate::reply::{Reply, ReplyWriter};
use crate::sense::Sense;

/// Peripheral qualifier 011b, device type 1Fh: no logical unit can be here.
const NOT_CAPABLE: u8 = 0x7f;
/// Peripheral qualifier 000b, direct access block device.
const BLOCK_DEVICE: u8 = 0x00;
/// SPC-4: the newest that every initiator accepts; the version descriptors name SPC-5 as well.
const VERSION_SPC_4: u8 = 0x06;
/// NORMACA=1, HISUP=1 (LUNs use the hierarchical structure), RESPONSE DATA FORMAT 2.
const HISUP_FORMAT_2: u8 = 0x32;
/// TPGS=11b: implicit and explicit asymmetric access. 3PC=1: third-party copy. PROTECT=0.
const TPGS: u8 = 0x38;
/// MULTIP=1: several target ports.
const MULTIP: u8 = 0x10;
/// CMDQUE=1.
const CMDQUE: u8 = 0x02;
/// SAM-5, SPC-4, SPC-5, SBC-3, SBC-4, iSCSI; none with a claim of a revision.
const VERSION_DESCRIPTORS: [u16; 6] = [0x00a0, 0x0460, 0x05c0, 0x04c0, 0x0600, 0x0960];
const LEN: usize = 96;

/// Standard INQUIRY data of a logical unit.
pub fn standard(identity: &LuIdentity, allocation_length: u16, out: &mut [u8]) -> Reply {
    let mut w = ReplyWriter::new(out, u32::from(allocation_length));
    header(&mut w, BLOCK_DEVICE);
    w.put_text(VENDOR, 8);
    w.put_text(PRODUCT, 16);
    w.put(&identity.revision);
    w.put_zeroes(58 - 36);
    for descriptor in VERSION_DESCRIPTORS {
        w.put_u16(descriptor);
    }
    w.put_zeroes(LEN.saturating_sub(w.len()));
    w.finish()
}

fn header(w: &mut ReplyWriter<'_>, peripheral: u8) {
    w.put(&[peripheral, 0, VERSION_SPC_4, HISUP_FORMAT_2, (LEN - 5) as u8, TPGS, MULTIP, CMDQUE]);
}

/// The answer to INQUIRY for a LUN that is not mapped: GOOD with peripheral qualifier 011b, also for VPD page 00h, which
/// lists nothing but itself.
///
/// # Errors
/// INVALID FIELD IN CDB for every other VPD page.
pub fn absent(vpd_page: Option<u8>, allocation_length: u16, out: &mut [u8]) -> Result<Reply, Sense> {
    let mut w = ReplyWriter::new(out, u32::from(allocation_length));
    match vpd_page {
        None => {
            header(&mut w, NOT_CAPABLE);
            w.put_text(VENDOR, 8);
            w.put_text("", 16 + 4);
            w.put_zeroes(LEN.saturating_sub(w.len()));
        }
        Some(0x00) => w.put(&[NOT_CAPABLE, 0x00, 0, 1, 0x00]),
        Some(_) => return Err(Sense::illegal_field_cdb(2, None)),
    }
    Ok(w.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::tests::unit;
    use crate::reply::full_reply;

    #[test]
    fn standard_data_says_what_is_supported() {
        let identity = unit().identity;
        let data = full_reply(|len, out| standard(&identity, len.min(0xffff) as u16, out));
        assert_eq!(data.len(), 96);
        assert_eq!(data[..8], [0x00, 0x00, 0x06, 0x32, 91, 0x38, 0x10, 0x02]);
        assert_eq!(&data[8..36], b"HOLDFASTVOLUME          0001");
        assert!(data[36..58].iter().all(|b| *b == 0));
        assert_eq!(data[58..70], [0x00, 0xa0, 0x04, 0x60, 0x05, 0xc0, 0x04, 0xc0, 0x06, 0x00, 0x09, 0x60]);
        assert!(data[70..].iter().all(|b| *b == 0));
    }

    #[test]
    fn absent_unit_is_not_capable_of_being_there() {
        let data = full_reply(|len, out| absent(None, len.min(0xffff) as u16, out).unwrap());
        assert_eq!((data[0], data.len()), (0x7f, 96));
        let pages = full_reply(|len, out| absent(Some(0), len.min(0xffff) as u16, out).unwrap());
        assert_eq!(pages, [0x7f, 0, 0, 1, 0]);
        assert_eq!(absent(Some(0x83), 255, &mut []), Err(Sense::illegal_field_cdb(2, None)));
    }
}
