//! Real TLS handshakes between identities: who gets in, who does not.

use std::io;

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
    let mut client = ClientConnection::new(client.rustls_client(), name).map_err(io::Error::other)?;
    let mut server = ServerConnection::new(server.rustls_server()).map_err(io::Error::other)?;
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

/// The folder of an identity is renewed as `change` says, and taken.
fn reloaded(identity: &Identity, change: impl FnOnce() -> Result<(), PkiError>) -> Result<bool, PkiError> {
    change()?;
    identity.reload()
}

#[test]
fn a_renewed_certificate_is_taken_and_a_bad_one_is_not() -> Result<(), PkiError> {
    let cluster = Cluster::new()?;
    let node = cluster.identity(Role::Node, "node-1")?;
    let controller = cluster.identity(Role::Controller, "ctl-1")?;
    let meets = || handshake(&node, &controller, (Role::Controller, Some("ctl-1"))).is_ok();
    assert!(!node.reload()?, "nothing was renewed");
    let before = node.rustls_client();
    assert!(reloaded(&node, || cluster.authority.renew(node.directory()).map(drop))?);
    assert!(!std::sync::Arc::ptr_eq(&before, &node.rustls_client()) && meets());

    let file = |name: &str| node.directory().join(name);
    let write = |name: &str, content: &str| {
        std::fs::write(file(name), content).expect(name);
        Ok(())
    };
    let used = node.rustls_client();
    let whole = std::fs::read_to_string(file("cert.pem")).expect("cert.pem");
    // Cut off, a key that is another's, somebody else's certificate, another cluster's.
    assert!(reloaded(&node, || write("cert.pem", &whole[..whole.len() / 2])).is_err());
    let other = cluster.identity(Role::Node, "node-2")?;
    assert!(reloaded(&node, || cluster.authority.renew(other.directory()).map(drop)).is_err());
    let theirs = std::fs::read_to_string(other.directory().join("cert.pem")).expect("cert.pem");
    assert!(matches!(reloaded(&node, || write("cert.pem", &theirs)), Err(PkiError::Tls(_))));
    let key = std::fs::read_to_string(other.directory().join("key.pem")).expect("key.pem");
    assert!(matches!(reloaded(&node, || write("key.pem", &key)), Err(PkiError::OtherIdentity { .. })));
    let stranger = Cluster::new()?;
    assert!(matches!(stranger.authority.renew(node.directory()), Err(PkiError::OtherIdentity { .. })));
    assert!(reloaded(&node, || stranger.authority.issue((Role::Node, "node-1"), node.directory())).is_err());
    // Trust that does not cover its own certificate.
    cluster.authority.issue((Role::Node, "node-1"), node.directory())?;
    let trust = std::fs::read_to_string(stranger.authority.directory().join("ca.pem")).expect("ca.pem");
    assert!(matches!(reloaded(&node, || write("ca.pem", &trust)), Err(PkiError::Tls(_))));
    // All the while it served with what it had.
    assert!(std::sync::Arc::ptr_eq(&used, &node.rustls_client()) && meets());
    assert!(reloaded(&node, || cluster.authority.hand_trust(node.directory()).map(drop))? && meets());
    Ok(())
}

#[test]
fn an_authority_is_rolled_over_with_no_moment_at_which_two_do_not_meet() -> Result<(), PkiError> {
    let cluster = Cluster::new()?;
    let identities =
        [cluster.identity(Role::Controller, "ctl-1")?, cluster.identity(Role::Controller, "ctl-2")?];
    let meet = || {
        for (client, server) in [(0, 1), (1, 0)] {
            let expected = (Role::Controller, None);
            handshake(&identities[client], &identities[server], expected).expect("they meet");
        }
    };
    let directory = cluster.authority.directory().to_owned();
    let old = std::fs::read(directory.join("ca.pem")).expect("ca.pem");
    let authority = Authority::open(&directory)?.roll_over()?;
    assert!(Authority::open(&directory)?.roll_over().is_err(), "one at a time");
    for step in [Authority::hand_trust, Authority::renew] {
        for identity in &identities {
            step(&authority, identity.directory())?;
            assert!(identity.reload()?);
            meet();
        }
    }
    let authority = authority.end_roll_over()?;
    assert!(Authority::open(&directory)?.end_roll_over().is_err(), "once");
    for identity in &identities {
        authority.hand_trust(identity.directory())?;
        assert!(identity.reload()?);
        meet();
    }
    // The old authority is nobody any more.
    let stranger = cluster.directory.path().join("stranger");
    cluster.authority.issue((Role::Controller, "ctl-3"), &stranger)?;
    std::fs::write(stranger.join("ca.pem"), old).expect("ca.pem");
    let stranger = Identity::load(&stranger)?;
    assert!(handshake(&stranger, &identities[0], (Role::Controller, None)).is_err());
    assert!(handshake(&identities[0], &stranger, (Role::Controller, None)).is_err());
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
