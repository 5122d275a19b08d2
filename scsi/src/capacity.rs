//! READ CAPACITY (10) and (16) (SBC-4 5.20 and 5.21).

use crate::geometry::Geometry;
use crate::identity::LuProperties;
use crate::reply::{Reply, ReplyWriter};

/// LBPME=1 and LBPRZ=1: thin provisioned, deallocated blocks read as zeroes.
const LBPME_LBPRZ: u8 = 0xc0;

/// READ CAPACITY (10): 8 bytes. A unit whose last LBA needs more than 32 bits returns FFFFFFFFh, which sends the host to
/// READ CAPACITY (16).
pub fn read_capacity10(geometry: &Geometry, out: &mut [u8]) -> Reply {
    let mut w = ReplyWriter::new(out, 8);
    w.put_u32(u32::try_from(geometry.last_lba()).unwrap_or(u32::MAX));
    w.put_u32(geometry.block_size());
    w.finish()
}

/// READ CAPACITY (16): 32 bytes.
pub fn read_capacity16(unit: &LuProperties, allocation_length: u32, out: &mut [u8]) -> Reply {
    let mut w = ReplyWriter::new(out, allocation_length);
    w.put_u64(unit.geometry.last_lba());
    w.put_u32(unit.geometry.block_size());
    w.put_u8(0);
    w.put_u8(unit.physical_block_exponent & 0x0f);
    w.put_u8(LBPME_LBPRZ);
    w.put_zeroes(32 - 15);
    w.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::tests::unit;
    use crate::reply::full_reply;

    #[test]
    fn short_form_gives_the_last_lba() {
        let mut out = [0; 8];
        assert_eq!(read_capacity10(&unit().geometry, &mut out), Reply { full: 8, written: 8 });
        assert_eq!(out, [0, 0, 7, 0xff, 0, 0, 2, 0]);
    }

    #[test]
    fn short_form_of_a_large_unit_points_to_the_long_form() {
        let mut out = [0; 8];
        read_capacity10(&Geometry::new(4096, (1 << 32) - 1).unwrap(), &mut out);
        assert_eq!(out[..4], [0xff, 0xff, 0xff, 0xfe]);
        for blocks in [1 << 32, (1 << 32) + 1, 1 << 40] {
            read_capacity10(&Geometry::new(4096, blocks).unwrap(), &mut out);
            assert_eq!(out[..4], [0xff; 4]);
        }
    }

    #[test]
    fn long_form_tells_of_thin_provisioning_and_physical_blocks() {
        let data = full_reply(|len, out| read_capacity16(&unit(), len, out));
        assert_eq!(data[..16], [0, 0, 0, 0, 0, 0, 7, 0xff, 0, 0, 2, 0, 0, 3, 0xc0, 0]);
        assert_eq!(data.len(), 32);
        assert!(data[16..].iter().all(|b| *b == 0));
    }
}
