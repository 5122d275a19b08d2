//! The grammar of the command line. Doc comments here are the help texts.

mod hosts;
mod paths;
mod watch;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub(crate) use hosts::{Host, HostGroup, Map, MapApply};
pub(crate) use paths::{Reservation, Session, SessionFilter, UnitAttention};
pub(crate) use watch::{Watch, Watched};

use crate::size::Size;

/// Holdfast: a highly available SAN from ordinary servers.
#[derive(Parser)]
#[command(version, propagate_version = true, max_term_width = 120)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) client: Client,
    #[command(flatten)]
    pub(crate) telemetry: holdfast_telemetry::Arguments,
    #[command(subcommand)]
    pub(crate) noun: Noun,
}

/// How to reach the cluster, and how to print.
#[derive(Args)]
pub(crate) struct Client {
    /// Controller endpoints, "ADDRESS:PORT[,...]"; needs --tls.
    #[arg(long, global = true, env = "HOLDFAST_ENDPOINTS", value_delimiter = ',', requires = "tls")]
    pub(crate) endpoints: Vec<String>,
    /// Folder with ca.pem, cert.pem and key.pem of an admin, operator or viewer.
    #[arg(long, global = true, env = "HOLDFAST_TLS", value_name = "DIR")]
    pub(crate) tls: Option<PathBuf>,
    /// Folder of a `holdfast dev` cluster (default for `dev up`: the first below the user's state folder that no running
    /// cluster uses; for others, without --endpoints: that of the one running).
    #[arg(long, global = true, env = "HOLDFAST_DIR", value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// How to print.
    #[arg(long, short, global = true, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
}

/// Output format.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
    /// For programs and people.
    Yaml,
}

#[derive(Subcommand)]
pub(crate) enum Noun {
    /// A whole cluster on this machine.
    #[command(subcommand)]
    Dev(Dev),
    /// Certificates of a cluster.
    #[command(subcommand)]
    Pki(Pki),
    /// The cluster and its controllers.
    #[command(subcommand)]
    Cluster(Cluster),
    /// The controllers: add, remove, choose the leader.
    #[command(subcommand)]
    Controller(Controller),
    /// Data nodes.
    #[command(subcommand)]
    Node(Node),
    /// Where data nodes keep copies of volumes.
    #[command(subcommand)]
    Pool(Pool),
    /// Volumes.
    #[command(subcommand)]
    Volume(Volume),
    /// Snapshots of volumes.
    #[command(subcommand)]
    Snapshot(Snapshot),
    /// Hosts: named sets of initiators.
    #[command(subcommand)]
    Host(Host),
    /// Host groups: hosts that see the same volumes at the same LUNs.
    #[command(subcommand, name = "host-group")]
    HostGroup(HostGroup),
    /// Which host sees which volume, and as which LUN.
    #[command(subcommand)]
    Map(Map),
    /// Persistent reservations.
    #[command(subcommand)]
    Reservation(Reservation),
    /// Who is logged in, and how.
    #[command(subcommand)]
    Session(Session),
    /// Unit Attentions that hosts have yet to hear.
    #[command(subcommand, name = "unit-attention")]
    UnitAttention(UnitAttention),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Long work and its progress.
    #[command(subcommand)]
    Job(Job),
    /// What happens in the cluster.
    #[command(subcommand)]
    Event(Event),
    /// What there is of a kind, then every change of it, until interrupted.
    Watch(Watch),
    /// Who changed what, and who was refused.
    #[command(subcommand)]
    Audit(Audit),
}

#[derive(Subcommand)]
pub(crate) enum Dev {
    /// Start a cluster and keep it up until interrupted. The same folder again is the same cluster with its data.
    Up(DevUp),
    /// List the clusters that run on this machine.
    List,
    /// Erase a stopped cluster's folder (--dir), data included.
    Erase,
}

#[derive(Args)]
pub(crate) struct DevUp {
    /// Controllers: 1, 3 or 5 (default 3; kept by an existing folder).
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=5))]
    pub(crate) controllers: Option<u16>,
    /// Data nodes, 1 to 16 (default 2; kept by an existing folder).
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=16))]
    pub(crate) datanodes: Option<u16>,
    /// First of the ports to use (default: a free range; kept by an existing folder).
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1024..=65000))]
    pub(crate) port_base: Option<u16>,
    /// Start a process again when it ends by itself.
    #[arg(long)]
    pub(crate) restart: bool,
    /// One more pool for each data node: NAME=DIRECTORY, NAME=block:DEVICE, NAME=memory:SIZE or NAME=null:; "{node}" in it stands for the
    /// node's name. May be given several times; not kept by the folder.
    #[arg(long, value_name = "POOL")]
    pub(crate) pool: Vec<String>,
}

