//! Names of initiator ports as people give them to hosts, and to whom an initiator port that comes belongs.
//!
//! | Kind | Written as | Source |
//! |---|---|---|
//! | iSCSI | `iqn.YYYY-MM.REVERSED.DOMAIN[:NAME]`, `eui.` 16 digits, `naa.` 16 or 32 digits | RFC 7143 4.2.7, RFC 3980 |
//! | Fibre Channel | `fc:` 16 digits; also `wwpn.` or `wwpn:` 16 digits, or eight octets `50:01:...` | FC-FS N_Port_Name |
//! | SRP port | `srp:` 32 digits: extension and GUID | SRP 6.2 |
//! | SRP GUID | `srp-guid:` 16 digits; also four groups `0002:c903:000a:0b0c`: every port with this GUID, whatever its extension | |
//! | iSCSI wildcard | an `iqn.` name up to and beyond its authority, then `*` | |
//!
//! Invariants: a value of [`Initiator`] is in its normal form (lower case, one spelling), so that equal names are equal; what
//! belongs to whom is decided by [`InitiatorTable::find`] and nowhere else: the exact name before the GUID, and that before the
//! longest wildcard.

use alloc::{collections::BTreeMap, string::String};
use core::fmt;

use crate::transport_id::{ISCSI_NAME_LEN_MAX, TransportId};

/// Why a text names no initiator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameError {
    /// It begins like no kind of name.
    Kind,
    /// Longer than 223 bytes (RFC 7143 4.2.7.1).
    TooLong,
    /// `iqn.` without `YYYY-MM.` behind it, month 01 to 12.
    Date,
    /// `iqn.YYYY-MM.` without a naming authority.
    Authority,
    /// A character that such a name does not have.
    Character(char),
    /// Not as many hexadecimal digits as the kind has.
    Digits {
        /// How many it has.
        wanted: &'static str,
        /// How many were given.
        given: usize,
    },
    /// The first digit of a `naa.` name (its NAA field) does not go with its length.
    Naa,
    /// `*` elsewhere than at the end of an `iqn.` name, behind its authority.
    Wildcard,
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NameError::Kind => f.write_str(
                "is no initiator name: iqn.YYYY-MM.REVERSED.DOMAIN[:NAME], eui.16 digits, naa.16 or 32 digits, a WWPN (fc:16 digits), \
                 or an SRP port (srp:32 digits, srp-guid:16 digits)",
            ),
            NameError::TooLong => write!(f, "is longer than {ISCSI_NAME_LEN_MAX} bytes"),
            NameError::Date => f.write_str("has no date YYYY-MM. behind iqn. (month 01 to 12)"),
            NameError::Authority => f.write_str("has no naming authority (a reversed domain) behind its date"),
            NameError::Character(c) => {
                write!(f, "holds {c:?}; an iSCSI name has letters, digits, '-', '.' and ':' only")
            }
            NameError::Digits { wanted, given } => {
                write!(f, "has {given} hexadecimal digits; {wanted} are needed")
            }
            NameError::Naa => {
                f.write_str("has a first digit that does not go with its length (6: 32 digits; 2, 3 or 5: 16)")
            }
            NameError::Wildcard => f.write_str(
                "may have '*' only at its end, and only behind the authority of an iqn. name: iqn.YYYY-MM.DOMAIN:*",
            ),
        }
    }
}

impl core::error::Error for NameError {}

/// What a host is given: one initiator port, or a set of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Initiator {
    /// Every port of the iSCSI node of this name, in lower case.
    Iscsi(String),
    /// A Fibre Channel port, by its N_Port_Name (WWPN).
    FibreChannel([u8; 8]),
    /// An SRP port, by its whole identifier.
    Srp([u8; 16]),
    /// Every SRP port with this GUID.
    SrpGuid([u8; 8]),
    /// Every iSCSI node whose name begins so (without the `*`).
    IscsiPrefix(String),
}

