//! TLS configurations made of an [`Identity`]: for plain rustls (the data plane's interconnect) and for tonic.
//!
//! Invariants: TLS 1.3 only; both sides show a certificate of the cluster's authority; a client verifies role and (when it
//! knows it) name through the server name of [`crate::server_name`].

use std::{path::Path, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::ring,
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject};
use tonic::transport::{Certificate, ClientTlsConfig, Identity as TonicIdentity, ServerTlsConfig};

use crate::{Identity, PkiError, Role, files::malformed, identity::Material, peer::domain};

/// Makes ring the process's crypto provider. Call it first in `main`; a second call does nothing.
pub fn install_crypto_provider() {
    // The error means that one is installed already, which is what we want.
    let _ = ring::default_provider().install_default();
}

/// All authorities of a file: one, or during a roll-over the new and the old.
pub(crate) fn roots(path: &Path, pem: &str) -> Result<Arc<RootCertStore>, PkiError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(certificate.map_err(|error| malformed(path, format!("{error:?}")))?)?;
    }
    if roots.is_empty() {
        return Err(malformed(path, "it holds no certificate"));
    }
    Ok(Arc::new(roots))
}

fn verifier(roots: Arc<RootCertStore>) -> Result<Arc<dyn ClientCertVerifier>, PkiError> {
    WebPkiClientVerifier::builder_with_provider(roots, Arc::new(ring::default_provider()))
        .build()
        .map_err(|error| PkiError::NotAnIdentity(error.to_string()))
}

/// Server side; asks every client for a certificate of this cluster.
pub(crate) fn server(
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ServerConfig>, PkiError> {
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier(roots)?)
        .with_single_cert(chain, key)?;
    Ok(Arc::new(config))
}

/// Client side.
pub(crate) fn client(
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ClientConfig>, PkiError> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    Ok(Arc::new(config))
}

/// Whether the certificate is signed by an authority of its own folder, and in force now.
pub(crate) fn check_in_force(directory: &Path, material: &Material) -> Result<(), PkiError> {
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(material.certificate_pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| malformed(&directory.join("cert.pem"), format!("{error:?}")))?;
    let [own, intermediates @ ..] = chain.as_slice() else {
        return Err(malformed(&directory.join("cert.pem"), "it holds no certificate"));
    };
    let verifier = verifier(roots(&directory.join("ca.pem"), &material.authority_pem)?)?;
    verifier.verify_client_cert(own, intermediates, UnixTime::now())?;
    Ok(())
}

impl Identity {
    /// Server side for plain rustls, for one connection: the next may use renewed material.
    pub fn rustls_server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.material().server)
    }

    /// Client side for plain rustls, for one connection; connect with [`crate::server_name`].
    pub fn rustls_client(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.material().client)
    }

    fn tonic_identity(&self) -> TonicIdentity {
        let material = self.material();
        TonicIdentity::from_pem(&material.certificate_pem, &material.key_pem)
    }

    /// Server side for tonic, as of now; one that runs for long takes [`Identity::incoming`] instead.
    pub fn tonic_server(&self) -> ServerTlsConfig {
        ServerTlsConfig::new()
            .identity(self.tonic_identity())
            .client_ca_root(Certificate::from_pem(&self.material().authority_pem))
    }

    /// Client side for tonic, as of now, to a peer of this role (and name, when given); one that runs for long takes
    /// [`Identity::channel`] instead.
    ///
    /// # Errors
    /// [`PkiError::BadName`] when the name cannot stand in a certificate.
    pub fn tonic_client(&self, role: Role, name: Option<&str>) -> Result<ClientTlsConfig, PkiError> {
        Ok(ClientTlsConfig::new()
            .identity(self.tonic_identity())
            .ca_certificate(Certificate::from_pem(&self.material().authority_pem))
            .domain_name(domain(role, name)?))
    }
}