#[derive(Subcommand)]
pub(crate) enum Pki {
    /// Make the certificate authority of a new cluster.
    Init {
        /// Folder of the authority; keep it safe.
        #[arg(long, value_name = "DIR")]
        ca: PathBuf,
    },
    /// Issue a certificate.
    Issue {
        /// Folder of the authority.
        #[arg(long, value_name = "DIR")]
        ca: PathBuf,
        /// node, controller, admin, operator or viewer.
        #[arg(long)]
        role: holdfast_pki::Role,
        /// Name within the role.
        #[arg(long)]
        name: String,
        /// Folder to write ca.pem, cert.pem and key.pem (for nodes and controllers secret.key too) into.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Renew certificate and key of an identity: the same role and name, in the same folder. A running process takes them within
    /// seconds, or at SIGHUP; connections that are up stay.
    Renew {
        /// Folder of the authority.
        #[arg(long, value_name = "DIR")]
        ca: PathBuf,
        /// Folder of the identity.
        #[arg(long, value_name = "DIR")]
        tls: PathBuf,
    },
    /// Hand an identity the present ca.pem, without a new certificate: the first and the last step of a roll-over.
    Trust {
        /// Folder of the authority.
        #[arg(long, value_name = "DIR")]
        ca: PathBuf,
        /// Folder of the identity.
        #[arg(long, value_name = "DIR")]
        tls: PathBuf,
    },
    /// Begin to replace the authority: new certificates are of a new one, and ca.pem trusts both. See docs/certificates.md.
    RollOver {
        /// Folder of the authority.
        #[arg(long, value_name = "DIR")]
        ca: PathBuf,
    },
    /// End it, when every identity was renewed: ca.pem trusts the new authority alone.
    EndRollOver {
        /// Folder of the authority.
        #[arg(long, value_name = "DIR")]
        ca: PathBuf,
    },
    /// Show whose certificate a folder holds.
    Show {
        /// The folder.
        #[arg(long, value_name = "DIR")]
        tls: PathBuf,
    },
}

#[derive(Subcommand)]
pub(crate) enum Cluster {
    /// Show the cluster, its controllers and their leader.
    Show,
    /// Change options.
    Set(ClusterSet),
    /// Spread ownership evenly over the nodes; hosts see no error.
    Rebalance {
        /// End it early.
        #[arg(long)]
        stop: bool,
    },
    /// Go on with what is left of a volume that no node can serve: shows what each copy would lose; with --from and
    /// --accept-data-loss, goes on with that one.
    Recover {
        /// The volume.
        volume: String,
        /// Node whose copy wins.
        #[arg(long, value_name = "NODE", requires = "accept_data_loss")]
        from: Option<String>,
        /// Agree to the loss that was shown, by naming the epoch that was shown with it, "GENERATION.NUMBER".
        #[arg(long, value_name = "EPOCH", requires = "from", value_parser = parse_epoch)]
        accept_data_loss: Option<(u32, u64)>,
    },
}

#[derive(Args)]
#[group(required = true, multiple = false)]
pub(crate) struct ClusterSet {
    /// Replace a copy whose node has been away for so long, where another node has room: "90s", "15m", "2h".
    #[arg(long, value_name = "TIME", value_parser = parse_seconds)]
    pub(crate) replace_after: Option<u32>,
    /// Never replace a copy without being asked to.
    #[arg(long)]
    pub(crate) replace_never: bool,
}

fn parse_epoch(text: &str) -> Result<(u32, u64), String> {
    let parts = text.split_once('.').and_then(|(g, n)| Some((g.parse().ok()?, n.parse().ok()?)));
    parts.ok_or_else(|| "an epoch is GENERATION.NUMBER, as shown".to_owned())
}

fn parse_seconds(text: &str) -> Result<u32, String> {
    let wrong = || "a time is a number with s, m or h behind it".to_owned();
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let number: u32 = number.parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "s" => Some(number),
        "m" => number.checked_mul(60),
        "h" => number.checked_mul(3600),
        _ => return Err(wrong()),
    };
    seconds.filter(|s| *s > 0).ok_or_else(wrong)
}

