//! TransportID (SPC-5 7.6.4): the name of an initiator port on the wire and in persistent reservations.
//!
//! Invariants: a [`TransportId`] is one valid TransportID in canonical form (reserved bytes zero, iSCSI names in lower
//! case, ISID in lower-case digits, shortest padding), held inline, so that equal ports have equal bytes. A node that
//! spells a host's name in capitals still finds its registration.

use core::fmt;
use core::hash::{Hash, Hasher};

/// Longest iSCSI name, in bytes (RFC 7143 4.2.7.1).
pub const ISCSI_NAME_LEN_MAX: usize = 223;
/// Longest TransportID, in bytes: header, name, `,i,0x`, 12 digits, NUL, padded to four bytes.
pub const TRANSPORT_ID_LEN_MAX: usize = 248;
/// Every TransportID has at least this many bytes.
pub const TRANSPORT_ID_LEN_MIN: usize = 24;

const PROTOCOL_FIBRE_CHANNEL: u8 = 0x0;
const PROTOCOL_SRP: u8 = 0x4;
const PROTOCOL_ISCSI: u8 = 0x5;
const PROTOCOL_SAS: u8 = 0x6;
/// TPID FORMAT 01b: the name names an initiator *port* (name and ISID), not a whole iSCSI node.
const ISCSI_PORT_FORMAT: u8 = 0x40;
const ISID_SEPARATOR: &[u8] = b",i,0x";
const HEX: &[u8; 16] = b"0123456789abcdef";

/// Why bytes or a name make no TransportID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportIdError {
    /// Fewer bytes than the TransportID says it has.
    Truncated,
    /// A length field that the standard does not allow.
    Length,
    /// A protocol or format that no port of ours speaks, or one that names no initiator port.
    Unsupported,
    /// A name with characters no iSCSI name has, too long, or empty.
    Name,
    /// The ISID is not 12 hexadecimal digits behind `,i,0x`.
    Isid,
}

/// An initiator port. See the module's invariants.
#[derive(Clone, Copy)]
pub struct TransportId {
    len: u8,
    bytes: [u8; TRANSPORT_ID_LEN_MAX],
}

impl TransportId {
    /// The iSCSI initiator port of `name` with `isid` (TPID FORMAT 01b).
    pub fn iscsi(name: &str, isid: [u8; 6]) -> Result<TransportId, TransportIdError> {
        let mut builder = Builder::new(ISCSI_PORT_FORMAT | PROTOCOL_ISCSI);
        builder.iscsi_name(name.as_bytes())?;
        builder.push_all(ISID_SEPARATOR)?;
        for byte in isid {
            builder.push_hex(byte)?;
        }
        builder.finish_iscsi()
    }

    /// The Fibre Channel initiator port with this N_Port name (WWPN).
    pub fn fibre_channel(n_port_name: [u8; 8]) -> TransportId {
        Self::fixed(PROTOCOL_FIBRE_CHANNEL, 8, &n_port_name)
    }

    /// The SRP initiator port with this identifier (RDMA, InfiniBand).
    pub fn srp(identifier: [u8; 16]) -> TransportId {
        Self::fixed(PROTOCOL_SRP, 8, &identifier)
    }

    /// The SAS initiator port with this address.
    pub fn sas(address: [u8; 8]) -> TransportId {
        Self::fixed(PROTOCOL_SAS, 4, &address)
    }

    /// Reads one TransportID from the front of `bytes`; also says how many bytes it took.
    ///
    /// An iSCSI TransportID of format 00b (a node without an ISID) names no single initiator port and is refused as
    /// unsupported, as are protocols that no front end speaks.
    pub fn parse(bytes: &[u8]) -> Result<(TransportId, usize), TransportIdError> {
        let first = *bytes.first().ok_or(TransportIdError::Truncated)?;
        let (format, protocol) = (first & 0xc0, first & 0x0f);
        if protocol == PROTOCOL_ISCSI {
            return Self::parse_iscsi(bytes, format);
        }
        let fixed = bytes.get(..TRANSPORT_ID_LEN_MIN).ok_or(TransportIdError::Truncated)?;
        let id = match (format, protocol) {
            (0, PROTOCOL_FIBRE_CHANNEL) => Self::fibre_channel(array(fixed, 8)?),
            (0, PROTOCOL_SRP) => Self::srp(array(fixed, 8)?),
            (0, PROTOCOL_SAS) => Self::sas(array(fixed, 4)?),
            _ => return Err(TransportIdError::Unsupported),
        };
        Ok((id, TRANSPORT_ID_LEN_MIN))
    }

