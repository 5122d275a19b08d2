//! Additional header segments (RFC 7143 11.2.2): extended CDB and bidirectional read length.
//!
//! Invariant: a parsed set holds each kind at most once and an extended CDB within [`limits::CDB_LEN_MAX`].

use super::InvalidField;
use crate::limits;
use alloc::vec::Vec;

const EXTENDED_CDB: u8 = 1;
const BIDIRECTIONAL_READ_LENGTH: u8 = 2;

/// What the additional header segments of a SCSI Command say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdditionalHeaders {
    /// The CDB beyond its first 16 bytes; empty if it has no more.
    pub extended_cdb: Vec<u8>,
    /// Expected Bidirectional Read Data Transfer Length in bytes.
    pub bidirectional_read_len: Option<u32>,
}

impl AdditionalHeaders {
    /// Parses all segments.
    ///
    /// # Errors
    /// A segment that is cut short, unknown, there twice, or of a wrong length: a format error.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, InvalidField> {
        let mut found = Self::default();
        // AHSLength counts the bytes after the first three: kind-specific byte 3 included, padding not.
        while let [high, low, kind, rest @ ..] = bytes {
            let len = usize::from(u16::from_be_bytes([*high, *low]));
            let content = rest.get(..len).ok_or(InvalidField("AHSLength"))?;
            match (*kind & 0x3f, content) {
                (EXTENDED_CDB, [_reserved, cdb @ ..])
                    if found.extended_cdb.is_empty()
                        && !cdb.is_empty()
                        && cdb.len() <= limits::CDB_LEN_MAX - 16 =>
                {
                    found.extended_cdb = cdb.to_vec();
                }
                (BIDIRECTIONAL_READ_LENGTH, &[_reserved, a, b, c, d])
                    if found.bidirectional_read_len.is_none() =>
                {
                    found.bidirectional_read_len = Some(u32::from_be_bytes([a, b, c, d]));
                }
                _ => return Err(InvalidField("AHSType")),
            }
            let padded = (3 + len).next_multiple_of(4) - 3;
            bytes = rest.get(padded..).ok_or(InvalidField("AHSLength"))?;
        }
        if bytes.is_empty() { Ok(found) } else { Err(InvalidField("TotalAHSLength")) }
    }

    /// The segments with their padding.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut push = |kind: u8, content: &[u8]| {
            bytes.extend_from_slice(&((content.len() + 1) as u16).to_be_bytes());
            bytes.extend_from_slice(&[kind, 0]);
            bytes.extend_from_slice(content);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        };
        if !self.extended_cdb.is_empty() {
            push(EXTENDED_CDB, &self.extended_cdb);
        }
        if let Some(len) = self.bidirectional_read_len {
            push(BIDIRECTIONAL_READ_LENGTH, &len.to_be_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn both_kinds_round_trip() {
        for len in [0, 1, 4, 16, 243, 244] {
            let headers =
                AdditionalHeaders { extended_cdb: vec![7; len], bidirectional_read_len: Some(len as u32) };
            let bytes = headers.encode();
            assert!(bytes.len() <= limits::AHS_LEN_MAX && bytes.len().is_multiple_of(4));
            assert_eq!(AdditionalHeaders::decode(&bytes), Ok(headers));
        }
    }

    #[test]
    fn malformed_segments_are_refused() {
        let bad: &[&[u8]] = &[
            &[0],
            &[0, 5, 2],
            &[0, 5, 2, 0, 0, 0, 0],                            // cut short
            &[0, 4, 2, 0, 0, 0, 0, 0],                         // wrong length
            &[0, 1, 1, 0],                                     // empty CDB
            &[0, 5, 9, 0, 0, 0, 0, 0],                         // unknown
            &[0xff, 0xff, 1, 0],                               // length beyond the end
            &[0, 5, 2, 0, 0, 0, 0, 1, 0, 5, 2, 0, 0, 0, 0, 1], // twice
            &[0, 0, 0, 0],                                     // no kind
        ];
        for bytes in bad {
            assert!(AdditionalHeaders::decode(bytes).is_err(), "{bytes:?}");
        }
        let too_long = AdditionalHeaders { extended_cdb: vec![0; 245], bidirectional_read_len: None };
        assert!(AdditionalHeaders::decode(&too_long.encode()).is_err());
    }
}