#[derive(Subcommand)]
pub(crate) enum Controller {
    /// List the controllers.
    List,
    /// Add one that runs with --join and waits; it votes once it has caught up.
    Add {
        /// Its name, as in its certificate.
        name: String,
        /// The id that it was started with.
        #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
        id: u64,
        /// Where the other controllers reach it, "ADDRESS:PORT".
        #[arg(long)]
        address: String,
    },
    /// Remove one; it stops serving.
    Remove {
        /// The controller.
        name: String,
    },
    /// Hand leadership to one.
    Transfer {
        /// The controller.
        name: String,
    },
}

#[derive(Subcommand)]
pub(crate) enum Node {
    /// List the data nodes.
    List,
    /// Show one.
    Show {
        /// The node.
        name: String,
    },
    /// Place nothing new on it.
    Cordon {
        /// The node.
        name: String,
    },
    /// Hand over all that it owns, move its copies where there is room, and place nothing new on it. Waits until that is
    /// done; hosts see no error.
    Drain {
        /// The node.
        name: String,
        /// Only hand over what it owns (for a short stop of the node).
        #[arg(long)]
        keep_replicas: bool,
        /// Do not wait.
        #[arg(long)]
        no_wait: bool,
    },
    /// Allow new volumes on it again.
    Uncordon {
        /// The node.
        name: String,
    },
    /// Forget one that has stopped for good and holds no volume.
    Remove {
        /// The node.
        name: String,
    },
}

#[derive(Subcommand)]
pub(crate) enum Volume {
    /// Create a volume.
    Create(VolumeCreate),
    /// List the volumes.
    List,
    /// Show one.
    Show {
        /// The volume.
        name: String,
    },
    /// Make it larger; hosts are told.
    Resize {
        /// The volume.
        name: String,
        /// New size.
        #[arg(long)]
        size: Size,
    },
    /// Its copies: add, move, remove.
    #[command(subcommand)]
    Replica(Replica),
    /// Hand it over to another node that has it in sync; hosts see no error.
    Move {
        /// The volume.
        name: String,
        /// The node.
        #[arg(long)]
        node: String,
    },
    /// Read every copy from its first block to its last one now, and heal what is damaged; for volumes with checksums.
    Scrub {
        /// The volume.
        name: String,
        /// Only show how far the scrubs are, and what they have found.
        #[arg(long)]
        show: bool,
    },
    /// Make a writable volume of a snapshot.
    Clone {
        /// The snapshot.
        snapshot: String,
        /// Name of the new volume.
        name: String,
    },
    /// Delete it and its data.
    Delete {
        /// The volume.
        name: String,
    },
}

#[derive(Subcommand)]
pub(crate) enum Pool {
    /// List the pools of all nodes, or of one.
    List {
        /// Of this node only.
        #[arg(long)]
        node: Option<String>,
    },
    /// Show one pool and the copies in it.
    Show {
        /// The node.
        node: String,
        /// The pool on that node.
        name: String,
    },
}

#[derive(Subcommand)]
pub(crate) enum Snapshot {
    /// Take snapshots, all at one point.
    Create {
        /// "VOLUME=NAME" each: a volume, and the name of its snapshot.
        #[arg(required = true, value_parser = parse_snapshot_of)]
        snapshots: Vec<(String, String)>,
    },
    /// List the snapshots.
    List {
        /// Only those of this volume.
        #[arg(long)]
        volume: Option<String>,
    },
    /// Show one.
    Show {
        /// The snapshot.
        name: String,
    },
    /// Put volumes back to what snapshots of them have, all in one step. What was written since is gone for good.
    Restore {
        /// "VOLUME=NAME" each: a volume, and the name of a snapshot of it.
        #[arg(required = true, value_parser = parse_snapshot_of)]
        snapshots: Vec<(String, String)>,
        /// Also while hosts hold sessions or reservations: what they keep in memory is then not what the volume has.
        #[arg(long)]
        while_in_use: bool,
        /// Only show who uses them, and whether it can be done.
        #[arg(long)]
        dry_run: bool,
    },
    /// Delete one; its volume and its clones stay.
    Delete {
        /// The snapshot.
        name: String,
    },
}

