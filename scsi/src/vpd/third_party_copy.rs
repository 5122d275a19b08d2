//! The third-party copy page, 8Fh (SPC-5 7.7.18): what copies there are and what bounds them.
//!
//! Invariant: what it says is what `copy` accepts, because both read the same constants and the same table of commands.

use crate::copy::{
    ACCESS_UPON_REFERENCE, BLOCK_TO_BLOCK, BLOCK_TO_BLOCK_OFFSET, CHANGE_VULNERABLE, IDENTIFICATION,
    OWN_UNIT, ZERO,
};
use crate::identity::{LuProperties, PortContext};
use crate::limits;
use crate::opcode;
use crate::reply::ReplyWriter;

/// The operation codes of third-party copy.
const OPERATION_CODES: [u8; 2] = [0x83, 0x84];
/// TOKEN_OUT: tokens of this type are made here. TOKEN_IN: they are taken here.
const TOKEN_OUT: u8 = 0x01;
const TOKEN_IN: u8 = 0x02;

/// Appends all descriptors.
pub(super) fn all(w: &mut ReplyWriter<'_>, unit: &LuProperties, _: &PortContext<'_>) {
    let block_size = u64::from(unit.geometry.block_size());
    let blocks = |bytes: u64| bytes.checked_div(block_size).unwrap_or(0);
    // Block device ROD token limits.
    descriptor(w, 0x0000, |w| {
        w.put_zeroes(6);
        w.put_u16(limits::TOKEN_RANGES_MAX);
        w.put_u32(limits::TOKEN_INACTIVITY_S_MAX);
        w.put_u32(limits::TOKEN_INACTIVITY_S_DEFAULT);
        w.put_u64(blocks(limits::TOKEN_TRANSFER_BYTES_MAX));
        w.put_u64(blocks(limits::TOKEN_TRANSFER_BYTES_MAX));
    });
    // Supported commands.
    descriptor(w, 0x0001, |w| {
        let rows = |code: u8| opcode::rows(code).len();
        let len: usize = OPERATION_CODES.iter().map(|code| 2usize.saturating_add(rows(*code))).sum();
        w.put_u8(u8::try_from(len).unwrap_or(u8::MAX));
        for code in OPERATION_CODES {
            w.put(&[code, u8::try_from(rows(code)).unwrap_or(u8::MAX)]);
            for row in opcode::rows(code) {
                w.put_u8(row.service_action.and_then(|action| u8::try_from(action).ok()).unwrap_or(0));
            }
        }
    });
    // Parameter data.
    descriptor(w, 0x0004, |w| {
        w.put_zeroes(4);
        w.put_u16(limits::COPY_CSCDS_MAX);
        w.put_u16(limits::COPY_SEGMENTS_MAX);
        w.put_u32(limits::COPY_DESCRIPTORS_LEN_MAX);
        w.put_u32(0); // no inline data
        w.put_zeroes(12);
    });
    // Supported descriptors.
    descriptor(w, 0x0008, |w| w.put(&[3, BLOCK_TO_BLOCK, BLOCK_TO_BLOCK_OFFSET, IDENTIFICATION]));
    // Supported CSCD descriptor IDs beyond the indices of the list.
    descriptor(w, 0x000c, |w| {
        w.put_u16(2);
        w.put_u16(OWN_UNIT);
    });
    // ROD token features: no remote tokens, no lifetime but the inactivity timeout.
    descriptor(w, 0x0106, |w| {
        w.put_zeroes(12);
        w.put_u32(0);
        w.put_u32(0);
        w.put_u32(limits::TOKEN_INACTIVITY_S_MAX);
        w.put_zeroes(18);
        w.put_u16(48);
        w.put(&[0x00, 0, 0, 44, 0, 0]);
        w.put_u16(1);
        w.put_u64(limits::TOKEN_TRANSFER_BYTES_MAX);
        w.put_u64(limits::TOKEN_TRANSFER_BYTES_MAX);
        w.put_u64(limits::TOKEN_TRANSFER_BYTES_MAX);
        w.put_u64(limits::TOKEN_TRANSFER_BYTES_MAX);
        w.put_zeroes(8);
    });
    // Supported ROD token and ROD types.
    descriptor(w, 0x0108, |w| {
        let types = [
            (CHANGE_VULNERABLE, TOKEN_IN | TOKEN_OUT),
            (ACCESS_UPON_REFERENCE, TOKEN_IN | TOKEN_OUT),
            (ZERO, TOKEN_IN),
        ];
        w.put_zeroes(2);
        w.put_u16(64 * 3);
        for (kind, flags) in types {
            w.put_u32(kind);
            w.put(&[flags, 0, 0, 0]);
            w.put_zeroes(56);
        }
    });
    // General copy operations.
    descriptor(w, 0x8001, |w| {
        w.put_u32(u32::from(limits::COPIES_MAX));
        w.put_u32(u32::from(limits::COPIES_MAX));
        w.put_u32(limits::COPY_SEGMENT_BYTES_MAX);
        w.put(&[GRANULARITY, 0]);
        w.put_zeroes(18);
    });
}

/// DATA SEGMENT GRANULARITY, as a power of two of bytes: the smallest block.
pub(crate) const GRANULARITY: u8 = 9;

/// A descriptor, filled up to a multiple of four bytes.
fn descriptor(w: &mut ReplyWriter<'_>, kind: u16, body: impl Fn(&mut ReplyWriter<'_>)) {
    let start = w.len();
    w.put_u16(kind);
    w.put_u16(0);
    body(w);
    w.put_zeroes(w.len().saturating_sub(start).wrapping_neg() & 3);
    w.patch_len16(start.saturating_add(2), start.saturating_add(4));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::tests::unit;
    use crate::nexus::RelativePort;
    use crate::reply::full_reply;
    use std::vec::Vec;

    #[test]
    fn descriptors_are_aligned_and_name_the_commands_that_work() {
        let port =
            PortContext { relative_port: RelativePort(1), target_port_group: 1, target_name: "iqn.x:y" };
        let page = full_reply(|len, out| {
            let mut w = ReplyWriter::new(out, len);
            all(&mut w, &unit(), &port);
            w.finish()
        });
        let mut rest = page.as_slice();
        let mut found = Vec::new();
        while let [a, b, c, d, tail @ ..] = rest {
            let len = usize::from(u16::from_be_bytes([*c, *d]));
            assert_eq!(len % 4, 0);
            let (body, next) = tail.split_at(len);
            found.push((u16::from_be_bytes([*a, *b]), body.to_vec()));
            rest = next;
        }
        assert!(rest.is_empty());
        let kinds: Vec<u16> = found.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [0, 1, 4, 8, 0xc, 0x106, 0x108, 0x8001]);
        let commands = &found[1].1;
        assert_eq!(commands[..8], [17, 0x83, 5, 0x00, 0x01, 0x10, 0x11, 0x1c]);
        assert_eq!(commands[8..18], [0x84, 8, 0x00, 0x01, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08]);
        assert_eq!(
            found.iter().map(|(_, body)| body.len()).collect::<Vec<_>>(),
            [32, 20, 28, 4, 4, 92, 196, 32]
        );
        assert_eq!(found[0].1[6..8], limits::TOKEN_RANGES_MAX.to_be_bytes());
    }
}
