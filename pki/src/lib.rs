//! Who is who in a cluster: its certificate authority, the roles that certificates carry, the TLS configurations made of
//! them, and the sealing of secrets at rest.
//!
//! Invariants
//! * Every internal and management connection is mutual TLS 1.3 below the cluster's own authority; there is no mode without.
//! * A role and a name are read from a *verified* certificate only, by [`PeerIdentity::from_certificate`].
//! * Private keys and the cluster key are files of mode 0600; a secret is never printed (no `Debug` shows one).

mod authority;
mod connections;
mod files;
mod identity;
mod peer;
mod renewal;
mod seal;
mod tls;

pub use authority::Authority;
pub use connections::Connector;
pub use identity::Identity;
pub use peer::{ClusterId, PeerIdentity, Role, server_name};
pub use renewal::{LOOK_EVERY, keep_current};
pub use seal::SealingKey;
pub use tls::install_crypto_provider;

/// Why a certificate, key or secret could not be made, read or believed.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file's content is not what its name promises.
    #[error("{path}: {reason}")]
    Malformed {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A renewed certificate is of somebody else.
    #[error("the certificate is of {is}; this process is {was}")]
    OtherIdentity {
        /// What the new one says.
        is: String,
        /// What it has to say.
        was: String,
    },
    /// An address that cannot be connected to.
    #[error("address '{address}': {reason}")]
    BadAddress {
        /// As given.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A name that cannot stand in a certificate.
    #[error(
        "'{0}' is not a valid name: 1..63 letters, digits, '-', '_' or '.', beginning with a letter or digit"
    )]
    BadName(String),
    /// A certificate that carries no identity of a Holdfast cluster.
    #[error("certificate carries no Holdfast identity: {0}")]
    NotAnIdentity(String),
    /// The TLS library refused the material.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// Certificate generation failed.
    #[error("certificate generation: {0}")]
    Generate(#[from] rcgen::Error),
    /// Sealed bytes that this cluster key did not make, or that were altered.
    #[error("sealed secret does not open with this cluster's key")]
    Unsealable,
    /// The system gave no random numbers.
    #[error("no random numbers from the system")]
    NoRandom,
}
