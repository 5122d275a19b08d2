//! Sealing of secrets at rest with the cluster key: AES-256-GCM, a fresh random 96-bit nonce in front of each text.
//!
//! The context (what the secret is for) is authenticated too, so that a sealed text cannot be moved to another place.

use std::fmt;

use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand::{SecureRandom, SystemRandom},
};

use crate::{PkiError, peer::decode_hex};

/// The cluster key.
#[derive(Clone)]
pub struct SealingKey([u8; 32]);

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealingKey(..)")
    }
}

impl SealingKey {
    pub(crate) fn generate() -> Result<Self, PkiError> {
        let mut key = [0; 32];
        SystemRandom::new().fill(&mut key).map_err(|_| PkiError::NoRandom)?;
        Ok(Self(key))
    }

    /// From 64 hex digits; `None` for anything else.
    pub fn from_text(text: &str) -> Option<Self> {
        decode_hex(text.trim()).map(Self)
    }

    pub(crate) fn to_text(&self) -> String {
        let mut text: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        text.push('\n');
        text
    }

    fn cipher(&self) -> Result<LessSafeKey, PkiError> {
        UnboundKey::new(&AES_256_GCM, &self.0).map(LessSafeKey::new).map_err(|_| PkiError::Unsealable)
    }

    /// Seals `secret` for the place named by `context` ("host/db1/chap").
    ///
    /// # Errors
    /// [`PkiError::NoRandom`].
    pub fn seal(&self, context: &str, secret: &[u8]) -> Result<Vec<u8>, PkiError> {
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).map_err(|_| PkiError::NoRandom)?;
        let mut text = secret.to_vec();
        self.cipher()?
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(context.as_bytes()),
                &mut text,
            )
            .map_err(|_| PkiError::Unsealable)?;
        Ok([&nonce[..], &text].concat())
    }

    /// Opens what [`Self::seal`] made for the same context.
    ///
    /// # Errors
    /// [`PkiError::Unsealable`] for another key, another context, or altered bytes.
    pub fn open(&self, context: &str, sealed: &[u8]) -> Result<Vec<u8>, PkiError> {
        let (nonce, text) = sealed.split_at_checked(NONCE_LEN).ok_or(PkiError::Unsealable)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| PkiError::Unsealable)?;
        let mut text = text.to_vec();
        let length = self
            .cipher()?
            .open_in_place(nonce, Aad::from(context.as_bytes()), &mut text)
            .map_err(|_| PkiError::Unsealable)?
            .len();
        text.truncate(length);
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_only_with_the_same_key_context_and_bytes() -> Result<(), PkiError> {
        let key = SealingKey::generate()?;
        let sealed = key.seal("host/a/chap", b"correct horse battery")?;
        assert_eq!(key.open("host/a/chap", &sealed)?, b"correct horse battery");
        assert!(key.open("host/b/chap", &sealed).is_err(), "moved to another host");
        assert!(SealingKey::generate()?.open("host/a/chap", &sealed).is_err(), "another cluster's key");
        for at in 0..sealed.len() {
            let mut altered = sealed.clone();
            altered[at] ^= 1;
            assert!(key.open("host/a/chap", &altered).is_err(), "byte {at} altered");
            assert!(key.open("host/a/chap", &sealed[..at]).is_err(), "cut at {at}");
        }
        Ok(())
    }

    #[test]
    fn two_sealings_of_one_secret_differ() -> Result<(), PkiError> {
        let key = SealingKey::generate()?;
        assert_ne!(key.seal("x", b"same")?, key.seal("x", b"same")?);
        Ok(())
    }

    #[test]
    fn the_key_does_not_show_in_debug_output() -> Result<(), PkiError> {
        let key = SealingKey::generate()?;
        assert_eq!(format!("{key:?}"), "SealingKey(..)");
        assert!(SealingKey::from_text(&key.to_text()).is_some_and(|read| read.0 == key.0));
        Ok(())
    }
}
