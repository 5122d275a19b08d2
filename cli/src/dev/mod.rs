//! `holdfast dev`: a whole cluster on one machine, of the same binaries that a real one runs, as real processes on loopback.
//!
//! Invariants
//! * One supervisor per folder (an exclusive lock); its processes end with it, whatever way it ends.
//! * A folder keeps its shape: ports, names and certificates are drawn once, so that the same folder is the same cluster.

pub(crate) mod layout;
mod ports;
mod process;
mod ready;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use holdfast_pki::{Authority, Role};

use crate::arguments::{Dev, DevUp};
use layout::{DirectoryLock, Layout};
use process::Supervisor;

/// What `dev up` makes without being told otherwise.
const CONTROLLERS: u16 = 3;
const DATANODES: u16 = 2;

pub(crate) async fn run(directory: Option<PathBuf>, verb: Dev) -> anyhow::Result<()> {
    match verb {
        Dev::Up(arguments) => up(directory, arguments).await,
        Dev::List => list(),
        Dev::Erase => erase(&directory.context("name the folder to erase with --dir")?),
    }
}

async fn up(wished: Option<PathBuf>, arguments: DevUp) -> anyhow::Result<()> {
    let (directory, lock) = match wished {
        Some(directory) => {
            let lock = layout::lock(&directory)?;
            let lock = lock.with_context(|| {
                format!(
                    "a cluster runs in {} already; stop it first, or choose another --dir",
                    directory.display()
                )
            })?;
            (directory, lock)
        }
        None => layout::lock_first_free()?,
    };
    let directory = std::path::absolute(&directory)?;
    let layout = prepare(&directory, &arguments)?;
    let mut supervisor = Supervisor::start(&directory, &layout, &arguments.pool, arguments.restart)?;
    let up = async {
        let cluster = supervisor.while_running(ready::wait(&directory, &layout)).await?;
        ready::announce(&directory, &layout, &cluster);
        supervisor.until_interrupted().await
    };
    let outcome = up.await;
    // Also after a failure: nothing is left running.
    supervisor.stop().await?;
    drop(lock);
    outcome
}

/// Reads the folder's layout, or draws one and issues every certificate.
fn prepare(directory: &Path, arguments: &DevUp) -> anyhow::Result<Layout> {
    if let Some(layout) = Layout::load(directory)? {
        let kept = |what: &str, wished: Option<u16>, has: usize| match wished {
            Some(wished) if usize::from(wished) != has => bail!(
                "the cluster in {} has {has} {what}; leave --{what} out, or choose another --dir",
                directory.display()
            ),
            _ => Ok(()),
        };
        kept("controllers", arguments.controllers, layout.controllers.len())?;
        kept("datanodes", arguments.datanodes, layout.datanodes.len())?;
        layout.check_port_base(arguments.port_base)?;
        return Ok(layout);
    }
    let controllers = arguments.controllers.unwrap_or(CONTROLLERS);
    if controllers.is_multiple_of(2) {
        bail!(
            "--controllers {controllers}: choose 1, 3 or 5; an even number tolerates no more failures than one less"
        );
    }
    let datanodes = arguments.datanodes.unwrap_or(DATANODES);
    let count = controllers + 2 * datanodes;
    let base = match arguments.port_base {
        Some(base) => base,
        None => ports::free_range(count)?,
    };
    let layout = Layout::draw(base, controllers, datanodes)?;
    let authority_directory = directory.join("ca");
    let authority = if authority_directory.join("ca.pem").exists() {
        Authority::open(&authority_directory)?
    } else {
        Authority::create(&authority_directory)?
    };
    for controller in &layout.controllers {
        authority.issue((Role::Controller, &controller.name), &layout::tls(directory, &controller.name))?;
    }
    for node in &layout.datanodes {
        authority.issue((Role::Node, &node.name), &layout::tls(directory, &node.name))?;
    }
    authority.issue((Role::Admin, "admin"), &layout::admin_tls(directory))?;
    layout.save(directory)?;
    Ok(layout)
}

fn list() -> anyhow::Result<()> {
    for directory in layout::running()? {
        println!("{}", directory.display());
    }
    Ok(())
}

fn erase(directory: &Path) -> anyhow::Result<()> {
    if Layout::load(directory)?.is_none() {
        bail!("{} holds no development cluster", directory.display());
    }
    let lock = layout::lock(directory)?;
    let Some(lock) = lock else {
        bail!("the cluster in {} runs; stop it first", directory.display());
    };
    std::fs::remove_dir_all(directory).with_context(|| directory.display().to_string())?;
    drop::<DirectoryLock>(lock);
    Ok(())
}

/// Folder of a binary that belongs to this one.
pub(crate) fn binary(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("where this program is")?;
    let path = own.with_file_name(name);
    if path.exists() {
        return Ok(path);
    }
    bail!("{} is missing: it belongs beside {}", path.display(), own.display())
}
