//! Arguments of the data node, checked into values that are right.
//!
//! Invariant: a [`Config`] exists only if its parts fit together; every refusal is one line that says what would be right.

use std::{
    collections::BTreeSet,
    fs, io,
    net::SocketAddr,
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use clap::Parser;
use holdfast_pki::{Identity, PkiError, Role};
use holdfast_replica::limits::POOL_NAME_LEN_MAX;

use crate::store::pool::PoolPlace;
use crate::view::BootId;
use crate::volume::ScrubPace;

/// Portals of one data node.
const PORTALS_MAX: usize = 16;
/// Pools of one data node.
const POOLS_MAX: usize = 64;
/// Controllers of one cluster.
const CONTROLLERS_MAX: usize = 9;
/// Data-plane threads.
const THREADS_MAX: usize = 256;
/// The smallest pool in memory, in bytes.
const MEMORY_POOL_MIN: u64 = 1024 * 1024;
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A data node of a Holdfast cluster: owns disks and serves initiators.
#[derive(Debug, Parser)]
#[command(name = "holdfast-datanode", version)]
pub struct Arguments {
    /// This node's name, as in its certificate
    #[arg(long)]
    name: String,
    /// Directory of its state; made when it is not there
    #[arg(long)]
    dir: PathBuf,
    /// Controllers, as ADDRESS:PORT,ADDRESS:PORT,...
    #[arg(long, value_delimiter = ',', required = true, value_parser = parse_controller)]
    controllers: Vec<String>,
    /// Address and port for initiators (iSCSI); may be given several times
    #[arg(long = "portal", required = true)]
    portals: Vec<SocketAddr>,
    /// Address and port for the other data nodes
    #[arg(long)]
    interconnect: SocketAddr,
    /// Directory of its certificate: ca.pem, cert.pem, key.pem, secret.key
    #[arg(long)]
    tls: PathBuf,
    /// A pool for replicas, as NAME=DIRECTORY, NAME=block:DEVICE (or a file in place of one), NAME=memory:SIZE (lost when the node
    /// stops) or NAME=null: (keeps nothing, for measuring); may be given several times
    #[arg(long = "pool", required = true, value_parser = parse_pool)]
    pools: Vec<PoolArgument>,
    /// Threads of the data plane [default: one for each core]
    #[arg(long, value_parser = parse_threads)]
    threads: Option<usize>,
    /// Bytes per second that the scrub of volumes with checksums reads at most; 0: there is no scrub
    #[arg(long, env = "HOLDFAST_SCRUB_BYTES_PER_SECOND_MAX", default_value_t = ScrubPace::default().bytes_per_second_max)]
    scrub_bytes_per_second_max: u64,
    /// Seconds from the end of one scrub of a volume's copy to the beginning of the next
    #[arg(long, env = "HOLDFAST_SCRUB_PERIOD_S", default_value_t = ScrubPace::default().period_s)]
    scrub_period_s: u64,
    #[command(flatten)]
    telemetry: holdfast_telemetry::Arguments,
    /// Stop when the process that started this one ends, however it ends (for supervisors such as `holdfast dev up`)
    #[arg(long)]
    die_with_parent: bool,
}

/// A pool as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolArgument {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub place: PoolPlace,
}

/// Why the arguments do not make a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The certificate's folder.
    #[error("--tls: {0}")]
    Pki(#[from] PkiError),
    /// The certificate is for something else.
    #[error("--tls: the certificate is of {role} '{name}'; a certificate of node '{expected}' is needed")]
    Certificate {
        /// Its role.
        role: &'static str,
        /// Its name.
        name: String,
        /// The name given.
        expected: String,
    },
    /// The node has no key for secrets.
    #[error("--tls: secret.key is missing in {0}; certificates of data nodes come with it")]
    NoKey(PathBuf),
    /// Something is given twice.
    #[error("{argument}: {value} is given twice")]
    Twice {
        /// Which argument.
        argument: &'static str,
        /// What.
        value: String,
    },
    /// Too many of something.
    #[error("{argument}: at most {max} can be given")]
    TooMany {
        /// Which argument.
        argument: &'static str,
        /// The bound.
        max: usize,
    },
    /// An address that others cannot connect to.
    #[error("{argument}: {address} is no address that others can connect to; give the one they use")]
    Unspecified {
        /// Which argument.
        argument: &'static str,
        /// The address.
        address: SocketAddr,
    },
    /// The state directory.
    #[error("--dir: {directory}: {error}")]
    Directory {
        /// Which.
        directory: PathBuf,
        /// What the system said.
        #[source]
        error: io::Error,
    },
    /// Another process has the directory.
    #[error("--dir: {0} is used by another data node that is running")]
    InUse(PathBuf),
    /// The kernel does not tell its boot id.
    #[error("{BOOT_ID} does not hold the kernel's boot id: {0}")]
    BootId(String),
}

