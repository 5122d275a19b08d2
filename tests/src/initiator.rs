//! One initiator port on libiscsi, driven line by line (see `tests/initiator/initiator.c`).

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context, bail, ensure};

use crate::cdb;

/// What the target answered to one command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// SCSI status.
    pub status: u8,
    /// "KEY/ASC/ASCQ" in hex, "0/00/00" when there is none.
    pub sense: String,
    /// Data-in.
    pub data: Vec<u8>,
}

/// Status GOOD.
pub const GOOD: u8 = 0x00;
/// Status CHECK CONDITION.
pub const CHECK_CONDITION: u8 = 0x02;
/// Status RESERVATION CONFLICT.
pub const RESERVATION_CONFLICT: u8 = 0x18;

impl Answer {
    /// Fails unless the status is GOOD; gives the data.
    ///
    /// # Errors
    /// Names status and sense.
    pub fn good(self) -> anyhow::Result<Vec<u8>> {
        ensure!(self.status == GOOD, "GOOD expected, got status {:02x} sense {}", self.status, self.sense);
        Ok(self.data)
    }

    /// Fails unless it is a CHECK CONDITION with this sense.
    ///
    /// # Errors
    /// Names status and sense.
    pub fn check(self, sense: &str) -> anyhow::Result<()> {
        ensure!(
            self.status == CHECK_CONDITION && self.sense == sense,
            "CHECK CONDITION {sense} expected, got status {:02x} sense {}",
            self.status,
            self.sense
        );
        Ok(())
    }

    /// Fails unless it is a RESERVATION CONFLICT.
    ///
    /// # Errors
    /// Names status and sense.
    pub fn conflict(self) -> anyhow::Result<()> {
        ensure!(
            self.status == RESERVATION_CONFLICT,
            "RESERVATION CONFLICT expected, got status {:02x} sense {}",
            self.status,
            self.sense
        );
        Ok(())
    }
}

/// CHAP credentials of an initiator.
#[derive(Debug, Clone, Copy)]
pub struct Chap<'a> {
    /// The host's name and secret.
    pub initiator: (&'a str, &'a str),
    /// The target's name and secret, for mutual CHAP.
    pub target: Option<(&'a str, &'a str)>,
}

