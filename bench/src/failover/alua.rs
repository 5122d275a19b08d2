//! What a multipath host reads of its paths: its own port group (SPC-5 7.7.6), the states of all groups (SPC-5 6.35), sense codes
//! (SPC-5 4.5). Read from the standard, by code that shares nothing with the target's.

use anyhow::{Context as _, bail};

use super::session::SenseCode;

/// Bytes asked for.
pub(super) const LEN: u32 = 1024;
/// TEST UNIT READY.
pub(super) const TEST_UNIT_READY: [u8; 6] = [0; 6];

/// REPORT TARGET PORT GROUPS.
pub(super) fn report_target_port_groups() -> [u8; 12] {
    let [.., high, low] = LEN.to_be_bytes();
    [0xa3, 0x0a, 0, 0, 0, 0, 0, 0, high, low, 0, 0]
}

/// INQUIRY of the device identification page.
pub(super) fn device_identification() -> [u8; 6] {
    let [.., high, low] = LEN.to_be_bytes();
    [0x12, 0x01, 0x83, high, low, 0]
}

/// WRITE(10) or READ(10).
pub(super) fn block_command(write: bool, lba: u32, blocks: u16) -> [u8; 10] {
    let mut cdb = [if write { 0x2a } else { 0x28 }, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    cdb[2..6].copy_from_slice(&lba.to_be_bytes());
    cdb[7..9].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

/// What a path is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Access {
    /// Active/optimized.
    Optimized,
    /// Active/non-optimized.
    NonOptimized,
    /// The owner is changing: worth asking again.
    Transitioning,
    /// Standby, unavailable, offline.
    Unusable,
}

/// The groups of REPORT TARGET PORT GROUPS with their states, in the format without an extended header.
pub(super) fn groups(data: &[u8]) -> anyhow::Result<Vec<(u16, Access)>> {
    let (length, mut rest) = data.split_first_chunk().context("no header")?;
    rest = rest.get(..u32::from_be_bytes(*length) as usize).context("cut short")?;
    let mut groups = Vec::new();
    while let Some((head, tail)) = rest.split_first_chunk::<8>() {
        let access = match head[0] & 0x0f {
            0x0 => Access::Optimized,
            0x1 => Access::NonOptimized,
            0xf => Access::Transitioning,
            _ => Access::Unusable,
        };
        groups.push((u16::from_be_bytes([head[2], head[3]]), access));
        rest = tail.get(4 * usize::from(head[7])..).context("ports cut short")?;
    }
    Ok(groups)
}

/// The target port group of the path that this page came by.
pub(super) fn own_group(page: &[u8]) -> anyhow::Result<u16> {
    let mut rest = page.get(4..).context("no header")?;
    while let Some((head, tail)) = rest.split_first_chunk::<4>() {
        let (designator, next) =
            tail.split_at_checked(usize::from(head[3])).context("a designator cut short")?;
        // Association: target port; type: target port group.
        if head[1] & 0x3f == 0x15 {
            let [_, _, high, low] = *designator else { bail!("a port group of {} bytes", designator.len()) };
            return Ok(u16::from_be_bytes([high, low]));
        }
        rest = next;
    }
    bail!("no target port group")
}

/// The sense code of a SCSI Response's data segment; zeroes when there is none.
pub(super) fn sense(segment: &[u8]) -> SenseCode {
    let Some(sense) = segment.get(2..) else { return (0, 0, 0) };
    let byte = |at: usize| sense.get(at).copied().unwrap_or(0);
    match byte(0) & 0x7f {
        0x70 | 0x71 => (byte(2) & 0x0f, byte(12), byte(13)),
        0x72 | 0x73 => (byte(1) & 0x0f, byte(2), byte(3)),
        _ => (0, 0, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_with_their_ports_are_read() {
        let data =
            [0, 0, 0, 24, 0x80, 0x8f, 0, 1, 0, 0, 0, 1, 0, 0, 0, 7, 0x0f, 0x8f, 0, 2, 0, 0, 0, 1, 0, 0, 0, 8];
        assert_eq!(groups(&data).unwrap(), [(1, Access::Optimized), (2, Access::Transitioning)]);
        assert!(groups(&data[..20]).is_err());
    }

    #[test]
    fn own_group_is_found_behind_other_designators() {
        let page = [0, 0x83, 0, 20, 1, 0x03, 0, 4, 9, 9, 9, 9, 0x51, 0x95, 0, 4, 0, 0, 0, 2];
        assert_eq!(own_group(&page).unwrap(), 2);
        assert!(own_group(&page[..12]).is_err());
    }

    #[test]
    fn sense_is_read_in_both_formats() {
        let mut fixed = [0; 20];
        fixed[2..5].copy_from_slice(&[0x70, 0, 0x06]);
        (fixed[14], fixed[15]) = (0x2a, 0x06);
        assert_eq!(sense(&fixed), (6, 0x2a, 0x06));
        assert_eq!(sense(&[0, 8, 0x72, 2, 4, 0x0c, 0, 0, 0, 0]), (2, 4, 0x0c));
        assert_eq!(sense(&[]), (0, 0, 0));
    }
}