impl Initiator {
    /// Reads a name in any of the spellings above.
    ///
    /// # Errors
    /// [`NameError`], to be put behind the name.
    pub fn parse(text: &str) -> Result<Initiator, NameError> {
        if text.len() > ISCSI_NAME_LEN_MAX {
            return Err(NameError::TooLong);
        }
        let name = text.to_ascii_lowercase();
        if let Some(prefix) = name.strip_suffix('*') {
            let rest = prefix.strip_prefix("iqn.").ok_or(NameError::Wildcard)?;
            check_iqn(rest)
                .map_err(|error| if error == NameError::Authority { NameError::Wildcard } else { error })?;
            return Ok(Initiator::IscsiPrefix(String::from(prefix)));
        }
        if let Some(rest) = name.strip_prefix("iqn.") {
            check_iqn(rest)?;
            return Ok(Initiator::Iscsi(name));
        }
        if let Some(rest) = name.strip_prefix("eui.") {
            digits::<8>(rest, "16")?;
            return Ok(Initiator::Iscsi(name));
        }
        if let Some(rest) = name.strip_prefix("naa.") {
            match rest.len() {
                32 => digits::<16>(rest, "32").map(|_| ())?,
                _ => digits::<8>(rest, "16 or 32").map(|_| ())?,
            }
            return match (rest.len(), rest.bytes().next()) {
                (32, Some(b'6')) | (16, Some(b'2' | b'3' | b'5')) => Ok(Initiator::Iscsi(name)),
                _ => Err(NameError::Naa),
            };
        }
        let after = |prefixes: &[&str]| prefixes.iter().find_map(|p| name.strip_prefix(p)).map(String::from);
        if let Some(rest) = after(&["srp-guid:", "srp-guid."]) {
            return Ok(Initiator::SrpGuid(digits(&without_colons(&rest), "16")?));
        }
        if let Some(rest) = after(&["srp:", "srp.", "srp:0x"]) {
            return Ok(Initiator::Srp(digits(rest.strip_prefix("0x").unwrap_or(&rest), "32")?));
        }
        if let Some(rest) = after(&["fc:", "fc.", "wwpn.", "wwpn:"]) {
            let plain = without_colons(&rest);
            return Ok(Initiator::FibreChannel(digits(plain.strip_prefix("0x").unwrap_or(&plain), "16")?));
        }
        let groups = |count: usize, length: usize| {
            name.split(':').count() == count && name.split(':').all(|group| group.len() == length)
        };
        if groups(8, 2) {
            return Ok(Initiator::FibreChannel(digits(&without_colons(&name), "16")?));
        }
        if groups(4, 4) {
            return Ok(Initiator::SrpGuid(digits(&without_colons(&name), "16")?));
        }
        Err(if name.contains('*') { NameError::Wildcard } else { NameError::Kind })
    }

    /// True for a set that is told by a beginning.
    pub fn is_wildcard(&self) -> bool {
        matches!(self, Initiator::IscsiPrefix(_))
    }
}

impl fmt::Display for Initiator {
    /// The normal form, which [`Initiator::parse`] reads back.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = |f: &mut fmt::Formatter<'_>, kind: &str, bytes: &[u8]| {
            write!(f, "{kind}:")?;
            bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
        };
        match self {
            Initiator::Iscsi(name) => f.write_str(name),
            Initiator::IscsiPrefix(prefix) => write!(f, "{prefix}*"),
            Initiator::FibreChannel(name) => hex(f, "fc", name),
            Initiator::Srp(identifier) => hex(f, "srp", identifier),
            Initiator::SrpGuid(guid) => hex(f, "srp-guid", guid),
        }
    }
}

/// `YYYY-MM.` and an authority behind `iqn.`, in lower case.
fn check_iqn(rest: &str) -> Result<(), NameError> {
    if rest.contains('*') {
        return Err(NameError::Wildcard);
    }
    let odd = |c: &char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | ':'));
    if let Some(odd) = rest.chars().find(odd) {
        return Err(NameError::Character(odd));
    }
    let (date, authority) = rest.split_once('.').ok_or(NameError::Date)?;
    let (year, month) = date.split_once('-').ok_or(NameError::Date)?;
    let number =
        |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u16>().ok()).flatten();
    let good = year.len() == 4
        && number(year).is_some()
        && month.len() == 2
        && number(month).is_some_and(|month| (1..=12).contains(&month));
    if !good {
        return Err(NameError::Date);
    }
    if authority.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric()) {
        Ok(())
    } else {
        Err(NameError::Authority)
    }
}

fn without_colons(text: &str) -> String {
    text.chars().filter(|c| *c != ':').collect()
}

