//! The identity that a certificate carries: cluster, role, name.
//!
//! Subject: `O=holdfast:<cluster id in hex>, OU=<role>, CN=<name>`. Names for verification: `<name>.<role>.holdfast.internal` and
//! `<role>.holdfast.internal`, so that a connection does not depend on addresses.

use std::{fmt, str::FromStr};

use rustls_pki_types::{CertificateDer, ServerName};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::PkiError;

/// Identifies a cluster; drawn once, when its authority is made.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClusterId(pub [u8; 16]);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterId({self})")
    }
}

impl FromStr for ClusterId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        decode_hex(text).ok_or(()).map(Self)
    }
}

/// Exactly `N` bytes from lower- or upper-case hex.
pub(crate) fn decode_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N || !text.is_ascii() {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

/// What the holder of a certificate may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// A data node: node sessions and the interconnect.
    Node,
    /// A controller member: Raft, and everything that a forwarded call may be.
    Controller,
    /// May change everything.
    Admin,
    /// May change volumes, hosts and mappings, not the cluster's membership.
    Operator,
    /// May read.
    Viewer,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 5] = [Self::Node, Self::Controller, Self::Admin, Self::Operator, Self::Viewer];

    /// As it stands in the certificate.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Controller => "controller",
            Self::Admin => "admin",
            Self::Operator => "operator",
            Self::Viewer => "viewer",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| format!("'{text}' is not a role: node, controller, admin, operator or viewer"))
    }
}

/// Who is at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Its cluster.
    pub cluster: ClusterId,
    /// What it may be.
    pub role: Role,
    /// Its name within the role.
    pub name: String,
}

impl PeerIdentity {
    /// The cluster of an authority's own certificate.
    pub(crate) fn cluster_of(certificate: &CertificateDer<'_>) -> Result<ClusterId, PkiError> {
        let wrong = || PkiError::NotAnIdentity("O is not holdfast:<cluster id>".to_owned());
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| wrong())?;
        let organization = parsed.subject().iter_organization().next().and_then(|value| value.as_str().ok());
        organization.and_then(|text| text.strip_prefix("holdfast:")?.parse().ok()).ok_or_else(wrong)
    }

    /// Reads the identity of a certificate **that TLS has verified**.
    ///
    /// # Errors
    /// [`PkiError::NotAnIdentity`] when the subject is not of the form above.
    pub fn from_certificate(certificate: &CertificateDer<'_>) -> Result<Self, PkiError> {
        let wrong = |reason: &str| PkiError::NotAnIdentity(reason.to_owned());
        let (_, parsed) =
            X509Certificate::from_der(certificate).map_err(|error| wrong(&error.to_string()))?;
        let subject = parsed.subject();
        // Exactly one of each: a second CN must not let two readers disagree about the name.
        let single =
            |mut values: Box<dyn Iterator<Item = &x509_parser::prelude::AttributeTypeAndValue<'_>> + '_>,
             what: &str| {
                match (values.next(), values.next()) {
                    (Some(value), None) => value.as_str().map(str::to_owned).map_err(|_| wrong(what)),
                    _ => Err(wrong(what)),
                }
            };
        let organization = single(Box::new(subject.iter_organization()), "no single O")?;
        let unit = single(Box::new(subject.iter_organizational_unit()), "no single OU")?;
        let name = single(Box::new(subject.iter_common_name()), "no single CN")?;
        let cluster = organization
            .strip_prefix("holdfast:")
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| wrong("O is not holdfast:<cluster id>"))?;
        let role = unit.parse().map_err(|_| wrong("OU is not a role"))?;
        check_name(&name)?;
        Ok(Self { cluster, role, name })
    }
}

/// A name that is safe in a certificate, a DNS label sequence and a path.
pub(crate) fn check_name(name: &str) -> Result<(), PkiError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let good = (1..=63).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && !name.ends_with('.')
        && !name.contains("..")
        && name.chars().all(allowed);
    if good { Ok(()) } else { Err(PkiError::BadName(name.to_owned())) }
}

/// The name that a client verifies: of one peer, or (`None`) of any peer of that role.
///
/// # Errors
/// [`PkiError::BadName`] when the name cannot stand in a certificate.
pub fn server_name(role: Role, name: Option<&str>) -> Result<ServerName<'static>, PkiError> {
    let text = domain(role, name)?;
    ServerName::try_from(text.clone()).map_err(|_| PkiError::BadName(text))
}

/// The same as text.
pub(crate) fn domain(role: Role, name: Option<&str>) -> Result<String, PkiError> {
    match name {
        Some(name) => {
            check_name(name)?;
            Ok(format!("{name}.{role}.holdfast.internal"))
        }
        None => Ok(format!("{role}.holdfast.internal")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_their_folder_are_refused() {
        for bad in ["", ".", "..", "../x", "a/b", "-a", "a..b", "a.", "ü", &"a".repeat(64)] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "node-1", "ctl_2.rack3"] {
            assert!(check_name(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn cluster_id_reads_back() {
        let id = ClusterId([0xab; 16]);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("ab".parse::<ClusterId>().is_err());
        assert!("é".repeat(16).parse::<ClusterId>().is_err());
    }
}
