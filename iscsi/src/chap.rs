//! CHAP.
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// A hash for CHAP, weakest first (RFC 7143 12.1.3 and IANA's registry of CHAP algorithms).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Algorithm {
    /// 5
    Md5,
    /// 6
    Sha1,
    /// 7
    Sha256,
    /// 8
    Sha3_256,
}

/// A name and its secret. Never shown by `Debug`.
#[derive(Clone)]
pub struct Secret {
    name: String,
    secret: Vec<u8>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({}, ..)", self.name)
    }
}

impl Secret {
    /// The name (CHAP_N) and the secret's bytes.
    #[must_use]
    pub fn new(name: String, secret: Vec<u8>) -> Self {
        Self { name, secret }
    }
}

/// What an initiator must prove, and what we prove in return.
#[derive(Clone, Debug)]
pub struct ChapCredentials {
    initiator: Secret,
    target: Option<Secret>,
    weakest: Algorithm,
}

/// Credentials that would protect nothing: the caller's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidCredentials {
    /// A name or a secret is empty.
    Empty,
    /// Both directions share one secret, which lets a peer reflect challenges (RFC 7143 9.2.1).
    SameSecret,
}

impl ChapCredentials {
    /// `initiator` is demanded of the initiator; `target`, if given, is our answer to an initiator that asks for
    /// mutual CHAP. Algorithms weaker than `weakest` are refused; the strongest in common is chosen.
    ///
    /// # Errors
    /// [`InvalidCredentials`].
    pub fn new(
        initiator: Secret,
        target: Option<Secret>,
        weakest: Algorithm,
    ) -> Result<Self, InvalidCredentials> {
        let empty = |s: &Secret| s.name.is_empty() || s.secret.is_empty();
        if empty(&initiator) || target.as_ref().is_some_and(empty) {
            return Err(InvalidCredentials::Empty);
        }
        if target.as_ref().is_some_and(|t| t.secret == initiator.secret) {
            return Err(InvalidCredentials::SameSecret);
        }
        Ok(Self { initiator, target, weakest })
    }
}