/// What a data node runs with.
#[derive(Debug)]
pub struct Config {
    /// Its name.
    pub name: String,
    /// Its state, locked for this process.
    pub directory: StateDirectory,
    /// "address:port" of each controller; not empty.
    pub controllers: Vec<String>,
    /// Where initiators connect; not empty.
    pub portals: Vec<SocketAddr>,
    /// Where other nodes connect.
    pub interconnect: SocketAddr,
    /// Who it is; has the cluster key.
    pub identity: Identity,
    /// Where replicas go; not empty.
    pub pools: Vec<PoolArgument>,
    /// Data-plane threads.
    pub threads: usize,
    /// How fast and how often replicas with checksums are scrubbed.
    pub scrub: ScrubPace,
    /// The kernel's boot.
    pub boot: BootId,
}

/// The state directory; nobody else has it while this lives.
#[derive(Debug)]
pub struct StateDirectory {
    /// Its path.
    pub path: PathBuf,
    _lock: fs::File,
}

impl Arguments {
    /// This node's name, as given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What was said of traces.
    pub fn telemetry(&self) -> &holdfast_telemetry::Arguments {
        &self.telemetry
    }

    /// Ties the life of this process to its parent's, when that was asked for.
    ///
    /// # Errors
    /// What the system said.
    pub fn follow_parent(&self) -> std::io::Result<()> {
        if self.die_with_parent {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
        }
        Ok(())
    }

    /// Checks the arguments against each other and against the machine; takes the state directory.
    ///
    /// # Errors
    /// [`ConfigError`], for the first that does not fit.
    pub fn check(self) -> Result<Config, ConfigError> {
        bounded("--controllers", &self.controllers, CONTROLLERS_MAX, Clone::clone)?;
        bounded("--portal", &self.portals, PORTALS_MAX, ToString::to_string)?;
        bounded("--pool", &self.pools, POOLS_MAX, |pool| pool.name.clone())?;
        let paths: Vec<&PathBuf> = self
            .pools
            .iter()
            .filter_map(|pool| match &pool.place {
                PoolPlace::Directory(path) | PoolPlace::Device(path) => Some(path),
                PoolPlace::Memory { .. } | PoolPlace::Nothing => None,
            })
            .collect();
        bounded("--pool", &paths, POOLS_MAX, |path| path.display().to_string())?;
        let reachable = |argument, address: SocketAddr| {
            if address.ip().is_unspecified() {
                return Err(ConfigError::Unspecified { argument, address });
            }
            Ok(())
        };
        self.portals.iter().try_for_each(|address| reachable("--portal", *address))?;
        reachable("--interconnect", self.interconnect)?;
        let identity = Identity::load(&self.tls)?;
        let own = identity.own();
        if own.role != Role::Node || own.name != self.name {
            let (role, name) = (own.role.as_str(), own.name.clone());
            return Err(ConfigError::Certificate { role, name, expected: self.name });
        }
        if identity.sealing_key().is_none() {
            return Err(ConfigError::NoKey(self.tls));
        }
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Ok(Config {
            name: self.name,
            directory: StateDirectory::take(&self.dir)?,
            controllers: self.controllers,
            portals: self.portals,
            interconnect: self.interconnect,
            identity,
            pools: self.pools,
            threads: self.threads.unwrap_or(cores).min(THREADS_MAX),
            scrub: ScrubPace {
                bytes_per_second_max: self.scrub_bytes_per_second_max,
                period_s: self.scrub_period_s,
            },
            boot: boot_id()?,
        })
    }
}

impl StateDirectory {
    fn take(path: &Path) -> Result<StateDirectory, ConfigError> {
        let failed = |error| ConfigError::Directory { directory: path.to_path_buf(), error };
        fs::create_dir_all(path).map_err(failed)?;
        let lock = fs::File::create(path.join("lock")).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(StateDirectory { path: path.to_path_buf(), _lock: lock }),
            Err(fs::TryLockError::WouldBlock) => Err(ConfigError::InUse(path.to_path_buf())),
            Err(fs::TryLockError::Error(error)) => Err(failed(error)),
        }
    }
}