/// Exactly `2 * N` hexadecimal digits; `wanted` is how the kind says that.
fn digits<const N: usize>(text: &str, wanted: &'static str) -> Result<[u8; N], NameError> {
    let given = text.bytes().filter(u8::is_ascii_hexdigit).count();
    let error = NameError::Digits { wanted, given };
    if text.len() != N.saturating_mul(2) || given != text.len() {
        return Err(error);
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        for digit in pair {
            let value = char::from(*digit).to_digit(16).ok_or(error)?;
            *byte = (*byte << 4) | value as u8;
        }
    }
    Ok(bytes)
}

/// To whom (`H`) initiators belong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitiatorTable<H> {
    of: BTreeMap<Initiator, H>,
}

impl<H> Default for InitiatorTable<H> {
    fn default() -> Self {
        InitiatorTable { of: BTreeMap::new() }
    }
}

impl<H> InitiatorTable<H> {
    /// Nobody has any.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives an initiator, or a set of them, to `owner`; who had it before, if anybody.
    pub fn insert(&mut self, initiator: Initiator, owner: H) -> Option<H> {
        self.of.insert(initiator, owner)
    }

    /// Takes it away again.
    pub fn remove(&mut self, initiator: &Initiator) -> Option<H> {
        self.of.remove(initiator)
    }

    /// Keeps what `keep` says of the owners.
    pub fn retain(&mut self, mut keep: impl FnMut(&H) -> bool) {
        self.of.retain(|_, owner| keep(owner));
    }

    /// Who was given exactly this.
    pub fn get(&self, initiator: &Initiator) -> Option<&H> {
        self.of.get(initiator)
    }

    /// Nobody has any.
    pub fn is_empty(&self) -> bool {
        self.of.is_empty()
    }

    /// To whom this initiator port belongs.
    pub fn find(&self, port: &TransportId) -> Option<&H> {
        if let Some(name) = port.iscsi_name() {
            return self.find_iscsi(name);
        }
        let bytes = port.as_bytes();
        let at = |range: core::ops::Range<usize>| bytes.get(range);
        match bytes.first().map(|byte| byte & 0x0f) {
            Some(0x0) => self.of.get(&Initiator::FibreChannel(at(8..16)?.try_into().ok()?)),
            Some(0x4) => {
                let exact = Initiator::Srp(at(8..24)?.try_into().ok()?);
                let guid = Initiator::SrpGuid(at(16..24)?.try_into().ok()?);
                self.of.get(&exact).or_else(|| self.of.get(&guid))
            }
            _ => None,
        }
    }

