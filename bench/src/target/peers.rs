//! The peers: `tgt` and `istgt` as Debian packages them, each with a file, the former also with its null store.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use super::{INITIATOR, PATIENCE, Process, Running, Target, free_address, installed, until_listening};
use crate::lean::Login;

fn login(portal: std::net::SocketAddr, target: &str, lun: u16) -> Login {
    Login { portal, target: Some(target.to_owned()), initiator: INITIATOR.to_owned(), lun }
}

/// `tgt` on a file, and on its null store (a process of its own).
pub(super) fn tgt(folder: &Path, bytes: u64) -> anyhow::Result<Option<Vec<Target>>> {
    if !installed("tgtd") {
        return Ok(None);
    }
    let file = folder.join("tgt.data");
    fs::File::create(&file)?.set_len(bytes)?;
    let file = file.display().to_string();
    Ok(Some(vec![
        one_tgt("tgt", true, &["--backing-store", &file])?,
        // Its null store tells a size of its own, which is large enough.
        one_tgt("tgt null store", false, &["--bstype", "null", "--backing-store", "null"])?,
    ]))
}

fn one_tgt(name: &'static str, stores: bool, store: &[&str]) -> anyhow::Result<Target> {
    let portal = free_address()?;
    // Its control sockets are numbered up to 32767.
    let control = (portal.port() % 32_000 + 1).to_string();
    let target = "iqn.2026-11.example:tgt";
    let mut command = Command::new("tgtd");
    command.args(["--foreground", "--control-port", &control, "--iscsi", &format!("portal={portal}")]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let process = Process::start(command)?;
    let admin = |arguments: &[&str]| -> anyhow::Result<()> {
        let common = ["--control-port", &control, "--lld", "iscsi", "--mode"];
        let by = Instant::now() + PATIENCE;
        loop {
            let output = Command::new("tgtadm").args(common).args(arguments).output().context("tgtadm")?;
            if output.status.success() {
                return Ok(());
            }
            // Until it listens on its control socket.
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(Instant::now() < by && said.contains("connect"), "tgtadm {arguments:?}: {said}");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    admin(&["target", "--op", "new", "--tid", "1", "--targetname", target])?;
    let unit = ["logicalunit", "--op", "new", "--tid", "1", "--lun", "1"];
    admin(&[&unit[..], store].concat())?;
    admin(&["target", "--op", "bind", "--tid", "1", "--initiator-address", "ALL"])?;
    let pid = process.0.id();
    Ok(Target { name, login: login(portal, target, 1), pid, stores, _running: Running::Process(process) })
}

/// `istgt` on a file.
pub(super) fn istgt(folder: &Path, bytes: u64) -> anyhow::Result<Option<Vec<Target>>> {
    if !installed("istgt") {
        return Ok(None);
    }
    let folder = folder.join("istgt");
    fs::create_dir_all(&folder)?;
    let data = folder.join("data");
    fs::File::create(&data)?.set_len(bytes)?;
    fs::write(folder.join("auth.conf"), "")?;
    let (portal, control) = (free_address()?, free_address()?);
    let base = "iqn.2026-11.example";
    // As its packaged example, but for more sessions and no pings (it knows no other InitialR2T).
    let config = format!(
        "[Global]\n  NodeBase \"{base}\"\n  PidFile {dir}/pid\n  AuthFile {dir}/auth.conf\n  MediaDirectory {dir}\n  \
         LogFacility \"local7\"\n  Timeout 30\n  NopInInterval 0\n  DiscoveryAuthMethod Auto\n  MaxSessions 64\n  \
         MaxConnections 4\n  MaxR2T 32\n  MaxOutstandingR2T 16\n  DefaultTime2Wait 2\n  DefaultTime2Retain 60\n  \
         FirstBurstLength 262144\n  MaxBurstLength 1048576\n  MaxRecvDataSegmentLength 262144\n  InitialR2T Yes\n  \
         ImmediateData Yes\n  DataPDUInOrder Yes\n  DataSequenceInOrder Yes\n  ErrorRecoveryLevel 0\n\
         [UnitControl]\n  AuthMethod None\n  Portal UC1 {control}\n  Netmask 127.0.0.1\n\
         [PortalGroup1]\n  Portal DA1 {portal}\n\
         [InitiatorGroup1]\n  InitiatorName \"ALL\"\n  Netmask 127.0.0.0/8\n\
         [LogicalUnit1]\n  TargetName disk\n  Mapping PortalGroup1 InitiatorGroup1\n  AuthMethod None\n  \
         UseDigest Auto\n  UnitType Disk\n  QueueDepth 128\n  LUN0 Storage {data} {mib}MB\n",
        dir = folder.display(),
        data = data.display(),
        mib = bytes >> 20,
    );
    let path = folder.join("istgt.conf");
    fs::write(&path, config)?;
    let mut command = Command::new("istgt");
    command.arg("-c").arg(&path).args(["-D", "-q"]).stdout(Stdio::null());
    command.stderr(fs::File::create(folder.join("log"))?);
    let process = Process::start(command)?;
    until_listening(portal).context("istgt")?;
    let pid = process.0.id();
    let login = login(portal, &format!("{base}:disk"), 0);
    Ok(Some(vec![Target { name: "istgt", login, pid, stores: true, _running: Running::Process(process) }]))
}
