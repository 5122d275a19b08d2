//! A controller's certificate is renewed while it runs: SIGHUP to a real process.

#![allow(missing_docs)]

use std::{
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use holdfast_pki::{Authority, Identity, Role, server_name};
use holdfast_proto::v1::{GetClusterRequest, cluster_service_client::ClusterServiceClient};
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::Channel;

/// Long enough for a loaded machine; what needs it has failed.
const LIMIT: Duration = Duration::from_secs(60);

struct Process(Child);

impl Process {
    fn hang_up(&self) {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).unwrap()).unwrap();
        kill_process(pid, Signal::HUP).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The certificate that a new connection is shown.
async fn shown(address: &str, admin: &Identity) -> Option<Vec<u8>> {
    let stream = TcpStream::connect(address).await.ok()?;
    let connector = TlsConnector::from(admin.rustls_client());
    let name = server_name(Role::Controller, Some("ctl-1")).unwrap();
    let stream = connector.connect(name, stream).await.ok()?;
    let (_, tls) = stream.get_ref();
    Some(tls.peer_certificates()?.first()?.to_vec())
}

async fn until<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let tried = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, tried).await.unwrap_or_else(|_| panic!("{what}: not in time"));
}

fn holds(path: &Path, what: &str) -> bool {
    std::fs::read_to_string(path).unwrap().contains(what)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_connections_use_a_renewed_certificate_and_those_that_are_up_stay() {
    holdfast_pki::install_crypto_provider();
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::create(&directory.path().join("ca")).unwrap();
    let folder = directory.path().join("ctl-1");
    authority.issue((Role::Controller, "ctl-1"), &folder).unwrap();
    authority.issue((Role::Admin, "alice"), &directory.path().join("alice")).unwrap();
    let admin = Identity::load(&directory.path().join("alice")).unwrap();
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let log = directory.path().join("log");
    let process = Process(
        Command::new(env!("CARGO_BIN_EXE_holdfast-controller"))
            .args(["--id", "1", "--name", "ctl-1", "--listen", &address])
            .args(["--bootstrap", &format!("1=ctl-1={address}"), "--dir"])
            .arg(directory.path().join("state"))
            .arg("--tls")
            .arg(&folder)
            .env("RUST_LOG", "info")
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap(),
    );
    // One connection for the whole test: it would not come up again with another certificate unnoticed.
    let up = Arc::new(tokio::sync::Mutex::new(None::<Channel>));
    until("a connection", || async {
        let (endpoint, connector) = admin.endpoint(&address, Role::Controller, Some("ctl-1")).unwrap();
        *up.lock().await = endpoint.connect_with_connector(connector).await.ok();
        up.lock().await.is_some()
    })
    .await;
    let channel = up.lock().await.clone().unwrap();
    let serves = || async {
        let mut client = ClusterServiceClient::new(channel.clone());
        client.get_cluster(GetClusterRequest {}).await.is_ok()
    };
    until("the cluster", serves).await;
    let first = shown(&address, &admin).await.unwrap();

    authority.renew(&folder).unwrap();
    process.hang_up();
    let second = Arc::new(tokio::sync::Mutex::new(Vec::new()));
    until("the renewed certificate", || async {
        let seen = shown(&address, &admin).await.unwrap_or_default();
        *second.lock().await = seen.clone();
        !seen.is_empty() && seen != first
    })
    .await;
    let second = second.lock().await.clone();
    assert!(serves().await);
    assert!(holds(&log, "certificate, key and trust renewed"));

    // A bad one is refused, and said so; the one in use stays.
    let good = std::fs::read(folder.join("cert.pem")).unwrap();
    std::fs::write(folder.join("cert.pem"), "nonsense").unwrap();
    process.hang_up();
    until("the refusal", || async { holds(&log, "is refused; those in use stay in use") }).await;
    assert_eq!(shown(&address, &admin).await, Some(second));
    assert!(serves().await);

    // Without a signal too, once the files keep still.
    std::fs::write(folder.join("cert.pem"), good).unwrap();
    authority.renew(&folder).unwrap();
    let renewed = std::fs::read_to_string(folder.join("cert.pem")).unwrap();
    let renewed: rustls_pki_types::CertificateDer<'_> =
        rustls_pki_types::pem::PemObject::from_pem_slice(renewed.as_bytes()).unwrap();
    until("the files to be found", || async {
        shown(&address, &admin).await.as_deref() == Some(&renewed[..])
    })
    .await;
    assert!(serves().await);
}