/// A logged-in session. It logs out when dropped.
pub struct Initiator {
    process: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Initiator {
    /// Logs in. The same `isid` under the same name is the same initiator port.
    ///
    /// # Errors
    /// The login's failure as libiscsi words it.
    pub fn login(
        portal: &str,
        target: &str,
        name: &str,
        isid: u16,
        chap: Option<Chap<'_>>,
    ) -> anyhow::Result<Self> {
        Self::login_with(|mut command| Ok(command.spawn()?), portal, target, name, isid, chap)
    }

    /// The same, where `spawn` starts the process: in the network namespace of a host, say.
    ///
    /// # Errors
    /// The login's failure as libiscsi words it.
    pub fn login_with(
        spawn: impl FnOnce(Command) -> anyhow::Result<Child>,
        portal: &str,
        target: &str,
        name: &str,
        isid: u16,
        chap: Option<Chap<'_>>,
    ) -> anyhow::Result<Self> {
        let mut command = Command::new(program()?);
        command.args([portal, target, name, &isid.to_string()]);
        if let Some(chap) = chap {
            command.args([chap.initiator.0, chap.initiator.1]);
            if let Some((user, secret)) = chap.target {
                command.args([user, secret]);
            }
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = spawn(command).context("starting the initiator")?;
        let input = process.stdin.take();
        let output = BufReader::new(process.stdout.take().context("no standard output")?);
        let mut initiator = Self { process, input, output };
        match initiator.line()?.as_str() {
            "ok" => Ok(initiator),
            failure => bail!("login of {name} at {portal}: {failure}"),
        }
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        ensure!(!line.is_empty(), "the initiator ended");
        Ok(line.trim_end().to_owned())
    }

    /// Ends it as a host that crashes does: without a logout.
    pub fn abandon(mut self) {
        // When it has ended by itself there is nothing to kill.
        let _ = self.process.kill();
    }

    /// Sends a request line without waiting for its answer.
    ///
    /// # Errors
    /// When the initiator has ended.
    pub fn send(&mut self, request: &str) -> anyhow::Result<()> {
        let input = self.input.as_mut().context("input is closed")?;
        writeln!(input, "{request}").context("the initiator ended")
    }

    /// Waits for the answer to the oldest request.
    ///
    /// # Errors
    /// When the session is gone.
    pub fn answer(&mut self) -> anyhow::Result<Answer> {
        let line = self.line()?;
        let field = |name: &str| line.split(' ').find_map(|part| part.strip_prefix(name)).map(str::to_owned);
        let (Some(status), Some(sense), Some(data)) = (field("status="), field("sense="), field("in="))
        else {
            bail!("{line}");
        };
        Ok(Answer { status: u8::from_str_radix(&status, 16)?, sense, data: from_hex(&data)? })
    }

    fn call(&mut self, request: &str) -> anyhow::Result<Answer> {
        self.send(request)?;
        self.answer()
    }

    /// A command without data.
    ///
    /// # Errors
    /// When the session is gone.
    pub fn command(&mut self, lun: u16, cdb: &str) -> anyhow::Result<Answer> {
        self.call(&format!("cdb {lun} {cdb}"))
    }

    /// A command that reads up to `length` bytes.
    ///
    /// # Errors
    /// When the session is gone.
    pub fn read(&mut self, lun: u16, cdb: &str, length: u32) -> anyhow::Result<Answer> {
        self.call(&format!("cdb {lun} {cdb} in {length}"))
    }

    /// A command with a parameter list or data in hex.
    ///
    /// # Errors
    /// When the session is gone.
    pub fn write(&mut self, lun: u16, cdb: &str, hex: &str) -> anyhow::Result<Answer> {
        self.call(&format!("cdb {lun} {cdb} out {hex}"))
    }

    /// WRITE(10) of blocks of 512 bytes, all of one value.
    ///
    /// # Errors
    /// When the session is gone.
    pub fn write_blocks(&mut self, lun: u16, lba: u32, blocks: u16, value: u8) -> anyhow::Result<Answer> {
        let length = u32::from(blocks) * 512;
        self.call(&format!("cdb {lun} {} fill {value} {length}", cdb::write_10(lba, blocks)))
    }

    /// READ(10) of blocks of 512 bytes.
    ///
    /// # Errors
    /// When the session is gone.
    pub fn read_blocks(&mut self, lun: u16, lba: u32, blocks: u16) -> anyhow::Result<Answer> {
        self.read(lun, &cdb::read_10(lba, blocks), u32::from(blocks) * 512)
    }

    /// PERSISTENT RESERVE OUT.
    ///
    /// # Errors
    /// When the session is gone.
    pub fn reserve_out(
        &mut self,
        lun: u16,
        service_action: u8,
        kind: u8,
        key: u64,
        service_action_key: u64,
    ) -> anyhow::Result<Answer> {
        let (cdb, list) = cdb::persistent_reserve_out(service_action, kind, key, service_action_key);
        self.write(lun, &cdb, &list)
    }

    /// LOGICAL UNIT RESET; gives the response code of RFC 7143 11.6.1.
    ///
    /// # Errors
    /// When the session is gone.
    pub fn lun_reset(&mut self, lun: u16) -> anyhow::Result<u32> {
        self.send(&format!("lun-reset {lun}"))?;
        let line = self.line()?;
        line.strip_prefix("tmf=").with_context(|| line.clone())?.parse().context("a response code")
    }

    /// Consumes the Unit Attentions that every new nexus finds, until TEST UNIT READY is GOOD.
    ///
    /// # Errors
    /// When the LU does not become ready within a few commands.
    pub fn become_ready(&mut self, lun: u16) -> anyhow::Result<()> {
        let mut last = None;
        for _ in 0..8 {
            let answer = self.command(lun, cdb::TEST_UNIT_READY)?;
            if answer.status == GOOD {
                return Ok(());
            }
            ensure!(answer.sense.starts_with("6/"), "not a Unit Attention: {answer:?}");
            last = Some(answer);
        }
        bail!("more Unit Attentions than a new nexus can have; last: {last:?}")
    }
}

impl Drop for Initiator {
    fn drop(&mut self) {
        // End of input is its sign to log out.
        self.input = None;
        let _ = self.process.wait();
    }
}

fn from_hex(text: &str) -> anyhow::Result<Vec<u8>> {
    (0..text.len())
        .step_by(2)
        .map(|at| Ok(u8::from_str_radix(text.get(at..at + 2).context("odd number of hex digits")?, 16)?))
        .collect()
}

/// Compiles the initiator once per version of its source.
fn program() -> anyhow::Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("initiator/initiator.c");
    let code = fs::read(&source)?;
    let sum = code
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/initiator");
    fs::create_dir_all(&folder)?;
    let program = folder.join(format!("initiator-{sum:016x}"));
    if !program.exists() {
        // Tests run side by side: each compiles under its own name, the last rename wins.
        let temporary = program.with_extension(std::process::id().to_string());
        let compiled = Command::new("cc")
            .args(["-O2", "-Wall", "-Wextra", "-Werror", "-o"])
            .args([&temporary, &source])
            .arg("-liscsi")
            .status()
            .context("cc")?;
        ensure!(compiled.success(), "the initiator does not compile; it needs the package libiscsi-dev");
        fs::rename(&temporary, &program)?;
    }
    Ok(program)
}
