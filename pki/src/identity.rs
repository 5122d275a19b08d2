//! An identity as a process holds it: its folder with `ca.pem`, `cert.pem`, `key.pem` and, for nodes and controllers,
//! `secret.key`.
//!
//! Invariants: who a process is never changes while it runs; the certificate, key and trust by which it shows that may
//! ([`Identity::reload`]). New material is taken whole or not at all, and only if it works: the key fits, the certificate is of the
//! same cluster, role and name, in force, and signed by an authority of the same folder.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::RwLock;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use crate::{
    PeerIdentity, PkiError, SealingKey,
    files::{malformed, read},
    tls,
};

/// Certificate, key and trust of one process; clones share them, and what is renewed in one is renewed in all.
#[derive(Clone)]
pub struct Identity {
    own: PeerIdentity,
    directory: PathBuf,
    sealing_key: Option<SealingKey>,
    material: Arc<RwLock<Arc<Material>>>,
}

/// What is renewed, and what is made of it.
pub(crate) struct Material {
    pub(crate) authority_pem: String,
    pub(crate) certificate_pem: String,
    pub(crate) key_pem: String,
    pub(crate) server: Arc<ServerConfig>,
    pub(crate) client: Arc<ClientConfig>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("own", &self.own).finish_non_exhaustive()
    }
}

/// The files that are renewed.
pub(crate) const RENEWED: [&str; 3] = ["ca.pem", "cert.pem", "key.pem"];

impl Material {
    fn read(directory: &Path) -> Result<(Self, PeerIdentity), PkiError> {
        let [authority_path, certificate_path, key_path] = RENEWED.map(|name| directory.join(name));
        let certificate_pem = read(&certificate_path)?;
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(certificate_pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| malformed(&certificate_path, format!("{error:?}")))?;
        let own = chain.first().ok_or_else(|| malformed(&certificate_path, "it holds no certificate"))?;
        let own = PeerIdentity::from_certificate(own)?;
        let key_pem = read(&key_path)?;
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
            .map_err(|error| malformed(&key_path, format!("{error:?}")))?;
        let authority_pem = read(&authority_path)?;
        let roots = tls::roots(&authority_path, &authority_pem)?;
        let server = tls::server(Arc::clone(&roots), chain.clone(), key.clone_key())?;
        let client = tls::client(roots, chain, key)?;
        Ok((Self { authority_pem, certificate_pem, key_pem, server, client }, own))
    }

    fn is_of_the_same_files(&self, other: &Material) -> bool {
        self.authority_pem == other.authority_pem
            && self.certificate_pem == other.certificate_pem
            && self.key_pem == other.key_pem
    }
}

impl Identity {
    /// Reads the identity in `directory`.
    ///
    /// # Errors
    /// I/O or [`PkiError::Malformed`] naming the file; [`PkiError::NotAnIdentity`]; [`PkiError::Tls`] when key and certificate do
    /// not fit together.
    pub fn load(directory: &Path) -> Result<Self, PkiError> {
        let (material, own) = Material::read(directory)?;
        let secret_path = directory.join("secret.key");
        let sealing_key = if secret_path.exists() {
            let key = SealingKey::from_text(&read(&secret_path)?);
            Some(key.ok_or_else(|| malformed(&secret_path, "not 64 hex digits"))?)
        } else {
            None
        };
        let material = Arc::new(RwLock::new(Arc::new(material)));
        Ok(Self { own, directory: directory.to_owned(), sealing_key, material })
    }

    /// Takes what the folder holds now; false if that is what is in use. Connections that are up go on as they are; new ones use it.
    ///
    /// # Errors
    /// Why it is not taken; what was in use stays in use.
    pub fn reload(&self) -> Result<bool, PkiError> {
        let (new, own) = Material::read(&self.directory)?;
        if new.is_of_the_same_files(&self.material()) {
            return Ok(false);
        }
        if own != self.own {
            return Err(PkiError::OtherIdentity {
                is: format!("{} {} of cluster {}", own.role, own.name, own.cluster),
                was: format!("{} {} of cluster {}", self.own.role, self.own.name, self.own.cluster),
            });
        }
        tls::check_in_force(&self.directory, &new)?;
        *self.material.write() = Arc::new(new);
        Ok(true)
    }

    /// Who we are.
    pub fn own(&self) -> &PeerIdentity {
        &self.own
    }

    /// Its folder.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The cluster key, where this role has it.
    pub fn sealing_key(&self) -> Option<&SealingKey> {
        self.sealing_key.as_ref()
    }

    pub(crate) fn material(&self) -> Arc<Material> {
        Arc::clone(&self.material.read())
    }
}
