//! CHAP as iSCSI uses it (RFC 7143 12.1.3): the response function, its algorithms, and the credentials.
//!
//! Invariants: secrets are never shown and are compared in constant time; the two directions never share a secret, so a
//! reflected challenge proves nothing; of the algorithms in common the strongest is taken, and none below the policy's
//! weakest.

use crate::text;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use subtle::ConstantTimeEq as _;

/// A hash for CHAP, weakest first (IANA, "PPP Authentication Algorithms").
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

impl Algorithm {
    /// All, weakest first.
    pub const ALL: [Self; 4] = [Self::Md5, Self::Sha1, Self::Sha256, Self::Sha3_256];

    /// The number in CHAP_A.
    #[must_use]
    pub fn number(self) -> u64 {
        match self {
            Self::Md5 => 5,
            Self::Sha1 => 6,
            Self::Sha256 => 7,
            Self::Sha3_256 => 8,
        }
    }

    /// The strongest of a CHAP_A list that is not below `weakest`. `None` also for a list that is not one of numbers.
    #[must_use]
    pub fn choose(list: &str, weakest: Self) -> Option<Self> {
        let numbers: Option<Vec<u64>> = list.split(',').map(text::number).collect();
        let numbers = numbers?;
        Self::ALL.into_iter().rev().find(|a| *a >= weakest && numbers.contains(&a.number()))
    }

    /// The response: hash of identifier, secret, challenge.
    #[must_use]
    pub fn response(self, id: u8, secret: &[u8], challenge: &[u8]) -> Vec<u8> {
        fn hash<D: sha2::Digest>(parts: [&[u8]; 3]) -> Vec<u8> {
            let mut hash = D::new();
            for part in parts {
                hash.update(part);
            }
            hash.finalize().to_vec()
        }
        let parts = [&[id], secret, challenge];
        match self {
            Self::Md5 => hash::<md5::Md5>(parts),
            Self::Sha1 => hash::<sha1::Sha1>(parts),
            Self::Sha256 => hash::<sha2::Sha256>(parts),
            Self::Sha3_256 => hash::<sha3::Sha3_256>(parts),
        }
    }

    /// Bytes of a response.
    #[must_use]
    pub fn response_len(self) -> usize {
        match self {
            Self::Md5 => 16,
            Self::Sha1 => 20,
            Self::Sha256 | Self::Sha3_256 => 32,
        }
    }
}

/// A name and its secret. The secret is never shown by `Debug`.
#[derive(Clone)]
pub struct Secret {
    name: String,
    secret: Vec<u8>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Secret {
    /// The name (CHAP_N) and the secret's bytes.
    #[must_use]
    pub fn new(name: String, secret: Vec<u8>) -> Self {
        Self { name, secret }
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The response to a challenge.
    #[must_use]
    pub fn respond(&self, algorithm: Algorithm, challenge: &Challenge) -> Vec<u8> {
        algorithm.response(challenge.id, &self.secret, &challenge.bytes)
    }

    /// Whether `name` and `response` come from who knows the secret. Both are always compared, so that time
    /// tells nothing about either.
    #[must_use]
    pub fn verify(&self, algorithm: Algorithm, challenge: &Challenge, name: &str, response: &[u8]) -> bool {
        let expected = self.respond(algorithm, challenge);
        (expected.ct_eq(response) & self.name.as_bytes().ct_eq(name.as_bytes())).into()
    }
}

/// CHAP_I and CHAP_C.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// Identifier.
    pub id: u8,
    /// The challenge.
    pub bytes: Vec<u8>,
}

impl Challenge {
    /// Our challenge, from the shell's entropy. It is hashed, so that neither part tells about the other or about
    /// the entropy.
    #[must_use]
    pub fn from_entropy(entropy: &[u8; 32]) -> Self {
        let id = Algorithm::Sha256.response(b'I', entropy, b"identifier");
        let bytes = Algorithm::Sha256.response(b'C', entropy, b"challenge");
        Self { id: id.first().copied().unwrap_or_default(), bytes }
    }
}

/// What an initiator must prove, and what we prove in return.
#[derive(Clone, Debug)]
pub struct ChapCredentials {
    pub(crate) initiator: Secret,
    pub(crate) target: Option<Secret>,
    pub(crate) weakest: Algorithm,
}

/// Credentials that would protect nothing: the caller's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidCredentials {
    /// A name or a secret is empty, or a name is longer than a value may be.
    Name,
    /// An empty secret.
    Secret,
    /// Both directions share one secret, which lets a peer reflect challenges (RFC 7143 9.2.1).
    SameSecret,
}

