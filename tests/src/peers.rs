//! Other targets from Debian, to run the same suite against: `tgt` and `istgt`, each as a child process on loopback with
//! its files in a temporary folder.
//!
//! Invariants: a peer that is not installed or does not start is an error that says so, never a row that is left out;
//! each process is ended with its object.

use std::{
    fs::{self, File},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use tempfile::TempDir;

use crate::patience::PATIENCE;

/// Size of a peer's logical unit, in bytes.
const SIZE: u64 = 100 << 20;
const TARGET: &str = "iqn.2026-11.example:peer";

/// A kind of target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Linux SCSI target framework, package `tgt`.
    Tgt,
    /// Package `istgt`.
    Istgt,
}

impl Kind {
    /// Its package.
    pub fn package(self) -> &'static str {
        match self {
            Self::Tgt => "tgt",
            Self::Istgt => "istgt",
        }
    }

    /// Package and version as Debian has it.
    ///
    /// # Errors
    /// When it is not installed: says what to do.
    pub fn version(self) -> anyhow::Result<String> {
        let package = self.package();
        let answer = Command::new("dpkg-query")
            .args(["-W", "-f=${db:Status-Status} ${Version}", package])
            .output()
            .context("dpkg-query: the peers come from Debian packages")?;
        let text = String::from_utf8_lossy(&answer.stdout).into_owned();
        let Some(version) = text.strip_prefix("installed ") else {
            bail!("the peer {package} is not installed: apt-get install {package}");
        };
        Ok(format!("{package} {version}"))
    }
}

/// A peer with one logical unit.
pub struct Peer {
    kind: Kind,
    block_size: u32,
    thin: bool,
    folder: TempDir,
    ports: [u16; 2],
    process: Option<Child>,
}

impl Peer {
    /// Starts one with blocks of `block_size` bytes.
    ///
    /// # Errors
    /// What stands in its way.
    pub fn start(kind: Kind, block_size: u32, thin: bool) -> anyhow::Result<Self> {
        kind.version()?;
        let folder = tempfile::Builder::new().prefix("holdfast-peer-").tempdir()?;
        let mut peer = Self { kind, block_size, thin, folder, ports: free_ports()?, process: None };
        peer.up()?;
        Ok(peer)
    }

    /// Ends it, and starts it anew on the same ports with an empty unit.
    ///
    /// # Errors
    /// What stands in its way.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.end();
        self.up()
    }

    /// URLs of its unit.
    pub fn url(&self) -> String {
        let lun = if self.kind == Kind::Tgt { 1 } else { 0 };
        format!("iscsi://{}/{TARGET}/{lun}", self.portal())
    }

    /// Its portal.
    pub fn portal(&self) -> String {
        format!("127.0.0.1:{}", self.ports[0])
    }

    /// Its target's name.
    pub fn target(&self) -> &'static str {
        TARGET
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn up(&mut self) -> anyhow::Result<()> {
        let disk = self.path("disk");
        let _ = fs::remove_file(&disk);
        File::create(&disk)?.set_len(SIZE)?;
        match self.kind {
            Kind::Tgt => self.tgt_up(&disk),
            Kind::Istgt => self.istgt_up(&disk),
        }
    }

    fn spawn(&mut self, command: &mut Command) -> anyhow::Result<()> {
        let log = File::create(self.path("log"))?;
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        self.process = Some(child.with_context(|| format!("starting {}", self.kind.package()))?);
        let started = Instant::now();
        let portal = self.portal();
        // It listens when its log file says so, in words of each version's own: asking is surer.
        while TcpStream::connect(&portal).is_err() {
            ensure!(started.elapsed() < PATIENCE, "{} does not listen: {}", self.kind.package(), self.log());
            if let Some(status) =
                self.process.as_mut().and_then(|it| it.try_wait().transpose()).transpose()?
            {
                bail!("{} ended with {status}: {}", self.kind.package(), self.log());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn tgt_up(&mut self, disk: &Path) -> anyhow::Result<()> {
        // Its control socket is named by a number below 32768: one made of a port that nobody else has.
        let control = (self.ports[1] % 32768).to_string();
        let portal = format!("portal={}", self.portal());
        self.spawn(Command::new("tgtd").args(["-f", "-C", &control, "--iscsi", &portal]))?;
        let admin = |arguments: &[&str]| -> anyhow::Result<()> {
            let output =
                Command::new("tgtadm").args(["-C", &control, "--lld", "iscsi"]).args(arguments).output()?;
            let words = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(output.status.success(), "tgtadm {}: {words}", arguments.join(" "));
            Ok(())
        };
        let (disk, size) = (disk.display().to_string(), self.block_size.to_string());
        let unit = ["--tid", "1", "--lun", "1"];
        admin(&["--op", "new", "--mode", "target", "--tid", "1", "-T", TARGET])?;
        admin(
            &[&["--op", "new", "--mode", "logicalunit", "-b", &disk, "--blocksize", &size][..], &unit]
                .concat(),
        )?;
        let thin = if self.thin { "thin_provisioning=1" } else { "thin_provisioning=0" };
        admin(&[&["--op", "update", "--mode", "logicalunit", "--params", thin][..], &unit].concat())?;
        admin(&["--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL"])
    }

    fn istgt_up(&mut self, disk: &Path) -> anyhow::Result<()> {
        let folder = self.folder.path().display().to_string();
        let (node, name) = TARGET.split_once(':').context("a target's name")?;
        let (portal, control, disk) = (self.ports[0], self.ports[1], disk.display());
        let block_size = self.block_size;
        // With its own defaults for the lengths it gives a command a buffer of 8192 bytes, and no answer at all to one that asks for more
        // (the suite's first does): it would seem to hang in every test. Its sample configuration has these.
        let config = format!(
            "[Global]\nNodeBase \"{node}\"\nPidFile {folder}/pid\nAuthFile {folder}/auth\nMediaDirectory {folder}\n\
             Timeout 30\nNopInInterval 20\nDiscoveryAuthMethod None\nMaxSessions 16\nMaxConnections 4\nMaxR2T 32\n\
             FirstBurstLength 262144\nMaxBurstLength 1048576\nMaxRecvDataSegmentLength 262144\n\
             [UnitControl]\nAuthMethod None\nPortal UC1 127.0.0.1:{control}\nNetmask 127.0.0.0/8\n\
             [PortalGroup1]\nPortal DA1 127.0.0.1:{portal}\n\
             [InitiatorGroup1]\nInitiatorName \"ALL\"\nNetmask 127.0.0.0/8\n\
             [LogicalUnit1]\nTargetName {name}\nMapping PortalGroup1 InitiatorGroup1\nAuthMethod None\nUnitType Disk\n\
             BlockLength {block_size}\nLUN0 Storage {disk} 100MB\n"
        );
        fs::write(self.path("conf"), config)?;
        fs::write(self.path("auth"), "")?;
        self.spawn(Command::new("istgt").arg("-D").arg("-c").arg(self.path("conf")))
    }

    fn end(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.end();
    }
}

/// Two ports that nobody listened on a moment ago.
fn free_ports() -> anyhow::Result<[u16; 2]> {
    let listeners = [TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?];
    let mut ports = [0; 2];
    for (port, listener) in ports.iter_mut().zip(&listeners) {
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}
