//! An identity as a process holds it: its folder with `ca.pem`, `cert.pem`, `key.pem` and, for nodes and controllers,
//! `secret.key`.

use std::{fmt, path::Path};

use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use crate::{
    PeerIdentity, PkiError, SealingKey,
    files::{malformed, read},
};

/// Certificate, key and trust of one process.
pub struct Identity {
    own: PeerIdentity,
    pub(crate) authority_pem: String,
    pub(crate) certificate_pem: String,
    pub(crate) key_pem: String,
    sealing_key: Option<SealingKey>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("own", &self.own).finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads the identity in `directory`.
    ///
    /// # Errors
    /// I/O or [`PkiError::Malformed`] naming the file; [`PkiError::NotAnIdentity`].
    pub fn load(directory: &Path) -> Result<Self, PkiError> {
        let certificate_path = directory.join("cert.pem");
        let certificate_pem = read(&certificate_path)?;
        let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|error| malformed(&certificate_path, format!("{error:?}")))?;
        let own = PeerIdentity::from_certificate(&certificate)?;
        let key_path = directory.join("key.pem");
        let key_pem = read(&key_path)?;
        PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
            .map_err(|error| malformed(&key_path, format!("{error:?}")))?;
        let secret_path = directory.join("secret.key");
        let sealing_key = if secret_path.exists() {
            let key = SealingKey::from_text(&read(&secret_path)?);
            Some(key.ok_or_else(|| malformed(&secret_path, "not 64 hex digits"))?)
        } else {
            None
        };
        Ok(Self {
            own,
            authority_pem: read(&directory.join("ca.pem"))?,
            certificate_pem,
            key_pem,
            sealing_key,
        })
    }

    /// Who we are.
    pub fn own(&self) -> &PeerIdentity {
        &self.own
    }

    /// The cluster key, where this role has it.
    pub fn sealing_key(&self) -> Option<&SealingKey> {
        self.sealing_key.as_ref()
    }

    pub(crate) fn chain(&self) -> Result<Vec<CertificateDer<'static>>, PkiError> {
        CertificateDer::pem_slice_iter(self.certificate_pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| PkiError::NotAnIdentity(format!("{error:?}")))
    }

    pub(crate) fn key(&self) -> Result<PrivateKeyDer<'static>, PkiError> {
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes())
            .map_err(|error| PkiError::NotAnIdentity(format!("{error:?}")))
    }
}