impl fmt::Display for InvalidCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Name => "a CHAP name must have 1 to 255 bytes without NUL",
            Self::Secret => "a CHAP secret must not be empty",
            Self::SameSecret => "the two directions of mutual CHAP must have different secrets",
        })
    }
}

impl core::error::Error for InvalidCredentials {}

impl ChapCredentials {
    /// `initiator` is demanded of the initiator; `target`, if given, is our answer to an initiator that asks for
    /// mutual CHAP. Algorithms weaker than `weakest` are refused.
    ///
    /// # Errors
    /// [`InvalidCredentials`].
    pub fn new(
        initiator: Secret,
        target: Option<Secret>,
        weakest: Algorithm,
    ) -> Result<Self, InvalidCredentials> {
        for secret in core::iter::once(&initiator).chain(&target) {
            if !(1..=crate::limits::VALUE_LEN_MAX).contains(&secret.name.len()) || secret.name.contains('\0')
            {
                return Err(InvalidCredentials::Name);
            }
            if secret.secret.is_empty() {
                return Err(InvalidCredentials::Secret);
            }
        }
        if target.as_ref().is_some_and(|target| target.secret == initiator.secret) {
            return Err(InvalidCredentials::SameSecret);
        }
        Ok(Self { initiator, target, weakest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    /// RFC 1321, FIPS 180 and FIPS 202 example "abc", cut as CHAP cuts it: 'a' the identifier, 'b' the secret.
    #[test]
    fn hashes_are_the_standards() {
        let hex = |algorithm: Algorithm| {
            let mut text = String::new();
            crate::binary_value::encode(&algorithm.response(b'a', b"b", b"c"), &mut text);
            text
        };
        assert_eq!(hex(Algorithm::Md5), "0x900150983cd24fb0d6963f7d28e17f72");
        assert_eq!(hex(Algorithm::Sha1), "0xa9993e364706816aba3e25717850c26c9cd0d89d");
        assert_eq!(
            hex(Algorithm::Sha256),
            "0xba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(
            hex(Algorithm::Sha3_256),
            "0x3a985da74fe225b2045c172d6bd390bd855f086e3e9d525b46bfe24511431532"
        );
    }

    #[test]
    fn the_strongest_in_common_is_chosen() {
        assert_eq!(Algorithm::choose("5,6,7,8", Algorithm::Md5), Some(Algorithm::Sha3_256));
        assert_eq!(Algorithm::choose("5,7", Algorithm::Md5), Some(Algorithm::Sha256));
        assert_eq!(Algorithm::choose("5", Algorithm::Md5), Some(Algorithm::Md5));
        assert_eq!(Algorithm::choose("5,6", Algorithm::Sha256), None);
    }

    #[test]
    fn a_sloppy_list_is_refused() {
        for bad in ["", "56", "5,", ",5", "5 ", "five", "5;6", "5,x"] {
            assert_eq!(Algorithm::choose(bad, Algorithm::Md5), None, "{bad}");
        }
    }

    #[test]
    fn one_secret_for_both_directions_is_refused() {
        let secret = |name: &str| Secret::new(name.into(), b"secret".to_vec());
        let same = ChapCredentials::new(secret("a"), Some(secret("b")), Algorithm::Md5);
        assert_eq!(same.unwrap_err(), InvalidCredentials::SameSecret);
    }

    #[test]
    fn secrets_are_not_shown() {
        assert!(!format!("{:?}", Secret::new("user".into(), b"hunter2".to_vec())).contains("hunter2"));
    }

    #[test]
    fn a_wrong_name_or_response_is_refused() {
        let secret = Secret::new("user".into(), b"secret".to_vec());
        let challenge = Challenge::from_entropy(&[9; 32]);
        let good = secret.respond(Algorithm::Sha256, &challenge);
        assert!(secret.verify(Algorithm::Sha256, &challenge, "user", &good));
        assert!(!secret.verify(Algorithm::Sha256, &challenge, "User", &good));
        assert!(!secret.verify(Algorithm::Sha256, &challenge, "user", &good[1..]));
        assert!(!secret.verify(Algorithm::Sha1, &challenge, "user", &good));
    }
}
