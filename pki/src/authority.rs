//! The cluster's certificate authority: one folder with `ca.pem`, `ca-key.pem` and the cluster key `secret.key`.
//!
//! During a roll-over `ca.pem` holds the new authority's certificate, which issues, and after it the old one's, which is still trusted
//! ([`Authority::roll_over`]).
//!
//! Invariant: the cluster key reaches only those who must open sealed secrets (nodes, controllers). It outlives the authority.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData as _, SanType,
};
use ring::rand::{SecureRandom, SystemRandom};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::{
    ClusterId, PeerIdentity, PkiError, Role, SealingKey,
    files::{create_directory, io_error, malformed, read, write},
    peer::{check_name, domain},
};

/// Certificates begin a day early, for hosts whose clocks are behind.
const BACKDATED: Duration = Duration::days(1);
const AUTHORITY_LIFETIME: Duration = Duration::days(3650);
const CERTIFICATE_LIFETIME: Duration = Duration::days(825);

/// A folder that can issue certificates of one cluster.
pub struct Authority {
    directory: PathBuf,
    cluster: ClusterId,
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
    sealing_key: SealingKey,
}

impl Authority {
    /// Makes the authority of a new cluster in `directory`, which must not hold one.
    ///
    /// # Errors
    /// [`PkiError::Malformed`] when there is one already; I/O and generation errors.
    pub fn create(directory: &Path) -> Result<Self, PkiError> {
        create_directory(directory)?;
        let certificate_path = directory.join("ca.pem");
        if certificate_path.exists() {
            return Err(malformed(&certificate_path, "an authority is here already"));
        }
        let mut id = [0; 16];
        SystemRandom::new().fill(&mut id).map_err(|_| PkiError::NoRandom)?;
        let cluster = ClusterId(id);

        let (key, certificate) = new_authority(cluster)?;
        let sealing_key = SealingKey::generate()?;
        write(&directory.join("secret.key"), &sealing_key.to_text(), 0o600)?;
        write(&directory.join("ca-key.pem"), &key.serialize_pem(), 0o600)?;
        // Last: its presence says that the authority is whole.
        write(&certificate_path, &certificate, 0o644)?;
        Self::open(directory)
    }

    /// Begins a roll-over: a new key and certificate of the same cluster, by which everything is issued from now on; `ca.pem` holds
    /// the new certificate and the old one, so that those who trust it trust both. The old pair stays beside it as `ca-old.pem` and
    /// `ca-old-key.pem`.
    ///
    /// # Errors
    /// [`PkiError::Malformed`] when a roll-over is under way already; I/O and generation errors.
    pub fn roll_over(self) -> Result<Self, PkiError> {
        let directory = self.directory.clone();
        let [certificate_path, key_path, old_path, old_key_path] =
            ["ca.pem", "ca-key.pem", "ca-old.pem", "ca-old-key.pem"].map(|name| directory.join(name));
        if old_path.exists() {
            return Err(malformed(&old_path, "a roll-over is under way; finish it first"));
        }
        let (key, certificate) = new_authority(self.cluster)?;
        write(&old_key_path, &read(&key_path)?, 0o600)?;
        write(&old_path, &self.certificate_pem, 0o644)?;
        // Between these two the folder's key does not fit its certificate, and it is not opened.
        write(&key_path, &key.serialize_pem(), 0o600)?;
        write(&certificate_path, &format!("{certificate}{}", self.certificate_pem), 0o644)?;
        Self::open(&directory)
    }

    /// Ends a roll-over: the old authority is not trusted any more, once this `ca.pem` is with everybody.
    ///
    /// # Errors
    /// [`PkiError::Malformed`] when none is under way; I/O errors.
    pub fn end_roll_over(self) -> Result<Self, PkiError> {
        let directory = self.directory.clone();
        let [old_path, old_key_path] = ["ca-old.pem", "ca-old-key.pem"].map(|name| directory.join(name));
        if !old_path.exists() {
            return Err(malformed(&directory.join("ca.pem"), "no roll-over is under way"));
        }
        let end = "-----END CERTIFICATE-----";
        let first = self.certificate_pem.find(end).map_or(0, |at| at + end.len());
        let newest = self.certificate_pem.get(..first).unwrap_or_default();
        write(&directory.join("ca.pem"), &format!("{newest}\n"), 0o644)?;
        for path in [old_key_path, old_path] {
            std::fs::remove_file(&path).map_err(io_error(&path))?;
        }
        Self::open(&directory)
    }

    /// Issues a new certificate and key to the same role and name, in its folder.
    ///
    /// # Errors
    /// [`PkiError::OtherIdentity`] for one of another cluster; as from [`Authority::issue`].
    pub fn renew(&self, directory: &Path) -> Result<PeerIdentity, PkiError> {
        let own = self.own_of(directory)?;
        self.issue((own.role, &own.name), directory)?;
        Ok(own)
    }

    /// Hands the present `ca.pem` to an identity, and leaves its certificate and key as they are.
    ///
    /// # Errors
    /// [`PkiError::OtherIdentity`] for one of another cluster; I/O errors.
    pub fn hand_trust(&self, directory: &Path) -> Result<PeerIdentity, PkiError> {
        let own = self.own_of(directory)?;
        write(&directory.join("ca.pem"), &self.certificate_pem, 0o644)?;
        Ok(own)
    }

