//! Names: what may be one, and their one normal form.
//!
//! Invariant: what passes here is safe in a path, a certificate, a terminal and a SCSI TransportID.

use holdfast_scsi::initiator::Initiator;

use super::{Refusal, limits};

/// Letters, digits, '.', '_', '-'; 1..63; begins with a letter or digit. `field` is named in the refusal.
pub fn check_name(field: &'static str, name: &str) -> Result<(), Refusal> {
    let good = (1..=limits::NAME_BYTES_MAX).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
    if good {
        return Ok(());
    }
    Err(Refusal::invalid(
        field,
        format!(
            "'{}' is not a valid name: 1..{} letters, digits, '.', '_' or '-', beginning with a letter or digit",
            printable(name),
            limits::NAME_BYTES_MAX
        ),
    ))
}

/// The normal form (lower case) of an iSCSI name of type iqn., eui. or naa. (RFC 7143 4.2.7).
pub fn iscsi_name(field: &'static str, name: &str) -> Result<String, Refusal> {
    match initiator(field, name)? {
        Initiator::Iscsi(name) => Ok(name),
        _ => Err(Refusal::invalid(field, format!("'{}' is no iSCSI name", printable(name)))),
    }
}

/// The name of an initiator, or a set of them, of any kind.
pub fn initiator(field: &'static str, name: &str) -> Result<Initiator, Refusal> {
    Initiator::parse(name).map_err(|error| Refusal::invalid(field, format!("'{}' {error}", printable(name))))
}

/// "address:port" of something that can be connected to.
pub fn check_address(field: &'static str, address: &str) -> Result<(), Refusal> {
    let bad = |reason: &str| Err(Refusal::invalid(field, format!("'{}' {reason}", printable(address))));
    if address.len() > limits::ADDRESS_BYTES_MAX {
        return bad("is too long");
    }
    match address.parse::<std::net::SocketAddr>() {
        Err(_) => bad("is not ADDRESS:PORT (IPv6 addresses in brackets)"),
        Ok(parsed) if parsed.ip().is_unspecified() => {
            bad("names every address; give the one that peers reach")
        }
        Ok(parsed) if parsed.port() == 0 => bad("has no port"),
        Ok(_) => Ok(()),
    }
}

/// Peer input as it may stand in a one-line message: bounded, without control characters.
pub fn printable(text: &str) -> String {
    text.chars().take(80).map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// The same for a text that is kept: at most [`limits::JOB_TEXT_CHARS_MAX`] characters.
pub fn bounded(text: &str) -> String {
    text.chars().take(limits::JOB_TEXT_CHARS_MAX).map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_contract() {
        for good in ["a", "db1", "9-x_y.z", &"n".repeat(63)] {
            assert!(check_name("name", good).is_ok(), "{good}");
        }
        for bad in ["", "-a", ".a", "a b", "a/b", "ü", "a\n", &"n".repeat(64)] {
            assert!(check_name("name", bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn iscsi_names_are_lowered_and_checked() {
        assert_eq!(iscsi_name("i", "IQN.2026-01.Com.X:A").as_deref(), Ok("iqn.2026-01.com.x:a"));
        for good in ["iqn.2026-01.x", "eui.0123456789abcdef", "naa.52004567ba64678d"] {
            assert!(iscsi_name("i", good).is_ok(), "{good}");
        }
        let long = format!("iqn.2026-01.x:{}", "n".repeat(210));
        for bad in [
            "",
            "iqn.",
            "iqn.2026-1.x",
            "iqn.2026-01.",
            "iqn.2026-01.x,i,0x0",
            "iqn.2026-01.x y",
            "eui.01",
            "naa.zz004567ba64678d",
            "win1",
            &long,
            "iqn\u{e9}2026",
        ] {
            assert!(iscsi_name("i", bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn addresses_can_be_connected_to() {
        for good in ["127.0.0.1:3260", "[::1]:3260"] {
            assert!(check_address("portals", good).is_ok());
        }
        for bad in ["", "127.0.0.1", "0.0.0.0:3260", "[::]:1", "10.0.0.1:0", "node-1:3260"] {
            assert!(check_address("portals", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn messages_hold_no_control_characters() {
        let text = check_name("name", "a\r\n\u{1b}[2J").unwrap_err().to_string();
        assert!(!text.chars().any(char::is_control));
    }
}
