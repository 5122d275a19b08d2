//! The few PDUs that a load needs, as bytes (RFC 7143 11).

/// Bytes of a header.
pub(super) const HEADER_LEN: usize = 48;
/// No tag.
pub(super) const TAG_NONE: u32 = 0xffff_ffff;

/// Opcodes of the target's PDUs.
pub(super) mod opcode {
    pub(in super::super) const NOP_IN: u8 = 0x20;
    pub(in super::super) const SCSI_RESPONSE: u8 = 0x21;
    pub(in super::super) const LOGIN_RESPONSE: u8 = 0x23;
    pub(in super::super) const DATA_IN: u8 = 0x25;
    pub(in super::super) const R2T: u8 = 0x31;
}

/// A header.
#[derive(Clone, Copy)]
pub(super) struct Header(pub(super) [u8; HEADER_LEN]);

impl Header {
    pub(super) fn new(opcode: u8, flags: u8) -> Header {
        let mut bytes = [0; HEADER_LEN];
        (bytes[0], bytes[1]) = (opcode, flags);
        Header(bytes)
    }

    pub(super) fn opcode(&self) -> u8 {
        self.0[0] & 0x3f
    }

    pub(super) fn data_len(&self) -> usize {
        usize::from(self.0[5]) << 16 | usize::from(self.0[6]) << 8 | usize::from(self.0[7])
    }

    pub(super) fn set_data_len(&mut self, len: usize) {
        let [.., a, b, c] = (len as u32).to_be_bytes();
        (self.0[5], self.0[6], self.0[7]) = (a, b, c);
    }

    pub(super) fn word(&self, at: usize) -> u32 {
        self.0[at..].first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
    }

    pub(super) fn set_word(&mut self, at: usize, value: u32) {
        self.0[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }
}

/// READ(16) or WRITE(16).
pub(super) fn cdb(write: bool, lba: u64, blocks: u32) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = if write { 0x8a } else { 0x88 };
    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
    cdb[10..14].copy_from_slice(&blocks.to_be_bytes());
    cdb
}