    /// To whom every port of this iSCSI node belongs, by its name in any case.
    pub fn find_iscsi(&self, name: &str) -> Option<&H> {
        if name.len() > ISCSI_NAME_LEN_MAX {
            return None;
        }
        let name = name.to_ascii_lowercase();
        let exact = Initiator::Iscsi(name.clone());
        if let Some(owner) = self.of.get(&exact) {
            return Some(owner);
        }
        let mut prefix = Initiator::IscsiPrefix(name);
        loop {
            if let Some(owner) = self.of.get(&prefix) {
                return Some(owner);
            }
            let Initiator::IscsiPrefix(text) = &mut prefix else { return None };
            text.pop()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn every_kind_has_one_normal_form() {
        for (given, normal) in [
            ("IQN.2026-01.Com.X:A", "iqn.2026-01.com.x:a"),
            ("iqn.1991-05.com.microsoft:*", "iqn.1991-05.com.microsoft:*"),
            ("iqn.1991-05.com.microsoft:web*", "iqn.1991-05.com.microsoft:web*"),
            ("EUI.0123456789ABCDEF", "eui.0123456789abcdef"),
            ("naa.52004567ba64678d", "naa.52004567ba64678d"),
            ("naa.62004567ba64678d0123456789abcdef", "naa.62004567ba64678d0123456789abcdef"),
            ("50:01:43:80:12:34:56:7A", "fc:500143801234567a"),
            ("wwpn.500143801234567A", "fc:500143801234567a"),
            ("fc:0x500143801234567a", "fc:500143801234567a"),
            ("srp:00000000000000000002c903000a0b0c", "srp:00000000000000000002c903000a0b0c"),
            ("srp:0x00000000000000000002c903000a0b0c", "srp:00000000000000000002c903000a0b0c"),
            ("0002:c903:000a:0b0c", "srp-guid:0002c903000a0b0c"),
            ("srp-guid:0002:c903:000a:0b0c", "srp-guid:0002c903000a0b0c"),
        ] {
            let parsed = Initiator::parse(given).unwrap_or_else(|error| panic!("{given} {error}"));
            assert_eq!(parsed.to_string(), normal);
            assert_eq!(Initiator::parse(normal), Ok(parsed));
        }
    }

    #[test]
    fn what_is_wrong_is_told_exactly() {
        let long = std::format!("iqn.2026-01.x:{}", "n".repeat(210));
        for (given, error) in [
            ("", NameError::Kind),
            ("win1", NameError::Kind),
            ("*", NameError::Wildcard),
            ("eui.*", NameError::Wildcard),
            ("iqn.*", NameError::Date),
            ("iqn.1991-05.*", NameError::Wildcard),
            ("iqn.1991-05.com.x:*b", NameError::Wildcard),
            ("iqn.1991-05.com.x:**", NameError::Wildcard),
            ("iqn.2026-1.x", NameError::Date),
            ("iqn.2026-13.x", NameError::Date),
            ("iqn.2026-01x", NameError::Date),
            ("iqn.2026-01.", NameError::Authority),
            ("iqn.2026-01.x,i,0x0", NameError::Character(',')),
            ("iqn.2026-01.x y", NameError::Character(' ')),
            ("iqn.2026-01.x:\u{e9}", NameError::Character('\u{e9}')),
            ("eui.01", NameError::Digits { wanted: "16", given: 2 }),
            ("naa.zz004567ba64678d", NameError::Digits { wanted: "16 or 32", given: 14 }),
            ("naa.62004567ba64678d", NameError::Naa),
            ("naa.12004567ba64678d", NameError::Naa),
            ("fc:5001", NameError::Digits { wanted: "16", given: 4 }),
            ("srp:5001", NameError::Digits { wanted: "32", given: 4 }),
            ("50:01:43:80:12:34:56:zz", NameError::Digits { wanted: "16", given: 14 }),
            (long.as_str(), NameError::TooLong),
        ] {
            assert_eq!(Initiator::parse(given), Err(error), "{given}");
        }
    }

    fn table(entries: &[(&str, &'static str)]) -> InitiatorTable<&'static str> {
        let mut table = InitiatorTable::new();
        for (name, owner) in entries {
            assert_eq!(table.insert(Initiator::parse(name).unwrap(), *owner), None);
        }
        table
    }

    #[test]
    fn exact_name_goes_before_the_longest_wildcard() {
        let table = table(&[
            ("iqn.1991-05.com.microsoft:*", "all"),
            ("iqn.1991-05.com.microsoft:web*", "web"),
            ("iqn.1991-05.com.microsoft:web1", "one"),
        ]);
        let of = |name: &str| table.find_iscsi(name).copied();
        assert_eq!(of("IQN.1991-05.com.microsoft:WEB1"), Some("one"));
        assert_eq!(of("iqn.1991-05.com.microsoft:web11"), Some("web"));
        assert_eq!(of("iqn.1991-05.com.microsoft:web"), Some("web"));
        assert_eq!(of("iqn.1991-05.com.microsoft:db"), Some("all"));
        assert_eq!(of("iqn.1991-05.com.microsoft"), None);
        assert_eq!(of("iqn.1991-05.com.other:web1"), None);
        // A name that spells a wildcard is only a name.
        assert_eq!(
            super::tests::table(&[("iqn.1991-05.com.x:a*", "a")]).find_iscsi("iqn.1991-05.com.x:*"),
            None
        );
    }

    #[test]
    fn ports_of_other_protocols_are_found_by_name_and_guid() {
        let mut srp = [0x11; 16];
        srp[8..].copy_from_slice(&[0, 2, 0xc9, 3, 0, 0x0a, 0x0b, 0x0c]);
        let entries = [
            ("fc:500143801234567a", "fc"),
            ("srp-guid:0002c903000a0b0c", "guid"),
            ("srp:00000000000000000002c903000a0b0c", "port"),
        ];
        let table = table(&entries);
        let fc = TransportId::fibre_channel([0x50, 0x01, 0x43, 0x80, 0x12, 0x34, 0x56, 0x7a]);
        assert_eq!(table.find(&fc), Some(&"fc"));
        assert_eq!(table.find(&TransportId::srp(srp)), Some(&"guid"));
        srp[..8].fill(0);
        assert_eq!(table.find(&TransportId::srp(srp)), Some(&"port"));
        srp[15] = 0;
        assert_eq!(table.find(&TransportId::srp(srp)), None);
        assert_eq!(table.find(&TransportId::sas([1; 8])), None);
    }
}
