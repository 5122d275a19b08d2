//! The client on libiscsi (`bench/libiscsi/client.c`): what an ordinary user of that library gets.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

use crate::case::{Case, Mix, Pattern};
use crate::lean::Login;

/// What a run did.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    /// Commands that ended.
    pub commands: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// Latencies in nanoseconds: p50, p99, p99.9.
    pub percentiles_ns: [u64; 3],
}

/// Compiles the client into `folder`.
///
/// # Errors
/// No compiler, or no libiscsi-dev.
pub fn compile(folder: &Path) -> anyhow::Result<PathBuf> {
    let program = folder.join("libiscsi-client");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("libiscsi/client.c");
    let compiled = Command::new("cc")
        .args(["-O2", "-Wall", "-Wextra", "-Werror", "-o"])
        .args([&program, &source])
        .arg("-liscsi")
        .status()
        .context("cc")?;
    ensure!(compiled.success(), "the libiscsi client does not compile; it needs the package libiscsi-dev");
    Ok(program)
}

/// Runs a case in a process of its own; `at_start` and `at_end` when the measured time begins and ends.
///
/// # Errors
/// What the client said.
pub fn run(
    program: &Path,
    login: &Login,
    blocks: u64,
    case: &Case,
    (warm_up, length): (Duration, Duration),
    mut at_start: impl FnMut() -> anyhow::Result<()>,
    mut at_end: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Done> {
    let target = login.target.as_deref().context("libiscsi needs a target")?;
    let writes = match case.mix {
        Mix::Read => 0,
        Mix::Write => 100,
        Mix::Mixed => 30,
    };
    let pattern = match case.pattern {
        Pattern::Random => "random",
        Pattern::Sequential => "sequential",
    };
    let mut child = Command::new(program)
        .args([&login.portal.to_string(), target, &login.initiator])
        .args(
            [u64::from(login.lun), blocks, case.size.into(), case.depth.into(), case.sessions.into(), writes]
                .map(|n| n.to_string()),
        )
        .arg(pattern)
        .args([warm_up.as_millis().to_string(), length.as_millis().to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| program.display().to_string())?;
    let output = child.stdout.take().context("no standard output")?;
    let mut done = None;
    for line in BufReader::new(output).lines() {
        let line = line?;
        match line.split(' ').collect::<Vec<_>>().as_slice() {
            ["start"] => at_start()?,
            ["end"] => at_end()?,
            ["done", numbers @ ..] => {
                let n = numbers.iter().map(|n| n.parse()).collect::<Result<Vec<u64>, _>>()?;
                let [commands, ns, p50, p99, p999] = n[..] else { bail!("{line}") };
                let elapsed = Duration::from_nanos(ns);
                done = Some(Done { commands, elapsed, percentiles_ns: [p50, p99, p999] });
            }
            _ => bail!("libiscsi at {}: {line}", login.portal),
        }
    }
    ensure!(child.wait()?.success(), "the libiscsi client failed");
    done.context("the libiscsi client said nothing")
}
