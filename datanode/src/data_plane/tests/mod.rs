//! The data plane as an initiator sees it: real sockets, real files.

mod host;
mod portal;
mod standalone;

use standalone::Standalone;

/// Serves one volume of 64 MiB until the process is killed, for trying tools by hand:
/// `HOLDFAST_PORTAL=127.0.0.1:3260 cargo test -p holdfast-datanode portal_for_tools -- --ignored --nocapture`.
#[test]
#[ignore = "runs until killed"]
fn portal_for_tools() {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let portal = std::env::var("HOLDFAST_PORTAL").unwrap_or_else(|_| "127.0.0.1:0".into());
    let node = Standalone::start(portal.parse().unwrap());
    let volume = node.volume(1, 64 << 20);
    let initiators = [
        "iqn.2026-01.example:a",
        "iqn.2007-10.com.github:sahlberg:libiscsi:iscsi-test",
        "iqn.2007-10.com.github:sahlberg:libiscsi:iscsi-test-2",
    ];
    node.authority.change(vec![
        holdfast_proto::state::change::Change::Volume(volume),
        Standalone::host("h", &initiators),
        Standalone::mapping("h", 1, 0),
    ]);
    println!("portal {}", node.portal());
    loop {
        std::thread::park();
    }
}
