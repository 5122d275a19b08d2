//! TLS configurations made of an [`Identity`]: for plain rustls (the data plane's interconnect) and for tonic.
//!
//! Invariants: TLS 1.3 only; both sides show a certificate of the cluster's authority; a client verifies role and (when it
//! knows it) name through the server name of [`crate::server_name`].

use std::sync::Arc;

use rustls::{
    ClientConfig, RootCertStore, ServerConfig, crypto::ring, server::WebPkiClientVerifier, version::TLS13,
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use tonic::transport::{Certificate, ClientTlsConfig, Identity as TonicIdentity, ServerTlsConfig};

use crate::{Identity, PkiError, Role, peer::domain};

/// Makes ring the process's crypto provider. Call it first in `main`; a second call does nothing.
pub fn install_crypto_provider() {
    // The error means that one is installed already, which is what we want.
    let _ = ring::default_provider().install_default();
}

impl Identity {
    fn roots(&self) -> Result<Arc<RootCertStore>, PkiError> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(self.authority_pem.as_bytes()) {
            roots.add(certificate.map_err(|error| PkiError::NotAnIdentity(format!("{error:?}")))?)?;
        }
        Ok(Arc::new(roots))
    }

    /// Server side for plain rustls; asks every client for a certificate of this cluster.
    ///
    /// # Errors
    /// [`PkiError::Tls`] when the material does not fit together.
    pub fn rustls_server(&self) -> Result<Arc<ServerConfig>, PkiError> {
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots()?, Arc::clone(&provider))
            .build()
            .map_err(|error| PkiError::NotAnIdentity(error.to_string()))?;
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain()?, self.key()?)?;
        Ok(Arc::new(config))
    }

    /// Client side for plain rustls; connect with [`crate::server_name`].
    ///
    /// # Errors
    /// [`PkiError::Tls`] when the material does not fit together.
    pub fn rustls_client(&self) -> Result<Arc<ClientConfig>, PkiError> {
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&TLS13])?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(self.chain()?, self.key()?)?;
        Ok(Arc::new(config))
    }

    fn tonic_identity(&self) -> TonicIdentity {
        TonicIdentity::from_pem(&self.certificate_pem, &self.key_pem)
    }

    /// Server side for tonic. Read the peer with `request.peer_certs()` and [`crate::PeerIdentity::from_certificate`].
    pub fn tonic_server(&self) -> ServerTlsConfig {
        ServerTlsConfig::new()
            .identity(self.tonic_identity())
            .client_ca_root(Certificate::from_pem(&self.authority_pem))
    }

    /// Client side for tonic, to a peer of this role (and name, when given).
    ///
    /// # Errors
    /// [`PkiError::BadName`] when the name cannot stand in a certificate.
    pub fn tonic_client(&self, role: Role, name: Option<&str>) -> Result<ClientTlsConfig, PkiError> {
        Ok(ClientTlsConfig::new()
            .identity(self.tonic_identity())
            .ca_certificate(Certificate::from_pem(&self.authority_pem))
            .domain_name(domain(role, name)?))
    }
}