/// At most `max`, and none twice.
fn bounded<T>(
    argument: &'static str,
    values: &[T],
    max: usize,
    key: impl Fn(&T) -> String,
) -> Result<(), ConfigError> {
    if values.len() > max {
        return Err(ConfigError::TooMany { argument, max });
    }
    let mut seen = BTreeSet::new();
    match values.iter().map(key).find(|value| !seen.insert(value.clone())) {
        // Port 0 asks for any free one.
        Some(value) if !value.ends_with(":0") => Err(ConfigError::Twice { argument, value }),
        _ => Ok(()),
    }
}

/// The boot that this process runs under.
pub(crate) fn boot_id() -> Result<BootId, ConfigError> {
    let text = fs::read_to_string(BOOT_ID).map_err(|error| ConfigError::BootId(error.to_string()))?;
    parse_boot_id(&text).ok_or_else(|| ConfigError::BootId(format!("it holds '{}'", text.trim())))
}

fn parse_boot_id(text: &str) -> Option<BootId> {
    let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
    if digits.len() != 32 || !digits.is_ascii() {
        return None;
    }
    u128::from_str_radix(&digits, 16).ok().map(|number| BootId(number.to_be_bytes()))
}

fn parse_controller(text: &str) -> Result<String, String> {
    let parts = text.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    match parts.and_then(|(_, port)| port.parse::<u16>().ok()) {
        Some(port) if port != 0 => Ok(text.to_owned()),
        _ => Err("it is not ADDRESS:PORT".to_owned()),
    }
}

fn parse_pool(text: &str) -> Result<PoolArgument, String> {
    let (name, place) = text.split_once('=').ok_or("it is not NAME=DIRECTORY or NAME=KIND:PLACE")?;
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > POOL_NAME_LEN_MAX || !name.chars().all(good) {
        return Err(format!(
            "a pool's name has 1 to {POOL_NAME_LEN_MAX} letters, digits, '.', '_' or '-', not '{name}'"
        ));
    }
    Ok(PoolArgument { name: name.to_owned(), place: parse_place(place)? })
}

fn parse_place(text: &str) -> Result<PoolPlace, String> {
    let path = |text: &str, what: &str| match text {
        "" => Err(format!("the {what} is missing")),
        path => Ok(PathBuf::from(path)),
    };
    match text.split_once(':') {
        Some(("file", directory)) => path(directory, "directory").map(PoolPlace::Directory),
        Some(("block", device)) => path(device, "device").map(PoolPlace::Device),
        Some(("memory", size)) => parse_size(size).map(|bytes_max| PoolPlace::Memory { bytes_max }),
        Some(("null", "")) => Ok(PoolPlace::Nothing),
        Some(("null", _)) => Err("nothing may stand behind null:".to_owned()),
        Some((kind, _)) if !kind.contains(['/', '.']) => {
            Err(format!("a pool is file:, block:, memory: or null:, not '{kind}:'"))
        }
        _ => path(text, "directory").map(PoolPlace::Directory),
    }
}

/// A whole number of bytes, KiB, MiB, GiB or TiB.
fn parse_size(text: &str) -> Result<u64, String> {
    let units = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40)];
    let (number, shift) = units
        .into_iter()
        .find_map(|(unit, shift)| text.strip_suffix(unit).map(|number| (number, shift)))
        .unwrap_or((text, 0));
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    match bytes {
        Some(bytes) if bytes >= MEMORY_POOL_MIN => Ok(bytes),
        _ => Err(format!(
            "a size is a number with KiB, MiB, GiB or TiB behind it, at least 1MiB, not '{text}'"
        )),
    }
}