fn parse_snapshot_of(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((volume, name)) if !volume.is_empty() && !name.is_empty() => {
            Ok((volume.to_owned(), name.to_owned()))
        }
        _ => Err("is not VOLUME=NAME".to_owned()),
    }
}

#[derive(Args)]
pub(crate) struct VolumeCreate {
    /// Name: letters, digits, '.', '_', '-'.
    pub(crate) name: String,
    /// Size: "10GiB", "500MB", or bytes.
    #[arg(long)]
    pub(crate) size: Size,
    /// Copies, 1 to 3, each on a node of its own.
    #[arg(long, default_value_t = 1)]
    pub(crate) replicas: u32,
    /// Bytes in a logical block.
    #[arg(long, default_value_t = 512, value_parser = parse_block_size)]
    pub(crate) block_size: u32,
    /// Acknowledge writes from memory (on), or only once they are on disk (off).
    #[arg(long, value_enum, default_value_t = Switch::On)]
    pub(crate) write_cache: Switch,
    /// Keep a checksum for every 4096 bytes with each copy, verify it on every read, and mend what does not fit from another copy.
    #[arg(long)]
    pub(crate) checksums: bool,
    /// Node that keeps the first copy and owns the volume at first, then those of the other copies (default: chosen).
    #[arg(long, value_delimiter = ',')]
    pub(crate) node: Vec<String>,
    /// Pools on those nodes, in the same order (default: chosen).
    #[arg(long, requires = "node", value_delimiter = ',')]
    pub(crate) pool: Vec<String>,
    /// It may be lost when nodes stop: its copies may lie in pools of kind memory or null.
    #[arg(long)]
    pub(crate) volatile: bool,
}

#[derive(Subcommand)]
pub(crate) enum Replica {
    /// One more copy.
    Add {
        /// The volume.
        volume: String,
        /// Node for it (default: chosen).
        #[arg(long)]
        node: Option<String>,
        /// Pool on that node (default: chosen).
        #[arg(long, requires = "node")]
        pool: Option<String>,
    },
    /// One copy less.
    Remove {
        /// The volume.
        volume: String,
        /// Node whose copy goes.
        #[arg(long)]
        node: String,
    },
    /// Move a copy to another node.
    Move {
        /// The volume.
        volume: String,
        /// Node that it leaves.
        #[arg(long)]
        from: String,
        /// Node that it goes to (default: chosen).
        #[arg(long)]
        to: Option<String>,
        /// Pool on that node (default: chosen).
        #[arg(long, requires = "to")]
        pool: Option<String>,
    },
}