    /// The canonical bytes, as PERSISTENT RESERVE IN READ FULL STATUS reports them.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or(&self.bytes)
    }

    /// iSCSI name in lower case; `None` for another protocol.
    pub fn iscsi_name(&self) -> Option<&str> {
        let text = self.iscsi_text()?;
        text.get(..text.find(',')?)
    }

    /// ISID; `None` for another protocol.
    pub fn isid(&self) -> Option<[u8; 6]> {
        let text = self.iscsi_text()?;
        parse_isid(text.as_bytes().get(text.find(',')?..)?).ok()
    }

    fn iscsi_text(&self) -> Option<&str> {
        let bytes = self.as_bytes();
        if bytes.first()? & 0x0f != PROTOCOL_ISCSI {
            return None;
        }
        let text = bytes.get(4..)?;
        let end = text.iter().position(|b| *b == 0)?;
        core::str::from_utf8(text.get(..end)?).ok()
    }

    fn parse_iscsi(bytes: &[u8], format: u8) -> Result<(TransportId, usize), TransportIdError> {
        let additional = usize::from(u16::from_be_bytes(array(bytes, 2)?));
        if additional < TRANSPORT_ID_LEN_MIN - 4 || !additional.is_multiple_of(4) {
            return Err(TransportIdError::Length);
        }
        let total = additional.saturating_add(4);
        let text = bytes.get(4..total).ok_or(TransportIdError::Truncated)?;
        if format != ISCSI_PORT_FORMAT {
            return Err(TransportIdError::Unsupported);
        }
        let end = text.iter().position(|b| *b == 0).ok_or(TransportIdError::Name)?;
        let text = text.get(..end).ok_or(TransportIdError::Name)?;
        let comma = text.iter().position(|b| *b == b',').ok_or(TransportIdError::Isid)?;
        let (name, rest) = text.split_at_checked(comma).ok_or(TransportIdError::Isid)?;
        let isid = parse_isid(rest)?;
        let name = core::str::from_utf8(name).map_err(|_| TransportIdError::Name)?;
        Ok((Self::iscsi(name, isid)?, total))
    }

    fn fixed(protocol: u8, at: usize, id: &[u8]) -> TransportId {
        let mut bytes = [0; TRANSPORT_ID_LEN_MAX];
        if let Some(first) = bytes.first_mut() {
            *first = protocol;
        }
        for (to, from) in bytes.iter_mut().skip(at).zip(id) {
            *to = *from;
        }
        TransportId { len: TRANSPORT_ID_LEN_MIN as u8, bytes }
    }
}

/// `,i,0x` and 12 hexadecimal digits of either case.
fn parse_isid(rest: &[u8]) -> Result<[u8; 6], TransportIdError> {
    let (separator, digits) = rest.split_at_checked(ISID_SEPARATOR.len()).ok_or(TransportIdError::Isid)?;
    if !separator.eq_ignore_ascii_case(ISID_SEPARATOR) || digits.len() != 12 {
        return Err(TransportIdError::Isid);
    }
    let mut isid = [0; 6];
    for (byte, pair) in isid.iter_mut().zip(digits.chunks_exact(2)) {
        for digit in pair {
            let value = char::from(*digit).to_digit(16).ok_or(TransportIdError::Isid)?;
            *byte = (*byte << 4) | value as u8;
        }
    }
    Ok(isid)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], TransportIdError> {
    bytes.get(at..).and_then(|b| b.first_chunk::<N>()).copied().ok_or(TransportIdError::Truncated)
}

/// Fills an iSCSI TransportID; the bound of the name keeps it within the buffer, and every push checks it again.
struct Builder {
    len: usize,
    bytes: [u8; TRANSPORT_ID_LEN_MAX],
}

impl Builder {
    fn new(first: u8) -> Builder {
        let mut bytes = [0; TRANSPORT_ID_LEN_MAX];
        if let Some(b) = bytes.first_mut() {
            *b = first;
        }
        Builder { len: 4, bytes }
    }

    fn push(&mut self, byte: u8) -> Result<(), TransportIdError> {
        *self.bytes.get_mut(self.len).ok_or(TransportIdError::Name)? = byte;
        self.len = self.len.saturating_add(1);
        Ok(())
    }

    fn push_all(&mut self, bytes: &[u8]) -> Result<(), TransportIdError> {
        bytes.iter().try_for_each(|b| self.push(*b))
    }

    fn push_hex(&mut self, byte: u8) -> Result<(), TransportIdError> {
        for nibble in [byte >> 4, byte & 0x0f] {
            self.push(*HEX.get(usize::from(nibble)).ok_or(TransportIdError::Isid)?)?;
        }
        Ok(())
    }

    fn iscsi_name(&mut self, name: &[u8]) -> Result<(), TransportIdError> {
        // A comma would let one name imitate another name's ISID; the rest no stringprep'd name contains.
        let bad = |b: &u8| *b <= b' ' || *b == b',' || *b == 0x7f;
        if name.is_empty() || name.len() > ISCSI_NAME_LEN_MAX || name.iter().any(bad) {
            return Err(TransportIdError::Name);
        }
        name.iter().try_for_each(|b| self.push(b.to_ascii_lowercase()))
    }

    fn finish_iscsi(mut self) -> Result<TransportId, TransportIdError> {
        self.push(0)?;
        while self.len < TRANSPORT_ID_LEN_MIN || !self.len.is_multiple_of(4) {
            self.push(0)?;
        }
        let len = u8::try_from(self.len).map_err(|_| TransportIdError::Length)?;
        if let Some(field) = self.bytes.get_mut(3) {
            *field = len.saturating_sub(4);
        }
        Ok(TransportId { len, bytes: self.bytes })
    }
}

