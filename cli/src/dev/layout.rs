//! The shape of a development cluster, kept in its folder:
//!
//! ```text
//! DIR/layout.json        names and ports
//! DIR/lock               held by the supervisor while the cluster runs
//! DIR/ca/                authority
//! DIR/tls/NAME/          identity of each process, and of the admin
//! DIR/NAME/              state of each process (Raft store; pool)
//! DIR/log/NAME.log       what it said
//! ```

use std::{
    fs,
    io::ErrorKind,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

/// Every process of the cluster listens here.
pub(crate) const ADDRESS: &str = "127.0.0.1";

/// Names and ports of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Layout {
    pub(crate) controllers: Vec<ControllerLayout>,
    pub(crate) datanodes: Vec<DatanodeLayout>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ControllerLayout {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DatanodeLayout {
    pub(crate) name: String,
    pub(crate) portal_port: u16,
    pub(crate) interconnect_port: u16,
}

impl ControllerLayout {
    pub(crate) fn address(&self) -> String {
        format!("{ADDRESS}:{}", self.port)
    }
}

impl DatanodeLayout {
    pub(crate) fn portal(&self) -> String {
        format!("{ADDRESS}:{}", self.portal_port)
    }

    pub(crate) fn interconnect(&self) -> String {
        format!("{ADDRESS}:{}", self.interconnect_port)
    }
}

impl Layout {
    /// Hands out ports from `base` on: controllers, portals, interconnects.
    pub(crate) fn draw(base: u16, controllers: u16, datanodes: u16) -> anyhow::Result<Self> {
        let count = controllers + 2 * datanodes;
        if base.checked_add(count).is_none() {
            bail!("--port-base {base}: {count} ports are needed, and there are none above 65535");
        }
        Ok(Self {
            controllers: (0..controllers)
                .map(|n| ControllerLayout {
                    id: u64::from(n) + 1,
                    name: format!("ctl-{}", n + 1),
                    port: base + n,
                })
                .collect(),
            datanodes: (0..datanodes)
                .map(|n| DatanodeLayout {
                    name: format!("node-{}", n + 1),
                    portal_port: base + controllers + n,
                    interconnect_port: base + controllers + datanodes + n,
                })
                .collect(),
        })
    }

    pub(crate) fn check_port_base(&self, wished: Option<u16>) -> anyhow::Result<()> {
        match (wished, self.controllers.first()) {
            (Some(wished), Some(first)) if wished != first.port => bail!(
                "this cluster's ports begin at {}; initiators know them, so leave --port-base out",
                first.port
            ),
            _ => Ok(()),
        }
    }

    /// The layout of a folder; `None` when it holds no cluster.
    pub(crate) fn load(directory: &Path) -> anyhow::Result<Option<Self>> {
        let path = directory.join("layout.json");
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(serde_json::from_str(&text).with_context(|| path.display().to_string())?)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| path.display().to_string()),
        }
    }

    /// Written last when a cluster is made: its presence says that the folder is whole.
    pub(crate) fn save(&self, directory: &Path) -> anyhow::Result<()> {
        let path = directory.join("layout.json");
        let temporary = path.with_extension("new");
        fs::write(&temporary, serde_json::to_string_pretty(self)?)
            .and_then(|()| fs::rename(&temporary, &path))
            .with_context(|| path.display().to_string())
    }
}

pub(crate) fn tls(directory: &Path, name: &str) -> PathBuf {
    directory.join("tls").join(name)
}

pub(crate) fn admin_tls(directory: &Path) -> PathBuf {
    tls(directory, "admin")
}

/// Held while a cluster runs. The system lets go of it when the process ends, however it ends.
pub(crate) struct DirectoryLock {
    _file: fs::File,
}

/// Takes the folder; `None` when a running cluster has it.
pub(crate) fn lock(directory: &Path) -> anyhow::Result<Option<DirectoryLock>> {
    fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    let path = directory.join("lock");
    let file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| path.display().to_string())?;
    match flock(file.as_fd(), FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(DirectoryLock { _file: file })),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

/// Where clusters live that were given no folder.
fn default_root() -> anyhow::Result<PathBuf> {
    let state = match std::env::var_os("XDG_STATE_HOME").filter(|value| !value.is_empty()) {
        Some(state) => PathBuf::from(state),
        None => {
            let home = std::env::var_os("HOME").context("HOME is not set; choose a folder with --dir")?;
            Path::new(&home).join(".local/state")
        }
    };
    Ok(state.join("holdfast"))
}

/// More development clusters than this on one machine are a mistake.
const DEFAULT_DIRECTORIES_MAX: u32 = 16;

/// The first default folder that no running cluster has, taken.
pub(crate) fn lock_first_free() -> anyhow::Result<(PathBuf, DirectoryLock)> {
    let root = default_root()?;
    for number in 1..=DEFAULT_DIRECTORIES_MAX {
        let directory = root.join(format!("dev-{number}"));
        if let Some(lock) = lock(&directory)? {
            return Ok((directory, lock));
        }
    }
    bail!("{DEFAULT_DIRECTORIES_MAX} clusters run already; choose a folder with --dir")
}

/// Default folders whose cluster runs.
pub(crate) fn running() -> anyhow::Result<Vec<PathBuf>> {
    let root = default_root()?;
    let mut running = Vec::new();
    for number in 1..=DEFAULT_DIRECTORIES_MAX {
        let directory = root.join(format!("dev-{number}"));
        if directory.join("layout.json").exists() && lock(&directory)?.is_none() {
            running.push(directory);
        }
    }
    Ok(running)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_port_is_used_once() -> anyhow::Result<()> {
        let layout = Layout::draw(40_000, 5, 16)?;
        let ports: BTreeSet<u16> = layout
            .controllers
            .iter()
            .map(|c| c.port)
            .chain(layout.datanodes.iter().flat_map(|d| [d.portal_port, d.interconnect_port]))
            .collect();
        assert_eq!(ports, (40_000..40_037).collect());
        assert!(Layout::draw(65_530, 3, 2).is_err());
        Ok(())
    }

    #[test]
    fn a_layout_reads_back_and_a_missing_one_is_none() -> anyhow::Result<()> {
        let directory = tempfile::tempdir()?;
        assert_eq!(Layout::load(directory.path())?, None);
        let layout = Layout::draw(40_000, 3, 2)?;
        layout.save(directory.path())?;
        assert_eq!(Layout::load(directory.path())?, Some(layout));
        fs::write(directory.path().join("layout.json"), "{")?;
        assert!(Layout::load(directory.path()).is_err());
        Ok(())
    }

    #[test]
    fn a_folder_is_locked_once() -> anyhow::Result<()> {
        let directory = tempfile::tempdir()?;
        let first = lock(directory.path())?;
        assert!(first.is_some());
        assert!(lock(directory.path())?.is_none());
        drop(first);
        assert!(lock(directory.path())?.is_some());
        Ok(())
    }
}