fn parse_block_size(text: &str) -> Result<u32, String> {
    match text {
        "512" => Ok(512),
        "4096" => Ok(4096),
        _ => Err("512 or 4096".to_owned()),
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    On,
    Off,
}

#[derive(Subcommand)]
pub(crate) enum Job {
    /// List the jobs, newest first.
    List {
        /// Only of this kind: delete-volume, re-sync, move, drain, rebalance.
        #[arg(long)]
        kind: Option<String>,
        /// Only of this resource ("volume/db1"), or of all of a kind ("volume/").
        #[arg(long)]
        subject: Option<String>,
        /// Only in this state: running, done, failed, cancelled.
        #[arg(long, conflicts_with = "watch")]
        state: Option<String>,
        /// Go on printing changes, until interrupted.
        #[arg(long, short)]
        watch: bool,
    },
    /// Show one.
    Show {
        /// Its number.
        id: u64,
    },
    /// Wait until one has ended; the exit status is 1 unless it is done.
    Wait {
        /// Its number.
        id: u64,
    },
    /// Ask one to end.
    Cancel {
        /// Its number.
        id: u64,
    },
}

#[derive(Subcommand)]
pub(crate) enum Event {
    /// Print events as they happen, until interrupted.
    Watch {
        /// Begin after this log index (0: only new ones; 1: everything that is still kept).
        #[arg(long, default_value_t = 0)]
        after: u64,
    },
}

#[derive(Subcommand)]
pub(crate) enum Audit {
    /// List the records that are kept, oldest first.
    List {
        /// Only those after this log index.
        #[arg(long, default_value_t = 0)]
        after: u64,
        /// Only of this resource ("volume/db1"), or of all of a kind ("volume/").
        #[arg(long)]
        subject: Option<String>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn grammar_has_no_contradiction() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn designed_commands_parse() {
        for line in [
            "holdfast dev up --controllers 3 --datanodes 2 --dir d --port-base 40000",
            "holdfast node list",
            "holdfast node drain node-1",
            "holdfast volume move db1 --node node-2",
            "holdfast volume create db1 --size 10GiB --replicas 3 --node node-1,node-2 --pool ssd",
            "holdfast volume replica add db1 --node node-3 --pool ssd",
            "holdfast volume replica move db1 --from node-1 --to node-3",
            "holdfast volume replica remove db1 --node node-1",
            "holdfast node drain node-1 --keep-replicas --no-wait",
            "holdfast cluster set --replace-after 15m",
            "holdfast cluster set --replace-never",
            "holdfast cluster rebalance",
            "holdfast cluster recover db1",
            "holdfast cluster recover db1 --from node-2 --accept-data-loss 0.17",
            "holdfast volume create db1 --size 10GiB --replicas 2 --block-size 4096 --write-cache off",
            "holdfast volume create db1 --size 10GiB --replicas 2 --checksums",
            "holdfast volume scrub db1",
            "holdfast volume scrub db1 --show -o json",
            "holdfast volume resize db1 --size 20GiB",
            "holdfast host create h --initiator iqn.a:1 iqn.a:2 --chap-user u --chap-secret-file f",
            "holdfast map create db1 h --lun 3 -o json",
            "holdfast host create h --initiator 50:01:43:80:12:34:56:7a",
            "holdfast host update h --add-initiator iqn.a:3 --remove-initiator iqn.a:1 iqn.a:2 --no-chap",
            "holdfast host wildcards allow",
            "holdfast host list -w",
            "holdfast host-group create g --host h1 h2",
            "holdfast host-group update g --add-host h3 --remove-host h1",
            "holdfast map create db1 --group g",
            "holdfast map delete db1 --group g",
            "holdfast map apply -f maps.yaml --dry-run --prune",
            "holdfast map export",
            "holdfast reservation show db1",
            "holdfast reservation explain db1 --host h --opcode write",
            "holdfast reservation explain db1 --host h --opcode 0x5e --service-action 1",
            "holdfast reservation clear db1 --initiator iqn.a:1,i,0x00023d000001 --rtpi 2",
            "holdfast reservation clear db1 --all",
            "holdfast session list --host h",
            "holdfast session show iqn.a:1",
            "holdfast session end iqn.a:1,i,0x00023d000001 --rtpi 1",
            "holdfast unit-attention list --volume db1",
            "holdfast completions zsh",
            "holdfast event watch",
            "holdfast watch volumes",
            "holdfast watch mappings --host web1 --after 17",
            "holdfast controller add ctl-4 --id 4 --address 127.0.0.1:7704",
            "holdfast controller transfer ctl-1",
            "holdfast audit list --after 7 --subject volume/db1",
        ] {
            assert!(Arguments::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for line in [
            "holdfast volume create db1",
            "holdfast volume scrub --show",
            "holdfast cluster recover db1 --from node-2",
            "holdfast cluster recover db1 --from node-2 --accept-data-loss yes",
            "holdfast cluster set",
            "holdfast cluster set --replace-after 15",
            "holdfast volume create db1 --size 10XB",
            "holdfast volume create db1 --size 1GiB --block-size 513",
            "holdfast map create db1 h --lun 16384",
            "holdfast host create h",
            "holdfast host update h",
            "holdfast host update h --no-chap --chap-user u --chap-secret-file f",
            "holdfast map create db1",
            "holdfast map create db1 h --group g",
            "holdfast map apply",
            "holdfast reservation clear db1",
            "holdfast reservation clear db1 --all --initiator iqn.a:1,i,0x00023d000001 --rtpi 2",
            "holdfast reservation explain db1 --host h --opcode wrote",
            "holdfast host create h --initiator iqn.a:1 --chap-user u",
            "holdfast dev up --port-base 80",
            "holdfast node list --endpoints a:1",
            "holdfast controller add ctl-4 --id 0 --address 127.0.0.1:1",
        ] {
            assert!(Arguments::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
