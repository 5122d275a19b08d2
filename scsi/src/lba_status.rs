//! GET LBA STATUS (SBC-4 5.6).

use crate::geometry::Extent;
use crate::limits;
use crate::reply::{Reply, ReplyWriter};

/// PROVISIONING STATUS of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Provisioning {
    /// Mapped, or unknown.
    Mapped = 0,
    /// Deallocated: reads as zeroes.
    Deallocated = 1,
}

/// A range of blocks of one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LbaStatus {
    /// The blocks; never empty in a reply.
    pub extent: Extent,
    /// Their state.
    pub provisioning: Provisioning,
}

/// The states of successive ranges; the first has to contain the starting LBA of the command and to begin there. At most
/// [`limits::LBA_STATUS_DESCRIPTORS_MAX`] are used: a host asks again from where the list ends.
pub fn get_lba_status(
    statuses: impl IntoIterator<Item = LbaStatus>,
    allocation_length: u32,
    out: &mut [u8],
) -> Reply {
    let mut w = ReplyWriter::new(out, allocation_length);
    w.put_zeroes(8);
    for status in statuses.into_iter().take(limits::LBA_STATUS_DESCRIPTORS_MAX) {
        w.put_u64(status.extent.lba);
        w.put_u32(status.extent.blocks);
        w.put(&[status.provisioning as u8, 0, 0, 0]);
    }
    w.patch_len32(0, 4);
    w.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reply::full_reply;

    #[test]
    fn each_range_is_one_descriptor() {
        let ranges = [
            LbaStatus { extent: Extent { lba: 5, blocks: 3 }, provisioning: Provisioning::Mapped },
            LbaStatus { extent: Extent { lba: 8, blocks: 256 }, provisioning: Provisioning::Deallocated },
        ];
        let data = full_reply(|len, out| get_lba_status(ranges, len, out));
        assert_eq!(data[..8], [0, 0, 0, 36, 0, 0, 0, 0]);
        assert_eq!(data[8..24], [0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 3, 0, 0, 0, 0]);
        assert_eq!(data[24..], [0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 1, 0, 1, 0, 0, 0]);
    }

    #[test]
    fn list_is_bounded() {
        let one = LbaStatus { extent: Extent { lba: 0, blocks: 1 }, provisioning: Provisioning::Mapped };
        let mut out = [0; 16];
        let reply = get_lba_status(core::iter::repeat_n(one, 100_000), 16, &mut out);
        assert_eq!(reply, Reply { full: 8 + 16 * limits::LBA_STATUS_DESCRIPTORS_MAX, written: 16 });
    }
}
