//! Real TLS handshakes between identities: who gets in, who does not.

use std::{io, sync::Arc};

use holdfast_pki::{Authority, Identity, PeerIdentity, PkiError, Role, server_name};
use rustls::{ClientConnection, ServerConnection};

struct Cluster {
    directory: tempfile::TempDir,
    authority: Authority,
}

impl Cluster {
    fn new() -> Result<Self, PkiError> {
        let directory = tempfile::tempdir().expect("temporary folder");
        let authority = Authority::create(&directory.path().join("ca"))?;
        Ok(Self { directory, authority })
    }

    fn identity(&self, role: Role, name: &str) -> Result<Identity, PkiError> {
        let folder = self.directory.path().join(format!("{role}-{name}"));
        self.authority.issue((role, name), &folder)?;
        Identity::load(&folder)
    }
}

/// Runs the handshake in memory; answers who the server saw.
fn handshake(client: &Identity, server: &Identity, expect: (Role, Option<&str>)) -> io::Result<PeerIdentity> {
    let other = |error: PkiError| io::Error::other(error.to_string());
    let name = server_name(expect.0, expect.1).map_err(other)?;
    let mut client =
        ClientConnection::new(client.rustls_client().map_err(other)?, name).map_err(io::Error::other)?;
    let mut server = ServerConnection::new(Arc::clone(&server.rustls_server().map_err(other)?))
        .map_err(io::Error::other)?;
    while client.is_handshaking() || server.is_handshaking() {
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes)?;
        server.read_tls(&mut &bytes[..])?;
        server.process_new_packets().map_err(io::Error::other)?;
        bytes.clear();
        server.write_tls(&mut bytes)?;
        client.read_tls(&mut &bytes[..])?;
        client.process_new_packets().map_err(io::Error::other)?;
    }
    let certificates = server.peer_certificates().unwrap_or_default();
    PeerIdentity::from_certificate(&certificates[0]).map_err(other)
}

#[test]
fn a_node_is_seen_by_its_role_and_name() -> Result<(), PkiError> {
    let cluster = Cluster::new()?;
    let node = cluster.identity(Role::Node, "node-1")?;
    let controller = cluster.identity(Role::Controller, "ctl-1")?;
    for expected in [None, Some("ctl-1")] {
        let seen = handshake(&node, &controller, (Role::Controller, expected)).expect("handshake");
        assert_eq!(seen.role, Role::Node);
        assert_eq!(seen.name, "node-1");
        assert_eq!(seen.cluster, cluster.authority.cluster());
    }
    Ok(())
}

#[test]
fn a_server_of_another_name_or_role_is_refused() -> Result<(), PkiError> {
    let cluster = Cluster::new()?;
    let node = cluster.identity(Role::Node, "node-1")?;
    let controller = cluster.identity(Role::Controller, "ctl-1")?;
    assert!(handshake(&node, &controller, (Role::Controller, Some("ctl-2"))).is_err());
    assert!(handshake(&controller, &node, (Role::Controller, None)).is_err());
    Ok(())
}

#[test]
fn a_person_cannot_serve() -> Result<(), PkiError> {
    let cluster = Cluster::new()?;
    let node = cluster.identity(Role::Node, "node-1")?;
    let admin = cluster.identity(Role::Admin, "root")?;
    assert!(handshake(&node, &admin, (Role::Admin, None)).is_err());
    assert!(admin.sealing_key().is_none() && node.sealing_key().is_some());
    Ok(())
}

#[test]
fn another_cluster_is_refused_by_both_sides() -> Result<(), PkiError> {
    let (ours, theirs) = (Cluster::new()?, Cluster::new()?);
    let node = ours.identity(Role::Node, "node-1")?;
    let stranger = theirs.identity(Role::Controller, "ctl-1")?;
    assert!(handshake(&node, &stranger, (Role::Controller, None)).is_err());
    assert!(handshake(&stranger, &node, (Role::Node, None)).is_err());
    Ok(())
}

#[test]
fn an_authority_is_never_overwritten() -> Result<(), PkiError> {
    let cluster = Cluster::new()?;
    assert!(matches!(Authority::create(cluster.authority.directory()), Err(PkiError::Malformed { .. })));
    assert_eq!(Authority::open(cluster.authority.directory())?.cluster(), cluster.authority.cluster());
    Ok(())
}

#[test]
fn secret_files_are_for_their_owner_alone() -> Result<(), PkiError> {
    use std::os::unix::fs::PermissionsExt;
    let cluster = Cluster::new()?;
    cluster.identity(Role::Node, "node-1")?;
    for file in ["ca/ca-key.pem", "ca/secret.key", "node-node-1/key.pem", "node-node-1/secret.key"] {
        let mode = std::fs::metadata(cluster.directory.path().join(file)).expect(file).permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    Ok(())
}
