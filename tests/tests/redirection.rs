//! Logins that are sent to another node, seen by real initiators.

use std::net::TcpStream;

use anyhow::{bail, ensure};
use holdfast_tests::{
    cluster::{Cluster, INITIATOR_A},
    raw::RawInitiator,
    tools::{expect_success, url},
};

#[test]
fn a_drained_node_sends_new_sessions_to_the_other() -> anyhow::Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.volume_for_both("disk", "16MiB", "node-1", 0)?;
    let (mut before, _) = cluster.log_in_both()?;
    before.become_ready(0)?;
    cluster.cli(&["node", "drain", "node-2"])?;
    // One that does not follow is told where to go. The node hears of its drain a little later than the controllers.
    cluster.wait_for("the drained node to send a login away", || {
        let socket = TcpStream::connect(&cluster.portals[1])?;
        match RawInitiator::login(socket, &cluster.target, INITIATOR_A, 7) {
            Ok(_) => bail!("it serves still"),
            Err(answer) if format!("{answer:#}").contains("status: 257") => Ok(()),
            Err(other) => Err(other),
        }
    })?;
    // libiscsi follows by itself where it connects and logs in as one.
    let inquiry =
        expect_success("iscsi-inq", &["-i", INITIATOR_A, &url(&cluster.portals[1], &cluster.target, 0)])?;
    ensure!(inquiry.contains("HOLDFAST"), "{inquiry}");
    // Discovery shows where to stay.
    let said = expect_success("iscsi-ls", &["-i", INITIATOR_A, &format!("iscsi://{}", cluster.portals[1])])?;
    ensure!(said.contains(&format!("Portal:{}", cluster.portals[0])), "{said}");
    ensure!(!said.contains(&format!("Portal:{}", cluster.portals[1])), "{said}");
    cluster.cli(&["node", "uncordon", "node-2"])?;
    cluster.wait_for("the node to serve again", || {
        let socket = TcpStream::connect(&cluster.portals[1])?;
        RawInitiator::login(socket, &cluster.target, INITIATOR_A, 9).map(|_| ())
    })?;
    cluster.stop()
}