    fn own_of(&self, directory: &Path) -> Result<PeerIdentity, PkiError> {
        let path = directory.join("cert.pem");
        let der = CertificateDer::from_pem_slice(read(&path)?.as_bytes())
            .map_err(|error| malformed(&path, format!("{error:?}")))?;
        let own = PeerIdentity::from_certificate(&der)?;
        if own.cluster != self.cluster {
            return Err(PkiError::OtherIdentity {
                is: format!("{} {} of cluster {}", own.role, own.name, own.cluster),
                was: format!("the authority of cluster {}", self.cluster),
            });
        }
        Ok(own)
    }

    /// Opens the authority in `directory`.
    ///
    /// # Errors
    /// I/O, or [`PkiError::Malformed`] naming the file.
    pub fn open(directory: &Path) -> Result<Self, PkiError> {
        let certificate_path = directory.join("ca.pem");
        let key_path = directory.join("ca-key.pem");
        let certificate_pem = read(&certificate_path)?;
        let key = KeyPair::from_pem(&read(&key_path)?).map_err(|error| malformed(&key_path, error))?;
        let cluster = cluster_of_authority(&certificate_path, &certificate_pem)?;
        check_key(&certificate_path, &certificate_pem, &key)?;
        let issuer = Issuer::from_ca_cert_pem(&certificate_pem, key)?;
        let secret_path = directory.join("secret.key");
        let sealing_key = SealingKey::from_text(&read(&secret_path)?)
            .ok_or_else(|| malformed(&secret_path, "not 64 hex digits"))?;
        Ok(Self { directory: directory.to_owned(), cluster, certificate_pem, issuer, sealing_key })
    }

    /// The cluster that it speaks for.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// Where it lives.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Issues a certificate and writes the identity into `directory`: `ca.pem`, `cert.pem`, `key.pem`, and for nodes and
    /// controllers `secret.key`.
    ///
    /// # Errors
    /// [`PkiError::BadName`]; I/O and generation errors.
    pub fn issue(&self, identity: (Role, &str), directory: &Path) -> Result<(), PkiError> {
        let (role, name) = identity;
        check_name(name)?;
        let key = KeyPair::generate()?;
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = subject(self.cluster, role.as_str(), name);
        for dns in [domain(role, Some(name))?, domain(role, None)?] {
            parameters.subject_alt_names.push(SanType::DnsName(dns.try_into()?));
        }
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = match role {
            // People's certificates never serve.
            Role::Admin | Role::Operator | Role::Viewer => vec![ExtendedKeyUsagePurpose::ClientAuth],
            Role::Node | Role::Controller => {
                vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth]
            }
        };
        parameters.use_authority_key_identifier_extension = true;
        lifetime(&mut parameters, CERTIFICATE_LIFETIME);
        let certificate = parameters.signed_by(&key, &self.issuer)?;

        create_directory(directory)?;
        write(&directory.join("ca.pem"), &self.certificate_pem, 0o644)?;
        write(&directory.join("key.pem"), &key.serialize_pem(), 0o600)?;
        if matches!(role, Role::Node | Role::Controller) {
            write(&directory.join("secret.key"), &self.sealing_key.to_text(), 0o600)?;
        }
        // Last: its presence says that the identity is whole.
        write(&directory.join("cert.pem"), &certificate.pem(), 0o644)
    }
}

/// Key and self-signed certificate (PEM).
fn new_authority(cluster: ClusterId) -> Result<(KeyPair, String), PkiError> {
    let key = KeyPair::generate()?;
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = subject(cluster, "authority", "authority");
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    lifetime(&mut parameters, AUTHORITY_LIFETIME);
    let certificate = parameters.self_signed(&key)?.pem();
    Ok((key, certificate))
}

/// What is issued by a key that is not the certificate's nobody would believe.
fn check_key(path: &Path, pem: &str, key: &KeyPair) -> Result<(), PkiError> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| malformed(path, format!("{error:?}")))?;
    let (_, certificate) = X509Certificate::from_der(&der).map_err(|error| malformed(path, error))?;
    if certificate.public_key().raw != key.subject_public_key_info() {
        let reason = "ca-key.pem is not its key; if a roll-over was cut off, put ca-old-key.pem back in its place and remove ca-old.pem";
        return Err(malformed(path, reason));
    }
    Ok(())
}

fn subject(cluster: ClusterId, unit: &str, name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, format!("holdfast:{cluster}"));
    subject.push(DnType::OrganizationalUnitName, unit);
    subject.push(DnType::CommonName, name);
    subject
}

fn lifetime(parameters: &mut CertificateParams, duration: Duration) {
    let now = OffsetDateTime::now_utc();
    parameters.not_before = now - BACKDATED;
    parameters.not_after = now + duration;
}

fn cluster_of_authority(path: &Path, pem: &str) -> Result<ClusterId, PkiError> {
    let der = rustls_pki_types::pem::PemObject::from_pem_slice(pem.as_bytes())
        .map_err(|error| malformed(path, format!("{error:?}")))?;
    PeerIdentity::cluster_of(&der)
}
