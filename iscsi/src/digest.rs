//! CRC32C (Castagnoli), the one digest of RFC 7143 13.1, in portable form.
//!
//! Shells that have a hardware version pass theirs in [`crate::PortalOptions::crc32c`]; both must agree bit for bit.

/// Reflected polynomial 1EDC6F41h.
const POLYNOMIAL: u32 = 0x82f6_3b78;

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        let mut crc = n as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        table[n] = crc;
        n += 1;
    }
    table
};

/// Continues a CRC32C: `crc` is the value so far (0 at the start), the result the value after `bytes`.
#[must_use]
pub fn crc32c(crc: u32, bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!crc, |crc, &byte| TABLE[usize::from(crc as u8 ^ byte)] ^ (crc >> 8))
}

/// A digest as it stands on the wire: least significant byte first (RFC 7143 13.1 and its examples in A.4).
#[must_use]
pub fn to_wire(crc: u32) -> [u8; 4] {
    crc.to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7143 appendix A.4 (as bytes on the wire).
    #[test]
    fn examples_of_the_standard() {
        let ascending: [u8; 32] = core::array::from_fn(|n| n as u8);
        let descending: [u8; 32] = core::array::from_fn(|n| 31 - n as u8);
        assert_eq!(to_wire(crc32c(0, &[0; 32])), [0xaa, 0x36, 0x91, 0x8a]);
        assert_eq!(to_wire(crc32c(0, &[0xff; 32])), [0x43, 0xab, 0xa8, 0x62]);
        assert_eq!(to_wire(crc32c(0, &ascending)), [0x4e, 0x79, 0xdd, 0x46]);
        assert_eq!(to_wire(crc32c(0, &descending)), [0x5c, 0xdb, 0x3f, 0x11]);
    }

    #[test]
    fn pieces_give_the_same_as_the_whole() {
        let bytes = b"any split of the stream";
        for at in 0..bytes.len() {
            let (a, b) = bytes.split_at(at);
            assert_eq!(crc32c(crc32c(0, a), b), crc32c(0, bytes));
        }
    }
}
