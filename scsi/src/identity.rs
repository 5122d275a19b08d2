//! Who a logical unit is, and through which target port it is seen.
//!
//! Invariant: everything here is the cluster's truth, so the data made from it is byte-identical on every node.

use crate::geometry::Geometry;
use crate::nexus::RelativePort;

/// T10 VENDOR IDENTIFICATION, 8 bytes.
pub const VENDOR: &str = "HOLDFAST";
/// PRODUCT IDENTIFICATION, up to 16 bytes.
pub const PRODUCT: &str = "VOLUME";
/// Longest iSCSI name in bytes (RFC 7143 4.2.7.1).
pub const ISCSI_NAME_LEN_MAX: usize = 223;

/// What names a logical unit for as long as it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LuIdentity {
    /// The volume's UUID. Serial number and designators are made from it.
    pub volume_uuid: [u8; 16],
    /// PRODUCT REVISION LEVEL: four ASCII characters, the same on all nodes.
    pub revision: [u8; 4],
}

impl LuIdentity {
    /// The unit serial number: the UUID as 32 lower-case hexadecimal digits.
    pub fn serial(&self) -> [u8; 32] {
        let mut serial = [0; 32];
        for (digits, byte) in serial.chunks_exact_mut(2).zip(self.volume_uuid) {
            for (digit, nibble) in digits.iter_mut().zip([byte >> 4, byte & 0x0f]) {
                *digit = hex_digit(nibble);
            }
        }
        serial
    }

    /// NAA designator, format 3h (locally assigned): the last 60 bits of the UUID, which are all random in a version 4
    /// UUID.
    pub fn naa(&self) -> [u8; 8] {
        let [.., a, b, c, d, e, f, g, h] = self.volume_uuid;
        [0x30 | (a & 0x0f), b, c, d, e, f, g, h]
    }
}

/// The digit of a value 0..=15; higher bits are ignored.
pub(crate) const fn hex_digit(nibble: u8) -> u8 {
    match nibble & 0x0f {
        digit @ 0..=9 => b'0' + digit,
        letter => b'a' + (letter - 10),
    }
}

/// What the read-only commands say of a logical unit. Every unit is thin provisioned, reads zeroes where nothing was
/// written, and is not removable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LuProperties {
    /// Its names.
    pub identity: LuIdentity,
    /// Block size and capacity.
    pub geometry: Geometry,
    /// LOGICAL BLOCKS PER PHYSICAL BLOCK EXPONENT, 0..=15 (higher bits are ignored): 3 for 512-byte blocks on 4 KiB.
    pub physical_block_exponent: u8,
}

/// The target port through which a command came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortContext<'a> {
    /// Relative target port identifier.
    pub relative_port: RelativePort,
    /// Target port group; for iSCSI also the target portal group tag, hence part of the port's name.
    pub target_port_group: u16,
    /// iSCSI name of the target device, at most [`ISCSI_NAME_LEN_MAX`] bytes.
    pub target_name: &'a str,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const UUID: [u8; 16] =
        [0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0x4d, 0xef, 0x81, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef];

    pub(crate) fn unit() -> LuProperties {
        LuProperties {
            identity: LuIdentity { volume_uuid: UUID, revision: *b"0001" },
            geometry: Geometry::new(512, 2048).unwrap(),
            physical_block_exponent: 3,
        }
    }

    #[test]
    fn serial_and_naa_are_made_from_the_uuid() {
        let identity = unit().identity;
        assert_eq!(&identity.serial(), b"123456789abc4def8123456789abcdef");
        assert_eq!(identity.naa(), [0x31, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef]);
    }
}