fn parse_threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(threads @ 1..=THREADS_MAX) => Ok(threads),
        _ => Err(format!("it must be 1 to {THREADS_MAX}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        <Arguments as clap::CommandFactory>::command().debug_assert();
    }
    use holdfast_pki::Authority;

    struct Place {
        root: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Place {
            let root = tempfile::tempdir().unwrap();
            let authority = Authority::create(&root.path().join("ca")).unwrap();
            authority.issue((Role::Node, "node-1"), &root.path().join("tls")).unwrap();
            authority.issue((Role::Viewer, "node-1"), &root.path().join("viewer")).unwrap();
            Place { root }
        }

        fn parse(&self, changes: &[(&str, &str)]) -> Result<Config, String> {
            let path = |name: &str| self.root.path().join(name).display().to_string();
            let mut values = vec![
                ("--name", "node-1".to_owned()),
                ("--dir", path("state")),
                ("--controllers", "127.0.0.1:7001,ctl-2:7002".to_owned()),
                ("--portal", "127.0.0.1:3260".to_owned()),
                ("--interconnect", "127.0.0.1:4001".to_owned()),
                ("--tls", path("tls")),
                ("--pool", format!("default={}", path("pool"))),
            ];
            for (argument, value) in changes {
                let value = value.replace("ROOT", &self.root.path().display().to_string());
                if let Some(added) = argument.strip_prefix('+') {
                    values.push((Box::leak(added.to_owned().into_boxed_str()), value));
                } else {
                    values.iter_mut().find(|(name, _)| name == argument).unwrap().1 = value;
                }
            }
            let words = values.iter().flat_map(|(name, value)| [(*name).to_owned(), value.clone()]);
            let arguments =
                Arguments::try_parse_from(std::iter::once("holdfast-datanode".to_owned()).chain(words))
                    .map_err(|error| error.to_string())?;
            arguments.check().map_err(|error| error.to_string())
        }
    }

    #[test]
    fn good_arguments_make_a_configuration() {
        let place = Place::new();
        let config = place.parse(&[("+--portal", "127.0.0.2:3260"), ("+--threads", "3")]).unwrap();
        assert_eq!(config.controllers, ["127.0.0.1:7001", "ctl-2:7002"]);
        assert_eq!((config.portals.len(), config.threads), (2, 3));
        assert_eq!(config.pools[0].name, "default");
    }

    #[test]
    fn pools_are_of_every_kind() {
        let place = |text: &str| parse_pool(text).unwrap().place;
        assert_eq!(place("a=/srv/x"), PoolPlace::Directory("/srv/x".into()));
        assert_eq!(place("a=./odd:name"), PoolPlace::Directory("./odd:name".into()));
        assert_eq!(place("a=file:x"), PoolPlace::Directory("x".into()));
        assert_eq!(place("a=block:/dev/sdb"), PoolPlace::Device("/dev/sdb".into()));
        assert_eq!(place("a=memory:2GiB"), PoolPlace::Memory { bytes_max: 2 << 30 });
        assert_eq!(place("a=null:"), PoolPlace::Nothing);
    }

    #[test]
    fn every_refusal_says_what_would_be_right() {
        let place = Place::new();
        let refusals = [
            (("--controllers", "127.0.0.1"), "ADDRESS:PORT"),
            (("--controllers", "127.0.0.1:1,127.0.0.1:1"), "given twice"),
            (("+--portal", "127.0.0.1:3260"), "given twice"),
            (("--portal", "0.0.0.0:3260"), "give the one they use"),
            (("--interconnect", "[::]:4001"), "give the one they use"),
            (("--interconnect", "nowhere"), "invalid socket address"),
            (("--pool", "default"), "NAME=DIRECTORY"),
            (("--pool", "a/b=ROOT/x"), "letters, digits"),
            (("+--pool", "default=ROOT/other"), "default is given twice"),
            (("+--pool", "other=ROOT/pool"), "given twice"),
            (("+--pool", "other=block:ROOT/pool"), "given twice"),
            (("+--pool", "other=disk:/dev/null"), "file:, block:, memory: or null:"),
            (("+--pool", "other=block:"), "the device is missing"),
            (("+--pool", "other=memory:12"), "at least 1MiB"),
            (("+--pool", "other=memory:99999999TiB"), "at least 1MiB"),
            (("+--pool", "other=null:/x"), "nothing may stand behind"),
            (("+--threads", "0"), "1 to 256"),
            (("--name", "node-2"), "a certificate of node 'node-2' is needed"),
            (("--tls", "ROOT/viewer"), "a certificate of node 'node-1' is needed"),
            (("--tls", "ROOT/nothing"), "--tls:"),
        ];
        for (change, expected) in refusals {
            let message = place.parse(&[change]).unwrap_err();
            assert!(message.contains(expected), "{change:?}: {message}");
        }
    }

    #[test]
    fn directory_belongs_to_one_process() {
        let place = Place::new();
        let first = place.parse(&[]).unwrap();
        assert!(place.parse(&[]).unwrap_err().contains("used by another data node"));
        drop(first);
        assert!(place.parse(&[]).is_ok());
    }

    #[test]
    fn boot_id_is_read_as_the_kernel_writes_it() {
        let id = parse_boot_id("8c9f5b3e-0000-4000-8000-0000000000ff\n").unwrap();
        assert_eq!((id.0[0], id.0[15]), (0x8c, 0xff));
        assert!(parse_boot_id("8c9f").is_none());
        assert!(boot_id().is_ok());
    }
}