impl PartialEq for TransportId {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for TransportId {}

impl PartialOrd for TransportId {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for TransportId {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

impl Hash for TransportId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl fmt::Display for TransportId {
    /// `iqn.1993-08.org.debian:01:abc,i,0x00023d000001`, `fc:10000090fa000001`, `srp:...`, `sas:...`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(text) = self.iscsi_text() {
            return f.write_str(text);
        }
        let bytes = self.as_bytes();
        let (name, range) = match bytes.first().map_or(0, |b| b & 0x0f) {
            PROTOCOL_FIBRE_CHANNEL => ("fc", 8..16),
            PROTOCOL_SRP => ("srp", 8..24),
            _ => ("sas", 4..12),
        };
        write!(f, "{name}:")?;
        bytes.get(range).unwrap_or_default().iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for TransportId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{string::String, string::ToString, vec, vec::Vec};

    const ISID: [u8; 6] = [0x00, 0x02, 0x3d, 0x00, 0x00, 0x01];

    #[test]
    fn iscsi_port_has_the_bytes_of_spc() {
        let id = TransportId::iscsi("iqn.2026-01.x:a", ISID).unwrap();
        let mut expected = vec![0x45, 0, 0, 36];
        expected.extend_from_slice(b"iqn.2026-01.x:a,i,0x00023d000001\0\0\0\0");
        assert_eq!(id.as_bytes(), expected);
        assert_eq!(id.iscsi_name(), Some("iqn.2026-01.x:a"));
        assert_eq!(id.isid(), Some(ISID));
        assert_eq!(id.to_string(), "iqn.2026-01.x:a,i,0x00023d000001");
    }

    #[test]
    fn iscsi_names_compare_without_case() {
        assert_eq!(TransportId::iscsi("IQN.2026-01.X:A", ISID), TransportId::iscsi("iqn.2026-01.x:a", ISID));
        let mut wire: Vec<u8> = vec![0x45, 0, 0, 40];
        wire.extend_from_slice(b"IQN.2026-01.x:A,I,0X00023D000001\0\0\0\0\0\0\0\0");
        let (parsed, taken) = TransportId::parse(&wire).unwrap();
        assert_eq!((parsed, taken), (TransportId::iscsi("iqn.2026-01.x:a", ISID).unwrap(), 44));
    }

    #[test]
    fn longest_name_fits_and_longer_is_refused() {
        let longest: String = "n".repeat(ISCSI_NAME_LEN_MAX);
        let id = TransportId::iscsi(&longest, ISID).unwrap();
        assert_eq!(id.as_bytes().len(), TRANSPORT_ID_LEN_MAX);
        assert_eq!(TransportId::parse(id.as_bytes()).unwrap(), (id, TRANSPORT_ID_LEN_MAX));
        assert_eq!(TransportId::iscsi(&"n".repeat(224), ISID), Err(TransportIdError::Name));
    }

    #[test]
    fn names_that_could_imitate_others_are_refused() {
        for name in ["", "a,i,0x000000000000", "a b", "a\0b", "a\u{7f}"] {
            assert_eq!(TransportId::iscsi(name, ISID), Err(TransportIdError::Name), "{name:?}");
        }
    }

    #[test]
    fn fixed_formats_read_back() {
        for id in [TransportId::fibre_channel([1; 8]), TransportId::srp([2; 16]), TransportId::sas([3; 8])] {
            assert_eq!(TransportId::parse(id.as_bytes()).unwrap(), (id, 24));
        }
        assert_eq!(TransportId::fibre_channel([0x10; 8]).to_string(), "fc:1010101010101010");
    }

    #[test]
    fn what_names_no_port_is_refused() {
        assert_eq!(TransportId::parse(&[]), Err(TransportIdError::Truncated));
        assert_eq!(TransportId::parse(&[0x04; 23]), Err(TransportIdError::Truncated));
        assert_eq!(TransportId::parse(&[0x0a; 24]), Err(TransportIdError::Unsupported));
        let mut node = vec![0x05, 0, 0, 20];
        node.extend_from_slice(b"iqn.2026-01.x:a\0\0\0\0\0");
        assert_eq!(TransportId::parse(&node), Err(TransportIdError::Unsupported));
        let mut odd = node.clone();
        odd[3] = 19;
        assert_eq!(TransportId::parse(&odd), Err(TransportIdError::Length));
        let mut no_isid = node;
        no_isid[0] = 0x45;
        assert_eq!(TransportId::parse(&no_isid), Err(TransportIdError::Isid));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_parse_or_fail_and_what_parses_is_canonical(bytes in proptest::collection::vec(0u8.., 0..300)) {
            if let Ok((id, taken)) = TransportId::parse(&bytes) {
                assert!(taken <= bytes.len());
                assert_eq!(TransportId::parse(id.as_bytes()).map(|p| p.0), Ok(id));
            }
        }
    }
}
