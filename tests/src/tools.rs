//! Programs that people use against an iSCSI target: libiscsi's tools and QEMU's.

use std::process::{Command, Output};

use anyhow::{Context, ensure};

/// Runs a program and gives what it said; a failure to start it is an error, its exit status is the caller's to judge.
///
/// # Errors
/// When the program is not there.
pub fn run(program: &str, arguments: &[&str]) -> anyhow::Result<Output> {
    Command::new(program).args(arguments).output().with_context(|| format!("{program} (is it installed?)"))
}

/// The same, where only success will do. Gives standard output.
///
/// # Errors
/// Standard error of the program.
pub fn expect_success(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let output = run(program, arguments)?;
    ensure!(
        output.status.success(),
        "{program} {}: {}\n{}{}",
        arguments.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// URL of a LU for libiscsi's tools and QEMU.
pub fn url(portal: &str, target: &str, lun: u16) -> String {
    format!("iscsi://{portal}/{target}/{lun}")
}

/// Options of `qemu-io` and `qemu-img` for a LU as a certain initiator.
pub fn qemu_image(portal: &str, target: &str, lun: u16, initiator: &str) -> String {
    format!(
        "driver=raw,file.driver=iscsi,file.transport=tcp,file.portal={portal},file.target={target},file.lun={lun},file.initiator-name={initiator}"
    )
}
